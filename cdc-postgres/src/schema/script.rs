//! Divides the script that `pg_restore` prints into statements, by the rules of psql's own lexer
//! (`src/fe_utils/psqlscan.l`).
//!
//! A semicolon ends a statement only outside quotes, comments, parentheses (`CREATE RULE … DO (a; b)`) and the
//! body of an SQL-standard function (`BEGIN ATOMIC … END`, PostgreSQL 14).

/// One statement, without comments before it and without its semicolon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Statement<'a>(pub(super) &'a str);

impl<'a> Statement<'a> {
    /// The text.
    pub(crate) fn text(self) -> &'a str {
        self.0
    }

    /// Whether the statement starts with these words, whatever the space between them.
    pub(super) fn starts_with(self, words: &[&str]) -> bool {
        let mut found = self.0.split_ascii_whitespace();
        words
            .iter()
            .all(|word| found.next().is_some_and(|text| text.eq_ignore_ascii_case(word)))
    }

    /// The beginning for an error message: one line without a function's body and without `OPTIONS (…)`, which
    /// can hold the password of a foreign server.
    pub(super) fn title(self) -> String {
        const SHOWN: usize = 160;
        let line: Vec<&str> = self
            .0
            .split_ascii_whitespace()
            .take_while(|word| *word != "OPTIONS" && !word.starts_with("OPTIONS("))
            .take(24)
            .collect();
        let line = line.join(" ");
        match line.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
            None => line,
        }
    }
}

/// The statements of `script`, in order. `\restrict` and `\unrestrict`, which newer `pg_dump`s print for psql, are
/// left out as the whole lines that they are.
pub(crate) fn statements(script: &str) -> Vec<Statement<'_>> {
    let mut lexer = Lexer {
        text: script,
        bytes: script.as_bytes(),
        at: 0,
    };
    std::iter::from_fn(|| lexer.next_statement()).collect()
}

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

/// Where a statement stands with respect to `BEGIN ATOMIC`.
#[derive(Default)]
struct Body {
    /// the first words, as long as they can begin `CREATE [OR REPLACE] FUNCTION|PROCEDURE`
    words: Vec<String>,
    /// open `BEGIN` and `CASE`
    depth: usize,
}

impl Body {
    fn word(&mut self, word: &str) {
        let word = word.to_ascii_lowercase();
        if self.words.len() < 4 {
            self.words.push(word.clone());
        }
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let routine = matches!(
            words.as_slice(),
            ["create", "function" | "procedure", ..] | ["create", "or", "replace", "function" | "procedure"]
        );
        match word.as_str() {
            "begin" if routine => self.depth += 1,
            "case" if self.depth > 0 => self.depth += 1,
            "end" => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

impl<'a> Lexer<'a> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    fn next_statement(&mut self) -> Option<Statement<'a>> {
        self.skip_between();
        let start = self.at;
        let (mut parens, mut body) = (0_usize, Body::default());
        while let Some(byte) = self.peek(0) {
            match byte {
                b';' if parens == 0 && body.depth == 0 => {
                    let statement = self.slice(start, self.at);
                    self.at += 1;
                    return Some(Statement(statement));
                }
                b'(' => {
                    parens += 1;
                    self.at += 1;
                }
                b')' => {
                    parens = parens.saturating_sub(1);
                    self.at += 1;
                }
                b'\'' => self.quoted(b'\'', false),
                b'"' => self.quoted(b'"', false),
                b'$' => self.dollar(),
                b'-' if self.peek(1) == Some(b'-') => self.line(),
                b'/' if self.peek(1) == Some(b'*') => self.block_comment(),
                _ if is_word_start(byte) => self.word(&mut body),
                b'0'..=b'9' => self.number(),
                _ => self.at += 1,
            }
        }
        let rest = self.slice(start, self.at).trim_end();
        (!rest.is_empty()).then_some(Statement(rest))
    }

    /// Space, comments, empty statements and psql's commands between statements.
    fn skip_between(&mut self) {
        while let Some(byte) = self.peek(0) {
            match byte {
                b'-' if self.peek(1) == Some(b'-') => self.line(),
                b'/' if self.peek(1) == Some(b'*') => self.block_comment(),
                b'\\' => self.line(),
                b';' => self.at += 1,
                // The server's scanner has the vertical tab as well (`space` of scan.l).
                _ if byte.is_ascii_whitespace() || byte == b'\x0b' => self.at += 1,
                _ => break,
            }
        }
    }

    fn slice(&self, start: usize, end: usize) -> &'a str {
        self.text.get(start..end).unwrap_or_default()
    }

    fn line(&mut self) {
        while let Some(byte) = self.peek(0) {
            self.at += 1;
            if byte == b'\n' {
                break;
            }
        }
    }

