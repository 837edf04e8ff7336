//! What every command works with: the configuration, and the way from a name in it to an open
//! repository.

use std::path::PathBuf;
use std::sync::Mutex;

use backstay_repo::{
    Environment, InitOptions, OpenOptions, RepoErrorKind, Repository, Secret, SlotKind, Snapshot,
    Store,
};
use backstay_store::{LockPolicy, RetryPolicy, StorageClasses, StoreOptions};

use crate::Result;
use crate::config::{Config, RepositoryConfig, Search, Warning, listed};
use crate::error::{Error, ErrorKind};
use crate::key_log::{KeyLog, KeyUse};
use crate::secret::secret_of;

/// A configuration, and the world it is used in.
pub struct Context {
    pub config: Config,
    pub search: Search,
    pub env: Environment,
    /// What the program was asked to do, as `key add`; for records.
    pub command: String,
    warnings: Mutex<Vec<Warning>>,
}

/// A snapshot, and the repository it was found in.
pub struct Found {
    /// The repository's name in the configuration.
    pub name: String,
    pub repository: Repository,
    pub snapshot: Snapshot,
}

/// What the repositories had to say.
pub struct Asked<T> {
    pub answers: Vec<T>,
    /// The names of those that could not be used, and why.
    pub failed: Vec<(String, Error)>,
}

impl Context {
    pub fn new(config: Config, search: Search, env: Environment) -> Self {
        let warnings = Mutex::new(config.warnings.clone());
        Self { config, search, env, command: String::new(), warnings }
    }

