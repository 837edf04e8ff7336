//! The token bucket that keeps a store within a bandwidth.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

/// So many bytes a second, shared by whoever takes from it.
pub(crate) struct Limit {
    rate: f64,
    state: Mutex<State>,
}

struct State {
    /// Bytes that may pass at once; below zero: bytes that have passed ahead of their time.
    level: f64,
    last: Option<SystemTime>,
}

impl Limit {
    pub(crate) fn new(rate: u64) -> Self {
        let rate = rate.max(1) as f64;
        // Starts with a second's worth, and never saves up more.
        Self { rate, state: Mutex::new(State { level: rate, last: None }) }
    }

    /// Takes `bytes` and says how long to wait for them.
    pub(crate) fn take(&self, bytes: u64, now: SystemTime) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        let since = state.last.map_or(Duration::ZERO, |last| {
            // A clock that is set back gives nothing.
            now.duration_since(last).unwrap_or(Duration::ZERO)
        });
        state.last = Some(now);
        state.level = (state.level + since.as_secs_f64() * self.rate).min(self.rate) - bytes as f64;
        if state.level >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-state.level / self.rate).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_stays_at_the_rate_whatever_the_sizes() {
        let limit = Limit::new(1000);
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let mut now = start;
        let sizes = [1, 5000, 0, 300, 20_000, 1, 1, 700];
        for size in sizes {
            now += limit.take(size, now);
        }
        let total: u64 = sizes.iter().sum();
        let seconds = now.duration_since(start).unwrap().as_secs_f64();
        assert!((seconds - (total as f64 - 1000.0) / 1000.0).abs() < 0.01, "{seconds}");
        // A long silence saves up one second, not an hour; a clock set back saves up nothing.
        now += Duration::from_secs(3600);
        assert_eq!(limit.take(1000, now), Duration::ZERO);
        assert_eq!(limit.take(1000, now - Duration::from_secs(50)), Duration::from_secs(1));
    }
}
