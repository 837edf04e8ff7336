//! Restoring: backing up backwards.
//!
//! The tree is read once, in order. Directories are made at once; small things (inline files, links,
//! devices) go to workers in batches; what lies in chunks is noted. Then all extents (of a large
//! database as many as memory is given to, `window`) are sorted by pack and offset, neighbours are
//! joined into ranges of up to 8 MiB, and workers fetch ranges, open each chunk once and write it to
//! every place that wants it. Whoever writes a file's last extent sets its metadata. Hard links, and the metadata of directories, come last, then one `syncfs`.
//!
//! Nothing trusts what is already below the target: paths are opened without following links.
//!
//! A damaged object costs what needs it. Whoever says `keep_going` gets all the rest and a list of
//! what is missing; a file that lacks something is never left under its own name. Nobody who
//! restores a database says it. Before anything is given up, other repositories that hold the same
//! moment are asked for the ranges of files that are missing (`rescue`).

mod compare;
mod fetch;
mod finish;
mod place;
mod rescue;
mod small;
mod window;

use std::collections::{HashMap, HashSet, hash_map};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use crate::entry::{Body, Entry, EntryKind, FileContent, LeafRef, Metadata};
use crate::index::Location;
use crate::repository::Repository;
use crate::session::workers;
use crate::{
    Fallback, Lacking, Problem, Progress, RepoError, RepoErrorKind, Result, Snapshot, SourceKind,
    Supplied, Tree,
};
use backstay_store::failpoint;
use fetch::{Fetcher, Origin};
use place::{Anchors, Opened, Owners, Place, Target, There};
use window::Window;

/// Where a chunk lies that is in no pack of the index. What is in the target may be right all the
/// same.
const NOWHERE: Location = Location { pack: u32::MAX, offset: u32::MAX, length: 0 };

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
    /// What cannot be restored, or not as it was, is listed in the report and costs nothing else.
    pub keep_going: bool,
    /// Where else to look for what this repository lacks.
    pub fallback: Option<Arc<Fallback>>,
    /// Fetch what lies in an archive of the store before anything is written; none: that is an
    /// error.
    pub thaw: Option<crate::ThawOptions>,
    /// About how many pieces of files are noted before they are fetched, at 64 bytes each; 0 for what
    /// takes 32 MiB.
    pub window: usize,
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
            keep_going: false,
            fallback: None,
            thaw: None,
            window: 0,
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
    /// Content of all files that are whole.
    pub bytes: u64,
    pub bytes_written: u64,
    /// Found right in what was there already.
    pub bytes_kept: u64,
    /// Read from the store.
    pub bytes_fetched: u64,
    /// Removed because the snapshot does not have it.
    pub removed: u64,
    pub problems: Vec<Problem>,
    /// Objects that could not be used, though others had what was in them.
    pub lacking: Vec<Lacking>,
    /// What other repositories gave instead.
    pub supplied: Vec<Supplied>,
}

/// A file that is being put together.
pub(super) struct Planned {
    pub(in crate::restore) place: Place,
    pub path: Vec<u8>,
    pub meta: Metadata,
    pub size: u64,
    /// Extents still to be written.
    pub left: AtomicU32,
    /// Why it cannot be completed.
    pub lost: OnceLock<String>,
    /// Whether this restore has created it, or written to it.
    pub begun: Mutex<bool>,
    /// Whether it has no holes.
    pub dense: bool,
    /// Whether the file is there already, with a length to keep or correct.
    pub exists: bool,
    /// Of a database file that is there already, where its cells begin and the first 16 bytes of
    /// their ids.
    pub cells: Vec<(u64, [u8; 16])>,
    /// What `place` takes the place of when it is whole.
    pub(in crate::restore) over: Option<Place>,
}

/// A range of a planned file and where its bytes are.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub location: Location,
    pub file: u32,
    pub extent: crate::Extent,
}

