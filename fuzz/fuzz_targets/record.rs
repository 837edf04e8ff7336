//! Compressed records, as they lie inside the seal; and what is compressed comes back.
#![no_main]

use backstay_repo::internals::targets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| targets::record(bytes));
