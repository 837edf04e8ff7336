//! What a database consists of, as a document: every object that somebody made, with its
//! definition, its size and what it depends on.
//!
//! What lives here: the document and the names of its parts; [`read`] fills it from the server's own
//! catalogue. What does not: comparing two of them (`drift`), and what depends on what (`graph`).
//!
//! Objects of the system and members of extensions are left out: they are no more and no less than
//! the version of the server or of the extension.

mod queries;
pub(super) mod read;
mod server;

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use server::{Database, Role, ServerCatalogue, Setting, TablespaceInfo};

/// The version of the documents' shape.
pub const FORMAT: u32 = 1;

/// One database at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Catalogue {
    pub format: u32,
    pub database: String,
    /// When its transaction began, by the server's clock.
    pub time: Timestamp,
    /// Of the server, as "15.14".
    pub server: String,
    /// In the order of their keys; the place in this list is what [`Edge`]s name.
    pub objects: Vec<Object>,
    pub dependencies: Vec<Edge>,
    /// The rows of tables: `schema.table` as in [`Object::qualified`], and the file of the dump.
    pub files: BTreeMap<String, String>,
}

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ObjectKind {
    Extension,
    Schema,
    Language,
    Type,
    Domain,
    Collation,
    Function,
    Procedure,
    Aggregate,
    Operator,
    OperatorClass,
    OperatorFamily,
    Cast,
    TextSearch,
    ForeignDataWrapper,
    ForeignServer,
    Sequence,
    Table,
    PartitionedTable,
    ForeignTable,
    View,
    MaterializedView,
    Index,
    Constraint,
    Trigger,
    Rule,
    Policy,
    Statistics,
    EventTrigger,
    Publication,
    Subscription,
    DefaultPrivileges,
    /// Written by a newer version.
    #[serde(other)]
    Other,
}

impl ObjectKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Extension => "extension",
            Self::Schema => "schema",
            Self::Language => "language",
            Self::Type => "type",
            Self::Domain => "domain",
            Self::Collation => "collation",
            Self::Function => "function",
            Self::Procedure => "procedure",
            Self::Aggregate => "aggregate",
            Self::Operator => "operator",
            Self::OperatorClass => "operator class",
            Self::OperatorFamily => "operator family",
            Self::Cast => "cast",
            Self::TextSearch => "text search configuration",
            Self::ForeignDataWrapper => "foreign data wrapper",
            Self::ForeignServer => "foreign server",
            Self::Sequence => "sequence",
            Self::Table => "table",
            Self::PartitionedTable => "partitioned table",
            Self::ForeignTable => "foreign table",
            Self::View => "view",
            Self::MaterializedView => "materialized view",
            Self::Index => "index",
            Self::Constraint => "constraint",
            Self::Trigger => "trigger",
            Self::Rule => "rule",
            Self::Policy => "policy",
            Self::Statistics => "statistics object",
            Self::EventTrigger => "event trigger",
            Self::Publication => "publication",
            Self::Subscription => "subscription",
            Self::DefaultPrivileges => "default privileges",
            Self::Other => "object",
        }
    }

    /// What holds rows, or looks as if it did.
    pub fn is_relation(self) -> bool {
        matches!(
            self,
            Self::Table
                | Self::PartitionedTable
                | Self::ForeignTable
                | Self::View
                | Self::MaterializedView
        )
    }

    /// What has no life apart from a table, a view or a domain.
    pub fn is_part(self) -> bool {
        matches!(
            self,
            Self::Index
                | Self::Constraint
                | Self::Trigger
                | Self::Rule
                | Self::Policy
                | Self::Statistics
        )
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    pub kind: ObjectKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Of a part: what it is a part of, in the same schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// Functions with the types of their arguments.
    pub name: String,
    /// The server's own number of it: the same as long as it is the same object, whatever its name.
    pub oid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// In the server's words: `reader=r/owner`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<String>,
    /// What it is, by names that never change: `definition`, `version`, `partition-key` …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<Column>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Statistics>,
}

