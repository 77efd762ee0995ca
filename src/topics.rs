//! Which session listens to which topic.
//!
//! A session is a subscriber with one lane, whatever the number of its topics; each pair of a session
//! and a topic is a subscription, known by number. Each name is stored once. No locks and no queues
//! here: `router.rs` puts both around it.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::index_set::IndexSet;
use crate::lane::LaneId;
use crate::registry::Directory;

/// Names a subscription. The generation tells it from an older one that had the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubscriptionId {
    /// Index of the subscription, and of what belongs to it in the binding's slab.
    pub index: u32,
    /// How often the index had been used before.
    pub generation: u32,
}

#[derive(Debug, Default)]
struct Topic {
    subscriptions: IndexSet,
}

#[derive(Debug, Default)]
struct Session {
    lane: Option<LaneId>,
    subscriptions: IndexSet,
}

#[derive(Clone, Copy, Debug, Default)]
struct Subscription {
    generation: u32,
    topic: u32,
    session: u32,
}

/// Sessions, topics, and the subscriptions between them.
#[derive(Debug)]
pub(crate) struct Topics {
    names: Directory<Topic>,
    sessions: Directory<Session>,
    subscriptions: Vec<Subscription>,
    free: Vec<u32>,
    pairs: HashMap<(u32, u32), u32, RandomState>,
}

impl Default for Topics {
    fn default() -> Self {
        Self {
            names: Directory::new(),
            sessions: Directory::new(),
            subscriptions: Vec::new(),
            free: Vec::new(),
            pairs: HashMap::default(),
        }
    }
}

/// What a subscription has led to.
pub(crate) struct Subscribed {
    pub id: SubscriptionId,
    /// The session's index.
    pub session: u32,
    /// The session's lane; None if it is to be given one.
    pub lane: Option<LaneId>,
    /// Whether the topic had no subscription before.
    pub first: bool,
}

/// What the end of a subscription has led to.
pub(crate) struct Unsubscribed {
    pub id: SubscriptionId,
    /// The topic, if this was its last subscription.
    pub last_of: Option<Box<str>>,
}

