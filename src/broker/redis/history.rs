//! The scripts that keep and read a history, what they are given, and what they answer.

use std::time::{SystemTime, UNIX_EPOCH};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisResult, Value};

use crate::history::{Ask, Epoch, Past, Position, Settings};
use crate::message::{Outgoing, Record};
use crate::post::{Receipt, Status};

const PUBLISH: &str = include_str!("publish.lua");
const READ: &str = include_str!("read.lua");
/// Messages in one call of the script: so long the server hears nobody else.
const AT_ONCE: usize = 32;
/// Entries in a node of a stream, at most, as Redis comes (`stream-node-max-entries`).
const NODE: u32 = 100;

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
    let trim = if size < NODE { '=' } else { '~' };
    format!("local size, ttl, slack, trim = {size}, {ttl}, {}, '{trim}'\n", ttl.div_ceil(8))
}

impl Scripts {
    /// Adds the command that publishes recorded messages, in their order: as many of the first ones of
    /// the batch as go into one. Returns how many these are.
    pub(super) fn publish(&self, pipeline: &mut Pipeline, batch: &[Outgoing], now: u128) -> usize {
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
        command.arg(now.to_string()).arg(format!("s{:016x}", first.source));
        for (outgoing, record) in recorded().take(count) {
            command
                .arg(&*outgoing.channel)
                .arg(&*outgoing.payload)
                .arg(record.number)
                .arg(u8::from(record.milestone));
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

/// Milliseconds since 1970, which only say how long ago something was.
pub(super) fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

/// What the publishing script answers; None if it is nothing of the kind.
pub(super) fn taken(value: &Value) -> Option<Receipt> {
    let Value::Array(parts) = value else { return None };
    let [Value::Int(kind), receivers, offset, epoch] = &parts[..] else { return None };
    let epoch = Epoch::parse(bytes(epoch)?)?;
    let position = Some(number(offset)?).filter(|offset| *offset > 0);
    let position = position.map(|offset| Position { epoch, offset });
    let (status, receivers) = match kind {
        0 => (Status::Published, Some(number(receivers)?)),
        1 => (Status::Duplicate, None),
        2 => (Status::Stale, None),
        // It came the first time, whatever became of the answer.
        3 => (Status::Published, None),
        _ => return None,
    };
    Some(Receipt { status, receivers, position })
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
        let answer = |kind| {
            let parts = [Value::Int(kind), Value::Int(2), Value::Int(17), text("000000000000001f")];
            Value::Array(parts.into())
        };
        let position = Position { epoch: Epoch::parse(b"000000000000001f").unwrap(), offset: 17 };
        let published =
            Receipt { status: Status::Published, receivers: Some(2), position: Some(position) };
        assert_eq!(taken(&answer(0)), Some(published));
        assert_eq!(taken(&answer(1)).unwrap().status, Status::Duplicate);
        assert_eq!(taken(&answer(4)), None);
        assert_eq!(taken(&Value::Int(1)), None);
        assert_eq!(taken(&Value::Array(vec![])), None);
        assert_eq!(past(Value::Int(1)), None);
        assert_eq!(past(Value::Array(vec![])), None);
        assert_eq!(past(Value::Array(vec![text("x"), Value::Array(vec![])])), None);
    }
}
