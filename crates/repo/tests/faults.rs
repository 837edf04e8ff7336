//! Stores that fail, lie and stall, disks that are full or read-only, writers that meet each other:
//! errors are clear, nothing is lost, and a lie about success is found by `verify`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, SystemTime};

use backstay_repo::*;
use backstay_store::{
    ErrorKind, Fault, Faulty, FixedClock, Local, Memory, Operation, RetryPolicy, Rule,
    SeededRandom, When,
};
use backstay_testing::{Space, skip};
use support::*;

const SYSTEM: u64 = 7_000_000_000_000_000_003;
const SEGMENT: &str = "000000010000000000000003";

/// A store with one snapshot, whose faults are still to come.
struct Bench {
    faulty: Faulty,
    store: Store,
    first: Snapshot,
}

fn bench() -> Bench {
    let faulty = Faulty::new(Memory::new(), Environment::seeded(5), 5);
    let store = Store::new(faulty.clone());
    let first = backup(&repository(&store), &first_files()).unwrap();
    Bench { faulty, store, first }
}

fn first_files() -> Files {
    use Chunking::{ContentDefined as C, Grid as G};
    files(&[
        ("a/inline", C, noise(100, 1)),
        ("a/grouped", C, noise(30_000, 2)),
        ("b/chunked", C, noise(300_000, 3)),
        ("b/grid", G, noise(80_000, 4)),
    ])
}

fn second_files() -> Files {
    use Chunking::{ContentDefined as C, Grid as G};
    let mut all = first_files();
    all.extend(files(&[
        ("a/inline", C, noise(101, 11)),
        ("b/chunked", C, noise(400_000, 12)),
        ("c/grid", G, noise((1 << 20) + 5, 13)),
    ]));
    all
}

fn check(repo: &Repository, snapshot: &Snapshot, files: &Files) {
    restored(repo, snapshot, files).unwrap();
}

fn restored(repo: &Repository, snapshot: &Snapshot, files: &Files) -> Result<()> {
    let to = tempfile::tempdir().unwrap();
    let options = RestoreOptions { sync: false, ..RestoreOptions::new(to.path()) };
    repo.restore(snapshot, options, &Progress::default())?;
    assert_restored(files, to.path());
    Ok(())
}

impl Bench {
    /// Without faults any more: nothing is lost, and the work can be done again.
    fn nothing_is_lost(&self, context: &str) {
        self.faulty.clear();
        self.faulty.revive();
        let repo = open(&self.store);
        assert_eq!(verify(&repo, Level::Thorough).damages, [], "{context}");
        check(&repo, &self.first, &first_files());
        for snapshot in repo.snapshots().unwrap() {
            if snapshot.id != self.first.id {
                check(&repo, &snapshot, &second_files());
            }
        }
        let again = backup(&repo, &second_files()).unwrap();
        check(&open(&self.store), &again, &second_files());
    }
}

#[test]
fn a_backup_whose_store_fails_at_any_creation_says_so_and_loses_nothing() {
    let faults = [
        (Fault::Fail(ErrorKind::NoSpace), "no space left in the store"),
        (Fault::Fail(ErrorKind::Denied), "access denied"),
        (Fault::Fail(ErrorKind::Transient), "the store did not answer"),
        (Fault::DoneButFail(ErrorKind::Transient), "the store did not answer"),
        (Fault::Die, "the store is dead"),
        (Fault::DoneThenDie, "the store is dead"),
    ];
    for (fault, sentence) in faults {
        for nth in 1.. {
            let bench = bench();
            let before = bench.faulty.count(Operation::Create);
            bench.faulty.add(Rule::new(Operation::Create, When::Nth(nth), fault.clone()));
            let context = format!("{fault:?} at creation {nth}");
            match backup(&open(&bench.store), &second_files()) {
                Ok(_) => {
                    assert!(bench.faulty.count(Operation::Create) - before < nth, "{context}");
                    // Session, one or two packs of data, one of metadata, index, snapshot.
                    assert!(nth > 5, "{context}");
                    break;
                }
                Err(error) => {
                    assert_eq!(error.kind(), RepoErrorKind::Store, "{context}: {error}");
                    assert!(error.to_string().contains(sentence), "{context}: {error}");
                    assert!(error.to_string().starts_with("could not create "), "{error}");
                    let hinted = !sentence.contains("dead");
                    assert_eq!(error.hint().is_some(), hinted, "{context}");
                    let transient = sentence.contains("did not answer");
                    assert_eq!(error.is_transient(), transient, "{context}");
                }
            }
            bench.nothing_is_lost(&context);
        }
    }
}

