//! The receiving side: one connection that says LISTEN, and is read by its own task.

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{AsyncMessage, Client, Error as Cause, Notification, SimpleQueryMessage};

use super::connect::{self, Connection};
use super::dsn::Dsn;
use super::frame::{self, Joiner, Malformed};
use super::socket::Reading;
use super::{errors, name};
use crate::broker::gathered::Gathered;
use crate::broker::{BATCH, Ear, Heard};
use crate::channel::Address;
use crate::config::{BrokerUrl, Limits};
use crate::error::Error;
use crate::message::Form;
use crate::router::Inbound;
use crate::wishes::Changes;

/// How long a server may be silent before it is asked for a sign of life, and then to give it. Twice
/// this, and the time to connect, stay below the five seconds in which a listener is to be back.
const SILENCE: Duration = Duration::from_millis(1500);
/// Channels named in one statement.
const CHANNELS_AT_ONCE: usize = 1024;
/// A text in parts may be so many times as long as what we would publish ourselves.
const LONGER: usize = 16;

type Answer = Pin<Box<dyn Future<Output = Result<(), Cause>> + Send>>;

/// What was asked.
enum Asked {
    /// For a sign of life.
    Ping,
    /// To begin with channels.
    Begin(Vec<Box<str>>),
    /// To end with channels.
    End(Vec<Box<str>>),
}

/// A connection that listens.
pub struct Listening {
    client: Arc<Client>,
    connection: Connection,
    pub(super) url: BrokerUrl,
    /// Whether uploads and users are listened to.
    uploads: bool,
    /// Channels by name that go over the shared notification channel.
    shared: HashSet<Box<str>>,
    /// What was asked and not answered yet. One statement is under way at a time.
    asked: VecDeque<(Asked, Answer)>,
    joiner: Joiner,
    /// What has come and was not handed over yet.
    came: Vec<Came>,
    /// When the server will have been silent for too long.
    due: Instant,
    /// Whether nothing has come since it was asked for a sign of life.
    probing: bool,
    /// The channel over which a notification of our own is expected.
    pub(super) trial: Option<String>,
}

impl Listening {
    /// Connects, authenticates and listens; returns once that is confirmed.
    pub async fn connect(
        dsn: &Dsn,
        url: &BrokerUrl,
        limits: &Limits,
        patterns: &[&str],
    ) -> Result<Self, Error> {
        let (client, connection) =
            connect::open(dsn, url, limits.connect_timeout, Reading::Moderated).await?;
        let mut listening = Self {
            client: Arc::new(client),
            connection,
            url: url.clone(),
            uploads: !patterns.is_empty(),
            shared: HashSet::new(),
            asked: VecDeque::new(),
            joiner: Joiner::new(limits.max_message_bytes.saturating_mul(LONGER)),
            came: Vec::with_capacity(BATCH),
            due: Instant::now() + SILENCE,
            probing: false,
            trial: None,
        };
        // First, so that a session of a pool, which others get, does not go on listening.
        listening.make_sure(dsn, limits.connect_timeout).await?;
        if listening.uploads {
            listening.query(&format!("LISTEN {}", name::quoted(name::SHARED))).await?;
        }
        listening.due = Instant::now() + SILENCE;
        Ok(listening)
    }

    pub(super) async fn query(
        &mut self,
        statement: &str,
    ) -> Result<Vec<SimpleQueryMessage>, Error> {
        let client = Arc::clone(&self.client);
        self.run(client.simple_query(statement)).await
    }

    /// Runs a statement before anything else is asked; what is heard meanwhile is kept.
    pub(super) async fn run<T>(
        &mut self,
        statement: impl Future<Output = Result<T, Cause>>,
    ) -> Result<T, Error> {
        let mut statement = std::pin::pin!(statement);
        let done = std::future::poll_fn(|context| {
            loop {
                if let Poll::Ready(done) = statement.as_mut().poll(context) {
                    return Poll::Ready(Ok(done));
                }
                if self.read(context)?.is_pending() {
                    // It may have answered the statement just now.
                    return statement.as_mut().poll(context).map(Ok);
                }
            }
        });
        done.await?.map_err(|error| errors::of_connecting(&error, &self.url, None))
    }

