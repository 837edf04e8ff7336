//! Key slots over the years: every kind opens what it should, several people remove at once, a
//! process dies in between, and all of it is on record.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::Write;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use backstay_repo::*;
use backstay_store::{Backend, ErrorKind, Local, Memory, ObjectMeta, StoreError, failpoint};
use support::*;

fn open_with(store: &Store, secret: &Secret) -> Result<Repository> {
    Repository::open(store.clone(), Environment::system(), secret, OpenOptions::default())
}

fn other_key() -> Secret {
    Secret::key_file([8; 32]).unwrap()
}

/// A key of `age-keygen`, made from 32 times the byte 42.
const IDENTITY: &str = "# created: 2026-11-25\n\
    AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX\n";
const RECIPIENT: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

fn identity() -> Secret {
    Secret::Identities(Identity::read_file(IDENTITY).unwrap())
}

fn slot_body(store: &Store, slot: &KeySlot) -> serde_json::Value {
    serde_json::from_slice(&store.read(&format!("keys/{}", slot.id)).unwrap()).unwrap()
}

#[test]
fn an_age_identity_opens_what_was_added_for_its_recipient() {
    let store = Store::memory();
    let repo = repository(&store);
    assert_eq!(open_with(&store, &identity()).unwrap_err().kind(), RepoErrorKind::WrongKey);
    let recipient = Secret::Recipient(Recipient::parse(RECIPIENT).unwrap());
    let slot = repo.add_key(&recipient, "in the safe").unwrap();
    assert_eq!((slot.kind, slot.detail.as_deref()), (SlotKind::Age, Some(RECIPIENT)));
    let other = open_with(&store, &identity()).unwrap();
    assert_eq!(other.current_slot().unwrap().unwrap().id, slot.id);
    assert_eq!(other.id(), repo.id());
    // A public key opens nothing.
    assert_eq!(open_with(&store, &recipient).unwrap_err().kind(), RepoErrorKind::WrongKey);
    assert_eq!(verify(&other, Level::Thorough).damages, []);
}

/// Anybody can seal something to a public key; it must not keep its owner out.
#[test]
fn a_forged_slot_for_a_recipient_keeps_nobody_out() {
    let store = Store::memory();
    let repo = repository(&store);
    let recipient = Secret::Recipient(Recipient::parse(RECIPIENT).unwrap());
    let slot = repo.add_key(&recipient, "").unwrap();
    let elsewhere = Store::memory();
    let forger = repository(&elsewhere);
    let forged = forger.add_key(&recipient, "").unwrap();
    let body = elsewhere.read(&format!("keys/{}", forged.id)).unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap().replace(&forger.id(), &repo.id());
    // Before and behind the right one.
    for id in ["0000000000000000", "ffffffffffffffff"] {
        store.create(&format!("keys/{id}"), body.clone().into()).unwrap();
    }
    assert_eq!(open_with(&store, &identity()).unwrap().slot(), slot.id);
    assert_eq!(open(&store).id(), repo.id());
}

#[test]
fn the_real_age_opens_a_slot_and_we_open_what_it_made() {
    let run = |program: &str, arguments: &[&str], input: &[u8]| -> Option<Vec<u8>> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}");
        Some(output.stdout)
    };
    let Some(file) = run("age-keygen", &[], b"") else {
        backstay_testing::skip!("`age-keygen` is not installed (Debian's package `age`)");
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identity.txt");
    std::fs::write(&path, &file).unwrap();
    let path = path.to_str().unwrap();
    let text = String::from_utf8(file).unwrap();
    let identities = Identity::read_file(&text).unwrap();
    let public = run("age-keygen", &["-y", path], b"").unwrap();
    let public = String::from_utf8(public).unwrap();
    assert_eq!(identities[0].recipient().to_string(), public.trim());

    let store = Store::memory();
    let repo = repository(&store);
    let recipient = Secret::Recipient(Recipient::parse(&public).unwrap());
    let slot = repo.add_key(&recipient, "").unwrap();
    open_with(&store, &Secret::Identities(identities)).unwrap();
    // What the program `age` makes of the slot's file serves as a key file.
    let sealed = slot_body(&store, &slot)["age"]["file"].as_str().unwrap().to_owned();
    let secret = run("age", &["-d", "-i", path], sealed.as_bytes()).unwrap();
    assert_eq!(secret.len(), 32);
    let opened = open_with(&store, &Secret::key_file(secret.clone()).unwrap()).unwrap();
    assert_eq!(opened.slot(), slot.id);
    // The other way round: its own file in the place of ours, for two recipients.
    let theirs = run("age", &["-a", "-r", RECIPIENT, "-r", public.trim()], &secret).unwrap();
    let mut body = slot_body(&store, &slot);
    body["age"]["file"] = String::from_utf8(theirs).unwrap().into();
    let text = serde_json::to_vec(&body).unwrap();
    store.delete(&format!("keys/{}", slot.id)).unwrap();
    store.create(&format!("keys/{}", slot.id), text.into()).unwrap();
    // The file opens for both, and the slot, which is bound to the old file, says that it is altered.
    let error = open_with(&store, &identity()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Damaged, "{error}");
}

