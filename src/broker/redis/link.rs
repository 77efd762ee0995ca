//! The publishing side: pipelined `PUBLISH` over the `redis` crate's multiplexed connection.

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ConnectionInfo, ErrorKind, Pipeline, RedisError, ServerErrorKind, Value,
};
use tokio::task::JoinHandle;

use super::connect;
use crate::config::{BrokerUrl, Limits};
use crate::error::Error;
use crate::message::Outgoing;

/// A connection that publishes.
pub struct Link {
    connection: MultiplexedConnection,
    /// Reads and writes the socket; it ends when the connection does.
    driver: JoinHandle<()>,
    url: BrokerUrl,
    limits: Limits,
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
        Ok(Self { connection, driver: tokio::spawn(driver), url: url.clone(), limits: *limits })
    }

    /// One round trip for the batch.
    pub async fn publish(&mut self, batch: &[Outgoing]) -> Result<Vec<Result<(), Error>>, Error> {
        let mut pipeline = Pipeline::with_capacity(batch.len());
        for outgoing in batch {
            pipeline.cmd("PUBLISH").arg(&*outgoing.channel).arg(&*outgoing.payload);
        }
        let values = self.connection.send_packed_commands(&pipeline, 0, batch.len()).await;
        let values = values.map_err(|error| describe(&error, &self.url, &self.limits))?;
        if values.len() != batch.len() {
            let reason = format!("{} answers to {} messages", values.len(), batch.len());
            return Err(Error::Unreachable { url: self.url.shown.clone(), reason });
        }
        Ok(values.into_iter().map(|value| self.verdict(value)).collect())
    }

    /// Whether the server has closed the connection.
    pub fn is_lost(&self) -> bool {
        self.driver.is_finished()
    }

    fn verdict(&self, value: Value) -> Result<(), Error> {
        match value {
            Value::ServerError(error) => {
                match describe(&error.into(), &self.url, &self.limits) {
                    Error::Refused { reason, .. } => Err(Error::Rejected(reason)),
                    passing => Err(passing), // LOADING and the like
                }
            }
            Value::Int(_receivers) => Ok(()),
            _ => Err(Error::Refused {
                url: self.url.shown.clone(),
                reason: "not a Redis server: it does not answer PUBLISH with a number".into(),
            }),
        }
    }
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
        | ErrorKind::Extension
        | ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::ResponseError) => {
            Error::Refused { url, reason }
        }
        // Non-exhaustive in the crate: what it adds counts as "may pass".
        _ => Error::Unreachable { url, reason },
    }
}
