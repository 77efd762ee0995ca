//! The receiving side: one connection, subscribed by pattern and by name, read by `resp.rs`.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use redis::{ConnectionInfo, ProtocolVersion, RedisConnectionInfo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

use super::connect;
use super::resp::{self, Event};
use crate::broker::gathered::Gathered;
use crate::broker::{BATCH, Duplex, Ear, Heard};
use crate::config::BrokerUrl;
use crate::error::Error;
use crate::wishes::Changes;

/// Room for one read: several hundred progress messages, and still in the processor's cache.
const READ_SIZE: usize = 64 << 10;
/// A buffer that one large message made larger than this is given back.
const KEEP_SIZE: usize = 1 << 20;

/// How long a server may be silent before it is asked for a sign of life, and then to give it. Twice
/// this, and the time to connect, stay below the five seconds in which a listener is to be back.
const SILENCE: Duration = Duration::from_millis(1500);

/// Channels named in one command.
const CHANNELS_AT_ONCE: usize = 1024;

/// What was asked and not answered yet; answers come in the order of the questions.
#[derive(Debug)]
enum Asked {
    Ping,
    /// Channels to begin or to end; so many of them were confirmed.
    Subscribe(Vec<Box<str>>, usize),
    Unsubscribe(Vec<Box<str>>, usize),
}

/// A subscribed connection.
pub struct Listening {
    reading: ReadHalf<Box<dyn Duplex>>,
    writing: WriteHalf<Box<dyn Duplex>>,
    buffer: BytesMut,
    /// Commands not written yet.
    unsent: BytesMut,
    /// Whether the stream may keep back some of what was written, as TLS does.
    unflushed: bool,
    asked: VecDeque<Asked>,
    url: BrokerUrl,
    /// When the server will have been silent for too long.
    due: Instant,
    /// Whether nothing has come since a `PING`.
    probing: bool,
}

impl Listening {
    /// Connects, authenticates and subscribes to the patterns; returns once that is confirmed.
    pub async fn connect(
        info: &ConnectionInfo,
        url: &BrokerUrl,
        patterns: &[&str],
    ) -> Result<Self, Error> {
        let (reading, writing) = tokio::io::split(connect::open(info, url).await?);
        let mut listening = Self {
            reading,
            writing,
            buffer: BytesMut::with_capacity(READ_SIZE),
            unsent: BytesMut::new(),
            unflushed: false,
            asked: VecDeque::new(),
            url: url.clone(),
            due: Instant::now() + SILENCE,
            probing: false,
        };
        // One write, one wait. Answers come in order: one each for what comes before PSUBSCRIBE.
        let greeting = greeting(info.redis_settings());
        for (command, _) in &greeting {
            listening.unsent.extend_from_slice(&command.get_packed_command());
        }
        if !patterns.is_empty() {
            let mut subscribe = redis::cmd("PSUBSCRIBE");
            subscribe.arg(patterns);
            listening.unsent.extend_from_slice(&subscribe.get_packed_command());
        }
        for (_, required) in greeting {
            listening.answer(required).await?;
        }
        for _ in patterns {
            listening.subscribed().await?;
        }
        if patterns.is_empty() {
            listening.greet().await?;
        }
        listening.due = Instant::now() + SILENCE;
        Ok(listening)
    }

    /// Begins and ends subscriptions to channels.
    pub fn ask(&mut self, changes: Changes) {
        for channels in changes.end.chunks(CHANNELS_AT_ONCE) {
            self.command("UNSUBSCRIBE", channels);
            self.asked.push_back(Asked::Unsubscribe(channels.to_vec(), 0));
        }
        for channels in changes.begin.chunks(CHANNELS_AT_ONCE) {
            self.subscribe(channels.to_vec());
        }
        for channel in changes.begin_alone {
            self.subscribe(vec![channel]);
        }
    }

    fn subscribe(&mut self, channels: Vec<Box<str>>) {
        self.command("SUBSCRIBE", &channels);
        self.asked.push_back(Asked::Subscribe(channels, 0));
    }

    fn command(&mut self, name: &str, channels: &[Box<str>]) {
        let mut command = redis::cmd(name);
        for channel in channels {
            command.arg(&**channel);
        }
        self.unsent.extend_from_slice(&command.get_packed_command());
    }

