//! What a browser may send on its WebSocket: the client protocol of docs/client-protocol.md.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Unexpected, Visitor};

use crate::history::{Epoch, LARGEST, Position};

/// A larger frame is none of ours.
pub const MOST_BYTES: usize = 64 << 10;

/// What an error calls a string: serde's own word would repeat all of it. It is heard only where
/// `deserialize_any` is asked for.
const A_STRING: Unexpected<'_> = Unexpected::Other("a string");

/// What a client has already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since<'a> {
    /// The epoch as the client gave it; a history with another name is another history.
    pub epoch: Cow<'a, str>,
    /// The offset.
    pub offset: u64,
}

impl Since<'_> {
    /// The position, if the epoch is one that a broker may have given.
    pub fn position(&self) -> Option<Position> {
        let epoch = Epoch::parse(self.epoch.as_bytes())?;
        Some(Position { epoch, offset: self.offset })
    }
}

/// A frame of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage<'a> {
    /// Says who it is.
    Auth(Cow<'a, str>),
    /// Wants to watch an upload, and says what it has of it already.
    Subscribe(Cow<'a, str>, Option<Since<'a>>),
    /// Does not want to watch an upload any more.
    Unsubscribe(Cow<'a, str>),
    /// Wants an answer.
    Ping,
    /// Answers.
    Pong,
}

impl<'a> ClientMessage<'a> {
    /// Reads a frame; the error says what is wrong with it, without repeating it.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        if text.len() > MOST_BYTES {
            return Err(format!("{} bytes are too many: {MOST_BYTES} are allowed", text.len()));
        }
        let frame: Frame<'a> =
            serde_json::from_str(text).map_err(|error| format!("no client message: {error}"))?;
        if let Some(Text(kind)) = &frame.kind
            && kind == "auth"
        {
            let Some(token) = frame.token else { return Err("\"token\" is missing".into()) };
            return Ok(Self::Auth(token.0));
        }
        let Some(Text(action)) = &frame.action else {
            return Err("neither \"action\" nor \"type\": \"auth\" is there".into());
        };
        match &**action {
            "subscribe_upload" => {
                let upload = frame.upload_id.ok_or("\"upload_id\" is missing")?;
                Ok(Self::Subscribe(upload.0, frame.since))
            }
            "unsubscribe_upload" => {
                let upload = frame.upload_id.ok_or("\"upload_id\" is missing")?;
                Ok(Self::Unsubscribe(upload.0))
            }
            "ping" => Ok(Self::Ping),
            "pong" => Ok(Self::Pong),
            other => {
                let shown: String = other.chars().take(24).collect();
                Err(format!("unknown action {shown:?}"))
            }
        }
    }
}

/// A string, borrowed where it has no escapes.
#[derive(Debug, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Default)]
struct Frame<'a> {
    kind: Option<Text<'a>>,
    action: Option<Text<'a>>,
    token: Option<Text<'a>>,
    upload_id: Option<Text<'a>>,
    since: Option<Since<'a>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Frame<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FrameVisitor)
    }
}

/// Of members with the same name the last one counts; null is as good as absent.
struct FrameVisitor;

impl<'de> Visitor<'de> for FrameVisitor {
    type Value = Frame<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(E::invalid_type(A_STRING, &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut frame = Frame::default();
        while let Some(Text(name)) = members.next_key()? {
            match &*name {
                "type" => frame.kind = members.next_value()?,
                "action" => frame.action = members.next_value()?,
                "token" => frame.token = members.next_value()?,
                "upload_id" => frame.upload_id = members.next_value()?,
                "since" => frame.since = members.next_value()?,
                _ => drop(members.next_value::<IgnoredAny>()?),
            }
        }
        Ok(frame)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Since<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SinceVisitor)
    }
}

/// By hand: a derived one would take an array as well.
struct SinceVisitor;

