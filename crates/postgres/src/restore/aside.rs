//! The configuration of a restored cluster, where the original's lay outside the data directory.
//!
//! What the backup has of it is put aside in the data directory, for people to compare: it names
//! paths, ports and sizes of another machine. A server has to start all the same, so that what it
//! cannot do without is made: settings that are enough to replay the log, and access rules, those
//! of the original where they stand alone.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::configuration::{ASIDE, setting, stands_alone, with_includes_moved};
use crate::control::ControlFile;
use crate::detail::BackupDetail;

use super::files;

/// Settings for `postgresql.auto.conf` that make the server find what was made.
pub(super) type Extra = Vec<(&'static str, PathBuf)>;

/// The access rules and the map of users: what names them, and where they are by default.
const RULES: [(&str, &str); 2] = [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")];

/// Makes what a server in `to` needs to start and what is not there; `control` is the content of the
/// control file to be. What was done is added to `notes`.
pub(super) fn complete(
    to: &Path,
    detail: &BackupDetail,
    control: &[u8],
    notes: &mut Vec<String>,
) -> Result<Extra> {
    let mut extra = Extra::new();
    let mut made = Vec::new();
    let path = to.join("postgresql.conf");
    // A link that leads to a file of this machine is the reader's own business.
    let text = if path.exists() { files::read_if_there(&path)? } else { None };
    match text {
        None => {
            made.push("postgresql.conf");
            files::write(to, "postgresql.conf", minimal(control, detail).as_bytes())?;
            for (name, file) in RULES {
                if !to.join(file).exists() {
                    made.push(file);
                    rules(to, detail, name, file)?;
                }
            }
        }
        Some(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let moved = |path: &Path| copy_of(to, detail, path);
            if let Some(text) = with_includes_moved(&text, moved) {
                files::write(to, "postgresql.conf", text.as_bytes())?;
                notes.push(format!(
                    "postgresql.conf includes files that are not on this machine; their copies in \
                     {ASIDE} are included instead"
                ));
            }
            for (name, file) in RULES {
                let named = value_of(&text, name).map(|value| to.join(value));
                let named = named.unwrap_or_else(|| to.join(file));
                if named.exists() {
                    continue;
                }
                made.push(file);
                if !to.join(file).exists() {
                    rules(to, detail, name, file)?;
                }
                if named != to.join(file) {
                    extra.push((name, to.join(file)));
                }
            }
            elsewhere(to, &text, notes);
        }
    }
    if let Some(note) = note(detail, &made) {
        notes.push(note);
    }
    Ok(extra)
}

/// What was made, and where the originals are.
fn note(detail: &BackupDetail, made: &[&str]) -> Option<String> {
    let (names, aside) = (made.join(", "), !detail.configuration.is_empty());
    match (made.is_empty(), aside) {
        (true, false) => None,
        (true, true) => Some(format!(
            "the configuration that lay outside the data directory was put into {ASIDE}, and is not \
             used from there"
        )),
        (false, true) => Some(format!(
            "the configuration lay outside the data directory: it was put into {ASIDE}, and {names} \
             made that are enough to start with; take over from there what is to count"
        )),
        (false, false) => Some(format!(
            "the configuration lay outside the data directory and is not in the backup: {names} were \
             made that are enough to start with"
        )),
    }
}

/// Says it where the settings send the server to another data directory, or to certificates that
/// are not here.
fn elsewhere(to: &Path, text: &str, notes: &mut Vec<String>) {
    if let Some(other) = value_of(text, "data_directory")
        && Path::new(&other) != to
    {
        notes.push(format!(
            "postgresql.conf has data_directory = '{other}': take it out before the server is \
             started, or it starts there"
        ));
    }
    if value_of(text, "ssl").is_none_or(|value| !is_on(&value)) {
        return;
    }
    for (name, default) in [
        ("ssl_cert_file", "server.crt"),
        ("ssl_key_file", "server.key"),
        ("ssl_ca_file", ""),
        ("ssl_crl_file", ""),
    ] {
        let file = value_of(text, name).unwrap_or_else(|| default.to_owned());
        if !file.is_empty() && !to.join(&file).exists() {
            notes.push(format!(
                "{name} = '{file}' is not on this machine: put it there or set ssl = off, or the \
                 server does not start"
            ));
        }
    }
}

fn is_on(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "on" | "true" | "yes" | "1")
}

/// The last value that counts; values in other files are not looked for.
fn value_of(text: &str, name: &str) -> Option<String> {
    text.lines()
        .filter_map(setting)
        .filter(|(known, value)| known == name && !value.is_empty())
        .map(|(_, value)| value)
        .next_back()
}

/// Where the copy of a file or folder of the original is, seen from the data directory; none when
/// there is none, or when the original is there.
fn copy_of(to: &Path, detail: &BackupDetail, original: &Path) -> Option<String> {
    let known = detail.configuration.iter().any(|file| Path::new(&file.path).starts_with(original));
    let copy = Path::new(ASIDE).join(original.strip_prefix("/").ok()?);
    (known && !original.exists() && to.join(&copy).exists())
        .then(|| copy.to_string_lossy().into_owned())
}

/// The original's rules where they need no other file; else the local ones of whoever runs the
/// server, and nobody else's.
fn rules(to: &Path, detail: &BackupDetail, name: &str, file: &str) -> Result<()> {
    if let Some(original) = detail.configuration.iter().find(|known| known.setting == name)
        && let Ok(below) = Path::new(&original.path).strip_prefix("/")
        && let Some(content) = files::read_if_there(&to.join(ASIDE).join(below))?
        && stands_alone(&String::from_utf8_lossy(&content))
    {
        return files::write(to, file, &content);
    }
    let text =
        if file == "pg_hba.conf" { "# Written by a restore.\nlocal all all peer\n" } else { "" };
    files::write(to, file, text.as_bytes())
}

/// Enough to start with. What a server that replays the log has to have at least as large as the one
/// that wrote it is in the control file.
fn minimal(control: &[u8], detail: &BackupDetail) -> String {
    let limits = ControlFile::limits(control);
    let original = detail.configuration.iter().find(|file| file.setting == "config_file");
    let original = match original {
        Some(file) => format!("{ASIDE}{}", file.path),
        None => "kept outside the data directory, and is not in the backup".to_owned(),
    };
    format!(
        "# Written by a restore. The original: {original}\n\
         max_connections = {}\nmax_worker_processes = {}\nmax_wal_senders = {}\n\
         max_prepared_transactions = {}\nmax_locks_per_transaction = {}\n",
        limits.connections,
        limits.worker_processes,
        limits.wal_senders,
        limits.prepared_transactions,
        limits.locks_per_transaction,
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_last_value_counts() {
        let text = "port = 1\n# port = 2\nPort '3' # x\nport_x = 4\nssl = ''\n";
        assert_eq!(value_of(text, "port").as_deref(), Some("3"));
        assert_eq!(value_of(text, "ssl"), None);
    }

    #[test]
    fn a_server_that_would_go_astray_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let mut notes = Vec::new();
        fs::write(folder.path().join("server.crt"), "").unwrap();
        let text = "data_directory = '/var/lib/postgresql/15/main'\nssl = on\n\
                    ssl_key_file = '/etc/ssl/private/gone.key'\n";
        elsewhere(folder.path(), text, &mut notes);
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].contains("/var/lib/postgresql/15/main"));
        assert!(notes[1].contains("gone.key"));
    }
}
