//! Healing: what is damaged is found in another copy, or in what is left of it, and stored anew.
//!
//! Nothing is overwritten, and nothing damaged goes before what replaces it is durable and was looked
//! at. Whatever step a repair dies after, what could be restored before can be restored, and the
//! same repair done again goes on.
//!
//! ```text
//! segments   an index segment that is lost is made again from the footers of packs
//! runs       what maintenance goes by (maintenance/mend.rs)
//! verify     says what else is damaged
//! need       what snapshots need that lies in damaged packs only
//! salvage    records of damaged packs that still open are moved to new packs
//! other      content that is lost is read from another repository: the keyed hash of a chunk tells
//!            whether a guess was right, so any guess is safe
//! replay     trees that are lost are written again from the same snapshot there
//! archived   files of the archive, too
//! retire     packs whose content lies elsewhere by now go by a run of maintenance
//! ```

mod archived;
mod need;
mod other;
mod replay;
mod salvage;
mod segments;

use std::collections::HashSet;
use std::sync::Arc;

use serde::Serialize;

use crate::layout::{INDEX, PACKS, SESSIONS, SNAPSHOTS, WAL, Work, parse_pack_key};
use crate::parity;
use crate::repository::Repository;
use crate::{
    Damage, Level, Progress, Result, SessionOptions, SnapshotType, SourceKind, VerifyOptions,
    VerifyReport, check, maintenance,
};
use need::Need;

/// How to repair.
#[derive(Debug, Clone, Default)]
pub struct RepairOptions {
    /// How deep to look for damage.
    pub level: Level,
    /// 0: one for each core.
    pub workers: usize,
    /// Where lost content may be found again: a copy, or another repository of the same sources.
    pub from: Option<Repository>,
}

/// What was damaged, what was done, and what is left.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RepairReport {
    /// What was put right, by object. None is what it was: it is gone, or made anew.
    pub repaired: Vec<Damage>,
    /// What could not be, and why.
    pub unrepaired: Vec<Damage>,
    /// Chunks that were moved out of damaged packs.
    pub chunks_salvaged: u64,
    /// Chunks and archived files that the other repository gave.
    pub fetched: u64,
    /// Damaged packs that were replaced and are gone.
    pub packs_removed: u64,
    /// What a verification says afterwards.
    pub left: VerifyReport,
}

impl RepairReport {
    /// Whether nothing is damaged any more.
    pub fn is_good(&self) -> bool {
        self.left.is_good()
    }

    fn repaired(&mut self, object: &str, what: impl Into<String>) {
        self.repaired.push(Damage { object: object.to_owned(), what: what.into() });
    }

    fn unrepaired(&mut self, object: &str, what: impl Into<String>) {
        self.unrepaired.push(Damage { object: object.to_owned(), what: what.into() });
    }
}

struct Healer<'r> {
    repository: &'r Repository,
    options: &'r RepairOptions,
    progress: &'r Arc<Progress>,
    report: RepairReport,
}

pub(crate) fn repair(
    repository: &Repository,
    options: &RepairOptions,
    progress: &Arc<Progress>,
) -> Result<RepairReport> {
    repository.keys().must_own("repair")?;
    repository.allow_check()?;
    repository.allow_write()?;
    repository.allow_delete()?;
    let mut healer = Healer { repository, options, progress, report: RepairReport::default() };
    healer.run()?;
    let mut report = healer.report;
    for list in [&mut report.repaired, &mut report.unrepaired] {
        list.sort();
        list.dedup();
    }
    Ok(report)
}

