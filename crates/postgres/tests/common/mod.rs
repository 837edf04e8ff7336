//! A cluster that archives into a repository, and what the tests do with both.
//!
//! `archive_command` and `restore_command` run this very test binary, told by its environment to be
//! [`helper`]: no other program has to be built first, and what runs is the library under test.
#![allow(clippy::unwrap_used)] // all of this is tests
#![allow(dead_code)] // each test binary uses a part of it

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use backstay_postgres::control::ControlFile;
use backstay_postgres::wal::{self, FetchOptions, FetchOutcome, PushOptions, RecoveryTarget};
use backstay_postgres::{
    Backup, BackupOptions, Method, PostgresError, ReceiveOptions, RestoreOptions, Restored, Slot,
    Source, backup, receive, restore,
};
use backstay_repo::{
    Compression, Environment, InitOptions, OpenOptions, Repository, Secret, Snapshot,
};
use backstay_testing::postgres::{Cluster, Installation};
use backstay_testing::{own, wait_until};

/// A running cluster, its repository, and a folder for restores.
pub struct Fixture {
    pub cluster: Cluster,
    pub repo: Repository,
    pub folder: tempfile::TempDir,
    pub installation: Installation,
    helper: PathBuf,
}

/// What a cluster is to be like.
#[derive(Default, Clone, Copy)]
pub struct Shape {
    pub no_checksums: bool,
    pub segment_mib: Option<u32>,
}

pub fn secret() -> Secret {
    Secret::key_file(vec![7; 32]).unwrap()
}

pub fn open(directory: &Path) -> Repository {
    let store = backstay_store::Store::open(
        &format!("file://{}", directory.display()),
        &backstay_store::StoreOptions::default(),
    )
    .unwrap();
    Repository::open(store, Environment::system(), &secret(), OpenOptions::default()).unwrap()
}

impl Fixture {
    pub fn new(installation: &Installation) -> Self {
        Self::with(installation, Shape::default(), &[])
    }

    pub fn with(installation: &Installation, shape: Shape, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("backstay-pg-").tempdir().unwrap();
        // The server's user has to get to the repository, the helper and the restored directories.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let directory = folder.path().join("repo");
        std::fs::create_dir(&directory).unwrap();
        let store = backstay_store::Store::open(
            &format!("file://{}", directory.display()),
            &backstay_store::StoreOptions::default(),
        )
        .unwrap();
        let repo =
            Repository::init(store, Environment::system(), &secret(), InitOptions::default())
                .unwrap();
        own(&directory);
        let helper = folder.path().join("helper");
        std::fs::copy(std::env::current_exe().unwrap(), &helper).unwrap();
        let archive = command(&helper, &directory, "push", "%f", "%p");
        let mut all = vec![
            ("archive_mode", "on"),
            ("archive_command", archive.as_str()),
            ("wal_level", "replica"),
            ("max_wal_senders", "3"),
            ("autovacuum", "off"),
        ];
        all.extend_from_slice(settings);
        let mut builder =
            Cluster::builder(installation).config(&all).checksums(!shape.no_checksums);
        if let Some(size) = shape.segment_mib {
            builder = builder.segment_size(size);
        }
        let cluster = builder.start();
        Self { cluster, repo, folder, installation: installation.clone(), helper }
    }

    /// Another repository, to which the cluster archives as well from here on.
    pub fn second(&self) -> Repository {
        let directory = self.folder.path().join("second");
        std::fs::create_dir(&directory).unwrap();
        let store = backstay_store::Store::open(
            &format!("file://{}", directory.display()),
            &backstay_store::StoreOptions::default(),
        )
        .unwrap();
        let repo =
            Repository::init(store, Environment::system(), &secret(), InitOptions::default())
                .unwrap();
        own(&directory);
        let push = |repo: &Path| command(&self.helper, repo, "push", "%f", "%p");
        let both = format!("{} && {}", push(&self.repo_directory()), push(&directory));
        self.archive_with(&both);
        repo
    }

    /// From here on the cluster archives to the first repository alone.
    pub fn archive_to_first(&self) {
        self.archive_with(&command(&self.helper, &self.repo_directory(), "push", "%f", "%p"));
    }

    pub fn archive_with(&self, command: &str) {
        self.cluster.configure(&[("archive_command", command)]);
        self.cluster.reload();
        // The archiver reads its settings when it comes to it.
        wait_until("the server has the new archive_command", 30, || {
            self.cluster.value("show archive_command") == command
        });
    }

