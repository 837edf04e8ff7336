//! What `wal::check_target` says, and what a real recovery then does.

// What fails outside a test function fails its test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use backstay_postgres::PostgresErrorKind;
use backstay_postgres::wal::{
    self, CheckOptions, Lsn, PushOptions, RecoveryBase, RecoveryTarget, Search, SegmentName,
    SegmentSize, TargetCheck, TargetTimeline, WalName,
};
use backstay_repo::{Archive, InitOptions, Repository, Secret};
use backstay_store::{Environment, Fault, Faulty, Memory, Operation, Rule, Store, When};
use backstay_testing::postgres::{Cluster, Installation, version};
use backstay_testing::wait_until;
use jiff::Timestamp;

const SIZE: SegmentSize = SegmentSize::MIN;

/// A primary that archives into a folder.
struct Primary {
    installation: Installation,
    cluster: Cluster,
    folder: PathBuf,
}

impl Primary {
    fn new() -> Option<Self> {
        let installation = version(15).filter(|i| i.program("pg_basebackup").is_some())?;
        let cluster = Cluster::builder(&installation)
            .segment_size(1)
            .config(&[
                ("archive_mode", "on"),
                ("archive_command", "true"),
                ("autovacuum", "off"),
                ("max_prepared_transactions", "5"),
            ])
            .start();
        let folder = cluster.directory("archive");
        cluster.configure(&[("archive_command", &format!("cp %p {}/%f", folder.display()))]);
        cluster.reload();
        cluster.sql("create table t (id int)");
        Some(Self { installation, cluster, folder })
    }

    fn system(&self) -> u64 {
        self.cluster.value("select system_identifier from pg_control_system()").parse().unwrap()
    }

    /// A copy of the data directory, and what recovery from it needs to know.
    fn backup(&self, name: &str) -> (PathBuf, RecoveryBase) {
        let copy = self.cluster.directory(name).join("data");
        let before: Vec<String> = self.archived(".backup");
        let mut command = self.cluster.command("pg_basebackup").unwrap();
        command.args(["-X", "none", "-c", "fast", "-D"]).arg(&copy);
        assert!(command.status().unwrap().success());
        wait_until("the backup's label is archived", 60, || {
            self.archived(".backup").len() > before.len()
        });
        let mut labels = self.archived(".backup");
        labels.retain(|label| !before.contains(label));
        let text = fs::read_to_string(self.folder.join(&labels[0])).unwrap();
        let line = |what: &str| -> Lsn {
            let line = text.lines().find(|line| line.starts_with(what)).unwrap();
            let lsn = line.split_once(": ").unwrap().1;
            lsn.split(' ').next().unwrap().parse().unwrap()
        };
        let name: WalName = labels[0].parse().unwrap();
        let base = RecoveryBase {
            standalone: false,
            system_identifier: self.system(),
            timeline: name.timeline(),
            start: line("START WAL LOCATION"),
            stop: line("STOP WAL LOCATION"),
            segment_size: SIZE,
            time_stop: self.now(),
        };
        (copy, base)
    }

    fn archived(&self, suffix: &str) -> Vec<String> {
        let names = fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names
            .map(|name| name.into_string().unwrap())
            .filter(|name| name.ends_with(suffix))
            .collect();
        names.sort();
        names
    }

    fn now(&self) -> Timestamp {
        let micros =
            self.cluster.value("select (extract(epoch from clock_timestamp()) * 1000000)::bigint");
        Timestamp::from_microsecond(micros.parse().unwrap()).unwrap()
    }

    /// One transaction; its number.
    fn transaction(&self) -> u64 {
        let id = self.cluster.value("insert into t values (1) returning txid_current()");
        id.parse().unwrap()
    }

    /// Ends the segment and waits until it is in the folder.
    fn switch(&self) -> String {
        let name = self.cluster.switch_wal();
        wait_until("the segment is archived", 60, || {
            let folder = self.cluster.data().join("pg_wal/archive_status");
            folder.join(format!("{name}.done")).exists()
        });
        name
    }

    /// A repository with everything in the folder but what `leave_out` names.
    fn archive(&self, leave_out: &[&str]) -> (Archive, Faulty) {
        let env = Environment::seeded(1);
        let faulty = Faulty::new(Memory::new(), env.clone(), 1);
        let secret = Secret::key_file([1; 32]).unwrap();
        let store = Store::new(faulty.clone());
        let repository = Repository::init(store, env, &secret, InitOptions::default()).unwrap();
        let options =
            PushOptions { system_identifier: Some(self.system()), ..PushOptions::default() };
        for name in self.archived("").iter().filter(|name| !leave_out.contains(&name.as_str())) {
            let path = self.folder.join(name);
            wal::push(std::slice::from_ref(&repository), &path, &options).unwrap();
        }
        (repository.archive(self.system()), faulty)
    }

