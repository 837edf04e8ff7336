//! Restoring: backing up backwards.
//!
//! The tree is read once, in order. Directories are made at once; small things (inline files, links,
//! devices) go to workers in batches; what lies in chunks is noted. Then all extents are sorted by
//! pack and offset, neighbours are joined into ranges of up to 8 MiB, and workers fetch ranges, open
//! each chunk once and write it to every place that wants it. Whoever writes a file's last extent
//! sets its metadata. Hard links, and the metadata of directories, come last, then one `syncfs`.
//!
//! Nothing trusts what is already below the target: paths are opened without following links.

mod fetch;
mod place;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::entry::{Body, Entry, EntryKind, Metadata};
use crate::repository::Repository;
use crate::session::workers;
use crate::{Problem, Progress, RepoError, RepoErrorKind, Result, Snapshot, Tree};
use backstay_store::failpoint;
use fetch::Fetcher;
use place::{Owners, Place, Target};

/// Batches in which workers get small things.
const BATCH: usize = 128;

/// Where and what to restore.
#[derive(Clone)]
pub struct RestoreOptions {
    /// Absent or empty, unless `delta`.
    pub target: PathBuf,
    /// Empty: everything. A directory stands for all below it.
    pub paths: Vec<Vec<u8>>,
    /// The target may hold an earlier state: what is right already is kept.
    pub delta: bool,
    /// With `delta`: what the snapshot does not have is removed.
    pub prune: bool,
    /// 0: one for each core.
    pub workers: usize,
    /// Whether owners are set; by name where this machine has it, else by number.
    pub owner: bool,
    /// Says where an entry goes.
    #[allow(clippy::type_complexity)] // it is written once
    pub place: Option<Arc<dyn Fn(&Entry) -> Placement + Send + Sync>>,
    /// Whether everything is on the disk when this returns.
    pub sync: bool,
}

impl RestoreOptions {
    pub fn new(target: impl Into<PathBuf>) -> Self {
        Self {
            target: target.into(),
            paths: Vec::new(),
            delta: false,
            prune: false,
            workers: 0,
            owner: rustix::process::geteuid().is_root(),
            place: None,
            sync: true,
        }
    }
}

/// Where an entry goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Below the target, at its own path.
    Default,
    Skip,
    /// At this absolute path; its parent exists.
    At(PathBuf),
}

/// What a restore did. Sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RestoreReport {
    pub files: u64,
    pub directories: u64,
    /// Content of all files.
    pub bytes: u64,
    pub bytes_written: u64,
    /// Read from the store.
    pub bytes_fetched: u64,
    /// Removed because the snapshot does not have it.
    pub removed: u64,
    pub problems: Vec<Problem>,
}

/// A file that is being put together.
pub(super) struct Planned {
    pub(in crate::restore) place: Place,
    pub path: Vec<u8>,
    pub meta: Metadata,
    pub size: u64,
    /// Extents still to be written.
    pub left: AtomicU32,
    /// Whether it has no holes.
    pub dense: bool,
    /// Whether the file is there already, with a length to keep or correct.
    pub exists: bool,
}

/// A range of a planned file and where its bytes are.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub location: crate::index::Location,
    pub file: u32,
    pub extent: crate::Extent,
}

#[derive(Default)]
pub(super) struct Counters {
    pub bytes_written: AtomicU64,
    pub bytes_fetched: AtomicU64,
}

