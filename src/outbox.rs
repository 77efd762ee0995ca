//! What waits to be published, between the threads that publish and the I/O thread that sends.
//!
//! A message to an idle outbox goes out at once. While others follow it in the same turn of an event
//! loop they are gathered, and go out when there are [`GATHERED`] of them, or when the loop calls
//! [`Outbox::flush`] at the end of that turn. So fifty at once are four round trips and not twenty, and
//! the loop works on the next while the broker works on the last.
//!
//! During an outage everything goes to the [`Backlog`] instead, and nobody waits. What is in it goes out
//! first when the broker is back, and who publishes then waits again, which is what bounds the queue.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backlog::{Answers, Backlog, Keeping};
use crate::error::Error;
use crate::message::Outgoing;
use crate::post::{Receipt, Reply, Status};

/// As many messages go out without waiting for the end of the loop's turn. Of fifty publishers side by
/// side the loop is never idle then, and publishes half as many again as with all fifty at once.
const GATHERED: usize = 16;

/// A message that waits, and who waits for it.
#[derive(Debug)]
pub struct Item {
    /// What is to be sent.
    pub outgoing: Outgoing,
    /// Answered when the broker has taken it or it has failed; None if nobody waits.
    pub reply: Option<Reply>,
    /// Since when it has waited out an outage.
    pub since: Option<Instant>,
    /// How many came to the outbox before it; given there.
    pub number: u64,
}

impl Item {
    /// A message that has not waited.
    pub fn new(outgoing: Outgoing, reply: Option<Reply>) -> Self {
        Self { outgoing, reply, since: None, number: 0 }
    }
}

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<Item>,
    /// Messages that ever came.
    came: u64,
    /// Those of them that found no room when an outage began.
    overflowed: u64,
    /// Bytes of payload, those in hand included.
    bytes: usize,
    /// Messages taken by [`Outbox::next`] and not yet [`Outbox::done`].
    in_hand: usize,
    bytes_in_hand: usize,
    /// The lowest number among those in hand.
    first_in_hand: Option<u64>,
    /// Messages that [`Outbox::next`] gave last: where there was more than one, more than one will come.
    last: usize,
    /// Whether what waits is to be sent; never while nothing waits.
    due: bool,
    closed: bool,
    /// Whether what comes is kept, because the broker cannot be reached.
    down: bool,
    /// What is kept; None while there is nothing, and no outage.
    backlog: Option<Box<Backlog>>,
}

impl Inner {
    fn add(&mut self, mut item: Item) {
        self.number(&mut item);
        self.bytes += item.outgoing.payload.len();
        self.queue.push_back(item);
    }

    fn number(&mut self, item: &mut Item) {
        item.number = self.came;
        self.came += 1;
    }

    /// The lowest number among what is not done with. What waits out an outage is out of order, and
    /// looked through.
    fn oldest(&self) -> Option<u64> {
        let queued = self.queue.front().map(|item| item.number);
        let kept = self.backlog.as_ref().and_then(|backlog| backlog.oldest());
        [queued, self.first_in_hand, kept].into_iter().flatten().min()
    }

    fn has_backlog(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| !backlog.is_empty())
    }

    /// Messages and bytes that wait, those in hand included.
    fn waiting(&self) -> (usize, usize) {
        let (kept, bytes) =
            self.backlog.as_ref().map_or((0, 0), |backlog| (backlog.len(), backlog.bytes()));
        (self.queue.len() + self.in_hand + kept, self.bytes + bytes)
    }

    fn hand_over(&mut self, batch: Vec<Item>) -> Vec<Item> {
        (self.in_hand, self.last) = (batch.len(), batch.len());
        self.first_in_hand = batch.iter().map(|item| item.number).min();
        self.bytes_in_hand = batch.iter().map(|item| item.outgoing.payload.len()).sum();
        batch
    }

    fn put_down(&mut self) {
        (self.in_hand, self.first_in_hand) = (0, None);
        self.bytes -= std::mem::take(&mut self.bytes_in_hand);
    }
}

/// The queue. Any thread puts in, one task takes out.
#[derive(Debug, Default)]
pub struct Outbox {
    inner: Mutex<Inner>,
    filled: Notify,
    /// Some of what waited waits no longer.
    left: Notify,
    /// None where nothing is kept during an outage.
    keeping: Option<Arc<Keeping>>,
}

