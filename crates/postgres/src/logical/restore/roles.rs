//! Roles from a dump: those that are missing are made, the others stay as they are.

use std::collections::BTreeSet;

use serde::Serialize;

use super::super::statements::{split, words};
use super::target::Server;
use crate::Result;
use crate::connection::Parameters;
use crate::session::Session;

/// What became of the roles and tablespaces of a dump.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RolesRestored {
    pub created: Vec<String>,
    /// Were there, and stayed as they were.
    pub kept: Vec<String>,
    /// Were there, and were made as they are in the snapshot.
    pub altered: Vec<String>,
    /// Tablespaces that are not there: a folder for them has to be made first.
    pub tablespaces_missing: Vec<String>,
}

/// What is to be run, in order, and what comes of it.
pub(super) struct Plan {
    statements: Vec<String>,
    pub outcome: RolesRestored,
}

/// Whose statement it is.
enum Of {
    Role { name: String, creates: bool },
    Membership { member: String },
    Tablespace(String),
    Nothing,
}

fn of(statement: &str) -> Of {
    let words = words(statement);
    let word = |at: usize| words.get(at).map(String::as_str).unwrap_or_default();
    match (word(0), word(1)) {
        ("CREATE", "ROLE") => Of::Role { name: word(2).to_owned(), creates: true },
        // Of one database: it comes with the database.
        ("ALTER", "ROLE") if word(3) == "IN" => Of::Nothing,
        ("ALTER", "ROLE") => Of::Role { name: word(2).to_owned(), creates: false },
        ("COMMENT", "ON") if word(2) == "ROLE" => {
            Of::Role { name: word(3).to_owned(), creates: false }
        }
        ("GRANT", _) if word(2) == "TO" => Of::Membership { member: word(3).to_owned() },
        ("CREATE", "TABLESPACE") => Of::Tablespace(word(2).to_owned()),
        _ => Of::Nothing,
    }
}

/// Decides what of the script is run on a server with these roles.
pub(super) fn plan(script: &str, server: &Server, overwrite: bool) -> Plan {
    let mut outcome = RolesRestored::default();
    let mut statements = Vec::new();
    let mut created: BTreeSet<String> = BTreeSet::new();
    for statement in split(script) {
        let runs = match of(&statement) {
            Of::Role { name, creates } => {
                let there = server.roles.contains(&name);
                if creates {
                    match (there, overwrite) {
                        (false, _) => outcome.created.push(name.clone()),
                        (true, true) => outcome.altered.push(name.clone()),
                        (true, false) => outcome.kept.push(name.clone()),
                    }
                    if !there {
                        created.insert(name);
                    }
                    !there
                } else {
                    !there || overwrite
                }
            }
            // A role that was kept keeps its memberships.
            Of::Membership { member } => overwrite || created.contains(&member),
            Of::Tablespace(name) => {
                if !server.tablespaces.contains(&name) {
                    outcome.tablespaces_missing.push(name);
                }
                false
            }
            Of::Nothing => false,
        };
        if runs {
            statements.push(statement);
        }
    }
    Plan { statements, outcome }
}

impl Plan {
    /// Runs it: all of it, or nothing.
    pub(super) fn run(self, parameters: &Parameters) -> Result<RolesRestored> {
        if self.statements.is_empty() {
            return Ok(self.outcome);
        }
        let mut session = Session::with(parameters)?;
        session.run("begin a transaction", "BEGIN")?;
        // Neither the statements nor what they hold may get into a log of this session.
        session.run("keep passwords out of the log", "SET LOCAL log_statement = 'none'").or_else(
            |_| {
                session.run("begin anew", "ROLLBACK")?;
                session.run("begin a transaction", "BEGIN")
            },
        )?;
        for statement in &self.statements {
            let words = words(statement);
            let doing = format!(
                "restore the roles ({})",
                words.iter().take(3).cloned().collect::<Vec<_>>().join(" ")
            );
            session.run(&doing, statement)?;
        }
        session.run("commit the roles", "COMMIT")?;
        Ok(self.outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_told_apart() {
        let name = |statement: &str| match of(statement) {
            Of::Role { name, creates } => format!("{name} {creates}"),
            Of::Membership { member } => format!("to {member}"),
            Of::Tablespace(name) => format!("space {name}"),
            Of::Nothing => "nothing".to_owned(),
        };
        assert_eq!(name("CREATE ROLE \"my role\""), "my role true");
        assert_eq!(name("ALTER ROLE app WITH NOSUPERUSER PASSWORD 'x'"), "app false");
        assert_eq!(name("ALTER ROLE app IN DATABASE shop SET work_mem TO '1MB'"), "nothing");
        assert_eq!(name("COMMENT ON ROLE app IS 'x'"), "app false");
        assert_eq!(name("GRANT readers TO app WITH INHERIT TRUE GRANTED BY postgres"), "to app");
        assert_eq!(name("CREATE TABLESPACE fast OWNER postgres LOCATION '/x'"), "space fast");
        assert_eq!(name("SET client_encoding = 'UTF8'"), "nothing");
    }
}
