//! Key slots: how the root key is wrapped, and by whom it can be opened.
//!
//! A slot is a JSON object `keys/<id>`, so that a person can see what opens a repository. Slots are
//! added and removed without touching data. The wrapping key of a passphrase is Argon2id of it
//! (256 MiB, 4 passes, 1 lane; the parameters are stored and bounded when read); that of a key file
//! is HKDF of its bytes, without cost, since they are random. The wrapped root key is AES-256-GCM
//! with everything else of the slot as additional data. The commitment says, without trying, which
//! slot a key belongs to, and rules out that two keys open one slot.
//!
//! A slot names its repository: an `init` that died leaves one that opens nothing, and it must not
//! count. The seal is a keyed hash under a key of the root, by which whoever has the repository open
//! can tell that a slot of somebody else's key still opens it.

use argon2::{Algorithm, Argon2, ParamsBuilder, Version};
use backstay_store::Environment;
use bytes::Bytes;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::authority::hosts::Bundle;
use crate::crypto::{RootKey, derive, equal, open_once, seal_once};
use crate::id::{hex, unhex};
use crate::layout::{FORMAT, KEYS};
use crate::{RepoError, RepoErrorKind, Result, Store};

/// The least number of bytes that a key file must hold.
const KEY_FILE_MIN: usize = 32;
/// Parameters of Argon2id for new slots.
const MEMORY_KIB: u32 = 256 << 10;
const PASSES: u32 = 4;
const LANES: u32 = 1;

/// What opens a repository. Never printed.
#[derive(Clone)]
pub enum Secret {
    KeyFile(Zeroizing<Vec<u8>>),
    Passphrase(SecretString),
    /// The key of a host that may add backups, and read or remove none.
    WriteOnly(Box<Bundle>),
}

impl Secret {
    /// The content of a key file: 32 random bytes or more.
    pub fn key_file(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let bytes = Zeroizing::new(bytes.into());
        if let Some(bundle) = Bundle::parse(&bytes) {
            return Ok(Self::WriteOnly(Box::new(bundle?)));
        }
        if bytes.len() < KEY_FILE_MIN {
            return Err(RepoError::new(
                RepoErrorKind::Usage,
                format!(
                    "the key file holds {} bytes, it must hold {KEY_FILE_MIN} or more",
                    bytes.len()
                ),
            )
            .with_hint(
                "make one with `head -c 32 /dev/urandom > FILE`, or let `backstay init` do it",
            ));
        }
        Ok(Self::KeyFile(bytes))
    }

    pub fn passphrase(text: impl Into<String>) -> Result<Self> {
        let text = SecretString::from(text.into());
        if text.expose_secret().is_empty() {
            return Err(RepoError::new(RepoErrorKind::Usage, "the passphrase is empty"));
        }
        Ok(Self::Passphrase(text))
    }

    fn kind(&self) -> SlotKind {
        match self {
            Self::KeyFile(_) => SlotKind::KeyFile,
            Self::Passphrase(_) => SlotKind::Passphrase,
            Self::WriteOnly(_) => SlotKind::WriteOnly,
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.kind())
    }
}

/// What a slot is opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    KeyFile,
    Passphrase,
    /// Of a host that may add backups, and read or remove none. It has no slot: it opens nothing.
    WriteOnly,
}

impl std::fmt::Display for SlotKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::KeyFile => "key-file",
            Self::Passphrase => "passphrase",
            Self::WriteOnly => "write-only",
        })
    }
}

/// A key slot as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeySlot {
    /// 16 hexadecimal digits.
    pub id: String,
    pub kind: SlotKind,
    pub label: String,
    pub created: Timestamp,
    /// Whether the key that this repository was opened with opens this slot.
    pub current: bool,
    /// Of the root key that it wraps. A slot of an epoch that has ended opens nothing.
    pub epoch: u32,
}

#[derive(Serialize, Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
struct SlotObject {
    version: u32,
    /// Its id.
    repository: String,
    kind: SlotKind,
    label: String,
    created: Timestamp,
    epoch: u32,
    salt: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2id: Option<Argon2Parameters>,
    commitment: String,
    wrapped: String,
    /// Keyed hash of all of the above.
    seal: String,
}

#[derive(Serialize, Deserialize, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
struct Argon2Parameters {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl SlotObject {
    /// All that the wrapped key is bound to.
    fn bound(&self) -> Vec<u8> {
        let unwrapped = Self { wrapped: String::new(), seal: String::new(), ..self.clone() };
        serde_json::to_vec(&unwrapped).expect("a slot is plain JSON")
    }

    /// The seal of the slot `id`.
    fn sealed_with(&self, root: &RootKey, id: &str) -> String {
        let unsealed = Self { seal: String::new(), ..self.clone() };
        let mut body = id.as_bytes().to_vec();
        body.extend(serde_json::to_vec(&unsealed).expect("a slot is plain JSON"));
        blake3::keyed_hash(&root.derive("key slot"), &body).to_hex().to_string()
    }

