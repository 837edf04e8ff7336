//! The table of contents of a `pg_dump` archive: `toc.dat`.
//!
//! It says which file holds the rows of which table, and what of it belongs together, so that a
//! dump can be looked into and restored in part without fetching all of it. What restores is
//! `pg_restore` alone; this only reads.
//!
//! Layout (`pg_backup_archiver.c`, versions 1.12 to 1.16): `PGDMP`, version in three bytes, the size
//! of integers and of offsets, the format; how it is compressed (one byte from 1.15 on, an integer
//! before); seven integers of time; three texts; the number of entries, and the entries. Integers
//! are a sign byte and little-endian magnitude; texts are their length, -1 for none, and bytes.

use crate::{PostgresError, PostgresErrorKind, Result};

/// Versions that are understood, as `major * 256 + minor`.
const OLDEST: u32 = 0x010c;
const NEWEST: u32 = 0x0110;
/// Integers that say when it was made.
const TIME: usize = 7;

/// What an archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toc {
    /// Of the archive's format, as "1.14".
    pub format: String,
    pub database: String,
    /// Of the server, in its own words.
    pub server: String,
    /// Of the `pg_dump` that wrote it.
    pub dump: String,
    pub entries: Vec<TocEntry>,
}

/// One object, or the content of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TocEntry {
    pub id: i64,
    /// The catalogue's table, and the row in it.
    pub class: u32,
    pub oid: u32,
    pub name: String,
    /// In the words of `pg_dump`: `TABLE`, `TABLE DATA`, `FK CONSTRAINT` …
    pub kind: String,
    pub schema: Option<String>,
    pub owner: String,
    /// The statement that makes it.
    pub definition: String,
    pub depends: Vec<i64>,
    /// Its content, in the folder of the archive.
    pub file: Option<String>,
}

impl Toc {
    /// # Errors
    /// `Damaged` when it is no table of contents; `Unsupported` when it is newer than this program.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut from = Bytes { rest: bytes, integer: 4 };
        if from.take(5)? != b"PGDMP" {
            return Err(damaged("it does not begin with PGDMP"));
        }
        let (major, minor) = (u32::from(from.byte()?), u32::from(from.byte()?));
        from.byte()?;
        let version = major * 256 + minor;
        if !(OLDEST..=NEWEST).contains(&version) {
            return Err(PostgresError::new(
                PostgresErrorKind::Unsupported,
                format!("the dump's table of contents has the format {major}.{minor}"),
            )
            .with_hint("1.12 to 1.16 are understood, of PostgreSQL 10 to 18"));
        }
        from.integer = usize::from(from.byte()?);
        if !(1..=8).contains(&from.integer) {
            return Err(damaged("its integers have an impossible size"));
        }
        from.take(2)?;
        if version >= 0x010f {
            from.byte()?;
        } else {
            from.number()?;
        }
        for _ in 0..TIME {
            from.number()?;
        }
        let database = from.text()?.unwrap_or_default();
        let server = from.text()?.unwrap_or_default();
        let dump = from.text()?.unwrap_or_default();
        let count = from.number()?;
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(from.entry(version)?);
        }
        if !from.rest.is_empty() {
            return Err(damaged("something follows its last entry"));
        }
        Ok(Self { format: format!("{major}.{minor}"), database, server, dump, entries })
    }

    /// The entry that holds the rows of a table.
    pub fn data_of(&self, schema: &str, table: &str) -> Option<&TocEntry> {
        self.entries.iter().find(|one| {
            one.kind == "TABLE DATA" && one.schema.as_deref() == Some(schema) && one.name == table
        })
    }
}