fn shares_text(shares: &[Share]) -> String {
    shares.iter().map(|share| format!("{}\n", *share.text())).collect()
}

fn read_shares(text: &str) -> Secret {
    let shares = Printed::read(text).unwrap().into_iter().map(|printed| match printed {
        Printed::Share(share) => share,
        other => panic!("{other:?}"),
    });
    Secret::Shares(shares.collect())
}

#[test]
fn shares_open_together_and_no_fewer() {
    let store = Store::memory();
    let repo = repository(&store);
    let (slot, shares) = repo.escrow(5, 3, "the board").unwrap();
    assert_eq!((slot.kind, slot.detail.as_deref()), (SlotKind::Escrow, Some("3 of 5 shares")));
    for set in 0_u32..32 {
        let some: Vec<Share> =
            shares.iter().filter(|s| set & (1 << (s.number() - 1)) != 0).cloned().collect();
        let opened = open_with(&store, &read_shares(&shares_text(&some)));
        match some.len() {
            3.. => assert_eq!(opened.unwrap().slot(), slot.id),
            n => {
                let error = opened.unwrap_err();
                assert_eq!(error.kind(), RepoErrorKind::Usage);
                let wanted = ["no share", "2 more are missing", "1 more is missing"][n];
                assert!(error.to_string().contains(wanted), "{error}");
            }
        }
    }
    // What they make serves as a key file, where no key can be added.
    let shared = Secret::Shares(shares[1..4].to_vec()).shared().unwrap();
    assert_eq!(open_with(&store, &Secret::KeyFile(shared)).unwrap().slot(), slot.id);
    assert!(key().shared().is_none());
    // The same share twice is one share.
    let twice = [&shares[..2], &shares[..2]].concat();
    let error = open_with(&store, &Secret::Shares(twice)).unwrap_err();
    assert!(error.to_string().contains("1 more is missing"), "{error}");
    // Those of another set, and of another repository.
    let (_, others) = repo.escrow(3, 2, "").unwrap();
    let mixed = [&shares[..2], &others[2..]].concat();
    let error = open_with(&store, &Secret::Shares(mixed)).unwrap_err();
    assert!(error.to_string().contains("share 3 of the set"), "{error}");
    let foreign = repository(&Store::memory()).escrow(3, 2, "").unwrap().1;
    let error = open_with(&store, &Secret::Shares(foreign)).unwrap_err();
    assert!(error.to_string().contains("is of the repository"), "{error}");
    // Withdrawn.
    repo.remove_key(&slot.id).unwrap();
    let error = open_with(&store, &Secret::Shares(shares)).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::WrongKey);
    assert!(error.to_string().contains("was withdrawn"), "{error}");
    open_with(&store, &Secret::Shares(others)).unwrap();
    assert!(repo.escrow(5, 1, "").is_err());
    assert!(repo.escrow(2, 3, "").is_err());
}

/// A share whose checksums are right and whose content is not, as a malicious holder makes one.
#[test]
fn a_forged_share_is_named() {
    let store = Store::memory();
    let repo = repository(&store);
    let (slot, shares) = repo.escrow(4, 3, "").unwrap();
    // The same set as somebody forges it: shares of another secret under this set's name.
    let elsewhere = Store::memory();
    let (_, wrong) = repository(&elsewhere).escrow(4, 3, "").unwrap();
    let forged = internals::share_as(&wrong[1], &shares[0]);
    assert_eq!((forged.set(), forged.number()), (slot.id, 2));
    let with = vec![shares[0].clone(), forged, shares[2].clone()];
    let error = open_with(&store, &Secret::Shares(with)).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::WrongKey);
    assert!(error.to_string().starts_with("share 2 is forged"), "{error}");
}

