//! File trees: what is backed up comes back equal in everything, and only what changed is read.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // as tests do

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use backstay_repo::{EntryKind, Repository, Snapshot, SnapshotType};
use backstay_sources::files::backup;
use backstay_sources::files::compare::{CompareOptions, compare_trees};
use backstay_sources::{BackupOptions, FilesSource};
use common::{
    Numbers, after, assert_restores, files, folder, folder_in_memory, is_root, repository, restore,
    unprivileged,
};
use rustix::fs::{FileType, Mode, XattrFlags};

fn full(repo: &Repository, source: &FilesSource) -> Snapshot {
    let options = BackupOptions { type_: SnapshotType::Full, ..BackupOptions::default() };
    backup(repo, source, &options).unwrap()
}

fn entry(repo: &Repository, snapshot: &Snapshot, path: &Path) -> Option<backstay_repo::Entry> {
    let path = path.as_os_str().as_bytes().strip_prefix(b"/").unwrap();
    repo.tree(snapshot).unwrap().get(path).unwrap()
}

/// `user::rw-,user:1000:r--,group::r--,mask::rw-,other::r--` as the kernel takes it.
fn acl() -> Vec<u8> {
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, 1000),
        (4, 4, u32::MAX),
        (0x10, 6, u32::MAX),
        (0x20, 4, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// One of everything that a file system holds.
fn one_of_everything(base: &Path) {
    let mut numbers = Numbers(1);
    for size in [0, 1, 100, 4095, 4096, 4097, 65535, 65536, 65537]
        .into_iter()
        .chain([256 << 10, 1 << 20, 4 << 20].into_iter().flat_map(|n| [n - 1, n, n + 1]))
    {
        fs::write(base.join(format!("size-{size}")), numbers.bytes(size)).unwrap();
    }
    fs::create_dir_all(base.join("dir/empty")).unwrap();
    fs::create_dir_all(base.join("dir-2")).unwrap();
    fs::write(base.join("dir/file"), "content").unwrap();
    fs::write(base.join("dir.txt"), "sorts between").unwrap();
    // Names.
    for name in [
        &b"line\nbreak"[..],
        b"\xff\xfe not utf-8",
        b"spa ce",
        b"\"quote'",
        b"\xc3\xa4",
        b"-rf",
        b"\\",
        b"\x01",
    ] {
        fs::write(base.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    fs::write(base.join("n".repeat(255)), "").unwrap();
    // Links.
    symlink("dir/file", base.join("relative-link")).unwrap();
    symlink("/nowhere/at all", base.join("dangling-link")).unwrap();
    symlink(std::ffi::OsStr::from_bytes(b"\xff"), base.join("odd-link")).unwrap();
    symlink("x".repeat(4000), base.join("long-link")).unwrap();
    fs::write(base.join("hard-b"), vec![b'h'; 5000]).unwrap();
    fs::hard_link(base.join("hard-b"), base.join("dir/hard-c")).unwrap();
    fs::hard_link(base.join("hard-b"), base.join("hard-a")).unwrap();
    fs::hard_link(base.join("relative-link"), base.join("second-name-of-link")).unwrap();
    // Modes.
    for mode in [0o000, 0o400, 0o644, 0o777, 0o4755, 0o2755, 0o1777] {
        let path = base.join(format!("mode-{mode:o}"));
        fs::write(&path, "m").unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(base.join("setgid-dir")).unwrap();
    fs::set_permissions(base.join("setgid-dir"), Permissions::from_mode(0o3711)).unwrap();
    // Attributes.
    let set = |path: &str, name: &str, value: &[u8]| match rustix::fs::setxattr(
        base.join(path),
        name,
        value,
        XattrFlags::empty(),
    ) {
        Ok(()) => {}
        Err(error) => println!("skipped: {name} on this file system: {error}"),
    };
    set("dir/file", "user.text", b"value");
    set("dir/file", "user.empty", b"");
    set("dir/file", "user.binary", &numbers.bytes(2000));
    set("dir/file", "system.posix_acl_access", &acl());
    set("dir-2", "system.posix_acl_default", &acl());
    set("dir-2", "user.on-a-directory", b"d");
    set("size-4097", "user.on-a-larger-file", b"l");
    if is_root() {
        set("size-0", "trusted.root-only", b"r");
        set(
            "size-1",
            "security.capability",
            &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        );
        let link = base.join("dangling-link");
        let _ = rustix::fs::lsetxattr(link, "trusted.on-a-link", b"x", XattrFlags::empty());
    }
    // Times: before 1970, far ahead, with nanoseconds.
    for (name, time) in [
        ("old", SystemTime::UNIX_EPOCH - Duration::new(86_400, 5)),
        ("new", SystemTime::UNIX_EPOCH + Duration::new(4_000_000_000, 123_456_789)),
    ] {
        fs::write(base.join(name), name).unwrap();
        File::options().write(true).open(base.join(name)).unwrap().set_modified(time).unwrap();
    }
    // Holes.
    let sparse = |name: &str, size: u64, data: &[(u64, usize)]| {
        let file = File::create(base.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (offset, length) in data {
            file.write_all_at(&Numbers(*offset).bytes(*length), *offset).unwrap();
        }
    };
    sparse("hole-all", 10 << 20, &[]);
    sparse("hole-small", 3000, &[]);
    sparse("hole-first", 4 << 20, &[(3 << 20, 1 << 20)]);
    sparse("hole-last", 4 << 20, &[(0, 5000)]);
    sparse("hole-between", 64 << 20, &[(0, 70_000), (20 << 20, 3 << 20), ((63 << 20) + 5, 100)]);
    // Devices and fifos.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        base.join("fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    if is_root() {
        for (name, kind, device) in [
            ("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            ("loop", FileType::BlockDevice, rustix::fs::makedev(7, 200)),
        ] {
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, base.join(name), kind, mode, device).unwrap();
        }
        for (name, user, group) in [("dir/file", 1000, 1001), ("relative-link", 12_345, 54_321)] {
            std::os::unix::fs::lchown(base.join(name), Some(user), Some(group)).unwrap();
        }
    }
}

#[test]
fn one_of_everything_comes_back_equal_on_a_disk_and_in_memory() {
    for (_dir, base) in [folder(), folder_in_memory()] {
        let tree = base.join("tree");
        fs::create_dir(&tree).unwrap();
        one_of_everything(&tree);
        let repo = repository();
        let source = files(&[&tree]);
        let first = full(&repo, &source);
        assert!(first.problems.is_empty(), "{:?}", first.problems);
        assert_restores(&repo, &first, &tree);
        // And again from a snapshot that read nothing.
        let second = backup(&repo, &source, &after(&first)).unwrap();
        assert_eq!(second.stats.bytes_read, 0, "{:?}", second.stats);
        // But for nodes of the tree, the first and those above it: other tests change the times of the
        // folders above.
        assert!(second.stats.new_chunks <= 2, "{:?}", second.stats);
        assert!(second.stats.files_unchanged > 40, "{:?}", second.stats);
        assert_restores(&repo, &second, &tree);
    }
}

#[test]
fn the_parents_of_a_path_are_entries_with_their_metadata() {
    let (_dir, base) = folder();
    fs::create_dir_all(base.join("srv/app")).unwrap();
    fs::write(base.join("srv/app/f"), "f").unwrap();
    fs::write(base.join("srv/other"), "o").unwrap();
    fs::set_permissions(base.join("srv"), Permissions::from_mode(0o750)).unwrap();
    let repo = repository();
    let snapshot = full(&repo, &files(&[&base.join("srv/app")]));
    let srv = entry(&repo, &snapshot, &base.join("srv")).unwrap();
    assert!(srv.is_directory());
    assert_eq!(srv.meta.mode, 0o750);
    assert!(entry(&repo, &snapshot, &base.join("srv/other")).is_none());
    assert_restores(&repo, &snapshot, &base.join("srv/app"));
}

#[test]
fn a_path_through_a_link_keeps_the_link_and_what_it_means() {
    let (_dir, base) = folder();
    fs::create_dir_all(base.join("data/app")).unwrap();
    fs::write(base.join("data/app/f"), "f").unwrap();
    symlink("data/app", base.join("current")).unwrap();
    let repo = repository();
    let snapshot = full(&repo, &files(&[&base.join("current")]));
    let link = entry(&repo, &snapshot, &base.join("current")).unwrap();
    assert_eq!(link.kind, EntryKind::Symlink { target: b"data/app".to_vec() });
    assert!(entry(&repo, &snapshot, &base.join("data/app/f")).is_some());
}

#[test]
fn owners_have_names() {
    if !is_root() {
        println!("skipped: only root can own files as root here");
        return;
    }
    let (_dir, base) = folder();
    fs::write(base.join("f"), "f").unwrap();
    std::os::unix::fs::chown(base.join("f"), Some(0), Some(987_654)).unwrap();
    let repo = repository();
    let snapshot = full(&repo, &files(&[&base]));
    let meta = entry(&repo, &snapshot, &base.join("f")).unwrap().meta;
    assert_eq!((meta.user.as_str(), meta.group.as_str(), meta.gid), ("root", "", 987_654));
}

#[test]
fn only_what_changed_is_read() {
    let (_dir, base) = folder();
    let mut numbers = Numbers(2);
    for name in ["same", "longer", "same-size", "touched", "replaced", "chmod"] {
        fs::write(base.join(name), numbers.bytes(10_000)).unwrap();
    }
    let old = fs::metadata(base.join("same-size")).unwrap().modified().unwrap();
    let repo = repository();
    let source = files(&[&base]);
    let first = full(&repo, &source);
    // What a cheat would do: other content, same size, the old time put back.
    let same_size = File::options().write(true).open(base.join("same-size")).unwrap();
    same_size.write_all_at(b"changed", 5000).unwrap();
    same_size.set_modified(old).unwrap();
    fs::OpenOptions::new().append(true).open(base.join("longer")).unwrap().write_all(b"!").unwrap();
    File::options()
        .write(true)
        .open(base.join("touched"))
        .unwrap()
        .set_modified(SystemTime::now())
        .unwrap();
    fs::write(base.join("new"), numbers.bytes(10_000)).unwrap();
    fs::rename(base.join("new"), base.join("replaced")).unwrap();
    fs::set_permissions(base.join("chmod"), Permissions::from_mode(0o600)).unwrap();
    let second = backup(&repo, &source, &after(&first)).unwrap();
    assert_eq!(second.stats.files_unchanged, 1, "{:?}", second.stats);
    assert_eq!(second.stats.bytes_read, 50_001, "{:?}", second.stats);
    assert_eq!(second.type_, SnapshotType::Incremental);
    assert_eq!(second.parent.as_deref(), Some(first.id.as_str()));
    assert_restores(&repo, &second, &base);
}

#[test]
fn a_file_changed_in_the_tick_of_the_previous_backup_is_read_again() {
    let (_dir, base) = folder();
    let repo = repository();
    let source = files(&[&base]);
    for round in 0..20_u32 {
        let content = format!("{round:05}");
        fs::write(base.join("f"), &content).unwrap();
        let snapshot = backup(&repo, &source, &BackupOptions::default()).unwrap();
        let stored = entry(&repo, &snapshot, &base.join("f")).unwrap();
        let mut read = Vec::new();
        repo.tree(&snapshot).unwrap().read_file(&stored, &mut read).unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), content);
    }
}

/// The kernel gives a page a new time at the first write through a mapping, and at no other until it
/// has written the page to disk.
#[test]
fn what_is_written_through_a_mapping_after_a_backup_is_in_the_next_one() {
    let (_dir, base) = folder();
    let path = base.join("mapped");
    fs::write(&path, [b'0'; 8192]).unwrap();
    let script = "
import mmap, sys
with open(sys.argv[1], 'r+b') as f:
    m = mmap.mmap(f.fileno(), 0)
    for line in sys.stdin:
        m[0:1] = line[0:1].encode()
        print(flush=True)
";
    let mut writer = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut answers = std::io::BufReader::new(writer.stdout.take().unwrap());
    let mut write = |what: &str| {
        use std::io::{BufRead, Write};
        writer.stdin.as_mut().unwrap().write_all(what.as_bytes()).unwrap();
        answers.read_line(&mut String::new()).unwrap();
    };
    write("1\n");
    // Longer than any step of a file system's clock.
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    while written.elapsed().unwrap_or_default() < Duration::from_secs(4) {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let repo = repository();
    let source = files(&[&base]);
    let run = || backup(&repo, &source, &BackupOptions::default()).unwrap();
    let first = run();
    write("2\n");
    let second = run();
    for (snapshot, expected) in [(first, b'1'), (second, b'2')] {
        let stored = entry(&repo, &snapshot, &path).unwrap();
        let mut read = Vec::new();
        repo.tree(&snapshot).unwrap().read_file(&stored, &mut read).unwrap();
        assert_eq!(read[0], expected);
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
}

#[test]
fn a_parent_from_the_future_saves_no_reading() {
    let (_dir, base) = folder();
    fs::write(base.join("f"), "content").unwrap();
    let repo = repository();
    let source = files(&[&base]);
    let first = full(&repo, &source);
    let mut options = after(&first);
    if let Some(parent) = &mut options.parent {
        parent.finished += Duration::from_secs(3600);
    }
    let second = backup(&repo, &source, &options).unwrap();
    assert_eq!(second.stats.files_unchanged, 0);
    assert_eq!(second.stats.bytes_read, 7);
}

#[test]
fn the_parent_is_the_newest_or_the_newest_full_one() {
    let (_dir, base) = folder();
    fs::write(base.join("f"), "content").unwrap();
    let repo = repository();
    let source = files(&[&base]);
    let run = |type_| {
        backup(&repo, &source, &BackupOptions { type_, ..BackupOptions::default() }).unwrap()
    };
    let first = run(SnapshotType::Incremental);
    assert_eq!((first.type_, first.parent.clone()), (SnapshotType::Full, None));
    let other = FilesSource { name: "other".into(), ..source.clone() };
    backup(&repo, &other, &BackupOptions::default()).unwrap();
    let second = run(SnapshotType::Incremental);
    assert_eq!(second.parent, Some(first.id.clone()));
    let third = run(SnapshotType::Incremental);
    assert_eq!(third.parent, Some(second.id));
    let fourth = run(SnapshotType::Differential);
    assert_eq!(fourth.parent, Some(first.id));
    assert_eq!(fourth.type_, SnapshotType::Differential);
    assert_eq!(run(SnapshotType::Full).parent, None);
}

#[test]
fn what_is_removed_is_gone_and_what_became_something_else_is_that() {
    let (_dir, base) = folder();
    for name in ["file-to-dir", "file-to-link", "gone"] {
        fs::write(base.join(name), name).unwrap();
    }
    fs::create_dir_all(base.join("dir-to-file/below")).unwrap();
    let repo = repository();
    let source = files(&[&base]);
    let first = full(&repo, &source);
    for name in ["file-to-dir", "file-to-link", "gone"] {
        fs::remove_file(base.join(name)).unwrap();
    }
    fs::create_dir(base.join("file-to-dir")).unwrap();
    fs::write(base.join("file-to-dir/x"), "x").unwrap();
    symlink("x", base.join("file-to-link")).unwrap();
    fs::remove_dir_all(base.join("dir-to-file")).unwrap();
    fs::write(base.join("dir-to-file"), "now a file").unwrap();
    let second = backup(&repo, &source, &after(&first)).unwrap();
    assert_restores(&repo, &second, &base);
}

#[test]
fn hard_links_change_their_first_name() {
    let (_dir, base) = folder();
    fs::write(base.join("b"), vec![1; 100_000]).unwrap();
    for name in ["a", "c", "d"] {
        fs::hard_link(base.join("b"), base.join(name)).unwrap();
    }
    let repo = repository();
    let source = files(&[&base]);
    let first = full(&repo, &source);
    assert_eq!(first.stats.bytes_read, 100_000);
    assert_restores(&repo, &first, &base);
    fs::remove_file(base.join("a")).unwrap();
    let second = backup(&repo, &source, &after(&first)).unwrap();
    assert_restores(&repo, &second, &base);
    // Only one of the names is in the source: a file by itself.
    let third = full(&repo, &files(&[&base.join("c")]));
    assert!(matches!(entry(&repo, &third, &base.join("c")).unwrap().kind, EntryKind::File(_)));
}

#[test]
fn a_directory_of_ten_thousand_files_comes_back() {
    let (_dir, base) = folder_in_memory();
    for number in 0..10_000_u32 {
        fs::write(base.join(format!("{number}")), number.to_le_bytes()).unwrap();
    }
    let repo = repository();
    let source = files(&[&base]);
    let first = full(&repo, &source);
    assert_restores(&repo, &first, &base);
    fs::write(base.join("5000"), "changed").unwrap();
    let second = backup(&repo, &source, &after(&first)).unwrap();
    assert_eq!(second.stats.files_unchanged, 9_999);
    assert_restores(&repo, &second, &base);
}

#[test]
fn a_file_deeper_than_a_path_can_be_long_is_read() {
    let (_dir, base) = folder();
    let (tree, target) = (base.join("tree"), base.join("restored"));
    fs::create_dir(&tree).unwrap();
    let open = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
    let mut at = rustix::fs::open(&tree, open, Mode::empty()).unwrap();
    let name = "d".repeat(200);
    for level in 0..40 {
        let create = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE;
        let file = rustix::fs::openat(&at, "file", create, Mode::from_raw_mode(0o600)).unwrap();
        rustix::io::write(&file, format!("level {level}").as_bytes()).unwrap();
        rustix::fs::symlinkat("file", &at, "link").unwrap();
        rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)).unwrap();
        at = rustix::fs::openat(&at, &name, open, Mode::empty()).unwrap();
    }
    let repo = repository();
    let snapshot = full(&repo, &files(&[&tree]));
    assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems.first());
    let entries: Vec<_> = repo.tree(&snapshot).unwrap().iter().collect::<Result<_, _>>().unwrap();
    let deepest = entries.iter().rfind(|entry| entry.path.ends_with(b"/file"));
    let (mut longest, mut content) = (0, Vec::new());
    for entry in &entries {
        longest = longest.max(entry.path.len());
        if entry.path.ends_with(b"/file") {
            content.clear();
            repo.tree(&snapshot).unwrap().read_file(entry, &mut content).unwrap();
            assert!(content.starts_with(b"level "));
        }
    }
    assert!(deepest.is_some() && longest > 8000, "{longest}");
    assert_eq!(entries.iter().filter(|e| e.path.ends_with(b"/link")).count(), 40);
    restore(&repo, &snapshot, &target);
    let restored = target.join(tree.strip_prefix("/").unwrap());
    let differences = compare_trees(&tree, &restored, CompareOptions::default()).unwrap();
    assert!(differences.is_empty(), "{} differences", differences.len());
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_and_the_snapshot_completes() {
    let (_dir, base) = folder();
    fs::set_permissions(&base, Permissions::from_mode(0o755)).unwrap();
    fs::write(base.join("open"), "open").unwrap();
    fs::write(base.join("closed"), vec![1; 100_000]).unwrap();
    fs::hard_link(base.join("closed"), base.join("closed-too")).unwrap();
    fs::set_permissions(base.join("closed"), Permissions::from_mode(0o000)).unwrap();
    let repo = repository();
    let snapshot = unprivileged(|| full(&repo, &files(&[&base])));
    let names: BTreeSet<&str> =
        snapshot.problems.iter().map(|p| p.path.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["closed", "closed-too"]), "{:?}", snapshot.problems);
    assert!(snapshot.problems[0].what.contains("denied"), "{:?}", snapshot.problems);
    assert!(entry(&repo, &snapshot, &base.join("open")).is_some());
    assert!(entry(&repo, &snapshot, &base.join("closed")).is_none());
    assert!(entry(&repo, &snapshot, &base.join("closed-too")).is_none());
}

#[test]
fn none_of_the_paths_being_there_is_an_error_and_leaves_no_snapshot() {
    let (_dir, base) = folder();
    let repo = repository();
    let error = backup(&repo, &files(&[&base.join("x")]), &BackupOptions::default()).unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("paths")), "{error}");
    assert!(repo.snapshots().unwrap().is_empty());
    let error = backup(&repo, &files(&[]), &BackupOptions::default()).unwrap_err();
    assert_eq!(error.kind(), backstay_repo::RepoErrorKind::Usage);
}

