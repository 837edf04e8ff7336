//! Names of what is taken out of a backup, and the name that it gets.

use std::fmt;

use crate::session::Session;
use crate::{PostgresError, Result};

/// What is taken out of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Table { schema: String, table: String },
    Schema(String),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table { schema, table } => {
                write!(f, "{}.{}", identifier(schema), identifier(table))
            }
            Self::Schema(schema) => f.write_str(&identifier(schema)),
        }
    }
}

impl Part {
    /// Reads `[DATABASE.]SCHEMA.TABLE` as SQL reads names. The database, where there is one.
    pub fn table(text: &str) -> Result<(Option<String>, Self)> {
        let mut names = names(text)?;
        match (names.len(), names.pop(), names.pop(), names.pop()) {
            (2 | 3, Some(table), Some(schema), database) => {
                Ok((database, Self::Table { schema, table }))
            }
            _ => Err(PostgresError::usage(format!("{text:?} is no name of a table"))
                .with_hint("write it as SCHEMA.TABLE or DATABASE.SCHEMA.TABLE")),
        }
    }

    /// Reads `[DATABASE.]SCHEMA`.
    pub fn schema(text: &str) -> Result<(Option<String>, Self)> {
        let mut names = names(text)?;
        match (names.len(), names.pop(), names.pop()) {
            (1 | 2, Some(schema), database) => Ok((database, Self::Schema(schema))),
            _ => Err(PostgresError::usage(format!("{text:?} is no name of a schema"))
                .with_hint("write it as SCHEMA or DATABASE.SCHEMA")),
        }
    }
}

/// Where a part goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) schema: String,
    /// Of a table.
    pub(super) table: Option<String>,
    /// Whether the schema is there already.
    pub(super) exists: bool,
}

/// The place that is asked for, or one that is free.
///
/// # Errors
/// Something is there.
pub(super) fn destination(part: &Part, given: Option<&str>, live: &mut Session) -> Result<Place> {
    let mut given = given.map(names).transpose()?.unwrap_or_default();
    let (schema, table) = match (part, given.len(), given.pop(), given.pop()) {
        (Part::Table { table, .. }, 0, ..) => (free_schema(live, "restored")?, Some(table.clone())),
        (Part::Table { schema, .. }, 1, Some(table), _) => (schema.clone(), Some(table)),
        (Part::Table { .. }, 2, Some(table), Some(schema)) => (schema, Some(table)),
        (Part::Schema(schema), 0, ..) => {
            (free_schema(live, &format!("{}_restored", short(schema, 45)))?, None)
        }
        (Part::Schema(_), 1, Some(schema), _) => (schema, None),
        _ => {
            return Err(PostgresError::usage("that is no name that it could get").with_hint(
                "say --as TABLE or --as SCHEMA.TABLE for a table, --as SCHEMA for a schema",
            ));
        }
    };
    let exists = has_schema(live, &schema)?;
    let taken = match &table {
        Some(table) => has_relation(live, &schema, table)?,
        None => exists,
    };
    if taken {
        let name = table.map_or_else(
            || identifier(&schema),
            |table| format!("{}.{}", identifier(&schema), identifier(&table)),
        );
        return Err(PostgresError::usage(format!("there is a {name} already on {}", live.place()))
            .with_hint("nothing is overwritten: choose another name with --as"));
    }
    Ok(Place { schema, table, exists })
}

fn free_schema(live: &mut Session, stem: &str) -> Result<String> {
    for number in 1.. {
        let name = if number == 1 { stem.to_owned() } else { format!("{stem}_{number}") };
        if !has_schema(live, &name)? {
            return Ok(name);
        }
    }
    Ok(stem.to_owned())
}

fn has_schema(session: &mut Session, name: &str) -> Result<bool> {
    let query = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)";
    session.one("look for the schema", query, &[&name])
}

pub(super) fn has_relation(session: &mut Session, schema: &str, name: &str) -> Result<bool> {
    let query = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
                 WHERE nspname = $1 AND relname = $2)";
    session.one("look for the relation", query, &[&schema, &name])
}

/// The beginning of a name, of so many bytes at most.
pub(super) fn short(name: &str, bytes: usize) -> &str {
    let mut end = bytes.min(name.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.get(..end).unwrap_or_default()
}

pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Names with dots between them, as SQL reads them: without quotes in lower case.
fn names(text: &str) -> Result<Vec<String>> {
    let wrong = || {
        PostgresError::usage(format!("{text:?} cannot be read as a name"))
            .with_hint("a name with other letters is quoted, as in SQL: 'sales.\"Order Lines\"'")
    };
    let mut names = Vec::new();
    let mut letters = text.chars().peekable();
    loop {
        let mut name = String::new();
        if letters.next_if_eq(&'"').is_some() {
            loop {
                match letters.next() {
                    Some('"') if letters.next_if_eq(&'"').is_some() => name.push('"'),
                    Some('"') => break,
                    Some(letter) => name.push(letter),
                    None => return Err(wrong()),
                }
            }
        } else {
            let plain = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '$');
            while let Some(letter) = letters.next_if(plain) {
                name.extend(letter.to_lowercase());
            }
        }
        if name.is_empty() || name.contains('\0') {
            return Err(wrong());
        }
        names.push(name);
        match letters.next() {
            None => return Ok(names),
            Some('.') => {}
            Some(_) => return Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_sql_reads_them() {
        let table = |schema: &str, table: &str| Part::Table {
            schema: schema.to_owned(),
            table: table.to_owned(),
        };
        assert_eq!(Part::table("Public.Orders").unwrap(), (None, table("public", "orders")));
        assert_eq!(
            Part::table("shop.\"My \"\"S\"\".\".t$1").unwrap(),
            (Some("shop".to_owned()), table("My \"S\".", "t$1"))
        );
        assert_eq!(
            Part::schema("a.b").unwrap(),
            (Some("a".to_owned()), Part::Schema("b".to_owned()))
        );
        for wrong in ["orders", "", "a..b", "a.b.c.d", "a.\"b", "a.b c", "a.\"\"", "a.b.", "a-b.c"]
        {
            assert!(Part::table(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn long_names_are_cut_between_letters() {
        assert_eq!(short("aäb", 2), "a");
        assert_eq!(short("aäb", 3), "aä");
        assert_eq!(short("ab", 10), "ab");
    }
}
