//! What maintenance signs: lists of packs and sessions, heads of the index, tombstones.
#![no_main]

use backstay_repo::internals::targets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| targets::maintenance(bytes));
