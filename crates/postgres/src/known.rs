//! What of relations a backup does not have to read, because the WAL says that it did not change since
//! the snapshot before.
//!
//! A file of which nothing changed is not opened at all; of the others those cells are read in which a
//! page changed, and all from where a relation was cut on. Before any of that a sample is looked at
//! (`sample`): one page that is not what the log says, and everything is read.

mod sample;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use backstay_repo::{Entry, EntryKind, Progress, Session, Snapshot};

use crate::Result;
use crate::backup::BackupOptions;
use crate::copy::{Item, Listing};
use crate::detail::BackupDetail;
use crate::inspect::Cluster;
use crate::wal::{Detected, Detection, Folder, Fork, Lsn, Moment, Nearest, detect};
use sample::{Sampler, Unlike};

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

impl Detect {
    /// Says of a backup that reads everything, though there is a snapshot before and the log was to
    /// be asked, why it does.
    pub(crate) fn warn_of_no_use(self, writing: &Session, why: &str, warnings: &mut Vec<String>) {
        let compares = (0..writing.lanes())
            .any(|lane| writing.lane(lane).is_some_and(|(_, parent)| parent.is_some()));
        if self == Self::Wal && compares {
            warnings.push(format!("`detect = \"wal\"` has no effect on {why}"));
        }
    }
}

/// Of each lane of a session, what it has from before.
pub(crate) struct Known {
    lanes: Vec<Option<Before>>,
    /// Makes each backup read other samples.
    lot: u32,
}

struct Before {
    /// Where the snapshot before started, and its id.
    start: Lsn,
    snapshot: String,
    detection: Arc<Detection>,
    files: HashMap<Vec<u8>, Entry>,
}

impl Before {
    /// What there was of a file, and where it may be something else now. Nothing when that is anywhere.
    fn changed(&self, path: &[u8], size: u64) -> Option<(&Entry, Vec<Range<u64>>)> {
        let entry = self.files.get(path)?;
        let EntryKind::File(content) = &entry.kind else { return None };
        Some((entry, self.detection.to_read(path, Some(content.size), size)))
    }
}

/// What is known of a file before it is read.
#[derive(Default)]
pub(crate) struct KnownFile {
    /// Of each lane, its entry where nothing of it changed; empty where there is none.
    pub entries: Vec<Option<Entry>>,
    /// Of each lane, where it may be something else than before; empty where that is anywhere.
    pub changed: Vec<Option<Vec<Range<u64>>>>,
}

impl Known {
    /// Nothing is known of any lane.
    pub(crate) fn nothing() -> Self {
        Self { lanes: Vec::new(), lot: 0 }
    }

    /// Asks the WAL, for each lane from the snapshot that it is compared with on. What is no answer
    /// goes to `warnings`; a page of which it says what is not so is a problem of the snapshot.
    ///
    /// # Errors
    /// Only when the work is to stop.
    pub(crate) fn find(
        writing: &Session,
        cluster: &Cluster,
        start: Lsn,
        listing: &Listing,
        options: &BackupOptions,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let (progress, how) = (&options.progress, options.detect);
        if how == Detect::Hash {
            return Ok(Self::nothing());
        }
        if cluster.in_recovery {
            let why = "a standby, which has the log only in part: all files were read";
            how.warn_of_no_use(writing, why, warnings);
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
                    let (start, snapshot) = (detail.start_lsn, parent.short_id().to_owned());
                    Ok(Ok((detail, Before { start, snapshot, detection, files })))
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
        let known = Self { lanes, lot: (start.0 >> 3) as u32 };
        Ok(match known.unlike(writing, cluster, start, listing, options.workers, progress)? {
            None => known,
            Some(unlike) => {
                known.disbelieve(&unlike, writing, warnings);
                Self::nothing()
            }
        })
    }

    /// Looks at a sample of what is said not to have changed.
    fn unlike(
        &self,
        writing: &Session,
        cluster: &Cluster,
        start: Lsn,
        listing: &Listing,
        workers: usize,
        progress: &Progress,
    ) -> Result<Option<Unlike>> {
        if self.lanes.iter().all(Option::is_none) {
            return Ok(None);
        }
        let workers = match workers {
            0 => std::thread::available_parallelism().map_or(2, |n| n.get()),
            count => count,
        };
        let checksums = cluster.checksums;
        Sampler { known: self, writing, progress, start, checksums }.look(listing, workers)
    }

    /// Says of a page that the log does not tell the truth, or may not.
    fn disbelieve(&self, unlike: &Unlike, writing: &Session, warnings: &mut Vec<String>) {
        let Unlike { path, block, certain } = unlike;
        if !certain {
            warnings.push(format!(
                "all files were read, not only what the log names: block {block} of {path} is not \
                 what it was in the snapshot before, and the key of this host does not let it see \
                 whether that matters"
            ));
            return;
        }
        let before = self.lanes.iter().flatten().next();
        let before = before.map_or_else(String::new, |before| before.snapshot.clone());
        tracing::error!(%path, block, "a page changed of which the log has no change");
        warnings.push(format!(
            "block {block} of {path} is not what it was in snapshot {before}, and the log has no \
             change of it: everything was read. Earlier snapshots that were made by the log may have \
             an old state of this page, or the disk damaged it: see what `pg_amcheck` says of the \
             server, and back up with `detect = \"hash\"` until the cause is known"
        ));
        writing.problem(
            path,
            format!(
                "block {block} changed since snapshot {before} without a record in the log; it was \
                 stored as it is, and all other files were read, too"
            ),
        );
    }

    /// What each lane has of a file from before.
    pub(crate) fn of(&self, writing: &Session, item: &Item, size: u64) -> KnownFile {
        let mut known = KnownFile::default();
        if self.lanes.iter().all(Option::is_none) || size == 0 {
            return known;
        }
        for (lane, before) in self.lanes.iter().enumerate() {
            let found = before.as_ref().and_then(|before| before.changed(&item.path, size));
            let (entry, changed) = match found {
                None => (None, None),
                Some((old, changed)) => match &old.kind {
                    EntryKind::File(content)
                        if changed.is_empty() && writing.can_reuse(lane, content) =>
                    {
                        let kind = EntryKind::File(content.clone());
                        let (path, meta) = (item.path.clone(), item.meta.clone());
                        (Some(Entry { path, meta, kind }), None)
                    }
                    _ => (None, Some(changed)),
                },
            };
            known.entries.push(entry);
            known.changed.push(changed);
        }
        if known.entries.iter().all(Option::is_none) {
            known.entries.clear();
        }
        known
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
