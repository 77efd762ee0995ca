//! A publisher and a listener of one broker, as one object that outlives event loops and forks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::backlog::Keeping;
use crate::coalesce::Coalescer;
use crate::config::{BrokerUrl, Limits};
use crate::error::Error;
use crate::flush::Flush;
use crate::health::{Health, State};
use crate::journal::{Journal, Level};
use crate::message::Outgoing;
use crate::outbox::{Item, Outbox};
use crate::post::{LoopMailbox, Post, Reply};
use crate::router::Router;
use crate::stats::{ClientStats, Counter};
use crate::supervise::{Started, Uploads};
use crate::{ending, publish, runtime, supervise};

/// What belongs to one process. After a fork the child starts with a fresh one; what waited in the
/// parent's is the parent's to send.
#[derive(Debug)]
struct PerProcess {
    generation: u64,
    outbox: Arc<Outbox>,
    /// Those that a stop empties, or gives up.
    stopping: Vec<Weak<Outbox>>,
    publishing: Option<JoinHandle<()>>,
    listener: Option<Listener>,
}

impl PerProcess {
    fn new(keeping: Option<&Arc<Keeping>>) -> Self {
        let outbox = Arc::new(Outbox::new(keeping.cloned()));
        let (stopping, publishing, listener) = (Vec::new(), None, None);
        Self { generation: runtime::generation(), outbox, stopping, publishing, listener }
    }

    /// All in which something may wait.
    fn outboxes(&self) -> Vec<Arc<Outbox>> {
        let stopping = self.stopping.iter().filter_map(Weak::upgrade);
        stopping.chain([Arc::clone(&self.outbox)]).collect()
    }
}

#[derive(Debug)]
struct Listener {
    task: JoinHandle<()>,
    home: Arc<LoopMailbox>,
    running: Arc<AtomicBool>,
    started: Arc<Started>,
    /// Its number for the wishes.
    number: u64,
    /// Whose connections it serves.
    uploads: Uploads,
}

/// A connection to a broker for both directions. Nothing connects before it is needed.
#[derive(Debug)]
pub struct Client {
    url: BrokerUrl,
    limits: Limits,
    strict: bool,
    topics: Arc<Router>,
    /// Whether it was told that somebody subscribed too early.
    told_not_started: AtomicBool,
    process: Mutex<PerProcess>,
    /// What the outbox needs during an outage; None where it keeps nothing.
    keeping: Option<Arc<Keeping>>,
    /// What is progress, for what is published.
    pub coalescer: Arc<Coalescer>,
    /// Counters.
    pub stats: Arc<ClientStats>,
    /// Lines to log.
    pub journal: Arc<Journal>,
    /// How the listener is.
    pub health: Arc<Health>,
}

impl Client {
    /// A client that has not connected. Messages of topics go to `topics`; lines to `journal`, which
    /// the router of the topics may share.
    pub fn new(
        url: BrokerUrl,
        limits: Limits,
        strict: bool,
        topics: Arc<Router>,
        journal: Arc<Journal>,
        coalescer: Arc<Coalescer>,
    ) -> Self {
        let stats: Arc<ClientStats> = Arc::default();
        // Who is told of trouble will try again, so nothing is kept for them.
        let keeping = limits.outage.filter(|_| !strict).map(|limits| {
            let (coalescer, stats) = (Arc::clone(&coalescer), Arc::clone(&stats));
            Arc::new(Keeping { limits, coalescer, stats })
        });
        let process = Mutex::new(PerProcess::new(keeping.as_ref()));
        let told_not_started = AtomicBool::new(false);
        Self {
            url,
            limits,
            strict,
            topics,
            told_not_started,
            process,
            keeping,
            coalescer,
            stats,
            journal,
            health: Arc::default(),
        }
    }

    /// The broker's URL as it may be shown.
    pub fn url(&self) -> &str {
        &self.url.shown
    }

    /// Whether a topic's message is published in an [`Envelope`](crate::message::Envelope).
    pub fn wraps_topics(&self) -> bool {
        self.url.target.wraps_topics()
    }

    /// The limits it was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether trouble is raised instead of counted.
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// Publishes; `reply` is answered when the broker has taken the message or it has failed.
    ///
    /// An outbox that comes back is to be flushed at the end of the loop's turn.
    #[must_use]
    pub fn publish(&self, outgoing: Outgoing, reply: Reply) -> Option<Arc<Outbox>> {
        match self.outbox() {
            Ok(outbox) => {
                let gathers = outbox.push(Item::new(outgoing, Some(reply)));
                gathers.then_some(outbox)
            }
            Err(error) => {
                self.count_failure(&error);
                reply.mailbox().post(Post::Journal(Arc::clone(&self.journal)));
                reply.complete(Err(error));
                None
            }
        }
    }

