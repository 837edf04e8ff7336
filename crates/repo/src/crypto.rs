//! The envelope in which every secret object lies, and the keys that open it.
//!
//! Layout of the header of an envelope (160 bytes, in the clear):
//!
//! ```text
//!   0   8  magic "BACKSTAY"
//!   8   1  version of the layout: 1
//!   9   1  class: 1 data pack, 2 metadata pack, 3 snapshot, 4 archived file, 5 index segment,
//!          6 session, 7 tombstone, 8 maintenance, 9 who may write,
//!          10 what was done with keys
//!  10   1  suite: 1 = X25519, HKDF-SHA-256, AES-256-GCM; 2 = index key, HKDF-SHA-256, AES-256-GCM
//!  11   1  zero
//!  12   4  epoch of the root key, little-endian
//!  16  16  id of the object, random
//!  32  32  suite 1: the writer's ephemeral public key; suite 2: zero
//!  64  48  suite 1: the session key, sealed to the repository's public key; suite 2: zero
//! 112  32  commitment to the object's key
//! 144  16  zero, for what is to come
//! ```
//!
//! Why so: a host that holds the repository's public key and no private one can write and not
//! read, and every object opens by itself, also when all others are lost. The commitment is there
//! because AES-GCM does not commit to its key: without it, one ciphertext could be made that opens
//! to different content under two keys. The id and the class are bound into every record through
//! the object's key, which is derived from them; all other bytes of the header follow from the key
//! or have one value only, so that no byte of an object can be altered unseen.
//!
//! A record is sealed with the nonce `offset of the record in the object` (96 bits, big-endian) and
//! the additional data `id ‖ class ‖ kind ‖ offset ‖ name`. An object's key is used for one object
//! only, whose offsets never repeat, so no nonce ever does. The offset serves as the number of the
//! record because the index knows it anyway.
//!
//! A root key is of an *epoch*. What names things (chunk ids, chunker, index) comes from the first
//! one for ever, so that content is recognised across epochs; what opens things (the private key) and
//! what proves who wrote them (the owner's signature) is each epoch's own.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use backstay_store::Environment;
use std::collections::HashSet;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::layout::AUDIT_KEYS;
use crate::signing::{self, SIGNATURE, SigningKey};
use crate::{RepoError, RepoErrorKind, Result};

pub(crate) const HEADER: usize = 160;
/// What sealing adds to a record. Bytes.
pub(crate) const TAG: usize = 16;

const MAGIC: &[u8; 8] = b"BACKSTAY";
const VERSION: u8 = 1;
const SUITE_PUBLIC: u8 = 1;
const SUITE_INDEX: u8 = 2;

/// What an envelope holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Class {
    DataPack = 1,
    MetadataPack = 2,
    Snapshot = 3,
    Archived = 4,
    Index = 5,
    Session = 6,
    /// That a session is given up, or a snapshot forgotten.
    Tombstone = 7,
    /// What maintenance condemned, waits for and removes, and which segments are the index.
    Maintenance = 8,
    /// Which hosts may write, and what was there when something of that changed.
    Authority = 9,
    /// What was done with keys.
    Audit = 10,
}

/// What the header of an object says that it is, before any of it is believed.
pub(crate) fn class_of(object: &[u8]) -> Option<Class> {
    const ALL: [Class; 10] = [
        Class::DataPack,
        Class::MetadataPack,
        Class::Snapshot,
        Class::Archived,
        Class::Index,
        Class::Session,
        Class::Tombstone,
        Class::Maintenance,
        Class::Authority,
        Class::Audit,
    ];
    let class = object.get(9)?;
    ALL.into_iter().find(|known| *known as u8 == *class)
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-SHA-256. `info` is a list of parts that is joined without separators: all but the last
/// must have a fixed length or a fixed value.
pub(crate) fn derive<const N: usize>(secret: &[u8], salt: &[u8], info: &[&[u8]]) -> [u8; N] {
    let mut key = [0; N];
    Salt::new(HKDF_SHA256, salt)
        .extract(secret)
        .expand(info, Length(N))
        .and_then(|okm| okm.fill(&mut key))
        .expect("HKDF gives up to 8160 bytes");
    key
}

pub(crate) fn equal(a: &[u8], b: &[u8]) -> bool {
    verify_slices_are_equal(a, b).is_ok()
}

fn aead(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("the key has 32 bytes"))
}

