//! A message on its way in, and one on its way out.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::coalesce::Class;

/// A message that somebody here is to get. One allocation, shared by every lane it waits in.
#[derive(Debug)]
pub struct Message {
    /// The payload as the broker delivered it.
    pub text: Box<str>,
    /// When it was read from the broker.
    pub received: Instant,
    /// What it is, for coalescing.
    pub class: Class,
}

/// A shared [`Message`].
pub type Payload = Arc<Message>;

impl Message {
    /// A message that arrives now.
    pub fn new(text: impl Into<Box<str>>, class: Class) -> Payload {
        Arc::new(Self { text: text.into(), received: Instant::now(), class })
    }
}

/// A message that is to be published.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The broker's channel.
    pub channel: Box<str>,
    /// The payload, encoded.
    pub payload: Bytes,
}

/// Checks that the bytes are one JSON value in UTF-8; the error says where they are not.
pub fn check_json(bytes: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| format!("not UTF-8 at byte {}", error.valid_up_to()))?;
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|error| format!("not JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_json_text(text: &str) -> bool {
        check_json(text.as_bytes()).is_ok()
    }

    #[test]
    fn json_is_told_from_text() {
        for good in ["{}", " [1, 2.5e3, null] ", "\"x\"", "true", "0"] {
            assert!(check_json_text(good), "{good}");
        }
        for bad in ["", "hello", "{", "[1,]", "NaN", "{'a':1}", "1 2"] {
            assert!(!check_json_text(bad), "{bad}");
        }
        assert!(check_json(b"\"\xff\"").unwrap_err().contains("byte 1"));
        assert!(
            check_json_text(&("[".repeat(100_000) + &"]".repeat(100_000))),
            "depth is no error"
        );
    }
}
