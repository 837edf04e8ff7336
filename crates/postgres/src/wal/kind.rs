//! The names of resource managers and of their kinds of records, as `pg_waldump` has them.
//!
//! From `access/rmgrlist.h` and the functions `*_identify` of `access/rmgrdesc`. What changed from
//! version to version: the records of databases with 15, those of pruning with 14 and 17.

use std::borrow::Cow;

/// In the order of their numbers.
const MANAGERS: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// The name of a resource manager: those of extensions have numbers from 128 on.
pub fn manager_name(manager: u8) -> Cow<'static, str> {
    match MANAGERS.get(usize::from(manager)) {
        Some(name) => (*name).into(),
        None if manager >= 128 => format!("custom{manager:03}").into(),
        None => format!("unknown{manager:03}").into(),
    }
}

/// The number of a resource manager, whatever the case of its name.
pub fn manager_number(name: &str) -> Option<u8> {
    let known = MANAGERS.iter().position(|known| known.eq_ignore_ascii_case(name));
    let custom = || {
        let number = name.get(..6).filter(|word| word.eq_ignore_ascii_case("custom"));
        number.and_then(|_| name.get(6..)?.parse().ok()).filter(|number| *number >= 128)
    };
    known.and_then(|number| u8::try_from(number).ok()).or_else(custom)
}

/// Every name that [`manager_number`] knows, but for those of extensions.
pub fn manager_names() -> &'static [&'static str] {
    &MANAGERS
}

/// The name of a kind of records.
pub fn kind_name(manager: u8, info: u8, version: u32) -> Cow<'static, str> {
    let kind = info & 0xf0;
    match known(manager, kind, version) {
        Some(name) => name.into(),
        None => format!("UNKNOWN ({kind:x})").into(),
    }
}

fn known(manager: u8, kind: u8, version: u32) -> Option<&'static str> {
    let of = |names: &[&'static str]| names.get(usize::from(kind >> 4)).copied();
    let name = match manager {
        0 => of(&[
            "CHECKPOINT_SHUTDOWN",
            "CHECKPOINT_ONLINE",
            "NOOP",
            "NEXTOID",
            "SWITCH",
            "BACKUP_END",
            "PARAMETER_CHANGE",
            "RESTORE_POINT",
            "FPW_CHANGE",
            "END_OF_RECOVERY",
            "FPI_FOR_HINT",
            "FPI",
            "",
            "OVERWRITE_CONTRECORD",
            "CHECKPOINT_REDO",
        ]),
        // The upper bit says that lists follow.
        1 => [
            "COMMIT",
            "PREPARE",
            "ABORT",
            "COMMIT_PREPARED",
            "ABORT_PREPARED",
            "ASSIGNMENT",
            "INVALIDATION",
        ]
        .get(usize::from((kind & 0x70) >> 4))
        .copied(),
        2 => of(&["", "CREATE", "TRUNCATE"]),
        3 => of(&["ZEROPAGE", "TRUNCATE"]),
        4 if version < 15 => of(&["CREATE", "DROP"]),
        4 => of(&["CREATE_FILE_COPY", "CREATE_WAL_LOG", "DROP"]),
        5 => of(&["CREATE", "DROP"]),
        6 => of(&["ZERO_OFF_PAGE", "ZERO_MEM_PAGE", "CREATE_ID", "TRUNCATE_ID"]),
        7 => of(&["UPDATE"]),
        8 => of(&["LOCK", "RUNNING_XACTS", "INVALIDATIONS"]),
        9 => heap2(kind, version),
        10 => of(&[
            "INSERT",
            "DELETE",
            "UPDATE",
            "TRUNCATE",
            "HOT_UPDATE",
            "HEAP_CONFIRM",
            "LOCK",
            "INPLACE",
            "INSERT+INIT",
            "",
            "UPDATE+INIT",
            "",
            "HOT_UPDATE+INIT",
        ]),
        11 => of(&[
            "INSERT_LEAF",
            "INSERT_UPPER",
            "INSERT_META",
            "SPLIT_L",
            "SPLIT_R",
            "INSERT_POST",
            "DEDUP",
            "DELETE",
            "UNLINK_PAGE",
            "UNLINK_PAGE_META",
            "NEWROOT",
            "MARK_PAGE_HALFDEAD",
            "VACUUM",
            "REUSE_PAGE",
            "META_CLEANUP",
        ]),
        12 => of(&[
            "INIT_META_PAGE",
            "INIT_BITMAP_PAGE",
            "INSERT",
            "ADD_OVFL_PAGE",
            "SPLIT_ALLOCATE_PAGE",
            "SPLIT_PAGE",
            "SPLIT_COMPLETE",
            "MOVE_PAGE_CONTENTS",
            "SQUEEZE_PAGE",
            "DELETE",
            "SPLIT_CLEANUP",
            "UPDATE_META_PAGE",
            "VACUUM_ONE_PAGE",
        ]),
        13 => of(&[
            "",
            "CREATE_PTREE",
            "INSERT",
            "SPLIT",
            "VACUUM_PAGE",
            "DELETE_PAGE",
            "UPDATE_META_PAGE",
            "INSERT_LISTPAGE",
            "DELETE_LISTPAGE",
            "VACUUM_DATA_LEAF_PAGE",
        ]),
        14 => of(&[
            "PAGE_UPDATE",
            "DELETE",
            "PAGE_REUSE",
            "PAGE_SPLIT",
            "",
            "",
            "PAGE_DELETE",
            "ASSIGN_LSN",
        ]),
        15 => of(&["LOG"]),
        16 => of(&[
            "",
            "ADD_LEAF",
            "MOVE_LEAFS",
            "ADD_NODE",
            "SPLIT_TUPLE",
            "PICKSPLIT",
            "VACUUM_LEAF",
            "VACUUM_ROOT",
            "VACUUM_REDIRECT",
        ]),
        17 => of(&[
            "CREATE_INDEX",
            "INSERT",
            "UPDATE",
            "SAMEPAGE_UPDATE",
            "REVMAP_EXTEND",
            "DESUMMARIZE",
            "",
            "",
            "",
            "INSERT+INIT",
            "UPDATE+INIT",
        ]),
        18 => of(&["ZEROPAGE", "TRUNCATE", "SETTS"]),
        19 => of(&["SET", "DROP"]),
        20 => Some("Generic"),
        21 => of(&["MESSAGE"]),
        _ => None,
    };
    name.filter(|name| !name.is_empty())
}

