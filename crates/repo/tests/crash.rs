//! A process that dies at any step: what was committed stays, what was not does not count, and the
//! same work done again succeeds.
//!
//! The binary of this test starts itself again as the process that dies: [`dies_here`] is its work.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use backstay_repo::*;
use backstay_store::{Local, failpoint};
use support::*;

const SYSTEM: u64 = 7_000_000_000_000_000_002;
const SEGMENT: &str = "000000010000000000000003";
/// What goes, in this order.
const EXPIRING: [&str; 3] =
    ["000000010000000000000003", "000000010000000000000004", "000000010000000000000005"];
const DO: &str = "BACKSTAY_TEST_DO";
const IN: &str = "BACKSTAY_TEST_IN";

/// Failpoints of the crates above, which nothing here passes.
fn is_above(name: &str) -> bool {
    // Parity is off here; the tests of the store stop at every step of it.
    let parity =
        ["local-parity-", "local-mend-", "local-lock-"].iter().any(|room| name.starts_with(room));
    parity || name.starts_with("postgres-") || name.starts_with("wal-")
}

fn store(folder: &Path) -> Store {
    Store::new(Local::new(folder.join("store")).unwrap())
}

/// What is copied to.
fn second_store(folder: &Path) -> Store {
    Store::new(Local::new(folder.join("second")).unwrap())
}

fn first_files() -> Files {
    use Chunking::{ContentDefined as C, Grid as G};
    files(&[
        ("a/inline", C, noise(100, 1)),
        ("a/grouped", C, noise(30_000, 2)),
        ("b/chunked", C, noise(700_000, 3)),
        ("b/grid", G, noise((1 << 20) + 8192, 4)),
    ])
}

/// Some of it shared with the first.
fn second_files() -> Files {
    use Chunking::{ContentDefined as C, Grid as G};
    let mut all = first_files();
    all.extend(files(&[
        ("a/inline", C, noise(101, 11)),
        ("b/chunked", C, noise(900_000, 12)),
        ("c/grid", G, noise((2 << 20) + 5, 13)),
    ]));
    all
}

/// Many files, most of which only a forgotten snapshot has.
fn many_files() -> Files {
    let content = |n| (Chunking::ContentDefined, std::sync::Arc::new(noise(70_000, 100 + n)));
    (0..12_u64).map(|n| (format!("many/{n:02}"), content(n))).collect()
}

fn new_key() -> Secret {
    Secret::key_file([8; 32]).unwrap()
}

fn few_files() -> Files {
    many_files().into_iter().filter(|(path, _)| path.ends_with('3')).collect()
}

fn impatient() -> MaintenanceOptions {
    MaintenanceOptions { give_up_after: Duration::ZERO, ..MaintenanceOptions::default() }
}

fn segment() -> Vec<u8> {
    noise((2 << 20) + 77, 21)
}

/// The work of the process that dies. Does nothing when it is run as a test.
#[test]
fn dies_here() {
    let (Ok(work), Ok(folder)) = (std::env::var(DO), std::env::var(IN)) else { return };
    let folder = Path::new(&folder);
    let store = store(folder);
    match work.as_str() {
        "init" => {
            let env = Environment::system();
            match Repository::init(store, env, &key(), InitOptions::default()) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), RepoErrorKind::Exists),
            }
        }
        "backup" => {
            backup(&open(&store), &second_files()).unwrap();
        }
        "maintain" => {
            open(&store).maintain(&impatient(), &Default::default()).unwrap();
        }
        "copy" => {
            let (from, to) = (open(&store), open(&second_store(folder)));
            let snapshot = from.snapshots().unwrap().remove(0);
            // Listed after each pack, there is a segment of the index on the way.
            let options = CopyOptions { list_every: 1, workers: 1, ..CopyOptions::default() };
            copy(&from, &snapshot, &to, &options).unwrap();
        }
        "push" => {
            open(&store).archive(SYSTEM).push(SEGMENT, &segment()).unwrap();
        }
        "expire" => {
            let all = |files: &[ArchivedFile], _: &[Snapshot]| -> Result<Vec<String>> {
                Ok(files.iter().map(|file| file.name.clone()).collect())
            };
            open(&store).archive(SYSTEM).expire(false, all, &Default::default()).unwrap();
        }
        "rotate" => {
            open(&store).rotate(&[(new_key(), "new".to_owned())]).unwrap();
        }
        "restore" => {
            let repo = open(&store);
            let snapshot = repo.snapshots().unwrap().remove(0);
            let options =
                RestoreOptions { delta: true, ..RestoreOptions::new(folder.join("restored")) };
            repo.restore(&snapshot, options, &Progress::default()).unwrap();
        }
        "repair" => {
            open(&store).repair(&from_other(folder), &Default::default()).unwrap();
        }
        other => panic!("what is {other}?"),
    }
}

