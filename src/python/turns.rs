//! A session's turn, in which its handlers run, one after another. `walk.rs` begins it.
//!
//! Turns of a loop share its time. One whose handler waits is held by [`LoopTurns`], because
//! asyncio keeps only weak references to Tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyString;
use slab::Slab;

use super::bridge::Bridge;
use super::coroutine::{awaitable, cancelled_error, current_task, progress, throw};
use super::once::intern;
use super::sessions::{Handler, SessionsState};
use super::steps::{Coroutine, Resume, Steps};
use super::{ffi, logging};
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
    /// The Tasks whose handler waits for something.
    waiting: Mutex<Slab<Py<PyAny>>>,
    /// How many turns there are, which share the time there is.
    under_way: AtomicU32,
    /// Whether a timer looks for turns that last.
    watched: AtomicBool,
    /// Whether the listener is to be told of changed wishes at the end of this turn of the loop.
    pub flushing: AtomicBool,
}

impl LoopTurns {
    /// Forgets all Tasks: their loop is gone.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *self.waiting.lock());
        drop(all); // without the lock: the end of a Task may run Python
    }
}

/// A handler that waits for something.
struct Current {
    awaiting: Py<PyAny>,
    topic: Py<PyString>,
}

struct Work {
    state: Arc<SessionsState>,
    bridge: Arc<Bridge>,
    turns: Arc<LoopTurns>,
    lane: LaneId,
    /// The context its Task runs in.
    context: Py<PyAny>,
    /// Taken from the lane, not handed to its handler yet.
    next: Option<Entry>,
    current: Option<Current>,
    /// Where its Task is held while a handler waits.
    held: Option<usize>,
    /// When it began to run without letting the loop go on; None before its first call since.
    began: Option<Instant>,
    /// Whether the next message is for another subscriber's context.
    switches: bool,
    /// Whether the lane is not in its hands any more.
    over: bool,
}

enum Next {
    Call(Entry, Handler),
    /// The loop is to go on first.
    Yield,
    Over,
}

impl Work {
    /// Goes on with the handler that waits, if any.
    fn resume(&mut self, py: Python<'_>, resume: Resume<'_>) -> PyResult<Option<Py<PyAny>>> {
        let Some(current) = self.current.take() else {
            return match resume {
                Resume::Send(_) => Ok(None),
                Resume::Throw(error) => Err(error), // cancelled between two calls; Drop puts back the rest
            };
        };
        self.began = None;
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
                self.let_go();
                self.ended(py, &current.topic, ended.map(drop))?;
                Ok(None)
            }
        }
    }

    /// Calls a handler with a message. `Some`: it waits, and what it yielded.
    fn call(
        &mut self,
        none: &Bound<'_, PyAny>,
        entry: &Entry,
        handler: Handler,
    ) -> PyResult<Option<Py<PyAny>>> {
        let py = none.py();
        let Router { stats, spread, .. } = &*self.state.router;
        let waited = entry.payload.received.elapsed().as_nanos();
        let message = match self.state.parsed.message(py, &entry.payload) {
            Ok(message) => message,
            Err(error) => {
                self.state.skip(py, &handler, &error);
                return Ok(None);
            }
        };
        spread.latency.record(u64::try_from(waited).unwrap_or(u64::MAX));
        stats.delivered.add(1);
        let returned = handler.call.bind(py).call1((&handler.topic, message));
        let result = match returned.and_then(|returned| awaitable(returned, "a handler")) {
            Ok(awaiting) => match progress(ffi::send(&awaiting, none)) {
                Ok(Some(yielded)) => {
                    let (awaiting, topic) = (awaiting.unbind(), handler.topic);
                    self.current = Some(Current { awaiting, topic });
                    self.hold(py)?;
                    return Ok(Some(yielded));
                }
                ended => ended.map(drop),
            },
            Err(error) => Err(error),
        };
        self.ended(py, &handler.topic, result)?;
        Ok(None)
    }

    /// Deals with the end of a handler. An error comes back if it is not the handler's.
    fn ended(&self, py: Python<'_>, topic: &Py<PyString>, result: PyResult<()>) -> PyResult<()> {
        let Err(error) = result else { return Ok(()) };
        if error.is_instance(py, cancelled_error(py)?.as_any()) {
            // Something the handler waited for may have been cancelled, and not this Task.
            if current_task(py)?.call_method0(intern!(py, "cancelling"))?.is_truthy()? {
                return Err(error);
            }
        } else if !error.is_instance_of::<PyException>(py) {
            return Err(error); // the interpreter is asked to end
        }
        self.state.failed.add(1);
        let session = self.state.router.session_of(self.lane);
        let topic = topic.bind(py).repr()?;
        let session = PyString::new(py, &session.unwrap_or_default()).repr()?;
        let text = format!("the handler of session {session} for topic {topic} raised");
        logging::log_raised(py, &text, &error);
        Ok(())
    }

    /// The next message with its handler.
    fn take(&mut self, py: Python<'_>) -> Next {
        loop {
            let entry = match self.next.take() {
                Some(entry) => entry,
                None if self.over => return Next::Over,
                None => {
                    // At least one call, and then as long as this turn's share of the time allows.
                    let others = self.turns.under_way.load(Ordering::Relaxed).max(1);
                    let share = self.state.options.time_slice / others;
                    if self.began.is_some_and(|began| began.elapsed() >= share) {
                        return Next::Yield;
                    }
                    let Some(entry) = self.state.router.next_in_turn(self.lane) else {
                        self.over = true;
                        return Next::Over;
                    };
                    entry
                }
            };
            let Some(handler) = entry.subscription.and_then(|id| self.state.handler(py, id)) else {
                self.state.router.stats.dropped.add(1); // its session has left the topic
                continue;
            };
            // Another subscriber's context is another Task's; Drop puts the message back.
            if !handler.context.is(&self.context) && !self.over {
                self.next = Some(entry);
                self.switches = true;
                return Next::Over;
            }
            self.began.get_or_insert_with(Instant::now);
            return Next::Call(entry, handler);
        }
    }

    /// Has the Task held while its handler waits, and looked after.
    fn hold(&mut self, py: Python<'_>) -> PyResult<()> {
        if !self.over {
            self.state.router.set_waiting(self.lane, true);
        }
        let task = current_task(py)?.unbind();
        self.held = Some(self.turns.waiting.lock().insert(task));
        if self.turns.watched.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        Watch::begin(py, &self.state, &self.bridge, &self.turns)
    }

    fn let_go(&mut self) {
        let Some(held) = self.held.take() else { return };
        if !self.over {
            self.state.router.set_waiting(self.lane, false);
        }
        let task = self.turns.waiting.lock().try_remove(held);
        drop(task); // without the lock
    }
}