#[test]
fn a_printed_key_file_is_a_key_file() {
    let store = Store::memory();
    repository(&store);
    let (lines, line) = Printed::key_file(&[7; 32]).unwrap();
    for text in [lines, line] {
        let found = Printed::read(&text).unwrap();
        let [Printed::KeyFile(secret)] = &found[..] else { panic!("no key file") };
        open_with(&store, secret).unwrap();
    }
    assert!(Printed::key_file(&[7; 33]).is_err());
}

#[test]
fn every_change_of_slots_is_on_record_and_checked() {
    let store = Store::memory();
    let repo = repository(&store);
    repo.called_by("key add");
    let slot = repo.add_key(&other_key(), "second").unwrap();
    let (set, _) = repo.escrow(3, 2, "board").unwrap();
    repo.remove_key(&set.id).unwrap();
    open_with(&store, &other_key()).unwrap().record_use(&slot).unwrap();
    repo.record_sheet(&slot).unwrap();
    let records = repo.key_records().unwrap();
    let seen: Vec<_> =
        records.iter().map(|r| (r.action, r.slot.as_str(), r.kind.unwrap())).collect();
    // Records of one millisecond are in no order.
    for expected in [
        (KeyAction::Add, slot.id.as_str(), SlotKind::KeyFile),
        (KeyAction::Add, &set.id, SlotKind::Escrow),
        (KeyAction::Remove, &set.id, SlotKind::Escrow),
        (KeyAction::Open, &slot.id, SlotKind::KeyFile),
        (KeyAction::Sheet, &slot.id, SlotKind::KeyFile),
    ] {
        assert!(seen.contains(&expected), "{expected:?} in {seen:?}");
    }
    assert_eq!(seen.len(), 5);
    let add = records.iter().find(|r| r.slot == slot.id && r.action == KeyAction::Add).unwrap();
    assert_eq!((add.command.as_str(), add.label.as_str()), ("key add", "second"));
    assert_eq!(add.opened_with, repo.slot());
    assert!(!add.host.is_empty() && !add.user.is_empty());
    assert_eq!(verify(&repo, Level::Basic).damages, []);
    // Evidence that was altered is found, and shows as nothing else.
    let key = store.list("audit/keys/").unwrap().remove(2).key;
    let mut body = store.read(&key).unwrap().to_vec();
    body[200] ^= 1;
    store.delete(&key).unwrap();
    store.create(&key, body.into()).unwrap();
    assert_eq!(verify(&repo, Level::Basic).damages[0].object, key);
    assert_eq!(repo.key_records().unwrap().len(), 4);
    // It may have been the record of somebody else's removal.
    let error = repo.remove_key(&slot.id).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Damaged);
    assert!(error.hint().unwrap().contains(&key), "{:?}", error.hint());
    store.delete(&key).unwrap();
    repo.remove_key(&slot.id).unwrap();
}

#[test]
fn what_is_read_instead_of_records_ends_in_an_error() {
    let store = Store::memory();
    let repo = repository(&store);
    let id = "00".repeat(16);
    for body in [b"".as_slice(), b"BACKSTAY", &[9; 400]] {
        let key = format!("audit/keys/{id}");
        store.create(&key, body.to_vec().into()).unwrap();
        assert!(repo.key_records().unwrap().is_empty());
        assert_eq!(verify(&repo, Level::Basic).damages.len(), 1);
        store.delete(&key).unwrap();
    }
}

// ---- several people at once --------------------------------------------------------------------

/// Whose call to the store comes next is decided by lot, once all who are at work wait for theirs.
struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    waiting: Vec<usize>,
    at_work: usize,
    granted: Option<usize>,
    lots: Environment,
}

impl State {
    fn grant(&mut self) {
        if self.granted.is_none() && self.at_work > 0 && self.waiting.len() == self.at_work {
            let lot = u32::from_le_bytes(self.lots.random()) as usize;
            self.granted = Some(self.waiting[lot % self.waiting.len()]);
        }
    }
}

