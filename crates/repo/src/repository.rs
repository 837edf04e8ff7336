//! A repository: one store, one set of keys, and the way to everything in them.

mod reading;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use bytes::Bytes;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::audit;
use crate::authority::epochs::Epochs;
use crate::authority::{self, Authority, kept};
use crate::crypto::{Class, Keys, PackKey, RootKey, class_of, derive, epoch_of};
use crate::genuine;
use crate::id::{hex, unhex};
use crate::index::{Index, PackInfo};
use crate::keys::{self, Secret, timestamp};
use crate::layout::{FORMAT, INDEX, KEYS, PACKS, SNAPSHOTS, WAL, Work};
use crate::maintenance::{self, Tombstone};
use crate::opening::{Features, Format, MEMBERS, Opened, open_host, open_owner, write_only_secret};
use crate::snapshot::split_signature;
use crate::{Environment, Progress, RepoError, RepoErrorKind, Result, Snapshot, Store, Tree};
use backstay_store::failpoint;
pub(crate) use reading::{missing_chunk, open_record};

const VERSION: u32 = 1;
/// How to open a repository.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// A folder for copies of index segments and snapshots, sealed as they are in the store. It can
    /// be deleted at any time.
    pub cache: Option<PathBuf>,
}

/// How to create a repository.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// Names the first key slot for people.
    pub label: String,
    pub cache: Option<PathBuf>,
}

/// What a repository takes in its store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub packs: Count,
    pub index: Count,
    pub snapshots: Count,
    pub archive: Count,
    /// Everything else.
    pub other: Count,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    pub objects: u64,
    pub bytes: u64,
}

/// A handle to an open repository. Cheap to clone; safe to use from any thread.
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

type PackKeys = HashMap<(Work, [u8; 16]), Arc<PackKey>>;

struct Inner {
    store: Store,
    env: Environment,
    /// By epoch; none for a host that may only write.
    roots: Vec<RootKey>,
    keys: Keys,
    /// Seals what a host keeps of its own sessions.
    kept: Option<Zeroizing<[u8; 32]>>,
    id: [u8; 16],
    writer: [u8; 8],
    slot: String,
    /// What the program was asked to do, for records.
    command: OnceLock<String>,
    features: Features,
    cache: Option<PathBuf>,
    authority: RwLock<Option<Arc<Authority>>>,
    index: RwLock<Option<Arc<Index>>>,
    /// By session and id: a host may take an id that somebody else has.
    pack_keys: Mutex<PackKeys>,
    ahead: Mutex<VecDeque<(u32, u64, Bytes)>>,
}

