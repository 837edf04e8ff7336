//! Who may write what: hosts that add backups and read none, keys that were removed, root keys that
//! were replaced, and what somebody with a stolen key can do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use backstay_repo::internals;
use backstay_repo::*;
use support::*;

use Chunking::{ContentDefined as C, Grid as G};

/// A handle with the key of a host, which keeps its cache in `folder`.
fn host(owner: &Repository, store: &Store, label: &str, cache: &std::path::Path) -> Repository {
    let (_, file) = owner.add_host(label).unwrap();
    reopen(store, &file, cache).unwrap()
}

fn reopen(store: &Store, file: &[u8], cache: &std::path::Path) -> Result<Repository> {
    let secret = Secret::key_file(file)?;
    let options = OpenOptions { cache: Some(cache.to_owned()) };
    Repository::open(store.clone(), Environment::system(), &secret, options)
}

fn some(seed: u64) -> Files {
    files(&[
        ("a/inline", C, noise(3000, seed)),
        ("a/chunked", C, noise(700_000, seed + 1)),
        ("b/grid", G, noise(3 << 20, seed + 2)),
        ("b/grouped", C, text(20_000, seed + 3)),
    ])
}

fn put(store: &Store, objects: impl IntoIterator<Item = (String, backstay_store::Bytes)>) {
    for (name, body) in objects {
        store.create(&name, body).unwrap();
    }
}

fn bytes_of(id: &str) -> [u8; 8] {
    let mut bytes = [0; 8];
    for (byte, pair) in bytes.iter_mut().zip(id.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    }
    bytes
}

fn assert_whole(owner: &Repository, snapshot: &Snapshot, files: &Files) {
    let to = tempfile::tempdir().unwrap();
    restore(owner, snapshot, to.path());
    assert_restored(files, to.path());
}

fn assert_refused<T: std::fmt::Debug>(result: Result<T>) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::WrongKey, "{error}");
    assert!(error.hint().is_some(), "{error}");
}

#[test]
fn a_host_adds_what_the_owner_restores_and_opens_nothing_itself() {
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let owner = repository(&store);
    let earlier = backup(&owner, &some(1)).unwrap();
    let host = host(&owner, &store, "web", cache.path());
    assert!(host.is_write_only() && !owner.is_write_only());

    let snapshot = backup(&host, &some(2)).unwrap();
    let listed = owner.snapshots().unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[1].writer, owner.hosts().unwrap()[0].id);
    assert_whole(&owner, &listed[1], &some(2));
    assert_eq!(verify(&owner, Level::Thorough).damages, []);
    let archive = host.archive(42);
    archive.push("000000010000000000000001", &text(100_000, 3)).unwrap();
    assert_eq!(
        archive.push("000000010000000000000001", &text(100_000, 3)).unwrap(),
        Pushed::Same,
        "it can tell that the same is there"
    );

    assert_refused(archive.fetch("000000010000000000000001"));
    assert_refused(host.find_snapshot(&earlier.id));
    assert_refused(host.forget(&snapshot.id));
    assert_refused(host.maintain(&MaintenanceOptions::default(), &Arc::default()));
    assert_refused(host.verify(VerifyOptions::default(), &Progress::default()));
    assert_refused(host.add_host("another"));
    assert_refused(host.add_key(&Secret::key_file([9; 32]).unwrap(), "another"));
    assert_refused(host.remove_key("0000000000000000"));
    assert_refused(host.rotate(&[(key(), String::new())]));
    let to = tempfile::tempdir().unwrap();
    let options = || RestoreOptions::new(to.path().join("x"));
    assert_refused(host.restore(&earlier, options(), &Progress::default()));
    // Of its own it keeps what names its files, and nothing that opens them.
    let own = host.snapshots().unwrap();
    assert_eq!(own.iter().map(|own| &own.id).collect::<Vec<_>>(), [&snapshot.id]);
    assert_refused(host.restore(&snapshot, options(), &Progress::default()));
}

