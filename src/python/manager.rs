//! `ConnectionManager`: what Python sees of `connections.rs`.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBool, PyDict, PyInt, PySet, PyTuple};

use super::bridge;
use super::connections::{CLOSE_TIMEOUT, ManagerState, Options};
use super::encode;
use super::errors::Doing;
use super::operation::{Operation, Ready, Step};
use super::options;
use super::slot::Slot;
use super::views::MapView;
use crate::channel::Address;
use crate::history::{Epoch, LARGEST, Position};
use crate::lane::{LaneId, LaneLimits};
use crate::post::Reply;
use crate::recovering::Wish;
use crate::recovery::Want;
use crate::registry::Map;
use crate::router::{self, Policy, Router};
use crate::stats::{Histogram, quantile};

/// Close code and reason of the replaced code's `disconnect_all`.
const RELOADING: (u16, &str) = (1012, "Server reloading");

/// Who is connected to this process, and who watches which upload. The maps live in Rust.
///
/// Args:
///     max_queued_messages, max_queued_bytes: how much may wait for one slow connection, that is, one
///         whose send is suspended. Where only the event loop is behind, nobody is to blame: the
///         listener reads more slowly.
///     coalesce: whether a progress message takes the place of an older one of the same upload that
///         still waits, as long as nothing else of that upload was queued after it. True for the
///         actions upload_progress, batch_progress and file_progress; False; or `CoalesceRule`s.
///     overflow: what happens when too much waits for a slow connection: "disconnect" it,
///         "drop-oldest" message, or "coalesce": drop the oldest progress, and disconnect it where
///         none waits.
///     send_timeout_seconds: a connection whose send takes longer is disconnected.
///     time_slice_seconds: how long deliveries may hold the event loop in one turn.
///     on_drop: called on the event loop with a connection, a count of messages, and a reason.
///     on_disconnect: called on the event loop with a connection that was given up, and a reason.
///
/// Raises:
///     fanwire.errors.ConfigError: an option makes no sense.
#[pyclass(frozen, subclass, dict, weakref, module = "fanwire._core")]
pub struct ConnectionManager {
    state: Slot<Arc<ManagerState>>,
}

impl ConnectionManager {
    pub fn state(&self) -> PyResult<&Arc<ManagerState>> {
        let missing = || {
            PyRuntimeError::new_err("ConnectionManager.__init__() was not called by its subclass")
        };
        self.state.get().ok_or_else(missing)
    }

    fn send(
        &self,
        name: &'static str,
        id: PyBackedStr,
        to_user: bool,
        message: &Bound<'_, PyAny>,
    ) -> PyResult<Operation> {
        let state = Arc::clone(self.state()?);
        let text = encode::to_text(message)?;
        Ok(Operation::new(name, move |py| {
            let bridge = bridge::running(py)?;
            let (future, token) = bridge.wait(py, Doing::Tolerating)?;
            let address =
                if to_user { Address::User(id.as_bytes()) } else { Address::Upload(id.as_bytes()) };
            state.router.send(address, &text, Reply::on_drop(Arc::clone(&bridge.mailbox), token));
            Ok(Step::Wait(future))
        }))
    }
}

