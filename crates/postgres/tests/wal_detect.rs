//! What the WAL says has to be read for a backup, against two backups that read everything: the pages
//! of the first, and of the second where the WAL says so, are the second.

// What fails outside a test function fails its test.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use backstay_postgres::wal::{
    Detected, Detection, Folder, Fork, Moment, Nearest, RecoveryTarget, detect,
};
use backstay_postgres::{Backup, BackupDetail, BackupOptions, Detect};
use backstay_repo::SnapshotType;
use backstay_testing::postgres::{Load, version};
use common::{Fixture, Shape};

fn moment(detail: &BackupDetail) -> Moment {
    Moment {
        system_identifier: detail.system_identifier,
        version: detail.version,
        catalog_version: detail.catalog_version,
        timeline: detail.timeline,
        start: detail.start_lsn,
        block_size: detail.block_size,
        relation_segment_blocks: 131_072,
        checksums: detail.checksums,
    }
}

/// The files of relations in a backup, by their paths in the snapshot.
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

/// Puts the second backup together from the first and what the WAL says; the bytes read for it, and
/// how many there are in all.
fn compose(
    detection: &Detection,
    before: &BTreeMap<String, Vec<u8>>,
    after: &BTreeMap<String, Vec<u8>>,
) -> (u64, u64) {
    let (mut read, mut all) = (0, 0);
    for (path, content) in after {
        let old = before.get(path);
        let size = content.len() as u64;
        let ranges = detection.to_read(path.as_bytes(), old.map(|old| old.len() as u64), size);
        let mut made = old.cloned().unwrap_or_default();
        made.resize(content.len(), 0x55);
        for Range { start, end } in ranges {
            assert!(start < end && end <= size, "{path}: {start} to {end} of {size}");
            let range = start as usize..end as usize;
            made[range.clone()].copy_from_slice(&content[range]);
            read += end - start;
        }
        all += size;
        for (number, (made, wanted)) in made.chunks(8192).zip(content.chunks(8192)).enumerate() {
            assert!(made == wanted, "page {number} of {path} is an old one");
        }
    }
    (read, all)
}

fn composes(major: u32) {
    let Some(installation) = version(major) else {
        backstay_testing::skipped(&format!("PostgreSQL {major} is not installed"));
        return;
    };
    let shape = Shape { segment_mib: Some(4), ..Shape::default() };
    let fixture = Fixture::with(&installation, shape, &[("wal_keep_size", "512MB")]);
    let cluster = &fixture.cluster;
    let each = |statements: &[&str]| statements.iter().for_each(|one| cluster.sql(one));
    let space = cluster.directory("elsewhere");
    each(&[
        "create table big as select i id, repeat('b', 500) v from generate_series(1, 30000) i",
        "create index on big (id)",
        "create table cut as select i id, repeat('c', 500) v from generate_series(1, 9000) i",
        "create table gone as select 1 id",
        "create unlogged table fast as select i from generate_series(1, 1000) i",
        "create database dropped",
        &format!("create tablespace elsewhere location '{}'", space.display()),
        "vacuum big",
    ]);
    let first = fixture.backup();
    each(&[
        "update big set v = 'n' where id % 700 = 0",
        "delete from cut where id > 1000",
        "vacuum cut",
        "insert into cut select i, repeat('d', 400) from generate_series(1001, 5000) i",
        "drop table gone",
        "create table made tablespace elsewhere as select i from generate_series(1, 3000) i",
        "insert into fast select i from generate_series(1, 1000) i",
        "drop database dropped",
        "create database dropped",
    ]);
    cluster.sql_in("dropped", "create table here as select generate_series(1, 100) i");
    cluster.switch_wal();
    let second = fixture.backup();
    each(&["truncate cut", "insert into cut values (1, 'one')", "vacuum (freeze) big"]);
    let third = fixture.backup();

    let wal = cluster.data().join("pg_wal");
    let archive = fixture.repo.archive(first.detail.system_identifier);
    let contents: Vec<_> =
        [&first, &second, &third].into_iter().map(|one| relations(&fixture, one)).collect();
    let found = |from: &Backup, to: &Backup| {
        let now = moment(&to.detail);
        let near = Nearest { folder: Folder::open(&wal).unwrap(), archive: &archive };
        let nearest = detect(&near, &from.detail, &now, |_| Ok(())).unwrap();
        let archived = detect(&archive, &from.detail, &now, |_| Ok(())).unwrap();
        assert_eq!(nearest, archived);
        match archived {
            Detected::Wal(detection) => detection,
            Detected::Unknown(reason) => panic!("{reason}"),
        }
    };
    let (read, all) = compose(&found(&first, &second), &contents[0], &contents[1]);
    assert!(read * 2 < all, "{read} of {all} bytes");
    compose(&found(&second, &third), &contents[1], &contents[2]);
    // Over both at once, as a differential backup would.
    compose(&found(&first, &third), &contents[0], &contents[2]);

    refuses(&fixture, &first, &second, &wal);
    if major == 18 {
        backs_up(&fixture);
    }
}

