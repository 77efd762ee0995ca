//! The task that empties a publisher's queue into a broker, in batches, over one connection.
//!
//! What the broker has certainly not got waits until it is back. A batch that was under way when the
//! connection broke is not sent again, for nobody knows whether it came: each message comes once or not
//! at all, in order, and what may be missing is told on the events channel.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::CLOSING;
use super::core::{Core, InHand};
use super::queue::{Counts, Entry, Kind};
use super::report::Missing;
use crate::broker::{Link, Verdict};
use crate::error::Error;
use crate::journal::Level;
use crate::message::Outgoing;
use crate::runtime;
use crate::supervise::rest;

/// The most messages in one round trip.
const BATCH: usize = 512;
/// The most bytes of payload in one round trip: what a slow link carries within the publish timeout.
const BATCH_BYTES: usize = 512 << 10;
/// For so long after a batch it looks after log lines by itself, and this often.
const LOOKS: u32 = 10;
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// While the broker takes messages and more come than it can take, what was dropped is told this often.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Runs until the publisher is closed and nothing waits.
pub(super) async fn run(core: Arc<Core>) {
    let _ended = Ended(&core);
    let mut panics = 0;
    // A fault of ours costs what was being sent, and no more.
    while let Err(text) = runtime::contained(send_all(&core)).await {
        panics += 1;
        {
            let _gate = runtime::gate();
            core.stats.panics.add(1);
            core.journal.add(Level::Error, format!("publishing events: {text}"));
            let mut inner = core.lock();
            inner.connected = false;
            core.lose_in_hand(&mut inner);
        }
        rest(panics).await;
    }
}

/// However the task ends, the next push may start another.
struct Ended<'a>(&'a Core);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let _gate = runtime::gate();
        let mut inner = self.0.lock();
        (inner.running, inner.connected) = (false, false);
        (inner.task, inner.sleeper) = (None, None);
        self.0.lose_in_hand(&mut inner);
    }
}

async fn send_all(core: &Core) {
    let mut sender = Sender { core, link: None, attempt: 0, voice: Voice::default() };
    while core.due().await {
        if core.is_late() {
            let _gate = runtime::gate();
            core.abandon(&mut core.lock());
            return;
        }
        let is_new = sender.link.as_ref().is_none_or(Link::is_lost);
        if is_new && !sender.connect().await {
            continue;
        }
        sender.send(is_new).await;
    }
}

struct Sender<'a> {
    core: &'a Core,
    link: Option<Link>,
    /// Attempts in a row that have failed.
    attempt: u32,
    voice: Voice,
}

