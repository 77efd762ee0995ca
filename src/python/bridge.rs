//! From the I/O thread into a running event loop.
//!
//! A bridge is one mailbox, one descriptor that the loop watches, and the futures that wait for an
//! answer. The I/O thread never attaches to Python: it posts and, if the flag was clear, writes the
//! descriptor. The loop's reader swallows the wake-up, takes the batch, and makes Python objects
//! where it is attached already. One wake-up costs the loop 13 us whatever the size of the batch.
//!
//! Ownership: the loop owns the reader (through `add_reader`), the reader owns the bridge. Closing the
//! loop drops the reader, which closes the mailbox and the descriptor. Nothing here keeps a loop alive.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};
use slab::Slab;

use super::answer::Answer;
use super::errors::Doing;
use super::once::{Once, intern};
use super::pumps::Pumps;
use super::turns::LoopTurns;
use super::{connections, logging, states};
use crate::mailbox::Mailbox;
use crate::outbox::Outbox;
use crate::post::{LoopMailbox, Outcome, Post};
use crate::runtime;

/// How long posts are handled before the loop's other work has its turn.
const TIME_SLICE: Duration = Duration::from_millis(1);
/// Posts between two looks at the clock.
const LOOK_EVERY: u32 = 8;

/// The bridges of this process by the address of their loop. An address can be used again by another
/// loop, so a hit counts only if the bridge's weak reference agrees.
static BRIDGES: Mutex<Option<HashMap<usize, Weak<Bridge>>>> = Mutex::new(None);

/// The bridge into one event loop.
pub struct Bridge {
    pub mailbox: Arc<LoopMailbox>,
    pub pumps: Pumps,
    /// The turns of sessions on this loop, by the address of what they belong to.
    turns: Mutex<HashMap<usize, Arc<LoopTurns>>>,
    bell: Arc<Bell>,
    event_loop: Py<PyWeakrefReference>,
    waiting: Mutex<Slab<Py<Answer>>>,
    /// Outboxes to be flushed at the end of this turn of the loop.
    gathering: Mutex<Vec<Arc<Outbox>>>,
    /// Whether the reader is at work, which flushes them when it has done.
    reading: AtomicBool,
}

/// The descriptor that wakes the loop; None once the loop is gone.
struct Bell {
    ends: Mutex<Option<Ends>>,
}

struct Ends {
    read: OwnedFd,
    #[cfg(not(target_os = "linux"))]
    write: OwnedFd,
}

impl Bell {
    fn new() -> std::io::Result<Self> {
        #[cfg(target_os = "linux")]
        let ends = {
            use rustix::event::{EventfdFlags, eventfd};
            Ends { read: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? }
        };
        #[cfg(not(target_os = "linux"))]
        let ends = {
            let (read, write) = rustix::pipe::pipe()?;
            for end in [&read, &write] {
                rustix::io::ioctl_fionbio(end, true)?;
                rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
            }
            Ends { read, write }
        };
        Ok(Self { ends: Mutex::new(Some(ends)) })
    }

    /// A full eventfd or pipe means that the loop has been woken already, so a failure is none.
    fn ring(&self) {
        if let Some(ends) = &*self.ends.lock() {
            #[cfg(target_os = "linux")]
            let write = &ends.read;
            #[cfg(not(target_os = "linux"))]
            let write = &ends.write;
            let _already_woken = rustix::io::write(write, &1u64.to_ne_bytes());
        }
    }

    fn swallow(&self) {
        if let Some(ends) = &*self.ends.lock() {
            let mut buffer = [0u8; 512];
            // One read empties an eventfd; a pipe may hold more than one wake-up's bytes.
            while matches!(rustix::io::read(&ends.read, &mut buffer), Ok(n) if n == buffer.len()) {}
        }
    }
}

thread_local! {
    /// The bridge found last: nearly always this thread has one loop.
    static LAST: RefCell<(usize, Weak<Bridge>)> = const { RefCell::new((0, Weak::new())) };
}

