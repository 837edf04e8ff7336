//! The object of a slot: what is in it, what it is bound to, and how the root key comes out of it.

use backstay_store::{Environment, KeyServiceErrorKind};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::age::{self, Refused};
use super::escrow::{self, EscrowSet, Share};
use super::passphrase::Argon2Parameters;
use super::{KeySlot, Secret, SlotKind, timestamp};
use crate::crypto::{RootKey, derive, equal, open_once, seal_once};
use crate::id::{hex, unhex};
use crate::layout::KEYS;
use crate::opening::write_only_secret;
use crate::{RepoError, RepoErrorKind, Result};

#[derive(Serialize, Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct SlotObject {
    pub version: u32,
    /// Its id.
    pub repository: String,
    pub kind: SlotKind,
    pub label: String,
    pub created: Timestamp,
    pub epoch: u32,
    salt: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2id: Option<Argon2Parameters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    age: Option<AgeSecret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    escrow: Option<EscrowSet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<ServiceSecret>,
    commitment: String,
    wrapped: String,
    /// Keyed hash of all of the above.
    seal: String,
}

/// The slot's secret, sealed to a recipient.
#[derive(Serialize, Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
struct AgeSecret {
    recipient: String,
    /// Armoured.
    file: String,
}

/// The slot's secret, encrypted by a service.
#[derive(Serialize, Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
struct ServiceSecret {
    /// What the service calls its key.
    key: String,
    ciphertext: String,
}

