//! The receiving side: one connection, subscribed by pattern, read by `resp.rs`.

use std::time::Duration;

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

/// How long a server may be silent before it is asked for a sign of life, and then to give it. Twice
/// this, and the time to connect, stay below the five seconds in which a listener is to be back.
const SILENCE: Duration = Duration::from_millis(1500);

/// A subscribed connection.
pub struct Listening {
    stream: Box<dyn Duplex>,
    buffer: BytesMut,
    url: BrokerUrl,
    /// Whether an answer to a `PING` is awaited.
    probing: bool,
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
        let mut listening = Self { stream, buffer, url: url.clone(), probing: false };
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
            listening.subscribed().await?;
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
        self.probing &= consumed == 0;
        self.fill_or_probe().await
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
                // To be refused a PING is to be answered.
                Event::Error(_) if self.probing => {}
                Event::Error(text) => return Err(self.complaint(text)),
                Event::Subscribed | Event::Other => {}
            }
        }
        if !batch.is_empty() {
            deliver(&batch);
        }
        Ok(at)
    }

    /// Waits for the answer to a command of the greeting.
    async fn answer(&mut self, required: bool) -> Result<(), Error> {
        self.event(|listening, event| match event {
            Event::Error(text) if required => Err(listening.complaint(text)),
            Event::Error(_) | Event::Subscribed | Event::Other | Event::Message(_) => Ok(()),
        })
        .await
    }

    /// Waits for the confirmation of a subscription, which nothing but Redis gives.
    async fn subscribed(&mut self) -> Result<(), Error> {
        self.event(|listening, event| match event {
            Event::Subscribed => Ok(()),
            Event::Error(text) => Err(listening.complaint(text)),
            Event::Other | Event::Message(_) => {
                Err(listening.refused("not a Redis server: it does not confirm PSUBSCRIBE"))
            }
        })
        .await
    }

    async fn event(
        &mut self,
        judge: impl Fn(&Self, Event<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        loop {
            match resp::read(&self.buffer) {
                Ok(Some((event, size))) => {
                    let verdict = judge(self, event);
                    self.buffer.advance(size);
                    return verdict;
                }
                Ok(None) => self.fill().await?,
                Err(error) => return Err(self.refused(&error.to_string())),
            }
        }
    }

    /// Reads more; a server that has been silent is asked for a sign of life. Without it a connection
    /// whose peer vanished without a word would be deaf for ever: nothing is ever written to it.
    async fn fill_or_probe(&mut self) -> Result<(), Error> {
        if let Ok(filled) = tokio::time::timeout(SILENCE, self.fill()).await {
            return filled;
        }
        let ping = redis::cmd("PING").get_packed_command();
        match tokio::time::timeout(SILENCE, self.stream.write_all(&ping)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.lost(&error.to_string())),
            Err(_) => return Err(self.silent()),
        }
        self.probing = true;
        let answered = tokio::time::timeout(SILENCE, self.fill()).await;
        answered.unwrap_or_else(|_| Err(self.silent()))
    }

    fn silent(&self) -> Error {
        Error::Timeout { url: self.url.shown.clone(), after: SILENCE }
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
        Error::Unreachable { url: self.url.shown.clone(), reason: self.url.scrub(reason) }
    }

    fn refused(&self, reason: &str) -> Error {
        Error::Refused { url: self.url.shown.clone(), reason: self.url.scrub(reason) }
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
            self.refused(&reason)
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
