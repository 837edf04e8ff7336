//! Copies from one repository to another: by hand, or as the configuration asks for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_postgres::BackupDetail;
use backstay_repo::{
    ArchiveCopied, Copied, CopyOptions, Progress, Repository, Snapshot, SourceKind, copy,
    copy_archive,
};
use jiff::Timestamp;

use crate::config::{ReplicationKeys, RepositoryConfig};
use crate::error::{Error, ErrorKind};
use crate::{Context, Result};

/// What is to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    All,
    /// Sources by name, and snapshots by their ids or beginnings of them.
    Named(Vec<String>),
}

/// What came of one snapshot.
#[derive(Debug)]
pub struct CopyDone {
    /// In the repository that was copied from.
    pub original: Snapshot,
    /// In the other one; whether it is new there.
    pub result: Result<(Snapshot, bool)>,
    pub took: Duration,
}

/// What came of the archive of one cluster.
#[derive(Debug)]
pub struct ArchiveDone {
    pub system_identifier: u64,
    pub result: Result<ArchiveCopied>,
}

/// What came of all.
#[derive(Debug, Default)]
pub struct Report {
    pub snapshots: Vec<CopyDone>,
    pub archives: Vec<ArchiveDone>,
    /// Snapshots that were left out because the other repository has forgotten its copy.
    pub forgotten: usize,
}

impl Report {
    /// Whether something failed, and whether something was done.
    pub fn failed_and_done(&self) -> (bool, bool) {
        let snapshots = self.snapshots.iter().map(|one| one.result.is_ok());
        let archives = self.archives.iter().map(|one| one.result.is_ok());
        let all: Vec<bool> = snapshots.chain(archives).collect();
        (all.contains(&false), all.contains(&true))
    }
}

/// Copies what is selected of `from` to `to`, oldest first, and where `archive` says so what the
/// archives of these sources have. What is there already is left as it is; what fails costs the rest
/// nothing.
///
/// # Errors
/// When a repository cannot be used, or a name means nothing in `from`.
pub fn run(
    context: &Context,
    from: &RepositoryConfig,
    to: &RepositoryConfig,
    selection: &Selection,
    archive: bool,
    progress: &Arc<Progress>,
) -> Result<Report> {
    if from.name == to.name {
        return Err(Error::usage(
            format!("`{}` cannot be copied to itself", from.name),
            "name two different repositories",
        ));
    }
    let (source, target) = (context.open(from)?, context.open(to)?);
    let chosen = choose(&source, &from.name, selection)?;
    copy_chosen(context, &source, (&target, to), chosen, archive, progress)
}

/// Copies these snapshots of `source`.
fn copy_chosen(
    context: &Context,
    source: &Repository,
    (target, to): (&Repository, &RepositoryConfig),
    chosen: Vec<Snapshot>,
    archive: bool,
    progress: &Arc<Progress>,
) -> Result<Report> {
    let options = CopyOptions {
        workers: context.workers(),
        compression: to.keys.compression,
        progress: progress.clone(),
        ..CopyOptions::default()
    };
    let mut report = Report::default();
    // The log first: a snapshot of a cluster without it could not be recovered.
    if archive {
        for system_identifier in systems(&chosen)? {
            let copied = copy_archive(source, target, system_identifier, &options);
            let result = copied.map_err(Error::from);
            stop_if_interrupted(&result)?;
            report.archives.push(ArchiveDone { system_identifier, result });
        }
    }
    for original in chosen {
        let start = Instant::now();
        let copied = copy(source, &original, target, &options);
        let result = copied.map_err(Error::from).map(|copied| match copied {
            Copied::New(made) => (*made, true),
            Copied::There(there) => (*there, false),
        });
        stop_if_interrupted(&result)?;
        report.snapshots.push(CopyDone { original, result, took: start.elapsed() });
    }
    Ok(report)
}

fn stop_if_interrupted<T>(result: &Result<T>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(error
            .repeat()
            .with_hint("what was copied stays; run it again to go on where it stopped")),
        _ => Ok(()),
    }
}

fn choose(from: &Repository, name: &str, selection: &Selection) -> Result<Vec<Snapshot>> {
    let all = from.snapshots()?;
    let Selection::Named(names) = selection else { return Ok(all) };
    let mut chosen: Vec<Snapshot> = Vec::new();
    for wanted in names {
        let of_source = all.iter().filter(|snapshot| &snapshot.source == wanted);
        let mut found: Vec<Snapshot> = of_source.cloned().collect();
        if found.is_empty() {
            let one = from.find_snapshot(wanted).map_err(|error| {
                let error = Error::from(error);
                if error.kind() == ErrorKind::NotFound {
                    error.with_hint(format!("`backstay list -r {name}` shows what there is"))
                } else {
                    error
                }
            })?;
            found.push(one);
        }
        for snapshot in found {
            if !chosen.iter().any(|other| other.id == snapshot.id) {
                chosen.push(snapshot);
            }
        }
    }
    chosen.sort_by(|a, b| (a.time, &a.id).cmp(&(b.time, &b.id)));
    Ok(chosen)
}

