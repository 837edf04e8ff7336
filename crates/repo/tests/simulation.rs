//! The real engine, in a world that one seed decides: several hosts back up, forget, maintain and
//! read one repository. After each call to the store a scheduler decides by lot whose call comes
//! next, so that any of them can stand still for as long as it takes others to finish many runs; and
//! by lot some of them die.
//!
//! What must hold at the end: every snapshot that was committed and not forgotten is whole, a writer
//! that was told so has one and no other has, and what nobody needs can be removed.
//!
//! In some of the worlds a writer is a host that may only write, and in some the root key is replaced
//! meanwhile; in some the store keeps what it was given for some hours. Writers build upon snapshots
//! that others may just be forgetting: they take over files that have not changed, find small ones by
//! their content, and pages of database files in those that were there. Somebody copies snapshots to
//! another repository and back.
//!
//! `BACKSTAY_SEED=N` runs one seed, `BACKSTAY_SEEDS=N` so many of them; a failure prints its seed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
#[path = "simulation/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstay_repo::*;
use backstay_store::{LockMode, LockPolicy};
use support::{Bytes, Files, file, key, noise, options};
use world::{Ends, Lots, Seat, World, Wrong};

/// What is known at the end.
#[derive(Default)]
struct Known {
    committed: Vec<(Snapshot, Files)>,
    forgotten: BTreeSet<String>,
    removed: u64,
    given_up: u64,
    waited: u64,
    died: u64,
    refused: u64,
    replaced: u64,
    by_hosts: u64,
    /// Files that were taken over from a snapshot before, and bytes that were not stored because of
    /// one.
    taken_over: u64,
    saved: u64,
    copied: u64,
    came_back: u64,
    locked: u64,
}

