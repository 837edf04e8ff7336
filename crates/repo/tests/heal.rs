//! Repairing: whatever is damaged is made whole from what is left or from another repository, and
//! maintenance goes on afterwards. What cannot be had is said, and nothing is lost by trying.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use backstay_repo::*;
use backstay_store::{Bytes as Body, ErrorKind, Fault, Faulty, Memory, Operation, Rule, When};
use proptest::prelude::*;
use support::*;

use Chunking::{ContentDefined as C, Grid as G};

const SYSTEM: u64 = 7_000_000_000_000_000_003;

fn keys(store: &Store, prefix: &str) -> BTreeSet<String> {
    store.list(prefix).unwrap().into_iter().map(|object| object.key).collect()
}

fn first(store: &Store, prefix: &str) -> String {
    keys(store, prefix).pop_first().unwrap_or_else(|| panic!("nothing below {prefix}"))
}

/// Of one class, which the header has in the clear: 1 is data, 2 metadata.
fn packs(store: &Store, class: u8) -> Vec<String> {
    let all = keys(store, "packs/").into_iter();
    all.filter(|key| store.read(key).unwrap()[9] == class).collect()
}

fn put(store: &Store, key: &str, body: impl Into<Body>) {
    let _ = store.delete(key);
    store.create(key, body.into()).unwrap();
}

fn flip(store: &Store, key: &str, at: usize) {
    let mut body = store.read(key).unwrap().to_vec();
    let at = at % body.len();
    body[at] ^= 0x40;
    put(store, key, body);
}

fn content(seed: u64) -> Files {
    files(&[
        ("a/inline", C, noise(900, seed)),
        ("a/grouped", C, noise(20_000, seed + 1)),
        ("a/grouped-too", C, noise(9000, seed + 2)),
        ("b/chunked", C, noise(1_500_000, seed + 3)),
        ("b/grid", G, noise((2 << 20) + 8192, seed + 4)),
        ("c/shared", C, noise(700_000, 7)),
    ])
}

fn many(seed: u64) -> Files {
    let mut all = content(seed);
    for n in 0..600_u64 {
        let path = format!("d/{:03}/a-rather-long-name-for-a-file-{n:05}", n / 20);
        all.insert(path, (C, Arc::new(noise(90, seed + 100 + n))));
    }
    all
}

type Backups = Vec<(Snapshot, Files)>;

/// Two backups, and what a forgotten third has left; with a head of the index where `merged`.
fn prepare(store: &Store, secret: &Secret, merged: bool) -> (Repository, Backups) {
    let env = Environment::system();
    let repo = Repository::init(store.clone(), env, secret, InitOptions::default()).unwrap();
    let mut backups: Backups =
        [many(1000), content(2000)].map(|f| (backup(&repo, &f).unwrap(), f)).into();
    if merged {
        let third = backup(&repo, &content(3000)).unwrap();
        repo.forget(&third.id).unwrap();
        maintain(&repo);
        assert!(!keys(store, "index/heads/").is_empty());
        let fourth = content(4000);
        backups.push((backup(&repo, &fourth).unwrap(), fourth));
    }
    (open(store), backups)
}

fn other_key() -> Secret {
    Secret::key_file([8; 32]).unwrap()
}

fn maintain(repo: &Repository) -> MaintenanceReport {
    repo.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap()
}

fn heal(store: &Store, from: Option<&Repository>) -> RepairReport {
    heal_at(store, from, Level::Thorough)
}

fn heal_at(store: &Store, from: Option<&Repository>, level: Level) -> RepairReport {
    let options = RepairOptions { level, from: from.cloned(), ..RepairOptions::default() };
    open(store).repair(&options, &Arc::default()).unwrap()
}

