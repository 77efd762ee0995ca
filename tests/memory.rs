//! What the core allocates for those who are connected and idle: figures that the README promises.

use std::alloc::System;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fanwire::lane::{Entry, LaneId};
use fanwire::post::{Bell, LoopMailbox};
use fanwire::router::{Inbound, Policy, Router};
use fanwire::runtime;
use fanwire::stats::ClientStats;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What an allocator adds to each allocation, at most: its own word, and what it rounds up.
const OVERHEAD: usize = 16;

/// Bytes that are allocated now, of everything in this process.
fn allocated() -> usize {
    let stats = ALLOCATOR.stats();
    let bytes = stats.bytes_allocated - stats.bytes_deallocated;
    bytes + OVERHEAD * (stats.allocations - stats.deallocations)
}

/// The allocator counts for all threads, so these tests take turns.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn event_loop() -> Arc<LoopMailbox> {
    let silent: Bell = Box::new(|| {});
    Arc::new(LoopMailbox::new(silent, runtime::generation()))
}

fn id(kind: &str, number: usize) -> String {
    let id = format!("{kind}-{number:08}-0000-4000-8000-0000000");
    assert_eq!(id.len(), 36, "as long as a UUID");
    id
}

fn connect(router: &Arc<Router>, mailbox: &Arc<LoopMailbox>, user: &str) {
    let lane = router.open();
    assert!(router.connect(user, lane));
    router.bind(lane, mailbox);
}

fn drain(router: &Arc<Router>, mailbox: &Arc<LoopMailbox>) -> usize {
    let (mut done, mut taken): (Vec<LaneId>, Vec<(LaneId, Entry)>) = (Vec::new(), Vec::new());
    let mut count = 0;
    loop {
        router.take(mailbox, &mut done, 64, &mut taken);
        if taken.is_empty() {
            return count;
        }
        count += taken.len();
        done.extend(taken.drain(..).map(|(lane, _)| lane));
    }
}

#[test]
fn an_idle_connection_with_three_subscriptions_costs_less_than_400_bytes() {
    const CONNECTIONS: usize = 100_000;
    let _alone = alone();
    let (router, mailbox) = (Router::new(Policy::default()), event_loop());
    connect(&router, &mailbox, "the first");
    router.subscribe("the first", "something");
    let before = allocated();
    for number in 0..CONNECTIONS {
        let user = id("user", number);
        connect(&router, &mailbox, &user);
        for upload in ["upl1", "upl2", "upl3"] {
            router.subscribe(&user, &id(upload, number));
        }
    }
    let each = (allocated() - before) / CONNECTIONS;

    assert!(each < 400, "{each} bytes");

    // And so it does when there were messages for all of them, three in a row for each.
    let stats = ClientStats::default();
    let channels: Vec<String> =
        (0..CONNECTIONS).map(|number| format!("user:{}", id("user", number))).collect();
    let batch: Vec<Inbound<'_>> = channels
        .iter()
        .flat_map(|channel| std::iter::repeat_n(channel, 3))
        .map(|channel| Inbound::new(channel.as_bytes(), b"{}"))
        .collect();
    for part in batch.chunks(256) {
        router.route(part, None, &stats);
    }
    assert_eq!(drain(&router, &mailbox), batch.len());
    drop(batch);
    drop(channels);
    let each = (allocated() - before) / CONNECTIONS;

    assert!(each < 400, "{each} bytes after messages");
}

#[test]
fn a_million_subscriptions_fit_in_150_megabytes() {
    const SUBSCRIPTIONS: usize = 1_000_000;
    let _alone = alone();
    for users in [100, 100_000] {
        let (router, mailbox) = (Router::new(Policy::default()), event_loop());
        let before = allocated();
        for number in 0..users {
            connect(&router, &mailbox, &id("user", number));
        }
        for number in 0..SUBSCRIPTIONS {
            router.subscribe(&id("user", number % users), &id("upl1", number));
        }
        let all = (allocated() - before) / 1_000_000;

        assert!(all < 150, "{all} MB for {users} users");
    }
}

#[test]
fn what_is_connected_no_more_costs_nothing_the_second_time() {
    let _alone = alone();
    let (router, mailbox) = (Router::new(Policy::default()), event_loop());
    let come_and_go = || {
        for number in 0..10_000 {
            let user = id("user", number);
            connect(&router, &mailbox, &user);
            router
                .subscribe(&user, "a name that is too long to stand where short ones do, and more");
            router.subscribe(&user, &id("upl1", number));
        }
        for number in 0..10_000 {
            let user = id("user", number);
            let lanes = router.connections_of(&user).unwrap();
            assert!(router.disconnect(&user, Some(lanes[0])));
        }
    };
    come_and_go();
    let before = allocated();
    for _ in 0..3 {
        come_and_go();
    }
    assert_eq!(allocated(), before);
}
