//! fanwire: live progress and topic messages across the instances of a Python web app.
//!
//! The map of the crate; an arrow is a call, and all of them point down:
//!
//! ```text
//! python/       PyO3 classes and the bridge to the event loop: the only place that knows Python
//!   |
//! client        a publisher and a listener of one broker, across event loops and forks
//!   |-- supervise   the listener's task: connect, read, route, reconnect; probe: is it deaf
//!   |-- reading     the listener's second connection: what recovery wants read of the past
//!   |-- publish     the publisher's task: outbox -> broker -> replies
//!   |-- latest      the newest offsets that a publisher knows of
//!   |-- outbox      what waits to be published; backlog: what waits for the broker to come back
//!   |-- recording   what is recorded of an upload
//!   |-- broker/     one contract; gathered: what was heard; moderated: a socket that is read now and
//!   |               then; memory/{mod,history}, redis/{connect,link,history,listening,resp};
//!   |               postgres/ has a map of its own
//! router        who is a message for, and into their lanes; sessions: the same for topics;
//!   |           pumping: what event loops take out of them; recovering: positions and gaps
//!   |-- recovery/   which lane has what of an upload; history: positions, and what is kept
//!   |-- registry    who is connected, who watches what
//!   |-- topics      which session listens to which topic
//!   |-- wishes      which channels are wanted by name, and which are confirmed
//!   |-- coalesce, pointer   which message may take the place of an older one
//!   |-- lanes, lane, queue   a bounded queue for each subscriber; which are ready, for each loop
//! flush         a thread waits for what it has published; ending: a process that ends
//! events/       log lines and events of a daemon, queued and sent by a thread of their own
//! protocol      what a browser may say
//! post, mailbox what crosses from an I/O thread to an event loop, and the flag that wakes it
//! runtime       the I/O thread of this process, and forks
//! channel, config, error, health, journal, message, stats; name, index_set, chunks: small in memory
//! ```
//!
//! The core knows subscribers by number ([`lane::LaneId`]) and event loops by [`post::LoopMailbox`];
//! it is built and tested without Python (`--no-default-features`).

pub mod backlog;
pub mod broker;
pub mod channel;
mod chunks;
pub mod client;
pub mod coalesce;
pub mod config;
pub mod ending;
pub mod error;
pub mod events;
pub mod flush;
pub mod health;
pub mod history;
pub(crate) mod index_set;
pub mod journal;
pub mod lane;
pub mod lanes;
pub mod latest;
pub mod mailbox;
pub mod message;
mod name;
pub mod outbox;
pub mod pointer;
pub mod post;
pub mod probe;
pub mod protocol;
pub mod publish;
mod pumping;
mod queue;
pub mod reading;
pub mod recording;
pub mod recovering;
pub mod recovery;
pub mod registry;
pub mod router;
pub mod runtime;
pub mod sessions;
pub mod stats;
pub mod supervise;
pub mod topics;
pub mod wishes;

#[cfg(feature = "python")]
mod python;