    /// Hands over what has come, and waits for more.
    pub async fn next(&mut self, ear: Ear<'_>) -> Result<(), Error> {
        // What came together with the answers to the greeting.
        if self.take_in(ear)? {
            return Ok(());
        }
        match tokio::time::timeout_at(self.due, self.exchange()).await {
            Ok(exchanged) => {
                exchanged?;
                self.take_in(ear)?;
            }
            Err(_) if self.probing => return Err(self.silent()),
            // Without this a connection whose peer vanished without a word would be deaf for ever.
            Err(_) => {
                self.unsent.extend_from_slice(&redis::cmd("PING").get_packed_command());
                self.asked.push_back(Asked::Ping);
                self.probing = true;
                self.due = Instant::now() + SILENCE;
            }
        }
        Ok(())
    }

    /// Hands over what has come. Whether there was anything.
    fn take_in(&mut self, ear: Ear<'_>) -> Result<bool, Error> {
        let consumed = self.hand_over(ear)?;
        self.buffer.advance(consumed);
        if self.buffer.is_empty() && self.buffer.capacity() > KEEP_SIZE {
            self.buffer = BytesMut::with_capacity(READ_SIZE);
        }
        if consumed > 0 {
            self.probing = false;
            self.due = Instant::now() + SILENCE;
        }
        Ok(consumed > 0)
    }

    fn hand_over(&mut self, ear: Ear<'_>) -> Result<usize, Error> {
        // Taken out, so that what is read from it does not borrow the rest.
        let buffer = std::mem::take(&mut self.buffer);
        let consumed = self.hand_over_from(&buffer, ear);
        self.buffer = buffer;
        consumed
    }

    fn hand_over_from(&mut self, bytes: &[u8], ear: Ear<'_>) -> Result<usize, Error> {
        let mut at = 0;
        let mut batch = Gathered::with_capacity(BATCH);
        while let Some((event, size)) =
            resp::read(&bytes[at..]).map_err(|error| self.lost(&error.to_string()))?
        {
            at += size;
            match event {
                Event::Matching(inbound) => batch.add(inbound, false, ear),
                Event::Named(inbound) => batch.add(inbound, true, ear),
                Event::Subscribed(channel) => {
                    batch.hand_over(ear);
                    self.confirm();
                    ear(Heard::Subscribed(channel));
                }
                Event::Unsubscribed(channel) => {
                    batch.hand_over(ear);
                    self.confirm();
                    ear(Heard::Unsubscribed(channel));
                }
                Event::Error(text) => {
                    batch.hand_over(ear);
                    self.refuse(text, ear)?;
                }
                Event::Other => {
                    // The answer to a PING is the only one that is waited for.
                    if matches!(self.asked.front(), Some(Asked::Ping)) {
                        self.asked.pop_front();
                        ear(Heard::Alive);
                    }
                }
            }
        }
        batch.hand_over(ear);
        Ok(at)
    }

    /// Notes that one of the channels asked for first was confirmed.
    fn confirm(&mut self) {
        if let Some(Asked::Subscribe(channels, done) | Asked::Unsubscribe(channels, done)) =
            self.asked.front_mut()
        {
            *done += 1;
            if *done >= channels.len() {
                self.asked.pop_front();
            }
        }
    }

    /// Deals with an error, which answers what was asked first.
    fn refuse(&mut self, text: &[u8], ear: Ear<'_>) -> Result<(), Error> {
        match self.asked.pop_front() {
            // To be refused a PING is to be answered.
            Some(Asked::Ping) => {
                ear(Heard::Alive);
                Ok(())
            }
            // Which of them is not told.
            Some(Asked::Subscribe(channels, 0)) if channels.len() > 1 && is_denied(text) => {
                ear(Heard::Unclear(&channels));
                Ok(())
            }
            Some(Asked::Subscribe(channels, 0)) if is_denied(text) => {
                let error = self.complaint(text);
                for channel in &channels {
                    ear(Heard::Refused(channel, error.clone()));
                }
                Ok(())
            }
            // Who may not end a subscription goes on getting its messages, for nobody.
            Some(Asked::Unsubscribe(channels, 0)) if is_denied(text) => {
                for channel in &channels {
                    ear(Heard::Unsubscribed(channel.as_bytes()));
                }
                Ok(())
            }
            _ => Err(self.complaint(text)),
        }
    }

