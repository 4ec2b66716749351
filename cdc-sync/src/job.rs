//! What a job is called: the same name for every spelling of its URLs.

use cdc_core::engine::{JobNames, SiteIdentity};
use cdc_core::{Error, Kind, Result};
use sha2::{Digest, Sha256};

/// Before every slot and publication.
const PREFIX: &str = "cdc_sync_";
/// The longest identifier that all products take.
const LONGEST: usize = 63;
/// `_` and the hash.
const HASH_SUFFIX: usize = 9;

/// The names of the job called `name`.
///
/// Slot names hold only `a-z`, `0-9` and `_`: other characters of the name become `_` there, so names that
/// differ in nothing else must not be used side by side.
///
/// # Errors
/// [`Kind::Config`] for a name that is empty, too long, or of other characters than letters, digits, `_`, `-`
/// and `.`.
pub fn named(name: &str) -> Result<JobNames> {
    let fits = !name.is_empty() && PREFIX.len() + name.len() <= LONGEST;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !fits || !name.chars().all(plain) {
        return Err(Error::new(
            Kind::Config,
            format!(
                "a job name has 1 to {} letters, digits, `_`, `-` or `.`",
                LONGEST - PREFIX.len()
            ),
        )
        .object(format!("job {name:?}"))
        .remedy("choose another --job name"));
    }
    Ok(with_slot(name.to_owned()))
}

/// The names of the job between two databases, from what they are and not from how they are reached.
pub fn derived(source: &SiteIdentity, target: &SiteIdentity) -> JobNames {
    let mut hash = Sha256::new();
    for part in [&source.system, &source.database, &target.system, &target.database] {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let digest = hash.finalize();
    let suffix: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let database: String = slot_characters(&source.database)
        .take(LONGEST - PREFIX.len() - HASH_SUFFIX)
        .collect();
    with_slot(format!("{database}_{suffix}"))
}

fn with_slot(job: String) -> JobNames {
    let slot = PREFIX.chars().chain(slot_characters(&job)).collect();
    JobNames { job, slot }
}

/// The names of the stream that copies and follows tables of `job` beside the job's own.
///
/// A `~` is in no name that is given, and the hash tells the slot from those of other jobs.
pub(crate) fn beside(job: &JobNames) -> JobNames {
    let digest = Sha256::digest(job.job.as_bytes());
    let suffix: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let slot: String = job.slot.chars().take(LONGEST - HASH_SUFFIX).collect();
    JobNames {
        job: format!("{}~beside", job.job),
        slot: format!("{slot}_{suffix}"),
    }
}

fn slot_characters(text: &str) -> impl Iterator<Item = char> {
    text.chars().map(|c| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '_'
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(system: &str, database: &str) -> SiteIdentity {
        SiteIdentity {
            product: "any".into(),
            system: system.into(),
            database: database.into(),
            timeline: "1".into(),
        }
    }

    #[test]
    fn derived_names_are_stable_and_tell_databases_apart() {
        let names = derived(&site("7301", "shop"), &site("7302", "shop"));
        assert_eq!(names.job, "shop_ec303442");
        assert_eq!(names.slot, "cdc_sync_shop_ec303442");
        let others = [
            derived(&site("7302", "shop"), &site("7301", "shop")),
            derived(&site("7301", "shop"), &site("7302", "shop2")),
            derived(&site("7301", "shops"), &site("7302", "hop")),
        ];
        assert!(others.iter().all(|other| other.job != names.job));
    }

    #[test]
    fn a_timeline_or_version_does_not_change_the_name() {
        let mut promoted = site("7301", "shop");
        promoted.timeline = "2".into();
        promoted.product = "newer".into();
        let target = site("7302", "shop");
        assert_eq!(
            derived(&promoted, &target),
            derived(&site("7301", "shop"), &target)
        );
    }

    #[test]
    fn slots_fit_whatever_the_database_is_called() {
        for database in ["Größe 7/8", &"x".repeat(63), "", "ABC"] {
            let names = derived(&site("1", database), &site("2", "t"));
            assert!(names.slot.len() <= LONGEST, "{names:?}");
            assert!(
                names
                    .slot
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            );
        }
        assert_eq!(
            named("Shop-13.to_16").map(|n| n.slot).ok(),
            Some("cdc_sync_shop_13_to_16".into())
        );
    }

    #[test]
    fn the_stream_beside_has_names_of_its_own_that_fit() {
        for name in ["shop", &"x".repeat(54)] {
            let job = named(name).expect("it fits");
            let beside = beside(&job);
            assert!(named(&beside.job).is_err(), "{beside:?}");
            assert!(
                beside.slot != job.slot && beside.slot.len() <= LONGEST,
                "{beside:?}"
            );
        }
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        for name in ["", "a b", "ä", "a/b", &"x".repeat(55)] {
            assert_eq!(
                named(name).map_err(|error| error.kind()),
                Err(Kind::Config),
                "{name}"
            );
        }
        assert!(named(&"x".repeat(54)).is_ok());
    }
}
