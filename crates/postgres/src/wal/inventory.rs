//! What an archive holds, by timeline and number, and reading its segments along a history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::files::Files;
use super::reader::Segment;
use super::{History, SegmentName, SegmentSize, WalName, check_segment};
use crate::{PostgresError, PostgresErrorKind, Result};

/// Segments and histories of one cluster, as a listing of its archive gives them.
#[derive(Debug, Clone)]
pub struct Inventory {
    size: SegmentSize,
    segments: BTreeMap<u32, BTreeMap<u64, Option<SystemTime>>>,
    histories: BTreeSet<u32>,
    partials: BTreeSet<SegmentName>,
    /// Names that no cluster with segments of this size has.
    misfits: BTreeSet<SegmentName>,
}

impl Inventory {
    /// Lists the archive of a cluster whose segments have `size`.
    pub fn read(archive: &dyn Files, size: SegmentSize) -> Result<Self> {
        let files = archive.names()?;
        Ok(Self::of(size, files.iter().map(|(name, modified)| (name.as_str(), *modified))))
    }

    /// The inventory of these files; names that are none of a WAL file are passed over.
    pub fn of<'a>(
        size: SegmentSize,
        files: impl IntoIterator<Item = (&'a str, Option<SystemTime>)>,
    ) -> Self {
        let mut it = Self {
            size,
            segments: BTreeMap::new(),
            histories: BTreeSet::new(),
            partials: BTreeSet::new(),
            misfits: BTreeSet::new(),
        };
        for (name, modified) in files {
            match name.parse() {
                Ok(WalName::Segment(name)) => {
                    if let Some(number) = name.number(size) {
                        it.segments.entry(name.timeline()).or_default().insert(number, modified);
                    } else {
                        it.misfits.insert(name);
                    }
                }
                Ok(WalName::History(timeline)) => {
                    it.histories.insert(timeline);
                }
                // PostgreSQL never asks for a partial segment, so none counts as being there.
                Ok(WalName::Partial(name)) => {
                    it.partials.insert(name);
                }
                Ok(WalName::Backup(..)) | Err(_) => {}
            }
        }
        it
    }

    pub fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// Every timeline with a segment or a history.
    pub fn timelines(&self) -> Vec<u32> {
        let mut all: BTreeSet<u32> = self.segments.keys().copied().collect();
        all.extend(&self.histories);
        all.into_iter().collect()
    }

    pub fn has_history(&self, timeline: u32) -> bool {
        self.histories.contains(&timeline)
    }

    /// The segments of a timeline, by number, with the store's time of their creation.
    pub fn segments(&self, timeline: u32) -> impl Iterator<Item = (u64, Option<SystemTime>)> {
        self.segments.get(&timeline).into_iter().flatten().map(|(n, time)| (*n, *time))
    }

    /// Segments of which there are parts; a whole one may be beside it.
    pub fn partials(&self) -> impl Iterator<Item = SegmentName> {
        self.partials.iter().copied()
    }

    /// The first of the segments that cannot be of a cluster with this segment size, and how many
    /// there are.
    pub fn misfits(&self) -> Option<(SegmentName, u64)> {
        Some((*self.misfits.first()?, self.misfits.len() as u64))
    }

    pub fn modified(&self, name: SegmentName) -> Option<SystemTime> {
        *self.segments.get(&name.timeline())?.get(&name.number(self.size)?)?
    }

    /// The file that recovery along `history` would take for segment `number`.
    pub fn locate(&self, history: &History, number: u64) -> Option<SegmentName> {
        history
            .timelines_of(number, self.size)
            .into_iter()
            .find(|timeline| {
                self.segments.get(timeline).is_some_and(|numbers| numbers.contains_key(&number))
            })
            .and_then(|timeline| SegmentName::new(timeline, number, self.size))
    }

    /// The last of the segments from `first` on that follow one another along `history`; none when
    /// `first` itself is missing.
    pub fn unbroken_from(&self, history: &History, first: u64) -> Option<u64> {
        (first..).take_while(|&number| self.locate(history, number).is_some()).last()
    }

    /// The last segments that follow one another along `history`, up to the newest: the number of
    /// the first and of the last.
    pub fn newest_run(&self, history: &History) -> Option<(u64, u64)> {
        let timelines =
            history.ancestors().iter().map(|switch| switch.timeline).chain([history.timeline()]);
        let last = timelines
            .filter_map(|timeline| self.segments.get(&timeline))
            .flat_map(|numbers| numbers.keys().copied())
            .filter(|number| self.locate(history, *number).is_some())
            .max()?;
        let there = |number: &u64| self.locate(history, *number).is_some();
        let first = (0..=last).rev().take_while(there).last()?;
        Some((first, last))
    }

    /// The first segment behind `number` that is there, along `history`.
    pub fn next_after(&self, history: &History, number: u64) -> Option<SegmentName> {
        let timelines =
            || history.ancestors().iter().map(|switch| switch.timeline).chain([history.timeline()]);
        timelines()
            .filter_map(|timeline| self.segments.get(&timeline))
            .flat_map(|numbers| numbers.range(number.saturating_add(1)..).map(|(n, _)| *n))
            .filter_map(|number| self.locate(history, number))
            .min_by_key(|name| name.number(self.size))
    }

