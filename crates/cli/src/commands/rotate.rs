//! `backstay key rotate`: a new root key.

use std::path::PathBuf;

use backstay_ops::config::RepositoryConfig;
use backstay_ops::{Context, secret};
use backstay_repo::{Repository, Secret};
use clap::Args;
use serde_json::json;

use crate::app::{App, Outcome, Result};
use backstay_ops::units::count;

/// Replace the root key, when somebody may have it who should not
#[derive(Debug, Args)]
#[command(
    after_help = "From then on all is sealed and signed with the new root key, and only the keys \
named here open the repository; every other one is left behind. What is there stays readable with \
the new key. Whoever has the old root key can still open what was sealed to it: \
`backstay maintenance --reseal` seals packs anew.
Hosts with a write-only key go on without a new one."
)]
pub struct RotateArgs {
    /// A key file that opens the new root key; made with 32 random bytes where it is missing. May be
    /// said several times
    #[arg(long, value_name = "FILE", required_unless_present_any = ["new_passphrase_file", "same_key"])]
    new_key_file: Vec<PathBuf>,

    /// A file whose first line is a passphrase that opens the new root key
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Vec<PathBuf>,

    /// Let the key in use open the new root key too: right where the root key may have leaked by
    /// another one
    #[arg(long)]
    same_key: bool,

    /// What they are for, in words
    #[arg(long, default_value = "")]
    label: String,
}

pub fn run(
    args: &RotateArgs,
    app: &App,
    context: &Context,
    config: &RepositoryConfig,
    repository: &Repository,
) -> Result<Outcome> {
    let mut warnings = Vec::new();
    let mut secrets: Vec<(Secret, String)> = Vec::new();
    for path in &args.new_key_file {
        if secret::create_key_file(path, &context.env)? {
            app.output.say(format!("Created the key file {}.", path.display()))?;
        }
        secrets.push((secret::key_file(path, &mut warnings)?, args.label.clone()));
    }
    for path in &args.new_passphrase_file {
        secrets.push((secret::passphrase_file(path, &mut warnings)?, args.label.clone()));
    }
    if args.same_key {
        let (secret, more) = secret::secret_of(config, &context.search)?;
        warnings.extend(more);
        secrets.push((secret, args.label.clone()));
    }
    for warning in warnings {
        app.output.warn(&warning.message, Some(&warning.hint));
    }
    let rotation = repository.rotate(&secrets)?;
    app.output.document(&json!({ "repository": config.name, "rotation": rotation }))?;
    app.output.say(format!(
        "The repository {} has a new root key (epoch {}), which {} opens.",
        config.name,
        rotation.epoch,
        count(rotation.keys.len() as u64, "key", "keys"),
    ))?;
    if !rotation.left_behind.is_empty() {
        app.output.say(format!(
            "Left behind: {}. `backstay key remove` takes them away.",
            rotation
                .left_behind
                .iter()
                .map(|slot| format!("{} {}", slot.kind, slot.id))
                .collect::<Vec<_>>()
                .join(", ")
        ))?;
    }
    if !args.same_key {
        app.output.say("Name the new key in the configuration of every machine that reads.")?;
    }
    Ok(Outcome::Done)
}
