//! What the tests of all sources share: a repository in memory, restoring, privileges.
#![allow(dead_code)] // each test file uses some of it

use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_repo::{
    Environment, InitOptions, Progress, Repository, RestoreOptions, Secret, Snapshot, Store,
};
use backstay_sources::files::compare::{CompareOptions, compare_trees};
use backstay_sources::{BackupOptions, FilesSource};

pub fn repository() -> Repository {
    let secret = Secret::key_file(vec![7; 32]).unwrap();
    Repository::init(Store::memory(), Environment::system(), &secret, InitOptions::default())
        .unwrap()
}

/// A folder on a disk; its real path.
pub fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().canonicalize().unwrap();
    (dir, path)
}

/// A folder in memory, which is another kind of file system.
pub fn folder_in_memory() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().canonicalize().unwrap();
    (dir, path)
}

pub fn files(paths: &[&Path]) -> FilesSource {
    FilesSource {
        name: "files".into(),
        paths: paths.iter().map(|path| path.to_path_buf()).collect(),
        ..FilesSource::default()
    }
}

/// Options that compare with `parent` as if it had begun a minute later, so that everything up to
/// it counts as having been at rest. For tests that do not want to wait.
pub fn after(parent: &Snapshot) -> BackupOptions {
    let mut parent = parent.clone();
    parent.time += Duration::from_secs(3600);
    BackupOptions { parent: Some(parent), ..BackupOptions::default() }
}

pub fn restore(repo: &Repository, snapshot: &Snapshot, target: &Path) {
    let options = RestoreOptions { sync: false, ..RestoreOptions::new(target) };
    let report = repo.restore(snapshot, options, &Progress::default()).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

/// Restores next to the original, on the same file system, and compares.
pub fn assert_restores(repo: &Repository, snapshot: &Snapshot, original: &Path) {
    let beside = tempfile::tempdir_in(original.parent().unwrap()).unwrap();
    let target = beside.path().join("restored");
    restore(repo, snapshot, &target);
    let restored = target.join(original.strip_prefix("/").unwrap());
    let differences = compare_trees(original, &restored, CompareOptions::default()).unwrap();
    assert!(
        differences.is_empty(),
        "{}",
        differences.iter().take(20).map(|d| format!("{d}\n")).collect::<String>()
    );
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs as a user whom permissions apply to. Threads that are started inside do so as well.
pub fn unprivileged<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if !is_root() {
        return work();
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Of this thread only, and of those it starts.
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// Numbers that follow from a seed (SplitMix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}
