//! Whether a connection has a session of its own.
//!
//! A pool in transaction mode lends a session of the server for one transaction at a time: to whom LISTEN
//! was said is somebody else's session by then, and nothing would ever be heard.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error as Cause, SimpleQueryMessage};

use super::connect;
use super::dsn::Dsn;
use crate::config::BrokerUrl;
use crate::error::Error;

/// What a listener's session says of itself.
pub const WHO: &str = "SELECT pg_backend_pid(), pg_is_in_recovery()";

/// Which session answers, and whether it is that of a standby.
pub fn who(answer: &[SimpleQueryMessage]) -> Option<(i32, bool)> {
    answer.iter().find_map(|message| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        let column = |index| row.try_get(index).ok().flatten();
        Some((column(0)?.parse().ok()?, column(1)? == "t"))
    })
}

/// A second connection in the middle of a transaction, so that its session is nobody else's.
pub struct Other {
    /// Ends with it.
    _client: Client,
    driver: tokio::task::JoinHandle<Result<(), Cause>>,
    /// Its session; None where a pool lends one for less than a transaction.
    pub session: Option<i32>,
}

impl Other {
    /// Begins a transaction. None if there can be no second connection now.
    pub async fn begin(dsn: &Dsn, url: &BrokerUrl) -> Option<Self> {
        let (client, connection) = connect::open(dsn, url).await.ok()?;
        let driver = tokio::spawn(connection);
        let answer = client.simple_query(&format!("BEGIN; {WHO}")).await;
        let session = match answer {
            Ok(answer) => Some(who(&answer)?.0),
            Err(error) if error.code() == Some(&SqlState::PROTOCOL_VIOLATION) => None,
            Err(_) => return None,
        };
        Some(Self { _client: client, driver, session })
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What is said of a pool.
pub fn refusal(url: &BrokerUrl) -> Error {
    let reason = "this is a pool that lends sessions for a transaction at a time, and LISTEN needs a \
                  session of its own: who listens must be given the address of PostgreSQL itself, or of a \
                  pool in session mode (publishing works through this one too)";
    Error::Refused { url: url.shown.clone(), reason: reason.to_owned() }
}
