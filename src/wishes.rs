//! Which channels the listener is to be subscribed to by name, and which it is.
//!
//! What is wanted outlives every connection: it is what is asked for again after a reconnect. Whoever
//! began to want a channel waits here until the broker has confirmed it, but not for ever.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::Error;
use crate::journal::{Journal, Level};
use crate::post::{Post, Reply};
use crate::runtime;

/// The least time between two looks for those who have waited long enough.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Subscriptions to begin and to end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Channels to subscribe to.
    pub begin: Vec<Box<str>>,
    /// Channels to subscribe to with a command each.
    pub begin_alone: Vec<Box<str>>,
    /// Channels to unsubscribe from.
    pub end: Vec<Box<str>>,
}

impl Changes {
    /// Whether there is nothing to change.
    pub fn is_empty(&self) -> bool {
        self.begin.is_empty() && self.begin_alone.is_empty() && self.end.is_empty()
    }
}

#[allow(clippy::struct_excessive_bools)] // they change independently of each other
#[derive(Debug, Default)]
struct Channel {
    wanted: bool,
    /// Whether the last that was asked of this connection is to be subscribed.
    asked: bool,
    /// Requests of this connection that were not answered yet.
    unanswered: u32,
    /// Whether it is listed as one that may differ from what was asked.
    changed: bool,
    waiting: Vec<Waiting>,
    /// Whether it is to be asked for in a command of its own.
    alone: bool,
}

/// Somebody who waits for a channel, and until when. Dropped, it is answered.
pub type Waiting = (Instant, Reply);

impl Channel {
    fn is_live(&self) -> bool {
        self.wanted && self.asked && self.unanswered == 0
    }
}

#[derive(Debug, Default)]
struct Inner {
    channels: HashMap<Box<str>, Channel>,
    changed: Vec<Box<str>>,
    /// The sum of what is unanswered.
    unanswered: usize,
    /// The fork generation of the task that looks for those who have waited long enough, if there is one.
    watched: Option<u64>,
    /// Counts the listeners there were.
    listener: u64,
    /// Whether it was told that somebody waits in vain, in this outage.
    told_late: bool,
}

/// What is wanted and what there is.
#[derive(Debug)]
pub struct Wishes {
    inner: Mutex<Inner>,
    news: Notify,
    journal: Arc<Journal>,
    url: String,
}

impl Wishes {
    /// Nothing is wanted yet. It is told to `journal` when somebody waits in vain for the broker with
    /// this URL, as it may be shown.
    pub fn new(journal: Arc<Journal>, url: String) -> Self {
        Self { inner: Mutex::default(), news: Notify::new(), journal, url }
    }

    /// Begins to want a channel. The listener is told by [`Wishes::flush`].
    pub fn want(&self, channel: &str) {
        let mut inner = self.inner.lock();
        let Inner { channels, changed, .. } = &mut *inner;
        let known = channels.entry(channel.into()).or_default();
        known.wanted = true;
        if !std::mem::replace(&mut known.changed, true) {
            changed.push(channel.into());
        }
    }

    /// Ends to want a channel. Returns those who waited for it.
    #[must_use]
    pub fn unwant(&self, channel: &str) -> Vec<Waiting> {
        let mut inner = self.inner.lock();
        let Inner { channels, changed, .. } = &mut *inner;
        let Some(known) = channels.get_mut(channel) else { return Vec::new() };
        known.wanted = false;
        if !std::mem::replace(&mut known.changed, true) {
            changed.push(channel.into());
        }
        std::mem::take(&mut known.waiting)
    }

    /// Has the listener look at what has changed.
    pub fn flush(&self) {
        self.news.notify_one();
    }

    /// Whether the broker has confirmed the subscription to a channel.
    pub fn is_live(&self, channel: &str) -> bool {
        self.inner.lock().channels.get(channel).is_some_and(Channel::is_live)
    }

    /// Answers `reply` when the broker has confirmed or refused the channel, or after `limit`. The
    /// wish stays then.
    pub fn wait(self: &Arc<Self>, channel: &str, limit: Duration, reply: Reply) {
        let due = Instant::now() + limit;
        let mut inner = self.inner.lock();
        let generation = runtime::generation();
        let watched = inner.watched == Some(generation);
        match inner.channels.get_mut(channel) {
            Some(known) if known.wanted && !known.is_live() => known.waiting.push((due, reply)),
            _ => {
                drop(inner);
                reply.complete(Ok(()));
                return;
            }
        }
        inner.watched = Some(generation);
        drop(inner);
        if watched {
            return;
        }
        let wishes = Arc::clone(self);
        // Without an I/O thread nobody would answer at all.
        if runtime::spawn(async move { wishes.watch().await }).is_err() {
            self.abandon();
        }
    }

    /// Answers those who wait: there is no listener.
    pub fn abandon(&self) {
        let mut inner = self.inner.lock();
        inner.watched = None;
        let waiting: Vec<_> =
            inner.channels.values_mut().flat_map(|channel| channel.waiting.drain(..)).collect();
        drop(inner);
        for (_, reply) in waiting {
            reply.complete(Ok(()));
        }
    }

