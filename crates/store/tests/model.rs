//! Random work on a directory, compared with the same work on the store in memory; and what is
//! no key never reaches the disk.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Component, Path};

use backstay_store::{
    Bytes, ErrorKind, MAX_KEY, ObjectMeta, Result, Store, StoreOptions, is_valid_key,
    is_valid_prefix,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Create(String, Vec<u8>),
    Read(String),
    Range(String, u64, u64),
    Head(String),
    List(String),
    Delete(String),
    /// A new handle, as a new process has it.
    Reopen,
}

/// Few keys, so that steps meet. No key is also a directory of another.
fn key() -> impl Strategy<Value = String> {
    prop_oneof!["[ab]", "(d|d1|d1/e|f/g/h)/[ab]", "wal/0000000[12]/0000000[12]000000[01]",]
}

fn prefix() -> impl Strategy<Value = String> {
    prop_oneof![key(), "(d|d1/?|d1/e|f/g?|wal/0*|x/?|)"]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (key(), proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(key, body)| Step::Create(key, body)),
        2 => key().prop_map(Step::Read),
        2 => (key(), 0..45_u64, 0..45_u64).prop_map(|(key, a, b)| Step::Range(key, a, b)),
        1 => key().prop_map(Step::Head),
        2 => prefix().prop_map(Step::List),
        3 => key().prop_map(Step::Delete),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Done,
    Bytes(Bytes),
    Objects(Vec<(String, u64)>),
    Failed(ErrorKind),
}

fn outcome<T>(result: Result<T>, good: impl FnOnce(T) -> Outcome) -> Outcome {
    result.map_or_else(|error| Outcome::Failed(error.kind()), good)
}

fn apply(store: &Store, step: &Step) -> Outcome {
    let object = |meta: ObjectMeta| (meta.key, meta.size);
    match step {
        Step::Create(key, body) => {
            outcome(store.create(key, body.clone().into()), |()| Outcome::Done)
        }
        Step::Read(key) => outcome(store.read(key), Outcome::Bytes),
        Step::Range(key, a, b) => outcome(store.read_range(key, *a..*b), Outcome::Bytes),
        Step::Head(key) => outcome(store.head(key), |meta| Outcome::Objects(vec![object(meta)])),
        Step::List(prefix) => outcome(store.list(prefix), |objects| {
            Outcome::Objects(objects.into_iter().map(object).collect())
        }),
        Step::Delete(key) => outcome(store.delete(key), |()| Outcome::Done),
        Step::Reopen => Outcome::Done,
    }
}

fn open(path: &Path) -> Store {
    Store::open(path.to_str().unwrap(), &StoreOptions::default()).unwrap()
}

fn files(directory: &Path, found: &mut BTreeSet<String>, root: &Path) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found, root);
        } else {
            found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        }
    }
}

proptest! {
    // Each case syncs to the disk many times.
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_directory_does_what_the_store_in_memory_does(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut local = open(directory.path());
        let model = Store::memory();
        for step in &steps {
            if matches!(step, Step::Reopen) {
                local = open(directory.path());
            }
            prop_assert_eq!(apply(&local, step), apply(&model, step), "{:?}", step);
        }
        // The disk holds the objects and nothing else.
        let mut found = BTreeSet::new();
        files(directory.path(), &mut found, directory.path());
        let expected: BTreeSet<_> =
            model.list("").unwrap().into_iter().map(|object| object.key).collect();
        prop_assert_eq!(found, expected);
    }
}

proptest! {
    #[test]
    fn a_valid_key_is_a_plain_relative_path(
        key in prop_oneof!["[a-zA-Z0-9._=/-]{0,40}", "(\\.|a|/|\\.\\.){0,8}", any::<String>()],
    ) {
        if is_valid_key(&key) {
            prop_assert!(!key.is_empty() && key.len() <= MAX_KEY && key.is_ascii());
            let path = Path::new(&key);
            prop_assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
            prop_assert_eq!(path.components().count(), key.split('/').count());
            let below = key.clone() + "/";
            prop_assert!(is_valid_prefix(&key) && is_valid_prefix(&below));
            for end in 0..key.len() {
                prop_assert!(is_valid_prefix(&key[..end]), "{}", &key[..end]);
            }
        }
    }

    #[test]
    fn what_is_no_key_touches_nothing(
        key in prop_oneof![
            "(\\.\\.|\\.|a|/|b/|\\.tmp){1,6}",
            "[^a-z]{1,12}",
            any::<String>(),
        ],
    ) {
        prop_assume!(!is_valid_key(&key));
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let root = directory.path().join("outer/root");
        let store = open(&root);
        let error = store.create(&key, Bytes::from_static(b"x")).unwrap_err();
        prop_assert_eq!(error.kind(), ErrorKind::Configuration);
        for kind in [
            store.read(&key).unwrap_err().kind(),
            store.read_range(&key, 0..1).unwrap_err().kind(),
            store.head(&key).unwrap_err().kind(),
            store.delete(&key).unwrap_err().kind(),
        ] {
            prop_assert_eq!(kind, ErrorKind::Configuration);
        }
        prop_assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
