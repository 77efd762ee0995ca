//! Takes a decoded message, asks the registry who it is for, and puts it into their lanes.
//!
//! One mutex holds the registry and the lanes: the I/O thread takes it twice for a batch, a pump once
//! for a batch, a map operation once. It is never held while Python runs, while a payload is
//! checked, or while a bell is rung. Lock order: router, then mailbox.

use std::any::Any;
use std::sync::atomic::{AtomicU8, AtomicUsize};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, MutexGuard, RwLock};
use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::channel::Address;
use crate::coalesce::Coalescer;
use crate::lane::{Entry, LaneId, LaneLimits, Overflow};
use crate::lanes::{Lanes, Pushed};
use crate::message::{Form, Mark, Message, Outgoing, Payload};
use crate::post::{LoopMailbox, Post, Reply};
use crate::recovering::Wish;
use crate::recovery::Recovery;
use crate::registry::{Map, Registry};
use crate::sessions::Channels;
use crate::stats::{ClientStats, DeliverySpread, DeliveryStats};
use crate::topics::Topics;

/// The router of the process-wide manager, looked up when a message arrives.
static CURRENT: RwLock<Option<Arc<Router>>> = RwLock::new(None);

/// The router of the process-wide manager.
pub fn current() -> Option<Arc<Router>> {
    CURRENT.read().clone()
}

/// Makes a router that of the process-wide manager.
pub fn set_current(router: Arc<Router>) {
    *CURRENT.write() = Some(router);
}

/// A message as a listener reads it, still in the listener's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Inbound<'a> {
    /// The channel it was published on.
    pub channel: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
    /// How a topic's message lies in the payload.
    pub form: Form<'a>,
}

impl<'a> Inbound<'a> {
    /// One whose payload, if it is for a topic, is an envelope.
    pub fn new(channel: &'a [u8], payload: &'a [u8]) -> Self {
        Self { channel, payload, form: Form::Envelope }
    }
}

impl<'a> From<&'a Outgoing> for Inbound<'a> {
    fn from(outgoing: &'a Outgoing) -> Self {
        Self::new(outgoing.channel.as_bytes(), &outgoing.payload)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub registry: Registry,
    pub recovery: Recovery,
    pub topics: Topics,
    pub lanes: Lanes,
}

/// How a router treats what it routes.
#[derive(Debug, Default)]
pub struct Policy {
    /// How much may wait for one slow connection.
    pub limits: LaneLimits,
    /// What happens then.
    pub overflow: Overflow,
    /// Which messages are progress.
    pub coalescer: Coalescer,
}

/// Registry and lanes behind one lock.
#[derive(Debug)]
pub struct Router {
    pub(crate) inner: Mutex<Inner>,
    pub(crate) policy: Policy,
    /// Where the channels of topics are asked for; None where there is no broker.
    pub(crate) channels: Option<Channels>,
    /// What became of messages for local connections.
    pub stats: DeliveryStats,
    /// How deliveries are spread in time.
    pub spread: DeliverySpread,
    /// Whether messages are expected to carry positions, if that is known.
    pub(crate) recovers: AtomicU8,
    /// Listeners that make the reads which are due.
    pub(crate) readers: AtomicUsize,
    /// Rung when a read of the history is due.
    pub(crate) reads: Notify,
    owner: OnceLock<Weak<dyn Any + Send + Sync>>,
}

/// How much is there now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Open lanes: one for each connection.
    pub lanes: usize,
    /// Messages waiting in lanes.
    pub queued_messages: usize,
    /// Bytes of payload waiting in lanes.
    pub queued_bytes: usize,
}

impl Router {
    /// A router with nobody connected.
    pub fn new(policy: Policy) -> Arc<Self> {
        Self::with_channels(policy, None)
    }

