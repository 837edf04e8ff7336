//! Can this cluster be backed up and recovered? Asked for real: a segment of WAL is made, waited for
//! in the archive, read back and compared. Asked in the way in which a backup would come: of the files
//! here, or of a replication connection.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use backstay_repo::Repository;
use serde::Serialize;

use crate::backup::{Method, may_come_over_the_wire};
use crate::connection::Parameters;
use crate::copy;
use crate::inspect::{Cluster, inspect_session};
use crate::receive::Server;
use crate::receive::begin::identify;
use crate::session::{Session, Source};
use crate::settings::missing;
use crate::wal::SegmentSize;
use crate::wire::Wire;
use crate::{PostgresError, PostgresErrorKind, Result};

/// Less free space than this beside `pg_wal` is said to be too little. Bytes.
const LITTLE_SPACE: u64 = 1 << 30;

/// By how much the clocks of server and client may differ.
const CLOCK: Duration = Duration::from_secs(2);

/// One question and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckItem {
    /// `connection`, `data-directory`, `permissions`, `settings`, `checksums`, `archive`, `space`,
    /// `clock`.
    pub name: String,
    pub ok: bool,
    pub message: String,
    pub hint: Option<String>,
}

impl CheckItem {
    fn good(name: &str, message: impl Into<String>) -> Self {
        Self { name: name.to_owned(), ok: true, message: message.into(), hint: None }
    }

    fn bad(name: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name: name.to_owned(), ok: false, message: message.into(), hint: Some(hint.into()) }
    }

    fn failed(name: &str, error: &PostgresError) -> Self {
        Self {
            name: name.to_owned(),
            ok: false,
            message: error.to_string(),
            hint: error.hint().map(str::to_owned),
        }
    }
}

/// What is asked, besides what the source says of itself.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions<'a> {
    /// How backups are made.
    pub method: Method,
    /// Whether each brings its own log, so that there need not be an archive.
    pub standalone: bool,
    /// What the server should be set to; without it the command is not looked at, only what it does.
    pub archive_command: Option<&'a str>,
    /// How long the archive is waited for.
    pub timeout: Duration,
}

/// Asks everything that can be asked. What cannot be answered is an item that is not ok, never an
/// error: a check reports.
pub fn check(
    repo: &Repository,
    source: &Source,
    options: &CheckOptions<'_>,
) -> Result<Vec<CheckItem>> {
    let may_choose = options.method == Method::Auto && source.data_directory.is_none();
    if options.method == Method::Wire {
        return over_the_wire(repo, source, options)
            .map_or_else(|error| Ok(vec![CheckItem::failed("connection", &error)]), Ok);
    }
    // Where neither way is open, the answers are those of the first.
    let instead = |error: &PostgresError| {
        let may = may_choose && may_come_over_the_wire(error);
        may.then(|| over_the_wire(repo, source, options).ok()).flatten()
    };
    let mut items = Vec::new();
    let mut session = match Session::open(source) {
        Ok(session) => session,
        Err(error) => {
            let failed = || vec![CheckItem::failed("connection", &error)];
            return Ok(instead(&error).unwrap_or_else(failed));
        }
    };
    items.push(CheckItem::good(
        "connection",
        format!("PostgreSQL {} on {}", session.major(), session.place()),
    ));
    let cluster = match inspect_session(&mut session, source) {
        Ok(cluster) => cluster,
        Err(error) => {
            if let Some(items) = instead(&error) {
                return Ok(items);
            }
            items.push(CheckItem::failed("data-directory", &error));
            return Ok(items);
        }
    };
    items.push(data_directory(&cluster));
    items.push(permissions(&mut session));
    items.push(settings(&mut session, options));
    items.push(checksums(cluster.checksums));
    items.push(archive(options, || {
        let asked = Asked {
            system_identifier: cluster.system_identifier,
            segment_size: u64::from(cluster.segment_size),
            in_recovery: cluster.in_recovery,
            archive_mode: &cluster.settings.archive_mode,
            data: Some(&cluster.data_directory),
        };
        round_trip(repo, &mut session, &asked, options.timeout)
    }));
    items.push(space(&cluster));
    items.push(clock(&mut session, repo));
    Ok(items)
}

