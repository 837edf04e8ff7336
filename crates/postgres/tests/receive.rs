//! WAL received over the wire: what is in the archive then, and what is lost when somebody dies.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use backstay_postgres::control::ControlFile;
use backstay_postgres::wal::{self, Lsn, RecoveryTarget};
use backstay_postgres::{
    PostgresErrorKind, ReceiveOptions, ReceiveState, ReceiveStatus, Slot, drop_slot, receive,
};
use backstay_repo::{Archive, Environment, InitOptions, RepoErrorKind, Repository, Slice, Store};
use backstay_testing::postgres::{Cluster, Installation, version, versions};
use backstay_testing::{skip, wait_until};
use common::{Fixture, Shape};

/// A cluster that archives nothing by itself, with small segments.
fn quiet(installation: &Installation) -> Fixture {
    let shape = Shape { segment_mib: Some(1), ..Shape::default() };
    Fixture::with(installation, shape, &[("archive_mode", "off"), ("max_replication_slots", "4")])
}

fn options() -> ReceiveOptions {
    let mut options = ReceiveOptions::new("backstay");
    options.slot = Some(Slot { name: "backstay".to_owned(), create: true });
    options.every = Duration::from_millis(20);
    options
}

/// Does `work` while a receiver runs in another thread, then ends the receiver in order.
fn while_receiving<T>(
    fixture: &Fixture,
    options: &ReceiveOptions,
    work: impl FnOnce(&ReceiveState) -> T,
) -> (T, ReceiveStatus) {
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let done = receive(std::slice::from_ref(&fixture.repo), &fixture.source(), options);
            // A test that waits in vain then says why.
            done.inspect_err(|error| eprintln!("the receiver ended: {error:?}"))
        });
        // Whatever becomes of the work, the receiver must not be waited for for ever.
        struct Stop<'a>(&'a ReceiveOptions);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.progress.cancel();
            }
        }
        let stop = Stop(options);
        wait_until("the receiver runs", 30, || {
            assert!(!receiver.is_finished(), "{}", fixture.cluster.log());
            options.state.get().durable.is_some()
        });
        let done = work(&options.state);
        drop(stop);
        (done, receiver.join().unwrap().unwrap())
    })
}

fn here(cluster: &Cluster) -> Lsn {
    cluster.value("select pg_current_wal_flush_lsn()").parse().unwrap()
}

fn wait_for(state: &ReceiveState, lsn: Lsn) {
    wait_until(&format!("{lsn} is durable"), 30, || state.get().durable >= Some(lsn));
}

fn archive(fixture: &Fixture) -> Archive {
    fixture.repo.archive(ControlFile::read(fixture.cluster.data()).unwrap().system_identifier)
}

/// Whole segments of the archive are those that the server has, byte for byte. Answers how many.
fn compare(fixture: &Fixture) -> usize {
    let archive = archive(fixture);
    let mut compared = 0;
    for file in archive.list(None).unwrap() {
        let path = fixture.cluster.data().join("pg_wal").join(&file.name);
        if let (24, Ok(own)) = (file.name.len(), std::fs::read(path)) {
            assert!(archive.fetch(&file.name).unwrap().unwrap() == own, "{} differs", file.name);
            compared += 1;
        }
    }
    compared
}

fn names(archive: &Archive) -> Vec<String> {
    archive.list(None).unwrap().into_iter().map(|file| file.name).collect()
}

/// Both ways bring the same WAL; the slices of what is not whole yet reach to its end.
#[test]
fn every_version_is_received_beside_its_own_archive_command() {
    let found: Vec<_> = versions().into_iter().filter(|v| (13..=18).contains(&v.major)).collect();
    if found.is_empty() {
        skip!("no PostgreSQL is installed");
    }
    for installation in found {
        let shape = Shape { segment_mib: Some(1), ..Shape::default() };
        let fixture = Fixture::with(&installation, shape, &[("wal_keep_size", "64MB")]);
        let cluster = &fixture.cluster;
        let options = options();
        let (last, status) = while_receiving(&fixture, &options, |state| {
            cluster.sql("create table t as select generate_series(1, 30000) i");
            fixture.archived(cluster);
            cluster.sql("insert into t values (0)");
            let last = here(cluster);
            wait_for(state, last);
            last
        });
        assert!(status.segments >= 2 && status.slices >= 1, "{status:?}");
        assert!(!status.synchronous);
        assert!(compare(&fixture) >= 2);
        // What is not whole reaches to the last commit, and to nowhere else.
        let archive = archive(&fixture);
        let segment = cluster.value("select pg_walfile_name(pg_current_wal_flush_lsn())");
        let begun = archive.assemble(&segment).unwrap().unwrap();
        let own = std::fs::read(cluster.data().join("pg_wal").join(&segment)).unwrap();
        assert!(begun.len() as u64 >= last.0 % (1 << 20));
        assert!(own[..begun.len()] == begun);
        for name in names(&archive) {
            assert!(Slice::parse(&name).is_none_or(|(of, _)| of == segment), "{name} is left over");
        }
        drop_slot(&fixture.source(), "backstay").unwrap();
        assert_eq!(cluster.value("select count(*) from pg_replication_slots"), "0");
    }
}

