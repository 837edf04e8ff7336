//! A backup, made on the database host: one session held from start to stop, the files read
//! by the repository's workers in between.
//!
//! The order is what makes the copy recoverable:
//!
//! 1. the server starts a backup: a checkpoint, from which a recovery of the copy will start;
//! 2. all files are listed, then read and stored, in any order;
//! 3. the control file is read after all of them, so that it is as new as the newest of them;
//! 4. the server ends the backup and says up to where WAL has to be replayed;
//! 5. every segment of WAL from start to end is in the archive of the repository, and is the one that
//!    this server wrote;
//! 6. only then the snapshot is committed. What fails before leaves no snapshot behind.
//!
//! Every file is read whole. An incremental backup compares the pages of relations with their hashes
//! in the snapshot before, and stores those that changed; its snapshot is as complete as any other.
//! Where the log says which relations changed, the others need not be read (`known`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_repo::{
    Archive, Chunking, Compression, Content, Entry, EntryKind, Fate, FileContent, INLINE_LIMIT,
    Metadata, Order, Problem, Progress, RepoError, RepoErrorKind, Repository, SessionOptions,
    Snapshot, SnapshotType, SourceKind, TreeWriter,
};
use backstay_store::failpoint;
use jiff::Timestamp;

use crate::configuration::{self, ConfigurationFile, Stored};
use crate::control::{self, ControlFile};
use crate::copy::{self, Item, Listing, What};
use crate::detail::BackupDetail;
use crate::inspect::{self, Cluster, Tablespace, inspect_session};
use crate::known::{Detect, Known};
use crate::reader::{Bytes, DataFile, PageChecks};
use crate::session::{Session, Source, Stopped};
use crate::wal::{Lsn, SegmentName, SegmentSize};
use crate::{PostgresError, PostgresErrorKind, Result};

/// How often the session is asked whether it is still there while files are read.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// From how many segments on one listing is cheaper than asking for each.
const LIST_FROM: usize = 32;

/// How to back up.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// Which earlier snapshot pages are compared with: none for a full one, the newest for an
    /// incremental one, the newest full one for a differential one.
    pub type_: SnapshotType,
    /// How it is found out what changed since that snapshot.
    pub detect: Detect,
    /// Threads that read, compress and seal; 0 = as many as there are cores.
    pub workers: usize,
    pub compression: Compression,
    pub tags: BTreeMap<String, String>,
    /// Whether the private key of the server's certificate is taken, where it lies outside the data
    /// directory.
    pub private_keys: bool,
    /// Have the checkpoint at once instead of spread over minutes.
    pub fast: bool,
    /// How long to wait after the end until the last WAL is in the archive.
    pub archive_timeout: Duration,
    pub progress: Arc<Progress>,
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self {
            type_: SnapshotType::Incremental,
            detect: Detect::default(),
            workers: 0,
            compression: Compression::default(),
            tags: BTreeMap::new(),
            private_keys: false,
            fast: true,
            archive_timeout: Duration::from_secs(60),
            progress: Arc::default(),
        }
    }
}

/// One of the repositories that a backup goes to.
#[derive(Debug, Clone)]
pub struct Target {
    pub repository: Repository,
    pub compression: Compression,
    /// Says why this target failed when none is left.
    pub fate: Fate,
}

/// What came of a backup to several repositories.
#[derive(Debug)]
pub struct Backups {
    /// In the order of the targets.
    pub snapshots: Vec<Result<Snapshot>>,
    pub detail: BackupDetail,
    /// Things to know that are no failure.
    pub warnings: Vec<String>,
}

/// A backup that was made. What could not be read is in the snapshot's problems.
#[derive(Debug)]
pub struct Backup {
    pub snapshot: Snapshot,
    pub detail: BackupDetail,
    /// Things to know that are no failure.
    pub warnings: Vec<String>,
}

/// The archive that belongs to one lane of the session.
struct Lane {
    number: usize,
    archive: Archive,
    failed: Option<PostgresError>,
}

/// Backs up a running cluster whose files are on this machine.
pub fn backup(repo: &Repository, source: &Source, options: &BackupOptions) -> Result<Backup> {
    let target = Target {
        repository: repo.clone(),
        compression: options.compression,
        fate: Fate::default(),
    };
    let Backups { mut snapshots, detail, warnings } = backup_to(&[target], source, options)?;
    let snapshot = snapshots.pop().unwrap_or_else(|| Err(no_target()))?;
    Ok(Backup { snapshot, detail, warnings })
}

