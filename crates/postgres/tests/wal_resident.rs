//! An archiver that stays, and who may put anything into its folders.
#![allow(clippy::unwrap_used)] // all of this is tests

mod place;

use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use backstay_postgres::PostgresErrorKind;
use backstay_postgres::wal::{self, FetchOutcome, Push, Resident};
use backstay_repo::RepoErrorKind;
use place::{Place, SYSTEM, nth, segment};

/// An archiver that stays and is so many files ahead, and the names of what it has pushed, each as often
/// as it was.
fn resident(place: &Arc<Place>, ahead: usize) -> (Resident, Arc<Push>, Arc<Mutex<Vec<String>>>) {
    let pushed = Arc::new(Mutex::new(Vec::new()));
    let push: Arc<Push> = {
        let (place, pushed) = (place.clone(), pushed.clone());
        Arc::new(move |path: &Path| {
            let report = place.push(path)?;
            pushed.lock().unwrap().push(report.name.clone());
            Ok(report)
        })
    };
    (Resident::new(ahead, NonZero::new(2).unwrap()), push, pushed)
}

#[test]
fn an_archiver_that_stays_is_ahead_and_pushes_nothing_twice() {
    let place = Arc::new(Place::new());
    let (resident, push, pushed) = resident(&place, 4);
    let paths: Vec<PathBuf> =
        (1..=9).map(|n| place.ready(&nth(n), &segment(&nth(n), SYSTEM, n as u8))).collect();
    let times = |name: &str| pushed.lock().unwrap().iter().filter(|one| *one == name).count();
    for (number, path) in (1..).zip(&paths) {
        let report = resident.push(path, &push).unwrap();
        assert_eq!(report.name, nth(number));
        assert!(place.has(&nth(number)), "answered before it was durable");
        // What PostgreSQL does once it was told.
        let status = |end: &str| place.path(&format!("archive_status/{}.{end}", nth(number)));
        fs::rename(status("ready"), status("done")).unwrap();
        if number == 1 {
            backstay_testing::wait_until("it is ahead", 60, || place.has(&nth(5)));
        }
    }
    assert!(pushed.lock().unwrap().len() >= 9);
    for number in 1..=9 {
        assert_eq!(times(&nth(number)), 1, "{number}");
    }
}

#[test]
fn an_archiver_that_stays_answers_for_nothing_that_changed_since() {
    let place = Arc::new(Place::new());
    let (resident, push, _) = resident(&place, 4);
    let first = place.ready(&nth(1), &segment(&nth(1), SYSTEM, 1));
    let second = place.ready(&nth(2), &segment(&nth(2), SYSTEM, 2));
    resident.push(&first, &push).unwrap();
    backstay_testing::wait_until("it is ahead", 60, || place.has(&nth(2)));
    place.ready(&nth(2), &segment(&nth(2), SYSTEM, 3));
    let error = resident.push(&second, &push).unwrap_err();
    assert_eq!(error.repo_kind(), Some(RepoErrorKind::Conflict));
}

#[test]
fn what_could_not_be_pushed_ahead_fails_when_it_is_asked_for_and_not_for_ever() {
    let place = Arc::new(Place::new());
    let (resident, push, _) = resident(&place, 4);
    let first = place.ready(&nth(1), &segment(&nth(1), SYSTEM, 1));
    let second = place.ready(&nth(2), &segment(&nth(2), SYSTEM + 1, 2));
    resident.push(&first, &push).unwrap();
    for _ in 0..2 {
        let error = resident.push(&second, &push).unwrap_err();
        assert_eq!(error.kind(), PostgresErrorKind::Mismatch);
        assert!(!place.has(&nth(2)));
    }
    place.ready(&nth(2), &segment(&nth(2), SYSTEM, 2));
    resident.push(&second, &push).unwrap();
    assert!(place.has(&nth(2)));
}

#[test]
fn a_push_that_panics_keeps_nobody_waiting() {
    let place = Arc::new(Place::new());
    let (resident, push, _) = resident(&place, 4);
    let path = place.ready(&nth(1), &segment(&nth(1), SYSTEM, 1));
    let panics: Arc<Push> = Arc::new(|_: &Path| panic!("on purpose"));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        resident.push(&path, &panics).map(drop)
    }));
    assert!(caught.is_err());
    resident.push(&path, &push).unwrap();
    assert!(place.has(&nth(1)));
}

#[test]
fn an_archiver_that_is_never_ahead_pushes_what_it_is_asked_for_and_remembers_nothing() {
    let place = Arc::new(Place::new());
    let (resident, push, pushed) = resident(&place, 0);
    let paths: Vec<PathBuf> =
        (1..=3).map(|n| place.ready(&nth(n), &segment(&nth(n), SYSTEM, n as u8))).collect();
    for (number, path) in (1..).zip(&paths) {
        resident.push(path, &push).unwrap();
        assert!(place.has(&nth(number)));
    }
    resident.push(&paths[0], &push).unwrap();
    // Each was pushed when it was asked for, and not before.
    let expected: Vec<String> = [1, 2, 3, 1].map(nth).to_vec();
    assert_eq!(*pushed.lock().unwrap(), expected);
    assert!(!format!("{resident:?}").contains("Pushed"), "{resident:?}");
}

#[test]
fn a_spool_that_others_can_write_to_is_not_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    for number in 1..=3 {
        place.push(&place.ready(&nth(number), &segment(&nth(number), SYSTEM, 1))).unwrap();
    }
    let spool = place.options().spool.unwrap();
    fs::create_dir(&spool).unwrap();
    let set = |mode: u32| {
        fs::set_permissions(&spool, fs::Permissions::from_mode(mode)).unwrap();
    };
    set(0o777);
    let fetch = |name: &str| {
        assert!(matches!(place.fetch_ahead(name, 2), FetchOutcome::Complete));
        assert_eq!(fs::read(place.destination()).unwrap(), segment(name, SYSTEM, 1));
    };
    // What recovery asks for it gets all the same.
    fetch(&nth(1));
    assert_eq!(place.spooled(), Vec::<String>::new());
    set(0o700);
    fetch(&nth(1));
    assert_eq!(place.spooled().len(), 2);
    // What waits there is not taken either once others could have put it there.
    set(0o770);
    assert!(!wal::fetch_spooled(&nth(2), &place.destination(), &place.options()).unwrap());
    set(0o700);
    assert!(wal::fetch_spooled(&nth(2), &place.destination(), &place.options()).unwrap());
}
