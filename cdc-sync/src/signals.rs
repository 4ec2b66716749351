//! SIGINT and SIGTERM: the first asks to stop, the second ends the process at once.

use cdc_core::{Error, Kind, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::exit;

/// Whether a stop was asked for; cheap to clone.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Whether a stop was asked for.
    pub fn requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for it.
    pub async fn wait(&self) {
        let mut asked = self.0.clone();
        // The sender lives as long as the process; were it gone, no stop could come any more.
        if asked.wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Starts to listen, on a thread of its own: a stop is noticed whatever the rest of the process is busy with.
///
/// # Errors
/// When the system refuses the handlers or the thread.
pub fn listen() -> Result<Stop> {
    let local = |error| Error::new(Kind::Local, "cannot listen for signals").caused_by(error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(local)?;
    let (asked, stop) = watch::channel(false);
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (
            signal(SignalKind::interrupt()).map_err(local)?,
            signal(SignalKind::terminate()).map_err(local)?,
        )
    };
    let listening = async move {
        loop {
            let got = tokio::select! {
                got = interrupt.recv() => got,
                got = terminate.recv() => got,
            };
            if got.is_none() {
                return;
            }
            if asked.send_replace(true) {
                std::process::exit(i32::from(exit::INTERRUPTED));
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || runtime.block_on(listening))
        .map_err(local)?;
    Ok(Stop(stop))
}
