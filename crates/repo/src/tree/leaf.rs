//! Leaves of extent maps.
//!
//! ```text
//! plain    postcard of ([extent], [first 16 bytes of a cell's id], hashes: 0 none · 1 bytes · 2 id)
//! mapped   postcard of ([], [first 16 bytes of a cell's id], 3, [id of page hashes],
//!                       [(chunk id, its pages u32)], short u32, columns)
//! columns  number of extents, then four columns of as many varints:
//!          pages since the end of the extent before · pages, less one ·
//!          place of its chunk among those last used · pages in the chunk since the last use, zigzag
//! ```
//!
//! A leaf of which only some pages are new has an extent for nearly each of them. Their chunks are
//! few and their places follow from those before, so columns take a byte or less of each once they
//! are compressed, where a list of extents takes ten. `short` is what the last page of the last
//! extent lacks of a whole one.

use serde::{Deserialize, Serialize};

use crate::entry::Extent;
use crate::id::PAGE;
use crate::{ObjectId, RepoError, Result};

/// Pages of a region.
const MOST_PAGES: u64 = crate::session::REGION / PAGE as u64;

/// The extents of a region of a file. Offsets count from the region's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExtentLeaf {
    pub extents: Vec<Extent>,
    /// For a grid: the first 16 bytes of each cell's id.
    pub cells: Vec<[u8; 16]>,
    pub pages: PageHashes,
}

/// Eight bytes for each page of a grid's region, by which a later backup finds what changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PageHashes {
    None,
    Inline(Vec<u8>),
    Chunk(ObjectId),
    /// Of a region of which only some pages were new.
    Mapped(Mapped),
}

/// What a leaf says in addition when its cells are put together from several chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// The hashes of all pages, then what later backups changed of them.
    pub hashes: Vec<ObjectId>,
    /// All chunks of the leaf, and how many pages each has.
    pub chunks: Vec<(ObjectId, u32)>,
}

impl PageHashes {
    /// The chunks that hold hashes.
    pub fn chunks(&self) -> &[ObjectId] {
        match self {
            Self::None | Self::Inline(_) => &[],
            Self::Chunk(id) => std::slice::from_ref(id),
            Self::Mapped(mapped) => &mapped.hashes,
        }
    }
}

type Cells = Vec<[u8; 16]>;

/// What a leaf is on the wire.
#[derive(Serialize, Deserialize)]
struct Wire {
    extents: Vec<Extent>,
    cells: Cells,
    pages: WirePages,
}

#[derive(Serialize, Deserialize)]
enum WirePages {
    None,
    Inline(Vec<u8>),
    Chunk(ObjectId),
    Mapped { hashes: Vec<ObjectId>, chunks: Vec<(ObjectId, u32)>, short: u32, columns: Vec<u8> },
}

pub(crate) fn encode_leaf(leaf: &ExtentLeaf) -> Vec<u8> {
    let plain = |pages| (leaf.extents.clone(), pages);
    let (extents, pages) = match &leaf.pages {
        PageHashes::None => plain(WirePages::None),
        PageHashes::Inline(bytes) => plain(WirePages::Inline(bytes.clone())),
        PageHashes::Chunk(id) => plain(WirePages::Chunk(*id)),
        PageHashes::Mapped(mapped) => {
            let (columns, short) = columns(&leaf.extents, &mapped.chunks);
            let Mapped { hashes, chunks } = mapped.clone();
            (Vec::new(), WirePages::Mapped { hashes, chunks, short, columns })
        }
    };
    let wire = Wire { extents, cells: leaf.cells.clone(), pages };
    postcard::to_extend(&wire, Vec::new()).expect("a vector takes all")
}

pub(crate) fn parse_extents(object: &str, body: &[u8]) -> Result<ExtentLeaf> {
    let Wire { mut extents, cells, pages } = postcard::from_bytes(body)
        .map_err(|error| RepoError::damaged(object, format!("a leaf: {error}")))?;
    let pages = match pages {
        WirePages::None => PageHashes::None,
        WirePages::Inline(bytes) => PageHashes::Inline(bytes),
        WirePages::Chunk(id) => PageHashes::Chunk(id),
        WirePages::Mapped { hashes, chunks, short, columns } => {
            let read = Some(&extents)
                .filter(|extents| extents.is_empty() && (short as usize) < PAGE)
                .and_then(|_| extents_of(&columns, &chunks, short));
            extents =
                read.ok_or_else(|| RepoError::damaged(object, "the map of a leaf is no map"))?;
            PageHashes::Mapped(Mapped { hashes, chunks })
        }
    };
    // As many as a region has pages; whoever made it up must not have memory filled with more.
    if extents.len() as u64 > MOST_PAGES {
        return Err(RepoError::damaged(object, "a leaf has more extents than there are pages"));
    }
    Ok(ExtentLeaf { extents, cells, pages })
}

/// Appends a number, seven bits to a byte, the lowest first.
pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number off the front.
pub(super) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The chunks of a leaf, the last used first, and where the next extent of each is expected.
struct Recent {
    order: Vec<usize>,
    next: Vec<u64>,
}

impl Recent {
    fn new(chunks: usize) -> Self {
        Self { order: (0..chunks).collect(), next: vec![0; chunks] }
    }

    fn place_of(&self, chunk: usize) -> usize {
        self.order.iter().position(|c| *c == chunk).unwrap_or(0)
    }

    /// Takes the chunk at a place to the front.
    fn use_at(&mut self, place: usize) -> Option<usize> {
        let chunk = *self.order.get(place)?;
        self.order.get_mut(..=place)?.rotate_right(1);
        Some(chunk)
    }
}

