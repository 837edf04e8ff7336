//! What an archive holds, by timeline and number, and reading its segments along a history.
//!
//! A segment that is nowhere whole may have begun: a receiver shipped slices of it. Recovery is given
//! those, and stops where they end; so they count where the question is what can be recovered, and
//! nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::files::Files;
use super::reader::Segment;
use super::{History, Lsn, SegmentName, SegmentSize, WalName, check_segment};
use crate::{PostgresError, PostgresErrorKind, Result};
use backstay_repo::Slice;

/// Segments and histories of one cluster, as a listing of its archive gives them.
#[derive(Debug, Clone)]
pub struct Inventory {
    size: SegmentSize,
    segments: BTreeMap<u32, BTreeMap<u64, Option<SystemTime>>>,
    histories: BTreeSet<u32>,
    partials: BTreeSet<SegmentName>,
    /// Those that are nowhere whole, where slices count.
    begun: BTreeMap<u32, BTreeMap<u64, Begun>>,
    /// Names that no cluster with segments of this size has.
    misfits: BTreeSet<SegmentName>,
}

/// How far the slices of a segment reach from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    pub bytes: u32,
    /// When the last of them came, by the store's clock.
    pub modified: Option<SystemTime>,
}

impl Begun {
    /// Of slices with the times of their creation; none where they do not reach the beginning.
    fn of(mut slices: Vec<(Slice, Option<SystemTime>)>) -> Option<Self> {
        slices.sort_unstable();
        let mut begun = Self { bytes: 0, modified: None };
        for (slice, modified) in slices {
            if slice.start > begun.bytes {
                break;
            }
            if slice.end > begun.bytes {
                begun = Self { bytes: slice.end, modified: begun.modified.max(modified) };
            }
        }
        (begun.bytes > 0).then_some(begun)
    }
}

