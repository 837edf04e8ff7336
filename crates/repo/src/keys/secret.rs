//! What opens a repository, in memory.

use std::fmt;

use backstay_store::{KeyService, KeyServiceKind};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::age::{Identity, Recipient};
use super::escrow::{self, Share};
use crate::authority::hosts::Bundle;
use crate::{RepoError, RepoErrorKind, Result};

/// The least number of bytes that a key file must hold.
const KEY_FILE_MIN: usize = 32;

/// What opens a repository. Never printed.
#[derive(Clone)]
pub enum Secret {
    KeyFile(Zeroizing<Vec<u8>>),
    Passphrase(SecretString),
    /// The key of a host that may add backups, and read or remove none.
    WriteOnly(Box<Bundle>),
    /// What an age identity file holds: one or more.
    Identities(Vec<Identity>),
    /// Whom a slot is made for. Opens nothing by itself.
    Recipient(Recipient),
    /// A service that keeps the key and lets nobody see it.
    Service(KeyService),
    /// Shares of an escrow set.
    Shares(Vec<Share>),
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

    /// The kind of slot that is made for it.
    pub fn kind(&self) -> SlotKind {
        match self {
            Self::KeyFile(_) => SlotKind::KeyFile,
            Self::Passphrase(_) => SlotKind::Passphrase,
            Self::WriteOnly(_) => SlotKind::WriteOnly,
            Self::Identities(_) | Self::Recipient(_) => SlotKind::Age,
            Self::Shares(_) => SlotKind::Escrow,
            Self::Service(service) => match service.kind() {
                KeyServiceKind::AwsKms => SlotKind::AwsKms,
                KeyServiceKind::VaultTransit => SlotKind::VaultTransit,
            },
        }
    }

    /// What shares make together, which opens their slot as a key file does: for a store that no new
    /// key can be added to. Right only when the shares have opened a repository.
    pub fn shared(&self) -> Option<Zeroizing<Vec<u8>>> {
        match self {
            Self::Shares(shares) => Some(escrow::combined(shares)),
            _ => None,
        }
    }

    /// Whether it is worth trying on a slot of that kind. The secret of an age slot, as `age -d`
    /// gives it, and that of an escrow set are taken as key files.
    pub(crate) fn may_open(&self, kind: SlotKind) -> bool {
        let secret_of_slot = matches!(kind, SlotKind::Age | SlotKind::Escrow);
        // A host has no slot, whatever one says that somebody put there.
        if matches!(self, Self::WriteOnly(_)) {
            return false;
        }
        self.kind() == kind || (matches!(self, Self::KeyFile(_)) && secret_of_slot)
    }

    /// What a message calls it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::KeyFile(_) => "key-file",
            Self::Passphrase(_) => "passphrase",
            Self::WriteOnly(_) => "key of a host",
            Self::Identities(_) => "age identity",
            Self::Recipient(_) => "age recipient",
            Self::Service(service) => match service.kind() {
                KeyServiceKind::AwsKms => "key of AWS KMS",
                KeyServiceKind::VaultTransit => "key of Vault",
            },
            Self::Shares(_) => "set of shares",
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    /// The identity of an age recipient.
    Age,
    /// Shares that several people hold.
    Escrow,
    AwsKms,
    VaultTransit,
}

impl SlotKind {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyFile => "key-file",
            Self::Passphrase => "passphrase",
            Self::WriteOnly => "write-only",
            Self::Age => "age",
            Self::Escrow => "escrow",
            Self::AwsKms => "aws-kms",
            Self::VaultTransit => "vault-transit",
        }
    }

    /// Whether its use is so rare that each one is worth an object in the repository.
    pub fn is_for_emergencies(self) -> bool {
        matches!(self, Self::Age | Self::Escrow)
    }
}

impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
