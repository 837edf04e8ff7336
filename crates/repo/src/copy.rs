//! Copies of snapshots in another repository, made without the source.
//!
//! A copy is a backup whose source is a repository: entries come from its tree, content from its
//! chunks, each of which is opened and so checked. The content is cut anew: boundaries and ids follow
//! from the keys of a repository, and a copy that kept those of the other one would have nothing in
//! common with what is backed up there later. What a file's chunks tell to be unchanged since an
//! earlier snapshot that both repositories have is taken over unread; of database files that did change
//! the pages are compared with it, as in a backup.
//!
//! What was sent is listed in the index as the copy goes on, so that one that is interrupted is done
//! again without sending it twice.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use backstay_store::failpoint;

use crate::archive::{Archive, ArchivedFile};
use crate::chunks::Chunks;
use crate::entry::{Body, Entry, EntryKind, Extent, FileContent, compare_paths};
use crate::tree::{Tree, TreeIter, slice};
use crate::{
    Chunking, Compression, Content, ContentError, Order, Progress, Reader, RepoError,
    RepoErrorKind, Repository, Result, Session, SessionOptions, Snapshot,
};

/// Packs after which what has been sent is listed: 512 MiB.
const LISTED_EVERY: usize = 16;
/// Files of an archive that are copied at once.
const AT_ONCE: usize = 4;

/// How to copy.
#[derive(Debug, Clone, Default)]
pub struct CopyOptions {
    /// 0: one for each core.
    pub workers: usize,
    pub compression: Compression,
    pub progress: Arc<Progress>,
    /// What has been sent is listed each time that it is so many packs. 0: 512 MiB.
    pub list_every: usize,
}

/// What a snapshot is a copy of.
#[derive(Debug, Clone)]
pub struct Original {
    /// The id of the repository that it is in.
    pub repository: String,
    pub snapshot: Snapshot,
}

/// What came of a copy.
#[derive(Debug, Clone)]
pub enum Copied {
    New(Box<Snapshot>),
    /// The moment was there already: as a copy, or because one pass wrote it to both.
    There(Box<Snapshot>),
}

impl Original {
    /// Gives a copy what it has in common with its original.
    pub(crate) fn describe(&self, copy: &mut Snapshot) {
        let it = &self.snapshot;
        copy.time = it.time;
        copy.finished = it.finished;
        copy.host.clone_from(&it.host);
        copy.version.clone_from(&it.version);
        copy.type_ = it.type_;
        copy.detail.clone_from(&it.detail);
        copy.problems.clone_from(&it.problems);
        copy.group = Some(it.moment().to_owned());
        copy.origin =
            Some(crate::Origin { repository: self.repository.clone(), snapshot: it.id.clone() });
    }
}

/// Copies a snapshot of `from` to `to`. Everything that it needs is durable there when this returns.
///
/// # Errors
/// `Damaged` when an object of `from` cannot be used: a copy is whole or does not exist.
pub fn copy(
    from: &Repository,
    snapshot: &Snapshot,
    to: &Repository,
    options: &CopyOptions,
) -> Result<Copied> {
    if from.id() == to.id() {
        return Err(RepoError::new(
            RepoErrorKind::Usage,
            format!("{} and {} are one repository", from.store().url(), to.store().url()),
        )
        .with_hint("name two different ones"));
    }
    let there = to.snapshots()?;
    for one in &there {
        if to.holds(one, snapshot)? {
            return Ok(Copied::There(Box::new(one.clone())));
        }
    }
    let progress = &options.progress;
    progress.set_phase("copying");
    progress.add_total(snapshot.stats.bytes, snapshot.stats.files + snapshot.stats.directories);
    let original = Original { repository: from.id(), snapshot: snapshot.clone() };
    let workers = match options.workers {
        // Most of the time they wait for the network.
        0 if from.store().is_remote() => crate::session::workers(0) * 4,
        workers => workers,
    };
    let base = Base::find(from, snapshot, to, &there)?;
    let session = Session::begin(vec![(
        to.clone(),
        SessionOptions {
            // Of database files only those pages are stored that it does not have.
            parent: base.as_ref().map(|base| base.snapshot.clone()),
            workers,
            compression: options.compression,
            tags: snapshot.tags.clone(),
            progress: progress.clone(),
            copy_of: Some(Box::new(original)),
            ..SessionOptions::new(&snapshot.source, snapshot.kind, snapshot.type_)
        },
    )])?;
    let source = Arc::new(Source::new(from));
    let copied = copy_through(from, snapshot, base, options, session, &source);
    // What the session was told of it is only its text.
    copied.map_err(|error| source.failure().unwrap_or(error))
}