/// Repairs from the repository beside it, which has the same content under another key.
fn from_other(folder: &Path) -> RepairOptions {
    let store = Store::new(Local::new(folder.join("other")).unwrap());
    let options = OpenOptions::default();
    let from = Repository::open(store, Environment::system(), &other_key(), options).unwrap();
    RepairOptions { level: Level::Thorough, from: Some(from), ..RepairOptions::default() }
}

fn other_key() -> Secret {
    Secret::key_file([9; 32]).unwrap()
}

/// Damages something of everything that a repair mends.
fn damage(folder: &Path) {
    let other = Store::new(Local::new(folder.join("other")).unwrap());
    let options = InitOptions::default();
    let other = Repository::init(other, Environment::system(), &other_key(), options).unwrap();
    let store = store(folder);
    let repo = open(&store);
    for files in [first_files(), few_files(), second_files()] {
        backup(&other, &files).unwrap();
    }
    for repo in [&repo, &other] {
        repo.archive(SYSTEM).push(SEGMENT, &segment()).unwrap();
    }
    let second = backup(&repo, &second_files()).unwrap();
    let flip = |key: &str, at: usize| {
        let mut body = store.read(key).unwrap().to_vec();
        let at = at % body.len();
        body[at] ^= 1;
        store.delete(key).unwrap();
        store.create(key, body.into()).unwrap();
    };
    let all = store.list("").unwrap();
    for object in &all {
        let of_second = object.key.contains(&second.id);
        if object.key.starts_with("packs/") && of_second {
            flip(&object.key, 400);
        } else if object.key.starts_with("index/1/")
            || object.key.starts_with("index/heads/")
            || (object.key.starts_with("index/0/") && of_second)
            || object.key == "gc/00000001/condemned"
            || object.key.starts_with("wal/")
        {
            flip(&object.key, 170);
        }
    }
}