impl Turns {
    fn wait(&self, me: usize) {
        let mut state = self.state.lock().unwrap();
        state.waiting.push(me);
        state.grant();
        self.changed.notify_all();
        while state.granted != Some(me) {
            state = self.changed.wait(state).unwrap();
        }
        state.granted = None;
        state.waiting.retain(|other| *other != me);
    }

    fn leave(&self) {
        let mut state = self.state.lock().unwrap();
        state.at_work -= 1;
        state.grant();
        self.changed.notify_all();
    }
}

/// A store as one host sees it, which dies with its `dies`-th call.
struct Host {
    me: usize,
    store: Arc<Memory>,
    turns: Arc<Turns>,
    left: Mutex<usize>,
}

impl Host {
    fn turn(&self) -> backstay_store::Result<()> {
        self.turns.wait(self.me);
        let mut left = self.left.lock().unwrap();
        if *left == 0 {
            return Err(StoreError::new(ErrorKind::Other, "reach", "anything"));
        }
        *left -= 1;
        Ok(())
    }
}

impl Backend for Host {
    fn url(&self) -> String {
        self.store.url()
    }
    fn create(&self, key: &str, body: bytes::Bytes) -> backstay_store::Result<()> {
        self.turn()?;
        self.store.create(key, body)
    }
    fn read(&self, key: &str) -> backstay_store::Result<bytes::Bytes> {
        self.turn()?;
        self.store.read(key)
    }
    fn read_range(&self, key: &str, range: Range<u64>) -> backstay_store::Result<bytes::Bytes> {
        self.turn()?;
        self.store.read_range(key, range)
    }
    fn head(&self, key: &str) -> backstay_store::Result<ObjectMeta> {
        self.turn()?;
        self.store.head(key)
    }
    fn list(&self, prefix: &str) -> backstay_store::Result<Vec<ObjectMeta>> {
        self.turn()?;
        self.store.list(prefix)
    }
    fn delete(&self, key: &str) -> backstay_store::Result<()> {
        self.turn()?;
        self.store.delete(key)
    }
}

/// The same memory, seen by everybody.
struct Shared(Arc<Memory>);

impl Backend for Shared {
    fn url(&self) -> String {
        self.0.url()
    }
    fn create(&self, key: &str, body: bytes::Bytes) -> backstay_store::Result<()> {
        self.0.create(key, body)
    }
    fn read(&self, key: &str) -> backstay_store::Result<bytes::Bytes> {
        self.0.read(key)
    }
    fn read_range(&self, key: &str, range: Range<u64>) -> backstay_store::Result<bytes::Bytes> {
        self.0.read_range(key, range)
    }
    fn head(&self, key: &str) -> backstay_store::Result<ObjectMeta> {
        self.0.head(key)
    }
    fn list(&self, prefix: &str) -> backstay_store::Result<Vec<ObjectMeta>> {
        self.0.list(prefix)
    }
    fn delete(&self, key: &str) -> backstay_store::Result<()> {
        self.0.delete(key)
    }
}

fn secret_of_host(host: usize) -> Secret {
    Secret::key_file([host as u8 + 1; 32]).unwrap()
}

