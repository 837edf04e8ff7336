//! Mounts of real snapshots through the real kernel: what is seen there is what was backed up.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstay_mount::{Ended, MountOptions, Mounted, mount};
use backstay_repo::*;
use backstay_sources::files::compare::{CompareOptions, compare_trees};
use backstay_sources::{BackupOptions, FilesSource, Source};
use backstay_store::{Faulty, Memory};
use backstay_testing::{FileTree, wait_until};

/// Why nothing can be mounted here. Containers often lack the device, so even where `CI` is set
/// this is said and no failure.
fn cannot_mount() -> Option<&'static str> {
    if !Path::new("/dev/fuse").exists() {
        Some("there is no /dev/fuse")
    } else if !rustix::process::geteuid().is_root() {
        Some("mounting needs root here")
    } else {
        None
    }
}

macro_rules! needs_fuse {
    () => {
        if let Some(reason) = cannot_mount() {
            let _ = writeln!(io::stderr(), "skipped: {reason}");
            return;
        }
    };
}

/// What could not be read: where, and why.
type Problems = Arc<Mutex<Vec<(String, String)>>>;

struct Stage {
    /// Dropped first: it unmounts.
    mounted: Option<Mounted>,
    repo: Repository,
    store: Store,
    folder: tempfile::TempDir,
    problems: Problems,
}

impl Stage {
    fn new() -> Self {
        Self::on(Store::memory())
    }

    fn on(store: Store) -> Self {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::create_dir(folder.path().join("mnt")).unwrap();
        let secret = Secret::key_file(vec![7; 32]).unwrap();
        let repo =
            Repository::init(store.clone(), Environment::system(), &secret, InitOptions::default())
                .unwrap();
        Self { mounted: None, repo, store, folder, problems: Problems::default() }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn mnt(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn backup(&self, source: &str) -> Snapshot {
        let source =
            FilesSource { name: source.into(), paths: vec![self.data()], ..FilesSource::default() };
        let snapshot = source.backup(&self.repo, &BackupOptions::default()).unwrap();
        assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
        snapshot
    }

    /// A handle that knows nothing yet, as that of another process.
    fn reopened(&self) -> Repository {
        let secret = Secret::key_file(vec![7; 32]).unwrap();
        let options = OpenOptions::default();
        Repository::open(self.store.clone(), Environment::system(), &secret, options).unwrap()
    }

    fn mount(&mut self) {
        self.mount_with(MountOptions { refresh: Duration::ZERO, ..MountOptions::default() });
    }

    fn mount_with(&mut self, options: MountOptions) {
        let repo = self.reopened();
        let snapshots = repo.snapshots().unwrap();
        let problems = self.problems.clone();
        let told = move |path: &str, error: &RepoError| {
            problems.lock().unwrap().push((path.to_owned(), error.to_string()));
        };
        let mounted = mount(repo, snapshots, &self.mnt(), &options, Box::new(told)).unwrap();
        self.mounted = Some(mounted);
    }

    /// Where the data lies in the newest snapshot of a source.
    fn latest(&self, source: &str) -> PathBuf {
        let below = self.mnt().join("sources").join(source).join("latest");
        below.join(self.data().strip_prefix("/").unwrap())
    }

    fn assert_same(&self, source: &str) {
        let differences =
            compare_trees(&self.data(), &self.latest(source), CompareOptions::default()).unwrap();
        let all: String = differences.iter().take(20).map(|d| format!("{d}\n")).collect();
        assert!(differences.is_empty(), "{all}");
        let problems = self.problems.lock().unwrap();
        assert!(problems.is_empty(), "{problems:?}");
    }
}

fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut data = vec![0; length];
    Environment::seeded(seed).random.fill(&mut data);
    data
}

/// An access control list as Linux keeps it: the owner, one more user, the group, a mask, others.
fn acl(user: u32) -> Vec<u8> {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, user),
        (4, 0, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        list.extend_from_slice(&tag.to_le_bytes());
        list.extend_from_slice(&permissions.to_le_bytes());
        list.extend_from_slice(&id.to_le_bytes());
    }
    list
}

