//! Who has what of an upload: plain data under the router's lock.
//!
//! Every watched upload has a [`Track`]: the position of the newest message that was handed on, the
//! place of each lane, and what is held back. A lane is either *here* (it has everything up to the
//! track's position) or it *waits* for a read of the history, which gives it the current state or what
//! it missed. A message that does not follow the track's position is a gap: what comes is held back for
//! everybody until a read has filled it.
//!
//! The subscription exists before a read is sent, and what arrives meanwhile is held. So an answer and
//! what was held overlap or touch, and the offsets say where.

mod found;
#[cfg(test)]
mod tests;
mod track;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use smallvec::SmallVec;

pub use self::found::{Found, Outcome, Want};
use self::track::{Held, Place, Reading, Sent, Stand, Track, follows};
use crate::history::Position;
use crate::lane::LaneId;
use crate::message::{Mark, Payload};

/// Names a track for the time of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackId {
    /// The upload's index in the registry.
    pub upload: u32,
    serial: u64,
    /// The read's number.
    read: u32,
}

/// What becomes of a message that has just come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The lanes that are here get it.
    Now,
    /// It is held.
    Later,
    /// Everybody has it already.
    Never,
}

/// What a message that has just come leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When it is handed on.
    pub turn: Turn,
    /// Whether a read has become due.
    pub due: bool,
    /// Whether messages before it turned out to be missing.
    pub gap: bool,
}

/// Whether there is a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    /// No listener has said so yet: what is wanted is remembered.
    #[default]
    Unknown,
    Off,
    On,
}

/// The tracks of a router.
#[derive(Debug, Default)]
pub struct Recovery {
    mode: Mode,
    /// How long a history outlives its newest message.
    ttl: Duration,
    tracks: HashMap<u32, Track, RandomState>,
    due: VecDeque<TrackId>,
    serial: u64,
    /// Lanes that lag somewhere.
    lagging: Vec<LaneId>,
    /// Lanes that went on without an upload's past, because it was refused.
    lacking: Vec<(u32, LaneId)>,
    /// How many these were when those who had left were forgotten.
    lacked: usize,
}

impl Recovery {
    /// Whether messages may carry positions.
    pub fn is_on(&self) -> bool {
        self.mode == Mode::On
    }

    /// Whether a listener said that there is no history.
    pub fn is_off(&self) -> bool {
        self.mode == Mode::Off
    }

    /// Whether there may be places.
    pub fn is_used(&self) -> bool {
        self.is_on() || !self.tracks.is_empty()
    }

    /// Turns it on, with what a history outlives its newest message by, or off; off, nothing is known
    /// any more.
    pub fn set(&mut self, on: Option<Duration>) {
        if let Some(ttl) = on {
            (self.mode, self.ttl) = (Mode::On, ttl);
        } else {
            *self = Self { mode: Mode::Off, serial: self.serial, ..Self::default() };
        }
    }

    /// Nobody is connected any more.
    pub fn clear(&mut self) {
        *self = Self { mode: self.mode, ttl: self.ttl, serial: self.serial, ..Self::default() };
    }

    /// Nobody watches the upload any more.
    pub fn forget(&mut self, upload: u32) {
        self.tracks.remove(&upload);
    }

    /// A lane does not watch the upload any more.
    pub fn leave(&mut self, upload: u32, lane: u32) {
        if let Some(track) = self.tracks.get_mut(&upload)
            && let Some(place) = track.places.remove(&lane)
            && matches!(place.stand, Stand::Waits { .. })
        {
            track.waiting -= 1;
        }
    }

    /// A lane asks for the upload. True if a read has become due.
    pub fn want(&mut self, upload: u32, lane: LaneId, want: Want) -> bool {
        let track = Self::track(&mut self.tracks, &mut self.serial, upload);
        let known = track.place(lane).copied();
        let want = match known {
            // What it has been given it is not given again, unless it says that it has less.
            Some(Place { stand: Stand::Lags, .. }) => return false, // it is told anyway
            Some(Place { stand: Stand::Here { from }, asked_for, .. }) => {
                let has = |at: Position, since: Position| {
                    at.epoch == since.epoch && (from..=at.offset + 1).contains(&(since.offset + 1))
                };
                // Of what came along before it asked the client may have made nothing.
                let is_served =
                    asked_for && want.since.zip(track.at).is_some_and(|(since, at)| has(at, since));
                if is_served && !want.resync {
                    track.insert(lane, true, Stand::Here { from });
                    return false;
                }
                Want { since: None, resync: true }
            }
            // What it was to be told is told all the same.
            Some(Place { stand: Stand::Waits { want: Want { resync: true, .. }, .. }, .. }) => {
                Want { since: None, resync: true }
            }
            _ => want,
        };
        track.insert(lane, true, Stand::Waits { want, asked: false });
        Self::make_due(track, &mut self.due, upload)
    }