/// The same for a source whose files the server sends.
///
/// # Errors
/// There is no replication connection, so nothing can be asked.
fn over_the_wire(
    repo: &Repository,
    source: &Source,
    options: &CheckOptions<'_>,
) -> Result<Vec<CheckItem>> {
    let mut wire = Wire::connect(&Parameters::new(&source.connection)?)?;
    let server: Server = identify(&mut wire)?;
    let place = format!("PostgreSQL {} on {}", wire.major(), wire.place());
    let mut items = vec![
        CheckItem::good("connection", format!("{place}, over a replication connection")),
        CheckItem::good("permissions", "the role may have the server send a backup"),
    ];
    // Most roles may see these; of one that may not, nothing is said.
    let mut shown = |name: &str| wire.show(name).unwrap_or_default();
    let (level, mode) = (shown("wal_level"), shown("archive_mode"));
    let (senders, sums) = (shown("max_wal_senders"), shown("data_checksums"));
    // The log comes beside the files.
    let wanted = if options.standalone { 2 } else { 1 };
    items.push(if level == "minimal" {
        CheckItem::bad(
            "settings",
            "wal_level is minimal, from which nothing can be recovered",
            "set it to replica and restart the server",
        )
    } else if senders.parse::<u32>().is_ok_and(|senders| senders < wanted) {
        CheckItem::bad(
            "settings",
            format!("max_wal_senders is {senders}, and a backup takes {wanted}"),
            "raise it and restart the server",
        )
    } else {
        CheckItem::good("settings", "the server writes what a recovery needs")
    });
    items.push(checksums(sums == "on"));
    let in_recovery = wire.in_recovery()?;
    let mut session = Session::open(source).ok();
    let may_end = session.as_mut().is_some_and(may_end_a_segment);
    items.push(archive(options, || {
        // A receiver may bring it, and a role that may only replicate cannot have a segment made.
        let Some(session) = session.as_mut().filter(|_| may_end && mode != "off" && !in_recovery)
        else {
            let archive = repo.archive(server.system_identifier);
            if !archive.list(Some(server.timeline))?.is_empty() {
                return Ok("it has WAL of this timeline; a backup waits for what it needs".into());
            }
            return Err(PostgresError::new(
                PostgresErrorKind::Archive,
                format!("there is no WAL of timeline {} in it", server.timeline),
            )
            .with_hint(
                "bring it there with `backstay wal receive` or by archive_command; or let each \
                 backup bring its own, with `standalone = true`",
            ));
        };
        let asked = Asked {
            system_identifier: server.system_identifier,
            segment_size: server.segment_size.bytes(),
            in_recovery,
            archive_mode: &mode,
            data: None,
        };
        round_trip(repo, session, &asked, options.timeout)
    }));
    if let Some(session) = &mut session {
        items.push(clock(session, repo));
    }
    Ok(items)
}

fn checksums(on: bool) -> CheckItem {
    if on {
        return CheckItem::good(
            "checksums",
            "pages have checksums and are checked during every backup",
        );
    }
    CheckItem {
        hint: Some("stop the server and run pg_checksums --enable".to_owned()),
        ..CheckItem::good("checksums", "pages have no checksums: damage on disk stays unseen")
    }
}

fn archive(options: &CheckOptions<'_>, ask: impl FnOnce() -> Result<String>) -> CheckItem {
    const NAME: &str = "archive";
    if options.standalone {
        return CheckItem::good(NAME, "none is needed: each backup brings its own log");
    }
    match ask() {
        Ok(message) => CheckItem::good(NAME, message),
        Err(error) => CheckItem::failed(NAME, &error),
    }
}

