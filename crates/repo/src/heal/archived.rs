//! Archived files that are damaged, replaced by those of another repository.
//!
//! The name of an archived file is taken by the damaged object, so that one goes before the other
//! comes. The new object is durable below `mending/` before that, and any later repair takes it to
//! where it belongs. Where the summary still opens, its hash decides whether the other file is the
//! same.
//!
//! What is missing between the first and the last segment of a timeline here is copied, too.

use std::collections::BTreeMap;

use super::{Healer, is_archived};
use crate::layout::{MENDING, WAL};
use crate::{Archive, RepoError, Result, VerifyReport};
use backstay_store::failpoint;

/// Ends what a repair that died had begun.
pub(super) fn go_on(healer: &mut Healer<'_>) -> Result<()> {
    let (repository, store) = (healer.repository, healer.repository.store());
    for object in store.list(MENDING)? {
        let key = object.key.strip_prefix(MENDING).unwrap_or_default().to_owned();
        if let Some((system, _)) = parse(&key) {
            let body = store.read(&object.key)?;
            // Sealed for that very place, or it is nothing of ours.
            if repository.archive(system).open(&key, &body).is_ok() {
                if let Some(why) = kept(healer, &key)? {
                    healer.report.unrepaired(&key, why);
                    continue;
                }
                if settle(healer, &key, body)? {
                    healer
                        .report
                        .repaired(&key, "put where it belongs, as a repair before had begun to");
                }
            }
        }
        store.delete(&object.key)?;
    }
    Ok(())
}

/// Why the store does not let go the damaged object in the place of an archived file, if there is one
/// and it does not.
fn kept(healer: &Healer<'_>, key: &str) -> Result<Option<String>> {
    let Some((system, name)) = parse(key) else { return Ok(None) };
    match healer.repository.archive(system).fetch(&name) {
        Err(error) if error.is_about_an_object() => {}
        there => return there.map(|_| None),
    }
    let lock = match healer.repository.store().lock(key) {
        Err(error) if error.is_not_found() => return Ok(None),
        lock => lock?,
    };
    let now = healer.repository.environment().now();
    let Some(lock) = lock.filter(|lock| lock.keeps(now)) else { return Ok(None) };
    let until = lock.until.and_then(|until| jiff::Timestamp::try_from(until).ok());
    Ok(Some(match until {
        Some(until) if !lock.held => {
            format!("the store keeps the damaged object until {until:.0}; run it again after that")
        }
        _ => "the damaged object is on hold; lift that, and run it again".to_owned(),
    }))
}

/// Creates an archived file, in the place of one that does not open; whether it was needed.
fn settle(healer: &Healer<'_>, key: &str, body: bytes::Bytes) -> Result<bool> {
    let store = healer.repository.store();
    let Some((system, name)) = parse(key) else { return Ok(false) };
    match healer.repository.archive(system).fetch(&name) {
        Ok(Some(_)) => return Ok(false),
        Ok(None) => {}
        Err(error) if error.is_about_an_object() => {
            store.delete(key)?;
            failpoint::hit("repair-archived-removed");
        }
        Err(error) => return Err(error),
    }
    store.create(key, body)?;
    Ok(true)
}

pub(super) fn mend(healer: &mut Healer<'_>, found: &VerifyReport) -> Result<()> {
    let repository = healer.repository;
    let mut wanted: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for damage in found.damages.iter().filter(|damage| is_archived(damage)) {
        if let Some((system, name)) = parse(&damage.object) {
            wanted.entry(system).or_default().push(name);
        }
    }
    let Some(from) = &healer.options.from else {
        for damage in found.damages.iter().filter(|damage| is_archived(damage)) {
            let why =
                "another repository that archives the same cluster may have it (--repair-from)";
            healer.report.unrepaired(&damage.object, why);
        }
        return Ok(());
    };
    let theirs = from.archives()?;
    for system in repository.archives()? {
        if !theirs.contains(&system) {
            continue;
        }
        let (ours, theirs) = (repository.archive(system), from.archive(system));
        for name in gaps(&ours, &theirs)? {
            healer.progress.check()?;
            let key = ours.key(&name)?;
            match theirs.fetch(&name) {
                Ok(Some(content)) => {
                    ours.push(&name, &content)?;
                    healer.report.fetched += 1;
                    healer.report.repaired(&key, "it was missing between others; copied");
                }
                Ok(None) => {}
                Err(error) if error.is_about_an_object() => {
                    healer.report.unrepaired(&key, format!("there, too: {error}"));
                }
                Err(error) => return Err(error),
            }
        }
    }
    for (system, names) in wanted {
        let (ours, theirs) = (repository.archive(system), from.archive(system));
        for name in names {
            healer.progress.check()?;
            replace(healer, &ours, &theirs, &name)?;
        }
    }
    Ok(())
}

