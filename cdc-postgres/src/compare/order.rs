//! How the server is told the order rule of [`cdc_core::compare`].

use cdc_core::compare::KeyOrder;

use crate::wire::session::identifier;

/// Types as `pg_type.dat` numbers them.
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT4: u32 = 23;
    pub(super) const TEXT: u32 = 25;
    pub(super) const OID: u32 = 26;
    pub(super) const VARCHAR: u32 = 1043;
    pub(super) const UUID: u32 = 2950;
}

/// How the server stores text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As UTF-8, which is what we compare.
    Utf8,
    /// As bytes of no stated encoding, which nothing can convert: compared as they are.
    SqlAscii,
    /// In another encoding, whose bytes sort differently.
    Other,
}

impl Encoding {
    /// The encoding called `name` in `server_encoding`.
    pub(super) fn of(name: &str) -> Self {
        match name {
            "UTF8" => Self::Utf8,
            "SQL_ASCII" => Self::SqlAscii,
            _ => Self::Other,
        }
    }

    /// The encoding in which COPY gives text.
    pub(super) fn of_copy(self) -> &'static str {
        match self {
            Self::SqlAscii => "SQL_ASCII",
            Self::Utf8 | Self::Other => "UTF8",
        }
    }
}

/// A column to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) type_oid: u32,
    pub(super) not_null: bool,
}

impl Column {
    /// How the column is ordered as part of a key, or (`keyed` false) of a whole row.
    pub(super) fn order(&self, keyed: bool) -> KeyOrder {
        match self.type_oid {
            oid::INT2 | oid::INT4 | oid::INT8 | oid::OID if keyed => KeyOrder::Integer,
            _ => KeyOrder::Text,
        }
    }

    /// Its term in ORDER BY.
    ///
    /// The text is that of the type's output function, as COPY gives it: `format('%s')` calls it, while a cast to
    /// text may be another function (of `bpchar` it cuts blanks). Types whose own order is that of their text's
    /// bytes are ordered as they are, so that an index serves.
    pub(super) fn sort_term(&self, order: KeyOrder, encoding: Encoding) -> String {
        let column = identifier(&self.name);
        let term = match (order, self.type_oid) {
            (KeyOrder::Integer, _) | (KeyOrder::Text, oid::BOOL | oid::BYTEA | oid::UUID) => column,
            (KeyOrder::Text, oid::TEXT | oid::VARCHAR) => bytewise(&column, encoding),
            (KeyOrder::Text, _) => {
                let text = bytewise(&format!("format('%s', {column})"), encoding);
                if self.not_null {
                    text
                } else {
                    // format() makes NULL the empty text. IS NULL would be true for a row of NULLs, too.
                    format!("CASE WHEN {column} IS DISTINCT FROM NULL THEN {text} END")
                }
            }
        };
        if self.not_null {
            term
        } else {
            format!("{term} NULLS FIRST")
        }
    }
}

/// `text`, ordered by the bytes of its UTF-8.
fn bytewise(text: &str, encoding: Encoding) -> String {
    match encoding {
        Encoding::Utf8 | Encoding::SqlAscii => format!("{text} COLLATE \"C\""),
        Encoding::Other => format!("convert_to({text}, 'UTF8')"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(type_oid: u32, not_null: bool, keyed: bool, encoding: Encoding) -> String {
        let column = Column {
            name: "c".into(),
            type_oid,
            not_null,
        };
        column.sort_term(column.order(keyed), encoding)
    }

    #[test]
    fn integers_in_a_key_are_ordered_by_value_and_elsewhere_by_text() {
        assert_eq!(term(oid::INT8, true, true, Encoding::Utf8), "\"c\"");
        assert_eq!(term(oid::INT4, false, true, Encoding::Utf8), "\"c\" NULLS FIRST");
        assert_eq!(
            term(oid::INT2, true, false, Encoding::Utf8),
            "format('%s', \"c\") COLLATE \"C\""
        );
    }

    #[test]
    fn text_is_ordered_by_its_bytes_in_utf8() {
        assert_eq!(
            term(oid::TEXT, true, true, Encoding::SqlAscii),
            "\"c\" COLLATE \"C\""
        );
        assert_eq!(
            term(oid::VARCHAR, false, true, Encoding::Other),
            "convert_to(\"c\", 'UTF8') NULLS FIRST"
        );
        assert_eq!(
            term(1700, false, true, Encoding::Other),
            "CASE WHEN \"c\" IS DISTINCT FROM NULL THEN convert_to(format('%s', \"c\"), 'UTF8') END NULLS FIRST"
        );
    }

    #[test]
    fn types_that_sort_like_their_text_keep_their_order() {
        for type_oid in [oid::BOOL, oid::BYTEA, oid::UUID] {
            assert_eq!(term(type_oid, true, true, Encoding::Other), "\"c\"");
            assert_eq!(term(type_oid, true, false, Encoding::Utf8), "\"c\"");
        }
    }
}
