//! What can go wrong in the core. Texts say what happened, to which URL (masked), and what to do.
//!
//! `src/python/errors.rs` turns these into the exceptions of `fanwire.errors`; nothing else does.

use std::time::Duration;

/// An error of the core.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A URL or an option makes no sense.
    #[error("{0}")]
    Config(String),
    /// The broker answered, and the answer means that trying again cannot help.
    #[error("{url}: {reason}")]
    Refused {
        /// The broker's URL with its secrets masked.
        url: String,
        /// What the broker said, or what it is that is not a broker.
        reason: String,
    },
    /// The broker cannot be reached now; trying again may help.
    #[error("{url}: {reason}")]
    Unreachable {
        /// The broker's URL with its secrets masked.
        url: String,
        /// Why, in the words of the operating system or of the broker.
        reason: String,
    },
    /// The broker did not answer within the time allowed.
    #[error("{url}: no answer within {} s", .after.as_secs_f64())]
    Timeout {
        /// The broker's URL with its secrets masked.
        url: String,
        /// The limit that passed.
        after: Duration,
    },
    /// The broker refused one message and is otherwise fine (an ACL, say).
    #[error("the broker refused the message: {0}")]
    Rejected(String),
    /// Too much waits to be published already.
    #[error("{messages} messages ({bytes} bytes) wait to be published already")]
    Full {
        /// Messages waiting.
        messages: usize,
        /// Bytes of payload waiting.
        bytes: usize,
    },
    /// The publisher was stopped meanwhile.
    #[error("the publisher was stopped")]
    Stopped,
    /// The operating system refused what the I/O thread needs.
    #[error("cannot start fanwire's I/O thread: {0}")]
    System(String),
}

impl Error {
    /// Whether trying again cannot help: `start` raises these, and comes up in spite of the others.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Config(_) | Self::Refused { .. } | Self::System(_) => true,
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Rejected(_)
            | Self::Full { .. }
            | Self::Stopped => false,
        }
    }
}
