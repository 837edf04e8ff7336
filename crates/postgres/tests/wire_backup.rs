//! Backups over a replication connection, of every version: what comes is what a copy on the host has.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};

use backstay_postgres::wal::{RecoveryTarget, TargetTimeline};
use backstay_postgres::{Backup, BackupOptions, Method, PostgresErrorKind, Source, backup};
use backstay_repo::{EntryKind, Snapshot, SnapshotType};
use backstay_testing::postgres::{Load, version, versions};
use backstay_testing::skip;
use common::Fixture;

fn wire(fixture: &Fixture) -> BackupOptions {
    BackupOptions { method: Method::Wire, ..fixture.options() }
}

/// A role that may replicate and nothing else.
fn replicator(fixture: &Fixture) -> Source {
    fixture.cluster.sql("create role replicator login replication");
    let connection =
        fixture.cluster.tcp_connection_string().replace("user=postgres", "user=replicator");
    Source { connection, ..fixture.source() }
}

fn over_the_wire(fixture: &Fixture, source: &Source, options: &BackupOptions) -> Backup {
    backup(&fixture.repo, source, options)
        .unwrap_or_else(|error| panic!("{error:?}\n{}", fixture.cluster.log()))
}

/// What a snapshot consists of: of each path, its kind, mode and size.
fn paths(fixture: &Fixture, snapshot: &Snapshot) -> BTreeMap<String, (String, u32, u64)> {
    let tree = fixture.repo.tree(snapshot).unwrap();
    let all = tree.iter().map(|entry| {
        let entry = entry.unwrap();
        let kind = match &entry.kind {
            EntryKind::File(_) => "file",
            EntryKind::Directory => "directory",
            other => panic!("{other:?}"),
        };
        // Whose time is their own: not what a copy is about.
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let varies = ["data/backup_label", "data/tablespace_map"].contains(&path.as_str());
        let size = if varies { 0 } else { entry.size() };
        (path, (kind.to_owned(), entry.meta.mode, size))
    });
    all.collect()
}

#[test]
fn a_role_that_may_only_replicate_backs_up_every_version() {
    let found: Vec<_> = versions().into_iter().filter(|i| (13..=18).contains(&i.major)).collect();
    if found.is_empty() {
        skip!("no PostgreSQL is installed");
    }
    for installation in found {
        let fixture = Fixture::new(&installation);
        let cluster = &fixture.cluster;
        let source = replicator(&fixture);
        cluster.pgbench_tables(1);
        let space = cluster.directory("space");
        cluster.sql(&format!("create tablespace fast location '{}'", space.display()));
        cluster.sql("create table in_space tablespace fast as select generate_series(1, 5000) i");
        cluster.sql("create unlogged table passing as select generate_series(1, 5000) i");
        let unlogged = cluster.value("select pg_relation_filepath('passing')");
        cluster.sql("checkpoint");

        let made = over_the_wire(&fixture, &source, &wire(&fixture));
        assert!(made.snapshot.problems.is_empty(), "{:?}", made.snapshot.problems);
        assert!(made.warnings.is_empty(), "{:?}", made.warnings);
        assert_eq!(made.detail.version, installation.major);
        assert_eq!(made.detail.tablespaces.len(), 1);
        assert!(made.detail.time_start <= made.detail.time_stop);
        let tree = fixture.repo.tree(&made.snapshot).unwrap();
        assert!(tree.get(format!("data/{unlogged}").as_bytes()).unwrap().is_none());
        assert!(tree.get(format!("data/{unlogged}_init").as_bytes()).unwrap().is_some());

        // The same paths with the same modes and sizes as a copy on the host.
        let host = fixture.backup();
        assert_eq!(paths(&fixture, &made.snapshot), paths(&fixture, &host.snapshot));

        // All is sent again, and next to nothing of it stored.
        cluster.sql("update pgbench_accounts set abalance = 1 where aid % 5000 = 0");
        let options = BackupOptions { type_: SnapshotType::Incremental, ..wire(&fixture) };
        let second = over_the_wire(&fixture, &source, &options);
        assert_eq!(second.snapshot.type_, SnapshotType::Incremental);
        let stats = &second.snapshot.stats;
        assert!(stats.bytes_read > 20 << 20 && stats.new_bytes < 4 << 20, "{stats:?}");

        cluster.sql("insert into in_space select 1 from generate_series(1, 10)");
        let then = cluster.table_checksums();
        fixture.archived(cluster);
        let mut options = fixture.restoring("restored", RecoveryTarget::Latest);
        options.tablespaces = vec![(
            second.detail.tablespaces[0].oid.to_string(),
            fixture.folder.path().join("fast"),
        )];
        fixture.restore(&second.snapshot, &options);
        let server = fixture.promoted(&options);
        let (mut now, mut then) = (server.table_checksums(), then);
        assert_eq!(server.value("select count(*) from passing"), "0");
        then.remove("postgres.public.passing");
        now.remove("postgres.public.passing");
        assert_eq!(now, then, "{}", installation.major);
    }
}

