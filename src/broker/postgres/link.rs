//! The publishing side.

use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error as Cause};

use super::batch::{Notifications, Unfit};
use super::dsn::Dsn;
use super::{connect, errors};
use crate::broker::Verdict;
use crate::config::{BrokerUrl, Limits};
use crate::error::Error;
use crate::history::{Ask, Past};
use crate::message::Outgoing;
use crate::post::Receipt;

/// Nothing of a notification survives a crash, so its transaction need not wait for the disk.
const NOTIFY: &str = "SELECT count(pg_notify(channel, text)) FROM \
    set_config('synchronous_commit', 'off', true), unnest($1, $2) AS notifications(channel, text)";

/// What a statement is given, with its types: no round trip is spent on asking for them.
type Parameters<'p> = &'p [(&'p (dyn ToSql + Sync), Type)];

/// A connection that publishes.
pub struct Link {
    client: Client,
    /// Reads and writes the socket; it ends when the connection does.
    driver: JoinHandle<Result<(), Cause>>,
    url: BrokerUrl,
    limits: Limits,
}

impl Link {
    /// Connects and authenticates.
    pub async fn connect(dsn: &Dsn, url: &BrokerUrl, limits: &Limits) -> Result<Self, Error> {
        let (client, connection) = connect::open(dsn, url).await?;
        let driver = tokio::spawn(connection);
        Ok(Self { client, driver, url: url.clone(), limits: *limits })
    }

    /// One round trip for the batch.
    pub async fn publish(&mut self, batch: &[Outgoing]) -> Result<Vec<Verdict>, Error> {
        let mut notifications = Notifications::with_capacity(batch.len());
        let unfit: Vec<Option<Unfit>> =
            batch.iter().map(|outgoing| notifications.add(outgoing).err()).collect();
        let taken = if notifications.is_empty() {
            Verdict::Taken(Receipt::default())
        } else {
            self.notify(&notifications).await?
        };
        let verdicts = unfit.into_iter().map(|unfit| match unfit {
            None => taken.clone(),
            Some(Unfit(why)) => Verdict::Refused(Error::Rejected(why.to_owned())),
        });
        Ok(verdicts.collect())
    }

    async fn notify(&mut self, notifications: &Notifications<'_>) -> Result<Verdict, Error> {
        let Notifications { channels, texts, .. } = notifications;
        let pairs: Parameters<'_> = &[(channels, Type::TEXT_ARRAY), (texts, Type::TEXT_ARRAY)];
        let notified = self.client.execute_typed(NOTIFY, pairs);
        match tokio::time::timeout(self.limits.publish_timeout, notified).await {
            Ok(Ok(_)) => Ok(Verdict::Taken(Receipt::default())),
            Ok(Err(error)) => match errors::verdict(&error, &self.url) {
                Some(verdict) => Ok(verdict),
                None => Err(self.lost(&error).await),
            },
            Err(_) => Err(Error::Timeout {
                url: self.url.shown.clone(),
                after: self.limits.publish_timeout,
            }),
        }
    }

    /// What is kept of uploads: nothing.
    pub fn read(asks: &[Ask]) -> Vec<Result<Option<Past>, Error>> {
        vec![Ok(None); asks.len()]
    }

    /// Whether the server has closed the connection.
    pub fn is_lost(&self) -> bool {
        self.driver.is_finished()
    }

    /// Why the connection ended. The server's last word says more than that it is closed.
    async fn lost(&mut self, error: &Cause) -> Error {
        if error.is_closed()
            && let Ok(Ok(Err(cause))) =
                tokio::time::timeout(self.limits.publish_timeout, &mut self.driver).await
        {
            return errors::of_losing(&cause, &self.url);
        }
        errors::of_losing(error, &self.url)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
