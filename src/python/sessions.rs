//! The handlers of sessions, and the Tasks in which they run.
//!
//! The core knows a subscription by number; the handlers stand in a slab indexed by that number,
//! touched by attached threads only. When a session's lane is ready it gets a turn: one Task, in the
//! context of the subscriber, that runs the session's handlers one after another until nothing waits.
//! `fanwire/_sessions.py` is that Task's coroutine. No lock here is held while Python runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString};

use super::bridge::{self, Bridge};
use super::decode::Parsed;
use super::logging;
use crate::journal::Level;
use crate::lane::{Entry, LaneId};
use crate::lanes::Notice;
use crate::router::{Policy, Router};
use crate::sessions::Channels;
use crate::stats::Counter;
use crate::topics::SubscriptionId;

/// Turns begun in one turn of the event loop; the others wait for the next.
const TURNS_AT_ONCE: usize = 16;
/// Between two looks at turns that last.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long after a turn was cancelled the next begins: a loop that cancels all its Tasks is most
/// often about to be closed.
const TAKE_OVER_AFTER: f64 = 0.05;
/// The least time between two log lines about dropped messages.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What is called for a subscription.
struct Handler {
    call: Py<PyAny>,
    topic: Py<PyString>,
    /// The `contextvars` context of the subscriber.
    context: Py<PyAny>,
}

/// How sessions are treated, beside what the router sees to.
pub struct Options {
    /// A Task for each message, instead of one handler at a time for each session.
    pub concurrent: bool,
    /// How long turns run before the loop's other work has its turn.
    pub time_slice: Duration,
    /// Called with a session id, a count of messages and a reason.
    pub on_drop: Option<Py<PyAny>>,
}

/// The sessions of a pub/sub object.
pub struct SessionsState {
    pub router: Arc<Router>,
    options: Options,
    handlers: Mutex<Vec<Option<(u32, Handler)>>>,
    parsed: Parsed,
    loops: Mutex<HashMap<usize, OnLoop>>,
    flushing: AtomicBool,
    told_of_drops: Mutex<Option<Instant>>,
    failed: Counter,
    undecodable: Counter,
}

/// A loop, and the turns under way on it.
type OnLoop = (Weak<Bridge>, Arc<LoopTurns>);

/// The turns under way on a loop.
struct LoopTurns {
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

impl SessionsState {
    /// Sessions without any.
    pub fn new(policy: Policy, channels: Option<Channels>, options: Options) -> Arc<Self> {
        let state = Arc::new(Self {
            router: Router::with_channels(policy, channels),
            options,
            handlers: Mutex::default(),
            parsed: Parsed::default(),
            loops: Mutex::default(),
            flushing: AtomicBool::new(false),
            told_of_drops: Mutex::default(),
            failed: Counter::default(),
            undecodable: Counter::default(),
        });
        let owner: Weak<Self> = Arc::downgrade(&state);
        state.router.set_owner(owner);
        state
    }

    /// Subscribes a session; the handler runs on the loop of `bridge` in a copy of this context.
    pub fn subscribe(
        &self,
        py: Python<'_>,
        bridge: &Arc<Bridge>,
        session_id: &str,
        topic: &Bound<'_, PyString>,
        handler: Py<PyAny>,
    ) -> PyResult<()> {
        static COPY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let context = COPY.import(py, "contextvars", "copy_context")?.call0()?.unbind();
        let fresh = Handler { call: handler, topic: topic.clone().unbind(), context };
        let mut old = None;
        self.router.subscribe_topic(session_id, topic.to_str()?, &bridge.mailbox, |id| {
            let mut handlers = self.handlers.lock();
            let index = id.index as usize;
            if handlers.len() <= index {
                handlers.resize_with(index + 1, || None);
            }
            old = handlers[index].replace((id.generation, fresh));
        });
        drop(old); // without a lock: the end of a handler may run Python
        self.flush_soon(py, bridge)
    }

    /// Ends a session's subscription to a topic: its handler is not called again.
    pub fn unsubscribe(
        self: &Arc<Self>,
        py: Python<'_>,
        session_id: &str,
        topic: &str,
    ) -> PyResult<()> {
        let ended = self.router.unsubscribe_topic(session_id, topic);
        self.forget(py, ended.into_iter().collect())
    }

