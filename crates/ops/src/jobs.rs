//! Backups: from a source's configuration to a snapshot.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_postgres::logical::{self, LogicalSource};
use backstay_repo::{Compression, Fate, Progress, Repository, Snapshot, SnapshotType, SourceKind};
use backstay_sources::{FilesSource, Source, SqliteSource};

use crate::config::{
    FilesKeys, PostgresLogicalKeys, RepositoryConfig, SourceConfig, SourceKeys, SourceSettings,
};
use crate::error::{Error, ErrorKind};
use crate::{Context, Result};

/// What is asked of a backup.
#[derive(Debug, Clone, Default)]
pub struct BackupRequest {
    /// Absent: incremental where there is something to compare with and the kind knows how, else
    /// full.
    pub type_: Option<SnapshotType>,
    /// Added to those of the source; these win.
    pub tags: BTreeMap<String, String>,
    /// Of a cluster: the snapshot carries the log that it needs, also when its source does not say so.
    pub standalone: bool,
}

/// A backup that was made.
#[derive(Debug)]
pub struct BackupDone {
    pub snapshot: Snapshot,
    /// Things to know that are no failure.
    pub warnings: Vec<String>,
    pub took: Duration,
}

/// A source as the crates below know it.
pub enum Protected {
    Postgres(backstay_postgres::Source),
    Logical(LogicalSource),
    Other(Box<dyn Source>),
}

/// Turns a source's configuration into what can be backed up.
///
/// # Errors
/// Configuration, when the kind cannot be backed up by this program or a file it names cannot be
/// read.
pub fn protected(source: &SourceConfig) -> Result<Protected> {
    let name = source.name.clone();
    Ok(match &source.settings {
        SourceSettings::Postgres(keys) => Protected::Postgres(backstay_postgres::Source {
            name,
            connection: keys.connection.clone(),
            data_directory: keys.data_directory.clone(),
        }),
        SourceSettings::PostgresLogical(keys) => Protected::Logical(logical_source(name, keys)),
        SourceSettings::Files(keys) => Protected::Other(Box::new(FilesSource {
            name,
            paths: keys.paths.clone(),
            exclude: excludes(keys)?,
            one_file_system: keys.one_file_system,
            skip_caches: keys.exclude_caches,
        })),
        SourceSettings::Sqlite(keys) => {
            Protected::Other(Box::new(SqliteSource::new(name, &keys.path)))
        }
        _ => {
            return Err(Error::new(
                ErrorKind::Configuration,
                format!("`{name}` is of kind {}, which this program cannot back up", source.kind()),
            )
            .with_hint(
                "a newer version may know how; postgres, postgres-logical, files and sqlite can be \
                 backed up",
            ));
        }
    })
}

fn logical_source(name: String, keys: &PostgresLogicalKeys) -> LogicalSource {
    LogicalSource {
        name,
        connection: keys.connection.clone(),
        databases: keys.databases.clone(),
        exclude: keys.exclude.clone(),
        exclude_data: keys.exclude_data.clone(),
        role_passwords: keys.role_passwords,
        jobs: usize::try_from(keys.jobs).unwrap_or(0),
        lock_timeout: keys.lock_timeout,
        spool: keys.spool.clone(),
        spool_limit: keys.spool_limit.0,
        bin_directory: keys.bin_directory.clone(),
    }
}

/// All patterns of a source, those in files included.
fn excludes(keys: &FilesKeys) -> Result<Vec<String>> {
    let mut patterns = keys.exclude.clone();
    for path in &keys.exclude_from {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let error = Error::io("read the patterns in", path, error);
            Error::new(ErrorKind::Configuration, error.to_string())
                .with_hint("correct `exclude-from`, or create the file")
        })?;
        let lines = text.lines().map(str::trim_end);
        patterns.extend(
            lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned),
        );
    }
    Ok(patterns)
}