pub(crate) fn restore(
    repository: &Repository,
    snapshot: &Snapshot,
    options: RestoreOptions,
    progress: &Progress,
) -> Result<RestoreReport> {
    progress.set_phase("planning");
    check_prune(&options)?;
    let target = Target::open(&options.target, options.delta)?;
    // What this handle knows of the index may be older than the snapshot.
    let index = repository.reload_index()?;
    let tree = repository.tree(snapshot)?;
    let count = workers(options.workers);
    let owners = options.owner.then(Owners::read);
    let fetcher = Fetcher {
        repository,
        index: &index,
        owners: owners.as_ref(),
        progress,
        delta: options.delta,
        counters: Counters::default(),
    };
    let mut report = RestoreReport::default();
    let mut files: Vec<Planned> = Vec::new();
    let mut wanted: Vec<Wanted> = Vec::new();
    let mut directories: Vec<(Place, Metadata)> = Vec::new();
    let mut hardlinks: Vec<(Place, Place, Vec<u8>)> = Vec::new();
    // Where a file is whose first name is not restored, by that name.
    let mut instead: HashMap<Vec<u8>, Place> = HashMap::new();
    let mut kept: HashSet<Vec<u8>> = HashSet::new();
    let mut made = DirectoryStack::default();
    let mut leaf: Vec<u8> = Vec::new();

    fetcher.with_workers(count, |small| {
        let mut batch = Vec::new();
        for entry in tree.iter() {
            progress.check()?;
            let mut entry = entry?;
            if !wants(&options.paths, &entry.path) {
                continue;
            }
            let placement = options.place.as_ref().map_or(Placement::Default, |f| f(&entry));
            let place = match placement {
                Placement::Skip => continue,
                Placement::Default => target.place(&entry.path),
                Placement::At(path) => Place::absolute(path),
            };
            if place.is_below_target() {
                // Whoever made the tree may have made it so that a link leads out of the target. In
                // the order of paths, what is below an entry follows it directly.
                if !leaf.is_empty() && is_below(&entry.path, &leaf) {
                    return Err(below_no_directory(&entry, &leaf));
                }
                leaf.clear();
                if !entry.is_directory() {
                    leaf.extend_from_slice(&entry.path);
                }
                made.enter(&target, &entry)?;
                if options.prune {
                    keep(&mut kept, &entry.path);
                }
            }
            if let EntryKind::Hardlink { to } = &entry.kind {
                let to = to.clone();
                let first = match instead.get(&to) {
                    Some(place) => Some(place.clone()),
                    None => first_name(&tree, &options, &target, &to)?,
                };
                if let Some(first) = first {
                    report.files += 1;
                    hardlinks.push((place, first, to));
                    continue;
                }
                // The name that holds the content is not wanted: this one takes its part.
                let holder =
                    tree.get(&to)?.filter(|e| !matches!(e.kind, EntryKind::Hardlink { .. }));
                let Some(holder) = holder else {
                    return Err(RepoError::damaged(
                        &format!("the tree of snapshot {}", snapshot.short_id()),
                        format!("{} is another name of nothing", entry.display_path()),
                    ));
                };
                entry.kind = holder.kind;
                entry.meta = holder.meta;
                instead.insert(to, place.clone());
            }
            match entry.kind {
                EntryKind::Directory => {
                    place.make_directory(options.delta)?;
                    report.directories += 1;
                    directories.push((place, entry.meta));
                }
                EntryKind::File(ref content) if !matches!(content.body, Body::Inline(_)) => {
                    report.files += 1;
                    report.bytes += content.size;
                    progress.add_total(content.size, 1);
                    let extents = tree.extents(content)?;
                    let exists = options.delta && place.prepare_existing()?;
                    let number = files.len() as u32;
                    for extent in &extents {
                        let location = index.find(&extent.chunk).ok_or_else(|| {
                            crate::repository::missing_chunk(
                                crate::Kind::Data,
                                &extent.chunk,
                                &index,
                            )
                        })?;
                        wanted.push(Wanted { location, file: number, extent: *extent });
                    }
                    files.push(Planned {
                        place,
                        path: entry.path,
                        meta: entry.meta,
                        size: content.size,
                        left: AtomicU32::new(extents.len() as u32),
                        dense: extents.iter().map(|e| u64::from(e.length)).sum::<u64>()
                            == content.size,
                        exists,
                    });
                }
                _ => {
                    report.files += 1;
                    report.bytes += entry.size();
                    progress.add_total(entry.size(), 1);
                    batch.push((place, entry));
                    if batch.len() == BATCH {
                        small(std::mem::take(&mut batch))?;
                    }
                }
            }
        }
        small(batch)
    })?;
    failpoint::hit("restore-planned");
    progress.set_phase("restoring");

    // What has no extent at all: empty files and files that are one hole.
    for file in files.iter().filter(|file| file.left.load(Relaxed) == 0) {
        fetcher.finish(file, None)?;
    }
    if options.delta {
        wanted = fetcher.without_what_is_right(&files, wanted, count)?;
    }
    wanted.sort_unstable_by_key(|w| (w.location, w.file, w.extent.offset));
    fetcher.fetch_all(&files, &wanted, count)?;

    for (place, first, to) in hardlinks {
        if let Err(error) = first.link_to(&place, options.delta) {
            report.problems.push(Problem {
                path: String::from_utf8_lossy(place.display()).into_owned(),
                what: format!("could not link it to {}: {error}", String::from_utf8_lossy(&to)),
            });
        }
    }
    if options.prune {
        report.removed = target.remove_all_but(&kept)?;
    }
    progress.set_phase("finishing");
    for (place, meta) in directories.iter().rev() {
        fetcher.directory_metadata(place, meta)?;
    }
    if options.sync {
        target.sync()?;
        let mut elsewhere: Vec<&Path> =
            directories.iter().filter_map(|(place, _)| place.absolute_path()).collect();
        elsewhere.sort_unstable();
        let mut last: Option<&Path> = None;
        for path in elsewhere {
            if last.is_none_or(|last| !path.starts_with(last)) {
                place::sync_file_system(path)?;
                last = Some(path);
            }
        }
    }
    failpoint::hit("restore-synced");
    report.bytes_written = fetcher.counters.bytes_written.load(Relaxed);
    report.bytes_fetched = fetcher.counters.bytes_fetched.load(Relaxed);
    Ok(report)
}