    /// A comment that nests, as in the SQL standard.
    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        while let Some(byte) = self.peek(0) {
            match (byte, self.peek(1)) {
                (b'/', Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return;
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    /// A string or a quoted identifier. A doubled quote begins another one at once, which comes to the same.
    fn quoted(&mut self, quote: u8, backslash_escapes: bool) {
        self.at += 1;
        while let Some(byte) = self.peek(0) {
            self.at += 1;
            if byte == quote {
                return;
            }
            if byte == b'\\' && backslash_escapes {
                self.at += 1;
            }
        }
    }

    /// `$$ … $$` or `$tag$ … $tag$`; a lone `$` otherwise.
    fn dollar(&mut self) {
        let start = self.at;
        let mut end = start + 1;
        while self
            .bytes
            .get(end)
            .is_some_and(|byte| is_word_start(*byte) || (end > start + 1 && byte.is_ascii_digit()))
        {
            end += 1;
        }
        if self.bytes.get(end) != Some(&b'$') {
            self.at += 1;
            return;
        }
        let tag = self.slice(start, end + 1);
        let after = self.text.get(end + 1..).unwrap_or_default();
        self.at = after
            .find(tag)
            .map_or(self.bytes.len(), |found| end + 1 + found + tag.len());
    }

    /// A number, so that the letters in `1e5` are no word.
    fn number(&mut self) {
        while self
            .peek(0)
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'.')
        {
            self.at += 1;
        }
    }

    /// A key word or name, or the letter before a string: `E'…'` takes backslashes, `B'…'`, `X'…'`, `U&'…'` none.
    fn word(&mut self, body: &mut Body) {
        let start = self.at;
        while self
            .peek(0)
            .is_some_and(|byte| is_word_start(byte) || byte.is_ascii_digit() || byte == b'$')
        {
            self.at += 1;
        }
        let word = self.slice(start, self.at);
        if self.peek(0) == Some(b'\'') && word.eq_ignore_ascii_case("e") {
            self.quoted(b'\'', true);
        } else {
            body.word(word);
        }
    }
}

/// A letter, an underscore, or any byte of a character outside ASCII.
fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(script: &str) -> Vec<&str> {
        statements(script).into_iter().map(Statement::text).collect()
    }

    #[test]
    fn comments_and_psql_commands_are_left_out() {
        let script = "--\n-- PostgreSQL database dump; not one\n--\n\\restrict abc;def\n\nSET a = 0;\n/* x; /* y; */ z; */\n\
                      SELECT 1;;\n\\unrestrict abc\n-- end";
        assert_eq!(split(script), ["SET a = 0", "SELECT 1"]);
    }

    #[test]
    fn space_of_any_kind_is_no_statement() {
        assert_eq!(
            split("SELECT 1; \t\r\n\u{b}\u{c};\u{b}SELECT 2"),
            ["SELECT 1", "SELECT 2"]
        );
    }

    #[test]
    fn semicolons_in_quotes_end_nothing() {
        let script =
            r#"COMMENT ON TABLE "a;""b" IS 'it''s; fine\';SELECT E'a\'; b', U&'\0041;';SELECT 'é;', "ü;";"#;
        assert_eq!(
            split(script),
            [
                r#"COMMENT ON TABLE "a;""b" IS 'it''s; fine\'"#,
                r"SELECT E'a\'; b', U&'\0041;'",
                r#"SELECT 'é;', "ü;""#,
            ]
        );
    }

    #[test]
    fn dollar_quotes_hold_anything() {
        let script =
            "CREATE FUNCTION f() AS $_$ a; $$ b; ' $_$ LANGUAGE x;DO $$ ; $$;SELECT a$1, $1;SELECT 2;";
        assert_eq!(
            split(script),
            [
                "CREATE FUNCTION f() AS $_$ a; $$ b; ' $_$ LANGUAGE x",
                "DO $$ ; $$",
                "SELECT a$1, $1",
                "SELECT 2"
            ]
        );
        assert_eq!(split("DO $x$ never; closed"), ["DO $x$ never; closed"]);
    }

    #[test]
    fn a_standard_body_is_one_statement() {
        let body = "CREATE FUNCTION f(i int) RETURNS int\n LANGUAGE sql\n BEGIN ATOMIC\n SELECT CASE WHEN i > 1 THEN 1 \
                    ELSE 2 END;\n SELECT 3;\n END";
        let other = "CREATE OR REPLACE PROCEDURE p() BEGIN ATOMIC INSERT INTO t VALUES (1); END";
        let script = format!("{body};{other};SELECT 1;");
        assert_eq!(split(&script), [body, other, "SELECT 1"]);
        assert_eq!(
            split("CREATE TABLE begin (a int);SELECT 1;"),
            ["CREATE TABLE begin (a int)", "SELECT 1"]
        );
    }

    #[test]
    fn a_rule_with_several_actions_is_one_statement() {
        let rule = "CREATE RULE r AS ON INSERT TO t DO (DELETE FROM a; DELETE FROM b)";
        assert_eq!(split(&format!("{rule};SELECT 1;")), [rule, "SELECT 1"]);
    }

    #[test]
    fn no_text_breaks_it() {
        for text in [
            "", "'", "\"", "$", "$$", "/*", "--", "\\", "(", ")", "e'\\", "1e", "é", ";;;", "BEGIN", "END;",
        ] {
            statements(text);
        }
    }

    #[test]
    fn a_title_is_one_short_line_without_options() {
        let statement = Statement("CREATE USER MAPPING FOR a SERVER b\n OPTIONS (\n password 'secret')");
        assert_eq!(statement.title(), "CREATE USER MAPPING FOR a SERVER b");
        let long = format!("CREATE TABLE {}", "ü".repeat(500));
        assert!(Statement(&long).title().chars().count() <= 161);
        assert!(Statement("create  unique\nindex x").starts_with(&["CREATE", "UNIQUE", "INDEX"]));
        assert!(!Statement("CREATE").starts_with(&["CREATE", "UNIQUE"]));
    }
}
