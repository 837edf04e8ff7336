//! SIGINT and SIGTERM.

use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::sandbox::Sandbox;

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
}

/// A configuration whose passphrase takes for ever, and says when somebody waits for it.
fn waiting() -> Sandbox {
    let it = Sandbox::new();
    let text = format!(
        "[repositories.main]\nurl = \"file://{0}/repo\"\n\
         passphrase-command = [\"sh\", \"-c\", \"echo $$ > waiting; exec sleep 600\"]\n\
         [sources.data]\nkind = \"files\"\npaths = [\"data\"]\n",
        it.path("").display().to_string().trim_end_matches('/')
    );
    it.write("backstay.toml", text);
    it
}

#[test]
fn a_signal_ends_what_waits_with_130() {
    for sent in [Signal::INT, Signal::TERM] {
        let it = waiting();
        // What the passphrase's command inherits would stay open after the program itself.
        let quiet = || Stdio::null();
        let mut child = it.command(&["list"]).stdout(quiet()).stderr(quiet()).spawn().unwrap();
        let pid = || std::fs::read_to_string(it.path("waiting")).ok()?.trim().parse::<i32>().ok();
        backstay_testing::wait_until("it waits for its passphrase", 60, || pid().is_some());
        signal(&child, sent);
        let status = child.wait().unwrap();
        kill_process(Pid::from_raw(pid().unwrap()).unwrap(), Signal::KILL).unwrap();
        assert_eq!(status.code(), Some(130));
    }
}

#[test]
fn a_backup_that_is_stopped_ends_with_130_and_leaves_no_snapshot() {
    let it = Sandbox::ready();
    // A named pipe among the files would be skipped; a slow store is slow enough.
    let text = std::fs::read_to_string(it.path("backstay.toml")).unwrap();
    it.write("backstay.toml", text.replace("[sources", "upload-limit = \"1 MiB\"\n[sources"));
    for file in 0..8_u64 {
        let mut state = file.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let bytes: Vec<u8> = (0..8 << 20)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect();
        it.write(&format!("data/random-{file}"), bytes);
    }
    let child = it
        .command(&["backup", "data"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    backstay_testing::wait_until("the backup is at work", 60, || {
        it.path("repo/sessions").is_dir() && !it.files("repo/sessions").is_empty()
    });
    signal(&child, Signal::INT);
    let ran = it.ran(&["backup", "data"], child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{ran}");
    assert!(ran.stderr.starts_with("error: "), "{ran}");
    assert!(it.snapshots().is_empty());
    // And nothing is in the way of the next one.
    it.write("backstay.toml", text);
    it.good(&["backup", "data"]);
    it.good(&["verify", "--level", "thorough"]);
}
