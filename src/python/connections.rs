//! What a manager is, apart from its Python object: the router, and beside it the connections.
//!
//! The core knows a connection by the number of its lane; the Python objects stand in a slab indexed
//! by that number, touched by attached threads only. No lock here is held while Python runs.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::bridge::{self, Bridge};
use super::logging;
use super::pump::{self, Pumps};
use crate::journal::Level;
use crate::lane::{LaneId, LaneLimits};
use crate::router::Router;

/// Close code and reason for a connection that lets too much wait.
const SLOW: (u16, &str) = (1013, "slow consumer");
/// How long a connection may take to close before it is left alone, in seconds.
pub const CLOSE_TIMEOUT: f64 = 5.0;

/// A connection, and the generation of the lane it belongs to.
type Connection = (u32, Py<PyAny>);

/// What a manager is, apart from its Python object: shared with publishers, pumps and views.
pub struct ManagerState {
    pub router: Arc<Router>,
    pub pumps: Pumps,
    /// Connections by lane index, with the generation of the lane they belong to.
    connections: Mutex<Vec<Option<Connection>>>,
    /// Packed lane id by connection. A dict, because "the same connection" is what Python says it is.
    ids: Py<PyDict>,
    /// Its method `setdefault`, bound once.
    set_default: Py<PyAny>,
}

impl ManagerState {
    /// A manager with nobody connected.
    pub fn new(py: Python<'_>, limits: LaneLimits) -> PyResult<Arc<Self>> {
        let router = Router::new(limits);
        let ids = PyDict::new(py);
        let set_default = ids.getattr("setdefault")?.unbind();
        let ids = ids.unbind();
        let connections = Mutex::default();
        let state =
            Arc::new(Self { router, pumps: Pumps::default(), connections, ids, set_default });
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

    fn lane_of(&self, connection: &Bound<'_, PyAny>) -> PyResult<Option<LaneId>> {
        let id = self.ids.bind(connection.py()).get_item(connection)?;
        id.map(|id| id.extract().map(LaneId::unpack)).transpose()
    }

    /// Registers a connection of a user, on the loop that runs.
    pub fn connect(&self, user_id: &str, connection: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = connection.py();
        let bridge = bridge::running(py)?;
        loop {
            // As if it were new, which it nearly always is: one look into the dict then.
            let id = self.router.open(&bridge.mailbox);
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
            if self.router.connect(user_id, known, &bridge.mailbox) {
                return Ok(());
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
        // The index was free, so there is nothing to drop here.
        connections[index] = Some((id.generation, connection.clone().unbind()));
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
        if !self.router.close(id) {
            return;
        }
        self.router.stats.send_failed.add(1);
        self.router.stats.dropped.add(1);
        let name =
            error.get_type(py).name().map_or_else(|_| "error".to_owned(), |name| name.to_string());
        logging::log(
            py,
            Level::Info,
            &format!(
                "a connection's send failed, it was disconnected: {name}: {}",
                error.value(py)
            ),
        );
        if let Some(connection) = self.connection(py, id)
            && let Err(error) = self.forget(py, id, connection.bind(py))
        {
            error.write_unraisable(py, None);
        }
    }

    /// Empties all maps; returns the connections there were.
    pub fn take_all(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        let lanes = self.router.close_all();
        self.ids.bind(py).clear();
        lanes.into_iter().filter_map(|id| self.take_connection(id)).collect()
    }

    /// Ends connections whose lanes overflowed: their send is cancelled, and a close is attempted.
    fn end_given_up(&self, py: Python<'_>, bridge: &Arc<Bridge>) -> PyResult<()> {
        for id in self.router.take_given_up(&bridge.mailbox) {
            let connection = self.connection(py, id);
            if let Some(task) = self.pumps.task_of(py, id) {
                task.call_method0(py, intern!(py, "cancel"))?;
            }
            if let Some(connection) = connection {
                self.forget(py, id, connection.bind(py))?;
                logging::log(
                    py,
                    Level::Warning,
                    "too much waited for a connection: disconnected as a slow consumer",
                );
                let close_later = py.import("fanwire._closing")?.getattr("close_later")?;
                close_later.call1((connection, SLOW.0, SLOW.1, CLOSE_TIMEOUT))?;
            }
            self.router.release(id);
        }
        Ok(())
    }

    /// The connections of a user, for inspection.
    pub fn connections_of(&self, py: Python<'_>, user_id: &str) -> Option<Vec<Py<PyAny>>> {
        let lanes = self.router.connections_of(user_id)?;
        Some(lanes.into_iter().filter_map(|id| self.connection(py, id)).collect())
    }
}

/// Lanes of this router have something to do on this loop.
pub fn on_ready(py: Python<'_>, router: &Arc<Router>, bridge: &Arc<Bridge>) -> PyResult<()> {
    // A manager that is gone has no connections.
    let Some(state) = router.owner().and_then(|owner| owner.downcast::<ManagerState>().ok()) else {
        return Ok(());
    };
    state.end_given_up(py, bridge)?;
    pump::start(py, &state, bridge)
}
