//! Starting a server in a restored directory, and waiting until it has come as far as it should.
//!
//! How far it is, is read from its lock file (which says when connections are taken) and from what
//! it logs; both can be had whatever its access rules are. How far it got is asked in SQL where a
//! role may log in, and taken from the log otherwise.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backstay_repo::Progress;
use jiff::Timestamp;

use crate::connection::Parameters;
use crate::control::ControlFile;
use crate::session::Session;
use crate::wal::Lsn;
use crate::{PostgresError, PostgresErrorKind, Result};

use super::files;

/// What the server says is kept in the data directory under this name.
const LOG: &str = "backstay-start.log";

/// What the server says when it streams.
const STREAMS: &str = "started streaming WAL from primary";

/// How long a server may take to shut down.
const STOP: Duration = Duration::from_secs(120);

/// How to start a restored cluster.
#[derive(Debug, Clone, Default)]
pub struct StartOptions {
    /// Where `postgres` of the right version is; searched for where it is not given.
    pub bin_dir: Option<PathBuf>,
    /// A server for tests of the restore: reachable through its own socket only, by anybody who may
    /// open that, and archiving nothing.
    pub sandbox: bool,
    /// Where the socket is to be; a sandbox without one gets a directory of its own.
    pub socket_directory: Option<PathBuf>,
    pub port: Option<u16>,
    /// Further settings, set on the command line.
    pub settings: Vec<(String, String)>,
    /// For the role and password to ask with how far recovery got; the host in it does not matter.
    pub connection: Option<String>,
    /// Recovery may take hours: none by default.
    pub timeout: Option<Duration>,
}

/// What a started server is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Consistent and readable, replaying on.
    Consistent,
    /// Consistent, and the primary was asked for what follows.
    Streaming,
    /// Stopped at its target, readable.
    Paused,
    /// Out of recovery, taking writes.
    Promoted,
    /// Stopped at its target and shut down.
    ShutDown,
}

/// What a server is started for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Purpose<'a> {
    pub(super) until: Until,
    /// The database in which it is asked how far it got.
    pub(super) ask_in: &'a str,
    /// How many segments it has to replay, as far as that is known, and the size of each. Bytes.
    pub(super) segments: u64,
    pub(super) segment_size: u64,
}

/// How far a recovery got.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Reached {
    /// The last record that was replayed.
    pub lsn: Option<Lsn>,
    /// Of the last commit that was replayed; none where there was no commit to replay.
    pub time: Option<Timestamp>,
    pub timeline: u32,
    pub in_recovery: bool,
}

/// A server that was started. Dropped, it goes on running.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pub data_directory: PathBuf,
    pub socket_directory: PathBuf,
    pub port: u16,
    pub reached: Reached,
    pub log: PathBuf,
    own_directory: Option<PathBuf>,
}

impl Running {
    /// Keywords to connect with; the role is the caller's to add.
    pub fn connection(&self) -> String {
        format!("host='{}' port={}", self.socket_directory.display(), self.port)
    }

    /// A session as a superuser, in a sandbox that lets everybody in.
    pub(crate) fn superuser(&self, database: &str) -> Result<Session> {
        let options = StartOptions { sandbox: true, ..StartOptions::default() };
        connect(&self.data_directory, self, &options, database)
    }

    /// Shuts the server down, disconnecting everybody, and waits until it is gone.
    pub fn stop(mut self) -> Result<()> {
        stop(&mut self.child, &self.data_directory)?;
        remove_own(self.own_directory.as_deref());
        Ok(())
    }
}