    /// A router of topics, whose channels are asked for by `channels`.
    pub fn with_channels(policy: Policy, channels: Option<Channels>) -> Arc<Self> {
        let (inner, stats, owner) = (Mutex::default(), DeliveryStats::default(), OnceLock::new());
        let spread = DeliverySpread::default();
        let (recovers, reads) = (AtomicU8::new(0), Notify::new());
        Arc::new(Self {
            inner,
            policy,
            channels,
            stats,
            spread,
            recovers,
            readers: AtomicUsize::new(0),
            reads,
            owner,
        })
    }

    /// Says to what in the binding this router belongs. The first call counts.
    pub fn set_owner(&self, owner: Weak<dyn Any + Send + Sync>) {
        self.owner.get_or_init(|| owner);
    }

    /// What [`Router::set_owner`] was given, while it lives.
    pub fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.owner.get()?.upgrade()
    }

    /// A new lane. Nobody is connected by it yet, and it is to be [bound](Router::bind) to a loop.
    pub fn open(&self) -> LaneId {
        self.inner.lock().lanes.open()
    }

    /// Registers an open lane as a connection of a user. False if the lane is not open any more.
    pub fn connect(&self, user_id: &str, id: LaneId) -> bool {
        let mut inner = self.inner.lock();
        if inner.lanes.get(id).is_none() {
            return false;
        }
        let (user, new) = inner.registry.connect(user_id, id.index);
        if let (true, Some(lane)) = (new, inner.lanes.get(id)) {
            lane.users.insert(user);
        }
        if new && inner.recovery.is_on() && inner.place_first(user, id) {
            drop(inner);
            self.reads.notify_one();
        }
        true
    }

    /// Has a lane emptied on a loop, unless it has a living one.
    pub fn bind(self: &Arc<Self>, id: LaneId, mailbox: &Arc<LoopMailbox>) {
        let mut inner = self.inner.lock();
        if inner.lanes.get(id).is_some() {
            inner.lanes.bind(id.index, mailbox);
        }
        self.tell(inner);
    }

    /// Takes a user's connection out of the maps, and with the user's last one the user's
    /// subscriptions. True if the lane was closed with it, because no other user has it.
    pub fn disconnect(&self, user_id: &str, id: Option<LaneId>) -> bool {
        let mut inner = self.inner.lock();
        let id = id.filter(|id| inner.lanes.get(*id).is_some());
        let watched =
            inner.registry.user(user_id).map_or_else(Vec::new, |user| inner.tracks_of(user));
        let user = inner.registry.disconnect(user_id, id.map(|id| id.index));
        inner.forget_tracks();
        if let Some(id) = id {
            inner.leave_tracks(&watched, id.index);
        }
        let (Some(user), Some(id)) = (user, id) else { return false };
        let Some(lane) = inner.lanes.get(id) else { return false };
        lane.users.remove(user);
        if !lane.users.is_empty() {
            return false;
        }
        let queue = inner.lanes.free(id.index);
        drop(inner);
        self.stats.dropped.add(queue.len() as u64);
        true
    }

    /// Takes a connection out of all maps. Returns how many messages waited for it; None if that was
    /// done before.
    pub fn close(&self, id: LaneId) -> Option<usize> {
        let mut inner = self.inner.lock();
        inner.lanes.get(id)?;
        inner.unregister(id.index);
        let queue = inner.lanes.free(id.index);
        drop(inner);
        self.stats.dropped.add(queue.len() as u64);
        Some(queue.len())
    }

    /// Takes every connection and every subscription out of the maps. Returns the lanes that were
    /// open; their indices are free for use again.
    pub fn close_all(&self) -> Vec<LaneId> {
        let mut inner = self.inner.lock();
        inner.registry = Registry::default();
        inner.recovery.clear();
        let recovers = inner.recovery.is_on();
        inner.registry.note_forgotten(recovers);
        let open = inner.lanes.all_open();
        let queues: Vec<_> = open.iter().map(|id| inner.lanes.free(id.index)).collect();
        drop(inner);
        self.stats.dropped.add(queues.iter().map(|queue| queue.len() as u64).sum());
        open
    }

    /// Makes a user watch an upload.
    pub fn subscribe(&self, user_id: &str, upload_id: &str) {
        self.subscribe_with(user_id, upload_id, Wish::default());
    }

    /// Makes a user stop watching an upload.
    pub fn unsubscribe(&self, user_id: &str, upload_id: &str) {
        let mut inner = self.inner.lock();
        let upload = inner.registry.upload(upload_id.as_bytes());
        inner.registry.unsubscribe(user_id, upload_id);
        inner.forget_tracks();
        if let Some(upload) = upload.filter(|_| inner.recovery.is_used()) {
            let mut lanes: SmallVec<[u32; 4]> = SmallVec::new();
            inner.registry.lanes_of_user(user_id.as_bytes(), |lane| lanes.push(lane));
            for lane in lanes {
                inner.leave_tracks(&[upload], lane);
            }
        }
    }

    /// Looks at the maps under the lock; `look` must be short and must not run Python.
    pub fn inspect<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.inner.lock().registry)
    }

    /// The ids that are keys of one of the maps.
    pub fn names(&self, map: Map) -> Vec<String> {
        self.inspect(|registry| registry.names(map).into_iter().map(String::from).collect())
    }

    /// The lanes of a user's connections; None when there are none.
    pub fn connections_of(&self, user_id: &str) -> Option<Vec<LaneId>> {
        let inner = self.inner.lock();
        let lanes = inner.registry.connections_of(user_id)?;
        Some(lanes.into_iter().map(|index| inner.lanes.id_at(index)).collect())
    }

    /// How much is there now.
    pub fn gauges(&self) -> Gauges {
        let (lanes, queued_messages, queued_bytes) = self.inner.lock().lanes.totals();
        Gauges { lanes, queued_messages, queued_bytes }
    }

    /// Routes a batch from a broker. `home` is the loop that takes over lanes whose own is gone.
    ///
    /// Returns the channels whose payloads were skipped because they are not UTF-8.
    pub fn route<'a>(
        self: &Arc<Self>,
        batch: &[Inbound<'a>],
        home: Option<&Arc<LoopMailbox>>,
        stats: &ClientStats,
    ) -> Vec<&'a [u8]> {
        stats.received.add(batch.len() as u64);
        let wanted: Vec<(Address<'a>, Inbound<'a>)> = {
            let inner = self.inner.lock();
            let addressed = batch
                .iter()
                .filter_map(|inbound| Some((Address::parse(inbound.channel)?, *inbound)));
            addressed.filter(|(address, _)| is_wanted(&inner.registry, *address)).collect()
        };
        stats.unwatched.add((batch.len() - wanted.len()) as u64);
        if wanted.is_empty() {
            return Vec::new();
        }
        // The payloads are checked without the lock: a large one would hold up the event loop.
        let mut not_utf8 = Vec::new();
        let mut payloads: Vec<(Address<'a>, Payload)> = Vec::with_capacity(wanted.len());
        for (address, inbound) in wanted {
            match std::str::from_utf8(inbound.payload) {
                Ok(text) => {
                    let (class, is_json) = self.policy.coalescer.classify(address, text);
                    stats.not_json.add(u64::from(!is_json));
                    let mark = match address {
                        Address::Upload(_) => Mark::of(text),
                        Address::User(_) => None,
                    };
                    payloads.push((address, Message::recorded(text, class, mark)));
                }
                Err(_) => not_utf8.push(inbound.channel),
            }
        }
        stats.not_utf8.add(not_utf8.len() as u64);
        let mut spilled = Vec::new();
        let mut inner = self.inner.lock();
        for (address, payload) in payloads {
            match address {
                Address::Upload(id) if inner.recovery.is_on() => {
                    self.push_recorded(&mut inner, id, &payload, home, &mut spilled);
                }
                _ => self.push(&mut inner, address, &payload, None, home, &mut spilled),
            }
        }
        self.tell(inner);
        not_utf8
    }

    /// Puts a message into the lanes of an address on behalf of this process. `reply` is answered
    /// when the last of them has sent or failed; at once if there are none. It is never overwritten,
    /// because somebody waits for it.
    pub fn send(self: &Arc<Self>, address: Address<'_>, text: &str, reply: Reply) {
        let (class, _) = self.policy.coalescer.classify(address, text);
        let payload = Message::new(text, class);
        let home = Arc::clone(reply.mailbox());
        let ticket = Arc::new(reply);
        let mut spilled = Vec::new();
        let mut inner = self.inner.lock();
        self.push(&mut inner, address, &payload, Some(&ticket), Some(&home), &mut spilled);
        self.tell(inner);
    }

    fn push(
        &self,
        inner: &mut Inner,
        address: Address<'_>,
        payload: &Payload,
        ticket: Option<&Arc<Reply>>,
        home: Option<&Arc<LoopMailbox>>,
        // What is to be dropped once the lock is gone.
        spilled: &mut Vec<Entry>,
    ) {
        let mut lanes: SmallVec<[u32; 8]> = SmallVec::new();
        match address {
            Address::Upload(id) => inner.registry.lanes_of_upload(id, |lane| lanes.push(lane)),
            Address::User(id) => inner.registry.lanes_of_user(id, |lane| lanes.push(lane)),
        }
        let mut given_up = SmallVec::new();
        for index in lanes {
            let entry = Entry::new(Arc::clone(payload), ticket.cloned());
            self.queue(inner, index, entry, home, spilled, &mut given_up);
        }
        inner.unregister_all(&given_up);
    }

    /// Puts an entry into one lane. Lanes that are given up for it are to be unregistered.
    pub(crate) fn queue(
        &self,
        inner: &mut Inner,
        index: u32,
        entry: Entry,
        home: Option<&Arc<LoopMailbox>>,
        spilled: &mut Vec<Entry>,
        given_up: &mut SmallVec<[u32; 4]>,
    ) {
        // A connection that two users share comes twice, and may just have been given up.
        if !inner.lanes.is_open(index) {
            self.stats.dropped.add(1);
            return;
        }
        match inner.lanes.push(index, entry, self.policy.limits, self.policy.overflow, home) {
            Pushed::Queued { coalesced } => self.stats.coalesced.add(u64::from(coalesced)),
            Pushed::Instead { dropped, coalesced } => {
                self.stats.coalesced.add(u64::from(coalesced));
                self.stats.dropped.add(dropped.len() as u64);
                spilled.extend(dropped);
                inner.lag(inner.lanes.id_at(index));
            }
            Pushed::NoLoop => self.stats.dropped.add(1),
            Pushed::GivenUp { entries, coalesced } => {
                self.stats.coalesced.add(u64::from(coalesced));
                self.stats.dropped.add(entries.len() as u64);
                self.stats.overflowed.add(1);
                spilled.extend(entries);
                given_up.push(index);
            }
        }
    }

    /// Unlocks, and tells the loops that have something new to do.
    pub(crate) fn tell(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>) {
        let bells: SmallVec<[Arc<LoopMailbox>; 2]> = inner.lanes.tell_all().collect();
        drop(inner);
        for mailbox in bells {
            mailbox.post(Post::Ready(Arc::clone(self)));
        }
    }
}

impl Inner {
    /// Takes a lane out of the maps.
    pub(crate) fn unregister(&mut self, index: u32) {
        for user in self.lanes.take_users(index).iter() {
            let watched = self.tracks_of(user);
            self.registry.disconnect_index(user, Some(index));
            self.forget_tracks();
            self.leave_tracks(&watched, index);
        }
    }

    /// Takes lanes out of the maps.
    pub(crate) fn unregister_all(&mut self, lanes: &[u32]) {
        for index in lanes {
            self.unregister(*index);
        }
    }
}

fn is_wanted(registry: &Registry, address: Address<'_>) -> bool {
    match address {
        Address::Upload(id) => registry.upload_is_watched(id),
        Address::User(id) => registry.user_is_connected(id),
    }
}
