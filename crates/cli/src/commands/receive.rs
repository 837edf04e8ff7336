//! `backstay wal receive`: the log of clusters, over the wire, until somebody ends it.

use std::sync::Arc;
use std::time::Duration;

use backstay_ops::config::{SourceConfig, SourceSettings};
use backstay_ops::units::{count, parse_duration};
use backstay_ops::watch;
use backstay_ops::{Context, Error, ErrorKind};
use backstay_postgres::{ReceiveOptions, ReceiveStatus, Slot, Source, drop_slot, receive};
use backstay_repo::{Progress, Repository};
use clap::Args;
use serde_json::json;

use super::postgres::choose;
use crate::app::{App, Outcome, Result};
use crate::work;

/// Receive the log over the network as the server writes it, down to the last commit
///
/// Runs until it is ended, and connects again when the connection breaks. The segment in work is
/// stored in slices every few seconds, whole segments as `archive_command` would: both may run.
/// Nothing is reported to the server as flushed before it is durable in every repository, so that
/// `synchronous_standby_names = 'NAME'` has each commit wait for that.
///
/// The user needs REPLICATION, and pg_hba.conf a line for the database `replication`.
#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// A source of kind postgres [default: the only one]
    source: Option<String>,

    /// Every source of kind postgres
    #[arg(long, conflicts_with_all = ["source", "slot", "name"])]
    all: bool,

    /// The slot that keeps the server from removing what was not received [default: `slot` of the
    /// source, or backstay_SOURCE]
    #[arg(long, value_name = "NAME", conflicts_with = "no_slot")]
    slot: Option<String>,

    /// Make the slot where it is not there
    #[arg(long, conflicts_with_all = ["no_slot", "drop_slot"])]
    create_slot: bool,

    /// Go without a slot: the server may remove what was not received yet
    #[arg(long)]
    no_slot: bool,

    /// Remove the slot instead of receiving, so that the server keeps nothing for it any more
    #[arg(long, conflicts_with = "no_slot")]
    drop_slot: bool,

    /// What the server calls this receiver [default: backstay_SOURCE]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// How often the segment in work is stored: what can be lost with the server, when no commit
    /// waits
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    every: Duration,

    /// Store at once, also where the server's synchronous_standby_names does not have the name
    #[arg(long)]
    synchronous: bool,

    /// Where the server has removed what the archive lacks, go on with what it has now; nothing
    /// recovers across the gap, so make a backup afterwards
    #[arg(long)]
    skip_gap: bool,

    /// End when the connection breaks, instead of connecting again
    #[arg(long)]
    once: bool,
}

pub fn run(args: &ReceiveArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let sources: Vec<&SourceConfig> = if args.all {
        let all = context.config.all_sources()?.iter();
        let found: Vec<_> =
            all.filter(|source| matches!(source.settings, SourceSettings::Postgres(_))).collect();
        if found.is_empty() {
            choose(None, context)?;
        }
        found
    } else {
        vec![choose(args.source.as_deref(), context)?]
    };
    if args.drop_slot {
        return remove(args, &sources, app);
    }
    let mut work: Vec<Receiver> = Vec::new();
    for source in sources {
        work.push(Receiver::new(args, source, context)?);
    }
    app.show_warnings();
    for receiver in &work {
        app.output.say(format!(
            "Receiving the log of {} as {}; end it with Ctrl-C.",
            receiver.source.name, receiver.options.application_name
        ))?;
    }
    let title = match work.as_slice() {
        [one] => format!("Receiving the log of {}", one.source.name),
        several => format!("Receiving the logs of {} sources", several.len()),
    };
    let results = work::run(app, &title, |progress| all_at_once(&work, progress));
    let mut documents = Vec::new();
    let mut failures = Vec::new();
    for (receiver, result) in work.iter().zip(results) {
        let name = &receiver.source.name;
        match result {
            Ok(status) => {
                present(app, name, &status)?;
                documents.push(json!({ "source": name, "status": status, "error": null }));
            }
            Err(error) => {
                documents.push(json!({
                    "source": name,
                    "status": receiver.options.state.get(),
                    "error": error.to_string(),
                }));
                failures.push((name, error));
            }
        }
    }
    let last = failures.pop();
    for (name, error) in &failures {
        app.output.warn(&format!("receiving the log of {name} ended: {error}"), error.hint());
    }
    match last {
        // The only one: its error is that of the command.
        Some((_, error)) if documents.len() == 1 => Err(error),
        Some((name, error)) => {
            app.output.warn(&format!("receiving the log of {name} ended: {error}"), error.hint());
            app.output.document(&json!({ "receivers": documents }))?;
            Ok(Outcome::Failed)
        }
        None => {
            app.output.document(&json!({ "receivers": documents }))?;
            Ok(Outcome::Done)
        }
    }
}