/// Starts the server and waits. What it was started with that nobody asked for is added to `notes`.
pub(super) fn start(
    directory: &Path,
    major: u32,
    purpose: Purpose<'_>,
    options: &StartOptions,
    progress: &Progress,
    notes: &mut Vec<String>,
) -> Result<Option<Running>> {
    let Purpose { until, ask_in, .. } = purpose;
    let program = find_program(major, options.bin_dir.as_deref())?;
    let owner = fs::metadata(directory)
        .map_err(|error| PostgresError::io("read the directory", directory, error))?;
    let root = rustix::process::geteuid().is_root();
    if root && owner.uid() == 0 {
        return Err(PostgresError::new(
            PostgresErrorKind::Start,
            format!("{} belongs to root, as whom PostgreSQL does not run", directory.display()),
        )
        .with_hint("chown -R postgres: the directory, then start the server"));
    }
    let own_directory = match (&options.socket_directory, options.sandbox) {
        (None, true) => Some(make_directory(&owner)?),
        _ => None,
    };
    let sockets = own_directory.as_ref().or(options.socket_directory.as_ref());
    let mut settings: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| settings.push((name.to_owned(), value.to_owned()));
    // What the wait below reads has to be said, in words that it knows, to where it looks.
    set("logging_collector", "off");
    set("log_destination", "stderr");
    set("log_min_messages", "warning");
    set("lc_messages", "C");
    set("hot_standby", "on");
    // A restored postgresql.conf may name the directory of the original.
    set("data_directory", &directory.to_string_lossy());
    if let Some(sockets) = sockets {
        set("unix_socket_directories", &sockets.to_string_lossy());
    }
    if let Some(port) = options.port {
        set("port", &port.to_string());
    }
    if options.sandbox {
        let rules = sockets.map_or(directory, PathBuf::as_path);
        files::write(rules, "pg_hba.conf", b"local all all trust\nlocal replication all trust\n")?;
        set("hba_file", &rules.join("pg_hba.conf").to_string_lossy());
        set("listen_addresses", "");
        set("ssl", "off");
        set("archive_mode", "off");
        set("external_pid_file", "");
        set("archive_cleanup_command", "");
        set("recovery_end_command", "");
    }
    settings.extend(options.settings.iter().cloned());

    let log = directory.join(LOG);
    files::remove_if_there(&log)?;
    files::write(directory, LOG, b"")?;
    let output = File::options()
        .append(true)
        .open(&log)
        .map_err(|error| PostgresError::io("write", &log, error))?;
    let errors = output.try_clone().map_err(|error| PostgresError::io("write", &log, error))?;
    let mut command = Command::new(&program);
    command.arg("-D").arg(directory);
    for (name, value) in &settings {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    command.current_dir(directory).stdin(Stdio::null()).stdout(output).stderr(errors);
    // Its own group: an interrupt typed for us is not for the server.
    command.process_group(0);
    if root {
        command.uid(owner.uid()).gid(owner.gid());
    }
    let mut child = command.spawn().map_err(|error| {
        PostgresError::new(
            PostgresErrorKind::Start,
            format!("could not start {}: {error}", program.display()),
        )
        .with_source(error)
    })?;
    let waited = wait(&mut child, directory, &log, purpose, options, progress);
    match waited {
        Ok(None) => {
            remove_own(own_directory.as_deref());
            let reached = reached_by_log(directory, &log)?;
            notes.push(format!(
                "the server stopped at its target; it got to {}",
                describe(&reached)
            ));
            Ok(None)
        }
        Ok(Some(lock)) => {
            if until == Until::Streaming {
                let said = read_log(&log)?;
                let reason = refused(&said).filter(|_| !said.contains(STREAMS));
                notes.extend(reason.map(|reason| {
                    format!("it does not stream from its primary yet, and goes on trying: {reason}")
                }));
            }
            let reached = match reached(directory, &log, &lock, options, ask_in) {
                Ok(reached) => reached,
                Err(error) => {
                    // Nobody would know of the server, or how to stop it.
                    let _ = stop(&mut child, directory);
                    remove_own(own_directory.as_deref());
                    return Err(error);
                }
            };
            Ok(Some(Running {
                child,
                data_directory: directory.to_owned(),
                socket_directory: lock.socket_directory,
                port: lock.port,
                reached,
                log,
                own_directory,
            }))
        }
        Err(error) => {
            // The first error is what people need to hear of.
            let _ = stop(&mut child, directory);
            remove_own(own_directory.as_deref());
            Err(error)
        }
    }
}

/// What a standby last said of a primary that it does not get on with.
fn refused(said: &str) -> Option<&str> {
    const WHATS: [&str; 5] = [
        "could not connect to the primary server",
        "could not start WAL streaming",
        "database system identifier differs",
        "could not receive database system identifier",
        "connection to server",
    ];
    said.lines()
        .filter_map(|line| line.split_once("FATAL:  "))
        .map(|(_, said)| said)
        .rfind(|said| WHATS.iter().any(|what| said.contains(what)))
}

/// Removes the directory that was made for the socket; nothing else was in it.
fn remove_own(directory: Option<&Path>) {
    if let Some(directory) = directory {
        let _ = fs::remove_dir_all(directory);
    }
}

/// How far recovery got, in words.
pub(super) fn describe(reached: &Reached) -> String {
    let lsn = reached.lsn.map_or_else(|| "an unknown place".to_owned(), |lsn| lsn.to_string());
    match reached.time {
        Some(time) => format!("{lsn} on timeline {}, last commit at {time}", reached.timeline),
        None => format!("{lsn} on timeline {}", reached.timeline),
    }
}

/// What `postmaster.pid` says of a server that takes connections.
struct Lock {
    port: u16,
    socket_directory: PathBuf,
    status: String,
}

fn read_lock(directory: &Path) -> Option<Lock> {
    let text = fs::read_to_string(directory.join("postmaster.pid")).ok()?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    Some(Lock {
        port: lines.get(3)?.parse().ok()?,
        socket_directory: PathBuf::from(lines.get(4)?),
        status: (*lines.get(7)?).to_owned(),
    })
}

/// The lock of the server that is where it should be; none when it should be shut down and is.
fn wait(
    child: &mut Child,
    directory: &Path,
    log: &Path,
    purpose: Purpose<'_>,
    options: &StartOptions,
    progress: &Progress,
) -> Result<Option<Lock>> {
    let until = purpose.until;
    let mut replayed = Replayed { purpose, seen: 0 };
    let started = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        progress.check()?;
        let exited =
            child.try_wait().map_err(|error| PostgresError::io("wait for", directory, error))?;
        // The log is read after the exit was seen, so that the last words are in it.
        let said = read_log(log)?;
        replayed.count(&said, progress);
        if exited.is_some() {
            if until == Until::ShutDown && said.contains("shutdown at recovery target") {
                return Ok(None);
            }
            return Err(stopped_early(&said, log));
        }
        if let Some(lock) = read_lock(directory) {
            // The lock file says "ready" as soon as connections are taken, be it for reading only.
            let open = lock.status == "ready";
            let promoted = said.contains("database system is ready to accept connections");
            let there = match until {
                Until::Consistent => open,
                Until::Streaming => open && (said.contains(STREAMS) || refused(&said).is_some()),
                Until::Promoted => open && promoted,
                Until::Paused => {
                    open && (promoted || said.contains("pausing at the end of recovery"))
                }
                Until::ShutDown => false,
            };
            if there {
                replayed.finish(progress);
                return Ok(Some(lock));
            }
        }
        if options.timeout.is_some_and(|limit| started.elapsed() > limit) {
            let last = said.lines().last().unwrap_or("nothing").to_owned();
            return Err(PostgresError::new(
                PostgresErrorKind::Start,
                format!(
                    "the server was not where it should be after {} s; the last it said: {last}",
                    started.elapsed().as_secs()
                ),
            )
            .with_hint(format!("read {}", log.display())));
        }
        std::thread::sleep(pause);
        pause = (pause * 5 / 4).min(Duration::from_millis(300));
    }
}

