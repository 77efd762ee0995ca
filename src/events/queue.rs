//! What waits to be published by a daemon or a worker: bounded, in order, and what makes room is chosen.
//!
//! Two queues with one numbering: taking out merges them, so that the order is that of publication, and
//! the oldest line that may make room for something is always at the front of its own queue.

use std::collections::VecDeque;
use std::ops::{Add, AddAssign};

/// What a message is, which decides its channel and what makes room for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A log line.
    Log,
    /// Figures.
    Stats,
    /// Something that happened. It makes room only where neither lines nor figures are left.
    Event,
}

/// Messages by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Log lines.
    pub logs: u64,
    /// Figures.
    pub stats: u64,
    /// Events.
    pub events: u64,
}

impl Counts {
    /// Counts one.
    pub fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Log => self.logs += 1,
            Kind::Stats => self.stats += 1,
            Kind::Event => self.events += 1,
        }
    }

    /// All of them.
    pub fn total(self) -> u64 {
        self.logs + self.stats + self.events
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.logs += other.logs;
        self.stats += other.stats;
        self.events += other.events;
    }
}

/// A message that waits.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Grows with every message that is put in.
    pub number: u64,
    /// What it is.
    pub kind: Kind,
    /// The payload, encoded.
    pub payload: Vec<u8>,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    /// Log lines and figures.
    lines: VecDeque<Entry>,
    events: VecDeque<Entry>,
    next: u64,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
}

impl Queue {
    /// An empty one.
    pub fn new(max_messages: usize, max_bytes: usize) -> Self {
        let (lines, events) = (VecDeque::new(), VecDeque::new());
        Self { lines, events, next: 0, bytes: 0, max_messages, max_bytes }
    }

    /// Puts a message in. What had to make room, which may be the message itself, is counted.
    pub fn push(&mut self, kind: Kind, payload: Vec<u8>) -> Counts {
        self.bytes += payload.len();
        let entry = Entry { number: self.next, kind, payload };
        self.next += 1;
        match kind {
            Kind::Log | Kind::Stats => self.lines.push_back(entry),
            Kind::Event => self.events.push_back(entry),
        }
        self.make_room()
    }

    fn make_room(&mut self) -> Counts {
        let mut dropped = Counts::default();
        while self.len() > self.max_messages || self.bytes > self.max_bytes {
            let Some(entry) = self.lines.pop_front().or_else(|| self.events.pop_front()) else {
                break;
            };
            self.bytes -= entry.payload.len();
            dropped.count(entry.kind);
        }
        dropped
    }

    /// Takes up to `most` messages in order, and no more than `bytes` unless a single one is larger.
    pub fn take(&mut self, most: usize, bytes: usize) -> Vec<Entry> {
        let mut batch = Vec::with_capacity(most.min(self.len()));
        let mut size = 0;
        while batch.len() < most {
            let line_first = match (self.lines.front(), self.events.front()) {
                (Some(line), Some(event)) => line.number < event.number,
                (line, _) => line.is_some(),
            };
            let from = if line_first { &mut self.lines } else { &mut self.events };
            let Some(entry) = from.pop_front() else { break };
            if !batch.is_empty() && size + entry.payload.len() > bytes {
                from.push_front(entry);
                break;
            }
            size += entry.payload.len();
            batch.push(entry);
        }
        self.bytes -= size;
        batch
    }

    /// Puts back what was taken last and not published. What came since may have to make room.
    pub fn put_back(&mut self, batch: Vec<Entry>) -> Counts {
        for entry in batch.into_iter().rev() {
            self.bytes += entry.payload.len();
            match entry.kind {
                Kind::Log | Kind::Stats => self.lines.push_front(entry),
                Kind::Event => self.events.push_front(entry),
            }
        }
        self.make_room()
    }

    /// Takes everything, and counts it.
    pub fn clear(&mut self) -> Counts {
        let mut counts = Counts::default();
        self.lines
            .drain(..)
            .chain(self.events.drain(..))
            .for_each(|entry| counts.count(entry.kind));
        self.bytes = 0;
        counts
    }

    /// The number of the next message that will be put in.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The number of the oldest message.
    pub fn oldest(&self) -> Option<u64> {
        let fronts = [self.lines.front(), self.events.front()];
        fronts.into_iter().flatten().map(|entry| entry.number).min()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lines.len() + self.events.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.events.is_empty()
    }

    /// Whether half of what may wait does.
    pub fn is_half_full(&self) -> bool {
        self.len() * 2 >= self.max_messages || self.bytes * 2 >= self.max_bytes
    }

