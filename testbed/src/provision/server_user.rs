//! The user that servers run as. PostgreSQL refuses root, so root hands its servers to somebody else.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{cache, tooling::run};

/// An unprivileged system user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUser {
    /// The login name.
    pub name: String,
    /// The user id.
    pub uid: u32,
    /// The primary group id.
    pub gid: u32,
}

/// Users that may be there already, by preference; the last is the one we create.
const CANDIDATES: [&str; 2] = ["postgres", CREATED];
const CREATED: &str = "cdcsync";

/// The user to run servers as: `None` means "as we are", because we are not root.
pub fn server_user() -> Result<Option<ServerUser>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    if let Some(user) = CANDIDATES.iter().find_map(|name| look_up(name)) {
        return Ok(Some(user));
    }
    let dir = cache::servers_dir()?;
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let _lock = cache::lock(&dir.join(".user.lock"))?;
    if look_up(CREATED).is_none() {
        eprintln!("creating the system user {CREATED} to run database servers");
        run(Command::new("useradd").args([
            "--system",
            "--user-group",
            "--no-create-home",
            "--shell",
            "/usr/sbin/nologin",
            CREATED,
        ]))
        .context("servers refuse to run as root; create an unprivileged user named postgres or cdcsync")?;
    }
    let user = look_up(CREATED);
    ensure!(
        user.is_some(),
        "the system user {CREATED} was created but cannot be found with `id`"
    );
    Ok(user)
}

fn look_up(name: &str) -> Option<ServerUser> {
    let id = |flag: &str| {
        run(Command::new("id").args([flag, name]))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    Some(ServerUser {
        name: name.to_owned(),
        uid: id("-u")?,
        gid: id("-g")?,
    })
}
