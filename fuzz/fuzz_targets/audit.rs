//! Records of what was done with keys, as they lie inside the seal.
#![no_main]

use backstay_repo::internals::targets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| targets::audit(bytes));
