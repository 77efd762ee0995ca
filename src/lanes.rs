//! All lanes of a router, and for each event loop the queue of those that are ready.
//!
//! A lane is in at most one ready queue and in the hands of at most one pump; the states in `lane.rs`
//! see to that. Plain data: `router.rs` holds the lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::chunks::Chunks;
use crate::index_set::IndexSet;
use crate::lane::{Entry, Lane, LaneId, LaneLimits, Overflow, State};
use crate::post::{Bell, LoopMailbox};
use crate::topics::SubscriptionId;

/// An event loop, and what waits for it.
#[derive(Debug)]
struct Slot {
    mailbox: Arc<LoopMailbox>,
    /// Lanes bound to it, so that the slot of a loop that is gone can be used again.
    bound: usize,
    ready: VecDeque<LaneId>,
    notices: Vec<Notice>,
    /// When the loop was last seen to run while sends were suspended on it.
    seen: Option<Instant>,
    /// Whether the loop was told and has not yet found `ready` and `notices` empty.
    told: bool,
    /// Whether it holds up other loops, since it last took something.
    stuck: bool,
}

impl Slot {
    fn new(mailbox: Arc<LoopMailbox>) -> Self {
        Self {
            mailbox,
            bound: 0,
            ready: VecDeque::new(),
            notices: Vec::new(),
            seen: None,
            told: false,
            stuck: false,
        }
    }

    fn has_work(&self) -> bool {
        !(self.ready.is_empty() && self.notices.is_empty())
    }
}

/// What became of an entry that was to be queued.
pub(crate) enum Pushed {
    /// It is in the lane; perhaps in the place of an older one.
    Queued { coalesced: bool },
    /// As `Queued`, and older ones made room; to be dropped without the lock.
    Instead { dropped: Vec<Entry>, coalesced: bool },
    /// The lane's loop is gone and there is no other.
    NoLoop,
    /// Too much waited for a slow connection: the lane was given up. What waited in it, the new entry
    /// included, to be dropped without the lock.
    GivenUp { entries: VecDeque<Entry>, coalesced: bool },
}

/// Why a lane was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaveUp {
    /// Too much waited in it.
    Overflow,
    /// Its send did not end in time.
    Deadline,
}

/// What a loop is to be told of, besides lanes that are ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A lane was given up, with so many messages that waited in it; to be
    /// [released](crate::router::Router::release).
    GivenUp(LaneId, GaveUp, usize),
    /// So many messages were dropped from a lane to make room.
    Dropped(LaneId, usize),
    /// The broker refused a subscription, and it has ended.
    Refused(SubscriptionId),
}

#[derive(Debug)]
pub(crate) struct Lanes {
    /// The closed mailbox of no loop, to which new lanes belong.
    nowhere: Arc<LoopMailbox>,
    all: Chunks<Lane>,
    free: Vec<u32>,
    slots: Vec<Slot>,
    open: usize,
    /// Lanes that went over their limits because their loop is behind; perhaps they no longer are.
    behind: Vec<LaneId>,
}

impl Default for Lanes {
    fn default() -> Self {
        let silent: Bell = Box::new(|| {});
        let nowhere = Arc::new(LoopMailbox::new(silent, crate::runtime::generation()));
        nowhere.close();
        let (free, slots, behind) = (Vec::new(), Vec::new(), Vec::new());
        Self { nowhere, all: Chunks::default(), free, slots, open: 0, behind }
    }
}

