//! To an exact moment and back, on every version that can be had.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::collections::BTreeMap;

use backstay_postgres::wal::{RecoveryTarget, TargetTimeline};
use backstay_postgres::{PostgresErrorKind, TargetAction};
use backstay_testing::postgres::{version, versions};
use backstay_testing::{skip, wait_until};
use common::{Fixture, Shape};

/// A moment of the source.
struct Moment {
    time: String,
    tables: BTreeMap<String, String>,
}

fn moment(fixture: &Fixture) -> Moment {
    let value = |query: &str| fixture.cluster.value(query);
    Moment {
        tables: fixture.cluster.table_checksums(),
        time: value(
            "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
        ),
    }
}

#[test]
fn every_version_goes_back_to_an_exact_moment() {
    let all = versions();
    if all.is_empty() {
        skip!("no PostgreSQL is installed; run scripts/test-postgres");
    }
    for installation in all.iter().filter(|i| (13..=18).contains(&i.major)) {
        let fixture = Fixture::new(installation);
        fixture.cluster.sql("create table t (id int primary key, v text)");
        fixture
            .cluster
            .sql("insert into t select i, md5(i::text) from generate_series(1, 20000) i");
        let made = fixture.backup();
        assert!(made.snapshot.problems.is_empty(), "{:?}", made.snapshot.problems);
        assert_eq!(made.detail.version, installation.major);
        fixture.cluster.sql("update t set v = 'after the backup' where id % 7 = 0");
        fixture.cluster.sql("create table later as select * from t where id < 100");
        let then = moment(&fixture);
        fixture.cluster.sql("delete from t where id > 100");
        fixture.cluster.sql("drop table later");
        fixture.archived(&fixture.cluster);

        let options = fixture.restoring("pitr", RecoveryTarget::Time(then.time.parse().unwrap()));
        let restored = fixture.restore(&made.snapshot, &options);
        assert!(restored.report.files > 500);
        let server = fixture.promoted(&options);
        assert_eq!(server.table_checksums(), then.tables, "PostgreSQL {}", installation.major);
        assert_eq!(server.value("select count(*) from t"), "20000");
        // It takes writes, and archives them on its own timeline.
        server.sql("insert into t values (-1, 'new')");
        fixture.archived(&server);
    }
}

#[test]
fn a_target_is_met_to_the_row() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    // Small segments: a recovery has to go through many.
    let shape = Shape { segment_mib: Some(1), ..Shape::default() };
    let fixture = Fixture::with(&installation, shape, &[]);
    let cluster = &fixture.cluster;
    cluster.sql("create table t (id int)");
    let made = fixture.backup();
    let mut rows = Vec::new();
    for id in 0..6 {
        let mut client = cluster.connect();
        client.batch_execute(&format!("begin; insert into t values ({id})")).unwrap();
        let xid = client
            .query_one("select txid_current()::text", &[])
            .unwrap()
            .get::<_, String>(0)
            .parse::<u64>()
            .unwrap();
        client.batch_execute("commit").unwrap();
        cluster.sql(&format!("select pg_create_restore_point('after {id}')"));
        let lsn = cluster.lsn();
        rows.push((xid, lsn));
        // Some WAL in between, so that the moments lie in different segments.
        cluster.sql("create table filler as select repeat('x', 500) from generate_series(1, 4000)");
        cluster.sql("drop table filler");
    }
    fixture.archived(cluster);
    let (xid, lsn) = rows[2].clone();
    let cases = [
        ("xid", RecoveryTarget::Xid(xid), true, 3),
        ("xid-exclusive", RecoveryTarget::Xid(xid), false, 2),
        ("lsn", RecoveryTarget::Lsn(lsn.parse().unwrap()), true, 3),
        ("name", RecoveryTarget::Name("after 4".to_owned()), true, 5),
        ("immediate", RecoveryTarget::Immediate, true, 0),
        ("latest", RecoveryTarget::Latest, true, 6),
    ];
    for (name, target, inclusive, expected) in cases {
        let mut options = fixture.restoring(name, target);
        options.inclusive = inclusive;
        // All along the timeline of the backup: the servers of this loop make others.
        options.timeline = Some(TargetTimeline::Current);
        fixture.restore(&made.snapshot, &options);
        let server = fixture.promoted(&options);
        assert_eq!(server.value("select count(*) from t"), expected.to_string(), "{name}");
        drop(server);
        std::fs::remove_dir_all(&options.to).unwrap();
    }
}

#[test]
fn what_cannot_be_reached_is_refused_before_anything_is_copied() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    fixture.cluster.sql("create table t (id int)");
    let made = fixture.backup();
    fixture.archived(&fixture.cluster);
    let before = made.detail.time_start - jiff::SignedDuration::from_hours(1);
    let cases = [
        RecoveryTarget::Time(before),
        RecoveryTarget::Lsn("FF/0".parse().unwrap()),
        RecoveryTarget::Lsn("0/1".parse().unwrap()),
        RecoveryTarget::Name("never made".to_owned()),
        RecoveryTarget::Xid(4_000_000),
    ];
    for target in cases {
        let options = fixture.restoring("refused", target.clone());
        let error = fixture.refused(&made.snapshot, &options);
        assert_eq!(error.kind(), PostgresErrorKind::Target, "{target}: {error}");
        assert!(!options.to.exists(), "{target}");
    }
}

