//! From `pg_dump` to `psql`: one transaction, which ends well only when all of the dump has come and
//! every table has the rows that it should have.
//!
//! A `psql` whose input ends commits nothing by itself here: the statement that commits is written
//! last, after `pg_dump` has said that it is done.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use backstay_repo::Progress;

use crate::connection::Parameters;
use crate::{PostgresError, PostgresErrorKind, Result};

use super::name::{Place, identifier};
use super::programs::Programs;
use super::stage::Staged;

pub(super) fn transfer(
    programs: &Programs,
    from: &str,
    into: &Parameters,
    place: &Place,
    staged: &Staged,
    progress: &Progress,
) -> Result<()> {
    let mut dump = Command::new(&programs.pg_dump);
    // The environment is about where it goes, not about the sandbox.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            dump.env_remove(name);
        }
    }
    dump.args([
        "--format=plain",
        "--encoding=UTF8",
        "--no-owner",
        "--no-privileges",
        "--no-publications",
        "--no-subscriptions",
        "--no-security-labels",
        "--no-tablespaces",
        "--no-password",
        "--dbname",
    ]);
    dump.arg(from).args(&staged.patterns);
    let mut dump = Process::start(dump, "pg_dump")?;
    let (conninfo, password) = into.for_libpq();
    let mut load = Command::new(&programs.psql);
    load.args(["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--dbname"]);
    load.arg(conninfo);
    if let Some(password) = password {
        load.env("PGPASSWORD", password);
    }
    let mut load = Process::start(load, "psql")?;
    let written = feed(&mut dump, &mut load, place, staged, progress);
    match written {
        Ok(()) => {
            // The end of its input, after the statement that commits.
            drop(load.child.stdin.take());
            load.finish()
        }
        Err(Stopped::Broken(error)) => {
            // Whoever ended early says best why.
            drop(load.child.stdin.take());
            load.finish()?;
            Err(error)
        }
        // Both are killed, and the server rolls back what was loaded.
        Err(Stopped::Own(error)) => Err(error),
    }
}

/// Why no more is written.
enum Stopped {
    /// The reader is gone.
    Broken(PostgresError),
    Own(PostgresError),
}

fn feed(
    dump: &mut Process,
    load: &mut Process,
    place: &Place,
    staged: &Staged,
    progress: &Progress,
) -> Result<(), Stopped> {
    let missing = || Stopped::Own(failed("a pipe is missing".to_owned()));
    let output = dump.child.stdout.take().ok_or_else(missing)?;
    let mut output = BufReader::with_capacity(1 << 16, output);
    let input = load.child.stdin.as_mut().ok_or_else(missing)?;
    let broken = |error: std::io::Error| Stopped::Broken(failed(format!("psql ended: {error}")));
    let unread = |error: std::io::Error| Stopped::Own(failed(format!("pg_dump broke: {error}")));
    let mut begin = String::from("BEGIN;\n");
    if place.table.is_some() && !place.exists {
        begin.push_str(&format!("CREATE SCHEMA {};\n", identifier(&place.schema)));
    }
    input.write_all(begin.as_bytes()).map_err(broken)?;
    // The settings at the top: an older server does not know all of them.
    let mut line = Vec::new();
    loop {
        line.clear();
        if output.read_until(b'\n', &mut line).map_err(unread)? == 0 {
            break;
        }
        if let Some(rest) = line.strip_prefix(b"SET transaction_timeout") {
            let end = rest.split(|byte| *byte == b';').nth(1).unwrap_or(b"\n");
            let guarded = "SELECT pg_catalog.set_config(name, '0', false) FROM \
                 pg_catalog.pg_settings WHERE name = 'transaction_timeout';";
            input.write_all(guarded.as_bytes()).map_err(broken)?;
            input.write_all(end).map_err(broken)?;
            break;
        }
        input.write_all(&line).map_err(broken)?;
        if line.starts_with(b"SET row_security") {
            break;
        }
    }
    let mut buffer = vec![0; 1 << 16];
    loop {
        progress.check().map_err(|error| Stopped::Own(error.into()))?;
        let n = output.read(&mut buffer).map_err(unread)?;
        if n == 0 {
            break;
        }
        input.write_all(buffer.get(..n).unwrap_or_default()).map_err(broken)?;
        progress.add_done(n as u64, 0);
    }
    dump.finish().map_err(Stopped::Own)?;
    let mut end = String::from("\n");
    for table in &staged.tables {
        end.push_str(&check(&table.name, table.rows));
    }
    end.push_str("COMMIT;\n");
    input.write_all(end.as_bytes()).map_err(broken)
}

/// A statement that fails unless the table has so many rows.
fn check(name: &str, rows: i64) -> String {
    let text = name.replace('\'', "''").replace('%', "%%");
    // No text of a name may end the quotes around the block.
    let mut tag = "check".to_owned();
    while name.contains(&format!("${tag}$")) {
        tag.push('x');
    }
    format!(
        "DO ${tag}$ DECLARE there bigint; BEGIN SELECT count(*) INTO there FROM {name}; \
         IF there <> {rows} THEN RAISE EXCEPTION '{text} has % rows instead of {rows}', there; \
         END IF; END ${tag}$;\n"
    )
}

fn failed(what: String) -> PostgresError {
    PostgresError::new(PostgresErrorKind::Server, what)
        .with_hint("nothing was changed where it was to go")
}

/// A program, and what it says. Dropped, it is killed.
struct Process {
    child: Child,
    name: &'static str,
    said: Option<JoinHandle<String>>,
}

impl Process {
    fn start(mut command: Command, name: &'static str) -> Result<Self> {
        let output = if name == "psql" { Stdio::null() } else { Stdio::piped() };
        let input = if name == "psql" { Stdio::piped() } else { Stdio::null() };
        command.stdin(input).stdout(output).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| {
            PostgresError::new(PostgresErrorKind::Start, format!("could not start {name}: {error}"))
                .with_source(error)
        })?;
        let said = child.stderr.take().map(|mut errors| {
            std::thread::spawn(move || {
                let mut said = Vec::new();
                // What cannot be read any more was not said.
                let _ = errors.read_to_end(&mut said);
                String::from_utf8_lossy(&said).into_owned()
            })
        });
        Ok(Self { child, name, said })
    }

    /// Waits for it; an error in its own words where it failed.
    fn finish(&mut self) -> Result<()> {
        let status = self
            .child
            .wait()
            .map_err(|error| failed(format!("could not wait for {}: {error}", self.name)))?;
        let said = self.said.take().and_then(|said| said.join().ok()).unwrap_or_default();
        if status.success() {
            return Ok(());
        }
        let line = said
            .lines()
            .find(|line| line.contains("ERROR:") || line.contains("error:"))
            .or_else(|| said.lines().last())
            .unwrap_or("it said nothing")
            .trim()
            .to_owned();
        Err(failed(format!("{} ended with {status}: {line}", self.name)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_break_out_of_the_check() {
        let text = check("\"a'%\".\"$check$\"", 3);
        assert!(text.starts_with("DO $checkx$ "), "{text}");
        assert!(text.contains("'\"a''%%\".\"$check$\" has % rows instead of 3'"), "{text}");
    }
}
