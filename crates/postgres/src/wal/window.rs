//! The health of an archive: what is there without a break, what is missing, and from when to when
//! a source can be recovered.

use std::time::{Duration, SystemTime};

use backstay_repo::Archive;
use jiff::Timestamp;

use super::findings::{self, Finding, about_the_content};
use super::inventory::{Inventory, Segments, read_history};
use super::reader::{Identity, Reader};
use super::target::RecoveryBase;
use super::{History, Lsn, SegmentName, SegmentSize};
use crate::Result;

/// Segments that follow one another on a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRange {
    pub first: SegmentName,
    pub last: SegmentName,
    pub count: u64,
}

/// The segments of one timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHealth {
    pub timeline: u32,
    /// Unbroken ranges, in order. Between two of them segments are missing.
    pub ranges: Vec<SegmentRange>,
    /// What is missing between the ranges: `first` is the first missing segment.
    pub gaps: Vec<SegmentRange>,
    /// Whether the archive says how this timeline came to be. Timeline 1 needs no history.
    pub history: bool,
}

/// An unbroken range of recovery points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryWindow {
    /// The backups with which every point of this window from their own end on can be reached, the
    /// oldest first.
    pub backups: Vec<String>,
    /// Recovery of the oldest of these backups reads WAL from here on.
    pub start: Lsn,
    /// The earliest recovery point: where the oldest of these backups was consistent.
    pub from: Lsn,
    pub from_time: Timestamp,
    /// Recovery goes along this timeline.
    pub timeline: u32,
    /// The last segment that can be reached.
    pub last: SegmentName,
    /// Whether only its beginning is there, as a receiver ships it.
    pub begun: bool,
    /// The position behind it: every recovery point lies before this.
    pub to: Lsn,
    /// When that segment, or what is there of it, came into the archive, by the store's clock.
    pub archived: Option<SystemTime>,
    /// The segment whose absence ends the window although later ones are there.
    pub broken_by: Option<SegmentName>,
}

/// A backup that cannot be recovered from with this archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    pub backup: String,
    /// The first segment it needs that is not there.
    pub missing: SegmentName,
}

/// The last transaction in the newest segment that can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewestPoint {
    pub segment: SegmentName,
    /// When the segment came into the archive, by the store's clock.
    pub archived: Option<SystemTime>,
    /// When its last transaction ended, by the server's clock; none when none ended in it.
    pub transaction: Option<Timestamp>,
}

/// What an archive can do for a source.
#[derive(Debug, Clone)]
pub struct ArchiveHealth {
    pub segment_size: SegmentSize,
    pub timelines: Vec<TimelineHealth>,
    /// The oldest first.
    pub windows: Vec<RecoveryWindow>,
    pub unusable: Vec<Unusable>,
    pub newest: Option<NewestPoint>,
    /// What is wrong or odd beyond that.
    pub findings: Vec<Finding>,
}

impl ArchiveHealth {
    /// How much would be lost if the source were lost at `now`: the age of the newest recovery
    /// point. An idle server makes it grow without anything to lose.
    pub fn rpo(&self, now: SystemTime) -> Option<Duration> {
        let newest = self.newest.as_ref()?;
        let time =
            newest.transaction.map(SystemTime::from).into_iter().chain(newest.archived).max()?;
        Some(now.duration_since(time).unwrap_or_default())
    }

    /// Whether segments are missing between others of any timeline.
    pub fn has_gaps(&self) -> bool {
        self.timelines.iter().any(|timeline| !timeline.gaps.is_empty())
    }
}

/// Says what can be recovered with `archive` and these backups, each by the name the caller has for
/// it. Reads the listing and the histories, and the newest segment for the time of its last
/// transaction.
pub fn window(
    archive: &Archive,
    segment_size: SegmentSize,
    backups: &[(String, RecoveryBase)],
) -> Result<ArchiveHealth> {
    let inventory = Inventory::read_with_begun(archive, segment_size)?;
    let (mut histories, mut unreadable) = (Vec::new(), Vec::new());
    for timeline in inventory.timelines() {
        let read = match inventory.has_history(timeline) {
            true => read_history(archive, timeline),
            false => Ok(History::first(timeline)),
        };
        match read {
            Ok(history) => histories.push(history),
            Err(error) => unreadable.push((timeline, about_the_content(error)?.to_string())),
        }
    }
    let mut health = health(&inventory, &histories, backups);
    health.findings = findings::of_listing(&inventory, &histories, &unreadable);
    let newest = health
        .windows
        .iter()
        .max_by_key(|window| (window.timeline, window.to))
        .map(|window| (window.timeline, window.last));
    if let Some((timeline, segment)) = newest
        && let Some(history) = histories.iter().find(|h| h.timeline() == timeline)
    {
        let transaction = match last_transaction(archive, &inventory, history, segment) {
            Ok(transaction) => transaction,
            Err(error) => {
                let what = about_the_content(error)?.to_string();
                health.findings.push(Finding::Unusable { name: segment, what });
                None
            }
        };
        health.newest =
            Some(NewestPoint { segment, archived: inventory.modified(segment), transaction });
    }
    Ok(health)
}

