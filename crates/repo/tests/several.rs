//! One pass over a source into several repositories, each of which stands and falls alone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use backstay_repo::*;
use backstay_store::{Fault, Faulty, Memory, Operation, Rule, When};
use support::*;

/// Content that counts how often it is opened, and how much of it is read.
struct Counted {
    inner: Bytes,
    opened: Arc<AtomicU64>,
    read: Arc<AtomicU64>,
}

impl Content for Counted {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        self.opened.fetch_add(1, SeqCst);
        Ok(self)
    }
}

impl Reader for Counted {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read_at(offset, buffer)?;
        self.read.fetch_add(read as u64, SeqCst);
        Ok(read)
    }

    fn data_ranges(&self) -> Vec<Range<u64>> {
        self.inner.data_ranges()
    }
}

fn all(
    session: Session,
    files: &Files,
    counts: &(Arc<AtomicU64>, Arc<AtomicU64>),
) -> Vec<Result<Snapshot>> {
    let mut tree = session.tree(Order::Any);
    for (path, (chunking, bytes)) in files {
        let inner = Bytes { bytes: bytes.clone(), ranges: None };
        let content = Counted { inner, opened: counts.0.clone(), read: counts.1.clone() };
        tree.file(file(path, bytes.len()), Box::new(content), *chunking).unwrap();
    }
    let root = tree.finish().unwrap();
    session.commit_all(root, serde_json::Value::Null)
}

fn targets(repositories: &[Repository]) -> Vec<(Repository, SessionOptions)> {
    repositories.iter().map(|repo| (repo.clone(), options("test"))).collect()
}

fn assert_whole(repository: &Repository, snapshot: &Snapshot, files: &Files) {
    let folder = tempfile::tempdir().unwrap();
    let report = restore(repository, snapshot, folder.path());
    assert_eq!(report.problems, []);
    assert_restored(files, folder.path());
    let verified = verify(repository, Level::Thorough);
    assert_eq!(verified.damages, []);
}

#[test]
fn what_is_read_once_is_the_same_as_what_is_backed_up_to_each() {
    let repositories: Vec<Repository> = (0..2).map(|_| repository(&Store::memory())).collect();
    let files = mixture(7);
    let counts = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
    let session = Session::begin(targets(&repositories)).unwrap();
    let made: Vec<Snapshot> =
        all(session, &files, &counts).into_iter().map(Result::unwrap).collect();
    let bytes: usize = files.values().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(counts.0.load(SeqCst), files.len() as u64, "each file is opened once");
    assert_eq!(counts.1.load(SeqCst), bytes as u64, "each byte is read once");
    for (repository, snapshot) in repositories.iter().zip(&made) {
        assert_whole(repository, snapshot, &files);
        assert_eq!(snapshot.moment(), made[0].moment());
        assert_eq!(snapshot.time, made[0].time);
        assert_eq!(snapshot.stats.bytes_read, bytes as u64);
        // Alone, it would have been stored just the same: nothing is new.
        let again = backup(repository, &files).unwrap();
        assert_eq!((again.root, again.stats.new_chunks), (snapshot.root, 0));
        assert_eq!(repository.find_snapshot(&snapshot.id).unwrap().group, snapshot.group);
        assert_ne!(again.moment(), snapshot.moment());
    }
    assert_ne!(made[0].id, made[1].id);
    assert_ne!(made[0].root, made[1].root, "each repository has its own keys");
}

