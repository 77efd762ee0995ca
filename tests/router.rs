//! The router with lanes and mailboxes, as a binding uses it, without Python.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fanwire::channel::Address;
use fanwire::lane::{Entry, LaneId, LaneLimits};
use fanwire::lanes::{GaveUp, Notice};
use fanwire::post::{Bell, LoopMailbox, Post, Reply};
use fanwire::router::{Inbound, Policy, Router};
use fanwire::runtime;
use fanwire::stats::ClientStats;

/// A mailbox, and how often its bell rang.
fn event_loop() -> (Arc<LoopMailbox>, Arc<AtomicUsize>) {
    let rings = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&rings);
    let bell: Bell = Box::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    (Arc::new(LoopMailbox::new(bell, runtime::generation())), rings)
}

fn connected(router: &Arc<Router>, user: &str, mailbox: &Arc<LoopMailbox>) -> LaneId {
    let lane = router.open();
    assert!(router.connect(user, lane));
    router.bind(lane, mailbox);
    lane
}

fn take(
    router: &Arc<Router>,
    mailbox: &Arc<LoopMailbox>,
    done: &[LaneId],
    most: usize,
) -> Vec<(LaneId, String)> {
    let mut taken: Vec<(LaneId, Entry)> = Vec::new();
    router.take(mailbox, &mut done.to_vec(), most, &mut taken);
    taken.into_iter().map(|(lane, entry)| (lane, entry.payload.text.to_string())).collect()
}

fn texts(taken: Vec<(LaneId, String)>) -> Vec<String> {
    taken.into_iter().map(|(_, text)| text).collect()
}

fn route(router: &Arc<Router>, stats: &ClientStats, channel: &str, payloads: &[&[u8]]) {
    let batch: Vec<_> =
        payloads.iter().map(|payload| Inbound::new(channel.as_bytes(), payload)).collect();
    router.route(&batch, None, stats);
}

/// Returns when connections whose sends are suspended by now count as slow. A router of its own tells:
/// a send is suspended there a moment later, and more waits behind it than may.
fn until_suspended_sends_are_slow() {
    let limits = LaneLimits { messages: 1, bytes: 1000 };
    let (router, stats) =
        (Router::new(Policy { limits, ..Policy::default() }), ClientStats::default());
    let (mailbox, _) = event_loop();
    let lane = connected(&router, "a", &mailbox);
    route(&router, &stats, "user:a", &[b"1"]);
    assert_eq!(texts(take(&router, &mailbox, &[], 10)), ["1"]);
    router.suspend(&mailbox, lane, &mut Vec::new(), false);
    route(&router, &stats, "user:a", &[b"2", b"3"]);
    assert!(router.is_open(lane), "nobody is slow from the start");
    let deadline = Instant::now() + Duration::from_secs(20);
    while router.is_open(lane) {
        assert!(Instant::now() < deadline, "a suspended send never counts as slow");
        std::thread::sleep(Duration::from_millis(5));
        router.see(&mailbox);
    }
}

#[test]
fn one_batch_rings_once_and_each_lane_keeps_its_order() {
    let (router, stats) = (Router::new(Policy::default()), ClientStats::default());
    let (mailbox, rings) = event_loop();
    let (a, b) = (connected(&router, "a", &mailbox), connected(&router, "b", &mailbox));
    router.subscribe("a", "x");
    router.subscribe("b", "x");
    route(&router, &stats, "upload:x", &[b"1", b"2", b"3"]);
    route(&router, &stats, "upload:nobody", &[b"1", b"2"]);
    assert_eq!(rings.load(Ordering::SeqCst), 1);
    assert!(matches!(&mailbox.take()[..], [Post::Ready(_)]));
    let first = take(&router, &mailbox, &[], 10);
    assert_eq!(first, [(a, "1".to_owned()), (b, "1".to_owned())]);
    assert!(take(&router, &mailbox, &[], 10).is_empty(), "a lane is in one hand at a time");
    assert_eq!(texts(take(&router, &mailbox, &[a, b], 10)), ["2", "2"]);
    assert_eq!(texts(take(&router, &mailbox, &[b], 10)), ["3"]);
    assert_eq!(texts(take(&router, &mailbox, &[a, b], 10)), ["3"]);
    assert!(take(&router, &mailbox, &[a, b], 10).is_empty());
    let (received, unwatched) = (stats.received.get(), stats.unwatched.get());
    assert_eq!((received, unwatched), (5, 2));
    // Found empty, so the next message rings again.
    route(&router, &stats, "user:a", &[b"4"]);
    assert_eq!(rings.load(Ordering::SeqCst), 2);
}