/// The bridge of the running loop, made at the first call.
///
/// Raises RuntimeError where no loop runs.
pub fn running(py: Python<'_>) -> PyResult<Arc<Bridge>> {
    static GET: Once<Py<PyAny>> = Once::new();
    let event_loop = GET.import(py, "asyncio", "get_running_loop")?.call0()?;
    let address = event_loop.as_ptr() as usize;
    if let Some(bridge) =
        LAST.with_borrow(|last| if last.0 == address { last.1.upgrade() } else { None })
        && bridge.serves(&event_loop)
    {
        return Ok(bridge);
    }
    let known = BRIDGES.lock().as_ref().and_then(|all| all.get(&address).and_then(Weak::upgrade));
    let bridge = if let Some(bridge) = known.filter(|bridge| bridge.serves(&event_loop)) {
        bridge
    } else {
        let bridge = Bridge::install(&event_loop)?;
        let mut bridges = BRIDGES.lock();
        let bridges = bridges.get_or_insert_default();
        bridges.retain(|_, bridge| bridge.strong_count() > 0);
        bridges.insert(address, Arc::downgrade(&bridge));
        bridge
    };
    LAST.set((address, Arc::downgrade(&bridge)));
    Ok(bridge)
}

impl Bridge {
    /// Whether it is the bridge of this loop, and not of one that had the same address before.
    fn serves(&self, event_loop: &Bound<'_, PyAny>) -> bool {
        let alive = || self.event_loop.bind(event_loop.py()).upgrade();
        !self.mailbox.is_closed() && alive().is_some_and(|alive| alive.is(event_loop))
    }

    fn install(event_loop: &Bound<'_, PyAny>) -> PyResult<Arc<Self>> {
        let py = event_loop.py();
        let bell = Arc::new(Bell::new()?);
        let ringer = Arc::clone(&bell);
        let mailbox = Arc::new(Mailbox::new(
            Box::new(move || ringer.ring()) as crate::post::Bell,
            runtime::generation(),
        ));
        let event_loop_ref = PyWeakrefReference::new(event_loop)?.unbind();
        let fd = bell.ends.lock().as_ref().map_or(-1, |ends| ends.read.as_raw_fd());
        let bridge = Arc::new(Self {
            pumps: Pumps::default(),
            turns: Mutex::default(),
            mailbox,
            bell,
            event_loop: event_loop_ref,
            waiting: Mutex::default(),
            gathering: Mutex::default(),
            reading: AtomicBool::new(false),
        });
        let reader = Reader { bridge: Arc::clone(&bridge), rest: Mutex::default() };
        // In an empty context: the pumps inherit it, and must not carry the context variables of
        // whichever request happened to come first.
        let context = py.import("contextvars")?.call_method0("Context")?;
        let add_reader = event_loop.getattr("add_reader")?;
        context.call_method1("run", (add_reader, fd, reader))?;
        Ok(bridge)
    }

    /// The turns of sessions that belong together. An address that is used again finds what is left of
    /// those that had it before: nothing.
    pub fn turns_of(&self, owner: usize) -> Arc<LoopTurns> {
        let mut turns = self.turns.lock();
        if !turns.contains_key(&owner) {
            // Those that nobody else has are of owners that are gone, or idle.
            turns.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        Arc::clone(turns.entry(owner).or_default())
    }

    /// The loop, if it lives.
    pub fn event_loop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let gone = || pyo3::exceptions::PyRuntimeError::new_err("the event loop is gone");
        self.event_loop.bind(py).upgrade().ok_or_else(gone)
    }

    /// What an awaitable waits for, and the token under which to give it.
    pub fn wait(&self, py: Python<'_>, doing: Doing) -> PyResult<(Py<Answer>, u64)> {
        let answer = Py::new(py, Answer::new(self.event_loop(py)?, doing))?;
        let token = self.waiting.lock().insert(answer.clone_ref(py));
        Ok((answer, token as u64))
    }