fn copy_through(
    from: &Repository,
    snapshot: &Snapshot,
    mut base: Option<Base>,
    options: &CopyOptions,
    session: Session,
    source: &Arc<Source>,
) -> Result<Copied> {
    let progress = &options.progress;
    let list_every = if options.list_every == 0 { LISTED_EVERY } else { options.list_every };
    let tree = from.tree(snapshot)?;
    let mut writer = session.tree(Order::Sorted);
    for entry in tree.iter() {
        progress.check()?;
        let entry = entry?;
        let EntryKind::File(content) = &entry.kind else {
            progress.add_done(0, 1);
            writer.entry(entry)?;
            continue;
        };
        let known = base.as_mut().and_then(|base| base.unchanged(&entry, &session));
        let known = known.filter(|known| match &known.kind {
            EntryKind::File(content) => session.can_reuse(0, content),
            _ => false,
        });
        let chunking = chunking(&tree, content)?;
        let stored =
            Stored { tree: tree.clone(), source: source.clone(), content: content.clone() };
        writer.file_unless_known(entry, || Box::new(stored), chunking, vec![known])?;
        if session.list_sent(list_every)? {
            failpoint::hit("copy-listed");
        }
    }
    let root = writer.finish()?;
    failpoint::hit("copy-read");
    session.commit(root, serde_json::Value::Null).map(|made| Copied::New(Box::new(made)))
}

fn is_same(one: &Snapshot, other: &Snapshot) -> bool {
    one.source == other.source && one.kind == other.kind && one.moment() == other.moment()
}

/// Files that were written page by page stay cut in cells.
fn chunking(tree: &Tree, content: &FileContent) -> Result<Chunking> {
    let Body::Leaves(leaves) = &content.body else { return Ok(Chunking::ContentDefined) };
    let first = leaves.first().map(|leaf| tree.leaf(&leaf.id)).transpose()?;
    Ok(if first.is_some_and(|leaf| !leaf.cells.is_empty()) {
        Chunking::Grid
    } else {
        Chunking::ContentDefined
    })
}

/// An earlier snapshot that both repositories have: where its file has the same chunks here, the copy
/// has its content there.
struct Base {
    here: Walk,
    there: Walk,
    /// The snapshot of the other repository.
    snapshot: Snapshot,
}

impl Base {
    fn find(
        from: &Repository,
        snapshot: &Snapshot,
        to: &Repository,
        there: &[Snapshot],
    ) -> Result<Option<Self>> {
        let here = from.snapshots()?;
        let mut trusted = Vec::new();
        for other in there {
            if to.may_build_on(other)? {
                trusted.push(other);
            }
        }
        let mut of_source = Vec::new();
        for one in &here {
            if one.source == snapshot.source
                && one.kind == snapshot.kind
                && (one.writer == snapshot.writer || from.may_build_on(one)?)
            {
                of_source.push(one);
            }
        }
        let pairs = of_source.into_iter().filter_map(|one| {
            trusted.iter().find(|other| is_same(one, other)).map(|other| (one, *other))
        });
        // The nearest in time has most in common.
        let apart = |one: &Snapshot| (one.time.duration_since(snapshot.time)).abs();
        let Some((one, other)) = pairs.min_by_key(|(one, _)| apart(one)) else { return Ok(None) };
        let (here, there) = (from.tree(one)?.iter(), to.tree(other)?.iter());
        Ok(Some(Self { here: Walk::new(here), there: Walk::new(there), snapshot: other.clone() }))
    }

    /// The file as the other repository has it, with the metadata that it has here.
    fn unchanged(&mut self, entry: &Entry, session: &Session) -> Option<Entry> {
        // Both must be passed by, whatever comes of it.
        let there = self.there.at(&entry.path);
        if let Some(Entry { kind: EntryKind::File(content), .. }) = &there {
            session.remember(0, content);
        }
        let here = self.here.at(&entry.path)?;
        let there = there.filter(|there| there.may_stand_for(here.size(), &here.meta))?;
        let same = here.kind == entry.kind && matches!(there.kind, EntryKind::File(_));
        same.then(|| Entry { path: entry.path.clone(), meta: entry.meta.clone(), kind: there.kind })
    }
}

/// The entries of a tree, asked for in order. One that cannot be read only saves no work.
struct Walk {
    entries: Option<TreeIter>,
    next: Option<Entry>,
}

impl Walk {
    fn new(entries: TreeIter) -> Self {
        let mut it = Self { entries: Some(entries), next: None };
        it.advance();
        it
    }

    fn advance(&mut self) {
        self.next = self.entries.as_mut().and_then(|entries| entries.next()?.ok());
        if self.next.is_none() {
            self.entries = None;
        }
    }