#[test]
fn a_host_finds_its_own_last_backup_until_its_cache_is_lost() {
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let owner = repository(&store);
    let (_, file) = owner.add_host("web").unwrap();
    let first = reopen(&store, &file, cache.path()).unwrap();
    let snapshot = backup(&first, &mixture(5)).unwrap();

    // Another process of the same host.
    let again = reopen(&store, &file, cache.path()).unwrap();
    let known = again.snapshots().unwrap();
    assert_eq!(known.len(), 1);
    let tree = again.tree(&known[0]).unwrap();
    let entries: Vec<Entry> = tree.iter().collect::<Result<_>>().unwrap();
    assert!(entries.iter().any(|entry| entry.path == b"b/large"));
    let session = again.begin(options("test")).unwrap();
    for entry in &entries {
        if let EntryKind::File(content) = &entry.kind {
            assert!(session.can_reuse(0, content), "{}", entry.display_path());
        }
    }
    drop(session);
    let second = backup(&again, &mixture(5)).unwrap();
    assert_eq!(second.stats.new_chunks, 0);
    assert_whole(&owner, &owner.find_snapshot(&second.id).unwrap(), &mixture(5));

    let empty = tempfile::tempdir().unwrap();
    let lost = reopen(&store, &file, empty.path()).unwrap();
    assert_eq!(lost.snapshots().unwrap().len(), 0);
    assert_eq!(backup(&lost, &mixture(5)).unwrap().stats.new_chunks, 0, "it is found by its names");
    // Another host with a copy of the cache has nothing of it.
    let (_, other) = owner.add_host("other").unwrap();
    assert_eq!(reopen(&store, &other, cache.path()).unwrap().snapshots().unwrap().len(), 0);
    assert_eq!(owner.find_snapshot(&snapshot.id).unwrap().writer, snapshot.writer);
}

#[test]
fn what_a_host_stores_under_a_false_name_harms_nobody_else() {
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let owner = repository(&store);
    let evil = host(&owner, &store, "evil", cache.path());
    let victim = host(&owner, &store, "victim", &cache.path().join("victim"));
    let [evil_id, victim_id] = [0, 1].map(|n| bytes_of(&owner.hosts().unwrap()[n].id));

    // It knows what the others are about to store, and stores something else under that name.
    let content = noise(2 << 20, 77);
    let wanted = files(&[("grid", G, content.clone())]);
    let grid: Vec<&[u8]> = content.chunks(1 << 20).collect();
    for cell in &grid {
        let id = internals::id_of(&evil, cell);
        put(&store, internals::forged_chunk(&evil, evil_id, Kind::Data, id, b"poison"));
        // In the name of somebody else it cannot sign.
        put(&store, internals::forged_chunk(&evil, victim_id, Kind::Data, id, b"poison"));
        put(&store, internals::forged_chunk(&evil, [9; 8], Kind::Data, id, b"poison"));
    }
    let of_victim = backup(&victim, &wanted).unwrap();
    let of_owner = backup(&owner, &wanted).unwrap();
    for snapshot in [&of_owner, &of_victim] {
        assert!(snapshot.stats.new_bytes >= 2 << 20, "it counts on nobody else's");
    }
    let again = backup(&victim, &wanted).unwrap();
    assert_eq!(again.stats.new_chunks, 0, "but on its own, and on the owner's");
    for handle in [&owner, &open(&store)] {
        assert_whole(handle, &of_owner, &wanted);
        assert_whole(handle, &handle.find_snapshot(&of_victim.id).unwrap(), &wanted);
    }
    // Without the copy of the owner, those of the two hosts are told apart by what they hold.
    owner.forget(&of_owner.id).unwrap();
    let victims_only = {
        let store = Store::memory();
        let owner = repository(&store);
        let evil = host(&owner, &store, "evil", cache.path());
        let victim = host(&owner, &store, "victim", &cache.path().join("victim"));
        let evil_id = bytes_of(&owner.hosts().unwrap()[0].id);
        for _ in 0..20 {
            let id = internals::id_of(&evil, grid[0]);
            put(&store, internals::forged_chunk(&evil, evil_id, Kind::Data, id, b"poison"));
        }
        let snapshot = backup(&victim, &wanted).unwrap();
        (owner, snapshot)
    };
    assert_whole(&victims_only.0, &victims_only.1, &wanted);
}

