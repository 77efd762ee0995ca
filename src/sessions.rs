//! What the router does for topics: sessions subscribe, and their messages go into their lanes.
//!
//! A session's lane is in the hands of at most one turn: a Task in which the session's handlers run one
//! after another. A session whose last subscription ends in the middle of its turn keeps its lane until
//! the turn is over, so that its handlers never run side by side. Lock order: router, then wishes.

use std::sync::Arc;

use crate::coalesce::Class;
use crate::lane::{Entry, LaneId};
use crate::lanes::{Notice, Pushed};
use crate::message::{Envelope, Message, Payload};
use crate::post::LoopMailbox;
use crate::router::{Inbound, Inner, Policy, Router};
use crate::stats::ClientStats;
use crate::topics::{SubscriptionId, Unsubscribed};
use crate::wishes::{Waiting, Wishes};

/// How topics are called at the broker, and where they are asked for.
#[derive(Debug)]
pub struct Channels {
    /// What a channel's name has before the topic.
    pub prefix: Box<str>,
    /// What the listener is to be subscribed to.
    pub wishes: Arc<Wishes>,
}

impl Channels {
    /// The channel of a topic.
    pub fn of(&self, topic: &str) -> Box<str> {
        format!("{}{topic}", self.prefix).into_boxed_str()
    }

    fn topic<'a>(&self, channel: &'a [u8]) -> Option<&'a [u8]> {
        channel.strip_prefix(self.prefix.as_bytes())
    }
}

impl Router {
    /// Where topics are asked for; None where there is no broker.
    pub fn channels(&self) -> Option<&Channels> {
        self.channels.as_ref()
    }

    /// Subscribes a session to a topic. Its handlers run on the loop of `mailbox`, unless the session
    /// has a living one. `keep` is called under the lock with the subscription's number; it must be
    /// short and must not run Python.
    pub fn subscribe_topic(
        self: &Arc<Self>,
        session_id: &str,
        topic: &str,
        mailbox: &Arc<LoopMailbox>,
        keep: impl FnOnce(SubscriptionId),
    ) {
        let mut inner = self.inner.lock();
        let subscribed = inner.topics.subscribe(session_id, topic);
        keep(subscribed.id);
        let open = subscribed.lane.filter(|lane| inner.lanes.get(*lane).is_some());
        let lane = open.unwrap_or_else(|| {
            let lane = inner.lanes.open();
            if let Some(lane) = inner.lanes.get(lane) {
                lane.users.insert(subscribed.session);
            }
            inner.topics.set_lane(subscribed.session, lane);
            lane
        });
        inner.lanes.bind(lane.index, mailbox);
        if let (true, Some(channels)) = (subscribed.first, &self.channels) {
            channels.wishes.want(&channels.of(topic));
        }
        self.tell(inner);
    }

    /// Ends a session's subscription to a topic. Returns its number; None if there was none.
    pub fn unsubscribe_topic(&self, session_id: &str, topic: &str) -> Option<SubscriptionId> {
        let mut inner = self.inner.lock();
        let session = inner.topics.session(session_id)?;
        let ended = inner.topics.unsubscribe(session_id, topic)?;
        let waiting = self.unwant(&ended);
        let unread = inner.leave(session);
        drop(inner);
        drop(waiting); // answers them
        self.stats.dropped.add(unread.len() as u64);
        Some(ended.id)
    }

    /// Ends all subscriptions of a session. Returns their numbers.
    pub fn unsubscribe_all(&self, session_id: &str) -> Vec<SubscriptionId> {
        let mut inner = self.inner.lock();
        let Some(session) = inner.topics.session(session_id) else { return Vec::new() };
        let ended = inner.topics.unsubscribe_all(session_id);
        let waiting: Vec<_> = ended.iter().flat_map(|ended| self.unwant(ended)).collect();
        let unread = inner.leave(session);
        drop(inner);
        drop(waiting); // answers them
        self.stats.dropped.add(unread.len() as u64);
        ended.into_iter().map(|ended| ended.id).collect()
    }

