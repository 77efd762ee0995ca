//! `UploadProgressPublisher`: publishes through a broker, and forwards what others publish.

use std::sync::Arc;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::answer::Answer;
use super::at_exit;
use super::broker::{Broker, BrokerOptions, Takes, publish};
use super::connections::ManagerState;
use super::encode;
use super::logging;
use super::manager;
use super::operation::Operation;
use super::options::{self, Given};
use super::records;
use super::slot::Slot;
use super::topics::{self, SessionOptions};
use super::waiting;
use crate::channel;
use crate::client::Client;
use crate::journal::Level;
use crate::lane::LaneLimits;
use crate::message::Outgoing;
use crate::recording::Recorder;
use crate::router;
use crate::supervise::Uploads;

struct Inner {
    broker: Broker,
    manager: Option<Arc<ManagerState>>,
    /// None without a history.
    recorder: Option<Recorder>,
}

/// Publishes upload progress through a broker, and forwards what any instance publishes to the local
/// connections that watch.
///
/// Publishing needs no `start()`, works from any event loop, from several one after another, and
/// after a fork.
///
/// Args:
///     url: `redis://`, `rediss://`, `unix:///path`, `postgresql://`, or `memory://`. Default: the environment's
///         `FANWIRE_URL`, then `REDIS_URL`, then `memory://` with a warning in the log.
///     manager: whose connections are served. Default: that of `get_manager()`, looked up whenever a
///         message arrives.
///     strict: raise trouble with the broker, instead of logging it once per outage and counting it.
///     connect_timeout_seconds: for connecting, authenticating and subscribing together.
///     publish_timeout_seconds: for the broker's answer to a publish.
///     max_message_bytes: a larger payload is refused with ValueError.
///     max_pending_messages, max_pending_bytes: how much `publish_nowait` lets wait.
///     channel_prefix: what a channel's name has before a topic. Default: "pyview:", on PostgreSQL
///         "pyview_".
///     ordering, subscribe_timeout_seconds: for topics, as for `RedisPubSub`.
///     on_state_change: called on the event loop that called `start()`, as for `RedisPubSub`.
///     history: a `fanwire.History` has the broker keep what is published for uploads, and what it
///         keeps delivered; the same one for those who publish and those who listen.
///     outbox: a `fanwire.Outbox` says how much waits, for how long, while the broker cannot be
///         reached; with None, or with `strict`, a message that cannot be sent fails.
///     coalesce: what is progress, of what is published: True, False, or rules, as for
///         `ConnectionManager`.
///
/// Raises:
///     fanwire.errors.ConfigError: an option makes no sense. A URL that makes none is raised by
///         `start()` and by publishing.
#[pyclass(frozen, subclass, dict, weakref, module = "fanwire._core")]
pub struct UploadProgressPublisher {
    inner: Slot<Inner>,
}

impl UploadProgressPublisher {
    fn inner(&self) -> PyResult<&Inner> {
        let missing = || {
            PyRuntimeError::new_err(
                "UploadProgressPublisher.__init__() was not called by its subclass",
            )
        };
        self.inner.get().ok_or_else(missing)
    }

    fn outgoing(
        client: &Client,
        channel: Box<str>,
        message: &Bound<'_, PyAny>,
    ) -> PyResult<Outgoing> {
        let payload = encode::to_bytes(message)?;
        topics::within(payload.len(), client.limits().max_message_bytes)?;
        Ok(Outgoing::new(channel, payload.into()))
    }

