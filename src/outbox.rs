//! What waits to be published, between the threads that publish and the I/O thread that sends.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::Error;
use crate::message::Outgoing;
use crate::post::Reply;

/// A message that waits, and who waits for it.
#[derive(Debug)]
pub struct Item {
    /// What is to be sent.
    pub outgoing: Outgoing,
    /// Answered when the broker has taken it or it has failed; None if nobody waits.
    pub reply: Option<Reply>,
}

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<Item>,
    bytes: usize,
    /// Messages taken by [`Outbox::next`] and not yet [`Outbox::done`].
    in_hand: usize,
    closed: bool,
}

/// The queue. Any thread puts in, one task takes out.
#[derive(Debug, Default)]
pub struct Outbox {
    inner: Mutex<Inner>,
    filled: Notify,
    emptied: Notify,
}

impl Outbox {
    /// Adds a message without a limit: its publisher waits, and so bounds the queue itself.
    pub fn push(&self, item: Item) {
        let mut inner = self.inner.lock();
        inner.bytes += item.outgoing.payload.len();
        inner.queue.push_back(item);
        drop(inner);
        self.filled.notify_one();
    }

    /// Adds a message for which nobody waits, unless too much is there already.
    pub fn try_push(&self, outgoing: Outgoing, messages: usize, bytes: usize) -> Result<(), Error> {
        let mut inner = self.inner.lock();
        if inner.queue.len() >= messages || inner.bytes + outgoing.payload.len() > bytes {
            return Err(Error::Full { messages: inner.queue.len(), bytes: inner.bytes });
        }
        inner.bytes += outgoing.payload.len();
        inner.queue.push_back(Item { outgoing, reply: None });
        drop(inner);
        self.filled.notify_one();
        Ok(())
    }

    /// Takes up to `most` messages, waiting for the first. None once the outbox is closed and empty.
    pub async fn next(&self, most: usize) -> Option<Vec<Item>> {
        loop {
            let filled = self.filled.notified();
            {
                let _gate = crate::runtime::gate();
                let mut inner = self.inner.lock();
                if !inner.queue.is_empty() {
                    let count = inner.queue.len().min(most);
                    let batch: Vec<Item> = inner.queue.drain(..count).collect();
                    inner.bytes -=
                        batch.iter().map(|item| item.outgoing.payload.len()).sum::<usize>();
                    inner.in_hand = batch.len();
                    return Some(batch);
                }
                if inner.closed {
                    return None;
                }
            }
            filled.await;
        }
    }

    /// Says that what [`Outbox::next`] gave last has been answered.
    pub fn done(&self) {
        let mut inner = self.inner.lock();
        inner.in_hand = 0;
        let empty = inner.queue.is_empty();
        drop(inner);
        if empty {
            self.emptied.notify_waiters();
        }
    }

    /// Waits until nothing waits.
    pub async fn drained(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.waiting().0 == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Messages and bytes of payload that wait, those being sent included in the count.
    pub fn waiting(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.queue.len() + inner.in_hand, inner.bytes)
    }

    /// Ends the task that takes out, once it has taken everything.
    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.filled.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn outgoing(size: usize) -> Outgoing {
        Outgoing { channel: "upload:x".into(), payload: Bytes::from(vec![b'1'; size]) }
    }

    #[tokio::test]
    async fn limits_refuse_and_order_is_kept() {
        let outbox = Outbox::default();
        assert!(outbox.try_push(outgoing(10), 2, 15).is_ok());
        assert!(matches!(
            outbox.try_push(outgoing(6), 2, 15),
            Err(Error::Full { messages: 1, bytes: 10 })
        ));
        assert!(outbox.try_push(outgoing(5), 2, 15).is_ok());
        assert!(outbox.try_push(outgoing(0), 2, 15).is_err());
        let batch = outbox.next(10).await.unwrap();
        assert_eq!(
            batch.iter().map(|item| item.outgoing.payload.len()).collect::<Vec<_>>(),
            [10, 5]
        );
        assert_eq!(outbox.waiting(), (2, 0));
        outbox.done();
        outbox.drained().await;
        outbox.close();
        assert!(outbox.next(1).await.is_none());
    }
}