fn no_target() -> PostgresError {
    PostgresError::usage("there is no repository to back up to")
}

/// The same, to several repositories in one pass: every file is read once.
///
/// # Errors
/// There is a snapshot in none of them: the cluster cannot be backed up, or the [`Fate`] of each
/// target says why it failed.
pub fn backup_to(targets: &[Target], source: &Source, options: &BackupOptions) -> Result<Backups> {
    let progress = &options.progress;
    progress.set_phase("connect");
    let mut session = Session::open(source)?;
    let cluster = inspect_session(&mut session, source)?;
    may_start(&cluster, targets, source)?;
    let segment_size = SegmentSize::new(u64::from(cluster.segment_size)).ok_or_else(|| {
        PostgresError::new(
            PostgresErrorKind::Unsupported,
            format!("WAL segments of {} bytes cannot be", cluster.segment_size),
        )
    })?;

    progress.set_phase("checkpoint");
    let time_start = server_time(&mut session)?;
    let label: String = source.name.chars().filter(|letter| !letter.is_control()).collect();
    let start_lsn = session.start_backup(&format!("backstay {label}"), options.fast)?;
    failpoint::hit("postgres-backup-started");

    progress.set_phase("copy");
    let begin = |target: &Target| {
        let parent = parent(&target.repository, source, options.type_);
        let type_ = if parent.is_some() { options.type_ } else { SnapshotType::Full };
        let session = SessionOptions {
            parent,
            workers: options.workers,
            compression: target.compression,
            tags: options.tags.clone(),
            progress: progress.clone(),
            fate: target.fate.clone(),
            ..SessionOptions::new(&source.name, SourceKind::Postgres, type_)
        };
        (target.repository.clone(), session)
    };
    let writing = backstay_repo::Session::begin(targets.iter().map(begin).collect())?;
    let mut listing =
        copy::list(&cluster.data_directory, cluster.version, cluster.catalog_version)?;
    let mut warnings = std::mem::take(&mut listing.warnings);
    let known = Known::find(
        options.detect,
        &writing,
        &cluster,
        start_lsn,
        &listing,
        progress,
        &mut warnings,
    )?;
    progress.add_total(listing.bytes, listing.items.len() as u64);
    let checks = cluster.checksums.then(|| PageChecks::new(cluster.block_size, start_lsn));
    let mut tree = writing.tree(Order::Any);
    let relations = Relations { known: &known, writing: &writing, checks: checks.as_ref() };
    copy_files(&mut tree, &listing, &cluster, &relations, &mut session)?;
    let configuration =
        copy_configuration(&mut tree, &cluster, &mut session, options.private_keys, &mut warnings)?;
    tree.wait()?;
    copy_control(&mut tree, &listing, &cluster)?;
    tree.wait()?;
    failpoint::hit("postgres-files-copied");

    progress.set_phase("stop");
    let stopped = session.stop_backup()?;
    let time_stop = server_time(&mut session)?;
    failpoint::hit("postgres-backup-stopped");
    add_text(&mut tree, &listing, "data/backup_label", &stopped.backup_label)?;
    if !stopped.tablespace_map.is_empty() {
        add_text(&mut tree, &listing, "data/tablespace_map", &stopped.tablespace_map)?;
    }
    let databases = inspect::databases(&mut session)?;
    let tablespaces = tablespaces_of(&listing, &cluster, &mut session)?;
    let timeline = timeline_of(&stopped)?;
    if timeline != cluster.timeline {
        return Err(PostgresError::new(
            PostgresErrorKind::Mismatch,
            format!(
                "the server moved from timeline {} to {timeline} during the backup",
                cluster.timeline
            ),
        )
        .with_hint("run the same command again"));
    }
    let segments = segments(timeline, start_lsn, stopped.lsn, segment_size)?;
    progress.set_phase("archive");
    let mut lanes: Vec<Lane> = (0..writing.lanes())
        .filter(|lane| writing.is_alive(*lane))
        .filter_map(|number| {
            let archive = writing.lane(number)?.0.archive(cluster.system_identifier);
            Some(Lane { number, archive, failed: None })
        })
        .collect();
    wait_for_archives(&mut lanes, &segments, &mut session, options)?;
    archived_is_own(&mut lanes, &segments, &cluster, segment_size, progress)?;
    let mut failed: BTreeMap<usize, PostgresError> = BTreeMap::new();
    for lane in lanes {
        let Some(error) = lane.failed else { continue };
        writing.give_up(lane.number, as_of_repository(&error));
        if let Some(number) = writing.number_of(lane.number) {
            failed.insert(number, error);
        }
    }
    if writing.check().is_err()
        && let Some((_, error)) = failed.pop_first()
    {
        return Err(error);
    }
    failpoint::hit("postgres-archive-complete");

    for Problem { path, what } in &listing.problems {
        writing.problem(path, what.clone());
    }
    if let Some(checks) = checks {
        for Problem { path, what } in checks.problems(stopped.lsn) {
            writing.problem(&path, what);
        }
    }
    let name = |name: Option<&SegmentName>| name.map(ToString::to_string).unwrap_or_default();
    let detail = BackupDetail {
        system_identifier: cluster.system_identifier,
        version: cluster.version,
        catalog_version: cluster.catalog_version,
        timeline,
        start_lsn,
        stop_lsn: stopped.lsn,
        start_segment: name(segments.first()),
        stop_segment: name(segments.last()),
        segment_size,
        block_size: cluster.block_size,
        checksums: cluster.checksums,
        tablespaces,
        databases,
        configuration,
        time_start,
        time_stop,
    };
    let json = serde_json::to_value(&detail).map_err(|error| {
        PostgresError::usage(format!("what is known of the cluster cannot be written: {error}"))
    })?;
    progress.set_phase("commit");
    let root = tree.finish()?;
    let committed = writing.commit_all(root, json).into_iter().enumerate();
    let snapshots = committed
        .map(|(number, made)| made.map_err(|error| failed.remove(&number).unwrap_or(error.into())))
        .collect();
    Ok(Backups { snapshots, detail, warnings })
}