/// What a snapshot says of pages and of small files is not compared with anything when a later backup
/// takes it over, so it is taken over from nobody who may only write.
#[test]
fn what_a_host_says_of_files_is_taken_over_by_nobody_else() {
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let owner = repository(&store);
    let evil = host(&owner, &store, "evil", cache.path());
    let victim = host(&owner, &store, "victim", &cache.path().join("victim"));
    let on_top_of = |repository: &Repository, parent: &Snapshot, data: &[u8]| {
        let files = files(&[("grid", G, data.to_vec())]);
        let options = SessionOptions { parent: Some(parent.clone()), ..options("test") };
        backup_as(repository, &files, options).unwrap()
    };
    let mut data = noise(2 << 20, 90);
    let first = backup(&owner, &files(&[("grid", G, data.clone())])).unwrap();
    for page in [5, 60, 200] {
        data[page * 8192..(page + 1) * 8192].copy_from_slice(&noise(8192, 100 + page as u64));
    }
    let second = on_top_of(&owner, &first, &data);

    // It has the same pages and another one, so that its leaf is its own, in chunks of the owner. It
    // says that two of them lie in each other's places.
    let longer = |data: &[u8]| [data, &[1; 8192]].concat();
    let of_evil = backup(&evil, &files(&[("grid", G, longer(&noise(2 << 20, 90)))])).unwrap();
    let of_evil = on_top_of(&evil, &of_evil, &longer(&data));
    let wrong = internals::with_pages_exchanged(&evil, &of_evil, b"grid").unwrap();
    let wrong = owner.find_snapshot(&wrong.id).unwrap();
    assert!(!owner.may_build_on(&wrong).unwrap() && owner.may_build_on(&second).unwrap());
    assert!(evil.may_build_on(&wrong).unwrap() && !victim.may_build_on(&wrong).unwrap());

    for repository in [&owner, &victim] {
        let made = on_top_of(repository, &wrong, &data);
        let made = owner.find_snapshot(&made.id).unwrap();
        assert_whole(&owner, &made, &files(&[("grid", G, data.clone())]));
        assert_eq!((made.parent, made.type_), (None, SnapshotType::Full));
    }
}

/// The ids of snapshots are names in a store: anybody who sees it can say that his is a copy of one.
#[test]
fn what_a_host_passes_off_as_a_copy_takes_the_place_of_none() {
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let (from, to) = (repository(&Store::memory()), repository(&store));
    let evil = host(&to, &store, "evil", cache.path());
    let original = backup(&from, &some(1)).unwrap();
    let elsewhere = repository(&Store::memory());
    let mut false_one = backup(&elsewhere, &some(2)).unwrap();
    false_one.group = Some(original.id.clone());
    let Copied::New(made) = copy(&elsewhere, &false_one, &evil, &CopyOptions::default()).unwrap()
    else {
        panic!("it was there")
    };
    let made = to.find_snapshot(&made.id).unwrap();
    assert_eq!(made.moment(), original.moment());
    assert!(!to.holds(&made, &original).unwrap());
    match copy(&from, &original, &to, &CopyOptions::default()).unwrap() {
        Copied::New(copied) => {
            assert!(to.holds(&copied, &original).unwrap());
            assert_whole(&to, &copied, &some(1));
        }
        Copied::There(_) => panic!("it counts as the copy"),
    }
}