    /// Takes one message from the server, and keeps it if it is a notification.
    pub(super) fn read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match ready!(self.connection.poll_message(context)) {
            Some(Ok(AsyncMessage::Notification(notification))) => self.keep(notification),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(self.lost(Some(&error)))),
            None => return Poll::Ready(Err(self.lost(None))),
        }
        Poll::Ready(Ok(()))
    }

    /// Begins and ends subscriptions to channels.
    pub fn ask(&mut self, changes: Changes) {
        for channels in changes.end.chunks(CHANNELS_AT_ONCE) {
            let mut ended = Vec::with_capacity(channels.len());
            for channel in channels {
                if name::is_shared(channel) {
                    self.shared.remove(channel);
                    if !self.uploads && self.shared.is_empty() {
                        ended.push(name::SHARED.into());
                    }
                } else {
                    ended.push(name::of(channel));
                }
            }
            let sql = statements("UNLISTEN", ended.iter());
            self.execute(Asked::End(channels.to_vec()), sql);
        }
        let begin: Vec<Box<str>> = changes.begin.into_iter().chain(changes.begin_alone).collect();
        for channels in begin.chunks(CHANNELS_AT_ONCE) {
            let shared = channels.iter().filter(|channel| name::is_shared(channel));
            self.shared.extend(shared.cloned());
            let names: Vec<_> = channels.iter().map(|channel| name::of(channel)).collect();
            self.execute(Asked::Begin(channels.to_vec()), statements("LISTEN", names.iter()));
        }
    }

    fn execute(&mut self, asked: Asked, sql: String) {
        let client = Arc::clone(&self.client);
        let answer = Box::pin(async move { client.batch_execute(&sql).await });
        self.asked.push_back((asked, answer));
    }

    /// Hands over what has come, and waits for more.
    pub async fn next(&mut self, ear: Ear<'_>) -> Result<(), Error> {
        let due = self.due;
        match tokio::time::timeout_at(due, std::future::poll_fn(|context| self.poll(context))).await
        {
            Ok(came) => {
                let answer = came?;
                self.probing = false;
                self.due = Instant::now() + SILENCE;
                self.hand_over(ear);
                if let Some((asked, outcome)) = answer {
                    self.answered(asked, outcome, ear)?;
                }
            }
            Err(_) if self.probing => {
                return Err(Error::Timeout { url: self.url.shown.clone(), after: SILENCE });
            }
            // Without this a connection whose peer vanished without a word would be deaf for ever.
            Err(_) => {
                self.execute(Asked::Ping, String::new());
                self.probing = true;
                self.due = Instant::now() + SILENCE;
            }
        }
        Ok(())
    }

    /// Ready when there is something to hand over, with the answer if it is one.
    #[allow(clippy::type_complexity)] // the outcome of what was asked, or of the connection
    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<(Asked, Result<(), Cause>)>, Error>> {
        // Twice, because to ask and to be answered both need the other side to be polled.
        for _ in 0..2 {
            if let Some((_, answer)) = self.asked.front_mut()
                && let Poll::Ready(outcome) = answer.as_mut().poll(context)
                && let Some((asked, _)) = self.asked.pop_front()
            {
                return Poll::Ready(Ok(Some((asked, outcome))));
            }
            while self.came.len() < BATCH && self.read(context)?.is_ready() {}
        }
        if self.came.is_empty() { Poll::Pending } else { Poll::Ready(Ok(None)) }
    }

    fn answered(
        &mut self,
        asked: Asked,
        outcome: Result<(), Cause>,
        ear: Ear<'_>,
    ) -> Result<(), Error> {
        if let Err(error) = outcome {
            return self.refused(asked, &error, ear);
        }
        match asked {
            Asked::Ping => ear(Heard::Alive),
            Asked::Begin(channels) => {
                for channel in &channels {
                    ear(Heard::Subscribed(channel.as_bytes()));
                }
            }
            Asked::End(channels) => {
                for channel in &channels {
                    ear(Heard::Unsubscribed(channel.as_bytes()));
                }
            }
        }
        Ok(())
    }

    fn refused(&mut self, asked: Asked, error: &Cause, ear: Ear<'_>) -> Result<(), Error> {
        let error = match errors::of_statement(error, &self.url) {
            Error::Refused { reason, .. } => Error::Rejected(reason),
            passing => return Err(passing),
        };
        match asked {
            Asked::Ping => ear(Heard::Alive),
            Asked::Begin(channels) if channels.len() > 1 => ear(Heard::Unclear(&channels)),
            Asked::Begin(channels) => {
                for channel in &channels {
                    ear(Heard::Refused(channel, error.clone()));
                }
            }
            Asked::End(channels) => {
                for channel in &channels {
                    ear(Heard::Unsubscribed(channel.as_bytes()));
                }
            }
        }
        Ok(())
    }

    /// Keeps a notification until it is handed over. Parts are joined first.
    fn keep(&mut self, notification: Notification) {
        if self.trial.take_if(|trial| trial == notification.channel()).is_some() {
            return;
        }
        let text = notification.payload();
        if !frame::is_part(text) {
            self.came.push(Came::Whole(notification));
            return;
        }
        let (whole, wrong) = match frame::part(text) {
            Ok(part) => self.joiner.add(part),
            Err(why) => (None, Some(why)),
        };
        let channel = || notification.channel().to_owned();
        self.came.extend(wrong.map(|why| Came::Malformed(channel(), why)));
        self.came.extend(whole.map(|text| Came::Joined(channel(), text)));
    }

    fn hand_over(&mut self, ear: Ear<'_>) {
        let mut came = std::mem::take(&mut self.came);
        let mut batch = Gathered::with_capacity(came.len());
        for came in &came {
            let (notified, text) = match came {
                Came::Whole(notification) => (notification.channel(), notification.payload()),
                Came::Joined(channel, text) => (&**channel, &**text),
                Came::Malformed(channel, why) => {
                    ear(Heard::Malformed(channel.as_bytes(), why.0));
                    continue;
                }
            };
            match frame::message(text) {
                Ok(message) => self.sort(notified, message, &mut batch, ear),
                Err(why) => ear(Heard::Malformed(notified.as_bytes(), why.0)),
            }
        }
        batch.hand_over(ear);
        drop(batch);
        came.clear();
        self.came = came;
    }

    /// Adds a message to those that came through a subscription like its own.
    fn sort<'a>(
        &self,
        notified: &'a str,
        message: frame::Message<'a>,
        batch: &mut Gathered<'a>,
        ear: Ear<'_>,
    ) {
        let frame::Message { channel, except, body } = message;
        let channel = channel.unwrap_or(notified);
        let inbound =
            |form| Inbound { channel: channel.as_bytes(), payload: body.as_bytes(), form };
        let named = inbound(Form::Bare { except });
        if notified != name::SHARED {
            batch.add(named, true, ear);
            return;
        }
        if self.uploads && Address::parse(channel.as_bytes()).is_some() {
            batch.add(inbound(Form::Envelope), false, ear);
        }
        if !self.shared.is_empty() && self.shared.contains(channel) {
            batch.add(named, true, ear);
        }
    }

    fn lost(&self, error: Option<&Cause>) -> Error {
        match error {
            Some(error) => errors::of_losing(error, &self.url),
            None => self.unreachable("the server closed the connection"),
        }
    }

    pub(super) fn unreachable(&self, reason: &str) -> Error {
        Error::Unreachable { url: self.url.shown.clone(), reason: reason.to_owned() }
    }
}

/// Something that has come.
enum Came {
    Whole(Notification),
    /// On a channel, a text that came in parts.
    Joined(String, String),
    /// On a channel, something that is no frame.
    Malformed(String, Malformed),
}

/// A command for each of several channels, as one text.
fn statements<'n>(command: &str, names: impl Iterator<Item = &'n Cow<'n, str>>) -> String {
    names.flat_map(|name| [command, " ", &name::quoted(name), ";"].map(str::to_owned)).collect()
}
