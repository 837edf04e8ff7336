//! The WAL reader against real servers, and PostgreSQL's own `pg_waldump` as the oracle.

// What fails outside a test function fails its test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use backstay_postgres::wal::kind::manager_name;
use backstay_postgres::wal::reader::{Identity, Segment};
use backstay_postgres::wal::{Event, Lsn, Reader, SegmentName, SegmentSize, check_segment};
use backstay_postgres::{PostgresErrorKind, Result};
use backstay_testing::postgres::{Cluster, Installation, version, versions};
use proptest::prelude::*;

const SIZE: SegmentSize = SegmentSize::MIN;

/// The segments of a `pg_wal` folder, whatever their timeline: the youngest of each number.
type Wal = BTreeMap<u64, Segment>;

fn load(folder: &Path) -> Wal {
    let mut wal = Wal::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let Ok(name) = name.parse::<SegmentName>() else { continue };
        let content = Arc::new(std::fs::read(entry.path()).unwrap());
        // A server keeps empty and recycled files for the segments to come.
        if check_segment(name, &content, None).is_err() {
            continue;
        }
        let segment = Segment { timeline: name.timeline(), content };
        let there = wal.entry(name.number(SIZE).unwrap()).or_insert_with(|| segment.clone());
        if there.timeline < segment.timeline {
            *there = segment;
        }
    }
    wal
}

fn reader(wal: &Wal, start: Lsn) -> Reader<impl FnMut(u64) -> Result<Option<Segment>> + '_> {
    let identity = Identity { system_identifier: None, segment_size: SIZE };
    Reader::new(identity, start, |number| Ok(wal.get(&number).cloned()))
}

/// A cluster that keeps all its WAL, in small segments.
fn cluster(installation: &Installation) -> Cluster {
    Cluster::builder(installation)
        .segment_size(1)
        .config(&[
            ("wal_keep_size", "512MB"),
            ("max_prepared_transactions", "5"),
            ("checkpoint_timeout", "1h"),
            ("wal_level", "replica"),
            ("autovacuum", "off"),
        ])
        .start()
}

/// Work that leaves every kind of record this crate reads, and long ones.
fn work(cluster: &Cluster) {
    cluster.sql("create table t (id int primary key, v text); create table gone (id int)");
    cluster.sql("insert into t select i, repeat('x', i % 300) from generate_series(1, 5000) i");
    cluster.sql("insert into gone values (1)");
    // A record of about 3 MB: over three segments.
    cluster.sql("select pg_logical_emit_message(false, 'long', repeat('y', 3 * 1024 * 1024))");
    cluster.sql("update t set v = v || 'z' where id % 3 = 0");
    cluster.sql("vacuum t");
    cluster.sql("begin; insert into t values (100001, 'a'); rollback");
    cluster.sql(
        "begin; savepoint a; insert into t values (100002, 'b'); savepoint b; \
                 insert into t values (100003, 'c'); commit",
    );
    // Everything that can stand before the prepared transaction's own number.
    cluster.sql(
        "begin; savepoint a; drop table gone; create table made (id int); \
                 select txid_current(); prepare transaction 'two words'",
    );
}

