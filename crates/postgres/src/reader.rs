//! Reading the files of a running cluster: never past what was listed, every page looked at.
//!
//! A page that fails its checksum is read again before anybody is accused: the server may have been
//! in the middle of writing it. Such a page is in WAL whole, and recovery puts it right. The same
//! holds for a page that was changed after the backup started, by what it says itself.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backstay_repo::{Content, ContentError, Problem, Reader};

use crate::page::{self, PageState};
use crate::wal::Lsn;

/// How often a failing page is read again, and how long its writer is given in between.
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_millis(20);

/// How many times in a backup to wait for writers at all: in a file that is broken from end to end,
/// nobody is writing.
const PATIENCE: usize = 200;

/// Pages to accuse, found by all readers of a backup.
#[derive(Debug)]
pub(crate) struct PageChecks {
    block_size: usize,
    start: Lsn,
    patience: AtomicUsize,
    found: Mutex<Vec<BadPage>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct BadPage {
    path: Arc<str>,
    /// Within the relation.
    block: u32,
    lsn: u64,
}

impl PageChecks {
    /// `start` is where the backup started: what is newer is repaired by WAL.
    pub(crate) fn new(block_size: u32, start: Lsn) -> Arc<Self> {
        Arc::new(Self {
            block_size: block_size as usize,
            start,
            patience: AtomicUsize::new(PATIENCE),
            found: Mutex::default(),
        })
    }

    /// Looks at pages that cannot be read again.
    pub(crate) fn look(
        &self,
        path: &Arc<str>,
        first: u32,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        let start = first_block(self.block_size, first, offset)?;
        let mut bad = Vec::new();
        for (at, page) in bytes.chunks_exact(self.block_size).enumerate() {
            if let PageState::Bad { lsn, .. } = page::check(page, block(start, at)) {
                bad.push(BadPage { path: path.clone(), block: block(start, at), lsn });
            }
        }
        if !bad.is_empty() {
            self.found.lock().unwrap_or_else(|e| e.into_inner()).append(&mut bad);
        }
        Ok(())
    }

    /// What to say of the pages found. A page that claims to be changed while the backup ran is
    /// believed only up to where the backup stopped: damage can look like any location.
    pub(crate) fn problems(&self, stop: Lsn) -> Vec<Problem> {
        let mut found = self.found.lock().unwrap_or_else(|e| e.into_inner()).clone();
        found.retain(|page| page.lsn < self.start.0 || page.lsn > stop.0);
        found.sort();
        found.dedup();
        let mut runs: Vec<(Arc<str>, u32, u32)> = Vec::new();
        for page in found {
            match runs.last_mut() {
                Some((path, _, last))
                    if *path == page.path && page.block.checked_sub(1) == Some(*last) =>
                {
                    *last = page.block;
                }
                _ => runs.push((page.path, page.block, page.block)),
            }
        }
        runs.into_iter()
            .map(|(path, first, last)| Problem {
                path: path.to_string(),
                what: if first == last {
                    format!("block {first} fails its checksum; it was stored as it is")
                } else {
                    format!("blocks {first} to {last} fail their checksums; they were stored as they are")
                },
            })
            .collect()
    }
}

/// A file of a data directory, opened when a worker comes to it.
pub(crate) struct DataFile {
    pub(crate) source: PathBuf,
    /// In the snapshot.
    pub(crate) path: String,
    /// For relations the size when they were listed; others are as large as they are when opened.
    pub(crate) relation_size: Option<u64>,
    /// Checks, and the number of the file's first block within its relation.
    pub(crate) pages: Option<(Arc<PageChecks>, u32)>,
    /// Of each repository that the backup goes to, where a relation may be something else than in the
    /// snapshot before; nothing of those for which that is anywhere.
    pub(crate) changed: Vec<Option<Vec<Range<u64>>>>,
}

impl Content for DataFile {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        let file = match File::open(&self.source) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ContentError::Vanished);
            }
            Err(error) => {
                return Err(ContentError::Unreadable(format!("could not be read: {error}")));
            }
        };
        let size = match self.relation_size {
            Some(size) => size,
            None => file
                .metadata()
                .map_err(|error| ContentError::Unreadable(format!("could not be read: {error}")))?
                .len(),
        };
        let Self { path, pages, changed, .. } = *self;
        Ok(Box::new(DataReader { file, size, path: path.into(), pages, changed }))
    }
}

