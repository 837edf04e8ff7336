//! Where a repository of these tests lies, in a form that goes through the environment to the process
//! that dies.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_store::{LockMode, LockPolicy, Store, StoreOptions};
use rustix::fs::IFlags;

const URL: &str = "BACKSTAY_TEST_URL";
const OPTIONS: &str = "BACKSTAY_TEST_OPTIONS";

/// What is particular about a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// New objects have parity.
    Parity,
    /// New objects are locked.
    Locks,
    /// Packs are so large that they are sent in parts.
    Parts,
}

const KINDS: [Kind; 4] = [Kind::Plain, Kind::Parity, Kind::Locks, Kind::Parts];

#[derive(Clone)]
pub struct Place {
    pub url: String,
    pub options: StoreOptions,
    pub kind: Kind,
}

impl Place {
    pub fn store(&self) -> Store {
        let mode = LockMode::Governance;
        let lock = LockPolicy { mode, period: super::operations::LOCKED_FOR, extend: true };
        let options = StoreOptions {
            lock: (self.kind == Kind::Locks).then_some(lock),
            parts_above: (self.kind == Kind::Parts).then_some(1),
            ..self.options.clone()
        };
        Store::open(&self.url, &options).unwrap()
    }

    /// For whoever locks nothing.
    pub fn unlocked(&self) -> Store {
        Store::open(&self.url, &self.options).unwrap()
    }

    pub fn is_large(&self) -> bool {
        self.kind == Kind::Parts
    }

    pub fn has_parity(&self) -> bool {
        self.kind == Kind::Parity
    }

    pub fn folder(&self) -> Option<&Path> {
        self.url.strip_prefix("file://").map(Path::new)
    }

    /// Changes a bit of an object, as a disk or a service does that loses it.
    pub fn flip(&self, store: &Store, key: &str, at: usize) {
        if let Some(folder) = self.folder() {
            let path = folder.join(key);
            // A disk asks no flag.
            loosen(&path);
            let mut body = fs::read(&path).unwrap();
            body[at] ^= 1;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(&path, body).unwrap();
            return;
        }
        let mut body = store.read(key).unwrap().to_vec();
        body[at] ^= 1;
        store.delete(key).unwrap();
        store.create(key, body.into()).unwrap();
    }

    /// That repairs by parity have tidied up after themselves, and parity of no object is left.
    pub fn has_nothing_aside(&self, context: &str) {
        let Some(folder) = self.folder() else { return };
        let aside = folder.join(".parity/damaged");
        let left = fs::read_dir(aside).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{context}: damaged bytes stay behind");
    }

    pub fn to_environment(&self, command: &mut std::process::Command) {
        let endpoint = self.options.endpoint.clone().unwrap_or_default();
        let variables = self.options.variables.clone().unwrap_or_default();
        let kind = KINDS.iter().position(|kind| *kind == self.kind);
        let described = serde_json::json!([endpoint, self.options.region, variables, kind]);
        command.env(URL, &self.url).env(OPTIONS, described.to_string());
    }

    pub fn of_environment() -> Option<Self> {
        let (url, described) = (std::env::var(URL).ok()?, std::env::var(OPTIONS).ok()?);
        type Described = (String, Option<String>, Vec<(String, String)>, usize);
        let (endpoint, region, variables, kind): Described =
            serde_json::from_str(&described).unwrap();
        let options = StoreOptions {
            endpoint: Some(endpoint).filter(|endpoint| !endpoint.is_empty()),
            region,
            allow_http: true,
            variables: Some(variables),
            ..StoreOptions::default()
        };
        Some(Self { url, options, kind: KINDS[kind] })
    }
}

/// A folder whose files can be removed in the end, although they are immutable.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    /// Whether this machine can keep files immutable: the file system and who runs the test.
    pub fn locks(&self) -> bool {
        let url = format!("file://{}/can", self.0.path().display());
        let policy =
            LockPolicy { mode: LockMode::Governance, period: Duration::from_secs(1), extend: true };
        let options = StoreOptions { lock: Some(policy), ..StoreOptions::default() };
        let created = Store::open(&url, &options).unwrap().create("packs/a", vec![1].into());
        if let Err(error) = &created {
            assert!(error.to_string().contains("immutable"), "{error}");
        }
        created.is_ok()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        loosen(self.0.path());
    }
}

pub fn loosen(path: &Path) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| loosen(&entry.unwrap().path()));
    } else if let Ok(file) = File::open(path)
        && let Ok(flags) = rustix::fs::ioctl_getflags(&file)
    {
        let _ = rustix::fs::ioctl_setflags(&file, flags - IFlags::IMMUTABLE);
    }
}