impl Healer<'_> {
    fn run(&mut self) -> Result<()> {
        // First what says where everything lies: without it nothing else can be judged.
        self.progress.set_phase("looking at the index");
        let unlisted = segments::mend(self)?;
        archived::go_on(self)?;
        let found = self.verify()?;
        for (object, mended) in parity::mend(self.repository, &found, self.progress)? {
            match mended {
                Ok(what) => self.report.repaired(&object, what),
                Err(why) => self.report.unrepaired(&object, why),
            }
        }
        if found.is_good() {
            self.report.left = found;
            return parity::note(self.repository, true, &mut self.report.left);
        }
        let damaged = damaged_packs(&found);
        self.content(&damaged, &unlisted, &found)?;
        self.runs()?;
        self.sessions(&found)?;
        archived::mend(self, &found)?;
        self.snapshots(&found);
        // And packs that were not listed again, whose content is by now where it is needed.
        let unlisted = unlisted.iter().map(|pack| pack.info.id);
        self.retire(&damaged.into_iter().chain(unlisted).collect())?;
        let mut left = self.verify()?;
        parity::note(self.repository, true, &mut left)?;
        for damage in left.damages.iter().filter(|damage| damage.object.starts_with(INDEX)) {
            if !self.report.knows(&damage.object) {
                self.report.unrepaired(&damage.object, damage.what.clone());
            }
        }
        self.report.left = left;
        Ok(())
    }

    fn verify(&self) -> Result<VerifyReport> {
        let options = VerifyOptions {
            level: self.options.level,
            workers: self.options.workers,
            ..VerifyOptions::default()
        };
        check::verify(self.repository, options, self.progress)
    }

    /// What snapshots need and no pack that is whole holds.
    fn content(
        &mut self,
        damaged: &HashSet<[u8; 16]>,
        unlisted: &[segments::Unlisted],
        found: &VerifyReport,
    ) -> Result<()> {
        let concerned =
            |damage: &Damage| !damage.object.contains('/') || damage.object.starts_with(PACKS);
        if !found.damages.iter().any(concerned) {
            return Ok(());
        }
        self.progress.set_phase("looking for what is needed");
        // What is moved may lead to more that is needed.
        let mut need = Need::of(self.repository, damaged, self.progress)?;
        while !need.at_risk.is_empty() {
            self.progress.set_phase("moving what is right out of damaged packs");
            let moved = salvage::salvage(self, &need, damaged, unlisted)?;
            self.report.chunks_salvaged += moved;
            if moved == 0 {
                break;
            }
            need = Need::of(self.repository, damaged, self.progress)?;
        }
        if need.at_risk.is_empty() {
            return Ok(());
        }
        if let Some(from) = &self.options.from {
            self.progress.set_phase("reading what is lost from the other repository");
            self.report.fetched += other::fetch(self, from, &need, damaged)?;
            need = Need::of(self.repository, damaged, self.progress)?;
            if need.at_risk.iter().any(|(_, kind)| kind.is_metadata()) {
                self.progress.set_phase("writing trees again from the other repository");
                self.report.fetched += replay::replay(self, from, &need, damaged)?;
                need = Need::of(self.repository, damaged, self.progress)?;
                // A tree that is whole again may show content that is lost.
                self.report.fetched += other::fetch(self, from, &need, damaged)?;
                need = Need::of(self.repository, damaged, self.progress)?;
            }
        }
        for (id, kind) in &need.at_risk {
            let where_from = match self.options.from {
                Some(_) => "neither what is left of its pack nor the other repository has it",
                None => {
                    "nothing is left of it here; another repository of the same sources may have it \
                     (--repair-from)"
                }
            };
            let costs = need.costs(id, *kind);
            self.report.unrepaired(
                &format!("chunk {:.16}", id.to_string()),
                format!("{costs}: {where_from}"),
            );
        }
        Ok(())
    }

    fn runs(&mut self) -> Result<()> {
        if maintenance::examine(self.repository)?.is_empty() {
            return Ok(());
        }
        self.repository.must_be_current()?;
        match maintenance::mend_runs(self.repository, self.progress) {
            Ok(done) => {
                for (object, what) in done {
                    self.report.repaired(&object, what);
                }
                Ok(())
            }
            Err(error) if error.is_about_an_object() => {
                self.report.unrepaired("gc/", error.to_string());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Of a session that has ended nobody reads what it said of itself.
    fn sessions(&mut self, found: &VerifyReport) -> Result<()> {
        let ended = maintenance::ended_now(self.repository)?;
        for damage in found.damages.iter().filter(|d| d.object.starts_with(SESSIONS)) {
            match Work::from_session_key(&damage.object) {
                Some(work) if ended.contains(&work) => {
                    self.repository.store().delete(&damage.object)?;
                    self.report.repaired(&damage.object, "removed: that session has ended");
                }
                _ => self.report.unrepaired(
                    &damage.object,
                    "its session has not ended; maintenance gives it up when it is silent for too long",
                ),
            }
        }
        Ok(())
    }

    /// Says what can be done about what this does not do.
    fn snapshots(&mut self, found: &VerifyReport) {
        for damage in &found.damages {
            let object = damage.object.as_str();
            if object.starts_with(SNAPSHOTS) {
                let id = object.rsplit('/').next().unwrap_or_default();
                self.report.unrepaired(
                    object,
                    format!(
                        "what it said is in no other object: put it back from a copy of the store, or \
                         give it up with `backstay forget {id:.8}`"
                    ),
                );
            } else if object.starts_with("keys/") {
                self.report.unrepaired(
                    object,
                    "remove that slot with `backstay key remove`, and add the key again",
                );
            } else if object == "format" {
                self.report.unrepaired(
                    object,
                    "put it back from a copy of the store now, while a program has the repository open",
                );
            }
        }
    }

    /// Removes damaged packs in which nothing is needed any more.
    fn retire(&mut self, damaged: &HashSet<[u8; 16]>) -> Result<()> {
        if damaged.is_empty() {
            return Ok(());
        }
        self.progress.set_phase("removing damaged packs");
        let there = |repository: &Repository| -> Result<HashSet<[u8; 16]>> {
            let listed = repository.store().list(PACKS)?;
            let ids = listed.iter().filter_map(|o| Some(parse_pack_key(&o.key)?.1));
            Ok(ids.filter(|id| damaged.contains(id)).collect())
        };
        let before = there(self.repository)?;
        let gone = before.len() < damaged.len();
        match maintenance::retire(self.repository, damaged, gone, self.progress) {
            Ok(through) => {
                let after = there(self.repository)?;
                self.report.packs_removed = (before.len() - after.len().min(before.len())) as u64;
                let index = self.repository.reload_index()?;
                let left = |id: &[u8; 16]| after.contains(id) || (!through && damaged.contains(id));
                for (_, pack) in index.packs().filter(|(_, pack)| left(&pack.id)) {
                    let why = if through {
                        "something in it is needed that is nowhere else"
                    } else {
                        "its content is safe in other packs; it goes with the next maintenance after \
                         all sessions at work have ended"
                    };
                    self.report.unrepaired(&pack.key(), why);
                }
                Ok(())
            }
            // What is lost for good hides what else is needed: nothing goes then.
            Err(error) if error.is_about_an_object() => {
                self.report.unrepaired("damaged packs", format!("they stay: {error}"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// A session that writes what is healed.
    fn session_options(&self) -> SessionOptions {
        SessionOptions {
            workers: self.options.workers,
            progress: self.progress.clone(),
            ..SessionOptions::new("repair", SourceKind::Files, SnapshotType::Full)
        }
    }
}

impl RepairReport {
    fn knows(&self, object: &str) -> bool {
        self.repaired.iter().chain(&self.unrepaired).any(|damage| damage.object == object)
    }
}

fn damaged_packs(found: &VerifyReport) -> HashSet<[u8; 16]> {
    let keys = found.damages.iter().filter_map(|damage| parse_pack_key(&damage.object));
    keys.map(|(_, id)| id).collect()
}

/// Whether damage is of an archived file.
fn is_archived(damage: &Damage) -> bool {
    damage.object.starts_with(WAL)
}
