//! Backups that a standby gives, on its host and over the wire.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstay_postgres::wal::RecoveryTarget;
use backstay_postgres::{BackupOptions, Method, PostgresErrorKind, Source, backup};
use backstay_testing::postgres::{Cluster, version};
use backstay_testing::{skip, wait_until};
use common::Fixture;

const METHODS: [Method; 2] = [Method::Files, Method::Wire];

fn of(standby: &Cluster) -> Source {
    Source {
        name: "main".to_owned(),
        connection: standby.connection_string(),
        data_directory: None,
    }
}

/// Waits until the standby has replayed what the primary wrote.
fn caught_up(fixture: &Fixture, standby: &Cluster) {
    let end = fixture.cluster.value("select pg_current_wal_flush_lsn()");
    wait_until("the standby caught up", 60, || {
        standby.value(&format!("select pg_last_wal_replay_lsn() >= '{end}'")) == "t"
    });
}

#[test]
fn a_standby_is_backed_up_while_its_primary_works_and_is_asked_for_the_last_segment() {
    for installation in [13, 18].into_iter().filter_map(version) {
        for method in METHODS {
            let fixture = Fixture::new(&installation);
            let primary = &fixture.cluster;
            primary.pgbench_tables(1);
            let standby = primary.standby(None);
            primary.sql("create table t as select generate_series(1, 1000) i");
            primary.sql("checkpoint");
            caught_up(&fixture, &standby);
            let options = BackupOptions { method, ..fixture.options() };
            let made = backup(&fixture.repo, &of(&standby), &options)
                .unwrap_or_else(|error| panic!("{method:?}: {error:?}\n{}", standby.log()));
            assert!(made.snapshot.problems.is_empty(), "{:?}", made.snapshot.problems);
            let label = fixture.repo.tree(&made.snapshot).unwrap();
            let label = label.get(b"data/backup_label").unwrap().unwrap();
            let mut text = Vec::new();
            fixture.repo.tree(&made.snapshot).unwrap().read_file(&label, &mut text).unwrap();
            assert!(String::from_utf8(text).unwrap().contains("BACKUP FROM: standby"));
            primary.sql("insert into t select generate_series(1, 500)");
            let then = primary.table_checksums();
            fixture.archived(primary);
            let options = fixture.restoring("restored", RecoveryTarget::Latest);
            fixture.restore(&made.snapshot, &options);
            let server = fixture.promoted(&options);
            assert_eq!(server.table_checksums(), then, "{method:?} {}", installation.major);
        }
    }
}

#[test]
fn an_idle_standby_at_a_segment_boundary_is_backed_up_without_waiting() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    for method in METHODS {
        let fixture = Fixture::new(&installation);
        let primary = &fixture.cluster;
        let standby = primary.standby(None);
        primary.sql("create table t as select generate_series(1, 1000) i");
        // Nothing is written behind the boundary: the segment that begins there is not archived
        // before somebody writes, which may be never.
        primary.sql("checkpoint");
        fixture.archived(primary);
        caught_up(&fixture, &standby);
        standby.sql("checkpoint");
        let mut options = BackupOptions { method, ..fixture.options() };
        options.archive_timeout = Duration::from_secs(20);
        let made = backup(&fixture.repo, &of(&standby), &options)
            .unwrap_or_else(|error| panic!("{method:?}: {error:?}\n{}", standby.log()));
        let options = fixture.restoring("restored", RecoveryTarget::Immediate);
        fixture.restore(&made.snapshot, &options);
        assert_eq!(fixture.promoted(&options).value("select count(*) from t"), "1000");
    }
}

#[test]
fn a_promotion_during_the_backup_ends_it_and_is_named() {
    for installation in [13, 15].into_iter().filter_map(version) {
        for method in METHODS {
            let fixture = Fixture::new(&installation);
            let primary = &fixture.cluster;
            primary.pgbench_tables(10);
            let standby = primary.standby(None);
            primary.sql("checkpoint");
            caught_up(&fixture, &standby);
            let options = BackupOptions { method, ..fixture.options() };
            let progress = options.progress.clone();
            let over = AtomicBool::new(false);
            let error = std::thread::scope(|scope| {
                scope.spawn(|| {
                    // In the middle of the copy.
                    while progress.snapshot().done_bytes < 4 << 20 && !over.load(Ordering::Relaxed)
                    {
                        std::thread::yield_now();
                    }
                    standby.promote();
                });
                let made = backup(&fixture.repo, &of(&standby), &options);
                over.store(true, Ordering::Relaxed);
                made.unwrap_err()
            });
            assert_eq!(error.kind(), PostgresErrorKind::Mismatch, "{method:?}: {error}");
            assert!(error.to_string().contains("promoted during the backup"), "{error}");
            assert!(error.hint().unwrap().contains("primary now"));
            assert!(fixture.repo.snapshots().unwrap().is_empty());
        }
    }
}
