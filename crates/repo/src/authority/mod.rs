//! Who may write what.
//!
//! ```text
//! keys/epochs/<epoch>/begun    a new root key: what is sealed and signed with from now on
//! keys/epochs/<epoch>/roll     what was there when the one before it ended
//! keys/writers/<writer>/added    a host that may only write, and its public key
//! keys/writers/<writer>/leaving  it is about to be removed: what it writes from now on may not count
//! keys/writers/<writer>/removed  what of it was there when it was removed
//! ```
//!
//! Every segment of the index and every snapshot is signed: by the *owner*, which is anybody with the
//! root key, or by a *host*, which may add backups in its own name and read or remove none. What a
//! host writes is its own: others never count on chunks in its packs, and check the hash of all
//! they read from them.
//!
//! Nothing here looks at a clock. What is changed takes down what was there (a *roll*, a list of
//! names), and what comes later under the old key does not count.
//!
//! `change` is what an owner does to it, `hosts` are the keys of hosts, `epochs` the replacement of the root key, `kept` what a host keeps
//! so that it finds its own last backup.

pub(crate) mod change;
pub(crate) mod epochs;
pub(crate) mod hosts;
pub(crate) mod kept;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use backstay_store::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::crypto::{Class, Keys};
use crate::id::unhex;
use crate::layout::{AUDIT_KEYS, GC, HEADS, INDEX, SNAPSHOTS, TOMBSTONES};
use crate::maintenance::open;
use crate::signing::{self, SIGNATURE};
use crate::{RepoError, Result, Store};
use hosts::{Added, Leaving, Removed};

/// A kind of names below which an owner's signature of an old epoch could do harm.
pub(crate) const WRITERS: &str = "keys/writers/";

pub(crate) fn added_key(writer: &[u8; 8]) -> String {
    format!("{WRITERS}{}/added", crate::id::hex(writer))
}

pub(crate) fn leaving_key(writer: &[u8; 8]) -> String {
    format!("{WRITERS}{}/leaving", crate::id::hex(writer))
}

pub(crate) fn removed_key(writer: &[u8; 8]) -> String {
    format!("{WRITERS}{}/removed", crate::id::hex(writer))
}

/// Which hosts there are, and what counts without a signature.
#[derive(Default)]
pub(crate) struct Authority {
    hosts: HashMap<[u8; 8], Host>,
    /// What was there when the first host was added: by then programs of the first version may have
    /// written, which signed nothing. None: there never was a host, and nobody to guard against.
    unsigned: Option<HashSet<String>>,
    /// Writers of which what was added does not open.
    unknown: HashSet<[u8; 8]>,
}

struct Host {
    public: [u8; 32],
    added: Added,
    /// Somebody has begun to remove it.
    leaving: bool,
    /// What of it counts, once it was removed.
    removed: Option<HashSet<String>>,
}

impl Authority {
    /// As the store has it now. What does not open says nothing, with a warning: whoever could bar
    /// others with junk would, and what really was added or removed is signed.
    pub fn read(store: &Store, keys: &Keys, cache: Option<&Path>) -> Result<Self> {
        let mut it = Self::default();
        let mut removed = HashMap::new();
        let mut leaving = HashSet::new();
        for object in store.list(WRITERS)? {
            let Some((writer, what)) =
                object.key.strip_prefix(WRITERS).and_then(|rest| rest.split_once('/'))
            else {
                continue;
            };
            let Some(writer) = unhex::<8>(writer) else { continue };
            match what {
                "added" => {
                    let Some(added) = read::<Added>(store, keys, cache, &object)? else {
                        // Whose host it is cannot be told: nobody counts on it, and nothing
                        // unsigned is let in for its sake.
                        it.unknown.insert(writer);
                        it.unsigned.get_or_insert_default();
                        continue;
                    };
                    let unsigned = it.unsigned.get_or_insert_default();
                    unsigned.extend(added.unsigned.iter().cloned());
                    let public = added.public;
                    let host = Host { public, added, leaving: false, removed: None };
                    it.hosts.insert(writer, host);
                }
                "leaving" if read::<Leaving>(store, keys, cache, &object)?.is_some() => {
                    leaving.insert(writer);
                }
                "removed" => {
                    if let Some(gone) = read::<Removed>(store, keys, cache, &object)? {
                        removed.insert(writer, gone.roll);
                    }
                }
                _ => {}
            }
        }
        for writer in leaving {
            if let Some(host) = it.hosts.get_mut(&writer) {
                host.leaving = true;
            }
        }
        for (writer, roll) in removed {
            if let Some(host) = it.hosts.get_mut(&writer) {
                host.removed = Some(roll.into_iter().collect());
            }
        }
        Ok(it)
    }

    /// Whether a writer is a host that may only write, or was one.
    pub fn is_host(&self, writer: &[u8; 8]) -> bool {
        self.hosts.contains_key(writer)
    }