/// Seals `plain` under a key that is used only once.
pub(crate) fn seal_once(key: &[u8; 32], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut sealed = plain.to_vec();
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    aead(key)
        .seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed)
        .expect("the record is far below the limit of AES-GCM");
    sealed
}

/// What is sealed once is a key: it is wiped when it is dropped.
pub(crate) fn open_once(key: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut plain = Zeroizing::new(sealed.to_vec());
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let length = aead(key).open_in_place(nonce, Aad::from(aad), &mut plain[..]).ok()?.len();
    plain.truncate(length);
    Some(plain)
}

/// The root key of a repository; everything else is derived from it.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct RootKey([u8; 32]);

impl RootKey {
    pub fn generate(env: &Environment) -> Self {
        Self(env.random())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The same, of bytes that came out of a seal; `None` of another length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn derive<const N: usize>(&self, purpose: &str) -> [u8; N] {
        derive(&self.0, b"backstay root key", &[b"backstay v1 ", purpose.as_bytes()])
    }
}

/// What may be derived from the root keys for daily work.
pub(crate) struct Keys {
    /// Of what is written now.
    pub epoch: u32,
    /// One for each kind of chunk.
    pub data_id: [u8; 32],
    pub metadata_id: [u8; 32],
    /// Of page hashes.
    pub pages: [u8; 32],
    pub chunker: [u8; 32],
    pub index: [u8; 32],
    /// Authenticates the object `format`.
    pub format: [u8; 32],
    eras: Vec<Era>,
    signer: Signer,
}

/// What an epoch has of its own.
pub(crate) struct Era {
    /// To which session keys are sealed.
    pub public: [u8; 32],
    /// Whose signature says that somebody with the root key wrote something.
    pub owner: [u8; 32],
    /// Objects of this epoch that count, once it has ended. What comes later with its signature was
    /// made with a key that has been replaced.
    pub closed: Option<HashSet<String>>,
    /// Whether records of keys are among those. The first programs listed none.
    lists_records: bool,
    secrets: Option<Secrets>,
}

/// What a host that may only write does not have.
struct Secrets {
    private: PrivateKey,
    owner: SigningKey,
}

/// In whose name a handle writes.
enum Signer {
    /// Somebody with the root key.
    Owner,
    /// A host that may only write.
    Host { writer: [u8; 8], key: SigningKey },
}

impl Era {
    /// Of a root key.
    pub fn of(root: &RootKey) -> Self {
        // AWS-LC wipes the keys that it holds; what they were made from is ours to wipe.
        let private = Zeroizing::new(root.derive::<32>("read"));
        let private = PrivateKey::from_private_key(&X25519, &private[..])
            .expect("any 32 bytes are a private key of X25519");
        let owner = SigningKey::from_seed(&Zeroizing::new(root.derive("sign")));
        Self {
            public: public_of(&private),
            owner: owner.public(),
            closed: None,
            lists_records: false,
            secrets: Some(Secrets { private, owner }),
        }
    }

    /// As a host knows it that may only write.
    pub fn public(public: [u8; 32], owner: [u8; 32]) -> Self {
        Self { public, owner, closed: None, lists_records: false, secrets: None }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let Self { data_id, metadata_id, pages, chunker, index, format, .. } = self;
        for key in [data_id, metadata_id, pages, chunker, index, format] {
            key.zeroize();
        }
    }
}

/// The keys by which things are named; they never change.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Names {
    pub data_id: [u8; 32],
    pub metadata_id: [u8; 32],
    pub pages: [u8; 32],
    pub chunker: [u8; 32],
    pub index: [u8; 32],
    pub format: [u8; 32],
}

impl Names {
    /// Of the root key of epoch 0.
    pub fn of(root: &RootKey) -> Self {
        Self {
            data_id: root.derive("chunk id: data"),
            metadata_id: root.derive("chunk id: metadata"),
            pages: root.derive("page hash"),
            chunker: root.derive("chunker"),
            index: root.derive("index"),
            format: root.derive("format"),
        }
    }
}

impl Keys {
    /// Of a repository whose root key was never replaced.
    pub fn derive(root: &RootKey) -> Self {
        Self::new(Names::of(root), vec![Era::of(root)], None)
    }

