//! One watched upload: where its lanes stand, and what is held for them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::found::{Found, Lot, Outcome, Want};
use crate::history::{Epoch, Position};
use crate::lane::LaneId;
use crate::message::{Mark, Payload};

/// Messages held back for one upload. Older ones make room: they are in the history.
pub(super) const MOST_HELD: usize = 1024;
/// Bytes of payload held back for one upload.
const MOST_BYTES_HELD: usize = 4 << 20;
/// Reads after which a gap that no read fills is given up, and everybody told.
const MOST_TRIES: u32 = 20;

#[derive(Clone, Copy, Debug)]
pub(super) enum Stand {
    /// It has everything from this offset up to the track's position.
    Here { from: u64 },
    /// It is owed what it wants; `asked` once the read that is under way is for it too.
    Waits { want: Want, asked: bool },
    /// It was slow and lost something; it is told when it has caught up.
    Lags,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub generation: u32,
    /// Whether somebody asked for it, or a message just came along.
    pub asked_for: bool,
    pub stand: Stand,
}

/// A message that came while a read was due.
#[derive(Debug)]
pub(super) struct Held {
    pub payload: Payload,
    /// Whether the lanes that are here have it.
    pub told: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reading {
    #[default]
    No,
    Due,
    Sent(Sent),
}

/// How things stood when a read was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// What follows this was asked for; None: the state.
    pub since: Option<Position>,
    /// So many messages were held.
    pub held: usize,
    /// Where the track stood.
    pub at: Option<Position>,
    /// What the message there looks like, if that is known.
    pub print: Option<u64>,
    /// Whether the listener may have missed something before.
    pub compare: bool,
}

/// An upload that somebody here watches.
#[allow(clippy::struct_excessive_bools)] // each is a reason of its own to hold or to read
#[derive(Debug)]
pub(super) struct Track {
    /// Tells it from an older one with the same index.
    pub serial: u64,
    /// The newest message that the lanes which are here have; None while nothing is known.
    pub at: Option<Position>,
    /// The hash of the message there, if it is known.
    pub print: Option<u64>,
    /// When it came.
    pub changed: Instant,
    pub places: HashMap<u32, Place, RandomState>,
    /// Places that wait.
    pub waiting: usize,
    /// Whether messages are missing, so that everybody has to wait.
    pub gap: bool,
    pub reading: Reading,
    pub held: VecDeque<Held>,
    pub held_bytes: usize,
    /// The number of the last read that was sent.
    pub read: u32,
    /// Reads in a row that did not fill the gap.
    pub tries: u32,
    /// Whether those who are here may have missed something.
    pub compare: bool,
    /// Whether the history was gone when that was to be seen.
    pub unsure: bool,
    /// The epoch of which everything that is kept is to be read.
    pub whole: Option<Epoch>,
}

/// Whether a message is the next one.
pub(super) fn follows(at: Option<Position>, next: Position) -> bool {
    match at {
        Some(at) => at.epoch == next.epoch && at.offset + 1 == next.offset,
        // Nothing was kept when that was looked up last, so it is the first.
        None => next.offset == 1,
    }
}

impl Track {
    pub(super) fn place(&self, lane: LaneId) -> Option<&Place> {
        self.places.get(&lane.index).filter(|place| place.generation == lane.generation)
    }

    pub(super) fn insert(&mut self, lane: LaneId, asked_for: bool, stand: Stand) {
        let waits = matches!(stand, Stand::Waits { .. });
        let place = Place { generation: lane.generation, asked_for, stand };
        let old = self.places.insert(lane.index, place);
        let waited = old.is_some_and(|old| matches!(old.stand, Stand::Waits { .. }));
        self.waiting = self.waiting + usize::from(waits) - usize::from(waited);
    }

    pub(super) fn hold(&mut self, held: Held) {
        self.held_bytes += held.payload.text.len();
        self.held.push_back(held);
        while self.held.len() > MOST_HELD || self.held_bytes > MOST_BYTES_HELD {
            let Some(oldest) = self.held.pop_front() else { break };
            self.held_bytes -= oldest.payload.text.len();
            // What was held when the read was sent is one less.
            if let Reading::Sent(sent) = &mut self.reading {
                sent.held = sent.held.saturating_sub(1);
            }
        }
    }

