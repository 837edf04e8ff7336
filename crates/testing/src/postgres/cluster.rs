//! One cluster: made or adopted, started, stopped, killed, promoted, removed.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Installation;
use super::folder::Folder;
use crate::process::{alive, as_server_user, children, spawn};
use crate::{own, wait_until};

/// How long a server may take to start or stop before a test gives up: a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a cluster will be like.
#[derive(Debug, Clone)]
pub struct Builder {
    installation: Installation,
    checksums: bool,
    segment_size: Option<u32>,
    config: Vec<(String, String)>,
    hba: Option<String>,
    origin: Origin,
}

/// Where the data directory comes from.
#[derive(Debug, Clone)]
enum Origin {
    Initdb,
    /// It is there already, and stays.
    Adopted(PathBuf),
    /// In the cluster's own folder, made by whoever asked for it.
    Empty,
}

/// A throw-away PostgreSQL server and its data directory.
#[derive(Debug)]
pub struct Cluster {
    installation: Installation,
    data: PathBuf,
    port: u16,
    config: Vec<(String, String)>,
    server: Mutex<Option<Child>>,
    // Last: its folder goes when the server is gone.
    folder: Folder,
}

/// A server that ended before it was ready; its log is in the message.
#[derive(Debug)]
pub struct StartFailure {
    /// `None` when it did not end in time and was ended.
    pub status: Option<ExitStatus>,
    pub log: String,
}

impl std::fmt::Display for StartFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => write!(f, "the server ended with {status}:\n{}", self.log),
            None => write!(f, "the server was not ready in time:\n{}", self.log),
        }
    }
}

impl std::error::Error for StartFailure {}

impl Builder {
    /// Whether pages have checksums; they have unless this says no, in every version.
    pub fn checksums(mut self, checksums: bool) -> Self {
        self.checksums = checksums;
        self
    }

    /// The size of a WAL segment in MiB, a power of two from 1 to 1024; 16 unless said.
    pub fn segment_size(mut self, mebibytes: u32) -> Self {
        self.segment_size = Some(mebibytes);
        self
    }

    /// Settings for postgresql.conf; for an adopted cluster, for the server's command line.
    pub fn config(mut self, settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        self.config.extend(settings);
        self
    }

    /// The whole content of pg_hba.conf, instead of trust for everybody on this machine.
    pub fn hba(mut self, content: &str) -> Self {
        self.hba = Some(content.to_owned());
        self
    }

    /// Makes the cluster and starts it; panics, with its log, where that fails.
    pub fn start(self) -> Cluster {
        self.try_start().unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// Makes the cluster and starts it. It is ready when it takes connections, or, as a standby
    /// that takes none, when it is consistent.
    pub fn try_start(self) -> Result<Cluster, StartFailure> {
        let cluster = self.create();
        cluster.try_start()?;
        Ok(cluster)
    }

    /// Makes the cluster without starting it.
    pub fn create(self) -> Cluster {
        let folder = Folder::new();
        let socket = folder.path().join("s");
        std::fs::create_dir(&socket)
            .unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        own(&socket);
        let data = match &self.origin {
            Origin::Adopted(data) => data.clone(),
            Origin::Initdb | Origin::Empty => folder.path().join("data"),
        };
        let mut cluster = Cluster {
            installation: self.installation,
            data,
            port: free_port(),
            config: Vec::new(),
            server: Mutex::new(None),
            folder,
        };
        match self.origin {
            Origin::Initdb => {
                cluster.initdb(self.checksums, self.segment_size);
                cluster.write_config(&self.config, self.hba.as_deref());
            }
            Origin::Adopted(_) => {
                cluster.own_data();
                cluster.config = self.config;
            }
            Origin::Empty => cluster.config = self.config,
        }
        cluster
    }
}

impl Cluster {
    /// A new cluster of this version: superuser `postgres`, trust for everybody on this machine,
    /// UTF-8, locale C, fsync off (a killed server loses nothing by it, a machine would).
    pub fn builder(installation: &Installation) -> Builder {
        Builder {
            installation: installation.clone(),
            checksums: true,
            segment_size: None,
            config: Vec::new(),
            hba: None,
            origin: Origin::Initdb,
        }
    }

    /// A server for a data directory that something else made: one that was restored. The directory
    /// is handed to the server's user, tablespaces included, and stays when the cluster is dropped.
    pub fn adopt(installation: &Installation, data: &Path) -> Builder {
        Builder { origin: Origin::Adopted(data.to_path_buf()), ..Self::builder(installation) }
    }

