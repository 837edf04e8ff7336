//! Packs: footers and trailers that are sealed and say what they like, and bytes that nobody sealed.
#![no_main]

use backstay_repo::internals;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    internals::pack(bytes);
    let Some((trailer, footer)) = bytes.split_first_chunk::<16>() else { return };
    internals::forged_pack(usize::from(trailer[15]), footer, *trailer);
    // With the counts put right, so that the entries are reached.
    let mut right = *trailer;
    let records = usize::from(trailer[15]);
    right[..8].copy_from_slice(&(160 + records as u64).to_le_bytes());
    right[8..12].copy_from_slice(&(footer.len() as u32 + 16).to_le_bytes());
    right[12..].copy_from_slice(&(footer.len() as u32 / 44).to_le_bytes());
    if let Some(found) = internals::forged_pack(records, footer, right) {
        assert_eq!(found, footer.len() / 44);
    }
});
