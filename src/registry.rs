//! Who is connected, and who watches what.
//!
//! Three maps: user to connections, upload to watching users, user to watched uploads. Each name is
//! stored once; the sets hold four-byte indices. No locks and no queues here: `router.rs` puts both
//! around it.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::chunks::Chunks;
use crate::index_set::IndexSet;
use crate::name::Name;

#[derive(Debug)]
pub(crate) struct Named<T> {
    pub name: Name,
    pub value: T,
}

/// Names and what belongs to them, reachable by name and by index.
#[derive(Debug)]
pub(crate) struct Directory<T> {
    table: HashTable<u32>,
    entries: Chunks<Option<Named<T>>>,
    free: Vec<u32>,
    hasher: RandomState,
}

impl<T: Default> Directory<T> {
    pub fn new() -> Self {
        let (table, hasher) = (HashTable::new(), RandomState::default());
        Self { table, entries: Chunks::default(), free: Vec::new(), hasher }
    }

    pub fn find(&self, name: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(name);
        let entries = &self.entries;
        self.table.find(hash, |index| name_at(entries, *index) == name).copied()
    }

    pub fn find_or_insert(&mut self, name: &str) -> u32 {
        if let Some(index) = self.find(name.as_bytes()) {
            return index;
        }
        let named = Named { name: name.into(), value: T::default() };
        let index = if let Some(index) = self.free.pop() {
            self.entries[index as usize] = Some(named);
            index
        } else {
            self.entries.push(Some(named));
            u32::try_from(self.entries.len() - 1)
                .unwrap_or_else(|_| unreachable!("2^32 names need more memory than fits"))
        };
        let (entries, hasher) = (&self.entries, &self.hasher);
        let hash = hasher.hash_one(name.as_bytes());
        self.table.insert_unique(hash, index, |index| hasher.hash_one(name_at(entries, *index)));
        index
    }

    pub fn remove(&mut self, index: u32) {
        let Some(named) = self.entries[index as usize].take() else { return };
        let hash = self.hasher.hash_one(named.name.as_bytes());
        if let Ok(entry) = self.table.find_entry(hash, |other| *other == index) {
            entry.remove();
        }
        self.free.push(index);
    }

    pub fn get(&self, index: u32) -> Option<&Named<T>> {
        self.entries.get(index as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.entries.get_mut(index as usize)?.as_mut().map(|named| &mut named.value)
    }

    pub fn by_name(&self, name: &[u8]) -> Option<&T> {
        self.find(name).and_then(|index| self.get(index)).map(|named| &named.value)
    }

    pub fn indices(&self) -> impl Iterator<Item = u32> {
        let numbered = (0u32..).zip(self.entries.iter());
        numbered.filter(|(_, entry)| entry.is_some()).map(|(index, _)| index)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Named<T>> {
        self.entries.iter().flatten()
    }
}

/// The bytes, because that is what the broker sends; an index in the table always has its entry.
fn name_at<T>(entries: &Chunks<Option<Named<T>>>, index: u32) -> &[u8] {
    entries[index as usize].as_ref().map_or(&[], |named| named.name.as_bytes())
}

#[derive(Debug, Default)]
struct User {
    connections: IndexSet,
    uploads: IndexSet,
}

#[derive(Debug, Default)]
struct Upload {
    users: IndexSet,
}

/// The three maps. Connections are known by the index of their lane.
#[derive(Debug)]
pub struct Registry {
    users: Directory<User>,
    uploads: Directory<Upload>,
    /// Uploads whose last watcher has left since that was asked; None where nobody asks.
    forgotten: Option<Vec<u32>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { users: Directory::new(), uploads: Directory::new(), forgotten: None }
    }
}

impl Registry {
    /// Adds a connection of a user. Returns the user's index and whether the connection was new.
    pub fn connect(&mut self, user_id: &str, lane: u32) -> (u32, bool) {
        let user = self.users.find_or_insert(user_id);
        let new = self.users.get_mut(user).is_some_and(|user| user.connections.insert(lane));
        (user, new)
    }

