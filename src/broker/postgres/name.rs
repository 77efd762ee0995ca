//! Which notification channel a channel's messages go over.

use std::borrow::Cow;
use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::channel::Address;

/// Where the messages of all uploads and users go. PostgreSQL's processes look through the list of what
/// they listen to for each notification, and wake every process that listens to anything, so a channel
/// for each upload would cost more and spare nothing.
pub const SHARED: &str = "fanwire";
/// PostgreSQL cuts longer names, and says so in a notice only.
const LONGEST: usize = 63;
/// How a hash's name begins.
const HASHED: &str = "fanwire_";
/// Bytes of a hash that its name shows.
const SHOWN: usize = 16;

/// The notification channel of a channel.
pub fn of(channel: &str) -> Cow<'_, str> {
    if is_shared(channel) {
        return SHARED.into();
    }
    // What might be another's hash has one of its own.
    let is_itself = (1..=LONGEST).contains(&channel.len())
        && !channel.contains('\0')
        && !channel.starts_with(HASHED);
    if is_itself {
        return channel.into();
    }
    let mut name = String::from(HASHED);
    for byte in &Sha256::digest(channel)[..SHOWN] {
        // A String takes everything.
        let _ = write!(name, "{byte:02x}");
    }
    name.into()
}

/// Whether a channel's messages go over [`SHARED`], or its name is that.
pub fn is_shared(channel: &str) -> bool {
    channel == SHARED || Address::parse(channel.as_bytes()).is_some()
}

/// An identifier as SQL has it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_fit() {
        assert_eq!(of("pyview_counter"), "pyview_counter");
        assert_eq!(of("upload:1"), SHARED);
        assert_eq!(of("user:ada"), SHARED);
        assert_eq!(of(""), "fanwire_e3b0c44298fc1c149afbf4c8996fb924");
        let long = "x".repeat(64);
        assert_eq!(of(&long), "fanwire_7ce100971f64e7001e8fe5a51973ecdf");
        assert_eq!(of(&long[1..]), &long[1..]);
        assert!(of("a\0b").starts_with("fanwire_"));
        assert_ne!(of(&of(&long)), of(&long));
        assert_eq!(of("Ünï \"x\"; -- "), "Ünï \"x\"; -- ");
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
