//! The index: where each chunk lies.
//!
//! Sessions write segments of level 0 (`segment`), maintenance merges them into runs (`merge`), whose
//! parts (`part`) are looked up where they lie. `current` says which of these objects count, `load`
//! reads them. `sorted` has entries in memory, `filter` says of most ids that they are nowhere,
//! `object` is how small objects are sealed and kept on the local disk.
//!
//! In memory is what lists packs, 88 bytes for each; of each chunk in a run a little more than one
//! byte, the filter and the first id of each block; and the entries of segments that no run has
//! taken in, 28 bytes each. Blocks of entries stay in copies of the parts on the local disk, sealed
//! as they are in the store, and are authenticated whenever they are looked at: a lost, damaged or
//! foreign copy is found and fetched again. Without a folder for them they are in memory. Of a part that
//! much is looked up in, all entries are held in memory, opened (`part/held.rs`).

mod current;
mod filter;
mod load;
pub mod measure;
mod merge;
mod object;
mod part;
mod segment;
mod sorted;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

pub(crate) use current::{Current, Head, newest_head, number_of_head, read_head};
pub(crate) use load::{
    check_part, check_segment, empty_part, is_signed, opens_forged, parses_root, sample_of_part,
};
pub(crate) use merge::with_small_parts;
pub(crate) use object::{keep, keep_segment, open_object, open_record_of, seal_object, seal_with};
use part::{Opened, Part};
use segment::Segment;
pub(crate) use segment::{PackInfo, SEGMENT_ENTRIES, SegmentBuilder};
use sorted::Sorted;

use crate::{ObjectId, Result};

/// How often the list of segments is read again because maintenance replaced them.
pub(crate) const RELOADS: usize = 16;

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Location {
    /// Number of the pack in [`Index::pack`].
    pub pack: u32,
    pub offset: u32,
    /// With the tag.
    pub length: u32,
}

#[derive(Clone, Copy)]
struct Entry {
    id: [u8; 16],
    location: Location,
}

/// What is known of a pack. In the order in which packs are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// It was not looked for.
    Unknown,
    /// It is in the store, and has the size that it was written with.
    There,
    /// Maintenance condemned it. For a writer what it holds is absent.
    Avoided,
    /// Of a host that may only write, and not of this one. For a writer what it holds is absent.
    Foreign,
    /// It is not in the store as it was written.
    Missing,
    /// Maintenance removed it. What is said of it does not count, whatever is in the store.
    Gone,
}

impl State {
    fn of(byte: u8) -> Self {
        [Self::Unknown, Self::There, Self::Avoided, Self::Foreign, Self::Missing]
            .into_iter()
            .find(|state| *state as u8 == byte)
            .unwrap_or(Self::Gone)
    }

    /// Those that were not looked for are as good as those that are there.
    fn rank(self) -> u8 {
        (self as u8).max(Self::There as u8)
    }
}

/// A sorted list of entries in parts, and the packs that they name.
struct Run {
    /// What the keys of its parts begin with.
    name: String,
    /// In the order of their entries.
    parts: Vec<Part>,
    /// First half of the first id of each part.
    firsts: Vec<u64>,
    /// Places of the first entries of each part among all entries of the index.
    bases: Vec<usize>,
    /// Packs: number of the first in the run, how many, and number of the first in the index.
    tables: Vec<(u32, u32, u32)>,
}

impl Run {
    fn len(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    fn location(&self, entry: &segment::RawEntry) -> Option<Location> {
        let (offset, length) = (entry.offset, entry.length);
        self.tables.iter().find_map(|(first, count, base)| {
            let at = entry.pack.checked_sub(*first).filter(|at| at < count)?;
            Some(Location { pack: base + at, offset, length })
        })
    }

    fn each(&self, id: &[u8; 16], mut tell: impl FnMut(usize, Location)) -> Result<()> {
        let [a, b, c, d, e, f, g, h, ..] = *id;
        let high = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        // Entries whose ids begin alike are in one part.
        let at = self.firsts.partition_point(|first| *first <= high);
        let Some(at) = at.checked_sub(1) else { return Ok(()) };
        let Some((part, base)) = self.parts.get(at).zip(self.bases.get(at)) else { return Ok(()) };
        part.each(id, |place, entry| {
            if let Some(location) = self.location(&entry) {
                tell(base + place, location);
            }
        })
    }

    fn packs(&self) -> impl Iterator<Item = u32> + '_ {
        self.tables.iter().flat_map(|(_, count, base)| *base..base + count)
    }
}

