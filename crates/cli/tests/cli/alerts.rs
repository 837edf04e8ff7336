//! What `wal status`, `status` and `check` say when the log does not leave the server, or does not
//! arrive, and that they say nothing of one that is well.

use std::path::{Path, PathBuf};

use backstay_testing::{postgres, skip, wait_until};
use serde_json::Value;

use crate::sandbox::Sandbox;
use crate::serve::Archiving;

/// Exit code and document of a command.
fn asked(archiving: &Archiving, words: &[&str]) -> (i32, Value) {
    let output = archiving.command(&[words, &["--json"]].concat()).output().unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {words:?}: {}", String::from_utf8_lossy(&output.stderr))
    });
    (output.status.code().unwrap(), document)
}

/// Each name with the repository that it is about.
fn names(alerts: &Value) -> Vec<(String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let one = |alert: &Value| (text(&alert["name"]).unwrap(), text(&alert["repository"]));
    alerts.as_array().unwrap().iter().map(one).collect()
}

/// What `wal status` finds wrong; its exit code and `ok` say the same.
fn wrong(archiving: &Archiving, words: &[&str]) -> Vec<(String, Option<String>)> {
    let (code, document) = asked(archiving, &[&["wal", "status"], words].concat());
    let found = names(&document["alerts"]);
    assert_eq!(document["ok"], found.is_empty(), "{document}");
    assert_eq!(code, i32::from(!found.is_empty()), "{document}");
    found
}

fn of(name: &str, repository: Option<&str>) -> (String, Option<String>) {
    (name.to_owned(), repository.map(str::to_owned))
}

/// The object of an archived file.
fn object(repository: &Path, name: &str) -> PathBuf {
    let mut folders = vec![repository.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().contains(name) {
                return path;
            }
        }
    }
    panic!("there is no {name}");
}

#[test]
fn an_archive_that_gets_nothing_more_is_told_from_one_that_is_well() {
    let it = Sandbox::new();
    let Some(archiving) = Archiving::start(&it) else {
        skip!("no PostgreSQL of 13 to 18 is installed; run scripts/test-postgres");
    };
    let cluster = &archiving.cluster;
    assert_eq!(wrong(&archiving, &[]), [of("no-snapshot", Some("main"))]);
    archiving.good(&it, &["backup", "orders"]);
    archiving.work(1);
    assert_eq!(wrong(&archiving, &[]), []);
    let said = archiving.good(&it, &["wal", "status"]);
    assert!(said.contains("unbroken from") && said.contains("nothing waits"), "{said}");
    archiving.good(&it, &["check"]);

    let command = cluster.value("show archive_command");
    let set = |command: &str| {
        cluster.configure(&[("archive_command", command)]);
        cluster.reload();
        wait_until("it is set", 30, || cluster.value("show archive_command") == command);
    };
    set("false");
    cluster.sql("insert into t values (1)");
    cluster.switch_wal();
    let failed = || cluster.value("select failed_count > 0 from pg_stat_archiver") == "t";
    wait_until("it has failed", 60, failed);
    assert_eq!(wrong(&archiving, &[]), [of("archiver-fails", None)]);
    assert_eq!(wrong(&archiving, &["--offline"]), []);
    let (_, status) = asked(&archiving, &["status"]);
    assert_eq!(names(&status["sources"][0]["alerts"]), [of("archiver-fails", None)]);
    let text = archiving.good(&it, &["status"]);
    assert!(text.contains("alert archiver-fails: the server could not archive"), "{text}");
    let (code, check) = asked(&archiving, &["check"]);
    assert_eq!((code, &check["good"]), (1, &Value::Bool(false)), "{check}");

    set(&command);
    // A new file wakes an archiver that waits before it tries again.
    cluster.sql("insert into t values (2)");
    cluster.switch_wal();
    wait_until("it is archived after all", 120, || wrong(&archiving, &[]).is_empty());

    // A slot of a receiver that is gone, and that may hold back next to nothing.
    let limited = std::fs::read_to_string(&archiving.config).unwrap();
    std::fs::write(&archiving.config, format!("{limited}slot-limit = \"1 MiB\"\n")).unwrap();
    cluster.sql("select pg_create_physical_replication_slot('backstay_orders', true)");
    archiving.work(1);
    assert_eq!(wrong(&archiving, &[]), [of("slot-behind", None)]);
    let (_, check) = asked(&archiving, &["check"]);
    let behind = |one: &Value| one["name"] == "slot-behind" && one["ok"] == false;
    assert!(check["checks"].as_array().unwrap().iter().any(behind), "{check}");
    std::fs::write(&archiving.config, &limited).unwrap();
    assert_eq!(wrong(&archiving, &[]), []);

    // A slot of another name, of which the server then removes what it should keep.
    std::fs::write(&archiving.config, format!("{limited}slot = \"offsite\"\n")).unwrap();
    cluster.sql("select pg_create_physical_replication_slot('offsite', true)");
    let (_, document) = asked(&archiving, &["wal", "status"]);
    assert_eq!(document["server"]["watched"]["slot"]["name"], "offsite", "{document}");
    assert_eq!(wrong(&archiving, &[]), []);
    cluster.configure(&[("max_slot_wal_keep_size", "1MB")]);
    cluster.reload();
    wait_until("the server gave the slot up", 120, || {
        cluster.sql("insert into t values (3)");
        cluster.switch_wal();
        cluster.sql("checkpoint");
        let query = "select wal_status from pg_replication_slots where slot_name = 'offsite'";
        cluster.value(query) == "lost"
    });
    assert_eq!(wrong(&archiving, &[]), [of("slot-lost", None)]);
    let (_, check) = asked(&archiving, &["check"]);
    let lost = |one: &Value| one["name"] == "slot-lost" && one["ok"] == false;
    assert!(check["checks"].as_array().unwrap().iter().any(lost), "{check}");
    std::fs::write(&archiving.config, limited).unwrap();

    // One that does not answer may be what was lost: said, and no alert.
    cluster.stop();
    let (code, document) = asked(&archiving, &["wal", "status"]);
    assert_eq!((code, &document["server"]["reached"]), (0, &Value::Bool(false)), "{document}");
    let said = archiving.good(&it, &["wal", "status"]);
    assert!(said.contains("it was not asked"), "{said}");
}

