//! What a demo says while it runs and at its end.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::app::{App, Result};
use crate::output::Style;

/// Prints the scenes of a demo with the time that each took.
pub struct Scenes<'a> {
    app: &'a App,
    number: usize,
    began: Instant,
}

impl<'a> Scenes<'a> {
    pub fn new(app: &'a App) -> Self {
        Self { app, number: 0, began: Instant::now() }
    }

    pub fn title(&self, text: &str) -> Result<()> {
        let paint = self.app.output.paint;
        self.app.output.say(format!("\n{}\n", paint.paint(Style::Bold, text)))
    }

    /// Starts a scene; an error once somebody asked to stop.
    pub fn scene(&mut self, text: &str) -> Result<()> {
        if self.app.interrupt.is_requested() {
            return Err(backstay_ops::Error::new(
                backstay_ops::ErrorKind::Interrupted,
                "interrupted; everything was cleared away",
            ));
        }
        self.number += 1;
        self.began = Instant::now();
        let paint = self.app.output.paint;
        let number = paint.paint(Style::Cyan, format!("{:>2}", self.number));
        self.app.output.say(format!("{number}  {text}"))
    }

    /// A command that does what the scene does.
    pub fn command(&self, text: &str) -> Result<()> {
        let paint = self.app.output.paint;
        self.app.output.say(format!("    {}", paint.paint(Style::Dim, format!("$ {text}"))))
    }

    /// What the scene came to.
    pub fn result(&self, text: &str) -> Result<Duration> {
        let took = self.began.elapsed();
        let paint = self.app.output.paint;
        let time = paint.paint(Style::Dim, format!("({})", seconds(took)));
        self.app.output.say(format!("    {text} {time}"))?;
        Ok(took)
    }
}

/// One check with its answer.
#[derive(Debug, Serialize)]
pub struct Proof {
    pub what: String,
    pub expected: String,
    pub found: String,
    pub ok: bool,
}

impl Proof {
    pub fn new(what: &str, expected: impl ToString, found: impl ToString) -> Self {
        let (expected, found) = (expected.to_string(), found.to_string());
        Self { what: what.to_owned(), ok: expected == found, expected, found }
    }
}

/// The end of a demo. Times are seconds, sizes bytes.
#[derive(Debug, Serialize)]
pub struct Report {
    pub kind: &'static str,
    pub server: Option<String>,
    pub lost: String,
    pub proofs: Vec<Proof>,
    pub rto: f64,
    pub rpo: Option<f64>,
    pub bytes: u64,
    pub stored: u64,
    pub archived: Option<u64>,
    pub archive_stored: Option<u64>,
    pub backup_seconds: f64,
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.proofs.iter().all(|proof| proof.ok)
    }

    pub fn print(&self, app: &App) -> Result<()> {
        app.output.document(self)?;
        let paint = app.output.paint;
        let head = |text: &str| paint.paint(Style::Bold, text);
        let mut lines = vec![String::new(), head("Proof")];
        let width = self.proofs.iter().map(|p| p.what.chars().count()).max().unwrap_or(0);
        for proof in &self.proofs {
            let mark = if proof.ok {
                paint.paint(Style::Green, "✓")
            } else {
                paint.paint(Style::Red, "✗")
            };
            let mut line = format!("  {mark} {:width$}  {}", proof.what, proof.found);
            if !proof.ok {
                line.push_str(&paint.paint(Style::Red, format!("  expected {}", proof.expected)));
            }
            lines.push(line);
        }
        lines.extend([String::new(), head("Report")]);
        let mut row = |name: &str, text: String| lines.push(format!("  {name:<22}{text}"));
        row("lost by accident", self.lost.clone());
        row(
            "recovery time (RTO)",
            format!("{:.1} s from the order to restore to the last proof", self.rto),
        );
        if let Some(rpo) = self.rpo {
            row(
                "data loss (RPO)",
                format!("{:.0} ms between the restored moment and the accident", rpo * 1e3),
            );
        }
        row(
            "backup",
            format!(
                "{} in {:.1} s, stored as {} ({:.1} : 1, encrypted)",
                size(self.bytes),
                self.backup_seconds,
                size(self.stored),
                self.bytes as f64 / self.stored.max(1) as f64
            ),
        );
        if let (Some(archived), Some(stored)) = (self.archived, self.archive_stored) {
            row(
                "archived WAL",
                format!(
                    "{}, stored as {} ({:.1} : 1)",
                    size(archived),
                    size(stored),
                    archived as f64 / stored.max(1) as f64
                ),
            );
        }
        lines.push(String::new());
        lines.push(if self.is_good() {
            "Everything was cleared away. Next: `backstay init` looks at what you have.".to_owned()
        } else {
            paint.paint(Style::Red, "The restored data is not what it should be.")
        });
        app.output.answer(lines.join("\n"))
    }
}

pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

pub fn grouped(number: i64) -> String {
    let digits = number.abs().to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}
