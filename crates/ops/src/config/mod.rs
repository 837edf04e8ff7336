//! Configuration: one file, variables over it, flags over those.
//!
//! `keys` declares every key once; `declare` is how; `tree` is a configuration before its keys are
//! known; `locate` finds the file; `read` puts it together and checks that all names lead
//! somewhere; `reference` writes the reference page.

mod declare;
mod keys;
mod locate;
mod read;
mod reference;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backstay_repo::SourceKind;

pub use declare::{Key, Section, absolute, listed, nearest};
pub use keys::*;
pub use locate::{Search, Variables};
pub use reference::reference;

use crate::Result;
use crate::error::{Error, ErrorKind};

/// The name that a repository has which only flags speak of.
pub const AD_HOC: &str = "repository";

/// All that is configured, checked: every name in it leads somewhere.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from; `None` when there is none.
    pub file: Option<PathBuf>,
    /// Where a file was looked for, when there is none.
    pub looked: Vec<PathBuf>,
    pub global: GlobalKeys,
    /// In the order of the file.
    pub repositories: Vec<RepositoryConfig>,
    /// In the order of the file.
    pub sources: Vec<SourceConfig>,
    pub tiers: BTreeMap<String, TierKeys>,
    pub policies: BTreeMap<String, PolicyKeys>,
    pub replication: BTreeMap<String, ReplicationKeys>,
    /// What is allowed, and unwise.
    pub warnings: Vec<Warning>,
    /// The repository that flags chose.
    selected: Option<String>,
}

/// What is allowed, and unwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub message: String,
    pub hint: String,
}

/// A configured repository.
#[derive(Debug, Clone, PartialEq)]
pub struct RepositoryConfig {
    pub name: String,
    /// Whether the file or a variable speaks of it; flags alone can name one, too.
    pub configured: bool,
    pub keys: RepositoryKeys,
}

/// A configured source.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceConfig {
    pub name: String,
    pub common: SourceKeys,
    pub settings: SourceSettings,
}

/// What a source's kind adds.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceSettings {
    Postgres(PostgresKeys),
    PostgresLogical(PostgresLogicalKeys),
    Sqlite(SqliteKeys),
    Files(FilesKeys),
    Lake(LakeKeys),
    KafkaConnect(KafkaConnectKeys),
    SchemaRegistry(SchemaRegistryKeys),
}

impl SourceConfig {
    pub fn kind(&self) -> SourceKind {
        self.common.kind
    }
}

/// What flags say about repositories. Flags weigh more than everything else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepositoryFlags {
    /// The name of a configured repository, an address, or a path.
    pub repository: Option<String>,
    pub key_file: Option<PathBuf>,
    /// An age identity file.
    pub identity: Option<PathBuf>,
}

impl Config {
    /// Finds the configuration and reads it. No file at all is an empty configuration.
    ///
    /// # Errors
    /// Configuration, for a file that was named and is not there, and for every mistake in it.
    pub fn load(search: &Search) -> Result<Self> {
        let located = search.locate()?;
        let Some(file) = located.file else {
            let mut config = Self::read("", None, search)?;
            config.looked = located.looked;
            return Ok(config);
        };
        let text = read_file(&file)?;
        let mut config = Self::read(&text, Some(&file), search)?;
        config.warn_of_readable_secrets(&file, &text);
        Ok(config)
    }

    /// Reads a configuration from its text. `file` is what messages call it, and relative paths
    /// start in its folder.
    pub fn read(text: &str, file: Option<&Path>, search: &Search) -> Result<Self> {
        read::read(text, file, search)
    }

    /// Applies what flags say: chooses a repository, or adds one that only flags speak of.
    pub fn apply(&mut self, flags: &RepositoryFlags, search: &Search) -> Result<()> {
        if let Some(wanted) = &flags.repository {
            let name = match self.repositories.iter().find(|r| &r.name == wanted) {
                Some(found) => found.name.clone(),
                None => self.add_ad_hoc(wanted, search)?,
            };
            self.selected = Some(name);
        }
        if flags.key_file.is_some() || flags.identity.is_some() {
            let name = match &self.selected {
                Some(name) => name.clone(),
                None => self.default_repository()?.name.clone(),
            };
            if let Some(repository) = self.repositories.iter_mut().find(|r| r.name == name) {
                let home = search.home();
                let path = |flag: &Option<PathBuf>| {
                    let written = flag.as_ref()?.to_string_lossy();
                    Some(absolute(&written, &search.current, home.as_deref()))
                };
                repository.keys.key_file = path(&flags.key_file);
                repository.keys.identity = path(&flags.identity);
                repository.keys.passphrase_file = None;
                repository.keys.passphrase_command = Vec::new();
                repository.keys.aws_kms = None;
                repository.keys.vault = None;
            }
        }
        Ok(())
    }

