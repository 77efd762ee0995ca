//! All lanes of a router, and for each event loop the queue of those that are ready.
//!
//! A lane is in at most one ready queue and in the hands of at most one pump; the states in `lane.rs`
//! see to that. Plain data: `router.rs` holds the lock.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::lane::{Entry, Lane, LaneId, LaneLimits, State};
use crate::post::LoopMailbox;

/// An event loop, and what waits for it.
#[derive(Debug)]
struct Slot {
    mailbox: Arc<LoopMailbox>,
    /// Lanes bound to it, so that the slot of a loop that is gone can be used again.
    bound: usize,
    ready: VecDeque<LaneId>,
    given_up: Vec<LaneId>,
    /// Whether the loop was told and has not yet found `ready` and `given_up` empty.
    told: bool,
}

impl Slot {
    fn new(mailbox: Arc<LoopMailbox>) -> Self {
        Self { mailbox, bound: 0, ready: VecDeque::new(), given_up: Vec::new(), told: false }
    }

    fn has_work(&self) -> bool {
        !(self.ready.is_empty() && self.given_up.is_empty())
    }
}

/// What became of an entry that was to be queued.
pub(crate) enum Pushed {
    Queued,
    /// The lane's loop is gone and there is no other.
    NoLoop,
    /// Too much waited for a slow connection: the lane was given up. What waited in it, to be dropped without the lock.
    GivenUp(VecDeque<Entry>),
}

#[derive(Debug, Default)]
pub(crate) struct Lanes {
    all: Vec<Lane>,
    free: Vec<u32>,
    slots: Vec<Slot>,
    open: usize,
    /// Lanes that went over their limits because their loop is behind; perhaps they no longer are.
    behind: Vec<LaneId>,
}

impl Lanes {
    /// A new lane, emptied on the given loop.
    pub fn open(&mut self, mailbox: &Arc<LoopMailbox>) -> LaneId {
        let slot = self.slot(mailbox);
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

    /// The full name of the lane that has an index now.
    pub fn id_at(&self, index: u32) -> LaneId {
        LaneId { index, generation: self.all[index as usize].generation }
    }

    /// The users a lane is connected as; from now on it has none.
    pub fn take_users(&mut self, index: u32) -> SmallVec<[u32; 2]> {
        std::mem::take(&mut self.all[index as usize].users)
    }

    /// Every open lane.
    pub fn all_open(&self) -> Vec<LaneId> {
        let numbered = (0u32..).zip(&self.all).filter(|(_, lane)| lane.state.is_open());
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
        home: Option<&Arc<LoopMailbox>>,
    ) -> Pushed {
        if !self.ensure_living_loop(index, home) {
            return Pushed::NoLoop;
        }
        let lane = &mut self.all[index as usize];
        let id = LaneId { index, generation: lane.generation };
        if lane.is_full_for(entry.payload.text.len(), limits) {
            if lane.state == State::Suspended {
                let queue = lane.clear();
                lane.state = State::Closed;
                self.slots[lane.slot].given_up.push(id);
                return Pushed::GivenUp(queue);
            }
            if !self.behind.contains(&id) {
                self.behind.push(id);
            }
        }
        lane.push(entry);
        if lane.state == State::Idle {
            self.make_ready(index);
        }
        Pushed::Queued
    }

    /// Whether a living loop is so far behind that reading more would only fill memory.
    pub fn are_behind(&mut self, limits: LaneLimits) -> bool {
        let mut behind = std::mem::take(&mut self.behind);
        behind.retain(|id| {
            let Some(lane) = self.get(*id) else { return false };
            let (is_slow, slot) = (lane.state == State::Suspended, lane.slot);
            // Half, so that reading does not stop again at the next message.
            let halved =
                LaneLimits { messages: limits.messages.div_ceil(2), bytes: limits.bytes / 2 };
            let full = lane.is_full_for(0, halved);
            full && !is_slow && !self.slots[slot].mailbox.is_closed()
        });
        self.behind = behind;
        !self.behind.is_empty()
    }

    /// Whether [`Lanes::are_behind`] may have become false.
    pub fn may_have_caught_up(&self) -> bool {
        !self.behind.is_empty()
    }

    /// Moves a lane whose loop is gone to `home`. False if it has no living loop then.
    pub fn ensure_living_loop(&mut self, index: u32, home: Option<&Arc<LoopMailbox>>) -> bool {
        let old = self.all[index as usize].slot;
        if !self.slots[old].mailbox.is_closed() {
            return true;
        }
        let Some(home) = home.filter(|home| !home.is_closed()) else { return false };
        self.slots[old].bound -= 1;
        let slot = self.slot(home);
        self.slots[slot].bound += 1;
        let lane = &mut self.all[index as usize];
        // What the dead loop had in hand is gone with it.
        (lane.slot, lane.state) = (slot, State::Idle);
        if !lane.queue.is_empty() {
            self.make_ready(index);
        }
        true
    }

    /// Takes the first message of up to `most` ready lanes of a loop, round robin.
    pub fn take(
        &mut self,
        mailbox: &Arc<LoopMailbox>,
        most: usize,
        taken: &mut Vec<(LaneId, Entry)>,
    ) {
        let Some(slot) = self.find_slot(mailbox) else { return };
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
        let slot = &mut self.slots[slot];
        slot.told = slot.has_work() || !taken.is_empty();
    }

    /// Says that a lane's send waits for its connection.
    pub fn suspend(&mut self, id: LaneId) {
        if let Some(lane) = self.get(id) {
            lane.state = State::Suspended;
        }
    }

    /// Ends a lane's send; if more waits it goes to the end of the ready queue.
    pub fn finish(&mut self, id: LaneId) {
        let Some(lane) = self.get(id) else { return };
        if matches!(lane.state, State::Sending | State::Suspended) {
            lane.state = State::Idle;
            if !lane.queue.is_empty() {
                self.make_ready(id.index);
            }
        }
    }

    /// Puts a message that was taken back to the front of its lane. Returned if the lane is gone.
    pub fn put_back(&mut self, id: LaneId, entry: Entry) -> Option<Entry> {
        let Some(lane) = self.get(id) else { return Some(entry) };
        lane.unpop(entry);
        if lane.state == State::Sending {
            self.make_ready(id.index);
        }
        None
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

    /// The lanes of a loop that were given up since the last call.
    pub fn take_given_up(&mut self, mailbox: &Arc<LoopMailbox>) -> Vec<LaneId> {
        let slot = self.find_slot(mailbox);
        slot.map(|slot| std::mem::take(&mut self.slots[slot].given_up)).unwrap_or_default()
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
        lane.users.clear();
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
        if let Some(unused) =
            self.slots.iter().position(|slot| slot.bound == 0 && slot.mailbox.is_closed())
        {
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
