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

use std::collections::VecDeque;
use std::hash::BuildHasher;

use foldhash::fast::{FixedState, RandomState};
use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::history::{Epoch, Position};
use crate::lane::LaneId;
use crate::message::Payload;

/// Messages held back for one upload. Older ones make room: they are in the history.
const MOST_HELD: usize = 1024;
/// Bytes of payload held back for one upload.
const MOST_BYTES_HELD: usize = 4 << 20;
/// Reads after which a gap that no read fills is given up, and everybody told.
const MOST_TRIES: u32 = 20;

/// What a lane asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// What its client has already; what follows is replayed.
    pub since: Option<Position>,
    /// Whether the client is to forget what it has.
    pub resync: bool,
}

#[derive(Clone, Copy, Debug)]
enum Stand {
    /// It has everything from this offset up to the track's position.
    Here { from: u64 },
    /// It is owed what it wants; `asked` once the read that is under way is for it too.
    Waits { want: Want, asked: bool },
    /// It was slow and lost something; it is told when it has caught up.
    Lags,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    generation: u32,
    /// Whether somebody asked for it, or a message just came along.
    asked_for: bool,
    stand: Stand,
}

/// A message that came while a read was due.
#[derive(Debug)]
struct Held {
    position: Option<Position>,
    payload: Payload,
    /// Whether the lanes that are here have it.
    told: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    No,
    Due,
    Sent(Sent),
}

/// How things stood when a read was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    /// What follows this was asked for; None: the state.
    since: Option<Position>,
    /// So many messages were held.
    held: usize,
    /// Where the track stood.
    at: Option<Position>,
    /// What the message there looks like, if that is known.
    print: Option<u64>,
    /// Whether the listener may have missed something before.
    compare: bool,
}

/// An upload that somebody here watches.
#[derive(Debug)]
struct Track {
    /// Tells it from an older one with the same index.
    serial: u64,
    /// The newest message that the lanes which are here have; None while nothing is known.
    at: Option<Position>,
    /// The hash of the message there, if it is known.
    print: Option<u64>,
    places: HashMap<u32, Place, RandomState>,
    /// Places that wait.
    waiting: usize,
    /// Whether messages are missing, so that everybody has to wait.
    gap: bool,
    reading: Reading,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// The number of the last read that was sent.
    read: u32,
    /// Reads in a row that did not fill the gap.
    tries: u32,
    /// Whether those who are here may have missed something.
    compare: bool,
    /// Whether everything that is kept is to be read.
    whole: bool,
}

