//! `wal fetch`: what recovery calls for each file it wants.
//!
//! Recovery takes "not there" for the end of the archive, opens the database and starts a new
//! timeline. So [`FetchOutcome::Absent`] is said only when every repository said that the file is
//! not there, and nothing says that it should be (`hole`); whatever else keeps it from being delivered
//! is [`FetchOutcome::Failed`], which stops recovery where it is.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_repo::{RepoErrorKind, Repository};

use super::deliver::deliver;
use super::hole;
use super::spool::Spool;
use super::{History, SegmentHeader, SegmentName, WalName, check_segment};
use crate::{PostgresError, PostgresErrorKind, Result};

/// The first pause before a file is asked for again; each further one is twice as long.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How files are fetched.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// The cluster whose archive is read; every segment must be of it.
    pub system_identifier: u64,
    /// How many of the segments that follow are fetched into the spool in the same call, when the
    /// one asked for was not there yet. 0 for none; must be 0 for `pg_rewind`, which goes backwards.
    pub prefetch: usize,
    /// Where prefetched segments wait. None: no prefetching.
    pub spool: Option<PathBuf>,
    /// Whether a segment that is nowhere whole is put together from its slices, zeros behind them; and
    /// one that is nowhere at all is missed where there should be one. For the last word on it.
    pub slices: bool,
    /// Which repository is asked, in any words: what waits in the spool is taken for the same only.
    pub origin: String,
    /// How long a store that does not answer is asked again.
    pub retry_for: Duration,
}

/// What became of a fetch.
#[derive(Debug)]
pub enum FetchOutcome {
    /// The file is whole and durable under its name. Exit status 0.
    Complete,
    /// Every repository said that it has no such file, and none is missing. Exit status 1.
    Absent,
    /// Not known, or not usable. Exit status 255.
    Failed(PostgresError),
}

/// Fetches one file of the archive from the first repository that has it whole.
pub fn fetch(
    repositories: &[Repository],
    name: &str,
    destination: &Path,
    options: &FetchOptions,
) -> FetchOutcome {
    match try_fetch(repositories, name, destination, options) {
        Ok(true) => FetchOutcome::Complete,
        Ok(false) => FetchOutcome::Absent,
        Err(error) => FetchOutcome::Failed(error),
    }
}

/// Delivers a segment that waits in the spool, without any repository; whether it did.
///
/// # Errors
/// It waits there, and cannot be written to `destination`.
pub fn fetch_spooled(name: &str, destination: &Path, options: &FetchOptions) -> Result<bool> {
    let (Ok(WalName::Segment(segment)), Some(path)) = (name.parse(), &options.spool) else {
        return Ok(false);
    };
    let spool = Spool::new(path, options.system_identifier, &options.origin);
    let Some(content) = spool.take(segment) else { return Ok(false) };
    deliver(&content, destination)?;
    spool.remove(segment);
    Ok(true)
}

fn try_fetch(
    repositories: &[Repository],
    name: &str,
    destination: &Path,
    options: &FetchOptions,
) -> Result<bool> {
    let name: WalName = name.parse().map_err(|error: super::NameError| {
        PostgresError::usage(error.to_string())
            .with_hint("restore_command passes the name of the file as %f")
    })?;
    let spool = match name {
        WalName::Segment(_) if options.prefetch > 0 => {
            let spool = options.spool.as_deref();
            spool.map(|path| Spool::new(path, options.system_identifier, &options.origin))
        }
        _ => None,
    };
    if spool.is_some() && fetch_spooled(&name.to_string(), destination, options)? {
        return Ok(true);
    }
    let content = match (get(repositories, name, options)?, name) {
        (Some(content), _) => content,
        (None, WalName::Segment(segment)) if options.slices => {
            return Ok(begun(repositories, segment, destination, options)?
                || hole::settle(repositories, segment, destination, options)?);
        }
        (None, _) => return Ok(false),
    };
    deliver(&content, destination)?;
    if let (Some(spool), WalName::Segment(segment)) = (&spool, name) {
        // Delivered already: the memory is better used for those that follow.
        let size = content.len() as u64;
        drop(content);
        spool.fill(repositories, segment, size, options.prefetch);
    }
    Ok(true)
}

/// Delivers what a receiver shipped of a segment that is not whole yet, as the server has it on its
/// own disk: with zeros behind the end, where recovery stops.
fn begun(
    repositories: &[Repository],
    name: SegmentName,
    destination: &Path,
    options: &FetchOptions,
) -> Result<bool> {
    let longest = longest(repositories, name, options)?;
    // It may have become whole since it was asked for, and its slices removed.
    if let Some(whole) = get(repositories, WalName::Segment(name), options)? {
        return deliver(&whole, destination).map(|()| true);
    }
    let Some(mut content) = longest else { return Ok(false) };
    let header = SegmentHeader::parse(&content).map_err(|error| {
        PostgresError::new(
            PostgresErrorKind::Damaged,
            format!("the slices of the WAL segment {name} cannot be used: {error}"),
        )
    })?;
    let size = header.segment_size.bytes() as usize;
    if let Some(more) = before_it_began(repositories, name, &header, &content, options)? {
        content = more;
    }
    tracing::info!(segment = %name, bytes = content.len(), "the segment is not whole yet: it is delivered as far as it came");
    if content.len() < size {
        content.resize(size, 0);
    }
    check_segment(name, &content, Some(options.system_identifier))?;
    deliver(&content, destination).map(|()| true)
}

