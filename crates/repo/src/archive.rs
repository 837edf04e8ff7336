//! The archive: files of a database's log, each an object of its own.
//!
//! `wal/<system id>/<timeline>/<log>/<name>` for segments and what hangs on them,
//! `wal/<system id>/<timeline>/<name>` for timeline histories. Pieces of a segment that is still being
//! written are files as well (slices.rs).
//!
//! ```text
//! header (160 bytes, crypto.rs, class 4)
//! summary   sealed under the index key: size (8) ‖ keyed BLAKE3 of the content (32) ‖
//!           blocks (4) ‖ size of the object (4)                            = 48 + 16 bytes
//! table     sealed: length of each block with its tag (4 each)
//! blocks    sealed records (codec.rs) of 1 MiB of content each
//! ```
//!
//! Every seal is bound to the object's key in the store, so a file cannot be passed off as another.
//! The summary has a key of its own, so that a host that may only write can still tell whether what
//! it is about to push is there already; it has the size of the object, so that one that was cut
//! short is not taken for one that is there.

mod blocks;
pub(crate) mod slices;

use std::time::SystemTime;

use backstay_store::failpoint;

use crate::codec::{Codec, MAX_CHUNK};
use crate::crypto::{Class, HEADER, PackKey, TAG, equal};
use crate::id::hex;
use crate::layout::WAL;
use crate::repository::Repository;
use crate::{Compression, Reader, RepoError, RepoErrorKind, Result};
use blocks::{Blocks, panicked, threads};

const BLOCK: usize = 1 << 20;
const SUMMARY: usize = 48 + TAG;
/// PostgreSQL's largest segment. Bytes.
const MAX_SIZE: u64 = 1 << 30;

const SUMMARY_KIND: u8 = 1;
const TABLE_KIND: u8 = 2;
const BLOCK_KIND: u8 = 3;

/// What a push found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It is durable now and takes `stored` bytes.
    New { stored: u64 },
    /// The same content was there already.
    Same,
}

/// A file of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedFile {
    pub name: String,
    /// Bytes in the store.
    pub stored: u64,
    pub modified: Option<SystemTime>,
}

/// What a file of the archive holds, as told without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Summary {
    size: u64,
    hash: [u8; 32],
    blocks: u32,
    /// Size of the object. Bytes.
    stored: u32,
}

/// The continuous log of one database cluster.
#[derive(Clone, Debug)]
pub struct Archive {
    repository: Repository,
    system_id: u64,
    compression: Compression,
}

impl Archive {
    pub(crate) fn new(repository: Repository, system_id: u64) -> Self {
        Self { repository, system_id, compression: Compression::default() }
    }

    #[must_use]
    pub fn with_compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    pub(crate) fn repository(&self) -> &Repository {
        &self.repository
    }

    pub fn system_id(&self) -> u64 {
        self.system_id
    }

    pub(crate) fn key(&self, name: &str) -> Result<String> {
        object_key(self.system_id, name).ok_or_else(|| {
            RepoError::new(
                RepoErrorKind::Usage,
                format!("{name:?} is no name of a WAL segment, timeline history or backup history"),
            )
        })
    }

    /// Stores a file; durable when this returns.
    ///
    /// Fails with [`RepoErrorKind::Conflict`] when other content is stored under that name.
    pub fn push(&self, name: &str, content: &[u8]) -> Result<Pushed> {
        self.push_from(name, &content)
    }

    /// The same, for content that is read block by block and never in memory as a whole.
    pub fn push_from(&self, name: &str, from: &dyn Reader) -> Result<Pushed> {
        let mut pushed = push_to_all(std::slice::from_ref(self), name, from, false);
        pushed.pop().unwrap_or_else(|| Err(panicked()))
    }

    fn may_push(&self, name: &str, size: u64) -> Result<String> {
        self.repository.allow_write()?;
        let key = self.key(name)?;
        if size > MAX_SIZE {
            return Err(RepoError::new(
                RepoErrorKind::Usage,
                format!("{name} has {size} bytes, more than any segment can have"),
            ));
        }
        Ok(key)
    }

