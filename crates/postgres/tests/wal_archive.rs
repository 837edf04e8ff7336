//! `wal::push` and `wal::fetch` on repositories that work, fail and lie.

// What fails outside a test function fails its test.
#![allow(clippy::unwrap_used)]

mod place;

use std::fs;
use std::path::{Path, PathBuf};

use std::time::Duration;

use backstay_postgres::PostgresErrorKind;
use backstay_postgres::wal::{
    self, Destination, FetchOptions, FetchOutcome, PushOptions, SegmentName, SegmentSize,
};
use backstay_repo::{InitOptions, OpenOptions, Pushed, RepoErrorKind, Repository, Secret};
use backstay_store::{Environment, ErrorKind, Fault, Operation, Rule, Store, StoreOptions, When};

use place::{Place, SYSTEM, nth, segment};

fn failure(outcome: FetchOutcome) -> backstay_postgres::PostgresError {
    match outcome {
        FetchOutcome::Failed(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_segment_is_archived_once_and_comes_back_whole() {
    let place = Place::new();
    let content = segment(&nth(3), SYSTEM, 7);
    let path = place.ready(&nth(3), &content);
    assert!(matches!(place.push(&path).unwrap().repositories[..], [Pushed::New { .. }]));
    assert_eq!(place.push(&path).unwrap().repositories, [Pushed::Same]);
    assert!(matches!(place.fetch(&nth(3)), FetchOutcome::Complete));
    assert_eq!(fs::read(place.destination()).unwrap(), content);
    assert_eq!(fs::read_dir(place.path("")).unwrap().count(), 3);
}

#[test]
fn other_content_under_the_same_name_is_refused() {
    let place = Place::new();
    place.push(&place.ready(&nth(3), &segment(&nth(3), SYSTEM, 7))).unwrap();
    for ahead in [0, 4] {
        let path = place.ready(&nth(3), &segment(&nth(3), SYSTEM, 8));
        let error = place.push_ahead(&path, ahead).unwrap_err();
        assert_eq!(error.repo_kind(), Some(RepoErrorKind::Conflict));
        assert_eq!(error.to_string().matches("hash").count(), 2, "{error}");
    }
}

#[test]
fn what_is_no_whole_segment_of_this_cluster_is_refused() {
    let place = Place::new();
    let good = segment(&nth(3), SYSTEM, 7);
    let cases: [(&str, Vec<u8>, PostgresErrorKind); 6] = [
        ("empty", Vec::new(), PostgresErrorKind::Damaged),
        ("cut short", good[..500_000].to_vec(), PostgresErrorKind::Damaged),
        ("cut in its header", good[..20].to_vec(), PostgresErrorKind::Damaged),
        ("renamed", segment(&nth(4), SYSTEM, 7), PostgresErrorKind::Damaged),
        ("foreign", segment(&nth(3), SYSTEM + 1, 7), PostgresErrorKind::Mismatch),
        ("zeros", vec![0; 1 << 20], PostgresErrorKind::Damaged),
    ];
    for (what, content, kind) in cases {
        let path = place.ready(&nth(3), &content);
        assert_eq!(place.push(&path).unwrap_err().kind(), kind, "{what}");
        assert!(!place.has(&nth(3)), "{what}");
    }
    let error = place.push(&place.path("postgresql.conf")).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Usage);
    let error = place.push(&place.path(&nth(9))).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Io);
}

#[test]
fn the_beginning_of_a_segment_is_not_archived_as_the_whole() {
    let place = Place::new();
    let mut begun = segment(&nth(3), SYSTEM, 7);
    begun[40_000..].fill(0);
    let error = place.push(&place.ready(&nth(3), &begun)).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Damaged);
    assert!(error.to_string().contains("not written to its end"), "{error}");
    assert!(!place.has(&nth(3)));
    // Of a timeline that was left there, there is no more.
    place.ready("00000002.history", b"1\t0/309000\tno recovery target specified\n");
    place.push(&place.path(&nth(3))).unwrap();
    assert!(place.has(&nth(3)));
}

