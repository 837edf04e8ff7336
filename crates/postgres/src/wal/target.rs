//! Whether a recovery target can be reached, found out before anything is copied.
//!
//! PostgreSQL ends a recovery whose target it never met with a fatal error, hours into the work; and
//! one whose WAL has a hole ends early and, without a target, quietly. Both are found here from the
//! listing of the archive and a few segments. The rules are those of `recoveryStopsBefore`,
//! `recoveryStopsAfter` and `validateRecoveryParameters` in PostgreSQL's
//! `access/transam/xlogrecovery.c`.

use std::fmt;

use backstay_repo::Archive;
use jiff::Timestamp;

use super::inventory::{Inventory, Segments, read_history};
use super::reader::{Identity, Reader};
use super::{Event, History, Lsn, SegmentName, SegmentSize};
use crate::detail::BackupDetail;
use crate::{PostgresError, PostgresErrorKind, Result};

/// Where recovery is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// The end of the archive.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    Time(Timestamp),
    /// A transaction; the epoch, if any, is not looked at.
    Xid(u64),
    Lsn(Lsn),
    /// A restore point.
    Name(String),
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the end of the archive"),
            Self::Immediate => f.write_str("the end of the backup"),
            Self::Time(time) => write!(f, "{time}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::Lsn(lsn) => write!(f, "position {lsn}"),
            Self::Name(name) => write!(f, "restore point {name:?}"),
        }
    }
}

/// Along which timeline recovery goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetTimeline {
    /// The newest that the archive has.
    Latest,
    /// That of the backup.
    Current,
    Number(u32),
}

/// What of a backup decides which targets it can reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryBase {
    pub system_identifier: u64,
    pub timeline: u32,
    /// Recovery starts here.
    pub start: Lsn,
    /// The copy is consistent from here on.
    pub stop: Lsn,
    pub segment_size: SegmentSize,
    /// When the backup ended, by the server's clock.
    pub time_stop: Timestamp,
    /// Whether it carries the WAL from start to stop itself.
    pub standalone: bool,
}

impl From<&BackupDetail> for RecoveryBase {
    fn from(detail: &BackupDetail) -> Self {
        Self {
            system_identifier: detail.system_identifier,
            timeline: detail.timeline,
            start: detail.start_lsn,
            stop: detail.stop_lsn,
            segment_size: detail.segment_size,
            time_stop: detail.time_stop,
            standalone: detail.standalone,
        }
    }
}

/// How much of the archive may be read to find a transaction or a restore point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Search {
    #[default]
    All,
    /// At most so many segments.
    AtMost(u64),
    /// Nothing: that the target exists is taken on trust.
    Nothing,
}

/// How a target is checked.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions {
    pub inclusive: bool,
    /// None: the newest that the archive has.
    pub timeline: Option<TargetTimeline>,
    pub search: Search,
    /// Segments fetched at once. Bounds memory: that many segments and two more.
    pub batch: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self { inclusive: true, timeline: None, search: Search::All, batch: 4 }
    }
}

/// A target that can be reached, and what it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetCheck {
    /// Recovery goes along this timeline.
    pub timeline: u32,
    /// Segments that recovery reads, from the backup's start on; for a target that was not looked
    /// for, up to the last that can be reached.
    pub first: SegmentName,
    pub last: SegmentName,
    pub segments: u64,
    /// Where the target was found, if it had to be looked for.
    pub found: Option<Lsn>,
    /// Segments that were read to look for it.
    pub segments_read: u64,
    /// The archive lacks them, and the snapshot has them itself, up to the end of the backup.
    pub carried: bool,
}