fn child(work: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["dies_here", "--exact", "--test-threads=1"])
        .env(DO, work)
        .env(IN, folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn killed(status: ExitStatus) -> bool {
    assert!(status.success() || status.signal() == Some(9), "{status}");
    status.signal() == Some(9)
}

/// A store with one snapshot, as it was before anything died.
fn prepare(folder: &Path, work: &str) -> Option<Snapshot> {
    if work == "init" {
        return None;
    }
    let repo = repository(&store(folder));
    let first = backup(&repo, &first_files()).unwrap();
    if work == "copy" {
        repository(&second_store(folder));
    }
    if work == "expire" {
        for name in EXPIRING {
            repo.archive(SYSTEM).push(name, &segment()).unwrap();
        }
    }
    if work == "maintain" || work == "repair" {
        let many = backup(&repo, &many_files()).unwrap();
        backup(&repo, &few_files()).unwrap();
        repo.forget(&many.id).unwrap();
        if work == "repair" {
            repo.maintain(&impatient(), &Default::default()).unwrap();
            damage(folder);
            return Some(first);
        }
        // One that never comes to an end.
        std::mem::forget(repo.begin(options("asleep")).unwrap());
    }
    Some(first)
}

/// After the death of a copy the second repository has all of it or nothing, and copying again makes it
/// whole.
fn examine_copy(folder: &Path, context: &str) {
    let second = second_store(folder);
    let to = open(&second);
    let damages = verify(&to, Level::Thorough).damages;
    assert!(damages.is_empty(), "{context}: {damages:?}");
    let from = open(&store(folder));
    let snapshot = from.snapshots().unwrap().remove(0);
    let made = match copy(&from, &snapshot, &to, &CopyOptions::default()).unwrap() {
        Copied::New(made) | Copied::There(made) => made,
    };
    assert_eq!(to.snapshots().unwrap().len(), 1, "{context}");
    let restored = tempfile::tempdir().unwrap();
    restore(&to, &made, restored.path());
    assert_restored(&first_files(), restored.path());
    assert!(verify(&to, Level::Thorough).damages.is_empty(), "{context}");
}

/// What must be true after a death, whatever it was.
fn examine(folder: &Path, work: &str, first: Option<&Snapshot>, context: &str) {
    if work == "copy" {
        return examine_copy(folder, context);
    }
    let store = store(folder);
    if work == "init" {
        let env = Environment::system();
        match Repository::init(store.clone(), env, &key(), InitOptions::default()) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), RepoErrorKind::Exists, "{context}: {error}"),
        }
        let repo = open(&store);
        assert_eq!(verify(&repo, Level::Thorough).damages, [], "{context}");
        assert_eq!(repo.key_slots().unwrap().len(), 1, "{context}");
        // A slot that the dead left opens nothing, and must not count as a way in.
        let slot = repo.key_slots().unwrap().remove(0);
        assert_eq!(
            repo.remove_key(&slot.id).unwrap_err().kind(),
            RepoErrorKind::Usage,
            "{context}"
        );
        let snapshot = backup(&repo, &first_files()).unwrap();
        check(&repo, &snapshot, &first_files());
        return;
    }
    let repo = open(&store);
    if work == "repair" {
        // The same repair done again comes to its end, whatever the dead one did.
        let report = repo.repair(&from_other(folder), &Default::default()).unwrap();
        let waits = |damage: &Damage| damage.what.contains("sessions at work");
        assert!(report.unrepaired.iter().all(waits), "{context}: {report:?}");
        repo.maintain(&impatient(), &Default::default()).unwrap();
        repo.maintain(&impatient(), &Default::default()).unwrap();
        assert_eq!(repo.snapshots().unwrap().len(), 3, "{context}");
        let archived = repo.archive(SYSTEM).fetch(SEGMENT).unwrap();
        assert!(archived.is_some_and(|found| found == segment()), "{context}");
    }
    assert_eq!(verify(&repo, Level::Thorough).damages, [], "{context}");
    check(&repo, first.unwrap(), &first_files());
    let snapshots = repo.snapshots().unwrap();
    for snapshot in snapshots.iter().filter(|s| s.id != first.unwrap().id) {
        // Visible, so complete.
        match work {
            "backup" => check(&repo, snapshot, &second_files()),
            "maintain" => check(&repo, snapshot, &few_files()),
            "repair" if snapshot.stats.bytes == bytes_of(&few_files()) => {
                check(&repo, snapshot, &few_files());
            }
            "repair" => check(&repo, snapshot, &second_files()),
            _ => panic!("{context}: where does that come from?"),
        }
    }
    match work {
        "backup" => {
            let again = backup(&repo, &second_files()).unwrap();
            check(&open(&store), &again, &second_files());
        }
        "maintain" => {
            assert_eq!(snapshots.len(), 2, "{context}");
            repo.maintain(&impatient(), &Default::default()).unwrap();
            let last = repo.maintain(&impatient(), &Default::default()).unwrap();
            assert_eq!((last.packs_removed, last.packs_repacked), (0, 0), "{context}: {last:?}");
            // What only the forgotten one needed takes no space any more.
            let bytes = repo.usage().unwrap().packs.bytes;
            let needed = 2_000_000 + 70_000 * few_files().len() as u64;
            assert!(bytes < needed + needed / 4, "{context}: {bytes}");
            for snapshot in &repo.snapshots().unwrap() {
                let is_first = snapshot.id == first.unwrap().id;
                check(&repo, snapshot, &if is_first { first_files() } else { few_files() });
            }
        }
        "repair" => {}
        "expire" => {
            // The newest are left, without a gap.
            let left = repo.archive(SYSTEM).list(None).unwrap();
            let left: Vec<&str> = left.iter().map(|file| file.name.as_str()).collect();
            assert!(EXPIRING.ends_with(&left), "{context}: {left:?}");
        }
        "push" => {
            let archive = repo.archive(SYSTEM);
            let found = archive.fetch(SEGMENT).unwrap();
            assert!(found.is_none_or(|found| found == segment()), "{context}");
            archive.push(SEGMENT, &segment()).unwrap();
            assert!(archive.fetch(SEGMENT).unwrap().unwrap() == segment(), "{context}");
        }
        _ => {
            let options =
                RestoreOptions { delta: true, ..RestoreOptions::new(folder.join("restored")) };
            repo.restore(first.unwrap(), options, &Progress::default()).unwrap();
            assert_restored(&first_files(), &folder.join("restored"));
        }
    }
    assert_eq!(verify(&repo, Level::Thorough).damages, [], "{context}");
    let left = std::fs::read_dir(folder.join("store/.tmp")).map_or(0, Iterator::count);
    // The next one who creates something removes them, and these two need not.
    let creates = !["restore", "maintain", "repair"].contains(&work);
    assert!(!creates || left == 0, "{context}: {left} temporaries stay behind");
}

