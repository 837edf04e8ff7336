//! The archives of a base backup: tar as `src/port/tar.c` of PostgreSQL writes it, and nothing else.
//!
//! ```text
//! entry  = header (512) ‖ content ‖ zeros up to a multiple of 512
//! header = name (100) ‖ mode (8) ‖ uid (8) ‖ gid (8) ‖ size (12) ‖ mtime (12) ‖ checksum (8)
//!        ‖ type (1): 0 a file, 2 a link, 5 a directory ‖ target (100) ‖ "ustar" 0 "00"
//!        ‖ user (32) ‖ group (32) ‖ devices (16) ‖ prefix (155) ‖ zeros
//! ```
//!
//! Numbers are octal, or binary where the first bit is set. From version 15 on two blocks of zeros
//! end an archive, before that nothing does. What a server sends is not trusted: whatever is not of
//! this form ends the backup.

/// What tar counts in. Bytes.
const BLOCK: usize = 512;
/// The largest file that is believed. A relation's have 1 GiB; a log may be larger. Bytes.
const MOST: u64 = 1 << 44;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    File,
    Directory,
    Link,
}

/// What stands before the content of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// Relative, without `.`, `..` or an empty part, and without a slash at its end.
    pub(crate) path: Vec<u8>,
    pub(crate) type_: Type,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) user: String,
    pub(crate) group: String,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
}

/// What comes out of an archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    Entry(Header),
    Content(&'a [u8]),
    /// All of an entry's content was there.
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Header,
    /// Bytes of content that are left, and of padding behind it.
    Content(u64, usize),
    Padding(usize),
    /// Blocks of zeros were met: nothing else follows.
    End,
}

