//! Redis and Valkey.
//!
//! `connect.rs` opens the stream for both sides. The publishing side is the `redis` crate's
//! multiplexed connection; the receiving side reads RESP itself (`resp.rs`), because the listener is
//! what this project exists for and the crate's pub/sub stream costs seven times as much a message.

mod connect;
mod history;
mod link;
mod listening;
pub mod resp;

pub use link::Link;
pub use listening::Listening;
