//! The publishing side.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error as Cause};

use super::dsn::Dsn;
use super::runs::{self, Run};
use super::socket::Reading;
use super::{connect, errors, history, schema};
use crate::broker::Verdict;
use crate::config::{BrokerUrl, Limits};
use crate::error::Error;
use crate::history::{Ask, Past};
use crate::message::Outgoing;
use crate::post::Receipt;

/// How long a database that refuses the tables is not asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A connection that publishes.
pub struct Link {
    client: Client,
    /// Reads and writes the socket; it ends when the connection does.
    driver: JoinHandle<Result<(), Cause>>,
    url: BrokerUrl,
    limits: Limits,
    /// Whether the tables for a history were seen. Where we may not use them, what is to be recorded is
    /// refused.
    history: Option<Result<(), Error>>,
    /// Whether some of the tables or functions turned out to be missing.
    broken: bool,
    /// When that was asked for.
    asked: Instant,
    /// Why the last statement had to wait for somebody's lock in vain.
    locked: Option<Error>,
    /// Whether transactions of this role see what was there when they began, and nothing later: then
    /// what is recorded needs one that is told otherwise.
    frozen: bool,
}

impl Link {
    /// Connects and authenticates.
    pub async fn connect(dsn: &Dsn, url: &BrokerUrl, limits: &Limits) -> Result<Self, Error> {
        let (client, connection) =
            connect::open(dsn, url, limits.connect_timeout, Reading::AtOnce).await?;
        let driver = tokio::spawn(connection);
        let mut link = Self {
            client,
            driver,
            url: url.clone(),
            limits: *limits,
            history: None,
            broken: false,
            asked: Instant::now(),
            locked: None,
            frozen: false,
        };
        if limits.history.is_some() {
            link.prepare().await?;
        }
        Ok(link)
    }

    /// One round trip and one transaction for the batch.
    pub async fn publish(&mut self, batch: &[Outgoing]) -> Result<Vec<Verdict>, Error> {
        if batch.iter().any(|outgoing| outgoing.record.is_some()) && self.is_unprepared() {
            let limit = self.limits.publish_timeout;
            let prepared = tokio::time::timeout(limit, self.prepare()).await;
            prepared.unwrap_or_else(|_| Err(self.late()))?;
        }
        let (runs, mut verdicts) = runs::sort(batch, self.history.as_ref());
        let outcomes = match &runs[..] {
            [] => Vec::new(),
            [run] => vec![self.alone(run).await?],
            runs => match self.together(runs).await? {
                Ok(receipts) => receipts.into_iter().map(Ok).collect(),
                // Which of them it was that is not allowed, or has to wait, each says by itself.
                Err(Verdict::Refused(Error::Rejected(_)) | Verdict::Behind) => {
                    self.one_by_one(runs).await?
                }
                Err(verdict) => vec![Err(verdict); runs.len()],
            },
        };
        // Uploads of which something is to be sent again: nothing of theirs is sent before that.
        let mut open: HashMap<&str, Verdict> = HashMap::new();
        for (run, outcome) in runs.iter().zip(outcomes) {
            match outcome {
                Err(Verdict::Behind) => {
                    for (of_upload, outcome) in self.by_upload(run, batch, &mut open).await? {
                        for (index, at) in of_upload.at.iter().enumerate() {
                            verdicts[*at] = Some(match &outcome {
                                Ok(receipts) => Verdict::Taken(receipts[index]),
                                Err(verdict) => verdict.clone(),
                            });
                        }
                    }
                }
                Ok(receipts) => {
                    for (at, receipt) in run.at.iter().zip(receipts) {
                        verdicts[*at] = Some(Verdict::Taken(receipt));
                    }
                }
                Err(verdict) => {
                    for at in &run.at {
                        verdicts[*at] = Some(verdict.clone());
                    }
                }
            }
        }
        let strange =
            || Verdict::Refused(Error::Rejected("the database says nothing of it".into()));
        Ok(verdicts.into_iter().map(|verdict| verdict.unwrap_or_else(strange)).collect())
    }

