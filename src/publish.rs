//! The task that empties an outbox into a broker, in batches, over one connection.
//!
//! A message that the broker has certainly not got waits in the outbox until the broker is back, if the
//! outbox keeps it. Of what was under way when the connection broke nobody knows whether it came: a
//! recorded message is sent again, because the broker knows it by its number, and any other has failed.
//! A connection that broke while idle is noticed and replaced before the next batch, so a broker that
//! was restarted in between costs nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::{Link, Verdict};
use crate::config::{BrokerUrl, Limits};
use crate::error::Error;
use crate::journal::{Journal, Level};
use crate::latest::Latest;
use crate::message::Outgoing;
use crate::outbox::{Item, Outbox};
use crate::post::{LoopMailbox, Outcome, Post, Receipt, Reply, Status};
use crate::runtime;
use crate::stats::ClientStats;
use crate::supervise::rest;

/// The most messages in one round trip.
const BATCH: usize = 512;
/// The most bytes of payload in one round trip: what a slow link carries within the publish timeout.
const BATCH_BYTES: usize = 512 << 10;
/// After an attempt that ended in a timeout, publishes fail at once for this long. A refused
/// connection costs nothing and is tried again by the next publish.
const REST_AFTER_TIMEOUT: Duration = Duration::from_secs(1);

/// What the task needs.
pub struct Job {
    /// The broker.
    pub url: BrokerUrl,
    /// Timeouts.
    pub limits: Limits,
    /// Where the messages come from.
    pub outbox: Arc<Outbox>,
    /// Counters.
    pub stats: Arc<ClientStats>,
    /// Where outages are told.
    pub journal: Arc<Journal>,
}

/// How often in a row a broker may say of the same messages that it must be asked again.
const ROUNDS: usize = 3;

/// Runs until the outbox is closed. A fault in fanwire costs the messages in hand, which are counted.
pub async fn keep_running(job: Job) {
    while let Err(panic) = runtime::contained(run(&job)).await {
        let gate = runtime::gate();
        let lost = job.outbox.in_hand();
        job.stats.panics.add(1);
        job.stats.publish_failed.add(lost as u64);
        job.outbox.done();
        let text = format!("publishing starts over, {lost} messages are lost: {panic}");
        job.journal.add(Level::Error, text);
        drop(gate);
        rest(1).await;
    }
}

async fn run(job: &Job) {
    let mut sender = Sender {
        link: None,
        was_connected: false,
        source: runtime::random().get(),
        sent: 0,
        latest: Latest::default(),
        began: Instant::now(),
        attempt: 0,
        rest_until: None,
        voice: Voice::default(),
    };
    loop {
        if sender.attempt > 0 {
            // In an outage nothing is taken out before there is somebody to take it: what waits in the
            // outbox can still be coalesced.
            if !job.outbox.due().await {
                return;
            }
            if let Err(error) = sender.connect(job).await {
                sender.hold(job, Vec::new(), &error).await;
                continue;
            }
        }
        let Some(batch) = job.outbox.next(BATCH, BATCH_BYTES).await else { return };
        let fates = match sender.connect(job).await {
            Ok(()) => sender.send(job, batch).await,
            Err(error) => {
                let fate = |error: Error| match sender.attempt {
                    // Who once was let in may be again: a password is changed, or a database is made anew.
                    0 if error.is_permanent() && !sender.was_connected => Fate::Failed(error),
                    _ => Fate::NotSent(error),
                };
                batch.into_iter().map(|item| (item, fate(error.clone()))).collect()
            }
        };
        if let Some((back, error)) = sender.settle(job, fates) {
            sender.hold(job, back, &error).await;
        }
    }
}

/// What became of a message that was sent.
enum Fate {
    /// It was taken.
    Done(Receipt),
    /// It was not published, and will not be.
    Failed(Error),
    /// It has certainly not been published, and may be later.
    NotSent(Error),
    /// Nobody knows.
    Unclear(Error),
}

