//! `backstay verify`: is what is stored what was stored?

use std::time::Instant;

use backstay_ops::config::{Percent, VerifyLevel};
use backstay_ops::units::{count, format_duration, format_size};
use backstay_ops::verify::{VerifyRequest, verify};
use backstay_repo::VerifyReport;
use clap::Args;
use serde_json::{Value, json};

use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::work;

/// Check that what is stored can be restored
#[derive(Debug, Args)]
#[command(after_help = "Levels:
  basic      every object is there, with its size
  standard   every object has the content that it had
  thorough   every chunk opens, decompresses and hashes to its id; all trees are walked
  forensic   restored in a sandbox, started and queried

Ends with 20 when something is damaged.")]
pub struct VerifyArgs {
    /// A source, or one snapshot [default: everything]
    #[arg(value_name = "SOURCE|SNAPSHOT")]
    what: Option<String>,

    /// How thorough [default: what the policy of the source says, or standard]
    #[arg(long, value_parser = parse_level())]
    level: Option<VerifyLevel>,

    /// Read only a share; repeated runs cover everything
    #[arg(long, value_name = "PERCENT", value_parser = Percent::parse)]
    sample: Option<Percent>,
}

fn parse_level() -> impl clap::builder::TypedValueParser<Value = VerifyLevel> {
    use clap::builder::TypedValueParser;
    clap::builder::PossibleValuesParser::new(VerifyLevel::ALL.map(VerifyLevel::as_str))
        .try_map(|text| text.parse::<VerifyLevel>())
}

pub fn run(args: &VerifyArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let source = args
        .what
        .as_ref()
        .and_then(|name| context.config.sources.iter().find(|source| &source.name == name));
    let policy = source
        .and_then(|source| context.config.policy_of(source))
        .and_then(|policy| policy.verify.as_ref());
    let level = args.level.or(policy.map(|policy| policy.level)).unwrap_or(VerifyLevel::Standard);
    let mut request = VerifyRequest { level, sample: args.sample, snapshots: Vec::new() };
    let mut reports = Vec::new();
    match &args.what {
        None => {
            for config in context.config.repositories()? {
                let repository = context.open(config)?;
                app.show_warnings();
                reports.push(one(app, &config.name, &repository, &request)?);
            }
        }
        Some(name) => {
            let found = context.find(name)?;
            app.show_warnings();
            let repositories = match source {
                Some(source) => context.config.repositories_of(source)?,
                None => Vec::new(),
            };
            if repositories.is_empty() {
                request.snapshots = if found.snapshot.source == *name {
                    of_source(&found.repository, name)?
                } else {
                    vec![found.snapshot.clone()]
                };
                reports.push(one(app, &found.name, &found.repository, &request)?);
            }
            for config in repositories {
                let repository = context.open(config)?;
                request.snapshots = of_source(&repository, name)?;
                // An empty list would mean everything.
                if !request.snapshots.is_empty() {
                    reports.push(one(app, &config.name, &repository, &request)?);
                }
            }
        }
    }
    let good = reports.iter().all(|(_, report, _)| report.is_good());
    let documents: Vec<Value> = reports
        .iter()
        .map(|(name, report, seconds)| {
            let mut document =
                json!({ "repository": name, "good": report.is_good(), "seconds": seconds });
            if let (Value::Object(into), Ok(Value::Object(from))) =
                (&mut document, serde_json::to_value(report))
            {
                into.extend(from);
            }
            document
        })
        .collect();
    app.output.document(&json!({ "good": good, "verifications": documents }))?;
    Ok(if good { Outcome::Done } else { Outcome::Damage })
}

fn of_source(
    repository: &backstay_repo::Repository,
    name: &str,
) -> Result<Vec<backstay_repo::Snapshot>> {
    let mut snapshots = repository.snapshots()?;
    snapshots.retain(|snapshot| snapshot.source == name);
    Ok(snapshots)
}

fn one(
    app: &App,
    name: &str,
    repository: &backstay_repo::Repository,
    request: &VerifyRequest,
) -> Result<(String, VerifyReport, f64)> {
    let start = Instant::now();
    let context = app.context()?;
    let report = work::run(app, name, |progress| verify(context, repository, request, progress))?;
    let took = start.elapsed();
    let paint = app.output.paint;
    let mark = if report.is_good() {
        paint.paint(Style::Green, "good")
    } else {
        paint.paint(Style::Red, "damaged")
    };
    let mut parts = vec![
        count(report.snapshots, "snapshot", "snapshots"),
        count(report.objects, "object", "objects"),
    ];
    if report.chunks > 0 {
        parts.push(count(report.chunks, "chunk", "chunks"));
    }
    if report.archived > 0 {
        parts.push(count(report.archived, "archived file", "archived files"));
    }
    if report.bytes > 0 {
        parts.push(format!("{} read", format_size(report.bytes)));
    }
    parts.push(format_duration(took));
    app.output.say(format!("{name}  {mark}  level {}: {}", report.level, parts.join(", ")))?;
    if report.covered < 99.95 {
        app.output.say(format!("      covered {:.1} % this time", report.covered))?;
    }
    for damage in &report.damages {
        app.output.answer(format!(
            "  {} {}: {}",
            paint.paint(Style::Red, "damaged"),
            damage.object,
            damage.what
        ))?;
    }
    Ok((name.to_owned(), report, took.as_secs_f64()))
}