    /// Runs in a transaction each.
    async fn one_by_one(
        &mut self,
        runs: &[Run<'_>],
    ) -> Result<Vec<Result<Vec<Receipt>, Verdict>>, Error> {
        let mut outcomes: Vec<Result<Vec<Receipt>, Verdict>> = Vec::with_capacity(runs.len());
        for run in runs {
            let outcome = match outcomes.last() {
                // Nothing overtakes what is to be sent again.
                Some(Err(
                    later @ (Verdict::Again | Verdict::Refused(Error::Unreachable { .. })),
                )) => Err(later.clone()),
                _ if run.is_recorded() && outcomes.iter().any(is_behind) => Err(Verdict::Behind),
                _ => self.alone(run).await?,
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// A run of which somebody holds an upload: each upload for itself, so that only that one waits.
    async fn by_upload<'b>(
        &mut self,
        run: &Run<'b>,
        batch: &'b [Outgoing],
        open: &mut HashMap<&'b str, Verdict>,
    ) -> Result<Vec<(Run<'b>, Result<Vec<Receipt>, Verdict>)>, Error> {
        let mut outcomes = Vec::new();
        for (upload, of_upload) in run.by_upload(batch) {
            let outcome = match open.get(upload) {
                Some(verdict) => Err(verdict.clone()),
                None => self.alone(&of_upload).await?,
            };
            let outcome = match (outcome, self.locked.take()) {
                (Err(Verdict::Behind), Some(error)) => Err(Verdict::Refused(error)),
                (outcome, _) => outcome,
            };
            if let Err(verdict @ (Verdict::Again | Verdict::Refused(Error::Unreachable { .. }))) =
                &outcome
            {
                open.insert(upload, verdict.clone());
            }
            outcomes.push((of_upload, outcome));
        }
        Ok(outcomes)
    }

    /// Whether it is to be asked for the tables.
    fn is_unprepared(&self) -> bool {
        match &self.history {
            None => true,
            Some(Ok(())) => false,
            Some(Err(_)) => self.asked.elapsed() >= ASK_AGAIN,
        }
    }

    /// A run in a transaction of its own.
    async fn alone(&mut self, run: &Run<'_>) -> Result<Result<Vec<Receipt>, Verdict>, Error> {
        if self.frozen && run.is_recorded() {
            let outcome = self.together(std::slice::from_ref(run)).await?;
            return Ok(outcome.map(|receipts| receipts.into_iter().flatten().collect()));
        }
        let ran = run.publish(&self.client, &self.limits);
        match tokio::time::timeout(self.limits.publish_timeout, ran).await {
            Ok(Ok(receipts)) => Ok(receipts.ok_or_else(|| self.strange())),
            Ok(Err(error)) => self.failed(&error).await.map(Err),
            Err(_) => Err(self.late()),
        }
    }

    /// Runs in one transaction.
    async fn together(
        &mut self,
        runs: &[Run<'_>],
    ) -> Result<Result<Vec<Vec<Receipt>>, Verdict>, Error> {
        let ran = runs::publish(runs, &self.client, &self.limits);
        match tokio::time::timeout(self.limits.publish_timeout, ran).await {
            Ok(Ok(receipts)) => Ok(receipts.ok_or_else(|| self.strange())),
            Ok(Err(cause)) => self.failed(&cause).await.map(Err),
            Err(_) => Err(self.late()),
        }
    }

    /// What a failed transaction means for its messages; an error if it is the connection that failed.
    async fn failed(&mut self, cause: &Cause) -> Result<Verdict, Error> {
        let is_gone = |state: &SqlState| {
            [SqlState::UNDEFINED_FUNCTION, SqlState::UNDEFINED_TABLE].contains(state)
        };
        if cause.code().is_some_and(is_gone) && matches!(self.history, Some(Ok(()))) {
            // Somebody has dropped some of them, which are made anew.
            (self.history, self.broken) = (None, true);
            return Ok(Verdict::Again);
        }
        // Another has recorded something of the same upload meanwhile.
        self.frozen |= cause.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE);
        if cause.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
            self.locked = Some(errors::of_losing(cause, &self.url));
            return Ok(Verdict::Behind);
        }
        match errors::verdict(cause, &self.url) {
            Some(verdict) => Ok(verdict),
            None => Err(self.lost(cause).await),
        }
    }

    /// What is kept of uploads, in one round trip.
    pub async fn read(&mut self, asks: &[Ask]) -> Result<Vec<Result<Option<Past>, Error>>, Error> {
        let limit = self.limits.publish_timeout;
        let answer = tokio::time::timeout(limit, self.read_prepared(asks)).await;
        answer.unwrap_or_else(|_| Err(self.late()))
    }

    async fn read_prepared(
        &mut self,
        asks: &[Ask],
    ) -> Result<Vec<Result<Option<Past>, Error>>, Error> {
        if self.is_unprepared() {
            self.prepare().await?;
        }
        if let Some(Err(error)) = &self.history {
            return Ok(vec![Err(error.clone()); asks.len()]);
        }
        let error = match history::read(&self.client, asks).await {
            Ok(rows) => {
                let strange =
                    || Error::Rejected("what it keeps of uploads is not fanwire's".to_owned());
                let Some(pasts) = history::pasts(&rows, asks.len()) else {
                    return Ok(vec![Err(strange()); asks.len()]);
                };
                return Ok(pasts.into_iter().map(Ok).collect());
            }
            Err(error) => error,
        };
        match self.failed(&error).await? {
            Verdict::Refused(Error::Rejected(reason)) => {
                Ok(vec![Err(Error::Rejected(reason)); asks.len()])
            }
            _ => Err(errors::of_losing(&error, &self.url)),
        }
    }

    /// A database that does not let us is asked again after a while; one that cannot now is an error.
    async fn prepare(&mut self) -> Result<(), Error> {
        self.asked = Instant::now();
        self.history = match schema::prepare(&self.client, &self.url, self.broken).await {
            Ok(()) => {
                self.broken = false;
                Some(Ok(()))
            }
            Err(Error::Refused { reason, .. }) => Some(Err(Error::Rejected(reason))),
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// Whether the server has closed the connection.
    pub fn is_lost(&self) -> bool {
        self.driver.is_finished()
    }

    /// Why the connection ended. The server's last word says more than that it is closed.
    async fn lost(&mut self, error: &Cause) -> Error {
        let limit = self.limits.publish_timeout;
        if error.is_closed()
            && let Ok(Ok(Err(cause))) = tokio::time::timeout(limit, &mut self.driver).await
        {
            return errors::of_losing(&cause, &self.url);
        }
        errors::of_losing(error, &self.url)
    }

    fn late(&self) -> Error {
        Error::Timeout { url: self.url.shown.clone(), after: self.limits.publish_timeout }
    }

    fn strange(&self) -> Verdict {
        let reason = "fanwire_record is not the function that fanwire has made".to_owned();
        Verdict::Refused(Error::Refused { url: self.url.shown.clone(), reason })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn is_behind(outcome: &Result<Vec<Receipt>, Verdict>) -> bool {
    matches!(outcome, Err(Verdict::Behind))
}
