//! Which key was used on this host, when, by whom and for what: a file of JSON lines beside the
//! user's other state.
//!
//! Changes of slots are recorded in the repository. Openings are recorded here, because an archiver
//! opens a repository for every segment, and a repository must not grow by an object each time.
//!
//! Each line carries the hash of the line before it, and its number: a line that was altered or
//! taken out of the middle shows. What does not: that the end is missing, or that somebody with the
//! rights of the user wrote the whole file anew. A file that has grown to its limit is put aside
//! (`keys.log.1`, and older ones up to `keys.log.4`), and the chain goes on in the next one.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::Error;

/// Of one file, before it is put aside. Bytes.
const LIMIT: u64 = 4 << 20;
/// How many are kept aside.
const ASIDE: u32 = 4;
/// No line is longer; what is, is none of ours. Bytes.
const LONGEST: u64 = 16 << 10;

/// One use of a key. Nothing secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUse {
    pub time: Timestamp,
    /// The command, as `wal push`.
    pub command: String,
    /// The repository's name in the configuration.
    pub repository: String,
    /// Its address, without secrets.
    pub url: String,
    /// The slot that opened it; none when nothing did.
    pub slot: Option<String>,
    /// What was used.
    pub kind: String,
    pub host: String,
    pub user: String,
    pub pid: u32,
    /// `opened`, or the kind of the error.
    pub outcome: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    /// Counted from 1, over all files.
    number: u64,
    #[serde(flatten)]
    what: KeyUse,
    /// The hash of the line before; empty in the first.
    previous: String,
    /// Of all above.
    hash: String,
}

impl Line {
    fn hashed(&self) -> String {
        let body = serde_json::to_vec(&(self.number, &self.what, &self.previous));
        blake3::hash(&body.expect("plain JSON")).to_hex().to_string()
    }
}

/// What the log says, and where it was tampered with.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    pub uses: Vec<KeyUse>,
    /// Where the chain is broken, in words.
    pub broken: Vec<String>,
    /// How many older lines were put aside and removed since.
    pub gone: u64,
}

/// The log of one user on this host.
#[derive(Debug, Clone)]
pub struct KeyLog {
    path: PathBuf,
    limit: u64,
}

impl KeyLog {
    pub fn new(path: PathBuf) -> Self {
        Self { path, limit: LIMIT }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn aside(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// Adds a line. Safe with any number of processes at once.
    pub fn record(&self, what: KeyUse) -> Result<()> {
        let failed = |error| Error::io("write the log of keys", &self.path, error);
        if let Some(folder) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        }
        let mut lock = self.path.clone().into_os_string();
        lock.push(".lock");
        let open = |path: &Path| {
            OpenOptions::new().read(true).create(true).append(true).mode(0o600).open(path)
        };
        // Held until the line is written. The log itself cannot be the lock: it is put aside.
        let lock = open(Path::new(&lock)).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let mut file = open(&self.path).map_err(failed)?;
        let end = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let (last, whole) = last_line(&mut file, end).map_err(failed)?;
        let last = match last {
            // A file that was just put aside, or whose only line is torn.
            None => File::open(self.aside(1)).ok().and_then(|mut file| {
                let end = file.seek(SeekFrom::End(0)).ok()?;
                last_line(&mut file, end).ok()?.0
            }),
            last => last,
        };
        let (number, previous) =
            last.map_or((1, String::new()), |line| (line.number + 1, line.hash));
        let mut line = Line { number, what, previous, hash: String::new() };
        line.hash = line.hashed();
        let mut bytes = Vec::new();
        // A process that died left half a line.
        if !whole {
            bytes.push(b'\n');
        }
        serde_json::to_writer(&mut bytes, &line).map_err(|error| failed(error.into()))?;
        bytes.push(b'\n');
        file.write_all(&bytes).map_err(failed)?;
        if end >= self.limit {
            for number in (1..ASIDE).rev() {
                let older = self.aside(number);
                if older.exists() {
                    std::fs::rename(&older, self.aside(number + 1)).map_err(failed)?;
                }
            }
            std::fs::rename(&self.path, self.aside(1)).map_err(failed)?;
        }
        Ok(())
    }

    /// All that is there, oldest first, with the chain checked.
    pub fn read(&self) -> Result<Recorded> {
        let mut read = Recorded::default();
        let mut before: Option<Line> = None;
        let files = (1..=ASIDE).rev().map(|number| self.aside(number)).chain([self.path.clone()]);
        for path in files {
            let mut text = Vec::new();
            match File::open(&path).and_then(|mut file| file.read_to_end(&mut text)) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("read the log of keys", &path, error)),
            }
            for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
                if line.is_empty() {
                    continue;
                }
                let place = format!("{} line {}", path.display(), at + 1);
                let Ok(line) = serde_json::from_slice::<Line>(line) else {
                    read.broken.push(format!("{place} is torn or was overwritten"));
                    continue;
                };
                if line.hash != line.hashed() {
                    read.broken.push(format!("{place} was altered"));
                }
                match &before {
                    None => read.gone = line.number.saturating_sub(1),
                    Some(before) if line.number != before.number + 1 => {
                        read.broken.push(format!(
                            "{place}: the lines between number {} and {} are missing",
                            before.number, line.number
                        ));
                    }
                    Some(before) if line.previous != before.hash => {
                        read.broken.push(format!("{place} does not follow the line before it"));
                    }
                    Some(_) => {}
                }
                read.uses.push(line.what.clone());
                before = Some(line);
            }
        }
        Ok(read)
    }
}

