//! `EventPublisher`: what Python sees of `events/`.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyException, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::at_exit;
use super::errors::{self, Doing};
use super::event_json;
use super::logging;
use super::options;
use super::slot::Slot;
use super::waiting;
use crate::config::{BrokerUrl, Limits};
use crate::events::queue::Kind;
use crate::events::shorten::LEAST;
use crate::events::{CLOSING, Channels, Publisher, Settings};
use crate::journal::Level;

const NAMESPACE: &str = "codeworm";

struct Inner {
    publisher: Publisher,
    max_line_bytes: usize,
    max_message_bytes: usize,
    told_unencodable: AtomicBool,
}

/// Publishes log lines, events and stats from daemons, workers and threads: no event loop is needed, and
/// no call waits for the broker or raises for its trouble.
///
/// A message is encoded, as `orjson.dumps(message, default=str)` would, and queued; a background thread
/// sends what is queued, in order, in pipelined batches. While the broker cannot be reached messages wait.
/// When too much waits, the oldest log lines and stats are dropped first, and events only where nothing
/// else is left; what was dropped is told by one message on the events channel when the broker is back:
/// `{"type": "fanwire.dropped", "timestamp": ..., "data": {"logs": 3, "stats": 0, "events": 0}}`.
/// A batch that was under way when the connection broke is not sent again: a message comes once or not
/// at all. How many that may concern is told as "unclear", beside "logs".
///
/// It may be made and used before a fork, and in the child and the parent after it. What waits when the
/// interpreter ends has half a second to go out.
///
/// Args:
///     redis_url: `redis://`, `rediss://`, `unix:///path`, `postgresql://`, or `memory://`.
///     namespace: what the channels' names begin with: `{namespace}:logs`, `:events` and `:stats`. A
///         subclass may also have constants of its own.
///     max_pending_messages, max_pending_bytes: how much may wait.
///     max_line_bytes: a longer log line is cut, and marked by `"fanwire.truncated": true`.
///     max_message_bytes: larger events and stats are refused with ValueError.
///     connect_timeout_seconds: for connecting and authenticating together.
///     publish_timeout_seconds: for the broker's answer to a batch.
///
/// Raises:
///     fanwire.errors.ConfigError: the URL or an option makes no sense.
#[pyclass(frozen, subclass, dict, weakref, module = "fanwire._core")]
pub struct EventPublisher {
    inner: Slot<Inner>,
}

impl EventPublisher {
    fn inner(&self) -> PyResult<&Inner> {
        let missing =
            || PyRuntimeError::new_err("EventPublisher.__init__() was not called by its subclass");
        self.inner.get().ok_or_else(missing)
    }
}

impl Inner {
    fn open(&self) -> PyResult<()> {
        if self.publisher.is_closed() {
            return Err(PyRuntimeError::new_err("this EventPublisher is closed"));
        }
        Ok(())
    }

    fn push(&self, py: Python<'_>, kind: Kind, payload: Vec<u8>) -> PyResult<()> {
        let pushed = self.publisher.push(kind, payload);
        let pushed = pushed.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        if pushed.began {
            at_exit::register_in_process(py);
        }
        if pushed.overflowed {
            unraisable(py, utc_offset(py).map(|seconds| self.publisher.set_utc_offset(seconds)));
        }
        Ok(())
    }

    /// Logs what the task has to say, unless this thread is at it already.
    fn drain(&self, py: Python<'_>) {
        if let Some(_busy) = Busy::enter() {
            logging::drain(py, self.publisher.journal());
        }
    }

    fn log(&self, py: Python<'_>, line: &Bound<'_, PyAny>) -> PyResult<()> {
        let stats = self.publisher.stats();
        let payload = match event_json::line(line, self.max_line_bytes) {
            Ok((payload, cut)) => {
                stats.truncated.add(u64::from(cut));
                payload
            }
            Err(error) if error.is_instance_of::<PyException>(py) => {
                stats.unencodable.add(1);
                if !self.told_unencodable.swap(true, Ordering::Relaxed) {
                    let text = format!(
                        "a log line could not be published: {}; later ones are only counted",
                        error.value(py)
                    );
                    logging::log(py, Level::Warning, &text);
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if self.push(py, Kind::Log, payload).is_err() {
            stats.after_close.add(1);
        }
        logging::drain(py, self.publisher.journal());
        Ok(())
    }
}

#[pymethods]
impl EventPublisher {
    /// The channel of log lines, for the default namespace.
    #[classattr]
    const CHANNEL_LOGS: &'static str = "codeworm:logs";
    /// The channel of events, for the default namespace.
    #[classattr]
    const CHANNEL_EVENTS: &'static str = "codeworm:events";
    /// The channel of stats, for the default namespace.
    #[classattr]
    const CHANNEL_STATS: &'static str = "codeworm:stats";

    #[new]
    #[pyo3(
        signature = (*_args, **_kwargs),
        text_signature = "(redis_url, *, namespace='codeworm', max_pending_messages=10000, \
            max_pending_bytes=16777216, max_line_bytes=65536, max_message_bytes=1048576, \
            connect_timeout_seconds=2.0, publish_timeout_seconds=2.0)"
    )]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { inner: Slot::new() }
    }

