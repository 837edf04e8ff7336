//! What a server says when its log does not leave it: each alert from a real server that has it, and
//! none from one that is well.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::time::Duration;

use backstay_postgres::{WatchOptions, Watched, watch};
use backstay_testing::postgres::{Installation, version, versions};
use backstay_testing::{skip, wait_until};
use common::{Fixture, Shape};

fn options() -> WatchOptions {
    WatchOptions {
        slot: "backstay_main".to_owned(),
        slot_limit: 1 << 30,
        archive_lag: Duration::from_secs(600),
        standalone: false,
    }
}

fn small(installation: &Installation, settings: &[(&str, &str)]) -> Fixture {
    let shape = Shape { segment_mib: Some(1), ..Shape::default() };
    Fixture::with(installation, shape, settings)
}

fn asked(fixture: &Fixture) -> Watched {
    watch(&fixture.source(), &options()).unwrap()
}

fn names(watched: &Watched, options: &WatchOptions) -> Vec<&'static str> {
    let alerts = watched.alerts(options);
    assert!(alerts.iter().all(|alert| !alert.hint.is_empty() && !alert.message.is_empty()));
    alerts.into_iter().map(|alert| alert.name).collect()
}

/// The names of what is wrong now.
fn wrong(fixture: &Fixture) -> Vec<&'static str> {
    names(&asked(fixture), &options())
}

/// The oldest and the newest version: what they say is not called alike in all.
fn both() -> Vec<Installation> {
    let all: Vec<_> = versions().into_iter().filter(|it| (13..=18).contains(&it.major)).collect();
    let mut both: Vec<_> = all.first().into_iter().chain(all.last()).cloned().collect();
    both.dedup_by_key(|it| it.major);
    both
}

#[test]
fn an_archiver_that_fails_is_told_from_one_that_works_again() {
    if both().is_empty() {
        skip!("no PostgreSQL of 13 to 18 is installed; run scripts/test-postgres");
    }
    for installation in both() {
        let fixture = small(&installation, &[]);
        let cluster = &fixture.cluster;
        cluster.sql("create table t as select 1 n");
        let first = cluster.switch_wal();
        wait_until("the first is archived", 60, || {
            asked(&fixture).archiver.last_archived.is_some_and(|last| last >= first)
        });
        let watched = asked(&fixture);
        assert_eq!(names(&watched, &options()), [""; 0], "{watched:?}");
        assert_eq!(watched.waiting.as_ref().map(|waiting| waiting.files), Some(0));
        assert_eq!(
            watched.system_identifier,
            cluster.value("select system_identifier from pg_control_system()")
        );

        let command = cluster.value("show archive_command");
        fixture.archive_with("false");
        cluster.sql("insert into t values (2)");
        cluster.switch_wal();
        cluster.sql("insert into t values (3)");
        wait_until("it has failed", 60, || asked(&fixture).archiver.failed > 0);
        let watched = asked(&fixture);
        assert_eq!(names(&watched, &options()), ["archiver-fails"], "{watched:?}");
        let message = &watched.alerts(&options())[0].message;
        let file = watched.archiver.last_failed.clone().unwrap();
        assert!(message.contains(&file), "{message}");
        // It waits for longer than it may.
        let hasty = WatchOptions { archive_lag: Duration::ZERO, ..options() };
        wait_until("it has waited for a second", 60, || {
            names(&asked(&fixture), &hasty) == ["archiver-fails", "archive-lag"]
        });

        fixture.archive_with(&command);
        // A new file wakes an archiver that waits before it tries again.
        cluster.switch_wal();
        wait_until("it is archived after all", 120, || wrong(&fixture).is_empty());
        assert_eq!(names(&asked(&fixture), &hasty), [""; 0]);

        fixture.archive_with("");
        assert_eq!(wrong(&fixture), ["no-archive-command"]);
    }
}

