//! Parts of runs: their layout, look-ups, and what is not the owner's.

use super::*;
use crate::crypto::RootKey;

fn entries(count: u64) -> Vec<RawEntry> {
    let mut entries: Vec<_> = (0..count)
        .map(|n| {
            let mut id = [0; 16];
            id.copy_from_slice(&blake3::hash(&n.to_le_bytes()).as_bytes()[..16]);
            RawEntry { id, pack: n as u32 % 5, offset: n as u32, length: 9 }
        })
        .collect();
    entries.sort_unstable();
    entries
}

fn part(entries: &[RawEntry]) -> Part {
    let keys = Keys::derive(&RootKey::from_bytes([1; 32]));
    let bytes = Part::seal(&keys, [2; 16], "a-part", 0, &[], entries);
    let source = Source::of(bytes.clone());
    Opened::read(&keys, "a-part", bytes.len() as u64, source).unwrap().part
}

/// What docs/format.md says, said again.
#[test]
fn a_part_is_laid_out_as_it_is_written_down() {
    let keys = Keys::derive(&RootKey::from_bytes([1; 32]));
    let work = crate::layout::Work { writer: [3; 8], session: [4; 16] };
    let (id, class) = ([5; 16], Class::MetadataPack);
    let pack = PackInfo { work, id, size: 6, sha256: [7; 32], class, epoch: 0 };
    let entries = entries(40);
    let sealed = Part::seal(&keys, [2; 16], "a-part", 9, &[pack.clone(), pack], &entries);
    let key = keys.open("a-part", Class::Index, &sealed).unwrap();
    let open = |kind: u8, name: &str, at: usize, length: usize| {
        let mut section = sealed[at..at + length + 16].to_vec();
        let plain = key.open(kind, at as u64, name.as_bytes(), &mut section).unwrap();
        plain.to_vec()
    };
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    let root = open(1, "a-part", 160, 64);
    assert_eq!([0, 4, 8].map(|at| number(&root[at..at + 4])), [9, 2, 40]);
    let (length, segments) = (number(&root[12..16]), number(&root[16..20]));
    let seed = u64::from_le_bytes(root[24..32].try_into().unwrap());
    assert_eq!(root[20..24], [0; 4]);
    let signature = open(6, "a-part", 240, 64).try_into().unwrap();
    keys.owner_wrote(0, "a-part", &root, &signature).unwrap();
    let packs = open(2, "a-part", 320, 176);
    let mut first = [vec![3; 8], vec![4; 16], vec![5; 16]].concat();
    first.extend([6, 0, 0, 0, 0, 0, 0, 0]);
    first.extend([7; 32]);
    first.extend([2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(packs, [first.clone(), first].concat());
    let size = ((segments + 2) * length) as usize;
    let filter = open(3, "a-part", 512, size);
    let fences = open(4, "a-part", 528 + size, 3 * 8);
    let hashes = open(7, "a-part", 528 + size + 40, 32);
    let blocks = 528 + size + 40 + 48;
    assert_eq!(root[32..], *blake3::hash(&sealed[320..blocks]).as_bytes());
    assert_eq!(hashes, *blake3::hash(&sealed[blocks..]).as_bytes());
    assert_eq!(sealed.len(), blocks + 40 * 28 + 3 * 16);
    for (place, entry) in entries.iter().enumerate() {
        let start = blocks + place / 18 * 520;
        let block = open(5, "", start, if place < 36 { 504 } else { 4 * 28 });
        let at = place % 18 * 28;
        assert_eq!(block[at..at + 16], entry.id);
        let numbers = [entry.pack, entry.offset, entry.length];
        assert_eq!([16, 20, 24].map(|n| number(&block[at + n..at + n + 4])), numbers);
        if at == 0 {
            let fence = place / 18 * 8;
            assert_eq!(fences[fence..fence + 8], entry.id[..8]);
        }
        let mut h = u64::from_le_bytes(entry.id[8..].try_into().unwrap()).wrapping_add(seed);
        for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
            h ^= h >> 33;
            h = h.wrapping_mul(factor);
        }
        h ^= h >> 33;
        let (span, mask) = (u128::from(segments) * u128::from(length), u64::from(length - 1));
        let p0 = ((u128::from(h) * span) >> 64) as u64;
        let p1 = (p0 + u64::from(length)) ^ ((h >> 18) & mask);
        let p2 = (p0 + 2 * u64::from(length)) ^ (h & mask);
        let byte = [p0, p1, p2].map(|p| filter[p as usize]);
        assert_eq!(byte[0] ^ byte[1] ^ byte[2], (h ^ (h >> 32)) as u8);
    }
}

#[test]
fn every_entry_is_found_where_it_is() {
    for count in [0, 1, 17, 18, 19, 36, 5000] {
        let entries = entries(count);
        let part = part(&entries);
        assert_eq!(part.iter().collect::<Result<Vec<_>>>().unwrap(), entries);
        for (place, entry) in entries.iter().enumerate() {
            let mut found = Vec::new();
            part.each(&entry.id, |at, entry| found.push((at, entry))).unwrap();
            assert_eq!(found, [(place, *entry)]);
        }
    }
}

/// Looks every entry up, and some that are not there.
fn assert_finds_all(part: &Part, entries: &[RawEntry]) {
    for (place, entry) in entries.iter().enumerate() {
        let mut found = Vec::new();
        part.each(&entry.id, |at, entry| found.push((at, entry))).unwrap();
        assert_eq!(found, [(place, *entry)]);
        let mut other = entry.id;
        other[15] ^= 1;
        part.each(&other, |_, _| panic!("it is not there")).unwrap();
    }
}

fn leaked(most: u64) -> &'static held::Budget {
    Box::leak(Box::new(held::Budget::of(most)))
}

