//! What keeps tables that are set aside from coming back does not keep the others from being followed.

use testbed::Pair;
use testbed::pair::LIMIT;

use super::{TABLES, assert_whole, end, following, until_caught_up, wait};

/// Green refuses rows of `again` that blue has.
const REFUSE: &str = "ALTER TABLE again ADD CONSTRAINT small CHECK (id < 50) NOT VALID";

fn green_is(pair: &Pair, question: &str, answer: &str) -> bool {
    pair.on_green(question).expect("green answers") == answer
}

fn resync(pair: &Pair, table: &str, code: i32) -> serde_json::Value {
    pair.verb(&["resync", "--table", table], code).expect("resync")
}

/// A job whose table `again` was asked for and is refused by green.
fn refused(pair: &Pair) {
    pair.on_blue(TABLES).expect("blue has tables");
    until_caught_up(pair, &[]);
    pair.on_green(REFUSE).expect("green refuses");
}

#[test]
fn the_others_are_followed_while_green_refuses_a_copy() {
    let pair = Pair::start(12, 18).expect("two servers");
    refused(&pair);
    let mut running = following(&pair, &[]);
    let asked = resync(&pair, "public.again", 13);
    let message = asked["error"]["message"].as_str().expect("a message");
    assert!(message.contains("small"), "{asked}");
    let remedy = asked["error"]["remedy"].as_str().expect("a remedy");
    assert!(remedy.contains("The other tables are followed"), "{asked}");

    pair.on_blue("UPDATE kept SET note = 'followed'")
        .expect("blue writes");
    let followed = || green_is(&pair, "SELECT count(*) FROM kept WHERE note = 'followed'", "100");
    wait("the other table", &mut [&mut running], followed);
    let status = pair.verb(&["status"], 0).expect("status");
    assert_eq!(status["setback"]["code"], "data", "{status}");
    let said = status["setback"].to_string();
    assert!(said.contains("small") && said.contains("remedy"), "{status}");
    assert_eq!(status["gates"]["ready"], false, "{status}");

    // Its cause is mended while the job runs.
    pair.on_green("ALTER TABLE again DROP CONSTRAINT small")
        .expect("green takes all");
    let back = || {
        green_is(
            &pair,
            "SELECT count(*) FROM cdc_sync.seed WHERE phase <> 'live'",
            "0",
        )
    };
    wait("the table", &mut [&mut running], back);
    let over = || pair.verb(&["status"], 0).expect("status")["setback"].is_null();
    wait("the status", &mut [&mut running], over);
    assert_eq!(
        running.stderr().matches("do not come back").count(),
        1,
        "{}",
        running.stderr()
    );
    running.sigterm().expect("the signal arrives");
    end(running, 0);
    let run = until_caught_up(&pair, &[]);
    assert_whole(&pair, &run);
}

#[test]
fn a_run_until_caught_up_ends_with_what_green_refuses() {
    let pair = Pair::start(13, 17).expect("two servers");
    refused(&pair);
    resync(&pair, "public.again", 0);
    pair.on_blue("UPDATE kept SET note = 'followed'")
        .expect("blue writes");
    for attempt in 0..2 {
        let ended = pair.verb(&["run", "--until-caught-up"], 13).expect("run");
        assert!(ended["error"].to_string().contains("small"), "{attempt}: {ended}");
        assert_eq!(ended["caught_up"], false, "{attempt}: {ended}");
    }
    assert!(green_is(
        &pair,
        "SELECT count(*) FROM kept WHERE note = 'followed'",
        "100"
    ));
    let again = resync(&pair, "public.again", 0);
    assert!(again["setback"].to_string().contains("small"), "{again}");
    pair.on_green("ALTER TABLE again DROP CONSTRAINT small")
        .expect("green takes all");
    let run = until_caught_up(&pair, &[]);
    assert_whole(&pair, &run);
}

#[test]
fn what_blue_retains_for_a_refused_copy_is_limited() {
    let pair = Pair::start(16, 18).expect("two servers");
    refused(&pair);
    resync(&pair, "public.again", 0);
    let limited = ["run", "--until-caught-up", "--max-retained-wal", "1MB"];
    pair.verb(&limited, 13).expect("run");
    let slots = || {
        pair.on_blue("SELECT count(*) FROM pg_replication_slots")
            .expect("blue answers")
    };
    assert_eq!(slots(), "2", "the copy goes on where it stands");
    pair.on_blue("INSERT INTO kept SELECT g, repeat('x', 1000) FROM generate_series(1000, 4000) g")
        .expect("blue writes");
    pair.verb(&limited, 4).expect("run");
    assert_eq!(slots(), "1", "the copy is given up");
    pair.on_green("ALTER TABLE again DROP CONSTRAINT small")
        .expect("green takes all");
    let run = pair.verb(&limited, 0).expect("run");
    assert_whole(&pair, &run);
}

