//! The scripts that keep and read a history, what they are given, and what they answer.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisResult, Value};

use crate::broker::Verdict;
use crate::history::{Ask, Epoch, Past, Position, Settings};
use crate::latest::{Foreseen, Known};
use crate::message::{Outgoing, Record};
use crate::post::{Receipt, Status};

const PUBLISH: &str = include_str!("publish.lua");
const READ: &str = include_str!("read.lua");
/// Messages in one call of the script: so long the server hears nobody else.
const AT_ONCE: usize = 32;
/// Entries in a node of a stream, at most, as Redis comes (`stream-node-max-entries`).
const NODE: u32 = 100;
/// Messages after which a long history is trimmed.
const TRIM_EVERY: u64 = 16;

/// The scripts under the names that the server has given them.
#[derive(Debug)]
pub(super) struct Scripts {
    publish: String,
    read: String,
    spans: Spans,
}

/// What the server does only now and then, so that it needs no more than a short step otherwise.
#[derive(Clone, Copy, Debug)]
struct Spans {
    /// After so many messages of an upload the history is trimmed.
    trim: u64,
    /// In each span of so many milliseconds its expiry is set, that many later than is due.
    slack: u128,
}

/// What a server that has been told nothing yet must be told.
pub(super) async fn load(
    connection: &mut MultiplexedConnection,
    settings: Settings,
) -> RedisResult<Scripts> {
    let mut pipeline = Pipeline::with_capacity(2);
    pipeline.cmd("SCRIPT").arg("LOAD").arg(with(settings) + PUBLISH);
    pipeline.cmd("SCRIPT").arg("LOAD").arg(READ);
    let (publish, read) = pipeline.query_async(connection).await?;
    Ok(Scripts { publish, read, spans: Spans::of(settings) })
}

/// The settings as the script has them. Each argument of a command costs 0.1 us, these cost nothing.
fn with(settings: Settings) -> String {
    let size = settings.size;
    let Spans { trim: step, slack } = Spans::of(settings);
    let trim = if size < NODE { '=' } else { '~' };
    let ttl = milliseconds(settings);
    format!("local size, ttl, slack, trim, step = {size}, {ttl}, {slack}, '{trim}', {step}\n")
}

/// In Lua a number is a double, and Redis writes those of more than 17 digits in its own way.
fn milliseconds(settings: Settings) -> u128 {
    settings.ttl.as_millis().clamp(1, 1 << 45)
}

impl Spans {
    fn of(settings: Settings) -> Self {
        // Exactly so many, or up to a node of the stream more, which is a third cheaper.
        let trim = if settings.size < NODE { 1 } else { TRIM_EVERY };
        Self { trim, slack: milliseconds(settings).div_ceil(8) }
    }

    /// Where the message will stand, if nothing is to be done but to keep and to publish it.
    fn foreseen(self, record: &Record) -> Option<Position> {
        let Known::Next(Foreseen { position, after }) = record.known else { return None };
        let span = |number: u64| u128::from(number) / (1000 * self.slack);
        let is_due = span(record.number) > span(after) || position.offset % self.trim == 0;
        (!is_due).then_some(position)
    }
}

impl Scripts {
    /// Adds the command that publishes recorded messages, in their order: as many of the first ones of
    /// the batch as go into one, none of which may overtake those before it. Returns how many these are.
    pub(super) fn publish(
        &self,
        pipeline: &mut Pipeline,
        batch: &[Outgoing],
        before: &Before<'_>,
    ) -> usize {
        let recorded =
            || batch.iter().map_while(|outgoing| Some((outgoing, outgoing.record.as_deref()?)));
        let Some((_, first)) = recorded().next() else { return 0 };
        let goes_along = |record: &Record| {
            record.source == first.source && record.key.is_none() && record.version.is_none()
        };
        let along = recorded().take(AT_ONCE).take_while(|(_, record)| goes_along(record)).count();
        let count = along.max(1);
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.publish).arg(2 * count + usize::from(first.key.is_some()));
        for (_, record) in recorded().take(count) {
            command.arg(key(&record.upload, "meta")).arg(key(&record.upload, "log"));
        }
        if first.key.is_some() {
            command.arg(key(&first.upload, "keys"));
        }
        command.arg(format!("s{:016x}", first.source));
        for (outgoing, record) in recorded().take(count) {
            command.arg(&*outgoing.channel);
            let foreseen = self.spans.foreseen(record).filter(|_| !before.has(record));
            match foreseen {
                Some(position) => {
                    command.arg([&*outgoing.payload, position.tail().as_bytes()].concat())
                }
                None => command.arg(&*outgoing.payload),
            };
            command.arg(record.number).arg(&*before.what(record));
            match foreseen {
                Some(Position { epoch, offset }) => command.arg(offset).arg(epoch.to_string()),
                None => command.arg("").arg(""),
            };
        }
        match (first.version, &first.key) {
            (Some(version), _) => command.arg(version),
            (None, Some(_)) => command.arg(""),
            (None, None) => &mut command,
        };
        if let Some(key) = &first.key {
            command.arg(&**key);
        }
        pipeline.add_command(command);
        count
    }

    /// Adds the command that reads.
    pub(super) fn read(&self, pipeline: &mut Pipeline, ask: &Ask) {
        let mut command = script(&self.read, &ask.upload, &["meta", "log"]);
        if let Some(Position { epoch, offset }) = ask.since {
            command.arg(epoch.to_string()).arg(offset);
        }
        pipeline.add_command(command);
    }
}

/// A script with its keys. The braces keep those of one upload together in a cluster.
fn script(name: &str, upload: &str, kinds: &[&str]) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(name).arg(kinds.len());
    for kind in kinds {
        command.arg(key(upload, kind));
    }
    command
}

