//! The shapes of `docs/json.md`.

use serde_json::Value;

use crate::sandbox::Sandbox;

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value}")).keys().map(String::as_str).collect()
}

#[test]
fn every_document_has_its_shape() {
    let it = Sandbox::new();
    it.tree();
    it.configure("tier = \"gold\"\n[tiers.gold]\nrto = \"1h\"\nrpo = \"1h\"\n");
    let init = it.json(&["init"]);
    assert_eq!(keys(&init), ["config", "config_written", "repositories", "sources"]);
    assert_eq!(
        keys(&init["repositories"][0]),
        ["created", "id", "key_created", "key_file", "name", "parity", "policy", "url", "writer"]
    );
    let backup = it.json(&["backup", "--all"]);
    assert_eq!(keys(&backup), ["backups", "failed"]);
    assert_eq!(
        keys(&backup["backups"][0]),
        ["repository", "seconds", "snapshot", "source", "warnings"]
    );
    let list = it.json(&["list"]);
    assert_eq!(keys(&list), ["failed", "snapshots"]);
    let snapshot = &list["snapshots"][0];
    assert_eq!(snapshot, &backup["backups"][0]["snapshot"]);
    assert_eq!(
        keys(snapshot),
        [
            "detail",
            "finished",
            "group",
            "host",
            "id",
            "kind",
            "origin",
            "parent",
            "problems",
            "repository",
            "source",
            "stats",
            "tags",
            "time",
            "type",
            "version"
        ]
    );
    assert_eq!(
        keys(&snapshot["stats"]),
        [
            "bytes",
            "bytes_read",
            "directories",
            "files",
            "files_unchanged",
            "new_bytes",
            "new_chunks",
            "stored_bytes"
        ]
    );
    let id = snapshot["id"].as_str().unwrap();
    assert_eq!(&it.json(&["show", id])["snapshot"], snapshot);
    let files = it.json(&["show", id, "--files"]);
    assert_eq!(keys(&files), ["entries", "snapshot"]);
    let entries = files["entries"].as_array().unwrap();
    let link = entries.iter().find(|entry| entry["type"] == "symlink").unwrap();
    assert_eq!(
        keys(link),
        ["gid", "group", "mode", "mtime", "path", "size", "target", "type", "uid", "user"]
    );
    it.write("data/notes.txt", "changed");
    it.good(&["backup", "data"]);
    let diff = it.json(&["diff", id, "latest"]);
    assert_eq!(
        keys(&diff),
        [
            "a",
            "added",
            "b",
            "bytes_added",
            "bytes_removed",
            "changed",
            "changed_in_metadata_only",
            "changes",
            "removed"
        ]
    );
    assert_eq!(diff["changed"], 1);
    assert_eq!(keys(&diff["changes"][0]), ["after", "before", "change", "path", "what"]);
    let find = it.json(&["find", "notes.txt"]);
    assert_eq!(
        keys(&find["found"][0]),
        ["entry", "first", "last", "repository", "snapshot", "snapshots", "source"]
    );
    let verify = it.json(&["verify"]);
    assert_eq!(keys(&verify), ["good", "verifications"]);
    assert_eq!(
        keys(&verify["verifications"][0]),
        [
            "archived",
            "bytes",
            "chunks",
            "covered",
            "damages",
            "good",
            "level",
            "objects",
            "repository",
            "seconds",
            "snapshots",
            "unread",
            "without_parity"
        ]
    );
    let restore = it.json(&["restore", "data", "--to", "back"]);
    assert_eq!(keys(&restore), ["problems", "report", "seconds", "snapshot", "target"]);
    assert_eq!(
        keys(&restore["report"]),
        [
            "bytes",
            "bytes_fetched",
            "bytes_kept",
            "bytes_written",
            "directories",
            "files",
            "lacking",
            "problems",
            "removed",
            "supplied"
        ]
    );
    let status = it.json(&["status"]);
    assert_eq!(keys(&status), ["failed", "replication", "repositories", "sources"]);
    assert_eq!(
        keys(&status["sources"][0]),
        [
            "alerts",
            "archive",
            "configured",
            "exposure_seconds",
            "kind",
            "newest",
            "repository",
            "rpo_seconds",
            "server",
            "snapshots",
            "source",
            "tier",
            "within_rpo"
        ]
    );
    assert_eq!(status["sources"][0]["within_rpo"], true);
    assert_eq!(keys(&status["repositories"][0]), ["name", "snapshots", "url", "usage"]);
    assert_eq!(
        keys(&status["repositories"][0]["usage"]),
        ["archive", "index", "other", "packs", "snapshots"]
    );
    let check = it.json(&["check"]);
    assert_eq!(keys(&check), ["checks", "good"]);
    assert_eq!(
        keys(&check["checks"][0]),
        ["hint", "message", "name", "ok", "repository", "source"]
    );
    let slots = it.json(&["key", "list"]);
    assert_eq!(keys(&slots), ["epoch", "hosts", "keys", "repository"]);
    assert_eq!(
        keys(&slots["keys"][0]),
        ["created", "current", "detail", "epoch", "id", "kind", "label"]
    );
    let host = it.json(&["key", "add", "--write-only", "--new-key-file", "web.key"]);
    assert_eq!(keys(&host), ["host", "repository"]);
    assert_eq!(keys(&host["host"]), ["created", "id", "label", "removed"]);
    let rotated = it.json(&["key", "rotate", "--same-key"]);
    assert_eq!(keys(&rotated), ["repository", "rotation"]);
    assert_eq!(keys(&rotated["rotation"]), ["epoch", "keys", "left_behind"]);
}

#[test]
fn an_error_is_one_line_on_standard_error() {
    let it = Sandbox::ready();
    for (command, kind, code) in [
        (&["list", "-r", "./nowhere", "-k", "main.key"][..], "no-repository", 10),
        (&["show", "ffffff"], "not-found", 1),
        (&["backup", "dta"], "usage", 2),
        (&["frob"], "usage", 2),
        (&["restore", "data"], "usage", 2),
        (&["--config", "nowhere", "list"], "configuration", 2),
    ] {
        let ran = it.run(&[command, &["--json"]].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{ran}");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran}");
        let document: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(document["error"]["kind"], kind, "{ran}");
        assert!(document["error"]["message"].is_string() && document["error"]["hint"].is_string());
    }
}

#[test]
fn quiet_leaves_answers_and_errors_alone() {
    let it = Sandbox::ready();
    let ran = it.good(&["backup", "data", "--quiet"]);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""), "{ran}");
    assert!(it.good(&["list", "-q"]).stdout.contains("data"));
}