/// What only slices have can be restored to, and counts in what would be lost now.
#[test]
fn targets_that_lie_in_slices_are_reached() {
    let Some(installation) = version(16).or_else(|| version(15)) else {
        skip!("neither PostgreSQL 16 nor 15 is installed");
    };
    let fixture = quiet(&installation);
    let cluster = &fixture.cluster;
    let options = options();
    cluster.sql("create table t (i int)");
    let (found, _) = while_receiving(&fixture, &options, |state| {
        cluster.switch_wal();
        let made = fixture.backup();
        cluster.sql("insert into t values (1)");
        let mut client = cluster.connect();
        let mut transaction = client.transaction().unwrap();
        transaction.execute("insert into t values (2)", &[]).unwrap();
        let xid: String = transaction.query_one("select txid_current()::text", &[]).unwrap().get(0);
        transaction.commit().unwrap();
        cluster.sql("select pg_create_restore_point('here')");
        let lsn = here(cluster);
        let time: jiff::Timestamp = cluster
            .value("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
            .parse()
            .unwrap();
        cluster.sql("insert into t values (3)");
        let last = here(cluster);
        wait_for(state, last);
        (made, xid.parse::<u64>().unwrap(), lsn, time, last)
    });
    let (made, xid, lsn, time, last) = found;
    let archive = archive(&fixture);
    let segment = cluster.value("select pg_walfile_name(pg_current_wal_flush_lsn())");
    assert!(!archive.contains(&segment).unwrap(), "{segment} is whole");
    let check =
        |target: &RecoveryTarget| wal::check_target(&archive, &made.detail, target, true, None);
    let name = RecoveryTarget::Name("here".into());
    for target in [
        RecoveryTarget::Latest,
        RecoveryTarget::Xid(xid),
        RecoveryTarget::Lsn(lsn),
        RecoveryTarget::Time(time),
        name.clone(),
    ] {
        let found = check(&target).unwrap_or_else(|error| panic!("{target}: {error:?}"));
        assert_eq!(found.last.to_string(), segment, "{target}");
    }
    let behind = check(&RecoveryTarget::Lsn(Lsn(last.0 + 4096))).unwrap_err();
    assert_eq!(behind.kind(), PostgresErrorKind::Target);
    assert!(behind.to_string().contains("has come up to"), "{behind}");

    let backups = [("made".to_owned(), (&made.detail).into())];
    let health = wal::window(&archive, made.detail.segment_size, &backups).unwrap();
    let [window] = health.windows.as_slice() else { panic!("{:?}", health.windows) };
    assert!(window.begun && window.to >= last, "{window:?}");
    assert_eq!(window.broken_by, None);
    assert!(health.unusable.is_empty() && !health.has_gaps());
    let newest = health.newest.unwrap();
    assert!(newest.transaction.unwrap() > time, "{newest:?}");
    assert!(newest.archived.is_some());

    let mut restoring = fixture.restoring("restored", name);
    restoring.timeline = Some(wal::TargetTimeline::Current);
    fixture.restore(&made.snapshot, &restoring);
    assert_eq!(fixture.promoted(&restoring).value("select count(*) from t"), "2");
}

/// A commit waits for the repository; what it returned for outlives the server, all of it.
#[test]
fn a_commit_that_returned_is_restored_after_the_server_died_at_once() {
    let Some(installation) = version(15).or_else(|| version(18)) else {
        skip!("neither PostgreSQL 15 nor 18 is installed");
    };
    let fixture = quiet(&installation);
    let cluster = &fixture.cluster;
    let options = options();
    cluster.sql("create table t (i int)");
    cluster.configure(&[("synchronous_standby_names", "backstay")]);
    cluster.reload();
    let (made, status) = while_receiving(&fixture, &options, |_| {
        wait_until("commits wait for the receiver", 30, || {
            cluster.value("select count(*) from pg_stat_replication where sync_state = 'sync'")
                == "1"
        });
        // Something whole is in the archive, as a backup wants it.
        cluster.switch_wal();
        let made = fixture.backup();
        let mut client = cluster.connect();
        for row in 1..=50 {
            client.execute("insert into t values ($1)", &[&row]).unwrap();
        }
        cluster.kill();
        made
    });
    assert!(status.synchronous, "{status:?}");
    // The machine is gone: nothing of it is used from here on.
    std::fs::remove_dir_all(cluster.data().join("pg_wal")).unwrap();
    let restoring = fixture.restoring("restored", RecoveryTarget::Latest);
    fixture.restore(&made.snapshot, &restoring);
    // It would wait for a receiver.
    let restored = Cluster::adopt(&installation, &restoring.to)
        .config(&[("synchronous_standby_names", "")])
        .start();
    wait_until("the restored server takes writes", 60, || {
        restored.value("select pg_is_in_recovery()") == "f"
    });
    assert_eq!(restored.value("select count(*) || '|' || max(i) from t"), "50|50");
}

/// What came and was in no slice yet when the server died is shipped all the same: a commit that the
/// receiver had is not lost with the machine, however seldom slices are due.
#[test]
fn what_came_before_the_server_died_is_shipped_though_no_slice_was_due() {
    let Some(installation) = version(15).or_else(|| version(18)) else {
        skip!("neither PostgreSQL 15 nor 18 is installed");
    };
    let fixture = quiet(&installation);
    let cluster = &fixture.cluster;
    let mut options = options();
    options.every = Duration::from_secs(3600);
    options.reconnect = false;
    cluster.sql("create table t (i int)");
    let archive = archive(&fixture);
    let (segment, last, error) = std::thread::scope(|scope| {
        let receiver = scope
            .spawn(|| receive(std::slice::from_ref(&fixture.repo), &fixture.source(), &options));
        wait_until("the receiver runs", 30, || {
            receiver.is_finished() || options.state.get().durable.is_some()
        });
        cluster.sql("insert into t values (1)");
        let last = here(cluster);
        let segment = cluster.value("select pg_walfile_name(pg_current_wal_flush_lsn())");
        wait_until("the commit came", 30, || {
            receiver.is_finished() || options.state.get().received >= Some(last)
        });
        cluster.kill();
        (segment, last, receiver.join().unwrap().unwrap_err())
    });
    assert!(error.is_transient(), "{error:?}");
    let begun = archive.assemble(&segment).unwrap().unwrap_or_default();
    assert!(begun.len() as u64 >= last.0 % (1 << 20), "{} bytes of {segment}", begun.len());
    let own = std::fs::read(cluster.data().join("pg_wal").join(&segment)).unwrap();
    assert!(own[..begun.len()] == begun);
}

/// The receiver is killed where it hurts most, and the one after it goes on.
#[test]
fn a_receiver_that_dies_anywhere_loses_nothing_and_doubles_nothing() {
    let Some(installation) = version(16).or_else(|| version(15)) else {
        skip!("neither PostgreSQL 16 nor 15 is installed");
    };
    let fixture = quiet(&installation);
    let cluster = &fixture.cluster;
    cluster.sql("create table t (i int, v text)");
    let mut rows = 0;
    for failpoint in [
        "wal-receive-slice",
        "wal-receive-slice:3",
        "wal-receive-segment",
        "wal-receive-segment:2",
        "archive-sealed",
        "local-create-linked:2",
    ] {
        let mut receiver = fixture
            .process("receive", failpoint, "backstay", fixture.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until(&format!("it dies at {failpoint}"), 60, || {
            cluster.sql("insert into t select i, repeat('x', 100) from generate_series(1, 2000) i");
            rows += 2000;
            receiver.try_wait().unwrap().is_some()
        });
        assert!(!receiver.wait().unwrap().success());
    }
    // One that is killed by nobody's plan.
    let mut receiver = fixture
        .process("receive", "", "backstay", fixture.folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    cluster.sql("insert into t select i, repeat('x', 100) from generate_series(1, 2000) i");
    receiver.kill().unwrap();
    receiver.wait().unwrap();

    let options = options();
    let ((), status) = while_receiving(&fixture, &options, |state| {
        // The server dies too, and comes back on the same timeline.
        cluster.kill();
        cluster.start();
        cluster.sql("insert into t values (0, 'last')");
        wait_for(state, here(cluster));
    });
    assert!(status.reconnects >= 1, "{status:?}");
    assert!(compare(&fixture) >= 1);
    // From the first to the last there is no hole.
    let mut segments: Vec<u64> = names(&archive(&fixture))
        .iter()
        .filter(|name| name.len() == 24)
        .map(|name| u64::from_str_radix(&name[16..], 16).unwrap())
        .collect();
    segments.sort_unstable();
    assert!(segments.windows(2).all(|pair| pair[1] == pair[0] + 1), "{segments:?}");
    assert!(rows > 0);
}

#[test]
fn a_promotion_is_followed_with_its_history_before_its_segments() {
    let Some(installation) = version(17).or_else(|| version(15)) else {
        skip!("neither PostgreSQL 17 nor 15 is installed");
    };
    let fixture = quiet(&installation);
    let cluster = &fixture.cluster;
    cluster.sql("create table t (i int)");
    let options = options();
    let ((), status) = while_receiving(&fixture, &options, |state| {
        cluster.sql("insert into t values (1)");
        cluster.switch_wal();
        cluster.sql("insert into t values (2)");
        wait_for(state, here(cluster));
        cluster.stop();
        cluster.write("standby.signal", "");
        cluster.start();
        cluster.promote();
        cluster.sql("insert into t values (3)");
        cluster.switch_wal();
        cluster.sql("insert into t values (4)");
        wait_until("timeline 2 is received", 30, || state.get().timeline == 2);
        wait_for(state, here(cluster));
    });
    assert_eq!(status.timeline, 2);
    let names = names(&archive(&fixture));
    assert!(names.contains(&"00000002.history".to_owned()), "{names:?}");
    assert!(names.iter().any(|name| name.len() == 24 && name.starts_with("00000002")), "{names:?}");
    assert!(compare(&fixture) >= 1);
}

/// What is put together from slices for a standby is not archived by it as if it were the whole.
#[test]
fn a_standby_that_archives_what_it_fetched_leaves_the_place_of_the_whole_free() {
    let Some(installation) = version(16).or_else(|| version(15)) else {
        skip!("neither PostgreSQL 16 nor 15 is installed");
    };
    let fixture = quiet(&installation);
    let cluster = &fixture.cluster;
    cluster.sql("create table t (i int)");
    let options = options();
    while_receiving(&fixture, &options, |state| {
        let first = cluster.switch_wal();
        wait_until("a backup finds an archive", 30, || archive(&fixture).contains(&first).unwrap());
        let made = fixture.backup();
        cluster.sql("insert into t values (1)");
        wait_for(state, here(cluster));
        let segment = cluster.value("select pg_walfile_name(pg_current_wal_flush_lsn())");

        let mut restoring = fixture.restoring("standby", RecoveryTarget::Latest);
        restoring.standby = true;
        fixture.restore(&made.snapshot, &restoring);
        let archive_command = fixture.archive_command();
        // Its server's user writes there as well.
        backstay_testing::own(&fixture.repo_directory());
        let standby = Cluster::adopt(&installation, &restoring.to)
            .config(&[("archive_mode", "always"), ("archive_command", &archive_command)])
            .start();
        let has = |rows: &str| {
            wait_until(&format!("the standby has {rows} rows"), 60, || {
                standby.value("select count(*) from t") == rows
            });
        };
        has("1");
        wait_until("the standby tried to archive the beginning", 60, || {
            assert!(!archive(&fixture).contains(&segment).unwrap());
            standby.value("select coalesce(last_failed_wal, '') from pg_stat_archiver") == segment
        });
        // The whole comes, and the standby archives that.
        cluster.sql("insert into t values (2)");
        assert_eq!(cluster.switch_wal(), segment);
        cluster.sql("insert into t values (3)");
        has("3");
        assert!(archive(&fixture).contains(&segment).unwrap());
        wait_until("the standby's archiver goes on", 90, || {
            standby.value("select coalesce(last_archived_wal, '') from pg_stat_archiver") >= segment
        });
        wait_for(state, here(cluster));
    });
    assert!(compare(&fixture) >= 1);
}

/// The receiver died when one repository had the first segment and the other had only slices of it.
#[test]
fn a_repository_that_has_no_whole_segment_yet_gets_what_the_others_have() {
    let Some(installation) = version(17).or_else(|| version(15)) else {
        skip!("neither PostgreSQL 17 nor 15 is installed");
    };
    let fixture = quiet(&installation);
    let cluster = &fixture.cluster;
    let second = Repository::init(
        Store::memory(),
        Environment::system(),
        &common::secret(),
        InitOptions::default(),
    )
    .unwrap();
    let repositories = [fixture.repo.clone(), second.clone()];
    let until_durable = || {
        let options = options();
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(&repositories, &fixture.source(), &options));
            cluster.sql("create table if not exists t (i int)");
            let last = here(cluster);
            wait_until(&format!("{last} is durable"), 30, || {
                receiver.is_finished() || options.state.get().durable >= Some(last)
            });
            options.progress.cancel();
            receiver.join().unwrap().unwrap()
        });
    };
    until_durable();
    let segment = cluster.switch_wal();
    let whole = std::fs::read(cluster.data().join("pg_wal").join(&segment)).unwrap();
    archive(&fixture).push(&segment, &whole).unwrap();
    let system = archive(&fixture).system_id();
    assert!(!second.archive(system).contains(&segment).unwrap());
    until_durable();
    assert!(second.archive(system).fetch(&segment).unwrap().as_ref() == Some(&whole));
}

