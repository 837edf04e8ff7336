//! Replacing the root key.
//!
//! `begun` is JSON in the clear, so that it can be read before anything is known: what is sealed to
//! and signed with from now on, and the root key before it, wrapped under the new one. It is signed by
//! the owner of the epoch before, so that a host, which cannot open the root key, can follow.
//! `roll` lists what was there; the new epoch is in force when it exists. Whatever else is
//! made with the old key after that does not count.
//!
//! Two steps, because a list is not of one moment: a session that commits looks for `begun`
//! afterwards. Where it finds none, its snapshot was there before the list was made; where it finds
//! one, it looks into the roll.

use std::collections::HashSet;

use backstay_store::failpoint;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::roll;
use crate::crypto::{Class, Era, Keys, RootKey, can_be_sealed_to, derive, open_once, seal_once};
use crate::id::{hex, unhex};
use crate::keys::timestamp;
use crate::maintenance::{open, sign};
use crate::signing::{self, SIGNATURE, SigningKey};
use crate::{Environment, RepoError, RepoErrorKind, Result, Store};

pub(crate) const EPOCHS: &str = "keys/epochs/";

fn begun_key(epoch: u32) -> String {
    format!("{EPOCHS}{epoch:08}/begun")
}

fn roll_key(epoch: u32) -> String {
    format!("{EPOCHS}{epoch:08}/roll")
}

#[derive(Debug, Serialize, Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
struct Begun {
    version: u32,
    repository: String,
    epoch: u32,
    created: Timestamp,
    /// Public keys.
    read: String,
    owner: String,
    /// To the root key.
    commitment: String,
    /// The root key of the epoch before, wrapped under the new one.
    previous: String,
    /// By the owner of the epoch before, of all of the above.
    signature: String,
}

impl Begun {
    fn signed(&self) -> Vec<u8> {
        let unsigned = Self { signature: String::new(), ..self.clone() };
        serde_json::to_vec(&unsigned).expect("plain JSON")
    }
}

/// Whether this is what begins an epoch as it was written; none where the owner before it, who signs
/// it, is not known.
pub(crate) fn is_begun(json: &[u8], keys: &Keys, repository: &[u8; 16], key: &str) -> Option<bool> {
    let Ok(begun) = serde_json::from_slice::<Begun>(json) else { return Some(false) };
    let whole = serde_json::to_vec_pretty(&begun).is_ok_and(|written| written == json);
    if !whole || begun.repository != hex(repository) || begun_key(begun.epoch) != key {
        return Some(false);
    }
    let before = keys.era(begun.epoch.checked_sub(1)?)?;
    let signed = unhex::<SIGNATURE>(&begun.signature).is_some_and(|signature| {
        signing::verifies(&before.owner, key, &begun.signed(), &signature)
    });
    Some(signed)
}

/// For [`internals`](crate::internals).
pub(crate) fn parses(json: &[u8]) -> bool {
    serde_json::from_slice::<Begun>(json).is_ok()
}

fn wrap(root: &RootKey, repository: &[u8; 16], epoch: u32) -> (Zeroizing<[u8; 32]>, Vec<u8>) {
    let key = derive(root.bytes(), repository, &[b"backstay v1 previous root key"]);
    let key = Zeroizing::new(key);
    (key, [&repository[..], &epoch.to_le_bytes()].concat())
}

/// The epochs after the first one.
#[derive(Default)]
pub(crate) struct Epochs {
    begun: Vec<Begun>,
    rolls: Vec<Bytes>,
}

