//! Gives a dump, or a part of it, back to a server.
//!
//! Everything that can be known before the first write is looked at before it: the version of the
//! server, extensions, owners, and whether something of the same name is there. A database that is
//! made for the restore has another name while several workers fill it, and is removed again when
//! that fails; what goes into a database that was there goes in one transaction.
//!
//! What lives here: the order of it all. `select` chooses what is restored, `target` knows the
//! server, `roles` makes roles, `unfinished` databases and `made` extensions; the statements and rows
//! themselves are given by `pg_restore`.

mod made;
mod roles;
mod run;
mod select;
mod target;
mod unfinished;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_repo::{Fallback, Progress, Repository, Snapshot};
use serde::Serialize;

pub use roles::RolesRestored;

use super::catalogue::Catalogue;
use super::contents::Contents;
use super::programs::{self, Program};
use super::spool::Spool;
use super::toc::Toc;
use crate::connection::{Parameters, refuse_password};
use crate::session::Session;
use crate::{PostgresError, PostgresErrorKind, Result};
use select::{Asked, Selection};
use target::{Class, Names, Server, Wanted};

/// What is restored, and where to.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The server, as libpq keywords or an address. Where it names a database, the content of one
    /// database goes into that; else each goes into the one of its own name, which is made where it
    /// is missing.
    pub into: String,
    /// Empty: all that the snapshot has.
    pub databases: Vec<String>,
    pub schemas: Vec<String>,
    /// `table` or `schema.table`.
    pub tables: Vec<String>,
    /// Roles and nothing else.
    pub roles: bool,
    /// What is there is replaced.
    pub overwrite: bool,
    /// Whether everything belongs to whom it belonged; else to the role that restores.
    pub owner: bool,
    /// Workers for a database that is made. 0: one for each core.
    pub jobs: usize,
    pub bin_directory: Option<PathBuf>,
    /// Where dumps pass through; the system's folder for temporary files where absent.
    pub spool: Option<PathBuf>,
    pub progress: Arc<Progress>,
    /// Where else to look for what the repository lacks.
    pub fallback: Option<Arc<Fallback>>,
}

impl RestoreOptions {
    pub fn new(into: impl Into<String>) -> Self {
        Self {
            into: into.into(),
            databases: Vec::new(),
            schemas: Vec::new(),
            tables: Vec::new(),
            roles: false,
            overwrite: false,
            owner: true,
            jobs: 0,
            bin_directory: None,
            spool: None,
            progress: Arc::default(),
            fallback: None,
        }
    }

    fn asked(&self) -> Asked<'_> {
        Asked { schemas: &self.schemas, tables: &self.tables }
    }
}

/// What was restored.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// Nothing when roles were not asked for.
    pub roles: Option<RolesRestored>,
    pub databases: Vec<RestoredDatabase>,
    /// Things to know that are no failure.
    pub notes: Vec<String>,
    #[serde(skip)]
    pub took: Duration,
}

#[derive(Debug, Clone, Serialize)]
pub struct RestoredDatabase {
    pub database: String,
    /// Its name on the server.
    pub into: String,
    pub created: bool,
    pub objects: Vec<RestoredObject>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoredObject {
    /// In the words of `pg_dump`.
    pub kind: String,
    pub schema: Option<String>,
    pub name: String,
    /// Of the rows in the dump. Bytes.
    pub bytes: u64,
}

/// One database, and all that was found out before the first write.
struct Plan {
    database: String,
    into: String,
    exists: bool,
    /// What the target has; nothing where it is made.
    names: Names,
    toc: Toc,
    selection: Selection,
    /// Those that the target lacks.
    extensions: Vec<Wanted>,
    /// Files of the dump that are needed, and their sizes.
    files: Vec<(String, u64)>,
}

impl Plan {
    fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, size)| *size).sum()
    }

    /// What the database is called while it is filled.
    fn filled(&self) -> String {
        if self.exists { self.into.clone() } else { unfinished::name(&self.into) }
    }

    /// What is restored, in the order of the dump: of the extensions only these.
    fn entries<'w>(&self, extensions: impl Iterator<Item = &'w Wanted>) -> Vec<i64> {
        let mut ids: BTreeSet<i64> = self
            .selection
            .entries(&self.toc)
            .filter(|entry| entry.kind != "EXTENSION")
            .filter(|entry| !(entry.kind == "COMMENT" && entry.name.starts_with("EXTENSION ")))
            .map(|entry| entry.id)
            .collect();
        for one in extensions {
            let needed = self.toc.entries.iter().filter(|entry| match entry.kind.as_str() {
                "EXTENSION" => entry.name == one.name,
                "SCHEMA" => {
                    entry.name == one.schema && !self.names.has(Class::Schema, "", &one.schema)
                }
                _ => false,
            });
            ids.extend(needed.map(|entry| entry.id));
        }
        let all = self.toc.entries.iter().map(|entry| entry.id);
        all.filter(|id| ids.contains(id)).collect()
    }
}

