//! Data in a cloud's archive, and packs in parts, as a user meets them.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_store::Store;

use crate::support::proxy::{Harm, Proxy};
use crate::{in_bucket, noise, support};

const URL: &str = "s3://backstay/repository";

#[test]
fn data_in_an_archive_is_fetched_before_it_is_restored() {
    let Some(server) = support::servers::other_s3() else { return };
    let class = "storage-class = { data = \"GLACIER\" }";
    let sandbox = in_bucket(URL, &server.options, class);
    sandbox.good(&["init"]);
    sandbox.write("data/big", noise(3 << 20, 1));
    sandbox.good(&["backup", "data"]);
    // Nothing that does not need the content asks for it.
    let [snapshot] = sandbox.snapshots().try_into().unwrap();
    assert!(sandbox.good(&["find", "**/big"]).stdout.contains("data/big"));
    sandbox.write("data/new", "new\n");
    sandbox.good(&["backup", "data"]);
    sandbox.good(&["verify", "--level", "basic"]);
    sandbox.good(&["maintenance"]);

    // What cannot be read is unknown, and not damaged.
    let verify = sandbox.run(&["verify", "--level", "standard"]);
    assert_eq!(verify.code, 3, "{verify}");
    assert!(verify.stdout.contains("whether they are good is unknown"), "{verify}");
    let verify = sandbox.json(&["verify", "--level", "thorough"]);
    assert_eq!(verify["good"], true, "{verify}");
    assert!(!verify["verifications"][0]["unread"].as_array().unwrap().is_empty(), "{verify}");

    let restore = sandbox.run(&["restore", &snapshot, "--to", "restored"]);
    assert_eq!(restore.code, 1, "{restore}");
    assert!(restore.stderr.contains("lie in an archive of the store"), "{restore}");
    assert!(restore.stderr.contains("--delta --thaw"), "{restore}");
    assert!(restore.stderr.contains("backstay thaw"), "{restore}");
    assert!(!sandbox.files("restored").iter().any(|path| path.ends_with("data/big")));

    let look = sandbox.json(&["thaw", &snapshot, "--dry-run"]);
    assert_eq!(look["all_ready"], false, "{look}");
    assert!(look["asked"].as_u64().unwrap() > 0, "{look}");
    assert!(look["bytes_waiting"].as_u64().unwrap() >= 3 << 20, "{look}");
    let again = sandbox.json(&["thaw", &snapshot, "--dry-run"]);
    assert_eq!(look["asked"], again["asked"], "a dry run asked for something");

    let asked = sandbox.run(&["thaw", &snapshot, "--tier", "bulk", "--days", "2"]);
    assert_eq!(asked.code, 3, "{asked}");
    assert!(asked.stdout.contains("asked for"), "{asked}");
    let started = std::time::Instant::now();
    loop {
        let ran = sandbox.run(&["thaw", &snapshot]);
        if ran.code == 0 {
            assert!(ran.stdout.contains("can be read until 20"), "{ran}");
            break;
        }
        assert_eq!(ran.code, 3, "{ran}");
        assert!(started.elapsed().as_secs() < 30, "{ran}");
    }
    sandbox.good(&["restore", &snapshot, "--to", "restored", "--delta"]);
    let big = sandbox.files("restored").into_iter().find(|path| path.ends_with("data/big"));
    assert!(std::fs::read(big.unwrap()).unwrap() == noise(3 << 20, 1));
}