/// Refuses a target that recovery from this backup cannot reach, and names the nearest that it can.
///
/// # Errors
/// [`PostgresErrorKind::Target`] when the target cannot be reached, [`PostgresErrorKind::Archive`]
/// when a segment is missing, [`PostgresErrorKind::Damaged`] when one on the way cannot be used.
pub fn check_target(
    archive: &Archive,
    detail: &BackupDetail,
    target: &RecoveryTarget,
    inclusive: bool,
    timeline: Option<TargetTimeline>,
) -> Result<TargetCheck> {
    let options = CheckOptions { inclusive, timeline, ..CheckOptions::default() };
    match check_target_with(archive, &detail.into(), target, &options) {
        // What the archive lacks is in the snapshot, up to where the backup ended.
        Err(error)
            if detail.standalone
                && error.kind() == PostgresErrorKind::Archive
                && matches!(target, RecoveryTarget::Latest | RecoveryTarget::Immediate) =>
        {
            carried(detail).ok_or(error)
        }
        checked => checked,
    }
}

/// What recovery of a snapshot reads that carries its WAL.
fn carried(detail: &BackupDetail) -> Option<TargetCheck> {
    let size = detail.segment_size;
    let (first, last) = (detail.start_lsn.segment(size), detail.stop_lsn.last_segment(size));
    let name = |number| SegmentName::new(detail.timeline, number, size);
    Some(TargetCheck {
        timeline: detail.timeline,
        first: name(first)?,
        last: name(last)?,
        segments: last.checked_sub(first)? + 1,
        found: None,
        segments_read: 0,
        carried: true,
    })
}

/// [`check_target`] with a say in how much is read.
pub fn check_target_with(
    archive: &Archive,
    base: &RecoveryBase,
    target: &RecoveryTarget,
    options: &CheckOptions,
) -> Result<TargetCheck> {
    let inventory = Inventory::read_with_begun(archive, base.segment_size)?;
    let history = choose_history(archive, &inventory, base, options.timeline)?;
    let reach = reach(&inventory, &history, base)?;
    let check = Check { archive, inventory: &inventory, history: &history, base, options, reach };
    let chosen = !matches!(options.timeline, None | Some(TargetTimeline::Latest));
    let Some(parting) = (!chosen).then(|| parting(&inventory, &history, base)).flatten() else {
        return check.target(target);
    };
    // Both timelines went on: which one is meant is not for a number to decide.
    let ambiguous = || parting.refusal(&history, target);
    match target {
        RecoveryTarget::Immediate => check.target(target),
        RecoveryTarget::Latest => Err(ambiguous()),
        RecoveryTarget::Lsn(lsn) if *lsn > parting.end => Err(ambiguous()),
        RecoveryTarget::Time(time) => {
            let found = check.time(*time);
            let before = Check { reach: reach.min(parting.end.segment(check.size())), ..check };
            // A moment before they parted is the same on both.
            match before.time_before(*time, parting.end) {
                Ok(_) => found,
                Err(error) if error.kind() != PostgresErrorKind::Target => Err(error),
                Err(error) if *time < base.time_stop => Err(error),
                Err(_) => Err(ambiguous()),
            }
        }
        _ => match check.target(target) {
            Err(error) if error.kind() == PostgresErrorKind::Target => Err(ambiguous()),
            answer => answer,
        },
    }
}

/// An ancestor of the newest timeline that was written on after it was left.
struct Parting {
    timeline: u32,
    end: Lsn,
}

impl Parting {
    fn refusal(&self, history: &History, target: &RecoveryTarget) -> PostgresError {
        let (old, new) = (self.timeline, history.timeline());
        refused(
            format!(
                "{target} could be on timeline {old} or {new}: the way to timeline {new} leaves \
                 timeline {old} at {}, and both have later WAL in the archive",
                self.end
            ),
            format!(
                "a server that was promoted, such as a trial restore, makes a new timeline; choose \
                 with `--timeline {old}` or `--timeline {new}`"
            ),
        )
    }
}

