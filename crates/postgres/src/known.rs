//! Relations that a backup does not have to read, because the WAL says that nothing of them changed
//! since the snapshot before.
//!
//! The unit is the file: one that changed at all is read whole, and its pages are compared by their
//! hashes. Of those that did not change, every sixteenth is read all the same, others each time, so
//! that what WAL does not tell, such as damage of a disk, is met in the end.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use backstay_repo::{Entry, EntryKind, Progress, Session, Snapshot};

use crate::Result;
use crate::copy::{Item, Listing};
use crate::detail::BackupDetail;
use crate::inspect::Cluster;
use crate::wal::{Detected, Detection, Folder, Fork, Lsn, Moment, Nearest, detect};

/// One of so many unchanged files is read.
const SAMPLED: u32 = 16;

/// How a backup finds out what changed since the snapshot before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Detect {
    /// By reading everything.
    #[default]
    Hash,
    /// From the WAL; by reading everything where that does not tell, with a warning.
    Wal,
    /// From the WAL where that tells and is less to read than the relations.
    Auto,
}

/// Of each lane of a session, what it has from before.
pub(crate) struct Known {
    lanes: Vec<Option<Before>>,
    /// Makes each backup read other samples.
    lot: u32,
}

struct Before {
    detection: Arc<Detection>,
    files: HashMap<Vec<u8>, Entry>,
}

impl Known {
    /// Nothing is known of any lane.
    pub(crate) fn nothing() -> Self {
        Self { lanes: Vec::new(), lot: 0 }
    }

    /// Asks the WAL, for each lane from the snapshot that it is compared with on. What is no answer
    /// goes to `warnings`.
    ///
    /// # Errors
    /// Only when the work is to stop.
    pub(crate) fn find(
        how: Detect,
        writing: &Session,
        cluster: &Cluster,
        start: Lsn,
        listing: &Listing,
        progress: &Arc<Progress>,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        if how == Detect::Hash {
            return Ok(Self::nothing());
        }
        let mut asked: Vec<(BackupDetail, Arc<Detection>)> = Vec::new();
        let mut lanes = Vec::new();
        let mut said: Vec<String> = Vec::new();
        for lane in 0..writing.lanes() {
            let Some((repository, Some(parent))) = writing.lane(lane) else {
                lanes.push(None);
                continue;
            };
            let archive = repository.archive(cluster.system_identifier);
            let ask = || -> Result<Result<(BackupDetail, Arc<Detection>), String>> {
                let detail = BackupDetail::of(parent)?;
                // Repositories that got the same backup last time are asked once.
                if let Some((detail, known)) = asked.iter().find(|(known, _)| *known == detail) {
                    return Ok(Ok((detail.clone(), known.clone())));
                }
                if how == Detect::Auto && start.since(detail.start_lsn) > listing.bytes {
                    return Ok(Err("the log is more to read than the files".into()));
                }
                let folder = Folder::open(&cluster.data_directory.join("pg_wal"))?;
                let files = Nearest { folder, archive: &archive };
                let now = Moment::of(cluster, start);
                let mut looked = detail.start_lsn;
                let detected = detect(&files, &detail, &now, |lsn| {
                    if lsn.since(looked) >= 1 << 20 {
                        looked = lsn;
                        progress.check()?;
                    }
                    Ok(())
                })?;
                Ok(match detected {
                    Detected::Wal(detection) => Ok((detail, Arc::new(detection))),
                    Detected::Unknown(reason) => Err(reason),
                })
            };
            let answer = ask().and_then(|answer| match answer {
                Ok((detail, detection)) => {
                    let files = relations_of(repository, parent)?;
                    Ok(Ok((detail, Before { detection, files })))
                }
                Err(reason) => Ok(Err(reason)),
            });
            progress.check()?;
            // A lane whose repository fails says so itself; that the WAL was no help costs only time.
            match answer.unwrap_or_else(|error| Err(error.to_string())) {
                Ok((detail, before)) => {
                    asked.push((detail, before.detection.clone()));
                    lanes.push(Some(before));
                }
                Err(reason) => {
                    said.push(reason);
                    lanes.push(None);
                }
            }
        }
        said.dedup();
        for reason in said {
            tracing::info!(%reason, "what changed is not told from the WAL");
            if how == Detect::Wal {
                warnings
                    .push(format!("all files were read, not only what the log names: {reason}"));
            }
        }
        Ok(Self { lanes, lot: (start.0 >> 3) as u32 })
    }

    /// What each lane has of a file from before; empty where all are to read it.
    pub(crate) fn of(&self, writing: &Session, item: &Item, size: u64) -> Vec<Option<Entry>> {
        if self.lanes.iter().all(Option::is_none) || size == 0 {
            return Vec::new();
        }
        if (crc32c::crc32c(&item.path) ^ self.lot).is_multiple_of(SAMPLED) {
            return Vec::new();
        }
        let of_lane = |(lane, before): (usize, &Option<Before>)| -> Option<Entry> {
            let before = before.as_ref()?;
            let old = before.files.get(&item.path)?;
            let EntryKind::File(content) = &old.kind else { return None };
            let changed = before.detection.to_read(&item.path, Some(content.size), size);
            (changed.is_empty() && writing.can_reuse(lane, content)).then(|| Entry {
                path: item.path.clone(),
                meta: item.meta.clone(),
                kind: EntryKind::File(content.clone()),
            })
        };
        self.lanes.iter().enumerate().map(of_lane).collect()
    }
}

/// The files of relations in a snapshot, by path. Those with which something was wrong are not among
/// them: they are read again, and what is wrong is said again.
fn relations_of(
    repository: &backstay_repo::Repository,
    snapshot: &Snapshot,
) -> Result<HashMap<Vec<u8>, Entry>> {
    let wrong: HashSet<&[u8]> = snapshot.problems.iter().map(|p| p.path.as_bytes()).collect();
    let mut files = HashMap::new();
    for entry in repository.tree(snapshot)?.iter() {
        let entry = entry?;
        if Fork::of_path(&entry.path).is_some() && !wrong.contains(entry.path.as_slice()) {
            files.insert(entry.path.clone(), entry);
        }
    }
    Ok(files)
}