fn assert_whole(store: &Store, backups: &Backups, context: &str) {
    let repo = open(store);
    for (snapshot, files) in backups {
        let snapshot = repo.find_snapshot(&snapshot.id).unwrap();
        let tree = repo.tree(&snapshot).unwrap();
        let mut seen = 0;
        for entry in tree.iter() {
            let entry = entry.unwrap_or_else(|e| panic!("{context}: {e}"));
            let mut content = Vec::new();
            tree.read_file(&entry, &mut content).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert!(*files[&entry.display_path()].1 == content, "{context}: wrong bytes");
            seen += 1;
        }
        assert_eq!(seen, files.len(), "{context}");
    }
}

/// Nothing is damaged, all comes back, and backups and maintenance go on.
fn assert_healed(store: &Store, backups: &Backups, report: &RepairReport, context: &str) {
    assert_eq!(report.left.damages, [], "{context}: {report:?}");
    assert_eq!(report.unrepaired, [], "{context}");
    assert_eq!(verify(&open(store), Level::Thorough).damages, [], "{context}");
    assert_whole(store, backups, context);
    // A backup finds what is there.
    let repo = open(store);
    let (_, files) = backups.last().unwrap();
    let again = backup(&repo, files).unwrap();
    assert!(again.stats.new_bytes < 100_000, "{context}: {:?}", again.stats);
    repo.forget(&again.id).unwrap();
    maintain(&repo);
    maintain(&repo);
    assert_eq!(verify(&open(store), Level::Thorough).damages, [], "{context}");
    assert_whole(store, backups, context);
    // Nothing more to do.
    let nothing = heal(store, None);
    assert_eq!((nothing.repaired, nothing.unrepaired), (vec![], vec![]), "{context}");
}

#[test]
fn an_index_is_made_again_from_packs_whatever_of_it_is_lost() {
    let store = Store::memory();
    let (repo, backups) = prepare(&store, &key(), false);
    let bare = objects_of(&store);
    let merged = Store::memory();
    let (_, merged_backups) = prepare(&merged, &key(), true);
    let with_head = objects_of(&merged);
    drop(repo);
    for (what, how) in
        [("damaged", 0), ("cut short", 1), ("missing", 2), ("damaged in its last block", 3)]
    {
        for (objects, backups, prefix) in [
            (&bare, &backups, "index/0/"),
            (&with_head, &merged_backups, "index/0/"),
            (&with_head, &merged_backups, "index/1/"),
            (&with_head, &merged_backups, "index/heads/"),
            (&bare, &backups, "index/"),
            (&with_head, &merged_backups, "index/"),
        ] {
            let store = store_of(objects);
            let context = format!("{prefix} {what}");
            let lost: Vec<String> = match prefix {
                "index/" => keys(&store, prefix).into_iter().collect(),
                _ => vec![first(&store, prefix)],
            };
            for key in &lost {
                match how {
                    0 => flip(&store, key, 170),
                    1 => {
                        let half = store.read(key).unwrap();
                        put(&store, key, half.slice(..half.len() / 2));
                    }
                    2 => store.delete(key).unwrap(),
                    _ => flip(&store, key, store.read(key).unwrap().len() - 20),
                }
            }
            let before = verify(&open(&store), Level::Basic).damages;
            let harmless = prefix == "index/heads/" && how == 2;
            assert!(!before.is_empty() || harmless, "{context}");
            if how != 2 {
                // Nothing is removed before.
                let error = open(&store).maintain(&MaintenanceOptions::default(), &Arc::default());
                let error = error.unwrap_err();
                assert_eq!(error.kind(), RepoErrorKind::Damaged, "{context}");
                assert!(error.hint().unwrap().contains("verify --repair"), "{context}: {error}");
            }
            let report = heal(&store, None);
            assert!(!report.repaired.is_empty() || harmless, "{context}");
            assert_healed(&store, backups, &report, &context);
        }
    }
}

fn objects_of(store: &Store) -> Vec<(String, Body)> {
    keys(store, "").into_iter().map(|key| (key.clone(), store.read(&key).unwrap())).collect()
}

