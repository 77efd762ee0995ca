//! Every interleaving of two producers and the loop's reader, checked by loom.
//!
//! `cargo test --no-default-features --features loom --test loom_mailbox` (part of `make rust-test`);
//! without that feature there is nothing to check here.
#![cfg(feature = "loom")]

use fanwire::mailbox::Mailbox;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// Two producers post two messages each while the reader runs. The descriptor is a counter of
/// wake-ups: the reader may look only when it is not zero, exactly as a loop watches an eventfd.
/// When all have stopped, either everything was read or a wake-up is still there to be seen.
#[test]
fn no_wake_up_is_lost() {
    loom::model(|| {
        let descriptor = Arc::new(AtomicUsize::new(0));
        let ring = Arc::clone(&descriptor);
        let mailbox = Arc::new(Mailbox::new(
            move || {
                ring.fetch_add(1, Ordering::SeqCst);
            },
            0,
        ));
        let producers: Vec<_> = [0, 10]
            .into_iter()
            .map(|first| {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || {
                    assert!(mailbox.post(first));
                    assert!(mailbox.post(first + 1));
                })
            })
            .collect();
        let mut read = Vec::new();
        // One look while they post; swallow first, take second.
        if descriptor.swap(0, Ordering::SeqCst) > 0 {
            read.extend(mailbox.take());
        }
        for producer in producers {
            producer.join().unwrap();
        }
        while descriptor.swap(0, Ordering::SeqCst) > 0 {
            read.extend(mailbox.take());
        }
        let order_of = |first| read.iter().filter(move |n| **n / 10 == first / 10).copied();
        assert_eq!(order_of(0).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(order_of(10).collect::<Vec<_>>(), [10, 11]);
        assert!(mailbox.take().is_empty());
    });
}

/// The order of the two steps matters: a reader that takes before it swallows loses a wake-up.
/// This holds the model above to account: it must be able to fail.
#[test]
#[should_panic(expected = "left behind")]
fn the_model_finds_the_wrong_order() {
    loom::model(|| {
        let descriptor = Arc::new(AtomicUsize::new(0));
        let ring = Arc::clone(&descriptor);
        let mailbox = Arc::new(Mailbox::new(
            move || {
                ring.fetch_add(1, Ordering::SeqCst);
            },
            0,
        ));
        let producer = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || {
                mailbox.post(1);
                mailbox.post(2);
            })
        };
        let mut read = Vec::new();
        if descriptor.load(Ordering::SeqCst) > 0 {
            read.extend(mailbox.take());
            descriptor.store(0, Ordering::SeqCst);
        }
        producer.join().unwrap();
        while descriptor.swap(0, Ordering::SeqCst) > 0 {
            read.extend(mailbox.take());
        }
        assert_eq!(read.len(), 2, "left behind");
    });
}
