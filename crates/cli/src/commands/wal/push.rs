//! `backstay wal push`: one file into the archive, by this process or by a `wal serve` that stays.

use std::path::{Path, PathBuf};

use backstay_ops::config::{RepositoryConfig, SourceConfig, SourceSettings};
use backstay_ops::{Context, Error, ErrorKind};
use backstay_postgres::control::ControlFile;
use backstay_postgres::wal::{self, Destination, PushOptions, PushReport};
use backstay_repo::{Pushed, Repository};
use clap::Args;
use serde_json::json;

use super::super::postgres::choose;
use super::{copies_of, more, socket};
use crate::app::{App, Outcome, Result};

/// Put a finished file of the log into the archive; PostgreSQL's `archive_command` runs this
#[derive(Debug, Args)]
#[command(
    after_help = "Ends with 0 only when the file is durable in every repository of the source, or in as many as
its `archive-copies` says, and with 1 to 125 otherwise. `backstay postgres setup` shows the archive_command to set.
Where a `backstay wal serve` runs for the source, it does the work, and this takes a few milliseconds."
)]
pub struct PushArgs {
    /// The file, as PostgreSQL passes it for %p
    path: PathBuf,

    /// The source whose log this is [default: the only one of kind postgres]
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,

    /// The cluster that the file must be of [default: that of the data directory]
    #[arg(long, value_name = "ID")]
    system_id: Option<u64>,

    /// How many of the next files are pushed in the same call [default: 4 to a bucket, else 0]
    #[arg(long, value_name = "COUNT")]
    ahead: Option<usize>,
}

pub fn run(args: &PushArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let any = |source: &SourceConfig| matches!(source.settings, SourceSettings::Postgres(_));
    let source = if args.source.is_some() || context.config.sources.iter().any(any) {
        Some(choose(args.source.as_deref(), context)?)
    } else {
        None
    };
    if let Some(source) = source
        && let Some(data) = data_directory(source)
    {
        refuse_copy(&args.path, data, &source.name)?;
    }
    // Who asks for more than a file wants this process to do it.
    let plain = args.system_id.is_none() && args.ahead.is_none();
    let configs = match source {
        Some(source) => context.config.archives_of(source)?,
        None => vec![context.config.default_repository()?],
    };
    if plain
        && let Some(source) = source
        && let Some(answer) = socket::ask(context, source, &configs, &args.path)
    {
        app.output.document(&answer)?;
        return Ok(Outcome::Done);
    }
    let ready = Ready::open(context, source, configs)?;
    let options = PushOptions {
        system_identifier: args.system_id.or(ready.options.system_identifier),
        ahead: more(args.ahead, &ready.repositories),
        ..ready.options
    };
    let mut report = wal::push(&ready.repositories, &args.path, &options)?;
    if let Some(error) = ready.unopened {
        return Err(error);
    }
    report.late.splice(0..0, ready.late);
    app.output.document(&document(&report))?;
    Ok(Outcome::Done)
}

/// A push as it stands in JSON.
pub fn document(report: &PushReport) -> serde_json::Value {
    json!({
        "name": report.name,
        "late": report.late,
        "new": report.repositories.iter().any(|pushed| matches!(pushed, Pushed::New { .. })),
        "ahead": report.ahead,
    })
}

fn data_directory(source: &SourceConfig) -> Option<&Path> {
    match &source.settings {
        SourceSettings::Postgres(keys) => keys.data_directory.as_deref(),
        _ => None,
    }
}

/// The repositories that the log of a source goes to, opened, and how it goes there.
pub struct Ready {
    pub repositories: Vec<Repository>,
    pub options: PushOptions,
    /// Those that get it later, from the others.
    pub late: Vec<String>,
    /// Why one is missing that must have it. The others get it all the same.
    pub unopened: Option<Error>,
}

impl Ready {
    /// # Errors
    /// When none of the repositories could be opened.
    pub fn open(
        context: &Context,
        source: Option<&SourceConfig>,
        configs: Vec<&RepositoryConfig>,
    ) -> Result<Self> {
        let copies = source.and_then(copies_of);
        let may_be_late = |config: &RepositoryConfig| {
            let source = source.filter(|_| copies.is_some());
            source.is_some_and(|s| context.config.is_replicated(&s.name, &config.name, &configs))
        };
        // One that cannot be opened keeps the others from nothing; but PostgreSQL is told to come
        // again, unless enough others have it and this one gets it from them.
        let mut unopened = None;
        let mut late = Vec::new();
        let mut repositories: Vec<Repository> = Vec::new();
        let mut destinations = Vec::new();
        for config in &configs {
            let may_be_late = may_be_late(config);
            let opened = if may_be_late { context.open_soon(config) } else { context.open(config) };
            match opened {
                Ok(repository) => {
                    let compression = source.map(|_| config.keys.compression);
                    destinations.push(Destination { compression, may_be_late });
                    repositories.push(repository);
                }
                Err(error) if may_be_late && error.kind() == ErrorKind::Failed => {
                    tracing::warn!(repository = config.name, %error, "could not be opened");
                    late.push((config.name.clone(), error));
                }
                Err(error) => drop(unopened.get_or_insert(error)),
            }
        }
        let wanted = copies.unwrap_or(configs.len()).min(configs.len());
        // Of those that are there the file goes to all; too few of them are an error all the same.
        if repositories.len() < wanted
            && let Some((_, error)) = late.pop()
        {
            unopened.get_or_insert(error);
        }
        if repositories.is_empty()
            && let Some(error) = unopened
        {
            return Err(error);
        }
        // Another cluster may archive with a command that was copied; so the source decides.
        let control = source.and_then(data_directory).and_then(|data| ControlFile::read(data).ok());
        let options = PushOptions {
            system_identifier: control.map(|control| control.system_identifier),
            ahead: 0,
            destinations,
            copies: copies.map(|_| wanted),
        };
        let late = late.into_iter().map(|(name, _)| name).collect();
        Ok(Self { repositories, options, late, unopened })
    }
}

/// A copy of the cluster (a trial restore that was promoted) has the same identifier and the same
/// `archive_command`. What it archives would be a newer timeline, and later recoveries would follow
/// that one instead of the cluster's own.
///
/// A source whose directory is gone was lost: then a copy may be what takes over.
fn refuse_copy(path: &Path, data: &Path, source: &str) -> Result<()> {
    let folder = match path.parent() {
        Some(wal) if wal.ends_with("pg_wal") => match wal.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
            _ => PathBuf::from("."),
        },
        _ => return Ok(()),
    };
    let (Ok(folder), Ok(data)) = (folder.canonicalize(), data.canonicalize()) else {
        return Ok(());
    };
    if folder == data || !folder.join("global/pg_control").is_file() {
        return Ok(());
    }
    Err(Error::usage(
        format!("{} is not the data directory of `{source}`, {}", folder.display(), data.display()),
        format!(
            "a copy must not archive into the archive of its original: set archive_mode = off in \
             it; if it takes over, let `data-directory` of `{source}` name it"
        ),
    ))
}
