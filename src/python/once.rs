//! What is made at its first use and then stays: imported functions and classes, and names.
//!
//! Of PyO3's own cell one thread makes the value while others wait, and it lets go of the interpreter
//! in the middle. If the process forks then, the value is never finished in the child, and who wants it
//! there waits for ever. Here nobody waits: several threads may make it, and the first one counts.

use std::convert::Infallible;
use std::sync::OnceLock;

use pyo3::prelude::*;
use pyo3::types::{PyDate, PyDateTime, PyDelta, PyMapping, PyString, PyTime};
use pyo3::{PyTypeCheck, PyTypeInfo};

/// Has PyO3 find the classes that it keeps in cells of its own, while nobody else wants them.
pub fn settle(py: Python<'_>) {
    PyDate::type_object(py);
    PyDateTime::type_object(py);
    PyTime::type_object(py);
    PyDelta::type_object(py);
    PyMapping::type_object(py);
}

/// A value that is made at its first use.
pub struct Once<T>(OnceLock<T>);

impl<T> Once<T> {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The value. `make` is called if there is none, and may run Python code.
    pub fn get_or_try_make<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        if let Some(value) = self.0.get() {
            return Ok(value);
        }
        let value = make()?;
        // Nothing of Python happens in here, and so no fork.
        Ok(self.0.get_or_init(|| value))
    }
}

impl<T: PyTypeCheck> Once<Py<T>> {
    /// An attribute of a module.
    pub fn import<'py>(
        &self,
        py: Python<'py>,
        module: &str,
        name: &str,
    ) -> PyResult<&Bound<'py, T>> {
        let import = || Ok(py.import(module)?.getattr(name)?.cast_into::<T>()?.unbind());
        self.get_or_try_make(import).map(|value| value.bind(py))
    }
}

impl Once<Py<PyString>> {
    /// A name, interned: attributes are found faster by it.
    pub fn name<'py>(&self, py: Python<'py>, text: &str) -> &Bound<'py, PyString> {
        let make = || Ok::<_, Infallible>(PyString::intern(py, text).unbind());
        let Ok(name) = self.get_or_try_make(make);
        name.bind(py)
    }
}

/// A name that is written here, made once.
macro_rules! intern {
    ($py:expr, $text:literal) => {{
        static NAME: $crate::python::once::Once<pyo3::Py<pyo3::types::PyString>> =
            $crate::python::once::Once::new();
        NAME.name($py, $text)
    }};
}
pub(super) use intern;