/// Backups that read what the log names are those that read everything.
fn backs_up(fixture: &Fixture) {
    let cluster = &fixture.cluster;
    let backup = |type_, detect| {
        let options = BackupOptions { type_, detect, ..fixture.options() };
        backstay_postgres::backup(&fixture.repo, &fixture.source(), &options).unwrap()
    };
    let content = |backup: &Backup| relations(fixture, backup);
    for round in 0..2 {
        cluster.sql(&format!("update big set v = 'r{round}' where id % 900 = {round}"));
        cluster.sql(&format!("create table added_{round} as select generate_series(1, 900) i"));
        // Nothing is written between the two of a round.
        let by_wal = backup(SnapshotType::Incremental, Detect::Wal);
        let whole = backup(SnapshotType::Full, Detect::Hash);
        assert_eq!(by_wal.warnings, Vec::<String>::new());
        let (read, all) = (by_wal.snapshot.stats.bytes_read, whole.snapshot.stats.bytes_read);
        assert!(read * 4 < all * 3, "{read} of {all} bytes were read");
        assert!(by_wal.snapshot.stats.files_unchanged > 300);
        assert!(content(&by_wal) == content(&whole), "round {round}");
        // What the next one is compared with was itself not wholly read.
        fixture.repo.forget(&whole.snapshot.id).unwrap();
    }
    let auto = backup(SnapshotType::Incremental, Detect::Auto);
    assert!(auto.snapshot.stats.files_unchanged > 300);

    // What was done without a log is found by reading.
    cluster.configure(&[
        ("wal_level", "minimal"),
        ("max_wal_senders", "0"),
        ("archive_mode", "off"),
    ]);
    cluster.restart();
    cluster.sql(
        "begin; create table unlogged_load (i int); \
         insert into unlogged_load select generate_series(1, 9000); commit",
    );
    cluster.configure(&[
        ("wal_level", "replica"),
        ("max_wal_senders", "3"),
        ("archive_mode", "on"),
    ]);
    cluster.restart();
    let after = backup(SnapshotType::Incremental, Detect::Wal);
    assert!(
        after.warnings.iter().any(|w| w.contains("wal_level was minimal")),
        "{:?}",
        after.warnings
    );
    assert_eq!(after.snapshot.stats.files_unchanged, 0);
    assert!(content(&after) == content(&backup(SnapshotType::Full, Detect::Hash)));
}

