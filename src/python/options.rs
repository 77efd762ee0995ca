//! Options as Python gives them, checked, with errors that name the option.

use std::time::Duration;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyEllipsis;

use super::errors;
use crate::coalesce::{Coalescer, Rule};
use crate::config::OutageLimits;
use crate::history::Settings;
use crate::lane::Overflow;
use crate::recording::Recorder;

/// A longer time cannot be told from it, and clocks overflow.
const FOR_EVER: f64 = 10.0 * 365.0 * 86_400.0;

/// A duration in seconds.
pub fn seconds(py: Python<'_>, name: &str, seconds: f64) -> PyResult<Duration> {
    let bounded = if seconds.is_finite() && seconds > FOR_EVER { FOR_EVER } else { seconds };
    let valid = Duration::try_from_secs_f64(bounded).ok().filter(|duration| !duration.is_zero());
    let text = || format!("{name} must be a positive number, not {seconds}");
    valid.ok_or_else(|| errors::new(py, "ConfigError", text()))
}

/// A time that may be none.
pub fn seconds_or_none(py: Python<'_>, name: &str, seconds: f64) -> PyResult<Duration> {
    let text = || format!("{name} must be a number that is not negative, not {seconds}");
    Duration::try_from_secs_f64(seconds).map_err(|_| errors::new(py, "ConfigError", text()))
}

/// `fanwire.History`, or nothing.
pub fn history(py: Python<'_>, history: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Recorder>> {
    let Some(history) = history else { return Ok(None) };
    must_be(py, "history", "History", history)?;
    let settings = Settings {
        size: history.getattr("size")?.extract()?,
        ttl: seconds(py, "History.ttl", history.getattr("ttl")?.extract()?)?,
    };
    let recorder = Recorder::new(settings, read(&history.getattr("final")?)?);
    recorder
        .map(Some)
        .map_err(|why| errors::new(py, "ConfigError", format!("History.final: {why}")))
}

/// An argument whose default is not None.
pub enum Given {
    /// The default.
    Default,
    /// This.
    This(Py<PyAny>),
}

impl FromPyObject<'_, '_> for Given {
    type Error = std::convert::Infallible;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> Result<Self, Self::Error> {
        Ok(Self::This(object.to_owned().unbind()))
    }
}

/// `fanwire.Outbox`, or None for nothing. With `strict` whoever publishes is told, and nothing waits.
pub fn outbox(py: Python<'_>, outbox: &Given, strict: bool) -> PyResult<Option<OutageLimits>> {
    let outbox = match outbox {
        Given::Default => return Ok(Some(OutageLimits::default())),
        Given::This(outbox) => outbox.bind(py),
    };
    if outbox.is_none() {
        return Ok(None);
    }
    if outbox.is_instance_of::<PyEllipsis>() {
        return Ok(Some(OutageLimits::default()));
    }
    must_be(py, "outbox", "Outbox", outbox)?;
    if strict {
        let text = "strict=True raises what an outbox would keep: give one of them, not both";
        return Err(errors::new(py, "ConfigError", text.to_owned()));
    }
    Ok(Some(OutageLimits {
        messages: outbox.getattr("messages")?.extract()?,
        bytes: outbox.getattr("bytes")?.extract()?,
        time: seconds(py, "Outbox.seconds", outbox.getattr("seconds")?.extract()?)?,
    }))
}

fn must_be(py: Python<'_>, name: &str, class: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
    if value.is_instance(&py.import("fanwire.recovery")?.getattr(class)?)? {
        return Ok(());
    }
    let kind = value.get_type().name()?;
    Err(PyTypeError::new_err(format!("{name} must be a fanwire.{class} or None, not {kind}")))
}

/// A limit.
pub fn at_least_one(py: Python<'_>, name: &str, value: usize) -> PyResult<usize> {
    if value == 0 {
        return Err(errors::new(py, "ConfigError", format!("{name} must be at least 1")));
    }
    Ok(value)
}

/// Something to be called, or nothing.
pub fn callback(
    py: Python<'_>,
    name: &str,
    callback: Option<Py<PyAny>>,
) -> PyResult<Option<Py<PyAny>>> {
    match callback {
        Some(other) if !other.bind(py).is_callable() => {
            let kind = other.bind(py).get_type().name()?;
            Err(PyTypeError::new_err(format!("{name} must be callable, not {kind}")))
        }
        callback => Ok(callback),
    }
}

/// What happens when too much waits.
pub fn overflow(py: Python<'_>, policy: &str) -> PyResult<Overflow> {
    match policy {
        "disconnect" => Ok(Overflow::Disconnect),
        "drop-oldest" => Ok(Overflow::DropOldest),
        "coalesce" => Ok(Overflow::DropProgress),
        other => {
            let text = format!(
                "overflow must be \"disconnect\", \"drop-oldest\" or \"coalesce\", not {other:?}"
            );
            Err(errors::new(py, "ConfigError", text))
        }
    }
}

/// Whether a session's handlers may run side by side.
pub fn is_concurrent(py: Python<'_>, ordering: &str) -> PyResult<bool> {
    match ordering {
        "session" => Ok(false),
        "concurrent" => Ok(true),
        other => {
            let text = format!("ordering must be \"session\" or \"concurrent\", not {other:?}");
            Err(errors::new(py, "ConfigError", text))
        }
    }
}

/// True (or nothing), False, or rules.
pub fn coalescer(py: Python<'_>, coalesce: Option<&Bound<'_, PyAny>>) -> PyResult<Coalescer> {
    let rules = match coalesce {
        None => vec![Rule::of_uploads()],
        Some(flag) if flag.is_instance_of::<pyo3::types::PyBool>() => {
            if flag.is_truthy()? {
                vec![Rule::of_uploads()]
            } else {
                Vec::new()
            }
        }
        Some(rules) => rules.try_iter()?.map(|rule| read(&rule?)).collect::<PyResult<_>>()?,
    };
    Coalescer::new(&rules).map_err(|why| errors::new(py, "ConfigError", format!("coalesce: {why}")))
}

fn read(rule: &Bound<'_, PyAny>) -> PyResult<Rule> {
    Ok(Rule {
        pointer: rule.getattr("pointer")?.extract()?,
        values: rule.getattr("values")?.extract()?,
        ids: rule.getattr("ids")?.extract()?,
    })
}