/// One source, ready to be received.
struct Receiver {
    source: Source,
    repositories: Vec<Repository>,
    options: ReceiveOptions,
}

impl Receiver {
    fn new(args: &ReceiveArgs, source: &SourceConfig, context: &Context) -> Result<Self> {
        let configs = context.config.archives_of(source)?;
        let repositories: Vec<Repository> =
            configs.iter().map(|config| context.open(config)).collect::<Result<_>>()?;
        let name = args.name.clone().unwrap_or_else(|| watch::slot_name(&source.name));
        let mut options = ReceiveOptions::new(name);
        if !args.no_slot {
            options.slot = Some(Slot { name: slot_of(args, source), create: args.create_slot });
        }
        options.every = args.every;
        options.synchronous = args.synchronous;
        options.skip_gap = args.skip_gap;
        options.reconnect = !args.once;
        options.compression = configs.first().map(|config| config.keys.compression);
        Ok(Self { source: of(source)?, repositories, options })
    }
}

fn of(source: &SourceConfig) -> Result<Source> {
    match backstay_ops::jobs::protected(source)? {
        backstay_ops::jobs::Protected::Postgres(source) => Ok(source),
        backstay_ops::jobs::Protected::Logical(_) | backstay_ops::jobs::Protected::Other(_) => {
            Err(Error::new(
                ErrorKind::Configuration,
                format!("`{}` is no PostgreSQL cluster", source.name),
            ))
        }
    }
}

fn slot_of(args: &ReceiveArgs, source: &SourceConfig) -> String {
    args.slot.clone().unwrap_or_else(|| watch::slot_of(source))
}

/// Each goes on when another fails: they have nothing to do with one another.
fn all_at_once(work: &[Receiver], progress: &Arc<Progress>) -> Vec<Result<ReceiveStatus>> {
    progress.set_phase("until Ctrl-C");
    std::thread::scope(|scope| {
        let threads: Vec<_> = work
            .iter()
            .map(|receiver| {
                let options =
                    ReceiveOptions { progress: progress.clone(), ..receiver.options.clone() };
                scope.spawn(move || {
                    let done = receive(&receiver.repositories, &receiver.source, &options);
                    if let Err(error) = &done {
                        let source = &receiver.source.name;
                        tracing::error!(source, %error, "receiving ended");
                    }
                    done.map_err(Error::from)
                })
            })
            .collect();
        let panicked = |_| Err(Error::new(ErrorKind::Failed, "a receiving thread panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    })
}

fn present(app: &App, name: &str, status: &ReceiveStatus) -> Result<()> {
    let Some(durable) = status.durable else {
        return app.output.answer(format!("Nothing of {name} was received."));
    };
    app.output.answer(format!(
        "Received {} and {} of {name}; all up to {durable} on timeline {} is stored.",
        count(status.segments, "segment", "segments"),
        count(status.slices, "slice", "slices"),
        status.timeline
    ))
}

fn remove(args: &ReceiveArgs, sources: &[&SourceConfig], app: &App) -> Result<Outcome> {
    let mut documents = Vec::new();
    for source in sources {
        let slot = slot_of(args, source);
        drop_slot(&of(source)?, &slot)?;
        app.output.answer(format!("The slot {slot} of {} is gone.", source.name))?;
        documents.push(json!({ "source": source.name, "slot": slot }));
    }
    app.output.document(&json!({ "dropped": documents }))?;
    Ok(Outcome::Done)
}
