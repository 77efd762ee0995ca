//! `RedisPubSub` and `PostgresPubSub`: what Python sees of `sessions.rs` over a broker.

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::broker::{Broker, BrokerOptions, Takes};
use super::operation::Operation;
use super::slot::Slot;
use super::topics::{self, SessionOptions};
use crate::coalesce::Coalescer;
use crate::supervise::Uploads;

pub fn not_initialized(class: &str) -> PyErr {
    PyRuntimeError::new_err(format!("{class}.__init__() was not called by its subclass"))
}

struct Inner {
    broker: Broker,
    /// `RedisPubSub`, or what else it is.
    class: &'static str,
    start: &'static str,
    stop: &'static str,
}

/// Of the class, and of two of its methods.
type Names = (&'static str, &'static str, &'static str);

/// What `RedisPubSub` and `PostgresPubSub` have in common. It is not made by itself.
#[pyclass(frozen, subclass, dict, weakref, module = "fanwire._core")]
pub struct BrokerPubSub {
    inner: Slot<Inner>,
}

impl BrokerPubSub {
    fn empty() -> Self {
        Self { inner: Slot::new() }
    }

    fn inner(&self) -> PyResult<&Inner> {
        self.inner.get().ok_or_else(|| not_initialized("BrokerPubSub"))
    }

    fn fill(&self, broker: Broker, (class, start, stop): Names) {
        self.inner.fill(Inner { broker, class, start, stop });
    }

    fn broker(&self) -> PyResult<&Broker> {
        Ok(&self.inner()?.broker)
    }
}

#[pymethods]
impl BrokerPubSub {
    /// The broker's URL, its secrets masked.
    #[getter]
    fn url(&self) -> PyResult<&str> {
        Ok(&self.broker()?.shown_url)
    }

    /// What a channel's name has before the topic.
    #[getter]
    fn channel_prefix(&self) -> PyResult<&str> {
        Ok(self.broker()?.prefix())
    }

    /// Whether the listener runs: subscribed, or trying to be.
    #[getter]
    fn running(&self) -> PyResult<bool> {
        Ok(self.broker()?.is_running())
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
        let inner = self.inner()?;
        Ok(inner.broker.start(inner.start, Uploads::Nobody))
    }

    /// Stops listening, lets out what waits to be published, and closes the broker connections.
    /// Subscriptions stay, for the next `start()`.
    ///
    /// Args:
    ///     drain_seconds: how long what waits may take, whatever the broker does; the rest fails.
    #[pyo3(signature = (drain_seconds=1.0))]
    fn stop(&self, py: Python<'_>, drain_seconds: f64) -> PyResult<Operation> {
        let inner = self.inner()?;
        inner.broker.stop(py, inner.stop, drain_seconds)
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
        self.broker()?.subscribe_topic(py, session_id, topic, handler)
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
        Ok(topics::unsubscribe(&self.broker()?.sessions, session_id, topic))
    }

    /// Ends all subscriptions of a session: none of its handlers is called again.
    ///
    /// Args:
    ///     session_id: any str.
    fn unsubscribe_all(&self, session_id: PyBackedStr) -> PyResult<Operation> {
        Ok(topics::unsubscribe_all(&self.broker()?.sessions, session_id))
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
        self.broker()?.broadcast(topic, message, except_session_id)
    }

    /// How the listener is: `state` ("connecting", "live", "degraded": it was live and is trying to be
    /// again, or "stopped"), `in_state_seconds`, `last_heard_seconds` (since the broker's last sign of life,
    /// or None), `error` (the last trouble, or None), `history_error` (why the history cannot be read; None if
    /// it can), `url`, `reconnects`, `publish_outages`, `wanted_topics` and `confirmed_topics`.
    ///
    /// Raises:
    ///     fanwire.errors.ConfigError: the URL makes no sense.
    fn health<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.broker()?.health(py)
    }

    /// Counters and gauges by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = PyDict::new(py);
        let broker = self.broker()?;
        broker.add_stats(&stats)?;
        broker.sessions.add_stats(&stats)?;
        Ok(stats)
    }

    fn __repr__(&self) -> PyResult<String> {
        let inner = self.inner()?;
        Ok(format!("{}({:?})", inner.class, inner.broker.shown_url))
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
#[pyclass(frozen, subclass, extends = BrokerPubSub, module = "fanwire._core")]
pub struct RedisPubSub;

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
    fn new(
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyClassInitializer<Self> {
        PyClassInitializer::from(BrokerPubSub::empty()).add_subclass(Self)
    }

    #[allow(clippy::too_many_arguments)] // keyword arguments of Python
    #[pyo3(signature = (
        url="redis://localhost:6379", channel_prefix="pyview:", *, ordering="session", strict=false,
        connect_timeout_seconds=2.0, publish_timeout_seconds=2.0, subscribe_timeout_seconds=2.0,
        max_message_bytes=1_048_576, max_queued_messages=1024, max_queued_bytes=4_194_304, on_drop=None,
        on_state_change=None,
    ))]
    fn __init__(
        slf: PyRef<'_, Self>,
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
            takes: Takes::Redis,
            channel_prefix: Some(channel_prefix),
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
        let broker = broker.make(slf.py(), sessions)?;
        let names = ("RedisPubSub", "RedisPubSub.start", "RedisPubSub.stop");
        slf.as_super().fill(broker, names);
        Ok(())
    }
}

/// A pub/sub backend over PostgreSQL, for PyView and for any code with topics and sessions.
///
/// A message is notified (`pg_notify`) on `{channel_prefix}{topic}` as its JSON, so instances that run the
/// Python code of PyView's guide and instances that run this understand each other. Longer messages and
/// topics than PostgreSQL takes are carried too, for those who run this.
///
/// Args:
///     dsn: `postgresql://[user[:password]@][host][:port][/database][?parameters]`; what it does not say is
///         taken from the environment, as libpq does. Or `memory://`.
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
#[pyclass(frozen, subclass, extends = BrokerPubSub, module = "fanwire._core")]
pub struct PostgresPubSub;

#[pymethods]
impl PostgresPubSub {
    #[new]
    #[pyo3(
        signature = (*_args, **_kwargs),
        text_signature = "(dsn, channel_prefix='pyview_', *, \
            ordering='session', strict=False, connect_timeout_seconds=2.0, \
            publish_timeout_seconds=2.0, subscribe_timeout_seconds=2.0, max_message_bytes=1048576, \
            max_queued_messages=1024, max_queued_bytes=4194304, on_drop=None, \
            on_state_change=None)"
    )]
    fn new(
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyClassInitializer<Self> {
        PyClassInitializer::from(BrokerPubSub::empty()).add_subclass(Self)
    }

    #[allow(clippy::too_many_arguments)] // keyword arguments of Python
    #[pyo3(signature = (
        dsn, channel_prefix="pyview_", *, ordering="session", strict=false,
        connect_timeout_seconds=2.0, publish_timeout_seconds=2.0, subscribe_timeout_seconds=2.0,
        max_message_bytes=1_048_576, max_queued_messages=1024, max_queued_bytes=4_194_304, on_drop=None,
        on_state_change=None,
    ))]
    fn __init__(
        slf: PyRef<'_, Self>,
        dsn: &str,
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
            url: dsn,
            takes: Takes::Postgres,
            channel_prefix: Some(channel_prefix),
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
        let broker = broker.make(slf.py(), sessions)?;
        let names = ("PostgresPubSub", "PostgresPubSub.start", "PostgresPubSub.stop");
        slf.as_super().fill(broker, names);
        Ok(())
    }
}