/// A source that nobody configured: one path, named after itself.
pub fn ad_hoc(path: &Path, current: &Path) -> SourceConfig {
    let absolute = current.join(path);
    let shown = absolute.to_string_lossy();
    let words: Vec<String> = shown
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .map(|part| {
            part.chars()
                .map(|c| {
                    if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' }
                })
                .collect::<String>()
        })
        .collect();
    let name = words.join("-");
    // Names begin with a letter or digit.
    let name = name.trim_start_matches(['.', '-', '_']).to_owned();
    SourceConfig {
        name: if name.is_empty() { "root".into() } else { name },
        common: SourceKeys {
            kind: SourceKind::Files,
            repositories: Vec::new(),
            tier: None,
            policy: None,
            tags: BTreeMap::new(),
        },
        settings: SourceSettings::Files(FilesKeys {
            paths: vec![PathBuf::from(shown.into_owned())],
            exclude: Vec::new(),
            exclude_from: Vec::new(),
            exclude_caches: true,
            one_file_system: false,
        }),
    }
}

/// One of the repositories of a backup, open.
struct Target {
    /// Which of those that were asked for.
    number: usize,
    repository: Repository,
    type_: SnapshotType,
    parent: Option<Snapshot>,
    compression: Compression,
    fate: Fate,
    warnings: Vec<String>,
}

/// Backs a source up in one pass: it is read once, for all of `targets`. What came of it in each.
///
/// What could not be read is in the snapshot's problems; an error means that there is no snapshot in
/// that repository. One that cannot be used costs the others nothing.
pub fn backup(
    context: &Context,
    source: &SourceConfig,
    targets: &[&RepositoryConfig],
    request: &BackupRequest,
    progress: &Arc<Progress>,
) -> Vec<Result<BackupDone>> {
    let start = Instant::now();
    let protected = match protected(source) {
        Ok(protected) => protected,
        Err(error) => return targets.iter().map(|_| Err(error.repeat())).collect(),
    };
    let open = |(number, target): (usize, &&RepositoryConfig)| -> Result<Target> {
        let repository = context.open(target)?;
        let mut warnings = Vec::new();
        let (type_, parent) = choose(&repository, source, request.type_, &mut warnings)?;
        let compression = target.keys.compression;
        let fate = Fate::default();
        Ok(Target { number, repository, type_, parent, compression, fate, warnings })
    };
    let mut results: Vec<Result<BackupDone>> = Vec::new();
    let mut opened = Vec::new();
    for target in targets.iter().enumerate().map(open) {
        match target {
            Ok(target) => {
                opened.push(target);
                results.push(Err(Error::new(ErrorKind::Failed, "the backup was given up")));
            }
            Err(error) => results.push(Err(error)),
        }
    }
    if opened.is_empty() {
        return results;
    }
    let made = one_pass(context, source, &protected, &opened, request, progress);
    let took = start.elapsed();
    let (made, common) = match made {
        Ok((snapshots, warnings)) => (snapshots, warnings),
        // Each has its own reason, or all of them have that of the source.
        Err(error) => {
            let own = |target: &Target| Err(target.fate.get().map_or(error.repeat(), Error::from));
            (opened.iter().map(own).collect(), Vec::new())
        }
    };
    for (target, snapshot) in opened.into_iter().zip(made) {
        let warnings = [target.warnings, common.clone()].concat();
        if let Some(slot) = results.get_mut(target.number) {
            *slot = snapshot.map(|snapshot| BackupDone { snapshot, warnings, took });
        }
    }
    results
}

/// What came of it in each target, and what is to be said of all of them.
type Passed = (Vec<Result<Snapshot>>, Vec<String>);

