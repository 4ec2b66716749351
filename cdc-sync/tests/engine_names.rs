//! Database products are named by their engine crates and by the registry, nowhere else in code: whatever the
//! core or the binary knows of one product, the next one would have to undo.

use std::path::{Path, PathBuf};

/// In lower case. `pg` and `my` alone are too short to mean anything.
const PRODUCTS: [&str; 9] = [
    "postgres",
    "pgoutput",
    "walsender",
    "mysql",
    "mariadb",
    "mssql",
    "sql server",
    "sqlserver",
    "tiberius",
];

#[test]
fn only_the_registry_names_engines() {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let mut named = Vec::new();
    for folder in [root.join("src"), root.join("../cdc-core/src")] {
        let mut files = Vec::new();
        rust_files(&folder, &mut files);
        assert!(!files.is_empty(), "{}", folder.display());
        for file in files {
            if file.ends_with("cdc-sync/src/engines.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&file).expect("a source file");
            for (number, line) in text.lines().enumerate() {
                let code = code_of(line).to_lowercase();
                if let Some(product) = PRODUCTS.iter().find(|product| code.contains(**product)) {
                    named.push(format!("{}:{}: {product}", file.display(), number + 1));
                }
            }
        }
    }
    assert!(
        named.is_empty(),
        "engines are named in code:\n{}",
        named.join("\n")
    );
}

/// The line without its comment: prose and doc examples may name products.
fn code_of(line: &str) -> &str {
    let trimmed = line.trim_start();
    if trimmed.starts_with("//") {
        return "";
    }
    line.find(" // ").map_or(line, |at| &line[..at])
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a source folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn comments_are_not_code() {
    assert_eq!(code_of("    /// PostgreSQL: unchanged TOAST"), "");
    assert_eq!(code_of("let a = 1; // like PostgreSQL"), "let a = 1;");
    assert_eq!(code_of("connect(\"postgres://h\")"), "connect(\"postgres://h\")");
}
