//! Whether a connection has a session of its own.
//!
//! A pool in transaction mode lends a session of the server for one transaction at a time: to whom LISTEN
//! was said is somebody else's session by then, and nothing would ever be heard.

use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error as Cause, SimpleQueryMessage};

use super::connect;
use super::dsn::Dsn;
use super::listening::Listening;
use super::socket::Reading;
use crate::config::BrokerUrl;
use crate::error::Error;
use crate::runtime;

/// The part of the time to connect in which there has to be a second connection, or anything else that
/// can be done without; but no longer than `SOON_AT_MOST`, and nor is a notification waited for.
const SOON: u32 = 4;
const SOON_AT_MOST: Duration = Duration::from_secs(1);

/// What a listener's session says of itself.
const WHO: &str = "SELECT pg_backend_pid(), pg_is_in_recovery()";

/// Which session answers, and whether it is that of a standby.
fn who(answer: &[SimpleQueryMessage]) -> Option<(i32, bool)> {
    answer.iter().find_map(|message| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        let column = |index| row.try_get(index).ok().flatten();
        Some((column(0)?.parse().ok()?, column(1)? == "t"))
    })
}

/// A notification channel that nobody else listens to.
fn own_channel() -> String {
    format!("fanwire_{:016x}", runtime::random())
}

impl Listening {
    /// Makes sure that what is notified will be heard.
    pub(super) async fn make_sure(&mut self, dsn: &Dsn, patience: Duration) -> Result<(), Error> {
        let soon = (patience / SOON).min(SOON_AT_MOST);
        let first = who(&self.query(WHO).await?);
        if let Some((_, true)) = first {
            let reason = "a standby, which neither listens nor notifies; give the primary's address, or \
                          those of all servers";
            return Err(self.unreachable(reason));
        }
        let Some(other) = Other::begin(dsn, &self.url, soon).await else { return Ok(()) };
        let Some(others) = other.session else { return Err(refusal(&self.url)) };
        // Asked no more where it would have to wait for the other to end.
        if first.is_some_and(|(session, _)| session == others) {
            return Err(refusal(&self.url));
        }
        let channel = own_channel();
        let answer = self.query(&format!("LISTEN {channel}; {WHO}")).await?;
        if who(&answer) == first && self.hears(&other, &channel, soon).await? {
            self.query(&format!("UNLISTEN {channel}")).await?;
            return Ok(());
        }
        // The pool may send this to another session, or let it wait; it is refused all the same.
        let _ = timeout(soon, self.query("UNLISTEN *")).await;
        Err(refusal(&self.url))
    }

    /// Whether what another connection notifies comes over this one: to be in the same session as before
    /// may be chance. True also if the other cannot notify now.
    async fn hears(&mut self, other: &Other, channel: &str, soon: Duration) -> Result<bool, Error> {
        let mut wait = (2 * soon).min(SOON_AT_MOST);
        // Until the time to connect is over.
        loop {
            let notified = other.notify(channel);
            self.trial = Some(channel.to_owned());
            let notified = timeout(soon, self.run(async { Ok(notified.await) })).await;
            if !notified.unwrap_or(Ok(false))? {
                return Ok(true);
            }
            // Nothing is asked meanwhile: a pool would lend us a session for that, perhaps the one that listens.
            let heard = std::future::poll_fn(|context| {
                while self.trial.is_some() {
                    ready!(self.read(context))?;
                }
                Poll::Ready(Ok(()))
            });
            if let Ok(heard) = timeout(wait, heard).await {
                return heard.map(|()| true);
            }
            // A session gives what was notified before it answers. One that answers soon, and with nothing, is
            // not the one that listens. Otherwise it may be, on a server that was slow: the trial is made again.
            let asked = Instant::now();
            self.query("").await?;
            if self.trial.take().is_some() && asked.elapsed() < soon {
                return Ok(false);
            }
            wait = soon / 4;
        }
    }
}

/// A second connection in the middle of a transaction, so that its session is nobody else's.
struct Other {
    /// The transaction ends with it.
    client: Client,
    driver: tokio::task::JoinHandle<Result<(), Cause>>,
    /// Its session; None where a pool lends one for less than a transaction.
    session: Option<i32>,
}

impl Other {
    /// Begins a transaction. None if there can be no second connection now: a pool may let it wait for a
    /// session for longer than the first may take to connect.
    async fn begin(dsn: &Dsn, url: &BrokerUrl, soon: Duration) -> Option<Self> {
        timeout(soon, Self::try_begin(dsn, url, soon)).await.ok()?
    }

    async fn try_begin(dsn: &Dsn, url: &BrokerUrl, soon: Duration) -> Option<Self> {
        let (client, connection) = connect::open(dsn, url, soon, Reading::AtOnce).await.ok()?;
        // Before anything is waited for, so that the connection ends when that takes too long.
        let mut other = Self { client, driver: tokio::spawn(connection), session: None };
        other.session = match other.client.simple_query(&format!("BEGIN; {WHO}")).await {
            Ok(answer) => Some(who(&answer)?.0),
            Err(error) if error.code() == Some(&SqlState::PROTOCOL_VIOLATION) => None,
            Err(_) => return None,
        };
        Some(other)
    }

    /// Ends the transaction and notifies a channel. False if that is not possible.
    async fn notify(&self, channel: &str) -> bool {
        let notify = format!("COMMIT; SELECT pg_notify('{channel}', '')");
        self.client.simple_query(&notify).await.is_ok()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What is said of a pool.
fn refusal(url: &BrokerUrl) -> Error {
    let reason = "this is a pool that lends sessions for a transaction at a time, and LISTEN needs a \
                  session of its own: who listens must be given the address of PostgreSQL itself, or of a \
                  pool in session mode (publishing works through this one too)";
    Error::Refused { url: url.shown.clone(), reason: reason.to_owned() }
}