    /// The timeline that recovery takes for the newest, from `timeline` on: PostgreSQL counts
    /// upwards for as long as there are history files (`findNewestTimeLine`).
    pub fn newest_timeline(&self, timeline: u32) -> u32 {
        (timeline..)
            .take_while(|&next| next == timeline || self.histories.contains(&next))
            .last()
            .unwrap_or(timeline)
    }
}

/// The history of `timeline`; without ancestors when the archive has none of it.
pub fn read_history(archive: &dyn Files, timeline: u32) -> Result<History> {
    let name = WalName::History(timeline).to_string();
    match archive.read(&name)? {
        Some(content) => History::parse(timeline, &content).map_err(|error| {
            PostgresError::new(PostgresErrorKind::Damaged, error.to_string()).with_source(error)
        }),
        None => Ok(History::first(timeline)),
    }
}

/// Reads segments along a history, several at once, and keeps those it may be asked for again.
pub(crate) struct Segments<'a> {
    archive: &'a dyn Files,
    inventory: &'a Inventory,
    history: &'a History,
    /// Nothing behind this one is read.
    last: u64,
    /// How many are fetched at once.
    batch: u64,
    kept: BTreeMap<u64, Segment>,
    fetched: u64,
}

impl<'a> Segments<'a> {
    pub(crate) fn new(
        archive: &'a dyn Files,
        inventory: &'a Inventory,
        history: &'a History,
        last: u64,
        batch: usize,
    ) -> Self {
        let batch = batch.max(1) as u64;
        Self { archive, inventory, history, last, batch, kept: BTreeMap::new(), fetched: 0 }
    }

    /// Segments fetched so far.
    pub(crate) fn fetched(&self) -> u64 {
        self.fetched
    }

    /// Segment `number`; none behind the last one, and where one is missing.
    pub(crate) fn get(&mut self, number: u64) -> Result<Option<Segment>> {
        if let Some(segment) = self.kept.get(&number) {
            return Ok(Some(segment.clone()));
        }
        let mut names = Vec::new();
        for next in (number..=self.last).take(self.batch as usize) {
            let Some(name) = self.inventory.locate(self.history, next) else { break };
            names.push((next, name));
        }
        // What is asked for next is this one, the one behind it, or the one before it.
        self.kept.retain(|&kept, _| kept.abs_diff(number) <= 1);
        let archive = self.archive;
        let fetched: Vec<Result<(u64, Segment)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = names
                .iter()
                .skip(1)
                .map(|&(number, name)| scope.spawn(move || fetch(archive, number, name)))
                .collect();
            let first = names.first().map(|&(number, name)| fetch(archive, number, name));
            let others = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| {
                    Err(PostgresError::new(
                        PostgresErrorKind::Io,
                        "a thread that read the archive panicked",
                    ))
                })
            });
            first.into_iter().chain(others).collect()
        });
        for (index, result) in fetched.into_iter().enumerate() {
            match result {
                Ok((number, segment)) => {
                    self.fetched += 1;
                    self.kept.insert(number, segment);
                }
                // Only the one that was asked for may fail the caller; others may never be needed.
                Err(error) if index == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(self.kept.get(&number).cloned())
    }
}

fn fetch(archive: &dyn Files, number: u64, name: SegmentName) -> Result<(u64, Segment)> {
    let content = archive.read(&name.to_string())?.ok_or_else(|| {
        PostgresError::new(
            PostgresErrorKind::Archive,
            format!("the WAL segment {name} was removed from the archive while it was read"),
        )
        .with_hint("run the same command again")
    })?;
    check_segment(name, &content, archive.system_identifier())?;
    Ok((number, Segment { timeline: name.timeline(), content: Arc::new(content) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(names: &[&str]) -> Inventory {
        Inventory::of(SegmentSize::MIN, names.iter().map(|name| (*name, None)))
    }

    #[test]
    fn takes_the_younger_timelines_file_where_both_have_one() {
        let found = inventory(&[
            "000000010000000000000001",
            "000000010000000000000002",
            "000000010000000000000003",
            "000000020000000000000003",
            "000000020000000000000004",
            "000000010000000000000004",
            "00000002.history",
            "000000010000000000000009.partial",
            "not-wal",
        ]);
        let history = History::parse(2, b"1\t0/380000\tx").unwrap();
        let name = |number| found.locate(&history, number).map(|name| name.to_string());
        assert_eq!(name(2).as_deref(), Some("000000010000000000000002"));
        assert_eq!(name(3).as_deref(), Some("000000020000000000000003"));
        assert_eq!(name(4).as_deref(), Some("000000020000000000000004"));
        assert_eq!(name(5), None);
        assert_eq!(found.unbroken_from(&history, 1), Some(4));
        assert_eq!(found.unbroken_from(&history, 5), None);
        assert_eq!(found.next_after(&history, 4), None);
        assert_eq!(found.timelines(), [1, 2]);
        // What the ancestor wrote after it was left is not on the way.
        let only_old = inventory(&["000000010000000000000004"]);
        assert_eq!(only_old.locate(&history, 4), None);
    }

    #[test]
    fn the_newest_timeline_is_found_as_postgresql_finds_it() {
        let inventory = inventory(&["00000002.history", "00000003.history", "00000005.history"]);
        assert_eq!(inventory.newest_timeline(1), 3);
        assert_eq!(inventory.newest_timeline(3), 3);
        assert_eq!(inventory.newest_timeline(4), 5);
    }
}
