//! Parity files, which lie in a directory in the clear, and repairs from them.
#![no_main]

use backstay_repo::internals::targets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| targets::parity(bytes));
