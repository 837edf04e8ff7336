//! Which entries of a dump are restored: all, those of a schema, or those of a table with what it
//! cannot do without.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::catalogue::{Catalogue, ObjectKind};
use super::super::toc::{Toc, TocEntry};
use super::target::{Class, Names};
use crate::{PostgresError, PostgresErrorKind, Result};

/// What belongs to a table and is named after it: `TABLE NAME`.
const PARTS: [&str; 7] =
    ["DEFAULT", "CONSTRAINT", "CHECK CONSTRAINT", "FK CONSTRAINT", "TRIGGER", "RULE", "POLICY"];
/// What a restore makes of itself where it is missing and something needs it.
const BROUGHT: [&str; 13] = [
    "SCHEMA",
    "EXTENSION",
    "TYPE",
    "SHELL TYPE",
    "DOMAIN",
    "FUNCTION",
    "PROCEDURE",
    "AGGREGATE",
    "COLLATION",
    "OPERATOR",
    "SEQUENCE",
    "PROCEDURAL LANGUAGE",
    "TEXT SEARCH CONFIGURATION",
];

/// What is asked for of one database. Both empty: everything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub schemas: &'a [String],
    pub tables: &'a [String],
}

impl Asked<'_> {
    pub(super) fn everything(&self) -> bool {
        self.schemas.is_empty() && self.tables.is_empty()
    }
}

/// Entries of a dump, by their ids, in the order of the dump.
#[derive(Debug)]
pub(super) struct Selection {
    pub ids: Vec<i64>,
    /// Those that were asked for, not merely needed.
    asked: BTreeSet<i64>,
    pub notes: Vec<String>,
}

impl Selection {
    pub(super) fn entries<'t>(&'t self, toc: &'t Toc) -> impl Iterator<Item = &'t TocEntry> {
        let ids: BTreeSet<i64> = self.ids.iter().copied().collect();
        toc.entries.iter().filter(move |entry| ids.contains(&entry.id))
    }

    /// What the target has already of what was asked for.
    pub(super) fn conflicts(&self, toc: &Toc, names: &Names) -> Vec<String> {
        self.entries(toc)
            .filter(|entry| self.asked.contains(&entry.id))
            .filter(|entry| {
                Class::of(&entry.kind).is_some_and(|class| {
                    !matches!(class, Class::Schema | Class::Extension)
                        && names.has(
                            class,
                            entry.schema.as_deref().unwrap_or_default(),
                            &entry.name,
                        )
                })
            })
            .map(display)
            .collect()
    }
}

pub(super) fn display(entry: &TocEntry) -> String {
    let kind = entry.kind.to_lowercase();
    match &entry.schema {
        Some(schema) => format!("{kind} {schema}.{}", entry.name),
        None => format!("{kind} {}", entry.name),
    }
}

/// Entries that are of the database itself, and those that psql alone understands.
fn is_of_database(entry: &TocEntry) -> bool {
    matches!(entry.kind.as_str(), "DATABASE" | "DATABASE PROPERTIES")
        || (matches!(entry.kind.as_str(), "ACL" | "COMMENT" | "SECURITY LABEL")
            && entry.schema.is_none()
            && entry.name.starts_with("DATABASE "))
}

