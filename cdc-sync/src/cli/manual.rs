//! `completions` and `man`: made from the same table as the parser.

use std::io;
use std::path::Path;

use cdc_core::{Error, Kind, Result};
use clap::Command;

use super::args::{Completions, Man};
use crate::{exit, output};

pub(super) fn completions(args: &Completions, mut command: Command) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "cdc-sync", &mut script);
    output::data(&String::from_utf8_lossy(&script));
    Ok(exit::OK)
}

pub(super) fn man(args: &Man, mut command: Command) -> Result<u8> {
    command.build();
    if let Some(dir) = &args.dir {
        clap_mangen::generate_to(command, dir).map_err(|error| unwritable(dir, error))?;
        return Ok(exit::OK);
    }
    let page = match &args.verb_name {
        None => command,
        Some(name) => command.find_subcommand(name).cloned().ok_or_else(|| {
            let verbs: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
            Error::new(Kind::Config, format!("there is no verb `{name}`"))
                .remedy(format!("the verbs are {}", verbs.join(", ")))
        })?,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page)
        .render(&mut text)
        .map_err(|error| unwritable(Path::new("standard output"), error))?;
    output::data(&String::from_utf8_lossy(&text));
    Ok(exit::OK)
}

fn unwritable(path: &Path, error: io::Error) -> Error {
    Error::new(Kind::Config, "cannot write manual pages")
        .object(path.display().to_string())
        .caused_by(error)
}
