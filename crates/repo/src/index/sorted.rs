//! Entries in memory: those of segments that no run took in yet.

use super::{Entry, Location};

/// Sorted by id and location, each once.
#[derive(Default)]
pub(crate) struct Sorted {
    entries: Vec<Entry>,
    /// How far to shift the first half of an id to get its place in `starts`.
    shift: u32,
    /// Where the entries begin whose ids begin with that number.
    starts: Vec<u32>,
}

fn high(id: &[u8; 16]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *id;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl Sorted {
    pub fn of(mut entries: Vec<Entry>) -> Self {
        entries.sort_unstable_by_key(|entry| (entry.id, entry.location));
        entries.dedup_by_key(|entry| (entry.id, entry.location));
        entries.shrink_to_fit();
        // Some four entries to each, ids being all over the range alike.
        let bits = (entries.len() / 4).max(2).ilog2();
        let shift = 64 - bits;
        let mut starts = Vec::with_capacity((1 << bits) + 1);
        for (at, entry) in entries.iter().enumerate() {
            let bucket = (high(&entry.id) >> shift) as usize;
            while starts.len() <= bucket {
                starts.push(at as u32);
            }
        }
        starts.resize((1 << bits) + 1, entries.len() as u32);
        Self { entries, shift, starts }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The entries of an id, and the place of the first among all.
    pub fn each(&self, id: [u8; 16]) -> impl Iterator<Item = (usize, Location)> + '_ {
        let bucket = if self.starts.is_empty() { 0 } else { (high(&id) >> self.shift) as usize };
        let at = |bucket: usize| self.starts.get(bucket).map_or(0, |at| *at as usize);
        let (start, end) = (at(bucket), at(bucket + 1));
        let among = self.entries.get(start..end).unwrap_or_default();
        let first = start + among.partition_point(|entry| entry.id < id);
        let rest = self.entries.get(first..end).unwrap_or_default();
        let same = rest.iter().take_while(move |entry| entry.id == id);
        (first..).zip(same.map(|entry| entry.location))
    }
}
