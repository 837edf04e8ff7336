//! What changes who may write: hosts are added and removed, the root key is replaced.

use backstay_store::failpoint;
use serde::Serialize;
use zeroize::Zeroizing;

use super::epochs::Epochs;
use super::hosts::HostKey;
use crate::audit::{self, KeyAction};
use crate::crypto::{Class, Era, Keys, RootKey};
use crate::id::unhex;
use crate::index::open_object;
use crate::keys::{self, Holder, KeySlot, Secret, SlotObject};
use crate::layout::{INDEX, KEYS, SNAPSHOTS, Work};
use crate::opening::write_only_secret;
use crate::snapshot::split_signature;
use crate::{RepoError, RepoErrorKind, Repository, Result, maintenance};

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

impl Repository {
    /// The hosts that may add backups, and read or remove none, oldest first.
    pub fn hosts(&self) -> Result<Vec<HostKey>> {
        Ok(self.reload_authority()?.hosts())
    }

    /// Adds such a host; the content of its key file, which is kept nowhere else.
    pub fn add_host(&self, label: &str) -> Result<(HostKey, Zeroizing<Vec<u8>>)> {
        self.allow_write()?;
        self.root("add a key")?;
        let added = super::hosts::add(self, label)?;
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
        super::hosts::remove(self, &writer)?;
        self.reload_authority().map(drop)
    }

    /// What is there that nobody has signed: programs of the first version did not.
    pub(crate) fn unsigned(&self) -> Result<Vec<String>> {
        let mut unsigned = Vec::new();
        for object in self.store().list(SNAPSHOTS)? {
            let Some(work) = Work::from_snapshot_key(&object.key) else { continue };
            let opened = self.store().read(&object.key).map_err(RepoError::from);
            match opened.and_then(|body| self.open_work(Class::Snapshot, &object.key, work, &body))
            {
                Ok(plain) if split_signature(&plain).1.is_none() => unsigned.push(object.key),
                Ok(_) => {}
                Err(error) if error.is_about_an_object() => {}
                Err(error) => return Err(error),
            }
        }
        for object in self.store().list(INDEX)? {
            if Work::from_index_key(&object.key).is_none() {
                continue;
            }
            let opened = self.store().read(&object.key).map_err(RepoError::from);
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
        let (store, env, id) = (self.store(), self.environment(), self.raw_id());
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
        super::epochs::must_be_free(store, self.epoch() + 1)?;
        maintenance::must_rest(self)?;
        let (epoch, root) = (self.epoch() + 1, RootKey::generate(env));
        let add = |(secret, label): &(Secret, String)| {
            let holder = Holder::Secret(secret);
            let (new, _) = SlotObject::make(env, &id, &root, epoch, holder, label)?;
            self.put_slot(new)
        };
        let slots: Vec<KeySlot> = secrets.iter().map(add).collect::<Result<_>>()?;
        failpoint::hit("rotate-keys-added");
        if !super::epochs::begin(store, env, &id, previous, epoch, &root)? {
            // They open nothing.
            for slot in &slots {
                audit::record(self, KeyAction::Remove, slot, None)?;
                store.delete(&format!("{KEYS}{}", slot.id))?;
            }
            return Err(busy());
        }
        let mut eras: Vec<Era> = self.roots().iter().map(Era::of).collect();
        eras.push(Era::of(&root));
        let keys = Keys::new(self.keys().names(), eras, None);
        keys::remove_left(store, &id, &root, epoch)?;
        super::epochs::bring_into_force(store, env, &keys)?;
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
        if Epochs::of(self.store(), &self.raw_id(), self.keys())?.newest() <= self.epoch() {
            return Ok(());
        }
        Err(RepoError::new(RepoErrorKind::Busy, "the root key is being replaced, or was meanwhile")
            .with_hint("run it again, with a key that opens the new root key"))
    }

    /// Fails where what was just created under `object` does not count, since the root key was
    /// replaced meanwhile, or this host was removed.
    pub(crate) fn must_count(&self, object: &str) -> Result<()> {
        if let Some(writer) = self.keys().host()
            && !self.reload_authority()?.keeps(&writer, object)
        {
            return Err(removed_meanwhile());
        }
        if super::epochs::still_counts(self.store(), self.keys(), &self.raw_id(), object)? {
            return Ok(());
        }
        Err(RepoError::new(
            RepoErrorKind::Busy,
            "the root key was replaced while this was at work: what it wrote since does not count",
        )
        .with_hint("run it again, with a key that opens the new root key"))
    }
}

/// What a host is told that was removed while it was at work.
pub(crate) fn removed_meanwhile() -> RepoError {
    RepoError::new(
        RepoErrorKind::WrongKey,
        "the key of this host was removed while this was at work: what it wrote since does not count",
    )
    .with_hint(
        "if this host is to go on, make a new key where the repository can be opened: `backstay key \
         add --write-only`",
    )
}
