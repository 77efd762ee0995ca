//! Lines of the core's journal, and the binding's own, to Python's `logging`, logger `fanwire`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::leaving;
use super::once::Once;
use crate::journal::{Journal, Level};

/// Logs one line. What a handler of the application raises goes to `sys.unraisablehook`.
pub fn log(py: Python<'_>, level: Level, text: &str) {
    static LOG: Once<Py<PyAny>> = Once::new();
    let Ok(_inside) = leaving::enter() else { return }; // the interpreter ends
    let logged = LOG
        .get_or_try_make(|| -> PyResult<_> {
            let logger = py.import("logging")?.call_method1("getLogger", ("fanwire",))?;
            Ok(logger.getattr("log")?.unbind())
        })
        .and_then(|log| log.call1(py, (level as u8, "fanwire: %s", text)));
    if let Err(error) = logged {
        error.write_unraisable(py, None);
    }
}

/// Logs an error with the traceback of what raised it.
pub fn log_raised(py: Python<'_>, text: &str, error: &PyErr) {
    let Ok(_inside) = leaving::enter() else { return };
    let logged = || -> PyResult<()> {
        let options = PyDict::new(py);
        // `value` alone would have no traceback.
        options.set_item("exc_info", error.clone_ref(py).into_value(py))?;
        let logger = py.import("logging")?.call_method1("getLogger", ("fanwire",))?;
        logger.call_method("error", ("fanwire: %s", text), Some(&options)).map(drop)
    };
    if let Err(error) = logged() {
        error.write_unraisable(py, None);
    }
}

/// Logs what the core has to say.
pub fn drain(py: Python<'_>, journal: &Journal) {
    for line in journal.drain() {
        log(py, line.level, &line.text);
    }
}
