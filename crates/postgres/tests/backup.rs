//! Backups of clusters that do not hold still, and those that must not succeed.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstay_postgres::control::ControlFile;
use backstay_postgres::wal::RecoveryTarget;
use backstay_postgres::{PostgresErrorKind, Source, backup, inspect};
use backstay_testing::postgres::{Cluster, Load, version, versions};
use backstay_testing::{own, skip};
use common::{Fixture, Shape};

/// Makes `table` larger than one file of 1 GiB: the pages in between are new, as after a crash in the
/// middle of an extension, and rows go to the end. Restarts the server.
fn make_huge(cluster: &Cluster, table: &str) {
    cluster.sql(&format!("create table {table} (id int, v text)"));
    let path = cluster.value(&format!("select pg_relation_filepath('{table}')"));
    let path = cluster.data().join(path);
    cluster.stop();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
    let second = path.with_extension("1");
    std::fs::File::create(&second).unwrap().set_len(64 * 8192).unwrap();
    own(&second);
    cluster.start();
    cluster.sql(&format!("insert into {table} select i, 'row' from generate_series(1, 10000) i"));
    cluster.sql("checkpoint");
}

#[test]
fn a_cluster_that_changes_all_the_time_is_copied_whole() {
    let found: Vec<_> = [15, 18].into_iter().filter_map(version).collect();
    if found.is_empty() {
        skip!("neither PostgreSQL 15 nor 18 is installed");
    }
    for installation in found {
        let fixture = Fixture::new(&installation);
        let cluster = &fixture.cluster;
        cluster.pgbench_tables(1);
        make_huge(cluster, "huge");
        let space = cluster.directory("space");
        cluster.sql(&format!("create tablespace fast location '{}'", space.display()));
        cluster.sql("create table in_space (id int) tablespace fast");
        cluster.sql("insert into in_space select generate_series(1, 5000)");
        cluster.sql("create unlogged table passing (id int)");
        cluster.sql("insert into passing select generate_series(1, 5000)");
        let unlogged = cluster.value("select pg_relation_filepath('passing')");

        let load = Load::start(cluster, 4);
        let over = AtomicBool::new(false);
        let (made, rounds) = std::thread::scope(|scope| {
            let churn = scope.spawn(|| {
                let mut client = cluster.connect();
                let mut rounds = 0;
                while !over.load(Ordering::Relaxed) {
                    let name = format!("churn_{rounds}");
                    let statements = [
                        format!("create table {name} as select generate_series(1, 20000) i"),
                        format!("truncate {name}"),
                        format!("insert into {name} select generate_series(1, 100)"),
                        format!("create database db_{rounds}"),
                        format!("drop table {name}"),
                        format!("create table kept_{rounds} tablespace fast as select {rounds} i"),
                        format!("alter table in_space set (fillfactor = {})", 50 + rounds % 50),
                        "delete from in_space where id > 4000".to_owned(),
                        "vacuum in_space".to_owned(),
                    ];
                    for statement in statements {
                        client.batch_execute(&statement).unwrap();
                    }
                    rounds += 1;
                }
                rounds
            });
            let made = fixture.backup();
            over.store(true, Ordering::Relaxed);
            (made, churn.join().unwrap())
        });
        load.run_for(50);
        let acknowledged = load.stop();
        assert!(rounds > 0);
        assert!(made.snapshot.problems.is_empty(), "{:?}", made.snapshot.problems);
        assert!(made.snapshot.stats.bytes > 1 << 30);
        assert_eq!(made.detail.tablespaces.len(), 1);
        assert_eq!(made.detail.tablespaces[0].name, "fast");
        let tree = fixture.repo.tree(&made.snapshot).unwrap();
        assert!(tree.get(format!("data/{unlogged}").as_bytes()).unwrap().is_none());
        assert!(tree.get(format!("data/{unlogged}_init").as_bytes()).unwrap().is_some());
        assert!(tree.get(b"data/backup_label").unwrap().is_some());
        assert!(tree.get(b"data/postmaster.pid").unwrap().is_none());

        let then = cluster.table_checksums();
        fixture.archived(cluster);
        let mut options = fixture.restoring("restored", RecoveryTarget::Latest);
        options.tablespaces = vec![("fast".to_owned(), fixture.folder.path().join("fast"))];
        fixture.restore(&made.snapshot, &options);
        let link = std::fs::read_link(
            options.to.join("pg_tblspc").join(made.detail.tablespaces[0].oid.to_string()),
        )
        .unwrap();
        assert_eq!(link, fixture.folder.path().join("fast"));
        let server = fixture.promoted(&options);
        acknowledged.assert_kept(&server);
        let mut now = server.table_checksums();
        let mut then = then;
        // Unlogged tables are empty after a recovery: that is what unlogged means.
        assert_eq!(server.value("select count(*) from passing"), "0");
        then.remove("postgres.public.passing");
        now.remove("postgres.public.passing");
        assert_eq!(now, then);
        assert_eq!(server.value("select count(*) from huge"), "10000");
        assert!(
            server.value("select max((ctid::text::point)[0]) from huge").parse::<f64>().unwrap()
                > 131_071.0
        );
        server.sql("select count(*) from kept_0");
    }
}

