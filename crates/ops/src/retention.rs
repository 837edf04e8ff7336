//! Which snapshots a policy keeps.
//!
//! The newest complete snapshot of each hour, day, week, month and year is kept for as many of them
//! as the policy says, and the newest ones in any case. Periods without a snapshot do not count: who
//! backed up nothing for a year keeps what there was before it.
//!
//! Against poisoning: each writer's snapshots are counted by themselves, so that no host pushes out
//! those of another by being busy; a snapshot that says it was made later than the store got it counts
//! from when the store got it; the newest complete snapshot of a source is never forgotten; and what
//! would be forgotten at once stays below a share. A host that has been broken into and holds the keys
//! can still write under another's name and date its snapshots back: against that help credentials
//! that are bound to a prefix, and a store that keeps what is deleted.

use std::collections::{BTreeMap, HashSet};

use backstay_repo::Snapshot;
use jiff::Zoned;
use jiff::tz::TimeZone;

use crate::Result;
use crate::config::RetentionKeys;
use crate::error::Error;

/// What becomes of a snapshot.
#[derive(Debug, Clone)]
pub struct Decision {
    pub snapshot: Snapshot,
    /// Why it is kept: `last`, `daily`, …; nothing when it may go.
    pub kept_for: Vec<&'static str>,
}

/// Decides about the snapshots of one source, newest first.
pub fn decide(
    mut snapshots: Vec<Snapshot>,
    keep: &RetentionKeys,
    zone: &TimeZone,
) -> Vec<Decision> {
    snapshots.sort_by(|a, b| (moment(b), &b.id).cmp(&(moment(a), &a.id)));
    let mut reasons: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
    let newest = snapshots.iter().find(|one| one.problems.is_empty());
    if let Some(newest) = newest {
        reasons.entry(newest.id.clone()).or_default().push("newest");
    }
    let writers: HashSet<&str> = snapshots.iter().map(|one| one.writer.as_str()).collect();
    for writer in writers {
        let complete: Vec<&Snapshot> = snapshots
            .iter()
            .filter(|one| one.writer == writer && one.problems.is_empty())
            .collect();
        for one in complete.iter().take(keep.last.unwrap_or(0) as usize) {
            reasons.entry(one.id.clone()).or_default().push("last");
        }
        for (name, count, period) in periods(keep) {
            let mut seen = HashSet::new();
            for one in &complete {
                if seen.len() >= count {
                    break;
                }
                if seen.insert(period(&moment(one).to_zoned(zone.clone()))) {
                    reasons.entry(one.id.clone()).or_default().push(name);
                }
            }
        }
        // What lacks something is worth keeping only as long as nothing better came after it.
        let better = complete.first().map(|one| moment(one));
        let lacking =
            snapshots.iter().filter(|one| one.writer == writer && !one.problems.is_empty());
        for one in lacking.filter(|one| better.is_none_or(|better| moment(one) > better)) {
            reasons.entry(one.id.clone()).or_default().push("incomplete, and nothing newer");
        }
    }
    snapshots
        .into_iter()
        .map(|snapshot| {
            let kept_for = reasons.remove(&snapshot.id).unwrap_or_default();
            Decision { snapshot, kept_for }
        })
        .collect()
}

/// When a snapshot was made, as far as it can be believed.
fn moment(snapshot: &Snapshot) -> jiff::Timestamp {
    snapshot.stored.map_or(snapshot.time, |stored| snapshot.time.min(stored))
}

type Period = fn(&Zoned) -> (i16, i16);

