//! The restore of one database, after all that could be known was looked at.

use std::path::Path;

use backstay_repo::{Placement, Repository, Snapshot};

use super::super::programs::{self, Program, Said};
use super::super::spool::Spool;
use super::super::{names, toc::TocEntry};
use super::made::Made;
use super::target::{Server, Wanted};
use super::{Plan, RestoreOptions, RestoredDatabase, RestoredObject, Tools, jobs};
use crate::connection::Parameters;
use crate::session::Session;
use crate::{PostgresError, PostgresErrorKind, Result};

/// Free space that is to be left on the disk of the spool. Bytes.
const SPARE: u64 = 64 << 20;

pub(super) struct Running<'a> {
    pub repository: &'a Repository,
    pub snapshot: &'a Snapshot,
    pub options: &'a RestoreOptions,
    pub parameters: &'a Parameters,
    pub program: &'a Program,
}

impl Running<'_> {
    pub(super) fn database(
        &self,
        plan: &Plan,
        server: &Server,
        notes: &mut Vec<String>,
    ) -> Result<RestoredDatabase> {
        let parent = self.options.spool.clone().unwrap_or_else(std::env::temp_dir);
        let spool = Spool::create(&parent)?;
        let free = spool.free()?;
        if free < plan.bytes() + SPARE {
            return Err(PostgresError::new(
                PostgresErrorKind::Io,
                format!(
                    "the dump of {} needs {} MiB in {}, and {} MiB are free",
                    plan.database,
                    (plan.bytes() + SPARE) >> 20,
                    parent.display(),
                    free >> 20
                ),
            )
            .with_hint("free space there, or set `spool` (or TMPDIR) to another folder"));
        }
        self.options.progress.set_phase("fetching the dump");
        let folder = spool.path().join("dump");
        self.fetch(plan, &folder)?;
        let tools = Tools { program: self.program, spool: &spool };
        let created = !plan.exists;
        let inside = if created {
            self.options.progress.set_phase("creating the database");
            Some(self.create(plan, server, notes)?)
        } else {
            None
        };
        let filled = self.fill(plan, &folder, server, &tools, notes);
        if let Err(error) = filled {
            // Nobody has used what was made a moment ago; half of it serves nobody.
            return Err(if created { self.remove(plan, error) } else { error });
        }
        if let Some(inside) = inside {
            self.finish(plan, server, inside)?;
        }
        Ok(RestoredDatabase {
            database: plan.database.clone(),
            into: plan.into.clone(),
            created,
            objects: report(plan),
        })
    }

    /// Brings the files of the dump that are needed into a folder.
    fn fetch(&self, plan: &Plan, folder: &Path) -> Result<()> {
        std::fs::create_dir(folder).map_err(|error| PostgresError::io("create", folder, error))?;
        let below = names::dump(&plan.database);
        let mut options = backstay_repo::RestoreOptions::new(folder);
        options.paths =
            plan.files.iter().map(|(name, _)| format!("{below}/{name}").into_bytes()).collect();
        options.owner = false;
        options.sync = false;
        options.delta = true;
        options.fallback = self.options.fallback.clone();
        let to = folder.to_owned();
        options.place = Some(std::sync::Arc::new(move |entry| {
            if entry.is_directory() {
                return Placement::Skip;
            }
            match entry.path.rsplit(|byte| *byte == b'/').next() {
                Some(name) => {
                    use std::os::unix::ffi::OsStrExt as _;
                    Placement::At(to.join(std::ffi::OsStr::from_bytes(name)))
                }
                None => Placement::Skip,
            }
        }));
        self.repository.restore(self.snapshot, options, &self.options.progress)?;
        for (name, _) in &plan.files {
            if !folder.join(name).is_file() {
                return Err(PostgresError::new(
                    PostgresErrorKind::Damaged,
                    format!("the dump of {} lacks its file {name}", plan.database),
                )
                .with_hint("restore another snapshot"));
            }
        }
        Ok(())
    }

    pub(super) fn within(&self, database: &str) -> Parameters {
        let mut parameters = self.parameters.clone();
        parameters.set_database(database);
        parameters
    }

    /// A session outside of the database that is made or removed.
    pub(super) fn beside(&self, plan: &Plan) -> Result<Session> {
        let own = self.parameters.database();
        let other = if own == plan.into { "template1" } else { own };
        Session::with(&self.within(other))
    }

    /// Makes extensions, then everything else.
    fn fill(
        &self,
        plan: &Plan,
        folder: &Path,
        server: &Server,
        tools: &Tools<'_>,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let parameters = self.within(&plan.filled());
        let scales = plan.extensions.iter().any(|one| one.name == "timescaledb");
        // What goes into a database that was there is one transaction, and pg_restore's alone: it
        // makes the extensions whose versions need no saying.
        let within = |one: &&Wanted| plan.exists && !scales && one.is_default;
        let before: Vec<&Wanted> = plan.extensions.iter().filter(|one| !within(one)).collect();
        let mut made = Made::default();
        let filled = made.make(&mut Session::with(&parameters)?, &before, plan).and_then(|()| {
            let ids = plan.entries(plan.extensions.iter().filter(within));
            self.give(plan, folder, &ids, scales, server, tools)
        });
        if let Err(error) = filled {
            return Err(if plan.exists { made.undo(&parameters, error) } else { error });
        }
        // A plan made of no statistics is a slow one, and looks like a failed restore.
        let mut session = Session::with(&parameters)?;
        if let Err(error) = session.run("analyze what was restored", "ANALYZE") {
            notes.push(format!("{}: {error}", plan.into));
        }
        Ok(())
    }

    /// Gives entries of the dump to the server.
    fn give(
        &self,
        plan: &Plan,
        folder: &Path,
        ids: &[i64],
        scales: bool,
        server: &Server,
        tools: &Tools<'_>,
    ) -> Result<()> {
        let parameters = self.within(&plan.filled());
        self.options.progress.set_phase("restoring");
        if scales {
            Session::with(&parameters)?
                .run("prepare TimescaleDB", "SELECT public.timescaledb_pre_restore()")?;
        }
        let jobs = if scales { 1 } else { jobs(self.options) };
        let mut arguments = vec!["--exit-on-error".to_owned()];
        // What was there before must be there after a failure: all of it, or nothing.
        if plan.exists || jobs == 1 {
            arguments.push("--single-transaction".to_owned());
        } else {
            arguments.push(format!("--jobs={jobs}"));
        }
        if plan.exists && self.options.overwrite {
            arguments.extend(["--clean".to_owned(), "--if-exists".to_owned()]);
        }
        if !self.options.owner {
            arguments.extend(["--no-owner".to_owned(), "--no-privileges".to_owned()]);
        }
        let restored = self.run(plan, folder, ids, &arguments, &parameters, server, tools);
        if scales {
            let post = Session::with(&parameters).and_then(|mut session| {
                session.run("finish TimescaleDB", "SELECT public.timescaledb_post_restore()")
            });
            restored.and(post)
        } else {
            restored
        }
    }

    /// Runs `pg_restore` for some entries of the dump.
    #[allow(clippy::too_many_arguments)] // what it is run for, how, and where
    fn run(
        &self,
        plan: &Plan,
        folder: &Path,
        ids: &[i64],
        arguments: &[String],
        parameters: &Parameters,
        server: &Server,
        tools: &Tools<'_>,
    ) -> Result<()> {
        let list = tools.spool.path().join("list");
        let lines: String = ids.iter().map(|id| format!("{id};\n")).collect();
        std::fs::write(&list, lines).map_err(|error| PostgresError::io("write", &list, error))?;
        let mut command = programs::command(tools.program, parameters);
        command
            .args(["--format=directory", "--verbose"])
            .arg(format!("--use-list={}", list.display()))
            .args(arguments)
            .arg(format!("--dbname=dbname={}", quoted(parameters.database())));
        // Without folders of its own a server has these two alone; what names others would fail.
        if server.tablespaces.len() <= 2 {
            command.arg("--no-tablespaces");
        }
        command.arg(folder);
        let mut child =
            command.spawn().map_err(|error| programs::cannot_run(tools.program, error))?;
        let said = Said::listen(&mut child);
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let (_keep, pause) = std::sync::mpsc::channel::<()>();
        let status = loop {
            if self.options.progress.is_cancelled()
                && let Some(pid) = pid
            {
                let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            }
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => {
                    let _ = pause.recv_timeout(std::time::Duration::from_millis(50));
                }
                Err(error) => return Err(programs::cannot_run(tools.program, error)),
            }
        };
        let said = said.map(Said::all).unwrap_or_default();
        self.options.progress.check()?;
        if status.success() {
            return Ok(());
        }
        Err(refused(plan, &said, &status.to_string()))
    }
}