struct Sender {
    link: Option<Link>,
    /// Whether there ever was one.
    was_connected: bool,
    /// Who publishes, for the broker.
    source: u64,
    /// The number of the last recorded message: microseconds since `began`, or one more than before.
    sent: u64,
    /// What the broker has said of uploads.
    latest: Latest,
    began: Instant,
    /// Attempts in a row that have failed.
    attempt: u32,
    rest_until: Option<(Instant, Error)>,
    voice: Voice,
}

impl Sender {
    /// Has a connection made, unless there is one that is not known to be gone.
    async fn connect(&mut self, job: &Job) -> Result<(), Error> {
        if self.link.as_ref().is_some_and(|link| !link.is_lost()) {
            return Ok(());
        }
        self.link = None;
        if let Some((until, error)) = &self.rest_until
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let attempt = Link::connect(&job.url, &job.limits).await;
        self.rest_until = match &attempt {
            Err(error @ Error::Timeout { .. }) if !job.outbox.keeps() => {
                Some((Instant::now() + REST_AFTER_TIMEOUT, error.clone()))
            }
            _ => None,
        };
        self.link = Some(attempt?);
        self.was_connected = true;
        self.latest.connected();
        Ok(())
    }

    /// Sends a batch. What the broker wants to be asked again is sent again, behind the others.
    async fn send(&mut self, job: &Job, batch: Vec<Item>) -> Vec<(Item, Fate)> {
        let mut others: Vec<(Option<Reply>, Option<Instant>, u64)> =
            Vec::with_capacity(batch.len());
        let mut outgoing: Vec<Outgoing> = Vec::with_capacity(batch.len());
        for item in batch {
            outgoing.push(item.outgoing);
            others.push((item.reply, item.since, item.number));
        }
        let mut fates: Vec<Option<Fate>> = Vec::new();
        fates.resize_with(outgoing.len(), || None);
        let mut open: Vec<usize> = (0..outgoing.len()).collect();
        let mut rounds_in_vain = 0;
        while rounds_in_vain < ROUNDS && !open.is_empty() {
            self.number(&mut outgoing, &open);
            let Some(link) = &mut self.link else { break };
            let verdicts = if open.len() == outgoing.len() {
                link.publish(&outgoing).await
            } else {
                let rest: Vec<Outgoing> = open.iter().map(|at| outgoing[*at].clone()).collect();
                link.publish(&rest).await
            };
            let verdicts = match verdicts {
                Ok(verdicts) => verdicts,
                Err(error) => {
                    self.link = None;
                    for at in &open {
                        fates[*at] = Some(Fate::Unclear(error.clone()));
                        if let Some(record) = &mut outgoing[*at].record {
                            record.unclear = true;
                        }
                    }
                    break;
                }
            };
            let mut again = Vec::new();
            // Uploads of which something waits, so that nothing of theirs is sent before it.
            let mut waits: HashMap<Box<str>, Error> = HashMap::new();
            for (at, verdict) in open.iter().zip(verdicts) {
                let record = outgoing[*at].record.as_ref();
                let upload = record.map(|record| &record.upload);
                fates[*at] = match verdict {
                    Verdict::Taken(receipt) => {
                        if let (Some(record), Some(position)) = (record, receipt.position)
                            && receipt.status == Status::Published
                        {
                            self.latest.note(&record.upload, position, record.number);
                        }
                        Some(Fate::Done(receipt))
                    }
                    Verdict::Refused(error @ Error::Unreachable { .. }) => {
                        waits.extend(upload.map(|upload| (upload.clone(), error.clone())));
                        Some(Fate::NotSent(error))
                    }
                    Verdict::Refused(error) => Some(Fate::Failed(error)),
                    Verdict::Again | Verdict::Behind => {
                        let error = upload.and_then(|upload| waits.get(upload));
                        if error.is_none() {
                            again.push(*at);
                        }
                        error.cloned().map(Fate::NotSent)
                    }
                };
            }
            rounds_in_vain = if again.len() < open.len() { 0 } else { rounds_in_vain + 1 };
            open = again;
        }
        let never = || {
            let (url, reason) =
                (job.url.shown.clone(), "it asks for the same messages again and again".to_owned());
            Fate::NotSent(Error::Unreachable { url, reason })
        };
        let items = outgoing.into_iter().zip(others);
        let items =
            items.map(|(outgoing, (reply, since, number))| Item { outgoing, reply, since, number });
        items.zip(fates.into_iter().map(|fate| fate.unwrap_or_else(never))).collect()
    }

