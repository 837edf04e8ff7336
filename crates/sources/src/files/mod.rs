//! File trees as a source.
//!
//! A backup is one merge of sorted streams: the walk over what is there ([`walk`]) and the tree of
//! the parent snapshot, of each repository that it goes to. A file that a parent knows with the same
//! size, times and inode is taken over there; what any of them does not know is handed to the workers
//! of the session, which open it once for all that want it. No stream is ever in memory as a whole.
//!
//! Paths are stored relative to `/`, with the directories that lead to them.

pub mod compare;
mod content;
pub mod exclude;
mod images;
mod listing;
mod merge;
pub mod metadata;
mod plan;
pub mod walk;

pub(crate) use content::read_at;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use backstay_repo::{
    Beneath, Body, Content, Entry, EntryKind, FileContent as StoredContent, Order, RepoError,
    Repository, Result, Session, Snapshot, SnapshotStats, SourceKind, TreeWriter,
};
use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;
use serde_json::json;

use crate::{BackupOptions, CheckItem, Source, Target};
use content::{Context, FileContent, FirstName};
use exclude::Exclude;
use merge::Parent;
use metadata::{FileType, Names, Stat, Xattrs, xattrs_at};
use walk::{Walk, WalkOptions, Walked};

/// File trees to protect.
#[derive(Debug, Clone, Default)]
pub struct FilesSource {
    pub name: String,
    /// Absolute, or relative to the current directory. Paths that lead through symbolic links are
    /// followed, and the links kept.
    pub paths: Vec<PathBuf>,
    /// See [`exclude`] for how patterns are read.
    pub exclude: Vec<String>,
    /// Do not go into other file systems mounted below the paths.
    pub one_file_system: bool,
    /// Of directories with a `CACHEDIR.TAG`, keep only the tag.
    pub skip_caches: bool,
}

impl Source for FilesSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Files
    }

    fn check(&self) -> Vec<CheckItem> {
        check(self)
    }

    fn backup_to(
        &self,
        targets: &[Target],
        options: &BackupOptions,
    ) -> Result<Vec<Result<Snapshot>>> {
        backup_to(targets, self, options)
    }
}

/// Whether the paths are there and can be read.
pub fn check(source: &FilesSource) -> Vec<CheckItem> {
    let mut items = Vec::new();
    items.push(match Exclude::new(&source.exclude) {
        Ok(_) => CheckItem::ok("exclude", format!("{} patterns", source.exclude.len())),
        Err(error) => CheckItem::failed("exclude", error.to_string())
            .with_hint(error.hint().unwrap_or_default()),
    });
    if source.paths.is_empty() {
        items.push(
            CheckItem::failed("paths", "the source names no paths")
                .with_hint("list what to protect, for example paths = [\"/etc\"]"),
        );
    }
    for path in &source.paths {
        let name = path.display().to_string();
        let read = std::fs::metadata(path).and_then(|about| {
            if about.is_dir() {
                std::fs::read_dir(path).map(|_| "a directory that can be read")
            } else if about.is_file() {
                std::fs::File::open(path).map(|_| "a file that can be read")
            } else {
                Ok("neither a file nor a directory")
            }
        });
        items.push(match read {
            Ok(what) => CheckItem::ok(name, what),
            Err(error) => {
                let hint = match error.kind() {
                    io::ErrorKind::NotFound => "correct the path, or create it",
                    _ => "run the backup as a user who may read it",
                };
                CheckItem::failed(name, format!("it cannot be read: {error}")).with_hint(hint)
            }
        });
    }
    items
}

/// Takes a snapshot of file trees in one repository.
pub fn backup(
    repo: &Repository,
    source: &FilesSource,
    options: &BackupOptions,
) -> Result<Snapshot> {
    source.backup(repo, options)
}

