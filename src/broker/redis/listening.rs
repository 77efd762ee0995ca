//! The receiving side: one connection, subscribed by pattern, read by `resp.rs`.

use bytes::{Buf, BytesMut};
use redis::{ConnectionInfo, ProtocolVersion, RedisConnectionInfo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connect::{self, Duplex};
use super::resp::{self, Event};
use crate::broker::BATCH;
use crate::config::BrokerUrl;
use crate::error::Error;
use crate::router::Inbound;

/// Room for one read: several hundred progress messages, and still in the processor's cache.
const READ_SIZE: usize = 64 << 10;
/// A buffer that one large message made larger than this is given back.
const KEEP_SIZE: usize = 1 << 20;

/// A subscribed connection.
pub struct Listening {
    stream: Box<dyn Duplex>,
    buffer: BytesMut,
    url: String,
}

impl Listening {
    /// Connects, authenticates and subscribes; returns once the subscription is acknowledged.
    pub async fn connect(
        info: &ConnectionInfo,
        url: &BrokerUrl,
        patterns: &[&str],
    ) -> Result<Self, Error> {
        let stream = connect::open(info, url).await?;
        let buffer = BytesMut::with_capacity(READ_SIZE);
        let mut listening = Self { stream, buffer, url: url.shown.clone() };
        // One write, one wait. Answers come in order: one each for what comes before PSUBSCRIBE.
        let greeting = greeting(info.redis_settings());
        let mut subscribe = redis::cmd("PSUBSCRIBE");
        subscribe.arg(patterns);
        let mut bytes: Vec<u8> =
            greeting.iter().flat_map(|(command, _)| command.get_packed_command()).collect();
        bytes.extend(subscribe.get_packed_command());
        listening
            .stream
            .write_all(&bytes)
            .await
            .map_err(|error| listening.lost(&error.to_string()))?;
        for (_, required) in greeting {
            listening.answer(required).await?;
        }
        for _ in patterns {
            listening.answer(true).await?;
        }
        Ok(listening)
    }

    /// Waits for messages and hands them over, in order, in batches.
    pub async fn next(
        &mut self,
        deliver: &mut (dyn for<'a> FnMut(&[Inbound<'a>]) + Send),
    ) -> Result<(), Error> {
        let consumed = self.deliver_buffered(deliver)?;
        self.buffer.advance(consumed);
        if self.buffer.is_empty() && self.buffer.capacity() > KEEP_SIZE {
            self.buffer = BytesMut::with_capacity(READ_SIZE);
        }
        self.fill().await
    }

    fn deliver_buffered(
        &self,
        deliver: &mut (dyn for<'a> FnMut(&[Inbound<'a>]) + Send),
    ) -> Result<usize, Error> {
        let mut at = 0;
        let mut batch: Vec<Inbound<'_>> = Vec::with_capacity(BATCH);
        while let Some((event, size)) =
            resp::read(&self.buffer[at..]).map_err(|error| self.lost(&error.to_string()))?
        {
            at += size;
            match event {
                Event::Message(inbound) => {
                    batch.push(inbound);
                    if batch.len() == BATCH {
                        deliver(&batch);
                        batch.clear();
                    }
                }
                Event::Error(text) => return Err(self.complaint(text)),
                Event::Subscribed | Event::Other => {}
            }
        }
        if !batch.is_empty() {
            deliver(&batch);
        }
        Ok(at)
    }

    /// Waits for one answer during the handshake.
    async fn answer(&mut self, required: bool) -> Result<(), Error> {
        loop {
            match resp::read(&self.buffer) {
                Ok(Some((event, size))) => {
                    let refused = match event {
                        Event::Error(text) if required => Some(self.complaint(text)),
                        Event::Error(_) | Event::Subscribed | Event::Other | Event::Message(_) => {
                            None
                        }
                    };
                    self.buffer.advance(size);
                    return refused.map_or(Ok(()), Err);
                }
                Ok(None) => self.fill().await?,
                Err(error) => {
                    return Err(Error::Refused {
                        url: self.url.clone(),
                        reason: error.to_string(),
                    });
                }
            }
        }
    }

    async fn fill(&mut self) -> Result<(), Error> {
        self.buffer.reserve(READ_SIZE);
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err(self.lost("the server closed the connection")),
            Ok(_) => Ok(()),
            Err(error) => Err(self.lost(&error.to_string())),
        }
    }

    fn lost(&self, reason: &str) -> Error {
        Error::Unreachable { url: self.url.clone(), reason: reason.to_owned() }
    }

    /// An error line of the server. Those that time can mend are told from those it cannot.
    fn complaint(&self, text: &[u8]) -> Error {
        let reason = String::from_utf8_lossy(text).into_owned();
        let passing = [
            "LOADING",
            "MASTERDOWN",
            "BUSY",
            "TRYAGAIN",
            "CLUSTERDOWN",
            "ERR max number of clients",
        ];
        if passing.iter().any(|start| reason.starts_with(start)) {
            self.lost(&reason)
        } else {
            Error::Refused { url: self.url.clone(), reason }
        }
    }
}

/// What is sent before the subscription, and whether it must succeed.
fn greeting(settings: &RedisConnectionInfo) -> Vec<(redis::Cmd, bool)> {
    let mut commands = Vec::new();
    let credentials = settings.password().map(|password| (settings.username(), password));
    if settings.protocol() == ProtocolVersion::RESP3 {
        let mut hello = redis::cmd("HELLO");
        hello.arg(3);
        if let Some((username, password)) = credentials {
            hello.arg("AUTH").arg(username.unwrap_or("default")).arg(password);
        }
        commands.push((hello, true));
    } else if let Some((username, password)) = credentials {
        let mut auth = redis::cmd("AUTH");
        if let Some(username) = username {
            auth.arg(username);
        }
        auth.arg(password);
        commands.push((auth, true));
    }
    // For whoever reads CLIENT LIST; a server that refuses it is none the worse.
    let mut name = redis::cmd("CLIENT");
    name.arg("SETNAME").arg("fanwire-listener");
    commands.push((name, false));
    commands
}
