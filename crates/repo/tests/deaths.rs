//! Every operation, killed at every failpoint that it passes, on every back end: afterwards the
//! repository opens, `thorough` finds nothing, and the operation done again succeeds.
//!
//! `crash.rs` does the same in more depth on local directories. Here it is about what a back end does
//! to the order of steps, so the data is small, and the servers are shared by all deaths.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[path = "../../store/tests/support/admin.rs"]
#[allow(dead_code)] // the store's own tests use all of it
mod admin;
#[path = "../../store/tests/support/servers.rs"]
#[allow(dead_code, reason = "some of it is for the tests of the store")]
mod servers;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use backstay_repo::*;
use backstay_store::{StoreOptions, failpoint};
use support::*;

use Chunking::{ContentDefined as C, Grid as G};

const SYSTEM: u64 = 7_000_000_000_000_000_004;
const SEGMENTS: [&str; 2] = ["000000010000000000000003", "000000010000000000000004"];
const WORK: &str = "BACKSTAY_TEST_WORK";
const URL: &str = "BACKSTAY_TEST_URL";
const OTHER: &str = "BACKSTAY_TEST_OTHER";
const TARGET: &str = "BACKSTAY_TEST_TARGET";
const OPTIONS: &str = "BACKSTAY_TEST_OPTIONS";

/// Says why a test cannot run; where everything must be there, that is a failure.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}");
}

/// An operation, and the failpoints that it passes besides those of the back end.
const OPERATIONS: &[(&str, &[&str])] = &[
    ("init", &["init-keys-created"]),
    (
        "backup",
        &["session-created", "pack-sealed", "pack-created", "index-created", "snapshot-created"],
    ),
    ("push", &["archive-sealed", "archive-created"]),
    ("expire", &["archive-file-removed"]),
    (
        "maintain",
        &[
            "maintenance-repacked",
            "maintenance-condemned",
            "maintenance-sessions",
            "maintenance-given-up",
            "maintenance-sweep",
            "maintenance-merged",
            "maintenance-head",
            "maintenance-pack-removed",
            "maintenance-snapshot-removed",
        ],
    ),
    ("restore", &["restore-planned", "restore-chunk-written", "restore-synced"]),
    (
        "repair",
        &[
            "repair-listed",
            "repair-segment-removed",
            "repair-head-merged",
            "repair-head-removed",
            "repair-run-marked",
            "repair-run-removed",
            "repair-stored",
            "repair-archived-stored",
            "repair-archived-removed",
        ],
    ),
    ("copy", &["copy-read"]),
    ("add a host", &["host-added"]),
    ("remove a host", &["host-leaving"]),
    ("rotate", &["rotate-keys-added", "rotate-begun", "rotate-in-force"]),
    ("add a key", &["key-recorded", "key-created"]),
    ("remove a key", &["key-removal-recorded", "key-removed"]),
    ("forget", &[]),
];

/// No operation of this floor passes them.
fn is_above(name: &str) -> bool {
    // Packs in parts are larger than the data here: crates/store/tests/parts.rs dies there.
    let in_parts = name.starts_with("upload-");
    // A copy lists what it sent after many packs only: crash.rs has one of that size.
    in_parts || name.starts_with("postgres-") || name.starts_with("wal-") || name == "copy-listed"
}

#[test]
fn no_failpoint_is_forgotten() {
    for name in failpoint::ALL.iter().filter(|name| !is_above(name)) {
        let known = OPERATIONS.iter().any(|(_, names)| names.contains(name));
        assert!(known || name.starts_with("local-"), "{name} belongs to no operation");
    }
}

fn first_files() -> Files {
    files(&[
        ("a/inline", C, noise(100, 1)),
        ("a/grouped", C, noise(30_000, 2)),
        ("b/chunked", C, noise(90_000, 3)),
        ("b/grid", G, noise(70_000, 4)),
    ])
}

