//! Parity that a store keeps beside its objects: what verification says of it, and repair from it.
//!
//! The store hands out damaged objects as they were and remembers which. Where object and parity
//! differ it asks the repository (`genuine`) which of the two is right: so whoever can write parity
//! files makes no good object look damaged and no repair accept anything, and no parity is ever made
//! of an object that does not open.

use backstay_store::{ErrorKind, ObjectMeta, Parity, ParityState, StoreError};

use crate::check::Damage;
use crate::genuine::is_ours;
use crate::layout::{PACKS, WAL};
use crate::{Level, Progress, Repository, Result, VerifyReport};

/// What came of giving parity to all objects of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParitySet {
    /// Objects that have parity of the new share.
    pub objects: u64,
    /// Objects that are damaged; they keep the parity that they had.
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

    /// Sets that share for what comes, and gives it to all that is there and opens, down to the last
    /// chunk; none removes all parity.
    ///
    /// # Errors
    /// `Configuration` of a store that has no parity.
    pub fn set_parity(&self, share: Option<u8>, progress: &Progress) -> Result<ParitySet> {
        self.allow_write()?;
        let parity = self.store().parity().ok_or_else(|| {
            StoreError::new(ErrorKind::Configuration, "set", "parity")
                .with_detail("only a repository in a directory has parity")
        })?;
        if share.is_some() {
            self.keys().must_own("make parity")?;
        }
        parity.set_share(share)?;
        let mut set = ParitySet::default();
        if share.is_none() {
            return Ok(set);
        }
        progress.set_phase("making parity");
        // It knows what each pack was.
        match self.index() {
            Err(error) if !error.is_about_an_object() => return Err(error),
            _ => {}
        }
        let objects = self.store().list("")?;
        progress.add_total(objects.iter().map(|object| object.size).sum(), objects.len() as u64);
        for object in objects {
            progress.check()?;
            match parity.complete(&object.key) {
                Ok(made) => set.objects += u64::from(made),
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

/// Gives parity to what has none: a crash came between, or an older program wrote it. What is damaged
/// stays without, which a verification finds.
pub(crate) fn complete(repository: &Repository, progress: &Progress) -> Result<()> {
    let Some(parity) = repository.store().parity() else { return Ok(()) };
    if parity.share()?.is_none() {
        return Ok(());
    }
    progress.set_phase("making parity");
    for key in parity.missing()?.into_iter().filter(|key| is_ours(key)) {
        progress.check()?;
        match parity.complete(&key) {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => tracing::warn!(object = key, %error, "it stays without parity"),
        }
    }
    parity.tidy()?;
    Ok(())
}

/// Adds to a report what parity had to make good, and parity that is itself damaged or missing.
pub(crate) fn note(
    repository: &Repository,
    everything: bool,
    report: &mut VerifyReport,
) -> Result<()> {
    let Some(parity) = repository.store().parity() else { return Ok(()) };
    let has_parity = parity.share()?.is_some();
    let looks = everything && report.level > Level::Basic && has_parity;
    let objects = if looks { repository.store().list("")? } else { Vec::new() };
    read_the_rest(repository, &objects);
    for key in parity.rebuilt() {
        if !report.damages.iter().any(|damage| damage.object == key) {
            let what = "it is damaged on the disk; its parity gives it back".to_owned();
            report.damages.push(Damage { object: key, what });
        }
    }
    if everything && has_parity {
        let missing = parity.missing()?;
        report.without_parity = missing.iter().filter(|key| is_ours(key)).count() as u64;
    }
    for object in objects {
        if parity.state(&object.key)? == ParityState::Damaged {
            let object = format!("parity of {}", object.key);
            let what = "it is damaged, and can be made again".to_owned();
            report.damages.push(Damage { object, what });
        }
    }
    report.damages.sort();
    Ok(())
}

/// Lets the store compare all that a verification need not have read with its parity. Packs and
/// archived files were read.
fn read_the_rest(repository: &Repository, objects: &[ObjectMeta]) {
    let is_rest = |key: &str| is_ours(key) && !key.starts_with(PACKS) && !key.starts_with(WAL);
    for object in objects.iter().filter(|object| is_rest(&object.key)) {
        if let Err(error) = repository.store().read(&object.key) {
            // Whoever needs it will say so.
            tracing::debug!(object = object.key, %error, "not read");
        }
    }
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
    let objects = repository.store().list("")?;
    read_the_rest(repository, &objects);
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
    for object in objects {
        progress.check()?;
        let state = parity.state(&object.key)?;
        if state == ParityState::Whole || is_wrong(&object.key) || !is_ours(&object.key) {
            continue;
        }
        let made = match parity.complete(&object.key) {
            Ok(false) => continue,
            Ok(true) if state == ParityState::Missing => Ok("made: the object had none"),
            Ok(true) => Ok("made again from the object"),
            Err(error) => Err(error),
        };
        if made.as_ref().is_err_and(StoreError::is_not_found) {
            continue;
        }
        let name = format!("parity of {}", object.key);
        done.push((name, made.map_err(|error| error.to_string())));
    }
    parity.tidy()?;
    Ok(done)
}
