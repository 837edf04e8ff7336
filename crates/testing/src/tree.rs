//! Trees of files made from a seed, and what a tree holds, to compare two of them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

/// Makes trees of files. The same seed makes the same tree: names, sizes, content, modes, times.
#[derive(Debug, Clone)]
pub struct FileTree {
    seed: u64,
    files: usize,
    largest: u64,
    odd: bool,
}

impl FileTree {
    /// A tree of 200 files of at most 256 KiB.
    pub fn new(seed: u64) -> Self {
        Self { seed, files: 200, largest: 256 << 10, odd: true }
    }

    /// How many regular files there are.
    pub fn files(mut self, files: usize) -> Self {
        self.files = files;
        self
    }

    /// No file is larger, in bytes. Most are much smaller, and one in fifty is near it.
    pub fn largest(mut self, bytes: u64) -> Self {
        self.largest = bytes.max(1);
        self
    }

    /// Regular files and directories alone: no links, pipes, sparse files or odd names.
    pub fn plain(mut self) -> Self {
        self.odd = false;
        self
    }

    /// Makes the tree below `root`, which is created; returns the paths of its regular files.
    pub fn create(&self, root: &Path) -> Vec<PathBuf> {
        self.try_create(root)
            .unwrap_or_else(|error| panic!("making a tree in {}: {error}", root.display()))
    }

    fn try_create(&self, root: &Path) -> std::io::Result<Vec<PathBuf>> {
        let mut random = Random(self.seed);
        std::fs::create_dir_all(root)?;
        let mut folders = vec![root.to_path_buf()];
        let mut files = Vec::with_capacity(self.files);
        for number in 0..self.files {
            if random.below(8) == 0 {
                let parent = &folders[random.index(folders.len())];
                let folder = parent.join(format!("d{number:05}"));
                // Deep enough to matter, not so deep that a path gets too long.
                if folder.components().count() < root.components().count() + 12 {
                    std::fs::create_dir(&folder)?;
                    folders.push(folder);
                }
            }
            let name = if self.odd && random.below(12) == 0 {
                random.odd_name(number)
            } else {
                format!("f{number:05}").into_bytes()
            };
            let folder = &folders[random.index(folders.len())];
            let path = folder.join(std::ffi::OsStr::from_bytes(&name));
            random.file(&path, self.largest, self.odd)?;
            files.push(path);
        }
        if self.odd {
            std::fs::create_dir(root.join("empty"))?;
            symlink("f00000", root.join("link"))?;
            symlink("/nowhere/at/all", root.join("dangling"))?;
            if let Some(first) = files.first() {
                std::fs::hard_link(first, root.join("second name"))?;
            }
            rustix::fs::mknodat(
                rustix::fs::CWD,
                root.join("pipe"),
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::from_raw_mode(0o640),
                0,
            )?;
        }
        if self.odd {
            for name in ["empty", "link", "dangling", "pipe"] {
                set_mtime(&root.join(name), random.time())?;
            }
        }
        for folder in folders.iter().rev() {
            set_mtime(folder, random.time())?;
        }
        Ok(files)
    }
}

/// What a tree holds, by path relative to it: type, mode, mtime, link target, size and a hash of the
/// content, in words, so that an assertion on two of them shows what differs. Owners are left out.
pub fn snapshot_of(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let what = describe(&path, &mut waiting)
            .unwrap_or_else(|error| panic!("reading {}: {error}", path.display()));
        let relative = path.strip_prefix(root).unwrap_or(&path);
        if !relative.as_os_str().is_empty() {
            found.insert(relative.to_path_buf(), what);
        }
    }
    found
}

fn describe(path: &Path, waiting: &mut Vec<PathBuf>) -> std::io::Result<String> {
    let metadata = path.symlink_metadata()?;
    let kind = metadata.file_type();
    let what = if kind.is_dir() {
        for entry in std::fs::read_dir(path)? {
            waiting.push(entry?.path());
        }
        "directory".to_owned()
    } else if kind.is_symlink() {
        format!("link to {}", std::fs::read_link(path)?.display())
    } else if kind.is_file() {
        let content = std::fs::read(path)?;
        format!("file of {} bytes, hash {:016x}", content.len(), fnv(&content))
    } else if kind.is_fifo() {
        "pipe".to_owned()
    } else {
        format!("device {}", metadata.rdev())
    };
    let mode = metadata.mode() & 0o7777;
    Ok(format!("{what}, mode {mode:04o}, {}.{:09}", metadata.mtime(), metadata.mtime_nsec()))
}

/// FNV-1a: enough to tell two trees of a test apart, and it needs no dependency.
fn fnv(content: &[u8]) -> u64 {
    content.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Also that of a link or a pipe itself, which cannot be opened.
fn set_mtime(path: &Path, (tv_sec, tv_nsec): (i64, i64)) -> std::io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// SplitMix64: the same numbers on every machine and in every version.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn index(&mut self, length: usize) -> usize {
        (self.next() % length as u64) as usize
    }

    /// Seconds since 1970 and nanoseconds.
    fn time(&mut self) -> (i64, i64) {
        (1_000_000_000 + self.below(700_000_000) as i64, self.below(1_000_000_000) as i64)
    }

    /// Spaces, line ends, quotes, letters of other scripts, and bytes that are no UTF-8.
    fn odd_name(&mut self, number: usize) -> Vec<u8> {
        let flavour: &[u8] = match self.below(6) {
            0 => b" with space ",
            1 => b"line\nend",
            2 => "gr\u{fc}\u{df}e \u{6f22}\u{5b57} \u{1f9f7}".as_bytes(),
            3 => b"not\xff\xfeutf8",
            4 => b"-rf 'quoted\"\\",
            _ => &[b'l'; 200],
        };
        [flavour, format!(" {number}").as_bytes()].concat()
    }

    fn file(&mut self, path: &Path, largest: u64, odd: bool) -> std::io::Result<()> {
        let size = match self.below(50) {
            0 => 0,
            1 => largest - self.below(largest / 8 + 1),
            _ => self.below(largest / 8 + 1),
        };
        let mut file = std::fs::File::create_new(path)?;
        if odd && size > 64 << 10 && self.below(6) == 0 {
            // A hole in the middle, data at both ends.
            let ends = (size / 8).min(64 << 10);
            file.write_all(&self.content(ends))?;
            file.set_len(size - ends)?;
            std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
            file.write_all(&self.content(ends))?;
        } else {
            file.write_all(&self.content(size))?;
        }
        let mode = [0o644, 0o600, 0o755, 0o640, 0o444][self.index(5)];
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        set_mtime(path, self.time())
    }

    /// Half compressible, half not, as files are.
    fn content(&mut self, size: u64) -> Vec<u8> {
        let mut content = Vec::with_capacity(size as usize + 64);
        if self.below(2) == 0 {
            while (content.len() as u64) < size {
                content.extend_from_slice(&self.next().to_le_bytes());
            }
        } else {
            while (content.len() as u64) < size {
                let line = self.below(1000);
                content
                    .extend_from_slice(format!("{line:06} the tide turns at {line}\n").as_bytes());
            }
        }
        content.truncate(size as usize);
        content
    }
}