struct DataReader {
    file: File,
    size: u64,
    path: Arc<str>,
    pages: Option<(Arc<PageChecks>, u32)>,
    changed: Vec<Option<Vec<Range<u64>>>>,
}

impl Reader for DataReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.size.saturating_sub(offset);
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let (buffer, _) = buffer.split_at_mut(want);
        self.fill(offset, buffer)?;
        if let Some((checks, first)) = &self.pages {
            self.check_pages(checks, *first, offset, buffer)?;
        }
        Ok(want)
    }

    fn changed(&self, lane: usize) -> Option<&[Range<u64>]> {
        self.changed.get(lane)?.as_deref()
    }
}

impl DataReader {
    /// Fills the buffer; what the file no longer has is zeros. Then the relation was truncated
    /// while the backup ran, and WAL says so.
    fn fill(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.file.read_at(buffer, offset) {
                Ok(0) => {
                    buffer.fill(0);
                    return Ok(());
                }
                Ok(n) => {
                    offset += n as u64;
                    buffer = buffer.split_at_mut(n).1;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn check_pages(
        &self,
        checks: &PageChecks,
        first: u32,
        offset: u64,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let size = checks.block_size;
        let start = first_block(size, first, offset)?;
        let mut suspects: Vec<(usize, u64)> = Vec::new();
        for (at, page) in buffer.chunks_exact(size).enumerate() {
            if let PageState::Bad { lsn, .. } = page::check(page, block(start, at)) {
                suspects.push((at, lsn));
            }
        }
        let mut again = vec![0; if suspects.is_empty() { 0 } else { size }];
        for _ in 0..TRIES {
            if suspects.is_empty() {
                return Ok(());
            }
            let patient = checks
                .patience
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok();
            if patient {
                std::thread::sleep(PAUSE);
            }
            let mut still = Vec::new();
            for (at, lsn) in suspects {
                let Some(page) = buffer.get_mut(at * size..(at + 1) * size) else { continue };
                self.fill(offset + (at * size) as u64, &mut again)?;
                if again == page {
                    still.push((at, lsn));
                } else {
                    // Torn: somebody wrote it meanwhile, and WAL has it whole.
                    page.copy_from_slice(&again);
                }
            }
            suspects = still;
        }
        let mut found = checks.found.lock().unwrap_or_else(|e| e.into_inner());
        found.extend(suspects.into_iter().map(|(at, lsn)| BadPage {
            path: self.path.clone(),
            block: block(start, at),
            lsn,
        }));
        Ok(())
    }
}

/// The number of the block at `offset` of a file that begins with the block `first`.
fn first_block(size: usize, first: u32, offset: u64) -> io::Result<u32> {
    if !offset.is_multiple_of(size as u64) {
        return Err(io::Error::other("a relation was read from the middle of a page"));
    }
    Ok(first.wrapping_add(u32::try_from(offset / size as u64).unwrap_or(u32::MAX)))
}

fn block(start: u32, at: usize) -> u32 {
    start.wrapping_add(u32::try_from(at).unwrap_or(u32::MAX))
}

/// Content that is in memory already.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Content for Bytes {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        Ok(self)
    }
}

impl Reader for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 8192;

    fn page(block: u32, lsn: u64) -> Vec<u8> {
        let mut page: Vec<u8> = (0..SIZE).map(|i| (i as u32 ^ block) as u8).collect();
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        let sum = page::checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    struct Setup {
        folder: tempfile::TempDir,
        checks: Arc<PageChecks>,
    }

    impl Setup {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().unwrap(),
                checks: PageChecks::new(SIZE as u32, Lsn(1000)),
            }
        }

