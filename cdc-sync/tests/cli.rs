//! The command line from outside: what is printed where, and with which exit code. No server is needed.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Runs `cdc-sync` with nothing of this process's settings.
fn cdc_sync(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary runs")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdc-sync"));
    command.args(arguments).stdin(Stdio::null()).env("COLUMNS", "100");
    for variable in ["SOURCE_URL", "TARGET_URL", "CONFIG", "JOB", "LOG"] {
        command.env_remove(format!("CDC_SYNC_{variable}"));
    }
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> serde_json::Value {
    let text = stdout(output);
    assert_eq!(text.lines().count(), 1, "one object: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A port on which nobody listens.
fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn unreachable_url(user: &str) -> String {
    format!("postgres://{user}@127.0.0.1:{}/shop", closed_port())
}

/// Compares with a stored text; `UPDATE_SNAPSHOTS=1` stores it.
fn assert_snapshot(name: &str, text: &str) {
    let path = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"))
        .join("tests/snapshots")
        .join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).expect("stored");
        return;
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == text,
        "{} has changed; look at it, then run with UPDATE_SNAPSHOTS=1\n{text}",
        path.display()
    );
}

#[test]
fn help_is_stable_and_goes_to_stdout() {
    for verb in [
        "",
        "check",
        "init",
        "run",
        "status",
        "verify",
        "repair",
        "report",
        "tail",
        "replay",
        "conflicts",
        "cleanup",
        "completions",
        "resync",
        "man",
    ] {
        let arguments: Vec<&str> = [verb, "--help"]
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect();
        let output = cdc_sync(&arguments);
        assert_eq!(output.status.code(), Some(0), "{verb}: {}", stderr(&output));
        assert!(output.stderr.is_empty());
        let name = if verb.is_empty() { "cdc-sync" } else { verb };
        assert_snapshot(&format!("help-{name}.txt"), &stdout(&output));
    }
}

#[test]
fn only_what_works_is_offered() {
    let help = stdout(&cdc_sync(&["--help"]));
    for verb in ["cutover", "reverse", "rollback", "pause"] {
        assert!(!help.contains(&format!("\n  {verb} ")), "{verb}");
        assert_eq!(cdc_sync(&[verb]).status.code(), Some(2), "{verb}");
    }
    assert!(stdout(&cdc_sync(&["--version"])).starts_with("cdc-sync "));
}

