//! The publishing side: pipelined `PUBLISH` over the `redis` crate's multiplexed connection, or the
//! script that also records.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ConnectionInfo, ErrorKind, Pipeline, RedisError, ServerError,
    ServerErrorKind, Value,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::connect;
use super::history::{self, Before, Scripts};
use crate::broker::Verdict;
use crate::config::{BrokerUrl, Limits};
use crate::error::Error;
use crate::history::{Ask, Past};
use crate::latest::Known;
use crate::message::Outgoing;
use crate::post::Receipt;

/// How long a server that refuses the scripts is not asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A connection that publishes.
pub struct Link {
    connection: MultiplexedConnection,
    /// Reads and writes the socket; it ends when the connection does.
    driver: JoinHandle<()>,
    url: BrokerUrl,
    limits: Limits,
    /// Those for the history; None before the server has been told, and where it refuses them.
    scripts: Option<Scripts>,
    /// Why it refuses them, and when it said so: what is to be recorded is refused for a while.
    refusal: Option<(Error, Instant)>,
    /// Whether each recorded message has a call of its own, as in a cluster.
    alone: bool,
}

impl Link {
    /// Connects and authenticates.
    pub async fn connect(
        info: &ConnectionInfo,
        url: &BrokerUrl,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let stream = connect::open(info, url).await?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None) // the caller has one for all of this
            .set_response_timeout(Some(limits.publish_timeout));
        let (connection, driver) =
            MultiplexedConnection::new_with_config(info.redis_settings(), stream, config)
                .await
                .map_err(|error| describe(&error, url, limits))?;
        let (driver, url) = (tokio::spawn(driver), url.clone());
        let mut link = Self {
            connection,
            driver,
            url,
            limits: *limits,
            scripts: None,
            refusal: None,
            alone: false,
        };
        if info.redis_settings().password().is_none() {
            link.knock().await?;
        }
        if limits.history.is_some() {
            link.load().await?;
        }
        Ok(link)
    }

    /// Asks whether a password is wanted. Who has none learns it here, and not from each message.
    async fn knock(&mut self) -> Result<(), Error> {
        match redis::cmd("PING").exec_async(&mut self.connection).await {
            // Whatever else the server says against it, the messages will tell.
            Err(error) if error.code().is_none_or(|code| code == "NOAUTH") => {
                Err(describe(&error, &self.url, &self.limits))
            }
            _ => Ok(()),
        }
    }

    /// One round trip for the batch.
    pub async fn publish(&mut self, batch: &[Outgoing]) -> Result<Vec<Verdict>, Error> {
        let refusal = if batch.iter().any(|outgoing| outgoing.record.is_some()) {
            self.load().await?
        } else {
            None
        };
        let mut pipeline = Pipeline::with_capacity(batch.len());
        let mut before = Before::default();
        let mut parts = Vec::new();
        let mut at = 0;
        while let Some(outgoing) = batch.get(at) {
            let part = match (&outgoing.record, &self.scripts) {
                (Some(_), Some(scripts)) => {
                    let most = if self.alone { at + 1 } else { batch.len() };
                    Part::Recorded(scripts.publish(&mut pipeline, &batch[at..most], &before))
                }
                (Some(_), None) => Part::Refused,
                _ => {
                    pipeline.cmd("PUBLISH").arg(&*outgoing.channel).arg(&*outgoing.payload);
                    Part::Plain
                }
            };
            let next = at + part.len();
            if next < batch.len() {
                before.add(&batch[at..next]);
            }
            at = next;
            parts.push(part);
        }
        let mut values = self.send(&pipeline).await?.into_iter();
        let mut verdicts = Vec::with_capacity(batch.len());
        for part in parts {
            match (part, &refusal) {
                (Part::Refused, Some(error)) => verdicts.push(Verdict::Refused(error.clone())),
                (Part::Refused | Part::Plain, _) => {
                    verdicts.push(self.verdict(values.next().unwrap_or(Value::Nil), None));
                }
                (Part::Recorded(count), _) => {
                    let answers = each(values.next().unwrap_or(Value::Nil), count);
                    self.alone |= answers.iter().any(|answer| {
                        matches!(answer, Value::ServerError(error) if is_of_a_cluster(error.code()))
                    });
                    let known = batch[verdicts.len()..].iter().map(|outgoing| {
                        outgoing.record.as_ref().map_or(Known::Nothing, |record| record.known)
                    });
                    let answers = answers.into_iter().zip(known);
                    verdicts.extend(answers.map(|(value, known)| self.verdict(value, Some(known))));
                }
            }
        }
        let forgotten = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Again));
        if forgotten {
            // The answers that are there count, whatever becomes of this.
            self.scripts = None;
        }
        Ok(verdicts)
    }

    /// What is kept of uploads, in one round trip.
    pub async fn read(&mut self, asks: &[Ask]) -> Result<Vec<Result<Option<Past>, Error>>, Error> {
        let mut pasts = self.read_once(asks).await?;
        if pasts.iter().any(Option::is_none) {
            self.scripts = None;
            pasts = self.read_once(asks).await?;
        }
        let lost = || self.lost("the server forgets its scripts".to_owned());
        Ok(pasts.into_iter().map(|past| past.unwrap_or_else(|| Err(lost()))).collect())
    }

    /// None is what the server could not do because it had forgotten the scripts.
    async fn read_once(
        &mut self,
        asks: &[Ask],
    ) -> Result<Vec<Option<Result<Option<Past>, Error>>>, Error> {
        if let Some(refusal) = self.load().await? {
            return Ok(vec![Some(Err(refusal)); asks.len()]);
        }
        let mut pipeline = Pipeline::with_capacity(asks.len());
        if let Some(scripts) = &self.scripts {
            for ask in asks {
                scripts.read(&mut pipeline, ask);
            }
        }
        let values = self.send(&pipeline).await?;
        Ok(values.into_iter().map(|value| self.past(value)).collect())
    }

    /// Has the server told the scripts, if it was not yet. It may refuse them, and is then asked again
    /// only after a while; one that cannot be asked now is an error.
    async fn load(&mut self) -> Result<Option<Error>, Error> {
        if self.scripts.is_some() {
            return Ok(None);
        }
        if let Some((refusal, when)) = &self.refusal
            && when.elapsed() < ASK_AGAIN
        {
            return Ok(Some(refusal.clone()));
        }
        let settings = self.limits.history.unwrap_or_default();
        let loaded = history::load(&mut self.connection, settings).await;
        match loaded.map_err(|error| describe(&error, &self.url, &self.limits)) {
            Ok(scripts) => (self.scripts, self.refusal) = (Some(scripts), None),
            Err(Error::Refused { reason, .. }) => {
                self.refusal = Some((Error::Rejected(reason), Instant::now()));
            }
            Err(error) => return Err(error),
        }
        Ok(self.refusal.as_ref().map(|(refusal, _)| refusal.clone()))
    }

    async fn send(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, Error> {
        let count = pipeline.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        let values = self.connection.send_packed_commands(pipeline, 0, count).await;
        let values = values.map_err(|error| describe(&error, &self.url, &self.limits))?;
        if values.len() != count {
            return Err(self.lost(format!("{} answers to {count} commands", values.len())));
        }
        Ok(values)
    }

    fn lost(&self, reason: String) -> Error {
        Error::Unreachable { url: self.url.shown.clone(), reason }
    }

    /// Whether the server has closed the connection.
    pub fn is_lost(&self) -> bool {
        self.driver.is_finished()
    }

    /// What an answer means; `recorded` is what was known of a message that the script was given.
    fn verdict(&self, value: Value, recorded: Option<Known>) -> Verdict {
        let strange = |command| {
            let reason = format!("not a Redis server: it does not answer {command} as one does");
            Verdict::Refused(Error::Refused { url: self.url.shown.clone(), reason })
        };
        match (value, recorded) {
            (Value::ServerError(error), Some(_))
                if is_forgotten(error.code()) || is_of_a_cluster(error.code()) =>
            {
                Verdict::Again
            }
            (Value::ServerError(error), _) => Verdict::Refused(self.complaint(error)),
            (value, Some(known)) => {
                history::taken(&value, known).unwrap_or_else(|| strange("EVALSHA"))
            }
            (Value::Int(receivers), None) => {
                let receivers = u64::try_from(receivers).ok();
                Verdict::Taken(Receipt { receivers, ..Receipt::default() })
            }
            _ => strange("PUBLISH"),
        }
    }

    fn past(&self, value: Value) -> Option<Result<Option<Past>, Error>> {
        let strange = || Error::Rejected("what it keeps of the upload is not fanwire's".to_owned());
        match value {
            Value::ServerError(error) if is_forgotten(error.code()) => None,
            Value::ServerError(error) => Some(Err(self.complaint(error))),
            Value::Nil => Some(Ok(None)),
            value => Some(history::past(value).map(Some).ok_or_else(strange)),
        }
    }

    fn complaint(&self, error: ServerError) -> Error {
        match describe(&error.into(), &self.url, &self.limits) {
            Error::Refused { reason, .. } => Error::Rejected(reason),
            passing => passing, // LOADING and the like
        }
    }
}

