//! Where the configuration file is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::error::{Error, ErrorKind};

/// The environment variables that matter here, by name.
pub type Variables = BTreeMap<String, String>;

/// What the file is called in every folder.
pub const FILE_NAME: &str = "backstay.toml";

/// What finding and reading a configuration depends on: nothing else of the process does.
#[derive(Clone, Default)]
pub struct Search {
    /// From `--config`.
    pub flag: Option<PathBuf>,
    pub variables: Variables,
    /// The current folder.
    pub current: PathBuf,
    /// The system's configuration folder; `/etc/backstay` but for tests.
    pub system: PathBuf,
}

pub(crate) struct Located {
    pub file: Option<PathBuf>,
    pub looked: Vec<PathBuf>,
}

impl Search {
    /// Looks at the process.
    pub fn from_process(flag: Option<PathBuf>) -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| {
                let name = name.into_string().ok()?;
                let ours =
                    name.starts_with("BACKSTAY_") || name == "HOME" || name.starts_with("XDG_");
                ours.then(|| value.into_string().ok().map(|value| (name, value))).flatten()
            })
            .collect();
        let current = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        Self { flag, variables, current, system: PathBuf::from("/etc/backstay") }
    }

    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The passphrase that the environment carries.
    pub(crate) fn passphrase(&self) -> Option<&str> {
        self.variable(crate::secret::PASSPHRASE_VARIABLE)
    }

    pub fn home(&self) -> Option<PathBuf> {
        self.variable("HOME").map(PathBuf::from)
    }

    /// The user's configuration folder.
    pub fn user_folder(&self) -> Option<PathBuf> {
        self.variable("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(self.home()?.join(".config")))
            .map(|folder| folder.join("backstay"))
    }

    /// The user's cache folder.
    pub fn cache_folder(&self) -> Option<PathBuf> {
        self.variable("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(self.home()?.join(".cache")))
            .map(|folder| folder.join("backstay"))
    }

    /// The user's folder for what is neither configuration nor cache.
    pub fn state_folder(&self) -> Option<PathBuf> {
        self.variable("XDG_STATE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(self.home()?.join(".local/state")))
            .map(|folder| folder.join("backstay"))
    }

    /// The file that would be read; nothing where there is none.
    pub fn find(&self) -> Result<Option<PathBuf>> {
        Ok(self.locate()?.file)
    }

    pub(crate) fn locate(&self) -> Result<Located> {
        if let Some(flag) = &self.flag {
            return self.named(flag, "--config");
        }
        if let Some(path) = self.variable("BACKSTAY_CONFIG") {
            return self.named(Path::new(path), "BACKSTAY_CONFIG");
        }
        let mut looked = vec![self.current.join(FILE_NAME)];
        looked.extend(self.user_folder().map(|folder| folder.join(FILE_NAME)));
        looked.push(self.system.join(FILE_NAME));
        let mut file = None;
        for path in &looked {
            // A file that may not be seen is not the same as a file that is not there.
            let there = path
                .try_exists()
                .map_err(|error| Error::io("look for the configuration at", path, error))?;
            if there {
                file = Some(path.clone());
                break;
            }
        }
        Ok(Located { file, looked })
    }

    fn named(&self, path: &Path, by: &str) -> Result<Located> {
        let written = path.to_string_lossy();
        let path = super::absolute(&written, &self.current, self.home().as_deref());
        match path.try_exists() {
            Ok(true) => Ok(Located { looked: vec![path.clone()], file: Some(path) }),
            Ok(false) => Err(Error::new(
                ErrorKind::Configuration,
                format!("{} is not there, and {by} names it", path.display()),
            )
            .with_hint(format!("correct {by}, or run `backstay init` to write one there"))),
            Err(error) => Err(Error::io("look for the configuration at", &path, error)),
        }
    }
}
