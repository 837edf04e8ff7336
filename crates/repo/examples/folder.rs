//! Stores a folder as a grid or as files, restores it, and says how long each step took:
//! `cargo run --release -p backstay-repo --example folder -- FOLDER STORE [grid|files] [sync]`.
//! A store that has a repository already is restored from, and nothing else. Several stores, with
//! commas between them, are written to in one pass; then it ends with the memory that it took.
#![allow(clippy::print_stdout)] // it is a tool for people

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use backstay_repo::*;

struct OnDisk(PathBuf);

struct Opened(File, u64);

impl Content for OnDisk {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        let file = File::open(&self.0)?;
        let size = file.metadata()?.len();
        Ok(Box::new(Opened(file, size)))
    }
}

impl Reader for Opened {
    fn size(&self) -> u64 {
        self.1
    }

    fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len();
        while !buffer.is_empty() {
            let read = self.0.read_at(buffer, offset)?;
            if read == 0 {
                break;
            }
            offset += read as u64;
            buffer = &mut buffer[read..];
        }
        Ok(wanted - buffer.len())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: folder FOLDER STORE [grid|files]");
    let (folder, store) = (next()?, next()?);
    let chunking = match next().as_deref() {
        Ok("files") => Chunking::ContentDefined,
        _ => Chunking::Grid,
    };
    let sync = next().is_ok_and(|word| word == "sync");
    if store.contains(',') {
        return several(&folder, &store, chunking);
    }
    let open = || Store::open(&format!("file://{store}"), &Default::default());
    let secret = Secret::key_file([1; 32])?;
    if std::path::Path::new(&store).join("format").exists() {
        let options = OpenOptions::default();
        let repository = Repository::open(open()?, Environment::system(), &secret, options)?;
        let snapshots = repository.snapshots()?;
        return restore(&repository, snapshots.first().ok_or("no snapshot")?, &store, sync);
    }
    let repository =
        Repository::init(open()?, Environment::system(), &secret, InitOptions::default())?;
    let found = files_of(&folder)?;
    for round in ["first", "second"] {
        let start = Instant::now();
        let options = SessionOptions::new("folder", SourceKind::Files, SnapshotType::Full);
        let session = repository.begin(options)?;
        let mut tree = session.tree(Order::Any);
        hand_in(&mut tree, &folder, &found, chunking)?;
        let root = tree.finish()?;
        println!("{round} {:.2} s read", start.elapsed().as_secs_f64());
        let snapshot = session.commit(root, serde_json::Value::Null)?;
        let stats = snapshot.stats;
        println!(
            "{round} {:.2} s, {:.1} MB in {} files, {:.1} MB stored",
            start.elapsed().as_secs_f64(),
            stats.bytes as f64 / 1e6,
            stats.files,
            stats.stored_bytes as f64 / 1e6
        );
        if round == "second" {
            restore(&repository, &snapshot, &store, sync)?;
        }
    }
    Ok(())
}

/// Files with their sizes.
fn files_of(folder: &str) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                found.push((entry.path(), entry.metadata()?.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn hand_in(
    tree: &mut TreeWriter<'_>,
    folder: &str,
    found: &[(PathBuf, u64)],
    chunking: Chunking,
) -> Result<(), Box<dyn std::error::Error>> {
    for (path, size) in found {
        let relative = path.strip_prefix(folder)?.to_string_lossy().into_owned().into_bytes();
        let kind = EntryKind::File(FileContent { size: *size, body: Body::Inline(Vec::new()) });
        let entry =
            Entry { path: relative, meta: Metadata { mode: 0o600, ..Metadata::default() }, kind };
        tree.file(entry, Box::new(OnDisk(path.clone())), chunking)?;
    }
    Ok(())
}

/// One pass into several repositories.
fn several(
    folder: &str,
    stores: &str,
    chunking: Chunking,
) -> Result<(), Box<dyn std::error::Error>> {
    let secret = Secret::key_file([1; 32])?;
    let mut targets = Vec::new();
    for store in stores.split(',') {
        let store = Store::open(&format!("file://{store}"), &Default::default())?;
        let env = Environment::system();
        let repository = Repository::init(store, env, &secret, InitOptions::default())?;
        let options = SessionOptions::new("folder", SourceKind::Files, SnapshotType::Full);
        targets.push((repository, options));
    }
    let found = files_of(folder)?;
    let start = Instant::now();
    let session = Session::begin(targets)?;
    let mut tree = session.tree(Order::Any);
    hand_in(&mut tree, folder, &found, chunking)?;
    let root = tree.finish()?;
    for made in session.commit_all(root, serde_json::Value::Null) {
        let stats = made?.stats;
        println!(
            "{:.2} s, {:.1} MB read, {:.1} MB stored",
            start.elapsed().as_secs_f64(),
            stats.bytes_read as f64 / 1e6,
            stats.stored_bytes as f64 / 1e6
        );
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!("{peak}");
    Ok(())
}

fn restore(
    repository: &Repository,
    snapshot: &Snapshot,
    store: &str,
    sync: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let to = format!("{store}.restored");
    let start = Instant::now();
    let options = RestoreOptions { sync, ..RestoreOptions::new(&to) };
    let report = repository.restore(snapshot, options, &Progress::default())?;
    println!(
        "restored in {:.2} s, {:.1} MB fetched",
        start.elapsed().as_secs_f64(),
        report.bytes_fetched as f64 / 1e6
    );
    Ok(())
}
