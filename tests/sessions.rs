//! Topics, sessions and wishes as a binding and a listener use them, without Python or a broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fanwire::error::Error;
use fanwire::journal::Journal;
use fanwire::lane::{Entry, LaneId, LaneLimits, Overflow};
use fanwire::message::{Message, Object};
use fanwire::post::{Bell, LoopMailbox, Post, Reply};
use fanwire::router::{Inbound, Policy, Router};
use fanwire::runtime;
use fanwire::sessions::Channels;
use fanwire::stats::ClientStats;
use fanwire::topics::SubscriptionId;
use fanwire::wishes::{Changes, Wishes};

fn event_loop() -> (Arc<LoopMailbox>, Arc<AtomicUsize>) {
    let rings = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&rings);
    let bell: Bell = Box::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    (Arc::new(LoopMailbox::new(bell, runtime::generation())), rings)
}

struct Process {
    router: Arc<Router>,
    wishes: Arc<Wishes>,
    mailbox: Arc<LoopMailbox>,
    rings: Arc<AtomicUsize>,
    stats: ClientStats,
}

fn process(limits: LaneLimits) -> Process {
    let wishes = Arc::new(Wishes::new(Arc::<Journal>::default(), "redis://x".into()));
    let policy = Policy { limits, overflow: Overflow::DropOldest, ..Policy::default() };
    let channels = Channels { prefix: "p:".into(), wishes: Arc::clone(&wishes) };
    let router = Router::with_channels(policy, Some(channels));
    let (mailbox, rings) = event_loop();
    Process { router, wishes, mailbox, rings, stats: ClientStats::default() }
}

impl Process {
    fn new() -> Self {
        process(LaneLimits::default())
    }

    fn subscribe(&self, session: &str, topic: &str) -> SubscriptionId {
        let mut id = None;
        self.router.subscribe_topic(session, topic, &self.mailbox, |kept| id = Some(kept));
        id.unwrap()
    }

