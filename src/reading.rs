//! The listener's second connection: it reads the history for connections that missed something, and
//! makes sure that the listener hears.
//!
//! A connection may be up and yet deaf: the server answers, and what is published does not come. So
//! while nothing comes, a message on a channel of this listener's own is published every few seconds,
//! and if it does not come back the listener connects anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::broker::{Link, Verdict};
use crate::config::{BrokerUrl, Limits, Target};
use crate::error::Error;
use crate::health::{Health, State};
use crate::history::{self, Ask, Past};
use crate::journal::{Journal, Level};
use crate::message::Outgoing;
use crate::post::{LoopMailbox, Post};
use crate::router::Router;
use crate::runtime;
use crate::supervise::{Uploads, backoff, jitter};

/// Uploads read in one round trip. Their answer is queued in one go, so it bounds that too.
const UPLOADS_AT_ONCE: usize = 64;
/// How often a manager that was made later is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long nothing may come before the listener is probed.
const PROBE_AFTER: Duration = Duration::from_secs(3);
/// How long a probe may take.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a read may take at least.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two reads that did not find what is missing.
const NOT_YET: Duration = Duration::from_millis(10);

/// A listener's own channel, and what came of it.
#[derive(Debug)]
pub struct Probe {
    /// The channel; nobody else knows it.
    pub channel: Box<str>,
    standing: AtomicU8,
    /// Messages of any channel that were heard.
    heard: AtomicU64,
    /// Times the listener has read, or tried to.
    reads: AtomicU64,
    came_back: Notify,
    deaf: Notify,
    wanted: Notify,
}

const NOT_ASKED: u8 = 0;
const ASKED: u8 = 1;
const SUBSCRIBED: u8 = 2;
const REFUSED: u8 = 3;

impl Default for Probe {
    fn default() -> Self {
        Self {
            channel: format!("fanwire:probe:{:016x}", history::random()).into(),
            standing: AtomicU8::new(NOT_ASKED),
            heard: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            came_back: Notify::new(),
            deaf: Notify::new(),
            wanted: Notify::new(),
        }
    }
}

