//! TCP ports that stay ours while a server restarts.

use std::fs::{self, File};
use std::io::ErrorKind::ConnectionRefused;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

/// Below the ports that systems hand to outgoing connections: one of those could take a server's port
/// while it restarts.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A port of 127.0.0.1 that nobody listens on and that no other test process reserves.
pub(crate) struct Port {
    number: u16,
    /// Locked until the reservation ends.
    _lock: File,
}

impl Port {
    /// Reserves a port.
    pub(crate) fn reserve() -> Result<Port> {
        let dir = std::env::temp_dir().join("cdc-sync-ports");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        // Shared with other users; fails when one of them made the folder, and then it is so already.
        let _ = fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777));
        let span = u32::from(RANGE.end - RANGE.start);
        let clock = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.subsec_nanos());
        let first = (clock / 1000).wrapping_add(std::process::id().wrapping_mul(7919)) % span;
        for step in 0..span {
            let number = RANGE.start + u16::try_from((first + step) % span)?;
            let path = dir.join(number.to_string());
            let Ok(file) = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
            else {
                continue;
            };
            if file.try_lock().is_ok() && is_free(number) {
                return Ok(Port { number, _lock: file });
            }
        }
        bail!("no free port of 127.0.0.1 in {RANGE:?}")
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

/// Whether nobody listens there. Asked by a connection: a process that is being started meanwhile would hold on to a socket
/// that listens, for as long as it takes it to become another program, and whoever then took the port would find it in use.
fn is_free(number: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, number));
    TcpStream::connect_timeout(&address, Duration::from_secs(1))
        .is_err_and(|error| error.kind() == ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::Command;
    use std::thread;

    use super::*;

    #[test]
    fn reservations_differ_and_can_be_bound_while_processes_start() {
        thread::scope(|scope| {
            let bound = |port: Port| {
                let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number)).map(drop);
                (port, bound)
            };
            let reserving = scope
                .spawn(move || -> Vec<_> { (0..2_000).map(|_| bound(Port::reserve().unwrap())).collect() });
            while !reserving.is_finished() {
                assert!(Command::new("true").status().unwrap().success());
            }
            let ports = reserving.join().unwrap();
            let mut numbers = Vec::new();
            for (port, bound) in &ports {
                assert!(bound.is_ok(), "port {}: {bound:?}", port.number);
                numbers.push(port.number);
            }
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), 2_000);
        });
    }
}
