//! `backstay wal expire`: removes what no snapshot needs of the archive.

use backstay_ops::expire;
use backstay_ops::units::{count, format_size};
use backstay_repo::Expired;
use clap::Args;
use serde_json::json;

use super::super::postgres::choose;
use super::reading::cluster;
use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::work;

/// Remove what no snapshot needs of the log
#[derive(Debug, Args)]
#[command(
    after_help = "What lies before the beginning of the oldest snapshot goes, the oldest first; snapshots on hold
count like all others. Where the policy of a source says `retention.archive`, snapshots from before
that time keep what makes them consistent, and the last of them what lies behind it; what is between
them goes. Histories of timelines stay. While a backup is at work nothing goes, and what the store
keeps locked goes with a later run. What a replication has not brought yet to a repository with a
snapshot that needs it stays, too. `backstay retention --apply` does the same."
)]
pub struct ExpireArgs {
    /// The source whose archive it is [default: the only one of kind postgres]
    source: Option<String>,

    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &ExpireArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let source = choose(args.source.as_deref(), context)?;
    let mut documents = Vec::new();
    let mut failed = None;
    let configs = context.config.repositories_of(source)?;
    let several = configs.len() > 1;
    for config in configs {
        let expired = context.open(config).and_then(|repository| {
            let system = cluster(source, &repository)?;
            let title = format!("{}: expiring", config.name);
            work::run(app, &title, |progress| {
                expire::log(context, &config.name, &repository, system, args.dry_run, progress)
            })
        });
        app.show_warnings();
        match expired {
            Ok(expired) => {
                documents.push(document(&config.name, &expired));
                present(app, &config.name, args.dry_run, &expired)?;
            }
            // One repository that cannot be asked keeps the others from nothing.
            Err(error) => {
                if several {
                    let message =
                        format!("the repository `{}` was passed over: {error}", config.name);
                    app.output.warn(&message, error.hint());
                }
                documents.push(json!({ "repository": config.name, "error": error.to_string() }));
                failed.get_or_insert(error);
            }
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    app.output.document(&json!({
        "source": source.name,
        "dry_run": args.dry_run,
        "archives": documents,
    }))?;
    Ok(Outcome::Done)
}

/// What went of an archive, in JSON.
pub fn document(repository: &str, expired: &Expired) -> serde_json::Value {
    json!({
        "repository": repository,
        "removed": expired.names.len(),
        "bytes": expired.bytes,
        "first": expired.names.first(),
        "last": expired.names.last(),
        "locked": expired.locked,
        "waiting_for": expired.waiting_for,
    })
}

pub fn present(app: &App, name: &str, dry_run: bool, expired: &Expired) -> Result<()> {
    let paint = app.output.paint;
    let name = paint.paint(Style::Bold, name);
    let files = count(expired.names.len() as u64, "file", "files");
    let size = format_size(expired.bytes);
    app.output.answer(match (expired.names.as_slice(), dry_run) {
        ([], _) if expired.waiting_for > 0 && !dry_run => {
            format!("{name}  nothing was removed yet")
        }
        ([], _) => format!("{name}  nothing to remove"),
        ([first, .., last], true) => {
            format!("{name}  would remove {size} in {files}, {first} to {last}")
        }
        ([first, .., last], false) => {
            format!("{name}  removed {size} in {files}, {first} to {last}")
        }
        ([only], true) => format!("{name}  would remove {size}: {only}"),
        ([only], false) => format!("{name}  removed {size}: {only}"),
    })?;
    if expired.waiting_for > 0 {
        let sessions = count(expired.waiting_for, "backup", "backups");
        app.output.answer(format!(
            "      {sessions} at work or left behind; run it again when they have ended \
             (`backstay maintenance` gives up those that died)"
        ))?;
    }
    if expired.locked > 0 {
        let files = count(expired.locked, "file is", "files are");
        app.output.answer(format!("      {files} kept locked by the store"))?;
    }
    Ok(())
}
