//! The Task that empties lanes: one walks all ready lanes of a loop and awaits each send.
//!
//! A Task per delivery costs 3 us and waking one per lane 1.6 us; one Task that walks costs 0.1 us a
//! delivery. When a send suspends, this Task stays with its lane and another takes the rest, so a
//! slow connection delays nobody, and Tasks exist only where something waits. User code always runs in
//! a real Task: `asyncio.timeout`, `current_task()`, cancellation and anyio work in it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::bridge::Bridge;
use super::connections::ManagerState;
use super::coroutine::{awaitable, cancelled_error, current_task, progress, throw};
use super::ffi;
use super::once::intern;
use super::pumps::{Deadlines, place};
use super::steps::{Coroutine, Resume, Steps};
use crate::lane::{Entry, LaneId};
use crate::message::Payload;

/// Lanes taken at once: one lock for so many deliveries.
const LANES_AT_ONCE: usize = 64;
/// How long after a pump was cancelled another takes over.
const TAKE_OVER_AFTER: Duration = Duration::from_millis(50);
/// Deliveries between two looks at the clock.
const LOOK_EVERY: u32 = 8;

/// Starts a pump if lanes are ready.
pub fn start(py: Python<'_>, state: &Arc<ManagerState>, bridge: &Arc<Bridge>) -> PyResult<()> {
    let mut batch = Vec::new();
    state.router.take(&bridge.mailbox, &mut Vec::new(), LANES_AT_ONCE, &mut batch);
    if batch.is_empty() { Ok(()) } else { spawn(py, state, bridge, batch.into()) }
}

fn spawn(
    py: Python<'_>,
    state: &Arc<ManagerState>,
    bridge: &Arc<Bridge>,
    batch: VecDeque<(LaneId, Entry)>,
) -> PyResult<()> {
    let work = Work {
        state: Arc::clone(state),
        bridge: Arc::clone(bridge),
        batch,
        done: Vec::new(),
        current: None,
        text: None,
        delivered: 0,
        total: 0,
        now: Instant::now(),
        retired: false,
    };
    let pump = Coroutine::new("pump", work);
    bridge.event_loop(py)?.call_method1(intern!(py, "create_task"), (pump,))?;
    Ok(())
}

/// A send that has suspended.
struct Current {
    lane: LaneId,
    /// Kept until the send has ended: its ticket tells who waits for it.
    _entry: Entry,
    awaiting: Py<PyAny>,
}

struct Work {
    state: Arc<ManagerState>,
    bridge: Arc<Bridge>,
    /// Taken from the router, not sent yet.
    batch: VecDeque<(LaneId, Entry)>,
    /// Sent, not yet told to the router.
    done: Vec<LaneId>,
    current: Option<Current>,
    /// The message sent last as a Python str: most often the next lane has the same one.
    text: Option<(Payload, Py<PyString>)>,
    delivered: u64,
    /// Delivered since it began.
    total: u64,
    /// The clock, looked at every few deliveries.
    now: Instant,
    /// Its Task is cancelled: user code is not to run in it any more.
    retired: bool,
}

/// Where a send stands.
enum Sent {
    Suspended { awaiting: Py<PyAny>, yielded: Py<PyAny> },
    Ended(PyResult<()>),
}

impl Work {
    /// Goes on with the send that had suspended, if any.
    fn resume(&mut self, py: Python<'_>, resume: Resume<'_>) -> PyResult<Option<Py<PyAny>>> {
        let Some(current) = self.current.take() else {
            return match resume {
                Resume::Send(_) => Ok(None),
                Resume::Throw(error) => Err(error), // cancelled between two sends; Drop puts back the rest
            };
        };
        let was_thrown = matches!(resume, Resume::Throw(_));
        let awaiting = current.awaiting.bind(py);
        let result = match resume {
            Resume::Send(value) => ffi::send(awaiting, &value),
            Resume::Throw(error) => throw(awaiting, error),
        };
        match progress(result) {
            Ok(Some(yielded)) => {
                self.current = Some(current);
                Ok(Some(yielded))
            }
            ended => {
                self.bridge.pumps.remove(place(&self.state.router, current.lane));
                let lane = current.lane;
                drop(current);
                self.delivered += u64::from(ended.is_ok());
                self.ended(py, lane, ended.map(drop), was_thrown)?;
                Ok(None)
            }
        }
    }

