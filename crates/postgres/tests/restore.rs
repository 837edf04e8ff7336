//! Restores that are interrupted, repeated, tampered with, and started in place.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use backstay_postgres::restore::Running;
use backstay_postgres::wal::RecoveryTarget;
use backstay_postgres::{PostgresErrorKind, RestoreOptions, StartOptions, TargetAction};
use backstay_testing::postgres::{Cluster, version, versions};
use backstay_testing::skip;
use common::Fixture;

#[test]
fn a_cluster_that_lost_its_backup_label_refuses_to_start() {
    let all = versions();
    if all.is_empty() {
        skip!("no PostgreSQL is installed; run scripts/test-postgres");
    }
    for installation in all.iter().filter(|i| (13..=18).contains(&i.major)) {
        let fixture = Fixture::new(installation);
        fixture.cluster.sql("create table t as select generate_series(1, 1000) i");
        let made = fixture.backup();
        fixture.archived(&fixture.cluster);
        let options = fixture.restoring("restored", RecoveryTarget::Latest);
        fixture.restore(&made.snapshot, &options);
        let label = std::fs::read(options.to.join("backup_label")).unwrap();
        std::fs::remove_file(options.to.join("backup_label")).unwrap();
        let refused = |what: &str| {
            let failure = Cluster::adopt(installation, &options.to).try_start().unwrap_err();
            assert!(
                failure.log.contains("could not locate a valid checkpoint record")
                    || failure.log.contains("invalid checkpoint"),
                "{what}: {failure}"
            );
        };
        refused("with recovery.signal");
        // Not even as if after a crash.
        std::fs::remove_file(options.to.join("recovery.signal")).unwrap();
        refused("without recovery.signal");
        // With the label back, all is well.
        std::fs::write(options.to.join("recovery.signal"), "").unwrap();
        std::fs::write(options.to.join("backup_label"), label).unwrap();
        assert_eq!(fixture.promoted(&options).value("select count(*) from t"), "1000");
    }
}

#[test]
fn a_restore_killed_at_any_step_cannot_start_and_can_be_finished() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    fixture.cluster.sql("create table t as select generate_series(1, 1000) i");
    let made = fixture.backup();
    let options = fixture.restoring("restored", RecoveryTarget::Latest);
    for failpoint in [
        "restore-chunk-written:20",
        "restore-synced",
        "postgres-restore-copied",
        "postgres-restore-configured",
    ] {
        let status = fixture.elsewhere("restore", failpoint, &made.snapshot.id, &options.to);
        assert!(status.code().is_none(), "{failpoint}: {status}");
        assert!(!options.to.join("global/pg_control").exists(), "{failpoint}");
        assert!(Cluster::adopt(&installation, &options.to).try_start().is_err(), "{failpoint}");
    }
    let point = "postgres-restore-control-written";
    let status = fixture.elsewhere("restore", point, &made.snapshot.id, &options.to);
    assert!(status.code().is_none(), "{point}: {status}");
    assert_eq!(fixture.promoted(&options).value("select count(*) from t"), "1000");
}

