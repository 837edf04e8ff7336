//! Whether what the log says did not change did not: some of it is read before anything is believed.
//!
//! Of each backup other samples, so that what the log does not tell is met in the end: damage of a
//! disk, a file that was written to behind the server's back, or a change that a summary misses. What
//! explains a page that is another one all the same:
//!
//! - it changed since the backup started, as its own location says: recovery writes it anew;
//! - the file is shorter by now: its relation was cut or dropped, with a record;
//! - it differs in nothing but hints, or in what two servers that replay the same log need not have
//!   alike (`page::hints`): the snapshot before may be a standby's, or have pages of one from a
//!   snapshot before it.
//!
//! Anything else means that the log is not to be believed: then everything is read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use backstay_repo::{KnownRegion, Progress, Session};

use super::{Before, Known};
use crate::Result;
use crate::copy::{Item, Listing, What};
use crate::page;
use crate::wal::Lsn;

/// One of so many regions of files is looked at.
const REGIONS: u32 = 16;
/// And in each of them, one of so many cells.
const CELLS: usize = 4;
/// How often a page that nothing explains is read again, and how long its writer is given.
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_millis(20);

/// A page that is not what the log says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unlike {
    pub path: String,
    /// In the file.
    pub block: u64,
    /// This host could see both states of it.
    pub certain: bool,
}

/// What is to be thought of a page that is another one than it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Explained,
    Unexplained,
    /// This host cannot see what it was.
    Unclear,
}

pub(super) struct Sampler<'a> {
    pub known: &'a Known,
    pub writing: &'a Session,
    pub progress: &'a Progress,
    /// Where this backup started.
    pub start: Lsn,
    pub checksums: bool,
}

impl Sampler<'_> {
    /// Looks until something is found, with so many threads.
    pub fn look(&self, listing: &Listing, workers: usize) -> Result<Option<Unlike>> {
        let (next, found) = (AtomicUsize::new(0), Mutex::new(None));
        let look = || -> Result<()> {
            while let Some(item) = listing.items.get(next.fetch_add(1, Relaxed)) {
                self.progress.check()?;
                if found.lock().unwrap_or_else(|e| e.into_inner()).is_some() {
                    break;
                }
                if let Some(unlike) = self.item(item)? {
                    *found.lock().unwrap_or_else(|e| e.into_inner()) = Some(unlike);
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (1..workers).map(|_| scope.spawn(look)).collect();
            let own = look();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            })?;
            own
        })?;
        Ok(found.into_inner().unwrap_or_else(|e| e.into_inner()))
    }

    fn item(&self, item: &Item) -> Result<Option<Unlike>> {
        let What::Relation { size, .. } = item.what else { return Ok(None) };
        let regions = size.div_ceil(KnownRegion::REGION) as usize;
        let lot = crc32c::crc32c(&item.path) ^ self.known.lot;
        let chosen = |region: &usize| {
            crc32c::crc32c_append(lot, &(*region as u64).to_le_bytes()).is_multiple_of(REGIONS)
        };
        let mut file = None;
        for region in (0..regions).filter(chosen) {
            for (lane, before) in self.known.lanes.iter().enumerate() {
                let Some(before) = before else { continue };
                let file = match &file {
                    Some(file) => file,
                    None => match File::open(&item.source) {
                        Ok(opened) => file.insert(opened),
                        // Dropped since, or said by whoever is to read it.
                        Err(_) => return Ok(None),
                    },
                };
                let found = self.region(file, item, size, region, lane, before)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    fn region(
        &self,
        file: &File,
        item: &Item,
        size: u64,
        region: usize,
        lane: usize,
        before: &Before,
    ) -> Result<Option<Unlike>> {
        let Some((entry, changed)) = before.changed(&item.path, size) else { return Ok(None) };
        let from = region as u64 * KnownRegion::REGION;
        let to = (from + KnownRegion::REGION).min(size);
        let unchanged = |cell: &u64| {
            let (from, to) = (*cell, (*cell + KnownRegion::CELL).min(to));
            changed.iter().all(|range| range.end <= from || range.start >= to)
        };
        let cells: Vec<u64> =
            (from..to).step_by(KnownRegion::CELL as usize).filter(unchanged).collect();
        // In a short file that is the only one there is.
        let first = self.known.lot as usize % CELLS.min(cells.len().max(1));
        let cells = cells.into_iter().skip(first).step_by(CELLS);
        let mut known = None;
        for at in cells {
            self.progress.check()?;
            let known = match &known {
                Some(known) => known,
                // What is not known is read with the rest.
                None => match self.writing.known_region(lane, entry, region) {
                    Some(there) => known.insert(there),
                    None => return Ok(None),
                },
            };
            let mut cell = vec![0; (to - at).min(KnownRegion::CELL) as usize];
            let Ok(read) = read(file, at, &mut cell) else { return Ok(None) };
            self.writing.count_read(read as u64);
            let number = ((at - from) / KnownRegion::CELL) as usize;
            for page in known.unlike(number, &cell) {
                let offset = from + (page * KnownRegion::PAGE) as u64;
                let seen = self.look_at(file, offset, known.page(page).ok().as_deref(), before);
                if seen != Seen::Explained {
                    return Ok(Some(Unlike {
                        path: String::from_utf8_lossy(&item.path).into_owned(),
                        block: offset / KnownRegion::PAGE as u64,
                        certain: seen == Seen::Unexplained,
                    }));
                }
            }
        }
        Ok(None)
    }

    /// Whether a page may be another one than it was.
    fn look_at(&self, file: &File, offset: u64, was: Option<&[u8]>, before: &Before) -> Seen {
        let mut now = vec![0; KnownRegion::PAGE];
        let mut seen = Seen::Unexplained;
        for attempt in 0..TRIES {
            // Its writer may be in the middle of it.
            if attempt > 0 {
                std::thread::sleep(PAUSE);
            }
            let Ok(count) = read(file, offset, &mut now) else { return Seen::Explained };
            let lsn = page::lsn(&now);
            if count < now.len() || lsn > self.start.0 {
                return Seen::Explained;
            }
            seen = match was {
                Some(was) if page::same_but_for_hints(was, &now) => Seen::Explained,
                // What nobody can look at: the page has its own word for it, which counts for less
                // where a hint is rarely without a record.
                None if lsn <= before.start.0 && self.checksums => Seen::Unclear,
                None if lsn <= before.start.0 => Seen::Explained,
                _ => Seen::Unexplained,
            };
            if seen == Seen::Explained {
                break;
            }
        }
        seen
    }
}

/// Reads as much as there is.
fn read(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