#[test]
fn histories_labels_and_partial_segments_are_archived_too() {
    let place = Place::new();
    let partial = format!("{}.partial", nth(5));
    let label = format!("{}.00000028.backup", nth(3));
    for (name, content) in [
        ("00000002.history", b"1\t0/380000\tno recovery target specified\n".to_vec()),
        (&label, b"START WAL LOCATION: 0/300028\n".to_vec()),
        (&partial, segment(&nth(5), SYSTEM, 1)),
        (&nth(5), segment(&nth(5), SYSTEM, 2)),
    ] {
        place.push(&place.ready(name, &content)).unwrap();
        assert!(matches!(place.fetch(name), FetchOutcome::Complete), "{name}");
        assert_eq!(fs::read(place.destination()).unwrap(), content);
    }
    for (name, content) in [("00000003.history", &b""[..]), ("00000003.history", b"no history")] {
        let error = place.push(&place.ready(name, content)).unwrap_err();
        assert_eq!(error.kind(), PostgresErrorKind::Damaged);
    }
}

#[test]
fn the_data_directory_says_which_cluster_a_file_is_of() {
    let place = Place::new();
    let path = place.ready(&nth(3), &segment(&nth(3), SYSTEM, 7));
    // Nothing around it: a segment speaks for itself, a history cannot.
    let options = PushOptions::default();
    wal::push(&place.repositories, &path, &options).unwrap();
    assert!(place.has(&nth(3)));
    let path = place.ready("00000002.history", b"1\t0/380000\tx\n");
    let error = wal::push(&place.repositories, &path, &options).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Usage);
    assert!(error.hint().is_some());
}

#[test]
fn every_required_repository_must_have_it() {
    let mut place = Place::new();
    let other = Place::new();
    place.repositories.extend(other.repositories.clone());
    let path = place.ready(&nth(3), &segment(&nth(3), SYSTEM, 7));
    other.faulty.add(Rule::new(Operation::Create, When::Always, Fault::Fail(ErrorKind::Denied)));
    assert!(place.push(&path).is_err());
    assert!(place.has(&nth(3)));
    other.faulty.clear();
    let report = place.push(&path).unwrap();
    assert!(matches!(report.repositories[..], [Pushed::Same, Pushed::New { .. }]), "{report:?}");
    assert!(other.has(&nth(3)));
}

/// With one of two repositories down PostgreSQL asked for the same segment for ever.
#[test]
fn a_repository_that_is_down_may_get_it_later_where_enough_others_have_it() {
    let mut place = Place::new();
    let other = Place::new();
    place.repositories.extend(other.repositories.clone());
    let path = place.ready(&nth(3), &segment(&nth(3), SYSTEM, 7));
    let down = |kind| Rule::new(Operation::Create, When::Always, Fault::Fail(kind));
    let late = Destination { may_be_late: true, ..Destination::default() };
    let push = |copies, destinations: &[Destination]| {
        let destinations = destinations.to_vec();
        let system_identifier = Some(SYSTEM);
        let options =
            PushOptions { system_identifier, copies, destinations, ..PushOptions::default() };
        wal::push(&place.repositories, &path, &options)
    };
    let strict = Destination::default();
    other.faulty.add(down(ErrorKind::Denied));
    // Not where all must have it, nor where nothing brings it there later.
    assert!(push(None, &[strict, late]).is_err());
    assert!(push(Some(1), &[late, strict]).is_err());
    assert!(push(Some(2), &[late, late]).is_err());
    let report = push(Some(1), &[strict, late]).unwrap();
    assert_eq!(report.repositories, [Pushed::Same]);
    assert_eq!(report.late, [place.repositories[1].store().url()]);
    assert!(!other.has(&nth(3)));
    // Never where none has it.
    place.faulty.add(down(ErrorKind::Denied));
    let path = place.ready(&nth(4), &segment(&nth(4), SYSTEM, 7));
    for copies in [0, 1] {
        let options = PushOptions {
            system_identifier: Some(SYSTEM),
            copies: Some(copies),
            destinations: vec![late, late],
            ..PushOptions::default()
        };
        assert!(wal::push(&place.repositories, &path, &options).is_err());
    }
    place.faulty.clear();
    other.faulty.clear();
    // Other content does not pass: somebody has to look.
    other.push(&other.ready(&nth(3), &segment(&nth(3), SYSTEM, 8))).unwrap();
    let error = push(Some(1), &[strict, late]).unwrap_err();
    assert_eq!(error.repo_kind(), Some(RepoErrorKind::Conflict));
}