    /// What is to be read so that everybody gets what they miss; those who wait are served by it.
    pub(super) fn ask(&mut self) -> Option<Position> {
        let is_here = |place: &Place| matches!(place.stand, Stand::Here { .. });
        let here = (self.gap || self.compare) && self.places.values().any(is_here);
        let mut since = self.at.filter(|_| here);
        let mut wants_state = here && self.at.is_none();
        for place in self.places.values_mut() {
            let Stand::Waits { want, asked } = &mut place.stand else { continue };
            *asked = true;
            match (want.since.filter(|_| !want.resync), &mut since) {
                (Some(wanted), Some(known)) if known.epoch == wanted.epoch => {
                    known.offset = known.offset.min(wanted.offset);
                }
                (Some(wanted), None) => since = Some(wanted),
                (None, _) | (Some(_), Some(_)) => wants_state = true,
            }
        }
        if let Some(epoch) = self.whole.take() {
            // Whatever else somebody waits for: who asks for what follows another epoch is given the state.
            since = Some(Position { epoch, offset: 0 });
            wants_state = true;
        }
        since.map(|Position { epoch, offset }| {
            // The state, and with it whatever else is kept if anybody wants more. Otherwise one more than
            // is missed, to see whether it is the message that is known.
            let offset = if wants_state { 0 } else { offset.saturating_sub(1) };
            Position { epoch, offset }
        })
    }

    /// Splits the lanes into those that are here and those that were asked for.
    fn lanes(&self) -> (Vec<LaneId>, Vec<(LaneId, Want)>) {
        let (mut here, mut served) = (Vec::new(), Vec::new());
        for (index, place) in &self.places {
            let lane = LaneId { index: *index, generation: place.generation };
            match place.stand {
                Stand::Here { .. } => here.push(lane),
                Stand::Waits { want, asked: true } => served.push((lane, want)),
                Stand::Waits { asked: false, .. } | Stand::Lags => {}
            }
        }
        (here, served)
    }

    /// The lanes for which something was asked.
    pub(super) fn served(&self) -> Vec<LaneId> {
        self.lanes().1.into_iter().map(|(lane, _)| lane).collect()
    }

    pub(super) fn catch_up(
        &mut self,
        found: &Found,
        resync: &Payload,
        sent: Sent,
        outcome: &mut Outcome,
    ) {
        let (here, served) = self.lanes();
        let missed = if here.is_empty() { Lot::Nothing } else { self.missed(found, sent) };
        let lots: Vec<Lot<'_>> = served
            .iter()
            .map(|(lane, want)| match found.lot(*want) {
                // It may follow what the client has from another connection.
                Lot::Snapshot if !self.place(*lane).is_some_and(|place| place.asked_for) => {
                    Lot::Resync
                }
                lot => lot,
            })
            .collect();
        let is_short = |lot: &Lot<'_>| lot.is_state() && !found.has_state(sent.since);
        if matches!(missed, Lot::Unknown) || is_short(&missed) || lots.iter().any(is_short) {
            // More must be read before anybody is given anything.
            self.whole = Some(found.epoch);
            return;
        }
        (self.compare, self.unsure) = (false, false);
        let mut stood = self.at.filter(|_| !here.is_empty());
        for lane in &here {
            outcome.deal(*lane, &missed, found, resync);
        }
        if missed.is_state() {
            stood = None;
            for lane in &here {
                self.insert(*lane, true, Stand::Here { from: found.first_of_state() });
            }
        }
        for ((lane, want), lot) in served.iter().zip(&lots) {
            outcome.deal(*lane, lot, found, resync);
            let from = match (lot, want.since) {
                (Lot::Rest(_), Some(since)) => since.offset + 1,
                _ => found.first_of_state(),
            };
            let asked_for = self.place(*lane).is_some_and(|place| place.asked_for);
            self.insert(*lane, asked_for, Stand::Here { from });
        }
        let served: Vec<LaneId> = served.into_iter().map(|(lane, _)| lane).collect();
        let (known, known_print) = (self.at, self.print);
        self.changed = Instant::now();
        self.print = found.print_at(found.last);
        let reached = self.release(found, sent.held, resync, (&here, &served), outcome);
        self.at = Some(Position { epoch: found.epoch, offset: reached });
        let is_ahead = |at: &Position| at.epoch == found.epoch && at.offset > reached;
        if stood.as_ref().is_some_and(is_ahead) {
            // Those who are here went on meanwhile, and what they had was held for too long.
            let since = self.at;
            (self.at, self.print) = (known, known_print);
            for lane in served {
                let want = Want { since, resync: false };
                self.insert(lane, true, Stand::Waits { want, asked: false });
            }
        } else if known == self.at && self.print.is_none() {
            self.print = known_print;
        }
    }

