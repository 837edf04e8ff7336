//! The keys of hosts that may add backups, and read or remove none.
//!
//! A key file of such a host is text: a line that says what it is, then hexadecimal digits of what it
//! holds (postcard) and the first 8 bytes of its BLAKE3. It names things as the owner does (chunk
//! ids, chunker, index), has a private key to sign with, and public keys to seal to.

use backstay_store::failpoint;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{WRITERS, added_key, leaving_key, removed_key, roll_of};
use crate::audit::{self, KeyAction};
use crate::crypto::{Class, Era, Keys, Names, can_be_sealed_to, derive};
use crate::id::{hex, unhex};
use crate::keys::timestamp;
use crate::maintenance::sign;
use crate::repository::Repository;
use crate::signing::SigningKey;
use crate::{RepoError, RepoErrorKind, Result};

const FIRST_LINE: &str = "backstay write-only key 1";
const CHECK: usize = 8;
const LINE: usize = 64;

/// `keys/writers/<writer>/added`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Added {
    pub label: String,
    /// Seconds.
    pub created: i64,
    /// Of Ed25519.
    pub public: [u8; 32],
    /// What was there without a signature, and counts all the same.
    pub unsigned: Vec<String>,
}

/// `keys/writers/<writer>/leaving`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leaving {
    /// Seconds.
    pub since: i64,
}

/// `keys/writers/<writer>/removed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removed {
    /// What it had written, and what counts.
    pub roll: Vec<String>,
}

/// A host that may only write, as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostKey {
    /// The writer in whose name it adds backups, 16 hexadecimal digits.
    pub id: String,
    pub label: String,
    pub created: Timestamp,
    /// Whether what it writes from now on does not count.
    pub removed: bool,
}

/// What the key file of a host holds. Never printed.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct Bundle {
    pub(crate) repository: [u8; 16],
    pub(crate) writer: [u8; 8],
    pub(crate) seed: [u8; 32],
    data_id: [u8; 32],
    metadata_id: [u8; 32],
    pages: [u8; 32],
    chunker: [u8; 32],
    index: [u8; 32],
    format: [u8; 32],
    /// Of each epoch: to which key is sealed, and who signs.
    eras: Vec<([u8; 32], [u8; 32])>,
}

impl Bundle {
    /// `None` of bytes that are no key of a host at all.
    pub(crate) fn parse(file: &[u8]) -> Option<Result<Self>> {
        let text = std::str::from_utf8(file).ok()?;
        let rest = text.strip_prefix(FIRST_LINE)?;
        let whole = || {
            let digits: Zeroizing<String> =
                Zeroizing::new(rest.chars().filter(|c| !c.is_whitespace()).collect());
            let mut bytes = Zeroizing::new(Vec::with_capacity(digits.len() / 2));
            for pair in digits.as_bytes().chunks(2) {
                bytes.push(unhex::<1>(std::str::from_utf8(pair).ok()?)?[0]);
            }
            let (body, check) = bytes.split_last_chunk::<CHECK>()?;
            let right = blake3::hash(body).as_bytes().starts_with(check);
            right.then(|| postcard::from_bytes::<Self>(body).ok()).flatten()
        };
        let usable = |bundle: &Self| {
            !bundle.eras.is_empty() && bundle.eras.iter().all(|(read, _)| can_be_sealed_to(read))
        };
        Some(whole().filter(usable).ok_or_else(|| {
            RepoError::new(
                RepoErrorKind::Usage,
                "the key of this host is not whole: a part is missing or was altered",
            )
            .with_hint("copy it again, or make a new one with `backstay key add --write-only`")
        }))
    }

    fn file(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(postcard::to_stdvec(self).expect("plain data"));
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..CHECK]);
        let digits = Zeroizing::new(hex(&bytes));
        let mut file = Zeroizing::new(format!("{FIRST_LINE}\n").into_bytes());
        for line in digits.as_bytes().chunks(LINE) {
            file.extend_from_slice(line);
            file.push(b'\n');
        }
        file
    }

    pub(crate) fn names(&self) -> Names {
        Names {
            data_id: self.data_id,
            metadata_id: self.metadata_id,
            pages: self.pages,
            chunker: self.chunker,
            index: self.index,
            format: self.format,
        }
    }

    pub(crate) fn eras(&self) -> Vec<Era> {
        self.eras.iter().map(|(public, owner)| Era::public(*public, *owner)).collect()
    }

    pub(crate) fn signing_key(&self) -> SigningKey {
        SigningKey::from_seed(&self.seed)
    }

    /// Seals what the host keeps for itself.
    pub(crate) fn kept_key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(derive(&self.seed, &self.repository, &[b"backstay v1 kept sessions"]))
    }
}