    /// A message for an upload: recorded, if there is a history.
    fn of_upload(
        &self,
        client: &Client,
        upload_id: &str,
        message: &Bound<'_, PyAny>,
        key: Option<PyBackedStr>,
        version: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Outgoing> {
        let Some(recorder) = &self.inner()?.recorder else {
            if key.is_some() || version.is_some() {
                let text =
                    "idempotency_key and version need a publisher with history=fanwire.History()";
                return Err(PyValueError::new_err(text));
            }
            return Self::outgoing(client, channel::of_upload(upload_id), message);
        };
        let payload = encode::to_bytes(message)?;
        topics::within(payload.len(), client.limits().max_message_bytes)?;
        let outgoing = recorder.record(&client.coalescer, upload_id, &payload);
        let mut outgoing = outgoing.map_err(|unfit| records::unfit(unfit, message))?;
        if let Some(record) = &mut outgoing.record {
            record.key = key.map(|key| (&*key).into());
            record.version = version.map(records::version).transpose()?;
        }
        Ok(outgoing)
    }

    fn nowait(py: Python<'_>, client: &Arc<Client>, outgoing: Outgoing) -> bool {
        // Whoever only ever calls this has no event loop that would log an outage for it.
        logging::drain(py, &client.journal);
        at_exit::register_in_process(py);
        client.publish_nowait(outgoing).is_ok()
    }
}

#[pymethods]
impl UploadProgressPublisher {
    #[new]
    #[pyo3(
        signature = (*_args, **_kwargs),
        text_signature = "(url=None, *, manager=None, strict=False, connect_timeout_seconds=2.0, \
            publish_timeout_seconds=2.0, max_message_bytes=1048576, max_pending_messages=10000, \
            max_pending_bytes=16777216, channel_prefix=None, ordering='session', \
            subscribe_timeout_seconds=2.0, on_state_change=None, history=None, outbox=..., \
            coalesce=True)"
    )]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { inner: Slot::new() }
    }

    #[allow(clippy::too_many_arguments)] // keyword arguments of Python
    #[pyo3(signature = (
        url=None, *, manager=None, strict=false, connect_timeout_seconds=2.0, publish_timeout_seconds=2.0,
        max_message_bytes=1_048_576, max_pending_messages=10_000, max_pending_bytes=16_777_216,
        channel_prefix=None, ordering="session", subscribe_timeout_seconds=2.0,
        on_state_change=None, history=None, outbox=Given::Default, coalesce=None,
    ))]
    fn __init__(
        &self,
        py: Python<'_>,
        url: Option<&str>,
        manager: Option<&Bound<'_, PyAny>>,
        strict: bool,
        connect_timeout_seconds: f64,
        publish_timeout_seconds: f64,
        max_message_bytes: usize,
        max_pending_messages: usize,
        max_pending_bytes: usize,
        channel_prefix: Option<&str>,
        ordering: &str,
        subscribe_timeout_seconds: f64,
        on_state_change: Option<Py<PyAny>>,
        history: Option<&Bound<'_, PyAny>>,
        outbox: Given,
        coalesce: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let url = url.map_or_else(|| url_of_environment(py), str::to_owned);
        let recorder = options::history(py, history)?;
        let broker = BrokerOptions {
            url: &url,
            takes: Takes::Any,
            channel_prefix,
            strict,
            connect_timeout_seconds,
            publish_timeout_seconds,
            subscribe_timeout_seconds,
            max_message_bytes,
            on_state_change,
            max_pending: Some((max_pending_messages, max_pending_bytes)),
            history: recorder.as_ref().map(|recorder| recorder.settings),
            outage: options::outbox(py, &outbox, strict)?,
            coalescer: options::coalescer(py, coalesce)?,
        };
        let LaneLimits { messages, bytes } = LaneLimits::default();
        let sessions = SessionOptions {
            ordering,
            max_queued_messages: messages,
            max_queued_bytes: bytes,
            on_drop: None,
        };
        let inner = Inner {
            broker: broker.make(py, sessions)?,
            manager: manager.map(manager::state_of).transpose()?,
            recorder,
        };
        self.inner.fill(inner);
        Ok(())
    }

    /// The broker's URL, its secrets masked.
    #[getter]
    fn url(&self) -> PyResult<&str> {
        Ok(&self.inner()?.broker.shown_url)
    }

    /// Whether the listener runs: subscribed, or trying to be.
    #[getter]
    fn running(&self) -> PyResult<bool> {
        Ok(self.inner()?.broker.is_running())
    }

    /// Starts to listen. A second call does nothing.
    ///
    /// When it returns, the listener is subscribed, or the broker could not be reached: then the
    /// listener keeps trying (with `strict=True` that is raised instead).
    ///
    /// Raises:
    ///     fanwire.errors.ConfigError: the URL makes no sense.
    ///     fanwire.errors.BrokerError: wrong password, no permission, or not a broker.
    fn start(&self) -> PyResult<Operation> {
        let inner = self.inner()?;
        let router = inner.manager.as_ref().map(|manager| Arc::clone(&manager.router));
        let uploads = router.map_or(Uploads::Current, Uploads::Of);
        Ok(inner.broker.start("UploadProgressPublisher.start", uploads))
    }

    /// Stops listening, lets out what waits to be published, and closes the broker connections. A second
    /// call does nothing. The application's connections stay open: `ConnectionManager.disconnect_all`
    /// closes them.
    ///
    /// Args:
    ///     drain_seconds: how long what waits may take, whatever the broker does; the rest fails.
    #[pyo3(signature = (drain_seconds=1.0))]
    fn stop(&self, py: Python<'_>, drain_seconds: f64) -> PyResult<Operation> {
        self.inner()?.broker.stop(py, "UploadProgressPublisher.stop", drain_seconds)
    }

    /// Publishes to everybody who watches an upload, on any instance.
    ///
    /// Args:
    ///     upload_id: any str; the channel is `upload:{upload_id}`.
    ///     message: anything with `model_dump_json()`, or dict, list, str, int, float, bool or None
    ///         with dataclasses, `msgspec.Struct`, datetime, UUID, Enum, Decimal and the like inside;
    ///         or `bytes` that are JSON already. It is encoded at this call. With a history it must
    ///         be a JSON object without a member `_fanwire`.
    ///     receipt: return a `fanwire.Receipt` instead of None.
    ///     idempotency_key: of the messages of an upload with the same key only the first is published.
    ///     version: not published unless newer than the newest of the upload. Both need a history.
    ///
    /// Raises:
    ///     TypeError, ValueError: the message cannot be encoded, or is larger than
    ///         `max_message_bytes`; the text says where in it.
    ///     fanwire.errors.PublishError: the broker did not take it, or it was stale; only with
    ///         `strict=True`.
    #[pyo3(signature = (upload_id, message, *, receipt=false, idempotency_key=None, version=None))]
    fn publish_progress(
        &self,
        upload_id: PyBackedStr,
        message: &Bound<'_, PyAny>,
        receipt: bool,
        idempotency_key: Option<PyBackedStr>,
        version: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<Answer>> {
        let py = message.py();
        let client = self.inner()?.broker.client(py)?;
        let outgoing = self.of_upload(client, &upload_id, message, idempotency_key, version)?;
        publish(py, client, outgoing, receipt)
    }

    /// Publishes to every connection of a user, on any instance.
    ///
    /// Args:
    ///     user_id: any str; the channel is `user:{user_id}`.
    ///     message: as for `publish_progress`.
    ///
    /// Raises:
    ///     As `publish_progress`.
    fn publish_to_user(
        &self,
        user_id: PyBackedStr,
        message: &Bound<'_, PyAny>,
    ) -> PyResult<Py<Answer>> {
        let py = message.py();
        let client = self.inner()?.broker.client(py)?;
        let outgoing = Self::outgoing(client, channel::of_user(&user_id), message)?;
        publish(py, client, outgoing, false)
    }

    /// Queues a message for an upload without waiting; for hot loops and for code without an event loop.
    ///
    /// Args:
    ///     upload_id: any str.
    ///     message, idempotency_key, version: as for `publish_progress`.
    ///
    /// Returns:
    ///     False when too much waits already: then the message is not queued, and counted in
    ///     `stats()["publish_refused"]`.
    ///
    /// Raises:
    ///     TypeError, ValueError: as `publish_progress`.
    #[pyo3(signature = (upload_id, message, *, idempotency_key=None, version=None))]
    fn publish_nowait(
        &self,
        upload_id: PyBackedStr,
        message: &Bound<'_, PyAny>,
        idempotency_key: Option<PyBackedStr>,
        version: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let py = message.py();
        let client = self.inner()?.broker.client(py)?;
        let outgoing = self.of_upload(client, &upload_id, message, idempotency_key, version)?;
        Ok(Self::nowait(py, client, outgoing))
    }

    /// As `publish_nowait`, for a user.
    fn publish_to_user_nowait(
        &self,
        user_id: PyBackedStr,
        message: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let py = message.py();
        let client = self.inner()?.broker.client(py)?;
        let outgoing = Self::outgoing(client, channel::of_user(&user_id), message)?;
        Ok(Self::nowait(py, client, outgoing))
    }

    /// Waits until everything published so far has gone out or failed. It blocks its thread, but for
    /// signals.
    ///
    /// Args:
    ///     timeout_seconds: how long to wait; 0 only looks.
    ///
    /// Returns:
    ///     Whether the broker has taken it all: False when the time is up, as it is for what waits out
    ///     an outage, or when some failed meanwhile.
    ///
    /// Raises:
    ///     ValueError: `timeout_seconds` is negative, or no number.
    ///     RuntimeError: an event loop runs in this thread, which would stand still.
    #[pyo3(signature = (timeout_seconds=2.0))]
    fn flush(&self, py: Python<'_>, timeout_seconds: f64) -> PyResult<bool> {
        let limit = waiting::limit(timeout_seconds)?;
        waiting::refuse_in_loop(py, "await publish_progress() instead")?;
        let client = self.inner()?.broker.client(py)?;
        let Ok(mut flush) = client.flush(limit) else { return Ok(false) };
        let whole = waiting::wait(py, limit, |time| flush.wait(time))?;
        logging::drain(py, &client.journal);
        Ok(whole == Some(true))
    }

    /// Subscribes a session to a topic, as `RedisPubSub.subscribe_topic` does, over the connection that
    /// this publisher listens with.
    ///
    /// Args:
    ///     session_id, topic: any str.
    ///     handler: `async def handler(topic, message)`.
    ///
    /// Raises:
    ///     As `RedisPubSub.subscribe_topic`.
    fn subscribe_topic(
        &self,
        py: Python<'_>,
        session_id: PyBackedStr,
        topic: &Bound<'_, PyString>,
        handler: Py<PyAny>,
    ) -> PyResult<Operation> {
        self.inner()?.broker.subscribe_topic(py, session_id, topic, handler)
    }

    /// Ends a session's subscription to a topic: its handler is not called again.
    ///
    /// Args:
    ///     session_id, topic: any str.
    fn unsubscribe_topic(
        &self,
        session_id: PyBackedStr,
        topic: PyBackedStr,
    ) -> PyResult<Operation> {
        Ok(topics::unsubscribe(&self.inner()?.broker.sessions, session_id, topic))
    }

    /// Ends all subscriptions of a session: none of its handlers is called again.
    ///
    /// Args:
    ///     session_id: any str.
    fn unsubscribe_all(&self, session_id: PyBackedStr) -> PyResult<Operation> {
        Ok(topics::unsubscribe_all(&self.inner()?.broker.sessions, session_id))
    }

    /// Broadcasts to every session that listens to a topic, on any instance, as
    /// `RedisPubSub.broadcast` does.
    ///
    /// Args:
    ///     topic: any str.
    ///     message: what JSON can hold, as for `RedisPubSub.broadcast`.
    ///     except_session_id: a session that is not to get it.
    ///
    /// Raises:
    ///     As `RedisPubSub.broadcast`.
    #[pyo3(signature = (topic, message, *, except_session_id=None))]
    fn broadcast(
        &self,
        topic: &str,
        message: &Bound<'_, PyAny>,
        except_session_id: Option<&str>,
    ) -> PyResult<Operation> {
        self.inner()?.broker.broadcast(topic, message, except_session_id)
    }

    /// How the listener is, as `RedisPubSub.health` says it.
    ///
    /// Raises:
    ///     fanwire.errors.ConfigError: the URL makes no sense.
    fn health<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.inner()?.broker.health(py)
    }

    /// Counters and gauges by name: of this publisher, of its manager's deliveries, and, under
    /// "topics", of its sessions.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let inner = self.inner()?;
        let stats = PyDict::new(py);
        inner.broker.add_stats(&stats)?;
        let current = || router::current()?.owner()?.downcast::<ManagerState>().ok();
        if let Some(manager) = inner.manager.clone().or_else(current) {
            manager::add_stats(&manager, &stats)?;
        }
        let topics = PyDict::new(py);
        inner.broker.sessions.add_stats(&topics)?;
        stats.set_item("topics", topics)?;
        Ok(stats)
    }

    fn __repr__(&self) -> PyResult<String> {
        Ok(format!("UploadProgressPublisher({:?})", self.inner()?.broker.shown_url))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.inner.get().map_or(Ok(()), |inner| inner.broker.traverse(&visit))
    }

    fn __clear__(&self) {
        if let Some(inner) = self.inner.get() {
            inner.broker.sessions.clear();
        }
    }
}

/// `FANWIRE_URL`, then `REDIS_URL`, then the broker inside this process, with a warning.
fn url_of_environment(py: Python<'_>) -> String {
    let set = |name| std::env::var(name).ok().filter(|url| !url.is_empty());
    set("FANWIRE_URL").or_else(|| set("REDIS_URL")).unwrap_or_else(|| {
        let text = "no broker URL was given and neither FANWIRE_URL nor REDIS_URL is set: using memory://, \
                    so other instances will not see what this one publishes";
        logging::log(py, Level::Warning, text);
        "memory://".to_owned()
    })
}
