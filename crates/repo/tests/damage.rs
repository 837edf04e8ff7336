//! Every kind of object, damaged in every way: what comes back is right or an error that names the
//! object, what does not need the object comes back all the same, and `verify` finds it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use backstay_repo::*;
use support::*;

const SYSTEM: u64 = 7_000_000_000_000_000_001;
const SEGMENTS: [&str; 2] = ["000000010000000000000001", "000000010000000000000002"];

fn second_key() -> Secret {
    Secret::key_file([9; 32]).unwrap()
}

fn open_with(store: &Store, secret: &Secret) -> Result<Repository> {
    Repository::open(store.clone(), Environment::system(), secret, OpenOptions::default())
}

/// Files of one snapshot: inline, grouped, chunked and a grid, incompressible so that packs of equal
/// content have equal lengths.
fn some_files(seed: u64) -> Files {
    use Chunking::{ContentDefined as C, Grid as G};
    files(&[
        (&format!("{seed}/inline"), C, noise(1000, seed)),
        (&format!("{seed}/grouped"), C, noise(20_000, seed + 1)),
        (&format!("{seed}/also-grouped"), C, noise(9000, seed + 2)),
        (&format!("{seed}/chunked"), C, noise(70_000, seed + 3)),
        (&format!("{seed}/grid"), G, noise(80_000, seed + 4)),
    ])
}

/// A store with two snapshots that share nothing, an archive, and two key slots, one with its record.
struct Whole {
    objects: BTreeMap<String, Bytes>,
    snapshots: Vec<(Snapshot, Files)>,
    archived: Vec<(String, Vec<u8>)>,
}

use backstay_store::Bytes;

fn make(seed: u64) -> Whole {
    let store = Store::memory();
    let repo = repository(&store);
    repo.add_key(&second_key(), "second").unwrap();
    let snapshots = [seed + 100, seed + 200]
        .map(|seed| {
            let files = some_files(seed);
            // Without compression, for the sake of equal lengths.
            let options = SessionOptions { compression: Compression::None, ..options("test") };
            (backup_as(&repo, &files, options).unwrap(), files)
        })
        .into();
    let archive = repo.archive(SYSTEM);
    let archived: Vec<_> = SEGMENTS
        .iter()
        .enumerate()
        .map(|(n, name)| ((*name).to_owned(), noise((1 << 20) + 5000, seed + 300 + n as u64)))
        .chain([("00000002.history".to_owned(), b"1\t0/3000000\tno reason\n".to_vec())])
        .collect();
    for (name, content) in &archived {
        archive.push(name, content).unwrap();
    }
    let objects = objects_of(&store);
    Whole { objects, snapshots, archived }
}

fn objects_of(store: &Store) -> BTreeMap<String, Bytes> {
    let list = store.list("").unwrap();
    list.into_iter().map(|o| (o.key.clone(), store.read(&o.key).unwrap())).collect()
}

static WHOLE: LazyLock<Whole> = LazyLock::new(|| make(1));
/// The same content under the same key file, in another repository.
static FOREIGN: LazyLock<Whole> = LazyLock::new(|| make(1));

/// The first part of a key, and for packs the class, as the header has it in the clear.
fn kind_of(key: &str, object: &[u8]) -> &'static str {
    match key.split('/').next().unwrap() {
        "format" => "format",
        "keys" => "key slot",
        "audit" => "record of a key",
        "sessions" => "session",
        "packs" if object[9] == 1 => "data pack",
        "packs" => "metadata pack",
        "index" => "index segment",
        "snapshots" => "snapshot",
        "wal" => "archived file",
        other => panic!("what is {other}?"),
    }
}

/// One object of each kind.
fn one_of_each() -> Vec<(&'static str, String)> {
    let mut found = BTreeMap::new();
    for (key, object) in &WHOLE.objects {
        found.entry(kind_of(key, object)).or_insert_with(|| key.clone());
    }
    assert_eq!(found.len(), 9, "{found:?}");
    found.into_iter().collect()
}

fn others_of_kind(kind: &str, key: &str) -> Vec<Bytes> {
    let mut others: Vec<Bytes> = WHOLE
        .objects
        .iter()
        .filter(|(other, object)| *other != key && kind_of(other, object) == kind)
        .map(|(_, object)| object.clone())
        .collect();
    let length = WHOLE.objects[key].len();
    // One of the same length first.
    others.sort_by_key(|o| o.len() != length);
    others.truncate(2);
    others.extend(
        FOREIGN
            .objects
            .iter()
            .filter(|(key, object)| kind_of(key, object) == kind)
            .map(|(_, object)| object.clone())
            .take(1),
    );
    others
}

