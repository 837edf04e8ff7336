//! How many names a file has. A tree says of a second name which file it stands for, and of a file
//! nothing about its other names: they are counted by reading all nodes once, in the background.
//!
//! What a node says of links is kept by its id, so that of the next snapshot only the nodes that
//! changed are read.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::{Core, MAX_HEIGHT, View};
use crate::entry::EntryKind;
use crate::tree::ParsedNode;
use crate::{ObjectId, Result, Tree};

/// How long those who ask wait for the count of a snapshot, all together.
const PATIENCE: Duration = Duration::from_secs(5);

/// For each leaf that was read, the files that it has further names of.
pub(super) type LeafLinks = HashMap<ObjectId, Arc<[Box<[u8]>]>>;

#[derive(Default)]
pub(super) struct Links {
    state: Mutex<State>,
    counted: Condvar,
}

#[derive(Default)]
struct State {
    started: Option<Instant>,
    done: bool,
    /// Further names, by the path of the file. Files that have none are not in it.
    names: HashMap<Box<[u8]>, u32>,
}

impl Links {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn of(self: &Arc<Self>, view: &View, path: &[u8]) -> Option<u32> {
        let mut state = self.state();
        let started = match state.started {
            Some(started) => started,
            None => {
                let now = Instant::now();
                state.started = Some(now);
                let (links, core) = (self.clone(), view.browser.core.clone());
                let (tree, root) = (view.tree.clone(), view.root);
                let counter = std::thread::Builder::new().name("count-links".into());
                let thread = counter.spawn(move || {
                    if let Err(error) = links.count(&core, &tree, root, 0) {
                        tracing::warn!(%error, "hard links could not be counted");
                    }
                    links.state().done = true;
                    links.counted.notify_all();
                });
                state.done = thread.is_err();
                now
            }
        };
        while !state.done {
            let left = PATIENCE.checked_sub(started.elapsed())?;
            let waited = self.counted.wait_timeout(state, left);
            state = waited.unwrap_or_else(|e| e.into_inner()).0;
        }
        Some(state.names.get(path).copied().unwrap_or(0).saturating_add(1))
    }

    /// Adds what is below a node. What cannot be read has no links that anybody could see.
    fn count(&self, core: &Core, tree: &Tree, id: ObjectId, height: usize) -> Result<()> {
        if height >= MAX_HEIGHT || core.stopped.load(Relaxed) {
            return Ok(());
        }
        let known = || core.links.lock().unwrap_or_else(|e| e.into_inner());
        let remembered = known().get(&id).cloned();
        if let Some(links) = remembered {
            self.add(&links);
            return Ok(());
        }
        // Not through the cache: leaves that nobody looked at must not push out those in use.
        let node = match tree.node(&id) {
            Err(error) if error.is_about_an_object() => return Ok(()),
            node => node?,
        };
        match node {
            ParsedNode::Inner(children) => {
                for (_, child) in children {
                    self.count(core, tree, child, height + 1)?;
                }
            }
            ParsedNode::Leaf(entries) => {
                let links: Arc<[Box<[u8]>]> = entries
                    .into_iter()
                    .filter_map(|entry| match entry.kind {
                        EntryKind::Hardlink { to } => Some(to.into()),
                        _ => None,
                    })
                    .collect();
                self.add(&links);
                known().insert(id, links);
            }
        }
        Ok(())
    }

    fn add(&self, links: &[Box<[u8]>]) {
        if links.is_empty() {
            return;
        }
        let mut state = self.state();
        for to in links {
            *state.names.entry(to.clone()).or_default() += 1;
        }
    }
}
