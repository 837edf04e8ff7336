//! How much of a plan is in memory at once.
//!
//! What lies in chunks is noted, extent by extent, until so much is: then it is sorted by pack and
//! offset, fetched, and forgotten before planning goes on. Most restores are one window. A large
//! database after many incremental backups lies in as many pieces as it has changed pages; of it, too,
//! no more than that is in memory, and within a window what lies together is read together.
//!
//! Where the store keeps data in an archive there is one window, however large: whether all packs can
//! be read is asked before anything is written.

use std::collections::HashMap;

use super::fetch::{Fetcher, Origin};
use super::{NOWHERE, Planned, RestoreOptions, Wanted};
use crate::entry::LeafRef;
use crate::index::Location;
use crate::{Extent, Kind, ObjectId, Result};

/// Extents of a window, of 64 bytes each, where the caller does not say otherwise.
const WINDOW: usize = 512 << 10;

/// Extents that a leaf is taken to have; a quarter of those that it can have.
const IN_LEAF: usize = 2048;

pub(super) struct Window<'f> {
    fetcher: &'f Fetcher<'f>,
    origin: &'f Origin,
    delta: bool,
    thaw: Option<&'f crate::ThawOptions>,
    /// Threads.
    count: usize,
    wanted: Vec<Wanted>,
    /// Of the file that was added last: its pages may lie in a few chunks by turns.
    found: HashMap<ObjectId, Location>,
    /// The most extents in it.
    limit: usize,
    /// Whether anything was fetched.
    begun: bool,
}

impl<'f> Window<'f> {
    pub fn new(
        fetcher: &'f Fetcher<'f>,
        origin: &'f Origin,
        options: &'f RestoreOptions,
        count: usize,
    ) -> Self {
        let limit = match options.window {
            _ if options.thaw.is_some() || origin.repository.store().archives_data() => usize::MAX,
            0 => WINDOW,
            limit => limit,
        };
        Self {
            fetcher,
            origin,
            delta: options.delta,
            thaw: options.thaw.as_ref(),
            count,
            wanted: Vec::new(),
            found: HashMap::new(),
            limit,
            begun: false,
        }
    }

    pub fn origin(&self) -> &'f Origin {
        self.origin
    }

    /// Whether a file with these leaves is planned leaf by leaf: with the default, one of 16 GiB. What
    /// is in the target already is compared file by file.
    pub fn is_small_for(&self, leaves: &[LeafRef]) -> bool {
        !self.delta && leaves.len().saturating_mul(IN_LEAF) > self.limit
    }

    /// Whether what is in it is to be fetched before more is added.
    pub fn is_full(&self) -> bool {
        self.wanted.len() >= self.limit
    }

    /// Adds extents of a file, which its `left` counts already. `lenient`: what is in no pack is missed
    /// when it comes to that.
    pub fn add(&mut self, file: u32, extents: &[Extent], lenient: bool) -> Result<()> {
        self.found.clear();
        let index = &self.origin.index;
        for extent in extents {
            let location = match self.found.get(&extent.chunk) {
                Some(location) => Some(*location),
                None => match index.find(&extent.chunk) {
                    Err(error) if error.is_about_an_object() && lenient => None,
                    found => found?,
                },
            };
            let location = location.unwrap_or(NOWHERE);
            self.found.insert(extent.chunk, location);
            if location == NOWHERE && !lenient {
                return Err(crate::repository::missing_chunk(Kind::Data, &extent.chunk, index));
            }
            self.wanted.push(Wanted { location, file, extent: *extent });
        }
        Ok(())
    }

    /// The packs that it needs, and their sizes.
    fn packs(&self) -> Vec<(String, u64)> {
        let mut packs: Vec<u32> = self.wanted.iter().map(|w| w.location.pack).collect();
        packs.sort_unstable();
        packs.dedup();
        let packs = packs.into_iter().filter_map(|pack| self.origin.index.pack(pack));
        packs.map(|pack| (pack.key(), pack.size)).collect()
    }

    /// Fetches what is in it.
    pub fn fetch(&mut self, files: &[Planned]) -> Result<()> {
        let progress = self.fetcher.progress;
        if !self.begun {
            crate::thaw::must_be_ready(&self.origin.repository, self.packs(), self.thaw, progress)?;
            backstay_store::failpoint::hit("restore-planned");
            progress.set_phase("restoring");
            self.begun = true;
        }
        let mut wanted = std::mem::take(&mut self.wanted);
        if self.delta {
            wanted = self.fetcher.without_what_is_right(self.origin, files, wanted, self.count)?;
        }
        wanted.sort_unstable_by_key(|w| (w.location, w.file, w.extent.offset));
        self.fetcher.fetch_all(self.origin, files, &wanted, self.count)?;
        // The room is used again.
        wanted.clear();
        self.wanted = wanted;
        Ok(())
    }
}
