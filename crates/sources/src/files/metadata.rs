//! What the file system says of a path: stat, owners' names, extended attributes.
//!
//! Times are nanoseconds since 1970. Access control lists are extended attributes
//! (`system.posix_acl_access`, `system.posix_acl_default`) and are kept as such. The usual file has
//! no attributes, which costs one system call to learn.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;

use backstay_repo::{Metadata, Time};
use rustix::fs;
use rustix::io::Errno;

/// Names and values, sorted by name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    File,
    Directory,
    Symlink,
    Fifo,
    CharDevice,
    BlockDevice,
    Socket,
    /// Something that this program knows no name for.
    Unknown,
}

impl FileType {
    /// For people, with its article.
    pub fn describe(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Directory => "a directory",
            Self::Symlink => "a symbolic link",
            Self::Fifo => "a fifo",
            Self::CharDevice => "a character device",
            Self::BlockDevice => "a block device",
            Self::Socket => "a socket",
            Self::Unknown => "something unknown",
        }
    }
}

/// What `lstat` says. Sizes are bytes, but for `blocks`, which are of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub kind: FileType,
    /// `0o7777` bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u64,
    pub size: u64,
    pub blocks: u64,
    pub inode: u64,
    pub device: u64,
    /// Of a device file: which device.
    pub rdev: u64,
    pub mtime: Time,
    pub ctime: Time,
}

// The widths of these fields differ between architectures.
#[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
impl From<fs::Stat> for Stat {
    fn from(raw: fs::Stat) -> Self {
        let kind = match fs::FileType::from_raw_mode(raw.st_mode) {
            fs::FileType::RegularFile => FileType::File,
            fs::FileType::Directory => FileType::Directory,
            fs::FileType::Symlink => FileType::Symlink,
            fs::FileType::Fifo => FileType::Fifo,
            fs::FileType::CharacterDevice => FileType::CharDevice,
            fs::FileType::BlockDevice => FileType::BlockDevice,
            fs::FileType::Socket => FileType::Socket,
            _ => FileType::Unknown,
        };
        Self {
            kind,
            mode: raw.st_mode as u32 & 0o7777,
            uid: raw.st_uid,
            gid: raw.st_gid,
            links: raw.st_nlink as u64,
            size: raw.st_size as u64,
            blocks: raw.st_blocks as u64,
            inode: raw.st_ino as u64,
            device: raw.st_dev as u64,
            rdev: raw.st_rdev as u64,
            mtime: Time { seconds: raw.st_mtime as i64, nanos: raw.st_mtime_nsec as u32 },
            ctime: Time { seconds: raw.st_ctime as i64, nanos: raw.st_ctime_nsec as u32 },
        }
    }
}

impl Stat {
    /// Of an open file.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        Ok(fs::fstat(fd)?.into())
    }

    /// Of a name in an open directory; a symbolic link is not followed.
    pub fn at(directory: impl AsFd, name: &CStr) -> io::Result<Self> {
        Ok(fs::statat(directory, name, fs::AtFlags::SYMLINK_NOFOLLOW)?.into())
    }

    /// The same file with, as far as its times tell, the same content.
    pub fn is_same_content(&self, other: &Self) -> bool {
        (self.device, self.inode, self.size, self.mtime, self.ctime)
            == (other.device, other.inode, other.size, other.mtime, other.ctime)
    }

    /// A file with fewer blocks than its size asks for.
    pub fn is_sparse(&self) -> bool {
        self.kind == FileType::File && self.blocks.saturating_mul(512) < self.size
    }

    /// As an entry carries it.
    pub fn metadata(&self, names: &Names, xattrs: Xattrs) -> Metadata {
        Metadata {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            user: names.user(self.uid).to_owned(),
            group: names.group(self.gid).to_owned(),
            mtime: self.mtime,
            ctime: self.ctime,
            inode: self.inode,
            device: self.device,
            xattrs,
        }
    }
}

/// The names of users and groups by id.
///
/// Read from the machine's own lists instead of asked from the C library: a static binary has no
/// way into the name service. An id that is not there has an empty name and is kept as a number.
#[derive(Debug, Default)]
pub struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Of this machine.
    pub fn load() -> Self {
        Self { users: Self::table("/etc/passwd"), groups: Self::table("/etc/group") }
    }

    pub fn user(&self, id: u32) -> &str {
        self.users.get(&id).map_or("", String::as_str)
    }

    pub fn group(&self, id: u32) -> &str {
        self.groups.get(&id).map_or("", String::as_str)
    }

    fn table(path: &str) -> HashMap<u32, String> {
        // A machine without the list (a container from scratch) has no names to tell.
        let text = std::fs::read(path).unwrap_or_default();
        let mut table = HashMap::new();
        for line in String::from_utf8_lossy(&text).lines() {
            let mut fields = line.split(':');
            if let (Some(name), Some(_), Some(id)) = (fields.next(), fields.next(), fields.next())
                && let Ok(id) = id.parse()
            {
                // The first name of an id is the one that `ls` shows.
                table.entry(id).or_insert_with(|| name.to_owned());
            }
        }
        table
    }
}

/// The extended attributes of an open file or directory. Empty where the file system has none.
pub fn xattrs_of(fd: impl AsFd) -> io::Result<Xattrs> {
    let fd = fd.as_fd();
    collect(|buffer| fs::flistxattr(fd, buffer), |name, buffer| fs::fgetxattr(fd, name, buffer))
}

/// The extended attributes of a path that must not be opened: a link, a fifo, a device. The path
/// itself is not followed.
pub fn xattrs_at(path: &CStr) -> io::Result<Xattrs> {
    collect(|buffer| fs::llistxattr(path, buffer), |name, buffer| fs::lgetxattr(path, name, buffer))
}

fn collect(
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&CStr, &mut [u8]) -> Result<usize, Errno>,
) -> io::Result<Xattrs> {
    let mut short = [0; 256];
    let mut long = Vec::new();
    let names = match list(&mut short) {
        Ok(0) => return Ok(Vec::new()),
        Ok(length) => &short[..length],
        Err(Errno::RANGE) => grow(&list, &mut long)?,
        Err(error) if has_none(error) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    let mut buffer = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        match grow(&|buffer: &mut [u8]| get(name, buffer), &mut buffer) {
            Ok(value) => found.push((name.to_bytes().to_vec(), value.to_vec())),
            // Removed since it was listed.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Calls with a buffer that grows until the answer fits. The kernel allows 64 KiB.
fn grow<'b>(
    call: &dyn Fn(&mut [u8]) -> Result<usize, Errno>,
    buffer: &'b mut Vec<u8>,
) -> Result<&'b [u8], Errno> {
    let mut size = buffer.len().max(1024);
    loop {
        buffer.resize(size, 0);
        match call(buffer) {
            Ok(length) => return Ok(&buffer[..length]),
            Err(Errno::RANGE) if size < 1 << 20 => size *= 4,
            Err(error) => return Err(error),
        }
    }
}

fn has_none(error: Errno) -> bool {
    error == Errno::NOTSUP || error == Errno::OPNOTSUPP || error == Errno::NOSYS
}