    fn publish(&self, topic: &str, message: &str) -> usize {
        let channel = format!("p:{topic}");
        let payload = format!(r#"{{"topic":"{topic}","message":{message}}}"#);
        let inbound = Inbound::new(channel.as_bytes(), payload.as_bytes());
        self.router.route_topics(&[inbound], None, &self.stats).len()
    }

    fn begin(&self) -> Vec<(LaneId, Entry)> {
        self.router.begin_turns(&self.mailbox, 100)
    }

    /// Everything that the ready sessions are to get, turn by turn.
    fn drain(&self) -> Vec<String> {
        let mut texts = Vec::new();
        loop {
            let turns = self.begin();
            if turns.is_empty() {
                return texts;
            }
            for (lane, first) in turns {
                texts.push(first.payload.text.to_string());
                while let Some(next) = self.router.next_in_turn(lane) {
                    texts.push(next.payload.text.to_string());
                }
            }
        }
    }
}

#[test]
fn a_session_gets_its_topics_in_the_order_of_publication_in_one_turn() {
    let process = Process::new();
    process.subscribe("s", "a");
    process.subscribe("s", "b");
    for (topic, message) in [("a", "1"), ("b", "2"), ("a", "3"), ("nobody", "4")] {
        process.publish(topic, message);
    }
    assert_eq!(process.rings.load(Ordering::SeqCst), 1);
    let turns = process.begin();
    assert_eq!(turns.len(), 1, "one lane, however many topics");
    process.publish("b", "5");
    assert!(process.begin().is_empty(), "nobody else begins while the turn lasts");
    let (lane, first) = &turns[0];
    let mut seen = vec![first.payload.text.to_string()];
    while let Some(entry) = process.router.next_in_turn(*lane) {
        seen.push(entry.payload.text.to_string());
    }
    assert_eq!(seen, ["1", "2", "3", "5"]);
    process.publish("a", "6");
    assert_eq!(process.drain(), ["6"]);
    assert_eq!((process.stats.received.get(), process.stats.unwatched.get()), (6, 1));
}

#[test]
fn a_session_that_leaves_and_comes_back_within_its_turn_has_one_turn_at_a_time() {
    let process = Process::new();
    let old = process.subscribe("s", "a");
    process.publish("a", "1");
    process.publish("a", "2");
    let turns = process.begin();
    assert_eq!(process.router.unsubscribe_all("s"), [old]);
    assert_eq!(process.router.stats.dropped.get(), 1);
    assert_ne!(process.subscribe("s", "a"), old);
    process.publish("a", "3");
    assert!(process.begin().is_empty(), "the turn of before is not over");
    let next = process.router.next_in_turn(turns[0].0).unwrap();
    assert_eq!(&*next.payload.text, "3");
    assert!(process.router.next_in_turn(turns[0].0).is_none());
    process.router.unsubscribe_topic("s", "a").unwrap();
    assert_eq!(process.router.topic_counts(), (0, 0, 0));
    assert_eq!(process.router.gauges().lanes, 0);
}

#[test]
fn a_session_that_has_left_is_let_go_of_at_the_end_of_its_turn() {
    let process = Process::new();
    process.subscribe("s", "a");
    process.publish("a", "1");
    let turns = process.begin();
    process.router.unsubscribe_topic("s", "a").unwrap();
    assert!(process.router.unsubscribe_topic("s", "a").is_none());
    assert_eq!(process.router.gauges().lanes, 1);
    assert_eq!(process.router.session_of(turns[0].0).as_deref(), Some("s"));
    assert!(process.router.next_in_turn(turns[0].0).is_none());
    assert_eq!(process.router.gauges().lanes, 0);
}

#[test]
fn what_a_cancelled_turn_had_in_hand_comes_first_in_the_next() {
    let process = Process::new();
    process.subscribe("s", "a");
    for message in ["1", "2"] {
        process.publish("a", message);
    }
    let (lane, entry) = process.begin().remove(0);
    process.router.end_turn(&process.mailbox, lane, Some(entry));
    process.router.retell();
    assert_eq!(process.drain(), ["1", "2"]);
}

#[test]
fn an_envelope_may_leave_out_one_session() {
    let process = Process::new();
    let (one, other) = (process.subscribe("one", "a"), process.subscribe("other", "a"));
    let inbound = Inbound::new(b"p:a", br#"{"topic":"a","message":1,"except":"one"}"#);
    assert!(process.router.route_topics(&[inbound], None, &process.stats).is_empty());
    let got: Vec<_> = process.begin().into_iter().map(|(_, entry)| entry.subscription).collect();
    assert_eq!(got, [Some(other)]);
    assert_ne!(one, other);
}

#[test]
fn what_is_no_envelope_is_skipped_and_named() {
    let process = Process::new();
    process.subscribe("s", "a");
    let bad = [&b"{"[..], b"[]", b"\xff", br#"{"topic":"a"}"#];
    let batch: Vec<_> = bad.map(|payload| Inbound::new(b"p:a", payload)).into();
    let wrong = process.router.route_topics(&batch, None, &process.stats);
    assert_eq!(wrong.len(), 4);
    assert!(wrong.iter().all(|(channel, _)| *channel == b"p:a"));
    assert_eq!(process.stats.not_json.get(), 4);
    assert!(process.drain().is_empty());
}

#[test]
fn handlers_that_wait_lose_their_sessions_oldest_messages_and_no_one_elses() {
    let process = process(LaneLimits { messages: 3, bytes: 1000 });
    process.subscribe("slow", "a");
    process.subscribe("quick", "b");
    process.publish("a", "0");
    let slow = process.begin().remove(0).0;
    // Slow is whose handlers wait although the loop is seen to run, however short each of them.
    while process.router.stats.dropped.get() == 0 {
        process.router.set_waiting(slow, true);
        process.router.see(&process.mailbox);
        process.publish("a", "1");
        process.router.set_waiting(slow, false);
        assert!(process.router.next_in_turn(slow).is_some());
        process.publish("a", "1");
        process.publish("a", "1");
        process.publish("a", "1");
        process.router.set_waiting(slow, true);
    }
    for message in ["2", "3", "4"] {
        process.publish("a", message);
    }
    process.publish("b", "5");
    assert_eq!(process.drain(), ["5"]);
    let mut kept = Vec::new();
    while let Some(entry) = process.router.next_in_turn(slow) {
        kept.push(entry.payload.text.to_string());
    }
    assert_eq!(kept, ["2", "3", "4"]);
}

/// Ends where it would be a deadlock, or panics, if it were dropped under the router's lock.
struct Nosy(Arc<Router>);

impl Drop for Nosy {
    fn drop(&mut self) {
        assert_eq!(self.0.topic_counts(), (0, 0, 0));
    }
}

#[test]
fn what_is_dropped_is_dropped_without_the_lock() {
    let process = Process::new();
    for cut_short in [false, true] {
        process.subscribe("s", "a");
        for _ in 0..2 {
            let object = Object(Box::new(Nosy(Arc::clone(&process.router))));
            process.router.broadcast("a", &Message::of(object), None);
        }
        let (lane, entry) = process.begin().remove(0);
        assert!(process.router.unsubscribe_topic("s", "a").is_some());
        if cut_short {
            process.router.end_turn(&process.mailbox, lane, Some(entry));
        } else {
            drop(entry);
            assert!(process.router.next_in_turn(lane).is_none());
        }
        assert_eq!(process.router.gauges().lanes, 0);
    }
}

#[test]
fn of_a_command_that_was_refused_each_channel_is_asked_for_alone_if_it_is_wanted_still() {
    let process = Process::new();
    let names = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect::<Vec<_>>();
    for topic in ["a", "b", "c"] {
        process.subscribe("s", topic);
    }
    assert_eq!(process.wishes.take_changes().begin, names(&["p:a", "p:b", "p:c"]));
    process.router.unsubscribe_topic("s", "a").unwrap();
    process.wishes.unclear(&names(&["p:a", "p:b", "p:c"]));
    let changes = process.wishes.take_changes();
    assert_eq!((changes.begin, changes.begin_alone), (vec![], names(&["p:b", "p:c"])));
    assert!(changes.end.is_empty());
    assert!(!process.wishes.are_settled());
    process.wishes.answered(b"p:b", Ok(()));
    process.wishes.answered(b"p:c", Ok(()));
    assert!(process.wishes.are_settled());
    assert_eq!(process.wishes.counts(), (2, 2));
}

#[test]
fn the_first_session_of_a_topic_asks_for_it_and_the_last_lets_go() {
    let process = Process::new();
    let changes = |begin: &[&str], end: &[&str]| Changes {
        begin: begin.iter().map(|name| Box::from(*name)).collect(),
        begin_alone: Vec::new(),
        end: end.iter().map(|name| Box::from(*name)).collect(),
    };
    process.subscribe("s", "a");
    process.subscribe("t", "a");
    process.subscribe("t", "b");
    assert!(!process.wishes.are_settled());
    assert_eq!(process.wishes.take_changes(), changes(&["p:a", "p:b"], &[]));
    assert!(!process.wishes.is_live("p:a"));
    process.wishes.answered(b"p:a", Ok(()));
    assert!(process.wishes.is_live("p:a") && !process.wishes.are_settled());
    process.wishes.answered(b"p:b", Ok(()));
    assert!(process.wishes.are_settled());
    process.router.unsubscribe_topic("s", "a");
    assert!(process.wishes.take_changes().is_empty(), "there is another session");
    process.router.unsubscribe_all("t");
    assert_eq!(process.wishes.take_changes(), changes(&[], &["p:a", "p:b"]));
    // Wanted again before the end of the subscription is confirmed: asked for again.
    process.subscribe("s", "a");
    assert!(!process.wishes.is_live("p:a"));
    assert_eq!(process.wishes.take_changes(), changes(&["p:a"], &[]));
    process.wishes.answered(b"p:a", Ok(()));
    assert!(!process.wishes.is_live("p:a"), "that was the answer to the end");
    process.wishes.answered(b"p:b", Ok(()));
    process.wishes.answered(b"p:a", Ok(()));
    assert!(process.wishes.is_live("p:a"));
    assert_eq!(process.wishes.counts(), (1, 1));
    // A wish that comes and goes between two looks is no change.
    process.subscribe("u", "c");
    process.router.unsubscribe_all("u");
    assert!(process.wishes.take_changes().is_empty());
    // Another connection is asked for everything that is wanted, and answers of the last count for
    // nothing.
    process.wishes.start_over();
    process.wishes.answered(b"p:a", Ok(()));
    assert!(!process.wishes.is_live("p:a"));
    assert_eq!(process.wishes.take_changes(), changes(&["p:a"], &[]));
}

fn answers(mailbox: &LoopMailbox) -> Vec<(u64, bool)> {
    let completed = |post| match post {
        Post::Completed(token, outcome) => Some((token, outcome.is_ok())),
        Post::Ready(_) | Post::Journal(_) | Post::Changed(_) => None,
    };
    mailbox.take().into_iter().filter_map(completed).collect()
}

#[tokio::test]
async fn who_waits_for_a_topic_is_answered_once() {
    let process = Process::new();
    let wait = |channel: &str, limit: Duration, token: u64| {
        process.wishes.wait(channel, limit, Reply::on_drop(Arc::clone(&process.mailbox), token));
    };
    let long = Duration::from_secs(3600);
    process.subscribe("s", "a");
    wait("p:a", long, 1);
    wait("p:a", long, 2);
    wait("p:unknown", long, 3);
    assert_eq!(answers(&process.mailbox), [(3, true)], "nobody wants it: nothing to wait for");
    process.wishes.take_changes();
    process.wishes.answered(b"p:a", Ok(()));
    assert_eq!(answers(&process.mailbox), [(1, true), (2, true)]);
    wait("p:a", long, 4);
    assert_eq!(answers(&process.mailbox), [(4, true)]);
    process.subscribe("s", "denied");
    wait("p:denied", long, 5);
    process.wishes.take_changes();
    process.router.drop_channel("p:denied");
    let denied = Error::Refused { url: "redis://x".into(), reason: "NOPERM".into() };
    process.wishes.answered(b"p:denied", Err(denied));
    assert_eq!(answers(&process.mailbox), [(5, false)]);
    assert_eq!(process.router.topic_counts(), (1, 1, 1));
    process.subscribe("s", "late");
    process.subscribe("s", "left");
    wait("p:left", long, 8);
    process.router.unsubscribe_topic("s", "left").unwrap();
    assert_eq!(answers(&process.mailbox), [(8, true)], "nobody wants it any more");
    wait("p:late", Duration::from_millis(1), 6);
    wait("p:late", long, 7);
    let mut late = Vec::new();
    while late.is_empty() {
        tokio::task::yield_now().await;
        late = answers(&process.mailbox);
    }
    assert_eq!(late, [(6, true)]);
    process.wishes.abandon();
    assert_eq!(answers(&process.mailbox), [(7, true)]);
}