fn replace(healer: &mut Healer<'_>, ours: &Archive, theirs: &Archive, name: &str) -> Result<()> {
    let key = ours.key(name)?;
    let content = match theirs.fetch(name) {
        Ok(Some(content)) => content,
        Ok(None) => {
            healer.report.unrepaired(&key, "the other repository does not have it");
            return Ok(());
        }
        Err(error) if error.is_about_an_object() => {
            healer.report.unrepaired(&key, format!("there, too: {error}"));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    // The damage may have left the summary alone.
    let (trusted, said) = match ours.stored_hash(name) {
        Ok(Some(hash)) if hash == ours.hash(&content) => (true, "copied; its hash is the same"),
        Ok(Some(_)) => (false, ""),
        Ok(None) => (true, "copied"),
        // What it was nobody can say any more; of one cluster and timeline there is one such file.
        Err(error) if error.is_about_an_object() => (true, "copied by its name"),
        Err(error) => return Err(error),
    };
    if !trusted {
        healer.report.unrepaired(&key, "the other repository has other content under that name");
        return Ok(());
    }
    if let Some(why) = kept(healer, &key)? {
        healer.report.unrepaired(&key, why);
        return Ok(());
    }
    let (body, _) = ours.sealed(name, &key, &content.as_slice())?;
    let body = bytes::Bytes::from(body);
    ours.open(&key, &body)?;
    let mending = format!("{MENDING}{key}");
    match healer.repository.store().create(&mending, body.clone()) {
        // Another repair is at it.
        Err(error) if error.is_already_exists() => {
            return Err(RepoError::from(error).with_hint("run the repair again"));
        }
        created => created?,
    }
    failpoint::hit("repair-archived-stored");
    settle(healer, &key, body)?;
    healer.repository.store().delete(&mending)?;
    healer.report.fetched += 1;
    healer.report.repaired(&key, said);
    Ok(())
}

/// Files that the other archive has and that lie between ours.
fn gaps(ours: &Archive, theirs: &Archive) -> Result<Vec<String>> {
    let mut ranges: BTreeMap<String, (String, String)> = BTreeMap::new();
    let here: Vec<String> = ours.list(None)?.into_iter().map(|file| file.name).collect();
    for name in here.iter().filter(|name| is_segment(name)) {
        let timeline = name.get(..8).unwrap_or_default().to_owned();
        let range = ranges.entry(timeline).or_insert_with(|| (name.clone(), name.clone()));
        range.0 = range.0.clone().min(name.clone());
        range.1 = range.1.clone().max(name.clone());
    }
    let mut gaps = Vec::new();
    for file in theirs.list(None)? {
        let range = file.name.get(..8).and_then(|timeline| ranges.get(timeline));
        if is_segment(&file.name)
            && range.is_some_and(|(first, last)| *first < file.name && file.name < *last)
            && !here.contains(&file.name)
        {
            gaps.push(file.name);
        }
    }
    Ok(gaps)
}

fn is_segment(name: &str) -> bool {
    name.len() == 24
}

/// The cluster and the name, of the key of an archived file.
fn parse(key: &str) -> Option<(u64, String)> {
    let mut parts = key.strip_prefix(WAL)?.split('/');
    let system = parts.next()?.parse().ok()?;
    Some((system, parts.next_back()?.to_owned()))
}
