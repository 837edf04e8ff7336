//! A backup of a running cluster.
//!
//! What lives here: what every backup has, and the one that is made on the database host: one session
//! held from start to stop, the files read by the repository's workers in between. `wire` is the one
//! that comes over a replication connection, `archived` the wait for the WAL of either.
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
//! Where the log says which pages changed, the others need not be read (`known`).

mod archived;
mod carried;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_repo::{
    Archive, Chunking, Compression, Content, Entry, EntryKind, Fate, FileContent, INLINE_LIMIT,
    Metadata, Order, Problem, Progress, RepoError, RepoErrorKind, Repository, SessionOptions,
    Snapshot, SnapshotType, SourceKind, TreeRoot, TreeWriter,
};
use backstay_store::failpoint;
use jiff::Timestamp;

use crate::configuration::{self, ConfigurationFile, Stored};
use crate::control::{self, ControlFile};
use crate::copy::{self, Item, Listing, What};
use crate::detail::BackupDetail;
use crate::inspect::{self, Cluster, ServerSettings, Tablespace, inspect_session};
use crate::known::{Detect, Known};
use crate::reader::{Bytes, DataFile, PageChecks};
use crate::session::{Session, Source};
use crate::wal::{Lsn, SegmentName, SegmentSize};
use crate::{PostgresError, PostgresErrorKind, Result};
use archived::{Primary, archived_is_own, wait_for_archives};
use carried::{Keeper, Needed};

/// How often the session is asked whether it is still there while files are read.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// By which way the files of a cluster come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Method {
    /// From this machine where the server's data directory is here, else over the wire.
    #[default]
    Auto,
    /// From the data directory, on this machine.
    Files,
    /// Over a replication connection, from anywhere.
    Wire,
}

/// How to back up.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    pub method: Method,
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
    /// The snapshot carries the WAL that it needs: it can be restored without an archive, and the
    /// server need not have one.
    pub standalone: bool,
    /// How to reach the primary, when the source is a standby. Absent: where it receives WAL from.
    pub primary: Option<String>,
    pub progress: Arc<Progress>,
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self {
            method: Method::default(),
            type_: SnapshotType::Incremental,
            detect: Detect::default(),
            workers: 0,
            compression: Compression::default(),
            tags: BTreeMap::new(),
            private_keys: false,
            fast: true,
            archive_timeout: Duration::from_secs(60),
            standalone: false,
            primary: None,
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
    options.progress.set_phase("connect");
    let here = |source| {
        let mut session = Session::open(source)?;
        let cluster = inspect_session(&mut session, source)?;
        Ok((session, cluster))
    };
    match options.method {
        Method::Wire => wire::back_up(wire::connect(source)?, targets, source, options),
        Method::Auto if source.data_directory.is_none() => match here(source) {
            Ok((session, cluster)) => on_host(targets, source, options, session, &cluster),
            Err(error) if may_come_over_the_wire(&error) => {
                tracing::info!(reason = %error, "the files come over the wire");
                // Where neither way is open, the reason is the one of the first.
                match wire::connect(source) {
                    Ok(wire) => wire::back_up(wire, targets, source, options),
                    Err(_) => Err(error),
                }
            }
            Err(error) => Err(error),
        },
        Method::Auto | Method::Files => {
            let (session, cluster) = here(source)?;
            on_host(targets, source, options, session, &cluster)
        }
    }
}

/// Whether a source that cannot be read here may be read over the wire: its files are elsewhere, or
/// its role may replicate and nothing else.
pub(crate) fn may_come_over_the_wire(error: &PostgresError) -> bool {
    matches!(
        error.kind(),
        PostgresErrorKind::Io
            | PostgresErrorKind::Mismatch
            | PostgresErrorKind::Usage
            | PostgresErrorKind::Connection
            | PostgresErrorKind::Server
    )
}