/// Everything a tree may have.
fn odd_tree(root: &Path) {
    use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};
    FileTree::new(11).files(400).largest(3 << 20).create(root);
    fs::write(root.join("large"), noise(40 << 20, 5)).unwrap();
    for (name, kind, device) in [
        ("null", FileType::CharacterDevice, makedev(1, 3)),
        ("disk", FileType::BlockDevice, makedev(259, 70_000)),
    ] {
        mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o660), device).unwrap();
    }
    fs::hard_link(root.join("large"), root.join("empty/third name")).unwrap();
    fs::hard_link(root.join("large"), root.join("0 comes first")).unwrap();
    symlink("../large", root.join("empty/up")).unwrap();
    fs::hard_link(root.join("empty/up"), root.join("another name of a link")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(300 << 20).unwrap();
    sparse.write_all_at(&noise(200_000, 6), 100 << 20).unwrap();
    sparse.set_len((300 << 20) + 5).unwrap();
    fs::write(root.join("special bits"), "x").unwrap();
    rustix::fs::chown(root.join("special bits"), Some(rustix::fs::Uid::from_raw(4711)), None)
        .unwrap();
    fs::set_permissions(root.join("special bits"), fs::Permissions::from_mode(0o6711)).unwrap();
    fs::write(root.join("attributes"), "x").unwrap();
    for (name, value) in
        [("user.note", b"kept".as_slice()), ("user.empty", b""), ("trusted.t", b"\0\xff")]
    {
        setxattr(root.join("attributes"), name, value, XattrFlags::empty()).unwrap();
    }
    setxattr(root.join("attributes"), "system.posix_acl_access", &acl(4711), XattrFlags::empty())
        .unwrap();
    setxattr(root.join("empty"), "system.posix_acl_default", &acl(4712), XattrFlags::empty())
        .unwrap();
    let early = rustix::fs::Timespec { tv_sec: -77, tv_nsec: 123_456_789 };
    let times = rustix::fs::Timestamps { last_access: early, last_modification: early };
    rustix::fs::utimensat(CWD, root.join("special bits"), &times, rustix::fs::AtFlags::empty())
        .unwrap();
}

#[test]
fn a_mounted_snapshot_is_what_was_backed_up() {
    needs_fuse!();
    let mut stage = Stage::new();
    odd_tree(&stage.data());
    stage.backup("files");
    stage.mount();
    stage.assert_same("files");
    // Again, now that the kernel and the caches know it.
    stage.assert_same("files");

    let latest = stage.latest("files");
    let about = |name: &str| latest.join(name).symlink_metadata().unwrap();
    assert_eq!(about("large").nlink(), 3);
    assert_eq!(about("large").ino(), about("empty/third name").ino());
    assert_eq!(about("large").ino(), about("0 comes first").ino());
    assert_eq!(about("empty/up").nlink(), 2);
    assert_eq!(about("f00000").nlink(), 2);
    assert_eq!(about("attributes").nlink(), 1);
    assert!(about("null").file_type().is_char_device());
    // A device is shown, and nobody gets at the device through it.
    assert!(File::open(latest.join("null")).is_err());
    assert!(about("sparse").blocks() * 512 < 1 << 20);
    let numbers: BTreeSet<u64> = fs::read_dir(&latest)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let (listed, real) = (std::os::unix::fs::DirEntryExt::ino(&entry), entry.metadata());
            assert_eq!(listed, real.unwrap().ino(), "{:?}", entry.file_name());
            listed
        })
        .collect();
    assert!(numbers.len() > 10);

    let full = rustix::fs::statfs(&latest).unwrap();
    assert!(full.f_blocks > 0 && full.f_bfree == 0 && full.f_files > 400);
    let refused = fs::write(latest.join("new"), "x").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::remove_file(latest.join("large")).unwrap_err().raw_os_error(), Some(30));
}

