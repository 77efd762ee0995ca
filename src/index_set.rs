//! A set of four-byte indices that is small when it has few members, as nearly all of them do.

use foldhash::fast::RandomState;
use smallvec::SmallVec;

/// Up to this many members a linear search beats a hash set and needs no allocation of its own.
const FEW: usize = 16;

/// A set of indices. Most users have one connection and most uploads one watcher.
#[derive(Debug)]
pub enum IndexSet {
    Few(SmallVec<[u32; 4]>),
    Many(Box<indexmap::IndexSet<u32, RandomState>>),
}

impl Default for IndexSet {
    fn default() -> Self {
        Self::Few(SmallVec::new())
    }
}

impl IndexSet {
    /// Adds a member. Returns whether it was new.
    pub fn insert(&mut self, member: u32) -> bool {
        match self {
            Self::Few(few) if few.contains(&member) => false,
            Self::Few(few) if few.len() < FEW => {
                few.push(member);
                true
            }
            Self::Few(few) => {
                let mut many: indexmap::IndexSet<u32, RandomState> = few.drain(..).collect();
                many.insert(member);
                *self = Self::Many(Box::new(many));
                true
            }
            Self::Many(many) => many.insert(member),
        }
    }

    /// Removes a member. Returns whether it was there.
    pub fn remove(&mut self, member: u32) -> bool {
        match self {
            Self::Few(few) => {
                let at = few.iter().position(|m| *m == member);
                at.map(|at| few.swap_remove(at)).is_some()
            }
            Self::Many(many) => {
                let was = many.swap_remove(&member);
                // Well below the limit, so that one member coming and going does not rebuild it.
                if many.len() <= FEW / 4 {
                    *self = Self::Few(many.iter().copied().collect());
                }
                was
            }
        }
    }

    /// The members, in no particular order.
    pub fn iter(&self) -> Iter<'_> {
        match self {
            Self::Few(few) => Iter::Few(few.iter()),
            Self::Many(many) => Iter::Many(many.iter()),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

pub enum Iter<'a> {
    Few(std::slice::Iter<'a, u32>),
    Many(indexmap::set::Iter<'a, u32>),
}

impl Iterator for Iter<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        match self {
            Self::Few(few) => few.next().copied(),
            Self::Many(many) => many.next().copied(),
        }
    }
}