#[test]
fn a_lane_that_fails_at_any_step_costs_the_others_nothing() {
    let mut files = mixture(8);
    files.insert("d/noise".into(), (Chunking::Grid, Arc::new(noise(40 << 20, 8))));
    files.remove("c/regions");
    let broken = |operation, prefix: &str, nth| {
        let faulty = Faulty::new(Memory::new(), Environment::system(), 1);
        let store = Store::new(faulty.clone());
        let repository = repository(&store);
        let fault = Fault::Fail(backstay_store::ErrorKind::Denied);
        faulty.add(Rule::new(operation, When::Nth(nth), fault).below(prefix));
        repository
    };
    let steps = [
        (Operation::Create, "sessions/", 1),
        (Operation::Create, "packs/", 1),
        (Operation::Create, "packs/", 3),
        (Operation::Create, "index/", 1),
        (Operation::Create, "snapshots/", 1),
    ];
    for (operation, prefix, nth) in steps {
        let repositories = [
            repository(&Store::memory()),
            broken(operation, prefix, nth),
            repository(&Store::memory()),
        ];
        let targets = targets(&repositories);
        let fates: Vec<Fate> = targets.iter().map(|(_, options)| options.fate.clone()).collect();
        let session = Session::begin(targets).unwrap();
        let counts = Default::default();
        let made = all(session, &files, &counts);
        for at in [0, 2] {
            let snapshot = made[at].as_ref().unwrap_or_else(|e| panic!("{prefix}: {e}"));
            assert_whole(&repositories[at], snapshot, &files);
            assert!(fates[at].get().is_none());
        }
        let error = made[1].as_ref().unwrap_err();
        assert!(error.to_string().contains(prefix), "{prefix}: {error}");
        assert!(fates[1].get().is_some(), "{prefix}");
        assert!(repositories[1].snapshots().unwrap().is_empty());
    }
}

#[test]
fn without_a_lane_left_it_fails_and_each_fate_says_why() {
    let mut files = mixture(9);
    files.remove("c/regions");
    let mut repositories = Vec::new();
    for _ in 0..2 {
        let faulty = Faulty::new(Memory::new(), Environment::system(), 1);
        repositories.push(repository(&Store::new(faulty.clone())));
        let fault = Fault::Fail(backstay_store::ErrorKind::Denied);
        faulty.add(Rule::new(Operation::Create, When::Always, fault).below("packs/"));
    }
    let targets = targets(&repositories);
    let fates: Vec<Fate> = targets.iter().map(|(_, options)| options.fate.clone()).collect();
    let session = Session::begin(targets).unwrap();
    let mut tree = session.tree(Order::Any);
    for (path, (chunking, bytes)) in &files {
        let content = Bytes { bytes: bytes.clone(), ranges: None };
        if tree.file(file(path, bytes.len()), Box::new(content), *chunking).is_err() {
            break;
        }
    }
    let made = tree.finish().map(|root| session.commit_all(root, serde_json::Value::Null));
    assert!(made.is_err() || made.unwrap().iter().all(Result::is_err));
    for fate in fates {
        assert!(fate.get().unwrap().to_string().contains("packs/"));
    }
}

/// One lane has some of the files from before, the other wants all of them.
#[test]
fn a_file_is_read_for_those_who_want_it() {
    let repositories = [repository(&Store::memory()), repository(&Store::memory())];
    let mut files = mixture(10);
    files.remove("c/regions");
    let first = backup(&repositories[0], &files).unwrap();
    let before: Vec<Entry> =
        repositories[0].tree(&first).unwrap().iter().map(Result::unwrap).collect();
    let session = Session::begin(targets(&repositories)).unwrap();
    let mut tree = session.tree(Order::Any);
    for (number, (path, (chunking, bytes))) in files.iter().enumerate() {
        let old = before.iter().find(|entry| entry.path == path.as_bytes()).unwrap().clone();
        let known = vec![Some(old).filter(|_| number % 3 > 0), None];
        let content =
            || -> Box<dyn Content> { Box::new(Bytes { bytes: bytes.clone(), ranges: None }) };
        tree.file_unless_known(file(path, bytes.len()), content, *chunking, known).unwrap();
    }
    let root = tree.finish().unwrap();
    let made = session.commit_all(root, serde_json::Value::Null);
    for (repository, snapshot) in repositories.iter().zip(made) {
        assert_whole(repository, &snapshot.unwrap(), &files);
    }
}
