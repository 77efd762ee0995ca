//! A set of four-byte indices that is small when it has few members, as nearly all of them do.

use hashbrown::HashTable;
use smallvec::SmallVec;

/// So many members need no allocation of their own.
const FEW: usize = 3;

/// So many need one, and a linear search finds them sooner than a table does.
const SOME: usize = 14;

/// What has room for so many times its members gives some of it back.
const ROOMY: usize = 8;

/// A set of indices. Most users have one connection and most uploads one watcher.
#[derive(Debug)]
pub enum IndexSet {
    Few { len: u8, members: [u32; FEW] },
    Many(Box<Many>),
}

/// Members in the order in which they came, as far as none has left: one message to ten thousand lanes
/// goes through memory from front to back. And where each of them stands, once there are more than
/// [`SOME`].
#[derive(Debug, Default)]
pub struct Many {
    members: SmallVec<[u32; SOME]>,
    places: HashTable<u32>,
}

impl Default for IndexSet {
    fn default() -> Self {
        Self::Few { len: 0, members: [0; FEW] }
    }
}

impl IndexSet {
    /// Adds a member. Returns whether it was new.
    pub fn insert(&mut self, member: u32) -> bool {
        match self {
            Self::Few { len, members } => {
                let there = usize::from(*len);
                if members[..there].contains(&member) {
                    return false;
                }
                if there < FEW {
                    members[there] = member;
                    *len += 1;
                    return true;
                }
                let mut many = Box::<Many>::default();
                many.members.extend_from_slice(members);
                many.members.push(member);
                *self = Self::Many(many);
                true
            }
            Self::Many(many) => many.insert(member),
        }
    }

    /// Removes a member. Returns whether it was there.
    pub fn remove(&mut self, member: u32) -> bool {
        match self {
            Self::Few { len, members } => {
                let there = &mut members[..usize::from(*len)];
                let Some(at) = there.iter().position(|other| *other == member) else {
                    return false;
                };
                there.swap(at, usize::from(*len) - 1);
                *len -= 1;
                true
            }
            Self::Many(many) => {
                let was = many.remove(member);
                // Well below the limit, so that one member coming and going does not rebuild it.
                if let [] | [_] = many.members[..] {
                    *self = many.members.iter().copied().collect();
                }
                was
            }
        }
    }

    /// The members, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.members().iter().copied()
    }

    pub fn len(&self) -> usize {
        self.members().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn members(&self) -> &[u32] {
        match self {
            Self::Few { len, members } => &members[..usize::from(*len)],
            Self::Many(many) => &many.members,
        }
    }
}

impl FromIterator<u32> for IndexSet {
    fn from_iter<I: IntoIterator<Item = u32>>(members: I) -> Self {
        let mut set = Self::default();
        for member in members {
            set.insert(member);
        }
        set
    }
}

impl Many {
    fn insert(&mut self, member: u32) -> bool {
        if self.place_of(member).is_some() {
            return false;
        }
        self.members.push(member);
        if self.places.is_empty() {
            if self.members.len() > SOME {
                self.make_table();
            }
            return true;
        }
        let Self { members, places } = self;
        places.insert_unique(hash(member), last(members), |place| hash(members[*place as usize]));
        true
    }

    fn remove(&mut self, member: u32) -> bool {
        let Some(place) = self.place_of(member) else { return false };
        let Self { members, places } = self;
        if !places.is_empty() {
            let at = |place: u32| move |other: &u32| *other == place;
            if let Ok(entry) = places.find_entry(hash(member), at(place)) {
                entry.remove();
            }
            // The last one will stand where this one did; it may be this one.
            let moved = last(members);
            if let Some(there) = places.find_mut(hash(members[moved as usize]), at(moved)) {
                *there = place;
            }
        }
        members.swap_remove(place as usize);
        if members.len() <= SOME / 2 {
            *places = HashTable::new();
        }
        if members.spilled() && members.capacity() / ROOMY > members.len() {
            let room = 2 * members.len();
            members.grow(room.max(SOME));
            places.shrink_to(room, |place| hash(members[*place as usize]));
        }
        true
    }

    fn place_of(&self, member: u32) -> Option<u32> {
        let Self { members, places } = self;
        if places.is_empty() {
            let place = members.iter().position(|other| *other == member)?;
            return u32::try_from(place).ok();
        }
        places.find(hash(member), |place| members[*place as usize] == member).copied()
    }

    fn make_table(&mut self) {
        let Self { members, places } = self;
        for (place, member) in (0u32..).zip(members.iter()) {
            places.insert_unique(hash(*member), place, |place| hash(members[*place as usize]));
        }
    }
}

/// The place of the last member, of which there is one.
fn last(members: &[u32]) -> u32 {
    u32::try_from(members.len() - 1)
        .unwrap_or_else(|_| unreachable!("there are no more than 2^32 indices"))
}

/// Nobody chooses an index, so it needs no key. The table takes the bucket from the low bits, and from
/// the high ones what it compares first.
fn hash(member: u32) -> u64 {
    u64::from(member).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_set_that_was_large_gives_back_its_room() {
        assert_eq!(size_of::<IndexSet>(), 16);
        let mut set: IndexSet = (0..10_000).collect();
        for member in 0..10_000 {
            let room = match &set {
                IndexSet::Few { .. } => FEW,
                IndexSet::Many(many) => many.members.capacity().max(many.places.capacity()),
            };
            assert!(room <= 2 * ROOMY * set.len().max(4), "room for {room}, {} there", set.len());
            assert!(set.remove(member));
            assert!(!set.remove(member));
        }
        assert!(set.is_empty());
    }

    proptest! {
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0..40u32), 0..400)) {
            let (mut set, mut model) = (IndexSet::default(), BTreeSet::new());
            for (adds, member) in steps {
                if adds {
                    prop_assert_eq!(set.insert(member), model.insert(member));
                } else {
                    prop_assert_eq!(set.remove(member), model.remove(&member));
                }
                prop_assert_eq!(set.len(), model.len());
                prop_assert_eq!(set.iter().collect::<BTreeSet<u32>>(), model.clone());
            }
        }
    }
}
