//! `wal push`: what PostgreSQL's archiver calls for each finished file.
//!
//! It answers Ok only when the file is durable in every repository, or in as many as are asked for,
//! where something else brings it to the others. A file that is empty, cut short,
//! renamed or of another cluster is refused: what the archive holds is never overwritten, so what
//! goes wrong here would stay.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use backstay_repo::{
    Archive, Compression, Pushed, Reader, RepoError, RepoErrorKind, Repository, push_to_all,
};
use backstay_store::failpoint;

use super::page::check_segment_head;
use super::whole::is_whole;
use super::{History, SegmentHeader, SegmentName, WalName};
use crate::control::ControlFile;
use crate::{PostgresError, PostgresErrorKind, Result};

/// The largest segment there can be. Bytes.
const MAX_SEGMENT: u64 = 1 << 30;
/// Histories and backup labels are a few lines; a megabyte is none.
const MAX_TEXT: u64 = 1 << 20;
/// What the look-ahead may hold in memory at once. Bytes.
const LOOK_AHEAD_MEMORY: u64 = 256 << 20;

/// How files are pushed.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// The cluster that the file must be of; none: that of the data directory around it.
    pub system_identifier: Option<u64>,
    /// How many of the next files that PostgreSQL has ready are pushed in the same call; 0 for none.
    pub ahead: usize,
    /// Of each repository, in their order; what is not named is as by default.
    pub destinations: Vec<Destination>,
    /// In how many repositories a file must be, at least one. None: in all.
    pub copies: Option<usize>,
}

/// How files go to one repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Destination {
    /// None: the archive's own choice.
    pub compression: Option<Compression>,
    /// Something else brings files to it later, so that it may be down as long as enough others are
    /// not.
    pub may_be_late: bool,
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushReport {
    pub name: String,
    /// What each repository said that has it now, in their order.
    pub repositories: Vec<Pushed>,
    /// Where those are that do not have it yet.
    pub late: Vec<String>,
    /// Files that were pushed ahead of PostgreSQL, durable in every repository.
    pub ahead: Vec<String>,
}

/// Pushes one file to every repository; all must have it, or so many as `options` say.
///
/// # Errors
/// [`PostgresErrorKind::Usage`] for a name that is none of a WAL file,
/// [`PostgresErrorKind::Damaged`] and [`PostgresErrorKind::Mismatch`] for a file that is not what
/// its name says, [`PostgresErrorKind::Repo`] with [`backstay_repo::RepoErrorKind::Conflict`] when
/// other content has its name. The caller must exit with 1 to 125: above that, PostgreSQL takes the
/// archiver for crashed.
pub fn push(repositories: &[Repository], path: &Path, options: &PushOptions) -> Result<PushReport> {
    if repositories.is_empty() {
        return Err(PostgresError::usage("there is no repository to push to"));
    }
    let name = file_name(path)?;
    let work = Work { repositories, options, directory: parent(path) };
    let file = work.read(path, name)?;
    failpoint::hit("wal-push-read");
    if let WalName::Segment(segment) = name {
        work.history_first(segment.timeline())?;
    }
    if options.ahead == 0 {
        let pushed = work.store(&file)?;
        return Ok(pushed.report(name, Vec::new()));
    }
    // Whatever becomes of the look-ahead, what is answered is what became of this file.
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ahead = scope.spawn(|| work.ahead(name, file.content.size, &failed));
        let pushed = work.store(&file);
        failed.store(pushed.is_err(), Ordering::Relaxed);
        let ahead = ahead.join().unwrap_or_default();
        Ok(pushed?.report(name, ahead))
    })
}

/// What became of a file that is in enough repositories.
struct Stored {
    pushed: Vec<Pushed>,
    late: Vec<String>,
}

impl Stored {
    fn report(self, name: WalName, ahead: Vec<String>) -> PushReport {
        let Self { pushed: repositories, late } = self;
        PushReport { name: name.to_string(), repositories, late, ahead }
    }
}

/// A file that is what its name says.
struct WalFile {
    name: WalName,
    system_identifier: u64,
    content: Opened,
}

/// A file and the size that it has.
struct Opened {
    file: File,
    size: u64,
}

impl Opened {
    fn open(path: &Path, limit: u64) -> Result<Self> {
        let io = |error| PostgresError::io("read", path, error);
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let size = metadata.len();
        if !metadata.is_file() {
            return Err(PostgresError::usage(format!("{} is no file", path.display())));
        }
        if size > limit {
            return Err(PostgresError::new(
                PostgresErrorKind::Damaged,
                format!("{} has {size} bytes, more than such a file can have", path.display()),
            ));
        }
        Ok(Self { file, size })
    }

    /// The first bytes, `most` of them or all there are.
    fn head(&self, path: &Path, most: u64) -> Result<Vec<u8>> {
        let mut head = vec![0; self.size.min(most) as usize];
        let read = self.file.read_exact_at(&mut head, 0);
        read.map_err(|error| PostgresError::io("read", path, error))?;
        Ok(head)
    }
}

