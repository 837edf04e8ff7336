//! SQLite: consistent while others write, and clear about what is wrong.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // as tests do

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use backstay_repo::{Progress, RepoErrorKind, RestoreOptions};
use backstay_sources::sqlite::{backup, restore};
use backstay_sources::{BackupOptions, Source, SqliteSource};
use common::{Numbers, folder, repository};
use rusqlite::Connection;

/// Accounts whose sum never changes.
fn create(path: &Path, mode: &str, accounts: u32) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(30)).unwrap();
    let set: String = connection
        .query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get(0))
        .unwrap();
    assert_eq!(set, mode);
    connection
        .execute_batch(
            "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, filler BLOB)",
        )
        .unwrap();
    connection.execute_batch("BEGIN").unwrap();
    let mut numbers = Numbers(1);
    for id in 0..accounts {
        connection
            .execute("INSERT INTO account VALUES (?, 1000, ?)", (id, numbers.bytes(900)))
            .unwrap();
    }
    connection.execute_batch("COMMIT").unwrap();
    connection
}

fn transfer(connection: &Connection, numbers: &mut Numbers, accounts: u32) {
    let (from, to) = (numbers.below(u64::from(accounts)), numbers.below(u64::from(accounts)));
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    connection
        .execute("UPDATE account SET balance = balance - 1 WHERE id = ?", [from as i64])
        .unwrap();
    connection
        .execute("UPDATE account SET balance = balance + 1 WHERE id = ?", [to as i64])
        .unwrap();
    connection.execute_batch("COMMIT").unwrap();
}

fn source(path: &Path) -> SqliteSource {
    SqliteSource { busy_timeout: Duration::from_secs(20), ..SqliteSource::new("shop", path) }
}

fn restored(
    repo: &backstay_repo::Repository,
    snapshot: &backstay_repo::Snapshot,
) -> (tempfile::TempDir, PathBuf) {
    let (dir, base) = folder();
    let target = base.join("restored");
    let (_, integrity) =
        restore(repo, snapshot, RestoreOptions::new(&target), &Progress::default()).unwrap();
    assert!(integrity.is_ok());
    (dir, target)
}

/// Backs up while other connections move money; what comes back adds up.
fn consistent_under_load(mode: &str) {
    const ACCOUNTS: u32 = 20_000;
    let (_dir, base) = folder();
    let path = base.join("bank.db");
    drop(create(&path, mode, ACCOUNTS));
    let repo = repository();
    let (stop, transfers) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (path, stop, transfers) = (&path, &stop, &transfers);
            scope.spawn(move || {
                let connection = Connection::open(path).unwrap();
                connection.busy_timeout(Duration::from_secs(60)).unwrap();
                connection.execute_batch("PRAGMA synchronous = off").unwrap();
                let mut numbers = Numbers(seed);
                while !stop.load(SeqCst) {
                    transfer(&connection, &mut numbers, ACCOUNTS);
                    transfers.fetch_add(1, SeqCst);
                }
            });
        }
        while transfers.load(SeqCst) < 10 {
            std::thread::yield_now();
        }
        for _ in 0..3 {
            let before = transfers.load(SeqCst);
            let snapshot = backup(&repo, &source(&path), &BackupOptions::default()).unwrap();
            let during = transfers.load(SeqCst) - before;
            println!(
                "{mode}: {} restarts, {during} transfers meanwhile",
                snapshot.detail["restarts"]
            );
            assert!(during > 0, "writers were starved");
            assert_eq!(snapshot.detail["journal_mode"], mode);
            let (_dir, target) = restored(&repo, &snapshot);
            let copy = Connection::open(target.join("bank.db")).unwrap();
            let sum: i64 =
                copy.query_row("SELECT sum(balance) FROM account", [], |row| row.get(0)).unwrap();
            assert_eq!(sum, i64::from(ACCOUNTS) * 1000);
        }
        stop.store(true, SeqCst);
    });
}

#[test]
fn a_copy_is_consistent_while_others_write_with_a_log() {
    consistent_under_load("wal");
}

#[test]
fn a_copy_is_consistent_and_ends_while_others_write_with_a_journal() {
    consistent_under_load("delete");
}

#[test]
fn metadata_and_detail_are_those_of_the_original() {
    let (_dir, base) = folder();
    let path = base.join("my shop?#%.db");
    let connection = create(&path, "wal", 100);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let repo = repository();
    let snapshot = backup(&repo, &source(&path), &BackupOptions::default()).unwrap();
    assert_eq!(snapshot.detail["page_size"], 4096);
    assert_eq!(snapshot.detail["integrity"], "ok");
    assert_eq!(snapshot.detail["foreign_key_violations"], 0);
    let (_dir, target) = restored(&repo, &snapshot);
    let about = fs::metadata(target.join("my shop?#%.db")).unwrap();
    assert_eq!(about.permissions().mode() & 0o7777, 0o640);
    assert_eq!(about.modified().unwrap(), fs::metadata(&path).unwrap().modified().unwrap());
    let copy = Connection::open(target.join("my shop?#%.db")).unwrap();
    let mode: String = copy.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    drop(connection);
}

