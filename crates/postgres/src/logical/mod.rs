//! Logical backups: databases as the statements and rows that make them again.
//!
//! What lives here: reading the catalogue of a server ([`catalogue`]), running `pg_dump` and taking
//! what it writes into a repository ([`backup_to`]), comparing catalogues ([`drift`]), what depends
//! on what ([`graph`]), and giving a dump or a part of it back to a server ([`restore`]). What does
//! not: whole clusters and their log, which the rest of this crate is about.
//!
//! A snapshot holds, below its root:
//!
//! ```text
//! catalogue.json                         the server: databases, roles, settings, tablespaces
//! globals.sql                            roles and tablespaces, as pg_dumpall writes them
//! databases/NAME/catalogue.json          every object of the database
//! databases/NAME/data/SCHEMA/TABLE.copy  the rows of a table
//! databases/NAME/dump/…                  what pg_restore reads; its data files are other names of
//!                                        those in data/
//! ```

mod backup;
pub mod catalogue;
mod contents;
pub mod drift;
mod dump;
pub mod graph;
mod names;
mod programs;
pub mod restore;
mod spool;
mod statements;
mod svg;
pub mod toc;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use backup::{BackupOptions, Target, backup_to};
pub use contents::Contents;

use crate::CheckItem;
use crate::connection::Parameters;
use crate::session::Session;

/// Databases of a server to protect, as the configuration names them.
#[derive(Clone)]
pub struct LogicalSource {
    pub name: String,
    /// libpq keywords or an address; may hold a password.
    pub connection: String,
    /// Empty: all that accept connections, but for templates.
    pub databases: Vec<String>,
    /// Left out; `*` stands for anything.
    pub exclude: Vec<String>,
    /// Tables whose rows are left out, as patterns of `pg_dump`.
    pub exclude_data: Vec<String>,
    /// Whether roles are dumped with their passwords, for which only a superuser may ask.
    pub role_passwords: bool,
    /// Workers of `pg_dump` for one database. 0: one for each core.
    pub jobs: usize,
    /// How long to wait for a lock that somebody else holds on a table.
    pub lock_timeout: Duration,
    /// Where dumps pass through; the system's folder for temporary files where absent.
    pub spool: Option<PathBuf>,
    /// How much may wait there to be stored. Bytes.
    pub spool_limit: u64,
    /// Where `pg_dump` and the rest are; looked for where absent.
    pub bin_directory: Option<PathBuf>,
}

impl LogicalSource {
    pub fn new(name: impl Into<String>, connection: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            connection: connection.into(),
            databases: Vec::new(),
            exclude: Vec::new(),
            exclude_data: Vec::new(),
            role_passwords: true,
            jobs: 0,
            lock_timeout: Duration::from_secs(600),
            spool: None,
            spool_limit: 2 << 30,
            bin_directory: None,
        }
    }

    fn spool_folder(&self) -> PathBuf {
        self.spool.clone().unwrap_or_else(std::env::temp_dir)
    }
}

impl fmt::Debug for LogicalSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogicalSource")
            .field("name", &self.name)
            .field("databases", &self.databases)
            .finish_non_exhaustive()
    }
}

/// Whether the server can be dumped: one item for each thing that was looked at.
pub fn check(source: &LogicalSource) -> Vec<CheckItem> {
    let item = |name: &'static str, result: crate::Result<String>| match result {
        Ok(message) => CheckItem { name: name.to_owned(), ok: true, message, hint: None },
        Err(error) => CheckItem {
            name: name.to_owned(),
            ok: false,
            message: error.to_string(),
            hint: error.hint().map(str::to_owned),
        },
    };
    let session = Parameters::new(&source.connection).and_then(|it| Session::with(&it));
    let mut session = match session {
        Ok(session) => session,
        Err(error) => return vec![item("connection", Err(error))],
    };
    let major = session.major();
    let mut items =
        vec![item("connection", Ok(format!("PostgreSQL {major} on {}", session.place())))];
    items.push(item(
        "pg_dump",
        programs::find("pg_dump", major, source.bin_directory.as_deref())
            .map(|found| format!("{} ({})", found.version, found.path.display())),
    ));
    items.push(item(
        "databases",
        backup::choose(&mut session, source).map(|databases| {
            let names: Vec<&str> = databases.iter().map(|one| one.name.as_str()).collect();
            names.join(", ")
        }),
    ));
    items.push(item("roles", backup::may_read_passwords(&mut session, source)));
    items.push(item(
        "space",
        spool::Spool::create(&source.spool_folder())
            .and_then(|spool| spool.free())
            .map(|free| format!("{} MiB free in {}", free >> 20, source.spool_folder().display())),
    ));
    items
}
