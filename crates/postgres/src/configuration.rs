//! Which files configure a server, wherever they lie, and reading those outside its data directory.
//!
//! A package may keep them in `/etc` (Debian's does): a copy of the data directory alone then has
//! neither settings nor access rules. What is found here goes into the snapshot below `config/`, at
//! the path that it has on the host; what lies in the data directory is in the copy anyway.
//!
//! Files lead to others: `include`, `include_if_exists` and `include_dir` in `postgresql.conf` and,
//! from version 16 on, in the access rules, and `@file` in the rules of every version. A private key
//! is taken only by who says so; what the server reads on its way to other machines (`pgpass`,
//! service files, key tables) is never looked for.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use backstay_repo::Metadata;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::copy::metadata;
use crate::inspect::Cluster;
use crate::owner::Names;
use crate::session::Session;

/// Where these files are in a snapshot.
pub(crate) const FOLDER: &str = "config";

/// In a restored data directory: where they are put. Not in any backup under this name.
pub(crate) const ASIDE: &str = "backstay-config";

/// No file that somebody writes by hand is as large. Bytes.
const LARGEST: u64 = 16 << 20;

/// How deep files may include each other; PostgreSQL has the same bound.
const DEEPEST: usize = 10;

/// What Debian keeps beside `postgresql.conf`: how the cluster is started.
const BESIDE: &[&str] = &["environment", "pg_ctl.conf", "start.conf"];

/// A file of a server's configuration that lay outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationFile {
    /// The setting that names it (`config_file`, `hba_file`, `ident_file`, `ssl_cert_file`, …);
    /// `include` for one that another file names, `beside` for one that lies beside `config_file`.
    pub setting: String,
    /// Absolute, on the host of the server.
    pub path: String,
}

/// What was found, in the order of its finding.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) files: Vec<ConfigurationFile>,
    /// The same as a snapshot has them, and the directories above them.
    pub(crate) stored: Vec<Stored>,
    pub(crate) warnings: Vec<String>,
}

/// A file or, without content, a directory.
pub(crate) struct Stored {
    /// In the snapshot: `config/etc/postgresql/15/main/pg_hba.conf`.
    pub(crate) path: Vec<u8>,
    pub(crate) meta: Metadata,
    pub(crate) content: Option<Vec<u8>>,
}

/// What kind of includes a file may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Syntax {
    Settings,
    Rules,
    /// A list of names that `@file` leads to.
    Names,
    None,
}

/// Finds and reads them. What cannot be read is a warning: a backup of the data is not given up for
/// it, nor called incomplete.
pub(crate) fn find(cluster: &Cluster, session: &mut Session, private_keys: bool) -> Result<Found> {
    let asked = [
        "config_file",
        "hba_file",
        "ident_file",
        "ssl",
        "ssl_ca_file",
        "ssl_cert_file",
        "ssl_crl_file",
        "ssl_dh_params_file",
        "ssl_key_file",
    ];
    let rows = session.rows(
        "ask where the configuration files are",
        "SELECT name, coalesce(setting, '') FROM pg_settings WHERE name = ANY($1)",
        &[&asked.as_slice()],
    )?;
    let settings: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let get = |name: &str| {
        settings.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str())
    };
    let mut finder = Finder::new(&cluster.data_directory);
    if get("config_file").is_empty() && !cluster.data_directory.join("postgresql.conf").exists() {
        finder.found.warnings.push(
            "the role may not ask where the configuration files are, so they are not in the backup; \
             grant it pg_read_all_settings"
                .to_owned(),
        );
    }
    for name in ["config_file", "hba_file", "ident_file"] {
        let syntax = if name == "config_file" { Syntax::Settings } else { Syntax::Rules };
        finder.add(name, get(name), syntax, 0);
    }
    if let Some(folder) = Path::new(get("config_file")).parent() {
        for name in BESIDE {
            let path = folder.join(name);
            if path.is_file() {
                finder.add("beside", &path.to_string_lossy(), Syntax::None, 0);
            }
        }
    }
    if get("ssl") == "on" {
        for (name, _) in settings.iter().filter(|(name, _)| name.starts_with("ssl_")) {
            if name != "ssl_key_file" || private_keys {
                finder.add(name, get(name), Syntax::None, 0);
            }
        }
    }
    Ok(finder.done())
}