    fn at(&mut self, path: &[u8]) -> Option<Entry> {
        while let Some(next) = &self.next {
            match compare_paths(&next.path, path) {
                std::cmp::Ordering::Less => self.advance(),
                std::cmp::Ordering::Equal => return self.next.clone(),
                std::cmp::Ordering::Greater => return None,
            }
        }
        None
    }
}

/// The repository that is copied from, and why something of it could not be read.
struct Source {
    chunks: Chunks,
    failed: Mutex<Option<RepoError>>,
}

impl Source {
    fn new(repository: &Repository) -> Self {
        Self { chunks: Chunks::new(repository), failed: Mutex::default() }
    }

    /// Remembers why something could not be read.
    fn note(&self, error: RepoError) -> String {
        let text = error.to_string();
        self.failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
        text
    }

    fn failure(&self) -> Option<RepoError> {
        self.failed.lock().unwrap_or_else(|e| e.into_inner()).take()
    }
}

/// The content of a file in the repository that is copied from.
struct Stored {
    tree: Tree,
    source: Arc<Source>,
    content: FileContent,
}

impl Content for Stored {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        // A copy without it would pass for the original.
        let fatal = |error: RepoError| ContentError::Fatal(self.source.note(error));
        let extents = self.tree.extents(&self.content).map_err(fatal)?;
        Ok(Box::new(Opened { extents, source: self.source, content: self.content }))
    }
}

struct Opened {
    extents: Vec<Extent>,
    source: Arc<Source>,
    content: FileContent,
}

impl Opened {
    fn fill(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if let Body::Inline(bytes) = &self.content.body {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            for (to, byte) in buffer.iter_mut().zip(bytes.get(from..).unwrap_or_default()) {
                *to = *byte;
            }
            return Ok(());
        }
        let end = offset + buffer.len() as u64;
        // What no extent covers is a hole.
        buffer.fill(0);
        let first = self.extents.partition_point(|e| e.offset + u64::from(e.length) <= offset);
        for extent in self.extents.get(first..).unwrap_or_default() {
            if extent.offset >= end {
                break;
            }
            let chunk = self.source.chunks.get(&extent.chunk)?;
            let bytes = slice("the snapshot that is copied", &chunk, extent)?;
            let from = extent.offset.max(offset);
            let to = (extent.offset + bytes.len() as u64).min(end);
            let part = bytes.get((from - extent.offset) as usize..(to - extent.offset) as usize);
            let into = buffer.get_mut((from - offset) as usize..(to - offset) as usize);
            if let (Some(part), Some(into)) = (part, into) {
                into.copy_from_slice(part);
            }
        }
        Ok(())
    }
}

impl Reader for Opened {
    fn size(&self) -> u64 {
        self.content.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.content.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let Some(buffer) = buffer.get_mut(..length) else { return Ok(0) };
        self.fill(offset, buffer)
            .map_err(|error| io::Error::other(Unusable(self.source.note(error))))?;
        Ok(length)
    }

    fn data_ranges(&self) -> Vec<Range<u64>> {
        let dense = matches!(self.content.body, Body::Inline(_))
            || self.extents.iter().map(|e| u64::from(e.length)).sum::<u64>() == self.content.size;
        if dense {
            return std::iter::once(0..u64::MAX).collect();
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for extent in &self.extents {
            let end = extent.offset + u64::from(extent.length);
            match ranges.last_mut() {
                Some(last) if last.end == extent.offset => last.end = end,
                _ => ranges.push(extent.offset..end),
            }
        }
        ranges
    }

    fn finish(&self, _entry: &mut Entry, bytes_read: u64) -> Result<(), ContentError> {
        if bytes_read == self.content.size {
            return Ok(());
        }
        Err(ContentError::Fatal(format!(
            "{bytes_read} bytes of it were read, and it has {}",
            self.content.size
        )))
    }
}

/// An error of the repository on its way through a reader.
#[derive(Debug)]
pub(crate) struct Unusable(String);

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// What came of copying an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct ArchiveCopied {
    /// Files that were not there.
    pub files: u64,
    /// What they take there. Bytes.
    pub bytes: u64,
    /// Files that were there already.
    pub there: u64,
}