#[derive(Default)]
pub(super) struct Counters {
    pub bytes_written: AtomicU64,
    pub bytes_kept: AtomicU64,
    /// Files that are not whole, and what they should have held.
    pub files_lost: AtomicU64,
    pub bytes_lost: AtomicU64,
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
    let tree = repository.tree(snapshot)?.falling_over(options.fallback.clone());
    let origin = Origin::new(repository, index.clone(), 0);
    let count = workers(options.workers);
    let owners = options.owner.then(Owners::read);
    let fetcher = Fetcher {
        fallback: options.fallback.as_deref(),
        owners: owners.as_ref(),
        progress,
        delta: options.delta,
        keep_going: options.keep_going,
        // Only file trees are stored with their attributes, as far as those could be read.
        strip: snapshot.kind == SourceKind::Files && snapshot.problems.is_empty(),
        counters: Counters::default(),
        problems: Mutex::default(),
        aside: Mutex::default(),
        failed: Mutex::default(),
        sought: Mutex::default(),
        missing: Mutex::default(),
    };
    let mut report = RestoreReport::default();
    let mut files: Vec<Planned> = Vec::new();
    let mut window = Window::new(&fetcher, &origin, &options, count);
    let mut directories: Vec<(Place, Vec<u8>, Metadata)> = Vec::new();
    let mut anchors = Anchors::default();
    let mut whole = true;
    let mut hardlinks: Vec<(Place, Place, Vec<u8>)> = Vec::new();
    // Where a file is whose first name is not restored, by that name.
    let mut instead: HashMap<Vec<u8>, Place> = HashMap::new();
    let mut kept: HashSet<Vec<u8>> = HashSet::new();
    let mut made = DirectoryStack::default();
    let mut leaf: Vec<u8> = Vec::new();
    // A directory that could not be made: nothing below it is restored into somebody else's.
    let mut unmade: Option<Vec<u8>> = None;