struct Finder {
    data: PathBuf,
    names: Names,
    seen: Vec<PathBuf>,
    found: Found,
}

impl Finder {
    fn new(data: &Path) -> Self {
        Self {
            data: fs::canonicalize(data).unwrap_or_else(|_| data.to_owned()),
            names: Names::load(),
            seen: Vec::new(),
            found: Found::default(),
        }
    }

    /// Adds the file that `setting` names, and what it includes. A relative name is one in the data
    /// directory.
    fn add(&mut self, setting: &str, name: &str, syntax: Syntax, depth: usize) {
        if name.is_empty() || depth > DEEPEST {
            return;
        }
        let path = self.data.join(name);
        if self.seen.contains(&path) {
            return;
        }
        self.seen.push(path.clone());
        let content = match self.read(&path) {
            Ok(Some(content)) => content,
            Ok(None) => return,
            Err(error) => {
                self.found
                    .warnings
                    .push(format!("{} ({setting}) is not in the backup: {error}", path.display()));
                return;
            }
        };
        if syntax != Syntax::None {
            let text = String::from_utf8_lossy(&content).into_owned();
            let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
            for include in includes(&text, syntax) {
                self.follow(&folder, &include, syntax, depth);
            }
        }
        if self.is_in_copy(&path) {
            return;
        }
        // Two names of one file are two files in the copy: each has to be where it is looked for.
        if let Ok(meta) = fs::metadata(&path) {
            let meta = metadata(&meta, &self.names);
            self.found.files.push(ConfigurationFile {
                setting: setting.to_owned(),
                path: path.to_string_lossy().into_owned(),
            });
            self.found.stored.push(Stored {
                path: stored_path(&path),
                meta,
                content: Some(content),
            });
        }
    }

