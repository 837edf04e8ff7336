//! What a cluster is: asked from the running server, checked against the files.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::control::ControlFile;
use crate::session::{Session, Source};
use crate::{PostgresError, PostgresErrorKind, Result};

/// A running cluster whose files are on this machine. Sizes are bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Cluster {
    pub system_identifier: u64,
    /// The major version.
    pub version: u32,
    /// As the server counts: 150018 for 15.18.
    pub version_number: u32,
    pub catalog_version: u32,
    /// Where the files are, seen from here.
    pub data_directory: PathBuf,
    pub segment_size: u32,
    pub block_size: u32,
    pub relation_segment_blocks: u32,
    pub checksums: bool,
    pub timeline: u32,
    pub in_recovery: bool,
    pub tablespaces: Vec<Tablespace>,
    pub settings: ServerSettings,
}

/// A tablespace besides the two that every cluster has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    pub oid: u32,
    pub name: String,
    /// Where it lay when this was written down.
    pub path: String,
}

/// A database of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    pub oid: u32,
    pub name: String,
}

/// What the server is set to, as far as backups care. Empty where the role may not see it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ServerSettings {
    pub wal_level: String,
    pub archive_mode: String,
    pub archive_command: String,
    /// From version 15.
    pub archive_library: String,
    pub full_page_writes: String,
    pub config_file: String,
    pub hba_file: String,
    pub port: String,
}

/// Asks a server what it is, and checks that the data directory belongs to it.
pub fn inspect(source: &Source) -> Result<Cluster> {
    let mut session = Session::open(source)?;
    inspect_session(&mut session, source)
}

pub(crate) fn inspect_session(session: &mut Session, source: &Source) -> Result<Cluster> {
    let system_identifier: i64 = session.one(
        "ask for the system identifier",
        "SELECT system_identifier FROM pg_control_system()",
        &[],
    )?;
    let system_identifier = system_identifier.cast_unsigned();
    let settings = ServerSettings {
        wal_level: setting(session, "wal_level")?,
        archive_mode: setting(session, "archive_mode")?,
        archive_command: setting(session, "archive_command")?,
        archive_library: setting(session, "archive_library")?,
        full_page_writes: setting(session, "full_page_writes")?,
        config_file: setting(session, "config_file")?,
        hba_file: setting(session, "hba_file")?,
        port: setting(session, "port")?,
    };
    let asked = setting(session, "data_directory")?;
    let data_directory = match &source.data_directory {
        Some(path) => path.clone(),
        None if asked.is_empty() => {
            return Err(PostgresError::usage(format!(
                "the role may not ask the server on {} where its data directory is",
                session.place()
            ))
            .with_hint(
                "set `data-directory` of the source, or grant the role pg_read_all_settings",
            ));
        }
        None => PathBuf::from(&asked),
    };
    let control = own_control_file(session, &data_directory, system_identifier)?;
    same_server(session, &data_directory, &settings, &asked)?;
    let in_recovery: bool =
        session.one("ask whether it is a standby", "SELECT pg_is_in_recovery()", &[])?;
    let timeline = if in_recovery {
        control.timeline
    } else {
        let name: String = session.one(
            "ask for the timeline",
            "SELECT pg_walfile_name(pg_current_wal_lsn())",
            &[],
        )?;
        name.get(..8)
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .unwrap_or(control.timeline)
    };
    let tablespaces = tablespaces(session)?;
    Ok(Cluster {
        system_identifier,
        version: session.major(),
        version_number: session.version(),
        catalog_version: control.catalog_version,
        data_directory,
        segment_size: control.wal_segment_size,
        block_size: control.block_size,
        relation_segment_blocks: control.relation_segment_blocks,
        checksums: control.checksum_version != 0,
        timeline,
        in_recovery,
        tablespaces,
        settings,
    })
}

/// The tablespaces that the server knows, besides the two that every cluster has.
pub(crate) fn tablespaces(session: &mut Session) -> Result<Vec<Tablespace>> {
    let rows = session.rows(
        "list the tablespaces",
        "SELECT oid, spcname::text, pg_tablespace_location(oid) FROM pg_tablespace \
         WHERE oid >= 16384 ORDER BY oid",
        &[],
    )?;
    Ok(rows
        .iter()
        .map(|row| Tablespace { oid: row.get(0), name: row.get(1), path: row.get(2) })
        .collect())
}

/// All databases, the templates included.
pub(crate) fn databases(session: &mut Session) -> Result<Vec<Database>> {
    let query = "SELECT oid, datname::text FROM pg_database ORDER BY oid";
    let rows = session.rows("list the databases", query, &[])?;
    Ok(rows.iter().map(|row| Database { oid: row.get(0), name: row.get(1) }).collect())
}

/// A setting's value; empty where there is none, or where this role may not see it.
pub(crate) fn setting(session: &mut Session, name: &str) -> Result<String> {
    let rows = session.rows(
        "read the server's settings",
        "SELECT coalesce(setting, '') FROM pg_settings WHERE name = $1",
        &[&name],
    )?;
    Ok(rows.first().map(|row| row.get(0)).unwrap_or_default())
}

/// The control file of `directory`, if it is that of the server with this identifier.
fn own_control_file(session: &Session, directory: &Path, system: u64) -> Result<ControlFile> {
    let control = ControlFile::read(directory).map_err(|error| {
        let hint = match error.hint() {
            Some(hint) => hint.to_owned(),
            None => {
                "check `data-directory` of the source, and run this on the database host".to_owned()
            }
        };
        error.with_hint(hint)
    })?;
    if control.system_identifier != system {
        return Err(PostgresError::new(
            PostgresErrorKind::Mismatch,
            format!(
                "{} belongs to the cluster {}, but the server on {} is {system}",
                directory.display(),
                control.system_identifier,
                session.place(),
            ),
        )
        .with_hint("make `connection` and `data-directory` of the source name the same cluster"));
    }
    Ok(control)
}

/// A clone and a standby have the same identifier as the original. What differs is the process that
/// holds the directory: its lock file names the directory and the port.
fn same_server(
    session: &Session,
    directory: &Path,
    settings: &ServerSettings,
    asked: &str,
) -> Result<()> {
    let path = directory.join("postmaster.pid");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(PostgresError::new(
                PostgresErrorKind::Mismatch,
                format!(
                    "no server runs in {}, although one answers on {}",
                    directory.display(),
                    session.place()
                ),
            )
            .with_hint("`data-directory` names a copy; name the directory of the running server"));
        }
        Err(error) => return Err(PostgresError::io("read", &path, error)),
    };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let line = |at: usize| lines.get(at).copied().unwrap_or_default();
    let other_directory = !asked.is_empty() && line(1) != asked;
    let other_port = !settings.port.is_empty() && line(3) != settings.port;
    if other_directory || other_port {
        return Err(PostgresError::new(
            PostgresErrorKind::Mismatch,
            format!(
                "the server in {} listens on port {}, the one on {} is another with the same system \
                 identifier",
                directory.display(),
                line(3),
                session.place(),
            ),
        )
        .with_hint("make `connection` and `data-directory` of the source name the same server"));
    }
    Ok(())
}
