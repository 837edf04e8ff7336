//! The walk: order, completeness, what is left out, and how fast it is.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // as tests do

mod common;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_repo::compare_paths;
use backstay_sources::files::exclude::Exclude;
use backstay_sources::files::walk::{Walk, WalkOptions, Walked};
use common::{folder, unprivileged};
use rustix::fs::{Mode, OFlags};

fn walk(paths: &[&Path], options: WalkOptions) -> (Vec<Vec<u8>>, Vec<String>) {
    let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
    let (mut entries, mut problems) = (Vec::new(), Vec::new());
    for walked in Walk::new(&paths, options).unwrap() {
        match walked {
            Walked::Entry { path, .. } => entries.push(path),
            Walked::Problem { path, what } => {
                problems.push(format!("{}: {what}", String::from_utf8_lossy(&path)));
            }
            Walked::Skipped { path, kind } => {
                problems.push(format!("{} {}", String::from_utf8_lossy(&path), kind.describe()));
            }
        }
    }
    (entries, problems)
}

/// Paths below `base`, as text.
fn below(base: &Path, entries: &[Vec<u8>]) -> Vec<String> {
    let base = format!("{}/", base.to_str().unwrap().trim_start_matches('/'));
    entries
        .iter()
        .map(|path| String::from_utf8_lossy(path).into_owned())
        .filter_map(|path| path.strip_prefix(&base).map(str::to_owned))
        .collect()
}

/// That this process has used so far.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn count(path: &Path) -> usize {
    let mut count = 1;
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).unwrap() {
            count += count_of(&entry.unwrap());
        }
    }
    count
}

fn count_of(entry: &std::fs::DirEntry) -> usize {
    if entry.file_type().unwrap().is_dir() { count(&entry.path()) } else { 1 }
}

#[test]
fn the_system_is_walked_completely_and_in_order() {
    let paths = [Path::new("/usr/share"), Path::new("/usr/lib")];
    for threads in [1, 2, 4, 0] {
        let (started, before) = (Instant::now(), processor_time());
        let (entries, problems) = walk(&paths, WalkOptions { threads, ..Default::default() });
        println!(
            "{} entries in {:?} ({:?} of processor time), {threads} threads",
            entries.len(),
            started.elapsed(),
            processor_time() - before
        );
        assert!(problems.is_empty(), "{problems:?}");
        // And /usr, which leads there.
        assert_eq!(entries.len(), 1 + paths.iter().map(|path| count(path)).sum::<usize>());
        assert!(entries.windows(2).all(|pair| compare_paths(&pair[0], &pair[1]).is_lt()));
    }
}

#[test]
fn a_directory_of_many_names_comes_in_parts_and_in_order() {
    let (_dir, base) = folder();
    for number in 0..10_000 {
        let path = base.join(format!("{number:05}"));
        if number % 100 == 0 {
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("inside"), "").unwrap();
        } else {
            std::fs::write(path, "").unwrap();
        }
    }
    for threads in [1, 3] {
        let (entries, problems) = walk(&[&base], WalkOptions { threads, ..Default::default() });
        assert!(problems.is_empty());
        assert_eq!(below(&base, &entries).len(), 10_100);
        assert!(entries.windows(2).all(|pair| compare_paths(&pair[0], &pair[1]).is_lt()));
    }
}

#[test]
fn overlapping_paths_are_walked_once_and_their_parents_listed() {
    let (_dir, base) = folder();
    std::fs::create_dir_all(base.join("a/b/c")).unwrap();
    std::fs::create_dir_all(base.join("x/y")).unwrap();
    std::fs::write(base.join("x/not-asked-for"), "").unwrap();
    std::fs::write(base.join("a/b/f"), "").unwrap();
    let paths = [base.join("a/b/c"), base.join("x/y"), base.join("a"), base.join("a/b")];
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let (entries, _) = walk(&paths, WalkOptions::default());
    assert_eq!(below(&base, &entries), ["a", "a/b", "a/b/c", "a/b/f", "x", "x/y"]);
    // From / down.
    assert!(!entries[0].contains(&b'/'));
}

