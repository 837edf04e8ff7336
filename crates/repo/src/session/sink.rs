//! Where chunks go: looked up, compressed, sealed into open packs, uploaded.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};

use super::lanes::Fate;
use super::members::{Members, short};
use super::parent::Parent;
use crate::codec::{Codec, MAX_CHUNK};
use crate::crypto::{Class, PackKey, SessionKey};
use crate::entry::{Body, FileContent, Member};
use crate::id::CellHasher;
use crate::index::{Index, Location, PackInfo};
use crate::layout::Work;
use crate::pack::{self, METADATA_PACK, Record};
use crate::repository::{Repository, open_record};
use crate::tree::ChunkSink;
use crate::{
    Compression, Kind, ObjectId, Problem, Progress, RepoError, RepoErrorKind, Result,
    SessionOptions, SnapshotStats,
};
use backstay_store::{Use, failpoint};

/// Data packs that are open at once. A chunk goes to one of them at random, so that neither order
/// nor lengths of chunks can be read from a pack.
const OPEN_DATA_PACKS: usize = 2;
const UPLOADS: usize = 2;

/// Ids are uniformly distributed already.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }
}

/// Ends the session when the thread that holds it panics, so that nobody waits for it for ever.
pub(crate) struct FailOnPanic<'s>(pub &'s Shared);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(RepoError::new(RepoErrorKind::Io, "a thread of the backup panicked"));
        }
    }
}

type FreshIds = HashSet<u128, BuildHasherDefault<IdHasher>>;

struct OpenPack {
    key: PackKey,
    class: Class,
    body: Vec<u8>,
    records: Vec<Record>,
}

struct FullPack {
    open: OpenPack,
    padded: bool,
}

pub(super) type Uploaded = (PackInfo, Vec<Record>);