/// Backs up while `change` runs again and again beside it; at least once each.
fn back_up_while(
    repo: &Repository,
    source: &FilesSource,
    rounds: usize,
    mut change: impl FnMut(usize) + Send,
) -> Vec<Snapshot> {
    let done = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let stop = done.clone();
        scope.spawn(move || {
            let mut round = 0;
            while !stop.load(Ordering::SeqCst) {
                change(round);
                round += 1;
            }
        });
        let snapshots = (0..rounds).map(|_| full(repo, source)).collect();
        done.store(true, Ordering::SeqCst);
        snapshots
    })
}

#[test]
fn files_that_come_and_go_during_the_walk_are_no_problem() {
    let (_dir, base) = folder_in_memory();
    for number in 0..500 {
        fs::write(base.join(format!("stays-{number}")), vec![7; 3000]).unwrap();
    }
    let repo = repository();
    let snapshots = back_up_while(&repo, &files(&[&base]), 10, |round| {
        let dir = base.join(format!("comes-{}", round % 50));
        fs::create_dir_all(dir.join("deep")).unwrap();
        fs::write(dir.join("deep/file"), vec![1; 5000]).unwrap();
        let _ = fs::hard_link(dir.join("deep/file"), dir.join("a-link"));
        fs::remove_dir_all(base.join(format!("comes-{}", (round + 25) % 50))).ok();
    });
    for snapshot in snapshots {
        assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
        let target = tempfile::tempdir_in("/dev/shm").unwrap();
        restore(&repo, &snapshot, &target.path().join("r"));
        let restored = target.path().join("r").join(base.strip_prefix("/").unwrap());
        let stayed = fs::read_dir(restored)
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().as_bytes().starts_with(b"stays-"))
            .count();
        assert_eq!(stayed, 500);
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_stored_and_read_again_next_time() {
    let (_dir, base) = folder_in_memory();
    let path = base.join("growing");
    fs::write(&path, vec![0; 30 << 20]).unwrap();
    let repo = repository();
    let source = files(&[&base]);
    let snapshots = back_up_while(&repo, &source, 3, |_| {
        let mut file = File::options().write(true).open(&path).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(&[1; 100]).unwrap();
    });
    let last = snapshots.last().unwrap();
    assert_eq!(last.detail["changed_while_read"]["count"], 1, "{:?}", last.detail);
    assert!(last.problems.is_empty());
    // Nothing has touched it since, and a minute seems to have passed.
    let next = backup(&repo, &source, &after(last)).unwrap();
    assert_eq!(next.stats.files_unchanged, 0);
    assert_restores(&repo, &next, &base);
    let after_that = backup(&repo, &source, &after(&next)).unwrap();
    assert_eq!(after_that.stats.files_unchanged, 1);
}

#[test]
fn a_link_put_in_the_way_is_not_followed() {
    let (_dir, base) = folder_in_memory();
    fs::create_dir(base.join("secret")).unwrap();
    fs::write(base.join("secret/file"), "SECRET").unwrap();
    let tree = base.join("tree");
    for number in 0..200 {
        fs::create_dir_all(tree.join(format!("{number}"))).unwrap();
        fs::write(tree.join(format!("{number}/file")), "public").unwrap();
    }
    let repo = repository();
    let snapshots = back_up_while(&repo, &files(&[&tree]), 10, |round| {
        let dir = tree.join(format!("{}", round % 200));
        let aside = base.join("aside");
        fs::rename(&dir, &aside).unwrap();
        symlink(base.join("secret"), &dir).unwrap();
        fs::remove_file(&dir).unwrap();
        fs::rename(&aside, &dir).unwrap();
    });
    for snapshot in snapshots {
        for found in repo.tree(&snapshot).unwrap().iter() {
            let found = found.unwrap();
            if matches!(found.kind, EntryKind::File(_)) {
                let mut content = Vec::new();
                repo.tree(&snapshot).unwrap().read_file(&found, &mut content).unwrap();
                assert_eq!(content, b"public", "{}", found.display_path());
            }
        }
    }
}

#[test]
fn access_times_stay() {
    let (_dir, base) = folder();
    let path = base.join("f");
    fs::write(&path, vec![1; 10_000]).unwrap();
    // Older than the change, so that even a mount with relatime would set it.
    let file = File::options().write(true).open(&path).unwrap();
    let times = fs::FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH + Duration::from_secs(99));
    file.set_times(times).unwrap();
    let repo = repository();
    full(&repo, &files(&[&base]));
    assert_eq!(fs::metadata(&path).unwrap().atime(), 99);
}