/// Takes an archive as it comes, in pieces of any size.
#[derive(Debug)]
pub(crate) struct Tar {
    at: At,
    header: Vec<u8>,
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self { at: At::Header, header: Vec::with_capacity(BLOCK) }
    }

    /// Takes the next bytes; `on` gets what is in them.
    pub(crate) fn push<E: From<String>>(
        &mut self,
        mut bytes: &[u8],
        mut on: impl FnMut(Part<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            match self.at {
                At::Header => {
                    let (part, rest) = first(bytes, BLOCK - self.header.len());
                    self.header.extend_from_slice(part);
                    bytes = rest;
                    if self.header.len() < BLOCK {
                        return Ok(());
                    }
                    let block = std::mem::take(&mut self.header);
                    if block.iter().all(|byte| *byte == 0) {
                        self.at = At::End;
                        continue;
                    }
                    let header = read(&block)?;
                    let size = header.size;
                    on(Part::Entry(header))?;
                    let padding = (size.next_multiple_of(BLOCK as u64) - size) as usize;
                    self.at = At::Content(size, padding);
                    if size == 0 {
                        on(Part::Over)?;
                        self.at = At::Header;
                    }
                }
                At::Content(left, padding) => {
                    let most = usize::try_from(left).unwrap_or(usize::MAX);
                    let (part, rest) = first(bytes, most);
                    on(Part::Content(part))?;
                    bytes = rest;
                    let left = left - part.len() as u64;
                    self.at = At::Content(left, padding);
                    if left == 0 {
                        on(Part::Over)?;
                        self.at = if padding == 0 { At::Header } else { At::Padding(padding) };
                    }
                }
                At::Padding(left) => {
                    let (part, rest) = first(bytes, left);
                    zeros(part)?;
                    bytes = rest;
                    let left = left - part.len();
                    self.at = if left == 0 { At::Header } else { At::Padding(left) };
                }
                At::End => {
                    zeros(bytes)?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The archive is over: it may not be in the middle of anything.
    pub(crate) fn finish(&self) -> Result<(), String> {
        match self.at {
            At::End => Ok(()),
            At::Header if self.header.is_empty() => Ok(()),
            _ => Err("an archive ends in the middle of a file".to_owned()),
        }
    }
}

fn first(bytes: &[u8], most: usize) -> (&[u8], &[u8]) {
    bytes.split_at_checked(most).unwrap_or((bytes, &[]))
}

fn zeros(bytes: &[u8]) -> Result<(), String> {
    match bytes.iter().all(|byte| *byte == 0) {
        true => Ok(()),
        false => Err("an archive has something where zeros belong".to_owned()),
    }
}

fn read(block: &[u8]) -> Result<Header, String> {
    let field = |from: usize, length: usize| block.get(from..from + length).unwrap_or_default();
    let summed = block.iter().enumerate().fold(0u64, |sum, (at, byte)| {
        // The field of the sum itself counts as blanks.
        sum + u64::from(if (148..156).contains(&at) { b' ' } else { *byte })
    });
    if number(field(148, 8)) != Some(summed) {
        return Err("the checksum of a tar header does not hold".to_owned());
    }
    if field(257, 6) != b"ustar\0" || field(263, 2) != b"00" {
        return Err("an archive is no tar of the form that PostgreSQL writes".to_owned());
    }
    let (name, prefix) = (text(field(0, 100)), text(field(345, 155)));
    let mut path = Vec::with_capacity(prefix.len() + 1 + name.len());
    if !prefix.is_empty() {
        path.extend_from_slice(prefix);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    // Directories that the server makes up begin with this.
    if path.starts_with(b"./") {
        path.drain(..2);
    }
    let shown = String::from_utf8_lossy(&path).into_owned();
    let wrong = |what: &str| format!("the tar header of {shown:?} has {what}");
    let type_ = match field(156, 1) {
        b"0" | b"\0" => Type::File,
        b"2" => Type::Link,
        b"5" => Type::Directory,
        _ => return Err(wrong("a type that PostgreSQL does not send")),
    };
    // Directories and links have a slash at their end.
    if type_ != Type::File && path.last() == Some(&b'/') {
        path.pop();
    }
    let plain = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
    if !path.split(|byte| *byte == b'/').all(plain) {
        return Err(wrong("a path that leads elsewhere"));
    }
    let get = |from, length, what| number(field(from, length)).ok_or_else(|| wrong(what));
    let size = get(124, 12, "no size")?;
    if size > MOST || (size > 0 && type_ != Type::File) {
        return Err(wrong("an impossible size"));
    }
    let small = |from, what| u32::try_from(get(from, 8, what)?).map_err(|_| wrong(what));
    Ok(Header {
        path,
        type_,
        size,
        mode: small(100, "no mode")? & 0o7777,
        uid: small(108, "no owner")?,
        gid: small(116, "no group")?,
        user: String::from_utf8_lossy(text(field(265, 32))).into_owned(),
        group: String::from_utf8_lossy(text(field(297, 32))).into_owned(),
        mtime: i64::try_from(get(136, 12, "no time")?).map_err(|_| wrong("no time"))?,
    })
}

/// What stands before the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if *first == 0x80 {
        let value = rest
            .iter()
            .try_fold(0u64, |value, byte| value.checked_mul(256)?.checked_add(u64::from(*byte)))?;
        return Some(value);
    }
    let end = field.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(field.len());
    let (digits, rest) = field.split_at(end);
    if digits.is_empty() || !rest.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(name: &str, type_: u8, size: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, b"0000600 ");
        put(108, b"0000151 ");
        put(116, b"0000151 ");
        put(124, format!("{size:011o} ").as_bytes());
        put(136, b"14500000000 ");
        put(156, &[type_]);
        put(257, b"ustar\x0000postgres");
        put(297, b"postgres");
        sum(&mut block);
        block
    }

    fn sum(block: &mut [u8]) {
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    fn sample() -> Vec<u8> {
        let mut all = header("./base/", b'5', 0);
        all.extend(header("base/1259", b'0', 700));
        all.extend([7; 700]);
        all.extend([0; 324]);
        all.extend(header("empty", b'0', 0));
        all
    }

    /// What is in an archive that comes in pieces of so many bytes.
    fn taken(bytes: &[u8], piece: usize) -> Result<Vec<(String, Vec<u8>)>, String> {
        let mut tar = Tar::new();
        let mut all: Vec<(String, Vec<u8>)> = Vec::new();
        for piece in bytes.chunks(piece) {
            tar.push(piece, |part| {
                match part {
                    Part::Entry(header) => {
                        let path = String::from_utf8_lossy(&header.path).into_owned();
                        all.push((path, Vec::new()));
                    }
                    Part::Content(bytes) => all.last_mut().unwrap().1.extend_from_slice(bytes),
                    Part::Over => {}
                }
                Ok::<(), String>(())
            })?;
        }
        tar.finish()?;
        Ok(all)
    }

    #[test]
    fn an_archive_is_the_same_in_whatever_pieces_it_comes_with_or_without_its_end() {
        let mut whole = sample();
        for _ in 0..2 {
            for piece in [1, 7, 512, 700, 100_000] {
                let all = taken(&whole, piece).unwrap();
                let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
                assert_eq!(names, ["base", "base/1259", "empty"]);
                assert_eq!(all[1].1, [7; 700]);
            }
            whole.extend([0; 1024]);
        }
    }

    #[test]
    fn what_is_large_is_told_in_binary() {
        let mut block = header("log", b'0', 0);
        block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1]);
        sum(&mut block);
        assert_eq!(read(&block).unwrap().size, (3 << 32) + 1);
        block[124..136].fill(0xff);
        sum(&mut block);
        assert!(read(&block).is_err());
    }

    #[test]
    fn a_name_of_a_hundred_bytes_and_a_prefix_make_one_path() {
        let mut block = header(&"n".repeat(100), b'0', 0);
        block[345..348].copy_from_slice(b"dir");
        sum(&mut block);
        assert_eq!(read(&block).unwrap().path, format!("dir/{}", "n".repeat(100)).as_bytes());
    }

    #[test]
    fn what_leads_elsewhere_or_is_cut_short_is_refused() {
        for name in ["/etc/passwd", "../x", "a/../../x", "a//b", "././a", "a/./b", "./", ""] {
            assert!(taken(&header(name, b'0', 0), 512).is_err(), "{name}");
        }
        for type_ in *b"1346LKxg" {
            assert!(taken(&header("a", type_, 0), 512).is_err(), "{type_}");
        }
        assert!(taken(&header("a", b'5', 5), 512).is_err());
        let whole = sample();
        for cut in [1, 511, 513, 1024, 1500, 2047] {
            assert!(taken(&whole[..cut], 512).is_err(), "{cut}");
        }
        let mut block = header("a", b'0', 0);
        block[0] = b'b';
        assert!(taken(&block, 512).is_err(), "its checksum");
        let mut padded = sample();
        padded[1024 + 700] = 1;
        assert!(taken(&padded, 512).is_err(), "its padding");
        let mut behind = sample();
        behind.extend([0; 512]);
        behind.extend(header("a", b'0', 0));
        assert!(taken(&behind, 512).is_err(), "behind its end");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(
            at in 0usize..2560, byte in any::<u8>(), piece in 1usize..1000,
            noise in proptest::collection::vec(any::<u8>(), 0..1200),
        ) {
            let mut bytes = sample();
            bytes[at] = byte;
            let _ = taken(&bytes, piece);
            // With a checksum that holds, the fields behind it are looked at.
            sum(&mut bytes[..BLOCK]);
            if let Ok(all) = taken(&bytes, piece) {
                prop_assert!(all.iter().all(|(name, _)| !name.starts_with('/')));
            }
            let _ = taken(&noise, piece);
        }
    }
}