impl Object {
    /// `schema.name`, or the name alone where there is no schema.
    pub fn qualified(&self) -> String {
        match (&self.schema, &self.of) {
            (Some(schema), Some(of)) => format!("{schema}.{of}.{}", self.name),
            (Some(schema), None) => format!("{schema}.{}", self.name),
            (None, Some(of)) => format!("{of}.{}", self.name),
            (None, None) => self.name.clone(),
        }
    }

    /// For people: `table public.orders`.
    pub fn display(&self) -> String {
        match (&self.schema, &self.of) {
            (Some(schema), Some(of)) => format!("{} {} on {schema}.{of}", self.kind, self.name),
            _ => format!("{} {}", self.kind, self.qualified()),
        }
    }

    /// What makes it the same object in another snapshot.
    pub fn key(&self) -> (ObjectKind, &str, &str, &str) {
        (
            self.kind,
            self.schema.as_deref().unwrap_or_default(),
            self.of.as_deref().unwrap_or_default(),
            &self.name,
        )
    }
}

/// One column of a table, a view or a composite type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    #[serde(rename = "type")]
    pub type_: String,
    pub nullable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// `always` or `by default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The expression that it is computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collation: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<String>,
}

/// How large something is, and what happens to it. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// The planner's estimate; nothing where nobody has counted yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    pub bytes: u64,
    #[serde(default)]
    pub index_bytes: u64,
    /// Since the server's statistics were last reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
}

/// What happened to a table, as the server counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    pub inserted: i64,
    pub updated: i64,
    pub deleted: i64,
    pub live: i64,
    pub dead: i64,
    pub sequential_scans: i64,
    pub index_scans: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vacuumed: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analyzed: Option<String>,
}

/// One object needs another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Edge {
    /// What needs, by its place in [`Catalogue::objects`].
    pub from: usize,
    /// What is needed.
    pub to: usize,
    pub kind: EdgeKind,
}

/// How one object needs another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EdgeKind {
    /// It cannot be dropped while the other one is there.
    Normal,
    /// It goes with the other one.
    Automatic,
    /// It is how the other one is made.
    Internal,
    /// It is a partition, or of one.
    Partition,
}

impl Catalogue {
    /// The objects that a person means by `name`: `orders`, `public.orders`, or all of what
    /// [`Object::display`] says. Functions also without their arguments.
    pub fn find(&self, name: &str) -> Vec<usize> {
        let plain = |text: &str| text.split('(').next().unwrap_or_default().to_owned();
        let is = |object: &Object| {
            let qualified = object.qualified();
            object.name == name
                || qualified == name
                || object.display() == name
                || plain(&object.name) == name
                || plain(&qualified) == name
        };
        let all = self.objects.iter().enumerate();
        let found: Vec<usize> = all.filter(|(_, o)| is(o)).map(|(at, _)| at).collect();
        // A table is meant rather than an index, a constraint or a schema of its name.
        let relations: Vec<usize> =
            found.iter().copied().filter(|at| self.objects[*at].kind.is_relation()).collect();
        if relations.is_empty() { found } else { relations }
    }

    /// # Errors
    /// `Damaged` when it is no catalogue or its dependencies name nothing; `Unsupported` when its
    /// shape is newer.
    pub fn parse(bytes: &[u8]) -> crate::Result<Self> {
        let it: Self = serde_json::from_slice(bytes).map_err(|error| unreadable(&error))?;
        known_format(it.format)?;
        let count = it.objects.len();
        if it.dependencies.iter().any(|edge| edge.from >= count || edge.to >= count) {
            return Err(crate::PostgresError::new(
                crate::PostgresErrorKind::Damaged,
                format!("the catalogue of {} refers to objects that it does not have", it.database),
            ));
        }
        Ok(it)
    }
}

pub(super) fn unreadable(error: &serde_json::Error) -> crate::PostgresError {
    crate::PostgresError::new(
        crate::PostgresErrorKind::Damaged,
        format!("the catalogue in the snapshot cannot be read: {error}"),
    )
    .with_hint("`backstay verify` tells whether the snapshot is whole")
}

pub(super) fn known_format(format: u32) -> crate::Result<()> {
    if format > FORMAT {
        return Err(crate::PostgresError::new(
            crate::PostgresErrorKind::Unsupported,
            "the catalogue in the snapshot was written by a newer version of this program",
        )
        .with_hint("use that version to read it"));
    }
    Ok(())
}
