//! The tokio runtime: one I/O thread per process, made when first needed, and made anew after a fork.
//!
//! After a fork the child has the memory of the parent's runtime but not its thread, so everything
//! that lives on it carries the fork generation of its process and is abandoned when that changes.
//! The gate keeps a fork from happening while the I/O thread holds one of our locks, which would stay
//! locked for ever in the child.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::Poll;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

use crate::error::Error;

/// Counts the forks between the first process and this one.
static GENERATION: AtomicU64 = AtomicU64::new(0);
static RUNTIME: Mutex<Option<(u64, Handle)>> = Mutex::new(None);
/// A std lock and not a `parking_lot` one: it has no table of waiting threads that a fork could tear.
static GATE: RwLock<()> = RwLock::new(());

thread_local! {
    static FORKING: RefCell<Option<RwLockWriteGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// The fork generation of this process.
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

/// Spawns a task on the I/O thread, which is started if need be.
pub fn spawn<F>(future: F) -> Result<JoinHandle<F::Output>, Error>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Ok(handle()?.spawn(future))
}

/// Starts the I/O thread if need be.
pub fn ensure() -> Result<(), Error> {
    handle().map(drop)
}

/// The running runtime of this process.
fn handle() -> Result<Handle, Error> {
    let mut runtime = RUNTIME.lock();
    let now = generation();
    if let Some((made_in, handle)) = runtime.as_ref()
        && *made_in == now
    {
        return Ok(handle.clone());
    }
    let fresh = start_io_thread().map_err(|error| Error::System(error.to_string()))?;
    // The parent's handle is forgotten, not dropped: its drop would use threads that are not here.
    if let Some(stale) = runtime.replace((now, fresh.clone())) {
        std::mem::forget(stale);
    }
    Ok(fresh)
}

fn start_io_thread() -> std::io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    // A daemon in effect: never joined, so an interpreter that exits without stop() exits at once.
    std::thread::Builder::new()
        .name("fanwire-io".into())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
}

/// A number that is drawn nowhere else, in a forked child neither: std's random keys are inherited.
pub fn random() -> NonZeroU64 {
    let drawn = getrandom::u64().unwrap_or_else(|_| {
        RandomState::new().hash_one((std::process::id(), std::time::SystemTime::now()))
    });
    NonZeroU64::new(drawn).unwrap_or(NonZeroU64::MIN)
}

/// Runs a future to its end, or up to its panic, whose text is returned.
pub async fn contained<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(move |context| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        match polled {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(text_of(&*panic))),
        }
    })
    .await
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("internal error, please report it: {}", text.unwrap_or("a panic without a text"))
}

/// Held by the I/O thread while it uses a lock of ours; cheap, taken once per batch.
pub fn gate() -> RwLockReadGuard<'static, ()> {
    GATE.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// To be called right before a fork, by the thread that forks.
pub fn before_fork() {
    let guard = GATE.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    FORKING.with(|forking| *forking.borrow_mut() = Some(guard));
}

/// To be called right after a fork in the parent, by the thread that forked.
pub fn after_fork_in_parent() {
    FORKING.with(|forking| drop(forking.borrow_mut().take()));
}

/// To be called right after a fork in the child.
pub fn after_fork_in_child() {
    GENERATION.fetch_add(1, Ordering::AcqRel);
    FORKING.with(|forking| drop(forking.borrow_mut().take()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_a_text() {
        assert_eq!(contained(async { 7 }).await, Ok(7));
        let panics = async {
            tokio::task::yield_now().await;
            assert!(generation() > 1_000_000, "so few forks");
        };
        assert!(contained(panics).await.unwrap_err().ends_with("so few forks"));
    }
}