#[test]
fn what_a_cancelled_pump_had_in_hand_comes_back_in_order() {
    let (router, stats) = (Router::new(Policy::default()), ClientStats::default());
    let (mailbox, rings) = event_loop();
    let lane = connected(&router, "a", &mailbox);
    route(&router, &stats, "user:a", &[b"1", b"2"]);
    drop(mailbox.take());
    let mut taken = Vec::new();
    router.take(&mailbox, &mut Vec::new(), 10, &mut taken);
    router.put_back(&mailbox, &mut Vec::new(), taken);
    assert_eq!(rings.load(Ordering::SeqCst), 1, "not yet: the loop may be going away");
    router.retell();
    assert_eq!(rings.load(Ordering::SeqCst), 2, "the loop is told again");
    assert_eq!(texts(take(&router, &mailbox, &[], 10)), ["1"]);
    assert_eq!(texts(take(&router, &mailbox, &[lane], 10)), ["2"]);
}

#[test]
fn a_lane_that_overflows_is_given_up_and_hurts_nobody_else() {
    let limits = LaneLimits { messages: 2, bytes: 1000 };
    let (router, stats) =
        (Router::new(Policy { limits, ..Policy::default() }), ClientStats::default());
    let (mailbox, _) = event_loop();
    let slow = connected(&router, "slow", &mailbox);
    router.subscribe("slow", "x");
    route(&router, &stats, "upload:x", &[b"1"]);
    assert_eq!(texts(take(&router, &mailbox, &[], 10)), ["1"]);
    router.suspend(&mailbox, slow, &mut Vec::new(), true);
    until_suspended_sends_are_slow();
    router.see(&mailbox);
    let quick = connected(&router, "quick", &mailbox);
    router.subscribe("quick", "x");
    for text in [b"2", b"3", b"4"] {
        route(&router, &stats, "upload:x", &[text]);
        let taken = take(&router, &mailbox, &[quick], 10);
        assert_eq!(taken, [(quick, String::from_utf8_lossy(text).into_owned())]);
    }
    assert_eq!(router.take_notices(&mailbox), [Notice::GivenUp(slow, GaveUp::Overflow, 3)]);
    assert!(!router.is_open(slow));
    assert!(router.connections_of("slow").is_none());
    assert!(router.inspect(|maps| maps.watched_by("slow").is_none()));
    assert_eq!((router.stats.overflowed.get(), router.stats.dropped.get()), (1, 3));
    let again = router.open();
    assert_ne!(again.index, slow.index, "the index is taken until it is released");
    router.release(slow);
    let reused = router.open();
    assert_eq!((reused.index, reused.generation), (slow.index, slow.generation + 1));
}

#[test]
fn a_send_is_answered_when_its_last_entry_is_gone() {
    let router = Router::new(Policy::default());
    let (mailbox, _) = event_loop();
    let (a, b) = (connected(&router, "u", &mailbox), connected(&router, "u", &mailbox));
    let answered = |mailbox: &LoopMailbox| {
        mailbox.take().iter().filter(|post| matches!(post, Post::Completed(7, Ok(_)))).count()
    };
    router.send(Address::User(b"nobody"), "x", Reply::on_drop(Arc::clone(&mailbox), 7));
    assert_eq!(answered(&mailbox), 1, "at once if there is nobody");
    router.send(Address::User(b"u"), "x", Reply::on_drop(Arc::clone(&mailbox), 7));
    let mut taken = Vec::new();
    router.take(&mailbox, &mut Vec::new(), 10, &mut taken);
    taken.pop();
    assert_eq!(answered(&mailbox), 0);
    drop(taken);
    assert_eq!(answered(&mailbox), 1);
    router.send(Address::User(b"u"), "y", Reply::on_drop(Arc::clone(&mailbox), 7));
    assert_eq!([router.close(a), router.close(b), router.close(b)], [Some(1), Some(1), None]);
    assert_eq!(answered(&mailbox), 1, "a connection that leaves does not keep its sender waiting");
}

#[test]
fn lanes_of_a_dead_loop_move_to_another() {
    let (router, stats) = (Router::new(Policy::default()), ClientStats::default());
    let (dead, _) = event_loop();
    let lane = connected(&router, "a", &dead);
    route(&router, &stats, "user:a", &[b"1"]);
    dead.close();
    route(&router, &stats, "user:a", &[b"lost"]);
    assert_eq!(router.stats.dropped.get(), 1, "nobody could take it, and that is counted");
    let (alive, rings) = event_loop();
    router.route(&[Inbound::new(b"user:a", b"2")], Some(&alive), &stats);
    assert_eq!(rings.load(Ordering::SeqCst), 1);
    assert_eq!(take(&router, &alive, &[], 10), [(lane, "1".to_owned())]);
    assert_eq!(take(&router, &alive, &[lane], 10), [(lane, "2".to_owned())]);
}

#[test]
fn payloads_that_are_not_text_are_skipped_and_named() {
    let (router, stats) = (Router::new(Policy::default()), ClientStats::default());
    let (mailbox, _) = event_loop();
    let lane = connected(&router, "a", &mailbox);
    let batch =
        [b"\xff".as_slice(), b"text", b"{}"].map(|payload| Inbound::new(b"user:a", payload));
    assert_eq!(router.route(&batch, None, &stats), [b"user:a"]);
    assert_eq!((stats.not_utf8.get(), stats.not_json.get()), (1, 1));
    assert_eq!(texts(take(&router, &mailbox, &[], 10)), ["text"]);
    assert_eq!(texts(take(&router, &mailbox, &[lane], 10)), ["{}"]);
}