    /// `eras` by epoch, at least one; `host` is who writes when it is not somebody with the root key.
    pub fn new(names: Names, eras: Vec<Era>, host: Option<([u8; 8], SigningKey)>) -> Self {
        let Names { data_id, metadata_id, pages, chunker, index, format } = names;
        let epoch = eras.len().saturating_sub(1) as u32;
        let signer = match host {
            Some((writer, key)) => Signer::Host { writer, key },
            None => Signer::Owner,
        };
        Self { epoch, data_id, metadata_id, pages, chunker, index, format, eras, signer }
    }

    /// The keys by which things are named.
    pub fn names(&self) -> Names {
        Names {
            data_id: self.data_id,
            metadata_id: self.metadata_id,
            pages: self.pages,
            chunker: self.chunker,
            index: self.index,
            format: self.format,
        }
    }

    /// Notes that an epoch has ended, and what of it counts.
    pub fn close(&mut self, epoch: u32, names: HashSet<String>) {
        if let Some(era) = self.eras.get_mut(epoch as usize) {
            era.lists_records = names.iter().any(|name| name.starts_with(AUDIT_KEYS));
            era.closed = Some(names);
        }
    }

    /// To which session keys are sealed now.
    pub fn public(&self) -> [u8; 32] {
        self.era(self.epoch).map_or([0; 32], |era| era.public)
    }

    pub fn era(&self, epoch: u32) -> Option<&Era> {
        self.eras.get(epoch as usize)
    }

    pub fn eras(&self) -> &[Era] {
        &self.eras
    }

    /// Whether what is stored can be opened, and removed; otherwise it can be added to.
    pub fn is_owner(&self) -> bool {
        matches!(self.signer, Signer::Owner)
    }

    /// The writer that this handle must be, where it may only write.
    pub fn host(&self) -> Option<[u8; 8]> {
        match &self.signer {
            Signer::Owner => None,
            Signer::Host { writer, .. } => Some(*writer),
        }
    }

    /// Refuses what takes the root key.
    pub fn must_own(&self, what: &str) -> Result<()> {
        if self.is_owner() { Ok(()) } else { Err(only_writes(what)) }
    }

    /// A signature of `body` as the content of `object`, in the name of who holds these keys.
    pub fn sign(&self, object: &str, body: &[u8]) -> [u8; SIGNATURE] {
        let secrets = self.era(self.epoch).and_then(|era| era.secrets.as_ref());
        match (&self.signer, secrets) {
            (Signer::Host { key, .. }, _) => key.sign(object, body),
            (Signer::Owner, Some(secrets)) => secrets.owner.sign(object, body),
            (Signer::Owner, None) => unreachable!("an owner has the root key of every epoch"),
        }
    }

    /// Whether somebody with the root key of `epoch` wrote this, while that was the one to use.
    pub fn owner_wrote(
        &self,
        epoch: u32,
        object: &str,
        body: &[u8],
        signature: &[u8; SIGNATURE],
    ) -> Result<()> {
        self.owner_signed(epoch, object, body, signature)?;
        self.must_count(epoch, object)
    }

    /// Refuses what was made with a root key after that was replaced.
    pub fn must_count(&self, epoch: u32, object: &str) -> Result<()> {
        if self.counts(epoch, object) {
            return Ok(());
        }
        Err(RepoError::damaged(
            object,
            format!("it was made with the root key of epoch {epoch} after that was replaced"),
        )
        .with_hint(format!(
            "nobody acts on it: remove {object} from the store, and run this again"
        )))
    }

    /// Whether somebody with the root key of `epoch` wrote this, no matter when.
    pub fn owner_signed(
        &self,
        epoch: u32,
        object: &str,
        body: &[u8],
        signature: &[u8; SIGNATURE],
    ) -> Result<()> {
        let era = self.era(epoch).ok_or_else(|| newer(object, epoch))?;
        if signing::verifies(&era.owner, object, body, signature) {
            return Ok(());
        }
        Err(RepoError::damaged(object, "nobody with the root key has signed it"))
    }

    /// Whether an object of an epoch was there before the epoch ended.
    pub fn counts(&self, epoch: u32, object: &str) -> bool {
        let closed = self.era(epoch).and_then(|era| era.closed.as_ref());
        closed.is_none_or(|closed| closed.contains(object))
    }