/// What all threads of a session share.
pub(crate) struct Shared {
    pub repository: Repository,
    pub work: Work,
    /// Of data packs.
    pub session_key: SessionKey,
    /// Of metadata packs and of the snapshot: a host that may only write keeps it, to find its own
    /// last backup.
    pub metadata_key: SessionKey,
    pub progress: Arc<Progress>,
    pub chunker: crate::chunker::Chunker,
    pub(super) parent: Parent,
    compression: Compression,
    index: Arc<Index>,
    fresh: Vec<Mutex<FreshIds>>,
    data: [Mutex<Option<OpenPack>>; OPEN_DATA_PACKS],
    metadata: Mutex<Option<OpenPack>>,
    uploads: Mutex<Option<Sender<FullPack>>>,
    uploaders: Mutex<Vec<JoinHandle<()>>>,
    uploaded: Mutex<Vec<Uploaded>>,
    aborted: AtomicBool,
    fate: Fate,
    /// From which size on a data pack is full. Bytes.
    pack_size: usize,
    /// Whether packs are only opened before they are sent, and not decoded.
    opens_only: AtomicBool,
    problems: Mutex<Vec<Problem>>,
    members: Mutex<Members>,
    bytes_read: AtomicU64,
    files_unchanged: AtomicU64,
    new_chunks: AtomicU64,
    new_bytes: AtomicU64,
    stored_bytes: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Shared {
    pub fn new(
        repository: Repository,
        work: Work,
        index: Arc<Index>,
        options: &SessionOptions,
        pack_size: usize,
    ) -> Self {
        let session_key = repository.keys().new_session(repository.environment());
        let metadata_key = repository.keys().new_session(repository.environment());
        let chunker = crate::chunker::Chunker::new(&repository.keys().chunker);
        Self {
            repository,
            work,
            session_key,
            metadata_key,
            progress: options.progress.clone(),
            chunker,
            parent: Parent::new(options.parent.clone()),
            compression: options.compression,
            index,
            fresh: (0..64).map(|_| Mutex::default()).collect(),
            data: Default::default(),
            metadata: Mutex::default(),
            uploads: Mutex::default(),
            uploaders: Mutex::default(),
            uploaded: Mutex::default(),
            aborted: AtomicBool::new(false),
            fate: options.fate.clone(),
            pack_size,
            problems: Mutex::default(),
            opens_only: AtomicBool::new(false),
            members: Mutex::default(),
            bytes_read: AtomicU64::new(0),
            files_unchanged: AtomicU64::new(0),
            new_chunks: AtomicU64::new(0),
            new_bytes: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
        }
    }

    pub fn problem(&self, path: &str, what: String) {
        lock(&self.problems).push(Problem { path: path.to_owned(), what });
    }

    pub fn count_unchanged(&self) {
        self.files_unchanged.fetch_add(1, Relaxed);
    }

    pub fn count_read(&self, bytes: u64) {
        self.bytes_read.fetch_add(bytes, Relaxed);
    }

    pub fn counted(&self) -> (SnapshotStats, Vec<Problem>) {
        let stats = SnapshotStats {
            bytes_read: self.bytes_read.load(Relaxed),
            files_unchanged: self.files_unchanged.load(Relaxed),
            new_chunks: self.new_chunks.load(Relaxed),
            new_bytes: self.new_bytes.load(Relaxed),
            stored_bytes: self.stored_bytes.load(Relaxed),
            ..SnapshotStats::default()
        };
        (stats, std::mem::take(&mut lock(&self.problems)))
    }

    /// Ends the session with `error`; the first one counts.
    pub fn fail(&self, error: RepoError) {
        self.fate.set(error);
        self.aborted.store(true, Relaxed);
    }

    pub fn abort(&self) {
        self.aborted.store(true, Relaxed);
    }

    /// Whether it goes on: it has neither failed nor been given up.
    pub fn is_alive(&self) -> bool {
        !self.aborted.load(Relaxed)
    }

    /// An error once the session has failed or was told to stop.
    pub fn check(&self) -> Result<()> {
        self.progress.check()?;
        if !self.aborted.load(Relaxed) {
            return Ok(());
        }
        Err(self
            .fate
            .get()
            .unwrap_or_else(|| RepoError::new(RepoErrorKind::Aborted, "the backup was given up")))
    }

    /// The index as it was when the session began.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Takes note of a file of the parent.
    pub fn remember(&self, content: &FileContent) {
        if matches!(content.body, Body::Member(_)) {
            lock(&self.members).remember(content);
        }
    }

    pub fn met(&self) -> u64 {
        lock(&self.members).met()
    }

    /// The content of a small file, if one of the parent has it in a pack that is there; and the hash
    /// by which it is found, where this repository keeps those.
    pub fn member(&self, content: &[u8], met: u64) -> (Option<FileContent>, Option<[u8; 16]>) {
        if !self.repository.has_members() {
            return (None, None);
        }
        let id = content_id(&self.repository.keys().data_id, Kind::Data, content);
        let (hash, size) = (short(&id), content.len() as u64);
        let found = lock(&self.members).find(&hash, content.len() as u32, met);
        let found = found.filter(|extent| self.index.holds(&extent.chunk));
        let of =
            |extent| FileContent { size, body: Body::Member(Box::new(Member { extent, hash })) };
        (found.map(of), Some(hash))
    }

    fn knows(&self, id: &ObjectId) -> bool {
        if self.index.holds(id) {
            return true;
        }
        let prefix = id.prefix();
        !lock(&self.fresh[(prefix >> 122) as usize]).insert(prefix)
    }

    fn append(
        &self,
        slot: &Mutex<Option<OpenPack>>,
        class: Class,
        record: &[u8],
        kind: Kind,
        id: ObjectId,
    ) -> Result<()> {
        let full_at = if class == Class::DataPack { self.pack_size } else { METADATA_PACK };
        let mut open = lock(slot);
        let pack = open.get_or_insert_with(|| self.new_pack(class, full_at));
        let offset = pack.body.len();
        pack.body.extend_from_slice(record);
        let tag = pack.key.seal(kind as u8, offset as u64, &id.0, &mut pack.body[offset..]);
        pack.body.extend_from_slice(&tag);
        let length = pack.body.len() - offset;
        pack.records.push(Record { id, kind, offset: offset as u32, length: length as u32 });
        if pack.body.len() < full_at {
            return Ok(());
        }
        let full = open.take();
        drop(open);
        full.map_or(Ok(()), |pack| self.send(pack, false))
    }

    fn new_pack(&self, class: Class, full_at: usize) -> OpenPack {
        let id = self.repository.environment().random();
        let session_key = match class {
            Class::DataPack => &self.session_key,
            _ => &self.metadata_key,
        };
        let (key, header) = session_key.object(id, class);
        // Room for the last record and the footer, so that the body never moves.
        let mut body = Vec::with_capacity(full_at + MAX_CHUNK / 4);
        body.extend_from_slice(&header);
        OpenPack { key, class, body, records: Vec::new() }
    }

    fn send(&self, pack: OpenPack, padded: bool) -> Result<()> {
        let sender = lock(&self.uploads).clone();
        let sent = sender.is_some_and(|s| s.send(FullPack { open: pack, padded }).is_ok());
        if sent {
            Ok(())
        } else {
            self.check().and(Err(RepoError::new(RepoErrorKind::Aborted, "the backup was given up")))
        }
    }

    pub fn start_uploads(self: &Arc<Self>) {
        let (sender, receiver) = crossbeam_channel::bounded::<FullPack>(0);
        *lock(&self.uploads) = Some(sender);
        for _ in 0..UPLOADS {
            let (shared, receiver) = (self.clone(), receiver.clone());
            let thread = std::thread::Builder::new()
                .name("upload".into())
                .spawn(move || shared.upload_all(&receiver));
            match thread {
                Ok(thread) => lock(&self.uploaders).push(thread),
                Err(error) => self.fail(RepoError::io("start a thread for", "uploads", error)),
            }
        }
    }

    fn upload_all(&self, packs: &Receiver<FullPack>) {
        let _guard = FailOnPanic(self);
        let mut checker = PackChecker::new(&self.repository);
        // After a failure packs are still taken, so that nobody waits for ever.
        for pack in packs {
            if self.aborted.load(Relaxed) {
                continue;
            }
            if let Err(error) = self.upload(pack, &mut checker) {
                self.fail(error);
            }
        }
    }

    fn upload(&self, pack: FullPack, checker: &mut PackChecker) -> Result<()> {
        let OpenPack { key, class, body, records } = pack.open;
        let env = self.repository.environment();
        let mut random = |bytes: &mut [u8]| env.random.fill(bytes);
        let body =
            pack::finish(body, &key, &records, if pack.padded { Some(&mut random) } else { None });
        let mut info = PackInfo {
            work: self.work,
            id: key.id(),
            size: body.len() as u64,
            sha256: [0; 32],
            class,
            epoch: self.repository.keys().epoch,
        };
        let decodes = !self.opens_only.load(Relaxed);
        checker.check(&info, &key, &records, &body, decodes)?;
        info.sha256.copy_from_slice(digest(&SHA256, &body).as_ref());
        failpoint::hit("pack-sealed");
        let purpose = match class {
            Class::DataPack => Use::Restores,
            _ => Use::Everything,
        };
        self.repository.store().create_for(purpose, &info.key(), Bytes::clone(&body))?;
        failpoint::hit("pack-created");
        self.stored_bytes.fetch_add(info.size, Relaxed);
        self.progress.add_stored(info.size);
        lock(&self.uploaded).push((info, records));
        Ok(())
    }

    /// Lists a pack that is in the store already among those of this session.
    pub fn adopt(&self, pack: PackInfo, records: Vec<Record>) {
        lock(&self.uploaded).push((pack, records));
    }

    /// From now on packs are opened before they are sent, and not decoded.
    pub fn open_only(&self) {
        self.opens_only.store(true, Relaxed);
    }

    /// Whether this session has stored a chunk that the index did not have.
    pub fn has_stored(&self, id: &ObjectId) -> bool {
        let prefix = id.prefix();
        lock(&self.fresh[(prefix >> 122) as usize]).contains(&prefix)
    }

    /// Sends what is open, full or not.
    pub fn flush(&self) -> Result<()> {
        for slot in self.data.iter().chain([&self.metadata]) {
            let pack = lock(slot).take();
            if let Some(pack) = pack {
                self.send(pack, true)?;
            }
        }
        Ok(())
    }

    /// Takes the list of packs that are durable, once they are so many.
    pub fn take_uploaded(&self, many: usize) -> Vec<Uploaded> {
        let mut uploaded = lock(&self.uploaded);
        if uploaded.len() < many { Vec::new() } else { std::mem::take(&mut *uploaded) }
    }

    pub fn join_uploads(&self) {
        lock(&self.uploads).take();
        let threads = std::mem::take(&mut *lock(&self.uploaders));
        for thread in threads {
            if thread.join().is_err() {
                self.fail(RepoError::new(RepoErrorKind::Aborted, "an upload thread panicked"));
            }
        }
    }

    /// Waits until every pack is durable, and lists them.
    pub fn finish_uploads(&self) -> Result<Vec<Uploaded>> {
        self.join_uploads();
        self.check()?;
        let mut uploaded = std::mem::take(&mut *lock(&self.uploaded));
        // Not in the order in which uploads happened to end: the same work gives the same index.
        uploaded.sort_unstable_by_key(|(pack, _)| pack.id);
        Ok(uploaded)
    }
}

/// Opens and decodes every record of a pack in memory before the pack is uploaded: a bit that
/// memory flipped after hashing would otherwise be damage that nobody sees until a restore.
struct PackChecker {
    codec: Codec,
    data_id: [u8; 32],
    metadata_id: [u8; 32],
    record: Vec<u8>,
    content: Vec<u8>,
}

impl PackChecker {
    fn new(repository: &Repository) -> Self {
        let keys = repository.keys();
        Self {
            codec: Codec::new(Compression::None),
            data_id: keys.data_id,
            metadata_id: keys.metadata_id,
            record: Vec::new(),
            content: Vec::new(),
        }
    }

