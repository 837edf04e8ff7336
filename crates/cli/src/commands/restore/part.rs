//! One table or one schema of a cluster's backup, into a running cluster.

use std::path::PathBuf;

use backstay_ops::nearest::Everywhere;
use backstay_ops::units::{count, format_duration};
use backstay_ops::{Error, Found, moment};
use backstay_postgres::wal::RecoveryTarget;
use backstay_postgres::{ExtractOptions, Extracted, Part};
use clap::Args;
use serde_json::json;

use super::{RestoreArgs, bin_directory, keys, options};
use crate::app::{App, Outcome, Result};
use crate::commands::present::snapshot_document;
use crate::output::Style;
use crate::work;

#[derive(Debug, Args)]
#[command(next_help_heading = "PostgreSQL: one table or schema")]
pub struct PartArgs {
    /// Only this table, into a running cluster. The names are read as SQL reads them
    #[arg(
        long,
        value_name = "[DB.]SCHEMA.TABLE",
        requires = "into",
        conflicts_with_all = [
            "schema", "paths", "delta", "standby", "start", "manifest", "config_only", "databases",
            "tablespaces", "no_owner"
        ]
    )]
    table: Option<String>,

    /// Only this schema, into a running cluster
    #[arg(
        long,
        value_name = "[DB.]SCHEMA",
        requires = "into",
        conflicts_with_all = [
            "paths", "delta", "standby", "start", "manifest", "config_only", "databases",
            "tablespaces", "no_owner"
        ]
    )]
    schema: Option<String>,

    /// Where it is loaded, in libpq's words; a password comes from PGPASSWORD or ~/.pgpass
    #[arg(long, value_name = "CONNINFO")]
    into: Option<String>,

    /// The name that it gets there, which must be free [default: in a new schema]
    #[arg(long = "as", value_name = "NAME", requires = "into")]
    name: Option<String>,
}

impl PartArgs {
    pub fn is_given(&self) -> bool {
        self.table.is_some() || self.schema.is_some() || self.into.is_some()
    }
}

pub fn run(
    args: &RestoreArgs,
    app: &App,
    everywhere: &Everywhere,
    found: &Found,
    target: RecoveryTarget,
) -> Result<Outcome> {
    let (database, part) = match (&args.part.table, &args.part.schema) {
        (Some(table), _) => Part::table(table)?,
        (None, Some(schema)) => Part::schema(schema)?,
        (None, None) => {
            return Err(Error::usage(
                "--into is for one table or one schema",
                "say which with --table or --schema",
            ));
        }
    };
    // Where the sandbox is, is for it to say.
    let restore = options(args, app, everywhere, found, &target, PathBuf::new())?;
    let mut options = ExtractOptions {
        restore,
        directory: args.to.clone(),
        bin_dir: bin_directory(args, keys(app, found)?),
        part,
        database,
        into: args.part.into.clone().unwrap_or_default(),
        name: args.part.name.clone(),
    };
    let done = work::run(app, &found.snapshot.source, |progress| {
        options.restore.progress = progress.clone();
        backstay_postgres::extract(&found.repository, &found.snapshot, &options)
    })?;
    present(app, found, &options, &target, &done)
}

fn present(
    app: &App,
    found: &Found,
    options: &ExtractOptions,
    target: &RecoveryTarget,
    done: &Extracted,
) -> Result<Outcome> {
    app.output.document(&json!({
        "snapshot": snapshot_document(&found.snapshot, &found.name),
        "part": options.part.to_string(),
        "recovery_target": target.to_string(),
        "reached": done.reached,
        "tables": done.tables,
        "statements": done.statements,
        "seconds": (done.restored + done.loaded).as_secs_f64(),
        "notes": done.notes,
    }))?;
    super::head(app, found)?;
    let time = done.reached.as_ref().and_then(|reached| reached.time);
    let until = match time {
        Some(time) => format!(", last transaction {}", moment::local(time, &app.zone())),
        None => String::new(),
    };
    app.output.say(format!(
        "          recovered to {target} in {}{until}; loaded in {}",
        format_duration(done.restored),
        format_duration(done.loaded),
    ))?;
    let paint = app.output.paint;
    for table in &done.tables {
        let rows = count(u64::try_from(table.rows).unwrap_or(0), "row", "rows");
        let name = paint.paint(Style::Bold, &table.name);
        app.output.say(format!("          {name}: {rows}, as many as in the backup"))?;
    }
    if !done.statements.is_empty() {
        app.output.say("\nLeft out, because it reaches beyond; to add it:")?;
        for statement in &done.statements {
            app.output.say(format!("  {statement};"))?;
        }
    }
    for note in &done.notes {
        app.output.warn(note, None);
    }
    Ok(Outcome::Done)
}
