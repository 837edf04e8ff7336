//! Backups that read what the log names, against backups that read everything, page by page, through
//! what has made others lose pages: relations that are cut and grow again, also past a gigabyte,
//! databases made in either way, moved tablespaces, hints that no record tells of.

// What fails outside a test function fails its test.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use backstay_postgres::wal::{Fork, RecoveryTarget};
use backstay_postgres::{Backup, BackupOptions, Detect, page};
use backstay_repo::SnapshotType;
use backstay_testing::postgres::version;
use common::{Fixture, Shape};

const PAGE: usize = 8192;
const GIB: u64 = 1 << 30;

fn backup(fixture: &Fixture, type_: SnapshotType, detect: Detect) -> Backup {
    let options = BackupOptions { type_, detect, ..fixture.options() };
    backstay_postgres::backup(&fixture.repo, &fixture.source(), &options)
        .unwrap_or_else(|error| panic!("{error:?}\n{}", fixture.cluster.log()))
}

/// The files of relations in a backup.
fn relations(fixture: &Fixture, backup: &Backup) -> BTreeMap<String, Vec<u8>> {
    let tree = fixture.repo.tree(&backup.snapshot).unwrap();
    let mut found = BTreeMap::new();
    for entry in tree.iter() {
        let entry = entry.unwrap();
        if Fork::of_path(&entry.path).is_some() {
            let mut content = Vec::new();
            tree.read_file(&entry, &mut content).unwrap();
            found.insert(String::from_utf8(entry.path.clone()).unwrap(), content);
        }
    }
    found
}

/// A page of the one that reads everything is that of the other, unless it changed after that one had
/// started, or by hints alone where no record tells of them. Answers how many did so.
fn same(fixture: &Fixture, by_wal: &Backup, whole: &Backup) -> usize {
    let (mine, all) = (relations(fixture, by_wal), relations(fixture, whole));
    assert!(mine.keys().eq(all.keys()));
    let mut hinted = 0;
    for (path, content) in &all {
        let other = &mine[path];
        assert_eq!(other.len(), content.len(), "{path}");
        for (number, (old, new)) in other.chunks(PAGE).zip(content.chunks(PAGE)).enumerate() {
            if old == new || page::lsn(new) > by_wal.detail.start_lsn.0 {
                continue;
            }
            let hints = !whole.detail.checksums && page::same_but_for_hints(old, new);
            assert!(hints, "page {number} of {path} is an old one");
            hinted += 1;
        }
    }
    hinted
}

/// A backup by the log, which must have been believed, and the one that reads everything.
fn round(fixture: &Fixture, what: &str) -> (Backup, Backup) {
    let by_wal = backup(fixture, SnapshotType::Incremental, Detect::Wal);
    assert_eq!(by_wal.warnings, Vec::<String>::new(), "{what}");
    assert!(by_wal.snapshot.problems.is_empty(), "{what}: {:?}", by_wal.snapshot.problems);
    let whole = backup(fixture, SnapshotType::Full, Detect::Hash);
    let hinted = same(fixture, &by_wal, &whole);
    let (read, all) = (by_wal.snapshot.stats.bytes_read, whole.snapshot.stats.bytes_read);
    eprintln!("{what}: {read} of {all} bytes read, {hinted} pages differ by hints");
    // The next one is compared with this one, of which not everything was read.
    fixture.repo.forget(&whole.snapshot.id).unwrap();
    (by_wal, whole)
}

fn file_of(fixture: &Fixture, table: &str) -> PathBuf {
    let path = fixture.cluster.value(&format!("select pg_relation_filepath('{table}')"));
    fixture.cluster.data().join(path)
}

