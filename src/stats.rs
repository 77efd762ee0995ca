//! Counters. Relaxed atomics: each is read alone, by people.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $field:ident,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        pub struct $name { $($(#[$doc])* pub $field: Counter,)* }

        impl $name {
            /// Every counter with its name, in the order of its declaration.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field.get()),)*]
            }
        }
    };
}

counters! {
    /// What a listener and a publisher saw.
    ClientStats {
        /// Messages read from the broker.
        received,
        /// Of those, messages for nobody connected here.
        unwatched,
        /// Payloads for somebody here that are not UTF-8: skipped.
        not_utf8,
        /// Payloads for somebody here that are not JSON: forwarded all the same.
        not_json,
        /// Messages the broker took.
        published,
        /// Messages the broker did not take.
        publish_failed,
        /// Messages `publish_nowait` turned away because too many waited.
        publish_refused,
        /// Times the publishing side lost the broker.
        outages,
        /// Times the listener was subscribed again after it had lost the broker.
        reconnects,
    }
}

counters! {
    /// What became of the messages for local connections.
    DeliveryStats {
        /// Messages handed to a connection, one count for each connection.
        delivered,
        /// Messages that were queued for a connection and never handed over.
        dropped,
        /// Connections given up because their send failed.
        send_failed,
        /// Connections given up because too much waited for them.
        overflowed,
    }
}