/// What is left of the file.
struct Bytes<'a> {
    rest: &'a [u8],
    /// Bytes of an integer.
    integer: usize,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) =
            self.rest.split_at_checked(count).ok_or_else(|| damaged("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take(1)?.first().copied().ok_or_else(|| damaged("it ends too early"))
    }

    fn number(&mut self) -> Result<i64> {
        let negative = self.byte()? != 0;
        let mut value = 0_u64;
        for (at, byte) in self.take(self.integer)?.iter().enumerate() {
            value |= u64::from(*byte) << (8 * at);
        }
        let value = i64::try_from(value).map_err(|_| damaged("a number in it is too large"))?;
        Ok(if negative { -value } else { value })
    }

    fn text(&mut self) -> Result<Option<String>> {
        let length = self.number()?;
        if length < 0 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| damaged("a text in it is too long"))?;
        Ok(Some(String::from_utf8_lossy(self.take(length)?).into_owned()))
    }

    fn oid(&mut self) -> Result<u32> {
        let text = self.text()?.unwrap_or_default();
        text.parse().map_err(|_| damaged("the number of an object in it is none"))
    }

    fn entry(&mut self, version: u32) -> Result<TocEntry> {
        let id = self.number()?;
        let has_content = self.number()? != 0;
        let (class, oid) = (self.oid()?, self.oid()?);
        let name = self.text()?.unwrap_or_default();
        let kind = self.text()?.unwrap_or_default();
        self.number()?; // section
        let definition = self.text()?.unwrap_or_default();
        self.text()?; // how it is dropped
        self.text()?; // how it is copied
        let schema = self.text()?.filter(|schema| !schema.is_empty());
        self.text()?; // tablespace
        if version >= 0x010e {
            self.text()?; // access method
        }
        if version >= 0x0110 {
            self.number()?; // kind of relation
        }
        let owner = self.text()?.unwrap_or_default();
        self.text()?; // with oids
        let mut depends = Vec::new();
        while let Some(other) = self.text()? {
            depends.push(other.trim().parse().map_err(|_| damaged("a dependency in it is none"))?);
        }
        let file = self.text()?.filter(|file| has_content && !file.is_empty());
        // The file is looked for beside it, and nowhere else.
        if file.as_ref().is_some_and(|file| file.contains('/') || file.starts_with('.')) {
            return Err(damaged("it names a file outside of the dump"));
        }
        Ok(TocEntry { id, class, oid, name, kind, schema, owner, definition, depends, file })
    }
}

fn damaged(what: &str) -> PostgresError {
    PostgresError::new(
        PostgresErrorKind::Damaged,
        format!("the dump's table of contents cannot be read: {what}"),
    )
    .with_hint("restore another snapshot; `backstay verify` tells whether this one is whole")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(out: &mut Vec<u8>, value: i32) {
        out.push(u8::from(value < 0));
        out.extend_from_slice(&value.unsigned_abs().to_le_bytes());
    }

    fn text(out: &mut Vec<u8>, value: Option<&str>) {
        match value {
            None => number(out, -1),
            Some(value) => {
                number(out, value.len() as i32);
                out.extend_from_slice(value.as_bytes());
            }
        }
    }

    fn sample(minor: u8) -> Vec<u8> {
        let mut out = b"PGDMP\x01".to_vec();
        out.extend_from_slice(&[minor, 0, 4, 8, 3]);
        if minor >= 15 {
            out.push(0)
        } else {
            number(&mut out, 0)
        }
        for _ in 0..7 {
            number(&mut out, 1);
        }
        for part in ["shop", "15.14", "15.14"] {
            text(&mut out, Some(part));
        }
        number(&mut out, 1);
        number(&mut out, 3305);
        number(&mut out, 1);
        for part in ["0", "16385", "orders", "TABLE DATA"] {
            text(&mut out, Some(part));
        }
        number(&mut out, 3);
        for part in ["", "", "COPY public.orders (id) FROM stdin;\n", "public", ""] {
            text(&mut out, Some(part));
        }
        if minor >= 14 {
            text(&mut out, None);
        }
        if minor >= 16 {
            number(&mut out, 0);
        }
        text(&mut out, Some("me"));
        text(&mut out, Some("false"));
        text(&mut out, Some("214"));
        text(&mut out, None);
        text(&mut out, Some("3305.dat"));
        out
    }

    #[test]
    fn every_format_is_understood() {
        for minor in 12..=16 {
            let toc = Toc::parse(&sample(minor)).unwrap();
            assert_eq!((toc.database.as_str(), toc.entries.len()), ("shop", 1), "1.{minor}");
            let data = toc.data_of("public", "orders").unwrap();
            assert_eq!((data.id, data.oid, data.depends.as_slice()), (3305, 16385, &[214][..]));
            assert_eq!(data.file.as_deref(), Some("3305.dat"));
        }
        let error = Toc::parse(&sample(17)).unwrap_err();
        assert_eq!(error.kind(), PostgresErrorKind::Unsupported);
    }

    #[test]
    fn what_is_cut_off_or_altered_is_an_error_and_never_a_panic() {
        let whole = sample(14);
        for length in 0..whole.len() {
            assert!(Toc::parse(&whole[..length]).is_err(), "{length}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut altered = whole.clone();
                altered[at] = value;
                let _ = Toc::parse(&altered);
            }
        }
        let mut outside = sample(14);
        let at = outside.windows(8).position(|w| w == b"3305.dat").unwrap();
        outside[at..at + 8].copy_from_slice(b"../../xy");
        assert_eq!(Toc::parse(&outside).unwrap_err().kind(), PostgresErrorKind::Damaged);
    }
}
