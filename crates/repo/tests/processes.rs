//! Real processes on a real folder: writers, and maintenance in a loop, are stopped for a while and
//! killed at any moment. Every snapshot that a writer was told of, and did not forget, comes back.
//!
//! The binary of this test starts itself again as each of them: [`works_here`] is their work.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_repo::*;
use backstay_store::Local;
use rustix::process::{Pid, Signal, kill_process};
use support::*;

const DO: &str = "BACKSTAY_TEST_DO";
const IN: &str = "BACKSTAY_TEST_IN";
const SEED: &str = "BACKSTAY_TEST_SEED";
const ROUNDS: u64 = 120;

fn store(folder: &Path) -> Store {
    Store::new(Local::new(folder.join("store")).unwrap())
}

fn below(lots: &Environment, n: u64) -> u64 {
    u64::from_le_bytes(lots.random()) % n
}

/// The files of one backup: some of the same twelve, so that snapshots share packs.
fn files_of(seed: u64) -> Files {
    let lots = Environment::seeded(seed);
    let mut all = Files::new();
    for n in 0..1 + below(&lots, 6) {
        let which = below(&lots, 12);
        let size = [2000, 30_000, 90_000, 1 << 20][which as usize % 4];
        let chunking =
            if which.is_multiple_of(3) { Chunking::Grid } else { Chunking::ContentDefined };
        all.insert(format!("{n}/{which}"), (chunking, Arc::new(noise(size, which))));
    }
    all
}

/// Says what happened, durably, before anything else does.
fn note(folder: &Path, line: &str) {
    let path = folder.join("notes");
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn works_here() {
    let (Ok(work), Ok(folder)) = (std::env::var(DO), std::env::var(IN)) else { return };
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let (folder, lots) = (Path::new(&folder), Environment::seeded(seed));
    let repo = open(&store(folder));
    let may_fail = |error: RepoError| {
        // Given up while it was stopped: it says so, and goes on.
        assert_eq!(error.kind(), RepoErrorKind::Busy, "{error}");
    };
    let mut mine = Vec::new();
    loop {
        if work == "maintain" {
            let seconds = [0, 1, 3600][below(&lots, 3) as usize];
            let options = MaintenanceOptions {
                give_up_after: Duration::from_secs(seconds),
                ..MaintenanceOptions::default()
            };
            repo.maintain(&options, &Arc::default()).map(drop).unwrap_or_else(may_fail);
            continue;
        }
        let seed = u64::from_le_bytes(lots.random());
        match backup(&repo, &files_of(seed)) {
            Ok(snapshot) => {
                note(folder, &format!("made {} {seed}", snapshot.id));
                mine.push(snapshot.id);
            }
            Err(error) => may_fail(error),
        }
        if mine.len() > 2 {
            let id = mine.remove(below(&lots, mine.len() as u64) as usize);
            note(folder, &format!("forgot {id}"));
            repo.forget(&id).unwrap();
        }
    }
}

fn start(work: &str, folder: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["works_here", "--exact", "--test-threads=1", "--nocapture"])
        .env(DO, work)
        .env(IN, folder)
        .env(SEED, seed.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(
            std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(folder.join("errors"))
                .unwrap(),
        )
        .spawn()
        .unwrap()
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Kills whoever is left, whatever happens.
struct Crew(Vec<(&'static str, Child, bool)>);

impl Drop for Crew {
    fn drop(&mut self) {
        for (_, child, _) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn stopped_and_killed_at_any_moment_nobody_loses_a_snapshot() {
    let seed = u64::from_le_bytes(Environment::system().random());
    println!("seed {seed}");
    let lots = Environment::seeded(seed);
    let folder = tempfile::tempdir().unwrap();
    repository(&store(folder.path()));
    let works = ["write", "write", "write", "maintain", "maintain"];
    let new = |work: &'static str| {
        (work, start(work, folder.path(), u64::from_le_bytes(lots.random())), false)
    };
    let mut crew = Crew(works.map(new).into());
    for round in 0..ROUNDS {
        let pause = Instant::now() + Duration::from_millis(below(&lots, 60));
        while let Some(left) = pause.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left);
        }
        let which = below(&lots, crew.0.len() as u64) as usize;
        let (work, child, stopped) = &mut crew.0[which];
        if let Some(status) = child.try_wait().unwrap() {
            let errors = std::fs::read_to_string(folder.path().join("errors")).unwrap();
            panic!("seed {seed}: {work} ended by itself in round {round}: {status}\n{errors}");
        }
        match (below(&lots, 4), *stopped) {
            (0, _) => {
                let work = *work;
                child.kill().unwrap();
                child.wait().unwrap();
                crew.0[which] = new(work);
            }
            (_, true) => {
                signal(child, Signal::CONT);
                *stopped = false;
            }
            (_, false) => {
                signal(child, Signal::STOP);
                *stopped = true;
            }
        }
    }
    drop(crew);

    let notes = std::fs::read_to_string(folder.path().join("notes")).unwrap();
    let (mut made, mut forgotten) = (BTreeMap::new(), BTreeSet::new());
    for line in notes.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["made", id, seed] => drop(made.insert(id.to_owned(), seed.parse::<u64>().unwrap())),
            ["forgot", id] => drop(forgotten.insert(id.to_owned())),
            _ => panic!("seed {seed}: what is {line:?}?"),
        }
    }
    assert!(made.len() > 10 && !forgotten.is_empty(), "{} {}", made.len(), forgotten.len());
    let examine = |when: &str| {
        let repo = open(&store(folder.path()));
        assert_eq!(verify(&repo, Level::Thorough).damages, [], "seed {seed}: {when}");
        let there: BTreeMap<String, Snapshot> =
            repo.snapshots().unwrap().into_iter().map(|one| (one.id.clone(), one)).collect();
        for (id, files) in &made {
            let Some(snapshot) = there.get(id) else {
                assert!(forgotten.contains(id), "seed {seed}: {when}: {id} is gone");
                continue;
            };
            let to = tempfile::tempdir().unwrap();
            let options = RestoreOptions { sync: false, ..RestoreOptions::new(to.path()) };
            repo.restore(snapshot, options, &Progress::default()).unwrap();
            assert_restored(&files_of(*files), to.path());
        }
        repo
    };
    let repo = examine("when all were dead");
    // The dead are known to be dead: nobody waits for them.
    let default = MaintenanceOptions::default();
    for _ in 0..2 {
        let report = repo.maintain(&default, &Arc::default()).unwrap();
        assert_eq!(report.waiting_for, [], "seed {seed}");
    }
    examine("after maintenance");
    let last = repo.maintain(&default, &Arc::default()).unwrap();
    assert_eq!((last.packs_removed, last.packs_repacked), (0, 0), "seed {seed}: {last:?}");
    println!("{} snapshots, {} forgotten", made.len(), forgotten.len());
}
