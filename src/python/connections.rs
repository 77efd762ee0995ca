//! What a manager is, apart from its Python object: the router, and beside it the connections.
//!
//! The core knows a connection by the number of its lane; the Python objects stand in a slab indexed
//! by that number, touched by attached threads only. No lock here is held while Python runs.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::bridge::Bridge;
use super::callbacks;
use super::logging;
use super::once::intern;
use super::sessions::{self, SessionsState};
use super::{pump, pumps};
use crate::journal::Level;
use crate::lane::LaneId;
use crate::lanes::{GaveUp, Notice};
use crate::router::{Policy, Router};

/// Close code and reason for a connection that lets too much wait.
const SLOW: (u16, &str) = (1013, "slow consumer");
/// How long a connection may take to close before it is left alone, in seconds.
pub const CLOSE_TIMEOUT: f64 = 5.0;

/// A connection, and the generation of the lane it belongs to.
type Connection = (u32, Py<PyAny>);

/// How a manager treats its connections, beside what the router sees to.
#[derive(Default)]
pub struct Options {
    /// How long a send may take before its connection is given up.
    pub send_timeout: Duration,
    /// How long a pump runs before the loop's other work has its turn.
    pub time_slice: Duration,
    /// Called with a connection, a count of messages and a reason.
    pub on_drop: Option<Py<PyAny>>,
    /// Called with a connection and a reason.
    pub on_disconnect: Option<Py<PyAny>>,
}

/// What a manager is, apart from its Python object: shared with publishers, pumps and views.
pub struct ManagerState {
    pub router: Arc<Router>,
    pub options: Options,
    /// Connections by lane index, with the generation of the lane they belong to.
    connections: Mutex<Vec<Option<Connection>>>,
    /// Packed lane id by connection. A dict, because "the same connection" is what Python says it is.
    ids: Py<PyDict>,
    /// Its method `setdefault`, bound once.
    set_default: Py<PyAny>,
}

impl ManagerState {
    /// A manager with nobody connected.
    pub fn new(py: Python<'_>, policy: Policy, options: Options) -> PyResult<Arc<Self>> {
        let router = Router::new(policy);
        let ids = PyDict::new(py);
        let set_default = ids.getattr("setdefault")?.unbind();
        let ids = ids.unbind();
        let connections = Mutex::default();
        let state = Arc::new(Self { router, options, connections, ids, set_default });
        let owner: Weak<Self> = Arc::downgrade(&state);
        state.router.set_owner(owner);
        Ok(state)
    }

    /// The connection that belongs to an open lane.
    pub fn connection(&self, py: Python<'_>, id: LaneId) -> Option<Py<PyAny>> {
        let connections = self.connections.lock();
        let (generation, connection) = connections.get(id.index as usize)?.as_ref()?;
        (*generation == id.generation).then(|| connection.clone_ref(py))
    }

    /// The lane of a connection that is registered.
    pub fn lane_of(&self, connection: &Bound<'_, PyAny>) -> PyResult<Option<LaneId>> {
        let id = self.ids.bind(connection.py()).get_item(connection)?;
        id.map(|id| id.extract().map(LaneId::unpack)).transpose()
    }

    /// Registers a connection of a user. The lane is to be [bound](Router::bind) to a loop.
    pub fn connect(&self, user_id: &str, connection: &Bound<'_, PyAny>) -> PyResult<LaneId> {
        let py = connection.py();
        loop {
            // As if it were new, which it nearly always is: one look into the dict then.
            let id = self.router.open();
            self.keep(id, connection);
            let packed = id.pack().into_pyobject(py)?.into_any();
            let known = match self.set_default.bind(py).call1((connection, &packed)) {
                Ok(known) if known.is(&packed) => id,
                known => {
                    self.router.close(id);
                    drop(self.take_connection(id));
                    LaneId::unpack(known?.extract()?) // an error: not hashable, perhaps
                }
            };
            if self.router.connect(user_id, known) {
                return Ok(known);
            }
            self.forget(py, known, connection)?; // given up a moment ago
        }
    }

    fn keep(&self, id: LaneId, connection: &Bound<'_, PyAny>) {
        let mut connections = self.connections.lock();
        let index = id.index as usize;
        if connections.len() <= index {
            connections.resize_with(index + 1, || None);
        }
        let old = connections[index].replace((id.generation, connection.clone().unbind()));
        drop(connections);
        drop(old); // without the lock: the end of a connection may run Python
    }

    /// Takes a connection of a user out.
    pub fn disconnect(&self, user_id: &str, connection: &Bound<'_, PyAny>) -> PyResult<()> {
        let id = self.lane_of(connection)?;
        let closed = self.router.disconnect(user_id, id);
        match id {
            Some(id) if closed => self.forget(connection.py(), id, connection),
            _ => Ok(()),
        }
    }

    /// Lets go of a connection whose lane is gone.
    fn forget(&self, py: Python<'_>, id: LaneId, connection: &Bound<'_, PyAny>) -> PyResult<()> {
        drop(self.take_connection(id));
        let ids = self.ids.bind(py);
        // Only if it has not been connected anew meanwhile.
        if self.lane_of(connection)? == Some(id) {
            ids.del_item(connection)?;
        }
        Ok(())
    }

    fn take_connection(&self, id: LaneId) -> Option<Py<PyAny>> {
        let mut connections = self.connections.lock();
        let entry = connections.get_mut(id.index as usize)?;
        if entry.as_ref()?.0 != id.generation {
            return None;
        }
        entry.take().map(|(_, connection)| connection)
    }