/// The clusters that these snapshots are of.
fn systems(snapshots: &[Snapshot]) -> Result<Vec<u64>> {
    let mut systems = Vec::new();
    for snapshot in snapshots.iter().filter(|one| one.kind == SourceKind::Postgres) {
        let system = BackupDetail::of(snapshot)?.system_identifier;
        if !systems.contains(&system) {
            systems.push(system);
        }
    }
    Ok(systems)
}

/// A policy of the configuration, and the repositories that it names.
pub fn policy<'c>(
    context: &'c Context,
    name: &str,
) -> Result<(&'c ReplicationKeys, &'c RepositoryConfig, &'c RepositoryConfig)> {
    let keys = context.config.replication(name)?;
    let repository = |name: &str| context.config.repository(name);
    Ok((keys, repository(&keys.from)?, repository(&keys.to)?))
}

/// Runs a policy. Done again, it copies only what is new. What was forgotten in the other repository
/// is not brought back: that takes a copy by hand.
pub fn run_policy(context: &Context, name: &str, progress: &Arc<Progress>) -> Result<Report> {
    let (keys, from, to) = policy(context, name)?;
    let (source, target) = (context.open(from)?, context.open(to)?);
    let mut chosen = source.snapshots()?;
    // A source of which there is no snapshot yet is no mistake.
    chosen.retain(|one| keys.sources.is_empty() || keys.sources.contains(&one.source));
    let forgotten = target.forgotten_of(&waiting(&chosen, &target)?)?;
    chosen.retain(|one| !forgotten.contains(&one.id));
    let mut report = copy_chosen(context, &source, (&target, to), chosen, keys.archive, progress)?;
    report.forgotten = forgotten.len();
    Ok(report)
}

/// Which of `here` are moments that `target` has nothing of.
fn waiting<'s>(here: &'s [Snapshot], target: &Repository) -> Result<Vec<&'s Snapshot>> {
    let there = target.snapshots()?;
    let mut waiting = Vec::new();
    'here: for one in here {
        for other in &there {
            if target.holds(other, one)? {
                continue 'here;
            }
        }
        waiting.push(one);
    }
    Ok(waiting)
}

/// What a policy has still to copy.
#[derive(Debug, Clone)]
pub struct Lag {
    pub replication: String,
    pub from: String,
    pub to: String,
    /// Snapshots that are in one and not in the other.
    pub snapshots: usize,
    /// Their content, before it is deduplicated and compressed. Bytes.
    pub bytes: u64,
    /// Since when the oldest of them waits.
    pub oldest: Option<Timestamp>,
    /// Files of the log that are in one and not in the other, and what they take.
    pub archived: usize,
    pub archived_bytes: u64,
    /// When the oldest of those arrived.
    pub archived_oldest: Option<Timestamp>,
}

impl Lag {
    /// How old the oldest is of all that waits; nothing when nothing does.
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        let oldest = [self.oldest, self.archived_oldest].into_iter().flatten().min()?;
        Some(Duration::try_from(now.duration_since(oldest)).unwrap_or_default())
    }
}

/// What a policy has still to copy.
pub fn lag(context: &Context, name: &str) -> Result<Lag> {
    let (keys, from, to) = policy(context, name)?;
    let (source, target) = (context.open(from)?, context.open(to)?);
    let mut here = source.snapshots()?;
    here.retain(|one| keys.sources.is_empty() || keys.sources.contains(&one.source));
    let mut waiting = waiting(&here, &target)?;
    let forgotten = target.forgotten_of(&waiting)?;
    waiting.retain(|one| !forgotten.contains(&one.id));
    let mut lag = Lag {
        replication: name.to_owned(),
        from: from.name.clone(),
        to: to.name.clone(),
        snapshots: waiting.len(),
        bytes: waiting.iter().map(|one| one.stats.bytes).sum(),
        oldest: waiting.iter().map(|one| one.finished).min(),
        archived: 0,
        archived_bytes: 0,
        archived_oldest: None,
    };
    if keys.archive {
        for system in systems(&here)? {
            let there = target.archive(system).list(None)?;
            let names: std::collections::HashSet<&str> =
                there.iter().map(|file| file.name.as_str()).collect();
            for file in source.archive(system).list(None)? {
                if names.contains(file.name.as_str()) {
                    continue;
                }
                lag.archived += 1;
                lag.archived_bytes += file.stored;
                let arrived = file.modified.and_then(|time| Timestamp::try_from(time).ok());
                lag.archived_oldest = [lag.archived_oldest, arrived].into_iter().flatten().min();
            }
        }
    }
    Ok(lag)
}
