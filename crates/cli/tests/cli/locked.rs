//! A repository in a directory whose files are immutable.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::sandbox::Sandbox;

/// Lets the sandbox be removed in the end, however the test ends.
struct Loosened<'a>(&'a Path);

impl Drop for Loosened<'_> {
    fn drop(&mut self) {
        let _ = Command::new("chattr").args(["-R", "-f", "-i"]).arg(self.0).status();
    }
}

#[test]
fn what_is_locked_in_a_directory_stays_whoever_removes_it() {
    let it = Sandbox::new();
    it.tree();
    it.write(
        "backstay.toml",
        format!(
            "[repositories.main]\nurl = \"file://{}/repo\"\nkey-file = \"main.key\"\n\
             lock = {{ period = \"1d\" }}\n\n[sources.data]\nkind = \"files\"\npaths = [\"data\"]\n",
            it.path("").display()
        ),
    );
    let folder = it.path("repo");
    let _loosened = Loosened(&folder);
    let init = it.run(&["init"]);
    if init.code != 0 {
        // Not every file system and not every user can.
        assert!(init.stderr.contains("immutable"), "{init}");
        return;
    }
    it.good(&["backup", "data"]);
    it.write("data/notes.txt", "what came to it\n");
    it.good(&["backup", "data"]);
    assert!(fs::remove_dir_all(&folder).is_err());

    let ids = it.snapshots();
    it.good(&["forget", &ids[0]]);
    let done = it.good(&["maintenance"]);
    assert!(done.stdout.contains("cannot go yet: locked by the store until 20"), "{done}");
    it.good(&["hold", &ids[1]]);
    let held = it.run(&["forget", "--even-newest", &ids[1]]);
    assert!(held.code != 0 && held.stderr.contains("hold"), "{held}");
    it.good(&["hold", "--release", &ids[1]]);
    it.good(&["verify", "--level", "thorough"]);
    it.good(&["restore", "data", "--to", "restored"]);
    it.good(&["check"]);
}
