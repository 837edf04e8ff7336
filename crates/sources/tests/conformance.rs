//! One suite for all kinds of sources. A new kind adds one [`Subject`] and one test per case.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // as tests do

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use backstay_repo::{RepoErrorKind, Repository, Snapshot, SnapshotType};
use backstay_sources::files::compare::{CompareOptions, compare_trees};
use backstay_sources::{BackupOptions, Source, SqliteSource};
use common::{Numbers, after, files, folder, repository, restore, unprivileged};
use rusqlite::Connection;

/// Something to back up, and how to treat it.
trait Subject: Sync {
    fn new(base: &Path) -> Self
    where
        Self: Sized;
    fn source(&self) -> Box<dyn Source>;
    /// Changes a little: far less than a tenth.
    fn change(&self);
    /// Fails unless what was restored to `target` is what is there now.
    fn assert_restored(&self, target: &Path);
    /// Makes all or a part of it unreadable for those who are not root.
    fn close(&self);
    /// Removes it all.
    fn remove(&self);
}

struct Tree {
    path: PathBuf,
}

impl Subject for Tree {
    fn new(base: &Path) -> Self {
        let path = base.join("tree");
        let mut numbers = Numbers(3);
        for dir in 0..5 {
            fs::create_dir_all(path.join(format!("{dir}/sub"))).unwrap();
            for file in 0..10 {
                let content = numbers.bytes(file * 20_000);
                fs::write(path.join(format!("{dir}/sub/{file}")), content).unwrap();
            }
        }
        Self { path }
    }

    fn source(&self) -> Box<dyn Source> {
        Box::new(files(&[&self.path]))
    }

    fn change(&self) {
        fs::write(self.path.join("3/sub/1"), Numbers(99).bytes(30_000)).unwrap();
    }

    fn assert_restored(&self, target: &Path) {
        let restored = target.join(self.path.strip_prefix("/").unwrap());
        let options = CompareOptions { owner: false, ..CompareOptions::default() };
        let differences = compare_trees(&self.path, &restored, options).unwrap();
        assert!(differences.is_empty(), "{differences:?}");
    }

    fn close(&self) {
        let closed = fs::Permissions::from_mode(0o000);
        fs::set_permissions(self.path.join("2/sub/5"), closed).unwrap();
    }

    fn remove(&self) {
        fs::remove_dir_all(&self.path).unwrap();
    }
}

struct Database {
    path: PathBuf,
    /// Keeps a log that has not been written back.
    connection: std::sync::Mutex<Option<Connection>>,
}

impl Database {
    fn connection(&self) -> std::sync::MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap()
    }
}

fn content(connection: &Connection) -> Vec<(i64, Vec<u8>)> {
    let mut all = connection.prepare("SELECT id, body FROM t ORDER BY id").unwrap();
    let rows = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

impl Subject for Database {
    fn new(base: &Path) -> Self {
        let path = base.join("shop.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode = wal; CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB);",
            )
            .unwrap();
        let mut numbers = Numbers(4);
        connection.execute_batch("BEGIN").unwrap();
        for id in 0..4000 {
            connection.execute("INSERT INTO t VALUES (?, ?)", (id, numbers.bytes(3000))).unwrap();
        }
        connection.execute_batch("COMMIT").unwrap();
        Self { path, connection: std::sync::Mutex::new(Some(connection)) }
    }

    fn source(&self) -> Box<dyn Source> {
        Box::new(SqliteSource::new("shop", &self.path))
    }

    fn change(&self) {
        let connection = self.connection();
        let connection = connection.as_ref().unwrap();
        connection.execute("UPDATE t SET body = ? WHERE id = 2000", [vec![5_u8; 3000]]).unwrap();
    }

    fn assert_restored(&self, target: &Path) {
        let restored = Connection::open(target.join("shop.db")).unwrap();
        assert_eq!(content(&restored), content(self.connection().as_ref().unwrap()));
    }

    fn close(&self) {
        *self.connection() = None;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o000)).unwrap();
    }

    fn remove(&self) {
        *self.connection() = None;
        fs::remove_file(&self.path).unwrap();
    }
}

fn full() -> BackupOptions {
    BackupOptions { type_: SnapshotType::Full, ..BackupOptions::default() }
}

fn assert_restores(repo: &Repository, snapshot: &Snapshot, subject: &impl Subject) {
    let (_dir, base) = folder();
    restore(repo, snapshot, &base.join("restored"));
    subject.assert_restored(&base.join("restored"));
}

