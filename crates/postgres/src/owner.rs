//! Names of users and groups, from the machine's own lists.
//!
//! Read from the files instead of asked from the C library: a static binary has no way into the
//! name service, and the owner of a data directory is a local user nearly always. Ids without a
//! name are kept as numbers.

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::{PostgresError, Result};

/// Makes sure that nobody but this user and root puts anything into a folder: what lies there is taken
/// for this user's own.
///
/// # Errors
/// When it belongs to somebody else, others may write to it, or it cannot be looked at.
pub fn only_own(folder: &Path) -> Result<()> {
    let meta = std::fs::metadata(folder)
        .map_err(|error| PostgresError::io("look at the folder", folder, error))?;
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != own && meta.uid() != 0 {
        let name = |id: u32| name_of_user(id).unwrap_or_else(|| id.to_string());
        return Err(PostgresError::usage(format!(
            "the folder {} belongs to the user {}, and this runs as {}",
            folder.display(),
            name(meta.uid()),
            name(own)
        ))
        .with_hint("run this as the user that PostgreSQL runs as, or name another `cache`"));
    }
    let mode = meta.permissions().mode();
    if mode & 0o022 != 0 {
        return Err(PostgresError::usage(format!(
            "the folder {} can be written to by other users",
            folder.display()
        ))
        .with_hint(format!("chmod go-w {}", folder.display())));
    }
    Ok(())
}

/// The names of all local users and groups by id.
#[derive(Debug, Default)]
pub(crate) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    pub(crate) fn load() -> Self {
        Self { users: table("/etc/passwd"), groups: table("/etc/group") }
    }

    pub(crate) fn user(&self, id: u32) -> String {
        self.users.get(&id).cloned().unwrap_or_default()
    }

    pub(crate) fn group(&self, id: u32) -> String {
        self.groups.get(&id).cloned().unwrap_or_default()
    }
}

pub(crate) fn name_of_user(id: u32) -> Option<String> {
    table("/etc/passwd").remove(&id)
}

fn table(path: &str) -> HashMap<u32, String> {
    let text = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let id = fields.nth(1)?.parse().ok()?;
            Some((id, name.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn a_folder_that_others_can_write_to_or_have_is_not_own() {
        let folder = tempfile::tempdir().unwrap();
        let with = |mode: u32| {
            std::fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            only_own(folder.path())
        };
        for mode in [0o700, 0o750, 0o755] {
            with(mode).unwrap();
        }
        for mode in [0o770, 0o702, 0o777, 0o1777] {
            let error = with(mode).unwrap_err();
            assert!(error.to_string().contains("written to by other users"), "{error}");
            assert!(error.hint().unwrap().contains("chmod go-w"));
        }
        with(0o700).unwrap();
        // Root can give it away, and still does not take what lies there for its own.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(12345), None).unwrap();
            let error = only_own(folder.path()).unwrap_err();
            assert!(error.to_string().contains("belongs to the user 12345"), "{error}");
        }
        assert!(only_own(&folder.path().join("none")).is_err());
    }
}
