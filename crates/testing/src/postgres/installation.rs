//! Which PostgreSQL servers there are on this machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// One major version of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    pub major: u32,
    /// The folder of its programs.
    pub bin: PathBuf,
    /// The names of its programs: always `initdb`, `pg_ctl` and `postgres`, often no others.
    pub has: BTreeSet<String>,
}

impl Installation {
    /// The path of one of its programs, where it has it.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        self.has.contains(name).then(|| self.bin.join(name))
    }

    fn at(major: u32, bin: PathBuf) -> Option<Self> {
        let has: BTreeSet<String> = std::fs::read_dir(&bin)
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        ["initdb", "pg_ctl", "postgres"].iter().all(|name| has.contains(*name)).then_some(Self {
            major,
            bin,
            has,
        })
    }
}

/// Every major version on this machine, the oldest first. Where there are two installations of one,
/// it is the one with more programs.
pub fn versions() -> Vec<Installation> {
    static FOUND: OnceLock<Vec<Installation>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let mut found: Vec<Installation> = Vec::new();
            for root in [Path::new("/usr/lib/postgresql"), &installed_by_script()] {
                let Ok(entries) = std::fs::read_dir(root) else { continue };
                for entry in entries.flatten() {
                    let major = entry.file_name().to_str().and_then(|name| name.parse().ok());
                    let Some(major) = major else { continue };
                    let Some(new) = Installation::at(major, entry.path().join("bin")) else {
                        continue;
                    };
                    match found.iter_mut().find(|known| known.major == major) {
                        Some(known) if known.has.len() < new.has.len() => *known = new,
                        Some(_) => {}
                        None => found.push(new),
                    }
                }
            }
            found.sort_by_key(|installation| installation.major);
            found
        })
        .clone()
}

/// One major version, where it is there.
pub fn version(major: u32) -> Option<Installation> {
    versions().into_iter().find(|installation| installation.major == major)
}

/// The path of a program (`pg_waldump`, `pgbench`, …): that of the version `major` or else, for
/// programs that talk to any server, the newest there is with `or_newest`.
pub fn program(name: &str, major: u32, or_newest: bool) -> Option<PathBuf> {
    version(major).and_then(|installation| installation.program(name)).or_else(|| {
        let all = versions();
        all.iter().rev().filter(|_| or_newest).find_map(|installation| installation.program(name))
    })
}

/// Where `scripts/test-postgres` puts servers: the same rule as there.
fn installed_by_script() -> PathBuf {
    let root = std::env::var_os("BACKSTAY_TEST_SERVERS").filter(|value| !value.is_empty());
    let root = root.map(PathBuf::from).unwrap_or_else(|| {
        let cache = if rustix::process::geteuid().is_root() {
            // The servers run as another user, who may not look into root's home.
            PathBuf::from("/var/cache")
        } else {
            PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache")
        };
        cache.join("backstay-test-servers")
    });
    root.join("postgres")
}