    /// Recovers the copy with these settings; whether the server stopped at the target.
    fn recovers(&self, copy: &Path, settings: &[(&str, &str)]) -> (bool, String) {
        let scratch = tempfile::tempdir().unwrap();
        let data = scratch.path().join("data");
        let mut command = std::process::Command::new("cp");
        assert!(command.arg("-a").arg(copy).arg(&data).status().unwrap().success());
        fs::write(data.join("recovery.signal"), "").unwrap();
        // The server's user must get through to its data.
        let mut open = fs::metadata(scratch.path()).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut open, 0o755);
        fs::set_permissions(scratch.path(), open).unwrap();
        let restore = format!("cp {}/%f %p", self.folder.display());
        let mut all = vec![
            ("restore_command", restore.as_str()),
            ("archive_mode", "off"),
            ("recovery_target_action", "shutdown"),
        ];
        all.extend(settings);
        let server = Cluster::adopt(&self.installation, &data).config(&all).create();
        server.start_without_waiting();
        server.wait_for_end();
        let log = server.log();
        let stopped = log.contains("recovery stopping") && !log.contains("FATAL");
        let refused = log.contains("recovery ended before configured recovery target")
            || log.contains("recovery stop point is before consistent recovery point");
        assert!(stopped || refused, "{log}");
        (stopped, log)
    }
}

fn check(
    archive: &Archive,
    base: &RecoveryBase,
    target: &RecoveryTarget,
    timeline: Option<TargetTimeline>,
) -> backstay_postgres::Result<TargetCheck> {
    let options = CheckOptions { timeline, batch: 2, ..CheckOptions::default() };
    wal::check_target_with(archive, base, target, &options)
}

macro_rules! primary {
    () => {
        match Primary::new() {
            Some(primary) => primary,
            None => backstay_testing::skip!("PostgreSQL 15 with pg_basebackup is not installed"),
        }
    };
}

#[test]
fn the_answer_is_what_a_server_then_does() {
    let primary = primary!();
    primary.switch();
    let early = primary.transaction();
    let (copy, base) = primary.backup("copy");
    let first = primary.transaction();
    let between = primary.now();
    let second = primary.transaction();
    let point: Lsn =
        primary.cluster.value("select pg_create_restore_point('alpha')").parse().unwrap();
    primary.cluster.sql("begin; insert into t values (2); prepare transaction 'p'");
    let prepared: u64 =
        primary.cluster.value("select transaction from pg_prepared_xacts").parse().unwrap();
    primary.cluster.sql("commit prepared 'p'");
    for _ in 0..3 {
        primary.cluster.sql("insert into t select generate_series(1, 5000)");
        primary.switch();
    }
    let late = primary.now();
    let unarchived = primary.transaction();
    let (archive, _) = primary.archive(&[]);

    let lsn = |lsn: Lsn| ("recovery_target_lsn", lsn.to_string(), RecoveryTarget::Lsn(lsn));
    let xid = |xid: u64| ("recovery_target_xid", xid.to_string(), RecoveryTarget::Xid(xid));
    let time = |t: Timestamp| {
        let text = t.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S%.6f+00");
        ("recovery_target_time", text.to_string(), RecoveryTarget::Time(t))
    };
    let name = |name: &str| {
        ("recovery_target_name", name.to_owned(), RecoveryTarget::Name(name.to_owned()))
    };
    let last = {
        // The last record there is: a target just at it, and one just behind it.
        let beyond = RecoveryTarget::Lsn(Lsn(u64::MAX >> 1));
        let error = check(&archive, &base, &beyond, None).unwrap_err().to_string();
        let found = error.split_once("begins at ").unwrap().1.split(',').next().unwrap();
        found.parse::<Lsn>().unwrap()
    };
    let cases = [
        (lsn(base.stop), true),
        (lsn(point), true),
        (lsn(last), true),
        (lsn(Lsn(last.0 + 1)), false),
        (xid(first), true),
        (xid(second), true),
        (xid(prepared), true),
        (xid(early), false),
        (xid(unarchived), false),
        (time(between), true),
        (time(late), false),
        (name("alpha"), true),
        (name("beta"), false),
        (("recovery_target", "immediate".to_owned(), RecoveryTarget::Immediate), true),
    ];
    for ((setting, value, target), expected) in cases {
        let answer = check(&archive, &base, &target, None);
        assert_eq!(answer.is_ok(), expected, "{setting} {value}: {answer:?}");
        let (server, log) = primary.recovers(&copy, &[(setting, &value)]);
        assert_eq!(server, expected, "{setting} {value}: the server disagrees\n{log}");
        match answer {
            Ok(found) => assert_eq!(found.first.number(SIZE), Some(base.start.segment(SIZE))),
            Err(error) => {
                assert_eq!(error.kind(), PostgresErrorKind::Target, "{error}");
                assert!(error.hint().is_some_and(|hint| hint.contains("rest")), "{error:?}");
            }
        }
    }
    check(&archive, &base, &RecoveryTarget::Latest, None).unwrap();

    // Stopping before a transaction is possible where stopping after it is, and no earlier.
    let exclusive = CheckOptions { inclusive: false, ..CheckOptions::default() };
    let found =
        wal::check_target_with(&archive, &base, &RecoveryTarget::Xid(second), &exclusive).unwrap();
    assert!(found.found.unwrap() > base.stop && found.segments_read >= 1);
    // A target before the backup names the first point there is.
    let before = base.time_stop.checked_sub(jiff::SignedDuration::from_secs(3600)).unwrap();
    let error = check(&archive, &base, &RecoveryTarget::Time(before), None).unwrap_err();
    assert!(error.to_string().contains(&base.time_stop.to_string()), "{error}");
    let error = check(&archive, &base, &RecoveryTarget::Lsn(base.start), None).unwrap_err();
    assert!(error.to_string().contains(&base.stop.to_string()), "{error}");
    // The names there are, are named.
    let error = check(&archive, &base, &RecoveryTarget::Name("alhpa".into()), None).unwrap_err();
    assert!(error.hint().unwrap().contains("\"alpha\""), "{error:?}");
    // A search that may not look everywhere does not say that something is absent.
    for search in [Search::Nothing, Search::AtMost(1)] {
        let options = CheckOptions { search, ..CheckOptions::default() };
        let target = RecoveryTarget::Xid(unarchived);
        let found = wal::check_target_with(&archive, &base, &target, &options).unwrap();
        assert!(found.found.is_none() && found.segments_read <= 1);
    }
}