fn store_of(objects: &BTreeMap<String, Bytes>) -> Store {
    let store = Store::memory();
    for (key, object) in objects {
        store.create(key, object.clone()).unwrap();
    }
    store
}

/// How an object is damaged.
enum How {
    Replaced(Bytes),
    Missing,
}

/// Which of this makes `verify` speak.
#[derive(PartialEq)]
enum Found {
    At(Level),
    Never,
}

struct Outcome {
    /// Everything came back right.
    all_right: bool,
}

/// Damages one object and asks for everything.
fn damage(
    kind: &str,
    object: &str,
    what: &str,
    how: How,
    found: Found,
    restore_too: bool,
) -> Outcome {
    let store = store_of(&WHOLE.objects);
    // Opened before, since what is damaged may be what is needed to open.
    let verifier = open_with(&store, &second_key()).unwrap();
    store.delete(object).unwrap();
    if let How::Replaced(body) = how {
        store.create(object, body).unwrap();
    }
    let context = format!("{kind} {object}, {what}");
    let judged = |error: &RepoError| {
        assert!(
            matches!(error.kind(), RepoErrorKind::Damaged | RepoErrorKind::Unsupported),
            "{context}: {:?}: {error}",
            error.kind()
        );
        // Of a segment that is not there, nobody but its absence tells.
        let absent = kind == "index segment" && what == "missing";
        let named = if absent { "in no pack of the index" } else { object };
        assert!(error.to_string().contains(named), "{context}: {error}");
    };
    let mut all_right = true;
    for secret in [key(), second_key()] {
        match open_with(&store, &secret) {
            Ok(repo) => {
                all_right &= read_all(&repo, object, &context, &judged, restore_too);
            }
            Err(error) => {
                all_right = false;
                assert!(kind == "format" || kind == "key slot", "{context}: {error}");
                match error.kind() {
                    RepoErrorKind::WrongKey => assert_eq!(kind, "key slot", "{context}"),
                    RepoErrorKind::NoRepository => assert_eq!(what, "missing", "{context}"),
                    _ => judged(&error),
                }
            }
        }
        if kind != "format" && kind != "key slot" {
            break;
        }
    }
    if kind == "key slot" {
        // One slot never hurts another.
        let opened = [key(), second_key()].map(|k| open_with(&store, &k).is_ok());
        assert!(opened.contains(&true), "{context}");
    }
    for level in [Level::Basic, Level::Standard, Level::Thorough] {
        if !restore_too && level == Level::Thorough {
            continue;
        }
        let report = verify(&verifier, level);
        let named = report.damages.iter().any(|damage| damage.object == object);
        match found {
            Found::At(least) if level >= least => {
                assert!(named, "{context}: {level} says {:?}", report.damages);
            }
            Found::Never => assert!(report.is_good(), "{context}: {:?}", report.damages),
            Found::At(_) => {}
        }
    }
    Outcome { all_right }
}

/// Reads everything; whether all of it came back.
fn read_all(
    repo: &Repository,
    damaged: &str,
    context: &str,
    judged: &dyn Fn(&RepoError),
    restore_too: bool,
) -> bool {
    let mut all = true;
    let listed = repo.snapshots().unwrap();
    for (snapshot, files) in &WHOLE.snapshots {
        let needs = damaged.contains(&snapshot.id) && !damaged.starts_with("sessions/");
        let read = || -> Result<()> {
            let snapshot = repo.find_snapshot(&snapshot.id)?;
            let tree = repo.tree(&snapshot)?;
            let mut seen = 0;
            for entry in tree.iter() {
                let entry = entry?;
                let mut content = Vec::new();
                tree.read_file(&entry, &mut content)?;
                assert!(*files[&entry.display_path()].1 == content, "{context}: wrong bytes");
                seen += 1;
            }
            assert_eq!(seen, files.len(), "{context}");
            if restore_too {
                restored(repo, &snapshot, files)?;
            }
            Ok(())
        };
        match read() {
            Ok(()) => {}
            Err(error) if damaged.starts_with("snapshots/") && !repo_has(repo, damaged) => {
                assert!(needs, "{context}: {error}");
                assert_eq!(error.kind(), RepoErrorKind::NotFound, "{context}");
                all = false;
            }
            Err(error) => {
                assert!(needs, "{context}: what does not need it fails: {error}");
                judged(&error);
                all = false;
            }
        }
        if !needs {
            assert!(listed.iter().any(|s| s.id == snapshot.id), "{context}: not listed");
        }
    }
    let archive = repo.archive(SYSTEM);
    for (name, content) in &WHOLE.archived {
        let needs = damaged.starts_with("wal/") && damaged.ends_with(name.as_str());
        match archive.fetch(name) {
            Ok(Some(found)) => assert!(found == *content, "{context}: wrong bytes of {name}"),
            Ok(None) => {
                assert!(
                    needs && !repo_has(repo, damaged),
                    "{context}: {name} is said to be absent"
                );
                all = false;
            }
            Err(error) => {
                assert!(needs, "{context}: {name}: {error}");
                judged(&error);
                all = false;
            }
        }
    }
    all
}

