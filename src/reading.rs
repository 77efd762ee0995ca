//! The task with the listener's second connection: it makes the reads that a router says are due, and
//! publishes the probes of `probe.rs`. What is to be read, and who gets what of it, is decided in
//! `recovery/`; what the listener hears goes through `supervise.rs`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use crate::broker::{Link, Verdict};
use crate::config::{Limits, Target};
use crate::error::Error;
use crate::health::State;
use crate::history::{self, Ask, Past};
use crate::journal::Level;
use crate::message::Outgoing;
use crate::probe;
use crate::router::Router;
use crate::runtime;
use crate::supervise::{Job, rest};

/// Uploads read in one round trip. Their answer is queued in one go, so it bounds that too.
const UPLOADS_AT_ONCE: usize = 64;
/// How often a manager that was made later is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long nothing may come before the listener is probed.
const PROBE_AFTER: Duration = Duration::from_secs(3);
/// How long a read may take at least.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two reads that did not find what is missing.
const NOT_YET: Duration = Duration::from_millis(10);
/// Between two tries to read what was refused.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Runs until it is aborted.
pub async fn run(job: &Job) {
    let mut reader = Reader {
        job,
        link: None,
        told_down: false,
        told_refusal: false,
        trial: None,
        attempt: 0,
        at_once: UPLOADS_AT_ONCE,
        heard: 0,
    };
    reader.note(None);
    let probes = !matches!(job.url.target, Target::Memory);
    let reads = job.limits.history.is_some();
    let mut probe_at = Instant::now() + PROBE_AFTER;
    let mut attended = None;
    loop {
        let try_at = reader.trial.as_ref().map_or(probe_at, |trial| trial.at);
        tokio::select! {
            router = due(job, &mut attended), if reads => reader.read(&router).await,
            () = tokio::time::sleep_until(try_at), if reader.trial.is_some() => {
                reader.try_again().await;
            }
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
    /// None while what is asked for can be read.
    trial: Option<Trial>,
    /// Attempts that failed in a row.
    attempt: u32,
    /// Uploads to be read at once: fewer while that takes too long.
    at_once: usize,
    /// Messages heard when that was looked at last.
    heard: u64,
}

/// What is read to find out whether anything can be, though nobody may ask for it any more.
struct Trial {
    upload: Box<str>,
    at: Instant,
    /// Whether it was refused, and who asked went on without.
    refused: bool,
}

impl Trial {
    fn of(upload: Box<str>, refused: bool) -> Self {
        Self { upload, at: Instant::now() + TRY_AGAIN, refused }
    }
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
        let last = asks.last().map(|ask| ask.upload.clone()).unwrap_or_default();
        let answers = match self.ask(&asks).await {
            Ok(answers) => answers,
            // Who is not let read at all goes on without, too.
            Err(error) if is_lasting(&error) => vec![Err(error); asks.len()],
            Err(error) => return self.failed(router, &ids, last, &error).await,
        };
        let mut again = false;
        let (mut trouble, mut refusal) = (None, None);
        let some_answered = answers.iter().any(Result::is_ok);
        for ((id, ask), answer) in ids.into_iter().zip(asks).zip(answers) {
            let _gate = runtime::gate();
            match answer {
                Ok(past) => again |= router.catch_up(id, &ask.upload, past, Some(&self.job.home)),
                Err(error) if is_lasting(&error) => {
                    again |= router.go_without(id, &ask.upload, Some(&self.job.home));
                    refusal = Some(error);
                }
                Err(error) => {
                    router.ask_again(&[id]);
                    (again, trouble) = (true, Some(error));
                }
            }
        }
        if let Some(error) = refusal {
            if !some_answered {
                self.trial = Some(Trial::of(last.clone(), true));
                trouble = trouble.or(Some(error));
            } else if !std::mem::replace(&mut self.told_refusal, true) {
                // One upload's own trouble is no outage.
                let text = format!("the history of an upload cannot be read: {error}");
                self.job.tell(Level::Error, text);
            }
        }
        if some_answered {
            self.end_trial();
        }
        match trouble {
            Some(error) => self.tell_down(last, &error),
            None => self.recovered(),
        }
        if again {
            tokio::time::sleep(NOT_YET).await;
        }
        router.keep_pace().await;
    }

    async fn try_again(&mut self) {
        let Some(trial) = &mut self.trial else { return };
        trial.at = Instant::now() + TRY_AGAIN;
        let ask = Ask { upload: trial.upload.clone(), since: None };
        // Before the listener is subscribed a read proves nothing.
        if self.is_live() && matches!(self.ask(&[ask]).await.as_deref(), Ok([Ok(_)])) {
            self.end_trial();
            self.recovered();
        }
    }

    /// Who went on without a history gets what they lack as soon as it can be read.
    fn end_trial(&mut self) {
        if self.trial.take().is_none_or(|trial| !trial.refused) {
            return;
        }
        let _gate = runtime::gate();
        if let Some(router) = self.job.uploads.router() {
            router.end_lack();
        }
    }

    async fn failed(
        &mut self,
        router: &Arc<Router>,
        ids: &[crate::recovery::TrackId],
        last: Box<str>,
        error: &Error,
    ) {
        {
            let _gate = runtime::gate();
            router.ask_again(ids);
        }
        self.tell_down(last, error);
        if matches!(error, Error::Timeout { .. }) {
            self.at_once = (self.at_once / 2).max(1);
        }
        self.attempt += 1;
        rest(self.attempt).await;
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
            self.note(None);
            let text = format!("{}: the history can be read again", self.job.url.shown);
            self.job.tell(Level::Warning, text);
        }
    }

    fn tell_down(&mut self, asked: Box<str>, error: &Error) {
        self.trial.get_or_insert_with(|| Trial::of(asked, false));
        self.note(Some(error));
        if !std::mem::replace(&mut self.told_down, true) {
            self.job.tell(Level::Error, format!("the history cannot be read: {error}"));
        }
    }

    fn note(&self, error: Option<&Error>) {
        let _gate = runtime::gate();
        self.job.health.note_reading(error.map(Error::to_string));
    }

    /// Publishes on the listener's own channel if nothing has come for a while, and waits for it.
    async fn probe(&mut self) {
        let probe = &self.job.probe;
        let heard = probe.heard();
        let is_silent = std::mem::replace(&mut self.heard, heard) == heard;
        if !is_silent || !self.is_live() || !probe.is_ready() {
            return;
        }
        let Ok(mut link) = self.link().await else { return };
        let outgoing = Outgoing::new(probe.channel.clone(), Bytes::from_static(b"1"));
        let published = link.publish(std::slice::from_ref(&outgoing)).await;
        match published.as_deref() {
            Ok([Verdict::Taken(_)]) => {}
            Ok([Verdict::Refused(Error::Rejected(reason))]) => {
                self.link = Some(link);
                if probe.answered(false) {
                    self.job.tell(Level::Warning, probe::refusal(&self.job.url, reason));
                }
                return;
            }
            // Trouble with this connection says nothing of the listener's.
            _ => return,
        }
        self.link = Some(link);
        if !probe.comes_back(heard).await && self.is_live() {
            probe.find_deaf();
        }
        self.heard = probe.heard();
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
}

/// Whether asking again cannot help.
fn is_lasting(error: &Error) -> bool {
    matches!(error, Error::Rejected(_) | Error::Refused { .. })
}