fn changes(major: u32, no_checksums: bool) {
    let Some(installation) = version(major) else {
        backstay_testing::skipped(&format!("PostgreSQL {major} is not installed"));
        return;
    };
    let shape = Shape { no_checksums, segment_mib: Some(16) };
    let fixture = Fixture::with(&installation, shape, &[("max_wal_size", "2GB")]);
    let cluster = &fixture.cluster;
    let each = |statements: &[&str]| statements.iter().for_each(|one| cluster.sql(one));
    let space = cluster.directory("elsewhere");
    let strategies: &[&str] =
        if major >= 15 { &["strategy file_copy", "strategy wal_log"] } else { &["", ""] };
    each(&[
        "create table big as select i id, repeat('b', 800) v from generate_series(1, 60000) i",
        "create table hot as select i id, repeat('h', 60) v from generate_series(1, 60000) i",
        "create index hot_id on hot (id)",
        "create index hot_hash on hot using hash (v)",
        "create sequence numbers",
        "create table moves as select i id, repeat('m', 300) v from generate_series(1, 9000) i",
        "create table goes as select generate_series(1, 9000) id",
        &format!("create tablespace elsewhere location '{}'", space.display()),
        "create database moved",
        "create database dropped",
    ]);
    cluster.sql_in("moved", "create table t as select generate_series(1, 20000) i");
    // With checksums the first look at a tuple is a record, and names its page.
    each(&["vacuum (freeze)", "checkpoint"]);
    fixture.backup();

    // One page of a large table: the rest of the file is not read.
    each(&["update big set v = repeat('n', 800) where id = 30000"]);
    let (by_wal, whole) = round(&fixture, "one row");
    let read = by_wal.snapshot.stats.bytes_read;
    assert!(read * 4 < whole.snapshot.stats.bytes_read, "{read} bytes were read");

    // Hints alone, and entries of indexes that die by being passed.
    each(&["delete from hot where id % 3 = 0", "checkpoint"]);
    round(&fixture, "deleted");
    each(&[
        "select count(*) from hot",
        "set enable_seqscan = off; select count(*) from hot where id > 0",
        "set enable_seqscan = off; select count(*) from hot where v = repeat('h', 60)",
        "select count(nextval('numbers')) from generate_series(1, 100)",
        "checkpoint",
    ]);
    round(&fixture, "hints");

    each(&[
        "update big set v = repeat('p', 700) where id between 1 and 600",
        "vacuum (freeze) hot",
        "create index on big (id)",
        "alter table moves set tablespace elsewhere",
        "alter database moved set tablespace elsewhere",
        "drop table goes",
        "drop database dropped",
        &format!("create database dropped {}", strategies[0]),
        &format!("create database again template moved {}", strategies[1]),
        "reindex table hot",
        "create unlogged table fast as select generate_series(1, 20000) i",
        "alter table fast set logged",
        "begin; create table undone as select generate_series(1, 9000) i; rollback",
        "truncate moves; insert into moves values (1, 'one')",
    ]);
    round(&fixture, "definitions");

    // Cut, and grown again by other pages, twice in one range.
    for _ in 0..2 {
        each(&[
            "delete from big where id > 3000",
            "vacuum big",
            "insert into big select i, repeat('x', 800) from generate_series(3001, 40000) i",
        ]);
    }
    round(&fixture, "cut and grown");

    if let Some(mut pgbench) = cluster.command("pgbench") {
        let mut run = |arguments: &[&str]| {
            let done = pgbench.args(arguments).arg("postgres").output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            pgbench = cluster.command("pgbench").unwrap();
        };
        run(&["-i", "-q", "-s", "2"]);
        round(&fixture, "pgbench -i");
        run(&["-n", "-t", "500", "-c", "4"]);
        round(&fixture, "pgbench");
    }
    if major == 18 {
        past_a_gigabyte(&fixture);
    }

    each(&["update big set v = 'end' where id % 100 = 7"]);
    let (last, _) = round(&fixture, "the end");
    let then = cluster.table_checksums();
    fixture.archived(cluster);
    let mut options = fixture.restoring("restored", RecoveryTarget::Latest);
    options.tablespaces = vec![("elsewhere".to_owned(), cluster.directory("restored-elsewhere"))];
    fixture.restore(&last.snapshot, &options);
    assert_eq!(fixture.promoted(&options).table_checksums(), then);
    if no_checksums || major == 18 {
        damage_is_met(&fixture, no_checksums);
    }
}

