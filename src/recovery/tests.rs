//! One client's view of one upload.

use super::track::MOST_HELD;
use super::*;
use crate::coalesce::Class;
use crate::history::Epoch;
use crate::message::{Mark, Message};

const UPLOAD: u32 = 3;

fn epoch(number: u64) -> Epoch {
    Epoch(std::num::NonZeroU64::new(number).unwrap())
}

fn at(epoch_number: u64, offset: u64) -> Position {
    Position { epoch: epoch(epoch_number), offset }
}

fn lane(index: u32) -> LaneId {
    LaneId { index, generation: 0 }
}

/// A payload that says where it stands.
fn payload(position: Option<Position>) -> Payload {
    let text = position.map_or(0, |position| position.offset).to_string();
    let mark = position.map(|position| Mark::new(position, &text));
    Message::recorded(text, Class::default(), mark)
}

fn found(number: u64, offsets: std::ops::RangeInclusive<u64>, milestone: u64) -> Found {
    let last = *offsets.end();
    let entries = offsets.map(|offset| (offset, payload(Some(at(number, offset))))).collect();
    Found { epoch: epoch(number), last, milestone: Some(milestone), entries }
}

/// What one client sees of one upload.
struct Client {
    recovery: Recovery,
    got: Vec<(u32, String)>,
}

impl Client {
    fn new() -> Self {
        let mut recovery = Recovery::default();
        recovery.set(Some(Duration::from_secs(3600)));
        Self { recovery, got: Vec::new() }
    }

    /// One whose lane 1 was given this.
    fn that_has(found: &Found) -> Self {
        let mut client = Self::new();
        client.recovery.want(UPLOAD, lane(1), Want::default());
        let (id, _) = client.ask();
        client.answer(id, Some(found));
        client.got.clear();
        client
    }

    fn arrive(&mut self, position: Option<Position>) -> Arrival {
        let payload = payload(position);
        let arrival = self.recovery.arrive(UPLOAD, &payload);
        if arrival.turn == Turn::Now {
            let mut lanes = self.recovery.lanes_here(UPLOAD).into_vec();
            lanes.sort_by_key(|lane| lane.index);
            self.got.extend(lanes.iter().map(|lane| (lane.index, payload.text.to_string())));
        }
        arrival
    }

    fn ask(&mut self) -> (TrackId, Option<Position>) {
        self.recovery.next_ask().unwrap()
    }

    fn answer(&mut self, id: TrackId, found: Option<&Found>) -> bool {
        let resync = Message::new("resync", Class::default());
        let (outcome, due) = self.recovery.catch_up(id, found, &resync);
        let texts = outcome.deliveries.iter();
        self.got.extend(texts.map(|(lane, payload)| (lane.index, payload.text.to_string())));
        due
    }

    fn got(&mut self, lane: u32) -> Vec<String> {
        let of = |(index, text): (u32, String)| (index == lane).then_some(text);
        let (mine, others) = std::mem::take(&mut self.got).into_iter().partition(|g| g.0 == lane);
        self.got = others;
        Vec::<(u32, String)>::into_iter(mine).filter_map(of).collect()
    }
}

#[test]
fn a_newcomer_gets_the_state_and_then_what_follows_it() {
    let mut client = Client::new();
    assert!(client.recovery.want(UPLOAD, lane(1), Want::default()));
    let (id, since) = client.ask();
    assert_eq!(since, None);
    for offset in 7..=9 {
        assert_eq!(client.arrive(Some(at(1, offset))).turn, Turn::Later);
    }
    assert!(!client.answer(id, Some(&found(1, 4..=8, 6))));
    assert_eq!(client.got(1), ["6", "7", "8", "9"]);
    assert_eq!(client.arrive(Some(at(1, 10))).turn, Turn::Now);
    assert_eq!(client.arrive(Some(at(1, 10))).turn, Turn::Never);
    assert_eq!(client.got(1), ["10"]);
}

