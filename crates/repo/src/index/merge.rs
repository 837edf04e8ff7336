//! Merging: segments and small runs become one run.
//!
//! The newest runs are taken, as long as each has at most as many entries as all that is taken
//! already, or [`SMALL`]. So a run that stays has more entries than all newer ones together: there
//! are log₂(entries / SMALL) runs and one at most, and an entry, once it is in a run larger than
//! that, is written again only when its run at least doubles. With 100 million entries that is eight
//! times at most. What is written besides, for a small merge, is one part at most.
//!
//! Packs that were removed and that a run names which is left alone are in the head: what is said of
//! them does not count. When they are an eighth of all packs, everything is merged.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::OnceLock;

use backstay_store::Environment;
use bytes::Bytes;

use super::segment::RawEntry;
use super::*;
use crate::crypto::Keys;
use crate::layout::part_key;

/// Runs with fewer entries are merged whenever something is.
const SMALL: usize = 1 << 19;

/// How large things become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Entries of runs that are merged whenever something is.
    pub small: usize,
    /// Entries of a part.
    pub entries: usize,
    /// Packs of a part.
    pub packs: usize,
}

pub(super) const SIZES: Sizes = Sizes { small: SMALL, entries: 1 << 20, packs: 1 << 18 };
/// Instead of [`SIZES`], in tests that have no million chunks.
static SIZES_OF_TESTS: OnceLock<Sizes> = OnceLock::new();

/// For [`internals`](crate::internals).
pub(crate) fn with_small_parts(entries: usize, packs: usize) {
    let _ = SIZES_OF_TESTS.set(Sizes { small: entries, entries, packs });
}

/// The share of packs that are gone from which on all runs are written anew.
const GONE: usize = 8;

type Item = ([u8; 16], usize, Location);

/// All entries by id, those of one id together.
pub(crate) struct Groups<'i> {
    sources: Vec<Box<dyn Iterator<Item = Result<Item>> + 'i>>,
    /// The next of each source.
    heap: BinaryHeap<Reverse<(Item, usize)>>,
}

impl<'i> Groups<'i> {
    fn of(sources: Vec<Box<dyn Iterator<Item = Result<Item>> + 'i>>) -> Result<Self> {
        let mut groups = Self { sources, heap: BinaryHeap::new() };
        (0..groups.sources.len()).try_for_each(|source| groups.advance(source))?;
        Ok(groups)
    }

    fn advance(&mut self, source: usize) -> Result<()> {
        if let Some(item) = self.sources.get_mut(source).and_then(Iterator::next) {
            self.heap.push(Reverse((item?, source)));
        }
        Ok(())
    }

    /// Puts the places and locations of the next id over `group`.
    pub fn next_into(&mut self, group: &mut Vec<(usize, Location)>) -> Result<Option<[u8; 16]>> {
        group.clear();
        let Some(Reverse(((id, ..), _))) = self.heap.peek() else { return Ok(None) };
        let id = *id;
        while let Some(Reverse(((next, ordinal, location), source))) = self.heap.peek().copied() {
            if next != id {
                break;
            }
            group.push((ordinal, location));
            self.heap.pop();
            self.advance(source)?;
        }
        Ok(Some(id))
    }
}

/// What a merge wrote and what it left alone.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    /// Keys of the parts of all runs that are the index now.
    pub segments: Vec<String>,
    pub gone: Vec<[u8; 16]>,
}

/// Where a merge puts its parts.
pub(super) struct Writer<'w> {
    keys: &'w Keys,
    env: &'w Environment,
    number: u64,
    run: [u8; 16],
    part: u32,
    create: &'w mut dyn FnMut(&str, Bytes) -> Result<()>,
    pub segments: Vec<String>,
}

impl<'w> Writer<'w> {
    pub fn new(
        keys: &'w Keys,
        env: &'w Environment,
        number: u64,
        create: &'w mut dyn FnMut(&str, Bytes) -> Result<()>,
    ) -> Self {
        Self { keys, env, number, run: env.random(), part: 0, create, segments: Vec::new() }
    }

    pub fn write(&mut self, first: usize, packs: &[PackInfo], entries: &[RawEntry]) -> Result<()> {
        let key = part_key(self.number, &self.run, self.part);
        let id = self.env.random();
        let object = Part::seal(self.keys, id, &key, first as u32, packs, entries);
        (self.create)(&key, object)?;
        self.part += 1;
        self.segments.push(key);
        Ok(())
    }
}

/// How many of the newest runs are merged with `fresh` entries. `sizes` are those of all runs, the
/// oldest first.
fn taken(sizes: &[usize], fresh: usize, least: usize) -> usize {
    let mut sum = fresh;
    let newest = sizes.iter().rev();
    let taken = newest.take_while(|size| {
        let small = **size <= sum.max(least);
        sum += **size;
        small
    });
    taken.count()
}

