//! Repairs in a directory that keeps its objects.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "the rest is for the tests of deaths")]
#[path = "deaths/place.rs"]
mod place;
mod support;

mod operations {
    /// For how long objects are locked.
    pub const LOCKED_FOR: std::time::Duration = std::time::Duration::from_secs(3600);
}

use backstay_repo::*;
use backstay_store::StoreOptions;
use place::{Folder, Kind, Place};
use support::*;

const SYSTEM: u64 = 7_000_000_000_000_000_004;
const SEGMENT: &str = "000000010000000000000003";

#[test]
fn a_damaged_archived_file_that_is_locked_is_named_and_replaced_when_it_may_be() {
    let folder = Folder::new();
    if !folder.locks() {
        assert!(std::env::var_os("CI").is_none(), "files cannot be made immutable here");
        eprintln!("skipped: files cannot be made immutable here");
        return;
    }
    let url = format!("file://{}/repository", folder.path().display());
    let place = Place { url, options: StoreOptions::default(), kind: Kind::Locks };
    let store = place.store();
    let repo = repository(&store);
    backup(&repo, &mixture_of_few()).unwrap();
    let segment = noise(50_000, 3);
    repo.archive(SYSTEM).push(SEGMENT, &segment).unwrap();
    let other = repository(&Store::memory());
    other.archive(SYSTEM).push(SEGMENT, &segment).unwrap();
    let listed = store.list("wal/").unwrap();
    let key = &listed.first().unwrap().key;
    place.flip(&store, key, 300);

    let options = || RepairOptions {
        level: Level::Thorough,
        from: Some(other.clone()),
        ..RepairOptions::default()
    };
    let report = open(&place.store()).repair(&options(), &Default::default()).unwrap();
    let said: Vec<_> = report.unrepaired.iter().filter(|left| left.object == *key).collect();
    assert_eq!(said.len(), 1, "{:?}", report.unrepaired);
    assert!(said[0].what.contains("keeps the damaged object until 2"), "{said:?}");
    assert!(store.list("mending/").unwrap().is_empty());

    // Its time is over.
    let path = place.folder().unwrap().join(key);
    place::loosen(&path);
    rustix::fs::removexattr(&path, "user.backstay.locked-until").unwrap();
    let report = open(&place.store()).repair(&options(), &Default::default()).unwrap();
    assert_eq!(report.unrepaired, []);
    let repo = open(&place.store());
    assert_eq!(repo.archive(SYSTEM).fetch(SEGMENT).unwrap(), Some(segment));
    assert_eq!(verify(&repo, Level::Thorough).damages, []);
    assert!(store.list("mending/").unwrap().is_empty());
}

fn mixture_of_few() -> Files {
    files(&[("a", Chunking::ContentDefined, noise(90_000, 1))])
}

/// Whatever else a host says of where the chunks of another one lie.
#[test]
fn a_hold_is_on_every_pack_that_a_snapshot_of_a_host_may_need() {
    let folder = Folder::new();
    if !folder.locks() {
        assert!(std::env::var_os("CI").is_none(), "files cannot be made immutable here");
        eprintln!("skipped: files cannot be made immutable here");
        return;
    }
    let url = format!("file://{}/repository", folder.path().display());
    let store = Place { url, options: StoreOptions::default(), kind: Kind::Plain }.store();
    let owner = repository(&store);
    let caches = tempfile::tempdir().unwrap();
    let host = |label: &str| {
        let (_, file) = owner.add_host(label).unwrap();
        let options = OpenOptions { cache: Some(caches.path().join(label)) };
        let secret = Secret::key_file(&file[..]).unwrap();
        Repository::open(store.clone(), Environment::system(), &secret, options).unwrap()
    };
    let evil = host("evil");
    let mut writer = [0; 8];
    let id = owner.hosts().unwrap()[0].id.clone();
    for (byte, at) in writer.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&id[at..at + 2], 16).unwrap();
    }
    let victim = host("victim");
    let content = noise(4 << 20, 800);
    let forge = |turn: u64| {
        for cell in content.chunks(1 << 20) {
            let other = noise(1 << 20, 900 + turn);
            let [own, listed] = [&other[..], cell].map(|it| internals::id_of(&evil, it));
            let objects = internals::forged_list(
                &evil,
                writer,
                backstay_repo::Kind::Data,
                own,
                listed,
                &other,
            );
            for (name, body) in objects {
                store.create(&name, body).unwrap();
            }
        }
    };
    forge(0);
    let wanted = files(&[("grid", Chunking::Grid, content.clone())]);
    let before: Vec<String> = store.list("packs/").unwrap().into_iter().map(|o| o.key).collect();
    let snapshot = backup(&victim, &wanted).unwrap();
    let after = store.list("packs/").unwrap().into_iter().map(|object| object.key);
    let packs: Vec<String> = after.filter(|key| !before.contains(key)).collect();
    forge(1);
    let snapshot = owner.find_snapshot(&snapshot.id).unwrap();
    owner.hold(&snapshot, true, &Default::default()).unwrap();
    let is_held = |key: &String| store.lock(key).unwrap().is_some_and(|lock| lock.held);
    let held = packs.iter().filter(|key| is_held(key)).count();
    owner.hold(&snapshot, false, &Default::default()).unwrap();
    assert_eq!((held, packs.len()), (packs.len(), packs.len()));
    assert!(!packs.is_empty() && !packs.iter().any(is_held));
}
