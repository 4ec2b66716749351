//! `conflicts`: what a policy put aside, listed, applied and given up; and which policies are refused.

use std::time::Instant;

use serde_json::Value;
use testbed::pair::LIMIT;
use testbed::{Pair, Process};

use super::{end, following, shop};

const ACCOUNTS: &str = "CREATE TABLE accounts (id int PRIMARY KEY, name text UNIQUE, tag char(4), ok boolean,
        at timestamptz, amount numeric(10,2), bytes bytea, list text[],
        twice int GENERATED ALWAYS AS (id * 2) STORED, number int GENERATED ALWAYS AS IDENTITY);
    INSERT INTO accounts (id, name, tag, ok, at, amount, bytes, list)
        SELECT n, 'n' || n, 'x', true, '2026-01-01 00:00:00+00', n, 'b', '{a,NULL,\"b c\"}' FROM generate_series(1, 9) n";

/// A job whose stream runs, with accounts beside the shop.
fn job(old: u16, new: u16) -> (Pair, Process) {
    let pair = shop(old, new);
    pair.on_blue(ACCOUNTS).unwrap();
    let running = following(&pair, &[]);
    (pair, running)
}

/// A row of `accounts` as the log has it, every value as its type's output function writes it.
fn logged(pair: &Pair, id: u32) -> String {
    let columns = "ARRAY['id', 'name', 'tag', 'ok', 'at', 'amount', 'bytes', 'list', 'twice', 'number']";
    pair.on_green(&format!(
        "SET TimeZone = 'UTC'; SELECT jsonb_object({columns}, ARRAY[format('%s', id), name, format('%s', tag), format('%s', ok), \
         format('%s', at), format('%s', amount), format('%s', bytes), format('%s', list), format('%s', twice), \
         format('%s', number)]) FROM accounts WHERE id = {id}"
    ))
    .unwrap()
}

/// Logs a conflict of the job as the sink does; its number. `what` is operation and kind.
fn log(pair: &Pair, table: &str, what: [&str; 2], key: &str, blue: &str, green: Option<&str>) -> String {
    let [op, kind] = what;
    let text = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let green = green.map_or("NULL".to_owned(), text);
    let (winner, state, policy) = match kind {
        "update_origin_differs" => ("green", "settled", "lww"),
        _ => ("none", "open", "dead_letter"),
    };
    pair.on_green(&format!(
        "WITH made AS (INSERT INTO cdc_sync.conflict_log (stream, position, schema_name, table_name, key, op, kind, \
         policy, winner, blue, green, state) SELECT stream, '0/1', 'public', '{table}', {}, '{op}', '{kind}', \
         '{policy}', '{winner}', {}, {green}, '{state}' FROM cdc_sync.stream RETURNING id) SELECT id FROM made",
        text(key),
        text(blue),
    ))
    .unwrap()
}

fn account(pair: &Pair, id: u32) -> String {
    pair.on_green(&format!(
        "SELECT concat_ws(',', name, tag, ok, amount, list, twice, number) FROM accounts WHERE id = {id}"
    ))
    .unwrap()
}

fn state(pair: &Pair, id: &str) -> String {
    pair.on_green(&format!(
        "SELECT state FROM cdc_sync.conflict_log WHERE id = {id}"
    ))
    .unwrap()
}

/// What became of each number.
fn outcomes(report: &Value) -> Vec<&str> {
    let outcomes = report["conflicts"].as_array().unwrap().iter();
    outcomes
        .map(|one| one["outcome"].as_str().unwrap_or_default())
        .collect()
}

const UPDATE: [&str; 2] = ["update", "update_missing"];
const INSERT: [&str; 2] = ["insert", "insert_exists"];
const DELETE: [&str; 2] = ["delete", "delete_missing"];

