//! Takes a decoded message, asks the registry who it is for, and puts it into their lanes.
//!
//! One mutex holds the registry and the lanes: the I/O thread takes it twice for a batch, a pump once
//! for a batch, a map operation once. It is never held while Python runs, while a payload is
//! checked, or while a bell is rung. Lock order: router, then mailbox.

use std::any::Any;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard, RwLock};
use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::channel::Address;
use crate::lane::{Entry, LaneId, LaneLimits};
use crate::lanes::{Lanes, Pushed};
use crate::message::{self, Message, Payload};
use crate::post::{LoopMailbox, Post, Reply};
use crate::registry::{Map, Registry};
use crate::runtime;
use crate::stats::{ClientStats, DeliveryStats};

/// How often a listener that waits for a loop looks whether that loop still exists.
const LOOK_FOR_CLOSED_LOOPS: Duration = Duration::from_millis(100);

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
}

#[derive(Debug, Default)]
struct Inner {
    registry: Registry,
    lanes: Lanes,
}

/// Registry and lanes behind one lock.
#[derive(Debug)]
pub struct Router {
    inner: Mutex<Inner>,
    limits: LaneLimits,
    /// What became of messages for local connections.
    pub stats: DeliveryStats,
    owner: OnceLock<Weak<dyn Any + Send + Sync>>,
    /// Rung when a loop that was behind has taken something.
    caught_up: Notify,
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
    pub fn new(limits: LaneLimits) -> Arc<Self> {
        let (inner, stats, owner) = (Mutex::default(), DeliveryStats::default(), OnceLock::new());
        Arc::new(Self { inner, limits, stats, owner, caught_up: Notify::new() })
    }

    /// Says to what in the binding this router belongs. The first call counts.
    pub fn set_owner(&self, owner: Weak<dyn Any + Send + Sync>) {
        self.owner.get_or_init(|| owner);
    }