    #[allow(clippy::too_many_arguments)] // keyword arguments of Python
    #[pyo3(signature = (
        redis_url, *, namespace=NAMESPACE, max_pending_messages=10_000, max_pending_bytes=16_777_216,
        max_line_bytes=65_536, max_message_bytes=1_048_576, connect_timeout_seconds=2.0,
        publish_timeout_seconds=2.0,
    ))]
    fn __init__(
        slf: &Bound<'_, Self>,
        redis_url: &str,
        namespace: &str,
        max_pending_messages: usize,
        max_pending_bytes: usize,
        max_line_bytes: usize,
        max_message_bytes: usize,
        connect_timeout_seconds: f64,
        publish_timeout_seconds: f64,
    ) -> PyResult<()> {
        let py = slf.py();
        let at_least_one = |name, value| options::at_least_one(py, name, value);
        if max_line_bytes < LEAST {
            let text = format!("max_line_bytes must be at least {LEAST}");
            return Err(errors::new(py, "ConfigError", text));
        }
        let max_pending_bytes = at_least_one("max_pending_bytes", max_pending_bytes)?;
        let limits = Limits {
            connect_timeout: options::seconds(
                py,
                "connect_timeout_seconds",
                connect_timeout_seconds,
            )?,
            publish_timeout: options::seconds(
                py,
                "publish_timeout_seconds",
                publish_timeout_seconds,
            )?,
            max_message_bytes: at_least_one("max_message_bytes", max_message_bytes)?,
            max_pending_messages: at_least_one("max_pending_messages", max_pending_messages)?,
            max_pending_bytes,
            ..Limits::default()
        };
        let url = BrokerUrl::parse(redis_url).map_err(|error| {
            let raised = errors::to_python(py, &error, Doing::Starting);
            raised.unwrap_or_else(|| PyValueError::new_err(error.to_string()))
        })?;
        let channels = channels(slf, namespace)?;
        slf.get().inner.fill(Inner {
            publisher: Publisher::new(Settings { url, limits, channels }),
            max_line_bytes: max_line_bytes.min(max_pending_bytes),
            max_message_bytes: max_message_bytes.min(max_pending_bytes),
            told_unencodable: AtomicBool::new(false),
        });
        Ok(())
    }

    /// The broker's URL, its secrets masked.
    #[getter]
    fn url(&self) -> PyResult<&str> {
        Ok(&self.inner()?.publisher.settings().url.shown)
    }

    /// Whether it is closed.
    #[getter]
    fn closed(&self) -> PyResult<bool> {
        Ok(self.inner()?.publisher.is_closed())
    }

    /// Publishes a log line. It never raises, and nothing that fanwire logs itself is published.
    ///
    /// A line that has no JSON form is counted in `stats()["unencodable"]`, and the first one is told to
    /// the logger `fanwire`; one longer than `max_line_bytes` is cut. A line that comes while its own
    /// thread is encoding another, from a `__str__` that logs say, is counted in `stats()["reentrant"]`;
    /// one that comes after `close()` in `stats()["after_close"]`.
    ///
    /// Args:
    ///     event_dict: a dict as structlog's processors get it, or anything else.
    fn publish_log(&self, event_dict: &Bound<'_, PyAny>) -> PyResult<()> {
        let inner = self.inner()?;
        let Some(_busy) = Busy::enter() else {
            inner.publisher.stats().reentrant.add(1);
            return Ok(());
        };
        inner.log(event_dict.py(), event_dict)
    }

    /// Publishes an event: `{"type": event_type, "timestamp": ..., "data": data}`.
    ///
    /// Args:
    ///     event_type: what happened.
    ///     data: what belongs to it; None is an empty object.
    ///
    /// Raises:
    ///     TypeError, ValueError: the type is no str, or the data cannot be encoded or are larger than
    ///         `max_message_bytes`; the text says where in them.
    ///     RuntimeError: the publisher is closed.
    #[pyo3(signature = (event_type, data=None))]
    fn publish_event(
        &self,
        event_type: &Bound<'_, PyAny>,
        data: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = event_type.py();
        let inner = self.inner()?;
        inner.open()?;
        let event_type = event_type.cast::<PyString>().map_err(|_| {
            let kind = event_type.get_type().name();
            let kind = kind.map_or_else(|_| "an object".to_owned(), |kind| kind.to_string());
            PyTypeError::new_err(format!("event_type must be str, not {kind}"))
        })?;
        let data = match data {
            Some(data) if data.is_truthy()? => Some(data),
            _ => None,
        };
        let payload = event_json::event(event_type, data, inner.max_message_bytes)?;
        inner.push(py, Kind::Event, payload)?;
        inner.drain(py);
        Ok(())
    }

    /// Publishes figures: `{"timestamp": ..., **stats}`. A timestamp among them counts.
    ///
    /// Args:
    ///     stats: a mapping.
    ///
    /// Raises:
    ///     TypeError, ValueError: it is no mapping, cannot be encoded or is larger than
    ///         `max_message_bytes`.
    ///     RuntimeError: the publisher is closed.
    fn publish_stats(&self, stats: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = stats.py();
        let inner = self.inner()?;
        inner.open()?;
        let payload = event_json::figures(stats, inner.max_message_bytes)?;
        inner.push(py, Kind::Stats, payload)?;
        inner.drain(py);
        Ok(())
    }

    /// Waits until everything published so far has gone out. It blocks its thread, but for signals.
    ///
    /// Args:
    ///     timeout_seconds: how long to wait; 0 only looks.
    ///
    /// Returns:
    ///     Whether the broker has taken it all: False when the time is up, or when some was lost.
    #[pyo3(signature = (timeout_seconds=2.0))]
    fn flush(&self, py: Python<'_>, timeout_seconds: f64) -> PyResult<bool> {
        let inner = self.inner()?;
        let limit = waiting::limit(timeout_seconds)?;
        let mut flush = inner.publisher.flush();
        let whole = waiting::wait(py, limit, |time| flush.wait(time))?;
        inner.drain(py);
        Ok(whole == Some(true))
    }

    /// Lets out what waits, for 2 s at most, drops the rest, and closes the connection. A second call
    /// does nothing. Afterwards events and stats raise RuntimeError, and log lines are only counted.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let inner = self.inner()?;
        let mut closing = inner.publisher.close();
        let waited = waiting::wait(py, CLOSING, |time| closing.wait(time));
        if !matches!(waited, Ok(Some(_))) {
            inner.publisher.give_up();
        }
        inner.drain(py);
        waited.map(drop)
    }

    /// Counters and gauges by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let inner = self.inner()?;
        inner.drain(py);
        let stats = PyDict::new(py);
        for (name, value) in inner.publisher.stats().snapshot() {
            stats.set_item(name, value)?;
        }
        let (messages, bytes) = inner.publisher.waiting();
        stats.set_item("pending_messages", messages)?;
        stats.set_item("pending_bytes", bytes)?;
        stats.set_item("connected", inner.publisher.is_connected())?;
        Ok(stats)
    }

    /// The publisher itself.
    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// Closes it, whatever ended the block.
    #[pyo3(
        signature = (*_exception),
        text_signature = "($self, kind=None, error=None, trace=None, /)"
    )]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> PyResult<String> {
        Ok(format!("EventPublisher({:?})", self.inner()?.publisher.settings().url.shown))
    }
}