fn repo_has(repo: &Repository, key: &str) -> bool {
    repo.store().head(key).is_ok()
}

/// Restores to files and compares; an error must not leave wrong files either.
fn restored(repo: &Repository, snapshot: &Snapshot, files: &Files) -> Result<()> {
    let to = tempfile::tempdir().unwrap();
    let options = RestoreOptions { sync: false, ..RestoreOptions::new(to.path()) };
    repo.restore(snapshot, options, &Progress::default())?;
    assert_restored(files, to.path());
    Ok(())
}

/// All of the header and of what lies at the end, and places spread over the rest.
fn positions(length: usize, spread: usize) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..length.min(160)).collect();
    positions.extend((160..length).step_by((length / spread).max(1)));
    positions.extend(length.saturating_sub(40)..length);
    positions.sort_unstable();
    positions.dedup();
    positions
}

#[test]
fn what_is_whole_is_found_whole() {
    let store = store_of(&WHOLE.objects);
    let repo = open(&store);
    let all = read_all(&repo, "nothing", "whole", &|e| panic!("{e}"), true);
    assert!(all);
    for level in [Level::Basic, Level::Standard, Level::Thorough] {
        assert_eq!(verify(&repo, level).damages, []);
    }
    let lengths = |kind: &str| -> Vec<usize> {
        let of_kind = WHOLE.objects.iter().filter(|(key, object)| kind_of(key, object) == kind);
        of_kind.map(|(_, object)| object.len()).collect()
    };
    // The swaps below are worth the more where lengths agree.
    for kind in ["metadata pack", "archived file"] {
        let lengths = lengths(kind);
        let agree = lengths.iter().any(|l| lengths.iter().filter(|m| *m == l).count() > 1);
        assert!(agree, "{kind}: {lengths:?}");
    }
}

/// Flips bytes of one object.
fn flip(kind: &str) {
    let (_, key) = one_of_each().into_iter().find(|(k, _)| *k == kind).unwrap();
    let whole = &WHOLE.objects[&key];
    let least = match kind {
        "format" | "key slot" | "record of a key" | "index segment" | "snapshot" => Level::Basic,
        _ => Level::Standard,
    };
    let mut unharmed = 0;
    for (n, at) in positions(whole.len(), 60).into_iter().enumerate() {
        let mut object = whole.to_vec();
        object[at] ^= 1 << (n % 8);
        let how = How::Replaced(object.into());
        let what = format!("byte {at} flipped");
        // To files, and thoroughly, at every tenth place only.
        let outcome = damage(kind, &key, &what, how, Found::At(least), n % 10 == 0);
        unharmed += usize::from(outcome.all_right);
    }
    match kind {
        // Nothing is read from it.
        "session" | "record of a key" => assert!(unharmed > 100),
        // Padding, footer and trailer are not needed to restore.
        "data pack" | "metadata pack" => assert!((40..150).contains(&unharmed), "{unharmed}"),
        // Blanks between words.
        "format" | "key slot" => {}
        _ => assert_eq!(unharmed, 0, "{kind}"),
    }
}

#[test]
fn a_flipped_byte_of_the_format() {
    flip("format");
}

#[test]
fn a_flipped_byte_of_a_key_slot() {
    flip("key slot");
}

#[test]
fn a_flipped_byte_of_a_record_of_a_key() {
    flip("record of a key");
}

#[test]
fn a_flipped_byte_of_a_session() {
    flip("session");
}

#[test]
fn a_flipped_byte_of_a_data_pack() {
    flip("data pack");
}

#[test]
fn a_flipped_byte_of_a_metadata_pack() {
    flip("metadata pack");
}

#[test]
fn a_flipped_byte_of_an_index_segment() {
    flip("index segment");
}

#[test]
fn a_flipped_byte_of_a_snapshot() {
    flip("snapshot");
}

