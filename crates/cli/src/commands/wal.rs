//! `backstay wal`: the archive of a PostgreSQL cluster.
//!
//! `push` and `fetch` are run by PostgreSQL for every segment, so they start lean and keep its
//! contract: see their help.

mod dump;
pub mod expire;
pub mod push;
mod reading;
mod serve;
mod socket;
mod status;
mod summarize;

use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_ops::config::{RepositoryConfig, SourceConfig, SourceSettings};
use backstay_ops::units::parse_duration;
use backstay_ops::{Context, Error};
use backstay_postgres::control::ControlFile;
use backstay_postgres::wal::{self, FetchOptions, FetchOutcome, SegmentName};
use backstay_repo::Repository;
use clap::{Args, Subcommand};

use super::postgres::choose;
use crate::app::{App, Outcome, Result};

/// Work with the archive of a PostgreSQL cluster
#[derive(Debug, Subcommand)]
pub enum WalCommand {
    Push(push::PushArgs),
    Fetch(FetchArgs),
    Serve(serve::ServeArgs),
    Status(status::StatusArgs),
    Expire(expire::ExpireArgs),
    Summarize(summarize::SummarizeArgs),
    Dump(dump::DumpArgs),
    Receive(super::receive::ReceiveArgs),
}

/// Get a file of the log out of the archive; PostgreSQL's `restore_command` runs this
#[derive(Debug, Args)]
#[command(
    after_help = "Ends with 0 when the file is complete, with 1 only when every repository said that it has no
such file, and with 255 for everything else, so that recovery stops instead of ending early. A
segment with later ones behind it is missing: it is waited for, then that is 255, too, but for a
standby."
)]
pub struct FetchArgs {
    /// The file's name, as PostgreSQL passes it for %f
    name: String,

    /// Where it goes, as PostgreSQL passes it for %p
    destination: PathBuf,

    /// The cluster whose archive is read [default: that of the data directory around DESTINATION]
    #[arg(long, value_name = "ID")]
    system_id: Option<u64>,

    /// The source whose log it is; says which repositories are asked
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,

    /// A repository that is asked, by its configured name; several in the order in which they are
    #[arg(long, value_name = "REPOSITORY", conflicts_with = "source")]
    from: Vec<String>,

    /// How many of the next files are fetched in the same call [default: 4 from a bucket, else 0]
    #[arg(long, value_name = "COUNT")]
    prefetch: Option<usize>,

    /// How long a repository that does not answer is asked again
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    retry_for: Duration,
}

pub fn run(command: &WalCommand, app: &App) -> Result<Outcome> {
    match command {
        WalCommand::Push(args) => push::run(args, app),
        WalCommand::Fetch(args) => fetch(args, app),
        WalCommand::Serve(args) => serve::run(args, app),
        WalCommand::Status(args) => status::run(args, app),
        WalCommand::Expire(args) => expire::run(args, app),
        WalCommand::Summarize(args) => summarize::run(args, app),
        WalCommand::Dump(args) => dump::run(args, app),
        WalCommand::Receive(args) => super::receive::run(args, app),
    }
}

/// The repositories that are asked for the log of a source.
fn asked<'c>(source: Option<&str>, context: &'c Context) -> Result<Vec<&'c RepositoryConfig>> {
    let config = &context.config;
    let of = |source| match copies_of(source) {
        // A file may be in one of them alone.
        Some(_) if config.selected().is_none() => config.archives_of(source),
        _ => config.repositories_of(source),
    };
    Ok(match (source, choose(None, context)) {
        (Some(name), _) => of(choose(Some(name), context)?)?,
        (None, Ok(only)) => of(only)?,
        (None, Err(_)) => vec![config.default_repository()?],
    })
}

/// In how many repositories a file of the log must be; none for all of them.
fn copies_of(source: &SourceConfig) -> Option<usize> {
    match &source.settings {
        SourceSettings::Postgres(keys) => Some(keys.archive_copies?.max(1) as usize),
        _ => None,
    }
}

