//! Checking what a repository holds, at three depths.
//!
//! - `basic`: every object that something refers to is there and has its size. Trees are read.
//! - `standard`: also the SHA-256 of every pack, and every index segment, snapshot and archived file
//!   is opened.
//! - `thorough`: also every chunk is opened, decompressed and hashed again, and every pack's footer
//!   agrees with the index; and every cell of a database file is put together and hashed again.

mod cells;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::codec::Codec;
use crate::crypto::{Class, class_of};
use crate::entry::{Body, EntryKind};
use crate::id::ObjectId;
use crate::index::{Current, Head, Index, PackInfo, check_part, open_object};
use crate::layout::{PACKS, SESSIONS, SNAPSHOTS, Work, head_key, parse_pack_key, parse_part_key};
use crate::maintenance;
use crate::pack::read_footer;
use crate::repository::{Repository, open_record};
use crate::session::{content_id, workers};
use crate::{Compression, Kind, Progress, RepoError, Result, Snapshot};

/// Packs whose entries in the index are in memory together while their content is checked.
const PACKS_AT_ONCE: usize = 1 << 16;

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    Basic,
    #[default]
    Standard,
    Thorough,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Basic => "basic",
            Self::Standard => "standard",
            Self::Thorough => "thorough",
        })
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        [Self::Basic, Self::Standard, Self::Thorough]
            .into_iter()
            .find(|level| level.to_string() == s)
            .ok_or_else(|| format!("{s:?} is no level; say basic, standard or thorough"))
    }
}

/// What to check.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    pub level: Level,
    /// Empty: all, and then everything else in the store too.
    pub snapshots: Vec<Snapshot>,
    /// Percent of the packs and archived files to read, above `basic`; which ones changes from day
    /// to day so that repeated runs cover all.
    pub sample: Option<f64>,
    /// 0: one for each core.
    pub workers: usize,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Damage {
    /// Its key in the store, or what else names it.
    pub object: String,
    pub what: String,
}

/// What was checked and what was found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct VerifyReport {
    pub level: Level,
    /// Objects looked at.
    pub objects: u64,
    /// Bytes read from the store.
    pub bytes: u64,
    /// Chunks opened, decompressed and hashed.
    pub chunks: u64,
    pub snapshots: u64,
    /// Files of archives looked at.
    pub archived: u64,
    /// Percent of what the level covers in full.
    pub covered: f64,
    pub damages: Vec<Damage>,
    /// Objects that the store keeps in an archive: whether they are good is unknown.
    pub unread: Vec<String>,
    /// Objects without the parity that the repository is to have: nothing is wrong with them.
    pub without_parity: u64,
}

impl VerifyReport {
    pub fn is_good(&self) -> bool {
        self.damages.is_empty()
    }
}

struct Check<'r> {
    repository: &'r Repository,
    options: &'r VerifyOptions,
    progress: &'r Progress,
    damages: Mutex<Vec<Damage>>,
    unread: Mutex<Vec<String>>,
    objects: AtomicU64,
    bytes: AtomicU64,
    chunks: AtomicU64,
}

