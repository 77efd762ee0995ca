//! Python code that runs under native code while the interpreter ends.
//!
//! Before CPython 3.14 a daemon thread that wants the GIL of an interpreter which is being finalized ends by
//! `pthread_exit`, and where native frames stand below it the process aborts. So the end waits for the
//! application's code that was called from here (a `__str__`, a `model_dump_json`, a handler of `logging`),
//! and other threads call no more of it.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::exceptions::{PyRecursionError, PyRuntimeError};
use pyo3::prelude::*;

use crate::runtime;

/// How long the end waits for such code.
const PATIENCE: Duration = Duration::from_millis(300);
/// Such code that calls fanwire again, which calls such code: native stacks are not endless.
const DEEPEST: usize = 10;

/// Threads that are in such code.
static INSIDE: AtomicUsize = AtomicUsize::new(0);
/// The fork generation in which they are.
static GENERATION: AtomicU64 = AtomicU64::new(0);
static ENDING: AtomicBool = AtomicBool::new(false);
/// The thread that ends the interpreter.
static ENDER: Mutex<Option<ThreadId>> = Mutex::new(None);

thread_local! {
    /// How often this thread is inside.
    static HERE: Cell<usize> = const { Cell::new(0) };
    /// How deep this thread's calls of fanwire are nested.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// A thread is in the application's code, by way of native code.
pub struct Inside {
    generation: u64,
}

/// To be held while the application's code is called. An error: the interpreter ends, in another thread.
pub fn enter() -> PyResult<Inside> {
    INSIDE.fetch_add(1, Ordering::SeqCst);
    if ENDING.load(Ordering::SeqCst) && *ENDER.lock() != Some(std::thread::current().id()) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
        return Err(PyRuntimeError::new_err("the interpreter ends"));
    }
    HERE.set(HERE.get() + 1);
    Ok(Inside { generation: GENERATION.load(Ordering::SeqCst) })
}

impl Drop for Inside {
    fn drop(&mut self) {
        // In the child of a fork the threads of the parent are not.
        if self.generation == GENERATION.load(Ordering::SeqCst) {
            HERE.set(HERE.get().saturating_sub(1));
            INSIDE.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// A call of fanwire that may be called again by what it calls.
pub struct Nested(());

/// To be held for as long as such a call takes.
pub fn nest() -> PyResult<Nested> {
    let depth = DEPTH.get();
    if depth >= DEEPEST {
        let text = format!("fanwire was called again from what it calls, {DEEPEST} levels deep");
        return Err(PyRecursionError::new_err(text));
    }
    DEPTH.set(depth + 1);
    Ok(Nested(()))
}

impl Drop for Nested {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get().saturating_sub(1));
    }
}

/// The interpreter ends: waits for those who are inside, but for this thread itself.
pub fn end(py: Python<'_>) {
    *ENDER.lock() = Some(std::thread::current().id());
    ENDING.store(true, Ordering::SeqCst);
    let (begun, own) = (Instant::now(), HERE.get());
    py.detach(|| {
        while INSIDE.load(Ordering::SeqCst) > own && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// In the child of a fork nobody else is inside, and nothing ends.
pub fn begin_anew() {
    INSIDE.store(0, Ordering::SeqCst);
    HERE.set(0);
    GENERATION.store(runtime::generation(), Ordering::SeqCst);
    ENDING.store(false, Ordering::SeqCst);
}
