//! Which messages are progress, and of what: a newer one of the same key overwrites an older one that
//! still waits in a lane, unless something else of the same upload was queued after it.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::num::NonZeroU64;

use smallvec::SmallVec;

use crate::channel::Address;
use crate::pointer::{Found, PointerSet};

/// What a message is, for coalescing. Keyed 64-bit hashes (`SipHash`): an outsider cannot make two
/// collide, and by chance two of a million uploads do once in thirty million runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Class {
    /// The upload (or batch) it is about, if that is known.
    pub stream: Option<NonZeroU64>,
    /// For a progress message: what a newer one must agree in to take its place.
    pub key: Option<NonZeroU64>,
}

/// A rule that makes messages progress.
#[derive(Clone, Debug)]
pub struct Rule {
    /// JSON pointer to the member that tells.
    pub pointer: String,
    /// Its values for progress.
    pub values: Vec<String>,
    /// JSON pointers to the id of what the progress is of; the first that is there counts.
    pub ids: Vec<String>,
}

impl Rule {
    /// The actions of upload apps.
    pub fn of_uploads() -> Self {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self {
            pointer: "/action".to_owned(),
            values: owned(&["upload_progress", "batch_progress", "file_progress"]),
            ids: owned(&["/payload/upload_id", "/payload/batch_id", "/upload_id", "/batch_id"]),
        }
    }
}

#[derive(Debug)]
struct Placed {
    pointer: usize,
    values: Vec<String>,
    ids: Vec<usize>,
}

/// Rules, made ready to be applied. Without any, every message is kept.
#[derive(Debug, Default)]
pub struct Coalescer {
    pointers: PointerSet,
    rules: Vec<Placed>,
    hasher: RandomState,
}

impl Coalescer {
    /// Checks the rules; the error names the pointer that is none.
    pub fn new(rules: &[Rule]) -> Result<Self, String> {
        let mut pointers = PointerSet::default();
        let mut placed = Vec::with_capacity(rules.len());
        for rule in rules {
            let pointer = pointers.add(&rule.pointer)?;
            let ids = rule.ids.iter().map(|id| pointers.add(id)).collect::<Result<_, _>>()?;
            placed.push(Placed { pointer, values: rule.values.clone(), ids });
        }
        Ok(Self { pointers, rules: placed, hasher: RandomState::new() })
    }

    /// What a message is; the second value is whether it is JSON.
    pub fn classify(&self, address: Address<'_>, text: &str) -> (Class, bool) {
        let mut found: SmallVec<[Found<'_>; 8]> = SmallVec::new();
        found.resize(self.pointers.len(), None);
        let is_json = self.pointers.read(text, &mut found);
        if self.rules.is_empty() {
            return (Class::default(), is_json);
        }
        if !is_json {
            found.fill(None);
        }
        let id_by = |rule: &Placed| rule.ids.iter().find_map(|place| found[*place].as_deref());
        let progress = self.rules.iter().find(|rule| {
            found[rule.pointer]
                .as_deref()
                .is_some_and(|value| rule.values.iter().any(|v| v == value))
        });
        let class = match address {
            // Whatever comes on the channel of an upload is about that upload.
            Address::Upload(upload) => {
                let stream = self.hash(0, &[upload]);
                Class { stream, key: progress.and(stream) }
            }
            Address::User(user) => {
                let id = progress.and_then(id_by).or_else(|| self.rules.iter().find_map(id_by));
                let stream = id.and_then(|id| self.hash(0, &[id.as_bytes()]));
                let action = progress.and_then(|rule| found[rule.pointer].as_deref());
                let key = match (action, id) {
                    (Some(action), Some(id)) => {
                        self.hash(1, &[user, action.as_bytes(), id.as_bytes()])
                    }
                    _ => None,
                };
                Class { stream, key }
            }
        };
        (class, is_json)
    }

    fn hash(&self, kind: u8, parts: &[&[u8]]) -> Option<NonZeroU64> {
        let mut hasher = self.hasher.build_hasher();
        kind.hash(&mut hasher);
        parts.hash(&mut hasher);
        NonZeroU64::new(hasher.finish().max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(coalescer: &Coalescer, address: Address<'_>, text: &str) -> Class {
        coalescer.classify(address, text).0
    }

    #[test]
    fn the_messages_of_upload_apps_are_told_apart() {
        let uploads = Coalescer::new(&[Rule::of_uploads()]).unwrap();
        let on_upload = |text| of(&uploads, Address::Upload(b"u1"), text);
        let on_user = |text| of(&uploads, Address::User(b"ada"), text);
        let progress = on_upload(r#"{"action":"upload_progress","payload":{"upload_id":"u1"}}"#);
        let completed = on_upload(r#"{"action":"upload_completed","upload_id":"u1"}"#);
        assert!(progress.key.is_some() && completed.key.is_none());
        assert_eq!(progress.stream, completed.stream);
        assert_eq!(on_upload("no JSON").stream, progress.stream);
        let file =
            on_user(r#"{"action":"file_progress","payload":{"batch_id":"b","upload_id":"u1"}}"#);
        assert_eq!(
            file.stream, progress.stream,
            "what is about an upload is, on whichever channel"
        );
        assert!(file.key.is_some() && file.key != progress.key);
        let other =
            on_user(r#"{"action":"file_progress","payload":{"batch_id":"b","upload_id":"u2"}}"#);
        assert_ne!(file.key, other.key);
        let batch = on_user(r#"{"action":"batch_progress","payload":{"batch_id":"u1"}}"#);
        assert!(batch.key.is_some() && batch.key != file.key, "another action is another key");
        assert_eq!(on_user(r#"{"action":"ping"}"#), Class::default());
        assert_eq!(
            on_user(r#"{"action":"file_progress","payload":{}}"#).key,
            None,
            "of what, nobody knows"
        );
        assert_eq!(
            on_user(r#"{"action":"upload_failed","upload_id":"u1"}"#).stream,
            progress.stream
        );
        let of_eve = of(
            &uploads,
            Address::User(b"eve"),
            r#"{"action":"file_progress","payload":{"upload_id":"u1"}}"#,
        );
        assert_ne!(of_eve.key, file.key);
    }

    #[test]
    fn a_rule_of_ones_own_and_none_at_all() {
        let rule = Rule {
            pointer: "/t".into(),
            values: vec!["tick".into(), "7".into()],
            ids: vec!["/job".into()],
        };
        let own = Coalescer::new(&[rule]).unwrap();
        assert!(of(&own, Address::User(b"a"), r#"{"t":"tick","job":1}"#).key.is_some());
        assert!(of(&own, Address::User(b"a"), r#"{"t":7,"job":"1"}"#).key.is_some());
        assert!(of(&own, Address::User(b"a"), r#"{"t":"tock","job":1}"#).key.is_none());
        let off = Coalescer::default();
        assert_eq!(off.classify(Address::Upload(b"u"), "{}"), (Class::default(), true));
        assert_eq!(off.classify(Address::Upload(b"u"), "{"), (Class::default(), false));
        let wrong = Rule { pointer: "t".into(), values: vec![], ids: vec![] };
        assert!(Coalescer::new(&[wrong]).unwrap_err().contains("\"t\""));
    }
}