    fn follow(&mut self, folder: &Path, include: &Include, syntax: Syntax, depth: usize) {
        let path = folder.join(&include.name);
        match include.kind {
            IncludeKind::Names => {
                self.add("include", &path.to_string_lossy(), Syntax::Names, depth + 1);
            }
            IncludeKind::File => self.add("include", &path.to_string_lossy(), syntax, depth + 1),
            IncludeKind::Directory => {
                let Ok(entries) = fs::read_dir(&path) else { return };
                let mut names: Vec<PathBuf> = entries
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|path| {
                        let name = path.file_name().unwrap_or_default().to_string_lossy();
                        name.ends_with(".conf") && !name.starts_with('.') && path.is_file()
                    })
                    .collect();
                names.sort();
                for path in names {
                    self.add("include", &path.to_string_lossy(), syntax, depth + 1);
                }
            }
        }
    }

    /// None for a file that is not there, as one that may be missing.
    fn read(&self, path: &Path) -> std::io::Result<Option<Vec<u8>>> {
        match fs::metadata(path) {
            Ok(meta) if !meta.is_file() => Err(std::io::Error::other("it is no file")),
            Ok(meta) if meta.len() > LARGEST => Err(std::io::Error::other("it is too large")),
            Ok(_) => fs::read(path).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the copy of the data directory has the content: a link out of it is copied as a link.
    fn is_in_copy(&self, path: &Path) -> bool {
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match real.strip_prefix(&self.data) {
            Ok(below) => !below.starts_with(ASIDE),
            Err(_) => false,
        }
    }

    /// With the directories in which the files lie.
    fn done(mut self) -> Found {
        if self.found.stored.is_empty() {
            return self.found;
        }
        let mut folders: Vec<(Vec<u8>, Metadata)> = Vec::new();
        let top = fs::metadata(&self.data).map(|meta| metadata(&meta, &self.names));
        folders.push((FOLDER.as_bytes().to_vec(), top.unwrap_or_default()));
        for file in &self.found.files {
            for folder in Path::new(&file.path).ancestors().skip(1) {
                let stored = stored_path(folder);
                if folder.parent().is_none() || folders.iter().any(|(path, _)| *path == stored) {
                    continue;
                }
                if let Ok(meta) = fs::metadata(folder) {
                    folders.push((stored, metadata(&meta, &self.names)));
                }
            }
        }
        let directory = |(path, meta)| Stored { path, meta, content: None };
        self.found.stored.extend(folders.into_iter().map(directory));
        self.found
    }
}

/// Where a file or a folder of the host is in a snapshot.
fn stored_path(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    [FOLDER.as_bytes(), path.as_os_str().as_bytes()].concat()
}

#[derive(Debug, PartialEq, Eq)]
struct Include {
    kind: IncludeKind,
    /// As it is written: relative to the file that names it.
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IncludeKind {
    File,
    Directory,
    Names,
}

fn include_kind(word: &str) -> Option<IncludeKind> {
    match word.to_ascii_lowercase().as_str() {
        "include" | "include_if_exists" => Some(IncludeKind::File),
        "include_dir" => Some(IncludeKind::Directory),
        _ => None,
    }
}

/// The files that a file includes.
fn includes(text: &str, syntax: Syntax) -> Vec<Include> {
    match syntax {
        Syntax::None => Vec::new(),
        Syntax::Settings => text
            .lines()
            .filter_map(|line| {
                let (name, value) = setting(line)?;
                Some(Include { kind: include_kind(&name)?, name: value })
            })
            .collect(),
        Syntax::Rules | Syntax::Names => text
            .lines()
            .flat_map(|line| {
                let words = words(line);
                let first = words.first().and_then(|(word, quoted)| {
                    include_kind(word).filter(|_| !quoted && syntax == Syntax::Rules)
                });
                match (first, words.get(1)) {
                    (Some(kind), Some((name, _))) => vec![Include { kind, name: name.clone() }],
                    _ => words
                        .iter()
                        .filter(|(_, quoted)| !quoted)
                        .filter_map(|(word, _)| word.strip_prefix('@'))
                        .filter(|name| !name.is_empty())
                        .map(|name| Include { kind: IncludeKind::Names, name: name.to_owned() })
                        .collect(),
                }
            })
            .collect(),
    }
}

/// Name and value of a line of `postgresql.conf`; none for a comment or an empty line.
pub(crate) fn setting(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let end = line
        .find(|c: char| c != '_' && c != '.' && !c.is_ascii_alphanumeric())
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        None => rest.split([' ', '\t', '#', '\r']).next().unwrap_or_default().to_owned(),
        Some(rest) => {
            let mut value = String::new();
            let mut letters = rest.chars().peekable();
            while let Some(letter) = letters.next() {
                match letter {
                    '\'' if letters.peek() == Some(&'\'') => {
                        letters.next();
                        value.push('\'');
                    }
                    '\'' => break,
                    '\\' => value.extend(letters.next()),
                    _ => value.push(letter),
                }
            }
            value
        }
    };
    Some((name.to_ascii_lowercase(), value))
}

/// The words of a line of access rules, and whether each is quoted: separated by blanks and commas,
/// up to a comment.
fn words(line: &str) -> Vec<(String, bool)> {
    let mut words = Vec::new();
    let (mut word, mut quoted, mut inside) = (String::new(), false, false);
    for letter in line.chars() {
        match letter {
            '"' => {
                inside = !inside;
                // The name in `@"a file"` is quoted, what it means is not.
                quoted |= word.is_empty();
            }
            '#' if !inside => break,
            ' ' | '\t' | ',' | '\r' if !inside => {
                if !word.is_empty() {
                    words.push((std::mem::take(&mut word), quoted));
                }
                quoted = false;
            }
            _ => word.push(letter),
        }
    }
    if !word.is_empty() {
        words.push((word, quoted));
    }
    words
}

/// Whether access rules need no other file.
pub(crate) fn stands_alone(rules: &str) -> bool {
    includes(rules, Syntax::Rules).is_empty()
}

/// A copy of `settings` in which includes of absolute paths that `moved` knows are of what it says
/// instead; none where there is no such include.
pub(crate) fn with_includes_moved(
    settings: &str,
    moved: impl Fn(&Path) -> Option<String>,
) -> Option<String> {
    let mut changed = false;
    let mut text = String::with_capacity(settings.len());
    for line in settings.lines() {
        let other = setting(line)
            .filter(|(name, value)| include_kind(name).is_some() && value.starts_with('/'))
            .and_then(|(name, value)| Some((name, moved(Path::new(&value))?)));
        match other {
            Some((name, path)) => {
                changed = true;
                let path = path.replace('\\', "\\\\").replace('\'', "''");
                text.push_str(&format!("# {}\n{name} '{path}'\n", line.trim()));
            }
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    changed.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str, syntax: Syntax) -> Vec<(IncludeKind, String)> {
        includes(text, syntax).into_iter().map(|include| (include.kind, include.name)).collect()
    }

    #[test]
    fn includes_of_settings_are_found_in_every_form() {
        let text = "port = 5432\ninclude_dir = 'conf.d'   # Debian\n#include 'no'\n\
                    INCLUDE_IF_EXISTS '/etc/it''s.conf'\ninclude plain.conf # so\nincluded = 'no'\n";
        assert_eq!(
            names(text, Syntax::Settings),
            [
                (IncludeKind::Directory, "conf.d".to_owned()),
                (IncludeKind::File, "/etc/it's.conf".to_owned()),
                (IncludeKind::File, "plain.conf".to_owned()),
            ]
        );
    }

    #[test]
    fn includes_of_rules_are_found_in_every_form() {
        let text = "local all all peer # @no\ninclude \"more rules.conf\"\n\
                    host @dbs a,@admins 10.0.0.0/8 md5\n\"include\" all all reject\n\
                    host \"@user\" @\"my list\" all md5\n";
        assert_eq!(
            names(text, Syntax::Rules),
            [
                (IncludeKind::File, "more rules.conf".to_owned()),
                (IncludeKind::Names, "dbs".to_owned()),
                (IncludeKind::Names, "admins".to_owned()),
                (IncludeKind::Names, "my list".to_owned()),
            ]
        );
        assert!(stands_alone("local all all peer\n# include x\n"));
        assert!(!stands_alone(text));
    }

    #[test]
    fn settings_are_read_as_the_server_reads_them() {
        let of = |line: &str| setting(line).unwrap();
        assert_eq!(of(" Port=5433 # x"), ("port".to_owned(), "5433".to_owned()));
        assert_eq!(of("hba_file = '/a b/c' #"), ("hba_file".to_owned(), "/a b/c".to_owned()));
        assert_eq!(of(r"x 'a\'b''c'"), ("x".to_owned(), "a'b'c".to_owned()));
        assert_eq!(of("lonely"), ("lonely".to_owned(), String::new()));
        assert!(setting("  # port = 1").is_none());
        assert!(setting("").is_none());
    }

    #[test]
    fn only_includes_of_what_moved_are_changed() {
        let text = "include '/etc/there.conf'\ninclude '/etc/gone.conf'\nport = 1\n";
        let moved = |path: &Path| (path == Path::new("/etc/gone.conf")).then(|| "a/b".to_owned());
        assert_eq!(
            with_includes_moved(text, moved).unwrap(),
            "include '/etc/there.conf'\n# include '/etc/gone.conf'\ninclude 'a/b'\nport = 1\n"
        );
        assert!(with_includes_moved(text, |_| None).is_none());
    }

    #[test]
    fn files_lead_to_others_and_no_cycle_is_endless() {
        let folder = tempfile::tempdir().unwrap();
        let (data, etc) = (folder.path().join("data"), folder.path().join("etc"));
        for directory in [&data, &etc, &etc.join("conf.d"), &data.join(ASIDE)] {
            fs::create_dir(directory).unwrap();
        }
        let write = |path: PathBuf, text: &str| fs::write(path, text).unwrap();
        write(
            etc.join("postgresql.conf"),
            "include_dir 'conf.d'\ninclude 'postgresql.conf'\ninclude 'gone.conf'\n",
        );
        write(etc.join("conf.d/b.conf"), "work_mem = '1MB'\n");
        write(etc.join("conf.d/a.conf"), &format!("include '{}/in.conf'\n", data.display()));
        write(etc.join("conf.d/no.txt"), "");
        write(data.join("in.conf"), "");
        write(data.join(ASIDE).join("kept.conf"), "");
        let mut finder = Finder::new(&data);
        finder.add(
            "config_file",
            &etc.join("postgresql.conf").to_string_lossy(),
            Syntax::Settings,
            0,
        );
        finder.add("include", "backstay-config/kept.conf", Syntax::Settings, 0);
        let found = finder.done();
        let names: Vec<String> = found
            .files
            .iter()
            .map(|file| Path::new(&file.path).file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["a.conf", "b.conf", "postgresql.conf", "kept.conf"]);
        assert!(found.warnings.is_empty(), "{:?}", found.warnings);
        let folders = found.stored.iter().filter(|stored| stored.content.is_none());
        assert!(folders.clone().any(|stored| stored.path == b"config"));
        assert!(folders.clone().any(|stored| stored.path.ends_with(b"/etc/conf.d")));
    }
}
