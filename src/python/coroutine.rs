//! The coroutine protocol, from both sides: what `await` does, and what asyncio does to a Task's
//! coroutine.

use pyo3::exceptions::{PyStopIteration, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyType;
use pyo3::types::iterator::PySendResult;

use super::once::{Once, intern};

/// The exception that the arguments of `throw` stand for.
pub fn thrown(
    exception: Bound<'_, PyAny>,
    value: Option<Bound<'_, PyAny>>,
    traceback: Option<Bound<'_, PyAny>>,
) -> PyResult<PyErr> {
    let instance = if exception.is_instance_of::<pyo3::types::PyType>() {
        match value.filter(|value| !value.is_none()) {
            Some(value) if value.is_instance(&exception)? => value,
            Some(value) => exception.call1((value,))?,
            None => exception.call0()?,
        }
    } else {
        exception
    };
    if let Some(traceback) = traceback.filter(|traceback| !traceback.is_none()) {
        instance.setattr("__traceback__", traceback)?;
    }
    Ok(PyErr::from_value(instance))
}

/// What `await` would call `send` on. `who` returned it.
pub fn awaitable<'py>(returned: Bound<'py, PyAny>, who: &str) -> PyResult<Bound<'py, PyAny>> {
    static COROUTINE: Once<Py<PyType>> = Once::new();
    let py = returned.py();
    if returned.get_type().is(COROUTINE.import(py, "types", "CoroutineType")?) {
        return Ok(returned);
    }
    returned.call_method0(intern!(py, "__await__")).map_err(|error| {
        let kind = returned
            .get_type()
            .name()
            .map_or_else(|_| "object".to_owned(), |name| name.to_string());
        let text = format!("{who} returned {kind}, which cannot be awaited");
        let explained = PyTypeError::new_err(text);
        explained.set_cause(py, Some(error));
        explained
    })
}

/// `Some`: suspended, and what it yielded; `None`: returned.
pub fn progress(result: PyResult<PySendResult<'_>>) -> PyResult<Option<Py<PyAny>>> {
    result.map(|result| match result {
        PySendResult::Next(yielded) => Some(yielded.unbind()),
        PySendResult::Return(_) => None,
    })
}

/// Raises an error where a coroutine, or what a `__await__` returned, is suspended.
pub fn throw<'py>(awaiting: &Bound<'py, PyAny>, error: PyErr) -> PyResult<PySendResult<'py>> {
    let py = awaiting.py();
    // As `yield from` does where there is no such method: it is raised right here.
    let Some(throw) = awaiting.getattr_opt(intern!(py, "throw"))? else { return Err(error) };
    match throw.call1((error.into_value(py),)) {
        Ok(yielded) => Ok(PySendResult::Next(yielded)),
        Err(error) if error.is_instance_of::<PyStopIteration>(py) => {
            Ok(PySendResult::Return(py.None().into_bound(py)))
        }
        Err(error) => Err(error),
    }
}

/// The running Task.
pub fn current_task(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static GET: Once<Py<PyAny>> = Once::new();
    GET.import(py, "asyncio", "current_task")?.call0()
}

/// `asyncio.CancelledError`.
pub fn cancelled_error(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: Once<Py<PyType>> = Once::new();
    CLASS.import(py, "asyncio", "CancelledError")
}