    /// A lane that has no place gets one; a lane that has one keeps it. True if a read has become due.
    pub fn want_if_new(&mut self, upload: u32, lane: LaneId) -> bool {
        let track = Self::track(&mut self.tracks, &mut self.serial, upload);
        if track.place(lane).is_some() {
            return false;
        }
        track.insert(lane, false, Stand::Waits { want: Want::default(), asked: false });
        Self::make_due(track, &mut self.due, upload)
    }

    /// Messages were dropped from a lane: it gets nothing more of its uploads until it has caught up, and
    /// then it is told.
    pub fn lag(&mut self, lane: LaneId, uploads: &[u32]) {
        let mut lags = false;
        for upload in uploads {
            if let Some(track) = self.tracks.get_mut(upload)
                && track.place(lane).is_some()
            {
                track.insert(lane, true, Stand::Lags);
                lags = true;
            }
        }
        if lags && !self.lagging.contains(&lane) {
            self.lagging.push(lane);
        }
    }

    /// Lanes that lag and have caught up are to be told. True if a read has become due.
    pub fn end_lags(&mut self, mut has_caught_up: impl FnMut(LaneId) -> bool) -> bool {
        let (mut ended, mut due) = (Vec::new(), false);
        self.lagging.retain(|lane| {
            let ends = has_caught_up(*lane);
            if ends {
                ended.push(*lane);
            }
            !ends
        });
        if ended.is_empty() {
            return false;
        }
        for (upload, track) in &mut self.tracks {
            for lane in &ended {
                if track.place(*lane).is_some_and(|place| matches!(place.stand, Stand::Lags)) {
                    let want = Want { since: None, resync: true };
                    track.insert(*lane, true, Stand::Waits { want, asked: false });
                    due |= Self::make_due(track, &mut self.due, *upload);
                }
            }
        }
        due
    }

    /// Whether any lane lags.
    pub fn has_lags(&self) -> bool {
        !self.lagging.is_empty()
    }

    /// Whether a lane has a place.
    pub fn has_place(&self, upload: u32, lane: LaneId) -> bool {
        self.tracks.get(&upload).is_some_and(|track| track.place(lane).is_some())
    }

    /// The lanes that get what is delivered now.
    pub fn lanes_here(&self, upload: u32) -> SmallVec<[LaneId; 8]> {
        let places = self.tracks.get(&upload).into_iter().flat_map(|track| &track.places);
        let here = places.filter(|(_, place)| matches!(place.stand, Stand::Here { .. }));
        here.map(|(index, place)| LaneId { index: *index, generation: place.generation }).collect()
    }

    /// A message of a watched upload has come. Every lane that watches has a place.
    pub fn arrive(&mut self, upload: u32, payload: &Payload) -> Arrival {
        let track = Self::track(&mut self.tracks, &mut self.serial, upload);
        let turn = if track.gap || track.compare { Turn::Later } else { Turn::Now };
        let mut arrival = Arrival { turn, due: false, gap: false };
        if let Some(Mark { position, print }) = payload.mark {
            match track.at {
                // What it is worth is seen when the read has come.
                _ if track.gap || track.compare => {}
                Some(at)
                    if !track.unsure
                        && at.epoch == position.epoch
                        && position.offset <= at.offset =>
                {
                    return Arrival { turn: Turn::Never, ..arrival };
                }
                // Nobody is here to miss anything: those who wait are given it by the read.
                _ if track.waiting == track.places.len() => arrival.turn = Turn::Later,
                at if !track.unsure && follows(at, position) => {
                    (track.at, track.print) = (Some(position), Some(print));
                    track.changed = payload.received;
                }
                _ => {
                    (track.gap, arrival.gap, arrival.turn) = (true, true, Turn::Later);
                }
            }
        }
        if track.gap || track.compare || track.waiting > 0 {
            let told = arrival.turn == Turn::Now;
            track.hold(Held { payload: Payload::clone(payload), told });
            arrival.due = Self::make_due(track, &mut self.due, upload);
        }
        arrival
    }

    /// Every upload is to be compared with its history, because the listener may have missed
    /// something. True if a read has become due.
    pub fn compare_all(&mut self) -> bool {
        for (upload, track) in &mut self.tracks {
            track.compare = true;
            // What came over the connection that broke is in the history, or is the past no more.
            track.held.retain(|held| held.payload.mark.is_none());
            track.held_bytes = track.held.iter().map(|held| held.payload.text.len()).sum();
            // A read that is under way may be of a time before.
            if matches!(track.reading, Reading::Sent(_)) {
                track.reading = Reading::No;
            }
            Self::make_due(track, &mut self.due, *upload);
        }
        !self.due.is_empty()
    }

