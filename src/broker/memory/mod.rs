//! The broker inside this process: every publisher with `memory://` shares it.

mod history;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use self::history::Histories;
use super::{BATCH, Ear, Heard, Verdict};
use crate::config::Limits;
use crate::error::Error;
use crate::history::{Ask, Past, Settings};
use crate::message::Outgoing;
use crate::post::{Receipt, Status};
use crate::router::Inbound;
use crate::runtime;
use crate::wishes::Changes;

/// Batches that may wait for one listener before publishers wait for it.
const WAITING_BATCHES: usize = 64;

type Batch = Arc<[Outgoing]>;

/// Who listens, with the fork generation it listens in: a child does not publish to its parent.
static LISTENERS: Mutex<(u64, Vec<mpsc::Sender<Batch>>)> = Mutex::new((0, Vec::new()));

fn listeners<T>(use_them: impl FnOnce(&mut Vec<mpsc::Sender<Batch>>) -> T) -> T {
    let _gate = runtime::gate();
    let mut listeners = LISTENERS.lock();
    if listeners.0 != runtime::generation() {
        // Forgotten, not dropped: the tasks these would wake are in the parent.
        std::mem::forget(std::mem::take(&mut listeners.1));
        listeners.0 = runtime::generation();
    }
    use_them(&mut listeners.1)
}

/// What is kept, with the fork generation that keeps it: a child begins with nothing.
static HISTORIES: Mutex<(u64, Option<Histories>)> = Mutex::new((0, None));

fn histories<T>(use_them: impl FnOnce(&mut Histories) -> T) -> T {
    let _gate = runtime::gate();
    let mut histories = HISTORIES.lock();
    if histories.0 != runtime::generation() {
        *histories = (runtime::generation(), None);
    }
    use_them(histories.1.get_or_insert_default())
}

/// What is kept of uploads.
pub(super) fn read(asks: &[Ask]) -> Vec<Result<Option<Past>, Error>> {
    histories(|all| asks.iter().map(|ask| Ok(all.read(ask, Instant::now()))).collect())
}

/// The publishing side.
#[derive(Debug)]
pub struct Link {
    limit: Duration,
    history: Settings,
}

impl Link {
    /// One that is as good as connected.
    pub fn new(limits: &Limits) -> Self {
        Self { limit: limits.publish_timeout, history: limits.history.unwrap_or_default() }
    }

    /// Hands the batch to every listener. One that is behind is waited for, but not for ever: when the
    /// time is up it misses the batch, which is an error for what is not recorded.
    pub async fn publish(&mut self, batch: &[Outgoing]) -> Vec<Verdict> {
        let recorded = batch.iter().any(|outgoing| outgoing.record.is_some());
        let (shared, mut taken): (Batch, _) = if recorded {
            self.record(batch)
        } else {
            (batch.into(), vec![Receipt::default(); batch.len()])
        };
        let current = listeners(|all| {
            all.retain(|listener| !listener.is_closed());
            all.clone()
        });
        let receivers = Some(current.len() as u64);
        let mut missed = None;
        for listener in current {
            // A send fails only if the listener has just ended, and then it wants no more.
            let sent = tokio::time::timeout(self.limit, listener.send(Arc::clone(&shared))).await;
            if sent.is_err() {
                missed = Some(Error::Timeout { url: "memory://".into(), after: self.limit });
                if recorded {
                    // Cut off, so that it comes back and looks up what it has missed.
                    listeners(|all| all.retain(|other| !other.same_channel(&listener)));
                }
            }
        }
        let published = taken.iter_mut().filter(|taken| taken.status == Status::Published);
        published.for_each(|taken| taken.receivers = receivers);
        let verdicts = batch.iter().zip(taken).map(|(outgoing, taken)| match &missed {
            Some(error) if outgoing.record.is_none() => Verdict::Refused(error.clone()),
            _ => Verdict::Taken(taken),
        });
        verdicts.collect()
    }

    /// Records what is to be recorded. What comes back first is what is left to be handed over.
    fn record(&self, batch: &[Outgoing]) -> (Batch, Vec<Receipt>) {
        let now = Instant::now();
        histories(|all| {
            let mut left = Vec::with_capacity(batch.len());
            let mut all_taken = Vec::with_capacity(batch.len());
            for outgoing in batch {
                let Some(record) = &outgoing.record else {
                    left.push(outgoing.clone());
                    all_taken.push(Receipt::default());
                    continue;
                };
                let (taken, payload) = all.append(record, &outgoing.payload, self.history, now);
                let channel = outgoing.channel.clone();
                left.extend(payload.map(|payload| Outgoing::new(channel, payload)));
                all_taken.push(taken);
            }
            (left.into(), all_taken)
        })
    }
}

/// The receiving side.
#[derive(Debug)]
pub struct Listening {
    batches: mpsc::Receiver<Batch>,
    /// What every channel of interest begins with: the patterns without their asterisk.
    prefixes: Vec<Box<str>>,
    named: HashSet<Box<str>>,
    /// Asked for and not confirmed yet.
    unconfirmed: Changes,
}

impl Listening {
    /// Listens from now on. A pattern is a prefix and an asterisk.
    pub fn open(patterns: &[&str]) -> Self {
        let (sender, batches) = mpsc::channel(WAITING_BATCHES);
        listeners(|all| all.push(sender));
        let prefixes = patterns.iter().map(|pattern| pattern.trim_end_matches('*').into());
        let (named, unconfirmed) = (HashSet::new(), Changes::default());
        Self { batches, prefixes: prefixes.collect(), named, unconfirmed }
    }

    pub(super) fn ask(&mut self, changes: Changes) {
        for channel in &changes.end {
            self.named.remove(channel);
        }
        let begin: Vec<_> = changes.begin.into_iter().chain(changes.begin_alone).collect();
        self.named.extend(begin.iter().cloned());
        self.unconfirmed.begin.extend(begin);
        self.unconfirmed.end.extend(changes.end);
    }

    pub(super) async fn next(&mut self, ear: Ear<'_>) -> Result<(), Error> {
        let confirmed = std::mem::take(&mut self.unconfirmed);
        if !confirmed.is_empty() {
            confirmed.begin.iter().for_each(|channel| ear(Heard::Subscribed(channel.as_bytes())));
            confirmed.end.iter().for_each(|channel| ear(Heard::Unsubscribed(channel.as_bytes())));
            return Ok(());
        }
        let ended =
            || Error::Unreachable { url: "memory://".into(), reason: "the broker is gone".into() };
        let batch = self.batches.recv().await.ok_or_else(ended)?;
        let matches =
            |channel: &str| self.prefixes.iter().any(|start| channel.starts_with(&**start));
        for part in batch.chunks(BATCH) {
            let of = |keep: &dyn Fn(&str) -> bool| -> Vec<Inbound<'_>> {
                let wanted = part.iter().filter(|outgoing| keep(&outgoing.channel));
                wanted.map(Inbound::from).collect()
            };
            ear(Heard::Matching(&of(&matches)));
            ear(Heard::Named(&of(&|channel| self.named.contains(channel))));
        }
        Ok(())
    }
}