/// A slot that is not in the store yet.
pub(crate) struct NewSlot {
    pub slot: KeySlot,
    pub body: Vec<u8>,
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
        blake3::keyed_hash(&Zeroizing::new(root.derive("key slot")), &body).to_hex().to_string()
    }

    /// Whether it wraps this very root key of this very repository, and was not altered.
    pub fn is_of(&self, repository: &[u8; 16], root: &RootKey, id: &str) -> bool {
        self.repository == hex(repository) && self.seal == self.sealed_with(root, id)
    }

    /// A slot that opens with `secret`. With shares to hand out where they are asked for: then the
    /// slot opens with those, and `secret` is not used.
    pub fn make(
        env: &Environment,
        repository: &[u8; 16],
        root: &RootKey,
        epoch: u32,
        holder: Holder<'_>,
        label: &str,
    ) -> Result<(NewSlot, Vec<Share>)> {
        let id: [u8; 8] = env.random();
        let salt: [u8; 32] = env.random();
        let mut slot = Self {
            version: 1,
            repository: hex(repository),
            kind: SlotKind::Escrow,
            label: label.to_owned(),
            created: timestamp(env),
            epoch,
            salt: hex(&salt),
            argon2id: None,
            age: None,
            escrow: None,
            service: None,
            commitment: String::new(),
            wrapped: String::new(),
            seal: String::new(),
        };
        let mut shares = Vec::new();
        let stretched = match holder {
            Holder::Secret(secret) => {
                slot.kind = secret.kind();
                slot.wrap_secret(env, repository, secret, &salt)?
            }
            Holder::Shares { shares: count, threshold } => {
                let fresh = Zeroizing::new(env.random::<32>());
                let (set, made) =
                    escrow::share_out(env, repository, id, &salt, &fresh, count, threshold)?;
                slot.escrow = Some(set);
                shares = made;
                Zeroizing::new(fresh.to_vec())
            }
        };
        let keys = keys(&stretched, &salt);
        slot.commitment = hex(&keys[32..]);
        slot.wrapped = hex(&seal_once(first_half(&keys), &slot.bound(), root.bytes()));
        let id = hex(&id);
        slot.seal = slot.sealed_with(root, &id);
        let body = serde_json::to_vec_pretty(&slot).expect("a slot is plain JSON");
        Ok((NewSlot { slot: slot.shown(&id, ""), body }, shares))
    }

    /// What `secret` comes to for this slot; where it is a public key or a service, a new secret
    /// that only it can tell again.
    fn wrap_secret(
        &mut self,
        env: &Environment,
        repository: &[u8; 16],
        secret: &Secret,
        salt: &[u8; 32],
    ) -> Result<Zeroizing<Vec<u8>>> {
        let recipient = match secret {
            Secret::KeyFile(bytes) => return Ok(bytes.clone()),
            Secret::Passphrase(text) => {
                let parameters = Argon2Parameters::NEW;
                self.argon2id = Some(parameters);
                return Ok(parameters
                    .stretch(text.expose_secret(), salt)?
                    .expect("new parameters are within bounds"));
            }
            Secret::WriteOnly(_) => return Err(write_only_secret("open a repository")),
            Secret::Shares(_) => {
                return Err(RepoError::new(
                    RepoErrorKind::Usage,
                    "a repository is not opened anew with old shares",
                )
                .with_hint("make a new set with `backstay key escrow`"));
            }
            Secret::Service(service) => {
                let fresh = Zeroizing::new(env.random::<32>());
                let wrapped = service.wrap(fresh.as_slice(), &hex(repository))?;
                self.service =
                    Some(ServiceSecret { key: wrapped.key, ciphertext: wrapped.ciphertext });
                return Ok(Zeroizing::new(fresh.to_vec()));
            }
            Secret::Recipient(recipient) => *recipient,
            Secret::Identities(identities) => {
                let first = identities.first().ok_or_else(|| {
                    RepoError::new(RepoErrorKind::Usage, "no age identity is there")
                })?;
                first.recipient()
            }
        };
        let fresh = Zeroizing::new(env.random::<32>());
        self.age = Some(AgeSecret {
            recipient: recipient.to_string(),
            file: age::encrypt(&recipient, fresh.as_slice(), env),
        });
        Ok(Zeroizing::new(fresh.to_vec()))
    }

    /// What `secret` comes to for this slot; none when it cannot be the right one.
    fn unwrap_secret(&self, secret: &Secret, id: &str) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let Some(salt) = unhex::<32>(&self.salt) else { return Ok(None) };
        let damaged = |why: &str| RepoError::damaged(&format!("{KEYS}{id}"), why);
        match secret {
            Secret::KeyFile(bytes) => Ok(self.argon2id.is_none().then(|| bytes.clone())),
            Secret::Passphrase(text) => match self.argon2id {
                Some(parameters) => parameters.stretch(text.expose_secret(), &salt),
                None => Ok(None),
            },
            Secret::Identities(identities) => {
                let Some(age) = &self.age else { return Ok(None) };
                match age::decrypt(identities, &age.file) {
                    Ok(secret) => Ok(Some(secret)),
                    Err(Refused::NotOurs) => Ok(None),
                    Err(Refused::Damaged(why)) => Err(damaged(why)),
                }
            }
            Secret::Recipient(_) | Secret::WriteOnly(_) => Ok(None),
            Secret::Service(service) => {
                let Some(sealed) = &self.service else { return Ok(None) };
                match service.unwrap(&sealed.ciphertext, &self.repository) {
                    Ok(secret) => Ok(Some(secret)),
                    // The service answered, and it is not its own.
                    Err(error) if error.kind() == KeyServiceErrorKind::NotOpened => Ok(None),
                    Err(error) => Err(error.into()),
                }
            }
            Secret::Shares(shares) => {
                let Some(set) = &self.escrow else { return Ok(None) };
                if shares.first().is_none_or(|share| share.set() != id) {
                    return Ok(None);
                }
                let secret = escrow::secret_of(shares, set, &salt)?;
                Ok(Some(Zeroizing::new(secret.to_vec())))
            }
        }
    }

    /// The root key, when `secret` is the right one. An error is about this slot, and says nothing
    /// about others.
    pub fn open(&self, secret: &Secret, id: &str) -> Result<Option<RootKey>> {
        let Some(stretched) = self.unwrap_secret(secret, id)? else { return Ok(None) };
        let (Some(salt), Some(commitment)) =
            (unhex::<32>(&self.salt), unhex::<32>(&self.commitment))
        else {
            return Ok(None);
        };
        let keys = keys(&stretched, &salt);
        if !equal(&keys[32..], &commitment) {
            return Ok(None);
        }
        let root = unhex::<48>(&self.wrapped)
            .and_then(|wrapped| open_once(first_half(&keys), &self.bound(), &wrapped))
            .and_then(|root| RootKey::from_slice(&root));
        match root {
            Some(root) => Ok(Some(root)),
            None => Err(RepoError::damaged(
                &format!("{KEYS}{id}"),
                "it belongs to this key and does not open",
            )),
        }
    }

    /// As people see it.
    pub fn shown(&self, id: &str, current: &str) -> KeySlot {
        let detail = match (&self.age, &self.escrow, &self.service) {
            (Some(age), _, _) => Some(age.recipient.clone()),
            (_, Some(set), _) => Some(format!("{} of {} shares", set.threshold, set.shares)),
            (_, _, Some(service)) => Some(service.key.clone()),
            _ => None,
        };
        KeySlot {
            current: id == current,
            id: id.to_owned(),
            kind: self.kind,
            label: self.label.clone(),
            created: self.created,
            epoch: self.epoch,
            detail,
        }
    }
}

/// For whom a slot is made.
pub(crate) enum Holder<'a> {
    Secret(&'a Secret),
    /// Several people together, who get shares.
    Shares {
        shares: u8,
        threshold: u8,
    },
}

fn keys(stretched: &[u8], salt: &[u8; 32]) -> Zeroizing<[u8; 64]> {
    Zeroizing::new(derive(stretched, salt, &[b"backstay v1 key slot"]))
}

fn first_half(keys: &[u8; 64]) -> &[u8; 32] {
    keys.first_chunk().expect("32 of 64 bytes")
}