impl Sender<'_> {
    /// Connects, or says that it cannot and lets some time pass.
    async fn connect(&mut self) -> bool {
        self.link = None;
        let settings = &self.core.settings;
        match Link::connect(&settings.url, &settings.limits).await {
            Ok(link) => {
                self.link = Some(link);
                let _gate = runtime::gate();
                self.core.lock().connected = true;
                true
            }
            Err(error) => {
                self.rest(&error).await;
                false
            }
        }
    }

    async fn rest(&mut self, error: &Error) {
        self.link = None;
        self.attempt = self.attempt.saturating_add(1);
        {
            let _gate = runtime::gate();
            self.core.lock().connected = false;
            self.voice.begin(self.core, error);
        }
        rest(self.attempt).await;
    }

    /// Sends a batch, which may be the last one over this connection.
    async fn send(&mut self, is_new: bool) {
        let Some(link) = &mut self.link else { return };
        let batch = self.core.take(is_new);
        let trouble = match link.publish(&batch.outgoing).await {
            Ok(verdicts) => self.settle(batch, verdicts),
            Err(error) => {
                let _gate = runtime::gate();
                self.core.lose_in_hand(&mut self.core.lock());
                Some(error)
            }
        };
        if let Some(error) = trouble {
            return self.rest(&error).await;
        }
        self.attempt = 0;
        // A broker that answers at once must not keep the other tasks of this thread waiting.
        tokio::task::yield_now().await;
    }

    /// Counts what the broker took and refused, and puts back what it may take later, which is an outage.
    fn settle(&mut self, batch: Batch, verdicts: Vec<Verdict>) -> Option<Error> {
        let core = self.core;
        let fates: Vec<Option<Error>> = verdicts.into_iter().map(fate).collect();
        let passing = |fate: &&Option<Error>| matches!(fate, Some(Error::Unreachable { .. }));
        // Those at the end alone: an earlier one would come after what was published after it.
        let kept = batch.outgoing.len() - fates.iter().rev().take_while(passing).count();
        let trouble = fates.get(kept).cloned().flatten();
        let refused: Vec<&Error> = fates[..kept].iter().flatten().collect();
        let reports = usize::from(batch.reports);
        let taken = kept - refused.len();
        let published =
            taken - usize::from(batch.reports && fates.first().is_some_and(Option::is_none));
        let failed = kept.saturating_sub(reports) - published;

        let _gate = runtime::gate();
        core.stats.published.add(published as u64);
        core.stats.publish_failed.add(failed as u64);
        if let Some(error) = refused.first() {
            self.voice.tell_refusal(core, error);
        }
        let mut inner = core.lock();
        if let Some(in_hand) = inner.in_hand.take() {
            inner.lost += failed as u64;
            if kept < reports {
                inner.missing.add(in_hand.report);
            }
            let dropped = inner.queue.put_back(batch.entries_from(kept));
            inner.drop_counted(dropped, &core.stats);
            inner.answer();
        }
        drop(inner);
        if taken > 0 {
            self.voice.end(core);
        }
        trouble
    }
}

/// None: it was taken.
fn fate(verdict: Verdict) -> Option<Error> {
    match verdict {
        Verdict::Taken(_) => None,
        Verdict::Refused(error) => Some(error),
        // Of recorded messages alone, and these are not.
        Verdict::Again | Verdict::Behind => {
            Some(Error::Rejected("it wants to be asked again".to_owned()))
        }
    }
}

/// Messages that are being sent.
struct Batch {
    outgoing: Vec<Outgoing>,
    /// Of those, less the report.
    marks: Vec<(u64, Kind)>,
    /// Whether the first one tells what is missing.
    reports: bool,
}

impl Batch {
    /// The messages from an index of `outgoing` on, as they were in the queue.
    fn entries_from(self, index: usize) -> Vec<Entry> {
        let reports = usize::from(self.reports);
        let payloads = self.outgoing.into_iter().map(|outgoing| outgoing.payload).skip(reports);
        let entries = self.marks.into_iter().zip(payloads);
        let entries = entries.map(|((number, kind), payload)| {
            let payload = payload.into();
            Entry { number, kind, payload }
        });
        entries.skip(index.saturating_sub(reports)).collect()
    }
}

impl Core {
    /// Waits until there is something to send. False once there will be nothing any more.
    ///
    /// To wake this thread costs the one that publishes more than everything else, 20 us where it is
    /// pushed off its core. So for a while after a batch it is not woken for log lines and stats, but
    /// looks after them by itself.
    async fn due(&self) -> bool {
        for _ in 0..LOOKS {
            if let Some(due) = self.look() {
                return due;
            }
            // Woken early or not, it looks again.
            drop(tokio::time::timeout(LOOK_EVERY, self.sleep(true)).await);
        }
        loop {
            if let Some(due) = self.look() {
                return due;
            }
            self.sleep(false).await;
        }
    }

    /// Whether there is something to send; None while there is nothing yet.
    fn look(&self) -> Option<bool> {
        let _gate = runtime::gate();
        let mut inner = self.lock();
        (inner.sleeper, inner.dozes) = (None, false);
        if !inner.queue.is_empty() || !inner.missing.is_none() {
            return Some(true);
        }
        inner.closed.is_some().then_some(false)
    }

