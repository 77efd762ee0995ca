//! What a publisher knows of the newest offsets of its uploads.
//!
//! A server that comes back with an older copy of its data, or a replica that lagged and took over, would
//! give offsets again that it has given before, and nobody could tell a message from another one there.
//! So the first message of an upload over a new connection says which offset there has to be.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::history::Position;

/// As many uploads are remembered, and up to twice as many.
const MOST: usize = 4096;

type Positions = HashMap<Box<str>, (Position, u64), RandomState>;

/// The newest positions of uploads, and over which connection they came.
#[derive(Debug, Default)]
pub struct Latest {
    connection: u64,
    young: Positions,
    old: Positions,
}

impl Latest {
    /// A new connection was made.
    pub fn connected(&mut self) {
        self.connection += 1;
    }

    /// An upload's message was given a position.
    pub fn note(&mut self, upload: &str, position: Position) {
        let known = (position, self.connection);
        if let Some(newest) = self.young.get_mut(upload) {
            *newest = known;
            return;
        }
        if self.young.len() == MOST {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(upload.into(), known);
    }

    /// What has to be there, where that has not been seen over this connection.
    pub fn expected(&self, upload: &str) -> Option<Position> {
        let (position, connection) = self.young.get(upload).or_else(|| self.old.get(upload))?;
        (*connection != self.connection).then_some(*position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Epoch;

    #[test]
    fn what_is_expected_is_what_came_over_another_connection() {
        let epoch = Epoch::parse(b"000000000000001f").unwrap();
        let at = |offset| Position { epoch, offset };
        let mut latest = Latest::default();
        latest.connected();
        latest.note("u", at(1));
        latest.note("u", at(2));
        assert_eq!(latest.expected("u"), None);
        latest.connected();
        assert_eq!((latest.expected("u"), latest.expected("v")), (Some(at(2)), None));
        latest.note("u", at(3));
        assert_eq!(latest.expected("u"), None);
        latest.connected();
        for number in 0..MOST {
            latest.note(&number.to_string(), at(1));
        }
        assert_eq!(latest.expected("u"), Some(at(3)), "it is remembered for as long again");
        for number in 0..=MOST {
            latest.note(&format!("more {number}"), at(1));
        }
        assert_eq!(latest.expected("u"), None, "and not for ever");
        assert!(latest.young.len() + latest.old.len() <= 2 * MOST);
    }
}
