//! What a person or a program sees: answers on standard output, everything else on standard error.
//!
//! With `--json` standard output carries exactly one document, and an error is one line of JSON on
//! standard error.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use backstay_ops::Error;
use serde::Serialize;
use serde_json::json;

use crate::app::Result;
use crate::cli::Global;

pub struct Output {
    pub json: bool,
    pub quiet: bool,
    verbose: u8,
    /// Of standard output.
    pub paint: Paint,
    /// Of standard error.
    pub paint_err: Paint,
    /// Progress can be drawn.
    pub draws: bool,
}

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    on: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

impl Paint {
    pub fn new(on: bool) -> Self {
        Self { on }
    }

    fn for_stream(terminal: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self::new(terminal && !dumb && !set("NO_COLOR"))
    }

    pub fn paint(self, style: Style, text: impl fmt::Display) -> String {
        let code = match style {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Red => "1;31",
            Style::Green => "32",
            Style::Yellow => "33",
            Style::Cyan => "36",
            Style::Plain => "",
        };
        if self.on && !code.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }
}

impl Output {
    pub fn new(global: &Global) -> Self {
        let terminal = io::stderr().is_terminal();
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            paint: Paint::for_stream(io::stdout().is_terminal()),
            paint_err: Paint::for_stream(terminal),
            draws: terminal && !global.quiet,
        }
    }

    /// Starts the log on standard error. Silent unless somebody asked.
    pub fn start_log(&self) {
        let asked = std::env::var("BACKSTAY_LOG").ok().filter(|filter| !filter.is_empty());
        let level = match self.verbose {
            0 if asked.is_none() => return,
            0 => "",
            // Targets match by their beginning: this is all crates of the workspace.
            1 => "backstay=info",
            2 => "backstay=debug",
            _ => "trace",
        };
        let filter = asked.unwrap_or_else(|| level.to_owned());
        // A log that is started twice keeps the first.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
            .with_writer(io::stderr)
            .with_ansi(self.paint_err.on)
            .with_target(self.verbose > 1)
            .try_init();
    }

    /// The answer of a command, for people. Nothing with `--json`.
    pub fn answer(&self, text: impl fmt::Display) -> Result<()> {
        if self.json {
            return Ok(());
        }
        write_out(format!("{text}\n").as_bytes())
    }

    /// What is nice to know, for people. Nothing with `--json` or `--quiet`.
    pub fn say(&self, text: impl fmt::Display) -> Result<()> {
        if self.quiet { Ok(()) } else { self.answer(text) }
    }

    /// The answer of a command, for programs. Nothing without `--json`.
    pub fn document(&self, value: &impl Serialize) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        let mut text = serde_json::to_string_pretty(value).map_err(|error| {
            Error::new(backstay_ops::ErrorKind::Failed, "could not write the answer as JSON")
                .with_source(error)
        })?;
        text.push('\n');
        write_out(text.as_bytes())
    }

    /// Something a person should know, on standard error.
    pub fn warn(&self, message: &str, hint: Option<&str>) {
        let paint = self.paint_err;
        let mut text = format!("{}: {message}\n", paint.paint(Style::Yellow, "warning"));
        if let Some(hint) = hint {
            text.push_str(&format!("{}: {hint}\n", paint.paint(Style::Cyan, "hint")));
        }
        write_err(&text);
    }

    /// What went wrong, and what to do.
    pub fn error(&self, error: &Error) {
        if self.json {
            return Self::json_error(error);
        }
        let mut text = String::new();
        for error in std::iter::once(error).chain(error.also()) {
            text.push_str(&self.error_text(error));
        }
        write_err(&text);
    }

    /// "error: …" and "hint: …", each on its line.
    pub fn error_text(&self, error: &Error) -> String {
        let paint = self.paint_err;
        let mut text = format!("{}: {error}\n", paint.paint(Style::Red, "error"));
        if self.verbose > 0 {
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                let line = format!("  because: {cause}\n");
                // Errors that pass a cause through would say everything twice.
                if !text.contains(&cause.to_string()) {
                    text.push_str(&line);
                }
                source = cause.source();
            }
        }
        if let Some(hint) = error.hint() {
            text.push_str(&format!("{}: {hint}\n", paint.paint(Style::Cyan, "hint")));
        }
        text
    }

    /// The same, of one of several things.
    pub fn error_text_of(&self, what: &str, error: &Error) -> String {
        let paint = self.paint_err;
        let mut text = format!("{}: {what}: {error}\n", paint.paint(Style::Red, "error"));
        if let Some(hint) = error.hint() {
            text.push_str(&format!("{}: {hint}\n", paint.paint(Style::Cyan, "hint")));
        }
        text
    }

    pub fn json_error(error: &Error) {
        write_err(&format!("{}\n", json!({ "error": error_document(error) })));
    }
}

/// An error as it stands in JSON.
pub fn error_document(error: &Error) -> serde_json::Value {
    let mut document = json!({
        "kind": error.kind().as_str(),
        "message": error.to_string(),
        "hint": error.hint(),
    });
    if !error.also().is_empty() {
        document["also"] = error.also().iter().map(error_document).collect();
    }
    document
}

/// Writes to standard output. A reader that went away (`backstay list | head`) ends the process
/// quietly: it has what it wanted.
pub fn write_out(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Error::io("write to", "standard output", error)),
    }
}

/// Writes to standard error; nobody is left to tell when that fails.
pub fn write_err(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