/// Where the way from the backup first leaves a timeline that went on.
///
/// After a failover the old timeline has at most the rest of the segment in which it was left.
fn parting(inventory: &Inventory, history: &History, base: &RecoveryBase) -> Option<Parting> {
    history
        .ancestors()
        .iter()
        .filter(|switch| switch.timeline >= base.timeline)
        .find(|switch| {
            let left = switch.end.segment(base.segment_size);
            inventory.segments(switch.timeline).any(|(number, _)| number > left)
        })
        .map(|switch| Parting { timeline: switch.timeline, end: switch.end })
}

fn refused(message: String, hint: impl Into<String>) -> PostgresError {
    PostgresError::new(PostgresErrorKind::Target, message).with_hint(hint)
}

/// The way to the target's timeline, which must pass through the backup.
fn choose_history(
    archive: &Archive,
    inventory: &Inventory,
    base: &RecoveryBase,
    timeline: Option<TargetTimeline>,
) -> Result<History> {
    let number = match timeline {
        None | Some(TargetTimeline::Latest) => inventory.newest_timeline(base.timeline),
        Some(TargetTimeline::Current) => base.timeline,
        Some(TargetTimeline::Number(number)) => number,
    };
    if number != base.timeline && !inventory.has_history(number) {
        let known: Vec<String> = inventory.timelines().iter().map(u32::to_string).collect();
        return Err(refused(
            format!("the archive has no history of timeline {number}"),
            format!("it knows timelines {}; the backup is on {}", known.join(", "), base.timeline),
        ));
    }
    let history = read_history(archive, number)?;
    if history.contains(base.timeline, base.stop) {
        return Ok(history);
    }
    let message = match history.end_of(base.timeline) {
        Some(end) => format!(
            "timeline {number} left timeline {} at {end}, before the end of the backup at {}",
            base.timeline, base.stop
        ),
        None => format!(
            "timeline {number} does not descend from timeline {}, which the backup is on",
            base.timeline
        ),
    };
    Err(refused(
        message,
        format!(
            "recover along the backup's own timeline (`current`, {}), or take a snapshot from before \
             the timelines parted",
            base.timeline
        ),
    ))
}

/// The last segment that recovery can reach; at least what the backup itself needs.
fn reach(inventory: &Inventory, history: &History, base: &RecoveryBase) -> Result<u64> {
    let size = base.segment_size;
    let first = base.start.segment(size);
    let needed = base.stop.last_segment(size);
    let last = inventory.unbroken_from(history, first);
    match last {
        Some(last) if last >= needed && inventory.end_of(history, last) >= base.stop => Ok(last),
        _ => {
            let lacking = last.and_then(|last| inventory.lacking(history, last));
            let missing =
                lacking.map_or_else(|| name_of(history, first, size), |name| name.to_string());
            Err(PostgresError::new(
                PostgresErrorKind::Archive,
                format!(
                    "the archive lacks the WAL segment {missing}, without which the backup is not \
                     consistent"
                ),
            )
            .with_hint("choose another snapshot, or push the segment if it still exists"))
        }
    }
}

fn name_of(history: &History, number: u64, size: SegmentSize) -> String {
    let timeline = history.timelines_of(number, size).first().copied();
    SegmentName::new(timeline.unwrap_or(history.timeline()), number, size)
        .map_or_else(|| format!("number {number}"), |name| name.to_string())
}

struct Check<'a> {
    archive: &'a Archive,
    inventory: &'a Inventory,
    history: &'a History,
    base: &'a RecoveryBase,
    options: &'a CheckOptions,
    reach: u64,
}

