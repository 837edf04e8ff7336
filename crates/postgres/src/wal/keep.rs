//! What of a log is kept for which snapshot.
//!
//! Where a source says how far back every moment has to stay restorable, its snapshots are of three
//! sorts. The *young* ones lie within that time, and the log from each on stays. So does the log from
//! an *anchor* on: the last one before that time, with which its first moment is reached; there is one
//! for each timeline that got something since, because a cluster that was recovered to an earlier
//! moment leaves the newer snapshots of its old timeline behind. All *older* ones keep what makes them
//! consistent, from the beginning of the backup to its end, and are single recovery points.
//!
//! What lies before all of that on a timeline that is younger than the one on which it begins stays,
//! too: a cluster that was recovered to an earlier moment writes those positions again, and a backup
//! of it may be at work.
//!
//! "Now" is when the archive or the snapshots last got something, by the store's clock, unless our
//! clock is behind that: a clock that runs ahead removes nothing, and of a source that is gone stays
//! what there was.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use backstay_repo::{ArchivedFile, Slice, Snapshot};
use jiff::Timestamp;

use super::{History, RecoveryBase, SegmentName, SegmentSize, WalName};

/// For how long every moment stays restorable.
#[derive(Debug, Clone)]
pub struct Keep {
    /// Of each source; of one that is not named as far back as its snapshots go.
    pub windows: BTreeMap<String, Duration>,
    /// Our clock.
    pub now: SystemTime,
}

impl Keep {
    /// All that a snapshot can be recovered along.
    pub fn all() -> Self {
        Self { windows: BTreeMap::new(), now: SystemTime::UNIX_EPOCH }
    }
}

/// A backup, as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub source: String,
    pub base: RecoveryBase,
    /// When the store got the snapshot.
    pub stored: Option<Timestamp>,
    /// Whether all of it could be read.
    pub complete: bool,
}

impl Kept {
    pub fn new(snapshot: &Snapshot, base: RecoveryBase) -> Self {
        Self {
            source: snapshot.source.clone(),
            base,
            stored: snapshot.stored,
            complete: snapshot.problems.is_empty(),
        }
    }

    /// Whether it was there at `moment` by every clock that dated it.
    fn before(&self, moment: SystemTime) -> bool {
        let not_after = |time: Timestamp| SystemTime::from(time) <= moment;
        not_after(self.base.time_stop) && self.stored.is_some_and(not_after)
    }
}

/// Backups by what of the log each needs.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// All from its beginning on.
    pub on: Vec<RecoveryBase>,
    /// From its beginning to its end.
    pub own: Vec<RecoveryBase>,
}

impl Needs {
    /// Sorts the backups of all sources. `histories` are those of the timelines in the archive; none
    /// when one of them could not be read, so that nothing is known of how they hang together.
    pub fn of(
        backups: &[Kept],
        files: &[ArchivedFile],
        histories: Option<&[History]>,
        keep: &Keep,
    ) -> Self {
        let mut needs = Self::default();
        let mut sources: BTreeMap<&str, Vec<&Kept>> = BTreeMap::new();
        for backup in backups {
            sources.entry(&backup.source).or_default().push(backup);
        }
        let newest = newest(backups, files).map(|newest| newest.min(keep.now));
        for (source, backups) in sources {
            let since = keep.windows.get(source).zip(newest);
            let since = since.and_then(|(window, now)| now.checked_sub(*window));
            let (Some(since), Some(histories)) = (since, histories) else {
                needs.on.extend(backups.iter().map(|backup| backup.base.clone()));
                continue;
            };
            let (aged, young): (Vec<_>, Vec<_>) =
                backups.into_iter().partition(|backup| backup.before(since));
            let fresh: Vec<&History> =
                histories.iter().filter(|history| is_fresh(history, files, since)).collect();
            let last = |fits: &dyn Fn(&RecoveryBase) -> bool| {
                let fitting = aged.iter().filter(|one| one.complete && fits(&one.base));
                fitting.map(|one| &one.base).max_by_key(|base| (base.time_stop, base.start))
            };
            let mut anchors: Vec<&RecoveryBase> = last(&|_| true).into_iter().collect();
            for history in fresh {
                anchors.extend(last(&|base| history.contains(base.timeline, base.stop)));
            }
            for one in &aged {
                // Without a complete one before, each might be the one that is needed.
                let on = anchors.is_empty() || anchors.contains(&&one.base);
                (if on { &mut needs.on } else { &mut needs.own }).push(one.base.clone());
            }
            needs.on.extend(young.into_iter().map(|one| one.base.clone()));
        }
        needs
    }