impl Lanes {
    /// A new lane, to be [bound](Lanes::bind) to a loop. Until then its messages wait, or go to the
    /// home loop of the listener that routes one to it.
    pub fn open(&mut self) -> LaneId {
        let nowhere = &self.nowhere;
        let known = self.slots.iter().position(|slot| Arc::ptr_eq(&slot.mailbox, nowhere));
        let slot = known.unwrap_or_else(|| {
            self.slots.push(Slot::new(Arc::clone(&self.nowhere)));
            self.slots.len() - 1
        });
        self.slots[slot].bound += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.all.push(Lane::default());
            index_of_last(self.all.len())
        });
        self.open += 1;
        let lane = &mut self.all[index as usize];
        (lane.state, lane.slot) = (State::Idle, slot);
        LaneId { index, generation: lane.generation }
    }

    /// The lane, if it is open.
    pub fn get(&mut self, id: LaneId) -> Option<&mut Lane> {
        let lane = self.all.get_mut(id.index as usize)?;
        (lane.generation == id.generation && lane.state.is_open()).then_some(lane)
    }

    /// Whether the lane that has an index now is open.
    pub fn is_open(&self, index: u32) -> bool {
        self.all[index as usize].state.is_open()
    }

    /// The full name of the lane that has an index now.
    pub fn id_at(&self, index: u32) -> LaneId {
        LaneId { index, generation: self.all[index as usize].generation }
    }

    /// The users a lane is connected as; from now on it has none.
    pub fn take_users(&mut self, index: u32) -> IndexSet {
        std::mem::take(&mut self.all[index as usize].users)
    }

    /// Every open lane.
    pub fn all_open(&self) -> Vec<LaneId> {
        let numbered = (0u32..).zip(self.all.iter()).filter(|(_, lane)| lane.state.is_open());
        numbered.map(|(index, lane)| LaneId { index, generation: lane.generation }).collect()
    }

    /// Open lanes, queued messages, queued bytes.
    pub fn totals(&self) -> (usize, usize, usize) {
        let messages = self.all.iter().map(|lane| lane.queue.len()).sum();
        (self.open, messages, self.all.iter().map(|lane| lane.bytes).sum())
    }

    /// Queues an entry in an open lane. `home` is the loop that takes over lanes of a dead loop.
    pub fn push(
        &mut self,
        index: u32,
        entry: Entry,
        limits: LaneLimits,
        policy: Overflow,
        home: Option<&Arc<LoopMailbox>>,
    ) -> Pushed {
        if !self.ensure_living_loop(index, home) {
            return Pushed::NoLoop;
        }
        let lane = &mut self.all[index as usize];
        let id = LaneId { index, generation: lane.generation };
        // Most often nothing waits: nothing to take the place of, and no limit to keep.
        if lane.queue.is_empty() {
            lane.push(entry);
            if lane.state == State::Idle {
                lane.state = State::Ready;
                self.slots[lane.slot].ready.push_back(id);
            }
            return Pushed::Queued { coalesced: false };
        }
        // What is left to be queued, unless it took the place of an older one.
        let left = lane.overwrite(entry).err();
        let mut dropped = Vec::new();
        while match &left {
            Some(entry) => lane.is_full_for(entry.payload.text.len(), limits),
            None => lane.is_over(limits), // it is larger than the older one
        } {
            let slot = &self.slots[lane.slot];
            if !slot.stuck && !lane.is_slow(slot.seen) {
                if !std::mem::replace(&mut lane.listed, true) {
                    self.behind.push(id);
                }
                break;
            }
            let Some(old) = lane.make_room(policy) else {
                let coalesced = left.is_none();
                if let Some(entry) = left {
                    lane.push(entry);
                }
                let mut entries = self.give_up(id, GaveUp::Overflow, dropped.len());
                entries.extend(dropped);
                return Pushed::GivenUp { entries, coalesced };
            };
            dropped.push(old);
        }
        let coalesced = left.is_none();
        if let Some(entry) = left {
            lane.push(entry);
        }
        if lane.state == State::Idle {
            self.make_ready(index);
        }
        if dropped.is_empty() {
            return Pushed::Queued { coalesced };
        }
        let count = dropped.len();
        let notices = &mut self.slots[self.all[index as usize].slot].notices;
        match notices.last_mut() {
            Some(Notice::Dropped(last, so_far)) if *last == id => *so_far += count,
            _ => notices.push(Notice::Dropped(id, count)),
        }
        Pushed::Instead { dropped, coalesced }
    }

    /// Gives up an open lane; its loop will be told, with `besides` added to the count of what waited
    /// in it. Returns that.
    pub fn give_up(&mut self, id: LaneId, why: GaveUp, besides: usize) -> VecDeque<Entry> {
        let lane = &mut self.all[id.index as usize];
        lane.state = State::Closed;
        let queue = lane.clear();
        self.slots[lane.slot].notices.push(Notice::GivenUp(id, why, queue.len() + besides));
        queue
    }

    /// Whether a living loop is so far behind that reading more would only fill memory.
    pub fn are_behind(&mut self, limits: LaneLimits) -> bool {
        // Half, so that reading does not stop again at the next message.
        let halved = LaneLimits { messages: limits.messages.div_ceil(2), bytes: limits.bytes / 2 };
        let mut behind = std::mem::take(&mut self.behind);
        behind.retain(|id| {
            let Some(lane) = self.get(*id) else { return false };
            let (is_full, slot) = (lane.is_full_for(0, halved), lane.slot);
            let Slot { seen, stuck, .. } = self.slots[slot];
            let is_slow = stuck || self.get(*id).is_some_and(|lane| lane.is_slow(seen));
            let is_behind = is_full && !is_slow && !self.slots[slot].mailbox.is_closed();
            if !is_behind && let Some(lane) = self.get(*id) {
                lane.listed = false;
            }
            is_behind
        });
        self.behind = behind;
        !self.behind.is_empty()
    }

    /// The lanes that are behind and are to be given up for it, if there are loops which are not
    /// behind, and which they hold up. Where the oldest message makes room, none is given up: it does
    /// so from now on.
    pub fn hold_up_others(&mut self, policy: Overflow) -> Vec<LaneId> {
        let stuck: Vec<usize> =
            self.behind.iter().map(|id| self.all[id.index as usize].slot).collect();
        let others = self.slots.iter().enumerate().any(|(index, slot)| {
            slot.bound > 0 && !slot.mailbox.is_closed() && !stuck.contains(&index)
        });
        if !others {
            return Vec::new();
        }
        if policy == Overflow::DropOldest {
            for slot in stuck {
                self.slots[slot].stuck = true;
            }
            return Vec::new();
        }
        std::mem::take(&mut self.behind)
    }

    /// Moves a lane whose loop is gone to `home`. False if it has no living loop then.
    fn ensure_living_loop(&mut self, index: u32, home: Option<&Arc<LoopMailbox>>) -> bool {
        let old = self.all[index as usize].slot;
        if !self.slots[old].mailbox.is_closed() {
            return true;
        }
        // A connection of the process this one was forked from is that one's to write to.
        if self.slots[old].mailbox.is_foreign() {
            return false;
        }
        let Some(home) = home.filter(|home| !home.is_closed()) else { return false };
        self.bind(index, home);
        true
    }

    /// Has a lane emptied on a loop, unless it has a living one.
    pub fn bind(&mut self, index: u32, mailbox: &Arc<LoopMailbox>) {
        let old = self.all[index as usize].slot;
        if !self.slots[old].mailbox.is_closed() {
            return;
        }
        self.slots[old].bound -= 1;
        let slot = self.slot(mailbox);
        self.slots[slot].bound += 1;
        let lane = &mut self.all[index as usize];
        // What the dead loop had in hand is gone with it.
        (lane.slot, lane.state) = (slot, State::Idle);
        if !lane.queue.is_empty() {
            self.make_ready(index);
        }
    }

    /// Takes the first message of up to `most` ready lanes of a loop, round robin.
    pub fn take(
        &mut self,
        mailbox: &Arc<LoopMailbox>,
        most: usize,
        taken: &mut Vec<(LaneId, Entry)>,
    ) {
        let Some(slot) = self.find_slot(mailbox) else { return };
        self.slots[slot].stuck = false;
        while taken.len() < most {
            let Some(id) = self.slots[slot].ready.pop_front() else { break };
            let Some(lane) = self.get(id) else { continue };
            if let Some(entry) = lane.pop() {
                lane.state = State::Sending;
                taken.push((id, entry));
            } else {
                lane.state = State::Idle;
            }
        }
        // Whoever takes nothing stops looking, so that what comes next, or waits to be heeded, rings.
        self.slots[slot].told = !taken.is_empty();
    }

    /// Says that a loop runs, though sends are suspended on it. What went over its limits before its
    /// connection was known to be slow is dealt with now. Returns what made room, to be dropped
    /// without the lock, the lanes it was in, and the lanes that are to be given up.
    pub fn see(
        &mut self,
        mailbox: &Arc<LoopMailbox>,
        limits: LaneLimits,
        policy: Overflow,
    ) -> (Vec<Entry>, Vec<LaneId>, Vec<LaneId>) {
        let (mut spilled, mut lost, mut over) = (Vec::new(), Vec::new(), Vec::new());
        let Some(slot) = self.find_slot(mailbox) else { return (spilled, lost, over) };
        self.slots[slot].seen = Some(Instant::now());
        for id in self.behind.clone() {
            let seen = self.slots[slot].seen;
            let Some(lane) = self.get(id).filter(|lane| lane.slot == slot && lane.is_slow(seen))
            else {
                continue;
            };
            let before = spilled.len();
            while lane.is_over(limits) {
                let Some(entry) = lane.make_room(policy) else {
                    over.push(id);
                    break;
                };
                spilled.push(entry);
            }
            if spilled.len() > before {
                self.slots[slot].notices.push(Notice::Dropped(id, spilled.len() - before));
                lost.push(id);
            }
        }
        (spilled, lost, over)
    }

    /// Whether nothing waits that could still be handed over soon: a slow subscriber's own is not
    /// waited for.
    pub fn are_drained(&self) -> bool {
        self.all.iter().filter(|lane| lane.state.is_open()).all(|lane| {
            let slot = &self.slots[lane.slot];
            let is_empty = lane.queue.is_empty() && !lane.is_in_hand();
            is_empty || slot.mailbox.is_closed() || lane.is_slow(slot.seen)
        })
    }

    /// Says that a lane's send waits for its connection.
    pub fn suspend(&mut self, id: LaneId) {
        if let Some(lane) = self.get(id) {
            lane.state = State::Suspended;
            lane.suspended = Some(Instant::now());
        }
    }

    /// Says whether a handler of a session waits for something. What counts is how long ago the first
    /// one of this turn began to: a session whose handlers take a little time each is slow as well.
    pub fn set_waiting(&mut self, id: LaneId, waits: bool) {
        let Some(lane) = self.get(id).filter(|lane| lane.is_in_hand()) else { return };
        lane.state = if waits { State::Suspended } else { State::Sending };
        if waits && lane.suspended.is_none() {
            lane.suspended = Some(Instant::now());
        }
    }

    /// Ends a lane's send; if more waits it goes to the end of the ready queue.
    pub fn finish(&mut self, id: LaneId) {
        let Some(lane) = self.get(id) else { return };
        if lane.is_in_hand() {
            (lane.state, lane.suspended) = (State::Idle, None);
            if !lane.queue.is_empty() {
                self.make_ready(id.index);
            }
        }
    }

    /// Puts a message that was taken back to the front of its lane. Returned if the lane is gone.
    pub fn put_back(&mut self, id: LaneId, entry: Entry) -> Option<Entry> {
        let Some(lane) = self.get(id) else { return Some(entry) };
        lane.unpop(entry);
        if matches!(lane.state, State::Sending | State::Idle) {
            self.make_ready(id.index);
        }
        None
    }

    /// Puts a message that was taken back to the front of its lane, whose turn is about to end.
    /// Returned if the lane is gone.
    pub fn unread(&mut self, id: LaneId, entry: Entry) -> Option<Entry> {
        let Some(lane) = self.get(id) else { return Some(entry) };
        lane.unpop(entry);
        None
    }

    /// Has a lane's loop told of something.
    pub fn notify(&mut self, id: LaneId, notice: Notice) {
        if let Some(slot) = self.get(id).map(|lane| lane.slot) {
            self.slots[slot].notices.push(notice);
        }
    }

    /// Whether somebody has one of the lane's messages in hand.
    pub fn is_in_hand(&mut self, id: LaneId) -> bool {
        self.get(id).is_some_and(|lane| lane.is_in_hand())
    }

    /// Forgets that a loop was told, because nobody there is at work any more.
    pub fn abandon(&mut self, mailbox: &Arc<LoopMailbox>) {
        if let Some(slot) = self.find_slot(mailbox) {
            self.slots[slot].told = false;
        }
    }

    /// The loops that have work and do not know it; from now on they do.
    pub fn tell_all(&mut self) -> impl Iterator<Item = Arc<LoopMailbox>> {
        self.slots.iter_mut().filter(|slot| !slot.told && slot.has_work()).map(|slot| {
            slot.told = true;
            Arc::clone(&slot.mailbox)
        })
    }

    /// What a loop is to be told since the last call.
    pub fn take_notices(&mut self, mailbox: &Arc<LoopMailbox>) -> Vec<Notice> {
        let slot = self.find_slot(mailbox);
        slot.map(|slot| std::mem::take(&mut self.slots[slot].notices)).unwrap_or_default()
    }

    /// Frees the index of a lane that was given up.
    pub fn release(&mut self, id: LaneId) {
        let lane = &self.all[id.index as usize];
        if lane.generation == id.generation && lane.state == State::Closed {
            drop(self.free(id.index));
        }
    }

    /// Frees a lane. Returns what waited, to be dropped without the lock: tickets ring bells.
    pub fn free(&mut self, index: u32) -> VecDeque<Entry> {
        let lane = &mut self.all[index as usize];
        let queue = lane.clear();
        (lane.users, lane.listed, lane.suspended) = (IndexSet::default(), false, None);
        lane.state = State::Free;
        lane.generation = lane.generation.wrapping_add(1);
        self.slots[lane.slot].bound -= 1;
        self.free.push(index);
        self.open -= 1;
        queue
    }

    fn make_ready(&mut self, index: u32) {
        let lane = &mut self.all[index as usize];
        lane.state = State::Ready;
        let id = LaneId { index, generation: lane.generation };
        self.slots[lane.slot].ready.push_back(id);
    }

    fn find_slot(&self, mailbox: &Arc<LoopMailbox>) -> Option<usize> {
        self.slots.iter().position(|slot| Arc::ptr_eq(&slot.mailbox, mailbox))
    }

    fn slot(&mut self, mailbox: &Arc<LoopMailbox>) -> usize {
        if let Some(slot) = self.find_slot(mailbox) {
            return slot;
        }
        let fresh = Slot::new(Arc::clone(mailbox));
        if let Some(unused) = self.slots.iter().position(|slot| {
            slot.bound == 0
                && slot.mailbox.is_closed()
                && !Arc::ptr_eq(&slot.mailbox, &self.nowhere)
        }) {
            self.slots[unused] = fresh;
            return unused;
        }
        self.slots.push(fresh);
        self.slots.len() - 1
    }
}

fn index_of_last(len: usize) -> u32 {
    u32::try_from(len - 1).unwrap_or_else(|_| unreachable!("2^32 lanes do not fit into memory"))
}
