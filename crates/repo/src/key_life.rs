//! What happens to key slots over the years: added, replaced, removed, shared out, and every bit of
//! it recorded before it takes effect.
//!
//! **Two hosts that remove the last two slots at once must not leave none.** The store has no call
//! that removes one object only while another is there. So a removal is recorded first (`audit/keys`),
//! and only then are slots and records read: a slot that anybody else has recorded as going does not
//! count as one that stays. Of two such removals the one whose record came second reads the other's;
//! it refuses, and records that it does. The first may read both records and refuse as well: then
//! both slots stay, and somebody tries again. A removal that died between its record and its end
//! counts until it is done again. No clock is asked.

use crate::audit::{self, KeyAction, KeyRecord};
use crate::keys::escrow::Share;
use crate::keys::{self, Holder, KeySlot, NewSlot, Removal, Secret, SlotObject};
use crate::{RepoError, RepoErrorKind, Repository, Result};
use backstay_store::{ErrorKind, failpoint};

impl Repository {
    /// The slots that open this repository.
    pub fn key_slots(&self) -> Result<Vec<KeySlot>> {
        keys::list(self.store(), &self.raw_id(), self.slot())
    }

    /// The slot that this repository was opened with; none when it was removed since.
    pub fn current_slot(&self) -> Result<Option<KeySlot>> {
        Ok(self.key_slots()?.into_iter().find(|slot| slot.current))
    }

    /// Adds a slot, so that `secret` opens this repository too.
    pub fn add_key(&self, secret: &Secret, label: &str) -> Result<KeySlot> {
        Ok(self.add_holder(Holder::Secret(secret), label)?.0)
    }

    /// Adds a slot that any `threshold` of so many shares open. The shares are nowhere but in the
    /// answer.
    pub fn escrow(&self, shares: u8, threshold: u8, label: &str) -> Result<(KeySlot, Vec<Share>)> {
        self.add_holder(Holder::Shares { shares, threshold }, label)
    }

    fn add_holder(&self, holder: Holder<'_>, label: &str) -> Result<(KeySlot, Vec<Share>)> {
        self.allow_write()?;
        let root = self.root("add a key")?;
        let (new, shares) = SlotObject::make(
            self.environment(),
            &self.raw_id(),
            root,
            self.keys().epoch,
            holder,
            label,
        )?;
        Ok((self.put_slot(new)?, shares))
    }

    pub(crate) fn put_slot(&self, new: NewSlot) -> Result<KeySlot> {
        audit::record(self, KeyAction::Add, &new.slot, None)?;
        failpoint::hit("key-recorded");
        let slot = keys::put(self.store(), new)?;
        failpoint::hit("key-created");
        Ok(slot)
    }

    /// Puts a new slot that opens with `secret` in the place of the slot `old`: first the new one is
    /// there, then the old one goes. The old one's label is kept.
    pub fn replace_key(&self, old: &KeySlot, secret: &Secret) -> Result<KeySlot> {
        self.allow_write()?;
        let slot = self.add_key(secret, &old.label)?;
        self.remove_key(&old.id)?;
        Ok(slot)
    }

    /// Removes a slot, never the last one, whoever else removes slots at the same time.
    pub fn remove_key(&self, id: &str) -> Result<()> {
        self.allow_write()?;
        let root = self.root("remove a key")?;
        let slot = self.key_slots_with(id)?;
        // Most often this is all there is to say, and nothing needs to be recorded.
        refuse(keys::removal(self.store(), &self.raw_id(), root, id, &Default::default())?, id)?;
        let record = audit::record(self, KeyAction::Remove, &slot, None)?;
        failpoint::hit("key-removal-recorded");
        let decided = audit::leaving(self, &record).and_then(|leaving| {
            refuse(keys::removal(self.store(), &self.raw_id(), root, id, &leaving)?, id)
        });
        // Whether it stays for sure: nothing was tried, or the store said no.
        let (result, stays) = match decided {
            Err(error) => (Err(error), true),
            Ok(()) => match keys::delete(self.store(), id) {
                Err(error) => {
                    let stays = matches!(error.kind(), ErrorKind::Denied | ErrorKind::Locked);
                    (Err(error.into()), stays)
                }
                Ok(()) => (Ok(()), false),
            },
        };
        failpoint::hit("key-removed");
        if stays && let Err(error) = audit::record(self, KeyAction::Keep, &slot, Some(&record)) {
            tracing::warn!(%error, slot = id, "the slot counts as going, though it stays");
        }
        result
    }

    /// The slot `id` as far as it can be read: a damaged one can be removed, too.
    fn key_slots_with(&self, id: &str) -> Result<KeySlot> {
        match self.key_slots() {
            Ok(slots) => slots.into_iter().find(|slot| slot.id == id).ok_or_else(|| not_there(id)),
            Err(error) if error.is_about_an_object() => Ok(KeySlot {
                id: id.to_owned(),
                kind: keys::SlotKind::KeyFile,
                label: String::new(),
                created: keys::timestamp(self.environment()),
                current: false,
                epoch: self.epoch(),
                detail: None,
            }),
            Err(error) => Err(error),
        }
    }

    /// Records in the repository that `slot` was used, for kinds whose use is rare.
    pub fn record_use(&self, slot: &KeySlot) -> Result<()> {
        audit::record(self, KeyAction::Open, slot, None).map(drop)
    }

    /// Records that a page was made that tells how to restore; `slot` is the one it opens, where it
    /// carries a key.
    pub fn record_sheet(&self, slot: &KeySlot) -> Result<()> {
        self.allow_write()?;
        audit::record(self, KeyAction::Sheet, slot, None).map(drop)
    }

    /// What was done with keys, oldest first. Records that cannot be used are left out with a
    /// warning; `verify` reports them.
    pub fn key_records(&self) -> Result<Vec<KeyRecord>> {
        self.keys().must_own("tell what was done with keys")?;
        let mut usable = Vec::new();
        for (_, record) in audit::records(self)? {
            match record {
                Ok(record) => usable.push(record),
                Err(error) => tracing::warn!(%error, "a record of keys is left out"),
            }
        }
        Ok(usable)
    }
}

fn not_there(id: &str) -> RepoError {
    RepoError::new(RepoErrorKind::NotFound, format!("there is no key slot {id}"))
        .with_hint("`backstay key list` shows them")
}

fn refuse(removal: Removal, id: &str) -> Result<()> {
    match removal {
        Removal::Possible => Ok(()),
        Removal::NotThere => Err(not_there(id)),
        Removal::Last => Err(RepoError::new(
            RepoErrorKind::Usage,
            format!("{id} is the last key slot; without it nothing could be restored"),
        )
        .with_hint("add another key first: `backstay key add`")),
        Removal::Contested => Err(RepoError::new(
            RepoErrorKind::Busy,
            format!("every other key slot than {id} is being removed by somebody else"),
        )
        .with_hint(
            "`backstay key log` shows by whom; a removal that died is ended by removing that slot \
             again, and with another key added first, this one can go",
        )),
    }
}