#[test]
fn others_are_not_held_up_by_a_newcomer() {
    let mut client = Client::new();
    client.recovery.want(UPLOAD, lane(1), Want::default());
    let (id, _) = client.ask();
    client.answer(id, None);
    assert_eq!(
        client.arrive(Some(at(1, 1))).turn,
        Turn::Now,
        "nothing was kept, so this is the first"
    );
    client.recovery.want(UPLOAD, lane(2), Want::default());
    let (id, since) = client.ask();
    assert_eq!(since, None, "the state is all that is wanted");
    assert_eq!(client.arrive(Some(at(1, 2))).turn, Turn::Now);
    assert_eq!(client.arrive(Some(at(1, 3))).turn, Turn::Now);
    assert_eq!(client.got(1), ["1", "2", "3"]);
    assert!(!client.answer(id, Some(&found(1, 1..=2, 2))));
    assert_eq!(client.got(2), ["2", "3"]);
    assert_eq!(client.arrive(Some(at(1, 4))).turn, Turn::Now);
    assert_eq!((client.got(1), client.got(2)), (vec!["4".into()], vec!["4".to_owned()]));
}

#[test]
fn who_comes_with_another_epoch_keeps_nobody_from_what_they_missed() {
    let mut client = Client::that_has(&found(1, 1..=2, 2));
    client.recovery.want(UPLOAD, lane(2), Want { since: Some(at(7, 15)), resync: false });
    let (id, since) = client.ask();
    assert_eq!(since, Some(at(7, 14)));
    assert!(client.answer(id, Some(&found(1, 5..=5, 5))), "more is missed than that");
    let (id, since) = client.ask();
    assert_eq!(since, Some(at(1, 0)));
    assert!(!client.answer(id, Some(&found(1, 1..=5, 5))));
    assert_eq!((client.got(1), client.got(2)), (texts(["3", "4", "5"]), texts(["resync", "5"])));
}

fn texts<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).to_vec()
}

#[test]
fn a_gap_is_filled_before_anything_newer() {
    let mut client = Client::that_has(&found(1, 1..=5, 5));
    let arrival = client.arrive(Some(at(1, 8)));
    assert_eq!(arrival, Arrival { turn: Turn::Later, due: true, gap: true });
    assert_eq!(client.arrive(None).turn, Turn::Later, "in its turn");
    assert!(!client.arrive(Some(at(1, 9))).gap, "told once");
    let (id, since) = client.ask();
    assert_eq!(since, Some(at(1, 4)));
    assert!(!client.answer(id, Some(&found(1, 6..=8, 5))));
    assert_eq!(client.got(1), ["6", "7", "8", "0", "9"]);
}

#[test]
fn what_history_does_not_have_is_told() {
    let mut client = Client::that_has(&found(1, 1..=5, 5));
    client.arrive(Some(at(1, 20)));
    let (id, _) = client.ask();
    client.answer(id, Some(&found(1, 15..=20, 18)));
    assert_eq!(client.got(1), ["resync", "18", "19", "20"]);
    client.arrive(Some(at(2, 3)));
    let (id, _) = client.ask();
    client.answer(id, Some(&found(2, 1..=4, 2)));
    assert_eq!(client.got(1), ["resync", "2", "3", "4"], "another epoch");
    client.arrive(Some(at(1, 21)));
    let (id, _) = client.ask();
    client.answer(id, Some(&found(2, 2..=4, 2)));
    assert_eq!(client.got(1), [""; 0], "of a history that is gone");
    assert_eq!(client.arrive(Some(at(2, 5))).turn, Turn::Now);
    client.got.clear();
    client.recovery.compare_all();
    let (id, since) = client.ask();
    assert_eq!(since, Some(at(2, 4)), "one more than is missed");
    client.answer(id, Some(&found(2, 1..=2, 1)));
    assert_eq!(client.got(1), ["resync", "1", "2"], "a history that went back");
}