impl Index {
    pub(super) fn groups(&self) -> Result<Groups<'_>> {
        self.groups_of(&self.runs)
    }

    /// Of the entries in memory and of some runs.
    fn groups_of<'i>(&'i self, runs: &'i [Run]) -> Result<Groups<'i>> {
        let memory = (0..).zip(self.entries.iter());
        let memory = memory.map(|(at, entry)| Ok((entry.id, at, entry.location)));
        let mut sources: Vec<Box<dyn Iterator<Item = Result<Item>>>> = vec![Box::new(memory)];
        for run in runs {
            let entries = run.parts.iter().zip(&run.bases).flat_map(|(part, base)| {
                (*base..).zip(part.iter()).map(|(at, entry)| entry.map(|entry| (at, entry)))
            });
            // One whose pack is in no table is nothing to go by.
            let located = entries.filter_map(|entry| {
                let located = entry.map(|(at, entry)| {
                    run.location(&entry).map(|location| (entry.id, at, location))
                });
                located.transpose()
            });
            sources.push(Box::new(located));
        }
        Groups::of(sources)
    }

    /// Writes what is in memory and some runs as a new run, without the packs `removed`. Hands each
    /// object to `create`.
    ///
    /// # Errors
    /// A part that cannot be read, and what `create` says.
    pub fn merge(
        &self,
        removed: &HashSet<[u8; 16]>,
        keys: &Keys,
        env: &Environment,
        number: u64,
        create: &mut dyn FnMut(&str, Bytes) -> Result<()>,
    ) -> Result<Merged> {
        let sizes = *SIZES_OF_TESTS.get().unwrap_or(&SIZES);
        self.merge_with(sizes, removed, keys, env, number, create)
    }

    pub(super) fn merge_with(
        &self,
        sizes: Sizes,
        removed: &HashSet<[u8; 16]>,
        keys: &Keys,
        env: &Environment,
        number: u64,
        create: &mut dyn FnMut(&str, Bytes) -> Result<()>,
    ) -> Result<Merged> {
        let Sizes { small, entries: of_part, packs: of_table } = sizes;
        let sizes: Vec<usize> = self.runs.iter().map(Run::len).collect();
        let mut left = self.runs.len() - taken(&sizes, self.entries.len(), small);
        let is_gone = |number: &u32| {
            let removed = self.pack(*number).is_none_or(|pack| removed.contains(&pack.id));
            removed || self.state(*number) == State::Gone
        };
        let gone = |runs: &[Run]| -> Vec<u32> {
            runs.iter().flat_map(Run::packs).filter(is_gone).collect()
        };
        let mut still = gone(self.runs.get(..left).unwrap_or_default());
        if still.len() > self.states.len() / GONE {
            (left, still) = (0, Vec::new());
        }
        let (kept, runs) = self.runs.split_at_checked(left).unwrap_or_default();

        // The packs of the new run, each once, and their numbers there.
        let of_segments = self.packs.first().map_or(0, |(_, packs)| packs.len() as u32);
        let mut packs = Vec::new();
        let mut numbers = vec![u32::MAX; self.states.len()];
        let mut known = HashMap::new();
        for number in (0..of_segments).chain(runs.iter().flat_map(Run::packs)) {
            let Some(pack) = self.pack(number).filter(|_| !is_gone(&number)) else { continue };
            let new = *known.entry((pack.work, pack.id)).or_insert_with(|| {
                packs.push(pack.clone());
                packs.len() as u32 - 1
            });
            if let Some(at) = numbers.get_mut(number as usize) {
                *at = new;
            }
        }
        drop(known);

        let parts = |run: &Run| {
            let all = self.current.segments.iter().map(|object| &object.key);
            let of_run = |key: &&String| crate::layout::parse_part_key(key) == Some(&run.name);
            all.filter(of_run).cloned().collect::<Vec<_>>()
        };
        let segments = kept.iter().flat_map(parts).collect();
        let gone = still.iter().filter_map(|number| Some(self.pack(*number)?.id)).collect();
        if packs.is_empty() {
            return Ok(Merged { segments, gone });
        }
        let mut writer = Writer { segments, ..Writer::new(keys, env, number, create) };
        let entries = self.entries.len() + runs.iter().map(Run::len).sum::<usize>();
        let alone = entries <= of_part && packs.len() <= of_table;
        if !alone {
            for (at, table) in packs.chunks(of_table).enumerate() {
                writer.write(at * of_table, table, &[])?;
            }
        }
        let mut groups = self.groups_of(runs)?;
        let (mut group, mut of_id, mut part) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(id) = groups.next_into(&mut group)? {
            // Entries whose ids begin alike must be in one part.
            if !alone
                && part.len() >= of_part
                && part.last().is_some_and(|last: &RawEntry| last.id[..8] != id[..8])
            {
                writer.write(0, &[], &part)?;
                part.clear();
            }
            let renumbered = group.iter().filter_map(|(_, at)| {
                let pack = *numbers.get(at.pack as usize).filter(|pack| **pack != u32::MAX)?;
                Some(RawEntry { id, pack, offset: at.offset, length: at.length })
            });
            of_id.clear();
            of_id.extend(renumbered);
            of_id.sort_unstable();
            of_id.dedup();
            part.extend_from_slice(&of_id);
        }
        drop(groups);
        if alone {
            writer.write(0, &packs, &part)?;
        } else if !part.is_empty() {
            writer.write(0, &[], &part)?;
        }
        Ok(Merged { segments: writer.segments, gone })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_stay_few_and_are_seldom_written_again() {
        let (mut sizes, mut written, mut merges) = (Vec::new(), 0, 0);
        let mut entries = 0;
        for n in 0..20_000_usize {
            let fresh = 2_000 + n % 7 * 1_000;
            let left = sizes.len() - taken(&sizes, fresh, SMALL);
            let new = fresh + sizes.drain(left..).sum::<usize>();
            sizes.push(new);
            entries += fresh;
            if new > 2 * SMALL {
                written += new;
                merges += 1;
            }
            let most = (entries / SMALL).max(1).ilog2() as usize + 2;
            assert!(sizes.len() <= most, "{sizes:?}");
        }
        assert_eq!(sizes.iter().sum::<usize>(), entries);
        assert!(entries > 90_000_000 && merges > 0);
        assert!(written <= entries * 8, "{written} of {entries} in {merges} merges");
    }
}