#[test]
fn a_broken_page_is_named_and_the_backup_completes() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let cluster = &fixture.cluster;
    cluster.sql("create table t as select i, repeat('x', 100) from generate_series(1, 20000) i");
    cluster.sql("checkpoint");
    let file = cluster.value("select pg_relation_filepath('t')");
    let path = cluster.data().join(&file);
    let io = std::fs::File::options().read(true).write(true).open(path).unwrap();
    io.write_all_at(b"broken", 7 * 8192 + 3000).unwrap();
    let made = fixture.backup();
    assert_eq!(made.snapshot.problems.len(), 1, "{:?}", made.snapshot.problems);
    assert_eq!(made.snapshot.problems[0].path, format!("data/{file}"));
    assert!(made.snapshot.problems[0].what.starts_with("block 7 fails"));
    assert_eq!(fixture.repo.snapshots().unwrap().len(), 1);
}

#[test]
fn segments_and_checksums_are_as_the_cluster_has_them() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    for shape in [
        Shape { segment_mib: Some(64), no_checksums: true },
        Shape { segment_mib: Some(1), no_checksums: false },
    ] {
        let fixture = Fixture::with(&installation, shape, &[]);
        fixture.cluster.sql("create table t as select generate_series(1, 100) i");
        let made = fixture.backup();
        assert_eq!(made.detail.checksums, !shape.no_checksums);
        assert_eq!(made.detail.segment_size.bytes(), u64::from(shape.segment_mib.unwrap()) << 20);
        let options = fixture.restoring("restored", RecoveryTarget::Immediate);
        fixture.restore(&made.snapshot, &options);
        assert_eq!(fixture.promoted(&options).value("select count(*) from t"), "100");
    }
}

#[test]
fn a_backup_whose_session_breaks_leaves_no_snapshot() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    make_huge(&fixture.cluster, "huge");
    let over = AtomicBool::new(false);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = fixture.cluster.connect();
            while !over.load(Ordering::Relaxed) {
                client
                    .batch_execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity \
                         where application_name = 'backstay' and state = 'idle' \
                         and query like '%pg_backup_start%'",
                    )
                    .unwrap();
            }
        });
        let result = backup(&fixture.repo, &fixture.source(), &fixture.options());
        over.store(true, Ordering::Relaxed);
        result.unwrap_err()
    });
    assert_eq!(error.kind(), PostgresErrorKind::Connection, "{error}");
    assert!(fixture.repo.snapshots().unwrap().is_empty());
    fixture.backup();
}