    fn check(
        &mut self,
        info: &PackInfo,
        key: &PackKey,
        records: &[Record],
        body: &[u8],
        decodes: bool,
    ) -> Result<()> {
        let faulty = || {
            RepoError::new(
                RepoErrorKind::Io,
                format!("pack {} changed in memory before it was stored", info.key()),
            )
            .with_hint("this machine's memory or processor is faulty; test it before anything else")
        };
        for record in records {
            let at = record.offset as usize;
            self.record.clear();
            self.record
                .extend_from_slice(body.get(at..at + record.length as usize).ok_or_else(faulty)?);
            if !decodes {
                let (kind, at) = (record.kind as u8, u64::from(record.offset));
                key.open(kind, at, &record.id.0, &mut self.record).ok_or_else(faulty)?;
                continue;
            }
            let location = Location { pack: 0, offset: record.offset, length: record.length };
            open_record(
                info,
                key,
                location,
                record.kind,
                &record.id,
                &mut self.record,
                &mut self.codec,
                &mut self.content,
            )
            .map_err(|_| faulty())?;
            let id_key = if record.kind.is_metadata() { &self.metadata_id } else { &self.data_id };
            if content_id(id_key, record.kind, &self.content) != record.id {
                return Err(faulty());
            }
        }
        Ok(())
    }
}

/// The id of content that is no data carries its kind.
pub(crate) fn content_id(key: &[u8; 32], kind: Kind, content: &[u8]) -> ObjectId {
    if kind == Kind::Data {
        return ObjectId(*blake3::keyed_hash(key, content).as_bytes());
    }
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&[kind as u8]);
    hasher.update(content);
    ObjectId(*hasher.finalize().as_bytes())
}

