//! The parser of the client protocol never panics, takes exactly what serde_json reads as a message of
//! it, and says in one short line what is wrong with the rest.

#![no_main]

use std::fmt;

use fanwire::history::{Epoch, LARGEST};
use fanwire::protocol::{ClientMessage, Since};
use libfuzzer_sys::fuzz_target;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// The reason is for a log line and for a close frame's text.
const LONGEST_REASON: usize = 300;

fuzz_target!(|bytes: &[u8]| {
    // A text frame is UTF-8, or the WebSocket's library has refused it.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let members = Members::read(text);
    match ClientMessage::parse(text) {
        Ok(message) => {
            assert_eq!(members.as_ref().and_then(message_of), Some(message.clone()));
            if let ClientMessage::Subscribe(_, Some(since)) = &message {
                let position = since.position();
                assert_eq!(position.map(|it| it.epoch), Epoch::parse(since.epoch.as_bytes()));
                assert!(position.is_none_or(|it| it.offset == since.offset));
            }
        }
        Err(reason) => {
            assert!(!reason.is_empty() && reason.len() < LONGEST_REASON, "{reason:?}");
            assert!(!reason.contains(char::is_control), "{reason:?} is no single line");
            // Whether an earlier member of the same name has to make sense is left open.
            if let Some(members) = members.filter(Members::are_distinct) {
                assert_eq!(message_of(&members), None, "refused: {reason}");
            }
        }
    }
});

/// A member has another kind of value.
struct NoText;

/// The members of an object, unread: what nobody asks for may be any JSON, however deep.
struct Members(Vec<(String, Box<RawValue>)>);

impl Members {
    fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The value of the last member of that name; the outer None is one that cannot be read.
    fn get(&self, name: &str) -> Option<Value> {
        let last = self.0.iter().rev().find(|(other, _)| other == name);
        last.map_or(Some(Value::Null), |(_, raw)| serde_json::from_str(raw.get()).ok())
    }

    /// A string, or None where there is none.
    fn text(&self, name: &str) -> Result<Option<String>, NoText> {
        match self.get(name).ok_or(NoText)? {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            _ => Err(NoText),
        }
    }

    fn are_distinct(&self) -> bool {
        let repeated = |name| self.0.iter().filter(|(other, _)| other == name).count() > 1;
        let since = self.0.iter().find(|(name, _)| name == "since");
        let since = since.and_then(|(_, raw)| Self::read(raw.get()));
        !self.0.iter().any(|(name, _)| repeated(name)) && since.is_none_or(|it| it.are_distinct())
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// The message that the members are, if they are one. Every member of the protocol has to be of its
/// kind, also where the action has no use for it.
fn message_of(members: &Members) -> Option<ClientMessage<'static>> {
    let text = |name| members.text(name).ok();
    let (kind, action, token) = (text("type")?, text("action")?, text("token")?);
    let upload = text("upload_id")?;
    let since = match members.0.iter().rfind(|(name, _)| name == "since") {
        Some((_, raw)) if raw.get() != "null" => Some(since_of(&Members::read(raw.get())?)?),
        _ => None,
    };
    if kind.as_deref() == Some("auth") {
        return Some(ClientMessage::Auth(token?.into()));
    }
    match &*action? {
        "subscribe_upload" => Some(ClientMessage::Subscribe(upload?.into(), since)),
        "unsubscribe_upload" => Some(ClientMessage::Unsubscribe(upload?.into())),
        "ping" => Some(ClientMessage::Ping),
        "pong" => Some(ClientMessage::Pong),
        _ => None,
    }
}

fn since_of(members: &Members) -> Option<Since<'static>> {
    let epoch = members.text("epoch").ok()??;
    let offset = members.get("offset")?.as_u64().filter(|offset| *offset <= LARGEST)?;
    Some(Since { epoch: epoch.into(), offset })
}