/// Ends what runs beside a backup, whatever becomes of it.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_cluster_that_changes_all_the_time_comes_whole() {
    let Some(installation) = version(18).or_else(|| version(15)) else {
        skip!("neither PostgreSQL 15 nor 18 is installed")
    };
    let fixture = Fixture::new(&installation);
    let cluster = &fixture.cluster;
    cluster.pgbench_tables(2);
    // More than a region of the grid, and more than waits on its way.
    cluster.sql(
        "create table large as select i, repeat(md5(i::text), 60) v from generate_series(1, 90000) i",
    );
    let load = Load::start(cluster, 2);
    let over = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = cluster.connect();
            let mut round = 0;
            while !over.load(Ordering::Relaxed) {
                for statement in [
                    format!("create database db_{round}"),
                    format!("create table churn_{round} as select generate_series(1, 20000) i"),
                    format!("drop table churn_{round}"),
                    format!("drop database db_{round}"),
                    "update large set i = -i where i % 100 = 0".to_owned(),
                ] {
                    client.batch_execute(&statement).unwrap();
                }
                round += 1;
            }
        });
        let _over = Over(&over);
        over_the_wire(&fixture, &fixture.source(), &wire(&fixture));
        let options = BackupOptions { type_: SnapshotType::Incremental, ..wire(&fixture) };
        over_the_wire(&fixture, &fixture.source(), &options)
    });
    let acknowledged = load.stop();
    assert!(made.snapshot.problems.is_empty(), "{:?}", made.snapshot.problems);
    let then = cluster.table_checksums();
    fixture.archived(cluster);
    let options = fixture.restoring("restored", RecoveryTarget::Latest);
    fixture.restore(&made.snapshot, &options);
    let server = fixture.promoted(&options);
    acknowledged.assert_kept(&server);
    assert_eq!(server.table_checksums(), then);
}

#[test]
fn a_source_without_files_here_comes_over_the_wire_by_itself() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    // It may not ask where the data directory is.
    let source = replicator(&fixture);
    let made = over_the_wire(&fixture, &source, &fixture.options());
    assert_eq!(fixture.repo.snapshots().unwrap().len(), 1);
    let options = fixture.restoring("restored", RecoveryTarget::Immediate);
    fixture.restore(&made.snapshot, &options);
    fixture.promoted(&options);
    let files = BackupOptions { method: Method::Files, ..fixture.options() };
    assert_eq!(
        backup(&fixture.repo, &source, &files).unwrap_err().kind(),
        PostgresErrorKind::Usage
    );
}

#[test]
fn a_role_that_may_not_replicate_is_told_so() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    fixture.cluster.sql("create role plain login");
    let connection = fixture.cluster.connection_string().replace("user=postgres", "user=plain");
    let source = Source { connection, ..fixture.source() };
    let error = backup(&fixture.repo, &source, &wire(&fixture)).unwrap_err();
    assert!(error.hint().unwrap().contains("REPLICATION"), "{error}: {:?}", error.hint());
}

#[test]
fn a_broken_page_is_named_over_the_wire() {
    for installation in [13, 15, 18].into_iter().filter_map(version) {
        let fixture = Fixture::new(&installation);
        let cluster = &fixture.cluster;
        cluster
            .sql("create table t as select i, repeat('x', 100) from generate_series(1, 20000) i");
        cluster.sql("checkpoint");
        let file = cluster.value("select pg_relation_filepath('t')");
        let io = std::fs::File::options().write(true).open(cluster.data().join(&file)).unwrap();
        io.write_all_at(b"broken", 7 * 8192 + 3000).unwrap();
        let made = over_the_wire(&fixture, &fixture.source(), &wire(&fixture));
        assert_eq!(made.snapshot.problems.len(), 1, "{:?}", made.snapshot.problems);
        assert_eq!(made.snapshot.problems[0].path, format!("data/{file}"));
        assert!(made.snapshot.problems[0].what.starts_with("block 7 fails"));
    }
}

