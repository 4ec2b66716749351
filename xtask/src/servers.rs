//! `cargo xtask servers`: provision every server.

use anyhow::Result;
use testbed::provision::{POSTGRES_MAJORS, postgres_server, postgres_tools, servers_dir};

/// Arguments of `cargo xtask servers`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print a line for each server: name, version, folder of its programs
    #[arg(long)]
    list: bool,
}

/// Provisions what is missing, and lists everything if asked to.
pub(crate) fn run(args: &Args) -> Result<()> {
    provision()?;
    if args.list {
        for major in POSTGRES_MAJORS {
            let server = postgres_server(major)?;
            println!(
                "{:<16}{:<10}{}",
                format!("postgres-{major}"),
                server.version,
                server.bin.display()
            );
        }
        let tools = postgres_tools()?;
        println!(
            "{:<16}{:<10}{}",
            "postgres-tools",
            tools.version,
            tools.bin.display()
        );
    }
    Ok(())
}

/// Provisions what is missing.
pub(crate) fn provision() -> Result<()> {
    let mut versions = Vec::new();
    for major in POSTGRES_MAJORS {
        versions.push(postgres_server(major)?.version);
    }
    let tools = postgres_tools()?.version;
    let (servers, folder) = (versions.join(", "), servers_dir()?);
    eprintln!(
        "PostgreSQL {servers} and the client programs of {tools} are in {}",
        folder.display()
    );
    Ok(())
}
