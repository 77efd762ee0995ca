//! A subscriber's bounded queue.
//!
//! A lane gives order (one message at a time), isolation (a slow subscriber fills its own lane and no
//! other) and a place for limits. It is passive: `router.rs` moves it through its states.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::message::Payload;
use crate::post::Reply;

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

/// How much may wait in one lane whose connection is slow, that is, whose send is suspended. When only
/// the event loop is behind, the listener reads more slowly instead: nobody is to blame then.
#[derive(Clone, Copy, Debug)]
pub struct LaneLimits {
    /// Messages.
    pub messages: usize,
    /// Bytes of payload. A single message may be larger if nothing else waits.
    pub bytes: usize,
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
    /// Index of the event loop it is emptied on.
    pub slot: usize,
    /// Indices of the users it is connected as.
    pub users: SmallVec<[u32; 2]>,
    pub bytes: usize,
    pub queue: VecDeque<Entry>,
}

impl Lane {
    pub fn push(&mut self, entry: Entry) {
        self.bytes += entry.payload.text.len();
        self.queue.push_back(entry);
    }

    /// Whether `more` bytes in one more message would be too much.
    pub fn is_full_for(&self, more: usize, limits: LaneLimits) -> bool {
        let full = self.queue.len() >= limits.messages || self.bytes + more > limits.bytes;
        full && !self.queue.is_empty()
    }

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

    /// Empties the queue and gives back its memory.
    pub fn clear(&mut self) -> VecDeque<Entry> {
        self.bytes = 0;
        std::mem::take(&mut self.queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;

    fn entry(size: usize) -> Entry {
        Entry { payload: Message::new("x".repeat(size)), ticket: None }
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

    #[test]
    fn an_id_survives_packing() {
        let id = LaneId { index: 7, generation: u32::MAX };
        assert_eq!(LaneId::unpack(id.pack()), id);
    }
}
