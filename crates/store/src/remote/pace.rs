//! How many requests a service is asked at once, and from when on.
//!
//! A service that says "slow down" (429, or 503) is left alone for as long as it says, and then
//! asked by fewer at once: half as many as were at work. Each round of answers without a complaint
//! lets one more in, until nobody waits. All handles of one store share it, whatever they ask for.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

/// More than any command asks at once: then nothing is held back.
const MANY: f64 = 256.0;

/// The longest wait that a service is granted for the asking.
const LONGEST: Duration = Duration::from_secs(300);

/// Complaints that come this close together are about one burst: they count once.
const BURST: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
pub(super) struct Pace {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    at_once: f64,
    at_work: usize,
    /// Nobody asks before this.
    not_before: Option<Instant>,
    slowed: Option<Instant>,
}

impl Default for State {
    fn default() -> Self {
        Self { at_once: MANY, at_work: 0, not_before: None, slowed: None }
    }
}

/// One request may be made as long as this lives.
pub(super) struct Turn(Arc<Pace>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.state().at_work -= 1;
        self.0.freed.notify_waiters();
    }
}

impl Pace {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits until one more request may be made.
    pub(super) async fn turn(self: &Arc<Self>) -> Turn {
        loop {
            // Before the look, so that no wake-up between the two is missed.
            let freed = self.freed.notified();
            let pause = {
                let mut state = self.state();
                let now = Instant::now();
                match state.not_before.filter(|until| *until > now) {
                    Some(until) => Some(until - now),
                    None if (state.at_work as f64) < state.at_once.floor() => {
                        state.at_work += 1;
                        return Turn(Arc::clone(self));
                    }
                    None => None,
                }
            };
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => freed.await,
            }
        }
    }

    /// The service asked to be asked less, and perhaps not before some time has passed.
    pub(super) fn slow_down(&self, pause: Option<Duration>) {
        let mut state = self.state();
        let now = Instant::now();
        if let Some(pause) = pause {
            let until = now + pause.min(LONGEST);
            state.not_before = Some(state.not_before.map_or(until, |known| known.max(until)));
        }
        if state.slowed.is_some_and(|last| now.duration_since(last) < BURST) {
            return;
        }
        state.slowed = Some(now);
        state.at_once = (state.at_once.min(state.at_work as f64) / 2.0).max(1.0);
        tracing::debug!(at_once = state.at_once.floor(), ?pause, "the store asked to slow down");
    }

    /// The service did what it was asked.
    pub(super) fn went_well(&self) {
        let mut state = self.state();
        if state.at_once < MANY {
            state.at_once = (state.at_once + 1.0 / state.at_once).min(MANY);
            drop(state);
            self.freed.notify_waiters();
        }
    }
}

/// The wait in a `Retry-After`: seconds, or a date.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?;
    SystemTime::from(date.timestamp()).duration_since(now).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_564_800);
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(
            retry_after("Wed, 25 Nov 2026 00:00:30 GMT", now),
            Some(Duration::from_secs(30))
        );
        for none in ["Tue, 24 Nov 2026 00:00:30 GMT", "soon", "", "-5"] {
            assert_eq!(retry_after(none, now), None, "{none}");
        }
    }

    #[test]
    fn it_halves_once_a_burst_and_recovers() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let pace = Arc::new(Pace::default());
            let mut turns = Vec::new();
            for _ in 0..8 {
                turns.push(pace.turn().await);
            }
            for _ in 0..8 {
                pace.slow_down(None);
            }
            assert_eq!(pace.state().at_once, 4.0);
            // Nobody else comes in before three quarters of them have ended.
            turns.truncate(4);
            let waiting = tokio::time::timeout(Duration::from_millis(20), pace.turn()).await;
            assert!(waiting.is_err());
            turns.truncate(3);
            turns.push(pace.turn().await);
            for _ in 0..10_000 {
                pace.went_well();
            }
            assert!(pace.state().at_once > 100.0);
            drop(turns);
            assert_eq!(pace.state().at_work, 0);
        });
    }
}