    /// As [`SessionsState::unsubscribe`], for all topics of a session.
    pub fn unsubscribe_all(self: &Arc<Self>, py: Python<'_>, session_id: &str) -> PyResult<()> {
        self.forget(py, self.router.unsubscribe_all(session_id))
    }

    fn forget(&self, py: Python<'_>, ended: Vec<SubscriptionId>) -> PyResult<()> {
        if ended.is_empty() {
            return Ok(());
        }
        let take = |id: SubscriptionId| {
            let mut handlers = self.handlers.lock();
            let entry = handlers.get_mut(id.index as usize)?;
            if entry.as_ref()?.0 == id.generation { entry.take() } else { None }
        };
        let old: Vec<_> = ended.into_iter().filter_map(take).collect();
        drop(old); // without the lock
        self.flush_soon(py, &bridge::running(py)?)
    }

    /// Has the listener told of changed wishes at the end of this turn of the loop, all at once.
    fn flush_soon(&self, py: Python<'_>, bridge: &Arc<Bridge>) -> PyResult<()> {
        if self.router.channels().is_none() || self.flushing.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let Some(state) = self.router.owner().and_then(|owner| owner.downcast::<Self>().ok())
        else {
            return Ok(());
        };
        let flush = Flush { state };
        let scheduled = bridge.event_loop(py)?.call_method1(intern!(py, "call_soon"), (flush,));
        if scheduled.is_err() {
            self.flush();
        }
        scheduled.map(drop)
    }

    fn flush(&self) {
        self.flushing.store(false, Ordering::Release);
        if let Some(channels) = self.router.channels() {
            channels.wishes.flush();
        }
    }

    /// The handler of a subscription, and its context; None once it has ended.
    fn handler(&self, py: Python<'_>, id: SubscriptionId) -> Option<Handler> {
        let handlers = self.handlers.lock();
        let (generation, handler) = handlers.get(id.index as usize)?.as_ref()?;
        (*generation == id.generation).then(|| Handler {
            call: handler.call.clone_ref(py),
            topic: handler.topic.clone_ref(py),
            context: handler.context.clone_ref(py),
        })
    }

    fn turns_on(&self, bridge: &Arc<Bridge>) -> Arc<LoopTurns> {
        let mut loops = self.loops.lock();
        let key = Arc::as_ptr(bridge) as usize;
        if let Some((known, turns)) = loops.get(&key)
            && known.strong_count() > 0
        {
            return Arc::clone(turns);
        }
        let turns = Arc::new(LoopTurns {
            tasks: Mutex::default(),
            begun: AtomicUsize::new(0),
            slice: Mutex::new(Slice { number: 0, began: Instant::now() }),
            watched: AtomicBool::new(false),
        });
        let gone: Vec<_> = loops.extract_if(|_, (bridge, _)| bridge.strong_count() == 0).collect();
        loops.insert(key, (Arc::downgrade(bridge), Arc::clone(&turns)));
        drop(loops);
        drop(gone); // without the lock: the end of a Task may run Python
        turns
    }

    /// Begins the turns of lanes that are ready on a loop.
    fn begin(self: &Arc<Self>, py: Python<'_>, bridge: &Arc<Bridge>) -> PyResult<()> {
        let taken = self.router.begin_turns(&bridge.mailbox, TURNS_AT_ONCE);
        if taken.is_empty() {
            return Ok(());
        }
        let turns = self.turns_on(bridge);
        turns.slice.lock().advance(None);
        for (lane, entry) in taken {
            if let Err(error) = self.begin_one(py, bridge, &turns, lane, entry) {
                error.write_unraisable(py, None);
            }
        }
        let begin = Begin { state: Arc::clone(self), bridge: Arc::clone(bridge) };
        bridge.event_loop(py)?.call_method1(intern!(py, "call_soon"), (begin,))?;
        if !turns.watched.swap(true, Ordering::AcqRel) {
            Watch::begin(py, self, bridge, &turns)?;
        }
        Ok(())
    }

