//! Segments fetched ahead of recovery, waiting in a local folder.
//!
//! ```text
//! <spool>/key                                            32 random bytes, for its owner only
//! <spool>/<system identifier>/<segment name>.<proof>     a whole segment
//! <spool>/<system identifier>/tmp.<process>.<number>     one that is being written, locked
//! ```
//!
//! The proof is a hash under that key, over the cluster, where it came from, the name and the content:
//! a spooled file that was damaged, cut short, renamed or put there by somebody else is not taken. The
//! key is the spool's own and not the repository's, so that what waits here is delivered without
//! opening a repository. A folder that others can write to is not used: they could put a key of their own
//! there. The folder can be deleted at any moment; at worst a segment is fetched again. It holds
//! what recovery may ask for next, no more than [`LIMIT`], and processes that share it do not harm
//! one another.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use backstay_repo::Repository;

use super::fetch::ask_one;
use super::{SegmentName, SegmentSize, WalName, check_segment};
use crate::only_own;

/// What the spool of one cluster may take. Bytes.
pub const LIMIT: u64 = 1 << 30;
/// Segments fetched at once.
const THREADS: usize = 4;
/// What those may hold in memory together. Bytes.
const MEMORY: u64 = 256 << 20;

static COUNTER: AtomicU64 = AtomicU64::new(0);

pub(super) struct Spool {
    /// Of all clusters.
    root: PathBuf,
    folder: PathBuf,
    system_identifier: u64,
    origin: String,
}

impl Spool {
    /// `origin` says which repository the segments are of.
    pub(super) fn new(path: &Path, system_identifier: u64, origin: &str) -> Self {
        let (root, origin) = (path.to_path_buf(), origin.to_owned());
        let folder = path.join(system_identifier.to_string());
        Self { root, folder, system_identifier, origin }
    }

    /// Whether nobody else puts anything here; where it cannot be said, it is not used.
    fn is_own(&self) -> bool {
        let own = [&self.root, &self.folder].into_iter().try_for_each(|f| only_own(f));
        if let Err(error) = &own {
            let hint = error.hint().unwrap_or_default();
            tracing::warn!(%error, hint, "no segments wait in a spool that others can change");
        }
        own.is_ok()
    }

    /// The segment, if a sound copy of it waits here.
    pub(super) fn take(&self, name: SegmentName) -> Option<Vec<u8>> {
        let waiting = self.waiting().into_iter().filter(|(there, _)| *there == name);
        let waiting: Vec<PathBuf> = waiting.map(|(_, path)| path).collect();
        if waiting.is_empty() || !self.is_own() {
            return None;
        }
        let key = self.key()?;
        waiting.into_iter().find_map(|path| {
            let content = read(&path)?;
            let proof = path.extension()?.to_str()?;
            let sound = check_segment(name, &content, Some(self.system_identifier)).is_ok()
                && self.proof(&key, name, &content) == proof;
            if !sound {
                // Damaged, or of another repository.
                tracing::warn!(file = %path.display(), "a spooled segment is not used");
                let _ = fs::remove_file(&path);
            }
            sound.then_some(content)
        })
    }

    fn key(&self) -> Option<[u8; 32]> {
        fs::read(self.root.join("key")).ok()?.try_into().ok()
    }

