//! Making a part ready in the sandbox: under the name that it will have, and without what reaches
//! beyond it.
//!
//! `pg_dump` gives things the names that they have. So they are renamed and moved in the sandbox,
//! where nobody minds, and with a table go its partitions, indexes and sequences.

use crate::session::Session;
use crate::{PostgresError, PostgresErrorKind, Result};

use super::Loaded;
use super::name::{Part, Place, has_relation, identifier, short};

/// The longest name. Bytes.
const LONGEST: usize = 63;

/// A part that can be dumped.
pub(super) struct Staged {
    pub(super) tables: Vec<Loaded>,
    /// Patterns for `pg_dump`, each with the option that it is for.
    pub(super) patterns: Vec<String>,
    /// For what was left out.
    pub(super) statements: Vec<String>,
}

pub(super) fn stage(
    sandbox: &mut Session,
    live: &mut Session,
    part: &Part,
    place: &Place,
) -> Result<Staged> {
    // Event triggers of the original would run on what is done here.
    sandbox.run("prepare the sandbox", "SET session_replication_role = replica")?;
    let relations = match part {
        Part::Table { schema, table } => stage_table(sandbox, live, schema, table, place)?,
        Part::Schema(schema) => stage_schema(sandbox, schema, place)?,
    };
    let statements = cut_off(sandbox, &relations)?;
    let mut tables = Vec::new();
    for (name, is_root) in describe(sandbox, &relations)? {
        if is_root {
            let rows =
                sandbox.one("count the rows", &format!("SELECT count(*) FROM {name}"), &[])?;
            tables.push(Loaded { name, rows });
        }
    }
    let patterns = match part {
        Part::Schema(_) => vec![format!("--schema={}", identifier(&place.schema))],
        Part::Table { .. } => describe(sandbox, &relations)?
            .into_iter()
            .map(|(name, _)| format!("--table={name}"))
            .collect(),
    };
    Ok(Staged { tables, patterns, statements })
}

/// The table and its partitions, by oid.
fn stage_table(
    sandbox: &mut Session,
    live: &mut Session,
    schema: &str,
    table: &str,
    place: &Place,
) -> Result<Vec<u32>> {
    let doing = "look for the table";
    let rows = sandbox.rows(
        doing,
        "SELECT c.oid, relispartition, ARRAY(SELECT inhparent::regclass::text FROM pg_inherits \
         WHERE inhrelid = c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
         WHERE nspname = $1 AND relname = $2 AND relkind IN ('r', 'p')",
        &[&schema, &table],
    )?;
    let Some(row) = rows.first() else {
        return Err(no_table(sandbox, schema, table)?);
    };
    let (root, is_partition): (u32, bool) = (row.get(0), row.get(1));
    let name = format!("{}.{}", identifier(schema), identifier(table));
    for parent in row.get::<_, Vec<String>>(2) {
        let statement = if is_partition {
            format!("ALTER TABLE {parent} DETACH PARTITION {name}")
        } else {
            format!("ALTER TABLE {name} NO INHERIT {parent}")
        };
        sandbox.run("separate the table from its parent", &statement)?;
    }
    let rows = sandbox.rows(
        "list the partitions",
        "WITH RECURSIVE tree (oid, depth) AS (SELECT $1::oid, 0 UNION ALL SELECT inhrelid, depth + 1 \
         FROM pg_inherits JOIN tree ON inhparent = tree.oid) \
         SELECT DISTINCT ON (depth, oid) oid FROM tree ORDER BY depth, oid",
        &[&root],
    )?;
    let relations: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    let into = identifier(&place.schema);
    sandbox.run("make the schema", &format!("CREATE SCHEMA IF NOT EXISTS {into}"))?;
    for oid in &relations {
        let rows = sandbox.rows(
            "look for the table",
            "SELECT oid::regclass::text, relname::text, relnamespace::regnamespace::text, relkind = 'f' \
             FROM pg_class WHERE oid = $1",
            &[oid],
        )?;
        let Some(row) = rows.first() else { continue };
        let (name, plain): (String, String) = (row.get(0), row.get(1));
        // In the destination's schema there may be one of this name, in the live cluster or here.
        let wanted = match &place.table {
            Some(table) if *oid == root => table.clone(),
            _ => plain.clone(),
        };
        let temporary = format!("backstay {oid}");
        sandbox.run(
            "rename it",
            &format!("ALTER TABLE {name} RENAME TO {}", identifier(&temporary)),
        )?;
        let from: String = row.get(2);
        let moved = format!("{into}.{}", identifier(&temporary));
        if from != into && from != place.schema {
            let it = format!("{from}.{}", identifier(&temporary));
            sandbox.run("move it", &format!("ALTER TABLE {it} SET SCHEMA {into}"))?;
        }
        let free = if *oid == root {
            // A table of the sandbox may stand in the way, which nobody will miss.
            aside(sandbox, &place.schema, &wanted)?;
            wanted
        } else {
            free(sandbox, live, place, &wanted)?
        };
        sandbox
            .run("rename it", &format!("ALTER TABLE {moved} RENAME TO {}", identifier(&free)))?;
    }
    rename_what_belongs(sandbox, live, &relations, place)?;
    Ok(relations)
}

