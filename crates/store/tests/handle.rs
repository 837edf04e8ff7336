//! What the handle adds to a back end: retries, what a lost answer means, limits, the probe.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use backstay_store::{
    Bytes, Environment, ErrorKind, Fault, Faulty, Memory, Operation, RetryPolicy, Rule, Store, When,
};

fn faulty(env: &Environment) -> (Faulty, Store) {
    let faulty = Faulty::new(Memory::new(), env.clone(), 7);
    let store = Store::new(faulty.clone())
        .with_retries(RetryPolicy::default())
        .with_environment(env.clone());
    (faulty, store)
}

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn a_creation_whose_answer_was_lost_is_ours() {
    let env = Environment::seeded(1);
    let (faulty, store) = faulty(&env);
    faulty.add(Rule::new(
        Operation::Create,
        When::Nth(1),
        Fault::DoneButFail(ErrorKind::Transient),
    ));
    store.create("k", body("ours")).unwrap();
    assert_eq!(faulty.count(Operation::Create), 2);
    assert_eq!(store.read("k").unwrap(), "ours");
    // Without a failure before it, an object of the same bytes is somebody else's.
    let error = store.create("k", body("ours")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
}

#[test]
fn a_creation_that_lost_the_race_while_it_was_tried_again_is_a_conflict() {
    let env = Environment::seeded(1);
    let (faulty, store) = faulty(&env);
    faulty.add(Rule::new(Operation::Create, When::Nth(2), Fault::Fail(ErrorKind::Transient)));
    store.create("k", body("theirs")).unwrap();
    let error = store.create("k", body("ours")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(store.read("k").unwrap(), "theirs");
}

#[test]
fn when_the_comparison_cannot_be_made_the_outcome_is_unknown_and_not_a_conflict() {
    let env = Environment::seeded(1);
    let (faulty, store) = faulty(&env);
    let lost = Fault::DoneButFail(ErrorKind::Transient);
    faulty.add(Rule::new(Operation::Create, When::Nth(1), lost));
    faulty.add(Rule::new(Operation::Read, When::Always, Fault::Fail(ErrorKind::Denied)));
    assert_eq!(store.create("k", body("ours")).unwrap_err().kind(), ErrorKind::Denied);
}

#[test]
fn only_what_is_transient_is_tried_again_and_not_for_ever() {
    let env = Environment::seeded(3);
    let policy = RetryPolicy::default();
    for (kind, calls) in [
        (ErrorKind::Transient, u64::from(policy.attempts)),
        (ErrorKind::Denied, 1),
        (ErrorKind::NoSpace, 1),
        (ErrorKind::NotFound, 1),
        (ErrorKind::Damaged, 1),
    ] {
        let (faulty, store) = faulty(&env);
        faulty.add(Rule::new(None, When::Always, Fault::Fail(kind)));
        let before = env.now();
        assert_eq!(store.read("k").unwrap_err().kind(), kind);
        assert_eq!(faulty.count(Operation::Read), calls, "{kind:?}");
        assert!(env.now().duration_since(before).unwrap() <= policy.budget);
    }
}

#[test]
fn waits_grow_are_random_and_end_with_the_budget() {
    let env = Environment::seeded(4);
    let faulty = Faulty::new(Memory::new(), env.clone(), 7);
    faulty.add(Rule::new(None, When::Always, Fault::Fail(ErrorKind::Transient)));
    let policy = RetryPolicy {
        attempts: 1_000_000,
        first: Duration::from_secs(1),
        longest: Duration::from_secs(30),
        budget: Duration::from_secs(600),
    };
    let store = Store::new(faulty.clone()).with_retries(policy).with_environment(env.clone());
    let before = env.now();
    store.list("").unwrap_err();
    let spent = env.now().duration_since(before).unwrap();
    assert!(spent > Duration::from_secs(500) && spent <= policy.budget, "{spent:?}");
    // About 15 s each once they have grown.
    let calls = faulty.count(Operation::List);
    assert!((25..=70).contains(&calls), "{calls}");
}

#[test]
fn limits_hold_in_both_directions() {
    let env = Environment::seeded(5);
    let store =
        Store::memory().with_environment(env.clone()).with_limits(Some(1000), Some(500_000));
    let start = env.now();
    for n in 0..10 {
        store.create(&format!("k{n}"), Bytes::from(vec![0; 1000])).unwrap();
    }
    assert_eq!(env.now().duration_since(start).unwrap(), Duration::from_secs(9));
    let start = env.now();
    store.read("k1").unwrap();
    store.read_range("k1", 0..10).unwrap();
    assert_eq!(env.now().duration_since(start).unwrap(), Duration::ZERO);
}

#[test]
fn a_short_answer_to_a_range_is_damage() {
    let env = Environment::seeded(6);
    let (faulty, store) = faulty(&env);
    store.create("k", body("0123456789")).unwrap();
    faulty.add(Rule::new(Operation::Read, When::Always, Fault::Truncate(3)));
    assert_eq!(store.read_range("k", 0..5).unwrap_err().kind(), ErrorKind::Damaged);
    assert_eq!(store.read_range("k", 1..4).unwrap(), "123");
}

#[test]
fn the_probe_finds_every_lie() {
    type Lie = (&'static str, Rule, &'static str);
    let rule = |operation: Option<Operation>, when, fault| Rule::new(operation, when, fault);
    let lies: [Lie; 6] = [
        ("creates nothing", rule(Operation::Create.into(), When::Always, Fault::Pretend), ""),
        (
            "says it replaced",
            rule(Operation::Create.into(), When::Nth(2), Fault::Pretend),
            "ignores the condition",
        ),
        (
            "alters what it reads",
            rule(Operation::Read.into(), When::Nth(2), Fault::Flip { at: 3, bits: 1 }),
            "changed the object",
        ),
        (
            "ignores ranges",
            rule(Operation::Read.into(), When::Nth(3), Fault::Flip { at: 0, bits: 4 }),
            "other bytes than the range",
        ),
        ("lists late", rule(Operation::List.into(), When::Nth(2), Fault::Pretend), "not listed"),
        (
            "refuses a login",
            rule(Operation::Read.into(), When::Nth(1), Fault::Fail(ErrorKind::Denied)),
            "access denied",
        ),
    ];
    for (name, lie, words) in lies {
        let env = Environment::seeded(8);
        let (faulty, store) = faulty(&env);
        faulty.add(lie);
        let error = store.probe().unwrap_err();
        assert!(error.to_string().contains(words), "{name}: {error}");
        faulty.clear();
        assert_eq!(store.list("").unwrap(), [], "{name}: the probe left something behind");
        store.probe().unwrap();
    }
}

#[test]
fn the_probe_leaves_its_object_where_nothing_may_be_deleted() {
    let env = Environment::seeded(9);
    let (faulty, store) = faulty(&env);
    faulty.add(Rule::new(Operation::Delete, When::Always, Fault::Fail(ErrorKind::Denied)));
    store.probe().unwrap();
    assert_eq!(store.list("probe/").unwrap().len(), 1);
}

#[test]
fn faults_follow_from_the_seed() {
    let run = |seed| {
        let faulty = Faulty::new(Memory::new(), Environment::seeded(1), seed);
        faulty.add(Rule::new(None, When::Chance(0.3), Fault::Fail(ErrorKind::Transient)));
        faulty.add(Rule::new(None, When::Chance(0.3), Fault::DoneButFail(ErrorKind::Other)));
        let store = Store::new(faulty);
        (0..200)
            .map(|n| {
                let key = format!("k{}", n % 20);
                match n % 3 {
                    0 => store.create(&key, body("x")).err().map(|e| e.kind()),
                    1 => store.read(&key).err().map(|e| e.kind()),
                    _ => store.head(&key).err().map(|e| e.kind()),
                }
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    let failed = run(1).iter().filter(|k| **k == Some(ErrorKind::Transient)).count();
    assert!((40..80).contains(&failed), "{failed} of 200 at 0.3");
}

#[test]
fn a_store_dies_after_so_many_writes_and_comes_back_with_what_it_held() {
    for (fault, held) in [(Fault::Die, 4), (Fault::DoneThenDie, 5)] {
        let faulty = Faulty::new(Memory::new(), Environment::seeded(1), 1);
        faulty.add(Rule::new(Operation::Create, When::Nth(5), fault).below("packs/"));
        let store = Store::new(faulty.clone());
        store.create("format", body("f")).unwrap();
        let created =
            (0..9).filter(|n| store.create(&format!("packs/{n}"), body("p")).is_ok()).count();
        assert_eq!(created, 4);
        assert!(faulty.is_dead() && store.read("format").is_err() && store.list("").is_err());
        faulty.revive();
        assert_eq!(store.list("packs/").unwrap().len(), held);
        store.read("format").unwrap();
    }
}

#[test]
fn entries_can_be_missing_from_lists() {
    let faulty = Faulty::new(Memory::new(), Environment::seeded(1), 1);
    let store = Store::new(faulty.clone());
    for key in ["a/1", "a/2", "b/1"] {
        store.create(key, body("x")).unwrap();
    }
    faulty.add(Rule::new(Operation::List, When::First(1), Fault::Hide("/1".into())));
    let keys = || store.list("").unwrap().into_iter().map(|o| o.key).collect::<Vec<_>>();
    assert_eq!(keys(), ["a/2"]);
    assert_eq!(keys(), ["a/1", "a/2", "b/1"]);
}