#[test]
fn any_range_of_a_file_can_be_read_by_many_at_once() {
    needs_fuse!();
    let mut stage = Stage::new();
    fs::create_dir(stage.data()).unwrap();
    let content = noise(24 << 20, 9);
    fs::write(stage.data().join("file"), &content).unwrap();
    stage.backup("files");
    let browse = BrowseOptions { chunks: 6 << 20, ..BrowseOptions::default() };
    stage.mount_with(MountOptions { browse, ..MountOptions::default() });
    let path = stage.latest("files").join("file");
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (path, content) = (&path, &content);
            scope.spawn(move || {
                let mut file = File::open(path).unwrap();
                let mut buffer = vec![0; 200_000];
                for round in 0..60_u64 {
                    let place = (round * 7_919_317 + thread * 1_299_709) % (25 << 20);
                    let read = file.seek(SeekFrom::Start(place)).and_then(|_| {
                        let mut all = 0;
                        while all < buffer.len() {
                            match file.read(&mut buffer[all..])? {
                                0 => break,
                                some => all += some,
                            }
                        }
                        Ok(all)
                    });
                    let wanted = content.get(place as usize..).unwrap_or_default();
                    let wanted = &wanted[..wanted.len().min(buffer.len())];
                    assert!(buffer[..read.unwrap()] == *wanted, "{place}");
                }
            });
        }
    });
}

#[test]
fn snapshots_are_found_by_source_id_and_day() {
    needs_fuse!();
    let mut stage = Stage::new();
    fs::create_dir(stage.data()).unwrap();
    fs::write(stage.data().join("file"), "one").unwrap();
    let first = stage.backup("etc");
    stage.mount();
    let mnt = stage.mnt();
    assert_eq!(names(&mnt), ["at", "snapshots", "sources"]);
    assert_eq!(names(mnt.join("sources")), ["etc"]);
    assert_eq!(names(mnt.join("sources/etc")).len(), 2);
    assert_eq!(names(mnt.join("snapshots")), [first.short_id()]);
    let below = stage.data().strip_prefix("/").unwrap().join("file");
    let day = names(mnt.join("at")).remove(0);
    for way in [
        format!("snapshots/{}", first.id),
        format!("snapshots/{}", first.short_id()),
        format!("at/{day}/etc"),
        "at/2100-01-01T00-00/etc".into(),
        "sources/etc/latest".into(),
    ] {
        assert_eq!(fs::read_to_string(mnt.join(&way).join(&below)).unwrap(), "one", "{way}");
    }
    for missing in ["sources/nothing", "snapshots/0123", "at/1999-01-01", "at/never", "x"] {
        let error = fs::metadata(mnt.join(missing)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{missing}");
    }

    // New ones appear, of old and new sources; forgotten ones vanish, with what is below them.
    fs::write(stage.data().join("file"), "two and more").unwrap();
    stage.backup("etc");
    stage.backup("srv");
    wait_until("the new snapshots are there", 10, || names(mnt.join("sources")) == ["etc", "srv"]);
    let latest = mnt.join("sources/etc/latest").join(&below);
    wait_until("the newest is the new one", 10, || {
        fs::read_to_string(&latest).unwrap() == "two and more"
    });
    let old = mnt.join("snapshots").join(&first.id).join(&below);
    let old = old.canonicalize().unwrap();
    let mut open = File::open(&old).unwrap();
    stage.repo.forget(&first.id).unwrap();
    wait_until("the forgotten one is gone", 10, || fs::metadata(&old).is_err());
    wait_until("it is not listed any more", 10, || names(mnt.join("snapshots")).len() == 2);
    // Whoever has a file open still reads it.
    let mut content = String::new();
    open.read_to_string(&mut content).unwrap();
    assert_eq!(content, "one");
}

#[test]
fn a_directory_of_any_size_is_listed_from_any_place() {
    needs_fuse!();
    let mut stage = Stage::new();
    const MANY: usize = 20_000;
    let session = stage
        .repo
        .begin(SessionOptions::new("many", SourceKind::Files, SnapshotType::Full))
        .unwrap();
    let mut tree = session.tree(Order::Any);
    let entry = |path: String, kind| Entry {
        path: path.into_bytes(),
        meta: Metadata { mode: 0o644, ..Metadata::default() },
        kind,
    };
    tree.entry(entry("d".into(), EntryKind::Directory)).unwrap();
    for n in 0..MANY {
        let content = FileContent::inline(n.to_string().into_bytes());
        tree.entry(entry(format!("d/{n:06}"), EntryKind::File(content))).unwrap();
        if n % 100 == 0 {
            // Deep things in between, whose directory is said nowhere.
            let content = FileContent::inline(Vec::new());
            tree.entry(entry(format!("d/{n:06}-below/x/y"), EntryKind::File(content))).unwrap();
        }
    }
    let root = tree.finish().unwrap();
    session.commit(root, serde_json::Value::Null).unwrap();
    stage.mount();
    let folder = stage.mnt().join("sources/many/latest/d");
    let found = names(&folder);
    assert_eq!(found.len(), MANY + MANY / 100);
    assert!(found.iter().collect::<BTreeSet<_>>().len() == found.len());
    assert_eq!(fs::read_to_string(folder.join("019999")).unwrap(), "19999");
    assert_eq!(names(folder.join("019900-below/x")), ["y"]);

    // Back to any place, as `telldir` and `seekdir` do.
    let fd = File::open(&folder).unwrap();
    let mut places = Vec::new();
    let mut buffer = Vec::with_capacity(4096);
    let mut listing = rustix::fs::RawDir::new(&fd, buffer.spare_capacity_mut());
    while let Some(entry) = listing.next() {
        let entry = entry.unwrap();
        places.push((entry.file_name().to_bytes().to_vec(), entry.next_entry_cookie()));
    }
    for at in [0, 1, 2, 700, 5000, places.len() - 2, 3, 10_000] {
        rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(places[at].1)).unwrap();
        let mut buffer = Vec::with_capacity(4096);
        let mut listing = rustix::fs::RawDir::new(&fd, buffer.spare_capacity_mut());
        let next = listing.next().unwrap().unwrap();
        assert_eq!(next.file_name().to_bytes(), places[at + 1].0, "{at}");
    }
}