#[test]
fn the_next_segments_are_pushed_ahead() {
    let place = Place::new();
    for number in 3..9 {
        place.ready(&nth(number), &segment(&nth(number), SYSTEM, number as u8));
    }
    let report = place.push_ahead(&place.path(&nth(3)), 3).unwrap();
    assert_eq!(report.ahead, [nth(4), nth(5), nth(6)]);
    assert!(!place.has(&nth(7)));
    // When PostgreSQL gets there, each is known by its content.
    let report = place.push_ahead(&place.path(&nth(4)), 0).unwrap();
    assert_eq!(report.repositories, [Pushed::Same]);
    fs::write(place.path(&nth(5)), segment(&nth(5), SYSTEM, 99)).unwrap();
    let error = place.push_ahead(&place.path(&nth(5)), 3).unwrap_err();
    assert_eq!(error.repo_kind(), Some(RepoErrorKind::Conflict));
}

#[test]
fn a_look_ahead_hides_no_failure_and_makes_none() {
    let place = Place::new();
    for number in 3..6 {
        place.ready(&nth(number), &segment(&nth(number), SYSTEM, number as u8));
    }
    // The one asked for is cut short: it fails, whatever the others do.
    fs::write(place.path(&nth(3)), &segment(&nth(3), SYSTEM, 3)[..9000]).unwrap();
    assert!(place.push_ahead(&place.path(&nth(3)), 5).is_err());
    assert!(!place.has(&nth(3)));
    // One of the others is: the one asked for is archived all the same, and says so.
    fs::write(place.path(&nth(3)), segment(&nth(3), SYSTEM, 3)).unwrap();
    fs::write(place.path(&nth(4)), b"").unwrap();
    let report = place.push_ahead(&place.path(&nth(3)), 1).unwrap();
    assert!(report.ahead.is_empty());
    assert!(place.has(&nth(3)) && !place.has(&nth(4)));
    assert!(place.push_ahead(&place.path(&nth(4)), 1).is_err());
}

#[test]
fn a_history_is_durable_before_the_segments_of_its_timeline() {
    let place = Place::new();
    let second = |n| SegmentName::new(2, n, SegmentSize::MIN).unwrap().to_string();
    place.ready("00000002.history", b"1\t0/380000\tx\n");
    for number in 3..6 {
        place.ready(&second(number), &segment(&second(number), SYSTEM, number as u8));
    }
    place.push_ahead(&place.path(&second(3)), 3).unwrap();
    let created: Vec<String> = place
        .faulty
        .operations()
        .into_iter()
        .filter(|(operation, key)| *operation == Operation::Create && key.starts_with("wal/"))
        .map(|(_, key)| key)
        .collect();
    assert!(created[0].ends_with("00000002.history"), "{created:?}");
    assert!(place.has(&second(4)));

    // Where the history cannot be stored, neither can the segments.
    let place = Place::new();
    place.ready("00000002.history", b"not a history");
    place.ready(&second(3), &segment(&second(3), SYSTEM, 1));
    assert!(place.push(&place.path(&second(3))).is_err());
    assert!(!place.has(&second(3)));
}

/// The machine was lost when little had come of the new timeline.
#[test]
fn a_timeline_that_hardly_began_is_no_end_before_the_place_of_the_switch() {
    let place = Place::new();
    let archive = place.repositories[0].archive(SYSTEM);
    let (old, new) = (nth(3), nth(3).replacen("00000001", "00000002", 1));
    let content = segment(&old, SYSTEM, 7);
    archive.push_slice(&new, 0, &content[..0x1_0000]).unwrap();
    archive.push_slice(&old, 0, &content[..0xF_0000]).unwrap();
    archive.push("00000002.history", b"1\t0/3A0000\tno recovery target specified\n").unwrap();
    let delivered = |end: usize| {
        assert!(matches!(place.fetch(&new), FetchOutcome::Complete));
        let found = fs::read(place.destination()).unwrap();
        assert_eq!(found.len(), content.len());
        assert!(found[..end] == content[..end], "{end:#x}");
        assert!(found[end..].iter().all(|byte| *byte == 0), "{end:#x}");
    };
    // Not farther: from there on the old timeline is another.
    delivered(0xA_0000);
    // From there on only the new one counts.
    archive.push_slice(&new, 0x1_0000, &content[0x1_0000..0xB_0000]).unwrap();
    delivered(0xB_0000);
}

