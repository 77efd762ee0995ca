//! What a batch of messages becomes: notification channels and texts, all different.

use std::borrow::Cow;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

use super::frame::{self, MOST};
use super::name;
use crate::message::Outgoing;
use crate::runtime;

/// Why a message cannot be carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit(pub &'static str);

/// Pairs of a notification channel and a text, as two arrays.
#[derive(Debug, Default)]
pub struct Notifications<'a> {
    /// The notification channels.
    pub channels: Vec<Cow<'a, str>>,
    /// The texts.
    pub texts: Vec<Cow<'a, str>>,
    /// The index of each pair, by what it is.
    seen: HashTable<usize>,
    hasher: RandomState,
    /// Equal pairs so far.
    equal: u32,
}

impl<'a> Notifications<'a> {
    /// Room for so many.
    pub fn with_capacity(count: usize) -> Self {
        Self {
            channels: Vec::with_capacity(count),
            texts: Vec::with_capacity(count),
            seen: HashTable::with_capacity(count),
            ..Self::default()
        }
    }

    /// Adds what a message becomes.
    pub fn add(&mut self, outgoing: &'a Outgoing) -> Result<(), Unfit> {
        let channel: &'a str = &outgoing.channel;
        if channel.contains('\0') {
            return Err(Unfit("PostgreSQL carries no NUL in a channel's name"));
        }
        if outgoing.except.as_deref().is_some_and(|except| except.contains('\0')) {
            return Err(Unfit("PostgreSQL carries no NUL in a session's id"));
        }
        let body = std::str::from_utf8(&outgoing.payload).map_err(|_| Unfit("it is not UTF-8"))?;
        let notified = name::of(channel);
        let is_named = *notified != *channel;
        let message = frame::Message {
            channel: is_named.then_some(channel),
            except: outgoing.except.as_deref(),
            body,
        };
        let text: Cow<'a, str> = if is_named || message.except.is_some() {
            frame::write(&message).into()
        } else {
            body.into()
        };
        self.push(notified, text);
        Ok(())
    }

    fn push(&mut self, channel: Cow<'a, str>, text: Cow<'a, str>) {
        let mut text = text;
        // PostgreSQL would merge it with an equal one.
        while text.len() <= MOST && self.has(&channel, &text) {
            let mut marked = text.trim_end_matches(frame::DIGITS).to_owned();
            frame::mark(&mut marked, self.equal);
            self.equal += 1;
            text = marked.into();
        }
        if text.len() > MOST {
            for part in frame::split(runtime::random().get(), &text) {
                self.insert(channel.clone(), part.into());
            }
            return;
        }
        self.insert(channel, text);
    }

    fn has(&self, channel: &str, text: &str) -> bool {
        let is_equal =
            |index: &usize| *self.texts[*index] == *text && *self.channels[*index] == *channel;
        self.seen.find(self.hasher.hash_one(text), is_equal).is_some()
    }

    fn insert(&mut self, channel: Cow<'a, str>, text: Cow<'a, str>) {
        let Self { seen, texts, hasher, .. } = self;
        let hash = hasher.hash_one(&*text);
        seen.insert_unique(hash, texts.len(), |index| hasher.hash_one(&*texts[*index]));
        self.channels.push(channel);
        self.texts.push(text);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::broker::postgres::frame::{Frame, Joiner};

    fn outgoing(channel: &str, payload: &str) -> Outgoing {
        Outgoing::new(channel.into(), payload.to_owned().into())
    }

    /// What a listener makes of them.
    fn read(notifications: &Notifications<'_>) -> Vec<(String, Option<String>, String)> {
        let pairs = notifications.channels.iter().zip(&notifications.texts);
        let different: HashSet<_> = pairs.clone().collect();
        assert_eq!(different.len(), notifications.texts.len(), "PostgreSQL merges equal ones");
        let mut joiner = Joiner::new(1 << 24);
        let mut all = Vec::new();
        for (channel, text) in pairs {
            assert!(text.len() <= MOST);
            let whole = match frame::read(text).unwrap() {
                Frame::Part(part) => joiner.add(part).0,
                Frame::Message(_) => Some(text.to_string()),
            };
            let Some(whole) = whole else { continue };
            let message = frame::message(&whole).unwrap();
            let channel = message.channel.unwrap_or(channel).to_owned();
            all.push((channel, message.except.map(str::to_owned), message.body.to_owned()));
        }
        all
    }

    #[test]
    fn messages_arrive_as_they_are_and_where_they_are_for() {
        let long = format!("\"{}\"", "ü".repeat(9000));
        let long_channel = "t".repeat(100);
        let except = Outgoing { except: Some("s:1".into()), ..outgoing("pyview_a", "[1]") };
        let batch = [
            outgoing("pyview_a", "1"),
            outgoing("upload:1", "{}"),
            outgoing(&long_channel, "2"),
            outgoing("", "3"),
            outgoing("pyview_b", &long),
            outgoing("user:u", &long),
            except,
        ];
        let mut notifications = Notifications::default();
        for outgoing in &batch {
            notifications.add(outgoing).unwrap();
        }
        let expected = batch.iter().map(|outgoing| {
            let payload = String::from_utf8(outgoing.payload.to_vec()).unwrap();
            let except = outgoing.except.as_ref().map(ToString::to_string);
            (outgoing.channel.to_string(), except, payload)
        });
        assert_eq!(read(&notifications), expected.collect::<Vec<_>>());
        assert_eq!(notifications.texts[0], "1", "bare on the wire");
        assert_eq!(notifications.channels[1], "fanwire");
    }

    #[test]
    fn equal_ones_arrive_as_often_as_they_were_published() {
        let most = format!("\"{}\"", "x".repeat(MOST - 2));
        let mut batch: Vec<_> = (0..300).map(|_| outgoing("a", "1")).collect();
        batch.extend((0..3).map(|_| outgoing("b", &most)));
        batch.extend([outgoing("a", "1 "), outgoing("a", "1\t"), outgoing("b", "1")]);
        let mut notifications = Notifications::with_capacity(10);
        for outgoing in &batch {
            notifications.add(outgoing).unwrap();
        }
        let read = read(&notifications);
        assert_eq!(read.len(), 306);
        assert_eq!(read.iter().filter(|(channel, ..)| channel == "a").count(), 302);
        assert!(read[300..303].iter().all(|(_, _, body)| *body == most));
    }

    #[test]
    fn what_cannot_be_carried_is_refused() {
        let except = Outgoing { except: Some("\0".into()), ..outgoing("a", "1") };
        let no_text = Outgoing::new("a".into(), bytes::Bytes::from_static(b"\xff"));
        let bad = [outgoing("a\0b", "1"), except, no_text];
        let mut notifications = Notifications::default();
        for outgoing in &bad {
            assert!(notifications.add(outgoing).is_err());
        }
        assert!(notifications.texts.is_empty() && notifications.channels.is_empty());
    }
}
