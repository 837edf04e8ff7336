//! Parts of runs of the index: a root, and what it says that is inside the seals behind it.
#![no_main]

use backstay_repo::internals::targets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| targets::index_part(bytes));
