//! The server that a dump is given to: what it has, and whether it can take what is asked for.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::super::catalogue::{Catalogue, ObjectKind};
use crate::connection::Parameters;
use crate::session::Session;
use crate::{PostgresError, PostgresErrorKind, Result};

const DOING: &str = "ask what the server has";

/// What stands in the way of another object of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Class {
    Schema,
    Relation,
    Function,
    Type,
    Extension,
}

impl Class {
    /// Of an entry of a dump.
    pub(super) fn of(kind: &str) -> Option<Self> {
        Some(match kind {
            "SCHEMA" => Self::Schema,
            "TABLE" | "VIEW" | "MATERIALIZED VIEW" | "SEQUENCE" | "FOREIGN TABLE" => Self::Relation,
            "FUNCTION" | "PROCEDURE" | "AGGREGATE" => Self::Function,
            "TYPE" | "DOMAIN" | "SHELL TYPE" => Self::Type,
            "EXTENSION" => Self::Extension,
            _ => return None,
        })
    }
}

/// The names that a database has.
#[derive(Debug, Default)]
pub(super) struct Names(HashSet<(Class, String, String)>);

impl Names {
    pub(super) fn read(session: &mut Session) -> Result<Self> {
        let mut names = HashSet::new();
        let queries = [
            (Class::Schema, "SELECT ''::text, nspname::text FROM pg_namespace"),
            (
                Class::Relation,
                "SELECT n.nspname::text, c.relname::text FROM pg_class c \
                 JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind NOT IN ('i', 'I', 't')",
            ),
            (
                Class::Function,
                "SELECT n.nspname::text, format('%s(%s)', p.proname, oidvectortypes(p.proargtypes)) \
                 FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace",
            ),
            (
                Class::Type,
                "SELECT n.nspname::text, t.typname::text FROM pg_type t \
                 JOIN pg_namespace n ON n.oid = t.typnamespace",
            ),
            (Class::Extension, "SELECT ''::text, extname::text FROM pg_extension"),
        ];
        for (class, query) in queries {
            for row in session.rows(DOING, query, &[])? {
                names.insert((class, row.get(0), row.get(1)));
            }
        }
        Ok(Self(names))
    }

    pub(super) fn has(&self, class: Class, schema: &str, name: &str) -> bool {
        let schema = if class == Class::Schema || class == Class::Extension { "" } else { schema };
        self.0.contains(&(class, schema.to_owned(), name.to_owned()))
    }
}

/// A server, as far as a restore has to know it.
pub(super) struct Server {
    pub version: u32,
    pub databases: BTreeSet<String>,
    pub roles: BTreeSet<String>,
    pub tablespaces: BTreeSet<String>,
    /// Versions of each extension that can be made here.
    extensions: BTreeMap<String, BTreeSet<String>>,
    defaults: BTreeMap<String, String>,
    preloaded: Vec<String>,
}

impl Server {
    pub(super) fn look(parameters: &Parameters) -> Result<Self> {
        let mut session = Session::with(parameters)?;
        if session.one::<bool>(DOING, "SELECT pg_is_in_recovery()", &[])? {
            return Err(PostgresError::new(
                PostgresErrorKind::Unsupported,
                format!("the server on {} is a standby and takes no writes", session.place()),
            )
            .with_hint("restore into its primary, or promote it"));
        }
        let mut column = |query: &str| -> Result<BTreeSet<String>> {
            Ok(session.rows(DOING, query, &[])?.iter().map(|row| row.get(0)).collect())
        };
        let databases = column("SELECT datname::text FROM pg_database")?;
        let roles = column("SELECT rolname::text FROM pg_roles")?;
        let tablespaces = column("SELECT spcname::text FROM pg_tablespace")?;
        let mut extensions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let query = "SELECT name::text, version::text FROM pg_available_extension_versions";
        for row in session.rows(DOING, query, &[])? {
            extensions.entry(row.get(0)).or_default().insert(row.get(1));
        }
        let query = "SELECT name::text, coalesce(default_version, '') FROM pg_available_extensions";
        let defaults =
            session.rows(DOING, query, &[])?.iter().map(|row| (row.get(0), row.get(1))).collect();
        let preloaded: String =
            session.one(DOING, "SELECT current_setting('shared_preload_libraries')", &[])?;
        let preloaded = preloaded.split(',').map(|one| one.trim().trim_matches('"').to_owned());
        Ok(Self {
            version: session.version(),
            databases,
            roles,
            tablespaces,
            extensions,
            defaults,
            preloaded: preloaded.filter(|one| !one.is_empty()).collect(),
        })
    }

    pub(super) fn major(&self) -> u32 {
        self.version / 10000
    }
}

/// An extension that has to be there before a dump is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub name: String,
    pub schema: String,
    /// The version to ask for; the server's own choice where absent.
    pub version: Option<String>,
    /// Whether the server makes this version when none is asked for.
    pub is_default: bool,
}

/// Extensions whose tables mean nothing to another version of them.
const EXACT: [&str; 1] = ["timescaledb"];
/// Extensions that work only when the server was started with them.
const PRELOADED: [&str; 2] = ["timescaledb", "citus"];

/// What of the extensions of a database this server can make. What it cannot is an error that names
/// all of them; what differs is said in `notes`.
pub(super) fn extensions(
    server: &Server,
    catalogue: &Catalogue,
    needed: impl Fn(&str) -> bool,
    notes: &mut Vec<String>,
) -> Result<Vec<Wanted>> {
    let (mut wanted, mut missing) = (Vec::new(), Vec::new());
    let all = catalogue.objects.iter().filter(|one| one.kind == ObjectKind::Extension);
    for one in all.filter(|one| one.name != "plpgsql" && needed(&one.name)) {
        let fact = |name: &str| one.facts.get(name).cloned().unwrap_or_default();
        let (version, schema) = (fact("version"), fact("schema"));
        let Some(versions) = server.extensions.get(&one.name) else {
            missing.push(format!("{} {version} is not installed", one.name));
            continue;
        };
        let exact = EXACT.contains(&one.name.as_str());
        let has = versions.contains(&version);
        if PRELOADED.contains(&one.name.as_str()) && !server.preloaded.contains(&one.name) {
            missing.push(format!("{} has to be in shared_preload_libraries", one.name));
        } else if exact && !has {
            let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
            missing.push(format!(
                "{} has to be {version}, and there is {}",
                one.name,
                versions.join(", ")
            ));
        } else {
            if !has {
                let default = server.defaults.get(&one.name).map_or("another one", String::as_str);
                notes.push(format!(
                    "{}: the extension {} was {version}, and is {default} here",
                    catalogue.database, one.name
                ));
            }
            let version = has.then_some(version);
            let is_default =
                version.is_none() || server.defaults.get(&one.name) == version.as_ref();
            wanted.push(Wanted { name: one.name.clone(), schema, version, is_default });
        }
    }
    if missing.is_empty() {
        return Ok(wanted);
    }
    Err(PostgresError::new(
        PostgresErrorKind::Unsupported,
        format!(
            "extensions of {} cannot be made on this server: {}",
            catalogue.database,
            missing.join("; ")
        ),
    )
    .with_hint(
        "install the packages of these extensions on the server, in these versions, and try again",
    ))
}