#[test]
fn check_says_what_is_wrong_and_what_to_do() {
    use backstay_sources::Source;
    let (_dir, base) = folder();
    let source =
        FilesSource { exclude: vec!["[".into()], ..files(&[&base, &base.join("missing")]) };
    let items = source.check();
    let bad: Vec<&str> = items.iter().filter(|i| !i.ok).map(|i| i.name.as_str()).collect();
    assert_eq!(bad, ["exclude", base.join("missing").to_str().unwrap()]);
    assert!(items.iter().filter(|i| !i.ok).all(|i| i.hint.is_some()));
    assert!(files(&[&PathBuf::from("/etc")]).check().iter().all(|i| i.ok));
}

#[test]
fn comparing_trees_finds_every_kind_of_difference() {
    let (_dir, base) = folder();
    let (a, b) = (base.join("a"), base.join("b"));
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    for tree in [&a, &b] {
        fs::create_dir(tree).unwrap();
        for name in ["content", "size", "mode", "time", "attribute", "kind", "one", "hole", "same"]
        {
            let path = tree.join(name);
            fs::write(&path, vec![0; 300_000]).unwrap();
        }
        // The other name of this one lies outside: in the tree it is a file by itself.
        fs::write(tree.join("outside"), "").unwrap();
    }
    fs::hard_link(a.join("outside"), base.join("outside")).unwrap();
    File::options()
        .write(true)
        .open(b.join("content"))
        .unwrap()
        .write_all_at(b"!", 299_999)
        .unwrap();
    fs::write(b.join("size"), "").unwrap();
    fs::set_permissions(b.join("mode"), Permissions::from_mode(0o604)).unwrap();
    rustix::fs::setxattr(b.join("attribute"), "user.a", b"", XattrFlags::empty()).unwrap();
    fs::remove_file(b.join("kind")).unwrap();
    fs::create_dir(b.join("kind")).unwrap();
    fs::write(b.join("kind/only-here"), "").unwrap();
    fs::remove_file(b.join("one")).unwrap();
    fs::hard_link(b.join("content"), b.join("one")).unwrap();
    File::create(b.join("hole")).unwrap().set_len(300_000).unwrap();
    for tree in [&a, &b] {
        for entry in fs::read_dir(tree).unwrap() {
            File::open(entry.unwrap().path()).unwrap().set_modified(time).unwrap();
        }
        File::open(tree).unwrap().set_modified(time).unwrap();
    }
    File::open(b.join("time")).unwrap().set_modified(time + Duration::from_nanos(1)).unwrap();
    let found: BTreeSet<String> = compare_trees(&a, &b, CompareOptions::default())
        .unwrap()
        .iter()
        .map(|d| {
            format!("{} {}", String::from_utf8_lossy(&d.path), d.what.split(' ').next().unwrap())
        })
        .collect();
    let expected = [
        "attribute attributes",
        "content content",
        "hole holes",
        "kind a",
        "kind/only-here only",
        "mode mode",
        "one content",
        "one first",
        "size size",
        "time time",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
    assert!(compare_trees(&a, &a, CompareOptions::default()).unwrap().is_empty());
}

/// Its time says that it may have changed, and reading it that it has not.
#[test]
fn small_files_that_were_touched_or_renamed_are_not_stored_again() {
    let repo = repository();
    let (_keep, source) = folder();
    let mut numbers = Numbers(77);
    for name in 0..40 {
        let content: Vec<u8> = (0..1000).flat_map(|_| numbers.next().to_le_bytes()).collect();
        fs::write(source.join(format!("{name:02}")), content).unwrap();
    }
    let first = full(&repo, &files(&[&source]));
    for name in 0..40 {
        let path = source.join(format!("{name:02}"));
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + name);
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        if name % 4 == 0 {
            fs::rename(&path, source.join(format!("{name:02}.old"))).unwrap();
        }
    }
    let second = backup(&repo, &files(&[&source]), &after(&first)).unwrap();
    assert_eq!(second.stats.bytes_read, 40 * 8000);
    // The tree alone is new.
    assert!(second.stats.new_bytes < 20_000, "{:?}", second.stats);
    let target = tempfile::tempdir_in("/var/tmp").unwrap();
    restore(&repo, &second, target.path());
    for name in 0..40 {
        let name = if name % 4 == 0 { format!("{name:02}.old") } else { format!("{name:02}") };
        let found = fs::read(target.path().join(source.strip_prefix("/").unwrap()).join(&name));
        assert!(found.unwrap() == fs::read(source.join(&name)).unwrap(), "{name}");
    }
}

