//! Random trees and random edits: the restored incremental snapshot is the tree.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // as tests do

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use backstay_sources::BackupOptions;
use backstay_sources::files::backup;
use common::{Numbers, after, assert_restores, files, folder_in_memory, repository};
use proptest::prelude::*;
use rustix::fs::XattrFlags;

/// What happens to the tree. Indexes choose among what is there.
#[derive(Debug, Clone)]
enum Edit {
    Write { name: Vec<u8>, seed: u64, size: usize },
    Overwrite { which: usize, seed: u64, at: u64, size: usize },
    Truncate { which: usize, size: u64 },
    MakeDirectory { name: Vec<u8> },
    Link { name: Vec<u8>, target: Vec<u8> },
    HardLink { which: usize, name: Vec<u8> },
    Remove { which: usize },
    Rename { which: usize, name: Vec<u8> },
    Mode { which: usize, mode: u32 },
    Attribute { which: usize, value: Vec<u8> },
    Hole { name: Vec<u8>, size: u64, at: u64 },
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    // Bytes around the slash in order, and some that are no UTF-8.
    let byte = prop::sample::select(b"ab-.0\n \xff\x01".to_vec());
    prop::collection::vec(byte, 1..4).prop_filter("a name", |n| n != b"." && n != b"..")
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..5000_usize,
        prop::sample::select(vec![4095, 4096, 4097, 65_535, 65_536, 65_537, 262_144, 1_048_576]),
        0..2_000_000_usize,
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    let which = any::<usize>;
    prop_oneof![
        6 => (name(), any::<u64>(), size()).prop_map(|(name, seed, size)| Edit::Write { name, seed, size }),
        3 => (which(), any::<u64>(), 0..100_000_u64, 1..3000_usize)
            .prop_map(|(which, seed, at, size)| Edit::Overwrite { which, seed, at, size }),
        1 => (which(), 0..100_000_u64).prop_map(|(which, size)| Edit::Truncate { which, size }),
        4 => name().prop_map(|name| Edit::MakeDirectory { name }),
        1 => (name(), name()).prop_map(|(name, target)| Edit::Link { name, target }),
        2 => (which(), name()).prop_map(|(which, name)| Edit::HardLink { which, name }),
        2 => which().prop_map(|which| Edit::Remove { which }),
        2 => (which(), name()).prop_map(|(which, name)| Edit::Rename { which, name }),
        1 => (which(), 0..0o1000_u32).prop_map(|(which, mode)| Edit::Mode { which, mode }),
        1 => (which(), name()).prop_map(|(which, value)| Edit::Attribute { which, value }),
        1 => (name(), 1..20_000_000_u64, 0..20_000_000_u64)
            .prop_map(|(name, size, at)| Edit::Hole { name, size, at }),
    ]
}

/// Everything below, directories first, in a fixed order.
fn all(base: &Path, directories: bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![base.to_path_buf()];
    while let Some(dir) = left.pop() {
        let mut entries: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let is_directory = path.symlink_metadata().unwrap().is_dir();
            if is_directory {
                left.push(path.clone());
            }
            if is_directory == directories {
                found.push(path);
            }
        }
    }
    found
}

fn pick(paths: &[PathBuf], which: usize) -> Option<&PathBuf> {
    paths.get(which.checked_rem(paths.len())?)
}

/// Where something new goes: its name decides in which directory.
fn place(base: &Path, name: &[u8]) -> PathBuf {
    let directories = all(base, true);
    let seed: usize = name.iter().map(|byte| usize::from(*byte)).sum();
    let parent = match pick(&directories, seed) {
        Some(directory) if !seed.is_multiple_of(3) => directory.clone(),
        _ => base.to_path_buf(),
    };
    parent.join(std::ffi::OsStr::from_bytes(name))
}

/// What cannot be done in this tree is not done.
fn apply(base: &Path, edit: &Edit) {
    let files = all(base, false);
    let _ = match edit {
        Edit::Write { name, seed, size } => {
            fs::write(place(base, name), Numbers(*seed).bytes(*size))
        }
        Edit::Overwrite { which, seed, at, size } => pick(&files, *which).map_or(Ok(()), |path| {
            let file = fs::File::options().write(true).open(path)?;
            file.write_all_at(&Numbers(*seed).bytes(*size), *at)
        }),
        Edit::Truncate { which, size } => pick(&files, *which)
            .map_or(Ok(()), |path| fs::File::options().write(true).open(path)?.set_len(*size)),
        Edit::MakeDirectory { name } => fs::create_dir(place(base, name)),
        Edit::Link { name, target } => {
            symlink(std::ffi::OsStr::from_bytes(target), place(base, name))
        }
        Edit::HardLink { which, name } => {
            pick(&files, *which).map_or(Ok(()), |path| fs::hard_link(path, place(base, name)))
        }
        Edit::Remove { which } => pick(&files, *which).map_or(Ok(()), fs::remove_file),
        Edit::Rename { which, name } => {
            let every = [all(base, true), files].concat();
            pick(&every, *which).map_or(Ok(()), |path| fs::rename(path, place(base, name)))
        }
        Edit::Mode { which, mode } => {
            let every = [all(base, true), files].concat();
            // Whoever is not root must still be able to read and go on.
            let mode = mode | 0o700;
            match pick(&every, *which) {
                Some(path) if !path.is_symlink() => {
                    fs::set_permissions(path, fs::Permissions::from_mode(mode))
                }
                _ => Ok(()),
            }
        }
        Edit::Attribute { which, value } => pick(&files, *which).map_or(Ok(()), |path| {
            let flags = XattrFlags::empty();
            Ok(rustix::fs::lsetxattr(path, "user.a", value, flags)?)
        }),
        Edit::Hole { name, size, at } => fs::File::create(place(base, name)).and_then(|file| {
            file.set_len(*size)?;
            file.write_all_at(b"data", *at % size)
        }),
    };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_snapshot_of_a_tree_that_is_edited_is_the_tree(
        first in prop::collection::vec(edit(), 0..40),
        rounds in prop::collection::vec(prop::collection::vec(edit(), 0..12), 1..4),
    ) {
        let (_dir, base) = folder_in_memory();
        let tree = base.join("tree");
        fs::create_dir(&tree).unwrap();
        for edit in &first {
            apply(&tree, edit);
        }
        let repo = repository();
        let source = files(&[&tree]);
        let mut snapshot = backup(&repo, &source, &BackupOptions::default()).unwrap();
        assert_restores(&repo, &snapshot, &tree);
        for edits in &rounds {
            for edit in edits {
                apply(&tree, edit);
            }
            snapshot = backup(&repo, &source, &after(&snapshot)).unwrap();
            prop_assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
            if edits.is_empty() {
                prop_assert_eq!(snapshot.stats.bytes_read, 0);
            }
            assert_restores(&repo, &snapshot, &tree);
        }
    }
}
