//! What a stream stores besides its checkpoint.

use std::time::Duration;

use cdc_core::engine::{Barrier, SeedPhase, SeedTable};
use cdc_core::{Kind, Position, TableName};

use crate::on_each;
use crate::target::{STREAM, checkpoint, site};

fn seed(name: &str, phase: SeedPhase, rows: u64) -> SeedTable {
    SeedTable {
        table: TableName::new("public", name),
        phase,
        position: Position::new("0/1"),
        rows,
        bytes: rows * 10,
    }
}

#[test]
fn a_stream_is_started_seeded_and_finished() {
    let schema = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int REFERENCES a); \
                  INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)";
    on_each("seeding", schema, async |target| {
        let site = &target.site;
        let fence = site.take_fence("other", Duration::from_secs(60)).await.unwrap();
        let epoch = fence.epoch();
        let first = cdc_core::Checkpoint {
            stream: "other".into(),
            ..checkpoint(0)
        };
        let tables = [seed("a", SeedPhase::Todo, 0), seed("b", SeedPhase::Todo, 0)];
        assert!(site.stream_state("other").await.unwrap().checkpoint.is_none());
        let early = site
            .start_stream(epoch - 1, &first, &tables, true)
            .await
            .unwrap_err();
        assert_eq!(early.kind(), Kind::Fenced);
        site.start_stream(epoch, &first, &tables, true).await.unwrap();
        let state = site.stream_state("other").await.unwrap();
        assert_eq!(
            (state.checkpoint, state.seed, state.schema_pending),
            (Some(first), tables.to_vec(), true)
        );
        // `a` cannot be truncated by itself: `b` refers to it.
        for table in ["a", "b"] {
            let wrong = site
                .store_seed("other", epoch + 1, &seed(table, SeedPhase::Copying, 0))
                .await;
            assert_eq!(wrong.unwrap_err().kind(), Kind::Fenced);
            site.store_seed("other", epoch, &seed(table, SeedPhase::Copying, 0))
                .await
                .unwrap();
            assert_eq!(target.sql(&format!("SELECT count(*) FROM {table}")), "0");
        }
        site.store_seed("other", epoch, &seed("a", SeedPhase::Live, 5))
            .await
            .unwrap();
        site.finish_schema("other", epoch).await.unwrap();
        let state = site.stream_state("other").await.unwrap();
        assert_eq!(
            state.seed,
            [seed("a", SeedPhase::Live, 5), seed("b", SeedPhase::Copying, 0)]
        );
        assert!(!state.schema_pending);
        assert!(site.stream_state(STREAM).await.unwrap().seed.is_empty());
    });
}

#[test]
fn the_state_is_prepared_by_many_at_once_and_a_newer_one_is_refused() {
    on_each("preparing", "", async |target| {
        target.sql("DROP SCHEMA cdc_sync CASCADE");
        let mut sites = Vec::new();
        for _ in 0..8 {
            sites.push(site(target.cluster, &target.database).await);
        }
        let all = sites.iter().map(|site| site.prepare_state());
        for prepared in futures_util::future::join_all(all).await {
            prepared.unwrap();
        }
        assert_eq!(target.sql("SELECT count(*) FROM cdc_sync.format"), "1");
        // Once it is there, no right to create anything is needed.
        target.sql(&format!(
            "CREATE ROLE poor LOGIN; REVOKE CREATE ON DATABASE {} FROM PUBLIC",
            target.database
        ));
        target.sql(
            "GRANT USAGE ON SCHEMA cdc_sync TO poor; GRANT SELECT ON ALL TABLES IN SCHEMA cdc_sync TO poor",
        );
        let url = target.cluster.url(&target.database).replace("postgres@", "poor@");
        let engine = cdc_postgres::PgEngine;
        let poor = cdc_core::Engine::connect(&engine, &url, Duration::from_secs(60))
            .await
            .unwrap();
        poor.prepare_state().await.unwrap();
        target.sql("UPDATE cdc_sync.format SET version = version + 1");
        for refused in [
            target.site.prepare_state().await.err(),
            target.site.stream_state(STREAM).await.err(),
        ] {
            let error = refused.unwrap();
            assert_eq!(error.kind(), Kind::Check);
            assert!(error.remedy_text().unwrap().contains("newer"));
        }
        target.sql("DROP OWNED BY poor; DROP ROLE poor");
    });
}

#[test]
fn a_barrier_is_asked_for_answered_and_dies_with_who_asked() {
    on_each("barriers", "", async |target| {
        let runner = &target.site;
        let verify = site(target.cluster, &target.database).await;
        let (hold, at) = (Barrier::Hold, Barrier::HoldAt(Position::new("0/99")));
        assert_eq!(runner.barrier(STREAM).await.unwrap(), None);
        verify.request_barrier(STREAM, Some(&hold)).await.unwrap();
        assert_eq!(runner.barrier(STREAM).await.unwrap(), Some(hold.clone()));
        assert_eq!(verify.barrier_state(STREAM, &hold).await.unwrap(), None);
        let position = Position::new("0/42");
        runner.barrier_reached(STREAM, &hold, &position).await.unwrap();
        assert_eq!(
            verify.barrier_state(STREAM, &hold).await.unwrap(),
            Some(position.clone())
        );
        verify.request_barrier(STREAM, Some(&at)).await.unwrap();
        assert_eq!(runner.barrier(STREAM).await.unwrap(), Some(at.clone()));
        assert_eq!(verify.barrier_state(STREAM, &at).await.unwrap(), None);
        runner.barrier_reached(STREAM, &hold, &position).await.unwrap();
        assert_eq!(verify.barrier_state(STREAM, &at).await.unwrap(), None);
        verify.request_barrier(STREAM, None).await.unwrap();
        assert_eq!(runner.barrier(STREAM).await.unwrap(), None);
        verify.request_barrier(STREAM, Some(&at)).await.unwrap();
        drop(verify);
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while runner.barrier(STREAM).await.unwrap().is_some() {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}
