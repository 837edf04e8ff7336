//! Key slots: how the root key is wrapped, and by whom it can be opened.
//!
//! A slot is a JSON object `keys/<id>`, so that a person can see what opens a repository. Slots are
//! added and removed without touching data. The wrapping key of a passphrase is Argon2id of it
//! (256 MiB, 4 passes, 1 lane; the parameters are stored and bounded when read); that of a key file
//! is HKDF of its bytes, without cost, since they are random. All other kinds have a random secret of
//! their own, which is used as the bytes of a key file are, and which the slot keeps sealed: to an
//! age recipient, by a service that keeps keys, or not at all, its shares being with people. The
//! wrapped root key is AES-256-GCM with everything else of the slot as additional data. The
//! commitment says, without trying, which slot a key belongs to, and rules out that two keys open
//! one slot.
//!
//! A slot names its repository: an `init` that died leaves one that opens nothing, and it must not
//! count. The seal is a keyed hash under a key of the root, by which whoever has the repository open
//! can tell that a slot of somebody else's key still opens it.
//!
//! `secret` is what opens a repository, in memory; `slot` the object and how the root key comes out
//! of it; `passphrase`, `age` (with `bech32`) and `escrow` (with `shamir` and `printed`) are the
//! kinds. What happens to slots over the years, and the record of it, is in
//! [`key_life`](crate::key_life).

pub(crate) mod age;
mod bech32;
pub(crate) mod escrow;
mod passphrase;
mod printed;
mod secret;
mod shamir;
mod slot;

use std::cmp::Reverse;
use std::collections::BTreeSet;

use backstay_store::Environment;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;

use crate::crypto::RootKey;
use crate::id::{hex, unhex};
use crate::layout::{FORMAT, KEYS};
use crate::{RepoError, RepoErrorKind, Result, Store};

pub use secret::{Secret, SlotKind};
pub(crate) use slot::{Holder, NewSlot, SlotObject};

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
    /// The age recipient, the service's name of its key, how many shares of how many; none for key
    /// files and passphrases.
    pub detail: Option<String>,
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
    let (new, _) = SlotObject::make(env, repository, root, epoch, Holder::Secret(secret), label)?;
    put(store, new)
}

/// Creates a slot that was made.
pub(crate) fn put(store: &Store, new: NewSlot) -> Result<KeySlot> {
    store.create(&format!("{KEYS}{}", new.slot.id), Bytes::from(new.body))?;
    Ok(new.slot)
}

/// The root keys that `secret` opens, each with its epoch and the id of the slot; one at least.
/// Newer epochs first, up to the first one that is `known`: anybody can make a slot for a public key,
/// and a replacement of the root key that died leaves some. What comes later would not count, and to
/// try it may take a second.
pub(crate) fn open(
    store: &Store,
    repository: &[u8; 16],
    secret: &Secret,
    known: impl Fn(&RootKey, u32) -> bool,
) -> Result<Vec<(RootKey, u32, String)>> {
    let shares_of = match secret {
        Secret::Shares(shares) => Some(escrow::slot_of(shares, repository)?),
        _ => None,
    };
    let mut damaged = None;
    let mut opened = Vec::new();
    let mut slots = slots(store)?;
    slots.sort_by_key(|(_, slot)| Reverse(slot.as_ref().map_or(0, |slot| slot.epoch)));
    let ours = hex(repository);
    let foreign = |(_, slot): &(String, Result<SlotObject>)| {
        slot.as_ref().is_ok_and(|slot| slot.repository != ours)
    };
    if !slots.is_empty() && slots.iter().all(foreign) {
        return Err(RepoError::damaged(FORMAT, "all key slots are those of another repository"));
    }
    if let Some(set) = &shares_of
        && slots.iter().all(|(id, _)| id != set)
    {
        return Err(RepoError::new(
            RepoErrorKind::WrongKey,
            format!("the escrow set {set} was withdrawn: its slot is not there any more"),
        )
        .with_hint("find the shares of a newer set; they say which one they are of"));
    }
    for (id, slot) in slots {
        let slot = match slot {
            Ok(slot) => slot,
            Err(error) => {
                damaged.get_or_insert(error);
                continue;
            }
        };
        if !secret.may_open(slot.kind) || slot.repository != ours {
            continue;
        }
        match slot.open(secret, &id) {
            Ok(Some(root)) => {
                let last = known(&root, slot.epoch);
                opened.push((root, slot.epoch, id));
                if last {
                    break;
                }
            }
            Ok(None) => {}
            // What is not known must not end as "wrong key".
            Err(error) => {
                damaged.get_or_insert(error);
            }
        }
    }
    if !opened.is_empty() {
        return Ok(opened);
    }
    Err(damaged.unwrap_or_else(|| {
        RepoError::new(
            RepoErrorKind::WrongKey,
            format!("this {} opens none of the repository's key slots", secret.name()),
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
        .map(|(id, slot)| Ok(slot?.shown(&id, current)))
        .collect()
}

/// What would be left of a slot's removal.
pub(crate) enum Removal {
    /// There is no such slot.
    NotThere,
    /// Another slot opens this repository.
    Possible,
    /// Other slots do, and all of them are being removed.
    Contested,
    /// Nothing else opens it.
    Last,
}

/// Whether the slot `id` may go. `leaving` are slots that somebody else may be removing right now.
pub(crate) fn removal(
    store: &Store,
    repository: &[u8; 16],
    root: &RootKey,
    id: &str,
    leaving: &BTreeSet<String>,
) -> Result<Removal> {
    let slots = slots(store)?;
    if !slots.iter().any(|(known, _)| known == id) {
        return Ok(Removal::NotThere);
    }
    let others: Vec<&str> = slots
        .iter()
        .filter(|(known, slot)| {
            known != id && slot.as_ref().is_ok_and(|slot| slot.is_of(repository, root, known))
        })
        .map(|(known, _)| known.as_str())
        .collect();
    Ok(match others.iter().any(|other| !leaving.contains(*other)) {
        true => Removal::Possible,
        false if others.is_empty() => Removal::Last,
        false => Removal::Contested,
    })
}

/// Removes a slot that may go.
pub(crate) fn delete(store: &Store, id: &str) -> backstay_store::Result<()> {
    store.delete(&format!("{KEYS}{id}"))
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
            delete(store, &id)?;
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
        let mut as_ours = slot.clone();
        as_ours.repository = hex(repository);
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

/// Whether a slot is what was written, to the last blank; none of one that these root keys have not
/// made.
pub(crate) fn is_slot(
    body: &[u8],
    roots: &[RootKey],
    repository: &[u8; 16],
    id: &str,
) -> Option<bool> {
    roots.first()?;
    let Ok(slot) = serde_json::from_slice::<SlotObject>(body) else { return Some(false) };
    let whole = serde_json::to_vec_pretty(&slot).is_ok_and(|written| written == body);
    let root = roots.get(slot.epoch as usize);
    Some(whole && root.is_some_and(|root| slot.is_of(repository, root, id)))
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

pub(crate) fn timestamp(env: &Environment) -> Timestamp {
    // A clock outside the years that can be written is wrong anyway.
    Timestamp::try_from(env.now()).unwrap_or(Timestamp::UNIX_EPOCH)
}