#[test]
fn wrong_usage_exits_2_and_suggests() {
    let output = cdc_sync(&["run", "--until-cought-up"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(
        stderr(&output).contains("'--until-caught-up'"),
        "{}",
        stderr(&output)
    );
    let output = cdc_sync(&["chekc"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("'check'"), "{}", stderr(&output));
    assert_eq!(cdc_sync(&["status", "--gate", "rady"]).status.code(), Some(2));
    assert_eq!(cdc_sync(&["run", "--timeout", "soon"]).status.code(), Some(2));
    for conflicts in [
        &["conflicts"][..],
        &["conflicts", "retry"],
        &["conflicts", "discard", "1", "--all"],
    ] {
        assert_eq!(cdc_sync(conflicts).status.code(), Some(2), "{conflicts:?}");
    }
    let output = cdc_sync(&["run", "--conflict", "public.t=newest"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("must be stop, blue_wins"),
        "{}",
        stderr(&output)
    );
    assert_eq!(cdc_sync(&[]).status.code(), Some(2));
}

#[test]
fn wrong_usage_with_json_is_an_object_too() {
    let output = cdc_sync(&["check", "--json", "--sorce", "x"]);
    assert_eq!(output.status.code(), Some(2));
    let object = json(&output);
    assert_eq!(object["version"], 1);
    assert_eq!(object["exit"], 2);
    assert_eq!(object["error"]["code"], "config");
    assert!(
        object["error"]["message"]
            .as_str()
            .is_some_and(|text| text.contains("--sorce"))
    );
}

#[test]
fn passwords_are_not_echoed() {
    let url = "postgres://app:s3cr3t@blue/shop";
    for arguments in [
        vec!["check", url],
        vec!["check", "--sauce", url],
        vec!["check", "--json", url],
        vec!["check", "--source", url],
        vec![
            "check",
            "--source",
            "mongodb://app:s3cr3t@blue/shop",
            "--target",
            url,
        ],
        vec!["run", "--source", url, "--target", url, "--connect-timeout", "1s"],
        vec![
            "tail",
            "--source",
            "postgres://app:s3cr3t@127.0.0.1:1/shop?sslmode=odd",
        ],
        vec![
            "tail",
            "--source",
            "postgres://app@127.0.0.1:1/shop?password=s3cr3t",
            "--connect-timeout",
            "1s",
        ],
    ] {
        let output = command(&arguments)
            .env("CDC_SYNC_LOG", "trace")
            .output()
            .expect("the binary runs");
        assert_ne!(output.status.code(), Some(0));
        let all = format!("{}{}", stdout(&output), stderr(&output));
        assert!(!all.contains("s3cr3t"), "{arguments:?}: {all}");
        assert!(!all.is_empty());
    }
}

#[test]
fn missing_urls_are_named_with_a_remedy() {
    let output = cdc_sync(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    assert_snapshot("error-missing-urls.txt", &stderr(&output));
    let output = cdc_sync(&["status", "--json", "--source", "postgres://u@h/d"]);
    let object = json(&output);
    assert_eq!(object["kind"], "status");
    assert_eq!(object["exit"], 2);
    let remedy = object["error"]["remedy"].as_str().unwrap_or_default();
    assert!(remedy.contains("CDC_SYNC_TARGET_URL"), "{remedy}");
}

#[test]
fn an_unknown_scheme_names_the_known_ones() {
    let output = cdc_sync(&["tail", "--source", "oracle://u@h/d"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("postgres://"), "{}", stderr(&output));
}

#[test]
fn an_unknown_url_parameter_names_the_known_ones() {
    let output = cdc_sync(&["tail", "--source", "postgres://u@h/d?sslmod=require"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(
        text.contains("sslmod") && text.contains("sslmode") && text.contains("sslrootcert"),
        "{text}"
    );
}

#[test]
fn every_error_of_a_job_file_is_told_at_once() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("job.toml");
    let text =
        "[job]\nnmae = \"shop\"\n[seed]\nparallel = \"many\"\n[source]\nurl = \"${env:CDC_SYNC_NOT_SET}\"\n";
    std::fs::write(&file, text).expect("written");
    let output = cdc_sync(&["check", "-c", &file.to_string_lossy()]);
    assert_eq!(output.status.code(), Some(2));
    let shown = stderr(&output).replace(&*folder.path().to_string_lossy(), "FOLDER");
    assert_snapshot("error-job-file.txt", &shown);
    let object = json(&cdc_sync(&["check", "--json", "-c", &file.to_string_lossy()]));
    let message = object["error"]["message"].as_str().unwrap_or_default();
    for line in ["line 2,", "line 4,", "line 6,"] {
        assert!(message.contains(line), "{message}");
    }
    assert_eq!(
        cdc_sync(&["check", "-c", "/nonexistent/job.toml"]).status.code(),
        Some(2)
    );
}

#[test]
fn a_dry_run_is_not_promised_where_there_is_none() {
    for verb in ["verify", "tail"] {
        let url = unreachable_url("app");
        let output = cdc_sync(&[verb, "--dry-run", "--source", &url, "--target", &url]);
        assert_eq!(output.status.code(), Some(2), "{verb}");
        assert!(stderr(&output).contains("--dry-run"), "{}", stderr(&output));
    }
}

#[test]
fn the_stable_keys_are_there_when_a_verb_fails_at_once() {
    let url = unreachable_url("app");
    for (verb, keys) in [
        ("check", &["findings", "counts"][..]),
        (
            "run",
            &[
                "seed",
                "transactions",
                "changes",
                "position",
                "lag_ms",
                "sequences",
                "caught_up",
            ],
        ),
        (
            "status",
            &[
                "state",
                "lag",
                "tables",
                "slot",
                "changes",
                "conflicts",
                "throttled",
                "next_command",
            ],
        ),
        ("verify", &["tables", "differences", "unverifiable"]),
    ] {
        let both = [
            "--source",
            &url,
            "--target",
            &url,
            "--connect-timeout",
            "1ms",
            "--json",
        ];
        let object = json(&cdc_sync(&[&[verb][..], &both].concat()));
        assert_eq!(object["exit"], 12, "{verb}");
        for key in keys {
            assert!(
                object.get(*key).is_some_and(serde_json::Value::is_null),
                "{verb} {key}"
            );
        }
    }
}

#[test]
fn an_unreachable_server_exits_12() {
    let (source, target) = (unreachable_url("app:s3cr3t"), unreachable_url("app"));
    for verb in ["check", "run", "status", "verify", "cleanup", "tail"] {
        let output = command(&[verb, "--connect-timeout", "1s", "--json"])
            .env("CDC_SYNC_SOURCE_URL", &source)
            .env("CDC_SYNC_TARGET_URL", &target)
            .output()
            .expect("the binary runs");
        assert_eq!(output.status.code(), Some(12), "{verb}: {}", stderr(&output));
        let object = json(&output);
        assert_eq!(object["kind"], verb);
        assert_eq!(object["exit"], 12);
        assert_eq!(object["error"]["code"], "unreachable");
        assert!(!stderr(&output).contains("s3cr3t"));
    }
}

#[test]
fn settings_come_from_flag_then_environment_then_file() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("job.toml");
    let unknown = |name: &str| format!("{name}://u@h/d");
    std::fs::write(&file, format!("[source]\nurl = \"{}\"\n", unknown("file"))).expect("written");
    let config = file.to_string_lossy();
    // A job file of its own shows by its error that it was read; a flag or variable in front of it connects.
    let from_file = cdc_sync(&["tail", "-c", &config]);
    assert!(stderr(&from_file).contains("scheme"), "{}", stderr(&from_file));
    let reached = unreachable_url("app");
    let from_variable = command(&["tail", "--connect-timeout", "1s"])
        .env("CDC_SYNC_CONFIG", &*config)
        .env("CDC_SYNC_SOURCE_URL", &reached)
        .output()
        .expect("the binary runs");
    assert_eq!(
        from_variable.status.code(),
        Some(12),
        "{}",
        stderr(&from_variable)
    );
    let from_flag = command(&["tail", "--source", &reached, "--connect-timeout", "1s"])
        .env("CDC_SYNC_CONFIG", &*config)
        .env("CDC_SYNC_SOURCE_URL", unknown("variable"))
        .output()
        .expect("the binary runs");
    assert_eq!(from_flag.status.code(), Some(12), "{}", stderr(&from_flag));
}

#[test]
fn a_url_may_come_from_a_file() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let secret = folder.path().join("url");
    std::fs::write(&secret, format!("{}\n", unreachable_url("app:s3cr3t"))).expect("written");
    let url = format!("${{file:{}}}", secret.display());
    let output = cdc_sync(&["tail", "--source", &url, "--connect-timeout", "1s"]);
    assert_eq!(output.status.code(), Some(12), "{}", stderr(&output));
    assert_eq!(
        cdc_sync(&["tail", "--source", "${file:/nonexistent/url}"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn an_address_that_is_taken_is_refused_before_anything_is_connected() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("its address").to_string();
    let output = cdc_sync(&[
        "run",
        "--source",
        &unreachable_url("a"),
        "--target",
        &unreachable_url("b"),
        "--listen",
        &address,
    ]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains(&address));
}

#[test]
fn a_job_name_that_cannot_be_is_refused() {
    let output = cdc_sync(&["status", "--job", "my shop", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(json(&output)["error"]["object"], "job \"my shop\"");
}

#[test]
fn init_writes_a_job_file_that_is_read_back_and_overwrites_nothing_unasked() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().to_string_lossy();
    let output = cdc_sync(&["init", "--dir", &dir, "--job", "shop", "--table", "public.*"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let file = folder.path().join("cdc-sync.toml");
    assert_snapshot("init.toml", &std::fs::read_to_string(&file).expect("a job file"));

    let again = cdc_sync(&["init", "--dir", &dir]);
    assert_eq!(again.status.code(), Some(2), "{}", stderr(&again));
    assert!(stderr(&again).contains("--yes"));
    assert_eq!(
        cdc_sync(&["init", "--dir", &dir, "--yes", "--job", "shop"])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(
        cdc_sync(&["init", "--dir", &dir, "--dry-run"]).status.code(),
        Some(0)
    );

    let read = command(&[
        "check",
        "-c",
        &file.to_string_lossy(),
        "--connect-timeout",
        "1s",
        "--json",
    ])
    .env("CDC_SYNC_SOURCE_URL", unreachable_url("app"))
    .env("CDC_SYNC_TARGET_URL", unreachable_url("app"))
    .output()
    .expect("the binary runs");
    assert_eq!(read.status.code(), Some(12), "{}", stderr(&read));
    assert_eq!(json(&read)["job"], "shop");
    assert_eq!(
        cdc_sync(&["init", "--dir", "/nonexistent"]).status.code(),
        Some(2)
    );
}

#[test]
fn completions_know_every_verb() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = cdc_sync(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        let script = stdout(&output);
        for word in ["until-caught-up", "cleanup", "completions"] {
            assert!(script.contains(word), "{shell} without {word}");
        }
    }
    let bash = cdc_sync(&["completions", "bash"]);
    assert_snapshot("completions.bash", &stdout(&bash));
    assert_eq!(cdc_sync(&["completions", "ksh"]).status.code(), Some(2));
}

#[test]
fn manual_pages_are_made_for_every_verb() {
    assert_snapshot("cdc-sync.1", &stdout(&cdc_sync(&["man"])));
    let run = stdout(&cdc_sync(&["man", "run"]));
    assert!(
        run.contains(".TH") && run.contains("until\\-caught\\-up"),
        "{run}"
    );
    assert_eq!(cdc_sync(&["man", "fly"]).status.code(), Some(2));
    let folder = tempfile::tempdir().expect("temporary folder");
    let output = cdc_sync(&["man", "--dir", &folder.path().to_string_lossy()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for page in ["cdc-sync.1", "cdc-sync-run.1", "cdc-sync-verify.1"] {
        assert!(folder.path().join(page).exists(), "{page}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = command(&["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
}