fn bytes_of(files: &Files) -> u64 {
    files.values().map(|(_, bytes)| bytes.len() as u64).sum()
}

fn check(repo: &Repository, snapshot: &Snapshot, files: &Files) {
    let to = tempfile::tempdir().unwrap();
    let options = RestoreOptions { sync: false, ..RestoreOptions::new(to.path()) };
    repo.restore(snapshot, options, &Progress::default()).unwrap();
    assert_restored(files, to.path());
}

/// Dies at each failpoint, the first time and later times, until it is passed no more; returns the
/// failpoints that were met.
fn dies_everywhere(work: &str, most: u64) -> BTreeSet<&'static str> {
    let mut met = BTreeSet::new();
    for name in failpoint::ALL.iter().copied().filter(|name| !is_above(name)) {
        for count in 1..=most {
            let folder = tempfile::tempdir().unwrap();
            let first = prepare(folder.path(), work);
            let mut command = child(work, folder.path());
            command.env("BACKSTAY_FAILPOINT", format!("{name}:{count}"));
            if !killed(command.status().unwrap()) {
                break;
            }
            met.insert(name);
            examine(folder.path(), work, first.as_ref(), &format!("{work} at {name}:{count}"));
        }
    }
    met
}

const LOCAL: [&str; 5] = [
    "local-create-temporary",
    "local-create-written",
    "local-create-synced",
    "local-create-linked",
    "local-create-settled",
];

fn expect(met: &BTreeSet<&str>, more: &[&str]) {
    let expected: BTreeSet<&str> = LOCAL.iter().chain(more).copied().collect();
    let expected: BTreeSet<&str> =
        if more.contains(&"restore-planned") { more.iter().copied().collect() } else { expected };
    let missed: Vec<_> = expected.difference(met).collect();
    assert!(missed.is_empty(), "never met: {missed:?}");
}

#[test]
fn init_dies_at_every_step() {
    expect(&dies_everywhere("init", 3), &["init-keys-created"]);
}

#[test]
fn a_backup_dies_at_every_step() {
    let met = dies_everywhere("backup", 6);
    let steps =
        ["session-created", "pack-sealed", "pack-created", "index-created", "snapshot-created"];
    expect(&met, &steps);
}

#[test]
fn a_push_dies_at_every_step() {
    expect(&dies_everywhere("push", 2), &["archive-sealed", "archive-created"]);
}

#[test]
fn removing_files_of_an_archive_dies_at_every_step() {
    // It creates nothing, so there is no other.
    for count in 1..=3 {
        let folder = tempfile::tempdir().unwrap();
        let first = prepare(folder.path(), "expire");
        let mut command = child("expire", folder.path());
        command.env("BACKSTAY_FAILPOINT", format!("archive-file-removed:{count}"));
        assert!(killed(command.status().unwrap()), "{count}");
        examine(folder.path(), "expire", first.as_ref(), &format!("expire at {count}"));
    }
}

#[test]
fn maintenance_dies_at_every_step() {
    let met = dies_everywhere("maintain", 3);
    let steps = [
        "session-created",
        "pack-created",
        "index-created",
        "maintenance-repacked",
        "maintenance-condemned",
        "maintenance-sessions",
        "maintenance-given-up",
        "maintenance-sweep",
        "maintenance-merged",
        "maintenance-head",
        "maintenance-pack-removed",
        "maintenance-snapshot-removed",
    ];
    expect(&met, &steps);
}