    /// The names among `names` that none of the backups needs, the oldest first; none without a backup.
    pub fn unneeded<'a>(&self, names: impl Iterator<Item = &'a str>) -> Option<Vec<String>> {
        // Of several that begin in the same place the one on the oldest timeline keeps the most.
        let earliest = self.on.iter().min_by_key(|base| (base.start, base.timeline))?;
        // After the size of segments was changed a name may mean a later position than it did before.
        let mut sizes: Vec<SegmentSize> =
            self.on.iter().chain(&self.own).map(|base| base.segment_size).collect();
        sizes.sort_unstable_by_key(|size| size.bytes());
        sizes.dedup();
        let mut found: Vec<(u64, WalName, &str)> = names
            .filter_map(|file| {
                let name = wal_name(file)?;
                let segment = segment_of(name)?;
                let mut least = None;
                for size in &sizes {
                    // A name that no such cluster has is somebody else's.
                    let Some(number) = segment.number(*size) else { continue };
                    let is_own = |base: &RecoveryBase| {
                        (base.start.segment(*size)..=base.stop.last_segment(*size))
                            .contains(&number)
                    };
                    if number >= earliest.start.segment(*size) || self.own.iter().any(is_own) {
                        return None;
                    }
                    least = least.or(Some(number));
                }
                (segment.timeline() <= earliest.timeline).then_some((least?, name, file))
            })
            .collect();
        found.sort_unstable();
        Some(found.into_iter().map(|(_, _, file)| file.to_owned()).collect())
    }
}

/// A slice is needed for as long as its segment is.
fn wal_name(file: &str) -> Option<WalName> {
    Slice::parse(file).map_or(file, |(segment, _)| segment).parse().ok()
}

fn segment_of(name: WalName) -> Option<SegmentName> {
    match name {
        WalName::Segment(segment) | WalName::Partial(segment) | WalName::Backup(segment, _) => {
            Some(segment)
        }
        WalName::History(_) => None,
    }
}

/// When the store last got something.
fn newest(backups: &[Kept], files: &[ArchivedFile]) -> Option<SystemTime> {
    let stored = backups.iter().filter_map(|one| one.stored).map(SystemTime::from);
    files.iter().filter_map(|file| file.modified).chain(stored).max()
}

