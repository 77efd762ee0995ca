//! What the functions that keep and read a history are given, and what they answer.

use std::borrow::Cow;
use std::fmt::Write;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error as Cause, Row};

use super::batch::Unfit;
use crate::config::Limits;
use crate::history::{Ask, Epoch, Past, Position};
use crate::message::{Outgoing, Record};
use crate::post::{Receipt, Status};

/// How long an upload that somebody holds is waited for, at most and at least.
const PATIENCE: Duration = Duration::from_millis(500);
const LEAST_PATIENCE: Duration = Duration::from_millis(10);
/// It waits so long for an upload whose row an application's transaction holds, which may stay open. What
/// set_config gives is a part of the source, so that it comes first.
const RECORD: &str = "SELECT status, epoch, \"offset\" \
    FROM set_config('lock_timeout', $11, true) AS patience(setting), \
    LATERAL fanwire_record($1, $2, $3, $4, $5 || left(patience.setting, 0), $6, $7, $8, $9, $10)";
const READ: &str =
    "SELECT ask, epoch, last, milestone, \"offset\", payload FROM fanwire_read($1, $2, $3)";

/// Messages of one source that are recorded by one call, as arrays.
#[derive(Debug)]
pub struct Records<'a> {
    source: u64,
    channels: Vec<&'a str>,
    uploads: Vec<[u8; 32]>,
    heads: Vec<&'a str>,
    milestones: Vec<bool>,
    numbers: Vec<i64>,
    keys: Vec<Option<Cow<'a, str>>>,
    versions: Vec<Option<i64>>,
}

impl<'a> Records<'a> {
    /// None yet.
    pub fn new(source: u64) -> Self {
        Self {
            source,
            channels: Vec::new(),
            uploads: Vec::new(),
            heads: Vec::new(),
            milestones: Vec::new(),
            numbers: Vec::new(),
            keys: Vec::new(),
            versions: Vec::new(),
        }
    }

    /// Whose messages these are.
    pub fn source(&self) -> u64 {
        self.source
    }

    /// Adds one.
    pub fn add(&mut self, outgoing: &'a Outgoing, record: &'a Record) -> Result<(), Unfit> {
        if outgoing.channel.contains('\0') {
            return Err(Unfit("PostgreSQL carries no NUL in a channel's name"));
        }
        let head = std::str::from_utf8(&outgoing.payload).map_err(|_| Unfit("it is not UTF-8"))?;
        let signed =
            |number: u64| i64::try_from(number).map_err(|_| Unfit("its number is too large"));
        let (number, version) = (signed(record.number)?, record.version.map(signed).transpose()?);
        self.channels.push(&outgoing.channel);
        self.uploads.push(hash(&record.upload));
        self.heads.push(head);
        self.milestones.push(record.milestone);
        self.numbers.push(number);
        self.keys.push(record.key.as_deref().map(without_nul));
        self.versions.push(version);
        Ok(())
    }

    /// Has them recorded and published.
    pub async fn publish(&self, client: &Client, limits: &Limits) -> Result<Vec<Row>, Cause> {
        let settings = limits.history.unwrap_or_default();
        let patience = (limits.publish_timeout / 4).clamp(LEAST_PATIENCE, PATIENCE);
        let patience = format!("{}ms", patience.as_millis());
        let source = format!("{:016x}", self.source);
        let size = i32::try_from(settings.size).unwrap_or(i32::MAX);
        let ttl = i64::try_from(settings.ttl.as_millis().clamp(1, 1 << 45)).unwrap_or(1 << 45);
        // None of most batches has any.
        let keys = self.keys.iter().any(Option::is_some).then_some(&self.keys);
        let versions = self.versions.iter().any(Option::is_some).then_some(&self.versions);
        let uploads: Vec<&[u8]> = self.uploads.iter().map(|upload| &upload[..]).collect();
        let parameters: [(&(dyn ToSql + Sync), Type); 11] = [
            (&self.channels, Type::TEXT_ARRAY),
            (&uploads, Type::BYTEA_ARRAY),
            (&self.heads, Type::TEXT_ARRAY),
            (&self.milestones, Type::BOOL_ARRAY),
            (&source, Type::TEXT),
            (&self.numbers, Type::INT8_ARRAY),
            (&keys, Type::TEXT_ARRAY),
            (&versions, Type::INT8_ARRAY),
            (&size, Type::INT4),
            (&ttl, Type::INT8),
            (&patience, Type::TEXT),
        ];
        client.query_typed(RECORD, &parameters).await
    }
}

