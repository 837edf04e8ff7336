//! Samples that were altered in every small way, for parsers: none may panic, and none may take memory
//! that its input does not justify. A seed decides all, so that a failure comes again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Altered samples for each parser.
const ROUNDS: usize = 2500;
/// What parsing one input may take at most. Bytes.
const MOST: usize = 48 << 20;

/// Counts what is allocated at once. A test that wants that counted has it as its allocator:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: backstay_testing::Counting = backstay_testing::Counting;
/// ```
#[derive(Debug)]
pub struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is passed on to the system's allocator; only sizes are counted besides.
#[allow(unsafe_code, reason = "what counts allocations has to be the allocator")]
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

/// Gives a parser its samples, and then altered ones.
pub fn with_altered(name: &str, seed: u64, samples: &[Vec<u8>], run: fn(&[u8])) {
    assert!(!samples.is_empty(), "{name} has no samples");
    let mut lots = Lots(seed);
    // Once without, for what is made once.
    samples.iter().for_each(|sample| run(sample));
    for round in 0..ROUNDS {
        let sample = &samples[lots.below(samples.len())];
        let other = &samples[lots.below(samples.len())];
        let bytes = lots.alter(sample, other);
        let before = NOW.load(Relaxed);
        PEAK.store(before, Relaxed);
        let ran = catch_unwind(AssertUnwindSafe(|| run(&bytes)));
        let took = PEAK.load(Relaxed).saturating_sub(before);
        let context = || format!("{name}, seed {seed}, round {round}: {bytes:02x?}");
        assert!(ran.is_ok(), "{}", context());
        assert!(took <= MOST, "{took} bytes for {}: {}", bytes.len(), context());
    }
}

/// Numbers from a seed (SplitMix64).
struct Lots(u64);

impl Lots {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as usize % end.max(1)
    }

    /// One to four small changes.
    fn alter(&mut self, sample: &[u8], other: &[u8]) -> Vec<u8> {
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