#[test]
fn without_its_wal_there_is_no_snapshot() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::with(&installation, Shape::default(), &[("archive_command", "false")]);
    let mut options = fixture.options();
    options.archive_timeout = Duration::from_secs(1);
    let error = backup(&fixture.repo, &fixture.source(), &options).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Archive);
    assert!(error.to_string().contains("00000001000000000000000"), "{error}");
    assert!(error.hint().unwrap().contains("archive_command"));
    assert!(fixture.repo.snapshots().unwrap().is_empty());
}

#[test]
fn wal_of_a_copy_of_the_cluster_in_the_archive_is_not_taken_for_its_own() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let system = ControlFile::read(fixture.cluster.data()).unwrap().system_identifier;
    let archive = fixture.repo.archive(system);
    // What a copy would have archived under the names that come next.
    for number in 1..=6 {
        let name = format!("00000001{number:016X}");
        let _ = archive.push(&name, format!("of a copy: {name}").as_bytes());
    }
    let error = backup(&fixture.repo, &fixture.source(), &fixture.options()).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Archive, "{error}");
    assert!(error.to_string().contains("another WAL segment 0000000100000000"), "{error}");
    assert!(error.hint().is_some());
    assert!(fixture.repo.snapshots().unwrap().is_empty());
}

#[test]
fn what_cannot_end_well_is_refused_at_once() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let off = Fixture::with(&installation, Shape::default(), &[("archive_mode", "off")]);
    let error = backup(&off.repo, &off.source(), &off.options()).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Archive, "{error}");

    // Another cluster's directory, and a copy of one's own.
    let other = Cluster::builder(&installation).start();
    let mut source = off.source();
    source.data_directory = Some(other.data().to_owned());
    let error = inspect(&source).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Mismatch, "{error}");

    let standby = off.cluster.standby(None);
    let error =
        inspect(&Source { data_directory: Some(standby.data().to_owned()), ..off.source() })
            .unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Mismatch, "a standby has the same identifier");
    let source = Source {
        name: "standby".to_owned(),
        connection: standby.connection_string(),
        data_directory: None,
    };
    let error = backup(&off.repo, &source, &off.options()).unwrap_err();
    assert_eq!(
        error.kind(),
        PostgresErrorKind::Archive,
        "a standby whose primary archives nothing"
    );
}

#[test]
fn a_backup_killed_at_any_step_leaves_no_snapshot() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    fixture.cluster.sql("create table t as select generate_series(1, 1000) i");
    for failpoint in [
        "postgres-backup-started",
        "postgres-files-copied",
        "postgres-backup-stopped",
        "postgres-archive-complete",
    ] {
        let status = fixture.elsewhere("backup", failpoint, "", std::path::Path::new("/"));
        assert!(!status.success() && status.code().is_none(), "{failpoint}: {status}");
        assert!(fixture.repo.snapshots().unwrap().is_empty(), "{failpoint}");
    }
    fixture.backup();
    assert_eq!(fixture.repo.snapshots().unwrap().len(), 1);
    let options = fixture.restoring("restored", RecoveryTarget::Immediate);
    fixture.restore(&fixture.repo.snapshots().unwrap()[0], &options);
    assert_eq!(fixture.promoted(&options).value("select count(*) from t"), "1000");
}

#[test]
fn every_version_is_inspected() {
    for installation in versions().iter().filter(|i| (13..=18).contains(&i.major)) {
        let cluster = Cluster::builder(installation).segment_size(2).start();
        let source = Source {
            name: "main".to_owned(),
            connection: cluster.tcp_connection_string(),
            data_directory: None,
        };
        let found = inspect(&source).unwrap();
        assert_eq!(found.version, installation.major);
        assert_eq!(found.data_directory, cluster.data());
        assert_eq!(found.segment_size, 2 << 20);
        assert!(found.checksums && !found.in_recovery && found.timeline == 1);
        assert_eq!(found.settings.archive_mode, "off");
    }
}
