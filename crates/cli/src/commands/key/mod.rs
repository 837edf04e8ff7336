//! `backstay key`: what opens a repository, from the first key to the day when all are lost.
//!
//! `slots` adds, lists and removes; `escrow` shares a key out among people and takes it back together;
//! `sheet` prints how to restore (`page` is what it looks like); `log` shows what was done.

mod escrow;
mod log;
mod page;
mod sheet;
mod slots;

use std::path::PathBuf;

use backstay_ops::config::{RepositoryConfig, Warning};
use backstay_ops::{Context, Error, secret};
use backstay_repo::{KeySlot, Repository, Secret};
use clap::{Args, Subcommand};

use super::rotate;
use crate::app::{App, Outcome, Result};
use crate::ask;

/// Manage what opens a repository
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    Add(Box<slots::AddArgs>),
    /// Show what opens a repository
    List,
    Remove(slots::RemoveArgs),
    Passwd(slots::PasswdArgs),
    Rotate(rotate::RotateArgs),
    Escrow(escrow::EscrowArgs),
    Recover(escrow::RecoverArgs),
    Sheet(sheet::SheetArgs),
    Log(log::LogArgs),
}

pub fn run(command: &KeyCommand, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let config = context.config.default_repository()?;
    if let KeyCommand::Recover(args) = command {
        return escrow::recover(args, app, context, config);
    }
    if let KeyCommand::Passwd(args) = command {
        // Before a passphrase is stretched for nothing.
        args.check()?;
    }
    let repository = context.open(config)?;
    app.show_warnings();
    let it = At { app, context, config, repository: &repository };
    match command {
        KeyCommand::Add(args) => slots::add(args, &it),
        KeyCommand::List => slots::list(&it),
        KeyCommand::Remove(args) => slots::remove(args, &it),
        KeyCommand::Passwd(args) => slots::passwd(args, &it),
        KeyCommand::Rotate(args) => rotate::run(args, app, context, config, &repository),
        KeyCommand::Escrow(args) => escrow::escrow(args, &it),
        KeyCommand::Sheet(args) => sheet::run(args, &it),
        KeyCommand::Log(args) => log::run(args, &it),
        KeyCommand::Recover(_) => unreachable!("it was run above"),
    }
}

/// The repository that all of them are about.
struct At<'a> {
    app: &'a App,
    context: &'a Context,
    config: &'a RepositoryConfig,
    repository: &'a Repository,
}

/// A key that is made here.
#[derive(Debug, Args)]
struct NewKey {
    /// A key file; made with 32 random bytes where it is missing
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,

    /// A file whose first line is a passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_file")]
    new_passphrase_file: Option<PathBuf>,
}

impl NewKey {
    /// None when nothing was said. A key file is made only where `repository`, which it is for, is
    /// open already.
    fn secret(&self, app: &App, context: &Context) -> Result<Option<Secret>> {
        let mut warnings = Vec::new();
        let secret = match (&self.new_key_file, &self.new_passphrase_file) {
            (Some(path), _) => {
                if secret::create_key_file(path, &context.env)? {
                    app.output.say(format!("Created the key file {}.", path.display()))?;
                }
                Some(secret::key_file(path, &mut warnings)?)
            }
            (None, Some(path)) => Some(secret::passphrase_file(path, &mut warnings)?),
            (None, None) => None,
        };
        warn(app, warnings);
        Ok(secret)
    }

    /// Whether there is a new key, or somebody who could type one.
    ///
    /// # Errors
    /// Usage, when there is neither.
    fn check(&self) -> Result<()> {
        let said = self.new_key_file.is_some() || self.new_passphrase_file.is_some();
        if said || ask::somebody_is_there() {
            return Ok(());
        }
        Err(Error::usage(
            "no new key is named, and nobody is there to type a passphrase",
            "say --new-key-file FILE or --new-passphrase-file FILE",
        ))
    }

    /// As [`secret`](Self::secret); a person is asked for a passphrase where nothing was said.
    fn secret_or_ask(&self, app: &App, context: &Context) -> Result<Secret> {
        if let Some(secret) = self.secret(app, context)? {
            return Ok(secret);
        }
        Ok(Secret::passphrase(ask::new_passphrase()?.as_str())?)
    }
}

fn warn(app: &App, warnings: Vec<Warning>) {
    for warning in warnings {
        app.output.warn(&warning.message, Some(&warning.hint));
    }
}

/// What a slot is called in a sentence.
fn named(slot: &KeySlot) -> String {
    use backstay_repo::SlotKind;
    match slot.kind {
        SlotKind::Age => "age recipient".to_owned(),
        SlotKind::Escrow => "escrow set".to_owned(),
        SlotKind::AwsKms => "key of AWS KMS".to_owned(),
        SlotKind::VaultTransit => "key of Vault".to_owned(),
        kind => kind.to_string().replace('-', " "),
    }
}

/// The slot whose id starts so.
fn slot_of(repository: &Repository, id: &str) -> Result<KeySlot> {
    if id.is_empty() {
        return Err(Error::usage("an empty text is no key's id", "see `backstay key list`"));
    }
    let slots = repository.key_slots()?;
    let mut found = slots.into_iter().filter(|slot| slot.id.starts_with(id));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (one, _) => {
            let what = if one.is_none() { "no key has" } else { "several keys have" };
            Err(Error::usage(
                format!("{what} an id that starts with {id:?}"),
                "see `backstay key list`",
            ))
        }
    }
}