/// Restores from a logical snapshot.
///
/// # Errors
/// Before the first write: `Usage` for what is not in the snapshot, `Mismatch` for what is in the
/// way, `Unsupported` for versions and extensions that do not fit. Later: what the server said.
pub fn restore(
    repository: &Repository,
    snapshot: &Snapshot,
    options: &RestoreOptions,
) -> Result<Restored> {
    let start = Instant::now();
    let progress = &options.progress;
    progress.set_phase("checking");
    let contents = Contents::open(repository, snapshot, options.fallback.clone())?;
    refuse_password(&options.into, "the server to restore into")?;
    let parameters = Parameters::new(&options.into)?;
    let server = Server::look(&parameters)?;
    let mut notes = Vec::new();
    let everything = options.asked().everything();
    let with_roles = options.roles || (everything && options.databases.is_empty());
    let roles = if with_roles && (options.owner || options.roles) {
        Some(roles::plan(&contents.globals()?, &server, options.overwrite))
    } else {
        None
    };
    let made: BTreeSet<String> =
        roles.iter().flat_map(|plan| plan.outcome.created.iter().cloned()).collect();
    let mut plans = Vec::new();
    let mut program = None;
    if !options.roles {
        may_take(&contents, &server)?;
        let mut newest = 0;
        for plan in plan_databases(&contents, &parameters, &server, options, &mut notes)? {
            let wrote = plan.toc.dump.split('.').next().and_then(|it| it.parse().ok()).unwrap_or(0);
            newest = newest.max(wrote);
            if options.owner {
                owners_are_there(&plan, &server, &made)?;
            }
            plans.push(plan);
        }
        let bin = options.bin_directory.as_deref();
        // A dump is read by programs of its version or newer ones.
        program = Some(programs::find("pg_restore", newest.max(server.major()), bin)?);
    }

    let roles = match roles {
        Some(plan) => {
            progress.set_phase("roles");
            let done = plan.run(&parameters)?;
            for space in &done.tablespaces_missing {
                notes.push(format!(
                    "the tablespace {space} is not there: what was in it goes into the default one"
                ));
            }
            Some(done)
        }
        None => None,
    };
    let mut databases = Vec::new();
    notes.extend(unfinished::left(&server, &plans));
    if let Some(program) = program {
        let it = run::Running {
            repository,
            snapshot,
            options,
            parameters: &parameters,
            program: &program,
        };
        for plan in &plans {
            progress.check()?;
            databases.push(
                it.database(plan, &server, &mut notes)
                    .map_err(|error| with_what_is_done(error, &databases, &plans))?,
            );
        }
    }
    Ok(Restored { roles, databases, notes, took: start.elapsed() })
}

/// Says which databases are complete when one fails, and which were not begun.
fn with_what_is_done(
    error: PostgresError,
    done: &[RestoredDatabase],
    plans: &[Plan],
) -> PostgresError {
    let later: Vec<&str> =
        plans.iter().skip(done.len() + 1).map(|plan| plan.into.as_str()).collect();
    let done: Vec<&str> = done.iter().map(|one| one.into.as_str()).collect();
    let mut parts: Vec<String> = error.hint().map(str::to_owned).into_iter().collect();
    if !done.is_empty() {
        parts.push(format!("restored before it, and whole: {}", done.join(", ")));
    }
    if !later.is_empty() {
        parts.push(format!("not begun: {}", later.join(", ")));
    }
    if parts.is_empty() { error } else { error.with_hint(parts.join("; ")) }
}

/// A dump of a newer version says what an older server does not understand.
fn may_take(contents: &Contents, server: &Server) -> Result<()> {
    let from = contents.server.version / 10000;
    if server.major() >= from {
        return Ok(());
    }
    Err(PostgresError::new(
        PostgresErrorKind::Unsupported,
        format!(
            "the snapshot is of PostgreSQL {from}, and the server is PostgreSQL {}",
            server.major()
        ),
    )
    .with_hint(format!(
        "restore into PostgreSQL {from} or newer; to go back all the same, restore the dump into a \
         folder with --to and edit what `pg_restore --file` makes of it"
    )))
}

fn plan_databases(
    contents: &Contents,
    parameters: &Parameters,
    server: &Server,
    options: &RestoreOptions,
    notes: &mut Vec<String>,
) -> Result<Vec<Plan>> {
    let chosen = contents.choose(&options.databases)?;
    let named = Parameters::names_database(&options.into)?;
    let chosen: Vec<&str> = match (named, chosen.as_slice()) {
        (false, [_, _, ..]) if !options.asked().everything() => {
            return Err(PostgresError::usage("the snapshot has several databases")
                .with_hint(format!("say of which one with --database: {}", chosen.join(", "))));
        }
        (false, _) | (true, [_]) => chosen,
        (true, _) => {
            let own: Vec<&str> =
                chosen.iter().copied().filter(|one| *one == parameters.database()).collect();
            if own.is_empty() {
                return Err(PostgresError::usage(format!(
                    "the snapshot has several databases, and none is called {:?}",
                    parameters.database()
                ))
                .with_hint(format!(
                    "say which one goes into it with --database: {}",
                    chosen.join(", ")
                )));
            }
            own
        }
    };
    let mut plans = Vec::new();
    for database in chosen {
        let into = if named { parameters.database() } else { database };
        plans.push(plan_database(contents, parameters, server, options, (database, into), notes)?);
    }
    Ok(plans)
}