impl Check<'_> {
    fn size(&self) -> SegmentSize {
        self.base.segment_size
    }

    fn target(&self, target: &RecoveryTarget) -> Result<TargetCheck> {
        match target {
            RecoveryTarget::Immediate => {
                self.answer(self.base.stop.last_segment(self.size()), None, 0)
            }
            RecoveryTarget::Latest => self.latest(),
            RecoveryTarget::Lsn(lsn) => self.lsn(*lsn),
            RecoveryTarget::Time(time) => self.time(*time),
            RecoveryTarget::Xid(_) | RecoveryTarget::Name(_) => self.search(target),
        }
    }

    fn answer(&self, last: u64, found: Option<Lsn>, read: u64) -> Result<TargetCheck> {
        let first = self.base.start.segment(self.size());
        let name = |number| {
            self.inventory.locate(self.history, number).ok_or_else(|| {
                PostgresError::new(
                    PostgresErrorKind::Archive,
                    format!(
                        "the archive lacks the WAL segment {}",
                        name_of(self.history, number, self.size())
                    ),
                )
            })
        };
        Ok(TargetCheck {
            timeline: self.history.timeline(),
            first: name(first)?,
            last: name(last)?,
            segments: last.saturating_sub(first) + 1,
            found,
            segments_read: read,
            carried: false,
        })
    }

    fn segments(&self, last: u64, batch: usize) -> Segments<'_> {
        Segments::new(self.archive, self.inventory, self.history, last, batch)
    }

    fn identity(&self) -> Identity {
        Identity { system_identifier: Some(self.base.system_identifier), segment_size: self.size() }
    }

    /// The segment whose absence ends what can be reached although there are later ones.
    fn gap(&self) -> Option<String> {
        self.inventory.broken_by(self.history, self.reach).map(|name| name.to_string())
    }

    /// Why recovery goes no further, for a sentence that goes on.
    fn why_no_further(&self) -> String {
        match self.gap() {
            Some(missing) => format!("the WAL segment {missing} is missing"),
            None => {
                let newest = self.inventory.locate(self.history, self.reach);
                let name = newest.map_or_else(
                    || name_of(self.history, self.reach, self.size()),
                    |name| name.to_string(),
                );
                match newest.and_then(|name| self.inventory.begun(name)) {
                    Some(_) => format!(
                        "{name} is the newest WAL segment, which has come up to {}",
                        self.inventory.end_of(self.history, self.reach)
                    ),
                    None => format!("{name} is the newest WAL segment"),
                }
            }
        }
    }

    fn latest(&self) -> Result<TargetCheck> {
        let Some(missing) = self.gap() else { return self.answer(self.reach, None, 0) };
        let last = self.last_record()?;
        Err(refused(
            format!(
                "the archive has a gap: the WAL segment {missing} is missing, so recovery would end \
                 at {last} although there is later WAL"
            ),
            format!("restore to position {last}, or choose a snapshot taken after the gap"),
        ))
    }

    /// Where the last record that can be reached begins: the last position that can be a target.
    fn last_record(&self) -> Result<Lsn> {
        let mut segments = self.segments(self.reach, 1);
        let mut number = self.reach;
        loop {
            let start = self.size().start_of(number).unwrap_or(self.base.stop);
            // The end of the backup is a record's boundary, whatever the segment holds before it.
            let start = start.max(self.base.start);
            let mut reader = Reader::new(self.identity(), start, |n| segments.get(n));
            while reader.next_record()?.is_some() {}
            if let Some(last) = reader.last() {
                return Ok(last);
            }
            // One long record may fill a segment.
            if number <= self.base.start.segment(self.size()) {
                return Ok(self.base.stop);
            }
            number -= 1;
        }
    }

    fn lsn(&self, target: Lsn) -> Result<TargetCheck> {
        if target < self.base.stop {
            return Err(refused(
                format!(
                    "the position {target} lies before the end of the backup at {}, the first point \
                     that it can be recovered to",
                    self.base.stop
                ),
                format!("restore to {} or later, or choose an older snapshot", self.base.stop),
            ));
        }
        let number = target.segment(self.size());
        // A segment that is followed by another holds records up to its end.
        if number < self.reach {
            return self.answer(number.saturating_add(1), Some(target), 0);
        }
        let last = self.last_record()?;
        // Recovery stops at the first record that begins at the target or behind it.
        if last >= target {
            return self.answer(self.reach, Some(target), 1);
        }
        Err(refused(
            format!(
                "the position {target} is not in the archive: its last record begins at {last}, and \
                 {}",
                self.why_no_further()
            ),
            format!("restore to position {last} or earlier, or to the latest"),
        ))
    }

    fn time(&self, target: Timestamp) -> Result<TargetCheck> {
        self.time_before(target, Lsn(u64::MAX))
    }

    /// As [`time`](Self::time), by what was written before `limit` alone.
    fn time_before(&self, target: Timestamp, limit: Lsn) -> Result<TargetCheck> {
        if target < self.base.time_stop {
            return Err(refused(
                format!(
                    "{target} lies before the end of the backup at {}, the first moment that it can \
                     be recovered to",
                    self.base.time_stop
                ),
                format!("restore to {} or later, or choose an older snapshot", self.base.time_stop),
            ));
        }
        // Recovery stops at the first transaction that ended after the target, so there must be one.
        let passed = |time: Timestamp| {
            if self.options.inclusive { time > target } else { time >= target }
        };
        let mut segments = self.segments(self.reach, 1);
        let first = self.base.start.segment(self.size());
        let mut newest: Option<Timestamp> = None;
        for number in (first..=self.reach).rev() {
            let start = self.size().start_of(number).unwrap_or(self.base.start);
            let end = self.size().start_of(number.saturating_add(1)).unwrap_or(Lsn(u64::MAX));
            let end = end.min(limit);
            let mut reader =
                Reader::new(self.identity(), start.max(self.base.start), |n| segments.get(n));
            let mut found = None;
            while let Some(record) = reader.next_record()? {
                if record.lsn >= end {
                    break;
                }
                if let Some(transaction) = record.transaction_end()
                    && record.end > self.base.stop
                {
                    newest = newest.max(Some(transaction.time));
                    if passed(transaction.time) {
                        found = Some(record.lsn);
                        break;
                    }
                }
            }
            drop(reader);
            if found.is_some() {
                // An earlier one may be the first that passes: where exactly recovery will stop
                // would take reading everything.
                return self.answer(number, None, segments.fetched());
            }
            if newest.is_some() {
                break;
            }
        }
        let message = match newest {
            Some(newest) => format!(
                "the archive does not reach {target}: its last transaction ended at {newest}, and {}",
                self.why_no_further()
            ),
            None => format!(
                "the archive does not reach {target}: no transaction ended after the backup did at \
                 {}, and {}",
                self.base.time_stop,
                self.why_no_further()
            ),
        };
        let nearest = match (newest, self.gap()) {
            (Some(newest), None) => format!(
                "leave the time out to restore to the latest, {newest}; if later transactions are \
                 wanted, have the server switch WAL segments (pg_switch_wal) and archive them first"
            ),
            (Some(newest), Some(_)) => format!("restore to a time before {newest}"),
            (None, _) => "restore to the end of the backup (`immediate`), or to the latest".into(),
        };
        Err(refused(message, nearest))
    }

    /// Looks for a transaction or a restore point from the beginning of the backup on.
    fn search(&self, target: &RecoveryTarget) -> Result<TargetCheck> {
        let limit = match self.options.search {
            Search::Nothing => return self.answer(self.reach, None, 0),
            Search::AtMost(limit) => limit,
            Search::All => u64::MAX,
        };
        let first = self.base.start.segment(self.size());
        let bound = self.reach.min(first.saturating_add(limit.saturating_sub(1)));
        let mut segments = self.segments(bound, self.options.batch);
        let mut seen = Seen::default();
        let mut reader = Reader::new(self.identity(), self.base.start, |n| segments.get(n));
        let mut found = None;
        while let Some(record) = reader.next_record()? {
            let matches = match (target, record.event()) {
                (RecoveryTarget::Xid(xid), Some(Event::TransactionEnd(end))) => {
                    seen.transaction(end.time, end.xid);
                    // PostgreSQL compares 32 bits.
                    end.xid == *xid as u32
                }
                (RecoveryTarget::Name(name), Some(Event::RestorePoint { name: there, .. })) => {
                    let same = *name == there;
                    seen.names.push(there);
                    same
                }
                (_, Some(Event::TransactionEnd(end))) => {
                    seen.transaction(end.time, end.xid);
                    false
                }
                _ => false,
            };
            if matches {
                found = Some((record.lsn, record.end));
                break;
            }
        }
        let end = reader.end();
        drop(reader);
        let read = segments.fetched();
        if let Some((lsn, after)) = found {
            // A restore point is always stopped after; a transaction, as the caller says.
            let stop = match target {
                RecoveryTarget::Xid(_) if !self.options.inclusive => lsn,
                _ => after,
            };
            if stop < self.base.stop {
                return Err(refused(
                    format!(
                        "{target} is at {lsn}, before the end of the backup at {}, the first point \
                         that it can be recovered to",
                        self.base.stop
                    ),
                    "restore to the end of the backup (`immediate`), or choose an older snapshot",
                ));
            }
            return self.answer(lsn.segment(self.size()), Some(lsn), read);
        }
        if bound < self.reach {
            // Not found in as much as may be read: not known, which is not absent.
            return self.answer(self.reach, None, read);
        }
        Err(refused(
            format!(
                "{target} is not in the archive: {read} segments were read from {} to {end}, and {}",
                self.base.start,
                self.why_no_further()
            ),
            seen.hint(target, self.base.stop),
        ))
    }
}

