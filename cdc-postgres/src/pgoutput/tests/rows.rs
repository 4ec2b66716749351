//! Row changes and relations.

use std::sync::Arc;

use cdc_core::model::{Identity, TableRole};
use cdc_core::{DataType, Kind};

use super::super::encode::Old;
use super::super::message::{Message, TypeName};
use super::*;

#[test]
fn each_column_state_is_kept_apart() {
    let batch = one(&[
        t(b'd'),
        encode::insert(T, &[text("1"), text(""), Field::Null]),
        encode::update(T, None, &[text("1"), text("b"), Field::Unchanged]),
        encode::update(
            T,
            Some(Old::Key(&[text("1"), Field::Null, Field::Null])),
            &[text("2"), Field::Null, Field::Unchanged],
        ),
        encode::delete(T, Old::Key(&[text("2"), Field::Null, Field::Null])),
    ])
    .unwrap();
    assert_eq!(
        rows_of(&batch),
        [
            "Insert public.t - / '1','',null",
            "Update public.t - / '1','b',unchanged",
            "Update public.t '1',absent,absent / '2',null,unchanged",
            "Delete public.t '2',absent,absent / -",
        ]
    );
    let counts = batch.txns()[0].counts;
    assert_eq!((counts.read, counts.filtered, counts.internal), (4, 0, 0));
}

#[test]
fn under_full_identity_an_unchanged_value_comes_from_the_old_row() {
    let old = [text("1"), Field::Null, text("long")];
    let batch = one(&[
        t(b'f'),
        encode::update(
            T,
            Some(Old::Full(&old)),
            &[text("1"), text("b"), Field::Unchanged],
        ),
        encode::update(
            T,
            Some(Old::Full(&old)),
            &[Field::Unchanged, Field::Unchanged, Field::Null],
        ),
        encode::delete(T, Old::Full(&old)),
    ])
    .unwrap();
    assert_eq!(
        rows_of(&batch),
        [
            "Update public.t '1',null,'long' full / '1','b','long'",
            "Update public.t '1',null,'long' full / '1',null,null",
            "Delete public.t '1',null,'long' full / -",
        ]
    );
}

#[test]
fn bytes_pass_as_they_are() {
    let batch = one(&[
        t(b'd'),
        encode::insert(T, &[text("1"), Field::Text(b"\xE9\x80"), Field::Null]),
    ])
    .unwrap();
    assert_eq!(rows_of(&batch), ["Insert public.t - / '1','\\xe9\\x80',null"]);
}

#[test]
fn a_relation_that_did_not_change_keeps_its_schema() {
    let insert = || encode::insert(T, &row("1", "a"));
    let mut limited = table(T, "public", "t", b'd');
    limited.columns[1].type_oid = 1043;
    limited.columns[1].type_modifier = 14;
    let batch = one(&[
        t(b'd'),
        insert(),
        t(b'd'),
        insert(),
        t(b'i'),
        insert(),
        encode::relation(&limited),
        insert(),
    ])
    .unwrap();
    let schemas: Vec<_> = (0..4)
        .map(|row| batch.event(row).unwrap().table().unwrap())
        .collect();
    assert!(Arc::ptr_eq(schemas[0], schemas[1]));
    // The same key, by default or by its index, is the same to us. A type is not: the target's may not hold it.
    assert!(Arc::ptr_eq(schemas[0], schemas[2]));
    assert!(!Arc::ptr_eq(schemas[0], schemas[3]));
    assert_eq!(&*schemas[3].columns[1].declared, "character varying(10)");
    assert_eq!(batch.tables().len(), 2);
}

#[test]
fn a_table_altered_within_a_transaction_has_a_new_schema_from_there_on() {
    let mut narrow = table(T, "public", "t", b'd');
    narrow.columns.pop();
    let batch = one(&[
        t(b'd'),
        encode::insert(T, &row("1", "a")),
        encode::relation(&narrow),
        encode::insert(T, &[text("2"), text("b")]),
    ])
    .unwrap();
    assert_eq!(
        rows_of(&batch),
        ["Insert public.t - / '1','a',null", "Insert public.t - / '2','b'"]
    );
    assert_eq!(batch.tables().len(), 2);
}

#[test]
fn schemas_tell_identity_role_and_types() {
    let mut decoder = decoder();
    let mut frames = Frames::default();
    let mut mood = table(1, "public", "m", b'd');
    mood.columns[1].type_oid = 20_000;
    transaction(
        &mut frames,
        0x200,
        &[
            encode::type_name(&TypeName {
                oid: 20_000,
                namespace: "app",
                name: "mood",
            }),
            encode::relation(&mood),
            encode::insert(1, &row("1", "sad")),
            encode::relation(&table(2, "pg_catalog", "x", b'i')),
            encode::insert(2, &row("1", "")),
            encode::relation(&table(3, "public", "n", b'n')),
            encode::insert(3, &row("1", "")),
            encode::relation(&table(4, "public", "f", b'f')),
            encode::insert(4, &row("1", "")),
        ],
    );
    let batch = decode(&mut decoder, &frames.chunk()).unwrap();
    let schemas = batch.tables();
    let identities: Vec<Identity> = schemas.iter().map(|schema| schema.identity).collect();
    assert_eq!(
        identities,
        [Identity::Key, Identity::Key, Identity::Nothing, Identity::Full]
    );
    assert_eq!(
        schemas[0].columns[1].data_type,
        DataType::Opaque("app.mood".into())
    );
    assert_eq!(
        schemas[0].columns[0].data_type,
        DataType::Int {
            bits: 32,
            signed: true
        }
    );
    assert!(schemas[0].columns[0].identity && !schemas[0].columns[1].identity);
    assert_eq!(schemas[1].name, named("pg_catalog", "x"));
    assert!(schemas.iter().all(|schema| schema.role == TableRole::User));

    // The same relation, but its type has been renamed.
    let mut frames = Frames::default();
    let renamed = TypeName {
        oid: 20_000,
        namespace: "app",
        name: "humour",
    };
    transaction(
        &mut frames,
        0x300,
        &[
            encode::type_name(&renamed),
            encode::relation(&mood),
            encode::insert(1, &row("2", "sad")),
        ],
    );
    let batch = decode(&mut decoder, &frames.chunk()).unwrap();
    assert_eq!(
        batch.tables()[0].columns[1].data_type,
        DataType::Opaque("app.humour".into())
    );
}

