//! Recovery against a model: a server that keeps a little, a channel that loses what it carries, reads
//! that are answered late, and clients that come, go, and come back.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;

use fanwire::coalesce::Class;
use fanwire::history::{Epoch, Position};
use fanwire::lane::LaneId;
use fanwire::message::{Mark, Message, Payload};
use fanwire::recovery::{Found, Recovery, TrackId, Turn, Want};
use proptest::prelude::*;

const UPLOAD: u32 = 1;

#[derive(Clone, Debug)]
enum Step {
    /// Progress or not.
    Publish(bool),
    /// So many messages come out of the channel.
    Carry(usize),
    /// The listener's connection breaks, and what it carried is lost.
    Break,
    /// It is subscribed again.
    Mend,
    /// The server loses everything.
    Flush,
    /// The server starts anew from a copy that lacks so many messages; the listener's connection breaks.
    GoBack(usize),
    /// A lane begins to watch; with what it had when it watched last, or with nothing.
    Join(u32, bool),
    Leave(u32),
    /// A read is made.
    Read,
    /// Its answer comes.
    Answer,
    /// It fails.
    Fail,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any::<bool>().prop_map(Step::Publish),
        6 => (1..4usize).prop_map(Step::Carry),
        1 => Just(Step::Break),
        2 => Just(Step::Mend),
        1 => Just(Step::Flush),
        1 => (1..4usize).prop_map(Step::GoBack),
        3 => (0..3u32, any::<bool>()).prop_map(|(lane, since)| Step::Join(lane, since)),
        1 => (0..3u32).prop_map(Step::Leave),
        4 => Just(Step::Read),
        4 => Just(Step::Answer),
        1 => Just(Step::Fail),
    ]
}

/// What the server keeps at most, besides the milestone.
const KEPT: u64 = 4;

#[derive(Debug, Default)]
struct Server {
    epoch: u64,
    /// Offset, whether it is progress, and since when the server runs.
    log: Vec<(u64, bool, usize)>,
    /// What was the newest offset at each start.
    starts: Vec<u64>,
}

impl Server {
    fn epoch(&self) -> Epoch {
        Epoch(NonZeroU64::new(self.epoch + 1).unwrap())
    }

    fn last(&self) -> Option<Position> {
        let (offset, ..) = *self.log.last()?;
        Some(Position { epoch: self.epoch(), offset })
    }

    /// Whether what was published after one start was not the past any more after another.
    fn went_back(&self, start: usize, until: usize, at: Option<Position>) -> bool {
        let since = self.starts.iter().take(until).skip(start);
        at.is_some_and(|at| since.min().is_some_and(|newest| *newest < at.offset))
    }

    fn milestone(&self) -> Option<u64> {
        self.log.iter().rev().find(|(_, progress, _)| *progress).map(|(offset, ..)| *offset)
    }

    fn read(&self, since: Option<Position>) -> Option<Found> {
        let last = self.last()?;
        let milestone = self.milestone();
        let since = since.filter(|at| at.epoch == last.epoch && at.offset <= last.offset);
        let from = match since {
            Some(at) => milestone.unwrap_or(u64::MAX).min(at.offset + 1),
            None => milestone.unwrap_or(1),
        };
        let is_kept = |offset: u64| offset + KEPT > last.offset || Some(offset) == milestone;
        let entries = if since.is_some_and(|at| at.offset == last.offset) {
            Vec::new()
        } else {
            let kept = self.log.iter();
            let kept = kept.filter(|(offset, ..)| *offset >= from && is_kept(*offset));
            kept.map(|(offset, _, start)| {
                (*offset, payload(Position { offset: *offset, ..last }, *start))
            })
            .collect()
        };
        Some(Found { epoch: last.epoch, last: last.offset, milestone, entries })
    }
}

fn payload(at: Position, start: usize) -> Payload {
    let text = format!("{} {} {start}", at.epoch, at.offset);
    let mark = Some(Mark::new(at, &text));
    Message::recorded(text, Class::default(), mark)
}

fn read_back(text: &str) -> (Position, usize) {
    let mut words = text.split(' ');
    let epoch = Epoch::parse(words.next().unwrap().as_bytes()).unwrap();
    let offset = words.next().unwrap().parse().unwrap();
    (Position { epoch, offset }, words.next().unwrap().parse().unwrap())
}

/// A client: what it has, and whether it has begun.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)]
struct Client {
    generation: u32,
    watches: bool,
    at: Option<Position>,
    /// Since when the server ran that published it.
    start: usize,
    /// Whether it said itself what it has, and has got nothing since.
    claims: bool,
    /// Whether the next message may stand anywhere: it has just begun, or was told to start over.
    open: bool,
    /// Whether it has had nothing but the milestone of a state: what follows may have been trimmed.
    at_milestone: bool,
}

#[derive(Default)]
struct World {
    server: Server,
    recovery: Recovery,
    channel: VecDeque<(Position, usize)>,
    connected: bool,
    clients: BTreeMap<u32, Client>,
    answer: Option<(TrackId, Option<Found>)>,
}

