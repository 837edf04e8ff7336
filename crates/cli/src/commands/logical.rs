//! What `backstay restore` does with a snapshot of databases: into a server.

use backstay_ops::nearest::Everywhere;
use backstay_ops::units::{count, format_duration, format_size};
use backstay_ops::{Error, Found};
use backstay_postgres::logical::restore::{RestoreOptions, Restored, restore};
use backstay_repo::SourceKind;
use clap::Args;
use serde_json::json;

use super::present::snapshot_document;
use super::restore::head;
use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::table::{Cell, Table};
use crate::work;

/// What of a dump is restored, and into which server.
#[derive(Debug, Args)]
#[command(next_help_heading = "Into a server")]
pub struct IntoArgs {
    /// Restore into this server, in libpq's words or as a URI. Where it names a database, into that
    /// one; else each database into the one of its own name, which is made where it is missing. Of a
    /// cluster one table or one schema, under a name that is free. A password belongs into ~/.pgpass
    #[arg(long, value_name = "CONNECTION")]
    pub into: Option<String>,

    /// Only this database; several times for several. Restoring a cluster to a folder makes the others
    /// empty, and drops them with --start
    #[arg(long = "database", value_name = "NAME", conflicts_with_all = ["standby", "delta"])]
    pub databases: Vec<String>,

    /// Only this schema
    #[arg(long = "schema", value_name = "[DB.]NAME", requires = "into")]
    pub schemas: Vec<String>,

    /// Only this table, with its indexes, constraints, partitions and what it cannot do without
    #[arg(long = "table", value_name = "[DB.][SCHEMA.]NAME", requires = "into")]
    pub tables: Vec<String>,

    /// Of a cluster: the name that the table or schema gets there, which must be free [default: in a
    /// new schema]
    #[arg(long = "as", value_name = "NAME", requires = "into")]
    pub as_name: Option<String>,

    /// Only the roles: those that are missing, and with --overwrite also the others
    #[arg(long, requires = "into", conflicts_with_all = ["databases", "schemas", "tables"])]
    pub roles: bool,

    /// Replace what is there
    #[arg(long, requires = "into")]
    pub overwrite: bool,

    /// Workers that fill a database which is made [default: one for each core]
    #[arg(long, value_name = "N", requires = "into")]
    pub jobs: Option<u16>,
}

impl IntoArgs {
    /// Refuses what means nothing without a server: a folder would get everything.
    pub fn refuse_without_server(&self) -> Result<()> {
        let flags = [
            ("--schema", !self.schemas.is_empty()),
            ("--table", !self.tables.is_empty()),
            ("--roles", self.roles),
            ("--overwrite", self.overwrite),
            ("--jobs", self.jobs.is_some()),
        ];
        match flags.iter().find(|(_, given)| *given) {
            Some((flag, _)) if self.into.is_none() => Err(Error::usage(
                format!("{flag} is for restores into a server"),
                "say --into CONNECTION instead of --to, or leave the flag out",
            )),
            _ => Ok(()),
        }
    }
}

/// Restores into the server that `--into` names.
pub fn run(
    args: &IntoArgs,
    into: &str,
    no_owner: bool,
    app: &App,
    everywhere: &Everywhere,
    found: &Found,
) -> Result<Outcome> {
    if found.snapshot.kind != SourceKind::PostgresLogical {
        return Err(Error::usage(
            format!(
                "--into is for postgres-logical, and {} is of kind {}",
                found.snapshot.source, found.snapshot.kind
            ),
            "say --to DIR instead",
        ));
    }
    if args.as_name.is_some() {
        return Err(Error::usage(
            "--as is for a table or schema of a cluster",
            "leave it out: what is restored has the name that it had",
        ));
    }
    let context = app.context()?;
    let configured =
        context.config.sources.iter().find(|source| source.name == found.snapshot.source);
    let mut options = RestoreOptions::new(into);
    if let Some(source) = configured
        && let backstay_ops::config::SourceSettings::PostgresLogical(keys) = &source.settings
    {
        options.bin_directory.clone_from(&keys.bin_directory);
        options.spool.clone_from(&keys.spool);
    }
    options.databases.clone_from(&args.databases);
    options.schemas.clone_from(&args.schemas);
    options.tables.clone_from(&args.tables);
    options.roles = args.roles;
    options.overwrite = args.overwrite;
    options.owner = !no_owner;
    options.jobs = usize::from(args.jobs.unwrap_or(0));
    options.fallback = everywhere.fallback(found);
    let restored = work::run(app, &found.snapshot.source, |progress| {
        options.progress = progress.clone();
        restore(&found.repository, &found.snapshot, &options)
    })?;
    super::parity::warn_of_damage(app, &found.name, &found.repository);
    present(app, found, &restored)?;
    Ok(if found.snapshot.problems.is_empty() { Outcome::Done } else { Outcome::Partial })
}

fn present(app: &App, found: &Found, restored: &Restored) -> Result<()> {
    app.output.document(&json!({
        "snapshot": snapshot_document(&found.snapshot, &found.name),
        "seconds": restored.took.as_secs_f64(),
        "roles": restored.roles,
        "databases": restored.databases,
        "notes": restored.notes,
        "problems": found.snapshot.problems,
    }))?;
    head(app, found)?;
    if let Some(roles) = &restored.roles {
        let mut parts = vec![format!("{} created", roles.created.len())];
        if !roles.altered.is_empty() {
            parts.push(format!("{} made as they were", roles.altered.len()));
        }
        if !roles.kept.is_empty() {
            parts.push(format!("{} were there and stayed as they are", roles.kept.len()));
        }
        app.output.say(format!("          roles: {}", parts.join(", ")))?;
    }
    for one in &restored.databases {
        let bytes: u64 = one.objects.iter().map(|object| object.bytes).sum();
        let what = count(one.objects.len() as u64, "object", "objects");
        let how = if one.created { ", which was created" } else { "" };
        app.output.say(format!(
            "          restored {what}, {} of rows, from {} into {}{how}",
            format_size(bytes),
            one.database,
            app.output.paint.paint(Style::Bold, &one.into),
        ))?;
        let mut table = Table::new(&["", "", ">"]);
        let shown = one.objects.iter().filter(|object| {
            matches!(object.kind.as_str(), "table" | "view" | "materialized view" | "function")
        });
        for object in shown {
            let schema = object.schema.as_ref().map(|it| format!("{it}.")).unwrap_or_default();
            let size = match object.kind.as_str() {
                "table" => format_size(object.bytes),
                _ => String::new(),
            };
            table.row([
                Cell::new(format!("          {}", object.kind), Style::Dim),
                format!("{schema}{}", object.name).into(),
                size.into(),
            ]);
        }
        app.output.say(table.render(app.output.paint))?;
    }
    for note in &restored.notes {
        app.output.warn(note, None);
    }
    app.output.say(format!("          {}", format_duration(restored.took)))
}
