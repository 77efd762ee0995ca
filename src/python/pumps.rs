//! The pump Tasks of a loop that wait for a send, and the search for sends that take too long.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::bridge::Bridge;
use super::connections::ManagerState;
use super::once::intern;
use crate::lane::LaneId;
use crate::router::Router;

/// A lane of one of the managers that a loop serves.
pub type Place = (usize, LaneId);

/// The place of a router's lane.
pub fn place(router: &Arc<Router>, id: LaneId) -> Place {
    (Arc::as_ptr(router) as usize, id)
}

/// The pump Tasks of a loop that wait for a send, by the lane they stay with.
#[derive(Default)]
pub struct Pumps(Mutex<PumpsInner>);

#[derive(Default)]
struct PumpsInner {
    waiting: HashMap<Place, (Py<PyAny>, Instant)>,
    /// The routers for which somebody looks for sends that take too long.
    watched: HashSet<usize>,
}

impl Pumps {
    /// The Task that waits for the send of a lane.
    pub fn task_of(&self, py: Python<'_>, place: Place) -> Option<Py<PyAny>> {
        self.0.lock().waiting.get(&place).map(|(task, _)| task.clone_ref(py))
    }

    /// Forgets all Tasks: their loop is gone.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *self.0.lock());
        drop(all); // without the lock: the end of a Task may run Python
    }

    /// Adds a Task that waits. True if nobody looks for late sends of that router yet.
    pub fn add(&self, place: Place, task: Py<PyAny>) -> bool {
        let mut inner = self.0.lock();
        let old = inner.waiting.insert(place, (task, Instant::now()));
        let first = inner.watched.insert(place.0);
        drop(inner);
        drop(old);
        first
    }

    /// Takes out the Task that waited for the send of a lane.
    pub fn remove(&self, place: Place) {
        let old = self.0.lock().waiting.remove(&place);
        drop(old);
    }

    /// The lanes of a router whose send is late, and whether others still wait.
    fn late(&self, router: usize, allowed: Duration) -> (Vec<LaneId>, bool) {
        let mut inner = self.0.lock();
        let (mut late, mut others) = (Vec::new(), false);
        for ((_, id), (_, since)) in inner.waiting.iter().filter(|(place, _)| place.0 == router) {
            if since.elapsed() >= allowed { late.push(*id) } else { others = true }
        }
        if !others {
            inner.watched.remove(&router);
        }
        (late, others)
    }
}

/// Looks for sends that take too long, as long as any wait: one timer for each loop, not for each send.
#[pyclass(frozen, module = "fanwire._core", name = "_Deadlines")]
pub struct Deadlines {
    state: Arc<ManagerState>,
    bridge: Arc<Bridge>,
    due: Mutex<Instant>,
}

impl Deadlines {
    /// Begins to look.
    pub fn begin(py: Python<'_>, state: &Arc<ManagerState>, bridge: &Arc<Bridge>) -> PyResult<()> {
        let (state, bridge) = (Arc::clone(state), Arc::clone(bridge));
        let due = Mutex::new(Instant::now());
        Self::look_later(&Bound::new(py, Self { state, bridge, due })?)
    }

    fn look_later(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let pause = this.pause();
        *this.due.lock() = Instant::now() + pause;
        let event_loop = this.bridge.event_loop(py)?;
        let arguments = (pause.as_secs_f64(), slf);
        event_loop.call_method1(intern!(py, "call_later"), arguments).map(drop)
    }

    fn pause(&self) -> Duration {
        let eighth = self.state.options.send_timeout / 8;
        eighth.clamp(Duration::from_millis(5), Duration::from_millis(100))
    }
}

#[pymethods]
impl Deadlines {
    fn __call__(slf: &Bound<'_, Self>) -> PyResult<()> {
        let Self { state, bridge, due } = slf.get();
        // A loop that was blocked has given no send a turn: they get one before they are judged.
        if due.lock().elapsed() > slf.get().pause() {
            return Self::look_later(slf);
        }
        state.router.see(&bridge.mailbox);
        let router = Arc::as_ptr(&state.router) as usize;
        let (late, others) = bridge.pumps.late(router, state.options.send_timeout);
        for id in late {
            state.router.give_up(id);
        }
        if others { Self::look_later(slf) } else { Ok(()) }
    }
}
