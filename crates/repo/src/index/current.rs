//! Which objects of a store are its index.
//!
//! Sessions write segments of level 0. Maintenance merges them into runs: a *head*
//! (`index/heads/<run>`) names the parts of the runs that stand for everything before it, and the
//! segments of level 0 that they took in. What counts is the newest head and the segments of level 0
//! that it does not name.

use std::collections::HashSet;

use backstay_store::ObjectMeta;
use serde::{Deserialize, Deserializer, Serialize};

use super::RELOADS;
use crate::crypto::{Class, Keys};
use crate::layout::{HEADS, INDEX, Work, parse_part_key, run_of};
use crate::{RepoError, RepoErrorKind, Result, Store};

/// Which objects of the store are its index.
#[derive(Debug, Clone, Default)]
pub(crate) struct Current {
    /// The run of the newest head.
    pub head: Option<u64>,
    /// Segments that count.
    pub segments: Vec<ObjectMeta>,
    /// What they have replaced.
    pub obsolete: Vec<String>,
    /// That the newest head does not open, and so all segments count.
    pub(super) problem: Option<String>,
    /// Packs that were removed and that runs name all the same.
    pub(super) gone: HashSet<[u8; 16]>,
}

/// Whether an object that does not count was replaced by the head of the run `number`: not merged
/// segments whose own head is still to come, and nothing that is not ours.
fn is_replaced(key: &str, number: u64) -> bool {
    if let Some(run) = run_of(key) {
        return run < number;
    }
    let merged = key.strip_prefix(INDEX).and_then(|rest| rest.strip_prefix("1/"));
    let run = merged.and_then(|rest| rest.split('/').next()?.parse::<u64>().ok());
    run.is_some_and(|run| run <= number) || Work::from_index_key(key).is_some()
}

/// The run of the newest head.
pub(crate) fn newest_head(store: &Store) -> Result<Option<u64>> {
    Ok(store.list(HEADS)?.iter().filter_map(|object| run_of(&object.key)).max())
}

pub(super) fn replaced() -> RepoError {
    RepoError::new(RepoErrorKind::Busy, "the index was replaced each time it was read")
        .with_hint("run it again; if it goes on, too many runs of maintenance are at work")
}

/// What a head says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Parts of runs.
    pub segments: Vec<String>,
    /// Segments of level 0 that they took in.
    pub absorbed: Vec<String>,
    /// Packs that were removed and that these runs name all the same: what they say of them does not
    /// count.
    #[serde(deserialize_with = "none_in_old_ones")]
    pub gone: Vec<[u8; 16]>,
}

impl Head {
    /// How many runs it names. What was merged before there were runs counts for itself.
    pub fn runs(&self) -> usize {
        let runs = self.segments.iter().map(|key| parse_part_key(key).unwrap_or(key));
        runs.collect::<HashSet<_>>().len()
    }
}

/// A body ends before `gone` where a head is older than that.
fn none_in_old_ones<'de, D: Deserializer<'de>>(body: D) -> Result<Vec<[u8; 16]>, D::Error> {
    Ok(Vec::deserialize(body).unwrap_or_default())
}

impl Current {
    /// A list is not of one moment: while it is read, a new head may come and what it replaced may
    /// go. So the newest head is looked up before and after; where it is the same, nothing that
    /// counts was removed in between.
    pub fn read(store: &Store, keys: &Keys) -> Result<Self> {
        let mut before = newest_head(store)?;
        for _ in 0..RELOADS {
            let listed = store.list(INDEX)?;
            let after = newest_head(store)?;
            if before == after {
                return Self::of(store, keys, after, listed);
            }
            before = after;
        }
        Err(replaced())
    }

    fn of(
        store: &Store,
        keys: &Keys,
        newest: Option<u64>,
        listed: Vec<ObjectMeta>,
    ) -> Result<Self> {
        let Some(number) = newest else {
            return Ok(Self { segments: listed, ..Self::default() });
        };
        let key = crate::layout::head_key(number);
        let head = store.read(&key).map_err(RepoError::from).and_then(|object| {
            crate::maintenance::open::<Head>(keys, Class::Maintenance, &key, &object)
        });
        let head = match head {
            Ok(head) => head,
            Err(error) if error.is_about_an_object() => {
                tracing::warn!(%error, "which segments are the index cannot be read: all are taken");
                let segments = listed.into_iter().filter(|o| !o.key.starts_with(HEADS)).collect();
                let problem = Some(error.to_string());
                // Nothing is known to be replaced.
                return Ok(Self { head: Some(number), segments, problem, ..Self::default() });
            }
            Err(error) => return Err(error),
        };
        let merged: HashSet<&str> = head.segments.iter().map(String::as_str).collect();
        let absorbed: HashSet<&str> = head.absorbed.iter().map(String::as_str).collect();
        let gone = head.gone.iter().copied().collect();
        let mut current = Self { head: Some(number), gone, ..Self::default() };
        for object in listed {
            let counts = match Work::from_index_key(&object.key) {
                Some(_) => !absorbed.contains(object.key.as_str()),
                None => merged.contains(object.key.as_str()),
            };
            if counts {
                current.segments.push(object);
            } else if is_replaced(&object.key, number) {
                current.obsolete.push(object.key);
            }
        }
        // One that is named and not listed is damage, and found when it is read.
        let there: HashSet<&str> = current.segments.iter().map(|o| o.key.as_str()).collect();
        let missing: Vec<ObjectMeta> = merged
            .iter()
            .filter(|key| !there.contains(**key))
            .map(|key| ObjectMeta { key: (*key).to_owned(), size: 0, modified: None })
            .collect();
        current.segments.extend(missing);
        Ok(current)
    }
}