    fn begin_one(
        self: &Arc<Self>,
        py: Python<'_>,
        bridge: &Arc<Bridge>,
        turns: &Arc<LoopTurns>,
        lane: LaneId,
        entry: Entry,
    ) -> PyResult<()> {
        static RUN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let mut next = Some(entry);
        let (entry, handler) = loop {
            // What its session does not listen to any more is passed over.
            let Some(entry) = next else { return Ok(()) };
            if let Some(handler) = entry.subscription.and_then(|id| self.handler(py, id)) {
                break (entry, handler);
            }
            self.router.stats.dropped.add(1);
            next = self.router.next_in_turn(lane);
        };
        let number = turns.begun.fetch_add(1, Ordering::Relaxed);
        let slice = turns.slice.lock().number;
        let in_hand = InHand { next: Some(entry), slice, yielded: false, over: false };
        let turn = Bound::new(
            py,
            Turn {
                state: Arc::clone(self),
                bridge: Arc::clone(bridge),
                turns: Arc::clone(turns),
                number,
                lane,
                context: handler.context.clone_ref(py),
                in_hand: Mutex::new(in_hand),
            },
        )?;
        if self.options.concurrent {
            self.router.end_turn(&bridge.mailbox, lane, None);
        }
        let coroutine = RUN.import(py, "fanwire._sessions", "run")?.call1((&turn,))?;
        let options = PyDict::new(py);
        options.set_item(intern!(py, "context"), handler.context)?;
        let event_loop = bridge.event_loop(py)?;
        let name = intern!(py, "create_task");
        let task = event_loop.call_method(name, (coroutine,), Some(&options))?;
        turns.tasks.lock().insert(number, task.clone().unbind());
        task.call_method1(intern!(py, "add_done_callback"), (turn,)).map(drop)
    }

    /// Tells of messages that were dropped.
    fn heed(&self, py: Python<'_>, bridge: &Arc<Bridge>) {
        for notice in self.router.take_notices(&bridge.mailbox) {
            let Notice::Dropped(lane, count) = notice else { continue };
            let Some(session) = self.router.session_of(lane) else { continue };
            let now = Instant::now();
            let mut told = self.told_of_drops.lock();
            let tell = told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY);
            if tell {
                *told = Some(now);
            }
            drop(told);
            if tell {
                let text = format!(
                    "a handler of session {session:?} does not return in time: {count} of its messages \
                     were dropped"
                );
                logging::log(py, Level::Warning, &text);
            }
            if let Some(on_drop) = &self.options.on_drop
                && let Err(error) = on_drop.call1(py, (session, count, "overflow"))
            {
                error.write_unraisable(py, Some(on_drop.bind(py)));
            }
        }
    }

    /// Adds the figures of sessions and topics to a dict.
    pub fn add_stats(&self, into: &Bound<'_, PyDict>) -> PyResult<()> {
        let Router { stats, spread, .. } = &*self.router;
        let (sessions, topics, subscriptions) = self.router.topic_counts();
        into.set_item("sessions", sessions)?;
        into.set_item("subscribed_topics", topics)?;
        into.set_item("subscriptions", subscriptions)?;
        if let Some(channels) = self.router.channels() {
            into.set_item("confirmed_topics", channels.wishes.counts().1)?;
        }
        into.set_item("delivered", stats.delivered.get())?;
        into.set_item("handler_failed", self.failed.get())?;
        into.set_item("undecodable", self.undecodable.get())?;
        into.set_item("dropped", stats.dropped.get())?;
        let gauges = self.router.gauges();
        into.set_item("queued_messages", gauges.queued_messages)?;
        into.set_item("queued_bytes", gauges.queued_bytes)?;
        into.set_item("wakeups", stats.wakeups.get())?;
        let latency = super::manager::histogram(into.py(), &spread.latency, 1e-9)?;
        into.set_item("delivery_latency_seconds", latency)
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

/// Lanes of sessions have something to do on this loop.
pub fn on_ready(py: Python<'_>, state: &Arc<SessionsState>, bridge: &Arc<Bridge>) -> PyResult<()> {
    state.router.stats.wakeups.add(1);
    state.heed(py, bridge);
    state.begin(py, bridge)
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
struct Turn {
    state: Arc<SessionsState>,
    bridge: Arc<Bridge>,
    turns: Arc<LoopTurns>,
    number: usize,
    lane: LaneId,
    context: Py<PyAny>,
    in_hand: Mutex<InHand>,
}

impl Turn {
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

/// What the loop calls at the end of a turn in which subscriptions changed.
#[pyclass(frozen, module = "fanwire._core", name = "_FlushWishes")]
struct Flush {
    state: Arc<SessionsState>,
}

#[pymethods]
impl Flush {
    fn __call__(&self) {
        self.state.flush();
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