    /// What [`Router::set_owner`] was given, while it lives.
    pub fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.owner.get()?.upgrade()
    }

    /// A new lane that is emptied on the given loop. Nobody is connected by it yet.
    pub fn open(&self, mailbox: &Arc<LoopMailbox>) -> LaneId {
        self.inner.lock().lanes.open(mailbox)
    }

    /// Registers an open lane as a connection of a user. False if the lane is not open any more.
    pub fn connect(&self, user_id: &str, id: LaneId, mailbox: &Arc<LoopMailbox>) -> bool {
        let mut inner = self.inner.lock();
        if inner.lanes.get(id).is_none() {
            return false;
        }
        inner.lanes.ensure_living_loop(id.index, Some(mailbox));
        inner.register(user_id, id);
        true
    }

    /// Takes a user's connection out of the maps, and with the user's last one the user's
    /// subscriptions. True if the lane was closed with it, because no other user has it.
    pub fn disconnect(&self, user_id: &str, id: Option<LaneId>) -> bool {
        let mut inner = self.inner.lock();
        let id = id.filter(|id| inner.lanes.get(*id).is_some());
        let user = inner.registry.disconnect(user_id, id.map(|id| id.index));
        let (Some(user), Some(id)) = (user, id) else { return false };
        let Some(lane) = inner.lanes.get(id) else { return false };
        lane.users.retain(|other| *other != user);
        if !lane.users.is_empty() {
            return false;
        }
        let queue = inner.lanes.free(id.index);
        drop(inner);
        self.stats.dropped.add(queue.len() as u64);
        true
    }

    /// Takes a connection out of all maps. False if that was done before.
    pub fn close(&self, id: LaneId) -> bool {
        let mut inner = self.inner.lock();
        if inner.lanes.get(id).is_none() {
            return false;
        }
        inner.unregister(id.index);
        let queue = inner.lanes.free(id.index);
        drop(inner);
        self.stats.dropped.add(queue.len() as u64);
        true
    }

    /// Takes every connection and every subscription out of the maps. Returns the lanes that were
    /// open; their indices are free for use again.
    pub fn close_all(&self) -> Vec<LaneId> {
        let mut inner = self.inner.lock();
        inner.registry = Registry::default();
        let open = inner.lanes.all_open();
        let queues: Vec<_> = open.iter().map(|id| inner.lanes.free(id.index)).collect();
        drop(inner);
        self.stats.dropped.add(queues.iter().map(|queue| queue.len() as u64).sum());
        open
    }

    /// Makes a user watch an upload.
    pub fn subscribe(&self, user_id: &str, upload_id: &str) {
        self.inner.lock().registry.subscribe(user_id, upload_id);
    }

    /// Makes a user stop watching an upload.
    pub fn unsubscribe(&self, user_id: &str, upload_id: &str) {
        self.inner.lock().registry.unsubscribe(user_id, upload_id);
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
                    stats.not_json.add(u64::from(!message::is_json(text)));
                    payloads.push((address, Message::new(text)));
                }
                Err(_) => not_utf8.push(inbound.channel),
            }
        }
        stats.not_utf8.add(not_utf8.len() as u64);
        let mut spilled = Vec::new();
        let mut inner = self.inner.lock();
        for (address, payload) in payloads {
            self.push(&mut inner, address, &payload, None, home, &mut spilled);
        }
        self.tell(inner);
        not_utf8
    }

    /// Puts a message into the lanes of an address on behalf of this process. `reply` is answered
    /// when the last of them has sent or failed; at once if there are none.
    pub fn send(self: &Arc<Self>, address: Address<'_>, payload: &Payload, reply: Reply) {
        let home = Arc::clone(reply.mailbox());
        let ticket = Arc::new(reply);
        let mut spilled = Vec::new();
        let mut inner = self.inner.lock();
        self.push(&mut inner, address, payload, Some(&ticket), Some(&home), &mut spilled);
        self.tell(inner);
    }

    /// Ends the sends in `done` and takes the first message of up to `most` ready lanes of a loop,
    /// round robin.
    pub fn take(
        &self,
        mailbox: &Arc<LoopMailbox>,
        done: &mut Vec<LaneId>,
        most: usize,
        taken: &mut Vec<(LaneId, Entry)>,
    ) {
        let mut inner = self.inner.lock();
        for id in done.drain(..) {
            inner.lanes.finish(id);
        }
        inner.lanes.take(mailbox, most, taken);
        let caught_up = inner.lanes.may_have_caught_up();
        drop(inner);
        if caught_up {
            self.caught_up.notify_one();
        }
    }

    /// Waits while an event loop is so far behind that reading more would only fill memory. The
    /// broker keeps what is not read, as it does for a listener written in Python.
    pub async fn keep_pace(&self) {
        while self.is_behind() {
            // The second branch is for a loop that was closed meanwhile and takes nothing any more.
            tokio::select! {
                () = self.caught_up.notified() => {}
                () = tokio::time::sleep(LOOK_FOR_CLOSED_LOOPS) => {}
            }
        }
    }

    fn is_behind(&self) -> bool {
        let _gate = runtime::gate();
        self.inner.lock().lanes.are_behind(self.limits)
    }

    /// Says that a lane's send waits for its connection, and ends the sends in `done`. With `abandon`,
    /// nobody on that loop is at work any more.
    pub fn suspend(
        self: &Arc<Self>,
        mailbox: &Arc<LoopMailbox>,
        id: LaneId,
        done: &mut Vec<LaneId>,
        abandon: bool,
    ) {
        self.inner.lock().lanes.suspend(id);
        self.finish(mailbox, done, abandon);
    }

    /// Ends sends without taking more. With `abandon`, nobody on that loop is at work any more, so
    /// that it is told again if lanes are ready.
    pub fn finish(
        self: &Arc<Self>,
        mailbox: &Arc<LoopMailbox>,
        done: &mut Vec<LaneId>,
        abandon: bool,
    ) {
        let mut inner = self.inner.lock();
        for id in done.drain(..) {
            inner.lanes.finish(id);
        }
        if abandon {
            inner.lanes.abandon(mailbox);
        }
        self.tell(inner);
    }

    /// Ends the sends in `done`, puts back what was taken and not sent, and tells the loop again.
    pub fn put_back(
        self: &Arc<Self>,
        mailbox: &Arc<LoopMailbox>,
        done: &mut Vec<LaneId>,
        taken: impl IntoIterator<Item = (LaneId, Entry)>,
    ) {
        let mut inner = self.inner.lock();
        let homeless: Vec<Entry> =
            taken.into_iter().filter_map(|(id, entry)| inner.lanes.put_back(id, entry)).collect();
        for id in done.drain(..) {
            inner.lanes.finish(id);
        }
        inner.lanes.abandon(mailbox);
        self.tell(inner);
        self.stats.dropped.add(homeless.len() as u64);
    }

    /// The lanes of a loop that were given up since the last call; each is to be
    /// [released](Router::release).
    pub fn take_given_up(&self, mailbox: &Arc<LoopMailbox>) -> Vec<LaneId> {
        self.inner.lock().lanes.take_given_up(mailbox)
    }

    /// Frees the index of a lane that was given up.
    pub fn release(&self, id: LaneId) {
        self.inner.lock().lanes.release(id);
    }

    /// Whether the lane is open.
    pub fn is_open(&self, id: LaneId) -> bool {
        self.inner.lock().lanes.get(id).is_some()
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
        let mut given_up: SmallVec<[u32; 4]> = SmallVec::new();
        let lanes = &mut inner.lanes;
        let each = |index: u32| {
            // A connection that two users share comes twice, and may just have been given up.
            if given_up.contains(&index) {
                self.stats.dropped.add(1);
                return;
            }
            let entry = Entry { payload: Arc::clone(payload), ticket: ticket.cloned() };
            match lanes.push(index, entry, self.limits, home) {
                Pushed::Queued => {}
                Pushed::NoLoop => self.stats.dropped.add(1),
                Pushed::GivenUp(queue) => {
                    self.stats.dropped.add(queue.len() as u64 + 1);
                    self.stats.overflowed.add(1);
                    spilled.extend(queue);
                    given_up.push(index);
                }
            }
        };
        match address {
            Address::Upload(id) => inner.registry.lanes_of_upload(id, each),
            Address::User(id) => inner.registry.lanes_of_user(id, each),
        }
        for index in given_up {
            inner.unregister(index);
        }
    }

    /// Unlocks, and tells the loops that have something new to do.
    fn tell(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>) {
        let bells: SmallVec<[Arc<LoopMailbox>; 2]> = inner.lanes.tell_all().collect();
        drop(inner);
        for mailbox in bells {
            mailbox.post(Post::Ready(Arc::clone(self)));
        }
    }
}

impl Inner {
    fn register(&mut self, user_id: &str, id: LaneId) {
        let (user, new) = self.registry.connect(user_id, id.index);
        if let (true, Some(lane)) = (new, self.lanes.get(id)) {
            lane.users.push(user);
        }
    }

    /// Takes a lane out of the maps.
    fn unregister(&mut self, index: u32) {
        for user in self.lanes.take_users(index) {
            self.registry.disconnect_index(user, Some(index));
        }
    }
}

fn is_wanted(registry: &Registry, address: Address<'_>) -> bool {
    match address {
        Address::Upload(id) => registry.upload_is_watched(id),
        Address::User(id) => registry.user_is_connected(id),
    }
}