/// A host lists the chunks of another one where it has stored something else, all in order: maintenance
/// takes neither what it says nor what it has for the chunks, and removes no other copy.
#[test]
fn what_a_host_lists_where_something_else_lies_draws_life_from_no_other_copy() {
    for turn in 0..4 {
        let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
        let owner = repository(&store);
        let evil = host(&owner, &store, "evil", cache.path());
        let evil_id = bytes_of(&owner.hosts().unwrap()[0].id);
        let victim = host(&owner, &store, "victim", &cache.path().join("victim"));
        let content = noise(4 << 20, 500 + turn);
        let wanted = files(&[("grid", G, content.clone())]);
        let forge = |n: u64| {
            for cell in content.chunks(1 << 20) {
                let other = noise(1 << 20, 600 + 10 * turn + n);
                let (own, listed) =
                    (internals::id_of(&evil, &other), internals::id_of(&evil, cell));
                put(
                    &store,
                    internals::forged_list(&evil, evil_id, Kind::Data, own, listed, &other),
                );
            }
        };
        forge(0);
        let snapshot = backup(&victim, &wanted).unwrap();
        forge(1);
        // So that something is to be written anew.
        let more = backup(&victim, &some(700)).unwrap();
        owner.forget(&owner.find_snapshot(&more.id).unwrap().id).unwrap();
        for _ in 0..3 {
            owner.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
            let fresh = open(&store);
            assert_whole(&fresh, &fresh.find_snapshot(&snapshot.id).unwrap(), &wanted);
        }
    }
}

/// A pack is of a session: an id alone, which anybody sees in the store, is no name.
#[test]
fn a_host_takes_the_ids_of_other_packs_and_harms_nobody() {
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let owner = repository(&store);
    let evil = host(&owner, &store, "evil", cache.path());
    let evil_id = bytes_of(&owner.hosts().unwrap()[0].id);
    let content = noise(2 << 20, 78);
    let kept = files(&[("kept", G, content.clone())]);
    let first = backup(&owner, &kept).unwrap();
    for pack in store.list("packs/").unwrap() {
        let id = pack.key.rsplit('/').next().unwrap().to_owned();
        let next = noise(1 << 20, 79);
        let wanted = internals::id_of(&evil, &next);
        put(&store, internals::forged_pack_id(&evil, evil_id, &id, wanted, pack.size));
    }
    let next = files(&[("next", G, noise(1 << 20, 79))]);
    let second = backup(&owner, &next).unwrap();
    assert!(second.stats.new_bytes >= 1 << 20, "it counts on nothing that is not there");
    for _ in 0..3 {
        owner.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
        let fresh = open(&store);
        assert_whole(&fresh, &fresh.find_snapshot(&first.id).unwrap(), &kept);
        assert_whole(&fresh, &fresh.find_snapshot(&second.id).unwrap(), &next);
    }
}

/// Made by anybody who may create an object.
#[test]
fn what_is_no_beginning_of_an_epoch_keeps_nobody_out() {
    let store = Store::memory();
    let owner = repository(&store);
    let first = backup(&owner, &some(1)).unwrap();
    for (object, body) in [
        ("keys/epochs/00000001/begun", &b"junk"[..]),
        ("keys/epochs/00000001/roll", b"junk"),
        ("keys/writers/0123456789abcdef/added", b"junk"),
    ] {
        store.create(object, backstay_store::Bytes::from_static(body)).unwrap();
    }
    let fresh = open(&store);
    assert_whole(&fresh, &first, &some(1));
    backup(&fresh, &some(2)).unwrap();
    let error = fresh.rotate(&[(Secret::key_file([5; 32]).unwrap(), String::new())]).unwrap_err();
    assert!(error.to_string().contains("keys/epochs/00000001/"), "{error}");
    assert_eq!(open(&store).snapshots().unwrap().len(), 2);
}

