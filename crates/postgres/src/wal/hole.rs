//! What to answer recovery that asks for a segment which no repository has.
//!
//! Mostly that is the end of the archive, and "not there" is the answer: recovery ends, or a standby
//! asks again. It is not where recovery would end too early, or go astray:
//!
//! - There are later segments of the same timeline: a hole. A push may still be on its way, so it is
//!   asked for again for a while; then recovery has to stop, instead of opening the database without
//!   what lies behind the hole. A standby never ends recovery by itself, and may get the segment from
//!   the primary: it is told the truth. So is a server that has a target: it reads ahead of what it
//!   replays (from 15 on), past the target and into the hole; and where the log ends before the target,
//!   it stops by itself (`recovery ended before configured recovery target was reached`, from 13 on).
//! - The segment is the first of its timeline, and the timeline before went on in a file of the same
//!   number. Told "not there", recovery takes that file, and replays what was written after the
//!   timelines had parted. It is given what both have in common instead, up to where they part.
//!
//! Where the server has the segment in its own `pg_wal`, it reads that when it is told "not there".

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_repo::Repository;

use super::deliver::deliver;
use super::fetch::{FIRST_PAUSE, FetchOptions, LONGEST_PAUSE, get, longest};
use super::{History, Lsn, SegmentHeader, SegmentName, WalName, check_segment};
use crate::{PostgresError, PostgresErrorKind, Result};

/// A segment that every repository said not to have, whole or in part. Whether it was delivered all
/// the same; if not, "not there" is the right answer.
///
/// # Errors
/// Recovery must not go on.
pub(super) fn settle(
    repositories: &[Repository],
    name: SegmentName,
    destination: &Path,
    options: &FetchOptions,
) -> Result<bool> {
    let standby = beside(destination, "standby.signal").is_some_and(|signal| signal.exists());
    if destination.parent().is_some_and(|folder| folder.join(name.to_string()).exists()) {
        return Ok(false);
    }
    let parted = parted(repositories, name, options)?;
    if matches!(parted, Some(Parted::Later)) {
        return Ok(false);
    }
    let later = match standby || has_target(destination) {
        true => None,
        false => later(repositories, name, options)?,
    };
    if let Some(later) = later {
        return wait_for(repositories, name, later, destination, options);
    }
    match parted {
        Some(Parted::Within { common, at }) => {
            tracing::warn!(segment = %name, %at, "no repository has it: what the timeline before has of it is delivered, up to where they part");
            check_segment(name, &common, Some(options.system_identifier))?;
            deliver(&common, destination).map(|()| true)
        }
        Some(Parted::Before { from, at }) => Err(PostgresError::new(
            PostgresErrorKind::Archive,
            format!(
                "the first WAL segment of timeline {}, {name}, is in no repository, and timeline \
                 {from} went on behind {at}, where they parted: recovery would replay the wrong one",
                name.timeline()
            ),
        )
        .with_hint(format!(
            "push {name} if the server that made it still has it; or restore along timeline {from} \
             (`--timeline {from}`)"
        ))),
        Some(Parted::Later) | None => Ok(false),
    }
}

/// A file in the data directory around the file that recovery asked for.
fn beside(destination: &Path, name: &str) -> Option<PathBuf> {
    // `pg_wal/RECOVERYXLOG`, from the data directory.
    Some(destination.parent()?.parent()?.join(name))
}

/// Whether the server around the file that recovery asked for was told how far to go. Where its
/// configuration is elsewhere, what a restore wrote down is in the data directory all the same.
fn has_target(destination: &Path) -> bool {
    const TARGETS: [&str; 5] = [
        "recovery_target",
        "recovery_target_lsn",
        "recovery_target_name",
        "recovery_target_time",
        "recovery_target_xid",
    ];
    let mut targets = BTreeMap::new();
    // The later file counts, and in a file the later line.
    for file in ["postgresql.conf", "postgresql.auto.conf"] {
        let text = beside(destination, file).and_then(|path| std::fs::read(path).ok());
        for line in String::from_utf8_lossy(&text.unwrap_or_default()).lines() {
            if let Some((name, value)) = crate::configuration::setting(line)
                && TARGETS.contains(&name.as_str())
            {
                targets.insert(name, value);
            }
        }
    }
    targets.values().any(|value| !value.is_empty())
}

