//! Mounting and unmounting, and what stands in the way of it.

use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backstay_repo::{BrowseOptions, Browser, Repository, Snapshot};
use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::MountError;
use crate::attributes::Owner;
use crate::filesystem::{OnProblem, Snapshots};

const DEVICE: &str = "/dev/fuse";
/// Threads that answer the kernel, at least: some wait for the store.
const THREADS: usize = 6;
/// How long the end of a mount is waited for. It is a matter of milliseconds unless somebody still
/// has a file open.
const PATIENCE: Duration = Duration::from_secs(1);

/// How to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// New snapshots are there, and forgotten ones are gone, after so long at the latest.
    pub refresh: Duration,
    /// Whether other users may look in; then the permissions of the files count.
    pub allow_other: bool,
    pub browse: BrowseOptions,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(10),
            allow_other: false,
            browse: BrowseOptions::default(),
        }
    }
}

/// A mount that is there. It ends when this is dropped.
pub struct Mounted {
    path: PathBuf,
    session: Option<JoinHandle<io::Result<()>>>,
    unmounter: SessionUnmounter,
}

/// How a mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Unmounted,
    /// It is gone from its folder. Programs that had something open in it get errors when this
    /// process ends.
    InUse,
}

/// Mounts the snapshots of a repository over a folder. `snapshots` are those there are now.
pub fn mount(
    repository: Repository,
    snapshots: Vec<Snapshot>,
    folder: &Path,
    options: &MountOptions,
    on_problem: OnProblem,
) -> Result<Mounted, MountError> {
    let path = check_folder(folder)?;
    check_system()?;
    let owner = Owner {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    };
    let browser = Browser::new(repository, options.browse);
    let others = options.allow_other;
    let files = Snapshots::new(browser, snapshots, options.refresh, owner, others, on_problem);
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoAtime,
        MountOption::FSName("backstay".into()),
        MountOption::Subtype("backstay".into()),
    ];
    if others {
        config.acl = SessionACL::All;
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    config.n_threads =
        Some(std::thread::available_parallelism().map_or(1, usize::from).max(THREADS));
    config.clone_fd = true;
    let mut session =
        Session::new(files, &path, &config).map_err(|error| refused(&path, others, error))?;
    let unmounter = session.unmount_callable();
    let thread = std::thread::Builder::new().name("mount".into()).spawn(move || session.run());
    let session = thread.map_err(|error| refused(&path, others, error))?;
    Ok(Mounted { path, session: Some(session), unmounter })
}

impl Mounted {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether somebody else has unmounted it.
    pub fn has_ended(&self) -> bool {
        self.session.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Unmounts, whoever still uses it.
    pub fn end(mut self) -> Ended {
        self.unmount()
    }

    fn unmount(&mut self) -> Ended {
        if self.has_ended() {
            return Ended::Unmounted;
        }
        if let Err(error) = self.unmounter.unmount() {
            // Nobody who comes later shall find a mount behind which there is no program.
            tracing::debug!(%error, "unmounting at once is not possible");
            if let Err(error) = unmount(&self.path, UnmountFlags::DETACH) {
                tracing::warn!(%error, path = %self.path.display(), "could not unmount");
            }
        }
        let start = Instant::now();
        while !self.has_ended() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.has_ended() { Ended::Unmounted } else { Ended::InUse }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// The folder's real path, if something can be mounted over it.
fn check_folder(folder: &Path) -> Result<PathBuf, MountError> {
    let shown = folder.display();
    let refuse = |error: io::Error| {
        let (message, hint) = match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => {
                (format!("there is no folder {shown}"), format!("make one: `mkdir -p {shown}`"))
            }
            Some(Errno::NOTCONN) => (
                format!("{shown} is a mount whose program has ended"),
                format!("unmount it first: `umount {shown}`"),
            ),
            Some(Errno::NOTDIR) => {
                (format!("{shown} is no folder"), "name an empty folder".to_owned())
            }
            _ => (format!("{shown} cannot be used: {error}"), "name an empty folder".to_owned()),
        };
        MountError::new(message, hint).with_source(error)
    };
    let path = folder.canonicalize().map_err(refuse)?;
    if std::fs::read_dir(&path).map_err(refuse)?.next().is_some() {
        return Err(MountError::new(
            format!("{shown} is not empty, and what is in it would be hidden"),
            "name an empty folder",
        ));
    }
    Ok(path)
}

fn check_system() -> Result<(), MountError> {
    if !Path::new(DEVICE).exists() {
        return Err(MountError::new(
            format!("this system has no {DEVICE}"),
            "load the kernel's module with `modprobe fuse`; a container needs `--device /dev/fuse \
             --cap-add SYS_ADMIN`",
        ));
    }
    if !rustix::process::geteuid().is_root() && !has_helper() {
        return Err(MountError::new(
            "whoever is not root needs the program fusermount3 to mount, and it is not installed",
            "install the package fuse3, or run it as root",
        ));
    }
    Ok(())
}

/// Whether the program is there that mounts for users.
fn has_helper() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/bin", "/sbin", "/usr/bin"].map(PathBuf::from));
    let mut programs =
        folders.flat_map(|folder| ["fusermount3", "fusermount"].map(|p| folder.join(p)));
    std::env::var_os("FUSERMOUNT_PATH").is_some() || programs.any(|program| program.exists())
}

fn refused(path: &Path, others: bool, error: io::Error) -> MountError {
    let shown = path.display();
    let said = error.to_string();
    let said = said.trim();
    if said.contains("user_allow_other") {
        return MountError::new(
            "this system lets nobody but root open a mount to other users",
            "add the line `user_allow_other` to /etc/fuse.conf, or leave --allow-other out",
        )
        .with_source(error);
    }
    if others && error.kind() == io::ErrorKind::Unsupported {
        return MountError::new(
            "this kernel does not know access control lists on such a mount",
            "leave --allow-other out",
        )
        .with_source(error);
    }
    let hint = match Errno::from_io_error(&error) {
        Some(Errno::PERM | Errno::ACCESS) => {
            "a container needs `--device /dev/fuse --cap-add SYS_ADMIN`; elsewhere mount as the \
             owner of the folder"
        }
        // As root, and the system call was refused: there is no other way.
        Some(Errno::NOENT) => {
            "this process may not mount; a container needs `--cap-add SYS_ADMIN`, a user the \
             package fuse3"
        }
        _ => "see whether another folder works",
    };
    MountError::new(format!("could not mount over {shown}: {said}"), hint).with_source(error)
}