    fn add_ad_hoc(&mut self, wanted: &str, search: &Search) -> Result<String> {
        let names: Vec<&str> = self.repositories.iter().map(|r| r.name.as_str()).collect();
        let looks_like_place = wanted.contains("://") || wanted.contains('/') || wanted == ".";
        if !looks_like_place {
            let hint = match nearest(wanted, &names) {
                Some(near) => format!("did you mean `{near}`?"),
                None if names.is_empty() => {
                    format!("say where it is: `--repository ./{wanted}` or an address")
                }
                None => format!(
                    "configured are {}; a folder is written with a slash: ./{wanted}",
                    listed(&names)
                ),
            };
            return Err(Error::usage(format!("no repository is called `{wanted}`"), hint));
        }
        let address = if wanted.contains("://") {
            wanted.to_owned()
        } else {
            absolute(wanted, &search.current, search.home().as_deref()).display().to_string()
        };
        let url = StoreUrl::parse(&address).map_err(|why| {
            Error::usage(
                format!("`--repository {wanted}` cannot be used: {why}"),
                "write a path, file:///folder, s3://bucket/prefix, gs://… or az://…",
            )
        })?;
        if let Some(same) = self.repositories.iter().find(|r| r.keys.url == url) {
            return Ok(same.name.clone());
        }
        let keys = RepositoryKeys {
            url,
            key_file: None,
            passphrase_file: None,
            passphrase_command: Vec::new(),
            identity: None,
            aws_kms: None,
            vault: None,
            compression: backstay_repo::Compression::default(),
            endpoint: None,
            region: None,
            allow_http: false,
            parts_above: None,
            storage_class: None,
            lock: None,
            upload_limit: None,
            download_limit: None,
        };
        let mut name = AD_HOC.to_owned();
        while self.repositories.iter().any(|r| r.name == name) {
            name.push('\'');
        }
        self.repositories.push(RepositoryConfig { name: name.clone(), configured: false, keys });
        Ok(name)
    }

    /// The repository of commands that name no source: the one that flags chose, or the only one.
    pub fn default_repository(&self) -> Result<&RepositoryConfig> {
        if let Some(name) = &self.selected {
            return self.repository(name);
        }
        match self.repositories.as_slice() {
            [only] => Ok(only),
            [] => Err(self.nothing_configured("repository")),
            several => {
                let names: Vec<&str> = several.iter().map(|r| r.name.as_str()).collect();
                Err(Error::usage(
                    format!("there are several repositories: {}", listed(&names)),
                    "choose one with --repository NAME",
                ))
            }
        }
    }

    /// What to say when something is needed and nothing is configured.
    fn nothing_configured(&self, what: &str) -> Error {
        match &self.file {
            Some(file) => Error::new(
                ErrorKind::Configuration,
                format!("no {what} is configured in {}", file.display()),
            )
            .with_hint(match what {
                "repository" => {
                    "add a [repositories.main] with a url and a key-file, or say \
                     --repository URL --key-file PATH"
                }
                _ => "add a [sources.NAME] with its kind, or run `backstay init` to find some",
            }),
            None => Error::new(
                ErrorKind::Configuration,
                format!("there is no configuration, so no {what} is known"),
            )
            .with_hint(match what {
                "repository" => {
                    "run `backstay init` to make one, or say --repository URL --key-file PATH"
                }
                _ => "run `backstay init` to make one, or name a file that exists with --config",
            }),
        }
    }