/// What a repair passes itself; what it shares with a backup and with maintenance is above.
const REPAIR: [&str; 9] = [
    "repair-listed",
    "repair-segment-removed",
    "repair-head-merged",
    "repair-head-removed",
    "repair-run-marked",
    "repair-run-removed",
    "repair-stored",
    "repair-archived-stored",
    "repair-archived-removed",
];

#[test]
fn a_repair_dies_at_every_step() {
    let mut met = BTreeSet::new();
    for name in REPAIR {
        // Some are passed more than once.
        let often = ["repair-segment-removed", "repair-run-removed", "repair-stored"];
        for count in 1..=1 + u64::from(often.contains(&name)) {
            let folder = tempfile::tempdir().unwrap();
            let first = prepare(folder.path(), "repair");
            let mut command = child("repair", folder.path());
            command.env("BACKSTAY_FAILPOINT", format!("{name}:{count}"));
            if !killed(command.status().unwrap()) {
                break;
            }
            met.insert(name);
            let context = format!("repair at {name}:{count}");
            examine(folder.path(), "repair", first.as_ref(), &context);
        }
    }
    assert_eq!(met, REPAIR.into_iter().collect());
}

/// There is always exactly one of the two keys that opens all, and the work can be done again.
#[test]
fn replacing_the_root_key_dies_at_every_step() {
    let mut met = BTreeSet::new();
    let open_with = |folder: &Path, secret: &Secret| {
        let env = Environment::system();
        Repository::open(store(folder), env, secret, OpenOptions::default())
    };
    for name in failpoint::ALL.iter().copied().filter(|name| !is_above(name)) {
        for count in 1..=4 {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path();
            let first = prepare(folder, "rotate").unwrap();
            let mut command = child("rotate", folder);
            command.env("BACKSTAY_FAILPOINT", format!("{name}:{count}"));
            if !killed(command.status().unwrap()) {
                break;
            }
            met.insert(name);
            let context = format!("{name}:{count}");
            if let Err(error) = open_with(folder, &new_key()) {
                assert_eq!(error.kind(), RepoErrorKind::WrongKey, "{context}: {error}");
                let old = open_with(folder, &key()).unwrap();
                check(&old, &first, &first_files());
                old.rotate(&[(new_key(), "again".to_owned())]).unwrap();
            }
            let new = open_with(folder, &new_key()).unwrap();
            let error = open_with(folder, &key()).unwrap_err();
            assert_eq!(error.kind(), RepoErrorKind::WrongKey, "{context}: {error}");
            check(&new, &first, &first_files());
            let second = backup(&new, &second_files()).unwrap();
            check(&new, &second, &second_files());
            assert_eq!(verify(&new, Level::Thorough).damages, [], "{context}");
            assert_eq!(new.snapshots().unwrap().len(), 2, "{context}");
        }
    }
    expect(&met, &["rotate-keys-added", "rotate-begun", "rotate-in-force"]);
}

#[test]
fn a_restore_dies_at_every_step() {
    let met = dies_everywhere("restore", 3);
    expect(&met, &["restore-planned", "restore-chunk-written", "restore-synced"]);
}

#[test]
fn a_copy_dies_at_every_step() {
    let met = dies_everywhere("copy", 2);
    let steps = [
        "session-created",
        "pack-sealed",
        "pack-created",
        "index-created",
        "copy-read",
        "snapshot-created",
    ];
    expect(&met, &steps);
}