/// A repository of the source that is not among those that `answered`, where none of these is sure to
/// have all that counts as archived.
pub fn may_have_more<'c>(
    context: &'c Context,
    source: &SourceConfig,
    answered: &[&str],
) -> Result<Option<&'c str>> {
    let config = &context.config;
    if config.selected().is_some() || copies_of(source).is_none() {
        return Ok(None);
    }
    let archives = config.archives_of(source)?;
    let has = |one: &RepositoryConfig| answered.contains(&one.name.as_str());
    // Only one to which a replication leads may be late.
    let is_late = |one: &RepositoryConfig| config.is_replicated(&source.name, &one.name, &archives);
    if archives.iter().any(|one| has(one) && !is_late(one)) {
        return Ok(None);
    }
    Ok(archives.iter().find(|one| !has(one)).map(|one| one.name.as_str()))
}

/// How many files more are moved in one call: the time to a bucket is worth sharing.
fn more(asked: Option<usize>, repositories: &[Repository]) -> usize {
    let remote = repositories.iter().any(|repository| repository.store().is_remote());
    asked.unwrap_or(if remote { 4 } else { 0 })
}

fn fetch(args: &FetchArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let system_identifier = match args.system_id {
        Some(id) => id,
        None => around(&args.destination)?,
    };
    let configs = match args.from.as_slice() {
        [] => asked(args.source.as_deref(), context)?,
        names => names.iter().map(|name| context.config.repository(name)).collect::<Result<_>>()?,
    };
    let mut options = FetchOptions {
        system_identifier,
        prefetch: 0,
        spool: context.cache().map(|folder| folder.join("spool")),
        // With several, one that has the whole segment comes before one that has slices of it.
        slices: configs.len() == 1,
        origin: String::new(),
        retry_for: args.retry_for,
    };
    // What waits here is delivered without so much as opening a repository.
    if args.prefetch != Some(0) {
        for config in &configs {
            options.origin.clone_from(&config.keys.url.0);
            if wal::fetch_spooled(&args.name, &args.destination, &options)? {
                return Ok(Outcome::Done);
            }
        }
    }
    // The first that has it gives it, and the others are not even opened. One that cannot be used
    // does not keep another from giving the file; but then only the file itself is an answer, since
    // that the others do not have it is not.
    let mut failed = None;
    for (number, config) in configs.iter().enumerate() {
        if number + 1 < configs.len() || failed.is_some() {
            // Another one may have it sooner than this one answers.
            options.retry_for = Duration::ZERO;
        }
        let opened = match configs.len() {
            1 => context.open(config),
            _ => context.open_soon(config),
        };
        let repositories = match opened {
            Ok(repository) => [repository],
            Err(error) => {
                failed.get_or_insert(error);
                continue;
            }
        };
        options.prefetch = more(args.prefetch, &repositories);
        options.origin.clone_from(&config.keys.url.0);
        match wal::fetch(&repositories, &args.name, &args.destination, &options) {
            FetchOutcome::Complete => return Ok(Outcome::Done),
            FetchOutcome::Absent => {}
            FetchOutcome::Failed(error) => {
                failed.get_or_insert(error.into());
            }
        }
    }
    match failed {
        None if configs.len() > 1 && args.name.parse::<SegmentName>().is_ok() => {
            options.slices = true;
            fetch_again(&configs, args, options, context)
        }
        None => {
            tracing::info!(file = %args.name, "the archive has no such file");
            Ok(Outcome::Absent)
        }
        Some(_) if configs.len() > 1 => fetch_again(&configs, args, options, context),
        Some(error) => Err(error),
    }
}

/// Asks all repositories once more, for as long as may be.
fn fetch_again(
    configs: &[&RepositoryConfig],
    args: &FetchArgs,
    options: FetchOptions,
    context: &Context,
) -> Result<Outcome> {
    let repositories: Vec<Repository> =
        configs.iter().map(|config| context.open(config)).collect::<Result<_>>()?;
    // Which of them will answer is not known.
    let options = FetchOptions { retry_for: args.retry_for, spool: None, slices: true, ..options };
    match wal::fetch(&repositories, &args.name, &args.destination, &options) {
        FetchOutcome::Complete => Ok(Outcome::Done),
        FetchOutcome::Absent => Ok(Outcome::Absent),
        FetchOutcome::Failed(error) => Err(error.into()),
    }
}

