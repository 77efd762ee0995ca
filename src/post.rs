//! What is posted to an event loop, and the promise to answer a waiting awaitable.

use std::sync::Arc;

use crate::error::Error;
use crate::health::Health;
use crate::history::Position;
use crate::journal::Journal;
use crate::mailbox::Mailbox;
use crate::router::Router;

/// Rings an event loop's bell.
pub type Bell = Box<dyn Fn() + Send + Sync>;

/// The mailbox of an event loop.
pub type LoopMailbox = Mailbox<Post, Bell>;

/// What came of a message that was published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// The broker took it.
    #[default]
    Published,
    /// It waits for a broker that cannot be reached.
    Queued,
    /// A newer one took its place while both waited.
    Coalesced,
    /// One with its idempotency key was published before.
    Duplicate,
    /// One with its version or a newer one was published before.
    Stale,
}

/// What is known of a message that was published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// What came of it.
    pub status: Status,
    /// How many listeners it was handed to, if that is known.
    pub receivers: Option<u64>,
    /// Where it stands in the history, or the one that it is a duplicate of.
    pub position: Option<Position>,
}

/// How an operation ended. One that publishes nothing ends with an empty receipt.
pub type Outcome = Result<Receipt, Error>;

/// Something for an event loop to do.
#[derive(Debug)]
pub enum Post {
    /// Lanes of this router have messages, or were given up, on this loop.
    Ready(Arc<Router>),
    /// The operation that waits under this token has ended.
    Completed(u64, Outcome),
    /// There are lines to log.
    Journal(Arc<Journal>),
    /// A listener's state has changed.
    Changed(Arc<Health>),
}

/// The duty to answer an awaitable exactly once. Dropped unanswered, it gives its default answer, so
/// that nobody waits for ever.
#[derive(Debug)]
pub struct Reply {
    mailbox: Arc<LoopMailbox>,
    token: u64,
    default: Option<Outcome>,
}

impl Reply {
    /// A duty whose default answer is `Error::Stopped`.
    pub fn new(mailbox: Arc<LoopMailbox>, token: u64) -> Self {
        Self { mailbox, token, default: Some(Err(Error::Stopped)) }
    }

    /// A duty that is fulfilled by being dropped: the last of several owners answers.
    pub fn on_drop(mailbox: Arc<LoopMailbox>, token: u64) -> Self {
        Self { mailbox, token, default: Some(Ok(Receipt::default())) }
    }

    /// The loop that waits.
    pub fn mailbox(&self) -> &Arc<LoopMailbox> {
        &self.mailbox
    }

    /// Answers.
    pub fn complete(self, outcome: Result<(), Error>) {
        self.give(outcome.map(|()| Receipt::default()));
    }

    /// Answers for a message that was published.
    pub fn give(self, outcome: Outcome) {
        let mailbox = Arc::clone(&self.mailbox);
        mailbox.post(self.into_post(outcome));
    }

    /// The answer as a post, for those who send many at once to [`Reply::mailbox`].
    pub fn into_post(mut self, outcome: Outcome) -> Post {
        self.default = None;
        Post::Completed(self.token, outcome)
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(outcome) = self.default.take() {
            self.mailbox.post(Post::Completed(self.token, outcome));
        }
    }
}
