//! What a read found, and what each lane is given of it.

use crate::history::{Epoch, Position};
use crate::lane::LaneId;
use crate::message::Payload;

/// What a lane asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// What its client has already; what follows is replayed.
    pub since: Option<Position>,
    /// Whether the client is to forget what it has.
    pub resync: bool,
}

/// What a read found, ready to be queued.
#[derive(Debug)]
pub struct Found {
    /// The history.
    pub epoch: Epoch,
    /// Its newest offset.
    pub last: u64,
    /// Where the current state begins.
    pub milestone: Option<u64>,
    /// Messages in order.
    pub entries: Vec<(u64, Payload)>,
}

impl Found {
    /// Whether the current state is part of the answer to a question for what follows `since`.
    pub(super) fn has_state(&self, since: Option<Position>) -> bool {
        match since {
            Some(since) if since.epoch == self.epoch && since.offset <= self.last => {
                since.offset == 0 || (self.milestone.is_some() && since.offset != self.last)
            }
            _ => true,
        }
    }

    /// The hash of the message at an offset.
    pub(super) fn print_at(&self, offset: u64) -> Option<u64> {
        let at = self.entries.binary_search_by_key(&offset, |(other, _)| *other).ok()?;
        self.entries[at].1.mark.map(|mark| mark.print)
    }

    /// What a lane that waits is to be given.
    pub(super) fn lot(&self, want: Want) -> Lot<'_> {
        match want.since {
            _ if want.resync => Lot::Resync,
            None => Lot::Snapshot,
            Some(since) if since.epoch == self.epoch => {
                self.after(since.offset).map_or(Lot::Resync, Lot::Rest)
            }
            Some(_) => Lot::Resync,
        }
    }

    /// What follows an offset, if all of it is there.
    pub(super) fn after(&self, offset: u64) -> Option<&[(u64, Payload)]> {
        let begin = self.entries.partition_point(|(other, _)| *other <= offset);
        let rest = &self.entries[begin..];
        (offset.checked_add(rest.len() as u64)? == self.last).then_some(rest)
    }

    /// The current state.
    pub(super) fn state(&self) -> &[(u64, Payload)] {
        let from = self.milestone.unwrap_or(0);
        &self.entries[self.entries.partition_point(|(offset, _)| *offset < from)..]
    }

    pub(super) fn first_of_state(&self) -> u64 {
        self.state().first().map_or(self.last + 1, |(offset, _)| *offset)
    }
}

/// What is to be queued, in order, and what is to be counted.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Messages for lanes.
    pub deliveries: Vec<(LaneId, Payload)>,
    /// Lanes that got the current state for the first time.
    pub snapshots: u64,
    /// Messages that came from the history.
    pub recovered: u64,
    /// Lanes that were told to forget what they had.
    pub resyncs: u64,
    /// Messages that somebody would have got twice.
    pub duplicates: u64,
}

impl Outcome {
    pub(super) fn give(&mut self, lanes: &[LaneId], payload: &Payload) {
        self.deliveries.extend(lanes.iter().map(|lane| (*lane, Payload::clone(payload))));
    }

    pub(super) fn replay(&mut self, lane: LaneId, entries: &[(u64, Payload)]) {
        self.recovered += entries.len() as u64;
        let each = entries.iter().map(|(_, payload)| (lane, Payload::clone(payload)));
        self.deliveries.extend(each);
    }

    pub(super) fn deal(&mut self, lane: LaneId, lot: &Lot<'_>, found: &Found, resync: &Payload) {
        match lot {
            Lot::Nothing | Lot::Unknown => {}
            Lot::Rest(rest) => self.replay(lane, rest),
            Lot::Snapshot => {
                self.snapshots += 1;
                self.replay(lane, found.state());
            }
            Lot::Resync => self.resync(lane, resync, found.state()),
        }
    }

    pub(super) fn resync(&mut self, lane: LaneId, message: &Payload, state: &[(u64, Payload)]) {
        self.resyncs += 1;
        self.deliveries.push((lane, Payload::clone(message)));
        self.replay(lane, state);
    }
}

/// What a lane is to be given of what was found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lot<'f> {
    /// It misses nothing.
    Nothing,
    /// What it misses.
    Rest(&'f [(u64, Payload)]),
    /// The current state.
    Snapshot,
    /// It is told to forget what it has, and given the current state.
    Resync,
    /// That cannot be said before more is read.
    Unknown,
}

impl Lot<'_> {
    pub(super) fn is_state(self) -> bool {
        matches!(self, Self::Snapshot | Self::Resync)
    }
}
