//! `backstay backup`: sources, or paths, into repositories.

use std::path::Path;

use backstay_ops::config::{RepositoryConfig, SourceConfig};
use backstay_ops::jobs::{self, BackupDone, BackupRequest};
use backstay_ops::units::{count, format_duration, format_size};
use backstay_ops::{Context, Error, ErrorKind};
use backstay_repo::SnapshotType;
use clap::Args;
use serde_json::json;

use super::present::{content, printable, snapshot_document};
use crate::app::{App, Outcome, Result};
use crate::output::{Style, error_document};
use crate::work;

/// Back up sources, or files and folders
#[derive(Debug, Args)]
#[command(override_usage = "backstay backup <SOURCE|PATH>... | --all [OPTIONS]")]
#[command(after_help = "A name is a configured source; what has a slash in it is a file or folder.

Examples:
  backstay backup --all
  backstay backup orders --type full --tag release=2.4
  backstay backup ./photos -r /mnt/disk/backstay -k ~/backstay.key")]
pub struct BackupArgs {
    /// Configured sources, or paths
    #[arg(value_name = "SOURCE", required_unless_present = "all")]
    sources: Vec<String>,

    /// Every configured source
    #[arg(long, conflicts_with = "sources")]
    all: bool,

    /// What to read: everything, what changed since the newest snapshot, or since the newest full
    /// one. Every snapshot is complete by itself, whatever its type [default: incremental where
    /// that can be]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type())]
    type_: Option<SnapshotType>,

    /// Of a PostgreSQL cluster: the snapshot carries the log that it needs, and can be restored without
    /// an archive
    #[arg(long)]
    standalone: bool,

    /// A word that the snapshot carries
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
}

fn parse_type() -> impl clap::builder::TypedValueParser<Value = SnapshotType> {
    use clap::builder::TypedValueParser;
    clap::builder::PossibleValuesParser::new(["full", "incremental", "differential"])
        .try_map(|text| text.parse::<SnapshotType>())
}

pub fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

/// What came of one source in one repository.
struct Made {
    source: String,
    repository: String,
    result: Result<BackupDone>,
}

pub fn run(args: &BackupArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let sources = choose(args, context)?;
    let mut work: Vec<(&SourceConfig, Vec<&RepositoryConfig>)> = Vec::new();
    for source in &sources {
        // Names are looked up before the first byte is read.
        work.push((source, context.config.repositories_of(source)?));
    }
    let request = BackupRequest {
        type_: args.type_,
        tags: args.tags.iter().cloned().collect(),
        standalone: args.standalone,
    };
    let alone = work.iter().map(|(_, targets)| targets.len()).sum::<usize>() == 1;
    let mut made = Vec::new();
    for (source, targets) in work {
        let results = work::run(app, &source.name, |progress| {
            jobs::backup(context, source, &targets, &request, progress)
        });
        app.show_warnings();
        let mut interrupted = app.interrupt.is_requested();
        for (target, result) in targets.iter().zip(results) {
            interrupted |= matches!(&result, Err(error) if error.kind() == ErrorKind::Interrupted);
            if alone && result.is_err() {
                return result.map(|_| Outcome::Done);
            }
            let one = Made { source: source.name.clone(), repository: target.name.clone(), result };
            if !interrupted || one.result.is_ok() {
                present(&one, app)?;
            }
            made.push(one);
        }
        if interrupted {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted")
                .with_hint("what was committed stays; run it again to go on"));
        }
    }
    finish(&made, app)
}

fn choose(args: &BackupArgs, context: &Context) -> Result<Vec<SourceConfig>> {
    if args.all {
        return Ok(context.config.all_sources()?.to_vec());
    }
    let mut chosen: Vec<SourceConfig> = Vec::new();
    for name in &args.sources {
        let configured = context.config.sources.iter().find(|source| &source.name == name);
        let source = match configured {
            Some(source) => source.clone(),
            None if name.contains('/') || name == "." || name == ".." => {
                path_source(name, context)?
            }
            None => return Err(unknown(name, context)),
        };
        if !chosen.iter().any(|other| other.name == source.name) {
            chosen.push(source);
        }
    }
    Ok(chosen)
}

fn path_source(path: &str, context: &Context) -> Result<SourceConfig> {
    let home = context.search.home();
    let absolute = backstay_ops::config::absolute(path, &context.search.current, home.as_deref());
    // `..` in a path would end up in the name of the source.
    let absolute = absolute.canonicalize().map_err(|error| {
        Error::io("find", &absolute, error).with_hint("name a file or folder that is there")
    })?;
    let source = jobs::ad_hoc(&absolute, Path::new("/"));
    if context.config.sources.iter().any(|other| other.name == source.name) {
        return Err(Error::usage(
            format!(
                "`{path}` would be called `{0}`, and a source of that name is configured",
                source.name
            ),
            format!("back the source up with `backstay backup {}`, or rename it", source.name),
        ));
    }
    Ok(source)
}

