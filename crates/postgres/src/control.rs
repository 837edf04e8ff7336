//! The control file, `global/pg_control`: what a cluster says of itself without being asked.
//!
//! Layout, little-endian, 64-bit alignment (`catalog/pg_control.h`); the same for all versions up
//! to where the nonce starts:
//!
//! | offset | what |
//! |---|---|
//! | 0 | system identifier, u64 |
//! | 8 | version of the control file: 1300 (PostgreSQL 13–16), 1700, 1800 |
//! | 12 | version of the catalogue |
//! | 16 | state |
//! | 24 | time of the last change, seconds since 1970 |
//! | 32 | location of the last checkpoint record |
//! | 40 | its redo location, then its timeline (48) and the previous timeline (52) |
//! | 136 | minimum recovery point, then its timeline (144) |
//! | 172 | `wal_level` |
//! | 180 | `max_connections`, `max_worker_processes` (184), `max_wal_senders` (188), `max_prepared_transactions` (192), `max_locks_per_transaction` (196) |
//! | 216 | block size, blocks to a relation segment (220), WAL block size (224), WAL segment size (228) |
//! | 252 | version of the page checksums, 0 = none |
//! | 288, from 1800 on 292 | CRC-32C of all before it |
//!
//! The file is 8192 bytes, zeros behind the CRC. A running server writes it in one go, but a reader
//! may still see half of a write: a copy is good when its CRC holds, and is read again until then.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::wal::Lsn;
use crate::{PostgresError, PostgresErrorKind, Result};

/// Where the file lies, seen from the data directory.
pub const PATH: &str = "global/pg_control";

/// A location that no checkpoint can have. It passes PostgreSQL's check of the form of a location
/// (made before a `backup_label` is looked for), and lies in the first segment, which no server ever
/// writes, so that no WAL can be found there.
const NO_CHECKPOINT: Lsn = Lsn(0xDEAD);

/// How often a file whose CRC does not hold is read again, and how long to wait in between.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// What the cluster was doing when the file was last written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    StartingUp,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
    Unknown(u32),
}

/// What a control file says, as far as anybody here asks. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    pub system_identifier: u64,
    /// 1300, 1700 or 1800.
    pub control_version: u32,
    pub catalog_version: u32,
    pub state: State,
    /// Seconds since 1970-01-01 00:00:00 UTC.
    pub time: i64,
    pub checkpoint: Lsn,
    pub redo: Lsn,
    pub timeline: u32,
    pub min_recovery_point: Lsn,
    pub min_recovery_timeline: u32,
    /// 0 minimal, 1 replica, 2 logical.
    pub wal_level: u32,
    pub block_size: u32,
    /// Blocks in one file of a relation; the next ones go to the file `.1`, and so on.
    pub relation_segment_blocks: u32,
    pub wal_block_size: u32,
    pub wal_segment_size: u32,
    /// 0 = pages have no checksums.
    pub checksum_version: u32,
}

/// Settings of the primary that a server which replays its WAL may not go below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) connections: u32,
    pub(crate) worker_processes: u32,
    pub(crate) wal_senders: u32,
    pub(crate) prepared_transactions: u32,
    pub(crate) locks_per_transaction: u32,
}

