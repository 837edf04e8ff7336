//! A cluster that is backed up to two repositories in one pass.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::sync::Arc;
use std::time::Duration;

use backstay_postgres::wal::RecoveryTarget;
use backstay_postgres::{PostgresErrorKind, Target, backup_to};
use backstay_repo::{Compression, Fallback, Fate, Repository, Sibling};
use backstay_testing::postgres::version;
use backstay_testing::skip;
use common::Fixture;

fn target(repository: &Repository) -> Target {
    Target { repository: repository.clone(), compression: Compression::Lz4, fate: Fate::default() }
}

#[test]
fn one_pass_backs_up_to_two_and_either_restores() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let second = fixture.second();
    fixture
        .cluster
        .sql("create table t as select i, md5(i::text) from generate_series(1, 200000) i");
    let targets = [target(&fixture.repo), target(&second)];
    let made = backup_to(&targets, &fixture.source(), &fixture.options()).unwrap();
    let snapshots: Vec<_> = made.snapshots.into_iter().map(Result::unwrap).collect();
    assert_eq!(snapshots[0].moment(), snapshots[1].moment());
    assert_eq!(snapshots[0].stats.bytes, snapshots[1].stats.bytes);
    let then = fixture.cluster.table_checksums();
    fixture.archived(&fixture.cluster);

    // Without most of its packs, the first restores from the second what it lacks.
    let packs = fixture.repo.store().list("packs/").unwrap();
    for pack in packs.iter().filter(|pack| pack.size > 1 << 20) {
        fixture.repo.store().delete(&pack.key).unwrap();
    }
    let sibling = Sibling {
        name: "second".into(),
        repository: second.clone(),
        snapshot: snapshots[1].clone(),
    };
    let mut options = fixture.restoring("restored", RecoveryTarget::Latest);
    options.fallback = Some(Arc::new(Fallback::new("first", move || vec![sibling.clone()])));
    let restored = fixture.restore(&snapshots[0], &options);
    assert_eq!(restored.report.supplied[0].repository, "second");
    assert!(!restored.report.lacking.is_empty());
    assert_eq!(fixture.promoted(&options).table_checksums(), then);
    // Alone, it cannot.
    let alone = fixture.restoring("alone", RecoveryTarget::Latest);
    fixture.refused(&snapshots[0], &alone);
}

#[test]
fn a_repository_without_the_log_has_no_snapshot_and_the_other_one_has() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let second = fixture.second();
    fixture.archive_to_first();
    fixture.cluster.sql("create table t as select generate_series(1, 1000) i");
    let mut options = fixture.options();
    options.archive_timeout = Duration::from_secs(5);
    let targets = [target(&fixture.repo), target(&second)];
    let mut made = backup_to(&targets, &fixture.source(), &options).unwrap().snapshots;
    let error = made.pop().unwrap().unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Archive, "{error}");
    made.pop().unwrap().unwrap();
    assert!(second.snapshots().unwrap().is_empty());
    assert_eq!(fixture.repo.snapshots().unwrap().len(), 1);
}
