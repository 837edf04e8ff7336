//! Packs: footers and trailers that are sealed and say what they like, and bytes that nobody sealed.
#![no_main]

use backstay_repo::internals::targets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| targets::pack(bytes));
