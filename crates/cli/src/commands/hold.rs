//! `backstay hold`: what must stay, whatever policies and people say.

use backstay_ops::units::count;
use clap::Args;
use serde_json::json;

use crate::app::{App, Outcome, Result};
use crate::work;

/// Put a snapshot on legal hold: the store keeps all of its objects until the hold is lifted
#[derive(Debug, Args)]
#[command(
    after_help = "The bucket must have object lock (S3) or immutability of versions (Azure). What another
snapshot on hold needs too stays on hold when this one is released."
)]
pub struct HoldArgs {
    /// The id of a snapshot, the beginning of one, or a source for its newest
    snapshot: String,

    /// Lift the hold
    #[arg(long)]
    release: bool,
}

pub fn run(args: &HoldArgs, app: &App) -> Result<Outcome> {
    let found = app.context()?.find(&args.snapshot)?;
    app.show_warnings();
    let objects = work::run(app, &found.name, |progress| {
        found.repository.hold(&found.snapshot, !args.release, progress)
    })?;
    app.output.document(&json!({
        "snapshot": found.snapshot.id,
        "repository": found.name,
        "held": !args.release,
        "objects": objects,
    }))?;
    let objects = count(objects, "object", "objects");
    app.output.say(format!(
        "{}  {} {}",
        found.snapshot.short_id(),
        objects,
        if args.release { "no longer on hold" } else { "on hold until `backstay hold --release`" }
    ))?;
    Ok(Outcome::Done)
}