    /// The key, which is made where there is none. Whoever is first has made it.
    fn make_key(&self, random: impl FnOnce() -> [u8; 32]) -> std::io::Result<[u8; 32]> {
        if let Some(key) = self.key() {
            return Ok(key);
        }
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = self.folder.join(format!("tmp.{}.{number}", std::process::id()));
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let _ = file.lock();
        let path = self.root.join("key");
        let made = file.write_all(&random()).and_then(|()| {
            // One that is cut short is none.
            if path.exists() && self.key().is_none() {
                fs::remove_file(&path)?;
            }
            match fs::hard_link(&temporary, &path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            }
        });
        let _ = fs::remove_file(&temporary);
        made?;
        self.key().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    /// Removes what was delivered.
    pub(super) fn remove(&self, name: SegmentName) {
        for (there, path) in self.waiting() {
            if there == name {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Fetches up to `count` segments that follow `name` on its timeline, in parallel, until one is
    /// not there; removes what will not be asked for. `size` is that of a segment, or 0 when it is
    /// not known. Answers how many are new.
    pub(super) fn fill(
        &self,
        repositories: &[Repository],
        name: SegmentName,
        size: u64,
        count: usize,
    ) -> usize {
        let folder = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        if let Err(error) = folder {
            tracing::warn!(folder = %self.folder.display(), %error, "nothing is prefetched");
            return 0;
        }
        if !self.is_own() {
            return 0;
        }
        let Some(first) = repositories.first() else { return 0 };
        let key = match self.make_key(|| first.environment().random()) {
            Ok(key) => key,
            Err(error) => {
                tracing::warn!(folder = %self.root.display(), %error, "nothing is prefetched");
                return 0;
            }
        };
        let size = if size == 0 { self.size(repositories, name) } else { SegmentSize::new(size) };
        let Some(size) = size else { return 0 };
        let count = count.min((LIMIT / size.bytes()) as usize);
        let mut wanted = Vec::with_capacity(count);
        let mut next = name;
        while wanted.len() < count
            && let Some(following) = next.next(size)
        {
            wanted.push(following);
            next = following;
        }
        self.clean(&wanted);
        let there: Vec<SegmentName> = self.waiting().into_iter().map(|(name, _)| name).collect();
        wanted.retain(|name| !there.contains(name));

        let threads = (MEMORY / size.bytes()).clamp(1, THREADS as u64) as usize;
        let at = AtomicUsize::new(0);
        let end = AtomicBool::new(false);
        let new = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads.min(wanted.len()) {
                scope.spawn(|| {
                    while !end.load(Ordering::Relaxed)
                        && let Some(&name) = wanted.get(at.fetch_add(1, Ordering::Relaxed))
                    {
                        if self.fetch(repositories, &key, name) {
                            new.fetch_add(1, Ordering::Relaxed);
                        } else {
                            end.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        new.into_inner()
    }

    /// The size of this cluster's segments, from one of them.
    fn size(&self, repositories: &[Repository], name: SegmentName) -> Option<SegmentSize> {
        repositories.iter().find_map(|repository| {
            let content =
                ask_one(repository, WalName::Segment(name), self.system_identifier).ok()??;
            SegmentSize::new(content.len() as u64)
        })
    }

    /// Fetches one segment; false when it could not be had. Whatever the reason, recovery will ask
    /// for it by name and be told.
    fn fetch(&self, repositories: &[Repository], key: &[u8; 32], name: SegmentName) -> bool {
        for repository in repositories {
            match ask_one(repository, WalName::Segment(name), self.system_identifier) {
                Ok(Some(content)) => {
                    let kept = self.keep(key, name, &content);
                    if let Err(error) = &kept {
                        tracing::debug!(segment = %name, %error, "not prefetched");
                    }
                    return kept.is_ok();
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(segment = %name, %error, "not prefetched");
                    return false;
                }
            }
        }
        false
    }

    /// Complete by its rename; not synced, since its proof tells what a crash left of it.
    fn keep(&self, key: &[u8; 32], name: SegmentName, content: &[u8]) -> std::io::Result<()> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = self.folder.join(format!("tmp.{}.{number}", std::process::id()));
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        // The lock says that somebody is at work on it.
        let _ = file.lock();
        let proof = self.proof(key, name, content);
        let written = file
            .write_all(content)
            .and_then(|()| fs::rename(&temporary, self.folder.join(format!("{name}.{proof}"))));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn proof(&self, key: &[u8; 32], name: SegmentName, content: &[u8]) -> String {
        let mut hasher = blake3::Hasher::new_keyed(key);
        let claim = format!("{}\0{name}\0{}\0", self.system_identifier, self.origin);
        hasher.update(b"backstay wal spool 2\0").update(claim.as_bytes()).update(content);
        hasher.finalize().to_hex().to_string()
    }

    /// The segments that wait here.
    fn waiting(&self) -> Vec<(SegmentName, PathBuf)> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let (name, _) = path.file_name()?.to_str()?.split_once('.')?;
                Some((name.parse().ok()?, path))
            })
            .collect()
    }

    /// Removes segments that are not wanted, and what dead processes left half-written.
    fn clean(&self, wanted: &[SegmentName]) {
        for (name, path) in self.waiting() {
            if !wanted.contains(&name) {
                let _ = fs::remove_file(path);
            }
        }
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let temporary = entry.file_name().to_string_lossy().starts_with("tmp.");
            if temporary
                && let Ok(file) = File::open(entry.path())
                && file.try_lock().is_ok()
            {
                // One that was created this instant and is not locked yet may be hit: its writer
                // then finds nothing to rename, and the segment is fetched when it is asked for.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let size = SegmentSize::new(length)?;
    let mut content = Vec::with_capacity(size.bytes() as usize + 1);
    file.take(size.bytes() + 1).read_to_end(&mut content).ok()?;
    Some(content)
}