#[test]
fn wal_that_the_server_removed_is_a_gap_that_somebody_has_to_agree_to() {
    let Some(installation) = version(15).or_else(|| version(18)) else {
        skip!("neither PostgreSQL 15 nor 18 is installed");
    };
    let shape = Shape { segment_mib: Some(1), ..Shape::default() };
    let settings = [("archive_mode", "off"), ("min_wal_size", "2MB"), ("max_wal_size", "2MB")];
    let fixture = Fixture::with(&installation, shape, &settings);
    let cluster = &fixture.cluster;
    cluster.sql("create table t (i int)");
    let without = || ReceiveOptions { slot: None, ..options() };
    let first = without();
    let ((), _) = while_receiving(&fixture, &first, |state| {
        cluster.switch_wal();
        wait_for(state, here(cluster));
    });
    for _ in 0..8 {
        cluster.sql("insert into t values (1)");
        cluster.switch_wal();
    }
    cluster.sql("checkpoint");
    let error =
        receive(std::slice::from_ref(&fixture.repo), &fixture.source(), &without()).unwrap_err();
    assert!(error.to_string().contains("removed"), "{error}");
    assert!(error.hint().unwrap().contains("--skip-gap"), "{error:?}");
    // From here on it keeps what it has.
    cluster.configure(&[("wal_keep_size", "64MB"), ("max_wal_size", "64MB")]);
    cluster.reload();
    wait_until("the server keeps WAL", 30, || cluster.value("show wal_keep_size") == "64MB");
    let skipping = ReceiveOptions { skip_gap: true, ..without() };
    let ((), status) = while_receiving(&fixture, &skipping, |state| {
        cluster.sql("insert into t values (2)");
        wait_for(state, here(cluster));
        cluster.switch_wal();
        cluster.sql("insert into t values (2)");
        wait_for(state, here(cluster));
        // A new connection skips nothing more.
        cluster.stop();
        cluster.start();
        cluster.sql("insert into t values (3)");
        wait_for(state, here(cluster));
    });
    assert!(status.reconnects >= 1 && status.segments >= 1, "{status:?}");
}