#[test]
fn a_default_identity_without_key_cannot_find_rows() {
    let mut keyless = table(T, "public", "t", b'd');
    keyless.columns[0].key = false;
    let keyless = encode::relation(&keyless);
    assert!(one(&[keyless.clone(), encode::insert(T, &row("1", "a"))]).is_ok());
    let error = one(&[keyless, encode::update(T, None, &row("1", "a"))]).unwrap_err();
    assert_eq!(error.kind(), Kind::Schema);
    assert_eq!(error.object_name(), Some("table public.t"));
}

#[test]
fn a_row_of_another_width_is_refused_with_both_counts() {
    let error = one(&[t(b'd'), encode::insert(T, &[text("1")])]).unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol);
    let shown = error.to_string();
    assert!(
        shown.contains("table public.t") && shown.contains("1 columns") && shown.contains("with 3"),
        "{shown}"
    );
    assert!(error.remedy_text().unwrap().contains("15.1"));
    // The same for the old row.
    assert!(refused(&[t(b'd'), encode::delete(T, Old::Key(&[text("1")]))]).contains("1 columns"));
}

#[test]
fn a_change_of_an_unknown_relation_is_refused() {
    for message in [
        encode::insert(5, &row("1", "a")),
        encode::delete(5, Old::Key(&row("1", "a"))),
        encode::truncate(false, false, &[5]),
    ] {
        assert!(refused(&[t(b'd'), message]).contains("OID 5"));
    }
}

#[test]
fn binary_values_are_refused_where_text_was_asked_for() {
    let shown = refused(&[
        t(b'd'),
        encode::insert(T, &[text("1"), Field::Binary(b"x"), Field::Null]),
    ]);
    assert!(shown.contains("unknown column kind 'b'"), "{shown}");
}

#[test]
fn markers_out_of_place_are_refused() {
    let mut insert_with_key = encode::insert(T, &row("1", "a"));
    insert_with_key[5] = b'K';
    let mut delete_with_new = encode::delete(T, Old::Key(&row("1", "a")));
    delete_with_new[5] = b'N';
    let mut update_with_two_olds = encode::update(T, Some(Old::Key(&row("1", "a"))), &row("1", "a"));
    let new = update_with_two_olds
        .iter()
        .rposition(|byte| *byte == b'N')
        .unwrap();
    update_with_two_olds[new] = b'K';
    for message in [insert_with_key, delete_with_new, update_with_two_olds] {
        let shown = refused(&[t(b'd'), message]);
        assert!(shown.contains("unknown tuple marker"), "{shown}");
    }
}

#[test]
fn messages_read_back_as_written() {
    let relation = table(T, "public", "t", b'i');
    let bytes = encode::relation(&relation);
    let Ok(Message::Relation(read)) = Message::parse(ProtocolVersion::V1, &bytes) else {
        panic!("not a relation");
    };
    assert_eq!(read, relation);
    let bytes = encode::truncate(true, false, &[1, 2]);
    let Ok(Message::Truncate(read)) = Message::parse(ProtocolVersion::V1, &bytes) else {
        panic!("not a truncate");
    };
    assert_eq!((read.cascade, read.restart_identity), (true, false));
    assert_eq!(read.relations().collect::<Vec<_>>(), [1, 2]);
}

/// Relations whose ids end alike take the same slot of those found at once; an id that nobody has may be 0.
#[test]
fn tables_that_alternate_are_told_apart() {
    let tables = [(0, "zero"), (16, "a"), (32, "b")];
    let announced = tables.map(|(id, name)| encode::relation(&table(id, "public", name, b'd')));
    let insert = |id| encode::insert(id, &row("1", "x"));
    let mut messages = announced.to_vec();
    messages.extend([16, 32, 0, 16, 16, 32, 0].map(insert));
    let batch = one(&messages).unwrap();
    let wanted = ["a", "b", "zero", "a", "a", "b", "zero"];
    assert_eq!(
        rows_of(&batch),
        wanted.map(|name| format!("Insert public.{name} - / '1','x',null"))
    );
    messages.push(insert(48));
    assert!(refused(&messages).contains("OID 48"));
    assert!(refused(&[insert(0)]).contains("OID 0,"));
}