#[test]
fn absent_is_said_only_when_the_store_said_so() {
    let place = Place::new();
    for name in ["00000002.history", &nth(77), &format!("{}.partial", nth(3))] {
        assert!(matches!(place.fetch(name), FetchOutcome::Absent), "{name}");
    }
    assert!(!place.destination().exists());
    place.push(&place.ready(&nth(3), &segment(&nth(3), SYSTEM, 7))).unwrap();
    for kind in [ErrorKind::Transient, ErrorKind::Denied, ErrorKind::Other, ErrorKind::Damaged] {
        for name in [nth(3), nth(77)] {
            place.faulty.add(Rule::new(None, When::Always, Fault::Fail(kind)));
            failure(place.fetch(&name));
            place.faulty.clear();
            assert!(!place.destination().exists());
        }
    }
    place.faulty.die();
    failure(place.fetch(&nth(77)));
    assert_eq!(failure(place.fetch("pg_wal")).kind(), PostgresErrorKind::Usage);
}

#[test]
fn a_store_that_comes_back_is_waited_for_within_the_budget() {
    let place = Place::new();
    place.push(&place.ready(&nth(3), &segment(&nth(3), SYSTEM, 7))).unwrap();
    let fail = Fault::Fail(ErrorKind::Transient);
    place.faulty.add(Rule::new(Operation::Read, When::First(12), fail.clone()));
    assert!(matches!(place.fetch(&nth(3)), FetchOutcome::Complete));
    place.faulty.clear();
    place.faulty.add(Rule::new(Operation::Read, When::Always, fail));
    let before = place.faulty.count(Operation::Read);
    let options = FetchOptions { retry_for: Duration::ZERO, ..place.options() };
    let outcome = wal::fetch(&place.repositories, &nth(3), &place.destination(), &options);
    failure(outcome);
    let once = place.faulty.count(Operation::Read) - before;
    failure(place.fetch(&nth(3)));
    assert!(place.faulty.count(Operation::Read) - before > 3 * once, "it was not tried again");
}

#[test]
fn a_damaged_or_misplaced_object_is_a_failure_never_an_absence() {
    for fault in [
        Fault::Truncate(0),
        Fault::Truncate(100),
        Fault::Truncate(230),
        Fault::Flip { at: 300, bits: 1 },
        Fault::Flip { at: 200, bits: 8 },
        Fault::Pretend,
    ] {
        let place = Place::new();
        place.push(&place.ready(&nth(3), &segment(&nth(3), SYSTEM, 7))).unwrap();
        place.faulty.add(Rule::new(Operation::Read, When::Always, fault.clone()));
        failure(place.fetch(&nth(3)));
        assert!(!place.destination().exists(), "{fault:?}");
    }
    // What is whole and sealed, but not what its name says, came past `wal::push`.
    let place = Place::new();
    let archive = place.repositories[0].archive(SYSTEM);
    archive.push(&nth(3), &segment(&nth(4), SYSTEM, 7)).unwrap();
    archive.push(&nth(5), &segment(&nth(5), SYSTEM + 1, 7)).unwrap();
    archive.push(&nth(6), b"").unwrap();
    archive.push("00000009.history", b"?").unwrap();
    archive.push("0000000A.history", b"").unwrap();
    for name in [&nth(3), &nth(5), &nth(6), "00000009.history"] {
        failure(place.fetch(name));
    }
    // An empty history says that there are no ancestors.
    assert!(matches!(place.fetch("0000000A.history"), FetchOutcome::Complete));
}

#[test]
fn another_repository_answers_for_one_that_cannot() {
    let mut place = Place::new();
    let other = Place::new();
    place.repositories.extend(other.repositories.clone());
    place.push(&place.ready(&nth(3), &segment(&nth(3), SYSTEM, 7))).unwrap();
    place.faulty.die();
    assert!(matches!(place.fetch(&nth(3)), FetchOutcome::Complete));
    // Only the one that answers says that it has no such file: the other may have it.
    failure(place.fetch(&nth(4)));
    place.faulty.revive();
    assert!(matches!(place.fetch(&nth(4)), FetchOutcome::Absent));
}

