//! The coroutine that asyncio runs as a Task, where what it does is ours.

use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyStopIteration};
use pyo3::prelude::*;

use super::coroutine::thrown;
use super::once::intern;

/// What a coroutine is resumed with.
pub enum Resume<'py> {
    /// A value.
    Send(Bound<'py, PyAny>),
    /// An exception, where it is suspended.
    Throw(PyErr),
}

/// What a coroutine does.
pub trait Steps: Send {
    /// Runs until something is to be yielded (`Some`) or it is over (`None`).
    fn step(&mut self, py: Python<'_>, resume: Resume<'_>) -> PyResult<Option<Py<PyAny>>>;
}

/// A coroutine.
#[pyclass(frozen, module = "fanwire._core", name = "_Coroutine")]
pub struct Coroutine {
    name: &'static str,
    /// Taken out while it runs.
    steps: Mutex<Option<Box<dyn Steps>>>,
}

impl Coroutine {
    /// One that has not begun.
    pub fn new(name: &'static str, steps: impl Steps + 'static) -> Self {
        Self { name, steps: Mutex::new(Some(Box::new(steps))) }
    }

    fn resume(&self, py: Python<'_>, resume: Resume<'_>) -> PyResult<Option<Py<PyAny>>> {
        let Some(mut steps) = self.steps.lock().take() else {
            let text = format!("the {} has ended, or is under way", self.name);
            return Err(PyRuntimeError::new_err(text));
        };
        let yielded = steps.step(py, resume)?;
        if yielded.is_some() {
            *self.steps.lock() = Some(steps);
        }
        Ok(yielded)
    }

    /// Ends it where it is.
    pub fn give_up(&self) {
        let steps = self.steps.lock().take();
        drop(steps); // without the lock
    }

    /// Resumes one that is no Task of its own in a `contextvars` context.
    pub fn resume_in(
        slf: &Bound<'_, Self>,
        context: &Bound<'_, PyAny>,
        resume: Resume<'_>,
    ) -> PyResult<Option<Py<PyAny>>> {
        let run = intern!(slf.py(), "run");
        let result = match resume {
            Resume::Send(value) if value.is_none() => context.call_method1(run, (slf,)),
            Resume::Send(value) => context.call_method1(run, (slf, value)),
            Resume::Throw(error) => {
                context.call_method1(run, (slf, slf.py().None(), error.into_value(slf.py())))
            }
        }?;
        Ok((!result.is(slf)).then(|| result.unbind()))
    }
}

#[pymethods]
impl Coroutine {
    /// Resumes it. Returns what it yields, or itself when it is over, which it never yields.
    #[pyo3(signature = (value=None, error=None))]
    fn __call__<'py>(
        slf: &Bound<'py, Self>,
        value: Option<Bound<'py, PyAny>>,
        error: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let resume = match error {
            Some(error) => Resume::Throw(PyErr::from_value(error)),
            None => Resume::Send(value.unwrap_or_else(|| py.None().into_bound(py))),
        };
        let yielded = slf.get().resume(py, resume)?;
        Ok(yielded.map_or_else(|| slf.clone().into_any(), |yielded| yielded.into_bound(py)))
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.resume(py, Resume::Send(py.None().into_bound(py)))
    }

    fn send(&self, value: Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        self.resume(value.py(), Resume::Send(value.clone()))?
            .ok_or_else(|| PyStopIteration::new_err(()))
    }

    #[pyo3(signature = (exception, value=None, traceback=None, /))]
    fn throw(
        &self,
        exception: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let py = exception.py();
        let error = thrown(exception, value, traceback)?;
        self.resume(py, Resume::Throw(error))?.ok_or_else(|| PyStopIteration::new_err(()))
    }

    fn close(&self) {
        self.give_up();
    }

    #[getter]
    fn __name__(&self) -> &'static str {
        self.name
    }

    #[getter]
    fn __qualname__(&self) -> String {
        format!("fanwire.{}", self.name)
    }
}