#[test]
fn a_backup_whose_store_dies_while_reading_says_so_and_loses_nothing() {
    for operation in [Operation::Read, Operation::List] {
        for nth in 1.. {
            let bench = bench();
            let repo = open(&bench.store);
            bench.faulty.add(Rule::new(operation, When::Nth(nth), Fault::Die));
            let done = backup(&repo, &second_files());
            bench.nothing_is_lost(&format!("dead at {operation:?} {nth}"));
            if done.is_ok() {
                assert!(nth > 1);
                break;
            }
        }
    }
}

/// A store behind a network that drops every other thing; waiting costs no time.
fn shaky(chance: f64, seed: u64) -> (Faulty, Store) {
    let env = Environment::seeded(seed);
    let faulty = Faulty::new(Memory::new(), env.clone(), seed);
    let retries = RetryPolicy { budget: Duration::from_secs(1 << 30), ..RetryPolicy::default() };
    let retries = RetryPolicy { attempts: 40, ..retries };
    let store = Store::new(faulty.clone()).with_environment(env).with_retries(retries);
    faulty.add(Rule::new(None, When::Chance(chance), Fault::Fail(ErrorKind::Transient)));
    let lost = Fault::DoneButFail(ErrorKind::Transient);
    faulty.add(Rule::new(Operation::Create, When::Chance(chance), lost));
    (faulty, store)
}

#[test]
fn what_fails_for_a_moment_is_tried_again() {
    for seed in 0..10 {
        let (faulty, store) = shaky(0.4, seed);
        let repo = repository(&store);
        let snapshot = backup(&repo, &second_files()).unwrap();
        let archive = repo.archive(SYSTEM);
        let segment = noise(3 << 20, 9);
        assert!(matches!(archive.push(SEGMENT, &segment).unwrap(), Pushed::New { .. }));
        assert_eq!(archive.push(SEGMENT, &segment).unwrap(), Pushed::Same);
        let repo = open(&store);
        check(&repo, &snapshot, &second_files());
        assert!(repo.archive(SYSTEM).fetch(SEGMENT).unwrap().unwrap() == segment);
        assert_eq!(verify(&repo, Level::Thorough).damages, [], "seed {seed}");
        assert_eq!(repo.snapshots().unwrap().len(), 1, "one backup is one snapshot");
        faulty.clear();
        assert_eq!(repo.key_slots().unwrap().len(), 1);
    }
}

#[test]
fn an_init_whose_answer_was_lost_leaves_a_repository_that_opens() {
    for nth in [1, 2] {
        for fault in [Fault::DoneButFail(ErrorKind::Transient), Fault::DoneThenDie, Fault::Die] {
            let faulty = Faulty::new(Memory::new(), Environment::system(), 1);
            let store = Store::new(faulty.clone());
            faulty.add(Rule::new(Operation::Create, When::Nth(nth), fault));
            let init = || {
                let env = Environment::system();
                Repository::init(store.clone(), env, &key(), InitOptions::default())
            };
            let first = init();
            faulty.clear();
            faulty.revive();
            match init() {
                Ok(_) => assert!(first.is_err()),
                Err(error) => assert_eq!(error.kind(), RepoErrorKind::Exists, "{error}"),
            }
            let repo = open(&store);
            assert_eq!(repo.key_slots().unwrap().len(), 1);
            assert_eq!(verify(&repo, Level::Thorough).damages, []);
        }
    }
}

