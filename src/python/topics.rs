//! The methods of a pub/sub object, for `RedisPubSub`, `MemoryPubSub` and `UploadProgressPublisher`.

use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyString;

use super::bridge;
use super::broker::publishing;
use super::encode;
use super::errors::{self, Doing};
use super::operation::{Operation, Step};
use super::options;
use super::sessions::{Options, SessionsState};
use crate::client::Client;
use crate::coalesce::{Class, Coalescer};
use crate::lane::{LaneLimits, Overflow};
use crate::message::{Message, Object, Outgoing, Payload};
use crate::post::Reply;
use crate::router::Policy;
use crate::sessions::Channels;
use crate::wishes::Wishes;

/// How long the handlers of sessions may hold an event loop in one turn.
const TIME_SLICE: Duration = Duration::from_millis(1);

/// What a pub/sub object's constructor says about its sessions.
pub struct SessionOptions<'a> {
    pub ordering: &'a str,
    pub max_queued_messages: usize,
    pub max_queued_bytes: usize,
    pub on_drop: Option<Py<PyAny>>,
}

impl SessionOptions<'_> {
    /// Sessions of a broker's topics (with the prefix of their channels and what is to be asked for), or
    /// of this process alone.
    pub fn make(
        self,
        py: Python<'_>,
        broker: Option<(&str, Wishes)>,
    ) -> PyResult<Arc<SessionsState>> {
        let limits = LaneLimits {
            messages: options::at_least_one(py, "max_queued_messages", self.max_queued_messages)?,
            bytes: options::at_least_one(py, "max_queued_bytes", self.max_queued_bytes)?,
        };
        let coalescer = Coalescer::new(&[])
            .map_err(|why| errors::new(py, "ConfigError", format!("coalesce: {why}")))?;
        let policy = Policy { limits, overflow: Overflow::DropOldest, coalescer };
        let options = Options {
            concurrent: options::is_concurrent(py, self.ordering)?,
            time_slice: TIME_SLICE,
            on_drop: options::callback(py, "on_drop", self.on_drop)?,
        };
        let channels = broker
            .map(|(prefix, wishes)| Channels { prefix: prefix.into(), wishes: Arc::new(wishes) });
        Ok(SessionsState::new(policy, channels, options))
    }
}

/// `subscribe_topic`. With a client it waits for the broker's word.
pub fn subscribe(
    py: Python<'_>,
    state: &Arc<SessionsState>,
    client: Option<Arc<Client>>,
    session_id: PyBackedStr,
    topic: &Bound<'_, PyString>,
    handler: Py<PyAny>,
) -> PyResult<Operation> {
    if !handler.bind(py).is_callable() {
        let kind = handler.bind(py).get_type().name()?;
        return Err(PyTypeError::new_err(format!("handler must be callable, not {kind}")));
    }
    topic.to_str()?; // a lone surrogate is an error now
    let (state, topic) = (Arc::clone(state), topic.clone().unbind());
    Ok(Operation::new("subscribe_topic", move |py| {
        let bridge = bridge::running(py)?;
        let topic = topic.bind(py);
        state.subscribe(py, &bridge, &session_id, topic, handler)?;
        let (Some(channels), Some(client)) = (state.router.channels(), client) else {
            return Ok(Step::Done);
        };
        let channel = channels.of(topic.to_str()?);
        if client.is_running() && channels.wishes.is_live(&channel) {
            return Ok(Step::Done);
        }
        let (future, token) = bridge.wait(py, Doing::Starting)?;
        client.wait_for(&channel, Reply::on_drop(Arc::clone(&bridge.mailbox), token));
        Ok(Step::WaitWith(future, client))
    }))
}

/// `unsubscribe_topic`.
pub fn unsubscribe(
    state: &Arc<SessionsState>,
    session_id: PyBackedStr,
    topic: PyBackedStr,
) -> Operation {
    let state = Arc::clone(state);
    Operation::new("unsubscribe_topic", move |py| {
        state.unsubscribe(py, &session_id, &topic)?;
        Ok(Step::Done)
    })
}

/// `unsubscribe_all`.
pub fn unsubscribe_all(state: &Arc<SessionsState>, session_id: PyBackedStr) -> Operation {
    let state = Arc::clone(state);
    Operation::new("unsubscribe_all", move |py| {
        state.unsubscribe_all(py, &session_id)?;
        Ok(Step::Done)
    })
}

/// `broadcast` through a broker.
pub fn broadcast(
    state: &Arc<SessionsState>,
    client: &Arc<Client>,
    topic: &str,
    message: &Bound<'_, PyAny>,
    except: Option<&str>,
) -> PyResult<Operation> {
    let Some(channels) = state.router.channels() else {
        return Err(PyValueError::new_err("this object has no broker"));
    };
    let channel = channels.of(topic);
    let outgoing = if client.wraps_topics() {
        Outgoing::new(channel, encode::to_envelope(topic, message, except)?.into())
    } else {
        let payload = encode::to_value(message)?.into_bytes().into();
        Outgoing { except: except.map(Into::into), ..Outgoing::new(channel, payload) }
    };
    within(outgoing.payload.len(), client.limits().max_message_bytes)?;
    Ok(publishing("broadcast", client, outgoing))
}

/// `broadcast` inside this process: of the object itself, or of its JSON.
pub fn broadcast_here(
    state: &Arc<SessionsState>,
    max_json_bytes: Option<usize>,
    topic: PyBackedStr,
    message: &Bound<'_, PyAny>,
    except: Option<PyBackedStr>,
) -> PyResult<Operation> {
    let payload: Payload = match max_json_bytes {
        None => Message::of(Object(Box::new(message.clone().unbind()))),
        Some(most) => {
            let text = encode::to_value(message)?;
            within(text.len(), most)?;
            Message::new(text, Class::default())
        }
    };
    let state = Arc::clone(state);
    Ok(Operation::new("broadcast", move |_| {
        state.router.broadcast(&topic, &payload, except.as_deref());
        Ok(Step::Done)
    }))
}

/// Refuses a payload that is too large.
pub fn within(bytes: usize, most: usize) -> PyResult<()> {
    if bytes > most {
        let text = format!("the message has {bytes} bytes, and max_message_bytes is {most}");
        return Err(PyValueError::new_err(text));
    }
    Ok(())
}
