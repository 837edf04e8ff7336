//! Time and randomness as handles, so that a test runs a year of work in a second from a seed.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// Tells the time. Nothing that keeps data safe depends on the answer.
pub trait Clock: Send + Sync {
    fn now(&self) -> SystemTime;
    fn sleep(&self, duration: Duration);
}

/// Fills buffers with random bytes.
pub trait Random: Send + Sync {
    fn fill(&self, buffer: &mut [u8]);
}

/// The handles through which a repository reaches the world.
#[derive(Clone)]
pub struct Environment {
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
}

impl Environment {
    /// The machine's own clock and its kernel's random numbers.
    pub fn system() -> Self {
        Self { clock: Arc::new(SystemClock), random: Arc::new(SystemRandom) }
    }

    /// Time that stands still and random bytes that follow from `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self {
            clock: Arc::new(FixedClock::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30))),
            random: Arc::new(SeededRandom::new(seed)),
        }
    }

    /// `N` random bytes.
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes);
        bytes
    }

    pub fn now(&self) -> SystemTime {
        self.clock.now()
    }
}

struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            match rustix::rand::getrandom(&mut *buffer, rustix::rand::GetRandomFlags::empty()) {
                Ok(n) => buffer = &mut buffer[n..],
                Err(rustix::io::Errno::INTR) => {}
                // Keys made of anything less than the kernel's randomness would be worthless.
                Err(error) => panic!("the kernel gives no random numbers: {error}"),
            }
        }
    }
}

/// A clock that moves only when told to.
pub struct FixedClock(Mutex<SystemTime>);

impl FixedClock {
    pub fn new(now: SystemTime) -> Self {
        Self(Mutex::new(now))
    }

    pub fn set(&self, now: SystemTime) {
        *self.0.lock().unwrap_or_else(|e| e.into_inner()) = now;
    }
}

impl Clock for FixedClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn sleep(&self, duration: Duration) {
        *self.0.lock().unwrap_or_else(|e| e.into_inner()) += duration;
    }
}

/// Random bytes for tests (SplitMix64): the same seed gives the same bytes.
pub struct SeededRandom(Mutex<u64>);

impl SeededRandom {
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }
}

impl Random for SeededRandom {
    fn fill(&self, buffer: &mut [u8]) {
        let mut state = self.0.lock().unwrap_or_else(|e| e.into_inner());
        for block in buffer.chunks_mut(8) {
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            block.copy_from_slice(&z.to_le_bytes()[..block.len()]);
        }
    }
}
