//! Which files of an archive no snapshot needs any more: what lies before all that is kept ([`keep`]).
//! Histories stay in any case: they are small and say how timelines hang together.
//!
//! [`keep`]: super::keep

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use backstay_repo::{Archive, ArchivedFile, Expired, Progress, Slice, Snapshot, SourceKind};

use super::inventory::read_history;
use super::keep::{Keep, Kept, Needs};
use super::{History, RecoveryBase, WalName};
use crate::detail::BackupDetail;
use crate::{PostgresError, PostgresErrorKind, Result};

/// Another repository that gets files of the archive from this one.
#[derive(Debug, Clone, Default)]
pub struct Follower {
    /// Its snapshots.
    pub snapshots: Vec<Snapshot>,
    /// The files that it has already.
    pub files: HashSet<String>,
}

/// Removes what no snapshot of the archive's cluster needs, the oldest first; with `dry_run` only
/// says what would go. `keep` says for how long moments between snapshots count. Snapshots of all
/// sources count, and those on hold, for as long as they are not forgotten. What a snapshot of one of `followers` needs that has not come there yet stays, too:
/// it can come from nowhere else.
///
/// # Errors
/// [`PostgresErrorKind::Archive`] when there is no snapshot of the cluster: then what the archive has
/// may be all that is left of it.
pub fn expire(
    archive: &Archive,
    dry_run: bool,
    keep: &Keep,
    followers: &[Follower],
    progress: &Arc<Progress>,
) -> Result<Expired> {
    archive.expire(
        dry_run,
        |files, snapshots| {
            let backups = backups(archive.system_id(), snapshots)?;
            let histories = histories(archive, files);
            let needs = Needs::of(&backups, files, histories.as_deref(), keep);
            let names = files.iter().map(|file| file.name.as_str());
            let mut found = needs.unneeded(names).ok_or_else(|| {
                PostgresError::new(
                    PostgresErrorKind::Archive,
                    "there is no snapshot of this cluster, so nothing of its archive is removed",
                )
                .with_hint("make a snapshot first; what lies before it can go then")
            })?;
            for follower in followers {
                let backups = self::backups(archive.system_id(), &follower.snapshots)?;
                let bases = backups.into_iter().map(|backup| backup.base).collect();
                keep_missed(&mut found, bases, &follower.files);
            }
            Ok(found)
        },
        progress,
    )
}

/// Takes out what a follower with these backups needs and does not have.
fn keep_missed(found: &mut Vec<String>, bases: Vec<RecoveryBase>, there: &HashSet<String>) {
    let needs = Needs { on: bases, own: Vec::new() };
    let Some(needless) = needs.unneeded(found.iter().map(String::as_str)) else { return };
    let needless: HashSet<String> = needless.into_iter().collect();
    found.retain(|name| there.contains(name) || needless.contains(name));
}

fn backups(system_identifier: u64, snapshots: &[Snapshot]) -> Result<Vec<Kept>> {
    let mut backups = Vec::new();
    for snapshot in snapshots.iter().filter(|s| s.kind == SourceKind::Postgres) {
        // One whose description cannot be read may need anything.
        let base = RecoveryBase::from(&BackupDetail::of(snapshot)?);
        if base.system_identifier == system_identifier {
            backups.push(Kept::new(snapshot, base));
        }
    }
    Ok(backups)
}