fn key(upload: &str, kind: &str) -> String {
    ["fanwire:{", upload, "}:", kind].concat()
}

/// The numbers of the messages in the earlier calls of a batch, by upload: a server may refuse one call
/// and take the next.
#[derive(Debug, Default)]
pub(super) struct Before<'b>(HashMap<&'b str, u64>);

impl<'b> Before<'b> {
    /// Those of another call.
    pub(super) fn add(&mut self, call: &'b [Outgoing]) {
        let recorded = call.iter().filter_map(|outgoing| outgoing.record.as_deref());
        self.0.extend(recorded.map(|record| (&*record.upload, record.number)));
    }

    /// Whether there is one of the same upload.
    fn has(&self, record: &Record) -> bool {
        self.0.contains_key(&*record.upload)
    }

    /// What the script is told of a message.
    fn what(&self, record: &Record) -> Cow<'static, str> {
        let mut what = Cow::from(if record.milestone { "1" } else { "0" });
        // A String takes everything.
        if let Some(number) = self.0.get(&*record.upload) {
            let _ = write!(what.to_mut(), "{number}");
        }
        if let Known::Reached(Position { epoch, offset }) = record.known {
            let _ = write!(what.to_mut(), "@{offset}:{epoch}");
        }
        what
    }
}

/// What the publishing script answers to a message; None if it is nothing of the kind.
pub(super) fn taken(value: &Value, known: Known) -> Option<Verdict> {
    if let Value::Int(receivers) = value {
        let Known::Next(Foreseen { position, .. }) = known else { return None };
        let (status, receivers) = (Status::Published, Some(u64::try_from(*receivers).ok()?));
        return Some(Verdict::Taken(Receipt { status, receivers, position: Some(position) }));
    }
    let mut words = std::str::from_utf8(bytes(value)?).ok()?.split(' ');
    let (kind, receivers) = (words.next()?, words.next()?.parse().ok()?);
    let offset = Some(words.next()?.parse().ok()?).filter(|offset| *offset > 0);
    if kind == "4" {
        return Some(Verdict::Behind);
    }
    let epoch = Epoch::parse(words.next()?.as_bytes())?;
    let position = offset.map(|offset| Position { epoch, offset });
    let (status, receivers) = match kind {
        "0" => (Status::Published, Some(receivers)),
        "1" => (Status::Duplicate, None),
        "2" => (Status::Stale, None),
        // It came the first time, whatever became of the answer.
        "3" => (Status::Published, None),
        _ => return None,
    };
    Some(Verdict::Taken(Receipt { status, receivers, position }))
}

/// What the reading script answers where something is kept; None if it is nothing of the kind.
pub(super) fn past(value: Value) -> Option<Past> {
    let Value::Array(mut parts) = value else { return None };
    let Some(Value::Array(entries)) = parts.pop() else { return None };
    let [epoch, last, milestone] = &parts[..] else { return None };
    Some(Past {
        epoch: Epoch::parse(bytes(epoch)?)?,
        last: number(last)?,
        milestone: Some(number(milestone)?).filter(|milestone| *milestone > 0),
        entries: entries.into_iter().map(entry).collect::<Option<_>>()?,
    })
}

/// `["17-0", ["d", payload]]`
fn entry(value: Value) -> Option<(u64, Box<[u8]>)> {
    let Value::Array(mut parts) = value else { return None };
    let Some(Value::Array(mut fields)) = parts.pop() else { return None };
    let id = std::str::from_utf8(bytes(parts.first()?)?).ok()?;
    let offset = id.strip_suffix("-0")?.parse().ok()?;
    let Some(Value::BulkString(payload)) = fields.pop() else { return None };
    Some((offset, payload.into()))
}

fn number(value: &Value) -> Option<u64> {
    let Value::Int(number) = value else { return None };
    u64::try_from(*number).ok()
}

fn bytes(value: &Value) -> Option<&[u8]> {
    let Value::BulkString(bytes) = value else { return None };
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_none_are_no_answers() {
        let text = |text: &str| Value::BulkString(text.into());
        let nothing = Known::Nothing;
        let status = |answer: &str| match taken(&text(answer), nothing) {
            Some(Verdict::Taken(receipt)) => Some(receipt),
            _ => None,
        };
        let position = Position { epoch: Epoch::parse(b"000000000000001f").unwrap(), offset: 17 };
        let published =
            Receipt { status: Status::Published, receivers: Some(2), position: Some(position) };
        assert_eq!(status("0 2 17 000000000000001f"), Some(published));
        assert_eq!(status("1 0 17 000000000000001f").unwrap().status, Status::Duplicate);
        assert!(matches!(taken(&text("4 0 0 -"), nothing), Some(Verdict::Behind)));
        for none in ["", "0", "0 2", "0 2 17", "0 2 17 1f", "5 2 17 000000000000001f", "0 -1 17 x"]
        {
            assert!(taken(&text(none), nothing).is_none(), "{none}");
        }
        assert!(taken(&Value::Array(vec![]), nothing).is_none());
        assert!(taken(&Value::Int(2), nothing).is_none(), "no position was sent with it");
        let next = Known::Next(Foreseen { position, after: 1 });
        assert!(taken(&Value::Int(-1), next).is_none());
        let Some(Verdict::Taken(receipt)) = taken(&Value::Int(2), next) else { panic!() };
        assert_eq!(receipt, published);
        assert_eq!(past(Value::Int(1)), None);
        assert_eq!(past(Value::Array(vec![])), None);
        assert_eq!(past(Value::Array(vec![text("x"), Value::Array(vec![])])), None);
    }
}
