//! Each damage by its own name: what a person reads says which object, what is wrong with it, and what
//! to do, and `docs/errors.md` has an entry for it.
//!
//! `cargo test -p backstay-repo --test named -- --nocapture` prints them all.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use backstay_repo::*;
use backstay_store::Bytes as Body;
use support::*;

use Chunking::ContentDefined as C;

struct Case {
    store: Store,
    repo: Repository,
    snapshot: Snapshot,
    other: Snapshot,
}

fn case() -> Case {
    let store = Store::memory();
    let repo = repository(&store);
    let large = |seed| {
        files(&[("a/file", C, noise(900_000, seed)), ("b/file", C, noise(70_000, seed + 1))])
    };
    let snapshot = backup(&repo, &large(1)).unwrap();
    let other = backup(&repo, &large(50)).unwrap();
    Case { store, repo, snapshot, other }
}

impl Case {
    /// Of the first snapshot; the class is in the clear, 1 for data and 2 for metadata.
    fn packs(&self, class: u8) -> Vec<String> {
        let listed = self.store.list("packs/").unwrap().into_iter().map(|object| object.key);
        let of_first = listed.filter(|key| key.contains(&self.snapshot.id));
        of_first.filter(|key| self.store.read(key).unwrap()[9] == class).collect()
    }

    fn index(&self) -> String {
        format!("index/0/{}/{}/000000", self.snapshot.writer, self.snapshot.id)
    }

    fn snapshot_key(&self, snapshot: &Snapshot) -> String {
        format!("snapshots/{}/{}", snapshot.writer, snapshot.id)
    }

    fn put(&self, key: &str, body: impl Into<Body>) {
        let _ = self.store.delete(key);
        self.store.create(key, body.into()).unwrap();
    }

    fn flip(&self, key: &str, at: usize) {
        let mut body = self.store.read(key).unwrap().to_vec();
        body[at] ^= 1;
        self.put(key, body);
    }

    fn verified(&self, object: &str) -> Vec<String> {
        let report = verify(&self.repo, Level::Thorough);
        let damages = report.damages.iter().filter(|damage| damage.object == object);
        damages.map(|damage| format!("{}: {}", damage.object, damage.what)).collect()
    }
}

fn opened(store: &Store) -> Vec<String> {
    let opened =
        Repository::open(store.clone(), Environment::system(), &key(), OpenOptions::default());
    opened.err().map(|error| error.to_string()).into_iter().collect()
}

/// What is damaged, and the words by which it is known.
type Damaging = (&'static str, &'static str, fn(&Case) -> Vec<String>);

