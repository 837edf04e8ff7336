//! What a tree says of one file, directory, link or device.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::ObjectId;

/// Files up to this size are stored inside the tree. Bytes.
pub const INLINE_LIMIT: u64 = 4096;

/// One path and all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Relative to the root of the tree, slash-separated, without a leading slash; raw bytes.
    #[serde(with = "bytes_field")]
    pub path: Vec<u8>,
    pub meta: Metadata,
    pub kind: EntryKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    File(FileContent),
    Directory,
    Symlink {
        #[serde(with = "bytes_field")]
        target: Vec<u8>,
    },
    /// Another name of a file that comes earlier in the tree.
    Hardlink {
        #[serde(with = "bytes_field")]
        to: Vec<u8>,
    },
    Fifo,
    CharDevice {
        rdev: u64,
    },
    BlockDevice {
        rdev: u64,
    },
}

/// POSIX metadata. Access control lists are the attributes `system.posix_acl_*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Permission bits with set-user-id, set-group-id and sticky: `0o7777`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Empty where the id has no name.
    pub user: String,
    pub group: String,
    pub mtime: Time,
    pub ctime: Time,
    pub inode: u64,
    pub device: u64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A moment since 1970-01-01 00:00:00 UTC.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Time {
    pub seconds: i64,
    /// 0..1_000_000_000
    pub nanos: u32,
}

/// What a file is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileContent {
    /// Bytes, holes included.
    pub size: u64,
    pub body: Body,
}

/// Where a file's bytes are. Ranges that no extent covers are holes and read as zeros.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// All of it, right here.
    Inline(#[serde(with = "bytes_field")] Vec<u8>),
    /// Sorted by file offset, without overlap.
    Extents(Vec<Extent>),
    /// Leaves of the extent map, in order.
    Leaves(Vec<LeafRef>),
    /// All of it, in a chunk that it shares with other small files.
    Member(Box<Member>),
}

/// A small file among others in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub extent: Extent,
    /// Of the content of this file alone: the first half of the id that it would have as a chunk of
    /// its own. By this it is found again when it is read again, renamed or copied.
    pub hash: [u8; 16],
}

/// A range of a file that lies in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Of the range in the file. Bytes.
    pub offset: u64,
    pub length: u32,
    pub chunk: ObjectId,
    /// Of the range in the chunk.
    pub chunk_offset: u32,
}

/// A leaf of an extent map, stored as a chunk of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafRef {
    pub id: ObjectId,
    /// The first byte of the file that the leaf is about; its own offsets count from here, so that
    /// equal regions share a leaf wherever they lie.
    pub offset: u64,
}

impl Body {
    /// The extents that the entry carries itself; none where they lie in leaves.
    pub fn extents(&self) -> &[Extent] {
        match self {
            Self::Extents(extents) => extents,
            Self::Member(member) => std::slice::from_ref(&member.extent),
            Self::Inline(_) | Self::Leaves(_) => &[],
        }
    }
}

impl FileContent {
    pub fn empty() -> Self {
        Self { size: 0, body: Body::Inline(Vec::new()) }
    }

    /// For files up to [`INLINE_LIMIT`].
    pub fn inline(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self { size: bytes.len() as u64, body: Body::Inline(bytes) }
    }
}

impl Entry {
    /// The path for people: what is not UTF-8 is shown as U+FFFD.
    pub fn display_path(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }

    /// Size of a file's content; 0 for everything else. Bytes.
    pub fn size(&self) -> u64 {
        match &self.kind {
            EntryKind::File(content) => content.size,
            _ => 0,
        }
    }

    /// Whether this file, in another repository, is the same state of a file with this size and
    /// metadata. One pass may read a file for one repository a moment after another one took over
    /// what it knew: then their times differ, and so may their content.
    pub(crate) fn may_stand_for(&self, size: u64, meta: &Metadata) -> bool {
        let this = &self.meta;
        self.size() == size
            && (this.mtime, this.ctime, this.inode) == (meta.mtime, meta.ctime, meta.inode)
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.kind, EntryKind::Directory)
    }
}

/// The order of paths in a tree: `/` sorts before every other byte, so that a directory is directly
/// followed by all that is below it.
pub fn compare_paths(a: &[u8], b: &[u8]) -> Ordering {
    let common = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    match (a.get(common), b.get(common)) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(x), Some(y)) => rank(*x).cmp(&rank(*y)),
    }
}

fn rank(byte: u8) -> u16 {
    if byte == b'/' { 0 } else { u16::from(byte) + 1 }
}

/// Byte strings as one run instead of a sequence of numbers.
mod bytes_field {
    use serde::de::Visitor;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, v: &[u8]) -> Result<Vec<u8>, E> {
                Ok(v.to_vec())
            }

            fn visit_byte_buf<E>(self, v: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(v)
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_directly_followed_by_what_is_below_it() {
        let mut paths: Vec<&[u8]> = vec![b"a-b", b"a", b"a/z", b"a.c", b"a/b/c", b"a/b"];
        paths.sort_by(|a, b| compare_paths(a, b));
        assert_eq!(paths, vec![&b"a"[..], b"a/b", b"a/b/c", b"a/z", b"a-b", b"a.c"]);
    }
}
