//! The scripts that keep and read a history, what they are given, and what they answer.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisResult, Value};

use crate::broker::Verdict;
use crate::history::{Ask, Epoch, Past, Position, Settings};
use crate::message::{Outgoing, Record};
use crate::post::{Receipt, Status};

const PUBLISH: &str = include_str!("publish.lua");
const READ: &str = include_str!("read.lua");
/// Messages in one call of the script: so long the server hears nobody else.
const AT_ONCE: usize = 32;
/// Entries in a node of a stream, at most, as Redis comes (`stream-node-max-entries`).
const NODE: u32 = 100;
/// Messages after which a long history is trimmed.
const TRIM_EVERY: u32 = 16;

/// The scripts under the names that the server has given them.
#[derive(Debug)]
pub(super) struct Scripts {
    publish: String,
    read: String,
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
    Ok(Scripts { publish, read })
}

/// The settings as the script has them. Each argument of a command costs 0.1 us, these cost nothing.
fn with(settings: Settings) -> String {
    let Settings { size, ttl } = settings;
    // In Lua a number is a double, and Redis writes those of more than 17 digits in its own way.
    let ttl = ttl.as_millis().clamp(1, 1 << 45);
    // Exactly so many, or up to a node of the stream more, which is a third cheaper.
    let (trim, step) = if size < NODE { ('=', 1) } else { ('~', TRIM_EVERY) };
    let slack = ttl.div_ceil(8);
    format!("local size, ttl, slack, trim, step = {size}, {ttl}, {slack}, '{trim}', {step}\n")
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
            command
                .arg(&*outgoing.channel)
                .arg(&*outgoing.payload)
                .arg(record.number)
                .arg(&*before.what(record));
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

    /// What the script is told of a message.
    fn what(&self, record: &Record) -> Cow<'static, str> {
        let milestone = if record.milestone { "1" } else { "0" };
        let behind = self.0.get(&*record.upload);
        if behind.is_none() && record.expected.is_none() {
            return milestone.into();
        }
        let mut what = String::from(milestone);
        // A String takes everything.
        if let Some(number) = behind {
            let _ = write!(what, "{number}");
        }
        if let Some(Position { epoch, offset }) = record.expected {
            let _ = write!(what, "@{offset}:{epoch}");
        }
        what.into()
    }
}

/// What the publishing script answers; None if it is nothing of the kind.
pub(super) fn taken(value: &Value) -> Option<Verdict> {
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
        let status = |answer: &str| match taken(&text(answer)) {
            Some(Verdict::Taken(receipt)) => Some(receipt),
            _ => None,
        };
        let position = Position { epoch: Epoch::parse(b"000000000000001f").unwrap(), offset: 17 };
        let published =
            Receipt { status: Status::Published, receivers: Some(2), position: Some(position) };
        assert_eq!(status("0 2 17 000000000000001f"), Some(published));
        assert_eq!(status("1 0 17 000000000000001f").unwrap().status, Status::Duplicate);
        assert!(matches!(taken(&text("4 0 0 -")), Some(Verdict::Behind)));
        for none in ["", "0", "0 2", "0 2 17", "0 2 17 1f", "5 2 17 000000000000001f", "0 -1 17 x"]
        {
            assert!(taken(&text(none)).is_none(), "{none}");
        }
        assert!(taken(&Value::Int(1)).is_none());
        assert!(taken(&Value::Array(vec![])).is_none());
        assert_eq!(past(Value::Int(1)), None);
        assert_eq!(past(Value::Array(vec![])), None);
        assert_eq!(past(Value::Array(vec![text("x"), Value::Array(vec![])])), None);
    }
}