/// How a segment, of which the timeline before has a file, lies to the place where they part.
enum Parted {
    /// It ends before.
    Later,
    /// They part in it: what they have in common, with zeros behind.
    Within { common: Vec<u8>, at: Lsn },
    /// It is the first of its timeline, which begins where it begins.
    Before { from: u32, at: Lsn },
}

fn parted(
    repositories: &[Repository],
    name: SegmentName,
    options: &FetchOptions,
) -> Result<Option<Parted>> {
    if name.timeline() == 1 {
        return Ok(None);
    }
    let Some(history) = get(repositories, WalName::History(name.timeline()), options)? else {
        return Ok(None);
    };
    let history = History::parse(name.timeline(), &history).map_err(|error| {
        PostgresError::new(PostgresErrorKind::Damaged, error.to_string()).with_source(error)
    })?;
    let Some(switch) = history.ancestors().last() else { return Ok(None) };
    let text = name.to_string();
    let number = text.get(8..).unwrap_or_default();
    let Ok(older) = format!("{:08X}{number}", switch.timeline).parse::<SegmentName>() else {
        return Ok(None);
    };
    let content = match get(repositories, WalName::Segment(older), options)? {
        Some(whole) => Some(whole),
        None => longest(repositories, older, options)?,
    };
    let Some(mut content) = content else { return Ok(None) };
    let size = SegmentHeader::parse(&content)
        .map_err(|error| {
            PostgresError::new(
                PostgresErrorKind::Damaged,
                format!("the WAL segment {older} cannot be used: {error}"),
            )
        })?
        .segment_size;
    let (Some(number), Some(start)) = (name.number(size), name.start(size)) else {
        return Ok(None);
    };
    let at = switch.end;
    Ok(match number.cmp(&at.segment(size)) {
        std::cmp::Ordering::Less => Some(Parted::Later),
        std::cmp::Ordering::Greater => None,
        std::cmp::Ordering::Equal if at == start => {
            Some(Parted::Before { from: switch.timeline, at })
        }
        std::cmp::Ordering::Equal => {
            content.resize(size.bytes() as usize, 0);
            let common = usize::try_from(at.since(start)).unwrap_or(usize::MAX);
            if let Some(rest) = content.get_mut(common..) {
                rest.fill(0);
            }
            Some(Parted::Within { common: content, at })
        }
    })
}

/// The first later segment of the same timeline that any repository has, whole or begun.
fn later(
    repositories: &[Repository],
    name: SegmentName,
    options: &FetchOptions,
) -> Result<Option<SegmentName>> {
    let mut found: Option<SegmentName> = None;
    for repository in repositories {
        let archive = repository.archive(options.system_identifier);
        for file in archive.list(Some(name.timeline()))? {
            // Of a slice that is the name of its segment.
            let there = file.name.get(..24).and_then(|text| text.parse::<SegmentName>().ok());
            if let Some(there) = there.filter(|there| *there > name)
                && (file.name.len() == 24 || file.name.ends_with(".slice"))
                && found.is_none_or(|found| there < found)
            {
                found = Some(there);
            }
        }
    }
    Ok(found)
}

/// Asks again for a segment in a hole, whose push may be on its way.
fn wait_for(
    repositories: &[Repository],
    name: SegmentName,
    later: SegmentName,
    destination: &Path,
    options: &FetchOptions,
) -> Result<bool> {
    let started = Instant::now();
    let (mut slept, mut pause) = (Duration::ZERO, FIRST_PAUSE);
    while started.elapsed().max(slept) + pause <= options.retry_for {
        let Some(repository) = repositories.first() else { break };
        repository.environment().clock.sleep(pause);
        slept += pause;
        pause = (pause * 2).min(LONGEST_PAUSE);
        if let Some(content) = get(repositories, WalName::Segment(name), options)? {
            return deliver(&content, destination).map(|()| true);
        }
    }
    Err(PostgresError::new(
        PostgresErrorKind::Archive,
        format!(
            "the archive has a hole: the WAL segment {name} is in no repository, and {later} is, \
             which is later; recovery must not end here as if this were all"
        ),
    )
    .with_hint(
        "push it if a server still has it in pg_wal, and start recovery again; else `backstay wal \
         status` says up to when can be restored, as a target of its own",
    ))
}