/// Segments that the server fetched, told to whoever watches.
struct Replayed<'a> {
    purpose: Purpose<'a>,
    seen: u64,
}

impl Replayed<'_> {
    fn count(&mut self, said: &str, progress: &Progress) {
        let restored = said.matches("restored log file \"").count() as u64;
        self.advance(restored.min(self.purpose.segments), progress);
    }

    fn finish(&mut self, progress: &Progress) {
        self.advance(self.purpose.segments, progress);
    }

    fn advance(&mut self, to: u64, progress: &Progress) {
        let new = to.saturating_sub(self.seen);
        self.seen += new;
        progress.add_done(new.saturating_mul(self.purpose.segment_size), 0);
    }
}

fn stopped_early(said: &str, log: &Path) -> PostgresError {
    let reason = said
        .lines()
        .filter_map(|line| {
            let at = line.find("FATAL:  ").or_else(|| line.find("PANIC:  "))?;
            line.get(at + 8..)
        })
        .next_back()
        .or_else(|| said.lines().last())
        .unwrap_or("it said nothing")
        .trim()
        .to_owned();
    let short = reason.contains("recovery ended before configured recovery target was reached");
    if short {
        PostgresError::new(
            PostgresErrorKind::Target,
            "the archive ended before the recovery target was reached",
        )
        .with_hint(format!("name an earlier target; how far it got is in {}", log.display()))
    } else {
        PostgresError::new(
            PostgresErrorKind::Start,
            format!("the server stopped before it was where it should be: {reason}"),
        )
        .with_hint(format!("read {}; the restored files are complete", log.display()))
    }
}

