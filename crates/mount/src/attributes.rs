//! What `stat` says of an entry.

use std::time::{Duration, SystemTime};

use backstay_repo::{Body, Entry, EntryKind, Time};
use fuser::{FileAttr, FileType, INodeNo};
use jiff::Timestamp;

/// What a read is best made of. Bytes.
const BLOCK: u32 = 128 << 10;

/// Who the folders of the mount belong to.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

pub fn file_type(kind: &EntryKind) -> FileType {
    match kind {
        EntryKind::File(_) | EntryKind::Hardlink { .. } => FileType::RegularFile,
        EntryKind::Directory => FileType::Directory,
        EntryKind::Symlink { .. } => FileType::Symlink,
        EntryKind::Fifo => FileType::NamedPipe,
        EntryKind::CharDevice { .. } => FileType::CharDevice,
        EntryKind::BlockDevice { .. } => FileType::BlockDevice,
    }
}

/// A moment, as near as the system can tell it.
fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos.min(999_999_999)));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Of an entry that is no second name; `links` is how many names it has.
pub fn of_entry(entry: &Entry, number: u64, links: u32) -> FileAttr {
    let meta = &entry.meta;
    let size = match &entry.kind {
        EntryKind::Symlink { target } => target.len() as u64,
        _ => entry.size(),
    };
    // What lies in leaves is not looked up for this.
    let data = match &entry.kind {
        EntryKind::File(content) => match &content.body {
            body @ (Body::Extents(_) | Body::Member(_)) => {
                body.extents().iter().map(|e| u64::from(e.length)).sum()
            }
            _ => content.size,
        },
        _ => 0,
    };
    let rdev = match entry.kind {
        EntryKind::CharDevice { rdev } | EntryKind::BlockDevice { rdev } => rdev,
        _ => 0,
    };
    let mtime = system_time(meta.mtime);
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: u64::min(data, size).div_ceil(512),
        // Snapshots do not keep when a file was read.
        atime: mtime,
        mtime,
        ctime: system_time(meta.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(&entry.kind),
        perm: (meta.mode & 0o7777) as u16,
        nlink: links,
        uid: meta.uid,
        gid: meta.gid,
        // The low half of the number has all of it, for the major numbers that are in use.
        rdev: rdev as u32,
        blksize: BLOCK,
        flags: 0,
    }
}

/// Of what lies above the files.
pub fn of_upper(kind: FileType, size: u64, time: Timestamp, number: u64, owner: Owner) -> FileAttr {
    let nanos = time.subsec_nanosecond();
    let seconds = time.as_second() - i64::from(nanos < 0);
    let nanos = if nanos < 0 { nanos + 1_000_000_000 } else { nanos };
    let time = system_time(Time { seconds, nanos: nanos.unsigned_abs() });
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: SystemTime::UNIX_EPOCH,
        kind,
        perm: if kind == FileType::Symlink { 0o777 } else { 0o555 },
        // One: nobody may take it for the number of folders inside.
        nlink: 1,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_1970_and_beyond_all_time() {
        let at = |seconds, nanos| system_time(Time { seconds, nanos });
        let epoch = SystemTime::UNIX_EPOCH;
        assert_eq!(at(5, 7), epoch + Duration::new(5, 7));
        assert_eq!(at(-5, 7), epoch - Duration::from_secs(5) + Duration::from_nanos(7));
        for seconds in [i64::MIN, i64::MAX] {
            let _ = at(seconds, u32::MAX);
        }
        let early: Timestamp = "1969-12-31T23:59:58.25Z".parse().unwrap();
        let owner = Owner { uid: 1, gid: 2 };
        let attributes = of_upper(FileType::Directory, 0, early, 9, owner);
        assert_eq!(attributes.mtime, epoch - Duration::from_millis(1750));
    }
}
