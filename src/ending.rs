//! What waits to be published when its process ends.

use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::journal::{Journal, Level};
use crate::outbox::Outbox;
use crate::runtime;

/// An outbox that something was put into.
struct Used {
    generation: u64,
    outbox: Weak<Outbox>,
    url: String,
    journal: Arc<Journal>,
}

static ALL: Mutex<Vec<Used>> = Mutex::new(Vec::new());

/// Remembers an outbox for as long as it lives, and where what it has to say is logged.
pub fn remember(outbox: &Arc<Outbox>, url: &str, journal: &Arc<Journal>) {
    let generation = runtime::generation();
    let used = Used {
        generation,
        outbox: Arc::downgrade(outbox),
        url: url.to_owned(),
        journal: Arc::clone(journal),
    };
    let mut all = ALL.lock();
    // What waited at a fork is the parent's to send.
    all.retain(|other| {
        let is_alive = other.outbox.strong_count() > 0 && other.generation == generation;
        is_alive && !Weak::ptr_eq(&other.outbox, &used.outbox)
    });
    all.push(used);
}

/// What waits in an outbox of a process that ends.
#[derive(Debug)]
pub struct Ending {
    outbox: Arc<Outbox>,
    url: String,
    journal: Arc<Journal>,
}

impl Ending {
    /// Every outbox of this process.
    pub fn all() -> Vec<Self> {
        let generation = runtime::generation();
        let all = ALL.lock();
        let own = all.iter().filter(|used| used.generation == generation);
        let alive = own.filter_map(|used| {
            let (url, journal) = (used.url.clone(), Arc::clone(&used.journal));
            Some(Self { outbox: used.outbox.upgrade()?, url, journal })
        });
        alive.collect()
    }

    /// Waits for what waits. False where the time is up first.
    pub fn wait(&self, limit: Duration) -> bool {
        let is_empty = || self.outbox.waiting().0 == 0;
        if is_empty() {
            return true;
        }
        self.outbox.flush();
        let (tell, told) = sync_channel(1);
        let outbox = Arc::clone(&self.outbox);
        let waiting = runtime::spawn(async move {
            outbox.drained().await;
            let _told_or_gone = tell.try_send(());
        });
        let Ok(waiting) = waiting else { return false };
        let _told_or_late = told.recv_timeout(limit);
        waiting.abort();
        is_empty()
    }

    /// Says how much is left.
    pub fn tell(&self) {
        let text = format!(
            "{}: the interpreter ends before {} messages could be published",
            self.url,
            self.outbox.waiting().0,
        );
        self.journal.add(Level::Error, text);
    }

    /// Lines to log.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::Outgoing;

    fn mine(outbox: &Arc<Outbox>) -> Vec<Ending> {
        let mut all = Ending::all();
        all.retain(|ending| Arc::ptr_eq(&ending.outbox, outbox));
        all
    }

    #[test]
    fn a_process_that_ends_waits_for_what_waits_and_tells_what_is_left() {
        let (outbox, journal) = (Arc::new(Outbox::default()), Arc::default());
        for _ in 0..2 {
            remember(&outbox, "redis://somewhere", &journal);
        }
        let outgoing = Outgoing::new("upload:x".into(), Bytes::from_static(b"1"));
        outbox.try_push(outgoing, 10, 100).unwrap();
        let ending = mine(&outbox).pop().unwrap();
        assert_eq!(mine(&outbox).len(), 1, "it is remembered once");
        assert!(!ending.wait(Duration::ZERO));
        ending.tell();
        let said = ending.journal().drain().pop().unwrap().text;
        assert_eq!(
            said,
            "redis://somewhere: the interpreter ends before 1 messages could be published"
        );
        let sending = runtime::spawn(async move {
            drop(outbox.next(1, 100).await);
            outbox.done();
        });
        assert!(ending.wait(Duration::from_secs(30)));
        drop(sending);
    }
}
