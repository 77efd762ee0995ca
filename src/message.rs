//! A message on its way in, and one on its way out.

use std::any::Any;
use std::borrow::Cow;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use foldhash::fast::FixedState;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::coalesce::Class;
use crate::history::Position;
use crate::latest::Known;

/// A message that somebody here is to get. One allocation, shared by every lane it waits in.
#[derive(Debug)]
pub struct Message {
    /// The payload as the broker delivered it.
    pub text: Box<str>,
    /// When it was read from the broker.
    pub received: Instant,
    /// What it is, for coalescing.
    pub class: Class,
    /// Where it stands in the history of its upload; None if it is not recorded.
    pub mark: Option<Mark>,
    /// An object of the binding that travels inside this process in place of the text.
    pub object: Option<Object>,
}

/// Something of the binding's, which alone knows what it is.
pub struct Object(pub Box<dyn Any + Send + Sync>);

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Object")
    }
}

/// A shared [`Message`].
pub type Payload = Arc<Message>;

impl Message {
    /// A message that arrives now.
    pub fn new(text: impl Into<Box<str>>, class: Class) -> Payload {
        Self::recorded(text, class, None)
    }

    /// A message that arrives now and stands in a history.
    pub fn recorded(text: impl Into<Box<str>>, class: Class, mark: Option<Mark>) -> Payload {
        Arc::new(Self { text: text.into(), received: Instant::now(), class, mark, object: None })
    }

    /// An object for sessions of this process.
    pub fn of(object: Object) -> Payload {
        let (text, class) = ("".into(), Class::default());
        let (received, mark) = (Instant::now(), None);
        Arc::new(Self { text, received, class, mark, object: Some(object) })
    }
}

/// Where a recorded message stands, and what tells it from another one there: a history that went back
/// gives its offsets again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Where it stands.
    pub position: Position,
    /// A hash of the text.
    pub print: u64,
}

impl Mark {
    /// That of a payload which carries its position.
    pub fn of(text: &str) -> Option<Self> {
        Position::of(text.as_bytes()).map(|position| Self::new(position, text))
    }

    /// That of a text at a position.
    pub fn new(position: Position, text: &str) -> Self {
        Self { position, print: FixedState::with_seed(0).hash_one(text.as_bytes()) }
    }
}

/// How a topic's message lies in a payload, which is its broker's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form<'a> {
    /// In an [`Envelope`].
    Envelope,
    /// It is the payload.
    Bare {
        /// The session that is not to get it.
        except: Option<&'a str>,
    },
}

/// What is published for a topic: `{"topic":…,"message":…}`, and perhaps for whom it is not.
#[derive(Debug)]
pub struct Envelope<'a> {
    /// The message, as JSON.
    pub message: &'a RawValue,
    /// The session that is not to get it.
    pub except: Option<Cow<'a, str>>,
}

impl<'a> Envelope<'a> {
    /// Reads a payload; the error says what is wrong with it.
    pub fn read(payload: &'a [u8], form: Form<'a>) -> Result<Self, String> {
        let text = std::str::from_utf8(payload).map_err(|_| "is not UTF-8".to_owned())?;
        let read = match form {
            Form::Envelope => serde_json::from_str(text),
            Form::Bare { except } => serde_json::from_str(text)
                .map(|message| Self { message, except: except.map(Cow::Borrowed) }),
        };
        read.map_err(|error| format!("is no topic message: {error}"))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Envelope<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

/// As Python's `json` would: of members with the same name the last one counts, and the others are
/// not looked at.
struct EnvelopeVisitor;

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Envelope<'de>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let (mut message, mut except) = (None, None);
        while let Some(Name(name)) = members.next_key()? {
            match &*name {
                "message" => message = Some(members.next_value::<&'de RawValue>()?),
                "except" => except = Some(members.next_value::<&'de RawValue>()?),
                _ => drop(members.next_value::<IgnoredAny>()?),
            }
        }
        let message = message.ok_or_else(|| serde::de::Error::missing_field("message"))?;
        // Whatever else it may be, it is no session of ours.
        let except = except.and_then(|except| serde_json::from_str::<Name<'_>>(except.get()).ok());
        Ok(Envelope { message, except: except.map(|Name(except)| except) })
    }
}

/// A string, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// A message that is to be published.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The broker's channel.
    pub channel: Box<str>,
    /// The payload, encoded; of a recorded message its [`crate::history::head`].
    pub payload: Bytes,
    /// What it is, for coalescing. Nothing until somebody has looked.
    pub class: Class,
    /// The session that is not to get it, where the payload does not say so: see [`Form::Bare`].
    pub except: Option<Box<str>>,
    /// What the broker is to record it under; None for a message that is published and forgotten.
    pub record: Option<Box<Record>>,
}

impl Outgoing {
    /// A message that is not recorded.
    pub fn new(channel: Box<str>, payload: Bytes) -> Self {
        Self { channel, payload, class: Class::default(), except: None, record: None }
    }
}

/// How a message stands in the history of its upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The upload.
    pub upload: Box<str>,
    /// Whether it is progress or final, so that the current state begins with it.
    pub milestone: bool,
    /// What the broker knows a message by that is sent again because nobody knows whether it came:
    /// who publishes, and its number there. Given when it is sent.
    pub source: u64,
    /// Of one source and upload the numbers grow. Microseconds since the source began.
    pub number: u64,
    /// Whether nobody knows if it came under this number, so that it must be sent again under it.
    pub unclear: bool,
    /// Of messages with the same key one is published.
    pub key: Option<Box<str>>,
    /// Not published unless newer than the newest of the upload.
    pub version: Option<u64>,
    /// What its publisher knows of the upload's history.
    pub known: Known,
}

impl Record {
    /// What is not sent yet.
    pub fn new(upload: &str, milestone: bool) -> Self {
        Self {
            upload: upload.into(),
            milestone,
            source: 0,
            number: 0,
            unclear: false,
            key: None,
            version: None,
            known: Known::Nothing,
        }
    }
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
    fn envelopes_give_the_message_as_it_is() {
        let parse = |text: &'static str| Envelope::read(text.as_bytes(), Form::Envelope);
        let envelope = parse(r#"{"topic":"t","message": {"a": [1, 2e400]} ,"x":[]}"#).unwrap();
        assert_eq!((envelope.message.get(), envelope.except), (r#"{"a": [1, 2e400]}"#, None));
        let others = parse(r#"{"except":"a\n","message":null}"#).unwrap();
        assert_eq!((others.message.get(), others.except.as_deref()), ("null", Some("a\n")));
        let bad =
            ["", "[]", "{}", "1", r#"{"topic":"t"}"#, r#"{"message":1"#, r#"{"message":NaN}"#];
        for bad in bad {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(Envelope::read(b"\xff", Form::Envelope).unwrap_err().contains("UTF-8"));
    }

    #[test]
    fn a_bare_message_is_its_payload() {
        let form = Form::Bare { except: Some("s") };
        let envelope = Envelope::read(b" [1, {\"message\": 2}]\n", form).unwrap();
        assert_eq!(envelope.message.get(), "[1, {\"message\": 2}]");
        assert_eq!(envelope.except.as_deref(), Some("s"));
        for bad in [b"".as_slice(), b"hello", b"{", b"\xff", b"1 2"] {
            assert!(Envelope::read(bad, form).is_err(), "{bad:?}");
        }
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