/// Copies what the archive of a cluster has in `from` and not in `to`, oldest first. Each file is
/// opened, and so checked, on its way. What is there under the same name is compared, once.
///
/// # Errors
/// `Conflict`, which names the files, where one is there with other content; nothing is overwritten.
/// `Damaged`, where one cannot be read. Either costs the other files nothing.
pub fn copy_archive(
    from: &Repository,
    to: &Repository,
    system_id: u64,
    options: &CopyOptions,
) -> Result<ArchiveCopied> {
    let source = from.archive(system_id);
    let target = to.archive(system_id).with_compression(options.compression);
    let there: HashSet<String> = target.list(None)?.into_iter().map(|file| file.name).collect();
    let compared = Compared::read(from, to, system_id);
    let files = source.list(None)?;
    let known = files.iter().filter(|file| there.contains(&file.name)).count();
    let wanted: Vec<_> = files
        .into_iter()
        .filter(|file| !(there.contains(&file.name) && compared.names.contains(&file.name)))
        .collect();
    let progress = &options.progress;
    progress.set_phase("copying the archive");
    progress.add_total(wanted.iter().map(|file| file.stored).sum(), wanted.len() as u64);
    let next = AtomicUsize::new(0);
    let (files, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let (damaged, conflicts, same) = (Mutex::new(None), Mutex::default(), Mutex::default());
    let work = || -> Result<()> {
        while let Some(file) = wanted.get(next.fetch_add(1, Relaxed)) {
            progress.check()?;
            let copied = match copy_archived(&source, &target, file, there.contains(&file.name)) {
                // One that cannot be read costs the others nothing.
                Err(error) if error.is_about_an_object() => {
                    damaged.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                    continue;
                }
                Err(error) if error.kind() == RepoErrorKind::Conflict => {
                    note(&conflicts, &file.name);
                    continue;
                }
                copied => copied?,
            };
            match copied {
                None => continue,
                Some(crate::Pushed::New { stored }) => {
                    files.fetch_add(1, Relaxed);
                    bytes.fetch_add(stored, Relaxed);
                    progress.add_stored(stored);
                }
                Some(crate::Pushed::Same) => {}
            }
            note(&same, &file.name);
            progress.add_done(file.stored, 1);
        }
        Ok(())
    };
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE.min(wanted.len())).map(|_| scope.spawn(work)).collect();
        let panicked = || RepoError::new(RepoErrorKind::Io, "a thread that copied panicked");
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err(panicked())))
    });
    compared.keep(same.into_inner().unwrap_or_else(|e| e.into_inner()));
    done?;
    let mut conflicts = conflicts.into_inner().unwrap_or_else(|e| e.into_inner());
    if !conflicts.is_empty() {
        conflicts.sort_unstable();
        return Err(conflict(to, &conflicts));
    }
    if let Some(error) = damaged.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(error);
    }
    Ok(ArchiveCopied { files: files.into_inner(), bytes: bytes.into_inner(), there: known as u64 })
}

fn note(names: &Mutex<Vec<String>>, name: &str) {
    names.lock().unwrap_or_else(|e| e.into_inner()).push(name.to_owned());
}

/// Copies one file of an archive, or compares it with what is there. `None`: it was removed since it
/// was listed, and so is no more missing there than here.
fn copy_archived(
    source: &Archive,
    target: &Archive,
    file: &ArchivedFile,
    there: bool,
) -> Result<Option<crate::Pushed>> {
    let Some(content) = source.fetch(&file.name)? else { return Ok(None) };
    if there
        && let Some(stored) = target.stored_hash(&file.name)?
        && stored == target.hash(&content)
    {
        return Ok(Some(crate::Pushed::Same));
    }
    target.push(&file.name, &content).map(Some)
}

fn conflict(to: &Repository, names: &[String]) -> RepoError {
    let first = names.first().map_or("", String::as_str);
    let others = match names.len().saturating_sub(1) {
        0 => String::new(),
        1 => " and another file".to_owned(),
        others => format!(" and {others} other files"),
    };
    RepoError::new(
        RepoErrorKind::Conflict,
        format!("{} holds another {first}{others}: the same name, other content", to.store().url()),
    )
    .with_hint(
        "the two archives are of different histories of the cluster: see which one was recovered \
         from, with `backstay wal status`; nothing was overwritten",
    )
}

/// Which files of two archives were found to be the same, so that each is read for it once. It is
/// kept in the cache; without it they are compared again.
struct Compared {
    path: Option<std::path::PathBuf>,
    names: HashSet<String>,
}

impl Compared {
    fn read(from: &Repository, to: &Repository, system_id: u64) -> Self {
        let path =
            to.cache().map(|folder| folder.join(format!("compared-{}-{system_id}", from.id())));
        let text = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let names = text.unwrap_or_default().lines().map(str::to_owned).collect();
        Self { path, names }
    }

    fn keep(mut self, more: Vec<String>) {
        if more.is_empty() {
            return;
        }
        self.names.extend(more);
        let mut names: Vec<String> = self.names.into_iter().collect();
        names.sort_unstable();
        if let Some(path) = self.path {
            crate::index::keep(&path, (names.join("\n") + "\n").as_bytes());
        }
    }
}
