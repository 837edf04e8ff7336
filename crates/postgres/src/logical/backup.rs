//! The databases of a server, each at one moment, in one snapshot.

use std::collections::{BTreeMap, HashMap};
use std::process::Stdio;
use std::sync::Arc;

use backstay_repo::{
    Compression, EntryKind, Fate, Order, Progress, Repository, Session as Writing, SessionOptions,
    Snapshot, SnapshotType, SourceKind,
};
use serde_json::json;

use super::catalogue::{Database, ObjectKind, ServerCatalogue};
use super::dump::{Dumped, Dumping, document, ends_all};
use super::programs::{self, Program, Said};
use super::spool::Spool;
use super::{LogicalSource, names};
use crate::connection::Parameters;
use crate::session::Session;
use crate::{PostgresError, PostgresErrorKind, Result};

/// One of the repositories that a backup goes to.
#[derive(Debug, Clone)]
pub struct Target {
    pub repository: Repository,
    pub type_: SnapshotType,
    /// Where unchanged content is looked for.
    pub parent: Option<Snapshot>,
    pub compression: Compression,
    /// Says why this target failed when none is left.
    pub fate: Fate,
}

/// How to make a logical backup.
#[derive(Debug, Clone, Default)]
pub struct BackupOptions {
    /// 0: one for each core.
    pub workers: usize,
    pub tags: BTreeMap<String, String>,
    pub progress: Arc<Progress>,
}

/// What came of it in each target, and what is to be said of all of them.
type Made = (Vec<Result<Snapshot>>, Vec<String>);

/// Dumps the databases of a server, in one pass for all of `targets`. A database that cannot be
/// dumped is in the snapshot's problems and costs the others nothing.
///
/// # Errors
/// There is a snapshot in none of them: the server cannot be reached or asked, no database could be
/// dumped, or the [`Fate`] of each target says why it failed.
pub fn backup_to(
    targets: &[Target],
    source: &LogicalSource,
    options: &BackupOptions,
) -> Result<Made> {
    let progress = &options.progress;
    progress.set_phase("connect");
    let parameters = Parameters::new(&source.connection)?;
    let mut session = Session::with(&parameters)?;
    let chosen = choose(&mut session, source)?;
    let bin = source.bin_directory.as_deref();
    let program = programs::find("pg_dump", session.major(), bin)?;
    let cores = std::thread::available_parallelism().map_or(2, |n| n.get());
    let workers = if options.workers == 0 { cores } else { options.workers };
    let jobs = if source.jobs == 0 { workers.min(cores) } else { source.jobs }.max(1);
    let spool = Spool::create(&source.spool_folder())?;
    let mut warnings = Vec::new();
    if program.major != session.major() {
        warnings.push(format!(
            "the server is PostgreSQL {}, and it is dumped with pg_dump {}: a restore needs programs \
             of that version",
            session.major(),
            program.version
        ));
    }

    let begin = |target: &Target| {
        let parent = target.parent.clone().filter(|_| target.type_ != SnapshotType::Full);
        let type_ = if parent.is_none() { SnapshotType::Full } else { target.type_ };
        let session = SessionOptions {
            parent,
            // One more than can wait for pg_dump.
            workers: workers.max(jobs + 1),
            compression: target.compression,
            tags: options.tags.clone(),
            progress: progress.clone(),
            fate: target.fate.clone(),
            ..SessionOptions::new(&source.name, SourceKind::PostgresLogical, type_)
        };
        (target.repository.clone(), session)
    };
    let writing = Writing::begin(targets.iter().map(begin).collect())?;
    let mut tree = writing.tree(Order::Any);
    let dumping = Dumping {
        source,
        parameters: &parameters,
        program: &program,
        spool: &spool,
        jobs,
        progress,
        owner: (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()),
    };

    progress.set_phase("roles");
    let mut server = ServerCatalogue::read(&mut session)?;
    let globals = globals(source, &parameters, bin, session.major())?;
    dumping.add_text(&mut tree, names::GLOBALS.to_owned(), globals)?;
    tree.entry(dumping.entry(names::DATABASES, EntryKind::Directory))?;

    let (mut dumped, mut failed) = (Vec::new(), Vec::new());
    for database in &chosen {
        progress.check()?;
        match dumping.database(&mut tree, &database.name) {
            Ok(one) => dumped.push(one),
            Err(error) => {
                progress.check()?;
                if ends_all(&error, &writing) {
                    return Err(error);
                }
                failed.push((database.name.clone(), error));
            }
        }
    }
    if dumped.is_empty()
        && let Some((_, error)) = failed.pop()
    {
        return Err(error);
    }
    for database in &mut server.databases {
        database.dumped = dumped.iter().any(|one| one.catalogue.database == database.name);
    }
    dumping.add_text(&mut tree, names::SERVER.to_owned(), document(&server)?)?;

    for (name, error) in &failed {
        writing.problem(&names::folder(name), error.to_string());
    }
    for one in &dumped {
        let said = one.warnings.iter();
        warnings.extend(said.map(|what| format!("{}: {what}", one.catalogue.database)));
    }
    let detail = detail(&server, &program, source, &dumped);
    let lost: Vec<Vec<u8>> =
        failed.iter().map(|(name, _)| format!("{}/", names::folder(name)).into_bytes()).collect();
    let mut renamed: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    dumped.into_iter().for_each(|one| renamed.extend(one.renamed));
    let root = tree.finish_as(|entry| {
        if lost.iter().any(|folder| entry.path.starts_with(folder)) {
            return false;
        }
        if matches!(entry.kind, EntryKind::File(_))
            && let Some(name) = renamed.get(&entry.path)
        {
            entry.path.clone_from(name);
        }
        true
    })?;
    progress.set_phase("commit");
    let made = writing.commit_all(root, detail).into_iter();
    Ok((made.map(|made| made.map_err(PostgresError::from)).collect(), warnings))
}

