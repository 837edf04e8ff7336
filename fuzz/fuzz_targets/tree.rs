//! Nodes of trees and leaves of extent maps, as they lie inside a record.
#![no_main]

use backstay_repo::internals::targets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| targets::tree(bytes));