#[test]
fn a_flipped_byte_of_an_archived_file() {
    flip("archived file");
}

#[test]
fn what_is_cut_short_or_emptied_or_longer() {
    for (kind, key) in one_of_each() {
        let whole = &WHOLE.objects[&key];
        let length = whole.len();
        for cut in [0, 1, 8, 100, 159, 160, 161, 192, 224, length / 2, length - 16, length - 1] {
            if cut >= length {
                continue;
            }
            let least = match kind {
                "session" => Level::Standard,
                // Its true size is inside.
                "archived file" if cut > 0 => Level::Standard,
                _ => Level::Basic,
            };
            let how = How::Replaced(whole.slice(..cut));
            let what = format!("cut to {cut} of {length} bytes");
            damage(kind, &key, &what, how, Found::At(least), true);
        }
        let least = match kind {
            "session" | "archived file" => Level::Standard,
            _ => Level::Basic,
        };
        for more in [&b"\0"[..], &[7; 1000]] {
            let longer = [whole, more].concat();
            let how = How::Replaced(longer.into());
            damage(kind, &key, "made longer", how, Found::At(least), true);
        }
    }
}

#[test]
fn what_is_missing() {
    for (kind, key) in one_of_each() {
        // Whether a snapshot, a slot or an archived file was removed on purpose, the store cannot
        // tell; that it is gone is all there is to say.
        let found = match kind {
            "key slot" | "record of a key" | "session" | "snapshot" | "archived file" => {
                Found::Never
            }
            _ => Found::At(Level::Basic),
        };
        damage(kind, &key, "missing", How::Missing, found, true);
    }
}

#[test]
fn what_is_swapped_with_another_of_its_kind() {
    for (kind, key) in one_of_each() {
        for (n, other) in others_of_kind(kind, &key).into_iter().enumerate() {
            let found = match kind {
                "format" | "index segment" | "snapshot" => Found::At(Level::Basic),
                // One of another repository is taken for what a dead `init` left.
                "key slot" if other == FOREIGN.objects[&foreign(kind)] => {
                    Found::At(Level::Thorough)
                }
                "key slot" => Found::At(Level::Basic),
                _ => Found::At(Level::Standard),
            };
            if kind == "key slot" && found == Found::At(Level::Thorough) {
                damage(kind, &key, "a foreign one", How::Replaced(other), Found::Never, true);
                continue;
            }
            let what = format!("swapped with {n}");
            let outcome = damage(kind, &key, &what, How::Replaced(other), found, true);
            let unread = ["session", "record of a key"].contains(&kind);
            assert!(!outcome.all_right || unread, "{kind} {n}");
        }
    }
}

fn foreign(kind: &str) -> String {
    let mut of_kind = FOREIGN.objects.iter().filter(|(key, object)| kind_of(key, object) == kind);
    of_kind.next().unwrap().0.clone()
}

#[test]
fn two_of_a_kind_that_change_places() {
    for kind in ["data pack", "metadata pack", "index segment", "snapshot", "archived file"] {
        let keys: Vec<&String> = WHOLE
            .objects
            .iter()
            .filter(|(key, object)| kind_of(key, object) == kind)
            .map(|(key, _)| key)
            .collect();
        let (a, b) = (keys[0], keys[keys.len() - 1]);
        assert_ne!(a, b);
        let mut objects = WHOLE.objects.clone();
        objects.insert(a.clone(), WHOLE.objects[b].clone());
        objects.insert(b.clone(), WHOLE.objects[a].clone());
        let repo = open(&store_of(&objects));
        for (snapshot, files) in &WHOLE.snapshots {
            let read = repo.find_snapshot(&snapshot.id).and_then(|s| restored(&repo, &s, files));
            if kind != "archived file" {
                assert_eq!(read.unwrap_err().kind(), RepoErrorKind::Damaged, "{kind}");
            }
        }
        let damages = verify(&repo, Level::Standard).damages;
        for key in [a, b] {
            assert!(damages.iter().any(|d| d.object == *key), "{kind} {key}: {damages:?}");
        }
    }
}

#[test]
fn an_object_of_another_class() {
    for (kind, key) in one_of_each() {
        for (other, from) in one_of_each() {
            if kind == other {
                continue;
            }
            let least = match kind {
                "session" | "archived file" => Level::Standard,
                _ => Level::Basic,
            };
            let how = How::Replaced(WHOLE.objects[&from].clone());
            let what = format!("replaced by a {other}");
            let outcome = damage(kind, &key, &what, how, Found::At(least), false);
            let unread = ["session", "record of a key"].contains(&kind);
            assert!(!outcome.all_right || unread, "{kind}: {what}");
        }
    }
}

