//! Which snapshot a recovery starts from.

use backstay_postgres::BackupDetail;
use backstay_postgres::wal::{RecoveryTarget, TargetTimeline, check_target};
use backstay_repo::{Repository, Snapshot};
use jiff::Timestamp;

use crate::Result;
use crate::error::{Error, ErrorKind};

/// The newest snapshot that is not younger than `at`. For kinds without moments in between.
/// Snapshots with problems lack something, so they are taken only where there is no other.
///
/// # Errors
/// Not found, with the nearest moment there is.
pub fn as_of(snapshots: &[Snapshot], at: Option<Timestamp>) -> Result<Snapshot> {
    let candidates = snapshots.iter().filter(|snapshot| at.is_none_or(|at| snapshot.time <= at));
    if let Some(found) = candidates.max_by_key(|s| (s.problems.is_empty(), s.time)) {
        return Ok(found.clone());
    }
    Err(match (snapshots.iter().min_by_key(|snapshot| snapshot.time), at) {
        (Some(oldest), Some(at)) => Error::new(
            ErrorKind::NotFound,
            format!("there is no snapshot of {} as old as {at}", oldest.source),
        )
        .with_hint(format!("the oldest is {} of {}", oldest.short_id(), oldest.time)),
        _ => Error::new(ErrorKind::NotFound, "there is no snapshot to restore")
            .with_hint("see `backstay list`"),
    })
}

/// The newest snapshot from which `target` can be reached; one with problems only where there is
/// no other.
///
/// # Errors
/// Why the best candidate cannot reach it, with the nearest point that can be.
pub fn for_target(
    repository: &Repository,
    snapshots: &[Snapshot],
    target: &RecoveryTarget,
    inclusive: bool,
    timeline: Option<TargetTimeline>,
) -> Result<Snapshot> {
    let mut ordered: Vec<(BackupDetail, &Snapshot)> = Vec::new();
    for snapshot in snapshots {
        ordered.push((BackupDetail::of(snapshot)?, snapshot));
    }
    ordered.sort_by_key(|(detail, snapshot)| {
        (!snapshot.problems.is_empty(), std::cmp::Reverse(detail.time_stop))
    });
    let before = |detail: &BackupDetail| match target {
        RecoveryTarget::Time(time) => detail.time_stop <= *time,
        RecoveryTarget::Lsn(lsn) => detail.stop_lsn <= *lsn,
        _ => true,
    };
    let mut first_error = None;
    for (detail, snapshot) in ordered.iter().filter(|(detail, _)| before(detail)) {
        let archive = repository.archive(detail.system_identifier);
        match check_target(&archive, detail, target, inclusive, timeline) {
            Ok(_) => return Ok((*snapshot).clone()),
            Err(error) => {
                first_error.get_or_insert(Error::from(error));
            }
        }
    }
    if let Some(error) = first_error {
        return Err(error);
    }
    // All of them are too young: the oldest knows best what can be reached.
    let Some((detail, _)) = ordered.iter().min_by_key(|(detail, _)| detail.time_stop) else {
        return Err(Error::new(ErrorKind::NotFound, "there is no snapshot to restore")
            .with_hint("see `backstay list`"));
    };
    let archive = repository.archive(detail.system_identifier);
    match check_target(&archive, detail, target, inclusive, timeline) {
        Ok(_) => Err(Error::new(ErrorKind::NotFound, format!("{target} is before every snapshot"))
            .with_hint(format!(
                "the earliest moment that can be restored is {}",
                detail.time_stop
            ))),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(time: &str) -> Snapshot {
        let root = serde_json::to_value(backstay_repo::ObjectId([0; 32])).unwrap();
        let document = serde_json::json!({
            "source": "etc", "kind": "files", "type": "full", "time": time, "finished": time,
            "host": "h", "version": "1", "root": root,
            "stats": {},
        });
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn what_is_complete_comes_first() {
        let mut all = [snapshot("2026-01-01T00:00:00Z"), snapshot("2026-02-01T00:00:00Z")];
        let problem = serde_json::json!({ "path": "a", "what": "gone" });
        all[1].problems.push(serde_json::from_value(problem.clone()).unwrap());
        assert_eq!(as_of(&all, None).unwrap().time, all[0].time);
        all[0].problems.push(serde_json::from_value(problem).unwrap());
        assert_eq!(as_of(&all, None).unwrap().time, all[1].time);
    }

    #[test]
    fn the_newest_that_is_not_younger() {
        let all = [snapshot("2026-01-01T00:00:00Z"), snapshot("2026-02-01T00:00:00Z")];
        let at = |text: &str| as_of(&all, Some(text.parse().unwrap()));
        assert_eq!(as_of(&all, None).unwrap().time, all[1].time);
        assert_eq!(at("2026-01-31T00:00:00Z").unwrap().time, all[0].time);
        assert_eq!(at("2026-02-01T00:00:00Z").unwrap().time, all[1].time);
        let error = at("2025-12-31T00:00:00Z").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.hint().unwrap().contains("2026-01-01T00:00:00Z"));
    }
}