/// Drops the slot of the stream beside: its name begins with that of the job's.
fn lose_slot(pair: &Pair) {
    let dropped = pair.on_blue(
        "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots \
         WHERE slot_name <> (SELECT min(slot_name) FROM pg_replication_slots)",
    );
    assert_eq!(dropped.expect("blue drops a slot"), "1");
}

#[test]
fn a_stream_beside_that_has_lost_its_slot_begins_anew() {
    let pair = Pair::start(14, 18).expect("two servers");
    refused(&pair);
    resync(&pair, "public.again", 0);
    pair.verb(&["run", "--until-caught-up"], 13).expect("run");
    lose_slot(&pair);
    pair.on_green("ALTER TABLE again DROP CONSTRAINT small")
        .expect("green takes all");
    let run = until_caught_up(&pair, &[]);
    assert_whole(&pair, &run);

    // A table that the copy creates still lacks what comes after the data.
    pair.on_blue(
        "CREATE TABLE fresh (id int PRIMARY KEY, kept int REFERENCES kept); CREATE INDEX ON fresh (kept); \
         INSERT INTO fresh SELECT g, g FROM generate_series(1, 100) g",
    )
    .expect("blue gets a table");
    pair.on_green(
        "CREATE SCHEMA testing; CREATE FUNCTION testing.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN \
             ALTER TABLE public.fresh ADD CONSTRAINT small CHECK (id < 50); END $$; \
         CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION testing.refuse()",
    )
    .expect("green will refuse");
    resync(&pair, "public.fresh", 0);
    pair.verb(&["run", "--until-caught-up"], 13).expect("run");
    lose_slot(&pair);
    pair.on_green(
        "DROP EVENT TRIGGER refuse; DROP SCHEMA testing CASCADE; ALTER TABLE fresh DROP CONSTRAINT small",
    )
    .expect("green takes all");
    let run = until_caught_up(&pair, &[]);
    assert_whole(&pair, &run);
    let made = "SELECT (SELECT count(*) FROM pg_indexes WHERE tablename = 'fresh') || ' ' || \
                (SELECT count(*) FROM pg_constraint WHERE conrelid = 'fresh'::regclass AND contype = 'f')";
    assert!(green_is(&pair, made, "2 1"), "indexes and foreign keys");
}

/// Two tables that a third one may be given back with.
fn related(pair: &mut Pair) {
    pair.on_blue(
        "CREATE TABLE acc (id int PRIMARY KEY, note text); \
         CREATE TABLE ev (id int PRIMARY KEY, acc int REFERENCES acc); \
         CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1); \
         INSERT INTO acc SELECT g, 'old' FROM generate_series(1, 300) g; \
         INSERT INTO ev SELECT g, g % 300 + 1 FROM generate_series(1, 900) g",
    )
    .expect("blue has tables");
    pair.use_plain_roles().expect("roles");
    pair.on_blue("ALTER ROLE cdc_source SUPERUSER")
        .expect("blue's role may publish tables of others");
    until_caught_up(pair, &[]);
    pair.on_green("UPDATE acc SET note = 'spoilt'; DELETE FROM ev WHERE id % 3 = 0")
        .expect("green is spoilt");
}

#[test]
fn what_refers_to_a_table_is_named_where_foreign_keys_are_checked() {
    let mut pair = Pair::start(14, 14).expect("two servers");
    related(&mut pair);
    let refused = resync(&pair, "public.acc", 3);
    let remedy = refused["error"]["remedy"].as_str().expect("a remedy");
    assert!(
        remedy.contains("cdc-sync resync --table 'public.acc' --table 'public.ev'"),
        "{refused}"
    );
    pair.verb(&["resync", "--table", "acc", "--table", "ev"], 0)
        .expect("resync");
    let run = until_caught_up(&pair, &[]);
    assert_whole(&pair, &run);
}

