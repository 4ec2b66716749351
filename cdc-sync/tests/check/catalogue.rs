//! One case a finding: what provokes it on two databases that are sound without it.

use cdc_core::engine::Severity;
use testbed::PgCluster;

use super::{checked, has};

use Severity::{Fail, Info, Warn};

/// The source of every case, alone a sound one; its target is empty.
const SOUND: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x')";

/// What has to be done so that `id` is found.
pub(super) struct Case {
    pub(super) id: &'static str,
    severity: Severity,
    /// statements on either side
    source: &'static str,
    target: &'static str,
    /// takes back what outlives the case
    undo: &'static str,
    /// how the databases are created
    options: &'static str,
    target_options: &'static str,
    /// the role that looks
    role: &'static str,
    /// versions of source and target that can have it
    source_since: u16,
    target_before: u16,
}

const CASE: Case = Case {
    id: "",
    severity: Fail,
    source: "",
    target: "",
    undo: "",
    options: "",
    target_options: "",
    role: "postgres",
    source_since: 0,
    target_before: 99,
};

const fn on_source(id: &'static str, severity: Severity, source: &'static str) -> Case {
    Case {
        id,
        severity,
        source,
        ..CASE
    }
}

const fn on_target(id: &'static str, severity: Severity, target: &'static str) -> Case {
    Case {
        id,
        severity,
        target,
        ..CASE
    }
}

const CIRCLE: &str = "CREATE TABLE hen (id int PRIMARY KEY, egg int);
    CREATE TABLE egg (id int PRIMARY KEY, hen int REFERENCES hen DEFERRABLE INITIALLY DEFERRED);
    ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader";
const CRON: &str = "CREATE SCHEMA cron;
    CREATE TABLE cron.job (jobid bigint, schedule text, database text, active boolean);
    INSERT INTO cron.job VALUES (1, '5 4 * * *', current_database(), true)";
const EVENT_TRIGGER: &str = "CREATE FUNCTION seen() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
    CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION seen()";
const INACTIVE_SLOT: &str = "SELECT pg_create_logical_replication_slot('cdc_sync_forgotten', 'pgoutput')";
const DROP_SLOT: &str = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";

