//! What `__init__` fills.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The contents of an object, once `__init__` has been called.
///
/// An object with a `__dict__` is seen by the garbage collector as soon as Python has allocated it,
/// when all of its bytes are zero and nothing of Rust's has been written yet. `filled` is false then;
/// a `OnceLock` of zeros would claim to be full.
pub struct Slot<T> {
    filled: AtomicBool,
    value: OnceLock<T>,
}

impl<T> Slot<T> {
    /// An empty one.
    pub fn new() -> Self {
        Self { filled: AtomicBool::new(false), value: OnceLock::new() }
    }

    /// Fills it; the first value counts.
    pub fn fill(&self, value: T) {
        self.value.get_or_init(|| value);
        self.filled.store(true, Ordering::Release);
    }

    /// The value, if there is one.
    pub fn get(&self) -> Option<&T> {
        if self.filled.load(Ordering::Acquire) { self.value.get() } else { None }
    }
}
