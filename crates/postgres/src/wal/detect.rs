//! What of a cluster's relations has to be read again for a backup, by what the WAL says that changed
//! since the start of an earlier one.
//!
//! From where the earlier backup started to where this one does, since its files were read in between
//! and later. A page that no record of that range names is the same in the earlier copy as it was when
//! this backup started, but for bits that are only a hint; what changes from then on recovery puts
//! right, as in every backup.
//!
//! Nothing is concluded where anything is in doubt: then the answer is a reason, and every page is
//! read and compared by its hash.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::SystemTime;

use super::files::{Files, Folder};
use super::findings::about_the_content;
use super::scan::{self, Scan, Summary, summarize};
use super::{FileChanges, Fork, Lsn, SegmentSize};
use crate::Result;
use crate::detail::BackupDetail;

/// A cluster as a backup of it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub system_identifier: u64,
    pub version: u32,
    pub catalog_version: u32,
    pub timeline: u32,
    /// Where the backup starts.
    pub start: Lsn,
    pub block_size: u32,
    /// Blocks to each file of a relation.
    pub relation_segment_blocks: u32,
    /// Pages have checksums.
    pub checksums: bool,
}

/// Whether the WAL tells what has to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detected {
    Wal(Detection),
    /// It does not, for this reason: a sentence without its full stop.
    Unknown(String),
}

/// What has to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detection {
    summary: Summary,
    block_size: u32,
    per_file: u32,
}

/// Finds out from `files` what changed since the backup `before` started.
///
/// # Errors
/// Only when the WAL cannot be asked for. What it lacks, and what is damaged of it, is a reason.
pub fn detect(
    files: &dyn Files,
    before: &BackupDetail,
    now: &Moment,
    progress: impl FnMut(Lsn) -> Result<()>,
) -> Result<Detected> {
    if let Some(reason) = another(before, now) {
        return Ok(Detected::Unknown(reason));
    }
    let range = scan::Range {
        from: Some(before.start_lsn),
        to: Some(now.start),
        timeline: Some(now.timeline),
    };
    let read = Scan::open(files, range).and_then(|scan| summarize(&scan, progress));
    let (summary, _, scanned) = match read {
        Ok(read) => read,
        Err(error) => return Ok(Detected::Unknown(about_the_content(error)?.to_string())),
    };
    Ok(if let Some(missing) = scanned.missing {
        Detected::Unknown(format!("the WAL segment {missing} is missing"))
    } else if let Some(why) = scanned.stopped {
        Detected::Unknown(format!("the WAL ends at {}, before {}: {why}", summary.to, now.start))
    } else if let Some(first) = scanned.first.filter(|first| *first != before.start_lsn) {
        // The server went back and wrote this WAL anew.
        Detected::Unknown(format!(
            "the WAL has no record at {}, where the snapshot before started, but at {first}",
            before.start_lsn
        ))
    } else if let Some(since) = summary.changes.unsafe_since() {
        Detected::Unknown(format!("wal_level was minimal at {since}"))
    } else {
        Detected::Wal(Detection {
            summary,
            block_size: now.block_size,
            per_file: now.relation_segment_blocks,
        })
    })
}

/// Why the earlier backup is none that this cluster goes on from in a straight line.
fn another(before: &BackupDetail, now: &Moment) -> Option<String> {
    if before.system_identifier != now.system_identifier {
        return Some("the snapshot before is of another cluster".into());
    }
    if (before.version, before.catalog_version) != (now.version, now.catalog_version) {
        return Some("the snapshot before is of another version of PostgreSQL".into());
    }
    // Along a switch the histories say what belongs together; pages that were lost there have been
    // the costliest defects of others.
    if before.timeline != now.timeline {
        return Some(format!(
            "the server went from timeline {} to {} since the snapshot before",
            before.timeline, now.timeline
        ));
    }
    if before.block_size != now.block_size || now.block_size != 8192 {
        return Some(format!("pages of {} bytes are not told from WAL", now.block_size));
    }
    // A stopped cluster gets them in every page, without WAL.
    if before.checksums != now.checksums {
        return Some("checksums were turned on or off since the snapshot before".into());
    }
    (before.start_lsn > now.start).then(|| {
        format!("the snapshot before is of {}, which is later than {}", before.start_lsn, now.start)
    })
}

impl Detection {
    /// What changed.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The bytes of a file that must be read, of one with `before` bytes in the earlier snapshot (none
    /// when it is not there) and `size` now; all others are what they were. In order, not empty.
    pub fn to_read(&self, path: &[u8], before: Option<u64>, size: u64) -> Vec<Range<u64>> {
        let whole = || Vec::from_iter((size > 0).then_some(0..size));
        let (Some(before), Some((fork, number))) = (before, Fork::of_path(path)) else {
            return whole();
        };
        let block = u64::from(self.block_size);
        // What a relation lost it lost with a record, and what is no whole page is nobody's.
        if before > size || !before.is_multiple_of(block) {
            return whole();
        }
        let mut ranges = match self.summary.changes.of_file(fork, number, self.per_file) {
            FileChanges::Unknown => return whole(),
            FileChanges::Nothing => Vec::new(),
            FileChanges::Blocks(ranges) => ranges
                .into_iter()
                .map(|range| range.start * block..(range.end * block).min(before))
                .filter(|range| range.start < range.end)
                .collect::<Vec<_>>(),
        };
        // A relation grows by pages of zeros, of which no record tells.
        if before < size {
            match ranges.last_mut() {
                Some(last) if last.end == before => last.end = size,
                _ => ranges.push(before..size),
            }
        }
        ranges
    }
}

/// The files of a server's own `pg_wal`, and behind them those of its archive: what was archived a
/// moment ago, or is not archived yet, need not be fetched.
#[derive(Debug)]
pub struct Nearest<'a> {
    pub folder: Folder,
    pub archive: &'a dyn Files,
}

impl Files for Nearest<'_> {
    fn names(&self) -> Result<Vec<(String, Option<SystemTime>)>> {
        let mut names: BTreeMap<String, Option<SystemTime>> =
            self.archive.names()?.into_iter().collect();
        for (name, modified) in self.folder.names()? {
            names.entry(name).or_insert(modified);
        }
        Ok(names.into_iter().collect())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        // One that is recycled while it is read fails its check; then the archive has it.
        if let Some(content) = self.folder.read(name)?
            && name.parse().is_ok_and(|name| {
                super::check_segment(name, &content, self.system_identifier()).is_ok()
            })
        {
            return Ok(Some(content));
        }
        self.archive.read(name)
    }

    fn system_identifier(&self) -> Option<u64> {
        self.archive.system_identifier().or(self.folder.system_identifier())
    }

    fn segment_size(&self) -> Result<Option<SegmentSize>> {
        match self.folder.segment_size()? {
            Some(size) => Ok(Some(size)),
            None => self.archive.segment_size(),
        }
    }
}

impl Moment {
    /// A cluster that starts a backup at `start`.
    pub fn of(cluster: &crate::Cluster, start: Lsn) -> Self {
        Self {
            system_identifier: cluster.system_identifier,
            version: cluster.version,
            catalog_version: cluster.catalog_version,
            timeline: cluster.timeline,
            start,
            block_size: cluster.block_size,
            relation_segment_blocks: cluster.relation_segment_blocks,
            checksums: cluster.checksums,
        }
    }
}