impl Epochs {
    /// `listed` are the names below `keys/`.
    pub fn read(store: &Store, repository: &[u8; 16]) -> Result<Self> {
        let listed: HashSet<String> =
            store.list(EPOCHS)?.into_iter().map(|object| object.key).collect();
        let mut it = Self::default();
        for epoch in 1.. {
            let key = begun_key(epoch);
            if !listed.contains(&key) {
                break;
            }
            let begun: Begun = match serde_json::from_slice(&store.read(&key)?) {
                Ok(begun) => begun,
                // Who needs it finds that it is missing; it takes no more than the right to create.
                Err(error) => {
                    tracing::warn!(object = key, %error, "it is no beginning of an epoch");
                    break;
                }
            };
            if begun.version != 1 {
                let (had, what) = (begun.version, "this program knows 1");
                let message = format!("{key} has version {had}, {what}");
                return Err(RepoError::new(RepoErrorKind::Unsupported, message)
                    .with_hint("use a newer version of backstay"));
            }
            if begun.repository != hex(repository) || begun.epoch != epoch {
                return Err(RepoError::damaged(&key, "it is of another repository or epoch"));
            }
            it.begun.push(begun);
            match store.read(&roll_key(epoch)) {
                Ok(roll) => it.rolls.push(roll),
                Err(error) if error.is_not_found() => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(it)
    }

    /// Those that the owner of the newest one in `keys` vouches for.
    pub fn of(store: &Store, repository: &[u8; 16], keys: &Keys) -> Result<Self> {
        let mut it = Self::read(store, repository)?;
        it.believe_from(keys.eras());
        Ok(it)
    }

    /// See [`believe`](Self::believe), with the owner of the last of `eras`.
    pub fn believe_from(&mut self, eras: &[Era]) {
        if let Some(last) = eras.last() {
            self.believe(eras.len() as u32 - 1, &last.owner);
        }
    }

    /// Forgets what follows `epoch` and is not signed by the owner of the epoch before it: anybody
    /// can have made it.
    pub fn believe(&mut self, epoch: u32, owner: &[u8; 32]) {
        let mut owner = *owner;
        for next in epoch + 1..=self.newest() {
            let key = begun_key(next);
            let signed = self.begun(next).and_then(|begun| {
                let signature = unhex::<SIGNATURE>(&begun.signature)?;
                let right = signing::verifies(&owner, &key, &begun.signed(), &signature);
                right.then(|| unhex::<32>(&begun.owner)).flatten()
            });
            let Some(signed) = signed else {
                tracing::warn!(
                    object = key,
                    "nobody with the root key has signed it: it is ignored"
                );
                self.begun.truncate(next as usize - 1);
                self.rolls.truncate(next as usize - 1);
                return;
            };
            owner = signed;
        }
    }

    /// The newest epoch that has begun, whether in force or not.
    pub fn newest(&self) -> u32 {
        self.begun.len() as u32
    }

    /// The epoch in force.
    pub fn current(&self) -> u32 {
        self.rolls.len() as u32
    }

    fn begun(&self, epoch: u32) -> Option<&Begun> {
        self.begun.get((epoch as usize).checked_sub(1)?)
    }

    /// Whether `root` is the key of `epoch`; `first` is the commitment to that of epoch 0.
    pub fn is_of(&self, epoch: u32, root: &RootKey, first: &str) -> bool {
        let commitment = match epoch {
            0 => Some(first),
            epoch => self.begun(epoch).map(|begun| begun.commitment.as_str()),
        };
        commitment == Some(hex(&root.derive::<32>("commitment")).as_str())
    }

    /// The root keys of all epochs up to the one whose key is `root`.
    pub fn roots(
        &self,
        repository: &[u8; 16],
        epoch: u32,
        root: RootKey,
        first: &str,
    ) -> Result<Vec<RootKey>> {
        let mut roots = vec![root];
        for epoch in (1..=epoch).rev() {
            let key = begun_key(epoch);
            let (Some(begun), Some(root)) = (self.begun(epoch), roots.last()) else {
                return Err(RepoError::damaged(&key, "it is missing"));
            };
            let era = Era::of(root);
            let (wrapping, bound) = wrap(root, repository, epoch);
            let previous = unhex::<48>(&begun.previous)
                .and_then(|wrapped| open_once(&wrapping, &bound, &wrapped))
                .and_then(|root| RootKey::from_slice(&root))
                .filter(|previous| self.is_of(epoch - 1, previous, first))
                .filter(|_| begun.read == hex(&era.public) && begun.owner == hex(&era.owner));
            roots.push(previous.ok_or_else(|| RepoError::damaged(&key, "it was altered"))?);
        }
        roots.reverse();
        Ok(roots)
    }

    /// Adds the epochs that began after the ones a host knows.
    pub fn follow(&self, eras: &mut Vec<Era>) -> Result<()> {
        for epoch in eras.len() as u32..=self.current() {
            let key = begun_key(epoch);
            let begun =
                self.begun(epoch).ok_or_else(|| RepoError::damaged(&key, "it is missing"))?;
            let era = eras.last().and_then(|last| {
                let signature = unhex::<SIGNATURE>(&begun.signature)?;
                let right = signing::verifies(&last.owner, &key, &begun.signed(), &signature);
                right.then_some(())?;
                let read = unhex(&begun.read).filter(can_be_sealed_to)?;
                Some(Era::public(read, unhex(&begun.owner)?))
            });
            eras.push(era.ok_or_else(|| RepoError::damaged(&key, "it was altered"))?);
        }
        Ok(())
    }

    /// Notes what of each epoch that has ended counts.
    pub fn close(&self, keys: &mut Keys) -> Result<()> {
        for (epoch, body) in (1..).zip(&self.rolls) {
            let names = open::<Vec<String>>(keys, Class::Authority, &roll_key(epoch), body)?;
            keys.close(epoch - 1, names.into_iter().collect());
        }
        Ok(())
    }
}

/// Refuses to begin an epoch whose names are taken, by whatever it is.
pub(crate) fn must_be_free(store: &Store, epoch: u32) -> Result<()> {
    for key in [begun_key(epoch), roll_key(epoch)] {
        match store.head(&key) {
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
            Ok(_) => {
                return Err(RepoError::damaged(
                    &key,
                    "it is there, and nobody has begun this epoch",
                )
                .with_hint(format!("look who made {key}, remove it, and run this again")));
            }
        }
    }
    Ok(())
}

/// Begins a new epoch with `root`; whether this was the first to do so.
pub(crate) fn begin(
    store: &Store,
    env: &Environment,
    repository: &[u8; 16],
    previous: &RootKey,
    epoch: u32,
    root: &RootKey,
) -> Result<bool> {
    let era = Era::of(root);
    let (wrapping, bound) = wrap(root, repository, epoch);
    let mut begun = Begun {
        version: 1,
        repository: hex(repository),
        epoch,
        created: timestamp(env),
        read: hex(&era.public),
        owner: hex(&era.owner),
        commitment: hex(&root.derive::<32>("commitment")),
        previous: hex(&seal_once(&wrapping, &bound, previous.bytes())),
        signature: String::new(),
    };
    let key = begun_key(epoch);
    let signing_key = SigningKey::from_seed(&Zeroizing::new(previous.derive("sign")));
    begun.signature = hex(&signing_key.sign(&key, &begun.signed()));
    let body = serde_json::to_vec_pretty(&begun).expect("plain JSON");
    match store.create(&key, body.into()) {
        Ok(()) => {
            failpoint::hit("rotate-begun");
            Ok(true)
        }
        Err(error) if error.is_already_exists() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Brings an epoch into force that has begun. `keys` are those of it. Whoever is first decides what
/// was there.
pub(crate) fn bring_into_force(store: &Store, env: &Environment, keys: &Keys) -> Result<()> {
    let key = roll_key(keys.epoch);
    let names = roll(store)?;
    match store.create(&key, sign(keys, env, Class::Authority, &key, &names)) {
        Err(error) if !error.is_already_exists() => Err(error.into()),
        _ => {
            failpoint::hit("rotate-in-force");
            Ok(())
        }
    }
}

/// Whether what an owner with the keys of `epoch` has just created under `object` counts: no other
/// epoch has begun, or it is in its roll.
pub(crate) fn still_counts(
    store: &Store,
    keys: &Keys,
    repository: &[u8; 16],
    object: &str,
) -> Result<bool> {
    let epochs = Epochs::of(store, repository, keys)?;
    if epochs.newest() <= keys.epoch {
        return Ok(true);
    }
    // The roll of the next epoch is signed with a key that only the begun object tells.
    let mut eras: Vec<Era> =
        keys.eras().iter().map(|era| Era::public(era.public, era.owner)).collect();
    epochs.follow(&mut eras)?;
    let next = keys.epoch + 1;
    let Some(body) = epochs.rolls.get(next as usize - 1) else { return Ok(false) };
    let host = Some(([0; 8], SigningKey::from_seed(&[0; 32])));
    let public = Keys::new(keys.names(), eras, host);
    let names = open::<Vec<String>>(&public, Class::Authority, &roll_key(next), body)?;
    Ok(names.iter().any(|name| name == object))
}
