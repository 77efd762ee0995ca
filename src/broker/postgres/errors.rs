//! The crate's errors in the words of ours.

use std::error::Error as _;

use tokio_postgres::Error as Cause;
use tokio_postgres::error::SqlState;

use crate::broker::Verdict;
use crate::config::BrokerUrl;
use crate::error::Error;

/// Classes of conditions that time can mend: connection exceptions, rolled back for another's sake, out
/// of resources, out of limits (the queue of notifications is full), not in the state for it, and the
/// operator's intervention. And a server that cannot be written to, which is a standby.
const PASSING: [&str; 7] = ["08", "40", "53", "54", "55", "57", "25006"];

/// Whether time can mend it.
fn may_pass(state: &SqlState) -> bool {
    PASSING.iter().any(|class| state.code().starts_with(class))
}

/// Whether an attempt with another kind of encryption may succeed.
pub fn is_about_encryption(error: &Cause) -> bool {
    match error.code() {
        // No entry in pg_hba.conf.
        Some(state) => *state == SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        None => error.to_string().contains("TLS"),
    }
}

/// What is said of a connection that could not be made. The note says why something was not done.
pub fn of_connecting(error: &Cause, url: &BrokerUrl, note: Option<&str>) -> Error {
    let mut reason = words(error);
    if error.as_db_error().is_none() && reason.contains("password missing") {
        "it wants a password, and there is none in the URL, in PGPASSWORD or in the password file"
            .clone_into(&mut reason);
    }
    let is_refused = match error.code() {
        Some(state) => !may_pass(state),
        None => is_for_good(error),
    };
    if let Some(note) = note.filter(|_| is_refused) {
        reason = format!("{reason} ({note})");
    }
    let (url, reason) = (url.shown.clone(), url.scrub(&reason));
    if is_refused { Error::Refused { url, reason } } else { Error::Unreachable { url, reason } }
}

/// Of errors that are not the server's word: whether they stay so.
fn is_for_good(error: &Cause) -> bool {
    let text = error.to_string();
    if ["error parsing response", "unexpected message", "invalid configuration"]
        .iter()
        .any(|start| text.starts_with(start))
    {
        return true;
    }
    let kind = io_kind(error);
    let is_tls = text.contains("TLS");
    // A certificate that does not verify, or a server that does not do TLS at all.
    is_tls && kind.is_none_or(|kind| kind == std::io::ErrorKind::InvalidData)
}

fn io_kind(error: &Cause) -> Option<std::io::ErrorKind> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        source = cause.source();
    }
    None
}

/// A connection that failed while it was in use.
pub fn of_losing(error: &Cause, url: &BrokerUrl) -> Error {
    Error::Unreachable { url: url.shown.clone(), reason: url.scrub(&words(error)) }
}

/// A statement that failed: with the server's word, or with the connection.
pub fn of_statement(error: &Cause, url: &BrokerUrl) -> Error {
    match error.code() {
        Some(state) if !may_pass(state) => {
            Error::Refused { url: url.shown.clone(), reason: url.scrub(&words(error)) }
        }
        _ => of_losing(error, url),
    }
}

/// What became of messages whose statement failed with the server's word: they are not published.
pub fn verdict(error: &Cause, url: &BrokerUrl) -> Option<Verdict> {
    let state = error.code()?;
    Some(match state {
        _ if *state == SqlState::T_R_DEADLOCK_DETECTED
            || *state == SqlState::T_R_SERIALIZATION_FAILURE =>
        {
            Verdict::Again
        }
        _ if may_pass(state) => Verdict::Refused(of_losing(error, url)),
        _ => Verdict::Refused(Error::Rejected(url.scrub(&words(error)))),
    })
}

fn words(error: &Cause) -> String {
    if let Some(said) = error.as_db_error() {
        return format!("{} ({})", said.message(), said.code().code());
    }
    let text = error.to_string();
    if ["error parsing response", "unexpected message"].iter().any(|start| text.starts_with(start))
    {
        return format!("not a PostgreSQL server: {text}");
    }
    text
}
