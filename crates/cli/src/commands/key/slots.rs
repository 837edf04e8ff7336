//! `key add`, `list`, `remove` and `passwd`.

use std::path::PathBuf;

use backstay_ops::config::{AwsKmsKeys, VaultKeys};
use backstay_ops::{Error, moment, secret};
use backstay_repo::{KeySlot, Recipient, Secret, SlotKind};
use clap::{ArgGroup, Args};
use serde_json::json;

use super::{At, NewKey, named, slot_of};
use crate::app::{Outcome, Result};
use crate::ask;
use crate::commands::hosts;
use crate::output::Style;
use crate::table::{Cell, Table};

/// Let another key open a repository: a file, a passphrase, an age recipient, or a key in AWS KMS or
/// Vault
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("new").required(true)))]
pub struct AddArgs {
    /// A key file; made with 32 random bytes where it is missing
    #[arg(long, value_name = "FILE", group = "new")]
    new_key_file: Option<PathBuf>,

    /// A file whose first line is a passphrase
    #[arg(long, value_name = "FILE", group = "new")]
    new_passphrase_file: Option<PathBuf>,

    /// An age recipient (`age1…`): whoever has its identity opens the repository
    #[arg(long, value_name = "RECIPIENT", group = "new")]
    recipient: Option<String>,

    /// A key in AWS KMS: its ARN, id or `alias/…`
    #[arg(long, value_name = "KEY", group = "new")]
    aws_kms: Option<String>,

    /// A key in the transit engine of HashiCorp Vault or OpenBao
    #[arg(long, value_name = "KEY", group = "new")]
    vault: Option<String>,

    /// Make the key of a host that adds backups in its own name, and reads or removes none
    #[arg(
        long,
        requires = "new_key_file",
        conflicts_with_all = ["new_passphrase_file", "recipient", "aws_kms", "vault"]
    )]
    write_only: bool,

    /// What it is for, in words
    #[arg(long, default_value = "")]
    label: String,

    #[command(flatten)]
    at_aws: AwsArgs,

    #[command(flatten)]
    at_vault: VaultArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "AWS KMS")]
struct AwsArgs {
    /// The region of the key; else as its ARN or AWS_REGION says
    #[arg(long, value_name = "REGION", requires = "aws_kms")]
    aws_region: Option<String>,

    /// The address of the service, where it is not AWS's own
    #[arg(long, value_name = "URL", requires = "aws_kms")]
    aws_endpoint: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Vault")]
struct VaultArgs {
    /// The address; else VAULT_ADDR
    #[arg(long, value_name = "URL", requires = "vault")]
    vault_address: Option<String>,

    /// Where the transit engine is mounted
    #[arg(long, value_name = "PATH", default_value = "transit", requires = "vault")]
    vault_mount: String,

    /// The namespace; else VAULT_NAMESPACE
    #[arg(long, value_name = "NAME", requires = "vault")]
    vault_namespace: Option<String>,

    /// A file that holds the token; else VAULT_TOKEN or ~/.vault-token
    #[arg(long, value_name = "FILE", requires = "vault")]
    vault_token_file: Option<PathBuf>,

    /// Certificates to trust besides the system's; else VAULT_CACERT
    #[arg(long, value_name = "FILE", requires = "vault")]
    vault_ca_file: Option<PathBuf>,
}

/// An address without TLS is permitted where the repository's own may have none, too.
fn aws_keys(args: &AddArgs, key: &str, allow_http: bool) -> AwsKmsKeys {
    AwsKmsKeys {
        key: key.to_owned(),
        region: args.at_aws.aws_region.clone(),
        endpoint: args.at_aws.aws_endpoint.clone(),
        allow_http,
    }
}

fn vault_keys(args: &AddArgs, key: &str, allow_http: bool) -> VaultKeys {
    let vault = &args.at_vault;
    VaultKeys {
        key: key.to_owned(),
        mount: vault.vault_mount.clone(),
        address: vault.vault_address.clone(),
        namespace: vault.vault_namespace.clone(),
        token_file: vault.vault_token_file.clone(),
        ca_file: vault.vault_ca_file.clone(),
        allow_http,
    }
}

/// What to write into the configuration so that the service opens the repository.
fn configured(slot: &KeySlot, args: &AddArgs, allow_http: bool) -> Option<String> {
    let mut pairs: Vec<(&str, String)> = Vec::new();
    let mut text = |name, value: &Option<String>| {
        if let Some(value) = value {
            pairs.push((name, format!("{value:?}")));
        }
    };
    let path = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string());
    let section = match slot.kind {
        SlotKind::AwsKms => {
            text("key", &args.aws_kms);
            text("region", &args.at_aws.aws_region);
            text("endpoint", &args.at_aws.aws_endpoint);
            "aws-kms"
        }
        SlotKind::VaultTransit => {
            let vault = &args.at_vault;
            text("key", &args.vault);
            text("mount", &Some(vault.vault_mount.clone()).filter(|mount| mount != "transit"));
            text("address", &vault.vault_address);
            text("namespace", &vault.vault_namespace);
            text("token-file", &path(&vault.vault_token_file));
            text("ca-file", &path(&vault.vault_ca_file));
            "vault"
        }
        _ => return None,
    };
    if allow_http {
        pairs.push(("allow-http", "true".to_owned()));
    }
    let pairs: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    Some(format!("{section} = {{ {} }}", pairs.join(", ")))
}

