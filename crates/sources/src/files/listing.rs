//! Reading one directory: names in order, `lstat` of each, and which of them to go into.
//!
//! A large directory is read in parts of [`PART`] names, each a task of its own, so that several
//! threads share it and few of its entries are in memory at once.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use backstay_repo::Beneath;
use rustix::fs::{self, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::exclude::Exclude;
use super::metadata::{FileType, Stat, Xattrs, xattrs_of};
use super::plan::PlanNode;

/// Names that one task looks at.
const PART: usize = 4096;
/// Directories that may be kept open for what is below them. Past that they are opened by path.
const OPEN: usize = 200;
/// What marks a directory as a cache (the Cache Directory Tagging Specification).
const CACHE_SIGNATURE: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";
const CACHE_TAG: &CStr = c"CACHEDIR.TAG";

/// What all tasks of a walk know.
#[derive(Debug)]
pub(super) struct Context {
    pub root: Arc<Beneath>,
    pub exclude: Exclude,
    pub one_file_system: bool,
    pub skip_caches: bool,
    /// Directories kept open.
    pub open: AtomicUsize,
}

/// A directory, or a part of one, to be read.
#[derive(Debug)]
pub(super) struct Task {
    /// Of the directory, relative to `/`.
    pub path: Arc<[u8]>,
    /// Sorts tasks as their results are wanted.
    pub key: Key,
    work: Work,
}

/// A path with 0 for `/`, which puts a directory directly before what is below it, and then whether
/// it is the directory itself (1) or a part of one that begins with this name (0).
pub(super) type Key = (Vec<u8>, u8);

#[derive(Debug)]
enum Work {
    Open {
        /// The open directory above, and the name in it. Without: by path.
        above: Option<(Arc<Directory>, CString)>,
        plan: Option<Arc<PlanNode>>,
        /// Of the directory above; none where the source begins.
        device: Option<u64>,
        /// All of it, or only what the plan names.
        whole: bool,
    },
    Part {
        directory: Arc<Directory>,
        plan: Option<Arc<PlanNode>>,
        names: Arc<Names>,
        from: usize,
        whole: bool,
    },
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory {
    context: Arc<Context>,
    fd: OwnedFd,
    device: u64,
    counted: bool,
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.counted {
            self.context.open.fetch_sub(1, Relaxed);
        }
    }
}

/// What reading a directory gave.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is there no more.
    Vanished,
    Unreadable(io::Error),
    Listed(Listing),
}

#[derive(Debug)]
pub(super) struct Listing {
    pub path: Arc<[u8]>,
    names: Arc<Names>,
    pub nodes: Vec<Node>,
    /// The next part of the same directory.
    pub next: Option<Arc<Task>>,
    /// The directory's own; empty in later parts.
    pub xattrs: Xattrs,
    /// What went wrong with the directory itself, though it could be read in part.
    pub problem: Option<String>,
}

#[derive(Debug)]
pub(super) struct Node {
    name: usize,
    pub what: Result<Stat, Errno>,
    /// Where the walk goes down.
    pub below: Option<Arc<Task>>,
}

impl Listing {
    /// The whole path of a node, relative to `/`.
    pub fn path_of(&self, node: &Node) -> Vec<u8> {
        below(&self.path, self.names.bytes(node.name))
    }
}

/// Names with a 0 after each, in order.
#[derive(Debug, Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    /// Where each begins, how long it is with its 0, and its inode (0 if unknown).
    index: Vec<(usize, usize, u64)>,
}

impl Names {
    fn add(&mut self, name: &CStr, inode: u64) {
        let name = name.to_bytes_with_nul();
        self.index.push((self.bytes.len(), name.len(), inode));
        self.bytes.extend_from_slice(name);
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        // The closing 0 sorts before everything, as the end of a name does.
        self.index.sort_unstable_by(|a, b| bytes[a.0..a.0 + a.1].cmp(&bytes[b.0..b.0 + b.1]));
    }

    fn get(&self, at: usize) -> &CStr {
        let name = self.index.get(at).and_then(|(from, length, _)| {
            self.bytes.get(*from..from + length).and_then(|n| CStr::from_bytes_with_nul(n).ok())
        });
        name.unwrap_or_default()
    }

    /// As [`get`](Self::get), without looking for the 0 that is known to be at the end.
    fn bytes(&self, at: usize) -> &[u8] {
        let name = self
            .index
            .get(at)
            .and_then(|(from, length, _)| self.bytes.get(*from..(from + length).saturating_sub(1)));
        name.unwrap_or_default()
    }

