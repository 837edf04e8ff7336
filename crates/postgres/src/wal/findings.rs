//! What is wrong with an archive, or odd about it, beyond segments that are missing: histories,
//! names, timelines that went on after they were left, and segments that cannot be read.

use std::collections::BTreeSet;
use std::fmt;

use backstay_repo::RepoErrorKind;

use super::files::Files;
use super::inventory::Inventory;
use super::scan::{Range, Scan};
use super::window::RecoveryWindow;
use super::{History, Lsn, SegmentName, check_segment};
use crate::{PostgresError, PostgresErrorKind, Result};

/// One thing about an archive that a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A timeline after the first of which nobody knows where it came from.
    NoHistory { timeline: u32 },
    /// A history that cannot be used, and why.
    BadHistory { timeline: u32, what: String },
    /// A history that says that its timeline came from nowhere.
    NoAncestors { timeline: u32 },
    /// Segments of a timeline behind the place where another left it.
    WentOn { timeline: u32, left_at: Lsn, by: u32, first: SegmentName, count: u64, both: bool },
    /// Segments of a timeline before the place where it began.
    TooEarly { timeline: u32, began: Lsn, first: SegmentName, count: u64 },
    /// Segments that no cluster with segments of this size can have.
    OtherSize { first: SegmentName, count: u64 },
    /// The last segment of a timeline that was left is there in part, and no whole one is.
    OnlyPartial { name: SegmentName },
    /// A segment that cannot be used.
    Unusable { name: SegmentName, what: String },
    /// WAL through which recovery does not get.
    Impassable { timeline: u32, what: String },
}

impl Finding {
    /// Whether something has to be done about it, or it only has to be known.
    pub fn is_alarm(&self) -> bool {
        match self {
            Self::WentOn { both, .. } => *both,
            Self::NoAncestors { .. } | Self::TooEarly { .. } | Self::OnlyPartial { .. } => false,
            Self::NoHistory { .. }
            | Self::BadHistory { .. }
            | Self::OtherSize { .. }
            | Self::Unusable { .. }
            | Self::Impassable { .. } => true,
        }
    }

    /// A word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoHistory { .. } => "no-history",
            Self::BadHistory { .. } => "bad-history",
            Self::NoAncestors { .. } => "no-ancestors",
            Self::WentOn { both: true, .. } => "two-servers",
            Self::WentOn { .. } => "went-on",
            Self::TooEarly { .. } => "too-early",
            Self::OtherSize { .. } => "other-size",
            Self::OnlyPartial { .. } => "only-partial",
            Self::Unusable { .. } => "unusable",
            Self::Impassable { .. } => "impassable",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoHistory { .. } | Self::BadHistory { .. } | Self::NoAncestors { .. } => {
                "push the history again if the server still has it in pg_wal; without it recovery \
                 cannot come here from an older timeline"
            }
            Self::WentOn { both: true, .. } => {
                "set archive_mode = off in the server that is a copy, or was replaced: recovery \
                 follows the newest timeline"
            }
            Self::OtherSize { .. } => "check which server archives here",
            Self::Unusable { .. } | Self::Impassable { .. } => {
                "`backstay verify --repair-from` takes it from another repository; else a new \
                 backup begins a window behind it"
            }
            Self::WentOn { .. } | Self::TooEarly { .. } | Self::OnlyPartial { .. } => return None,
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let several = |count: u64| if count == 1 { "segment" } else { "segments" };
        match self {
            Self::NoHistory { timeline } => {
                write!(f, "the history of timeline {timeline} is missing")
            }
            Self::BadHistory { what, .. } => f.write_str(what),
            Self::NoAncestors { timeline } => {
                write!(f, "the history of timeline {timeline} names no ancestor")
            }
            Self::WentOn { timeline, left_at, by, first, count, both } => {
                write!(
                    f,
                    "timeline {timeline} has {count} {} from {first} on, behind {left_at}, where \
                     timeline {by} left it",
                    several(*count)
                )?;
                if *both {
                    write!(f, "; some came after timeline {by} began: two servers archive here")?;
                }
                Ok(())
            }
            Self::TooEarly { timeline, began, first, count } => write!(
                f,
                "timeline {timeline} has {count} {} from {first} on, before {began}, where it began",
                several(*count)
            ),
            Self::OtherSize { first, count } => write!(
                f,
                "{count} {}, the first {first}, cannot be of a cluster with segments of this size",
                several(*count)
            ),
            Self::OnlyPartial { name } => {
                write!(f, "the segment {name} is there in part only; recovery does not read that")
            }
            Self::Unusable { what, .. } => f.write_str(what),
            Self::Impassable { timeline, what } => {
                write!(f, "recovery along timeline {timeline} stops: {what}")
            }
        }
    }
}