impl ControlFile {
    /// Reads and checks the bytes of a control file. `path` is what messages call it.
    pub fn parse(bytes: &[u8], path: &str) -> Result<Self> {
        let damaged = |what: String| {
            PostgresError::new(PostgresErrorKind::Damaged, format!("{path} is damaged: {what}"))
        };
        if bytes.len() < 296 {
            return Err(damaged(format!("it is only {} bytes long", bytes.len())));
        }
        let version = u32_at(bytes, 8);
        let Some(crc_at) = crc_offset(version) else {
            return Err(if version == 0 {
                damaged("it has no version".to_owned())
            } else if version.is_multiple_of(65536) {
                PostgresError::new(
                    PostgresErrorKind::Unsupported,
                    format!("{path} was written on a machine with the other byte order"),
                )
            } else {
                PostgresError::new(
                    PostgresErrorKind::Unsupported,
                    format!("{path} has version {version}, which is not known here"),
                )
                .with_hint("PostgreSQL 13 to 18 are supported")
            });
        };
        let (stored, computed) = (u32_at(bytes, crc_at), crc(bytes, crc_at));
        if stored != computed {
            return Err(damaged(format!("its checksum is {stored:08x}, not {computed:08x}")));
        }
        let it = Self {
            system_identifier: u64_at(bytes, 0),
            control_version: version,
            catalog_version: u32_at(bytes, 12),
            state: State::from_number(u32_at(bytes, 16)),
            time: u64_at(bytes, 24).cast_signed(),
            checkpoint: Lsn(u64_at(bytes, 32)),
            redo: Lsn(u64_at(bytes, 40)),
            timeline: u32_at(bytes, 48),
            min_recovery_point: Lsn(u64_at(bytes, 136)),
            min_recovery_timeline: u32_at(bytes, 144),
            wal_level: u32_at(bytes, 172),
            block_size: u32_at(bytes, 216),
            relation_segment_blocks: u32_at(bytes, 220),
            wal_block_size: u32_at(bytes, 224),
            wal_segment_size: u32_at(bytes, 228),
            checksum_version: u32_at(bytes, 252),
        };
        let sound = it.block_size.is_power_of_two()
            && crate::page::PAGE_SIZES.contains(&it.block_size)
            && it.relation_segment_blocks > 0
            && it.wal_segment_size.is_power_of_two()
            && (1 << 20..=1 << 30).contains(&it.wal_segment_size);
        if !sound {
            return Err(damaged(format!(
                "blocks of {} bytes and WAL segments of {} bytes cannot be",
                it.block_size, it.wal_segment_size
            )));
        }
        Ok(it)
    }

    /// The limits that a server in recovery needs at least; they are for every version where they
    /// are for version 13.
    pub(crate) fn limits(bytes: &[u8]) -> Limits {
        Limits {
            connections: u32_at(bytes, 180),
            worker_processes: u32_at(bytes, 184),
            wal_senders: u32_at(bytes, 188),
            prepared_transactions: u32_at(bytes, 192),
            locks_per_transaction: u32_at(bytes, 196),
        }
    }

    /// Reads the control file of a data directory, also of a running server.
    pub fn read(data_directory: &Path) -> Result<Self> {
        Ok(read_sound(&data_directory.join(PATH))?.1)
    }
}

