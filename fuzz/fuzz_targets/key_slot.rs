//! Key slots and `format`, which lie in the store in the clear.
#![no_main]

use backstay_repo::internals;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    internals::key_slot(json);
    internals::format(json);
});
