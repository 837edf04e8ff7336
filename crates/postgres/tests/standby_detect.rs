//! What the log says that changed, between a primary and its standby: their pages are not the same
//! bytes, and a backup of the one may be compared with a snapshot of the other.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use backstay_postgres::page::same_but_for_hints;
use backstay_postgres::wal::{Fork, RecoveryTarget};
use backstay_postgres::{BackupOptions, Detect, Method, Source, backup};
use backstay_repo::SnapshotType;
use backstay_testing::postgres::{Cluster, version};
use backstay_testing::{skipped, wait_until};
use common::{Fixture, Shape};

/// Everything that a server does otherwise than its standby repeats it.
const WORK: &[&str] = &[
    "create table t (id int primary key, n int, v text, p point, w int[])",
    "create index on t using hash (n)",
    "create index on t using gist (p)",
    "create index on t using gin (w)",
    "create index on t using brin (n)",
    "create index on t using spgist (v)",
    "create sequence counted",
    // Several commands in one transaction, and rows that one of them made and another removed.
    "begin; insert into t select i, i % 50, repeat('v', i % 90), point(i, i), array[i, i % 7] \
     from generate_series(1, 6000) i; savepoint a; update t set n = n + 1 where id % 3 = 0; \
     delete from t where id % 11 = 0; rollback to a; update t set v = v || 'x' where id % 5 = 0; \
     delete from t where id % 4 = 0 and id > 100; commit",
    "begin; delete from t where id % 9 = 0; rollback",
    "select nextval('counted') from generate_series(1, 40)",
    "vacuum t",
    "insert into t select i, i % 50, repeat('w', i % 60), point(i, -i), array[i, i % 5] \
     from generate_series(10001, 14000) i",
    "delete from t where id between 10500 and 13500",
    "vacuum t",
    "update t set n = 1 where id % 10 = 1",
];

/// What is seen sets bits in what is looked at.
const LOOKS: &[&str] = &[
    "select count(*), sum(n) from t",
    "set enable_seqscan = off; select count(*) from t where id between 1 and 14000",
    "set enable_seqscan = off; select count(*) from t where n = 1",
    "set enable_seqscan = off; select count(*) from t where p <@ box '((0,0),(9000,9000))'",
];