#[test]
fn of_an_image_of_a_disk_only_blocks_that_changed_are_stored() {
    let repo = repository();
    let (_keep, source) = folder();
    let mut numbers = Numbers(78);
    let size = 70 << 20;
    fs::write(source.join("disk.img"), numbers.bytes(size)).unwrap();
    // Not whole sectors; with a hole.
    fs::write(source.join("odd.img"), numbers.bytes((2 << 20) + 1)).unwrap();
    let sparse = File::create(source.join("sparse.img")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    sparse.write_all_at(&numbers.bytes(4096), 1 << 20).unwrap();
    let first = full(&repo, &files(&[&source]));
    assert_restores(&repo, &first, &source);
    // In both regions, at the end, and one of zeros.
    let image = File::options().write(true).open(source.join("disk.img")).unwrap();
    for at in [4096, 5 << 20, (64 << 20) + 12_288, size as u64 - 4096] {
        image.write_all_at(&numbers.bytes(4096), at).unwrap();
    }
    image.write_all_at(&[0; 4096], 9 << 20).unwrap();
    let second = backup(&repo, &files(&[&source]), &after(&first)).unwrap();
    let new = second.stats.new_bytes;
    let pages = 5 * 8192;
    assert!((pages..pages + 60_000).contains(&new), "{:?}", second.stats);
    assert_restores(&repo, &second, &source);
    // It grows and is cut short like any other file.
    image.set_len((60 << 20) + 512).unwrap();
    let third = backup(&repo, &files(&[&source]), &after(&second)).unwrap();
    assert_restores(&repo, &third, &source);
}
