//! `UploadProgressPublisher`: publishes through a broker, and forwards what others publish.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use super::answer::Answer;
use super::bridge;
use super::connections::ManagerState;
use super::encode;
use super::errors::{self, Doing};
use super::logging;
use super::manager;
use super::operation::{Operation, Step};
use super::options;
use crate::channel;
use crate::client::Client;
use crate::config::{BrokerUrl, Limits, mask};
use crate::error::Error;
use crate::journal::Level;
use crate::message::Outgoing;
use crate::post::Reply;
use crate::router;

struct Inner {
    /// An URL that makes no sense is an error of `start` and of every publish, not of the constructor:
    /// an application builds its publisher at import, and starts it where errors are handled.
    client: Result<Arc<Client>, Error>,
    shown_url: String,
    manager: Option<Arc<ManagerState>>,
}

/// Publishes upload progress through a broker, and forwards what any instance publishes to the local
/// connections that watch.
///
/// Publishing needs no `start()`, works from any event loop, from several one after another, and
/// after a fork.
///
/// Args:
///     url: `redis://`, `rediss://`, `unix:///path`, or `memory://`. Default: the environment's
///         `FANWIRE_URL`, then `REDIS_URL`, then `memory://` with a warning in the log.
///     manager: whose connections are served. Default: that of `get_manager()`, looked up whenever a
///         message arrives.
///     strict: raise trouble with the broker, instead of logging it once per outage and counting it.
///     connect_timeout_seconds: for connecting, authenticating and subscribing together.
///     publish_timeout_seconds: for the broker's answer to a publish.
///     max_message_bytes: a larger payload is refused with ValueError.
///     max_pending_messages, max_pending_bytes: how much `publish_nowait` lets wait.
///
/// Raises:
///     fanwire.errors.ConfigError: an option makes no sense. A URL that makes none is raised by
///         `start()` and by publishing.
#[pyclass(frozen, subclass, dict, weakref, module = "fanwire._core")]
pub struct UploadProgressPublisher {
    inner: PyOnceLock<Inner>,
}

impl UploadProgressPublisher {
    fn inner(&self, py: Python<'_>) -> PyResult<&Inner> {
        let missing = || {
            PyRuntimeError::new_err(
                "UploadProgressPublisher.__init__() was not called by its subclass",
            )
        };
        self.inner.get(py).ok_or_else(missing)
    }

    fn client(&self, py: Python<'_>) -> PyResult<Arc<Client>> {
        match &self.inner(py)?.client {
            Ok(client) => Ok(Arc::clone(client)),
            Err(error) => Err(raise(py, error)),
        }
    }

    fn outgoing(
        client: &Client,
        channel: Box<str>,
        message: &Bound<'_, PyAny>,
    ) -> PyResult<Outgoing> {
        let payload = encode::to_bytes(message)?;
        let most = client.limits().max_message_bytes;
        if payload.len() > most {
            let text =
                format!("the message has {} bytes, and max_message_bytes is {most}", payload.len());
            return Err(PyValueError::new_err(text));
        }
        Ok(Outgoing { channel, payload: payload.into() })
    }

    fn publish(&self, channel: Box<str>, message: &Bound<'_, PyAny>) -> PyResult<Py<Answer>> {
        let py = message.py();
        let client = self.client(py)?;
        let outgoing = Self::outgoing(&client, channel, message)?;
        let doing = if client.is_strict() { Doing::Publishing } else { Doing::Tolerating };
        let bridge = bridge::running(py)?;
        let (answer, token) = bridge.wait(py, doing)?;
        let reply = Reply::new(Arc::clone(&bridge.mailbox), token);
        if let Some(outbox) = client.publish(outgoing, reply) {
            bridge.flush_soon(py, outbox)?;
        }
        Ok(answer)
    }

    fn nowait(&self, channel: Box<str>, message: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = message.py();
        let client = self.client(py)?;
        let outgoing = Self::outgoing(&client, channel, message)?;
        // Whoever only ever calls this has no event loop that would log an outage for it.
        logging::drain(py, &client.journal);
        Ok(client.publish_nowait(outgoing).is_ok())
    }
}