#[test]
fn reads_the_same_records_as_pg_waldump() {
    let Some(installation) = version(15).filter(|i| i.program("pg_waldump").is_some()) else {
        backstay_testing::skip!("PostgreSQL 15 with pg_waldump is not installed");
    };
    let cluster = cluster(&installation);
    let start: Lsn = cluster.value("select redo_lsn from pg_control_checkpoint()").parse().unwrap();
    cluster.pgbench_tables(2);
    work(&cluster);
    cluster.sql("select pg_create_restore_point('before')");
    cluster.sql("commit prepared 'two words'");
    cluster.pgbench(&["-c", "2", "-t", "200"]);
    cluster.sql("create database copied strategy file_copy");
    cluster.sql("create database logged strategy wal_log");
    cluster.switch_wal();
    cluster.sql("vacuum full t");
    cluster.sql("truncate t");
    cluster.sql("create index on pgbench_accounts using brin (abalance)");
    cluster.sql("checkpoint");
    cluster.sql("drop database logged");
    cluster.stop();

    let mut command = cluster.command("pg_waldump").unwrap();
    command.arg("-p").arg(cluster.data().join("pg_wal")).arg("-s").arg(start.to_string());
    let output = command.output().unwrap();
    let dump = String::from_utf8_lossy(&output.stdout).into_owned();

    let wal = load(&cluster.data().join("pg_wal"));
    let mut reader = reader(&wal, start);
    let mut compared = 0;
    for line in dump.lines().filter(|line| line.starts_with("rmgr: ")) {
        let record =
            reader.next_record().unwrap().unwrap_or_else(|| panic!("no record for {line}"));
        let field = |from: &str, to: &str| {
            line.split_once(from).unwrap().1.split(to).next().unwrap().trim().to_owned()
        };
        assert_eq!(record.lsn.to_string(), padded(&field("lsn: ", ",")), "{line}");
        assert_eq!(record.previous.to_string(), padded(&field("prev ", ",")), "{line}");
        assert_eq!(record.xid.to_string(), field("tx: ", ","), "{line}");
        let length = field("len (rec/tot):", ", tx");
        assert_eq!(record.length.to_string(), length.split('/').nth(1).unwrap().trim(), "{line}");
        assert_eq!(manager_name(record.manager), field("rmgr: ", " "), "{line}");
        let blocks = record.blocks().unwrap_or_else(|| panic!("blocks of {line}"));
        let shown: Vec<&str> = line.split("blkref #").skip(1).collect();
        assert_eq!(blocks.len(), shown.len(), "{line}");
        for (block, shown) in blocks.iter().zip(shown) {
            let relation = format!("rel {} ", block.relation);
            assert!(shown.contains(&relation), "{block:?} {line}");
            assert!(shown.contains(&format!("blk {}", block.block)), "{block:?} {line}");
            assert_eq!(block.image.is_some(), shown.contains("FPW"), "{block:?} {line}");
        }
        match record.event() {
            Some(Event::TransactionEnd(end)) => {
                let (word, xid) = match (end.committed, end.prepared) {
                    (true, false) => ("COMMIT 2", record.xid),
                    (false, false) => ("ABORT 2", record.xid),
                    (true, true) => ("COMMIT_PREPARED", end.xid),
                    (false, true) => ("ABORT_PREPARED", end.xid),
                };
                assert!(line.contains(word), "{end:?} {line}");
                assert_eq!(end.xid, xid);
                if end.prepared {
                    assert!(line.contains(&format!("{}: ", end.xid)), "{end:?} {line}");
                }
                let time = end.time.to_zoned(jiff::tz::TimeZone::UTC);
                let time = time.strftime("%Y-%m-%d %H:%M:%S%.6f").to_string();
                assert!(line.contains(&time), "{time} {line}");
            }
            Some(Event::RestorePoint { name, .. }) => assert!(line.contains(&name), "{line}"),
            Some(Event::Checkpoint { redo, timeline, shutdown, .. }) => {
                assert!(line.contains(if shutdown { "shutdown" } else { "online" }), "{line}");
                assert_eq!(redo.to_string(), padded(&field("redo ", ";")), "{line}");
                assert!(line.contains(&format!("tli {timeline};")), "{line}");
            }
            Some(Event::Switch) => assert!(line.contains("SWITCH"), "{line}"),
            Some(Event::EndOfRecovery { .. }) => assert!(line.contains("END_OF_RECOVERY")),
            None => assert!(
                !["desc: COMMIT", "desc: ABORT", "CHECKPOINT_", "RESTORE_POINT", "SWITCH"]
                    .iter()
                    .any(|word| line.contains(word)),
                "{line}"
            ),
        }
        compared += 1;
    }
    assert!(compared > 5000, "{compared} records:\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(reader.next_record().unwrap().is_none(), "more records than pg_waldump has");
    assert!(reader.end_reason().is_some());
}

/// `pg_waldump` fills the second half with zeros.
fn padded(lsn: &str) -> String {
    lsn.parse::<Lsn>().unwrap().to_string()
}

#[test]
fn reads_the_wal_of_every_version() {
    let versions = versions();
    if versions.is_empty() {
        backstay_testing::skip!("no PostgreSQL is installed; run scripts/test-postgres");
    }
    for installation in versions.iter().filter(|i| (13..=18).contains(&i.major)) {
        let major = installation.major;
        let cluster = cluster(installation);
        let start: Lsn = cluster.value("select pg_current_wal_lsn()").parse().unwrap();
        // A record may be under way: the page, the segment that it is in is where to start.
        let start = SIZE.start_of(start.segment(SIZE)).unwrap();
        work(&cluster);
        let prepared = cluster.value("select transaction from pg_prepared_xacts");
        let point = cluster.value("select pg_create_restore_point('the point')");
        cluster.sql("commit prepared 'two words'");
        cluster.switch_wal();
        cluster.sql("checkpoint");
        let redo = cluster.value("select redo_lsn from pg_control_checkpoint()");
        let end = cluster.value("select pg_current_wal_insert_lsn()");
        cluster.kill();

        let wal = load(&cluster.data().join("pg_wal"));
        let mut reader = reader(&wal, start);
        let (mut points, mut commits, mut redos, mut switches) = (vec![], vec![], vec![], 0);
        let mut records = 0;
        while let Some(record) = reader.next_record().unwrap() {
            assert_eq!(record.version, major);
            assert!(record.blocks().is_some(), "{major}: {record:?}");
            records += 1;
            match record.event() {
                Some(Event::RestorePoint { name, .. }) => points.push((name, record.end)),
                Some(Event::TransactionEnd(end)) if end.prepared => commits.push(end),
                Some(Event::Checkpoint { redo, timeline: 1, .. }) => redos.push(redo.to_string()),
                Some(Event::Switch) => switches += 1,
                _ => {}
            }
        }
        assert_eq!(points, [("the point".to_owned(), point.parse().unwrap())], "{major}");
        assert_eq!(commits.len(), 1, "{major}");
        assert_eq!(commits[0].xid.to_string(), prepared, "{major}");
        assert!(commits[0].committed);
        assert!(redos.contains(&redo), "{major}: {redos:?} {redo}");
        assert_eq!(switches, 1, "{major}");
        assert!(records > 5000, "{major}: {records}");
        assert!(reader.end() >= end.parse().unwrap(), "{major}: {} {end}", reader.end());
    }
}

/// A record that a crash tore off is given up by what the restarted server writes in its place.
#[test]
fn a_record_torn_by_a_crash_is_passed_over() {
    let Some(installation) = version(15) else {
        backstay_testing::skip!("PostgreSQL 15 is not installed");
    };
    let cluster = cluster(&installation);
    let start: Lsn = cluster.value("select redo_lsn from pg_control_checkpoint()").parse().unwrap();
    cluster.sql("create table t (id int)");
    cluster.switch_wal();
    let before: Lsn = cluster.value("select pg_current_wal_insert_lsn()").parse().unwrap();
    cluster.sql("select pg_logical_emit_message(false, 'torn', repeat('y', 2500000))");
    cluster.kill();
    // The segments that hold the rest of the long record never reached the disk.
    let folder = cluster.data().join("pg_wal");
    let first_lost = before.segment(SIZE) + 1;
    for number in first_lost..first_lost + 8 {
        let name = SegmentName::new(1, number, SIZE).unwrap().to_string();
        let _ = std::fs::remove_file(folder.join(name));
    }
    cluster.start();
    cluster.sql("insert into t values (1)");
    cluster.sql("select pg_create_restore_point('after the crash')");
    cluster.switch_wal();
    cluster.stop();

    let wal = load(&folder);
    let mut reader = reader(&wal, start);
    let mut found = false;
    while let Some(record) = reader.next_record().unwrap() {
        if let Some(Event::RestorePoint { name, .. }) = record.event() {
            found |= name == "after the crash";
        }
    }
    assert!(found, "ended at {}: {:?}", reader.end(), reader.end_reason());
}

#[test]
fn only_the_newest_segment_may_end_early() {
    let Some(&(ref wal, first)) = fixture() else { return };
    let mut damaged = wal.clone();
    let number = first;
    let segment = damaged.get_mut(&number).unwrap();
    let content = Arc::make_mut(&mut segment.content);
    content[300_000..300_100].fill(0x55);
    let start = SIZE.start_of(first).unwrap();
    let mut whole = reader(&damaged, start);
    let error = loop {
        match whole.next_record() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the damage went unnoticed"),
            Err(error) => break error,
        }
    };
    drop(whole);
    assert_eq!(error.kind(), PostgresErrorKind::Damaged);
    assert!(error.to_string().contains("has no valid record at 0/"), "{error}");
    // The same without anything behind it is the end of WAL.
    damaged.retain(|there, _| *there <= number);
    let mut last = reader(&damaged, start);
    while last.next_record().unwrap().is_some() {}
    assert_eq!(last.end().segment(SIZE), number);
}

