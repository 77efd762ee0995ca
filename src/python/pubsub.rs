//! `RedisPubSub` and `MemoryPubSub`: what Python sees of `sessions.rs`.

use std::sync::Arc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::broker::{Broker, BrokerOptions};
use super::operation::{Operation, Step};
use super::sessions::SessionsState;
use super::slot::Slot;
use super::topics::{self, SessionOptions};
use crate::coalesce::Coalescer;
use crate::supervise::Uploads;

fn not_initialized(class: &str) -> PyErr {
    PyRuntimeError::new_err(format!("{class}.__init__() was not called by its subclass"))
}

/// A pub/sub backend over Redis (or Valkey), for PyView and for any code with topics and sessions.
///
/// The broker carries `{channel_prefix}{topic}` with `{"topic": ..., "message": ...}`, so instances that
/// run the Python code of PyView's guide and instances that run this understand each other. There is
/// one subscription for each topic, however many sessions listen to it.
///
/// Args:
///     url: `redis://`, `rediss://`, `unix:///path`, or `memory://`.
///     channel_prefix: what a channel's name has before the topic.
///     ordering: "session": a session's handlers run one at a time, in the order of publication.
///         "concurrent": a Task for each message.
///     strict: raise trouble with the broker, instead of logging it once per outage and counting it.
///     connect_timeout_seconds: for connecting and authenticating together.
///     publish_timeout_seconds: for the broker's answer to a broadcast.
///     subscribe_timeout_seconds: how long `subscribe_topic` waits for the broker.
///     max_message_bytes: a larger payload is refused with ValueError.
///     max_queued_messages, max_queued_bytes: how much may wait for a session whose handler does not
///         return; past that its oldest messages are dropped and counted.
///     on_drop: called on the event loop with a session id, a count of messages, and a reason.
///     on_state_change: called on the event loop that called `start()` with the old state, the new one
///         and what is wrong, or None; for the states see `health()`.
///
/// Raises:
///     fanwire.errors.ConfigError: an option makes no sense. A URL that makes none is raised by
///         `start()`, `subscribe_topic()` and `broadcast()`.
#[pyclass(frozen, subclass, dict, weakref, module = "fanwire._core")]
pub struct RedisPubSub {
    inner: Slot<Broker>,
}

impl RedisPubSub {
    fn inner(&self) -> PyResult<&Broker> {
        self.inner.get().ok_or_else(|| not_initialized("RedisPubSub"))
    }
}

