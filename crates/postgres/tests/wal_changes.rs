//! What changed according to the WAL, against what did change: records against `pg_waldump` or
//! `pg_walinspect`, blocks against the pages of data directories and PostgreSQL's own summaries.

// What fails outside a test function fails its test.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use backstay_postgres::wal::kind::{kind_name, manager_name};
use backstay_postgres::wal::scan::Volume;
use backstay_postgres::wal::{
    BlockReference, Changes, FileChanges, Folder, Fork, Lsn, Range, Scan, Summary, dump, summarize,
};
use backstay_testing::postgres::{Cluster, version};
use backstay_testing::wait_until;

const PAGE: usize = 8192;
/// Blocks to a file of a relation.
const PER_FILE: u32 = 131_072;

fn cluster(major: u32, settings: &[(&str, &str)]) -> Option<Cluster> {
    let installation = version(major)?;
    let mut all = vec![
        ("wal_keep_size", "512MB"),
        ("max_prepared_transactions", "5"),
        ("track_commit_timestamp", "on"),
        ("checkpoint_timeout", "1h"),
        ("wal_level", "logical"),
        ("autovacuum", "off"),
    ];
    all.extend_from_slice(settings);
    let cluster = Cluster::builder(&installation).segment_size(1).config(&all).start();
    // What is there before, and what must not be thought to have changed.
    cluster
        .sql("create table still as select i, repeat('s', 200) v from generate_series(1, 3000) i");
    cluster.sql(
        "create table before as select i id, repeat('b', 500) v from generate_series(1, 6000) i",
    );
    cluster
        .sql("create table cut as select i id, repeat('c', 500) v from generate_series(1, 6000) i");
    cluster.sql("create table gone as select 1 id; create table moved as select 1 id");
    cluster.sql("create sequence numbers; select nextval('numbers')");
    cluster.sql("create database dropped");
    cluster.sql("create index on before (id)");
    for table in ["still", "before", "cut"] {
        cluster.sql(&format!("vacuum {table}"));
    }
    Some(cluster)
}

/// Work that leaves every kind of record that has to be heeded.
fn work(cluster: &Cluster) {
    let each = |statements: &[&str]| statements.iter().for_each(|one| cluster.sql(one));
    each(&[
        "create table t (id int primary key, n int, a int[], p point, v text)",
        "insert into t select i, i % 97, array[i % 50, i % 7], point(i % 100, i / 100), \
         repeat('x', i % 300) from generate_series(1, 4000) i",
        "create index on t using hash (n)",
        "create index on t using gin (a)",
        "create index on t using gist (p)",
        "create index on t using spgist (p)",
        "create index on t using brin (id) with (pages_per_range = 2)",
        "create index on t (n) include (id)",
        "insert into t select i, i % 97, array[i % 50], point(i, i), 'more' \
         from generate_series(5001, 7000) i",
        "update t set v = v || 'z', n = n + 1 where id % 3 = 0",
        "delete from t where id % 5 = 0",
        "vacuum t",
        "vacuum (freeze) before",
        "update before set v = 'y' where id % 500 = 0",
        // Several lockers of one row.
        "begin; select * from before where id = 3 for share; savepoint a; \
         select * from before where id = 3 for update; commit",
        "select nextval('numbers') from generate_series(1, 100)",
        "select pg_logical_emit_message(false, 'note', 'short')",
        "select pg_logical_emit_message(true, 'long', repeat('y', 2500000))",
        // Cut at its end, and grown again.
        "delete from cut where id > 1000",
        "vacuum cut",
        "insert into cut select i, repeat('d', 400) from generate_series(1001, 5000) i",
        "begin; savepoint a; drop table gone; create table made (id int); \
         insert into made values (1); prepare transaction 'two words'",
        "commit prepared 'two words'",
        "begin; create table never (id int); insert into never values (1); prepare transaction 'no'",
        "rollback prepared 'no'",
        "begin; insert into before values (-1, 'a'); savepoint b; insert into before values (-2, 'b'); \
         rollback to b; commit",
        "create unlogged table fast as select i from generate_series(1, 1000) i",
        "create index on fast (i)",
        "create unlogged table kept as select i from generate_series(1, 1000) i",
        "alter table kept set logged",
        "truncate made",
        "insert into made select generate_series(1, 500)",
        "create table filled as select i, 'f' || i v from generate_series(1, 3000) i",
        "cluster t using t_pkey",
        "vacuum full pg_class",
        "create materialized view seen as select * from filled",
        "refresh materialized view seen",
        "reindex table before",
        "create database copied",
        "drop database dropped",
    ]);
    if cluster.major() >= 15 {
        each(&[
            "create database by_file strategy file_copy",
            "create database by_log strategy wal_log",
        ]);
        cluster.sql_in("by_log", "create table here as select generate_series(1, 100) i");
    }
    let space = cluster.directory("elsewhere");
    cluster.sql(&format!("create tablespace elsewhere location '{}'", space.display()));
    each(&[
        "alter table moved set tablespace elsewhere",
        "insert into moved select generate_series(1, 300)",
        "create table there tablespace elsewhere as select generate_series(1, 700) i",
        "alter database copied set tablespace elsewhere",
        "create index on filled (i) tablespace elsewhere",
        "drop table there",
    ]);
    cluster.switch_wal();
    each(&[
        "checkpoint",
        "update before set v = 'w' where id = 77",
        "select pg_create_restore_point('p')",
    ]);
}