/// The same from a listing alone: nothing is known of the newest transaction.
pub fn health(
    inventory: &Inventory,
    histories: &[History],
    backups: &[(String, RecoveryBase)],
) -> ArchiveHealth {
    let size = inventory.segment_size();
    let timelines = inventory
        .timelines()
        .into_iter()
        .map(|timeline| timeline_health(inventory, timeline))
        .collect();
    let mut windows: Vec<RecoveryWindow> = Vec::new();
    let mut unusable = Vec::new();
    let mut ordered: Vec<&(String, RecoveryBase)> = backups.iter().collect();
    ordered.sort_by_key(|(_, base)| (base.time_stop, base.stop));
    for (id, base) in ordered {
        let history = history_for(inventory, histories, base);
        let first = base.start.segment(size);
        let needed = base.stop.last_segment(size);
        let reach = inventory.unbroken_from(&history, first);
        let enough = |last: &u64| *last >= needed && inventory.end_of(&history, *last) >= base.stop;
        let whole = reach.filter(enough);
        // The last segment that a backup carries ends with it: what comes behind is in the archive's.
        let from_end = || inventory.unbroken_from(&history, needed).filter(|_| base.standalone);
        if whole.is_none() && base.standalone && from_end().is_none() {
            windows.extend(carried(id, base));
            continue;
        }
        let Some(last) = whole.or_else(from_end) else {
            let timeline = history.timelines_of(first, size).first().copied();
            let missing = match reach {
                Some(last) => inventory.lacking(&history, last),
                None => SegmentName::new(timeline.unwrap_or(base.timeline), first, size),
            };
            if let Some(missing) = missing {
                unusable.push(Unusable { backup: id.clone(), missing });
            }
            continue;
        };
        let Some(name) = inventory.locate(&history, last) else { continue };
        let same = windows.iter_mut().find(|w| w.last == name && w.timeline == history.timeline());
        if let Some(window) = same {
            window.backups.push(id.clone());
            window.start = window.start.min(base.start);
            continue;
        }
        windows.push(RecoveryWindow {
            backups: vec![id.clone()],
            start: base.start,
            from: base.stop,
            from_time: base.time_stop,
            timeline: history.timeline(),
            last: name,
            begun: inventory.begun(name).is_some(),
            to: inventory.end_of(&history, last).max(base.stop),
            archived: inventory.modified(name),
            broken_by: inventory.broken_by(&history, last),
        });
    }
    let findings = findings::of_listing(inventory, histories, &[]);
    ArchiveHealth { segment_size: size, timelines, windows, unusable, newest: None, findings }
}

/// The one point that a backup reaches which carries its WAL, and of which the archive has none.
fn carried(id: &str, base: &RecoveryBase) -> Option<RecoveryWindow> {
    let size = base.segment_size;
    Some(RecoveryWindow {
        backups: vec![id.to_owned()],
        start: base.start,
        from: base.stop,
        from_time: base.time_stop,
        timeline: base.timeline,
        last: SegmentName::new(base.timeline, base.stop.last_segment(size), size)?,
        begun: false,
        to: base.stop,
        archived: None,
        broken_by: None,
    })
}

/// The history that recovery of a backup takes when nobody names a timeline: the newest, as long as
/// the backup is an ancestor of it.
fn history_for(inventory: &Inventory, histories: &[History], base: &RecoveryBase) -> History {
    let of = |timeline: u32| {
        histories
            .iter()
            .find(|history| history.timeline() == timeline)
            .cloned()
            .unwrap_or_else(|| History::first(timeline))
    };
    let newest = of(inventory.newest_timeline(base.timeline));
    if newest.contains(base.timeline, base.stop) { newest } else { of(base.timeline) }
}

fn timeline_health(inventory: &Inventory, timeline: u32) -> TimelineHealth {
    let size = inventory.segment_size();
    let mut found = TimelineHealth {
        timeline,
        ranges: Vec::new(),
        gaps: Vec::new(),
        history: inventory.has_history(timeline),
    };
    let range = |first: u64, last: u64| {
        Some(SegmentRange {
            first: SegmentName::new(timeline, first, size)?,
            last: SegmentName::new(timeline, last, size)?,
            count: last - first + 1,
        })
    };
    let mut open: Option<(u64, u64)> = None;
    for (number, _) in inventory.segments(timeline) {
        open = match open {
            Some((first, last)) if last + 1 == number => Some((first, number)),
            Some((first, last)) => {
                found.ranges.extend(range(first, last));
                found.gaps.extend(range(last + 1, number - 1));
                Some((number, number))
            }
            None => Some((number, number)),
        };
    }
    found.ranges.extend(open.and_then(|(first, last)| range(first, last)));
    found
}