#[test]
fn a_delta_restore_brings_a_cluster_back() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let cluster = &fixture.cluster;
    let space = cluster.directory("space");
    cluster.sql(&format!("create tablespace fast location '{}'", space.display()));
    cluster.sql("create table s tablespace fast as select generate_series(1, 1000) i");
    cluster.sql("create table t as select i, repeat('x', 200) from generate_series(1, 50000) i");
    cluster
        .sql("create table still as select i, repeat('x', 800) from generate_series(1, 50000) i");
    // Read before the backup: the first reader of a row changes hint bits in its page.
    let then = cluster.table_checksums();
    let made = fixture.backup();
    fixture.archived(cluster);
    cluster.sql("delete from t where i % 100 = 0");
    cluster.sql("create table more as select generate_series(1, 1000) i");
    cluster.sql("insert into s select generate_series(1, 1000) i");
    fixture.archived(cluster);

    let mut options = fixture.restoring("unused", RecoveryTarget::Immediate);
    options.to = cluster.data().to_owned();
    options.delta = true;
    let error = fixture.refused(&made.snapshot, &options);
    assert_eq!(error.kind(), PostgresErrorKind::Busy, "a server runs there: {error}");
    cluster.stop();
    std::fs::write(cluster.data().join("base/stray"), "x").unwrap();
    std::fs::write(cluster.data().join("standby.signal"), "").unwrap();

    let restored = fixture.restore(&made.snapshot, &options);
    assert!(!cluster.data().join("base/stray").exists());
    assert!(!cluster.data().join("standby.signal").exists());
    // The last segment, with the shutdown in it, was nowhere else.
    let kept = std::fs::read_dir(cluster.data().join("backstay-old-wal")).unwrap().count();
    assert!(kept > 0 && restored.notes[0].contains("backstay-old-wal"), "{:?}", restored.notes);
    assert!(
        restored.report.bytes_written < restored.report.bytes / 2,
        "{:?}: what was right was written again",
        restored.report
    );
    let server = fixture.promoted(&options);
    assert_eq!(server.table_checksums(), then);
}

#[test]
fn directories_in_which_something_would_be_lost_are_refused() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let made = fixture.backup();
    let mut options = fixture.restoring("home", RecoveryTarget::Latest);
    std::fs::create_dir(&options.to).unwrap();
    std::fs::write(options.to.join("letters"), "dear").unwrap();
    for delta in [false, true] {
        options.delta = delta;
        let error = fixture.refused(&made.snapshot, &options);
        assert_eq!(error.kind(), PostgresErrorKind::Usage, "{error}");
        assert!(error.hint().is_some());
    }
    assert_eq!(std::fs::read(options.to.join("letters")).unwrap(), b"dear");
    let empty = RestoreOptions::new(fixture.folder.path().join("new"), " ");
    assert_eq!(fixture.refused(&made.snapshot, &empty).kind(), PostgresErrorKind::Usage);
}

#[test]
fn a_delta_restore_leaves_another_cluster_alone() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let made = fixture.backup();
    let other = Cluster::builder(&installation).start();
    other.sql("create table dear as select generate_series(1, 1000) i");
    other.stop();
    let mut options = fixture.restoring("unused", RecoveryTarget::Latest);
    options.delta = true;
    options.to = other.data().to_owned();
    let error = fixture.refused(&made.snapshot, &options);
    assert_eq!(error.kind(), PostgresErrorKind::Mismatch, "{error}");
    assert!(error.hint().is_some());
    other.start();
    assert_eq!(other.value("select count(*) from dear"), "1000");

    // A folder of somebody's that happens to have one of this name.
    let mut options = fixture.restoring("project", RecoveryTarget::Latest);
    options.delta = true;
    std::fs::create_dir_all(options.to.join("global")).unwrap();
    std::fs::write(options.to.join("letters"), "dear").unwrap();
    let error = fixture.refused(&made.snapshot, &options);
    assert_eq!(error.kind(), PostgresErrorKind::Usage, "{error}");
    assert!(error.to_string().contains("letters"), "{error}");
    assert!(options.to.join("letters").exists());
    // What a restore that was interrupted early leaves is gone on with.
    std::fs::remove_file(options.to.join("letters")).unwrap();
    fixture.restore(&made.snapshot, &options);
}

/// A started server, stopped also when the test fails.
struct Started(Option<Running>);

impl Started {
    fn query(&self, query: &str) -> String {
        let running = self.0.as_ref().unwrap();
        let connection = format!("{} user=postgres dbname=postgres", running.connection());
        let mut client = postgres::Client::connect(&connection, postgres::NoTls).unwrap();
        client.query_one(query, &[]).unwrap().get(0)
    }

