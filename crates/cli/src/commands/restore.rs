//! `backstay restore`: from a snapshot to a folder, or to a cluster at any moment; a table of one,
//! in `part`.

mod part;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use backstay_ops::nearest::Everywhere;
use backstay_ops::units::{count, format_duration, format_size};
use backstay_ops::{Error, ErrorKind, Found, moment, recover};
use backstay_postgres::wal::{Lsn, RecoveryTarget, TargetTimeline};
use backstay_postgres::{Restored, StartOptions, TargetAction};
use backstay_repo::{RestoreOptions, RestoreReport, Snapshot, SourceKind};
use backstay_sources::sqlite;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::logical::{self, IntoArgs};
use super::present::{moment_and_age, printable, snapshot_document, tree_path};
use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::work;

/// Restore a snapshot, some of its files, or a cluster to any moment
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backstay restore etc --to /tmp/etc
  backstay restore 3f2a9c1b /etc/nginx --to /tmp/etc
  backstay restore orders --to /var/lib/postgresql/15/restored --at \"10 minutes ago\"
  backstay restore orders --to /var/lib/postgresql/15/standby --standby --primary host=db1
  backstay restore orders --to /tmp/etc --config-only
  backstay restore orders --table public.invoices --into \"host=/run/postgresql dbname=shop\"
  backstay restore shop-logical --into \"host=db.internal user=postgres\" --table public.orders")]
pub struct RestoreArgs {
    /// A source (its newest snapshot, or the one that the target asks for), a snapshot's id or the
    /// beginning of it, or `latest`
    #[arg(value_name = "SOURCE|SNAPSHOT")]
    what: String,

    /// Only these files and folders
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,

    /// Where to. Absent or empty, unless --delta. With --into, of a cluster, the sandbox, which is
    /// removed at the end [default: among temporary files]
    #[arg(long, value_name = "DIR", required_unless_present = "into")]
    to: Option<PathBuf>,

    /// Keep what is right already, and change only what is not
    #[arg(long)]
    delta: bool,

    /// With --delta: remove what the snapshot does not have. Always so for clusters
    #[arg(long, requires = "delta")]
    prune: bool,

    /// Leave everything to the user who runs this
    #[arg(long)]
    no_owner: bool,

    #[command(flatten)]
    thaw: super::thaw::FetchArgs,

    #[command(flatten)]
    target: TargetArgs,

    #[command(flatten)]
    cluster: ClusterArgs,

    #[command(flatten)]
    server: IntoArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "How far")]
#[group(multiple = false)]
struct TargetArgs {
    /// To this moment: "2026-11-21 10:00:00" in local time, with an offset, or "10 minutes ago"
    #[arg(long, value_name = "TIME")]
    at: Option<String>,

    /// PostgreSQL: to this transaction
    #[arg(long, value_name = "N")]
    xid: Option<u64>,

    /// PostgreSQL: to this position of the log
    #[arg(long, value_name = "LSN")]
    lsn: Option<Lsn>,

    /// PostgreSQL: to this restore point
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// PostgreSQL: no further than the snapshot itself
    #[arg(long)]
    immediate: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "PostgreSQL")]
struct ClusterArgs {
    /// Stop just before the target instead of just after it
    #[arg(long)]
    exclusive: bool,

    /// Along which timeline: `latest`, `current` (the snapshot's own) or a number
    #[arg(long, value_name = "TIMELINE", value_parser = parse_timeline)]
    timeline: Option<TargetTimeline>,

    /// What to do when the target is reached
    #[arg(long, value_name = "ACTION", default_value = "promote")]
    target_action: Action,

    /// Where a tablespace goes
    #[arg(long = "tablespace", value_name = "NAME=DIR", value_parser = parse_tablespace)]
    tablespaces: Vec<(String, PathBuf)>,

    /// Go on replaying for ever, as a standby
    #[arg(long, conflicts_with_all = ["at", "xid", "lsn", "name", "immediate"])]
    standby: bool,

    /// With --standby: the server whose log it streams, in libpq's words; a password belongs in a
    /// file that `passfile` names
    #[arg(long, value_name = "CONNINFO", requires = "standby")]
    primary: Option<String>,

    /// With --standby: the replication slot on the primary that is used
    #[arg(long, value_name = "NAME", requires = "primary")]
    slot: Option<String>,

    /// Write a `backup_manifest` by which pg_verifybackup checks the restored files
    #[arg(long, conflicts_with = "start")]
    manifest: bool,

