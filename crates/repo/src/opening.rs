//! What opens a repository: the object `format`, and the keys that a secret gives.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::authority::epochs::Epochs;
use crate::authority::hosts::Bundle;
use crate::crypto::{Era, Keys, Names, RootKey};
use crate::id::hex;
use crate::keys::{self, Secret};
use crate::layout::FORMAT;
use crate::{RepoError, RepoErrorKind, Repository, Result, Store};

/// The object `format`: JSON, so that a person can see what the store holds.
#[derive(Serialize, Deserialize, Clone)]
pub(crate) struct Format {
    pub backstay: String,
    pub version: u32,
    pub id: String,
    pub created: Timestamp,
    pub chunker: String,
    pub epoch: u32,
    /// To the root key of each epoch.
    pub commitment: String,
    pub features: Features,
    /// Keyed hash of all of the above.
    #[serde(default)]
    pub seal: String,
}

/// To read: entries of grouped files carry a hash of their own ([`Body::Member`](crate::Body)).
pub(crate) const MEMBERS: &str = "members";

/// Flags that a program must know to do something here.
#[derive(Serialize, Deserialize, Clone, Default)]
pub(crate) struct Features {
    pub read: Vec<String>,
    pub write: Vec<String>,
    pub check: Vec<String>,
    pub delete: Vec<String>,
}

impl Features {
    /// Those of a new repository.
    pub fn of_new() -> Self {
        Self { read: vec![MEMBERS.to_owned()], ..Self::default() }
    }

    pub fn has_members(&self) -> bool {
        self.read.iter().any(|flag| flag == MEMBERS)
    }
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
    pub fn sealed_with(&self, keys: &Keys) -> String {
        let unsealed = Self { seal: String::new(), ..self.clone() };
        let body = serde_json::to_vec(&unsealed).expect("plain JSON");
        blake3::keyed_hash(&keys.format, &body).to_hex().to_string()
    }
}

/// What a secret has opened.
pub(crate) struct Opened {
    /// By epoch; none for a host.
    pub roots: Vec<RootKey>,
    pub keys: Keys,
    pub kept: Option<Zeroizing<[u8; 32]>>,
    pub slot: String,
}

pub(crate) fn open_owner(
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

pub(crate) fn open_host(bundle: &Bundle, id: &[u8; 16], epochs: &mut Epochs) -> Result<Opened> {
    if bundle.repository != *id {
        return Err(RepoError::new(
            RepoErrorKind::WrongKey,
            "the key of this host is that of another repository",
        )
        .with_hint("name the key file that was made for this one"));
    }
    let mut eras = bundle.eras();
    epochs.believe_from(&eras);
    epochs.follow(&mut eras)?;
    let host = Some((bundle.writer, bundle.signing_key()));
    let keys = Keys::new(bundle.names(), eras, host);
    let kept = Some(bundle.kept_key());
    Ok(Opened { roots: Vec::new(), keys, kept, slot: hex(&bundle.writer) })
}

pub(crate) fn write_only_secret(what: &str) -> RepoError {
    RepoError::new(
        RepoErrorKind::Usage,
        format!("the key of a host that may only write cannot {what}"),
    )
    .with_hint("name another key file, or a passphrase")
}
