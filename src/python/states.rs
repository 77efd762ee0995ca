//! The listener's state, as Python sees it.

use std::sync::{Arc, Weak};
use std::time::Instant;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::callbacks;
use crate::client::Client;
use crate::health::{Health, Report};

/// Who is told of changes.
pub struct Watcher {
    /// Called with the old state, the new one, and what is wrong.
    pub on_state_change: Py<PyAny>,
}

impl Watcher {
    /// Has a callback called with what changes from now on. It ends with what is returned.
    pub fn watch(health: &Health, on_state_change: Py<PyAny>) -> Arc<Self> {
        let watcher = Arc::new(Self { on_state_change });
        let owner: Weak<Self> = Arc::downgrade(&watcher);
        health.set_owner(owner);
        watcher
    }
}

/// Tells of the changes since the last time.
pub fn tell(py: Python<'_>, health: &Health) {
    let Some(Ok(watcher)) = health.owner().map(Arc::downcast::<Watcher>) else { return };
    for change in health.take_changes() {
        let arguments = (change.old.name(), change.new.name(), change.error);
        callbacks::call(py, Some(&watcher.on_state_change), arguments);
    }
}

/// What is known of a client's listener.
pub fn report<'py>(py: Python<'py>, client: &Client) -> PyResult<Bound<'py, PyDict>> {
    let Report { since, heard, error, history_error, .. } = client.health.report();
    let state = client.state();
    let seconds = |moment: Instant| moment.elapsed().as_secs_f64();
    let dict = PyDict::new(py);
    dict.set_item("state", state.name())?;
    dict.set_item("in_state_seconds", seconds(since))?;
    dict.set_item("last_heard_seconds", heard.map(seconds))?;
    dict.set_item("error", error)?;
    dict.set_item("history_error", history_error)?;
    dict.set_item("url", client.url())?;
    dict.set_item("reconnects", client.stats.reconnects.get())?;
    dict.set_item("publish_outages", client.stats.outages.get())?;
    let (wanted, confirmed) = client.wanted();
    dict.set_item("wanted_topics", wanted)?;
    dict.set_item("confirmed_topics", confirmed)?;
    Ok(dict)
}