/// What the tables know an upload by: ids may be longer than what an index takes.
fn hash(upload: &str) -> [u8; 32] {
    Sha256::digest(upload).into()
}

/// A text of PostgreSQL holds no NUL, so a key with one is known by another name.
fn without_nul(key: &str) -> Cow<'_, str> {
    if !key.contains('\0') {
        return key.into();
    }
    let mut name = String::from("fanwire:sha256:");
    for byte in Sha256::digest(key) {
        // A String takes everything.
        let _ = write!(name, "{byte:02x}");
    }
    name.into()
}

/// What became of a message; None if the row is nothing of the kind.
pub fn taken(row: &Row) -> Option<Receipt> {
    let (status, epoch, offset): (i16, &str, Option<i64>) =
        (row.try_get(0).ok()?, row.try_get(1).ok()?, row.try_get(2).ok()?);
    let epoch = Epoch::parse(epoch.as_bytes())?;
    let position = match offset.map(u64::try_from) {
        Some(offset) => Some(Position { epoch, offset: offset.ok()? }),
        None => None,
    };
    let status = match status {
        // 3: it came the first time, whatever became of the answer.
        0 | 3 => Status::Published,
        1 => Status::Duplicate,
        2 => Status::Stale,
        _ => return None,
    };
    Some(Receipt { status, receivers: None, position })
}

/// Asks what is kept of uploads.
pub async fn read(client: &Client, asks: &[Ask]) -> Result<Vec<Row>, Cause> {
    let hashes: Vec<[u8; 32]> = asks.iter().map(|ask| hash(&ask.upload)).collect();
    let uploads: Vec<&[u8]> = hashes.iter().map(|upload| &upload[..]).collect();
    let since = || asks.iter().map(|ask| ask.since);
    let epochs: Vec<Option<String>> =
        since().map(|since| since.map(|since| since.epoch.to_string())).collect();
    let offsets: Vec<Option<i64>> =
        since().map(|since| since.and_then(|since| i64::try_from(since.offset).ok())).collect();
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&uploads, Type::BYTEA_ARRAY), (&epochs, Type::TEXT_ARRAY), (&offsets, Type::INT8_ARRAY)];
    client.query_typed(READ, &parameters).await
}

/// What is kept of so many uploads that were asked for; None if the rows are nothing of the kind.
pub fn pasts(rows: &[Row], count: usize) -> Option<Vec<Option<Past>>> {
    let mut pasts: Vec<Option<Past>> = vec![None; count];
    for row in rows {
        let ask = usize::try_from(row.try_get::<_, i32>(0).ok()?).ok()?;
        let past = pasts.get_mut(ask.checked_sub(1)?)?;
        let number = |index| -> Option<Option<u64>> {
            let number: Option<i64> = row.try_get(index).ok()?;
            number.map_or(Some(None), |number| u64::try_from(number).ok().map(Some))
        };
        let past = match past {
            Some(past) => past,
            None => past.insert(Past {
                epoch: Epoch::parse(row.try_get::<_, &str>(1).ok()?.as_bytes())?,
                last: number(2)??,
                milestone: number(3)?,
                entries: Vec::new(),
            }),
        };
        if let Some(offset) = number(4)? {
            past.entries.push((offset, row.try_get::<_, &str>(5).ok()?.as_bytes().into()));
        }
    }
    Some(pasts)
}
