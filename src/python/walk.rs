//! The Task that begins turns: one runs them one after another, as long as their handlers do not wait.
//!
//! A Task for each turn costs as much as half of all the rest, where each session gets one message. So
//! one Task walks, and enters the context of each subscriber. When a handler waits, this Task stays with
//! its turn and another walks on, as pumps do with lanes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use pyo3::prelude::*;

use super::bridge::Bridge;
use super::coroutine::current_task;
use super::once::intern;
use super::sessions::SessionsState;
use super::steps::{Coroutine, Resume, Steps};
use super::turns::{LoopTurns, retell_later, turn};
use crate::lane::{Entry, LaneId};

/// Lanes whose turns are taken at once.
const TURNS_AT_ONCE: usize = 16;

/// Starts to walk if lanes are ready.
pub fn start(py: Python<'_>, state: &Arc<SessionsState>, bridge: &Arc<Bridge>) -> PyResult<()> {
    let rest = state.router.begin_turns(&bridge.mailbox, TURNS_AT_ONCE);
    if rest.is_empty() {
        return Ok(());
    }
    spawn(py, state, bridge, &state.turns_on(bridge), rest.into())
}

fn spawn(
    py: Python<'_>,
    state: &Arc<SessionsState>,
    bridge: &Arc<Bridge>,
    turns: &Arc<LoopTurns>,
    rest: VecDeque<(LaneId, Entry)>,
) -> PyResult<()> {
    let walk = Walk {
        state: Arc::clone(state),
        bridge: Arc::clone(bridge),
        turns: Arc::clone(turns),
        rest,
        current: None,
        task: None,
        walks: true,
    };
    let create_task = intern!(py, "create_task");
    bridge.event_loop(py)?.call_method1(create_task, (Coroutine::new("walk", walk),)).map(drop)
}

/// A turn that was suspended.
struct Current {
    turn: Py<Coroutine>,
    context: Py<PyAny>,
}

struct Walk {
    state: Arc<SessionsState>,
    bridge: Arc<Bridge>,
    turns: Arc<LoopTurns>,
    /// Taken from the router, not begun yet.
    rest: VecDeque<(LaneId, Entry)>,
    current: Option<Current>,
    /// The Task that it is.
    task: Option<Py<PyAny>>,
    /// Whether it is the one that begins turns.
    walks: bool,
}

impl Walk {
    /// Another begins the other turns.
    fn hand_over(&mut self, py: Python<'_>) -> PyResult<()> {
        self.walks = false;
        if self.rest.is_empty() {
            // Not more of them at once: where Tasks begin when they are made, each is inside the last.
            self.state.router.put_back_turns(&self.bridge.mailbox, None);
            self.state.router.retell();
            return Ok(());
        }
        let rest = std::mem::take(&mut self.rest);
        spawn(py, &self.state, &self.bridge, &self.turns, rest)
    }

    fn take(&mut self) {
        self.rest = self.state.router.begin_turns(&self.bridge.mailbox, TURNS_AT_ONCE).into();
    }

    /// Whether a handler that has returned has cancelled this Task: that is not for the next to suffer.
    fn is_cancelled(&mut self, py: Python<'_>) -> PyResult<bool> {
        let task = match self.task.take() {
            Some(task) => task,
            None => current_task(py)?.unbind(),
        };
        let cancelling = task.call_method0(py, intern!(py, "cancelling"))?;
        self.task = Some(task);
        cancelling.is_truthy(py)
    }

    /// Begins turns until one is suspended, nothing is left, or it is the loop's turn.
    fn walk(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let began = Instant::now();
        loop {
            let Some((lane, entry)) = self.rest.pop_front() else {
                self.take();
                if self.rest.is_empty() {
                    self.walks = false;
                    return Ok(None);
                }
                continue;
            };
            let Some((entry, handler)) = self.state.live(py, lane, entry) else { continue };
            let turn = turn(py, &self.state, &self.bridge, &self.turns, (lane, entry), &handler);
            let turn = Bound::new(py, turn)?;
            let context = handler.context.bind(py);
            let none = Resume::Send(py.None().into_bound(py));
            if let Some(yielded) = Coroutine::resume_in(&turn, context, none)? {
                self.current = Some(Current { turn: turn.unbind(), context: handler.context });
                self.hand_over(py)?;
                return Ok(Some(yielded));
            }
            if self.is_cancelled(py)? {
                self.hand_over(py)?;
                return Ok(None);
            }
            if began.elapsed() >= self.state.options.time_slice {
                return Ok(Some(py.None()));
            }
        }
    }
}

impl Steps for Walk {
    fn step(&mut self, py: Python<'_>, resume: Resume<'_>) -> PyResult<Option<Py<PyAny>>> {
        let Some(current) = self.current.take() else {
            return match resume {
                Resume::Send(_) => self.walk(py),
                Resume::Throw(error) => Err(error), // cancelled between two turns; Drop puts back the rest
            };
        };
        let yielded =
            Coroutine::resume_in(current.turn.bind(py), current.context.bind(py), resume)?;
        if yielded.is_some() {
            self.current = Some(current);
        }
        Ok(yielded)
    }
}

impl Drop for Walk {
    /// What was taken and not begun goes back, and is taken up again a moment later.
    fn drop(&mut self) {
        if !self.walks {
            return;
        }
        let rest = std::mem::take(&mut self.rest);
        // The lanes of a loop that is gone have moved on.
        if self.bridge.mailbox.is_closed() {
            self.state.router.stats.dropped.add(rest.len() as u64);
            return;
        }
        self.state.router.put_back_turns(&self.bridge.mailbox, rest);
        retell_later(&self.bridge, &self.state.router);
    }
}
