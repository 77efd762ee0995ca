//! The task that empties an outbox into a broker, in batches, over one connection.
//!
//! Messages are sent at most once: what was under way when the connection broke has failed, because
//! nobody knows whether the broker took it. A connection that broke while idle is noticed and
//! replaced before the next batch, so a broker that was restarted in between costs nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::Link;
use crate::config::{BrokerUrl, Limits};
use crate::error::Error;
use crate::journal::{Journal, Level};
use crate::message::Outgoing;
use crate::outbox::{Item, Outbox};
use crate::post::{LoopMailbox, Outcome, Post, Reply};
use crate::runtime;
use crate::stats::ClientStats;

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

/// Runs until the outbox is closed.
pub async fn run(job: Job) {
    let mut sender = Sender { link: None, down: false, told_rejection: false, rest_until: None };
    while let Some(batch) = job.outbox.next(BATCH, BATCH_BYTES).await {
        let (outgoing, replies): (Vec<Outgoing>, Vec<Option<Reply>>) =
            batch.into_iter().map(|Item { outgoing, reply }| (outgoing, reply)).unzip();
        let outcomes = match sender.send(&job, &outgoing).await {
            Ok(outcomes) => outcomes,
            Err(error) => vec![Err(error); outgoing.len()],
        };
        let _gate = runtime::gate();
        sender.note(&job, &outgoing, &outcomes);
        answer(&job, replies, outcomes);
        job.outbox.done();
    }
}

struct Sender {
    link: Option<Link>,
    /// Whether the outage under way has been told.
    down: bool,
    told_rejection: bool,
    rest_until: Option<(Instant, Error)>,
}

impl Sender {
    async fn send(&mut self, job: &Job, batch: &[Outgoing]) -> Result<Vec<Outcome>, Error> {
        let mut link = match self.link.take().filter(|link| !link.is_lost()) {
            Some(link) => link,
            None => self.connect(job).await?,
        };
        let outcomes = link.publish(batch).await?;
        self.link = Some(link);
        Ok(outcomes)
    }

    async fn connect(&mut self, job: &Job) -> Result<Link, Error> {
        if let Some((until, error)) = &self.rest_until
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let attempt = Link::connect(&job.url, &job.limits).await;
        self.rest_until = match &attempt {
            Err(error @ Error::Timeout { .. }) => {
                Some((Instant::now() + REST_AFTER_TIMEOUT, error.clone()))
            }
            _ => None,
        };
        attempt
    }

    /// Counts, and tells the beginning and the end of an outage once each.
    fn note(&mut self, job: &Job, batch: &[Outgoing], outcomes: &[Outcome]) {
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        job.stats.publish_failed.add(failed as u64);
        job.stats.published.add((batch.len() - failed) as u64);
        let mut errors = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        // A message that the broker refuses while it takes others is no outage.
        let (mut rejected, mut outage) = (None, None);
        for error in &mut errors {
            match error {
                Error::Rejected(_) => rejected = rejected.or(Some(error)),
                _ => outage = outage.or(Some(error)),
            }
        }
        if let Some(error) = rejected
            && !std::mem::replace(&mut self.told_rejection, true)
        {
            let text = format!("{}: {error}; later refusals are only counted", job.url.shown);
            job.journal.add(Level::Error, text);
        }
        match outage {
            Some(error) if !self.down => {
                self.down = true;
                job.stats.outages.add(1);
                let text = format!("publishing fails, messages are lost until this ends: {error}");
                job.journal.add(Level::Error, text);
            }
            None if self.down => {
                self.down = false;
                let lost = job.stats.publish_failed.get();
                let text = format!(
                    "{}: publishing works again; {lost} messages have failed so far",
                    job.url.shown
                );
                job.journal.add(Level::Warning, text);
            }
            _ => {}
        }
    }
}

/// Answers everybody who waits, at the price of one wake-up for each event loop.
fn answer(job: &Job, replies: Vec<Option<Reply>>, outcomes: Vec<Outcome>) {
    let mut by_loop: Vec<(Arc<LoopMailbox>, Vec<Post>)> = Vec::new();
    for (reply, outcome) in replies.into_iter().zip(outcomes) {
        let Some(reply) = reply else { continue };
        let mailbox = Arc::clone(reply.mailbox());
        let index = by_loop
            .iter()
            .position(|(other, _)| Arc::ptr_eq(other, &mailbox))
            .unwrap_or_else(|| {
                // The journal first, so that an outage is in the log before a publish returns.
                by_loop.push((mailbox, vec![Post::Journal(Arc::clone(&job.journal))]));
                by_loop.len() - 1
            });
        by_loop[index].1.push(reply.into_post(outcome));
    }
    for (mailbox, posts) in by_loop {
        mailbox.post_all(posts);
    }
}
