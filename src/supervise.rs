//! Keeps the listener subscribed: connects, reads until the connection fails, and tries again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::broker::{Heard, Listening};
use crate::channel::PATTERNS;
use crate::config::{BrokerUrl, Limits};
use crate::error::Error;
use crate::health::{Health, State};
use crate::journal::{Journal, Level};
use crate::post::{LoopMailbox, Post, Reply};
use crate::probe::{self, Probe};
use crate::reading;
use crate::router::{self, Inbound, Router};
use crate::runtime;
use crate::stats::ClientStats;
use crate::wishes::{Changes, Wishes};

/// Why a connection that hears nothing is replaced.
const DEAF: &str = "the listener does not hear what is published on its own channel";

/// Channels named in warnings about payloads that are not UTF-8; more are only counted.
const CHANNELS_NAMED: usize = 64;

/// What the listener's task needs.
pub struct Job {
    /// The broker.
    pub url: BrokerUrl,
    /// Timeouts.
    pub limits: Limits,
    /// Whose connections are served.
    pub uploads: Uploads,
    /// Whose sessions are served.
    pub topics: Arc<Router>,
    /// The loop that called `start`: it logs, and takes over connections whose own loop is gone.
    pub home: Arc<LoopMailbox>,
    /// Counters.
    pub stats: Arc<ClientStats>,
    /// Where trouble is told.
    pub journal: Arc<Journal>,
    /// Whether a broker that cannot be reached ends the first attempt for good.
    pub strict: bool,
    /// Cleared when the task ends by itself.
    pub running: Arc<AtomicBool>,
    /// How it is.
    pub health: Arc<Health>,
    /// Who waits for the first attempt.
    pub started: Arc<Started>,
    /// The channel on which it hears itself.
    pub probe: Arc<Probe>,
}

impl Job {
    /// Has the loop that called `start` log a line.
    pub fn tell(&self, level: Level, text: String) {
        let _gate = runtime::gate();
        self.journal.add(level, text);
        self.home.post(Post::Journal(Arc::clone(&self.journal)));
    }
}

/// Whose connections a listener serves.
#[derive(Clone, Debug)]
pub enum Uploads {
    /// Nobody's: it does not listen to uploads and users.
    Nobody,
    /// Those of the process-wide manager of the moment.
    Current,
    /// Those of one manager.
    Of(Arc<Router>),
}

impl Uploads {
    fn patterns(&self) -> &'static [&'static str] {
        if matches!(self, Self::Nobody) { &[] } else { &PATTERNS }
    }

    /// The router of the moment.
    pub fn router(&self) -> Option<Arc<Router>> {
        match self {
            Self::Nobody => None,
            Self::Current => router::current(),
            Self::Of(router) => Some(Arc::clone(router)),
        }
    }
}

/// Those who wait for a listener's first attempt.
#[derive(Debug)]
pub struct Started(Mutex<Option<Vec<Reply>>>);

impl Started {
    /// Somebody waits.
    pub fn new(first: Reply) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(vec![first]))))
    }

    /// Somebody else waits too; answered at once if the first attempt was made.
    pub fn wait(&self, reply: Reply) {
        let mut waiting = self.0.lock();
        if let Some(waiting) = &mut *waiting {
            waiting.push(reply);
            return;
        }
        drop(waiting);
        reply.complete(Ok(()));
    }

    fn is_pending(&self) -> bool {
        let _gate = runtime::gate();
        self.0.lock().is_some()
    }

    /// Answers all of them, once.
    pub fn answer(&self, outcome: &Result<(), Error>) {
        let waiting = self.0.lock().take();
        for reply in waiting.into_iter().flatten() {
            reply.complete(outcome.clone());
        }
    }
}

/// How long to wait before attempt number `attempt` (from 1), with `jitter` in 0..1.
///
/// Doubles from 50 ms to 1 s; the upper half of each span is random, so that a fleet which lost the
/// same broker does not come back in step. The worst case keeps "subscribed again within 5 s".
pub fn backoff(attempt: u32, jitter: f64) -> Duration {
    let span = Duration::from_millis(50) * 2u32.pow(attempt.saturating_sub(1).min(10));
    span.min(Duration::from_secs(1)).mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

/// Runs until it is aborted, or until the first attempt fails for good. `started` is answered after
/// the first attempt.
pub async fn run(job: Job) {
    let mut panics = 0;
    loop {
        // Side by side in one task, so that they end together.
        let both = async {
            tokio::select! {
                () = listen(&job) => {}
                () = reading::run(&job) => {}
            }
        };
        let Err(panic) = runtime::contained(both).await else { return };
        panics += 1;
        let voice = Voice { job: &job, told_down: None, named: Vec::new(), attempt: 0 };
        voice.down_by_panic(&panic);
        rest(panics).await;
    }
}

async fn listen(job: &Job) {
    let mut voice = Voice { job, told_down: None, named: Vec::new(), attempt: 0 };
    let patterns = job.uploads.patterns();
    voice.enter(State::Connecting, None);
    job.tell(Level::Info, format!("{}: connecting", job.url.shown));
    voice.recover();
    loop {
        let error = match Listening::connect(&job.url, &job.limits, patterns).await {
            Ok(mut listening) => voice.read(&mut listening).await,
            Err(error) => error,
        };
        if job.started.is_pending() && (error.is_permanent() || job.strict) {
            job.running.store(false, Ordering::Release);
            voice.enter(State::Stopped, Some(&error));
            voice.answer(Err(error));
            return;
        }
        voice.down(&error);
        voice.answer(Ok(()));
        voice.attempt += 1;
        rest(voice.attempt).await;
    }
}

/// Lets the time pass that [`backoff`] gives.
pub(crate) async fn rest(attempt: u32) {
    tokio::time::sleep(backoff(attempt, jitter())).await;
}

/// Randomness that keeps a fleet out of step.
fn jitter() -> f64 {
    f64::from((runtime::random().get() >> 32) as u32) / f64::from(u32::MAX)
}

/// Routes what the listener reads, and says once each when it is deaf and when it hears again.
struct Voice<'a> {
    job: &'a Job,
    /// Whether the trouble that was told last was permanent; None while there is none.
    told_down: Option<bool>,
    named: Vec<Box<[u8]>>,
    /// Attempts that failed in a row.
    attempt: u32,
}