/// Chooses the entries; `names` is what the target has.
///
/// # Errors
/// `Usage` when something that is asked for is not in the dump; `Mismatch` when a table needs
/// another one that is neither asked for nor there.
pub(super) fn select(
    toc: &Toc,
    catalogue: &Catalogue,
    asked: Asked<'_>,
    names: &Names,
) -> Result<Selection> {
    let chosen: BTreeSet<i64> = if asked.everything() {
        toc.entries.iter().filter(|one| !is_of_database(one)).map(|one| one.id).collect()
    } else {
        let mut chosen = of_schemas(toc, catalogue, asked.schemas)?;
        chosen.extend(of_tables(toc, catalogue, asked.tables)?);
        chosen
    };
    let by_id: HashMap<i64, &TocEntry> = toc.entries.iter().map(|one| (one.id, one)).collect();
    let mut all = chosen.clone();
    let mut left_out: BTreeSet<i64> = BTreeSet::new();
    let mut notes = Vec::new();
    if !asked.everything() {
        let mut open: Vec<i64> = chosen.iter().copied().collect();
        while let Some(id) = open.pop() {
            let Some(entry) = by_id.get(&id) else { continue };
            for needed in entry.depends.iter().filter_map(|id| by_id.get(id)) {
                if all.contains(&needed.id) || has(names, needed) {
                    continue;
                }
                if BROUGHT.contains(&needed.kind.as_str()) {
                    notes.push(format!(
                        "{} comes with it: {} needs it",
                        display(needed),
                        display(entry)
                    ));
                    all.insert(needed.id);
                    open.push(needed.id);
                    continue;
                }
                // A foreign key needs the key of the other table, and so the table.
                let relation = if is_relation(needed) {
                    Some(needed)
                } else if matches!(needed.kind.as_str(), "CONSTRAINT" | "INDEX") {
                    needed
                        .depends
                        .iter()
                        .filter_map(|id| by_id.get(id))
                        .find(|one| is_relation(one))
                } else {
                    None
                };
                let Some(relation) = relation else { continue };
                if all.contains(&relation.id) || has(names, relation) {
                    continue;
                }
                if may_be_left_out(entry) {
                    notes.push(format!(
                        "{} is left out: there is no {}",
                        display(entry),
                        display(relation)
                    ));
                    left_out.insert(entry.id);
                } else {
                    return Err(PostgresError::new(
                        PostgresErrorKind::Mismatch,
                        format!(
                            "{} needs {}, which is not there",
                            display(entry),
                            display(relation)
                        ),
                    )
                    .with_hint(format!(
                        "restore it as well: --table {}.{}",
                        relation.schema.as_deref().unwrap_or("public"),
                        relation.name
                    )));
                }
            }
        }
        // The schema of an object is not among what it depends on.
        let schemas: BTreeSet<&str> =
            all.iter().filter_map(|id| by_id.get(id)?.schema.as_deref()).collect();
        for entry in toc.entries.iter().filter(|one| one.kind == "SCHEMA") {
            if schemas.contains(entry.name.as_str()) {
                all.insert(entry.id);
            }
        }
    }
    let ids = toc
        .entries
        .iter()
        .filter(|one| all.contains(&one.id) && !left_out.contains(&one.id))
        // A schema that is there stays as it is.
        .filter(|one| one.kind != "SCHEMA" || !has(names, one))
        .map(|one| one.id)
        .collect();
    notes.sort();
    notes.dedup();
    Ok(Selection { ids, asked: chosen, notes })
}

fn has(names: &Names, entry: &TocEntry) -> bool {
    Class::of(&entry.kind).is_some_and(|class| {
        names.has(class, entry.schema.as_deref().unwrap_or_default(), &entry.name)
    })
}

fn is_relation(entry: &TocEntry) -> bool {
    matches!(entry.kind.as_str(), "TABLE" | "VIEW" | "MATERIALIZED VIEW" | "FOREIGN TABLE")
}

/// What a table can be without.
fn may_be_left_out(entry: &TocEntry) -> bool {
    matches!(entry.kind.as_str(), "FK CONSTRAINT" | "TRIGGER" | "RULE" | "POLICY" | "TABLE ATTACH")
}

fn of_schemas(toc: &Toc, catalogue: &Catalogue, schemas: &[String]) -> Result<BTreeSet<i64>> {
    let mut chosen = BTreeSet::new();
    for schema in schemas {
        let there = catalogue
            .objects
            .iter()
            .any(|one| one.kind == ObjectKind::Schema && one.name == *schema);
        if !there {
            let all: Vec<&str> = catalogue
                .objects
                .iter()
                .filter(|one| one.kind == ObjectKind::Schema)
                .map(|one| one.name.as_str())
                .collect();
            return Err(PostgresError::usage(format!(
                "the database {} has no schema {schema:?} in this snapshot",
                catalogue.database
            ))
            .with_hint(format!("it has {}", all.join(", "))));
        }
        chosen.extend(
            toc.entries
                .iter()
                .filter(|one| {
                    one.schema.as_deref() == Some(schema)
                        || (one.kind == "SCHEMA" && one.name == *schema)
                        || (matches!(one.kind.as_str(), "ACL" | "COMMENT")
                            && one.name == format!("SCHEMA {schema}"))
                })
                .map(|one| one.id),
        );
    }
    Ok(chosen)
}

