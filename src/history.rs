//! What recovery is made of: positions, the reserved member that carries them, and what a broker is
//! asked of the past.
//!
//! With a history a broker gives every message of an upload the next offset, in one step with keeping
//! and publishing it. The epoch names the history the offset counts in: one that was lost or has
//! expired is followed by one with another epoch.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use crate::runtime;

/// The reserved member of recorded payloads. It is their last one:
/// `"_fanwire":{"epoch":"0123456789abcdef","offset":17}`.
pub const MEMBER: &str = "_fanwire";

const BEFORE_EPOCH: &str = "\"_fanwire\":{\"epoch\":\"";
const BEFORE_OFFSET: &str = "\",\"offset\":";
const AFTER_OFFSET: &str = "}}";
/// Hexadecimal digits of an epoch.
const EPOCH_DIGITS: usize = 16;
/// Decimal digits of the largest offset: JavaScript and Lua count up to 2^53.
const OFFSET_DIGITS: usize = 16;
/// The largest offset and version.
pub const LARGEST: u64 = (1 << 53) - 1;

/// How much of an upload a broker keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Messages; the newest progress or final message is kept besides, for the current state.
    pub size: u32,
    /// How long after the newest message.
    pub ttl: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { size: 256, ttl: Duration::from_secs(3600) }
    }
}

/// Names one history of an upload. Shown and parsed as sixteen hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub NonZeroU64);

impl Epoch {
    /// One that is used nowhere yet.
    pub fn random() -> Self {
        Self(runtime::random())
    }

    /// Reads one; None if the text is none.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() != EPOCH_DIGITS {
            return None;
        }
        let mut value = 0u64;
        for byte in text {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                _ => return None,
            };
            value = value << 4 | u64::from(digit);
        }
        NonZeroU64::new(value).map(Self)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Where a message stands within its upload. Offsets begin at 1; 0 is before the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Which history.
    pub epoch: Epoch,
    /// Which message of it.
    pub offset: u64,
}

impl Position {
    /// The position a recorded payload carries; None for any other payload. It does not check that the
    /// payload is JSON: in JSON that ends so, the member is one of the outermost object.
    pub fn of(payload: &[u8]) -> Option<Self> {
        let rest = payload.strip_suffix(AFTER_OFFSET.as_bytes())?;
        let digits = rest.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        let (rest, offset) = rest.split_at(rest.len() - digits);
        if digits == 0 || digits > OFFSET_DIGITS || offset[0] == b'0' {
            return None;
        }
        let offset = offset.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        let rest = rest.strip_suffix(BEFORE_OFFSET.as_bytes())?;
        let (rest, epoch) = rest.split_at_checked(rest.len().checked_sub(EPOCH_DIGITS)?)?;
        let rest = rest.strip_suffix(BEFORE_EPOCH.as_bytes())?;
        let epoch = Epoch::parse(epoch)?;
        (matches!(rest.last(), Some(b'{' | b',')) && offset <= LARGEST)
            .then_some(Self { epoch, offset })
    }

    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self { offset: self.offset + 1, ..self }
    }

    /// What follows [`head`] in the payload at this position.
    pub fn tail(self) -> String {
        let Self { epoch, offset } = self;
        format!("{BEFORE_EPOCH}{epoch}{BEFORE_OFFSET}{offset}{AFTER_OFFSET}")
    }
}

/// What a recorded payload begins with: the object without its closing brace, and a comma where one is
/// due. None if the text is no object. The text must be JSON.
pub fn head(object: &[u8]) -> Option<Vec<u8>> {
    let inside = object.trim_ascii().strip_prefix(b"{")?.strip_suffix(b"}")?.trim_ascii();
    let mut head = Vec::with_capacity(inside.len() + 2);
    head.push(b'{');
    head.extend_from_slice(inside);
    if !inside.is_empty() {
        head.push(b',');
    }
    Some(head)
}

/// The message that tells a client to forget what it knows of an upload: its current state follows.
pub fn resync(upload_id: &str) -> String {
    let id = serde_json::Value::from(upload_id);
    format!("{{\"action\":\"resync\",\"upload_id\":{id}}}")
}

/// What is asked of an upload's past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The upload.
    pub upload: Box<str>,
    /// What follows this position, if the history is still the same; the current state otherwise.
    pub since: Option<Position>,
}

/// What a broker keeps of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// The history it keeps.
    pub epoch: Epoch,
    /// The offset of the newest message.
    pub last: u64,
    /// The offset of the newest progress or final message, where the current state begins.
    pub milestone: Option<u64>,
    /// Messages with their offsets, in order: nothing if `since` is the newest; otherwise, of those
    /// after `since` and from the milestone on, all that are still kept.
    pub entries: Vec<(u64, Box<[u8]>)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Position = Position { epoch: Epoch(NonZeroU64::new(0x1f).unwrap()), offset: 17 };

    #[test]
    fn a_position_is_read_back() {
        for object in ["{}", " { \"a\": \"}}\" } ", "{\"_fanwire\":1}", "{\"a\":{\"b\":[]}}"] {
            let mut payload = head(object.as_bytes()).unwrap();
            payload.extend_from_slice(AT.tail().as_bytes());
            assert_eq!(Position::of(&payload), Some(AT), "{object}");
            let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            assert_eq!(value[MEMBER]["offset"], 17);
            assert_eq!(value[MEMBER]["epoch"], "000000000000001f");
        }
        for other in ["1", "[{}]", "\"{}\"", "", "{"] {
            assert_eq!(head(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn other_payloads_have_none() {
        for payload in [
            "",
            "}}",
            "7}}",
            "{\"a\":{\"offset\":1}}",
            "{\"_fanwire\":{\"epoch\":\"000000000000001f\",\"offset\":01}}",
            "{\"_fanwire\":{\"epoch\":\"000000000000001f\",\"offset\":0}}",
            "{\"_fanwire\":{\"epoch\":\"0000000000000000\",\"offset\":1}}",
            "{\"_fanwire\":{\"epoch\":\"000000000000001F\",\"offset\":1}}",
            "{\"_fanwire\":{\"epoch\":\"000000000000001f\",\"offset\":9007199254740992}}",
            "{\"_fanwire\":{\"epoch\":\"000000000000001f\",\"offset\":99999999999999999999}}",
            "{\"_fanwire\":{\"epoch\":\"1f\",\"offset\":1}}",
            "{\"a\":{\"_fanwire\":{\"epoch\":\"000000000000001f\",\"offset\":1}}}",
            "x\"_fanwire\":{\"epoch\":\"000000000000001f\",\"offset\":1}}",
        ] {
            assert_eq!(Position::of(payload.as_bytes()), None, "{payload}");
        }
    }

    #[test]
    fn epochs_differ_and_are_read_back() {
        let (one, other) = (Epoch::random(), Epoch::random());
        assert_ne!(one, other);
        assert_eq!(Epoch::parse(one.to_string().as_bytes()), Some(one));
        assert_eq!(resync("a\"b"), r#"{"action":"resync","upload_id":"a\"b"}"#);
    }
}
