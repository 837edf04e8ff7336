//! `backstay thaw`: fetching out of a cloud's archive what a restore needs.

use std::time::Duration;

use backstay_ops::units::{count, format_size, parse_duration};
use backstay_repo::{ThawOptions, ThawReport, ThawWait};
use backstay_store::ThawSpeed;
use clap::Args;
use serde_json::{Value, json};

use crate::app::{App, Outcome, Result};
use crate::work;

/// How many days copies stay readable, unless somebody says otherwise.
const DAYS: u32 = 7;

/// Fetch what a snapshot needs out of the archive class of a cloud, so that it can be restored
#[derive(Debug, Args)]
#[command(
    after_help = "Asks for exactly the objects that a restore of the snapshot reads. It may be run again at any time,
and stopped at any time: what is on its way is not asked for twice. Exit code 0: all can be read;
3: not yet. The cloud charges for what it fetches; --dry-run says how much that is.

`backstay restore --thaw` fetches what one restore needs, waits for it and restores.

Examples:
  backstay thaw orders --dry-run
  backstay thaw orders --tier bulk --wait --timeout 2d"
)]
pub struct ThawArgs {
    /// The id of a snapshot, the beginning of one, or a source for its newest
    snapshot: String,

    /// How fast, and so at which price: bulk (half a day to two), standard (hours) or expedited
    /// (minutes; on Azure an hour; not from DEEP_ARCHIVE)
    #[arg(long, value_name = "TIER", default_value = "standard")]
    tier: ThawSpeed,

    /// How many days the copies stay readable (S3; on Azure objects stay in Hot)
    #[arg(long, value_name = "N", default_value_t = DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,

    /// Only say how it stands
    #[arg(long)]
    dry_run: bool,

    /// Ask again, ever less often (at most every five minutes), until all can be read
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,

    /// Wait no longer than this
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

/// What a restore says about it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Out of a cloud's archive")]
pub struct FetchArgs {
    /// Fetch what the restore needs out of the cloud's archive first, and wait for it (hours, mostly).
    /// The cloud charges for it
    #[arg(long)]
    thaw: bool,

    /// How fast, and so at which price: bulk, standard or expedited
    #[arg(long, value_name = "TIER", default_value = "standard", requires = "thaw")]
    thaw_tier: ThawSpeed,

    /// Wait no longer than this; then nothing was restored, and what was asked for goes on
    #[arg(long, value_name = "TIME", requires = "thaw", value_parser = parse_duration)]
    thaw_timeout: Option<Duration>,
}

impl FetchArgs {
    pub fn options(&self) -> Option<ThawOptions> {
        let wait = Some(ThawWait { at_most: self.thaw_timeout });
        self.thaw.then_some(ThawOptions { speed: self.thaw_tier, days: DAYS, dry_run: false, wait })
    }
}

pub fn run(args: &ThawArgs, app: &App) -> Result<Outcome> {
    let found = app.context()?.find(&args.snapshot)?;
    app.show_warnings();
    let wait = args.wait.then_some(ThawWait { at_most: args.timeout });
    let options = ThawOptions { speed: args.tier, days: args.days, dry_run: args.dry_run, wait };
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
