//! What every command works with: the configuration, and the way from a name in it to an open
//! repository.

use std::path::PathBuf;
use std::sync::Mutex;

use backstay_repo::{Environment, InitOptions, OpenOptions, Repository, Snapshot, Store};
use backstay_store::{RetryPolicy, StoreOptions};

use crate::Result;
use crate::config::{Config, RepositoryConfig, Search, Warning, listed};
use crate::error::{Error, ErrorKind};
use crate::secret::secret_of;

/// A configuration, and the world it is used in.
pub struct Context {
    pub config: Config,
    pub search: Search,
    pub env: Environment,
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
        Self { config, search, env, warnings }
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
            download_limit: keys.download_limit.map(|size| size.0),
            retries: retries.unwrap_or_default(),
            ..StoreOptions::default()
        };
        Store::open(&keys.url.0, &options).map_err(|error| {
            let error = Error::from(error);
            let hint = error.hint().unwrap_or("correct its url").to_owned();
            Error::new(
                ErrorKind::Configuration,
                format!("the repository `{}` cannot be used: {error}", repository.name),
            )
            .with_hint(hint)
        })
    }

    /// Opens a repository. Loads no index.
    pub fn open(&self, repository: &RepositoryConfig) -> Result<Repository> {
        self.open_with(repository, None)
    }

    /// The same, trying again what fails for a moment as `retries` say.
    pub(crate) fn open_with(
        &self,
        repository: &RepositoryConfig,
        retries: Option<RetryPolicy>,
    ) -> Result<Repository> {
        let (secret, warnings) = secret_of(repository, &self.search)?;
        self.warn(warnings);
        let store = self.store_with(repository, retries)?;
        let options = OpenOptions { cache: self.cache() };
        Repository::open(store, self.env.clone(), &secret, options).map_err(|error| {
            let error = Error::from(error);
            match (error.kind(), error.hint()) {
                (ErrorKind::NoRepository, _) if !repository.configured => {
                    error.with_hint("create it with `backstay init`, or correct --repository")
                }
                (ErrorKind::NoRepository, _) => error.with_hint(self.hint_of_lost(repository)),
                (ErrorKind::WrongKey, Some(hint)) if hint.starts_with("check that the key") => {
                    error.with_hint(match &repository.keys.key_file {
                        Some(path) => format!(
                            "{} is not the key of this repository; name the right one with \
                         --key-file",
                            path.display()
                        ),
                        None => "the passphrase is not the one of this repository".to_owned(),
                    })
                }
                _ => error,
            }
        })
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
