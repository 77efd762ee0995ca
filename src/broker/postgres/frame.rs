//! What a notification carries. Pure: nothing here connects.
//!
//! A notification is text of at most [`MOST`] bytes. One that does not begin with `~` is a JSON value,
//! perhaps with white space behind it: the message itself, for the channel with the notification
//! channel's name. Anything else is a frame:
//!
//! ```text
//! ~m<length>:<channel><body>      a whole message for the channel
//! ~x<length>:<session id><rest>   what <rest> says, but not for that session
//! ~c<id>,<k>,<n>:<part>           part k (from 0) of n of a text that was too long for one notification
//! ```
//!
//! PostgreSQL merges equal notifications of one transaction, so of equal ones the later get white space
//! behind them that differs, which the reader takes away.

/// Bytes of a notification, at most.
pub const MOST: usize = 7999;
/// What white space behind a message is made of: the digits of a number.
pub(super) const DIGITS: [char; 4] = [' ', '\t', '\n', '\r'];
/// A part's header is no longer: `~c`, 16 digits, twice a comma and up to 10 digits, a colon.
const HEADER: usize = 2 + 16 + 2 * (1 + 10) + 1;

/// A whole message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The channel; None where it is the notification channel.
    pub channel: Option<&'a str>,
    /// The session that is not to get it.
    pub except: Option<&'a str>,
    /// The JSON.
    pub body: &'a str,
}

/// A part of a text that was too long for one notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// Which text.
    pub id: u64,
    /// Which part of it, from 0.
    pub number: u32,
    /// How many there are.
    pub count: u32,
    /// What it holds.
    pub text: &'a str,
}

/// What a notification's text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A whole message.
    Message(Message<'a>),
    /// A part of one.
    Part(Part<'a>),
}

/// Why a text is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Reads a notification's text.
pub fn read(text: &str) -> Result<Frame<'_>, Malformed> {
    if is_part(text) { part(text).map(Frame::Part) } else { message(text).map(Frame::Message) }
}

/// Whether a notification's text is to be read by [`part`], and not by [`message`].
pub fn is_part(text: &str) -> bool {
    text.starts_with("~c")
}

/// Reads the text of a whole message.
pub fn message(text: &str) -> Result<Message<'_>, Malformed> {
    let (except, rest) = match text.strip_prefix("~x") {
        Some(rest) => named(rest).map(|(session, rest)| (Some(session), rest))?,
        None => (None, text),
    };
    let (channel, body) = match rest.strip_prefix("~m") {
        Some(rest) => named(rest).map(|(channel, rest)| (Some(channel), rest))?,
        None => (None, rest),
    };
    if body.starts_with('~') {
        return Err(Malformed("is a frame of an unknown kind"));
    }
    let body = body.trim_end_matches(DIGITS);
    if body.is_empty() {
        return Err(Malformed("is empty"));
    }
    Ok(Message { channel, except, body })
}

/// `<length>:<name><rest>`
fn named(text: &str) -> Result<(&str, &str), Malformed> {
    let (length, rest) = text.split_once(':').ok_or(Malformed("is a frame without a colon"))?;
    let length = decimal(length).ok_or(Malformed("is a frame with a length that is none"))?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    rest.split_at_checked(length).ok_or(Malformed("is a frame with a length that does not fit"))
}

/// Reads the text of a part.
pub fn part(text: &str) -> Result<Part<'_>, Malformed> {
    const NONE: Malformed = Malformed("is a part with a header that is none");
    let (header, text) =
        text.strip_prefix("~c").and_then(|rest| rest.split_once(':')).ok_or(NONE)?;
    let mut fields = header.split(',');
    let (Some(id), Some(number), Some(count), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(NONE);
    };
    let is_hex = id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = u64::from_str_radix(id, 16).ok().filter(|_| is_hex).ok_or(NONE)?;
    let (number, count) = (decimal(number).ok_or(NONE)?, decimal(count).ok_or(NONE)?);
    if number >= count {
        return Err(Malformed("is a part behind the last one"));
    }
    Ok(Part { id, number, count, text })
}

