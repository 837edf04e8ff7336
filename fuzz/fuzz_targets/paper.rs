//! What people type from paper, and files of age.
#![no_main]

use backstay_repo::internals;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    internals::printed(text);
    internals::age_file(text);
});