#[pymethods]
impl RedisPubSub {
    #[new]
    #[pyo3(
        signature = (*_args, **_kwargs),
        text_signature = "(url='redis://localhost:6379', channel_prefix='pyview:', *, \
            ordering='session', strict=False, connect_timeout_seconds=2.0, \
            publish_timeout_seconds=2.0, subscribe_timeout_seconds=2.0, max_message_bytes=1048576, \
            max_queued_messages=1024, max_queued_bytes=4194304, on_drop=None, \
            on_state_change=None)"
    )]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { inner: Slot::new() }
    }

    #[allow(clippy::too_many_arguments)] // keyword arguments of Python
    #[pyo3(signature = (
        url="redis://localhost:6379", channel_prefix="pyview:", *, ordering="session", strict=false,
        connect_timeout_seconds=2.0, publish_timeout_seconds=2.0, subscribe_timeout_seconds=2.0,
        max_message_bytes=1_048_576, max_queued_messages=1024, max_queued_bytes=4_194_304, on_drop=None,
        on_state_change=None,
    ))]
    fn __init__(
        &self,
        py: Python<'_>,
        url: &str,
        channel_prefix: &str,
        ordering: &str,
        strict: bool,
        connect_timeout_seconds: f64,
        publish_timeout_seconds: f64,
        subscribe_timeout_seconds: f64,
        max_message_bytes: usize,
        max_queued_messages: usize,
        max_queued_bytes: usize,
        on_drop: Option<Py<PyAny>>,
        on_state_change: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let broker = BrokerOptions {
            url,
            channel_prefix,
            strict,
            connect_timeout_seconds,
            publish_timeout_seconds,
            subscribe_timeout_seconds,
            max_message_bytes,
            on_state_change,
            max_pending: None,
            history: None,
            outage: None,
            coalescer: Coalescer::default(),
        };
        let sessions = SessionOptions { ordering, max_queued_messages, max_queued_bytes, on_drop };
        let broker = broker.make(py, sessions)?;
        self.inner.fill(broker);
        Ok(())
    }

    /// The broker's URL, its secrets masked.
    #[getter]
    fn url(&self) -> PyResult<&str> {
        Ok(&self.inner()?.shown_url)
    }

    /// What a channel's name has before the topic.
    #[getter]
    fn channel_prefix(&self) -> PyResult<&str> {
        Ok(self.inner()?.prefix())
    }

    /// Whether the listener runs: subscribed, or trying to be.
    #[getter]
    fn running(&self) -> PyResult<bool> {
        Ok(self.inner()?.is_running())
    }

    /// Starts to listen. A second call does nothing.
    ///
    /// When it returns, everything wanted is subscribed, or the broker could not be reached: then the
    /// listener keeps trying (with `strict=True` that is raised instead).
    ///
    /// Raises:
    ///     fanwire.errors.ConfigError: the URL makes no sense.
    ///     fanwire.errors.BrokerError: wrong password, no permission, or not a broker.
    fn start(&self) -> PyResult<Operation> {
        Ok(self.inner()?.start("RedisPubSub.start", Uploads::Nobody))
    }

    /// Stops listening, lets out what waits to be published, and closes the broker connections.
    /// Subscriptions stay, for the next `start()`.
    ///
    /// Args:
    ///     drain_seconds: how long what waits may take, whatever the broker does; the rest fails.
    #[pyo3(signature = (drain_seconds=1.0))]
    fn stop(&self, py: Python<'_>, drain_seconds: f64) -> PyResult<Operation> {
        self.inner()?.stop(py, "RedisPubSub.stop", drain_seconds)
    }

    /// Subscribes a session to a topic. Of two handlers for the same pair the later one wins.
    ///
    /// When it returns, the broker has confirmed the subscription: what is broadcast from then on
    /// arrives. Where the broker cannot be reached it returns after `subscribe_timeout_seconds`, and
    /// the topic is subscribed as soon as the broker is back.
    ///
    /// Args:
    ///     session_id, topic: any str.
    ///     handler: `async def handler(topic, message)`; it runs on this event loop, in a copy of this
    ///         context, with a message of its own.
    ///
    /// Raises:
    ///     TypeError: the handler is not callable.
    ///     fanwire.errors.BrokerError: the broker does not permit the subscription.
    fn subscribe_topic(
        &self,
        py: Python<'_>,
        session_id: PyBackedStr,
        topic: &Bound<'_, PyString>,
        handler: Py<PyAny>,
    ) -> PyResult<Operation> {
        self.inner()?.subscribe_topic(py, session_id, topic, handler)
    }

    /// Ends a session's subscription to a topic: its handler is not called again. One that there is
    /// not is no error.
    ///
    /// Args:
    ///     session_id, topic: any str.
    fn unsubscribe_topic(
        &self,
        session_id: PyBackedStr,
        topic: PyBackedStr,
    ) -> PyResult<Operation> {
        Ok(topics::unsubscribe(&self.inner()?.sessions, session_id, topic))
    }

    /// Ends all subscriptions of a session: none of its handlers is called again.
    ///
    /// Args:
    ///     session_id: any str.
    fn unsubscribe_all(&self, session_id: PyBackedStr) -> PyResult<Operation> {
        Ok(topics::unsubscribe_all(&self.inner()?.sessions, session_id))
    }

    /// Broadcasts to every session that listens to a topic, on any instance, this one included.
    ///
    /// Args:
    ///     topic: any str.
    ///     message: dict, list, str, int, float, bool or None, with dataclasses, pydantic models,
    ///         datetime, UUID, Enum, Decimal and the like inside.
    ///     except_session_id: a session that is not to get it.
    ///
    /// Raises:
    ///     TypeError, ValueError: the message cannot be encoded, or is larger than
    ///         `max_message_bytes`; the text says where in it.
    ///     fanwire.errors.PublishError: the broker did not take it; only with `strict=True`.
    #[pyo3(signature = (topic, message, *, except_session_id=None))]
    fn broadcast(
        &self,
        topic: &str,
        message: &Bound<'_, PyAny>,
        except_session_id: Option<&str>,
    ) -> PyResult<Operation> {
        self.inner()?.broadcast(topic, message, except_session_id)
    }

    /// How the listener is: `state` ("connecting", "live", "degraded": it was live and is trying to be
    /// again, or "stopped"), `in_state_seconds`, `last_heard_seconds` (since the broker's last sign of life,
    /// or None), `error` (the last trouble, or None), `url`, `reconnects`, `publish_outages`,
    /// `wanted_topics` and `confirmed_topics`.
    ///
    /// Raises:
    ///     fanwire.errors.ConfigError: the URL makes no sense.
    fn health<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.inner()?.health(py)
    }

    /// Counters and gauges by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = PyDict::new(py);
        let inner = self.inner()?;
        inner.add_stats(&stats)?;
        inner.sessions.add_stats(&stats)?;
        Ok(stats)
    }

    fn __repr__(&self) -> PyResult<String> {
        Ok(format!("RedisPubSub({:?})", self.inner()?.shown_url))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.inner.get().map_or(Ok(()), |broker| broker.traverse(&visit))
    }

    fn __clear__(&self) {
        if let Some(broker) = self.inner.get() {
            broker.sessions.clear();
        }
    }
}

struct Memory {
    sessions: Arc<SessionsState>,
    /// The largest message in bytes of JSON; None where the object itself is handed over.
    max_json_bytes: Option<usize>,
}