#[test]
fn what_does_not_pass_by_itself_ends_receiving_with_a_hint() {
    let Some(installation) = version(15).or_else(|| version(18)) else {
        skip!("neither PostgreSQL 15 nor 18 is installed");
    };
    let fixture = quiet(&installation);
    let repositories = std::slice::from_ref(&fixture.repo);
    let source = fixture.source();

    let mut missing = options();
    missing.slot = Some(Slot { name: "nobody".to_owned(), create: false });
    let error = receive(repositories, &source, &missing).unwrap_err();
    assert!(error.to_string().contains("nobody"), "{error}");
    assert!(error.hint().unwrap().contains("--create-slot"), "{error:?}");

    let mut wrong = options();
    wrong.slot = Some(Slot { name: "No-Name".to_owned(), create: true });
    let error = receive(repositories, &source, &wrong).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Usage, "{error}");

    // The archive is ahead of the server: WAL that this server never had.
    let archive = archive(&fixture);
    let segment = fixture.cluster.value("select pg_walfile_name(pg_current_wal_flush_lsn())");
    archive.push_slice(&segment, 0, &[7; 100]).unwrap();
    let once = options();
    let error = receive(repositories, &source, &once).unwrap_err();
    assert_eq!(error.repo_kind(), Some(RepoErrorKind::Conflict), "{error:?}");
    assert!(error.to_string().contains(&segment), "{error}");

    // Nobody answers, and nobody asks to try again.
    fixture.cluster.stop();
    let mut once = options();
    once.reconnect = false;
    once.state = Arc::default();
    let error = receive(repositories, &source, &once).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Connection, "{error}");
    assert!(error.is_transient());
}