    /// Only the files that configure the server: those outside the data directory below `config`,
    /// those in it below `data`
    #[arg(long, conflicts_with_all = ["start", "standby", "databases", "manifest", "paths", "into"])]
    config_only: bool,

    /// Start the server, and wait until it is where it should be
    #[arg(long)]
    start: bool,

    /// The port of the started server
    #[arg(long, value_name = "PORT", requires = "start")]
    port: Option<u16>,

    /// Where the socket of the started server is
    #[arg(long, value_name = "DIR", requires = "start")]
    socket_directory: Option<PathBuf>,

    /// Where `postgres` is
    #[arg(long, value_name = "DIR")]
    bin_directory: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    Promote,
    Pause,
    Shutdown,
}

fn parse_timeline(text: &str) -> Result<TargetTimeline, String> {
    match text {
        "latest" => Ok(TargetTimeline::Latest),
        "current" => Ok(TargetTimeline::Current),
        _ => text
            .parse()
            .map(TargetTimeline::Number)
            .map_err(|_| "say `latest`, `current` or a number".to_owned()),
    }
}

fn parse_tablespace(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, folder)) if !name.is_empty() && folder.starts_with('/') => {
            Ok((name.to_owned(), PathBuf::from(folder)))
        }
        _ => Err("write it as NAME=DIR, with an absolute DIR".to_owned()),
    }
}

impl TargetArgs {
    fn at(&self, app: &App) -> Result<Option<jiff::Timestamp>> {
        let Some(text) = &self.at else { return Ok(None) };
        let at = moment::parse(text, app.now(), &app.zone())?;
        if at > app.now() {
            return Err(Error::usage(
                format!("{text:?} lies ahead: {at}"),
                "name a moment that has been",
            ));
        }
        Ok(Some(at))
    }

    fn target(&self, app: &App) -> Result<RecoveryTarget> {
        Ok(match (self.at(app)?, self.xid, self.lsn, &self.name) {
            (Some(time), ..) => RecoveryTarget::Time(time),
            (_, Some(xid), ..) => RecoveryTarget::Xid(xid),
            (_, _, Some(lsn), _) => RecoveryTarget::Lsn(lsn),
            (_, _, _, Some(name)) => RecoveryTarget::Name(name.clone()),
            _ if self.immediate => RecoveryTarget::Immediate,
            _ => RecoveryTarget::Latest,
        })
    }
}

pub fn run(args: &RestoreArgs, app: &App) -> Result<Outcome> {
    args.server.refuse_without_server()?;
    let context = app.context()?;
    // Times are understood before anything is opened.
    let at = args.target.at(app)?;
    let everywhere = context.everywhere()?;
    let mut found = everywhere.find(context, &args.what)?;
    app.show_warnings();
    let kind = found.snapshot.kind;
    let of_source = found.snapshot.source == args.what;
    let candidates: Vec<Snapshot> =
        if of_source { everywhere.moments(&args.what, kind) } else { vec![found.snapshot.clone()] };
    if kind == SourceKind::Postgres && args.cluster.config_only {
        let snapshot = recover::as_of(&candidates, at)?;
        let found = everywhere.at(&snapshot).unwrap_or(Found { snapshot, ..found });
        return files(args, app, &everywhere, &found, configuration(&found)?);
    }
    if kind == SourceKind::Postgres && args.paths.is_empty() {
        let target = args.target.target(app)?;
        found = for_target(args, &everywhere, found, of_source, &target)?;
        warn_of_passed_over(app, &candidates, &found.snapshot, at);
        if args.server.into.is_some() {
            return part::run(args, app, &everywhere, &found, target);
        }
        return cluster(args, app, &everywhere, &found, target);
    }
    refuse_cluster_flags(args, &found)?;
    let snapshot = recover::as_of(&candidates, at)?;
    warn_of_passed_over(app, &candidates, &snapshot, at);
    let found = everywhere.at(&snapshot).unwrap_or(Found { snapshot, ..found });
    if let Some(into) = &args.server.into {
        if !args.paths.is_empty() || args.delta || args.to.is_some() {
            return Err(Error::usage(
                "paths, --to and --delta are for folders, and --into is for servers",
                "leave them out; --table, --schema and --database choose what is restored",
            ));
        }
        return logical::run(&args.server, into, args.no_owner, app, &everywhere, &found);
    }
    let paths = args.paths.iter().map(|path| tree_path(path)).collect();
    files(args, app, &everywhere, &found, paths)
}

