//! What there is to protect on this machine, for a first configuration.

use std::fs;
use std::path::{Path, PathBuf};

/// A PostgreSQL cluster that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// A name for the source: "postgres-15-main".
    pub name: String,
    /// The major version, where it could be read.
    pub version: Option<String>,
    pub data_directory: Option<PathBuf>,
    /// Where its server listens, when it runs.
    pub socket: Option<Socket>,
}

/// A socket that a server listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    pub folder: PathBuf,
    pub port: u16,
}

impl Cluster {
    /// How to reach its server.
    pub fn connection(&self) -> String {
        let mut text = match &self.socket {
            Some(socket) => format!("host={}", socket.folder.display()),
            None => "host=/var/run/postgresql".to_owned(),
        };
        if let Some(port) = self.socket.as_ref().map(|socket| socket.port).filter(|p| *p != 5432) {
            text.push_str(&format!(" port={port}"));
        }
        text.push_str(" user=postgres dbname=postgres");
        text
    }
}

/// Folders that hold data directories, and how many folders deep.
const HOMES: [(&str, usize); 4] = [
    // Debian: VERSION/NAME. Images: data.
    ("var/lib/postgresql", 2),
    // Red Hat: data, or VERSION/data.
    ("var/lib/pgsql", 2),
    ("usr/local/pgsql", 1),
    ("var/lib/postgres", 1),
];

const SOCKETS: [&str; 2] = ["var/run/postgresql", "tmp"];

/// Finds PostgreSQL clusters below `root` (`/` but for tests), and sockets whose cluster is hidden
/// from this user.
pub fn clusters(root: &Path) -> Vec<Cluster> {
    let mut found = Vec::new();
    for (home, depth) in HOMES {
        let home = root.join(home);
        data_directories(&home, depth, &mut |folder| {
            let relative = folder.strip_prefix(&home).unwrap_or(folder);
            let words: Vec<_> =
                relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            let version = fs::read_to_string(folder.join("PG_VERSION"))
                .ok()
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty() && text.len() < 8);
            found.push(Cluster {
                name: name_of(&words, version.as_deref()),
                version,
                data_directory: Some(folder.to_path_buf()),
                socket: socket_of(folder, root),
            });
        });
    }
    for socket in sockets(root) {
        if !found
            .iter()
            .any(|cluster| cluster.socket.as_ref().is_some_and(|s| s.port == socket.port))
        {
            let name = match socket.port {
                5432 => "postgres".to_owned(),
                port => format!("postgres-{port}"),
            };
            let socket = Some(socket);
            found.push(Cluster { name, version: None, data_directory: None, socket });
        }
    }
    let mut names: Vec<String> = Vec::new();
    for cluster in &mut found {
        let base = cluster.name.clone();
        let mut number = 2;
        while names.contains(&cluster.name) {
            cluster.name = format!("{base}-{number}");
            number += 1;
        }
        names.push(cluster.name.clone());
    }
    found
}

fn name_of(words: &[String], version: Option<&str>) -> String {
    let mut parts = vec!["postgres".to_owned()];
    let plain = words.iter().filter(|word| word.as_str() != "data");
    parts.extend(plain.map(|word| {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        word.chars().map(|c| if fits(c) { c } else { '_' }).collect::<String>()
    }));
    if parts.len() == 1 {
        parts.extend(version.map(str::to_owned));
    }
    parts.join("-")
}

fn data_directories(folder: &Path, depth: usize, found: &mut dyn FnMut(&Path)) {
    if folder.join("PG_VERSION").is_file() && folder.join("global").is_dir() {
        found(folder);
        return;
    }
    if depth == 0 {
        return;
    }
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut folders: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    for folder in folders {
        data_directories(&folder, depth - 1, found);
    }
}

/// What `postmaster.pid` says of a server that runs: line 4 is the port, line 5 the socket's
/// folder (PostgreSQL's `miscadmin.h`).
fn socket_of(data: &Path, root: &Path) -> Option<Socket> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let mut lines = text.lines().skip(3);
    let port: u16 = lines.next()?.trim().parse().ok()?;
    let folder = lines.next()?.trim();
    if folder.is_empty() {
        return None;
    }
    let inside = root.join(folder.trim_start_matches('/'));
    let there = inside.join(format!(".s.PGSQL.{port}")).exists();
    there.then(|| Socket { folder: PathBuf::from(folder), port })
}

fn sockets(root: &Path) -> Vec<Socket> {
    let mut found: Vec<Socket> = Vec::new();
    for folder in SOCKETS {
        let Ok(entries) = fs::read_dir(root.join(folder)) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let port = name.to_str().and_then(|name| name.strip_prefix(".s.PGSQL."));
            let Some(port) = port.and_then(|port| port.parse().ok()) else { continue };
            if !found.iter().any(|socket| socket.port == port) {
                found.push(Socket { folder: Path::new("/").join(folder), port });
            }
        }
    }
    found.sort_by_key(|socket| socket.port);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(root: &Path, path: &str, pid: Option<&str>) {
        let data = root.join(path);
        fs::create_dir_all(data.join("global")).unwrap();
        fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        if let Some(pid) = pid {
            fs::write(data.join("postmaster.pid"), pid).unwrap();
        }
    }

    #[test]
    fn clusters_are_found_where_distributions_put_them() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        cluster(root, "var/lib/postgresql/15/main", Some("1\n/x\n2\n5433\n/var/run/postgresql\n"));
        cluster(root, "var/lib/pgsql/data", None);
        fs::create_dir_all(root.join("var/run/postgresql")).unwrap();
        fs::write(root.join("var/run/postgresql/.s.PGSQL.5433"), "").unwrap();
        fs::write(root.join("var/run/postgresql/.s.PGSQL.5440"), "").unwrap();
        fs::write(root.join("var/run/postgresql/.s.PGSQL.5440.lock"), "").unwrap();
        let found = clusters(root);
        let names: Vec<_> = found.iter().map(|cluster| cluster.name.as_str()).collect();
        assert_eq!(names, ["postgres-15-main", "postgres-15", "postgres-5440"]);
        assert_eq!(
            found[0].connection(),
            "host=/var/run/postgresql port=5433 user=postgres dbname=postgres"
        );
        assert_eq!(found[1].socket, None);
        assert_eq!(found[2].data_directory, None);
    }

    #[test]
    fn a_machine_without_postgresql_has_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(clusters(folder.path()), []);
    }
}
