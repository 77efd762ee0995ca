//! A subscriber's bounded queue.
//!
//! A lane gives order (one message at a time), isolation (a slow subscriber fills its own lane and no
//! other) and a place for limits. It is passive: `router.rs` moves it through its states.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::coalesce::Class;
use crate::index_set::IndexSet;
use crate::message::Payload;
use crate::post::Reply;
use crate::queue::Queue;
use crate::topics::SubscriptionId;

/// Names a lane. The generation tells a lane from an older one that had the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneId {
    /// Index of the lane, and of what belongs to it in the binding's slab.
    pub index: u32,
    /// How often the index had been used before.
    pub generation: u32,
}

impl LaneId {
    /// One number, for a Python int.
    pub fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The inverse of [`LaneId::pack`].
    pub fn unpack(packed: u64) -> Self {
        #[allow(clippy::cast_possible_truncation)] // the two halves
        let (index, generation) = (packed as u32, (packed >> 32) as u32);
        Self { index, generation }
    }
}

/// A send that is suspended for so long is the connection's doing.
pub const SLOW_AFTER: Duration = Duration::from_millis(250);

/// How much may wait in one lane whose connection is slow ([`SLOW_AFTER`]). When only the event loop
/// is behind, the listener reads more slowly instead: nobody is to blame then.
#[derive(Clone, Copy, Debug)]
pub struct LaneLimits {
    /// Messages.
    pub messages: usize,
    /// Bytes of payload. A single message may be larger if nothing else waits.
    pub bytes: usize,
}

/// What happens when too much waits for a slow connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It is disconnected.
    #[default]
    Disconnect,
    /// Its oldest message makes room.
    DropOldest,
    /// Its oldest progress message makes room; where none waits, it is disconnected.
    DropProgress,
}

impl Default for LaneLimits {
    fn default() -> Self {
        Self { messages: 1024, bytes: 4 << 20 }
    }
}

/// A message in a lane.
#[derive(Debug)]
pub struct Entry {
    /// The message.
    pub payload: Payload,
    /// Answered when the last entry that shares it is gone, however it went.
    pub ticket: Option<Arc<Reply>>,
    /// The subscription through which it came to a session's lane.
    pub subscription: Option<SubscriptionId>,
    /// That of the payload, here so that a search need not follow pointers.
    stream: Option<NonZeroU64>,
}

impl Entry {
    /// A message for one lane.
    pub fn new(payload: Payload, ticket: Option<Arc<Reply>>) -> Self {
        let stream = payload.class.stream;
        Self { payload, ticket, subscription: None, stream }
    }

    /// A message for a session.
    pub fn of(subscription: SubscriptionId, payload: Payload) -> Self {
        Self { subscription: Some(subscription), ..Self::new(payload, None) }
    }
}

/// Where a lane stands. It is in at most one ready queue and in the hands of at most one pump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// Not in use.
    #[default]
    Free,
    /// Nothing waits and nothing is being sent.
    Idle,
    /// Something waits; the lane stands in its loop's ready queue.
    Ready,
    /// A pump has one of its messages in hand, and is at work.
    Sending,
    /// A pump has one of its messages in hand, and waits for the connection to take it.
    Suspended,
    /// Given up; waits for its loop to let go of what belongs to it.
    Closed,
}

impl State {
    pub fn is_open(self) -> bool {
        match self {
            Self::Idle | Self::Ready | Self::Sending | Self::Suspended => true,
            Self::Free | Self::Closed => false,
        }
    }
}

/// A lane.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub generation: u32,
    pub state: State,
    /// Whether it is listed as one whose loop is behind.
    pub listed: bool,
    /// Index of the event loop it is emptied on.
    pub slot: usize,
    /// Indices of the users it is connected as.
    pub users: IndexSet,
    pub bytes: usize,
    /// Since when its send is suspended.
    pub suspended: Option<Instant>,
    pub queue: Queue<Entry>,
}

impl Lane {
    /// Whether its connection is slow: one send has been suspended for [`SLOW_AFTER`] although its
    /// loop ran, which it was last seen to do at `seen`. A loop that is blocked proves nothing.
    pub fn is_slow(&self, seen: Option<Instant>) -> bool {
        let suspended_for =
            |since| seen.is_some_and(|seen| seen.duration_since(since) >= SLOW_AFTER);
        self.state == State::Suspended && self.suspended.is_some_and(suspended_for)
    }

    /// Whether a pump or a turn has one of its messages.
    pub fn is_in_hand(&self) -> bool {
        matches!(self.state, State::Sending | State::Suspended)
    }

    #[inline]
    pub fn push(&mut self, entry: Entry) {
        self.bytes += entry.payload.text.len();
        self.queue.push_back(entry);
    }

    /// Whether more waits than may.
    pub fn is_over(&self, limits: LaneLimits) -> bool {
        let over = self.queue.len() > limits.messages || self.bytes > limits.bytes;
        over && self.queue.len() > 1
    }

    /// Puts a progress message in the place of an older one with its key, if that one is the last
    /// that waits of its upload. Gives the entry back if there is none.
    ///
    /// A linear search: in a lane that keeps up there is next to nothing to search, and in one that
    /// does not, 1,024 messages of other uploads cost 0.4 us.
    pub fn overwrite(&mut self, entry: Entry) -> Result<(), Entry> {
        // Whoever waits for a message to be sent is not to be told so when it never was.
        let Class { stream: stream @ Some(_), key: key @ Some(_) } = entry.payload.class else {
            return Err(entry);
        };
        if entry.ticket.is_some() {
            return Err(entry);
        }
        match self.queue.iter_mut_from_back().find(|other| other.stream == stream) {
            Some(last) if last.payload.class.key == key && last.ticket.is_none() => {
                self.bytes += entry.payload.text.len();
                self.bytes -= last.payload.text.len();
                *last = entry;
                Ok(())
            }
            _ => Err(entry),
        }
    }