pub(super) fn add(args: &AddArgs, it: &At<'_>) -> Result<Outcome> {
    let plain = |address: &Option<String>| {
        it.config.keys.allow_http && address.as_ref().is_some_and(|a| a.starts_with("http://"))
    };
    if let (true, Some(path)) = (args.write_only, &args.new_key_file) {
        return hosts::add(path, &args.label, it.app, it.config, it.repository);
    }
    let mut allow_http = false;
    let secret = if let Some(recipient) = &args.recipient {
        Secret::Recipient(Recipient::parse(recipient)?)
    } else if let Some(name) = &args.aws_kms {
        allow_http = plain(&args.at_aws.aws_endpoint);
        secret::aws_kms(&aws_keys(args, name, allow_http))?
    } else if let Some(name) = &args.vault {
        allow_http = plain(&args.at_vault.vault_address);
        secret::vault(&vault_keys(args, name, allow_http))?
    } else {
        let made = NewKey {
            new_key_file: args.new_key_file.clone(),
            new_passphrase_file: args.new_passphrase_file.clone(),
        };
        let made = made.secret(it.app, it.context)?;
        made.ok_or_else(|| Error::usage("no key is named", "say --new-key-file FILE"))?
    };
    let slot = it.repository.add_key(&secret, &args.label)?;
    let config = configured(&slot, args, allow_http);
    let output = &it.app.output;
    output.document(&json!({ "repository": it.config.name, "key": slot, "config": config }))?;
    output.say(format!(
        "Added {} {}: it opens the repository {} from now on.",
        named(&slot),
        slot.id,
        it.config.name
    ))?;
    if slot.kind == SlotKind::Age {
        output.say("Open with it: --identity FILE, the file that `age-keygen` wrote.")?;
    }
    if let Some(config) = config {
        output.say(format!(
            "To open with it, write this under [repositories.{}] in the place of its key:\n\n    \
             {config}\n",
            it.config.name
        ))?;
    }
    Ok(Outcome::Done)
}

pub(super) fn list(it: &At<'_>) -> Result<Outcome> {
    let slots = it.repository.key_slots()?;
    let hosts = it.repository.hosts()?;
    let epoch = it.repository.epoch();
    let output = &it.app.output;
    output.document(&json!({
        "repository": it.config.name,
        "epoch": epoch,
        "keys": slots,
        "hosts": hosts,
    }))?;
    let mut table = Table::new(&["ID", "KIND", "CREATED", "LABEL"]);
    let detailed = slots.iter().any(|slot| slot.detail.is_some());
    if detailed {
        table = Table::new(&["ID", "KIND", "CREATED", "LABEL", "WHAT"]);
    }
    for slot in &slots {
        let mut cells = vec![
            Cell::new(slot.id.clone(), Style::Cyan),
            match slot.epoch == epoch {
                true => named(slot),
                false => format!("{}, left behind", named(slot)),
            }
            .into(),
            moment::local(slot.created, &it.app.zone()).into(),
            slot.label.clone().into(),
        ];
        if detailed {
            cells.push(slot.detail.clone().unwrap_or_default().into());
        }
        table.row(cells);
    }
    for host in &hosts {
        let mut cells = vec![
            Cell::new(host.id.clone(), Style::Cyan),
            if host.removed { "write-only, removed" } else { "write-only" }.into(),
            moment::local(host.created, &it.app.zone()).into(),
            host.label.clone().into(),
        ];
        if detailed {
            cells.push(String::new().into());
        }
        table.row(cells);
    }
    output.answer(table.render(output.paint))?;
    Ok(Outcome::Done)
}

