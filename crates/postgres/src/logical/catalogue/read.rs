//! Fills a [`Catalogue`] from the server, within the transaction of the caller.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use postgres::Row;

use super::{
    Activity, Catalogue, Column, Edge, EdgeKind, FORMAT, Object, ObjectKind, Statistics, queries,
};
use crate::session::Session;
use crate::{PostgresError, PostgresErrorKind, Result};

const DOING: &str = "read the catalogue of the database";

/// A row of the server's catalogue: its table, and its number.
type Address = (String, u32);

/// Reads all of one database.
pub(in crate::logical) fn read(session: &mut Session, database: &str) -> Result<Catalogue> {
    let time: String = session.one(
        DOING,
        "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
        &[],
    )?;
    let server: String =
        session.one(DOING, "SELECT split_part(current_setting('server_version'), ' ', 1)", &[])?;
    let aliases = aliases(session)?;
    let (mut objects, mut addresses) = objects(session, &aliases)?;
    add_columns(session, &mut objects, &addresses)?;
    add_statistics(session, &mut objects, &addresses)?;
    sort(&mut objects, &mut addresses);
    let dependencies = dependencies(session, &addresses, &aliases)?;
    Ok(Catalogue {
        format: FORMAT,
        database: database.to_owned(),
        time: time.parse::<Timestamp>().map_err(|_| {
            PostgresError::new(
                PostgresErrorKind::Server,
                format!("the server answered {time:?} where a time was expected"),
            )
        })?,
        server,
        objects,
        dependencies,
        files: BTreeMap::new(),
    })
}

/// A value of a row; a query that does not fit is a mistake that must not pass for an empty value.
fn get<'a, T: postgres::types::FromSql<'a>>(row: &'a Row, at: usize) -> Result<T> {
    row.try_get(at).map_err(|error| {
        PostgresError::new(PostgresErrorKind::Server, format!("could not {DOING}: {error}"))
            .with_source(error)
    })
}

fn with_schemas(query: &str) -> String {
    query.replace("{n}", queries::SCHEMAS)
}

fn aliases(session: &mut Session) -> Result<HashMap<Address, Address>> {
    let mut aliases = HashMap::new();
    for row in session.rows(DOING, queries::ALIASES, &[])? {
        let one: Address = (get(&row, 0)?, get(&row, 1)?);
        let other: Address = (get(&row, 2)?, get(&row, 3)?);
        // An extension stands for all that it brought, whatever else that stands for.
        if other.0 == "pg_extension" || !aliases.contains_key(&one) {
            aliases.insert(one, other);
        }
    }
    Ok(aliases)
}

type Objects = (Vec<Object>, HashMap<Address, usize>);

fn objects(session: &mut Session, aliases: &HashMap<Address, Address>) -> Result<Objects> {
    let mut objects = Vec::new();
    let mut addresses = HashMap::new();
    for (what, query) in queries::OBJECTS {
        // Before 14, what may be read of subscriptions by everybody does not suffice.
        if *what == "subscriptions"
            && !session.one::<bool>(
                DOING,
                "SELECT has_column_privilege('pg_subscription', 'oid', 'SELECT')",
                &[],
            )?
        {
            continue;
        }
        let doing = format!("read the {what} of the database");
        for row in session.rows(&doing, &with_schemas(query), &[])? {
            let address: Address = (get(&row, 0)?, get(&row, 1)?);
            // The parts of what an extension brought are its as well, and have no entry of their own
            // in every version.
            if aliases.get(&address).is_some_and(|(class, _)| class == "pg_extension") {
                continue;
            }
            let object = object(&row)?;
            addresses.insert(address, objects.len());
            objects.push(object);
        }
    }
    // What an extension's table has is the extension's.
    let of_extensions = extension_relations(session)?;
    let kept: Vec<bool> = objects
        .iter()
        .map(|object| {
            !(object.kind.is_part()
                && object.schema.as_ref().zip(object.of.as_ref()).is_some_and(|(schema, of)| {
                    of_extensions.contains(&(schema.clone(), of.clone()))
                }))
        })
        .collect();
    addresses.retain(|_, at| kept.get(*at).copied().unwrap_or(false));
    let mut place = 0;
    let places: Vec<usize> = kept
        .iter()
        .map(|kept| {
            place += usize::from(*kept);
            place.saturating_sub(1)
        })
        .collect();
    for at in addresses.values_mut() {
        *at = places.get(*at).copied().unwrap_or(0);
    }
    let mut at = 0;
    objects.retain(|_| {
        at += 1;
        kept.get(at - 1).copied().unwrap_or(false)
    });
    Ok((objects, addresses))
}

fn extension_relations(session: &mut Session) -> Result<HashSet<(String, String)>> {
    let query = "SELECT n.nspname::text, c.relname::text FROM pg_depend d \
         JOIN pg_class c ON c.oid = d.objid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE d.deptype = 'e' AND d.classid = 'pg_class'::regclass";
    session.rows(DOING, query, &[])?.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect()
}

fn object(row: &Row) -> Result<Object> {
    let kind: String = get(row, 2)?;
    let kind: ObjectKind = serde_json::from_value(kind.into()).unwrap_or(ObjectKind::Other);
    let mut grants = get::<Option<Vec<String>>>(row, 8)?.unwrap_or_default();
    grants.sort();
    let pairs = get::<Option<Vec<Option<String>>>>(row, 9)?.unwrap_or_default();
    let facts = pairs
        .chunks_exact(2)
        .filter_map(|pair| match pair {
            [Some(name), Some(value)] if !value.is_empty() => Some((name.clone(), value.clone())),
            _ => None,
        })
        .collect();
    Ok(Object {
        kind,
        schema: get(row, 3)?,
        of: get(row, 4)?,
        name: get(row, 5)?,
        oid: get(row, 1)?,
        owner: get(row, 6)?,
        comment: get(row, 7)?,
        grants,
        facts,
        columns: Vec::new(),
        statistics: None,
    })
}

