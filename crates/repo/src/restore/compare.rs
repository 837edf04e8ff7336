//! What is in the target already: ranges that are right are kept, and holes are made where files have
//! holes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Relaxed};

use super::fetch::{Failure, Fetcher, Origin, display, make_hole};
use super::{Planned, Wanted};
use crate::session::{CELL, content_id_of_data};
use crate::{RepoError, Result};

impl Fetcher<'_> {
    /// Leaves out every range that a file already has, and makes holes where files have holes.
    pub fn without_what_is_right(
        &self,
        origin: &Origin,
        files: &[Planned],
        wanted: Vec<Wanted>,
        count: usize,
    ) -> Result<Vec<Wanted>> {
        // Planned in the order of files, so those of one file are neighbours.
        let groups: Vec<&[Wanted]> = wanted.chunk_by(|a, b| a.file == b.file).collect();
        let (next, failure) = (AtomicUsize::new(0), Failure::default());
        let missing = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| {
                    let mut buffer = Vec::new();
                    while let Some(group) = groups.get(next.fetch_add(1, Relaxed)) {
                        if failure.is_set() {
                            return;
                        }
                        match self.compare(origin, files, group, &mut buffer) {
                            // What cannot be looked at is left alone.
                            Err(error) if self.goes_on(&error) => {
                                if let Err(error) = self.lose(files, group, &error) {
                                    failure.set(error);
                                }
                            }
                            Ok(found) => {
                                missing.lock().unwrap_or_else(|e| e.into_inner()).extend(found);
                            }
                            Err(error) => failure.set(error),
                        }
                    }
                });
            }
        });
        failure.into_result()?;
        Ok(missing.into_inner().unwrap_or_else(|e| e.into_inner()))
    }

    fn compare(
        &self,
        origin: &Origin,
        files: &[Planned],
        group: &[Wanted],
        buffer: &mut Vec<u8>,
    ) -> Result<Vec<Wanted>> {
        let Some(planned) = group.first().and_then(|w| files.get(w.file as usize)) else {
            return Ok(Vec::new());
        };
        if !planned.exists {
            return Ok(group.to_vec());
        }
        self.progress.check()?;
        let fail = |e| RepoError::io("compare", display(&planned.path), e);
        let file = planned.place.open_existing().map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        let mut end = 0;
        let gaps =
            group.iter().map(|w| w.extent.offset..w.extent.offset + u64::from(w.extent.length));
        let mut holes = Vec::new();
        for range in gaps.chain(std::iter::once(planned.size..planned.size)) {
            if range.start > end && end < length {
                holes.push(end..range.start.min(length));
            }
            end = range.end;
        }
        if !holes.is_empty() {
            let file = self.begin(planned).map_err(fail)?;
            for hole in holes {
                make_hole(&file, hole.start, hole.end).map_err(fail)?;
            }
        }
        let mut missing = Vec::new();
        let mut cell = (u64::MAX, false);
        for wanted in group {
            let extent = &wanted.extent;
            // Of a part of a chunk only the cell that it is in can tell.
            let begin = extent.offset - extent.offset % CELL as u64;
            let whole = (planned.size.saturating_sub(begin)).min(CELL as u64);
            if cell.0 != begin && u64::from(extent.length) < whole {
                cell = (begin, self.is_cell(origin, planned, &file, begin, buffer));
            }
            buffer.resize(extent.length as usize, 0);
            let there = cell == (begin, true)
                || extent.chunk_offset == 0
                    && extent.offset + u64::from(extent.length) <= length
                    && file.read_exact_at(buffer, extent.offset).is_ok()
                    && content_id_of_data(&origin.repository, buffer) == extent.chunk;
            if there {
                self.counters.bytes_kept.fetch_add(u64::from(extent.length), Relaxed);
                self.progress.add_done(u64::from(extent.length), 0);
                if planned.left.fetch_sub(1, AcqRel) == 1 {
                    self.finish(planned, Some(&file))?;
                }
            } else {
                missing.push(*wanted);
            }
        }
        Ok(missing)
    }

    /// Whether a file has the cell that begins at `begin` already.
    fn is_cell(
        &self,
        origin: &Origin,
        planned: &Planned,
        file: &File,
        begin: u64,
        buffer: &mut Vec<u8>,
    ) -> bool {
        let Ok(at) = planned.cells.binary_search_by_key(&begin, |(begin, _)| *begin) else {
            return false;
        };
        buffer.resize(planned.size.saturating_sub(begin).min(CELL as u64) as usize, 0);
        file.read_exact_at(buffer, begin).is_ok()
            && planned.cells.get(at).is_some_and(|(_, cell)| {
                content_id_of_data(&origin.repository, buffer).0.starts_with(cell)
            })
    }
}
