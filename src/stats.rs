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

/// Counts of values by powers of two: bucket `n` holds those below `2^n`.
#[derive(Debug)]
pub struct Histogram([AtomicU64; BUCKETS]);

/// Up to 2^39: nine minutes in nanoseconds.
const BUCKETS: usize = 40;

impl Default for Histogram {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(&self, value: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.0[bucket.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// The buckets that hold something: what their values are below, and how many they are.
    pub fn snapshot(&self) -> Vec<(u64, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        counts.enumerate().filter(|(_, n)| *n > 0).map(|(bucket, n)| (1 << bucket, n)).collect()
    }
}

/// The value below which the given share (0 to 1) of a snapshot lies; 0 for an empty one.
pub fn quantile(snapshot: &[(u64, u64)], share: f64) -> u64 {
    let total: u64 = snapshot.iter().map(|(_, count)| count).sum();
    let mut seen = 0;
    for (below, count) in snapshot {
        seen += count;
        if seen as f64 >= share * total as f64 {
            return *below;
        }
    }
    0
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
        /// What came and is no message of the broker's, or only a part of one: skipped.
        malformed,
        /// Messages the broker took.
        published,
        /// Messages the broker did not take.
        publish_failed,
        /// Messages `publish_nowait` turned away because too many waited.
        publish_refused,
        /// Messages that waited, because the broker could not be reached.
        publish_queued,
        /// Of those, progress that newer progress took the place of.
        publish_coalesced,
        /// Of those, what had waited for too long.
        publish_expired,
        /// Of those, what made room for others.
        publish_dropped,
        /// Messages with a version that was not newer than the newest.
        publish_stale,
        /// Messages with an idempotency key that was published before.
        publish_duplicates,
        /// Times the publishing side lost the broker.
        outages,
        /// Times the listener was subscribed again after it had lost the broker.
        reconnects,
        /// Times a fault in fanwire itself made the listener start over.
        panics,
    }
}

counters! {
    /// What became of the messages for local connections.
    DeliveryStats {
        /// Messages handed to a connection, one count for each connection.
        delivered,
        /// Progress messages that a newer one took the place of before they were handed over.
        coalesced,
        /// Messages that were queued for a connection and never handed over.
        dropped,
        /// Connections given up because their send failed.
        send_failed,
        /// Connections given up because too much waited for them.
        overflowed,
        /// Connections given up because a send did not end in time.
        timed_out,
        /// Connections that were given the current state of an upload when they began to watch it.
        snapshots,
        /// Messages handed to a connection from the history, one count for each connection.
        recovered,
        /// Times a connection was told to forget what it had of an upload, and given its current state.
        resyncs,
        /// Messages that came again and were not handed on.
        duplicates,
        /// Times messages of an upload turned out to be missing.
        gaps,
        /// Times an event loop was woken for deliveries.
        wakeups,
    }
}

counters! {
    /// What became of the messages of an event publisher.
    EventStats {
        /// Messages the broker took.
        published,
        /// Messages the broker refused.
        publish_failed,
        /// Messages that were under way when a connection broke: nobody knows whether they came.
        unclear,
        /// Log lines that made room for others, or were left when the publisher was closed.
        logs_dropped,
        /// Stats, likewise.
        stats_dropped,
        /// Events, likewise.
        events_dropped,
        /// Log lines that have no JSON form.
        unencodable,
        /// Log lines that were too long, and published without what was too much.
        truncated,
        /// Log lines that came while their own thread was encoding or logging for this publisher.
        reentrant,
        /// Log lines that came after the publisher had been closed.
        after_close,
        /// Times the broker was lost.
        outages,
        /// Faults in fanwire itself that the task survived.
        panics,
    }
}

/// How deliveries are spread.
#[derive(Debug, Default)]
pub struct DeliverySpread {
    /// Deliveries made by one pump before its lanes were empty or its send suspended.
    pub batch_size: Histogram,
    /// From the broker's bytes read to the send begun, in nanoseconds.
    pub latency: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_below_their_buckets_bound() {
        let histogram = Histogram::default();
        for value in [0, 1, 2, 3, 1000, u64::MAX] {
            histogram.record(value);
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot, [(1, 1), (2, 1), (4, 2), (1024, 1), (1 << 39, 1)]);
        assert_eq!(quantile(&snapshot, 0.5), 4);
        assert_eq!(quantile(&snapshot, 0.0), 1);
        assert_eq!(quantile(&snapshot, 1.0), 1 << 39);
        assert_eq!(quantile(&[], 0.5), 0);
    }
}
