//! `backstay copy`: snapshots from one repository to another, without their source.

use backstay_ops::replicate::{self, Report, Selection};
use backstay_ops::units::{count, format_duration, format_size};
use backstay_ops::{Error, ErrorKind};
use clap::Args;
use serde_json::{Value, json};

use super::present::{content, moment_and_age, snapshot_document};
use crate::app::{App, Outcome, Result};
use crate::output::{Style, error_document, write_err};
use crate::work;

/// Copy snapshots from one repository to another, without their source
#[derive(Debug, Args)]
#[command(override_usage = "backstay copy <SNAPSHOT|SOURCE>... | --all --from A --to B [OPTIONS]")]
#[command(after_help = "What the other repository has already is not sent again: a copy that was
interrupted goes on where it stopped.

Examples:
  backstay copy --all --from main --to offsite --archive
  backstay copy orders 3f2a9c1b --from main --to offsite")]
pub struct CopyArgs {
    /// Snapshots by their ids or beginnings of them, or sources, for all of their snapshots
    #[arg(value_name = "SNAPSHOT|SOURCE", required_unless_present = "all")]
    what: Vec<String>,

    /// Every snapshot
    #[arg(long, conflicts_with = "what")]
    all: bool,

    /// The repository that is copied from, by its configured name
    #[arg(long, value_name = "REPOSITORY")]
    from: String,

    /// The repository that is copied to, by its configured name
    #[arg(long, value_name = "REPOSITORY")]
    to: String,

    /// The logs of PostgreSQL clusters as well
    #[arg(long)]
    archive: bool,
}

pub fn run(args: &CopyArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let (from, to) = (context.config.repository(&args.from)?, context.config.repository(&args.to)?);
    let selection = if args.all { Selection::All } else { Selection::Named(args.what.clone()) };
    let title = format!("{} to {}", args.from, args.to);
    let report = work::run(app, &title, |progress| {
        replicate::run(context, from, to, &selection, args.archive, progress)
    })?;
    app.show_warnings();
    app.output.document(&document(&report, &args.from, &args.to))?;
    present(app, &report, &args.from, &args.to)?;
    outcome(&report)
}

/// What came of it, in JSON.
pub fn document(report: &Report, from: &str, to: &str) -> Value {
    let (mut copied, mut failed) = (Vec::new(), Vec::new());
    for one in &report.snapshots {
        match &one.result {
            Ok((snapshot, new)) => copied.push(json!({
                "snapshot": snapshot_document(snapshot, to),
                "original": one.original.id,
                "new": new,
                "seconds": one.took.as_secs_f64(),
            })),
            Err(error) => failed.push(json!({
                "original": one.original.id,
                "source": one.original.source,
                "error": error_document(error),
            })),
        }
    }
    let mut archives = Vec::new();
    for one in &report.archives {
        let system = one.system_identifier.to_string();
        match &one.result {
            Ok(copied) => archives.push(json!({
                "system_identifier": system,
                "files": copied.files,
                "bytes": copied.bytes,
                "there": copied.there,
            })),
            Err(error) => {
                failed.push(json!({ "system_identifier": system, "error": error_document(error) }));
            }
        }
    }
    json!({ "from": from, "to": to, "copied": copied, "archives": archives, "failed": failed,
        "forgotten": report.forgotten })
}

pub fn present(app: &App, report: &Report, from: &str, to: &str) -> Result<()> {
    let paint = app.output.paint;
    let mut there = 0;
    for one in &report.snapshots {
        let original = &one.original;
        match &one.result {
            Ok((_, false)) => there += 1,
            Ok((snapshot, true)) => app.output.say(format!(
                "{}  copy of {} of {} from {}: {}\n          read {}, new {} stored as {}, {}",
                paint.paint(Style::Cyan, snapshot.short_id()),
                original.short_id(),
                paint.paint(Style::Bold, &original.source),
                moment_and_age(original.time, app.now(), &app.zone()),
                content(snapshot),
                format_size(snapshot.stats.bytes_read),
                format_size(snapshot.stats.new_bytes),
                format_size(snapshot.stats.stored_bytes),
                format_duration(one.took),
            ))?,
            Err(error) if !app.output.json => {
                let what = format!("{} of {}", original.short_id(), original.source);
                write_err(&app.output.error_text_of(&what, error));
            }
            Err(_) => {}
        }
    }
    for one in &report.archives {
        let system = one.system_identifier;
        match &one.result {
            Ok(copied) if copied.files == 0 => app.output.say(format!(
                "archive of {system}: all {} there already",
                count(copied.there, "file is", "files are")
            ))?,
            Ok(copied) => app.output.say(format!(
                "archive of {system}: {} copied, stored as {}",
                count(copied.files, "file", "files"),
                format_size(copied.bytes)
            ))?,
            Err(error) if !app.output.json => {
                write_err(&app.output.error_text_of(&format!("archive of {system}"), error));
            }
            Err(_) => {}
        }
    }
    if there > 0 {
        let number = count(there, "snapshot", "snapshots");
        app.output.say(format!("{number} of {from} in {to} already"))?;
    }
    if report.forgotten > 0 {
        let number = count(report.forgotten as u64, "snapshot", "snapshots");
        app.output.say(format!("{number} of {from} left out: forgotten in {to}"))?;
    }
    if report.snapshots.is_empty() && report.forgotten == 0 {
        app.output.say(format!("there is nothing to copy in {from}"))?;
    }
    Ok(())
}

/// How the command ends.
pub fn outcome(report: &Report) -> Result<Outcome> {
    Ok(match report.failed_and_done() {
        (false, _) => Outcome::Done,
        (true, true) => Outcome::Partial,
        (true, false) => Outcome::FailedAs(first_kind(report)),
    })
}

fn first_kind(report: &Report) -> ErrorKind {
    let snapshots = report.snapshots.iter().filter_map(|one| one.result.as_ref().err());
    let archives = report.archives.iter().filter_map(|one| one.result.as_ref().err());
    snapshots.chain(archives).next().map_or(ErrorKind::Failed, Error::kind)
}
