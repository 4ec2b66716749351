//! What the types of a database's columns are made of: one query fragment for all who ask the catalog.

/// What `format_type` prints of the type of column `a` of `pg_attribute`, domains taken off, those of an array's elements
/// as well: an assignment to a domain rounds and cuts as one to what is below it.
pub(crate) const BASE_TYPE: &str = "\
CASE WHEN EXISTS (SELECT FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
    WHERE t.oid = a.atttypid AND 'd' IN (t.typtype, e.typtype))
THEN (WITH RECURSIVE below (oid, modifier, array_of) AS (
        SELECT a.atttypid, a.atttypmod, ''
        UNION ALL
        SELECT CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END,
            CASE t.typtype WHEN 'd' THEN t.typtypmod ELSE -1 END,
            CASE t.typtype WHEN 'd' THEN b.array_of ELSE '[]' END
        FROM below b JOIN pg_type t ON t.oid = b.oid
        LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
        WHERE 'd' IN (t.typtype, e.typtype))
    SELECT format_type(b.oid, b.modifier) || b.array_of
    FROM below b JOIN pg_type t ON t.oid = b.oid LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
    WHERE t.typtype <> 'd' AND e.typtype IS DISTINCT FROM 'd')
ELSE format_type(a.atttypid, a.atttypmod) END";

/// Common table expressions that follow `WITH RECURSIVE rels (oid) AS (…),` and end in `type_facts`, one row for each
/// type of a column of `rels`:
///
/// - `oid`: the type; `base`: the same with domains taken off; `typtype` is the base's
/// - `cast_name`: the base type's name, fit for a cast. It carries no length: a cast to `varchar(3)` cuts silently,
///   and so does one to a domain over it, where an assignment raises an error.
/// - `equals`: the operator by which its default B-tree or hash operator class compares for equality; NULL when there
///   is none (json, xml, point, composite types). By operator class and not by name, because `box = box` compares
///   areas. With its schema, because the search path is empty and citext's own would not be found.
/// - `from_text`: whether the cast from text is the type's input function. Types with a cast function of their own
///   (xml, regclass, "char") may read the same text otherwise.
pub(crate) const TYPE_FACTS: &str = "\
chain (start, oid, element) AS (
    SELECT DISTINCT a.atttypid, a.atttypid, false FROM rels JOIN pg_attribute a ON a.attrelid = rels.oid
    WHERE a.attnum > 0 AND NOT a.attisdropped
    UNION
    SELECT c.start, CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END, c.element OR t.typtype <> 'd'
    FROM chain c JOIN pg_type t ON t.oid = c.oid
    WHERE t.typtype = 'd' OR (t.typcategory = 'A' AND t.typelem <> 0)),
type_facts (oid, base, typtype, cast_name, equals, from_text) AS (
    SELECT s.start, b.oid, b.typtype, format_type(b.oid, -1),
        CASE WHEN e.equals IS NULL OR l.oid = b.oid THEN e.equals ELSE 'OPERATOR(pg_catalog.=)' END,
        NOT EXISTS (SELECT FROM pg_cast x
            WHERE x.castsource = 'text'::regtype AND x.casttarget = b.oid AND x.castmethod = 'f')
    FROM (SELECT DISTINCT start FROM chain) s
    CROSS JOIN LATERAL (SELECT t.oid, t.typtype FROM chain c JOIN pg_type t ON t.oid = c.oid
        WHERE c.start = s.start AND NOT c.element AND t.typtype <> 'd') b
    CROSS JOIN LATERAL (SELECT t.oid, t.typtype FROM chain c JOIN pg_type t ON t.oid = c.oid
        WHERE c.start = s.start AND t.typtype <> 'd' AND NOT (t.typcategory = 'A' AND t.typelem <> 0)) l
    LEFT JOIN LATERAL (
        SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname) AS equals
        FROM pg_opclass k
        JOIN pg_amop m ON m.amopfamily = k.opcfamily AND m.amoplefttype = k.opcintype
            AND m.amoprighttype = k.opcintype AND m.amopstrategy = CASE k.opcmethod WHEN 403 THEN 3 ELSE 1 END
        JOIN pg_operator o ON o.oid = m.amopopr
        JOIN pg_namespace n ON n.oid = o.oprnamespace
        WHERE k.opcdefault AND k.opcmethod IN (403, 405) AND (k.opcintype = l.oid
            OR k.opcintype::regtype::text = CASE l.typtype
                WHEN 'e' THEN 'anyenum' WHEN 'r' THEN 'anyrange' WHEN 'm' THEN 'anymultirange' END
            OR EXISTS (SELECT FROM pg_cast x WHERE x.castsource = l.oid AND x.casttarget = k.opcintype
                AND x.castmethod = 'b' AND x.castcontext = 'i'))
        ORDER BY k.opcintype = l.oid DESC, k.opcmethod,
            (SELECT t.typispreferred FROM pg_type t WHERE t.oid = k.opcintype) DESC LIMIT 1) e ON true)";
