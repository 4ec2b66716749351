//! What a user is told when a server cannot be reached or refuses us: the exit code, the cause, and what to do.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;
use testbed::pair::LIMIT;
use testbed::postgres::{PASSWORD, PasswordAuth};
use testbed::{PgCluster, Process, process};

/// Runs `check` with this source and these variables; its report.
fn check(source: &str, target: &str, variables: &[(&str, &str)], code: i32) -> Value {
    let mut command: Command = process::cdc_sync().unwrap();
    // Long enough for an answer on a slow machine: those that may change are waited for that long.
    command.args(["check", "--json", "--connect-timeout", "8s"]);
    command.args(["--source", source, "--target", target]);
    command.envs(variables.iter().copied());
    let done = Process::run(command, LIMIT).unwrap();
    assert_eq!(
        done.code(),
        Some(code),
        "{source}\n{}\n{}",
        done.stdout,
        done.stderr
    );
    for text in [&done.stdout, &done.stderr] {
        assert!(!text.contains(PASSWORD), "the password is shown: {text}");
    }
    serde_json::from_str(&done.stdout).unwrap()
}

/// The error in one line.
fn said(report: &Value) -> String {
    let part = |key: &str| report["error"][key].as_str().unwrap_or_default().to_owned();
    format!("{} | {} | {}", part("object"), part("message"), part("remedy"))
}

struct Refusal {
    /// after the host of the URL, or the whole URL
    url: String,
    variables: Vec<(&'static str, String)>,
    code: i32,
    parts: [&'static str; 2],
}

fn refusals(cluster: &PgCluster, passfile: &str, services: &str) -> Vec<Refusal> {
    let port = cluster.port();
    let with_password = format!("postgres://postgres:{PASSWORD}@127.0.0.1:{port}/postgres");
    let without = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let refusal = |url: String, code, parts| Refusal {
        url,
        variables: Vec::new(),
        code,
        parts,
    };
    vec![
        refusal(
            format!("{with_password}?sslmode=require"),
            12,
            ["does not support TLS", "sslmode=disable"],
        ),
        refusal(without.clone(), 12, ["asks for a password", "PGPASSWORD"]),
        refusal(
            format!("{without}?passfile={passfile}"),
            12,
            ["asks for a password", "chmod 0600"],
        ),
        refusal(
            with_password.replace(PASSWORD, "wrong"),
            12,
            ["password authentication failed", "PGPASSWORD"],
        ),
        refusal(
            with_password.replace(&format!("{port}/postgres"), &format!("{port}/nowhere")),
            12,
            ["\"nowhere\" does not exist", "CREATE DATABASE"],
        ),
        refusal(
            with_password.replace("//postgres", "//nobody"),
            12,
            ["password authentication failed", "PGPASSWORD"],
        ),
        refusal(
            format!("postgres://locked:{PASSWORD}@127.0.0.1:{port}/postgres"),
            12,
            ["not permitted to log in", "LOGIN"],
        ),
        refusal(
            format!("postgres://shut:{PASSWORD}@127.0.0.1:{port}/postgres"),
            12,
            ["permission denied for database", "GRANT CONNECT"],
        ),
        refusal(
            format!("postgres://rejected@127.0.0.1:{port}/postgres"),
            12,
            ["rejects connection", "pg_hba.conf"],
        ),
        refusal(
            "postgres://postgres@127.0.0.1:1/postgres".to_owned(),
            12,
            ["refused", "--connect-timeout"],
        ),
        refusal(
            format!("postgres://postgres@/postgres?host=/nowhere&port={port}"),
            12,
            ["/nowhere/.s.PGSQL", "--connect-timeout"],
        ),
        refusal(
            format!("{with_password}?target_session_attrs=standby"),
            12,
            ["not a standby", "target_session_attrs"],
        ),
        refusal(
            format!("{without}?sslmode=verify_full"),
            2,
            ["sslmode", "verify-full"],
        ),
        refusal(
            format!("{without}?target_session_attrs=master"),
            2,
            ["target_session_attrs", "primary"],
        ),
        refusal(format!("{without}?sslmod=require"), 2, ["\"sslmod\"", "sslmode"]),
        refusal(
            format!("{without}?service=odd"),
            2,
            ["service \"odd\"", "not defined"],
        ),
        Refusal {
            variables: vec![("PGSERVICEFILE", services.to_owned())],
            ..refusal("postgres://?service=broken".to_owned(), 2, ["\"hots\"", "line 2"])
        },
        refusal(
            "postgres://postgres@h1,h2,h3/postgres?port=1,2".to_owned(),
            2,
            ["2 ports for 3 hosts", "one port for all"],
        ),
        refusal(
            format!("postgres://postgres:a%zz@127.0.0.1:{port}/postgres"),
            2,
            ["the password", "%25"],
        ),
    ]
}

#[test]
fn each_refusal_has_its_code_cause_and_remedy() {
    let cluster = PgCluster::builder(17)
        .password_auth(PasswordAuth::Scram)
        .hba("host all rejected 127.0.0.1/32 reject")
        .start()
        .unwrap();
    let roles = format!(
        "CREATE ROLE locked PASSWORD '{PASSWORD}'; CREATE ROLE shut LOGIN PASSWORD '{PASSWORD}';
         REVOKE CONNECT ON DATABASE postgres FROM PUBLIC"
    );
    cluster.sql("postgres", &roles).unwrap();
    let target = PgCluster::builder(17).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let passfile = folder.path().join("pgpass");
    std::fs::write(&passfile, format!("*:*:*:*:{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o644)).unwrap();
    let services = folder.path().join("services");
    std::fs::write(&services, "[broken]\nhots=h\n").unwrap();
    let home = folder.path().display().to_string();
    let (passfile, services) = (passfile.display().to_string(), services.display().to_string());
    let mut wrong = Vec::new();
    for refusal in refusals(&cluster, &passfile, &services) {
        let mut variables = vec![("HOME", home.as_str())];
        variables.extend(
            refusal
                .variables
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        );
        let report = check(&refusal.url, &target.url("postgres"), &variables, refusal.code);
        let said = said(&report);
        let complete = refusal.parts.iter().all(|part| said.contains(part));
        if !complete || report["error"]["remedy"].is_null() {
            wrong.push(format!("{:?} or a remedy is not in {said}", refusal.parts));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The same with the password where it belongs.
    std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o600)).unwrap();
    let url = format!(
        "postgres://postgres@127.0.0.1:{}/postgres?passfile={passfile}",
        cluster.port()
    );
    let report = check(&url, &target.url("postgres"), &[("HOME", &home)], 3);
    assert_eq!(report["findings"][0]["id"], "NO-TABLES", "{report}");
}