impl Check<'_> {
    fn damage(&self, object: &str, what: impl fmt::Display) {
        let damage = Damage { object: object.to_owned(), what: what.to_string() };
        self.damages.lock().unwrap_or_else(|e| e.into_inner()).push(damage);
    }

    /// Notes an error that is damage; passes on any other.
    fn judge<T>(&self, object: &str, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_about_an_object() => {
                self.damage(object, error);
                Ok(None)
            }
            // What nobody can read now is not known to be damaged, nor to be good.
            Err(error) if error.is_of_an_archived_object() => {
                let mut unread = self.unread.lock().unwrap_or_else(|e| e.into_inner());
                unread.push(object.to_owned());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn read(&self, key: &str) -> Result<bytes::Bytes> {
        let object = self.repository.store().read(key)?;
        self.objects.fetch_add(1, Relaxed);
        self.bytes.fetch_add(object.len() as u64, Relaxed);
        Ok(object)
    }

    /// Whether an object whose file has another length is read with that of `size` all the same.
    fn parity_gives(&self, key: &str, size: u64) -> bool {
        let store = self.repository.store();
        store.parity().is_some() && store.read(key).is_ok_and(|body| body.len() as u64 == size)
    }

    /// Runs `work` over `items` on several threads.
    fn parallel<T: Sync>(&self, items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let failed = || failure.lock().unwrap_or_else(|e| e.into_inner());
        std::thread::scope(|scope| {
            for _ in 0..workers(self.options.workers).min(items.len()) {
                scope.spawn(|| {
                    while let Some(item) = items.get(next.fetch_add(1, Relaxed)) {
                        if failed().is_some() {
                            return;
                        }
                        if let Err(error) = self.progress.check().and_then(|()| work(item)) {
                            failed().get_or_insert(error);
                        }
                    }
                });
            }
        });
        let failure = failed().take();
        failure.map_or(Ok(()), Err)
    }

    /// Whether a sample has the object `name`.
    fn sampled(&self, name: &str) -> bool {
        let Some(percent) = self.options.sample else { return true };
        let day = self.repository.environment().now();
        let day = day.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs() / 86_400);
        let hash = blake3::hash(name.as_bytes());
        let place = u64::from(u16::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1]]));
        // The window moves by its own width each day.
        let width = (percent.clamp(0.0, 100.0) * 655.36) as u64;
        (place + 65_536 - (day * width) % 65_536) % 65_536 < width
    }
}

pub(crate) fn verify(
    repository: &Repository,
    options: VerifyOptions,
    progress: &Progress,
) -> Result<VerifyReport> {
    repository.allow_check()?;
    let check = Check {
        repository,
        options: &options,
        progress,
        damages: Mutex::default(),
        unread: Mutex::default(),
        objects: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        chunks: AtomicU64::new(0),
    };
    let everything = options.snapshots.is_empty();
    if everything {
        progress.set_phase("checking keys");
        let objects = repository.check_keys(|key, error| check.damage(key, error))?;
        check.objects.fetch_add(objects, Relaxed);
    }
    progress.set_phase("reading the index");
    let Some(index) = load_index(&check)? else {
        return Ok(report(check, 0, 0, 0.0));
    };
    let store = repository.store();
    let present: HashMap<String, u64> =
        store.list(PACKS)?.into_iter().map(|object| (object.key, object.size)).collect();

    progress.set_phase("walking trees");
    let snapshots = if everything { all_snapshots(&check)? } else { options.snapshots.clone() };
    let mut reached = HashSet::new();
    let mut needed: BTreeMap<u32, HashMap<ObjectId, Kind>> = BTreeMap::new();
    let mut regions = Vec::new();
    for snapshot in &snapshots {
        let name = format!("snapshot {}", snapshot.short_id());
        let walked = walk(&check, &index, snapshot, &mut reached, &mut needed, &mut regions);
        check.judge(&name, walked)?;
    }

    let mut packs: Vec<(u32, &PackInfo)> = Vec::new();
    let mut seen = HashSet::new();
    for (number, pack) in index.packs() {
        let wanted = needed.contains_key(&number);
        // Two runs may list the same one.
        let again = everything && !seen.insert(pack.id);
        if !wanted && (!everything || again) {
            continue;
        }
        let key = pack.key();
        match present.get(&key) {
            // Maintenance removed it, and a session that had been given up listed it afterwards.
            None if !wanted && index.current.in_force.is_some() => continue,
            None => check.damage(&key, "it is missing"),
            Some(size) if *size != pack.size && !check.parity_gives(&key, pack.size) => {
                check.damage(&key, format!("it has {size} bytes, {} were written", pack.size));
            }
            Some(_) => packs.push((number, pack)),
        }
        check.objects.fetch_add(1, Relaxed);
    }

    if everything {
        check_sessions(&check, &index, &present)?;
        for (key, what) in maintenance::examine(repository)? {
            check.damage(&key, what);
        }
    }

    let mut covered = 100.0;
    if options.level > Level::Basic {
        progress.set_phase("reading packs");
        let all = packs.len();
        packs.retain(|(_, pack)| check.sampled(&pack.key()));
        covered = if all == 0 { 100.0 } else { packs.len() as f64 * 100.0 / all as f64 };
        progress.add_total(packs.iter().map(|(_, pack)| pack.size).sum(), packs.len() as u64);
        for some in packs.chunks(PACKS_AT_ONCE) {
            let mut by_pack = Locations::new();
            if options.level == Level::Thorough {
                by_pack = locations(&index, some)?;
            }
            check.parallel(some, |(number, pack)| {
                check_pack(&check, pack, needed.get(number), by_pack.get(number))
            })?;
        }
    }
    if !regions.is_empty() {
        progress.set_phase("checking database files");
        progress.add_total(regions.iter().map(|region| region.length).sum(), regions.len() as u64);
        cells::check(&check, &regions)?;
    }
    let archived = if everything { check_archives(&check)? } else { 0 };
    Ok(report(check, snapshots.len() as u64, archived, covered))
}

