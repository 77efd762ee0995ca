//! What a listener has heard, gathered until it is handed over: messages that came through
//! subscriptions of one kind, in order.

use super::{BATCH, Ear, Heard};
use crate::router::Inbound;

/// Messages of one kind, gathered.
pub struct Gathered<'a> {
    messages: Vec<Inbound<'a>>,
    named: bool,
}

impl<'a> Gathered<'a> {
    /// None yet; room for so many.
    pub fn with_capacity(messages: usize) -> Self {
        Self { messages: Vec::with_capacity(messages), named: false }
    }

    /// Adds one; those of another kind, or too many, are handed over first.
    pub fn add(&mut self, inbound: Inbound<'a>, named: bool, ear: Ear<'_>) {
        if self.named != named || self.messages.len() == BATCH {
            self.hand_over(ear);
            self.named = named;
        }
        self.messages.push(inbound);
    }

    /// Hands over what was gathered.
    pub fn hand_over(&mut self, ear: Ear<'_>) {
        if !self.messages.is_empty() {
            let kind = if self.named { Heard::Named } else { Heard::Matching };
            ear(kind(&self.messages));
            self.messages.clear();
        }
    }
}
