//! Trees of files and small file systems.

use std::io::Write as _;

use backstay_testing::{FileTree, Space, skip, snapshot_of};

#[test]
fn the_same_seed_makes_the_same_tree() {
    let folder = tempfile::tempdir().unwrap();
    let made = |name: &str, seed| {
        let root = folder.path().join(name);
        let files = FileTree::new(seed).files(120).create(&root);
        assert_eq!(files.len(), 120);
        snapshot_of(&root)
    };
    let (one, same, other) = (made("one", 7), made("same", 7), made("other", 8));
    assert_eq!(one, same);
    assert_ne!(one, other);
    let has = |word: &str| one.values().any(|what| what.starts_with(word));
    assert!(has("directory") && has("link") && has("pipe") && has("file of 0 bytes"));
}

#[test]
fn a_small_file_system_runs_full() {
    let Some(space) = Space::new(4) else {
        skip!("mounting a tmpfs is not allowed here");
    };
    assert!(space.free() <= 4 << 20);
    let mut file = std::fs::File::create(space.path().join("file")).unwrap();
    let error = (0..).find_map(|_| file.write_all(&[1; 1 << 16]).err()).unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    let path = space.path().to_path_buf();
    drop(space);
    assert!(!path.exists());
}

#[test]
fn the_built_program_says_who_it_is() {
    let mut command = std::process::Command::new(backstay_testing::backstay_bin());
    if let Some(user) = backstay_testing::server_user() {
        std::os::unix::process::CommandExt::uid(&mut command, user.uid);
    }
    assert!(command.arg("--version").output().is_ok());
}