    /// Whether it wraps this very root key of this very repository, and was not altered.
    fn is_of(&self, repository: &[u8; 16], root: &RootKey, id: &str) -> bool {
        self.repository == hex(repository) && self.seal == self.sealed_with(root, id)
    }

    fn wrapping_key(&self, secret: &Secret) -> Result<Option<Zeroizing<[u8; 64]>>> {
        let Some(salt) = unhex::<32>(&self.salt) else { return Ok(None) };
        let stretched = match (secret, self.argon2id) {
            (Secret::KeyFile(bytes), None) => Zeroizing::new(bytes.to_vec()),
            (Secret::Passphrase(text), Some(p)) => {
                // A forged slot must not make us allocate without bounds.
                if p.memory_kib > 4 << 20 || p.passes > 64 || p.lanes > 64 {
                    return Ok(None);
                }
                let parameters = ParamsBuilder::new()
                    .m_cost(p.memory_kib)
                    .t_cost(p.passes)
                    .p_cost(p.lanes)
                    .output_len(32)
                    .build()
                    .map_err(|e| RepoError::damaged("a key slot", e))?;
                let mut out = Zeroizing::new(vec![0; 32]);
                Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters)
                    .hash_password_into(text.expose_secret().as_bytes(), &salt, &mut out)
                    .map_err(|e| {
                        RepoError::new(
                            RepoErrorKind::Io,
                            format!("could not derive a key from the passphrase: {e}"),
                        )
                    })?;
                out
            }
            _ => return Ok(None),
        };
        Ok(Some(Zeroizing::new(derive(&stretched, &salt, &[b"backstay v1 key slot"]))))
    }
}

/// Creates a slot that opens with `secret`.
pub(crate) fn add(
    store: &Store,
    env: &Environment,
    repository: &[u8; 16],
    root: &RootKey,
    epoch: u32,
    secret: &Secret,
    label: &str,
) -> Result<KeySlot> {
    let argon2id = matches!(secret, Secret::Passphrase(_)).then_some(Argon2Parameters {
        memory_kib: MEMORY_KIB,
        passes: PASSES,
        lanes: LANES,
    });
    let mut slot = SlotObject {
        version: 1,
        repository: hex(repository),
        kind: secret.kind(),
        label: label.to_owned(),
        created: timestamp(env),
        epoch,
        salt: hex(&env.random::<32>()),
        argon2id,
        commitment: String::new(),
        wrapped: String::new(),
        seal: String::new(),
    };
    let keys = slot.wrapping_key(secret)?.expect("the slot was made for this kind of secret");
    slot.commitment = hex(&keys[32..]);
    slot.wrapped = hex(&seal_once(first_half(&keys), &slot.bound(), root.bytes()));
    let id = hex(&env.random::<8>());
    slot.seal = slot.sealed_with(root, &id);
    let body = serde_json::to_vec_pretty(&slot).expect("a slot is plain JSON");
    store.create(&format!("{KEYS}{id}"), Bytes::from(body))?;
    Ok(KeySlot {
        id,
        kind: slot.kind,
        label: slot.label,
        created: slot.created,
        current: false,
        epoch,
    })
}

/// The root keys that `secret` opens, each with its epoch and the id of the slot; one at least.
pub(crate) fn open(
    store: &Store,
    repository: &[u8; 16],
    secret: &Secret,
) -> Result<Vec<(RootKey, u32, String)>> {
    let mut damaged = None;
    let mut opened = Vec::new();
    let slots = slots(store)?;
    let ours = hex(repository);
    let foreign = |(_, slot): &(String, Result<SlotObject>)| {
        slot.as_ref().is_ok_and(|slot| slot.repository != ours)
    };
    if !slots.is_empty() && slots.iter().all(foreign) {
        return Err(RepoError::damaged(FORMAT, "all key slots are those of another repository"));
    }
    for (id, slot) in slots {
        let slot = match slot {
            Ok(slot) => slot,
            Err(error) => {
                damaged.get_or_insert(error);
                continue;
            }
        };
        if slot.kind != secret.kind() || slot.repository != ours {
            continue;
        }
        let Some(keys) = slot.wrapping_key(secret)? else { continue };
        let Some(commitment) = unhex::<32>(&slot.commitment) else { continue };
        if !equal(&keys[32..], &commitment) {
            continue;
        }
        let root = unhex::<48>(&slot.wrapped)
            .and_then(|wrapped| open_once(first_half(&keys), &slot.bound(), &wrapped))
            .and_then(|root| <[u8; 32]>::try_from(root).ok());
        match root {
            Some(root) => opened.push((RootKey::from_bytes(root), slot.epoch, id)),
            None => {
                damaged.get_or_insert(RepoError::damaged(
                    &format!("{KEYS}{id}"),
                    "it belongs to this key and does not open",
                ));
            }
        }
    }
    if !opened.is_empty() {
        return Ok(opened);
    }
    Err(damaged.unwrap_or_else(|| {
        RepoError::new(
            RepoErrorKind::WrongKey,
            format!("this {} opens none of the repository's key slots", secret.kind()),
        )
        .with_hint(
            "check that the key belongs to this repository; `keys/` in the store lists its slots",
        )
    }))
}