#[test]
fn a_lie_about_success_is_found_by_verify() {
    let lies = [
        // What was said to be stored, and is not.
        ("packs/", Fault::Pretend, Level::Basic),
        ("packs/", Fault::Truncate(200), Level::Basic),
        ("packs/", Fault::Truncate(0), Level::Basic),
        ("packs/", Fault::Flip { at: 30_000, bits: 1 }, Level::Standard),
        ("packs/", Fault::Flip { at: 17, bits: 1 }, Level::Standard),
        ("index/", Fault::Pretend, Level::Basic),
        ("index/", Fault::Truncate(200), Level::Basic),
        ("index/", Fault::Flip { at: 500, bits: 4 }, Level::Basic),
        ("snapshots/", Fault::Truncate(200), Level::Basic),
        ("snapshots/", Fault::Flip { at: 300, bits: 4 }, Level::Basic),
        ("sessions/", Fault::Flip { at: 200, bits: 4 }, Level::Standard),
    ];
    for (prefix, lie, least) in lies {
        for nth in 1.. {
            let bench = bench();
            bench
                .faulty
                .add(Rule::new(Operation::Create, When::Nth(nth), lie.clone()).below(prefix));
            let snapshot = backup(&open(&bench.store), &second_files()).unwrap();
            let of_session: Vec<String> = bench
                .faulty
                .operations()
                .into_iter()
                .filter(|(operation, key)| {
                    *operation == Operation::Create
                        && key.starts_with(prefix)
                        && key.contains(&snapshot.id)
                })
                .map(|(_, key)| key)
                .collect();
            let Some(struck) = of_session.get(nth as usize - 1) else { break };
            bench.faulty.clear();
            let context = format!("{lie:?} about {struck}");
            let repo = open(&bench.store);
            for level in [Level::Basic, Level::Standard, Level::Thorough] {
                let damages = verify(&repo, level).damages;
                let named = damages.iter().any(|d| d.object == *struck);
                assert!(level < least || named, "{context}: {level}: {damages:?}");
            }
            check(&repo, &bench.first, &first_files());
            match repo
                .find_snapshot(&snapshot.id)
                .and_then(|s| restored(&repo, &s, &second_files()))
            {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error.kind(), RepoErrorKind::Damaged, "{context}: {error}");
                    assert!(error.to_string().contains(struck) || prefix == "index/", "{error}");
                }
            }
        }
    }
    // A snapshot that is not there was never there: it is not listed.
    let bench = bench();
    bench
        .faulty
        .add(Rule::new(Operation::Create, When::Always, Fault::Pretend).below("snapshots/"));
    let snapshot = backup(&open(&bench.store), &second_files()).unwrap();
    let repo = open(&bench.store);
    assert_eq!(repo.snapshots().unwrap().len(), 1);
    assert_eq!(repo.find_snapshot(&snapshot.id).unwrap_err().kind(), RepoErrorKind::NotFound);
    bench.nothing_is_lost("a snapshot that was never stored");
}

#[test]
fn what_is_misread_is_never_taken_for_content() {
    let lies = [
        Fault::Pretend,
        Fault::Truncate(0),
        Fault::Truncate(170),
        Fault::Flip { at: 0, bits: 1 },
        Fault::Flip { at: 40, bits: 0x80 },
        Fault::Flip { at: 150, bits: 2 },
        Fault::Flip { at: 1000, bits: 8 },
        Fault::Flip { at: usize::MAX, bits: 8 },
        Fault::Fail(ErrorKind::Transient),
        Fault::Fail(ErrorKind::NotFound),
        Fault::Die,
    ];
    for lie in lies {
        for nth in 1.. {
            let bench = bench();
            let archive = open(&bench.store).archive(SYSTEM);
            let segment = noise(100_000, 4);
            archive.push(SEGMENT, &segment).unwrap();
            bench.faulty.add(Rule::new(Operation::Read, When::Nth(nth), lie.clone()));
            let before = bench.faulty.count(Operation::Read);
            let read = || -> Result<()> {
                let env = Environment::system();
                let store = bench.store.clone();
                let repo = Repository::open(store, env, &key(), OpenOptions::default())?;
                let snapshot = repo.find_snapshot(&bench.first.id)?;
                restored(&repo, &snapshot, &first_files())?;
                if let Some(found) = repo.archive(SYSTEM).fetch(SEGMENT)? {
                    assert!(found == segment);
                } else {
                    assert_eq!(lie, Fault::Fail(ErrorKind::NotFound));
                }
                Ok(())
            };
            if let Err(error) = read() {
                let context = format!("{lie:?} at read {nth}: {error}");
                let struck = bench.faulty.operations();
                let struck = struck.iter().filter(|(o, _)| *o == Operation::Read);
                let (_, struck) = struck.clone().nth((before + nth - 1) as usize).unwrap();
                let expected = match (&lie, struck.as_str()) {
                    (Fault::Fail(ErrorKind::Transient) | Fault::Die, _) => RepoErrorKind::Store,
                    (Fault::Fail(ErrorKind::NotFound), "format") => RepoErrorKind::NoRepository,
                    (_, key) if key.starts_with("keys/") => error.kind(),
                    _ => RepoErrorKind::Damaged,
                };
                assert_eq!(error.kind(), expected, "{context}");
                // A store that is dead fails whoever asks it next as well.
                let named =
                    error.to_string().contains(struck.as_str()) || matches!(lie, Fault::Die);
                assert!(named || struck == "format" || struck.starts_with("keys/"), "{context}");
            }
            let reads = bench.faulty.count(Operation::Read) - before;
            bench.faulty.clear();
            bench.faulty.revive();
            read().unwrap();
            if reads < nth {
                assert!(nth > 5);
                break;
            }
        }
    }
}

