//! Objects in a directory that are locked: their files are immutable.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use backstay_store::{Bytes, ErrorKind, LockMode, LockPolicy, Store, StoreOptions};
use rustix::fs::IFlags;

/// A folder whose files can be removed in the end, whatever a test did to them.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    fn store(&self, mode: LockMode, period: Duration) -> backstay_store::Result<Store> {
        let lock = Some(LockPolicy { mode, period, extend: true });
        let url = format!("file://{}", self.0.path().display());
        Store::open(&url, &StoreOptions { lock, ..StoreOptions::default() })
    }

    fn governed(&self, period: Duration) -> Store {
        self.store(LockMode::Governance, period).unwrap()
    }

    /// Whether this machine can keep files immutable: the file system and who runs the test.
    fn can(&self) -> bool {
        let path = self.0.path().join("can");
        let file = File::create(&path).unwrap();
        let set = rustix::fs::ioctl_getflags(&file)
            .and_then(|flags| rustix::fs::ioctl_setflags(&file, flags | IFlags::IMMUTABLE));
        if set.is_ok() {
            loosen(&path);
        }
        fs::remove_file(path).unwrap();
        set.is_ok()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        loosen(self.0.path());
    }
}

fn loosen(path: &Path) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| loosen(&entry.unwrap().path()));
    } else if let Ok(file) = File::open(path)
        && let Ok(flags) = rustix::fs::ioctl_getflags(&file)
    {
        let _ = rustix::fs::ioctl_setflags(&file, flags - IFlags::IMMUTABLE);
    }
}

fn is_refused<T: std::fmt::Debug>(done: io::Result<T>) -> bool {
    done.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn seconds_until(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::now()).unwrap_or_default().as_secs()
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn nobody_removes_or_changes_a_locked_object() {
    let folder = Folder::new();
    let store = folder.governed(HOUR);
    if !folder.can() {
        let error = store.create("packs/a", Bytes::from_static(b"kept")).unwrap_err();
        assert!(error.to_string().contains("immutable"), "{error}");
        assert!(store.read("packs/a").unwrap_err().is_not_found());
        return;
    }
    store.create("packs/a", Bytes::from_static(b"kept")).unwrap();
    let lock = store.lock("packs/a").unwrap().unwrap();
    assert_eq!((lock.mode, lock.held), (Some(LockMode::Governance), false));
    assert!((3598..=3600).contains(&seconds_until(lock.until.unwrap())), "{lock:?}");

    // This program, and any other.
    let error = store.delete("packs/a").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.to_string().contains("locked until 20"), "{error}");
    let path = folder.0.path().join("packs/a");
    assert!(is_refused(fs::remove_file(&path)));
    assert!(is_refused(fs::rename(&path, folder.0.path().join("b"))));
    assert!(is_refused(fs::hard_link(&path, folder.0.path().join("b"))));
    assert!(is_refused(fs::write(&path, "changed")));
    assert!(is_refused(fs::set_permissions(&path, fs::Permissions::from_mode(0o666))));
    assert!(is_refused(fs::remove_dir_all(folder.0.path().join("packs"))));
    assert!(store.create("packs/a", Bytes::new()).unwrap_err().is_already_exists());
    assert_eq!(store.read("packs/a").unwrap(), "kept");
    // One name is left of it.
    assert_eq!(fs::read_dir(folder.0.path().join(".tmp")).unwrap().count(), 0);

    // Longer, and never shorter.
    let now = SystemTime::now();
    store.extend_lock("packs/a", now + 2 * HOUR).unwrap();
    store.extend_lock("packs/a", now + Duration::from_secs(60)).unwrap();
    let lock = store.lock("packs/a").unwrap().unwrap();
    assert!(seconds_until(lock.until.unwrap()) > 7100, "{lock:?}");
    assert!(is_refused(fs::remove_file(&path)));

    // A handle that knows nothing of locks keeps to those that it finds.
    let plain = Store::open(&store.url(), &StoreOptions::default()).unwrap();
    assert_eq!(plain.delete("packs/a").unwrap_err().kind(), ErrorKind::Locked);
    plain.create("packs/free", Bytes::new()).unwrap();
    assert_eq!(plain.lock("packs/free").unwrap().unwrap().until, None);
    plain.delete("packs/free").unwrap();

    // What is gone within the day is not locked.
    store.create("probe/x", Bytes::new()).unwrap();
    store.delete("probe/x").unwrap();
    store.probe().unwrap();
    assert!(store.lock("probe/x").unwrap_err().is_not_found());
    store.delete("probe/x").unwrap();
}