pub(crate) fn list(store: &Store, repository: &[u8; 16], current: &str) -> Result<Vec<KeySlot>> {
    let ours = hex(repository);
    slots(store)?
        .into_iter()
        .filter(|(_, slot)| slot.as_ref().map_or(true, |slot| slot.repository == ours))
        .map(|(id, slot)| {
            let slot = slot?;
            Ok(KeySlot {
                current: id == current,
                id,
                kind: slot.kind,
                label: slot.label,
                created: slot.created,
                epoch: slot.epoch,
            })
        })
        .collect()
}

/// Removes a slot, never the last one that opens this repository.
pub(crate) fn remove(store: &Store, repository: &[u8; 16], root: &RootKey, id: &str) -> Result<()> {
    let slots = slots(store)?;
    if !slots.iter().any(|(known, _)| known == id) {
        return Err(RepoError::new(RepoErrorKind::NotFound, format!("there is no key slot {id}"))
            .with_hint("`backstay key list` shows them"));
    }
    let opens = |id: &str, slot: &Result<SlotObject>| {
        slot.as_ref().is_ok_and(|slot| slot.is_of(repository, root, id))
    };
    if !slots.iter().any(|(known, slot)| known != id && opens(known, slot)) {
        return Err(RepoError::new(
            RepoErrorKind::Usage,
            format!("{id} is the last key slot; without it nothing could be restored"),
        )
        .with_hint("add another key first: `backstay key add`"));
    }
    Ok(store.delete(&format!("{KEYS}{id}"))?)
}

/// Removes slots of `epoch` that do not wrap `root`, its key: what attempts to replace the root key
/// that died have left. To be called before anybody else can have added one.
pub(crate) fn remove_left(
    store: &Store,
    repository: &[u8; 16],
    root: &RootKey,
    epoch: u32,
) -> Result<()> {
    for (id, slot) in slots(store)? {
        if slot.is_ok_and(|slot| slot.epoch == epoch && !slot.is_of(repository, root, &id)) {
            store.delete(&format!("{KEYS}{id}"))?;
        }
    }
    Ok(())
}

/// Tells `damaged` of every slot that is not as it was written.
pub(crate) fn check(
    store: &Store,
    repository: &[u8; 16],
    roots: &[RootKey],
    mut damaged: impl FnMut(&str, RepoError),
) -> Result<u64> {
    let mut count = 0;
    for (id, slot) in slots(store)? {
        count += 1;
        let key = format!("{KEYS}{id}");
        let slot = match slot {
            Ok(slot) => slot,
            Err(error) => {
                damaged(&key, error);
                continue;
            }
        };
        let body = store.read(&key)?;
        let as_ours = SlotObject { repository: hex(repository), ..slot.clone() };
        let whole = serde_json::to_vec_pretty(&slot).is_ok_and(|written| written == *body);
        // A slot of another repository is what an init that died has left.
        let root = roots.get(slot.epoch as usize);
        let is_of = |slot: &SlotObject| root.is_some_and(|root| slot.is_of(repository, root, &id));
        let foreign = slot.repository != as_ours.repository && !is_of(&as_ours);
        let right = whole && is_of(&slot);
        // One of an epoch that never came is what a replacement of the root key that died has left.
        if !right && !foreign && root.is_some() {
            damaged(&key, RepoError::damaged(&key, "it was altered"));
        }
    }
    Ok(count)
}

/// For [`internals`](crate::internals).
pub(crate) fn parses(json: &[u8]) -> bool {
    serde_json::from_slice::<SlotObject>(json).is_ok()
}

type Slots = Vec<(String, Result<SlotObject>)>;

fn slots(store: &Store) -> Result<Slots> {
    let mut slots = Vec::new();
    for object in store.list(KEYS)? {
        let Some(id) = object.key.strip_prefix(KEYS) else { continue };
        if unhex::<8>(id).is_none() {
            continue;
        }
        let body = match store.read(&object.key) {
            Ok(body) => body,
            // Removed since it was listed.
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error.into()),
        };
        let slot = serde_json::from_slice::<SlotObject>(&body)
            .map_err(|error| RepoError::damaged(&object.key, error))
            .and_then(|slot| {
                if slot.version == 1 {
                    Ok(slot)
                } else {
                    Err(RepoError::new(
                        RepoErrorKind::Unsupported,
                        format!(
                            "{} has version {}, this program knows 1",
                            object.key, slot.version
                        ),
                    ))
                }
            });
        slots.push((id.to_owned(), slot));
    }
    Ok(slots)
}

fn first_half(keys: &[u8; 64]) -> &[u8; 32] {
    keys.first_chunk().expect("32 of 64 bytes")
}

pub(crate) fn timestamp(env: &Environment) -> Timestamp {
    // A clock outside the years that can be written is wrong anyway.
    Timestamp::try_from(env.now()).unwrap_or(Timestamp::UNIX_EPOCH)
}
