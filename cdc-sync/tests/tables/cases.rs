//! The tables, one case each.

/// One kind of table.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// the oldest source it can be on
    pub(super) from: u16,
    /// run before the seed
    pub(super) setup: &'static str,
    /// run twice after it, see [`super::change`]
    pub(super) changes: &'static str,
    /// run on green where triggers fire there, as a DBA would: what they wrote on blue comes with the changes
    pub(super) when_triggers_fire: &'static str,
    /// what green must answer in the end, beyond being equal
    pub(super) on_green: &'static [(&'static str, &'static str)],
}

const fn case(name: &'static str, setup: &'static str, changes: &'static str) -> Case {
    Case {
        name,
        from: 0,
        setup,
        changes,
        when_triggers_fire: "",
        on_green: &[],
    }
}

pub(super) const CASES: &[Case] = &[
    case(
        "identity by an index that is not the key, its columns in another order",
        "CREATE TABLE by_index (b int PRIMARY KEY, a int NOT NULL, c int NOT NULL, v text);
         CREATE UNIQUE INDEX by_index_ca ON by_index (c, a); ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_ca;
         INSERT INTO by_index SELECT n, n % 7, n, 'v' FROM generate_series(1, 50) n",
        "UPDATE by_index SET v = v || '{n}' WHERE b < 20;; UPDATE by_index SET a = a + 100, b = b + 1000 WHERE b = 10 + {n};;
         DELETE FROM by_index WHERE c = 20 + {n};;",
    ),
    case(
        "identity full with a key, and NULLs",
        "CREATE TABLE fully (id int PRIMARY KEY, a text, b numeric); ALTER TABLE fully REPLICA IDENTITY FULL;
         INSERT INTO fully SELECT n, nullif('a' || n % 3, 'a1'), nullif(n % 5, 2) FROM generate_series(1, 50) n",
        "UPDATE fully SET a = NULL WHERE id < 10 * {n};; UPDATE fully SET id = id + 1000 WHERE id = 20 + {n};;
         DELETE FROM fully WHERE b IS NULL AND id < 10 * {n};;",
    ),
    Case {
        on_green: &[("SELECT count(*) FROM equal_rows WHERE a = 1", "4"), ("SELECT count(*) FROM equal_rows WHERE a = 2", "0")],
        ..case(
            "no key: of equal rows exactly as many go as went",
            "CREATE TABLE equal_rows (a int, b text); ALTER TABLE equal_rows REPLICA IDENTITY FULL;
             INSERT INTO equal_rows SELECT 1, NULL FROM generate_series(1, 6); INSERT INTO equal_rows SELECT 2, 'x' FROM generate_series(1, 10)",
            "DELETE FROM equal_rows WHERE ctid = (SELECT ctid FROM equal_rows WHERE a = 1 LIMIT 1);;
             DELETE FROM equal_rows WHERE ctid = ANY (ARRAY(SELECT ctid FROM equal_rows WHERE a = 2 LIMIT 5));;
             INSERT INTO equal_rows VALUES (3, 'y'), (3, 'y');; UPDATE equal_rows SET b = 'z'
                 WHERE ctid = (SELECT ctid FROM equal_rows WHERE a = 3 LIMIT 1);;",
        )
    },
    case(
        "no key and no identity: only inserts",
        "CREATE TABLE inserts_only (a int, b text); INSERT INTO inserts_only VALUES (1, 'a')",
        "INSERT INTO inserts_only SELECT {n}, 'b' FROM generate_series(1, 20);;",
    ),
    case(
        "moving keys: all by one, and swapped unique values, with deferrable constraints",
        "CREATE TABLE moving (id int PRIMARY KEY DEFERRABLE, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text);
         ALTER TABLE moving REPLICA IDENTITY FULL;
         INSERT INTO moving SELECT n, n, 'v' || n FROM generate_series(1, 100) n",
        "UPDATE moving SET id = id + 1;; UPDATE moving SET u = 101 - u;;
         BEGIN; UPDATE moving SET u = 5 WHERE u = 6; UPDATE moving SET u = 6 WHERE u = 5 AND id <> 0 AND v <> ''
            AND id = (SELECT min(id) FROM moving WHERE u = 5); COMMIT;;",
    ),
    case(
        "keys that are passed on within a transaction",
        "CREATE TABLE passed_on (id int PRIMARY KEY, u text UNIQUE, v int);
         INSERT INTO passed_on SELECT n, 'u' || n, n FROM generate_series(1, 20) n",
        "BEGIN; UPDATE passed_on SET id = -1 WHERE id = 1; UPDATE passed_on SET id = 1 WHERE id = 2;
            UPDATE passed_on SET id = 2 WHERE id = -1; COMMIT;;
         BEGIN; UPDATE passed_on SET u = 'x' WHERE id = 3; UPDATE passed_on SET u = 'u3-{n}' WHERE id = 4;
            UPDATE passed_on SET u = 'u4-{n}' WHERE id = 3; COMMIT;;
         BEGIN; DELETE FROM passed_on WHERE id = 5; INSERT INTO passed_on VALUES (5, 'again{n}', {n});
            UPDATE passed_on SET v = v + 1 WHERE id = 5; COMMIT;;
         BEGIN; INSERT INTO passed_on VALUES (99, 'short', 1); DELETE FROM passed_on WHERE id = 99; COMMIT;;",
    ),
    case(
        "values stored out of line that a change leaves as they are",
        "CREATE TABLE toasted (id int PRIMARY KEY, n int, doc text, list text[]);
         ALTER TABLE toasted ALTER doc SET STORAGE EXTERNAL; ALTER TABLE toasted ALTER list SET STORAGE EXTERNAL;
         INSERT INTO toasted SELECT n, n, repeat(chr(96 + n), 9000), ARRAY[repeat('x', 5000), repeat('y', 5000)]
            FROM generate_series(1, 10) n",
        "UPDATE toasted SET n = n + 1;; BEGIN; UPDATE toasted SET n = n + 1 WHERE id < 5;
            UPDATE toasted SET doc = repeat('{n}', 9000) WHERE id < 5; UPDATE toasted SET n = n + 1 WHERE id < 5; COMMIT;;
         UPDATE toasted SET id = id + 100 WHERE id = 6 + {n};; UPDATE toasted SET doc = NULL WHERE id = 9;;
         BEGIN; UPDATE toasted SET n = 7 WHERE id = 10; UPDATE toasted SET id = 10 + 1000 * {n} WHERE id = 10;
            UPDATE toasted SET id = 10 WHERE id = 10 + 1000 * {n}; COMMIT;;",
    ),
    case(
        "emptied tables",
        "CREATE TABLE emptied (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v text);
         CREATE TABLE emptied_parent (id int PRIMARY KEY); CREATE TABLE emptied_child (id int REFERENCES emptied_parent);
         ALTER TABLE emptied_child REPLICA IDENTITY FULL;
         INSERT INTO emptied (v) VALUES ('a'), ('b'); INSERT INTO emptied_parent VALUES (1), (2);
         INSERT INTO emptied_child VALUES (1), (2)",
        "BEGIN; INSERT INTO emptied (v) VALUES ('lost'); TRUNCATE emptied; INSERT INTO emptied (v) VALUES ('kept'); COMMIT;;
         TRUNCATE emptied RESTART IDENTITY;; INSERT INTO emptied (v) VALUES ('first {n}');;
         TRUNCATE emptied_parent CASCADE;; INSERT INTO emptied_parent VALUES (1), (2);; INSERT INTO emptied_child VALUES (1);;
         TRUNCATE emptied_parent, emptied_child;; INSERT INTO emptied_parent VALUES (1), (2);; INSERT INTO emptied_child VALUES (2);;",
    ),
    case(
        "partitions, rows that move between them, and one that is emptied",
        "CREATE TABLE parted (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
         CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY HASH (id);
         CREATE TABLE parted_2a PARTITION OF parted_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE parted_2b PARTITION OF parted_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         CREATE TABLE parted_rest PARTITION OF parted DEFAULT;
         INSERT INTO parted SELECT n, date '2026-01-01' + n, 'v' FROM generate_series(0, 89) n",
        "UPDATE parted SET at = at + 31 WHERE id = 3 + {n};; UPDATE parted SET v = 'u{n}' WHERE id % 4 = 0;;
         DELETE FROM parted WHERE id = 10 + {n};; TRUNCATE parted_2a;; INSERT INTO parted SELECT n, '2026-02-10', 'new'
            FROM generate_series(200 * {n}, 200 * {n} + 9) n;;
         BEGIN; TRUNCATE parted; INSERT INTO parted SELECT n, date '2026-01-01' + n % 80, 'after' FROM generate_series(1, 60) n; COMMIT;;",
    ),
    case(
        "generated and identity columns",
        "CREATE TABLE made (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
         CREATE TABLE numbered (k text PRIMARY KEY, id int GENERATED ALWAYS AS IDENTITY, v text);
         INSERT INTO made (a) SELECT n FROM generate_series(1, 20) n; INSERT INTO numbered (k) SELECT 'k' || n FROM generate_series(1, 20) n",
        "INSERT INTO made (a) VALUES (100 * {n});; INSERT INTO made OVERRIDING SYSTEM VALUE VALUES (1000 * {n}, 5);;
         UPDATE made SET a = a + 1;; DELETE FROM made WHERE id = {n};; UPDATE numbered SET v = 'v{n}';;
         UPDATE numbered SET id = DEFAULT WHERE k = 'k' || {n};; INSERT INTO numbered (k) VALUES ('new{n}');;",
    ),
    Case {
        from: 18,
        on_green: &[
            ("SELECT count(*) FROM computed WHERE v IS DISTINCT FROM a * 2", "0"),
            ("SELECT attgenerated::text FROM pg_attribute WHERE attrelid = 'computed'::regclass AND attname = 'v'", "v"),
        ],
        ..case(
            "virtual generated columns",
            "CREATE TABLE computed (v int GENERATED ALWAYS AS (a * 2) VIRTUAL, id int PRIMARY KEY, a int);
             CREATE TABLE computed_gone (v int GENERATED ALWAYS AS (id + 1) VIRTUAL, id int PRIMARY KEY);
             INSERT INTO computed (id, a) SELECT n, n FROM generate_series(1, 20) n;
             INSERT INTO computed_gone (id) VALUES (1)",
            "UPDATE computed SET a = a + 1;; UPDATE computed SET id = id + 100 WHERE id = {n};; DELETE FROM computed WHERE id = 10 + {n};;
             INSERT INTO computed (id, a) SELECT 1000 * {n} + n, n FROM generate_series(1, 9) n;; TRUNCATE computed_gone;; INSERT INTO computed_gone (id) VALUES ({n});;",
        )
    },
    case(
        "keys that a cascade moves, and children without a key that go with their parent",
        "CREATE TABLE house (id int PRIMARY KEY); CREATE TABLE room (house int REFERENCES house ON UPDATE CASCADE ON DELETE CASCADE,
             n int, v text, PRIMARY KEY (house, n));
         CREATE TABLE chair (house int REFERENCES house ON DELETE CASCADE, v text); ALTER TABLE chair REPLICA IDENTITY FULL;
         INSERT INTO house SELECT n FROM generate_series(1, 20) n; INSERT INTO room SELECT n, m, 'v' FROM generate_series(1, 20) n, generate_series(1, 3) m;
         INSERT INTO chair SELECT n, 'same' FROM generate_series(1, 12) n, generate_series(1, 3)",
        "DELETE FROM house WHERE id = {n};; UPDATE house SET id = id + 1000 WHERE id > 15;;
         BEGIN; DELETE FROM house WHERE id = 5 + {n}; INSERT INTO house VALUES (5 + {n}); INSERT INTO room VALUES (5 + {n}, 1, 'again');
             INSERT INTO chair VALUES (5 + {n}, 'same'); COMMIT;; UPDATE room SET n = n + 10, v = 'u' WHERE house = 10;;",
    ),
    case(
        "foreign keys: of a table to itself, cascades, and SET NULL",
        "CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree ON DELETE CASCADE, v text);
         CREATE TABLE leaf (id int PRIMARY KEY, tree int REFERENCES tree ON DELETE SET NULL ON UPDATE CASCADE);
         INSERT INTO tree SELECT n, nullif(n / 3, 0), 'v' FROM generate_series(1, 60) n;
         INSERT INTO leaf SELECT n, n FROM generate_series(1, 60) n",
        "DELETE FROM tree WHERE id = 5 + {n};; UPDATE tree SET id = id + 1000 WHERE id = 59 + 2 - {n};; INSERT INTO tree VALUES (500 + {n}, 1, 'new');;
         BEGIN; INSERT INTO tree VALUES (600 + {n}, NULL, 'p'); INSERT INTO tree VALUES (700 + {n}, 600 + {n}, 'c');
            DELETE FROM tree WHERE id = 600 + {n}; COMMIT;;",
    ),
    Case {
        when_triggers_fire: "ALTER TABLE audited DISABLE TRIGGER audit",
        on_green: &[("SELECT count(*) FROM audit_log", "24")],
        ..case(
            "triggers: what they wrote on blue is not written again",
            "CREATE TABLE audited (id int PRIMARY KEY, v text); CREATE TABLE audit_log (n bigserial PRIMARY KEY, what text);
             CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN INSERT INTO audit_log (what) VALUES (TG_OP); NEW.v := NEW.v || ''!''; RETURN NEW; END';
             CREATE TRIGGER audit BEFORE INSERT OR UPDATE ON audited FOR EACH ROW EXECUTE FUNCTION audit();
             INSERT INTO audited SELECT n, 'v' FROM generate_series(1, 10) n",
            "UPDATE audited SET v = 'u{n}' WHERE id <= 5;; INSERT INTO audited VALUES (100 + {n}, 'w'), (200 + {n}, 'w');;",
        )
    },
    case(
        "two hundred columns",
        "DO $$ BEGIN EXECUTE 'CREATE TABLE wide (id int PRIMARY KEY, ' || (SELECT string_agg(format('c%s int DEFAULT %s', n, n), ', ')
            FROM generate_series(1, 200) n) || ')'; END $$; INSERT INTO wide (id) SELECT n FROM generate_series(1, 20) n",
        "UPDATE wide SET c1 = {n}, c200 = -{n};; INSERT INTO wide (id, c100) VALUES (100 * {n}, NULL);; DELETE FROM wide WHERE id = {n};;",
    ),
    case(
        "as many columns as there can be",
        "DO $$ BEGIN EXECUTE 'CREATE TABLE widest (id int PRIMARY KEY, ' || (SELECT string_agg(format('c%s bool', n), ', ')
            FROM generate_series(1, 1599) n) || ')'; END $$; INSERT INTO widest (id, c1) SELECT n, true FROM generate_series(1, 9) n",
        "UPDATE widest SET c1599 = true, c1 = NULL;; INSERT INTO widest (id, c800) SELECT 100 * {n} + n, false FROM generate_series(1, 9) n;;
         DELETE FROM widest WHERE id = {n};;",
    ),
    case(
        "dropped columns, and columns in an order of their own",
        "CREATE TABLE dropped (gone1 int, id int PRIMARY KEY, gone2 text, v text, n int DEFAULT 7); ALTER TABLE dropped DROP gone1;
         ALTER TABLE dropped DROP gone2; ALTER TABLE dropped ADD late text DEFAULT 'late';
         INSERT INTO dropped SELECT n, 'v', n FROM generate_series(1, 20) n",
        "UPDATE dropped SET v = 'u{n}', late = NULL WHERE id < 10;; INSERT INTO dropped (id) VALUES (100 * {n});; DELETE FROM dropped WHERE id = 10 + {n};;",
    ),
    case(
        "names that must be quoted, in several schemas",
        "CREATE SCHEMA \"Größe .\"\"x\"\"\"; CREATE SCHEMA \"select\";
         CREATE TABLE \"Größe .\"\"x\"\"\".\"tab'le\" (\"Id\" int PRIMARY KEY, \"a b\" text, \"c\"\"d\" text, \"übrig\" text, \"select\" int);
         CREATE TABLE \"select\".\"tab'le\" (\"group\" int PRIMARY KEY, \"order\" text);
         CREATE TABLE public.abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz12345678901 (id int PRIMARY KEY);
         INSERT INTO \"Größe .\"\"x\"\"\".\"tab'le\" SELECT n, 'a', 'b', 'ü', n FROM generate_series(1, 20) n;
         INSERT INTO \"select\".\"tab'le\" SELECT n, 'o' FROM generate_series(1, 20) n",
        "UPDATE \"Größe .\"\"x\"\"\".\"tab'le\" SET \"c\"\"d\" = '{n}', \"übrig\" = NULL WHERE \"Id\" < 10;; DELETE FROM \"select\".\"tab'le\" WHERE \"group\" = {n};;
         UPDATE \"select\".\"tab'le\" SET \"order\" = 'x{n}';; INSERT INTO public.abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz12345678901 VALUES ({n});;",
    ),
    case(
        "tables that are empty, or have no columns",
        "CREATE TABLE nothing_yet (id int PRIMARY KEY, v text); CREATE TABLE only_key (id int PRIMARY KEY); CREATE TABLE no_columns ()",
        "INSERT INTO nothing_yet VALUES ({n}, 'x');; INSERT INTO only_key SELECT 10 * {n} + n FROM generate_series(1, 9) n;; UPDATE only_key SET id = id;;
         DELETE FROM only_key WHERE id = 10 * {n} + 1;; UPDATE only_key SET id = id + 1000 WHERE id = 10 * {n} + 2;;",
    ),
    case(
        "what is rolled back, in part or whole, and what changes nothing",
        "CREATE TABLE partly (id int PRIMARY KEY, v text)",
        "BEGIN; INSERT INTO partly VALUES (10 * {n} + 1, 'kept'); SAVEPOINT a; INSERT INTO partly VALUES (10 * {n} + 2, 'lost'); SAVEPOINT b;
            INSERT INTO partly VALUES (10 * {n} + 3, 'lost'); RELEASE b; ROLLBACK TO a; INSERT INTO partly VALUES (10 * {n} + 2, 'other'); COMMIT;;
         BEGIN; INSERT INTO partly VALUES (10 * {n} + 4, 'lost'); ROLLBACK;; BEGIN; UPDATE partly SET v = v; COMMIT;; UPDATE partly SET v = 'none' WHERE false;;
         SELECT pg_logical_emit_message(true, 'app', 'transactional');; SELECT pg_logical_emit_message(false, 'app', 'at once');;",
    ),
    case(
        "prepared transactions",
        "CREATE TABLE prepared (id int PRIMARY KEY, v text)",
        "BEGIN; INSERT INTO prepared VALUES (10 * {n} + 1, 'committed'); PREPARE TRANSACTION 'one';; BEGIN; INSERT INTO prepared VALUES (10 * {n} + 2, 'gone');
            PREPARE TRANSACTION 'two';; INSERT INTO prepared VALUES (10 * {n} + 3, 'between');; COMMIT PREPARED 'one';; ROLLBACK PREPARED 'two';;",
    ),
    Case {
        on_green: &[
            ("SELECT last_value >= 1002 FROM counted", "t"),
            ("SELECT last_value <= -1002 FROM down", "t"),
            ("SELECT last_value >= 1000 * 10 FROM tens", "t"),
        ],
        ..case(
            "sequences, owned by nothing, descending, in steps, cached",
            "CREATE SEQUENCE counted; CREATE SEQUENCE down INCREMENT -1 MINVALUE -100000 START -1; CREATE SEQUENCE tens INCREMENT 10 CACHE 5;
             CREATE TABLE counting (id int DEFAULT nextval('counted') PRIMARY KEY, d int DEFAULT nextval('down'), t int DEFAULT nextval('tens'));
             INSERT INTO counting DEFAULT VALUES",
            "INSERT INTO counting DEFAULT VALUES;; SELECT nextval('counted');;",
        )
    },
];
