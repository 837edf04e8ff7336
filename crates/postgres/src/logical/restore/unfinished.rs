//! Databases that a restore makes: under a name that says that they are unfinished, until they are
//! whole.
//!
//! A process can die at any moment, and `pg_restore` fills a database in many transactions. So what
//! is made is called `NAME.backstay-unfinished` from the statement that makes it on, and gets its own
//! name in one transaction at the end: nobody takes half of it for the whole. What an earlier run
//! left is replaced by the next one, unless somebody is at work in it.

use super::super::statements::{identifier, renamed, split, words};
use super::super::toc::TocEntry;
use super::run::Running;
use super::target::Server;
use super::{Plan, RestoreOptions};
use crate::session::Session;
use crate::{PostgresError, PostgresErrorKind, Result};
use backstay_store::failpoint;

const SUFFIX: &str = ".backstay-unfinished";
/// Names are cut to this by the server. Bytes.
const LONGEST: usize = 63;
/// How often it is tried to give a database its name. The server waits five seconds each time.
const ATTEMPTS: usize = 3;

/// What a database is called until it is whole.
pub(super) fn name(of: &str) -> String {
    let mut end = of.len().min(LONGEST - SUFFIX.len());
    while !of.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{SUFFIX}", of.get(..end).unwrap_or_default())
}

/// Says which databases of the server are what is left of a restore, but for those that this one
/// makes anew.
pub(super) fn left(server: &Server, plans: &[Plan]) -> Vec<String> {
    let ours: Vec<String> = plans.iter().map(|plan| name(&plan.into)).collect();
    server
        .databases
        .iter()
        .filter(|one| one.ends_with(SUFFIX) && !ours.contains(one))
        .map(|one| {
            format!(
                "the database {one} is an unfinished restore: restore {} again, or drop it",
                one.trim_end_matches(SUFFIX)
            )
        })
        .collect()
}

/// What makes a database as it was, in the order of the dump.
struct Statements {
    creation: String,
    /// Before it is filled: owner, settings, privileges, comment, labels.
    first: Vec<String>,
    /// What would be in the way of filling it, or of removing it when that fails.
    last: Vec<String>,
}

impl Statements {
    fn of(plan: &Plan, options: &RestoreOptions, server: &Server) -> Result<Self> {
        let entries = &plan.toc.entries;
        let made = entries.iter().find(|entry| entry.kind == "DATABASE").ok_or_else(|| {
            PostgresError::new(
                PostgresErrorKind::Damaged,
                format!("the dump of {} does not say how to make it", plan.database),
            )
            .with_hint("restore into a database that is there: --into \"… dbname=NAME\"")
        })?;
        let name = name(&plan.into);
        let written = |statement: &str| renamed(statement, &plan.database, &name);
        let mut creation = None;
        for statement in split(&made.definition) {
            match statement.starts_with("CREATE DATABASE") {
                true => creation = written(&without_missing_space(&statement, server)),
                false => tracing::debug!(%statement, "passed over"),
            }
        }
        let creation = creation.ok_or_else(|| {
            PostgresError::new(
                PostgresErrorKind::Damaged,
                format!("the dump of {} makes no database of this name", plan.database),
            )
        })?;
        let (mut first, mut last) = (Vec::new(), Vec::new());
        if options.owner && !made.owner.is_empty() {
            first.push(format!(
                "ALTER DATABASE {} OWNER TO {}",
                identifier(&name),
                identifier(&made.owner)
            ));
        }
        for entry in entries.iter().filter(|entry| is_of_the_database(entry, options)) {
            for statement in split(&entry.definition) {
                match written(&statement) {
                    Some(written) if comes_last(&statement) => last.push(written),
                    Some(written) => first.push(written),
                    None => first.push(statement),
                }
            }
        }
        // They run when it has its own name.
        let own = |statement: &String| {
            renamed(statement, &name, &plan.into).unwrap_or_else(|| statement.clone())
        };
        let last = last.iter().map(own).collect();
        Ok(Self { creation, first, last })
    }
}

fn is_of_the_database(entry: &TocEntry, options: &RestoreOptions) -> bool {
    let about = entry.schema.is_none() && entry.name.starts_with("DATABASE ");
    match entry.kind.as_str() {
        "DATABASE PROPERTIES" => true,
        "COMMENT" | "SECURITY LABEL" => about,
        "ACL" => about && options.owner,
        _ => false,
    }
}

fn comes_last(statement: &str) -> bool {
    let words = words(statement);
    let word = |at: usize| words.get(at).map(String::as_str).unwrap_or_default();
    match (word(0), word(3)) {
        ("ALTER", "CONNECTION" | "IS_TEMPLATE" | "ALLOW_CONNECTIONS") => true,
        ("ALTER", "SET") => word(4) == "default_transaction_read_only",
        _ => false,
    }
}

