//! Version 1 of the format, for ever: a repository that was committed with this test opens, is found
//! whole and comes back equal; its damaged variants are found out; keys and seals are what an
//! implementation in another language computed from `docs/format.md`.
//!
//! `BACKSTAY_WRITE_GOLDEN=FOLDER cargo test -p backstay-repo --test golden` makes the repository
//! anew. That is for a new version of the format, in a folder of its own: one that was released is
//! never written again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use backstay_repo::internals;
use backstay_repo::*;
use backstay_store::{FixedClock, Local, Random, SeededRandom};
use support::*;

const SYSTEM: u64 = 7_000_000_000_000_000_004;
const PHRASE: &str = "the line that keeps a mast standing";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/version-1")
}

/// Random bytes that depend on how many there are and on how often so many were asked for, and not
/// on which thread comes first.
struct Counted(Mutex<HashMap<usize, u64>>);

impl Random for Counted {
    fn fill(&self, buffer: &mut [u8]) {
        let mut counts = self.0.lock().unwrap();
        let count = counts.entry(buffer.len()).or_default();
        *count += 1;
        SeededRandom::new((buffer.len() as u64) << 32 | *count).fill(buffer);
    }
}

fn environment() -> Environment {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
    Environment {
        clock: Arc::new(FixedClock::new(start)),
        random: Arc::new(Counted(Mutex::default())),
    }
}

/// Long lines, sixteen different ones: they compress to next to nothing.
fn lines(length: usize, seed: u64) -> Vec<u8> {
    let kinds: Vec<String> = (0..16).map(|kind| format!("{kind:x}{seed:03}").repeat(100)).collect();
    let mut state = seed;
    let mut data = Vec::with_capacity(length + 400);
    while data.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        data.extend_from_slice(kinds[(state >> 60) as usize].as_bytes());
    }
    data.truncate(length);
    data
}

struct Golden {
    entry: Entry,
    /// Of a file: how it is cut, what it holds, where its data is.
    content: Option<(Chunking, Arc<Vec<u8>>, Ranges)>,
}

type Ranges = Option<Vec<std::ops::Range<u64>>>;

fn plain(path: &[u8], kind: EntryKind) -> Entry {
    let mut entry = file("x", 0);
    entry.path = path.to_vec();
    entry.kind = kind;
    entry
}

fn with(path: &[u8], chunking: Chunking, bytes: Vec<u8>) -> Golden {
    let mut entry = file("x", bytes.len());
    entry.path = path.to_vec();
    Golden { entry, content: Some((chunking, bytes.into(), None)) }
}

fn without(path: &[u8], kind: EntryKind) -> Golden {
    Golden { entry: plain(path, kind), content: None }
}

/// A bit of everything that the format knows. `edition` 2 changes some of it.
fn entries(edition: u64) -> Vec<Golden> {
    use Chunking::{ContentDefined as C, Grid as G};
    let mut full = without(b"attributes", EntryKind::Directory);
    full.entry.meta = Metadata {
        mode: 0o7755,
        uid: 4_000_000_000,
        gid: 12,
        user: "mast".into(),
        group: "stäy".into(),
        mtime: Time { seconds: -1, nanos: 999_999_999 },
        ctime: Time { seconds: 1 << 40, nanos: 0 },
        inode: u64::MAX,
        device: 1 << 63,
        xattrs: vec![
            (b"user.empty".to_vec(), Vec::new()),
            (b"user.bytes".to_vec(), vec![0, 255, 10]),
        ],
    };
    let mut database = vec![0; 66 << 20];
    database[..200_000].copy_from_slice(&lines(200_000, 5));
    let page = (30 << 20) + 8192 * 7;
    database[page..page + 8192].copy_from_slice(&lines(8192, 6 + edition));
    database[(65 << 20) + 5..(65 << 20) + 1005].copy_from_slice(&lines(1000, 8));
    let mut sparse = vec![0; 3 << 20];
    sparse[1 << 20..(1 << 20) + 4096].copy_from_slice(&lines(4096, 9));
    let mut holes = with(b"sparse", C, sparse);
    if let Some((_, _, ranges)) = &mut holes.content {
        *ranges = Some(std::iter::once(1 << 20..(1 << 20) + 4096).collect());
    }
    let mut all = vec![
        full,
        without(b"links", EntryKind::Directory),
        without(b"links/symbolic", EntryKind::Symlink { target: b"../\xff/where".to_vec() }),
        without(b"links/hard", EntryKind::Hardlink { to: b"inline".to_vec() }),
        without(b"links/pipe", EntryKind::Fifo),
        without(b"links/null", EntryKind::CharDevice { rdev: 0x103 }),
        without(b"links/block", EntryKind::BlockDevice { rdev: 0x800 }),
        with(b"empty", C, Vec::new()),
        with(b"inline", C, b"kept in the tree itself".to_vec()),
        with(b"inline-most", C, lines(4096, 1)),
        with(b"not\xfeutf8/new\nline", C, b"odd names".to_vec()),
        with(b"chunked/one", C, lines(65_537, 2)),
        with(b"chunked/several", C, lines(3 << 20, 3)),
        with(b"noise", C, noise(7000, 4)),
        with(b"grid/small", G, lines(16_384, 10)),
        with(b"grid/cells", G, lines((1 << 20) + 8192, 11)),
        with(b"grid/zeros", G, vec![0; 100_000]),
        with(b"grid/regions", G, database),
        holes,
    ];
    for n in 0..20_u64 {
        let bytes = lines(4097 + n as usize * 900, 20 + n);
        all.push(with(format!("grouped/{n:02}").as_bytes(), C, bytes));
    }
    if edition == 2 {
        all.push(with(b"new", C, b"only in the second".to_vec()));
    }
    all.sort_by(|a, b| compare_paths(&a.entry.path, &b.entry.path));
    all
}