#[test]
fn a_snapshot_counts_for_whoever_signed_it() {
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let owner = repository(&store);
    let evil = host(&owner, &store, "evil", cache.path());
    let good = backup(&owner, &some(1)).unwrap();
    let victim = bytes_of(&good.writer);
    let (unsigned, body) = internals::forged_snapshot(&evil, victim, &good, false);
    put(&store, [(unsigned.clone(), body)]);
    let (signed, body) = internals::forged_snapshot(&evil, victim, &good, true);
    put(&store, [(signed.clone(), body)]);
    assert_eq!(owner.snapshots().unwrap().len(), 1);
    let damages = verify(&owner, Level::Basic).damages;
    for forged in [&unsigned, &signed] {
        assert!(damages.iter().any(|damage| damage.object == *forged), "{forged}: {damages:?}");
    }
    // Nothing is removed on the word of it: it is looked at by a person, and forgotten.
    let error = owner.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap_err();
    assert!(error.to_string().contains("signed"), "{error}");
    for forged in [&unsigned, &signed] {
        owner.forget(forged.rsplit('/').next().unwrap()).unwrap();
    }
    owner.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
    assert_whole(&owner, &good, &some(1));
}

#[test]
fn what_was_written_before_there_were_signatures_counts_on() {
    let from = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/version-1");
    let folder = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp").args(["-r", from]).arg(folder.path()).status();
    assert!(copied.unwrap().success());
    let url = format!("file://{}/version-1", folder.path().display());
    let store = Store::open(&url, &backstay_store::StoreOptions::default()).unwrap();
    let opened = || open(&store);
    let owner = opened();
    let before = owner.snapshots().unwrap().len();
    assert!(before > 0);
    let evil = host(&owner, &store, "evil", &folder.path().join("cache"));
    assert_eq!(opened().snapshots().unwrap().len(), before);
    assert_eq!(verify(&opened(), Level::Thorough).damages, []);
    // What comes without a signature from now on does not.
    let like = owner.snapshots().unwrap().remove(0);
    let forged = internals::forged_snapshot(&evil, bytes_of(&like.writer), &like, false);
    put(&store, [forged]);
    assert_eq!(opened().snapshots().unwrap().len(), before);
}

#[test]
fn nothing_counts_that_a_removed_host_writes_and_what_it_wrote_stays() {
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let owner = repository(&store);
    let (added, file) = owner.add_host("lost laptop").unwrap();
    let stolen = reopen(&store, &file, cache.path()).unwrap();
    let before = backup(&stolen, &some(1)).unwrap();
    let at_work = stolen.begin(options("at work")).unwrap();
    let root = written(&at_work, &some(2));
    owner.remove_host(&added.id).unwrap();
    assert_eq!(owner.remove_host(&added.id).unwrap_err().kind(), RepoErrorKind::NotFound);
    assert!(owner.hosts().unwrap()[0].removed);
    assert_refused(reopen(&store, &file, cache.path()).map(drop));
    // A program that does not ask.
    at_work.commit(root, serde_json::Value::Null).unwrap_err();
    assert_eq!(store.list("snapshots/").unwrap().len(), 2);
    assert_eq!(owner.snapshots().unwrap().len(), 1);
    assert_eq!(verify(&owner, Level::Thorough).damages, []);
    let packs = owner.usage().unwrap().packs.bytes;
    owner.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
    owner.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
    assert!(owner.usage().unwrap().packs.bytes < packs, "what it left is garbage");
    assert_whole(&owner, &owner.find_snapshot(&before.id).unwrap(), &some(1));
    assert_eq!(verify(&open(&store), Level::Thorough).damages, []);
}

fn written(session: &Session, files: &Files) -> TreeRoot {
    let mut tree = session.tree(Order::Any);
    for (path, (chunking, bytes)) in files {
        let content = Bytes { bytes: bytes.clone(), ranges: None };
        tree.file(file(path, bytes.len()), Box::new(content), *chunking).unwrap();
    }
    tree.finish().unwrap()
}