    fn send(&mut self, none: &Bound<'_, PyAny>, lane: LaneId, entry: &Entry) -> Sent {
        let py = none.py();
        // Disconnected since it was taken.
        let Some(connection) = self.state.connection(py, lane) else {
            self.state.router.stats.dropped.add(1);
            return Sent::Ended(Ok(()));
        };
        let waited = self.now.saturating_duration_since(entry.payload.received);
        let nanoseconds = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.state.router.spread.latency.record(nanoseconds);
        let mut begin = || -> PyResult<Bound<'_, PyAny>> {
            let text = self.text(py, &entry.payload);
            let returned = connection.bind(py).call_method1(intern!(py, "send_text"), (text,))?;
            awaitable(returned, "send_text()")
        };
        let awaiting = match begin() {
            Ok(awaiting) => awaiting,
            Err(error) => return Sent::Ended(Err(error)),
        };
        match progress(ffi::send(&awaiting, none)) {
            Ok(Some(yielded)) => Sent::Suspended { awaiting: awaiting.unbind(), yielded },
            Ok(None) => {
                self.delivered += 1;
                Sent::Ended(Ok(()))
            }
            Err(error) => Sent::Ended(Err(error)),
        }
    }

    /// The message as a str, made once for as many lanes in a row as have the same one.
    fn text<'py>(&mut self, py: Python<'py>, payload: &Payload) -> Bound<'py, PyString> {
        if let Some((last, text)) = &self.text
            && Arc::ptr_eq(last, payload)
        {
            return text.bind(py).clone();
        }
        let text = PyString::new(py, &payload.text);
        self.text = Some((Arc::clone(payload), text.clone().unbind()));
        text
    }

    /// Deals with the end of a send. An error comes back if it is not the connection's.
    fn ended(
        &mut self,
        py: Python<'_>,
        lane: LaneId,
        result: PyResult<()>,
        was_thrown: bool,
    ) -> PyResult<()> {
        let Err(error) = result else {
            self.done.push(lane);
            return Ok(());
        };
        let is_cancelled = error.is_instance(py, cancelled_error(py)?.as_any());
        let is_theirs = is_cancelled || error.is_instance_of::<PyException>(py);
        if is_theirs && !self.state.router.is_open(lane) {
            // Given up or disconnected meanwhile. If that is why the send was cancelled, this Task is
            // cancelled too, and no more user code is to run in it.
            self.state.router.stats.dropped.add(1);
            self.retired |= was_thrown;
            return Ok(());
        }
        // Something the connection waited for may have been cancelled, and not this Task.
        let is_ours = is_cancelled
            && was_thrown
            && current_task(py)?.call_method0("cancelling")?.is_truthy()?;
        if is_theirs && !is_ours {
            self.state.fail(py, lane, &error);
            return Ok(());
        }
        // The Task is cancelled, or the interpreter is asked to end. Drop puts back the rest.
        self.state.router.stats.dropped.add(1);
        self.done.push(lane);
        Err(error)
    }

    /// This Task waits for a lane from now on; another takes the rest.
    fn stay_with(&mut self, py: Python<'_>, lane: LaneId) -> PyResult<()> {
        let task = current_task(py)?.unbind();
        if self.bridge.pumps.add(place(&self.state.router, lane), task) {
            Deadlines::begin(py, &self.state, &self.bridge)?;
        }
        self.flush();
        let rest = std::mem::take(&mut self.batch);
        self.state.router.suspend(&self.bridge.mailbox, lane, &mut self.done, rest.is_empty());
        if rest.is_empty() { Ok(()) } else { spawn(py, &self.state, &self.bridge, rest) }
    }

    fn flush(&mut self) {
        self.total += self.delivered;
        self.state.router.stats.delivered.add(std::mem::take(&mut self.delivered));
    }
}

impl Steps for Work {
    /// Over when all lanes are empty.
    fn step(&mut self, py: Python<'_>, resume: Resume<'_>) -> PyResult<Option<Py<PyAny>>> {
        if let Some(yielded) = self.resume(py, resume)? {
            return Ok(Some(yielded));
        }
        if self.retired {
            return Ok(None);
        }
        let none = py.None().into_bound(py);
        let began = Instant::now();
        self.now = began;
        let mut until_look = LOOK_EVERY;
        loop {
            let Some((lane, entry)) = self.batch.pop_front() else {
                self.flush();
                let mut taken = Vec::new();
                self.state.router.take(
                    &self.bridge.mailbox,
                    &mut self.done,
                    LANES_AT_ONCE,
                    &mut taken,
                );
                if taken.is_empty() {
                    return Ok(None);
                }
                self.batch = taken.into();
                continue;
            };
            match self.send(&none, lane, &entry) {
                Sent::Ended(result) => {
                    drop(entry);
                    self.ended(py, lane, result, false)?;
                }
                Sent::Suspended { awaiting, yielded } => {
                    self.current = Some(Current { lane, _entry: entry, awaiting });
                    self.stay_with(py, lane)?;
                    return Ok(Some(yielded));
                }
            }
            until_look -= 1;
            if until_look == 0 {
                until_look = LOOK_EVERY;
                self.now = Instant::now();
                if self.now - began >= self.state.options.time_slice {
                    return Ok(Some(py.None()));
                }
            }
        }
    }
}

impl Drop for Work {
    /// What was taken and not sent goes back, in order. Another pump takes it over a moment later,
    /// not at once: a loop that cancels all its Tasks is most often about to be closed.
    fn drop(&mut self) {
        self.flush();
        self.state.router.spread.batch_size.record(self.total);
        if let Some(current) = self.current.take() {
            self.bridge.pumps.remove(place(&self.state.router, current.lane));
            self.state.router.stats.dropped.add(1);
            self.done.push(current.lane);
        }
        if self.batch.is_empty() && self.done.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        self.state.router.put_back(&self.bridge.mailbox, &mut self.done, batch);
        let retell = Retell { state: Arc::clone(&self.state) };
        Python::try_attach(|py| {
            let raised = PyErr::take(py);
            let pause = TAKE_OVER_AFTER.as_secs_f64();
            let name = intern!(py, "call_later");
            // A loop that is closed takes nothing over: its lanes move when something comes for them.
            drop(
                self.bridge
                    .event_loop(py)
                    .and_then(|event_loop| event_loop.call_method1(name, (pause, retell))),
            );
            if let Some(raised) = raised {
                raised.restore(py);
            }
        });
    }
}

/// What the loop calls some time after a pump was cancelled.
#[pyclass(frozen, module = "fanwire._core", name = "_Retell")]
struct Retell {
    state: Arc<ManagerState>,
}

#[pymethods]
impl Retell {
    fn __call__(&self) {
        self.state.router.retell();
    }
}
