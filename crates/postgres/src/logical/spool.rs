//! A private folder through which a dump passes on its way into a repository.
//!
//! `pg_dump` writes a folder; parallel workers have no other format. Its files are read while they
//! grow and removed when they are read: what lies there at one time is bounded, however large the
//! database is. A worker of the session follows a large file ([`Follow`]) and gives back what it has
//! read by punching holes into it. Where the disk of the spool gets too full all the same, because
//! the repository is slower than the server, `pg_dump` is stopped for a while ([`Watch`]).
//!
//! No worker can wait for `pg_dump` and hold it up at the same time: it has at most as many files
//! open as it has workers, and the session has one worker more than that.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use backstay_repo::{Content, ContentError, Progress, Reader};
use rustix::process::{Pid, Signal};

use crate::{PostgresError, Result};

const PREFIX: &str = "backstay-dump-";
/// How often the spool is looked at.
const PACE: Duration = Duration::from_millis(20);
/// Files are followed from this size on; smaller ones are read when they are whole. Bytes.
const FOLLOWED: u64 = 8 << 20;
/// What was read is given back in pieces of this size. Bytes.
const PIECE: u64 = 4 << 20;
/// The least that a bound on the spool has to be for each worker of `pg_dump`. Bytes.
const LEAST: u64 = 64 << 20;

/// A private folder that is removed with everything in it; if the process is killed, by the next
/// one that uses the same place.
pub(super) struct Spool {
    folder: tempfile::TempDir,
    /// Locked while we live.
    _lock: File,
}

impl Spool {
    pub(super) fn create(parent: &Path) -> Result<Self> {
        let failed = |error| {
            PostgresError::io("make a temporary folder in", parent, error)
                .with_hint("set `spool` to a folder that exists and can be written")
        };
        sweep(parent);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent).map_err(failed)?;
        let lock = File::create_new(folder.path().join("lock")).map_err(failed)?;
        lock.try_lock().map_err(|error| failed(error.into()))?;
        Ok(Self { folder, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The free space. Bytes.
    pub(super) fn free(&self) -> Result<u64> {
        let about = rustix::fs::statvfs(self.path()).map_err(|error| {
            PostgresError::io("look at the free space of", self.path(), error.into())
        })?;
        Ok(about.f_bavail.saturating_mul(about.f_frsize))
    }
}

/// Removes what was left behind by processes that were killed: folders whose lock nobody holds.
fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        // One without a lock is being created right now.
        let Ok(lock) = File::open(entry.path().join("lock")) else { continue };
        if lock.try_lock().is_ok() {
            let path = entry.path();
            match std::fs::remove_dir_all(&path) {
                Ok(()) => tracing::info!(path = %path.display(), "removed the rest of a dump"),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove the rest of a dump");
                }
            }
        }
    }
}

/// A file of the spool, as the one who watches it and the one who reads it see it.
#[derive(Debug)]
pub(super) struct Spooled {
    path: PathBuf,
    /// How far it was read.
    read: AtomicU64,
    /// Nothing is added to it any more.
    ended: AtomicBool,
    /// It was read, and is gone.
    gone: AtomicBool,
    /// Holes can be punched into it.
    punches: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Spooled {
    fn new(path: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            path,
            read: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            punches: AtomicBool::new(true),
            lock: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// What of it was not read yet. Bytes.
    fn unread(&self) -> u64 {
        if self.gone.load(Ordering::SeqCst) {
            return 0;
        }
        let size = std::fs::metadata(&self.path).map_or(0, |about| about.size());
        size.saturating_sub(self.read.load(Ordering::SeqCst))
    }
}

/// A file to be stored: whole, or followed while it grows.
pub(super) struct Follow {
    pub file: Arc<Spooled>,
    /// Where it has its end already.
    pub size: Option<u64>,
}

impl Content for Follow {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(&self.file.path)
            .map_err(|error| ContentError::Fatal(error.to_string()))?;
        let at = AtomicU64::new(0);
        Ok(Box::new(Following { file, spooled: self.file, size: self.size, punched: at }))
    }
}

struct Following {
    file: File,
    spooled: Arc<Spooled>,
    size: Option<u64>,
    punched: AtomicU64,
}

impl Following {
    /// Gives the disk back what was read.
    fn punch(&self, read: u64) {
        let from = self.punched.load(Ordering::SeqCst);
        if read < from + PIECE || !self.spooled.punches.load(Ordering::SeqCst) {
            return;
        }
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{FallocateFlags, fallocate};
            let to = read - read % PIECE;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&self.file, flags, from, to - from) {
                Ok(()) => self.punched.store(to, Ordering::SeqCst),
                // It stays until it was read to its end then.
                Err(_) => self.spooled.punches.store(false, Ordering::SeqCst),
            }
        }
    }
}