#[test]
fn what_was_put_aside_is_listed_applied_and_given_up() {
    let (pair, running) = job(15, 18);
    assert_eq!(
        pair.verb(&["conflicts", "list"], 0).unwrap()["conflicts"],
        Value::Array(vec![])
    );
    // One row after the other, as the stream met it: nothing there, then still nothing there.
    let whole = r#"{"id": "100", "name": "new", "tag": "t   ", "ok": "t", "at": "2026-02-03 04:05:06+00",
        "amount": "1.50", "bytes": "\\x00ff", "list": "{NULL,\"a \\\" b\"}", "twice": "7", "number": "4711"}"#;
    let first = log(&pair, "accounts", UPDATE, r#"{"id": "100"}"#, whole, None);
    let part = r#"{"id": "100", "ok": "f", "name": null}"#;
    let second = log(&pair, "accounts", UPDATE, r#"{"id": "100"}"#, part, None);
    let over = r#"{"id": "2", "name": "blue", "tag": "b", "ok": "f", "at": null, "amount": "9", "bytes": null, "list": "{}",
        "number": "2"}"#;
    let third = log(
        &pair,
        "accounts",
        INSERT,
        r#"{"id": "2"}"#,
        over,
        Some(&logged(&pair, 2)),
    );
    let gone = log(
        &pair,
        "accounts",
        DELETE,
        r#"{"id": "77"}"#,
        r#"{"id": "77"}"#,
        None,
    );
    // Foreign keys and triggers are the source's business.
    let orphan = r#"{"id": "90000", "customer": "90000", "total": "1.00"}"#;
    let child = log(&pair, "orders", INSERT, r#"{"id": "90000"}"#, orphan, None);
    let settled = log(
        &pair,
        "accounts",
        ["update", "update_origin_differs"],
        r#"{"id": "3"}"#,
        "{}",
        None,
    );

    let listed = pair.verb(&["conflicts", "list", "--limit", "2"], 0).unwrap();
    assert_eq!(listed["kind"], "conflicts");
    let ids: Vec<String> = listed["conflicts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["id"].to_string())
        .collect();
    assert_eq!(ids, [settled.clone(), child.clone()], "{listed}");
    let open = pair.verb(&["conflicts", "list", "--open"], 0).unwrap();
    assert_eq!(open["conflicts"].as_array().unwrap().len(), 5, "{open}");
    let one = &open["conflicts"][2];
    let time = one["time"].as_str().unwrap();
    assert!(time.len() == 27 && time.ends_with('Z'), "{time}");
    assert_eq!(one["key"]["id"], "2", "{one}");
    for (key, value) in [
        ("table", "public.accounts"),
        ("kind", "insert_exists"),
        ("policy", "dead_letter"),
        ("winner", "none"),
        ("position", "0/1"),
        ("op", "insert"),
        ("state", "open"),
    ] {
        assert_eq!(one[key], value, "{one}");
    }
    let shown = pair.verb(&["conflicts", "show", &third], 0).unwrap();
    let shown = &shown["conflicts"][0];
    assert_eq!(
        (&shown["blue"]["name"], &shown["green"]["name"]),
        (&"blue".into(), &"n2".into())
    );
    assert!(
        shown["differs"].as_array().unwrap().contains(&"name".into()),
        "{shown}"
    );
    assert!(
        !shown["differs"].as_array().unwrap().contains(&"id".into()),
        "{shown}"
    );

    let status = pair.verb(&["status"], 0).unwrap();
    assert_eq!(status["conflicts"]["update_missing"], 2, "{status}");
    assert_eq!(status["open_conflicts"], 5, "{status}");
    let next = status["next_command"].as_str().unwrap();
    assert!(next.starts_with("cdc-sync conflicts list --open "), "{next}");

    // Nothing is decided unasked.
    let [source, target] = pair.urls();
    for verb in ["retry", "discard"] {
        let mut command = testbed::process::cdc_sync().unwrap();
        command.args(["conflicts", verb, "--all", "--non-interactive", "--json"]);
        command.args(["--source", &source, "--target", &target]);
        let ended = Process::run(command, LIMIT).unwrap();
        assert_eq!(ended.code(), Some(2), "{}", ended.stdout);
        assert!(ended.stdout.contains("--yes"), "{}", ended.stdout);
        assert_eq!(state(&pair, &first), "open");
    }

    // A dry run does nothing; the real one goes from the oldest on.
    let planned = pair
        .verb(&["conflicts", "retry", "--all", "--dry-run"], 0)
        .unwrap();
    assert_eq!(planned["conflicts"].as_array().unwrap().len(), 5, "{planned}");
    assert_eq!(state(&pair, &first), "open");
    pair.verb(&["conflicts", "discard", &gone], 0).unwrap();
    let retried = pair.verb(&["conflicts", "retry", "--all"], 0).unwrap();
    assert_eq!(outcomes(&retried), ["retried"; 4], "{retried}");
    assert_eq!(account(&pair, 100), "t   ,f,1.50,{NULL,\"a \\\" b\"},200,4711");
    let bytes = "SELECT encode(bytes, 'hex') || at FROM accounts WHERE id = 100";
    assert_eq!(
        pair.on_green(&format!("SET TimeZone = 'UTC'; {bytes}")).unwrap(),
        "00ff2026-02-03 04:05:06+00"
    );
    assert_eq!(account(&pair, 2), "blue,b   ,f,9.00,{},4,2");
    assert_eq!(
        pair.on_green("SELECT total FROM orders WHERE id = 90000")
            .unwrap(),
        "1.00"
    );
    for (id, wanted) in [
        (&first, "retried"),
        (&second, "retried"),
        (&gone, "discarded"),
        (&settled, "settled"),
    ] {
        assert_eq!(state(&pair, id), wanted);
    }

    // What is decided is decided, and nothing else is this job's.
    for verb in ["retry", "discard"] {
        for (id, part) in [
            (&first, "retried"),
            (&gone, "discarded"),
            (&settled, "settled"),
            (&"999".to_owned(), "no conflict"),
        ] {
            let refused = pair.verb(&["conflicts", verb, id], 2).unwrap();
            let message = refused["error"]["message"].as_str().unwrap();
            assert!(message.contains(part), "{refused}");
            assert_eq!(refused["error"]["object"], format!("conflict {id}"));
            assert_eq!(outcomes(&refused), ["refused"]);
        }
    }
    let foreign = log(&pair, "accounts", DELETE, r#"{"id": "78"}"#, "{}", None);
    pair.on_green(&format!(
        "UPDATE cdc_sync.conflict_log SET stream = 'other' WHERE id = {foreign}"
    ))
    .unwrap();
    for verb in ["show", "retry", "discard"] {
        pair.verb(&["conflicts", verb, &foreign], 2).unwrap();
    }
    assert_eq!(
        pair.verb(&["conflicts", "retry", "--all"], 0).unwrap()["conflicts"],
        Value::Array(vec![])
    );
    end(running);
}

/// What came to the target after a change was put aside is not overwritten by it.
#[test]
fn a_row_that_is_not_as_it_was_refuses_the_change_and_not_the_others() {
    let (pair, running) = job(13, 16);
    let blue = r#"{"id": "4", "name": "old"}"#;
    let was = logged(&pair, 4);
    let changed = log(
        &pair,
        "accounts",
        ["update", "update_exists"],
        r#"{"id": "4"}"#,
        blue,
        Some(&was),
    );
    let come = log(&pair, "accounts", DELETE, r#"{"id": "50"}"#, "{}", None);
    let left = log(
        &pair,
        "accounts",
        ["delete", "delete_origin_differs"],
        r#"{"id": "5"}"#,
        "{}",
        Some(&logged(&pair, 5)),
    );
    let whole = r#"{"id": "60", "name": "n1", "tag": null, "ok": null, "at": null, "amount": null, "bytes": null, "list": null,
        "number": "60"}"#;
    let in_the_way = Some(logged(&pair, 1));
    let taken = log(
        &pair,
        "accounts",
        INSERT,
        r#"{"id": "60"}"#,
        whole,
        in_the_way.as_deref(),
    );
    let lacking = log(
        &pair,
        "accounts",
        UPDATE,
        r#"{"id": "61"}"#,
        r#"{"id": "61", "name": "m"}"#,
        None,
    );
    let fits = log(
        &pair,
        "accounts",
        ["delete", "delete_origin_differs"],
        r#"{"id": "6"}"#,
        "{}",
        Some(&logged(&pair, 6)),
    );
    let wrong = log(
        &pair,
        "accounts",
        UPDATE,
        r#"{"id": "7"}"#,
        r#"{"id": "7", "amount": "secret"}"#,
        Some(&logged(&pair, 7)),
    );
    pair.on_green(
        "UPDATE accounts SET amount = 100 WHERE id = 4; INSERT INTO accounts (id, name) VALUES (50, 'm50'); \
         DELETE FROM accounts WHERE id = 5",
    )
    .unwrap();
    let retried = pair
        .verb(
            &[
                "conflicts",
                "retry",
                "9999",
                &changed,
                &come,
                &left,
                &taken,
                &lacking,
                &fits,
                &wrong,
            ],
            8,
        )
        .unwrap();
    let mut wanted = ["refused"; 8];
    wanted[6] = "retried";
    assert_eq!(outcomes(&retried), wanted, "{retried}");
    let message = |place: usize| retried["conflicts"][place]["error"]["message"].as_str().unwrap();
    for (place, part) in [
        (0, "no conflict of this number"),
        (1, "the row has changed"),
        (2, "the row has come"),
        (3, "the row has gone"),
        (4, "accounts_name_key"),
        (5, "not tag, ok"),
        (7, "numeric"),
    ] {
        assert!(
            message(place).contains(part),
            "{part} is not in {}",
            message(place)
        );
    }
    assert!(!message(7).contains("secret"), "{}", message(7));
    assert_eq!(
        retried["conflicts"][1]["error"]["object"],
        format!("conflict {changed} on public.accounts (id=4)")
    );
    for id in [&changed, &come, &left, &taken, &lacking, &wrong] {
        assert_eq!(state(&pair, id), "open");
    }
    let rows = "SELECT string_agg(id || ':' || coalesce(amount::text, '-'), ',' ORDER BY id) FROM accounts WHERE id > 3";
    assert_eq!(pair.on_green(rows).unwrap(), "4:100.00,7:7.00,8:8.00,9:9.00,50:-");
    // Mended: what is in the way has gone, and the row is as it was.
    pair.on_green("DELETE FROM accounts WHERE id = 1; UPDATE accounts SET amount = 4 WHERE id = 4")
        .unwrap();
    pair.verb(&["conflicts", "retry", &taken, &changed], 0).unwrap();
    assert_eq!(account(&pair, 60), "n1,120,60");
    assert!(account(&pair, 4).starts_with("old,"));
    end(running);
}

/// Changes of one row are retried in the order in which they were put aside, also where one of them moves the row or was in
/// another row's way; and they carry the job's origin.
#[test]
fn changes_of_one_row_wait_in_line_and_carry_the_origin() {
    let (pair, running) = job(12, 15);
    let moves = log(
        &pair,
        "accounts",
        ["update", "update_exists"],
        r#"{"id": "4"}"#,
        r#"{"id": "40", "name": "moved"}"#,
        Some(&logged(&pair, 4)),
    );
    let moved = log(
        &pair,
        "accounts",
        UPDATE,
        r#"{"id": "40"}"#,
        r#"{"id": "40", "amount": "41"}"#,
        None,
    );
    let whole = r#"{"id": "60", "name": "n1", "tag": null, "ok": null, "at": null, "amount": null, "bytes": null, "list": null,
        "number": "60"}"#;
    let in_the_way = logged(&pair, 1);
    let taken = log(
        &pair,
        "accounts",
        INSERT,
        r#"{"id": "60"}"#,
        whole,
        Some(&in_the_way),
    );
    let after = log(
        &pair,
        "accounts",
        UPDATE,
        r#"{"id": "60"}"#,
        r#"{"id": "60", "amount": "61"}"#,
        None,
    );
    pair.on_green(
        "DELETE FROM accounts WHERE id = 1; CREATE PUBLICATION probe FOR TABLE accounts; \
         SELECT pg_create_logical_replication_slot('probe', 'pgoutput')",
    )
    .unwrap();

    for (late, first) in [(&moved, &moves), (&after, &taken)] {
        let refused = pair.verb(&["conflicts", "retry", late], 8).unwrap();
        let error = &refused["conflicts"][0]["error"];
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .starts_with(&format!("conflict {first} ")),
            "{refused}"
        );
        assert!(
            error["remedy"]
                .as_str()
                .unwrap()
                .contains(&format!("conflicts retry {first}")),
            "{refused}"
        );
    }
    pair.verb(&["conflicts", "retry", "--all"], 0).unwrap();
    assert_eq!(account(&pair, 40), "moved,x   ,t,41.00,{a,NULL,\"b c\"},80,4");
    assert_eq!(account(&pair, 60), "n1,61.00,120,60");
    assert_eq!(
        pair.on_green("SELECT count(*) FROM accounts WHERE id = 4")
            .unwrap(),
        "0"
    );

    // Message type, and the name behind an LSN ("Logical Replication Message Formats").
    let sent = "WITH sent AS (SELECT chr(get_byte(data, 0)) AS kind, \
                    encode(substring(data FROM 10 FOR length(data) - 10), 'escape') AS name \
                    FROM pg_logical_slot_peek_binary_changes('probe', NULL, NULL, 'proto_version', '1', \
                    'publication_names', 'probe')) \
                SELECT count(*) FILTER (WHERE kind IN ('I', 'U')) || ' ' || count(*) FILTER (WHERE kind = 'O' \
                    AND name = (SELECT 'cdc_sync_' || d.oid || '+retry/' || source_system || '/' || stream || '/' \
                    || source_database FROM cdc_sync.checkpoint, pg_database d WHERE d.datname = current_database())) \
                FROM sent";
    assert_eq!(pair.on_green(sent).unwrap(), "4 4");
    pair.on_green("SELECT pg_drop_replication_slot('probe')").unwrap();
    end(running);
    pair.verb(&["cleanup"], 0).unwrap();
    let left = "SELECT count(*) FROM pg_replication_origin";
    assert_eq!(pair.on_green(left).unwrap(), "0");
}

/// A retry that meets a newer change of the row in mid-transaction waits for it, and then sees it.
#[test]
fn a_newer_change_under_way_is_waited_for() {
    let (pair, running) = job(14, 17);
    let blue = r#"{"id": "4", "name": "old"}"#;
    let aside = log(
        &pair,
        "accounts",
        ["update", "update_exists"],
        r#"{"id": "4"}"#,
        blue,
        Some(&logged(&pair, 4)),
    );
    let url = &pair.urls()[1];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let newer = runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
            .batch_execute("BEGIN; UPDATE accounts SET name = 'newer' WHERE id = 4")
            .await
            .unwrap();
        client
    });
    let mut retry = pair.spawn(&["conflicts", "retry", &aside]).unwrap();
    let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted \
                   AND a.datname = current_database() AND a.query LIKE '%accounts%' AND a.pid <> pg_backend_pid()";
    let deadline = Instant::now() + LIMIT;
    while pair.on_green(waiting).unwrap() == "0" {
        assert!(
            retry.is_running() && Instant::now() < deadline,
            "{}",
            retry.stdout()
        );
    }
    runtime.block_on(newer.batch_execute("COMMIT")).unwrap();
    let ended = retry.wait_timeout(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(8), "{}", ended.stdout);
    assert_eq!(
        pair.on_green("SELECT name FROM accounts WHERE id = 4").unwrap(),
        "newer"
    );
    end(running);
}

