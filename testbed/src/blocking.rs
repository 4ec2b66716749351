//! A bridge from blocking to async code that works from anywhere, also from inside a runtime.

use std::future::Future;

use anyhow::{Context, Result, bail};

/// Runs the future on its own thread with its own runtime and waits for it.
///
/// A runtime refuses to be entered twice on one thread; tests call this crate from inside theirs.
pub(crate) fn block_on<T: Send + 'static>(
    future: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let worker = std::thread::spawn(move || runtime()?.block_on(future));
    match worker.join() {
        Ok(result) => result,
        Err(_) => bail!("a worker thread of the testbed panicked"),
    }
}

/// A runtime for one thread.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot build a runtime")
}
