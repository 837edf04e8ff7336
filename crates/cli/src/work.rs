//! Long work: its progress on standard error, and the wish to stop on its way to it.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backstay_ops::units::{format_duration, format_size, group};
use backstay_repo::{Progress, ProgressSnapshot};
use indicatif::{ProgressBar, ProgressStyle};

use crate::app::App;

/// How often the display is drawn and signals are looked for.
const TICK: Duration = Duration::from_millis(100);

/// Work that nobody waits for long shows no progress at all.
const PATIENCE: Duration = Duration::from_millis(400);

/// Runs `work`, with its progress drawn where there is a terminal. SIGINT and SIGTERM ask it to
/// stop.
pub fn run<T>(app: &App, title: &str, work: impl FnOnce(&Arc<Progress>) -> T) -> T {
    let progress = Arc::new(Progress::default());
    let _graceful = app.interrupt.graceful();
    let watch = Watch::start(app, title.to_owned(), progress.clone());
    let result = work(&progress);
    drop(watch);
    result
}

/// The thread that draws and listens. Ends when dropped.
struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(app: &App, title: String, progress: Arc<Progress>) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let interrupt = app.interrupt.clone();
        let draws = app.output.draws;
        let thread = std::thread::Builder::new().name("progress".into()).spawn(move || {
            let start = Instant::now();
            let mut display = None;
            let mut rate = Rate::default();
            while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if interrupt.is_requested() {
                    progress.cancel();
                }
                if !draws || start.elapsed() < PATIENCE {
                    continue;
                }
                let now = progress.snapshot();
                rate.add(now.done_bytes, Instant::now());
                let bar = display.get_or_insert_with(bar);
                show(bar, &title, &now, &rate, start.elapsed(), progress.is_cancelled());
            }
            if let Some(bar) = display {
                bar.finish_and_clear();
            }
        });
        // Without a thread there is no display; the work itself does not need one.
        Self { stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
        bar.set_style(style);
    }
    bar
}

fn show(
    bar: &ProgressBar,
    title: &str,
    now: &ProgressSnapshot,
    rate: &Rate,
    elapsed: Duration,
    stopping: bool,
) {
    let phase = match (stopping, now.phase) {
        (true, _) => "stopping",
        (false, "") => "",
        (false, phase) => phase,
    };
    let mut parts =
        vec![if phase.is_empty() { title.to_owned() } else { format!("{title} · {phase}") }];
    if now.total_bytes > 0 {
        let share = (now.done_bytes as f64 / now.total_bytes as f64).min(1.0);
        parts.push(format!("{} {:>3.0}%", blocks(share), share * 100.0));
        parts.push(format!("{} of {}", format_size(now.done_bytes), format_size(now.total_bytes)));
    } else if now.done_bytes > 0 {
        parts.push(format_size(now.done_bytes));
    }
    if now.total_bytes == 0 && now.done_items > 0 {
        parts.push(format!("{} items", group(now.done_items)));
    }
    if let Some(speed) = rate.per_second().filter(|speed| *speed >= 1.0) {
        parts.push(format!("{}/s", format_size(speed as u64)));
        let left = now.total_bytes.saturating_sub(now.done_bytes) as f64 / speed;
        if now.total_bytes > 0 && (1.0..1e7).contains(&left) {
            parts
                .push(format!("{} left", format_duration(Duration::from_secs(left.ceil() as u64))));
        }
    } else if elapsed.as_secs() > 0 {
        parts.push(format_duration(Duration::from_secs(elapsed.as_secs())));
    }
    bar.set_message(parts.join("  "));
}

/// A bar of 24 cells, with eighths.
fn blocks(share: f64) -> String {
    const WIDTH: usize = 24;
    const PARTS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (share.clamp(0.0, 1.0) * (WIDTH * 8) as f64).round() as usize;
    let mut text: String = std::iter::repeat_n('█', eighths / 8).collect();
    if eighths / 8 < WIDTH {
        text.push(PARTS.get(eighths % 8).copied().unwrap_or(' '));
    }
    let drawn = text.chars().count();
    text.extend(std::iter::repeat_n(' ', WIDTH - drawn));
    format!("▕{text}▏")
}

/// Bytes a second over the last few seconds.
#[derive(Default)]
struct Rate {
    samples: std::collections::VecDeque<(Instant, u64)>,
}

impl Rate {
    const WINDOW: Duration = Duration::from_secs(5);

    fn add(&mut self, bytes: u64, now: Instant) {
        self.samples.push_back((now, bytes));
        while self.samples.len() > 2
            && self.samples.front().is_some_and(|(then, _)| now - *then > Self::WINDOW)
        {
            self.samples.pop_front();
        }
    }

    fn per_second(&self) -> Option<f64> {
        let ((then, before), (now, after)) = (self.samples.front()?, self.samples.back()?);
        let seconds = (*now - *then).as_secs_f64();
        (seconds > 0.2).then(|| after.saturating_sub(*before) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_as_long_as_its_share() {
        assert_eq!(blocks(0.0), format!("▕{}▏", " ".repeat(24)));
        assert_eq!(blocks(0.5), format!("▕{}{}▏", "█".repeat(12), " ".repeat(12)));
        assert_eq!(blocks(1.0), format!("▕{}▏", "█".repeat(24)));
        assert_eq!(blocks(2.0).chars().count(), 26);
    }

    #[test]
    fn the_rate_forgets_what_was_long_ago() {
        let start = Instant::now();
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), None);
        for second in 0..20_u64 {
            let bytes = if second < 10 { second * 1000 } else { 10_000 + (second - 10) * 10 };
            rate.add(bytes, start + Duration::from_secs(second));
        }
        assert_eq!(rate.per_second(), Some(10.0));
    }
}