/// One command waits, another one restores by itself; a cluster's files are not special here.
#[test]
fn what_a_restore_needs_is_waited_for() {
    let Some(server) = support::servers::other_s3() else { return };
    let class = "storage-class = { data = \"archive\", rest = \"hot\" }";
    let sandbox = in_bucket(URL, &server.options, class);
    sandbox.good(&["init"]);
    sandbox.write("data/big", noise(3 << 20, 1));
    sandbox.good(&["backup", "data"]);
    let first = sandbox.snapshots()[0].clone();

    // A way on which nothing that is asked for gets there: it is on its way for ever.
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let stuck = Proxy::start(server.options.endpoint.as_deref().unwrap(), move |line| {
        let asks = line.starts_with("POST") && line.contains("?restore");
        asks.then(|| {
            count.fetch_add(1, Ordering::SeqCst);
            Harm::Refused(409, "RestoreAlreadyInProgress")
        })
    });
    let config = std::fs::read_to_string(sandbox.path("backstay.toml")).unwrap();
    let endpoint = server.options.endpoint.clone().unwrap();
    sandbox.write("backstay.toml", config.replace(&endpoint, &stuck.url()));
    let ran = sandbox.run(&["thaw", &first, "--wait", "--timeout", "2s"]);
    assert_eq!(ran.code, 3, "{ran}");
    assert!(ran.stdout.contains("can be read"), "{ran}");
    let ran = sandbox.run(&["restore", &first, "--to", "late", "--thaw", "--thaw-timeout", "2s"]);
    assert_eq!(ran.code, 1, "{ran}");
    assert!(ran.stderr.contains("what was asked for goes on"), "{ran}");
    assert!(!sandbox.files("late").iter().any(|path| path.ends_with("data/big")));

    // Who waits can stop.
    let packs = asked.swap(0, Ordering::SeqCst);
    sandbox.run(&["thaw", &first]);
    let each = asked.swap(0, Ordering::SeqCst);
    assert!(packs > each && each > 0, "it did not ask again: {packs} and {each}");
    let mut child = sandbox
        .command(&["thaw", &first, "--wait"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = std::time::Instant::now();
    while asked.load(Ordering::SeqCst) < 2 * each {
        assert!(started.elapsed().as_secs() < 60, "it does not wait");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("what was asked for goes on"), "{said}");

    // And on a way that works it ends by itself.
    sandbox.write("backstay.toml", config);
    let ran = sandbox.json(&["thaw", &first, "--wait", "--timeout", "60s"]);
    assert_eq!(ran["all_ready"], true, "{ran}");
    assert!(ran["asked"].as_u64().unwrap() > 0, "{ran}");
    sandbox.good(&["restore", &first, "--to", "restored"]);

    sandbox.write("data/big", noise(3 << 20, 7));
    sandbox.good(&["backup", "data"]);
    sandbox.good(&["restore", "data", "--to", "newest", "--thaw", "--thaw-tier", "bulk"]);
    for (folder, seed) in [("restored", 1), ("newest", 7)] {
        let big = sandbox.files(folder).into_iter().find(|path| path.ends_with("data/big"));
        assert!(std::fs::read(big.unwrap()).unwrap() == noise(3 << 20, seed), "{folder}");
    }
}

#[test]
fn the_parts_that_a_dead_backup_left_are_removed() {
    let Some(server) = support::servers::s3() else { return };
    let sandbox = in_bucket(URL, &server.options, "parts-above = \"5 MiB\"");
    sandbox.good(&["init"]);
    sandbox.write("data/big", noise(30 << 20, 2));
    let status = sandbox
        .command(&["backup", "data"])
        .env("BACKSTAY_FAILPOINT", "upload-part-sent")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(9), "{status}");
    let store = Store::open(URL, &server.options).unwrap();
    let left = || store.unfinished_uploads("packs/").unwrap().unwrap().len() as u64;
    let before = left();
    assert!(before > 0);
    // It may be at work for all that anybody knows.
    let report = sandbox.json(&["maintenance", "--give-up-after", "2h"]);
    let removed =
        |report: &serde_json::Value| report["maintenance"][0]["uploads_removed"].as_u64().unwrap();
    let at_once = removed(&report);
    assert!(at_once == 0 || at_once == before, "{report}");
    let ran = sandbox.json(&["maintenance", "--give-up-after", "0s"]);
    assert_eq!(at_once + removed(&ran), before, "{ran}");
    assert_eq!(left(), 0);
    // And the next backup, in parts too, is whole.
    sandbox.good(&["backup", "data"]);
    sandbox.good(&["verify", "--level", "thorough"]);
    sandbox.good(&["restore", "data", "--to", "restored"]);
    let big = sandbox.files("restored").into_iter().find(|path| path.ends_with("data/big"));
    assert!(std::fs::read(big.unwrap()).unwrap() == noise(30 << 20, 2));
    assert_eq!(left(), 0);
}