/// The histories of all timelines; none when one of them cannot be read.
fn histories(archive: &Archive, files: &[ArchivedFile]) -> Option<Vec<History>> {
    let mut timelines = BTreeSet::new();
    let mut read = BTreeSet::new();
    for file in files {
        let name = Slice::parse(&file.name).map_or(file.name.as_str(), |(segment, _)| segment);
        match name.parse() {
            Ok(WalName::History(timeline)) => drop(read.insert(timeline)),
            Ok(
                WalName::Segment(segment) | WalName::Partial(segment) | WalName::Backup(segment, _),
            ) => drop(timelines.insert(segment.timeline())),
            Err(_) => {}
        }
    }
    timelines.extend(&read);
    let history = |timeline: u32| match (read.contains(&timeline), timeline) {
        (true, _) => read_history(archive, timeline).ok(),
        (false, 1) => Some(History::first(1)),
        // Nobody knows where it came from.
        (false, _) => None,
    };
    timelines.into_iter().map(history).collect()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::wal::{Lsn, SegmentSize};

    const MIB: u64 = 1 << 20;

    fn base(timeline: u32, start: u64) -> RecoveryBase {
        RecoveryBase {
            system_identifier: 1,
            timeline,
            start: Lsn(start),
            stop: Lsn(start + 400),
            segment_size: SegmentSize::MIN,
            time_stop: Timestamp::UNIX_EPOCH,
            standalone: false,
        }
    }

    fn unneeded<'a>(
        names: impl Iterator<Item = &'a str>,
        bases: &[RecoveryBase],
    ) -> Option<Vec<String>> {
        Needs { on: bases.to_vec(), own: Vec::new() }.unneeded(names)
    }

    const NAMES: [&str; 9] = [
        "000000090000000000000004",
        "000000090000000000000002",
        "000000090000000000000003.00000028.backup",
        "000000090000000000000003",
        "000000090000000000000004.partial",
        "0000000A0000000000000003",
        "0000000A.history",
        "0000000B0000000000000002",
        "000000090000000000001002",
    ];

    #[test]
    fn what_lies_before_the_earliest_backup_goes_the_oldest_first() {
        let found = unneeded(NAMES.into_iter(), &[base(9, 9 * MIB), base(0x0a, 4 * MIB + 40)]);
        assert_eq!(
            found.unwrap(),
            [
                "000000090000000000000002",
                "000000090000000000000003",
                "0000000A0000000000000003",
                "000000090000000000000003.00000028.backup",
            ]
        );
    }

    #[test]
    fn nothing_goes_of_the_segment_in_which_it_began_nor_without_a_backup() {
        let found = unneeded(NAMES.into_iter(), &[base(9, 2 * MIB + MIB - 8)]);
        assert_eq!(found.unwrap(), Vec::<String>::new());
        assert_eq!(unneeded(NAMES.into_iter(), &[]), None);
    }

    #[test]
    fn a_timeline_that_is_younger_than_the_earliest_backup_stays() {
        let found = unneeded(NAMES.into_iter(), &[base(9, 3 * MIB)]).unwrap();
        assert_eq!(found, ["000000090000000000000002"]);
    }

    #[test]
    fn a_name_must_lie_before_it_in_every_size_that_segments_had() {
        let before = RecoveryBase {
            segment_size: SegmentSize::new(16 * MIB).unwrap(),
            ..base(9, 0xA_5000_0028)
        };
        let after = RecoveryBase {
            segment_size: SegmentSize::new(64 * MIB).unwrap(),
            ..base(9, 0xA_5400_0028)
        };
        // The second is A/54000000 since segments have 64 MiB, and was A/15000000 before.
        let names = ["000000090000000A0000000F", "000000090000000A00000015"];
        let found = unneeded(names.into_iter(), &[before, after]).unwrap();
        assert_eq!(found, ["000000090000000A0000000F"]);
    }

    #[test]
    fn slices_go_with_what_lies_beside_them() {
        let names = [
            "000000090000000000000002.00000000-00000100.slice",
            "000000090000000000000003.00000000-00000100.slice",
        ];
        let found = unneeded(names.into_iter(), &[base(9, 3 * MIB)]).unwrap();
        assert_eq!(found, ["000000090000000000000002.00000000-00000100.slice"]);
    }

    #[test]
    fn what_another_repository_still_has_to_get_stays() {
        let found = || unneeded(NAMES.into_iter(), &[base(0x0b, 9 * MIB)]).unwrap();
        let kept = |bases: &[RecoveryBase], there: &[&str]| {
            let mut left = found();
            keep_missed(
                &mut left,
                bases.to_vec(),
                &there.iter().map(|name| (*name).to_owned()).collect(),
            );
            found().into_iter().filter(|name| !left.contains(name)).collect::<Vec<_>>()
        };
        // It has no snapshot, and gets none that needs what no snapshot here needs.
        assert_eq!(kept(&[], &[]), Vec::<String>::new());
        let old = [base(0x0b, 3 * MIB + 40)];
        let there = ["000000090000000000000003", "0000000A0000000000000003"];
        assert_eq!(
            kept(&old, &there),
            [
                "000000090000000000000003.00000028.backup",
                "000000090000000000000004",
                "000000090000000000000004.partial",
            ]
        );
    }
}