    /// The next track that is to be read, and what follows which position is to be read of it.
    pub fn next_ask(&mut self) -> Option<(TrackId, Option<Position>)> {
        loop {
            let id = self.due.pop_front()?;
            let Some(track) = self.tracks.get_mut(&id.upload) else { continue };
            if track.serial != id.serial || track.reading != Reading::Due {
                continue;
            }
            let since = track.ask();
            track.read = track.read.wrapping_add(1);
            let (held, at, print) = (track.held.len(), track.at, track.print);
            track.reading = Reading::Sent(Sent { since, held, at, print, compare: track.compare });
            return Some((TrackId { read: track.read, ..id }, since));
        }
    }

    /// A read failed, and is to be made again.
    pub fn ask_again(&mut self, id: TrackId) {
        if let Some(track) = self.tracks.get_mut(&id.upload)
            && (track.serial, track.read) == (id.serial, id.read)
        {
            track.reading = Reading::No;
            Self::make_due(track, &mut self.due, id.upload);
        }
    }

    /// Notes who is about to go on without what was to be read, because that was refused.
    pub fn lack(&mut self, id: TrackId) {
        // Those who have left meanwhile are forgotten now and then.
        if self.lacking.len() >= 1024.max(2 * self.lacked) {
            let tracks = &self.tracks;
            let is_there = |upload: &u32, lane: &LaneId| {
                tracks.get(upload).is_some_and(|track| track.place(*lane).is_some())
            };
            self.lacking.retain(|(upload, lane)| is_there(upload, lane));
            self.lacked = self.lacking.len();
        }
        if let Some(track) = self.tracks.get(&id.upload).filter(|track| track.serial == id.serial) {
            let served = track.served().into_iter().map(|lane| (id.upload, lane));
            self.lacking.extend(served);
        }
    }

    /// What was refused can be read: those who went on without it are told, and given it. True if a read
    /// has become due.
    pub fn end_lack(&mut self) -> bool {
        for (upload, lane) in std::mem::take(&mut self.lacking) {
            if let Some(track) = self.tracks.get_mut(&upload)
                && track.place(lane).is_some_and(|place| matches!(place.stand, Stand::Here { .. }))
            {
                let want = Want { since: None, resync: true };
                track.insert(lane, true, Stand::Waits { want, asked: false });
                Self::make_due(track, &mut self.due, upload);
            }
        }
        !self.due.is_empty()
    }

    /// What a read found; None if there is no history of the upload. `resync` is the message that tells
    /// a client to forget what it has. True in the second place if another read is due.
    pub fn catch_up(
        &mut self,
        id: TrackId,
        found: Option<&Found>,
        resync: &Payload,
    ) -> (Outcome, bool) {
        let mut outcome = Outcome::default();
        let Some(track) = self.tracks.get_mut(&id.upload) else { return (outcome, false) };
        let Reading::Sent(sent) = track.reading else { return (outcome, false) };
        if (track.serial, track.read) != (id.serial, id.read) {
            return (outcome, false);
        }
        track.reading = Reading::No;
        match found {
            Some(found) => track.catch_up(found, resync, sent, &mut outcome),
            None => track.go_on_without(self.ttl, resync, &mut outcome),
        }
        let due = track.gap || track.whole.is_some() || track.waiting > 0;
        track.tries = if track.gap { track.tries + 1 } else { 0 };
        (outcome, due && Self::make_due(track, &mut self.due, id.upload))
    }

    /// Whether any read is due.
    pub fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    fn track<'t>(
        tracks: &'t mut HashMap<u32, Track, RandomState>,
        serial: &mut u64,
        upload: u32,
    ) -> &'t mut Track {
        tracks.entry(upload).or_insert_with(|| {
            *serial += 1;
            Track {
                serial: *serial,
                at: None,
                print: None,
                changed: Instant::now(),
                places: HashMap::default(),
                waiting: 0,
                gap: false,
                reading: Reading::No,
                held: VecDeque::new(),
                held_bytes: 0,
                read: 0,
                tries: 0,
                compare: false,
                unsure: false,
                whole: None,
            }
        })
    }

    fn make_due(track: &mut Track, due: &mut VecDeque<TrackId>, upload: u32) -> bool {
        let fresh = track.reading == Reading::No;
        if fresh {
            track.reading = Reading::Due;
            due.push_back(TrackId { upload, serial: track.serial, read: 0 });
        }
        fresh
    }
}
