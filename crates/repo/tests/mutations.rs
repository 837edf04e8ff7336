//! Every parser of bytes from a store, given valid samples that were altered in every small way: none
//! panics, and none takes memory that its input does not justify. The seed is fixed, so a failure
//! comes again. `scripts/fuzz` drives the same functions without an end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use backstay_repo::Environment;
use backstay_repo::internals::targets::ALL;

/// Altered samples for each target.
const ROUNDS: usize = 2500;
/// What parsing one input may take at most. Bytes.
const MOST: usize = 48 << 20;

/// Counts what is allocated at once.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is passed on to the system's allocator; only sizes are counted besides.
#[allow(unsafe_code, reason = "a test that counts allocations has to be the allocator")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Lots {
    env: Environment,
}

impl Lots {
    fn below(&self, end: usize) -> usize {
        u64::from_le_bytes(self.env.random()) as usize % end.max(1)
    }

    /// One to four small changes.
    fn alter(&self, sample: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = sample.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(9) {
                _ if bytes.is_empty() => bytes.push(self.below(256) as u8),
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 => bytes.truncate(at),
                3 => drop(bytes.remove(at)),
                4 => bytes.insert(at, self.below(256) as u8),
                // What is a length somewhere becomes a large one.
                5 => {
                    let end = (at + [1, 2, 4, 8][self.below(4)]).min(bytes.len());
                    bytes[at..end].fill(0xff);
                }
                6 => {
                    let end = (at + self.below(40)).min(bytes.len());
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                7 if !other.is_empty() => {
                    let from = self.below(other.len());
                    let end = (from + self.below(60)).min(other.len());
                    bytes.splice(at..at, other[from..end].iter().copied());
                }
                _ => {
                    let end = (at + 8).min(bytes.len());
                    bytes[at..end].reverse();
                }
            }
        }
        bytes
    }
}

#[test]
fn no_altered_bytes_are_a_panic_or_take_memory_without_bounds() {
    let seed = 20_261_125;
    for target in ALL {
        let lots = Lots { env: Environment::seeded(seed) };
        let samples = (target.samples)();
        assert!(!samples.is_empty(), "{} has no samples", target.name);
        // Once without, for what is made once.
        samples.iter().for_each(|sample| (target.run)(sample));
        for round in 0..ROUNDS {
            let sample = &samples[lots.below(samples.len())];
            let other = &samples[lots.below(samples.len())];
            let bytes = lots.alter(sample, other);
            let before = NOW.load(Relaxed);
            PEAK.store(before, Relaxed);
            let run = catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes)));
            let took = PEAK.load(Relaxed).saturating_sub(before);
            let context = format!("{}, seed {seed}, round {round}: {bytes:02x?}", target.name);
            assert!(run.is_ok(), "{context}");
            assert!(took <= MOST, "{took} bytes for {}: {context}", bytes.len());
        }
    }
}

#[test]
fn every_target_is_fuzzed_and_every_fuzzer_is_a_target() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let files: BTreeSet<String> = std::fs::read_dir(folder.join("fuzz_targets"))
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
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
