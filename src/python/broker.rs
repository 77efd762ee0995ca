//! A broker as Python's classes have it: for uploads, for topics, or for both.

use std::sync::Arc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyDict, PyString};

use super::answer::Answer;
use super::errors::{self, Doing};
use super::logging;
use super::operation::{Operation, Step};
use super::options;
use super::sessions::SessionsState;
use super::states::{self, Watcher};
use super::topics::{self, SessionOptions};
use super::{at_exit, bridge};
use crate::client::Client;
use crate::coalesce::Coalescer;
use crate::config::{BrokerUrl, Limits, OutageLimits, Target, mask};
use crate::error::Error;
use crate::history::Settings;
use crate::message::Outgoing;
use crate::post::Reply;
use crate::supervise::Uploads;
use crate::wishes::Wishes;

/// What a topic's channel begins with, where nobody says it: as in PyView's guide.
const PREFIX: &str = "pyview:";
const POSTGRES_PREFIX: &str = "pyview_";

/// A broker that is connected to when it is needed.
pub struct Broker {
    /// An URL that makes no sense is an error of `start` and of every publish, not of the constructor:
    /// an application builds its publisher at import, and starts it where errors are handled.
    client: Result<Arc<Client>, Error>,
    pub shown_url: String,
    pub sessions: Arc<SessionsState>,
    watcher: Option<Arc<Watcher>>,
}

/// Which brokers an object is for, besides the one inside this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    Any,
    Redis,
    Postgres,
}

impl Takes {
    fn check(self, url: BrokerUrl) -> Result<BrokerUrl, Error> {
        let other = match (self, &url.target) {
            (Self::Any, _)
            | (_, Target::Memory)
            | (Self::Redis, Target::Redis(_))
            | (Self::Postgres, Target::Postgres(_)) => return Ok(url),
            (Self::Redis, Target::Postgres(_)) => ("RedisPubSub", "PostgresPubSub"),
            (Self::Postgres, Target::Redis(_)) => ("PostgresPubSub", "RedisPubSub"),
        };
        let (this, other) = other;
        // What they write, and on which channels, differs.
        let text = format!("{:?} is no URL for fanwire.{this}; use fanwire.{other}", url.shown);
        Err(Error::Config(text))
    }
}

/// What a constructor says about the broker.
pub struct BrokerOptions<'a> {
    pub url: &'a str,
    /// Whose URL it may be.
    pub takes: Takes,
    /// None for the one that goes with the broker.
    pub channel_prefix: Option<&'a str>,
    pub strict: bool,
    pub connect_timeout_seconds: f64,
    pub publish_timeout_seconds: f64,
    pub subscribe_timeout_seconds: f64,
    pub max_message_bytes: usize,
    pub on_state_change: Option<Py<PyAny>>,
    /// Messages and bytes; None where nothing is published without waiting.
    pub max_pending: Option<(usize, usize)>,
    /// What the broker is to keep of uploads.
    pub history: Option<Settings>,
    /// What waits during an outage.
    pub outage: Option<OutageLimits>,
    /// What is progress, of what is published.
    pub coalescer: Coalescer,
}

impl BrokerOptions<'_> {
    /// A broker that is not connected to.
    pub fn make(self, py: Python<'_>, sessions: SessionOptions<'_>) -> PyResult<Broker> {
        let seconds = |name, value| options::seconds(py, name, value);
        let at_least_one = |name, value| options::at_least_one(py, name, value);
        let standard = Limits::default();
        let (messages, bytes) =
            self.max_pending.unwrap_or((standard.max_pending_messages, standard.max_pending_bytes));
        let limits = Limits {
            connect_timeout: seconds("connect_timeout_seconds", self.connect_timeout_seconds)?,
            publish_timeout: seconds("publish_timeout_seconds", self.publish_timeout_seconds)?,
            subscribe_timeout: seconds(
                "subscribe_timeout_seconds",
                self.subscribe_timeout_seconds,
            )?,
            max_message_bytes: at_least_one("max_message_bytes", self.max_message_bytes)?,
            max_pending_messages: at_least_one("max_pending_messages", messages)?,
            max_pending_bytes: at_least_one("max_pending_bytes", bytes)?,
            history: self.history,
            outage: self.outage,
        };
        let (journal, shown_url) = (Arc::default(), mask(self.url));
        let wishes = Wishes::new(Arc::clone(&journal), shown_url.clone());
        let url = BrokerUrl::parse(self.url).and_then(|url| self.takes.check(url));
        let prefix = self.channel_prefix.unwrap_or(match &url {
            Ok(BrokerUrl { target: Target::Postgres(_), .. }) => POSTGRES_PREFIX,
            _ => PREFIX,
        });
        let sessions = sessions.make(py, Some((prefix, wishes)))?;
        let coalescer = Arc::new(self.coalescer);
        let client = url.map(|url| {
            let topics = Arc::clone(&sessions.router);
            Arc::new(Client::new(url, limits, self.strict, topics, journal, coalescer))
        });
        let callback = options::callback(py, "on_state_change", self.on_state_change)?;
        let watcher = client
            .as_ref()
            .ok()
            .zip(callback)
            .map(|(client, callback)| Watcher::watch(&client.health, callback));
        Ok(Broker { client, shown_url, sessions, watcher })
    }
}

