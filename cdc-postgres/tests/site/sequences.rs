//! Sequences are carried over with a margin, both ways up.

use cdc_core::engine::{SeedPhase, SeedTable};
use cdc_core::{Kind, Position};

use crate::{cluster, fence, site, table};

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
            r#"SELECT setval('used', 500); SELECT nextval('"Down"'), nextval('"Down"'); SELECT setval('near', 32600);
               SELECT setval('moved', 77, false); SELECT setval('ahead', 10); INSERT INTO t DEFAULT VALUES;
               CREATE SEQUENCE only_here; CREATE TABLE not_selected (id serial);"#,
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
            "near 32600 1 32700",
            "t_a_seq 1 1 101",
            "t_b_seq 1 1 101",
            "unused 1 1 1",
            "used 500 1 600",
        ]
    );
    let next = r#"SELECT nextval('"Down"') || ' ' || nextval('moved') || ' ' || nextval('unused') || ' ' || nextval('used')"#;
    assert_eq!(target.sql("db", next).unwrap(), "-205 77 1 601");

    for (outside, why) in [
        ("SELECT setval('near', 32700)", "no value left"),
        (
            "ALTER SEQUENCE near AS bigint; SELECT setval('near', 40000)",
            "outside the limits",
        ),
    ] {
        source.sql("db", outside).unwrap();
        let states = blue.sequences().await.unwrap();
        target.sql("db", "SELECT setval('used', 1)").unwrap();
        let error = green.advance_sequences(&states, 100).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.object_name()),
            (Kind::Schema, Some("sequence public.near"))
        );
        assert!(error.message().contains(why), "{error:?}");
        assert!(error.remedy_text().unwrap().contains("ALTER SEQUENCE"));
        // All are looked at before the first is set.
        assert_eq!(target.sql("db", "SELECT last_value FROM used").unwrap(), "1");
    }
}

#[tokio::test]
async fn a_sequence_that_a_replicated_table_needs_must_be_there() {
    for (from, to) in [(12, 18), (18, 12)] {
        let (source, target) = (cluster(from), cluster(to));
        source
            .sql(
                "db",
                "CREATE SEQUENCE named; CREATE SEQUENCE free;
                 CREATE TABLE owns (id serial PRIMARY KEY);
                 CREATE TABLE takes (id int PRIMARY KEY DEFAULT nextval('named'));
                 CREATE TABLE parted (id serial, part int) PARTITION BY LIST (part);
                 CREATE TABLE leaf PARTITION OF parted FOR VALUES IN (1);
                 CREATE TABLE not_selected (id serial)",
            )
            .unwrap();
        let (blue, green) = (site(&source).await, site(&target).await);
        let states = blue.sequences().await.unwrap();
        assert!(green.advance_sequences(&states, 1).await.unwrap().is_empty());
        let epoch = fence(&*green).await.epoch();
        let seeded = |name: &str| SeedTable {
            table: table("public", name),
            phase: SeedPhase::Live,
            position: Position::new("0/1"),
            rows: 0,
            bytes: 0,
        };
        for (name, sequence) in [
            ("owns", "owns_id_seq"),
            ("takes", "named"),
            ("leaf", "parted_id_seq"),
        ] {
            green.store_seed("job", epoch, &seeded(name)).await.unwrap();
            let error = green.advance_sequences(&states, 1).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.object_name().map(str::to_owned)),
                (Kind::Schema, Some(format!("sequence public.{sequence}")))
            );
            assert!(error.message().contains(name), "{error:?}");
            let make = format!("CREATE SEQUENCE {sequence}");
            target.sql("db", &make).unwrap();
            green.advance_sequences(&states, 1).await.unwrap();
        }
    }
}