/// Where messages go. Another namespace than the default one is shown by the instance's constants too.
fn channels(publisher: &Bound<'_, EventPublisher>, namespace: &str) -> PyResult<Channels> {
    if namespace.is_empty() {
        let text = "namespace must not be empty".to_owned();
        return Err(errors::new(publisher.py(), "ConfigError", text));
    }
    let channel = |constant: &str, name: &str| -> PyResult<Box<str>> {
        if namespace == NAMESPACE {
            return Ok(publisher.getattr(constant)?.extract::<String>()?.into());
        }
        let channel = format!("{namespace}:{name}");
        publisher.setattr(constant, &channel)?;
        Ok(channel.into())
    };
    Ok(Channels {
        logs: channel("CHANNEL_LOGS", "logs")?,
        events: channel("CHANNEL_EVENTS", "events")?,
        stats: channel("CHANNEL_STATS", "stats")?,
    })
}

thread_local! {
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, its thread publishes no log lines: they would be about the publishing of one.
pub struct Busy;

impl Busy {
    /// None where its thread is at it already.
    pub fn enter() -> Option<Self> {
        (!BUSY.replace(true)).then_some(Self)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.set(false);
    }
}

/// How far local time is from UTC.
fn utc_offset(py: Python<'_>) -> PyResult<i32> {
    let local = py.import("time")?.call_method0("localtime")?;
    local.getattr("tm_gmtoff")?.extract()
}

fn unraisable(py: Python<'_>, done: PyResult<()>) {
    if let Err(error) = done {
        error.write_unraisable(py, None);
    }
}