    /// Gives recorded messages their numbers, in the order in which they are sent. One that the broker
    /// has certainly not taken gets a new one each time, for others have been taken since.
    fn number(&mut self, outgoing: &mut [Outgoing], open: &[usize]) {
        let now = u64::try_from(self.began.elapsed().as_micros()).unwrap_or_default();
        self.latest.begin();
        for at in open {
            let Some(record) = &mut outgoing[*at].record else { continue };
            if !record.unclear {
                self.sent = now.max(self.sent + 1);
                (record.source, record.number) = (self.source, self.sent);
            }
            // It may have come already, be a duplicate, or stale.
            let is_sure = !record.unclear && record.key.is_none() && record.version.is_none();
            record.known = self.latest.known(&record.upload, record.number, is_sure);
        }
    }

    /// Counts, tells and answers. What is to be sent again comes back, with the reason.
    fn settle(&mut self, job: &Job, fates: Vec<(Item, Fate)>) -> Option<(Vec<Item>, Error)> {
        let keeps = job.outbox.keeps();
        let (mut replies, mut outcomes) = (Vec::new(), Vec::new());
        let (mut unclear, mut not_sent, mut reason) = (Vec::new(), Vec::new(), None);
        for (item, fate) in fates {
            let outcome = match fate {
                Fate::Done(receipt) => Ok(receipt),
                Fate::NotSent(error) if keeps => {
                    reason = Some(error);
                    let list = if is_unclear(&item) { &mut unclear } else { &mut not_sent };
                    list.push(item);
                    continue;
                }
                Fate::Unclear(error) if keeps && item.outgoing.record.is_some() => {
                    reason = Some(error);
                    unclear.push(item);
                    continue;
                }
                Fate::Failed(error) | Fate::NotSent(error) | Fate::Unclear(error) => Err(error),
            };
            replies.push(item.reply);
            outcomes.push(outcome);
        }
        let _gate = runtime::gate();
        self.voice.note(job, &outcomes, reason.as_ref());
        self.voice.answer(job, replies.into_iter().zip(outcomes));
        let Some(reason) = reason else {
            self.attempt = 0;
            job.outbox.release();
            job.outbox.done();
            return None;
        };
        // Those with a number first, for the broker takes numbers only while they grow.
        unclear.append(&mut not_sent);
        Some((unclear, reason))
    }

    /// Has everything that waits kept, and lets some time pass.
    async fn hold(&mut self, job: &Job, back: Vec<Item>, error: &Error) {
        self.link = None;
        self.attempt = self.attempt.saturating_add(1);
        {
            let _gate = runtime::gate();
            self.voice.begin(job, error, true, Before::now(&job.stats));
            let answers = job.outbox.hold(back).into_iter();
            self.voice.answer(job, answers.map(|(reply, outcome)| (Some(reply), outcome)));
        }
        rest(self.attempt).await;
    }
}

fn is_unclear(item: &Item) -> bool {
    item.outgoing.record.as_ref().is_some_and(|record| record.unclear)
}

/// Tells the beginning and the end of an outage once each, and answers who waits.
#[derive(Default)]
struct Voice {
    /// What the counters were when the outage under way was told.
    down: Option<Before>,
    told_rejection: bool,
    /// A loop that had somebody wait, and will log for us.
    home: Option<Arc<LoopMailbox>>,
}

struct Before {
    failed: u64,
    queued: u64,
    coalesced: u64,
    expired: u64,
    dropped: u64,
}