fn reached(
    directory: &Path,
    log: &Path,
    lock: &Lock,
    options: &StartOptions,
    ask_in: &str,
) -> Result<Reached> {
    match reached_by_sql(directory, lock, options, ask_in) {
        Ok(reached) => Ok(reached),
        Err(error) => {
            tracing::debug!(%error, "how far recovery got is taken from the log");
            reached_by_log(directory, log)
        }
    }
}

/// A session with a server that was started, in the database `ask_in`.
pub(super) fn connect(
    directory: &Path,
    running: &Running,
    options: &StartOptions,
    ask_in: &str,
) -> Result<Session> {
    let place = (running.socket_directory.as_path(), running.port);
    let mut it = session(directory, place.0, place.1, options, ask_in)?;
    if !options.sandbox {
        return Ok(it);
    }
    let doing = "look for a superuser";
    if it.one::<String>(doing, "SELECT current_setting('is_superuser')", &[])? == "on" {
        return Ok(it);
    }
    let query = "SELECT rolname::text FROM pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid";
    let rows = it.rows(doing, query, &[])?;
    let Some(row) = rows.first() else { return Ok(it) };
    let mut parameters = Parameters::new("")?;
    parameters.move_to(place.0, place.1);
    parameters.set_database(ask_in);
    parameters.set_user(&row.get::<_, String>(0));
    Session::with(&parameters)
}

fn session(
    directory: &Path,
    socket_directory: &Path,
    port: u16,
    options: &StartOptions,
    ask_in: &str,
) -> Result<Session> {
    let mut parameters = Parameters::new(options.connection.as_deref().unwrap_or_default())?;
    parameters.move_to(socket_directory, port);
    parameters.set_database(ask_in);
    if options.connection.is_none()
        && let Ok(meta) = fs::metadata(directory)
        && let Some(name) = crate::owner::name_of_user(meta.uid())
    {
        parameters.set_user(&name);
    }
    Session::with(&parameters).or_else(|error| {
        // `initdb` names the first role after whoever ran it, and `postgres` in nearly all cases.
        parameters.set_user("postgres");
        Session::with(&parameters).map_err(|_| error)
    })
}

fn reached_by_sql(
    directory: &Path,
    lock: &Lock,
    options: &StartOptions,
    ask_in: &str,
) -> Result<Reached> {
    let mut session = session(directory, &lock.socket_directory, lock.port, options, ask_in)?;
    let doing = "ask how far recovery got";
    let rows = session.rows(
        doing,
        "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text, \
         to_char(pg_last_xact_replay_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), \
         CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_lsn()) END",
        &[],
    )?;
    let Some(row) = rows.first() else {
        return Err(PostgresError::new(PostgresErrorKind::Server, format!("could not {doing}")));
    };
    let text = |at: usize| row.try_get::<_, Option<String>>(at).ok().flatten();
    let timeline = match text(3).as_deref().and_then(|name| name.get(..8)) {
        Some(digits) => u32::from_str_radix(digits, 16).unwrap_or(0),
        None => recovery_timeline(directory)?,
    };
    Ok(Reached {
        in_recovery: row.try_get(0).unwrap_or(false),
        lsn: text(1).and_then(|lsn| lsn.parse().ok()),
        time: text(2).and_then(|time| time.parse().ok()),
        timeline,
    })
}

fn recovery_timeline(directory: &Path) -> Result<u32> {
    let control = ControlFile::read(directory)?;
    Ok(control.timeline.max(control.min_recovery_timeline))
}