#[test]
fn a_missing_or_damaged_segment_is_found_before_anything_is_copied() {
    let primary = primary!();
    let (_, base) = primary.backup("copy");
    let mut names = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(primary.transaction());
        names.push(primary.switch());
    }
    let (archive, _) = primary.archive(&[&names[2]]);
    let error = check(&archive, &base, &RecoveryTarget::Latest, None).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Target);
    assert!(error.to_string().contains(&names[2]), "{error}");
    let hint = error.hint().unwrap().to_owned();
    let nearest = hint.split_once("position ").unwrap().1.split(',').next().unwrap();
    let nearest: Lsn = nearest.parse().unwrap();
    check(&archive, &base, &RecoveryTarget::Lsn(nearest), None).unwrap();
    check(&archive, &base, &RecoveryTarget::Xid(ids[1]), None).unwrap();
    let error = check(&archive, &base, &RecoveryTarget::Xid(ids[2]), None).unwrap_err();
    assert!(error.to_string().contains(&names[2]), "{error}");
    let gone = names[3].parse::<SegmentName>().unwrap().start(SIZE).unwrap();
    assert!(check(&archive, &base, &RecoveryTarget::Lsn(gone), None).is_err());

    let health = wal::window(&archive, SIZE, &[("copy".into(), base.clone())]).unwrap();
    assert_eq!(health.timelines[0].gaps[0].first.to_string(), names[2]);
    assert_eq!(health.windows[0].broken_by.unwrap().to_string(), names[2]);
    assert_eq!(health.windows[0].last.to_string(), names[1]);
    let newest = health.newest.unwrap();
    assert!(newest.transaction.unwrap() > base.time_stop);

    // One that the backup itself needs.
    let needed = SegmentName::new(1, base.start.segment(SIZE), SIZE).unwrap().to_string();
    let (archive, _) = primary.archive(&[&needed]);
    for target in [RecoveryTarget::Latest, RecoveryTarget::Immediate] {
        let error = check(&archive, &base, &target, None).unwrap_err();
        assert_eq!(error.kind(), PostgresErrorKind::Archive);
        assert!(error.to_string().contains(&needed), "{error}");
    }

    // A store that fails or lies is neither "absent" nor "fine".
    let (archive, faulty) = primary.archive(&[]);
    let target = RecoveryTarget::Xid(ids[3]);
    check(&archive, &base, &target, None).unwrap();
    faulty.add(Rule::new(Operation::Read, When::Always, Fault::Flip { at: 300, bits: 4 }));
    let error = check(&archive, &base, &target, None).unwrap_err();
    assert_eq!(error.repo_kind(), Some(backstay_repo::RepoErrorKind::Damaged), "{error}");
    faulty.die();
    assert!(check(&archive, &base, &RecoveryTarget::Latest, None).is_err());
}