/// The last line that can be read, and whether the file ends with a whole one.
fn last_line(file: &mut File, end: u64) -> std::io::Result<(Option<Line>, bool)> {
    let from = end.saturating_sub(LONGEST);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.take(LONGEST).read_to_end(&mut tail)?;
    let last = tail
        .split(|byte| *byte == b'\n')
        .rev()
        .find_map(|line| serde_json::from_slice::<Line>(line).ok());
    Ok((last, tail.last().is_none_or(|byte| *byte == b'\n')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(command: &str) -> KeyUse {
        KeyUse {
            time: "2026-11-25T02:00:00Z".parse().unwrap(),
            command: command.into(),
            repository: "main".into(),
            url: "file:///repo".into(),
            slot: Some("0011223344556677".into()),
            kind: "key-file".into(),
            host: "h".into(),
            user: "0 (root)".into(),
            pid: 1,
            outcome: "opened".into(),
        }
    }

    fn log(folder: &tempfile::TempDir) -> KeyLog {
        KeyLog::new(folder.path().join("state/keys.log"))
    }

    fn commands(read: &Recorded) -> Vec<&str> {
        read.uses.iter().map(|used| used.command.as_str()).collect()
    }

    #[test]
    fn what_is_recorded_is_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder);
        assert_eq!(log.read().unwrap(), Recorded::default());
        for command in ["a", "b", "c"] {
            log.record(used(command)).unwrap();
        }
        let read = log.read().unwrap();
        assert_eq!(commands(&read), ["a", "b", "c"]);
        assert_eq!((read.broken.len(), read.gone), (0, 0));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(log.path().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_line_that_is_altered_or_removed_shows() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder);
        for command in ["a", "b", "c", "d"] {
            log.record(used(command)).unwrap();
        }
        let whole = std::fs::read_to_string(log.path()).unwrap();
        let lines: Vec<&str> = whole.lines().collect();
        let with = |lines: &[&str]| {
            std::fs::write(log.path(), lines.join("\n") + "\n").unwrap();
            log.read().unwrap().broken
        };
        assert!(with(&lines).is_empty());
        assert!(with(&[lines[0], lines[2], lines[3]])[0].contains("between number 1 and 3"));
        let other = lines[1].replace("\"b\"", "\"x\"");
        assert!(with(&[lines[0], &other, lines[2], lines[3]])[0].contains("line 2 was altered"));
        assert!(with(&[lines[0], lines[2], lines[1], lines[3]]).len() >= 2);
        // Written anew from the second on, as by somebody who knows the form.
        let mut forged: Line = serde_json::from_str(&other).unwrap();
        forged.hash = forged.hashed();
        let forged = serde_json::to_string(&forged).unwrap();
        let broken = with(&[lines[0], &forged, lines[2], lines[3]]);
        assert!(broken[0].contains("line 3 does not follow"), "{broken:?}");
    }

    #[test]
    fn half_a_line_does_not_spoil_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder);
        log.record(used("a")).unwrap();
        log.record(used("b")).unwrap();
        let whole = std::fs::read(log.path()).unwrap();
        std::fs::write(log.path(), &whole[..whole.len() - 10]).unwrap();
        log.record(used("c")).unwrap();
        log.record(used("d")).unwrap();
        let read = log.read().unwrap();
        assert_eq!(commands(&read), ["a", "c", "d"]);
        assert_eq!(read.broken.len(), 1, "{:?}", read.broken);
        assert!(read.broken[0].contains("line 2 is torn"));
    }

    #[test]
    fn the_chain_goes_on_over_files_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let log = KeyLog { limit: 2_000, ..log(&folder) };
        for n in 0..200 {
            log.record(used(&n.to_string())).unwrap();
        }
        let read = log.read().unwrap();
        assert_eq!(read.broken, Vec::<String>::new());
        assert!(read.gone > 0);
        assert_eq!(read.gone + read.uses.len() as u64, 200);
        assert_eq!(read.uses.last().unwrap().command, "199");
        std::fs::remove_file(log.aside(2)).unwrap();
        assert_eq!(log.read().unwrap().broken.len(), 1);
    }

    #[test]
    fn many_at_once_keep_the_chain() {
        let folder = tempfile::tempdir().unwrap();
        let log = KeyLog { limit: 20_000, ..log(&folder) };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| log.record(used("x")).unwrap()));
            }
        });
        let read = log.read().unwrap();
        assert_eq!(read.broken, Vec::<String>::new());
        assert_eq!(read.gone + read.uses.len() as u64, 200);
    }

    #[test]
    fn anything_in_the_file_is_read_without_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder);
        std::fs::create_dir_all(log.path().parent().unwrap()).unwrap();
        std::fs::write(log.path(), [0xff; 40_000]).unwrap();
        assert_eq!(log.read().unwrap().broken.len(), 1);
        log.record(used("a")).unwrap();
        assert_eq!(commands(&log.read().unwrap()), ["a"]);
    }
}
