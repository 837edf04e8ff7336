//! Places where a test may stop the process dead.
//!
//! Each step of a write path calls [`hit`] with its name. In a debug build, a process started with
//! `BACKSTAY_FAILPOINT=name` (or `name:N` for the N-th time) kills itself there with SIGKILL, as a
//! power cut would; release builds contain nothing of it. [`ALL`] lists every name, so that a test
//! can loop over all of them.

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
];

/// Kills this process if it was asked to die here.
#[inline]
pub fn hit(name: &str) {
    if cfg!(debug_assertions) {
        armed::check(name);
    }
}

mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Armed {
        name: String,
        left: AtomicU64,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    pub(super) fn check(name: &str) {
        debug_assert!(super::ALL.contains(&name), "failpoint {name} is not listed");
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