#[test]
fn gaps_objectives_and_other_clusters_are_alerts() {
    let it = Sandbox::new();
    let Some(archiving) = Archiving::start(&it) else {
        skip!("no PostgreSQL of 13 to 18 is installed; run scripts/test-postgres");
    };
    let cluster = &archiving.cluster;
    archiving.good(&it, &["backup", "orders"]);
    let hole = cluster.value("select pg_walfile_name(pg_current_wal_lsn())");
    archiving.work(3);
    assert_eq!(wrong(&archiving, &[]), []);

    let plain = std::fs::read_to_string(&archiving.config).unwrap();
    let tier = "tier = \"hot\"\n[tiers.hot]\nrto = \"1h\"\nrpo = \"1s\"\n";
    std::fs::write(&archiving.config, format!("{plain}{tier}")).unwrap();
    wait_until("the newest moment is a second old", 60, || {
        wrong(&archiving, &[]) == [of("rpo", Some("main"))]
    });

    // The cluster was made anew, and nobody made a backup of it.
    let other = postgres::Cluster::builder(cluster.installation()).start();
    let elsewhere = plain
        .replace(&cluster.connection_string(), &other.connection_string())
        .replace(cluster.data().to_str().unwrap(), other.data().to_str().unwrap());
    std::fs::write(&archiving.config, elsewhere).unwrap();
    let found = wrong(&archiving, &[]);
    assert!(found.contains(&of("other-system", Some("main"))), "{found:?}");
    assert!(found.contains(&of("archiving-off", None)), "{found:?}");

    std::fs::write(&archiving.config, &plain).unwrap();
    let repository = Path::new(&archiving.config).with_file_name("repo");
    std::fs::remove_file(object(&repository, &hole)).unwrap();
    assert_eq!(wrong(&archiving, &[]), [of("gap", Some("main"))]);
    let (_, status) = asked(&archiving, &["status"]);
    assert_eq!(names(&status["sources"][0]["alerts"]), [of("gap", Some("main"))]);
    // A backup begins a window behind it.
    archiving.good(&it, &["backup", "orders"]);
    assert_eq!(wrong(&archiving, &[]), []);
}