/// Segments of a real server, and the number of the first.
fn fixture() -> Option<&'static (Wal, u64)> {
    static WAL: OnceLock<Option<(Wal, u64)>> = OnceLock::new();
    let made = WAL.get_or_init(|| {
        let cluster = cluster(&version(15)?);
        let start: Lsn = cluster.value("select pg_current_wal_lsn()").parse().unwrap();
        work(&cluster);
        cluster.sql("commit prepared 'two words'");
        cluster.stop();
        let mut wal = load(&cluster.data().join("pg_wal"));
        let first = start.segment(SIZE);
        wal.retain(|number, _| *number >= first);
        Some((wal, first))
    });
    if made.is_none() {
        backstay_testing::skipped("PostgreSQL 15 is not installed");
    }
    made.as_ref()
}

/// Where the records of the fixture are, and how long.
fn real() -> &'static BTreeMap<Lsn, u32> {
    static REAL: OnceLock<BTreeMap<Lsn, u32>> = OnceLock::new();
    REAL.get_or_init(|| {
        let (wal, first) = fixture().unwrap();
        let mut records = BTreeMap::new();
        let mut reader = reader(wal, SIZE.start_of(*first).unwrap());
        while let Some(record) = reader.next_record().unwrap() {
            records.insert(record.lsn, record.length);
        }
        records
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Whatever bytes change, reading ends: with an error, or with fewer records, all of them real.
    #[test]
    fn changed_bytes_never_panic_and_never_pass(
        which in 0u64..4,
        changes in prop::collection::vec((0usize..1 << 20, any::<u8>(), 1usize..64), 1..6),
    ) {
        let Some((wal, first)) = fixture() else { return Ok(()) };
        let mut changed = wal.clone();
        if let Some(segment) = changed.get_mut(&(first + which)) {
            let content = Arc::make_mut(&mut segment.content);
            for (at, value, length) in changes {
                // Close to the beginning, where headers are, half of the time.
                let at = if value % 2 == 0 { at % 600 } else { at };
                let end = (at + length).min(content.len());
                content[at..end].fill(value);
            }
        }
        let start = SIZE.start_of(*first).unwrap();
        let real = real();
        let mut reader = reader(&changed, start);
        while let Ok(Some(record)) = reader.next_record() {
            let _ = (record.event(), record.blocks(), record.main_data());
            prop_assert_eq!(real.get(&record.lsn), Some(&record.length), "{:?}", record);
        }
    }

    /// Segments cut to any length end the reading.
    #[test]
    fn cut_segments_never_panic(which in 0u64..4, length in 0usize..1 << 20) {
        let Some((wal, first)) = fixture() else { return Ok(()) };
        let mut changed = wal.clone();
        if let Some(segment) = changed.get_mut(&(first + which)) {
            Arc::make_mut(&mut segment.content).truncate(length);
        }
        let mut reader = reader(&changed, SIZE.start_of(*first).unwrap());
        while let Ok(Some(record)) = reader.next_record() {
            let _ = (record.event(), record.blocks());
        }
    }

    /// Reading from any position ends.
    #[test]
    fn any_start_never_panics(at in 0u64..16 << 20) {
        let Some((wal, first)) = fixture() else { return Ok(()) };
        let mut reader = reader(wal, Lsn(SIZE.start_of(*first).unwrap().0 + at));
        while let Ok(Some(record)) = reader.next_record() {
            let _ = record.event();
        }
    }
}