#[test]
fn a_table_that_comes_later_joins_those_that_cannot_be_emptied_without_it() {
    let mut pair = Pair::start(14, 14).expect("two servers");
    related(&mut pair);
    // Without the foreign key the tables may be asked for one by one.
    pair.on_green("ALTER TABLE ev DROP CONSTRAINT ev_acc_fkey")
        .expect("green forgets the key");
    resync(&pair, "public.acc", 0);
    pair.on_green("ALTER TABLE ev ADD CONSTRAINT ev_acc_fkey FOREIGN KEY (acc) REFERENCES acc")
        .expect("green has the key again");
    let stuck = pair.verb(&["run", "--until-caught-up"], 13).expect("run");
    let said = stuck["error"].to_string();
    assert!(
        said.contains("public.ev") && said.contains("cdc-sync resync"),
        "{stuck}"
    );
    resync(&pair, "public.ev", 0);
    let run = until_caught_up(&pair, &[]);
    assert_whole(&pair, &run);
}

#[test]
fn a_table_that_is_gone_from_blue_is_not_set_aside_any_more() {
    let pair = Pair::start(12, 18).expect("two servers");
    pair.on_blue(TABLES).expect("blue has tables");
    pair.on_blue("CREATE TABLE stays AS SELECT 1 AS id")
        .expect("blue has another");
    until_caught_up(&pair, &[]);
    let warned_of = |table: &str| -> serde_json::Value {
        let mut running = pair.spawn(&["run", "--until-caught-up"]).expect("run starts");
        let ended = running.wait_timeout(LIMIT).expect("it ends");
        assert_eq!(ended.code(), Some(0), "{table}\n{}", ended.stderr);
        let mut told = ended.stderr.lines();
        let told =
            told.any(|line| line.contains("set aside, is gone from the source") && line.contains(table));
        assert!(told, "{table}: {}", ended.stderr);
        serde_json::from_str(&ended.stdout).expect("it prints JSON")
    };
    // One of two, of which the other is copied.
    pair.on_green("DELETE FROM kept").expect("green is spoilt");
    pair.verb(
        &["resync", "--table", "public.again", "--table", "public.kept"],
        0,
    )
    .expect("resync");
    pair.on_blue("DROP TABLE again").expect("blue drops a table");
    warned_of("public.again");
    assert!(green_is(&pair, "SELECT count(*) FROM kept", "100"));
    assert!(green_is(&pair, "SELECT count(*) FROM again", "5000"));

    // The only one, which an attempt had begun with.
    pair.on_green("ALTER TABLE kept ADD CONSTRAINT small CHECK (id < 50) NOT VALID")
        .expect("green refuses");
    resync(&pair, "public.kept", 0);
    pair.verb(&["run", "--until-caught-up"], 13).expect("run");
    pair.on_blue("DROP TABLE kept").expect("blue drops the other");
    let run = warned_of("public.kept");
    pair.on_green("DROP TABLE again; DROP TABLE kept")
        .expect("green drops them too");
    assert_whole(&pair, &run);
}

#[test]
fn a_run_that_loses_the_job_while_its_stream_stands_still_ends() {
    let pair = Pair::start(12, 18).expect("two servers");
    pair.on_blue(TABLES).expect("blue has tables");
    pair.on_blue("CREATE TABLE held (id int PRIMARY KEY); INSERT INTO held VALUES (1)")
        .expect("blue has another");
    until_caught_up(&pair, &[]);
    // The marker that the stream waits for, standing still, comes late.
    pair.on_blue(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             WHILE EXISTS (SELECT FROM public.held) LOOP PERFORM pg_catalog.pg_sleep(0.05); END LOOP; RETURN NEW; END $$; \
         CREATE TRIGGER wait BEFORE INSERT ON cdc_sync.marker FOR EACH ROW WHEN (NEW.id LIKE 'ahead-%') \
             EXECUTE FUNCTION wait()",
    )
    .expect("blue has a trigger");
    let mut running = following(&pair, &["--shutdown-timeout", "2s"]);
    let mut asking = pair
        .spawn(&["resync", "--table", "public.again"])
        .expect("resync starts");
    let stands_still = || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        pair.on_blue(waiting).expect("blue answers") == "1"
    };
    wait("the marker", &mut [&mut running, &mut asking], stands_still);
    asking.sigterm().expect("the signal arrives");
    asking.wait_timeout(LIMIT).expect("it ends");
    pair.on_green("UPDATE cdc_sync.fence SET epoch = epoch + 1")
        .expect("another instance takes over");
    let ended = end(running, 11);
    assert_eq!(ended["error"]["code"], "fenced", "{ended}");
    pair.on_blue("DELETE FROM held").expect("blue goes on");
    pair.on_blue("DROP TRIGGER wait ON cdc_sync.marker")
        .expect("blue has none any more");
    let run = until_caught_up(&pair, &[]);
    assert_whole(&pair, &run);
}