fn plan_database(
    contents: &Contents,
    parameters: &Parameters,
    server: &Server,
    options: &RestoreOptions,
    (database, into): (&str, &str),
    notes: &mut Vec<String>,
) -> Result<Plan> {
    let exists = server.databases.contains(into);
    let names = if exists {
        let mut parameters = parameters.clone();
        parameters.set_database(into);
        Names::read(&mut Session::with(&parameters)?)?
    } else {
        Names::default()
    };
    let (toc, catalogue) = (contents.toc(database)?, contents.catalogue(database)?);
    let mut selection = select::select(&toc, &catalogue, options.asked(), &names)?;
    if selection.ids.is_empty() && !options.asked().everything() {
        return Err(PostgresError::usage("nothing of the dump is asked for")
            .with_hint("name tables or schemas that the snapshot has"));
    }
    notes.append(&mut selection.notes);
    if exists && !options.overwrite {
        refuse_conflicts(&selection.conflicts(&toc, &names), into)?;
    }
    let mut extensions = needed_extensions(&toc, &selection, &catalogue, server, options, notes)?;
    extensions.retain(|one| !names.has(Class::Extension, "", &one.name));
    let mut files = vec![("toc.dat".to_owned(), 0)];
    let needed: BTreeSet<&str> =
        selection.entries(&toc).filter_map(|entry| entry.file.as_deref()).collect();
    let large = needed.iter().any(|file| file.starts_with("blob"));
    for (name, size) in contents.sizes(database)? {
        if needed.contains(name.as_str()) || (large && name.starts_with("blob")) {
            files.push((name, size));
        }
    }
    if let Some(missing) = needed.iter().find(|one| !files.iter().any(|(name, _)| name == *one)) {
        return Err(PostgresError::new(
            PostgresErrorKind::Damaged,
            format!("the dump of {database} lacks its file {missing}"),
        )
        .with_hint("restore another snapshot"));
    }
    Ok(Plan {
        database: database.to_owned(),
        into: into.to_owned(),
        exists,
        names,
        toc,
        selection,
        extensions,
        files,
    })
}

fn refuse_conflicts(conflicts: &[String], into: &str) -> Result<()> {
    const SHOWN: usize = 5;
    if conflicts.is_empty() {
        return Ok(());
    }
    let mut shown = conflicts.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if conflicts.len() > SHOWN {
        shown.push_str(&format!(" and {} more", conflicts.len() - SHOWN));
    }
    Err(PostgresError::new(
        PostgresErrorKind::Mismatch,
        format!("the database {into} has already: {shown}"),
    )
    .with_hint(
        "nothing was changed; restore into another database (--into \"… dbname=NAME\"), or say \
         --overwrite to have them replaced",
    ))
}

/// Of a part of a database, the extensions that the part needs.
fn needed_extensions(
    toc: &Toc,
    selection: &Selection,
    catalogue: &Catalogue,
    server: &Server,
    options: &RestoreOptions,
    notes: &mut Vec<String>,
) -> Result<Vec<Wanted>> {
    let all = options.asked().everything();
    let chosen: BTreeSet<(u32, u32)> =
        selection.entries(toc).map(|entry| (entry.class, entry.oid)).collect();
    let oids: BTreeSet<u32> = chosen.iter().map(|(_, oid)| *oid).collect();
    let uses = |name: &str| {
        let is = |at: usize| catalogue.objects.get(at).is_some_and(|one| one.name == name);
        catalogue.dependencies.iter().any(|edge| {
            is(edge.to)
                && catalogue
                    .objects
                    .get(edge.to)
                    .is_some_and(|o| o.kind == super::catalogue::ObjectKind::Extension)
                && catalogue.objects.get(edge.from).is_some_and(|one| oids.contains(&one.oid))
        })
    };
    target::extensions(server, catalogue, |name| all || uses(name), notes)
}

/// Whether everybody is there whom something is to belong to.
fn owners_are_there(plan: &Plan, server: &Server, made: &BTreeSet<String>) -> Result<()> {
    let missing: BTreeSet<&str> = plan
        .selection
        .entries(&plan.toc)
        .map(|entry| entry.owner.as_str())
        .filter(|owner| !owner.is_empty())
        .filter(|owner| !server.roles.contains(*owner) && !made.contains(*owner))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.into_iter().collect();
    Err(PostgresError::new(
        PostgresErrorKind::Mismatch,
        format!("the server has no role {}, to whom something belongs", names.join(", ")),
    )
    .with_hint(
        "restore the roles first with --roles, or say --no-owner to have everything belong to the \
         role that restores",
    ))
}

/// Workers for a database that nobody uses yet.
fn jobs(options: &RestoreOptions) -> usize {
    match options.jobs {
        0 => std::thread::available_parallelism().map_or(2, |n| n.get()),
        some => some,
    }
}

/// What a program is and where it works.
struct Tools<'a> {
    program: &'a Program,
    spool: &'a Spool,
}
