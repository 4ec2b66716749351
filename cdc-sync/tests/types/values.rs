//! Types and the values that each is tried with, as text that the type's input function takes.
//!
//! First and last of what a type can hold, the empty value, what has no finite size, and what is equal to another
//! value without being the same. NULL, and arrays of all of them, are added for every type.

/// A type as a column has it, and some of its values.
pub(super) struct Values {
    /// the column's type; for those of the catalog, as `format_type(oid, -1)` prints them
    pub(super) kind: &'static str,
    /// the first major version that knows the type and takes the values
    since: u16,
    pub(super) texts: &'static [&'static str],
}

/// All types of a server of this version, each with all its values.
pub(super) fn of(major: u16) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut kinds: Vec<(&str, Vec<&str>)> = Vec::new();
    for values in [BUILT_IN, RANGES, CREATED, WITH_MODIFIER, ARRAYS]
        .into_iter()
        .flatten()
    {
        if values.since > major {
            continue;
        }
        match kinds.iter_mut().find(|(kind, _)| *kind == values.kind) {
            Some((_, texts)) => texts.extend(values.texts),
            None => kinds.push((values.kind, values.texts.to_vec())),
        }
    }
    kinds
}

/// Types whose input function takes nothing: the server itself makes their values. `check` warns of their columns.
pub(super) const WITHOUT_INPUT: &[&str] = &[
    // What a parsed expression, extended statistics, and entries of GiST and BRIN indexes are stored as.
    "pg_node_tree",
    "pg_ndistinct",
    "pg_dependencies",
    "pg_mcv_list",
    "gtsvector",
    "ext.ghstore",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
];

/// Makes the types that do not come with the server, on source and target. Enum labels that were added later are
/// stored in another order than they sort.
pub(super) const CREATE: &str = r#"
    CREATE SCHEMA ext; CREATE SCHEMA own;
    CREATE EXTENSION hstore SCHEMA ext; CREATE EXTENSION citext SCHEMA ext;
    CREATE TYPE own.mood AS ENUM ('ok', 'it''s', 'größe', 'NULL', '', '{a,b}');
    ALTER TYPE own.mood ADD VALUE 'so so' BEFORE 'ok'; ALTER TYPE own.mood ADD VALUE '"quo\ted"' AFTER 'ok';
    CREATE DOMAIN own.small AS integer CHECK (VALUE > 0); CREATE DOMAIN own.smaller AS own.small CHECK (VALUE < 100);
    CREATE DOMAIN own.few AS integer[] CHECK (cardinality(VALUE) < 4);
    CREATE TYPE own.thing AS (number integer, label text);
    CREATE TYPE own.nested AS (one own.thing, many own.thing[], feels own.mood, lent own.smaller);
    CREATE DOMAIN own.wrapped AS own.thing CHECK ((VALUE).number IS DISTINCT FROM 13);
    CREATE TYPE own.textrange AS RANGE (subtype = text, collation = "C");
    CREATE FUNCTION own.f() RETURNS integer LANGUAGE sql AS 'SELECT 1';
    CREATE TABLE own."A thing" (id integer PRIMARY KEY, note text DEFAULT 'it''s \ a; default');
    COMMENT ON COLUMN own."A thing".note IS 'ends with ''\'; INSERT INTO own."A thing" VALUES (1);"#;

/// Makes the same on a target that has its schema already: with other OIDs, and with the labels in another order.
pub(super) const CREATE_OTHERWISE: &str = r#"
    CREATE SCHEMA own; CREATE SCHEMA ext;
    CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext;
    CREATE TABLE own."A thing" (id integer PRIMARY KEY, note text);
    CREATE FUNCTION own.f() RETURNS integer LANGUAGE sql AS 'SELECT 1';
    CREATE TYPE own.textrange AS RANGE (subtype = text, collation = "C");
    CREATE TYPE own.thing AS (number integer, label text);
    CREATE DOMAIN own.wrapped AS own.thing CHECK ((VALUE).number IS DISTINCT FROM 13);
    CREATE TYPE own.mood AS ENUM ('{a,b}', '', 'so so', 'NULL', '"quo\ted"', 'größe', 'it''s', 'ok');
    CREATE DOMAIN own.few AS integer[] CHECK (cardinality(VALUE) < 4);
    CREATE DOMAIN own.small AS integer CHECK (VALUE > 0); CREATE DOMAIN own.smaller AS own.small CHECK (VALUE < 100);
    CREATE TYPE own.nested AS (one own.thing, many own.thing[], feels own.mood, lent own.smaller);"#;

