//! Parity that a store keeps beside its objects: what verification says of it, and repair from it.
//!
//! The store hands out damaged objects as they were and remembers which. What came from there was
//! opened and authenticated like everything else; only what passed that is put in place of the
//! damaged bytes. So whoever can write parity files can make no repair accept anything.

use backstay_store::{ErrorKind, Parity, ParityState, StoreError};

use crate::check::Damage;
use crate::{Level, Progress, Repository, Result, VerifyReport};

/// What came of giving parity to all objects of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParitySet {
    /// Objects that have parity of the new share.
    pub objects: u64,
    /// Objects that are not what their parity knows; they keep what they had.
    pub damaged: Vec<String>,
}

impl Repository {
    /// How much of each new object parity can repair, in percent; none: there is no parity.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn parity(&self) -> Result<Option<u8>> {
        Ok(self.store().parity().map(Parity::share).transpose()?.flatten())
    }

    /// Sets that share for what comes, and gives it to all that is there; none removes all parity.
    ///
    /// # Errors
    /// `Configuration` of a store that has no parity.
    pub fn set_parity(&self, share: Option<u8>, progress: &Progress) -> Result<ParitySet> {
        self.allow_write()?;
        let parity = self.store().parity().ok_or_else(|| {
            StoreError::new(ErrorKind::Configuration, "set", "parity")
                .with_detail("only a repository in a directory has parity")
        })?;
        parity.set_share(share)?;
        let mut set = ParitySet::default();
        if share.is_none() {
            return Ok(set);
        }
        progress.set_phase("making parity");
        let objects = self.store().list("")?;
        progress.add_total(objects.iter().map(|object| object.size).sum(), objects.len() as u64);
        for object in objects {
            progress.check()?;
            match parity.complete(&object.key) {
                Ok(()) => set.objects += 1,
                Err(error) if error.kind() == ErrorKind::Damaged => set.damaged.push(object.key),
                // Maintenance was quicker.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
            progress.add_done(object.size, 1);
        }
        Ok(set)
    }
}

/// Adds to a report what parity had to make good, and parity that is itself damaged.
pub(crate) fn note(
    repository: &Repository,
    everything: bool,
    report: &mut VerifyReport,
) -> Result<()> {
    let Some(parity) = repository.store().parity() else { return Ok(()) };
    for key in parity.rebuilt() {
        if !report.damages.iter().any(|damage| damage.object == key) {
            let what = "it is damaged on the disk; its parity gives it back".to_owned();
            report.damages.push(Damage { object: key, what });
        }
    }
    if everything && report.level > Level::Basic && parity.share()?.is_some() {
        for object in repository.store().list("")? {
            if parity.state(&object.key)? == ParityState::Damaged {
                let object = format!("parity of {}", object.key);
                let what = "it is damaged, and can be made again".to_owned();
                report.damages.push(Damage { object, what });
            }
        }
    }
    report.damages.sort();
    Ok(())
}

/// What a repair did to one object, or why it could not.
pub(crate) type Mended = (String, Result<&'static str, String>);

/// Puts right what was read through parity and is not among what a verification `found` wrong, and
/// makes the parity that is missing or damaged.
pub(crate) fn mend(
    repository: &Repository,
    found: &VerifyReport,
    progress: &Progress,
) -> Result<Vec<Mended>> {
    let mut done = Vec::new();
    let Some(parity) = repository.store().parity() else { return Ok(done) };
    let is_wrong = |key: &str| found.damages.iter().any(|damage| damage.object == key);
    progress.set_phase("repairing from parity");
    for key in parity.rebuilt() {
        progress.check()?;
        if !is_wrong(&key) {
            let mended = parity.mend(&key).map(|()| "from its parity");
            done.push((key, mended.map_err(|error| error.to_string())));
        }
    }
    if parity.share()?.is_none() {
        return Ok(done);
    }
    for object in repository.store().list("")? {
        progress.check()?;
        let state = parity.state(&object.key)?;
        if state == ParityState::Whole || is_wrong(&object.key) {
            continue;
        }
        let made = parity.complete(&object.key).map(|()| match state {
            ParityState::Missing => "made: the object had none",
            _ => "made again from the object",
        });
        if made.as_ref().is_err_and(StoreError::is_not_found) {
            continue;
        }
        let name = format!("parity of {}", object.key);
        done.push((name, made.map_err(|error| error.to_string())));
    }
    parity.tidy()?;
    Ok(done)
}
