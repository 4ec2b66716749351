//! Updates that set nothing: their rows are there, and triggers see them.

use cdc_core::model::Identity;
use cdc_core::plan::PlanMode;
use cdc_core::{Action, Kind};

use crate::changes::{Changes, Of, table};
use crate::on_each;

const SCHEMA: &str = "CREATE TABLE t (g text GENERATED ALWAYS AS ('g:' || v) STORED, i int4 GENERATED ALWAYS AS IDENTITY, \
        id int8 PRIMARY KEY, v text); \
    CREATE TABLE seen (id int8, v text); \
    CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS \
        $$ BEGIN INSERT INTO public.seen VALUES (new.id, new.v); RETURN new; END $$; \
    CREATE TRIGGER seen AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION seen(); \
    ALTER TABLE t ENABLE ALWAYS TRIGGER seen; \
    INSERT INTO t (id, v) VALUES (1, 'a'), (2, 'b')";

#[test]
fn an_update_that_sets_nothing_hits_its_row() {
    on_each("touches", SCHEMA, async |mut target| {
        let whole = table("t", &["id", "v"], Identity::Full);
        let keyed = table("t", &["*id", "v", "g"], Identity::Key);
        let row = |id, v| [Of::Text(id), Of::Text(v)];
        let touches = [
            Changes::new().update_from(&whole, &row("1", "a"), &row("1", "a")),
            // On the source the column is an ordinary one.
            Changes::new().update(&keyed, &["2".into(), Of::Unchanged, "another".into()]),
        ];
        for touch in touches {
            let applied = target.apply(touch.group(), PlanMode::Net).await.unwrap();
            assert_eq!(applied, 1);
        }
        assert_eq!(target.sql("TABLE seen"), "1|a\n2|b");
        assert_eq!(
            target.sql("SELECT id, v, g FROM t ORDER BY id"),
            "1|a|g:a\n2|b|g:b"
        );

        let gone = Changes::new().update_from(&whole, &row("9", "x"), &row("9", "x"));
        let error = target.apply(gone.group(), PlanMode::Net).await.unwrap_err();
        assert_eq!((error.kind(), error.what_to_do()), (Kind::Conflict, Action::Stop));
        assert!(error.message().starts_with("update_missing"), "{error}");
        assert_eq!(error.object_name(), Some("public.t (id=9)"));
    });
}