/// One thread's way to store chunks.
pub(crate) struct Sink {
    pub shared: Arc<Shared>,
    codec: Codec,
    cells: CellHasher,
    encoded: Encoded,
    coin: u64,
}

/// A content as the codec writes it, kept while it goes to several repositories: their keys differ,
/// but not what compression makes of it.
#[derive(Default)]
pub(crate) struct Encoded {
    record: Vec<u8>,
    /// Of what: the place of the content in its file, its length, and how it was compressed.
    of: Option<(u64, usize, Compression)>,
}

impl Encoded {
    /// Forgets what it has: another file comes.
    pub fn clear(&mut self) {
        self.of = None;
    }
}

impl Sink {
    pub fn new(shared: Arc<Shared>) -> Self {
        let codec = Codec::new(shared.compression);
        let keys = shared.repository.keys();
        let cells = CellHasher::new(keys.data_id, keys.pages);
        let coin = u64::from_le_bytes(shared.repository.environment().random()) | 1;
        Self { shared, codec, cells, encoded: Encoded::default(), coin }
    }

    /// Which open pack comes next. It need not be cryptographic: it only has to be unknown outside,
    /// and the state never leaves this process.
    fn toss(&mut self) -> usize {
        self.coin ^= self.coin << 13;
        self.coin ^= self.coin >> 7;
        self.coin ^= self.coin << 17;
        (self.coin >> 33) as usize % OPEN_DATA_PACKS
    }

