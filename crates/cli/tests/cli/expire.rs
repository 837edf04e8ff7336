//! What becomes of the log of a real server when its policy says how far back every moment stays
//! restorable.

use std::collections::BTreeSet;

use backstay_testing::{backstay_bin, postgres, skip, wait_until};
use serde_json::Value;

use crate::sandbox::Sandbox;
use crate::serve::Archiving;

/// The segments in the archive of the only repository.
fn segments(archiving: &Archiving) -> BTreeSet<String> {
    let repository = std::path::Path::new(&archiving.config).with_file_name("repo");
    let mut found = BTreeSet::new();
    let mut folders = vec![repository.join("wal")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.len() == 24 {
                found.insert(name);
            }
        }
    }
    found
}

fn json(archiving: &Archiving, words: &[&str]) -> Value {
    let output = archiving.command(&[words, &["--json"]].concat()).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {words:?}: {}", String::from_utf8_lossy(&output.stderr))
    })
}

#[test]
fn old_snapshots_keep_the_log_that_makes_them_consistent_and_no_more() {
    let it = Sandbox::new();
    let Some(archiving) = Archiving::start(&it) else {
        skip!("no PostgreSQL of 13 to 18 is installed; run scripts/test-postgres");
    };
    let cluster = &archiving.cluster;
    let plain = std::fs::read_to_string(&archiving.config).unwrap();
    let policy = |archive: &str| {
        let text = format!(
            "{plain}policy = \"p\"\n[policies.p]\nretention = {{ last = 9, archive = \"{archive}\" }}\n"
        );
        std::fs::write(&archiving.config, text).unwrap();
    };
    archiving.work(1);
    // Three snapshots, with log between them.
    for _ in 0..3 {
        archiving.good(&it, &["backup", "orders"]);
        archiving.work(3);
    }
    let listed = json(&archiving, &["list"]);
    let details: Vec<Value> =
        listed["snapshots"].as_array().unwrap().iter().map(|one| one["detail"].clone()).collect();
    let range = |at: usize| {
        let text = |key: &str| details[at][key].as_str().unwrap().to_owned();
        text("start_segment")..=text("stop_segment")
    };
    let before = segments(&archiving);

    // All that the oldest one can be recovered along stays, whatever is older goes.
    policy("30d");
    let would = json(&archiving, &["retention"]);
    assert_eq!(segments(&archiving), before, "{would}");
    let done = json(&archiving, &["retention", "--apply"]);
    assert_eq!(would["logs"][0]["removed"], done["logs"][0]["removed"]);
    let expected: BTreeSet<String> =
        before.iter().filter(|name| *name >= range(0).start()).cloned().collect();
    assert!(expected.len() < before.len());
    assert_eq!(segments(&archiving), expected, "{done}");

    // Only the last moments count: what lies between the older ones goes.
    policy("1s");
    wait_until("the newest of the archive is a second younger than the last snapshot", 60, || {
        archiving.work(1);
        let would = json(&archiving, &["retention"]);
        would["logs"][0]["removed"].as_u64().unwrap() >= 4
    });
    let before = segments(&archiving);
    let done = json(&archiving, &["retention", "--apply"]);
    let expected: BTreeSet<String> = before
        .iter()
        .filter(|&name| {
            range(0).contains(name) || range(1).contains(name) || name >= range(2).start()
        })
        .cloned()
        .collect();
    assert_eq!(segments(&archiving), expected, "{done}");
    // Nothing is wrong with that, and every snapshot comes back, the newest to the end.
    let status = json(&archiving, &["wal", "status"]);
    assert_eq!(status["ok"], true, "{status}");
    assert_eq!(status["archives"][0]["windows"].as_array().unwrap().len(), 3, "{status}");
    let ids: Vec<&str> =
        listed["snapshots"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    let rows = cluster.value("select count(*) from t").parse::<u64>().unwrap();
    let restored = |id: &str, more: &[&str]| {
        let to = cluster.directory("restored").join(id);
        let words = [&["restore", id, "--to", to.to_str().unwrap()], more].concat();
        let mut command = cluster.command_at(backstay_bin());
        let output = command.args(["--config", &archiving.config]).args(&words).output().unwrap();
        let ran = it.ran(&words, output);
        assert_eq!(ran.code, 0, "{ran}");
        let copy = postgres::Cluster::adopt(cluster.installation(), &to)
            .config(&[("archive_mode", "off")])
            .start();
        wait_until("it is up", 60, || copy.value("select pg_is_in_recovery()") == "f");
        copy.value("select count(*) from t").parse::<u64>().unwrap()
    };
    assert_eq!(restored(ids[0], &["--immediate"]), 1000);
    assert_eq!(restored(ids[1], &["--immediate"]), 4000);
    assert_eq!(restored(ids[2], &[]), rows);
}