/// Indexes and sequences of tables, whose names are those of relations too.
fn rename_what_belongs(
    sandbox: &mut Session,
    live: &mut Session,
    relations: &[u32],
    place: &Place,
) -> Result<()> {
    if !place.exists {
        return Ok(());
    }
    let rows = sandbox.rows(
        "list the indexes and sequences",
        "SELECT c.oid::regclass::text, c.relname::text, c.relkind = 'S' FROM pg_class c WHERE c.oid IN \
         (SELECT indexrelid FROM pg_index WHERE indrelid = ANY($1) UNION SELECT objid FROM pg_depend \
         WHERE refobjid = ANY($1) AND classid = 'pg_class'::regclass \
         AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i')) AND c.relkind IN ('i', 'I', 'S')",
        &[&relations],
    )?;
    for row in rows {
        let (name, plain, sequence): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
        if !has_relation(live, &place.schema, &plain)? {
            continue;
        }
        let new = identifier(&free(sandbox, live, place, &plain)?);
        let kind = if sequence { "SEQUENCE" } else { "INDEX" };
        sandbox.run("rename it", &format!("ALTER {kind} {name} RENAME TO {new}"))?;
    }
    Ok(())
}

/// A name like this one that is free on both sides.
fn free(sandbox: &mut Session, live: &mut Session, place: &Place, name: &str) -> Result<String> {
    let mut candidate = name.to_owned();
    let mut number = 1;
    while has_relation(live, &place.schema, &candidate)?
        || has_relation(sandbox, &place.schema, &candidate)?
    {
        let suffix =
            if number == 1 { "_restored".to_owned() } else { format!("_restored_{number}") };
        candidate = format!("{}{suffix}", short(name, LONGEST - suffix.len()));
        number += 1;
    }
    Ok(candidate)
}

/// Gives another name to what has this one in the sandbox.
fn aside(sandbox: &mut Session, schema: &str, name: &str) -> Result<()> {
    let rows = sandbox.rows(
        "look for the name",
        "SELECT c.oid, relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
         WHERE nspname = $1 AND relname = $2",
        &[&schema, &name],
    )?;
    let Some(row) = rows.first() else { return Ok(()) };
    let kind = match row.get::<_, String>(1).as_str() {
        "i" | "I" => "INDEX",
        "S" => "SEQUENCE",
        "v" => "VIEW",
        "m" => "MATERIALIZED VIEW",
        "c" => "TYPE",
        "f" => "FOREIGN TABLE",
        _ => "TABLE",
    };
    let other = identifier(&format!("backstay aside {}", row.get::<_, u32>(0)));
    let name = format!("{}.{}", identifier(schema), identifier(name));
    sandbox.run("rename what has the name", &format!("ALTER {kind} {name} RENAME TO {other}"))
}

fn no_table(sandbox: &mut Session, schema: &str, table: &str) -> Result<PostgresError> {
    let rows = sandbox.rows(
        "list the tables",
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname NOT IN \
         ('pg_catalog', 'information_schema') ORDER BY schemaname <> $1, tablename <> $2, \
         schemaname, tablename LIMIT 8",
        &[&schema, &table],
    )?;
    let known: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let hint = match known.as_slice() {
        [] => "the database had no tables then; restore to another moment".to_owned(),
        known => format!("there was: {}", known.join(", ")),
    };
    Ok(PostgresError::new(
        PostgresErrorKind::Target,
        format!("there was no table {}.{} at that moment", identifier(schema), identifier(table)),
    )
    .with_hint(hint))
}

/// All tables of the schema, by oid.
fn stage_schema(sandbox: &mut Session, schema: &str, place: &Place) -> Result<Vec<u32>> {
    let query = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)";
    if !sandbox.one::<bool>("look for the schema", query, &[&schema])? {
        return Err(PostgresError::new(
            PostgresErrorKind::Target,
            format!("there was no schema {} at that moment", identifier(schema)),
        )
        .with_hint("name one that was there, or restore to another moment"));
    }
    if schema != place.schema {
        let other: bool = sandbox.one("look for the schema", query, &[&place.schema])?;
        if other {
            let aside = identifier(&format!("backstay aside {}", short(&place.schema, 40)));
            let name = identifier(&place.schema);
            sandbox.run("rename it", &format!("ALTER SCHEMA {name} RENAME TO {aside}"))?;
        }
        let (from, to) = (identifier(schema), identifier(&place.schema));
        sandbox.run("rename the schema", &format!("ALTER SCHEMA {from} RENAME TO {to}"))?;
    }
    let rows = sandbox.rows(
        "list the tables",
        "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
         WHERE nspname = $1 AND relkind IN ('r', 'p') ORDER BY relname",
        &[&place.schema],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Takes away foreign keys to other tables, and triggers, whose functions may do anything; the
/// statements that add them again.
fn cut_off(sandbox: &mut Session, relations: &[u32]) -> Result<Vec<String>> {
    let queries = [
        "SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname), \
         format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, \
         pg_get_constraintdef(oid)) FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 \
         AND conrelid = ANY($1) AND NOT confrelid = ANY($1) ORDER BY 1",
        "SELECT format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass), \
         pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal AND tgparentid = 0 \
         AND tgrelid = ANY($1) ORDER BY 1",
    ];
    let mut statements = Vec::new();
    for query in queries {
        for row in sandbox.rows("list what reaches beyond it", query, &[&relations])? {
            sandbox.run("take away what reaches beyond it", &row.get::<_, String>(0))?;
            statements.push(row.get(1));
        }
    }
    Ok(statements)
}

/// The full name of each, and whether it is no partition.
fn describe(sandbox: &mut Session, relations: &[u32]) -> Result<Vec<(String, bool)>> {
    let rows = sandbox.rows(
        "list the tables",
        "SELECT '\"' || replace(nspname, '\"', '\"\"') || '\".\"' || replace(relname, '\"', '\"\"') || \
         '\"', NOT relispartition FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
         WHERE c.oid = ANY($1) ORDER BY relispartition, 1",
        &[&relations],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
