//! `backstay mount`, run and ended as people do it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::sandbox::Sandbox;

/// A mount, and what it has said so far. Unmounted when dropped, whatever became of the test.
struct Running<'s> {
    it: &'s Sandbox,
    child: Child,
    out: BufReader<ChildStdout>,
    said: String,
}

impl<'s> Running<'s> {
    /// Starts it and waits until it says `ready`.
    fn start(it: &'s Sandbox, more: &[&str], ready: &str) -> Self {
        std::fs::create_dir_all(it.path("mnt")).unwrap();
        let arguments = [&["mount", "mnt", "--refresh", "0s"], more].concat();
        let mut child =
            it.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut it = Self { it, child, out, said: String::new() };
        while !it.said.contains(ready) {
            let read = it.out.read_line(&mut it.said).unwrap();
            assert!(read > 0, "it ended early: {}", it.said);
        }
        it
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    /// Waits for its end: the exit code, and all that it said.
    fn ended(mut self) -> (Option<i32>, String, String) {
        let status = self.child.wait().unwrap();
        self.out.read_to_string(&mut self.said).unwrap();
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (status.code(), std::mem::take(&mut self.said), errors)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(self.it.path("mnt"), flags);
    }
}

fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

/// Containers often lack the device: that is said, and no failure even where `CI` is set.
fn cannot_mount() -> bool {
    let can = Path::new("/dev/fuse").exists() && rustix::process::geteuid().is_root();
    if !can {
        let _ = writeln!(std::io::stderr(), "skipped: mounting needs /dev/fuse and root");
    }
    !can
}

#[test]
fn a_mount_lasts_until_somebody_ends_it() {
    if cannot_mount() {
        return;
    }
    let it = Sandbox::ready();
    it.good(&["backup", "data"]);
    let notes = it.path(&format!("mnt/sources/data/latest{}/notes.txt", it.path("data").display()));
    for end in [Signal::INT, Signal::TERM] {
        let running = Running::start(&it, &[], "ends it");
        assert_eq!(std::fs::read_to_string(&notes).unwrap(), "what has to be kept\n");
        running.signal(end);
        let (code, said, errors) = running.ended();
        let mnt = it.path("mnt").display().to_string();
        assert_eq!(
            said,
            format!(
                "1 snapshot of 1 source mounted on {mnt}, read-only.\n\
                 Ctrl-C or `umount {mnt}` ends it.\n{mnt} is unmounted.\n"
            )
        );
        assert_eq!((code, errors.as_str()), (Some(0), ""));
        assert!(!is_mounted(&it.path("mnt")));
    }
    // A new snapshot is there at once, and `umount` ends the program.
    let running = Running::start(&it, &["--json"], "\n}\n");
    let document: serde_json::Value = serde_json::from_str(&running.said).unwrap();
    assert_eq!(document["mounted"], it.path("mnt").to_str().unwrap());
    assert_eq!((&document["snapshots"], &document["sources"]), (&1.into(), &1.into()));
    it.write("data/notes.txt", "changed");
    it.good(&["backup", "data"]);
    backstay_testing::wait_until("the new one is there", 10, || {
        std::fs::read_to_string(&notes).unwrap() == "changed"
    });
    rustix::mount::unmount(it.path("mnt"), rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(running.ended().0, Some(0));
}

#[test]
fn a_mount_that_is_in_use_ends_all_the_same() {
    if cannot_mount() {
        return;
    }
    let it = Sandbox::ready();
    it.good(&["backup", "data"]);
    let running = Running::start(&it, &[], "ends it");
    let open = std::fs::File::open(it.path("mnt/sources")).unwrap();
    running.signal(Signal::INT);
    let (code, _, errors) = running.ended();
    assert_eq!(code, Some(0));
    assert!(errors.contains("still have something open in it"), "{errors}");
    assert!(!is_mounted(&it.path("mnt")));
    drop(open);
}

#[test]
fn damage_is_named_where_it_was_met() {
    if cannot_mount() {
        return;
    }
    let it = Sandbox::ready();
    it.good(&["backup", "data"]);
    for pack in it.files("repo/packs") {
        let mut bytes = std::fs::read(&pack).unwrap();
        // The first byte after the length, the version and so on: of the class.
        if bytes[9] == 1 {
            let middle = bytes.len() / 3;
            bytes[middle] ^= 1;
            std::fs::write(&pack, bytes).unwrap();
        }
    }
    let running = Running::start(&it, &[], "ends it");
    let below = it.path("data").display().to_string();
    let table = it.path(&format!("mnt/sources/data/latest{below}/deep/table.csv"));
    let error = std::fs::read(&table).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    running.signal(Signal::INT);
    let (code, _, errors) = running.ended();
    assert_eq!(code, Some(0));
    assert!(errors.starts_with("warning: sources/data/"), "{errors}");
    assert!(errors.contains("/deep/table.csv: packs/") && errors.contains("hint: "), "{errors}");
}

#[test]
fn what_cannot_be_mounted_is_said_with_what_to_do() {
    let it = Sandbox::ready();
    let missing = it.run(&["mount", "nowhere"]);
    assert_eq!(missing.code, 1, "{missing}");
    assert_eq!(
        missing.stderr,
        "error: there is no folder nowhere\nhint: make one: `mkdir -p nowhere`\n"
    );
    let full = it.run(&["mount", "data"]);
    assert_eq!((full.code, full.stdout.as_str()), (1, ""), "{full}");
    let text = std::fs::read_to_string(it.path("backstay.toml")).unwrap();
    let second = "[repositories.offsite]\nurl = \"file:///nowhere\"\nkey-file = \"main.key\"\n";
    it.write("backstay.toml", format!("{second}{text}repositories = [\"main\"]\n"));
    let several = it.run(&["mount", "nowhere"]);
    assert_eq!(several.code, 2, "{several}");
    assert!(several.stderr.contains("--repository: "), "{several}");
}