/// Alters an object, so that it opens no more from `at` on.
fn damage(store: &Store, key: &str, at: usize) {
    let mut object = store.read(key).unwrap().to_vec();
    object[at] ^= 1;
    store.delete(key).unwrap();
    store.create(key, object.into()).unwrap();
}

fn packs(store: &Store) -> (Vec<String>, Vec<String>) {
    let all = store.list("packs/").unwrap().into_iter().map(|object| object.key);
    all.partition(|key| store.read(key).unwrap()[9] == 1)
}

#[test]
fn damage_costs_what_it_hit_and_is_named() {
    needs_fuse!();
    let mut stage = Stage::new();
    fs::create_dir(stage.data()).unwrap();
    let content = noise(12 << 20, 21);
    fs::write(stage.data().join("file"), &content).unwrap();
    fs::write(stage.data().join("small"), "right").unwrap();
    stage.backup("files");
    let pack = packs(&stage.store).0.remove(0);
    damage(&stage.store, &pack, 50_000);
    stage.mount();
    let latest = stage.latest("files");
    let file = File::open(latest.join("file")).unwrap();
    let mut wrong = 0;
    for (at, page) in content.chunks(4096).enumerate() {
        let mut found = vec![0; page.len()];
        match file.read_exact_at(&mut found, at as u64 * 4096) {
            Ok(()) => assert!(found == page, "page {at}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{error}");
                wrong += page.len();
            }
        }
    }
    assert!((1..=(4 << 20) + 8192).contains(&wrong), "{wrong}");
    assert_eq!(fs::read_to_string(latest.join("small")).unwrap(), "right");
    let problems = stage.problems.lock().unwrap().clone();
    let of_file = problems.iter().filter(|(path, error)| {
        path.starts_with("sources/files/") && path.ends_with("/file") && error.contains(&pack)
    });
    assert_eq!((of_file.count(), problems.len()), (1, 1), "{problems:?}");
}

