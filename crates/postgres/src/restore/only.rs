//! Restoring some databases of a cluster, and none of the others' data.
//!
//! A cluster replays its log as a whole, so that the files of all databases have to be there. Those
//! that nobody wants become holes of the right length: nothing is read from the repository, and
//! nearly nothing written. Most of what is replayed into them brings whole pages; without page
//! checksums some records do not, and the server is told to leave out what it cannot apply. The
//! databases themselves are of no use and have to be dropped, which needs nothing of their files.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use backstay_repo::{EntryKind, Placement, Progress, Tree};

use crate::copy::RelationName;
use crate::detail::BackupDetail;
use crate::inspect::Database;
use crate::session::Session;
use crate::{PostgresError, PostgresErrorKind, Result};

use super::{Layout, RestoreOptions, files};

/// What every cluster is expected to have.
const ALWAYS: [&str; 3] = ["postgres", "template0", "template1"];

/// Databases whose data is not restored, by oid.
#[derive(Debug, Clone, Default)]
pub(super) struct Only {
    left_out: BTreeMap<u32, String>,
    checksums: bool,
}

impl Only {
    pub(super) fn plan(detail: &BackupDetail, options: &RestoreOptions) -> Result<Self> {
        if options.databases.is_empty() {
            return Ok(Self::default());
        }
        if options.delta || options.standby {
            let what = if options.delta { "a delta restore" } else { "a standby" };
            return Err(PostgresError::usage(format!("{what} is of the whole cluster"))
                .with_hint("restore to an empty directory, or leave out --database"));
        }
        if detail.databases.is_empty() {
            return Err(PostgresError::new(
                PostgresErrorKind::Unsupported,
                "the snapshot does not say which databases it has",
            )
            .with_hint("it is of an older version: restore all of it, or take a newer snapshot"));
        }
        let is =
            |known: &Database, name: &String| known.name == *name || known.oid.to_string() == *name;
        for name in &options.databases {
            if !detail.databases.iter().any(|known| is(known, name)) {
                let all: Vec<&str> = detail.databases.iter().map(|db| db.name.as_str()).collect();
                return Err(PostgresError::usage(format!("the snapshot has no database {name:?}"))
                    .with_hint(format!(
                        "it has: {}; one that was made after it is in the log, and comes by itself",
                        all.join(", ")
                    )));
            }
        }
        let left_out = detail
            .databases
            .iter()
            .filter(|known| !ALWAYS.contains(&known.name.as_str()))
            .filter(|known| !options.databases.iter().any(|name| is(known, name)))
            .map(|known| (known.oid, known.name.clone()))
            .collect();
        Ok(Self { left_out, checksums: detail.checksums })
    }

    pub(super) fn is_everything(&self) -> bool {
        self.left_out.is_empty()
    }

    pub(super) fn left_out(&self) -> Vec<Database> {
        self.left_out.iter().map(|(oid, name)| Database { oid: *oid, name: name.clone() }).collect()
    }

    /// Whether a file of a snapshot becomes a hole: one of a relation of a database that is left out.
    /// The small files beside them say which file is which relation's; they are restored.
    pub(super) fn is_hollow(&self, path: &[u8]) -> bool {
        if self.left_out.is_empty() {
            return false;
        }
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let (database, file) = match parts.as_slice() {
            [b"data", b"base", database, file]
            | [b"tablespaces", _, _, database, file]
            | [b"data", b"pg_tblspc", _, _, database, file] => (*database, *file),
            _ => return false,
        };
        let oid = std::str::from_utf8(database).ok().and_then(|oid| oid.parse::<u32>().ok());
        oid.is_some_and(|oid| self.left_out.contains_key(&oid))
            && RelationName::parse(file).is_some()
    }

