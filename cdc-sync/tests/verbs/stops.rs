//! What stops a job, with which exit code, and that it goes on where it stood once the cause is gone.

use serde_json::Value;
use testbed::pair::LIMIT;
use testbed::{Pair, Process, StopMode};

use super::{end, following, shop, shop_of_plain_roles, wait_for_green};

fn text<'a>(report: &'a Value, key: &str) -> &'a str {
    report["error"][key].as_str().unwrap_or_default()
}

#[test]
fn a_target_that_holds_rows_is_refused_or_emptied() {
    let pair = shop(16, 18);
    // A dry run says what a run would do, and does nothing.
    let planned = pair.verb(&["run", "--dry-run"], 0).unwrap();
    assert_eq!(planned["resumes_at"], Value::Null, "{planned}");
    pair.on_green(super::SCHEMA).unwrap();
    pair.verb(&["run", "--dry-run"], 3).unwrap();
    let made = "SELECT count(*) FROM pg_namespace WHERE nspname = 'cdc_sync'";
    assert_eq!(pair.on_blue(made).unwrap() + &pair.on_green(made).unwrap(), "00");
    let refused = pair.verb(&["run", "--until-caught-up"], 3).unwrap();
    let said = refused.to_string();
    assert!(
        said.contains("public.customers") && said.contains("public.orders"),
        "{said}"
    );
    assert!(said.contains("--truncate-target"), "{said}");
    assert_eq!(pair.on_green("SELECT count(*) FROM orders").unwrap(), "5000");
    pair.verb(&["run", "--until-caught-up", "--truncate-target"], 0)
        .unwrap();
    pair.assert_equal().unwrap();
}

#[test]
fn a_row_that_green_refuses_stops_the_job_at_its_transaction() {
    stops_at_a_refused_row(&shop(14, 15));
}

#[test]
fn a_row_that_green_refuses_stops_the_job_of_plain_roles() {
    stops_at_a_refused_row(&shop_of_plain_roles(14, 15));
}

fn stops_at_a_refused_row(pair: &Pair) {
    let mut running = following(pair, &[]);
    pair.on_green("ALTER TABLE customers ADD CONSTRAINT short CHECK (length(name) < 30)")
        .unwrap();
    pair.on_blue("INSERT INTO customers VALUES (1001, 'fits', NULL)")
        .unwrap();
    pair.on_blue(
        "BEGIN; INSERT INTO customers VALUES (1002, 'fits', NULL); \
         INSERT INTO customers VALUES (1003, repeat('secret', 10), NULL); COMMIT",
    )
    .unwrap();
    let ended = running.wait_timeout(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(13), "{}", ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let said = format!("{} {}", text(&report, "message"), text(&report, "object"));
    for part in ["public.customers", "1003", "short", "SQLSTATE 23514"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(!text(&report, "remedy").is_empty(), "{report}");
    assert!(!ended.stdout.contains("secretsecret") && !ended.stderr.contains("secretsecret"));
    // Everything before that transaction is there, nothing of it is, and the same again changes nothing.
    let ids = "SELECT string_agg(id::text, ',') FROM customers WHERE id > 1000";
    assert_eq!(pair.on_green(ids).unwrap(), "1001");
    pair.verb(&["run", "--until-caught-up"], 13).unwrap();
    assert_eq!(pair.on_green(ids).unwrap(), "1001");
    pair.on_green("ALTER TABLE customers DROP CONSTRAINT short")
        .unwrap();
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    pair.assert_equal().unwrap();
}

#[test]
fn a_time_limit_and_a_signal_leave_a_job_that_goes_on() {
    let pair = shop(15, 17);
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    // Green cannot take the row as long as someone holds the table.
    pair.on_blue("INSERT INTO customers VALUES (1001, 'late', NULL)")
        .unwrap();
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| pair.on_green("BEGIN; LOCK TABLE customers; SELECT pg_sleep(600)"));
        let held = "SELECT count(*) FROM pg_locks WHERE relation = 'customers'::regclass \
                    AND mode = 'AccessExclusiveLock'";
        while pair.on_green(held).unwrap() != "1" {
            assert!(!holder.is_finished());
        }
        let limited = [
            "run",
            "--until-caught-up",
            "--timeout",
            "3s",
            "--shutdown-timeout",
            "1s",
        ];
        assert_eq!(pair.verb(&limited, 4).unwrap()["caught_up"], false);
        let mut running = pair
            .spawn(&["run", "--until-caught-up", "--shutdown-timeout", "1s"])
            .unwrap();
        running.wait_for("stream started", LIMIT).unwrap();
        running.sigint().unwrap();
        assert_eq!(running.wait_timeout(LIMIT).unwrap().code(), Some(130));
        pair.on_green(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE query LIKE '%pg_sleep(600)' AND pid <> pg_backend_pid()",
        )
        .unwrap();
        assert!(holder.join().unwrap().is_err());
    });
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    pair.assert_equal().unwrap();
}