/// The snapshot whose pages those of this backup are compared with. A repository that cannot be asked
/// tells of it when the session begins.
fn parent(repository: &Repository, source: &Source, type_: SnapshotType) -> Option<Snapshot> {
    if type_ == SnapshotType::Full {
        return None;
    }
    repository.snapshots().ok()?.into_iter().rfind(|snapshot| {
        snapshot.source == source.name
            && snapshot.kind == SourceKind::Postgres
            && (type_ == SnapshotType::Incremental || snapshot.type_ == SnapshotType::Full)
            && repository.may_build_on(snapshot).is_ok_and(|may| may)
    })
}

/// What a lane is left behind with.
fn as_of_repository(error: &PostgresError) -> RepoError {
    let it = RepoError::new(error.repo_kind().unwrap_or(RepoErrorKind::Io), error.to_string());
    match error.hint() {
        Some(hint) => it.with_hint(hint),
        None => it,
    }
}

/// The tablespaces that are in the copy. One may have come or gone since the cluster was asked.
fn tablespaces_of(
    listing: &Listing,
    cluster: &Cluster,
    session: &mut Session,
) -> Result<Vec<Tablespace>> {
    let mut known = cluster.tablespaces.clone();
    known.extend(inspect::tablespaces(session)?);
    let mut found: Vec<Tablespace> = Vec::new();
    for item in &listing.items {
        let Some(oid) = item
            .path
            .strip_prefix(b"tablespaces/")
            .and_then(|oid| std::str::from_utf8(oid).ok()?.parse::<u32>().ok())
        else {
            continue;
        };
        found.push(known.iter().find(|space| space.oid == oid).cloned().unwrap_or_else(|| {
            let behind = std::fs::read_link(&item.source).unwrap_or_default();
            Tablespace { oid, name: oid.to_string(), path: behind.to_string_lossy().into_owned() }
        }));
    }
    Ok(found)
}