#[test]
fn a_damaged_tree_shows_what_is_left_of_it_and_says_so() {
    needs_fuse!();
    let mut stage = Stage::new();
    for n in 0..3000 {
        let folder = stage.data().join(format!("d{}", n / 100));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("f{n}")), n.to_string()).unwrap();
    }
    stage.backup("files");
    let pack = packs(&stage.store).1.remove(0);
    let length = stage.store.read(&pack).unwrap().len();
    damage(&stage.store, &pack, length / 3);
    stage.mount();
    let (mut right, mut failed) = (0, 0);
    let mut waiting = vec![stage.latest("files")];
    while let Some(path) = waiting.pop() {
        let listing = match fs::read_dir(&path) {
            Ok(listing) => listing,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{error}");
                failed += 1;
                continue;
            }
        };
        for entry in listing {
            let path = match entry {
                Ok(entry) => entry.path(),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(5), "{error}");
                    failed += 1;
                    continue;
                }
            };
            let name = path.file_name().unwrap().as_bytes();
            if name.starts_with(b"d") {
                waiting.push(path);
            } else {
                assert_eq!(fs::read(&path).unwrap(), name[1..]);
                right += 1;
            }
        }
    }
    assert!(failed > 0 && right > 300 && right < 3000, "{failed} {right}");
    let problems = stage.problems.lock().unwrap().clone();
    assert!(problems.iter().all(|(_, error)| error.contains(&pack)), "{problems:?}");
    assert!(!problems.is_empty());
}