fn second_files() -> Files {
    let mut all = first_files();
    all.insert("b/chunked".into(), (C, noise(95_000, 12).into()));
    all.insert("c/grid".into(), (G, noise(80_000, 13).into()));
    all
}

/// Most of which only a forgotten snapshot has. So many that the one that stays shares its pack with
/// others, whichever of the open packs each of them went to by lot.
fn many_files() -> Files {
    (0..24).map(|n| (format!("m/{n}"), (C, noise(70_000, 100 + n).into()))).collect()
}

fn few_files() -> Files {
    many_files().into_iter().take(1).collect()
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

/// Where a repository of this test lies, in a form that goes through the environment.
#[derive(Clone)]
struct Place {
    url: String,
    options: StoreOptions,
}

impl Place {
    fn store(&self) -> Store {
        Store::open(&self.url, &self.options).unwrap()
    }

    fn described(&self) -> String {
        let endpoint = self.options.endpoint.clone().unwrap_or_default();
        let variables = self.options.variables.clone().unwrap_or_default();
        serde_json::json!([endpoint, self.options.region, variables]).to_string()
    }

    fn of_environment() -> Option<Self> {
        let (url, described) = (std::env::var(URL).ok()?, std::env::var(OPTIONS).ok()?);
        let (endpoint, region, variables): (String, Option<String>, Vec<(String, String)>) =
            serde_json::from_str(&described).unwrap();
        let options = StoreOptions {
            endpoint: Some(endpoint).filter(|endpoint| !endpoint.is_empty()),
            region,
            allow_http: true,
            variables: Some(variables),
            ..StoreOptions::default()
        };
        Some(Self { url, options })
    }
}

fn repair_from(folder: &Path) -> RepairOptions {
    let url = format!("file://{}", folder.display());
    let store = Store::open(&url, &StoreOptions::default()).unwrap();
    let options = OpenOptions::default();
    let from = Repository::open(store, Environment::system(), &second_key(), options).unwrap();
    RepairOptions { level: Level::Thorough, from: Some(from), ..RepairOptions::default() }
}

fn make(store: &Store) -> Result<Repository> {
    Repository::init(store.clone(), Environment::system(), &key(), InitOptions::default())
}

fn restore_options(target: &Path) -> RestoreOptions {
    RestoreOptions { delta: true, ..RestoreOptions::new(target) }
}

/// With whichever of the two keys is one of it.
fn open_any(store: &Store) -> Result<Repository> {
    let open = |secret: &Secret| {
        Repository::open(store.clone(), Environment::system(), secret, OpenOptions::default())
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

fn do_it(work: &str, store: &Store, other: &Path, target: &Path) -> Result<()> {
    if work == "init" {
        return match make(store) {
            Err(error) if error.kind() != RepoErrorKind::Exists => Err(error),
            _ => Ok(()),
        };
    }
    let repo = open_any(store)?;
    match work {
        "backup" => backup(&repo, &second_files()).map(drop),
        "push" => repo.archive(SYSTEM).push(SEGMENTS[1], &segment()).map(drop),
        "expire" => expire_first(&repo).map(drop),
        "maintain" => repo.maintain(&impatient(), &Default::default()).map(drop),
        "restore" => {
            let snapshot = repo.snapshots()?.remove(0);
            repo.restore(&snapshot, restore_options(target), &Progress::default()).map(drop)
        }
        "repair" => repo.repair(&repair_from(other), &Default::default()).map(drop),
        "copy" => {
            let from = repair_from(other).from.unwrap();
            let snapshot = from.snapshots()?.remove(0);
            copy(&from, &snapshot, &repo, &CopyOptions::default()).map(drop)
        }
        "add a host" => repo.add_host("a host").map(drop),
        "remove a host" => match repo.hosts()?.iter().find(|host| !host.removed) {
            Some(host) => repo.remove_host(&host.id),
            None => Ok(()),
        },
        "rotate" => {
            let options = OpenOptions::default();
            let new = second_key();
            let is_old =
                Repository::open(store.clone(), Environment::system(), &new, options).is_err();
            let new = if is_old { new } else { key() };
            repo.rotate(&[(new, "new".to_owned())]).map(drop)
        }
        "add a key" => repo.add_key(&second_key(), "second").map(drop),
        "remove a key" => match repo.key_slots()?.iter().find(|slot| slot.label == "to go") {
            Some(slot) => repo.remove_key(&slot.id),
            None => Ok(()),
        },
        "forget" => match repo.snapshots()?.get(1) {
            Some(snapshot) => repo.forget(&snapshot.id).map(drop),
            None => Ok(()),
        },
        other => panic!("what is {other}?"),
    }
}

/// The work of the process that dies. Does nothing when it is run as a test.
#[test]
fn dies_here() {
    let (Some(place), Ok(work)) = (Place::of_environment(), std::env::var(WORK)) else { return };
    let path = |name| std::path::PathBuf::from(std::env::var_os(name).unwrap());
    do_it(&work, &place.store(), &path(OTHER), &path(TARGET)).unwrap();
}

fn prepare(store: &Store, work: &str) {
    if work == "init" {
        return;
    }
    let repo = make(store).unwrap();
    backup(&repo, &first_files()).unwrap();
    match work {
        "expire" => {
            for name in SEGMENTS {
                repo.archive(SYSTEM).push(name, &segment()).unwrap();
            }
        }
        "remove a host" => drop(repo.add_host("to go").unwrap()),
        "remove a key" => drop(repo.add_key(&second_key(), "to go").unwrap()),
        "forget" => drop(backup(&repo, &few_files()).unwrap()),
        "maintain" | "repair" => {
            let many = backup(&repo, &many_files()).unwrap();
            backup(&repo, &few_files()).unwrap();
            repo.forget(&many.id).unwrap();
            if work == "maintain" {
                // One that never comes to an end.
                std::mem::forget(repo.begin(options("asleep")).unwrap());
                return;
            }
            repo.maintain(&impatient(), &Default::default()).unwrap();
            repo.archive(SYSTEM).push(SEGMENTS[0], &segment()).unwrap();
            let second = backup(&repo, &second_files()).unwrap();
            damage(store, &second);
        }
        _ => {}
    }
}

/// Something of everything that a repair mends.
fn damage(store: &Store, second: &Snapshot) {
    for object in store.list("").unwrap() {
        let (key, of_second) = (object.key.as_str(), object.key.contains(&second.id));
        let index = key.starts_with("index/1/")
            || key.starts_with("index/heads/")
            || (key.starts_with("index/0/") && of_second);
        let pack = key.starts_with("packs/") && of_second;
        if index || pack || key == "gc/00000001/condemned" || key.starts_with("wal/") {
            let mut body = store.read(key).unwrap().to_vec();
            let at = if pack { 200 } else { 170 };
            body[at] ^= 1;
            store.delete(key).unwrap();
            store.create(key, body.into()).unwrap();
        }
    }
}

fn examine(store: &Store, work: &str, other: &Path, target: &Path, context: &str) {
    if ["repair", "init", "rotate"].contains(&work) {
        // What is damaged is not found good before.
        do_it(work, store, other, target).unwrap_or_else(|e| panic!("{context}: {e}"));
        if work == "repair" {
            for _ in 0..2 {
                open(store).maintain(&impatient(), &Default::default()).unwrap();
            }
        }
    }
    let repo = open_any(store).unwrap();
    assert_eq!(verify(&repo, Level::Thorough).damages, [], "{context}");
    do_it(work, store, other, target).unwrap_or_else(|e| panic!("{context}: {e}"));
    assert_eq!(verify(&open_any(store).unwrap(), Level::Thorough).damages, [], "{context}");
    let repo = open_any(store).unwrap();
    let snapshots = repo.snapshots().unwrap();
    let Some(first) = snapshots.first() else {
        assert_eq!(work, "init", "{context}");
        return;
    };
    let to = tempfile::tempdir().unwrap();
    let options = RestoreOptions { sync: false, ..RestoreOptions::new(to.path()) };
    repo.restore(first, options, &Progress::default()).unwrap();
    assert_restored(&first_files(), to.path());
    match work {
        "restore" => assert_restored(&first_files(), target),
        "push" => {
            let found = repo.archive(SYSTEM).fetch(SEGMENTS[1]).unwrap();
            assert!(found.is_some_and(|found| found == segment()), "{context}");
        }
        "repair" => {
            assert_eq!(snapshots.len(), 3, "{context}");
            let found = repo.archive(SYSTEM).fetch(SEGMENTS[0]).unwrap();
            assert!(found.is_some_and(|found| found == segment()), "{context}");
        }
        "expire" => {
            let left = repo.archive(SYSTEM).list(None).unwrap();
            let left: Vec<&str> = left.iter().map(|file| file.name.as_str()).collect();
            assert_eq!(left, [SEGMENTS[1]], "{context}");
        }
        "maintain" => assert_eq!(snapshots.len(), 2, "{context}"),
        "forget" => assert_eq!(snapshots.len(), 1, "{context}"),
        _ => {}
    }
}

/// The content of all that is damaged, in a repository under another key.
fn other_repository(folder: &Path) {
    let store = Store::open(&format!("file://{}", folder.display()), &StoreOptions::default());
    let options = InitOptions::default();
    let other =
        Repository::init(store.unwrap(), Environment::system(), &second_key(), options).unwrap();
    for files in [first_files(), few_files(), second_files()] {
        backup(&other, &files).unwrap();
    }
    other.archive(SYSTEM).push(SEGMENTS[0], &segment()).unwrap();
}

/// Dies everywhere in a place of its own each time.
#[allow(clippy::print_stdout, reason = "where it has come to, for whoever waits")]
fn dies_everywhere(name: &str, more: &[&str], place: impl Fn(usize) -> Place) {
    let other = tempfile::tempdir().unwrap();
    other_repository(other.path());
    let (mut number, started) = (0, std::time::Instant::now());
    for (work, failpoints) in OPERATIONS {
        for failpoint in failpoints.iter().chain(more) {
            number += 1;
            let place = place(number);
            let target = tempfile::tempdir().unwrap();
            let target = target.path().join("restored");
            prepare(&place.store(), work);
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["dies_here", "--exact", "--test-threads=1"])
                .env(WORK, work)
                .env(URL, &place.url)
                .env(OPTIONS, place.described())
                .env(OTHER, other.path())
                .env(TARGET, &target)
                .env("BACKSTAY_FAILPOINT", failpoint)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            let context = format!("{name}: {work} at {failpoint}");
            let died = status.signal() == Some(9);
            // These create nothing in the store.
            let creates = !["restore", "remove a key", "expire"].contains(work);
            assert!(died || (!creates && more.contains(failpoint)), "{context}: {status}");
            println!("{context}, after {:.1} s", started.elapsed().as_secs_f64());
            examine(&place.store(), work, other.path(), &target, &context);
        }
    }
}

#[test]
fn in_a_local_directory() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["local-create-written", "local-create-linked"];
    dies_everywhere("local", &more, |number| Place {
        url: format!("file://{}/{number}", folder.path().display()),
        options: StoreOptions::default(),
    });
}

#[test]
fn on_s3() {
    let Some(server) = servers::s3() else { return };
    dies_everywhere("s3", &[], |number| Place {
        url: format!("s3://backstay/{number}"),
        options: server.options.clone(),
    });
}

#[test]
fn on_azure() {
    let Some(server) = servers::azure() else { return };
    dies_everywhere("azure", &[], |number| Place {
        url: format!("az://backstay/{number}"),
        options: server.options.clone(),
    });
}

#[test]
fn on_google_cloud_storage() {
    let Some(server) = servers::google() else { return };
    dies_everywhere("gcs", &[], |number| Place {
        url: format!("gs://backstay/{number}"),
        options: server.options.clone(),
    });
}
