//! What one repository lacks, from others that hold the same moment.
//!
//! Chunks differ from repository to repository, files do not: a range that is missing is looked for
//! by the path of its file. What one sibling cannot give, the next one is asked for; what nobody has
//! is lost as it would have been at once.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Relaxed};

use super::fetch::{Fetcher, Missing, Origin, display, make_hole};
use super::{NOWHERE, Planned, Wanted};
use crate::entry::{Body, Entry, EntryKind, Extent};
use crate::{Fallback, RepoError, Result, Tree};

/// Up to so many paths are looked up one by one; for more the tree is read from front to back.
const LOOKED_UP: usize = 64;

impl Fetcher<'_> {
    /// Whether an error costs nothing yet: something else may help, or it costs only a part.
    pub fn may_do_without(&self, error: &RepoError) -> bool {
        self.goes_on(error) || (self.fallback.is_some() && Fallback::helps_with(error))
    }

    /// Nothing is known of where the content of a range of a file is, which the file waits for as for
    /// one extent.
    pub fn miss_range(
        &self,
        origin: &Origin,
        file: u32,
        range: Range<u64>,
        source: usize,
        error: RepoError,
    ) {
        if source == 0 && !origin.gone.load(Relaxed) {
            if !error.is_about_an_object() {
                origin.gone.store(true, Relaxed);
            }
            if let Some(fallback) = self.fallback {
                fallback.lacks(0, "a leaf of an extent map", &error);
            }
        }
        let missing = Missing { file, range, left: 1, error };
        self.missing.lock().unwrap_or_else(|e| e.into_inner()).push(missing);
    }

    fn take_missing(&self) -> Vec<Missing> {
        std::mem::take(&mut *self.missing.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

/// Fetches all that is missing from the siblings, one after another.
pub(super) fn rescue(fetcher: &Fetcher<'_>, files: &[Planned], count: usize) -> Result<()> {
    let mut missing = fetcher.take_missing();
    if missing.is_empty() {
        return Ok(());
    }
    fetcher.progress.set_phase("restoring from another repository");
    if let Some(fallback) = fetcher.fallback {
        for source in 1..=fallback.siblings().len() {
            if missing.is_empty() {
                break;
            }
            let Some(sibling) = fallback.siblings().get(source - 1) else { continue };
            let Some(tree) = fallback.tree_of(source) else { continue };
            let index = match sibling.repository.reload_index() {
                Ok(index) => index,
                Err(error) => {
                    fallback.lacks(source, "the index", &error);
                    continue;
                }
            };
            let origin = Origin::new(&sibling.repository, index, source);
            missing = from_sibling(fetcher, &origin, &tree, files, missing, count)?;
            missing.append(&mut fetcher.take_missing());
        }
    }
    for Missing { file, left, error, .. } in missing {
        if !fetcher.goes_on(&error) {
            return Err(error);
        }
        let Some(planned) = files.get(file as usize) else { continue };
        planned.lost.get_or_init(|| error.to_string());
        if planned.left.fetch_sub(left, AcqRel) == left {
            fetcher.finish(planned, None)?;
        }
    }
    Ok(())
}

/// Fetches what one sibling has; what it does not know is handed back.
fn from_sibling(
    fetcher: &Fetcher<'_>,
    origin: &Origin,
    tree: &Tree,
    files: &[Planned],
    missing: Vec<Missing>,
    count: usize,
) -> Result<Vec<Missing>> {
    let mut by_file: HashMap<u32, Vec<Missing>> = HashMap::new();
    for one in missing {
        by_file.entry(one.file).or_default().push(one);
    }
    let paths = by_file.keys().filter_map(|file| {
        files.get(*file as usize).map(|planned| (planned.path.as_slice(), *file))
    });
    let entries = entries_of(fetcher, origin, tree, paths.collect())?;
    let mut unknown = Vec::new();
    let mut wanted: Vec<Wanted> = Vec::new();
    let mut asked: u64 = 0;
    let mut helped: u64 = 0;
    for (file, ranges) in by_file {
        let Some(planned) = files.get(file as usize) else { continue };
        let entry =
            entries.get(&file).filter(|entry| entry.may_stand_for(planned.size, &planned.meta));
        let pieces = entry.map(|entry| pieces(tree, entry, &ranges));
        let pieces = match pieces {
            Some(Ok(pieces)) => pieces,
            Some(Err(error)) if Fallback::helps_with(&error) => {
                if let Some(fallback) = fetcher.fallback {
                    fallback.lacks(origin.source, "a leaf of an extent map", &error);
                }
                unknown.extend(ranges);
                continue;
            }
            Some(Err(error)) => return Err(error),
            None => {
                unknown.extend(ranges);
                continue;
            }
        };
        helped += 1;
        // Counted in before what it stands for is counted out, so that nobody finishes the file.
        let number = u32::try_from(pieces.extents.len()).unwrap_or(u32::MAX);
        planned.left.fetch_add(number, AcqRel);
        for extent in pieces.extents.iter().copied() {
            asked += u64::from(extent.length);
            let location = origin.index.find(&extent.chunk).ok().flatten().unwrap_or(NOWHERE);
            wanted.push(Wanted { location, file, extent });
        }
        asked += fill(fetcher, planned, &pieces)?;
        let left: u32 = ranges.iter().map(|one| one.left).sum();
        if planned.left.fetch_sub(left, AcqRel) == left {
            // What was written before stays: the file must not pass for one without content.
            let file = fetcher
                .begin(planned)
                .map_err(|error| RepoError::io("restore", display(&planned.path), error))?;
            fetcher.finish(planned, Some(&file))?;
        }
    }
    wanted.sort_unstable_by_key(|w| (w.location, w.file, w.extent.offset));
    let before: u64 = missed(fetcher);
    fetcher.fetch_all(origin, files, &wanted, count)?;
    if let Some(fallback) = fetcher.fallback {
        let bytes = asked.saturating_sub(missed(fetcher).saturating_sub(before));
        if bytes > 0 {
            fallback.supplied(origin.source, helped, bytes);
        }
    }
    Ok(unknown)
}

/// Bytes that are missing now.
fn missed(fetcher: &Fetcher<'_>) -> u64 {
    let missing = fetcher.missing.lock().unwrap_or_else(|e| e.into_inner());
    missing.iter().map(|one| one.range.end - one.range.start).sum()
}

/// The sibling's entries of the files, by their number; those that it does not have are left out.
fn entries_of(
    fetcher: &Fetcher<'_>,
    origin: &Origin,
    tree: &Tree,
    paths: HashMap<&[u8], u32>,
) -> Result<HashMap<u32, Entry>> {
    let note = |error: &RepoError| {
        if let Some(fallback) = fetcher.fallback {
            fallback.lacks(origin.source, "a node of the tree", error);
        }
    };
    let mut entries = HashMap::new();
    if paths.len() <= LOOKED_UP {
        for (path, file) in paths {
            match with_content(tree, tree.get(path)) {
                Ok(Some(entry)) => drop(entries.insert(file, entry)),
                Ok(None) => {}
                Err(error) if Fallback::helps_with(&error) => note(&error),
                Err(error) => return Err(error),
            }
        }
        return Ok(entries);
    }
    for entry in tree.iter_past_damage() {
        fetcher.progress.check()?;
        match entry {
            Ok(entry) => {
                let Some(file) = paths.get(entry.path.as_slice()).copied() else { continue };
                match with_content(tree, Ok(Some(entry))) {
                    Ok(Some(entry)) => drop(entries.insert(file, entry)),
                    Ok(None) => {}
                    Err(error) if Fallback::helps_with(&error) => note(&error),
                    Err(error) => return Err(error),
                }
            }
            Err(error) if Fallback::helps_with(&error) => {
                note(&error);
                if !error.is_about_an_object() {
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(entries)
}

/// The entry that holds the content: of a file with several names that is the first.
fn with_content(tree: &Tree, entry: Result<Option<Entry>>) -> Result<Option<Entry>> {
    match entry? {
        Some(Entry { kind: EntryKind::Hardlink { to }, .. }) => tree.get(&to),
        entry => Ok(entry),
    }
}

/// What a sibling has of the ranges of one file.
#[derive(Default)]
struct Pieces {
    extents: Vec<Extent>,
    /// Where it has a hole.
    holes: Vec<(u64, u64)>,
    /// Where it has the bytes themselves.
    inline: Vec<(u64, Vec<u8>)>,
}

fn pieces(tree: &Tree, entry: &Entry, ranges: &[Missing]) -> Result<Pieces> {
    let mut pieces = Pieces::default();
    let EntryKind::File(content) = &entry.kind else { return Ok(pieces) };
    if let Body::Inline(bytes) = &content.body {
        for Missing { range, .. } in ranges {
            let part = bytes.get(range.start as usize..range.end as usize);
            pieces.inline.push((range.start, part.unwrap_or_default().to_vec()));
        }
        return Ok(pieces);
    }
    let extents = tree.extents(content)?;
    for Missing { range, .. } in ranges {
        let mut at = range.start;
        let first = extents.partition_point(|e| e.offset + u64::from(e.length) <= range.start);
        for extent in extents.get(first..).unwrap_or_default() {
            if extent.offset >= range.end {
                break;
            }
            let from = extent.offset.max(range.start);
            let to = (extent.offset + u64::from(extent.length)).min(range.end);
            if from > at {
                pieces.holes.push((at, from));
            }
            pieces.extents.push(Extent {
                offset: from,
                length: (to - from) as u32,
                chunk: extent.chunk,
                chunk_offset: extent.chunk_offset + (from - extent.offset) as u32,
            });
            at = to;
        }
        if at < range.end {
            pieces.holes.push((at, range.end));
        }
    }
    Ok(pieces)
}

/// Writes what needs no chunk; how many bytes that was.
fn fill(fetcher: &Fetcher<'_>, planned: &Planned, pieces: &Pieces) -> Result<u64> {
    // A file that this restore has created has holes wherever nobody wrote.
    let holes = if planned.exists { pieces.holes.as_slice() } else { &[] };
    if holes.is_empty() && pieces.inline.is_empty() {
        return Ok(0);
    }
    let written = AtomicU64::new(0);
    let write = || -> std::io::Result<()> {
        use std::os::unix::fs::FileExt;
        let file = fetcher.begin(planned)?;
        for (from, to) in holes {
            make_hole(&file, *from, *to)?;
        }
        for (at, bytes) in &pieces.inline {
            file.write_all_at(bytes, *at)?;
            written.fetch_add(bytes.len() as u64, Relaxed);
        }
        Ok(())
    };
    write().map_err(|error| RepoError::io("restore", display(&planned.path), error))?;
    fetcher.counters.bytes_written.fetch_add(written.load(Relaxed), Relaxed);
    Ok(written.into_inner())
}