#[test]
fn a_list_that_hides_things_loses_nothing() {
    for hidden in ["index/", "snapshots/", "packs/", "keys/"] {
        let bench = bench();
        bench.faulty.add(Rule::new(Operation::List, When::Always, Fault::Hide(hidden.into())));
        let env = Environment::system();
        let store = bench.store.clone();
        match Repository::open(store, env, &key(), OpenOptions::default()) {
            Err(error) => {
                assert_eq!((error.kind(), hidden), (RepoErrorKind::WrongKey, "keys/"));
            }
            Ok(repo) => {
                let again = backup(&repo, &second_files()).unwrap();
                if hidden == "index/" {
                    let error = restored(&repo, &again, &second_files()).unwrap_err();
                    assert_eq!(error.kind(), RepoErrorKind::Damaged);
                    assert!(error.to_string().contains("no pack of the index"), "{error}");
                }
            }
        }
        bench.nothing_is_lost(hidden);
    }
}

#[test]
fn a_slow_store_is_waited_for() {
    let faulty = Faulty::new(Memory::new(), Environment::system(), 1);
    let store = Store::new(faulty.clone());
    let repo = repository(&store);
    faulty.add(Rule::new(None, When::Always, Fault::Delay(Duration::from_millis(20))));
    let snapshot = backup(&repo, &second_files()).unwrap();
    check(&repo, &snapshot, &second_files());
}

#[test]
fn a_pushed_segment_is_durable_or_an_error() {
    let segment = noise(100_000, 7);
    let faults = [
        Fault::Fail(ErrorKind::NoSpace),
        Fault::DoneButFail(ErrorKind::Transient),
        Fault::Die,
        Fault::DoneThenDie,
    ];
    for fault in faults {
        let bench = bench();
        let repo = open(&bench.store);
        bench.faulty.add(Rule::new(Operation::Create, When::Nth(1), fault));
        let error = repo.archive(SYSTEM).push(SEGMENT, &segment).unwrap_err();
        assert_eq!(error.kind(), RepoErrorKind::Store);
        assert!(error.to_string().contains(SEGMENT), "{error}");
        bench.faulty.clear();
        bench.faulty.revive();
        repo.archive(SYSTEM).push(SEGMENT, &segment).unwrap();
        assert!(repo.archive(SYSTEM).fetch(SEGMENT).unwrap().unwrap() == segment);
    }
    for lie in [Fault::Truncate(0), Fault::Truncate(400), Fault::Flip { at: 9000, bits: 1 }] {
        let bench = bench();
        let repo = open(&bench.store);
        bench.faulty.add(Rule::new(Operation::Create, When::Nth(1), lie.clone()));
        repo.archive(SYSTEM).push(SEGMENT, &segment).unwrap();
        assert_eq!(
            repo.archive(SYSTEM).fetch(SEGMENT).unwrap_err().kind(),
            RepoErrorKind::Damaged,
            "{lie:?}"
        );
        let damages = verify(&repo, Level::Standard).damages;
        assert!(damages.iter().any(|d| d.object.ends_with(SEGMENT)), "{lie:?}: {damages:?}");
    }
}

fn local(folder: &Path) -> Store {
    Store::new(Local::new(folder.join("store")).unwrap())
}