    /// Drops a message as the policy says. None if there is none to drop.
    pub fn make_room(&mut self, policy: Overflow) -> Option<Entry> {
        let at = match policy {
            Overflow::Disconnect => None,
            Overflow::DropOldest => Some(0),
            Overflow::DropProgress => {
                self.queue.iter().position(|entry| entry.payload.class.key.is_some())
            }
        }?;
        let entry = self.queue.remove(at)?;
        self.bytes -= entry.payload.text.len();
        Some(entry)
    }

    /// Whether `more` bytes in one more message would be too much.
    pub fn is_full_for(&self, more: usize, limits: LaneLimits) -> bool {
        let full = self.queue.len() >= limits.messages || self.bytes + more > limits.bytes;
        full && !self.queue.is_empty()
    }

    #[inline]
    pub fn pop(&mut self) -> Option<Entry> {
        let entry = self.queue.pop_front()?;
        self.bytes -= entry.payload.text.len();
        Some(entry)
    }

    /// Undoes a [`Lane::pop`].
    pub fn unpop(&mut self, entry: Entry) {
        self.bytes += entry.payload.text.len();
        self.queue.push_front(entry);
    }

    /// Empties the queue.
    pub fn clear(&mut self) -> VecDeque<Entry> {
        self.bytes = 0;
        self.queue.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;

    fn entry(size: usize) -> Entry {
        Entry::new(Message::new("x".repeat(size), Class::default()), None)
    }

    #[test]
    fn limits_hold_in_count_and_in_bytes() {
        let limits = LaneLimits { messages: 3, bytes: 100 };
        let mut lane = Lane::default();
        for _ in 0..3 {
            assert!(!lane.is_full_for(1, limits));
            lane.push(entry(1));
        }
        assert!(lane.is_full_for(1, limits));
        assert_eq!(lane.clear().len(), 3);
        lane.push(entry(60));
        assert!(lane.is_full_for(41, limits));
        assert!(!lane.is_full_for(40, limits));
        lane.push(entry(40));
        assert_eq!(lane.pop().map(|entry| entry.payload.text.len()), Some(60));
        assert_eq!(lane.bytes, 40);
    }

    #[test]
    fn a_message_over_the_limit_passes_through_an_empty_lane() {
        let limits = LaneLimits { messages: 3, bytes: 10 };
        let mut lane = Lane::default();
        assert!(!lane.is_full_for(50, limits));
        lane.push(entry(50));
        assert!(lane.is_full_for(1, limits));
    }

    fn classed(text: &str, stream: u64, key: u64) -> Entry {
        let class = Class { stream: NonZeroU64::new(stream), key: NonZeroU64::new(key) };
        Entry::new(Message::new(text, class), None)
    }

    fn push(lane: &mut Lane, entry: Entry) {
        if let Err(entry) = lane.overwrite(entry) {
            lane.push(entry);
        }
    }

    fn texts(lane: &Lane) -> Vec<&str> {
        lane.queue.iter().map(|entry| &*entry.payload.text).collect()
    }

    #[test]
    fn progress_is_overwritten_in_place_and_only_by_its_own() {
        let mut lane = Lane::default();
        push(&mut lane, classed("a 1%", 1, 1));
        push(&mut lane, classed("b 1%", 2, 2));
        push(&mut lane, classed("a 50%", 1, 1));
        push(&mut lane, classed("note", 0, 0));
        push(&mut lane, classed("b 9%", 2, 2));
        assert_eq!(texts(&lane), ["a 50%", "b 9%", "note"]);
        push(&mut lane, classed("a done", 1, 0));
        push(&mut lane, classed("a 99%", 1, 1));
        push(&mut lane, classed("a 100%", 1, 1));
        push(&mut lane, classed("a of another kind", 1, 7));
        push(&mut lane, classed("a 101%", 1, 1));
        assert_eq!(
            texts(&lane),
            ["a 50%", "b 9%", "note", "a done", "a 100%", "a of another kind", "a 101%"]
        );
        let bytes: usize = texts(&lane).iter().map(|text| text.len()).sum();
        assert_eq!(lane.bytes, bytes);
    }

    #[test]
    fn what_makes_room_is_what_the_policy_says() {
        let mut lane = Lane::default();
        for (text, key) in [("note", 0), ("a 1%", 1), ("b 1%", 2)] {
            push(&mut lane, classed(text, key, key));
        }
        let text = |entry: Option<Entry>| entry.map(|entry| entry.payload.text.to_string());
        assert_eq!(text(lane.make_room(Overflow::Disconnect)), None);
        assert_eq!(text(lane.make_room(Overflow::DropProgress)).as_deref(), Some("a 1%"));
        assert_eq!(text(lane.make_room(Overflow::DropOldest)).as_deref(), Some("note"));
        assert_eq!(text(lane.make_room(Overflow::DropProgress)).as_deref(), Some("b 1%"));
        assert_eq!(text(lane.make_room(Overflow::DropOldest)), None);
        assert_eq!(lane.bytes, 0);
    }

    #[test]
    fn an_id_survives_packing() {
        let id = LaneId { index: 7, generation: u32::MAX };
        assert_eq!(LaneId::unpack(id.pack()), id);
    }
}