        fn open(&self, content: &[u8], size: u64, first: u32) -> Box<dyn Reader> {
            let source = self.folder.path().join("16385");
            std::fs::write(&source, content).unwrap();
            let file = DataFile {
                source,
                path: "data/base/5/16385".to_owned(),
                relation_size: Some(size),
                pages: Some((self.checks.clone(), first)),
                changed: Vec::new(),
            };
            match Box::new(file).open() {
                Ok(reader) => reader,
                Err(_) => panic!("the file does not open"),
            }
        }

        fn whats(&self, stop: u64) -> Vec<String> {
            self.checks.problems(Lsn(stop)).into_iter().map(|p| p.what).collect()
        }
    }

    #[test]
    fn nothing_is_read_past_what_was_listed_and_what_is_gone_is_zeros() {
        let setup = Setup::new();
        let content = [page(0, 1), page(1, 1)].concat();
        let grown = setup.open(&content, SIZE as u64, 0);
        let mut buffer = vec![7; 4 * SIZE];
        assert_eq!(grown.read_at(0, &mut buffer).unwrap(), SIZE);
        let shrunk = setup.open(&content, 3 * SIZE as u64, 0);
        assert_eq!(shrunk.read_at(0, &mut buffer).unwrap(), 3 * SIZE);
        assert_eq!(buffer[..2 * SIZE], content);
        assert!(buffer[2 * SIZE..3 * SIZE].iter().all(|byte| *byte == 0));
        assert!(setup.whats(2000).is_empty());
    }

    #[test]
    fn a_broken_page_is_named_by_its_block_in_the_relation() {
        let setup = Setup::new();
        let first = 131_072;
        let mut content: Vec<u8> = (0..5).flat_map(|at| page(first + at, 10)).collect();
        for at in [1, 2, 4] {
            content[at * SIZE + 100] ^= 1;
        }
        let reader = setup.open(&content, content.len() as u64, first);
        let mut buffer = vec![0; content.len()];
        reader.read_at(0, &mut buffer).unwrap();
        assert_eq!(buffer, content, "stored as it is");
        let whats = setup.whats(2000);
        assert_eq!(whats.len(), 2);
        assert!(whats[0].starts_with("blocks 131073 to 131074 fail"), "{whats:?}");
        assert!(whats[1].starts_with("block 131076 fails"), "{whats:?}");
    }

    #[test]
    fn a_page_changed_while_the_backup_ran_is_not_accused_unless_it_cannot_be() {
        let setup = Setup::new();
        let mut content = [page(0, 1500), page(1, 999_999)].concat();
        content[100] ^= 1;
        content[SIZE + 100] ^= 1;
        let reader = setup.open(&content, content.len() as u64, 0);
        reader.read_at(0, &mut vec![0; content.len()]).unwrap();
        let whats = setup.whats(2000);
        assert_eq!(whats.len(), 1, "{whats:?}");
        assert!(whats[0].starts_with("block 1 fails"));
    }

    #[test]
    fn a_torn_page_is_read_again() {
        let setup = Setup::new();
        let good = page(0, 10);
        let mut torn = good.clone();
        torn[4096..].fill(3);
        let reader = setup.open(&torn, SIZE as u64, 0);
        let source = setup.folder.path().join("16385");
        let mut buffer = vec![0; SIZE];
        std::thread::scope(|scope| {
            let good = &good;
            scope.spawn(move || {
                std::thread::sleep(PAUSE / 2);
                let file = File::options().write(true).open(source).unwrap();
                file.write_all_at(good, 0).unwrap();
            });
            reader.read_at(0, &mut buffer).unwrap();
        });
        assert_eq!(buffer, good);
        assert!(setup.whats(2000).is_empty());
    }

    #[test]
    fn a_file_that_vanished_is_no_error() {
        let file = DataFile {
            source: "/nonexistent/16385".into(),
            path: "data/base/5/16385".to_owned(),
            relation_size: Some(SIZE as u64),
            pages: None,
            changed: Vec::new(),
        };
        assert!(matches!(Box::new(file).open(), Err(ContentError::Vanished)));
    }
}
