//! The position that is read off a payload is that of its outermost `_fanwire` member, and one that is
//! added to an object changes nothing else of it.

#![no_main]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;

use fanwire::history::{self, Epoch, LARGEST, MEMBER, Position};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

fuzz_target!(|payload: &[u8]| {
    let position = Position::of(payload);
    let head = history::head(payload);
    // What is not JSON may be read as anything, but must be survived.
    let Ok(value) = serde_json::from_slice::<Value>(payload) else { return };
    if let Some(position) = position {
        assert_eq!(member_of(&value), Some(position));
        assert!((1..=LARGEST).contains(&position.offset), "{position:?}");
        assert!(payload.ends_with(position.tail().as_bytes()), "it is the last member");
    }
    let Value::Object(object) = value else {
        assert_eq!(head, None, "there is nothing to add a member to");
        return;
    };
    let mut recorded = head.expect("an object has a head");
    let position = some_position(payload);
    recorded.extend_from_slice(position.tail().as_bytes());
    assert_eq!(Position::of(&recorded), Some(position));
    let value = serde_json::from_slice::<Value>(&recorded).expect("JSON stays JSON");
    assert_eq!(member_of(&value), Some(position));
    let Value::Object(recorded) = value else { panic!("an object stays an object") };
    assert_eq!(others(recorded), others(object));
});

/// The position as any other program would read it.
fn member_of(value: &Value) -> Option<Position> {
    let member = value.get(MEMBER)?.as_object()?;
    let epoch = u64::from_str_radix(member.get("epoch")?.as_str()?, 16).ok()?;
    let offset = member.get("offset")?.as_u64()?;
    Some(Position { epoch: Epoch(NonZeroU64::new(epoch)?), offset })
}

/// One that depends on the input alone; the smallest and the largest are among them.
fn some_position(payload: &[u8]) -> Position {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    let drawn = hasher.finish();
    let (epoch, offset) = match drawn % 8 {
        0 => (NonZeroU64::MIN, 1),
        1 => (NonZeroU64::MAX, LARGEST),
        _ => (NonZeroU64::new(drawn).unwrap_or(NonZeroU64::MIN), 1 + (drawn >> 11) % LARGEST),
    };
    Position { epoch: Epoch(epoch), offset }
}

fn others(mut object: Map<String, Value>) -> Map<String, Value> {
    object.remove(MEMBER);
    object
}