/// All segments of a repository as one. Its entries are numbered: those in memory first, then those
/// of the runs.
#[derive(Default)]
pub(crate) struct Index {
    /// Those of segments first, then table by table those of runs, with the number of the first.
    packs: Vec<(u32, Vec<PackInfo>)>,
    states: Vec<AtomicU8>,
    entries: Sorted,
    /// The oldest first.
    runs: Vec<Run>,
    /// Why segments are left out.
    unreadable: Vec<String>,
    pub current: Current,
}

fn prefix(id: &ObjectId) -> [u8; 16] {
    id.prefix().to_be_bytes()
}

impl Index {
    fn state(&self, pack: u32) -> State {
        self.states.get(pack as usize).map_or(State::Gone, |state| State::of(state.load(Relaxed)))
    }

    fn set(&self, pack: u32, state: State) {
        if let Some(at) = self.states.get(pack as usize)
            && self.state(pack) != State::Gone
        {
            at.store(state as u8, Relaxed);
        }
    }

    /// Tells of every entry of an id that counts.
    ///
    /// # Errors
    /// A run in which it could not be looked up; it was in the others.
    fn each(&self, id: &[u8; 16], mut tell: impl FnMut(usize, Location, State)) -> Result<()> {
        let mut counts = |ordinal, location: Location| match self.state(location.pack) {
            State::Gone => {}
            state => tell(ordinal, location, state),
        };
        self.entries.each(*id).for_each(|(ordinal, location)| counts(ordinal, location));
        let looked = self.runs.iter().rev().map(|run| run.each(id, &mut counts));
        looked.fold(Ok(()), Result::and)
    }

    /// The place of a chunk among all entries, and where it is read: in a pack that is there, and
    /// not in one that is to be avoided, if that can be.
    ///
    /// # Errors
    /// It is nowhere, and a part of the index cannot be read in which it may be.
    pub fn place(&self, id: &ObjectId) -> Result<Option<(usize, Location)>> {
        self.place_of(&prefix(id))
    }

    /// The same, by the part of an id that is in the index.
    pub fn place_of(&self, prefix: &[u8; 16]) -> Result<Option<(usize, Location)>> {
        let mut best: Option<(u8, Location, usize)> = None;
        let looked = self.each(prefix, |ordinal, location, state| {
            let this = (state.rank(), location, ordinal);
            if best.is_none_or(|best| this < best) {
                best = Some(this);
            }
        });
        match best {
            Some((_, location, ordinal)) => Ok(Some((ordinal, location))),
            None => looked.map(|()| None),
        }
    }

    /// Where a chunk is read.
    pub fn find(&self, id: &ObjectId) -> Result<Option<Location>> {
        Ok(self.place(id)?.map(|(_, location)| location))
    }

    /// Everywhere a chunk lies, in the order in which it is read.
    ///
    /// # Errors
    /// As [`place`](Self::place).
    pub fn places(&self, id: &ObjectId) -> Result<Vec<Location>> {
        let mut all = Vec::new();
        let looked = self.each(&prefix(id), |_, at, state| all.push((state.rank(), at)));
        if all.is_empty() {
            looked?;
        }
        all.sort_unstable();
        all.dedup();
        Ok(all.into_iter().map(|(_, location)| location).collect())
    }

    /// Whether a chunk is in a pack that is known to be there. What cannot be looked up counts as
    /// absent: it is stored once more.
    pub fn holds(&self, id: &ObjectId) -> bool {
        let mut there = false;
        let looked = self.each(&prefix(id), |_, _, state| there |= state == State::There);
        if let Err(error) = looked {
            tracing::warn!(%error, "what the index cannot tell is stored again");
        }
        there
    }