    /// Publishes without an answer, unless too much waits already.
    pub fn publish_nowait(&self, outgoing: Outgoing) -> Result<(), Error> {
        let outbox = self.outbox().inspect_err(|error| self.count_failure(error))?;
        outbox
            .try_push(outgoing, self.limits.max_pending_messages, self.limits.max_pending_bytes)
            .inspect_err(|_| self.stats.publish_refused.add(1))
    }

    fn count_failure(&self, error: &Error) {
        self.stats.publish_failed.add(1);
        self.journal.add(Level::Error, format!("publishing fails: {error}"));
    }

    /// Starts to listen. `reply` is answered after the first attempt to subscribe, at once if the
    /// listener runs already.
    pub fn start(&self, uploads: Uploads, home: Arc<LoopMailbox>, reply: Reply) {
        let mut process = self.process();
        if let Some(listener) = process.listener.as_ref().filter(|listener| listener.is_alive()) {
            let started = Arc::clone(&listener.started);
            drop(process);
            started.wait(reply);
            return;
        }
        let started = Started::new(reply);
        let number = self.topics.channels().map_or(0, |channels| channels.wishes.begin());
        self.told_not_started.store(false, Ordering::Release);
        let running = Arc::new(AtomicBool::new(true));
        let job = supervise::Job {
            url: self.url.clone(),
            limits: self.limits,
            uploads: uploads.clone(),
            topics: Arc::clone(&self.topics),
            home: Arc::clone(&home),
            stats: Arc::clone(&self.stats),
            journal: Arc::clone(&self.journal),
            strict: self.strict,
            running: Arc::clone(&running),
            started: Arc::clone(&started),
            health: Arc::clone(&self.health),
            probe: Arc::default(),
        };
        // Started first: the reply goes along, and an I/O thread that cannot be had is an answer too.
        let task = match runtime::ensure() {
            Ok(()) => runtime::spawn(supervise::run(job)),
            Err(error) => {
                drop(process);
                started.answer(&Err(error));
                return;
            }
        };
        let Ok(task) = task else { return };
        let fresh = Listener { task, home, running, started, number, uploads };
        if let Some(old) = process.listener.replace(fresh) {
            old.task.abort(); // its event loop is gone
        }
    }

    /// Stops listening, lets what waits to be published go out and what is queued be handed over, both
    /// within `drain`, and closes the publishing connection; what has not gone out by then fails. `reply`
    /// is answered then. A later publish or start connects again.
    pub fn stop(&self, drain: Duration, reply: Reply) {
        let mut process = self.process();
        let listener = process.listener.take();
        let fresh = Arc::new(Outbox::new(self.keeping.clone()));
        let outbox = std::mem::replace(&mut process.outbox, fresh);
        process.stopping.retain(|outbox| outbox.strong_count() > 0);
        process.stopping.push(Arc::downgrade(&outbox));
        let publishing = process.publishing.take();
        drop(process);
        if listener.is_none() && publishing.is_none() {
            reply.complete(Ok(()));
            return;
        }
        let (stats, topics) = (Arc::clone(&self.stats), Arc::clone(&self.topics));
        let (health, journal) = (Arc::clone(&self.health), Arc::clone(&self.journal));
        let url = self.url.shown.clone();
        if let Some(listener) = &listener {
            listener.task.abort();
        }
        let stopping = runtime::spawn(async move {
            let mut uploads = None;
            if let Some(listener) = listener {
                drop(listener.task.await); // ended or aborted, both are what was asked for
                let _gate = runtime::gate();
                journal.add(Level::Info, format!("{url}: not receiving any more, it was stopped"));
                if health.enter(State::Stopped, None) {
                    listener.home.post(Post::Changed(health));
                }
                if let Some(channels) = topics.channels() {
                    channels.wishes.end(listener.number);
                }
                uploads = listener.uploads.router();
            }
            let lanes = async {
                topics.drained().await;
                if let Some(uploads) = uploads {
                    uploads.drained().await;
                }
            };
            outbox.flush();
            // Whatever is not done by then is given up.
            drop(
                tokio::time::timeout(drain, async { tokio::join!(outbox.drained(), lanes) }).await,
            );
            if let Some(publishing) = publishing {
                let unsent = outbox.waiting().0;
                stats.publish_failed.add(unsent as u64); // before a flush sees them gone
                let given_up = outbox.give_up();
                publishing.abort();
                drop(publishing.await);
                drop(given_up); // answers whoever waits
                if unsent > 0 {
                    let text = format!("{url}: stopped, {unsent} messages that waited are lost");
                    journal.add(Level::Error, text);
                }
            }
            let _gate = runtime::gate();
            reply.mailbox().post(Post::Journal(journal));
            reply.complete(Ok(()));
        });
        drop(stopping); // it runs on by itself; an error has answered the reply already
    }