fn store_of(objects: &[(String, Body)]) -> Store {
    let store = Store::memory();
    for (key, body) in objects {
        store.create(key, body.clone()).unwrap();
    }
    store
}

#[test]
fn what_others_rest_on_is_moved_out_of_the_packs_of_a_session_that_was_given_up() {
    let backend = Faulty::new(Memory::new(), Environment::system(), 5);
    let store = Store::new(backend.clone());
    let repo = repository(&store);
    // It dies when all but its snapshot is there.
    let denied = Fault::Fail(ErrorKind::Denied);
    let rule = Rule::new(Operation::Create, When::Always, denied).below("snapshots/");
    backend.add(rule);
    let files = content(50);
    backup(&repo, &files).unwrap_err();
    backend.clear();
    let segment = first(&store, "index/0/");
    let there = keys(&store, "packs/");
    let snapshot = backup(&open(&store), &files).unwrap();
    assert!(snapshot.stats.new_bytes < 100_000, "{:?}", snapshot.stats);
    let impatient =
        MaintenanceOptions { give_up_after: Duration::ZERO, ..MaintenanceOptions::default() };
    open(&store).maintain(&impatient, &Arc::default()).unwrap();
    assert_eq!(keys(&store, "packs/").intersection(&there).count(), there.len());
    flip(&store, &segment, 200);
    let report = heal(&store, None);
    assert!(report.chunks_salvaged > 5, "{report:?}");
    assert_healed(&store, &vec![(snapshot, files)], &report, "given up");
    // Nothing lists the old packs any more.
    assert_eq!(keys(&store, "packs/").intersection(&there).count(), 0);
}

#[test]
fn a_segment_of_a_session_at_work_is_left_to_it() {
    let store = Store::memory();
    let (repo, mut backups) = prepare(&store, &key(), false);
    let session = repo.begin(options("asleep")).unwrap();
    let files = content(60);
    let mut tree = session.tree(Order::Any);
    for (path, (chunking, bytes)) in &files {
        let content = Bytes { bytes: bytes.clone(), ranges: None };
        tree.file(file(path, bytes.len()), Box::new(content), *chunking).unwrap();
    }
    let root = tree.finish().unwrap();
    flip(&store, &first(&store, "index/0/"), 190);
    let report = heal(&store, None);
    assert_eq!(report.left.damages, [], "{report:?}");
    let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
    backups.push((snapshot, files));
    assert_healed(&store, &backups, &report, "at work");
}

#[test]
fn made_up_names_of_runs_and_heads_hold_nobody_up() {
    for merged in [false, true] {
        let store = Store::memory();
        let (repo, backups) = prepare(&store, &key(), merged);
        let names = [
            "gc/99999999/condemned",
            "gc/99999998/sweep",
            "gc/18446744073709551615/sessions",
            "index/heads/99999999",
            "index/heads/18446744073709551615",
        ];
        for name in names {
            store.create(name, Body::from_static(b"made up")).unwrap();
        }
        // Writers and maintenance go on without any repair, and whoever looks is told.
        let again = backup(&open(&store), &backups[0].1).unwrap();
        assert!(again.stats.new_bytes < 100_000, "{merged}: {:?}", again.stats);
        let extra = backup(&open(&store), &content(88)).unwrap();
        for id in [&again.id, &extra.id] {
            repo.forget(id).unwrap();
        }
        assert!(maintain(&repo).packs_removed > 0);
        assert_whole(&store, &backups, "made up");
        let damages = verify(&open(&store), Level::Basic).damages;
        for name in ["gc/99999999/condemned", "index/heads/18446744073709551615"] {
            assert!(damages.iter().any(|d| d.object == name), "{damages:?}");
        }
        let report = heal(&store, None);
        assert_healed(&store, &backups, &report, "made up");
        for name in names {
            assert!(store.head(name).is_err(), "{name}");
        }
    }
}

