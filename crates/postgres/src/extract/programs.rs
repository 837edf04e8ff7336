//! `pg_dump` and `psql`: which ones can be used, and where they are.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{PostgresError, PostgresErrorKind, Result};

pub(super) struct Programs {
    pub(super) pg_dump: PathBuf,
    pub(super) psql: PathBuf,
}

/// A `pg_dump` that is not older than the server, and the `psql` beside it, which reads what that
/// one writes.
pub(super) fn find(major: u32, given: Option<&Path>, server: &Path) -> Result<Programs> {
    let mut places: Vec<PathBuf> = given.into_iter().map(Path::to_owned).collect();
    places.extend(server.parent().map(Path::to_owned));
    for major in major..=major + 10 {
        places.push(PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")));
        places.push(PathBuf::from(format!("/usr/pgsql-{major}/bin")));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path));
    let usable = |place: &PathBuf| {
        let (pg_dump, psql) = (place.join("pg_dump"), place.join("psql"));
        let version = |program: &Path| program.is_file().then(|| version_of(program)).flatten();
        (version(&pg_dump)? >= major && version(&psql)? >= major)
            .then_some(Programs { pg_dump, psql })
    };
    places.iter().find_map(usable).ok_or_else(|| {
        PostgresError::new(
            PostgresErrorKind::Start,
            format!(
                "pg_dump and psql of PostgreSQL {major} or newer were not found on this machine"
            ),
        )
        .with_hint(format!(
            "install postgresql-client-{major}, or say with --bin-directory where they are"
        ))
    })
}

/// `pg_dump (PostgreSQL) 15.18 (Debian …)`
fn version_of(program: &Path) -> Option<u32> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_once("(PostgreSQL) ")?.1;
    let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version.get(..end)?.parse().ok()
}