#[pymethods]
impl UploadProgressPublisher {
    #[new]
    #[pyo3(
        signature = (*_args, **_kwargs),
        text_signature = "(url=None, *, manager=None, strict=False, connect_timeout_seconds=2.0, \
            publish_timeout_seconds=2.0, max_message_bytes=1048576, max_pending_messages=10000, \
            max_pending_bytes=16777216)"
    )]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { inner: PyOnceLock::new() }
    }

    #[allow(clippy::too_many_arguments)] // keyword arguments of Python
    #[pyo3(signature = (
        url=None, *, manager=None, strict=false, connect_timeout_seconds=2.0, publish_timeout_seconds=2.0,
        max_message_bytes=1_048_576, max_pending_messages=10_000, max_pending_bytes=16_777_216,
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
    ) -> PyResult<()> {
        let url = url.map_or_else(|| url_of_environment(py), str::to_owned);
        let limits = Limits {
            connect_timeout: options::seconds(
                py,
                "connect_timeout_seconds",
                connect_timeout_seconds,
            )?,
            publish_timeout: options::seconds(
                py,
                "publish_timeout_seconds",
                publish_timeout_seconds,
            )?,
            max_message_bytes: options::at_least_one(py, "max_message_bytes", max_message_bytes)?,
            max_pending_messages: options::at_least_one(
                py,
                "max_pending_messages",
                max_pending_messages,
            )?,
            max_pending_bytes: options::at_least_one(py, "max_pending_bytes", max_pending_bytes)?,
        };
        let inner = Inner {
            client: BrokerUrl::parse(&url).map(|url| Arc::new(Client::new(url, limits, strict))),
            shown_url: mask(&url),
            manager: manager.map(manager::state_of).transpose()?,
        };
        self.inner.get_or_init(py, || inner);
        Ok(())
    }

    /// The broker's URL, its secrets masked.
    #[getter]
    fn url(&self, py: Python<'_>) -> PyResult<&str> {
        Ok(&self.inner(py)?.shown_url)
    }

    /// Whether the listener runs: subscribed, or trying to be.
    #[getter]
    fn running(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.inner(py)?.client.as_ref().is_ok_and(|client| client.is_running()))
    }

    /// Starts to listen. A second call does nothing.
    ///
    /// When it returns, the listener is subscribed, or the broker could not be reached: then the
    /// listener keeps trying (with `strict=True` that is raised instead).
    ///
    /// Raises:
    ///     fanwire.errors.ConfigError: the URL makes no sense.
    ///     fanwire.errors.BrokerError: wrong password, no permission, or not a broker.
    fn start(&self, py: Python<'_>) -> PyResult<Operation> {
        let inner = self.inner(py)?;
        let client = inner.client.clone();
        let router = inner.manager.as_ref().map(|manager| Arc::clone(&manager.router));
        Ok(Operation::new("UploadProgressPublisher.start", move |py| {
            let client = client.map_err(|error| raise(py, &error))?;
            let bridge = bridge::running(py)?;
            let (future, token) = bridge.wait(py, Doing::Starting)?;
            let reply = Reply::new(Arc::clone(&bridge.mailbox), token);
            client.start(router, Arc::clone(&bridge.mailbox), reply);
            Ok(Step::WaitWith(future, client))
        }))
    }

    /// Stops listening, lets out what waits to be published, and closes the broker connections; within
    /// 2 s, whatever the broker does. A second call does nothing. The application's connections stay
    /// open: `ConnectionManager.disconnect_all` closes them.
    fn stop(&self, py: Python<'_>) -> PyResult<Operation> {
        let client = self.inner(py)?.client.clone();
        Ok(Operation::new("UploadProgressPublisher.stop", move |py| {
            let Ok(client) = client else { return Ok(Step::Done) };
            logging::drain(py, &client.journal);
            let bridge = bridge::running(py)?;
            let (future, token) = bridge.wait(py, Doing::Tolerating)?;
            client.stop(Reply::new(Arc::clone(&bridge.mailbox), token));
            Ok(Step::Wait(future))
        }))
    }

    /// Publishes to everybody who watches an upload, on any instance.
    ///
    /// Args:
    ///     upload_id: any str; the channel is `upload:{upload_id}`.
    ///     message: anything with `model_dump_json()`, or dict, list, str, int, float, bool or None
    ///         with dataclasses, `msgspec.Struct`, datetime, UUID, Enum, Decimal and the like inside;
    ///         or `bytes` that are JSON already. It is encoded at this call.
    ///
    /// Raises:
    ///     TypeError, ValueError: the message cannot be encoded, or is larger than
    ///         `max_message_bytes`; the text says where in it.
    ///     fanwire.errors.PublishError: the broker did not take it; only with `strict=True`.
    fn publish_progress(
        &self,
        upload_id: PyBackedStr,
        message: &Bound<'_, PyAny>,
    ) -> PyResult<Py<Answer>> {
        self.publish(channel::of_upload(&upload_id), message)
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
        self.publish(channel::of_user(&user_id), message)
    }

    /// Queues a message for an upload without waiting; for hot loops and for code without an event loop.
    ///
    /// Args:
    ///     upload_id: any str.
    ///     message: as for `publish_progress`.
    ///
    /// Returns:
    ///     False when too much waits already: then the message is not queued, and counted in
    ///     `stats()["publish_refused"]`.
    ///
    /// Raises:
    ///     TypeError, ValueError: as `publish_progress`.
    fn publish_nowait(&self, upload_id: PyBackedStr, message: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.nowait(channel::of_upload(&upload_id), message)
    }

    /// As `publish_nowait`, for a user.
    fn publish_to_user_nowait(
        &self,
        user_id: PyBackedStr,
        message: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        self.nowait(channel::of_user(&user_id), message)
    }

    /// Counters and gauges by name: of this publisher, and of its manager's deliveries.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let inner = self.inner(py)?;
        let stats = PyDict::new(py);
        let client = inner.client.as_ref().map_err(|error| raise(py, error))?;
        logging::drain(py, &client.journal);
        for (name, value) in client.stats.snapshot() {
            stats.set_item(name, value)?;
        }
        stats.set_item("listening", client.is_listening())?;
        let (messages, bytes) = client.waiting();
        stats.set_item("pending_messages", messages)?;
        stats.set_item("pending_bytes", bytes)?;
        let current = || router::current()?.owner()?.downcast::<ManagerState>().ok();
        if let Some(manager) = inner.manager.clone().or_else(current) {
            manager::add_stats(&manager, &stats)?;
        }
        Ok(stats)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("UploadProgressPublisher({:?})", self.inner(py)?.shown_url))
    }
}

fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let raised = errors::to_python(py, error, Doing::Starting);
    raised.unwrap_or_else(|| PyRuntimeError::new_err(error.to_string()))
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

static CURRENT: Mutex<Option<Py<UploadProgressPublisher>>> = Mutex::new(None);

/// Makes the process-wide publisher and returns it. One made before is replaced, not stopped.
///
/// Args:
///     url: as for `UploadProgressPublisher`.
///     options: as for `UploadProgressPublisher`.
#[pyfunction]
#[pyo3(signature = (url=None, **options))]
pub fn init_publisher(
    py: Python<'_>,
    url: Option<Bound<'_, PyAny>>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Py<UploadProgressPublisher>> {
    let publisher = py.get_type::<UploadProgressPublisher>().call((url,), options)?;
    let publisher = publisher
        .cast_into::<UploadProgressPublisher>()
        .map_err(|error| PyTypeError::new_err(error.to_string()))?;
    let old = CURRENT.lock().replace(publisher.clone().unbind());
    drop(old); // without the lock
    Ok(publisher.unbind())
}

/// The process-wide publisher.
///
/// Raises:
///     RuntimeError: `init_publisher()` has not been called.
#[pyfunction]
pub fn get_publisher(py: Python<'_>) -> PyResult<Py<UploadProgressPublisher>> {
    let current = CURRENT.lock().as_ref().map(|publisher| publisher.clone_ref(py));
    current.ok_or_else(|| {
        PyRuntimeError::new_err("UploadProgressPublisher not initialized. Call init_publisher()")
    })
}
