//! Before WAL flows: who the server is, its slot, and where to begin.

use backstay_repo::{Archive, Slice, push_to_all};

use super::{Position, ReceiveOptions, Server};
use crate::wal::{History, Inventory, Lsn, SegmentName, SegmentSize, WalName};
use crate::wire::{ServerSaid, Wire};
use crate::{PostgresError, PostgresErrorKind, Result};

/// Who the server is and where it stands.
pub(crate) fn identify(wire: &mut Wire) -> Result<Server> {
    const DOING: &str = "identify the system";
    let answers = wire.query(DOING, "IDENTIFY_SYSTEM")?;
    let row = answers.first().and_then(|answer| answer.rows.first());
    let said = row.and_then(|row| {
        Some((
            row.text(0)?.parse::<u64>().ok()?,
            row.text(1)?.parse::<u32>().ok()?,
            row.text(2)?.parse::<Lsn>().ok()?,
        ))
    });
    let Some((system_identifier, timeline, end)) = said else { return Err(wire.strange(DOING)) };
    let text = wire.show("wal_segment_size")?;
    let segment_size = size_of(&text).and_then(SegmentSize::new).ok_or_else(|| {
        PostgresError::new(
            PostgresErrorKind::Unsupported,
            format!("WAL segments of {text} cannot be"),
        )
    })?;
    Ok(Server { system_identifier, timeline, end, segment_size })
}

/// `16MB` in bytes.
pub(crate) fn size_of(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text.get(digits.len()..)? {
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// A slot's name as a word of the protocol.
pub(super) fn slot_name(name: &str) -> Result<String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) {
        return Err(PostgresError::usage(format!("{name:?} is no name of a replication slot"))
            .with_hint("lower case letters, digits and underscores, 63 at most"));
    }
    Ok(format!("\"{name}\""))
}

/// Makes the slot where that is wanted and it is not there.
pub(super) fn slot(wire: &mut Wire, options: &ReceiveOptions) -> Result<()> {
    let Some(slot) = options.slot.as_ref().filter(|slot| slot.create) else { return Ok(()) };
    let query = format!("CREATE_REPLICATION_SLOT {} PHYSICAL RESERVE_WAL", slot_name(&slot.name)?);
    match wire.query(&format!("create the slot {}", slot.name), &query) {
        Ok(_) => Ok(()),
        Err(error) if code(&error) == Some("42710") => Ok(()),
        Err(error) => Err(error),
    }
}

/// What the server called the error.
fn code(error: &PostgresError) -> Option<&str> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<ServerSaid>().map(|said| said.code.as_str())
}

/// Whether commits wait for a receiver of this name, or for any.
pub(super) fn is_synchronous(wire: &mut Wire, name: &str) -> Result<bool> {
    let setting = wire.show("synchronous_standby_names")?;
    Ok(names(&setting).any(|listed| listed == "*" || listed.eq_ignore_ascii_case(name)))
}

/// The names in `ANY 1 (a, "b c")` and in the other forms of that setting; with the words between.
fn names(setting: &str) -> impl Iterator<Item = &str> {
    setting.split([',', '(', ')']).map(|name| name.trim().trim_matches('"'))
}

/// The segment that the server writes now.
pub(super) fn now(server: &Server) -> Position {
    Position { timeline: server.timeline, number: server.end.segment(server.segment_size) }
}

/// Whether the server has removed what was asked for.
pub(super) fn was_removed(error: &PostgresError) -> bool {
    code(error) == Some("58P01")
}

/// Where to begin: behind the last whole segment that every archive has; where there is none, at what
/// the slot holds back, or else where the server is.
pub(super) fn position(
    wire: &mut Wire,
    server: &Server,
    archives: &[Archive],
    options: &ReceiveOptions,
) -> Result<Position> {
    let size = server.segment_size;
    let here = now(server);
    let mut positions = Vec::new();
    for archive in archives {
        let inventory = Inventory::read(archive, size)?;
        positions.push(match behind_last(&inventory) {
            Some(at) => Some(at),
            None => first_slice(archive, size)?,
        });
    }
    // One that has nothing yet, while others do, may lack what it was given last.
    if positions.contains(&None) && positions.iter().any(Option::is_some) && options.slot.is_some()
    {
        positions.push(Some(held_back(wire, server, options, here)?));
    }
    // Those that have it already say so when they are given it again.
    let first = positions.iter().flatten().min_by_key(|at| (at.timeline, at.number)).copied();
    let Some(at) = first else { return held_back(wire, server, options, here) };
    if at.timeline > server.timeline {
        return Err(PostgresError::new(
            PostgresErrorKind::Mismatch,
            format!(
                "the archive is on timeline {}, the server on {} still on {}",
                at.timeline,
                wire.place(),
                server.timeline
            ),
        )
        .with_hint(
            "another server took over: let `connection` name the primary of today; this one must \
             not take writes any more",
        ));
    }
    if at.timeline == server.timeline {
        return Ok(at);
    }
    // A server that took over may have left the timeline before what the old one archived last.
    let history = read_history(wire, server.timeline)?.1;
    let Some(end) = history.end_of(at.timeline) else {
        return Err(PostgresError::new(
            PostgresErrorKind::Mismatch,
            format!(
                "the archive goes on along timeline {}, of which the server on {}, on timeline {}, \
                 does not descend",
                at.timeline,
                wire.place(),
                server.timeline
            ),
        )
        .with_hint("two servers with the same system identifier are at work; find the right one"));
    };
    if size.start_of(at.number).is_none_or(|start| start <= end) {
        return Ok(at);
    }
    let mut later = history.ancestors().iter().map(|switch| switch.timeline);
    let next = later.find(|timeline| *timeline > at.timeline).unwrap_or(server.timeline);
    tracing::warn!(
        timeline = at.timeline,
        left_at = %end,
        "the archive has WAL of the old timeline that the new primary never had"
    );
    Ok(Position { timeline: next, number: end.segment(size) })
}