#[test]
fn recovery_goes_along_the_timelines_that_descend_from_the_backup() {
    let primary = primary!();
    let (copy, base) = primary.backup("copy");
    let kept = primary.transaction();
    primary.switch();
    let lost = primary.transaction();
    primary.switch();

    // A second server recovers to the first transaction and goes on as timeline 2.
    let data = primary.cluster.directory("second").join("data");
    let mut command = std::process::Command::new("cp");
    assert!(command.arg("-aT").arg(&copy).arg(&data).status().unwrap().success());
    fs::write(data.join("recovery.signal"), "").unwrap();
    let second = Cluster::adopt(&primary.installation, &data)
        .config(&[
            ("restore_command", &format!("cp {}/%f %p", primary.folder.display())),
            ("archive_command", &format!("cp %p {}/%f", primary.folder.display())),
            ("recovery_target_xid", &kept.to_string()),
            ("recovery_target_action", "promote"),
        ])
        .start();
    wait_until("the second server is promoted", 60, || {
        second.value("select pg_is_in_recovery()") == "f"
    });
    let new: u64 =
        second.value("insert into t values (5) returning txid_current()").parse().unwrap();
    second.switch_wal();
    wait_until("timeline 2 is archived", 60, || {
        primary.archived("").iter().any(|name| name.starts_with("00000002") && name.len() == 24)
    });
    second.stop();
    // A later backup of the server that stayed on timeline 1.
    let (_, stayed) = primary.backup("stayed");
    primary.transaction();
    primary.switch();
    primary.cluster.stop();

    // The segment in which the first server stopped is archived by then, too.
    let (archive, _) = {
        primary.cluster.start();
        primary.archive(&[])
    };
    // Both timelines went on: the newest is not taken without a word.
    for timeline in [None, Some(TargetTimeline::Latest)] {
        for target in [RecoveryTarget::Latest, RecoveryTarget::Time(primary.now())] {
            let error = check(&archive, &base, &target, timeline).unwrap_err();
            assert_eq!(error.kind(), PostgresErrorKind::Target, "{error}");
            assert!(error.to_string().contains("timeline 1 or 2"), "{error}");
            assert!(error.hint().unwrap().contains("--timeline 2"), "{error:?}");
        }
    }
    let newest = Some(TargetTimeline::Number(2));
    let latest = check(&archive, &base, &RecoveryTarget::Latest, newest).unwrap();
    assert_eq!(latest.timeline, 2);
    assert_eq!(latest.last.timeline(), 2);
    let current = Some(TargetTimeline::Current);
    assert_eq!(check(&archive, &base, &RecoveryTarget::Latest, current).unwrap().timeline, 1);

    for (target, timeline, expected) in [
        (kept, None, true),
        (kept, current, true),
        (new, Some(TargetTimeline::Number(2)), true),
        (lost, current, true),
    ] {
        let answer = check(&archive, &base, &RecoveryTarget::Xid(target), timeline);
        assert_eq!(answer.is_ok(), expected, "{target} {timeline:?}: {answer:?}");
    }
    // The transaction that only timeline 1 has took place after timeline 2 left it: its number
    // was given again there, so the position tells them apart.
    let on_one = check(&archive, &base, &RecoveryTarget::Xid(lost), current).unwrap();
    let on_two = check(&archive, &base, &RecoveryTarget::Xid(new), None).unwrap();
    assert_eq!((on_one.last.timeline(), on_two.last.timeline()), (1, 2));

    // Timeline 2 does not descend from where the second backup is.
    let error = check(&archive, &stayed, &RecoveryTarget::Latest, None).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Target);
    assert!(error.to_string().contains("timeline 2 left timeline 1 at"), "{error}");
    check(&archive, &stayed, &RecoveryTarget::Latest, current).unwrap();
    let error = check(&archive, &base, &RecoveryTarget::Latest, Some(TargetTimeline::Number(9)))
        .unwrap_err();
    assert!(error.to_string().contains("no history of timeline 9"), "{error}");

    let backups = [("first".to_owned(), base), ("stayed".to_owned(), stayed)];
    let health = wal::window(&archive, SIZE, &backups).unwrap();
    assert_eq!(health.windows.len(), 2);
    assert_eq!(health.windows[0].timeline, 2);
    assert_eq!(health.windows[1].timeline, 1);
    assert!(health.timelines.iter().all(|timeline| timeline.gaps.is_empty()), "{health:?}");
}
