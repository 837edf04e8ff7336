//! Restores of clusters that are not as clusters usually are.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::fs;

use backstay_postgres::PostgresErrorKind;
use backstay_postgres::wal::{self, PushOptions, RecoveryTarget, TargetTimeline};
use backstay_testing::postgres::{Installation, version, versions};
use backstay_testing::{own, skip};
use common::{Fixture, Shape};

fn supported() -> Vec<Installation> {
    versions().into_iter().filter(|i| (13..=18).contains(&i.major)).collect()
}

#[test]
fn unlogged_tables_are_empty_after_a_restore() {
    let all = supported();
    if all.is_empty() {
        skip!("no PostgreSQL is installed; run scripts/test-postgres");
    }
    for installation in all.iter().filter(|i| [13, 16, 18].contains(&i.major)) {
        let fixture = Fixture::new(installation);
        let cluster = &fixture.cluster;
        cluster.sql("create unlogged table u (id serial primary key, v text)");
        cluster.sql("insert into u (v) select repeat('x', 100) from generate_series(1, 10000)");
        cluster.sql("create table t as select generate_series(1, 10) i");
        cluster.sql("checkpoint");
        let made = fixture.backup();
        cluster.sql("insert into u (v) values ('late')");
        fixture.archived(cluster);
        let options = fixture.restoring("restored", RecoveryTarget::Latest);
        fixture.restore(&made.snapshot, &options);
        let server = fixture.promoted(&options);
        assert_eq!(server.value("select count(*) from u"), "0");
        assert_eq!(server.value("select count(*) from t"), "10");
        server.sql("insert into u (v) values ('new')");
        assert_eq!(server.value("select v from u where id = (select max(id) from u)"), "new");
    }
}

#[test]
fn a_tablespace_inside_the_data_directory_stays_there() {
    let all = supported();
    let Some(installation) = all.iter().rfind(|i| i.major >= 15) else {
        skip!("PostgreSQL 15 or newer is not installed")
    };
    let fixture =
        Fixture::with(installation, Shape::default(), &[("allow_in_place_tablespaces", "on")]);
    let cluster = &fixture.cluster;
    cluster.sql("create tablespace inside location ''");
    cluster.sql("create table t tablespace inside as select generate_series(1, 1000) i");
    let made = fixture.backup();
    assert!(made.snapshot.problems.is_empty(), "{:?}", made.snapshot.problems);
    cluster.sql("insert into t values (1001)");
    fixture.archived(cluster);
    let options = fixture.restoring("restored", RecoveryTarget::Latest);
    fixture.restore(&made.snapshot, &options);
    let server = fixture.promoted(&options);
    assert_eq!(server.value("select count(*) from t"), "1001");
    let place = server.value("select pg_relation_filepath('t')");
    assert!(options.to.join(&place).exists() && place.starts_with("pg_tblspc/"), "{place}");
}

#[test]
fn a_relation_whose_size_is_no_multiple_of_the_block_is_restored_as_it_was() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let cluster = &fixture.cluster;
    cluster.sql("create table t as select i, repeat('x', 100) from generate_series(1, 1000) i");
    let path = cluster.value("select pg_relation_filepath('t')");
    cluster.sql("checkpoint");
    // As a write that was cut off by a full disk leaves it.
    let file = cluster.data().join(&path);
    let mut content = fs::read(&file).unwrap();
    content.extend_from_slice(&[7; 1000]);
    fs::write(&file, &content).unwrap();
    for _ in 0..2 {
        let made = fixture.backup();
        let mut options = fixture.restoring("restored", RecoveryTarget::Immediate);
        // The first one was promoted, and archived its timeline.
        options.timeline = Some(TargetTimeline::Current);
        fixture.restore(&made.snapshot, &options);
        assert_eq!(fs::read(options.to.join(&path)).unwrap(), content, "to the byte");
        let server = fixture.promoted(&options);
        assert_eq!(server.value("select count(*) from t"), "1000");
        drop(server);
        fs::remove_dir_all(&options.to).unwrap();
    }
}

#[test]
fn segments_of_1_mb_and_64_mb_are_recovered_through() {
    let all = supported();
    let (Some(first), Some(last)) = (all.first(), all.last()) else {
        skip!("no PostgreSQL is installed; run scripts/test-postgres")
    };
    for (installation, size) in [(first, 1), (last, 64)] {
        let shape = Shape { segment_mib: Some(size), ..Shape::default() };
        let fixture = Fixture::with(installation, shape, &[("max_wal_size", "256MB")]);
        let cluster = &fixture.cluster;
        cluster.sql("create table t (v text)");
        let made = fixture.backup();
        assert_eq!(made.detail.segment_size.bytes(), u64::from(size) << 20);
        for _ in 0..3 {
            cluster.sql("insert into t select repeat('x', 1000) from generate_series(1, 2000)");
            fixture.archived(cluster);
        }
        let options = fixture.restoring("restored", RecoveryTarget::Latest);
        fixture.restore(&made.snapshot, &options);
        assert_eq!(fixture.promoted(&options).value("select count(*) from t"), "6000");
    }
}