/// A backup whose files are on this machine.
fn on_host(
    targets: &[Target],
    source: &Source,
    options: &BackupOptions,
    mut session: Session,
    cluster: &Cluster,
) -> Result<Backups> {
    let progress = &options.progress;
    let place = (cluster.system_identifier, cluster.timeline);
    if !options.standalone {
        may_begin(&cluster.settings, cluster.in_recovery, place, targets, source)?;
    }
    let keeper = options.standalone.then(|| Keeper::begin(source)).transpose()?;
    let segment_size = SegmentSize::new(u64::from(cluster.segment_size)).ok_or_else(|| {
        PostgresError::new(
            PostgresErrorKind::Unsupported,
            format!("WAL segments of {} bytes cannot be", cluster.segment_size),
        )
    })?;

    progress.set_phase("checkpoint");
    let time_start = server_time(&mut session)?;
    let start_lsn = session.start_backup(&label(source), options.fast)?;
    failpoint::hit("postgres-backup-started");

    progress.set_phase("copy");
    let writing = begin(targets, source, options)?;
    let mut listing =
        copy::list(&cluster.data_directory, cluster.version, cluster.catalog_version)?;
    let mut warnings = std::mem::take(&mut listing.warnings);
    let known = Known::find(&writing, cluster, start_lsn, &listing, options, &mut warnings)?;
    progress.add_total(listing.bytes, listing.items.len() as u64);
    let checks = cluster.checksums.then(|| PageChecks::new(cluster.block_size, start_lsn));
    let mut tree = writing.tree(Order::Any);
    let relations = Relations { known: &known, writing: &writing, checks: checks.as_ref() };
    copy_files(&mut tree, &listing, cluster, &relations, &mut session)?;
    let configuration =
        copy_configuration(&mut tree, cluster, &mut session, options.private_keys, &mut warnings)?;
    tree.wait()?;
    copy_control(&mut tree, &listing, cluster)?;
    tree.wait()?;
    failpoint::hit("postgres-files-copied");

    progress.set_phase("stop");
    let stopped = match session.stop_backup() {
        Ok(stopped) => stopped,
        Err(error) => return Err(was_promoted(&mut session, cluster, source).unwrap_or(error)),
    };
    let time_stop = server_time(&mut session)?;
    failpoint::hit("postgres-backup-stopped");
    add_text(&mut tree, &listing, "data/backup_label", &stopped.backup_label)?;
    if !stopped.tablespace_map.is_empty() {
        add_text(&mut tree, &listing, "data/tablespace_map", &stopped.tablespace_map)?;
    }
    let databases = inspect::databases(&mut session)?;
    let tablespaces = tablespaces_of(&listing, cluster, &mut session)?;
    let timeline = timeline_of(&stopped.backup_label)?;
    if cluster.in_recovery {
        let end: i32 = session.one(
            "ask for the timeline",
            "SELECT min_recovery_end_timeline FROM pg_control_recovery()",
            &[],
        )?;
        if u32::try_from(end).ok() != Some(timeline) {
            return Err(PostgresError::new(
                PostgresErrorKind::Mismatch,
                format!("the standby moved from timeline {timeline} to {end} during the backup"),
            )
            .with_hint("run the same command again"));
        }
    }
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
    let mut lanes = lanes(&writing, cluster.system_identifier);
    let mut asked = Some(session);
    let mut primary = match cluster.in_recovery {
        true => Primary::of(source, asked.as_mut(), options),
        false => Primary::none(),
    };
    if let Some(keeper) = keeper {
        let needed = Needed {
            segments: &segments,
            stop: stopped.lsn,
            size: segment_size,
            system_identifier: cluster.system_identifier,
        };
        keeper.store(&needed, &mut tree, &file_metadata(&root_metadata(&listing)), progress)?;
    } else {
        wait_for_archives(&mut lanes, &segments, &mut asked, &mut primary, options)?;
        archived_is_own(&mut lanes, &segments, cluster, segment_size, progress)?;
    }
    let failed = leave_behind(&writing, lanes)?;
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
        standalone: options.standalone,
        databases,
        configuration,
        time_start,
        time_stop,
    };
    let root = tree.finish()?;
    commit(writing, root, detail, failed, warnings, progress)
}

/// The archives of the lanes that go on.
fn lanes(writing: &backstay_repo::Session, system_identifier: u64) -> Vec<Lane> {
    (0..writing.lanes())
        .filter(|lane| writing.is_alive(*lane))
        .filter_map(|number| {
            let archive = writing.lane(number)?.0.archive(system_identifier);
            Some(Lane { number, archive, failed: None })
        })
        .collect()
}

/// Gives up the lanes whose archive lacks what it should have; their errors, by target.
fn leave_behind(
    writing: &backstay_repo::Session,
    lanes: Vec<Lane>,
) -> Result<BTreeMap<usize, PostgresError>> {
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
    Ok(failed)
}

/// Makes the snapshots exist.
fn commit(
    writing: backstay_repo::Session,
    root: TreeRoot,
    detail: BackupDetail,
    mut failed: BTreeMap<usize, PostgresError>,
    warnings: Vec<String>,
    progress: &Progress,
) -> Result<Backups> {
    let json = serde_json::to_value(&detail).map_err(|error| {
        PostgresError::usage(format!("what is known of the cluster cannot be written: {error}"))
    })?;
    progress.set_phase("commit");
    let committed = writing.commit_all(root, json).into_iter().enumerate();
    let snapshots = committed
        .map(|(number, made)| made.map_err(|error| failed.remove(&number).unwrap_or(error.into())))
        .collect();
    Ok(Backups { snapshots, detail, warnings })
}

