//! Writing a tar archive, in the interchange format of POSIX (pax), which every tar reads: long
//! paths, times to the nanosecond, numbers of any size and extended attributes are in records before
//! an entry.
//!
//! ```text
//! name (100) ‖ mode (8) ‖ uid (8) ‖ gid (8) ‖ size (12) ‖ mtime (12) ‖ checksum (8) ‖ type (1) ‖
//! link (100) ‖ "ustar" NUL "00" ‖ user (32) ‖ group (32) ‖ major (8) ‖ minor (8) ‖ zeros to 512
//! ```
//!
//! Numbers are octal and end in NUL. A record is `length key=value` with a line end, the length
//! counting all of it. Content is filled up with zeros to a multiple of 512.

use std::io::{self, Write};

use backstay_repo::{Entry, EntryKind};

const BLOCK: usize = 512;
/// What fits into the fields of a header.
const NAME: usize = 100;
const OWNER: usize = 31;
const SMALL: u64 = 0o777_7777;
const LARGE: u64 = 0o777_7777_7777;

/// Writes entries one after the other.
pub struct Tar<W> {
    out: W,
    /// Attributes whose names the format has no way to write.
    pub left_out: u64,
}

impl<W: Write> Tar<W> {
    pub fn new(out: W) -> Self {
        Self { out, left_out: 0 }
    }

    /// Writes the header of an entry. Whoever gives a file writes its content to
    /// [`content`](Self::content) next, and calls [`fill`](Self::fill).
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let meta = &entry.meta;
        let mut path = entry.path.clone();
        if entry.is_directory() {
            path.push(b'/');
        }
        let (kind, link, device): (u8, &[u8], u64) = match &entry.kind {
            EntryKind::File(_) => (b'0', b"", 0),
            EntryKind::Hardlink { to } => (b'1', to, 0),
            EntryKind::Symlink { target } => (b'2', target, 0),
            EntryKind::CharDevice { rdev } => (b'3', b"", *rdev),
            EntryKind::BlockDevice { rdev } => (b'4', b"", *rdev),
            EntryKind::Directory => (b'5', b"", 0),
            EntryKind::Fifo => (b'6', b"", 0),
        };
        let mut records = Vec::new();
        let seconds = u64::try_from(meta.mtime.seconds).ok().filter(|seconds| *seconds <= LARGE);
        if seconds.is_none() || meta.mtime.nanos > 0 {
            record(&mut records, b"mtime", moment(meta.mtime).as_bytes());
        }
        for (key, bytes, room) in [
            (b"path".as_slice(), path.as_slice(), NAME),
            (b"linkpath", link, NAME),
            (b"uname", meta.user.as_bytes(), OWNER),
            (b"gname", meta.group.as_bytes(), OWNER),
        ] {
            if bytes.len() > room {
                record(&mut records, key, bytes);
            }
        }
        for (key, number, limit) in [
            (b"size".as_slice(), entry.size(), LARGE),
            (b"uid", meta.uid.into(), SMALL),
            (b"gid", meta.gid.into(), SMALL),
        ] {
            if number > limit {
                record(&mut records, key, number.to_string().as_bytes());
            }
        }
        for (name, value) in &meta.xattrs {
            if name.iter().any(|byte| matches!(byte, b'=' | b'\n')) {
                self.left_out += 1;
                continue;
            }
            record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        if !records.is_empty() {
            let header = Header { kind: b'x', size: records.len() as u64, ..Header::default() };
            self.out.write_all(&header.block(b"pax"))?;
            self.out.write_all(&records)?;
            self.fill(records.len() as u64)?;
        }
        let header = Header {
            kind,
            mode: meta.mode & 0o7777,
            uid: meta.uid.into(),
            gid: meta.gid.into(),
            size: entry.size(),
            mtime: seconds.unwrap_or(0),
            link,
            user: &meta.user,
            group: &meta.group,
            device,
        };
        self.out.write_all(&header.block(&path))
    }

    pub fn content(&mut self) -> &mut W {
        &mut self.out
    }

    /// Fills up after content of so many bytes.
    pub fn fill(&mut self, length: u64) -> io::Result<()> {
        let over = (length % BLOCK as u64) as usize;
        match over {
            0 => Ok(()),
            over => self.out.write_all(&[0; BLOCK][over..]),
        }
    }

    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }
}

#[derive(Default)]
struct Header<'h> {
    kind: u8,
    mode: u32,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: u64,
    link: &'h [u8],
    user: &'h str,
    group: &'h str,
    device: u64,
}

impl Header<'_> {
    fn block(&self, name: &[u8]) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8], room: usize| {
            let length = bytes.len().min(room);
            block[at..at + length].copy_from_slice(&bytes[..length]);
        };
        // What does not fit is said by a record before.
        let number = |number: u64, digits: usize| {
            let number = if number > (1_u64 << (3 * digits)) - 1 { 0 } else { number };
            format!("{number:0digits$o}").into_bytes()
        };
        put(0, name, NAME);
        put(100, &number(self.mode.into(), 7), 7);
        put(108, &number(self.uid, 7), 7);
        put(116, &number(self.gid, 7), 7);
        put(124, &number(self.size, 11), 11);
        put(136, &number(self.mtime, 11), 11);
        put(148, b"        ", 8);
        put(156, &[self.kind], 1);
        put(157, self.link, NAME);
        put(257, b"ustar\x0000", 8);
        put(265, self.user.as_bytes(), OWNER);
        put(297, self.group.as_bytes(), OWNER);
        put(329, &number(rustix::fs::major(self.device).into(), 7), 7);
        put(337, &number(rustix::fs::minor(self.device).into(), 7), 7);
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    // The length counts its own digits.
    let mut length = rest + 1;
    while rest + length.to_string().len() > length {
        length += 1;
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Seconds since 1970 with their fraction.
fn moment(time: backstay_repo::Time) -> String {
    let (seconds, nanos) = (i128::from(time.seconds), i128::from(time.nanos));
    let all = seconds * 1_000_000_000 + nanos;
    let sign = if all < 0 { "-" } else { "" };
    format!(
        "{sign}{}.{:09}",
        all.unsigned_abs() / 1_000_000_000,
        all.unsigned_abs() % 1_000_000_000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_record_counts_itself() {
        let one = |key: &str, length: usize| {
            let mut records = Vec::new();
            record(&mut records, key.as_bytes(), &vec![b'x'; length]);
            records
        };
        assert_eq!(one("path", 1), b"9 path=x\n");
        for length in 0..2000 {
            let record = one("key", length);
            let digits = record.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let said = std::str::from_utf8(&record[..digits]).unwrap();
            assert_eq!(said, record.len().to_string());
        }
    }

    #[test]
    fn moments_before_1970() {
        let at = |seconds, nanos| moment(backstay_repo::Time { seconds, nanos });
        assert_eq!(at(5, 7), "5.000000007");
        assert_eq!(at(-1, 250_000_000), "-0.750000000");
        assert_eq!(at(i64::MIN, 0), "-9223372036854775808.000000000");
    }
}
