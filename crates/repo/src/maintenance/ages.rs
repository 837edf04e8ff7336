//! Packs of content that have reached an age go into a colder class, where the store can move them in
//! place. Lists of files and all else that every command reads stay where they are.
//!
//! A clock says when; nothing is removed or trusted by it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::locked::each;
use crate::crypto::Class;
use crate::layout::PACKS;
use crate::repository::Repository;
use crate::{Progress, Result};

/// Moves what is due; how many packs, and how many bytes they are.
pub(super) fn move_down(
    repository: &Repository,
    dry_run: bool,
    progress: &Arc<Progress>,
) -> Result<(u64, u64)> {
    let (store, now) = (repository.store(), repository.environment().now());
    if !store.moves_by_age() {
        return Ok((0, 0));
    }
    progress.set_phase("moving what is old into a colder class");
    let index = repository.reload_index()?;
    let of_data: HashMap<String, u64> = index
        .packs()
        .filter(|(_, pack)| pack.class == Class::DataPack)
        .map(|(_, pack)| (pack.key(), pack.size))
        .collect();
    let objects: Vec<(String, Duration)> = store
        .list(PACKS)?
        .into_iter()
        .filter(|object| of_data.contains_key(&object.key))
        .filter_map(|object| {
            let age = now.duration_since(object.modified?).ok()?;
            Some((object.key, age))
        })
        .collect();
    let moves = store.due(PACKS, &objects)?;
    if !dry_run {
        each(store, &moves, progress, |one| match store.set_class(one) {
            // Another run has removed it since.
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        })?;
    }
    let bytes = moves.iter().filter_map(|one| of_data.get(&one.key)).sum();
    Ok((moves.len() as u64, bytes))
}
