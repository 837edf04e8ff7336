//! What a directory keeps beside its objects: locks, and how much parity they get.
#![no_main]

use backstay_repo::internals::targets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| targets::settings(bytes));