/// What a client has already, as Python gives it.
fn want_of(since: &Bound<'_, PyAny>) -> PyResult<Want> {
    let pair = || {
        let what = since.repr().map_or_else(|_| "an object".to_owned(), |repr| repr.to_string());
        let text = format!("since must be a pair of epoch (str) and offset (int), not {what}");
        PyTypeError::new_err(text)
    };
    let (epoch, offset): (PyBackedStr, Bound<'_, PyAny>) = since.extract().map_err(|_| pair())?;
    if !offset.is_instance_of::<PyInt>() || offset.is_instance_of::<PyBool>() {
        return Err(pair());
    }
    let number: Option<u64> = offset.extract().ok().filter(|offset| *offset <= LARGEST);
    let Some(offset) = number else {
        let text = format!("since: the offset must be from 0 to 2**53 - 1, not {offset}");
        return Err(PyValueError::new_err(text));
    };
    Ok(match Epoch::parse(epoch.as_bytes()) {
        Some(epoch) => Want { since: Some(Position { epoch, offset }), resync: false },
        // No broker has given that: what the client has is of no use.
        None => Want { since: None, resync: true },
    })
}

#[pymethods]
impl ConnectionManager {
    #[new]
    #[pyo3(
        signature = (*_args, **_kwargs),
        text_signature = "(*, max_queued_messages=1024, max_queued_bytes=4194304, coalesce=True, \
            overflow='disconnect', send_timeout_seconds=10.0, time_slice_seconds=0.001, \
            on_drop=None, on_disconnect=None)"
    )]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { state: Slot::new() }
    }

    #[allow(clippy::too_many_arguments)] // keyword arguments of Python
    #[pyo3(signature = (
        *, max_queued_messages=1024, max_queued_bytes=4_194_304, coalesce=None, overflow="disconnect",
        send_timeout_seconds=10.0, time_slice_seconds=0.001, on_drop=None, on_disconnect=None,
    ))]
    fn __init__(
        &self,
        py: Python<'_>,
        max_queued_messages: usize,
        max_queued_bytes: usize,
        coalesce: Option<&Bound<'_, PyAny>>,
        overflow: &str,
        send_timeout_seconds: f64,
        time_slice_seconds: f64,
        on_drop: Option<Py<PyAny>>,
        on_disconnect: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let limits = LaneLimits {
            messages: options::at_least_one(py, "max_queued_messages", max_queued_messages)?,
            bytes: options::at_least_one(py, "max_queued_bytes", max_queued_bytes)?,
        };
        let overflow = options::overflow(py, overflow)?;
        let policy = Policy { limits, overflow, coalescer: options::coalescer(py, coalesce)? };
        let options = Options {
            send_timeout: options::seconds(py, "send_timeout_seconds", send_timeout_seconds)?,
            time_slice: options::seconds(py, "time_slice_seconds", time_slice_seconds)?,
            on_drop: options::callback(py, "on_drop", on_drop)?,
            on_disconnect: options::callback(py, "on_disconnect", on_disconnect)?,
        };
        let state = ManagerState::new(py, policy, options)?;
        self.state.fill(state);
        Ok(())
    }

    /// User id to the set of that user's connections here.
    #[getter]
    fn user_connections(&self) -> PyResult<MapView> {
        Ok(MapView::new(Arc::clone(self.state()?), Map::UserConnections))
    }

    /// Upload id to the set of ids of the users who watch it here.
    #[getter]
    fn upload_subscribers(&self) -> PyResult<MapView> {
        Ok(MapView::new(Arc::clone(self.state()?), Map::UploadSubscribers))
    }

    /// User id to the set of ids of the uploads the user watches.
    #[getter]
    fn user_subscriptions(&self) -> PyResult<MapView> {
        Ok(MapView::new(Arc::clone(self.state()?), Map::UserSubscriptions))
    }

    /// Registers a connection of a user at once. The same connection counts once.
    ///
    /// Args:
    ///     user_id: any str.
    ///     websocket: hashable, with async `send_text(str)` and `close(code, reason)`. It is served on
    ///         the event loop that runs this.
    ///
    /// Raises:
    ///     TypeError: the id is not a str, or the connection is not hashable.
    fn connect(&self, user_id: &str, websocket: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let py = websocket.py();
        let state = self.state()?;
        let id = state.connect(user_id, websocket)?;
        // Where a loop runs it is the one that awaits this; where none does, that is seen then.
        if let Ok(bridge) = bridge::running(py) {
            state.router.bind(id, &bridge.mailbox);
            return Ok(Ready::get(py)?.into_any());
        }
        let state = Arc::clone(state);
        let binding = Operation::new("ConnectionManager.connect", move |py| {
            state.router.bind(id, &bridge::running(py)?.mailbox);
            Ok(Step::Done)
        });
        Ok(Py::new(py, binding)?.into_any())
    }

    /// Takes a connection out at once, and with the user's last one all subscriptions of the user. One that is
    /// not registered is no error.
    ///
    /// Args:
    ///     user_id: the id it was registered with.
    ///     websocket: the connection. It is not closed.
    fn disconnect(&self, user_id: &str, websocket: &Bound<'_, PyAny>) -> PyResult<Py<Ready>> {
        let py = websocket.py();
        self.state()?.disconnect(user_id, websocket)?;
        Ready::get(py)
    }

    /// Makes a user watch an upload from now on: what is published for it reaches the user's connections here.
    ///
    /// Args:
    ///     user_id: any str; the user need not be connected yet.
    ///     upload_id: any str.
    ///     connection: which of the user's connections is to get the upload's current state first, or
    ///         what follows `since`. Default: those that have nothing of this upload yet. One that is
    ///         not registered gets nothing. It counts where the listener keeps a history.
    ///     since: epoch and offset of the last message of this upload that the client has.
    ///
    /// Raises:
    ///     TypeError, ValueError: `since` is no pair of a str and an int from 0 to 2**53 - 1.
    #[pyo3(signature = (user_id, upload_id, *, connection=None, since=None))]
    fn subscribe_upload(
        &self,
        py: Python<'_>,
        user_id: &str,
        upload_id: &str,
        connection: Option<&Bound<'_, PyAny>>,
        since: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<Ready>> {
        let state = self.state()?;
        if connection.is_none() && since.is_none() {
            state.router.subscribe(user_id, upload_id);
            return Ready::get(py);
        }
        let want = since.map(want_of).transpose()?.unwrap_or_default();
        let known = connection.map(|connection| state.lane_of(connection)).transpose()?;
        // A connection that is gone is nobody's: it must not pass for "all that have nothing".
        let nobody = LaneId { index: u32::MAX, generation: u32::MAX };
        let connection = known.map(|known| known.unwrap_or(nobody));
        state.router.subscribe_with(user_id, upload_id, Wish { connection, want });
        Ready::get(py)
    }

    /// Makes a user stop watching an upload at once. One that is not watched is no error.
    ///
    /// Args:
    ///     user_id: any str.
    ///     upload_id: any str.
    fn unsubscribe_upload(
        &self,
        py: Python<'_>,
        user_id: &str,
        upload_id: &str,
    ) -> PyResult<Py<Ready>> {
        self.state()?.router.unsubscribe(user_id, upload_id);
        Ready::get(py)
    }

    /// Sends to every connection that a user has in this process, side by side. Done when each send
    /// has finished or failed; a connection whose send fails is disconnected.
    ///
    /// Args:
    ///     user_id: any str.
    ///     message: as for `UploadProgressPublisher.publish_progress`; it is encoded at this call.
    ///
    /// Raises:
    ///     TypeError, ValueError: the message cannot be encoded; the text says where in it.
    fn send_to_user(
        &self,
        user_id: PyBackedStr,
        message: &Bound<'_, PyAny>,
    ) -> PyResult<Operation> {
        self.send("ConnectionManager.send_to_user", user_id, true, message)
    }

    /// Sends to every connection of every user who watches an upload in this process, as
    /// `send_to_user` does.
    ///
    /// Args:
    ///     upload_id: any str.
    ///     message: as for `UploadProgressPublisher.publish_progress`.
    ///
    /// Raises:
    ///     TypeError, ValueError: the message cannot be encoded; the text says where in it.
    fn send_to_upload_subscribers(
        &self,
        upload_id: PyBackedStr,
        message: &Bound<'_, PyAny>,
    ) -> PyResult<Operation> {
        self.send("ConnectionManager.send_to_upload_subscribers", upload_id, false, message)
    }

    /// The ids of the users who watch an upload here: a copy.
    fn get_upload_subscriber_ids<'py>(
        &self,
        py: Python<'py>,
        upload_id: PyBackedStr,
    ) -> PyResult<Bound<'py, PySet>> {
        let copy = |ids: Vec<&str>| ids.into_iter().map(String::from).collect::<Vec<_>>();
        let ids = self.state()?.router.inspect(|registry| registry.watchers(&upload_id).map(copy));
        PySet::new(py, ids.unwrap_or_default())
    }

    /// Closes every connection with code 1012, "Server reloading", side by side, and clears all maps.
    /// Errors while closing are ignored; a connection that does not close within 5 s is left alone.
    fn disconnect_all(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let close_all = py.import("fanwire._closing")?.getattr("close_all")?;
        let connections = TakeAll { state: Arc::clone(slf.get().state()?) };
        let closing = close_all.call1((connections, RELOADING.0, RELOADING.1, CLOSE_TIMEOUT))?;
        closing.setattr("__qualname__", "ConnectionManager.disconnect_all")?;
        Ok(closing.unbind())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.state.get().map_or(Ok(()), |state| ManagerState::traverse(state, &visit))
    }

    fn __clear__(&self, py: Python<'_>) {
        if let Some(state) = self.state.get() {
            drop(state.take_all(py));
        }
    }

    /// Counters and gauges of deliveries to local connections, by name.
    pub fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = PyDict::new(py);
        add_stats(self.state()?, &stats)?;
        Ok(stats)
    }
}