    /// The same of a record of keys. A replacement of the root key makes records before it comes into
    /// force, so that a roll without any is one of the first programs.
    pub fn counts_as_record(&self, epoch: u32, object: &str) -> bool {
        self.era(epoch).is_none_or(|era| !era.lists_records) || self.counts(epoch, object)
    }

    /// A new session key with its sealed form.
    pub fn new_session(&self, env: &Environment) -> SessionKey {
        let key: [u8; 32] = env.random();
        let ephemeral = Zeroizing::new(env.random::<32>());
        let ephemeral = PrivateKey::from_private_key(&X25519, &ephemeral[..])
            .expect("any 32 bytes are a private key of X25519");
        let public = public_of(&ephemeral);
        let own = self.public();
        let wrap =
            agreement::agree(&ephemeral, UnparsedPublicKey::new(&X25519, &own), (), |shared| {
                Ok(wrap_key(shared, &public, &own))
            })
            .expect("the public key was looked at when it came");
        let sealed = seal_once(&wrap, &self.epoch.to_le_bytes(), &key);
        let mut wrapped = [0; 80];
        wrapped[..32].copy_from_slice(&public);
        wrapped[32..].copy_from_slice(&sealed);
        SessionKey { key, wrapped, epoch: self.epoch }
    }

    /// Opens the envelope whose header is `header`; `object` names it in errors.
    pub fn open(&self, object: &str, class: Class, header: &[u8]) -> Result<PackKey> {
        self.open_with(object, class, header, None)
    }

    /// The same; `kept` is the session key, where whoever asks has it from having made it.
    pub fn open_with(
        &self,
        object: &str,
        class: Class,
        header: &[u8],
        kept: Option<&[u8; 32]>,
    ) -> Result<PackKey> {
        let header: &[u8; HEADER] = header
            .get(..HEADER)
            .and_then(|h| h.try_into().ok())
            .ok_or_else(|| RepoError::damaged(object, "it is cut short"))?;
        if header[..8] != *MAGIC {
            return Err(RepoError::damaged(object, "it does not start as an object of ours does"));
        }
        if header[8] != VERSION {
            // A later version derives its keys in another way: one that opens as this version does
            // is this version, with a byte that was altered.
            let mut as_ours = *header;
            as_ours[8] = VERSION;
            if self.open_with(object, class, &as_ours, kept).is_ok() {
                return Err(RepoError::damaged(object, "its header is altered: another version"));
            }
            return Err(RepoError::new(
                RepoErrorKind::Unsupported,
                format!(
                    "{object} has version {} of the layout, this program knows {VERSION}",
                    header[8]
                ),
            )
            .with_hint("use a newer version of backstay"));
        }
        if header[9] != class as u8 {
            return Err(RepoError::damaged(object, "it is an object of another kind"));
        }
        // Nothing in the seals covers these; a meaning they get one day comes with a new version.
        let reserved = header[11..12].iter().chain(&header[144..]);
        let unused: &[u8] = if header[10] == SUITE_INDEX { &header[32..112] } else { &[] };
        if reserved.chain(unused).any(|byte| *byte != 0) {
            return Err(RepoError::damaged(
                object,
                "its header is altered: what must be zero is not",
            ));
        }
        let epoch = epoch_of(header);
        let era = self.era(epoch).ok_or_else(|| newer(object, epoch))?;
        let mut id = [0; 16];
        id.copy_from_slice(&header[16..32]);
        let secret = match header[10] {
            SUITE_PUBLIC => match (kept, era.secrets.is_some()) {
                (Some(key), _) => Zeroizing::new(*key),
                (None, false) => return Err(only_writes(&format!("read {object}"))),
                (None, true) => self.unwrap_session(object, header)?,
            },
            SUITE_INDEX => Zeroizing::new(self.index),
            other => return Err(RepoError::damaged(object, format!("it names suite {other}"))),
        };
        let key = PackKey::new(&secret, id, class);
        if !equal(&key.commitment, &header[112..144]) {
            return Err(RepoError::damaged(object, "its header does not commit to its key"));
        }
        Ok(key)
    }

