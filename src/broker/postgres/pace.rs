//! How often a listener reads.
//!
//! PostgreSQL sends what a transaction has notified when it commits, so a busy stream comes one by one,
//! and each message would cost two wake-ups, of the I/O thread and of the event loop. Such a stream is
//! read once in a millisecond or two instead. What comes now and then is read at once.

use std::time::Duration;

use tokio::time::Instant;

/// How long messages are gathered.
const PAUSE: Duration = Duration::from_millis(1);
/// So many in a row must have come alone, each within the pause after the last.
const IN_A_ROW: u32 = 64;
/// So many at once have been gathered by the server.
const MANY: usize = 16;

/// What is known of a stream.
#[derive(Debug)]
pub struct Pace {
    last: Instant,
    in_a_row: u32,
    until: Option<Instant>,
}

impl Pace {
    /// Of one that begins.
    pub fn new(now: Instant) -> Self {
        Self { last: now, in_a_row: 0, until: None }
    }

    /// When it is read again; None for at once.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// So many messages were read.
    pub fn note(&mut self, messages: usize, now: Instant) {
        let goes_on = match self.until.take() {
            Some(_) => messages > 1,
            None => now.saturating_duration_since(self.last) < PAUSE && messages < MANY,
        };
        self.last = now;
        self.in_a_row = if goes_on { self.in_a_row.saturating_add(1) } else { 0 };
        if self.in_a_row >= IN_A_ROW {
            self.until = Some(now + PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(200);

    fn busy(now: &mut Instant) -> Pace {
        let mut pace = Pace::new(*now);
        for _ in 0..IN_A_ROW {
            assert_eq!(pace.until(), None);
            *now += SOON;
            pace.note(1, *now);
        }
        pace
    }

    #[test]
    fn a_busy_stream_is_gathered_while_it_lasts() {
        let mut now = Instant::now();
        let mut pace = busy(&mut now);
        for _ in 0..10 {
            assert_eq!(pace.until(), Some(now + PAUSE));
            now += 2 * PAUSE;
            pace.note(8, now);
        }
        now += 2 * PAUSE;
        pace.note(1, now);
        assert_eq!(pace.until(), None, "it was worth nothing");
    }

    #[test]
    fn what_comes_now_and_then_is_read_at_once() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..10 * IN_A_ROW {
            now += PAUSE;
            pace.note(1, now);
            assert_eq!(pace.until(), None);
        }
    }

    #[test]
    fn what_the_server_gathers_is_read_at_once() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..10 * IN_A_ROW {
            now += SOON;
            pace.note(MANY, now);
            assert_eq!(pace.until(), None);
        }
    }
}
