//! The folders above the snapshots, as they follow from the list of snapshots. Paths are those in
//! the mount, without a leading slash; the root is the empty path.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backstay_repo::Snapshot;
use jiff::Timestamp;

use crate::names::{day_name, end_of, source_name, time_name};

pub const SOURCES: &str = "sources";
pub const SNAPSHOTS: &str = "snapshots";
pub const AT: &str = "at";
pub const LATEST: &str = "latest";

/// What is at a path above the files.
#[derive(Debug, Clone)]
pub enum Upper {
    /// With the time of the newest snapshot that it is about.
    Folder(Timestamp),
    Link {
        target: String,
        time: Timestamp,
    },
    Snapshot(Arc<Snapshot>),
}

/// All snapshots of a repository at one moment.
#[derive(Debug, Default)]
pub struct Catalog {
    /// By the name of the source's folder and by that of the snapshot's.
    sources: BTreeMap<String, BTreeMap<String, Arc<Snapshot>>>,
    /// By the name of the link to each; the folder of its source, and its own.
    ids: BTreeMap<String, (String, String)>,
    /// Entries of all files, and what all of it takes in the store.
    pub files: u64,
    pub bytes: u64,
}

impl Catalog {
    pub fn new(snapshots: Vec<Snapshot>) -> Self {
        let mut it = Self::default();
        let snapshots: Vec<Arc<Snapshot>> = snapshots.into_iter().map(Arc::new).collect();
        let mut same: BTreeMap<(&str, String), u32> = BTreeMap::new();
        let mut short: BTreeMap<&str, u32> = BTreeMap::new();
        for snapshot in &snapshots {
            *same.entry((&snapshot.source, time_name(snapshot.time))).or_default() += 1;
            *short.entry(snapshot.short_id()).or_default() += 1;
        }
        for snapshot in &snapshots {
            let mut name = time_name(snapshot.time);
            if same.get(&(&snapshot.source, name.clone())).is_some_and(|count| *count > 1) {
                // All of them, so that a name never comes to mean another snapshot.
                name = format!("{name}-{}", snapshot.short_id());
            }
            if it.sources.get(&source_name(&snapshot.source)).is_some_and(|s| s.contains_key(&name))
            {
                name = format!("{name}-{}", snapshot.id);
            }
            let id = match short.get(snapshot.short_id()) {
                Some(1) => snapshot.short_id(),
                _ => &snapshot.id,
            };
            let source = source_name(&snapshot.source);
            it.ids.insert(id.to_owned(), (source.clone(), name.clone()));
            it.sources.entry(source).or_default().insert(name, snapshot.clone());
            it.files = it.files.saturating_add(snapshot.stats.files + snapshot.stats.directories);
            it.bytes = it.bytes.saturating_add(snapshot.stats.stored_bytes);
        }
        it
    }

    pub fn snapshots(&self) -> impl Iterator<Item = &Arc<Snapshot>> {
        self.sources.values().flat_map(BTreeMap::values)
    }