/// Whether `path` lies somewhere below `above`.
fn is_below(path: &[u8], above: &[u8]) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn below_no_directory(entry: &Entry, above: &[u8]) -> RepoError {
    let above = String::from_utf8_lossy(above);
    RepoError::new(
        RepoErrorKind::Unsupported,
        format!("{} lies below {above}, which is no directory", entry.display_path()),
    )
    .with_hint("no folder can hold both; restore the one or the other by its path")
}

/// Where the first name of a file goes; `None` when it is not restored.
fn first_name(
    tree: &Tree,
    options: &RestoreOptions,
    target: &Target,
    to: &[u8],
) -> Result<Option<Place>> {
    if options.paths.is_empty() && options.place.is_none() {
        return Ok(Some(target.place(to)));
    }
    if !wants(&options.paths, to) {
        return Ok(None);
    }
    let Some(decide) = &options.place else { return Ok(Some(target.place(to))) };
    Ok(match tree.get(to)?.map(|entry| decide(&entry)) {
        None | Some(Placement::Skip) => None,
        Some(Placement::Default) => Some(target.place(to)),
        Some(Placement::At(path)) => Some(Place::absolute(path)),
    })
}

/// Pruning removes what nobody named, so it is refused where that is more than anybody can mean.
fn check_prune(options: &RestoreOptions) -> Result<()> {
    if !options.prune {
        return Ok(());
    }
    let refuse =
        |what: &str, hint: &str| Err(RepoError::new(RepoErrorKind::Usage, what).with_hint(hint));
    if !options.paths.is_empty() {
        return refuse(
            "--prune with single paths would remove everything else",
            "restore the paths without --prune, or the whole snapshot with it",
        );
    }
    let root = options.target.canonicalize().is_ok_and(|target| target.parent().is_none());
    if root {
        return refuse(
            "--prune to / would remove the whole system",
            "restore to another folder, or without --prune",
        );
    }
    Ok(())
}

/// Keeps a path and all that lead to it.
fn keep(kept: &mut HashSet<Vec<u8>>, mut path: &[u8]) {
    while !path.is_empty() && kept.insert(path.to_vec()) {
        path = path.iter().rposition(|b| *b == b'/').map_or(&[], |at| &path[..at]);
    }
}

/// Whether a path is one of those asked for, below one, or above one.
fn wants(paths: &[Vec<u8>], path: &[u8]) -> bool {
    let below = |path: &[u8], above: &[u8]| {
        path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    };
    paths.is_empty() || paths.iter().any(|wanted| below(path, wanted) || below(wanted, path))
}

/// The directories that lead to the current entry, all made by this restore.
#[derive(Default)]
struct DirectoryStack {
    made: Vec<Vec<u8>>,
}

impl DirectoryStack {
    /// Makes sure that every parent of `entry` is a directory and not a link to somewhere else.
    fn enter(&mut self, target: &Target, entry: &Entry) -> Result<()> {
        let parent =
            entry.path.iter().rposition(|b| *b == b'/').map_or(&[][..], |at| &entry.path[..at]);
        while let Some(last) = self.made.last()
            && !(parent == last.as_slice()
                || parent
                    .strip_prefix(last.as_slice())
                    .is_some_and(|rest| rest.first() == Some(&b'/')))
        {
            self.made.pop();
        }
        let known = self.made.last().map_or(0, Vec::len);
        for at in known..parent.len() {
            if at > known && parent[at] == b'/' {
                self.make(target, &parent[..at])?;
            }
        }
        if parent.len() > known {
            self.make(target, parent)?;
        }
        if entry.is_directory() {
            self.made.push(entry.path.clone());
        }
        Ok(())
    }

    fn make(&mut self, target: &Target, path: &[u8]) -> Result<()> {
        target.place(path).make_directory(true)?;
        self.made.push(path.to_vec());
        Ok(())
    }
}

pub(super) fn not_empty(path: &Path) -> RepoError {
    RepoError::new(RepoErrorKind::Usage, format!("{} is not empty", path.display())).with_hint(
        "restore to a folder that is absent or empty, or say `--delta` to bring the one that is \
         there to the state of the snapshot",
    )
}