/// Extents whose offsets are multiples of a page, as columns; and what the last page is short of.
fn columns(extents: &[Extent], chunks: &[(ObjectId, u32)]) -> (Vec<u8>, u32) {
    let page = PAGE as u64;
    let numbers: std::collections::HashMap<&ObjectId, usize> =
        chunks.iter().enumerate().map(|(number, (id, _))| (id, number)).collect();
    let mut recent = Recent::new(chunks.len());
    let mut of_kind: [Vec<u8>; 4] = Default::default();
    let (mut end, mut short) = (0, 0);
    for extent in extents {
        let number = numbers.get(&extent.chunk).copied().unwrap_or(0);
        let (from, length) = (extent.offset / page, u64::from(extent.length).div_ceil(page));
        let place = recent.place_of(number);
        recent.use_at(place);
        let at = u64::from(extent.chunk_offset) / page;
        let skipped = at as i64 - recent.next.get(number).map_or(0, |next| *next as i64);
        let zigzag = ((skipped << 1) ^ (skipped >> 63)) as u64;
        for (column, value) in of_kind.iter_mut().zip([
            from.saturating_sub(end),
            length.saturating_sub(1),
            place as u64,
            zigzag,
        ]) {
            put(column, value);
        }
        end = from + length;
        if let Some(next) = recent.next.get_mut(number) {
            *next = at + length;
        }
        short = (length * page - u64::from(extent.length)) as u32;
    }
    let mut out = Vec::new();
    put(&mut out, extents.len() as u64);
    out.extend(of_kind.concat());
    (out, short)
}

/// Nothing where they are not what [`columns`] makes.
fn extents_of(mut bytes: &[u8], chunks: &[(ObjectId, u32)], short: u32) -> Option<Vec<Extent>> {
    let page = PAGE as u64;
    let count = take(&mut bytes).filter(|count| *count <= MOST_PAGES)?;
    let mut of_kind: [Vec<u64>; 4] = Default::default();
    for column in &mut of_kind {
        for _ in 0..count {
            column.push(take(&mut bytes)?);
        }
    }
    if !bytes.is_empty() {
        return None;
    }
    let [gaps, lengths, places, skips] = of_kind;
    let mut recent = Recent::new(chunks.len());
    let mut extents = Vec::with_capacity(count as usize);
    let mut end = 0_u64;
    for (((gap, less), place), zigzag) in gaps.into_iter().zip(lengths).zip(places).zip(skips) {
        let from = end.checked_add(gap)?;
        let length = less.checked_add(1)?;
        end = from.checked_add(length).filter(|end| *end <= MOST_PAGES)?;
        let number = recent.use_at(usize::try_from(place).ok()?)?;
        let (chunk, pages) = *chunks.get(number)?;
        let next = recent.next.get_mut(number)?;
        let skipped = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
        let at = next.checked_add_signed(skipped)?;
        *next = at.checked_add(length).filter(|end| *end <= u64::from(pages))?;
        extents.push(Extent {
            offset: from * page,
            length: u32::try_from(length * page).ok()?,
            chunk,
            chunk_offset: u32::try_from(at * page).ok()?,
        });
    }
    if let Some(last) = extents.last_mut() {
        last.length -= short;
    }
    Some(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> ObjectId {
        ObjectId([number; 32])
    }

    fn leaf(extents: &[(u64, u32, u8, u32)], pages: &[u32], short: u32) -> ExtentLeaf {
        let page = PAGE as u32;
        let mut extents: Vec<Extent> = extents
            .iter()
            .map(|(offset, length, chunk, at)| Extent {
                offset: offset * u64::from(page),
                length: length * page,
                chunk: id(*chunk),
                chunk_offset: at * page,
            })
            .collect();
        if let Some(last) = extents.last_mut() {
            last.length -= short;
        }
        let chunks = pages.iter().enumerate().map(|(n, pages)| (id(n as u8), *pages)).collect();
        let mapped = Mapped { hashes: vec![id(90), id(91)], chunks };
        ExtentLeaf { extents, cells: vec![[5; 16]; 2], pages: PageHashes::Mapped(mapped) }
    }

    #[test]
    fn a_map_comes_back_as_it_was() {
        for it in [
            leaf(&[], &[], 0),
            leaf(&[(0, 128, 0, 0)], &[128], 8191),
            leaf(
                &[(0, 3, 0, 0), (3, 1, 1, 0), (4, 4, 0, 4), (20, 1, 1, 1), (21, 7, 0, 100)],
                &[128, 9],
                5,
            ),
            // Out of order within a chunk, and the same pages twice.
            leaf(&[(0, 1, 0, 7), (1, 1, 0, 6), (2, 2, 0, 6), (8191, 1, 1, 0)], &[9, 1], 0),
        ] {
            let body = encode_leaf(&it);
            assert_eq!(parse_extents("a leaf", &body).unwrap(), it);
        }
    }

    #[test]
    fn a_map_that_leads_out_of_its_chunks_or_its_region_is_damage() {
        for it in [
            leaf(&[(0, 129, 0, 0)], &[128], 0),
            leaf(&[(8191, 2, 0, 0)], &[128], 0),
            leaf(&[(0, 1, 0, 0)], &[], 0),
        ] {
            let error = parse_extents("a leaf", &encode_leaf(&it)).unwrap_err();
            assert!(error.to_string().contains("no map"), "{error}");
        }
    }

    #[test]
    fn no_bytes_make_a_map_panic() {
        let it = leaf(&[(0, 3, 0, 0), (3, 1, 1, 0), (4, 4, 0, 4), (20, 1, 1, 1)], &[128, 9], 5);
        let body = encode_leaf(&it);
        for at in 0..body.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, body[at] ^ 1] {
                let mut body = body.clone();
                body[at] = value;
                let _ = parse_extents("a leaf", &body);
            }
            let _ = parse_extents("a leaf", &body[..at]);
        }
    }
}