impl Inventory {
    /// The same as [`read`](Self::read), with segments that have only begun.
    pub fn read_with_begun(archive: &dyn Files, size: SegmentSize) -> Result<Self> {
        let files = archive.names()?;
        let mut it =
            Self::of(size, files.iter().map(|(name, modified)| (name.as_str(), *modified)));
        let mut slices: BTreeMap<SegmentName, Vec<(Slice, Option<SystemTime>)>> = BTreeMap::new();
        for (name, modified) in &files {
            if let Some((segment, slice)) = Slice::parse(name)
                && let Ok(segment) = segment.parse()
            {
                slices.entry(segment).or_default().push((slice, *modified));
            }
        }
        for (name, slices) in slices {
            let whole = |number: &u64| {
                it.segments.get(&name.timeline()).is_some_and(|there| there.contains_key(number))
            };
            if let Some(number) = name.number(size).filter(|number| !whole(number))
                && let Some(begun) = Begun::of(slices)
            {
                it.begun.entry(name.timeline()).or_default().insert(number, begun);
            }
        }
        Ok(it)
    }

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
            begun: BTreeMap::new(),
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
        let number = name.number(self.size)?;
        match self.begun(name) {
            Some(begun) => begun.modified,
            None => *self.segments.get(&name.timeline())?.get(&number)?,
        }
    }

    /// How far a segment has come that is nowhere whole.
    pub fn begun(&self, name: SegmentName) -> Option<Begun> {
        self.begun.get(&name.timeline())?.get(&name.number(self.size)?).copied()
    }

    fn has(&self, timeline: u32, number: u64) -> bool {
        self.segments.get(&timeline).is_some_and(|numbers| numbers.contains_key(&number))
            || self.begun.get(&timeline).is_some_and(|numbers| numbers.contains_key(&number))
    }

    /// The numbers of a timeline's segments from `first` on, whole or begun.
    fn numbers(&self, timeline: u32, first: u64) -> impl Iterator<Item = u64> {
        let whole = self.segments.get(&timeline).into_iter().flat_map(move |n| n.range(first..));
        let begun = self.begun.get(&timeline).into_iter().flat_map(move |n| n.range(first..));
        whole.map(|(number, _)| *number).chain(begun.map(|(number, _)| *number))
    }

    /// The file that recovery along `history` would take for segment `number`.
    pub fn locate(&self, history: &History, number: u64) -> Option<SegmentName> {
        history
            .timelines_of(number, self.size)
            .into_iter()
            .find(|timeline| self.has(*timeline, number))
            .and_then(|timeline| SegmentName::new(timeline, number, self.size))
    }

    /// The last of the segments from `first` on that follow one another along `history`; none when
    /// `first` itself is missing.
    ///
    /// Nothing follows one that has only begun, nor the rest of a segment on a timeline that was left
    /// in it: the beginning of the next timeline is in that one's own file.
    pub fn unbroken_from(&self, history: &History, first: u64) -> Option<u64> {
        let mut last = None;
        for number in first.. {
            if self.locate(history, number).is_none() {
                break;
            }
            last = Some(number);
            if self.lacking(history, number) == self.youngest(history, number) {
                break;
            }
        }
        last
    }

    /// The file that recovery along `history` wants for a segment.
    fn youngest(&self, history: &History, number: u64) -> Option<SegmentName> {
        let timelines = history.timelines_of(number, self.size);
        let timeline = timelines.first().copied().unwrap_or(history.timeline());
        SegmentName::new(timeline, number, self.size)
    }

    /// The file that recovery lacks to go on from segment `last`, whether there is one after it or
    /// not: the segment itself, where it is not there whole and of the youngest timeline, or the next.
    pub fn lacking(&self, history: &History, last: u64) -> Option<SegmentName> {
        let own = self.youngest(history, last)?;
        let whole = self.locate(history, last) == Some(own) && self.begun(own).is_none();
        if whole { self.youngest(history, last.saturating_add(1)) } else { Some(own) }
    }

    /// The file whose absence ends recovery in segment `last`, although there is later WAL.
    pub fn broken_by(&self, history: &History, last: u64) -> Option<SegmentName> {
        self.next_after(history, last)?;
        self.lacking(history, last)
    }

    /// Where what can be had of segment `last` along `history` ends.
    pub fn end_of(&self, history: &History, last: u64) -> Lsn {
        let behind = self.size.start_of(last.saturating_add(1)).unwrap_or(Lsn(u64::MAX));
        let Some(name) = self.locate(history, last) else { return behind };
        let begun = self.begun(name).and_then(|begun| {
            let start = self.size.start_of(last)?;
            Some(Lsn(start.0.saturating_add(u64::from(begun.bytes))))
        });
        let left = history.end_of(name.timeline());
        behind.min(begun.unwrap_or(behind)).min(left.unwrap_or(behind))
    }

    /// The last segments that follow one another along `history`, up to the newest: the number of
    /// the first and of the last.
    pub fn newest_run(&self, history: &History) -> Option<(u64, u64)> {
        let timelines =
            history.ancestors().iter().map(|switch| switch.timeline).chain([history.timeline()]);
        let last = timelines
            .flat_map(|timeline| self.numbers(timeline, 0))
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
            .flat_map(|timeline| self.numbers(timeline, number.saturating_add(1)))
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
        let (archive, inventory, history) = (self.archive, self.inventory, self.history);
        let fetch = |number, name| fetch(archive, inventory, history, number, name);
        let fetch = &fetch;
        let fetched: Vec<Result<(u64, Segment)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = names
                .iter()
                .skip(1)
                .map(|&(number, name)| scope.spawn(move || fetch(number, name)))
                .collect();
            let first = names.first().map(|&(number, name)| fetch(number, name));
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

/// A segment as recovery is given it: with zeros behind what has come of it, and behind where its
/// timeline was left.
fn fetch(
    archive: &dyn Files,
    inventory: &Inventory,
    history: &History,
    number: u64,
    name: SegmentName,
) -> Result<(u64, Segment)> {
    let size = inventory.segment_size();
    let text = name.to_string();
    let content = match archive.read(&text)? {
        None if inventory.begun(name).is_some() => archive.begun(&text)?.map(|mut content| {
            content.resize(content.len().max(size.bytes() as usize), 0);
            content
        }),
        content => content,
    };
    let mut content = content.ok_or_else(|| {
        PostgresError::new(
            PostgresErrorKind::Archive,
            format!("the WAL segment {name} was removed from the archive while it was read"),
        )
        .with_hint("run the same command again")
    })?;
    check_segment(name, &content, archive.system_identifier())?;
    if let (Some(left), Some(start)) = (history.end_of(name.timeline()), size.start_of(number)) {
        let kept = usize::try_from(left.since(start)).unwrap_or(usize::MAX);
        if let Some(rest) = content.get_mut(kept..) {
            rest.fill(0);
        }
    }
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
    fn a_timeline_that_lacks_its_first_segment_is_broken_there() {
        let mut names = vec![
            "000000010000000000000002",
            "000000010000000000000003",
            "000000010000000000000004",
            "00000002.history",
        ];
        let history = History::parse(2, b"1\t0/380000\tx").unwrap();
        let lacks = |names: &[&str]| {
            let found = inventory(names);
            let last = found.unbroken_from(&history, 2).unwrap();
            let broken = found.broken_by(&history, last).map(|name| name.to_string());
            (last, broken, found.end_of(&history, last))
        };
        // Nothing of the new timeline is known: recovery goes as far as where it began.
        assert_eq!(lacks(&names), (3, None, Lsn(0x38_0000)));
        // The rest of the segment in which it began is missing, and there is more behind it.
        names.push("000000020000000000000004");
        let first = Some("000000020000000000000003".to_owned());
        assert_eq!(lacks(&names), (3, first, Lsn(0x38_0000)));
        names.push("000000020000000000000003");
        assert_eq!(lacks(&names), (4, None, Lsn(0x50_0000)));
    }

    #[test]
    fn what_has_begun_counts_up_to_the_first_hole_and_nothing_follows_it() {
        struct Named(Vec<String>);
        impl Files for Named {
            fn names(&self) -> Result<Vec<(String, Option<SystemTime>)>> {
                Ok(self.0.iter().map(|name| (name.clone(), None)).collect())
            }
            fn read(&self, _: &str) -> Result<Option<Vec<u8>>> {
                Ok(None)
            }
            fn system_identifier(&self) -> Option<u64> {
                None
            }
            fn segment_size(&self) -> Result<Option<SegmentSize>> {
                Ok(None)
            }
        }
        let slice = |segment: &str, start, end| Slice { start, end }.name(segment);
        let (one, two) = ("000000010000000000000001", "000000010000000000000002");
        let three = "000000010000000000000003";
        let mut files = Named(vec![
            one.into(),
            slice(one, 0, 500),
            slice(two, 200, 700),
            slice(two, 0, 300),
            slice(two, 800, 900),
            slice(three, 8, 16),
        ]);
        let history = History::first(1);
        let end = |files: &Named| {
            let found = Inventory::read_with_begun(files, SegmentSize::MIN).unwrap();
            let last = found.unbroken_from(&history, 1).unwrap();
            let broken = found.broken_by(&history, last).map(|name| name.to_string());
            (last, found.end_of(&history, last), broken)
        };
        assert_eq!(end(&files), (2, Lsn(0x20_0000 + 700), None));
        assert_eq!(inventory(&[one]).unbroken_from(&history, 1), Some(1));
        files.0.push(three.into());
        assert_eq!(end(&files), (2, Lsn(0x20_0000 + 700), Some(two.to_owned())));
        files.0.push(two.into());
        assert_eq!(end(&files), (3, Lsn(0x40_0000), None));
    }

    #[test]
    fn the_newest_timeline_is_found_as_postgresql_finds_it() {
        let inventory = inventory(&["00000002.history", "00000003.history", "00000005.history"]);
        assert_eq!(inventory.newest_timeline(1), 3);
        assert_eq!(inventory.newest_timeline(3), 3);
        assert_eq!(inventory.newest_timeline(4), 5);
    }
}