    fetcher.with_workers(count, |small| {
        let mut batch = Vec::new();
        let mut entries = if options.keep_going { tree.iter_past_damage() } else { tree.iter() };
        while let Some(entry) = entries.next() {
            progress.check()?;
            // Which repository the entry, and so the ids in it, are from.
            let mut source = entries.source();
            let mut entry = match entry {
                Err(error) if fetcher.goes_on(&error) => {
                    whole = false;
                    fetcher.problem(b"", error.to_string());
                    continue;
                }
                entry => entry?,
            };
            if !wants(&options.paths, &entry.path) {
                continue;
            }
            let placement = options.place.as_ref().map_or(Placement::Default, |f| f(&entry));
            let place = match placement {
                Placement::Skip => continue,
                Placement::Default => target.place(&entry.path),
                Placement::At(path) => anchors.place(path),
            };
            if place.is_below_target() && options.prune {
                keep(&mut kept, &entry.path);
            }
            if unmade.as_ref().is_some_and(|unmade| is_below(&entry.path, unmade)) {
                continue;
            }
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
                match made.enter(&target, &entry) {
                    Err(error) if fetcher.goes_on(&error) => {
                        fetcher.problem(&entry.path, error.to_string());
                        continue;
                    }
                    entered => entered?,
                }
            }
            if let EntryKind::Hardlink { to } = &entry.kind {
                let to = to.clone();
                let first = match instead.get(&to) {
                    Some(place) => Some(place.clone()),
                    None => first_name(&tree, &options, &target, &anchors, &to)?,
                };
                if let Some(first) = first {
                    report.files += 1;
                    hardlinks.push((place, first, to));
                    continue;
                }
                // The name that holds the content is not wanted: this one takes its part.
                let holder = match holder(&tree, snapshot, &entry, &to) {
                    Err(error) if fetcher.goes_on(&error) => {
                        fetcher.problem(&entry.path, error.to_string());
                        continue;
                    }
                    holder => holder?,
                };
                source = holder.0;
                entry.kind = holder.1.kind;
                entry.meta = holder.1.meta;
                instead.insert(to, place.clone());
            }
            match entry.kind {
                EntryKind::Directory => {
                    match place.make_directory(options.delta).and_then(|()| anchors.add(&place)) {
                        Err(error) if fetcher.goes_on(&error) => {
                            let what = format!("nothing below it is restored: {error}");
                            fetcher.problem(&entry.path, what);
                            unmade = Some(entry.path);
                            continue;
                        }
                        made => made?,
                    }
                    report.directories += 1;
                    directories.push((place, entry.path, entry.meta));
                }
                EntryKind::File(ref content) if !matches!(content.body, Body::Inline(_)) => {
                    report.files += 1;
                    report.bytes += content.size;
                    progress.add_total(content.size, 1);
                    let lost = OnceLock::new();
                    let unread = || RepoError::damaged("its tree", "it was read elsewhere");
                    let leaves = match &content.body {
                        Body::Leaves(leaves) if window.is_small_for(leaves) => leaves.as_slice(),
                        _ => &[],
                    };
                    let (mut extents, mut damage) = if source > 0 || origin.gone.load(Relaxed) {
                        (Vec::new(), Some(unread()))
                    } else if !leaves.is_empty() {
                        (Vec::new(), None)
                    } else {
                        match tree.extents_past_damage(content) {
                            Err(error) if fetcher.may_do_without(&error) => {
                                (Vec::new(), Some(error))
                            }
                            extents => extents?,
                        }
                    };
                    let exists = match place.prepare_existing(options.delta) {
                        Err(error) if fetcher.goes_on(&error) => {
                            fetcher.fail(&entry.path, content.size, error.to_string());
                            continue;
                        }
                        exists => exists?,
                    };
                    let (place, over) = match exists {
                        There::Untouchable => (place.beside(), Some(place)),
                        _ => (place, None),
                    };
                    let exists = exists == There::File;
                    // Not knowing where its content is, one repository has nothing of a file, and
                    // another may have all of it.
                    let elsewhere = damage
                        .take_if(|error| options.fallback.is_some() && Fallback::helps_with(error));
                    if let Some(error) = elsewhere {
                        extents.clear();
                        let range = 0..content.size;
                        fetcher.miss_range(&origin, files.len() as u32, range, source, error);
                        files.push(Planned {
                            place,
                            path: entry.path,
                            meta: entry.meta,
                            size: content.size,
                            left: AtomicU32::new(1),
                            lost,
                            begun: Mutex::new(false),
                            dense: false,
                            exists,
                            cells: Vec::new(),
                            over,
                        });
                        continue;
                    }
                    if let Some(error) = damage {
                        if !fetcher.goes_on(&error) {
                            return Err(error);
                        }
                        lost.get_or_init(|| error.to_string());
                        if exists || over.is_some() {
                            // Where its holes are is not known: it is left alone.
                            extents.clear();
                        }
                    }
                    let number = files.len() as u32;
                    let lenient = options.keep_going || options.fallback.is_some();
                    window.add(number, &extents, lenient)?;
                    let parts = extents.len() as u32;
                    files.push(Planned {
                        place,
                        path: entry.path,
                        meta: entry.meta,
                        size: content.size,
                        // One more, until all of them are counted.
                        left: AtomicU32::new(parts + 1),
                        lost,
                        begun: Mutex::new(false),
                        dense: extents.iter().map(|e| u64::from(e.length)).sum::<u64>()
                            == content.size,
                        // Without them it is fetched.
                        cells: if options.delta && exists {
                            tree.cells(content).unwrap_or_default()
                        } else {
                            Vec::new()
                        },
                        exists,
                        over,
                    });
                    let planned = &files[files.len() - 1];
                    let parts = match leaves {
                        [] => parts > 0,
                        leaves => {
                            by_leaf(&fetcher, &tree, content.size, leaves, &files, &mut window)?
                        }
                    };
                    fetcher.counted(planned, parts)?;
                    if window.is_full() {
                        window.fetch(&files)?;
                        progress.set_phase("planning");
                    }
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
    window.fetch(&files)?;
    rescue::rescue(&fetcher, &files, count)?;

    for (place, first, to) in hardlinks {
        let failed = fetcher.failed.lock().unwrap_or_else(|e| e.into_inner()).contains(&to);
        // A name that this restore did not come by may stand for anything.
        let lost = failed || (!whole && !tree.get(&to).is_ok_and(|entry| entry.is_some()));
        let linked = if lost {
            Err(std::io::Error::other("that one could not be restored"))
        } else {
            first.link_to(&place, options.delta)
        };
        if let Err(error) = linked {
            let to = String::from_utf8_lossy(&to);
            let what = format!("could not link it to {to}: {error}");
            fetcher.fail(place.display(), 0, what);
        }
    }
    if options.prune && !whole {
        // What is lost would pass for what the snapshot does not have.
        fetcher
            .problem(b"", "nothing was removed, since the list of files could not be read whole");
    } else if options.prune {
        for path in fetcher.aside.lock().unwrap_or_else(|e| e.into_inner()).drain(..) {
            kept.insert(path);
        }
        report.removed = target.remove_all_but(&kept)?;
    }
    progress.set_phase("finishing");
    // Other file systems may be mounted below the target, and tablespaces lie where they lie.
    let mut devices: HashMap<u64, Opened> = HashMap::new();
    if options.sync {
        for (place, ..) in &directories {
            let device = place.device()?;
            if let hash_map::Entry::Vacant(vacant) = devices.entry(device) {
                vacant.insert(place.open()?);
            }
        }
    }
    for (place, path, meta) in directories.iter().rev() {
        fetcher.directory_metadata(place, path, meta)?;
    }
    if options.sync {
        target.sync()?;
        devices.values().try_for_each(Opened::sync)?;
    }
    failpoint::hit("restore-synced");
    report.problems = fetcher.problems.into_inner().unwrap_or_else(|e| e.into_inner());
    report.problems.sort_by(|a, b| a.path.cmp(&b.path));
    report.bytes_written = fetcher.counters.bytes_written.load(Relaxed);
    report.bytes_kept = fetcher.counters.bytes_kept.load(Relaxed);
    report.bytes_fetched = fetcher.counters.bytes_fetched.load(Relaxed);
    if let Some(fallback) = &options.fallback {
        report.lacking = fallback.lacking();
        report.supplied = fallback.given();
    }
    report.files -= fetcher.counters.files_lost.load(Relaxed);
    report.bytes -= fetcher.counters.bytes_lost.load(Relaxed);
    Ok(report)
}

/// Plans the file that was planned last leaf by leaf, and fetches on the way. Whether it has extents.
fn by_leaf(
    fetcher: &Fetcher<'_>,
    tree: &Tree,
    size: u64,
    leaves: &[LeafRef],
    files: &[Planned],
    window: &mut Window<'_>,
) -> Result<bool> {
    let Some((number, planned)) = files.iter().enumerate().next_back() else { return Ok(false) };
    let lenient = fetcher.keep_going || fetcher.fallback.is_some();
    let (mut end, mut any) = (0, false);
    for (at, leaf) in leaves.iter().enumerate() {
        fetcher.progress.check()?;
        let body = Body::Leaves(vec![*leaf]);
        let (extents, damage) = match tree.extents_past_damage(&FileContent { size, body }) {
            Err(error) if fetcher.may_do_without(&error) => (Vec::new(), Some(error)),
            extents => extents?,
        };
        if extents.first().is_some_and(|first| first.offset < end) {
            return Err(RepoError::damaged("its tree", "the leaves of a file overlap"));
        }
        end = extents.last().map_or(end, |last| last.offset + u64::from(last.length));
        if let Some(error) = damage {
            if fetcher.fallback.is_some() && Fallback::helps_with(&error) {
                let behind = leaves.get(at + 1).map_or(size, |next| next.offset);
                let range = leaf.offset.min(size)..behind.clamp(leaf.offset.min(size), size);
                planned.left.fetch_add(1, Relaxed);
                fetcher.miss_range(window.origin(), number as u32, range, 0, error);
                any = true;
            } else if fetcher.goes_on(&error) {
                planned.lost.get_or_init(|| error.to_string());
            } else {
                return Err(error);
            }
        }
        planned.left.fetch_add(extents.len() as u32, Relaxed);
        any |= !extents.is_empty();
        window.add(number as u32, &extents, lenient)?;
        if window.is_full() {
            window.fetch(files)?;
        }
    }
    Ok(any)
}

/// The entry whose content another name stands for.
fn holder(tree: &Tree, snapshot: &Snapshot, name: &Entry, to: &[u8]) -> Result<(usize, Entry)> {
    let holder = tree.get_from(to)?.filter(|(_, e)| !matches!(e.kind, EntryKind::Hardlink { .. }));
    holder.ok_or_else(|| {
        RepoError::damaged(
            &format!("the tree of snapshot {}", snapshot.short_id()),
            format!("{} is another name of nothing", name.display_path()),
        )
    })
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
    anchors: &Anchors,
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
        Some(Placement::At(path)) => Some(anchors.place(path)),
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