/// What a search passed, to name what could be meant.
#[derive(Default)]
struct Seen {
    names: Vec<String>,
    last: Option<(Timestamp, u32)>,
}

impl Seen {
    fn transaction(&mut self, time: Timestamp, xid: u32) {
        self.last = Some((time, xid));
    }

    fn hint(&self, target: &RecoveryTarget, stop: Lsn) -> String {
        let newest = match self.last {
            Some((time, xid)) => {
                format!(
                    "the latest that can be restored is transaction {xid}, which ended at {time}"
                )
            }
            None => format!("the latest that can be restored is the end of the backup at {stop}"),
        };
        match target {
            RecoveryTarget::Name(_) if self.names.is_empty() => {
                format!("there are no restore points after this backup; {newest}")
            }
            RecoveryTarget::Name(_) => {
                let newest_names: Vec<String> =
                    self.names.iter().rev().take(5).map(|name| format!("{name:?}")).collect();
                format!("the newest restore points are {}; {newest}", newest_names.join(", "))
            }
            _ => newest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failover_only_the_rest_of_the_last_segment_is_on_the_old_timeline() {
        let history = History::parse(2, b"1\t0/380000\tx").unwrap();
        let base = RecoveryBase {
            system_identifier: 1,
            timeline: 1,
            start: Lsn(0x10_0028),
            stop: Lsn(0x10_0138),
            segment_size: SegmentSize::MIN,
            time_stop: Timestamp::UNIX_EPOCH,
            standalone: false,
        };
        let mut names = vec![
            "000000010000000000000001",
            "000000010000000000000002",
            "000000010000000000000003",
            "000000020000000000000003",
            "000000020000000000000004",
            "00000002.history",
        ];
        let found = |names: &[&str], base: &RecoveryBase| {
            let inventory = Inventory::of(SegmentSize::MIN, names.iter().map(|name| (*name, None)));
            parting(&inventory, &history, base).map(|parting| (parting.timeline, parting.end))
        };
        assert_eq!(found(&names, &base), None);
        names.push("000000010000000000000004");
        assert_eq!(found(&names, &base), Some((1, Lsn(0x38_0000))));
        // A backup of the new timeline has the choice behind it.
        assert_eq!(found(&names, &RecoveryBase { timeline: 2, ..base }), None);
    }
}