impl Reader for Following {
    fn size(&self) -> u64 {
        self.size.unwrap_or(u64::MAX >> 1)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if offset < self.punched.load(Ordering::SeqCst) {
            return Err(io::Error::other("it was read before, and is gone"));
        }
        let mut filled = 0;
        while filled < buffer.len() {
            // Asked for before reading: what is written until then is seen.
            let ended = self.spooled.ended.load(Ordering::SeqCst);
            let rest = buffer.get_mut(filled..).unwrap_or_default();
            match self.file.read_at(rest, offset + filled as u64) {
                Ok(0) if ended => break,
                Ok(0) => {
                    let guard = self.spooled.lock.lock().unwrap_or_else(|e| e.into_inner());
                    // It grows without a word; its end is told.
                    let _ = self.spooled.changed.wait_timeout(guard, PACE);
                }
                Ok(read) => {
                    filled += read;
                    self.spooled.read.fetch_max(offset + filled as u64, Ordering::SeqCst);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // What is in the buffer is needed no more; a small file may be read again.
        if self.size.is_none_or(|size| size > FOLLOWED) {
            self.punch(offset + filled as u64);
        }
        Ok(filled)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.spooled.path) {
            tracing::warn!(path = %self.spooled.path.display(), %error, "cannot remove what was read");
        }
        self.spooled.gone.store(true, Ordering::SeqCst);
    }
}

/// What the one who watches has to tell.
pub(super) enum Event {
    /// A file can be read; with its size where it is whole.
    File { name: String, file: Arc<Spooled>, size: Option<u64> },
    /// The program has ended, and everything before this was all.
    Ended(io::Result<ExitStatus>),
}

/// Watches a dump: which files are there, whether there is room, and when it is over.
pub(super) struct Watch<'a> {
    pub folder: PathBuf,
    pub child: Child,
    pub progress: &'a Progress,
    /// Set by who reads, when it gives up.
    pub stop: &'a AtomicBool,
    /// Bytes that may wait to be read.
    pub limit: u64,
}

/// The bound that holds for so many workers of `pg_dump`. Bytes.
pub(super) fn bound(limit: u64, jobs: usize) -> u64 {
    limit.max(LEAST * (jobs as u64 + 1))
}

struct Known {
    file: Arc<Spooled>,
    told: bool,
}

impl Watch<'_> {
    /// Until the program has ended. The table of contents is left to who asks for it.
    pub(super) fn run(mut self, events: &Sender<Event>) {
        let mut inbox = Inbox::new(&self.folder);
        let mut known: HashMap<String, Known> = HashMap::new();
        let mut held = false;
        let (_keep, pause) = mpsc::channel::<()>();
        let status = loop {
            if self.stop.load(Ordering::SeqCst) || self.progress.is_cancelled() {
                self.kill();
            }
            let ended = self.child.try_wait();
            inbox.look(&self.folder, &mut known);
            if let Ok(None) = ended {
                tell(&mut known, events, false);
                self.hold(&known, inbox.is_sure(), &mut held);
            } else {
                break ended.and_then(|status| status.map_or_else(|| self.child.wait(), Ok));
            }
            if pause.recv_timeout(PACE) == Err(RecvTimeoutError::Disconnected) {
                break self.child.wait();
            }
        };
        // Nobody writes any more, whatever was missed.
        list(&self.folder, &mut known);
        known.values().for_each(|one| one.file.end());
        tell(&mut known, events, true);
        let _ = events.send(Event::Ended(status));
    }

    /// Stops the program while too much waits to be read, and lets it go on afterwards.
    fn hold(&self, known: &HashMap<String, Known>, sure: bool, held: &mut bool) {
        let unread: u64 = known.values().map(|one| one.file.unread()).sum();
        let signal = match *held {
            // Without knowing which files are whole, somebody might wait for one for ever.
            false if unread > self.limit && sure => Signal::STOP,
            true if unread < self.limit / 2 || !sure => Signal::CONT,
            _ => return,
        };
        *held = signal == Signal::STOP;
        self.signal(signal);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended just now.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    fn kill(&self) {
        self.signal(Signal::KILL);
    }
}

/// Tells of every file that can be read and was not told of.
fn tell(known: &mut HashMap<String, Known>, events: &Sender<Event>, last: bool) {
    for (name, one) in known.iter_mut().filter(|(_, one)| !one.told) {
        let ended = last || one.file.ended.load(Ordering::SeqCst);
        let size = std::fs::metadata(&one.file.path).map_or(0, |about| about.size());
        if ended || size > FOLLOWED {
            one.told = true;
            let size = ended.then_some(size);
            let _ = events.send(Event::File { name: name.clone(), file: one.file.clone(), size });
        }
    }
}

/// Notes the files of the folder that are not known.
fn list(folder: &Path, known: &mut HashMap<String, Known>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        note(folder, entry.file_name().to_str(), known);
    }
}