/// The files of a snapshot of a cluster that configure its server.
fn configuration(found: &Found) -> Result<Vec<Vec<u8>>> {
    let tree = found.repository.tree(&found.snapshot)?;
    let mut paths = Vec::new();
    if tree.get(b"config")?.is_some() {
        paths.push(b"config".to_vec());
    }
    for entry in tree.iter() {
        let entry = entry?;
        let name = entry.path.strip_prefix(b"data/").unwrap_or_default();
        if name.ends_with(b".conf") && !name.contains(&b'/') && !entry.is_directory() {
            paths.push(entry.path);
        }
    }
    if paths.is_empty() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("snapshot {} has no configuration files", found.snapshot.short_id()),
        )
        .with_hint("they may have been out of reach of the role that made the backup"));
    }
    Ok(paths)
}

/// The snapshot from which the target can be reached, in the nearest repository from which it can.
fn for_target(
    args: &RestoreArgs,
    everywhere: &Everywhere,
    found: Found,
    of_source: bool,
    target: &RecoveryTarget,
) -> Result<Found> {
    let (inclusive, timeline) = (!args.cluster.exclusive, args.cluster.timeline);
    if !of_source {
        let candidates = [found.snapshot.clone()];
        recover::for_target(&found.repository, &candidates, target, inclusive, timeline)?;
        return Ok(found);
    }
    let mut first = None;
    for place in &everywhere.places {
        let mut candidates = place.snapshots.clone();
        candidates.retain(|one| one.source == args.what && one.kind == SourceKind::Postgres);
        if candidates.is_empty() {
            continue;
        }
        let repository = &place.repository;
        match recover::for_target(repository, &candidates, target, inclusive, timeline) {
            Ok(snapshot) => {
                let (name, repository) = (place.name.clone(), repository.clone());
                return Ok(Found { name, repository, snapshot });
            }
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| {
        Error::new(ErrorKind::NotFound, "there is no snapshot to restore")
            .with_hint("see `backstay list`")
    }))
}

/// Says it when something older was chosen because the newest snapshot lacks something.
fn warn_of_passed_over(
    app: &App,
    candidates: &[Snapshot],
    chosen: &Snapshot,
    at: Option<jiff::Timestamp>,
) {
    if !chosen.problems.is_empty() {
        return;
    }
    let newer = candidates
        .iter()
        .filter(|one| !one.problems.is_empty() && one.time > chosen.time)
        .filter(|one| at.is_none_or(|at| one.time <= at))
        .max_by_key(|one| one.time);
    if let Some(newer) = newer {
        app.output.warn(
            &format!(
                "the newer snapshot {} of {} is incomplete, so {} is restored",
                newer.short_id(),
                moment::local(newer.time, &app.zone()),
                chosen.short_id()
            ),
            Some(&format!("to restore the incomplete one, name it: {}", newer.short_id())),
        );
    }
}

fn refuse_cluster_flags(args: &RestoreArgs, found: &Found) -> Result<()> {
    let (target, cluster) = (&args.target, &args.cluster);
    let flags = [
        ("--xid", target.xid.is_some()),
        ("--lsn", target.lsn.is_some()),
        ("--name", target.name.is_some()),
        ("--immediate", target.immediate),
        ("--exclusive", cluster.exclusive),
        ("--timeline", cluster.timeline.is_some()),
        ("--tablespace", !cluster.tablespaces.is_empty()),
        ("--standby", cluster.standby),
        ("--database", args.server.into.is_none() && !args.server.databases.is_empty()),
        ("--manifest", cluster.manifest),
        ("--config-only", cluster.config_only),
        ("--start", cluster.start),
    ];
    match flags.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((flag, _)) if found.snapshot.kind == SourceKind::Postgres => Err(Error::usage(
            format!("{flag} is for whole clusters, and paths were named"),
            "leave out the paths, or the flag",
        )),
        Some((flag, _)) => Err(Error::usage(
            format!(
                "{flag} is for PostgreSQL, and {} is of kind {}",
                found.snapshot.source, found.snapshot.kind
            ),
            "leave it out; --at TIME chooses the snapshot",
        )),
    }
}

