//! Hosts that may only write, and a root key that is replaced.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::sandbox::Sandbox;

/// A repository with a host, whose configuration is `host.toml`.
fn with_host() -> Sandbox {
    let it = Sandbox::ready();
    it.good(&["backup", "data"]);
    it.good(&["key", "add", "--write-only", "--new-key-file", "web.key", "--label", "web"]);
    let text = fs::read_to_string(it.path("backstay.toml")).unwrap();
    it.write("host.toml", text.replace("main.key", "web.key"));
    it
}

#[test]
fn a_host_with_a_write_only_key_adds_backups_and_reads_none() {
    let it = with_host();
    let mode = fs::metadata(it.path("web.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    it.good(&["--config", "host.toml", "backup", "data"]);
    it.write("data/new", "of today");
    it.good(&["--config", "host.toml", "backup", "data"]);
    it.good(&["--config", "host.toml", "check"]);
    for refused in [
        &["restore", "data", "--to", "out"][..],
        &["verify"],
        &["maintenance"],
        &["key", "add", "--new-key-file", "x.key"],
        &["key", "rotate", "--new-key-file", "x.key"],
    ] {
        let ran = it.run(&[&["--config", "host.toml"], refused].concat());
        assert_eq!(ran.code, 12, "{ran}");
        assert!(ran.stderr.contains("hint: "), "{ran}");
    }
    it.good(&["verify", "--level", "thorough"]);
    it.good(&["restore", "data", "--to", "out"]);
    let restored = it.path("out").join(it.path("data/new").strip_prefix("/").unwrap());
    assert_eq!(fs::read_to_string(restored).unwrap(), "of today");

    // Taken away, it adds no more, and what it added stays.
    let list = it.good(&["key", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&list.stdout).unwrap();
    let id = list["hosts"][0]["id"].as_str().unwrap().to_owned();
    it.good(&["key", "remove", &id]);
    let ran = it.run(&["--config", "host.toml", "backup", "data"]);
    assert_eq!(ran.code, 12, "{ran}");
    assert!(ran.stderr.contains("was removed"), "{ran}");
    assert_eq!(it.snapshots().len(), 3);
    // A key of a host is made, never taken from somewhere.
    let ran = it.run(&["key", "add", "--write-only", "--new-key-file", "main.key"]);
    assert_eq!(ran.code, 2, "{ran}");
    let ran = it.run(&["key", "add", "--new-key-file", "web.key"]);
    assert_eq!(ran.code, 2, "{ran}");
}

#[test]
fn the_root_key_is_replaced_and_what_it_sealed_is_sealed_anew() {
    let it = with_host();
    let old = fs::read(it.path("main.key")).unwrap();
    it.good(&["key", "rotate", "--new-key-file", "new.key", "--label", "after the leak"]);
    let ran = it.run(&["list"]);
    assert_eq!(ran.code, 12, "{ran}");
    assert!(ran.stderr.contains("left behind"), "{ran}");
    assert_eq!(fs::read(it.path("main.key")).unwrap(), old, "no key file is ever written over");
    let text = fs::read_to_string(it.path("backstay.toml")).unwrap();
    it.write("backstay.toml", text.replace("main.key", "new.key"));
    it.good(&["--config", "host.toml", "backup", "data"]);
    it.good(&["backup", "data"]);
    let dry = it.good(&["maintenance", "--dry-run"]);
    assert!(dry.stdout.contains("--reseal seals it anew"), "{dry}");
    it.good(&["maintenance", "--reseal"]);
    let dry = it.good(&["maintenance", "--dry-run"]);
    assert!(!dry.stdout.contains("--reseal"), "{dry}");
    it.good(&["verify", "--level", "thorough"]);
    it.good(&["restore", "data", "--to", "out"]);
    // The key in use can stay, where it is another one that leaked.
    it.good(&["key", "rotate", "--same-key"]);
    assert_eq!(it.snapshots().len(), 3);
    assert_eq!(it.run(&["key", "rotate"]).code, 2);
}
