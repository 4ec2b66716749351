//! Finds the newest `pg_dump` with its `pg_restore`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use cdc_core::{Error, Kind, Result};
use tokio::process::Command;

use crate::wire::ServerVersion;

/// Where packages put the programs of one version, beside `PATH`: a directory with one entry a version, and the way
/// from there to the programs.
const VERSIONED: &[(&str, &str)] = &[("/usr/lib/postgresql", "bin"), ("/usr", "bin"), ("/opt", "bin")];

/// A pair of programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tools {
    pub(super) pg_dump: PathBuf,
    pub(super) pg_restore: PathBuf,
    pub(super) version: ServerVersion,
}

/// The newest pair, which must be at least of major version `needed`: `pg_dump` refuses a server newer than itself,
/// and only one as new as the target knows what the target no longer accepts.
///
/// With `dir`, given by the user, no other place is looked at.
pub(super) async fn find(dir: Option<&Path>, needed: u32) -> Result<Tools> {
    let dirs = match dir {
        Some(dir) => vec![dir.to_owned()],
        None => search_path(std::env::var_os("PATH").as_deref(), VERSIONED),
    };
    let mut found: Vec<Tools> = Vec::new();
    for dir in &dirs {
        let tools = Tools {
            pg_dump: dir.join("pg_dump"),
            pg_restore: dir.join("pg_restore"),
            version: ServerVersion(0),
        };
        // Both must run: a directory can hold one of them, or a wrapper without its program.
        if let (Some(version), Some(_)) = (
            version_of(&tools.pg_dump).await,
            version_of(&tools.pg_restore).await,
        ) {
            found.push(Tools { version, ..tools });
        }
    }
    // Of equal versions the first in order wins.
    let newest = found.iter().rev().max_by_key(|tools| tools.version);
    match newest {
        Some(tools) if tools.version.major() >= needed => Ok(tools.clone()),
        _ => Err(too_old(dir, &found, needed)),
    }
}

fn too_old(dir: Option<&Path>, found: &[Tools], needed: u32) -> Error {
    let place = |tools: &Tools| {
        let dir = tools.pg_dump.parent().unwrap_or(Path::new("")).display();
        format!("{} in {dir}", tools.version)
    };
    let found = match (found, dir) {
        ([], Some(dir)) => format!("there is none in {}", dir.display()),
        ([], None) => "there is none in PATH or where packages install it".to_owned(),
        (found, _) => format!("found {}", found.iter().map(place).collect::<Vec<_>>().join(", ")),
    };
    Error::new(
        Kind::Check,
        format!("copying the schema needs pg_dump and pg_restore of PostgreSQL {needed} or newer: {found}"),
    )
    .remedy(format!(
        "install the client programs (Debian: postgresql-client-{needed}) or say where they are with --pg-bin DIR; \
         or create the schema on the target yourself"
    ))
}

/// The directories of `PATH`, then those of packages.
fn search_path(path: Option<&std::ffi::OsStr>, versioned: &[(&str, &str)]) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = path
        .map(|path| {
            std::env::split_paths(path)
                .filter(|dir| dir.is_absolute())
                .collect()
        })
        .unwrap_or_default();
    for (parent, rest) in versioned {
        let Ok(entries) = std::fs::read_dir(parent) else {
            continue;
        };
        let mut versions: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path().join(rest))
            .filter(|dir| dir.join("pg_dump").exists())
            .collect();
        versions.sort();
        dirs.extend(versions);
    }
    let mut seen = std::collections::HashSet::new();
    dirs.retain(|dir| seen.insert(dir.clone()));
    dirs
}

/// The version a program says it has: `pg_dump (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)`.
async fn version_of(program: &Path) -> Option<ServerVersion> {
    if !program.exists() {
        return None;
    }
    let output = Command::new(program)
        .arg("--version")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ServerVersion::parse(text.split_once("(PostgreSQL) ")?.1.trim()).filter(|_| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn fake(dir: &Path, version: &str) {
        std::fs::create_dir_all(dir).unwrap();
        for name in ["pg_dump", "pg_restore"] {
            let program = dir.join(name);
            std::fs::write(
                &program,
                format!("#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n"),
            )
            .unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[tokio::test]
    async fn the_version_needed_is_named_with_what_was_found() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("bin");
        let error = find(Some(&dir), 18).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Check);
        assert!(
            error
                .message()
                .contains("PostgreSQL 18 or newer: there is none in"),
            "{error}"
        );
        fake(&dir, "15.20 (Debian 15.20-0+deb12u1)");
        let error = find(Some(&dir), 18).await.unwrap_err();
        assert!(error.message().contains("found 15.20 in "), "{error}");
        assert!(error.remedy_text().unwrap().contains("--pg-bin"));
        let tools = find(Some(&dir), 15).await.unwrap();
        assert_eq!(tools.version, ServerVersion(150_020));
    }

    #[test]
    fn versioned_directories_follow_the_path() {
        let root = tempfile::tempdir().unwrap();
        for version in ["12", "18"] {
            fake(&root.path().join(version).join("bin"), version);
        }
        let parent = root.path().to_str().unwrap();
        let dirs = search_path(Some("/a:relative:/b:/a".as_ref()), &[(parent, "bin")]);
        let (a, b) = (PathBuf::from("/a"), PathBuf::from("/b"));
        assert_eq!(
            dirs,
            [a, b, root.path().join("12/bin"), root.path().join("18/bin")]
        );
    }
}
