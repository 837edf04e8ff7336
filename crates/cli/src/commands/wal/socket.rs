//! How `wal push` asks a `wal serve` that stays, over a socket that only their user can reach.
//!
//! A request is one line of JSON, an answer another. Meanwhile an empty line every second says that
//! the work goes on; where none comes, the asking side does the work itself. It does so on *every*
//! answer but that the file is durable: what fails is then reported by the process whose exit status
//! PostgreSQL sees. Doing it twice costs time and nothing else, since a name is taken once.

use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_ops::config::{RepositoryConfig, SourceConfig};
use backstay_ops::{Context, Error, ErrorKind};
use backstay_postgres::only_own;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::app::Result;

/// How often the answering side says that it is at work.
pub const PULSE: Duration = Duration::from_secs(1);
/// How long the asking side waits for that.
const PATIENCE: Duration = Duration::from_secs(10);
/// A path, and some words; more is no request of ours. Bytes.
const LONGEST: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Of what configuration and program the asking side is: [`fingerprint`].
    pub fingerprint: u64,
    pub path: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The file is durable where it has to be: the document that `wal push --json` prints.
    Durable(Value),
    /// Do it yourself, and why.
    Yourself(String),
}

/// Says what a push would do: the same only from the same program with the same settings.
pub fn fingerprint(source: &SourceConfig, repositories: &[&RepositoryConfig]) -> u64 {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    // A program that was replaced is another one, whatever its version says.
    if let Ok(program) = std::env::current_exe().and_then(fs::metadata) {
        program.len().hash(&mut hasher);
        program.modified().ok().hash(&mut hasher);
    }
    format!("{source:?}{repositories:?}").hash(&mut hasher);
    hasher.finish()
}

/// The folder of the sockets; none where there is no cache.
fn folder(context: &Context) -> Option<PathBuf> {
    Some(context.cache()?.join("serve"))
}

/// The name of a source's socket. A source's name has no slash in it, but it may be long.
fn name_of(source: &str) -> String {
    let plain = source.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if plain && source.len() <= 48 && !source.starts_with('.') {
        return format!("{source}.socket");
    }
    let mut hasher = DefaultHasher::new();
    source.hash(&mut hasher);
    format!("{:016x}.socket", hasher.finish())
}

/// The address of a socket in an open folder: a socket's path can have 107 bytes, and a cache may lie
/// deeper than that.
fn address(folder: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

/// Has a `wal serve` push a file. None: do it yourself.
pub fn ask(
    context: &Context,
    source: &SourceConfig,
    repositories: &[&RepositoryConfig],
    path: &Path,
) -> Option<Value> {
    let path_of_folder = folder(context)?;
    let folder = File::open(&path_of_folder).ok()?;
    if let Err(error) = only_own(&path_of_folder) {
        tracing::warn!(%error, "no `wal serve` is asked");
        return None;
    }
    let stream = UnixStream::connect(address(&folder, &name_of(&source.name))).ok()?;
    let path = std::path::absolute(path).ok()?;
    let request = Request { fingerprint: fingerprint(source, repositories), path };
    match talk(&stream, &request) {
        Ok(Answer::Durable(document)) => Some(document),
        Ok(Answer::Yourself(why)) => {
            tracing::warn!(why, "`wal serve` did not push the file");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "`wal serve` did not answer");
            None
        }
    }
}

fn talk(stream: &UnixStream, request: &Request) -> io::Result<Answer> {
    check_peer(stream)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    send(stream, request)?;
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if (&mut lines).take(LONGEST).read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // It is at work.
        if line == "\n" {
            continue;
        }
        return Ok(serde_json::from_str(&line)?);
    }
}

/// Nobody but the own user and root may ask, or answer.
pub fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?.uid;
    if peer.is_root() || peer == rustix::process::geteuid() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("the other side runs as the user {}", peer.as_raw()),
    ))
}

pub fn read_request(stream: &UnixStream) -> io::Result<Request> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).take(LONGEST).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// One line.
pub fn send(mut stream: &UnixStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// A socket that is listened on. Dropping it removes it.
pub struct Listening {
    pub listener: UnixListener,
    folder: File,
    name: String,
    /// Held by the one that listens; ends with the process, however that ends.
    _lock: File,
}

impl Listening {
    /// # Errors
    /// [`ErrorKind::Busy`] when another process serves the source.
    pub fn start(context: &Context, source: &str) -> Result<Self> {
        let path = folder(context).ok_or_else(|| {
            Error::new(ErrorKind::Configuration, "there is no folder for the socket")
                .with_hint("name one with `cache` in the configuration")
        })?;
        let io = |doing: &'static str| {
            let path = path.clone();
            move |error| Error::io(doing, &path, error)
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(io("create"))?;
        // Somebody else could put a socket of theirs in the place of this one, or take it away.
        only_own(&path)?;
        let folder = File::open(&path).map_err(io("open"))?;
        let name = name_of(source);
        let lock_path = path.join(format!("{name}.lock"));
        let lock = File::options().create(true).append(true).open(&lock_path);
        let lock = lock.map_err(|error| Error::io("open", &lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("another process serves the archive of `{source}`"),
                )
                .with_hint("one is enough; end it first to start another"));
            }
            Err(fs::TryLockError::Error(error)) => {
                return Err(Error::io("lock", &lock_path, error));
            }
        }
        // Left by one that was killed: nobody listens there.
        match fs::remove_file(path.join(&name)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("remove", path.join(&name), error)),
        }
        let listener = UnixListener::bind(address(&folder, &name))
            .map_err(|error| Error::io("listen on", path.join(&name), error))?;
        listener.set_nonblocking(true).map_err(io("listen in"))?;
        Ok(Self { listener, folder, name, _lock: lock })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Who comes too late finds nothing, and does the work itself.
        let _ = fs::remove_file(address(&self.folder, &self.name));
    }
}
