//! What people type from paper, files of age, and key files of hosts.
#![no_main]

use backstay_repo::internals::targets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| targets::paper(bytes));