/// Adds a manager's figures to a dict.
pub fn add_stats(state: &ManagerState, into: &Bound<'_, PyDict>) -> PyResult<()> {
    let Router { stats, spread, .. } = &*state.router;
    for (name, value) in stats.snapshot() {
        into.set_item(name, value)?;
    }
    let given_up = [&stats.send_failed, &stats.overflowed, &stats.timed_out];
    into.set_item("disconnected", given_up.iter().map(|counter| counter.get()).sum::<u64>())?;
    let gauges = state.router.gauges();
    into.set_item("lanes", gauges.lanes)?;
    into.set_item("queued_messages", gauges.queued_messages)?;
    into.set_item("queued_bytes", gauges.queued_bytes)?;
    into.set_item("batch_size", histogram(into.py(), &spread.batch_size, 1.0)?)?;
    into.set_item("delivery_latency_seconds", histogram(into.py(), &spread.latency, 1e-9)?)
}

/// `count`, `p50`, `p99` and `buckets`: what the values are below, and how many they are.
pub fn histogram<'py>(
    py: Python<'py>,
    histogram: &Histogram,
    unit: f64,
) -> PyResult<Bound<'py, PyDict>> {
    let snapshot = histogram.snapshot();
    let dict = PyDict::new(py);
    dict.set_item("count", snapshot.iter().map(|(_, count)| count).sum::<u64>())?;
    dict.set_item("p50", quantile(&snapshot, 0.5) as f64 * unit)?;
    dict.set_item("p99", quantile(&snapshot, 0.99) as f64 * unit)?;
    let buckets = PyDict::new(py);
    for (below, count) in snapshot {
        buckets.set_item(below as f64 * unit, count)?;
    }
    dict.set_item("buckets", buckets)?;
    Ok(dict)
}