/// The databases that are meant.
pub(super) fn choose(session: &mut Session, source: &LogicalSource) -> Result<Vec<Database>> {
    let all = ServerCatalogue::read(session)?.databases;
    for name in &source.databases {
        if !all.iter().any(|one| &one.name == name) {
            let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
            return Err(PostgresError::usage(format!(
                "there is no database {name:?} on {} that accepts connections",
                session.place()
            ))
            .with_hint(format!("correct `databases`; there are {}", names.join(", "))));
        }
    }
    let chosen: Vec<Database> = all
        .into_iter()
        .filter(|one| source.databases.is_empty() || source.databases.contains(&one.name))
        .filter(|one| !source.exclude.iter().any(|pattern| fits(pattern, &one.name)))
        .collect();
    if chosen.is_empty() {
        return Err(PostgresError::usage(format!("{} has no database to dump", source.name))
            .with_hint("correct `databases` and `exclude`"));
    }
    Ok(chosen)
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((first, mut rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    while let Some((part, more)) = rest.split_once('*') {
        let Some(at) = name.find(part) else { return false };
        name = name.get(at + part.len()..).unwrap_or_default();
        rest = more;
    }
    name.ends_with(rest)
}

/// Whether roles can be dumped as it is asked for.
pub(super) fn may_read_passwords(session: &mut Session, source: &LogicalSource) -> Result<String> {
    if !source.role_passwords {
        return Ok("without their passwords".to_owned());
    }
    let may: bool =
        session.one("ask for rights", "SELECT has_table_privilege('pg_authid', 'SELECT')", &[])?;
    if may {
        return Ok("with their passwords".to_owned());
    }
    Err(PostgresError::new(
        PostgresErrorKind::Server,
        "this role may not read the passwords of roles",
    )
    .with_hint("connect as a superuser, or set `role-passwords = false`"))
}

/// Roles, their settings and memberships, and tablespaces, as statements.
fn globals(
    source: &LogicalSource,
    parameters: &Parameters,
    bin: Option<&std::path::Path>,
    major: u32,
) -> Result<Vec<u8>> {
    let program = programs::find("pg_dumpall", major, bin)?;
    let mut command = programs::command(&program, parameters);
    command.args(["--globals-only", "--no-sync", "--database", parameters.database()]);
    if !source.role_passwords {
        command.arg("--no-role-passwords");
    }
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| programs::cannot_run(&program, error))?;
    let said = Said::listen(&mut child);
    let output = child.wait_with_output().map_err(|e| programs::cannot_run(&program, e))?;
    if output.status.success() {
        return Ok(without_key(&output.stdout));
    }
    let said = said.map(Said::all).unwrap_or_default();
    let errors = programs::errors(&said).join("; ");
    let what = if errors.is_empty() { output.status.to_string() } else { errors };
    let error =
        PostgresError::new(PostgresErrorKind::Server, format!("could not dump the roles: {what}"));
    Err(if what.contains("pg_authid") {
        error.with_hint(
            "only a superuser may read passwords of roles; set `role-passwords = false` to do \
             without them",
        )
    } else {
        error.with_hint("look into the server's log")
    })
}

/// Newer programs begin a script with a random word for psql, which makes two that are the same
/// differ, and serves nobody who does not use psql.
fn without_key(script: &[u8]) -> Vec<u8> {
    let lines = script.split_inclusive(|byte| *byte == b'\n');
    let kept = lines
        .filter(|line| !line.starts_with(b"\\restrict ") && !line.starts_with(b"\\unrestrict "));
    kept.flatten().copied().collect()
}

fn detail(
    server: &ServerCatalogue,
    program: &Program,
    source: &LogicalSource,
    dumped: &[Dumped],
) -> serde_json::Value {
    let names: Vec<&str> = dumped.iter().map(|one| one.catalogue.database.as_str()).collect();
    let details: Vec<serde_json::Value> = dumped
        .iter()
        .map(|one| {
            let objects = &one.catalogue.objects;
            let extensions: BTreeMap<&str, &str> = objects
                .iter()
                .filter(|object| object.kind == ObjectKind::Extension)
                .map(|it| (it.name.as_str(), it.facts.get("version").map_or("", String::as_str)))
                .collect();
            let bytes = objects.iter().filter_map(|object| object.statistics.as_ref());
            json!({
                "database": one.catalogue.database,
                "time": one.catalogue.time,
                "objects": objects.len(),
                "tables": objects.iter().filter(|o| o.kind == ObjectKind::Table).count(),
                "table_bytes": bytes.map(|it| it.bytes).sum::<u64>(),
                "extensions": extensions,
            })
        })
        .collect();
    json!({
        "server": server.server,
        "version": server.version,
        "pg_dump": program.version,
        "databases": names,
        "roles": server.roles.len(),
        "role_passwords": source.role_passwords,
        "details": details,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_databases() {
        for (pattern, name, is) in [
            ("shop", "shop", true),
            ("shop", "shops", false),
            ("test_*", "test_1", true),
            ("test_*", "a_test_1", false),
            ("*_old", "shop_old", true),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*", "", true),
        ] {
            assert_eq!(fits(pattern, name), is, "{pattern} {name}");
        }
    }

    #[test]
    fn the_word_for_psql_is_left_out() {
        let script = b"--\n\\restrict abc\nCREATE ROLE a;\n\\unrestrict abc\n";
        assert_eq!(without_key(script), b"--\nCREATE ROLE a;\n");
    }
}