impl World {
    fn lane(&self, index: u32) -> LaneId {
        LaneId { index, generation: self.clients.get(&index).map_or(0, |c| c.generation) }
    }

    fn receive(&mut self, lane: LaneId, text: &str) {
        let client = self.clients.get_mut(&lane.index).unwrap();
        assert!(client.watches && client.generation == lane.generation, "of a lane that left");
        if text == "resync" {
            (client.open, client.at) = (true, None);
            return;
        }
        let (position, start) = read_back(text);
        let went_back = self.server.went_back(client.start, start, client.at);
        if let (false, Some(at)) = (client.open, client.at) {
            assert_eq!(at.epoch, position.epoch, "another epoch without a resync");
            assert!(at.offset < position.offset, "a step back");
            // A client's own word cannot be compared with another past.
            assert!(client.claims || !went_back, "of another past without a resync");
            assert!(at.offset + 1 == position.offset || client.at_milestone, "a hole");
        }
        client.claims = false;
        client.at_milestone = std::mem::take(&mut client.open);
        (client.at, client.start) = (Some(position), start);
    }

    fn answered(&mut self, id: TrackId, found: Option<&Found>) {
        let resync = Message::new("resync", Class::default());
        let (outcome, _) = self.recovery.catch_up(id, found, &resync);
        for (lane, payload) in outcome.deliveries {
            self.receive(lane, &payload.text);
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Publish(progress) => {
                let offset = self.server.log.last().map_or(0, |(offset, ..)| *offset) + 1;
                let start = self.server.starts.len();
                self.server.log.push((offset, progress, start));
                if self.connected {
                    self.channel.push_back((self.server.last().unwrap(), start));
                }
            }
            Step::Carry(count) => {
                for _ in 0..count {
                    let Some((position, start)) = self.channel.pop_front() else { break };
                    if !self.clients.values().any(|client| client.watches) {
                        continue; // the router drops it
                    }
                    let payload = payload(position, start);
                    let arrival = self.recovery.arrive(UPLOAD, &payload);
                    if arrival.turn == Turn::Now {
                        for lane in self.recovery.lanes_here(UPLOAD) {
                            self.receive(lane, &payload.text);
                        }
                    }
                }
            }
            Step::Break => {
                self.connected = false;
                self.channel.clear();
            }
            Step::Mend => {
                if !self.connected {
                    self.connected = true;
                    self.recovery.compare_all();
                }
            }
            Step::Flush => {
                self.server.epoch += 1;
                self.server.log.clear();
            }
            Step::GoBack(count) => {
                self.take(Step::Break);
                let left = self.server.log.len().saturating_sub(count);
                self.server.log.truncate(left);
                let newest = self.server.log.last().map_or(0, |(offset, ..)| *offset);
                self.server.starts.push(newest);
                if self.server.log.is_empty() {
                    self.server.epoch += 1;
                }
            }
            Step::Join(index, with_since) => {
                let client = self.clients.entry(index).or_default();
                if client.watches {
                    return;
                }
                let knows = !self.server.went_back(client.start, usize::MAX, client.at);
                let since = client.at.filter(|_| with_since && !client.open && knows);
                client.generation += 1;
                client.watches = true;
                client.open = since.is_none();
                client.at = since;
                client.claims = since.is_some();
                let lane = self.lane(index);
                self.recovery.want(UPLOAD, lane, Want { since, resync: false });
            }
            Step::Leave(index) => {
                if let Some(client) = self.clients.get_mut(&index)
                    && std::mem::take(&mut client.watches)
                {
                    self.recovery.leave(UPLOAD, index);
                    if !self.clients.values().any(|client| client.watches) {
                        self.recovery.forget(UPLOAD);
                    }
                }
            }
            Step::Read => {
                if self.answer.is_none() && self.connected {
                    self.answer =
                        self.recovery.next_ask().map(|(id, since)| (id, self.server.read(since)));
                }
            }
            Step::Answer => {
                if let Some((id, found)) = self.answer.take() {
                    self.answered(id, found.as_ref());
                }
            }
            Step::Fail => {
                if let Some((id, _)) = self.answer.take() {
                    self.recovery.ask_again(id);
                }
            }
        }
    }

    /// Everything that is under way ends.
    fn settle(&mut self) {
        self.take(Step::Mend);
        for _ in 0..100 {
            self.take(Step::Carry(100));
            self.take(Step::Answer);
            self.take(Step::Read);
            if self.answer.is_none() && self.channel.is_empty() {
                return;
            }
        }
        panic!("it does not come to rest");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nobody_misses_anything_without_being_told(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World { connected: true, ..World::default() };
        world.recovery.set(Some(std::time::Duration::from_secs(3600)));
        for step in steps {
            world.take(step);
        }
        world.settle();
        // One more message, so that nobody is behind unnoticed.
        world.take(Step::Publish(true));
        world.settle();
        for (index, client) in &world.clients {
            if client.watches {
                prop_assert_eq!(client.at, world.server.last(), "client {}", index);
            }
        }
    }
}
