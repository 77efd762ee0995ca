//! What waits for a broker that cannot be reached: bounded, in order, progress coalesced.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::num::NonZeroU64;
use std::sync::Arc;

use tokio::time::Instant;

use crate::channel::Address;
use crate::coalesce::{Class, Coalescer};
use crate::config::OutageLimits;
use crate::error::Error;
use crate::message::Outgoing;
use crate::outbox::Item;
use crate::post::{Receipt, Reply, Status};
use crate::stats::ClientStats;

/// What an outbox needs to keep messages during an outage.
#[derive(Debug)]
pub struct Keeping {
    /// How much, and for how long.
    pub limits: OutageLimits,
    /// What is progress.
    pub coalescer: Arc<Coalescer>,
    /// Counters.
    pub stats: Arc<ClientStats>,
}

impl Keeping {
    /// Finds out what a message is, unless somebody has. Not before it has to wait: in a quiet life
    /// nobody looks into a message.
    pub fn classify(&self, outgoing: &mut Outgoing) {
        if outgoing.class == Class::default()
            && outgoing.record.is_none()
            && let Some(address) = Address::parse(outgoing.channel.as_bytes())
            && let Ok(text) = std::str::from_utf8(&outgoing.payload)
        {
            outgoing.class = self.coalescer.classify(address, text).0;
        }
    }
}

#[derive(Debug)]
struct Kept {
    item: Item,
    since: Instant,
}

impl Kept {
    fn size(&self) -> usize {
        self.item.outgoing.payload.len()
    }

    /// Whether nobody knows if the broker has it, so that it must be sent again as it is.
    fn is_unclear(&self) -> bool {
        self.item.outgoing.record.as_ref().is_some_and(|record| record.unclear)
    }
}

/// The messages, under numbers that grow from front to back.
#[derive(Debug)]
pub(crate) struct Backlog {
    kept: BTreeMap<u64, Kept>,
    /// Those that are progress.
    progress: BTreeSet<u64>,
    /// The last one of each stream.
    last: HashMap<NonZeroU64, u64>,
    bytes: usize,
    keeping: Arc<Keeping>,
}

/// An answer that is due, to be given without a lock.
pub(crate) type Answers = Vec<(Reply, Result<Receipt, Error>)>;

impl Backlog {
    pub fn new(keeping: Arc<Keeping>) -> Self {
        let (kept, progress, last) = (BTreeMap::new(), BTreeSet::new(), HashMap::new());
        Self { kept, progress, last, bytes: 0, keeping }
    }

