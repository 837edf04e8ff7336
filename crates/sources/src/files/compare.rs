//! Comparing two trees in everything a restore has to bring back.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_repo::{Beneath, Result, compare_paths};
use rustix::fs::OFlags;

use super::content::{data_ranges, read_at};
use super::metadata::{FileType, Stat, xattrs_of};
use super::walk::{Walk, WalkOptions, Walked};

/// What is to be the same.
#[derive(Debug, Clone, Copy)]
pub struct CompareOptions {
    /// User and group ids.
    pub owner: bool,
    /// Where files have holes, in blocks of 64 KiB.
    pub holes: bool,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self { owner: true, holes: true }
    }
}

/// A path that is not the same in both trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Relative to the roots of both trees; empty for these themselves.
    pub path: Vec<u8>,
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", String::from_utf8_lossy(&self.path), self.what)
    }
}

/// Holes smaller than this may come and go with the file system. Bytes.
const HOLE: u64 = 64 << 10;

/// All differences between the directories `a` and `b`: names, types, content, modes, owners, times
/// of change, extended attributes, links, devices, holes. Empty when they are alike.
pub fn compare_trees(a: &Path, b: &Path, options: CompareOptions) -> Result<Vec<Difference>> {
    let (mut left, mut right) = (Side::new(a)?, Side::new(b)?);
    let mut differences = Vec::new();
    let (mut x, mut y) = (left.next(&mut differences), right.next(&mut differences));
    loop {
        let order = match (&x, &y) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(x), Some(y)) => compare_paths(&x.path, &y.path),
        };
        let mut note = |path: &[u8], what: String| {
            differences.push(Difference { path: path.to_vec(), what });
        };
        match (&x, &y) {
            (Some(x), _) if order.is_lt() => note(&x.path, format!("only in {}", a.display())),
            (_, Some(y)) if order.is_gt() => note(&y.path, format!("only in {}", b.display())),
            (Some(x), Some(y)) => match left.compare(&mut right, x, y, options) {
                Ok(found) => found.into_iter().for_each(|what| note(&x.path, what)),
                Err(error) => note(&x.path, format!("cannot be compared: {error}")),
            },
            _ => {}
        }
        if order.is_le() {
            x = left.next(&mut differences);
        }
        if order.is_ge() {
            y = right.next(&mut differences);
        }
    }
    Ok(differences)
}

struct Found {
    path: Vec<u8>,
    full: Vec<u8>,
    stat: Stat,
}

struct Side {
    root: Arc<Beneath>,
    /// Of the tree, relative to `/`.
    base: Vec<u8>,
    walk: Walk,
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

impl Side {
    fn new(path: &Path) -> Result<Self> {
        let failed = |error| backstay_repo::RepoError::io("read", path, error);
        let path = std::fs::canonicalize(path).map_err(failed)?;
        let root = Arc::new(Beneath::root().map_err(failed)?);
        let paths: Vec<PathBuf> = vec![path.clone()];
        let walk = Walk::below(root.clone(), &paths, WalkOptions::default())?;
        let base = path.as_os_str().as_encoded_bytes();
        let base = base.strip_prefix(b"/").unwrap_or(base).to_vec();
        Ok(Self { root, base, walk, links: HashMap::new(), buffer: vec![0; 1 << 18] })
    }

    fn next(&mut self, differences: &mut Vec<Difference>) -> Option<Found> {
        loop {
            let (full, found) = match self.walk.next()? {
                Walked::Entry { path, stat, .. } => (path, Ok(stat)),
                Walked::Problem { path, what } => (path, Err(what)),
                // Neither side can have it from a restore.
                Walked::Skipped { .. } => continue,
            };
            let Some(below) = full.strip_prefix(self.base.as_slice()) else { continue };
            let path = match below.split_first() {
                None => Vec::new(),
                Some((b'/', rest)) => rest.to_vec(),
                Some(_) if self.base.is_empty() => below.to_vec(),
                Some(_) => continue,
            };
            match found {
                Ok(stat) => return Some(Found { path, full, stat }),
                Err(what) => differences.push(Difference { path, what }),
            }
        }
    }

    /// The first name of a file with several in this tree; none for that name itself.
    fn first_name(&mut self, found: &Found) -> Option<Vec<u8>> {
        if found.stat.links < 2 || found.stat.kind == FileType::Directory {
            return None;
        }
        let id = (found.stat.device, found.stat.inode);
        let first = self.links.entry(id).or_insert_with(|| found.path.clone());
        (*first != found.path).then(|| first.clone())
    }