    /// Whether what a writer sealed may be something else than its id says.
    pub fn is_doubtful(&self, writer: &[u8; 8]) -> bool {
        self.is_host(writer) || self.unknown.contains(writer)
    }

    /// Whether a writer with these keys must not count on what `writer` stored.
    pub fn is_foreign(&self, keys: &Keys, writer: &[u8; 8]) -> bool {
        (self.is_host(writer) || self.unknown.contains(writer)) && keys.host() != Some(*writer)
    }

    /// Whether a host is there, and nobody has removed it or begun to.
    pub fn admits(&self, writer: &[u8; 8]) -> bool {
        self.hosts.get(writer).is_some_and(|host| host.removed.is_none() && !host.leaving)
    }

    /// Whether what a host has just created under `object` counts: nobody removes it, or it was there
    /// when the list of what counts was made.
    pub fn keeps(&self, writer: &[u8; 8], object: &str) -> bool {
        let Some(host) = self.hosts.get(writer) else { return false };
        host.removed.as_ref().map_or(!host.leaving, |roll| roll.contains(object))
    }

    /// Whether `object` counts: it was written by whom its name says, while that one might.
    ///
    /// # Errors
    /// Damage, when it was not written by whom its name says.
    pub fn vouch(
        &self,
        keys: &Keys,
        object: &str,
        writer: &[u8; 8],
        epoch: u32,
        body: &[u8],
        signature: Option<&[u8; SIGNATURE]>,
    ) -> Result<bool> {
        match (self.hosts.get(writer), signature) {
            (Some(host), Some(signature)) => {
                if !signing::verifies(&host.public, object, body, signature) {
                    return Err(RepoError::damaged(object, "its writer has not signed it"));
                }
                // A host that began before the root key was replaced may have found chunks where nobody
                // looks for them any more.
                let may = host.removed.as_ref().is_none_or(|roll| roll.contains(object));
                Ok(may && keys.counts(epoch, object))
            }
            (Some(_), None) => Err(RepoError::damaged(object, "its writer has not signed it")),
            (None, Some(signature)) => {
                keys.owner_signed(epoch, object, body, signature)?;
                Ok(keys.counts(epoch, object))
            }
            (None, None) => {
                // Later programs sign, and the header alone proves no epoch.
                if epoch > 0 {
                    return Err(RepoError::damaged(object, "nobody has signed it"));
                }
                if self.unsigned.as_ref().is_some_and(|known| !known.contains(object)) {
                    return Err(RepoError::damaged(object, "nobody has signed it"));
                }
                Ok(keys.counts(epoch, object))
            }
        }
    }
}

/// An object of who may write; `None` of one that does not open.
fn read<T: DeserializeOwned + Serialize>(
    store: &Store,
    keys: &Keys,
    cache: Option<&Path>,
    object: &ObjectMeta,
) -> Result<Option<T>> {
    let opens = |body: &[u8]| open::<T>(keys, Class::Authority, &object.key, body);
    let cached = cache.map(|folder| folder.join(object.key.replace('/', "-")));
    if let Some(path) = &cached
        && let Ok(body) = std::fs::read(path)
        && body.len() as u64 == object.size
        && let Ok(value) = opens(&body)
    {
        return Ok(Some(value));
    }
    let body = match store.read(&object.key) {
        Ok(body) => body,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match opens(&body) {
        Ok(value) => {
            if let Some(path) = cached {
                crate::index::keep(&path, &body);
            }
            Ok(Some(value))
        }
        Err(error) if error.is_about_an_object() => {
            tracing::warn!(%error, "it is ignored");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The names of what `writer` has written and may not add to.
pub(crate) fn roll_of(store: &Store, writer: &[u8; 8]) -> Result<Vec<String>> {
    let writer = crate::id::hex(writer);
    names(store, &[&format!("{SNAPSHOTS}{writer}/"), &format!("{INDEX}0/{writer}/")], |_| true)
}

/// The names of all that would do harm if somebody with a replaced root key could add to it.
///
/// What rests on something else is listed first, so that what it rests on, which was there before, is
/// in the roll as well: a list of packs to remove on the snapshots that were forgotten, a snapshot on
/// segments of the index.
pub(crate) fn roll(store: &Store) -> Result<Vec<String>> {
    let mut roll = names(store, &[HEADS], |_| true)?;
    for step in ["/sweep", "/sessions", "/condemned"] {
        roll.extend(names(store, &[GC], |name| name.ends_with(step))?);
    }
    roll.extend(names(store, &[SNAPSHOTS, TOMBSTONES, WRITERS, AUDIT_KEYS, INDEX], |name| {
        !name.starts_with(HEADS)
    })?);
    roll.sort_unstable();
    Ok(roll)
}

fn names(store: &Store, prefixes: &[&str], wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for prefix in prefixes {
        let listed = store.list(prefix)?.into_iter().map(|object| object.key);
        names.extend(listed.filter(|name| wanted(name)));
    }
    Ok(names)
}