pub(super) const CASES: &[Case] = &[
    on_source("NO-TABLES", Fail, "DROP TABLE t"),
    on_target("TARGET-HOLDS-ROWS", Fail, SOUND),
    Case {
        source: "CREATE TABLE u (id int PRIMARY KEY)",
        ..on_target(
            "TARGET-LACKS-TABLE",
            Fail,
            "CREATE TABLE t (id int PRIMARY KEY, v text)",
        )
    },
    on_target("TARGET-LACKS-COLUMN", Fail, "CREATE TABLE t (id int PRIMARY KEY)"),
    on_target(
        "TARGET-COLUMN-REQUIRED",
        Fail,
        "CREATE TABLE t (id int PRIMARY KEY, v text, w int NOT NULL)",
    ),
    on_target(
        "TARGET-COLUMN-GENERATED",
        Fail,
        "CREATE TABLE t (id int PRIMARY KEY, v text GENERATED ALWAYS AS ('x') STORED)",
    ),
    on_target("TARGET-LACKS-KEY", Fail, "CREATE TABLE t (id int, v text)"),
    on_target(
        "TARGET-COLUMN-TYPE",
        Warn,
        "CREATE TABLE t (id bigint PRIMARY KEY, v text)",
    ),
    Case {
        role: "reader",
        source: CIRCLE,
        ..on_target("TARGET-KEY-CYCLE", Fail, CIRCLE)
    },
    Case {
        role: "reader",
        source: "GRANT SELECT ON t TO reader",
        ..on_target("NOT-CHECKED", Info, "CREATE TABLE t (id int PRIMARY KEY, v text)")
    },
    on_source("PG-SLOT-INACTIVE", Warn, INACTIVE_SLOT).undoing(DROP_SLOT),
    on_target("PG-SLOT-INACTIVE", Warn, INACTIVE_SLOT).undoing(DROP_SLOT),
    on_source(
        "PG-PUBLICATION-ALL-TABLES",
        Warn,
        "CREATE PUBLICATION everything FOR ALL TABLES",
    ),
    on_source(
        "PG-SEQUENCE-NEAR-MAX",
        Warn,
        "CREATE TABLE s (id smallserial PRIMARY KEY); SELECT setval('s_id_seq', 32000)",
    ),
    on_source(
        "PG-EXTENSION-TABLE",
        Warn,
        "CREATE TABLE attached (id int PRIMARY KEY); INSERT INTO attached VALUES (1); \
         ALTER EXTENSION plpgsql ADD TABLE attached",
    ),
    on_source("PG-SEQUENCE-UNOWNED", Info, "CREATE SEQUENCE tickets"),
    on_source(
        "PG-SEQUENCE-CACHED",
        Info,
        "CREATE TABLE s (id serial PRIMARY KEY); ALTER SEQUENCE s_id_seq CACHE 20",
    ),
    Case {
        role: "reader",
        ..on_source(
            "PG-SELECT-RIGHT",
            Fail,
            "CREATE SEQUENCE tickets; GRANT SELECT ON t TO reader",
        )
    },
    on_source(
        "PG-GENERATED-COLUMN",
        Info,
        "CREATE TABLE g (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)",
    ),
    Case {
        source_since: 18,
        ..on_source(
            "PG-REPLICA-IDENTITY-GENERATED",
            Warn,
            "CREATE TABLE g (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
             ALTER TABLE g REPLICA IDENTITY FULL",
        )
    },
    on_source(
        "PG-IDENTITY-COLUMN",
        Info,
        "CREATE TABLE i (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)",
    ),
    on_source(
        "PG-PARTITIONED",
        Info,
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY HASH (id);
         CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    ),
    on_source(
        "PG-INHERITANCE",
        Info,
        "CREATE TABLE child (PRIMARY KEY (id)) INHERITS (t)",
    ),
    // Not to be had here: its name in the catalog is what is looked for.
    on_source(
        "PG-PARTMAN",
        Warn,
        "INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
         VALUES (999998, 'pg_partman', 10, 2200, false, '5.1')",
    ),
    on_source("PG-CRON-JOBS", Info, CRON),
    on_target("PG-CRON-JOBS", Warn, CRON),
    Case {
        role: "reader",
        ..on_source("PG-NOT-CHECKED", Info, CRON)
    },
    on_source(
        "PG-DATABASE-SETTINGS",
        Info,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''5MB''', current_database()); END $$",
    ),
    on_source("PG-EVENT-TRIGGER", Warn, EVENT_TRIGGER),
    on_target("PG-EVENT-TRIGGER", Warn, EVENT_TRIGGER),
    on_target(
        "PG-SUBSCRIPTION",
        Warn,
        "CREATE SUBSCRIPTION other CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false);
         ALTER SUBSCRIPTION other SET (slot_name = 'other'); ALTER SUBSCRIPTION other ENABLE",
    )
    .undoing("ALTER SUBSCRIPTION other DISABLE"),
    Case {
        options: "CONNECTION LIMIT 5",
        ..on_source("PG-CONNECTIONS-FREE", Warn, "")
    },
    Case {
        target_options: "ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8' TEMPLATE template0",
        ..on_target("PG-COLLATION-PROVIDER", Warn, "")
    },
    Case {
        source: "CREATE TABLE n (id int PRIMARY KEY, v numeric(12, 2))",
        ..on_target(
            "PG-COLUMN-ROUNDS",
            Fail,
            "CREATE TABLE n (id int PRIMARY KEY, v numeric(12, 1))",
        )
    },
    Case {
        source: "CREATE TABLE n (id int PRIMARY KEY, v numeric(12, 4))",
        ..on_target(
            "PG-COLUMN-ROUNDS",
            Fail,
            "CREATE DOMAIN amount AS numeric(12, 2); CREATE TABLE n (id int PRIMARY KEY, v amount)",
        )
    },
    Case {
        source: "CREATE DOMAIN amount AS numeric(12, 4); CREATE DOMAIN price AS amount; \
                 CREATE TABLE n (id int PRIMARY KEY, v price[])",
        ..on_target(
            "PG-COLUMN-ROUNDS",
            Fail,
            "CREATE DOMAIN amount AS numeric(12, 2); CREATE DOMAIN price AS amount; \
             CREATE TABLE n (id int PRIMARY KEY, v price[])",
        )
    },
    Case {
        source_since: 14,
        target_before: 14,
        ..on_source(
            "PG-TYPE-MISSING",
            Fail,
            "CREATE TABLE m (id int PRIMARY KEY, v int4multirange[])",
        )
    },
    Case {
        source: "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
            CREATE TABLE p0 PARTITION OF p FOR VALUES FROM (0) TO (10)",
        ..on_target(
            "PG-PARTITIONS-DIFFER",
            Fail,
            "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE p0 PARTITION OF p FOR VALUES FROM (0) TO (20)",
        )
    },
    on_source(
        "PG-COLLATION-MISSING",
        Fail,
        "CREATE COLLATION pg_catalog.elsewhere FROM \"C\";
         CREATE TABLE c (id int PRIMARY KEY, v text COLLATE pg_catalog.elsewhere)",
    ),
    Case {
        source: "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')",
        ..on_target("PG-ENUM-LABELS", Warn, "CREATE TYPE mood AS ENUM ('sad', 'ok')")
    },
    Case {
        source: "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        ..on_target(
            "PG-ENUM-LABELS",
            Warn,
            "CREATE TYPE mood AS ENUM ('ok', 'sad', 'glad')",
        )
    },
];

impl Case {
    /// Takes back, on each side that has statements, what would be in the way of the next case.
    const fn undoing(self, undo: &'static str) -> Case {
        Case { undo, ..self }
    }
}

/// A pair of servers on which cases are tried, each in databases of its own.
struct Ground {
    source: PgCluster,
    target: PgCluster,
}

impl Ground {
    fn new(old: u16, new: u16) -> Ground {
        let [source, target] = [old, new].map(|major| {
            let cluster = PgCluster::builder(major).start().unwrap();
            cluster.sql("postgres", "CREATE ROLE reader LOGIN").unwrap();
            cluster
        });
        Ground { source, target }
    }

    /// Both databases with what the case needs.
    fn prepare(&self, database: &str, case: &Case) {
        for (cluster, options, script) in [
            (&self.source, case.options, [SOUND, case.source]),
            (&self.target, case.target_options, ["", case.target]),
        ] {
            let create = format!("CREATE DATABASE {database} {options}");
            cluster.sql("postgres", &create).unwrap();
            for script in script {
                cluster.sql(database, script).unwrap();
            }
        }
    }

    fn urls(&self, database: &str, role: &str) -> [String; 2] {
        [&self.source, &self.target]
            .map(|cluster| cluster.url(database).replace("postgres@", &format!("{role}@")))
    }

    fn applies(&self, case: &Case) -> bool {
        self.source.major() >= case.source_since && self.target.major() < case.target_before
    }

    fn try_case(&self, database: &str, case: &Case) {
        self.prepare(database, case);
        let [source, target] = self.urls(database, case.role);
        let found = checked(&source, &target);
        let provoked = found.iter().filter(|finding| finding.id == case.id);
        let (id, severity) = (case.id, case.severity);
        assert!(
            provoked.clone().any(|finding| finding.severity == severity),
            "no {id} {severity:?} in {found:#?}"
        );
        for finding in provoked {
            assert!(!finding.object.is_empty(), "{finding:?}");
            assert!(
                !finding.message.is_empty() && !finding.remedy.is_empty(),
                "{finding:?}"
            );
        }
        for (cluster, script) in [(&self.source, case.source), (&self.target, case.target)] {
            if !script.is_empty() {
                cluster.sql(database, case.undo).unwrap();
            }
        }
    }

    /// Without any cause there is no finding, for the superuser who is asked in most cases.
    fn try_sound(&self) {
        self.prepare("sound", &CASE);
        let [source, target] = self.urls("sound", "postgres");
        let mut found = checked(&source, &target);
        found.retain(|finding| finding.id != "PG-VERSION-OLDER");
        assert!(found.is_empty(), "{found:#?}");
    }

    /// Tries the cases that apply. Those that do so on either ground are shared out between the two, unless there is
    /// time for all.
    fn try_all(&self, place: usize) {
        self.try_sound();
        for (number, case) in CASES.iter().enumerate().filter(|(_, case)| self.applies(case)) {
            let anywhere = case.source_since == 0 && case.target_before == 99;
            if !anywhere || number % 2 == place || testbed::runs_long_tier() {
                self.try_case(&format!("case{number}"), case);
            }
        }
    }
}

#[test]
fn each_finding_is_provoked_from_old_to_new() {
    Ground::new(12, 18).try_all(0);
}

#[test]
fn each_finding_is_provoked_from_new_to_old() {
    Ground::new(18, 12).try_all(1);
}

#[test]
fn one_server_or_even_one_database_on_both_sides() {
    let cluster = PgCluster::builder(16).start().unwrap();
    for database in ["app", "copy"] {
        cluster.create_database(database).unwrap();
    }
    cluster.sql("app", SOUND).unwrap();
    let app = cluster.url("app");
    // Another spelling of the same.
    let same = checked(&app, &app.replace("127.0.0.1", "localhost"));
    assert!(
        has(&same, "SAME-DATABASE") && !has(&same, "SAME-SERVER"),
        "{same:#?}"
    );
    let beside = checked(&app, &cluster.url("copy"));
    assert!(
        has(&beside, "SAME-SERVER") && !has(&beside, "SAME-DATABASE"),
        "{beside:#?}"
    );
    assert!(
        beside.iter().all(|finding| finding.severity == Info),
        "{beside:#?}"
    );
}