#[test]
fn a_policy_whose_need_is_unmet_is_refused() {
    let pair = shop(16, 17);
    pair.on_blue(
        "CREATE TABLE loose (id int); ALTER TABLE loose REPLICA IDENTITY FULL; ALTER TABLE customers ADD doc json",
    )
    .unwrap();
    for verb in ["list", "retry"] {
        let deed = [
            &["conflicts", verb][..],
            if verb == "retry" { &["1"] } else { &[] },
        ]
        .concat();
        let unknown = pair.verb(&deed, 2).unwrap();
        assert!(
            unknown["error"]["message"]
                .as_str()
                .unwrap()
                .contains("no such job"),
            "{unknown}"
        );
    }
    let checked = |policy: &str, code: i32| -> Vec<String> {
        let report = pair.verb(&["check", "--conflict", policy], code).unwrap();
        let findings = report["findings"].as_array().unwrap().iter();
        let about = findings.filter(|finding| finding["id"].as_str().unwrap().starts_with("POLICY"));
        about
            .map(|finding| {
                format!(
                    "{} {} {}",
                    finding["id"].as_str().unwrap(),
                    finding["severity"].as_str().unwrap(),
                    finding["object"].as_str().unwrap()
                )
            })
            .collect()
    };
    assert_eq!(checked("loose=blue_wins", 3), ["POLICY-KEY fail public.loose"]);
    assert_eq!(checked("orders=blue_wins", 0), Vec::<String>::new());
    assert_eq!(
        checked("customers=lww:ts", 3),
        [
            "POLICY-VERSION fail public.customers.ts",
            "POLICY-VERSION fail public.customers.ts",
            "POLICY-DELETES warn public.customers",
            "POLICY-LARGE-VALUES warn public.customers"
        ]
    );
    let refused = pair.verb(&["run", "--conflict", "customers=lww:ts"], 3).unwrap();
    assert_eq!(refused["findings"][0]["id"], "POLICY-VERSION", "{refused}");
    for verb in ["run", "check"] {
        let unmatched = pair.verb(&[verb, "--conflict", "custmers=blue_wins"], 2).unwrap();
        assert_eq!(unmatched["error"]["object"], "custmers = blue_wins");
    }
    assert_eq!(
        pair.on_green("SELECT count(*) FROM pg_namespace WHERE nspname = 'cdc_sync'")
            .unwrap(),
        "0"
    );
    // The flag comes before the file, and the log tells what holds.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.toml");
    std::fs::write(
        &file,
        "[[tables.rule]]\nmatch = \"*\"\nconflict = \"green_wins\"\n[tables]\nexclude = [\"loose\"]\n",
    )
    .unwrap();
    let file = file.to_string_lossy();
    let more = ["-c", &file, "--conflict", "orders=dead_letter"];
    let running = following(&pair, &more);
    let log = running.stderr();
    for part in [
        "table=public.orders policy=\"dead_letter\"",
        "table=public.customers policy=\"green_wins\"",
    ] {
        assert!(log.contains(part), "{part} is not in {log}");
    }
    end(running);
    // With the target's tables there, a column's type is known.
    assert_eq!(
        pair.verb(&["check", "-c", &file, "--conflict", "customers=lww:doc"], 3)
            .unwrap()["findings"][0]["message"],
        "policy lww compares this column, and its type json has no order"
    );
}

