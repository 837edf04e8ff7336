//! `backstay key`: what opens a repository.

use std::path::PathBuf;

use backstay_ops::config::RepositoryConfig;
use backstay_ops::{Context, Error, moment, secret};
use backstay_repo::{KeySlot, Repository};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{hosts, rotate};
use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::table::{Cell, Table};

/// Manage what opens a repository
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    Add(AddArgs),
    /// Show what opens a repository
    List,
    Remove(RemoveArgs),
    Rotate(rotate::RotateArgs),
}

/// Let another key file or passphrase open a repository
#[derive(Debug, Args)]
pub struct AddArgs {
    /// A key file; made with 32 random bytes where it is missing
    #[arg(long, value_name = "FILE", required_unless_present = "new_passphrase_file")]
    new_key_file: Option<PathBuf>,

    /// A file whose first line is a passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_file")]
    new_passphrase_file: Option<PathBuf>,

    /// Make the key of a host that adds backups in its own name, and reads or removes none
    #[arg(long, requires = "new_key_file", conflicts_with = "new_passphrase_file")]
    write_only: bool,

    /// What it is for, in words
    #[arg(long, default_value = "")]
    label: String,
}

/// Let a key file or passphrase no longer open a repository, or a host no longer write
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The id that `backstay key list` shows, or the beginning of it
    id: String,
}

pub fn run(command: &KeyCommand, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let config = context.config.default_repository()?;
    let repository = context.open(config)?;
    app.show_warnings();
    match command {
        KeyCommand::Add(args) => add(args, app, context, config, &repository),
        KeyCommand::List => list(app, config, &repository),
        KeyCommand::Remove(args) => remove(args, app, config, &repository),
        KeyCommand::Rotate(args) => rotate::run(args, app, context, config, &repository),
    }
}

fn add(
    args: &AddArgs,
    app: &App,
    context: &Context,
    config: &RepositoryConfig,
    repository: &Repository,
) -> Result<Outcome> {
    if let (true, Some(path)) = (args.write_only, &args.new_key_file) {
        return hosts::add(path, &args.label, app, config, repository);
    }
    let mut warnings = Vec::new();
    let secret = match (&args.new_key_file, &args.new_passphrase_file) {
        (Some(path), _) => {
            if secret::create_key_file(path, &context.env)? {
                app.output.say(format!("Created the key file {}.", path.display()))?;
            }
            secret::key_file(path, &mut warnings)?
        }
        (None, Some(path)) => secret::passphrase_file(path, &mut warnings)?,
        (None, None) => {
            return Err(Error::usage("no key is named", "say --new-key-file FILE"));
        }
    };
    for warning in warnings {
        app.output.warn(&warning.message, Some(&warning.hint));
    }
    let slot = repository.add_key(&secret, &args.label)?;
    app.output.document(&json!({ "repository": config.name, "key": slot }))?;
    app.output.say(format!(
        "Added {} {}: it opens the repository {} from now on.",
        named(&slot),
        slot.id,
        config.name
    ))?;
    Ok(Outcome::Done)
}

fn named(slot: &KeySlot) -> String {
    slot.kind.to_string().replace('-', " ")
}

fn list(app: &App, config: &RepositoryConfig, repository: &Repository) -> Result<Outcome> {
    let slots = repository.key_slots()?;
    let hosts = repository.hosts()?;
    app.output.document(&json!({
        "repository": config.name,
        "epoch": repository.epoch(),
        "keys": slots,
        "hosts": hosts,
    }))?;
    let mut table = Table::new(&["ID", "KIND", "CREATED", "LABEL"]);
    for slot in &slots {
        let behind = slot.epoch != repository.epoch();
        table.row([
            Cell::new(slot.id.clone(), Style::Cyan),
            if behind { format!("{}, left behind", named(slot)) } else { named(slot) }.into(),
            moment::local(slot.created, &app.zone()).into(),
            slot.label.clone().into(),
        ]);
    }
    for host in &hosts {
        table.row([
            Cell::new(host.id.clone(), Style::Cyan),
            if host.removed { "write-only, removed" } else { "write-only" }.into(),
            moment::local(host.created, &app.zone()).into(),
            host.label.clone().into(),
        ]);
    }
    app.output.answer(table.render(app.output.paint))?;
    Ok(Outcome::Done)
}

fn remove(
    args: &RemoveArgs,
    app: &App,
    config: &RepositoryConfig,
    repository: &Repository,
) -> Result<Outcome> {
    if args.id.is_empty() {
        return Err(Error::usage("an empty text is no key's id", "see `backstay key list`"));
    }
    if let Some(host) = hosts::find(&args.id, repository)? {
        return hosts::remove(&host, app, config, repository);
    }
    let slots = repository.key_slots()?;
    let found: Vec<&KeySlot> = slots.iter().filter(|slot| slot.id.starts_with(&args.id)).collect();
    let slot = match found.as_slice() {
        [one] => *one,
        several => {
            let what = if several.is_empty() { "no key has" } else { "several keys have" };
            return Err(Error::usage(
                format!("{what} an id that starts with {:?}", args.id),
                "see `backstay key list`",
            ));
        }
    };
    repository.remove_key(&slot.id)?;
    app.output.document(&json!({ "repository": config.name, "removed": slot }))?;
    app.output.say(format!(
        "Removed {} {}: it does not open the repository {} any more.",
        named(slot),
        slot.id,
        config.name
    ))?;
    Ok(Outcome::Done)
}