    /// Removes a connection of a user, and with the last one the user's subscriptions. Returns the
    /// user's index if the connection was there.
    pub fn disconnect(&mut self, user_id: &str, lane: Option<u32>) -> Option<u32> {
        let user = self.users.find(user_id.as_bytes())?;
        self.disconnect_index(user, lane)
    }

    /// As [`Registry::disconnect`], by the index that [`Registry::connect`] gave.
    pub fn disconnect_index(&mut self, user: u32, lane: Option<u32>) -> Option<u32> {
        let entry = self.users.get_mut(user)?;
        let was = lane.is_some_and(|lane| entry.connections.remove(lane));
        if entry.connections.is_empty() {
            let uploads = std::mem::take(&mut entry.uploads);
            for upload in uploads.iter() {
                self.forget_watcher(upload, user);
            }
            self.users.remove(user);
        }
        was.then_some(user)
    }

    /// Makes a user watch an upload. Returns true for the upload's first watcher here.
    pub fn subscribe(&mut self, user_id: &str, upload_id: &str) -> bool {
        let user = self.users.find_or_insert(user_id);
        let upload = self.uploads.find_or_insert(upload_id);
        if let Some(user) = self.users.get_mut(user) {
            user.uploads.insert(upload);
        }
        let Some(entry) = self.uploads.get_mut(upload) else { return false };
        entry.users.insert(user) && entry.users.len() == 1
    }

    /// Makes a user stop watching an upload. Returns true when its last watcher here has left.
    pub fn unsubscribe(&mut self, user_id: &str, upload_id: &str) -> bool {
        let (Some(user), Some(upload)) =
            (self.users.find(user_id.as_bytes()), self.uploads.find(upload_id.as_bytes()))
        else {
            return false;
        };
        let Some(entry) = self.users.get_mut(user) else { return false };
        if !entry.uploads.remove(upload) {
            return false;
        }
        if entry.uploads.is_empty() && entry.connections.is_empty() {
            self.users.remove(user);
        }
        self.forget_watcher(upload, user)
    }

    fn forget_watcher(&mut self, upload: u32, user: u32) -> bool {
        let Some(entry) = self.uploads.get_mut(upload) else { return false };
        entry.users.remove(user);
        let last = entry.users.is_empty();
        if last {
            self.uploads.remove(upload);
            if let Some(forgotten) = &mut self.forgotten {
                forgotten.push(upload);
            }
        }
        last
    }

    /// Calls `each` with the lane of every connection of a user.
    pub fn lanes_of_user(&self, user_id: &[u8], mut each: impl FnMut(u32)) {
        if let Some(user) = self.users.by_name(user_id) {
            user.connections.iter().for_each(&mut each);
        }
    }

    /// Calls `each` with the lane of every connection of every user who watches an upload. A
    /// connection that two of them share comes twice, as each of them is addressed.
    pub fn lanes_of_upload(&self, upload_id: &[u8], mut each: impl FnMut(u32)) {
        let Some(upload) = self.uploads.by_name(upload_id) else { return };
        for user in upload.users.iter() {
            if let Some(user) = self.users.get(user) {
                user.value.connections.iter().for_each(&mut each);
            }
        }
    }

    /// As [`Registry::lanes_of_upload`], by the upload's index; a lane comes once for each user.
    pub(crate) fn lanes_of_upload_at(&self, upload: u32, mut each: impl FnMut(u32)) {
        let Some(upload) = self.uploads.get(upload) else { return };
        for user in upload.value.users.iter() {
            if let Some(user) = self.users.get(user) {
                user.value.connections.iter().for_each(&mut each);
            }
        }
    }

    /// The index of an upload that somebody watches.
    pub(crate) fn upload(&self, upload_id: &[u8]) -> Option<u32> {
        self.uploads.find(upload_id)
    }