    /// Waits to be woken. One who dozes is left alone by log lines and stats, until there are many.
    async fn sleep(&self, dozes: bool) {
        let mut begun = false;
        std::future::poll_fn(|context| {
            let _gate = runtime::gate();
            let mut inner = self.lock();
            let woken = begun && inner.sleeper.is_none();
            let missed = !begun && (!inner.queue.is_empty() || inner.closed.is_some());
            if woken || missed {
                return Poll::Ready(());
            }
            begun = true;
            inner.sleeper = Some(context.waker().clone());
            inner.dozes = dozes;
            Poll::Pending
        })
        .await;
    }

    /// Whether it was closed so long ago that what waits is given up.
    fn is_late(&self) -> bool {
        let _gate = runtime::gate();
        self.lock().closed.is_some_and(|closed| closed.elapsed() > CLOSING)
    }

    /// Takes a batch. What is missing is told first where the connection is new, and otherwise as soon as
    /// nothing more waits.
    fn take(&self, is_new: bool) -> Batch {
        let (entries, report) = {
            let _gate = runtime::gate();
            let mut inner = self.lock();
            let entries = inner.queue.take(BATCH, BATCH_BYTES);
            let is_time = || inner.told.is_none_or(|told| told.elapsed() >= TELL_EVERY);
            let tells = is_new || inner.queue.is_empty() || is_time();
            let report =
                if tells { std::mem::take(&mut inner.missing) } else { Missing::default() };
            if !report.is_none() {
                inner.told = Some(Instant::now());
            }
            let mut counts = Counts::default();
            let mut bytes = 0;
            for entry in &entries {
                counts.count(entry.kind);
                bytes += entry.payload.len();
            }
            let first = entries.first().map(|entry| entry.number);
            inner.in_hand = Some(InHand { first, counts, bytes, report });
            (entries, report)
        };
        let reports = !report.is_none();
        let mut outgoing = Vec::with_capacity(entries.len() + usize::from(reports));
        let mut push = |kind, payload| {
            let channel = self.settings.channels.of(kind).into();
            outgoing.push(Outgoing::new(channel, payload));
        };
        if reports {
            let offset = self.utc_offset_seconds.load(std::sync::atomic::Ordering::Relaxed);
            push(Kind::Event, Bytes::from(report.to_event(SystemTime::now(), offset)));
        }
        let marks = entries.iter().map(|entry| (entry.number, entry.kind)).collect();
        for entry in entries {
            push(entry.kind, entry.payload.into());
        }
        Batch { outgoing, marks, reports }
    }
}

/// Tells the beginning and the end of an outage once each.
#[derive(Default)]
struct Voice {
    /// Whether an outage is under way.
    down: bool,
    /// What had been lost when the broker took something last.
    before: (Counts, u64),
    told_refusal: bool,
}

impl Voice {
    fn begin(&mut self, core: &Core, error: &Error) {
        if std::mem::replace(&mut self.down, true) {
            return;
        }
        let text = format!("events and log lines cannot be published, and wait: {error}");
        core.journal.add(Level::Error, text);
        // Who sees it counted finds the line.
        core.stats.outages.add(1);
    }

    fn end(&mut self, core: &Core) {
        let (after, unclear) = lost(core);
        let (before, unclear_before) = std::mem::replace(&mut self.before, (after, unclear));
        if !std::mem::take(&mut self.down) {
            return;
        }
        let text = format!(
            "{}: events and log lines are published again; {} log lines, {} stats and {} events were \
             dropped, and of {} others nobody knows whether they came",
            core.settings.url.shown,
            after.logs - before.logs,
            after.stats - before.stats,
            after.events - before.events,
            unclear - unclear_before,
        );
        core.journal.add(Level::Warning, text);
    }

    fn tell_refusal(&mut self, core: &Core, error: &Error) {
        if !std::mem::replace(&mut self.told_refusal, true) {
            let text =
                format!("{}: {error}; later refusals are only counted", core.settings.url.shown);
            core.journal.add(Level::Error, text);
        }
    }
}

fn lost(core: &Core) -> (Counts, u64) {
    let stats = &core.stats;
    let counts = Counts {
        logs: stats.logs_dropped.get(),
        stats: stats.stats_dropped.get(),
        events: stats.events_dropped.get(),
    };
    (counts, stats.unclear.get())
}