/// What a copy that died had listed is not sent again.
#[test]
fn a_copy_goes_on_where_it_died() {
    let folder = tempfile::tempdir().unwrap();
    // More than can be open, on its way and waiting at once: four packs, one that is full, a queue.
    let content = |n| (Chunking::Grid, std::sync::Arc::new(noise(3 << 20, 300 + n)));
    let files: Files = (0..64_u64).map(|n| (format!("large/{n:02}"), content(n))).collect();
    let from = repository(&store(folder.path()));
    let to = repository(&second_store(folder.path()));
    let snapshot = backup(&from, &files).unwrap();
    let mut dies = child("copy", folder.path());
    dies.env("BACKSTAY_FAILPOINT", "copy-listed:1");
    assert!(killed(dies.status().unwrap()));
    assert!(to.snapshots().unwrap().is_empty());
    let Copied::New(made) = copy(&from, &snapshot, &to, &CopyOptions::default()).unwrap() else {
        panic!("it was not there")
    };
    let bytes: usize = files.values().map(|(_, bytes)| bytes.len()).sum();
    assert!(made.stats.new_bytes < bytes as u64 - (20 << 20), "{:?}", made.stats);
    restore(&to, &made, &folder.path().join("restored"));
    assert_restored(&files, &folder.path().join("restored"));
}

#[test]
fn every_failpoint_of_this_floor_is_met_by_some_test() {
    let known: BTreeSet<&str> = LOCAL
        .into_iter()
        .chain(REPAIR)
        .chain([
            "init-keys-created",
            // in `keys.rs`
            "key-recorded",
            "key-created",
            "key-removal-recorded",
            "key-removed",
            "session-created",
            "pack-sealed",
            "pack-created",
            "index-created",
            "snapshot-created",
            // in `parts.rs` of the store
            "upload-begun",
            "upload-part-sent",
            "upload-parts-sent",
            "archive-sealed",
            "archive-created",
            "archive-file-removed",
            "host-added",
            "lock-extended",
            // in `authority.rs` and `deaths.rs`
            "host-leaving",
            "rotate-keys-added",
            "rotate-begun",
            "rotate-in-force",
            "maintenance-repacked",
            "maintenance-condemned",
            "maintenance-sessions",
            "maintenance-given-up",
            "maintenance-sweep",
            "maintenance-merged",
            "maintenance-head",
            "maintenance-pack-removed",
            "maintenance-snapshot-removed",
            "copy-read",
            "copy-listed",
            "restore-planned",
            "restore-chunk-written",
            "restore-synced",
        ])
        .collect();
    let all: BTreeSet<&str> =
        failpoint::ALL.iter().copied().filter(|name| !is_above(name)).collect();
    assert_eq!(all, known, "a new failpoint wants its place in the tests above");
}

/// Every call in the sources has its place in the list, and the list names no other.
#[test]
fn the_list_of_failpoints_is_that_of_the_sources() {
    let mut found = BTreeSet::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("..")];
    while let Some(folder) = folders.pop() {
        for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            if file.is_dir() && name != "tests" && name != "target" {
                folders.push(file);
            } else if name.ends_with(".rs") {
                let source = std::fs::read_to_string(&file).unwrap();
                for call in source.split("failpoint::hit(\"").skip(1) {
                    found.insert(call.split('"').next().unwrap().to_owned());
                }
            }
        }
    }
    let listed: BTreeSet<String> = failpoint::ALL.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, listed);
}

/// Killed from outside at moments that nobody chose.
#[test]
fn killed_at_any_moment() {
    let seed = u64::from_le_bytes(Environment::system().random());
    println!("seed {seed}");
    let lots = Environment::seeded(seed);
    for work in ["backup", "push", "restore", "maintain", "init", "copy"] {
        // How long it takes when nobody kills it.
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path(), work);
        let started = Instant::now();
        assert!(child(work, folder.path()).status().unwrap().success());
        let whole = started.elapsed();
        // One store takes all the deaths.
        let folder = tempfile::tempdir().unwrap();
        let first = prepare(folder.path(), work);
        let mut deaths = 0;
        for round in 0..8 {
            let lot = f64::from(u32::from_le_bytes(lots.random())) / f64::from(u32::MAX);
            let mut running = child(work, folder.path()).spawn().unwrap();
            // The moment is what is being tried out.
            std::thread::sleep(whole.mul_f64(lot).min(Duration::from_secs(2)));
            running.kill().unwrap();
            let died = killed(running.wait().unwrap());
            deaths += u32::from(died);
            if round % 4 == 3 {
                let context = format!("{work}, seed {seed}, round {round}");
                examine(folder.path(), work, first.as_ref(), &context);
            }
        }
        println!("{work}: {deaths} deaths");
    }
}
