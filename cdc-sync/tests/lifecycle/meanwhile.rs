//! What goes wrong on green for a moment because others work there too: it is tried again, and applied once.

use testbed::Pair;
use testbed::pair::LIMIT;

use super::{end, until_caught_up, wait};

/// Fails the first inserts with each of these errors twice, since only the second is told where the first was tried at once;
/// sequences are not rolled back. The last is the server's race of row locks, which its message tells from other internal
/// errors.
const FAILING: &str = "CREATE SEQUENCE tries; \
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ \
    DECLARE try bigint := nextval('public.tries'); \
        code text := (ARRAY['40P01', '40001', '55P03', 'XX000'])[(try + 1) / 2]; BEGIN \
        IF try <= 8 THEN \
            RAISE EXCEPTION USING ERRCODE = code, MESSAGE = CASE code WHEN 'XX000' \
                THEN 'new multixact has more than one updating member: 0 2 [4711 (nokeyupd), 4712 (nokeyupd)]' \
                ELSE 'as asked' END; \
        END IF; RETURN NEW; END $$; \
    CREATE TRIGGER fail BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION fail(); \
    ALTER TABLE t ENABLE ALWAYS TRIGGER fail";

#[test]
fn what_others_on_green_cause_is_tried_again_and_applied_once() {
    let pair = Pair::start(13, 18).expect("two servers");
    pair.on_blue(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE keyless (id int, v text); \
         ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless VALUES (1, 'a'), (2, 'a')",
    )
    .expect("blue has tables");
    until_caught_up(&pair);
    pair.on_green(FAILING).expect("green fails for a while");
    pair.on_green("ALTER TABLE keyless ADD own int DEFAULT 0")
        .expect("green has a column of its own");
    let mut running = pair.spawn(&["run"]).expect("run starts");
    running
        .wait_for("stream started", LIMIT)
        .expect("the stream starts");
    pair.on_blue("INSERT INTO t VALUES (1), (2)")
        .expect("blue writes");
    let arrived = |query: &str| pair.on_green(query).expect("green answers") == "t";
    wait("the rows", &mut running, || arrived("SELECT count(*) = 2 FROM t"));
    let tries = pair
        .on_green("SELECT last_value FROM tries")
        .expect("green answers");
    assert!(tries.parse::<u32>().expect("a number") > 8, "{tries}");
    let said = running.stderr();
    for code in ["40P01", "40001", "55P03", "XX000"] {
        assert!(said.contains(code), "{code} is not told: {said}");
    }

    // A row without a key cannot be followed to where another session has put it, but found again.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let other = runtime
        .block_on(testbed::postgres::connect(&pair.urls()[1]))
        .expect("another session");
    let other = |sql: &str| runtime.block_on(other.batch_execute(sql)).expect("it works");
    for change in [
        "UPDATE keyless SET v = 'b' WHERE id = 1",
        "DELETE FROM keyless WHERE id = 1",
    ] {
        other("BEGIN; UPDATE keyless SET own = own + 1");
        pair.on_blue(change).expect("blue writes");
        let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
                     AND wait_event_type = 'Lock')";
        wait("the row is waited for", &mut running, || arrived(waits));
        other("COMMIT");
        pair.on_blue("INSERT INTO t SELECT max(id) + 1 FROM t")
            .expect("blue writes");
        let ids = pair.on_blue("SELECT max(id) FROM t").expect("blue answers");
        let there = format!("SELECT count(*) = {ids} FROM t");
        wait("what comes after", &mut running, || arrived(&there));
    }
    running.sigterm().expect("the signal arrives");
    end(&mut running, 0);
    let drained = until_caught_up(&pair);
    let changes = &drained["changes"];
    assert_eq!(
        (changes["read"].as_u64(), changes["applied"].as_u64()),
        (Some(6), Some(6)),
        "{drained}"
    );
    let left = pair
        .on_green("SELECT id, v, own FROM keyless")
        .expect("green answers");
    assert_eq!(left, "2|a|2");
}