/// A relation of two files loses the second and gets another one. It grows by pages that are not
/// used yet, as servers make them in advance.
fn past_a_gigabyte(fixture: &Fixture) {
    let cluster = &fixture.cluster;
    cluster.sql("create table large as select 1 id, 'first' v");
    let file = file_of(fixture, "large");
    let grow = || {
        cluster.sql("checkpoint");
        cluster.stop();
        File::options().write(true).open(&file).unwrap().set_len(GIB).unwrap();
        let second = PathBuf::from(format!("{}.1", file.display()));
        File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(second)
            .unwrap()
            .set_len(4 << 20)
            .unwrap();
        backstay_testing::own(file.parent().unwrap());
        cluster.start();
    };
    let fill = |v: &str| {
        cluster.sql(&format!(
            "insert into large select i, repeat('{v}', 500) from generate_series(2, 4000) i"
        ));
        let behind = "select count(*) > 0 from large where ctid >= '(131072,0)'";
        assert_eq!(cluster.value(behind), "t");
    };
    grow();
    fill("o");
    round(fixture, "past a gigabyte");
    cluster.sql("delete from large where id > 1");
    cluster.sql("vacuum large");
    assert!(cluster.value("select pg_relation_size('large')").parse::<u64>().unwrap() < GIB);
    grow();
    fill("n");
    round(fixture, "cut and grown past a gigabyte");
    cluster.sql("drop table large");
}

/// Where a page is another one and the log has nothing of it, everything is read, and the snapshot
/// says so.
fn damage_is_met(fixture: &Fixture, no_checksums: bool) {
    let cluster = &fixture.cluster;
    round(fixture, "before the damage");
    cluster.stop();
    let mut changed = 0;
    // Where the first page of every relation says which record changed it last: that counts, and the
    // server does not mind.
    for database in fs::read_dir(cluster.data().join("base")).unwrap() {
        for file in fs::read_dir(database.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if !name.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let mut first = vec![0; PAGE];
            if file.read_exact_at(&mut first, 0).is_err() {
                continue;
            }
            let at = usize::from(u16::from_le_bytes([first[12], first[13]]));
            let upper = usize::from(u16::from_le_bytes([first[14], first[15]]));
            if upper <= at {
                continue;
            }
            first[4] ^= 0x08;
            if !no_checksums {
                let sum = page::checksum(&first, 0);
                first[8..10].copy_from_slice(&sum.to_le_bytes());
            }
            file.write_all_at(&first, 0).unwrap();
            changed += 1;
        }
    }
    assert!(changed > 200, "{changed}");
    cluster.start();
    let by_wal = backup(fixture, SnapshotType::Incremental, Detect::Wal);
    let said = by_wal.warnings.iter().any(|w| w.contains("the log has no change of it"));
    assert!(said, "{:?}", by_wal.warnings);
    let [problem] = by_wal.snapshot.problems.as_slice() else {
        panic!("{:?}", by_wal.snapshot.problems)
    };
    assert!(problem.what.contains("without a record in the log"), "{}", problem.what);
    assert_eq!(by_wal.snapshot.stats.files_unchanged, 0);
    let whole = backup(fixture, SnapshotType::Full, Detect::Hash);
    same(fixture, &by_wal, &whole);
    // It has all of that, and the next one builds on it.
    fixture.repo.forget(&whole.snapshot.id).unwrap();
    round(fixture, "after the damage");
}

#[test]
fn pages_are_those_of_a_whole_backup_on_postgresql_13() {
    changes(13, false);
}

#[test]
fn pages_are_those_of_a_whole_backup_without_checksums() {
    changes(15, true);
}

#[test]
fn pages_are_those_of_a_whole_backup_on_postgresql_18() {
    changes(18, false);
}