#[test]
fn a_run_whose_objects_rotted_is_begun_anew() {
    for merged in [false, true] {
        for step in ["condemned", "sessions", "sweep"] {
            for damaged in [true, false] {
                let store = Store::memory();
                let (repo, backups) = prepare(&store, &key(), merged);
                let context = format!("{step}, damaged {damaged}, merged {merged}");
                let name = format!("gc/{:08}/{step}", 1);
                if !damaged && !merged {
                    continue;
                }
                // Without a run, it is what somebody put at the next number.
                if damaged {
                    put(&store, &name, Body::from_static(b"rotten"));
                } else {
                    store.delete(&name).unwrap();
                }
                // What is garbage now may be in the list that rotted: writers count on nothing.
                let report = heal(&store, None);
                assert_eq!(report.left.damages, [], "{context}: {report:?}");
                let extra = backup(&open(&store), &content(77)).unwrap();
                repo.forget(&extra.id).unwrap();
                maintain(&repo);
                assert_healed(&store, &backups, &report, &context);
            }
        }
    }
}

/// Everything at the next number is junk, with sessions at work before and after.
#[test]
fn a_run_that_somebody_made_up_costs_no_session_its_work() {
    let store = Store::memory();
    let (repo, mut backups) = prepare(&store, &key(), true);
    let write = |session: Session, files: &Files| {
        let mut tree = session.tree(Order::Any);
        for (path, (chunking, bytes)) in files {
            let content = Bytes { bytes: bytes.clone(), ranges: None };
            tree.file(file(path, bytes.len()), Box::new(content), *chunking).unwrap();
        }
        let root = tree.finish().unwrap();
        session.commit(root, serde_json::Value::Null).unwrap()
    };
    let shared = backups[0].1.clone();
    let early = open(&store).begin(options("early")).unwrap();
    for step in ["condemned", "sessions", "sweep"] {
        put(&store, &format!("gc/00000002/{step}"), Body::from_static(b"junk"));
    }
    let late = open(&store).begin(options("late")).unwrap();
    // What both count on, nobody else needs any more.
    repo.forget(&backups[0].0.id).unwrap();
    backups.remove(0);
    let report = heal(&store, None);
    assert_eq!(report.left.damages, [], "{report:?}");
    assert!(!maintain(&repo).waiting_for.is_empty());
    backups.push((write(early, &shared), shared.clone()));
    maintain(&repo);
    backups.push((write(late, &shared), shared));
    maintain(&repo);
    assert_whole(&store, &backups, "early and late");
    assert_healed(&store, &backups, &report, "early and late");
}

#[test]
fn what_still_opens_is_moved_out_of_a_damaged_pack_and_the_rest_is_named() {
    for merged in [false, true] {
        let original = Store::memory();
        let (_, backups) = prepare(&original, &key(), merged);
        let objects = objects_of(&original);
        for class in [1, 2] {
            for (place, at) in [
                ("magic", 3),
                ("key", 70),
                ("commitment", 120),
                ("footer", usize::MAX),
                ("record", 400),
            ] {
                let store = store_of(&objects);
                let pack = packs(&store, class).remove(0);
                let session = &pack[..pack.rfind('/').unwrap()];
                let siblings =
                    packs(&store, class).iter().filter(|p| p.starts_with(session)).count();
                let length = store.read(&pack).unwrap().len();
                flip(&store, &pack, if at == usize::MAX { length - 60 } else { at });
                let report = heal(&store, None);
                let context = format!("{place} of {pack}, merged {merged}");
                if place == "record" && !report.is_good() {
                    // One chunk is lost for good; all others are safe, and the pack stays.
                    let lost =
                        report.unrepaired.iter().filter(|d| d.object.starts_with("chunk ")).count();
                    assert_eq!(lost, 1, "{context}: {report:?}");
                    assert!(store.head(&pack).is_ok(), "{context}");
                    continue;
                }
                if place == "key" && class == 1 && siblings == 1 {
                    // No other object has the session key of data packs.
                    assert!(!report.is_good(), "{context}");
                    continue;
                }
                assert_healed(&store, &backups, &report, &context);
                assert!(store.head(&pack).is_err(), "{context}: {report:?}");
            }
        }
    }
}