    /// Waits for the answer to a command of the greeting.
    async fn answer(&mut self, required: Required) -> Result<(), Error> {
        self.event(|listening, event| match event {
            Event::Error(text) if required.counts(text) => Err(listening.complaint(text)),
            _ => Ok(()),
        })
        .await
    }

    /// Makes sure that the server would let us subscribe, as far as can be told without a channel.
    async fn greet(&mut self) -> Result<(), Error> {
        self.unsent.extend_from_slice(&redis::cmd("PING").get_packed_command());
        self.event(|listening, event| match event {
            // Who may not ask for a sign of life may be allowed to subscribe.
            Event::Error(text) if !is_denied(text) => Err(listening.complaint(text)),
            _ => Ok(()),
        })
        .await
    }

    /// Waits for the confirmation of a subscription, which nothing but Redis gives.
    async fn subscribed(&mut self) -> Result<(), Error> {
        self.event(|listening, event| match event {
            Event::Subscribed(_) => Ok(()),
            Event::Error(text) => Err(listening.complaint(text)),
            _ => Err(listening.refused("not a Redis server: it does not confirm PSUBSCRIBE")),
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
                Ok(None) => self.exchange().await?,
                Err(error) => return Err(self.refused(&error.to_string())),
            }
        }
    }

    /// Writes what is unsent and reads what comes, whichever is possible first. It may be cancelled:
    /// nothing is lost or written twice.
    async fn exchange(&mut self) -> Result<(), Error> {
        self.buffer.reserve(READ_SIZE);
        let Self { reading, writing, buffer, unsent, unflushed, .. } = self;
        *unflushed |= !unsent.is_empty();
        let exchanged = if *unflushed {
            let write = async {
                writing.write_all_buf(unsent).await?;
                writing.flush().await?;
                *unflushed = false;
                Ok(None)
            };
            tokio::select! {
                biased;
                written = write => written,
                read = reading.read_buf(buffer) => read.map(Some),
            }
        } else {
            reading.read_buf(buffer).await.map(Some)
        };
        match exchanged {
            Ok(Some(0)) => Err(self.lost("the server closed the connection")),
            Ok(_) => Ok(()),
            Err(error) => Err(self.lost(&error.to_string())),
        }
    }

    fn silent(&self) -> Error {
        Error::Timeout { url: self.url.shown.clone(), after: SILENCE }
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

/// Whether an error is about the channels that were named, and not about the connection.
fn is_denied(text: &[u8]) -> bool {
    text.starts_with(b"NOPERM")
}

/// Whether a command has to succeed.
#[derive(Clone, Copy)]
enum Required {
    Yes,
    No,
    /// Unless it is refused to this user.
    IfAllowed,
}

impl Required {
    fn counts(self, error: &[u8]) -> bool {
        match self {
            Self::Yes => true,
            Self::No => false,
            Self::IfAllowed => !is_denied(error),
        }
    }
}

/// What is sent before the subscription, and whether it must succeed.
fn greeting(settings: &RedisConnectionInfo) -> Vec<(redis::Cmd, Required)> {
    let mut commands = Vec::new();
    let credentials = settings.password().map(|password| (settings.username(), password));
    if settings.protocol() == ProtocolVersion::RESP3 {
        let mut hello = redis::cmd("HELLO");
        hello.arg(3);
        if let Some((username, password)) = credentials {
            hello.arg("AUTH").arg(username.unwrap_or("default")).arg(password);
        }
        commands.push((hello, Required::Yes));
    } else if let Some((username, password)) = credentials {
        let mut auth = redis::cmd("AUTH");
        if let Some(username) = username {
            auth.arg(username);
        }
        auth.arg(password);
        commands.push((auth, Required::Yes));
    }
    // Channels know no databases; but histories do, and one that is not there is told at the start.
    if settings.db() != 0 {
        let mut select = redis::cmd("SELECT");
        select.arg(settings.db());
        commands.push((select, Required::IfAllowed));
    }
    // For whoever reads CLIENT LIST; a server that refuses it is none the worse.
    let mut name = redis::cmd("CLIENT");
    name.arg("SETNAME").arg("fanwire-listener");
    commands.push((name, Required::No));
    commands
}
