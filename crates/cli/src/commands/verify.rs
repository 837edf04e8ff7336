//! `backstay verify`: is what is stored what was stored?

use std::time::{Duration, Instant};

use backstay_ops::Error;
use backstay_ops::config::{Percent, VerifyLevel};
use backstay_ops::units::{count, format_duration, format_size};
use backstay_ops::verify::{VerifyRequest, repair, verify};
use backstay_repo::{RepairReport, VerifyReport};
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
  thorough   every chunk opens, decompresses and hashes to its id, and so does each piece of a
             database file that lies in several; all trees are walked
  forensic   restored in a sandbox, started and queried

With --repair what is damaged is put right, as far as it can be had: an index from the
packs, what is left of a damaged pack, with parity the object as it was, and with --repair-from what is lost from another
repository that holds the same. Nothing goes before what replaces it is stored.

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

    /// Put right what is damaged, as far as it can be had
    #[arg(long, conflicts_with_all = ["what", "sample"])]
    repair: bool,

    /// Repair, and find what is lost in another repository
    #[arg(long, value_name = "REPOSITORY", conflicts_with_all = ["what", "sample"])]
    repair_from: Option<String>,
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
        None if args.repair || args.repair_from.is_some() => return repair_all(args, level, app),
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
    let documents: Vec<Value> =
        reports.iter().map(|(name, report, seconds)| document(name, report, *seconds)).collect();
    app.output.document(&json!({ "good": good, "verifications": documents }))?;
    let all_read = reports.iter().all(|(_, report, _)| report.unread.is_empty());
    Ok(match (good, all_read) {
        (true, true) => Outcome::Done,
        (true, false) => Outcome::Partial,
        (false, _) => Outcome::Damage,
    })
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
    say(app, name, &report, took)?;
    if !report.is_good() {
        app.output.say("  `backstay verify --repair` puts right what can be had")?;
    }
    Ok((name.to_owned(), report, took.as_secs_f64()))
}

fn document(name: &str, report: &VerifyReport, seconds: f64) -> Value {
    let mut document = json!({ "repository": name, "good": report.is_good(), "seconds": seconds });
    if let (Value::Object(into), Ok(Value::Object(from))) =
        (&mut document, serde_json::to_value(report))
    {
        into.extend(from);
    }
    document
}

/// Repairs every repository but the one that the rest is taken from.
fn repair_all(args: &VerifyArgs, level: VerifyLevel, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let from = match &args.repair_from {
        Some(name) => Some(context.open(context.config.repository(name)?)?),
        None => None,
    };
    let repositories = context.config.repositories()?.into_iter();
    let targets: Vec<_> =
        repositories.filter(|config| args.repair_from.as_ref() != Some(&config.name)).collect();
    if targets.is_empty() {
        return Err(Error::usage(
            "there is no repository to repair but the one to repair from",
            "name another one with --repair-from",
        ));
    }
    let mut documents = Vec::new();
    let mut good = true;
    for config in targets {
        let repository = context.open(config)?;
        app.show_warnings();
        let start = Instant::now();
        let report = work::run(app, &config.name, |progress| {
            repair(context, &repository, level, from.as_ref(), progress)
        })?;
        let took = start.elapsed();
        say_repair(app, &config.name, &report)?;
        say(app, &config.name, &report.left, took)?;
        good &= report.is_good();
        let mut document = document(&config.name, &report.left, took.as_secs_f64());
        if let Value::Object(into) = &mut document {
            let repair = json!({
                "repaired": report.repaired,
                "unrepaired": report.unrepaired,
                "chunks_salvaged": report.chunks_salvaged,
                "fetched": report.fetched,
                "packs_removed": report.packs_removed,
            });
            into.insert("repair".into(), repair);
        }
        documents.push(document);
    }
    app.output.document(&json!({ "good": good, "verifications": documents }))?;
    Ok(if good { Outcome::Done } else { Outcome::Damage })
}

fn say_repair(app: &App, name: &str, report: &RepairReport) -> Result<()> {
    let paint = app.output.paint;
    for done in &report.repaired {
        let mark = paint.paint(Style::Green, "repaired");
        app.output.answer(format!("  {mark} {}: {}", done.object, done.what))?;
    }
    for left in &report.unrepaired {
        let mark = paint.paint(Style::Red, "not repaired");
        app.output.answer(format!("  {mark} {}: {}", left.object, left.what))?;
    }
    let mut parts = Vec::new();
    if report.chunks_salvaged > 0 {
        let chunks = count(report.chunks_salvaged, "chunk", "chunks");
        parts.push(format!("{chunks} moved out of damaged packs"));
    }
    if report.fetched > 0 {
        let things = count(report.fetched, "chunk or file", "chunks and files");
        parts.push(format!("{things} from the other repository"));
    }
    if report.packs_removed > 0 {
        let packs = count(report.packs_removed, "damaged pack", "damaged packs");
        parts.push(format!("{packs} removed"));
    }
    if !parts.is_empty() {
        app.output.say(format!("{name}  {}", parts.join(", ")))?;
    } else if report.repaired.is_empty() && report.unrepaired.is_empty() {
        app.output.say(format!("{name}  nothing to repair"))?;
    }
    Ok(())
}

/// A verification in words.
fn say(app: &App, name: &str, report: &VerifyReport, took: Duration) -> Result<()> {
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
    if !report.unread.is_empty() {
        let number = count(report.unread.len() as u64, "object", "objects");
        app.output.say(format!(
            "      {number} in an archive of the store: not read, so whether they are good is \
             unknown (`backstay thaw` fetches what a snapshot needs)"
        ))?;
    }
    if report.without_parity > 0 {
        let number = count(report.without_parity, "object", "objects");
        app.output.say(format!(
            "      {number} without parity: nothing is wrong with that, and maintenance makes it"
        ))?;
    }
    for damage in &report.damages {
        app.output.answer(format!(
            "  {} {}: {}",
            paint.paint(Style::Red, "damaged"),
            damage.object,
            damage.what
        ))?;
    }
    Ok(())
}