impl Voice<'_> {
    /// Says to the router of the moment whether there is a history.
    fn recover(&self) {
        let _gate = runtime::gate();
        if let Some(router) = self.job.uploads.router() {
            router.recover(self.job.limits.history);
        }
    }

    /// Nothing is asked of a broker any more: the next connection is to be asked for everything.
    fn start_over(&self) {
        let _gate = runtime::gate();
        self.job.probe.start_over();
        if let Some(wishes) = self.wishes() {
            wishes.start_over();
        }
    }

    fn wishes(&self) -> Option<&Arc<Wishes>> {
        self.job.topics.channels().map(|channels| &channels.wishes)
    }

    /// Reads until the connection fails.
    async fn read(&mut self, listening: &mut Listening) -> Error {
        let wishes = self.wishes().cloned();
        let probe = &self.job.probe;
        probe.begin().await;
        let mut settled = false;
        loop {
            if let Some(wishes) = &wishes {
                let gate = runtime::gate();
                let changes = wishes.take_changes();
                drop(gate);
                if !changes.is_empty() {
                    listening.ask(changes);
                }
            }
            if !settled && wishes.as_ref().is_none_or(|wishes| wishes.are_settled()) {
                settled = true;
                self.up();
            }
            probe.read();
            let mut ear = |heard: Heard<'_>| self.hear(heard);
            let next = tokio::select! {
                next = listening.next(&mut ear) => next,
                () = news(wishes.as_deref()) => continue,
                () = probe.is_wanted() => {
                    let begin_alone = vec![probe.channel.clone()];
                    listening.ask(Changes { begin_alone, ..Changes::default() });
                    continue;
                }
                () = probe.is_deaf() => {
                    let (url, reason) = (self.job.url.shown.clone(), DEAF.to_owned());
                    return Error::Unreachable { url, reason };
                }
            };
            if let Err(error) = next {
                return error;
            }
            if let Some(router) = self.job.uploads.router() {
                router.keep_pace().await;
            }
            self.job.topics.keep_pace().await;
            // A firehose must not keep the publishing side, on the same thread, from its turn.
            tokio::task::yield_now().await;
        }
    }

    fn hear(&mut self, heard: Heard<'_>) {
        {
            let _gate = runtime::gate();
            self.job.health.hear();
        }
        let is_probe = |channel: &[u8]| *channel == *self.job.probe.channel.as_bytes();
        match heard {
            Heard::Alive => {}
            Heard::Matching(batch) => {
                self.job.probe.hear();
                self.route(batch);
            }
            Heard::Named([probe]) if is_probe(probe.channel) => self.job.probe.come_back(),
            Heard::Named(batch) if batch.iter().any(|inbound| is_probe(inbound.channel)) => {
                self.job.probe.come_back();
                let others = batch.iter().filter(|inbound| !is_probe(inbound.channel));
                let others: Vec<Inbound<'_>> = others.copied().collect();
                self.route_topics(&others);
            }
            Heard::Named(batch) => {
                self.job.probe.hear();
                self.route_topics(batch);
            }
            Heard::Subscribed(channel) if is_probe(channel) => {
                self.job.probe.answered(true);
            }
            Heard::Unsubscribed(channel) if is_probe(channel) => {}
            Heard::Refused(channel, error) if is_probe(channel.as_bytes()) => {
                if self.job.probe.answered(false) {
                    let text = probe::refusal(&self.job.url, &error.to_string());
                    self.job.tell(Level::Warning, text);
                }
            }
            Heard::Subscribed(channel) | Heard::Unsubscribed(channel) => {
                let _gate = runtime::gate();
                if let Some(wishes) = self.wishes() {
                    wishes.answered(channel, Ok(()));
                }
            }
            Heard::Unclear(channels) => {
                let _gate = runtime::gate();
                if let Some(wishes) = self.wishes() {
                    wishes.unclear(channels);
                }
            }
            Heard::Malformed(channel, why) => {
                self.job.stats.received.add(1);
                self.job.stats.malformed.add(1);
                self.complain(channel, why);
            }
            Heard::Refused(channel, error) => {
                self.job.tell(Level::Error, format!("no subscription to {channel:?}: {error}"));
                let _gate = runtime::gate();
                self.job.topics.drop_channel(channel);
                if let Some(wishes) = self.wishes() {
                    wishes.answered(channel.as_bytes(), Err(error));
                }
            }
        }
    }

    fn route(&mut self, batch: &[Inbound<'_>]) {
        let job = self.job;
        let gate = runtime::gate();
        let Some(router) = job.uploads.router() else {
            job.stats.received.add(batch.len() as u64);
            job.stats.unwatched.add(batch.len() as u64);
            return;
        };
        router.recover(job.limits.history);
        let not_utf8 = router.route(batch, Some(&job.home), &job.stats);
        drop(gate);
        for channel in not_utf8 {
            self.complain(channel, "is not UTF-8");
        }
    }

    fn route_topics(&mut self, batch: &[Inbound<'_>]) {
        let job = self.job;
        let gate = runtime::gate();
        let wrong = job.topics.route_topics(batch, Some(&job.home), &job.stats);
        drop(gate);
        for (channel, why) in wrong {
            self.complain(channel, &why);
        }
    }

    /// Tells of a payload that was skipped, once for each channel.
    fn complain(&mut self, channel: &[u8], why: &str) {
        let known = self.named.iter().any(|named| **named == *channel);
        if self.named.len() < CHANNELS_NAMED && !known {
            self.named.push(channel.into());
            let channel = String::from_utf8_lossy(channel);
            self.job.tell(Level::Warning, format!("payload on channel {channel:?} {why}: skipped"));
        }
    }

    fn answer(&mut self, outcome: Result<(), Error>) {
        let _gate = runtime::gate();
        self.job.started.answer(&outcome);
    }

    fn up(&mut self) {
        let url = &self.job.url.shown;
        self.attempt = 0;
        if let Some(wishes) = self.wishes() {
            let _gate = runtime::gate();
            wishes.end_of_outage();
        }
        let was_down = self.told_down.take().is_some();
        if was_down {
            // Before the loop is told: who is told that it is live finds it counted.
            self.job.stats.reconnects.add(1);
        }
        self.enter(State::Live, None);
        self.recover();
        {
            let _gate = runtime::gate();
            if let Some(router) = self.job.uploads.router() {
                router.compare_all();
            }
        }
        if was_down {
            self.job.tell(Level::Warning, format!("{url}: receiving again"));
        } else {
            let what = self.job.uploads.patterns().join(" ");
            let what = if what.is_empty() { "topics" } else { &what };
            self.job.tell(Level::Info, format!("{url}: receiving {what}"));
        }
        self.answer(Ok(()));
    }

    fn down(&mut self, error: &Error) {
        self.start_over();
        let state = {
            let _gate = runtime::gate();
            self.job.health.report().state
        };
        let was_live = matches!(state, State::Live | State::Degraded);
        let state = if was_live { State::Degraded } else { State::Connecting };
        self.enter(state, Some(error));
        // Once per outage, and once more if what was a matter of waiting has become one of mending.
        let permanent = error.is_permanent();
        if self.told_down.is_none() || (permanent && self.told_down == Some(false)) {
            self.told_down = Some(permanent);
            let text = format!("not receiving, trying again: {error}");
            self.job.tell(Level::Error, text);
        }
    }

    fn down_by_panic(&self, panic: &str) {
        self.start_over();
        let text = format!("the listener failed and connects anew: {panic}");
        let reason = Error::System(text.clone());
        self.enter(State::Degraded, Some(&reason));
        self.job.stats.panics.add(1);
        self.job.tell(Level::Error, text);
    }

    fn enter(&self, state: State, error: Option<&Error>) {
        let _gate = runtime::gate();
        if self.job.health.enter(state, error.map(ToString::to_string)) {
            self.job.home.post(Post::Changed(Arc::clone(&self.job.health)));
        }
    }
}

/// Waits until wishes have changed; where there are none, for ever.
async fn news(wishes: Option<&Wishes>) {
    match wishes {
        Some(wishes) => wishes.news().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_stays_bounded_and_is_jittered() {
        let most: Vec<u128> = (1..9).map(|attempt| backoff(attempt, 1.0).as_millis()).collect();
        assert_eq!(most, [50, 100, 200, 400, 800, 1000, 1000, 1000]);
        for attempt in [0, 1, 5, 40, u32::MAX] {
            assert!(backoff(attempt, 0.0) <= backoff(attempt, 1.0));
            assert!(backoff(attempt, 0.0) >= Duration::from_millis(25));
            assert!(backoff(attempt, 7.0) <= Duration::from_secs(1));
        }
        let seen: std::collections::HashSet<u64> = (0..20).map(|_| jitter().to_bits()).collect();
        assert!(seen.len() > 1);
    }
}
