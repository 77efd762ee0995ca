//! What becomes of a message that is to be recorded, before it is sent.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

use crate::channel::{self, Address};
use crate::coalesce::{Coalescer, Rule};
use crate::history::{self, MEMBER, Settings};
use crate::message::{Outgoing, Record};

/// Why a message cannot be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is no JSON object.
    NoObject,
    /// It has the reserved member already.
    Reserved,
}

/// Makes recorded messages.
#[derive(Debug)]
pub struct Recorder {
    /// How much is kept.
    pub settings: Settings,
    finals: Coalescer,
}

impl Recorder {
    /// With the rule that tells final messages; the error names the pointer that is none.
    pub fn new(settings: Settings, finals: Rule) -> Result<Self, String> {
        Ok(Self { settings, finals: Coalescer::new(&[finals])? })
    }

    /// A message of an upload that is to be recorded. `json` must be JSON.
    pub fn record(
        &self,
        progress: &Coalescer,
        upload: &str,
        json: &[u8],
    ) -> Result<Outgoing, Unfit> {
        let head = history::head(json).ok_or(Unfit::NoObject)?;
        let text = std::str::from_utf8(json).map_err(|_| Unfit::NoObject)?;
        if is_reserved(text) {
            return Err(Unfit::Reserved);
        }
        let address = Address::Upload(upload.as_bytes());
        let (class, _) = progress.classify(address, text);
        let is_final = || self.finals.classify(address, text).0.key.is_some();
        let milestone = class.key.is_some() || is_final();
        let record = Some(Box::new(Record::new(upload, milestone)));
        let (channel, payload) = (channel::of_upload(upload), head.into());
        Ok(Outgoing { channel, payload, class, except: None, record })
    }
}

/// Whether the outermost object has the reserved member. Its name stands in nearly no message.
fn is_reserved(object: &str) -> bool {
    if !object.contains(MEMBER) && !object.contains("\\u") {
        return false;
    }
    serde_json::from_str::<HashMap<Cow<'_, str>, &RawValue>>(object)
        .map_or(true, |members| members.contains_key(MEMBER)) // what cannot be read is not let pass
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        let finals = Rule {
            pointer: "/action".into(),
            values: vec!["upload_completed".into()],
            ids: Vec::new(),
        };
        let recorder = Recorder::new(Settings::default(), finals).unwrap();
        let progress = Coalescer::new(&[Rule::of_uploads()]).unwrap();
        let of = |text: &str| recorder.record(&progress, "u", text.as_bytes());
        let milestone = |text| {
            let outgoing = of(text).unwrap();
            (outgoing.record.unwrap().milestone, outgoing.class.key.is_some())
        };
        assert_eq!(milestone(r#"{"action":"upload_progress"}"#), (true, true));
        assert_eq!(milestone(r#"{"action":"upload_completed"}"#), (true, false));
        assert_eq!(milestone(r#"{"action":"note"}"#), (false, false));
        assert_eq!(&*of(r#" {"a":1} "#).unwrap().payload, br#"{"a":1,"#);
        for other in ["1", "[{}]", "null", "\"{}\""] {
            assert_eq!(of(other).unwrap_err(), Unfit::NoObject);
        }
        for reserved in [r#"{"_fanwire":1}"#, r#"{"a":1,"\u005ffanwire":{}}"#] {
            assert_eq!(of(reserved).unwrap_err(), Unfit::Reserved);
        }
        assert!(of(r#"{"a":{"_fanwire":1},"b":"\u0041"}"#).is_ok());
        assert!(of(r#"{"a":"_fanwire"}"#).is_ok());
    }
}