/// What a listing and the histories show. `unreadable` are timelines whose history is in no use.
pub(super) fn of_listing(
    inventory: &Inventory,
    histories: &[History],
    unreadable: &[(u32, String)],
) -> Vec<Finding> {
    let mut found: Vec<Finding> = unreadable
        .iter()
        .map(|(timeline, what)| Finding::BadHistory { timeline: *timeline, what: what.clone() })
        .collect();
    for timeline in inventory.timelines() {
        if timeline != 1 && !inventory.has_history(timeline) {
            found.push(Finding::NoHistory { timeline });
        }
    }
    for history in histories.iter().filter(|history| inventory.has_history(history.timeline())) {
        about_history(inventory, history, &mut found);
    }
    if let Some((first, count)) = inventory.misfits() {
        found.push(Finding::OtherSize { first, count });
    }
    let whole =
        |name: SegmentName| {
            let number = name.number(inventory.segment_size());
            inventory.timelines().into_iter().filter(|timeline| *timeline >= name.timeline()).any(
                |timeline| inventory.segments(timeline).any(|(there, _)| Some(there) == number),
            )
        };
    found.extend(
        inventory.partials().filter(|name| !whole(*name)).map(|name| Finding::OnlyPartial { name }),
    );
    found
}

fn about_history(inventory: &Inventory, history: &History, found: &mut Vec<Finding>) {
    let (timeline, size) = (history.timeline(), inventory.segment_size());
    let Some(parent) = history.ancestors().last() else {
        if timeline != 1 {
            found.push(Finding::NoAncestors { timeline });
        }
        return;
    };
    let began = history.begin();
    let early: Vec<u64> =
        inventory.segments(timeline).map(|(n, _)| n).filter(|n| *n < began.segment(size)).collect();
    if let Some(first) = early.first().and_then(|n| SegmentName::new(timeline, *n, size)) {
        found.push(Finding::TooEarly { timeline, began, first, count: early.len() as u64 });
    }
    // The segment in which it was left may be whole: a server fills it up when it ends.
    let left = parent.end.last_segment(size);
    let later: Vec<_> = inventory.segments(parent.timeline).filter(|(n, _)| *n > left).collect();
    let Some(first) = later.first().and_then(|(n, _)| SegmentName::new(parent.timeline, *n, size))
    else {
        return;
    };
    let born = inventory.segments(timeline).filter_map(|(_, time)| time).min();
    let newest = later.iter().filter_map(|(_, time)| *time).max();
    found.push(Finding::WentOn {
        timeline: parent.timeline,
        left_at: parent.end,
        by: timeline,
        first,
        count: later.len() as u64,
        both: born.zip(newest).is_some_and(|(born, newest)| newest > born),
    });
}