    /// One whose data directory the caller fills before it starts.
    pub(super) fn empty(installation: &Installation) -> Cluster {
        Builder { origin: Origin::Empty, ..Self::builder(installation) }.create()
    }

    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    pub fn major(&self) -> u32 {
        self.installation.major
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The folder of the socket, as `host` in a connection string.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// The port, of the socket and on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// libpq keywords for the database `postgres`, through the socket.
    pub fn connection_string(&self) -> String {
        let socket = self.socket();
        format!("host={} port={} user=postgres dbname=postgres", socket.display(), self.port)
    }

    /// libpq keywords for the database `postgres`, through TCP.
    pub fn tcp_connection_string(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port)
    }

    /// What the server wrote into its log since it was made.
    pub fn log(&self) -> String {
        std::fs::read(self.folder.path().join("log"))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// A new folder beside the data directory that the server's user owns: for a tablespace, an
    /// archive, a spool. Removed with the cluster.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        own(&path);
        path
    }

    /// Writes a file in the data directory, which the server's user then owns.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.data.join(name);
        std::fs::write(&path, content)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        own(&path);
    }

    /// Adds settings to postgresql.auto.conf, where they win; `restart` or `reload` makes them count.
    pub fn configure(&self, settings: &[(&str, &str)]) {
        let path = self.data.join("postgresql.auto.conf");
        let now = std::fs::read_to_string(path).unwrap_or_default();
        self.write("postgresql.auto.conf", now + &lines(settings.iter().copied()));
    }

    /// Makes the server read its configuration again.
    pub fn reload(&self) {
        self.signal(Signal::HUP);
    }

