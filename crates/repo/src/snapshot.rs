//! What a snapshot object says: one source at one moment.
//!
//! The body is JSON inside the seal: snapshots are few and small, and a field can be added without
//! a new version of the format. Unknown fields are kept out of the way, not refused.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ObjectId;
use crate::crypto::Keys;
use crate::id::{hex, unhex};
use crate::signing::SIGNATURE;

/// What kind of thing a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SourceKind {
    Postgres,
    PostgresLogical,
    Sqlite,
    Files,
    Lake,
    KafkaConnect,
    SchemaRegistry,
}

impl SourceKind {
    pub const ALL: [Self; 7] = [
        Self::Postgres,
        Self::PostgresLogical,
        Self::Sqlite,
        Self::Files,
        Self::Lake,
        Self::KafkaConnect,
        Self::SchemaRegistry,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::PostgresLogical => "postgres-logical",
            Self::Sqlite => "sqlite",
            Self::Files => "files",
            Self::Lake => "lake",
            Self::KafkaConnect => "kafka-connect",
            Self::SchemaRegistry => "schema-registry",
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for SourceKind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == s)
            .ok_or_else(|| format!("{s:?} is no kind of source"))
    }
}

/// How a snapshot found what to read. All three restore alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotType {
    Full,
    Incremental,
    Differential,
}

impl SnapshotType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Incremental => "incremental",
            Self::Differential => "differential",
        }
    }
}

impl fmt::Display for SnapshotType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for SnapshotType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        [Self::Full, Self::Incremental, Self::Differential]
            .into_iter()
            .find(|kind| kind.as_str() == s)
            .ok_or_else(|| {
                format!("{s:?} is no type of backup; say full, incremental or differential")
            })
    }
}

/// Something that could not be read or written, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub path: String,
    pub what: String,
}

/// What a backup counted. Sizes are bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotStats {
    /// Files of any kind but directories.
    pub files: u64,
    pub directories: u64,
    /// Content of all files, as a restore would write it.
    pub bytes: u64,
    /// Content that was read from the source.
    pub bytes_read: u64,
    /// Files taken over from the parent without being read.
    pub files_unchanged: u64,
    /// Chunks that the repository did not have.
    pub new_chunks: u64,
    /// Their size before compression.
    pub new_bytes: u64,
    /// What they take in the store, sealed, with the packs' own overhead.
    pub stored_bytes: u64,
}

/// One source at one moment; always complete by itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    /// 32 hexadecimal digits; any unique prefix names it.
    #[serde(skip)]
    pub id: String,
    /// The machine that wrote it, 16 hexadecimal digits.
    #[serde(skip)]
    pub writer: String,
    pub source: String,
    pub kind: SourceKind,
    #[serde(rename = "type")]
    pub type_: SnapshotType,
    /// When the backup started.
    pub time: Timestamp,
    pub finished: Timestamp,
    /// When the store got it, by the store's own clock, where it keeps that.
    #[serde(skip)]
    pub stored: Option<Timestamp>,
    pub host: String,
    /// Of the program that wrote it.
    pub version: String,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The snapshot that unchanged content was found in. Nothing depends on it.
    #[serde(default)]
    pub parent: Option<String>,
    /// What the snapshots have in common that one pass over the source wrote to several repositories,
    /// and the copies of each: 32 hexadecimal digits. Absent: its own id stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// What it was copied from. Absent: it was made from the source itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    pub root: ObjectId,
    pub stats: SnapshotStats,
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// What the kind of source adds.
    #[serde(default)]
    pub detail: serde_json::Value,
}

/// Where a copy comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The id of the repository, 32 hexadecimal digits.
    pub repository: String,
    /// The id of the snapshot there.
    pub snapshot: String,
}

impl Snapshot {
    /// What all snapshots have in common that hold the same moment of the same source, in whichever
    /// repository they are.
    pub fn moment(&self) -> &str {
        self.group.as_deref().unwrap_or(&self.id)
    }

    /// What people see of the id.
    pub fn short_id(&self) -> &str {
        self.id.get(..8).unwrap_or(&self.id)
    }
}

const SIGNED: &[u8] = br#","signature":""#;
const SIGNED_END: &[u8] = br#""}"#;

/// Puts a signature into a JSON object, as its last field: it is of the object without.
pub(crate) fn with_signature(keys: &Keys, name: &str, json: Vec<u8>) -> Vec<u8> {
    let signature = keys.sign(name, &json);
    join_signature(json, &signature)
}

pub(crate) fn join_signature(mut json: Vec<u8>, signature: &[u8; SIGNATURE]) -> Vec<u8> {
    json.pop();
    json.extend_from_slice(SIGNED);
    json.extend_from_slice(hex(signature).as_bytes());
    json.extend_from_slice(SIGNED_END);
    json
}

/// The inverse of [`with_signature`]; what is not signed is given back as it is.
pub(crate) fn split_signature(json: &[u8]) -> (Vec<u8>, Option<[u8; SIGNATURE]>) {
    let split = || {
        let rest = json.strip_suffix(SIGNED_END)?;
        let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(2 * SIGNATURE)?)?;
        let mut body = rest.strip_suffix(SIGNED)?.to_vec();
        body.push(b'}');
        Some((body, unhex(std::str::from_utf8(digits).ok()?)?))
    };
    match split() {
        Some((body, signature)) => (body, Some(signature)),
        None => (json.to_vec(), None),
    }
}