    /// Bytes of payload that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(entries: &[Entry]) -> Vec<&str> {
        entries.iter().map(|entry| std::str::from_utf8(&entry.payload).unwrap()).collect()
    }

    fn push(queue: &mut Queue, kind: Kind, text: &str) -> (u64, u64, u64) {
        let dropped = queue.push(kind, text.into());
        (dropped.logs, dropped.stats, dropped.events)
    }

    #[test]
    fn the_oldest_lines_make_room_and_events_last() {
        let mut queue = Queue::new(3, 100);
        assert_eq!(push(&mut queue, Kind::Log, "l1"), (0, 0, 0));
        assert_eq!(push(&mut queue, Kind::Event, "e1"), (0, 0, 0));
        assert_eq!(push(&mut queue, Kind::Stats, "s1"), (0, 0, 0));
        assert_eq!(push(&mut queue, Kind::Event, "e2"), (1, 0, 0));
        assert_eq!(push(&mut queue, Kind::Log, "l2"), (0, 1, 0));
        assert_eq!(push(&mut queue, Kind::Event, "e3"), (1, 0, 0));
        assert_eq!(push(&mut queue, Kind::Log, "l3"), (1, 0, 0), "an event does not make room");
        assert_eq!(
            push(&mut queue, Kind::Event, "e4"),
            (0, 0, 1),
            "but where nothing else is left"
        );
        assert_eq!(queue.oldest(), Some(3));
        assert_eq!(texts(&queue.take(9, 100)), ["e2", "e3", "e4"]);
        assert!(queue.is_empty() && queue.bytes() == 0 && queue.oldest().is_none());
    }

    #[test]
    fn bytes_are_a_limit_too_and_what_never_fits_is_dropped() {
        let mut queue = Queue::new(100, 10);
        assert_eq!(push(&mut queue, Kind::Log, "1234"), (0, 0, 0));
        assert_eq!(push(&mut queue, Kind::Event, "123456"), (0, 0, 0));
        assert_eq!(push(&mut queue, Kind::Event, "1"), (1, 0, 0));
        assert_eq!(push(&mut queue, Kind::Event, "12345678901"), (0, 0, 3));
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn a_batch_is_in_order_bounded_and_can_be_put_back() {
        let mut queue = Queue::new(4, 100);
        for (kind, text) in [(Kind::Log, "l1"), (Kind::Event, "e1"), (Kind::Log, "l2")] {
            push(&mut queue, kind, text);
        }
        let batch = queue.take(2, 100);
        assert_eq!(texts(&batch), ["l1", "e1"]);
        push(&mut queue, Kind::Event, "e2");
        assert_eq!(queue.put_back(batch), Counts::default());
        assert_eq!(queue.take(9, 1).len(), 1, "one goes however large it is");
        assert_eq!(texts(&queue.take(9, 5)), ["e1", "l2"]);
        let batch = queue.take(9, 9);
        for text in ["l3", "l4", "l5", "l6"] {
            push(&mut queue, Kind::Log, text);
        }
        assert_eq!(queue.put_back(batch), Counts { logs: 1, stats: 0, events: 0 });
        assert_eq!(queue.clear(), Counts { logs: 3, stats: 0, events: 1 });
        assert_eq!((queue.len(), queue.bytes(), queue.next()), (0, 0, 8));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_uncounted(
            steps in prop::collection::vec((0..4usize, 0..30usize), 1..200),
            messages in 1..20usize,
            bytes in 1..200usize,
        ) {
            let mut queue = Queue::new(messages, bytes);
            let (mut put, mut gone, mut last) = (0, 0, None);
            for (what, size) in steps {
                let kind = [Kind::Log, Kind::Stats, Kind::Event].get(what).copied();
                if let Some(kind) = kind {
                    let lines = queue.lines.len();
                    let dropped = queue.push(kind, vec![b'x'; size]);
                    put += 1;
                    gone += dropped.total();
                    // No event goes while a line is left, the new one included.
                    let lines = (lines + usize::from(kind != Kind::Event)) as u64;
                    prop_assert!(dropped.events == 0 || dropped.logs + dropped.stats == lines);
                } else {
                    for entry in queue.take(3, size) {
                        prop_assert!(last.is_none_or(|last| last < entry.number));
                        last = Some(entry.number);
                        gone += 1;
                    }
                }
                prop_assert!(queue.len() <= messages && queue.bytes() <= bytes);
                prop_assert_eq!(put, gone + queue.len() as u64);
                let all = queue.lines.iter().chain(&queue.events);
                prop_assert_eq!(all.map(|entry| entry.payload.len()).sum::<usize>(), queue.bytes());
            }
        }
    }
}