fn archived() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("000000010000000000000001", lines((2 << 20) + 100, 12)),
        ("00000002.history", b"1\t0/3000000\tno reason\n".to_vec()),
        ("000000010000000000000001.00000028.backup", b"START WAL LOCATION".to_vec()),
        ("000000010000000000000002.partial", Vec::new()),
    ]
}

fn make(store: &Store) {
    let first = InitOptions { label: "first".into(), cache: None };
    let repo = Repository::init(store.clone(), environment(), &key(), first).unwrap();
    repo.add_key(&Secret::passphrase(PHRASE).unwrap(), "second").unwrap();
    let mut parent = None;
    for edition in [1, 2] {
        let session = repo
            .begin(SessionOptions {
                workers: 1,
                parent: parent.take(),
                compression: if edition == 1 { Compression::Zstd(3) } else { Compression::Lz4 },
                tags: BTreeMap::from([("edition".to_owned(), edition.to_string())]),
                type_: if edition == 1 { SnapshotType::Full } else { SnapshotType::Incremental },
                ..options("golden")
            })
            .unwrap();
        let mut tree = session.tree(Order::Any);
        for Golden { entry, content } in entries(edition) {
            match content {
                None => tree.entry(entry).unwrap(),
                Some((chunking, bytes, ranges)) => {
                    tree.file(entry, Box::new(Bytes { bytes, ranges }), chunking).unwrap();
                }
            }
        }
        session.problem("secret", "permission denied");
        let root = tree.finish().unwrap();
        let detail = serde_json::json!({ "edition": edition });
        parent = Some(session.commit(root, detail).unwrap());
    }
    let archive = repo.archive(SYSTEM);
    for (name, content) in archived() {
        archive.push(name, &content).unwrap();
    }
}

/// The committed repository, read as it lies there and kept in memory.
fn golden() -> Store {
    if let Some(folder) = std::env::var_os("BACKSTAY_WRITE_GOLDEN") {
        let store = Store::memory();
        make(&store);
        return copy(&store, Store::new(Local::new(folder).unwrap()));
    }
    copy(&Store::new(Local::new(folder()).unwrap()), Store::memory())
}

fn copy(from: &Store, to: Store) -> Store {
    let objects = from.list("").unwrap();
    assert!(objects.len() > 10, "the fixture is missing");
    for object in objects {
        match to.create(&object.key, from.read(&object.key).unwrap()) {
            Ok(()) => {}
            Err(error) => assert!(error.is_already_exists(), "{error}"),
        }
    }
    to
}

