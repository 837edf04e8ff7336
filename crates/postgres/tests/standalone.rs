//! Backups that carry their WAL: restored where there is no archive at all.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use backstay_postgres::wal::RecoveryTarget;
use backstay_postgres::{BackupOptions, Method, PostgresErrorKind, Source, backup};
use backstay_testing::postgres::{Load, version};
use backstay_testing::skip;
use common::{Fixture, Shape};

#[test]
fn a_standalone_backup_of_a_server_that_archives_nothing_starts_without_an_archive() {
    for installation in [13, 15, 18].into_iter().filter_map(version) {
        for method in [Method::Files, Method::Wire] {
            let shape = Shape { segment_mib: Some(1), ..Shape::default() };
            let fixture = Fixture::with(&installation, shape, &[("archive_mode", "off")]);
            let cluster = &fixture.cluster;
            cluster.pgbench_tables(1);
            let options = BackupOptions { method, standalone: true, ..fixture.options() };
            let load = Load::start(cluster, 2);
            load.run_for(20);
            let before = load.acknowledged();
            let made = backup(&fixture.repo, &fixture.source(), &options)
                .unwrap_or_else(|error| panic!("{method:?}: {error:?}\n{}", cluster.log()));
            load.stop();
            assert!(made.detail.standalone);
            let tree = fixture.repo.tree(&made.snapshot).unwrap();
            for name in [&made.detail.start_segment, &made.detail.stop_segment] {
                let path = format!("data/pg_wal/{name}");
                let entry = tree.get(path.as_bytes()).unwrap().unwrap();
                assert_eq!(entry.size(), 1 << 20, "{path}");
            }
            // Nothing holds WAL back any more.
            assert_eq!(cluster.value("select count(*) from pg_replication_slots"), "0");
            for (number, target) in
                [RecoveryTarget::Immediate, RecoveryTarget::Latest].into_iter().enumerate()
            {
                let mut options = fixture.restoring(&format!("restored{number}"), target);
                options.restore_command = "false".to_owned();
                fixture.restore(&made.snapshot, &options);
                let server = fixture.promoted(&options);
                before.assert_kept(&server);
                server.sql("create table after_that (i int)");
            }
            // There is nothing behind the end of the backup.
            let far = RecoveryTarget::Lsn(backstay_postgres::wal::Lsn(1 << 60));
            let error = fixture.refused(&made.snapshot, &fixture.restoring("far", far));
            assert!(error.hint().is_some(), "{error}");
        }
    }
}

#[test]
fn a_role_that_may_not_replicate_gives_no_standalone_backup() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    fixture.cluster.sql(
        "create role plain login; grant pg_read_all_settings to plain; \
         grant execute on function pg_backup_start(text, boolean) to plain; \
         grant execute on function pg_backup_stop(boolean) to plain",
    );
    let connection = fixture.cluster.connection_string().replace("user=postgres", "user=plain");
    let source = Source { connection, ..fixture.source() };
    let options = BackupOptions { method: Method::Files, standalone: true, ..fixture.options() };
    let error = backup(&fixture.repo, &source, &options).unwrap_err();
    assert_ne!(error.kind(), PostgresErrorKind::Repo);
    assert!(error.hint().unwrap().contains("REPLICATION"), "{error}: {:?}", error.hint());
    backup(&fixture.repo, &source, &BackupOptions { standalone: false, ..options }).unwrap();
}
