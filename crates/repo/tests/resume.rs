//! A backup that was killed, and the one after it: what the first had sent is not sent again.
//!
//! The binary of this test starts itself again as the process that dies: [`dies_here`] is its work.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use backstay_repo::*;
use backstay_store::Local;
use support::*;

const IN: &str = "BACKSTAY_TEST_RESUME_IN";
/// Each about as large as a pack. Bytes.
const FILE: usize = 32 << 20;
const FILES: u64 = 10;

fn store(folder: &Path) -> Store {
    Store::new(Local::new(folder.join("store")).unwrap())
}

fn large_files() -> Files {
    let content = |n| (Chunking::Grid, Arc::new(noise(FILE, 900 + n)));
    (0..FILES).map(|n| (format!("large/{n:02}"), content(n))).collect()
}

#[test]
fn dies_here() {
    let Ok(folder) = std::env::var(IN) else { return };
    backup(&open(&store(Path::new(&folder))), &large_files()).unwrap();
}

#[test]
fn what_a_killed_backup_had_sent_is_not_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    repository(&store);
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["dies_here", "--exact", "--test-threads=1"])
        .env(IN, folder.path())
        .env("BACKSTAY_FAILPOINT", "pack-created:9")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(9), "{status}");
    let sent = store.list("packs/").unwrap().len();
    assert!(sent >= 9, "{sent}");
    let repo = open(&store);
    assert!(repo.snapshots().unwrap().is_empty());

    let files = large_files();
    let snapshot = backup(&repo, &files).unwrap();
    let all = FILES * FILE as u64;
    let stats = &snapshot.stats;
    // Everything is read again: only that tells whether it is the same.
    assert_eq!(stats.bytes_read, all);
    // At least the first four packs were listed; a few more may have been.
    assert!(stats.new_bytes <= all - 3 * FILE as u64, "{} of {all} sent again", stats.new_bytes);
    assert!(repo.snapshots().unwrap().len() == 1);
    let report = verify(&repo, Level::Thorough);
    assert!(report.damage.is_empty(), "{report:?}");

    // What only the killed one has is garbage like any other, and nothing else is.
    let options = MaintenanceOptions {
        give_up_after: std::time::Duration::ZERO,
        ..MaintenanceOptions::default()
    };
    for _ in 0..3 {
        repo.maintain(&options, &Progress::default()).unwrap();
    }
    let repo = open(&store);
    assert!(verify(&repo, Level::Thorough).damage.is_empty());
    let to = folder.path().join("restored");
    restore(&repo, &repo.snapshots().unwrap()[0], &to);
    assert_restored(&files, &to);
}