fn check(repo: &Repository) {
    let snapshots = repo.snapshots().unwrap();
    assert_eq!(snapshots.len(), 2);
    for snapshot in &snapshots {
        let edition: u64 = snapshot.tags["edition"].parse().unwrap();
        assert_eq!((snapshot.source.as_str(), snapshot.kind), ("golden", SourceKind::Files));
        assert_eq!(snapshot.detail, serde_json::json!({ "edition": edition }));
        assert_eq!(snapshot.problems.len(), 1);
        assert_eq!(snapshot.time.as_second(), 1_767_225_600);
        if edition == 2 {
            assert_eq!(snapshot.type_, SnapshotType::Incremental);
            assert!(snapshots.iter().any(|s| Some(&s.id) == snapshot.parent.as_ref()));
        }
        check_tree(repo, snapshot, edition);
        check_files(repo, snapshot, edition);
    }
    let archive = repo.archive(SYSTEM);
    assert_eq!(repo.archives().unwrap(), [SYSTEM]);
    for (name, content) in archived() {
        assert!(archive.fetch(name).unwrap().unwrap() == content, "{name}");
        assert_eq!(archive.stored_hash(name).unwrap(), Some(archive.hash(&content)), "{name}");
    }
}

fn check_tree(repo: &Repository, snapshot: &Snapshot, edition: u64) {
    let tree = repo.tree(snapshot).unwrap();
    let mut found = tree.iter();
    for Golden { entry, content } in entries(edition) {
        let mut there = found.next().unwrap().unwrap();
        if let Some((_, bytes, _)) = content {
            let mut out = Vec::new();
            tree.read_file(&there, &mut out).unwrap();
            assert!(out == *bytes, "{}", entry.display_path());
            there.kind = entry.kind.clone();
        }
        assert_eq!(there, entry);
    }
    assert!(found.next().is_none());
}

/// Content alone: what else a restore sets depends on the machine and on who runs it.
fn check_files(repo: &Repository, snapshot: &Snapshot, edition: u64) {
    let to = tempfile::tempdir().unwrap();
    let options = RestoreOptions {
        owner: false,
        sync: false,
        place: Some(Arc::new(|entry: &Entry| match entry.kind {
            EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } => Placement::Skip,
            _ if !entry.meta.xattrs.is_empty() => Placement::Skip,
            _ => Placement::Default,
        })),
        ..RestoreOptions::new(to.path())
    };
    let report = repo.restore(snapshot, options, &Progress::default()).unwrap();
    assert_eq!(report.problems, []);
    for Golden { entry, content } in entries(edition) {
        use std::os::unix::ffi::OsStrExt;
        let path = to.path().join(std::ffi::OsStr::from_bytes(&entry.path));
        if let Some((_, bytes, _)) = content {
            assert!(std::fs::read(path).unwrap() == *bytes, "{}", entry.display_path());
        } else if let EntryKind::Symlink { target } = &entry.kind {
            assert_eq!(std::fs::read_link(path).unwrap().as_os_str().as_bytes(), target);
        }
    }
}

#[test]
fn version_1_is_read_for_ever() {
    let store = golden();
    let size: u64 = store.list("").unwrap().iter().map(|object| object.size).sum();
    assert!(size < 300 << 10, "{size} bytes are too many to commit");
    let repo = open(&store);
    for level in [Level::Basic, Level::Standard, Level::Thorough] {
        assert_eq!(verify(&repo, level).damages, []);
    }
    check(&repo);
    let phrase = Secret::passphrase(PHRASE).unwrap();
    let env = Environment::system();
    let repo = Repository::open(store, env, &phrase, OpenOptions::default()).unwrap();
    assert_eq!(repo.key_slots().unwrap().len(), 2);
}

#[test]
fn version_1_is_written_to_as_before() {
    let store = golden();
    let repo = open(&store);
    // What is in it is found again, so ids and boundaries are what they were.
    let session = repo.begin(options("golden")).unwrap();
    let mut tree = session.tree(Order::Any);
    for Golden { entry, content } in entries(2) {
        match content {
            None => tree.entry(entry).unwrap(),
            Some((chunking, bytes, ranges)) => {
                tree.file(entry, Box::new(Bytes { bytes, ranges }), chunking).unwrap();
            }
        }
    }
    let root = tree.finish().unwrap();
    let again = session.commit(root, serde_json::Value::Null).unwrap();
    assert_eq!(again.stats.new_chunks, 0, "content is cut, named or laid out in another way");
    let archive = repo.archive(SYSTEM);
    for (name, content) in archived() {
        assert_eq!(archive.push(name, &content).unwrap(), Pushed::Same);
    }
}