    /// Ends all subscriptions to the topic of a channel, because the broker refuses it.
    pub fn drop_channel(self: &Arc<Self>, channel: &str) {
        let topic = self.channels.as_ref().and_then(|channels| channels.topic(channel.as_bytes()));
        let Some(Ok(topic)) = topic.map(std::str::from_utf8) else { return };
        let mut inner = self.inner.lock();
        let ended = inner.topics.drop_topic(topic);
        let mut unread = Vec::new();
        for (ended, session) in ended {
            if let Some(lane) = inner.topics.lane_of(session) {
                inner.lanes.notify(lane, Notice::Refused(ended.id));
            }
            unread.extend(inner.leave(session));
        }
        self.stats.dropped.add(unread.len() as u64);
        self.tell(inner);
    }

    /// Returns those who waited for the topic, to be answered without the lock.
    fn unwant(&self, ended: &Unsubscribed) -> Vec<Waiting> {
        match (&ended.last_of, &self.channels) {
            (Some(topic), Some(channels)) => channels.wishes.unwant(&channels.of(topic)),
            _ => Vec::new(),
        }
    }

    /// Routes a batch that came through subscriptions by name. `home` is the loop that takes over
    /// lanes whose own is gone.
    ///
    /// Returns the channels whose payloads were skipped, and what is wrong with them.
    pub fn route_topics<'a>(
        self: &Arc<Self>,
        batch: &[Inbound<'a>],
        home: Option<&Arc<LoopMailbox>>,
        stats: &ClientStats,
    ) -> Vec<(&'a [u8], String)> {
        stats.received.add(batch.len() as u64);
        let Some(channels) = &self.channels else { return Vec::new() };
        let wanted: Vec<(&'a [u8], Inbound<'a>)> = {
            let inner = self.inner.lock();
            let named = batch.iter().filter_map(|inbound| {
                channels.topic(inbound.channel).map(|topic| (topic, *inbound))
            });
            named.filter(|(topic, _)| inner.topics.is_wanted(topic)).collect()
        };
        stats.unwatched.add((batch.len() - wanted.len()) as u64);
        // Read without the lock: a large one would hold up the event loop.
        let (mut wrong, mut good) = (Vec::new(), Vec::with_capacity(wanted.len()));
        for (topic, inbound) in wanted {
            match Envelope::read(inbound.payload, inbound.form) {
                Ok(Envelope { message, except }) => {
                    good.push((topic, Message::new(message.get(), Class::default()), except));
                }
                Err(why) => wrong.push((inbound.channel, why)),
            }
        }
        stats.not_json.add(wrong.len() as u64);
        let mut inner = self.inner.lock();
        let mut spilled = Vec::new();
        for (topic, payload, except) in good {
            self.push_topic(&mut inner, topic, &payload, except.as_deref(), home, &mut spilled);
        }
        self.tell(inner);
        wrong
    }

    /// Puts a message into the lanes of all sessions that listen to a topic, without a broker.
    pub fn broadcast(self: &Arc<Self>, topic: &str, payload: &Payload, except: Option<&str>) {
        let mut inner = self.inner.lock();
        let mut spilled = Vec::new();
        self.push_topic(&mut inner, topic.as_bytes(), payload, except, None, &mut spilled);
        self.tell(inner);
    }

    fn push_topic(
        &self,
        inner: &mut Inner,
        topic: &[u8],
        payload: &Payload,
        except: Option<&str>,
        home: Option<&Arc<LoopMailbox>>,
        // What is to be dropped once the lock is gone.
        spilled: &mut Vec<Entry>,
    ) {
        let except = except.and_then(|session_id| inner.topics.session(session_id));
        let Inner { topics, lanes, .. } = inner;
        topics.each(topic, except, |lane, subscription| {
            let entry = Entry::of(subscription, Arc::clone(payload));
            let Policy { limits, overflow, .. } = self.policy;
            match lanes.push(lane.index, entry, limits, overflow, home) {
                Pushed::Queued { .. } => {}
                Pushed::Instead { dropped, .. } => {
                    self.stats.dropped.add(dropped.len() as u64);
                    spilled.extend(dropped);
                }
                Pushed::NoLoop => self.stats.dropped.add(1),
                Pushed::GivenUp { entries, .. } => {
                    self.stats.dropped.add(entries.len() as u64);
                    spilled.extend(entries);
                }
            }
        });
    }

