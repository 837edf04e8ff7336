//! `backstay maintenance`: space back, and a small index.

use std::time::{Duration, Instant};

use backstay_ops::units::{count, format_duration, format_size, parse_duration, parse_size};
use backstay_repo::{MaintenanceOptions, MaintenanceReport, Waiting};
use clap::Args;
use serde_json::{Value, json};

use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::work;

/// Remove what no snapshot needs, rewrite packs that are mostly that, and merge the index
#[derive(Debug, Args)]
#[command(after_help = "Backups and restores go on meanwhile; several runs at once do no harm.
What a backup that is at work might still need is kept until it has ended: the next run removes it.")]
pub struct MaintenanceArgs {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,

    /// How much may be moved out of packs that are mostly garbage [default: all of it]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_repack: Option<u64>,

    /// Also seal anew what only a replaced root key opens, within --max-repack
    #[arg(long)]
    reseal: bool,

    /// Give up backups that have not stored anything for this long; they start again
    #[arg(long, value_name = "TIME", default_value = "48h", value_parser = parse_duration)]
    give_up_after: Duration,
}

pub fn run(args: &MaintenanceArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let options = MaintenanceOptions {
        dry_run: args.dry_run,
        max_repack: args.max_repack.unwrap_or(u64::MAX),
        give_up_after: args.give_up_after,
        reseal: args.reseal,
    };
    let mut documents: Vec<Value> = Vec::new();
    let asked = context.ask_all(|config, repository| {
        app.show_warnings();
        let start = Instant::now();
        let report =
            work::run(app, &config.name, |progress| repository.maintain(&options, progress))?;
        let took = start.elapsed();
        let mut document = json!({
            "repository": config.name,
            "dry_run": args.dry_run,
            "seconds": took.as_secs_f64(),
        });
        if let (Value::Object(into), Ok(Value::Object(from))) =
            (&mut document, serde_json::to_value(&report))
        {
            into.extend(from);
        }
        documents.push(document);
        present(app, args.dry_run, &config.name, &report, took)
    })?;
    app.show_warnings();
    app.output.document(&json!({ "maintenance": documents }))?;
    Ok(if asked.failed.is_empty() { Outcome::Done } else { Outcome::Partial })
}

fn present(
    app: &App,
    dry_run: bool,
    name: &str,
    report: &MaintenanceReport,
    took: Duration,
) -> Result<()> {
    let paint = app.output.paint;
    let name = paint.paint(Style::Bold, name);
    let packs = count(report.packs_removed, "pack", "packs");
    let bytes = format_size(report.bytes_removed);
    let removed = match (dry_run, report.packs_removed) {
        (_, 0) if report.packs_waiting + report.packs_locked > 0 => {
            "nothing could be removed yet".to_owned()
        }
        (_, 0) => "nothing to remove".to_owned(),
        (false, _) => format!("removed {bytes} in {packs}"),
        (true, _) => format!("would remove {bytes} in {packs}"),
    };
    // What was moved lies in new packs as well.
    let left = (report.bytes_before + report.bytes_repacked).saturating_sub(report.bytes_removed);
    app.output.say(format!(
        "{name}  {removed}; {} in packs, {} of it needed ({})",
        format_size(left),
        format_size(report.bytes_live),
        format_duration(took)
    ))?;
    if report.packs_repacked > 0 {
        let verb = if dry_run { "would move" } else { "moved" };
        app.output.say(format!(
            "      {verb} {} out of {} of mostly garbage",
            format_size(report.bytes_repacked),
            count(report.packs_repacked, "pack", "packs"),
        ))?;
    }
    if report.bytes_of_old_keys > 0 {
        app.output.say(format!(
            "      {} is sealed to a root key that was replaced; --reseal seals it anew",
            format_size(report.bytes_of_old_keys)
        ))?;
    }
    if report.snapshots_removed > 0 {
        let number = count(report.snapshots_removed, "forgotten snapshot", "forgotten snapshots");
        app.output.say(format!("      {number} {}", if dry_run { "would go" } else { "gone" }))?;
    }
    if report.segments_after < report.segments_before {
        app.output.say(format!(
            "      the index has {} instead of {}",
            count(report.segments_after, "segment", "segments"),
            report.segments_before
        ))?;
    }
    let locked = [
        (report.packs_locked, count(report.packs_locked, "pack", "packs")),
        (report.objects_locked, count(report.objects_locked, "other object", "other objects")),
    ];
    let locked: Vec<String> = locked.into_iter().filter(|(n, _)| *n > 0).map(|(_, t)| t).collect();
    if !locked.is_empty() {
        let until = report.locked_until.map_or_else(
            || "until a hold is lifted".to_owned(),
            |time| format!("until {time:.0} at the latest"),
        );
        let size = match report.bytes_locked {
            0 => String::new(),
            bytes => format!("{} in ", format_size(bytes)),
        };
        app.output.say(format!(
            "      {size}{} cannot go yet: locked by the store {until}",
            locked.join(" and ")
        ))?;
    }
    if report.packs_moved > 0 {
        let verb = if dry_run { "would go" } else { "went" };
        app.output.say(format!(
            "      {} in {} {verb} into a colder class for their age",
            format_size(report.bytes_moved),
            count(report.packs_moved, "pack", "packs"),
        ))?;
    }
    if report.locks_extended > 0 {
        let number = count(report.locks_extended, "object", "objects");
        app.output.say(format!("      {number} locked for another period"))?;
    }
    if report.uploads_removed > 0 {
        let number = count(report.uploads_removed, "pack", "packs");
        let verb = if dry_run { "would go" } else { "gone" };
        app.output.say(format!("      the parts of {number} that never became whole {verb}"))?;
    }
    for one in &report.given_up {
        app.output.say(format!("      gave up {}", about(one)))?;
    }
    if report.packs_waiting > 0 {
        app.output.say(format!(
            "      {} in {} waits for what is at work, and goes with the next run:",
            format_size(report.bytes_waiting),
            count(report.packs_waiting, "pack", "packs")
        ))?;
        for one in &report.waiting_for {
            app.output.say(format!("        {}", about(one)))?;
        }
    }
    Ok(())
}

fn about(session: &Waiting) -> String {
    let started = session.started.map_or_else(String::new, |time| format!(" since {time:.0}"));
    let unknown = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
    format!("a backup of {} on {}{started}", unknown(&session.source), unknown(&session.host))
}