#[test]
fn a_full_disk_fails_the_backup_and_nothing_else() {
    let Some(space) = Space::new(64) else { skip!("mounting a small file system takes root") };
    let store = local(space.path());
    let repo = repository(&store);
    let first = backup(&repo, &first_files()).unwrap();
    let large = files(&[("large", Chunking::ContentDefined, noise(40 << 20, 31))]);
    let ballast = space.path().join("ballast");
    std::fs::write(&ballast, vec![0; 45 << 20]).unwrap();
    let error = backup(&repo, &large).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Store);
    assert!(error.to_string().contains("no space left in the store"), "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.starts_with("free space in the store"), "{hint}");
    // Not a byte is left for a restore to need.
    let rest = vec![0; space.free() as usize];
    let _ = std::fs::write(space.path().join("more"), rest);
    let repo = open(&store);
    check(&repo, &first, &first_files());
    assert_eq!(verify(&repo, Level::Thorough).damages, []);
    let refused = repo.archive(SYSTEM).push(SEGMENT, &noise(1 << 20, 1)).unwrap_err();
    assert!(refused.to_string().contains("no space left in the store"), "{refused}");
    assert_eq!(repo.archive(SYSTEM).fetch(SEGMENT).unwrap(), None);
    // What failed leaves no parts behind that nobody removes.
    assert_eq!(std::fs::read_dir(space.path().join("store/.tmp")).unwrap().count(), 0);
    std::fs::remove_file(ballast).unwrap();
    std::fs::remove_file(space.path().join("more")).unwrap();
    let second = backup(&repo, &large).unwrap();
    check(&repo, &second, &large);
    check(&repo, &first, &first_files());
}

#[test]
fn a_restore_onto_a_full_disk_says_which() {
    let Some(space) = Space::new(8) else { skip!("mounting a small file system takes root") };
    let store = Store::memory();
    let repo = repository(&store);
    let large = files(&[
        ("large", Chunking::ContentDefined, noise(12 << 20, 41)),
        ("small", Chunking::ContentDefined, noise(20, 42)),
    ]);
    let snapshot = backup(&repo, &large).unwrap();
    let to = space.path().join("to");
    let error =
        repo.restore(&snapshot, RestoreOptions::new(&to), &Progress::default()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Io, "{error}");
    assert!(error.hint().unwrap().contains("free space on that file system"), "{error}");
}

#[test]
fn a_store_that_may_only_be_read_restores_and_refuses_backups() {
    let bench = bench();
    let denied = Fault::Fail(ErrorKind::Denied);
    bench.faulty.add(Rule::new(Operation::Create, When::Always, denied.clone()));
    bench.faulty.add(Rule::new(Operation::Delete, When::Always, denied));
    refuses_and_restores(&open(&bench.store), &bench.first);
}

#[test]
fn a_disk_that_is_mounted_read_only_restores_and_refuses_backups() {
    let Some(space) = Space::new(16) else { skip!("mounting a small file system takes root") };
    let first = backup(&repository(&local(space.path())), &first_files()).unwrap();
    let remounted = Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(space.path())
        .status()
        .is_ok_and(|status| status.success());
    if !remounted {
        skip!("a file system cannot be mounted read-only here");
    }
    refuses_and_restores(&open(&local(space.path())), &first);
}

fn refuses_and_restores(repo: &Repository, first: &Snapshot) {
    let error = backup(repo, &second_files()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Store);
    assert!(error.to_string().contains("access denied"), "{error}");
    assert!(error.hint().unwrap().contains("credentials"), "{error}");
    assert!(repo.archive(SYSTEM).push(SEGMENT, b"x").is_err());
    check(repo, first, &first_files());
    assert_eq!(verify(repo, Level::Thorough).damages, []);
}

#[test]
fn a_wrong_key_opens_nothing_changes_nothing_and_is_not_repeated() {
    let bench = bench();
    let creations = bench.faulty.count(Operation::Create);
    for secret in [
        Secret::key_file(*b"a secret that nobody may ever see").unwrap(),
        Secret::key_file([[7; 32], [7; 32]].concat()).unwrap(),
    ] {
        let store = bench.store.clone();
        let error = Repository::open(store, Environment::system(), &secret, OpenOptions::default())
            .unwrap_err();
        assert_eq!(error.kind(), RepoErrorKind::WrongKey);
        let said = format!("{error} {error:?} {:?} {secret:?}", error.hint());
        assert!(!said.contains("nobody may"), "{said}");
        assert!(!error.is_transient() && error.hint().is_some());
    }
    assert_eq!(bench.faulty.count(Operation::Create), creations);
}

