//! A batch as runs of messages that one statement publishes: what is recorded, and what is not.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error as Cause};

use super::batch::{Notifications, Unfit};
use super::history::{self, Records};
use crate::broker::Verdict;
use crate::config::Limits;
use crate::error::Error;
use crate::message::Outgoing;
use crate::post::Receipt;

/// What is recorded is read after a lock was waited for, as it is then, whatever the role's default.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
/// A transaction of nothing else does not wait for the disk: nothing of a notification survives a crash.
const NOTIFY: &str = "SELECT count(pg_notify(channel, text)) FROM \
    unnest($1, $2) AS notifications(channel, text)";

/// What a statement is given, with its types: no round trip is spent on asking for them.
type Parameters<'p> = &'p [(&'p (dyn ToSql + Sync), Type)];

/// The runs of a batch, and the verdicts on messages that are in none of them. `history` says whether
/// anything may be recorded.
pub fn sort<'a>(
    batch: &'a [Outgoing],
    history: Option<&Result<(), Error>>,
) -> (Vec<Run<'a>>, Vec<Option<Verdict>>) {
    let mut runs: Vec<Run<'a>> = Vec::new();
    let mut verdicts = vec![None; batch.len()];
    for (at, outgoing) in batch.iter().enumerate() {
        if let (Some(_), Some(Err(error))) = (&outgoing.record, history) {
            verdicts[at] = Some(Verdict::Refused(error.clone()));
            continue;
        }
        if runs.last().is_none_or(|run| !run.takes(outgoing)) {
            runs.push(Run::of(outgoing, batch.len() - at));
        }
        let added = runs.last_mut().map(|run| run.add(at, outgoing));
        if let Some(Err(Unfit(why))) = added {
            verdicts[at] = Some(Verdict::Refused(Error::Rejected(why.to_owned())));
        }
    }
    runs.retain(|run| !run.at.is_empty());
    (runs, verdicts)
}

/// Publishes runs in one transaction, in their order. They are sent at once. The receipts of each; None
/// if the database answers otherwise than it should.
pub async fn publish(
    runs: &[Run<'_>],
    client: &Client,
    limits: &Limits,
) -> Result<Option<Vec<Vec<Receipt>>>, Cause> {
    let mut begun = InTurn::new(client.batch_execute(BEGIN));
    let ran = runs.iter().map(|run| InTurn::new(run.publish(client, limits)));
    let mut ran: Vec<_> = ran.collect();
    let mut ended = InTurn::new(client.batch_execute("COMMIT"));
    std::future::poll_fn(|context| {
        let mut done = begun.poll(context);
        for run in &mut ran {
            done &= run.poll(context);
        }
        done &= ended.poll(context);
        if done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let mut causes = Vec::new();
    let mut receipts = Vec::with_capacity(runs.len());
    causes.extend(begun.outcome.and_then(Result::err));
    for run in ran {
        match run.outcome {
            Some(Ok(of_run)) => receipts.push(of_run),
            Some(Err(cause)) => causes.push(cause),
            None => {}
        }
    }
    causes.extend(ended.outcome.and_then(Result::err));
    // What comes after a failure only says that there was one.
    let is_cause = |cause: &Cause| cause.code() != Some(&SqlState::IN_FAILED_SQL_TRANSACTION);
    match causes.into_iter().find(is_cause) {
        Some(cause) => Err(cause),
        None => Ok(receipts.into_iter().collect()),
    }
}

/// Messages that one statement publishes.
pub struct Run<'a> {
    /// Where in the batch they are.
    pub at: Vec<usize>,
    what: What<'a>,
}

enum What<'a> {
    Plain(Notifications<'a>),
    Recorded(Records<'a>),
}

impl<'a> Run<'a> {
    /// One that takes this message, and up to so many.
    fn of(outgoing: &Outgoing, most: usize) -> Self {
        let what = match &outgoing.record {
            None => What::Plain(Notifications::with_capacity(most)),
            Some(record) => What::Recorded(Records::new(record.source)),
        };
        Self { at: Vec::with_capacity(most), what }
    }

    /// Its messages as runs of an upload each, in the order of their first messages.
    pub fn by_upload<'b>(&self, batch: &'b [Outgoing]) -> Vec<(&'b str, Run<'b>)> {
        let mut runs: Vec<(&'b str, Run<'b>)> = Vec::new();
        for at in &self.at {
            let Some(outgoing) = batch.get(*at) else { continue };
            let upload = outgoing.record.as_ref().map_or("", |record| &*record.upload);
            let known = runs.iter().position(|(other, _)| *other == upload);
            let index = known.unwrap_or_else(|| {
                runs.push((upload, Run::of(outgoing, 1)));
                runs.len() - 1
            });
            // What could be added once can be added again.
            let _added = runs[index].1.add(*at, outgoing);
        }
        runs
    }

    /// Whether its messages are recorded.
    pub fn is_recorded(&self) -> bool {
        matches!(self.what, What::Recorded(_))
    }

    fn takes(&self, outgoing: &Outgoing) -> bool {
        match (&self.what, &outgoing.record) {
            (What::Plain(_), None) => true,
            (What::Recorded(records), Some(record)) => records.source() == record.source,
            _ => false,
        }
    }

    fn add(&mut self, at: usize, outgoing: &'a Outgoing) -> Result<(), Unfit> {
        match (&mut self.what, &outgoing.record) {
            (What::Plain(notifications), _) => notifications.add(outgoing)?,
            (What::Recorded(records), Some(record)) => records.add(outgoing, record)?,
            (What::Recorded(_), None) => return Err(Unfit("it is not to be recorded")),
        }
        self.at.push(at);
        Ok(())
    }

    /// Publishes them. A receipt for each; None if the database answers otherwise than it should.
    pub async fn publish(
        &self,
        client: &Client,
        limits: &Limits,
    ) -> Result<Option<Vec<Receipt>>, Cause> {
        match &self.what {
            What::Plain(Notifications { channels, texts, .. }) => {
                let pairs: Parameters<'_> =
                    &[(channels, Type::TEXT_ARRAY), (texts, Type::TEXT_ARRAY)];
                client.execute_typed(NOTIFY, pairs).await?;
                Ok(Some(vec![Receipt::default(); self.at.len()]))
            }
            What::Recorded(records) => {
                let rows = records.publish(client, limits).await?;
                let receipts: Option<Vec<_>> = rows.iter().map(history::taken).collect();
                Ok(receipts.filter(|receipts| receipts.len() == self.at.len()))
            }
        }
    }
}

/// Something that is asked together with others: its first step sends it.
struct InTurn<'f, T> {
    future: Pin<Box<dyn Future<Output = T> + Send + 'f>>,
    outcome: Option<T>,
}

impl<'f, T> InTurn<'f, T> {
    fn new(future: impl Future<Output = T> + Send + 'f) -> Self {
        Self { future: Box::pin(future), outcome: None }
    }

    /// Whether it is done.
    fn poll(&mut self, context: &mut Context<'_>) -> bool {
        if self.outcome.is_none()
            && let Poll::Ready(outcome) = self.future.as_mut().poll(context)
        {
            self.outcome = Some(outcome);
        }
        self.outcome.is_some()
    }
}
