//! Real servers that recover from an archive with a hole: none of them may end its recovery early, or
//! replay WAL of the wrong timeline.

// What fails outside a test function fails its test.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use backstay_postgres::wal::{Lsn, RecoveryTarget, SegmentName, TargetTimeline};
use backstay_postgres::{PostgresErrorKind, RestoreOptions};
use backstay_testing::postgres::{Cluster, version};
use backstay_testing::{skip, wait_until};
use common::{Fixture, Shape};

fn small(settings: &[(&str, &str)]) -> Option<Fixture> {
    let installation = version(15).or_else(|| version(18))?;
    let shape = Shape { segment_mib: Some(1), ..Shape::default() };
    Some(Fixture::with(&installation, shape, settings))
}

/// A server on a restored directory that must come to its end by itself; what it said.
fn ends(fixture: &Fixture, data: &Path) -> String {
    let server = Cluster::adopt(&fixture.installation, data).create();
    server.start_without_waiting();
    let status = server.wait_for_end();
    assert!(!status.success(), "{}", server.log());
    server.log()
}

/// The object of an archived file.
fn object(fixture: &Fixture, name: &str) -> PathBuf {
    fn find(folder: &Path, name: &str) -> Option<PathBuf> {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if let Some(found) = find(&path, name) {
                    return Some(found);
                }
            } else if path.file_name().unwrap().to_str() == Some(name) {
                return Some(path);
            }
        }
        None
    }
    find(&fixture.repo_directory().join("wal"), name).unwrap_or_else(|| panic!("no {name}"))
}

fn segment_of(cluster: &Cluster) -> String {
    cluster.value("select pg_walfile_name(pg_current_wal_insert_lsn())")
}

#[test]
fn recovery_stops_at_a_hole_and_a_standby_waits_there() {
    let Some(fixture) = small(&[]) else { skip!("neither PostgreSQL 15 nor 18 is installed") };
    let cluster = &fixture.cluster;
    cluster.sql("create table t (i int)");
    let made = fixture.backup();
    let mut names = Vec::new();
    for i in 0..5 {
        cluster.sql(&format!("insert into t values ({i})"));
        names.push(segment_of(cluster));
        fixture.archived(cluster);
    }
    let recovering = fixture.restoring("recovering", RecoveryTarget::Latest);
    fixture.restore(&made.snapshot, &recovering);
    let mut following = fixture.restoring("following", RecoveryTarget::Latest);
    following.standby = true;
    fixture.restore(&made.snapshot, &following);

    let path = object(&fixture, &names[2]);
    let kept = fixture.folder.path().join("kept");
    fs::rename(&path, &kept).unwrap();
    let again = fixture.restoring("again", RecoveryTarget::Latest);
    let refused = fixture.refused(&made.snapshot, &again);
    assert!(refused.to_string().contains(&names[2]), "{refused}");

    let log = ends(&fixture, &recovering.to);
    assert!(log.contains("the archive has a hole"), "{log}");
    assert!(log.contains(&names[2]) && log.contains(&names[3]), "{log}");
    let standby = fixture.adopt(&following.to);
    wait_until("the standby is at the hole", 60, || standby.value("select count(*) from t") == "2");
    assert_eq!(standby.value("select pg_is_in_recovery()"), "t");

    fs::rename(&kept, &path).unwrap();
    wait_until("the standby goes on", 60, || standby.value("select count(*) from t") == "5");
    drop(standby);
    let server = fixture.promoted(&recovering);
    assert_eq!(server.value("select count(*) from t"), "5");
}