/// When the last transaction of `segment` ended.
fn last_transaction(
    archive: &Archive,
    inventory: &Inventory,
    history: &History,
    segment: SegmentName,
) -> Result<Option<Timestamp>> {
    let size = inventory.segment_size();
    let Some((number, start)) = segment.number(size).zip(segment.start(size)) else {
        return Ok(None);
    };
    let mut segments = Segments::new(archive, inventory, history, number, 1);
    let identity = Identity { system_identifier: Some(archive.system_id()), segment_size: size };
    let mut reader = Reader::new(identity, start, |number| segments.get(number));
    let mut newest = None;
    while let Some(record) = reader.next_record()? {
        newest = newest.max(record.transaction_end().map(|end| end.time));
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn inventory(names: &[&str]) -> Inventory {
        Inventory::of(SegmentSize::MIN, names.iter().map(|name| (*name, None)))
    }

    fn base(timeline: u32, start: u64, stop: u64) -> RecoveryBase {
        RecoveryBase {
            system_identifier: 1,
            timeline,
            start: Lsn(start),
            stop: Lsn(stop),
            segment_size: SegmentSize::MIN,
            time_stop: Timestamp::from_second(stop as i64).unwrap(),
            standalone: false,
        }
    }

    fn backups(all: &[(&str, RecoveryBase)]) -> Vec<(String, RecoveryBase)> {
        all.iter().map(|(id, base)| ((*id).to_owned(), base.clone())).collect()
    }

    #[test]
    fn a_gap_is_named_by_its_first_missing_segment_and_ends_the_window() {
        let inventory = inventory(&[
            "000000010000000000000002",
            "000000010000000000000003",
            "000000010000000000000006",
            "000000010000000000000007",
        ]);
        let backups = backups(&[
            ("old", base(1, 2 * MIB + 40, 3 * MIB + 40)),
            ("new", base(1, 6 * MIB + 40, 6 * MIB + 400)),
            ("lost", base(1, 3 * MIB + 40, 5 * MIB)),
        ]);
        let health = health(&inventory, &[], &backups);
        assert!(health.has_gaps());
        let timeline = &health.timelines[0];
        assert_eq!(timeline.ranges.len(), 2);
        assert_eq!(timeline.gaps[0].first.to_string(), "000000010000000000000004");
        assert_eq!(timeline.gaps[0].count, 2);
        assert_eq!(health.windows.len(), 2);
        assert_eq!(health.windows[0].backups, ["old"]);
        assert_eq!(health.windows[0].to, Lsn(4 * MIB));
        assert_eq!(health.windows[0].broken_by.unwrap().to_string(), "000000010000000000000004");
        assert_eq!(health.windows[1].backups, ["new"]);
        assert_eq!(health.windows[1].broken_by, None);
        assert_eq!(health.unusable[0].backup, "lost");
        assert_eq!(health.unusable[0].missing.to_string(), "000000010000000000000004");
    }

    #[test]
    fn a_backup_that_carries_its_wal_needs_none_and_goes_on_with_what_there_is() {
        let own = |base| RecoveryBase { standalone: true, ..base };
        let alone = backups(&[("own", own(base(1, 2 * MIB + 40, 3 * MIB + 40)))]);
        let found = health(&inventory(&[]), &[], &alone);
        assert!(found.unusable.is_empty());
        assert_eq!(
            (found.windows[0].from, found.windows[0].to),
            (Lsn(3 * MIB + 40), Lsn(3 * MIB + 40))
        );
        let later = inventory(&["000000010000000000000003", "000000010000000000000004"]);
        let found = health(&later, &[], &alone);
        assert_eq!(found.windows[0].to, Lsn(5 * MIB));
        // The segment behind is of no use without the one in which the backup ended.
        let behind = inventory(&["000000010000000000000004"]);
        assert_eq!(health(&behind, &[], &alone).windows[0].to, Lsn(3 * MIB + 40));
    }

    #[test]
    fn backups_before_and_after_a_promotion_share_one_window() {
        let inventory = inventory(&[
            "000000010000000000000002",
            "000000010000000000000003",
            "000000020000000000000003",
            "000000020000000000000004",
            "00000002.history",
        ]);
        let histories = [History::first(1), History::parse(2, b"1\t0/380000\tx").unwrap()];
        let both = backups(&[
            ("one", base(1, 2 * MIB + 40, 2 * MIB + 400)),
            ("two", base(2, 4 * MIB + 40, 4 * MIB + 400)),
        ]);
        let found = health(&inventory, &histories, &both);
        assert_eq!(found.windows.len(), 1);
        assert_eq!(found.windows[0].backups, ["one", "two"]);
        assert_eq!(found.windows[0].timeline, 2);
        // A backup that ended after the fork is no ancestor of the new timeline.
        let late = backups(&[("late", base(1, 3 * MIB + 40, 4 * MIB - 8))]);
        let found = health(&inventory, &histories, &late);
        assert_eq!(found.windows[0].timeline, 1);
    }

    #[test]
    fn rpo_is_the_age_of_the_newest_point() {
        let mut found = health(&inventory(&[]), &[], &[]);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(found.rpo(now), None);
        found.newest = Some(NewestPoint {
            segment: "000000010000000000000002".parse().unwrap(),
            archived: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(700)),
            transaction: Some(Timestamp::from_second(600).unwrap()),
        });
        assert_eq!(found.rpo(now), Some(Duration::from_secs(300)));
    }
}
