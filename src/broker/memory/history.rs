//! What the broker inside this process keeps of uploads.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;

use crate::history::{Ask, Epoch, Past, Position, Settings};
use crate::message::Record;
use crate::post::{Receipt, Status};

/// Uploads looked at by each publish, whether they have expired: more than one, so that what is
/// forgotten keeps up with what is new.
const SWEPT: usize = 2;

/// The history of every upload that has one.
#[derive(Debug, Default)]
pub(super) struct Histories {
    by_upload: HashMap<Box<str>, History>,
    /// Every upload that has one, in the order in which they are looked at.
    round: VecDeque<Box<str>>,
}

#[derive(Debug)]
struct History {
    epoch: Epoch,
    /// The offset of the newest message.
    last: u64,
    /// The newest progress or final message.
    milestone: Option<(u64, Bytes)>,
    version: Option<u64>,
    /// The newest messages without a gap.
    log: VecDeque<Bytes>,
    /// Idempotency keys with their offsets, oldest first.
    keys: VecDeque<(Box<str>, u64)>,
    expires: Instant,
}

impl Histories {
    /// Records a message, and gives its whole payload if it is to be published.
    pub(super) fn append(
        &mut self,
        record: &Record,
        head: &[u8],
        settings: Settings,
        now: Instant,
    ) -> (Receipt, Option<Bytes>) {
        self.sweep(now);
        if !self.by_upload.contains_key(&record.upload) {
            self.round.push_back(record.upload.clone());
        }
        let fresh = || History::new(now);
        let history = self.by_upload.entry(record.upload.clone()).or_insert_with(fresh);
        if history.expires < now {
            *history = fresh();
        }
        history.append(record, head, settings, now)
    }

    /// What is kept of an upload.
    pub(super) fn read(&self, ask: &Ask, now: Instant) -> Option<Past> {
        let history = self.by_upload.get(&ask.upload).filter(|history| history.expires >= now);
        history.map(|history| history.read(ask.since))
    }

    /// Forgets what has expired, a few uploads at a time.
    fn sweep(&mut self, now: Instant) {
        for _ in 0..SWEPT {
            let Some(upload) = self.round.pop_front() else { return };
            if self.by_upload.get(&upload).is_some_and(|history| history.expires >= now) {
                self.round.push_back(upload);
            } else {
                self.by_upload.remove(&upload);
            }
        }
    }
}

impl History {
    fn new(now: Instant) -> Self {
        Self {
            epoch: Epoch::random(),
            last: 0,
            milestone: None,
            version: None,
            log: VecDeque::new(),
            keys: VecDeque::new(),
            expires: now,
        }
    }

    fn append(
        &mut self,
        record: &Record,
        head: &[u8],
        settings: Settings,
        now: Instant,
    ) -> (Receipt, Option<Bytes>) {
        let size = settings.size as usize;
        if let Some(key) = &record.key
            && let Some((_, offset)) = self.keys.iter().find(|(other, _)| other == key)
        {
            let position = Some(Position { epoch: self.epoch, offset: *offset });
            return (Receipt { status: Status::Duplicate, receivers: None, position }, None);
        }
        if record.version.is_some() && record.version <= self.version {
            return (Receipt { status: Status::Stale, receivers: None, position: None }, None);
        }
        self.last += 1;
        let position = Position { epoch: self.epoch, offset: self.last };
        let payload = Bytes::from([head, position.tail().as_bytes()].concat());
        self.version = self.version.max(record.version);
        if record.milestone {
            self.milestone = Some((self.last, payload.clone()));
        }
        if let Some(key) = &record.key {
            self.keys.push_back((key.clone(), self.last));
        }
        self.log.push_back(payload.clone());
        self.log.drain(..self.log.len().saturating_sub(size));
        self.keys.drain(..self.keys.len().saturating_sub(size));
        self.expires = now + settings.ttl;
        (Receipt { position: Some(position), ..Receipt::default() }, Some(payload))
    }