    /// What was found unwise since the last call.
    pub fn take_warnings(&self) -> Vec<Warning> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(|e| e.into_inner()))
    }

    fn warn(&self, warnings: Vec<Warning>) {
        let mut all = self.warnings.lock().unwrap_or_else(|e| e.into_inner());
        for warning in warnings {
            if !all.contains(&warning) {
                all.push(warning);
            }
        }
    }

    /// The store of a repository. Touches nothing.
    pub fn store(&self, repository: &RepositoryConfig) -> Result<Store> {
        self.store_with(repository, None)
    }

    fn store_with(
        &self,
        repository: &RepositoryConfig,
        retries: Option<RetryPolicy>,
    ) -> Result<Store> {
        let keys = &repository.keys;
        let options = StoreOptions {
            endpoint: keys.endpoint.clone(),
            region: keys.region.clone(),
            allow_http: keys.allow_http,
            upload_limit: keys.upload_limit.map(|size| size.0),
            classes: keys.storage_class.as_ref().map_or_else(StorageClasses::default, |class| {
                StorageClasses {
                    data: class.data.clone(),
                    rest: class.rest.clone(),
                    later: class.later.iter().map(|later| later.0.clone()).collect(),
                }
            }),
            parts_above: keys.parts_above.map(|size| size.0),
            download_limit: keys.download_limit.map(|size| size.0),
            retries: retries.unwrap_or_default(),
            lock: keys.lock.as_ref().map(|lock| LockPolicy {
                mode: lock.mode,
                period: lock.period,
                extend: lock.extend,
            }),
            ..StoreOptions::default()
        };
        Store::open(&keys.url.0, &options).map_err(|error| {
            let error = Error::from(error);
            let hint = error.hint().unwrap_or("correct its keys in the configuration").to_owned();
            Error::new(
                ErrorKind::Configuration,
                format!("the repository `{}` cannot be used: {error}", repository.name),
            )
            .with_hint(hint)
        })
    }

    /// Opens a repository. Loads no index.
    pub fn open(&self, repository: &RepositoryConfig) -> Result<Repository> {
        self.open_retrying(repository, None)
    }

    /// The same, trying again what fails for a moment as `retries` say.
    pub(crate) fn open_retrying(
        &self,
        repository: &RepositoryConfig,
        retries: Option<RetryPolicy>,
    ) -> Result<Repository> {
        let (secret, warnings) = secret_of(repository, &self.search)?;
        self.warn(warnings);
        let store = self.store_with(repository, retries)?;
        self.open_in(store, repository, &secret)
    }

    /// Opens a repository that answers soon, or not: another one can stand in for it.
    pub fn open_soon(&self, repository: &RepositoryConfig) -> Result<Repository> {
        let retries = RetryPolicy { budget: crate::nearest::PATIENCE, ..RetryPolicy::default() };
        self.open_retrying(repository, Some(retries))
    }

    /// Opens a repository with another secret than the configured one.
    pub fn open_with(&self, repository: &RepositoryConfig, secret: &Secret) -> Result<Repository> {
        self.open_in(self.store(repository)?, repository, secret)
    }

    fn open_in(
        &self,
        store: Store,
        repository: &RepositoryConfig,
        secret: &Secret,
    ) -> Result<Repository> {
        let options = OpenOptions { cache: self.cache() };
        let url = store.url();
        let opened = Repository::open(store, self.env.clone(), secret, options);
        self.record(repository, &url, secret.kind(), &opened);
        opened.map_err(|error| {
            let error = Error::from(error);
            match (error.kind(), error.hint()) {
                (ErrorKind::NoRepository, _) if !repository.configured => {
                    error.with_hint("create it with `backstay init`, or correct --repository")
                }
                (ErrorKind::NoRepository, _) => error.with_hint(self.hint_of_lost(repository)),
                // Other hints say more than is known here.
                (ErrorKind::WrongKey, hint)
                    if hint.is_none_or(|hint| hint.starts_with("check that the key")) =>
                {
                    let keys = &repository.keys;
                    let hint = match (secret.kind(), &keys.key_file, &keys.identity) {
                        (SlotKind::KeyFile, Some(path), _) => format!(
                            "{} is not the key of this repository; name the right one with \
                             --key-file",
                            path.display()
                        ),
                        (SlotKind::Age, _, Some(path)) => format!(
                            "no slot was added for the recipient of {}, or it was removed; name \
                             another one with --identity",
                            path.display()
                        ),
                        (SlotKind::Passphrase, ..) => {
                            "the passphrase is not the one of this repository".to_owned()
                        }
                        (SlotKind::AwsKms | SlotKind::VaultTransit, ..) => {
                            "add a slot for it with `backstay key add`, using a key that opens"
                                .to_owned()
                        }
                        _ => hint.unwrap_or("`keys/` in the store lists its slots").to_owned(),
                    };
                    error.with_hint(hint)
                }
                _ => error,
            }
        })
    }

    /// The log of key uses on this host; none where there is no place for it.
    pub fn key_log(&self) -> Option<KeyLog> {
        let path = match &self.config.global.key_log {
            Some(path) => path.clone(),
            None => self.search.state_folder()?.join("keys.log"),
        };
        Some(KeyLog::new(path))
    }

    /// Records an attempt to open a repository on this host, and a use of a key for emergencies also
    /// in the repository. That something cannot be recorded must not keep anybody from restoring.
    fn record(
        &self,
        config: &RepositoryConfig,
        url: &str,
        kind: SlotKind,
        opened: &backstay_repo::Result<Repository>,
    ) {
        let outcome = match opened {
            Ok(_) => "opened".to_owned(),
            // Nothing was there that a key could have been used on.
            Err(error) if error.kind() == RepoErrorKind::NoRepository => return,
            Err(error) => crate::error::of_repo(error.kind()).as_str().to_owned(),
        };
        let what = KeyUse {
            time: self.env.now().try_into().unwrap_or_default(),
            command: self.command.clone(),
            repository: config.name.clone(),
            url: url.to_owned(),
            slot: opened.as_ref().ok().map(|repository| repository.slot().to_owned()),
            kind: kind.to_string(),
            host: backstay_repo::host(),
            user: backstay_repo::user(),
            pid: std::process::id(),
            outcome,
        };
        if let Some(log) = self.key_log()
            && let Err(error) = log.record(what)
        {
            tracing::warn!(%error, "the use of a key is not recorded");
        }
        let Ok(repository) = opened else { return };
        repository.called_by(&self.command);
        // An archiver with such a key would write an object for each segment.
        if !kind.is_for_emergencies() || matches!(self.command.as_str(), "wal push" | "wal fetch") {
            return;
        }
        let recorded = repository.current_slot().and_then(|slot| match slot {
            Some(slot) => repository.record_use(&slot),
            None => Ok(()),
        });
        if let Err(error) = recorded {
            self.warn(vec![Warning {
                message: format!("the use of this key is not recorded in the repository: {error}"),
                hint: "restoring goes on; give credentials that may create to have it recorded"
                    .to_owned(),
            }]);
        }
    }

    /// What may be the matter with a configured repository that is not there.
    fn hint_of_lost(&self, repository: &RepositoryConfig) -> String {
        let create =
            format!("create it with `backstay init`, or correct the url of `{}`", repository.name);
        let url = &repository.keys.url.0;
        let mut hint = if url.starts_with("file://") || !url.contains("://") {
            format!("is its disk mounted? Else {create}")
        } else {
            create
        };
        let others: Vec<&str> = self
            .config
            .repositories
            .iter()
            .map(|other| other.name.as_str())
            .filter(|name| *name != repository.name)
            .collect();
        if !others.is_empty() {
            hint.push_str(&format!(
                "; the other repositories are asked with --repository: {}",
                listed(&others)
            ));
        }
        hint
    }

    /// Asks every repository in turn. One that cannot be used is no reason to say nothing of the
    /// others: it becomes a warning, and is in the answer.
    ///
    /// # Errors
    /// The first one, when all of them failed.
    pub fn ask_all<T>(
        &self,
        mut ask: impl FnMut(&RepositoryConfig, Repository) -> Result<T>,
    ) -> Result<Asked<T>> {
        let mut asked = Asked { answers: Vec::new(), failed: Vec::new() };
        for config in self.config.repositories()? {
            match self.open(config).and_then(|repository| ask(config, repository)) {
                Ok(answer) => asked.answers.push(answer),
                Err(error) => asked.failed.push((config.name.clone(), error)),
            }
        }
        if asked.answers.is_empty() && !asked.failed.is_empty() {
            return Err(asked.failed.swap_remove(0).1);
        }
        for (name, error) in &asked.failed {
            self.warn_of_lost(name, error);
        }
        Ok(asked)
    }

    pub(crate) fn warn_of_lost(&self, name: &str, error: &Error) {
        self.warn(vec![Warning {
            message: format!("the repository `{name}` was passed over: {error}"),
            hint: error.hint().unwrap_or("see `backstay check`").to_owned(),
        }]);
    }

    /// Creates a repository in an empty store.
    pub fn create(&self, repository: &RepositoryConfig, label: &str) -> Result<Repository> {
        let (secret, warnings) = secret_of(repository, &self.search)?;
        self.warn(warnings);
        let store = self.store(repository)?;
        store.probe()?;
        let options = InitOptions { label: label.to_owned(), cache: self.cache() };
        Ok(Repository::init(store, self.env.clone(), &secret, options)?)
    }

    /// Where copies of the index are kept.
    pub fn cache(&self) -> Option<PathBuf> {
        self.config.global.cache.clone().or_else(|| self.search.cache_folder())
    }

    /// Threads for heavy work; 0 is one for each core.
    pub fn workers(&self) -> usize {
        usize::try_from(self.config.global.workers).unwrap_or(0)
    }

    /// The snapshot that `name` means: the newest one of a source, `latest`, or the one whose id
    /// starts so. Every configured repository is looked into, in order; one that cannot be used is
    /// passed over with a warning.
    pub fn find(&self, name: &str) -> Result<Found> {
        let mut sources = Vec::new();
        let mut missing = None;
        let mut lost: Vec<(&str, Error)> = Vec::new();
        let warn = |lost: &[(&str, Error)]| {
            for (name, error) in lost {
                self.warn_of_lost(name, error);
            }
        };
        for config in self.config.repositories()? {
            let opened = self.open(config).and_then(|repository| {
                let snapshots = repository.snapshots()?;
                Ok((repository, snapshots))
            });
            let (repository, snapshots) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    lost.push((&config.name, error));
                    continue;
                }
            };
            let newest = snapshots
                .iter()
                .filter(|snapshot| name == "latest" || snapshot.source == name)
                .max_by_key(|snapshot| snapshot.time);
            if let Some(snapshot) = newest.cloned() {
                warn(&lost);
                return Ok(Found { name: config.name.clone(), repository, snapshot });
            }
            sources.extend(snapshots.into_iter().map(|snapshot| snapshot.source));
            match repository.find_snapshot(name).map_err(Error::from) {
                Ok(snapshot) => {
                    warn(&lost);
                    return Ok(Found { name: config.name.clone(), repository, snapshot });
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    // Ambiguous is an answer; it is kept over a plain "not there".
                    missing.get_or_insert(error);
                }
                Err(error) => lost.push((&config.name, error)),
            }
        }
        // It may be in the one that could not be asked.
        if !lost.is_empty() {
            let (_, error) = lost.remove(0);
            warn(&lost);
            return Err(error);
        }
        sources.sort();
        sources.dedup();
        let known = self.config.sources.iter().any(|source| source.name == name);
        if known {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no snapshot of `{name}` yet"),
            )
            .with_hint(format!("make one with `backstay backup {name}`")));
        }
        let near = crate::config::nearest(name, &sources);
        let hint = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None if sources.is_empty() => {
                "there are no snapshots yet; `backstay backup` makes one".into()
            }
            None => format!(
                "name a snapshot of `backstay list`, or one of the sources {}",
                listed(&sources)
            ),
        };
        let error = missing.unwrap_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no snapshot {name:?}"))
        });
        Err(error.with_hint(hint))
    }
}
