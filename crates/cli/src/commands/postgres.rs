//! `backstay postgres`: what a server has to be set to.

use backstay_ops::config::{SourceConfig, SourceSettings};
use backstay_ops::jobs::{Protected, protected};
use backstay_ops::{Context, Error};
use backstay_postgres::{Setting, apply_settings, settings};
use clap::{Args, Subcommand};
use serde_json::json;

use super::restore::wrong_kind;
use super::wal::archive_command;
use crate::app::{App, Outcome, Result};
use crate::output::Style;

/// Prepare PostgreSQL servers
#[derive(Debug, Subcommand)]
pub enum PostgresCommand {
    Setup(SetupArgs),
}

/// Show which settings of a server stand in the way of recovering it, and set them with --apply
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// A source of kind postgres [default: the only one]
    source: Option<String>,

    /// Set them: ALTER SYSTEM, and a reload
    #[arg(long)]
    apply: bool,
}

pub fn run(command: &PostgresCommand, app: &App) -> Result<Outcome> {
    let PostgresCommand::Setup(args) = command;
    let context = app.context()?;
    let source = choose(args.source.as_deref(), context)?;
    let Protected::Postgres(cluster) = protected(source)? else {
        return Err(wrong_kind(&source.name, source.kind()));
    };
    let command = archive_command(app, &source.name)?;
    let missing = settings(&cluster, &command)?;
    let applied = if args.apply && !missing.is_empty() {
        Some(apply_settings(&cluster, &missing)?)
    } else {
        None
    };
    app.output.document(&json!({
        "source": source.name,
        "settings": missing,
        "applied": applied,
    }))?;
    if missing.is_empty() {
        app.output.answer(format!("{} is set as it should be.", source.name))?;
        return Ok(Outcome::Done);
    }
    for setting in &missing {
        present(setting, app)?;
    }
    match applied {
        Some(applied) => {
            if !applied.active.is_empty() {
                app.output.answer(format!("In force: {}", applied.active.join(", ")))?;
            }
            if !applied.after_restart.is_empty() {
                let names = applied.after_restart.join(", ");
                app.output.answer(format!("In force after a restart of the server: {names}"))?;
            }
            app.output.say(format!("Then: `backstay check {}`", source.name))?;
        }
        None => {
            app.output.answer("To set them as SQL:")?;
            for setting in &missing {
                let value = setting.wanted.replace('\'', "''");
                app.output.answer(format!("  ALTER SYSTEM SET {} = '{value}';", setting.name))?;
            }
            app.output.answer("  SELECT pg_reload_conf();")?;
            if missing.iter().any(|setting| setting.restart) {
                app.output.answer("and restart the server.")?;
            }
            app.output.say(format!(
                "\n`backstay postgres setup {} --apply` does it for you.",
                source.name
            ))?;
        }
    }
    Ok(Outcome::Done)
}

fn present(setting: &Setting, app: &App) -> Result<()> {
    let paint = app.output.paint;
    let now = if setting.now.is_empty() { "(empty)" } else { &setting.now };
    app.output.answer(paint.paint(Style::Bold, &setting.name))?;
    app.output.answer(format!("  now     {now}"))?;
    app.output.answer(format!("  wanted  {}", setting.wanted))?;
    let restart = if setting.restart { "; needs a restart" } else { "" };
    app.output.answer(format!("  why     {}{restart}\n", setting.why))
}

/// The source that was named, or the only one of kind postgres.
pub fn choose<'a>(name: Option<&str>, context: &'a Context) -> Result<&'a SourceConfig> {
    if let Some(name) = name {
        let source = context.config.source(name)?;
        return match source.settings {
            SourceSettings::Postgres(_) => Ok(source),
            _ => Err(wrong_kind(name, source.kind())),
        };
    }
    let all: Vec<&SourceConfig> = context
        .config
        .all_sources()?
        .iter()
        .filter(|source| matches!(source.settings, SourceSettings::Postgres(_)))
        .collect();
    match all.as_slice() {
        [only] => Ok(only),
        [] => Err(Error::usage(
            "no source of kind postgres is configured",
            "add one: [sources.NAME] with kind = \"postgres\"",
        )),
        several => {
            let names: Vec<&str> = several.iter().map(|source| source.name.as_str()).collect();
            Err(Error::usage(
                "there are several sources of kind postgres",
                format!("name one of {}", backstay_ops::config::listed(&names)),
            ))
        }
    }
}