#[test]
fn a_later_backup_stores_again_what_a_damaged_index_segment_listed() {
    let mut objects = WHOLE.objects.clone();
    let (snapshot, files) = &WHOLE.snapshots[0];
    let key = objects.keys().find(|k| k.starts_with("index/") && k.contains(&snapshot.id)).unwrap();
    objects.insert(key.clone(), Bytes::from_static(b"damaged"));
    let repo = open(&store_of(&objects));
    let again = backup(&repo, files).unwrap();
    assert!(again.stats.new_chunks > 0);
    restored(&repo, &again, files).unwrap();
    // And the old snapshot lives again: it is made of the same chunks.
    restored(&repo, snapshot, files).unwrap();
}

/// What `docs/errors.md` advises when a pack is lost for good.
#[test]
fn a_lost_pack_is_stored_again_once_its_index_segment_is_gone() {
    let (snapshot, files) = &WHOLE.snapshots[0];
    let of = |kind: &str| {
        let mut keys = WHOLE
            .objects
            .iter()
            .filter(|(key, object)| key.contains(&snapshot.id) && kind_of(key, object) == kind);
        keys.next().unwrap().0.clone()
    };
    for lost in ["data pack", "metadata pack"] {
        let mut objects = WHOLE.objects.clone();
        objects.remove(&of(lost));
        objects.remove(&of("index segment"));
        let repo = open(&store_of(&objects));
        let again = backup(&repo, files).unwrap();
        let repo = open(&store_of(&objects_of(repo.store())));
        restored(&repo, &again, files).unwrap();
        restored(&repo, snapshot, files).unwrap();
    }
}

#[test]
fn pushing_again_is_refused_when_what_is_there_is_damaged() {
    let (name, content) = &WHOLE.archived[0];
    let (key, whole) = WHOLE.objects.iter().find(|(key, _)| key.ends_with(name.as_str())).unwrap();
    for object in [whole.slice(..whole.len() / 2), whole.slice(..0), whole.slice(..300)] {
        let mut objects = WHOLE.objects.clone();
        objects.insert(key.clone(), object);
        let repo = open(&store_of(&objects));
        let error = repo.archive(SYSTEM).push(name, content).unwrap_err();
        assert_eq!(error.kind(), RepoErrorKind::Damaged);
        assert!(error.to_string().contains(key.as_str()), "{error}");
    }
}

#[test]
fn no_new_repository_is_made_over_one_that_lost_its_format() {
    let mut objects = WHOLE.objects.clone();
    objects.remove("format");
    let store = store_of(&objects);
    let env = Environment::system();
    let error = Repository::init(store.clone(), env, &key(), InitOptions::default()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Damaged);
    assert!(error.to_string().contains("format") && error.hint().is_some(), "{error}");
    assert_eq!(objects_of(&store), objects);
}

#[test]
fn a_damaged_or_emptied_cache_is_healed_and_never_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_of(&WHOLE.objects);
    let open = || {
        let options = OpenOptions { cache: Some(folder.path().to_owned()) };
        Repository::open(store.clone(), Environment::system(), &key(), options).unwrap()
    };
    let read = |context: &str| {
        assert!(read_all(&open(), "nothing", context, &|e| panic!("{context}: {e}"), true));
    };
    read("filling");
    let cached = || files_below(folder.path());
    let whole = cached();
    assert_eq!(whole.len(), 4, "two segments and two snapshots: {:?}", whole.keys());
    for (path, content) in &whole {
        for at in positions(content.len(), 10).into_iter().step_by(7) {
            let mut altered = content.clone();
            altered[at] ^= 0x20;
            std::fs::write(path, altered).unwrap();
            read(&format!("{} with byte {at} flipped", path.display()));
            assert_eq!(cached(), whole, "byte {at} of {}", path.display());
        }
        for other in [&[][..], &content[..content.len() / 2], &vec![0; content.len()]] {
            std::fs::write(path, other).unwrap();
            read("overwritten");
            assert_eq!(cached(), whole);
        }
        for other in whole.values() {
            std::fs::write(path, other).unwrap();
            read("taken for another");
            assert_eq!(cached(), whole);
        }
        // A folder in its place cannot be healed, and does no harm.
        std::fs::remove_file(path).unwrap();
        std::fs::create_dir(path).unwrap();
        read("a folder in its place");
        std::fs::remove_dir(path).unwrap();
        read("removed");
        assert_eq!(cached(), whole);
    }
    std::fs::remove_dir_all(folder.path()).unwrap();
    read("all of it removed");
    assert_eq!(cached(), whole);
    // What the cache has, verify does not believe.
    let key = WHOLE.objects.keys().find(|key| key.starts_with("index/")).unwrap();
    let mut object = WHOLE.objects[key].to_vec();
    object[200] ^= 1;
    store.delete(key).unwrap();
    store.create(key, object.into()).unwrap();
    let damages = verify(&open(), Level::Basic).damages;
    assert!(damages.iter().any(|d| d.object == *key), "{damages:?}");
}

