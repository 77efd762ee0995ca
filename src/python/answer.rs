//! The future that fanwire's awaitables wait for.
//!
//! Tasks take it for one of asyncio's: it has `_asyncio_future_blocking` and what belongs to that.
//! asyncio's own has its callbacks called by way of `call_soon`: a handle for each, and a turn of the
//! event loop. An answer comes in the callback of the bridge's reader, which is as good a place to
//! wake a Task, so an `Answer` calls its callbacks there and then. Fifty publishes side by side cost
//! the event loop a fifth less so.

use parking_lot::Mutex;
use pyo3::exceptions::{PyBaseException, PyKeyboardInterrupt, PyStopIteration, PySystemExit};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};
use smallvec::SmallVec;

use super::coroutine::cancelled_error;
use super::errors::{self, Doing};
use super::once::{Once, intern};
use super::receipts;
use crate::post::{Outcome, Receipt, Status};

enum State {
    Pending,
    Done,
    /// As [`State::Done`], for whoever wants to know how; None if it failed and that is tolerated.
    Told(Option<Receipt>),
    Failed(PyErr),
    /// With the message that `cancel` was given.
    Cancelled(Option<Py<PyAny>>),
}

/// Who is called when the answer is there, and in which context.
struct Waiter {
    callback: Py<PyAny>,
    context: Py<PyAny>,
}

struct Inner {
    state: State,
    /// Whether what is yielded was awaited, which a Task checks.
    blocking: bool,
    /// Whether its result is a receipt.
    receipt: bool,
    waiters: SmallVec<[Waiter; 1]>,
}

/// A future in asyncio's sense.
#[pyclass(frozen, weakref, module = "fanwire._core", name = "_Answer")]
pub struct Answer {
    event_loop: Py<PyAny>,
    doing: Doing,
    inner: Mutex<Inner>,
}

impl Answer {
    /// One that is to come, to something that is being done on a loop.
    pub fn new(event_loop: Bound<'_, PyAny>, doing: Doing) -> Self {
        let (state, waiters) = (State::Pending, SmallVec::new());
        let inner = Inner { state, blocking: false, receipt: false, waiters };
        Self { event_loop: event_loop.unbind(), doing, inner: Mutex::new(inner) }
    }

    /// Says that it is awaited: it is yielded next.
    pub fn await_it(&self) {
        self.inner.lock().blocking = true;
    }

    /// Says that its result is a receipt, instead of None.
    pub fn give_receipt(&self) {
        self.inner.lock().receipt = true;
    }

    /// What came of it: None, or a receipt.
    pub fn outcome(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let message = match &self.inner.lock().state {
            State::Pending => return Err(invalid_state(py, "Result is not set.")),
            State::Done => return Ok(None),
            State::Told(receipt) => {
                let receipt = *receipt;
                return receipts::to_python(py, receipt).map(Some);
            }
            State::Failed(error) => return Err(error.clone_ref(py)),
            State::Cancelled(message) => message.as_ref().map(|message| message.clone_ref(py)),
        };
        Err(cancelled(py, message))
    }

    /// Gives it, and wakes who waits. To be called by the reader of the loop's bridge only.
    ///
    /// An error is one that ends the loop; another waiter's are reported to it.
    pub fn give(slf: &Bound<'_, Self>, outcome: Outcome) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let (told, error) = match outcome {
            // Whoever wants trouble raised is not to take this for published.
            Ok(Receipt { status: Status::Stale, .. }) if this.doing == Doing::Publishing => {
                let text = "stale: the upload has a message with this version or a newer one";
                (None, Some(errors::new(py, "PublishError", text.to_owned())))
            }
            Ok(receipt) => (Some(receipt), None),
            Err(error) => (None, errors::to_python(py, &error, this.doing)),
        };
        let waiters = {
            let mut inner = this.inner.lock();
            // Cancelled meanwhile: nobody wants it.
            let State::Pending = inner.state else { return Ok(()) };
            inner.state = match error {
                Some(error) => State::Failed(error),
                None if inner.receipt => State::Told(told),
                None => State::Done,
            };
            std::mem::take(&mut inner.waiters)
        };
        let mut ending = None;
        for Waiter { callback, context } in waiters {
            let run = intern!(py, "run");
            let Err(error) = context.bind(py).call_method1(run, (&callback, slf)) else { continue };
            if error.is_instance_of::<PyKeyboardInterrupt>(py)
                || error.is_instance_of::<PySystemExit>(py)
            {
                ending = ending.or(Some(error));
            } else {
                this.report(py, &callback, &error)?;
            }
        }
        ending.map_or(Ok(()), Err)
    }

    /// Says of a waiter's error what asyncio would.
    fn report(&self, py: Python<'_>, callback: &Py<PyAny>, error: &PyErr) -> PyResult<()> {
        let context = PyDict::new(py);
        context.set_item("message", format!("Exception in callback {}", callback.bind(py)))?;
        context.set_item("exception", error.value(py))?;
        self.event_loop
            .call_method1(py, intern!(py, "call_exception_handler"), (context,))
            .map(drop)
    }

    /// Cancels it. False if it was there already.
    pub fn cancel_it(slf: &Bound<'_, Self>, message: Option<Bound<'_, PyAny>>) -> PyResult<bool> {
        let waiters = {
            let mut inner = slf.get().inner.lock();
            let State::Pending = inner.state else { return Ok(false) };
            inner.state = State::Cancelled(message.map(Bound::unbind));
            std::mem::take(&mut inner.waiters)
        };
        // Whoever cancels is in the middle of something else, so these are called later.
        for waiter in waiters {
            Self::call_soon(slf, waiter)?;
        }
        Ok(true)
    }

    fn call_soon(slf: &Bound<'_, Self>, waiter: Waiter) -> PyResult<()> {
        let py = slf.py();
        let keywords = PyDict::new(py);
        keywords.set_item(intern!(py, "context"), waiter.context)?;
        let arguments = (waiter.callback, slf);
        let event_loop = slf.get().event_loop.bind(py);
        event_loop.call_method(intern!(py, "call_soon"), arguments, Some(&keywords)).map(drop)
    }
}

