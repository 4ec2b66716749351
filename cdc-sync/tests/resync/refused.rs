//! What `resync` refuses, before anything is emptied.

use testbed::Pair;

use super::{TABLES, assert_whole, until_caught_up};

#[test]
fn what_cannot_be_copied_is_refused_by_name() {
    let pair = Pair::start(13, 18).expect("two servers");
    pair.on_blue(TABLES).expect("blue has tables");
    let unknown = pair
        .verb(&["resync", "--table", "public.again"], 2)
        .expect("resync");
    assert!(
        unknown["error"]["message"]
            .as_str()
            .expect("a message")
            .contains("no such job"),
        "{unknown}"
    );
    until_caught_up(&pair, &[]);

    let untold = pair.verb(&["resync"], 2).expect("resync");
    assert_eq!(untold["error"]["object"], "--table", "{untold}");
    let nothing = pair
        .verb(&["resync", "--table", "public.nothing"], 2)
        .expect("resync");
    assert_eq!(nothing["error"]["object"], "public.nothing", "{nothing}");
    pair.on_green("ALTER TABLE again DROP COLUMN note")
        .expect("green loses a column");
    let misfit = pair
        .verb(&["resync", "--table", "public.again"], 3)
        .expect("resync");
    assert!(misfit["error"].to_string().contains("note"), "{misfit}");
    pair.on_green("DROP TABLE again; CREATE TABLE again (id int PRIMARY KEY, note text)")
        .expect("green has it back, without rows");

    let planned = pair
        .verb(&["resync", "--table", "public.again", "--dry-run"], 0)
        .expect("resync");
    assert_eq!(
        (&planned["dry_run"], &planned["tables"][0]["before"]),
        (&true.into(), &"live".into()),
        "{planned}"
    );
    let aside = "SELECT count(*) FROM cdc_sync.seed WHERE phase = 'aside'";
    assert_eq!(
        pair.on_green(aside).expect("green answers"),
        "0",
        "a dry run stores nothing"
    );
    pair.verb(&["resync", "--table", "public.again"], 0)
        .expect("resync");
    let run = until_caught_up(&pair, &[]);
    assert_whole(&pair, &run);
}

#[test]
fn what_is_no_table_of_a_job_is_called_what_it_is() {
    let pair = Pair::start(14, 18).expect("two servers");
    pair.on_blue(TABLES).expect("blue has tables");
    pair.on_blue(
        "CREATE VIEW seen AS SELECT * FROM kept; CREATE UNLOGGED TABLE quick (id int); \
         CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id); \
         CREATE TABLE part PARTITION OF parted DEFAULT",
    )
    .expect("blue has what is no table of a job");
    until_caught_up(&pair, &[]);
    let said = |arguments: &[&str]| -> String {
        let all = [&["resync"], arguments].concat();
        let refused = pair.verb(&all, 2).expect("resync");
        refused["error"].to_string()
    };
    for (table, what) in [
        ("public.seen", "it is a view"),
        ("quick", "an unlogged table"),
        ("public.parted", "it is a partitioned table"),
        ("public.nothing", "no table of the source is meant"),
    ] {
        let alone = said(&["--table", table]);
        assert!(alone.contains(what) && alone.contains(table), "{alone}");
        // Beside one that is: it would be left out in silence.
        let beside = said(&["--table", "public.again", "--table", table]);
        assert!(beside.contains(what), "{beside}");
    }
    let part = said(&["--partitions", "root", "--table", "public.part"]);
    assert!(part.contains("it is a partition"), "{part}");
}