fn report(check: Check<'_>, snapshots: u64, archived: u64, covered: f64) -> VerifyReport {
    let mut damages = check.damages.into_inner().unwrap_or_else(|e| e.into_inner());
    damages.sort();
    damages.dedup();
    let mut unread = check.unread.into_inner().unwrap_or_else(|e| e.into_inner());
    unread.sort();
    unread.dedup();
    VerifyReport {
        unread,
        level: check.options.level,
        objects: check.objects.into_inner(),
        bytes: check.bytes.into_inner(),
        chunks: check.chunks.into_inner(),
        snapshots,
        archived,
        covered,
        damages,
        without_parity: 0,
    }
}

/// The index from the store itself, whatever a cache says.
fn load_index(check: &Check<'_>) -> Result<Option<Index>> {
    let (store, keys) = (check.repository.store(), check.repository.keys());
    let current = Current::read(store, keys)?;
    let heads: BTreeSet<u64> = current.head.into_iter().chain(current.in_force).collect();
    for number in heads {
        let key = head_key(number);
        let opened = check
            .read(&key)
            .and_then(|body| maintenance::open::<Head>(keys, Class::Maintenance, &key, &body));
        check.judge(&key, opened)?;
    }
    for object in &current.segments {
        let opened = check.read(&object.key).and_then(|body| {
            if parse_part_key(&object.key).is_some() {
                return check_part(keys, &object.key, body);
            }
            open_object(keys, Class::Index, &object.key, &body).map(drop)
        });
        check.judge(&object.key, opened)?;
    }
    // A chunk may lie in a pack that is there and in one that is not.
    let authority = check.repository.reload_authority()?;
    let index = Index::load(store, keys, &authority, None, &HashSet::new());
    check.judge("the index", index)
}