fn add_columns(
    session: &mut Session,
    objects: &mut [Object],
    addresses: &HashMap<Address, usize>,
) -> Result<()> {
    for row in session.rows("read the columns", &with_schemas(queries::COLUMNS), &[])? {
        let (relation, type_): (u32, Option<u32>) = (get(&row, 0)?, get(&row, 1)?);
        let address = match (get::<bool>(&row, 2)?, type_) {
            (true, Some(type_)) => ("pg_type".to_owned(), type_),
            _ => ("pg_class".to_owned(), relation),
        };
        let Some(object) = addresses.get(&address).and_then(|at| objects.get_mut(*at)) else {
            continue;
        };
        let expression: Option<String> = get(&row, 6)?;
        let generated = !get::<String>(&row, 8)?.is_empty();
        object.columns.push(Column {
            name: get(&row, 3)?,
            type_: get(&row, 4)?,
            nullable: get(&row, 5)?,
            default: expression.clone().filter(|_| !generated),
            identity: match get::<String>(&row, 7)?.as_str() {
                "a" => Some("always".to_owned()),
                "d" => Some("by default".to_owned()),
                _ => None,
            },
            generated: expression.filter(|_| generated),
            collation: get(&row, 9)?,
            comment: get(&row, 10)?,
            grants: get::<Option<Vec<String>>>(&row, 11)?.unwrap_or_default(),
        });
    }
    Ok(())
}

fn add_statistics(
    session: &mut Session,
    objects: &mut [Object],
    addresses: &HashMap<Address, usize>,
) -> Result<()> {
    for row in session.rows("read sizes of relations", &with_schemas(queries::SIZES), &[])? {
        let address = ("pg_class".to_owned(), get::<u32>(&row, 0)?);
        let Some(object) = addresses.get(&address).and_then(|at| objects.get_mut(*at)) else {
            continue;
        };
        let rows: f64 = get(&row, 1)?;
        let bytes = |at: usize| -> Result<u64> {
            Ok(u64::try_from(get::<i64>(&row, at)?).unwrap_or_default())
        };
        let number = |at: usize| get::<Option<i64>>(&row, at).map(Option::unwrap_or_default);
        let activity = match get::<Option<i64>>(&row, 4)? {
            None => None,
            Some(inserted) => Some(Activity {
                inserted,
                updated: number(5)?,
                deleted: number(6)?,
                live: number(7)?,
                dead: number(8)?,
                sequential_scans: number(9)?,
                index_scans: number(10)?,
                vacuumed: get(&row, 11)?,
                analyzed: get(&row, 12)?,
            }),
        };
        object.statistics = Some(Statistics {
            // -1 from 14 on, 0 with no pages before: nobody has counted.
            rows: (rows > 0.0).then_some(rows as u64),
            bytes: bytes(2)?,
            index_bytes: bytes(3)?,
            activity,
        });
    }
    Ok(())
}

/// Puts the objects in the order of their keys.
fn sort(objects: &mut Vec<Object>, addresses: &mut HashMap<Address, usize>) {
    let mut order: Vec<usize> = (0..objects.len()).collect();
    order.sort_by(|a, b| match (objects.get(*a), objects.get(*b)) {
        (Some(a), Some(b)) => a.key().cmp(&b.key()).then(a.oid.cmp(&b.oid)),
        _ => std::cmp::Ordering::Equal,
    });
    let mut place = vec![0; objects.len()];
    for (new, old) in order.iter().enumerate() {
        if let Some(slot) = place.get_mut(*old) {
            *slot = new;
        }
    }
    for at in addresses.values_mut() {
        *at = place.get(*at).copied().unwrap_or(0);
    }
    let mut sorted: Vec<(usize, Object)> = objects
        .drain(..)
        .enumerate()
        .map(|(old, o)| (place.get(old).copied().unwrap_or(0), o))
        .collect();
    sorted.sort_by_key(|(new, _)| *new);
    objects.extend(sorted.into_iter().map(|(_, object)| object));
}

fn dependencies(
    session: &mut Session,
    addresses: &HashMap<Address, usize>,
    aliases: &HashMap<Address, Address>,
) -> Result<Vec<Edge>> {
    let resolve = |mut address: Address| {
        // An array of a row type of a table of an extension; no chain is longer.
        for _ in 0..5 {
            if let Some(at) = addresses.get(&address) {
                return Some(*at);
            }
            address = aliases.get(&address)?.clone();
        }
        None
    };
    let mut edges: HashSet<Edge> = HashSet::new();
    for row in session.rows("read what depends on what", queries::DEPENDENCIES, &[])? {
        let from = resolve((get(&row, 0)?, get(&row, 1)?));
        let to = resolve((get(&row, 2)?, get(&row, 3)?));
        let (Some(from), Some(to)) = (from, to) else { continue };
        let kind = match get::<String>(&row, 4)?.as_str() {
            "a" => EdgeKind::Automatic,
            "i" => EdgeKind::Internal,
            "P" | "S" => EdgeKind::Partition,
            _ => EdgeKind::Normal,
        };
        if from != to {
            edges.insert(Edge { from, to, kind });
        }
    }
    let mut edges: Vec<Edge> = edges.into_iter().collect();
    edges.sort();
    Ok(edges)
}