    /// What the lanes that are here have missed.
    fn missed<'f>(&self, found: &'f Found, sent: Sent) -> Lot<'f> {
        let asked = |at: Position| {
            sent.since.is_some_and(|since| since.epoch == at.epoch && since.offset <= at.offset)
        };
        let Some(at) = self.at else {
            return found.after(0).map_or(Lot::Resync, Lot::Rest);
        };
        if at.epoch != found.epoch {
            return Lot::Resync;
        }
        // A history that went back, to an old copy of the server's: its offsets come again with other
        // messages.
        if let Some(then) = sent.at.filter(|then| then.epoch == found.epoch) {
            let other = found.print_at(then.offset);
            // What cannot be compared any more is as good as another.
            let is_other = |print| other.map_or(sent.compare, |other| other != print);
            if then.offset > found.last || sent.print.is_some_and(is_other) {
                return Lot::Resync;
            }
        }
        if at.offset >= found.last {
            return Lot::Nothing;
        }
        match found.after(at.offset) {
            Some(rest) => Lot::Rest(rest),
            None if asked(at) => Lot::Resync,
            None => Lot::Unknown,
        }
    }

    /// Gives what was held and follows what was found. Returns the offset that those who were served
    /// have reached; what does not follow stays held.
    fn release(
        &mut self,
        found: &Found,
        held_then: usize,
        resync: &Payload,
        (here, served): (&[LaneId], &[LaneId]),
        outcome: &mut Outcome,
    ) -> u64 {
        self.gap = false;
        let mut reached = found.last;
        let mut number = 0;
        while let Some(held) = self.held.pop_front() {
            self.held_bytes -= held.payload.text.len();
            let came_before = number < held_then;
            number += 1;
            if let Some(Mark { position, print }) = held.payload.mark {
                if position.epoch != found.epoch && (came_before || held.told) {
                    outcome.duplicates += 1;
                    continue; // of a history that is gone
                }
                if position.epoch == found.epoch && position.offset <= reached {
                    outcome.duplicates += u64::from(!held.told);
                    continue;
                }
                let gives_up = self.tries >= MOST_TRIES && position.epoch == found.epoch;
                if !gives_up && (position.epoch != found.epoch || position.offset > reached + 1) {
                    self.gap = !held.told;
                    self.held_bytes += held.payload.text.len();
                    self.held.push_front(held);
                    return reached;
                }
                if position.offset > reached + 1 {
                    // What is missing cannot be had: that is told.
                    for lane in here.iter().chain(served) {
                        outcome.resync(*lane, resync, &[]);
                    }
                }
                reached = position.offset;
                self.print = Some(print);
            }
            outcome.give(served, &held.payload);
            if !held.told {
                outcome.give(here, &held.payload);
            }
        }
        reached
    }

    /// There is no history: nothing was published yet, or it has expired, or was lost.
    pub(super) fn go_on_without(&mut self, ttl: Duration, resync: &Payload, outcome: &mut Outcome) {
        let (here, served) = self.lanes();
        // One that ends in its time has nothing new. One that is gone before is lost, and with it perhaps
        // what was published meanwhile.
        let compares = std::mem::take(&mut self.compare) && self.at.is_some();
        let has_news = self.held.iter().any(|held| held.payload.mark.is_some());
        let is_lost = compares && (has_news || self.changed.elapsed() < ttl);
        self.unsure = compares && !is_lost;
        if std::mem::take(&mut self.gap) || is_lost {
            for lane in &here {
                outcome.resync(*lane, resync, &[]);
            }
            self.at = None;
        } else if here.is_empty() {
            self.at = None;
        }
        for (lane, want) in &served {
            let asked_for = self.place(*lane).is_some_and(|place| place.asked_for);
            if want.since.is_some() || want.resync || !asked_for {
                outcome.resync(*lane, resync, &[]);
            } else {
                outcome.snapshots += 1;
            }
            self.insert(*lane, asked_for, Stand::Here { from: 1 });
        }
        let served: Vec<LaneId> = served.into_iter().map(|(lane, _)| lane).collect();
        // Where those stand who were served: what the others have may still be held for them.
        let mut reached: Option<Position> = None;
        while let Some(held) = self.held.pop_front() {
            self.held_bytes -= held.payload.text.len();
            if let Some(Mark { position: next, print }) = held.payload.mark {
                let jumps = |at: Option<Position>| at.is_some() && !follows(at, next);
                if jumps(reached) || (!held.told && jumps(self.at)) {
                    self.gap = !held.told;
                    self.held_bytes += held.payload.text.len();
                    self.held.push_front(held);
                    for lane in served {
                        let want = Want { since: reached, resync: false };
                        self.insert(lane, true, Stand::Waits { want, asked: false });
                    }
                    return;
                }
                reached = Some(next);
                if !held.told || self.at.is_none() {
                    (self.at, self.print) = (Some(next), Some(print));
                }
            }
            outcome.give(&served, &held.payload);
            if !held.told {
                outcome.give(&here, &held.payload);
            }
        }
    }
}