    /// Seals and stores what was read.
    fn store(&self, name: &str, size: u64, hash: &[u8; 32], records: &[Vec<u8>]) -> Result<Pushed> {
        let key = self.key(name)?;
        let object = self.seal(&key, size, hash, records)?;
        failpoint::hit("archive-sealed");
        let stored = object.len() as u64;
        match self.repository.store().create(&key, object.into()) {
            Ok(()) => {
                failpoint::hit("archive-created");
                Ok(Pushed::New { stored })
            }
            Err(error) if error.is_already_exists() => {
                let there = self.summary(&key)?;
                if equal(&there.hash, hash) {
                    return Ok(Pushed::Same);
                }
                Err(RepoError::new(
                    RepoErrorKind::Conflict,
                    format!(
                        "the archive holds another {name}: {} bytes with hash {}, not {} bytes with \
                         hash {}",
                        there.size,
                        hex(&there.hash[..8]),
                        size,
                        hex(&hash[..8]),
                    ),
                )
                .with_hint(
                    "two clusters push to one archive, or this one was restored and took the same \
                     timeline again; nothing was overwritten",
                ))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The object of a file, and the hash of its content.
    pub(crate) fn sealed(
        &self,
        name: &str,
        key: &str,
        from: &dyn Reader,
    ) -> Result<(Vec<u8>, [u8; 32])> {
        let key_of_hash = self.repository.keys().data_id;
        let blocks = Blocks::read(name, from, &[key_of_hash], &[self.compression])?;
        let hash = *blocks.hashes.first().ok_or_else(panicked)?;
        let object = self.seal(key, from.size(), &hash, blocks.records(self.compression))?;
        Ok((object, hash))
    }

    /// The content of a file; `None` only when the store said that it is not there.
    pub fn fetch(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let key = self.key(name)?;
        let object = match self.repository.store().read(&key) {
            Ok(object) => object,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.open(&key, &object).map(Some)
    }

    /// Whether a file is there, without reading it.
    pub fn contains(&self, name: &str) -> Result<bool> {
        match self.repository.store().head(&self.key(name)?) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The keyed hash of a file's content as the archive has it; `None` when it is not there.
    pub fn stored_hash(&self, name: &str) -> Result<Option<[u8; 32]>> {
        if !self.contains(name)? {
            return Ok(None);
        }
        self.summary(&self.key(name)?).map(|summary| Some(summary.hash))
    }

    /// The keyed hash that [`stored_hash`](Self::stored_hash) gives for this content.
    pub fn hash(&self, content: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.repository.keys().data_id);
        hasher.update(content);
        *hasher.finalize().as_bytes()
    }

    /// The same, of content that is read block by block.
    pub fn hash_from(&self, name: &str, from: &dyn Reader) -> Result<[u8; 32]> {
        let mut hashes = blocks::hash(name, from, &[self.repository.keys().data_id])?;
        hashes.pop().ok_or_else(panicked)
    }

    /// Every file, or those of one timeline, sorted by key.
    pub fn list(&self, timeline: Option<u32>) -> Result<Vec<ArchivedFile>> {
        let mut prefix = format!("{WAL}{}/", self.system_id);
        if let Some(timeline) = timeline {
            prefix.push_str(&format!("{timeline:08X}/"));
        }
        let mut files = Vec::new();
        for object in self.repository.store().list(&prefix)? {
            let Some(name) = object.key.rsplit('/').next() else { continue };
            // Whatever else lies there is not ours.
            if object_key(self.system_id, name).as_deref() == Some(&object.key) {
                files.push(ArchivedFile {
                    name: name.to_owned(),
                    stored: object.size,
                    modified: object.modified,
                });
            }
        }
        Ok(files)
    }

    /// Removes the files that `choose` names, given all files and every snapshot there is; with
    /// `dry_run` only says which. While a session is at work nothing goes.
    ///
    /// # Errors
    /// What `choose` answers; and damage of a snapshot, since what cannot be seen might be needed.
    pub fn expire<E: From<RepoError>>(
        &self,
        dry_run: bool,
        choose: impl FnOnce(&[ArchivedFile], &[crate::Snapshot]) -> Result<Vec<String>, E>,
        progress: &std::sync::Arc<crate::Progress>,
    ) -> Result<crate::Expired, E> {
        crate::maintenance::expire(self, dry_run, choose, progress)
    }

    fn seal(&self, key: &str, size: u64, hash: &[u8; 32], records: &[Vec<u8>]) -> Result<Vec<u8>> {
        let keys = self.repository.keys();
        let env = self.repository.environment();
        let (object_key, header) = keys.new_session(env).object(env.random(), Class::Archived);
        let (summary_key, _) = keys.index_object(object_key.id(), Class::Archived);
        let table = records.len() * 4 + TAG;
        let total: usize = records.iter().map(|r| r.len() + TAG).sum();
        let mut object = Vec::with_capacity(HEADER + SUMMARY + table + total);
        object.extend_from_slice(&header);
        object.extend_from_slice(&size.to_le_bytes());
        object.extend_from_slice(hash);
        object.extend_from_slice(&(records.len() as u32).to_le_bytes());
        // Of 1 GiB at most, and incompressible content grows by a few bytes a block.
        let stored = HEADER + SUMMARY + table + total;
        object.extend_from_slice(&(stored as u32).to_le_bytes());
        seal_tail(&summary_key, SUMMARY_KIND, key, &mut object, HEADER);
        let start = object.len();
        for record in records {
            object.extend_from_slice(&((record.len() + TAG) as u32).to_le_bytes());
        }
        seal_tail(&object_key, TABLE_KIND, key, &mut object, start);
        for record in records {
            let start = object.len();
            object.extend_from_slice(record);
            seal_tail(&object_key, BLOCK_KIND, key, &mut object, start);
        }
        Ok(object)
    }

    /// An object whose parts say whatever they are told to, for tests of what reads them.
    pub(crate) fn forge(
        &self,
        key: &str,
        summary: &[u8],
        table: &[u8],
        blocks: &[&[u8]],
    ) -> Vec<u8> {
        let keys = self.repository.keys();
        let env = self.repository.environment();
        let (object_key, header) = keys.new_session(env).object(env.random(), Class::Archived);
        let (summary_key, _) = keys.index_object(object_key.id(), Class::Archived);
        let mut object = header.to_vec();
        let parts = std::iter::once((SUMMARY_KIND, summary))
            .chain([(TABLE_KIND, table)])
            .chain(blocks.iter().map(|block| (BLOCK_KIND, *block)));
        for (kind, plain) in parts {
            let start = object.len();
            object.extend_from_slice(plain);
            let sealer = if kind == SUMMARY_KIND { &summary_key } else { &object_key };
            seal_tail(sealer, kind, key, &mut object, start);
        }
        object
    }

    fn summary(&self, key: &str) -> Result<Summary> {
        let store = self.repository.store();
        let head = store.read_range(key, 0..(HEADER + SUMMARY) as u64)?;
        let summary = self.open_summary(key, &head)?;
        if store.head(key)?.size != u64::from(summary.stored) {
            return Err(RepoError::damaged(key, "it is cut short"));
        }
        Ok(summary)
    }

    fn open_summary(&self, key: &str, object: &[u8]) -> Result<Summary> {
        let damaged = || RepoError::damaged(key, "its summary does not open");
        let mut id = [0; 16];
        id.copy_from_slice(object.get(16..32).ok_or_else(damaged)?);
        let (summary_key, _) = self.repository.keys().index_object(id, Class::Archived);
        let mut sealed = object.get(HEADER..HEADER + SUMMARY).ok_or_else(damaged)?.to_vec();
        let plain = summary_key
            .open(SUMMARY_KIND, HEADER as u64, key.as_bytes(), &mut sealed)
            .ok_or_else(damaged)?;
        let mut summary = Summary { size: 0, hash: [0; 32], blocks: 0, stored: 0 };
        let (size, rest) = plain.split_first_chunk().ok_or_else(damaged)?;
        let (hash, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
        let (blocks, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
        let (stored, _) = rest.split_first_chunk().ok_or_else(damaged)?;
        summary.size = u64::from_le_bytes(*size);
        summary.hash = *hash;
        summary.blocks = u32::from_le_bytes(*blocks);
        summary.stored = u32::from_le_bytes(*stored);
        if summary.size > MAX_SIZE || u64::from(summary.blocks) != blocks_of(summary.size) {
            return Err(damaged());
        }
        Ok(summary)
    }

    pub(crate) fn open(&self, key: &str, object: &[u8]) -> Result<Vec<u8>> {
        let damaged = |what: &str| RepoError::damaged(key, what);
        let object_key = self.repository.keys().open(key, Class::Archived, object)?;
        let summary = self.open_summary(key, object)?;
        let start = HEADER + SUMMARY;
        let table_length = summary.blocks as usize * 4 + TAG;
        let mut table = object
            .get(start..start + table_length)
            .ok_or_else(|| damaged("it is cut short"))?
            .to_vec();
        let table = object_key
            .open(TABLE_KIND, start as u64, key.as_bytes(), &mut table)
            .ok_or_else(|| damaged("its table of blocks does not open"))?;
        let mut at = start + table_length;
        let mut blocks = Vec::with_capacity(summary.blocks as usize);
        for length in table.chunks_exact(4) {
            let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
            if length > MAX_CHUNK {
                return Err(damaged("a block is longer than any can be"));
            }
            let block = object.get(at..at + length).ok_or_else(|| damaged("it is cut short"))?;
            blocks.push((at as u64, block));
            at += length;
        }
        if at != object.len() {
            return Err(damaged("there is something behind its last block"));
        }
        let mut content = vec![0; summary.size as usize];
        open_blocks(&object_key, key, &blocks, &mut content)?;
        if !equal(&self.hash(&content), &summary.hash) {
            return Err(damaged("its content has another hash"));
        }
        Ok(content)
    }
}

/// Stores a file in the archives of several repositories: it is read once, and hashed and sealed for
/// each; what was compressed for one serves all that compress alike. What came of it in each, in their
/// order; durable where it is [`Ok`].
///
/// With `look_first` a file that is there already is told by its hash, without being compressed.
pub fn push_to_all(
    archives: &[Archive],
    name: &str,
    from: &dyn Reader,
    look_first: bool,
) -> Vec<Result<Pushed>> {
    let size = from.size();
    let looked = at_once(archives, |archive| {
        archive.may_push(name, size)?;
        if look_first { archive.stored_hash(name) } else { Ok(None) }
    });
    let keys: Vec<[u8; 32]> = archives.iter().map(|a| a.repository.keys().data_id).collect();
    // Those that have nothing of that name need it compressed.
    let ways: Vec<Compression> = archives
        .iter()
        .zip(&looked)
        .filter(|(_, there)| matches!(there, Ok(None)))
        .map(|(archive, _)| archive.compression)
        .collect();
    let blocks = match Blocks::read(name, from, &keys, &ways) {
        Ok(blocks) => blocks,
        Err(error) => return archives.iter().map(|_| Err(error.repeat())).collect(),
    };
    let work: Vec<_> = archives.iter().zip(&blocks.hashes).zip(looked).collect();
    at_once(&work, |((archive, hash), there)| match there {
        Err(error) => Err(error.repeat()),
        Ok(Some(there)) if equal(there, *hash) => Ok(Pushed::Same),
        Ok(None) => archive.store(name, size, hash, blocks.records(archive.compression)),
        // Another content has that name; what says so needs no content.
        Ok(Some(_)) => archive.push_from(name, from),
    })
}

/// Does the same for all, at the same time.
fn at_once<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Vec<Result<R>> {
    if let [only] = all {
        return vec![work(only)];
    }
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|one| scope.spawn(move || work(one))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|done| done.unwrap_or_else(|_| Err(panicked()))).collect()
    })
}

fn blocks_of(size: u64) -> u64 {
    size.div_ceil(BLOCK as u64)
}

fn seal_tail(key: &PackKey, kind: u8, name: &str, object: &mut Vec<u8>, start: usize) {
    let tag = key.seal(kind, start as u64, name.as_bytes(), &mut object[start..]);
    object.extend_from_slice(&tag);
}

fn open_blocks(
    key: &PackKey,
    name: &str,
    blocks: &[(u64, &[u8])],
    content: &mut [u8],
) -> Result<()> {
    let share = blocks.len().div_ceil(threads(blocks.len())).max(1);
    let open = |part: &[(u64, &[u8])], out: &mut [u8]| -> Result<()> {
        let mut codec = Codec::new(Compression::None);
        let (mut record, mut block) = (Vec::new(), Vec::new());
        for ((at, sealed), out) in part.iter().zip(out.chunks_mut(BLOCK)) {
            record.clear();
            record.extend_from_slice(sealed);
            let plain = key.open(BLOCK_KIND, *at, name.as_bytes(), &mut record);
            plain
                .and_then(|plain| codec.decode(plain, &mut block))
                .filter(|()| block.len() == out.len())
                .ok_or_else(|| {
                    RepoError::damaged(name, format!("the block at byte {at} does not open"))
                })?;
            out.copy_from_slice(&block);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let mut parts = blocks.chunks(share).zip(content.chunks_mut(share * BLOCK));
        let first = parts.next();
        let others: Vec<_> =
            parts.map(|(part, out)| scope.spawn(move || open(part, out))).collect();
        if let Some((part, out)) = first {
            open(part, out)?;
        }
        others.into_iter().try_for_each(|other| other.join().map_err(|_| panicked())?)
    })
}

/// Where a file lies; `None` for a name that no file of an archive has.
fn object_key(system_id: u64, name: &str) -> Option<String> {
    let digits = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    let timeline = name.get(..8).filter(|t| digits(t))?;
    let rest = name.get(8..)?;
    if rest == ".history" {
        return Some(format!("{WAL}{system_id}/{timeline}/{name}"));
    }
    let (log, rest) = (rest.get(..8)?, rest.get(8..)?);
    let (segment, rest) = (rest.get(..8)?, rest.get(8..)?);
    let suffix = rest.is_empty()
        || rest == ".partial"
        || slices::Slice::parse(name).is_some()
        || rest
            .strip_prefix('.')
            .and_then(|rest| rest.strip_suffix(".backup"))
            .is_some_and(|offset| offset.len() == 8 && digits(offset));
    (digits(log) && digits(segment) && suffix)
        .then(|| format!("{WAL}{system_id}/{timeline}/{log}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Environment, InitOptions, Secret, Store};

    fn archive() -> Archive {
        let secret = Secret::key_file([7; 32]).unwrap();
        let env = Environment::seeded(3);
        let repository =
            Repository::init(Store::memory(), env, &secret, InitOptions::default()).unwrap();
        repository.archive(42)
    }

    const NAME: &str = "0000000A000000010000002F";

    #[test]
    fn what_was_pushed_is_fetched() {
        let archive = archive();
        let segment: Vec<u8> = (0..16 << 20_u32).map(|i| (i / 777) as u8).collect();
        for (name, content) in [
            (NAME, &segment[..]),
            ("0000000A.history", b"1\t0/3000000\tno reason\n"),
            ("0000000B.history", b""),
            ("0000000A000000010000002F.00000028.backup", b"START WAL LOCATION"),
            ("0000000A000000010000002F.partial", &segment[..1 << 20]),
            ("0000000A0000000100000030", &segment[..(1 << 20) + 1]),
        ] {
            assert!(matches!(archive.push(name, content).unwrap(), Pushed::New { .. }), "{name}");
            assert_eq!(archive.push(name, content).unwrap(), Pushed::Same);
            assert_eq!(archive.fetch(name).unwrap().as_deref(), Some(content), "{name}");
        }
        assert_eq!(archive.list(None).unwrap().len(), 6);
        assert_eq!(archive.list(Some(11)).unwrap().len(), 1);
        assert_eq!(archive.fetch("0000000C.history").unwrap(), None);
    }

    #[test]
    fn other_content_under_the_same_name_is_refused_with_both_hashes() {
        let archive = archive();
        archive.push(NAME, b"one").unwrap();
        let error = archive.push(NAME, b"two").unwrap_err();
        assert_eq!(error.kind(), RepoErrorKind::Conflict);
        for content in [b"one", b"two"] {
            assert!(error.to_string().contains(&hex(&archive.hash(content)[..8])), "{error}");
        }
        assert_eq!(archive.fetch(NAME).unwrap().as_deref(), Some(&b"one"[..]));
    }

    #[test]
    fn no_altered_cut_or_renamed_file_is_ever_returned() {
        let archive = archive();
        let content: Vec<u8> = (0..3 << 20_u32).map(|i| (i / 100) as u8).collect();
        archive.push(NAME, &content).unwrap();
        let key = archive.key(NAME).unwrap();
        let store = archive.repository.store().clone();
        let object = store.read(&key).unwrap().to_vec();
        let replace = |key: &str, body: Vec<u8>| {
            store.delete(key).unwrap();
            store.create(key, body.into()).unwrap();
        };
        for at in (0..object.len()).step_by(object.len() / 200) {
            let mut altered = object.clone();
            altered[at] ^= 4;
            replace(&key, altered);
            // Some bytes of the header are without meaning; none changes what is returned.
            match archive.fetch(NAME) {
                Ok(found) => assert_eq!(found.as_deref(), Some(&content[..]), "byte {at}"),
                Err(error) => {
                    assert!(matches!(
                        error.kind(),
                        RepoErrorKind::Damaged | RepoErrorKind::Unsupported
                    ));
                    assert!(error.to_string().contains(&key), "{error}");
                }
            }
        }
        for length in [0, 1, HEADER, HEADER + SUMMARY, object.len() / 2, object.len() - 1] {
            replace(&key, object[..length].to_vec());
            assert_eq!(archive.fetch(NAME).unwrap_err().kind(), RepoErrorKind::Damaged, "{length}");
        }
        let other = "0000000A0000000100000030";
        replace(&archive.key(other).unwrap(), object);
        assert_eq!(archive.fetch(other).unwrap_err().kind(), RepoErrorKind::Damaged);
    }

    #[test]
    fn names_are_read_strictly() {
        for name in [
            "",
            "0000000a.history",
            "0000000A",
            "../../x",
            "0000000A000000010000002F.tmp",
            "0000000A000000010000002F.0000028.backup",
            "0000000A000000010000002F/..",
            "ÄÄÄÄÄÄÄÄ",
        ] {
            assert_eq!(object_key(1, name), None, "{name}");
        }
    }
}
