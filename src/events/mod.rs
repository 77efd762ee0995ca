//! Publishing from daemons and workers: a push never waits for the broker, whatever becomes of it.
//!
//! A push locks, puts the message into a bounded [`queue`], and wakes the task of [`sending`] only where
//! that sleeps. The task belongs to a process and begins with its first push; after a fork the child
//! starts with an empty queue and a task of its own, and what waited in the parent's is the parent's.
//!
//! Locks: only a thread that no fork can interrupt holds one, which is a thread that holds Python's GIL,
//! or the I/O thread behind [`crate::runtime::gate`]. Nobody waits for anything while holding one.

mod core;
pub mod queue;
pub mod report;
mod sending;
pub mod shorten;

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use self::core::{Core, Inner};
use self::queue::Kind;
use crate::config::{BrokerUrl, Limits};
use crate::error::Error;
pub use crate::flush::Flush;
use crate::journal::{Journal, Level};
use crate::stats::EventStats;

/// How long what waits may take to go out once a publisher is closed.
pub const CLOSING: Duration = Duration::from_secs(2);

/// Every publisher whose messages may still wait, for the end of the process.
static ALL: Mutex<Vec<Weak<Core>>> = Mutex::new(Vec::new());

/// Where messages go, and how many may wait.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The broker.
    pub url: BrokerUrl,
    /// Timeouts, and what may wait.
    pub limits: Limits,
    /// The channels' names.
    pub channels: Channels,
}

/// The channels' names.
#[derive(Clone, Debug)]
pub struct Channels {
    /// For log lines.
    pub logs: Box<str>,
    /// For events.
    pub events: Box<str>,
    /// For figures.
    pub stats: Box<str>,
}

impl Channels {
    fn of(&self, kind: Kind) -> &str {
        match kind {
            Kind::Log => &self.logs,
            Kind::Stats => &self.stats,
            Kind::Event => &self.events,
        }
    }
}

/// A publisher. Dropped without being closed, it lets go out what waits, for as long as closing may take.
#[derive(Debug)]
pub struct Publisher(Arc<Core>);

/// What a push did besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// It was the first in this process.
    pub began: bool,
    /// Something was dropped, and nothing had been since the events channel was told.
    pub overflowed: bool,
}

impl Publisher {
    /// A publisher that has not connected.
    pub fn new(settings: Settings) -> Self {
        let inner = Mutex::new(Inner::new(&settings.limits, None));
        let core = Arc::new(Core {
            settings,
            inner,
            stats: EventStats::default(),
            journal: Journal::default(),
            utc_offset_seconds: AtomicI32::new(0),
        });
        let mut all = ALL.lock();
        all.retain(|core| core.strong_count() > 0);
        all.push(Arc::downgrade(&core));
        Self(core)
    }

    /// Where it publishes, and its limits.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Counters.
    pub fn stats(&self) -> &EventStats {
        &self.0.stats
    }

    /// Lines to log.
    pub fn journal(&self) -> &Journal {
        &self.0.journal
    }

    /// Says how far local time is from UTC, for the timestamp of what the task says itself.
    pub fn set_utc_offset(&self, seconds: i32) {
        self.0.utc_offset_seconds.store(seconds, Ordering::Relaxed);
    }

    /// Puts a message into the queue. The only error is that the publisher is closed.
    pub fn push(&self, kind: Kind, payload: Vec<u8>) -> Result<Pushed, Error> {
        let core = &self.0;
        let (pushed, sleeper) = {
            let mut inner = core.lock();
            if inner.closed.is_some() {
                return Err(Error::Stopped);
            }
            let dropped = inner.queue.push(kind, payload);
            let overflowed = dropped.total() > 0 && inner.missing.dropped.total() == 0;
            inner.drop_counted(dropped, &core.stats);
            let began = !std::mem::replace(&mut inner.running, true);
            let wakes = !inner.dozes || kind == Kind::Event || inner.queue.is_half_full();
            (Pushed { began, overflowed }, if wakes { inner.sleeper.take() } else { None })
        };
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
        if pushed.began {
            core.start();
        }
        Ok(pushed)
    }

    /// To wait until what is in the queue now has gone out.
    pub fn flush(&self) -> Flush {
        self.0.flush(false)
    }

    /// Takes no more messages. What waits may go out until [`Publisher::give_up`].
    pub fn close(&self) -> Flush {
        self.0.close();
        self.0.flush(true)
    }

