//! The crate's errors in the words of ours.

use std::error::Error as Chained;
use std::io::ErrorKind;

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
        None => is_of_tls(error),
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
    if is_strange(error) || error.to_string().starts_with("invalid configuration") {
        return true;
    }
    // A certificate that does not verify, or a server that does not do TLS at all.
    is_of_tls(error) && io_kind(error).is_none_or(|kind| kind == ErrorKind::InvalidData)
}

/// Whether the server says what no PostgreSQL says.
fn is_strange(error: &Cause) -> bool {
    let text = error.to_string();
    let is_of_protocol = io_kind(error) == Some(ErrorKind::InvalidInput) && !is_of_tls(error);
    ["error parsing response", "unexpected message"].iter().any(|start| text.starts_with(start))
        || (is_of_protocol && text.starts_with("error communicating"))
}

fn io_kind(error: &Cause) -> Option<ErrorKind> {
    causes(error).find_map(|cause| cause.downcast_ref().map(std::io::Error::kind))
}

fn is_of_tls(error: &Cause) -> bool {
    error.to_string().contains("TLS")
}

fn causes(error: &Cause) -> impl Iterator<Item = &(dyn Chained + 'static)> {
    std::iter::successors(error.source(), |cause: &&(dyn Chained + 'static)| (*cause).source())
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
    // Each says what it is, and not why.
    let mut text = error.to_string();
    for cause in causes(error).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    if is_strange(error) { format!("not a PostgreSQL server: {text}") } else { text }
}