#[test]
fn what_is_held_is_what_the_blocks_have_and_no_more_than_there_is_room_for() {
    let entries = entries(5000);
    let size = (entries.len() * ENTRY) as u64;
    let budget = leaked(size + size / 2);
    let held = || Part { held: Held::within(budget), ..part(&entries) };
    let (first, second) = (held(), held());
    first.each(&entries[7].id, |_, _| ()).unwrap();
    assert!(first.held.is_open().is_none(), "one look-up is no reason");
    for part in [&first, &second] {
        assert_finds_all(part, &entries);
        assert_finds_all(part, &entries);
    }
    assert_eq!(first.held.is_open(), Some(true));
    assert_eq!(second.held.is_open(), Some(false), "there is no room for a second one");
    assert_eq!(budget.in_use(), size);
    drop(first);
    assert_eq!(budget.in_use(), 0);
    let third = held();
    assert_finds_all(&third, &entries);
    assert_eq!(third.held.is_open(), Some(true));
}

#[test]
fn a_part_with_a_damaged_block_is_not_held_and_costs_what_it_hit() {
    let keys = Keys::derive(&RootKey::from_bytes([1; 32]));
    let entries = entries(5000);
    let sealed = Part::seal(&keys, [2; 16], "a-part", 0, &[], &entries);
    let budget = leaked(u64::MAX);
    let mut rotten = sealed.to_vec();
    let last = rotten.len() - 1;
    rotten[last] ^= 1;
    let mut part = read(&keys, &Bytes::from(rotten)).unwrap().part;
    part.held = Held::within(budget);
    for entry in &entries[..4000] {
        assert_eq!(found(&part, entry).unwrap(), [*entry]);
    }
    assert_eq!(part.held.is_open(), Some(false));
    assert_eq!(budget.in_use(), 0);
    assert!(found(&part, entries.last().unwrap()).is_err());
}

#[test]
fn ids_that_lie_close_together_are_found() {
    // As far from evenly spread as can be: all in one corner, and a few at the other end.
    let mut entries: Vec<_> = (0..2000_u64)
        .map(|n| {
            let mut id = [0; 16];
            id[4..8].copy_from_slice(&((n / 50) as u32).to_be_bytes());
            RawEntry { id, pack: 0, offset: n as u32, length: 1 }
        })
        .collect();
    entries.extend((250..255).map(|n| RawEntry { id: [n; 16], pack: 0, offset: 0, length: 1 }));
    let part = part(&entries);
    for entry in &entries {
        let wanted = entries.iter().filter(|e| e.id == entry.id).count();
        let mut found = 0;
        part.each(&entry.id, |_, _| found += 1).unwrap();
        assert_eq!(found, wanted);
    }
    for id in [[0xff; 16], [100; 16]] {
        part.each(&id, |_, _| panic!("it is not there")).unwrap();
    }
}

