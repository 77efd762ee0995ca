//! The end of a process: what waits to be published has half a second to go out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::event_publisher::Busy;
use super::{leaving, logging};
use crate::{ending, events, runtime};

/// For the messages of all publishers together.
const LIMIT: Duration = Duration::from_millis(500);

/// Has what waits go out before the interpreter ends.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    py.import("atexit")?.call_method1("register", (wrap_pyfunction!(at_exit, module)?,)).map(drop)
}

/// Not every process ends with `atexit`, and a fork empties the hooks of others: so this is called by the
/// first publisher that is used in a process.
pub fn register_in_process(py: Python<'_>) {
    /// One more than the fork generation in which it was called last.
    static CALLED: AtomicU64 = AtomicU64::new(0);
    let now = runtime::generation() + 1;
    if CALLED.load(Ordering::Relaxed) == now {
        return;
    }
    CALLED.store(now, Ordering::Relaxed);
    let registered = wrap_pyfunction!(at_exit, py)
        .and_then(|hook| py.import("fanwire._children")?.call_method1("call_at_the_end", (hook,)));
    if let Err(error) = registered {
        error.write_unraisable(py, None);
    }
}

/// Waits for what waits in any publisher; all calls of a process together take no longer than allowed.
#[pyfunction]
#[pyo3(name = "_flush_at_exit")]
fn at_exit(py: Python<'_>) {
    static SPENT_MILLIS: AtomicU64 = AtomicU64::new(0);
    leaving::end(py);
    let begun = Instant::now();
    let spent = Duration::from_millis(SPENT_MILLIS.load(Ordering::Relaxed));
    let left = || LIMIT.saturating_sub(spent + begun.elapsed());
    for outbox in ending::Ending::all() {
        let left = left();
        if !py.detach(|| outbox.wait(left)) {
            outbox.tell();
        }
        logging::drain(py, outbox.journal());
    }
    for mut publisher in events::Ending::all() {
        let left = left();
        if !py.detach(|| publisher.wait(left)) {
            publisher.tell();
        }
        if let Some(_busy) = Busy::enter() {
            logging::drain(py, publisher.journal());
        }
    }
    let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    SPENT_MILLIS.fetch_add(millis, Ordering::Relaxed);
}
