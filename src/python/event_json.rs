//! What an `EventPublisher` sends, as JSON: log lines, events and stats, encoded as `orjson.rs` does, which
//! is another way than that of upload messages (`encode.rs`).

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::leaving;
use super::once::intern;
use super::orjson::{Failure, Out, each_item, encode, encode_dict, step, text, write, write_key};
use super::scalars::{Class, class};
use crate::events::shorten::shorten;

/// Of a line that is too long this many times its limit is looked at, and the rest is dropped.
const LOOKED_AT: usize = 4;
/// What ends a text that was cut.
const ELLIPSIS: &str = "…";

/// A log line in at most `limit` bytes, and whether it had to be cut for that.
pub fn line(value: &Bound<'_, PyAny>, limit: usize) -> PyResult<(Vec<u8>, bool)> {
    let _nested = leaving::nest()?;
    let mut out = Out::new(limit);
    let cut = match value.cast::<PyDict>() {
        Ok(dict) => members(dict, &mut out, limit),
        Err(_) => shorter(value, &mut out, 0),
    };
    let cut = cut.map_err(|failure| failure.into_error(value.py(), "line", limit))?;
    if cut || out.bytes.len() > limit {
        return Ok((shorten(&out.bytes, limit), true));
    }
    Ok((out.bytes, false))
}

/// An event: `{"type":…,"timestamp":…,"data":…}`.
pub fn event(
    kind: &Bound<'_, PyString>,
    data: Option<&Bound<'_, PyAny>>,
    limit: usize,
) -> PyResult<Vec<u8>> {
    let _nested = leaving::nest()?;
    let py = kind.py();
    let mut out = Out::new(limit);
    let mut write = || {
        out.bytes.extend_from_slice(b"{\"type\":");
        encode(kind, &mut out, 1)?;
        out.bytes.extend_from_slice(b",\"timestamp\":");
        text(&now(py)?, &mut out)?;
        out.bytes.extend_from_slice(b",\"data\":");
        match data {
            Some(data) => encode(data, &mut out, 1)?,
            None => out.bytes.extend_from_slice(b"{}"),
        }
        out.bytes.push(b'}');
        out.check()
    };
    write().map_err(|failure| failure.into_error(py, "data", limit))?;
    Ok(out.bytes)
}

/// Figures, with the timestamp first. A timestamp among them takes its place.
pub fn figures(stats: &Bound<'_, PyAny>, limit: usize) -> PyResult<Vec<u8>> {
    let _nested = leaving::nest()?;
    let py = stats.py();
    let payload = PyDict::new(py);
    payload.set_item(intern!(py, "timestamp"), now(py)?)?;
    if !stats.hasattr(intern!(py, "keys"))? {
        let kind = stats.get_type();
        return Err(PyTypeError::new_err(format!("stats must be a mapping, not {}", kind.name()?)));
    }
    payload.call_method1(intern!(py, "update"), (stats,))?;
    let mut out = Out::new(limit);
    encode_dict(&payload, &mut out, 0)
        .and_then(|()| out.check())
        .map_err(|failure| failure.into_error(py, "stats", limit))?;
    Ok(out.bytes)
}

/// `datetime.now().isoformat()`
fn now(py: Python<'_>) -> PyResult<Bound<'_, PyString>> {
    static DATETIME: Class = Class::new();
    let now = class(py, &DATETIME, "datetime", "datetime")?.call_method0(intern!(py, "now"))?;
    Ok(now.call_method0(intern!(py, "isoformat"))?.cast_into()?)
}

/// The members of a line, each of which is cut where it alone is longer than the line may be. True if
/// something was cut.
fn members(dict: &Bound<'_, PyDict>, out: &mut Out, limit: usize) -> Result<bool, Failure> {
    let mut cut = false;
    out.bytes.push(b'{');
    each_item(dict, out, |key, value, out| {
        if out.bytes.len() > limit.saturating_mul(LOOKED_AT) {
            cut = true;
            return Ok(());
        }
        out.limit = usize::MAX;
        write_key(key, out)?;
        out.limit = out.bytes.len().saturating_add(limit);
        cut |= shorter(value, out, 1).map_err(|failure| failure.under(|| step(key)))?;
        Ok(())
    })?;
    out.bytes.push(b'}');
    Ok(cut)
}

/// Writes a value, or the beginning of one that is too long as a string. True if it is.
fn shorter(value: &Bound<'_, PyAny>, out: &mut Out, depth: usize) -> Result<bool, Failure> {
    let start = out.bytes.len();
    match encode(value, out, depth).and_then(|()| out.check()) {
        Ok(()) => Ok(false),
        Err(Failure::TooLarge) => {
            let beginning = out.bytes.split_off(start);
            let text = String::from_utf8_lossy(&beginning);
            // Of a string it is one already, but for its end.
            if text.starts_with('"') {
                out.bytes.extend_from_slice(text.strip_suffix('"').unwrap_or(&text).as_bytes());
                out.bytes.extend_from_slice(ELLIPSIS.as_bytes());
                out.bytes.push(b'"');
            } else {
                write(&format!("{text}{ELLIPSIS}"), out)?;
            }
            Ok(true)
        }
        Err(failure) => Err(failure),
    }
}