#[test]
fn a_source_is_left_as_it_was() {
    let (_dir, base) = folder();
    let path = base.join("shop.db");
    // The log of a process that was killed: copied while it is open.
    let writer = create(&path, "wal", 500);
    let other = base.join("killed");
    fs::create_dir(&other).unwrap();
    for name in ["shop.db", "shop.db-wal"] {
        fs::copy(base.join(name), other.join(name)).unwrap();
    }
    drop(writer);
    let log = fs::read(other.join("shop.db-wal")).unwrap();
    let file = fs::read(other.join("shop.db")).unwrap();
    assert!(!log.is_empty());
    let repo = repository();
    let snapshot =
        backup(&repo, &source(&other.join("shop.db")), &BackupOptions::default()).unwrap();
    assert!(fs::read(other.join("shop.db-wal")).unwrap() == log);
    assert!(fs::read(other.join("shop.db")).unwrap() == file);
    let (_dir, target) = restored(&repo, &snapshot);
    let copy = Connection::open(target.join("shop.db")).unwrap();
    let count: i64 = copy.query_row("SELECT count(*) FROM account", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 500);
}

#[test]
fn broken_references_are_told_and_kept() {
    let (_dir, base) = folder();
    let path = base.join("shop.db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "PRAGMA foreign_keys = off; CREATE TABLE a (id INTEGER PRIMARY KEY);
             CREATE TABLE b (a INTEGER REFERENCES a); INSERT INTO b VALUES (7), (8);",
        )
        .unwrap();
    let repo = repository();
    let snapshot = backup(&repo, &source(&path), &BackupOptions::default()).unwrap();
    assert_eq!(snapshot.detail["foreign_key_violations"], 2);
    assert!(snapshot.problems.is_empty());
}

#[test]
fn an_empty_file_is_an_empty_database() {
    let (_dir, base) = folder();
    let path = base.join("empty.db");
    fs::write(&path, "").unwrap();
    let repo = repository();
    let snapshot = backup(&repo, &source(&path), &BackupOptions::default()).unwrap();
    let (_dir, target) = restored(&repo, &snapshot);
    assert!(target.join("empty.db").exists());
}

#[test]
fn what_is_no_database_is_called_that() {
    let (_dir, base) = folder();
    let path = base.join("letter.db");
    fs::write(&path, "Dear Sir or Madam, ".repeat(1000)).unwrap();
    let repo = repository();
    let error = backup(&repo, &source(&path), &BackupOptions::default()).unwrap_err();
    assert!(error.to_string().contains("is not an SQLite database"), "{error}");
    assert!(error.hint().is_some());
    let error = backup(&repo, &source(&base), &BackupOptions::default()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Usage);
    assert!(error.to_string().contains("is a directory"), "{error}");
    assert!(source(&path).check().iter().any(|item| !item.ok));
    assert!(repo.snapshots().unwrap().is_empty());
}

#[test]
fn a_damaged_database_is_refused() {
    let (_dir, base) = folder();
    let path = base.join("shop.db");
    drop(create(&path, "delete", 3000));
    let file = fs::File::options().write(true).open(&path).unwrap();
    // In the middle of the pages of the table, not in the header.
    file.write_all_at(&Numbers(5).bytes(40_000), 1_000_000).unwrap();
    let repo = repository();
    let temporary = base.join("temporary");
    fs::create_dir(&temporary).unwrap();
    let source = SqliteSource { temporary: Some(temporary.clone()), ..source(&path) };
    let error = backup(&repo, &source, &BackupOptions::default()).unwrap_err();
    assert!(error.to_string().contains("is damaged"), "{error}");
    assert!(error.hint().is_some());
    assert!(repo.snapshots().unwrap().is_empty());
    assert_eq!(fs::read_dir(temporary).unwrap().count(), 0, "the copy stayed behind");
}

