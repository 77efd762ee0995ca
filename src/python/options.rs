//! Options as Python gives them, checked, with errors that name the option.

use std::time::Duration;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::errors;
use crate::coalesce::{Coalescer, Rule};
use crate::lane::Overflow;

/// A duration in seconds.
pub fn seconds(py: Python<'_>, name: &str, seconds: f64) -> PyResult<Duration> {
    let valid = Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero());
    let text = || format!("{name} must be a positive number, not {seconds}");
    valid.ok_or_else(|| errors::new(py, "ConfigError", text()))
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