/// The same content under another key, and so with other ids and other boundaries.
fn other(backups: &Backups) -> (Store, Repository) {
    let store = Store::memory();
    let env = Environment::system();
    let repo = Repository::init(store.clone(), env, &other_key(), InitOptions::default()).unwrap();
    for (_, files) in backups {
        backup(&repo, files).unwrap();
    }
    (store, repo)
}

#[test]
fn what_is_lost_is_found_in_another_repository() {
    for merged in [false, true] {
        let original = Store::memory();
        let (_, backups) = prepare(&original, &key(), merged);
        let objects = objects_of(&original);
        let (_, other) = other(&backups);
        let all_data = packs(&original, 1);
        let all_metadata = packs(&original, 2);
        let everything = [all_data.clone(), all_metadata.clone()].concat();
        for (what, lost, cut) in [
            ("one data pack gone", vec![all_data[0].clone()], None),
            ("one metadata pack gone", vec![all_metadata[0].clone()], None),
            ("all data packs gone", all_data.clone(), None),
            ("all metadata packs gone", all_metadata.clone(), None),
            ("all packs gone", everything.clone(), None),
            ("all packs cut short", everything, Some(300)),
        ] {
            let store = store_of(&objects);
            for pack in &lost {
                let body = store.read(pack).unwrap();
                store.delete(pack).unwrap();
                if let Some(length) = cut {
                    put(&store, pack, body.slice(..length));
                }
            }
            let context = format!("{what}, merged {merged}");
            assert!(!verify(&open(&store), Level::Basic).is_good());
            let alone = heal(&store, None);
            assert!(!alone.is_good(), "{context}");
            assert!(
                alone.unrepaired.iter().any(|d| d.what.contains("--repair-from")),
                "{context}: {:?}",
                alone.unrepaired
            );
            let report = heal_at(&store, Some(&other), Level::Standard);
            assert!(report.fetched > 0, "{context}");
            assert_healed(&store, &backups, &report, &context);
        }
    }
}

#[test]
fn another_repository_that_has_other_content_gives_nothing_wrong() {
    let store = Store::memory();
    let (_, backups) = prepare(&store, &key(), false);
    let wrong: Backups = backups
        .iter()
        .map(|(snapshot, files)| {
            let changed = files.iter().map(|(path, (chunking, bytes))| {
                (path.clone(), (*chunking, Arc::new(noise(bytes.len(), 31))))
            });
            (snapshot.clone(), changed.collect())
        })
        .collect();
    let (_, other) = other(&wrong);
    for pack in keys(&store, "packs/") {
        store.delete(&pack).unwrap();
    }
    let before = objects_of(&store);
    let report = heal(&store, Some(&other));
    assert!(!report.is_good());
    assert!(report.unrepaired.iter().any(|d| d.what.contains("neither")), "{report:?}");
    // And nothing went.
    let after = keys(&store, "");
    for (key, _) in before {
        assert!(after.contains(&key), "{key}");
    }
}

