//! What the pumps of event loops do with the router: they take what is ready, say how their sends end,
//! and give up lanes that do not get on; and how a listener keeps pace with them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lane::{Entry, LaneId};
use crate::lanes::{GaveUp, Notice};
use crate::post::LoopMailbox;
use crate::router::{Inner, Router};
use crate::runtime;

/// How long one event loop may hold up others.
const PATIENCE: Duration = Duration::from_millis(500);

impl Router {
    /// Ends the sends in `done` and takes the first message of up to `most` ready lanes of a loop,
    /// round robin.
    pub fn take(
        self: &Arc<Self>,
        mailbox: &Arc<LoopMailbox>,
        done: &mut Vec<LaneId>,
        most: usize,
        taken: &mut Vec<(LaneId, Entry)>,
    ) {
        let mut inner = self.inner.lock();
        for id in done.drain(..) {
            inner.lanes.finish(id);
        }
        inner.lanes.take(mailbox, most, taken);
        if inner.recovery.has_lags() {
            self.end_lags(&mut inner);
        }
        if taken.is_empty() {
            self.tell(inner);
        }
    }

    /// Waits while an event loop is so far behind that reading more would only fill memory. The
    /// broker keeps what is not read, as it does for a listener written in Python. Where other loops
    /// are held up by it, only for [`PATIENCE`]: then its full lanes are given up.
    pub async fn keep_pace(self: &Arc<Self>) {
        let began = Instant::now();
        while self.is_behind() {
            if began.elapsed() >= PATIENCE {
                self.give_up_those_who_hold_up_others();
            }
            // Polled, because a waker would be one more lock to share with the child of a fork.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn give_up_those_who_hold_up_others(self: &Arc<Self>) {
        let _gate = runtime::gate();
        let mut spilled = Vec::new();
        let mut inner = self.inner.lock();
        let ids = inner.lanes.hold_up_others(self.policy.overflow);
        self.give_up_all(&mut inner, ids, &mut spilled);
        self.stats.dropped.add(spilled.len() as u64);
        self.tell(inner);
    }

    fn is_behind(&self) -> bool {
        let _gate = runtime::gate();
        self.inner.lock().lanes.are_behind(self.policy.limits)
    }

    /// Waits until what is queued has been handed over, but for those who are slow.
    pub async fn drained(&self) {
        loop {
            {
                let _gate = runtime::gate();
                if self.inner.lock().lanes.are_drained() {
                    return;
                }
            }
            // Polled, because a waker would be one more lock to share with the child of a fork.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Says that a loop runs, though sends are suspended on it. To be called every now and then while
    /// they are: this is when connections turn out to be slow.
    pub fn see(self: &Arc<Self>, mailbox: &Arc<LoopMailbox>) {
        let mut inner = self.inner.lock();
        let (mut spilled, lost, over) =
            inner.lanes.see(mailbox, self.policy.limits, self.policy.overflow);
        for lane in lost {
            inner.lag(lane);
        }
        self.give_up_all(&mut inner, over, &mut spilled);
        self.stats.dropped.add(spilled.len() as u64);
        self.tell(inner);
    }

    fn give_up_all(&self, inner: &mut Inner, ids: Vec<LaneId>, spilled: &mut Vec<Entry>) {
        for id in ids {
            if inner.lanes.get(id).is_some() {
                inner.unregister(id.index);
                spilled.extend(inner.lanes.give_up(id, GaveUp::Overflow, 0));
                self.stats.overflowed.add(1);
            }
        }
    }

    /// Says that a lane's send waits for its connection, and ends the sends in `done`. With `abandon`,
    /// nobody on that loop is at work any more.
    pub fn suspend(
        self: &Arc<Self>,
        mailbox: &Arc<LoopMailbox>,
        id: LaneId,
        done: &mut Vec<LaneId>,
        abandon: bool,
    ) {
        self.inner.lock().lanes.suspend(id);
        self.finish(mailbox, done, abandon);
    }

    /// Ends sends without taking more. With `abandon`, nobody on that loop is at work any more, so
    /// that it is told again if lanes are ready.
    pub fn finish(
        self: &Arc<Self>,
        mailbox: &Arc<LoopMailbox>,
        done: &mut Vec<LaneId>,
        abandon: bool,
    ) {
        let mut inner = self.inner.lock();
        for id in done.drain(..) {
            inner.lanes.finish(id);
        }
        if abandon {
            inner.lanes.abandon(mailbox);
        }
        self.tell(inner);
    }

    /// Ends the sends in `done`, and puts back what was taken and not sent. The loop is told of it at
    /// the next message, or by [`Router::retell`].
    pub fn put_back(
        &self,
        mailbox: &Arc<LoopMailbox>,
        done: &mut Vec<LaneId>,
        taken: impl IntoIterator<Item = (LaneId, Entry)>,
    ) {
        let mut inner = self.inner.lock();
        let homeless: Vec<Entry> =
            taken.into_iter().filter_map(|(id, entry)| inner.lanes.put_back(id, entry)).collect();
        for id in done.drain(..) {
            inner.lanes.finish(id);
        }
        inner.lanes.abandon(mailbox);
        drop(inner);
        self.stats.dropped.add(homeless.len() as u64);
    }

    /// Tells the loops that have something to do and do not know it.
    pub fn retell(self: &Arc<Self>) {
        self.tell(self.inner.lock());
    }

    /// Gives up a lane whose send does not end: out of the maps at once. False if it is not open.
    pub fn give_up(self: &Arc<Self>, id: LaneId) -> bool {
        let mut inner = self.inner.lock();
        if inner.lanes.get(id).is_none() {
            return false;
        }
        inner.unregister(id.index);
        let queue = inner.lanes.give_up(id, GaveUp::Deadline, 0);
        self.tell(inner);
        self.stats.timed_out.add(1);
        self.stats.dropped.add(queue.len() as u64);
        true
    }

    /// What a loop is to be told since the last call.
    pub fn take_notices(&self, mailbox: &Arc<LoopMailbox>) -> Vec<Notice> {
        self.inner.lock().lanes.take_notices(mailbox)
    }

    /// Frees the index of a lane that was given up.
    pub fn release(&self, id: LaneId) {
        self.inner.lock().lanes.release(id);
    }

    /// Whether the lane is open.
    pub fn is_open(&self, id: LaneId) -> bool {
        self.inner.lock().lanes.get(id).is_some()
    }
}