fn files(
    args: &RestoreArgs,
    app: &App,
    everywhere: &Everywhere,
    found: &Found,
    paths: Vec<Vec<u8>>,
) -> Result<Outcome> {
    let context = app.context()?;
    let mut options = RestoreOptions::new(args.to()?);
    options.paths = paths;
    options.fallback = everywhere.fallback(found);
    let tree = found.repository.tree(&found.snapshot)?.falling_over(options.fallback.clone());
    for path in &options.paths {
        // Nothing restored would look like success. The root itself stands for everything.
        if !path.is_empty() && tree.get(path)?.is_none() {
            return Err(super::dump::no_such_path(&String::from_utf8_lossy(path), found));
        }
    }
    options.paths.retain(|path| !path.is_empty());
    options.delta = args.delta;
    options.prune = args.prune;
    options.thaw = args.thaw.options();
    options.workers = context.workers();
    options.owner = options.owner && !args.no_owner;
    // Of a tree, each file is worth something by itself; half a database is worth nothing.
    options.keep_going = found.snapshot.kind == SourceKind::Files;
    let start = Instant::now();
    let target = options.target.clone();
    let report = work::run(app, &found.snapshot.source, |progress| {
        let (repository, snapshot) = (&found.repository, &found.snapshot);
        if snapshot.kind == SourceKind::Sqlite {
            // A log of another state beside the file would be replayed into it.
            return sqlite::restore(repository, snapshot, options, progress)
                .map(|(report, _)| report);
        }
        repository.restore(snapshot, options, progress)
    })?;
    let took = start.elapsed();
    super::parity::warn_of_damage(app, &found.name, &found.repository);
    app.output.document(&json!({
        "snapshot": snapshot_document(&found.snapshot, &found.name),
        "target": target,
        "seconds": took.as_secs_f64(),
        "problems": found.snapshot.problems,
        "report": report,
    }))?;
    head(app, found)?;
    app.output.say(format!("          {}", summary(&report, &target, took)))?;
    warn_of_lacking(app, &report);
    Ok(problems(app, &found.snapshot, &report))
}

impl RestoreArgs {
    fn to(&self) -> Result<PathBuf> {
        let to = self
            .to
            .as_deref()
            .ok_or_else(|| Error::usage("it is not said where to restore to", "say --to DIR"))?;
        absolute(to)
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io("use the folder", path, error))
}

pub fn head(app: &App, found: &Found) -> Result<()> {
    let paint = app.output.paint;
    app.output.say(format!(
        "{}  snapshot of {} from {}",
        paint.paint(Style::Cyan, found.snapshot.short_id()),
        paint.paint(Style::Bold, &found.snapshot.source),
        moment_and_age(found.snapshot.time, app.now(), &app.zone()),
    ))
}

fn summary(report: &RestoreReport, target: &Path, took: std::time::Duration) -> String {
    let speed = report.bytes as f64 / took.as_secs_f64().max(0.001);
    let mut text = format!(
        "restored {}, {} to {} in {} at {}/s",
        count(report.files, "file", "files"),
        format_size(report.bytes),
        target.display(),
        format_duration(took),
        format_size(speed as u64),
    );
    if report.bytes_kept > 0 {
        text.push_str(&format!("; {} were right already", format_size(report.bytes_kept)));
    }
    if report.removed > 0 {
        text.push_str(&format!("; {} removed", count(report.removed, "entry", "entries")));
    }
    text
}

/// What the snapshot never had, and what could not be written.
fn problems(app: &App, snapshot: &Snapshot, report: &RestoreReport) -> Outcome {
    let lacks = (&snapshot.problems, "of the source could not be read for this snapshot");
    let failed = (&report.problems, "could not be restored as it was");
    for (problems, what) in [lacks, failed].iter().filter(|(problems, _)| !problems.is_empty()) {
        let number = count(problems.len() as u64, "item", "items");
        app.output.warn(&format!("{number} {what}"), None);
        if !app.output.json {
            for problem in problems.iter() {
                let path = match problem.path.as_str() {
                    "" => String::new(),
                    path => printable(path) + ": ",
                };
                crate::output::write_err(&format!("  {path}{}\n", problem.what));
            }
        }
    }
    if snapshot.problems.is_empty() && report.problems.is_empty() {
        Outcome::Done
    } else {
        Outcome::Partial
    }
}

