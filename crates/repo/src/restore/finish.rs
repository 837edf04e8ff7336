//! How a file begins and ends: created or opened, given its length and its metadata, or set aside when
//! something of it is missing.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering::AcqRel;

use rustix::fs::FallocateFlags;

use super::Planned;
use super::fetch::{Fetcher, display};
use super::place::{OURS, set_metadata};
use crate::{RepoError, Result};

/// Files from this size on are allocated in one go. Bytes.
const ALLOCATED: u64 = 4 << 20;

impl Fetcher<'_> {
    /// All extents of a file are counted, none or some: ends it when it waits for none of them.
    pub fn counted(&self, planned: &Planned, some: bool) -> Result<()> {
        if planned.left.fetch_sub(1, AcqRel) > 1 {
            return Ok(());
        }
        if !some {
            return self.finish(planned, None);
        }
        // What was written stays: the file must not pass for one without content.
        let open = self.begin(planned);
        let open = open.map_err(|error| RepoError::io("restore", display(&planned.path), error));
        match open {
            Err(error) if self.goes_on(&error) => {
                planned.lost.get_or_init(|| error.to_string());
                self.finish(planned, None)
            }
            open => self.finish(planned, Some(&open?)),
        }
    }

    /// Ends a file whose last extent was written or lost.
    pub fn finish(&self, planned: &Planned, open: Option<&File>) -> Result<()> {
        self.progress.add_done(0, 1);
        if planned.lost.get().is_none() {
            match self.complete(planned, open) {
                Err(error) if self.goes_on(&error) => {
                    planned.lost.get_or_init(|| error.to_string());
                }
                Err(error) => return Err(error),
                Ok(file) => {
                    let file = file.as_ref().or(open);
                    let Some(file) = file else { return Ok(()) };
                    let set = set_metadata(file, &planned.meta, self.owners, self.strip);
                    let set = set.map_err(|e| RepoError::io("restore", display(&planned.path), e));
                    match planned.over.as_ref().map_or(Ok(()), |over| planned.place.replace(over)) {
                        Ok(()) => return self.allow(&planned.path, set),
                        Err(error) if self.goes_on(&error) => {
                            planned.lost.get_or_init(|| error.to_string());
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        let why = planned.lost.get().map_or("", String::as_str);
        self.allow(&planned.path, self.set_aside(planned, why))
    }

    /// A file that lacks something must not pass for what it was, and what could be had of it may be
    /// all that is left: it stays, under another name.
    /// One that was there before and was not written to is left as it was.
    fn set_aside(&self, planned: &Planned, why: &str) -> Result<()> {
        let begun = *planned.begun.lock().unwrap_or_else(|e| e.into_inner());
        let was_there = planned.exists || planned.over.is_some();
        if !begun {
            let what = if was_there { "left as it was" } else { "lost" };
            self.fail(&planned.path, planned.size, format!("{what}: {why}"));
            return Ok(());
        }
        if !planned.exists {
            // What is missing at the end reads as zeros, like what is missing elsewhere.
            let _ = planned.place.open_existing().and_then(|file| file.set_len(planned.size));
        }
        let over = planned.over.as_ref().unwrap_or(&planned.place);
        let what = match planned.place.set_aside(over)? {
            Some(name) => {
                let above = planned.path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
                let path = [&planned.path[..above], &name].concat();
                self.aside.lock().unwrap_or_else(|e| e.into_inner()).push(path);
                let over = if planned.exists { ", over what was there before" } else { "" };
                format!("incomplete: {why}; what could be had is in {}{over}", display(&name))
            }
            None => format!("lost: {why}"),
        };
        self.fail(&planned.path, planned.size, what);
        Ok(())
    }

    /// Opens a file to write to it: the first time it is created, or made ours alone.
    pub fn begin(&self, planned: &Planned) -> io::Result<File> {
        let mut begun = planned.begun.lock().unwrap_or_else(|e| e.into_inner());
        if !planned.exists && !*begun {
            let file = planned.place.create()?;
            *begun = true;
            if planned.size >= ALLOCATED && planned.dense {
                allocate(&file, planned.size);
            }
            return Ok(file);
        }
        let file = planned.place.open_existing()?;
        if !*begun {
            rustix::fs::fchmod(&file, OURS)?;
            *begun = true;
        }
        Ok(file)
    }

    /// Gives a file its length; the file where it was not open.
    fn complete(&self, planned: &Planned, open: Option<&File>) -> Result<Option<File>> {
        let complete = || {
            let mut opened = None;
            let file = match open {
                Some(file) => file,
                None => {
                    // It has no extent: whatever is there goes.
                    let file = self.begin(planned)?;
                    file.set_len(0)?;
                    opened.insert(file)
                }
            };
            if file.metadata()?.len() != planned.size {
                file.set_len(planned.size)?;
            }
            Ok(opened)
        };
        complete().map_err(|e| RepoError::io("restore", display(&planned.path), e))
    }
}

/// Asks for the blocks of a file at once, so that it lies in one piece. A file system that cannot
/// do it, or has no room, says so when the bytes are written.
fn allocate(file: &File, size: u64) {
    if let Err(error) = rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, size) {
        tracing::trace!(%error, "not allocated ahead");
    }
}