#[test]
fn writers_at_once_in_one_process() {
    let store = Store::memory();
    let shared = repository(&store);
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for n in 0..4_u64 {
            let (store, shared, barrier) = (&store, &shared, &barrier);
            scope.spawn(move || {
                // Two with one handle, two with their own.
                let repo = if n < 2 { shared.clone() } else { open(store) };
                let mut files = second_files();
                files.insert("own".into(), (Chunking::Grid, noise(50_000, n).into()));
                barrier.wait();
                for _ in 0..3 {
                    let snapshot = backup(&repo, &files).unwrap();
                    check(&repo, &snapshot, &files);
                }
            });
        }
    });
    let repo = open(&store);
    assert_eq!(repo.snapshots().unwrap().len(), 12);
    assert_eq!(verify(&repo, Level::Thorough).damages, []);
    for snapshot in repo.snapshots().unwrap() {
        check(&repo, &snapshot, &second_files());
    }
}

const IN: &str = "BACKSTAY_TEST_IN";

/// The work of another process. Does nothing when it is run as a test.
#[test]
fn works_here() {
    let Ok(folder) = std::env::var(IN) else { return };
    let store = local(Path::new(&folder));
    let env = Environment::system();
    let repo = match Repository::init(store.clone(), env, &key(), InitOptions::default()) {
        Ok(repo) => repo,
        Err(error) if error.kind() == RepoErrorKind::Exists => open(&store),
        Err(error) => panic!("{error}"),
    };
    for _ in 0..3 {
        backup(&repo, &second_files()).unwrap();
    }
    repo.archive(SYSTEM).push(SEGMENT, &noise(1 << 20, 5)).unwrap();
}

#[test]
fn writers_at_once_in_several_processes() {
    let folder = tempfile::tempdir().unwrap();
    let running: Vec<_> = (0..4)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["works_here", "--exact", "--test-threads=1"])
                .env(IN, folder.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    let repo = open(&local(folder.path()));
    assert_eq!(repo.key_slots().unwrap().len(), 1);
    assert_eq!(verify(&repo, Level::Thorough).damages, []);
    let snapshots = repo.snapshots().unwrap();
    assert_eq!(snapshots.len(), 12);
    check(&repo, snapshots.last().unwrap(), &second_files());
}

#[test]
fn one_of_several_inits_at_once_wins() {
    for _ in 0..20 {
        let store = Store::memory();
        let barrier = Barrier::new(4);
        let won: usize = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        let env = Environment::system();
                        match Repository::init(store.clone(), env, &key(), InitOptions::default()) {
                            Ok(_) => 1,
                            Err(error) => {
                                assert_eq!(error.kind(), RepoErrorKind::Exists, "{error}");
                                0
                            }
                        }
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).sum()
        });
        assert_eq!(won, 1);
        let repo = open(&store);
        assert_eq!(store.list("keys/").unwrap().len(), 1);
        check(&repo, &backup(&repo, &first_files()).unwrap(), &first_files());
    }
}