/// Let a key no longer open a repository, or a host no longer write
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The id that `backstay key list` shows, or the beginning of it
    id: String,
}

pub(super) fn remove(args: &RemoveArgs, it: &At<'_>) -> Result<Outcome> {
    if !args.id.is_empty()
        && let Some(host) = hosts::find(&args.id, it.repository)?
    {
        return hosts::remove(&host, it.app, it.config, it.repository);
    }
    let slot = slot_of(it.repository, &args.id)?;
    it.repository.remove_key(&slot.id)?;
    let output = &it.app.output;
    if slot.current {
        output.warn(
            "this was the key that it was opened with: this host does not open it any more",
            Some("name another key in the configuration, or with --key-file"),
        );
    }
    output.document(&json!({ "repository": it.config.name, "removed": slot }))?;
    output.say(format!(
        "Removed {} {}: it does not open the repository {} any more.",
        named(&slot),
        slot.id,
        it.config.name
    ))?;
    warn_of_emergencies_alone(it)?;
    Ok(Outcome::Done)
}

/// Says when nothing but age identities and shares opens a repository any more.
fn warn_of_emergencies_alone(it: &At<'_>) -> Result<()> {
    let epoch = it.repository.epoch();
    let mut slots = it.repository.key_slots()?;
    slots.retain(|slot| slot.epoch == epoch);
    if slots.iter().all(|slot| slot.kind.is_for_emergencies()) {
        it.app.output.warn(
            "only keys for emergencies open this repository now",
            Some("add one for every day: `backstay key add --new-key-file FILE`"),
        );
    }
    Ok(())
}

/// Change a passphrase: the new one opens the repository before the old one ceases to
#[derive(Debug, Args)]
pub struct PasswdArgs {
    /// A file whose first line is the new passphrase; without it you are asked
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,

    /// The passphrase to replace, by its id or the beginning of it; else the one it was opened with
    #[arg(long, value_name = "ID")]
    slot: Option<String>,
}

impl PasswdArgs {
    /// As [`NewKey::check`].
    pub(super) fn check(&self) -> Result<()> {
        if self.new_passphrase_file.is_some() || ask::somebody_is_there() {
            return Ok(());
        }
        Err(Error::usage(
            "nobody is there to type the new passphrase",
            "say --new-passphrase-file FILE",
        ))
    }
}

pub(super) fn passwd(args: &PasswdArgs, it: &At<'_>) -> Result<Outcome> {
    let old = match &args.slot {
        Some(id) => slot_of(it.repository, id)?,
        None => it.repository.current_slot()?.ok_or_else(|| {
            Error::usage(
                "the key it was opened with was removed meanwhile",
                "see `backstay key list`",
            )
        })?,
    };
    if old.kind != SlotKind::Passphrase {
        let what = match &args.slot {
            Some(_) => format!("{} is no passphrase, but of the kind {}", old.id, named(&old)),
            None => format!("it was opened with a {}, not with a passphrase", named(&old)),
        };
        return Err(Error::usage(
            what,
            "name the passphrase with --slot ID; other keys are replaced with `key add` and \
             `key remove`",
        ));
    }
    let new = NewKey { new_key_file: None, new_passphrase_file: args.new_passphrase_file.clone() };
    let secret = new.secret_or_ask(it.app, it.context)?;
    let slot = it.repository.replace_key(&old, &secret)?;
    let output = &it.app.output;
    output.document(&json!({ "repository": it.config.name, "key": slot, "removed": old }))?;
    output.say(format!(
        "Changed the passphrase of {}: the new one is {}, the old one ({}) opens nothing any more.",
        it.config.name, slot.id, old.id
    ))?;
    if old.current {
        let keys = &it.config.keys;
        let place = if let Some(path) = &keys.passphrase_file {
            format!("the file {}", path.display())
        } else if let Some(program) = keys.passphrase_command.first() {
            format!("what the passphrase-command `{program}` prints")
        } else {
            format!("the variable {}", secret::PASSPHRASE_VARIABLE)
        };
        let same = args.new_passphrase_file.as_ref().is_some_and(|new| {
            let canonical = |path: &std::path::Path| path.canonicalize().ok();
            keys.passphrase_file.as_ref().is_some_and(|old| canonical(old) == canonical(new))
        });
        if !same {
            output.warn(
                &format!("{place} still holds the old passphrase"),
                Some("put the new one there, on every host that uses it"),
            );
        }
    }
    Ok(Outcome::Done)
}