#[test]
fn damaged_variants_of_version_1_are_found_out() {
    let whole = golden();
    for object in whole.list("").unwrap() {
        let body = whole.read(&object.key).unwrap();
        for at in [body.len() / 3, body.len() - 2] {
            let store = copy(&whole, Store::memory());
            let repo = open(&store);
            let mut altered = body.to_vec();
            altered[at] ^= 0x10;
            store.delete(&object.key).unwrap();
            store.create(&object.key, altered.into()).unwrap();
            let damages = verify(&repo, Level::Standard).damages;
            let named = damages.iter().any(|damage| damage.object == object.key);
            assert!(named, "byte {at} of {}: {damages:?}", object.key);
        }
    }
}

#[test]
fn the_repository_is_made_alike_each_time() {
    let (a, b) = (Store::memory(), Store::memory());
    make(&a);
    make(&b);
    let objects = a.list("").unwrap();
    assert_eq!(objects.len(), b.list("").unwrap().len());
    // In which of the open packs a record comes, and before which other one, is decided between the
    // thread that reads files and the one that writes trees. What they hold is not: a snapshot has
    // the hash of all that is below it.
    let settled = |key: &str| !key.starts_with("packs/") && !key.starts_with("index/");
    let mut compared = 0;
    for object in objects.iter().filter(|object| settled(&object.key)) {
        assert!(a.read(&object.key).unwrap() == b.read(&object.key).unwrap(), "{}", object.key);
        compared += usize::from(object.key.starts_with("snapshots/"));
    }
    assert_eq!(compared, 2);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn root() -> [u8; 32] {
    std::array::from_fn(|n| n as u8)
}

// The values below come from `hmac` and `hashlib` of Python, and its packages `cryptography` and
// `blake3`, not from this program.

#[test]
fn keys_are_derived_as_before() {
    let keys: BTreeMap<_, _> = internals::derived_keys(root()).into_iter().collect();
    for (purpose, expected) in [
        ("chunk id: data", "ecaf1a7abdfd158f531109d46bc13a3e5a9e4c568f67aabed444c79994b4eac2"),
        ("chunk id: metadata", "7043cd008c132efb5b6c91e1cb5791e1a7a2c8b0963b39fbb8d3982c9803ce44"),
        ("chunker", "8a56aecf01aaebe340c3ffdb07e41e673a2ae53121c29d1aae4d0bfb83ffd709"),
        ("index", "c4f084534477bae9172b6f47c56e1d2f1dcdb322da4939ddd978121ea85b92c2"),
        ("format", "affac29b4eb7af4b4ad4d9b42ff286323cbcb1043cd3367864bf0610eada4d22"),
        ("key slot", "4f92754901631808532ee627bc44db02ff349410b41322bd6cc48cbdb3e4b4ec"),
        ("read", "8934c97a9e5335012f776a7306c771bf5d460a10d195908ca2d99c5d28bbab8a"),
        ("commitment", "39a94e9e3ce658ef21c2831d5d5f0a5822b8734b668a7c12db33586d1c4f53b6"),
    ] {
        assert_eq!(hex(&keys[purpose]), expected, "{purpose}");
    }
    assert_eq!(
        hex(&internals::public_key(root())),
        "1e61f855e9da1a3b79dde5baeea36d4bbe85212c361ddf6e2f5b65dde6bffa33"
    );
    assert_eq!(
        hex(&internals::slot_key(&[7; 32], [9; 32])),
        "936ef77e030ae0f40c55309b4b40f1e08f4c9aacd0d123140dc5467ef38daab4\
         0744d67234077b2c80371a0097bedf76d000e31a8791e084422a99684aacce2b"
    );
}

#[test]
fn chunks_are_named_as_before() {
    assert_eq!(
        internals::chunk_id(root(), Kind::Data, b"backstay").to_string(),
        "8f6cab5d66799bc06222448c5c5434d7a25b8fe8decd71b523de42aa589cc3e1"
    );
    assert_eq!(
        internals::chunk_id(root(), Kind::Tree, b"backstay").to_string(),
        "883abed109e6f48890610385d47eee9b10af4429abf40f0c7633075ce898a144"
    );
}

#[test]
fn records_are_sealed_as_before() {
    let record = [&[0, 8, 0, 0, 0][..], b"backstay"].concat();
    let (sealed, commitment) =
        internals::sealed_record([1; 32], [2; 16], Kind::Data, 160, &[3; 32], &record);
    assert_eq!(hex(&sealed), "ebe1049e8c9e91b54971080b6ea7cdb354cc93b3efb4cdbdc3a9224f1d");
    assert_eq!(
        hex(&commitment),
        "1644f82679334b7c42f452cbdf27326f5ae4674be30f576cb2e6c2aa7f051c9e"
    );
}