/// Reads the whole archive: every segment must be what its name says, and of this cluster; through
/// every window the records must follow one another. `progress` is told how many bytes were read.
///
/// # Errors
/// Only when the archive cannot be read; what is wrong with what is in it is found.
pub fn read_through(
    files: &dyn Files,
    inventory: &Inventory,
    windows: &[RecoveryWindow],
    mut progress: impl FnMut(u64) -> Result<()>,
) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    let size = inventory.segment_size();
    for timeline in inventory.timelines() {
        let numbers: Vec<u64> = inventory.segments(timeline).map(|(number, _)| number).collect();
        for name in numbers.into_iter().filter_map(|n| SegmentName::new(timeline, n, size)) {
            let checked = match files.read(&name.to_string()) {
                Ok(Some(content)) => check_segment(name, &content, files.system_identifier()),
                // Removed since it was listed.
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            if let Err(error) = checked {
                let what = about_the_content(error)?.to_string();
                found.push(Finding::Unusable { name, what });
            }
            progress(size.bytes())?;
        }
    }
    // Windows overlap where only their beginnings differ: each way is read once, from the earliest.
    let mut read: BTreeSet<(u32, SegmentName)> = BTreeSet::new();
    let mut windows: Vec<_> = windows.iter().collect();
    windows.sort_by_key(|window| window.start);
    for window in windows {
        if !read.insert((window.timeline, window.last)) {
            continue;
        }
        // What has only begun is not among the files that a reader of all of them counts on.
        let begun = window.last.start(size).filter(|_| window.begun);
        let range = Range {
            from: Some(window.start),
            to: Some(begun.unwrap_or(window.to)),
            timeline: Some(window.timeline),
        };
        let mut before = window.start;
        let scanned = Scan::open(files, range).and_then(|scan| {
            scan.run(|record| {
                if record.lsn.since(before) >= 1 << 20 {
                    progress(record.lsn.since(before))?;
                    before = record.lsn;
                }
                Ok(std::ops::ControlFlow::Continue(()))
            })
        });
        if let Err(error) = scanned {
            let what = about_the_content(error)?.to_string();
            found.push(Finding::Impassable { timeline: window.timeline, what });
        }
    }
    Ok(found)
}