    fn newest_time<'s>(snapshots: impl Iterator<Item = &'s Arc<Snapshot>>) -> Timestamp {
        snapshots.map(|snapshot| snapshot.time).max().unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The newest snapshot of a source before a moment, and its folder.
    fn newest(&self, source: &str, before: Timestamp) -> Option<(&String, &Arc<Snapshot>)> {
        let snapshots = self.sources.get(source)?.iter();
        snapshots
            .filter(|(_, snapshot)| snapshot.time < before)
            .max_by_key(|(_, snapshot)| (snapshot.time, &snapshot.id))
    }

    fn exists_before(&self, moment: Timestamp) -> bool {
        self.snapshots().any(|snapshot| snapshot.time < moment)
    }

    /// What is at a path.
    pub fn look(&self, path: &str) -> Option<Upper> {
        let parts: Vec<&str> = path.split('/').collect();
        let all = || Upper::Folder(Self::newest_time(self.snapshots()));
        let link = |target: String, time| Some(Upper::Link { target, time });
        match parts.as_slice() {
            [""] | [SOURCES | SNAPSHOTS | AT] => Some(all()),
            [SOURCES, source] => {
                let snapshots = self.sources.get(*source)?;
                Some(Upper::Folder(Self::newest_time(snapshots.values())))
            }
            [SOURCES, source, LATEST] => {
                let (name, snapshot) = self.newest(source, Timestamp::MAX)?;
                link(name.clone(), snapshot.time)
            }
            [SOURCES, source, name] => {
                Some(Upper::Snapshot(self.sources.get(*source)?.get(*name)?.clone()))
            }
            [SNAPSHOTS, id] => {
                let (source, name) = self.of_id(id)?;
                let time = self.sources.get(source)?.get(name)?.time;
                link(format!("../{SOURCES}/{source}/{name}"), time)
            }
            [AT, moment] => {
                let end = end_of(moment)?;
                let before = self.snapshots().filter(|snapshot| snapshot.time < end);
                self.exists_before(end).then(|| Upper::Folder(Self::newest_time(before)))
            }
            [AT, moment, source] => {
                let (name, snapshot) = self.newest(source, end_of(moment)?)?;
                link(format!("../../{SOURCES}/{source}/{name}"), snapshot.time)
            }
            _ => None,
        }
    }

    /// The only snapshot whose id starts so.
    fn of_id(&self, prefix: &str) -> Option<&(String, String)> {
        if let Some(found) = self.ids.get(prefix) {
            return Some(found);
        }
        if prefix.len() < 4 {
            return None;
        }
        let mut found = self.ids.values().filter(|(source, name)| {
            let snapshot = self.sources.get(source).and_then(|snapshots| snapshots.get(name));
            snapshot.is_some_and(|snapshot| snapshot.id.starts_with(prefix))
        });
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// The names in a folder, in order.
    pub fn list(&self, path: &str) -> Option<Vec<String>> {
        let parts: Vec<&str> = path.split('/').collect();
        Some(match parts.as_slice() {
            [""] => [AT, SNAPSHOTS, SOURCES].map(String::from).into(),
            [SOURCES] => self.sources.keys().cloned().collect(),
            [SOURCES, source] => {
                let names = self.sources.get(*source)?.keys().cloned();
                names.chain([LATEST.to_owned()]).collect()
            }
            [SNAPSHOTS] => self.ids.keys().cloned().collect(),
            [AT] => {
                let days: BTreeSet<String> =
                    self.snapshots().map(|snapshot| day_name(snapshot.time)).collect();
                days.into_iter().collect()
            }
            [AT, moment] => {
                let end = end_of(moment)?;
                let sources = self.sources.keys();
                sources.filter(|source| self.newest(source, end).is_some()).cloned().collect()
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: &str, source: &str, time: &str) -> Snapshot {
        let mut snapshot: Snapshot = serde_json::from_value(serde_json::json!({
            "source": source, "kind": "files", "type": "full", "time": time, "finished": time,
            "host": "here", "version": "0", "root": "00".repeat(32), "stats": {},
        }))
        .unwrap();
        snapshot.id = format!("{id:0<32}");
        snapshot
    }

    fn catalog() -> Catalog {
        Catalog::new(vec![
            snapshot("aaaa", "etc", "2026-11-20T23:59:59.5Z"),
            snapshot("bbbb", "etc", "2026-11-21T10:00:00Z"),
            snapshot("cccc", "etc", "2026-11-21T10:00:00.25Z"),
            snapshot("dddd", "a/b", "2026-11-21T12:00:00Z"),
            snapshot("dddd0000ee", "shop", "2026-11-22T12:00:00Z"),
        ])
    }

    fn target(path: &str) -> String {
        match catalog().look(path) {
            Some(Upper::Link { target, .. }) => target,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn folders_and_what_is_in_them() {
        let catalog = catalog();
        let list = |path: &str| catalog.list(path).unwrap().join(" ");
        assert_eq!(list(""), "at snapshots sources");
        assert_eq!(list("sources"), "a%2Fb etc shop");
        assert_eq!(
            list("sources/etc"),
            "2026-11-20T23-59-59Z 2026-11-21T10-00-00Z-bbbb0000 2026-11-21T10-00-00Z-cccc0000 latest"
        );
        // Two of them begin alike.
        let [a, b] = ["dddd", "dddd0000ee"].map(|id| format!("{id:0<32}"));
        assert_eq!(list("snapshots"), format!("aaaa0000 bbbb0000 cccc0000 {a} {b}"));
        assert_eq!(list("at"), "2026-11-20 2026-11-21 2026-11-22");
        assert_eq!(list("at/2026-11-20"), "etc");
        assert_eq!(list("at/2026-11-21"), "a%2Fb etc");
        assert_eq!(list("at/2027-01-01T00-00"), "a%2Fb etc shop");
        for none in ["x", "sources/x", "at/x", "sources/etc/latest", "snapshots/aaaa0000"] {
            assert!(catalog.list(none).is_none(), "{none}");
        }
        // All that is listed is there.
        let mut waiting = vec![String::new()];
        while let Some(folder) = waiting.pop() {
            for name in catalog.list(&folder).unwrap() {
                let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                if let Upper::Folder(_) = catalog.look(&path).unwrap() {
                    waiting.push(path);
                }
            }
        }
    }

    #[test]
    fn links_lead_to_snapshots() {
        assert_eq!(target("sources/etc/latest"), "2026-11-21T10-00-00Z-cccc0000");
        assert_eq!(target("snapshots/aaaa"), "../sources/etc/2026-11-20T23-59-59Z");
        assert_eq!(target("snapshots/dddd0000ee"), "../sources/shop/2026-11-22T12-00-00Z");
        assert_eq!(target("snapshots/dddd"), "None");
        assert_eq!(target("snapshots/aaa"), "None");
        assert_eq!(target("at/2026-11-20/etc"), "../../sources/etc/2026-11-20T23-59-59Z");
        assert_eq!(target("at/2026-11-20T23-59-59Z/etc"), "../../sources/etc/2026-11-20T23-59-59Z");
        assert_eq!(target("at/2026-11-20T23-58-00Z/etc"), "None");
        assert_eq!(target("at/2030-01-01/etc"), "../../sources/etc/2026-11-21T10-00-00Z-cccc0000");
        let Some(Upper::Snapshot(found)) = catalog().look("sources/etc/2026-11-20T23-59-59Z")
        else {
            panic!("a snapshot is there");
        };
        assert!(found.id.starts_with("aaaa"));
    }

    #[test]
    fn a_repository_without_snapshots_has_its_folders() {
        let catalog = Catalog::new(Vec::new());
        assert_eq!(catalog.list("").unwrap().len(), 3);
        assert!(catalog.list("sources").unwrap().is_empty());
        assert!(catalog.look("at/2026-11-20").is_none());
    }
}