    /// The process id of the server, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server().as_ref().map(Child::id)
    }

    /// Whether the server runs: it may have ended by itself.
    pub fn is_running(&self) -> bool {
        self.server().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    pub fn start(&self) {
        self.try_start().unwrap_or_else(|failure| panic!("{failure}"));
    }

    pub fn try_start(&self) -> Result<(), StartFailure> {
        assert!(!self.is_running(), "the server runs already");
        let mut child = self.launch();
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(StartFailure { status: Some(status), log: self.log() });
            }
            if self.is_ready(child.id()) {
                *self.server() = Some(child);
                return Ok(());
            }
            if Instant::now() > end {
                kill_cluster(child);
                return Err(StartFailure { status: None, log: self.log() });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the server without waiting until it is ready.
    pub fn start_without_waiting(&self) {
        assert!(!self.is_running(), "the server runs already");
        let child = self.launch();
        *self.server() = Some(child);
    }

    /// Waits until a server ends by itself, as `recovery_target_action = 'shutdown'` has it.
    pub fn wait_for_end(&self) -> ExitStatus {
        let mut ended = None;
        wait_until("the server ends", PATIENCE.as_secs(), || {
            ended = self.server().as_mut().and_then(|child| child.try_wait().ok().flatten());
            ended.is_some()
        });
        *self.server() = None;
        ended.unwrap_or_else(|| panic!("the server was not running"))
    }

    /// Stops the server in order, with a checkpoint.
    pub fn stop(&self) {
        self.end(Signal::INT);
    }

    /// Stops the server at once, without a checkpoint: the next start recovers.
    pub fn stop_immediately(&self) {
        self.end(Signal::QUIT);
    }

    /// Ends every process of the server with SIGKILL at the same moment, as a crash of the machine
    /// does (what the kernel already has is kept).
    pub fn kill(&self) {
        if let Some(child) = self.server().take() {
            kill_cluster(child);
        }
    }

    pub fn restart(&self) {
        self.stop();
        self.start();
    }

    /// Promotes a standby and waits until it takes writes.
    pub fn promote(&self) {
        assert_eq!(
            self.value("select pg_promote(true, 120)"),
            "t",
            "promotion failed: {}",
            self.log()
        );
    }

    /// A command of one of this version's programs, run as the server's user with the environment of
    /// libpq set to this cluster; `None` where this version has no such program.
    pub fn command(&self, program: &str) -> Option<Command> {
        Some(self.command_at(&self.installation.program(program)?))
    }

    /// The same for a program given by its path, `pgbench` of another version or `backstay`.
    pub fn command_at(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        as_server_user(&mut command).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("PGHOST", self.socket()).env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres").env("LC_ALL", "C");
        command
    }

    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        // A test that panicked with it in hand left nothing half-done.
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn initdb(&self, checksums: bool, segment_size: Option<u32>) {
        std::fs::create_dir(&self.data)
            .unwrap_or_else(|error| panic!("{}: {error}", self.data.display()));
        own(&self.data);
        let mut command = self.command_at(self.installation.bin.join("initdb"));
        command.arg("--pgdata").arg(&self.data);
        command.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
        command.arg("--no-sync");
        if checksums {
            command.arg("--data-checksums");
        } else if self.major() >= 18 {
            command.arg("--no-data-checksums");
        }
        if let Some(size) = segment_size {
            command.arg(format!("--wal-segsize={size}"));
        }
        run(command);
    }

    fn write_config(&self, config: &[(String, String)], hba: Option<&str>) {
        let path = self.data.join("postgresql.conf");
        let initial = std::fs::read_to_string(&path).unwrap_or_default();
        let (socket, port) = (self.socket().display().to_string(), self.port.to_string());
        let defaults = [
            ("unix_socket_directories", socket.as_str()),
            ("listen_addresses", "127.0.0.1"),
            ("port", &port),
            ("shared_buffers", "16MB"),
            ("max_connections", "40"),
            ("fsync", "off"),
            ("jit", "off"),
            ("log_line_prefix", "%m [%p] "),
        ];
        let config = config.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        self.write("postgresql.conf", initial + "\n" + &lines(defaults.into_iter().chain(config)));
        if let Some(content) = hba {
            self.write("pg_hba.conf", content);
        }
    }

    fn own_data(&self) {
        own(&self.data);
        let Ok(links) = std::fs::read_dir(self.data.join("pg_tblspc")) else { return };
        for link in links.flatten() {
            if let Ok(location) = std::fs::canonicalize(link.path()) {
                own(&location);
            }
        }
    }

    fn launch(&self) -> Child {
        let log = self.folder.path().join("log");
        let log = File::options().create(true).append(true).open(log);
        let log = log.unwrap_or_else(|error| panic!("the server's log: {error}"));
        let copy = log.try_clone().unwrap_or_else(|error| panic!("the server's log: {error}"));
        let mut command = self.command_at(self.installation.bin.join("postgres"));
        command.arg("-D").arg(&self.data).stdout(copy).stderr(log);
        // What a restored postgresql.conf says of the source's socket and port must not count.
        command.arg("-k").arg(self.socket()).arg("-p").arg(self.port.to_string());
        command.args(["-c", "listen_addresses=127.0.0.1"]);
        for (name, value) in &self.config {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // SIGQUIT ends all of it at once; SIGKILL would leave the children for a moment.
        spawn(command, Signal::QUIT).unwrap_or_else(|error| panic!("starting postgres: {error}"))
    }

    /// Line 8 of postmaster.pid is the server's own word on it.
    fn is_ready(&self, pid: u32) -> bool {
        let Ok(content) = std::fs::read_to_string(self.data.join("postmaster.pid")) else {
            return false;
        };
        let mut lines = content.lines();
        lines.next() == Some(pid.to_string().as_str())
            && matches!(lines.nth(6).map(str::trim), Some("ready" | "standby"))
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid().and_then(as_pid) {
            let _ = kill_process(pid, signal);
        }
    }

    fn end(&self, signal: Signal) {
        let Some(mut child) = self.server().take() else { return };
        if let Some(pid) = as_pid(child.id()) {
            let _ = kill_process(pid, signal);
        }
        let end = Instant::now() + PATIENCE;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                kill_cluster(child);
                panic!("the server did not stop:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // In this order no process is left that nobody waits for.
        let Some(mut child) = self.server().take() else { return };
        if let Some(pid) = as_pid(child.id()) {
            let _ = kill_process(pid, Signal::QUIT);
        }
        let end = Instant::now() + Duration::from_secs(10);
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                return kill_cluster(child);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Runs a command to its end and panics, with what it said, unless it succeeds.
pub(crate) fn run(mut command: Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn as_pid(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}

fn kill_cluster(mut postmaster: Child) {
    let signal = |id: u32, signal| as_pid(id).map(|pid| kill_process(pid, signal));
    // Held still first, so that it neither sees its children die nor starts new ones.
    signal(postmaster.id(), Signal::STOP);
    let backends = children(postmaster.id());
    for backend in &backends {
        signal(*backend, Signal::KILL);
    }
    signal(postmaster.id(), Signal::KILL);
    let _ = postmaster.wait();
    // Until the last one is gone, the shared memory is in use and a new server refuses to start.
    let end = Instant::now() + PATIENCE;
    while backends.iter().any(|backend| alive(*backend)) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lines of postgresql.conf.
fn lines<'a>(settings: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    settings.map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''"))).collect()
}

/// A loopback port that was free a moment ago, from below the range that the kernel hands out for
/// outgoing connections, so that it is still free at a restart.
fn free_port() -> u16 {
    use std::hash::{BuildHasher as _, RandomState};
    let start = RandomState::new().hash_one(std::process::id()) % 20_000;
    (0..20_000u64)
        .map(|step| 10_000 + ((start + step) % 20_000) as u16)
        .find(|port| is_free(*port).is_ok())
        .unwrap_or_else(|| panic!("no free loopback port"))
}

fn is_free(port: u16) -> io::Result<()> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(drop)
}
