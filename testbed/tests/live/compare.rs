//! The comparison finds what was planted, and nothing else.

use testbed::compare::{Difference, Kind, databases, row_counts};
use testbed::workload::{Fill, prepare};
use testbed::{PgCluster, TableName};

fn rows(differences: &[Difference], table: &TableName) -> (u64, u64, Vec<String>) {
    let found = differences.iter().find(|d| d.table == *table).unwrap();
    match &found.kind {
        Kind::Rows {
            missing,
            extra,
            samples,
        } => (*missing, *extra, samples.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn planted_differences_are_found() {
    let left = PgCluster::builder(12).start().unwrap();
    let right = PgCluster::builder(18).start().unwrap();
    let (left_url, right_url) = (left.url("postgres"), right.url("postgres"));
    for url in [&left_url, &right_url] {
        prepare(url, Fill::default()).unwrap();
    }
    let compare = || databases(&left_url, &right_url).unwrap();
    assert_eq!(compare(), []);
    assert_eq!(row_counts(&left_url).unwrap(), row_counts(&right_url).unwrap());
    assert_eq!(
        row_counts(&left_url).unwrap()[&TableName::new("shop", "events_us")],
        250
    );

    // Its own tables are nobody's data.
    right
        .sql(
            "postgres",
            "CREATE SCHEMA cdc_sync; CREATE TABLE cdc_sync.checkpoint (n int)",
        )
        .unwrap();
    assert_eq!(compare(), []);

    let plant = [
        // Missing, extra, changed; one row of several equal ones; a value that only differs in scale.
        "DELETE FROM shop.orders WHERE id = 17",
        "INSERT INTO \"Odd Names\".\"Line Items\" VALUES (9999, 'extra', NULL)",
        "UPDATE shop.documents SET body = body || 'x' WHERE id = 3",
        "DELETE FROM shop.audit WHERE ctid = (SELECT min(ctid) FROM shop.audit)",
        "UPDATE shop.events SET body = '' WHERE body = md5('e4')",
        "DELETE FROM shop.customers WHERE id > 10; DELETE FROM shop.order_items WHERE false",
        "CREATE TABLE shop.new (n int); ALTER TABLE shop.scratch ADD more int",
    ];
    for sql in plant {
        right.sql("postgres", sql).unwrap();
    }
    let found = compare();
    let documents = rows(&found, &TableName::new("shop", "documents"));
    assert_eq!((documents.0, documents.1, documents.2.len()), (1, 1, 2));
    let odd = rows(&found, &TableName::new("Odd Names", "Line Items"));
    assert_eq!((odd.0, odd.1), (0, 1));
    assert!(
        odd.2[0].starts_with("+ (") && odd.2[0].contains("9999"),
        "{odd:?}"
    );
    assert_eq!(rows(&found, &TableName::new("shop", "audit")).0, 1);
    assert_eq!(rows(&found, &TableName::new("shop", "events_eu")), {
        let (missing, extra, samples) = rows(&found, &TableName::new("shop", "events_eu"));
        assert_eq!((missing, extra), (1, 1));
        (1, 1, samples)
    });
    let customers = rows(&found, &TableName::new("shop", "customers"));
    assert_eq!((customers.0, customers.1, customers.2.len()), (323, 0, 10));
    assert!(rows(&found, &TableName::new("shop", "orders")).0 > 900);
    let kind = |name: &str| found.iter().find(|d| d.table.name == name).unwrap().kind.clone();
    assert_eq!(kind("new"), Kind::OnlyRight);
    assert!(matches!(kind("scratch"), Kind::Columns { .. }));
    assert!(!found.iter().any(|d| d.table.name == "accounts"));
}
