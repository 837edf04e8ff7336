//! What every store must do, as one suite that runs against each of them.
//!
//! [`run`] panics with the promise that is broken. It is public so that a store made elsewhere (a
//! simulation, say) is held to the same.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::{ErrorKind, Store, StoreError};

/// More than one page of a listing, of any service.
const MANY: usize = 1_050;

/// Runs the whole suite. `make` returns a handle to a store that is empty each time.
///
/// # Panics
///
/// When the store breaks a promise.
pub fn run(make: &dyn Fn() -> Store) {
    for (name, case) in CASES {
        let store = make();
        tracing::debug!(store = %store.url(), case = name, "conformance");
        case(&store);
    }
}

type Case = (&'static str, fn(&Store));

const CASES: &[Case] = &[
    ("an empty store answers", empty),
    ("what is created can be read", created_is_read),
    ("a second creation fails and changes nothing", created_once),
    ("one of many creations at once wins", one_winner),
    ("what is absent is not found", absent),
    ("ranges are exact", ranges),
    ("large objects", large),
    ("prefixes of keys", prefixes),
    ("keys of all shapes", shapes),
    ("what is no key is refused", refused),
    ("deleting", deleting),
    ("long listings", long_listing),
    ("the probe passes and leaves nothing", probe),
];

fn ok<T>(what: &str, result: Result<T, StoreError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what}: {error}"),
    }
}

fn fails<T: std::fmt::Debug>(what: &str, result: Result<T, StoreError>, kind: ErrorKind) {
    match result {
        Ok(value) => panic!("{what}: must be {kind:?}, was {value:?}"),
        Err(error) => assert_eq!(error.kind(), kind, "{what}: {error}"),
    }
}

fn keys(store: &Store, prefix: &str) -> Vec<String> {
    ok("list", store.list(prefix)).into_iter().map(|object| object.key).collect()
}

/// Bytes of every value, that do not repeat soon.
fn bytes(length: usize, seed: u32) -> Bytes {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect::<Vec<_>>()
        .into()
}

fn empty(store: &Store) {
    assert!(keys(store, "").is_empty());
    assert!(keys(store, "packs/").is_empty());
    assert!(keys(store, "packs/a").is_empty());
    ok("delete", store.delete("packs/nothing"));
    assert!(!store.url().is_empty());
}

fn created_is_read(store: &Store) {
    for (key, body) in [("none", bytes(0, 0)), ("one", bytes(1, 1)), ("a/b/c", bytes(70_000, 2))] {
        ok("create", store.create(key, body.clone()));
        assert!(ok("read", store.read(key)) == body, "{key} came back otherwise");
        let meta = ok("head", store.head(key));
        assert_eq!((meta.key.as_str(), meta.size), (key, body.len() as u64));
        let modified = meta.modified.unwrap_or_else(SystemTime::now);
        let day = Duration::from_secs(86_400);
        assert!(modified > SystemTime::now() - day && modified < SystemTime::now() + day);
        let listed = ok("list", store.list(key));
        assert_eq!(listed.len(), 1, "{key}: {listed:?}");
        assert_eq!((listed[0].key.as_str(), listed[0].size), (key, meta.size));
    }
    assert_eq!(keys(store, ""), ["a/b/c", "none", "one"]);
}

fn created_once(store: &Store) {
    for (first, second) in [(10, 20), (20, 10), (10, 10), (0, 5), (5, 0)] {
        let key = format!("twice/{first}-{second}");
        let body = bytes(first, 1);
        ok("create", store.create(&key, body.clone()));
        fails("create again", store.create(&key, bytes(second, 2)), ErrorKind::AlreadyExists);
        // With the same bytes it may also pass for the first one, whose answer was lost.
        match store.create(&key, body.clone()) {
            Ok(()) => {}
            Err(error) => assert!(error.is_already_exists(), "{error}"),
        }
        assert!(ok("read", store.read(&key)) == body);
    }
}

fn one_winner(store: &Store) {
    const RACERS: usize = 6;
    for round in 0..5 {
        let key = format!("race/{round}");
        let won = AtomicUsize::new(0);
        let winner = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for racer in 0..RACERS {
                let (key, won, winner) = (&key, &won, &winner);
                scope.spawn(move || match store.create(key, bytes(30_000, racer as u32)) {
                    Ok(()) => {
                        won.fetch_add(1, Ordering::SeqCst);
                        winner.store(racer, Ordering::SeqCst);
                    }
                    Err(error) => assert!(error.is_already_exists(), "{error}"),
                });
            }
        });
        assert_eq!(won.into_inner(), 1, "exactly one creation of {key} may succeed");
        assert!(ok("read", store.read(&key)) == bytes(30_000, winner.into_inner() as u32));
    }
}

fn absent(store: &Store) {
    ok("create", store.create("here/it-is", bytes(5, 1)));
    for key in ["nothing", "here", "here/it", "here/it-is-not", "deep/below/nothing"] {
        fails(key, store.read(key), ErrorKind::NotFound);
        fails(key, store.read_range(key, 0..1), ErrorKind::NotFound);
        fails(key, store.read_range(key, 0..0), ErrorKind::NotFound);
        fails(key, store.head(key), ErrorKind::NotFound);
        ok(key, store.delete(key));
    }
    assert_eq!(keys(store, ""), ["here/it-is"]);
}