    fn unwrap_session(&self, object: &str, header: &[u8; HEADER]) -> Result<Zeroizing<[u8; 32]>> {
        let wrong_key =
            || RepoError::damaged(object, "its header does not open with this repository's key");
        let epoch = epoch_of(header);
        let era = self.era(epoch).ok_or_else(|| newer(object, epoch))?;
        let secrets = era.secrets.as_ref().ok_or_else(|| only_writes(&format!("read {object}")))?;
        let mut public = [0; 32];
        public.copy_from_slice(&header[32..64]);
        let wrap = agreement::agree(
            &secrets.private,
            UnparsedPublicKey::new(&X25519, &public),
            wrong_key(),
            |shared| Ok(wrap_key(shared, &public, &era.public)),
        )?;
        let key = open_once(&wrap, &epoch.to_le_bytes(), &header[64..112]).ok_or_else(wrong_key)?;
        <[u8; 32]>::try_from(&key[..]).map(Zeroizing::new).map_err(|_| wrong_key())
    }

    /// The key of the session that wrote the object with this header: with it another object of that
    /// session opens whose own header is damaged.
    pub fn session_of(&self, object: &str, header: &[u8]) -> Result<SessionKey> {
        let class = class_of(header).unwrap_or(Class::DataPack);
        self.open(object, class, header)?;
        let header: &[u8; HEADER] = header
            .get(..HEADER)
            .and_then(|h| h.try_into().ok())
            .ok_or_else(|| RepoError::damaged(object, "it is cut short"))?;
        if header[10] != SUITE_PUBLIC {
            return Err(RepoError::damaged(object, "it carries no session key"));
        }
        let key = self.unwrap_session(object, header)?;
        let mut wrapped = [0; 80];
        wrapped.copy_from_slice(&header[32..112]);
        Ok(SessionKey { key: *key, wrapped, epoch: epoch_of(header) })
    }

    /// The key of a pack of which only the sealed session key has to be left of the header. What it
    /// opens is to be compared with its id: nothing commits to the key.
    pub fn past_header(
        &self,
        class: Class,
        id: [u8; 16],
        epoch: u32,
        header: &[u8],
    ) -> Option<PackKey> {
        let mut header: [u8; HEADER] = header.get(..HEADER)?.try_into().ok()?;
        header[12..16].copy_from_slice(&epoch.to_le_bytes());
        let secret = self.unwrap_session("a pack", &header).ok()?;
        Some(PackKey::new(&secret, id, class))
    }

    /// A key for an object that whoever holds the index key may open.
    pub fn index_object(&self, id: [u8; 16], class: Class) -> (PackKey, [u8; HEADER]) {
        let key = PackKey::new(&self.index, id, class);
        let header = header(&key, class, SUITE_INDEX, self.epoch, &[0; 80]);
        (key, header)
    }
}

/// The epoch that the header of an object names; 0 of what is no header.
pub(crate) fn epoch_of(object: &[u8]) -> u32 {
    let bytes = object.get(12..16).and_then(|bytes| bytes.try_into().ok());
    u32::from_le_bytes(bytes.unwrap_or_default())
}

fn public_of(private: &PrivateKey) -> [u8; 32] {
    let mut public = [0; 32];
    let computed = private.compute_public_key().expect("a private key has a public one");
    public.copy_from_slice(computed.as_ref());
    public
}

/// Whether sealing to a public key works: there are points that agree with nobody. One that comes from
/// a file or a store is looked at before it is used.
pub(crate) fn can_be_sealed_to(public: &[u8; 32]) -> bool {
    let own = PrivateKey::from_private_key(&X25519, &[7; 32]);
    own.is_ok_and(|own| {
        let peer = UnparsedPublicKey::new(&X25519, public);
        agreement::agree(&own, peer, (), |_| Ok(())).is_ok()
    })
}

fn wrap_key(shared: &[u8], ephemeral: &[u8; 32], repository: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let mut salt = [0; 64];
    salt[..32].copy_from_slice(ephemeral);
    salt[32..].copy_from_slice(repository);
    Zeroizing::new(derive(shared, &salt, &[b"backstay v1 session key"]))
}

/// The root key was replaced since this handle was opened, or the header is altered.
fn newer(object: &str, epoch: u32) -> RepoError {
    RepoError::damaged(
        object,
        format!("it names epoch {epoch} of the root key, which is not known"),
    )
    .with_hint(
        "was the root key replaced in this minute? Then run it again; else `backstay verify` \
             says what is affected",
    )
}

fn only_writes(what: &str) -> RepoError {
    RepoError::new(
        RepoErrorKind::WrongKey,
        format!("could not {what}: this key may add backups, and read or remove none"),
    )
    .with_hint("use a key that opens the repository; it need not be kept on this machine")
}