fn note<'k>(
    folder: &Path,
    name: Option<&str>,
    known: &'k mut HashMap<String, Known>,
) -> Option<&'k Known> {
    let name = name.filter(|name| is_content(name))?;
    let new = || Known { file: Spooled::new(folder.join(name)), told: false };
    Some(known.entry(name.to_owned()).or_insert_with(new))
}

/// Whether a file of a dump is written once and then left alone. The lists of large objects are
/// opened again and again.
fn is_content(name: &str) -> bool {
    name.ends_with(".dat") && name != "toc.dat"
}

/// What the kernel tells of a folder.
#[cfg(target_os = "linux")]
struct Inbox {
    watch: Option<std::os::fd::OwnedFd>,
    /// Nothing was missed.
    sure: bool,
}

#[cfg(target_os = "linux")]
impl Inbox {
    fn new(folder: &Path) -> Self {
        use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
        let watch = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .and_then(|watch| {
                add_watch(&watch, folder, WatchFlags::CREATE | WatchFlags::CLOSE_WRITE)?;
                Ok(watch)
            })
            .ok();
        Self { sure: watch.is_some(), watch }
    }

    fn is_sure(&self) -> bool {
        self.sure
    }

    fn look(&mut self, folder: &Path, known: &mut HashMap<String, Known>) {
        use rustix::fs::inotify::{ReadFlags, Reader};
        let Some(watch) = &self.watch else { return list(folder, known) };
        let mut buffer = vec![std::mem::MaybeUninit::uninit(); 64 << 10];
        let mut reader = Reader::new(watch, &mut buffer);
        while let Ok(event) = reader.next() {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                self.sure = false;
            }
            let name = event.file_name().and_then(|name| name.to_str().ok());
            let one = note(folder, name, known);
            if let Some(one) = one
                && event.events().contains(ReadFlags::CLOSE_WRITE)
            {
                one.file.end();
            }
        }
    }
}

/// Elsewhere files are whole when the dump is.
#[cfg(not(target_os = "linux"))]
struct Inbox;

#[cfg(not(target_os = "linux"))]
impl Inbox {
    fn new(_: &Path) -> Self {
        Self
    }

    fn is_sure(&self) -> bool {
        false
    }

    fn look(&mut self, _: &Path, _: &mut HashMap<String, Known>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_file_is_followed_to_its_end_and_gives_back_what_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.dat");
        let mut out = File::create(&path).unwrap();
        let block: Vec<u8> =
            (0..1_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let spooled = Spooled::new(path.clone());
        let reader =
            Box::new(Follow { file: spooled.clone(), size: None }).open().map_err(|_| ()).unwrap();
        let reading = std::thread::spawn(move || {
            let (mut all, mut buffer) = (Vec::new(), vec![0; 3 << 20]);
            loop {
                let read = reader.read_at(all.len() as u64, &mut buffer).unwrap();
                all.extend_from_slice(&buffer[..read]);
                if read < buffer.len() {
                    return all;
                }
            }
        });
        for _ in 0..16 {
            out.write_all(&block).unwrap();
        }
        backstay_testing::wait_until("most of it is read", 30, || spooled.unread() < 2 << 20);
        let blocks = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(blocks <= 10 << 20, "{blocks} bytes of 16 MiB are still on the disk");
        out.write_all(b"end").unwrap();
        spooled.end();
        let all = reading.join().unwrap();
        assert_eq!(all.len(), (16 << 20) + 3);
        assert!(all.chunks(1 << 20).take(16).all(|chunk| chunk == block));
        assert!(!path.exists() && spooled.unread() == 0);
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let living = Spool::create(folder.path()).unwrap();
        let left = folder.path().join(format!("{PREFIX}left"));
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("lock"), "").unwrap();
        std::fs::write(left.join("1.dat"), "rows").unwrap();
        let _other = Spool::create(folder.path()).unwrap();
        assert!(living.path().exists() && !left.exists());
    }
}