fn of_tables(toc: &Toc, catalogue: &Catalogue, tables: &[String]) -> Result<BTreeSet<i64>> {
    // Schema and name of each relation, with the names of its indexes.
    let mut wanted: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    let mut open: Vec<usize> = Vec::new();
    for table in tables {
        let found: Vec<usize> = catalogue
            .find(table)
            .into_iter()
            .filter(|at| catalogue.objects.get(*at).is_some_and(|one| one.kind.is_relation()))
            .collect();
        match found.as_slice() {
            [one] => open.push(*one),
            [] => {
                return Err(PostgresError::usage(format!(
                    "the database {} has no table {table:?} in this snapshot",
                    catalogue.database
                ))
                .with_hint(
                    "`backstay catalogue` lists its tables; --database says which database",
                ));
            }
            several => {
                let names: Vec<String> = several
                    .iter()
                    .filter_map(|at| catalogue.objects.get(*at))
                    .map(super::super::catalogue::Object::qualified)
                    .collect();
                return Err(PostgresError::usage(format!("{table:?} may be several tables"))
                    .with_hint(format!("say which one: {}", names.join(", "))));
            }
        }
    }
    while let Some(at) = open.pop() {
        let Some(object) = catalogue.objects.get(at) else { continue };
        let schema = object.schema.clone().unwrap_or_default();
        let indexes = catalogue
            .objects
            .iter()
            .filter(|one| {
                matches!(one.kind, ObjectKind::Index | ObjectKind::Statistics)
                    && one.schema.as_deref() == Some(schema.as_str())
                    && one.of.as_deref() == Some(object.name.as_str())
            })
            .map(|one| one.name.clone())
            .collect();
        if wanted.insert((schema.clone(), object.name.clone()), indexes).is_some() {
            continue;
        }
        // Its partitions, and the sequences that go with it.
        let qualified = object.qualified();
        for (child, other) in catalogue.objects.iter().enumerate() {
            let fact = |name: &str| other.facts.get(name).map(String::as_str).unwrap_or_default();
            if other.facts.contains_key("partition-bound") && fact("inherits") == qualified {
                open.push(child);
            }
            let owned = fact("owned-by").strip_prefix(qualified.as_str());
            if other.kind == ObjectKind::Sequence && owned.is_some_and(|rest| rest.starts_with('.'))
            {
                let schema = other.schema.clone().unwrap_or_default();
                wanted.insert((schema, other.name.clone()), BTreeSet::new());
            }
        }
    }
    let mut chosen = BTreeSet::new();
    for ((schema, name), indexes) in &wanted {
        let own = toc.entries.iter().find(|one| {
            Class::of(&one.kind) == Some(Class::Relation)
                && one.schema.as_deref() == Some(schema)
                && one.name == *name
        });
        let Some(own) = own else { continue };
        chosen.insert(own.id);
        for entry in toc.entries.iter().filter(|one| one.schema.as_deref() == Some(schema)) {
            let named_after = entry.name.strip_prefix(name.as_str());
            let belongs = match entry.kind.as_str() {
                "TABLE DATA"
                | "MATERIALIZED VIEW DATA"
                | "ROW SECURITY"
                | "TABLE ATTACH"
                | "SEQUENCE SET"
                | "SEQUENCE OWNED BY" => entry.name == *name,
                "INDEX" | "INDEX ATTACH" | "STATISTICS" => indexes.contains(&entry.name),
                "COMMENT" | "ACL" | "SECURITY LABEL" => entry.depends.contains(&own.id),
                part if PARTS.contains(&part) => {
                    named_after.is_some_and(|rest| rest.starts_with(' '))
                        && entry.depends.contains(&own.id)
                }
                _ => false,
            };
            if belongs {
                chosen.insert(entry.id);
            }
        }
    }
    Ok(chosen)
}
