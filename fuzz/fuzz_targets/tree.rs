//! Nodes of trees and leaves of extent maps, as they lie inside a record.
#![no_main]

use backstay_repo::{compare_paths, internals};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    internals::extent_leaf(body);
    if let Some(entries) = internals::tree_node(body) {
        assert!(entries.is_sorted_by(|a, b| compare_paths(&a.path, &b.path).is_lt()));
        for entry in entries {
            assert!(!entry.path.split(|byte| *byte == b'/').any(|part| part == b".." || part.is_empty()));
        }
    }
});