/// The relations below a data directory, but for what no record tells of whole.
fn relations(data: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![data.join("global")];
    folders.extend(std::fs::read_dir(data.join("base")).unwrap().map(|one| one.unwrap().path()));
    for file in folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()) {
        let path = file.unwrap().path();
        let name = path.strip_prefix(data).unwrap().to_str().unwrap().to_owned();
        let content = |name: &String| Fork::of_path(format!("data/{name}").as_bytes());
        if content(&name).is_some() && !name.ends_with("_fsm") && !name.ends_with("_vm") {
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
    found
}

/// Where two pages differ, and how one begins and ends.
fn differences(a: &[u8], b: &[u8]) -> String {
    let at: Vec<usize> = (0..a.len().min(b.len())).filter(|at| a[*at] != b[*at]).collect();
    let some = at.iter().take(20);
    let places: Vec<String> = some.map(|at| format!("{at}: {} {}", a[*at], b[*at])).collect();
    format!("{} in {:02x?} to {:02x?}", places.join(", "), &a[..32], &a[a.len() - 16..])
}

fn caught_up(primary: &Cluster, standby: &Cluster) {
    let end = primary.value("select pg_current_wal_flush_lsn()");
    wait_until("the standby caught up", 60, || {
        standby.value(&format!("select pg_last_wal_replay_lsn() >= '{end}'")) == "t"
    });
}

fn each(cluster: &Cluster, statements: &[&str]) {
    statements.iter().for_each(|one| cluster.sql(one));
}

#[test]
fn pages_that_were_replayed_differ_in_nothing_that_counts() {
    for (major, no_checksums) in [(13, true), (15, false), (18, true), (18, false)] {
        let Some(installation) = version(major) else {
            skipped(&format!("PostgreSQL {major} is not installed"));
            continue;
        };
        let shape = Shape { no_checksums, ..Shape::default() };
        let fixture = Fixture::with(&installation, shape, &[("full_page_writes", "off")]);
        let primary = &fixture.cluster;
        let standby = primary.standby(None);
        each(primary, WORK);
        caught_up(primary, &standby);
        each(primary, LOOKS);
        each(&standby, LOOKS);
        each(primary, &["select nextval('counted')", "checkpoint"]);
        caught_up(primary, &standby);
        each(&standby, LOOKS);
        // Its last checkpoint goes to the standby, too.
        primary.stop();
        let end = backstay_postgres::control::ControlFile::read(primary.data()).unwrap();
        wait_until("the standby has all", 60, || {
            let last = format!("select pg_last_wal_replay_lsn() > '{}'", end.checkpoint);
            standby.value(&last) == "t"
        });
        standby.sql("checkpoint");
        standby.stop();
        let (made, replayed) = (relations(primary.data()), relations(standby.data()));
        let (mut alike, mut hints, mut other) = (0, 0, Vec::new());
        for (name, content) in &made {
            let Some(there) = replayed.get(name) else { panic!("the standby has no {name}") };
            for (at, (a, b)) in content.chunks(8192).zip(there.chunks(8192)).enumerate() {
                match a == b {
                    true => alike += 1,
                    false if same_but_for_hints(a, b) => hints += 1,
                    false => other.push(format!("{name} block {at}: {}", differences(a, b))),
                }
            }
        }
        assert_eq!(other, Vec::<String>::new(), "PostgreSQL {major}, of {alike} and {hints}");
        assert!(hints > 50, "PostgreSQL {major}: {hints} pages differ, {alike} do not");
    }
}

#[test]
fn snapshots_of_a_primary_and_its_standby_follow_each_other_by_the_log() {
    for no_checksums in [false, true] {
        let Some(installation) = version(15).or_else(|| version(18)) else {
            skipped("neither PostgreSQL 15 nor 18 is installed");
            return;
        };
        let shape = Shape { no_checksums, ..Shape::default() };
        let fixture = Fixture::with(&installation, shape, &[]);
        let primary = &fixture.cluster;
        let standby = primary.standby(None);
        each(primary, WORK);
        primary.sql("checkpoint");
        caught_up(primary, &standby);
        let of = |cluster: &Cluster, type_, method| {
            let source = Source {
                name: "main".to_owned(),
                connection: cluster.connection_string(),
                data_directory: None,
            };
            let options = BackupOptions { detect: Detect::Wal, type_, method, ..fixture.options() };
            backup(&fixture.repo, &source, &options)
                .unwrap_or_else(|error| panic!("{error:?}\n{}", cluster.log()))
        };
        let (full, incremental) = (SnapshotType::Full, SnapshotType::Incremental);
        // Nothing to compare with, nothing to warn of.
        let first = of(&standby, full, Method::Files);
        assert_eq!(first.warnings, Vec::<String>::new());
        for round in 0..3 {
            primary.sql(&format!("update t set n = n + 1 where id % 100 = {round}"));
            // The second has pages of the standby from the one before.
            for _ in 0..2 {
                let made = of(primary, incremental, Method::Files);
                assert_eq!(made.warnings, Vec::<String>::new());
                assert!(made.snapshot.problems.is_empty(), "{:?}", made.snapshot.problems);
                assert!(made.snapshot.stats.files_unchanged > 200, "{:?}", made.snapshot.stats);
            }
            primary.sql("checkpoint");
            caught_up(primary, &standby);
            let made = of(&standby, incremental, Method::Files);
            let warned = |what: &str| made.warnings.iter().any(|said| said.contains(what));
            assert!(warned("has no effect on a standby"), "{:?}", made.warnings);
        }
        let wire = of(primary, incremental, Method::Wire);
        let warned = wire.warnings.iter().any(|said| said.contains("over the wire"));
        assert!(warned, "{:?}", wire.warnings);
        of(&standby, incremental, Method::Files);
        let last = of(primary, incremental, Method::Files);
        assert!(last.snapshot.stats.files_unchanged > 200, "{:?}", last.snapshot.stats);
        let then = primary.table_checksums();
        fixture.archived(primary);
        let options = fixture.restoring("restored", RecoveryTarget::Latest);
        fixture.restore(&last.snapshot, &options);
        let server = fixture.promoted(&options);
        assert_eq!(server.table_checksums(), then);
    }
}