    /// Answers `reply` when the broker has confirmed the subscription to a channel, or cannot be waited
    /// for any longer. The listener is to be told of the wish first.
    pub fn wait_for(&self, channel: &str, reply: Reply) {
        let Some(channels) = self.topics.channels() else { return reply.complete(Ok(())) };
        if self.is_running() {
            channels.wishes.wait(channel, self.limits.subscribe_timeout, reply);
            return;
        }
        if !self.told_not_started.swap(true, Ordering::AcqRel) {
            let text = "subscribed while not started: nothing is received before start()";
            self.journal.add(Level::Warning, text.into());
            reply.mailbox().post(Post::Journal(Arc::clone(&self.journal)));
        }
        reply.complete(Ok(()));
    }

    /// Topics that are wanted, and those of them that the broker has confirmed.
    pub fn wanted(&self) -> (usize, usize) {
        self.topics.channels().map_or((0, 0), |channels| channels.wishes.counts())
    }

    /// Whether a listener runs in this process.
    pub fn is_running(&self) -> bool {
        self.process().listener.as_ref().is_some_and(Listener::is_alive)
    }

    /// Whether the listener is subscribed at this moment.
    pub fn is_listening(&self) -> bool {
        self.state() == State::Live
    }

    /// Where the listener stands. That of a process this one was forked from does not count.
    pub fn state(&self) -> State {
        if self.is_running() { self.health.report().state } else { State::Stopped }
    }

    /// Messages and bytes that wait to be published.
    pub fn waiting(&self) -> (usize, usize) {
        let outboxes = self.process().outboxes();
        let waiting = outboxes.iter().map(|outbox| outbox.waiting());
        waiting.fold((0, 0), |sum, waiting| (sum.0 + waiting.0, sum.1 + waiting.1))
    }

    /// Waits until everything published so far has been taken or has failed, for `limit` at most.
    ///
    /// An error: what is to wait cannot be started.
    pub fn flush(&self, limit: Duration) -> Result<Flush, Error> {
        let outboxes = self.process().outboxes();
        let stats = Arc::clone(&self.stats);
        let lost = move |outboxes: &[Arc<Outbox>]| {
            let counts = [&stats.publish_failed, &stats.publish_expired, &stats.publish_dropped];
            let overflowed = outboxes.iter().map(|outbox| outbox.overflowed()).sum::<u64>();
            overflowed + counts.into_iter().map(Counter::get).sum::<u64>()
        };
        let before = lost(&outboxes);
        for outbox in &outboxes {
            outbox.flush();
        }
        let came: Vec<u64> = outboxes.iter().map(|outbox| outbox.came()).collect();
        let (tell, told) = sync_channel(1);
        if outboxes.iter().zip(&came).all(|(outbox, count)| outbox.is_past(*count)) {
            let _there_is_room = tell.try_send(true);
            return Ok(Flush::new(told, None));
        }
        let ask = async move {
            let all = async {
                for (outbox, count) in outboxes.iter().zip(came) {
                    outbox.past(count).await;
                }
            };
            let past = tokio::time::timeout(limit, all).await.is_ok();
            let _gate = runtime::gate();
            let _told_or_gone = tell.try_send(past && lost(&outboxes) == before);
        };
        drop(runtime::spawn(ask)?); // it ends by itself
        Ok(Flush::new(told, None))
    }

    fn outbox(&self) -> Result<Arc<Outbox>, Error> {
        let mut process = self.process();
        if process.publishing.as_ref().is_none_or(JoinHandle::is_finished) {
            let job = publish::Job {
                url: self.url.clone(),
                limits: self.limits,
                outbox: Arc::clone(&process.outbox),
                stats: Arc::clone(&self.stats),
                journal: Arc::clone(&self.journal),
            };
            process.publishing = Some(runtime::spawn(publish::keep_running(job))?);
            ending::remember(&process.outbox, &self.url.shown, &self.journal);
        }
        Ok(Arc::clone(&process.outbox))
    }

    fn process(&self) -> parking_lot::MutexGuard<'_, PerProcess> {
        let mut process = self.process.lock();
        let generation = runtime::generation();
        if process.generation != generation {
            let fresh = PerProcess::new(self.keeping.as_ref());
            // Forgotten, not dropped: tasks and replies in it belong to threads of the parent.
            std::mem::forget(std::mem::replace(&mut *process, fresh));
        }
        process
    }
}

impl Listener {
    fn is_alive(&self) -> bool {
        self.running.load(Ordering::Acquire) && !self.task.is_finished() && !self.home.is_closed()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut process = self.process();
        process.outbox.close();
        if let Some(listener) = process.listener.take() {
            listener.task.abort();
        }
    }
}
