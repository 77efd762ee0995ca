//! Microbenchmarks of the core: decode, classify, route, lanes. `cargo bench --no-default-features`.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fanwire::broker::redis::resp::{self, Event};
use fanwire::channel::Address;
use fanwire::coalesce::{Coalescer, Rule};
use fanwire::history::{self, Epoch, Position, Settings};
use fanwire::lane::{Entry, LaneId};
use fanwire::post::{Bell, LoopMailbox};
use fanwire::router::{Inbound, Policy, Router};
use fanwire::runtime;
use fanwire::stats::ClientStats;

const PAYLOAD: &str = r#"{"action":"upload_progress","payload":{"upload_id":"0f8fad5b-d9cb-469f-a165-70867728950e","status":"processing","stage":"vision_analysis","progress_percent":42,"message":"Analysing frame 21 of 50","error_message":null,"description_audit_score":null},"timestamp":"2026-01-01T12:00:00.000000Z"}"#;

/// Messages in one read of the socket.
const MESSAGES: u64 = 200;

fn wire() -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 0..MESSAGES {
        let channel = format!("upload:{number:08}");
        for (head, part) in
            [("*4\r\n", "pmessage"), ("", "upload:*"), ("", &channel), ("", PAYLOAD)]
        {
            bytes.extend_from_slice(format!("{head}${}\r\n{part}\r\n", part.len()).as_bytes());
        }
    }
    bytes
}

fn decode(c: &mut Criterion) {
    let bytes = wire();
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(MESSAGES));
    group.bench_function("fanwire", |b| {
        b.iter(|| {
            let mut at = 0;
            while let Ok(Some((Event::Matching(inbound), size))) = resp::read(&bytes[at..]) {
                black_box(inbound);
                at += size;
            }
            assert_eq!(at, bytes.len());
        });
    });
    group.bench_function("redis crate", |b| {
        b.iter(|| {
            let mut parser = redis::Parser::new();
            let mut rest = &bytes[..];
            for _ in 0..MESSAGES {
                black_box(parser.parse_value(&mut rest)).ok();
            }
        });
    });
    group.finish();
}

fn classify(c: &mut Criterion) {
    let uploads = Coalescer::new(&[Rule::of_uploads()]).expect("its pointers are valid");
    let mut group = c.benchmark_group("classify");
    group.bench_function("fanwire", |b| {
        b.iter(|| uploads.classify(Address::User(b"ada"), black_box(PAYLOAD)));
    });
    group.bench_function("serde_json value", |b| {
        b.iter(|| serde_json::from_str::<serde_json::Value>(black_box(PAYLOAD)).map(drop));
    });
    group.finish();
}

fn event_loop() -> Arc<LoopMailbox> {
    let silent: Bell = Box::new(|| {});
    Arc::new(LoopMailbox::new(silent, runtime::generation()))
}

fn drain(router: &Arc<Router>, mailbox: &Arc<LoopMailbox>) {
    let (mut done, mut taken): (Vec<LaneId>, Vec<(LaneId, Entry)>) = (Vec::new(), Vec::new());
    loop {
        router.take(mailbox, &mut done, 64, &mut taken);
        if taken.is_empty() {
            return;
        }
        done.extend(taken.drain(..).map(|(lane, _)| lane));
    }
}

/// A batch to as many lanes, of which the given number of uploads are known; pushed and taken.
fn route(c: &mut Criterion) {
    let mut group = c.benchmark_group("route");
    group.throughput(Throughput::Elements(MESSAGES));
    for (name, uploads, watched) in [
        ("unwatched", 1_000, false),
        ("unwatched", 1_000_000, false),
        ("watched", 1_000, true),
        ("watched", 1_000_000, true),
    ] {
        let (router, mailbox, stats) =
            (Router::new(Policy::default()), event_loop(), ClientStats::default());
        for number in 0..uploads {
            let user = format!("user-{number}");
            let lane = router.open();
            router.connect(&user, lane);
            router.bind(lane, &mailbox);
            router.subscribe(&user, &format!("{number:08}"));
        }
        let prefix = if watched { "upload:" } else { "upload:none-" };
        let channels: Vec<String> = (0..MESSAGES).map(|n| format!("{prefix}{n:08}")).collect();
        let batch: Vec<Inbound<'_>> = channels
            .iter()
            .map(|channel| Inbound::new(channel.as_bytes(), PAYLOAD.as_bytes()))
            .collect();
        group.bench_function(BenchmarkId::new(name, uploads), |b| {
            b.iter(|| {
                router.route(&batch, None, &stats);
                drain(&router, &mailbox);
            });
        });
    }
    group.finish();
}

/// What a recorded message of an upload is.
fn recorded(position: Position) -> String {
    let head = history::head(PAYLOAD.as_bytes()).expect("the payload is an object");
    String::from_utf8(head).expect("the payload is text") + &position.tail()
}

fn position(c: &mut Criterion) {
    let text = recorded(Position { epoch: Epoch::random(), offset: 217 });
    let mut group = c.benchmark_group("position");
    group.bench_function("of a recorded message", |b| {
        b.iter(|| Position::of(black_box(text.as_bytes())));
    });
    group.bench_function("of another message", |b| {
        b.iter(|| Position::of(black_box(PAYLOAD.as_bytes())));
    });
    group.finish();
}