impl Steps for Work {
    /// Over when nothing waits for the session.
    fn step(&mut self, py: Python<'_>, resume: Resume<'_>) -> PyResult<Option<Py<PyAny>>> {
        if let Some(yielded) = self.resume(py, resume)? {
            return Ok(Some(yielded));
        }
        let none = py.None().into_bound(py);
        loop {
            let (entry, handler) = match self.take(py) {
                Next::Call(entry, handler) => (entry, handler),
                Next::Yield => {
                    self.began = None;
                    return Ok(Some(py.None()));
                }
                Next::Over => return Ok(None),
            };
            if let Some(yielded) = self.call(&none, &entry, handler)? {
                return Ok(Some(yielded));
            }
        }
    }
}

impl Drop for Work {
    /// What was taken and not handled goes back. A turn that was cut short is taken up again a moment
    /// later.
    fn drop(&mut self) {
        self.let_go();
        self.turns.under_way.fetch_sub(1, Ordering::Relaxed);
        let (mailbox, router) = (&self.bridge.mailbox, &self.state.router);
        if self.over {
            router.stats.dropped.add(u64::from(self.next.is_some()));
            return;
        }
        // The lane of a loop that is gone has moved on.
        if mailbox.is_closed() {
            return;
        }
        router.end_turn(mailbox, self.lane, self.next.take());
        if self.switches {
            router.retell();
            return;
        }
        retell_later(&self.bridge, router);
    }
}

/// Has the loop told a moment later that something is left to do. An error that is being raised stays so.
pub fn retell_later(bridge: &Arc<Bridge>, router: &Arc<Router>) {
    let retell = Retell { router: Arc::clone(router) };
    Python::try_attach(|py| {
        let raised = PyErr::take(py);
        let later = bridge.event_loop(py).and_then(|event_loop| {
            event_loop.call_method1(intern!(py, "call_later"), (TAKE_OVER_AFTER, retell))
        });
        if later.is_err() {
            router.retell();
        }
        if let Some(raised) = raised {
            raised.restore(py);
        }
    });
}

/// A turn that begins with a message.
pub fn turn(
    py: Python<'_>,
    state: &Arc<SessionsState>,
    bridge: &Arc<Bridge>,
    turns: &Arc<LoopTurns>,
    (lane, entry): (LaneId, Entry),
    handler: &Handler,
) -> Coroutine {
    let over = state.options.concurrent;
    turns.under_way.fetch_add(1, Ordering::Relaxed);
    let work = Work {
        state: Arc::clone(state),
        bridge: Arc::clone(bridge),
        turns: Arc::clone(turns),
        lane,
        context: handler.context.clone_ref(py),
        next: Some(entry),
        current: None,
        held: None,
        began: None,
        switches: false,
        over,
    };
    if over {
        // A turn of one message: the lane is ready for the next.
        state.router.end_turn(&bridge.mailbox, lane, None);
    }
    Coroutine::new("turn", work)
}

/// What the loop calls to begin more turns.
#[pyclass(frozen, module = "fanwire._core", name = "_Begin")]
pub struct Begin {
    pub state: Arc<SessionsState>,
    pub bridge: Arc<Bridge>,
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
        if this.turns.waiting.lock().is_empty() {
            this.turns.watched.store(false, Ordering::Release);
            return Ok(());
        }
        Self::later(slf)
    }
}