/// A value within a connection string.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn refused(plan: &Plan, said: &str, status: &str) -> PostgresError {
    let errors = programs::errors(said);
    // Before the error it says which entry it was at work on: "while PROCESSING TOC", "from TOC
    // entry 215; 1259 16390 TABLE x owner".
    let mut entry = said.lines().filter_map(|line| {
        let (_, rest) = line.split_once("from TOC entry ")?;
        rest.split(';').next()?.trim().parse::<i64>().ok()
    });
    let entry = entry.next_back().and_then(|id| plan.toc.entries.iter().find(|one| one.id == id));
    let at = entry.map(|one| format!(" at {}", super::select::display(one))).unwrap_or_default();
    let what = if errors.is_empty() { status.to_owned() } else { errors.join("; ") };
    let error = PostgresError::new(
        PostgresErrorKind::Server,
        format!("could not restore {} into {}{at}: {what}", plan.database, plan.into),
    );
    if plan.exists {
        error.with_hint("nothing of it was kept: it was one transaction")
    } else {
        error
    }
}

/// What was restored, object by object, with the size of its rows.
fn report(plan: &Plan) -> Vec<RestoredObject> {
    let size = |entry: &TocEntry| {
        let file = entry.file.as_ref()?;
        plan.files.iter().find(|(name, _)| name == file).map(|(_, size)| *size)
    };
    let entries: Vec<&TocEntry> = plan.selection.entries(&plan.toc).collect();
    entries
        .iter()
        .filter(|entry| !entry.kind.ends_with(" DATA") && entry.kind != "SEQUENCE SET")
        .filter(|entry| !matches!(entry.kind.as_str(), "ENCODING" | "STDSTRINGS" | "SEARCHPATH"))
        .map(|entry| {
            let data = entries.iter().find(|other| {
                other.kind == "TABLE DATA"
                    && entry.kind == "TABLE"
                    && (&other.schema, &other.name) == (&entry.schema, &entry.name)
            });
            RestoredObject {
                kind: entry.kind.to_lowercase(),
                schema: entry.schema.clone(),
                name: entry.name.clone(),
                bytes: data.and_then(|data| size(data)).unwrap_or(0),
            }
        })
        .collect()
}