#[test]
fn an_object_goes_when_its_time_is_over_and_its_hold_lifted() {
    let folder = Folder::new();
    if !folder.can() {
        return;
    }
    let store = folder.governed(Duration::from_secs(1));
    store.create("snapshots/s", Bytes::from_static(b"evidence")).unwrap();
    store.hold("snapshots/s", true).unwrap();
    let started = Instant::now();
    let until = store.lock("snapshots/s").unwrap().unwrap().until.unwrap();
    while SystemTime::now() < until {
        assert!(started.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(50));
    }
    let error = store.delete("snapshots/s").unwrap_err();
    assert!(error.to_string().contains("on hold"), "{error}");
    assert!(is_refused(fs::remove_file(folder.0.path().join("snapshots/s"))));
    store.hold("snapshots/s", false).unwrap();
    store.delete("snapshots/s").unwrap();
    assert!(store.read("snapshots/s").unwrap_err().is_not_found());
    assert!(store.hold("snapshots/s", true).unwrap_err().is_not_found());
}

/// The repaired object is kept as long as the damaged one was.
#[test]
fn a_repair_by_parity_keeps_the_lock() {
    let folder = Folder::new();
    if !folder.can() {
        return;
    }
    let store = folder.governed(HOUR);
    store.parity().unwrap().set_share(Some(20)).unwrap();
    let body =
        (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<u8>>();
    store.create("packs/a", Bytes::from(body.clone())).unwrap();
    let path = folder.0.path().join("packs/a");
    loosen(&path);
    let mut damaged = body.clone();
    damaged[5000..6000].fill(0);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, damaged).unwrap();
    assert_eq!(store.read("packs/a").unwrap(), body);
    store.parity().unwrap().mend("packs/a").unwrap();
    assert_eq!(fs::read(&path).unwrap(), body);
    assert_eq!(store.delete("packs/a").unwrap_err().kind(), ErrorKind::Locked);
    assert!(is_refused(fs::remove_file(&path)));
}

#[test]
fn a_directory_has_no_lock_that_root_cannot_lift() {
    let folder = Folder::new();
    let error = folder.store(LockMode::Compliance, HOUR).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("governance"), "{error}");
}

const ROOT: &str = "BACKSTAY_TEST_LOCK_IN";

/// Not a test by itself: what the killed process runs.
#[test]
fn child_that_locks() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let policy = LockPolicy { mode: LockMode::Governance, period: HOUR, extend: true };
    let options = StoreOptions { lock: Some(policy), ..StoreOptions::default() };
    Store::open(root.to_str().unwrap(), &options).unwrap().create("packs/a", Bytes::new()).unwrap();
}

/// Between the note and the flag only this program spares the object; the next extension sets it.
#[test]
fn an_object_of_a_killed_writer_is_spared_and_locked_later() {
    let folder = Folder::new();
    if !folder.can() {
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_locks", "--nocapture"])
        .env(ROOT, folder.0.path())
        .env("BACKSTAY_FAILPOINT", "local-lock-noted")
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), Some(9), "{output:?}");
    let store = folder.governed(HOUR);
    assert_eq!(store.delete("packs/a").unwrap_err().kind(), ErrorKind::Locked);
    let path = folder.0.path().join("packs/a");
    let immutable = || {
        let flags = rustix::fs::ioctl_getflags(File::open(&path).unwrap()).unwrap();
        flags.contains(IFlags::IMMUTABLE)
    };
    assert!(!immutable());
    store.extend_lock("packs/a", SystemTime::now()).unwrap();
    assert!(immutable());
    assert_eq!(store.delete("packs/a").unwrap_err().kind(), ErrorKind::Locked);
}
