//! The RESP reader against the `redis` crate's parser, on values and messages made at random.

use fanwire::broker::redis::resp::{self, Event};
use fanwire::router::Inbound;
use proptest::prelude::*;

/// A RESP value as bytes.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let bulk = proptest::collection::vec(any::<u8>(), 0..40)
        .prop_map(|bytes| [format!("${}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat());
    let scalar = prop_oneof![
        bulk,
        "[a-z ]{0,20}".prop_map(|text| format!("+{text}\r\n").into_bytes()),
        "(ERR|NOAUTH) [a-z ]{0,20}".prop_map(|text| format!("-{text}\r\n").into_bytes()),
        any::<i64>().prop_map(|number| format!(":{number}\r\n").into_bytes()),
        Just(b"$-1\r\n".to_vec()),
        Just(b"_\r\n".to_vec()),
        any::<bool>().prop_map(|yes| format!("#{}\r\n", if yes { 't' } else { 'f' }).into_bytes()),
        (-1e6..1e6f64).prop_map(|number| format!(",{number}\r\n").into_bytes()),
    ];
    scalar.prop_recursive(3, 24, 5, |inner| {
        (prop_oneof![Just('*'), Just('~'), Just('%')], proptest::collection::vec(inner, 0..5))
            .prop_map(|(kind, mut items)| {
                if kind == '%' && items.len() % 2 == 1 {
                    items.pop();
                }
                let count = if kind == '%' { items.len() / 2 } else { items.len() };
                [format!("{kind}{count}\r\n").into_bytes(), items.concat()].concat()
            })
    })
}

fn message(kind: char, channel: &[u8], payload: &[u8], pattern: Option<&[u8]>) -> Vec<u8> {
    let name: &[u8] = if pattern.is_some() { b"pmessage" } else { b"message" };
    let parts: Vec<&[u8]> =
        [Some(name), pattern, Some(channel), Some(payload)].into_iter().flatten().collect();
    let mut bytes = format!("{kind}{}\r\n", parts.len()).into_bytes();
    for part in parts {
        bytes.extend(format!("${}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Both readers agree where a value ends, and neither takes a part of it for the whole.
    #[test]
    fn values_end_where_the_crate_says(bytes in value(), rest in proptest::collection::vec(any::<u8>(), 0..8)) {
        prop_assert!(redis::parse_redis_value(&bytes).is_ok(), "the oracle refuses {:?}", String::from_utf8_lossy(&bytes));
        let followed = [&bytes[..], &rest].concat();
        let size = resp::read(&followed).unwrap().map(|(_, size)| size);
        prop_assert_eq!(size, Some(bytes.len()));
        for end in 0..bytes.len() {
            prop_assert_eq!(resp::read(&bytes[..end]).unwrap(), None);
        }
    }

    /// Messages come out as the crate reads them, whatever bytes are in them.
    #[test]
    fn messages_are_those_of_the_crate(
        push in any::<bool>(),
        channel in proptest::collection::vec(any::<u8>(), 0..30),
        payload in proptest::collection::vec(any::<u8>(), 0..300),
        pattern in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..10)),
    ) {
        let bytes = message(if push { '>' } else { '*' }, &channel, &payload, pattern.as_deref());
        let (event, size) = resp::read(&bytes).unwrap().unwrap();
        prop_assert_eq!(size, bytes.len());
        let inbound = Inbound::new(&channel, &payload);
        let kind = if pattern.is_some() { Event::Matching } else { Event::Named };
        prop_assert_eq!(event, kind(inbound));
        let oracle = redis::Msg::from_owned_value(redis::parse_redis_value(&bytes).unwrap()).unwrap();
        prop_assert_eq!(oracle.get_payload_bytes(), &payload[..]);
        for end in 0..bytes.len() {
            prop_assert_eq!(resp::read(&bytes[..end]).unwrap(), None);
        }
    }

    /// Whatever comes, it answers without a panic, and never claims more than there is.
    #[test]
    fn noise_is_survived(bytes in proptest::collection::vec(prop_oneof![
        Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b'-'), Just(b'>'), Just(b'%'), any::<u8>()
    ], 0..60)) {
        if let Ok(Some((_, size))) = resp::read(&bytes) {
            prop_assert!(size > 0 && size <= bytes.len());
        }
    }
}