#[test]
fn the_segments_that_follow_wait_in_the_spool() {
    let place = Place::new();
    for number in 3..9 {
        place
            .push(&place.ready(&nth(number), &segment(&nth(number), SYSTEM, number as u8)))
            .unwrap();
    }
    assert!(matches!(place.fetch_ahead(&nth(3), 3), FetchOutcome::Complete));
    let spooled = place.spooled();
    assert_eq!(spooled.len(), 3);
    assert!(spooled[0].starts_with(&nth(4)) && spooled[2].starts_with(&nth(6)), "{spooled:?}");
    // They are served without the store.
    place.faulty.die();
    for number in 4..7 {
        assert!(matches!(place.fetch_ahead(&nth(number), 3), FetchOutcome::Complete), "{number}");
        let content = fs::read(place.destination()).unwrap();
        assert_eq!(content, segment(&nth(number), SYSTEM, number as u8));
    }
    assert!(place.spooled().is_empty());
    place.faulty.revive();
    // A jump leaves nothing behind that will not be asked for.
    assert!(matches!(place.fetch_ahead(&nth(3), 3), FetchOutcome::Complete));
    assert!(matches!(place.fetch_ahead(&nth(7), 3), FetchOutcome::Complete));
    let spooled = place.spooled();
    assert!(spooled.len() == 1 && spooled[0].starts_with(&nth(8)), "{spooled:?}");
    assert_eq!(
        wal::prefetch(
            &place.repositories,
            &nth(4),
            &FetchOptions { prefetch: 2, ..place.options() }
        )
        .unwrap(),
        2
    );
}

#[test]
fn a_spooled_file_is_never_trusted() {
    let place = Place::new();
    for number in 3..8 {
        place
            .push(&place.ready(&nth(number), &segment(&nth(number), SYSTEM, number as u8)))
            .unwrap();
    }
    let folder = place.folder.path().join("spool").join(SYSTEM.to_string());
    let right = |number: u64| {
        assert!(matches!(place.fetch_ahead(&nth(number), 1), FetchOutcome::Complete));
        let content = fs::read(place.destination()).unwrap();
        assert_eq!(content, segment(&nth(number), SYSTEM, number as u8), "{number}");
    };
    let damage = |change: &dyn Fn(&mut Vec<u8>)| {
        right(3);
        let spooled = place.spooled();
        let path = folder.join(&spooled[0]);
        let mut content = fs::read(&path).unwrap();
        change(&mut content);
        fs::write(&path, content).unwrap();
        right(4);
    };
    damage(&|content| content[700_000] ^= 1);
    damage(&|content| content.truncate(4096));
    damage(&|content| content.clear());
    damage(&|content| *content = segment(&nth(4), SYSTEM, 99));
    // Another segment's file under this one's name, with its own proof.
    right(4);
    let spooled = place.spooled();
    let proof = spooled[0].split_once('.').unwrap().1;
    fs::copy(folder.join(&spooled[0]), folder.join(format!("{}.{proof}", nth(6)))).unwrap();
    right(6);
    // What a dead process left is removed, the spool may vanish at any moment.
    fs::write(folder.join("tmp.1.1"), "half").unwrap();
    right(3);
    assert!(place.spooled().iter().all(|name| !name.starts_with("tmp.")));
    fs::remove_dir_all(&folder).unwrap();
    right(4);
}

#[test]
fn what_waits_in_the_spool_is_delivered_without_a_repository() {
    let place = Place::new();
    for number in 3..6 {
        place
            .push(&place.ready(&nth(number), &segment(&nth(number), SYSTEM, number as u8)))
            .unwrap();
    }
    let spooled = |options: &FetchOptions, number: u64| {
        wal::fetch_spooled(&nth(number), &place.destination(), options).unwrap()
    };
    assert!(!spooled(&place.options(), 4));
    assert!(matches!(place.fetch_ahead(&nth(3), 2), FetchOutcome::Complete));
    assert!(spooled(&place.options(), 4));
    assert_eq!(fs::read(place.destination()).unwrap(), segment(&nth(4), SYSTEM, 4));
    assert!(!spooled(&place.options(), 4), "it is delivered once");
    // What came from one repository is no answer of another.
    assert!(!spooled(&FetchOptions { origin: "there".to_owned(), ..place.options() }, 5));
    assert!(!spooled(&place.options(), 3) && !spooled(&place.options(), 6));
    use std::os::unix::fs::PermissionsExt as _;
    let key = fs::metadata(place.folder.path().join("spool/key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
}

#[test]
fn many_processes_share_a_spool() {
    let place = Place::new();
    for number in 3..20 {
        place
            .push(&place.ready(&nth(number), &segment(&nth(number), SYSTEM, number as u8)))
            .unwrap();
    }
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let place = &place;
            scope.spawn(move || {
                let destination = place.path(&format!("RECOVERY{reader}"));
                let options = FetchOptions { prefetch: 4, ..place.options() };
                for number in 3..20 {
                    let outcome =
                        wal::fetch(&place.repositories, &nth(number), &destination, &options);
                    assert!(matches!(outcome, FetchOutcome::Complete), "{outcome:?}");
                    let content = fs::read(&destination).unwrap();
                    assert_eq!(content, segment(&nth(number), SYSTEM, number as u8));
                }
            });
        }
    });
}