/// Session objects, and that the index knows every pack of a session that was committed.
fn check_sessions(check: &Check<'_>, index: &Index, present: &HashMap<String, u64>) -> Result<()> {
    let store = check.repository.store();
    if check.options.level > Level::Basic {
        for object in store.list(SESSIONS)? {
            let opened = check.read(&object.key).and_then(|body| {
                open_object(check.repository.keys(), Class::Session, &object.key, &body)
            });
            check.judge(&object.key, opened)?;
        }
    }
    if index.current.in_force.is_some() {
        // A pack that is in no segment may be what maintenance has not come to remove.
        return Ok(());
    }
    let known: HashSet<String> = index.packs().map(|(_, pack)| pack.key()).collect();
    let lost: HashSet<Work> =
        present.keys().filter(|key| !known.contains(*key)).filter_map(|key| of_pack(key)).collect();
    for work in lost {
        // Packs of a session that was given up, or is at work, are in no index.
        match store.read(&work.snapshot_key()) {
            Ok(object) if class_of(&object) == Some(Class::Tombstone) => continue,
            // What a removed host wrote counts as little as that.
            Ok(object) if matches!(check.repository.open_snapshot(work, &object), Ok(None)) => {
                continue;
            }
            Ok(_) => {}
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error.into()),
        }
        let first = work.index_key(0);
        let prefix = first.trim_end_matches(|c| c != '/');
        let there: HashSet<String> = store.list(prefix)?.into_iter().map(|o| o.key).collect();
        // One that is there and does not open was reported already.
        if !index.unreadable().iter().any(|why| why.starts_with(prefix))
            && let Some(key) = (0..).map(|n| work.index_key(n)).find(|key| !there.contains(key))
        {
            check.damage(&key, "it is missing: no segment lists all packs of its session");
        }
    }
    Ok(())
}

fn of_pack(key: &str) -> Option<Work> {
    parse_pack_key(key).map(|(work, _)| work)
}

fn all_snapshots(check: &Check<'_>) -> Result<Vec<Snapshot>> {
    let mut snapshots = Vec::new();
    check.repository.reload_authority()?;
    let listed = check.repository.store().list(SNAPSHOTS)?;
    let forgotten = maintenance::forgotten(check.repository, &listed)?;
    for object in listed {
        let Some(work) = Work::from_snapshot_key(&object.key) else { continue };
        if forgotten.contains(&work) {
            continue;
        }
        let read = check.read(&object.key);
        let Some(body) = check.judge(&object.key, read)? else { continue };
        let opened = check.repository.open_snapshot(work, &body);
        snapshots.extend(check.judge(&object.key, opened)?.flatten());
    }
    Ok(snapshots)
}

type Needed = BTreeMap<u32, HashMap<ObjectId, Kind>>;

/// Notes every chunk that a snapshot refers to, and the leaves of database files that none before had.
fn walk(
    check: &Check<'_>,
    index: &Index,
    snapshot: &Snapshot,
    reached: &mut HashSet<(u8, ObjectId)>,
    needed: &mut Needed,
    regions: &mut Vec<cells::Region>,
) -> Result<()> {
    let name = format!("snapshot {}", snapshot.short_id());
    let mut need = |kind: Kind, id: ObjectId, path: &str| {
        if !reached.insert((kind as u8, id)) {
            return Ok(false);
        }
        match index.find(&id)? {
            Some(location) => {
                needed.entry(location.pack).or_default().insert(id, kind);
            }
            None => check.damage(
                &name,
                format!(
                    "{path} needs chunk {:.16}, which is in no pack of the index",
                    id.to_string()
                ),
            ),
        }
        Ok::<_, RepoError>(true)
    };
    let thorough = check.options.level == Level::Thorough;
    let tree = check.repository.tree(snapshot)?;
    let (sender, nodes) = crossbeam_channel::unbounded();
    for entry in tree.iter_nodes(move |id| {
        let _ = sender.send(id);
    }) {
        check.progress.check()?;
        let entry = entry?;
        for id in nodes.try_iter() {
            need(Kind::Tree, id, "its tree")?;
        }
        let EntryKind::File(content) = &entry.kind else { continue };
        let path = entry.display_path();
        if let Body::Leaves(leaves) = &content.body {
            for leaf in leaves {
                let first = need(Kind::Leaf, leaf.id, &path)?;
                let read = tree.leaf(&leaf.id)?;
                if first
                    && thorough
                    && !read.cells.is_empty()
                    && check.sampled(&leaf.id.to_string())
                {
                    regions.push(cells::Region::new(&name, &path, *leaf, content));
                }
                for id in read.pages.chunks() {
                    need(Kind::Pages, *id, &path)?;
                }
            }
        }
        for extent in tree.extents(content)? {
            need(Kind::Data, extent.chunk, &path)?;
        }
    }
    Ok(())
}

