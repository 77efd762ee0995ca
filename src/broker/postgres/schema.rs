//! What fanwire keeps in a database: whether it is there, and how it gets there.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error as Cause, SimpleQueryMessage};

use super::dsn::Dsn;
use super::socket::Reading;
use super::{connect, errors};
use crate::config::BrokerUrl;
use crate::error::Error;

/// The tables and functions, as one statement that may run any number of times.
pub const SQL: &str = include_str!("schema.sql");
/// Of [`SQL`].
const VERSION: i64 = 1;

const LOOK: &str = "SELECT version, needs FROM fanwire_schema";
const WHERE: &str = "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.oid = to_regclass('fanwire_schema')";

/// Makes sure that the tables and functions are there, and that we can work with them. `broken`: some of
/// them turned out to be missing.
pub(super) async fn prepare(client: &Client, url: &BrokerUrl, broken: bool) -> Result<(), Error> {
    match numbers(client.simple_query(LOOK).await) {
        Ok(Some((version, _))) if version < VERSION => {}
        Ok(Some((version, needs))) if needs > VERSION => {
            return Err(refused(
                url,
                &format!(
                    "fanwire's tables are of version {version}, and this fanwire knows version {VERSION}: \
                     use a newer one here"
                ),
            ));
        }
        Ok(Some(_)) if !broken => return Ok(()),
        Ok(_) => {}
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {}
        Err(error) => return Err(errors::of_statement(&error, url)),
    }
    client.batch_execute(SQL).await.map_err(|error| not_made(&error, url))
}

/// What is in the database after a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The schema with the tables.
    pub schema: String,
    /// The version that was there; None if there was none.
    pub before: Option<i64>,
    /// The version that is there.
    pub after: i64,
}

/// Makes the tables and functions, or brings them up to date; within `limit` it has to be connected.
pub async fn migrate(dsn: &Dsn, url: &BrokerUrl, limit: Duration) -> Result<Migrated, Error> {
    let (client, connection) = connect::open(dsn, url, limit, Reading::AtOnce).await?;
    let driver = tokio::spawn(connection);
    let migrated = run(&client, url).await;
    driver.abort();
    migrated
}

async fn run(client: &Client, url: &BrokerUrl) -> Result<Migrated, Error> {
    let before = match numbers(client.simple_query(LOOK).await) {
        Ok(found) => found.map(|(version, _)| version),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => None,
        Err(error) => return Err(errors::of_statement(&error, url)),
    };
    client.batch_execute(SQL).await.map_err(|error| not_made(&error, url))?;
    let failed = |error: Cause| errors::of_statement(&error, url);
    let after = numbers(client.simple_query(LOOK).await).map_err(failed)?;
    let found = client.simple_query(WHERE).await.map_err(failed)?;
    let schema = found.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten().map(str::to_owned),
        _ => None,
    });
    Ok(Migrated {
        schema: schema.unwrap_or_default(),
        before,
        after: after.map_or(0, |(version, _)| version),
    })
}

/// `version` and `needs`.
fn numbers(answer: Result<Vec<SimpleQueryMessage>, Cause>) -> Result<Option<(i64, i64)>, Cause> {
    Ok(answer?.iter().find_map(|message| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        let number = |index| row.try_get(index).ok().flatten().and_then(|text| text.parse().ok());
        Some((number(0)?, number(1)?))
    }))
}

fn not_made(error: &Cause, url: &BrokerUrl) -> Error {
    if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        let said = error.as_db_error().map_or_else(String::new, |said| said.message().to_owned());
        let reason = format!(
            "a history needs fanwire's tables, and this role may not make them ({said}): let one that \
             may run `python -m fanwire migrate {}`",
            url.shown
        );
        return refused(url, &reason);
    }
    errors::of_statement(error, url)
}

fn refused(url: &BrokerUrl, reason: &str) -> Error {
    Error::Refused { url: url.shown.clone(), reason: url.scrub(reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_file() {
        assert!(SQL.contains(&format!("this_version constant integer := {VERSION};")));
    }
}