/// A pub/sub backend inside this process, for one instance and for tests. Each object is on its own.
///
/// Args:
///     json: False: handlers get the very object that was broadcast, all of them the same. True: they
///         get what a broker would make of it, to find early what does not travel.
///     ordering, max_message_bytes, max_queued_messages, max_queued_bytes, on_drop: as for
///         `RedisPubSub`; without `json` nothing is measured in bytes.
///
/// Raises:
///     fanwire.errors.ConfigError: an option makes no sense.
#[pyclass(frozen, subclass, dict, weakref, module = "fanwire._core")]
pub struct MemoryPubSub {
    inner: Slot<Memory>,
}

impl MemoryPubSub {
    fn inner(&self) -> PyResult<&Memory> {
        self.inner.get().ok_or_else(|| not_initialized("MemoryPubSub"))
    }
}

#[pymethods]
impl MemoryPubSub {
    #[new]
    #[pyo3(
        signature = (*_args, **_kwargs),
        text_signature = "(*, json=False, ordering='session', max_message_bytes=1048576, \
            max_queued_messages=1024, max_queued_bytes=4194304, on_drop=None)"
    )]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { inner: Slot::new() }
    }

    #[allow(clippy::too_many_arguments)] // keyword arguments of Python
    #[pyo3(signature = (
        *, json=false, ordering="session", max_message_bytes=1_048_576, max_queued_messages=1024,
        max_queued_bytes=4_194_304, on_drop=None,
    ))]
    fn __init__(
        &self,
        py: Python<'_>,
        json: bool,
        ordering: &str,
        max_message_bytes: usize,
        max_queued_messages: usize,
        max_queued_bytes: usize,
        on_drop: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let most = super::options::at_least_one(py, "max_message_bytes", max_message_bytes)?;
        let sessions = SessionOptions { ordering, max_queued_messages, max_queued_bytes, on_drop };
        let sessions = sessions.make(py, None)?;
        self.inner.fill(Memory { sessions, max_json_bytes: json.then_some(most) });
        Ok(())
    }

    /// Does nothing: there is nobody to connect to.
    fn start(&self) -> PyResult<Operation> {
        self.inner()?;
        Ok(Operation::new("MemoryPubSub.start", |_| Ok(Step::Done)))
    }

    /// Does nothing: what is broadcast is with its sessions already. Subscriptions stay.
    ///
    /// Args:
    ///     drain_seconds: as for `RedisPubSub.stop`.
    #[pyo3(signature = (drain_seconds=1.0))]
    fn stop(&self, py: Python<'_>, drain_seconds: f64) -> PyResult<Operation> {
        super::options::seconds_or_none(py, "drain_seconds", drain_seconds)?;
        self.inner()?;
        Ok(Operation::new("MemoryPubSub.stop", |_| Ok(Step::Done)))
    }

    /// Subscribes a session to a topic. Of two handlers for the same pair the later one wins.
    ///
    /// Args:
    ///     session_id, topic: any str.
    ///     handler: `async def handler(topic, message)`; it runs on this event loop, in a copy of this
    ///         context.
    ///
    /// Raises:
    ///     TypeError: the handler is not callable.
    fn subscribe_topic(
        &self,
        py: Python<'_>,
        session_id: PyBackedStr,
        topic: &Bound<'_, PyString>,
        handler: Py<PyAny>,
    ) -> PyResult<Operation> {
        topics::subscribe(py, &self.inner()?.sessions, None, session_id, topic, handler)
    }

    /// Ends a session's subscription to a topic: its handler is not called again. One that there is
    /// not is no error.
    ///
    /// Args:
    ///     session_id, topic: any str.
    fn unsubscribe_topic(
        &self,
        session_id: PyBackedStr,
        topic: PyBackedStr,
    ) -> PyResult<Operation> {
        Ok(topics::unsubscribe(&self.inner()?.sessions, session_id, topic))
    }

    /// Ends all subscriptions of a session: none of its handlers is called again.
    ///
    /// Args:
    ///     session_id: any str.
    fn unsubscribe_all(&self, session_id: PyBackedStr) -> PyResult<Operation> {
        Ok(topics::unsubscribe_all(&self.inner()?.sessions, session_id))
    }

    /// Broadcasts to every session that listens to a topic.
    ///
    /// Args:
    ///     topic: any str.
    ///     message: any object; with `json=True` as for `RedisPubSub.broadcast`.
    ///     except_session_id: a session that is not to get it.
    ///
    /// Raises:
    ///     TypeError, ValueError: with `json=True`, as `RedisPubSub.broadcast`.
    #[pyo3(signature = (topic, message, *, except_session_id=None))]
    fn broadcast(
        &self,
        topic: PyBackedStr,
        message: &Bound<'_, PyAny>,
        except_session_id: Option<PyBackedStr>,
    ) -> PyResult<Operation> {
        let Memory { sessions, max_json_bytes } = self.inner()?;
        topics::broadcast_here(sessions, *max_json_bytes, topic, message, except_session_id)
    }

    /// Counters and gauges by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = PyDict::new(py);
        self.inner()?.sessions.add_stats(&stats)?;
        Ok(stats)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let memory = self.inner.get();
        memory.map_or(Ok(()), |memory| SessionsState::traverse(&memory.sessions, &visit))
    }

    fn __clear__(&self) {
        if let Some(memory) = self.inner.get() {
            memory.sessions.clear();
        }
    }
}