/// A batch to as many lanes, one to each; made anew each time, because offsets must grow.
fn route_recorded(c: &mut Criterion) {
    let mut group = c.benchmark_group("route to lanes that watch");
    group.throughput(Throughput::Elements(MESSAGES));
    for (name, recovers, records) in [
        ("unrecorded", false, false),
        ("unrecorded, with a history", true, false),
        ("recorded", false, true),
        ("recorded, with a history", true, true),
    ] {
        let (router, mailbox, stats) =
            (Router::new(Policy::default()), event_loop(), ClientStats::default());
        router.recover(recovers.then(Settings::default));
        for number in 0..MESSAGES {
            let user = format!("user-{number}");
            let lane = router.open();
            router.connect(&user, lane);
            router.bind(lane, &mailbox);
            router.subscribe(&user, &format!("{number:08}"));
        }
        // The broker keeps nothing yet: whatever comes is the first.
        for (id, ask) in router.take_asks(usize::MAX) {
            router.catch_up(id, &ask.upload, None, None);
        }
        let channels: Vec<String> = (0..MESSAGES).map(|n| format!("upload:{n:08}")).collect();
        let (epoch, mut offset) = (Epoch::random(), 0);
        let mut payloads = || {
            offset += 1;
            let text = recorded(Position { epoch, offset });
            vec![if records { text } else { PAYLOAD.to_owned() }; channels.len()]
        };
        group.bench_function(name, |b| {
            b.iter_batched(
                &mut payloads,
                |payloads| {
                    let batch: Vec<Inbound<'_>> = channels
                        .iter()
                        .zip(&payloads)
                        .map(|(channel, payload)| {
                            Inbound::new(channel.as_bytes(), payload.as_bytes())
                        })
                        .collect();
                    router.route(&batch, None, &stats);
                    drain(&router, &mailbox);
                    payloads
                },
                BatchSize::PerIteration,
            );
        });
        let told: HashMap<_, _> = router.stats.snapshot().into_iter().collect();
        assert_eq!((told["gaps"], told["duplicates"]), (0, 0), "{name}");
    }
    group.finish();
}

/// Pushes into one lane that is stalled: progress of so many uploads, each overwritten in place.
fn coalesce(c: &mut Criterion) {
    let mut group = c.benchmark_group("push into a stalled lane");
    group.throughput(Throughput::Elements(MESSAGES));
    for uploads in [1u64, 10, 100, 1000] {
        let (router, mailbox, stats) =
            (Router::new(Policy::default()), event_loop(), ClientStats::default());
        let lane = router.open();
        router.connect("ada", lane);
        router.bind(lane, &mailbox);
        let payloads: Vec<String> = (0..uploads)
            .map(|n| format!(r#"{{"action":"file_progress","payload":{{"upload_id":"{n}"}}}}"#))
            .collect();
        let all: Vec<Inbound<'_>> =
            payloads.iter().map(|payload| Inbound::new(b"user:ada", payload.as_bytes())).collect();
        router.route(&all, None, &stats);
        let batch: Vec<Inbound<'_>> = all.iter().cycle().take(200).copied().collect();
        group.bench_function(BenchmarkId::new("uploads", uploads), |b| {
            b.iter(|| router.route(&batch, None, &stats));
        });
    }
    group.finish();
}

/// One message to many lanes, pushed and taken.
fn fan_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("fan out");
    for lanes in [100u64, 10_000] {
        group.throughput(Throughput::Elements(lanes));
        let (router, mailbox, stats) =
            (Router::new(Policy::default()), event_loop(), ClientStats::default());
        for number in 0..lanes {
            let user = format!("user-{number}");
            let lane = router.open();
            router.connect(&user, lane);
            router.bind(lane, &mailbox);
            router.subscribe(&user, "x");
        }
        let batch = [Inbound::new(b"upload:x", PAYLOAD.as_bytes())];
        group.bench_function(BenchmarkId::new("lanes", lanes), |b| {
            b.iter(|| {
                router.route(&batch, None, &stats);
                drain(&router, &mailbox);
            });
        });
    }
    group.finish();
}

/// People come, watch three uploads each, stop watching, and go; five to an upload.
fn maps(c: &mut Criterion) {
    const PEOPLE: usize = 1_000;
    let (router, mailbox) = (Router::new(Policy::default()), event_loop());
    let id = |kind: &str, number: usize| format!("{kind:0<8.8}-0000-4000-8000-{number:012}");
    let users: Vec<String> = (0..PEOPLE).map(|number| id("user", number)).collect();
    let uploads: Vec<String> = (0..PEOPLE * 3 / 5).map(|number| id("watched", number)).collect();
    let watched: Vec<(&String, &String)> = (0..PEOPLE * 3)
        .map(|number| (&users[number / 3], &uploads[number % uploads.len()]))
        .collect();
    let mut group = c.benchmark_group("maps");
    group.throughput(Throughput::Elements(8 * PEOPLE as u64));
    group.bench_function("connect, subscribe, unsubscribe, disconnect", |b| {
        b.iter(|| {
            let lanes: Vec<LaneId> = users
                .iter()
                .map(|user| {
                    let lane = router.open();
                    router.connect(user, lane);
                    router.bind(lane, &mailbox);
                    lane
                })
                .collect();
            for (user, upload) in &watched {
                router.subscribe(user, upload);
            }
            for (user, upload) in &watched {
                router.unsubscribe(user, upload);
            }
            for (user, lane) in users.iter().zip(lanes) {
                router.disconnect(user, Some(lane));
            }
        });
    });
    group.finish();
}

criterion_group!(
    benches,
    decode,
    classify,
    position,
    route,
    route_recorded,
    coalesce,
    fan_out,
    maps
);
criterion_main!(benches);
