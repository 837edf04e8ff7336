//! Extensions and schemas that are made before the rest, and taken back when that fails.

use super::super::statements::identifier;
use super::Plan;
use super::target::{Class, Wanted};
use crate::connection::Parameters;
use crate::session::Session;
use crate::{PostgresError, Result};

/// What was made, as what follows DROP.
#[derive(Debug, Default)]
pub(super) struct Made(Vec<String>);

impl Made {
    /// Makes extensions in the versions that are asked for, and their schemas.
    pub(super) fn make(
        &mut self,
        session: &mut Session,
        extensions: &[&Wanted],
        plan: &Plan,
    ) -> Result<()> {
        for one in extensions {
            let schema = &one.schema;
            if !plan.names.has(Class::Schema, "", schema) && schema != "pg_catalog" {
                let statement = format!("CREATE SCHEMA IF NOT EXISTS {}", identifier(schema));
                session.run(&format!("make the schema {schema}"), &statement)?;
                self.0.push(format!("SCHEMA IF EXISTS {}", identifier(schema)));
            }
            let mut statement = format!(
                "CREATE EXTENSION IF NOT EXISTS {} WITH SCHEMA {}",
                identifier(&one.name),
                identifier(schema)
            );
            if let Some(version) = &one.version {
                statement.push_str(&format!(" VERSION {}", identifier(version)));
            }
            session.run(&format!("make the extension {}", one.name), &statement)?;
            self.0.push(format!("EXTENSION IF EXISTS {}", identifier(&one.name)));
        }
        Ok(())
    }

    /// Takes back what was made, in a database that was there before.
    pub(super) fn undo(self, parameters: &Parameters, error: PostgresError) -> PostgresError {
        if self.0.is_empty() {
            return error;
        }
        let undone = Session::with(parameters).and_then(|mut session| {
            // Nothing that somebody else made goes with it: there is no CASCADE.
            self.0.iter().rev().try_for_each(|one| session.run("take back", &format!("DROP {one}")))
        });
        match undone {
            Ok(()) => error,
            Err(_) => {
                let hint = error.hint().map(|hint| format!("{hint}; ")).unwrap_or_default();
                error.with_hint(format!(
                    "{hint}made before it, and still there: {}",
                    self.0.join(", ").replace(" IF EXISTS", "").to_lowercase()
                ))
            }
        }
    }
}
