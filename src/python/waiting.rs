//! Waiting in a thread of Python's, which a signal can end.

use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use super::once::Once;

/// Signals are looked after this often.
const SIGNALS_EVERY: Duration = Duration::from_millis(50);

/// How long something is to be waited for.
pub fn limit(timeout_seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(timeout_seconds).map_err(|_| {
        let text = format!(
            "timeout_seconds must be a finite number that is not negative, not {timeout_seconds:e}"
        );
        PyValueError::new_err(text)
    })
}

/// Has `look` wait for a part of the time until it has found something; None where the time is up first.
pub fn wait<T: Send>(
    py: Python<'_>,
    limit: Duration,
    mut look: impl FnMut(Duration) -> Option<T> + Send,
) -> PyResult<Option<T>> {
    let begun = Instant::now();
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let found = py.detach(|| look(left.min(SIGNALS_EVERY)));
        if found.is_some() || left.is_zero() {
            return Ok(found);
        }
        py.check_signals()?;
    }
}

/// Raises RuntimeError where waiting would have an event loop stand still.
pub fn refuse_in_loop(py: Python<'_>, instead: &str) -> PyResult<()> {
    static GET: Once<Py<PyAny>> = Once::new();
    // What cannot be imported, as when the interpreter ends, does not run either.
    let Ok(get) = GET.import(py, "asyncio", "_get_running_loop") else { return Ok(()) };
    if get.call0()?.is_none() {
        return Ok(());
    }
    let text = format!("this would block the event loop that runs here: {instead}");
    Err(PyRuntimeError::new_err(text))
}