impl Repository {
    /// Creates a repository in a store that holds none.
    pub fn init(
        store: Store,
        env: Environment,
        secret: &Secret,
        options: InitOptions,
    ) -> Result<Self> {
        let exists = || {
            RepoError::new(
                RepoErrorKind::Exists,
                format!("{} holds a repository already", store.url()),
            )
        };
        match store.head(FORMAT) {
            Ok(_) => return Err(exists()),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        // A new `format` would make sure that the old one is never put back.
        if let Some(snapshot) = store.list(SNAPSHOTS)?.first() {
            return Err(RepoError::damaged(
                FORMAT,
                format!("it is missing, and the store holds {}", snapshot.key),
            )
            .with_hint(
                "put the object `format` back from a copy of the store, or use an empty folder or \
                 prefix for a new repository",
            ));
        }
        if matches!(secret, Secret::WriteOnly(_)) {
            return Err(write_only_secret("create a repository"));
        }
        let root = RootKey::generate(&env);
        let keys = Keys::derive(&root);
        let id: [u8; 16] = env.random();
        // The slot first: a repository whose key is not in it must not exist.
        let slot = keys::add(&store, &env, &id, &root, 0, secret, &options.label)?;
        failpoint::hit("init-keys-created");
        let mut format = Format {
            backstay: "repository".into(),
            version: VERSION,
            id: hex(&id),
            created: timestamp(&env),
            chunker: "fastcdc-1".into(),
            epoch: 0,
            commitment: hex(&root.derive::<32>("commitment")),
            features: Features::of_new(),
            seal: String::new(),
        };
        format.seal = format.sealed_with(&keys);
        let body = Bytes::from(serde_json::to_vec_pretty(&format).expect("plain JSON"));
        if let Err(error) = store.create(FORMAT, body.clone()) {
            // An error does not say that nothing was created. Our slot may go only when somebody
            // else's `format` is there for good; left behind, it is harmless.
            match store.read(FORMAT) {
                Ok(found) if found == body => {}
                Ok(_) => {
                    if let Err(error) = store.delete(&format!("{KEYS}{}", slot.id)) {
                        tracing::warn!(%error, "a key slot without a repository stays behind");
                    }
                    return Err(exists());
                }
                Err(_) => return Err(error.into()),
            }
        }
        let opened = Opened { roots: vec![root], keys, kept: None, slot: slot.id };
        Ok(Self::assemble(store, env, opened, id, format.features, options.cache))
    }

    /// Opens a repository. Reads `format` and the key slots, nothing else.
    pub fn open(
        store: Store,
        env: Environment,
        secret: &Secret,
        options: OpenOptions,
    ) -> Result<Self> {
        loop {
            let opened = Self::open_once(store.clone(), env.clone(), secret, options.clone());
            // Before a key is known nobody can tell whether what parity gave is right. Where that led
            // nowhere, what lies there may; `format` last, which is read by itself.
            let rebuilt = match (&opened, store.parity()) {
                (Err(_), Some(parity)) => parity.rebuilt(),
                _ => Vec::new(),
            };
            let slots = rebuilt.iter().any(|key| key != FORMAT);
            let in_doubt: Vec<_> =
                rebuilt.into_iter().filter(|key| !slots || key != FORMAT).collect();
            let Some(parity) = store.parity().filter(|_| !in_doubt.is_empty()) else {
                return opened;
            };
            in_doubt.iter().for_each(|key| parity.distrust(key));
        }
    }

    fn open_once(
        store: Store,
        env: Environment,
        secret: &Secret,
        options: OpenOptions,
    ) -> Result<Self> {
        let body = store.read(FORMAT).map_err(|error| {
            if error.is_not_found() {
                RepoError::new(
                    RepoErrorKind::NoRepository,
                    format!("there is no repository in {}", store.url()),
                )
                .with_hint("check the address, or create one with `backstay init`")
                .with_source(error)
            } else {
                error.into()
            }
        })?;
        let format: Format = serde_json::from_slice(&body)
            .map_err(|error| RepoError::damaged(FORMAT, &error).with_source(error))?;
        if format.version != VERSION {
            return Err(RepoError::new(
                RepoErrorKind::Unsupported,
                format!(
                    "the repository has version {} of the format, this program knows {VERSION}",
                    format.version
                ),
            )
            .with_hint("use a newer version of backstay"));
        }
        let id = unhex(&format.id)
            .ok_or_else(|| RepoError::damaged(FORMAT, "its id is no id of a repository"))?;
        let mut epochs = Epochs::read(&store, &id)?;
        let mut opened = match secret {
            Secret::WriteOnly(bundle) => open_host(bundle, &id, &mut epochs)?,
            secret => open_owner(&store, &id, &format, &mut epochs, secret)?,
        };
        if format.epoch != 0 || format.seal != format.sealed_with(&opened.keys) {
            return Err(RepoError::damaged(FORMAT, "it was altered"));
        }
        if opened.keys.epoch > epochs.current() {
            // Whoever replaced the root key has not come to the end of it.
            if let Some(root) = opened.roots.last() {
                keys::remove_left(&store, &id, root, opened.keys.epoch)?;
            }
            authority::epochs::bring_into_force(&store, &env, &opened.keys)?;
            epochs = Epochs::read(&store, &id)?;
        }
        epochs.believe_from(opened.keys.eras());
        epochs.close(&mut opened.keys)?;
        let it = Self::assemble(store, env, opened, id, format.features, options.cache);
        it.allow("read", &it.inner.features.read)?;
        if let Some(writer) = it.keys().host()
            && !it.authority()?.admits(&writer)
        {
            return Err(RepoError::new(
                RepoErrorKind::WrongKey,
                "the key of this host was removed, or never belonged to this repository",
            )
            .with_hint(
                "make a new one where the repository can be opened: `backstay key add \
                        --write-only`",
            ));
        }
        Ok(it)
    }

    fn assemble(
        store: Store,
        env: Environment,
        opened: Opened,
        id: [u8; 16],
        features: Features,
        cache: Option<PathBuf>,
    ) -> Self {
        let cache = cache.map(|folder| folder.join(hex(&id)));
        let Opened { roots, keys, kept, slot } = opened;
        let writer = keys.host().unwrap_or_else(|| writer_id(&id));
        let it = Self {
            inner: Arc::new(Inner {
                store,
                env,
                roots,
                keys,
                kept,
                id,
                writer,
                slot,
                command: OnceLock::new(),
                features,
                cache,
                authority: RwLock::default(),
                index: RwLock::default(),
                pack_keys: Mutex::default(),
                ahead: Mutex::default(),
            }),
        };
        genuine::judge_for(&it);
        it
    }

    /// Refuses an operation that a flag of the repository guards and this program does not know.
    pub(crate) fn allow(&self, operation: &str, flags: &[String]) -> Result<()> {
        match flags.iter().find(|flag| *flag != MEMBERS) {
            None => Ok(()),
            Some(flag) => Err(RepoError::new(
                RepoErrorKind::Unsupported,
                format!(
                    "to {operation} this repository one must know {flag:?}, this program does not"
                ),
            )
            .with_hint("use a newer version of backstay")),
        }
    }

    pub(crate) fn allow_write(&self) -> Result<()> {
        self.allow("write to", &self.inner.features.write)
    }

    /// Whether entries of grouped files may carry a hash of their own here.
    pub(crate) fn has_members(&self) -> bool {
        self.inner.features.has_members()
    }

    pub(crate) fn allow_check(&self) -> Result<()> {
        self.allow("check", &self.inner.features.check)
    }

    /// 32 hexadecimal digits.
    pub fn id(&self) -> String {
        hex(&self.inner.id)
    }

    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    pub fn environment(&self) -> &Environment {
        &self.inner.env
    }

    /// Whether this handle can add backups, and read or remove none.
    pub fn is_write_only(&self) -> bool {
        !self.keys().is_owner()
    }

    /// Who may write, as last read.
    pub(crate) fn authority(&self) -> Result<Arc<Authority>> {
        if let Some(known) = &*self.inner.authority.read().unwrap_or_else(|e| e.into_inner()) {
            return Ok(known.clone());
        }
        self.reload_authority()
    }

    /// Who may write, as the store has it now.
    pub(crate) fn reload_authority(&self) -> Result<Arc<Authority>> {
        let read = Arc::new(Authority::read(&self.inner.store, self.keys(), self.cache())?);
        *self.inner.authority.write().unwrap_or_else(|e| e.into_inner()) = Some(read.clone());
        Ok(read)
    }

    /// Whether what a pack holds is to be compared with its ids: a host seals what it likes under any.
    pub(crate) fn doubts(&self, pack: &PackInfo) -> Result<bool> {
        Ok(self.authority()?.is_doubtful(&pack.work.writer))
    }

    /// Whether a backup may take over what it finds in a snapshot. Not in one of a host that may only
    /// write, but for its own: such a host says what it likes of files, their hashes and where in
    /// chunks of others they lie, and nothing of that is compared.
    pub fn may_build_on(&self, snapshot: &Snapshot) -> Result<bool> {
        let Some(writer) = unhex(&snapshot.writer) else { return Ok(false) };
        Ok(!self.authority()?.is_foreign(self.keys(), &writer))
    }

    /// Whether a snapshot of this repository holds what `other` holds, of whichever one. A host that
    /// may only write can say so of every snapshot whose id it sees in a store; what those have in
    /// common that were made in one pass is seen by nobody.
    pub fn holds(&self, own: &Snapshot, other: &Snapshot) -> Result<bool> {
        let same =
            (own.moment(), &own.source, own.kind) == (other.moment(), &other.source, other.kind);
        Ok(same && (other.group.is_some() || self.may_build_on(own)?))
    }

    /// Keeps the key of a session of this host, so that it can read its own metadata.
    pub(crate) fn keep_session(&self, work: &Work, session: &crate::crypto::SessionKey) {
        if let (Some(secret), Some(folder)) = (&self.inner.kept, self.cache()) {
            kept::keep(folder, self.environment(), secret, work, session.bytes());
        }
    }

    fn kept_session(&self, work: &Work) -> Option<Zeroizing<[u8; 32]>> {
        let (secret, folder) = (self.inner.kept.as_ref()?, self.cache()?);
        kept::find(folder, secret, work)
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    pub(crate) fn writer(&self) -> [u8; 8] {
        self.inner.writer
    }

    /// The name of this machine as a writer: a directory below `packs/`, `snapshots/`, ….
    pub fn writer_name(&self) -> String {
        hex(&self.inner.writer)
    }

    pub(crate) fn cache(&self) -> Option<&std::path::Path> {
        self.inner.cache.as_deref()
    }

    pub(crate) fn raw_id(&self) -> [u8; 16] {
        self.inner.id
    }

    /// The id of the slot that this repository was opened with; for a host that may only write, its
    /// own.
    pub fn slot(&self) -> &str {
        &self.inner.slot
    }

    /// The root keys by epoch; none for a host that may only write.
    pub(crate) fn roots(&self) -> &[RootKey] {
        &self.inner.roots
    }

    /// The newest root key; `what` takes it.
    pub(crate) fn root(&self, what: &str) -> Result<&RootKey> {
        self.keys().must_own(what)?;
        self.inner.roots.last().ok_or_else(|| write_only_secret(what))
    }

    /// Says which command works with this repository, for records. The first word stays.
    pub fn called_by(&self, command: &str) {
        let _ = self.inner.command.set(command.to_owned());
    }

    pub(crate) fn command(&self) -> &str {
        self.inner.command.get().map_or("", String::as_str)
    }

    /// Whether this is `format` as it was written: not even a blank may differ.
    pub(crate) fn is_format(&self, body: &[u8]) -> bool {
        serde_json::from_slice::<Format>(body).is_ok_and(|format| {
            format.id == hex(&self.inner.id)
                && format.seal == format.sealed_with(&self.inner.keys)
                && serde_json::to_vec_pretty(&format).is_ok_and(|whole| whole == *body)
        })
    }

    /// Gives the repository back as long as somebody else has it open.
    pub(crate) fn weak(&self) -> impl Fn() -> Option<Self> + Send + Sync + use<> {
        let weak = Arc::downgrade(&self.inner);
        move || weak.upgrade().map(|inner| Self { inner })
    }

    /// The index as last loaded, if there is one and nobody is about to replace it.
    pub(crate) fn index_at_hand(&self) -> Option<Arc<Index>> {
        self.inner.index.try_read().ok()?.clone()
    }

    /// Tells `damaged` of what is not right in `format`, the key slots and the records of them; counts the objects.
    pub(crate) fn check_keys(&self, mut damaged: impl FnMut(&str, RepoError)) -> Result<u64> {
        let it = &self.inner;
        match it.store.read(FORMAT) {
            Ok(body) => {
                let right = self.is_format(&body);
                if !right {
                    damaged(FORMAT, RepoError::damaged(FORMAT, "it was altered"));
                }
            }
            Err(error) if error.is_not_found() => damaged(FORMAT, error.into()),
            Err(error) => return Err(error.into()),
        }
        self.keys().must_own("check the keys")?;
        let slots = keys::check(&it.store, &it.id, &it.roots, &mut damaged)?;
        let records = audit::records(self)?;
        let count = records.len() as u64;
        for (key, record) in records {
            if let Err(error) = record {
                damaged(&key, error);
            }
        }
        Ok(1 + slots + count)
    }

    pub(crate) fn allow_delete(&self) -> Result<()> {
        self.allow("remove something from", &self.inner.features.delete)
    }

    /// Every committed snapshot that is not forgotten, oldest first. One whose object cannot be used
    /// is left out with a warning: `verify` reports it, and all others stay usable. A host that may
    /// only write sees those of its own that it still has the keys of.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let mut snapshots = Vec::new();
        self.reload_authority()?;
        let listed = self.inner.store.list(SNAPSHOTS)?;
        let forgotten = maintenance::forgotten(self, &listed)?;
        for object in listed {
            let Some(work) = Work::from_snapshot_key(&object.key) else { continue };
            if self.is_write_only() && self.kept_session(&work).is_none() {
                continue;
            }
            if forgotten.contains(&work) {
                continue;
            }
            match self.read_snapshot(work, object.size) {
                Ok(Some(mut snapshot)) => {
                    snapshot.stored = object.modified.and_then(|time| time.try_into().ok());
                    snapshots.push(snapshot);
                }
                Ok(None) => {}
                Err(error) if error.is_about_an_object() => {
                    tracing::warn!(%error, "a snapshot is left out");
                }
                Err(error) => return Err(error),
            }
        }
        snapshots.sort_by(|a, b| (a.time, &a.id).cmp(&(b.time, &b.id)));
        Ok(snapshots)
    }

    /// The snapshot that a session ended with; `None` where it was given up.
    pub(crate) fn read_snapshot(&self, work: Work, size: u64) -> Result<Option<Snapshot>> {
        let key = work.snapshot_key();
        let cached = self.cache().map(|folder| folder.join(key.replace('/', "-")));
        let from_cache = cached.as_ref().and_then(|path| {
            let object = std::fs::read(path).ok()?;
            (object.len() as u64 == size).then(|| self.open_snapshot(work, &object).ok()).flatten()
        });
        if let Some(snapshot) = from_cache {
            return Ok(snapshot);
        }
        let object = self.inner.store.read(&key)?;
        let snapshot = self.open_snapshot(work, &object)?;
        if let Some(path) = cached.filter(|_| snapshot.is_some()) {
            crate::index::keep(&path, &object);
        }
        Ok(snapshot)
    }

    /// What the object in a snapshot's place says; `None` where its session was given up, or had no
    /// right to one.
    pub(crate) fn open_snapshot(&self, work: Work, object: &[u8]) -> Result<Option<Snapshot>> {
        let (keys, key) = (self.keys(), work.snapshot_key());
        if class_of(object) == Some(Class::Tombstone) {
            // Whoever made it: the name is taken, and there is no snapshot.
            maintenance::open_of_any_time::<Tombstone>(keys, Class::Tombstone, &key, object)?;
            return Ok(None);
        }
        let plain = self.open_work(Class::Snapshot, &key, work, object)?;
        let (body, signature) = split_signature(&plain);
        let (authority, epoch) = (self.authority()?, epoch_of(object));
        if !authority.vouch(keys, &key, &work.writer, epoch, &body, signature.as_ref())? {
            tracing::warn!(
                snapshot = key,
                "it does not count: it was made with a key that had been removed or replaced"
            );
            return Ok(None);
        }
        let mut snapshot: Snapshot =
            serde_json::from_slice(&body).map_err(|error| RepoError::damaged(&key, error))?;
        snapshot.id = hex(&work.session);
        snapshot.writer = hex(&work.writer);
        Ok(Some(snapshot))
    }

    /// Opens an object of one record that a session has sealed.
    pub(crate) fn open_work(
        &self,
        class: Class,
        name: &str,
        work: Work,
        object: &[u8],
    ) -> Result<Vec<u8>> {
        let kept = self.kept_session(&work);
        let key = self.keys().open_with(name, class, object, kept.as_deref())?;
        crate::index::open_record_of(&key, name, object)
    }

    /// The snapshot whose id starts with `prefix`.
    pub fn find_snapshot(&self, prefix: &str) -> Result<Snapshot> {
        let not_found = || {
            RepoError::new(RepoErrorKind::NotFound, format!("there is no snapshot {prefix:?}"))
                .with_hint("`backstay list` shows the snapshots there are")
        };
        let mut found = Vec::new();
        self.reload_authority()?;
        let listed = self.inner.store.list(SNAPSHOTS)?;
        let forgotten = maintenance::forgotten(self, &listed)?;
        for object in listed {
            if let Some(work) = Work::from_snapshot_key(&object.key)
                && hex(&work.session).starts_with(prefix)
                && !forgotten.contains(&work)
            {
                found.push((work, object.size));
            }
        }
        match found.as_slice() {
            [] => Err(not_found()),
            [(work, size)] => self.read_snapshot(*work, *size)?.ok_or_else(not_found),
            _ => Err(RepoError::new(
                RepoErrorKind::Ambiguous,
                format!("{} snapshots start with {prefix:?}", found.len()),
            )
            .with_hint("give more digits of the id")),
        }
    }

    /// The tree of a snapshot.
    pub fn tree(&self, snapshot: &Snapshot) -> Result<Tree> {
        self.index()?;
        let name = format!("the tree of snapshot {}", snapshot.short_id());
        Ok(Tree::new(self.clone(), snapshot.root, name))
    }

    /// System identifiers that have an archive here.
    pub fn archives(&self) -> Result<Vec<u64>> {
        let mut systems: Vec<u64> = Vec::new();
        for object in self.inner.store.list(WAL)? {
            let system = object.key.strip_prefix(WAL).and_then(|rest| rest.split('/').next());
            if let Some(Ok(system)) = system.map(str::parse)
                && systems.last() != Some(&system)
            {
                systems.push(system);
            }
        }
        systems.sort_unstable();
        systems.dedup();
        Ok(systems)
    }

    /// Objects and bytes in the store, by kind.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for object in self.inner.store.list("")? {
            let count = match &object.key {
                key if key.starts_with(PACKS) => &mut usage.packs,
                key if key.starts_with(INDEX) => &mut usage.index,
                key if key.starts_with(SNAPSHOTS) => &mut usage.snapshots,
                key if key.starts_with(WAL) => &mut usage.archive,
                _ => &mut usage.other,
            };
            count.objects += 1;
            count.bytes += object.size;
        }
        Ok(usage)
    }

    /// The index as last loaded; loads it if it never was.
    pub(crate) fn index(&self) -> Result<Arc<Index>> {
        if let Some(index) = &*self.inner.index.read().unwrap_or_else(|e| e.into_inner()) {
            return Ok(index.clone());
        }
        self.reload_index()
    }

    /// The index as the store has it now, to read by: which packs are there is found out on the way.
    pub(crate) fn reload_index(&self) -> Result<Arc<Index>> {
        let authority = self.reload_authority()?;
        self.take_index(Index::open(&self.inner.store, self.keys(), &authority, self.cache())?)
    }

    /// The same, to write or to remove by: which packs are there is known, and what only lies in one
    /// of `avoided` is absent.
    pub(crate) fn reload_index_avoiding(&self, avoided: &HashSet<[u8; 16]>) -> Result<Arc<Index>> {
        let (store, keys) = (&self.inner.store, self.keys());
        let authority = self.reload_authority()?;
        self.take_index(Index::load(store, keys, &authority, self.cache(), avoided)?)
    }

    fn take_index(&self, index: Index) -> Result<Arc<Index>> {
        let index = Arc::new(index);
        *self.inner.index.write().unwrap_or_else(|e| e.into_inner()) = Some(index.clone());
        // Numbers of packs belong to one load.
        self.inner.ahead.lock().unwrap_or_else(|e| e.into_inner()).clear();
        Ok(index)
    }

    /// Restores a snapshot, or some of its paths, to files.
    pub fn restore(
        &self,
        snapshot: &Snapshot,
        options: crate::RestoreOptions,
        progress: &Progress,
    ) -> Result<crate::RestoreReport> {
        self.keys().must_own("restore")?;
        crate::restore::restore(self, snapshot, options, progress)
    }

    /// Checks what the repository holds.
    pub fn verify(
        &self,
        options: crate::VerifyOptions,
        progress: &Progress,
    ) -> Result<crate::VerifyReport> {
        self.keys().must_own("verify")?;
        let everything = options.snapshots.is_empty();
        let mut report = crate::check::verify(self, options, progress)?;
        crate::parity::note(self, everything, &mut report)?;
        Ok(report)
    }

    /// Puts right what is damaged, as far as it can be had.
    pub fn repair(
        &self,
        options: &crate::RepairOptions,
        progress: &Arc<Progress>,
    ) -> Result<crate::RepairReport> {
        crate::heal::repair(self, options, progress)
    }

    /// Those of `snapshots`, of whatever repository, of which this one has forgotten its own copy.
    pub fn forgotten_of(&self, snapshots: &[&Snapshot]) -> Result<HashSet<String>> {
        if snapshots.is_empty() {
            return Ok(HashSet::new());
        }
        let forgotten = maintenance::Forgotten::read(self)?;
        let gone = snapshots.iter().filter(|snapshot| forgotten.has(snapshot));
        Ok(gone.map(|snapshot| snapshot.id.clone()).collect())
    }

    /// Forgets the snapshot whose id starts with `prefix`: it is gone for everybody at once. What only
    /// it needed goes with the next [`maintain`](Self::maintain). Its whole id.
    pub fn forget(&self, prefix: &str) -> Result<String> {
        Ok(self.forget_all(&[prefix])?.pop().unwrap_or_default())
    }

    /// The same for many, looking at the repository once. One after the other, and no further than
    /// the first that cannot be forgotten; their whole ids.
    pub fn forget_all(&self, prefixes: &[&str]) -> Result<Vec<String>> {
        maintenance::forget(self, prefixes)
    }

    /// Puts all that one snapshot needs on hold, or lifts that; how many objects. Where a chunk is
    /// in several packs, the one that is read counts.
    pub fn hold(&self, snapshot: &Snapshot, on: bool, progress: &Arc<Progress>) -> Result<u64> {
        maintenance::hold(self, snapshot, on, progress)
    }

    /// Asks the store for all that one snapshot needs and that lies in an archive, or says how it
    /// stands with that.
    pub fn thaw(
        &self,
        snapshot: &Snapshot,
        options: &crate::ThawOptions,
        progress: &Arc<Progress>,
    ) -> Result<crate::ThawReport> {
        crate::thaw::thaw(self, snapshot, options, progress)
    }

    /// Whether a snapshot is on hold, and so must not be forgotten.
    pub fn is_held(&self, snapshot: &Snapshot) -> Result<bool> {
        maintenance::is_held(self, snapshot)
    }

    /// Removes what no snapshot needs, rewrites packs that are mostly that, and merges the index.
    pub fn maintain(
        &self,
        options: &crate::MaintenanceOptions,
        progress: &Arc<Progress>,
    ) -> Result<crate::MaintenanceReport> {
        maintenance::maintain(self, options, progress)
    }

    /// Starts to write a snapshot.
    pub fn begin(&self, options: crate::SessionOptions) -> Result<crate::Session> {
        crate::session::begin(self, options)
    }

    /// The archive of a database cluster.
    pub fn archive(&self, system_id: u64) -> crate::Archive {
        crate::archive::Archive::new(self.clone(), system_id)
    }
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("id", &self.id()).field("store", self.store()).finish()
    }
}

/// A name for this machine within one repository, which tells nobody without the machine which it
/// is. It serves to count; nothing is unsafe when two machines share it.
fn writer_id(repository: &[u8; 16]) -> [u8; 8] {
    let machine = std::fs::read("/etc/machine-id")
        .ok()
        .filter(|id| id.len() >= 32)
        .unwrap_or_else(|| rustix::system::uname().nodename().to_bytes().to_vec());
    derive(&machine, repository, &[b"backstay v1 writer"])
}