#[test]
fn a_recovery_can_stop_at_its_target_and_wait() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    fixture.cluster.sql("create table t (id int)");
    let made = fixture.backup();
    fixture.cluster.sql("insert into t values (1)");
    fixture.cluster.sql("select pg_create_restore_point('here')");
    fixture.cluster.sql("insert into t values (2)");
    fixture.archived(&fixture.cluster);
    let mut options = fixture.restoring("paused", RecoveryTarget::Name("here".to_owned()));
    options.action = TargetAction::Pause;
    fixture.restore(&made.snapshot, &options);
    let server = fixture.adopt(&options.to);
    wait_until("recovery pauses", 60, || server.value("select pg_is_wal_replay_paused()") == "t");
    assert_eq!(server.value("select count(*) from t"), "1");
    server.sql("select pg_wal_replay_resume()");
    wait_until("it is promoted", 60, || server.value("select pg_is_in_recovery()") == "f");
}

#[test]
fn a_second_recovery_follows_the_timeline_that_the_first_one_made() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    fixture.cluster.sql("create table t (id int)");
    let made = fixture.backup();
    fixture.cluster.sql("insert into t values (1)");
    fixture.cluster.sql("select pg_create_restore_point('fork')");
    fixture.cluster.sql("insert into t values (2)");
    fixture.archived(&fixture.cluster);
    fixture.cluster.stop();

    let first = fixture.restoring("first", RecoveryTarget::Name("fork".to_owned()));
    fixture.restore(&made.snapshot, &first);
    let server = fixture.promoted(&first);
    server.sql("insert into t values (30), (31)");
    let there = server.table_checksums();
    fixture.archived(&server);
    server.stop();

    // Where both have gone on, none is taken without a word.
    fixture.cluster.start();
    fixture.archived(&fixture.cluster);
    let mut second = fixture.restoring("second", RecoveryTarget::Latest);
    let error = fixture.refused(&made.snapshot, &second);
    assert_eq!(error.kind(), PostgresErrorKind::Target, "{error}");
    assert!(error.hint().unwrap().contains("--timeline 1"), "{error:?}");
    assert!(!second.to.exists());

    // The new timeline has what was written after the fork, and not what was given up there.
    second.timeline = Some(TargetTimeline::Number(2));
    fixture.restore(&made.snapshot, &second);
    let server = fixture.promoted(&second);
    assert_eq!(server.table_checksums(), there);
    assert_eq!(server.value("select string_agg(id::text, ' ' order by id) from t"), "1 30 31");
    server.stop();

    // The old one is still there for who asks for it.
    let mut old = fixture.restoring("old", RecoveryTarget::Latest);
    old.timeline = Some(TargetTimeline::Number(1));
    fixture.restore(&made.snapshot, &old);
    let server = fixture.promoted(&old);
    assert_eq!(server.value("select string_agg(id::text, ' ' order by id) from t"), "1 2");
}

/// A server says of such a timeline that it left its ancestor before that one began.
#[test]
fn a_return_to_before_the_last_promotion_is_gone_on_from() {
    let Some(installation) = [15, 18].into_iter().find_map(version) else {
        skip!("neither PostgreSQL 15 nor 18 is installed");
    };
    let fixture = Fixture::new(&installation);
    fixture.cluster.sql("create table t (id int)");
    let made = fixture.backup();
    fixture.cluster.sql("insert into t values (1)");
    fixture.cluster.sql("select pg_create_restore_point('early')");
    fixture.archived(&fixture.cluster);
    fixture.cluster.sql("insert into t values (2)");
    fixture.archived(&fixture.cluster);
    fixture.cluster.stop();

    let first = fixture.restoring("first", RecoveryTarget::Latest);
    fixture.restore(&made.snapshot, &first);
    let server = fixture.promoted(&first);
    server.sql("insert into t values (3)");
    fixture.archived(&server);
    server.stop();

    let mut early = fixture.restoring("early", RecoveryTarget::Name("early".to_owned()));
    early.timeline = Some(TargetTimeline::Number(2));
    fixture.restore(&made.snapshot, &early);
    let server = fixture.promoted(&early);
    let history = std::fs::read_to_string(early.to.join("pg_wal/00000003.history")).unwrap();
    let ancestors: Vec<_> = history.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(ancestors.len(), 2, "{history}");
    server.sql("insert into t values (30)");
    let there = server.table_checksums();
    fixture.archived(&server);
    server.stop();

    let mut again = fixture.restoring("again", RecoveryTarget::Latest);
    again.timeline = Some(TargetTimeline::Number(3));
    fixture.restore(&made.snapshot, &again);
    let server = fixture.promoted(&again);
    assert_eq!(server.table_checksums(), there);
    assert_eq!(server.value("select string_agg(id::text, ' ' order by id) from t"), "1 30");
}
