//! A repository: one store, one set of keys, and the way to everything in them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::audit::{self, KeyAction};
use crate::authority::epochs::Epochs;
use crate::authority::hosts::{Bundle, HostKey};
use crate::authority::{self, Authority, kept};
use crate::codec::Codec;
use crate::crypto::{
    Class, Era, HEADER, Keys, Names, PackKey, RootKey, class_of, derive, epoch_of,
};
use crate::id::{hex, unhex};
use crate::index::{Index, Location, PackInfo, open_object};
use crate::keys::{self, Holder, KeySlot, Secret, SlotObject, timestamp};
use crate::layout::{FORMAT, INDEX, KEYS, PACKS, SNAPSHOTS, WAL, Work};
use crate::maintenance::{self, Tombstone};
use crate::signing::SIGNATURE;
use crate::{
    Compression, Environment, Kind, ObjectId, Progress, RepoError, RepoErrorKind, Result, Snapshot,
    Store, Tree,
};
use backstay_store::failpoint;

const VERSION: u32 = 1;
/// What is read of a metadata pack at once. Bytes.
const READ_AHEAD: u64 = 1 << 20;
const READ_AHEAD_KEPT: usize = 16;

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

/// What replacing the root key did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rotation {
    /// Of the new root key.
    pub epoch: u32,
    /// What opens it.
    pub keys: Vec<KeySlot>,
    /// What opens the repository no more.
    pub left_behind: Vec<KeySlot>,
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

/// The object `format`: JSON, so that a person can see what the store holds.
#[derive(Serialize, Deserialize, Clone)]
struct Format {
    backstay: String,
    version: u32,
    id: String,
    created: Timestamp,
    chunker: String,
    epoch: u32,
    /// To the root key of each epoch.
    commitment: String,
    features: Features,
    /// Keyed hash of all of the above.
    #[serde(default)]
    seal: String,
}

/// Flags that a program must know to do something here.
#[derive(Serialize, Deserialize, Clone, Default)]
struct Features {
    read: Vec<String>,
    write: Vec<String>,
    check: Vec<String>,
    delete: Vec<String>,
}

/// For [`internals`](crate::internals).
pub(crate) fn parses_format(json: &[u8]) -> bool {
    serde_json::from_slice::<Format>(json).is_ok()
}

/// For [`internals`](crate::internals): the object `format` with one more flag, sealed anew.
pub(crate) fn with_flag(repository: &Repository, operation: &str, flag: &str) -> Option<Vec<u8>> {
    let body = repository.store().read(FORMAT).ok()?;
    let mut format: Format = serde_json::from_slice(&body).ok()?;
    let flags = match operation {
        "read" => &mut format.features.read,
        "write" => &mut format.features.write,
        "check" => &mut format.features.check,
        _ => &mut format.features.delete,
    };
    flags.push(flag.to_owned());
    format.seal = format.sealed_with(repository.keys());
    serde_json::to_vec_pretty(&format).ok()
}

