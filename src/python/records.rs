//! What Python says of messages that are to be recorded.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt};

use crate::history::{LARGEST, MEMBER};
use crate::recording::Unfit;

/// What is wrong with a message that cannot be recorded.
pub fn unfit(why: Unfit, message: &Bound<'_, PyAny>) -> PyErr {
    match why {
        Unfit::NoObject => {
            let kind = message.get_type();
            let kind = kind.name().map_or_else(|_| "other".to_owned(), |name| name.to_string());
            let text = format!(
                "with a history a message must be a JSON object; this one is of type {kind}"
            );
            PyTypeError::new_err(text)
        }
        Unfit::Reserved => {
            let text = format!("with a history a message must not have the member {MEMBER:?}");
            PyValueError::new_err(text)
        }
    }
}

/// A version.
pub fn version(version: &Bound<'_, PyAny>) -> PyResult<u64> {
    if version.is_instance_of::<PyBool>() || !version.is_instance_of::<PyInt>() {
        let kind = version.get_type().name()?;
        return Err(PyTypeError::new_err(format!("version must be an int, not {kind}")));
    }
    let number = version.extract().ok().filter(|number| *number <= LARGEST);
    let text = || format!("version must be from 0 to 2**53 - 1, not {version}");
    number.ok_or_else(|| PyValueError::new_err(text()))
}