    /// Whether a chunk is in a pack that is there, whoever wrote it.
    pub fn is_there(&self, id: &ObjectId) -> bool {
        let mut there = false;
        let looked = self.each(&prefix(id), |_, _, state| {
            there |= matches!(state, State::There | State::Foreign);
        });
        if let Err(error) = looked {
            tracing::warn!(%error, "what the index cannot tell counts as lost");
        }
        there
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len() + self.runs.iter().map(Run::len).sum::<usize>()
    }

    /// Why segments of the store are left out, a sentence each.
    pub fn unreadable(&self) -> &[String] {
        &self.unreadable
    }

    /// Whether a pack is not in the store as it was written.
    pub fn is_missing(&self, pack: u32) -> bool {
        self.state(pack) >= State::Missing
    }

    /// Whether a pack is of a host that may only write, and not of this one.
    pub fn is_foreign(&self, pack: u32) -> bool {
        self.state(pack) == State::Foreign
    }

    /// Notes that a pack is not there, so that copies of what it held are read first.
    pub fn note_missing(&self, pack: u32) {
        self.set(pack, State::Missing);
    }

    pub fn pack(&self, number: u32) -> Option<&PackInfo> {
        let table = self.packs.partition_point(|(first, _)| *first <= number).checked_sub(1)?;
        let (first, packs) = self.packs.get(table)?;
        packs.get((number - first) as usize)
    }

    /// All packs that count, by their numbers.
    pub fn packs(&self) -> impl Iterator<Item = (u32, &PackInfo)> {
        let all = self.packs.iter().flat_map(|(first, packs)| (*first..).zip(packs));
        all.filter(|(number, _)| self.state(*number) != State::Gone)
    }

    /// How many segments no run has taken in yet, and how many runs there are.
    pub fn segments(&self) -> (usize, usize) {
        let of_runs = |key: &str| crate::layout::parse_part_key(key).is_some();
        let loose = self.current.segments.iter().filter(|object| !of_runs(&object.key));
        (loose.count(), self.runs.len())
    }

    /// Every entry that counts, with its place. A chunk with copies has several.
    ///
    /// # Errors
    /// A part that cannot be read any more. It is the last thing that is told then.
    pub fn locations(&self) -> impl Iterator<Item = Result<(usize, [u8; 16], Location)>> + '_ {
        let memory =
            (0..).zip(self.entries.iter()).map(|(at, entry)| (at, entry.id, entry.location));
        let memory = memory.map(Ok);
        let of_runs = self.runs.iter().flat_map(|run| {
            run.parts.iter().zip(&run.bases).flat_map(move |(part, base)| {
                (*base..).zip(part.iter()).filter_map(move |(ordinal, entry)| {
                    let located = entry.map(|entry| {
                        run.location(&entry).map(|location| (ordinal, entry.id, location))
                    });
                    located.transpose()
                })
            })
        });
        memory.chain(of_runs).filter(|entry| {
            entry.as_ref().map_or(true, |(_, _, at)| self.state(at.pack) != State::Gone)
        })
    }

    /// Calls for every chunk of which there is more than one entry, with the place of the one that
    /// is read, the first half of its id, where it is, and the locations of the others.
    ///
    /// # Errors
    /// As [`locations`](Self::locations).
    pub fn copies(
        &self,
        mut tell: impl FnMut(usize, &[u8; 16], Location, &[Location]),
    ) -> Result<()> {
        let mut groups = self.groups()?;
        let (mut group, mut others) = (Vec::new(), Vec::new());
        while let Some(id) = groups.next_into(&mut group)? {
            if group.len() < 2 {
                continue;
            }
            let mut all: Vec<_> = group
                .iter()
                .map(|(ordinal, at)| (self.state(at.pack).rank(), *at, *ordinal))
                .filter(|(rank, ..)| *rank < State::Gone as u8)
                .collect();
            all.sort_unstable();
            let Some(((_, first, ordinal), rest)) = all.split_first() else { continue };
            others.clear();
            others.extend(rest.iter().map(|(_, at, _)| *at).filter(|at| at != first));
            others.dedup();
            if !others.is_empty() {
                tell(*ordinal, &id, *first, &others);
            }
        }
        Ok(())
    }
}
