//! What the router does so that no message of an upload is missed silently: places in the tracks of
//! `recovery/`, and what `reading.rs` reads of the broker's history.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use crate::channel::Address;
use crate::history::{Ask, Past, Settings, resync};
use crate::lane::{Entry, LaneId};
use crate::message::{Mark, Message, Payload};
use crate::post::LoopMailbox;
use crate::recovery::{Found, TrackId, Turn, Want};
use crate::router::{Inner, Router};

const OFF: u8 = 1;
const ON: u8 = 2;

/// What a subscription is to begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// For this connection of the user's; None: for those that have nothing of the upload yet.
    pub connection: Option<LaneId>,
    /// What it is to get.
    pub want: Want,
}

impl Router {
    /// Whether messages are expected to carry positions.
    pub fn recovers(&self) -> bool {
        self.recovers.load(Ordering::Acquire) == ON
    }

    /// Says which history the listener of this router has, if any.
    pub fn recover(&self, history: Option<Settings>) {
        let on = history.is_some();
        if !on && self.readers.load(Ordering::Acquire) > 0 {
            return;
        }
        let mode = if on { ON } else { OFF };
        if self.recovers.swap(mode, Ordering::AcqRel) == mode {
            return;
        }
        let mut inner = self.inner.lock();
        inner.recovery.set(history.map(|history| history.ttl));
        inner.registry.note_forgotten(on);
        if on {
            for upload in inner.registry.watched() {
                inner.place_all(upload);
            }
        }
        let due = inner.recovery.is_due();
        drop(inner);
        self.ring(due);
    }

    /// Somebody makes the reads that are due.
    pub fn attend(&self) {
        self.readers.fetch_add(1, Ordering::AcqRel);
    }

    /// Somebody does so no more.
    pub fn leave_unattended(&self) {
        self.readers.fetch_sub(1, Ordering::AcqRel);
    }

    /// Has every upload compared with its history: the listener may have missed something.
    pub fn compare_all(&self) {
        let due = self.inner.lock().recovery.compare_all();
        self.ring(due);
    }

    /// Makes a user watch an upload, and gives connections what they are to begin with.
    pub fn subscribe_with(&self, user_id: &str, upload_id: &str, wish: Wish) {
        let mut inner = self.inner.lock();
        inner.registry.subscribe(user_id, upload_id);
        // Before a listener has said whether there is a history, only what is asked for is noted.
        if inner.recovery.is_off() || (wish == Wish::default() && !inner.recovery.is_on()) {
            return;
        }
        inner.registry.note_forgotten(true);
        let Some(upload) = inner.registry.upload(upload_id.as_bytes()) else { return };
        let mut lanes: SmallVec<[u32; 8]> = SmallVec::new();
        inner.registry.lanes_of_user(user_id.as_bytes(), |lane| lanes.push(lane));
        let mut due = false;
        for index in lanes {
            let lane = inner.lanes.id_at(index);
            match wish.connection {
                Some(connection) if connection == lane => {
                    due |= inner.recovery.want(upload, lane, wish.want);
                }
                Some(_) => {}
                None if inner.recovery.has_place(upload, lane) => {}
                None => due |= inner.recovery.want(upload, lane, wish.want),
            }
        }
        drop(inner);
        self.ring(due);
    }

    /// Waits until a read is due.
    pub async fn read_due(&self) {
        loop {
            let rung = self.reads.notified();
            {
                let _gate = crate::runtime::gate();
                if self.inner.lock().recovery.is_due() {
                    return;
                }
            }
            rung.await;
        }
    }

    /// Takes up to `most` reads that are due.
    pub fn take_asks(&self, most: usize) -> Vec<(TrackId, Ask)> {
        let mut inner = self.inner.lock();
        let mut asks = Vec::new();
        while asks.len() < most {
            let Some((id, since)) = inner.recovery.next_ask() else { break };
            match inner.registry.upload_name(id.upload) {
                Some(name) => asks.push((id, Ask { upload: name.into(), since })),
                None => inner.recovery.forget(id.upload),
            }
        }
        asks
    }

    /// These reads failed, and are due again.
    pub fn ask_again(&self, ids: &[TrackId]) {
        let mut inner = self.inner.lock();
        for id in ids {
            inner.recovery.ask_again(*id);
        }
    }

    /// This read was refused, and who waits for it goes on without.
    pub fn go_without(
        self: &Arc<Self>,
        id: TrackId,
        upload_id: &str,
        home: Option<&Arc<LoopMailbox>>,
    ) -> bool {
        self.inner.lock().recovery.lack(id);
        self.catch_up(id, upload_id, None, home)
    }

    /// What was refused can be read.
    pub fn end_lack(&self) {
        let due = {
            let mut inner = self.inner.lock();
            let lacking = inner.recovery.end_lack();
            inner.recovery.compare_all() || lacking
        };
        self.ring(due);
    }