/// Names a track for the time of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackId {
    /// The upload's index in the registry.
    pub upload: u32,
    serial: u64,
    /// The read's number.
    read: u32,
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
    fn has_state(&self, since: Option<Position>) -> bool {
        match since {
            Some(since) if since.epoch == self.epoch && since.offset <= self.last => {
                since.offset == 0 || (self.milestone.is_some() && since.offset != self.last)
            }
            _ => true,
        }
    }

    /// The hash of the message at an offset.
    fn print_at(&self, offset: u64) -> Option<u64> {
        let at = self.entries.binary_search_by_key(&offset, |(other, _)| *other).ok()?;
        Some(print(&self.entries[at].1))
    }

    /// What a lane that waits is to be given.
    fn lot(&self, want: Want) -> Lot<'_> {
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
    fn after(&self, offset: u64) -> Option<&[(u64, Payload)]> {
        let begin = self.entries.partition_point(|(other, _)| *other <= offset);
        let rest = &self.entries[begin..];
        (offset.checked_add(rest.len() as u64)? == self.last).then_some(rest)
    }

    /// The current state.
    fn state(&self) -> &[(u64, Payload)] {
        let from = self.milestone.unwrap_or(0);
        &self.entries[self.entries.partition_point(|(offset, _)| *offset < from)..]
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
    fn give(&mut self, lanes: &[LaneId], payload: &Payload) {
        self.deliveries.extend(lanes.iter().map(|lane| (*lane, Payload::clone(payload))));
    }

    fn replay(&mut self, lane: LaneId, entries: &[(u64, Payload)]) {
        self.recovered += entries.len() as u64;
        let each = entries.iter().map(|(_, payload)| (lane, Payload::clone(payload)));
        self.deliveries.extend(each);
    }

    fn deal(&mut self, lane: LaneId, lot: &Lot<'_>, found: &Found, resync: &Payload) {
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

    fn resync(&mut self, lane: LaneId, message: &Payload, state: &[(u64, Payload)]) {
        self.resyncs += 1;
        self.deliveries.push((lane, Payload::clone(message)));
        self.replay(lane, state);
    }
}

/// What a lane is to be given of what was found.
#[derive(Clone, Copy, Debug)]
enum Lot<'f> {
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
    fn is_state(self) -> bool {
        matches!(self, Self::Snapshot | Self::Resync)
    }
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
    tracks: HashMap<u32, Track, RandomState>,
    due: VecDeque<TrackId>,
    serial: u64,
    /// Lanes that lag somewhere.
    lagging: Vec<LaneId>,
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

    /// Turns it on or off; off, nothing is known any more.
    pub fn set(&mut self, on: bool) {
        if on {
            self.mode = Mode::On;
        } else {
            *self = Self { mode: Mode::Off, serial: self.serial, ..Self::default() };
        }
    }

    /// Nobody is connected any more.
    pub fn clear(&mut self) {
        *self = Self { mode: self.mode, serial: self.serial, ..Self::default() };
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
    pub fn lag(&mut self, lane: LaneId) {
        let mut lags = false;
        for track in self.tracks.values_mut() {
            if track.place(lane).is_some() {
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
    pub fn arrive(
        &mut self,
        upload: u32,
        position: Option<Position>,
        payload: &Payload,
    ) -> Arrival {
        let track = Self::track(&mut self.tracks, &mut self.serial, upload);
        let turn = if track.gap || track.compare { Turn::Later } else { Turn::Now };
        let mut arrival = Arrival { turn, due: false, gap: false };
        if let Some(position) = position {
            match track.at {
                // What it is worth is seen when the read has come.
                _ if track.gap || track.compare => {}
                Some(at) if at.epoch == position.epoch && position.offset <= at.offset => {
                    return Arrival { turn: Turn::Never, ..arrival };
                }
                // Nobody is here to miss anything: those who wait are given it by the read.
                _ if track.waiting == track.places.len() => arrival.turn = Turn::Later,
                at if follows(at, position) => {
                    (track.at, track.print) = (Some(position), Some(print(payload)));
                }
                _ => {
                    (track.gap, arrival.gap, arrival.turn) = (true, true, Turn::Later);
                }
            }
        }
        if track.gap || track.compare || track.waiting > 0 {
            let told = arrival.turn == Turn::Now;
            track.hold(Held { position, payload: Payload::clone(payload), told });
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
            track.held.retain(|held| held.position.is_none());
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
            None => track.go_on_without(resync, &mut outcome),
        }
        let due = track.gap || track.whole || track.waiting > 0;
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
                places: HashMap::default(),
                waiting: 0,
                gap: false,
                reading: Reading::No,
                held: VecDeque::new(),
                held_bytes: 0,
                read: 0,
                tries: 0,
                compare: false,
                whole: false,
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

/// Tells messages apart that stand at the same offset.
fn print(payload: &Payload) -> u64 {
    FixedState::with_seed(0).hash_one(payload.text.as_bytes())
}

/// Whether a message is the next one.
fn follows(at: Option<Position>, next: Position) -> bool {
    match at {
        Some(at) => at.epoch == next.epoch && at.offset + 1 == next.offset,
        // Nothing was kept when that was looked up last, so it is the first.
        None => next.offset == 1,
    }
}

impl Track {
    fn place(&self, lane: LaneId) -> Option<&Place> {
        self.places.get(&lane.index).filter(|place| place.generation == lane.generation)
    }

    fn insert(&mut self, lane: LaneId, asked_for: bool, stand: Stand) {
        let waits = matches!(stand, Stand::Waits { .. });
        let place = Place { generation: lane.generation, asked_for, stand };
        let old = self.places.insert(lane.index, place);
        let waited = old.is_some_and(|old| matches!(old.stand, Stand::Waits { .. }));
        self.waiting = self.waiting + usize::from(waits) - usize::from(waited);
    }

    fn hold(&mut self, held: Held) {
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
    fn ask(&mut self) -> Option<Position> {
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
        if std::mem::take(&mut self.whole) {
            since = since.or(self.at);
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

    fn catch_up(&mut self, found: &Found, resync: &Payload, sent: Sent, outcome: &mut Outcome) {
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
            self.whole = true;
            return;
        }
        self.compare = false;
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
            if let Some(position) = held.position {
                if position.epoch != found.epoch && came_before {
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
                self.print = Some(print(&held.payload));
            }
            outcome.give(served, &held.payload);
            if !held.told {
                outcome.give(here, &held.payload);
            }
        }
        reached
    }

    /// There is no history: nothing was published yet, or it has expired, or was lost.
    fn go_on_without(&mut self, resync: &Payload, outcome: &mut Outcome) {
        let (here, served) = self.lanes();
        self.compare = false;
        if std::mem::take(&mut self.gap) {
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
            if let Some(next) = held.position {
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
                    (self.at, self.print) = (held.position, Some(print(&held.payload)));
                }
            }
            outcome.give(&served, &held.payload);
            if !held.told {
                outcome.give(&here, &held.payload);
            }
        }
    }
}

impl Found {
    fn first_of_state(&self) -> u64 {
        self.state().first().map_or(self.last + 1, |(offset, _)| *offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coalesce::Class;
    use crate::message::Message;

    const UPLOAD: u32 = 3;

    fn epoch(number: u64) -> Epoch {
        Epoch(std::num::NonZeroU64::new(number).unwrap())
    }

    fn at(epoch_number: u64, offset: u64) -> Position {
        Position { epoch: epoch(epoch_number), offset }
    }

    fn lane(index: u32) -> LaneId {
        LaneId { index, generation: 0 }
    }

    /// A payload that says where it stands.
    fn payload(offset: u64) -> Payload {
        Message::new(offset.to_string(), Class::default())
    }

    fn found(number: u64, offsets: std::ops::RangeInclusive<u64>, milestone: u64) -> Found {
        let last = *offsets.end();
        let entries = offsets.map(|offset| (offset, payload(offset))).collect();
        Found { epoch: epoch(number), last, milestone: Some(milestone), entries }
    }

    /// What one client sees of one upload.
    struct Client {
        recovery: Recovery,
        got: Vec<(u32, String)>,
    }

    impl Client {
        fn new() -> Self {
            let mut recovery = Recovery::default();
            recovery.set(true);
            Self { recovery, got: Vec::new() }
        }

        fn arrive(&mut self, position: Option<Position>) -> Arrival {
            let payload = payload(position.map_or(0, |position| position.offset));
            let arrival = self.recovery.arrive(UPLOAD, position, &payload);
            if arrival.turn == Turn::Now {
                let mut lanes = self.recovery.lanes_here(UPLOAD).into_vec();
                lanes.sort_by_key(|lane| lane.index);
                self.got.extend(lanes.iter().map(|lane| (lane.index, payload.text.to_string())));
            }
            arrival
        }

        fn ask(&mut self) -> (TrackId, Option<Position>) {
            self.recovery.next_ask().unwrap()
        }

        fn answer(&mut self, id: TrackId, found: Option<&Found>) -> bool {
            let resync = Message::new("resync", Class::default());
            let (outcome, due) = self.recovery.catch_up(id, found, &resync);
            let texts = outcome.deliveries.iter();
            self.got.extend(texts.map(|(lane, payload)| (lane.index, payload.text.to_string())));
            due
        }

        fn got(&mut self, lane: u32) -> Vec<String> {
            let of = |(index, text): (u32, String)| (index == lane).then_some(text);
            let (mine, others) =
                std::mem::take(&mut self.got).into_iter().partition(|g| g.0 == lane);
            self.got = others;
            Vec::<(u32, String)>::into_iter(mine).filter_map(of).collect()
        }
    }

    #[test]
    fn a_newcomer_gets_the_state_and_then_what_follows_it() {
        let mut client = Client::new();
        assert!(client.recovery.want(UPLOAD, lane(1), Want::default()));
        let (id, since) = client.ask();
        assert_eq!(since, None);
        for offset in 7..=9 {
            assert_eq!(client.arrive(Some(at(1, offset))).turn, Turn::Later);
        }
        assert!(!client.answer(id, Some(&found(1, 4..=8, 6))));
        assert_eq!(client.got(1), ["6", "7", "8", "9"]);
        assert_eq!(client.arrive(Some(at(1, 10))).turn, Turn::Now);
        assert_eq!(client.arrive(Some(at(1, 10))).turn, Turn::Never);
        assert_eq!(client.got(1), ["10"]);
    }

    #[test]
    fn others_are_not_held_up_by_a_newcomer() {
        let mut client = Client::new();
        client.recovery.want(UPLOAD, lane(1), Want::default());
        let (id, _) = client.ask();
        client.answer(id, None);
        assert_eq!(
            client.arrive(Some(at(1, 1))).turn,
            Turn::Now,
            "nothing was kept, so this is the first"
        );
        client.recovery.want(UPLOAD, lane(2), Want::default());
        let (id, since) = client.ask();
        assert_eq!(since, None, "the state is all that is wanted");
        assert_eq!(client.arrive(Some(at(1, 2))).turn, Turn::Now);
        assert_eq!(client.arrive(Some(at(1, 3))).turn, Turn::Now);
        assert_eq!(client.got(1), ["1", "2", "3"]);
        assert!(!client.answer(id, Some(&found(1, 1..=2, 2))));
        assert_eq!(client.got(2), ["2", "3"]);
        assert_eq!(client.arrive(Some(at(1, 4))).turn, Turn::Now);
        assert_eq!((client.got(1), client.got(2)), (vec!["4".into()], vec!["4".to_owned()]));
    }

    #[test]
    fn a_gap_is_filled_before_anything_newer() {
        let mut client = Client::new();
        client.recovery.want(UPLOAD, lane(1), Want::default());
        let (id, _) = client.ask();
        client.answer(id, Some(&found(1, 1..=5, 5)));
        client.got.clear();
        let arrival = client.arrive(Some(at(1, 8)));
        assert_eq!(arrival, Arrival { turn: Turn::Later, due: true, gap: true });
        assert_eq!(client.arrive(None).turn, Turn::Later, "in its turn");
        assert!(!client.arrive(Some(at(1, 9))).gap, "told once");
        let (id, since) = client.ask();
        assert_eq!(since, Some(at(1, 4)));
        assert!(!client.answer(id, Some(&found(1, 6..=8, 5))));
        assert_eq!(client.got(1), ["6", "7", "8", "0", "9"]);
    }

    #[test]
    fn what_history_does_not_have_is_told() {
        let mut client = Client::new();
        client.recovery.want(UPLOAD, lane(1), Want::default());
        let (id, _) = client.ask();
        client.answer(id, Some(&found(1, 1..=5, 5)));
        client.got.clear();
        client.arrive(Some(at(1, 20)));
        let (id, _) = client.ask();
        client.answer(id, Some(&found(1, 15..=20, 18)));
        assert_eq!(client.got(1), ["resync", "18", "19", "20"]);
        client.arrive(Some(at(2, 3)));
        let (id, _) = client.ask();
        client.answer(id, Some(&found(2, 1..=4, 2)));
        assert_eq!(client.got(1), ["resync", "2", "3", "4"], "another epoch");
        client.arrive(Some(at(1, 21)));
        let (id, _) = client.ask();
        client.answer(id, Some(&found(2, 2..=4, 2)));
        assert_eq!(client.got(1), [""; 0], "of a history that is gone");
        assert_eq!(client.arrive(Some(at(2, 5))).turn, Turn::Now);
        client.got.clear();
        client.recovery.compare_all();
        let (id, since) = client.ask();
        assert_eq!(since, Some(at(2, 4)), "one more than is missed");
        client.answer(id, Some(&found(2, 1..=2, 1)));
        assert_eq!(client.got(1), ["resync", "1", "2"], "a history that went back");
    }

    #[test]
    fn a_client_that_comes_back_goes_on_where_it_was() {
        let mut client = Client::new();
        for (number, since, expected) in [
            (1, at(1, 4), vec!["5", "6", "7"]),
            (2, at(1, 7), vec![]),
            (3, at(1, 2), vec!["resync", "6", "7"]),
            (4, at(2, 5), vec!["resync", "6", "7"]),
            (5, at(1, 9), vec!["resync", "6", "7"]),
        ] {
            let want = Want { since: Some(since), resync: false };
            client.recovery.want(UPLOAD, lane(number), want);
            let (id, _) = client.ask();
            assert!(!client.answer(id, Some(&found(1, 4..=7, 6))));
            assert_eq!(client.got(number), expected, "since {since:?}");
        }
        assert_eq!(client.arrive(Some(at(1, 8))).turn, Turn::Now);
        assert_eq!(client.got.len(), 5);
        client.recovery.want(UPLOAD, lane(1), Want { since: Some(at(1, 6)), resync: false });
        assert!(!client.recovery.is_due(), "it has been given that");
        client.recovery.want(UPLOAD, lane(1), Want::default());
        let (id, _) = client.ask();
        client.got.clear();
        client.answer(id, Some(&found(1, 6..=8, 8)));
        assert_eq!(client.got(1), ["resync", "8"], "asked for again, it is given again");
    }

    #[test]
    fn what_is_held_is_bounded_and_what_was_let_go_is_read() {
        let mut client = Client::new();
        client.recovery.want(UPLOAD, lane(1), Want::default());
        let (id, _) = client.ask();
        let most = MOST_HELD as u64;
        for offset in 1..=most + 10 {
            client.arrive(Some(at(1, offset)));
        }
        assert!(client.answer(id, Some(&found(1, 1..=1, 1))));
        assert_eq!(client.got(1), ["1"]);
        let (id, since) = client.ask();
        assert_eq!(since, Some(at(1, 0)));
        assert!(!client.answer(id, Some(&found(1, 2..=15, 1))));
        assert_eq!(client.got(1).last().map(String::as_str), Some(&*(most + 10).to_string()));
    }

    #[test]
    fn a_gap_that_no_read_fills_is_told() {
        let mut client = Client::new();
        client.recovery.want(UPLOAD, lane(1), Want::default());
        let (id, _) = client.ask();
        client.answer(id, Some(&found(1, 1..=1, 1)));
        client.got.clear();
        client.arrive(Some(at(1, 5)));
        let mut reads = 0;
        while let Some((id, _)) = client.recovery.next_ask() {
            reads += 1;
            assert!(reads < 100);
            client.answer(id, Some(&found(1, 1..=1, 1)));
        }
        assert_eq!(client.got(1), ["resync", "5"]);
    }

    #[test]
    fn a_lane_that_lost_something_is_told_when_it_has_caught_up() {
        let mut client = Client::new();
        for number in 1..=2 {
            client.recovery.want(UPLOAD, lane(number), Want::default());
        }
        let (id, _) = client.ask();
        client.answer(id, Some(&found(1, 1..=1, 1)));
        client.got.clear();
        client.recovery.lag(lane(1));
        assert_eq!(client.arrive(Some(at(1, 2))).turn, Turn::Now);
        assert_eq!((client.got(1), client.got(2)), (vec![], vec!["2".to_owned()]));
        assert!(!client.recovery.end_lags(|_| false));
        assert!(client.recovery.end_lags(|_| true));
        let (id, _) = client.ask();
        client.answer(id, Some(&found(1, 1..=2, 2)));
        assert_eq!((client.got(1), client.got(2)), (vec!["resync".into(), "2".to_owned()], vec![]));
        assert!(!client.recovery.has_lags());
    }

    #[test]
    fn who_leaves_is_forgotten() {
        let mut client = Client::new();
        client.recovery.want(UPLOAD, lane(1), Want::default());
        client.recovery.leave(UPLOAD, 1);
        assert!(!client.recovery.has_place(UPLOAD, lane(1)));
        let (id, _) = client.ask();
        client.recovery.forget(UPLOAD);
        client.recovery.want(UPLOAD, lane(2), Want::default());
        assert!(!client.answer(id, Some(&found(1, 1..=1, 1))), "of an older track");
        assert!(client.got.is_empty());
        let newer = LaneId { index: 2, generation: 1 };
        assert!(!client.recovery.has_place(UPLOAD, newer));
    }
}
