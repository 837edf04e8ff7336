//! `backstay mount`: every snapshot as files, until somebody ends it.

use std::path::PathBuf;
use std::time::Duration;

use backstay_mount::{Ended, MountError, MountOptions};
use backstay_ops::config::listed;
use backstay_ops::units::{count, parse_duration};
use backstay_ops::{Error, ErrorKind};
use clap::Args;
use serde_json::json;

use super::present::printable;
use crate::app::{App, Outcome, Result};
use crate::output::Output;

/// How often the end of the mount and signals are looked for.
const TICK: Duration = Duration::from_millis(50);

/// Browse every snapshot as files
///
/// Mounts all snapshots of a repository, read-only, over an empty folder, until it is unmounted
/// (`umount DIR`) or interrupted (Ctrl-C):
///
///   DIR/sources/SOURCE/TIME/…    the files of a snapshot; TIME is UTC
///   DIR/sources/SOURCE/latest    its newest one
///   DIR/snapshots/ID             a snapshot by its id, or the beginning of it
///   DIR/at/DAY/SOURCE            what was newest at the end of a day. Any other moment can be
///                                typed as well: DIR/at/2026-11-21T10-30/SOURCE
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct MountArgs {
    /// An empty folder
    directory: PathBuf,

    /// Let other users look in as well. Then permissions and access control lists of the files
    /// count; otherwise only whoever mounts gets in, and reads everything
    #[arg(long)]
    allow_other: bool,

    /// New snapshots are there, and forgotten ones are gone, after so long at the latest
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    refresh: Duration,
}

pub fn run(args: &MountArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let config = match context.config.repositories()?.as_slice() {
        [only] => *only,
        several => {
            let names: Vec<&str> = several.iter().map(|config| config.name.as_str()).collect();
            return Err(Error::usage(
                "there are several repositories, and one can be mounted at a time",
                format!("say which with --repository: {}", listed(&names)),
            ));
        }
    };
    let repository = context.open(config)?;
    let snapshots = repository.snapshots()?;
    app.show_warnings();
    let sources: std::collections::BTreeSet<&str> =
        snapshots.iter().map(|snapshot| snapshot.source.as_str()).collect();
    let (of_snapshots, of_sources) = (snapshots.len() as u64, sources.len() as u64);
    let options = MountOptions {
        refresh: args.refresh,
        allow_other: args.allow_other,
        ..MountOptions::default()
    };
    let output = Output::new(&app.global);
    let told = move |path: &str, error: &backstay_repo::RepoError| {
        output.warn(&format!("{}: {error}", printable(path)), error.hint());
    };
    let directory = &args.directory;
    // From here on a signal ends the mount before it ends the process.
    let _graceful = app.interrupt.graceful();
    let mounted = backstay_mount::mount(repository, snapshots, directory, &options, Box::new(told))
        .map_err(refused)?;
    let path = mounted.path().display().to_string();
    app.output.document(&json!({
        "mounted": path,
        "repository": config.name,
        "snapshots": of_snapshots,
        "sources": of_sources,
    }))?;
    app.output.answer(format!(
        "{} of {} mounted on {path}, read-only.",
        count(of_snapshots, "snapshot", "snapshots"),
        count(of_sources, "source", "sources"),
    ))?;
    app.output.say(format!("Ctrl-C or `umount {path}` ends it."))?;
    while !mounted.has_ended() && !app.interrupt.is_requested() {
        std::thread::sleep(TICK);
    }
    match mounted.end() {
        Ended::Unmounted => app.output.say(format!("{path} is unmounted."))?,
        Ended::InUse => app.output.warn(
            &format!("{path} is unmounted while programs still have something open in it"),
            Some("they get errors from now on; close them"),
        ),
    }
    Ok(Outcome::Done)
}

fn refused(error: MountError) -> Error {
    let hint = error.hint().unwrap_or_default().to_owned();
    Error::new(ErrorKind::Failed, error.to_string()).with_hint(hint).with_source(error)
}
