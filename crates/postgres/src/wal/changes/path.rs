//! Which fork a file of a data directory belongs to.
//!
//! ```text
//! data/global/1262                          shared by all databases
//! data/base/5/16384_init.1                  database 5, fork `init`, second file
//! tablespaces/16400/PG_18_202506291/5/16384
//! ```

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use super::{Fork, Relation};
use crate::wal::effect::{FORK_FREE_SPACE, FORK_INIT, FORK_MAIN, FORK_VISIBILITY};

/// `pg_default`, the tablespace that is the folder `base`.
const DEFAULT_SPACE: u32 = 1663;
/// `pg_global`, the folder `global`.
const GLOBAL_SPACE: u32 = 1664;

impl Fork {
    /// The fork, and the number of its file, of a path as snapshots have it; none when it is no file
    /// of a relation.
    pub fn of_path(path: &[u8]) -> Option<(Self, u32)> {
        let parts: Vec<&str> = std::str::from_utf8(path).ok()?.split('/').collect();
        let (tablespace, database, name) = match parts.as_slice() {
            ["data", "global", name] => (GLOBAL_SPACE, 0, *name),
            ["data", "base", database, name] => (DEFAULT_SPACE, number(database)?, *name),
            ["tablespaces", tablespace, version, database, name] if version.starts_with("PG_") => {
                (number(tablespace)?, number(database)?, *name)
            }
            _ => return None,
        };
        let (name, segment) = match name.split_once('.') {
            Some((name, segment)) => (name, number(segment).filter(|segment| *segment != 0)?),
            None => (name, 0),
        };
        let (relation, fork) = match name.split_once('_') {
            None => (name, FORK_MAIN),
            Some((name, "fsm")) => (name, FORK_FREE_SPACE),
            Some((name, "vm")) => (name, FORK_VISIBILITY),
            Some((name, "init")) => (name, FORK_INIT),
            Some(_) => return None,
        };
        let relation = Relation { tablespace, database, relation: number(relation)? };
        Some((Self { relation, fork }, segment))
    }
}

/// Digits as PostgreSQL writes them: no sign, no leading zero.
fn number(text: &str) -> Option<u32> {
    let good = text.bytes().all(|byte| byte.is_ascii_digit());
    if !good || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_relations_are_told_from_others() {
        let of = |path: &str| {
            let (fork, segment) = Fork::of_path(path.as_bytes())?;
            let Relation { tablespace, database, relation } = fork.relation;
            Some((tablespace, database, relation, fork.fork, segment))
        };
        assert_eq!(of("data/global/1262"), Some((1664, 0, 1262, 0, 0)));
        assert_eq!(of("data/base/5/16384_init.1"), Some((1663, 5, 16384, 3, 1)));
        assert_eq!(of("data/base/5/16384_vm"), Some((1663, 5, 16384, 2, 0)));
        assert_eq!(
            of("tablespaces/16400/PG_18_202506291/5/16385_fsm.12"),
            Some((16400, 5, 16385, 1, 12))
        );
        for other in [
            "data/global/pg_control",
            "data/base/5/pg_filenode.map",
            "data/base/5/PG_VERSION",
            "data/base/5/t3_16384",
            "data/base/5/16384_",
            "data/base/5/16384.0",
            "data/base/5/16384.01",
            "data/base/5/+16384",
            "data/base/5/99999999999",
            "data/base/5",
            "data/pg_xact/0000",
            "tablespaces/16400/other/5/16385",
            "base/5/16384",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