/// What the oracle says of a record.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    lsn: Lsn,
    previous: Lsn,
    xid: u32,
    manager: String,
    kind: String,
    length: u32,
    image_bytes: u64,
    /// Relation, fork, block, with an image.
    blocks: Vec<(String, String, u32, bool)>,
}

/// The blocks in `blkref #0: rel 1663/5/16384 fork vm blk 0 (FPW); …`.
fn blocks_of(text: &str) -> Vec<(String, String, u32, bool)> {
    let block = |text: &str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        let after = |word: &str| {
            words.iter().position(|w| *w == word).map(|at| words[at + 1].trim_end_matches(','))
        };
        (
            after("rel").unwrap().to_owned(),
            after("fork").unwrap_or("main").to_owned(),
            after("blk").unwrap().parse().unwrap(),
            text.contains("FPW"),
        )
    };
    text.split("blkref #").skip(1).map(block).collect()
}

fn from_waldump(cluster: &Cluster, from: Lsn, to: Lsn) -> Option<Vec<Row>> {
    let mut command = cluster
        .command("pg_waldump")
        .filter(|_| cluster.installation().program("pg_waldump").is_some())?;
    command.arg("-p").arg(cluster.data().join("pg_wal"));
    command.args(["-s", &from.to_string(), "-e", &to.to_string()]);
    let output = command.output().unwrap();
    let row = |line: &str| {
        let field = |from: &str, to: &str| {
            line.split_once(from).unwrap().1.split(to).next().unwrap().trim().to_owned()
        };
        let lengths = field("len (rec/tot):", ", tx");
        let (record, total) = lengths.split_once('/').unwrap();
        let length: u32 = total.trim().parse().unwrap();
        let kind = field("desc: ", ", blkref");
        Row {
            lsn: field("lsn: ", ",").parse().unwrap(),
            previous: field("prev ", ",").parse().unwrap(),
            xid: field("tx: ", ",").parse().unwrap(),
            manager: field("rmgr: ", " "),
            kind: kind.split(' ').next().unwrap().trim_end_matches(':').to_owned(),
            length,
            image_bytes: u64::from(length) - record.trim().parse::<u64>().unwrap(),
            blocks: blocks_of(line),
        }
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.lines().filter(|line| line.starts_with("rmgr: ")).map(row).collect())
}

fn from_walinspect(cluster: &Cluster, from: Lsn, to: Lsn) -> Vec<Row> {
    cluster.sql("create extension if not exists pg_walinspect");
    let rows = cluster.rows(
        "postgres",
        &format!(
            "select start_lsn, prev_lsn, xid, resource_manager, record_type, record_length, \
             fpi_length, block_ref from pg_get_wal_records_info('{from}', '{to}') order by 1"
        ),
    );
    rows.into_iter()
        .map(|row| {
            let column = |at: usize| row[at].clone().unwrap_or_default();
            Row {
                lsn: column(0).parse().unwrap(),
                previous: column(1).parse().unwrap(),
                xid: column(2).parse().unwrap(),
                manager: column(3),
                kind: column(4),
                length: column(5).parse().unwrap(),
                image_bytes: column(6).parse().unwrap(),
                blocks: blocks_of(&column(7)),
            }
        })
        .collect()
}

