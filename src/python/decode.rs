//! From JSON to Python objects, and copies of them.
//!
//! `jiter` parses, the parser of pydantic: integers of any size are exact, keys are cached. A message
//! that several sessions get is parsed once; each gets a copy of its lists and dicts, so that none can
//! change what another sees.

use std::collections::VecDeque;
use std::sync::Arc;

use jiter::{PythonParse, StringCacheMode};
use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::message::Payload;

/// Messages, and bytes of their JSON, kept parsed while others still wait for them. A session that is
/// further behind than that has its messages parsed again.
const KEPT: usize = 64;
const KEPT_BYTES: usize = 1 << 20;

/// Messages that were parsed for one session while others wait for them.
#[derive(Default)]
pub struct Parsed(Mutex<VecDeque<(Payload, Py<PyAny>)>>);

impl Parsed {
    /// The message of a payload, as an object of the caller's own.
    pub fn message<'py>(&self, py: Python<'py>, payload: &Payload) -> PyResult<Bound<'py, PyAny>> {
        if let Some(object) = &payload.object {
            let object = object.0.downcast_ref::<Py<PyAny>>();
            return object
                .map(|object| object.bind(py).clone())
                .ok_or_else(|| PyValueError::new_err("a message of another kind"));
        }
        if Arc::strong_count(payload) == 1 {
            return parse(py, payload);
        }
        let mut kept = self.0.lock();
        let at = kept.iter().rposition(|(other, _)| Arc::ptr_eq(other, payload));
        let Some(at) = at else {
            drop(kept);
            let parsed = parse(py, payload)?;
            let original = parsed.clone().unbind();
            drop(self.keep(payload, original)); // without the lock
            return copy(&parsed);
        };
        // Here and in the caller's hand: nobody else waits for it.
        if Arc::strong_count(payload) == 2 {
            let last = kept.remove(at);
            drop(kept);
            return last
                .map_or_else(|| parse(py, payload), |(_, object)| Ok(object.into_bound(py)));
        }
        let parsed = kept[at].1.bind(py).clone();
        drop(kept);
        copy(&parsed)
    }

    /// Keeps a message. Returns those that are kept no longer: nobody waits for them, or too much is
    /// kept.
    fn keep(&self, payload: &Payload, parsed: Py<PyAny>) -> Vec<(Payload, Py<PyAny>)> {
        let mut kept = self.0.lock();
        let (mut gone, mut bytes, mut count) = (Vec::new(), payload.text.len(), 1);
        // The newest first.
        for (payload, parsed) in std::mem::take(&mut *kept).into_iter().rev() {
            (bytes, count) = (bytes + payload.text.len(), count + 1);
            if Arc::strong_count(&payload) > 1 && count <= KEPT && bytes <= KEPT_BYTES {
                kept.push_front((payload, parsed));
            } else {
                gone.push((payload, parsed));
            }
        }
        kept.push_back((Arc::clone(payload), parsed));
        gone
    }
}

fn parse<'py>(py: Python<'py>, payload: &Payload) -> PyResult<Bound<'py, PyAny>> {
    let json = payload.text.as_bytes();
    let options = PythonParse { cache_mode: StringCacheMode::Keys, ..PythonParse::default() };
    let parsed = options.python_parse(py, json);
    parsed.map_err(|error| PyValueError::new_err(error.description(json)))
}

/// A copy of what JSON can hold. What cannot be changed is not copied.
fn copy<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = value.py();
    if let Ok(dict) = value.cast_exact::<PyDict>() {
        let fresh = PyDict::new(py);
        for (key, value) in dict {
            fresh.set_item(key, copy(&value)?)?;
        }
        return Ok(fresh.into_any());
    }
    if let Ok(list) = value.cast_exact::<PyList>() {
        let items = list.iter().map(|item| copy(&item)).collect::<PyResult<Vec<_>>>()?;
        return Ok(PyList::new(py, items)?.into_any());
    }
    Ok(value.clone())
}
