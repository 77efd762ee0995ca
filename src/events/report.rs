//! The message that tells what was dropped.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::queue::Counts;

/// What nobody has been told of yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Messages that were dropped.
    pub dropped: Counts,
    /// Messages that were under way when a connection broke: they may have come or not.
    pub unclear: u64,
}

impl Missing {
    /// Whether there is anything to tell.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// Adds what another one tells.
    pub fn add(&mut self, other: Self) {
        self.dropped += other.dropped;
        self.unclear += other.unclear;
    }

    /// As an event. The offset is that of local time from UTC.
    pub fn to_event(self, now: SystemTime, offset_seconds: i32) -> String {
        let Counts { logs, stats, events } = self.dropped;
        let timestamp = local_time(now, offset_seconds);
        let unclear = match self.unclear {
            0 => String::new(),
            count => format!(",\"unclear\":{count}"),
        };
        format!(
            "{{\"type\":\"fanwire.dropped\",\"timestamp\":\"{timestamp}\",\
             \"data\":{{\"logs\":{logs},\"stats\":{stats},\"events\":{events}{unclear}}}}}"
        )
    }
}

/// As `datetime.now().isoformat()`: the local time without its offset, and no fraction where it is zero.
fn local_time(now: SystemTime, offset_seconds: i32) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs().saturating_add_signed(i64::from(offset_seconds));
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
    let fraction = match since.subsec_micros() {
        0 => String::new(),
        micros => format!(".{micros:06}"),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}")
}

/// Year, month and day of a day counted from 1970 on, in the Gregorian calendar. Years are taken to begin
/// in March, so that the day which not every year has is their last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01 on
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_pythons_datetime() {
        for (micros, offset, text) in [
            (0, 0, "1970-01-01T00:00:00"),
            (0, -7200, "1970-01-01T00:00:00"), // no clock is as slow as that
            (951_782_399_999_999, 0, "2000-02-28T23:59:59.999999"),
            (951_782_400_000_000, 0, "2000-02-29T00:00:00"),
            (951_868_800_000_001, 0, "2000-03-01T00:00:00.000001"),
            (1_795_221_000_500_000, 3600, "2026-11-21T01:30:00.500000"),
            (1_798_761_599_000_000, 0, "2026-12-31T23:59:59"),
            (1_798_761_599_000_000, 3600, "2027-01-01T00:59:59"),
            (1_798_761_600_000_000, -1, "2026-12-31T23:59:59"),
            (4_107_542_400_000_000, 0, "2100-03-01T00:00:00"),
        ] {
            let now = UNIX_EPOCH + Duration::from_micros(micros);
            assert_eq!(local_time(now, offset), text);
        }
    }

    #[test]
    fn the_event_has_the_shape_of_every_event() {
        let mut missing = Missing::default();
        assert!(missing.is_none());
        missing.add(Missing { dropped: Counts { logs: 2, stats: 1, events: 0 }, unclear: 0 });
        let text = |missing: Missing| missing.to_event(UNIX_EPOCH, 0);
        let begin = "{\"type\":\"fanwire.dropped\",\"timestamp\":\"1970-01-01T00:00:00\",\"data\":";
        assert_eq!(text(missing), format!("{begin}{{\"logs\":2,\"stats\":1,\"events\":0}}}}"));
        missing.add(missing);
        missing.unclear = 7;
        assert!(text(missing).ends_with("{\"logs\":4,\"stats\":2,\"events\":0,\"unclear\":7}}"));
    }
}