/// An error about what was read, or the one that kept it from being read.
pub(super) fn about_the_content(error: PostgresError) -> Result<PostgresError> {
    match error.kind() {
        PostgresErrorKind::Damaged | PostgresErrorKind::Mismatch | PostgresErrorKind::Archive => {
            Ok(error)
        }
        PostgresErrorKind::Repo if error.repo_kind() == Some(RepoErrorKind::Damaged) => Ok(error),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use backstay_repo::{InitOptions, Repository, Secret};
    use backstay_store::{Environment, Memory, Store};
    use jiff::Timestamp;

    use super::*;
    use crate::wal::page::blank_segment;
    use crate::wal::window::window;
    use crate::wal::{RecoveryBase, SegmentSize};

    const MIB: u64 = 1 << 20;

    /// The findings in a listing of these names and seconds of arrival.
    fn found(size: SegmentSize, files: &[(&str, u64)], histories: &[(u32, &str)]) -> Vec<Finding> {
        let time = |seconds: u64| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let inventory = Inventory::of(size, files.iter().map(|(name, at)| (*name, time(*at))));
        let histories: Vec<History> = histories
            .iter()
            .map(|(timeline, text)| History::parse(*timeline, text.as_bytes()).unwrap())
            .collect();
        of_listing(&inventory, &histories, &[])
    }

    fn kinds(found: &[Finding]) -> Vec<(&'static str, bool)> {
        found.iter().map(|finding| (finding.kind(), finding.is_alarm())).collect()
    }

    #[test]
    fn a_failover_leaves_nothing_to_be_said() {
        let files = [
            ("000000090000000000000002", 1),
            ("000000090000000000000003", 2),
            ("000000090000000000000003.partial", 3),
            ("0000000A.history", 4),
            ("0000000A0000000000000003", 5),
            ("00000009.history", 1),
        ];
        let histories = [(9, "8\t0/100000\tx"), (10, "8\t0/100000\tx\n9\t0/380000\tx")];
        assert_eq!(found(SegmentSize::MIN, &files, &histories), []);
    }

    #[test]
    fn a_timeline_that_goes_on_is_an_alarm_when_both_are_written() {
        let histories = [(0x1f, "30\t0/380000\tx")];
        let files = |late| {
            [
                ("0000001E.history", 1),
                ("0000001E0000000000000003", 2),
                ("0000001E0000000000000004", 3),
                ("0000001E0000000000000005", late),
                ("0000001F.history", 6),
                ("0000001F0000000000000003", 7),
            ]
        };
        let before = found(SegmentSize::MIN, &files(4), &histories);
        assert_eq!(kinds(&before), [("went-on", false)]);
        assert!(before[0].to_string().contains("timeline 30 has 2 segments from 0000001E"));
        let both = found(SegmentSize::MIN, &files(9), &histories);
        assert_eq!(kinds(&both), [("two-servers", true)]);
    }

    #[test]
    fn histories_that_say_nothing_are_named() {
        let files = [
            ("000000020000000000000004", 1),
            ("00000003.history", 2),
            ("000000030000000000000005", 2),
            ("00000004.history", 2),
            ("000000040000000000000005", 2),
        ];
        let found = found(SegmentSize::MIN, &files, &[(3, ""), (4, "3\t0/600000\tx")]);
        assert_eq!(
            kinds(&found),
            [("no-history", true), ("no-ancestors", false), ("too-early", false)]
        );
    }

    #[test]
    fn a_part_of_a_segment_is_named_where_it_is_all_there_is() {
        let files = [("000000010000000000000003", 1), ("000000010000000000000004.partial", 2)];
        let found = found(SegmentSize::MIN, &files, &[]);
        assert_eq!(kinds(&found), [("only-partial", false)]);
    }

    #[test]
    fn names_tell_segments_of_another_size() {
        let files = [("00000001000000000000003F", 1), ("000000010000000000000040", 2)];
        let large = SegmentSize::new(64 << 20).unwrap();
        let here = found(large, &files, &[]);
        assert_eq!(kinds(&here), [("other-size", true)]);
        assert!(here[0].to_string().contains("1 segment, the first 000000010000000000000040"));
        assert_eq!(found(SegmentSize::DEFAULT, &files, &[]), []);
    }

    #[test]
    fn reading_finds_what_a_listing_does_not() {
        let env = Environment::seeded(1);
        let secret = Secret::key_file([1; 32]).unwrap();
        let store = Store::new(Memory::new());
        let repository = Repository::init(store, env, &secret, InitOptions::default()).unwrap();
        let archive = repository.archive(42);
        let name = |number| SegmentName::new(0x0a, number, SegmentSize::MIN).unwrap();
        let push = |number, content: &[u8]| {
            archive.push(&name(number).to_string(), content).unwrap();
        };
        push(2, &blank_segment(name(2), 42, SegmentSize::MIN));
        // What a push would have refused, put there by somebody who does not ask.
        push(3, &blank_segment(name(3), 43, SegmentSize::MIN));
        push(4, &blank_segment(name(7), 42, SegmentSize::MIN));
        push(5, &blank_segment(name(5), 42, SegmentSize::MIN)[..4096]);
        archive.push("0000000A.history", b"nonsense").unwrap();
        let base = RecoveryBase {
            system_identifier: 42,
            timeline: 0x0a,
            start: Lsn(2 * MIB + 40),
            stop: Lsn(2 * MIB + 400),
            segment_size: SegmentSize::MIN,
            time_stop: Timestamp::UNIX_EPOCH,
            standalone: false,
        };
        let health = window(&archive, SegmentSize::MIN, &[("one".to_owned(), base)]).unwrap();
        assert_eq!(kinds(&health.findings), [("bad-history", true)]);
        assert_eq!(health.windows.len(), 1);
        let inventory = Inventory::read(&archive, SegmentSize::MIN).unwrap();
        let mut bytes = 0;
        let read = read_through(&archive, &inventory, &health.windows, |more| {
            bytes += more;
            Ok(())
        });
        let read = read.unwrap();
        assert_eq!(
            kinds(&read),
            [("unusable", true), ("unusable", true), ("unusable", true), ("impassable", true)]
        );
        assert!(read[0].to_string().contains("another cluster"), "{}", read[0]);
        assert!(read[1].to_string().contains("belongs at"), "{}", read[1]);
        assert!(read[2].to_string().contains("4096 bytes"), "{}", read[2]);
        assert_eq!(bytes, 4 * MIB);
    }
}