#[pymethods]
impl Answer {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Option<Py<Self>>> {
        let this = slf.get();
        if this.done() {
            return match this.outcome(slf.py())? {
                None => Ok(None),
                Some(receipt) => Err(PyStopIteration::new_err((receipt,))),
            };
        }
        this.await_it();
        Ok(Some(slf.clone().unbind()))
    }

    #[getter]
    fn _asyncio_future_blocking(&self) -> bool {
        self.inner.lock().blocking
    }

    #[setter(_asyncio_future_blocking)]
    fn set_blocking(&self, blocking: bool) {
        self.inner.lock().blocking = blocking;
    }

    fn get_loop(&self, py: Python<'_>) -> Py<PyAny> {
        self.event_loop.clone_ref(py)
    }

    #[pyo3(signature = (callback, /, *, context=None))]
    fn add_done_callback(
        slf: &Bound<'_, Self>,
        callback: Py<PyAny>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        static COPY_CONTEXT: Once<Py<PyAny>> = Once::new();
        let py = slf.py();
        let context = match context {
            Some(context) => context,
            None => COPY_CONTEXT.import(py, "contextvars", "copy_context")?.call0()?.unbind(),
        };
        let waiter = Waiter { callback, context };
        let mut inner = slf.get().inner.lock();
        if let State::Pending = inner.state {
            inner.waiters.push(waiter);
            return Ok(());
        }
        drop(inner);
        Self::call_soon(slf, waiter)
    }

    fn remove_done_callback(&self, callback: &Bound<'_, PyAny>) -> PyResult<usize> {
        let py = callback.py();
        // Taken out, so that no lock is held while Python compares.
        let all = std::mem::take(&mut self.inner.lock().waiters);
        let (mut kept, mut removed) = (SmallVec::new(), 0);
        for waiter in all {
            if waiter.callback.bind(py).eq(callback)? {
                removed += 1;
            } else {
                kept.push(waiter);
            }
        }
        let mut inner = self.inner.lock();
        kept.append(&mut inner.waiters);
        inner.waiters = kept;
        Ok(removed)
    }

    fn done(&self) -> bool {
        !matches!(self.inner.lock().state, State::Pending)
    }

    fn cancelled(&self) -> bool {
        matches!(self.inner.lock().state, State::Cancelled(_))
    }

    fn result(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.outcome(py)
    }

    fn exception(&self, py: Python<'_>) -> PyResult<Option<Py<PyBaseException>>> {
        if let State::Failed(error) = &self.inner.lock().state {
            return Ok(Some(error.value(py).clone().unbind()));
        }
        self.outcome(py).map(|_| None)
    }

    #[pyo3(signature = (msg=None))]
    fn cancel(slf: &Bound<'_, Self>, msg: Option<Bound<'_, PyAny>>) -> PyResult<bool> {
        Self::cancel_it(slf, msg)
    }

    fn __repr__(&self) -> &'static str {
        match self.inner.lock().state {
            State::Pending => "<Answer pending>",
            State::Done | State::Told(_) | State::Failed(_) => "<Answer done>",
            State::Cancelled(_) => "<Answer cancelled>",
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        let Some(inner) = self.inner.try_lock() else { return Ok(()) };
        for waiter in &inner.waiters {
            visit.call(&waiter.callback)?;
            visit.call(&waiter.context)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let waiters = std::mem::take(&mut self.inner.lock().waiters);
        drop(waiters);
    }
}

fn cancelled(py: Python<'_>, message: Option<Py<PyAny>>) -> PyErr {
    match cancelled_error(py) {
        Ok(class) => match message {
            Some(message) => PyErr::from_type(class.clone(), (message,)),
            None => PyErr::from_type(class.clone(), ()),
        },
        Err(error) => error,
    }
}

fn invalid_state(py: Python<'_>, text: &'static str) -> PyErr {
    static CLASS: Once<Py<PyType>> = Once::new();
    match CLASS.import(py, "asyncio", "InvalidStateError") {
        Ok(class) => PyErr::from_type(class.clone(), text),
        Err(error) => error,
    }
}