#[test]
fn a_selection_holds_for_what_is_listed_and_decided() {
    let (pair, running) = job(15, 16);
    end(running);
    let of_accounts = log(
        &pair,
        "accounts",
        UPDATE,
        r#"{"id": "20"}"#,
        r#"{"id": "20"}"#,
        None,
    );
    let of_orders = log(
        &pair,
        "orders",
        UPDATE,
        r#"{"id": "30"}"#,
        r#"{"id": "30"}"#,
        None,
    );
    let listed = pair
        .verb(&["conflicts", "list", "--table", "public.orders"], 0)
        .unwrap();
    let ids: Vec<String> = listed["conflicts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["id"].to_string())
        .collect();
    assert_eq!(ids, [of_orders.as_str()]);
    let discard = ["conflicts", "discard", "--all", "--table", "public.orders"];
    let planned = pair.verb(&[&discard[..], &["--dry-run"]].concat(), 0).unwrap();
    assert_eq!(outcomes(&planned), ["discarded"]);
    pair.verb(&discard, 0).unwrap();
    assert_eq!(state(&pair, &of_orders), "discarded");
    assert_eq!(state(&pair, &of_accounts), "open");
    // There is no such row: what is refused is that of the selected table alone.
    let retried = pair
        .verb(&["conflicts", "retry", "--all", "--exclude", "public.orders"], 8)
        .unwrap();
    assert_eq!(outcomes(&retried), ["refused"]);
}