    /// A read found this; None if the broker keeps nothing of the upload. True if another is due.
    pub fn catch_up(
        self: &Arc<Self>,
        id: TrackId,
        upload_id: &str,
        past: Option<Past>,
        home: Option<&Arc<LoopMailbox>>,
    ) -> bool {
        let found = past.map(|past| self.prepare(upload_id, past));
        let resync = self.message(upload_id, resync(upload_id).into_boxed_str());
        let mut spilled = Vec::new();
        let mut inner = self.inner.lock();
        let (outcome, due) = inner.recovery.catch_up(id, found.as_ref(), &resync);
        let mut given_up = SmallVec::new();
        for (lane, payload) in outcome.deliveries {
            if inner.lanes.get(lane).is_some() {
                let entry = Entry::new(payload, None);
                self.queue(&mut inner, lane.index, entry, home, &mut spilled, &mut given_up);
            }
        }
        inner.unregister_all(&given_up);
        // Before the loops are told: who has seen a message finds it counted.
        self.stats.snapshots.add(outcome.snapshots);
        self.stats.recovered.add(outcome.recovered);
        self.stats.resyncs.add(outcome.resyncs);
        self.stats.duplicates.add(outcome.duplicates);
        self.tell(inner);
        due
    }

    /// As `push`, for a message of a watched upload where positions count.
    pub(crate) fn push_recorded(
        &self,
        inner: &mut Inner,
        upload_id: &[u8],
        payload: &Payload,
        home: Option<&Arc<LoopMailbox>>,
        spilled: &mut Vec<Entry>,
    ) {
        let Some(upload) = inner.registry.upload(upload_id) else { return };
        let mut due = inner.place_all(upload);
        let arrival = inner.recovery.arrive(upload, payload);
        self.stats.duplicates.add(u64::from(arrival.turn == Turn::Never));
        self.stats.gaps.add(u64::from(arrival.gap));
        due |= arrival.due;
        if arrival.turn == Turn::Now {
            let mut given_up = SmallVec::new();
            for lane in inner.recovery.lanes_here(upload) {
                if inner.lanes.get(lane).is_some() {
                    let entry = Entry::new(Arc::clone(payload), None);
                    self.queue(inner, lane.index, entry, home, spilled, &mut given_up);
                }
            }
            inner.unregister_all(&given_up);
        }
        self.ring(due);
    }

    /// Lanes that lost something are told once they have caught up.
    pub(crate) fn end_lags(&self, inner: &mut Inner) {
        let (lanes, recovery) = (&mut inner.lanes, &mut inner.recovery);
        let has_caught_up = |id| lanes.get(id).is_none_or(|lane| lane.queue.is_empty());
        let due = recovery.end_lags(has_caught_up);
        self.ring(due);
    }

    fn ring(&self, due: bool) {
        if due {
            self.reads.notify_one();
        }
    }

    fn message(&self, upload_id: &str, text: Box<str>) -> Payload {
        let address = Address::Upload(upload_id.as_bytes());
        let (class, _) = self.policy.coalescer.classify(address, &text);
        let mark = Mark::of(&text);
        Message::recorded(text, class, mark)
    }

    fn prepare(&self, upload_id: &str, past: Past) -> Found {
        let Past { epoch, last, milestone, entries } = past;
        let entries = entries.into_iter().filter_map(|(offset, payload)| {
            // What is no text cannot have come from fanwire; the hole it leaves is told.
            let text = String::from_utf8(payload.into_vec()).ok()?;
            Some((offset, self.message(upload_id, text.into_boxed_str())))
        });
        Found { epoch, last, milestone, entries: entries.collect() }
    }
}

impl Inner {
    /// Gives every lane that watches an upload a place. True if a read has become due.
    fn place_all(&mut self, upload: u32) -> bool {
        let mut due = false;
        let (lanes, recovery) = (&self.lanes, &mut self.recovery);
        self.registry.lanes_of_upload_at(upload, |index| {
            due |= recovery.want_if_new(upload, lanes.id_at(index));
        });
        due
    }

    /// A connection is a user's first: what the user watches already is a surprise to it.
    pub(crate) fn place_first(&mut self, user: u32, lane: LaneId) -> bool {
        let mut due = false;
        if self.registry.connections_at(user) == 1 {
            for upload in self.registry.uploads_at(user) {
                due |= self.recovery.want_if_new(upload, lane);
            }
        }
        due
    }

    /// A lane does not watch these uploads any more, unless for another user.
    pub(crate) fn leave_tracks(&mut self, uploads: &[u32], lane: u32) {
        for upload in uploads {
            let mut watches = false;
            self.registry.lanes_of_upload_at(*upload, |other| watches |= other == lane);
            if !watches {
                self.recovery.leave(*upload, lane);
            }
        }
    }

    /// The uploads of a user for whose places a lane counts.
    pub(crate) fn tracks_of(&self, user: u32) -> Vec<u32> {
        if self.recovery.is_used() { self.registry.uploads_at(user) } else { Vec::new() }
    }

    /// Messages were dropped from a lane.
    pub(crate) fn lag(&mut self, lane: LaneId) {
        let users: Vec<u32> = match self.lanes.get(lane) {
            Some(lane) if self.recovery.is_used() => lane.users.iter().collect(),
            _ => return,
        };
        let uploads: Vec<u32> =
            users.into_iter().flat_map(|user| self.registry.uploads_at(user)).collect();
        self.recovery.lag(lane, &uploads);
    }

    /// Uploads that nobody watches any more have no track.
    pub(crate) fn forget_tracks(&mut self) {
        for upload in self.registry.take_forgotten() {
            self.recovery.forget(upload);
        }
    }
}