    /// Has an outbox flushed at the end of this turn of the loop.
    pub fn flush_soon(self: &Arc<Self>, py: Python<'_>, outbox: Arc<Outbox>) -> PyResult<()> {
        let mut gathering = self.gathering.lock();
        if gathering.iter().any(|other| Arc::ptr_eq(other, &outbox)) {
            return Ok(());
        }
        gathering.push(outbox);
        let first = gathering.len() == 1;
        drop(gathering);
        if first && !self.reading.load(Ordering::Relaxed) {
            let flush = Flush { bridge: Arc::clone(self) };
            self.event_loop(py)?.call_method1(intern!(py, "call_soon"), (flush,))?;
        }
        Ok(())
    }

    fn complete(&self, py: Python<'_>, token: u64, outcome: Outcome) -> PyResult<()> {
        let waiting =
            usize::try_from(token).ok().and_then(|token| self.waiting.lock().try_remove(token));
        waiting.map_or(Ok(()), |answer| Answer::give(answer.bind(py), outcome))
    }

    /// An error is one that ends the loop. Any other must not take what comes after it along.
    fn handle(self: &Arc<Self>, py: Python<'_>, post: Post) -> PyResult<()> {
        match post {
            Post::Completed(token, outcome) => return self.complete(py, token, outcome),
            Post::Journal(journal) => logging::drain(py, &journal),
            Post::Changed(health) => states::tell(py, &health),
            Post::Ready(router) => {
                if let Err(error) = connections::on_ready(py, &router, self) {
                    error.write_unraisable(py, None);
                }
            }
        }
        Ok(())
    }

    fn flush(&self) {
        let outboxes = std::mem::take(&mut *self.gathering.lock());
        for outbox in outboxes {
            outbox.flush();
        }
    }
}

/// What the loop calls at the end of a turn in which messages were published.
#[pyclass(frozen, module = "fanwire._core", name = "_Flush")]
struct Flush {
    bridge: Arc<Bridge>,
}

#[pymethods]
impl Flush {
    fn __call__(&self) {
        self.bridge.flush();
    }
}

/// What the loop calls when the descriptor is readable.
#[pyclass(frozen, module = "fanwire._core", name = "_Reader")]
pub struct Reader {
    bridge: Arc<Bridge>,
    /// What did not fit into the last turn.
    rest: Mutex<VecDeque<Post>>,
}

#[pymethods]
impl Reader {
    fn __call__(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        this.bridge.bell.swallow();
        let posts = this.bridge.mailbox.take();
        this.rest.lock().extend(posts);
        this.bridge.reading.store(true, Ordering::Relaxed);
        let handled = this.handle_some(slf.py());
        this.bridge.reading.store(false, Ordering::Relaxed);
        this.bridge.flush();
        if !this.rest.lock().is_empty() {
            let event_loop = this.bridge.event_loop(slf.py())?;
            event_loop.call_method1(intern!(slf.py(), "call_soon"), (slf,))?;
        }
        handled
    }
}

impl Reader {
    /// Handles posts until there are none or it is the turn of the loop's other work. They wake
    /// Tasks, so each is taken out only when it is its turn: what runs in a Task may run the loop.
    fn handle_some(&self, py: Python<'_>) -> PyResult<()> {
        let began = Instant::now();
        loop {
            for _ in 0..LOOK_EVERY {
                let post = self.rest.lock().pop_front();
                let Some(post) = post else { return Ok(()) };
                self.bridge.handle(py, post)?;
            }
            if began.elapsed() >= TIME_SLICE {
                return Ok(());
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.bridge.mailbox.close();
        self.bridge.bell.ends.lock().take();
        // Dropped outside the lock: a future's end may run Python.
        let waiting = std::mem::take(&mut *self.bridge.waiting.lock());
        drop(waiting);
        self.bridge.pumps.clear();
        let turns = std::mem::take(&mut *self.bridge.turns.lock());
        for turns in turns.into_values() {
            turns.clear();
        }
    }
}
