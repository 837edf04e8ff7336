//! The folder in which a demo happens, and what has to be cleared away after it.

use std::cell::Cell;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use backstay_ops::{Error, ErrorKind};
use backstay_repo::{Environment, InitOptions, Repository, Secret};
use backstay_store::{Store, StoreOptions};

use crate::app::Result;
use crate::interrupt::Interrupt;

pub fn io(doing: &str, path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Failed, format!("could not {doing} {}: {error}", path.display()))
}

/// A folder of its own; removed when dropped by whoever made it.
pub struct Stage {
    folder: PathBuf,
    own: Cell<bool>,
}

impl Stage {
    /// A new folder with a short name: sockets in it must not have a path above 107 bytes.
    pub fn make() -> Result<Self> {
        let base = std::env::temp_dir();
        let base = if base.as_os_str().len() > 40 { PathBuf::from("/tmp") } else { base };
        for _ in 0..100 {
            let name = u32::from_le_bytes(Environment::system().random());
            let folder = base.join(format!("backstay-demo-{name:08x}"));
            match DirBuilder::new().mode(0o711).create(&folder) {
                Ok(()) => return Ok(Self { folder, own: Cell::new(true) }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io("make the folder", &folder, error)),
            }
        }
        Err(Error::new(ErrorKind::Failed, "no name for a temporary folder is free"))
    }

    pub fn in_folder(folder: &Path) -> Result<Self> {
        Ok(Self { folder: folder.to_owned(), own: Cell::new(false) })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn give_to(&self, uid: u32, gid: u32) -> Result<()> {
        chown(&self.folder, Some(uid), Some(gid)).map_err(|e| io("give away", &self.folder, e))
    }

    /// A repository and a key beside the data, and what a configuration says of them.
    pub fn repository(&self) -> Result<Repository> {
        let key: [u8; 32] = Environment::system().random();
        let path = self.path("demo.key");
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(&key))
            .map_err(|e| io("write", &path, e))?;
        let folder = self.path("repository");
        let url = format!("file://{}", folder.display());
        let store = Store::open(&url, &StoreOptions::default())?;
        let secret = Secret::key_file(key)?;
        let options = InitOptions { label: "demo".into(), ..InitOptions::default() };
        Ok(Repository::init(store, Environment::system(), &secret, options)?)
    }

    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text).map_err(|e| io("write", &path, e))?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))
            .map_err(|e| io("write", &path, e))?;
        Ok(path)
    }

    /// Stops whatever server still runs on a data directory in this folder.
    pub fn stop_servers(&self, bin: &Path, _major: u32) {
        for name in ["cluster", "restored"] {
            let directory = self.path(name);
            if !directory.join("postmaster.pid").exists() {
                continue;
            }
            let mut command = Command::new(bin.join("pg_ctl"));
            command.args(["stop", "-m", "immediate", "-w", "-t", "20", "-D"]).arg(&directory);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            if let Ok(meta) = fs::metadata(&directory)
                && rustix::process::geteuid().is_root()
            {
                use std::os::unix::fs::MetadataExt;
                use std::os::unix::process::CommandExt;
                command.uid(meta.uid()).gid(meta.gid());
            }
            // There is nothing else to try; the folder goes in any case.
            let _ = command.status();
        }
    }

    /// Removes the folder, if this is its maker.
    pub fn remove(&self) {
        if !self.own.replace(false) {
            return;
        }
        // A server that was just stopped may still remove files of its own at the same time.
        for _ in 0..20 {
            match fs::remove_dir_all(&self.folder) {
                Ok(()) => return,
                Err(error)
                    if error.kind() == std::io::ErrorKind::NotFound && !self.folder.exists() =>
                {
                    return;
                }
                Err(error) => {
                    tracing::debug!(folder = %self.folder.display(), %error, "not removed yet");
                }
            }
        }
        tracing::warn!(folder = %self.folder.display(), "could not be removed");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Waits for a child; asks it to stop when somebody asks us.
pub fn wait(child: &mut Child, interrupt: &Interrupt) -> std::io::Result<ExitStatus> {
    let mut asked = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if interrupt.is_requested() && !asked {
            asked = true;
            if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
                // It may have ended by itself meanwhile.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        // A child cannot be waited for with a time limit; the flag is looked at in between.
        std::thread::sleep(Duration::from_millis(50));
    }
}