    fn contains(&self, name: &CStr) -> bool {
        (0..self.index.len()).any(|at| self.bytes(at) == name.to_bytes())
    }
}

impl Task {
    /// Where the walk begins.
    pub fn root(plan: Arc<PlanNode>) -> Arc<Self> {
        let whole = plan.whole;
        Arc::new(Self {
            path: Arc::from(&[][..]),
            key: (Vec::new(), 1),
            work: Work::Open { above: None, plan: Some(plan), device: None, whole },
        })
    }

    /// Reads. Everything below that is to be read in turn is in the listing.
    pub fn run(&self, context: &Arc<Context>) -> Outcome {
        match &self.work {
            Work::Open { above, plan, device, whole } => {
                match self.open(context, above.as_ref(), plan.as_deref(), *device, *whole) {
                    Ok(opened) => Outcome::Listed(self.first(opened, plan.clone(), *whole)),
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Outcome::Vanished,
                    Err(error) => Outcome::Unreadable(error.into()),
                }
            }
            Work::Part { directory, plan, names, from, whole } => {
                Outcome::Listed(self.part(directory, plan.clone(), names, *from, *whole))
            }
        }
    }

    fn open(
        &self,
        context: &Arc<Context>,
        above: Option<&(Arc<Directory>, CString)>,
        plan: Option<&PlanNode>,
        device_above: Option<u64>,
        whole: bool,
    ) -> Result<Opened, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = |flags| match above {
            Some((above, name)) => fs::openat(&above.fd, name.as_c_str(), flags, Mode::empty()),
            None => context
                .root
                .open_below(&self.path, flags)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        };
        let mut problem = None;
        let mut readable = true;
        let fd = match open(flags) {
            // What the plan names can be looked at without listing the directory.
            Err(Errno::ACCESS) if plan.is_some_and(|plan| !plan.children.is_empty()) => {
                readable = false;
                if whole {
                    problem = Some("only what the configuration names below it could be read: permission denied".to_owned());
                }
                open(OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW)?
            }
            other => other?,
        };
        let stat = fs::fstat(&fd)?;
        let device = Stat::from(stat).device;
        let mut names = Names::default();
        let mut xattrs = Vec::new();
        if readable {
            match xattrs_of(&fd) {
                Ok(found) => xattrs = found,
                Err(error) => {
                    problem = Some(format!("its extended attributes could not be read: {error}"))
                }
            }
        }
        let another_device = device_above.is_some_and(|above| above != device);
        if !whole || !readable {
            for name in plan.iter().flat_map(|plan| plan.children.keys()) {
                if let Ok(name) = CString::new(name.as_slice()) {
                    names.add(&name, 0);
                }
            }
        } else if !(another_device && is_made_up(&fd)) {
            if let Err(error) = read_names(&fd, &mut names) {
                problem = Some(format!("the directory could be read in part only: {error}"));
            }
            if context.skip_caches && names.contains(CACHE_TAG) && is_cache(&fd) {
                names = Names::default();
                names.add(CACHE_TAG, 0);
            }
        }
        names.sort();
        let counted = context.open.fetch_add(1, Relaxed) < OPEN;
        if !counted {
            context.open.fetch_sub(1, Relaxed);
        }
        let directory = Arc::new(Directory { context: context.clone(), fd, device, counted });
        Ok(Opened { directory, names: Arc::new(names), xattrs, problem })
    }

    fn first(&self, opened: Opened, plan: Option<Arc<PlanNode>>, whole: bool) -> Listing {
        let Opened { directory, names, xattrs, problem } = opened;
        let listing = self.part(&directory, plan, &names, 0, whole);
        Listing { xattrs, problem, ..listing }
    }

    fn part(
        &self,
        directory: &Arc<Directory>,
        plan: Option<Arc<PlanNode>>,
        names: &Arc<Names>,
        from: usize,
        whole: bool,
    ) -> Listing {
        let context = &directory.context;
        let to = names.index.len().min(from + PART);
        // In the order of inodes, which is that of the disk.
        let mut order: Vec<(u64, usize)> =
            (from..to).map(|at| (names.index.get(at).map_or(0, |n| n.2), at)).collect();
        order.sort_unstable();
        let mut stats: Vec<Result<Stat, Errno>> = vec![Err(Errno::NOENT); to - from];
        for (_, at) in order {
            let stat = fs::statat(&directory.fd, names.get(at), fs::AtFlags::SYMLINK_NOFOLLOW);
            if let Some(slot) = stats.get_mut(at - from) {
                *slot = stat.map(Stat::from);
            }
        }
        let mut nodes = Vec::with_capacity(to - from);
        for (at, what) in (from..to).zip(stats) {
            if matches!(what, Err(Errno::NOENT)) {
                continue;
            }
            let name = names.bytes(at);
            let named = plan.as_ref().and_then(|plan| plan.children.get(name));
            let is_directory = matches!(&what, Ok(stat) if stat.kind == FileType::Directory);
            let excluded = || context.exclude.is_excluded(&below(&self.path, name), is_directory);
            let excluded = excluded();
            if named.is_none() && excluded {
                continue;
            }
            let below = match &what {
                Ok(stat) if is_directory => {
                    self.descend(directory, names.get(at), stat, named.cloned(), whole && !excluded)
                }
                _ => None,
            };
            nodes.push(Node { name: at, what, below });
        }
        let next = (to < names.index.len()).then(|| {
            let first = below(&self.path, names.bytes(to));
            Arc::new(Self {
                path: self.path.clone(),
                key: (sort_key(&first), 0),
                work: Work::Part {
                    directory: directory.clone(),
                    plan,
                    names: names.clone(),
                    from: to,
                    whole,
                },
            })
        });
        Listing {
            path: self.path.clone(),
            names: names.clone(),
            nodes,
            next,
            xattrs: Vec::new(),
            problem: None,
        }
    }

    /// The task to read a directory below, unless it is not to be read.
    fn descend(
        &self,
        directory: &Arc<Directory>,
        name: &CStr,
        stat: &Stat,
        named: Option<Arc<PlanNode>>,
        whole: bool,
    ) -> Option<Arc<Self>> {
        let begins = named.as_ref().is_some_and(|plan| plan.whole);
        let crossed = stat.device != directory.device;
        let stops = whole && crossed && directory.context.one_file_system;
        if stops && named.is_none() {
            return None;
        }
        let path = below(&self.path, name.to_bytes());
        Some(Arc::new(Self {
            key: (sort_key(&path), 1),
            path: Arc::from(path),
            work: Work::Open {
                above: directory.counted.then(|| (directory.clone(), name.to_owned())),
                plan: named,
                // Where the source begins, nothing has been crossed.
                device: (whole && !begins).then_some(directory.device),
                whole: begins || (whole && !stops),
            },
        }))
    }
}

