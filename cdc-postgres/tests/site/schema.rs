//! The schema copied between versions.

use std::path::PathBuf;

use cdc_core::engine::SchemaPhase;
use cdc_core::{Kind, TableSelection};
use testbed::PgCluster;
use testbed::postgres::PasswordAuth;
use testbed::provision::postgres_tools;

use crate::{cluster, site};

fn tools() -> PathBuf {
    postgres_tools().unwrap().bin
}

/// One of each kind of object that a schema can hold without extensions.
const RICH: &str = r#"
    CREATE SCHEMA "App ""Data";
    CREATE TYPE mood AS ENUM ('sad', 'it''s; ok', 'happy');
    CREATE TYPE pair AS (a int, b text);
    CREATE DOMAIN positive AS int DEFAULT 1 CHECK (VALUE > 0);
    CREATE SEQUENCE "App ""Data"."Odd; Seq" INCREMENT 5;
    CREATE FUNCTION lower_it(t text) RETURNS text LANGUAGE sql IMMUTABLE AS $f$ SELECT lower(t); $f$;
    CREATE TABLE "App ""Data"."Customers" (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "Name" text NOT NULL, mood mood DEFAULT 'happy',
        pos positive, p pair, tags text[] DEFAULT '{}', full_name text GENERATED ALWAYS AS ("Name" || '!') STORED,
        CONSTRAINT "name; check" CHECK ("Name" <> ';'));
    COMMENT ON TABLE "App ""Data"."Customers" IS 'it''s; "the" $$ customers';
    COMMENT ON COLUMN "App ""Data"."Customers"."Name" IS E'line\nbreak';
    CREATE TABLE orders (id serial PRIMARY KEY, customer bigint NOT NULL REFERENCES "App ""Data"."Customers" ON DELETE CASCADE,
                         total numeric(10, 2) DEFAULT 0, during tstzrange, EXCLUDE USING gist (during WITH &&));
    CREATE INDEX "Odd; index" ON "App ""Data"."Customers" (lower_it("Name")) WHERE id > 0;
    CREATE UNIQUE INDEX ON orders (customer, total) INCLUDE (id);
    CREATE TABLE log (at date NOT NULL, what text, PRIMARY KEY (at, what)) PARTITION BY RANGE (at);
    CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
    CREATE TABLE log_rest PARTITION OF log DEFAULT;
    CREATE INDEX log_what ON log (what);
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $body$
    BEGIN
        -- a comment; with a semicolon
        NEW.total := NEW.total + 1; RETURN NEW;
    END $body$;
    CREATE TRIGGER touch BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION touch();
    CREATE PROCEDURE p(a int) LANGUAGE sql AS 'INSERT INTO orders (customer) VALUES (a)';
    CREATE VIEW happy AS SELECT id, "Name" FROM "App ""Data"."Customers" WHERE mood = 'happy';
    CREATE RULE "on happy" AS ON DELETE TO happy DO INSTEAD (DELETE FROM orders WHERE customer = OLD.id;
        DELETE FROM "App ""Data"."Customers" WHERE id = OLD.id);
    CREATE MATERIALIZED VIEW totals AS SELECT customer, sum(total) AS total FROM orders GROUP BY customer;
    CREATE MATERIALIZED VIEW b_grand AS SELECT sum(total) AS total FROM totals;
    CREATE MATERIALIZED VIEW never AS SELECT 1 AS one WITH NO DATA;
    CREATE UNIQUE INDEX ON totals (customer);
    CREATE STATISTICS st ON customer, total FROM orders;
    ALTER TABLE log_1 REPLICA IDENTITY FULL;
    ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
    CREATE POLICY mine ON orders USING (customer > 0);
    CREATE ROLE app; CREATE ROLE "missing there";
    ALTER TABLE log OWNER TO app;
    GRANT SELECT ON orders TO app; GRANT UPDATE ON orders TO "missing there";
    CREATE PUBLICATION not_copied FOR TABLE orders;
    CREATE SCHEMA cdc_sync; CREATE TABLE cdc_sync.heartbeat (a int);
    CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int);
    CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
    INSERT INTO "App ""Data"."Customers" ("Name") VALUES ('a');
    INSERT INTO orders (customer, total) VALUES (1, 5);
    REFRESH MATERIALIZED VIEW totals; REFRESH MATERIALIZED VIEW b_grand;
"#;