#[test]
fn a_store_that_is_away_for_a_while_costs_what_was_asked_meanwhile() {
    needs_fuse!();
    let faulty = Faulty::new(Memory::new(), Environment::system(), 3);
    let mut stage = Stage::on(Store::new(faulty.clone()));
    fs::create_dir(stage.data()).unwrap();
    for (name, seed) in [("one", 1), ("two", 2)] {
        fs::write(stage.data().join(name), noise(3 << 20, seed)).unwrap();
    }
    stage.backup("files");
    stage.mount();
    let latest = stage.latest("files").canonicalize().unwrap();
    assert!(fs::read(latest.join("one")).unwrap() == noise(3 << 20, 1));
    faulty.die();
    // What there was is not taken for gone.
    assert_eq!(names(stage.mnt().join("sources")), ["files"]);
    assert_eq!(names(&latest), ["one", "two"]);
    let error = fs::read(latest.join("two")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    faulty.revive();
    assert!(fs::read(latest.join("two")).unwrap() == noise(3 << 20, 2));
    let problems = stage.problems.lock().unwrap().clone();
    let about = |what: &str| problems.iter().any(|(path, _)| path.ends_with(what));
    assert!(about("the list of snapshots") && about("/two"), "{problems:?}");
}

#[test]
fn maintenance_by_somebody_else_disturbs_no_reader() {
    needs_fuse!();
    let mut stage = Stage::new();
    fs::create_dir(stage.data()).unwrap();
    let mut kept = Vec::new();
    for n in 0..30 {
        let content = noise(300_000, n);
        fs::write(stage.data().join(format!("{n:02}")), &content).unwrap();
        if n % 2 == 0 {
            kept.push((format!("{n:02}"), content));
        }
    }
    let first = stage.backup("files");
    for n in (1..30).step_by(2) {
        fs::remove_file(stage.data().join(format!("{n:02}"))).unwrap();
    }
    stage.backup("files");
    // So little is kept that everything is read from the store.
    let browse = BrowseOptions { chunks: 1, nodes: 1, readers: 1 };
    stage.mount_with(MountOptions { browse, ..MountOptions::default() });
    let latest = stage.latest("files");
    let open: Vec<_> = kept
        .iter()
        .map(|(name, content)| (File::open(latest.join(name)).unwrap(), content))
        .collect();
    let before = packs(&stage.store).0;
    let other = stage.reopened();
    other.forget(&first.id).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (done, open) = (&done, &open);
        scope.spawn(move || {
            let options = MaintenanceOptions {
                give_up_after: Duration::ZERO,
                ..MaintenanceOptions::default()
            };
            other.maintain(&options, &Arc::default()).unwrap();
            other.maintain(&options, &Arc::default()).unwrap();
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        loop {
            let last = done.load(std::sync::atomic::Ordering::SeqCst);
            for (file, content) in open {
                // The kernel is to forget what it has of it.
                rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                let mut found = vec![0; content.len()];
                file.read_exact_at(&mut found, 0).unwrap();
                assert!(found == **content);
            }
            if last {
                break;
            }
        }
    });
    let after = packs(&stage.store).0;
    assert!(before.iter().all(|pack| !after.contains(pack)), "{before:?} {after:?}");
    assert_eq!(*stage.problems.lock().unwrap(), []);
}

/// Runs as a user whom permissions apply to.
fn as_user<T: Send>(id: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_gid(rustix::process::Gid::from_raw(id)).unwrap();
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(id)).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn nobody_else_looks_in_unless_that_was_said() {
    needs_fuse!();
    let mut stage = Stage::new();
    fs::set_permissions(stage.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(stage.data()).unwrap();
    for (name, mode) in [("open", 0o644), ("closed", 0o600), ("listed", 0o600)] {
        fs::write(stage.data().join(name), name).unwrap();
        fs::set_permissions(stage.data().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let listed = stage.data().join("listed");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&listed, "system.posix_acl_access", &acl(4711), flags).unwrap();
    stage.backup("files");
    stage.mount();
    let read = |stage: &Stage, user, name: &str| {
        let path = stage.latest("files").join(name);
        as_user(user, || fs::read_to_string(path).map_err(|error| error.kind()))
    };
    let denied = Err(io::ErrorKind::PermissionDenied);
    assert_eq!(read(&stage, 4711, "open"), denied);
    assert_eq!(read(&stage, 0, "closed"), Ok("closed".into()));
    stage.mounted.take().unwrap().end();
    stage.mount_with(MountOptions { allow_other: true, ..MountOptions::default() });
    assert_eq!(read(&stage, 4711, "open"), Ok("open".into()));
    assert_eq!(read(&stage, 4711, "closed"), denied);
    assert_eq!(read(&stage, 4711, "listed"), Ok("listed".into()));
    assert_eq!(read(&stage, 4712, "listed"), denied);
    assert_eq!(read(&stage, 0, "closed"), Ok("closed".into()));
    stage.assert_same("files");
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

#[test]
fn it_ends_whoever_still_uses_it() {
    needs_fuse!();
    let mut stage = Stage::new();
    fs::create_dir(stage.data()).unwrap();
    fs::write(stage.data().join("file"), "content").unwrap();
    stage.backup("files");
    stage.mount();
    assert!(is_mounted(&stage.mnt()));
    assert_eq!(stage.mounted.take().unwrap().end(), Ended::Unmounted);
    assert!(!is_mounted(&stage.mnt()));

    stage.mount();
    let file = File::open(stage.latest("files").join("file")).unwrap();
    assert_eq!(stage.mounted.take().unwrap().end(), Ended::InUse);
    assert!(!is_mounted(&stage.mnt()));
    drop(file);

    // Somebody else unmounts it.
    stage.mount();
    rustix::mount::unmount(stage.mnt(), rustix::mount::UnmountFlags::empty()).unwrap();
    let mounted = stage.mounted.take().unwrap();
    wait_until("the end is noticed", 10, || mounted.has_ended());
    assert_eq!(mounted.end(), Ended::Unmounted);
}

#[test]
fn what_cannot_be_mounted_over_is_said() {
    needs_fuse!();
    let stage = Stage::new();
    let refused = |path: &Path| {
        let told = Box::new(|_: &str, _: &RepoError| {});
        let options = MountOptions::default();
        let error = mount(stage.repo.clone(), Vec::new(), path, &options, told).map(|_| ());
        let error = error.unwrap_err();
        assert!(error.hint().is_some());
        let folder = stage.folder.path().to_str().unwrap();
        error.to_string().replace(folder, "[DIR]")
    };
    fs::write(stage.folder.path().join("file"), "x").unwrap();
    assert_eq!(refused(&stage.folder.path().join("nothing")), "there is no folder [DIR]/nothing");
    assert_eq!(refused(&stage.folder.path().join("file")), "[DIR]/file is no folder");
    assert_eq!(
        refused(stage.folder.path()),
        "[DIR] is not empty, and what is in it would be hidden"
    );
    assert!(fs::metadata("/dev/fuse").unwrap().file_type().is_char_device());
}
