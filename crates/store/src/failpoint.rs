//! Places where a test may stop the process dead.
//!
//! Each step of a write path calls [`hit`] with its name. In a debug build, a process started with
//! `BACKSTAY_FAILPOINT=name` (or `name:N` for the N-th time) kills itself there with SIGKILL, as a
//! power cut would; release builds contain nothing of it. [`ALL`] lists every name, so that a test
//! can loop over all of them; with `BACKSTAY_FAILPOINTS_PASSED=file` the process appends to this file
//! the name of each that it passes, so that a test knows which of them an operation has.

/// Every failpoint there is, in the order in which the work passes them.
pub const ALL: &[&str] = &[
    // local store
    "local-create-temporary",
    "local-create-written",
    "local-create-synced",
    "local-create-linked",
    "local-create-settled",
    // large objects of a bucket
    "upload-begun",
    "upload-part-sent",
    "upload-parts-sent",
    "local-lock-noted",
    "local-lock-changed",
    "local-parity-added",
    "local-parity-removed",
    "local-mend-written",
    "local-mend-kept",
    "local-mend-renamed",
    // repository
    "init-keys-created",
    "key-recorded",
    "key-created",
    "key-removal-recorded",
    "key-removed",
    "session-created",
    "pack-sealed",
    "pack-created",
    "index-created",
    "snapshot-created",
    "archive-sealed",
    "archive-created",
    "archive-file-removed",
    // keys
    "host-added",
    "host-leaving",
    "rotate-keys-added",
    "rotate-begun",
    "rotate-in-force",
    // maintenance
    "maintenance-repacked",
    "maintenance-condemned",
    "maintenance-sessions",
    "maintenance-given-up",
    "maintenance-sweep",
    "maintenance-merged",
    "maintenance-head",
    "maintenance-pack-removed",
    "maintenance-snapshot-removed",
    "lock-extended",
    // copies
    "copy-listed",
    "copy-read",
    // repair
    "repair-listed",
    "repair-segment-removed",
    "repair-head-merged",
    "repair-head-removed",
    "repair-run-marked",
    "repair-run-removed",
    "repair-stored",
    "repair-archived-stored",
    "repair-archived-removed",
    // restore
    "restore-planned",
    "restore-chunk-written",
    "restore-synced",
    // PostgreSQL
    "postgres-backup-started",
    "postgres-files-copied",
    "postgres-backup-stopped",
    "postgres-archive-complete",
    "wal-push-read",
    "wal-receive-slice",
    "wal-receive-segment",
    "wal-fetch-temporary",
    "wal-fetch-renamed",
    "postgres-restore-copied",
    "postgres-restore-configured",
    "postgres-restore-control-written",
    "postgres-logical-created",
    "postgres-logical-filled",
];

/// Kills this process if it was asked to die here.
#[inline]
pub fn hit(name: &str) {
    if cfg!(debug_assertions) {
        armed::check(name);
    }
}

mod armed {
    use std::collections::HashSet;
    use std::fs::File;
    use std::io::Write;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Mutex, OnceLock};

    struct Armed {
        name: String,
        left: AtomicU64,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    /// Where names go, and those that have gone there.
    struct Passed {
        file: File,
        names: HashSet<String>,
    }

    static PASSED: OnceLock<Option<Mutex<Passed>>> = OnceLock::new();

    /// Writes down that this one was passed, once.
    fn note(name: &str) {
        let passed = PASSED.get_or_init(|| {
            let path = std::env::var_os("BACKSTAY_FAILPOINTS_PASSED")?;
            let file = File::options().create(true).append(true).open(path);
            let file = file.expect("the file of BACKSTAY_FAILPOINTS_PASSED can be written");
            Some(Mutex::new(Passed { file, names: HashSet::new() }))
        });
        let Some(passed) = passed else { return };
        let mut passed = passed.lock().unwrap_or_else(|e| e.into_inner());
        if passed.names.insert(name.to_owned()) {
            let written = writeln!(passed.file, "{name}");
            written.expect("the file of BACKSTAY_FAILPOINTS_PASSED can be written");
        }
    }

    pub(super) fn check(name: &str) {
        debug_assert!(super::ALL.contains(&name), "failpoint {name} is not listed");
        note(name);
        let armed = ARMED.get_or_init(|| {
            let value = std::env::var("BACKSTAY_FAILPOINT").ok()?;
            let (name, count) = value.split_once(':').unwrap_or((&value, "1"));
            Some(Armed { name: name.to_owned(), left: AtomicU64::new(count.parse().unwrap_or(1)) })
        });
        if let Some(armed) = armed
            && armed.name == name
            && armed.left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
            loop {
                std::thread::park();
            }
        }
    }
}
