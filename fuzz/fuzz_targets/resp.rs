//! The RESP reader never panics, does not care where the network cuts what it reads, and reads
//! messages and confirmations as the `redis` crate does.

#![no_main]

use fanwire::broker::redis::resp::{self, Event};
use libfuzzer_sys::fuzz_target;
use redis::{Msg, PushKind, Value};

/// Longer inputs are not split everywhere, but at so many places.
const SPLITS: usize = 64;
/// The crate's parser makes room for as many values as an array says it has. Inputs with longer
/// numbers are read by ours alone.
const DIGITS: usize = 4;

fuzz_target!(|bytes: &[u8]| {
    let whole = feed(&[bytes]);
    for at in (0..bytes.len()).step_by(1 + bytes.len() / SPLITS) {
        let (before, after) = bytes.split_at(at);
        assert_eq!(feed(&[before, after]), whole, "split at {at}");
    }
    let mut at = 0;
    for (_, size) in whole {
        compare(&bytes[at..]);
        at += size;
    }
    compare(&bytes[at..]);
});

/// An event that outlives the buffer.
#[derive(Debug, PartialEq)]
enum Seen {
    Message(Message),
    Subscribed(Vec<u8>),
    Unsubscribed(Vec<u8>),
    Error(Vec<u8>),
    Other,
    /// The text is left out: it quotes what had come by then.
    NotResp,
}

#[derive(Debug, PartialEq)]
struct Message {
    by_pattern: bool,
    channel: Vec<u8>,
    payload: Vec<u8>,
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        let (by_pattern, inbound) = match event {
            Event::Matching(inbound) => (true, inbound),
            Event::Named(inbound) => (false, inbound),
            Event::Subscribed(name) => return Self::Subscribed(name.to_vec()),
            Event::Unsubscribed(name) => return Self::Unsubscribed(name.to_vec()),
            Event::Error(text) => return Self::Error(text.to_vec()),
            Event::Other => return Self::Other,
        };
        let (channel, payload) = (inbound.channel.to_vec(), inbound.payload.to_vec());
        Self::Message(Message { by_pattern, channel, payload })
    }
}

/// Reads what comes in parts as the listener does; every event with its size.
fn feed(parts: &[&[u8]]) -> Vec<(Seen, usize)> {
    let mut seen = Vec::new();
    let mut buffer = Vec::new();
    for part in parts {
        buffer.extend_from_slice(part);
        loop {
            let (event, size) = match resp::read(&buffer) {
                Ok(None) => break,
                Ok(Some((event, size))) => (Seen::from(event), size),
                Err(_) => {
                    seen.push((Seen::NotResp, 0));
                    return seen;
                }
            };
            assert!(size > 0 && size <= buffer.len(), "an event of {size} bytes");
            buffer.drain(..size);
            seen.push((event, size));
        }
    }
    seen
}

/// Holds what both make of the front of the bytes against each other.
fn compare(bytes: &[u8]) {
    let read = resp::read(bytes).ok().flatten();
    let Some((event, size)) = read else {
        // Refused, or not complete: then it must not be a message that a server could have sent.
        if let Some(message) = message_of_the_crate(bytes) {
            panic!("missed {message:?}");
        }
        return;
    };
    let sent = &bytes[..size];
    match Seen::from(event) {
        Seen::Message(ours) => match value_of_the_crate(sent).and_then(Msg::from_owned_value) {
            Some(theirs) => assert_eq!(Some(ours), strings(&theirs)),
            // Patterns are passed over unread, so they may be anything.
            None => assert!(ours.by_pattern, "only ours reads {ours:?}"),
        },
        Seen::Subscribed(ours) => {
            if let Some(theirs) = confirmation_of_the_crate(sent) {
                assert_eq!((true, ours), theirs);
            }
        }
        Seen::Unsubscribed(ours) => {
            if let Some(theirs) = confirmation_of_the_crate(sent) {
                assert_eq!((false, ours), theirs);
            }
        }
        Seen::Error(_) | Seen::Other | Seen::NotResp => {
            assert_eq!(message_of_the_crate(bytes), None, "missed");
            assert_eq!(confirmation_of_the_crate(sent), None, "missed");
        }
    }
}

fn value_of_the_crate(bytes: &[u8]) -> Option<Value> {
    let longest = bytes.split(|byte| !byte.is_ascii_digit()).map(<[u8]>::len).max();
    (longest <= Some(DIGITS)).then(|| redis::parse_redis_value(bytes).ok()).flatten()
}

/// The message at the front of the bytes, if it is written as servers write it. The crate takes much
/// else for one: simple strings, signs before lengths, more parts than it needs.
fn message_of_the_crate(bytes: &[u8]) -> Option<Message> {
    let kind = bytes.first().filter(|kind| b"*>".contains(kind))?;
    let read = Msg::from_owned_value(value_of_the_crate(bytes)?)?;
    let (message, pattern) = (strings(&read)?, read.get_pattern::<Option<Vec<u8>>>().ok()?);
    let name: &[u8] = if message.by_pattern { b"pmessage" } else { b"message" };
    let parts: Vec<&[u8]> =
        [Some(name), pattern.as_deref(), Some(&message.channel), Some(&message.payload)]
            .into_iter()
            .flatten()
            .collect();
    let mut sent = format!("{}{}\r\n", char::from(*kind), parts.len()).into_bytes();
    for part in parts {
        sent.extend(format!("${}\r\n", part.len()).as_bytes());
        sent.extend_from_slice(part);
        sent.extend_from_slice(b"\r\n");
    }
    bytes.starts_with(&sent).then_some(message)
}

fn strings(read: &Msg) -> Option<Message> {
    let (channel, payload) = (read.get_channel().ok()?, read.get_payload().ok()?);
    Some(Message { by_pattern: read.from_pattern(), channel, payload })
}

/// Whether it confirms the begin of a subscription or its end, and the channel.
fn confirmation_of_the_crate(bytes: &[u8]) -> Option<(bool, Vec<u8>)> {
    let (begins, items) = match value_of_the_crate(bytes)? {
        Value::Push { kind: PushKind::Subscribe | PushKind::PSubscribe, data } => (true, data),
        Value::Push { kind: PushKind::Unsubscribe, data } => (false, data),
        Value::Array(mut items) if items.len() == 3 => match items.remove(0) {
            Value::BulkString(kind) if kind == b"subscribe" || kind == b"psubscribe" => {
                (true, items)
            }
            Value::BulkString(kind) if kind == b"unsubscribe" => (false, items),
            _ => return None,
        },
        _ => return None,
    };
    match &items[..] {
        [Value::BulkString(channel), Value::Int(_)] => Some((begins, channel.clone())),
        _ => None,
    }
}
