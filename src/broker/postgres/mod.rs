//! PostgreSQL.
//!
//! ```text
//! link          publishes: a batch is one statement, one transaction, one round trip
//!   |-- batch       what a batch becomes: notification channels and texts, all different
//! listening     hears: one connection that says LISTEN
//! frame         what a notification carries; name: which notification channel it goes over
//! connect       opens a connection: dsn, passfile, tls
//! errors        the crate's errors in the words of ours
//! ```
//!
//! The protocol is the `tokio-postgres` crate's. No statement is prepared under a name and no setting of a
//! session is changed, so that publishing works through a pool in transaction mode too.

mod batch;
mod connect;
pub mod dsn;
mod errors;
pub mod frame;
mod link;
mod listening;
mod name;
mod passfile;
mod tls;

pub use link::Link;
pub use listening::Listening;