    /// Drops what still waits.
    pub fn give_up(&self) {
        let task = {
            let mut inner = self.0.lock();
            self.0.abandon(&mut inner);
            inner.task.take()
        };
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Whether it takes no more messages.
    pub fn is_closed(&self) -> bool {
        self.0.lock().closed.is_some()
    }

    /// Whether it is open, and its task connected.
    pub fn is_connected(&self) -> bool {
        let inner = self.0.lock();
        inner.connected && inner.closed.is_none()
    }

    /// Messages and bytes of payload that wait, those being sent included.
    pub fn waiting(&self) -> (usize, usize) {
        let inner = self.0.lock();
        let (messages, bytes) =
            inner.in_hand.map_or((0, 0), |in_hand| (in_hand.counts.total(), in_hand.bytes));
        let messages = usize::try_from(messages).unwrap_or(usize::MAX);
        (inner.queue.len() + messages, inner.queue.bytes() + bytes)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A publisher of a process that ends.
#[derive(Debug)]
pub struct Ending {
    core: Arc<Core>,
    flush: Flush,
}

impl Ending {
    /// Every publisher of this process.
    pub fn all() -> Vec<Self> {
        let all: Vec<Arc<Core>> = ALL.lock().iter().filter_map(Weak::upgrade).collect();
        let ending = all.into_iter().map(|core| Self { flush: core.flush(true), core });
        ending.collect()
    }

    /// Waits for what waits. False where the time is up first.
    pub fn wait(&mut self, limit: Duration) -> bool {
        self.flush.wait(limit).is_some()
    }

    /// Says how much is left.
    pub fn tell(&self) {
        let inner = self.core.lock();
        let in_hand = inner.in_hand.map_or(0, |in_hand| in_hand.counts.total());
        let text = format!(
            "{}: the interpreter ends before {} messages could be published",
            self.core.settings.url.shown,
            inner.queue.len() as u64 + in_hand,
        );
        self.core.journal.add(Level::Warning, text);
    }

    /// Lines to log.
    pub fn journal(&self) -> &Journal {
        &self.core.journal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Heard, Listening};

    fn publisher(url: &str, name: &str, max_pending_messages: usize) -> Publisher {
        let limits = Limits { max_pending_messages, ..Limits::default() };
        let channel = |kind: &str| format!("{name}:{kind}").into();
        let channels =
            Channels { logs: channel("logs"), events: channel("events"), stats: channel("stats") };
        Publisher::new(Settings { url: BrokerUrl::parse(url).unwrap(), limits, channels })
    }

    async fn heard(listening: &mut Listening, count: usize) -> Vec<(String, String)> {
        let mut found = Vec::new();
        while found.len() < count {
            let mut ear = |heard: Heard<'_>| {
                if let Heard::Matching(messages) = heard {
                    found.extend(messages.iter().map(|message| {
                        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                        (text(message.channel), text(message.payload))
                    }));
                }
            };
            listening.next(&mut ear).await.unwrap();
        }
        found
    }

    #[tokio::test]
    async fn messages_arrive_in_order_on_their_channels() {
        let (url, limits) = (BrokerUrl::parse("memory://").unwrap(), Limits::default());
        let mut listening = Listening::connect(&url, &limits, &["order:*"]).await.unwrap();
        let publisher = publisher("memory://", "order", 10_000);
        let mut expected = Vec::new();
        for number in 0..3000 {
            let kind = [Kind::Log, Kind::Stats, Kind::Event][number % 3];
            let pushed = publisher.push(kind, number.to_string().into()).unwrap();
            assert_eq!(pushed, Pushed { began: number == 0, overflowed: false });
            expected.push((publisher.settings().channels.of(kind).to_owned(), number.to_string()));
        }
        drop(publisher); // what waits goes out all the same
        assert_eq!(heard(&mut listening, expected.len()).await, expected);
    }

    #[test]
    fn without_a_broker_it_waits_drops_and_gives_up() {
        let publisher = publisher("redis://127.0.0.1:1", "nowhere", 3);
        let mut flush = publisher.flush();
        assert_eq!(flush.wait(Duration::ZERO), Some(true), "nothing waits");
        for number in 0..5 {
            let pushed = publisher.push(Kind::Log, vec![b'x'; 10]).unwrap();
            assert_eq!(pushed.overflowed, number == 3);
        }
        let mut flush = publisher.flush();
        assert_eq!(flush.wait(Duration::ZERO), None);
        publisher.push(Kind::Event, vec![b'y']).unwrap();
        assert_eq!((publisher.waiting(), publisher.is_connected()), ((3, 21), false));
        let mut closing = publisher.close();
        assert_eq!(closing.wait(Duration::ZERO), None);
        assert!(publisher.push(Kind::Log, Vec::new()).is_err());
        publisher.give_up();
        assert_eq!(
            (flush.wait(Duration::ZERO), closing.wait(Duration::ZERO)),
            (Some(false), Some(false))
        );
        let stats = publisher.stats();
        assert_eq!((stats.logs_dropped.get(), stats.events_dropped.get()), (5, 1));
        assert_eq!(publisher.waiting(), (0, 0));
        let lines = publisher.journal().drain();
        assert!(
            lines.last().unwrap().text.contains("closed before 2 log lines, 0 stats and 1 events")
        );
    }

    #[test]
    fn a_process_that_ends_waits_for_all_of_them_and_tells_what_is_left() {
        let publisher = publisher("redis://127.0.0.1:1", "ending", 10);
        publisher.push(Kind::Event, vec![b'y']).unwrap();
        let mut ending = Ending::all();
        let mine =
            ending.iter_mut().find(|ending| Arc::ptr_eq(&ending.core, &publisher.0)).unwrap();
        assert!(!mine.wait(Duration::ZERO));
        mine.tell();
        let lines = mine.journal().drain();
        assert!(
            lines.iter().any(|line| line.text.contains("before 1 messages could be published"))
        );
    }
}