fn reached_by_log(directory: &Path, log: &Path) -> Result<Reached> {
    let said = read_log(log)?;
    let after = |what: &str| {
        said.lines().filter_map(|line| line.split_once(what)).next_back().map(|(_, rest)| rest)
    };
    let lsn = after("redo done at ")
        .or_else(|| after("recovery stopping after WAL location (LSN) \""))
        .or_else(|| after("recovery stopping before WAL location (LSN) \""))
        .or_else(|| after("consistent recovery state reached at "))
        .and_then(|rest| {
            let end = rest.find(|c: char| c != '/' && !c.is_ascii_hexdigit()).unwrap_or(rest.len());
            rest.get(..end)?.parse().ok()
        });
    let time =
        after("last completed transaction was at log time ").and_then(|t| t.trim().parse().ok());
    // The control file may name the timeline of a promotion only after the next checkpoint.
    let selected = after("selected new timeline ID: ").and_then(|id| id.trim().parse().ok());
    let control = ControlFile::read(directory)?;
    Ok(Reached {
        lsn,
        time,
        timeline: recovery_timeline(directory)?.max(selected.unwrap_or(0)),
        in_recovery: control.state != crate::control::State::InProduction,
    })
}

fn read_log(log: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    File::open(log)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(|error| PostgresError::io("read", log, error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn stop(child: &mut Child, directory: &Path) -> Result<()> {
    let io = |error| PostgresError::io("stop the server in", directory, error);
    let deadline = Instant::now() + STOP;
    let mut pause = Duration::from_millis(10);
    if child.try_wait().map_err(io)?.is_some() {
        return Ok(());
    }
    // A fast shutdown. The child is ours and not reaped yet, so that its number is still its own.
    let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) else {
        return Ok(());
    };
    rustix::process::kill_process(pid, rustix::process::Signal::INT)
        .map_err(|error| io(error.into()))?;
    while child.try_wait().map_err(io)?.is_none() {
        if Instant::now() > deadline {
            return Err(PostgresError::new(
                PostgresErrorKind::Start,
                format!("the server in {} does not shut down", directory.display()),
            )
            .with_hint(format!("stop it with pg_ctl -m immediate -D {}", directory.display())));
        }
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(200));
    }
    Ok(())
}

/// A new directory that only the owner of the server may enter. Short, as sockets' paths have to be.
fn make_directory(owner: &fs::Metadata) -> Result<PathBuf> {
    let random: [u8; 8] = backstay_store::Environment::system().random();
    let name = format!("backstay-{:016x}", u64::from_le_bytes(random));
    let path = std::env::temp_dir().join(name);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .map_err(|error| PostgresError::io("make the directory", &path, error))?;
    files::give_to_owner(&path, owner)?;
    Ok(path)
}

/// Where `postgres` of this major version is.
pub fn find_program(major: u32, given: Option<&Path>) -> Result<PathBuf> {
    let mut places = Vec::new();
    match given {
        Some(directory) => places.push(directory.to_owned()),
        None => {
            places.extend([
                PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
                PathBuf::from(format!("/usr/pgsql-{major}/bin")),
                PathBuf::from(format!("/usr/local/opt/postgresql@{major}/bin")),
                PathBuf::from(format!("/opt/homebrew/opt/postgresql@{major}/bin")),
                PathBuf::from("/usr/local/pgsql/bin"),
            ]);
            let path = std::env::var_os("PATH").unwrap_or_default();
            places.extend(std::env::split_paths(&path));
        }
    }
    let mut other = None;
    for program in places.iter().map(|place| place.join("postgres")).filter(|p| p.is_file()) {
        match version_of(&program) {
            Some(found) if found == major => return Ok(program),
            found => other = Some((program, found)),
        }
    }
    let error = match other {
        Some((program, Some(found))) => PostgresError::new(
            PostgresErrorKind::Start,
            format!("PostgreSQL {major} is needed, but {} is {found}", program.display()),
        ),
        Some((program, None)) => PostgresError::new(
            PostgresErrorKind::Start,
            format!("{} does not run", program.display()),
        ),
        None => PostgresError::new(
            PostgresErrorKind::Start,
            format!("PostgreSQL {major} was not found on this machine"),
        ),
    };
    Err(error.with_hint(format!(
        "install PostgreSQL {major}, or say where it is with --bin-dir; the restored files are complete"
    )))
}

/// `postgres (PostgreSQL) 15.18 (Debian …)`
fn version_of(program: &Path) -> Option<u32> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_once("(PostgreSQL) ")?.1;
    let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version.get(..end)?.parse().ok()
}