/// Takes a snapshot of file trees, in one pass for all of `targets`.
///
/// What cannot be read is listed in [`Snapshot::problems`]. `detail` is
/// `{"paths": […], "exclude": […], "changed_while_read": {"count", "paths"}, "sockets_skipped"}`.
///
/// # Errors
/// `Usage` for a wrong pattern or no paths, `Io` when none of the paths is there, `Aborted` when the
/// progress was told to stop, and whatever the repository answers.
pub fn backup_to(
    targets: &[Target],
    source: &FilesSource,
    options: &BackupOptions,
) -> Result<Vec<Result<Snapshot>>> {
    if source.paths.is_empty() {
        return Err(RepoError::new(
            backstay_repo::RepoErrorKind::Usage,
            format!("the source {} names no paths", source.name),
        )
        .with_hint("list what to protect, for example paths = [\"/etc\"]"));
    }
    let exclude = Exclude::new(&source.exclude)?;
    let mut separate = HashSet::new();
    loop {
        let pass = Pass::begin(targets, source, options, exclude.clone(), &separate)?;
        match pass.run()? {
            Done::Committed(snapshots) => return Ok(snapshots),
            // Names were written as links to one that was lost later. That is rare: do it again,
            // with each name of those files as a file of its own. What was stored is found again.
            Done::LostNames(files) => {
                tracing::info!(files = files.len(), "linked files were lost, starting over");
                let before = separate.len();
                separate.extend(files);
                if separate.len() == before {
                    return Err(RepoError::new(
                        backstay_repo::RepoErrorKind::Io,
                        "files with several names keep vanishing while they are read",
                    )
                    .with_hint("run the backup again when the source is at rest, or take it from a file system snapshot"));
                }
            }
        }
    }
}

/// The path as people know it.
fn display(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// Device and inode.
type FileId = (u64, u64);

enum Done {
    /// What came of it in each repository.
    Committed(Vec<Result<Snapshot>>),
    LostNames(HashSet<FileId>),
}

/// A file with several names that has been met.
struct Linked {
    path: Vec<u8>,
    first: Arc<FirstName>,
    /// Names that have not been met yet.
    left: u64,
    referred: bool,
}

/// One go over the source.
struct Pass<'a> {
    source: &'a FilesSource,
    options: &'a BackupOptions,
    session: Session,
    walk: Walk,
    /// Of each lane of the session.
    parents: Vec<Parent>,
    context: Arc<Context>,
    /// Files whose names are stored each by itself.
    separate: &'a HashSet<FileId>,
    links: HashMap<FileId, Linked>,
    /// Of files all of whose names have been met, those that are still being read.
    settled: Vec<(FileId, Arc<FirstName>)>,
    above: Option<(Vec<u8>, OwnedFd)>,
    sockets: u64,
    /// What the parent had: the best guess at how much there is.
    expected: Option<SnapshotStats>,
}

impl<'a> Pass<'a> {
    fn begin(
        targets: &[Target],
        source: &'a FilesSource,
        options: &'a BackupOptions,
        exclude: Exclude,
        separate: &'a HashSet<FileId>,
    ) -> Result<Self> {
        let root = Arc::new(Beneath::root().map_err(|error| RepoError::io("open", "/", error))?);
        let walk_options = WalkOptions {
            exclude,
            one_file_system: source.one_file_system,
            skip_caches: source.skip_caches,
            threads: 0,
        };
        // Before the session: a source that is not there leaves nothing in the repository.
        let walk = Walk::below(root.clone(), &source.paths, walk_options)?;
        let sessions =
            targets.iter().map(|to| to.session(&source.name, SourceKind::Files, options));
        let session = Session::begin(sessions.collect())?;
        let mut parents = Vec::new();
        for lane in 0..session.lanes() {
            let parent = match session.lane(lane) {
                Some((repository, snapshot)) => Parent::new(repository, snapshot),
                None => Ok(Parent::nothing()),
            };
            parents.push(parent.unwrap_or_else(|error| {
                session.give_up(lane, error);
                Parent::nothing()
            }));
        }
        session.check()?;
        let expected = targets.iter().find_map(|to| to.parent.as_ref()).map(|parent| parent.stats);
        let context = Arc::new(Context { root, names: Names::load(), notes: Mutex::default() });
        Ok(Self {
            source,
            options,
            session,
            walk,
            parents,
            context,
            separate,
            links: HashMap::new(),
            settled: Vec::new(),
            above: None,
            sockets: 0,
            expected,
        })
    }