impl Broker {
    /// The client, or what is wrong with the URL.
    pub fn client(&self, py: Python<'_>) -> PyResult<&Arc<Client>> {
        self.client.as_ref().map_err(|error| raise(py, error))
    }

    /// What a channel's name has before the topic.
    pub fn prefix(&self) -> &str {
        self.sessions.router.channels().map_or("", |channels| &channels.prefix)
    }

    /// Whether the listener runs.
    pub fn is_running(&self) -> bool {
        self.client.as_ref().is_ok_and(|client| client.is_running())
    }

    /// `start`.
    pub fn start(&self, name: &'static str, uploads: Uploads) -> Operation {
        let client = self.client.clone();
        Operation::new(name, move |py| {
            let client = client.map_err(|error| raise(py, &error))?;
            let bridge = bridge::running(py)?;
            let (future, token) = bridge.wait(py, Doing::Starting)?;
            let reply = Reply::new(Arc::clone(&bridge.mailbox), token);
            client.start(uploads, Arc::clone(&bridge.mailbox), reply);
            Ok(Step::WaitWith(future, client))
        })
    }

    /// `stop`.
    pub fn stop(
        &self,
        py: Python<'_>,
        name: &'static str,
        drain_seconds: f64,
    ) -> PyResult<Operation> {
        let drain = options::seconds_or_none(py, "drain_seconds", drain_seconds)?;
        let client = self.client.clone();
        Ok(Operation::new(name, move |py| {
            let Ok(client) = client else { return Ok(Step::Done) };
            logging::drain(py, &client.journal);
            let bridge = bridge::running(py)?;
            let (future, token) = bridge.wait(py, Doing::Tolerating)?;
            client.stop(drain, Reply::new(Arc::clone(&bridge.mailbox), token));
            Ok(Step::Wait(future))
        }))
    }

    /// `subscribe_topic`.
    pub fn subscribe_topic(
        &self,
        py: Python<'_>,
        session_id: PyBackedStr,
        topic: &Bound<'_, PyString>,
        handler: Py<PyAny>,
    ) -> PyResult<Operation> {
        let client = Some(Arc::clone(self.client(py)?));
        topics::subscribe(py, &self.sessions, client, session_id, topic, handler)
    }

    /// `broadcast`.
    pub fn broadcast(
        &self,
        topic: &str,
        message: &Bound<'_, PyAny>,
        except: Option<&str>,
    ) -> PyResult<Operation> {
        topics::broadcast(&self.sessions, self.client(message.py())?, topic, message, except)
    }

    /// For the garbage collector: handlers may know the object they are subscribed with.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(watcher) = &self.watcher
            && Arc::strong_count(watcher) == 1
        {
            visit.call(&watcher.on_state_change)?;
        }
        SessionsState::traverse(&self.sessions, visit)
    }

    /// `health`.
    pub fn health<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let client = self.client(py)?;
        logging::drain(py, &client.journal);
        states::report(py, client)
    }

    /// Adds the broker's figures to a dict.
    pub fn add_stats(&self, into: &Bound<'_, PyDict>) -> PyResult<()> {
        let client = self.client(into.py())?;
        logging::drain(into.py(), &client.journal);
        for (name, value) in client.stats.snapshot() {
            into.set_item(name, value)?;
        }
        into.set_item("listening", client.is_listening())?;
        let (messages, bytes) = client.waiting();
        into.set_item("pending_messages", messages)?;
        into.set_item("pending_bytes", bytes)
    }
}

/// Publishes. What comes back is there when the broker's word is, and gives a receipt if one is wanted.
pub fn publish(
    py: Python<'_>,
    client: &Arc<Client>,
    outgoing: Outgoing,
    receipt: bool,
) -> PyResult<Py<Answer>> {
    let doing = if client.is_strict() { Doing::Publishing } else { Doing::Tolerating };
    at_exit::register_in_process(py);
    let bridge = bridge::running(py)?;
    let (answer, token) = bridge.wait(py, doing)?;
    if receipt {
        answer.get().give_receipt();
    }
    let reply = Reply::new(Arc::clone(&bridge.mailbox), token);
    if let Some(outbox) = client.publish(outgoing, reply) {
        bridge.flush_soon(py, outbox)?;
    }
    Ok(answer)
}

/// As [`publish`], at its first step.
pub fn publishing(name: &'static str, client: &Arc<Client>, outgoing: Outgoing) -> Operation {
    let client = Arc::clone(client);
    Operation::new(name, move |py| publish(py, &client, outgoing, false).map(Step::Wait))
}

fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let raised = errors::to_python(py, error, Doing::Starting);
    raised.unwrap_or_else(|| PyRuntimeError::new_err(error.to_string()))
}