/// Every object of the user's schemas as one line, in words that do not change between versions.
const OBJECTS: &str = r#"
    WITH objects AS (
        SELECT 'relation ' || c.relkind::text || ' ' || c.oid::regclass || ' ' || c.relreplident::text || ' ' || c.relrowsecurity || ' ' ||
               coalesce(obj_description(c.oid, 'pg_class'), '') AS line
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname IN ('public', 'App "Data') AND c.relkind <> 't'
        UNION ALL SELECT 'column ' || attrelid::regclass || ' ' || attnum || ' ' || attname || ' ' ||
               format_type(atttypid, atttypmod) || ' ' || attnotnull || ' ' || attidentity::text || attgenerated::text || ' ' ||
               coalesce(pg_get_expr(adbin, adrelid), '') || coalesce(col_description(attrelid, attnum), '')
          FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
          JOIN pg_class c ON c.oid = attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname IN ('public', 'App "Data') AND attnum > 0 AND c.relkind IN ('r', 'p', 'v', 'm')
        UNION ALL SELECT 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
          FROM pg_constraint WHERE conrelid >= 16384 AND contype NOT IN ('n', 't')
        UNION ALL SELECT 'index ' || replace(pg_get_indexdef(indexrelid), ' ONLY', '') || ' ' || indisvalid FROM pg_index
          JOIN pg_class c ON c.oid = indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname IN ('public', 'App "Data')
        UNION ALL SELECT 'trigger ' || pg_get_triggerdef(t.oid) FROM pg_trigger t WHERE NOT tgisinternal
        UNION ALL SELECT 'function ' || p.oid::regprocedure || ' ' || md5(prosrc) FROM pg_proc p
          JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'public'
        UNION ALL SELECT 'enum ' || string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum
        UNION ALL SELECT 'domain ' || typname || ' ' || coalesce(typdefault, '') FROM pg_type WHERE typtype = 'd'
           AND typnamespace = 'public'::regnamespace
        UNION ALL SELECT 'partition ' || c.oid::regclass || ' ' || pg_get_expr(relpartbound, c.oid) FROM pg_class c WHERE relispartition AND relkind = 'r'
        UNION ALL SELECT 'policy ' || polname FROM pg_policy
        UNION ALL SELECT 'rule ' || rulename || ' ' || length(ev_action) / 1000 FROM pg_rewrite WHERE rulename <> '_RETURN' AND oid > 16000
        UNION ALL SELECT 'statistics ' || stxname FROM pg_statistic_ext
        UNION ALL SELECT 'matview ' || matviewname || ' ' || ispopulated FROM pg_matviews
        UNION ALL SELECT 'operator ' || oprname FROM pg_operator WHERE oid > 16000)
    SELECT line FROM objects WHERE line NOT LIKE '%_not_null%' ORDER BY line COLLATE "C""#;

fn objects(cluster: &PgCluster) -> String {
    let script = format!("SET quote_all_identifiers = off; {OBJECTS}");
    cluster.sql("db", &script).unwrap()
}

/// Lines of one text that the other lacks, for a readable failure.
fn only_in<'a>(one: &'a str, other: &str) -> Vec<&'a str> {
    let other: std::collections::HashSet<&str> = other.lines().collect();
    one.lines().filter(|line| !other.contains(line)).collect()
}

async fn copies_a_rich_schema(from: u16, to: u16, extra: &str) {
    let (source, target) = (cluster(from), cluster(to));
    source.sql("db", RICH).unwrap();
    source.sql("db", extra).unwrap();
    target.sql("db", "CREATE ROLE app").unwrap();
    // What exists is recognised whichever side quotes every name.
    let quoting = if from == 12 { &source } else { &target };
    quoting
        .sql("db", "ALTER DATABASE db SET quote_all_identifiers = on")
        .unwrap();
    let (blue, green) = (site(&source).await, site(&target).await);
    let dump = blue
        .dump_schema(&TableSelection::default(), None, green.identity(), Some(&tools()))
        .await
        .unwrap();
    green.create_schema(&dump, SchemaPhase::BeforeData).await.unwrap();
    let early =
        "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relname = 'orders'";
    assert_eq!(target.sql("db", early).unwrap(), "0");
    green.create_schema(&dump, SchemaPhase::AfterData).await.unwrap();
    let late = "SELECT (SELECT count(*) FROM pg_trigger WHERE tgname = 'touch') + (SELECT count(*) FROM pg_constraint WHERE contype = 'f')";
    assert_eq!(target.sql("db", late).unwrap(), "0");
    // Ended half-way and taken up again.
    target
        .sql(
            "db",
            r#"DROP INDEX "App ""Data"."Odd; index"; ALTER TABLE orders DROP CONSTRAINT orders_pkey"#,
        )
        .unwrap();
    green.create_schema(&dump, SchemaPhase::AfterData).await.unwrap();
    green
        .create_schema(&dump, SchemaPhase::AfterCatchUp)
        .await
        .unwrap();
    green
        .create_schema(&dump, SchemaPhase::AfterCatchUp)
        .await
        .unwrap();
    let (before, after) = (objects(&source), objects(&target));
    assert_eq!(
        only_in(&before, &after),
        Vec::<&str>::new(),
        "missing, {from} -> {to}"
    );
    assert_eq!(
        only_in(&after, &before),
        Vec::<&str>::new(),
        "too many, {from} -> {to}"
    );
    let rights = "SELECT tableowner || ' ' || has_table_privilege('app', 'orders', 'SELECT') FROM pg_tables WHERE tablename = 'log'";
    assert_eq!(target.sql("db", rights).unwrap(), "app true");
    let absent =
        "SELECT (SELECT count(*) FROM pg_publication) || ' ' || (to_regnamespace('cdc_sync') IS NULL)";
    assert_eq!(target.sql("db", absent).unwrap(), "0 true");
}

