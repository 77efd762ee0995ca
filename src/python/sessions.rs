//! The handlers of sessions.
//!
//! The core knows a subscription by number; the handlers stand in a slab indexed by that number,
//! touched by attached threads only. When a session's lane is ready it gets a turn, in the context of
//! the subscriber, that runs the session's handlers one after another until nothing waits.
//! No lock here is held while Python runs.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::bridge::{self, Bridge};
use super::callbacks;
use super::decode::Parsed;
use super::logging;
use super::once::{Once, intern};
use super::turns::{Begin, LoopTurns, turn};
use super::walk;
use crate::journal::Level;
use crate::lane::{Entry, LaneId};
use crate::lanes::Notice;
use crate::router::{Policy, Router};
use crate::sessions::Channels;
use crate::stats::Counter;
use crate::topics::SubscriptionId;

/// Turns begun in one turn of the event loop; the others wait for the next.
const TURNS_AT_ONCE: usize = 16;
/// The least time between two log lines about dropped messages.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What is called for a subscription.
pub struct Handler {
    pub call: Py<PyAny>,
    pub topic: Py<PyString>,
    /// The `contextvars` context of the subscriber.
    pub context: Py<PyAny>,
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
    pub options: Options,
    handlers: Mutex<Vec<Option<(u32, Handler)>>>,
    pub parsed: Parsed,
    told_of_drops: Mutex<Option<Instant>>,
    told_of_skipped: Mutex<Option<Instant>>,
    /// Handlers that raised.
    pub failed: Counter,
    /// Messages that have no form in Python.
    pub undecodable: Counter,
}

