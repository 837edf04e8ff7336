//! Archived files: parts that are sealed and say what they like, and bytes that nobody sealed.
#![no_main]

use backstay_repo::internals;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    internals::archived(bytes);
    let Some((summary, rest)) = bytes.split_first_chunk::<48>() else { return };
    let mut summary = *summary;
    // Mostly small, so that a table can be long enough.
    if summary[7] < 250 {
        summary[3..8].fill(0);
    }
    let size = u64::from_le_bytes(std::array::from_fn(|n| summary[n]));
    summary[40..44].copy_from_slice(&(size.div_ceil(1 << 20) as u32).to_le_bytes());
    let (table, blocks) = rest.split_at(rest.len().min(size.div_ceil(1 << 20) as usize * 4));
    let blocks: Vec<&[u8]> = blocks.chunks(64).collect();
    internals::forged_archived(&summary, table, &blocks);
});