    /// The id of the upload at an index.
    pub(crate) fn upload_name(&self, upload: u32) -> Option<&str> {
        self.uploads.get(upload).map(|upload| upload.name.as_str())
    }

    /// The indices of all watched uploads.
    pub(crate) fn watched(&self) -> Vec<u32> {
        self.uploads.indices().collect()
    }

    /// The index of a user.
    pub(crate) fn user(&self, user_id: &str) -> Option<u32> {
        self.users.find(user_id.as_bytes())
    }

    /// How many connections the user at an index has.
    pub(crate) fn connections_at(&self, user: u32) -> usize {
        self.users.get(user).map_or(0, |user| user.value.connections.len())
    }

    /// The indices of the uploads that the user at an index watches.
    pub(crate) fn uploads_at(&self, user: u32) -> Vec<u32> {
        self.users.get(user).map_or_else(Vec::new, |user| user.value.uploads.iter().collect())
    }

    /// Whether uploads whose last watcher leaves are to be remembered.
    pub(crate) fn note_forgotten(&mut self, on: bool) {
        if on != self.forgotten.is_some() {
            self.forgotten = on.then(Vec::new);
        }
    }

    /// The uploads whose last watcher has left since the last call.
    pub(crate) fn take_forgotten(&mut self) -> Vec<u32> {
        self.forgotten.as_mut().map_or_else(Vec::new, std::mem::take)
    }

    /// Whether anybody who watches the upload is connected.
    pub fn upload_is_watched(&self, upload_id: &[u8]) -> bool {
        self.uploads.by_name(upload_id).is_some_and(|upload| {
            upload.users.iter().any(|user| {
                self.users.get(user).is_some_and(|user| !user.value.connections.is_empty())
            })
        })
    }

    /// Whether the user is connected.
    pub fn user_is_connected(&self, user_id: &[u8]) -> bool {
        self.users.by_name(user_id).is_some_and(|user| !user.connections.is_empty())
    }

    /// The ids of the users who watch an upload; None when nobody does.
    pub fn watchers(&self, upload_id: &str) -> Option<Vec<&str>> {
        let upload = self.uploads.by_name(upload_id.as_bytes())?;
        Some(upload.users.iter().filter_map(|user| self.user_name(user)).collect())
    }

    /// The ids of the uploads a user watches; None when there are none.
    pub fn watched_by(&self, user_id: &str) -> Option<Vec<&str>> {
        let user = self.users.by_name(user_id.as_bytes())?;
        let ids: Vec<&str> = self.upload_names(user).collect();
        (!ids.is_empty()).then_some(ids)
    }

    /// The lanes of a user's connections; None when there are none.
    pub fn connections_of(&self, user_id: &str) -> Option<Vec<u32>> {
        let user = self.users.by_name(user_id.as_bytes())?;
        (!user.connections.is_empty()).then(|| user.connections.iter().collect())
    }

    /// The ids of the users who have connections, are watched for, or watch, by map.
    pub fn names(&self, map: Map) -> Vec<&str> {
        match map {
            Map::UserConnections => self.users_where(|user| !user.connections.is_empty()),
            Map::UserSubscriptions => self.users_where(|user| !user.uploads.is_empty()),
            Map::UploadSubscribers => {
                self.uploads.iter().map(|upload| upload.name.as_str()).collect()
            }
        }
    }

    fn users_where(&self, keep: impl Fn(&User) -> bool) -> Vec<&str> {
        self.users.iter().filter(|user| keep(&user.value)).map(|user| user.name.as_str()).collect()
    }

    fn user_name(&self, user: u32) -> Option<&str> {
        self.users.get(user).map(|user| user.name.as_str())
    }