impl Outbox {
    /// An empty one.
    pub fn new(keeping: Option<Arc<Keeping>>) -> Self {
        Self { keeping, ..Self::default() }
    }

    /// Whether it keeps messages during an outage.
    pub fn keeps(&self) -> bool {
        self.keeping.is_some()
    }

    /// Adds a message without a limit: its publisher waits, and so bounds the queue itself.
    ///
    /// True if the caller is to [`Outbox::flush`] at the end of its loop's turn.
    #[must_use]
    pub fn push(&self, item: Item) -> bool {
        let mut inner = self.inner.lock();
        if inner.down {
            drop(inner);
            // Whoever waits is answered; here it is only counted.
            if let (Err(_), Some(keeping)) = (self.keep(item), &self.keeping) {
                keeping.stats.publish_refused.add(1);
            }
            return false;
        }
        let alone = inner.queue.is_empty() && inner.in_hand == 0 && inner.last <= 1;
        inner.add(item);
        if inner.due {
            return false;
        }
        inner.due = alone || inner.queue.len() >= GATHERED;
        let gathers = !inner.due;
        drop(inner);
        if !gathers {
            self.filled.notify_one();
        }
        gathers
    }

    /// Adds a message for which nobody waits, unless too much is there already.
    pub fn try_push(&self, outgoing: Outgoing, messages: usize, bytes: usize) -> Result<(), Error> {
        let mut inner = self.inner.lock();
        if inner.down {
            drop(inner);
            return self.keep(Item::new(outgoing, None));
        }
        let waiting = inner.queue.len() + inner.in_hand;
        if waiting >= messages || inner.bytes + outgoing.payload.len() > bytes {
            return Err(Error::Full { messages: waiting, bytes: inner.bytes });
        }
        inner.add(Item::new(outgoing, None));
        if !std::mem::replace(&mut inner.due, true) {
            drop(inner);
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Keeps a message that comes during an outage. Nobody waits for it.
    fn keep(&self, mut item: Item) -> Result<(), Error> {
        if let Some(keeping) = &self.keeping {
            keeping.classify(&mut item.outgoing); // without the lock: it may be long
        }
        let mut answers = Answers::new();
        let kept = {
            let mut guard = self.inner.lock();
            let inner = &mut *guard;
            match &mut inner.backlog {
                Some(backlog) if inner.down => {
                    item.number = inner.came;
                    inner.came += 1;
                    let reply = item.reply.take();
                    let kept = backlog.push(item, &mut answers);
                    let queued = Receipt { status: Status::Queued, ..Receipt::default() };
                    let outcome = kept.clone().map(|()| queued);
                    answers.extend(reply.map(|reply| (reply, outcome)));
                    kept
                }
                _ => {
                    // The outage has just ended.
                    inner.add(item);
                    inner.due = true;
                    Ok(())
                }
            }
        };
        self.filled.notify_one();
        self.left.notify_waiters();
        for (reply, outcome) in answers {
            reply.give(outcome);
        }
        kept
    }

    /// Says that the broker cannot be reached: what waits is kept, behind what comes back of the
    /// messages in hand. Gives the answers that are due; nobody waits any longer.
    #[must_use]
    pub fn hold(&self, back: Vec<Item>) -> Answers {
        let mut answers = Answers::new();
        let Some(keeping) = &self.keeping else { return answers };
        let classified = |mut item: Item| {
            keeping.classify(&mut item.outgoing);
            item
        };
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        (inner.down, inner.due) = (true, false);
        let bytes: usize = inner.queue.iter().map(|item| item.outgoing.payload.len()).sum();
        inner.bytes -= bytes;
        inner.put_down();
        let fresh = || Box::new(Backlog::new(Arc::clone(keeping)));
        let backlog = inner.backlog.get_or_insert_with(fresh);
        backlog.put_back(back.into_iter().map(classified).collect(), &mut answers);
        for item in inner.queue.drain(..) {
            if backlog.push(classified(item), &mut answers).is_err() {
                keeping.stats.publish_refused.add(1);
                inner.overflowed += 1;
            }
        }
        backlog.expire(&mut answers);
        backlog.answer(&mut answers);
        drop(guard);
        self.left.notify_waiters();
        answers
    }

    /// Says that the broker takes messages: who publishes waits for it again.
    pub fn release(&self) {
        let mut inner = self.inner.lock();
        inner.down = false;
        if !inner.has_backlog() {
            inner.backlog = None;
        }
    }

    /// Waits until something is to be sent. False once the outbox is closed and empty.
    pub async fn due(&self) -> bool {
        loop {
            let filled = self.filled.notified();
            {
                let _gate = crate::runtime::gate();
                let inner = self.inner.lock();
                if inner.due || inner.has_backlog() {
                    return true;
                }
                if inner.closed {
                    return !inner.queue.is_empty();
                }
            }
            filled.await;
        }
    }

    /// Lets what waits go out.
    pub fn flush(&self) {
        let mut inner = self.inner.lock();
        if !inner.queue.is_empty() && !std::mem::replace(&mut inner.due, true) {
            drop(inner);
            self.filled.notify_one();
        }
    }

    /// Takes up to `most` messages, and no more than `bytes` unless a single one is larger, once they
    /// are due: what an outage left first. None once the outbox is closed and empty.
    pub async fn next(&self, most: usize, bytes: usize) -> Option<Vec<Item>> {
        loop {
            let filled = self.filled.notified();
            {
                let _gate = crate::runtime::gate();
                let mut inner = self.inner.lock();
                if let Some(backlog) = &mut inner.backlog {
                    backlog.expire(&mut Answers::new()); // nobody waits for what is kept
                    self.left.notify_waiters();
                    let batch = backlog.take(most, bytes);
                    if !batch.is_empty() {
                        let size: usize =
                            batch.iter().map(|item| item.outgoing.payload.len()).sum();
                        inner.bytes += size;
                        return Some(inner.hand_over(batch));
                    }
                }
                if inner.due || inner.closed {
                    if inner.queue.is_empty() {
                        return None; // nothing is due, so it is closed
                    }
                    let mut size = 0;
                    let fitting = inner.queue.iter().take(most).take_while(|item| {
                        size += item.outgoing.payload.len();
                        size <= bytes
                    });
                    let count = fitting.count().max(1);
                    let batch: Vec<Item> = inner.queue.drain(..count).collect();
                    inner.due = !inner.queue.is_empty();
                    return Some(inner.hand_over(batch));
                }
            }
            filled.await;
        }
    }

    /// How many [`Outbox::next`] gave last that are not done with.
    pub fn in_hand(&self) -> usize {
        self.inner.lock().in_hand
    }

    /// Says that what [`Outbox::next`] gave last has been answered.
    pub fn done(&self) {
        let mut inner = self.inner.lock();
        inner.put_down();
        drop(inner);
        self.left.notify_waiters();
    }

    /// Closes, and takes what waits: it will not be sent.
    pub fn give_up(&self) -> Vec<Item> {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.due = false;
        let mut items: Vec<Item> = inner.queue.drain(..).collect();
        let bytes: usize = items.iter().map(|item| item.outgoing.payload.len()).sum();
        inner.bytes -= bytes;
        inner.put_down();
        inner.down = false;
        if let Some(backlog) = inner.backlog.take() {
            items.extend(backlog.clear());
        }
        drop(inner);
        self.left.notify_waiters();
        items
    }

    /// Waits until nothing waits.
    pub async fn drained(&self) {
        loop {
            let left = self.left.notified();
            {
                let _gate = crate::runtime::gate();
                if self.waiting().0 == 0 {
                    return;
                }
            }
            left.await;
        }
    }

    /// How many messages ever came.
    pub fn came(&self) -> u64 {
        self.inner.lock().came
    }

    /// How many of them found no room when an outage began.
    pub fn overflowed(&self) -> u64 {
        self.inner.lock().overflowed
    }

    /// Whether none of the first so many messages waits.
    pub fn is_past(&self, count: u64) -> bool {
        self.inner.lock().oldest().is_none_or(|oldest| oldest >= count)
    }

    /// Waits until none of the first so many messages waits.
    pub async fn past(&self, count: u64) {
        loop {
            let left = self.left.notified();
            {
                let _gate = crate::runtime::gate();
                if self.is_past(count) {
                    return;
                }
            }
            left.await;
        }
    }

    /// Messages and bytes of payload that wait, those being sent included.
    pub fn waiting(&self) -> (usize, usize) {
        self.inner.lock().waiting()
    }

    /// Ends the task that takes out, once it has taken everything.
    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.filled.notify_one();
    }
}

#[cfg(test)]
mod tests;
