//! The conformance suite against every store that needs no network.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use backstay_store::{
    Environment, ErrorKind, Fault, Faulty, Local, Memory, Operation, RetryPolicy, Rule, Store,
    StoreOptions, When, conformance,
};

/// Runs the suite over directories below `parent`.
fn run_in(parent: &Path) {
    let directory = tempfile::tempdir_in(parent).unwrap();
    let count = std::cell::Cell::new(0);
    conformance::run(&|| {
        count.set(count.get() + 1);
        let path = directory.path().join(format!("stores/{}", count.get()));
        Store::open(path.to_str().unwrap(), &StoreOptions::default()).unwrap()
    });
}

#[test]
fn memory() {
    conformance::run(&Store::memory);
}

#[test]
fn local() {
    run_in(&std::env::temp_dir());
}

#[test]
fn local_on_tmpfs() {
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        assert!(std::env::var_os("CI").is_none(), "/dev/shm is missing");
        eprintln!("skipped: there is no /dev/shm");
        return;
    }
    run_in(shm);
}

#[test]
fn memory_that_fails_transiently_one_call_in_five() {
    let seed = 20_261_121;
    eprintln!("seed {seed}");
    let env = Environment::seeded(seed);
    conformance::run(&|| {
        let faulty = Faulty::new(Memory::new(), env.clone(), seed);
        faulty.add(Rule::new(None, When::Chance(0.1), Fault::Fail(ErrorKind::Transient)));
        faulty.add(Rule::new(None, When::Chance(0.1), Fault::DoneButFail(ErrorKind::Transient)));
        Store::new(faulty).with_retries(RetryPolicy::default()).with_environment(env.clone())
    });
}

#[test]
fn local_whose_creations_all_lose_their_first_answer() {
    let directory = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    let env = Environment::seeded(1);
    conformance::run(&|| {
        count.set(count.get() + 1);
        let local = Local::new(directory.path().join(count.get().to_string())).unwrap();
        let faulty = Faulty::new(local, env.clone(), 1);
        let fault = Fault::DoneButFail(ErrorKind::Transient);
        faulty.add(Rule::new(Operation::Create, When::Every(2), fault));
        Store::new(faulty).with_retries(RetryPolicy::default()).with_environment(env.clone())
    });
}