#[tokio::test(start_paused = true)]
async fn a_burst_that_outruns_the_loop_slows_the_reading_and_disconnects_nobody() {
    let limits = LaneLimits { messages: 4, bytes: 1000 };
    let (router, stats) =
        (Router::new(Policy { limits, ..Policy::default() }), ClientStats::default());
    let (mailbox, _) = event_loop();
    let lane = connected(&router, "a", &mailbox);
    let payloads: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    let bytes: Vec<&[u8]> = payloads.iter().map(String::as_bytes).collect();
    route(&router, &stats, "user:a", &bytes);
    let waiting = |router: &Arc<Router>| {
        let router = Arc::clone(router);
        async move { tokio::time::timeout(Duration::from_secs(5), router.keep_pace()).await }
    };
    assert!(waiting(&router).await.is_err(), "far behind");
    let mut seen = texts(take(&router, &mailbox, &[], 1));
    while seen.len() < 9 {
        seen.extend(texts(take(&router, &mailbox, &[lane], 1)));
    }
    assert!(waiting(&router).await.is_ok(), "caught up");
    seen.extend(texts(take(&router, &mailbox, &[lane], 1)));
    assert_eq!(seen, payloads);
    assert_eq!(router.stats.dropped.get() + router.stats.overflowed.get(), 0);
    // A loop that is closed while it is behind must not stop the listener for ever.
    route(&router, &stats, "user:a", &bytes);
    mailbox.close();
    assert!(waiting(&router).await.is_ok());
}

#[test]
fn what_comes_before_a_lane_is_bound_waits_for_it() {
    let (router, stats) = (Router::new(Policy::default()), ClientStats::default());
    let (mailbox, rings) = event_loop();
    let lane = router.open();
    assert!(router.connect("a", lane));
    route(&router, &stats, "user:a", &[b"lost"]);
    assert_eq!(router.stats.dropped.get(), 1, "there is no loop at all");
    let home = event_loop().0;
    router.route(&[Inbound::new(b"user:a", b"1")], Some(&home), &stats);
    assert_eq!(texts(take(&router, &home, &[], 10)), ["1"], "the listener's own loop takes it");
    let other = connected(&router, "b", &mailbox);
    route(&router, &stats, "user:b", &[b"2"]);
    assert_eq!(rings.load(Ordering::SeqCst), 1);
    assert_eq!(take(&router, &mailbox, &[], 10), [(other, "2".to_owned())]);
}

#[tokio::test]
async fn a_loop_that_is_stuck_does_not_hold_up_the_others_for_long() {
    let limits = LaneLimits { messages: 4, bytes: 1000 };
    let (router, stats) =
        (Router::new(Policy { limits, ..Policy::default() }), ClientStats::default());
    let (stuck, living) = (event_loop().0, event_loop().0);
    let lane = connected(&router, "a", &stuck);
    connected(&router, "b", &living);
    route(&router, &stats, "user:a", &[b"1", b"2", b"3", b"4", b"5"]);
    router.keep_pace().await;
    assert_eq!(router.take_notices(&stuck), [Notice::GivenUp(lane, GaveUp::Overflow, 5)]);
}

#[test]
fn a_notice_that_comes_while_a_pump_is_at_work_is_heeded_and_the_loop_stays_awake() {
    let limits = LaneLimits { messages: 2, bytes: 1000 };
    let (router, stats) =
        (Router::new(Policy { limits, ..Policy::default() }), ClientStats::default());
    let (mailbox, rings) = event_loop();
    let slow = connected(&router, "slow", &mailbox);
    let quick = connected(&router, "quick", &mailbox);
    route(&router, &stats, "user:slow", &[b"1"]);
    assert_eq!(texts(take(&router, &mailbox, &[], 10)), ["1"]);
    router.suspend(&mailbox, slow, &mut Vec::new(), false);
    until_suspended_sends_are_slow();
    router.see(&mailbox);
    drop(mailbox.take());
    // The pump is still at work, and told, when the other lane is given up.
    route(&router, &stats, "user:slow", &[b"2", b"3", b"4"]);
    assert_eq!(rings.load(Ordering::SeqCst), 1);
    assert!(take(&router, &mailbox, &[], 10).is_empty());
    assert_eq!(rings.load(Ordering::SeqCst), 2, "its end rings for the notice");
    assert_eq!(router.take_notices(&mailbox).len(), 1);
    drop(mailbox.take());
    assert!(take(&router, &mailbox, &[], 10).is_empty());
    route(&router, &stats, "user:quick", &[b"5"]);
    assert_eq!(rings.load(Ordering::SeqCst), 3);
    assert_eq!(take(&router, &mailbox, &[], 10), [(quick, "5".to_owned())]);
}
