//! The scripts that keep and read a history, what they are given, and what they answer.

use std::num::NonZeroU64;
use std::time::{SystemTime, UNIX_EPOCH};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisResult, Value};

use crate::history::{Ask, Epoch, Past, Position, Settings};
use crate::message::{Outgoing, Record};
use crate::post::{Receipt, Status};

const PUBLISH: &str = include_str!("publish.lua");
const READ: &str = include_str!("read.lua");

/// The scripts under the names that the server has given them.
#[derive(Debug)]
pub(super) struct Scripts {
    publish: String,
    read: String,
}

/// What a server that has been told nothing yet must be told.
pub(super) async fn load(connection: &mut MultiplexedConnection) -> RedisResult<Scripts> {
    let mut pipeline = Pipeline::with_capacity(2);
    pipeline.cmd("SCRIPT").arg("LOAD").arg(PUBLISH);
    pipeline.cmd("SCRIPT").arg("LOAD").arg(READ);
    let (publish, read) = pipeline.query_async(connection).await?;
    Ok(Scripts { publish, read })
}

impl Scripts {
    /// Adds the command that publishes a recorded message.
    pub(super) fn publish(
        &self,
        pipeline: &mut Pipeline,
        outgoing: &Outgoing,
        record: &Record,
        settings: Settings,
        now: Millis,
    ) {
        let mut command = script(&self.publish, &record.upload, &["meta", "log", "keys"]);
        command
            .arg(&*outgoing.channel)
            .arg(&*outgoing.payload)
            .arg(candidate(record).to_string())
            .arg(now.0)
            .arg(settings.size)
            .arg(Millis::of(settings.ttl).0)
            .arg(u8::from(record.milestone))
            .arg(record.source)
            .arg(record.number);
        match record.version {
            Some(version) => command.arg(version),
            None => command.arg(""),
        };
        if let Some(key) = &record.key {
            command.arg(&**key);
        }
        pipeline.add_command(command);
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
        command.arg(format!("fanwire:{{{upload}}}:{kind}"));
    }
    command
}

/// Milliseconds, since 1970 or of a duration. The clock only says how long ago something was.
#[derive(Clone, Copy)]
pub(super) struct Millis(u64);

impl Millis {
    pub(super) fn now() -> Self {
        Self::of(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    fn of(duration: std::time::Duration) -> Self {
        // Whoever keeps something for ever keeps it for two hundred thousand years.
        Self(
            u64::try_from(duration.as_millis()).map_or(crate::history::LARGEST, |millis| {
                millis.clamp(1, crate::history::LARGEST / 2)
            }),
        )
    }
}

/// The epoch of a history that begins with this message. No two messages have the same one: for each
/// source it is a permutation of the numbers (the last steps of `SplitMix64`).
fn candidate(record: &Record) -> Epoch {
    let mut bits = record.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ record.source;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    Epoch(NonZeroU64::new(bits).unwrap_or(NonZeroU64::MIN))
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

/// What the reading script answers; the outer None if it is nothing of the kind.
pub(super) fn past(value: Value) -> Option<Option<Past>> {
    let mut parts = match value {
        Value::Nil => return Some(None),
        Value::Array(parts) => parts,
        _ => return None,
    };
    let Some(Value::Array(entries)) = parts.pop() else { return None };
    let [epoch, last, milestone] = &parts[..] else { return None };
    let past = Past {
        epoch: Epoch::parse(bytes(epoch)?)?,
        last: number(last)?,
        milestone: Some(number(milestone)?).filter(|milestone| *milestone > 0),
        entries: entries.into_iter().map(entry).collect::<Option<_>>()?,
    };
    Some(Some(past))
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
    fn no_two_messages_propose_the_same_epoch() {
        let at = |source, number| candidate(&Record { source, number, ..Record::new("u", true) });
        let all: std::collections::HashSet<Epoch> =
            (0..10_000).flat_map(|number| [at(1, number), at(2, number)]).collect();
        assert_eq!(all.len(), 20_000);
    }

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
        assert_eq!(past(Value::Nil), Some(None));
        assert_eq!(past(Value::Int(1)), None);
        assert_eq!(past(Value::Array(vec![])), None);
        assert_eq!(past(Value::Array(vec![text("x"), Value::Array(vec![])])), None);
    }
}
