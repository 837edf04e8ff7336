//! `backstay thaw`: fetching out of a cloud's archive what a restore needs.

use backstay_ops::units::{count, format_size};
use backstay_repo::{ThawOptions, ThawReport};
use backstay_store::ThawSpeed;
use clap::Args;
use serde_json::{Value, json};

use crate::app::{App, Outcome, Result};
use crate::work;

/// Fetch what a snapshot needs out of the archive class of a cloud, so that it can be restored
#[derive(Debug, Args)]
#[command(
    after_help = "Asks for exactly the objects that a restore of the snapshot reads. It may be run again at any time:
what is on its way is not asked for twice. Exit code 0: all can be read; 3: not yet.
The cloud charges for what it fetches; --dry-run says how much that is."
)]
pub struct ThawArgs {
    /// The id of a snapshot, the beginning of one, or a source for its newest
    snapshot: String,

    /// How fast, and so at which price: bulk, standard or expedited
    #[arg(long, value_name = "TIER", default_value = "standard")]
    tier: ThawSpeed,

    /// How many days the copies stay readable (S3; on Azure objects stay in Hot)
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,

    /// Only say how it stands
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &ThawArgs, app: &App) -> Result<Outcome> {
    let found = app.context()?.find(&args.snapshot)?;
    app.show_warnings();
    let options = ThawOptions { speed: args.tier, days: args.days, dry_run: args.dry_run };
    let report = work::run(app, &found.name, |progress| {
        found.repository.thaw(&found.snapshot, &options, progress)
    })?;
    let mut document = json!({
        "snapshot": found.snapshot.id,
        "repository": found.name,
        "dry_run": args.dry_run,
        "all_ready": report.is_ready(),
    });
    if let (Value::Object(into), Ok(Value::Object(from))) =
        (&mut document, serde_json::to_value(&report))
    {
        into.extend(from);
    }
    app.output.document(&document)?;
    app.output.say(format!("{}  {}", found.snapshot.short_id(), words(&report, args.dry_run)))?;
    Ok(if report.is_ready() { Outcome::Done } else { Outcome::Partial })
}

fn words(report: &ThawReport, dry_run: bool) -> String {
    let objects = count(report.objects, "object", "objects");
    if report.is_ready() {
        let until = report.until.map_or_else(String::new, |time| format!(" until {time:.0}"));
        return format!("all of {objects} ({}) can be read{until}", format_size(report.bytes));
    }
    let mut parts = Vec::new();
    if report.asked > 0 {
        let verb = if dry_run { "in the archive" } else { "asked for" };
        parts.push(format!("{} {verb}", report.asked));
    }
    if report.thawing > 0 {
        parts.push(format!("{} on their way", report.thawing));
    }
    parts.push(format!("{} of {objects} can be read", report.ready));
    format!("{}; {} must be fetched", parts.join(", "), format_size(report.bytes_waiting))
}