/// Refuses what cannot end well before the server is asked for a checkpoint.
fn may_start(cluster: &Cluster, targets: &[Target], source: &Source) -> Result<()> {
    if cluster.in_recovery {
        return Err(PostgresError::new(
            PostgresErrorKind::Unsupported,
            format!("{} is a standby; backups are made on the primary", source.name),
        )
        .with_hint("let `connection` and `data-directory` of the source name the primary"));
    }
    let settings = &cluster.settings;
    if settings.wal_level == "minimal" {
        return Err(PostgresError::new(
            PostgresErrorKind::Unsupported,
            "the server runs with wal_level = minimal, from which nothing can be recovered",
        )
        .with_hint("run `backstay postgres setup`, then restart the server"));
    }
    let off = settings.archive_mode == "off"
        || (!settings.archive_mode.is_empty()
            && matches!(settings.archive_command.as_str(), "" | "(disabled)")
            && settings.archive_library.is_empty());
    // WAL may also arrive by another way than the server's archiver.
    let empty = |target: &Target| -> Result<bool> {
        let archive = target.repository.archive(cluster.system_identifier);
        Ok(archive.list(Some(cluster.timeline))?.is_empty())
    };
    // A repository that cannot be asked is told of by its lane.
    if off && targets.iter().map(empty).all(|empty| empty.unwrap_or(targets.len() > 1)) {
        return Err(PostgresError::new(
            PostgresErrorKind::Archive,
            format!("the server archives no WAL, and the archive of {} is empty", source.name),
        )
        .with_hint(
            "run `backstay postgres setup`: without WAL a copy of the files cannot be recovered",
        ));
    }
    Ok(())
}

/// How files of relations are taken.
struct Relations<'a> {
    known: &'a Known,
    writing: &'a backstay_repo::Session,
    checks: Option<&'a Arc<PageChecks>>,
}

fn copy_files(
    tree: &mut TreeWriter<'_>,
    listing: &Listing,
    cluster: &Cluster,
    relations: &Relations<'_>,
    session: &mut Session,
) -> Result<()> {
    let mut asked = Instant::now();
    let spaces = Item {
        path: b"tablespaces".to_vec(),
        source: cluster.data_directory.join("pg_tblspc"),
        meta: root_metadata(listing),
        what: What::Directory,
    };
    let has_spaces = listing.items.iter().any(|item| item.path.starts_with(b"tablespaces/"));
    for item in listing.items.iter().chain(has_spaces.then_some(&spaces)) {
        let entry = |kind| Entry { path: item.path.clone(), meta: item.meta.clone(), kind };
        let file = |relation_size, pages| {
            Box::new(DataFile {
                source: item.source.clone(),
                path: String::from_utf8_lossy(&item.path).into_owned(),
                relation_size,
                pages,
            })
        };
        let content = |size| EntryKind::File(FileContent { size, ..FileContent::empty() });
        match &item.what {
            What::Control => {}
            What::Directory => tree.entry(entry(EntryKind::Directory))?,
            What::Symlink { target } => {
                tree.entry(entry(EntryKind::Symlink { target: target.clone() }))?;
            }
            What::File { size } => {
                tree.file(entry(content(*size)), file(None, None), Chunking::ContentDefined)?;
            }
            What::Relation { size, segment } => {
                let first = segment.wrapping_mul(cluster.relation_segment_blocks);
                let pages = relations.checks.map(|checks| (checks.clone(), first));
                let known = relations.known.of(relations.writing, item, *size);
                let wanted = || -> Box<dyn Content> { file(Some(*size), pages) };
                if known.is_empty() {
                    tree.file(entry(content(*size)), wanted(), Chunking::Grid)?;
                } else {
                    let entry = entry(content(*size));
                    tree.file_unless_known(entry, wanted, Chunking::Grid, known)?;
                }
            }
        }
        if asked.elapsed() >= KEEP_ALIVE {
            session.alive()?;
            asked = Instant::now();
        }
    }
    Ok(())
}

/// Files of the configuration that are not in the data directory.
fn copy_configuration(
    tree: &mut TreeWriter<'_>,
    cluster: &Cluster,
    session: &mut Session,
    private_keys: bool,
    warnings: &mut Vec<String>,
) -> Result<Vec<ConfigurationFile>> {
    let found = configuration::find(cluster, session, private_keys)?;
    warnings.extend(found.warnings);
    for Stored { path, meta, content } in found.stored {
        match content {
            Some(bytes) => add_bytes(tree, path, meta, bytes)?,
            None => tree.entry(Entry { path, meta, kind: EntryKind::Directory })?,
        }
    }
    Ok(found.files)
}

