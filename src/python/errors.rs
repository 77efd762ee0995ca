//! From the core's errors to the exceptions of `fanwire.errors`.

use pyo3::prelude::*;
use pyo3::types::PyType;

use super::once::Once;
use crate::error::Error;

/// What was being done, which decides how an error is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Starting or configuring.
    Starting,
    /// Publishing, strictly.
    Publishing,
    /// Something whose failure was logged and counted, and is not raised.
    Tolerating,
}

/// The exception for an error; None if it is not to be raised.
pub fn to_python(py: Python<'_>, error: &Error, doing: Doing) -> Option<PyErr> {
    let class = match (doing, error) {
        (Doing::Tolerating, _) => return None,
        (_, Error::Config(_)) => "ConfigError",
        (Doing::Publishing, _) => "PublishError",
        (Doing::Starting, Error::Timeout { .. }) => "BrokerTimeoutError",
        (
            Doing::Starting,
            Error::Refused { .. }
            | Error::Unreachable { .. }
            | Error::Rejected(_)
            | Error::Full { .. }
            | Error::Stopped
            | Error::System(_),
        ) => "BrokerError",
    };
    Some(new(py, class, error.to_string()))
}

/// An exception of `fanwire.errors` by name.
pub fn new(py: Python<'_>, class: &str, text: String) -> PyErr {
    static MODULE: Once<Py<PyAny>> = Once::new();
    let module = MODULE
        .get_or_try_make(|| py.import("fanwire.errors").map(|module| module.into_any().unbind()));
    let class =
        module.and_then(|module| Ok(module.bind(py).getattr(class)?.cast_into::<PyType>()?));
    match class {
        Ok(class) => PyErr::from_type(class, text),
        Err(error) => error,
    }
}
