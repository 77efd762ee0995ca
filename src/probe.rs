//! A listener's own channel, on which it hears itself.
//!
//! A connection may be up and yet deaf: the server answers, and what is published does not come. So
//! while nothing comes, `reading.rs` publishes a message on this channel every few seconds, and if it does
//! not come back the listener (`supervise.rs`) connects anew. What is known of that stands here; nothing
//! here connects, publishes or logs.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::config::BrokerUrl;
use crate::runtime;

/// How long a probe may take.
const PATIENCE: Duration = Duration::from_secs(2);

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
            channel: format!("fanwire:probe:{:016x}", runtime::random()).into(),
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

    /// Messages that were heard so far.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Whether a probe may be published. Where the channel is not asked for yet it is from now on, and
    /// subscribed to by the next time.
    pub fn is_ready(&self) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        match self.standing.compare_exchange(NOT_ASKED, ASKED, success, failure) {
            Ok(_) => {
                self.wanted.notify_one();
                false
            }
            Err(standing) => standing != REFUSED,
        }
    }

    /// Whether what was published is heard in time, or nothing can be said of it. `heard` is what
    /// [`Probe::heard`] was before.
    pub async fn comes_back(&self, heard: u64) -> bool {
        let reads = self.reads.load(Ordering::Relaxed);
        let came_back = timeout(PATIENCE, self.came_back.notified()).await.is_ok();
        let has_read = self.reads.load(Ordering::Relaxed) != reads;
        let is_subscribed = self.standing.load(Ordering::Acquire) == SUBSCRIBED;
        came_back || !has_read || !is_subscribed || self.heard() != heard
    }

    /// Has the listener connect anew.
    pub fn find_deaf(&self) {
        self.deaf.notify_one();
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
