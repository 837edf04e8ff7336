//! The real engine, in a world that one seed decides: several hosts back up, forget, maintain and
//! read one repository. After each call to the store a scheduler decides by lot whose call comes
//! next, so that any of them can stand still for as long as it takes others to finish many runs; and
//! by lot some of them die.
//!
//! What must hold at the end: every snapshot that was committed and not forgotten is whole, a writer
//! that was told so has one and no other has, and what nobody needs can be removed.
//!
//! In some of the worlds a writer is a host that may only write, and in some the root key is replaced
//! meanwhile.
//!
//! `BACKSTAY_SEED=N` runs one seed, `BACKSTAY_SEEDS=N` so many of them; a failure prints its seed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use backstay_repo::*;
use backstay_store::{Backend, ErrorKind, ObjectMeta, StoreError};
use support::{Files, key, noise, options};

/// SplitMix64.
struct Lots(u64);

impl Lots {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Default)]
struct Actor {
    /// Calls that wait for their turn.
    waiting: usize,
    granted: bool,
    ended: bool,
    dead: bool,
    /// Until so many calls of others have been made it is not its turn.
    asleep: u64,
}

struct World {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    objects: BTreeMap<String, (bytes::Bytes, SystemTime)>,
    actors: Vec<Actor>,
    lots: Lots,
    now: SystemTime,
    calls: u64,
}

impl World {
    fn new(seed: u64, actors: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                objects: BTreeMap::new(),
                actors: (0..actors).map(|_| Actor::default()).collect(),
                lots: Lots(seed),
                now: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30),
                calls: 0,
            }),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits for this actor's turn. Without an actor nobody waits.
    fn turn(&self, actor: Option<usize>, key: &str) -> Result<MutexGuard<'_, State>, StoreError> {
        let mut state = self.lock();
        let Some(me) = actor else { return Ok(state) };
        let dead = || StoreError::new(ErrorKind::Other, "reach", key).with_detail("this host died");
        if state.actors[me].dead {
            return Err(dead());
        }
        state.actors[me].waiting += 1;
        self.changed.notify_all();
        loop {
            if state.actors[me].dead {
                state.actors[me].waiting -= 1;
                self.changed.notify_all();
                return Err(dead());
            }
            if std::mem::take(&mut state.actors[me].granted) {
                state.actors[me].waiting -= 1;
                self.changed.notify_all();
                state.calls += 1;
                let step = state.lots.below(30) as u64;
                state.now += Duration::from_secs(step * step);
                return Ok(state);
            }
            state = self.changed.wait(state).unwrap();
        }
    }

    /// Hands out turns until all have ended.
    fn schedule(&self, deadly: bool) {
        let mut state = self.lock();
        loop {
            // A turn that was handed out must be taken, and whoever lives must have come to a call.
            let settled = state
                .actors
                .iter()
                .all(|actor| !actor.granted && (actor.ended || (actor.waiting > 0 && !actor.dead)));
            if !settled {
                state = self.changed.wait(state).unwrap();
                continue;
            }
            let living: Vec<usize> =
                (0..state.actors.len()).filter(|n| !state.actors[*n].ended).collect();
            if living.is_empty() {
                return;
            }
            let calls = state.calls;
            let awake: Vec<usize> =
                living.iter().copied().filter(|n| state.actors[*n].asleep <= calls).collect();
            let from = if awake.is_empty() { &living } else { &awake };
            let which = state.lots.below(from.len());
            let chosen = from[which];
            if deadly && state.lots.one_in(400) {
                state.actors[chosen].dead = true;
            } else {
                if state.lots.one_in(12) {
                    let nap = state.lots.below(120) as u64;
                    state.actors[chosen].asleep = calls + nap;
                }
                state.actors[chosen].granted = true;
            }
            self.changed.notify_all();
        }
    }

    fn end(&self, actor: usize) {
        self.lock().actors[actor].ended = true;
        self.changed.notify_all();
    }
}

struct Ends<'w> {
    world: &'w World,
    actor: usize,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.world.end(self.actor);
    }
}

/// One host's way to the store.
struct Seat {
    world: Arc<World>,
    actor: Option<usize>,
}

impl Seat {
    fn get(
        &self,
        doing: &'static str,
        key: &str,
    ) -> Result<(bytes::Bytes, SystemTime), StoreError> {
        let state = self.world.turn(self.actor, key)?;
        state
            .objects
            .get(key)
            .cloned()
            .ok_or_else(|| StoreError::new(ErrorKind::NotFound, doing, key))
    }
}

impl Backend for Seat {
    fn url(&self) -> String {
        "simulated://".into()
    }