    fn open(&self, found: &Found, flags: OFlags) -> io::Result<File> {
        Ok(self.root.open_below(&found.full, flags)?.into())
    }

    fn compare(
        &mut self,
        other: &mut Self,
        x: &Found,
        y: &Found,
        options: CompareOptions,
    ) -> io::Result<Vec<String>> {
        let mut out = Vec::new();
        let (a, b) = (&x.stat, &y.stat);
        if a.kind != b.kind {
            return Ok(vec![format!("{} against {}", a.kind.describe(), b.kind.describe())]);
        }
        let mut differ = |what: &str, a: String, b: String| {
            if a != b {
                out.push(format!("{what} {a} against {b}"));
            }
        };
        if a.kind != FileType::Symlink {
            differ("mode", format!("{:o}", a.mode), format!("{:o}", b.mode));
        }
        differ("time", format!("{:?}", a.mtime), format!("{:?}", b.mtime));
        if options.owner {
            differ("owner", format!("{}:{}", a.uid, a.gid), format!("{}:{}", b.uid, b.gid));
        }
        let (first_a, first_b) = (self.first_name(x), other.first_name(y));
        differ("first name", format!("{first_a:?}"), format!("{first_b:?}"));
        if matches!(a.kind, FileType::CharDevice | FileType::BlockDevice) {
            differ("device", a.rdev.to_string(), b.rdev.to_string());
        }
        if a.kind == FileType::File {
            differ("size", a.size.to_string(), b.size.to_string());
        }
        match a.kind {
            FileType::Symlink => {
                let (a, b) = (self.target(x)?, other.target(y)?);
                differ("target", format!("{a:?}"), format!("{b:?}"));
            }
            FileType::File | FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let (fa, fb) = (self.open(x, flags)?, other.open(y, flags)?);
                let (xa, xb) = (xattrs_of(&fa)?, xattrs_of(&fb)?);
                differ("attributes", format!("{xa:?}"), format!("{xb:?}"));
                if a.kind == FileType::File && a.size == b.size {
                    if let Some(at) =
                        first_difference((&fa, &mut self.buffer), (&fb, &mut other.buffer))?
                    {
                        out.push(format!("content differs from byte {at} on"));
                    }
                    if options.holes {
                        let (ha, hb) = (holes(&fa, a.size)?, holes(&fb, b.size)?);
                        if ha != hb {
                            out.push(format!("holes {ha:?} against {hb:?}"));
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(out)
    }

    fn target(&self, found: &Found) -> io::Result<Vec<u8>> {
        let cut = found.full.iter().rposition(|byte| *byte == b'/');
        let (above, name) = match cut {
            Some(at) => found.full.split_at(at),
            None => (&[][..], found.full.as_slice()),
        };
        let name = name.strip_prefix(b"/").unwrap_or(name);
        let above = self.root.open_below(above, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(rustix::fs::readlinkat(above, name, Vec::new())?.into_bytes())
    }
}

/// The files with a buffer for each, both of the same size.
fn first_difference(
    (a, x): (&File, &mut [u8]),
    (b, y): (&File, &mut [u8]),
) -> io::Result<Option<u64>> {
    let mut at = 0;
    loop {
        let (read, other) = (read_at(a, at, x)?, read_at(b, at, y)?);
        let (x, y) = (x.get(..read).unwrap_or_default(), y.get(..other).unwrap_or_default());
        if x != y {
            let common = x.iter().zip(y).take_while(|(x, y)| x == y).count();
            return Ok(Some(at + common as u64));
        }
        if read == 0 {
            return Ok(None);
        }
        at += read as u64;
    }
}

/// Whole blocks of [`HOLE`] bytes without data.
fn holes(file: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    let mut holes = Vec::new();
    let Some(ranges) = data_ranges(file, size)? else { return Ok(holes) };
    let mut end = 0_u64;
    for data in ranges.into_iter().chain(std::iter::once(size..size)) {
        let hole = end.next_multiple_of(HOLE)..data.start / HOLE * HOLE;
        if hole.start < hole.end {
            holes.push(hole);
        }
        end = data.end;
    }
    Ok(holes)
}