impl Format {
    fn sealed_with(&self, keys: &Keys) -> String {
        let unsealed = Self { seal: String::new(), ..self.clone() };
        let body = serde_json::to_vec(&unsealed).expect("plain JSON");
        blake3::keyed_hash(&keys.format, &body).to_hex().to_string()
    }
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
            features: Features::default(),
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
        if let Some(era) = opened.keys.era(opened.keys.epoch) {
            epochs.believe(opened.keys.epoch, &era.owner);
        }
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
        Self {
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
        }
    }

    /// Refuses an operation that a flag of the repository guards and this program does not know.
    pub(crate) fn allow(&self, operation: &str, flags: &[String]) -> Result<()> {
        match flags.first() {
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

    /// Keeps the key of a session of this host, so that it can read its own metadata.
    pub(crate) fn keep_session(&self, work: &Work, session: &crate::crypto::SessionKey) {
        if let (Some(secret), Some(folder)) = (&self.inner.kept, self.cache()) {
            kept::keep(folder, self.environment(), secret, work, session.bytes());
        }
    }

    fn kept_session(&self, work: &Work) -> Option<[u8; 32]> {
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

    /// The newest root key; `what` takes it.
    pub(crate) fn root(&self, what: &str) -> Result<&RootKey> {
        self.keys().must_own(what)?;
        self.inner.roots.last().ok_or_else(|| write_only_secret(what))
    }

    /// The hosts that may add backups, and read or remove none, oldest first.
    pub fn hosts(&self) -> Result<Vec<HostKey>> {
        Ok(self.reload_authority()?.hosts())
    }

    /// Adds such a host; the content of its key file, which is kept nowhere else.
    pub fn add_host(&self, label: &str) -> Result<(HostKey, Zeroizing<Vec<u8>>)> {
        self.allow_write()?;
        self.root("add a key")?;
        let added = authority::hosts::add(self, label)?;
        self.reload_authority()?;
        Ok(added)
    }

    /// Lets nothing count that such a host writes from now on. What it has written stays.
    pub fn remove_host(&self, id: &str) -> Result<()> {
        self.allow_write()?;
        self.root("remove a key")?;
        let not_found = || {
            RepoError::new(RepoErrorKind::NotFound, format!("there is no host {id}"))
                .with_hint("`backstay key list` shows them")
        };
        let writer = unhex(id).ok_or_else(not_found)?;
        if !self.reload_authority()?.is_host(&writer) {
            return Err(not_found());
        }
        authority::hosts::remove(self, &writer)?;
        self.reload_authority().map(drop)
    }

    /// What is there that nobody has signed: programs of the first version did not.
    pub(crate) fn unsigned(&self) -> Result<Vec<String>> {
        let mut unsigned = Vec::new();
        for object in self.inner.store.list(SNAPSHOTS)? {
            let Some(work) = Work::from_snapshot_key(&object.key) else { continue };
            let opened = self.inner.store.read(&object.key).map_err(RepoError::from);
            match opened.and_then(|body| self.open_work(Class::Snapshot, &object.key, work, &body))
            {
                Ok(plain) if split_signature(&plain).1.is_none() => unsigned.push(object.key),
                Ok(_) => {}
                Err(error) if error.is_about_an_object() => {}
                Err(error) => return Err(error),
            }
        }
        for object in self.inner.store.list(INDEX)? {
            if Work::from_index_key(&object.key).is_none() {
                continue;
            }
            let opened = self.inner.store.read(&object.key).map_err(RepoError::from);
            let opened = opened.and_then(|body| {
                let plain = open_object(self.keys(), Class::Index, &object.key, &body)?;
                crate::index::is_signed(&object.key, &plain)
            });
            match opened {
                Ok(false) => unsigned.push(object.key),
                Ok(true) => {}
                Err(error) if error.is_about_an_object() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(unsigned)
    }

    /// Replaces the root key: what is written from now on is sealed and signed with a new one, which
    /// `secrets` open and no other slot does. What is there stays readable.
    ///
    /// This handle keeps the old keys; it is of no use for writing afterwards.
    pub fn rotate(&self, secrets: &[(Secret, String)]) -> Result<Rotation> {
        self.allow_write()?;
        self.allow_delete()?;
        let it = &self.inner;
        let previous = self.root("replace the root key")?;
        if secrets.is_empty() {
            return Err(RepoError::new(
                RepoErrorKind::Usage,
                "nothing would open the new root key",
            ));
        }
        if secrets.iter().any(|(secret, _)| matches!(secret, Secret::WriteOnly(_))) {
            return Err(write_only_secret("open a repository"));
        }
        let busy = || {
            RepoError::new(RepoErrorKind::Busy, "somebody else replaces the root key")
                .with_hint("see `backstay key list`, with the new key")
        };
        self.must_be_current()?;
        authority::epochs::must_be_free(&it.store, it.keys.epoch + 1)?;
        maintenance::must_rest(self)?;
        let (epoch, root) = (it.keys.epoch + 1, RootKey::generate(&it.env));
        let add = |(secret, label): &(Secret, String)| {
            let holder = Holder::Secret(secret);
            let (new, _) = SlotObject::make(&it.env, &it.id, &root, epoch, holder, label)?;
            self.put_slot(new)
        };
        let slots: Vec<KeySlot> = secrets.iter().map(add).collect::<Result<_>>()?;
        failpoint::hit("rotate-keys-added");
        if !authority::epochs::begin(&it.store, &it.env, &it.id, previous, epoch, &root)? {
            // They open nothing.
            for slot in &slots {
                audit::record(self, KeyAction::Remove, slot, None)?;
                it.store.delete(&format!("{KEYS}{}", slot.id))?;
            }
            return Err(busy());
        }
        let mut eras: Vec<Era> = it.roots.iter().map(Era::of).collect();
        eras.push(Era::of(&root));
        let keys = Keys::new(it.keys.names(), eras, None);
        keys::remove_left(&it.store, &it.id, &root, epoch)?;
        authority::epochs::bring_into_force(&it.store, &it.env, &keys)?;
        let left_behind = self.key_slots()?.into_iter().filter(|slot| slot.epoch < epoch).collect();
        Ok(Rotation { epoch, keys: slots, left_behind })
    }

    /// The epoch of the root key in use; each replacement begins one.
    pub fn epoch(&self) -> u32 {
        self.keys().epoch
    }

    /// Fails when the root key was replaced since this was opened: what the new one wrote looks like
    /// damage to the old one.
    pub(crate) fn must_be_current(&self) -> Result<()> {
        let it = &self.inner;
        let mut epochs = Epochs::read(&it.store, &it.id)?;
        if let Some(era) = it.keys.era(it.keys.epoch) {
            epochs.believe(it.keys.epoch, &era.owner);
        }
        if epochs.newest() <= it.keys.epoch {
            return Ok(());
        }
        Err(RepoError::new(RepoErrorKind::Busy, "the root key is being replaced, or was meanwhile")
            .with_hint("run it again, with a key that opens the new root key"))
    }

    /// Fails where what was just created under `object` does not count, since the root key was
    /// replaced meanwhile.
    pub(crate) fn must_count(&self, object: &str) -> Result<()> {
        let (store, id) = (&self.inner.store, &self.inner.id);
        if authority::epochs::still_counts(store, self.keys(), id, object)? {
            return Ok(());
        }
        Err(RepoError::new(
            RepoErrorKind::Busy,
            "the root key was replaced while this was at work: what it wrote does not count",
        )
        .with_hint("run it again, with a key that opens the new root key"))
    }

    /// Says which command works with this repository, for records. The first word stays.
    pub fn called_by(&self, command: &str) {
        let _ = self.inner.command.set(command.to_owned());
    }

    pub(crate) fn command(&self) -> &str {
        self.inner.command.get().map_or("", String::as_str)
    }

    /// Tells `damaged` of what is not right in `format`, the key slots and the records of them; counts the objects.
    pub(crate) fn check_keys(&self, mut damaged: impl FnMut(&str, RepoError)) -> Result<u64> {
        let it = &self.inner;
        match it.store.read(FORMAT) {
            Ok(body) => {
                // Whole: not even a blank may differ from what was written.
                let right = serde_json::from_slice::<Format>(&body).is_ok_and(|format| {
                    format.id == hex(&it.id)
                        && format.seal == format.sealed_with(&it.keys)
                        && serde_json::to_vec_pretty(&format).is_ok_and(|whole| whole == *body)
                });
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
    fn open_work(&self, class: Class, name: &str, work: Work, object: &[u8]) -> Result<Vec<u8>> {
        let kept = self.kept_session(&work);
        let key = self.keys().open_with(name, class, object, kept.as_ref())?;
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

    pub(crate) fn pack_key(&self, pack: &PackInfo) -> Result<Arc<PackKey>> {
        let mut known = self.inner.pack_keys.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(key) = known.get(&(pack.work, pack.id)) {
            return Ok(key.clone());
        }
        drop(known);
        let header = self.inner.store.read_range(&pack.key(), 0..HEADER as u64)?;
        let key = Arc::new(self.open_pack(pack, &header)?);
        known = self.inner.pack_keys.lock().unwrap_or_else(|e| e.into_inner());
        known.insert((pack.work, pack.id), key.clone());
        Ok(key)
    }

    /// The key of a pack from its header, which must be that of this very pack.
    pub(crate) fn open_pack(&self, pack: &PackInfo, header: &[u8]) -> Result<PackKey> {
        let name = pack.key();
        let kept = match pack.class {
            Class::MetadataPack => self.kept_session(&pack.work),
            _ => None,
        };
        let key = self.keys().open_with(&name, pack.class, header, kept.as_ref())?;
        if key.id() != pack.id {
            return Err(RepoError::damaged(&name, "it is another pack"));
        }
        Ok(key)
    }

    /// The content of a chunk.
    pub(crate) fn read_chunk(&self, kind: Kind, id: &ObjectId) -> Result<Vec<u8>> {
        let mut index = self.index()?;
        let mut failed: Option<([u8; 16], RepoError)> = None;
        let mut unseen: Option<RepoError> = None;
        // Written, or moved to another pack, since the index was loaded? Maintenance may have moved
        // it more than once; it ends where the index stays as it was.
        for _ in 0..crate::index::RELOADS {
            let found = match index.find(id) {
                Err(error) if error.is_about_an_object() => {
                    unseen = Some(error);
                    None
                }
                found => found?,
            };
            let at = found.and_then(|at| Some((at, index.pack(at.pack)?)));
            if let Some((at, pack)) = at
                && failed.as_ref().is_none_or(|(other, _)| *other != pack.id)
            {
                match self.read_chunk_at(kind, id, at, pack) {
                    Err(error) if error.is_about_an_object() => {
                        if error.is_of_a_missing_object() {
                            index.note_missing(at.pack);
                        }
                        failed = Some((pack.id, error));
                    }
                    read => return read,
                }
                // Of two copies one may be right. Which is the best place may be another one by now.
                for copy in index.places(id)?.into_iter().filter(|place| *place != at) {
                    let Some(pack) = index.pack(copy.pack) else { continue };
                    match self.read_chunk_at(kind, id, copy, pack) {
                        Err(error) if error.is_about_an_object() => {
                            if error.is_of_a_missing_object() {
                                index.note_missing(copy.pack);
                            }
                        }
                        read => return read,
                    }
                }
            }
            // What maintenance moves it removes only behind a new head: without one there is nothing
            // new to be found, however many chunks are damaged.
            if (failed.is_some() || unseen.is_some())
                && crate::index::newest_head(&self.inner.store)? == index.current.head
            {
                break;
            }
            let place = |index: &Index| Some(index.pack(index.find(id).ok()??.pack)?.id);
            let now = self.reload_index()?;
            let same = (now.current.head, place(&now)) == (index.current.head, place(&index));
            index = now;
            if same {
                break;
            }
        }
        let failed = failed.map(|(_, error)| error).or(unseen);
        Err(failed.unwrap_or_else(|| missing_chunk(kind, id, &index)))
    }

    fn read_chunk_at(
        &self,
        kind: Kind,
        id: &ObjectId,
        location: Location,
        pack: &PackInfo,
    ) -> Result<Vec<u8>> {
        // What a host cannot open is for it as good as damaged: another copy may be its own.
        let key = self.pack_key(pack).map_err(|error| match error.kind() {
            RepoErrorKind::WrongKey => RepoError::damaged(&pack.key(), error),
            _ => error,
        })?;
        let mut record = self.read_record(pack, location, kind)?.to_vec();
        let mut content = Vec::new();
        open_record(
            pack,
            &key,
            location,
            kind,
            id,
            &mut record,
            &mut Codec::new(Compression::None),
            &mut content,
        )?;
        if self.doubts(pack)? {
            self.must_be(pack, location, kind, id, &content)?;
        }
        Ok(content)
    }

    /// Compares content with the id under which it was found.
    pub(crate) fn must_be(
        &self,
        pack: &PackInfo,
        at: Location,
        kind: Kind,
        id: &ObjectId,
        content: &[u8],
    ) -> Result<()> {
        let keys = self.keys();
        let key = if kind.is_metadata() { &keys.metadata_id } else { &keys.data_id };
        if crate::session::content_id(key, kind, content) == *id {
            return Ok(());
        }
        Err(RepoError::damaged(
            &pack.key(),
            format!("the chunk at byte {} is not what its id says", at.offset),
        ))
    }

    fn read_record(&self, pack: &PackInfo, at: Location, kind: Kind) -> Result<Bytes> {
        let (start, length) = (u64::from(at.offset), u64::from(at.length));
        if !kind.is_metadata() {
            return Ok(self.inner.store.read_range(&pack.key(), start..start + length)?);
        }
        let find = |ahead: &VecDeque<(u32, u64, Bytes)>| {
            ahead.iter().find_map(|(number, from, bytes)| {
                let inside = *number == at.pack
                    && *from <= start
                    && start + length <= from + bytes.len() as u64;
                inside
                    .then(|| bytes.slice((start - from) as usize..(start - from + length) as usize))
            })
        };
        let ahead = || self.inner.ahead.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(record) = find(&ahead()) {
            return Ok(record);
        }
        let end = (start + length.max(READ_AHEAD)).min(pack.size).max(start + length);
        let bytes = self.inner.store.read_range(&pack.key(), start..end)?;
        let record = bytes.slice(..length as usize);
        let mut ahead = ahead();
        if ahead.len() == READ_AHEAD_KEPT {
            ahead.pop_front();
        }
        ahead.push_back((at.pack, start, bytes));
        Ok(record)
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
        crate::check::verify(self, options, progress)
    }

    /// Puts right what is damaged, as far as it can be had.
    pub fn repair(
        &self,
        options: &crate::RepairOptions,
        progress: &Arc<Progress>,
    ) -> Result<crate::RepairReport> {
        crate::heal::repair(self, options, progress)
    }

    /// Forgets the snapshot whose id starts with `prefix`: it is gone for everybody at once. What only
    /// it needed goes with the next [`maintain`](Self::maintain). Its whole id.
    pub fn forget(&self, prefix: &str) -> Result<String> {
        maintenance::forget(self, prefix)
    }

    /// Puts all that one snapshot needs on hold, or lifts that; how many objects. Where a chunk is
    /// in several packs, the one that is read counts.
    pub fn hold(&self, snapshot: &Snapshot, on: bool, progress: &Arc<Progress>) -> Result<u64> {
        maintenance::hold(self, snapshot, on, progress)
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

/// What a secret has opened.
struct Opened {
    roots: Vec<RootKey>,
    keys: Keys,
    kept: Option<Zeroizing<[u8; 32]>>,
    slot: String,
}

fn open_owner(
    store: &Store,
    id: &[u8; 16],
    format: &Format,
    epochs: &mut Epochs,
    secret: &Secret,
) -> Result<Opened> {
    // A slot whose root key never came into force is what a replacement that died has left.
    // One whose root key is none of ours anybody can have made for a public key.
    let known = |root: &RootKey, epoch: u32| epochs.is_of(epoch, root, &format.commitment);
    let mut slots = keys::open(store, id, secret, known)?;
    let unknown = slots.iter().any(|(_, epoch, _)| *epoch > epochs.newest());
    slots.retain(|(root, epoch, _)| known(root, *epoch));
    let Some((root, epoch, slot)) = slots.into_iter().max_by_key(|it| it.1) else {
        if unknown {
            return Err(RepoError::new(
                RepoErrorKind::WrongKey,
                "this key was made for a replacement of the root key that never came to be",
            )
            .with_hint("use the old key, and run `backstay key rotate` again"));
        }
        return Err(RepoError::damaged(FORMAT, "it belongs to another key"));
    };
    epochs.believe(epoch, &Era::of(&root).owner);
    if epoch < epochs.current() {
        return Err(RepoError::new(
            RepoErrorKind::WrongKey,
            "this key was left behind when the root key was replaced",
        )
        .with_hint("use a key that was named then, or was added since"));
    }
    let roots = epochs.roots(id, epoch, root, &format.commitment)?;
    let first = roots.first().ok_or_else(|| RepoError::damaged(FORMAT, "it has no root key"))?;
    let keys = Keys::new(Names::of(first), roots.iter().map(Era::of).collect(), None);
    Ok(Opened { roots, keys, kept: None, slot })
}

fn open_host(bundle: &Bundle, id: &[u8; 16], epochs: &mut Epochs) -> Result<Opened> {
    if bundle.repository != *id {
        return Err(RepoError::new(
            RepoErrorKind::WrongKey,
            "the key of this host is that of another repository",
        )
        .with_hint("name the key file that was made for this one"));
    }
    let mut eras = bundle.eras();
    if let Some(last) = eras.last() {
        epochs.believe(eras.len() as u32 - 1, &last.owner);
    }
    epochs.follow(&mut eras)?;
    let host = Some((bundle.writer, bundle.signing_key()));
    let keys = Keys::new(bundle.names(), eras, host);
    let kept = Some(Zeroizing::new(bundle.kept_key()));
    Ok(Opened { roots: Vec::new(), keys, kept, slot: hex(&bundle.writer) })
}

pub(crate) fn write_only_secret(what: &str) -> RepoError {
    RepoError::new(
        RepoErrorKind::Usage,
        format!("the key of a host that may only write cannot {what}"),
    )
    .with_hint("name another key file, or a passphrase")
}

const SIGNED: &[u8] = br#","signature":""#;
const SIGNED_END: &[u8] = br#""}"#;

/// Puts a signature into a JSON object, as its last field: it is of the object without.
pub(crate) fn with_signature(keys: &Keys, name: &str, mut json: Vec<u8>) -> Vec<u8> {
    let signature = keys.sign(name, &json);
    json.pop();
    json.extend_from_slice(SIGNED);
    json.extend_from_slice(hex(&signature).as_bytes());
    json.extend_from_slice(SIGNED_END);
    json
}

/// The inverse of [`with_signature`]; what is not signed is given back as it is.
fn split_signature(json: &[u8]) -> (Vec<u8>, Option<[u8; SIGNATURE]>) {
    let split = || {
        let rest = json.strip_suffix(SIGNED_END)?;
        let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(2 * SIGNATURE)?)?;
        let mut body = rest.strip_suffix(SIGNED)?.to_vec();
        body.push(b'}');
        Some((body, unhex(std::str::from_utf8(digits).ok()?)?))
    };
    match split() {
        Some((body, signature)) => (body, Some(signature)),
        None => (json.to_vec(), None),
    }
}

pub(crate) fn missing_chunk(kind: Kind, id: &ObjectId, index: &Index) -> RepoError {
    let what = match kind {
        Kind::Data => "content",
        Kind::Tree => "a node of a tree",
        Kind::Leaf => "a leaf of an extent map",
        Kind::Pages => "page hashes",
    };
    RepoError::damaged(
        &format!("chunk {:.16}", id.to_string()),
        match index.unreadable() {
            [] => format!("{what} is in no pack of the index"),
            unreadable => {
                format!("{what} is in no pack of the index ({})", unreadable.join("; "))
            }
        },
    )
}

/// Opens a record in place and writes its content over `content`.
#[allow(clippy::too_many_arguments)] // what a record is bound to, and two buffers to reuse
pub(crate) fn open_record(
    pack: &PackInfo,
    key: &PackKey,
    at: Location,
    kind: Kind,
    id: &ObjectId,
    record: &mut [u8],
    codec: &mut Codec,
    content: &mut Vec<u8>,
) -> Result<()> {
    let plain = key.open(kind as u8, u64::from(at.offset), &id.0, record).ok_or_else(|| {
        RepoError::damaged(&pack.key(), format!("the chunk at byte {} does not open", at.offset))
    })?;
    codec.decode(plain, content).ok_or_else(|| {
        RepoError::damaged(&pack.key(), format!("the chunk at byte {} does not decode", at.offset))
    })
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
