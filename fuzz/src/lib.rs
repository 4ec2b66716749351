//! Fuzz targets for everything that reads bytes from outside, each with its seeds and its limit of memory.
//!
//! `cargo xtask fuzz` runs them under libFuzzer, one at a time (`examples/fuzz.rs`). The seeds in `corpus/` are written
//! by `cargo xtask fuzz --seeds`.

use std::path::Path;

mod capture_segment;
mod certificate;
mod copied_rows;
mod database_url;
mod job_file;
mod limit;
mod marked_frames;
mod pg_text_value;
mod pgoutput_message;
mod pgoutput_stream;
mod plan_equivalence;
mod schema_script;
mod server_messages;
mod server_session;
mod spill_segment;
mod streamed_transactions;
mod walsender_frame;

/// Reads bytes in one way.
#[derive(Clone, Copy)]
pub struct Target {
    /// its name, and that of its folder in `corpus/`
    pub name: &'static str,
    /// panics when the bytes show a fault
    pub run: fn(&[u8]),
    /// what a run begins with: names, and bytes that are the same whenever they are made
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
}

macro_rules! targets {
    ($($name:ident),*) => {
        /// All there are.
        pub const TARGETS: &[Target] = &[$(Target {
            name: stringify!($name),
            run: $name::run,
            seeds: $name::seeds,
        }),*];
    };
}

targets!(
    capture_segment,
    certificate,
    copied_rows,
    database_url,
    job_file,
    marked_frames,
    pg_text_value,
    pgoutput_message,
    pgoutput_stream,
    plan_equivalence,
    schema_script,
    server_messages,
    server_session,
    spill_segment,
    streamed_transactions,
    walsender_frame
);

/// Writes the seeds of all targets into `corpus`, in place of those that are there.
///
/// # Errors
/// When they cannot be written.
pub fn write_seeds(corpus: &Path) -> std::io::Result<()> {
    for target in TARGETS {
        let folder = corpus.join(target.name);
        if folder.is_dir() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        for (name, bytes) in (target.seeds)() {
            std::fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, std::fs::read(entry.path()).unwrap())
            })
            .collect()
    }

    #[test]
    fn the_corpus_is_what_the_targets_begin_with() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        let mut folders: Vec<String> = std::fs::read_dir(&corpus)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        folders.sort();
        assert_eq!(
            folders,
            TARGETS.iter().map(|target| target.name).collect::<Vec<_>>()
        );
        for target in TARGETS {
            let seeds = (target.seeds)().into_iter();
            let seeds: BTreeMap<String, Vec<u8>> =
                seeds.map(|(name, bytes)| (name.to_owned(), bytes)).collect();
            assert!(!seeds.is_empty(), "{}", target.name);
            assert!(
                seeds == files(&corpus.join(target.name)),
                "corpus/{} is another: write it with `cargo xtask fuzz --seeds`",
                target.name
            );
        }
    }

    #[test]
    fn every_seed_passes() {
        for target in TARGETS {
            for (name, bytes) in (target.seeds)() {
                println!("{} {name}", target.name);
                (target.run)(&bytes);
            }
        }
    }
}
