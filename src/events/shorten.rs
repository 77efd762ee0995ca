//! Log lines that are too long, made shorter: still JSON, still of the same shape, and marked.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// The member that marks a line that was cut.
const MARK: &str = "\"fanwire.truncated\":true";
/// What a text ends with that was cut.
const ELLIPSIS: char = '…';
/// The shortest limit: the mark and a few words.
pub const LEAST: usize = 128;
/// Every member that is kept may have this many bytes.
const SHARE: usize = 32;

/// The line within `limit` bytes. Of an object the longest members are cut to the same length, and what
/// was no string becomes one, with the beginning of its JSON. What is no object becomes the member
/// "event" of one. Of what is not JSON at all nothing is left but the mark.
pub fn shorten(line: &[u8], limit: usize) -> Vec<u8> {
    let text = std::str::from_utf8(line).unwrap_or_default();
    let members = serde_json::from_str::<Members<'_>>(text).map(|Members(members)| members);
    let members = members.or_else(|_| {
        serde_json::from_str::<&RawValue>(text).map(|value| vec![("event".to_owned(), value)])
    });
    assemble(members.unwrap_or_default(), limit.max(LEAST))
}

fn assemble(members: Vec<(String, &RawValue)>, limit: usize) -> Vec<u8> {
    let mut room = limit - MARK.len() - 2; // and the braces
    let mut kept = Vec::with_capacity(members.len());
    let mut reserved = 0;
    for (name, value) in members {
        let name = literal(&name);
        let around = name.len() + 2; // a colon and a comma
        let least = value.get().len().min(SHARE);
        if around + reserved + least > room {
            break; // the others are dropped: so many or such long names are no log line
        }
        room -= around;
        reserved += least;
        kept.push((name, value.get()));
    }
    let share = share(kept.iter().map(|(_, value)| value.len()).collect(), room);
    let mut line = String::new();
    line.push('{');
    for (name, value) in kept {
        line.push_str(&name);
        line.push(':');
        if value.len() <= share {
            line.push_str(value);
        } else {
            cut(value, share, &mut line);
        }
        line.push(',');
    }
    line.push_str(MARK);
    line.push('}');
    line.into_bytes()
}

/// The length to which the longest are cut, so that all together take no more than there is room for.
fn share(mut lengths: Vec<usize>, mut room: usize) -> usize {
    lengths.sort_unstable();
    let mut left = lengths.len();
    for length in lengths {
        if length * left > room {
            return room / left;
        }
        room -= length;
        left -= 1;
    }
    usize::MAX
}

/// Appends the beginning of a value as a string of at most `limit` bytes.
fn cut(value: &str, limit: usize, line: &mut String) {
    let text =
        if value.starts_with('"') { serde_json::from_str::<String>(value).ok() } else { None };
    let text = text.as_deref().unwrap_or(value);
    let mut room = limit.saturating_sub(2 + ELLIPSIS.len_utf8());
    let mut end = 0;
    for character in text.chars() {
        let width = width(character);
        if width > room {
            break;
        }
        room -= width;
        end += character.len_utf8();
    }
    line.push_str(&literal(&format!("{}{ELLIPSIS}", &text[..end])));
}

fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Bytes of a character in a JSON string.
fn width(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        _ => character.len_utf8(),
    }
}

/// The members of an object in their order.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn shortened(value: &Value, limit: usize) -> Value {
        let line = shorten(value.to_string().as_bytes(), limit);
        assert!(line.len() <= limit, "{} > {limit}", line.len());
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn the_long_members_are_cut_and_the_short_ones_kept() {
        let line = json!({
            "event": "x".repeat(1000), "level": "info", "count": 7, "path": "/tmp",
            "rows": vec![json!({"a": "\"quoted\""}); 100],
        });
        let short = shortened(&line, 300);
        assert_eq!((&short["level"], &short["count"]), (&json!("info"), &json!(7)));
        assert_eq!(short["fanwire.truncated"], true);
        let text = short["event"].as_str().unwrap();
        assert!(text.starts_with("xxx") && text.ends_with('…') && text.len() > 80, "{text}");
        let rows = short["rows"].as_str().unwrap();
        assert!(rows.starts_with("[{\"a\":\"\\\"quo") && rows.ends_with('…'), "{rows}");
    }

    #[test]
    fn what_is_no_object_becomes_one() {
        let short = shortened(&json!("y".repeat(500)), 128);
        assert!(short["event"].as_str().unwrap().starts_with("yyyy"));
        let short = shortened(&json!([1, 2, "z".repeat(500)]), 128);
        assert!(short["event"].as_str().unwrap().starts_with("[1,2,\"zz"));
        assert_eq!(shorten(b"{\"a", 200), b"{\"fanwire.truncated\":true}");
        assert_eq!(shorten(b"", 0), b"{\"fanwire.truncated\":true}");
    }

    #[test]
    fn members_that_do_not_fit_are_dropped() {
        let many: serde_json::Map<_, _> =
            (0..500).map(|n| (format!("member {n:03}"), json!(n))).collect();
        let short = shortened(&Value::Object(many), 200);
        let short = short.as_object().unwrap();
        assert!(short.len() > 3 && short["member 000"] == 0);
        let long = json!({ "n".repeat(300): 1 });
        assert_eq!(shortened(&long, 200), json!({"fanwire.truncated": true}));
    }

    proptest! {
        #[test]
        fn it_is_json_and_within_the_limit(
            members in prop::collection::vec(("\\PC{0,40}", any::<String>(), 0..40usize), 0..20),
            limit in LEAST..600,
        ) {
            let mut line = serde_json::Map::new();
            for (name, text, times) in members {
                let value = if times % 2 == 0 { json!(text.repeat(times)) } else { json!(vec![text; 3]) };
                line.insert(name, value);
            }
            let short = shortened(&Value::Object(line.clone()), limit);
            prop_assert_eq!(&short["fanwire.truncated"], true);
            for (name, value) in short.as_object().unwrap() {
                prop_assert!(name == "fanwire.truncated" || line.contains_key(name));
                prop_assert!(value.is_string() || Some(value) == line.get(name) || value == true);
            }
        }
    }
}