impl Topics {
    /// Subscribes a session to a topic; a pair that is there stays as it is.
    pub fn subscribe(&mut self, session_id: &str, topic: &str) -> Subscribed {
        let session = self.sessions.find_or_insert(session_id);
        let topic = self.names.find_or_insert(topic);
        let lane = self.sessions.get(session).and_then(|session| session.value.lane);
        if let Some(index) = self.pairs.get(&(session, topic)).copied() {
            return Subscribed { id: self.id_at(index), session, lane, first: false };
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.subscriptions.push(Subscription::default());
            u32::try_from(self.subscriptions.len() - 1)
                .unwrap_or_else(|_| unreachable!("2^32 subscriptions need more memory than fits"))
        });
        let subscription = &mut self.subscriptions[index as usize];
        (subscription.topic, subscription.session) = (topic, session);
        self.pairs.insert((session, topic), index);
        if let Some(session) = self.sessions.get_mut(session) {
            session.subscriptions.insert(index);
        }
        let mut first = false;
        if let Some(topic) = self.names.get_mut(topic) {
            first = topic.subscriptions.is_empty();
            topic.subscriptions.insert(index);
        }
        Subscribed { id: self.id_at(index), session, lane, first }
    }

    /// Gives a session its lane.
    pub fn set_lane(&mut self, session: u32, lane: LaneId) {
        if let Some(session) = self.sessions.get_mut(session) {
            session.lane = Some(lane);
        }
    }

    /// Ends a subscription; None if there is none.
    pub fn unsubscribe(&mut self, session_id: &str, topic: &str) -> Option<Unsubscribed> {
        let session = self.sessions.find(session_id.as_bytes())?;
        let topic = self.names.find(topic.as_bytes())?;
        let index = self.pairs.get(&(session, topic)).copied()?;
        Some(self.end(index))
    }

    /// Ends all subscriptions of a session.
    pub fn unsubscribe_all(&mut self, session_id: &str) -> Vec<Unsubscribed> {
        let session = self.sessions.by_name(session_id.as_bytes());
        let all: Vec<u32> =
            session.map(|session| session.subscriptions.iter().collect()).unwrap_or_default();
        all.into_iter().map(|index| self.end(index)).collect()
    }

    /// Ends all subscriptions to a topic. Returns them with their sessions.
    pub fn drop_topic(&mut self, topic: &str) -> Vec<(Unsubscribed, u32)> {
        let topic = self.names.by_name(topic.as_bytes());
        let all: Vec<u32> =
            topic.map(|topic| topic.subscriptions.iter().collect()).unwrap_or_default();
        let sessions: Vec<u32> =
            all.iter().map(|index| self.subscriptions[*index as usize].session).collect();
        all.into_iter().map(|index| self.end(index)).zip(sessions).collect()
    }

    fn end(&mut self, index: u32) -> Unsubscribed {
        let id = self.id_at(index);
        let Subscription { topic, session, .. } = self.subscriptions[index as usize];
        self.subscriptions[index as usize].generation = id.generation.wrapping_add(1);
        self.free.push(index);
        self.pairs.remove(&(session, topic));
        if let Some(session) = self.sessions.get_mut(session) {
            session.subscriptions.remove(index);
        }
        let mut last = false;
        if let Some(topic) = self.names.get_mut(topic) {
            topic.subscriptions.remove(index);
            last = topic.subscriptions.is_empty();
        }
        let last_of =
            last.then(|| self.names.get(topic).map(|topic| topic.name.as_str().into())).flatten();
        if last {
            self.names.remove(topic);
        }
        Unsubscribed { id, last_of }
    }

    /// The index of a session.
    pub fn session(&self, session_id: &str) -> Option<u32> {
        self.sessions.find(session_id.as_bytes())
    }

    /// A session's name.
    pub fn session_name(&self, session: u32) -> Option<&str> {
        self.sessions.get(session).map(|session| session.name.as_str())
    }

    /// One of a session's subscriptions.
    pub fn subscription_of(&self, session_id: &str) -> Option<SubscriptionId> {
        let session = self.sessions.by_name(session_id.as_bytes())?;
        session.subscriptions.iter().next().map(|index| self.id_at(index))
    }

    /// A session's lane.
    pub fn lane_of(&self, session: u32) -> Option<LaneId> {
        self.sessions.get(session)?.value.lane
    }

    /// The lane of a session that has no subscription left.
    pub fn unused_lane(&self, session: u32) -> Option<LaneId> {
        let session = &self.sessions.get(session)?.value;
        if session.subscriptions.is_empty() { session.lane } else { None }
    }

    /// Forgets a session that has no subscription left.
    pub fn remove_session(&mut self, session: u32) {
        self.sessions.remove(session);
    }

    /// Calls `each` with the lane and the id of every subscription to a topic, but not with those of
    /// one session.
    pub fn each(
        &self,
        topic: &[u8],
        except: Option<u32>,
        mut each: impl FnMut(LaneId, SubscriptionId),
    ) {
        let Some(topic) = self.names.by_name(topic) else { return };
        for index in topic.subscriptions.iter() {
            let session = self.subscriptions[index as usize].session;
            let lane = self.sessions.get(session).and_then(|session| session.value.lane);
            if let Some(lane) = lane.filter(|_| except != Some(session)) {
                each(lane, self.id_at(index));
            }
        }
    }

    /// Whether anybody listens to the topic.
    pub fn is_wanted(&self, topic: &[u8]) -> bool {
        self.names.find(topic).is_some()
    }

    /// Sessions, topics, subscriptions.
    pub fn counts(&self) -> (usize, usize, usize) {
        let sessions = self.sessions.iter().filter(|s| !s.value.subscriptions.is_empty()).count();
        (sessions, self.names.iter().count(), self.pairs.len())
    }

    fn id_at(&self, index: u32) -> SubscriptionId {
        SubscriptionId { index, generation: self.subscriptions[index as usize].generation }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Subscribe(u8, u8),
        Unsubscribe(u8, u8),
        UnsubscribeAll(u8),
        DropTopic(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..6u8, 0..20u8).prop_map(|(s, t)| Step::Subscribe(s, t)),
            3 => (0..6u8, 0..20u8).prop_map(|(s, t)| Step::Unsubscribe(s, t)),
            1 => (0..6u8).prop_map(Step::UnsubscribeAll),
            1 => (0..20u8).prop_map(Step::DropTopic),
        ]
    }

    proptest! {
        /// Against a plain set of pairs: first, last, members, and ids that never come twice.
        #[test]
        fn behaves_as_a_set_of_pairs(steps in proptest::collection::vec(step(), 0..300)) {
            let mut topics = Topics::default();
            let mut pairs: BTreeMap<(u8, u8), SubscriptionId> = BTreeMap::new();
            let mut seen = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Subscribe(session, topic) => {
                        let first = !pairs.keys().any(|(_, other)| *other == topic);
                        let subscribed = topics.subscribe(&session.to_string(), &topic.to_string());
                        prop_assert_eq!(subscribed.first, first);
                        let lane = LaneId { index: u32::from(session), generation: 0 };
                        topics.set_lane(subscribed.session, lane);
                        let old = pairs.insert((session, topic), subscribed.id);
                        prop_assert!(old.is_none_or(|old| old == subscribed.id));
                        let new = seen.insert((subscribed.id.index, subscribed.id.generation));
                        prop_assert_eq!(new, old.is_none());
                    }
                    Step::Unsubscribe(session, topic) => {
                        let ended = topics.unsubscribe(&session.to_string(), &topic.to_string());
                        let was = pairs.remove(&(session, topic));
                        prop_assert_eq!(ended.as_ref().map(|ended| ended.id), was);
                        let last = was.is_some() && !pairs.keys().any(|(_, other)| *other == topic);
                        prop_assert_eq!(ended.is_some_and(|ended| ended.last_of.is_some()), last);
                    }
                    Step::UnsubscribeAll(session) => {
                        let ended = topics.unsubscribe_all(&session.to_string()).len();
                        let before = pairs.len();
                        pairs.retain(|(other, _), _| *other != session);
                        prop_assert_eq!(ended, before - pairs.len());
                    }
                    Step::DropTopic(topic) => {
                        let ended = topics.drop_topic(&topic.to_string()).len();
                        let before = pairs.len();
                        pairs.retain(|(_, other), _| *other != topic);
                        prop_assert_eq!(ended, before - pairs.len());
                    }
                }
            }
            let subscribed: BTreeSet<u8> = pairs.keys().map(|(_, topic)| *topic).collect();
            prop_assert_eq!(topics.counts().1, subscribed.len());
            prop_assert_eq!(topics.counts().2, pairs.len());
            for topic in 0..20u8 {
                let mut found = BTreeSet::new();
                topics.each(topic.to_string().as_bytes(), None, |lane, id| {
                    found.insert((lane.index, id.index, id.generation));
                });
                let expected = pairs.iter().filter(|((_, other), _)| *other == topic);
                let expected: BTreeSet<_> = expected
                    .map(|((session, _), id)| (u32::from(*session), id.index, id.generation))
                    .collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
