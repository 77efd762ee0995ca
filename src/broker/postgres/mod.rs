//! PostgreSQL.
//!
//! ```text
//! link          publishes: a batch is one transaction and one round trip
//!   |-- runs        what of a batch one statement publishes
//!   |-- batch       notification channels and texts, all different
//!   |-- history     what is recorded and read, through the functions of schema.sql
//!   |-- schema      whether these are there, and how they get there
//! listening     hears: one connection that says LISTEN
//!   |-- pooling     whether that connection has a session of its own
//! frame         what a notification carries; name: which notification channel it goes over
//! connect       opens a connection: dsn, place, socket, passfile, tls
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
mod history;
mod link;
mod listening;
mod name;
mod passfile;
mod place;
mod pooling;
mod runs;
mod schema;
mod socket;
mod tls;

pub use link::Link;
pub use listening::Listening;
pub use schema::{Migrated, SQL, migrate};