struct Opened {
    directory: Arc<Directory>,
    names: Arc<Names>,
    xattrs: Xattrs,
    problem: Option<String>,
}

fn below(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    if !directory.is_empty() {
        path.extend_from_slice(directory);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

fn sort_key(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
}

fn read_names(fd: &OwnedFd, names: &mut Names) -> Result<(), Errno> {
    let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
    let mut entries = RawDir::new(fd.as_fd(), &mut buffer);
    while let Some(entry) = entries.next() {
        match entry {
            Ok(entry) => {
                let name = entry.file_name();
                if name != c"." && name != c".." {
                    names.add(name, entry.ino());
                }
            }
            // The directory was removed while it was read.
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_cache(directory: &OwnedFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(tag) = fs::openat(directory, CACHE_TAG, flags, Mode::empty()) else { return false };
    let mut start = [0; CACHE_SIGNATURE.len()];
    matches!(rustix::io::pread(&tag, &mut start[..], 0), Ok(n) if start.get(..n) == Some(CACHE_SIGNATURE))
}

/// File systems that the kernel makes up: nothing in them was ever written, and reading some of it
/// never ends. Numbers from linux/magic.h.
fn is_made_up(fd: &OwnedFd) -> bool {
    const MADE_UP: [u32; 18] = [
        0x0000_9fa0, // proc
        0x6265_6572, // sysfs
        0x0027_e0eb, // cgroup
        0x6367_7270, // cgroup2
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0x7363_6673, // securityfs
        0xcafe_4a11, // bpf
        0x6265_6570, // configfs
        0x6165_676c, // pstore
        0x0000_1cd1, // devpts
        0xde5e_81e4, // efivarfs
        0xf97c_ff8c, // selinuxfs
        0x4249_4e4d, // binfmt_misc
        0x6573_5543, // fusectl
        0x1980_0202, // mqueue
        0x6e73_6673, // nsfs
        0x6759_6969, // rpc_pipefs
    ];
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fs::fstatfs(fd).is_ok_and(|about| MADE_UP.contains(&(about.f_type as u32)))
}