    fn create(&self, key: &str, body: bytes::Bytes) -> Result<(), StoreError> {
        let mut state = self.world.turn(self.actor, key)?;
        if state.objects.contains_key(key) {
            return Err(StoreError::new(ErrorKind::AlreadyExists, "create", key));
        }
        let now = state.now;
        state.objects.insert(key.to_owned(), (body, now));
        Ok(())
    }

    fn read(&self, key: &str) -> Result<bytes::Bytes, StoreError> {
        Ok(self.get("read", key)?.0)
    }

    fn read_range(&self, key: &str, range: Range<u64>) -> Result<bytes::Bytes, StoreError> {
        let (body, _) = self.get("read", key)?;
        if range.start > range.end || range.end > body.len() as u64 {
            return Err(StoreError::new(ErrorKind::Damaged, "read", key));
        }
        Ok(body.slice(range.start as usize..range.end as usize))
    }

    fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        let (body, modified) = self.get("look at", key)?;
        Ok(ObjectMeta { key: key.to_owned(), size: body.len() as u64, modified: Some(modified) })
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let state = self.world.turn(self.actor, prefix)?;
        let found = state.objects.range(prefix.to_owned()..);
        Ok(found
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, (body, modified))| ObjectMeta {
                key: key.clone(),
                size: body.len() as u64,
                modified: Some(*modified),
            })
            .collect())
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.world.turn(self.actor, key)?.objects.remove(key);
        Ok(())
    }
}

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
    let env = Environment::seeded(Lots(seed ^ which.wrapping_mul(0x5851_f42d)).next());
    let options = OpenOptions { cache: cache.map(std::path::Path::to_owned) };
    Repository::open(store, env, secret, options)
}

/// Some of the same few files, so that snapshots share them and packs live on in part.
fn some_files(lots: &mut Lots, pool: &[Arc<Vec<u8>>]) -> Files {
    let mut files = Files::new();
    for n in 0..1 + lots.below(4) {
        let which = lots.below(pool.len());
        let chunking =
            if which.is_multiple_of(3) { Chunking::Grid } else { Chunking::ContentDefined };
        files.insert(format!("{n}/{which}"), (chunking, pool[which].clone()));
    }
    files
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

fn live(seed: u64, pool: &[Arc<Vec<u8>>]) -> Known {
    let replaced = seed.is_multiple_of(5);
    let actors = WRITERS + MAINTAINERS + 2 + usize::from(replaced);
    let world = World::new(seed, actors);
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
    pool: &[Arc<Vec<u8>>],
    known: &Mutex<Known>,
    secret: &Secret,
) -> Result<()> {
    let repo = open(world, Some(actor), seed, secret, None)?;
    if actor < WRITERS {
        for _ in 0..1 + lots.below(3) {
            let files = some_files(lots, pool);
            let options = SessionOptions { workers: 1, ..options("simulated") };
            match support::backup_as(&repo, &files, options) {
                Ok(snapshot) => {
                    let mut known = known.lock().unwrap();
                    known.by_hosts += u64::from(repo.is_write_only());
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
        }
        return Ok(());
    }
    if actor == WRITERS + MAINTAINERS + 2 {
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
        if actor == WRITERS + MAINTAINERS {
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

/// Looks at what is left, with nobody else at work.
fn end(seed: u64, world: &Arc<World>, known: &mut Known) {
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
    // What was made while the root key was replaced, and does not count, is taken away by hand: the
    // hint says so.
    let maintain = |options: &MaintenanceOptions| loop {
        match fresh().maintain(options, &Arc::default()) {
            Err(error) if is_left_over(&error) => {
                let hint = error.hint().unwrap().to_owned();
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
    let pool: Vec<Arc<Vec<u8>>> =
        (0..9).map(|n| Arc::new(noise([900, 9000, 70_000][n as usize % 3], n))).collect();
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
                }
            });
        }
    });
    let all = all.into_inner().unwrap();
    println!(
        "{} snapshots, {} forgotten, {} packs removed, {} sessions given up, {} runs waited, {} hosts \
         died, {} backups refused, {} root keys replaced, {} snapshots of hosts",
        all.committed.len(),
        all.forgotten.len(),
        all.removed,
        all.given_up,
        all.waited,
        all.died,
        all.refused,
        all.replaced,
        all.by_hosts
    );
    // The world is worth its name only if all of it comes to pass.
    for (what, count) in [
        ("commits", all.committed.len() as u64),
        ("forgets", all.forgotten.len() as u64),
        ("removals", all.removed),
        ("given up", all.given_up),
        ("waits", all.waited),
        ("deaths", all.died),
        ("refusals", all.refused),
        ("replacements", all.replaced),
        ("snapshots of hosts", all.by_hosts),
    ] {
        assert!(count >= seeds / 20, "{what}: {count}");
    }
}