/// What somebody with the index key can make of a part: one entry leads elsewhere, and its block is
/// sealed as it was.
fn with_another_entry(keys: &Keys, part: &Part, sealed: &[u8]) -> Bytes {
    let key = keys.open("a-part", Class::Index, sealed).unwrap();
    let mut forged = sealed.to_vec();
    let at = part.blocks as usize;
    let block = &mut forged[at..at + BLOCK];
    key.open_unnamed(BLOCK_KIND, at as u64, block).unwrap();
    block[20] ^= 1;
    let tag = key.seal(BLOCK_KIND, at as u64, &[], &mut block[..BLOCK - TAG]);
    block[BLOCK - TAG..].copy_from_slice(&tag);
    Bytes::from(forged)
}

fn read(keys: &Keys, bytes: &Bytes) -> Result<Opened> {
    let source = Source::of(bytes.clone());
    Opened::read(keys, "a-part", bytes.len() as u64, source)
}

fn found(part: &Part, entry: &RawEntry) -> Result<Vec<RawEntry>> {
    let mut found = Vec::new();
    part.each(&entry.id, |_, entry| found.push(entry))?;
    Ok(found)
}

#[test]
fn an_entry_that_the_owner_has_not_signed_is_never_used() {
    let keys = Keys::derive(&RootKey::from_bytes([1; 32]));
    let entries = entries(700);
    let (first, last) = (entries.first().unwrap(), entries.last().unwrap());
    let sealed = Part::seal(&keys, [2; 16], "a-part", 0, &[], &entries);
    let forged = with_another_entry(&keys, &read(&keys, &sealed).unwrap().part, &sealed);
    let part = read(&keys, &forged).unwrap().part;
    assert!(found(&part, first).is_err() && part.check().is_err());
    assert_eq!(found(&part, last).unwrap(), [*last], "it costs what it hit");

    let (folder, store) = (tempfile::tempdir().unwrap(), Store::memory());
    let copy = folder.path().join("copy");
    store.create("a-part", forged.clone()).unwrap();
    let origin = Origin { store: store.clone(), cached: Some(copy.clone()) };
    let size = forged.len() as u64;
    let fetch = || Opened::fetch(&keys, "a-part", size, &origin).unwrap().part;
    assert!(found(&fetch(), first).is_err());
    assert!(!copy.exists(), "a later process would believe it");

    // A local copy that rots is not put right with what somebody else has made.
    let mut rotten = sealed.to_vec();
    rotten[part.blocks as usize + 3] ^= 1;
    std::fs::write(&copy, &rotten).unwrap();
    let part = fetch();
    assert!(found(&part, first).is_err());
    assert_eq!(found(&part, last).unwrap(), [*last]);
    assert!(std::fs::read(&copy).unwrap() == rotten);
    store.delete("a-part").unwrap();
    store.create("a-part", sealed.clone()).unwrap();
    assert_eq!(found(&fetch(), first).unwrap(), [*first]);
    assert!(std::fs::read(&copy).unwrap() == sealed);

    // Nor may the hashes be changed with the blocks.
    let layout = part.root.layout().unwrap();
    let (start, end) = (layout.hashes.start as usize, layout.hashes.end as usize);
    let mut forged = forged.to_vec();
    let hash = *blake3::hash(&forged[part.blocks as usize..][..GROUP * BLOCK]).as_bytes();
    part.key.open(HASHES_KIND, start as u64, b"a-part", &mut forged[start..end]).unwrap();
    forged[start..start + HASH].copy_from_slice(&hash);
    let tag = part.key.seal(HASHES_KIND, start as u64, b"a-part", &mut forged[start..end - TAG]);
    forged[end - TAG..end].copy_from_slice(&tag);
    assert!(read(&keys, &Bytes::from(forged)).is_err());
}

#[test]
fn a_part_of_the_first_programs_stays_readable() {
    let keys = Keys::derive(&RootKey::from_bytes([1; 32]));
    let entries = entries(40);
    let old = forge(&keys, "a-part", &sections(&[], &entries));
    let opened = read(&keys, &old).unwrap();
    assert_eq!(opened.part.root.hash, [0; 32]);
    assert_eq!(opened.part.iter().collect::<Result<Vec<_>>>().unwrap(), entries);
}