/// As many hosts as slots, each removing another one's or its own. How many slots are left, and
/// whether somebody died.
fn remove_at_once(seed: u64, hosts: usize) -> (usize, bool) {
    let memory = Arc::new(Memory::new());
    let store = Store::new(Shared(Arc::clone(&memory)));
    let env = Environment::seeded(seed);
    let first =
        Repository::init(store.clone(), env.clone(), &secret_of_host(0), InitOptions::default())
            .unwrap();
    let mut ids = vec![first.slot().to_owned()];
    for host in 1..hosts {
        ids.push(first.add_key(&secret_of_host(host), "").unwrap().id);
    }
    let turns = Arc::new(Turns {
        state: Mutex::new(State {
            waiting: Vec::new(),
            at_work: hosts,
            granted: None,
            lots: Environment::seeded(!seed),
        }),
        changed: Condvar::new(),
    });
    let lot = |n: usize| u32::from_le_bytes(env.random()) as usize % n;
    let shift = lot(hosts);
    let work: Vec<_> = (0..hosts)
        .map(|me| {
            let dies = lot(4) == 0;
            // A removal makes about twenty calls.
            (me, if dies { 5 + lot(20) } else { usize::MAX }, ids[(me + shift) % hosts].clone())
        })
        .collect();
    let died = std::thread::scope(|scope| {
        let running: Vec<_> = work
            .into_iter()
            .map(|(me, left, victim)| {
                let (store, turns) = (Arc::clone(&memory), Arc::clone(&turns));
                scope.spawn(move || {
                    let left = Mutex::new(left);
                    let host = Host { me, store, turns: Arc::clone(&turns), left };
                    let store = Store::new(host);
                    let env = Environment::seeded(seed ^ me as u64);
                    let opened =
                        Repository::open(store, env, &secret_of_host(me), OpenOptions::default());
                    // Another one may have removed its slot by now.
                    let result = opened.and_then(|repo| repo.remove_key(&victim));
                    turns.leave();
                    result.is_err_and(|error| error.kind() == RepoErrorKind::Store)
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).filter(|died| *died).count() > 0
    });
    let opening =
        (0..hosts).filter(|host| open_with(&store, &secret_of_host(*host)).is_ok()).count();
    (opening, died)
}

#[test]
fn several_removals_at_once_leave_a_slot_whoever_dies() {
    let seeds = match std::env::var("BACKSTAY_SEED") {
        Ok(seed) => seed.parse().unwrap()..seed.parse::<u64>().unwrap() + 1,
        Err(_) => 0..400,
    };
    let (mut removed, mut refused, mut deaths) = (0, 0, 0);
    for seed in seeds.clone() {
        let hosts = 2 + (seed % 2) as usize;
        let (left, died) = remove_at_once(seed, hosts);
        assert!(left > 0, "seed {seed}: no key opens it any more");
        removed += hosts - left;
        refused += usize::from(!died && left == hosts);
        deaths += usize::from(died);
    }
    println!("{removed} removed, {refused} times all refused, {deaths} times somebody died");
    // All of it has happened, or nothing was tried.
    assert!(seeds.count() == 1 || (removed > 100 && refused > 0 && deaths > 20));
}

#[test]
fn a_removal_that_died_is_ended_by_doing_it_again() {
    let store = Store::memory();
    let repo = repository(&store);
    let other = repo.add_key(&other_key(), "").unwrap();
    // What a removal leaves that dies behind its record: the record alone.
    let scratch = Store::memory();
    for object in store.list("").unwrap() {
        scratch.create(&object.key, store.read(&object.key).unwrap()).unwrap();
    }
    open(&scratch).remove_key(&other.id).unwrap();
    for object in scratch.list("audit/keys/").unwrap() {
        let _ = store.create(&object.key, scratch.read(&object.key).unwrap());
    }
    let first = repo.slot().to_owned();
    let error = repo.remove_key(&first).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Busy);
    // That it was refused is on record, so this removal blocks nobody.
    let records = repo.key_records().unwrap();
    assert!(records.iter().any(|record| record.action == KeyAction::Keep && record.slot == first));
    // Either another key comes first, or the removal is done again.
    let third = repo.add_key(&Secret::key_file([9; 32]).unwrap(), "").unwrap();
    let copy = Store::memory();
    for object in store.list("").unwrap() {
        copy.create(&object.key, store.read(&object.key).unwrap()).unwrap();
    }
    open(&copy).remove_key(&first).unwrap();
    repo.remove_key(&third.id).unwrap();
    assert_eq!(repo.remove_key(&first).unwrap_err().kind(), RepoErrorKind::Busy);
    repo.remove_key(&other.id).unwrap();
    assert_eq!(repo.remove_key(&first).unwrap_err().kind(), RepoErrorKind::Usage);
}

// ---- dying in between --------------------------------------------------------------------------

const IN: &str = "BACKSTAY_TEST_KEYS_IN";

fn local(folder: &Path) -> Store {
    Store::new(Local::new(folder).unwrap())
}

/// The work of the process that dies. Does nothing when it is run as a test.
#[test]
fn replaces_here() {
    let Ok(folder) = std::env::var(IN) else { return };
    let repo = open(&local(Path::new(&folder)));
    let old = repo.current_slot().unwrap().unwrap();
    repo.replace_key(&old, &other_key()).unwrap();
}

#[test]
fn a_replacement_that_dies_at_any_step_leaves_a_key_that_opens() {
    let mut met = Vec::new();
    for name in failpoint::ALL {
        for count in 1..=4 {
            let folder = tempfile::tempdir().unwrap();
            let store = local(folder.path());
            let id = repository(&store).id();
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["replaces_here", "--exact", "--test-threads=1"])
                .env(IN, folder.path())
                .env("BACKSTAY_FAILPOINT", format!("{name}:{count}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            if status.signal() != Some(9) {
                assert!(status.success(), "{name}:{count}: {status}");
                break;
            }
            met.push(*name);
            let context = format!("at {name}:{count}");
            let (old, new) = (open_with(&store, &key()), open_with(&store, &other_key()));
            let repo = new.or(old).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(repo.id(), id);
            assert_eq!(verify(&repo, Level::Thorough).damages, [], "{context}");
            // Done again, it ends as it should.
            if let Ok(repo) = open_with(&store, &key()) {
                let old = repo.current_slot().unwrap().unwrap();
                repo.replace_key(&old, &other_key()).unwrap();
            }
            assert!(open_with(&store, &key()).is_err(), "{context}");
            open_with(&store, &other_key()).unwrap();
        }
    }
    for step in ["key-recorded", "key-created", "key-removal-recorded", "key-removed"] {
        assert!(met.contains(&step), "{step} was never met");
    }
}

#[test]
fn a_new_root_key_leaves_the_record_and_a_host_writes_none() {
    let (store, cache) = (Store::memory(), tempfile::tempdir().unwrap());
    let repo = repository(&store);
    let passphrase = Secret::passphrase("correct horse").unwrap();
    let left = repo.add_key(&passphrase, "left").unwrap();
    let recipient = Secret::Recipient(Recipient::parse(RECIPIENT).unwrap());
    let secrets = [(passphrase.clone(), "kept".to_owned()), (recipient, "safe".to_owned())];
    let rotation = repo.rotate(&secrets).unwrap();
    // The passphrase opens a slot of each epoch: the newest counts.
    let now = open_with(&store, &passphrase).unwrap();
    assert_eq!((now.epoch(), now.slot()), (1, rotation.keys[0].id.as_str()));
    assert_eq!(open_with(&store, &identity()).unwrap().epoch(), 1);
    let error = open_with(&store, &key()).unwrap_err();
    assert!(error.to_string().contains("left behind"), "{error}");

    let recorded = || now.key_records().unwrap().into_iter().map(|it| (it.action, it.slot));
    for slot in rotation.keys.iter().chain([&left]) {
        assert!(recorded().any(|it| it == (KeyAction::Add, slot.id.clone())), "{slot:?}");
    }
    now.remove_key(&left.id).unwrap();
    assert_eq!(recorded().count(), 4);
    assert_eq!(verify(&now, Level::Thorough).damages, []);
    // What is left behind is no other key.
    now.remove_key(&rotation.keys[1].id).unwrap();
    assert!(now.key_slots().unwrap().len() > 1);
    let error = now.remove_key(&rotation.keys[0].id).unwrap_err();
    assert!(error.to_string().contains("last key slot"), "{error}");

    let (_, file) = now.add_host("web").unwrap();
    let options = OpenOptions { cache: Some(cache.path().to_owned()) };
    let secret = Secret::key_file(&file[..]).unwrap();
    let host = Repository::open(store.clone(), Environment::system(), &secret, options).unwrap();
    let records = store.list("audit/").unwrap().len();
    backup(&host, &mixture(3)).unwrap();
    for refused in [
        host.add_key(&other_key(), "").map(drop),
        host.escrow(3, 2, "").map(drop),
        host.remove_key(&rotation.keys[0].id),
        host.record_use(&rotation.keys[0]),
        host.record_sheet(&rotation.keys[0]),
        host.key_records().map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), RepoErrorKind::WrongKey);
    }
    assert_eq!(now.add_key(&secret, "").unwrap_err().kind(), RepoErrorKind::Usage);
    assert_eq!(store.list("audit/").unwrap().len(), records);
}