fn copy_control(tree: &mut TreeWriter<'_>, listing: &Listing, cluster: &Cluster) -> Result<()> {
    let item = listing.items.iter().find(|item| item.what == What::Control).ok_or_else(|| {
        PostgresError::new(
            PostgresErrorKind::Mismatch,
            format!("{} has no {}", cluster.data_directory.display(), control::PATH),
        )
    })?;
    let (bytes, control): (Vec<u8>, ControlFile) = control::read_sound(&item.source)?;
    if control.system_identifier != cluster.system_identifier {
        return Err(PostgresError::new(
            PostgresErrorKind::Mismatch,
            format!("{} was replaced during the backup", item.source.display()),
        ));
    }
    add_bytes(tree, item.path.clone(), item.meta.clone(), bytes)
}

fn add_text(tree: &mut TreeWriter<'_>, listing: &Listing, path: &str, text: &str) -> Result<()> {
    let mut meta = root_metadata(listing);
    // Files of a cluster that its group may read have 0640, all others 0600.
    meta.mode = if meta.mode & 0o050 != 0 { 0o640 } else { 0o600 };
    add_bytes(tree, path.as_bytes().to_vec(), meta, text.as_bytes().to_vec())
}

fn add_bytes(
    tree: &mut TreeWriter<'_>,
    path: Vec<u8>,
    meta: Metadata,
    bytes: Vec<u8>,
) -> Result<()> {
    if bytes.len() as u64 <= INLINE_LIMIT {
        let kind = EntryKind::File(FileContent::inline(bytes));
        tree.entry(Entry { path, meta, kind })?;
    } else {
        let size = bytes.len() as u64;
        let kind = EntryKind::File(FileContent { size, ..FileContent::empty() });
        tree.file(Entry { path, meta, kind }, Box::new(Bytes(bytes)), Chunking::ContentDefined)?;
    }
    Ok(())
}

fn root_metadata(listing: &Listing) -> Metadata {
    listing.items.first().map(|item| item.meta.clone()).unwrap_or_default()
}

fn server_time(session: &mut Session) -> Result<Timestamp> {
    let text: String = session.one(
        "ask for the time",
        "SELECT to_char(clock_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
        &[],
    )?;
    text.parse().map_err(|error| {
        PostgresError::new(
            PostgresErrorKind::Server,
            format!("the server's time {text:?} is none: {error}"),
        )
    })
}

/// The timeline that the label names.
fn timeline_of(stopped: &Stopped) -> Result<u32> {
    stopped
        .backup_label
        .lines()
        .find_map(|line| line.strip_prefix("START TIMELINE: "))
        .and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| {
            PostgresError::new(PostgresErrorKind::Server, "the backup label names no timeline")
        })
}

/// The segments that recovery of the copy needs at least, in order.
fn segments(timeline: u32, start: Lsn, stop: Lsn, size: SegmentSize) -> Result<Vec<SegmentName>> {
    (start.segment(size)..=stop.last_segment(size))
        .map(|number| SegmentName::new(timeline, number, size))
        .collect::<Option<_>>()
        .ok_or_else(|| {
            PostgresError::new(
                PostgresErrorKind::Server,
                format!("no WAL segment can hold {start} to {stop} on timeline {timeline}"),
            )
        })
}

/// Waits until all of `segments` are in the archive of every lane, for a time that they share: the
/// server passes each segment to all of them at once.
fn wait_for_archives(
    lanes: &mut [Lane],
    segments: &[SegmentName],
    session: &mut Session,
    options: &BackupOptions,
) -> Result<()> {
    let deadline = Instant::now() + options.archive_timeout;
    for lane in lanes {
        let waited = wait_for_archive(&lane.archive, segments, session, options, deadline);
        options.progress.check()?;
        lane.failed = waited.err();
    }
    Ok(())
}

/// Waits until all of `segments` are in the archive. What is there once stays there, so each is
/// waited for in turn, and the last is the last that the server writes.
fn wait_for_archive(
    archive: &Archive,
    segments: &[SegmentName],
    session: &mut Session,
    options: &BackupOptions,
    deadline: Instant,
) -> Result<()> {
    let mut missing: Vec<&SegmentName> = segments.iter().collect();
    if missing.len() >= LIST_FROM {
        let timeline = segments.first().map(|name| name.timeline());
        let there: BTreeSet<String> =
            archive.list(timeline)?.into_iter().map(|file| file.name).collect();
        missing.retain(|name| !there.contains(&name.to_string()));
    }
    let mut pause = Duration::from_millis(20);
    for name in missing {
        let text = name.to_string();
        while !archive.contains(&text)? {
            options.progress.check()?;
            if Instant::now() >= deadline {
                return Err(not_archived(&text, session, options));
            }
            std::thread::sleep(pause);
            pause = (pause * 3 / 2).min(Duration::from_secs(1));
        }
    }
    Ok(())
}