/// Adds a host; what its key file must hold.
pub(crate) fn add(repository: &Repository, label: &str) -> Result<(HostKey, Zeroizing<Vec<u8>>)> {
    let (store, env, keys) = (repository.store(), repository.environment(), repository.keys());
    let Keys { data_id, metadata_id, pages, chunker, index, format, .. } = *keys;
    let bundle = Bundle {
        repository: repository.raw_id(),
        writer: env.random(),
        seed: env.random(),
        data_id,
        metadata_id,
        pages,
        chunker,
        index,
        format,
        eras: keys.eras().iter().map(|era| (era.public, era.owner)).collect(),
    };
    // Once there is a host, what nobody has signed counts no more, but for what is there.
    let first = !store.list(WRITERS)?.iter().any(|object| object.key.ends_with("/added"));
    let unsigned = if first { repository.unsigned()? } else { Vec::new() };
    let created = timestamp(env);
    let added = Added {
        label: label.to_owned(),
        created: created.as_second(),
        public: bundle.signing_key().public(),
        unsigned,
    };
    let id = hex(&bundle.writer);
    audit::record_host(repository, KeyAction::Add, &id, label)?;
    let key = added_key(&bundle.writer);
    store.create(&key, sign(keys, env, Class::Authority, &key, &added))?;
    failpoint::hit("host-added");
    let host = HostKey { id, label: added.label, created, removed: false };
    Ok((host, bundle.file()))
}

/// Lets nothing count any more that a host writes from now on.
///
/// Two steps, because a list is not of one moment: a host that has created its snapshot looks for
/// `leaving` afterwards. Where it finds none, its snapshot was there before the list was made; where
/// it finds one, it is told that its backup failed, unless the list has it.
pub(crate) fn remove(repository: &Repository, writer: &[u8; 8]) -> Result<()> {
    let (store, env, keys) = (repository.store(), repository.environment(), repository.keys());
    let before = || {
        RepoError::new(
            RepoErrorKind::NotFound,
            format!("the key of the host {} was removed before", hex(writer)),
        )
    };
    let authority = repository.authority()?;
    let host = authority.hosts().into_iter().find(|host| host.id == hex(writer));
    match host {
        Some(host) if host.removed => return Err(before()),
        Some(host) => audit::record_host(repository, KeyAction::Remove, &host.id, &host.label)?,
        None => audit::record_host(repository, KeyAction::Remove, &hex(writer), "")?,
    };
    let key = leaving_key(writer);
    let leaving = Leaving { since: timestamp(env).as_second() };
    match store.create(&key, sign(keys, env, Class::Authority, &key, &leaving)) {
        Ok(()) => failpoint::hit("host-leaving"),
        // Somebody else does it, or did not come to the end of it.
        Err(error) if error.is_already_exists() => {}
        Err(error) => return Err(error.into()),
    }
    let key = removed_key(writer);
    let removed = Removed { roll: roll_of(store, writer)? };
    match store.create(&key, sign(keys, env, Class::Authority, &key, &removed)) {
        Ok(()) => Ok(()),
        Err(error) if error.is_already_exists() => Err(before()),
        Err(error) => Err(error.into()),
    }
}

impl super::Authority {
    /// All hosts that ever were, oldest first.
    pub fn hosts(&self) -> Vec<HostKey> {
        let mut hosts: Vec<HostKey> = self
            .hosts
            .iter()
            .map(|(writer, host)| HostKey {
                id: hex(writer),
                label: host.added.label.clone(),
                created: Timestamp::from_second(host.added.created).unwrap_or_default(),
                removed: host.removed.is_some(),
            })
            .collect();
        hosts.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        hosts
    }
}

/// For [`internals`](crate::internals): which of the bodies that say who may write these bytes are.
pub(crate) fn parses(body: &[u8]) -> [bool; 4] {
    [
        postcard::from_bytes::<Added>(body).is_ok(),
        postcard::from_bytes::<Leaving>(body).is_ok(),
        postcard::from_bytes::<Removed>(body).is_ok(),
        postcard::from_bytes::<Vec<String>>(body).is_ok(),
    ]
}

/// Valid bodies, for tests that alter them.
pub(crate) fn samples() -> Vec<Vec<u8>> {
    let roll = vec!["snapshots/a1/b2".to_owned(); 4];
    let added = Added {
        label: "a host".into(),
        created: 1_700_000_000,
        public: [7; 32],
        unsigned: roll.clone(),
    };
    let made = [
        postcard::to_stdvec(&added),
        postcard::to_stdvec(&Leaving { since: 1_700_000_000 }),
        postcard::to_stdvec(&Removed { roll: roll.clone() }),
        postcard::to_stdvec(&roll),
    ];
    made.into_iter().flatten().collect()
}