#[test]
fn excluded_things_are_left_out_but_not_what_is_named() {
    let (_dir, base) = folder();
    std::fs::create_dir_all(base.join("app/cache/deep")).unwrap();
    std::fs::create_dir_all(base.join("app/cache/kept")).unwrap();
    for file in ["app/a.log", "app/a.txt", "app/cache/x", "app/cache/kept/y"] {
        std::fs::write(base.join(file), "").unwrap();
    }
    let exclude = Exclude::new(&["*.log", "cache/"]).unwrap();
    let options = || WalkOptions { exclude: exclude.clone(), ..Default::default() };
    let (entries, _) = walk(&[&base], options());
    assert_eq!(below(&base, &entries), ["app", "app/a.txt"]);
    let (entries, _) = walk(&[&base, &base.join("app/cache/kept")], options());
    assert_eq!(
        below(&base, &entries),
        ["app", "app/a.txt", "app/cache", "app/cache/kept", "app/cache/kept/y"]
    );
}

#[test]
fn of_a_tagged_cache_only_the_tag_is_kept() {
    let (_dir, base) = folder();
    for (name, tag) in [
        ("real", "Signature: 8a477f597d28d172789f06886806bc55\n# a cache"),
        ("false", "Signature: something else"),
    ] {
        std::fs::create_dir(base.join(name)).unwrap();
        std::fs::write(base.join(name).join("CACHEDIR.TAG"), tag).unwrap();
        std::fs::write(base.join(name).join("data"), "").unwrap();
    }
    let (entries, _) = walk(&[&base], WalkOptions { skip_caches: true, ..Default::default() });
    assert_eq!(
        below(&base, &entries),
        ["false", "false/CACHEDIR.TAG", "false/data", "real", "real/CACHEDIR.TAG"]
    );
    let (entries, _) = walk(&[&base], WalkOptions::default());
    assert_eq!(entries.len(), below(&base, &entries).len() + base.components().count() - 1);
    assert_eq!(below(&base, &entries).len(), 6);
}

#[test]
fn links_are_listed_and_never_followed() {
    let (_dir, base) = folder();
    std::fs::create_dir(base.join("d")).unwrap();
    symlink("..", base.join("d/up")).unwrap();
    symlink("self", base.join("d/self")).unwrap();
    symlink("/", base.join("d/root")).unwrap();
    let (entries, problems) = walk(&[&base], WalkOptions::default());
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(below(&base, &entries), ["d", "d/root", "d/self", "d/up"]);
}

#[test]
fn a_socket_is_skipped_and_said() {
    let (_dir, base) = folder();
    let _socket = std::os::unix::net::UnixListener::bind(base.join("s")).unwrap();
    let (entries, problems) = walk(&[&base], WalkOptions::default());
    assert!(below(&base, &entries).is_empty());
    assert_eq!(problems.len(), 1);
    assert!(problems[0].ends_with("/s a socket"), "{problems:?}");
}

