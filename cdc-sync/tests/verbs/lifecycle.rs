//! A job from `check` to `cleanup`, and who may do what meanwhile.

use std::collections::BTreeSet;

use super::{end, following, shop, wait_for_green};

#[test]
fn a_job_from_check_to_cleanup() {
    let pair = shop(13, 17);
    let checked = pair.verb(&["check"], 0).unwrap();
    assert_eq!(checked["counts"]["fail"], 0, "{checked}");
    assert_eq!(checked["kind"], "check");
    let unknown = pair.verb(&["status"], 2).unwrap();
    assert!(
        unknown["error"]["remedy"]
            .as_str()
            .unwrap()
            .contains("cdc-sync run"),
        "{unknown}"
    );

    let running = following(&pair, &[]);
    let status = pair.verb(&["status"], 0).unwrap();
    assert_eq!(status["state"], "synced");
    assert_eq!(status["tables"]["live"], 2);
    assert!(status["slot"]["retained_bytes"].is_u64(), "{status}");
    let next = status["next_command"].as_str().unwrap();
    assert!(next.contains(&pair.urls()[0]), "{next}");
    assert!(status["lag"]["heartbeat_ms"].as_f64().unwrap() > 0.0, "{status}");

    // One instance at a time, and nothing is pulled from under it.
    let second = pair.verb(&["run", "--takeover-timeout", "1s"], 11).unwrap();
    assert!(
        second["error"]["message"].as_str().unwrap().contains("pid "),
        "{second}"
    );
    assert_eq!(pair.verb(&["cleanup"], 11).unwrap()["error"]["code"], "fenced");

    // What differs is found while the job runs, and what does not is not.
    assert_eq!(pair.verb(&["verify"], 0).unwrap()["differences"], 0);
    pair.on_green("UPDATE customers SET note = 'odd' WHERE id = 7; DELETE FROM orders WHERE id = 8")
        .unwrap();
    let differs = pair.verb(&["verify"], 5).unwrap();
    assert_eq!(differs["differences"], 2, "{differs}");
    pair.on_green("UPDATE customers SET note = NULL WHERE id = 7")
        .unwrap();
    let missing = pair.verb(&["verify", "--exclude", "customers"], 5).unwrap();
    assert_eq!(missing["tables"][0]["missing"], 1, "{missing}");
    pair.on_green("INSERT INTO orders SELECT 8, 9, 0.08").unwrap();

    let ended = end(running);
    assert_eq!(ended["seed"]["rows"], 6000, "{ended}");
    assert_eq!(
        pair.verb(&["status", "--gate", "running"], 4).unwrap()["state"],
        "stopped"
    );

    pair.on_blue("INSERT INTO orders (customer, total) VALUES (1, 1)")
        .unwrap();
    let drained = pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    assert_eq!(drained["caught_up"], true, "{drained}");
    assert_eq!(drained["sequences"][0]["after"], 5001 + 1000, "{drained}");
    pair.assert_equal().unwrap();

    let planned = pair.verb(&["cleanup", "--dry-run"], 0).unwrap();
    let cleaned = pair.verb(&["cleanup"], 0).unwrap();
    assert_eq!(planned["source"]["dropped"], cleaned["source"]["dropped"]);
    assert!(!cleaned["source"]["dropped"].as_array().unwrap().is_empty());
    assert_eq!(pair.verb(&["cleanup"], 0).unwrap()["nothing_to_do"], true);
    pair.verb(&["status"], 2).unwrap();
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication) \
                + (SELECT count(*) FROM pg_namespace WHERE nspname = 'cdc_sync')";
    assert_eq!(pair.on_blue(left).unwrap(), "0");
    assert_eq!(pair.on_green(left).unwrap(), "0");
    assert_eq!(pair.on_green("SELECT count(*) FROM orders").unwrap(), "5001");
}