    /// A repository by name.
    pub fn repository(&self, name: &str) -> Result<&RepositoryConfig> {
        self.repositories.iter().find(|r| r.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.repositories.iter().map(|r| r.name.as_str()).collect();
            unknown("repository", name, &names)
        })
    }

    /// A source by name.
    pub fn source(&self, name: &str) -> Result<&SourceConfig> {
        if self.sources.is_empty() {
            return Err(self.nothing_configured("source"));
        }
        self.sources.iter().find(|s| s.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.sources.iter().map(|s| s.name.as_str()).collect();
            unknown("source", name, &names)
        })
    }

    /// A replication by name.
    pub fn replication(&self, name: &str) -> Result<&ReplicationKeys> {
        self.replication.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.replication.keys().map(String::as_str).collect();
            if names.is_empty() {
                return Error::new(ErrorKind::Configuration, "no replication is configured")
                    .with_hint(
                        "add a [replication.NAME] that says `from` and `to`, or copy once with \
                         `backstay copy`",
                    );
            }
            unknown("replication", name, &names)
        })
    }

    /// All sources; an error when there is none.
    pub fn all_sources(&self) -> Result<&[SourceConfig]> {
        if self.sources.is_empty() {
            return Err(self.nothing_configured("source"));
        }
        Ok(&self.sources)
    }

    /// The one that flags chose, if they did.
    pub fn selected(&self) -> Option<&str> {
        self.selected.as_deref()
    }

    /// Where a source is backed up to: what flags chose, what it says, or the only one.
    pub fn repositories_of(&self, source: &SourceConfig) -> Result<Vec<&RepositoryConfig>> {
        if self.selected.is_some() || source.common.repositories.is_empty() {
            return Ok(vec![self.default_repository()?]);
        }
        source.common.repositories.iter().map(|name| self.repository(name)).collect()
    }

    /// Whether a replication brings the log of a source to a repository, from one of `others`.
    pub fn is_replicated(&self, source: &str, to: &str, others: &[&RepositoryConfig]) -> bool {
        self.replication.values().any(|keys| {
            keys.archive
                && keys.to == to
                && others.iter().any(|other| other.name == keys.from && other.name != to)
                && (keys.sources.is_empty() || keys.sources.iter().any(|name| name == source))
        })
    }

    /// Where the log of a source goes: everywhere that the source is backed up to. A log that is
    /// missing from one of its repositories is a gap there, so flags cannot narrow it.
    ///
    /// # Errors
    /// Usage, when flags chose something else.
    pub fn archives_of(&self, source: &SourceConfig) -> Result<Vec<&RepositoryConfig>> {
        let own: Vec<&RepositoryConfig> = if source.common.repositories.is_empty() {
            self.repositories.iter().filter(|repository| repository.configured).collect()
        } else {
            source
                .common
                .repositories
                .iter()
                .map(|name| self.repository(name))
                .collect::<Result<_>>()?
        };
        if own.is_empty() {
            return Ok(vec![self.default_repository()?]);
        }
        if let Some(selected) = &self.selected
            && own.iter().any(|repository| &repository.name != selected)
        {
            let names: Vec<&str> = own.iter().map(|repository| repository.name.as_str()).collect();
            return Err(Error::usage(
                format!(
                    "the log of `{}` goes to {}, and only `{selected}` was chosen",
                    source.name,
                    listed(&names)
                ),
                "leave out --repository and unset BACKSTAY_REPOSITORY; what is archived in one of \
                 them alone is a gap in the others",
            ));
        }
        Ok(own)
    }

    /// Every repository that commands about all of them look into.
    pub fn repositories(&self) -> Result<Vec<&RepositoryConfig>> {
        if self.selected.is_some() || self.repositories.is_empty() {
            return Ok(vec![self.default_repository()?]);
        }
        Ok(self.repositories.iter().collect())
    }

    /// The objectives of a source.
    pub fn tier_of(&self, source: &SourceConfig) -> Option<&TierKeys> {
        self.tiers.get(source.common.tier.as_ref()?)
    }

    /// The policy of a source.
    pub fn policy_of(&self, source: &SourceConfig) -> Option<&PolicyKeys> {
        self.policies.get(source.common.policy.as_ref()?)
    }

    fn warn_of_readable_secrets(&mut self, file: &Path, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let holds_password = self.sources.iter().any(|source| match &source.settings {
            SourceSettings::Postgres(keys) => {
                has_password(&keys.connection) || keys.primary.as_deref().is_some_and(has_password)
            }
            SourceSettings::PostgresLogical(keys) => has_password(&keys.connection),
            _ => false,
        });
        // A password that came from a variable is not in the file.
        if !holds_password || !text.contains("connection") {
            return;
        }
        let open = file.metadata().is_ok_and(|m| m.permissions().mode() & 0o044 != 0);
        if open {
            self.warnings.push(Warning {
                message: format!("{} holds a password and can be read by others", file.display()),
                hint: format!(
                    "move the password to ~/.pgpass, or run `chmod 600 {}`",
                    file.display()
                ),
            });
        }
    }
}

/// The text of the configuration. A device or a pipe might never end, so only files are read.
fn read_file(file: &Path) -> Result<String> {
    use std::io::Read;
    const LIMIT: u64 = 4 << 20;
    let failed = |error| {
        let error = Error::io("read the configuration", file, error);
        let hint = error.hint().unwrap_or("it has to be a text file").to_owned();
        Error::new(ErrorKind::Configuration, error.to_string()).with_hint(hint)
    };
    let refused = |why: &str| {
        Error::new(
            ErrorKind::Configuration,
            format!("could not read the configuration {}: {why}", file.display()),
        )
        .with_hint("name a text file in TOML with --config")
    };
    // Opening a pipe that nobody writes to would wait for ever.
    if !std::fs::metadata(file).map_err(failed)?.is_file() {
        return Err(refused("it is not a regular file"));
    }
    let mut text = String::new();
    let open = std::fs::File::open(file).map_err(failed)?;
    let read = open.take(LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
    if read as u64 > LIMIT {
        return Err(refused("it is larger than 4 MiB"));
    }
    Ok(text)
}

/// A connection string that carries a password, in either form.
fn has_password(connection: &str) -> bool {
    if let Some((_, rest)) = connection.split_once("://") {
        let authority = rest.split(['/', '?']).next().unwrap_or(rest);
        let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
        return user.contains(':') || rest.contains("password=");
    }
    connection.contains("password")
}

fn unknown(what: &str, name: &str, names: &[&str]) -> Error {
    let hint = match nearest(name, names) {
        Some(near) => format!("did you mean `{near}`?"),
        None if names.is_empty() => format!("no {what} is configured"),
        None => format!("configured are {}", listed(names)),
    };
    Error::usage(format!("no {what} is called `{name}`"), hint)
}
