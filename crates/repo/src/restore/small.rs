//! What needs no pack: inline files, links and devices, in batches.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;

use rustix::fs::FileType;

use super::fetch::{Failure, Fetcher, display};
use super::place::{OURS, Place, There, set_metadata};
use crate::entry::{Body, Entry, EntryKind};
use crate::{RepoError, RepoErrorKind, Result};

type Batch = Vec<(Place, Entry)>;

impl Fetcher<'_> {
    /// Runs `plan`, which hands small things to `count` workers.
    pub fn with_workers(
        &self,
        count: usize,
        plan: impl FnOnce(&mut dyn FnMut(Batch) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let (sender, receiver) = crossbeam_channel::bounded::<Batch>(count * 2);
        let failure = Failure::default();
        std::thread::scope(|scope| {
            for _ in 0..count {
                let (receiver, failure) = (receiver.clone(), &failure);
                scope.spawn(move || {
                    for (place, entry) in receiver.into_iter().flatten() {
                        if failure.is_set() {
                            continue;
                        }
                        let done = self.small(&place, &entry);
                        if let Err(error) = self.allow(&entry.path, done) {
                            failure.set(error);
                        }
                    }
                });
            }
            drop(receiver);
            let planned = plan(&mut |batch| {
                // Workers end only when the sender does.
                let _ = sender.send(batch);
                if failure.is_set() {
                    Err(RepoError::new(RepoErrorKind::Aborted, ""))
                } else {
                    Ok(())
                }
            });
            drop(sender);
            planned
        })
        .or_else(|error| if failure.is_set() { Ok(()) } else { Err(error) })?;
        failure.into_result()
    }

    fn small(&self, place: &Place, entry: &Entry) -> Result<()> {
        let fail = |error| RepoError::io("restore", entry.display_path(), error);
        match &entry.kind {
            EntryKind::File(content) => {
                let Body::Inline(bytes) = &content.body else { return Ok(()) };
                let written = self.inline(place, bytes).and_then(|(file, at)| {
                    let set = set_metadata(&file, &entry.meta, self.owners, self.strip);
                    at.map_or(Ok(()), |at| at.replace(place))?;
                    Ok(set)
                });
                let set = match written {
                    Err(error) if self.goes_on(&error) => {
                        self.fail(&entry.path, entry.size(), error.to_string());
                        return Ok(());
                    }
                    written => written?,
                };
                self.counters.bytes_written.fetch_add(bytes.len() as u64, Relaxed);
                set.map_err(fail)?;
            }
            EntryKind::Symlink { target } => {
                place.symlink(target, self.delta).map_err(fail)?;
                place.set_metadata(&entry.meta, self.owners, true, false)?;
            }
            kind => {
                let (kind, device) = match kind {
                    EntryKind::CharDevice { rdev } => (FileType::CharacterDevice, *rdev),
                    EntryKind::BlockDevice { rdev } => (FileType::BlockDevice, *rdev),
                    _ => (FileType::Fifo, 0),
                };
                place.special(kind, device, self.delta).map_err(fail)?;
                place.set_metadata(&entry.meta, self.owners, false, false)?;
            }
        }
        self.progress.add_done(entry.size(), 1);
        Ok(())
    }

    /// Writes a short file whole; where, if it is not in its place yet.
    fn inline(&self, place: &Place, bytes: &[u8]) -> Result<(File, Option<Place>)> {
        let there = place.prepare_existing(self.delta)?;
        let write = || {
            let (file, at) = match there {
                There::Nothing => (place.create()?, None),
                There::File => {
                    let file = place.open_existing()?;
                    rustix::fs::fchmod(&file, OURS)?;
                    file.set_len(0)?;
                    (file, None)
                }
                There::Untouchable => {
                    let beside = place.beside();
                    (beside.create()?, Some(beside))
                }
            };
            file.write_all_at(bytes, 0)?;
            Ok((file, at))
        };
        write().map_err(|error| RepoError::io("restore", display(place.display()), error))
    }
}
