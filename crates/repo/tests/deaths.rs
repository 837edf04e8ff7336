//! Every operation, killed at every failpoint that it passes, on every back end: afterwards the
//! repository opens, `thorough` finds nothing, and the operation done again succeeds.
//!
//! Which failpoints an operation passes is not believed: it is done once whole, and writes down those
//! that it passes; a failpoint that no operation passes fails the test. `crash.rs` does the same in
//! more depth on local directories. Here it is about what a back end does to the order of steps, so
//! the data is small, and the servers are shared by all deaths.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[path = "../../store/tests/support/admin.rs"]
#[allow(dead_code)] // the store's own tests use all of it
mod admin;
#[path = "deaths/operations.rs"]
mod operations;
#[path = "deaths/place.rs"]
mod place;
#[path = "../../store/tests/support/servers.rs"]
#[allow(dead_code, reason = "some of it is for the tests of the store")]
mod servers;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use backstay_store::{StoreOptions, failpoint};

use operations::{Needs, OPERATIONS, Operation, do_it, examine, other_repository, prepare};
use place::{Folder, Kind, Place};

const WORK: &str = "BACKSTAY_TEST_WORK";
const OTHER: &str = "BACKSTAY_TEST_OTHER";
const TARGET: &str = "BACKSTAY_TEST_TARGET";

/// Failpoints of a directory, and of what it can do besides keeping objects.
const LOCAL: &str = "local-create-";
const PARITY: [&str; 2] = ["local-parity-", "local-mend-"];
const LOCKS: &str = "local-lock-";
/// Of packs that are sent in parts, and which operations send packs.
const PARTS: &str = "upload-";
const SENDERS: [&str; 5] = ["backup", "maintain", "repair", "copy", "replicate"];

/// Says why a test cannot run; where everything must be there, that is a failure.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}");
}

/// No operation of this floor passes them.
fn is_above(name: &str) -> bool {
    // A copy lists what it sent after many packs only: crash.rs has one of that size.
    name.starts_with("postgres-") || name.starts_with("wal-") || name == "copy-listed"
}

fn all_with(prefix: &str) -> BTreeSet<String> {
    let all = failpoint::ALL.iter().filter(|name| name.starts_with(prefix));
    all.map(|name| (*name).to_owned()).collect()
}

#[test]
fn no_failpoint_is_forgotten() {
    let of_back_ends: Vec<&str> = [LOCAL, LOCKS, PARTS].into_iter().chain(PARITY).collect();
    for name in failpoint::ALL.iter().filter(|name| !is_above(name)) {
        let passed = OPERATIONS.iter().any(|operation| operation.passes.contains(name));
        let of_back_end = of_back_ends.iter().any(|prefix| name.starts_with(prefix));
        assert!(passed || of_back_end, "{name} belongs to no operation");
    }
}

/// The work of the process that dies. Does nothing when it is run as a test.
#[test]
fn dies_here() {
    let (Some(place), Ok(work)) = (Place::of_environment(), std::env::var(WORK)) else { return };
    let path = |name| std::path::PathBuf::from(std::env::var_os(name).unwrap());
    do_it(&work, &place, &path(OTHER), &path(TARGET)).unwrap();
}

fn run(work: &str, place: &Place, other: &Path, target: &Path, more: (&str, &str)) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    place.to_environment(&mut command);
    command
        .args(["dies_here", "--exact", "--test-threads=1", "--nocapture"])
        .env(WORK, work)
        .env(OTHER, other)
        .env(TARGET, target)
        .env(more.0, more.1)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.output().unwrap()
}

fn said(done: &Output) -> String {
    format!("{}\n{}", done.status, String::from_utf8_lossy(&done.stderr))
}

/// A back end, and places in it of which each is used once.
struct Places<'a> {
    name: &'a str,
    kind: Kind,
    place: Box<dyn Fn(usize) -> Place + 'a>,
    next: usize,
    other: tempfile::TempDir,
    started: Instant,
}

impl<'a> Places<'a> {
    fn new(name: &'a str, kind: Kind, place: impl Fn(usize) -> Place + 'a) -> Self {
        let other = tempfile::tempdir().unwrap();
        other_repository(other.path(), kind == Kind::Parts);
        Self { name, kind, place: Box::new(place), next: 0, other, started: Instant::now() }
    }