    /// Gives up a connection whose send failed.
    pub fn fail(&self, py: Python<'_>, id: LaneId, error: &PyErr) {
        // Before the lane is closed: from then on its index may belong to another connection.
        let connection = self.connection(py, id);
        let Some(waited) = self.router.close(id) else { return };
        self.router.stats.send_failed.add(1);
        self.router.stats.dropped.add(1);
        if let Some(connection) = connection {
            self.let_go(py, id, connection.bind(py), "send failed", waited + 1);
        }
        let name =
            error.get_type(py).name().map_or_else(|_| "error".into(), |name| name.to_string());
        let text =
            format!("a connection's send failed, it was disconnected: {name}: {}", error.value(py));
        logging::log(py, Level::Info, &text);
    }

    /// Lets go of a connection that was given up, and says so.
    fn let_go(
        &self,
        py: Python<'_>,
        id: LaneId,
        connection: &Bound<'_, PyAny>,
        reason: &str,
        lost: usize,
    ) {
        if let Err(error) = self.forget(py, id, connection) {
            error.write_unraisable(py, None);
        }
        if lost > 0 {
            callbacks::call(py, self.options.on_drop.as_ref(), (connection, lost, "disconnected"));
        }
        callbacks::call(py, self.options.on_disconnect.as_ref(), (connection, reason));
    }

    /// Empties all maps; returns the connections there were.
    pub fn take_all(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        let lanes = self.router.close_all();
        self.ids.bind(py).clear();
        lanes.into_iter().filter_map(|id| self.take_connection(id)).collect()
    }

    /// Does what a loop was told besides delivering: tells of drops, and ends what was given up. One
    /// connection that cannot be ended must not keep the others from it.
    fn heed(&self, py: Python<'_>, bridge: &Arc<Bridge>) {
        let mut ended = 0;
        for notice in self.router.take_notices(&bridge.mailbox) {
            match notice {
                Notice::Dropped(id, count) => {
                    if let Some(connection) = self.connection(py, id) {
                        let arguments = (connection, count, "overflow");
                        callbacks::call(py, self.options.on_drop.as_ref(), arguments);
                    }
                }
                // Only sessions subscribe by name.
                Notice::Refused(_) => {}
                Notice::GivenUp(id, why, waited) => {
                    ended += 1;
                    if let Err(error) = self.end(py, bridge, id, why, waited) {
                        error.write_unraisable(py, None);
                    }
                    self.router.release(id);
                }
            }
        }
        if ended > 0 {
            let text = format!("{ended} connection(s) disconnected as slow consumers");
            logging::log(py, Level::Warning, &text);
        }
    }

    /// Ends a connection that was given up: its send is cancelled, and a close is attempted in a Task
    /// of its own, under a deadline, because its peer may never answer.
    fn end(
        &self,
        py: Python<'_>,
        bridge: &Arc<Bridge>,
        id: LaneId,
        why: GaveUp,
        waited: usize,
    ) -> PyResult<()> {
        let connection = self.connection(py, id);
        let task = bridge.pumps.task_of(py, pumps::place(&self.router, id));
        if let Some(connection) = &connection {
            let reason = match why {
                GaveUp::Overflow => "overflow",
                GaveUp::Deadline => "send timed out",
            };
            self.let_go(py, id, connection.bind(py), reason, waited + usize::from(task.is_some()));
        }
        if let Some(task) = task {
            task.call_method0(py, intern!(py, "cancel"))?;
        }
        if let Some(connection) = connection {
            let close_later = py.import("fanwire._closing")?.getattr("close_later")?;
            close_later.call1((connection, SLOW.0, SLOW.1, CLOSE_TIMEOUT))?;
        }
        Ok(())
    }

    /// For the garbage collector: connections may know their manager. Only where nobody else has this,
    /// a publisher say: then it ends with the manager.
    pub fn traverse(slf: &Arc<Self>, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if Arc::strong_count(slf) > 1 {
            return Ok(());
        }
        let Some(connections) = slf.connections.try_lock() else { return Ok(()) };
        for (_, connection) in connections.iter().flatten() {
            visit.call(connection)?;
        }
        visit.call(&slf.ids)?;
        visit.call(&slf.set_default)?;
        visit.call(slf.options.on_drop.as_ref())?;
        visit.call(slf.options.on_disconnect.as_ref())
    }

    /// The connections of a user, for inspection.
    pub fn connections_of(&self, py: Python<'_>, user_id: &str) -> Option<Vec<Py<PyAny>>> {
        let lanes = self.router.connections_of(user_id)?;
        Some(lanes.into_iter().filter_map(|id| self.connection(py, id)).collect())
    }
}

/// Lanes of this router have something to do on this loop.
pub fn on_ready(py: Python<'_>, router: &Arc<Router>, bridge: &Arc<Bridge>) -> PyResult<()> {
    // An owner that is gone has neither connections nor sessions.
    let Some(owner) = router.owner() else { return Ok(()) };
    let state = match owner.downcast::<ManagerState>() {
        Ok(state) => state,
        Err(owner) => {
            let sessions = owner.downcast::<SessionsState>();
            return sessions.map_or(Ok(()), |state| sessions::on_ready(py, &state, bridge));
        }
    };
    state.router.stats.wakeups.add(1);
    state.heed(py, bridge);
    pump::start(py, &state, bridge)
}
