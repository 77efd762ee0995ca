//! Calling what an application wants to be called with.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::bridge;
use super::once::intern;

/// Calls an application's callback, if there is one. What it raises goes where asyncio sends such
/// errors.
pub fn call<'py, A>(py: Python<'py>, callback: Option<&Py<PyAny>>, arguments: A)
where
    A: pyo3::call::PyCallArgs<'py>,
{
    let Some(Err(error)) = callback.map(|callback| callback.bind(py).call1(arguments)) else {
        return;
    };
    let report = || -> PyResult<()> {
        let context = PyDict::new(py);
        context.set_item("message", "a callback given to fanwire raised")?;
        context.set_item("exception", error.value(py))?;
        let event_loop = bridge::running(py)?.event_loop(py)?;
        event_loop.call_method1(intern!(py, "call_exception_handler"), (context,)).map(drop)
    };
    if let Err(error) = report() {
        error.write_unraisable(py, None);
    }
}
