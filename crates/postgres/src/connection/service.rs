//! libpq's service files: connections by name.
//!
//! `[name]` begins a service, `keyword=value` lines follow, `#` begins a comment. The user's own file
//! is asked before the system's; the first service of a name counts.

use std::path::{Path, PathBuf};

use crate::{PostgresError, Result};

/// The keywords of a service.
pub(super) fn read(
    name: &str,
    environment: &impl Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>> {
    let own = match environment("PGSERVICEFILE") {
        Some(path) => Some(PathBuf::from(path)),
        None => environment("HOME").map(|home| Path::new(&home).join(".pg_service.conf")),
    };
    let system = match environment("PGSYSCONFDIR") {
        Some(folder) => Path::new(&folder).join("pg_service.conf"),
        None => PathBuf::from("/etc/postgresql-common/pg_service.conf"),
    };
    for path in own.into_iter().chain([system]) {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(PostgresError::io("read the service file", &path, error)),
        };
        if let Some(found) = find(&text, name) {
            return found.map_err(|line| {
                PostgresError::usage(format!(
                    "line {line} of the service file {} is no keyword with a value",
                    path.display()
                ))
                .with_hint("write it as keyword=value, without spaces around the \"=\"")
            });
        }
    }
    Err(PostgresError::usage(format!("there is no service {name:?} in the service files"))
        .with_hint("PGSERVICEFILE, ~/.pg_service.conf and PGSYSCONFDIR/pg_service.conf are asked"))
}

/// The keywords of the first service of that name, or the number of a line that is none.
pub(crate) fn find(text: &str, name: &str) -> Option<Result<Vec<(String, String)>, usize>> {
    let mut found: Option<Vec<(String, String)>> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            found = (section.strip_suffix(']') == Some(name)).then(Vec::new);
        } else if let Some(pairs) = &mut found {
            match line.split_once('=') {
                Some((key, value)) if !key.is_empty() && key != "service" => {
                    pairs.push((key.trim().to_owned(), value.trim().to_owned()));
                }
                _ => return Some(Err(number + 1)),
            }
        }
    }
    found.map(Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_service_of_the_name_counts() {
        let text = "# all\n[a]\nhost=x\n\n[main]\nhost=db\n# no\nport=6000\n[main]\nhost=other\n[bad]\nx\n";
        let pairs = find(text, "main").unwrap().unwrap();
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("host", "db"), ("port", "6000")]);
        assert_eq!(find(text, "bad"), Some(Err(12)));
        assert_eq!(find(text, "none"), None);
    }

    #[test]
    fn a_service_completes_a_connection_before_the_environment_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("services");
        std::fs::write(&path, "[main]\nhost=db\nuser=backup\n").unwrap();
        let environment = |name: &str| match name {
            "PGSERVICEFILE" => Some(path.to_string_lossy().into_owned()),
            "PGUSER" => Some("other".to_owned()),
            _ => None,
        };
        let it =
            crate::connection::Parameters::with_environment("service=main host=near", environment)
                .unwrap();
        assert_eq!(it.user(), "backup");
        assert_eq!(it.place(), "near port 5432");
        let error = crate::connection::Parameters::with_environment("service=no", environment);
        assert!(error.unwrap_err().to_string().contains("\"no\""));
    }
}
