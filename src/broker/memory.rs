//! The broker inside this process: every publisher with `memory://` shares it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::BATCH;
use crate::error::Error;
use crate::message::Outgoing;
use crate::router::Inbound;
use crate::runtime;

/// Batches that may wait for one listener before publishers wait for it.
const WAITING_BATCHES: usize = 64;

type Batch = Arc<[Outgoing]>;

/// Who listens, with the fork generation it listens in: a child does not publish to its parent.
static LISTENERS: Mutex<(u64, Vec<mpsc::Sender<Batch>>)> = Mutex::new((0, Vec::new()));

fn listeners<T>(use_them: impl FnOnce(&mut Vec<mpsc::Sender<Batch>>) -> T) -> T {
    let _gate = runtime::gate();
    let mut listeners = LISTENERS.lock();
    if listeners.0 != runtime::generation() {
        // Forgotten, not dropped: the tasks these would wake are in the parent.
        std::mem::forget(std::mem::take(&mut listeners.1));
        listeners.0 = runtime::generation();
    }
    use_them(&mut listeners.1)
}

/// The publishing side.
#[derive(Debug)]
pub struct Link;

impl Link {
    /// Hands the batch to every listener. One that is behind is waited for, but not for ever: after
    /// `limit` it misses the batch, which is an error.
    pub async fn publish(&mut self, batch: &[Outgoing], limit: Duration) -> Vec<Result<(), Error>> {
        let shared: Batch = batch.into();
        let current = listeners(|all| {
            all.retain(|listener| !listener.is_closed());
            all.clone()
        });
        let mut outcome = Ok(());
        for listener in current {
            // A send fails only if the listener has just ended, and then it wants no more.
            let sent = tokio::time::timeout(limit, listener.send(Arc::clone(&shared))).await;
            if sent.is_err() {
                outcome = Err(Error::Timeout { url: "memory://".into(), after: limit });
            }
        }
        vec![outcome; batch.len()]
    }
}

/// The receiving side.
#[derive(Debug)]
pub struct Listening(mpsc::Receiver<Batch>);

impl Listening {
    /// Listens from now on.
    pub fn open() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_BATCHES);
        listeners(|all| all.push(sender));
        Self(receiver)
    }

    pub(super) async fn next(
        &mut self,
        deliver: &mut (dyn for<'a> FnMut(&[Inbound<'a>]) + Send),
    ) -> Result<(), Error> {
        let ended =
            || Error::Unreachable { url: "memory://".into(), reason: "the broker is gone".into() };
        let batch = self.0.recv().await.ok_or_else(ended)?;
        for part in batch.chunks(BATCH) {
            let inbound: Vec<Inbound<'_>> = part
                .iter()
                .map(|out| Inbound { channel: out.channel.as_bytes(), payload: &out.payload })
                .collect();
            deliver(&inbound);
        }
        Ok(())
    }
}