impl Probe {
    /// Notes that a message was heard.
    pub fn hear(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the listener reads: one that waits for a slow event loop hears nothing, and is not deaf.
    pub fn read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// A new connection begins. What was found of the last one does not count.
    pub async fn begin(&self) {
        drop(timeout(Duration::ZERO, self.deaf.notified()).await);
    }

    /// Notes that the probe was heard.
    pub fn come_back(&self) {
        self.hear();
        self.came_back.notify_one();
    }

    /// Notes what the broker said to the subscription. True if it is refused and was not before.
    pub fn answered(&self, granted: bool) -> bool {
        let standing = if granted { SUBSCRIBED } else { REFUSED };
        self.standing.swap(standing, Ordering::AcqRel) != REFUSED && !granted
    }

    /// The connection is gone, and its subscription with it. What is refused once is not asked again.
    pub fn start_over(&self) {
        for standing in [ASKED, SUBSCRIBED] {
            let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
            // Whoever else has changed it knows better.
            let _ = self.standing.compare_exchange(standing, NOT_ASKED, success, failure);
        }
    }

    /// Waits until the listener is found deaf.
    pub async fn is_deaf(&self) {
        self.deaf.notified().await;
    }

    /// Waits until the channel is to be subscribed to.
    pub async fn is_wanted(&self) {
        self.wanted.notified().await;
    }

    fn stands(&self, standing: u8) -> bool {
        self.standing.load(Ordering::Acquire) == standing
    }
}

/// What the task needs.
pub struct Job {
    /// The broker.
    pub url: BrokerUrl,
    /// Timeouts, and whether there is a history.
    pub limits: Limits,
    /// Whose connections are served.
    pub uploads: Uploads,
    /// How the listener is.
    pub health: Arc<Health>,
    /// The listener's own channel.
    pub probe: Arc<Probe>,
    /// The loop that called `start`.
    pub home: Arc<LoopMailbox>,
    /// Where trouble is told.
    pub journal: Arc<Journal>,
}

/// Runs until it is aborted.
pub async fn run(job: &Job) {
    let mut reader = Reader {
        job,
        link: None,
        told_down: false,
        told_refusal: false,
        attempt: 0,
        at_once: UPLOADS_AT_ONCE,
        heard: 0,
    };
    let probes = !matches!(job.url.target, Target::Memory);
    let reads = job.limits.history.is_some();
    let mut probe_at = Instant::now() + PROBE_AFTER;
    let mut attended = None;
    loop {
        tokio::select! {
            router = due(job, &mut attended), if reads => reader.read(&router).await,
            () = tokio::time::sleep_until(probe_at), if probes => {
                reader.probe().await;
                probe_at = Instant::now() + PROBE_AFTER;
            }
            else => std::future::pending().await,
        }
    }
}

/// Waits until the router of the moment has reads that are due.
async fn due(job: &Job, attended: &mut Option<Attended>) -> Arc<Router> {
    loop {
        let router = {
            let _gate = runtime::gate();
            job.uploads.router()
        };
        match router {
            // Another router may have taken its place meanwhile.
            Some(router) => {
                if attended.as_ref().is_none_or(|old| !Arc::ptr_eq(&old.0, &router)) {
                    let _gate = runtime::gate();
                    *attended = Some(Attended::to(&router, job.limits.history));
                }
                if timeout(LOOK_AGAIN, router.read_due()).await.is_ok() {
                    return router;
                }
            }
            None => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// A router whose reads are made. While there is one, another listener's word that it has no history does
/// not count.
struct Attended(Arc<Router>);

impl Attended {
    fn to(router: &Arc<Router>, history: Option<history::Settings>) -> Self {
        router.attend();
        router.recover(history);
        Self(Arc::clone(router))
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.0.leave_unattended();
    }
}

struct Reader<'a> {
    job: &'a Job,
    link: Option<Link>,
    told_down: bool,
    told_refusal: bool,
    /// Attempts that failed in a row.
    attempt: u32,
    /// Uploads to be read at once: fewer while that takes too long.
    at_once: usize,
    /// Messages heard when that was looked at last.
    heard: u64,
}

impl Reader<'_> {
    async fn read(&mut self, router: &Arc<Router>) {
        // Before the listener is subscribed a read proves nothing: what follows it would not come.
        if !self.is_live() {
            tokio::time::sleep(NOT_YET).await;
            return;
        }
        let asked = {
            let _gate = runtime::gate();
            router.take_asks(self.at_once)
        };
        if asked.is_empty() {
            return;
        }
        let (ids, asks): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
        let answers = match self.ask(&asks).await {
            Ok(answers) => answers,
            // Who is not let read at all goes on without, too.
            Err(error) if is_lasting(&error) => vec![Err(error); asks.len()],
            Err(error) => return self.failed(router, &ids, &error).await,
        };
        let mut again = false;
        let (mut trouble, mut refusal) = (None, None);
        for ((id, ask), answer) in ids.into_iter().zip(asks).zip(answers) {
            let past = match answer {
                Ok(past) => past,
                Err(error) if is_lasting(&error) => {
                    // Who is not let read goes on without, and whoever misses something is told.
                    refusal = Some(error);
                    None
                }
                Err(error) => {
                    let _gate = runtime::gate();
                    router.ask_again(&[id]);
                    (again, trouble) = (true, Some(error));
                    continue;
                }
            };
            let _gate = runtime::gate();
            again |= router.catch_up(id, &ask.upload, past, Some(&self.job.home));
        }
        if let Some(error) = refusal
            && !std::mem::replace(&mut self.told_refusal, true)
        {
            let text = format!("histories cannot be read, later ones are not told: {error}");
            self.tell(Level::Error, text);
        }
        match trouble {
            Some(error) => self.tell_down(&error),
            None => self.recovered(),
        }
        if again {
            tokio::time::sleep(NOT_YET).await;
        }
        router.keep_pace().await;
    }

    async fn failed(
        &mut self,
        router: &Arc<Router>,
        ids: &[crate::recovery::TrackId],
        error: &Error,
    ) {
        {
            let _gate = runtime::gate();
            router.ask_again(ids);
        }
        self.tell_down(error);
        if matches!(error, Error::Timeout { .. }) {
            self.at_once = (self.at_once / 2).max(1);
        }
        self.attempt += 1;
        tokio::time::sleep(backoff(self.attempt, jitter())).await;
    }

    async fn ask(&mut self, asks: &[Ask]) -> Result<Vec<Result<Option<Past>, Error>>, Error> {
        let mut link = self.link().await?;
        let answers = link.read(asks).await?;
        self.link = Some(link);
        self.at_once = (self.at_once * 2).min(UPLOADS_AT_ONCE);
        Ok(answers)
    }

    fn recovered(&mut self) {
        self.attempt = 0;
        if std::mem::take(&mut self.told_down) {
            let text = format!("{}: the history can be read again", self.job.url.shown);
            self.tell(Level::Warning, text);
        }
    }

    fn tell_down(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.told_down, true) {
            self.tell(Level::Error, format!("the history cannot be read: {error}"));
        }
    }

    /// Publishes on the listener's own channel if nothing has come for a while, and waits for it.
    async fn probe(&mut self) {
        let probe = &self.job.probe;
        let heard = probe.heard.load(Ordering::Relaxed);
        let is_silent = std::mem::replace(&mut self.heard, heard) == heard;
        if !is_silent || !self.is_live() || probe.stands(REFUSED) {
            return;
        }
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        if probe.standing.compare_exchange(NOT_ASKED, ASKED, success, failure).is_ok() {
            probe.wanted.notify_one();
            return; // subscribed to by the next time
        }
        let Ok(mut link) = self.link().await else { return };
        let outgoing = Outgoing::new(probe.channel.clone(), Bytes::from_static(b"1"));
        let published = link.publish(std::slice::from_ref(&outgoing)).await;
        match published.as_deref() {
            Ok([Verdict::Taken(_)]) => {}
            Ok([Verdict::Refused(Error::Rejected(reason))]) => {
                self.link = Some(link);
                if probe.answered(false) {
                    self.tell_refused(reason);
                }
                return;
            }
            // Trouble with this connection says nothing of the listener's.
            _ => return,
        }
        self.link = Some(link);
        let reads = probe.reads.load(Ordering::Relaxed);
        let came_back = timeout(PROBE_PATIENCE, probe.came_back.notified()).await.is_ok();
        let has_read = probe.reads.load(Ordering::Relaxed) != reads;
        let is_heard = came_back || !has_read || probe.heard.load(Ordering::Relaxed) != heard;
        if !is_heard && probe.stands(SUBSCRIBED) && self.is_live() {
            probe.deaf.notify_one();
        }
        self.heard = probe.heard.load(Ordering::Relaxed);
    }

    /// The listener may not subscribe to its own channel, or nobody may publish there.
    fn tell_refused(&self, reason: &str) {
        self.tell(Level::Warning, refusal(&self.job.url, reason));
    }

    async fn link(&mut self) -> Result<Link, Error> {
        if let Some(link) = self.link.take().filter(|link| !link.is_lost()) {
            return Ok(link);
        }
        // Much may have to be read over a slow line.
        let publish_timeout = self.job.limits.publish_timeout.max(PATIENCE);
        let limits = Limits { publish_timeout, ..self.job.limits };
        Link::connect(&self.job.url, &limits).await
    }

    fn is_live(&self) -> bool {
        let _gate = runtime::gate();
        self.job.health.report().state == State::Live
    }

    fn tell(&self, level: Level, text: String) {
        let _gate = runtime::gate();
        self.job.journal.add(level, text);
        self.job.home.post(Post::Journal(Arc::clone(&self.job.journal)));
    }
}

/// What is said when the probe is not allowed.
pub fn refusal(url: &BrokerUrl, reason: &str) -> String {
    format!(
        "{}: no probes on fanwire:probe:* ({reason}); a connection that is up but deaf is noticed by \
         PING only",
        url.shown
    )
}

/// Whether asking again cannot help.
fn is_lasting(error: &Error) -> bool {
    matches!(error, Error::Rejected(_) | Error::Refused { .. })
}