#[test]
fn a_tablespace_inside_the_data_directory_is_copied_once() {
    for installation in [13, 18].into_iter().filter_map(version) {
        let fixture = Fixture::new(&installation);
        let cluster = &fixture.cluster;
        let inside = cluster.data().join("inside");
        std::fs::create_dir(&inside).unwrap();
        backstay_testing::own(&inside);
        cluster.sql(&format!("create tablespace inside location '{}'", inside.display()));
        cluster.sql("create table t tablespace inside as select generate_series(1, 1000) i");
        let files = BackupOptions { method: Method::Files, ..fixture.options() };
        for (number, options) in [files, wire(&fixture)].into_iter().enumerate() {
            let made = over_the_wire(&fixture, &fixture.source(), &options);
            let paths = paths(&fixture, &made.snapshot);
            assert!(paths.contains_key("data/inside"));
            assert!(!paths.keys().any(|path| path.starts_with("data/inside/")), "{paths:?}");
            let mut options =
                fixture.restoring(&format!("restored{number}"), RecoveryTarget::Immediate);
            let space = fixture.folder.path().join(format!("space{number}"));
            options.tablespaces = vec![("inside".to_owned(), space)];
            // The first restored server archives as well, on a timeline of its own.
            options.timeline = Some(TargetTimeline::Current);
            fixture.restore(&made.snapshot, &options);
            assert_eq!(fixture.promoted(&options).value("select count(*) from t"), "1000");
        }
    }
}

/// Something between client and server that alters one byte, or cuts the connection, after so many
/// bytes from the server.
fn relay(from: UnixListener, to: std::path::PathBuf, after: usize, cut: bool) {
    for client in from.incoming() {
        let (Ok(mut client), Ok(mut server)) = (client, UnixStream::connect(&to)) else { return };
        let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut up, &mut down));
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            let mut passed = 0;
            while let Ok(read @ 1..) = server.read(&mut buffer) {
                if passed <= after && after < passed + read {
                    if cut {
                        let _ = client.shutdown(std::net::Shutdown::Both);
                        return;
                    }
                    buffer[after - passed] ^= 1;
                }
                passed += read;
                if client.write_all(&buffer[..read]).is_err() {
                    return;
                }
            }
            let _ = client.shutdown(std::net::Shutdown::Both);
        });
    }
}

#[test]
fn what_is_altered_or_cut_on_its_way_makes_no_snapshot() {
    for installation in [14, 15].into_iter().filter_map(version) {
        let fixture = Fixture::new(&installation);
        let cluster = &fixture.cluster;
        cluster
            .sql("create table t as select i, repeat('x', 500) from generate_series(1, 30000) i");
        let to = cluster.socket().join(format!(".s.PGSQL.{}", cluster.port()));
        // Somewhere in the middle of the data: in content or in what surrounds it.
        for (number, (after, cut)) in
            [(9 << 20, false), ((9 << 20) + 12_345, false), (9 << 20, true)].into_iter().enumerate()
        {
            let folder = cluster.directory(&format!("relay{number}"));
            let listener =
                UnixListener::bind(folder.join(format!(".s.PGSQL.{}", cluster.port()))).unwrap();
            let theirs = to.clone();
            std::thread::spawn(move || relay(listener, theirs, after, cut));
            let connection = format!(
                "host={} port={} user=postgres dbname=postgres",
                folder.display(),
                cluster.port()
            );
            let source = Source { connection, ..fixture.source() };
            let error = backup(&fixture.repo, &source, &wire(&fixture)).unwrap_err();
            assert!(error.hint().is_some(), "{error}");
            let expected = match cut {
                true => vec![PostgresErrorKind::Connection],
                false => vec![
                    PostgresErrorKind::Damaged,
                    PostgresErrorKind::Connection,
                    PostgresErrorKind::Server,
                ],
            };
            assert!(expected.contains(&error.kind()), "{:?}: {error}", error.kind());
            assert!(fixture.repo.snapshots().unwrap().is_empty());
        }
        over_the_wire(&fixture, &fixture.source(), &wire(&fixture));
    }
}

#[test]
fn a_backup_over_the_wire_that_is_killed_leaves_no_snapshot() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    for failpoint in
        ["postgres-backup-started", "postgres-files-copied", "postgres-archive-complete"]
    {
        let status = fixture.elsewhere("wire-backup", failpoint, "", std::path::Path::new("/"));
        assert!(!status.success() && status.code().is_none(), "{failpoint}: {status}");
        assert!(fixture.repo.snapshots().unwrap().is_empty(), "{failpoint}");
    }
    over_the_wire(&fixture, &fixture.source(), &wire(&fixture));
}
