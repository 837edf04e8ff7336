//! The program under test, as it is run by a person and by a server.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The path of the built `backstay`, with the profile of the running test: built first where it is
/// missing or older than the code. It lies where the user that servers run as may execute it,
/// because `archive_command` does.
pub fn backstay_bin() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| reachable(&build())).clone()
}

fn build() -> PathBuf {
    // target/debug/deps/<test>-<hash>: its profile is the one that everything else has too.
    let test = std::env::current_exe().unwrap_or_else(|error| panic!("my own path: {error}"));
    let profile = test
        .ancestors()
        .find(|folder| folder.join("deps").is_dir() && folder.join("build").is_dir())
        .unwrap_or_else(|| panic!("no build folder above {}", test.display()));
    let binary = profile.join("backstay");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // `cargo test --workspace` has built it already, and to build it alone can mean to build its
    // dependencies once more, with the features that it alone asks of them.
    if let Ok(built) = binary.metadata().and_then(|metadata| metadata.modified())
        && !changed_since(built, &workspace)
    {
        return binary;
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace).args(["build", "--quiet", "--package", "backstay", "--bin"]);
    cargo.arg("backstay");
    if profile.file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    if let Some(target) = profile.parent() {
        cargo.env("CARGO_TARGET_DIR", target);
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("starting cargo: {error}"));
    assert!(status.success(), "building backstay failed");
    assert!(binary.is_file(), "cargo built no {}", binary.display());
    binary
}

/// Whether any code of the workspace is younger than `time`.
fn changed_since(time: SystemTime, workspace: &Path) -> bool {
    let mut waiting = vec![workspace.join("Cargo.toml"), workspace.join("Cargo.lock")];
    let crates = std::fs::read_dir(workspace.join("crates")).into_iter().flatten().flatten();
    for krate in crates.map(|entry| entry.path()) {
        // Not its tests: they are not in the program.
        waiting.extend([krate.join("Cargo.toml"), krate.join("build.rs"), krate.join("src")]);
    }
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = path.metadata() else { continue };
        if metadata.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            waiting.extend(entries.map(|entry| entry.path()));
        } else if metadata.modified().map_or(true, |modified| modified > time) {
            return true;
        }
    }
    false
}

/// The binary itself, or a copy in the folder for temporary files where a folder above it is closed
/// to other users (root's home, say) and servers run as one of these.
fn reachable(binary: &Path) -> PathBuf {
    let open = binary.ancestors().skip(1).all(|folder| {
        folder.as_os_str().is_empty()
            || folder.metadata().is_ok_and(|metadata| metadata.mode() & 0o001 != 0)
    });
    if open || crate::server_user().is_none() {
        return binary.to_path_buf();
    }
    let metadata =
        binary.metadata().unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
    let name = format!("backstay-bin-{}-{}", metadata.mtime(), metadata.mtime_nsec());
    let folder = std::env::temp_dir().join(name);
    let copy = folder.join("backstay");
    if !copy.is_file() {
        let copied = std::fs::create_dir_all(&folder).and_then(|()| {
            // Several test processes may do this at once: each writes its own, the last one wins.
            let mine = folder.join(format!("backstay.{}", std::process::id()));
            std::fs::copy(binary, &mine)?;
            std::fs::rename(&mine, &copy)
        });
        copied.unwrap_or_else(|error| panic!("copying {}: {error}", binary.display()));
    }
    copy
}
