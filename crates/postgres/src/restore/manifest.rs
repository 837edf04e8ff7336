//! `backup_manifest`: what is in a restored data directory, in the words of `pg_verifybackup`.
//!
//! One object in JSON, the last line of which holds the SHA-256 of all bytes before that line
//! (`common/parse_manifest.c`). Version 2, from PostgreSQL 17 on, names the cluster as well. A file's
//! checksum is a CRC-32C, its four bytes in the order in which a little-endian machine has them.
//!
//! The checksums are of what lies on the disk when the restore is done. That this is what was backed
//! up was made sure of before, chunk by chunk; from here on the manifest tells whether it still is.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use backstay_repo::Progress;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::detail::BackupDetail;
use crate::{PostgresError, Result};

use super::files;

pub(super) const NAME: &str = "backup_manifest";

/// What `pg_verifybackup` does not look at, at the top of the directory.
const IGNORED: &[&str] =
    &[NAME, "pg_wal", "postgresql.auto.conf", "recovery.signal", "standby.signal"];

const BUFFER: usize = 1 << 20;

struct Listed {
    /// Seen from the data directory.
    path: Vec<u8>,
    place: PathBuf,
    size: u64,
    modified: Timestamp,
    crc: u32,
}

/// Writes the manifest of `directory`, reading every file in it and in its tablespaces.
pub(super) fn write(
    directory: &Path,
    detail: &BackupDetail,
    workers: usize,
    progress: &Progress,
) -> Result<PathBuf> {
    let mut listed = Vec::new();
    list(directory, b"", &mut listed)?;
    let bytes = listed.iter().map(|file| file.size).sum();
    progress.add_total(bytes, 0);
    sum(&mut listed, workers, progress)?;
    let text = text(&listed, detail);
    files::write(directory, NAME, text.as_bytes())?;
    Ok(directory.join(NAME))
}

fn list(folder: &Path, below: &[u8], listed: &mut Vec<Listed>) -> Result<()> {
    let io = |error| PostgresError::io("read the directory", folder, error);
    let mut entries: Vec<fs::DirEntry> =
        fs::read_dir(folder).map_err(io)?.collect::<std::io::Result<_>>().map_err(io)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (name, place) = (entry.file_name(), entry.path());
        if below.is_empty() && IGNORED.iter().any(|ignored| name == *ignored) {
            continue;
        }
        let mut path = below.to_vec();
        path.extend_from_slice(name.as_bytes());
        // Through links, as `pg_verifybackup` goes into tablespaces.
        let meta =
            fs::metadata(&place).map_err(|error| PostgresError::io("read", &place, error))?;
        if meta.is_dir() {
            path.push(b'/');
            list(&place, &path, listed)?;
        } else if meta.is_file() {
            let modified = meta.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
            listed.push(Listed {
                path,
                place,
                size: meta.len(),
                modified: modified.unwrap_or(Timestamp::UNIX_EPOCH),
                crc: 0,
            });
        }
    }
    Ok(())
}

/// Reads all files and fills in their checksums.
fn sum(listed: &mut [Listed], workers: usize, progress: &Progress) -> Result<()> {
    let count = match workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    };
    let next = AtomicUsize::new(0);
    let (sums, failed) = (Mutex::new(Vec::new()), Mutex::new(None));
    let files: &[Listed] = listed;
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                let mut buffer = vec![0; BUFFER];
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(file) = files.get(at) else { return };
                    match crc_of(&file.place, &mut buffer, progress) {
                        Ok(crc) => {
                            sums.lock().unwrap_or_else(|e| e.into_inner()).push((at, crc));
                        }
                        Err(error) => {
                            next.store(files.len(), Ordering::Relaxed);
                            failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(error);
    }
    for (at, crc) in sums.into_inner().unwrap_or_else(|e| e.into_inner()) {
        if let Some(file) = listed.get_mut(at) {
            file.crc = crc;
        }
    }
    Ok(())
}

fn crc_of(path: &Path, buffer: &mut [u8], progress: &Progress) -> Result<u32> {
    let io = |error| PostgresError::io("read", path, error);
    let mut file = File::open(path).map_err(io)?;
    let mut crc = 0;
    loop {
        progress.check()?;
        match file.read(buffer) {
            Ok(0) => return Ok(crc),
            Ok(n) => {
                crc = crc32c::crc32c_append(crc, buffer.get(..n).unwrap_or_default());
                progress.add_done(n as u64, 0);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io(error)),
        }
    }
}

fn text(listed: &[Listed], detail: &BackupDetail) -> String {
    let mut text = String::from("{ \"PostgreSQL-Backup-Manifest-Version\": ");
    if detail.version >= 17 {
        let _ = write!(text, "2,\n\"System-Identifier\": {},\n", detail.system_identifier);
    } else {
        text.push_str("1,\n");
    }
    text.push_str("\"Files\": [");
    for (at, file) in listed.iter().enumerate() {
        text.push_str(if at == 0 { "\n" } else { ",\n" });
        let _ = write!(
            text,
            "{{ {}, \"Size\": {}, \"Last-Modified\": \"{}\", \"Checksum-Algorithm\": \
             \"CRC32C\", \"Checksum\": \"{}\" }}",
            path(&file.path),
            file.size,
            file.modified.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S GMT"),
            hex(&file.crc.to_le_bytes()),
        );
    }
    let _ = write!(
        text,
        "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \
         \"{}\" }}\n],\n",
        detail.timeline, detail.start_lsn, detail.stop_lsn
    );
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let _ = writeln!(text, "\"Manifest-Checksum\": \"{}\"}}", hex(sum.as_ref()));
    text
}

/// As text where it is text, else its bytes.
fn path(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) => format!("\"Path\": {}", serde_json::Value::from(text)),
        Err(_) => format!("\"Encoded-Path\": \"{}\"", hex(path)),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_are_no_text_are_written_as_bytes() {
        assert_eq!(path(b"base/5/1259"), "\"Path\": \"base/5/1259\"");
        assert_eq!(path(b"a\"b"), "\"Path\": \"a\\\"b\"");
        assert_eq!(path(b"\xff/1"), "\"Encoded-Path\": \"ff2f31\"");
    }

    #[test]
    fn files_are_listed_through_links_and_summed() {
        let folder = tempfile::tempdir().unwrap();
        let (data, space) = (folder.path().join("data"), folder.path().join("space"));
        for name in ["data/pg_tblspc", "data/pg_wal", "data/base/5", "space/PG_15_1/5"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink(&space, data.join("pg_tblspc/7")).unwrap();
        fs::write(data.join("base/5/1"), "123456789").unwrap();
        fs::write(space.join("PG_15_1/5/2"), "").unwrap();
        for ignored in ["backup_manifest", "pg_wal/0", "recovery.signal"] {
            fs::write(data.join(ignored), "x").unwrap();
        }
        let mut listed = Vec::new();
        list(&data, b"", &mut listed).unwrap();
        sum(&mut listed, 3, &Progress::default()).unwrap();
        let found: Vec<(&str, String)> = listed
            .iter()
            .map(|file| (std::str::from_utf8(&file.path).unwrap(), hex(&file.crc.to_le_bytes())))
            .collect();
        // The check value of CRC-32C, 0xE3069283.
        assert_eq!(
            found,
            [
                ("base/5/1", "839206e3".to_owned()),
                ("pg_tblspc/7/PG_15_1/5/2", "00000000".to_owned())
            ]
        );
    }
}