#[test]
fn of_two_pushes_at_once_one_is_new() {
    for content in [[1_u8, 1], [1, 2]] {
        let store = Store::memory();
        let repo = repository(&store);
        let barrier = Barrier::new(2);
        let results: Vec<_> = std::thread::scope(|scope| {
            let racers: Vec<_> = content
                .iter()
                .map(|byte| {
                    let (archive, barrier) = (repo.archive(SYSTEM), &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        archive.push(SEGMENT, &vec![*byte; 1 << 20])
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let new = results.iter().filter(|r| matches!(r, Ok(Pushed::New { .. }))).count();
        let same = results.iter().filter(|r| matches!(r, Ok(Pushed::Same))).count();
        assert_eq!((new, same), if content[0] == content[1] { (1, 1) } else { (1, 0) });
        if let Some(Err(error)) = results.iter().find(|r| r.is_err()) {
            assert_eq!(error.kind(), RepoErrorKind::Conflict);
        }
    }
}

/// Content that is read only once it is allowed.
struct Held {
    bytes: Vec<u8>,
    allowed: mpsc::Receiver<()>,
}

impl Content for Held {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        self.allowed.recv().unwrap();
        Ok(Box::new(Bytes { bytes: self.bytes.into(), ranges: None }))
    }
}

#[test]
fn a_writer_that_slept_for_a_month_commits_what_is_right() {
    let store = Store::memory();
    let clock = Arc::new(FixedClock::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30)));
    let env = Environment { clock: clock.clone(), random: Environment::system().random };
    let repo = Repository::init(store.clone(), env, &key(), InitOptions::default()).unwrap();
    let session = repo.begin(options("slow")).unwrap();
    let mut tree = session.tree(Order::Any);
    let (allow, allowed) = mpsc::channel();
    let slow = files(&[
        ("fast", Chunking::ContentDefined, noise(300_000, 3)),
        ("held", Chunking::ContentDefined, noise(400_000, 51)),
    ]);
    let held = Held { bytes: slow["held"].1.to_vec(), allowed };
    tree.file(file("held", 400_000), Box::new(held), Chunking::ContentDefined).unwrap();
    let fast = Bytes { bytes: slow["fast"].1.clone(), ranges: None };
    tree.file(file("fast", 300_000), Box::new(fast), Chunking::ContentDefined).unwrap();
    // Meanwhile others write the same and more, and the clock is moved, both ways.
    let others: Vec<_> = (0..3)
        .map(|n| {
            clock.set(SystemTime::UNIX_EPOCH + Duration::from_secs((2 << 30) - n * (1 << 29)));
            backup(&open(&store), &second_files()).unwrap()
        })
        .collect();
    allow.send(()).unwrap();
    let root = tree.finish().unwrap();
    let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
    let repo = open(&store);
    check(&repo, &snapshot, &slow);
    for other in &others {
        check(&repo, other, &second_files());
    }
    assert_eq!(verify(&repo, Level::Thorough).damages, []);
}

#[test]
fn a_writer_whose_place_was_taken_is_told_and_loses_nothing() {
    let store = Store::memory();
    let repo = repository(&store);
    let session = repo.begin(options("late")).unwrap();
    let mut tree = session.tree(Order::Any);
    let content = Bytes { bytes: noise(100_000, 1).into(), ranges: None };
    tree.file(file("f", 100_000), Box::new(content), Chunking::ContentDefined).unwrap();
    let root = tree.finish().unwrap();
    let begun = store.list("sessions/").unwrap().remove(0).key;
    let place = begun.replace("sessions/", "snapshots/");
    store.create(&place, b"given up"[..].into()).unwrap();
    let error = session.commit(root, serde_json::Value::Null).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Busy);
    assert!(error.hint().is_some());
    assert_eq!(store.read(&place).unwrap(), "given up");
    let again = backup(&repo, &second_files()).unwrap();
    check(&repo, &again, &second_files());
}

struct Panics;

impl Content for Panics {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        panic!("a bug in a source");
    }
}

#[test]
fn a_bug_in_a_source_ends_the_backup_and_does_not_hang_it() {
    for size in [10, 1 << 20] {
        let store = Store::memory();
        let repo = repository(&store);
        for workers in [1, 2] {
            let options = SessionOptions { workers, ..options("buggy") };
            let session = repo.begin(options).unwrap();
            let mut tree = session.tree(Order::Any);
            let done = tree
                .file(file("f", size), Box::new(Panics), Chunking::ContentDefined)
                .and_then(|()| tree.finish().map(drop));
            assert!(done.unwrap_err().to_string().contains("panicked"));
            drop(session);
        }
        assert!(repo.snapshots().unwrap().is_empty());
        check(&repo, &backup(&repo, &first_files()).unwrap(), &first_files());
    }
}

#[test]
fn files_that_grew_since_they_were_listed_are_stored_whole() {
    let store = Store::memory();
    let repo = repository(&store);
    let session = repo.begin(options("growing")).unwrap();
    let mut tree = session.tree(Order::Any);
    let mut all = Files::new();
    for n in 0..400 {
        let path = format!("f{n:03}");
        let bytes = Arc::new(noise(60_000 + n, n as u64));
        let content = Bytes { bytes: bytes.clone(), ranges: None };
        // Listed as nearly empty.
        tree.file(file(&path, 1), Box::new(content), Chunking::ContentDefined).unwrap();
        all.insert(path, (Chunking::ContentDefined, bytes));
    }
    let root = tree.finish().unwrap();
    let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
    check(&repo, &snapshot, &all);
    assert_eq!(verify(&repo, Level::Thorough).damages, []);
}