fn data_directory(cluster: &Cluster) -> CheckItem {
    const NAME: &str = "data-directory";
    match copy::list(&cluster.data_directory, cluster.version, cluster.catalog_version) {
        Ok(listing) => {
            let unreadable = listing
                .items
                .iter()
                .filter(|item| !matches!(item.what, copy::What::Symlink { .. }))
                .find_map(|item| match fs::File::open(&item.source) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        Some(PostgresError::io("read", &item.source, error))
                    }
                    _ => None,
                });
            if let Some(error) = unreadable {
                return CheckItem::failed(NAME, &error);
            }
            if let Some(problem) = listing.problems.first() {
                let message = format!("{}: {}", problem.path, problem.what);
                return CheckItem::bad(NAME, message, "give the user that runs this access to it");
            }
            let mib = listing.bytes >> 20;
            CheckItem::good(
                NAME,
                format!(
                    "{}: {} files and directories, {mib} MiB, all readable",
                    cluster.data_directory.display(),
                    listing.items.len()
                ),
            )
        }
        Err(error) => CheckItem::failed(NAME, &error),
    }
}

fn permissions(session: &mut Session) -> CheckItem {
    const NAME: &str = "permissions";
    let functions = if session.major() >= 15 {
        ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"]
    } else {
        ["pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"]
    };
    for function in functions {
        let may = session.one::<bool>(
            "ask for permissions",
            "SELECT has_function_privilege($1, 'execute')",
            &[&function],
        );
        match may {
            Ok(true) => {}
            Ok(false) => {
                return CheckItem::bad(
                    NAME,
                    format!("the role may not run {function}"),
                    format!("GRANT EXECUTE ON FUNCTION {function} TO the role"),
                );
            }
            Err(error) => return CheckItem::failed(NAME, &error),
        }
    }
    CheckItem::good(NAME, "the role may start and stop a backup")
}

fn settings(session: &mut Session, options: &CheckOptions<'_>) -> CheckItem {
    const NAME: &str = "settings";
    let now = match crate::inspect::setting(session, "archive_command") {
        Ok(now) => now,
        Err(error) => return CheckItem::failed(NAME, &error),
    };
    match missing(session, options.archive_command.unwrap_or(&now)) {
        // How long a slow segment may take is for the operator to say; and who needs no archive need
        // not set one up.
        Ok(list) => match list.iter().find(|setting| {
            setting.name != "archive_timeout"
                && !(options.standalone && setting.name.starts_with("archive_"))
        }) {
            Some(setting) => CheckItem::bad(
                NAME,
                format!("{} is {:?}: {}", setting.name, setting.now, setting.why),
                format!("set it to {:?}, or run `backstay postgres setup`", setting.wanted),
            ),
            None => CheckItem {
                hint: list
                    .first()
                    .filter(|_| !options.standalone)
                    .map(|setting| format!("{}: {}", setting.name, setting.why)),
                ..CheckItem::good(NAME, "the server keeps and archives what a recovery needs")
            },
        },
        Err(error) => CheckItem::failed(NAME, &error),
    }
}

/// Whether the role may do what makes the server archive a segment.
fn may_end_a_segment(session: &mut Session) -> bool {
    let may = session.one::<bool>(
        "ask for permissions",
        "SELECT has_function_privilege('pg_create_restore_point(text)', 'execute') \
         AND has_function_privilege('pg_switch_wal()', 'execute')",
        &[],
    );
    may.unwrap_or(false)
}

/// The server whose archive is asked.
struct Asked<'a> {
    system_identifier: u64,
    /// Bytes.
    segment_size: u64,
    in_recovery: bool,
    archive_mode: &'a str,
    /// Its directory, where that is here.
    data: Option<&'a Path>,
}

