//! What crosses from an I/O thread to an event loop, and the flag that wakes it once per batch.
//!
//! The producer locks, pushes, and wakes only if the flag was clear. The loop first swallows the
//! wake-up (reads the descriptor), then clears the flag and takes the batch under the same lock. In
//! that order no wake-up is lost: a push that finds the flag set is part of the batch that the wake-up
//! under way will take. `tests/loom_mailbox.rs` checks every interleaving of this file.

use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(feature = "loom")]
use loom::sync::Mutex;
#[cfg(not(feature = "loom"))]
use parking_lot::Mutex;

#[derive(Debug)]
struct Inner<T> {
    posts: Vec<T>,
    signalled: bool,
}

/// A queue from any thread to one event loop.
///
/// `W` rings the loop's bell: on Linux a write to an eventfd. It is called at most once per batch,
/// outside the lock, and must neither block nor attach to Python.
pub struct Mailbox<T, W> {
    inner: Mutex<Inner<T>>,
    wake: W,
    closed: AtomicBool,
    generation: u64,
}

impl<T, W> std::fmt::Debug for Mailbox<T, W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl<T, W: Fn()> Mailbox<T, W> {
    /// An empty mailbox of the process with the given fork generation.
    pub fn new(wake: W, generation: u64) -> Self {
        let inner = Mutex::new(Inner { posts: Vec::new(), signalled: false });
        Self { inner, wake, closed: AtomicBool::new(false), generation }
    }

    /// Puts a post in. Returns false, and drops it, when the loop is gone.
    pub fn post(&self, post: T) -> bool {
        if self.is_closed() {
            return false;
        }
        let ring = {
            let mut inner = self.lock();
            if self.is_closed() {
                return false; // closed since: what is put in now would never be taken
            }
            inner.posts.push(post);
            !std::mem::replace(&mut inner.signalled, true)
        };
        if ring {
            (self.wake)();
        }
        true
    }

    /// Puts several posts in at the price of one wake-up.
    pub fn post_all(&self, posts: impl IntoIterator<Item = T>) -> bool {
        if self.is_closed() {
            return false;
        }
        let ring = {
            let mut inner = self.lock();
            if self.is_closed() {
                return false;
            }
            inner.posts.extend(posts);
            !inner.posts.is_empty() && !std::mem::replace(&mut inner.signalled, true)
        };
        if ring {
            (self.wake)();
        }
        true
    }

    /// Takes everything. To be called after the wake-up was swallowed, never before.
    pub fn take(&self) -> Vec<T> {
        let mut inner = self.lock();
        inner.signalled = false;
        std::mem::take(&mut inner.posts)
    }

    /// Says that the loop is gone: later posts are refused.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        drop(self.take());
    }

    /// Whether it belongs to a loop of the process this one was forked from.
    pub fn is_foreign(&self) -> bool {
        self.generation != crate::runtime::generation()
    }

    /// Whether the loop is gone, which it also is for the child of a fork.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire) || self.is_foreign()
    }

    #[cfg(not(feature = "loom"))]
    fn lock(&self) -> parking_lot::MutexGuard<'_, Inner<T>> {
        self.inner.lock()
    }

    #[cfg(feature = "loom")]
    fn lock(&self) -> loom::sync::MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap()
    }
}
