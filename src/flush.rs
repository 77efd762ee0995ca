//! A thread's waiting for what is published.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// Somebody waits until what they have published is done with.
#[derive(Debug)]
pub struct Flush {
    told: Receiver<bool>,
    /// Gone when nobody waits any longer.
    _waits: Option<Arc<()>>,
}

impl Flush {
    /// One that is told there, by somebody who may look at `waits` whether it still matters.
    pub(crate) fn new(told: Receiver<bool>, waits: Option<Arc<()>>) -> Self {
        Self { told, _waits: waits }
    }

    /// Waits; None where the time is up first. Otherwise whether nothing was lost since the waiting began.
    pub fn wait(&mut self, limit: Duration) -> Option<bool> {
        match self.told.recv_timeout(limit) {
            Ok(whole) => Some(whole),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(false),
        }
    }
}