fn one_pass(
    context: &Context,
    source: &SourceConfig,
    protected: &Protected,
    targets: &[Target],
    request: &BackupRequest,
    progress: &Arc<Progress>,
) -> Result<Passed> {
    let mut tags = source.common.tags.clone();
    tags.extend(request.tags.clone());
    let mut warnings = Vec::new();
    match protected {
        Protected::Postgres(cluster) => {
            let SourceSettings::Postgres(keys) = &source.settings else {
                return Err(Error::new(ErrorKind::Failed, "the source changed its kind"));
            };
            let options = backstay_postgres::BackupOptions {
                type_: request.type_.unwrap_or(SnapshotType::Incremental),
                method: keys.method,
                standalone: request.standalone || keys.standalone,
                primary: keys.primary.clone(),
                detect: keys.detect,
                workers: context.workers(),
                tags,
                private_keys: keys.private_keys,
                fast: keys.fast_checkpoint,
                archive_timeout: keys.archive_timeout,
                progress: progress.clone(),
                ..backstay_postgres::BackupOptions::default()
            };
            let targets: Vec<_> = targets
                .iter()
                .map(|target| backstay_postgres::Target {
                    repository: target.repository.clone(),
                    compression: target.compression,
                    fate: target.fate.clone(),
                })
                .collect();
            let made = backstay_postgres::backup_to(&targets, cluster, &options)?;
            warnings.extend(made.warnings);
            Ok((
                made.snapshots.into_iter().map(|made| made.map_err(Error::from)).collect(),
                warnings,
            ))
        }
        Protected::Logical(source) => {
            let options = logical::BackupOptions {
                workers: context.workers(),
                tags,
                progress: progress.clone(),
            };
            let targets: Vec<_> = targets
                .iter()
                .map(|target| logical::Target {
                    repository: target.repository.clone(),
                    type_: target.type_,
                    parent: target.parent.clone(),
                    compression: target.compression,
                    fate: target.fate.clone(),
                })
                .collect();
            let (made, said) = logical::backup_to(&targets, source, &options)?;
            warnings.extend(said);
            Ok((made.into_iter().map(|made| made.map_err(Error::from)).collect(), warnings))
        }
        Protected::Other(other) => {
            let options = backstay_sources::BackupOptions {
                workers: context.workers(),
                tags,
                progress: progress.clone(),
                ..backstay_sources::BackupOptions::default()
            };
            let targets: Vec<_> = targets
                .iter()
                .map(|target| backstay_sources::Target {
                    repository: target.repository.clone(),
                    type_: target.type_,
                    parent: target.parent.clone(),
                    compression: target.compression,
                    fate: target.fate.clone(),
                })
                .collect();
            let made = other.backup_to(&targets, &options)?;
            Ok((made.into_iter().map(|made| made.map_err(Error::from)).collect(), warnings))
        }
    }
}

/// The type of a backup and what it is compared with.
fn choose(
    repository: &Repository,
    source: &SourceConfig,
    asked: Option<SnapshotType>,
    warnings: &mut Vec<String>,
) -> Result<(SnapshotType, Option<Snapshot>)> {
    if asked == Some(SnapshotType::Full) {
        return Ok((SnapshotType::Full, None));
    }
    let wanted = asked.unwrap_or(SnapshotType::Incremental);
    let mut parent = None;
    for snapshot in repository.snapshots()?.into_iter().rev() {
        if snapshot.source == source.name
            && snapshot.kind == source.kind()
            && (wanted == SnapshotType::Incremental || snapshot.type_ == SnapshotType::Full)
            && repository.may_build_on(&snapshot)?
        {
            parent = Some(snapshot);
            break;
        }
    }
    if parent.is_none() {
        if asked.is_some() {
            warnings.push(format!(
                "there is no snapshot of {} to compare with: this one is full",
                source.name
            ));
        }
        return Ok((SnapshotType::Full, None));
    }
    Ok((wanted, parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ad_hoc_source_is_named_after_its_path() {
        let name = |path: &str| ad_hoc(Path::new(path), Path::new("/work")).name;
        assert_eq!(name("/etc"), "etc");
        assert_eq!(name("/srv/app/config/"), "srv-app-config");
        assert_eq!(name("./x y"), "work-x_y");
        assert_eq!(name("/"), "root");
        assert_eq!(name("/.config"), "config");
    }
}