#[test]
fn a_client_that_comes_back_goes_on_where_it_was() {
    let mut client = Client::new();
    for (number, since, expected) in [
        (1, at(1, 4), vec!["5", "6", "7"]),
        (2, at(1, 7), vec![]),
        (3, at(1, 2), vec!["resync", "6", "7"]),
        (4, at(2, 5), vec!["resync", "6", "7"]),
        (5, at(1, 9), vec!["resync", "6", "7"]),
    ] {
        let want = Want { since: Some(since), resync: false };
        client.recovery.want(UPLOAD, lane(number), want);
        let (id, _) = client.ask();
        assert!(!client.answer(id, Some(&found(1, 4..=7, 6))));
        assert_eq!(client.got(number), expected, "since {since:?}");
    }
    assert_eq!(client.arrive(Some(at(1, 8))).turn, Turn::Now);
    assert_eq!(client.got.len(), 5);
    client.recovery.want(UPLOAD, lane(1), Want { since: Some(at(1, 6)), resync: false });
    assert!(!client.recovery.is_due(), "it has been given that");
    client.recovery.want(UPLOAD, lane(1), Want::default());
    let (id, _) = client.ask();
    client.got.clear();
    client.answer(id, Some(&found(1, 6..=8, 8)));
    assert_eq!(client.got(1), ["resync", "8"], "asked for again, it is given again");
}

#[test]
fn what_is_held_is_bounded_and_what_was_let_go_is_read() {
    let mut client = Client::new();
    client.recovery.want(UPLOAD, lane(1), Want::default());
    let (id, _) = client.ask();
    let most = MOST_HELD as u64;
    for offset in 1..=most + 10 {
        client.arrive(Some(at(1, offset)));
    }
    assert!(client.answer(id, Some(&found(1, 1..=1, 1))));
    assert_eq!(client.got(1), ["1"]);
    let (id, since) = client.ask();
    assert_eq!(since, Some(at(1, 0)));
    assert!(!client.answer(id, Some(&found(1, 2..=15, 1))));
    assert_eq!(client.got(1).last().map(String::as_str), Some(&*(most + 10).to_string()));
}

#[test]
fn a_gap_that_no_read_fills_is_told() {
    let mut client = Client::that_has(&found(1, 1..=1, 1));
    client.arrive(Some(at(1, 5)));
    let mut reads = 0;
    while let Some((id, _)) = client.recovery.next_ask() {
        reads += 1;
        assert!(reads < 100);
        client.answer(id, Some(&found(1, 1..=1, 1)));
    }
    assert_eq!(client.got(1), ["resync", "5"]);
}

#[test]
fn a_lane_that_lost_something_is_told_when_it_has_caught_up() {
    let mut client = Client::new();
    for number in 1..=2 {
        client.recovery.want(UPLOAD, lane(number), Want::default());
    }
    let (id, _) = client.ask();
    client.answer(id, Some(&found(1, 1..=1, 1)));
    client.got.clear();
    client.recovery.lag(lane(1), &[UPLOAD]);
    assert_eq!(client.arrive(Some(at(1, 2))).turn, Turn::Now);
    assert_eq!((client.got(1), client.got(2)), (vec![], vec!["2".to_owned()]));
    assert!(!client.recovery.end_lags(|_| false));
    assert!(client.recovery.end_lags(|_| true));
    let (id, _) = client.ask();
    client.answer(id, Some(&found(1, 1..=2, 2)));
    assert_eq!((client.got(1), client.got(2)), (vec!["resync".into(), "2".to_owned()], vec![]));
    assert!(!client.recovery.has_lags());
}

#[test]
fn who_leaves_is_forgotten() {
    let mut client = Client::new();
    client.recovery.want(UPLOAD, lane(1), Want::default());
    client.recovery.leave(UPLOAD, 1);
    assert!(!client.recovery.has_place(UPLOAD, lane(1)));
    let (id, _) = client.ask();
    client.recovery.forget(UPLOAD);
    client.recovery.want(UPLOAD, lane(2), Want::default());
    assert!(!client.answer(id, Some(&found(1, 1..=1, 1))), "of an older track");
    assert!(client.got.is_empty());
    let newer = LaneId { index: 2, generation: 1 };
    assert!(!client.recovery.has_place(UPLOAD, newer));
}
