//! What a publisher and its task share: the queue, what is under way, and who waits for it.

use std::sync::atomic::AtomicI32;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use tokio::task::AbortHandle;

use super::Settings;
use super::queue::{Counts, Queue};
use super::report::Missing;
use super::sending;
use crate::config::Limits;
use crate::flush::Flush;
use crate::journal::{Journal, Level};
use crate::runtime;
use crate::stats::EventStats;

/// What the publisher and its task share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) settings: Settings,
    pub(super) inner: Mutex<Inner>,
    pub(super) stats: EventStats,
    pub(super) journal: Journal,
    pub(super) utc_offset_seconds: AtomicI32,
}

/// What belongs to one process.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) generation: u64,
    pub(super) queue: Queue,
    /// What the task is sending.
    pub(super) in_hand: Option<InHand>,
    /// What the events channel is to be told.
    pub(super) missing: Missing,
    /// When it was told last.
    pub(super) told: Option<Instant>,
    /// All that were lost for whatever reason.
    pub(super) lost: u64,
    waiters: Vec<Waiter>,
    /// Wakes the task, where it sleeps.
    pub(super) sleeper: Option<Waker>,
    /// Whether the task looks after log lines and stats by itself, while they are few.
    pub(super) dozes: bool,
    /// Whether there is a task.
    pub(super) running: bool,
    pub(super) task: Option<AbortHandle>,
    pub(super) connected: bool,
    pub(super) closed: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct InHand {
    /// The number of the oldest; None where the report goes alone.
    pub(super) first: Option<u64>,
    pub(super) counts: Counts,
    pub(super) bytes: usize,
    pub(super) report: Missing,
}

/// Somebody who waits until everything before a number is done with.
#[derive(Debug)]
struct Waiter {
    before: u64,
    /// Whether it also waits until the events channel has been told of what is missing.
    wants_told: bool,
    lost: u64,
    tell: SyncSender<bool>,
    /// Gone when nobody waits any longer.
    alive: Weak<()>,
}

impl Inner {
    pub(super) fn new(limits: &Limits, closed: Option<Instant>) -> Self {
        Self {
            generation: runtime::generation(),
            queue: Queue::new(limits.max_pending_messages, limits.max_pending_bytes),
            in_hand: None,
            missing: Missing::default(),
            told: None,
            lost: 0,
            waiters: Vec::new(),
            sleeper: None,
            dozes: false,
            running: false,
            task: None,
            connected: false,
            closed,
        }
    }

    /// Notes what was dropped.
    pub(super) fn drop_counted(&mut self, dropped: Counts, stats: &EventStats) {
        if dropped.total() == 0 {
            return;
        }
        self.missing.dropped += dropped;
        self.lost += dropped.total();
        stats.logs_dropped.add(dropped.logs);
        stats.stats_dropped.add(dropped.stats);
        stats.events_dropped.add(dropped.events);
        self.answer();
    }

    /// The oldest message that is not done with.
    fn oldest(&self) -> Option<u64> {
        self.in_hand.and_then(|in_hand| in_hand.first).or_else(|| self.queue.oldest())
    }

    /// Answers those whose messages are done with.
    pub(super) fn answer(&mut self) {
        if self.waiters.is_empty() {
            return;
        }
        let (oldest, lost) = (self.oldest(), self.lost);
        let tells = self.in_hand.is_some_and(|in_hand| !in_hand.report.is_none());
        let owes = tells || !self.missing.is_none();
        self.waiters.retain(|waiter| {
            let waits =
                oldest.is_some_and(|oldest| oldest < waiter.before) || (waiter.wants_told && owes);
            if !waits {
                let whole = waiter.lost == lost;
                let _told_or_gone = waiter.tell.try_send(whole);
            }
            waits
        });
    }
}

impl Core {
    /// The state of this process.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock();
        if inner.generation != runtime::generation() {
            let fresh = Inner::new(&self.settings.limits, inner.closed);
            let Inner { waiters, sleeper, task, .. } = std::mem::replace(&mut *inner, fresh);
            // Forgotten, not dropped: what these would wake are threads of the parent.
            std::mem::forget((waiters, sleeper, task));
        }
        inner
    }

    pub(super) fn start(self: &Arc<Self>) {
        match runtime::spawn(sending::run(Arc::clone(self))) {
            Ok(task) => self.lock().task = Some(task.abort_handle()),
            Err(error) => {
                self.lock().running = false;
                self.stats.outages.add(1);
                self.journal.add(Level::Error, format!("publishing events fails: {error}"));
            }
        }
    }

    pub(super) fn flush(&self, wants_told: bool) -> Flush {
        let ((tell, told), waits) = (sync_channel(1), Arc::new(()));
        let alive = Arc::downgrade(&waits);
        let mut inner = self.lock();
        let (before, lost) = (inner.queue.next(), inner.lost);
        inner.waiters.retain(|waiter| waiter.alive.strong_count() > 0);
        inner.waiters.push(Waiter { before, wants_told, lost, tell, alive });
        inner.answer();
        let sleeper = inner.sleeper.take();
        drop(inner);
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
        Flush::new(told, Some(waits))
    }

    pub(super) fn close(&self) {
        let sleeper = {
            let mut inner = self.lock();
            if inner.closed.is_none() {
                inner.closed = Some(Instant::now());
            }
            inner.sleeper.take()
        };
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    /// Drops what waits; nobody knows what becomes of what is being sent.
    pub(super) fn abandon(&self, inner: &mut Inner) {
        self.lose_in_hand(inner);
        let dropped = inner.queue.clear();
        inner.drop_counted(dropped, &self.stats);
        inner.missing = Missing::default();
        inner.answer();
        if dropped.total() > 0 {
            let Counts { logs, stats, events } = dropped;
            let text = format!(
                "{}: closed before {logs} log lines, {stats} stats and {events} events could be \
                 published",
                self.settings.url.shown
            );
            self.journal.add(Level::Warning, text);
        }
    }

    /// Counts what is being sent as neither come nor lost.
    pub(super) fn lose_in_hand(&self, inner: &mut Inner) {
        let Some(in_hand) = inner.in_hand.take() else { return };
        let unclear = in_hand.counts.total();
        inner.missing.add(in_hand.report);
        inner.missing.unclear += unclear;
        inner.lost += unclear;
        self.stats.unclear.add(unclear);
        inner.answer();
    }
}