    fn read(&self, since: Option<Position>) -> Past {
        let since = since.filter(|since| since.epoch == self.epoch && since.offset <= self.last);
        let milestone = self.milestone.as_ref().map(|(offset, _)| *offset);
        let from = match since {
            Some(since) if since.offset == self.last => u64::MAX,
            Some(since) => milestone.unwrap_or(u64::MAX).min(since.offset + 1),
            None => milestone.unwrap_or(1),
        };
        let oldest = self.last + 1 - self.log.len() as u64;
        let alone = self.milestone.iter().filter(|(offset, _)| *offset < oldest).cloned();
        let all = alone.chain((oldest..).zip(self.log.iter().cloned()));
        let wanted = all.filter(|(offset, _)| *offset >= from);
        let entries = wanted.map(|(offset, payload)| (offset, (&*payload).into())).collect();
        Past { epoch: self.epoch, last: self.last, milestone, entries }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const SETTINGS: Settings = Settings { size: 4, ttl: Duration::from_secs(10) };

    fn ask(upload: &str, since: Option<Position>) -> Ask {
        Ask { upload: upload.into(), since }
    }

    fn offsets(past: &Past) -> Vec<u64> {
        past.entries.iter().map(|(offset, _)| *offset).collect()
    }

    #[test]
    fn what_is_published_is_what_is_read_and_carries_its_position() {
        let (mut all, now) = (Histories::default(), Instant::now());
        let (taken, payload) = all.append(&Record::new("u", true), b"{\"a\":1,", SETTINGS, now);
        let (position, payload) = (taken.position.unwrap(), payload.unwrap());
        assert_eq!(Position::of(&payload), Some(position));
        let past = all.read(&ask("u", None), now).unwrap();
        assert_eq!((past.epoch, past.last, past.milestone), (position.epoch, 1, Some(1)));
        assert_eq!(past.entries, [(1, (&*payload).into())]);
        assert_eq!(all.read(&ask("v", None), now), None);
    }

    #[test]
    fn keys_and_versions_are_published_once() {
        let (mut all, now) = (Histories::default(), Instant::now());
        let mut append = |key: Option<&str>, version| {
            let key = key.map(Into::into);
            let record = Record { key, version, ..Record::new("u", false) };
            let (taken, payload) = all.append(&record, b"{", SETTINGS, now);
            assert_eq!(payload.is_some(), taken.status == Status::Published);
            (taken.status, taken.position.map(|position| position.offset))
        };
        assert_eq!(append(Some("k"), Some(3)), (Status::Published, Some(1)));
        assert_eq!(append(Some("k"), Some(9)), (Status::Duplicate, Some(1)));
        assert_eq!(append(Some("l"), Some(3)), (Status::Stale, None));
        assert_eq!(append(None, Some(4)), (Status::Published, Some(2)));
        assert_eq!(append(None, None), (Status::Published, Some(3)));
        assert_eq!(append(None, Some(2)), (Status::Stale, None));
        assert_eq!(append(Some("l"), None), (Status::Published, Some(4)));
    }

    #[test]
    fn what_has_expired_is_freed_though_nobody_asks_for_it() {
        let (mut all, now) = (Histories::default(), Instant::now());
        for number in 0..100 {
            all.append(&Record::new(&number.to_string(), true), b"{", SETTINGS, now);
        }
        let epoch = all.read(&ask("7", None), now).unwrap().epoch;
        let later = now + SETTINGS.ttl + Duration::from_millis(1);
        assert_eq!(all.read(&ask("7", None), later), None);
        for _ in 0..100 {
            all.append(&Record::new("7", true), b"{", SETTINGS, later);
        }
        assert_eq!((all.by_upload.len(), all.round.len()), (1, 1));
        let past = all.read(&ask("7", None), later).unwrap();
        assert!(past.epoch != epoch && past.last == 100);
    }

    proptest! {
        /// Against a model that keeps everything.
        #[test]
        fn what_is_kept_is_the_newest_and_the_milestone(
            milestones in proptest::collection::vec(any::<bool>(), 1..40),
            since in 0..45u64,
            same in any::<bool>(),
        ) {
            let (mut all, now) = (Histories::default(), Instant::now());
            for milestone in &milestones {
                all.append(&Record::new("u", *milestone), b"{", SETTINGS, now);
            }
            let last = milestones.len() as u64;
            let milestone = (1..=last).rev().find(|n| milestones[usize::try_from(*n - 1).unwrap()]);
            let kept = |n: &u64| *n + 4 > last || Some(*n) == milestone;
            let past = all.read(&ask("u", None), now).unwrap();
            prop_assert_eq!((past.last, past.milestone), (last, milestone));
            let state: Vec<u64> = (milestone.unwrap_or(1)..=last).filter(kept).collect();
            prop_assert_eq!(&offsets(&past), &state);

            let epoch = if same { past.epoch } else { Epoch::random() };
            let since = Position { epoch, offset: since };
            let past = all.read(&ask("u", Some(since)), now).unwrap();
            let wanted: Vec<u64> = if !same || since.offset > last {
                state
            } else if since.offset == last {
                Vec::new()
            } else {
                let from = milestone.map_or(since.offset + 1, |m| m.min(since.offset + 1));
                (from..=last).filter(kept).collect()
            };
            prop_assert_eq!(offsets(&past), wanted);
        }
    }
}
