//! Whether a server's WAL is the one that a position was read from.
//!
//! A position is a place in the WAL of one timeline. A standby that is promoted goes on from the *switch point* on a
//! new timeline with WAL of its own: what the former primary wrote behind that point is not there, and a position
//! behind it means other changes, or none yet (PostgreSQL manual, "Timelines").

use cdc_core::{Error, Kind, Result, SourceIdentity};

use crate::error::PgError;
use crate::lsn::Lsn;
use crate::slot_state::SEED_AGAIN;
use crate::walsender::{SystemIdentity, WalSender};

/// Compares the server with the one that the checkpoint was written for: a position means nothing on another.
pub(super) fn expect_server(known: &SourceIdentity, server: &SystemIdentity) -> Result<()> {
    let system = server.system_id.to_string();
    if system != known.system {
        return other("the server with system identifier", &system, &known.system);
    }
    if server.dbname != known.database {
        return other("database", &server.dbname, &known.database);
    }
    // A lower timeline is a copy that was restored from before the checkpoint.
    match known_timeline(known) {
        Some(timeline) if timeline <= server.timeline => Ok(()),
        None if known.timeline.is_empty() => Ok(()),
        _ => other("timeline", &server.timeline.to_string(), &known.timeline),
    }
}

fn other(what: &str, here: &str, there: &str) -> Result<()> {
    Err(lost(format!(
        "the checkpoint was written for {what} {there}, but this is {what} {here}"
    ))
    .remedy(format!("connect to the right server, or {SEED_AGAIN}")))
}

fn lost(message: String) -> Error {
    Error::new(Kind::PositionLost, message)
}

pub(super) fn known_timeline(known: &SourceIdentity) -> Option<u32> {
    known.timeline.parse().ok()
}

/// The server has written as far as the position: what is read from there on cannot be WAL that replaced it later.
pub(super) fn expect_written(server: &SystemIdentity, from: Lsn) -> Result<()> {
    if from <= server.xlogpos {
        return Ok(());
    }
    Err(lost(format!(
        "the checkpoint is at {from}, but the source has written its log only up to {}: it has lost what was applied \
         after that (a standby that lagged when it was promoted, a restored backup, a disk that lied)",
        server.xlogpos
    ))
    .object(format!("system {}", server.system_id))
    .at(from)
    .remedy(format!("connect to the server that has the whole log, or {SEED_AGAIN}")))
}

/// The position lies before the point at which the server left the timeline that the position is on.
pub(super) async fn expect_continued(
    sender: &mut WalSender,
    server: &SystemIdentity,
    known: u32,
    from: Lsn,
) -> Result<()> {
    if server.timeline == known {
        return Ok(());
    }
    let history = sender.timeline_history(server.timeline).await?;
    let at = switch_point(&history, known)?;
    let remedy = format!("go back to the former server if it still runs, or {SEED_AGAIN}");
    match at {
        Some(at) if from <= at => {
            tracing::warn!(
                known,
                now = server.timeline,
                switched_at = %at,
                "the source was promoted; it has everything up to the checkpoint"
            );
            Ok(())
        }
        Some(at) => Err(lost(format!(
            "the source was promoted to timeline {} at {at}, but the checkpoint is at {from} of timeline {known}: the \
             new primary lacks what was applied after {at}",
            server.timeline
        ))
        .object(format!("timeline {}", server.timeline))
        .at(from)
        .remedy(remedy)),
        None => Err(lost(format!(
            "the source's timeline {} does not descend from timeline {known} of the checkpoint",
            server.timeline
        ))
        .object(format!("timeline {}", server.timeline))
        .at(from)
        .remedy(remedy)),
    }
}

/// Where the history leaves `timeline`. Each line is a timeline, the position at which the next one began, and a
/// reason (`timeline.c` of the server); comments start with `#`.
fn switch_point(history: &str, timeline: u32) -> Result<Option<Lsn>, PgError> {
    for line in history.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(number) = words.next().filter(|word| !word.starts_with('#')) else {
            continue;
        };
        let wrong = || PgError::protocol(format!("{line:?} is not a line of a timeline's history"));
        if number.parse::<u32>().map_err(|_| wrong())? == timeline {
            let at = words.next().ok_or_else(wrong)?;
            return at.parse().map(Some).map_err(|_| wrong());
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> SourceIdentity {
        SourceIdentity {
            system: "7".into(),
            database: "d".into(),
            timeline: "2".into(),
            slot: "cdc_sync_j".into(),
        }
    }

    fn server(system_id: u64, timeline: u32, dbname: &str) -> SystemIdentity {
        SystemIdentity {
            system_id,
            timeline,
            xlogpos: Lsn(0x100),
            dbname: dbname.into(),
        }
    }

    #[test]
    fn another_server_or_history_is_refused() {
        assert!(expect_server(&known(), &server(7, 2, "d")).is_ok());
        assert!(expect_server(&known(), &server(7, 3, "d")).is_ok());
        for (other, named) in [
            (server(8, 2, "d"), "system identifier 8"),
            (server(7, 2, "e"), "database e"),
            (server(7, 1, "d"), "timeline 1"),
        ] {
            let error = expect_server(&known(), &other).unwrap_err();
            assert_eq!(error.kind(), Kind::PositionLost);
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn a_position_beyond_the_log_is_refused() {
        assert!(expect_written(&server(7, 2, "d"), Lsn(0x100)).is_ok());
        let error = expect_written(&server(7, 2, "d"), Lsn(0x101)).unwrap_err();
        assert_eq!(error.kind(), Kind::PositionLost);
        assert!(error.to_string().contains("only up to 0/100"), "{error}");
    }

    #[test]
    fn a_history_tells_where_each_timeline_was_left() {
        let history =
            "# a comment\n\n1\t0/30000A0\tno recovery target specified\n2\t1/5\tbefore 2000-01-01\n";
        assert_eq!(switch_point(history, 1).unwrap(), Some(Lsn(0x300_00A0)));
        assert_eq!(switch_point(history, 2).unwrap(), Some(Lsn(0x1_0000_0005)));
        assert_eq!(switch_point(history, 3).unwrap(), None);
        assert!(switch_point("1", 1).is_err() && switch_point("x\t0/1", 1).is_err());
    }
}