/// The repository in `folder`, made when it is not there.
fn on_disk(folder: &Path) -> Repository {
    let url = format!("file://{}", folder.join("repository").display());
    let store = Store::open(&url, &StoreOptions::default()).unwrap();
    let secret = Secret::key_file([3; 32]).unwrap();
    let env = Environment::system();
    match Repository::open(store.clone(), env.clone(), &secret, OpenOptions::default()) {
        Ok(repository) => repository,
        Err(_) => Repository::init(store, env, &secret, InitOptions::default()).unwrap(),
    }
}

/// A push that dies at any step archived the whole segment or nothing, and can be repeated.
#[test]
fn a_push_killed_at_any_step_is_whole_or_nothing() {
    for (failpoint, there) in [
        ("wal-push-read", false),
        ("archive-sealed", false),
        ("local-create-temporary", false),
        ("local-create-written", false),
        ("local-create-synced", false),
        ("local-create-linked", true),
        ("local-create-settled", true),
        ("archive-created", true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let repository = on_disk(folder.path());
        let path = folder.path().join(nth(3));
        fs::write(&path, segment(&nth(3), SYSTEM, 7)).unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "push_in_another_process"])
            .env("BACKSTAY_FAILPOINT", failpoint)
            .env("WAL_PUSH_IN", folder.path())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(!status.success(), "{failpoint} was not passed");
        let archive = repository.archive(SYSTEM);
        assert_eq!(archive.contains(&nth(3)).unwrap(), there, "{failpoint}");
        let repositories = [repository];
        let report = wal::push(&repositories, &path, &PushOptions::default()).unwrap();
        assert_eq!(report.repositories[0] == Pushed::Same, there, "{failpoint}");
        let content = archive.fetch(&nth(3)).unwrap().unwrap();
        assert_eq!(content, segment(&nth(3), SYSTEM, 7), "{failpoint}");
    }
}

/// The other process of the test above; does nothing by itself.
#[test]
fn push_in_another_process() {
    let Some(folder) = std::env::var_os("WAL_PUSH_IN").map(PathBuf::from) else { return };
    let repositories = [on_disk(&folder)];
    wal::push(&repositories, &folder.join(nth(3)), &PushOptions::default()).unwrap();
}

/// A process that dies at any step leaves the destination whole or untouched.
#[test]
fn a_fetch_killed_at_any_step_leaves_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let me = std::env::current_exe().unwrap();
    for (failpoint, there) in [("wal-fetch-temporary", false), ("wal-fetch-renamed", true)] {
        let destination = folder.path().join(failpoint);
        let status = std::process::Command::new(&me)
            .args(["--exact", "fetch_in_another_process"])
            .env("BACKSTAY_FAILPOINT", failpoint)
            .env("WAL_FETCH_TO", &destination)
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(!status.success(), "{failpoint} was not passed");
        assert_eq!(destination.exists(), there, "{failpoint}");
        if there {
            assert_eq!(fs::read(&destination).unwrap(), segment(&nth(3), SYSTEM, 7));
        }
    }
}

/// The other process of the test above; does nothing by itself.
#[test]
fn fetch_in_another_process() {
    let Some(destination) = std::env::var_os("WAL_FETCH_TO") else { return };
    let place = Place::new();
    place.push(&place.ready(&nth(3), &segment(&nth(3), SYSTEM, 7))).unwrap();
    let outcome =
        wal::fetch(&place.repositories, &nth(3), Path::new(&destination), &place.options());
    assert!(matches!(outcome, FetchOutcome::Complete));
}