fn ranges(store: &Store) {
    let body = bytes(10_000, 3);
    ok("create", store.create("ranges", body.clone()));
    for range in [0..10_000, 0..1, 9_999..10_000, 17..4_711, 0..0, 500..500, 10_000..10_000] {
        let read = ok("read a range", store.read_range("ranges", range.clone()));
        let expected = body.slice(range.start as usize..range.end as usize);
        assert!(read == expected, "{range:?} came back otherwise");
    }
    #[expect(clippy::reversed_empty_ranges, reason = "that is what must be refused")]
    for range in [
        0..10_001,
        9_999..10_001,
        10_000..10_001,
        20_000..20_001,
        10_001..10_001,
        5..4,
        0..u64::MAX,
    ] {
        let what = format!("{range:?}");
        fails(&what, store.read_range("ranges", range), ErrorKind::Damaged);
    }
}

fn large(store: &Store) {
    let body = bytes(34 << 20, 4);
    ok("create", store.create("packs/large", body.clone()));
    assert!(ok("read", store.read("packs/large")) == body, "34 MiB came back otherwise");
    let range = (33 << 20) - 5..(33 << 20) + 70_000;
    let read = ok("read a range", store.read_range("packs/large", range.clone()));
    assert!(read == body.slice(range.start as usize..range.end as usize));
}

fn prefixes(store: &Store) {
    let all = ["a", "a-b", "a.b", "a0", "ab/c", "ab/cd/e", "ab/cd/f", "ab/ce", "b/a", "b=/a"];
    for key in all {
        // `a` is no directory here: a store in a directory cannot hold both `a` and `a/b`.
        ok("create", store.create(key, bytes(3, 1)));
    }
    for prefix in ["", "a", "a-", "ab", "ab/", "ab/c", "ab/cd", "ab/cd/", "ab/cd/e", "b", "c", "a/"]
    {
        let expected: Vec<_> = all.iter().filter(|key| key.starts_with(prefix)).collect();
        assert_eq!(keys(store, prefix).iter().collect::<Vec<_>>(), expected, "below {prefix:?}");
    }
}

fn shapes(store: &Store) {
    let long = "x".repeat(200);
    let deep = ["d"; 60].join("/");
    let several = format!("s/{long}/{long}");
    let shapes = [
        "000000010000000000000001",
        "00000002.history",
        "000000010000000000000003.00000028.backup",
        "A/B",
        "Z-_.=9",
        "v=1/w=2.x",
        "x..y",
        "trailing.",
        "=",
        "-",
        "_",
        &deep,
        &long,
        &several,
    ];
    for (index, key) in shapes.iter().enumerate() {
        ok(key, store.create(key, bytes(index, index as u32)));
    }
    let expected: BTreeSet<_> = shapes.iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(keys(store, ""), expected.into_iter().collect::<Vec<_>>());
    for (index, key) in shapes.iter().enumerate() {
        assert!(ok(key, store.read(key)) == bytes(index, index as u32), "{key}");
        ok(key, store.delete(key));
    }
    assert!(keys(store, "").is_empty());
}

fn refused(store: &Store) {
    let long = "x".repeat(201);
    let endless = ["d"; 300].join("/");
    for key in [
        "", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".tmp/a", "a/.b", "a b",
        "a\\b", "a\0b", "a\nb", "ä", "a%2fb", "a?b", "a*b", "a:b", "a+b", "~a", &long, &endless,
    ] {
        let kind = ErrorKind::Configuration;
        fails(key, store.create(key, bytes(1, 1)), kind);
        fails(key, store.read(key), kind);
        fails(key, store.read_range(key, 0..1), kind);
        fails(key, store.head(key), kind);
        fails(key, store.delete(key), kind);
    }
    for prefix in ["/", "/a", "a//", "..", "../", "a/../", ".tmp/", "a/.", "a b", "a*", &long] {
        fails(prefix, store.list(prefix), ErrorKind::Configuration);
    }
    assert!(keys(store, "").is_empty());
}

fn deleting(store: &Store) {
    for key in ["d/one", "d/two", "d/sub/three"] {
        ok("create", store.create(key, bytes(9, 1)));
    }
    ok("delete", store.delete("d/one"));
    fails("read", store.read("d/one"), ErrorKind::NotFound);
    fails("head", store.head("d/one"), ErrorKind::NotFound);
    assert_eq!(keys(store, "d/"), ["d/sub/three", "d/two"]);
    ok("delete again", store.delete("d/one"));
    ok("create again", store.create("d/one", bytes(4, 2)));
    assert!(ok("read", store.read("d/one")) == bytes(4, 2));
    for key in ["d/one", "d/two", "d/sub/three"] {
        ok("delete", store.delete(key));
    }
    assert!(keys(store, "").is_empty());
    ok("create in a directory that went", store.create("d/sub/three", bytes(4, 2)));
}

fn long_listing(store: &Store) {
    const THREADS: usize = 8;
    let name = |n: usize| format!("many/{:02x}/{n:05}", n % 7);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for n in (thread..MANY).step_by(THREADS) {
                    ok("create", store.create(&name(n), bytes(n % 3, n as u32)));
                }
            });
        }
    });
    let listed = ok("list", store.list("many/"));
    let expected: BTreeSet<_> = (0..MANY).map(name).collect();
    assert!(
        listed.iter().map(|object| &object.key).eq(&expected),
        "{} of {MANY} objects are listed, or not in order",
        listed.len()
    );
    for object in listed {
        let n = object.key.rsplit('/').next().and_then(|n| n.parse::<u64>().ok());
        assert_eq!(Some(object.size), n.map(|n| n % 3), "{}", object.key);
    }
}

fn probe(store: &Store) {
    ok("probe", store.probe());
    ok("probe again", store.probe());
    assert!(keys(store, "").is_empty());
}
