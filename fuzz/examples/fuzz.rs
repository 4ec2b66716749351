//! libFuzzer on the target that `CDC_FUZZ_TARGET` names. With `CDC_FUZZ_SEEDS` it writes the seeds of all targets into
//! that folder instead.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use cdc_fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&Target> = OnceLock::new();

/// The target of this process.
fn target() -> &'static Target {
    TARGET.get_or_init(|| {
        let name = std::env::var("CDC_FUZZ_TARGET").unwrap_or_default();
        let named = TARGETS.iter().find(|target| target.name == name);
        named.unwrap_or_else(|| panic!("CDC_FUZZ_TARGET={name:?} names no target"))
    })
}

fn write_seeds_if_asked() {
    if let Some(folder) = std::env::var_os("CDC_FUZZ_SEEDS") {
        cdc_fuzz::write_seeds(Path::new(&folder)).unwrap();
        std::process::exit(0);
    }
}

fuzz_target!(init: write_seeds_if_asked(), |bytes: &[u8]| (target().run)(bytes));