fn heap2(kind: u8, version: u32) -> Option<&'static str> {
    Some(match (kind, version) {
        (0x00, _) => "REWRITE",
        (0x10, ..14) => "CLEAN",
        (0x20, ..14) => "FREEZE_PAGE",
        (0x30, ..14) => "CLEANUP_INFO",
        (0x10, 14..17) => "PRUNE",
        (0x20, 14..17) => "VACUUM",
        (0x30, 14..17) => "FREEZE_PAGE",
        (0x10, 17..) => "PRUNE_ON_ACCESS",
        (0x20, 17..) => "PRUNE_VACUUM_SCAN",
        (0x30, 17..) => "PRUNE_VACUUM_CLEANUP",
        (0x40, _) => "VISIBLE",
        (0x50, _) => "MULTI_INSERT",
        (0xd0, _) => "MULTI_INSERT+INIT",
        (0x60, _) => "LOCK_UPDATED",
        (0x70, _) => "NEW_CID",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_found_by_its_name_and_the_other_way() {
        for number in 0..22u8 {
            assert_eq!(manager_number(&manager_name(number).to_lowercase()), Some(number));
        }
        assert_eq!(manager_number("custom130"), Some(130));
        for bad in ["", "custom", "custom5", "custom999", "héap", "unknown030"] {
            assert_eq!(manager_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_follow_the_version() {
        assert_eq!(kind_name(4, 0x10, 14), "DROP");
        assert_eq!(kind_name(4, 0x10, 15), "CREATE_WAL_LOG");
        assert_eq!(kind_name(9, 0x10, 13), "CLEAN");
        assert_eq!(kind_name(9, 0x10, 17), "PRUNE_ON_ACCESS");
        assert_eq!(kind_name(1, 0x80, 17), "COMMIT");
        assert_eq!(kind_name(0, 0xc0, 17), "UNKNOWN (c0)");
        assert_eq!(kind_name(200, 0x10, 17), "UNKNOWN (10)");
    }
}
