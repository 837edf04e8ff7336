//! A small file system of its own, to run out of space in.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A tmpfs of a given size. Unmounted and removed when dropped.
#[derive(Debug)]
pub struct Space {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Space {
    /// A file system that holds `megabytes` MiB, or `None` where mounting is not allowed (it takes
    /// root, and some containers refuse even that).
    pub fn new(megabytes: u64) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("backstay-space-").tempdir();
        let folder = folder.unwrap_or_else(|error| panic!("making a folder to mount on: {error}"));
        let options = CString::new(format!("size={megabytes}m,mode=0755")).ok()?;
        mount("backstay-test", folder.path(), "tmpfs", MountFlags::empty(), options.as_c_str())
            .ok()?;
        Some(Self { path: folder.path().to_path_buf(), _folder: folder })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is left, in bytes.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.path)
            .unwrap_or_else(|error| panic!("space in {}: {error}", self.path.display()));
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // Detached: a file that a failing test still holds open must not keep it mounted.
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}
