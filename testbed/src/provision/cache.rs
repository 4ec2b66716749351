//! The folder that holds unpacked servers, and the rule by which an item enters it: unpack beside, check,
//! make readable for everyone, rename. An item that is there is complete.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use super::tooling::run;

/// The cache folder: `$CDC_SYNC_SERVERS`, else `/var/cache/cdc-sync/servers` for root and
/// `$HOME/.cache/cdc-sync/servers` for everyone else.
///
/// Root does not use its home: PostgreSQL refuses to run as root, and the unprivileged user it runs as
/// usually cannot enter `/root`.
pub fn servers_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CDC_SYNC_SERVERS").filter(|d| !d.is_empty()) {
        return std::path::absolute(&dir).context("CDC_SYNC_SERVERS is not a usable path");
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/cache/cdc-sync/servers"));
    }
    let home = std::env::var_os("HOME").filter(|h| !h.is_empty()).context(
        "neither HOME nor CDC_SYNC_SERVERS is set: set CDC_SYNC_SERVERS to a folder for the servers",
    )?;
    Ok(PathBuf::from(home).join(".cache/cdc-sync/servers"))
}

/// Returns the folder of the item `name`, building it first when it is not in the cache.
///
/// `build` gets an empty folder and returns the sub-folder of it that becomes the item. Two processes that
/// want the same item do not build it twice: the second waits for the first one's lock.
pub(super) fn item(name: &str, build: impl FnOnce(&Path) -> Result<PathBuf>) -> Result<PathBuf> {
    let cache = servers_dir()?;
    let done = cache.join(name);
    if done.is_dir() {
        return Ok(done);
    }
    fs::create_dir_all(&cache)
        .with_context(|| format!("cannot create the server cache {}", cache.display()))?;
    let _lock = lock(&cache.join(format!(".{name}.lock")))?;
    if done.is_dir() {
        return Ok(done);
    }
    let begun = Instant::now();
    eprintln!("{name}: not in {}, fetching", cache.display());
    // The name is fixed, so what a killed run left behind is found and removed here, under the lock.
    let unpack = cache.join(format!(".{name}.unpack"));
    if unpack.exists() {
        fs::remove_dir_all(&unpack).with_context(|| format!("cannot remove {}", unpack.display()))?;
    }
    fs::create_dir(&unpack).with_context(|| format!("cannot create {}", unpack.display()))?;
    let built = build(&unpack).with_context(|| format!("cannot provision {name}"))?;
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(&built))?;
    fs::rename(&built, &done)
        .with_context(|| format!("cannot move {} to {}", built.display(), done.display()))?;
    fs::remove_dir_all(&unpack).with_context(|| format!("cannot remove {}", unpack.display()))?;
    eprintln!("{name}: ready after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(done)
}

/// Takes the exclusive lock on `path`, which the system releases when the file is dropped or the process dies.
pub(super) fn lock(path: &Path) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open the lock file {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another process that holds {}", path.display());
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}