fn what_is_backed_up_comes_back<S: Subject>() {
    let (_dir, base) = folder();
    let (subject, repo) = (S::new(&base), repository());
    let source = subject.source();
    let bad: Vec<_> = source.check().into_iter().filter(|item| !item.ok).collect();
    assert!(bad.is_empty(), "{bad:?}");
    let snapshot = source.backup(&repo, &full()).unwrap();
    assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
    assert_eq!(snapshot.source, source.name());
    assert_eq!(snapshot.kind, source.kind());
    assert_eq!(repo.snapshots().unwrap().len(), 1);
    assert_restores(&repo, &snapshot, &subject);
}

fn a_second_backup_of_the_same_stores_nothing<S: Subject>() {
    let (_dir, base) = folder();
    let (subject, repo) = (S::new(&base), repository());
    let source = subject.source();
    let first = source.backup(&repo, &full()).unwrap();
    for options in [after(&first), full()] {
        let again = source.backup(&repo, &options).unwrap();
        // But for a node of the tree: other tests change the times of the folders above.
        assert!(again.stats.new_chunks <= 1, "{:?}", again.stats);
        assert!(again.stats.new_bytes < 64 << 10, "{:?}", again.stats);
        assert_eq!(again.stats.bytes, first.stats.bytes);
        assert_restores(&repo, &again, &subject);
    }
}

fn a_change_stores_only_the_change<S: Subject>() {
    let (_dir, base) = folder();
    let (subject, repo) = (S::new(&base), repository());
    let source = subject.source();
    let first = source.backup(&repo, &full()).unwrap();
    subject.change();
    let second = source.backup(&repo, &after(&first)).unwrap();
    assert_eq!(second.type_, SnapshotType::Incremental);
    assert!(second.stats.new_bytes > 0);
    assert!(second.stats.new_bytes < first.stats.bytes / 3, "{:?}", second.stats);
    assert_restores(&repo, &second, &subject);
}

fn what_cannot_be_read_is_said<S: Subject>() {
    let (_dir, base) = folder();
    fs::set_permissions(&base, fs::Permissions::from_mode(0o755)).unwrap();
    let (subject, repo) = (S::new(&base), repository());
    let source = subject.source();
    subject.close();
    match unprivileged(|| source.backup(&repo, &full())) {
        // A part is missing, and listed.
        Ok(snapshot) => {
            assert_eq!(snapshot.problems.len(), 1, "{:?}", snapshot.problems);
            assert!(snapshot.problems[0].what.contains("denied"), "{:?}", snapshot.problems);
        }
        // Nothing can be had.
        Err(error) => {
            assert_eq!(error.kind(), RepoErrorKind::Io, "{error}");
            assert!(error.hint().is_some(), "{error}");
            assert!(repo.snapshots().unwrap().is_empty());
            assert!(unprivileged(|| source.check()).iter().any(|item| !item.ok));
        }
    }
}

fn what_is_not_there_is_an_error_that_says_so<S: Subject>() {
    let (_dir, base) = folder();
    let (subject, repo) = (S::new(&base), repository());
    let source = subject.source();
    source.backup(&repo, &full()).unwrap();
    subject.remove();
    let error = source.backup(&repo, &BackupOptions::default()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Io, "{error}");
    assert!(error.hint().is_some(), "{error}");
    assert!(error.to_string().contains(base.to_str().unwrap()), "{error}");
    assert_eq!(repo.snapshots().unwrap().len(), 1);
    assert!(source.check().iter().any(|item| !item.ok && item.hint.is_some()));
}

fn a_cancelled_backup_leaves_no_snapshot<S: Subject>() {
    let (_dir, base) = folder();
    let (subject, repo) = (S::new(&base), repository());
    let source = subject.source();
    let options = full();
    options.progress.cancel();
    let error = source.backup(&repo, &options).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Aborted, "{error}");
    assert!(repo.snapshots().unwrap().is_empty());
    // And the next one works.
    let snapshot = source.backup(&repo, &full()).unwrap();
    assert_restores(&repo, &snapshot, &subject);
}

macro_rules! suite {
    ($name:ident, $subject:ty) => {
        mod $name {
            use super::*;

            suite!(@ $subject,
                what_is_backed_up_comes_back,
                a_second_backup_of_the_same_stores_nothing,
                a_change_stores_only_the_change,
                what_cannot_be_read_is_said,
                what_is_not_there_is_an_error_that_says_so,
                a_cancelled_backup_leaves_no_snapshot);
        }
    };
    (@ $subject:ty, $($case:ident),*) => {
        $(#[test] fn $case() { super::$case::<$subject>(); })*
    };
}

suite!(files_source, Tree);
suite!(sqlite_source, Database);
