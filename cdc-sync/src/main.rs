//! The `cdc-sync` binary; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A panic is a defect and has the exit code of one; its message is on stderr already.
    let code = std::panic::catch_unwind(cdc_sync::cli::main).unwrap_or(cdc_sync::exit::BUG);
    ExitCode::from(code)
}
