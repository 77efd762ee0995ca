//! What the coroutine methods of fanwire return.
//!
//! A change of the maps needs neither I/O nor a loop: it is made at the call, and what comes back is
//! [`Ready`], one object for all of them whose first step ends. That is 0.13 us for a subscription,
//! where a coroutine around two dict operations takes 0.25 us, and a future for each call
//! (`future_into_py`) 107 us.
//!
//! Everything else is an [`Operation`]: nothing happens until its first step, where it also binds to
//! the running loop; then it yields an [`Answer`] and ends when that is there.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyRuntimeWarning, PyStopIteration, PyTypeError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use super::answer::Answer;
use super::coroutine::thrown;
use super::once::Once;
use crate::client::Client;

/// What the first step came to.
pub enum Step {
    /// The operation is done.
    Done,
    /// It will be done when this answer is there.
    Wait(Py<Answer>),
    /// As `Wait`, and until then the client is not to end.
    WaitWith(Py<Answer>, Arc<Client>),
}

type Start = Box<dyn FnOnce(Python<'_>) -> PyResult<Step> + Send>;

enum State {
    New(Start),
    /// The client is held, not used.
    Waiting(Py<Answer>, #[allow(dead_code)] Option<Arc<Client>>),
    Done,
}

/// How an awaitable went on.
enum Progress {
    Yielded(Py<Answer>),
    Returned,
}

/// A coroutine in the sense of `collections.abc.Coroutine`.
#[pyclass(frozen, weakref, module = "fanwire._core")]
pub struct Operation {
    name: &'static str,
    state: Mutex<State>,
}

impl Operation {
    /// An operation that has not begun. `name` is shown by asyncio and in warnings.
    pub fn new(
        name: &'static str,
        start: impl FnOnce(Python<'_>) -> PyResult<Step> + Send + 'static,
    ) -> Self {
        Self { name, state: Mutex::new(State::New(Box::new(start))) }
    }

    fn step(&self, py: Python<'_>) -> PyResult<Progress> {
        // Taken out, so that no lock is held while Python runs.
        let state = std::mem::replace(&mut *self.state.lock(), State::Done);
        match state {
            State::New(start) => match start(py)? {
                Step::Done => Ok(Progress::Returned),
                Step::Wait(answer) => Ok(self.wait(py, answer, None)),
                Step::WaitWith(answer, client) => Ok(self.wait(py, answer, Some(client))),
            },
            State::Waiting(answer, _) => answer.get().outcome(py).map(|_| Progress::Returned),
            State::Done => Err(PyRuntimeError::new_err(format!(
                "cannot reuse already awaited coroutine '{}'",
                self.name
            ))),
        }
    }
}

impl Operation {
    fn wait(&self, py: Python<'_>, answer: Py<Answer>, keeps: Option<Arc<Client>>) -> Progress {
        answer.get().await_it();
        *self.state.lock() = State::Waiting(answer.clone_ref(py), keeps);
        Progress::Yielded(answer)
    }
}

#[pymethods]
impl Operation {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<Answer>>> {
        self.step(py).map(|progress| match progress {
            Progress::Yielded(answer) => Some(answer),
            Progress::Returned => None,
        })
    }

    /// Goes on, as a coroutine's `send` does.
    fn send(&self, value: &Bound<'_, PyAny>) -> PyResult<Py<Answer>> {
        let py = value.py();
        if !value.is_none() && matches!(*self.state.lock(), State::New(_)) {
            return Err(PyTypeError::new_err(
                "can't send non-None value to a just-started coroutine",
            ));
        }
        match self.step(py)? {
            Progress::Yielded(answer) => Ok(answer),
            Progress::Returned => Err(PyStopIteration::new_err(())),
        }
    }

    /// Raises an exception at the point where it waits, as a coroutine's `throw` does.
    #[pyo3(signature = (exception, value=None, traceback=None, /))]
    fn throw(
        &self,
        exception: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let py = exception.py();
        let state = std::mem::replace(&mut *self.state.lock(), State::Done);
        if let State::Waiting(answer, _) = state {
            Answer::cancel_it(answer.bind(py), None)?;
        }
        Err(thrown(exception, value, traceback)?)
    }

    /// Ends it; an operation that has not begun never will.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let state = std::mem::replace(&mut *self.state.lock(), State::Done);
        if let State::Waiting(answer, _) = state {
            Answer::cancel_it(answer.bind(py), None)?;
        }
        Ok(())
    }

    #[getter]
    fn __name__(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    #[getter]
    fn __qualname__(&self) -> &'static str {
        self.name
    }

    fn __repr__(&self) -> String {
        let state = match *self.state.lock() {
            State::New(_) => "not started",
            State::Waiting(..) => "waiting",
            State::Done => "done",
        };
        format!("<coroutine {} ({state})>", self.name)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(state) = self.state.try_lock()
            && let State::Waiting(answer, _) = &*state
        {
            visit.call(answer)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let state = std::mem::replace(&mut *self.state.lock(), State::Done);
        drop(state);
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if !matches!(*self.state.get_mut(), State::New(_)) {
            return;
        }
        // A publish that is never awaited is a message lost: say so as Python does for coroutines.
        let text = format!("coroutine '{}' was never awaited", self.name);
        Python::try_attach(|py| {
            let raised = PyErr::take(py);
            let category = py.get_type::<PyRuntimeWarning>();
            let warned =
                std::ffi::CString::new(text).map(|text| PyErr::warn(py, &category, &text, 1));
            if let Ok(Err(error)) = warned {
                error.write_unraisable(py, None);
            }
            if let Some(raised) = raised {
                raised.restore(py);
            }
        });
    }
}

/// The awaitable of what is done already. It has no state: awaiting it twice is no error.
#[pyclass(frozen, module = "fanwire._core", name = "_Ready")]
pub struct Ready;

impl Ready {
    /// The one there is.
    pub fn get(py: Python<'_>) -> PyResult<Py<Self>> {
        static READY: Once<Py<Ready>> = Once::new();
        READY.get_or_try_make(|| Py::new(py, Self)).map(|ready| ready.clone_ref(py))
    }
}

#[allow(clippy::unused_self)] // a Python object's methods have one
#[pymethods]
impl Ready {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self) -> Option<Py<PyAny>> {
        None
    }

    fn send(&self, _value: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(PyStopIteration::new_err(()))
    }

    #[pyo3(signature = (exception, value=None, traceback=None, /))]
    fn throw(
        &self,
        exception: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        Err(thrown(exception, value, traceback)?)
    }

    fn close(&self) {}

    fn __repr__(&self) -> &'static str {
        "<coroutine that is done>"
    }
}
