//! The broker's names for the two kinds of streams an upload app has.

/// The patterns the listener subscribes to.
pub const PATTERNS: [&str; 2] = ["upload:*", "user:*"];

/// Whom a channel addresses. Borrowed from the bytes the broker sent; ids may hold any character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address<'a> {
    /// Everybody here who watches this upload.
    Upload(&'a [u8]),
    /// This user.
    User(&'a [u8]),
}

impl<'a> Address<'a> {
    /// Reads a channel's name; None for one that is not fanwire's.
    pub fn parse(channel: &'a [u8]) -> Option<Self> {
        if let Some(upload) = channel.strip_prefix(b"upload:") {
            Some(Self::Upload(upload))
        } else {
            channel.strip_prefix(b"user:").map(Self::User)
        }
    }
}

/// The channel of an upload.
pub fn of_upload(upload_id: &str) -> Box<str> {
    format!("upload:{upload_id}").into_boxed_str()
}

/// The channel of a user.
pub fn of_user(user_id: &str) -> Box<str> {
    format!("user:{user_id}").into_boxed_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_may_hold_anything() {
        for id in ["", "a", "a:b", "*", "[x]", "\r\n", "ünï"] {
            assert_eq!(
                Address::parse(of_upload(id).as_bytes()),
                Some(Address::Upload(id.as_bytes()))
            );
            assert_eq!(Address::parse(of_user(id).as_bytes()), Some(Address::User(id.as_bytes())));
        }
        assert_eq!(Address::parse(b"other:x"), None);
        assert_eq!(Address::parse(b"upload"), None);
    }
}