    fn upload_names<'a>(&'a self, user: &'a User) -> impl Iterator<Item = &'a str> {
        user.uploads
            .iter()
            .filter_map(|upload| self.uploads.get(upload))
            .map(|upload| upload.name.as_str())
    }
}

/// One of the three maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// User to connections.
    UserConnections,
    /// Upload to the users who watch it.
    UploadSubscribers,
    /// User to watched uploads.
    UserSubscriptions,
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Connect(u8, u32),
        Disconnect(u8, u32),
        Subscribe(u8, u8),
        Unsubscribe(u8, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4u8, 0..40u32).prop_map(|(u, c)| Step::Connect(u, c)),
            (0..4u8, 0..40u32).prop_map(|(u, c)| Step::Disconnect(u, c)),
            (0..30u8, 0..30u8).prop_map(|(u, p)| Step::Subscribe(u, p)),
            (0..30u8, 0..30u8).prop_map(|(u, p)| Step::Unsubscribe(u, p)),
        ]
    }

    type Sets<K, V> = BTreeMap<K, BTreeSet<V>>;

    fn discard<K: Ord, V: Ord>(map: &mut Sets<K, V>, key: &K, value: &V) {
        if let Some(set) = map.get_mut(key) {
            set.remove(value);
            if set.is_empty() {
                map.remove(key);
            }
        }
    }

    proptest! {
        /// The registry against maps of sets, through sets of many members and back.
        #[test]
        fn behaves_as_maps_of_sets(steps in proptest::collection::vec(step(), 0..400)) {
            let mut registry = Registry::default();
            let mut connections: Sets<String, u32> = BTreeMap::new();
            let mut watchers: Sets<String, String> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Connect(user, lane) => {
                        let new = registry.connect(&user.to_string(), lane).1;
                        prop_assert_eq!(new, connections.entry(user.to_string()).or_default().insert(lane));
                    }
                    Step::Disconnect(user, lane) => {
                        let user = user.to_string();
                        registry.disconnect(&user, Some(lane));
                        discard(&mut connections, &user, &lane);
                        if !connections.contains_key(&user) {
                            for upload in watchers.keys().cloned().collect::<Vec<_>>() {
                                discard(&mut watchers, &upload, &user);
                            }
                        }
                    }
                    Step::Subscribe(user, upload) => {
                        let first = registry.subscribe(&user.to_string(), &upload.to_string());
                        let set = watchers.entry(upload.to_string()).or_default();
                        prop_assert_eq!(first, set.insert(user.to_string()) && set.len() == 1);
                    }
                    Step::Unsubscribe(user, upload) => {
                        let was = watchers.contains_key(&upload.to_string());
                        let last = registry.unsubscribe(&user.to_string(), &upload.to_string());
                        discard(&mut watchers, &upload.to_string(), &user.to_string());
                        prop_assert_eq!(last, was && !watchers.contains_key(&upload.to_string()));
                    }
                }
            }
            let names = |map| registry.names(map).into_iter().map(String::from).collect::<BTreeSet<_>>();
            prop_assert_eq!(names(Map::UserConnections), connections.keys().cloned().collect());
            prop_assert_eq!(names(Map::UploadSubscribers), watchers.keys().cloned().collect());
            for (user, lanes) in &connections {
                let found: BTreeSet<u32> = registry.connections_of(user).unwrap().into_iter().collect();
                prop_assert_eq!(&found, lanes);
            }
            let mut subscriptions: Sets<String, String> = BTreeMap::new();
            for (upload, users) in &watchers {
                let found: BTreeSet<String> =
                    registry.watchers(upload).unwrap().into_iter().map(String::from).collect();
                prop_assert_eq!(&found, users);
                for user in users {
                    subscriptions.entry(user.clone()).or_default().insert(upload.clone());
                }
            }
            prop_assert_eq!(names(Map::UserSubscriptions), subscriptions.keys().cloned().collect());
            for (user, uploads) in &subscriptions {
                let found: BTreeSet<String> =
                    registry.watched_by(user).unwrap().into_iter().map(String::from).collect();
                prop_assert_eq!(&found, uploads);
            }
        }
    }
}