fn unknown(name: &str, context: &Context) -> Error {
    let is_path = context.search.current.join(name).exists();
    match context.config.source(name) {
        // A path without a slash is nearly always what was meant where there are no sources.
        _ if is_path => Error::usage(
            format!("no source is called `{name}`"),
            format!("if the file or folder here is meant, write ./{name}"),
        ),
        Err(error) => error,
        Ok(_) => Error::usage(format!("no source is called `{name}`"), "see `backstay list`"),
    }
}

/// Says what came of one backup, as soon as it is known.
fn present(made: &Made, app: &App) -> Result<()> {
    let done = match &made.result {
        Ok(done) => done,
        Err(error) => {
            let doing = format!("{} to {}", made.source, made.repository);
            if !app.output.json {
                crate::output::write_err(&app.output.error_text_of(&doing, error));
            }
            return Ok(());
        }
    };
    for warning in &done.warnings {
        app.output.warn(warning, None);
    }
    let snapshot = &done.snapshot;
    let stats = &snapshot.stats;
    let paint = app.output.paint;
    let seconds = done.took.as_secs_f64().max(0.001);
    let speed = format_size((stats.bytes_read as f64 / seconds) as u64);
    app.output.say(format!(
        "{}  {} snapshot of {} in {}: {}",
        paint.paint(Style::Cyan, snapshot.short_id()),
        snapshot.type_,
        paint.paint(Style::Bold, &made.source),
        made.repository,
        content(snapshot),
    ))?;
    let mut parts = vec![format!("read {}", format_size(stats.bytes_read))];
    if stats.files_unchanged > 0 {
        parts.push(count(stats.files_unchanged, "unchanged file", "unchanged files"));
    }
    parts.push(format!(
        "new {} stored as {}",
        format_size(stats.new_bytes),
        format_size(stats.stored_bytes)
    ));
    parts.push(match stats.bytes_read {
        0 => format_duration(done.took),
        _ => format!("{} at {speed}/s", format_duration(done.took)),
    });
    app.output.say(format!("          {}", paint.paint(Style::Dim, parts.join(", "))))?;
    if !snapshot.problems.is_empty() {
        let number = snapshot.problems.len() as u64;
        app.output.warn(
            &format!(
                "{} could not be read and {} not in the snapshot",
                count(number, "item", "items"),
                if number == 1 { "is" } else { "are" }
            ),
            None,
        );
        const SHOWN: usize = 10;
        for problem in snapshot.problems.iter().take(SHOWN) {
            crate::output::write_err(&format!(
                "  {}: {}\n",
                printable(&problem.path),
                problem.what
            ));
        }
        if snapshot.problems.len() > SHOWN {
            crate::output::write_err(&format!(
                "  … all of them: `backstay show {}`\n",
                snapshot.short_id()
            ));
        }
    }
    Ok(())
}

fn finish(made: &[Made], app: &App) -> Result<Outcome> {
    let good: Vec<_> =
        made.iter().filter_map(|one| one.result.as_ref().ok().map(|done| (one, done))).collect();
    let failed: Vec<_> =
        made.iter().filter_map(|one| one.result.as_ref().err().map(|e| (one, e))).collect();
    app.output.document(&json!({
        "backups": good.iter().map(|(one, done)| json!({
            "source": one.source,
            "repository": one.repository,
            "seconds": done.took.as_secs_f64(),
            "warnings": done.warnings,
            "snapshot": snapshot_document(&done.snapshot, &one.repository),
        })).collect::<Vec<_>>(),
        "failed": failed.iter().map(|(one, error)| json!({
            "source": one.source,
            "repository": one.repository,
            "error": error_document(error),
        })).collect::<Vec<_>>(),
    }))?;
    if made.len() > 1 {
        let mut text =
            format!("{} of {} done", good.len(), count(made.len() as u64, "backup", "backups"));
        if !failed.is_empty() {
            // Where a source failed in some of its repositories alone, those are what to look at.
            let names: Vec<String> = failed
                .iter()
                .map(|(one, _)| {
                    let partly = good.iter().any(|(other, _)| other.source == one.source);
                    if partly {
                        format!("{} to {}", one.source, one.repository)
                    } else {
                        one.source.clone()
                    }
                })
                .collect();
            text.push_str(&format!("; failed: {}", names.join(", ")));
        }
        app.output.say(text)?;
    }
    let problems = good.iter().any(|(_, done)| !done.snapshot.problems.is_empty());
    Ok(match (failed.is_empty(), good.is_empty()) {
        (true, _) if problems => Outcome::Partial,
        (true, _) => Outcome::Done,
        (false, false) => Outcome::Partial,
        (false, true) => same_kind(&failed),
    })
}

fn same_kind(failed: &[(&Made, &Error)]) -> Outcome {
    match failed.split_first() {
        Some(((_, first), rest)) if rest.iter().all(|(_, e)| e.kind() == first.kind()) => {
            Outcome::FailedAs(first.kind())
        }
        _ => Outcome::Failed,
    }
}