fn files_below(folder: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            let content = std::fs::read(&path).unwrap();
            files.insert(path, content);
        }
    }
    files
}

#[test]
fn a_lost_pack_is_stored_again_by_the_next_backup() {
    let store = Store::memory();
    let repo = repository(&store);
    let files = files(&[
        ("a", Chunking::ContentDefined, text(300_000, 1)),
        ("b", Chunking::ContentDefined, noise(3 << 20, 2)),
        ("c", Chunking::Grid, text(2 << 20, 3)),
    ]);
    let first = backup(&repo, &files).unwrap();
    for pack in store.list("packs/").unwrap() {
        store.delete(&pack.key).unwrap();
    }
    let second = backup(&repo, &files).unwrap();
    assert_eq!(second.stats.new_chunks, first.stats.new_chunks);
    let to = tempfile::tempdir().unwrap();
    // The new packs serve the old snapshot as well: they hold the same chunks.
    for snapshot in [&first, &second] {
        let to = to.path().join(snapshot.short_id());
        restore(&open(&store), snapshot, &to);
        assert_restored(&files, &to);
    }
}

#[test]
fn content_whose_index_segment_is_lost_is_not_taken_over() {
    let store = Store::memory();
    let repo = repository(&store);
    let files = files(&[
        ("a", Chunking::ContentDefined, text(300_000, 1)),
        ("b", Chunking::Grid, text(3 << 20, 2)),
    ]);
    let snapshot = backup(&repo, &files).unwrap();
    let tree = repo.tree(&snapshot).unwrap();
    let contents: Vec<FileContent> = tree
        .iter()
        .filter_map(|entry| match entry.unwrap().kind {
            EntryKind::File(content) => Some(content),
            _ => None,
        })
        .collect();
    let reusable = || {
        let session = open(&store).begin(options("again")).unwrap();
        contents.iter().map(|c| session.can_reuse(0, c)).collect::<Vec<_>>()
    };
    assert_eq!(reusable(), [true, true]);
    for segment in store.list("index/").unwrap() {
        store.delete(&segment.key).unwrap();
    }
    assert_eq!(reusable(), [false, false]);
}

/// Restores all that can be had; what is in the folder afterwards, and what is said to be wrong.
fn restored_in_part(
    repo: &Repository,
    snapshot: &Snapshot,
) -> (BTreeMap<String, Vec<u8>>, RestoreReport) {
    let to = tempfile::tempdir().unwrap();
    let options = RestoreOptions { keep_going: true, ..RestoreOptions::new(to.path()) };
    let report = repo.restore(snapshot, options, &Progress::default()).unwrap();
    let mut found = BTreeMap::new();
    for folder in std::fs::read_dir(to.path()).unwrap() {
        let folder = folder.unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let path = file.unwrap().path();
            let name = path.strip_prefix(to.path()).unwrap().to_string_lossy().into_owned();
            found.insert(name, std::fs::read(path).unwrap());
        }
    }
    (found, report)
}