/// The cluster of the data directory that `destination` lies in, or that this runs in.
fn around(destination: &Path) -> Result<u64> {
    let parents = destination.ancestors().skip(1).take(3).map(Path::to_path_buf);
    for folder in parents.chain([PathBuf::from(".")]) {
        let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
        if folder.join("global/pg_control").is_file() {
            return Ok(ControlFile::read(&folder)?.system_identifier);
        }
    }
    Err(Error::usage(
        format!("no data directory is around {}", destination.display()),
        "say which cluster's archive is meant with --system-id; `backstay wal status` shows it",
    ))
}

/// What the server runs for each segment, `%p` being its path.
///
/// Where a source goes is its own list, which may grow: the command does not repeat it.
pub fn archive_command(app: &App, source: &str) -> Result<String> {
    let mut words = program()?;
    let config = &app.context()?.config;
    if config.source(source)?.common.repositories.is_empty() {
        words.extend(where_flags(app, None)?);
    } else if let Some(file) = &config.file {
        words.extend(["--config".to_owned(), text(file)?]);
    }
    words.extend(["wal", "push", "--source"].map(str::to_owned));
    words.push(source.to_owned());
    Ok(format!("{} \"%p\"", shell(&words)))
}

/// What a recovering server runs to get a segment, `%f` being its name and `%p` its path.
/// With several repositories, the first one that has a segment gives it.
pub fn restore_command(app: &App, repositories: &[&str], system_identifier: u64) -> Result<String> {
    let mut words = program()?;
    let [first, others @ ..] = repositories else {
        return Err(Error::usage("no repository was named", "name one with --repository"));
    };
    if others.is_empty() {
        words.extend(where_flags(app, Some(first))?);
    } else if let Some(file) = &app.context()?.config.file {
        words.extend(["--config".to_owned(), text(file)?]);
    }
    words.extend(["wal", "fetch", "--system-id"].map(str::to_owned));
    words.push(system_identifier.to_string());
    for name in repositories.iter().filter(|_| !others.is_empty()) {
        words.extend(["--from".to_owned(), (*name).to_owned()]);
    }
    Ok(format!("{} \"%f\" \"%p\"", shell(&words)))
}

fn program() -> Result<Vec<String>> {
    let path = std::env::current_exe()
        .map_err(|error| Error::io("find the path of", "this program", error))?;
    Ok(vec![text(&path)?])
}

/// The flags that lead another process to the same repository, wherever it is started.
fn where_flags(app: &App, repository: Option<&str>) -> Result<Vec<String>> {
    let context = app.context()?;
    let mut words = Vec::new();
    if let Some(file) = &context.config.file {
        words.extend(["--config".to_owned(), text(file)?]);
    }
    let chosen = match (repository, context.config.selected()) {
        (Some(name), _) => Some(name),
        (None, selected) => selected,
    };
    let Some(name) = chosen else { return Ok(words) };
    let config = context.config.repository(name)?;
    let from_file = context.config.file.is_some() && config.configured;
    let only = context.config.repositories.len() == 1;
    if !from_file {
        words.extend(["--repository".to_owned(), config.keys.url.0.clone()]);
    } else if !only {
        words.extend(["--repository".to_owned(), name.to_owned()]);
    }
    let key = config.keys.key_file.as_ref();
    if let Some(path) = key.filter(|_| !from_file || app.global.key_file.is_some()) {
        words.extend(["--key-file".to_owned(), text(path)?]);
    }
    Ok(words)
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::usage(
            format!("the path {} is no UTF-8", path.display()),
            "PostgreSQL's settings are text: use another path",
        )
    })
}

/// Words for a shell, and for PostgreSQL, which replaces what follows a percent sign.
fn shell(words: &[String]) -> String {
    let quoted: Vec<String> = words
        .iter()
        .map(|word| {
            let word = word.replace('%', "%%");
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
            if !word.is_empty() && word.chars().all(plain) {
                word
            } else {
                format!("'{}'", word.replace('\'', "'\\''"))
            }
        })
        .collect();
    quoted.join(" ")
}