#[test]
fn a_directory_that_cannot_be_read_is_listed_with_its_problem() {
    let (_dir, base) = folder();
    std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir_all(base.join("closed/inside")).unwrap();
    std::fs::create_dir_all(base.join("open")).unwrap();
    std::fs::set_permissions(base.join("closed"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let (entries, problems) = unprivileged(|| walk(&[&base], WalkOptions::default()));
    std::fs::set_permissions(base.join("closed"), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(below(&base, &entries), ["closed", "open"]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("closed: the directory could not be read"), "{problems:?}");
}

#[test]
fn what_is_named_below_a_closed_directory_is_found() {
    let (_dir, base) = folder();
    std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir_all(base.join("closed/inside/x")).unwrap();
    std::fs::set_permissions(base.join("closed"), std::fs::Permissions::from_mode(0o711)).unwrap();
    let inside = base.join("closed/inside");
    let (entries, problems) = unprivileged(|| walk(&[&inside], WalkOptions::default()));
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(below(&base, &entries), ["closed", "closed/inside", "closed/inside/x"]);
}

#[test]
fn another_file_system_is_entered_only_when_asked_for() {
    if !std::fs::read_to_string("/proc/mounts").unwrap().contains(" /dev/shm ") {
        println!("skipped: /dev/shm is not mounted");
        return;
    }
    let (_dir, inside) = common::folder_in_memory();
    let options = || WalkOptions {
        one_file_system: true,
        exclude: Exclude::new(&["/dev/pts", "/dev/mqueue"]).unwrap(),
        ..Default::default()
    };
    let name = inside.to_str().unwrap().trim_start_matches('/').as_bytes().to_vec();
    let (entries, _) = walk(&[Path::new("/dev")], options());
    assert!(entries.contains(&b"dev/shm".to_vec()));
    assert!(!entries.contains(&name));
    let (entries, _) = walk(&[Path::new("/dev"), &inside], options());
    assert!(entries.contains(&name));
    let (entries, _) = walk(&[Path::new("/dev")], WalkOptions::default());
    assert!(entries.contains(&name));
}

#[test]
fn what_the_kernel_makes_up_is_not_entered_from_above() {
    let exclude: Vec<String> = std::fs::read_dir("/")
        .unwrap()
        .map(|entry| format!("/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|path| path != "/proc" && path != "/sys")
        .collect();
    let options = WalkOptions { exclude: Exclude::new(&exclude).unwrap(), ..Default::default() };
    let (entries, _) = walk(&[Path::new("/")], options);
    assert_eq!(entries, [b"proc".to_vec(), b"sys".to_vec()]);
}

#[test]
fn a_path_that_is_not_there_is_a_problem_and_none_at_all_an_error() {
    let (_dir, base) = folder();
    let missing = base.join("missing");
    let (entries, problems) = walk(&[&missing, &base], WalkOptions::default());
    assert!(!entries.is_empty());
    assert_eq!(problems.len(), 1);
    let error = Walk::new(&[missing], WalkOptions::default()).err().unwrap();
    assert!(error.to_string().contains("missing"), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn directories_may_be_nested_deeper_than_a_path_can_be_long() {
    let (_dir, base) = folder();
    let depth = 3000;
    let made = make_deep(&base, depth);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    println!("{limit:?}");
    for threads in [1, 3] {
        let (entries, problems) = walk(&[&base], WalkOptions { threads, ..Default::default() });
        assert!(problems.is_empty(), "{:?}", problems.first());
        // Each level has its directory, and two beside it that come before and after.
        assert_eq!(below(&base, &entries).len(), made);
    }
    remove_deep(&base);
}

/// Directories `d/d/d/…`, each beside directories `c` and `e`; how many there are.
fn make_deep(base: &Path, depth: usize) -> usize {
    let open = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = rustix::fs::open(base, open, Mode::empty()).unwrap();
    for _ in 0..depth {
        for name in ["c", "d", "e"] {
            rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)).unwrap();
        }
        at = rustix::fs::openat(&at, "d", open, Mode::empty()).unwrap();
    }
    depth * 3
}

/// `remove_dir_all` recurses, and runs out of stack or descriptors.
fn remove_deep(base: &Path) {
    while base.join("d").exists() {
        for name in ["c", "e"] {
            std::fs::remove_dir(base.join(name)).unwrap();
        }
        std::fs::rename(base.join("d"), base.join("gone")).unwrap();
        let mut next = Vec::new();
        for name in ["c", "d", "e"] {
            let from = base.join("gone").join(name);
            if from.exists() {
                std::fs::rename(&from, base.join(name)).unwrap();
                next.push(name);
            }
        }
        std::fs::remove_dir(base.join("gone")).unwrap();
    }
}

#[test]
fn a_walk_can_be_dropped_half_way() {
    for stop in [0, 1, 10, 1000] {
        let walk = Walk::new(&[PathBuf::from("/usr/share")], WalkOptions::default()).unwrap();
        assert_eq!(walk.take(stop).count(), stop);
    }
}