impl Before {
    fn now(stats: &ClientStats) -> Self {
        Self {
            failed: stats.publish_failed.get(),
            queued: stats.publish_queued.get(),
            coalesced: stats.publish_coalesced.get(),
            expired: stats.publish_expired.get(),
            dropped: stats.publish_dropped.get(),
        }
    }
}

impl Voice {
    /// Counts outcomes, and notices whether an outage begins or ends with them.
    fn note(&mut self, job: &Job, outcomes: &[Outcome], waits: Option<&Error>) {
        let stats = &job.stats;
        let before = Before::now(stats);
        let (mut rejected, mut outage, mut taken) = (None, waits, false);
        for outcome in outcomes {
            match outcome {
                Ok(receipt) => {
                    taken = true;
                    match receipt.status {
                        Status::Duplicate => stats.publish_duplicates.add(1),
                        Status::Stale => stats.publish_stale.add(1),
                        Status::Published | Status::Queued | Status::Coalesced => {
                            stats.published.add(1);
                        }
                    }
                }
                // A message that the broker refuses while it takes others is no outage.
                Err(error) => {
                    stats.publish_failed.add(1);
                    match error {
                        Error::Rejected(_) => rejected = rejected.or(Some(error)),
                        _ => outage = outage.or(Some(error)),
                    }
                }
            }
        }
        if let Some(error) = rejected
            && !std::mem::replace(&mut self.told_rejection, true)
        {
            let text = format!("{}: {error}; later refusals are only counted", job.url.shown);
            job.journal.add(Level::Error, text);
        }
        match outage {
            Some(error) => self.begin(job, error, waits.is_some(), before),
            None if taken || rejected.is_some() => self.end(job),
            None => {}
        }
    }

    fn begin(&mut self, job: &Job, error: &Error, waits: bool, before: Before) {
        if self.down.is_some() {
            return;
        }
        self.down = Some(before);
        let text = if job.outbox.keeps() && (waits || !error.is_permanent()) {
            format!("publishing fails, messages wait until this ends: {error}")
        } else {
            format!("publishing fails, messages are lost until this ends: {error}")
        };
        job.journal.add(Level::Error, text);
        // Who sees it counted finds the line.
        job.stats.outages.add(1);
    }

    fn end(&mut self, job: &Job) {
        let Some(before) = self.down.take() else { return };
        let now = Before::now(&job.stats);
        let text = format!(
            "{}: publishing works again; {} messages waited, {} of them were coalesced, {} expired and {} \
             were dropped, and {} others have failed",
            job.url.shown,
            now.queued - before.queued,
            now.coalesced - before.coalesced,
            now.expired - before.expired,
            now.dropped - before.dropped,
            now.failed - before.failed,
        );
        job.journal.add(Level::Warning, text);
        if let Some(home) = &self.home {
            home.post(Post::Journal(Arc::clone(&job.journal)));
        }
    }

    /// Answers everybody who waits, at the price of one wake-up for each event loop.
    fn answer(&mut self, job: &Job, answers: impl IntoIterator<Item = (Option<Reply>, Outcome)>) {
        let mut by_loop: Vec<(Arc<LoopMailbox>, Vec<Post>)> = Vec::new();
        for (reply, outcome) in answers {
            let Some(reply) = reply else { continue };
            let index = by_loop
                .iter()
                .position(|(other, _)| Arc::ptr_eq(other, reply.mailbox()))
                .unwrap_or_else(|| {
                    // The journal first, so that an outage is in the log before a publish returns.
                    let journal = Post::Journal(Arc::clone(&job.journal));
                    by_loop.push((Arc::clone(reply.mailbox()), vec![journal]));
                    by_loop.len() - 1
                });
            by_loop[index].1.push(reply.into_post(outcome));
        }
        for (mailbox, posts) in by_loop {
            mailbox.post_all(posts);
            self.home = Some(mailbox);
        }
    }
}