impl Reader for Opened {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_exact_at(buffer, offset).map(|()| buffer.len())
    }
}

struct Work<'a> {
    repositories: &'a [Repository],
    options: &'a PushOptions,
    /// `pg_wal`.
    directory: PathBuf,
}

fn file_name(path: &Path) -> Result<WalName> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.parse().map_err(|error: super::NameError| {
        PostgresError::usage(error.to_string())
            .with_hint("archive_command passes the path of the file as %p")
    })
}

/// Whether an error only says that a repository cannot be reached. Other content under the same name, a
/// wrong key or damage do not pass, and somebody has to look at them.
fn is_down(error: &RepoError) -> bool {
    matches!(error.kind(), RepoErrorKind::Store | RepoErrorKind::Io | RepoErrorKind::Busy)
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

impl Work<'_> {
    /// Reads a file and checks that it is whole, and of the cluster it should be of.
    fn read(&self, path: &Path, name: WalName) -> Result<WalFile> {
        let limit = if name.content().is_some() { MAX_SEGMENT } else { MAX_TEXT };
        let content = Opened::open(path, limit)?;
        let expected = self.expected();
        if let Some(segment) = name.content() {
            let head = content.head(path, SegmentHeader::SIZE as u64)?;
            let header = check_segment_head(segment, &head, content.size, expected)?;
            if matches!(name, WalName::Segment(_)) {
                self.check_end(path, segment, &header, &content)?;
            }
            return Ok(WalFile { name, system_identifier: header.system_identifier, content });
        }
        let refused = |what: String| {
            PostgresError::new(PostgresErrorKind::Damaged, what)
                .with_hint("nothing was archived; a file that was cut short can be pushed again")
        };
        if content.size == 0 {
            return Err(refused(format!("{name} is empty")));
        }
        if let WalName::History(timeline) = name {
            History::parse(timeline, &content.head(path, limit)?)
                .map_err(|error| refused(error.to_string()))?;
        }
        let Some(system_identifier) = expected else {
            return Err(PostgresError::usage(format!(
                "{name} does not say which cluster it is of, and no data directory is around it"
            ))
            .with_hint("push it from pg_wal, or with the source that it belongs to"));
        };
        Ok(WalFile { name, system_identifier, content })
    }

    /// Refuses the beginning of a segment under the name of the whole.
    fn check_end(
        &self,
        path: &Path,
        name: SegmentName,
        header: &SegmentHeader,
        content: &Opened,
    ) -> Result<()> {
        let io = |error| PostgresError::io("read", path, error);
        if is_whole(name, header, content).map_err(io)? || self.was_left_in(name, header) {
            return Ok(());
        }
        Err(PostgresError::new(
            PostgresErrorKind::Damaged,
            format!("the WAL segment {name} was not written to its end"),
        )
        .with_hint(
            "nothing was archived; a standby that fetched what there was of it gets the whole \
             later, and archives that",
        ))
    }

    /// Whether a history beside the segment says that its timeline was left within it: then nothing
    /// more will come.
    fn was_left_in(&self, name: SegmentName, header: &SegmentHeader) -> bool {
        let Some(number) = name.number(header.segment_size) else { return false };
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return false };
        entries.flatten().any(|entry| {
            let file = entry.file_name();
            let Some(Ok(WalName::History(timeline))) = file.to_str().map(str::parse) else {
                return false;
            };
            let history = Opened::open(&entry.path(), MAX_TEXT)
                .and_then(|file| file.head(&entry.path(), MAX_TEXT));
            let history = history.ok().and_then(|text| History::parse(timeline, &text).ok());
            let end = history.and_then(|history| history.end_of(name.timeline()));
            end.is_some_and(|end| end.last_segment(header.segment_size) == number)
        })
    }

    /// The system identifier that files must have, where it can be known.
    fn expected(&self) -> Option<u64> {
        self.options.system_identifier.or_else(|| {
            // PostgreSQL runs the command in the data directory and passes pg_wal/NAME: `..` would
            // follow a pg_wal that is a link elsewhere, so the parent is taken by name.
            let data = parent(&self.directory);
            data.join("global/pg_control").is_file().then_some(())?;
            ControlFile::read(&data).ok().map(|control| control.system_identifier)
        })
    }

    fn destination(&self, number: usize) -> Destination {
        self.options.destinations.get(number).copied().unwrap_or_default()
    }

    /// Reads a file once and stores it in every repository at the same time. It is an error when too
    /// few have it afterwards; those that do have it all the same.
    fn store(&self, file: &WalFile) -> Result<Stored> {
        let name = file.name.to_string();
        let archive = |(number, repository): (usize, &Repository)| {
            let archive = repository.archive(file.system_identifier);
            match self.destination(number).compression {
                Some(compression) => archive.with_compression(compression),
                None => archive,
            }
        };
        let archives: Vec<Archive> = self.repositories.iter().enumerate().map(archive).collect();
        // What an earlier look-ahead pushed is told by its hash, without sealing it again.
        let all = push_to_all(&archives, &name, &file.content, self.options.ahead > 0);
        let wanted = self.options.copies.unwrap_or(usize::MAX).clamp(1, self.repositories.len());
        let enough = all.iter().filter(|pushed| pushed.is_ok()).count() >= wanted;
        let mut stored = Stored { pushed: Vec::new(), late: Vec::new() };
        let mut failed = None;
        for (number, (repository, pushed)) in self.repositories.iter().zip(all).enumerate() {
            let error = match pushed {
                Ok(pushed) => {
                    stored.pushed.push(pushed);
                    continue;
                }
                Err(error) => error,
            };
            let repository = repository.store().url();
            if enough && self.destination(number).may_be_late && is_down(&error) {
                tracing::warn!(repository, file = name, %error, "could not archive: it comes later");
                stored.late.push(repository);
            } else {
                tracing::error!(repository, file = name, %error, "could not archive");
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(stored), |error| Err(error.into()))
    }

    fn is_ready(&self, name: &str) -> bool {
        self.directory.join("archive_status").join(format!("{name}.ready")).exists()
    }

    /// Pushes the history of a timeline that waits to be archived, before a segment of it is: a
    /// segment of a timeline that nothing explains cannot be recovered along.
    fn history_first(&self, timeline: u32) -> Result<()> {
        let name = WalName::History(timeline);
        if timeline == 1 || !self.is_ready(&name.to_string()) {
            return Ok(());
        }
        let path = self.directory.join(name.to_string());
        match path.try_exists() {
            Ok(true) => self.store(&self.read(&path, name)?).map(drop),
            // Archived and removed between the two looks.
            Ok(false) => Ok(()),
            Err(error) => Err(PostgresError::io("look for", path, error)),
        }
    }

    /// Pushes what else is ready, the histories first, then segments in order, until one fails.
    fn ahead(&self, now: WalName, size: u64, failed: &AtomicBool) -> Vec<String> {
        let next: Vec<WalName> = ready(&self.directory)
            .into_iter()
            .filter(|&name| name != now)
            .take(self.options.ahead)
            .collect();
        let push = |name: WalName| -> bool {
            let done = !failed.load(Ordering::Relaxed)
                && self
                    .read(&self.directory.join(name.to_string()), name)
                    .and_then(|file| self.store(&file))
                    // PostgreSQL will ask for it by name and be told; here it is only late.
                    .inspect_err(|error| tracing::warn!(file = %name, %error, "not pushed ahead"))
                    .is_ok();
            if !done {
                failed.store(true, Ordering::Relaxed);
            }
            done
        };
        let (histories, segments): (Vec<_>, Vec<_>) =
            next.into_iter().partition(|name| matches!(name, WalName::History(_)));
        let mut pushed: Vec<WalName> = Vec::new();
        for history in histories {
            if !push(history) {
                return names(pushed);
            }
            pushed.push(history);
        }
        // Content, and about as much again while it is sealed.
        let threads = (LOOK_AHEAD_MEMORY / size.max(1).saturating_mul(2)).clamp(1, 8) as usize;
        let at = AtomicUsize::new(0);
        let done: Vec<Vec<WalName>> = std::thread::scope(|scope| {
            let work = || {
                let mut mine = Vec::new();
                while let Some(&name) = segments.get(at.fetch_add(1, Ordering::Relaxed)) {
                    if !push(name) {
                        break;
                    }
                    mine.push(name);
                }
                mine
            };
            let threads: Vec<_> =
                (0..threads.min(segments.len())).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
        });
        pushed.extend(done.into_iter().flatten());
        pushed.sort_by_key(|name| order(*name));
        names(pushed)
    }
}

/// Histories and segments of `pg_wal` that PostgreSQL has ready, in the order in which it asks for them.
pub(super) fn ready(pg_wal: &Path) -> Vec<WalName> {
    let Ok(entries) = std::fs::read_dir(pg_wal.join("archive_status")) else {
        return Vec::new();
    };
    let mut ready: Vec<WalName> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let name = name.to_str()?.strip_suffix(".ready")?.parse().ok()?;
            matches!(name, WalName::Segment(_) | WalName::History(_)).then_some(name)
        })
        .collect();
    ready.sort_by_key(|name| order(*name));
    ready
}

/// Histories before segments, then by name: `ready_file_comparator` in PostgreSQL's
/// `postmaster/pgarch.c`.
fn order(name: WalName) -> (bool, String) {
    (!matches!(name, WalName::History(_)), name.to_string())
}

fn names(pushed: Vec<WalName>) -> Vec<String> {
    pushed.iter().map(WalName::to_string).collect()
}