    fn run(mut self) -> Result<Done> {
        self.options.progress.set_phase("files");
        if let Some(stats) = self.expected {
            self.options.progress.add_total(stats.bytes, stats.files + stats.directories);
        }
        // The writer borrows the session while the rest of `self` goes on being used.
        let session = self.session;
        let mut writer = session.tree(Order::Sorted);
        let mut state = State {
            session: &session,
            parents: &mut self.parents,
            context: &self.context,
            separate: self.separate,
            links: &mut self.links,
            settled: &mut self.settled,
            above: &mut self.above,
        };
        for (count, walked) in self.walk.enumerate() {
            if count % 64 == 0 {
                self.options.progress.check()?;
            }
            match walked {
                Walked::Entry { path, stat, xattrs } => {
                    state.entry(&mut writer, path, stat, xattrs)?;
                }
                Walked::Problem { path, what } => session.problem(&display(&path), what),
                Walked::Skipped { path, kind } => {
                    self.sockets += 1;
                    let (path, kind) = (display(&path), kind.describe());
                    tracing::warn!("{path} was left out: {kind} has no content to keep");
                }
            }
        }
        let root = writer.finish()?;
        let lost: HashSet<FileId> = self
            .links
            .into_iter()
            .filter(|(_, linked)| linked.referred)
            .map(|(id, linked)| (id, linked.first))
            .chain(self.settled)
            .filter(|(_, first)| first.is_lost())
            .map(|(id, _)| id)
            .collect();
        if !lost.is_empty() {
            return Ok(Done::LostNames(lost));
        }
        let notes = std::mem::take(&mut *self.context.notes());
        for (path, what) in notes.problems {
            session.problem(&display(&path), what);
        }
        let mut detail = BTreeMap::from([
            ("paths", json!(self.source.paths)),
            ("exclude", json!(self.source.exclude)),
        ]);
        if notes.changed_count > 0 {
            detail.insert(
                "changed_while_read",
                json!({ "count": notes.changed_count, "paths": notes.changed }),
            );
        }
        if self.sockets > 0 {
            detail.insert("sockets_skipped", json!(self.sockets));
        }
        Ok(Done::Committed(session.commit_all(root, json!(detail))))
    }
}

/// What is needed to make an entry of what the walk found.
struct State<'p> {
    session: &'p Session,
    parents: &'p mut [Parent],
    context: &'p Arc<Context>,
    separate: &'p HashSet<FileId>,
    links: &'p mut HashMap<FileId, Linked>,
    settled: &'p mut Vec<(FileId, Arc<FirstName>)>,
    /// The directory that was asked for attributes last.
    above: &'p mut Option<(Vec<u8>, OwnedFd)>,
}