/// Says which objects could not be used, and who gave what was in them: nothing was lost, but what is
/// damaged has to be healed before the other one is damaged too.
fn warn_of_lacking(app: &App, report: &RestoreReport) {
    if report.lacking.is_empty() {
        return;
    }
    let given: Vec<String> = report
        .supplied
        .iter()
        .map(|one| {
            format!(
                "{} of {} from {}",
                format_size(one.bytes),
                count(one.files, "file", "files"),
                one.repository
            )
        })
        .collect();
    let number = count(report.lacking.len() as u64, "object", "objects");
    let instead = match given.as_slice() {
        [] => "the tree was read elsewhere".to_owned(),
        given => format!("restored instead: {}", given.join(", ")),
    };
    let mut damaged: Vec<&str> = report.lacking.iter().map(|one| one.repository.as_str()).collect();
    damaged.dedup();
    app.output.warn(
        &format!("{number} could not be used; {instead}"),
        Some(&format!(
            "find out what is damaged with `backstay verify -r {}`, and make a new backup there",
            damaged.first().unwrap_or(&"NAME")
        )),
    );
    if !app.output.json {
        for one in &report.lacking {
            // Most say themselves which object it is.
            let object = if one.what.contains(&one.object) {
                String::new()
            } else {
                printable(&one.object) + ": "
            };
            crate::output::write_err(&format!("  {}: {object}{}\n", one.repository, one.what));
        }
    }
}

fn cluster(
    args: &RestoreArgs,
    app: &App,
    everywhere: &Everywhere,
    found: &Found,
    target: RecoveryTarget,
) -> Result<Outcome> {
    let mut options = options(args, app, everywhere, found, &target, args.to()?)?;
    options.action = match args.cluster.target_action {
        Action::Promote => TargetAction::Promote,
        Action::Pause => TargetAction::Pause,
        Action::Shutdown => TargetAction::Shutdown,
    };
    options.delta = args.delta;
    options.tablespaces = args.cluster.tablespaces.clone();
    options.standby = args.cluster.standby;
    options.primary = args.cluster.primary.clone();
    options.slot = args.cluster.slot.clone();
    options.databases = args.server.databases.clone();
    options.manifest = args.cluster.manifest;
    let keys = keys(app, found)?;
    if args.cluster.start {
        options.start = Some(StartOptions {
            bin_dir: bin_directory(args, keys),
            socket_directory: args.cluster.socket_directory.clone(),
            port: args.cluster.port,
            connection: keys.map(|keys| keys.connection.clone()),
            ..StartOptions::default()
        });
    }
    let to = options.to.clone();
    let restored = work::run(app, &found.snapshot.source, |progress| {
        options.progress = progress.clone();
        backstay_postgres::restore(&found.repository, &found.snapshot, &options)
    })?;
    present_cluster(args, app, found, &target, &to, &restored)
}

/// What every restore of a cluster needs: where its log is, and how far to go.
fn options(
    args: &RestoreArgs,
    app: &App,
    everywhere: &Everywhere,
    found: &Found,
    target: &RecoveryTarget,
    to: PathBuf,
) -> Result<backstay_postgres::RestoreOptions> {
    let context = app.context()?;
    let detail = backstay_postgres::BackupDetail::of(&found.snapshot)?;
    let mut names = vec![found.name.as_str()];
    let others = everywhere.places.iter().map(|place| place.name.as_str());
    names.extend(others.filter(|name| *name != found.name));
    let configured =
        context.config.sources.iter().find(|source| source.name == found.snapshot.source);
    // Where the log ends is known only of those that answered.
    if *target == RecoveryTarget::Latest
        && !args.cluster.standby
        && let Some(source) = configured
        && let Some(silent) = super::wal::may_have_more(context, source, &names)?
    {
        return Err(Error::new(
            ErrorKind::Failed,
            format!(
                "`{silent}` did not answer, and with `archive-copies` it may have the end of the \
                 log, which {} may lack",
                names.join(" and ")
            ),
        )
        .with_hint(format!(
            "bring it back; if it is lost, `--repository {}` restores what is there",
            found.name
        )));
    }
    let command = super::wal::restore_command(app, &names, detail.system_identifier)?;
    let mut options = backstay_postgres::RestoreOptions::new(to, command);
    options.fallback = everywhere.fallback(found);
    options.thaw = args.thaw.options();
    options.target = target.clone();
    options.inclusive = !args.cluster.exclusive;
    options.timeline = args.cluster.timeline;
    options.workers = context.workers();
    options.owner = options.owner && !args.no_owner;
    Ok(options)
}

/// How the source is configured, where it is.
fn keys<'c>(app: &'c App, found: &Found) -> Result<Option<&'c backstay_ops::config::PostgresKeys>> {
    let sources = &app.context()?.config.sources;
    let configured = sources.iter().find(|source| source.name == found.snapshot.source);
    Ok(configured.and_then(|source| match &source.settings {
        backstay_ops::config::SourceSettings::Postgres(keys) => Some(keys),
        _ => None,
    }))
}

