//! What a PostgreSQL snapshot says beyond what every snapshot says.

use backstay_repo::{Snapshot, SourceKind};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::configuration::ConfigurationFile;
use crate::inspect::{Database, Tablespace};
use crate::wal::{Lsn, SegmentSize};
use crate::{PostgresError, PostgresErrorKind, Result};

/// Stored as the `detail` of a snapshot. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupDetail {
    /// A string in JSON: many readers of JSON round numbers of this size.
    #[serde(with = "text")]
    pub system_identifier: u64,
    /// The major version.
    pub version: u32,
    pub catalog_version: u32,
    pub timeline: u32,
    /// Recovery of the copy starts here.
    pub start_lsn: Lsn,
    /// The copy is consistent from here on: the earliest recovery point of this snapshot.
    pub stop_lsn: Lsn,
    /// Names of the first and the last segment of WAL that the copy needs.
    pub start_segment: String,
    pub stop_segment: String,
    pub segment_size: SegmentSize,
    pub block_size: u32,
    pub checksums: bool,
    pub tablespaces: Vec<Tablespace>,
    /// Whether the segments that the copy needs are in the snapshot itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standalone: bool,
    /// As the server knew them when the backup ended. Absent in older snapshots.
    #[serde(default)]
    pub databases: Vec<Database>,
    /// Files of the configuration outside the data directory, which are below `config/`.
    #[serde(default)]
    pub configuration: Vec<ConfigurationFile>,
    /// By the server's clock.
    pub time_start: Timestamp,
    pub time_stop: Timestamp,
}

impl BackupDetail {
    /// What PostgreSQL calls the folder of this version in a tablespace.
    pub(crate) fn version_folder(&self) -> String {
        format!("PG_{}_{}", self.version, self.catalog_version)
    }

    /// What `snapshot` says of the cluster it is of.
    pub fn of(snapshot: &Snapshot) -> Result<Self> {
        if snapshot.kind != SourceKind::Postgres {
            return Err(PostgresError::usage(format!(
                "snapshot {} is of the kind {}, not of a PostgreSQL cluster",
                snapshot.short_id(),
                snapshot.kind
            )));
        }
        serde_json::from_value(snapshot.detail.clone()).map_err(|error| {
            PostgresError::new(
                PostgresErrorKind::Damaged,
                format!(
                    "what snapshot {} says of its cluster cannot be read: {error}",
                    snapshot.short_id()
                ),
            )
            .with_hint("a newer version of the program may have written it")
        })
    }
}

/// Values in the form in which people read them.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|_| serde::de::Error::custom(format!("{text:?} cannot be read")))
    }
}
