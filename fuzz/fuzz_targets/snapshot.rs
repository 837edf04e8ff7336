//! What a snapshot object says, as it lies inside the seal.
#![no_main]

use backstay_repo::internals;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    if let Some(snapshot) = internals::snapshot(json) {
        let _ = snapshot.short_id();
    }
});
