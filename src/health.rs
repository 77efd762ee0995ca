//! How a listener is: for people, for alarms, and for whoever decides where traffic goes.

use std::any::Any;
use std::sync::{Arc, Mutex as StdMutex, OnceLock, PoisonError, Weak};
use std::time::Instant;

/// Where a listener stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It does not listen.
    #[default]
    Stopped,
    /// It tries to subscribe for the first time since it was started.
    Connecting,
    /// It is subscribed to everything that is wanted.
    Live,
    /// It was subscribed and is not now: what is published meanwhile does not arrive.
    Degraded,
}

impl State {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Connecting => "connecting",
            Self::Live => "live",
            Self::Degraded => "degraded",
        }
    }
}

/// From which state to which, and the trouble that led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The state before.
    pub old: State,
    /// The state now.
    pub new: State,
    /// What is wrong, ready to be shown.
    pub error: Option<String>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    since: Instant,
    /// When the broker gave a sign of life, through the listener's connection.
    heard: Option<Instant>,
    error: Option<String>,
    history_error: Option<String>,
    /// Changes nobody was told of yet.
    changes: Vec<Change>,
}

/// What is known of a listener.
///
/// A std lock: it is taken a few times a second, and never together with another.
#[derive(Debug)]
pub struct Health {
    inner: StdMutex<Inner>,
    owner: OnceLock<Weak<dyn Any + Send + Sync>>,
}

impl Default for Health {
    fn default() -> Self {
        let (state, since) = (State::default(), Instant::now());
        let (error, history_error, changes) = (None, None, Vec::new());
        let inner = Inner { state, since, heard: None, error, history_error, changes };
        Self { inner: StdMutex::new(inner), owner: OnceLock::new() }
    }
}

/// What a listener is like at one moment.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where it stands.
    pub state: State,
    /// Since when.
    pub since: Instant,
    /// When the broker gave a sign of life last.
    pub heard: Option<Instant>,
    /// The trouble it is in, or was in last.
    pub error: Option<String>,
    /// Why the listener cannot read the history; None if it can, or did not have to.
    pub history_error: Option<String>,
}

impl Health {
    /// Says to what in the binding this belongs: there is somebody to be told of changes. The first
    /// call counts.
    pub fn set_owner(&self, owner: Weak<dyn Any + Send + Sync>) {
        self.owner.get_or_init(|| owner);
    }

    /// What [`Health::set_owner`] was given, while it lives.
    pub fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.owner.get()?.upgrade()
    }

    /// Notes a state. True if it is another than before, and somebody is to be told.
    pub fn enter(&self, new: State, error: Option<String>) -> bool {
        let mut inner = self.lock();
        if let Some(error) = &error {
            inner.error = Some(error.clone());
        }
        if new == State::Live {
            inner.heard = Some(Instant::now());
        }
        if inner.state == new {
            return false;
        }
        if new == State::Stopped {
            inner.history_error = None;
        }
        let old = std::mem::replace(&mut inner.state, new);
        inner.since = Instant::now();
        if self.owner.get().is_none() {
            return false;
        }
        inner.changes.push(Change { old, new, error });
        true
    }

    /// Notes a sign of life.
    pub fn hear(&self) {
        self.lock().heard = Some(Instant::now());
    }

    /// Notes why the history cannot be read, or that it can.
    pub fn note_reading(&self, error: Option<String>) {
        self.lock().history_error = error;
    }

    /// The changes since the last call.
    pub fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut self.lock().changes)
    }

    /// What is known now.
    pub fn report(&self) -> Report {
        let inner = self.lock();
        Report {
            state: inner.state,
            since: inner.since,
            heard: inner.heard,
            error: inner.error.clone(),
            history_error: inner.history_error.clone(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_once_and_only_where_somebody_listens() {
        let nobody = Health::default();
        assert!(!nobody.enter(State::Connecting, None));
        assert_eq!(nobody.report().state, State::Connecting);
        assert!(nobody.take_changes().is_empty());

        let (health, somebody) = (Health::default(), Arc::new(()));
        let owner: Weak<()> = Arc::downgrade(&somebody);
        health.set_owner(owner);
        assert!(health.enter(State::Connecting, None));
        assert!(!health.enter(State::Connecting, Some("refused".into())));
        assert_eq!(health.report().error.as_deref(), Some("refused"));
        assert!(health.enter(State::Live, None));
        assert!(health.report().heard.is_some());
        assert!(health.enter(State::Degraded, Some("gone".into())));
        let steps: Vec<_> = health
            .take_changes()
            .into_iter()
            .map(|change| (change.old.name(), change.new.name(), change.error))
            .collect();
        let expected = [
            ("stopped", "connecting", None),
            ("connecting", "live", None),
            ("live", "degraded", Some("gone".to_owned())),
        ];
        assert_eq!(steps, expected);
        assert!(health.take_changes().is_empty());
    }
}