/// Whether its timeline got something since; where the store does not say, it may have.
fn is_fresh(history: &History, files: &[ArchivedFile], since: SystemTime) -> bool {
    files.iter().any(|file| {
        let segment = wal_name(&file.name).and_then(segment_of);
        segment.is_some_and(|segment| segment.timeline() == history.timeline())
            && file.modified.is_none_or(|modified| modified >= since)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::Lsn;

    const MIB: u64 = 1 << 20;
    const DAY: u64 = 86_400;

    fn at(day: u64) -> Timestamp {
        Timestamp::from_second((day * DAY) as i64).unwrap()
    }

    fn kept(source: &str, timeline: u32, segment: u64, day: u64) -> Kept {
        Kept {
            source: source.to_owned(),
            base: RecoveryBase {
                system_identifier: 1,
                timeline,
                start: Lsn(segment * MIB + 40),
                stop: Lsn((segment + 1) * MIB + 40),
                segment_size: SegmentSize::MIN,
                time_stop: at(day),
                standalone: false,
            },
            stored: Some(at(day)),
            complete: true,
        }
    }

    fn name(timeline: u32, segment: u64) -> String {
        SegmentName::new(timeline, segment, SegmentSize::MIN).unwrap().to_string()
    }

    fn file(name: String, day: u64) -> ArchivedFile {
        ArchivedFile { name, stored: 1, modified: Some(at(day).into()) }
    }

    fn days(source: &str, days: u64, now: u64) -> Keep {
        let window = Duration::from_secs(days * DAY);
        Keep { windows: [(source.to_owned(), window)].into(), now: at(now).into() }
    }

    /// One segment a day, on timeline 1: the number is the day.
    fn daily(count: u64) -> Vec<ArchivedFile> {
        (1..=count).map(|day| file(name(1, day), day)).collect()
    }

    /// The numbers of what goes.
    fn gone(
        backups: &[Kept],
        files: &[ArchivedFile],
        histories: Option<&[History]>,
        keep: &Keep,
    ) -> Vec<(u32, u64)> {
        let needs = Needs::of(backups, files, histories, keep);
        let names = files.iter().map(|file| file.name.as_str());
        let gone = needs.unneeded(names).unwrap();
        let parts = |name: &String| {
            let name: SegmentName = name.parse().unwrap();
            (name.timeline(), name.number(SegmentSize::MIN).unwrap())
        };
        gone.iter().map(parts).collect()
    }

    fn of(timeline: u32, numbers: &[u64]) -> Vec<(u32, u64)> {
        numbers.iter().map(|number| (timeline, *number)).collect()
    }

    #[test]
    fn older_snapshots_keep_their_own_log_and_the_last_before_the_window_all_behind_it() {
        let first = [History::first(1)];
        let backups: Vec<Kept> =
            [2, 10, 20, 27].into_iter().map(|day| kept("a", 1, day, day)).collect();
        let files = daily(30);
        // From day 23 on: the one of day 20 reaches it.
        let expected: Vec<u64> = std::iter::once(1).chain(4..=9).chain(12..=19).collect();
        assert_eq!(gone(&backups, &files, Some(&first), &days("a", 7, 99)), of(1, &expected));
        // Nobody says how far back: all from the oldest on.
        assert_eq!(gone(&backups, &files, Some(&first), &Keep::all()), of(1, &[1]));
        // Longer than there is anything.
        assert_eq!(gone(&backups, &files, Some(&first), &days("a", 99, 99)), of(1, &[1]));
        // It is not known how timelines hang together.
        assert_eq!(gone(&backups, &files, None, &days("a", 7, 99)), of(1, &[1]));
    }

    #[test]
    fn a_clock_that_runs_ahead_removes_nothing_and_one_that_is_behind_less() {
        let first = [History::first(1)];
        let backups: Vec<Kept> =
            [2, 10, 20].into_iter().map(|day| kept("a", 1, day, day)).collect();
        let files = daily(22);
        let now = gone(&backups, &files, Some(&first), &days("a", 7, 22));
        assert_eq!(now, of(1, &[1, 4, 5, 6, 7, 8, 9]));
        assert_eq!(gone(&backups, &files, Some(&first), &days("a", 7, 9999)), now);
        assert_eq!(gone(&backups, &files, Some(&first), &days("a", 7, 12)), of(1, &[1]));
        // A snapshot whose server's clock was behind came into the store when it came.
        let mut behind = backups.clone();
        behind[2].base.time_stop = at(3);
        assert_eq!(gone(&behind, &files, Some(&first), &days("a", 7, 22)), now);
    }

    #[test]
    fn what_lacks_something_is_no_anchor() {
        let first = [History::first(1)];
        let mut backups: Vec<Kept> =
            [2, 10, 20].into_iter().map(|day| kept("a", 1, day, day)).collect();
        backups[1].complete = false;
        assert_eq!(gone(&backups, &daily(22), Some(&first), &days("a", 7, 22)), of(1, &[1]));
    }

    #[test]
    fn after_a_return_to_the_past_the_anchor_is_the_one_on_the_way_of_the_new_timeline() {
        // On day 12 the cluster was taken back to the end of segment 4 and went on from there.
        let backups =
            [kept("a", 1, 2, 2), kept("a", 1, 9, 9), kept("a", 2, 6, 14), kept("a", 2, 12, 20)];
        let mut files = daily(11);
        files.extend((5..=14).map(|number| file(name(2, number), number + 8)));
        let histories = [History::first(1), History::parse(2, b"1\t0/500000\tx").unwrap()];
        // From day 13 on: only the first reaches the moments before the third.
        assert_eq!(gone(&backups, &files, Some(&histories), &days("a", 9, 22)), of(1, &[1]));
        // From day 18 on: the third does, and the first two keep their own.
        let found = gone(&backups, &files, Some(&histories), &days("a", 4, 22));
        assert_eq!(found, [(1, 1), (1, 4), (1, 5), (2, 5)]);
    }

    #[test]
    fn of_two_sources_of_one_cluster_each_keeps_what_it_says() {
        let first = [History::first(1)];
        let backups = [
            kept("primary", 1, 10, 10),
            kept("primary", 1, 20, 20),
            kept("standby", 1, 5, 5),
            kept("standby", 1, 21, 21),
        ];
        let files = daily(30);
        let mut keep = days("primary", 7, 30);
        // The other says nothing: all from its oldest on.
        assert_eq!(gone(&backups, &files, Some(&first), &keep), of(1, &[1, 2, 3, 4]));
        keep.windows.insert("standby".to_owned(), Duration::from_secs(7 * DAY));
        let expected: Vec<u64> = (1..=4).chain(7..=9).chain(12..=19).collect();
        assert_eq!(gone(&backups, &files, Some(&first), &keep), of(1, &expected));
    }

    #[test]
    fn slices_and_partials_go_and_stay_with_their_segment() {
        let first = [History::first(1)];
        let backups = [kept("a", 1, 2, 2), kept("a", 1, 10, 10), kept("a", 1, 20, 20)];
        let mut files = daily(22);
        for number in [3, 5] {
            files.push(file(format!("{}.partial", name(1, number)), number));
            files.push(file(format!("{}.00000000-00000100.slice", name(1, number)), number));
        }
        let needs = Needs::of(&backups, &files, Some(&first), &days("a", 7, 22));
        let gone = needs.unneeded(files.iter().map(|file| file.name.as_str())).unwrap();
        let with = |number| gone.iter().filter(|gone| gone.contains(&name(1, number))).count();
        assert_eq!((with(3), with(5)), (0, 3), "{gone:?}");
    }
}
