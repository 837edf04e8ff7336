//! Keys of hosts that add backups in their own name, and read or remove none.

use std::path::Path;

use backstay_ops::config::RepositoryConfig;
use backstay_ops::{Error, secret};
use backstay_repo::{HostKey, Repository};
use serde_json::json;

use crate::app::{App, Outcome, Result};

pub fn add(
    path: &Path,
    label: &str,
    app: &App,
    config: &RepositoryConfig,
    repository: &Repository,
) -> Result<Outcome> {
    let mut host = None;
    let created = secret::create(path, || {
        let (added, file) = repository.add_host(label)?;
        host = Some(added);
        Ok(file)
    })?;
    let Some(host) = host.filter(|_| created) else {
        return Err(Error::usage(
            format!("{} is there already", path.display()),
            "name a file that is not; the key of a host is made anew",
        ));
    };
    app.output.document(&json!({ "repository": config.name, "host": host }))?;
    app.output.say(format!("Created the key file {}.", path.display()))?;
    app.output.say(format!(
        "Whoever has it adds backups to the repository {} as the writer {}, and can neither read nor \
         remove any. Move it to that host; it need not be kept anywhere else.",
        config.name, host.id
    ))?;
    Ok(Outcome::Done)
}

/// The one host whose id starts so, if there is no slot that does.
pub fn find(prefix: &str, repository: &Repository) -> Result<Option<HostKey>> {
    let slots = repository.key_slots()?;
    let mut hosts = repository.hosts()?;
    hosts.retain(|host| host.id.starts_with(prefix));
    let one = hosts.len() == 1 && !slots.iter().any(|slot| slot.id.starts_with(prefix));
    Ok(hosts.pop().filter(|_| one))
}

pub fn remove(
    host: &HostKey,
    app: &App,
    config: &RepositoryConfig,
    repository: &Repository,
) -> Result<Outcome> {
    repository.remove_host(&host.id)?;
    app.output.document(&json!({ "repository": config.name, "removed": host }))?;
    app.output.say(format!(
        "Removed the host {}: what it has backed up stays, what it writes from now on does not count.",
        host.id
    ))?;
    app.output.warn(
        "it can still fill the store as long as it may create objects there",
        Some("take its credentials for the store away as well"),
    );
    Ok(Outcome::Done)
}