fn periods(keep: &RetentionKeys) -> [(&'static str, usize, Period); 5] {
    let count = |wanted: Option<u32>| wanted.unwrap_or(0) as usize;
    [
        // Hours of local time that the clocks repeat are told apart by their offset, as one more.
        ("hourly", count(keep.hourly), |time| {
            let hours = time.timestamp().as_second().div_euclid(3600);
            ((hours >> 15) as i16, (hours & 0x7fff) as i16)
        }),
        ("daily", count(keep.daily), |time| (time.year(), time.day_of_year())),
        ("weekly", count(keep.weekly), |time| {
            let week = time.date().iso_week_date();
            (week.year(), i16::from(week.week()))
        }),
        ("monthly", count(keep.monthly), |time| (time.year(), i16::from(time.month()))),
        ("yearly", count(keep.yearly), |time| (time.year(), 0)),
    ]
}

/// Refuses to forget `share` percent of a source's snapshots or more at once; one may always go.
///
/// # Errors
/// Usage, with how many it would be.
pub fn check_share(source: &str, decisions: &[Decision], share: f64) -> Result<()> {
    let goes = decisions.iter().filter(|one| one.kept_for.is_empty()).count();
    if goes <= 1 || share >= 100.0 || goes as f64 * 100.0 < share * decisions.len() as f64 {
        return Ok(());
    }
    Err(Error::usage(
        format!(
            "{goes} of {} snapshots of {source} would be forgotten at once, {share} % or more",
            decisions.len()
        ),
        "look at `backstay retention`; if that is what is wanted, say --max-share 100",
    ))
}

#[cfg(test)]
mod tests {
    use backstay_repo::{Problem, SnapshotStats, SnapshotType, SourceKind};

    use super::*;

    fn at(time: &str) -> jiff::Timestamp {
        time.parse().unwrap()
    }

    fn snapshot(id: &str, writer: &str, time: &str) -> Snapshot {
        Snapshot {
            id: id.into(),
            writer: writer.into(),
            source: "s".into(),
            kind: SourceKind::Files,
            type_: SnapshotType::Full,
            time: at(time),
            finished: at(time),
            stored: Some(at(time)),
            host: String::new(),
            version: String::new(),
            tags: BTreeMap::new(),
            parent: None,
            group: None,
            origin: None,
            root: backstay_repo::ObjectId([0; 32]),
            stats: SnapshotStats::default(),
            problems: Vec::new(),
            detail: serde_json::Value::Null,
        }
    }

    fn kept(snapshots: Vec<Snapshot>, keep: &RetentionKeys) -> Vec<String> {
        let decisions = decide(snapshots, keep, &TimeZone::UTC);
        decisions
            .into_iter()
            .filter(|one| !one.kept_for.is_empty())
            .map(|d| d.snapshot.id)
            .collect()
    }

    fn keep(last: u32, daily: u32, weekly: u32, monthly: u32) -> RetentionKeys {
        RetentionKeys {
            last: Some(last),
            hourly: None,
            daily: Some(daily),
            weekly: Some(weekly),
            monthly: Some(monthly),
            yearly: None,
            archive: None,
        }
    }

    /// Two a day from the first of January on.
    fn days(count: u32) -> Vec<Snapshot> {
        let first = at("2026-01-01T02:00:00Z");
        (0..count * 2)
            .map(|n| {
                let time = first + jiff::SignedDuration::from_hours(i64::from(n) * 12);
                snapshot(&format!("{n:03}"), "w", &time.to_string())
            })
            .collect()
    }

    #[test]
    fn the_newest_of_each_period_is_kept() {
        // 90 days: to the 31st of March.
        assert_eq!(kept(days(90), &keep(3, 0, 0, 0)), ["179", "178", "177"]);
        assert_eq!(kept(days(90), &keep(0, 3, 0, 0)), ["179", "177", "175"]);
        // Weeks end on Sundays: the 29th and the 22nd of March.
        assert_eq!(kept(days(90), &keep(0, 0, 3, 0)), ["179", "175", "161"]);
        // The last of February and of January.
        assert_eq!(kept(days(90), &keep(0, 0, 0, 9)), ["179", "117", "061"]);
        // Periods without a snapshot do not count.
        let gap: Vec<Snapshot> =
            days(90).into_iter().filter(|one| one.id.as_str() < "020" || one.id == "179").collect();
        assert_eq!(kept(gap, &keep(0, 3, 0, 0)), ["179", "019", "017"]);
    }

    #[test]
    fn nobody_pushes_out_what_others_made() {
        let mut all = days(10);
        // Another host dates its snapshots into the future, and makes many of them.
        for n in 0..50 {
            let mut forged =
                snapshot(&format!("x{n:02}"), "x", &format!("2030-01-{:02}T00:00:00Z", n % 28 + 1));
            forged.stored = Some(at("2026-01-05T00:00:00Z"));
            all.push(forged);
        }
        let kept = kept(all.clone(), &keep(2, 3, 0, 0));
        for id in ["019", "018", "017", "015"] {
            assert!(kept.iter().any(|one| one == id), "{id}: {kept:?}");
        }
        assert!(kept.iter().filter(|id| id.starts_with('x')).count() <= 4, "{kept:?}");
        let decisions = decide(all, &keep(2, 3, 0, 0), &TimeZone::UTC);
        assert!(check_share("s", &decisions, 50.0).is_err());
        assert!(check_share("s", &decisions, 100.0).is_ok());
    }

    #[test]
    fn what_is_incomplete_counts_for_nothing_and_the_newest_complete_one_stays() {
        let mut all = days(5);
        let lacking = |one: &mut Snapshot| {
            one.problems.push(Problem { path: "x".into(), what: "unreadable".into() });
        };
        all.iter_mut().skip(7).for_each(lacking);
        lacking(&mut all[2]);
        assert_eq!(kept(all.clone(), &keep(1, 0, 0, 0)), ["009", "008", "007", "006"]);
        assert_eq!(kept(all, &keep(0, 0, 0, 0)), ["009", "008", "007", "006"]);
        assert_eq!(kept(Vec::new(), &keep(1, 1, 1, 1)), [] as [&str; 0]);
    }
}
