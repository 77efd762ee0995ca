//! A name of a user or an upload, which stands where it is used if it is short.

/// The longest name that needs no allocation of its own. UUIDs have 36 bytes.
const SHORT: usize = 38;

/// A name. 40 bytes in place of a pointer's 16 and an allocation's 48, and nothing to follow when it
/// is compared.
#[derive(Clone)]
pub(crate) enum Name {
    Short { len: u8, bytes: [u8; SHORT] },
    Long(Box<str>),
}

impl Name {
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(text) => text.as_bytes(),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            // It was made of a str.
            Self::Short { .. } => std::str::from_utf8(self.as_bytes()).unwrap_or_default(),
            Self::Long(text) => text,
        }
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        match u8::try_from(text.len()) {
            Ok(len) if text.len() <= SHORT => {
                let mut bytes = [0; SHORT];
                bytes[..text.len()].copy_from_slice(text.as_bytes());
                Self::Short { len, bytes }
            }
            _ => Self::Long(text.into()),
        }
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_any_length_is_what_it_was_made_of() {
        assert_eq!(size_of::<Name>(), 40);
        for text in
            ["", "a", "ü", &"a".repeat(37), &"ü".repeat(19), &"a".repeat(39), &"ü".repeat(999)]
        {
            let name = Name::from(text);
            assert_eq!((name.as_str(), name.as_bytes()), (text, text.as_bytes()));
            assert_eq!(matches!(name, Name::Short { .. }), text.len() <= SHORT);
        }
    }
}