/// Without the tablespace, where the server has none of this name: the default one takes it.
fn without_missing_space(statement: &str, server: &Server) -> String {
    const CLAUSE: &str = " TABLESPACE = ";
    match statement.rsplit_once(CLAUSE) {
        Some((rest, space)) if matches!(words(space).as_slice(), [one] if !server.tablespaces.contains(one)) => {
            rest.to_owned()
        }
        _ => statement.to_owned(),
    }
}

impl Running<'_> {
    /// Makes the database, as it was and under its name until it is whole. The session stays in it:
    /// while it does, nobody else takes it for what a dead process left.
    pub(super) fn create(
        &self,
        plan: &Plan,
        server: &Server,
        notes: &mut Vec<String>,
    ) -> Result<Session> {
        let name = name(&plan.into);
        let statements = Statements::of(plan, self.options, server)?;
        let mut beside = self.beside(plan)?;
        if server.databases.contains(&name) {
            remove_left(&mut beside, &name)?;
            notes.push(format!(
                "an earlier restore of {} was unfinished, and was replaced",
                plan.into
            ));
        }
        let doing = format!("create the database {}", plan.into);
        beside.run(&doing, &statements.creation)?;
        failpoint::hit("postgres-logical-created");
        let mut prepare = || {
            let doing = format!("give the database {} what it had", plan.into);
            beside.run(&doing, "BEGIN")?;
            for statement in &statements.first {
                beside.run(&doing, statement)?;
            }
            beside.run(&doing, "COMMIT")?;
            Session::with(&self.within(&name))
        };
        prepare().map_err(|error| self.remove(plan, error))
    }

    /// Gives a database that is whole its own name.
    pub(super) fn finish(&self, plan: &Plan, server: &Server, inside: Session) -> Result<()> {
        failpoint::hit("postgres-logical-filled");
        drop(inside);
        let name = name(&plan.into);
        let rename =
            format!("ALTER DATABASE {} RENAME TO {}", identifier(&name), identifier(&plan.into));
        let mut statements = vec![rename.clone()];
        statements.extend(Statements::of(plan, self.options, server)?.last);
        let all = format!("BEGIN; {}; COMMIT", statements.join("; "));
        let mut attempts = 1;
        let result = loop {
            let mut beside = self.beside(plan)?;
            if attempts > 1 {
                // Whoever looks into every database of a server may be in this one, too. Not every
                // role may ask them to leave.
                let _ = beside.rows(
                    "ask others to leave the database",
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
                    &[&name],
                );
            }
            let result = beside.run(&format!("give the database {} its name", plan.into), &all);
            self.options.progress.check()?;
            if result.is_ok() || attempts == ATTEMPTS {
                break result;
            }
            attempts += 1;
        };
        result.map_err(|error| {
            error.with_hint(format!(
                "it is whole, and called {name}; put right what is in the way and say `{};`",
                statements.join("; ")
            ))
        })
    }

    /// Removes a database that was made for a restore that failed.
    pub(super) fn remove(&self, plan: &Plan, error: PostgresError) -> PostgresError {
        let name = name(&plan.into);
        let removed = self.beside(plan).and_then(|mut session| {
            session.run(
                "remove it",
                &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(&name)),
            )
        });
        let hint = error.hint().map(|hint| format!("{hint}; ")).unwrap_or_default();
        error.with_hint(match removed {
            Ok(()) => format!("{hint}the database {} was removed again", plan.into),
            Err(_) => format!(
                "{hint}the database {name} is unfinished and could not be removed: restore again, \
                 or drop it"
            ),
        })
    }
}

/// Removes what an earlier run left. Without force: the server refuses while somebody is in it.
fn remove_left(beside: &mut Session, name: &str) -> Result<()> {
    let busy: bool = beside.one(
        "ask who is in an unfinished database",
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = $1 \
         AND backend_type = 'client backend')",
        &[&name],
    )?;
    if busy {
        return Err(PostgresError::new(
            PostgresErrorKind::Busy,
            format!("somebody is at work in {name}, which is an unfinished restore"),
        )
        .with_hint(
            "wait for the other restore; if it was killed, its pg_restore may still run: end that \
             first",
        ));
    }
    beside.run(
        "remove what an earlier restore left",
        &format!("DROP DATABASE IF EXISTS {}", identifier(name)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_into_what_the_server_keeps() {
        assert_eq!(name("shop"), "shop.backstay-unfinished");
        let long = "ü".repeat(31);
        assert!(name(&long).len() <= LONGEST && name(&long).ends_with(SUFFIX));
    }

    #[test]
    fn what_would_be_in_the_way_comes_last() {
        for (statement, last) in [
            ("ALTER DATABASE shop CONNECTION LIMIT = 3", true),
            ("ALTER DATABASE \"my shop\" IS_TEMPLATE = true", true),
            ("ALTER DATABASE shop SET default_transaction_read_only TO 'on'", true),
            ("ALTER DATABASE shop SET work_mem TO '7MB'", false),
            ("ALTER ROLE app IN DATABASE shop SET work_mem TO '7MB'", false),
            ("COMMENT ON DATABASE shop IS 'SET'", false),
        ] {
            assert_eq!(comes_last(statement), last, "{statement}");
        }
    }
}