fn header(key: &PackKey, class: Class, suite: u8, epoch: u32, wrapped: &[u8; 80]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8] = VERSION;
    header[9] = class as u8;
    header[10] = suite;
    header[12..16].copy_from_slice(&epoch.to_le_bytes());
    header[16..32].copy_from_slice(&key.id);
    header[32..112].copy_from_slice(wrapped);
    header[112..144].copy_from_slice(&key.commitment);
    header
}

/// A random key for all that one session writes, with its form for the headers.
pub struct SessionKey {
    key: [u8; 32],
    wrapped: [u8; 80],
    epoch: u32,
}

impl SessionKey {
    /// For whoever made it and keeps it.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.key
    }

    /// The key and the header of a new object.
    pub(crate) fn object(&self, id: [u8; 16], class: Class) -> (PackKey, [u8; HEADER]) {
        let key = PackKey::new(&self.key, id, class);
        let header = header(&key, class, SUITE_PUBLIC, self.epoch, &self.wrapped);
        (key, header)
    }

    /// A key that protects nothing, for benchmarks.
    #[doc(hidden)]
    pub fn for_benchmarks() -> PackKey {
        PackKey::new(&[1; 32], [2; 16], Class::DataPack)
    }
}

impl Drop for SessionKey {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// The key of one object.
pub struct PackKey {
    id: [u8; 16],
    class: u8,
    commitment: [u8; 32],
    aead: LessSafeKey,
}

impl PackKey {
    pub(crate) fn new(secret: &[u8; 32], id: [u8; 16], class: Class) -> Self {
        let mut keys: [u8; 64] = derive(secret, &id, &[b"backstay v1 object ", &[class as u8]]);
        let mut commitment = [0; 32];
        commitment.copy_from_slice(&keys[32..]);
        let mut key = [0; 32];
        key.copy_from_slice(&keys[..32]);
        let it = Self { id, class: class as u8, commitment, aead: aead(&key) };
        keys.zeroize();
        key.zeroize();
        it
    }

    pub(crate) fn commitment(&self) -> [u8; 32] {
        self.commitment
    }

    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    fn nonce(offset: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&offset.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    fn aad(&self, kind: u8, offset: u64, name: &[u8]) -> Aad<Vec<u8>> {
        let mut aad = Vec::with_capacity(32 + name.len());
        aad.extend_from_slice(&self.id);
        aad.push(self.class);
        aad.push(kind);
        aad.extend_from_slice(&offset.to_le_bytes());
        aad.extend_from_slice(name);
        Aad::from(aad)
    }

    /// Seals the record `record` in place; the tag is to follow it in the object.
    pub fn seal(&self, kind: u8, offset: u64, name: &[u8], record: &mut [u8]) -> [u8; TAG] {
        let tag = self
            .aead
            .seal_in_place_separate_tag(Self::nonce(offset), self.aad(kind, offset, name), record)
            .expect("a record is far below the limit of AES-GCM");
        let mut bytes = [0; TAG];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    /// The same as [`open`](Self::open) of a record without a name, in less time.
    pub fn open_unnamed<'r>(
        &self,
        kind: u8,
        offset: u64,
        record: &'r mut [u8],
    ) -> Option<&'r mut [u8]> {
        let mut aad = [0; 26];
        aad[..16].copy_from_slice(&self.id);
        (aad[16], aad[17]) = (self.class, kind);
        aad[18..].copy_from_slice(&offset.to_le_bytes());
        self.aead.open_in_place(Self::nonce(offset), Aad::from(aad), record).ok()
    }

    /// Opens a record with its tag in place; `None` when anything of it was altered.
    pub fn open<'r>(
        &self,
        kind: u8,
        offset: u64,
        name: &[u8],
        record: &'r mut [u8],
    ) -> Option<&'r mut [u8]> {
        self.aead.open_in_place(Self::nonce(offset), self.aad(kind, offset, name), record).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_that_agrees_with_nobody_is_nothing_to_seal_to() {
        assert!(can_be_sealed_to(&Era::of(&RootKey::from_bytes([3; 32])).public));
        let (mut one, mut high) = ([0; 32], [0; 32]);
        (one[0], high[31]) = (1, 0x80);
        for point in [[0; 32], one, high] {
            assert!(!can_be_sealed_to(&point), "{point:?}");
        }
    }
}
