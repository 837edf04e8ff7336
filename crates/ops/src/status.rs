//! Where things stand: the newest snapshot of every source, how old it is, and whether that is
//! within what its tier promises.

use std::collections::BTreeMap;
use std::time::Duration;

use backstay_postgres::wal::{self, RecoveryBase};
use backstay_postgres::{Alert, BackupDetail};
use backstay_repo::{Repository, Snapshot, SourceKind, Usage};
use jiff::Timestamp;

use crate::Result;
use crate::config::{Config, SourceConfig};
use crate::watch::{self, ServerHealth};

/// A source in one repository.
#[derive(Debug)]
pub struct SourceStatus {
    pub source: String,
    pub kind: SourceKind,
    /// Whether the configuration knows it; snapshots of others may be there.
    pub configured: bool,
    pub repository: String,
    pub snapshots: usize,
    pub newest: Option<Snapshot>,
    /// What would be lost if the source were lost now: the time since the newest recovery point.
    pub exposure: Option<Duration>,
    pub tier: Option<String>,
    pub rpo: Option<Duration>,
    /// Whether the exposure is within the objective; nothing without an objective.
    pub within_rpo: Option<bool>,
    pub archive: Option<ArchiveStatus>,
}

/// The log of a PostgreSQL cluster, as far as it is archived.
#[derive(Debug, Clone)]
pub struct ArchiveStatus {
    pub system_identifier: u64,
    pub segments: usize,
    /// Bytes in the store.
    pub stored: u64,
    /// The name of the newest segment.
    pub newest: Option<String>,
    /// When it arrived, by the store's clock.
    pub arrived: Option<Timestamp>,
    /// The segment whose absence ends what can be recovered, although later ones are there.
    pub broken_by: Option<String>,
    /// The age of the newest moment that can be recovered; nothing when no snapshot can be.
    pub exposure: Option<Duration>,
    /// What is wrong with it.
    pub alerts: Vec<Alert>,
}

/// A repository, and what it takes.
#[derive(Debug)]
pub struct RepositoryStatus {
    pub name: String,
    pub url: String,
    pub usage: Usage,
    pub snapshots: usize,
}

/// The status of every source that a repository should have or has. `servers` are those that were
/// asked, by source.
pub fn sources(
    config: &Config,
    name: &str,
    repository: &Repository,
    servers: &BTreeMap<String, ServerHealth>,
    now: Timestamp,
) -> Result<Vec<SourceStatus>> {
    let snapshots = repository.snapshots()?;
    let mut out = Vec::new();
    for source in &config.sources {
        let goes_here = config.repositories_of(source)?.iter().any(|r| r.name == name);
        let is_here = snapshots.iter().any(|snapshot| snapshot.source == source.name);
        if goes_here || is_here {
            out.push(of_source(config, Some(source), &source.name, name, &snapshots, now));
        }
    }
    let mut others: Vec<&str> = snapshots
        .iter()
        .map(|snapshot| snapshot.source.as_str())
        .filter(|source| !config.sources.iter().any(|known| known.name == *source))
        .collect();
    others.sort_unstable();
    others.dedup();
    for source in others {
        out.push(of_source(config, None, source, name, &snapshots, now));
    }
    for status in &mut out {
        status.archive = archive_of(repository, status, &snapshots, servers, now)?;
        if let Some(archive) = &status.archive {
            // A snapshot of a cluster is worth what the log makes of it.
            status.exposure = archive.exposure;
        }
        status.within_rpo = match (status.rpo, status.exposure) {
            (None, _) => None,
            (Some(_), None) => Some(false),
            (Some(rpo), Some(exposure)) => Some(exposure <= rpo),
        };
    }
    Ok(out)
}

fn of_source(
    config: &Config,
    source: Option<&SourceConfig>,
    name: &str,
    repository: &str,
    snapshots: &[Snapshot],
    now: Timestamp,
) -> SourceStatus {
    let own = || snapshots.iter().filter(|snapshot| snapshot.source == name);
    let newest = own().max_by_key(|snapshot| snapshot.time).cloned();
    let kind = source
        .map(SourceConfig::kind)
        .or_else(|| newest.as_ref().map(|snapshot| snapshot.kind))
        .unwrap_or(SourceKind::Files);
    // A snapshot of files is of the moment it began; what changed while it was read may be older.
    let exposure = newest.as_ref().map(|snapshot| since(snapshot.time, now));
    SourceStatus {
        source: name.to_owned(),
        kind,
        configured: source.is_some(),
        repository: repository.to_owned(),
        snapshots: own().count(),
        newest,
        exposure,
        tier: source.and_then(|source| source.common.tier.clone()),
        rpo: source.and_then(|source| config.tier_of(source)).map(|tier| tier.rpo),
        within_rpo: None,
        archive: None,
    }
}

fn archive_of(
    repository: &Repository,
    status: &SourceStatus,
    snapshots: &[Snapshot],
    servers: &BTreeMap<String, ServerHealth>,
    now: Timestamp,
) -> Result<Option<ArchiveStatus>> {
    let Some(newest) = status.newest.as_ref().filter(|s| s.kind == SourceKind::Postgres) else {
        return Ok(None);
    };
    let detail = BackupDetail::of(newest)?;
    let archive = repository.archive(detail.system_identifier);
    let mut backups: Vec<(String, RecoveryBase)> = Vec::new();
    for snapshot in snapshots {
        if snapshot.source == status.source && snapshot.kind == SourceKind::Postgres {
            let one = BackupDetail::of(snapshot)?;
            if one.system_identifier == detail.system_identifier {
                backups.push((snapshot.id.clone(), (&one).into()));
            }
        }
    }
    let health = wal::window(&archive, detail.segment_size, &backups)?;
    let last = health.windows.iter().max_by_key(|window| (window.timeline, window.to));
    // A store without times still has the moment that the snapshot itself is of.
    let exposure =
        last.and_then(|last| health.rpo(now.into()).or_else(|| Some(since(last.from_time, now))));
    let server = servers.get(&status.source);
    let alerts = watch::archive(&health, detail.system_identifier, server, exposure, status.rpo);
    let files = archive.list(None)?;
    let segments: Vec<_> = files.iter().filter(|file| is_segment(&file.name)).collect();
    let newest = segments.iter().max_by(|a, b| a.name.cmp(&b.name));
    Ok(Some(ArchiveStatus {
        system_identifier: detail.system_identifier,
        segments: segments.len(),
        stored: files.iter().map(|file| file.stored).sum(),
        newest: newest.map(|file| file.name.clone()),
        arrived: newest.and_then(|file| Timestamp::try_from(file.modified?).ok()),
        broken_by: last.and_then(|last| last.broken_by).map(|name| name.to_string()),
        exposure,
        alerts,
    }))
}

fn is_segment(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}
