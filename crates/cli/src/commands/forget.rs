//! `backstay forget`: snapshots that are not needed any more.

use backstay_ops::forget::{ForgetRequest, forget};
use backstay_ops::units::{count, format_size};
use clap::Args;
use serde_json::json;

use super::present::moment_and_age;
use crate::app::{App, Outcome, Result};
use crate::output::Style;

/// Forget snapshots: they are gone at once, their space with the next `backstay maintenance`
#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// Ids of snapshots, or the beginnings of them
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,

    /// Also the newest complete snapshot of a source
    #[arg(long)]
    even_newest: bool,

    /// Only say what would be forgotten
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &ForgetArgs, app: &App) -> Result<Outcome> {
    let request = ForgetRequest {
        ids: args.snapshots.clone(),
        even_newest: args.even_newest,
        dry_run: args.dry_run,
    };
    let forgotten = forget(app.context()?, &request)?;
    app.show_warnings();
    let documents: Vec<_> = forgotten
        .iter()
        .map(|one| {
            json!({
                "id": one.id,
                "repository": one.repository,
                "source": one.snapshot.as_ref().map(|snapshot| &snapshot.source),
                "time": one.snapshot.as_ref().map(|snapshot| snapshot.time),
            })
        })
        .collect();
    app.output.document(&json!({ "dry_run": args.dry_run, "forgotten": documents }))?;
    let verb = if args.dry_run { "would forget" } else { "forgot" };
    for one in &forgotten {
        let id = one.id.get(..8).unwrap_or(&one.id);
        let about = match &one.snapshot {
            Some(snapshot) => format!(
                "snapshot of {} from {}, {}",
                snapshot.source,
                moment_and_age(snapshot.time, app.now(), &app.zone()),
                format_size(snapshot.stats.bytes)
            ),
            None => "a snapshot that cannot be read".to_owned(),
        };
        let id = app.output.paint.paint(Style::Cyan, id);
        app.output.say(format!("{id}  {verb} the {}", about.trim_start_matches("the ")))?;
    }
    if !args.dry_run {
        let number = count(forgotten.len() as u64, "snapshot is", "snapshots are");
        app.output.say(format!(
            "{number} forgotten; `backstay maintenance` returns the space that nothing else needs"
        ))?;
    }
    Ok(Outcome::Done)
}
