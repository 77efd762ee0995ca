//! The process-wide publisher.

use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::publisher::UploadProgressPublisher;

static CURRENT: Mutex<Option<Py<UploadProgressPublisher>>> = Mutex::new(None);

/// Makes the process-wide publisher and returns it. One made before is replaced, not stopped.
///
/// Args:
///     url: as for `UploadProgressPublisher`.
///     options: as for `UploadProgressPublisher`.
#[pyfunction]
#[pyo3(signature = (url=None, **options))]
pub fn init_publisher(
    py: Python<'_>,
    url: Option<Bound<'_, PyAny>>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Py<UploadProgressPublisher>> {
    let publisher = py.get_type::<UploadProgressPublisher>().call((url,), options)?;
    let publisher = publisher
        .cast_into::<UploadProgressPublisher>()
        .map_err(|error| PyTypeError::new_err(error.to_string()))?;
    let old = CURRENT.lock().replace(publisher.clone().unbind());
    drop(old); // without the lock
    Ok(publisher.unbind())
}

/// The process-wide publisher.
///
/// Raises:
///     RuntimeError: `init_publisher()` has not been called.
#[pyfunction]
pub fn get_publisher(py: Python<'_>) -> PyResult<Py<UploadProgressPublisher>> {
    let current = CURRENT.lock().as_ref().map(|publisher| publisher.clone_ref(py));
    current.ok_or_else(|| {
        PyRuntimeError::new_err("UploadProgressPublisher not initialized. Call init_publisher()")
    })
}
