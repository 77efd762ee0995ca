//! The broker contract, and the choice of a broker by URL.
//!
//! A broker gives two things, each over a connection of its own:
//!
//! - a [`Link`] that publishes: `publish(batch)` answers each message with the broker's word on it, or
//!   fails as a whole, after which the link is dropped and a new one is made, and nobody knows what of
//!   the batch was taken; `read(asks)` says what is kept of uploads, in one round trip;
//! - a [`Listening`] that receives: once `connect` returned, every message published afterwards on the
//!   patterns arrives, in order; `ask` begins and ends subscriptions to channels by name, each of which
//!   is confirmed or refused later; `next` gives what was [`Heard`] until the connection fails, and an
//!   end of the connection is a failure. `next` may be cancelled at any time and called again.
//!
//! Neither reconnects, retries or logs: `publish.rs` and `supervise.rs` do, for all brokers alike.

mod gathered;
pub mod memory;
mod moderated;
pub mod postgres;
pub mod redis;
mod tls;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::{BrokerUrl, Limits, Target};
use crate::error::Error;
use crate::history::{Ask, Past};
use crate::message::Outgoing;
use crate::post::Receipt;
use crate::router::Inbound;
use crate::wishes::Changes;

/// A stream in both directions.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What a broker says of one message.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It has done with it what there was to do.
    Taken(Receipt),
    /// It has done nothing, and will if it is asked again at once.
    Again,
    /// It has done nothing, because the message before it in its upload is not there.
    Behind,
    /// It has not published it. [`Error::Unreachable`] may pass, and then nothing was done.
    Refused(Error),
}

/// The publishing side of a broker.
pub enum Link {
    /// Inside this process.
    Memory(memory::Link),
    /// Redis.
    Redis(Box<redis::Link>),
    /// PostgreSQL.
    Postgres(Box<postgres::Link>),
}

impl Link {
    /// Connects and authenticates within `limits.connect_timeout`.
    pub async fn connect(url: &BrokerUrl, limits: &Limits) -> Result<Self, Error> {
        match &url.target {
            Target::Memory => Ok(Self::Memory(memory::Link::new(limits))),
            Target::Redis(info) => {
                let link =
                    within(limits.connect_timeout, url, redis::Link::connect(info, url, limits));
                link.await.map(|link| Self::Redis(Box::new(link)))
            }
            Target::Postgres(dsn) => {
                // Boxed because it is large, and the others are not.
                let link = Box::pin(postgres::Link::connect(dsn, url, limits));
                let link = within(limits.connect_timeout, url, link);
                link.await.map(|link| Self::Postgres(Box::new(link)))
            }
        }
    }

    /// Publishes a batch in order. One verdict for each message, or an error for the connection.
    pub async fn publish(&mut self, batch: &[Outgoing]) -> Result<Vec<Verdict>, Error> {
        match self {
            Self::Memory(link) => Ok(link.publish(batch).await),
            Self::Redis(link) => link.publish(batch).await,
            Self::Postgres(link) => link.publish(batch).await,
        }
    }

    /// What is kept of uploads, in one round trip; None of what nothing is kept of. An inner error is
    /// about that upload alone.
    pub async fn read(&mut self, asks: &[Ask]) -> Result<Vec<Result<Option<Past>, Error>>, Error> {
        match self {
            Self::Memory(_) => Ok(memory::read(asks)),
            Self::Redis(link) => link.read(asks).await,
            Self::Postgres(link) => link.read(asks).await,
        }
    }

    /// Whether the connection is known to be gone.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Redis(link) => link.is_lost(),
            Self::Postgres(link) => link.is_lost(),
        }
    }
}

/// What a listener hears.
#[derive(Debug)]
pub enum Heard<'a> {
    /// Messages on channels that match one of the patterns, at most 256.
    Matching(&'a [Inbound<'a>]),
    /// Messages on channels subscribed to by name, at most 256.
    Named(&'a [Inbound<'a>]),
    /// The subscription to a channel has begun.
    Subscribed(&'a [u8]),
    /// The subscription to a channel has ended.
    Unsubscribed(&'a [u8]),
    /// A sign of life that was asked for.
    Alive,
    /// One of these channels is not ours to subscribe to, and none of them is subscribed to.
    Unclear(&'a [Box<str>]),
    /// The broker does not let us subscribe to a channel.
    Refused(&'a str, Error),
    /// Something came on a channel that is no message, and why.
    Malformed(&'a [u8], &'static str),
}

/// Takes what was heard, in order.
pub type Ear<'e> = &'e mut (dyn for<'a> FnMut(Heard<'a>) + Send);

/// The receiving side of a broker.
pub enum Listening {
    /// Inside this process.
    Memory(memory::Listening),
    /// Redis.
    Redis(Box<redis::Listening>),
    /// PostgreSQL.
    Postgres(Box<postgres::Listening>),
}

impl Listening {
    /// Connects, authenticates and subscribes to the patterns within `limits.connect_timeout`;
    /// their subscription is confirmed when this returns.
    pub async fn connect(
        url: &BrokerUrl,
        limits: &Limits,
        patterns: &[&str],
    ) -> Result<Self, Error> {
        match &url.target {
            Target::Memory => Ok(Self::Memory(memory::Listening::open(patterns))),
            Target::Redis(info) => {
                let listening = within(
                    limits.connect_timeout,
                    url,
                    redis::Listening::connect(info, url, patterns),
                );
                listening.await.map(|listening| Self::Redis(Box::new(listening)))
            }
            Target::Postgres(dsn) => {
                let listening = Box::pin(postgres::Listening::connect(dsn, url, limits, patterns));
                let listening = within(limits.connect_timeout, url, listening);
                listening.await.map(|listening| Self::Postgres(Box::new(listening)))
            }
        }
    }

    /// Begins and ends subscriptions to channels by name.
    pub fn ask(&mut self, changes: Changes) {
        match self {
            Self::Memory(listening) => listening.ask(changes),
            Self::Redis(listening) => listening.ask(changes),
            Self::Postgres(listening) => listening.ask(changes),
        }
    }

    /// Waits for something and hands it over. Some of it may have been handed over when it fails.
    pub async fn next(&mut self, ear: Ear<'_>) -> Result<(), Error> {
        match self {
            Self::Memory(listening) => listening.next(ear).await,
            Self::Redis(listening) => listening.next(ear).await,
            Self::Postgres(listening) => listening.next(ear).await,
        }
    }
}

/// The most messages handed over at once, which bounds how long the router's lock is held.
const BATCH: usize = 256;

async fn within<T>(
    limit: Duration,
    url: &BrokerUrl,
    attempt: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let timeout = Error::Timeout { url: url.shown.clone(), after: limit };
    tokio::time::timeout(limit, attempt).await.unwrap_or(Err(timeout))
}
