//! Who may write and what counts, as it lies inside the seal.
#![no_main]

use backstay_repo::internals::targets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| targets::authority(bytes));
