//! What real servers wrote, read by us and by PostgreSQL's own programs.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::path::Path;
use std::process::Command;

use backstay_postgres::control::ControlFile;
use backstay_postgres::copy::{self, What};
use backstay_postgres::page::{self, PageState};
use backstay_testing::postgres::{Cluster, version, versions};
use backstay_testing::{own, skip};

/// Pages that are good, new and bad, of all relations of a cluster that does not run.
fn pages(data: &Path, major: u32) -> (usize, usize, Vec<(String, u32)>) {
    let control = ControlFile::read(data).unwrap();
    let listing = copy::list(data, major, control.catalog_version).unwrap();
    let (mut good, mut new, mut bad) = (0, 0, Vec::new());
    for item in listing.items {
        let What::Relation { segment, .. } = item.what else { continue };
        let content = std::fs::read(&item.source).unwrap();
        for (at, page) in content.chunks_exact(control.block_size as usize).enumerate() {
            let block = segment * control.relation_segment_blocks + at as u32;
            match page::check(page, block) {
                PageState::Good => good += 1,
                PageState::New => new += 1,
                PageState::Bad { .. } => {
                    bad.push((String::from_utf8_lossy(&item.path).into(), block))
                }
            }
        }
    }
    (good, new, bad)
}

#[test]
fn every_page_that_a_server_writes_is_good() {
    let all = versions();
    if all.is_empty() {
        skip!("no PostgreSQL is installed; run scripts/test-postgres");
    }
    for installation in all.iter().filter(|i| (13..=18).contains(&i.major)) {
        let cluster = Cluster::builder(installation).start();
        cluster.sql(
            "create table t as select i, repeat('x', i % 900) from generate_series(1, 9000) i",
        );
        cluster.sql("create index on t (i)");
        cluster.sql("delete from t where i % 3 = 0");
        cluster.sql("vacuum t");
        cluster.stop();
        let (good, _, bad) = pages(cluster.data(), installation.major);
        assert!(good > 1000, "only {good} pages");
        assert!(bad.is_empty(), "PostgreSQL {}: {bad:?}", installation.major);
    }
}

#[test]
fn pg_checksums_accuses_the_same_page() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let Some(program) = installation.program("pg_checksums") else {
        skip!("there is no pg_checksums")
    };
    let cluster = Cluster::builder(&installation).start();
    cluster.sql("create table t as select i, repeat('x', 100) from generate_series(1, 9000) i");
    let file = cluster.value("select pg_relation_filepath('t')");
    cluster.stop();
    let path = cluster.data().join(&file);
    let mut content = std::fs::read(&path).unwrap();
    content[8192 * 5 + 4000] ^= 1;
    std::fs::write(&path, content).unwrap();
    own(&path);
    let (_, _, bad) = pages(cluster.data(), 15);
    assert_eq!(bad, [(format!("data/{file}"), 5)]);
    let said = cluster.command_at(program).arg("--check").arg(cluster.data()).output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains(&format!("{file}\", block 5")), "{said}");
    assert!(
        said.contains("Bad checksums") || said.contains("checksum verification failed"),
        "{said}"
    );
}

#[test]
fn pg_controldata_says_the_same() {
    let mut compared = 0;
    for installation in versions() {
        let Some(program) = installation.program("pg_controldata") else { continue };
        let cluster = Cluster::builder(&installation).segment_size(4).start();
        cluster.sql("create table t (id int)");
        cluster.stop();
        let ours = ControlFile::read(cluster.data()).unwrap();
        let output = Command::new(program).arg(cluster.data()).env("LC_ALL", "C").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let theirs = |name: &str| -> String {
            let line = text.lines().find(|line| line.starts_with(&format!("{name}:")));
            line.unwrap_or_else(|| panic!("{name} in {text}"))
                .split_once(':')
                .unwrap()
                .1
                .trim()
                .into()
        };
        assert_eq!(theirs("Database system identifier"), ours.system_identifier.to_string());
        assert_eq!(theirs("pg_control version number"), ours.control_version.to_string());
        assert_eq!(theirs("Catalog version number"), ours.catalog_version.to_string());
        assert_eq!(theirs("Latest checkpoint location"), ours.checkpoint.to_string());
        assert_eq!(theirs("Latest checkpoint's REDO location"), ours.redo.to_string());
        assert_eq!(theirs("Latest checkpoint's TimeLineID"), ours.timeline.to_string());
        assert_eq!(theirs("Database block size"), ours.block_size.to_string());
        assert_eq!(
            theirs("Blocks per segment of large relation"),
            ours.relation_segment_blocks.to_string()
        );
        assert_eq!(theirs("WAL block size"), ours.wal_block_size.to_string());
        assert_eq!(theirs("Bytes per WAL segment"), ours.wal_segment_size.to_string());
        assert_eq!(theirs("Data page checksum version"), ours.checksum_version.to_string());
        assert_eq!(theirs("Minimum recovery ending location"), ours.min_recovery_point.to_string());
        compared += 1;
    }
    if compared == 0 {
        skip!("there is no pg_controldata");
    }
}