impl SessionsState {
    /// Sessions without any.
    pub fn new(policy: Policy, channels: Option<Channels>, options: Options) -> Arc<Self> {
        let state = Arc::new(Self {
            router: Router::with_channels(policy, channels),
            options,
            handlers: Mutex::default(),
            parsed: Parsed::default(),
            told_of_drops: Mutex::default(),
            told_of_skipped: Mutex::default(),
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
        static COPY: Once<Py<PyAny>> = Once::new();
        let context = COPY.import(py, "contextvars", "copy_context")?.call0()?;
        // Subscriptions of one context share it, so that their messages share a turn.
        let known = self.router.subscription_of(session_id).and_then(|id| self.handler(py, id));
        let context = match known {
            Some(known) if context.eq(&known.context)? => known.context,
            _ => context.unbind(),
        };
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
        let old: Vec<_> = ended.into_iter().filter_map(|id| self.take_handler(id)).collect();
        drop(old); // without the lock
        self.flush_soon(py, &bridge::running(py)?)
    }

    /// For the garbage collector: handlers may know the object they are subscribed with. Only where
    /// nobody else has this: then it ends with that object.
    pub fn traverse(slf: &Arc<Self>, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if Arc::strong_count(slf) > 1 {
            return Ok(());
        }
        let Some(handlers) = slf.handlers.try_lock() else { return Ok(()) };
        for (_, handler) in handlers.iter().flatten() {
            visit.call(&handler.call)?;
            visit.call(&handler.context)?;
        }
        visit.call(slf.options.on_drop.as_ref())
    }

    /// Lets go of all handlers.
    pub fn clear(&self) {
        let handlers = std::mem::take(&mut *self.handlers.lock());
        drop(handlers); // without the lock
    }

    fn take_handler(&self, id: SubscriptionId) -> Option<Handler> {
        let mut handlers = self.handlers.lock();
        let entry = handlers.get_mut(id.index as usize)?;
        if entry.as_ref()?.0 != id.generation {
            return None;
        }
        entry.take().map(|(_, handler)| handler)
    }

    /// Has the listener told of changed wishes at the end of this turn of the loop, all at once.
    fn flush_soon(&self, py: Python<'_>, bridge: &Arc<Bridge>) -> PyResult<()> {
        if self.router.channels().is_none() {
            return Ok(());
        }
        let turns = self.turns_on(bridge);
        if turns.flushing.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let flush = Flush { router: Arc::clone(&self.router), turns };
        let event_loop = bridge.event_loop(py)?;
        event_loop.call_method1(intern!(py, "call_soon"), (flush,)).map(drop)
    }

    /// The handler of a subscription, and its context; None once it has ended.
    pub fn handler(&self, py: Python<'_>, id: SubscriptionId) -> Option<Handler> {
        let handlers = self.handlers.lock();
        let (generation, handler) = handlers.get(id.index as usize)?.as_ref()?;
        (*generation == id.generation).then(|| Handler {
            call: handler.call.clone_ref(py),
            topic: handler.topic.clone_ref(py),
            context: handler.context.clone_ref(py),
        })
    }

    /// The turns of these sessions on a loop.
    pub fn turns_on(&self, bridge: &Arc<Bridge>) -> Arc<LoopTurns> {
        bridge.turns_of(std::ptr::from_ref(self) as usize)
    }

    /// Begins the turns of lanes that are ready on a loop, each a Task of its own: a handler for each
    /// message.
    pub fn begin(self: &Arc<Self>, py: Python<'_>, bridge: &Arc<Bridge>) -> PyResult<()> {
        let taken = self.router.begin_turns(&bridge.mailbox, TURNS_AT_ONCE);
        if taken.is_empty() {
            return Ok(());
        }
        let turns = self.turns_on(bridge);
        let event_loop = bridge.event_loop(py)?;
        let create_task = event_loop.getattr(intern!(py, "create_task"))?;
        for (lane, entry) in taken {
            let Some((entry, handler)) = self.live(py, lane, entry) else { continue };
            let turn = Bound::new(py, turn(py, self, bridge, &turns, (lane, entry), &handler))?;
            // In a copy of the subscriber's context, for others are under way.
            let made = handler.context.call_method1(py, intern!(py, "run"), (&create_task, &turn));
            if let Err(error) = made {
                turn.get().give_up();
                error.write_unraisable(py, Some(&event_loop));
            }
        }
        let begin = Begin { state: Arc::clone(self), bridge: Arc::clone(bridge) };
        event_loop.call_method1(intern!(py, "call_soon"), (begin,)).map(drop)
    }

    /// Counts a message that has no form in Python, and says so, but not all the time.
    pub fn skip(&self, py: Python<'_>, handler: &Handler, error: &PyErr) {
        self.undecodable.add(1);
        if is_due(&self.told_of_skipped) {
            let topic = handler.topic.bind(py).to_string_lossy().into_owned();
            let text = format!("a message of topic {topic:?} was skipped: {}", error.value(py));
            logging::log(py, Level::Error, &text);
        }
    }

    /// A message that somebody still listens to, beginning with `entry`, and its handler; None when
    /// there is none, and the lane's turn is over.
    pub fn live(&self, py: Python<'_>, lane: LaneId, entry: Entry) -> Option<(Entry, Handler)> {
        let mut next = Some(entry);
        while let Some(entry) = next {
            if let Some(handler) = entry.subscription.and_then(|id| self.handler(py, id)) {
                return Some((entry, handler));
            }
            self.router.stats.dropped.add(1);
            next = self.router.next_in_turn(lane);
        }
        None
    }

    /// Tells of messages that were dropped.
    fn heed(&self, py: Python<'_>, bridge: &Arc<Bridge>) {
        for notice in self.router.take_notices(&bridge.mailbox) {
            let (lane, count) = match notice {
                Notice::Dropped(lane, count) => (lane, count),
                Notice::Refused(id) => {
                    drop(self.take_handler(id));
                    continue;
                }
                // Only connections are given up.
                Notice::GivenUp(..) => continue,
            };
            let Some(session) = self.router.session_of(lane) else { continue };
            if is_due(&self.told_of_drops) {
                let text = format!(
                    "a handler of session {session:?} does not return in time: {count} of its messages \
                     were dropped"
                );
                logging::log(py, Level::Warning, &text);
            }
            let on_drop = self.options.on_drop.as_ref();
            callbacks::call(py, on_drop, (session, count, "overflow"));
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

/// Whether it is time to tell again.
fn is_due(told: &Mutex<Option<Instant>>) -> bool {
    let mut told = told.lock();
    let due = told.is_none_or(|told| told.elapsed() >= TELL_EVERY);
    if due {
        *told = Some(Instant::now());
    }
    due
}

/// Lanes of sessions have something to do on this loop.
pub fn on_ready(py: Python<'_>, state: &Arc<SessionsState>, bridge: &Arc<Bridge>) -> PyResult<()> {
    state.router.stats.wakeups.add(1);
    state.heed(py, bridge);
    if state.options.concurrent { state.begin(py, bridge) } else { walk::start(py, state, bridge) }
}

/// What the loop calls at the end of a turn in which subscriptions changed.
#[pyclass(frozen, module = "fanwire._core", name = "_FlushWishes")]
struct Flush {
    router: Arc<Router>,
    turns: Arc<LoopTurns>,
}

#[pymethods]
impl Flush {
    fn __call__(&self) {
        self.turns.flushing.store(false, Ordering::Release);
        if let Some(channels) = self.router.channels() {
            channels.wishes.flush();
        }
    }
}