/// What a receiver shipped of a segment, from the repository that has most of it.
pub(super) fn longest(
    repositories: &[Repository],
    name: SegmentName,
    options: &FetchOptions,
) -> Result<Option<Vec<u8>>> {
    let mut longest: Option<Vec<u8>> = None;
    for repository in repositories {
        let archive = repository.archive(options.system_identifier);
        let content = archive.assemble(&name.to_string())?;
        if content.as_ref().map(Vec::len) > longest.as_ref().map(Vec::len) {
            longest = content;
        }
    }
    Ok(longest)
}

/// A timeline begins with a copy of what the one before had of its first segment. Where less of the
/// copy came than there is of the original, recovery would end before the place of the switch: then
/// the answer is the original, up to there.
fn before_it_began(
    repositories: &[Repository],
    name: SegmentName,
    header: &SegmentHeader,
    content: &[u8],
    options: &FetchOptions,
) -> Result<Option<Vec<u8>>> {
    let size = header.segment_size;
    let (Some(start), Some(number)) = (name.start(size), name.number(size)) else {
        return Ok(None);
    };
    if name.timeline() == 1 {
        return Ok(None);
    }
    let history = get(repositories, WalName::History(name.timeline()), options)?;
    let history = history.and_then(|text| History::parse(name.timeline(), &text).ok());
    let Some(switch) = history.as_ref().and_then(|history| history.ancestors().last()) else {
        return Ok(None);
    };
    let began = switch.end.since(start) as usize;
    if switch.end.last_segment(size) != number || began <= content.len() {
        return Ok(None);
    }
    let Some(parent) = SegmentName::new(switch.timeline, number, size) else { return Ok(None) };
    let original = match get(repositories, WalName::Segment(parent), options)? {
        Some(whole) => Some(whole),
        None => longest(repositories, parent, options)?,
    };
    Ok(original.and_then(|mut original| {
        original.truncate(began);
        (original.len() > content.len() && original.starts_with(content)).then_some(original)
    }))
}

/// Fills the spool with the segments that follow `name`, for a caller that does so beside recovery
/// instead of within [`fetch`]. Answers how many are new there.
///
/// # Errors
/// Only what the caller did wrong: that nothing could be fetched is no error.
pub fn prefetch(repositories: &[Repository], name: &str, options: &FetchOptions) -> Result<usize> {
    let name: SegmentName =
        name.parse().map_err(|error: super::NameError| PostgresError::usage(error.to_string()))?;
    let Some(path) = options.spool.as_deref() else {
        return Err(PostgresError::usage("there is no spool to prefetch into"));
    };
    let spool = Spool::new(path, options.system_identifier, &options.origin);
    // The size is not known here; the first segment fetched tells it.
    Ok(spool.fill(repositories, name, 0, options.prefetch))
}

/// The file, asked for again within the budget for as long as nobody can say whether it is there.
pub(super) fn get(
    repositories: &[Repository],
    name: WalName,
    options: &FetchOptions,
) -> Result<Option<Vec<u8>>> {
    let Some(environment) = repositories.first().map(Repository::environment) else {
        return Err(PostgresError::usage("there is no repository to fetch from"));
    };
    let started = Instant::now();
    let mut slept = Duration::ZERO;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match ask(repositories, name, options.system_identifier) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let spent = started.elapsed().max(slept);
        if !may_pass(&error) || spent + pause > options.retry_for {
            return Err(error);
        }
        tracing::warn!(file = %name, %error, "could not be fetched, trying again");
        environment.clock.sleep(pause);
        slept += pause;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Asks each repository in turn. One that fails does not keep another from answering, but then only
/// the file itself is an answer: that the others do not have it is not.
fn ask(
    repositories: &[Repository],
    name: WalName,
    system_identifier: u64,
) -> Result<Option<Vec<u8>>> {
    let mut failure: Option<PostgresError> = None;
    for repository in repositories {
        match ask_one(repository, name, system_identifier) {
            Ok(Some(content)) => return Ok(Some(content)),
            Ok(None) => {}
            Err(error) => {
                let url = repository.store().url();
                tracing::warn!(repository = url, file = %name, %error, "could not be fetched");
                // What may pass is the better reason to give: it is asked again.
                if failure.as_ref().is_none_or(|earlier| !may_pass(earlier)) {
                    failure = Some(error);
                }
            }
        }
    }
    failure.map_or(Ok(None), Err)
}

/// The file from one repository, checked to be what its name says.
pub(super) fn ask_one(
    repository: &Repository,
    name: WalName,
    system_identifier: u64,
) -> Result<Option<Vec<u8>>> {
    let Some(content) = repository.archive(system_identifier).fetch(&name.to_string())? else {
        return Ok(None);
    };
    if let Some(segment) = name.content() {
        check_segment(segment, &content, Some(system_identifier))?;
    } else if let WalName::History(timeline) = name {
        History::parse(timeline, &content).map_err(|error| {
            PostgresError::new(PostgresErrorKind::Damaged, error.to_string()).with_source(error)
        })?;
    }
    Ok(Some(content))
}

/// Whether asking again may help: it does not against damage, a wrong key or a newer format.
fn may_pass(error: &PostgresError) -> bool {
    match error.repo_kind() {
        Some(kind) => matches!(
            kind,
            RepoErrorKind::Store | RepoErrorKind::Io | RepoErrorKind::Busy | RepoErrorKind::Aborted
        ),
        None => error.is_transient(),
    }
}