/// A server of 15 or newer reads ahead of what it replays: a hole behind its target made it give up.
#[test]
fn a_target_before_a_hole_is_reached() {
    for installation in [13, 15, 18].into_iter().filter_map(version) {
        let shape = Shape { segment_mib: Some(1), ..Shape::default() };
        let fixture = Fixture::with(&installation, shape, &[]);
        let cluster = &fixture.cluster;
        cluster.sql("create table t (i int)");
        let made = fixture.backup();
        let mut names = Vec::new();
        for i in 0..4 {
            cluster.sql(&format!("insert into t values ({i})"));
            cluster.sql(&format!("select pg_create_restore_point('after {i}')"));
            names.push(segment_of(cluster));
            fixture.archived(cluster);
        }
        for (hole, target, rows) in
            [(2, RecoveryTarget::Name("after 1".into()), "2"), (0, RecoveryTarget::Immediate, "0")]
        {
            let path = object(&fixture, &names[hole]);
            let kept = fixture.folder.path().join("kept");
            fs::rename(&path, &kept).unwrap();
            let mut options = fixture.restoring(&format!("hole-{hole}"), target);
            options.timeline = Some(TargetTimeline::Current);
            fixture.restore(&made.snapshot, &options);
            let server = fixture.promoted(&options);
            assert_eq!(server.value("select count(*) from t"), rows);
            drop(server);
            fs::rename(&kept, &path).unwrap();
        }
        // A target behind it is not: recovery ends there, and says so.
        let options = fixture.restoring("behind", RecoveryTarget::Name("after 3".into()));
        let options = RestoreOptions { timeline: Some(TargetTimeline::Current), ..options };
        fixture.restore(&made.snapshot, &options);
        fs::remove_file(object(&fixture, &names[2])).unwrap();
        let log = ends(&fixture, &options.to);
        assert!(log.contains("recovery ended before configured recovery target"), "{log}");
    }
}

/// Along a timeline whose first segment is missing, while the one before went on.
#[test]
fn recovery_does_not_follow_a_timeline_past_where_it_was_left() {
    let Some(fixture) = small(&[("wal_keep_size", "64MB")]) else {
        skip!("neither PostgreSQL 15 nor 18 is installed")
    };
    let cluster = &fixture.cluster;
    cluster.sql("create table t (v text)");
    let made = fixture.backup();
    cluster.sql("insert into t values ('both')");
    cluster.sql("select pg_create_restore_point('fork')");
    fixture.archived(cluster);
    let fork = fixture.restoring("fork", RecoveryTarget::Name("fork".into()));
    fixture.restore(&made.snapshot, &fork);
    let newer = fixture.promoted(&fork);
    let mut lost = Vec::new();
    for _ in 0..3 {
        newer.sql("insert into t values ('new')");
        lost.push(segment_of(&newer));
        newer.sql("checkpoint");
        fixture.archived(&newer);
    }
    assert!(lost.iter().all(|name| name.starts_with("00000002")), "{lost:?}");
    newer.stop();
    drop(newer);
    // The old one never heard of it.
    for _ in 0..3 {
        cluster.sql("insert into t values ('old')");
        fixture.archived(cluster);
    }
    let history = object(&fixture, "00000002.history");
    assert!(history.exists());

    let along = |name: &str| -> RestoreOptions {
        let mut options = fixture.restoring(name, RecoveryTarget::Latest);
        options.timeline = Some(TargetTimeline::Number(2));
        options
    };
    let (hole, ended) = (along("hole"), along("ended"));
    fixture.restore(&made.snapshot, &hole);
    fixture.restore(&made.snapshot, &ended);

    // The first segment of the new timeline alone: the old one has a file of its number.
    let first = &lost[0];
    let start = first.parse::<SegmentName>().unwrap().start(made.detail.segment_size).unwrap();
    let old = first.replacen("00000002", "00000001", 1);
    assert!(object(&fixture, &old).exists());
    fs::remove_file(object(&fixture, first)).unwrap();
    let refused = fixture.refused(&made.snapshot, &along("refused"));
    assert_eq!(refused.kind(), PostgresErrorKind::Target, "{refused}");
    assert!(refused.to_string().contains(first), "{refused}");
    // What lies behind the fork in the old one's file is not on the way.
    let mut behind = along("refused");
    behind.target = RecoveryTarget::Lsn(Lsn(start.0 + (1 << 20) - 16));
    assert_eq!(fixture.refused(&made.snapshot, &behind).kind(), PostgresErrorKind::Target);
    let log = ends(&fixture, &hole.to);
    assert!(log.contains("the archive has a hole") && log.contains(first), "{log}");

    // Nothing of the new timeline came: recovery ends where it began.
    for name in &lost[1..] {
        fs::remove_file(object(&fixture, name)).unwrap();
    }
    let archive = fixture.repo.archive(made.detail.system_identifier);
    for file in archive.list(Some(2)).unwrap() {
        if file.name.len() == 24 {
            fs::remove_file(object(&fixture, &file.name)).unwrap();
        }
    }
    let server = fixture.promoted(&ended);
    assert_eq!(server.value("select string_agg(v, ' ') from t"), "both", "{}", server.log());
}