#[test]
fn archived_files_are_replaced_only_by_the_same_content() {
    let store = Store::memory();
    let (repo, backups) = prepare(&store, &key(), false);
    let other_store = Store::memory();
    let env = Environment::system();
    let other = Repository::init(other_store, env, &other_key(), InitOptions::default()).unwrap();
    let names: Vec<String> = (1..=6).map(|n| format!("0000000100000000{n:08X}")).collect();
    let segment = |n: usize| noise((1 << 20) + 100 * n, 500 + n as u64);
    for (n, name) in names.iter().enumerate() {
        repo.archive(SYSTEM).push(name, &segment(n)).unwrap();
        // One of another content, as a cluster would have it that was restored and went on.
        let there = if n == 3 { segment(33) } else { segment(n) };
        other.archive(SYSTEM).push(name, &there).unwrap();
    }
    let object = |n: usize| {
        let name = &names[n];
        format!("wal/{SYSTEM}/00000001/00000000/{name}")
    };
    flip(&store, &object(1), 4000);
    flip(&store, &object(2), 180);
    flip(&store, &object(3), 4000);
    // As a repair leaves it that died.
    store.delete(&object(4)).unwrap();
    let alone = heal(&store, None);
    assert_eq!(alone.left.damages.len(), 3, "{alone:?}");
    let report = heal(&store, Some(&other));
    assert_eq!(report.fetched, 3, "{report:?}");
    let left: Vec<&str> = report.left.damages.iter().map(|d| d.object.as_str()).collect();
    assert_eq!(left, [object(3)]);
    let archive = open(&store).archive(SYSTEM);
    for (n, name) in names.iter().enumerate() {
        match archive.fetch(name) {
            Ok(found) => assert!(n != 3 && found == Some(segment(n)), "{name}"),
            Err(error) => assert!(n == 3 && error.kind() == RepoErrorKind::Damaged, "{error}"),
        }
    }
    assert_whole(&store, &backups, "archive");
}

#[test]
fn what_cannot_be_repaired_is_said_with_what_to_do() {
    let store = Store::memory();
    let (_, backups) = prepare(&store, &key(), false);
    let repo = open(&store);
    repo.add_key(&other_key(), "second").unwrap();
    let slot = format!("keys/{}", repo.key_slots().unwrap().last().unwrap().id);
    let snapshot = format!("snapshots/{}/{}", backups[0].0.writer, backups[0].0.id);
    let session = format!("sessions/{}/{}", backups[0].0.writer, backups[0].0.id);
    for object in [&slot, &snapshot, &session] {
        put(&store, object, Body::from_static(b"damaged"));
    }
    let options = RepairOptions { level: Level::Standard, ..RepairOptions::default() };
    let report = repo.repair(&options, &Arc::default()).unwrap();
    let why = |object: &str| {
        let found = report.unrepaired.iter().find(|d| d.object == object);
        found.map(|d| d.what.clone()).unwrap_or_default()
    };
    assert!(why(&slot).contains("backstay key remove"), "{report:?}");
    assert!(why(&snapshot).contains("backstay forget"), "{report:?}");
    assert!(report.repaired.iter().any(|d| d.object == session), "{report:?}");
    assert_eq!(report.left.damages.len(), 2, "{report:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// Whatever is damaged of packs and of the index, in whatever way: with another repository at
    /// hand all of it comes back.
    #[test]
    fn any_damage_of_packs_and_index_is_healed(
        merged: bool,
        hits in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<usize>()), 1..6),
    ) {
        let store = Store::memory();
        let (_, backups) = prepare(&store, &key(), merged);
        let (_, other) = other(&backups);
        let objects: Vec<String> =
            keys(&store, "packs/").into_iter().chain(keys(&store, "index/")).collect();
        for (which, how, at) in hits {
            let object = which.get(&objects);
            let Ok(body) = store.read(object) else { continue };
            match how {
                0 => store.delete(object).unwrap(),
                1 => put(&store, object, body.slice(..at % body.len().max(1))),
                _ if body.is_empty() => {}
                2 => flip(&store, object, at),
                _ => {
                    let mut body = body.to_vec();
                    let from = at % body.len();
                    let to = (from + 5000).min(body.len());
                    body[from..to].fill(0xaa);
                    put(&store, object, body);
                }
            }
        }
        let report = heal(&store, Some(&other));
        assert_healed(&store, &backups, &report, "any damage");
    }
}