#[test]
fn random_faults_lose_nothing() {
    // The same faults for the same seed, whatever the threads do.
    for seed in 0..25 {
        let env = Environment {
            clock: Environment::seeded(seed).clock,
            random: Arc::new(SeededRandom::new(seed)),
        };
        let faulty = Faulty::new(Memory::new(), env, seed);
        let store = Store::new(faulty.clone());
        repository(&store);
        let mut done = Vec::new();
        for round in 0..6_u64 {
            faulty.clear();
            let kinds = [ErrorKind::Transient, ErrorKind::NoSpace, ErrorKind::Other];
            let kind = kinds[(seed + round) as usize % 3];
            faulty.add(Rule::new(None, When::Chance(0.06), Fault::Fail(kind)));
            faulty.add(Rule::new(
                Operation::Create,
                When::Chance(0.06),
                Fault::DoneButFail(ErrorKind::Transient),
            ));
            let mut files = second_files();
            files.insert("round".into(), (Chunking::Grid, noise(9000, seed * 100 + round).into()));
            let env = Environment::system();
            let backed_up = Repository::open(store.clone(), env, &key(), OpenOptions::default())
                .and_then(|repo| backup(&repo, &files));
            if let Ok(snapshot) = backed_up {
                done.push((snapshot, files));
            }
        }
        faulty.clear();
        let repo = open(&store);
        assert_eq!(verify(&repo, Level::Thorough).damages, [], "seed {seed}");
        for (snapshot, files) in &done {
            check(&repo, snapshot, files);
        }
        assert!(repo.snapshots().unwrap().len() >= done.len());
    }
}

#[test]
fn nothing_is_created_twice_and_nothing_is_deleted() {
    let bench = bench();
    let repo = open(&bench.store);
    for _ in 0..2 {
        let snapshot = backup(&repo, &second_files()).unwrap();
        check(&repo, &snapshot, &second_files());
        repo.archive(SYSTEM).push(SEGMENT, &noise(100_000, 1)).unwrap();
    }
    verify(&repo, Level::Thorough);
    let operations = bench.faulty.operations();
    assert!(operations.iter().all(|(operation, _)| *operation != Operation::Delete));
    let mut created: Vec<&String> =
        operations.iter().filter(|(o, _)| *o == Operation::Create).map(|(_, key)| key).collect();
    created.sort();
    let again: Vec<_> = created.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    // Whether a segment is there, the store says when it is asked to create it.
    assert!(again.iter().all(|pair| pair[0].ends_with(SEGMENT)), "{again:?}");
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    let mut entry = file(path, 0);
    entry.kind = kind;
    entry
}

#[test]
fn a_tree_that_was_made_to_lead_out_of_the_target_does_not() {
    for _ in 0..20 {
        let store = Store::memory();
        let repo = repository(&store);
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().to_str().unwrap().as_bytes().to_vec();
        let session = repo.begin(options("hostile")).unwrap();
        let mut tree = session.tree(Order::Sorted);
        tree.entry(entry("a", EntryKind::Symlink { target })).unwrap();
        tree.entry(entry("a/inline", EntryKind::File(FileContent::inline("x")))).unwrap();
        let content = Bytes { bytes: noise(100_000, 1).into(), ranges: None };
        tree.file(file("a/large", 100_000), Box::new(content), Chunking::Grid).unwrap();
        let root = tree.finish().unwrap();
        let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
        for delta in [false, true] {
            let to = tempfile::tempdir().unwrap();
            let options = RestoreOptions { delta, ..RestoreOptions::new(to.path()) };
            let error = repo.restore(&snapshot, options, &Progress::default()).unwrap_err();
            assert_eq!(error.kind(), RepoErrorKind::Unsupported, "{error}");
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        }
    }
}

#[test]
fn a_hard_link_to_something_outside_is_refused() {
    let repo = repository(&Store::memory());
    let session = repo.begin(options("hostile")).unwrap();
    for to in ["../outside", "/etc/passwd", "a/../../b", ""] {
        let mut tree = session.tree(Order::Sorted);
        let hostile = entry("a", EntryKind::Hardlink { to: to.as_bytes().to_vec() });
        let refused = tree.entry(hostile).and_then(|()| tree.finish().map(drop));
        assert!(refused.is_err(), "{to}");
    }
}