/// Success was said once, of a snapshot that no reader accepts.
#[test]
fn a_backup_whose_host_is_removed_meanwhile_fails_and_says_so() {
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let owner = repository(&store);
    let (added, file) = owner.add_host("web").unwrap();
    let host = reopen(&store, &file, cache.path()).unwrap();
    let session = host.begin(options("web")).unwrap();
    let root = written(&session, &some(1));
    owner.remove_host(&added.id).unwrap();
    let failed = session.commit(root, serde_json::Value::Null);
    assert!(failed.as_ref().is_err_and(|error| error.to_string().contains("removed while")));
    assert_refused(failed);
    assert_eq!(owner.snapshots().unwrap().len(), 0);
    // The next one does not even begin.
    let sessions = store.list("packs/").unwrap().len();
    assert_refused(backup(&host, &some(2)));
    assert_eq!(store.list("packs/").unwrap().len(), sessions);
}

/// A list is not of one moment: what is created while it is made may be in it or not.
#[test]
fn a_backup_that_ends_while_its_host_is_being_removed_is_told_what_readers_will_say() {
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let owner = repository(&store);
    let (added, file) = owner.add_host("web").unwrap();
    let host = reopen(&store, &file, cache.path()).unwrap();
    let early = host.begin(options("early")).unwrap();
    let late = host.begin(options("late")).unwrap();
    let (first, second) = (written(&early, &some(1)), written(&late, &some(2)));
    // Whoever removed it has died between the two steps.
    owner.remove_host(&added.id).unwrap();
    let removed = format!("keys/writers/{}/removed", added.id);
    store.delete(&removed).unwrap();
    assert_refused(early.commit(first, serde_json::Value::Null));
    assert!(!owner.hosts().unwrap()[0].removed);
    owner.remove_host(&added.id).unwrap();
    assert!(owner.hosts().unwrap()[0].removed);
    // It was there when the list was made: it failed, and counts all the same. The other does not.
    assert_refused(late.commit(second, serde_json::Value::Null));
    assert_eq!(owner.snapshots().unwrap().len(), 1);
}

#[test]
fn a_key_file_of_a_host_is_taken_whole_or_not_at_all() {
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let owner = repository(&store);
    let (_, file) = owner.add_host("web").unwrap();
    for at in (0..file.len()).filter(|at| !file[*at].is_ascii_whitespace()) {
        let mut altered = file.to_vec();
        altered[at] ^= 1;
        let opened = reopen(&store, &altered, cache.path());
        assert!(opened.is_err(), "byte {at}");
    }
    for length in 30..file.len() - 1 {
        assert!(reopen(&store, &file[..length], cache.path()).is_err(), "{length}");
    }
    let another = Store::memory();
    repository(&another);
    assert_refused(reopen(&another, &file, cache.path()).map(drop));
    assert_eq!(format!("{:?}", Secret::key_file(&file[..]).unwrap()), "Secret(write-only)");
}

fn open_with(store: &Store, secret: &Secret) -> Result<Repository> {
    Repository::open(store.clone(), Environment::system(), secret, OpenOptions::default())
}