#[test]
fn a_damaged_object_costs_the_files_that_need_it_and_no_other() {
    let store = Store::memory();
    let repo = repository(&store);
    use Chunking::{ContentDefined as C, Grid as G};
    let large = noise(9 << 20, 3);
    let all = files(&[
        ("d/chunked", C, noise(70_000, 1)),
        ("d/grid", G, noise(3 << 20, 2)),
        ("d/grouped", C, noise(20_000, 4)),
        ("d/inline", C, noise(100, 5)),
        ("d/large", C, large.clone()),
    ]);
    let options = SessionOptions { compression: Compression::None, ..options("test") };
    let snapshot = backup_as(&repo, &all, options).unwrap();
    let whole = objects_of(&store);
    let packs: Vec<&String> = whole
        .iter()
        .filter(|(key, o)| kind_of(key, o) == "data pack")
        .map(|(key, _)| key)
        .collect();
    let (mut incomplete, mut lost) = (0, 0);
    for key in &packs {
        let length = whole[*key].len();
        let mut cases = vec![None, Some(whole[*key].slice(..length / 2)), Some(Bytes::new())];
        for at in (0..length).step_by(length / 12) {
            let mut flipped = whole[*key].to_vec();
            flipped[at] ^= 1;
            cases.push(Some(flipped.into()));
        }
        for case in cases {
            let mut objects = whole.clone();
            match case {
                Some(object) => objects.insert((*key).clone(), object),
                None => objects.remove(*key),
            };
            let repo = open(&store_of(&objects));
            let (found, report) = restored_in_part(&repo, &snapshot);
            let mut missing = 0;
            for (name, (_, content)) in &all {
                let problem = report.problems.iter().find(|problem| problem.path == *name);
                match (found.get(name), problem) {
                    (Some(found), None) => assert!(*found == **content, "{name}"),
                    (None, Some(problem)) => {
                        missing += 1;
                        assert!(problem.what.contains(key.as_str()), "{}", problem.what);
                        let aside = found.get(&format!("{name}.backstay-incomplete"));
                        if problem.what.starts_with("incomplete: ") {
                            incomplete += 1;
                            // What could be had is right, and the rest is zeros.
                            let aside = aside.unwrap();
                            assert!(aside.len() <= content.len());
                            let wrong =
                                aside.iter().zip(content.iter()).any(|(a, b)| a != b && *a != 0);
                            assert!(!wrong, "{name}");
                        } else {
                            lost += 1;
                            assert!(problem.what.starts_with("lost: ") && aside.is_none());
                        }
                    }
                    other => panic!("{name} is {:?}", other.1),
                }
            }
            assert_eq!(report.problems.len(), missing, "{:?}", report.problems);
            assert_eq!(found["d/inline"], *all["d/inline"].1);
        }
    }
    assert!(incomplete > 0 && lost > 0, "{incomplete} {lost}");
}

#[test]
fn a_damaged_node_costs_the_entries_in_it_and_nothing_is_pruned_then() {
    let store = Store::memory();
    let repo = repository(&store);
    let mut all = Files::new();
    for n in 0..4000 {
        let content = std::sync::Arc::new(noise(100, n));
        all.insert(format!("d/{n:04}"), (Chunking::ContentDefined, content));
    }
    let snapshot = backup(&repo, &all).unwrap();
    let whole = objects_of(&store);
    let (key, pack) = whole.iter().find(|(key, o)| kind_of(key, o) == "metadata pack").unwrap();
    let mut partly = 0;
    for at in (200..pack.len() - 2000).step_by(pack.len() / 20) {
        let mut flipped = pack.to_vec();
        flipped[at] ^= 1;
        let mut objects = whole.clone();
        objects.insert(key.clone(), flipped.into());
        let repo = open(&store_of(&objects));
        let to = tempfile::tempdir().unwrap();
        std::fs::create_dir(to.path().join("d")).unwrap();
        for name in ["d/0000", "d/2000", "d/3999", "d/foreign"] {
            std::fs::write(to.path().join(name), b"was here").unwrap();
        }
        let options = RestoreOptions {
            delta: true,
            prune: true,
            keep_going: true,
            ..RestoreOptions::new(to.path())
        };
        let report = repo.restore(&snapshot, options, &Progress::default()).unwrap();
        assert_eq!(report.problems.len(), 2, "{:?}", report.problems);
        assert!(report.problems[0].what.contains("entries"), "{:?}", report.problems);
        assert!(report.problems[1].what.contains("nothing was removed"), "{:?}", report.problems);
        assert_eq!(report.removed, 0);
        let (mut right, mut lost) = (0, 0);
        for (name, (_, content)) in &all {
            match std::fs::read(to.path().join(name)) {
                Ok(found) if found == **content => right += 1,
                Ok(found) => {
                    assert_eq!(found, b"was here", "{name}");
                    lost += 1;
                }
                Err(_) => lost += 1,
            }
        }
        assert_eq!((right + lost, report.files), (all.len(), right as u64));
        assert!(lost > 0);
        partly += usize::from(right > 0);
    }
    assert!(partly > 5, "{partly}");
}

fn goes_on(to: &Path, delta: bool) -> RestoreOptions {
    RestoreOptions { delta, keep_going: true, ..RestoreOptions::new(to) }
}

