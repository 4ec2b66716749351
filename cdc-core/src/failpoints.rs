//! Named points at which a test has this process die as by `kill -9`, or meet an error that time mends.
//!
//! Only with feature `failpoints`; without it [`failpoint!`](crate::failpoint) leaves no code. The environment says
//! what happens where, each once: `CDC_SYNC_FAILPOINTS=sink.applied=2*off->kill,confirm.before=error` dies at the third
//! time that `sink.applied` is passed. `docs/testing.md` lists the points.
//!
//! Of our own, because what the crates for it offer (panics, pauses, probabilities) is not needed, and what is needed
//! (the end by a signal that nothing can catch) they do not offer.

use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::process::{Signal, getpid, kill_process};

use crate::error::{Action, Error, Kind, Result};

/// The environment variable that arms points.
pub const VARIABLE: &str = "CDC_SYNC_FAILPOINTS";

static ARMED: LazyLock<Mutex<Vec<Armed>>> = LazyLock::new(|| {
    let told = std::env::var(VARIABLE).unwrap_or_default();
    let armed = parse(&told).unwrap_or_else(|| {
        eprintln!("{VARIABLE} is not understood: {told}");
        std::process::abort()
    });
    Mutex::new(armed)
});

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Kill,
    Error,
}

#[derive(Debug, PartialEq, Eq)]
struct Armed {
    name: String,
    /// times that it is passed before anything happens
    passes: u64,
    act: Act,
}

fn parse(told: &str) -> Option<Vec<Armed>> {
    let entries = told.split(',').filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (name, what) = entry.split_once('=')?;
            let (passes, act) = match what.split_once("*off->") {
                Some((passes, act)) => (passes.parse().ok()?, act),
                None => (0, what),
            };
            let act = match act {
                "kill" => Act::Kill,
                "error" => Act::Error,
                _ => return None,
            };
            Some(Armed {
                name: name.to_owned(),
                passes,
                act,
            })
        })
        .collect()
}

/// What is to happen now at `name`.
fn due(armed: &mut Vec<Armed>, name: &str) -> Option<Act> {
    let place = armed.iter().position(|point| point.name == name)?;
    let point = armed.get_mut(place)?;
    if point.passes > 0 {
        point.passes -= 1;
        return None;
    }
    Some(armed.swap_remove(place).act)
}

/// Passes a point, if this process is not to die there.
///
/// # Errors
/// The error that the point was armed with.
pub fn pass(name: &str) -> Result<()> {
    let act = due(&mut ARMED.lock().unwrap_or_else(PoisonError::into_inner), name);
    match act {
        None => Ok(()),
        Some(Act::Error) => {
            Err(Error::new(Kind::Unreachable, format!("failpoint {name}")).action(Action::Reconnect))
        }
        Some(Act::Kill) => loop {
            // It does not return; should it be refused, there is nothing to go on with.
            let _ = kill_process(getpid(), Signal::KILL);
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_acts_once_after_its_passes() {
        let mut armed = parse("a.b=2*off->kill,c=error").unwrap();
        let acts: Vec<_> = (0..4).map(|_| due(&mut armed, "a.b")).collect();
        assert_eq!(acts, [None, None, Some(Act::Kill), None]);
        assert_eq!(due(&mut armed, "never"), None);
        assert_eq!(
            (due(&mut armed, "c"), due(&mut armed, "c")),
            (Some(Act::Error), None)
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for wrong in ["a", "a=", "a=die", "a=x*off->kill", "a=1*kill"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(parse(""), Some(Vec::new()));
    }
}