    pub fn len(&self) -> usize {
        self.kept.len()
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The lowest number among them.
    pub fn oldest(&self) -> Option<u64> {
        self.kept.values().map(|kept| kept.item.number).min()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a message behind the others: in the place of older progress, or where there is room. Who
    /// waits for it goes on waiting; who is not to wait any longer is added to the answers.
    pub fn push(&mut self, mut item: Item, answers: &mut Answers) -> Result<(), Error> {
        let since = *item.since.get_or_insert_with(Instant::now);
        if let Some(at) = self.replaceable(&item.outgoing) {
            self.bytes += item.outgoing.payload.len();
            if let Some(old) = self.kept.get(&at) {
                item.number = old.item.number; // in its place, and it came no later
            }
            if let Some(old) = self.kept.insert(at, Kept { item, since }) {
                self.bytes -= old.size();
                let receipt = Receipt { status: Status::Coalesced, ..Receipt::default() };
                answers.extend(old.item.reply.map(|reply| (reply, Ok(receipt))));
            }
            self.keeping.stats.publish_coalesced.add(1);
        } else {
            let size = item.outgoing.payload.len();
            if let Err(error) = self.make_room(size, answers) {
                answers.extend(item.reply.take().map(|reply| (reply, Err(error.clone()))));
                return Err(error);
            }
            let at = self.kept.last_key_value().map_or(1 << 63, |(last, _)| last + 1);
            if let Some(stream) = item.outgoing.class.stream {
                self.last.insert(stream, at);
            }
            self.insert(at, Kept { item, since });
        }
        self.keeping.stats.publish_queued.add(1);
        Ok(())
    }

    /// Puts messages back in front of the others, in their order. What is too much then goes as for a
    /// new message, but nothing of these.
    pub fn put_back(&mut self, items: Vec<Item>, answers: &mut Answers) {
        let since = Instant::now();
        let new = items.iter().filter(|item| item.since.is_none()).count();
        self.keeping.stats.publish_queued.add(new as u64);
        for mut item in items.into_iter().rev() {
            let at = self.kept.first_key_value().map_or(1 << 63, |(first, _)| first - 1);
            if let Some(stream) = item.outgoing.class.stream {
                self.last.entry(stream).or_insert(at);
            }
            let since = *item.since.get_or_insert(since);
            self.insert(at, Kept { item, since });
        }
        while self.is_over(0, 0) {
            if !self.drop_progress(answers) {
                let Some((newest, _)) = self.kept.last_key_value() else { return };
                self.give_up(*newest, answers);
            }
        }
    }

    /// Those who wait for messages that are kept now.
    pub fn answer(&mut self, answers: &mut Answers) {
        let receipt = Receipt { status: Status::Queued, ..Receipt::default() };
        let waiting = self.kept.values_mut().filter_map(|kept| kept.item.reply.take());
        answers.extend(waiting.map(|reply| (reply, Ok(receipt))));
    }

    /// Takes messages from the front. Of those whose fate is unclear, one of each upload at a time: if
    /// the broker refuses one of them and takes the next, it would believe to have had both.
    pub fn take(&mut self, most: usize, bytes: usize) -> Vec<Item> {
        let mut taken: Vec<Item> = Vec::new();
        let mut size = 0;
        let mut uploads = HashSet::new();
        while taken.len() < most
            && let Some((first, kept)) = self.kept.first_key_value()
        {
            size += kept.size();
            if size > bytes && !taken.is_empty() {
                break;
            }
            if kept.is_unclear() {
                if !uploads.insert(kept.item.outgoing.channel.clone()) {
                    break;
                }
            } else if !uploads.is_empty() {
                break;
            }
            let first = *first;
            taken.extend(self.remove(first).map(|kept| kept.item));
        }
        taken
    }

    /// Everything.
    pub fn clear(self) -> impl Iterator<Item = Item> {
        self.kept.into_values().map(|kept| kept.item)
    }

    /// Drops what has waited for too long.
    pub fn expire(&mut self, answers: &mut Answers) {
        let (now, time) = (Instant::now(), self.keeping.limits.time);
        let old = self.kept.iter().filter(|(_, kept)| now.duration_since(kept.since) > time);
        let old: Vec<u64> = old.map(|(at, _)| *at).collect();
        self.keeping.stats.publish_expired.add(old.len() as u64);
        for at in old {
            let kept = self.remove(at);
            answers.extend(kept.and_then(|kept| kept.item.reply).map(|reply| (reply, stopped())));
        }
    }

    /// Where older progress is of which this is newer, with nothing else of its stream behind it.
    fn replaceable(&self, outgoing: &Outgoing) -> Option<u64> {
        let Class { stream: Some(stream), key: Some(key) } = outgoing.class else { return None };
        let at = *self.last.get(&stream)?;
        let kept = self.kept.get(&at)?;
        let old = &kept.item.outgoing;
        if old.class.key != Some(key) || kept.is_unclear() || old.channel != outgoing.channel {
            return None;
        }
        let newer = match (&old.record, &outgoing.record) {
            // A key says that neither may stand for the other, and so does a version that is older.
            (Some(old), Some(new)) => {
                old.key.is_none()
                    && new.key.is_none()
                    && (old.version.is_none() || new.version > old.version)
                    && (old.version.is_some() || new.version.is_none())
            }
            _ => true,
        };
        newer.then_some(at)
    }

    fn is_over(&self, more: usize, more_bytes: usize) -> bool {
        let limits = self.keeping.limits;
        self.kept.len() + more > limits.messages || self.bytes + more_bytes > limits.bytes
    }

    fn make_room(&mut self, size: usize, answers: &mut Answers) -> Result<(), Error> {
        let limits = self.keeping.limits;
        let full = Error::Full { messages: self.kept.len(), bytes: self.bytes };
        if size > limits.bytes || limits.messages == 0 {
            return Err(full);
        }
        while self.is_over(1, size) {
            if !self.drop_progress(answers) {
                return Err(full);
            }
        }
        Ok(())
    }

    /// Drops the oldest progress. False if there is none.
    fn drop_progress(&mut self, answers: &mut Answers) -> bool {
        let oldest = self.progress.first().copied();
        if let Some(at) = oldest {
            self.give_up(at, answers);
        }
        oldest.is_some()
    }

    fn give_up(&mut self, at: u64, answers: &mut Answers) {
        self.keeping.stats.publish_dropped.add(1);
        let kept = self.remove(at);
        answers.extend(kept.and_then(|kept| kept.item.reply).map(|reply| (reply, stopped())));
    }

    fn insert(&mut self, at: u64, kept: Kept) {
        self.bytes += kept.size();
        if kept.item.outgoing.class.key.is_some() {
            self.progress.insert(at);
        }
        self.kept.insert(at, kept);
    }

    fn remove(&mut self, at: u64) -> Option<Kept> {
        let kept = self.kept.remove(&at)?;
        self.bytes -= kept.size();
        self.progress.remove(&at);
        if let Some(stream) = kept.item.outgoing.class.stream
            && self.last.get(&stream) == Some(&at)
        {
            self.last.remove(&stream);
        }
        Some(kept)
    }
}

/// For whoever still waits for a message that is dropped.
fn stopped() -> Result<Receipt, Error> {
    Err(Error::Stopped)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::coalesce::Rule;
    use crate::message::Record;

    fn backlog(messages: usize, bytes: usize) -> Backlog {
        let limits = OutageLimits { messages, bytes, time: Duration::from_secs(60) };
        let coalescer = Arc::new(Coalescer::new(&[Rule::of_uploads()]).unwrap());
        Backlog::new(Arc::new(Keeping { limits, coalescer, stats: Arc::default() }))
    }

    fn item(keeping: &Keeping, upload: &str, text: &str) -> Item {
        let mut outgoing = Outgoing::new(format!("upload:{upload}").into(), text.to_owned().into());
        keeping.classify(&mut outgoing);
        Item::new(outgoing, None)
    }

    fn progress(number: u32) -> String {
        format!(r#"{{"action":"upload_progress","n":"{number:03}"}}"#)
    }

    fn other(number: u32) -> String {
        format!(r#"{{"action":"other_thing____","n":"{number:03}"}}"#)
    }

    fn push(backlog: &mut Backlog, upload: &str, text: &str) -> bool {
        let item = item(&Arc::clone(&backlog.keeping), upload, text);
        backlog.push(item, &mut Answers::new()).is_ok()
    }

    fn texts(items: Vec<Item>) -> Vec<String> {
        let text = |item: Item| String::from_utf8(item.outgoing.payload.to_vec()).unwrap();
        items.into_iter().map(text).collect()
    }

    #[test]
    fn newer_progress_takes_the_place_of_older_unless_something_came_between() {
        let mut waits = backlog(100, 10_000);
        for text in [progress(1), progress(2), other(3), progress(4), progress(5)] {
            assert!(push(&mut waits, "a", &text));
            assert!(push(&mut waits, "b", &progress(9)));
        }
        assert_eq!(waits.keeping.stats.publish_coalesced.get(), 6);
        let left = [progress(2), progress(9), other(3), progress(5)];
        assert_eq!(texts(waits.take(10, 10_000)), left);
        assert!(waits.is_empty() && waits.bytes() == 0 && waits.last.is_empty());
        assert!(push(&mut waits, "a", &progress(6)), "what is under way is not overwritten");
        assert_eq!(waits.len(), 1);
    }

    #[test]
    fn the_oldest_progress_makes_room_and_nothing_else_does() {
        let size = progress(0).len();
        for (messages, bytes) in [(3, 10_000), (100, 3 * size)] {
            let mut waits = backlog(messages, bytes);
            for (upload, text) in [("a", other(1)), ("b", progress(2)), ("c", progress(3))] {
                assert!(push(&mut waits, upload, &text));
            }
            assert!(push(&mut waits, "d", &other(4)));
            assert!(push(&mut waits, "e", &other(5)));
            assert!(!push(&mut waits, "f", &other(6)));
            assert_eq!(waits.keeping.stats.publish_dropped.get(), 2);
            assert_eq!(texts(waits.take(10, 10_000)), [other(1), other(4), other(5)]);
        }
    }

    #[test]
    fn what_comes_back_stands_in_front() {
        let mut waits = backlog(4, 10_000);
        for number in 4..7 {
            assert!(push(&mut waits, "a", &other(number)));
        }
        let keeping = Arc::clone(&waits.keeping);
        let back = (1..4).map(|number| item(&keeping, "a", &other(number))).collect();
        waits.put_back(back, &mut Answers::new());
        let left: Vec<String> = (1..5).map(other).collect();
        assert_eq!(texts(waits.take(10, 10_000)), left, "and the newest is too much");
    }

    #[test]
    fn of_what_is_unclear_one_of_each_upload_is_taken_at_a_time() {
        let mut waits = backlog(10, 10_000);
        let unclear = |upload: &str, number| {
            let record = Record { unclear: true, number, ..Record::new(upload, false) };
            let mut outgoing = Outgoing::new(upload.into(), number.to_string().into());
            outgoing.record = Some(Box::new(record));
            Item::new(outgoing, None)
        };
        let back = vec![unclear("a", 1), unclear("b", 2), unclear("a", 3)];
        waits.put_back(back, &mut Answers::new());
        assert!(push(&mut waits, "a", &other(4)));
        assert_eq!(texts(waits.take(10, 10_000)), ["1", "2"]);
        assert_eq!(texts(waits.take(10, 10_000)), ["3"]);
        assert_eq!(waits.take(10, 10_000).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_goes() {
        let mut waits = backlog(10, 10_000);
        assert!(push(&mut waits, "a", &progress(1)) && push(&mut waits, "a", &other(2)));
        tokio::time::advance(Duration::from_secs(40)).await;
        assert!(push(&mut waits, "a", &other(3)));
        tokio::time::advance(Duration::from_secs(21)).await;
        waits.expire(&mut Answers::new());
        assert_eq!(waits.keeping.stats.publish_expired.get(), 2);
        assert_eq!(texts(waits.take(10, 10_000)), [other(3)]);
    }
}
