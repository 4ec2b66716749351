//! Columns of types whose values another server cannot take as they are.

use cdc_core::engine::{Severity, Side};
use testbed::PgCluster;

use super::MAJORS;
use super::precheck::{about, findings, ids};

#[test]
fn types_that_are_not_read_or_only_by_name() {
    for major in MAJORS {
        let cluster = PgCluster::builder(major).start().unwrap();
        cluster.create_database("app").unwrap();
        cluster
            .sql(
                "app",
                "CREATE TABLE plain (id int PRIMARY KEY, n name, p point, v int2vector, o oid);
                 CREATE TABLE stored (id int PRIMARY KEY, tree pg_node_tree, gist gtsvector[]);
                 CREATE DOMAIN relation AS regclass; CREATE TYPE deep AS (label text, relations relation[]);
                 CREATE TABLE named (id int PRIMARY KEY, a aclitem[], d deep, t text, dropped regproc);
                 ALTER TABLE named DROP COLUMN dropped",
            )
            .unwrap();
        let found = findings(&cluster.url("app"), Side::Source, "types");
        assert_eq!(
            ids(&found),
            [
                ("PG-TYPE-NO-INPUT", Severity::Warn),
                ("PG-TYPE-OBJECT-NAMES", Severity::Warn)
            ],
            "{found:#?}"
        );
        let stored = about(&found, "PG-TYPE-NO-INPUT", "public.stored");
        assert!(stored.message.starts_with("columns tree, gist: "), "{stored:?}");
        let named = about(&found, "PG-TYPE-OBJECT-NAMES", "public.named");
        assert!(named.message.starts_with("columns a, d: "), "{named:?}");
    }
}