/// Digits and nothing else, unlike `str::parse`.
fn decimal(text: &str) -> Option<u32> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// The text of a whole message. The channel is given where it is not the notification channel.
pub fn write(message: &Message<'_>) -> String {
    let Message { channel, except, body } = message;
    let mut text = String::with_capacity(
        body.len()
            + channel.map_or(0, |channel| channel.len() + 12)
            + except.map_or(0, str::len)
            + 12,
    );
    for (mark, name) in [("~x", except), ("~m", channel)] {
        if let Some(name) = name {
            text.push_str(mark);
            text.push_str(&name.len().to_string());
            text.push(':');
            text.push_str(name);
        }
    }
    text.push_str(body);
    text
}

/// Cuts a text into parts that are not too long.
pub fn split(id: u64, text: &str) -> Vec<String> {
    let mut parts = Vec::with_capacity(text.len() / (MOST - HEADER - 3) + 1);
    let mut rest = text;
    while !rest.is_empty() {
        let (part, left) = rest.split_at(boundary(rest, MOST - HEADER));
        parts.push(part);
        rest = left;
    }
    let count = parts.len();
    let parts = parts.into_iter().enumerate();
    parts.map(|(number, part)| format!("~c{id:016x},{number},{count}:{part}")).collect()
}

/// The last place not behind `at` where a text may be cut.
fn boundary(text: &str, at: usize) -> usize {
    if at >= text.len() {
        return text.len();
    }
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Adds white space that tells a text from an equal one.
pub fn mark(text: &mut String, number: u32) {
    let mut number = number;
    loop {
        text.push(DIGITS[(number % 4) as usize]);
        number /= 4;
        if number == 0 {
            return;
        }
    }
}

/// Joins parts. Those of a text are notified one after another by one transaction, and PostgreSQL keeps
/// that order, so at most one text is not complete.
#[derive(Debug)]
pub struct Joiner {
    most: usize,
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    id: u64,
    next: u32,
    count: u32,
    text: String,
}

impl Joiner {
    /// One for texts of at most so many bytes.
    pub fn new(most: usize) -> Self {
        Self { most, begun: None }
    }

    /// Adds the part that came next. Gives the text if it is whole with it, and what is wrong if
    /// something was given up: this part, or what it should have continued.
    pub fn add(&mut self, part: Part<'_>) -> (Option<String>, Option<Malformed>) {
        const MISSING: Malformed = Malformed("is a message of which parts are missing");
        let Part { id, number, count, text } = part;
        let continued = |begun: &Begun| (begun.id, begun.next, begun.count) == (id, number, count);
        let begun = self.begun.take();
        let is_lost = begun.as_ref().is_some_and(|begun| !continued(begun));
        let mut wrong = is_lost.then_some(MISSING);
        let mut begun = match begun.filter(continued) {
            Some(begun) => begun,
            None if number == 0 => Begun { id, next: 0, count, text: String::new() },
            None => return (None, Some(MISSING)),
        };
        if begun.text.len() + text.len() > self.most {
            wrong = Some(Malformed("is a message that is too long"));
            return (None, wrong);
        }
        begun.text.push_str(text);
        begun.next += 1;
        if begun.next == begun.count {
            return (Some(begun.text), wrong);
        }
        self.begun = Some(begun);
        (None, wrong)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole<'a>(channel: Option<&'a str>, except: Option<&'a str>, body: &'a str) -> Message<'a> {
        Message { channel, except, body }
    }

    #[test]
    fn frames_are_those_of_the_contract() {
        assert_eq!(write(&whole(None, None, "{}")), "{}");
        assert_eq!(write(&whole(Some("upload:ü"), None, "{}")), "~m9:upload:ü{}");
        assert_eq!(write(&whole(None, Some("s:1"), "[]")), "~x3:s:1[]");
        assert_eq!(write(&whole(Some("c"), Some(""), "1")), "~x0:~m1:c1");
        let part = Part { id: 0x1f, number: 0, count: 2, text: "a:b" };
        assert_eq!(read("~c000000000000001f,0,2:a:b"), Ok(Frame::Part(part)));
        assert_eq!(read("1 \t\r\n"), Ok(Frame::Message(whole(None, None, "1"))));
        assert_eq!(read("~m1:c1 "), Ok(Frame::Message(whole(Some("c"), None, "1"))));
    }

    #[test]
    fn what_is_malformed_is_told() {
        for text in [
            "",
            " ",
            "~",
            "~m",
            "~m1",
            "~m:",
            "~m:x",
            "~m+1:xy",
            "~m2:ü",
            "~m1:üx",
            "~m3:ab",
            "~m1:a",
            "~m1:a~x1:b1",
            "~m1:a~m1:b1",
            "~x1:a",
            "~y1:a1",
            "~m99999999999:a",
            "~c",
            "~c:",
            "~c1,0,1:x",
            "~c000000000000001f,0:x",
            "~c000000000000001f,1,1:x",
            "~c000000000000001f,0,0:x",
            "~c+00000000000001f,0,1:x",
            "~c000000000000001f,0,1,2:x",
            "~c000000000000001f,,1:x",
            "~c000000000000001f,0,4294967296:x",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn white_space_tells_equal_texts_apart() {
        let marked: std::collections::HashSet<String> = (0..1000)
            .map(|number| {
                let mut text = "1".to_owned();
                mark(&mut text, number);
                assert_eq!(read(&text), Ok(Frame::Message(whole(None, None, "1"))));
                text
            })
            .collect();
        assert_eq!(marked.len(), 1000);
    }

    fn add(joiner: &mut Joiner, text: &str) -> (Option<String>, bool) {
        let Ok(Frame::Part(part)) = read(text) else { panic!("{text:?} is no part") };
        let (whole, wrong) = joiner.add(part);
        (whole, wrong.is_some())
    }

    #[test]
    fn what_is_incomplete_is_given_up() {
        let long = "x".repeat(20_000);
        let (one, other) = (split(1, &long), split(2, &long));
        let mut joiner = Joiner::new(1 << 20);
        // The middle, without a beginning.
        assert_eq!(add(&mut joiner, &one[1]), (None, true));
        // Another one begins before the end: the first is told of, the other arrives.
        assert_eq!(add(&mut joiner, &one[0]), (None, false));
        assert_eq!(add(&mut joiner, &other[0]), (None, true));
        assert_eq!(add(&mut joiner, &other[1]), (None, false));
        assert_eq!(add(&mut joiner, &other[2]), (Some(long), false));
        // Twice the same.
        assert_eq!(add(&mut joiner, &one[0]), (None, false));
        assert_eq!(add(&mut joiner, &one[0]), (None, true));
        // A whole one in one part, in place of the rest of another.
        assert_eq!(add(&mut joiner, &split(3, "1")[0]), (Some("1".to_owned()), true));
        assert_eq!(add(&mut joiner, &one[1]), (None, true));
    }

    #[test]
    fn memory_is_bounded() {
        let mut joiner = Joiner::new(10_000);
        let parts = split(1, &"x".repeat(20_000));
        assert_eq!(add(&mut joiner, &parts[0]), (None, false));
        assert_eq!(add(&mut joiner, &parts[1]), (None, true));
        assert!(joiner.begun.is_none());
    }

    proptest! {
        #[test]
        fn messages_are_read_back(
            channel in proptest::option::of("\\PC{0,40}"),
            except in proptest::option::of("\\PC{0,40}"),
            number in 0..5000u32,
            body in "[^~\\s]\\PC{0,60}[^\\s]",
        ) {
            let message = whole(channel.as_deref(), except.as_deref(), &body);
            let mut text = write(&message);
            prop_assert_eq!(super::message(&text), Ok(message));
            mark(&mut text, number);
            prop_assert_eq!(read(&text), Ok(Frame::Message(message)));
        }

        #[test]
        fn parts_fit_and_join(id: u64, text in "[a-zü€𐍈~:,]{1,30}", times in 1..3000usize) {
            let text = text.repeat(times);
            let parts = split(id, &text);
            let mut joiner = Joiner::new(text.len());
            for (number, part) in parts.iter().enumerate() {
                prop_assert!(part.len() <= MOST);
                let is_last = number + 1 == parts.len();
                let whole = is_last.then(|| text.clone());
                prop_assert_eq!(add(&mut joiner, part), (whole, false));
            }
        }

        #[test]
        fn anything_is_survived(texts in proptest::collection::vec("~?[cmx]?[0-9a-f,:~ü]{0,40}", 0..20)) {
            let mut joiner = Joiner::new(100);
            for text in &texts {
                if let Ok(Frame::Part(part)) = read(text) {
                    drop(joiner.add(part));
                }
            }
        }
    }
}
