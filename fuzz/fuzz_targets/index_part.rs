//! Parts of runs of the index: a root, and what it says that is inside the seals behind it.
#![no_main]

use backstay_repo::internals;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|plain: &[u8]| {
    internals::index_root(plain);
    if let Some(entries) = internals::index_part(plain) {
        assert!(entries <= plain.len() / 28);
    }
});