fn bin_directory(
    args: &RestoreArgs,
    keys: Option<&backstay_ops::config::PostgresKeys>,
) -> Option<PathBuf> {
    let given = args.cluster.bin_directory.clone();
    given.or_else(|| keys.and_then(|keys| keys.bin_directory.clone()))
}

fn present_cluster(
    args: &RestoreArgs,
    app: &App,
    found: &Found,
    target: &RecoveryTarget,
    to: &Path,
    restored: &Restored,
) -> Result<Outcome> {
    let reached = restored.reached();
    app.output.document(&json!({
        "snapshot": snapshot_document(&found.snapshot, &found.name),
        "target": to,
        "recovery_target": target.to_string(),
        "seconds": restored.copied.as_secs_f64(),
        "recovery_seconds": restored.recovered.map(|took| took.as_secs_f64()),
        "started": args.cluster.start,
        "reached": reached,
        "connection": restored.running.as_ref().map(|running| running.connection()),
        "manifest": restored.manifest,
        "databases_left_out": restored.left_out.iter().map(|db| &db.name).collect::<Vec<_>>(),
        "statements": restored.statements,
        "notes": restored.notes,
        "problems": found.snapshot.problems,
        "report": restored.report,
    }))?;
    head(app, found)?;
    app.output.say(format!("          {}", summary(&restored.report, to, restored.copied)))?;
    for note in &restored.notes {
        app.output.warn(note, None);
    }
    if let Some(manifest) = &restored.manifest {
        app.output.say(format!("          listed in {}", manifest.display()))?;
    }
    if !restored.left_out.is_empty() {
        let names: Vec<&str> = restored.left_out.iter().map(|db| db.name.as_str()).collect();
        let what = if restored.statements.is_empty() {
            "were not restored, and dropped"
        } else {
            "were not restored: they are empty, and of no use"
        };
        app.output.say(format!("          {} {what}", names.join(", ")))?;
    }
    warn_of_lacking(app, &restored.report);
    match (reached, &restored.recovered) {
        (Some(reached), Some(took)) => {
            let mut parts = Vec::new();
            if let Some(time) = reached.time {
                parts.push(format!("last transaction {}", moment::local(time, &app.zone())));
            }
            if let Some(lsn) = reached.lsn {
                parts.push(format!("position {lsn}"));
            }
            parts.push(format!("timeline {}", reached.timeline));
            app.output.say(format!(
                "          recovered to {target} in {}: {}",
                format_duration(*took),
                parts.join(", ")
            ))?;
            if let Some(running) = &restored.running {
                app.output.say(format!(
                    "          the server runs: psql \"{} dbname=postgres\"",
                    running.connection()
                ))?;
            }
        }
        (None, Some(took)) => app.output.say(format!(
            "          recovered to {target} in {} and shut down",
            format_duration(*took)
        ))?,
        _ => {
            let then = match (args.cluster.standby, args.cluster.target_action) {
                (true, _) => "follows as a standby".to_owned(),
                (false, Action::Promote) => format!("recovers to {target}, then takes writes"),
                (false, Action::Pause) => format!("recovers to {target}, then waits"),
                (false, Action::Shutdown) => format!("recovers to {target}, then shuts down"),
            };
            app.output.say(format!(
                "\nWhen it is started, the cluster {then}:\n  {} -D {} start",
                pg_ctl(restored.detail.version),
                to.display()
            ))?;
        }
    }
    if !restored.statements.is_empty() {
        app.output.say("\nOnce it takes writes, rid it of what was not restored:")?;
        for statement in &restored.statements {
            app.output.say(format!("  {statement};"))?;
        }
    }
    Ok(problems(app, &found.snapshot, &restored.report))
}

/// `pg_ctl`, with the folder where Debian puts it when it is there.
fn pg_ctl(version: u32) -> String {
    let debian = format!("/usr/lib/postgresql/{version}/bin/pg_ctl");
    if Path::new(&debian).exists() { debian } else { "pg_ctl".into() }
}

/// An error for a source that is not of the kind that a command is for.
pub fn wrong_kind(name: &str, kind: SourceKind) -> Error {
    Error::new(ErrorKind::Usage, format!("`{name}` is of kind {kind}, and this is for postgres"))
        .with_hint("name a source of kind postgres")
}
