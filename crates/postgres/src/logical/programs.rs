//! PostgreSQL's own programs: where they are, and how they are run.
//!
//! How a server is reached goes to a program in its environment alone: arguments can be read by
//! everybody on the machine.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use crate::connection::Parameters;
use crate::{PostgresError, PostgresErrorKind, Result};

/// The newest major that is looked for.
const NEWEST: u32 = 30;
/// How much of what a program says is kept. Bytes.
const KEPT: usize = 256 << 10;

/// A program that is there.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub path: PathBuf,
    pub major: u32,
    /// As "15.14".
    pub version: String,
}

/// Finds a program of at least this major version, of the same one if it can.
pub(super) fn find(name: &str, at_least: u32, given: Option<&Path>) -> Result<Program> {
    let mut places: Vec<PathBuf> = Vec::new();
    match given {
        Some(folder) => places.push(folder.to_owned()),
        None => {
            for major in at_least..=NEWEST {
                places.push(PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")));
                places.push(PathBuf::from(format!("/usr/pgsql-{major}/bin")));
                places.push(PathBuf::from(format!("/opt/homebrew/opt/postgresql@{major}/bin")));
            }
            places.push(PathBuf::from("/usr/local/pgsql/bin"));
            let path = std::env::var_os("PATH").unwrap_or_default();
            places.extend(std::env::split_paths(&path));
        }
    }
    let mut best: Option<Program> = None;
    let mut older: Option<Program> = None;
    for path in places.iter().map(|place| place.join(name)).filter(|path| path.is_file()) {
        let Some(version) = version_of(&path) else { continue };
        let Some(major) = version.split('.').next().and_then(leading_number) else { continue };
        let found = Program { path, major, version };
        match major {
            _ if major == at_least => return Ok(found),
            _ if major < at_least => older = Some(found),
            _ if best.as_ref().is_none_or(|best| major < best.major) => best = Some(found),
            _ => {}
        }
    }
    if let Some(best) = best {
        return Ok(best);
    }
    let said = match (older, given) {
        (Some(older), _) => format!(
            "{name} of PostgreSQL {at_least} or newer is needed, and {} is {}",
            older.path.display(),
            older.version
        ),
        (None, Some(folder)) => format!("there is no {name} in {}", folder.display()),
        (None, None) => format!("{name} was not found on this machine"),
    };
    Err(PostgresError::new(PostgresErrorKind::Unsupported, said).with_hint(format!(
        "install the client programs of PostgreSQL {at_least} (package postgresql-client-{at_least} \
         on Debian), or say where they are with `bin-directory`"
    )))
}

fn leading_number(text: &str) -> Option<u32> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// `pg_dump (PostgreSQL) 15.14 (Debian …)`
fn version_of(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_once(") ")?.1.split_whitespace().next().map(str::to_owned)
}

/// A command that reaches the server of `parameters`, in a process group of its own.
pub(super) fn command(program: &Program, parameters: &Parameters) -> Command {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(&program.path);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(&name);
        }
    }
    command
        .envs(parameters.environment())
        // What it says is read, and must not be in another language.
        .env("LC_ALL", "C.UTF-8")
        .env_remove("LANGUAGE")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// What a program says while it runs; the end of it, when it is much.
pub(super) struct Said(JoinHandle<String>);

impl Said {
    pub(super) fn listen(child: &mut Child) -> Option<Self> {
        let mut stream = child.stderr.take()?;
        let listen = move || {
            let mut kept = Vec::new();
            let mut buffer = vec![0; 16 << 10];
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                kept.extend_from_slice(buffer.get(..read).unwrap_or_default());
                if kept.len() > 2 * KEPT {
                    kept.drain(..kept.len() - KEPT);
                }
            }
            String::from_utf8_lossy(&kept).into_owned()
        };
        std::thread::Builder::new().name("listen".into()).spawn(listen).ok().map(Self)
    }

    pub(super) fn all(self) -> String {
        self.0.join().unwrap_or_default()
    }
}

pub(super) fn cannot_run(program: &Program, error: std::io::Error) -> PostgresError {
    PostgresError::io("run", &program.path, error)
}

/// The lines of what a program said that are errors and what belongs to them, without its own name.
pub(super) fn errors(said: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in said.lines() {
        let Some((_, rest)) = line.split_once(": ") else { continue };
        match rest.split_once(": ") {
            Some(("error" | "fatal", what)) => found.push(what.trim().to_owned()),
            Some(("detail", what)) => {
                if let Some(last) = found.last_mut() {
                    last.push_str(&format!(" ({})", what.trim()));
                }
            }
            _ => {}
        }
    }
    found
}

/// The warnings of a program.
pub(super) fn warnings(said: &str) -> Vec<String> {
    let rest = said.lines().filter_map(|line| line.split_once(": warning: ").map(|(_, what)| what));
    rest.map(|what| what.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_is_sorted() {
        let said = "pg_dump: dumping contents of table \"public.a\"\n\
            pg_dump: warning: could not find a thing\n\
            pg_dump: error: query failed: ERROR:  permission denied for table t\n\
            pg_dump: detail: Query was: LOCK TABLE public.t IN ACCESS SHARE MODE\n";
        assert_eq!(warnings(said), ["could not find a thing"]);
        assert_eq!(
            errors(said),
            [
                "query failed: ERROR:  permission denied for table t (Query was: LOCK TABLE public.t \
              IN ACCESS SHARE MODE)"
            ]
        );
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_install() {
        let error = find("pg_dump", 15, Some(Path::new("/nonexistent"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
        assert!(error.hint().unwrap().contains("postgresql-client-15"));
    }
}
