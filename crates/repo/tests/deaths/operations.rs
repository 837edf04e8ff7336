//! What can be done to a repository: how each operation is prepared, done, and looked at afterwards.
//! Where it dies and on which back end is not decided here.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backstay_repo::*;
use backstay_store::{FixedClock, StoreOptions};

use super::place::Place;
use super::support::*;

use Chunking::{ContentDefined as C, Grid as G};

const SYSTEM: u64 = 7_000_000_000_000_000_004;
const SEGMENTS: [&str; 2] = ["000000010000000000000003", "000000010000000000000004"];
/// For how long objects are locked.
pub const LOCKED_FOR: Duration = Duration::from_secs(3600);
/// How much later locks are extended: more than half of that, and not all of it.
const LATER: Duration = Duration::from_secs(2400);

/// What else there is to an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// A store that keeps objects from being removed.
    Locks,
    /// A store that keeps parity.
    Parity,
}

pub struct Operation {
    pub name: &'static str,
    pub needs: Needs,
    /// The failpoints that it passes besides those of the back end.
    pub passes: &'static [&'static str],
}

const fn operation(name: &'static str, passes: &'static [&'static str]) -> Operation {
    Operation { name, needs: Needs::Nothing, passes }
}

/// A session that stores something, from its beginning to its index.
macro_rules! session {
    ($($more:literal),*) => {
        &["session-created", "pack-sealed", "pack-created", "index-created", $($more),*]
    };
}

pub const OPERATIONS: &[Operation] = &[
    operation("init", &["init-keys-created"]),
    operation("backup", session!["snapshot-created"]),
    operation("push", &["archive-sealed", "archive-created"]),
    operation("push a slice", &["archive-sealed", "archive-created"]),
    operation("expire", &["archive-file-removed"]),
    operation(
        "maintain",
        session![
            "maintenance-repacked",
            "maintenance-condemned",
            "maintenance-sessions",
            "maintenance-given-up",
            "maintenance-sweep",
            "maintenance-merged",
            "maintenance-head",
            "maintenance-pack-removed",
            "maintenance-snapshot-removed"
        ],
    ),
    operation("restore", &["restore-planned", "restore-chunk-written", "restore-synced"]),
    operation(
        "repair",
        session![
            "maintenance-condemned",
            "maintenance-sessions",
            "maintenance-sweep",
            "maintenance-merged",
            "maintenance-head",
            "maintenance-pack-removed",
            "repair-listed",
            "repair-segment-removed",
            "repair-head-merged",
            "repair-head-removed",
            "repair-run-marked",
            "repair-run-removed",
            "repair-stored",
            "repair-archived-stored",
            "repair-archived-removed"
        ],
    ),
    operation("copy", session!["copy-read", "snapshot-created"]),
    operation(
        "replicate",
        session!["copy-read", "snapshot-created", "archive-sealed", "archive-created"],
    ),
    operation("add a host", &["host-added"]),
    operation("remove a host", &["host-leaving"]),
    operation(
        "rotate",
        &["key-recorded", "key-created", "rotate-keys-added", "rotate-begun", "rotate-in-force"],
    ),
    operation("add a key", &["key-recorded", "key-created"]),
    operation("share a key", &["key-recorded", "key-created"]),
    operation(
        "replace a key",
        &["key-recorded", "key-created", "key-removal-recorded", "key-removed"],
    ),
    operation("remove a key", &["key-removal-recorded", "key-removed"]),
    operation("forget", &[]),
    Operation { name: "set parity", needs: Needs::Parity, passes: &[] },
    Operation { name: "change parity", needs: Needs::Parity, passes: &[] },
    Operation { name: "remove parity", needs: Needs::Parity, passes: &[] },
    Operation { name: "extend locks", needs: Needs::Locks, passes: &["lock-extended"] },
    Operation { name: "hold", needs: Needs::Locks, passes: &[] },
    Operation { name: "release", needs: Needs::Locks, passes: &[] },
];

/// So much that a store sends packs of it in parts: whichever of the two open packs a cell goes to by
/// lot, one of them has more than 5 MiB.
fn large(seed: u64) -> (Chunking, Arc<Vec<u8>>) {
    (G, noise(11 << 20, seed).into())
}

fn first_files() -> Files {
    files(&[
        ("a/inline", C, noise(100, 1)),
        ("a/grouped", C, noise(30_000, 2)),
        ("b/chunked", C, noise(90_000, 3)),
        ("b/grid", G, noise(70_000, 4)),
    ])
}

fn second_files(is_large: bool) -> Files {
    let mut all = first_files();
    all.insert("b/chunked".into(), (C, noise(95_000, 12).into()));
    all.insert("c/grid".into(), (G, noise(80_000, 13).into()));
    if is_large {
        all.insert("c/large".into(), large(14));
    }
    all
}

/// Most of which only a forgotten snapshot has. So many that the one that stays shares its pack with
/// others, whichever of the open packs each of them went to by lot.
fn many_files(is_large: bool) -> Files {
    let mut all: Files =
        (0..24).map(|n| (format!("m/{n}"), (C, noise(70_000, 100 + n).into()))).collect();
    if is_large {
        all.extend([("m/0 stays".into(), large(15)), ("m/goes".into(), large(16))]);
    }
    all
}

fn few_files(is_large: bool) -> Files {
    many_files(is_large).into_iter().take(1 + usize::from(is_large)).collect()
}

fn segment() -> Vec<u8> {
    noise(50_000, 21)
}

fn impatient() -> MaintenanceOptions {
    MaintenanceOptions { give_up_after: Duration::ZERO, ..MaintenanceOptions::default() }
}

fn second_key() -> Secret {
    Secret::key_file([9; 32]).unwrap()
}

fn other(folder: &Path) -> Repository {
    let url = format!("file://{}", folder.display());
    let store = Store::open(&url, &StoreOptions::default()).unwrap();
    let options = OpenOptions::default();
    Repository::open(store, Environment::system(), &second_key(), options).unwrap()
}

fn repair_from(folder: &Path) -> RepairOptions {
    let from = Some(other(folder));
    RepairOptions { level: Level::Thorough, from, ..RepairOptions::default() }
}

fn make(store: &Store) -> Result<Repository> {
    Repository::init(store.clone(), Environment::system(), &key(), InitOptions::default())
}

fn restore_options(target: &Path) -> RestoreOptions {
    RestoreOptions { delta: true, ..RestoreOptions::new(target) }
}

/// With whichever of the two keys is one of it.
fn open_any(store: &Store, env: &Environment) -> Result<Repository> {
    let open = |secret: &Secret| {
        Repository::open(store.clone(), env.clone(), secret, OpenOptions::default())
    };
    // Opening with the new one takes up a replacement that was begun.
    match open(&second_key()) {
        Err(error) if error.kind() == RepoErrorKind::WrongKey => open(&key()),
        opened => opened,
    }
}

/// Of the archive's two segments the first.
fn expire_first(repo: &Repository) -> Result<Expired> {
    let first = |_: &[ArchivedFile], _: &[Snapshot]| Ok(vec![SEGMENTS[0].to_owned()]);
    repo.archive(SYSTEM).expire(false, first, &Default::default())
}

/// A later hour, in which locks are half over.
fn later() -> Environment {
    let clock = FixedClock::new(SystemTime::now() + LATER);
    Environment { clock: Arc::new(clock), ..Environment::system() }
}

/// Does it, from whatever a death has left.
pub fn do_it(work: &str, place: &Place, folder: &Path, target: &Path) -> Result<()> {
    let store = place.store();
    if work == "init" {
        return match make(&store) {
            Err(error) if error.kind() != RepoErrorKind::Exists => Err(error),
            _ => Ok(()),
        };
    }
    if work == "extend locks" {
        let env = later();
        let repo = open_any(&store.with_environment(env.clone()), &env)?;
        return repo.maintain(&MaintenanceOptions::default(), &Default::default()).map(drop);
    }
    let repo = open_any(&store, &Environment::system())?;
    match work {
        "backup" => backup(&repo, &second_files(place.is_large())).map(drop),
        "push" => repo.archive(SYSTEM).push(SEGMENTS[1], &segment()).map(drop),
        "push a slice" => {
            repo.archive(SYSTEM).push_slice(SEGMENTS[1], 0, &segment()[..9000]).map(drop)
        }
        "expire" => expire_first(&repo).map(drop),
        "maintain" => repo.maintain(&impatient(), &Default::default()).map(drop),
        "restore" => {
            let snapshot = repo.snapshots()?.remove(0);
            repo.restore(&snapshot, restore_options(target), &Progress::default()).map(drop)
        }
        "repair" => repo.repair(&repair_from(folder), &Default::default()).map(drop),
        "copy" => {
            let from = other(folder);
            let snapshot = from.snapshots()?.pop().unwrap();
            copy(&from, &snapshot, &repo, &CopyOptions::default()).map(drop)
        }
        "replicate" => {
            let (from, options) = (other(folder), CopyOptions::default());
            copy_archive(&from, &repo, SYSTEM, &options)?;
            let all = from.snapshots()?;
            all.iter().try_for_each(|snapshot| copy(&from, snapshot, &repo, &options).map(drop))
        }
        "add a host" => repo.add_host("a host").map(drop),
        "remove a host" => match repo.hosts()?.iter().find(|host| !host.removed) {
            Some(host) => repo.remove_host(&host.id),
            None => Ok(()),
        },
        "rotate" => {
            let (options, env) = (OpenOptions::default(), Environment::system());
            let new = second_key();
            let is_old = Repository::open(store.clone(), env, &new, options).is_err();
            let new = if is_old { new } else { key() };
            repo.rotate(&[(new, "new".to_owned())]).map(drop)
        }
        "add a key" => repo.add_key(&second_key(), "second").map(drop),
        "share a key" => repo.escrow(3, 2, "shared").map(drop),
        "replace a key" => {
            let (options, env) = (OpenOptions::default(), Environment::system());
            match Repository::open(store.clone(), env, &key(), options) {
                Ok(old) => {
                    let slot = old.current_slot()?.unwrap();
                    old.replace_key(&slot, &second_key()).map(drop)
                }
                // It was, and only the last step was missing.
                Err(error) if error.kind() == RepoErrorKind::WrongKey => Ok(()),
                Err(error) => Err(error),
            }
        }
        "remove a key" => match repo.key_slots()?.iter().find(|slot| slot.label == "to go") {
            Some(slot) => repo.remove_key(&slot.id),
            None => Ok(()),
        },
        "forget" => match repo.snapshots()?.get(1) {
            Some(snapshot) => repo.forget(&snapshot.id).map(drop),
            None => Ok(()),
        },
        "set parity" => repo.set_parity(Some(10), &Progress::default()).map(drop),
        "change parity" => repo.set_parity(Some(20), &Progress::default()).map(drop),
        "remove parity" => repo.set_parity(None, &Progress::default()).map(drop),
        "hold" | "release" => {
            let snapshot = repo.snapshots()?.remove(0);
            repo.hold(&snapshot, work == "hold", &Default::default()).map(drop)
        }
        other => panic!("what is {other}?"),
    }
}

/// Makes the repository in which the operation will be done.
pub fn prepare(place: &Place, work: &str) {
    // What is there before is locked only where locks are what it is about.
    let store =
        if ["extend locks", "release"].contains(&work) { place.store() } else { place.unlocked() };
    if work == "init" {
        return;
    }
    let (repo, is_large) = (make(&store).unwrap(), place.is_large());
    if place.has_parity() && work != "set parity" {
        repo.set_parity(Some(10), &Progress::default()).unwrap();
    }
    let first = backup(&repo, &first_files()).unwrap();
    match work {
        "expire" => {
            for name in SEGMENTS {
                repo.archive(SYSTEM).push(name, &segment()).unwrap();
            }
        }
        "remove a host" => drop(repo.add_host("to go").unwrap()),
        "remove a key" => drop(repo.add_key(&second_key(), "to go").unwrap()),
        "forget" => drop(backup(&repo, &few_files(false)).unwrap()),
        "release" => drop(repo.hold(&first, true, &Default::default()).unwrap()),
        "maintain" | "repair" => {
            let many = backup(&repo, &many_files(is_large)).unwrap();
            backup(&repo, &few_files(is_large)).unwrap();
            repo.forget(&many.id).unwrap();
            if work == "maintain" {
                // One that never comes to an end.
                std::mem::forget(repo.begin(options("asleep")).unwrap());
                return;
            }
            repo.maintain(&impatient(), &Default::default()).unwrap();
            repo.archive(SYSTEM).push(SEGMENTS[0], &segment()).unwrap();
            let second = backup(&repo, &second_files(is_large)).unwrap();
            damage(place, &store, &second);
        }
        _ => {}
    }
}

/// Something of everything that a repair mends.
fn damage(place: &Place, store: &Store, second: &Snapshot) {
    for object in store.list("").unwrap() {
        let (key, of_second) = (object.key.as_str(), object.key.contains(&second.id));
        let index = key.starts_with("index/1/")
            || key.starts_with("index/heads/")
            || (key.starts_with("index/0/") && of_second);
        let pack = key.starts_with("packs/") && of_second;
        if index || pack || key == "gc/00000001/condemned" || key.starts_with("wal/") {
            place.flip(store, key, if pack { 200 } else { 170 });
        }
    }
}

/// What must be true after a death, and after the operation was done again.
pub fn examine(place: &Place, work: &str, folder: &Path, target: &Path, context: &str) {
    let again = || {
        do_it(work, place, folder, target).unwrap_or_else(|error| panic!("{context}: {error}"));
    };
    let system = Environment::system();
    let whole = || {
        let repo = open_any(&place.store(), &system).unwrap();
        assert_eq!(verify(&repo, Level::Thorough).damages, [], "{context}");
        repo
    };
    if ["repair", "init", "rotate"].contains(&work) {
        // What is damaged is not found good before.
        again();
        if work == "repair" {
            for _ in 0..2 {
                open(&place.store()).maintain(&impatient(), &Default::default()).unwrap();
            }
        }
    }
    whole();
    again();
    let repo = whole();
    let snapshots = repo.snapshots().unwrap();
    // A copy keeps the time of its original.
    let Some(first) = snapshots.iter().find(|snapshot| snapshot.origin.is_none()) else {
        assert_eq!(work, "init", "{context}");
        return;
    };
    let to = tempfile::tempdir().unwrap();
    let options = RestoreOptions { sync: false, ..RestoreOptions::new(to.path()) };
    repo.restore(first, options, &Progress::default()).unwrap();
    assert_restored(&first_files(), to.path());
    let archived = |name: &str| repo.archive(SYSTEM).fetch(name).unwrap();
    match work {
        "restore" => assert_restored(&first_files(), target),
        "push" => assert!(archived(SEGMENTS[1]) == Some(segment()), "{context}"),
        "push a slice" => {
            let found = repo.archive(SYSTEM).assemble(SEGMENTS[1]).unwrap();
            assert!(found.as_deref() == Some(&segment()[..9000]), "{context}");
        }
        "repair" => {
            assert_eq!(snapshots.len(), 3, "{context}");
            assert!(archived(SEGMENTS[0]) == Some(segment()), "{context}");
        }
        "expire" => {
            let left = repo.archive(SYSTEM).list(None).unwrap();
            let left: Vec<&str> = left.iter().map(|file| file.name.as_str()).collect();
            assert_eq!(left, [SEGMENTS[1]], "{context}");
        }
        "maintain" => assert_eq!(snapshots.len(), 2, "{context}"),
        "forget" => assert_eq!(snapshots.len(), 1, "{context}"),
        "copy" => assert_eq!(snapshots.len(), 2, "{context}"),
        "replicate" => {
            assert_eq!(snapshots.len(), 4, "{context}");
            assert!(archived(SEGMENTS[0]) == Some(segment()), "{context}");
        }
        "replace a key" => {
            let open = |secret: &Secret| {
                Repository::open(place.store(), system.clone(), secret, OpenOptions::default())
            };
            assert_eq!(open(&key()).unwrap_err().kind(), RepoErrorKind::WrongKey, "{context}");
            open(&second_key()).unwrap();
        }
        "hold" | "release" => {
            assert_eq!(repo.is_held(first).unwrap(), work == "hold", "{context}");
        }
        "extend locks" => {
            let until = SystemTime::now() + LATER + LOCKED_FOR / 2;
            for object in repo.store().list("").unwrap() {
                // Of the second run of maintenance itself there may be something that is young.
                let lock = repo.store().lock(&object.key).unwrap().unwrap();
                let is_kept = lock.until.is_some_and(|at| at > until);
                assert!(is_kept || object.key.starts_with("sessions/"), "{context}: {object:?}");
            }
        }
        _ => {}
    }
    if place.has_parity() {
        let share = repo.parity().unwrap();
        let expected = match work {
            "remove parity" => None,
            "change parity" => Some(20),
            _ => Some(10),
        };
        assert_eq!(share, expected, "{context}");
        if expected.is_some() {
            repo.maintain(&MaintenanceOptions::default(), &Default::default()).unwrap();
            assert_eq!(verify(&repo, Level::Standard).without_parity, 0, "{context}");
        }
        place.has_nothing_aside(context);
    }
}

/// The content of all that is damaged, in a repository under another key.
pub fn other_repository(folder: &Path, is_large: bool) {
    let store = Store::open(&format!("file://{}", folder.display()), &StoreOptions::default());
    let options = InitOptions::default();
    let other =
        Repository::init(store.unwrap(), Environment::system(), &second_key(), options).unwrap();
    for files in [first_files(), few_files(is_large), second_files(is_large)] {
        backup(&other, &files).unwrap();
    }
    other.archive(SYSTEM).push(SEGMENTS[0], &segment()).unwrap();
}
