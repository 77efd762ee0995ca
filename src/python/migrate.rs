//! The tables of a history in PostgreSQL, made on request.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::errors::{self, Doing};
use super::options;
use crate::broker::postgres::{self, Migrated};
use crate::config::{BrokerUrl, Target};
use crate::error::Error;
use crate::runtime;

/// How often Ctrl-C is looked for.
const SIGNALS_EVERY: Duration = Duration::from_millis(100);

/// The SQL that makes fanwire's tables and functions.
#[pyfunction]
pub fn schema_sql() -> &'static str {
    postgres::SQL
}

/// Makes fanwire's tables and functions in a database, or brings them up to date.
///
/// Returns:
///     The schema they are in, the version that was there before or None, and the version now.
#[pyfunction]
#[pyo3(signature = (dsn, *, timeout_seconds=30.0))]
pub fn migrate(
    py: Python<'_>,
    dsn: &str,
    timeout_seconds: f64,
) -> PyResult<(String, Option<i64>, i64)> {
    let limit = options::seconds(py, "timeout_seconds", timeout_seconds)?;
    let migrated = BrokerUrl::parse(dsn).and_then(|url| begin(url, limit)).and_then(|mut waits| {
        let begun = Instant::now();
        loop {
            let waits = &mut waits;
            match py.detach(move || waits.recv_timeout(SIGNALS_EVERY)) {
                Ok(migrated) => return migrated.map(Ok),
                // The task has its own limit; should the I/O thread be gone, nobody would tell.
                Err(RecvTimeoutError::Timeout) if begun.elapsed() < limit + limit => {
                    if let Err(signal) = py.check_signals() {
                        return Ok(Err(signal));
                    }
                }
                Err(_) => return Err(Error::Stopped),
            }
        }
    });
    let migrated = migrated.map_err(|error| {
        let raised = errors::to_python(py, &error, Doing::Starting);
        raised.unwrap_or_else(|| PyRuntimeError::new_err(error.to_string()))
    })?;
    let Migrated { schema, before, after } = migrated?;
    Ok((schema, before, after))
}

type Waits = std::sync::mpsc::Receiver<Result<Migrated, Error>>;

fn begin(url: BrokerUrl, limit: Duration) -> Result<Waits, Error> {
    let Target::Postgres(dsn) = url.target.clone() else {
        return Err(Error::Config(format!("{:?} is no PostgreSQL URL", url.shown)));
    };
    let (tell, told) = sync_channel(1);
    runtime::spawn(async move {
        let migrated = tokio::time::timeout(limit, postgres::migrate(&dsn, &url, limit)).await;
        let late = || Err(Error::Timeout { url: url.shown.clone(), after: limit });
        // Whoever waited may have been interrupted.
        drop(tell.send(migrated.unwrap_or_else(|_| late())));
    })?;
    Ok(told)
}
