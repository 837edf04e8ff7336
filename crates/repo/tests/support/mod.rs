//! Sources made of memory, for tests of the engine.
#![allow(dead_code)] // each test file uses its own part

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use backstay_repo::*;

pub fn key() -> Secret {
    Secret::key_file([7; 32]).unwrap()
}

pub fn repository(store: &Store) -> Repository {
    Repository::init(store.clone(), Environment::system(), &key(), InitOptions::default()).unwrap()
}

pub fn open(store: &Store) -> Repository {
    Repository::open(store.clone(), Environment::system(), &key(), OpenOptions::default()).unwrap()
}

/// Bytes that neither compress nor repeat.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut data = vec![0; length];
    Environment::seeded(seed).random.fill(&mut data);
    data
}

/// Bytes that compress.
pub fn text(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut data = Vec::with_capacity(length + 16);
    while data.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        data.extend_from_slice(format!("row {} of {};", state >> 50, seed).as_bytes());
    }
    data.truncate(length);
    data
}

pub struct Bytes {
    pub bytes: Arc<Vec<u8>>,
    pub ranges: Option<Vec<Range<u64>>>,
}

impl Content for Bytes {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        Ok(self)
    }
}

impl Reader for Bytes {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn data_ranges(&self) -> Vec<Range<u64>> {
        self.ranges.clone().unwrap_or_else(|| std::iter::once(0..u64::MAX).collect())
    }
}

pub fn file(path: &str, size: usize) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        meta: Metadata {
            mode: 0o640,
            mtime: Time { seconds: 1_700_000_000, nanos: 123_456_789 },
            ..Metadata::default()
        },
        kind: EntryKind::File(FileContent { size: size as u64, body: Body::Inline(Vec::new()) }),
    }
}

pub type Files = BTreeMap<String, (Chunking, Arc<Vec<u8>>)>;

pub fn files(list: &[(&str, Chunking, Vec<u8>)]) -> Files {
    list.iter().map(|(p, c, b)| ((*p).to_owned(), (*c, Arc::new(b.clone())))).collect()
}

/// A bit of everything: inline, grouped, chunked, grid of one and of several regions.
pub fn mixture(seed: u64) -> Files {
    use Chunking::{ContentDefined as C, Grid as G};
    let mut all = files(&[
        ("a/empty", C, vec![]),
        ("a/tiny", C, text(100, seed)),
        ("a/inline", C, noise(4096, seed + 1)),
        ("a/one-more", C, text(4097, seed + 2)),
        ("a/grouped", C, text(65_536, seed + 3)),
        ("a/chunked", C, text(65_537, seed + 4)),
        ("b/large", C, noise(9 << 20, seed + 5)),
        ("b/text", C, text(20 << 20, seed + 6)),
        ("c/page", G, text(8192, seed + 7)),
        ("c/cells", G, text((3 << 20) + 8192, seed + 8)),
        ("c/odd", G, text((1 << 20) + 5, seed + 9)),
        ("c/zeros", G, vec![0; 2 << 20]),
        (
            "c/regions",
            G,
            [text(70 << 20, seed + 10), vec![0; 5 << 20], noise(1 << 20, seed)].concat(),
        ),
    ]);
    for n in 0..300 {
        all.insert(format!("small/{n:04}"), (C, Arc::new(text(n * 97, seed + n as u64))));
    }
    all
}

pub fn options(source: &str) -> SessionOptions {
    SessionOptions::new(source, SourceKind::Files, SnapshotType::Full)
}

pub fn backup(repository: &Repository, files: &Files) -> Result<Snapshot, RepoError> {
    backup_as(repository, files, options("test"))
}

pub fn backup_as(
    repository: &Repository,
    files: &Files,
    options: SessionOptions,
) -> Result<Snapshot, RepoError> {
    let session = repository.begin(options)?;
    let mut tree = session.tree(Order::Any);
    for (path, (chunking, bytes)) in files {
        let content = Bytes { bytes: bytes.clone(), ranges: None };
        tree.file(file(path, bytes.len()), Box::new(content), *chunking)?;
    }
    let root = tree.finish()?;
    session.commit(root, serde_json::Value::Null)
}

pub fn restore(repository: &Repository, snapshot: &Snapshot, to: &Path) -> RestoreReport {
    repository.restore(snapshot, RestoreOptions::new(to), &Progress::default()).unwrap()
}

pub fn assert_restored(files: &Files, to: &Path) {
    for (path, (_, bytes)) in files {
        let found = std::fs::read(to.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(
            found == **bytes,
            "{path} differs ({} bytes, {} expected)",
            found.len(),
            bytes.len()
        );
    }
}

pub fn verify(repository: &Repository, level: Level) -> VerifyReport {
    let options = VerifyOptions { level, ..VerifyOptions::default() };
    repository.verify(options, &Progress::default()).unwrap()
}