    /// Stores a cell of a grid under the id that [`hash_cell`](Self::hash_cell) gave.
    pub fn store_cell(
        &mut self,
        id: ObjectId,
        cell: &[u8],
        at: u64,
        encoded: &mut Encoded,
    ) -> Result<()> {
        self.store_as(Kind::Data, id, cell, at, encoded).map(drop)
    }

    /// Whether content need not be stored: the index has it, or this session.
    pub fn has(&self, id: &ObjectId) -> bool {
        self.shared.has_stored(id) || self.shared.index.holds(id)
    }

    /// Stores content that lies at `at` in the file that `encoded` is about.
    pub fn store_data(
        &mut self,
        content: &[u8],
        at: u64,
        encoded: &mut Encoded,
    ) -> Result<ObjectId> {
        let id = content_id(&self.shared.repository.keys().data_id, Kind::Data, content);
        self.store_as(Kind::Data, id, content, at, encoded)
    }

    /// The id of a cell; appends the hashes of its pages to `pages`.
    pub fn hash_cell(&mut self, cell: &[u8], pages: &mut Vec<u8>) -> ObjectId {
        self.cells.hash(cell, pages)
    }

    fn store_as(
        &mut self,
        kind: Kind,
        id: ObjectId,
        content: &[u8],
        at: u64,
        encoded: &mut Encoded,
    ) -> Result<ObjectId> {
        let shared = self.shared.clone();
        shared.check()?;
        if content.len() > MAX_CHUNK {
            return Err(RepoError::new(
                RepoErrorKind::Unsupported,
                format!(
                    "one piece of metadata has {} bytes, {MAX_CHUNK} is the most",
                    content.len()
                ),
            )
            .with_hint("a file of many terabytes or with huge attributes is to be excluded"));
        }
        if shared.knows(&id) {
            return Ok(id);
        }
        let of = Some((at, content.len(), shared.compression));
        if encoded.of != of {
            encoded.record.clear();
            self.codec.encode(content, &mut encoded.record);
            encoded.of = of;
        }
        let record = &encoded.record;
        shared.new_chunks.fetch_add(1, Relaxed);
        shared.new_bytes.fetch_add(content.len() as u64, Relaxed);
        if kind.is_metadata() {
            shared.append(&shared.metadata, Class::MetadataPack, record, kind, id)?;
        } else {
            let slot = self.toss();
            shared.append(&shared.data[slot], Class::DataPack, record, kind, id)?;
        }
        Ok(id)
    }
}

impl ChunkSink for Sink {
    fn store(&mut self, kind: Kind, content: &[u8]) -> Result<ObjectId> {
        let keys = self.shared.repository.keys();
        let key = if kind.is_metadata() { &keys.metadata_id } else { &keys.data_id };
        let id = content_id(key, kind, content);
        let mut encoded = std::mem::take(&mut self.encoded);
        encoded.clear();
        let stored = self.store_as(kind, id, content, 0, &mut encoded);
        self.encoded = encoded;
        stored
    }
}

/// Stores records that lie in other packs already.
pub(crate) struct Mover {
    sink: Sink,
}

impl Mover {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { sink: Sink::new(shared) }
    }

    /// Takes a record as the codec wrote it. Whoever calls this has looked whether it is right.
    pub fn append(&mut self, kind: Kind, id: ObjectId, record: &[u8]) -> Result<()> {
        let shared = self.sink.shared.clone();
        shared.check()?;
        if kind.is_metadata() {
            return shared.append(&shared.metadata, Class::MetadataPack, record, kind, id);
        }
        let slot = self.sink.toss();
        shared.append(&shared.data[slot], Class::DataPack, record, kind, id)
    }
}
