//! Sequences are carried over with a margin, both ways up.

use cdc_core::Kind;

use crate::{cluster, site};

#[tokio::test]
async fn sequences_move_ahead_of_the_source() {
    let (source, target) = (cluster(12), cluster(18));
    let make = r#"CREATE SEQUENCE used; CREATE SEQUENCE unused; CREATE SEQUENCE "Down" INCREMENT -2;
        CREATE SEQUENCE near AS smallint; CREATE SEQUENCE moved; CREATE SEQUENCE ahead;
        CREATE TABLE t (a serial, b int GENERATED ALWAYS AS IDENTITY);
        CREATE SCHEMA cdc_sync; CREATE SEQUENCE cdc_sync.own;"#;
    for side in [&source, &target] {
        side.sql("db", make).unwrap();
    }
    source
        .sql(
            "db",
            r#"SELECT setval('used', 500); SELECT nextval('"Down"'), nextval('"Down"'); SELECT setval('near', 32700);
               SELECT setval('moved', 77, false); SELECT setval('ahead', 10); INSERT INTO t DEFAULT VALUES;
               CREATE SEQUENCE only_here;"#,
        )
        .unwrap();
    target.sql("db", "SELECT setval('ahead', 5000)").unwrap();
    let (blue, green) = (site(&source).await, site(&target).await);
    let states = blue.sequences().await.unwrap();
    assert!(!states.iter().any(|state| state.name.schema == "cdc_sync"));
    let advanced = green.advance_sequences(&states, 100).await.unwrap();
    let shown: Vec<String> = advanced
        .iter()
        .map(|a| format!("{} {} {} {}", a.sequence.name, a.source, a.before, a.after))
        .collect();
    assert_eq!(
        shown,
        [
            "Down -3 -1 -203",
            "ahead 10 5000 5000",
            "moved 77 1 77",
            "near 32700 1 32767",
            "t_a_seq 1 1 101",
            "t_b_seq 1 1 101",
            "unused 1 1 1",
            "used 500 1 600",
        ]
    );
    let next = r#"SELECT nextval('"Down"') || ' ' || nextval('moved') || ' ' || nextval('unused') || ' ' || nextval('used')"#;
    assert_eq!(target.sql("db", next).unwrap(), "-205 77 1 601");

    source
        .sql(
            "db",
            "ALTER SEQUENCE near AS bigint; SELECT setval('near', 40000)",
        )
        .unwrap();
    let states = blue.sequences().await.unwrap();
    let error = green.advance_sequences(&states, 100).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.object_name()),
        (Kind::Schema, Some("sequence public.near"))
    );
}
