//! One table or one schema of a cluster's backup, into a running cluster.

use std::path::PathBuf;

use backstay_ops::nearest::Everywhere;
use backstay_ops::units::{count, format_duration};
use backstay_ops::{Error, Found, moment};
use backstay_postgres::wal::RecoveryTarget;
use backstay_postgres::{ExtractOptions, Extracted, Part};
use serde_json::json;

use super::{RestoreArgs, bin_directory, keys, options};
use crate::app::{App, Outcome, Result};
use crate::commands::present::snapshot_document;
use crate::output::Style;
use crate::work;

pub fn run(
    args: &RestoreArgs,
    app: &App,
    everywhere: &Everywhere,
    found: &Found,
    target: RecoveryTarget,
) -> Result<Outcome> {
    refuse_others(args)?;
    let server = &args.server;
    let (database, part) = match (server.tables.as_slice(), server.schemas.as_slice()) {
        ([table], []) => Part::table(table)?,
        ([], [schema]) => Part::schema(schema)?,
        _ => {
            return Err(Error::usage(
                "of a cluster, --into is for one table or one schema",
                "say which with --table or --schema, once",
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
        into: server.into.clone().unwrap_or_default(),
        name: server.as_name.clone(),
    };
    let done = work::run(app, &found.snapshot.source, |progress| {
        options.restore.progress = progress.clone();
        backstay_postgres::extract(&found.repository, &found.snapshot, &options)
    })?;
    present(app, found, &options, &target, &done)
}

/// Refuses what means nothing for a part of a cluster.
fn refuse_others(args: &RestoreArgs) -> Result<()> {
    let (server, cluster) = (&args.server, &args.cluster);
    let flags = [
        ("--database", !server.databases.is_empty()),
        ("--roles", server.roles),
        ("--overwrite", server.overwrite),
        ("--jobs", server.jobs.is_some()),
        ("--delta", args.delta),
        ("--no-owner", args.no_owner),
        ("--standby", cluster.standby),
        ("--start", cluster.start),
        ("--manifest", cluster.manifest),
        ("--tablespace", !cluster.tablespaces.is_empty()),
    ];
    match flags.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((flag, _)) => Err(Error::usage(
            format!("{flag} means nothing for one table or schema of a cluster"),
            "leave it out; a table of another database is named DB.SCHEMA.TABLE",
        )),
    }
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