#[test]
fn servers_that_are_away_or_refuse_the_login() {
    let mut pair = shop(17, 18);
    let mut running = following(&pair, &[]);
    // A restart of either server while the job runs is waited out.
    pair.green.stop(StopMode::Fast).unwrap();
    pair.green.start_again().unwrap();
    pair.on_blue("INSERT INTO customers VALUES (1001, 'one', NULL)")
        .unwrap();
    wait_for_green(&pair, &mut running, "SELECT count(*) FROM customers", "1001");
    pair.blue.stop(StopMode::Fast).unwrap();
    pair.blue.start_again().unwrap();
    pair.on_blue("INSERT INTO customers VALUES (1002, 'two', NULL)")
        .unwrap();
    wait_for_green(&pair, &mut running, "SELECT count(*) FROM customers", "1002");
    end(running);
    // At the start it is not waited for longer than asked.
    pair.green.stop(StopMode::Fast).unwrap();
    let away = pair.verb(&["run", "--connect-timeout", "8s"], 12).unwrap();
    assert!(!text(&away, "remedy").is_empty(), "{away}");
    let [source, target] = pair.urls();
    let nobody = source.replace("postgres@", "nobody@");
    let arguments = [
        "check",
        "--connect-timeout",
        "8s",
        "--source",
        &nobody,
        "--target",
        &target,
    ];
    let mut command = testbed::process::cdc_sync().unwrap();
    command.args(arguments);
    let ended = Process::run(command, LIMIT).unwrap();
    assert_eq!(ended.code(), Some(12), "{}", ended.stderr);
    assert!(ended.stderr.contains("nobody"), "{}", ended.stderr);
}

#[test]
fn a_slot_that_is_gone_is_not_passed_over() {
    let pair = shop_of_plain_roles(16, 16);
    let running = following(&pair, &[]);
    end(running);
    pair.on_blue("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        .unwrap();
    pair.on_blue("INSERT INTO customers VALUES (1001, 'unseen', NULL)")
        .unwrap();
    pair.verb(&["run", "--dry-run"], 9).unwrap();
    let lost = pair.verb(&["run", "--until-caught-up"], 9).unwrap();
    assert!(text(&lost, "remedy").contains("cleanup"), "{lost}");
    // A slot of the same name that begins later would pass over what was written in between.
    let slot = text(&lost, "object").rsplit(' ').next().unwrap().to_owned();
    pair.on_blue(&format!(
        "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
    ))
    .unwrap();
    pair.verb(&["run", "--until-caught-up", "--timeout", "30s"], 9)
        .unwrap();
    assert_eq!(pair.on_green("SELECT count(*) FROM customers").unwrap(), "1000");
}

#[test]
fn log_that_blue_may_not_retain_ends_the_seed() {
    let pair = shop(17, 17);
    // The budget is gone before the seed begins.
    let report = pair
        .verb(&["run", "--until-caught-up", "--max-retained-wal", "1B"], 4)
        .unwrap();
    assert!(text(&report, "remedy").contains("--max-retained-wal"), "{report}");
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    pair.assert_equal().unwrap();
}

#[test]
fn a_changed_table_stops_the_job_at_the_transaction_that_first_shows_it() {
    stops_at_a_changed_table(&shop(13, 18));
}

#[test]
fn a_changed_table_stops_the_job_of_plain_roles() {
    stops_at_a_changed_table(&shop_of_plain_roles(13, 18));
}

fn stops_at_a_changed_table(pair: &Pair) {
    end(following(pair, &[]));
    // Read in one go by the next run: what precedes the change is applied all the same.
    pair.on_blue("INSERT INTO customers VALUES (1001, 'before', NULL)")
        .unwrap();
    // Rows that were there have these values too, and nothing of it is in the log.
    pair.on_blue(
        "ALTER TABLE customers ADD COLUMN half int GENERATED ALWAYS AS (id / 2) STORED; \
         ALTER TABLE customers ADD COLUMN vip boolean, ADD COLUMN tier text COLLATE \"C\" NOT NULL DEFAULT 'it''s new'; \
         ALTER TABLE customers ALTER COLUMN tier SET DEFAULT 'later'",
    )
    .unwrap();
    pair.on_blue("INSERT INTO customers (id, name, vip) VALUES (1002, 'after', true)")
        .unwrap();
    let stopped = pair.verb(&["run", "--until-caught-up"], 13).unwrap();
    let object = text(&stopped, "object");
    assert!(object.starts_with("table public.customers, column "), "{stopped}");
    assert!(
        text(&stopped, "message").contains("at the transaction after 0/"),
        "{stopped}"
    );
    let remedy = text(&stopped, "remedy");
    let statements = remedy
        .split_once("ALTER TABLE")
        .and_then(|(_, rest)| rest.rsplit_once(" Then run again"));
    let (statements, _) = statements.unwrap_or_else(|| panic!("{stopped}"));
    let ids = "SELECT string_agg(id::text, ',') FROM customers WHERE id > 1000";
    assert_eq!(pair.on_green(ids).unwrap(), "1001");
    pair.on_green(&format!("ALTER TABLE{statements}")).unwrap();
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    pair.assert_equal().unwrap();
}
