//! A session's turn: what its Task asks for the next call, and what ends it.
//!
//! `fanwire/_sessions.py` has the Task's coroutine. Turns of a loop share slices of time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString};

use super::bridge::Bridge;
use super::logging;
use super::sessions::{Handler, SessionsState};
use crate::journal::Level;
use crate::lane::{Entry, LaneId};
use crate::router::Router;

/// Between two looks at turns that last.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long after a turn was cancelled the next begins: a loop that cancels all its Tasks is most
/// often about to be closed.
const TAKE_OVER_AFTER: f64 = 0.05;

/// The turns under way on a loop.
#[derive(Default)]
pub struct LoopTurns {
    tasks: Mutex<HashMap<usize, Py<PyAny>>>,
    begun: AtomicUsize,
    slice: Mutex<Slice>,
    /// Whether a timer looks for turns that last.
    watched: AtomicBool,
}

/// A stretch of time that the turns of a loop share before they let it go on.
#[derive(Clone, Copy)]
struct Slice {
    number: u64,
    began: Instant,
}

impl Default for Slice {
    fn default() -> Self {
        Self { number: 0, began: Instant::now() }
    }
}

impl LoopTurns {
    /// Begins a slice of time.
    pub fn begin_slice(&self) {
        self.slice.lock().advance(None);
    }

    /// Has the loop begin more turns, after those that have just begun, and look after those that last.
    pub fn go_on(
        py: Python<'_>,
        turns: &Arc<Self>,
        state: &Arc<SessionsState>,
        bridge: &Arc<Bridge>,
    ) -> PyResult<()> {
        let begin = Begin { state: Arc::clone(state), bridge: Arc::clone(bridge) };
        bridge.event_loop(py)?.call_method1(intern!(py, "call_soon"), (begin,))?;
        if turns.watched.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        Watch::begin(py, state, bridge, turns)
    }
}

impl Slice {
    /// Begins the next one, unless somebody has since `seen`.
    fn advance(&mut self, seen: Option<u64>) {
        if seen.is_none_or(|seen| seen == self.number) {
            self.number += 1;
            self.began = Instant::now();
        }
    }
}

struct InHand {
    /// Taken from the lane, not handed to its handler yet.
    next: Option<Entry>,
    /// The slice of time it runs in.
    slice: u64,
    /// Whether it has let the loop go on since.
    yielded: bool,
    /// Whether nothing is left to do.
    over: bool,
}

/// A session's turn: what its Task asks for the next call.
#[pyclass(frozen, module = "fanwire._core", name = "_Turn")]
pub struct Turn {
    state: Arc<SessionsState>,
    bridge: Arc<Bridge>,
    turns: Arc<LoopTurns>,
    number: usize,
    lane: LaneId,
    context: Py<PyAny>,
    in_hand: Mutex<InHand>,
}

impl Turn {
    /// Makes the Task in which a session's handlers run, beginning with a message and its handler.
    pub fn begin(
        py: Python<'_>,
        state: &Arc<SessionsState>,
        bridge: &Arc<Bridge>,
        turns: &Arc<LoopTurns>,
        lane: LaneId,
        entry: Entry,
        handler: &Handler,
    ) -> PyResult<()> {
        static RUN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let number = turns.begun.fetch_add(1, Ordering::Relaxed);
        let slice = turns.slice.lock().number;
        let in_hand = InHand { next: Some(entry), slice, yielded: false, over: false };
        let turn = Bound::new(
            py,
            Self {
                state: Arc::clone(state),
                bridge: Arc::clone(bridge),
                turns: Arc::clone(turns),
                number,
                lane,
                context: handler.context.clone_ref(py),
                in_hand: Mutex::new(in_hand),
            },
        )?;
        if state.options.concurrent {
            state.router.end_turn(&bridge.mailbox, lane, None);
        }
        let coroutine = RUN.import(py, "fanwire._sessions", "run")?.call1((&turn,))?;
        let options = PyDict::new(py);
        options.set_item(intern!(py, "context"), &handler.context)?;
        let event_loop = bridge.event_loop(py)?;
        let name = intern!(py, "create_task");
        let task = event_loop.call_method(name, (coroutine,), Some(&options))?;
        turns.tasks.lock().insert(number, task.clone().unbind());
        task.call_method1(intern!(py, "add_done_callback"), (turn,)).map(drop)
    }

    /// The next message with its handler; None when the turn is over or is to let the loop go on.
    fn take(&self, py: Python<'_>) -> Option<(Entry, Handler)> {
        let concurrent = self.state.options.concurrent;
        loop {
            let mut in_hand = self.in_hand.lock();
            let entry = match in_hand.next.take() {
                Some(entry) => entry,
                None if concurrent || in_hand.over => {
                    in_hand.over = true;
                    return None;
                }
                None => {
                    let mut slice = self.turns.slice.lock();
                    if std::mem::take(&mut in_hand.yielded) {
                        slice.advance(Some(in_hand.slice));
                    }
                    in_hand.slice = slice.number;
                    if slice.began.elapsed() >= self.state.options.time_slice {
                        in_hand.yielded = true;
                        return None;
                    }
                    drop(slice);
                    let Some(entry) = self.state.router.next_in_turn(self.lane) else {
                        in_hand.over = true;
                        return None;
                    };
                    entry
                }
            };
            let Some(handler) = entry.subscription.and_then(|id| self.state.handler(py, id)) else {
                drop(in_hand);
                self.state.router.stats.dropped.add(1);
                continue;
            };
            // Another subscriber's context is another Task's.
            if !concurrent && !handler.context.is(&self.context) {
                in_hand.next = Some(entry);
                in_hand.over = true;
                return None;
            }
            return Some((entry, handler));
        }
    }