#[test]
fn after_the_root_key_is_replaced_all_is_read_and_only_the_new_key_opens() {
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let owner = repository(&store);
    let old = backup(&owner, &some(1)).unwrap();
    let (_, file) = owner.add_host("web").unwrap();
    let host = reopen(&store, &file, cache.path()).unwrap();
    let of_host = backup(&host, &some(2)).unwrap();
    owner.archive(42).push("000000010000000000000001", b"segment").unwrap();

    let mut secrets = vec![key()];
    for epoch in 1..4_u32 {
        let new = Secret::key_file([epoch as u8 + 100; 32]).unwrap();
        let current = open_with(&store, &secrets[secrets.len() - 1]).unwrap();
        let rotation = current.rotate(&[(new.clone(), "new".to_owned())]).unwrap();
        assert_eq!((rotation.epoch, rotation.keys.len()), (epoch, 1));
        assert_eq!(rotation.left_behind.len(), epoch as usize);
        for secret in &secrets {
            assert_refused(open_with(&store, secret).map(drop));
        }
        secrets.push(new);
        let now = open_with(&store, &secrets[secrets.len() - 1]).unwrap();
        assert_eq!(now.epoch(), epoch);
        assert_whole(&now, &now.find_snapshot(&old.id).unwrap(), &some(1));
        assert_whole(&now, &now.find_snapshot(&of_host.id).unwrap(), &some(2));
        let archive = now.archive(42);
        assert_eq!(
            archive.fetch("000000010000000000000001").unwrap().as_deref(),
            Some(&b"segment"[..])
        );
        assert_eq!(archive.push("000000010000000000000001", b"segment").unwrap(), Pushed::Same);
        // Names stay: nothing is stored twice.
        assert_eq!(backup(&now, &some(1)).unwrap().stats.new_chunks, 0);
        assert_eq!(verify(&now, Level::Thorough).damages, []);
        now.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
        // A host goes on without a new key, and seals to the new one.
        let host = reopen(&store, &file, cache.path()).unwrap();
        assert_eq!(host.epoch(), epoch);
        let next = backup(&host, &some(10 + u64::from(epoch))).unwrap();
        assert_whole(&now, &now.find_snapshot(&next.id).unwrap(), &some(10 + u64::from(epoch)));
    }
}

#[test]
fn whoever_has_a_replaced_root_key_can_add_and_remove_nothing() {
    let store = Store::memory();
    let old = repository(&store);
    let first = backup(&old, &some(1)).unwrap();
    let new = Secret::key_file([5; 32]).unwrap();
    open(&store).rotate(&[(new.clone(), String::new())]).unwrap();
    // `old` is a handle with the replaced key, and a program that does not ask.
    let error = backup(&old, &some(2)).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Busy, "{error}");
    let error = old.forget(&first.id).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Busy, "{error}");
    let now = open_with(&store, &new).unwrap();
    assert_eq!(now.snapshots().unwrap().len(), 1, "neither has happened");
    let forged = internals::forged_snapshot(&old, bytes_of(&first.writer), &first, true);
    put(&store, [forged]);
    assert_eq!(now.snapshots().unwrap().len(), 1);
    assert_whole(&now, &first, &some(1));
    now.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
    assert_eq!(verify(&now, Level::Thorough).damages, []);
    assert_eq!(old.rotate(&[(key(), String::new())]).unwrap_err().kind(), RepoErrorKind::Busy);
}

#[test]
fn packs_of_a_replaced_root_key_are_sealed_anew_bit_by_bit() {
    let store = Store::memory();
    let owner = repository(&store);
    let all: Vec<(Snapshot, Files)> =
        (0..4).map(|n| (backup(&owner, &some(n * 10)).unwrap(), some(n * 10))).collect();
    let new = Secret::key_file([5; 32]).unwrap();
    owner.rotate(&[(new.clone(), String::new())]).unwrap();
    let now = open_with(&store, &new).unwrap();
    let options = |max_repack| MaintenanceOptions {
        reseal: true,
        max_repack,
        ..MaintenanceOptions::default()
    };
    let dry = MaintenanceOptions { dry_run: true, ..MaintenanceOptions::default() };
    let mut left = now.maintain(&dry, &Arc::default()).unwrap().bytes_of_old_keys;
    assert!(left > 12 << 20, "{left}");
    let mut runs = 0;
    while left > 0 {
        let report = now.maintain(&options(5 << 20), &Arc::default()).unwrap();
        assert!(report.bytes_repacked <= 5 << 20, "{report:?}");
        assert!(report.bytes_of_old_keys < left, "{report:?}");
        left = report.bytes_of_old_keys;
        runs += 1;
    }
    assert!(runs > 2, "{runs}");
    assert_eq!(verify(&now, Level::Thorough).damages, []);
    for (snapshot, files) in &all {
        assert_whole(&now, &now.find_snapshot(&snapshot.id).unwrap(), files);
    }
    // Nothing is left that the old key opens, but for snapshots.
    let old_packs =
        store.list("packs/").unwrap().into_iter().filter(|object| {
            store.read_range(&object.key, 12..16).unwrap()[..] == 0_u32.to_le_bytes()
        });
    assert_eq!(old_packs.count(), 0);
}

