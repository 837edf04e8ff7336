//! Every parser of bytes from a store, given valid samples that were altered in every small way: none
//! panics, and none takes memory that its input does not justify. The seed is fixed, so a failure
//! comes again. `scripts/fuzz` drives the same functions without an end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use backstay_repo::internals::targets::ALL;
use backstay_testing::{Counting, with_altered};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn no_altered_bytes_are_a_panic_or_take_memory_without_bounds() {
    for target in ALL {
        with_altered(target.name, 20_261_125, &(target.samples)(), target.run);
    }
}

#[test]
fn every_target_is_fuzzed_and_every_fuzzer_is_a_target() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let files: BTreeSet<String> = std::fs::read_dir(folder.join("fuzz_targets"))
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        // Those of another crate, which has the same test.
        .filter(|name| !name.starts_with("pg_"))
        .collect();
    let names: BTreeSet<String> = ALL.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(files, names);
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for name in &names {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in Cargo.toml");
        let source = folder.join(format!("fuzz_targets/{name}.rs"));
        let source = std::fs::read_to_string(source).unwrap();
        assert!(source.contains(&format!("targets::{name}(")), "{name} drives something else");
    }
}