    /// Waits until [`Wishes::flush`] was called.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What is to be asked of the broker now; from here on it counts as asked.
    pub fn take_changes(&self) -> Changes {
        let mut inner = self.inner.lock();
        let Inner { channels, changed, unanswered, .. } = &mut *inner;
        let mut changes = Changes::default();
        for name in changed.drain(..) {
            let Some(channel) = channels.get_mut(&name) else { continue };
            channel.changed = false;
            if channel.wanted == channel.asked {
                if !channel.wanted && channel.unanswered == 0 {
                    channels.remove(&name);
                }
                continue;
            }
            channel.asked = channel.wanted;
            channel.unanswered += 1;
            *unanswered += 1;
            let list = match (channel.wanted, channel.alone) {
                (true, false) => &mut changes.begin,
                (true, true) => &mut changes.begin_alone,
                (false, _) => &mut changes.end,
            };
            list.push(name);
        }
        changes
    }

    /// Whether everything that is wanted was asked for and answered.
    pub fn are_settled(&self) -> bool {
        let inner = self.inner.lock();
        inner.changed.is_empty() && inner.unanswered == 0
    }

    /// Notes that the broker has answered a request for a channel.
    pub fn answered(&self, channel: &[u8], outcome: Result<(), Error>) {
        let Ok(name) = std::str::from_utf8(channel) else { return };
        let mut inner = self.inner.lock();
        let Inner { channels, unanswered, .. } = &mut *inner;
        let Some(known) = channels.get_mut(name).filter(|known| known.unanswered > 0) else {
            return;
        };
        known.unanswered -= 1;
        *unanswered -= 1;
        if outcome.is_err() {
            (known.wanted, known.asked) = (false, false);
        }
        let settled = known.is_live() || outcome.is_err();
        let waiting = if settled { std::mem::take(&mut known.waiting) } else { Vec::new() };
        if !known.wanted && !known.asked && known.unanswered == 0 && !known.changed {
            channels.remove(name);
        }
        drop(inner);
        for (_, reply) in waiting {
            reply.complete(outcome.clone());
        }
    }

    /// Notes that one command for several channels was refused, and nobody knows for which of them: each
    /// that is still wanted is asked for alone.
    pub fn unclear(&self, names: &[Box<str>]) {
        let mut inner = self.inner.lock();
        let Inner { channels, changed, unanswered, .. } = &mut *inner;
        for name in names {
            let Some(known) = channels.get_mut(name).filter(|known| known.unanswered > 0) else {
                continue;
            };
            known.unanswered -= 1;
            *unanswered -= 1;
            known.alone = true;
            // What was asked since has an answer of its own.
            if known.unanswered == 0 {
                known.asked = false;
            }
            if !std::mem::replace(&mut known.changed, true) {
                changed.push(name.clone());
            }
        }
    }

    /// Begins with a new listener, which is to be asked for everything. Returns its number.
    pub fn begin(&self) -> u64 {
        self.start_over();
        let mut inner = self.inner.lock();
        inner.listener += 1;
        inner.listener
    }

    /// Ends with a listener, unless there is another since. Nobody waits any more.
    pub fn end(&self, listener: u64) {
        if self.inner.lock().listener == listener {
            self.start_over();
            self.abandon();
        }
    }

    /// Forgets what was asked of a connection: there is a new one, to be asked for everything.
    pub fn start_over(&self) {
        let mut inner = self.inner.lock();
        let Inner { channels, changed, unanswered, .. } = &mut *inner;
        *unanswered = 0;
        changed.clear();
        channels.retain(|_, channel| channel.wanted);
        for (name, channel) in channels {
            (channel.asked, channel.unanswered, channel.changed) = (false, 0, true);
            changed.push(name.clone());
        }
    }

    /// Says that the outage is over.
    pub fn end_of_outage(&self) {
        self.inner.lock().told_late = false;
    }

    /// Channels that are wanted, and those of them that the broker has confirmed.
    pub fn counts(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        let wanted = inner.channels.values().filter(|channel| channel.wanted).count();
        (wanted, inner.channels.values().filter(|channel| channel.is_live()).count())
    }

    /// Answers those who have waited long enough, until nobody waits.
    async fn watch(self: Arc<Self>) {
        while let Some(next) = self.expire() {
            tokio::time::sleep_until(next.max(Instant::now() + LOOK_EVERY)).await;
        }
    }

    fn expire(&self) -> Option<Instant> {
        let _gate = runtime::gate();
        let now = Instant::now();
        let mut inner = self.inner.lock();
        let (mut late, mut next) = (Vec::new(), None::<Instant>);
        for channel in inner.channels.values_mut() {
            for (due, reply) in std::mem::take(&mut channel.waiting) {
                if due <= now {
                    late.push(reply);
                } else {
                    next = Some(next.map_or(due, |next| next.min(due)));
                    channel.waiting.push((due, reply));
                }
            }
        }
        inner.watched = next.map(|_| runtime::generation());
        let tell = !late.is_empty() && !std::mem::replace(&mut inner.told_late, true);
        drop(inner);
        if tell && let Some(reply) = late.first() {
            let text =
                format!("{}: a subscription is not confirmed; it waits for the broker", self.url);
            self.journal.add(Level::Warning, text);
            reply.mailbox().post(Post::Journal(Arc::clone(&self.journal)));
        }
        for reply in late {
            reply.complete(Ok(()));
        }
        next
    }
}