#[test]
fn what_is_right_in_the_target_stays_though_the_index_lost_it() {
    let store = Store::memory();
    let repo = repository(&store);
    let all = files(&[
        ("d/chunked", Chunking::ContentDefined, noise(6 << 20, 1)),
        ("d/grid", Chunking::Grid, noise(5 << 20, 2)),
        ("d/other", Chunking::ContentDefined, noise(90_000, 3)),
    ]);
    let first = backup(&repo, &files(&[("x", Chunking::ContentDefined, noise(9, 9))])).unwrap();
    let snapshot = backup(&repo, &all).unwrap();
    let to = tempfile::tempdir().unwrap();
    restore(&repo, &snapshot, to.path());
    // The metadata is needed to know what is wanted: only where content lies is lost.
    let data: Vec<String> = objects_of(&store)
        .into_iter()
        .filter(|(key, object)| kind_of(key, object) == "data pack" && !key.contains(&first.id))
        .map(|(key, _)| key)
        .collect();
    for key in data {
        store.delete(&key).unwrap();
    }
    std::fs::write(to.path().join("d/other"), noise(90_000, 4)).unwrap();
    // With another name, or closed to us, it is not written to either.
    std::fs::hard_link(to.path().join("d/other"), to.path().join("name")).unwrap();
    let report =
        open(&store).restore(&snapshot, goes_on(to.path(), true), &Progress::default()).unwrap();
    for name in ["d/chunked", "d/grid"] {
        assert!(std::fs::read(to.path().join(name)).unwrap() == **all[name].1, "{name}");
    }
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert!(report.problems[0].what.starts_with("left as it was"), "{:?}", report.problems);
    assert!(std::fs::read(to.path().join("d/other")).unwrap() == noise(90_000, 4));
    assert_eq!(report.files, 2);
}

#[test]
fn what_was_set_aside_before_is_not_replaced() {
    let store = Store::memory();
    let repo = repository(&store);
    let content = noise(6 << 20, 1);
    let long = "n".repeat(250);
    let (one, two) = (format!("d/{long}1"), format!("d/{long}2"));
    let all = files(&[
        ("d/a", Chunking::ContentDefined, content.clone()),
        (&one, Chunking::ContentDefined, content.clone()),
        (&two, Chunking::ContentDefined, content),
    ]);
    let options = SessionOptions { compression: Compression::None, ..options("test") };
    let snapshot = backup_as(&repo, &all, options).unwrap();
    let whole = objects_of(&store);
    let (key, pack) = whole
        .iter()
        .filter(|(key, object)| kind_of(key, object) == "data pack")
        .max_by_key(|(_, object)| object.len())
        .unwrap();
    let mut flipped = pack.to_vec();
    flipped[pack.len() / 2] ^= 1;
    let mut objects = whole.clone();
    objects.insert(key.clone(), flipped.into());
    let repo = open(&store_of(&objects));
    let to = tempfile::tempdir().unwrap();
    for round in 1..=2 {
        repo.restore(&snapshot, goes_on(to.path(), true), &Progress::default()).unwrap();
        let names = std::fs::read_dir(to.path().join("d")).unwrap();
        let aside = names
            .filter(|name| {
                name.as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .contains(".backstay-incomplete")
            })
            .count();
        assert_eq!(aside, 3 * round);
    }
}

#[test]
fn a_second_name_of_a_lost_file_is_no_link_to_what_was_there() {
    let store = Store::memory();
    let repo = repository(&store);
    let session = repo.begin(options("links")).unwrap();
    let mut tree = session.tree(Order::Any);
    let bytes = std::sync::Arc::new(noise(300_000, 1));
    let content = support::Bytes { bytes: bytes.clone(), ranges: None };
    tree.file(file("d/a", bytes.len()), Box::new(content), Chunking::ContentDefined).unwrap();
    let kind = EntryKind::Hardlink { to: b"d/a".to_vec() };
    tree.entry(Entry { kind, ..file("d/z", 0) }).unwrap();
    let root = tree.finish().unwrap();
    let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
    for (key, object) in objects_of(&store) {
        if kind_of(&key, &object) == "data pack" {
            store.delete(&key).unwrap();
        }
    }
    let to = tempfile::tempdir().unwrap();
    std::fs::create_dir(to.path().join("d")).unwrap();
    std::fs::write(to.path().join("d/a"), b"an older state").unwrap();
    let report =
        open(&store).restore(&snapshot, goes_on(to.path(), true), &Progress::default()).unwrap();
    assert_eq!((report.files, report.problems.len()), (0, 2), "{:?}", report.problems);
    assert_eq!(std::fs::read(to.path().join("d/a")).unwrap(), b"an older state");
    assert!(!to.path().join("d/z").exists());
}
