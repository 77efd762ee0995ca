//! What a notification of PostgreSQL carries is read without a panic and in bounded memory, what is
//! written is read back, and what was cut is joined again.

#![no_main]

use fanwire::broker::postgres::frame::{self, Frame, Joiner, MOST, Message};
use libfuzzer_sys::fuzz_target;

/// Bytes of a text in parts, at most.
const LONGEST: usize = 256;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    // Every line as a notification of its own, as a hostile publisher would send them.
    let mut joiner = Joiner::new(LONGEST);
    for line in text.split('\n') {
        match frame::read(line) {
            Ok(Frame::Part(part)) => {
                if let (Some(whole), _) = joiner.add(part) {
                    assert!(whole.len() <= LONGEST);
                    check(&whole);
                }
            }
            Ok(Frame::Message(_)) => check(line),
            Err(_) => {}
        }
    }
    cut(&text);
});

/// A message that was read is written so that it is read again as the same.
fn check(text: &str) {
    let Ok(message) = frame::message(text) else { return };
    assert!(!message.body.is_empty() && text.contains(message.body));
    let mut written = frame::write(&message);
    assert_eq!(frame::message(&written), Ok(message));
    frame::mark(&mut written, 77);
    assert_eq!(frame::message(&written), Ok(message));
}

/// Something long, made of the input, survives being cut, and a name in front of it too.
fn cut(text: &str) {
    if text.is_empty() {
        return;
    }
    let body = format!("\"{}", text.repeat(1 + 3 * MOST / text.len()));
    let message = Message { channel: Some(text), except: Some(text), body: body.trim_end() };
    let written = frame::write(&message);
    let mut joiner = Joiner::new(written.len());
    let mut joined = None;
    for part in frame::split(7, &written) {
        assert!(part.len() <= MOST && joined.is_none());
        let Ok(Frame::Part(part)) = frame::read(&part) else { panic!("a part is a part") };
        let (whole, wrong) = joiner.add(part);
        assert_eq!(wrong, None);
        joined = whole;
    }
    assert_eq!(joined.as_deref(), Some(&*written));
    assert_eq!(frame::message(&written), Ok(message));
}