/// Everything that makes the WAL no answer is a reason.
fn refuses(fixture: &Fixture, first: &Backup, second: &Backup, wal: &Path) {
    let files = Folder::open(wal).unwrap();
    let reason = |before: &BackupDetail, now: &Moment, files: &Folder| match detect(
        files,
        before,
        now,
        |_| Ok(()),
    )
    .unwrap()
    {
        Detected::Unknown(reason) => reason,
        Detected::Wal(_) => panic!("this should not be an answer"),
    };
    let (before, now) = (&first.detail, moment(&second.detail));
    for (changed, said) in [
        (Moment { system_identifier: 1, ..now }, "another cluster"),
        (Moment { version: 12, ..now }, "another version"),
        (Moment { catalog_version: 1, ..now }, "another version"),
        (Moment { timeline: 2, ..now }, "timeline 1 to 2"),
        (Moment { block_size: 4096, ..now }, "pages of 4096 bytes"),
        (Moment { checksums: false, ..now }, "checksums were turned"),
        (Moment { start: before.start_lsn, ..now }, ""),
    ] {
        if said.is_empty() {
            // Nothing was written between a moment and itself.
            assert!(matches!(detect(&files, before, &changed, |_| Ok(())), Ok(Detected::Wal(_))));
        } else {
            let reason = reason(before, &changed, &files);
            assert!(reason.contains(said), "{reason}");
        }
    }
    let later = moment(&first.detail);
    assert!(reason(&second.detail, &later, &files).contains("later than"));
    let within = BackupDetail {
        start_lsn: backstay_postgres::wal::Lsn(before.start_lsn.0 + 8),
        ..before.clone()
    };
    assert!(reason(&within, &now, &files).contains("has no record at"));
    let far = Moment { start: backstay_postgres::wal::Lsn(1 << 40), ..now };
    assert!(reason(before, &far, &files).contains("the WAL ends at"));

    // A segment between the two is gone, then damaged.
    let size = before.segment_size;
    let number = before.start_lsn.segment(size) + 1;
    assert!(number < now.start.segment(size));
    let name = backstay_postgres::wal::SegmentName::new(1, number, size).unwrap().to_string();
    let copy = fixture.cluster.directory("wal-copy");
    for entry in fs::read_dir(wal).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    }
    let mut content = fs::read(copy.join(&name)).unwrap();
    fs::remove_file(copy.join(&name)).unwrap();
    let missing = reason(before, &now, &Folder::open(&copy).unwrap());
    assert!(missing.contains(&format!("{name} is missing")), "{missing}");
    content[20_000..20_100].fill(0x55);
    fs::write(copy.join(&name), content).unwrap();
    let damaged = reason(before, &now, &Folder::open(&copy).unwrap());
    assert!(damaged.contains("no valid record"), "{damaged}");
}

#[test]
fn the_wal_says_what_to_read_on_postgresql_13() {
    composes(13);
}

#[test]
fn the_wal_says_what_to_read_on_postgresql_18() {
    composes(18);
}

/// Files are taken over while the server writes to them: recovery puts right what is older than the
/// backup's end.
#[test]
fn a_backup_by_the_log_of_a_busy_cluster_recovers() {
    let Some(installation) = version(15) else {
        backstay_testing::skip!("PostgreSQL 15 is not installed");
    };
    let fixture = Fixture::new(&installation);
    let cluster = &fixture.cluster;
    cluster
        .sql("create table big as select i id, repeat('b', 300) v from generate_series(1, 9000) i");
    let load = Load::start(cluster, 2);
    fixture.backup();
    load.run_for(100);
    cluster.sql("update big set v = 'n' where id % 300 = 0");
    let by_wal = |_| {
        let options = BackupOptions { detect: Detect::Wal, ..fixture.options() };
        backstay_postgres::backup(&fixture.repo, &fixture.source(), &options).unwrap()
    };
    let made: Vec<Backup> = (0..2).map(by_wal).collect();
    load.run_for(50);
    let acknowledged = load.stop();
    for one in &made {
        assert_eq!(one.warnings, Vec::<String>::new());
        assert!(one.snapshot.stats.files_unchanged > 300, "{:?}", one.snapshot.stats);
    }
    let then = cluster.table_checksums();
    fixture.archived(cluster);
    let options = fixture.restoring("restored", RecoveryTarget::Latest);
    fixture.restore(&made[1].snapshot, &options);
    let server = fixture.promoted(&options);
    acknowledged.assert_kept(&server);
    assert_eq!(server.table_checksums(), then);
}
