//! Where WAL files are read from: an archive, or a folder such as a server's `pg_wal`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use backstay_repo::Archive;

use super::page::{PageError, check_segment_head};
use super::{SegmentHeader, SegmentSize, WalName};
use crate::{PostgresError, PostgresErrorKind, Result};

/// Histories are a few lines; a megabyte is none.
const MAX_TEXT: u64 = 1 << 20;

/// Files of the WAL of one cluster, by name.
pub trait Files: Sync {
    /// All names, with the time of their creation where it is known.
    fn names(&self) -> Result<Vec<(String, Option<SystemTime>)>>;

    /// The content of a file, or none where there is none of that name.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// The beginning of a segment that is not there whole, or none where nothing is known of it.
    fn begun(&self, _segment: &str) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// The cluster that all files must be of, where it is known.
    fn system_identifier(&self) -> Option<u64>;

    /// The size of the segments here; none when there are none.
    fn segment_size(&self) -> Result<Option<SegmentSize>>;
}

impl Files for Archive {
    fn names(&self) -> Result<Vec<(String, Option<SystemTime>)>> {
        Ok(self.list(None)?.into_iter().map(|file| (file.name, file.modified)).collect())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.fetch(name)?)
    }

    fn begun(&self, segment: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.assemble(segment)?)
    }

    fn system_identifier(&self) -> Option<u64> {
        Some(self.system_id())
    }

    fn segment_size(&self) -> Result<Option<SegmentSize>> {
        let files = self.list(None)?;
        let mut names = files.iter().filter(|f| matches!(f.name.parse(), Ok(WalName::Segment(_))));
        let Some(newest) = names.next_back() else { return Ok(None) };
        let Some(content) = self.fetch(&newest.name)? else { return Ok(None) };
        let header =
            SegmentHeader::parse(&content).map_err(|error| unusable(&newest.name, error))?;
        Ok(Some(header.segment_size))
    }
}

fn unusable(name: &str, error: PageError) -> PostgresError {
    PostgresError::new(
        PostgresErrorKind::Damaged,
        format!("the WAL segment {name} cannot be used: {error}"),
    )
}

/// The files of a folder. Those that a server keeps for segments to come are not among them: they
/// are empty, or hold what they held under an earlier name.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    names: BTreeMap<String, Option<SystemTime>>,
    system_identifier: Option<u64>,
    segment_size: Option<SegmentSize>,
}

impl Folder {
    /// Lists a folder.
    ///
    /// # Errors
    /// [`PostgresErrorKind::Mismatch`] when it holds segments of several clusters.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |error| PostgresError::io("read the folder", path, error);
        let mut found = Self {
            path: path.to_owned(),
            names: BTreeMap::new(),
            system_identifier: None,
            segment_size: None,
        };
        for entry in fs::read_dir(path).map_err(io)? {
            let entry = entry.map_err(io)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let parsed = match name.parse() {
                Ok(parsed @ (WalName::Segment(_) | WalName::History(_))) => parsed,
                _ => continue,
            };
            let file = entry.path();
            let meta = match fs::metadata(&file) {
                Ok(meta) => meta,
                // The server removes what it does not need any more.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(PostgresError::io("read", &file, error)),
            };
            if !meta.is_file() {
                continue;
            }
            if let WalName::Segment(segment) = parsed {
                let mut head = Vec::new();
                let opened = match File::open(&file) {
                    Ok(opened) => opened,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(PostgresError::io("open", &file, error)),
                };
                opened
                    .take(SegmentHeader::SIZE as u64)
                    .read_to_end(&mut head)
                    .map_err(|error| PostgresError::io("read", &file, error))?;
                let Ok(header) = check_segment_head(segment, &head, meta.len(), None) else {
                    continue;
                };
                found.one_cluster(&header)?;
            }
            found.names.insert(name, meta.modified().ok());
        }
        Ok(found)
    }

    fn one_cluster(&mut self, header: &SegmentHeader) -> Result<()> {
        let known = self.system_identifier.get_or_insert(header.system_identifier);
        let size = self.segment_size.get_or_insert(header.segment_size);
        if *known == header.system_identifier && *size == header.segment_size {
            return Ok(());
        }
        Err(PostgresError::new(
            PostgresErrorKind::Mismatch,
            format!(
                "{} holds segments of two clusters: {known} (of {size}) and {} (of {})",
                self.path.display(),
                header.system_identifier,
                header.segment_size
            ),
        )
        .with_hint("put the files of each cluster into a folder of their own"))
    }
}

impl Files for Folder {
    fn names(&self) -> Result<Vec<(String, Option<SystemTime>)>> {
        Ok(self.names.iter().map(|(name, modified)| (name.clone(), *modified)).collect())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if !self.names.contains_key(name) {
            return Ok(None);
        }
        let path = self.path.join(name);
        let limit = match self.segment_size {
            Some(size) if !name.ends_with(".history") => size.bytes(),
            _ => MAX_TEXT,
        };
        let mut content = Vec::new();
        let opened = match File::open(&path) {
            Ok(opened) => opened,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(PostgresError::io("open", &path, error)),
        };
        opened
            .take(limit)
            .read_to_end(&mut content)
            .map_err(|error| PostgresError::io("read", &path, error))?;
        Ok(Some(content))
    }

    fn system_identifier(&self) -> Option<u64> {
        self.system_identifier
    }

    fn segment_size(&self) -> Result<Option<SegmentSize>> {
        Ok(self.segment_size)
    }
}