    /// Ends the turn, unless it has ended by itself: what was taken goes back.
    fn end(&self, py: Python<'_>, pause: bool) {
        let task = self.turns.tasks.lock().remove(&self.number);
        drop(task);
        let (unhandled, over) = {
            let mut in_hand = self.in_hand.lock();
            (in_hand.next.take(), std::mem::replace(&mut in_hand.over, true))
        };
        let (mailbox, router) = (&self.bridge.mailbox, &self.state.router);
        if self.state.options.concurrent {
            router.stats.dropped.add(u64::from(unhandled.is_some()));
            return;
        }
        // The lane of a loop that is gone has moved on.
        if mailbox.is_closed() || (over && unhandled.is_none()) {
            return;
        }
        router.end_turn(mailbox, self.lane, unhandled);
        if !pause {
            router.retell();
            return;
        }
        let retell = Retell { router: Arc::clone(router) };
        let later = self.bridge.event_loop(py).and_then(|event_loop| {
            event_loop.call_method1(intern!(py, "call_later"), (TAKE_OVER_AFTER, retell))
        });
        if later.is_err() {
            router.retell();
        }
    }
}

#[pymethods]
impl Turn {
    /// The handler, the topic and the message of the next call; None when there is none now.
    fn next<'py>(&self, py: Python<'py>) -> Option<(Py<PyAny>, Py<PyString>, Bound<'py, PyAny>)> {
        loop {
            let (entry, handler) = self.take(py)?;
            let waited = entry.payload.received.elapsed().as_nanos();
            match self.state.parsed.message(py, &entry.payload) {
                Ok(message) => {
                    let router = &self.state.router;
                    router.spread.latency.record(u64::try_from(waited).unwrap_or(u64::MAX));
                    router.stats.delivered.add(1);
                    return Some((handler.call, handler.topic, message));
                }
                Err(error) => {
                    self.state.undecodable.add(1);
                    let topic = handler.topic.bind(py).to_string_lossy().into_owned();
                    let why = error.value(py);
                    let text = format!("a message of topic {topic:?} was skipped: {why}");
                    logging::log(py, Level::Error, &text);
                }
            }
        }
    }

    /// Whether the turn is over. Otherwise, when there is no next call, the loop is to go on first.
    #[getter]
    fn over(&self) -> bool {
        self.in_hand.lock().over
    }

    /// Counts a handler that raised. Returns the session's id.
    fn failed(&self) -> Option<String> {
        self.state.failed.add(1);
        self.state.router.session_of(self.lane)
    }

    /// What the Task calls when it is done, however it went.
    fn __call__(&self, task: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = task.py();
        let cancelled = task.call_method0(intern!(py, "cancelled"))?.is_truthy()?;
        self.end(py, cancelled);
        Ok(())
    }
}

impl Drop for Turn {
    /// Only where the Task could not be made; otherwise it has ended.
    fn drop(&mut self) {
        Python::try_attach(|py| self.end(py, true));
    }
}

/// What the loop calls to begin more turns.
#[pyclass(frozen, module = "fanwire._core", name = "_Begin")]
struct Begin {
    state: Arc<SessionsState>,
    bridge: Arc<Bridge>,
}

#[pymethods]
impl Begin {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        self.state.begin(py, &self.bridge)
    }
}

/// What the loop calls some time after a turn was cancelled.
#[pyclass(frozen, module = "fanwire._core", name = "_RetellSessions")]
struct Retell {
    router: Arc<Router>,
}

#[pymethods]
impl Retell {
    fn __call__(&self) {
        self.router.retell();
    }
}

/// Says every now and then that the loop runs, as long as turns last: only then is a session that lets
/// messages wait the one to blame.
#[pyclass(frozen, module = "fanwire._core", name = "_Watch")]
struct Watch {
    state: Arc<SessionsState>,
    bridge: Arc<Bridge>,
    turns: Arc<LoopTurns>,
    due: Mutex<Instant>,
}

impl Watch {
    fn begin(
        py: Python<'_>,
        state: &Arc<SessionsState>,
        bridge: &Arc<Bridge>,
        turns: &Arc<LoopTurns>,
    ) -> PyResult<()> {
        let (state, bridge, turns) = (Arc::clone(state), Arc::clone(bridge), Arc::clone(turns));
        let due = Mutex::new(Instant::now());
        Self::later(&Bound::new(py, Self { state, bridge, turns, due })?)
    }

    fn later(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        *slf.get().due.lock() = Instant::now() + LOOK_EVERY;
        let event_loop = slf.get().bridge.event_loop(py)?;
        let arguments = (LOOK_EVERY.as_secs_f64(), slf);
        event_loop.call_method1(intern!(py, "call_later"), arguments).map(drop)
    }
}

#[pymethods]
impl Watch {
    fn __call__(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        // A loop that was blocked has given no handler a turn: they get one before they are judged.
        if this.due.lock().elapsed() <= LOOK_EVERY {
            this.state.router.see(&this.bridge.mailbox);
        }
        if this.turns.tasks.lock().is_empty() {
            this.turns.watched.store(false, Ordering::Release);
            return Ok(());
        }
        Self::later(slf)
    }
}
