//! Servers for the tests: real ones, and small ones that misbehave as told.
#![allow(dead_code, reason = "each test file takes what it needs")]

pub mod admin;
pub mod gcs;
pub mod http;
pub mod proxy;
pub mod servers;

use backstay_store::{ErrorKind, Store};

/// Says why a test cannot run; where everything must be there, that is a failure.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}");
}

/// Every operation must fail, with one of these kinds: unknown is not absent.
pub fn everything_fails(what: &str, store: &Store, kinds: &[ErrorKind]) {
    let results = [
        ("read", store.read("a/b").map(drop)),
        ("read a range", store.read_range("a/b", 0..1).map(drop)),
        ("read an empty range", store.read_range("a/b", 0..0).map(drop)),
        ("head", store.head("a/b").map(drop)),
        ("list", store.list("a/").map(drop)),
        ("list all", store.list("").map(drop)),
        ("create", store.create("a/b", vec![1].into())),
        ("delete", store.delete("a/b")),
        ("probe", store.probe()),
    ];
    for (operation, result) in results {
        match result {
            Ok(()) => panic!("{what}: {operation} succeeded"),
            Err(error) => {
                assert!(kinds.contains(&error.kind()), "{what}: {operation}: {error:?}");
                assert!(!error.to_string().contains("secret"), "{error}");
            }
        }
    }
}