    /// Takes the first message of up to `most` lanes that are ready on a loop. Their turns begin.
    pub fn begin_turns(
        self: &Arc<Self>,
        mailbox: &Arc<LoopMailbox>,
        most: usize,
    ) -> Vec<(LaneId, Entry)> {
        let mut taken = Vec::new();
        let mut inner = self.inner.lock();
        inner.lanes.take(mailbox, most, &mut taken);
        if taken.is_empty() {
            self.tell(inner);
        }
        taken
    }

    /// The next message of a lane whose turn it is; None when nothing waits: the turn is over then.
    pub fn next_in_turn(&self, id: LaneId) -> Option<Entry> {
        let mut inner = self.inner.lock();
        let next = inner.lanes.get(id).and_then(crate::lane::Lane::pop);
        let unread = if next.is_none() { inner.end_turn(id) } else { Vec::new() };
        drop(inner);
        self.stats.dropped.add(unread.len() as u64);
        next
    }

    /// Says whether the handler whose turn it is waits for something.
    pub fn set_waiting(&self, id: LaneId, waits: bool) {
        self.inner.lock().lanes.set_waiting(id, waits);
    }

    /// One of a session's subscriptions.
    pub fn subscription_of(&self, session_id: &str) -> Option<SubscriptionId> {
        self.inner.lock().topics.subscription_of(session_id)
    }

    /// Ends a lane's turn early. What was taken and not handled goes back, and its loop is to be told
    /// by [`Router::retell`].
    pub fn end_turn(&self, mailbox: &Arc<LoopMailbox>, id: LaneId, unhandled: Option<Entry>) {
        let mut inner = self.inner.lock();
        let mut unread = inner.end_turn_with(id, unhandled);
        inner.lanes.abandon(mailbox);
        drop(inner);
        self.stats.dropped.add(unread.len() as u64);
        unread.clear(); // without the lock: a message may be an object of Python's
    }

    /// Ends the turns of lanes before they began. What was taken goes back, and the loop is to be told.
    pub fn put_back_turns(
        &self,
        mailbox: &Arc<LoopMailbox>,
        taken: impl IntoIterator<Item = (LaneId, Entry)>,
    ) {
        let mut inner = self.inner.lock();
        let mut unread = Vec::new();
        for (id, entry) in taken {
            unread.extend(inner.end_turn_with(id, Some(entry)));
        }
        inner.lanes.abandon(mailbox);
        drop(inner);
        self.stats.dropped.add(unread.len() as u64);
        drop(unread); // without the lock: a message may be an object of Python's
    }

    /// The name of a lane's session.
    pub fn session_of(&self, id: LaneId) -> Option<String> {
        let mut inner = self.inner.lock();
        let session = inner.lanes.get(id)?.users.iter().next()?;
        inner.topics.session_name(session).map(String::from)
    }

    /// Sessions, topics, subscriptions.
    pub fn topic_counts(&self) -> (usize, usize, usize) {
        self.inner.lock().topics.counts()
    }
}

impl Inner {
    /// Lets go of a session that has no subscription left, at the end of its turn if it has one.
    /// Returns what it has not read.
    fn leave(&mut self, session: u32) -> Vec<Entry> {
        let Some(id) = self.topics.unused_lane(session) else { return Vec::new() };
        let unread = if self.lanes.is_in_hand(id) {
            self.lanes.get(id).map(crate::lane::Lane::clear).unwrap_or_default()
        } else {
            self.topics.remove_session(session);
            if self.lanes.get(id).is_some() {
                self.lanes.free(id.index)
            } else {
                return Vec::new();
            }
        };
        unread.into()
    }

    /// Ends a lane's turn, with what was taken and not handled. Returns what is to be dropped without
    /// the lock.
    fn end_turn_with(&mut self, id: LaneId, unhandled: Option<Entry>) -> Vec<Entry> {
        let homeless = unhandled.and_then(|entry| self.lanes.unread(id, entry));
        let mut unread = self.end_turn(id);
        unread.extend(homeless);
        unread
    }

    fn end_turn(&mut self, id: LaneId) -> Vec<Entry> {
        self.lanes.finish(id);
        let session = self.lanes.get(id).and_then(|lane| lane.users.iter().next());
        session.map(|session| self.leave(session)).unwrap_or_default()
    }
}