fn ours(folder: &Folder, from: Lsn, to: Lsn) -> Vec<Row> {
    let range = Range { from: Some(from), to: Some(to), timeline: None };
    let mut rows = Vec::new();
    let scan = Scan::open(folder, range).unwrap();
    scan.run(|record| {
        let mut volume = Volume::default();
        assert!(volume.add(record), "{record:?}");
        let line = dump::line(record);
        assert!(!line.contains("no sense") && !line.contains("not as PostgreSQL"), "{line}");
        let block = |block: &BlockReference| {
            let fork = dump::fork_name(block.fork).to_owned();
            (block.relation.to_string(), fork, block.block, block.image.is_some())
        };
        let blocks = record.blocks().unwrap();
        assert_eq!(blocks_of(&line), blocks.iter().map(block).collect::<Vec<_>>());
        let kind = kind_name(record.manager, record.info, record.version);
        rows.push(Row {
            lsn: record.lsn,
            previous: record.previous,
            xid: record.xid,
            manager: manager_name(record.manager).into_owned(),
            kind: kind.into_owned(),
            length: record.length,
            image_bytes: volume.image_bytes,
            blocks: blocks.iter().map(block).collect(),
        });
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    rows
}

/// Every page of every relation, by the path that snapshots have: a sum of each.
fn pages(data: &Path) -> BTreeMap<String, Vec<u32>> {
    fn walk(folder: &Path, path: &str, found: &mut BTreeMap<String, Vec<u32>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{path}/{}", entry.file_name().into_string().unwrap());
            // Follows the links of tablespaces.
            if fs::metadata(entry.path()).unwrap().is_dir() {
                walk(&entry.path(), &path, found);
            } else if Fork::of_path(path.as_bytes()).is_some() {
                let content = fs::read(entry.path()).unwrap();
                found.insert(path, content.chunks(PAGE).map(page_sum).collect());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&data.join("base"), "data/base", &mut found);
    walk(&data.join("global"), "data/global", &mut found);
    walk(&data.join("pg_tblspc"), "tablespaces", &mut found);
    found
}

/// 0 for a page of zeros alone.
fn page_sum(page: &[u8]) -> u32 {
    if page.iter().all(|byte| *byte == 0) {
        return 0;
    }
    page.iter()
        .fold(2_166_136_261, |sum: u32, byte| (sum ^ u32::from(*byte)).wrapping_mul(16_777_619))
        | 1
}

/// Every page that is not what it was is one that the WAL says has changed.
fn compare_pages(
    before: &BTreeMap<String, Vec<u32>>,
    after: &BTreeMap<String, Vec<u32>>,
    changes: &Changes,
) {
    let none = Vec::new();
    let (mut changed, mut named, mut passed) = (0u64, 0u64, 0u64);
    for (path, pages) in after {
        // Of an unlogged relation a backup has the init fork alone.
        let unlogged = |path: &String| after.contains_key(&format!("{path}_init"));
        if unlogged(path) {
            continue;
        }
        let old = before.get(path).unwrap_or(&none);
        let (fork, segment) = Fork::of_path(path.as_bytes()).unwrap();
        let answer = changes.of_file(fork, segment, PER_FILE);
        let is_named = |page: u64| match &answer {
            FileChanges::Nothing => false,
            FileChanges::Unknown => true,
            FileChanges::Blocks(ranges) => ranges.iter().any(|range| range.contains(&page)),
        };
        for (number, page) in pages.iter().enumerate() {
            // Pages of zeros at the end are in no WAL; what lies there is always read.
            if old.get(number).copied().unwrap_or(0) != *page {
                changed += 1;
                assert!(is_named(number as u64), "page {number} of {path}: {answer:?}");
            }
            match &answer {
                FileChanges::Blocks(_) if is_named(number as u64) => named += 1,
                FileChanges::Nothing => passed += 1,
                _ => {}
            }
        }
    }
    assert!(changed > 2000, "{changed}");
    assert!(named > 200, "{named}");
    assert!(passed > 500, "{passed} pages were passed over");
}

fn summary(folder: &Folder, from: Lsn, to: Option<Lsn>) -> Summary {
    let range = Range { from: Some(from), to, timeline: None };
    let (summary, volumes, scanned) =
        summarize(&Scan::open(folder, range).unwrap(), |_| Ok(())).unwrap();
    let records: u64 = volumes.values().map(|volume| volume.records).sum();
    assert_eq!(records, scanned.records);
    assert_eq!(scanned.missing, None);
    assert_eq!(scanned.stopped.is_none(), to.is_some(), "{scanned:?}");
    assert_eq!(Summary::decode(&summary.encode()).unwrap(), summary);
    summary
}

/// What PostgreSQL's own summaries say, range by range.
fn compare_summaries(cluster: &Cluster, folder: &Folder, from: Lsn) {
    let rows = |query: &str| -> Vec<Vec<String>> {
        let rows = cluster.rows("postgres", query);
        rows.into_iter()
            .map(|row| row.into_iter().map(Option::unwrap_or_default).collect())
            .collect()
    };
    let mut compared = 0;
    for range in rows("select tli, start_lsn, end_lsn from pg_available_wal_summaries() order by 2")
    {
        let (start, end): (Lsn, Lsn) = (range[1].parse().unwrap(), range[2].parse().unwrap());
        if start < from {
            continue;
        }
        let mut theirs: BTreeMap<String, (Option<u32>, BTreeSet<u32>)> = BTreeMap::new();
        let contents = format!(
            "select reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, \
             is_limit_block from pg_wal_summary_contents({}, '{start}', '{end}')",
            range[0]
        );
        for row in rows(&contents) {
            let fork = theirs.entry(row[..4].join("/")).or_default();
            let block: u32 = row[4].parse().unwrap();
            if row[5] == "t" {
                fork.0 = Some(block);
            } else {
                fork.1.insert(block);
            }
        }
        let found = summary(folder, start, Some(end));
        let mut our: BTreeMap<String, (Option<u32>, BTreeSet<u32>)> = BTreeMap::new();
        for (fork, changes) in found.changes.forks() {
            // Tablespaces that come and go are in ours alone.
            if fork.relation.database == 0 && fork.relation.relation == 0 {
                continue;
            }
            let blocks = changes.blocks.ranges().into_iter().flatten().map(|block| block as u32);
            our.insert(
                format!("{}/{}", fork.relation, fork.fork),
                (changes.limit, blocks.collect()),
            );
        }
        for (name, one) in &theirs {
            let mine = our.get(name).unwrap_or_else(|| panic!("{name} is missing: {one:?}"));
            assert_eq!(mine, one, "{name} from {start} to {end}");
        }
        for name in our.keys() {
            assert!(theirs.contains_key(name), "{name} is in ours alone");
        }
        compared += theirs.len();
    }
    assert!(compared > 100, "{compared} forks");
}

/// All that the oracles of one version say.
fn agrees(major: u32) {
    let settings: &[(&str, &str)] = if major >= 17 { &[("summarize_wal", "on")] } else { &[] };
    let Some(cluster) = cluster(major, settings) else {
        backstay_testing::skipped(&format!("PostgreSQL {major} is not installed"));
        return;
    };
    cluster.stop();
    let before = pages(cluster.data());
    cluster.start();
    // A clean start begins behind the checkpoint of the shutdown.
    let from: Lsn = cluster.value("select redo_lsn from pg_control_checkpoint()").parse().unwrap();
    work(&cluster);
    cluster.sql("checkpoint");
    let wal = cluster.data().join("pg_wal");
    let to: Lsn = cluster.value("select pg_current_wal_insert_lsn()").parse().unwrap();
    let expected = from_waldump(&cluster, from, to)
        .or_else(|| (major >= 15).then(|| from_walinspect(&cluster, from, to)));
    if let Some(expected) = expected {
        let rows = ours(&Folder::open(&wal).unwrap(), from, to);
        for (row, expected) in rows.iter().zip(&expected) {
            assert_eq!(row, expected);
        }
        assert_eq!(rows.len(), expected.len());
        assert!(rows.len() > 20_000, "{}", rows.len());
    }
    if major >= 17 {
        let until = cluster.value("select redo_lsn from pg_control_checkpoint()");
        wait_until("the server has summarized its WAL", 60, || {
            let query = format!(
                "select count(*) from pg_available_wal_summaries() where end_lsn >= '{until}'"
            );
            cluster.value(&query) != "0"
        });
        compare_summaries(&cluster, &Folder::open(&wal).unwrap(), from);
    }
    cluster.stop();
    let after = pages(cluster.data());
    let found = summary(&Folder::open(&wal).unwrap(), from, None);
    assert_eq!(found.changes.unsafe_since(), None);
    compare_pages(&before, &after, &found.changes);
}

#[test]
fn postgresql_13() {
    agrees(13);
}

#[test]
fn postgresql_14() {
    agrees(14);
}

#[test]
fn postgresql_15() {
    agrees(15);
}

#[test]
fn postgresql_16() {
    agrees(16);
}

#[test]
fn postgresql_17() {
    agrees(17);
}

#[test]
fn postgresql_18() {
    agrees(18);
}

/// The file of a table.
fn relation(cluster: &Cluster, table: &str) -> String {
    cluster.value(&format!(
        "select concat_ws('/', 1663, (select oid from pg_database where datname = 'postgres'), \
         pg_relation_filenode('{table}'))"
    ))
}

fn blocks_in(summary: &Summary, relation: &str) -> u64 {
    let forks = summary.changes.forks().filter(|(fork, _)| fork.relation.to_string() == relation);
    forks.filter(|(fork, _)| fork.fork == 0).map(|(_, changes)| changes.blocks.len()).sum()
}

#[test]
fn a_range_goes_on_over_a_promotion_and_along_the_timeline_that_is_asked_for() {
    let Some(cluster) = cluster(18, &[]) else {
        backstay_testing::skip!("PostgreSQL 18 is not installed");
    };
    let from: Lsn = cluster.value("select pg_current_wal_insert_lsn()").parse().unwrap();
    let standby = cluster.standby(None);
    cluster.sql("create table early as select i from generate_series(1, 5000) i");
    let reached = cluster.lsn();
    wait_until("the standby has the table", 60, || {
        standby.value(&format!("select pg_last_wal_replay_lsn() >= '{reached}'")) == "t"
    });
    standby.promote();
    standby.sql("create table late as select i from generate_series(1, 5000) i");
    // What the old primary goes on writing is of no part of the new timeline.
    cluster.sql("create table stray as select i from generate_series(1, 90000) i");
    let (early, late) = (relation(&standby, "early"), relation(&standby, "late"));
    let stray = relation(&cluster, "stray");
    standby.switch_wal();
    standby.stop();
    cluster.stop();

    let folder = cluster.directory("both");
    for cluster in [&cluster, &standby] {
        for entry in fs::read_dir(cluster.data().join("pg_wal")).unwrap() {
            let entry = entry.unwrap();
            let to = folder.join(entry.file_name());
            if entry.path().is_file() && !to.exists() {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let both = Folder::open(&folder).unwrap();
    let of = |timeline| {
        let scan = Scan::open(&both, Range { from: Some(from), to: None, timeline }).unwrap();
        summarize(&scan, |_| Ok(())).unwrap().0
    };
    let newest = of(None);
    assert_eq!(newest.timeline, 2);
    assert!(blocks_in(&newest, &early) > 10);
    assert!(blocks_in(&newest, &late) > 10);
    assert_eq!(blocks_in(&newest, &stray), 0);
    let old = of(Some(1));
    assert_eq!(old.timeline, 1);
    assert!(blocks_in(&old, &stray) > 300);
    assert_eq!(blocks_in(&old, &late), 0);
}

#[test]
fn wal_of_level_minimal_is_noticed_in_every_version() {
    for major in [13, 16, 17, 18] {
        let Some(installation) = version(major) else {
            backstay_testing::skipped(&format!("PostgreSQL {major} is not installed"));
            continue;
        };
        let settings = [("wal_keep_size", "512MB"), ("autovacuum", "off")];
        let cluster = Cluster::builder(&installation).segment_size(1).config(&settings).start();
        let from: Lsn = cluster.value("select pg_current_wal_insert_lsn()").parse().unwrap();
        cluster.sql("create table before (id int)");
        let before: Lsn = cluster.value("select pg_current_wal_insert_lsn()").parse().unwrap();
        cluster.configure(&[("wal_level", "minimal"), ("max_wal_senders", "0")]);
        cluster.restart();
        cluster
            .sql("begin; create table t (id int); insert into t select generate_series(1, 9000)");
        cluster.configure(&[("wal_level", "replica"), ("max_wal_senders", "3")]);
        cluster.restart();
        cluster.sql("create table after (id int)");
        cluster.stop();
        let folder = Folder::open(&cluster.data().join("pg_wal")).unwrap();
        let all = summary(&folder, from, None);
        let since = all.changes.unsafe_since();
        assert!(since.is_some_and(|lsn| lsn > before), "{major}: {since:?}");
        let safe = summary(&folder, from, Some(before));
        assert_eq!(safe.changes.unsafe_since(), None);
    }
}

#[test]
fn what_is_missing_or_of_another_cluster_is_named() {
    let Some(cluster) = cluster(15, &[]) else {
        backstay_testing::skip!("PostgreSQL 15 is not installed");
    };
    let from: Lsn = cluster.value("select pg_current_wal_insert_lsn()").parse().unwrap();
    for _ in 0..4 {
        cluster.sql("insert into before select i, 'n' from generate_series(1, 500) i");
        cluster.switch_wal();
    }
    let end: Lsn = cluster.value("select pg_current_wal_insert_lsn()").parse().unwrap();
    cluster.stop();
    let wal = cluster.data().join("pg_wal");
    let size = backstay_postgres::wal::SegmentSize::MIN;
    let whole = summary(&Folder::open(&wal).unwrap(), from, Some(end));
    assert_eq!((whole.from, whole.to), (from, end));

    let lost = backstay_postgres::wal::SegmentName::new(1, from.segment(size) + 2, size).unwrap();
    fs::rename(wal.join(lost.to_string()), wal.join("kept-elsewhere")).unwrap();
    let files = Folder::open(&wal).unwrap();
    let read = |from, to| {
        let scan = Scan::open(&files, Range { from, to, timeline: None })?;
        summarize(&scan, |_| Ok(()))
    };
    let (cut, _, scanned) = read(Some(from), Some(end)).unwrap();
    assert_eq!(scanned.missing, Some(lost));
    assert!(cut.to < end && cut.to.segment(size) <= lost.number(size).unwrap());
    let error = read(lost.start(size), None).unwrap_err().to_string();
    assert!(error.contains(&lost.to_string()), "{error}");
    // Without a beginning it is what is there behind the gap.
    let (rest, _, scanned) = read(None, None).unwrap();
    assert!(rest.from > lost.start(size).unwrap());
    assert_eq!(scanned.missing, None);
    let error = read(Some(end), Some(from)).unwrap_err().to_string();
    assert!(error.contains("before"), "{error}");

    // A record that is damaged in the middle is no end.
    fs::rename(wal.join("kept-elsewhere"), wal.join(lost.to_string())).unwrap();
    let mut content = fs::read(wal.join(lost.to_string())).unwrap();
    content[9000..9100].fill(0x55);
    fs::write(wal.join(lost.to_string()), &content).unwrap();
    let error = read_all(&wal, from).unwrap_err().to_string();
    assert!(error.contains("no valid record"), "{error}");

    // Another cluster's segment of a name that is free.
    content[24] ^= 1;
    let start = size.start_of(900).unwrap();
    content[8..16].copy_from_slice(&start.0.to_le_bytes());
    let stray = backstay_postgres::wal::SegmentName::new(1, 900, size).unwrap();
    fs::write(wal.join(stray.to_string()), &content).unwrap();
    let error = Folder::open(&wal).unwrap_err().to_string();
    assert!(error.contains("two clusters"), "{error}");
}

fn read_all(wal: &Path, from: Lsn) -> backstay_postgres::Result<u64> {
    let files = Folder::open(wal)?;
    let range = Range { from: Some(from), to: None, timeline: None };
    Ok(summarize(&Scan::open(&files, range)?, |_| Ok(()))?.2.records)
}