/// The bytes of a control file whose CRC holds, and what they say. A file that a running server is
/// just writing is read again; one that stays wrong is an error.
pub fn read_sound(path: &Path) -> Result<(Vec<u8>, ControlFile)> {
    let name = path.display().to_string();
    let mut tries = 0;
    loop {
        let bytes = fs::read(path).map_err(|error| PostgresError::io("read", path, error))?;
        match ControlFile::parse(&bytes, &name) {
            Ok(control) => return Ok((bytes, control)),
            Err(error) if error.kind() == PostgresErrorKind::Damaged && tries < TRIES => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Takes the checkpoint out of a control file that was restored.
///
/// A cluster with a `backup_label` starts from the checkpoint that the label names and never looks
/// at this one. Without the label (someone removed it, a common and fatal piece of advice) PostgreSQL
/// would start from the checkpoint in this file, which is newer than some of the pages that were
/// copied, and skip WAL that they need. With this it finds no checkpoint and refuses.
pub fn invalidate_checkpoint(bytes: &mut [u8], path: &str) -> Result<()> {
    let control = ControlFile::parse(bytes, path)?;
    let crc_at = crc_offset(control.control_version).unwrap_or(288);
    put(bytes, 32, &NO_CHECKPOINT.0.to_le_bytes());
    let sum = crc(bytes, crc_at);
    put(bytes, crc_at, &sum.to_le_bytes());
    Ok(())
}

fn crc_offset(version: u32) -> Option<usize> {
    match version {
        1300 | 1700 => Some(288),
        1800 => Some(292),
        _ => None,
    }
}

fn crc(bytes: &[u8], end: usize) -> u32 {
    crc32c::crc32c(bytes.get(..end).unwrap_or(bytes))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

impl State {
    fn from_number(number: u32) -> Self {
        match number {
            0 => Self::StartingUp,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            other => Self::Unknown(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(version: u32) -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        put(&mut bytes, 0, &7_123_456_789_u64.to_le_bytes());
        put(&mut bytes, 8, &version.to_le_bytes());
        put(&mut bytes, 16, &6_u32.to_le_bytes());
        put(&mut bytes, 32, &0x0200_0060_u64.to_le_bytes());
        put(&mut bytes, 40, &0x0200_0028_u64.to_le_bytes());
        put(&mut bytes, 48, &3_u32.to_le_bytes());
        put(&mut bytes, 216, &8192_u32.to_le_bytes());
        put(&mut bytes, 220, &131_072_u32.to_le_bytes());
        put(&mut bytes, 224, &8192_u32.to_le_bytes());
        put(&mut bytes, 228, &(1_u32 << 24).to_le_bytes());
        put(&mut bytes, 252, &1_u32.to_le_bytes());
        let at = crc_offset(version).unwrap_or(288);
        let sum = crc(&bytes, at);
        put(&mut bytes, at, &sum.to_le_bytes());
        bytes
    }

    #[test]
    fn every_version_is_read_and_loses_its_checkpoint() {
        for version in [1300, 1700, 1800] {
            let mut bytes = control(version);
            let before = ControlFile::parse(&bytes, "pg_control").unwrap();
            assert_eq!(before.timeline, 3);
            assert_eq!(before.state, State::InProduction);
            assert_eq!(before.checkpoint, Lsn(0x0200_0060));
            invalidate_checkpoint(&mut bytes, "pg_control").unwrap();
            let after = ControlFile::parse(&bytes, "pg_control").unwrap();
            assert_eq!(after, ControlFile { checkpoint: NO_CHECKPOINT, ..before });
        }
    }

    #[test]
    fn a_single_flipped_bit_is_damage() {
        let mut bytes = control(1300);
        bytes[253] ^= 4;
        let error = ControlFile::parse(&bytes, "pg_control").unwrap_err();
        assert_eq!(error.kind(), PostgresErrorKind::Damaged);
        assert!(invalidate_checkpoint(&mut bytes, "pg_control").is_err());
    }

    #[test]
    fn a_version_from_the_future_is_refused_by_name() {
        let error = ControlFile::parse(&control(2100), "pg_control").unwrap_err();
        assert_eq!(error.kind(), PostgresErrorKind::Unsupported);
        assert!(error.to_string().contains("2100"), "{error}");
        let error = ControlFile::parse(&control(1300_u32.swap_bytes()), "pg_control").unwrap_err();
        assert!(error.to_string().contains("byte order"), "{error}");
    }

    #[test]
    fn a_file_that_is_being_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pg_control");
        let good = control(1700);
        let mut torn = good.clone();
        torn[256..288].fill(9);
        fs::write(&path, &torn).unwrap();
        let writer = {
            let (path, good) = (path.clone(), good.clone());
            std::thread::spawn(move || {
                std::thread::sleep(PAUSE * 3);
                fs::write(path, good).unwrap();
            })
        };
        let (bytes, _) = read_sound(&path).unwrap();
        writer.join().unwrap();
        assert_eq!(bytes, good);
    }

    #[test]
    fn a_file_that_stays_wrong_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pg_control");
        fs::write(&path, vec![0; 8192]).unwrap();
        let error = read_sound(&path).unwrap_err();
        assert!(error.to_string().contains("pg_control"), "{error}");
    }
}