/// Killed while green's schema is created, before there is a checkpoint: the next run completes the schema.
#[test]
fn a_kill_while_the_schema_is_created() {
    let pair = shop(14, 18);
    let objects = "SELECT string_agg(name, ',' ORDER BY name) FROM (
        SELECT conname::text || ' ' || convalidated AS name FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
        UNION ALL SELECT indexname::text FROM pg_indexes WHERE schemaname = 'public') o";
    let mut seen = BTreeSet::new();
    for moment in ["schema created", "building indexes", "stream started"] {
        let mut running = pair.spawn(&["run"]).unwrap();
        running.wait_for(moment, testbed::pair::LIMIT).unwrap();
        running.kill9().unwrap();
        seen.insert(
            pair.on_green("SELECT to_regclass('orders_by_customer') IS NULL")
                .unwrap(),
        );
    }
    assert!(seen.contains("t"), "no kill came before the indexes");
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    assert_eq!(pair.on_green(objects).unwrap(), pair.on_blue(objects).unwrap());
    pair.assert_equal().unwrap();
}

#[test]
fn tables_that_are_not_selected_stay_out() {
    let pair = shop(15, 16);
    pair.on_blue("CREATE TABLE audit (id int PRIMARY KEY); INSERT INTO audit VALUES (1)")
        .unwrap();
    let mut running = following(&pair, &["--exclude", "aud*"]);
    pair.on_blue("INSERT INTO audit VALUES (2); INSERT INTO customers VALUES (1001, 'new', NULL)")
        .unwrap();
    wait_for_green(&pair, &mut running, "SELECT count(*) FROM customers", "1001");
    end(running);
    assert_eq!(pair.on_green("SELECT to_regclass('audit') IS NULL").unwrap(), "t");
}

/// A trigger that comes with the last part of the schema is known to the session that is running by then.
#[test]
fn a_trigger_that_must_see_every_change_sees_every_change() {
    let pair = shop(16, 18);
    pair.on_blue(
        "CREATE SEQUENCE fired;
         CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM nextval('public.fired'); RETURN NULL; END $$;
         CREATE TRIGGER fire AFTER UPDATE ON customers FOR EACH ROW EXECUTE FUNCTION fire();
         ALTER TABLE customers ENABLE ALWAYS TRIGGER fire",
    )
    .unwrap();
    let mut running = following(&pair, &[]);
    pair.on_blue(
        "BEGIN; UPDATE customers SET note = 'a' WHERE id = 1; UPDATE customers SET note = 'b' WHERE id = 1; \
         UPDATE customers SET note = 'c' WHERE id = 1; COMMIT",
    )
    .unwrap();
    let note = "SELECT note FROM customers WHERE id = 1";
    wait_for_green(&pair, &mut running, note, "c");
    assert_eq!(pair.on_green("SELECT last_value FROM fired").unwrap(), "3");
    end(running);
}

/// The server makes a slot only when what writes already has ended; meanwhile the run says for whom it waits.
#[test]
fn who_keeps_the_slot_from_being_made_is_named() {
    let blue = testbed::PgCluster::builder(14).setting("max_prepared_transactions", "1");
    let green = testbed::PgCluster::builder(18).start().unwrap();
    let pair = testbed::Pair::of(blue.start().unwrap(), green);
    for side in [&pair.blue, &pair.green] {
        side.create_database(testbed::Pair::DATABASE).unwrap();
    }
    pair.on_blue("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let open = runtime
        .block_on(testbed::postgres::connect(&pair.urls()[0]))
        .unwrap();
    let run = |sql: &str| runtime.block_on(open.batch_execute(sql)).unwrap();
    run("SET application_name = 'forgotten'; BEGIN; INSERT INTO t VALUES (1)");
    let pid: i32 = runtime
        .block_on(open.query_one("SELECT pg_backend_pid()", &[]))
        .unwrap()
        .get(0);
    let mut running = pair.spawn(&["run", "--until-caught-up"]).unwrap();
    for said in [format!("process {pid}"), "forgotten".to_owned()] {
        running.wait_for(&said, testbed::pair::LIMIT).unwrap();
    }
    run("PREPARE TRANSACTION 'left'");
    running
        .wait_for("a prepared transaction", testbed::pair::LIMIT)
        .unwrap();
    run("COMMIT PREPARED 'left'");
    let ended = running.wait_timeout(testbed::pair::LIMIT).unwrap();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    pair.assert_equal().unwrap();
}
