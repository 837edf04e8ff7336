//! Incremental backups of clusters, page by page: each restores to what a full one restores to, and
//! stores about what changed.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use backstay_postgres::wal::{RecoveryTarget, TargetTimeline};
use backstay_postgres::{Backup, BackupOptions, TargetAction, backup};
use backstay_repo::{Level, Progress, SnapshotType, VerifyOptions};
use backstay_testing::postgres::version;
use backstay_testing::skip;
use common::Fixture;

fn take(fixture: &Fixture, type_: SnapshotType) -> Backup {
    let options = BackupOptions { type_, ..fixture.options() };
    backup(&fixture.repo, &fixture.source(), &options)
        .unwrap_or_else(|error| panic!("{error:?}\n{}", fixture.cluster.log()))
}

/// All relations below `base` and `global`.
fn relations(data: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![data.join("base"), data.join("global")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("pg_control") {
                let name = path.strip_prefix(data).unwrap().display().to_string();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn every_incremental_restores_to_what_the_cluster_was() {
    let Some(installation) = [15, 18].into_iter().find_map(version) else {
        skip!("neither PostgreSQL 15 nor 18 is installed");
    };
    let fixture = Fixture::with(
        &installation,
        common::Shape::default(),
        &[("full_page_writes", "off"), ("max_wal_size", "1GB")],
    );
    let cluster = &fixture.cluster;
    // Rows are updated within their pages, of which there are some 5000.
    cluster.sql(
        "create table account (id int primary key, balance int, filler text) \
         with (fillfactor = 60)",
    );
    cluster.sql(
        "insert into account select i, 0, repeat(md5(i::text), 8) \
         from generate_series(1, 80000) i",
    );
    cluster.sql("vacuum analyze account");
    let first = take(&fixture, SnapshotType::Incremental);
    assert_eq!(first.snapshot.type_, SnapshotType::Full);
    let mut backups = vec![(first.snapshot.clone(), cluster.table_checksums())];
    for round in 1..=4 {
        cluster.sql(&format!(
            "update account set balance = balance + {round} \
             where id in (select (random() * 80000)::int from generate_series(1, 50))"
        ));
        if round == 2 {
            // Grown, and cut short.
            cluster.sql("create table passing as select generate_series(1, 60000) i");
            cluster.sql("delete from account where id > 78000");
            cluster.sql("vacuum account");
        }
        if round == 3 {
            cluster.sql("drop table passing");
        }
        let made = take(&fixture, SnapshotType::Incremental);
        assert_eq!(made.snapshot.type_, SnapshotType::Incremental);
        assert_eq!(made.snapshot.parent, backups.last().map(|(before, _)| before.id.clone()));
        assert!(made.snapshot.problems.is_empty(), "{:?}", made.snapshot.problems);
        if round == 1 {
            let [all, new] = [&first.snapshot, &made.snapshot].map(|s| s.stats.new_bytes);
            assert!(new < all / 20, "{new} of {all} bytes for 50 rows");
        }
        backups.push((made.snapshot, cluster.table_checksums()));
    }
    // Nothing writes between these two: they are the same, page by page.
    let pages = |type_, name| {
        let made = take(&fixture, type_);
        let options = fixture.restoring(name, RecoveryTarget::Latest);
        fixture.restore(&made.snapshot, &options);
        (made.snapshot, relations(&options.to))
    };
    cluster.sql("checkpoint");
    let (incremental, one) = pages(SnapshotType::Incremental, "incremental");
    let (full, other) = pages(SnapshotType::Full, "full");
    assert_eq!((incremental.type_, full.type_), (SnapshotType::Incremental, SnapshotType::Full));
    assert_eq!(full.parent, None);
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    for (name, content) in &one {
        assert!(other[name] == *content, "{name}");
    }
    fixture.archived(cluster);
    for (number, (snapshot, then)) in backups.iter().enumerate().filter(|(n, _)| *n != 3) {
        let mut options =
            fixture.restoring(&format!("restored-{number}"), RecoveryTarget::Immediate);
        options.action = TargetAction::Promote;
        // Each that was started has begun a timeline.
        options.timeline = Some(TargetTimeline::Current);
        fixture.restore(snapshot, &options);
        let server = fixture.promoted(&options);
        assert_eq!(server.table_checksums(), *then, "backup {number}");
        server.stop();
        if let Some(program) = installation.program("pg_checksums") {
            let said = server.command_at(program).arg("--check").arg(server.data()).output();
            let said = said.unwrap();
            assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        }
        std::fs::remove_dir_all(&options.to).unwrap();
    }
    let options = VerifyOptions { level: Level::Thorough, ..VerifyOptions::default() };
    let report = fixture.repo.verify(options, &Progress::default()).unwrap();
    assert_eq!(report.damages, []);
}