    fn stop(mut self) {
        self.0.take().unwrap().stop().unwrap();
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            let _ = running.stop();
        }
    }
}

#[test]
fn a_restored_cluster_is_started_in_a_sandbox_and_says_how_far_it_got() {
    let all = versions();
    if all.is_empty() {
        skip!("no PostgreSQL is installed; run scripts/test-postgres");
    }
    for installation in all.iter().filter(|i| (13..=18).contains(&i.major)) {
        let fixture = Fixture::new(installation);
        fixture.cluster.sql("create table t (id int)");
        // As on Debian: the configuration is elsewhere, and not in the backup.
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            std::fs::remove_file(fixture.cluster.data().join(name)).unwrap();
        }
        let made = fixture.backup();
        fixture.cluster.sql("insert into t values (1)");
        fixture.cluster.sql("select pg_create_restore_point('here')");
        fixture.cluster.sql("insert into t values (2)");
        fixture.archived(&fixture.cluster);

        let start = StartOptions {
            bin_dir: Some(installation.bin.clone()),
            sandbox: true,
            ..StartOptions::default()
        };
        let here = || RecoveryTarget::Name("here".to_owned());
        let mut options = fixture.restoring("paused", here());
        options.action = TargetAction::Pause;
        options.start = Some(start.clone());
        let restored = fixture.restore(&made.snapshot, &options);
        assert_eq!(restored.notes.len(), 1, "{:?}", restored.notes);
        let reached = restored.reached().unwrap().clone();
        assert!(reached.in_recovery && reached.timeline == 1, "{reached:?}");
        assert!(reached.lsn.unwrap() > made.detail.stop_lsn);
        assert!(reached.time.unwrap() > made.detail.time_stop);
        let server = Started(restored.running);
        assert_eq!(server.query("select count(*)::text from t"), "1");
        assert_eq!(server.query("select current_setting('archive_mode')"), "off");
        assert_eq!(server.query("select current_setting('listen_addresses')"), "");
        let sockets = server.0.as_ref().unwrap().socket_directory.clone();
        server.stop();
        assert!(!sockets.exists());

        let mut options = fixture.restoring("promoted", RecoveryTarget::Latest);
        options.start = Some(start.clone());
        let restored = fixture.restore(&made.snapshot, &options);
        let reached = restored.reached().unwrap().clone();
        assert!(!reached.in_recovery && reached.timeline == 2, "{reached:?}");
        let server = Started(restored.running);
        assert_eq!(server.query("select count(*)::text from t"), "2");
        server.stop();

        let mut options = fixture.restoring("shutdown", here());
        options.action = TargetAction::Shutdown;
        options.start = Some(start);
        let restored = fixture.restore(&made.snapshot, &options);
        assert!(restored.running.is_none());
        assert!(restored.notes.iter().any(|note| note.contains("stopped at its target")));
    }
}

#[test]
fn a_server_that_cannot_be_started_says_why() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let made = fixture.backup();
    let mut options = fixture.restoring("restored", RecoveryTarget::Latest);
    options.start = Some(StartOptions {
        bin_dir: Some(installation.bin.clone()),
        sandbox: true,
        settings: vec![("shared_buffers".to_owned(), "lots".to_owned())],
        ..StartOptions::default()
    });
    let error = fixture.refused(&made.snapshot, &options);
    assert_eq!(error.kind(), PostgresErrorKind::Start);
    assert!(error.to_string().contains("shared_buffers"), "{error}");

    let mut options = fixture.restoring("elsewhere", RecoveryTarget::Latest);
    options.start =
        Some(StartOptions { bin_dir: Some("/nonexistent".into()), ..StartOptions::default() });
    let error = fixture.refused(&made.snapshot, &options);
    assert!(error.to_string().contains("PostgreSQL 15 was not found"), "{error}");
    assert!(!options.to.exists(), "found out before anything was copied");
}