/// A host sees the ids of snapshots in a store, and can say of one of its own that it is a copy of
/// any. When that is forgotten, the other one must still be copied.
#[test]
fn a_forgotten_snapshot_of_a_host_keeps_no_other_from_being_copied() {
    let from = repository(&Store::memory());
    let original = backup(&from, &some(1)).unwrap();
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let owner = repository(&store);
    let evil = host(&owner, &store, "evil", cache.path());
    let mut claim = backup_as(&evil, &some(9), options("test")).unwrap();
    claim.group = Some(original.id.clone());
    let forged = internals::forged_snapshot(&evil, bytes_of(&claim.writer), &claim, true);
    let id = forged.0.rsplit('/').next().unwrap().to_owned();
    put(&store, [forged]);
    assert_eq!(owner.snapshots().unwrap().len(), 2);
    owner.forget(&id).unwrap();
    let is_forgotten = |owner: &Repository| !owner.forgotten_of(&[&original]).unwrap().is_empty();
    assert!(!is_forgotten(&owner));
    owner.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
    // Only its tombstone is left.
    assert!(!is_forgotten(&open(&store)));
    // The host itself brings back nothing that it was told to be forgotten.
    assert!(is_forgotten(&evil));
    let Copied::New(made) = copy(&from, &original, &owner, &CopyOptions::default()).unwrap() else {
        panic!("it was taken for a copy")
    };
    owner.forget(&made.id).unwrap();
    assert!(is_forgotten(&owner));
}

#[test]
fn hosts_are_in_the_log_of_keys() {
    let store = Store::memory();
    let owner = repository(&store);
    owner.called_by("key add");
    let (added, _) = owner.add_host("web").unwrap();
    owner.remove_host(&added.id).unwrap();
    owner.remove_host(&added.id).unwrap_err();
    let records = owner.key_records().unwrap();
    let mut said: Vec<_> = records
        .iter()
        .map(|record| (record.action, record.kind, record.slot.as_str(), record.label.as_str()))
        .collect();
    // Those of one millisecond are in no order.
    said.sort_unstable_by_key(|(action, ..)| *action != KeyAction::Add);
    let kind = Some(SlotKind::WriteOnly);
    let wanted =
        [KeyAction::Add, KeyAction::Remove].map(|action| (action, kind, &*added.id, "web"));
    assert_eq!(said, wanted);
    assert_eq!(records[0].command, "key add");
    // A host is no slot: the last one still stays.
    let slot = owner.key_slots().unwrap().remove(0);
    assert!(owner.remove_key(&slot.id).is_err());
}

/// Whoever has a replaced root key can sign with it, and must not be able to add to the evidence.
#[test]
fn records_that_a_replaced_root_key_signs_do_not_count() {
    let store = Store::memory();
    let owner = repository(&store);
    let thief = open(&store);
    owner.add_host("web").unwrap();
    let new = Secret::key_file([9; 32]).unwrap();
    owner.rotate(&[(new.clone(), "new".to_owned())]).unwrap();
    let now = open_with(&store, &new).unwrap();
    let before = now.key_records().unwrap();
    assert!(before.len() >= 2, "what was done before the replacement stays on record");
    let sheet = thief.key_slots().unwrap().remove(0);
    thief.record_sheet(&sheet).unwrap();
    let objects = store.list("audit/keys/").unwrap().len();
    assert_eq!(objects, before.len() + 1);
    assert_eq!(open_with(&store, &new).unwrap().key_records().unwrap(), before);
    assert_eq!(verify(&now, Level::Thorough).damages, []);
}