#[test]
fn a_server_that_nobody_takes_the_log_from_says_so() {
    if both().is_empty() {
        skip!("no PostgreSQL of 13 to 18 is installed; run scripts/test-postgres");
    }
    for installation in both() {
        let fixture = small(&installation, &[("archive_mode", "off")]);
        assert_eq!(wrong(&fixture), ["archiving-off"]);
        let standalone = WatchOptions { standalone: true, ..options() };
        assert_eq!(names(&asked(&fixture), &standalone), [""; 0]);
        // A receiver that is gone.
        fixture.cluster.sql("select pg_create_physical_replication_slot('backstay_main', true)");
        assert_eq!(wrong(&fixture), ["slot-inactive"]);
        // That of somebody else is none.
        let other = WatchOptions { slot: "backstay_other".to_owned(), ..options() };
        let watched = watch(&fixture.source(), &other).unwrap();
        assert_eq!(names(&watched, &other), ["archiving-off"]);
    }
}

#[test]
fn a_slot_is_behind_then_at_risk_then_lost() {
    if both().is_empty() {
        skip!("no PostgreSQL of 13 to 18 is installed; run scripts/test-postgres");
    }
    for installation in both() {
        let fixture = small(&installation, &[("max_wal_size", "1GB")]);
        let cluster = &fixture.cluster;
        cluster.sql("create table t (n int)");
        cluster.sql("select pg_create_physical_replication_slot('backstay_main', true)");
        assert_eq!(wrong(&fixture), [""; 0]);
        let segments = |count| {
            for _ in 0..count {
                cluster.sql("insert into t values (1)");
                cluster.switch_wal();
            }
        };
        segments(8);
        let near = WatchOptions { slot_limit: 4 << 20, ..options() };
        assert_eq!(names(&asked(&fixture), &near), ["slot-behind"]);
        assert_eq!(wrong(&fixture), [""; 0]);
        let set = |settings: &[(&str, &str)], status: &str| {
            cluster.configure(settings);
            cluster.reload();
            wait_until(status, 30, || {
                asked(&fixture).slot.and_then(|slot| slot.wal_status).as_deref() == Some(status)
            });
        };
        set(&[("max_wal_size", "2MB")], "extended");
        assert_eq!(wrong(&fixture), ["slot-at-risk"]);
        set(&[("max_wal_size", "1GB")], "reserved");
        set(&[("max_slot_wal_keep_size", "2MB")], "unreserved");
        assert_eq!(wrong(&fixture), ["slot-at-risk"]);
        cluster.sql("checkpoint");
        wait_until("it is lost", 30, || wrong(&fixture) == ["slot-lost"]);
    }
}

#[test]
fn a_standby_leaves_archiving_to_its_primary() {
    let Some(installation) = version(15).or_else(|| both().pop()) else {
        skip!("no PostgreSQL of 13 to 18 is installed; run scripts/test-postgres");
    };
    let fixture = small(&installation, &[]);
    let standby = fixture.cluster.standby(None);
    fixture.archive_with("");
    assert_eq!(wrong(&fixture), ["no-archive-command"]);
    standby.configure(&[("archive_command", "")]);
    standby.reload();
    wait_until("the standby has no archive_command", 30, || {
        standby.value("show archive_command").is_empty()
    });
    let source = backstay_postgres::Source {
        name: "standby".to_owned(),
        connection: standby.connection_string(),
        data_directory: None,
    };
    let watched = watch(&source, &options()).unwrap();
    assert!(watched.in_recovery && watched.position.is_some(), "{watched:?}");
    assert_eq!(names(&watched, &options()), [""; 0]);
}

#[test]
fn a_role_that_may_not_list_files_gets_the_rest() {
    let Some(installation) = version(15).or_else(|| both().pop()) else {
        skip!("no PostgreSQL of 13 to 18 is installed; run scripts/test-postgres");
    };
    let fixture = small(&installation, &[("archive_command", "false")]);
    fixture.cluster.sql("create role plain login");
    fixture.cluster.sql("create table t as select 1 n");
    fixture.cluster.switch_wal();
    let source = backstay_postgres::Source {
        connection: fixture.cluster.connection_string().replace("user=postgres", "user=plain"),
        ..fixture.source()
    };
    assert!(source.connection.contains("user=plain"), "{}", source.connection);
    wait_until("it has failed", 60, || asked(&fixture).archiver.failed > 0);
    let watched = watch(&source, &options()).unwrap();
    assert_eq!(watched.waiting, None);
    assert_eq!(names(&watched, &options()), ["archiver-fails"]);
}