#[tokio::test]
async fn a_rich_schema_of_12_goes_to_18() {
    copies_a_rich_schema(12, 18, "").await;
}

#[tokio::test]
async fn a_rich_schema_of_18_goes_to_14() {
    let atomic = "CREATE FUNCTION atomic(i int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN i > 1 THEN 1 ELSE 2 END; SELECT 3; END";
    copies_a_rich_schema(18, 14, atomic).await;
}

#[tokio::test]
async fn only_what_is_selected_is_copied() {
    // The programs log in by a password, which reaches them by their environment.
    let with_password = || {
        let cluster = PgCluster::builder(15)
            .password_auth(PasswordAuth::Scram)
            .start()
            .unwrap();
        cluster.create_database("db").unwrap();
        cluster
    };
    let (source, target) = (with_password(), with_password());
    source.sql("db", RICH).unwrap();
    let (blue, green) = (site(&source).await, site(&target).await);
    let selection = TableSelection {
        include: vec!["orders".into(), "log_1".into()],
        ..TableSelection::default()
    };
    let dump = blue
        .dump_schema(&selection, None, green.identity(), Some(&tools()))
        .await
        .unwrap();
    for phase in [
        SchemaPhase::BeforeData,
        SchemaPhase::AfterData,
        SchemaPhase::AfterCatchUp,
    ] {
        green.create_schema(&dump, phase).await.unwrap();
    }
    let relations = r#"SELECT string_agg(oid::regclass::text, ',' ORDER BY relname) FROM pg_class
        WHERE relkind IN ('r', 'p', 'v', 'm') AND oid >= 16384"#;
    assert_eq!(
        target.sql("db", relations).unwrap(),
        "b_grand,log,log_1,never,orders,totals"
    );
    let constraints = "SELECT string_agg(conname, ',' ORDER BY conname) FROM pg_constraint WHERE conrelid = 'orders'::regclass";
    assert_eq!(
        target.sql("db", constraints).unwrap(),
        "orders_during_excl,orders_pkey"
    );
}

#[tokio::test]
async fn a_statement_that_fails_is_named_and_nothing_stays() {
    let (source, target) = (cluster(15), cluster(15));
    source
        .sql(
            "db",
            "CREATE TABLE a (i int); CREATE TYPE in_the_way AS (a int); CREATE TABLE z (i in_the_way)",
        )
        .unwrap();
    target.sql("db", "CREATE TYPE in_the_way AS ENUM ()").unwrap();
    let (blue, green) = (site(&source).await, site(&target).await);
    let dump = blue
        .dump_schema(&TableSelection::default(), None, green.identity(), Some(&tools()))
        .await
        .unwrap();
    let error = green
        .create_schema(&dump, SchemaPhase::BeforeData)
        .await
        .unwrap_err();
    assert_eq!(
        error.object_name(),
        Some("statement CREATE TYPE public.in_the_way AS ( a integer )"),
        "{error:?}"
    );
    assert_eq!(
        target
            .sql("db", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
            .unwrap(),
        "0"
    );

    let nowhere = tempfile::tempdir().unwrap();
    let error = blue
        .dump_schema(
            &TableSelection::default(),
            None,
            green.identity(),
            Some(nowhere.path()),
        )
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Check);
    assert!(error.message().contains("PostgreSQL 15 or newer"), "{error}");
}