/// Makes the server end a segment, and compares what arrives in the archive with what was sent.
fn round_trip(
    repo: &Repository,
    session: &mut Session,
    cluster: &Asked<'_>,
    timeout: Duration,
) -> Result<String> {
    if cluster.in_recovery {
        return Err(PostgresError::new(
            PostgresErrorKind::Unsupported,
            "a standby writes no WAL of its own to archive",
        )
        .with_hint("check the primary"));
    }
    if cluster.archive_mode == "off" {
        return Err(PostgresError::new(PostgresErrorKind::Archive, "the server archives no WAL")
            .with_hint("run `backstay postgres setup`, then restart the server"));
    }
    // An empty segment would not be ended; a restore point is a record that harms nobody.
    let name: String = session.one(
        "write a restore point",
        "SELECT pg_walfile_name(pg_create_restore_point('backstay check'))",
        &[],
    )?;
    session.lsn("end a WAL segment", "SELECT pg_switch_wal()::text")?;
    let began = Instant::now();
    let archive = repo.archive(cluster.system_identifier);
    let mut pause = Duration::from_millis(20);
    while !archive.contains(&name)? {
        if began.elapsed() > timeout {
            return Err(PostgresError::new(
                PostgresErrorKind::Archive,
                format!(
                    "the WAL segment {name} did not reach the archive within {} s",
                    timeout.as_secs()
                ),
            )
            .with_hint(
                "the server's log says why archive_command failed; it should be \
                 `backstay wal push %p` for this repository",
            ));
        }
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_secs(1));
    }
    let took = began.elapsed();
    let content = archive.fetch(&name)?.ok_or_else(|| {
        PostgresError::new(
            PostgresErrorKind::Archive,
            format!("the WAL segment {name} is listed in the archive and cannot be read"),
        )
    })?;
    let wrong = |what: &str| {
        PostgresError::new(
            PostgresErrorKind::Damaged,
            format!("the WAL segment {name} came back from the archive {what}"),
        )
        .with_hint("look at archive_command: it must archive the file as it is, from this cluster")
    };
    let size = SegmentSize::new(cluster.segment_size);
    if size.is_none_or(|size| content.len() as u64 != size.bytes()) {
        return Err(wrong("with another size"));
    }
    // The header of a segment: the system identifier is at 24 (`access/xlog_internal.h`).
    let system = content.get(24..32).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    if system != Some(cluster.system_identifier) {
        return Err(wrong("as one of another cluster"));
    }
    // The server may have removed or reused its own by now.
    if let Some(data) = cluster.data
        && let Ok(own) = fs::read(data.join("pg_wal").join(&name))
        && own.get(..32) == content.get(..32)
        && own != content
    {
        return Err(wrong("with other content"));
    }
    Ok(format!("{name} was archived in {:.1} s and came back as it was", took.as_secs_f64()))
}

fn space(cluster: &Cluster) -> CheckItem {
    const NAME: &str = "space";
    let path = cluster.data_directory.join("pg_wal");
    match rustix::fs::statvfs(&path) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let message = format!("{} MiB are free for WAL", free >> 20);
            if free < LITTLE_SPACE {
                CheckItem::bad(
                    NAME,
                    message,
                    "WAL that cannot be archived stays there: make room for some hours of it",
                )
            } else {
                CheckItem::good(NAME, message)
            }
        }
        Err(error) => {
            CheckItem::failed(NAME, &PostgresError::io("ask for the space of", path, error.into()))
        }
    }
}

fn clock(session: &mut Session, repo: &Repository) -> CheckItem {
    const NAME: &str = "clock";
    let seconds = session.one::<f64>(
        "ask for the time",
        "SELECT extract(epoch FROM clock_timestamp())::float8",
        &[],
    );
    let ours = repo.environment().now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    match seconds {
        Ok(theirs) => {
            let apart = (theirs - ours.as_secs_f64()).abs();
            let message = format!("the server's clock and ours are {apart:.1} s apart");
            if apart > CLOCK.as_secs_f64() {
                CheckItem::bad(
                    NAME,
                    message,
                    "synchronise both: a recovery target in time is read by the server's clock",
                )
            } else {
                CheckItem::good(NAME, message)
            }
        }
        Err(error) => CheckItem::failed(NAME, &error),
    }
}