#[test]
fn one_record_larger_than_a_segment_is_recovered() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let shape = Shape { segment_mib: Some(1), ..Shape::default() };
    let fixture = Fixture::with(&installation, shape, &[("wal_level", "logical")]);
    let cluster = &fixture.cluster;
    cluster.sql("create table t (id int)");
    let made = fixture.backup();
    // A message is one record, however long it is.
    cluster.sql("select pg_logical_emit_message(false, 'large', repeat('x', 3500000))");
    cluster.sql("insert into t values (1)");
    fixture.archived(cluster);
    let options = fixture.restoring("restored", RecoveryTarget::Latest);
    fixture.restore(&made.snapshot, &options);
    assert_eq!(fixture.promoted(&options).value("select count(*) from t"), "1");
    // And a target behind it is found.
    let xid = cluster.value("select txid_current()::text").parse().unwrap();
    cluster.sql("select pg_logical_emit_message(false, 'large', repeat('y', 2500000))");
    fixture.archived(cluster);
    let mut options = fixture.restoring("to-xid", RecoveryTarget::Xid(xid));
    options.timeline = Some(TargetTimeline::Current);
    fixture.restore(&made.snapshot, &options);
    assert_eq!(fixture.promoted(&options).value("select count(*) from t"), "1");
}

#[test]
fn timelines_past_nine_are_counted_in_hexadecimal() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let cluster = &fixture.cluster;
    cluster.sql("create table t (id int)");
    for _ in 0..10 {
        cluster.stop();
        fs::write(cluster.data().join("standby.signal"), "").unwrap();
        own(&cluster.data().join("standby.signal"));
        cluster.configure(&[("restore_command", &fixture.restore_command())]);
        cluster.start();
        cluster.promote();
    }
    cluster.sql("insert into t values (11)");
    let made = fixture.backup();
    assert_eq!(made.detail.timeline, 11);
    assert!(made.detail.start_segment.starts_with("0000000B"), "{}", made.detail.start_segment);
    cluster.sql("insert into t values (12)");
    fixture.archived(cluster);
    let mut options = fixture.restoring("restored", RecoveryTarget::Latest);
    options.timeline = Some(TargetTimeline::Number(11));
    fixture.restore(&made.snapshot, &options);
    let server = fixture.promoted(&options);
    assert_eq!(server.value("select string_agg(id::text, ' ' order by id) from t"), "11 12");
    let name = server.value("select pg_walfile_name(pg_current_wal_lsn())");
    assert!(name.starts_with("0000000C"), "{name}");
    fixture.archived(&server);
}

#[test]
fn a_clock_set_back_an_hour_hides_no_change() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let cluster = &fixture.cluster;
    cluster.sql("create table t (id int)");
    let made = fixture.backup();
    cluster.sql("insert into t values (1)");
    fixture.archived(cluster);
    cluster.sql("insert into t values (2)");
    fixture.archived(cluster);
    // The files of the second backup look as if they were of an hour ago, and those of the first as
    // if they were of the future: times of files decide nothing that content does not confirm.
    let then = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let ahead = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    let path = cluster.value("select pg_relation_filepath('t')");
    for (name, time) in [(path.as_str(), then), ("global/pg_filenode.map", ahead)] {
        let file = fs::File::options().write(true).open(cluster.data().join(name)).unwrap();
        file.set_modified(time).unwrap();
    }
    let again = fixture.backup();
    for (snapshot, name) in [(&made.snapshot, "first"), (&again.snapshot, "second")] {
        let mut options = fixture.restoring(name, RecoveryTarget::Latest);
        options.timeline = Some(TargetTimeline::Current);
        fixture.restore(snapshot, &options);
        let server = fixture.promoted(&options);
        assert_eq!(server.value("select count(*) from t"), "2", "{name}");
    }
}

#[test]
fn a_partial_segment_beside_the_whole_one_does_no_harm() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let cluster = &fixture.cluster;
    cluster.sql("create table t (id int)");
    let made = fixture.backup();
    cluster.sql("insert into t values (1)");
    // As a promoted standby leaves it: the segment as far as it had come, under this name.
    let name = cluster.value("select pg_walfile_name(pg_current_wal_lsn())");
    let directory = cluster.data().join("pg_wal");
    let partial = directory.join(format!("{name}.partial"));
    fs::copy(directory.join(&name), &partial).unwrap();
    own(&partial);
    let repos = std::slice::from_ref(&fixture.repo);
    wal::push(repos, &partial, &PushOptions::default()).unwrap();
    cluster.sql("insert into t values (2)");
    fixture.archived(cluster);
    let options = fixture.restoring("restored", RecoveryTarget::Latest);
    fixture.restore(&made.snapshot, &options);
    assert_eq!(fixture.promoted(&options).value("select count(*) from t"), "2");
}

#[test]
fn an_empty_history_leads_no_recovery_astray() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let cluster = &fixture.cluster;
    cluster.sql("create table t (id int)");
    let made = fixture.backup();
    cluster.sql("insert into t values (1)");
    fixture.archived(cluster);
    let history = cluster.data().join("pg_wal/00000002.history");
    fs::write(&history, "").unwrap();
    own(&history);
    let pushed = wal::push(std::slice::from_ref(&fixture.repo), &history, &PushOptions::default());
    let mut options = fixture.restoring("restored", RecoveryTarget::Latest);
    if pushed.is_ok() {
        let error = fixture.refused(&made.snapshot, &options);
        assert_eq!(error.kind(), PostgresErrorKind::Target, "{error}");
        assert!(error.to_string().contains("does not descend"), "{error}");
        assert!(error.hint().unwrap().contains("current"), "{error:?}");
    }
    options.timeline = Some(TargetTimeline::Current);
    fixture.restore(&made.snapshot, &options);
    assert_eq!(fixture.promoted(&options).value("select count(*) from t"), "1");
}