const CASES: &[Damaging] = &[
    ("a missing index segment", "it is missing: no segment lists all packs of its session", |it| {
        it.store.delete(&it.index()).unwrap();
        it.verified(&it.index())
    }),
    ("a damaged index segment", "it was altered, cut short, or is another object", |it| {
        it.flip(&it.index(), 300);
        it.verified(&it.index())
    }),
    ("a missing pack", "it is missing", |it| {
        let pack = it.packs(1).remove(0);
        it.store.delete(&pack).unwrap();
        it.verified(&pack)
    }),
    ("a pack that is another pack", "it is another pack", |it| {
        let pack = it.packs(1).remove(0);
        let listed = it.store.list("packs/").unwrap().into_iter().map(|object| object.key);
        let mut others = listed.filter(|key| *key != pack && it.store.read(key).unwrap()[9] == 1);
        let other = it.store.read(&others.next().unwrap()).unwrap();
        // Of the same length, so that its size tells nothing.
        let length = it.store.read(&pack).unwrap().len();
        let mut body = other.to_vec();
        body.resize(length, 0);
        it.put(&pack, body);
        it.verified(&pack)
    }),
    ("a pack that is cut short", "bytes, ", |it| {
        let pack = it.packs(1).remove(0);
        let body = it.store.read(&pack).unwrap();
        it.put(&pack, body.slice(..body.len() - 1000));
        it.verified(&pack)
    }),
    ("a flipped bit in the header of a pack", "its header does not commit to its key", |it| {
        let pack = it.packs(1).remove(0);
        it.flip(&pack, 115);
        it.verified(&pack)
    }),
    (
        "a flipped bit in a sealed session key",
        "its header does not open with this repository's key",
        |it| {
            let pack = it.packs(1).remove(0);
            it.flip(&pack, 70);
            it.verified(&pack)
        },
    ),
    ("a flipped bit in a record", "does not open", |it| {
        let pack = it.packs(1).remove(0);
        it.flip(&pack, 200);
        it.verified(&pack)
    }),
    ("a flipped bit in a footer", "its footer does not open", |it| {
        let pack = it.packs(1).remove(0);
        let length = it.store.read(&pack).unwrap().len();
        it.flip(&pack, length - 40);
        it.verified(&pack)
    }),
    ("a flipped bit in a trailer", "its trailer does not open: it is cut short or altered", |it| {
        let pack = it.packs(1).remove(0);
        let length = it.store.read(&pack).unwrap().len();
        it.flip(&pack, length - 5);
        it.verified(&pack)
    }),
    ("a byte behind the version", "its header is altered: another version", |it| {
        let pack = it.packs(1).remove(0);
        it.flip(&pack, 8);
        it.verified(&pack)
    }),
    ("a foreign key slot", "all key slots are those of another repository", |it| {
        let foreign = case();
        for slot in it.store.list("keys/").unwrap() {
            it.store.delete(&slot.key).unwrap();
        }
        for slot in foreign.store.list("keys/").unwrap() {
            it.put(&slot.key, foreign.store.read(&slot.key).unwrap());
        }
        opened(&it.store)
    }),
    ("a format that was altered", "it was altered", |it| {
        let body = it.store.read("format").unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        it.put("format", text.replace("\"write\": []", "\"write\": [\"x\"]").into_bytes());
        opened(&it.store)
    }),
    ("an unknown flag", "this program does not", |it| {
        let body = internals::format_with_flag(&it.repo, "read", "later-1").unwrap();
        it.put("format", body);
        opened(&it.store)
    }),
    ("a snapshot under another name", "it was altered, cut short, or is another object", |it| {
        let forged = it.store.read(&it.snapshot_key(&it.other)).unwrap();
        let key = it.snapshot_key(&it.snapshot);
        it.put(&key, forged);
        it.verified(&key)
    }),
    ("a forged snapshot", "it is an object of another kind", |it| {
        let forged = it.store.read(&it.packs(1)[0]).unwrap();
        let key = it.snapshot_key(&it.snapshot);
        it.put(&key, forged.slice(..600));
        it.verified(&key)
    }),
    ("a made-up run of maintenance", "there never was such a run of maintenance", |it| {
        it.put("gc/00000777/condemned", Body::from_static(b"x"));
        it.verified("gc/00000777/condemned")
    }),
    ("a made-up head of the index", "it is cut short", |it| {
        it.put("index/heads/00000777", Body::from_static(b"x"));
        it.verified("index/heads/00000777")
    }),
    ("a run without its list of packs", "it is missing, and the run went on after it", |it| {
        it.repo.forget(&it.other.id).unwrap();
        it.repo.maintain(&MaintenanceOptions::default(), &Default::default()).unwrap();
        it.store.delete("gc/00000001/condemned").unwrap();
        it.verified("gc/00000001/condemned")
    }),
];

#[test]
fn every_damage_has_a_name_and_the_documents_know_it() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    let documents = std::fs::read_to_string(path).unwrap();
    for (what, words, damage) in CASES {
        let found = damage(&case());
        println!("{what}:");
        found.iter().for_each(|message| println!("    {message}"));
        assert!(found.iter().any(|message| message.contains(words)), "{what}: {found:?}");
        assert!(documents.contains(&format!("| {what} |")), "docs/errors.md lacks {what:?}");
    }
}