const fn values(kind: &'static str, texts: &'static [&'static str]) -> Values {
    since(0, kind, texts)
}

const fn since(since: u16, kind: &'static str, texts: &'static [&'static str]) -> Values {
    Values { kind, since, texts }
}

const BUILT_IN: &[Values] = &[
    values("boolean", &["t", "f"]),
    values(
        "bytea",
        &["\\x", "\\x00", "\\x00ff5c275c5c0a09", "\\x5c2e", "\\x5c4e"],
    ),
    values("\"char\"", &["", "a", "\\", "\t", "\n"]),
    // Before PostgreSQL 16 such a byte is printed as it is, and is no text.
    since(16, "\"char\"", &["\\351", "\\377"]),
    values(
        "name",
        &[
            "",
            "n",
            "A \"name\" ünlike others",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde",
        ],
    ),
    values("smallint", &["-32768", "32767", "0"]),
    values("integer", &["-2147483648", "2147483647", "0"]),
    values(
        "bigint",
        &[
            "-9223372036854775808",
            "9223372036854775807",
            "0",
            "9007199254740993",
        ],
    ),
    values("int2vector", &["", "1", "-32768 0 32767"]),
    values("oidvector", &["", "0", "1 4294967295"]),
    values("oid", &["0", "4294967295", "2147483648"]),
    values("tid", &["(0,0)", "(4294967295,65535)", "(1,2)"]),
    values("xid", &["0", "4294967295", "3"]),
    values("cid", &["0", "4294967295", "3"]),
    since(13, "xid8", &["0", "18446744073709551615", "3"]),
    values("regproc", &["-", "now", "own.f"]),
    values("regprocedure", &["-", "abs(integer)", "own.f()"]),
    values("regoper", &["0", "||/"]),
    values("regoperator", &["0", "+(integer,integer)", "-(NONE,bigint)"]),
    values("regclass", &["-", "pg_class", "own.\"A thing\""]),
    values(
        "regtype",
        &["-", "integer", "\"char\"", "own.mood", "own.thing[]"],
    ),
    values("regconfig", &["-", "simple"]),
    values("regdictionary", &["-", "simple"]),
    values("regrole", &["-", "postgres"]),
    values("regnamespace", &["-", "pg_catalog", "own"]),
    since(13, "regcollation", &["-", "\"C\"", "\"default\""]),
    values(
        "aclitem",
        &["postgres=r/postgres", "=r/postgres", "postgres=a*r*w*/postgres"],
    ),
    values(
        "text",
        &[
            "",
            " ",
            "trailing  ",
            "\\N",
            "\\.",
            "\\",
            "NULL",
            "null",
            "tab\there",
            "line\nend",
            "carriage\rreturn\r\n",
            "\n\\.\n",
            "back\\slash \\x41 \\101 \\t",
            "it's \"quoted\"",
            "{curly,comma}",
            "$1 $$ %s :name",
            "\u{1}\u{8}\u{b}\u{c}\u{1b}\u{7f}",
            "\u{feff}byte order mark",
            "\u{202e}right to left\u{2028}",
            "é is not e\u{301}",
            "漢字 🐘 \u{fffd}\u{ffff}\u{10ffff}",
        ],
    ),
    values("character varying", &["", "trailing  ", "trailing", "\\N"]),
    values("bpchar", &["", " ", "a", "a  ", "\\.", "é  "]),
    values(
        "json",
        &[
            "null",
            "\"\"",
            "{}",
            "{\"b\":1, \"a\" :2,\"a\":3}",
            " [ 1.0 , 1.00,1e400, -0 ]\n",
            "\"\\u0000 \\ud83d\\udc18 \\t\"",
            "true",
        ],
    ),
    values(
        "jsonb",
        &[
            "null",
            "\"\"",
            "{}",
            "[]",
            "{\"b\":1, \"a\" :2,\"a\":3}",
            "[1.0, 1.00, 1e400, -0]",
            "[1.00, 1.0, 1e400, -0]",
            "\"\\ud83d\\udc18 \\t \\\\ \\\"\"",
            "{\"é\": null}",
        ],
    ),
    values(
        "jsonpath",
        &["$", "strict $.\"a b\"[*]?(@ > 1.5)", "$.a[last].type()"],
    ),
    values(
        "xml",
        &[
            "",
            "text without markup",
            "<a b=\"c\">&amp;<!-- d --></a>",
            "<a/><b/>",
            "<?xml version=\"1.0\" encoding=\"LATIN1\"?><a>é</a>",
            "<?xml version=\"1.1\" standalone=\"yes\"?><a/>",
            "<!DOCTYPE a><a>1</a>",
            " <a/>\n",
        ],
    ),
    values(
        "point",
        &["(0,0)", "(-0,5e-324)", "(NaN,Infinity)", "(-1.5,1e+308)"],
    ),
    values("line", &["{1,-1,0}", "{0,-1,5}", "{-1,0,0.30000000000000004}"]),
    values("lseg", &["[(0,0),(0,0)]", "[(0,0),(3,4)]", "[(1,1),(4,5)]"]),
    values("box", &["(0,0),(0,0)", "(1,1),(0,0)", "(2,2),(1,1)"]),
    values("path", &["((0,0),(1,1))", "[(0,0),(1,1)]", "[(0.1,0)]"]),
    values(
        "polygon",
        &["((0,0))", "((0,0),(1,1),(1,0))", "((0,0),(2,2),(2,0))"],
    ),
    values("circle", &["<(1,2),0>", "<(0,0),3>", "<(9,9),3>"]),
    values(
        "real",
        &[
            "0",
            "-0",
            "1e-45",
            "1.1754944e-38",
            "3.4028235e+38",
            "-3.4028235e+38",
            "NaN",
            "Infinity",
            "-Infinity",
            "0.1",
            "16777216",
        ],
    ),
    values(
        "double precision",
        &[
            "0",
            "-0",
            "5e-324",
            "2.2250738585072014e-308",
            "1.7976931348623157e+308",
            "-1.7976931348623157e+308",
            "NaN",
            "Infinity",
            "-Infinity",
            "0.1",
            "0.30000000000000004",
        ],
    ),
    values(
        "numeric",
        &[
            "0",
            "0.00",
            "1.0",
            "1.00",
            "-1.0",
            "NaN",
            "1e-16383",
            "1e131071",
            "-12345678901234567890.1234567890",
        ],
    ),
    since(14, "numeric", &["Infinity", "-Infinity"]),
    values(
        "money",
        &["0", "0.01", "-92233720368547758.08", "92233720368547758.07"],
    ),
    values(
        "date",
        &[
            "infinity",
            "-infinity",
            "4714-11-24 BC",
            "0044-03-15 BC",
            "0001-01-01",
            "1582-10-10",
            "2003-02-01",
            "10000-01-01",
            "5874897-12-31",
        ],
    ),
    values(
        "time without time zone",
        &["00:00:00", "24:00:00", "23:59:59.999999", "01:02:03.4"],
    ),
    values(
        "time with time zone",
        &[
            "00:00:00+15:59:59",
            "24:00:00-15:59:59",
            "12:00:00.5+05:30:21",
            "12:00:00+00",
            "13:00:00+01",
        ],
    ),
    values(
        "timestamp without time zone",
        &[
            "infinity",
            "-infinity",
            "4714-11-24 00:00:00 BC",
            "0044-03-15 12:00:00.5 BC",
            "2003-02-01 00:00:00.000001",
            "12345-06-07 08:09:10",
            "294276-12-31 23:59:59.999999",
        ],
    ),
    values(
        "timestamp with time zone",
        &[
            "infinity",
            "-infinity",
            "4714-11-24 00:00:00+00 BC",
            "0044-03-15 12:00:00.5+00 BC",
            "1890-01-01 00:00:00+05:30:21",
            "2003-02-01 00:00:00.000001+00",
            "294276-12-31 23:59:59.999999+00",
        ],
    ),
    values(
        "interval",
        &[
            "0",
            "1 mon",
            "30 days",
            "720:00:00",
            "1 year 2 mons -3 days +04:05:06.7",
            "-1 years -2 mons +3 days -04:05:06.7",
            "-1 days +00:00:00.000001",
            "178000000 years",
            "-178000000 years",
            "2147483647:59:59.999999",
        ],
    ),
    since(17, "interval", &["infinity", "-infinity"]),
    values(
        "uuid",
        &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        ],
    ),
    values("\"bit\"", &["", "0", "1", "010"]),
    values("bit varying", &["", "0", "10101"]),
    values(
        "inet",
        &[
            "0.0.0.0",
            "0.0.0.0/0",
            "10.0.0.1/24",
            "255.255.255.255",
            "::",
            "::ffff:1.2.3.4",
            "2001:db8::1/64",
        ],
    ),
    values(
        "cidr",
        &["0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32", "::/0", "2001:db8::/32"],
    ),
    values(
        "macaddr",
        &["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "08:00:2b:01:02:03"],
    ),
    values(
        "macaddr8",
        &[
            "00:00:00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff:ff:ff",
            "08:00:2b:01:02:03:04:05",
        ],
    ),
    values(
        "tsvector",
        &["", "'a' 'b'", "'a':1A,2B 'cat''s':16383 'back\\\\slash':3"],
    ),
    values(
        "tsquery",
        &[
            "",
            "'a' & !'b' | 'c' <-> 'd'",
            "'a':*AB",
            "'it''s' <3> 'back\\\\slash'",
        ],
    ),
    values("refcursor", &["", "a \"cursor\""]),
    values("pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"]),
    values("txid_snapshot", &["1:1:", "10:20:10,14,15"]),
    since(13, "pg_snapshot", &["1:1:", "10:20:10,14,15"]),
];

const RANGES: &[Values] = &[
    values(
        "int4range",
        &["empty", "(,)", "[1,5)", "[-2147483648,2147483647)"],
    ),
    values(
        "int8range",
        &["empty", "(,0)", "[-9223372036854775808,9223372036854775807)"],
    ),
    values(
        "numrange",
        &["empty", "[1.0,1.00]", "[1.00,1.0]", "(0.1,)", "[-5,NaN]"],
    ),
    values(
        "daterange",
        &[
            "empty",
            "[0044-03-15 BC,infinity)",
            "[2003-02-01,2003-02-02)",
            "(,infinity)",
        ],
    ),
    values(
        "tsrange",
        &[
            "empty",
            "[\"2003-02-01 00:00:00\",infinity)",
            "(\"0044-03-15 00:00:00 BC\",)",
        ],
    ),
    values(
        "tstzrange",
        &[
            "empty",
            "[\"2003-02-01 00:00:00+00\",infinity]",
            "(,\"2003-02-01 00:00:00+05:30\")",
        ],
    ),
    since(14, "int4multirange", &["{}", "{(,)}", "{[1,3),[5,9)}"]),
    since(14, "int8multirange", &["{}", "{(,0)}", "{[1,3),[5,9)}"]),
    since(14, "nummultirange", &["{}", "{[1.0,1.00]}", "{[1.00,1.0],(2,)}"]),
    since(
        14,
        "datemultirange",
        &["{}", "{[0044-03-15 BC,2003-02-01),[2003-02-02,infinity)}"],
    ),
    since(
        14,
        "tsmultirange",
        &["{}", "{[\"2003-02-01 00:00:00\",infinity)}"],
    ),
    since(
        14,
        "tstzmultirange",
        &["{}", "{[\"2003-02-01 00:00:00+00\",infinity)}"],
    ),
];

const CREATED: &[Values] = &[
    values(
        "own.mood",
        &[
            "so so",
            "ok",
            "\"quo\\ted\"",
            "it's",
            "größe",
            "NULL",
            "",
            "{a,b}",
        ],
    ),
    values("own.smaller", &["1", "99"]),
    values("own.few", &["{}", "{1,NULL}", "[0:1]={5,6}"]),
    values(
        "own.thing",
        &["(,)", "(1,)", "(2,\"\")", "(-3,\"a,b\"\"c\\\\d)\")", "(4,NULL)"],
    ),
    values(
        "own.nested",
        &[
            "(,,,)",
            "(\"(,)\",{},ok,1)",
            "(\"(1,\"\"a b\"\")\",\"{\"\"(2,\\\\\"\"c d\\\\\"\")\"\",NULL}\",\"so so\",99)",
        ],
    ),
    values("own.wrapped", &["(,)", "(1,\"a b\")"]),
    values(
        "own.textrange",
        &["empty", "(,)", "[a,b)", "[\"\",\"it's \"\"so\"\" \\\\ (\"]"],
    ),
    since(14, "own.textmultirange", &["{}", "{[a,b),[\"c,d\",e)}"]),
    values(
        "ext.hstore",
        &[
            "",
            "\"a\"=>NULL",
            "\"\"=>\"\", \"b\"=>\"x\\\"y\\\\\", \"é\"=>\"NULL\"",
        ],
    ),
    values("ext.citext", &["", "MiXed", "mixed", "\\N"]),
];

const WITH_MODIFIER: &[Values] = &[
    values("character varying(4)", &["", "abcd", "é  "]),
    values("character(5)", &["", "ab", "ab   ", "abcde"]),
    values("numeric(10,2)", &["0", "12.50", "-99999999.99"]),
    since(15, "numeric(3,-2)", &["0", "-99900"]),
    values("bit(3)", &["000", "101"]),
    values("bit varying(5)", &["", "10101"]),
    values("time(3) without time zone", &["24:00:00", "01:02:03.004"]),
    values(
        "timestamp(0) with time zone",
        &["2003-02-01 23:59:59+00", "infinity"],
    ),
    values("interval year to month", &["-1 year -2 mons", "14 mons"]),
    values("interval day to second(2)", &["-1 days -02:03:04.05", "1 day"]),
];

const ARRAYS: &[Values] = &[
    values(
        "integer[]",
        &[
            "{}",
            "{NULL}",
            "{1,NULL,3}",
            "{{1,2},{3,4}}",
            "[-1:0]={5,6}",
            "[2:2][0:1]={{7,8}}",
        ],
    ),
    values(
        "text[]",
        &[
            "{}",
            "{NULL,\"NULL\",\"\",\" \",\"a\\\"b\\\\c,{}\",'}",
            "{{a,b},{c,NULL}}",
            "[0:1]={tab\there,\"line\nend\"}",
        ],
    ),
    values("bytea[]", &["{}", "{\"\\\\x00ff\",\"\\\\x\"}"]),
    values("box[]", &["{}", "{(3,4),(1,2);(5,6),(0,0)}"]),
    values(
        "jsonb[]",
        &["{}", "{\"{\\\"a\\\": \\\"b\\\\\\\\c\\\"}\",null,\"null\"}"],
    ),
    values("own.mood[]", &["{}", "{\"so so\",\"NULL\",NULL,\"\"}"]),
    values("own.thing[]", &["{}", "{\"(1,\\\"a b\\\")\",NULL,\"(,)\"}"]),
];