/// Refuses an archive that has other WAL under the names of this cluster's segments, as when a copy
/// of the cluster archives to the same place: with that WAL the backup cannot be recovered.
///
/// A segment that is not in `pg_wal` any more was archived by this server, which keeps it until then.
fn archived_is_own(
    lanes: &mut [Lane],
    segments: &[SegmentName],
    cluster: &Cluster,
    size: SegmentSize,
    progress: &Progress,
) -> Result<()> {
    let directory = cluster.data_directory.join("pg_wal");
    for name in segments {
        progress.check()?;
        let path = directory.join(name.to_string());
        let own = match std::fs::read(&path) {
            Ok(own) if own.len() as u64 == size.bytes() => own,
            Ok(_) => continue,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(PostgresError::io("read", &path, error)),
        };
        for lane in lanes.iter_mut().filter(|lane| lane.failed.is_none()) {
            lane.failed = is_own(&lane.archive, &name.to_string(), &own, &path).err();
        }
    }
    Ok(())
}

fn is_own(archive: &Archive, name: &str, own: &[u8], path: &Path) -> Result<()> {
    if archive.stored_hash(name)? == Some(archive.hash(own)) {
        return Ok(());
    }
    // One that was recycled while it was read has another name by now.
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(PostgresError::io("read", path, error)),
        Ok(_) => {}
    }
    Err(PostgresError::new(
        PostgresErrorKind::Archive,
        format!(
            "the archive has another WAL segment {name} than this server; another cluster with \
             the same system identifier archives to it"
        ),
    )
    .with_hint(
        "a copy of the cluster that was promoted or started needs a repository of its own, or \
         archive_mode = off; no snapshot was made",
    ))
}

fn not_archived(name: &str, session: &mut Session, options: &BackupOptions) -> PostgresError {
    // The server's own word is the best hint there is; without it the message still stands.
    let failure = session
        .rows(
            "ask the archiver",
            "SELECT last_failed_wal, last_failed_time::text FROM pg_stat_archiver \
             WHERE last_failed_time > coalesce(last_archived_time, '-infinity')",
            &[],
        )
        .ok()
        .and_then(|rows| {
            let row = rows.first()?;
            let wal: Option<String> = row.try_get(0).ok()?;
            let time: Option<String> = row.try_get(1).ok()?;
            Some(format!("; the server could not archive {} at {}", wal?, time?))
        })
        .unwrap_or_default();
    PostgresError::new(
        PostgresErrorKind::Archive,
        format!(
            "the WAL segment {name} did not reach the archive within {} s{failure}",
            options.archive_timeout.as_secs()
        ),
    )
    .with_hint(
        "check that archive_command is `backstay wal push %p` for this repository; the server's log \
         says why a command failed; no snapshot was made",
    )
    .transient()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segments_of_a_backup_are_all_from_start_to_stop() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let names = |start, stop| -> Vec<String> {
            segments(2, Lsn(start), Lsn(stop), size)
                .unwrap()
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(names(0x10_0028, 0x10_0138), ["000000020000000000000001"]);
        // A stop on a boundary needs nothing of the segment that starts there.
        assert_eq!(names(0x10_0028, 0x20_0000), ["000000020000000000000001"]);
        assert_eq!(
            names(0x10_0028, 0x20_0001),
            ["000000020000000000000001", "000000020000000000000002"]
        );
        assert_eq!(names(0xFFF0_0000, 0x1_0000_0001).last().unwrap(), "000000020000000100000000");
    }

    #[test]
    fn the_label_names_the_timeline() {
        let stopped = |label: &str| Stopped {
            lsn: Lsn(1),
            backup_label: label.to_owned(),
            tablespace_map: String::new(),
        };
        let label =
            "START WAL LOCATION: 0/2000028 (file 000000030000000000000002)\nSTART TIMELINE: 3\n";
        assert_eq!(timeline_of(&stopped(label)).unwrap(), 3);
        assert!(timeline_of(&stopped("LABEL: START TIMELINE: 3\n")).is_err());
    }
}