/// What a batch becomes on the wire.
enum Part {
    /// One message.
    Plain,
    /// So many, which the script publishes.
    Recorded(usize),
    /// One that the server does not let us record.
    Refused,
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Plain | Self::Refused => 1,
            Self::Recorded(count) => (*count).max(1),
        }
    }
}

/// The script's answers; one for all of them if it did not run.
fn each(value: Value, count: usize) -> Vec<Value> {
    match value {
        Value::Array(values) if values.len() == count => values,
        other => vec![other; count.max(1)],
    }
}

/// In a cluster a script takes the keys of one upload only.
fn is_of_a_cluster(code: &str) -> bool {
    code == "CROSSSLOT"
}

fn is_forgotten(code: &str) -> bool {
    code == "NOSCRIPT"
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The crate's error in the words of ours.
fn describe(error: &RedisError, broker: &BrokerUrl, limits: &Limits) -> Error {
    let url = broker.shown.clone();
    if error.is_timeout() {
        return Error::Timeout { url, after: limits.publish_timeout };
    }
    let reason = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    };
    let reason = match error.kind() {
        ErrorKind::Parse => format!("not a Redis server: {reason}"),
        _ => reason,
    };
    let reason = broker.scrub(&reason);
    match error.kind() {
        ErrorKind::AuthenticationFailed
        | ErrorKind::Parse
        | ErrorKind::RESP3NotSupported
        | ErrorKind::InvalidClientConfig
        | ErrorKind::UnexpectedReturnType
        | ErrorKind::Server(
            ServerErrorKind::NoPerm | ServerErrorKind::ResponseError | ServerErrorKind::CrossSlot,
        ) => Error::Refused { url, reason },
        ErrorKind::Extension if !may_pass(&reason) => Error::Refused { url, reason },
        // Non-exhaustive in the crate: what it adds counts as "may pass".
        _ => Error::Unreachable { url, reason },
    }
}

/// Of the complaints that the crate does not know, those that time can mend. Up to Redis 6.2 a script
/// gives them with the dash that they are marked with.
fn may_pass(reason: &str) -> bool {
    let code = reason.trim_start_matches('-').split_whitespace().next().unwrap_or_default();
    ["BUSY", "OOM", "MISCONF", "NOREPLICAS", "READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN"]
        .contains(&code)
}
