//! What became of subtransactions, as a server's record has it.

use std::collections::HashSet;

use cdc_core::Action;
use cdc_postgres::config::Config;
use cdc_postgres::lsn::Lsn;
use cdc_postgres::source::rolled_back_among;
use testbed::PgCluster;

use crate::promotion::until;
use crate::stage::Stage;

#[test]
fn only_a_server_that_has_come_to_the_end_of_a_transaction_is_asked_about_it() {
    let stage = Stage::set(18, &[], "CREATE TABLE t (id int PRIMARY KEY);");
    let standby = PgCluster::builder(18).standby_of(&stage.cluster).start().unwrap();
    standby.sql("app", "SELECT pg_wal_replay_pause()").unwrap();
    until(&standby, "SELECT pg_get_wal_replay_pause_state() = 'paused'");
    let script = "BEGIN; INSERT INTO t VALUES (0);
        SAVEPOINT a; INSERT INTO t VALUES (1) RETURNING xmin; ROLLBACK TO a;
        SAVEPOINT b; INSERT INTO t VALUES (2) RETURNING xmin; RELEASE b; COMMIT";
    let subtransactions: Vec<u32> = stage
        .sql(script)
        .lines()
        .map(|xid| xid.parse().unwrap())
        .collect();
    let [gone, _kept] = subtransactions[..] else {
        panic!("two are answered: {subtransactions:?}")
    };
    let ends: Lsn = stage.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    let ask = |server: &PgCluster, ends| {
        let config = Config::parse(&server.url("app")).unwrap();
        stage
            .runtime
            .block_on(rolled_back_among(config, subtransactions.clone(), ends))
    };
    let does_not_know = |server, ends| {
        let error = ask(server, ends).unwrap_err();
        assert_eq!(error.what_to_do(), Action::Reconnect, "{error:?}");
    };
    assert_eq!(ask(&stage.cluster, ends).unwrap(), HashSet::from([gone]));
    does_not_know(&stage.cluster, Lsn(ends.0 + (1 << 30)));

    // It has received the log, and not replayed it.
    until(&standby, &format!("SELECT pg_last_wal_receive_lsn() >= '{ends}'"));
    does_not_know(&standby, ends);
    standby.sql("app", "SELECT pg_wal_replay_resume()").unwrap();
    until(&standby, &format!("SELECT pg_last_wal_replay_lsn() >= '{ends}'"));
    assert_eq!(ask(&standby, ends).unwrap(), HashSet::from([gone]));
}
