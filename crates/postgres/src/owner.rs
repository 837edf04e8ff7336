//! Names of users and groups, from the machine's own lists.
//!
//! Read from the files instead of asked from the C library: a static binary has no way into the
//! name service, and the owner of a data directory is a local user nearly always. Ids without a
//! name are kept as numbers.

use std::collections::HashMap;

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
