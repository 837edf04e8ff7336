//! A record in words, in the form of `pg_waldump`.

use std::fmt::Write as _;

use super::effect::{Effect, FORK_FREE_SPACE, FORK_INIT, FORK_MAIN, FORK_VISIBILITY, WalLevel};
use super::kind::{kind_name, manager_name};
use super::record::{BlockReference, Event, Record, Relation};
use super::scan::Volume;

/// Which records are shown.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Any of these resource managers; empty for all.
    pub managers: Vec<u8>,
    /// Those that name a block of it, or make, cut or remove it.
    pub relation: Option<Relation>,
    pub xid: Option<u32>,
}

impl Filter {
    pub fn takes(&self, record: &Record<'_>) -> bool {
        if !self.managers.is_empty() && !self.managers.contains(&record.manager) {
            return false;
        }
        if self.xid.is_some_and(|xid| xid != record.xid) {
            return false;
        }
        self.relation.is_none_or(|relation| touches(record, relation))
    }
}

fn touches(record: &Record<'_>, relation: Relation) -> bool {
    let mut found = false;
    let _ = record.each_block(|block| found |= block.relation == relation);
    found
        || match record.effect() {
            Ok(Some(
                Effect::ForkCreated { relation: one, .. } | Effect::Truncated { relation: one, .. },
            )) => one == relation,
            Ok(Some(Effect::Removed(all))) => all.contains(&relation),
            _ => false,
        }
}

/// The name of a fork.
pub fn fork_name(fork: u8) -> &'static str {
    match fork {
        FORK_MAIN => "main",
        FORK_FREE_SPACE => "fsm",
        FORK_VISIBILITY => "vm",
        FORK_INIT => "init",
        _ => "unknown",
    }
}

/// One line about a record.
pub fn line(record: &Record<'_>) -> String {
    let mut volume = Volume::default();
    volume.add(record);
    let mut line = format!(
        "rmgr: {:<11} len (rec/tot): {:>6}/{:>6}, tx: {:>10}, lsn: {}, prev {}, desc: {}",
        manager_name(record.manager),
        volume.bytes,
        record.length,
        record.xid,
        record.lsn,
        record.previous,
        kind_name(record.manager, record.info, record.version),
    );
    if let Some(more) = meaning(record) {
        let _ = write!(line, " {more}");
    }
    match record.blocks() {
        None => line.push_str(", its headers make no sense"),
        Some(blocks) => {
            for (number, block) in blocks.iter().enumerate() {
                let _ = write!(line, ", blkref #{number}: {}", block_text(block));
            }
        }
    }
    line
}

fn block_text(block: &BlockReference) -> String {
    let mut text = format!("rel {}", block.relation);
    if block.fork != FORK_MAIN {
        let _ = write!(text, " fork {}", fork_name(block.fork));
    }
    let _ = write!(text, " blk {}", block.block);
    match block.image {
        Some(image) if image.applied => text.push_str(" FPW"),
        Some(_) => text.push_str(" FPW for WAL verification"),
        None => {}
    }
    text
}

/// What is known of a record beyond its kind.
pub fn meaning(record: &Record<'_>) -> Option<String> {
    let effect = match record.effect() {
        Ok(effect) => effect.map(effect_text),
        Err(error) => return Some(format!("({error})")),
    };
    let event = match record.event() {
        Some(Event::TransactionEnd(end)) if end.prepared => {
            Some(format!("{}: {}", end.xid, end.time))
        }
        Some(Event::TransactionEnd(end)) => Some(end.time.to_string()),
        Some(Event::RestorePoint { name, .. }) => Some(name.escape_debug().to_string()),
        Some(Event::Checkpoint { redo, timeline, previous_timeline, .. }) => {
            Some(format!("redo {redo}; tli {timeline}; prev tli {previous_timeline}"))
        }
        Some(Event::EndOfRecovery { timeline, previous_timeline, time }) => {
            Some(format!("tli {timeline}; prev tli {previous_timeline}; {time}"))
        }
        Some(Event::Switch) | None => None,
    };
    match (event, effect) {
        (Some(event), Some(effect)) => Some(format!("{event}; {effect}")),
        (event, effect) => event.or(effect),
    }
}

fn effect_text(effect: Effect) -> String {
    let list = |words: Vec<String>| words.join(" ");
    match effect {
        Effect::DatabaseCreated { tablespace, database } => format!("db {tablespace}/{database}"),
        Effect::DatabaseDropped { database, tablespaces } => format!(
            "db {}",
            list(tablespaces.iter().map(|space| format!("{space}/{database}")).collect())
        ),
        Effect::TablespaceCreated(tablespace) | Effect::TablespaceDropped(tablespace) => {
            format!("tablespace {tablespace}")
        }
        Effect::ForkCreated { relation, fork } if fork == FORK_MAIN => format!("rel {relation}"),
        Effect::ForkCreated { relation, fork } => {
            format!("rel {relation} fork {}", fork_name(fork))
        }
        Effect::Truncated { relation, blocks, .. } => format!("rel {relation} to {blocks} blocks"),
        Effect::Removed(relations) => {
            format!("rels: {}", list(relations.iter().map(Relation::to_string).collect()))
        }
        Effect::MapReplaced { tablespace, database } => format!("db {tablespace}/{database}"),
        Effect::Level(level) => format!(
            "wal_level {}",
            match level {
                WalLevel::Minimal => "minimal",
                WalLevel::Replica => "replica",
                WalLevel::Logical => "logical",
            }
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wal::{Changes, Lsn};

    proptest! {
        /// Whatever a record with the right checksum holds, it is understood or refused.
        #[test]
        fn any_record_is_read_or_refused(
            manager in prop_oneof![0u8..23, any::<u8>()],
            info in any::<u8>(),
            version in 13u32..=18,
            head in prop::sample::select(vec![0u8, 1, 32, 33, 252, 253, 254, 255]),
            rest in prop::collection::vec(any::<u8>(), 0..120),
            main in any::<bool>(),
        ) {
            let mut body = vec![head];
            if main {
                // Main data alone, of the right length: its content decides.
                body = vec![255, rest.len() as u8];
            }
            body.extend(rest);
            let record = Record {
                lsn: Lsn(40),
                end: Lsn(80),
                previous: Lsn(0),
                xid: 7,
                manager,
                info,
                length: body.len() as u32 + 24,
                version,
                body: &body,
            };
            prop_assert!(!line(&record).is_empty());
            let _ = (record.event(), record.main_data(), record.origin_and_top_level());
            let understood = record.effect().is_ok() && record.blocks().is_some();
            prop_assert_eq!(Changes::new().add(&record).is_ok(), understood);
        }
    }
}