    /// Makes the holes; their directories are there. The size of all of them. Bytes.
    pub(super) fn make(&self, tree: &Tree, layout: &Layout, progress: &Progress) -> Result<u64> {
        let mut bytes = 0;
        if self.left_out.is_empty() {
            return Ok(bytes);
        }
        let mut folders = Vec::new();
        for entry in tree.iter() {
            progress.check()?;
            let entry = entry?;
            if !matches!(entry.kind, EntryKind::File(_)) || !self.is_hollow(&entry.path) {
                continue;
            }
            let Placement::At(path) = layout.place_of(&entry) else { continue };
            let mode = entry.meta.mode & 0o777;
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&path)
                .map_err(|error| PostgresError::io("make the file", &path, error))?;
            file.set_len(entry.size())
                .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
                .map_err(|error| PostgresError::io("make the file", &path, error))?;
            if let Some(folder) = path.parent() {
                let meta = fs::metadata(folder)
                    .map_err(|error| PostgresError::io("read the directory", folder, error))?;
                files::give_to_owner(&path, &meta)?;
                if !folders.iter().any(|known| known == folder) {
                    folders.push(folder.to_owned());
                }
            }
            bytes += entry.size();
        }
        // A file system for each of them is the most there can be; one call for each is cheap.
        for folder in folders {
            let handle = fs::File::open(&folder)
                .map_err(|error| PostgresError::io("open the directory", &folder, error))?;
            rustix::fs::syncfs(&handle)
                .map_err(|error| PostgresError::io("sync", &folder, error.into()))?;
        }
        Ok(bytes)
    }

    /// Whether the server has to be told to pass over pages that it has no content of.
    ///
    /// With checksums every change of a page, hints included, brings the page whole when it is the
    /// first after a checkpoint. Without them the record that says that all rows of a page are visible
    /// does not, and a server that finds zeros there gives up.
    pub(super) fn passes_over_pages(&self) -> bool {
        !self.left_out.is_empty() && !self.checksums
    }

    /// Pages of databases that are wanted which the server passed over, by what it logged.
    pub(super) fn passed_over_wrongly(&self, log: &str) -> Option<String> {
        if !self.passes_over_pages() {
            return None;
        }
        log.lines().find_map(|line| {
            let (_, rest) = line.split_once(" of relation ")?;
            let (relation, what) = rest.split_once(' ')?;
            let bad = what.starts_with("is uninitialized") || what.starts_with("does not exist");
            let parts: Vec<&str> = relation.split('/').collect();
            let database = match parts.as_slice() {
                ["base", database, _] | ["pg_tblspc", _, _, database, _] => database.parse().ok(),
                _ => None,
            };
            let hollow = database.is_some_and(|oid: u32| self.left_out.contains_key(&oid));
            (bad && !hollow).then(|| relation.to_owned())
        })
    }

    /// The statements that rid a restored cluster of what is left out.
    pub(super) fn statements(&self) -> Vec<String> {
        let mut statements: Vec<String> = self
            .left_out
            .values()
            .map(|name| format!("DROP DATABASE IF EXISTS {}", quote_identifier(name)))
            .collect();
        if self.passes_over_pages() {
            statements.push("ALTER SYSTEM RESET ignore_invalid_pages".to_owned());
        }
        statements
    }

    /// Drops them in a server that takes writes; those that are no more by then are passed over, and
    /// so is another database of the same name.
    pub(super) fn drop_in(&self, session: &mut Session) -> Result<()> {
        for (oid, name) in &self.left_out {
            let doing = format!("drop the database {name:?}");
            let rows = session.rows(
                &doing,
                "SELECT datname::text, datistemplate FROM pg_database WHERE oid = $1",
                &[oid],
            )?;
            let Some(row) = rows.first() else { continue };
            // It may have another name by now; by its oid it is the one without data.
            let name = quote_identifier(&row.get::<_, String>(0));
            if row.get::<_, bool>(1) {
                session.run(&doing, &format!("ALTER DATABASE {name} IS_TEMPLATE false"))?;
            }
            session.run(&doing, &format!("DROP DATABASE {name} WITH (FORCE)"))?;
        }
        if self.passes_over_pages() {
            session.run("reset a setting", "ALTER SYSTEM RESET ignore_invalid_pages")?;
        }
        Ok(())
    }
}

/// A name as SQL takes it.
pub(super) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(checksums: bool) -> Only {
        Only { left_out: BTreeMap::from([(16384, "a \"b\"".to_owned())]), checksums }
    }

    #[test]
    fn only_relations_of_what_is_left_out_are_hollow() {
        let only = only(true);
        for path in [
            "data/base/16384/1259",
            "data/base/16384/16390_vm",
            "data/base/16384/16390.1",
            "tablespaces/16389/PG_15_202209061/16384/16390",
            "data/pg_tblspc/16389/PG_15_202209061/16384/16390",
        ] {
            assert!(only.is_hollow(path.as_bytes()), "{path}");
        }
        for path in [
            "data/base/16384",
            "data/base/16384/PG_VERSION",
            "data/base/16384/pg_filenode.map",
            "data/base/5/1259",
            "data/global/1262",
            "tablespaces/16384/PG_15_202209061/5/16390",
            "config/base/16384/1259",
        ] {
            assert!(!only.is_hollow(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn a_page_passed_over_in_a_wanted_database_is_told() {
        let log = "WARNING:  page 3 of relation base/16384/16390 is uninitialized\n";
        assert_eq!(only(false).passed_over_wrongly(log), None);
        let log = format!("{log}WARNING:  page 7 of relation base/5/1259 does not exist\n");
        assert_eq!(only(false).passed_over_wrongly(&log).as_deref(), Some("base/5/1259"));
        assert_eq!(only(true).passed_over_wrongly(&log), None);
    }

    #[test]
    fn the_statements_say_what_is_left_to_do() {
        assert_eq!(only(true).statements(), ["DROP DATABASE IF EXISTS \"a \"\"b\"\"\""]);
        assert_eq!(only(false).statements().len(), 2);
    }
}
