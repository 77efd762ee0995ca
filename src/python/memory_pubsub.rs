//! `MemoryPubSub`: topics and sessions of this process alone.

use std::sync::Arc;

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::operation::{Operation, Step};
use super::pubsub::not_initialized;
use super::sessions::SessionsState;
use super::slot::Slot;
use super::topics::{self, SessionOptions};

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
