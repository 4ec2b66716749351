//! Outages at the steps around the stream: every one that passes is waited out.

use testbed::pair::LIMIT;
use testbed::{Pair, Process, Proxy, process};

use super::{Hold, end, until_caught_up, wait};

#[test]
fn sessions_lost_while_indexes_and_foreign_keys_are_added_are_made_again() {
    let pair = Pair::start(12, 18).expect("two servers");
    pair.on_blue(
        "CREATE TABLE parent (id int PRIMARY KEY, v int); CREATE INDEX parent_v ON parent (v); \
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent); \
         INSERT INTO parent SELECT i, i FROM generate_series(1, 1000) i; \
         INSERT INTO child SELECT i, i FROM generate_series(1, 1000) i",
    )
    .expect("blue has tables");
    let texts = ["CREATE INDEX", "FOREIGN KEY"];
    let hold = Hold::statements(&pair, &texts);
    let mut running = pair.spawn(&["run", "--until-caught-up"]).expect("run starts");
    for text in texts {
        hold.wait(&mut running);
        pair.on_green("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
            .expect("the session ends");
        running
            .wait_for("was interrupted and is tried again", LIMIT)
            .expect("it is said");
        hold.release(text);
    }
    let report = end(&mut running, 0);
    assert_eq!(report["caught_up"], true, "{report}");
    hold.remove();
    pair.assert_equal().expect("both compare");
    let made = "SELECT (SELECT count(*) FROM pg_indexes WHERE indexname = 'parent_v') \
                + (SELECT count(*) FROM pg_constraint WHERE contype = 'f')";
    assert_eq!(pair.on_green(made).expect("green answers"), "2");
}

/// The group with the marker is committed on green, and the answer never arrives: the stream does not bring that
/// marker again.
#[test]
fn a_lost_answer_to_the_markers_commit_does_not_keep_a_run_waiting() {
    let pair = Pair::start(14, 18).expect("two servers");
    pair.on_blue("CREATE TABLE t (id int PRIMARY KEY)")
        .expect("blue has a table");
    until_caught_up(&pair);
    let hold = Hold::functions(&pair);
    hold.add("row");
    pair.on_green(
        "CREATE CONSTRAINT TRIGGER held AFTER INSERT ON cdc_sync.checkpoint DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION testing.wait_for_rows(); \
         ALTER TABLE cdc_sync.checkpoint ENABLE ALWAYS TRIGGER held",
    )
    .expect("commits are held");
    let former = pair
        .on_blue("SELECT id FROM cdc_sync.marker")
        .expect("blue answers");
    let proxy = Proxy::start(pair.green.port()).expect("a proxy");
    let mut running = through(&pair, &proxy);
    let marker = format!("SELECT count(*) FROM cdc_sync.marker WHERE id <> '{former}'");
    wait("the marker", &mut running, || {
        pair.on_blue(&marker).expect("blue answers") == "1"
    });
    let written = pair
        .on_blue("SELECT pg_current_wal_insert_lsn()")
        .expect("blue answers");
    let applied = format!("SELECT position::pg_lsn >= '{written}' FROM cdc_sync.checkpoint");
    let mut lost = 0;
    while pair.on_green(&applied).expect("green answers") == "f" {
        hold.wait(&mut running);
        // The commit takes place while its answer is on the way, and then nobody is there to take it.
        proxy.freeze();
        hold.release("row");
        wait("the commit", &mut running, || !hold.holds());
        hold.add("row");
        proxy.cut_all();
        proxy.thaw();
        lost += 1;
    }
    assert!(lost > 0, "no answer was lost");
    hold.release("row");
    let report = end(&mut running, 0);
    assert_eq!(report["caught_up"], true, "{report}");
}

fn through(pair: &Pair, proxy: &Proxy) -> Process {
    let mut command = process::cdc_sync().expect("the binary");
    command
        .args(["run", "--until-caught-up", "--yes", "--json"])
        .args(["--source", &pair.urls()[0]])
        .args(["--target", &pair.green.url_at(proxy.port(), Pair::DATABASE)]);
    Process::spawn(command).expect("run starts")
}