    pub fn repo_directory(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    pub fn source(&self) -> Source {
        Source {
            name: "main".to_owned(),
            connection: self.cluster.connection_string(),
            data_directory: None,
        }
    }

    pub fn options(&self) -> BackupOptions {
        BackupOptions {
            workers: 2,
            compression: Compression::Lz4,
            archive_timeout: Duration::from_secs(60),
            ..BackupOptions::default()
        }
    }

    pub fn backup(&self) -> Backup {
        backup(&self.repo, &self.source(), &self.options())
            .unwrap_or_else(|error| panic!("{error:?}\n{}", self.cluster.log()))
    }

    pub fn archive_command(&self) -> String {
        command(&self.helper, &self.repo_directory(), "push", "%f", "%p")
    }

    pub fn restore_command(&self) -> String {
        command(&self.helper, &self.repo_directory(), "fetch", "%f", "%p")
    }

    /// Options for a restore to a directory of this name in the folder.
    pub fn restoring(&self, name: &str, target: RecoveryTarget) -> RestoreOptions {
        let mut options =
            RestoreOptions::new(self.folder.path().join(name), self.restore_command());
        options.target = target;
        options.workers = 2;
        options
    }

    pub fn restore(&self, snapshot: &Snapshot, options: &RestoreOptions) -> Restored {
        restore(&self.repo, snapshot, options).unwrap_or_else(|error| panic!("{error:?}"))
    }

    pub fn refused(&self, snapshot: &Snapshot, options: &RestoreOptions) -> PostgresError {
        match restore(&self.repo, snapshot, options) {
            Ok(_) => panic!("this should have been refused"),
            Err(error) => error,
        }
    }

    /// A server on a restored directory, once it takes writes.
    pub fn promoted(&self, options: &RestoreOptions) -> Cluster {
        let cluster = self.adopt(&options.to);
        wait_until("the restored server takes writes", 60, || {
            assert!(cluster.is_running(), "{}", cluster.log());
            cluster.value("select pg_is_in_recovery()") == "f"
        });
        cluster
    }

    pub fn adopt(&self, data: &Path) -> Cluster {
        Cluster::adopt(&self.installation, data).start()
    }

    /// Waits until all WAL written so far is in the archive.
    pub fn archived(&self, cluster: &Cluster) {
        let name = cluster.switch_wal();
        let system = ControlFile::read(cluster.data()).unwrap().system_identifier;
        let archive = self.repo.archive(system);
        wait_until(&format!("{name} is archived"), 60, || archive.contains(&name).unwrap());
    }

    /// Runs a part of the work in another process, which a failpoint can kill.
    pub fn elsewhere(&self, work: &str, failpoint: &str, snapshot: &str, to: &Path) -> ExitStatus {
        self.process(work, failpoint, snapshot, to).output().unwrap().status
    }

    /// The same, not started yet.
    pub fn process(&self, work: &str, failpoint: &str, snapshot: &str, to: &Path) -> Command {
        let mut command = Command::new(&self.helper);
        command
            .args(["--exact", "common::helper", "--nocapture"])
            .env("BACKSTAY_TEST_WORK", work)
            .env("BACKSTAY_TEST_REPO", self.repo_directory())
            .env("BACKSTAY_TEST_NAME", snapshot)
            .env("BACKSTAY_TEST_PATH", to)
            .env("BACKSTAY_TEST_CONNECTION", self.cluster.connection_string())
            .env("BACKSTAY_TEST_RESTORE", self.restore_command())
            .env("BACKSTAY_FAILPOINT", failpoint);
        command
    }
}

fn command(helper: &Path, repo: &Path, work: &str, name: &str, path: &str) -> String {
    format!(
        "BACKSTAY_TEST_WORK={work} BACKSTAY_TEST_REPO={} BACKSTAY_TEST_NAME={name} \
         BACKSTAY_TEST_PATH={path} {} --exact common::helper",
        repo.display(),
        helper.display()
    )
}

/// Not a test: what the commands of the servers, and the tests of failpoints, run.
#[test]
fn helper() {
    let Ok(work) = std::env::var("BACKSTAY_TEST_WORK") else { return };
    let get = |name: &str| std::env::var(format!("BACKSTAY_TEST_{name}")).unwrap_or_default();
    let repo = open(Path::new(&get("REPO")));
    let (name, path) = (get("NAME"), PathBuf::from(get("PATH")));
    let code = match work.as_str() {
        "push" => push(&repo, &name, &path),
        "fetch" => fetch(&repo, &name, &path),
        "backup" | "wire-backup" => {
            let source = Source {
                name: "main".to_owned(),
                connection: get("CONNECTION"),
                data_directory: None,
            };
            let method = if work == "backup" { Method::Auto } else { Method::Wire };
            let options = BackupOptions { method, ..BackupOptions::default() };
            backup(&repo, &source, &options).unwrap();
            0
        }
        "restore" => {
            let mut options = RestoreOptions::new(path, get("RESTORE"));
            options.delta = true;
            restore(&repo, &repo.find_snapshot(&name).unwrap(), &options).unwrap();
            0
        }
        "receive" => {
            let source = Source {
                name: "main".to_owned(),
                connection: get("CONNECTION"),
                data_directory: None,
            };
            let slot = Slot { name, create: true };
            let mut options = ReceiveOptions::new("backstay");
            options.slot = Some(slot);
            options.every = Duration::from_millis(20);
            receive(&[repo], &source, &options).unwrap();
            0
        }
        other => panic!("{other}"),
    };
    std::process::exit(code);
}

fn push(repo: &Repository, name: &str, path: &Path) -> i32 {
    // The server runs its commands in its data directory.
    match wal::push(std::slice::from_ref(repo), path, &PushOptions::default()) {
        Ok(_) => 0,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "push {name}: {error}");
            1
        }
    }
}

fn fetch(repo: &Repository, name: &str, path: &Path) -> i32 {
    let system = ControlFile::read(Path::new(".")).unwrap().system_identifier;
    let options = FetchOptions {
        system_identifier: system,
        prefetch: 0,
        spool: None,
        origin: "here".to_owned(),
        slices: true,
        retry_for: Duration::ZERO,
    };
    match wal::fetch(std::slice::from_ref(repo), name, path, &options) {
        FetchOutcome::Complete => 0,
        FetchOutcome::Absent => 1,
        FetchOutcome::Failed(error) => {
            let _ = writeln!(std::io::stderr(), "fetch {name}: {error}");
            255
        }
    }
}