    /// Those that can be done here.
    fn operations(&self) -> impl Iterator<Item = &'static Operation> + use<> {
        let kind = self.kind;
        OPERATIONS.iter().filter(move |operation| match operation.needs {
            Needs::Nothing => true,
            Needs::Locks => kind == Kind::Locks,
            Needs::Parity => kind == Kind::Parity,
        })
    }

    fn prepared(&mut self, work: &str) -> Place {
        self.next += 1;
        let place = (self.place)(self.next);
        prepare(&place, work);
        place
    }

    /// The failpoints that an operation passes here.
    fn passed(&mut self, work: &str) -> BTreeSet<String> {
        let place = self.prepared(work);
        let target = tempfile::tempdir().unwrap();
        let list = target.path().join("passed");
        let into = target.path().join("restored");
        let variable = ("BACKSTAY_FAILPOINTS_PASSED", list.to_str().unwrap());
        let done = run(work, &place, self.other.path(), &into, variable);
        assert!(done.status.success(), "{}: {work}: {}", self.name, said(&done));
        let names = std::fs::read_to_string(list).unwrap_or_default();
        names.lines().map(str::to_owned).collect()
    }

    #[allow(clippy::print_stdout, reason = "where it has come to, for whoever waits")]
    fn dies(&mut self, work: &str, failpoint: &str) {
        let place = self.prepared(work);
        let target = tempfile::tempdir().unwrap();
        let target = target.path().join("restored");
        let variable = ("BACKSTAY_FAILPOINT", failpoint);
        let done = run(work, &place, self.other.path(), &target, variable);
        let context = format!("{}: {work} at {failpoint}", self.name);
        assert_eq!(done.status.signal(), Some(9), "{context}: {}", said(&done));
        println!("{context}, after {:.1} s", self.started.elapsed().as_secs_f64());
        examine(&place, work, self.other.path(), &target, &context);
    }

    /// Dies at those failpoints that `of_interest` says, wherever an operation passes them; which
    /// they were.
    fn dies_everywhere(&mut self, of_interest: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let mut met = BTreeSet::new();
        for operation in self.operations() {
            let passed = self.passed(operation.name);
            for name in operation.passes {
                // Parity mends what a repair would else have to find elsewhere.
                let mended = self.kind == Kind::Parity && operation.name == "repair";
                assert!(
                    passed.contains(*name) || mended,
                    "{}: {} does not pass {name}",
                    self.name,
                    operation.name
                );
            }
            for name in passed.iter().filter(|name| of_interest(name)) {
                self.dies(operation.name, name);
            }
            met.extend(passed.into_iter().filter(|name| of_interest(name)));
        }
        met
    }

    /// Dies at all that the table says.
    fn dies_by_the_table(&mut self) {
        for operation in self.operations() {
            for failpoint in operation.passes {
                self.dies(operation.name, failpoint);
            }
        }
    }

    /// Dies between the parts of packs.
    fn dies_in_parts(&mut self) {
        for work in SENDERS {
            for failpoint in all_with(PARTS) {
                self.dies(work, &failpoint);
            }
        }
    }
}

fn folders(folder: &Path, kind: Kind) -> impl Fn(usize) -> Place + use<> {
    let folder = folder.to_owned();
    move |number| Place {
        url: format!("file://{}/{number}", folder.display()),
        options: StoreOptions::default(),
        kind,
    }
}

#[test]
fn in_a_local_directory() {
    let folder = tempfile::tempdir().unwrap();
    let mut places = Places::new("local", Kind::Plain, folders(folder.path(), Kind::Plain));
    for operation in places.operations() {
        let passed = places.passed(operation.name);
        let own = passed.iter().filter(|name| !name.starts_with(LOCAL));
        let own: BTreeSet<&str> = own.map(String::as_str).collect();
        let table: BTreeSet<&str> = operation.passes.iter().copied().collect();
        assert_eq!(own, table, "{} passes what the table does not say", operation.name);
        for failpoint in &passed {
            places.dies(operation.name, failpoint);
        }
    }
}

#[test]
fn in_a_directory_with_parity() {
    let folder = tempfile::tempdir().unwrap();
    let mut places = Places::new("parity", Kind::Parity, folders(folder.path(), Kind::Parity));
    let is_parity = |name: &str| PARITY.iter().any(|prefix| name.starts_with(prefix));
    let met = places.dies_everywhere(is_parity);
    let all: BTreeSet<String> = PARITY.iter().flat_map(|prefix| all_with(prefix)).collect();
    assert_eq!(met, all);
}

#[test]
fn in_a_directory_that_keeps_objects() {
    let folder = Folder::new();
    if !folder.locks() {
        return skip("files cannot be made immutable here");
    }
    let mut places = Places::new("locks", Kind::Locks, folders(&folder.path(), Kind::Locks));
    let met = places.dies_everywhere(|name| name.starts_with(LOCKS) || name == "lock-extended");
    let mut all = all_with(LOCKS);
    all.insert("lock-extended".to_owned());
    assert_eq!(met, all);
}

#[test]
fn on_s3() {
    let Some(server) = servers::s3() else { return };
    let in_bucket = |bucket: &'static str, kind| {
        let options = server.options.clone();
        move |number| Place {
            url: format!("s3://{bucket}/{kind:?}-{number}"),
            options: options.clone(),
            kind,
        }
    };
    Places::new("s3", Kind::Plain, in_bucket("backstay", Kind::Plain)).dies_by_the_table();
    Places::new("s3, in parts", Kind::Parts, in_bucket("backstay", Kind::Parts)).dies_in_parts();
    let locks = [("x-amz-bucket-object-lock-enabled", "true")];
    assert_eq!(server.admin().ask("PUT", "/locked", &locks, "").status, 200);
    let mut places = Places::new("s3, locked", Kind::Locks, in_bucket("locked", Kind::Locks));
    places.dies("extend locks", "lock-extended");
}

#[test]
fn on_azure() {
    let Some(server) = servers::azure() else { return };
    let with = |kind| {
        let options = server.options.clone();
        move |number| Place {
            url: format!("az://backstay/{kind:?}-{number}"),
            options: options.clone(),
            kind,
        }
    };
    Places::new("azure", Kind::Plain, with(Kind::Plain)).dies_by_the_table();
    Places::new("azure, in parts", Kind::Parts, with(Kind::Parts)).dies_in_parts();
}

#[test]
fn on_google_cloud_storage() {
    let Some(server) = servers::google() else { return };
    let place = |number| Place {
        url: format!("gs://backstay/{number}"),
        options: server.options.clone(),
        kind: Kind::Plain,
    };
    Places::new("gcs", Kind::Plain, place).dies_by_the_table();
}