#[test]
fn an_exclusive_lock_is_waited_for_and_then_named() {
    let (_dir, base) = folder();
    let path = base.join("shop.db");
    let connection = create(&path, "delete", 1000);
    connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let repo = repository();
    let impatient = SqliteSource { busy_timeout: Duration::from_millis(300), ..source(&path) };
    let started = Instant::now();
    let error = backup(&repo, &impatient, &BackupOptions::default()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Busy, "{error}");
    assert!(error.to_string().contains("locked by another process"), "{error}");
    assert!(error.hint().is_some());
    assert!(started.elapsed() >= Duration::from_millis(300));
    // Whoever is patient gets it.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| backup(&repo, &source(&path), &BackupOptions::default()));
        std::thread::park_timeout(Duration::from_millis(300));
        connection.execute_batch("COMMIT").unwrap();
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn a_wait_for_a_lock_can_be_cancelled() {
    let (_dir, base) = folder();
    let path = base.join("shop.db");
    let connection = create(&path, "delete", 1000);
    connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let repo = repository();
    let options = BackupOptions::default();
    let progress = Arc::clone(&options.progress);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| backup(&repo, &source(&path), &options));
        progress.cancel();
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), RepoErrorKind::Aborted);
    });
}

#[test]
fn the_copy_is_removed_and_so_is_what_a_killed_backup_left() {
    let (_dir, base) = folder();
    let path = base.join("shop.db");
    let connection = create(&path, "wal", 100);
    let temporary = base.join("temporary");
    let left = temporary.join("backstay-sqlite-killed");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("lock"), "").unwrap();
    fs::write(left.join("copy.db"), "half").unwrap();
    let alive = temporary.join("backstay-sqlite-alive");
    fs::create_dir_all(&alive).unwrap();
    let lock = fs::File::create(alive.join("lock")).unwrap();
    lock.lock().unwrap();
    let repo = repository();
    let source = SqliteSource { temporary: Some(temporary.clone()), ..source(&path) };
    backup(&repo, &source, &BackupOptions::default()).unwrap();
    assert!(!left.exists());
    assert!(alive.exists());
    assert_eq!(fs::read_dir(temporary).unwrap().count(), 1);
    drop(connection);
}

#[test]
fn a_full_disk_is_noticed_before_copying() {
    let (_dir, base) = folder();
    let path = base.join("shop.db");
    drop(create(&path, "delete", 100));
    // Larger than any disk, and all of it a hole.
    fs::File::options().write(true).open(&path).unwrap().set_len(8 << 40).unwrap();
    let repo = repository();
    let error = backup(&repo, &source(&path), &BackupOptions::default()).unwrap_err();
    assert!(error.to_string().contains("MiB are free"), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn an_old_log_beside_the_target_is_refused() {
    let (_dir, base) = folder();
    let path = base.join("shop.db");
    let connection = create(&path, "wal", 100);
    let repo = repository();
    let snapshot = backup(&repo, &source(&path), &BackupOptions::default()).unwrap();
    let options = RestoreOptions { delta: true, ..RestoreOptions::new(&base) };
    let error = restore(&repo, &snapshot, options, &Progress::default()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Usage);
    assert!(error.to_string().contains("shop.db-wal"), "{error}");
    drop(connection);
    // Its last connection has taken the log away.
    let options = RestoreOptions { delta: true, ..RestoreOptions::new(&base) };
    restore(&repo, &snapshot, options, &Progress::default()).unwrap();
}

/// Pages of SQLite may be smaller or larger than those that are compared.
#[test]
fn an_incremental_stores_the_changed_pages_whatever_their_size() {
    for page_size in [512, 4096, 65536] {
        let (_dir, base) = folder();
        let path = base.join("bank.db");
        {
            let connection = Connection::open(&path).unwrap();
            connection.execute_batch(&format!("PRAGMA page_size = {page_size}; VACUUM")).unwrap();
        }
        let connection = create(&path, "wal", 20_000);
        let repo = repository();
        let source = source(&path);
        let mut numbers = Numbers(page_size);
        let first = backup(&repo, &source, &BackupOptions::default()).unwrap();
        assert_eq!(first.detail["page_size"], page_size);
        let mut made = vec![(first, content_of(&connection))];
        for _ in 0..4 {
            for _ in 0..5 {
                transfer(&connection, &mut numbers, 20_000);
            }
            let next = source.backup(&repo, &BackupOptions::default()).unwrap();
            assert_eq!(next.parent.as_ref(), made.last().map(|(before, _)| &before.id));
            // Ten rows, on a page each, of which one may lie on two of those that are compared.
            let most = 11 * page_size.max(8192) + 40_000;
            assert!(next.stats.new_bytes <= most, "{page_size}: {}", next.stats.new_bytes);
            made.push((next, content_of(&connection)));
        }
        for (snapshot, content) in &made {
            let (_dir, target) = restored(&repo, snapshot);
            let copy = Connection::open(target.join("bank.db")).unwrap();
            assert!(content_of(&copy) == *content, "{page_size}");
        }
    }
}

fn content_of(connection: &Connection) -> Vec<i64> {
    let mut rows = connection.prepare("SELECT balance FROM account ORDER BY id").unwrap();
    rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}
