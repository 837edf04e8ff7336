//! Index segments, as they lie inside the seal.
#![no_main]

use backstay_repo::internals;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|plain: &[u8]| {
    if let Some(chunks) = internals::segment(plain) {
        assert!(chunks <= plain.len() / 28);
    }
});