/// An iterable that empties the manager when it is iterated, which is when the coroutine runs.
#[pyclass(frozen, module = "fanwire._core", name = "_TakeAll")]
struct TakeAll {
    state: Arc<ManagerState>,
}

#[pymethods]
impl TakeAll {
    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let connections = self.state.take_all(py);
        Ok(pyo3::types::PyList::new(py, connections)?.try_iter()?.into_any())
    }
}

static CURRENT: Mutex<Option<Py<ConnectionManager>>> = Mutex::new(None);

/// Makes the process-wide manager and returns it. One made before is replaced, not closed.
///
/// Args:
///     options: as for `ConnectionManager`.
#[pyfunction]
#[pyo3(signature = (**options))]
pub fn init_manager(
    py: Python<'_>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Py<ConnectionManager>> {
    let manager = py.get_type::<ConnectionManager>().call((), options)?;
    let manager = manager.cast_into::<ConnectionManager>()?;
    router::set_current(Arc::clone(&manager.get().state()?.router));
    let old = CURRENT.lock().replace(manager.clone().unbind());
    drop(old); // without the lock: the end of its connections may run Python
    Ok(manager.unbind())
}

/// The process-wide manager.
///
/// Raises:
///     RuntimeError: `init_manager()` has not been called.
#[pyfunction]
pub fn get_manager(py: Python<'_>) -> PyResult<Py<ConnectionManager>> {
    let current = CURRENT.lock().as_ref().map(|manager| manager.clone_ref(py));
    current.ok_or_else(|| {
        PyRuntimeError::new_err("ConnectionManager not initialized. Call init_manager()")
    })
}

/// The state of a manager given by a user, with a clear error for anything else.
pub fn state_of(manager: &Bound<'_, PyAny>) -> PyResult<Arc<ManagerState>> {
    let Ok(manager) = manager.cast::<ConnectionManager>() else {
        let kind = manager.get_type().name()?;
        return Err(PyTypeError::new_err(format!(
            "manager must be a fanwire.ConnectionManager, not {kind}"
        )));
    };
    manager.get().state().cloned()
}