/// Whether a backup of a standby could not be ended because it is none any more.
fn was_promoted(
    session: &mut Session,
    cluster: &Cluster,
    source: &Source,
) -> Option<PostgresError> {
    let asked =
        session.one::<bool>("ask whether it is a standby", "SELECT pg_is_in_recovery()", &[]);
    (cluster.in_recovery && !asked.ok()?).then(|| promotion(source, cluster.timeline, None))
}

fn promotion(source: &Source, from: u32, to: Option<u32>) -> PostgresError {
    let to = to.map(|to| format!(", from timeline {from} to {to}")).unwrap_or_default();
    PostgresError::new(
        PostgresErrorKind::Mismatch,
        format!("the standby {} was promoted during the backup{to}", source.name),
    )
    .with_hint(
        "a copy that spans a promotion cannot be recovered, so that no snapshot was made; run the \
         same command again: it is a primary now",
    )
    .transient()
}

/// What the server calls the backup.
fn label(source: &Source) -> String {
    let name: String = source.name.chars().filter(|letter| !letter.is_control()).collect();
    format!("backstay {name}")
}

fn begin(
    targets: &[Target],
    source: &Source,
    options: &BackupOptions,
) -> Result<backstay_repo::Session> {
    let begin = |target: &Target| {
        let parent = parent(&target.repository, source, options.type_);
        let type_ = if parent.is_some() { options.type_ } else { SnapshotType::Full };
        let session = SessionOptions {
            parent,
            workers: options.workers,
            compression: target.compression,
            tags: options.tags.clone(),
            progress: options.progress.clone(),
            fate: target.fate.clone(),
            ..SessionOptions::new(&source.name, SourceKind::Postgres, type_)
        };
        (target.repository.clone(), session)
    };
    Ok(backstay_repo::Session::begin(targets.iter().map(begin).collect())?)
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

/// Refuses what cannot end well before the server is asked for a checkpoint. `place` is the system
/// identifier and the timeline.
fn may_begin(
    settings: &ServerSettings,
    in_recovery: bool,
    place: (u64, u32),
    targets: &[Target],
    source: &Source,
) -> Result<()> {
    if settings.wal_level == "minimal" {
        return Err(PostgresError::new(
            PostgresErrorKind::Unsupported,
            "the server runs with wal_level = minimal, from which nothing can be recovered",
        )
        .with_hint("run `backstay postgres setup`, then restart the server"));
    }
    // What a standby has in the archive came from its primary.
    let off = in_recovery
        || settings.archive_mode == "off"
        || (!settings.archive_mode.is_empty()
            && matches!(settings.archive_command.as_str(), "" | "(disabled)")
            && settings.archive_library.is_empty());
    // WAL may also arrive by another way than the server's archiver.
    let empty = |target: &Target| -> Result<bool> {
        let archive = target.repository.archive(place.0);
        Ok(archive.list(Some(place.1))?.is_empty())
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
        let file = |relation_size, pages, changed| {
            Box::new(DataFile {
                source: item.source.clone(),
                path: String::from_utf8_lossy(&item.path).into_owned(),
                relation_size,
                pages,
                changed,
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
                tree.file(
                    entry(content(*size)),
                    file(None, None, Vec::new()),
                    Chunking::ContentDefined,
                )?;
            }
            What::Relation { size, segment } => {
                let first = segment.wrapping_mul(cluster.relation_segment_blocks);
                let pages = relations.checks.map(|checks| (checks.clone(), first));
                let known = relations.known.of(relations.writing, item, *size);
                let wanted = || -> Box<dyn Content> { file(Some(*size), pages, known.changed) };
                let entry = entry(content(*size));
                tree.file_unless_known(entry, wanted, Chunking::Grid, known.entries)?;
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
    let meta = file_metadata(&root_metadata(listing));
    add_bytes(tree, path.as_bytes().to_vec(), meta, text.as_bytes().to_vec())
}

/// What a file has in a data directory that has `root`: files of a cluster that its group may read have
/// 0640, all others 0600.
fn file_metadata(root: &Metadata) -> Metadata {
    let mode = if root.mode & 0o050 != 0 { 0o640 } else { 0o600 };
    Metadata { mode, ..root.clone() }
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
pub(crate) fn timeline_of(label: &str) -> Result<u32> {
    label
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
        let label =
            "START WAL LOCATION: 0/2000028 (file 000000030000000000000002)\nSTART TIMELINE: 3\n";
        assert_eq!(timeline_of(label).unwrap(), 3);
        assert!(timeline_of("LABEL: START TIMELINE: 3\n").is_err());
    }
}
