//! Slices of a segment: their names, and what they are put together to.
#![no_main]

use backstay_repo::internals::targets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| targets::slices(bytes));