type Locations = HashMap<u32, HashSet<([u8; 16], u32, u32)>>;

fn locations(index: &Index, packs: &[(u32, &PackInfo)]) -> Result<Locations> {
    let mut locations: Locations =
        packs.iter().map(|(number, _)| (*number, HashSet::new())).collect();
    for entry in index.locations() {
        let (_, id, at) = entry?;
        if let Some(of_pack) = locations.get_mut(&at.pack) {
            of_pack.insert((id, at.offset, at.length));
        }
    }
    Ok(locations)
}

fn check_pack(
    check: &Check<'_>,
    pack: &PackInfo,
    needed: Option<&HashMap<ObjectId, Kind>>,
    indexed: Option<&HashSet<([u8; 16], u32, u32)>>,
) -> Result<()> {
    let key = pack.key();
    let read = check.read(&key);
    let Some(body) = check.judge(&key, read)? else { return Ok(()) };
    check.progress.add_done(body.len() as u64, 1);
    if digest(&SHA256, &body).as_ref() != pack.sha256 {
        check.damage(&key, "its content has another SHA-256 than what was written");
    }
    if check.options.level < Level::Thorough {
        return Ok(());
    }
    let opened = check.repository.open_pack(pack, &body);
    let Some(pack_key) = check.judge(&key, opened)? else { return Ok(()) };
    let footer = read_footer(&key, &body, &pack_key);
    let Some(records) = check.judge(&key, footer)? else { return Ok(()) };
    let keys = check.repository.keys();
    let mut codec = Codec::new(Compression::None);
    let (mut record, mut content) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for entry in &records {
        let at = entry.offset as usize;
        record.clear();
        record.extend_from_slice(body.get(at..at + entry.length as usize).unwrap_or_default());
        let location =
            crate::index::Location { pack: 0, offset: entry.offset, length: entry.length };
        let opened = open_record(
            pack,
            &pack_key,
            location,
            entry.kind,
            &entry.id,
            &mut record,
            &mut codec,
            &mut content,
        );
        if check.judge(&key, opened)?.is_none() {
            continue;
        }
        check.chunks.fetch_add(1, Relaxed);
        let id_key = if entry.kind.is_metadata() { &keys.metadata_id } else { &keys.data_id };
        if content_id(id_key, entry.kind, &content) != entry.id {
            check.damage(&key, format!("the chunk at byte {at} is not what its id says"));
        }
        if needed.and_then(|n| n.get(&entry.id)).is_some_and(|kind| *kind != entry.kind) {
            check.damage(&key, format!("the chunk at byte {at} is of another kind than is needed"));
        }
        let mut prefix = [0; 16];
        prefix.copy_from_slice(&entry.id.0[..16]);
        seen.insert((prefix, entry.offset, entry.length));
    }
    if let Some(missing) = indexed.and_then(|indexed| indexed.difference(&seen).next()) {
        check.damage(
            &key,
            format!("the index says that a chunk is at byte {}, it is not", missing.1),
        );
    }
    Ok(())
}

fn check_archives(check: &Check<'_>) -> Result<u64> {
    check.progress.set_phase("checking archives");
    let mut archived = 0;
    for system in check.repository.archives()? {
        let archive = check.repository.archive(system);
        let files = archive.list(None)?;
        archived += files.len() as u64;
        if check.options.level == Level::Basic {
            for file in files.iter().filter(|file| file.stored == 0) {
                check.damage(&archive.key(&file.name)?, "it is empty");
            }
            continue;
        }
        let files: Vec<_> = files.into_iter().filter(|file| check.sampled(&file.name)).collect();
        check.parallel(&files, |file| {
            let fetched = archive.fetch(&file.name);
            check.objects.fetch_add(1, Relaxed);
            check.bytes.fetch_add(file.stored, Relaxed);
            check.judge(&archive.key(&file.name)?, fetched).map(drop)
        })?;
    }
    Ok(archived)
}
