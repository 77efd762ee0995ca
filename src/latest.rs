//! What a publisher knows of the newest offsets of its uploads.
//!
//! A server that comes back with an older copy of its data, or a replica that lagged and took over, would
//! give offsets again that it has given before, and nobody could tell a message from another one there.
//! So the first message of an upload over a new connection says which offset there has to be.
//!
//! And a publisher that is an upload's only one can tell the offset of its next message, which spares the
//! server most of the work of giving it one.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::history::Position;

/// As many uploads are remembered, and up to twice as many.
const MOST: usize = 4096;

/// The position that the next message of an upload will have, unless somebody else publishes there too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreseen {
    /// Where it will stand.
    pub position: Position,
    /// The number of the message before it.
    pub after: u64,
}

/// What is known of an upload when a message of it is about to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing that helps.
    Nothing,
    /// What its history has to reach: that has not been seen over this connection.
    Reached(Position),
    /// What comes next.
    Next(Foreseen),
}

/// The newest message of an upload that was given a position.
#[derive(Debug)]
struct Newest {
    position: Position,
    number: u64,
    /// Over which connection it came.
    connection: u64,
    /// Whether nobody else has published since the one before it.
    is_next: bool,
    /// The round of `ahead`.
    round: u64,
    /// Offset and number of the message behind which the next one of the round stands; None if that
    /// cannot be told.
    ahead: Option<(u64, u64)>,
}

/// The newest positions of uploads.
#[derive(Debug, Default)]
pub struct Latest {
    connection: u64,
    round: u64,
    young: HashMap<Box<str>, Newest, RandomState>,
    old: HashMap<Box<str>, Newest, RandomState>,
}

impl Latest {
    /// A new connection was made.
    pub fn connected(&mut self) {
        self.connection += 1;
    }

    /// Messages are about to be sent. What was foreseen for others does not count any more.
    pub fn begin(&mut self) {
        self.round += 1;
    }

    /// An upload's message was given a position.
    pub fn note(&mut self, upload: &str, position: Position, number: u64) {
        let (connection, round) = (self.connection, self.round);
        if let Some(newest) = self.young.get_mut(upload) {
            newest.is_next = newest.position.next() == position;
            (newest.position, newest.number, newest.connection) = (position, number, connection);
            return;
        }
        if self.young.len() == MOST {
            self.old = std::mem::take(&mut self.young);
        }
        let newest = Newest { position, number, connection, is_next: true, round, ahead: None };
        self.young.insert(upload.into(), newest);
    }

    /// What is known of an upload as a message of it is about to be sent. `is_sure` says that the
    /// message takes the next offset, unless it is refused.
    pub fn known(&mut self, upload: &str, number: u64, is_sure: bool) -> Known {
        let Self { connection, round, young, old } = self;
        let Some(newest) = young.get_mut(upload).or_else(|| old.get_mut(upload)) else {
            return Known::Nothing;
        };
        let Position { epoch, offset } = newest.position;
        if newest.connection != *connection {
            return Known::Reached(newest.position);
        }
        if newest.round != *round {
            (newest.round, newest.ahead) = (*round, Some((offset, newest.number)));
        }
        let behind = newest.ahead.take();
        let Some((offset, after)) = behind.filter(|_| newest.is_next && is_sure) else {
            return Known::Nothing;
        };
        let position = Position { epoch, offset }.next();
        newest.ahead = Some((position.offset, number));
        Known::Next(Foreseen { position, after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Epoch;

    fn at(offset: u64) -> Position {
        Position { epoch: Epoch::parse(b"000000000000001f").unwrap(), offset }
    }

    fn next(offset: u64, after: u64) -> Known {
        Known::Next(Foreseen { position: at(offset), after })
    }

    #[test]
    fn what_has_to_be_there_is_what_came_over_another_connection() {
        let mut latest = Latest::default();
        latest.connected();
        latest.note("u", at(1), 1);
        latest.note("u", at(2), 2);
        latest.connected();
        latest.begin();
        assert_eq!(latest.known("u", 3, true), Known::Reached(at(2)));
        assert_eq!(latest.known("u", 4, true), Known::Reached(at(2)));
        assert_eq!(latest.known("v", 5, true), Known::Nothing);
        latest.note("u", at(3), 3);
        latest.connected();
        for number in 0..MOST {
            latest.note(&number.to_string(), at(1), 4);
        }
        let known = latest.known("u", 5, true);
        assert_eq!(known, Known::Reached(at(3)), "it is remembered for as long again");
        for number in 0..=MOST {
            latest.note(&format!("more {number}"), at(1), 5);
        }
        assert_eq!(latest.known("u", 6, true), Known::Nothing, "and not for ever");
        assert!(latest.young.len() + latest.old.len() <= 2 * MOST);
    }

    #[test]
    fn the_next_offsets_are_foreseen_while_nobody_else_publishes() {
        let mut latest = Latest::default();
        latest.connected();
        latest.begin();
        latest.note("u", at(7), 10);
        latest.begin();
        assert_eq!(latest.known("u", 20, true), next(8, 10));
        assert_eq!(latest.known("u", 30, true), next(9, 20));
        latest.begin();
        assert_eq!(latest.known("u", 40, true), next(8, 10), "the others were not taken");
        latest.note("u", at(8), 40);
        latest.begin();
        assert_eq!(latest.known("u", 50, true), next(9, 40));
        latest.note("u", at(10), 50);
        latest.begin();
        assert_eq!(latest.known("u", 60, true), Known::Nothing, "somebody was faster");
        latest.note("u", at(11), 60);
        latest.begin();
        assert_eq!(latest.known("u", 70, true), next(12, 60), "and has stopped");
    }

    #[test]
    fn nothing_is_foreseen_behind_what_perhaps_takes_no_offset() {
        let mut latest = Latest::default();
        latest.connected();
        latest.note("u", at(7), 10);
        latest.begin();
        assert_eq!(latest.known("u", 20, true), next(8, 10));
        assert_eq!(latest.known("u", 30, false), Known::Nothing);
        assert_eq!(latest.known("u", 40, true), Known::Nothing);
        latest.note("u", at(8), 20);
        latest.begin();
        assert_eq!(latest.known("u", 50, true), next(9, 20));
    }
}
