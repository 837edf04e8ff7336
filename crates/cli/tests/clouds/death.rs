//! Whoever dies in the middle of a backup, nothing that was stored is lost, and the next one works.

use std::process::Stdio;

use backstay_store::Store;

use crate::support::servers::Running;
use crate::{in_bucket, noise, support, until_stored};

const URL: &str = "s3://backstay/repository";

#[test]
fn a_server_that_is_killed_and_comes_back_ends_no_backup() {
    let Some(mut server) = support::servers::s3() else { return };
    let options = server.options.clone();
    let sandbox = in_bucket(URL, &options, "upload-limit = \"24 MiB\"");
    sandbox.good(&["init"]);
    sandbox.good(&["backup", "data"]);
    sandbox.write("data/big", noise(80 << 20, 1));
    let store = Store::open(URL, &options).unwrap();
    let before = store.list("packs/").unwrap().len();
    let backup = sandbox
        .command(&["backup", "data"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = std::time::Instant::now();
    while store.list("packs/").unwrap().len() == before {
        assert!(started.elapsed().as_secs() < 60, "no pack is stored");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    server.kill();
    server.restart();
    let ran = sandbox.ran(&["backup", "data"], backup.wait_with_output().unwrap());
    // It went on, or it said what was the matter.
    if ran.code != 0 {
        assert_eq!(ran.code, 1, "{ran}");
        assert!(ran.stderr.contains("the store did not answer"), "{ran}");
    }
    sandbox.good(&["verify", "--level", "thorough"]);
    sandbox.good(&["backup", "data"]);
    sandbox.good(&["verify", "--level", "thorough"]);
    sandbox.good(&["restore", "data", "--to", "restored"]);
    let big = sandbox.files("restored").into_iter().find(|path| path.ends_with("data/big"));
    assert!(std::fs::read(big.unwrap()).unwrap() == noise(80 << 20, 1));
}

#[test]
fn a_client_that_is_killed_leaves_a_repository_that_is_whole() {
    if let Some(server) = support::servers::other_s3() {
        is_killed(&server, URL);
    }
    if let Some(server) = support::servers::google() {
        is_killed(&server, "gs://backstay/repository");
    }
}

fn is_killed(server: &Running, url: &str) {
    let sandbox = in_bucket(url, &server.options, "upload-limit = \"40 MiB\"");
    sandbox.good(&["init"]);
    sandbox.write("data/big", noise(64 << 20, 2));
    let store = Store::open(url, &server.options).unwrap();
    let mut backup = sandbox
        .command(&["backup", "data"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until_stored(&store, "packs/");
    backup.kill().unwrap();
    backup.wait().unwrap();
    assert_eq!(store.list("snapshots/").unwrap(), []);
    sandbox.good(&["verify", "--level", "thorough"]);
    sandbox.good(&["backup", "data"]);
    sandbox.good(&["verify", "--level", "thorough"]);
    // What the dead one left goes.
    let report = sandbox.json(&["maintenance"]);
    assert!(report["maintenance"][0]["packs_removed"].as_u64().unwrap() > 0, "{report}");
    sandbox.good(&["verify", "--level", "thorough"]);
}
