//! The test servers themselves: every version that is installed starts, takes the load, survives a
//! kill, gets a standby, and leaves nothing behind.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use backstay_testing::postgres::{Cluster, Load, version, versions};
use backstay_testing::{skip, wait_until};

#[test]
fn every_version_keeps_what_it_acknowledged_when_it_is_killed() {
    let all = versions();
    if all.is_empty() {
        skip!("no PostgreSQL is installed; run scripts/test-postgres");
    }
    for installation in all {
        let cluster = Cluster::builder(&installation).config(&[("wal_level", "logical")]).start();
        let major: u32 = cluster.value("show server_version_num").parse().unwrap();
        assert_eq!(major / 10_000, installation.major);
        assert_eq!(cluster.value("show data_checksums"), "on");
        assert_eq!(cluster.value("show wal_level"), "logical");
        cluster.pgbench_tables(1);
        let load = Load::start(&cluster, 2);
        load.run_for(20);
        let standby = cluster.standby(Some("one"));
        load.run_for(20);
        cluster.kill();
        assert!(!cluster.is_running());
        let acknowledged = load.stop();
        cluster.start();
        acknowledged.assert_kept(&cluster);
        let there = format!("select pg_last_wal_replay_lsn() >= '{}'", cluster.lsn());
        wait_until("the standby has everything", 60, || standby.value(&there) == "t");
        assert_eq!(cluster.table_checksums(), standby.table_checksums());
        standby.promote();
        standby.sql("create table only_here ()");
        assert!(cluster.table_checksums().contains_key("postgres.public.pgbench_accounts"));
    }
}

#[test]
fn the_oldest_and_the_newest_take_what_they_are_told() {
    let all = versions();
    let (Some(oldest), Some(newest)) = (all.first(), all.last()) else {
        skip!("no PostgreSQL is installed; run scripts/test-postgres");
    };
    for installation in [oldest, newest] {
        let cluster = Cluster::builder(installation).checksums(false).segment_size(1).start();
        assert_eq!(cluster.value("show data_checksums"), "off");
        assert_eq!(cluster.value("show wal_segment_size"), "1MB");
        let first = cluster.switch_wal();
        assert_ne!(first, cluster.switch_wal());
        cluster.configure(&[("log_min_duration_statement", "0"), ("search_path", "it''s")]);
        cluster.restart();
        assert_eq!(cluster.value("show log_min_duration_statement"), "0");
        let data = cluster.data().to_path_buf();
        drop(cluster);
        assert!(!data.exists());
    }
}

#[test]
fn a_copied_data_directory_is_adopted_and_stays() {
    let Some(installation) = versions().pop() else {
        skip!("no PostgreSQL is installed; run scripts/test-postgres");
    };
    let cluster = Cluster::builder(&installation).start();
    cluster.sql("create table t as select generate_series(1, 100) n");
    cluster.stop();
    let copy = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(copy.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let data = copy.path().join("data");
    assert!(
        Command::new("cp").arg("-a").arg(cluster.data()).arg(&data).status().unwrap().success()
    );
    cluster.start();
    let adopted = Cluster::adopt(&installation, &data).config(&[("work_mem", "5MB")]).start();
    assert_ne!(cluster.port(), adopted.port());
    assert_eq!(adopted.value("show work_mem"), "5MB");
    assert_eq!(cluster.table_checksums(), adopted.table_checksums());
    adopted.sql("drop table t");
    assert_eq!(cluster.value("select count(*) from t"), "100");
    drop(adopted);
    assert!(data.join("PG_VERSION").exists());
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let Some(installation) = versions().pop() else {
        skip!("no PostgreSQL is installed; run scripts/test-postgres");
    };
    let broken = Cluster::builder(&installation).config(&[("shared_buffers", "much")]);
    let failure = broken.try_start().unwrap_err();
    assert!(failure.status.is_some_and(|status| !status.success()));
    assert!(failure.log.contains("shared_buffers"), "{failure}");
}

#[test]
fn programs_run_against_the_cluster() {
    let Some(installation) = version(15) else {
        skip!("PostgreSQL 15 is not installed");
    };
    let cluster = Cluster::builder(&installation).start();
    if !cluster.pgbench(&["--initialize", "--quiet", "--scale=1"]) {
        skip!("there is no pgbench");
    }
    assert!(cluster.pgbench(&["--transactions=10", "--no-vacuum"]));
    assert_eq!(cluster.value("select count(*) from pgbench_history"), "10");
}

/// Not a test of its own: what `no_server_outlives_a_killed_test` kills.
#[test]
fn child_that_starts_a_server_and_waits() {
    if std::env::var_os("BACKSTAY_TEST_CHILD").is_none() {
        return;
    }
    let cluster = Cluster::builder(&versions().pop().unwrap()).start();
    println!("\nserver {} {}", cluster.pid().unwrap(), cluster.data().display());
    loop {
        std::thread::park();
    }
}

#[test]
fn no_server_outlives_a_killed_test() {
    if versions().is_empty() {
        skip!("no PostgreSQL is installed; run scripts/test-postgres");
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_starts_a_server_and_waits", "--nocapture"])
        .env("BACKSTAY_TEST_CHILD", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let line = output.lines().map(Result::unwrap).find(|line| line.starts_with("server ")).unwrap();
    let mut words = line.split(' ').skip(1);
    let pid: u32 = words.next().unwrap().parse().unwrap();
    let data = PathBuf::from(words.next().unwrap());
    let server = PathBuf::from(format!("/proc/{pid}/exe"));
    assert!(server.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the server is gone", 30, || !server.exists());
    std::fs::remove_dir_all(data.parent().unwrap()).unwrap();
}