impl State<'_> {
    fn entry(
        &mut self,
        writer: &mut TreeWriter<'_>,
        path: Vec<u8>,
        stat: Stat,
        xattrs: Option<Xattrs>,
    ) -> Result<()> {
        let progress = self.session.progress();
        let kind = match stat.kind {
            FileType::File => return self.file(writer, path, stat),
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => match self.target(&path) {
                Ok(Some(target)) => EntryKind::Symlink { target },
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.session.problem(&display(&path), error.to_string());
                    return Ok(());
                }
            },
            FileType::Fifo => EntryKind::Fifo,
            FileType::CharDevice => EntryKind::CharDevice { rdev: stat.rdev },
            FileType::BlockDevice => EntryKind::BlockDevice { rdev: stat.rdev },
            FileType::Socket | FileType::Unknown => return Ok(()),
        };
        // Links, fifos and devices can have several names as well.
        if stat.kind != FileType::Directory
            && stat.links > 1
            && let Some(to) = self.known(&path, &stat, FirstName::stored)
        {
            let meta = stat.metadata(&self.context.names, Vec::new());
            return writer.entry(Entry { path, meta, kind: EntryKind::Hardlink { to } });
        }
        let before = self.parents.iter_mut().filter_map(|parent| parent.at(&path));
        let reused = before
            .filter(|before| merge::is_unchanged_inode(before, &stat, &kind))
            .map(|before| before.meta.xattrs.clone())
            .next();
        let xattrs = xattrs.or(reused).unwrap_or_else(|| self.xattrs(&path));
        let meta = stat.metadata(&self.context.names, xattrs);
        progress.add_done(0, 1);
        writer.entry(Entry { path, meta, kind })
    }

    fn file(&mut self, writer: &mut TreeWriter<'_>, path: Vec<u8>, stat: Stat) -> Result<()> {
        let mut known: Vec<Option<Entry>> = Vec::with_capacity(self.parents.len());
        for (lane, parent) in self.parents.iter_mut().enumerate() {
            let unchanged = parent.unchanged(&path, &stat);
            for passed in parent.passed() {
                self.session.remember(lane, &passed);
            }
            let unchanged = unchanged.filter(|before| {
                let EntryKind::File(content) = &before.kind else { return false };
                self.session.can_reuse(lane, content)
            });
            known.push(unchanged);
        }
        // A lane that has failed wants nothing.
        let alive = |lane: usize| self.session.is_alive(lane);
        let stored = known.iter().enumerate().all(|(n, known)| known.is_some() || !alive(n));
        let linked = stat.links > 1 && !self.separate.contains(&(stat.device, stat.inode));
        let mut first = None;
        if linked {
            let make = || if stored { FirstName::stored() } else { FirstName::default() };
            if let Some(to) = self.known(&path, &stat, make) {
                self.session.progress().add_done(0, 1);
                let meta = stat.metadata(&self.context.names, Vec::new());
                return writer.entry(Entry { path, meta, kind: EntryKind::Hardlink { to } });
            }
            first = self.first_name(&stat);
        }
        for before in known.iter_mut().flatten() {
            // The content and the attributes are those of before; names of owners are looked up
            // anew, since no time tells when those change.
            let mut meta = stat.metadata(&self.context.names, Vec::new());
            meta.xattrs = std::mem::take(&mut before.meta.xattrs);
            before.meta = meta;
        }
        let chunking = images::chunking(&path, &stat);
        let meta = stat.metadata(&self.context.names, Vec::new());
        // The size that is expected; what is read decides.
        let content = StoredContent { size: stat.size, body: Body::Extents(Vec::new()) };
        let (context, at) = (self.context.clone(), path.clone());
        let entry = Entry { path, meta, kind: EntryKind::File(content) };
        let open = || -> Box<dyn Content> { Box::new(FileContent::new(context, at, stat, first)) };
        writer.file_unless_known(entry, open, chunking, known)
    }

    /// The first name of a file that was met under another one. Otherwise this becomes the first.
    fn known(
        &mut self,
        path: &[u8],
        stat: &Stat,
        make: impl FnOnce() -> FirstName,
    ) -> Option<Vec<u8>> {
        let id = (stat.device, stat.inode);
        let Some(linked) = self.links.get_mut(&id) else {
            self.remember(path, stat, make);
            return None;
        };
        if linked.first.is_lost() && !linked.referred {
            self.remember(path, stat, make);
            return None;
        }
        linked.referred = true;
        linked.left = linked.left.saturating_sub(1);
        let to = linked.path.clone();
        // All names have been met: nothing needs to be remembered but how it ends.
        if linked.left == 0
            && let Some(linked) = self.links.remove(&id)
            && !linked.first.is_stored()
        {
            self.settled.push((id, linked.first));
        }
        Some(to)
    }

    fn remember(&mut self, path: &[u8], stat: &Stat, make: impl FnOnce() -> FirstName) {
        let linked = Linked {
            path: path.to_vec(),
            first: Arc::new(make()),
            left: stat.links.saturating_sub(1),
            referred: false,
        };
        self.links.insert((stat.device, stat.inode), linked);
    }

    fn first_name(&self, stat: &Stat) -> Option<Arc<FirstName>> {
        self.links.get(&(stat.device, stat.inode)).map(|linked| linked.first.clone())
    }

    /// The open directory in which something lies, and its name there: neither is the path too
    /// long, nor does a link that was put in the way lead astray.
    fn located<'n>(&mut self, path: &'n [u8]) -> io::Result<(BorrowedFd<'_>, &'n [u8])> {
        let cut = path.iter().rposition(|byte| *byte == b'/');
        let (above, name) = match cut {
            Some(at) => {
                (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default())
            }
            None => (&[][..], path),
        };
        let fd = match self.above.take() {
            Some((open, fd)) if open == above => fd,
            _ => self.context.root.open_below(above, OFlags::PATH | OFlags::DIRECTORY)?,
        };
        let (_, fd) = &*self.above.insert((above.to_vec(), fd));
        Ok((fd.as_fd(), name))
    }

    /// Where a link points to; none if it is a link no more.
    fn target(&mut self, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let target = self.located(path).and_then(|(above, name)| {
            Ok(rustix::fs::readlinkat(above, name, Vec::new())?.into_bytes())
        });
        match target {
            Ok(target) => Ok(Some(target)),
            Err(error) if has_vanished(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn xattrs(&mut self, path: &[u8]) -> Xattrs {
        let found = self.located(path).and_then(|(above, name)| {
            // No system call takes a directory and a name for this.
            let mut through = format!("/proc/thread-self/fd/{}/", above.as_raw_fd()).into_bytes();
            through.extend_from_slice(name);
            match xattrs_at(&CString::new(through)?) {
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() =>
                {
                    // It is there, so that it is /proc that is not.
                    xattrs_at(&CString::new([b"/", path].concat())?)
                }
                other => other,
            }
        });
        found.unwrap_or_else(|error| {
            if !has_vanished(&error) {
                let what = format!("its extended attributes could not be read: {error}");
                self.session.problem(&display(path), what);
            }
            Vec::new()
        })
    }
}

/// Something else is there now, or nothing.
fn has_vanished(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL)
    )
}