impl Known {
    /// How often each thing came to pass that a world should have.
    fn counts(&self) -> [(&'static str, u64); 14] {
        [
            ("commits", self.committed.len() as u64),
            ("forgets", self.forgotten.len() as u64),
            ("packs removed", self.removed),
            ("sessions given up", self.given_up),
            ("runs that waited", self.waited),
            ("deaths", self.died),
            ("refusals", self.refused),
            ("replacements", self.replaced),
            ("snapshots of hosts", self.by_hosts),
            ("files taken over", self.taken_over),
            ("bytes saved", self.saved),
            ("copies", self.copied),
            ("copies back", self.came_back),
            ("packs that stay locked", self.locked),
        ]
    }
}

/// What files are made of.
struct Pool {
    whole: Vec<Arc<Vec<u8>>>,
    pages: Vec<Vec<u8>>,
}

impl Pool {
    fn new() -> Self {
        let whole = (0..9).map(|n| Arc::new(noise([900, 9000, 70_000][n as usize % 3], n)));
        Self { whole: whole.collect(), pages: (0..12).map(|n| noise(8192, 50 + n)).collect() }
    }
}

/// The key that opens the root key after it was replaced.
fn new_key() -> Secret {
    Secret::key_file([8; 32]).unwrap()
}

fn open(
    world: &Arc<World>,
    actor: Option<usize>,
    seed: u64,
    secret: &Secret,
    cache: Option<&std::path::Path>,
) -> Result<Repository> {
    let store = Store::new(Seat { world: world.clone(), actor });
    // Every handle draws its own numbers: one host is opened once, and the last look many times.
    let which = actor.map_or_else(|| world.lock().lots.next(), |actor| actor as u64);
    let mut lots = Lots(seed ^ which.wrapping_mul(0x5851_f42d));
    let seeded = Environment::seeded(lots.next());
    // Some clocks are hours ahead or behind. Whoever looks at the end has that of the store.
    let ahead =
        if actor.is_some() && lots.one_in(3) { lots.below(40_000) as i64 - 20_000 } else { 0 };
    let env = Environment { clock: Arc::new(Wrong { world: world.clone(), ahead }), ..seeded };
    let store = store.with_environment(env.clone());
    let options = OpenOptions { cache: cache.map(std::path::Path::to_owned) };
    Repository::open(store, env, secret, options)
}

/// Some of the same few files, so that snapshots share them and packs live on in part; and a database
/// file, which is that of `before` with some pages changed.
fn some_files(lots: &mut Lots, pool: &Pool, before: Option<&Files>) -> Files {
    let mut files = Files::new();
    for n in 0..1 + lots.below(4) {
        let which = lots.below(pool.whole.len());
        let chunking =
            if which.is_multiple_of(3) { Chunking::Grid } else { Chunking::ContentDefined };
        files.insert(format!("{n}/{which}"), (chunking, pool.whole[which].clone()));
    }
    if let Some(before) = before {
        // Some stay as they were, and some have another name.
        for (path, content) in before.iter().filter(|(path, _)| !path.starts_with("db/")) {
            match lots.below(3) {
                0 => drop(files.insert(path.clone(), content.clone())),
                1 => drop(files.insert(format!("{path}-renamed"), content.clone())),
                _ => {}
            }
        }
    }
    if !lots.one_in(3) {
        let old = before.and_then(|files| files.get("db/pages")).map(|(_, bytes)| bytes.as_slice());
        let mut bytes = old.map(<[u8]>::to_vec).unwrap_or_default();
        match lots.below(6) {
            0 => bytes.truncate(bytes.len() / 2 / 8192 * 8192),
            1 | 2 => bytes.extend_from_slice(&pool.pages[lots.below(pool.pages.len())]),
            _ => {}
        }
        while bytes.len() < 4 * 8192 {
            bytes.extend_from_slice(&pool.pages[lots.below(pool.pages.len())]);
        }
        for _ in 0..lots.below(3) {
            let at = lots.below(bytes.len() / 8192) * 8192;
            bytes[at..at + 8192].copy_from_slice(&pool.pages[lots.below(pool.pages.len())]);
        }
        files.insert("db/pages".to_owned(), (Chunking::Grid, Arc::new(bytes)));
    }
    files
}

/// Backs up as a source does that knows the snapshot before: what has not changed is taken over, small
/// files are found by their content, and pages by their hashes.
fn back_up(
    repo: &Repository,
    files: &Files,
    before: Option<&(Snapshot, Files)>,
    lots: &mut Lots,
) -> Result<(Snapshot, u64)> {
    let parent = before.map(|(snapshot, _)| snapshot.clone());
    let options = SessionOptions { workers: 1, parent, ..options("simulated") };
    let session = repo.begin(options)?;
    let mut entries = Vec::new();
    if let Some((snapshot, _)) = before {
        let tree = repo.tree(snapshot);
        let read = tree.and_then(|tree| tree.iter().collect::<Result<Vec<Entry>>>());
        match read {
            Ok(read) => entries = read,
            // Somebody has just forgotten it, and removed it: then all is read.
            Err(error) if error.kind() != RepoErrorKind::Store => {}
            Err(error) => return Err(error),
        }
    }
    let mut taken_over = 0;
    let mut tree = session.tree(Order::Any);
    for entry in &entries {
        if let EntryKind::File(content) = &entry.kind {
            session.remember(0, content);
        }
    }
    for (path, (chunking, bytes)) in files {
        let same = before.and_then(|(_, old)| old.get(path)).is_some_and(|(_, old)| old == bytes);
        let known = entries.iter().find(|entry| entry.path == path.as_bytes());
        let known = known.filter(|_| same && !lots.one_in(3)).filter(|entry| match &entry.kind {
            EntryKind::File(content) => session.can_reuse(0, content),
            _ => false,
        });
        taken_over += u64::from(known.is_some());
        let content = Bytes { bytes: bytes.clone(), ranges: None };
        let entry = file(path, bytes.len());
        tree.file_unless_known(entry, || Box::new(content), *chunking, vec![known.cloned()])?;
    }
    let root = tree.finish()?;
    Ok((session.commit(root, serde_json::Value::Null)?, taken_over))
}

/// One that is there, of which it is known what it must contain.
fn one_of(there: &[Snapshot], known: &Mutex<Known>, lots: &mut Lots) -> Option<(Snapshot, Files)> {
    let snapshot = there.get(lots.below(there.len().max(1)))?;
    let known = known.lock().unwrap();
    known.committed.iter().find(|(one, _)| one.id == snapshot.id).cloned()
}

fn content_is(repo: &Repository, snapshot: &Snapshot, files: &Files) -> Result<()> {
    let tree = repo.tree(snapshot)?;
    for (path, (_, expected)) in files {
        let entry = tree.get(path.as_bytes())?.expect("every file of it is in a snapshot");
        let mut content = Vec::new();
        tree.read_file(&entry, &mut content)?;
        assert!(content == **expected, "{path} differs");
    }
    Ok(())
}

const WRITERS: usize = 3;
const MAINTAINERS: usize = 2;
/// Who forgets, who reads and who copies; the one after them replaces the root key.
const FORGETS: usize = WRITERS + MAINTAINERS;
const COPIES: usize = FORGETS + 2;
/// For how long objects are locked. A world lasts for about a day.
const LOCKED_FOR: Duration = Duration::from_secs(6 * 3600);

fn live(seed: u64, pool: &Pool) -> Known {
    let replaced = seed.is_multiple_of(5);
    let actors = COPIES + 1 + usize::from(replaced);
    let mode = LockMode::Compliance;
    let locks = LockPolicy { mode, period: LOCKED_FOR, extend: seed.is_multiple_of(2) };
    let world = World::new(seed, actors, (seed % 4 == 3).then_some(locks));
    let init = Store::new(Seat { world: world.clone(), actor: None });
    let owner =
        Repository::init(init, Environment::seeded(seed), &key(), InitOptions::default()).unwrap();
    // The first writer of every other world.
    let host = (seed % 2 == 1)
        .then(|| Secret::key_file(owner.add_host("host").unwrap().1.to_vec()).unwrap());
    let known = Mutex::new(Known::default());
    let deadly = seed.is_multiple_of(3);
    std::thread::scope(|scope| {
        for actor in 0..actors {
            let (world, known, host) = (&world, &known, &host);
            scope.spawn(move || {
                // Whatever happens: a test that failed must not wait for ever.
                let _ends = Ends { world, actor };
                let mut lots = Lots(seed.wrapping_mul(31).wrapping_add(actor as u64));
                let secret = host.clone().filter(|_| actor == 0).unwrap_or_else(key);
                let done = act(world, actor, seed, &mut lots, pool, known, &secret);
                if let Err(error) = done {
                    let mut known = known.lock().unwrap();
                    match error.kind() {
                        RepoErrorKind::Store if error.to_string().contains("this host died") => {
                            known.died += 1;
                        }
                        RepoErrorKind::Busy => known.refused += 1,
                        // It came too late to open with the old key.
                        RepoErrorKind::WrongKey if replaced => known.refused += 1,
                        // A part of a run that was made just then counts no more, and says so.
                        RepoErrorKind::Damaged if replaced && is_left_over(&error) => {
                            known.refused += 1;
                        }
                        // Somebody who opened it later writes with the new key already: what cannot
                        // be seen with the old one might be needed, so nothing is removed with it.
                        RepoErrorKind::Damaged if replaced && is_too_new(&error) => {
                            known.refused += 1;
                        }
                        _ => panic!("seed {seed}: actor {actor}: {error}"),
                    }
                }
            });
        }
        world.schedule(deadly);
    });
    let mut known = known.into_inner().unwrap();
    end(seed, &world, &mut known);
    known
}

/// Made with a root key that had just been replaced.
fn is_left_over(error: &RepoError) -> bool {
    error.to_string().contains("after that was replaced")
}

/// Made with a root key that came after this handle was opened.
fn is_too_new(error: &RepoError) -> bool {
    error.to_string().contains("names epoch 1 of the root key, which is not known")
}

#[allow(clippy::too_many_arguments)] // one world and one part in it
fn act(
    world: &Arc<World>,
    actor: usize,
    seed: u64,
    lots: &mut Lots,
    pool: &Pool,
    known: &Mutex<Known>,
    secret: &Secret,
) -> Result<()> {
    let repo = open(world, Some(actor), seed, secret, None)?;
    if actor < WRITERS {
        for _ in 0..1 + lots.below(3) {
            // A host that may only write cannot read what was there before.
            let before = match repo.is_write_only() || lots.one_in(4) {
                true => None,
                false => one_of(&repo.snapshots()?, known, lots),
            };
            let files = some_files(lots, pool, before.as_ref().map(|(_, files)| files));
            match back_up(&repo, &files, before.as_ref(), lots) {
                Ok((snapshot, taken_over)) => {
                    let mut known = known.lock().unwrap();
                    known.by_hosts += u64::from(repo.is_write_only());
                    known.taken_over += taken_over;
                    if before.is_some() {
                        known.saved +=
                            snapshot.stats.bytes.saturating_sub(snapshot.stats.new_bytes);
                    }
                    known.committed.push((snapshot, files));
                }
                // It was given up, and is told so.
                Err(error) if error.kind() == RepoErrorKind::Busy => {
                    known.lock().unwrap().refused += 1;
                }
                Err(error) => return Err(error),
            }
        }
        return Ok(());
    }
    if actor < WRITERS + MAINTAINERS {
        for _ in 0..1 + lots.below(4) {
            let give_up_after = Duration::from_secs([0, 3600, 48 * 3600][lots.below(3)]);
            let options = MaintenanceOptions { give_up_after, ..MaintenanceOptions::default() };
            let report = repo.maintain(&options, &Arc::default())?;
            let mut known = known.lock().unwrap();
            known.removed += report.packs_removed;
            known.given_up += report.given_up.len() as u64;
            known.waited += u64::from(!report.waiting_for.is_empty());
            known.locked += report.packs_locked;
        }
        return Ok(());
    }
    if actor == COPIES {
        return copy_there_and_back(&repo, lots, known);
    }
    if actor == COPIES + 1 {
        repo.rotate(&[(new_key(), String::new())])?;
        known.lock().unwrap().replaced += 1;
        return Ok(());
    }
    for _ in 0..6 {
        let there = repo.snapshots()?;
        if there.is_empty() {
            continue;
        }
        let snapshot = &there[lots.below(there.len())];
        if actor == FORGETS {
            // Noted first: whoever dies in between may have done it.
            known.lock().unwrap().forgotten.insert(snapshot.id.clone());
            match repo.forget(&snapshot.id) {
                Err(error) if error.kind() == RepoErrorKind::NotFound => {}
                other => drop(other?),
            }
        } else {
            let files = {
                let known = known.lock().unwrap();
                known
                    .committed
                    .iter()
                    .find(|(one, _)| one.id == snapshot.id)
                    .map(|(_, f)| f.clone())
            };
            let Some(files) = files else { continue };
            if let Err(error) = content_is(&repo, snapshot, &files) {
                let forgotten = known.lock().unwrap().forgotten.contains(&snapshot.id);
                if !forgotten || error.kind() == RepoErrorKind::Store {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Copies some of what is there to a repository of its own, and back what was forgotten since.
fn copy_there_and_back(repo: &Repository, lots: &mut Lots, known: &Mutex<Known>) -> Result<()> {
    let (store, env) = (Store::memory(), Environment::seeded(lots.next()));
    let away = Repository::init(store, env, &key(), InitOptions::default())?;
    let options = CopyOptions { workers: 1, ..CopyOptions::default() };
    for _ in 0..3 {
        let Some((snapshot, files)) = one_of(&repo.snapshots()?, known, lots) else { continue };
        let made = match copy(repo, &snapshot, &away, &options) {
            Ok(Copied::New(made) | Copied::There(made)) => made,
            // It was forgotten meanwhile, and what it needs is gone.
            Err(error)
                if error.kind() != RepoErrorKind::Store
                    && known.lock().unwrap().forgotten.contains(&snapshot.id) =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        content_is(&away, &made, &files)?;
        known.lock().unwrap().copied += 1;
        if !known.lock().unwrap().forgotten.contains(&snapshot.id) {
            continue;
        }
        match copy(&away, &made, repo, &options) {
            Ok(Copied::New(back)) => {
                let mut known = known.lock().unwrap();
                known.came_back += 1;
                known.committed.push((*back, files));
            }
            Ok(Copied::There(_)) => {}
            Err(error) if error.kind() == RepoErrorKind::Busy => {
                known.lock().unwrap().refused += 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Looks at what is left, with nobody else at work.
fn end(seed: u64, world: &Arc<World>, known: &mut Known) {
    // By then nothing is locked any more.
    world.lock().now += 4 * LOCKED_FOR;
    // Exactly one of the two opens it.
    let fresh = || {
        let [old, new] = [key(), new_key()].map(|secret| open(world, None, seed, &secret, None));
        match (old, new) {
            // Somebody who died had begun to replace it, and whoever opens it ends that.
            (Ok(_), Ok(new)) | (Err(_), Ok(new)) => new,
            (Ok(old), Err(_)) => old,
            (Err(error), Err(_)) => panic!("seed {seed}: {error}"),
        }
    };
    // What was made while the root key was replaced, and does not count, is taken away as the hint says:
    // by hand, or of the index by a repair.
    let maintain = |options: &MaintenanceOptions| loop {
        match fresh().maintain(options, &Arc::default()) {
            Err(error) if is_left_over(&error) => {
                let hint = error.hint().unwrap().to_owned();
                if hint.contains("verify --repair") {
                    let repaired = fresh().repair(&RepairOptions::default(), &Arc::default());
                    let left = repaired.unwrap_or_else(|e| panic!("seed {seed}: {e:?}")).unrepaired;
                    assert!(left.is_empty(), "seed {seed}: {left:?}");
                    continue;
                }
                let object = hint.split(' ').find(|word| word.contains('/')).unwrap();
                assert!(world.lock().objects.remove(object).is_some(), "seed {seed}: {hint}");
            }
            done => break done.unwrap(),
        }
    };
    let check = |when: &str| {
        let repo = fresh();
        let there: BTreeSet<String> =
            repo.snapshots().unwrap().into_iter().map(|one| one.id).collect();
        for (snapshot, files) in &known.committed {
            if known.forgotten.contains(&snapshot.id) && !there.contains(&snapshot.id) {
                continue;
            }
            assert!(there.contains(&snapshot.id), "seed {seed}: {when}: a snapshot is gone");
            content_is(&repo, snapshot, files)
                .unwrap_or_else(|error| panic!("seed {seed}: {when}: {error}"));
        }
        let options =
            VerifyOptions { level: Level::Thorough, workers: 1, ..VerifyOptions::default() };
        let mut report = repo.verify(options, &Progress::default()).unwrap();
        // It says what was made while the root key was replaced: see below.
        report.damages.retain(|damage| !damage.what.contains("after that was replaced"));
        assert_eq!(report.damages, [], "seed {seed}: {when}");
    };
    check("when all had ended");
    let impatient =
        MaintenanceOptions { give_up_after: Duration::ZERO, ..MaintenanceOptions::default() };
    for _ in 0..3 {
        known.removed += maintain(&impatient).packs_removed;
    }
    check("after the last maintenance");
    let last = maintain(&impatient);
    assert_eq!((last.packs_removed, last.packs_waiting), (0, 0), "seed {seed}: {last:?}");
    // All that is left is needed, or is the rest of a pack of which something is.
    let usage = fresh().usage().unwrap().packs;
    assert_eq!(usage.bytes, last.bytes_before, "seed {seed}");
    if fresh().snapshots().unwrap().is_empty() {
        let left: Vec<String> = world.lock().objects.keys().cloned().collect();
        assert_eq!(usage.objects, 0, "seed {seed}: {left:#?}");
    }
}

#[test]
fn whatever_the_order_nothing_that_is_needed_is_lost() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let pool = Pool::new();
    if let Some(seed) = number("BACKSTAY_SEED") {
        live(seed, &pool);
        return;
    }
    let seeds = number("BACKSTAY_SEEDS").unwrap_or(1500);
    let first = u64::from_le_bytes(Environment::system().random()) >> 16;
    println!("seeds {first} to {}", first + seeds - 1);
    let next = std::sync::atomic::AtomicU64::new(0);
    let all = Mutex::new(Known::default());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if n >= seeds {
                        return;
                    }
                    let known = live(first + n, &pool);
                    let mut all = all.lock().unwrap();
                    all.committed.extend(known.committed);
                    all.forgotten.extend(known.forgotten);
                    all.removed += known.removed;
                    all.given_up += known.given_up;
                    all.waited += known.waited;
                    all.died += known.died;
                    all.refused += known.refused;
                    all.replaced += known.replaced;
                    all.by_hosts += known.by_hosts;
                    all.taken_over += known.taken_over;
                    all.saved += known.saved;
                    all.copied += known.copied;
                    all.came_back += known.came_back;
                    all.locked += known.locked;
                }
            });
        }
    });
    let all = all.into_inner().unwrap();
    let counts = all.counts();
    let told: Vec<String> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
    println!("{}", told.join(", "));
    // The world is worth its name only if all of it comes to pass.
    for (what, count) in counts {
        assert!(count >= seeds / 20, "{what}: {count}");
    }
}