fn behind_last(inventory: &Inventory) -> Option<Position> {
    let timeline =
        inventory.timelines().into_iter().rfind(|t| inventory.segments(*t).next().is_some())?;
    let (number, _) = inventory.segments(timeline).last()?;
    Some(Position { timeline, number: number + 1 })
}

/// The first segment of which an archive without whole ones has slices.
fn first_slice(archive: &Archive, size: SegmentSize) -> Result<Option<Position>> {
    let files = archive.list(None)?;
    let begun = files.iter().filter_map(|file| {
        let name: SegmentName = Slice::parse(&file.name)?.0.parse().ok()?;
        Some(Position { timeline: name.timeline(), number: name.number(size)? })
    });
    Ok(begun.min_by_key(|at| (at.timeline, at.number)))
}

fn held_back(
    wire: &mut Wire,
    server: &Server,
    options: &ReceiveOptions,
    here: Position,
) -> Result<Position> {
    let Some(slot) = &options.slot else { return Ok(here) };
    // Before 15 a replication connection cannot ask.
    if wire.major() < 15 {
        return Ok(here);
    }
    let doing = format!("look at the slot {}", slot.name);
    let answers =
        wire.query(&doing, &format!("READ_REPLICATION_SLOT {}", slot_name(&slot.name)?))?;
    let row = answers.first().and_then(|answer| answer.rows.first());
    let Some(row) = row.filter(|row| row.text(0).is_some()) else {
        return Err(PostgresError::new(
            PostgresErrorKind::Server,
            format!("there is no replication slot {} on {}", slot.name, wire.place()),
        )
        .with_hint("make it with --create-slot"));
    };
    let lsn = row.text(1).and_then(|text| text.parse::<Lsn>().ok());
    let timeline = row.text(2).and_then(|text| text.parse().ok());
    Ok(match (lsn, timeline) {
        (Some(lsn), Some(timeline)) => {
            Position { timeline, number: lsn.segment(server.segment_size) }
        }
        _ => here,
    })
}

/// Brings the history of a timeline into every archive, before any segment of it.
pub(super) fn history(wire: &mut Wire, timeline: u32, archives: &[Archive]) -> Result<()> {
    if timeline == 1 {
        return Ok(());
    }
    let (content, _) = read_history(wire, timeline)?;
    let name = WalName::History(timeline).to_string();
    let content: &[u8] = &content;
    for pushed in push_to_all(archives, &name, &content, true) {
        pushed?;
    }
    Ok(())
}

fn read_history(wire: &mut Wire, timeline: u32) -> Result<(Vec<u8>, History)> {
    let doing = format!("read the history of timeline {timeline}");
    let answers = wire.query(&doing, &format!("TIMELINE_HISTORY {timeline}"))?;
    let row = answers.first().and_then(|answer| answer.rows.first());
    let Some(content) = row.and_then(|row| row.bytes(1)).map(<[u8]>::to_vec) else {
        return Err(wire.strange(&doing));
    };
    let history = History::parse(timeline, &content).map_err(|error| {
        PostgresError::new(PostgresErrorKind::Damaged, error.to_string()).with_source(error)
    })?;
    Ok((content, history))
}

/// Why the server does not stream from the beginning of this segment on.
pub(super) fn cannot_start(wire: &Wire, name: SegmentName, said: ServerSaid) -> PostgresError {
    let (code, message) = (said.code.clone(), said.message.clone());
    let error = wire.refused(&format!("receive WAL from {name} on"), said);
    match code.as_str() {
        // undefined_file: the segment was removed.
        "58P01" => error.with_hint(
            "use a slot, so that the server keeps what was not received; --skip-gap goes on where \
             the server is now, then make a full backup: nothing recovers across the gap",
        ),
        // object_not_in_prerequisite_state: the slot lost what it should have kept.
        "55000" => error.with_hint(
            "max_slot_wal_keep_size may have ended the slot: --drop-slot, then --create-slot",
        ),
        "42704" => error.with_hint("make the slot with --create-slot"),
        // Another receiver has the slot: it may be our own that the server has not missed yet.
        "55006" => error.with_hint("another receiver uses the slot").transient(),
        _ if message.contains("not in this server's history") => error.with_hint(
            "the archive has WAL that this server never had: it was restored, or another took over \
             and was lost; a restored cluster begins a new timeline by promotion",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_show_writes_them() {
        assert_eq!(size_of("16MB"), Some(16 << 20));
        assert_eq!(size_of("1GB"), Some(1 << 30));
        assert_eq!(size_of("64kB"), Some(64 << 10));
        for wrong in ["", "MB", "16", "16 MB", "x16MB"] {
            assert_eq!(size_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_names_of_synchronous_standbys_are_found_in_every_form() {
        let has = |setting: &str| names(setting).any(|name| name == "backstay");
        for setting in
            ["backstay", "a, backstay", "FIRST 2 (a, backstay)", "ANY 1 (\"backstay\", b)"]
        {
            assert!(has(setting), "{setting}");
        }
        assert!(!has("backstay_2, other"));
    }

    #[test]
    fn a_slot_has_a_name_that_the_server_takes() {
        assert_eq!(slot_name("backstay_1").unwrap(), "\"backstay_1\"");
        for wrong in ["", "Big", "a-b", "a\"; DROP", &"x".repeat(64)] {
            assert!(slot_name(wrong).is_err(), "{wrong}");
        }
    }
}
