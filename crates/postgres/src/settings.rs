//! What a server has to be set to so that it can be recovered, and setting it.

use serde::Serialize;

use crate::inspect::setting;
use crate::session::{Session, Source};
use crate::{PostgresError, PostgresErrorKind, Result};

/// How long a new setting may take to reach a session after a reload.
const RELOAD: std::time::Duration = std::time::Duration::from_secs(10);

/// A setting that should be another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    pub name: String,
    pub now: String,
    pub wanted: String,
    /// Whether it only counts after a restart of the server.
    pub restart: bool,
    pub why: String,
}

/// What setting them came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// In force.
    pub active: Vec<String>,
    /// Written down, in force after a restart.
    pub after_restart: Vec<String>,
}

/// Settings of the server that stand in the way of recovering it; empty where all is well.
/// `archive_command` is what the server should run, with `%p` for the path of a segment.
pub fn settings(source: &Source, archive_command: &str) -> Result<Vec<Setting>> {
    let mut session = Session::open(source)?;
    missing(&mut session, archive_command)
}

pub(crate) fn missing(session: &mut Session, archive_command: &str) -> Result<Vec<Setting>> {
    let mut list = Vec::new();
    let mut want = |name: &str, now: String, wanted: &str, restart: bool, why: &str| {
        list.push(Setting {
            name: name.to_owned(),
            now,
            wanted: wanted.to_owned(),
            restart,
            why: why.to_owned(),
        });
    };
    let wal_level = setting(session, "wal_level")?;
    if wal_level == "minimal" {
        want(
            "wal_level",
            wal_level,
            "replica",
            true,
            "WAL at the level minimal cannot be replayed on a copy",
        );
    }
    let archive_mode = setting(session, "archive_mode")?;
    if archive_mode == "off" {
        want("archive_mode", archive_mode, "on", true, "without it no WAL leaves the server");
    }
    let library = setting(session, "archive_library")?;
    if !library.is_empty() {
        want("archive_library", library, "", false, "a library takes the place of archive_command");
    }
    let command = setting(session, "archive_command")?;
    // What the server says while archive_mode is off.
    let command =
        if command == "(disabled)" { configured(session, "archive_command")? } else { command };
    if command != archive_command {
        want(
            "archive_command",
            command,
            archive_command,
            false,
            "it brings WAL into the repository",
        );
    }
    let timeout = setting(session, "archive_timeout")?;
    if timeout == "0" {
        want(
            "archive_timeout",
            timeout,
            "60",
            false,
            "a segment that fills slowly is archived after so many seconds, which bounds what can be lost",
        );
    }
    let full_page_writes = setting(session, "full_page_writes")?;
    if full_page_writes == "off" {
        want(
            "full_page_writes",
            full_page_writes,
            "on",
            false,
            "it repairs pages that were half-written in a crash",
        );
    }
    Ok(list)
}

/// The value in the configuration files, where the server hides it.
fn configured(session: &mut Session, name: &str) -> Result<String> {
    let rows = session.rows(
        "read the server's configuration files",
        "SELECT coalesce(setting, '') FROM pg_file_settings WHERE name = $1 AND error IS NULL \
         ORDER BY seqno DESC LIMIT 1",
        &[&name],
    );
    // Only superusers may: for others it is as if it were not set.
    Ok(rows.ok().and_then(|rows| rows.first().map(|row| row.get(0))).unwrap_or_default())
}

/// Sets them with ALTER SYSTEM and has the server read its configuration again.
pub fn apply_settings(source: &Source, settings: &[Setting]) -> Result<Applied> {
    let mut session = Session::open(source)?;
    for Setting { name, wanted, .. } in settings {
        let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if !plain || wanted.contains(['\0', '\n', '\r']) {
            return Err(PostgresError::usage(format!("{name} cannot be set to {wanted:?}")));
        }
        let value = wanted.replace('\'', "''");
        session.run(&format!("set {name}"), &format!("ALTER SYSTEM SET {name} = '{value}'"))?;
    }
    let _: bool = session.one("reload the configuration", "SELECT pg_reload_conf()", &[])?;
    let mut applied = Applied::default();
    let (later, now): (Vec<&Setting>, Vec<&Setting>) = settings.iter().partition(|s| s.restart);
    applied.after_restart = later.into_iter().map(|setting| setting.name.clone()).collect();
    // While archiving is off, the server does not show its command.
    let hidden = setting(&mut session, "archive_mode")? == "off";
    let deadline = std::time::Instant::now() + RELOAD;
    for wanted in now {
        if wanted.name == "archive_command" && hidden {
            applied.active.push(wanted.name.clone());
            continue;
        }
        let mut pause = std::time::Duration::from_millis(5);
        while setting(&mut session, &wanted.name)? != wanted.wanted {
            if std::time::Instant::now() > deadline {
                return Err(PostgresError::new(
                    PostgresErrorKind::Server,
                    format!("{} was set, but the server goes on with another value", wanted.name),
                )
                .with_hint(
                    "it may be set on the server's command line, by Patroni or by an operator: \
                     set it there",
                ));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(std::time::Duration::from_millis(200));
        }
        applied.active.push(wanted.name.clone());
    }
    Ok(applied)
}