impl<'de> Visitor<'de> for SinceVisitor {
    type Value = Since<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with \"epoch\" and \"offset\"")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(E::invalid_type(A_STRING, &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let (mut epoch, mut offset) = (None, None);
        while let Some(Text(name)) = members.next_key()? {
            match &*name {
                "epoch" => epoch = Some(members.next_value::<Text<'de>>()?),
                "offset" => offset = Some(members.next_value::<Offset>()?),
                _ => drop(members.next_value::<IgnoredAny>()?),
            }
        }
        let Text(epoch) = epoch.ok_or_else(|| A::Error::missing_field("epoch"))?;
        let Offset(offset) = offset.ok_or_else(|| A::Error::missing_field("offset"))?;
        Ok(Since { epoch, offset })
    }
}

struct Offset(u64);

impl<'de> Deserialize<'de> for Offset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OffsetVisitor)
    }
}

struct OffsetVisitor;

impl Visitor<'_> for OffsetVisitor {
    type Value = Offset;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a number from 0 as \"offset\"")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(E::invalid_type(A_STRING, &self))
    }

    fn visit_u64<E: Error>(self, offset: u64) -> Result<Self::Value, E> {
        if offset > LARGEST {
            return Err(E::custom("\"offset\" is too large"));
        }
        Ok(Offset(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read() {
        let parse = ClientMessage::parse;
        assert_eq!(
            parse(r#"{"type":"auth","token":"t\u0041"}"#),
            Ok(ClientMessage::Auth("tA".into()))
        );
        let subscribe = r#"{"action":"subscribe_upload","upload_id":"u","x":[1]}"#;
        assert_eq!(parse(subscribe), Ok(ClientMessage::Subscribe("u".into(), None)));
        let since = r#"{"action":"subscribe_upload","upload_id":"u",
            "since":{"epoch":"000000000000001f","offset":17}}"#;
        let Ok(ClientMessage::Subscribe(_, Some(since))) = parse(since) else { panic!("{since}") };
        assert_eq!(since.position().map(|position| position.offset), Some(17));
        let other =
            r#"{"action":"subscribe_upload","upload_id":"u","since":{"epoch":"?","offset":0}}"#;
        let Ok(ClientMessage::Subscribe(_, Some(since))) = parse(other) else { panic!("{other}") };
        assert_eq!(since.position(), None);
        let none = r#"{"action":"subscribe_upload","upload_id":"u","since":null}"#;
        assert_eq!(parse(none), Ok(ClientMessage::Subscribe("u".into(), None)));
        assert_eq!(parse(r#"{"action":"ping"}"#), Ok(ClientMessage::Ping));
        assert_eq!(parse(r#"{"action":"ping","type":null}"#), Ok(ClientMessage::Ping));
        assert_eq!(parse(r#" {"action":"pong"} "#), Ok(ClientMessage::Pong));
    }

    #[test]
    fn what_is_wrong_is_said_and_not_repeated() {
        for (text, why) in [
            ("", "EOF"),
            ("[]", "an object"),
            ("{}", "neither"),
            ("{\"action\":\"subscribe_upload\"}", "upload_id"),
            ("{\"action\":\"unsubscribe_upload\",\"upload_id\":null}", "upload_id"),
            ("{\"action\":7}", "string"),
            ("{\"type\":\"auth\"}", "token"),
            (
                "{\"action\":\"subscribe_upload\",\"upload_id\":\"u\",\"since\":{\"epoch\":\"e\"}}",
                "offset",
            ),
            (
                "{\"action\":\"subscribe_upload\",\"upload_id\":\"u\",\"since\":{\"epoch\":\"e\",\"offset\":-1}}",
                "-1",
            ),
            (
                "{\"action\":\"subscribe_upload\",\"upload_id\":\"u\",\"since\":{\"epoch\":\"e\",\"offset\":9007199254740992}}",
                "too large",
            ),
        ] {
            let error = ClientMessage::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let long = format!("{{\"action\":\"{}\"}}", "é".repeat(10_000));
        assert!(ClientMessage::parse(&long).unwrap_err().len() < 200);
        let error = ClientMessage::parse(&" ".repeat(MOST_BYTES + 1)).unwrap_err();
        assert!(error.contains("too many"));
    }
}
