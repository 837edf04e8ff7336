//! Several repositories: one pass, copies, replication, and restoring from whichever has it.

use std::fs;

use crate::sandbox::Sandbox;

/// `main` and `offsite`, and the source `data` that goes to `goes_to`.
fn two(goes_to: &str, more: &str) -> Sandbox {
    let it = Sandbox::new();
    it.tree();
    it.write("data/large", noise(3 << 20));
    let folder = it.path("");
    let text = format!(
        "[repositories.main]\nurl = \"file://{0}repo\"\nkey-file = \"main.key\"\n\
         [repositories.offsite]\nurl = \"file://{0}two\"\nkey-file = \"two.key\"\n\
         [sources.data]\nkind = \"files\"\npaths = [\"data\"]\nrepositories = {goes_to}\n{more}",
        folder.display()
    );
    it.write("backstay.toml", text);
    it.good(&["init"]);
    it
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(step).collect()
}

const BOTH: &str = "[\"main\", \"offsite\"]";

#[test]
fn one_pass_writes_the_same_moment_to_both() {
    let it = two(BOTH, "");
    let made = it.json(&["backup", "data"]);
    let backups = made["backups"].as_array().unwrap();
    assert_eq!(backups.len(), 2);
    let (a, b) = (&backups[0]["snapshot"], &backups[1]["snapshot"]);
    assert_eq!(a["group"], b["group"]);
    assert!(a["group"].is_string());
    assert_eq!(a["time"], b["time"]);
    assert_ne!(a["id"], b["id"]);
    assert_eq!(a["origin"], serde_json::Value::Null);
}

#[test]
fn one_of_two_that_fails_is_told_and_costs_the_other_nothing() {
    let it = two(BOTH, "");
    fs::rename(it.path("two/format"), it.path("away")).unwrap();
    let ran = it.run(&["backup", "data"]);
    assert_eq!(ran.code, 3, "{ran}");
    assert!(ran.stdout.contains("1 of 2 backups done; failed: data to offsite"), "{ran}");
    let made = it.json(&["backup", "data"]);
    assert_eq!(made["backups"][0]["repository"], "main");
    assert_eq!(made["failed"][0]["repository"], "offsite");
    assert_eq!(made["failed"][0]["error"]["kind"], "no-repository");
    fs::rename(it.path("repo/format"), it.path("away-too")).unwrap();
    assert_eq!(it.run(&["backup", "data"]).code, 10);
    // What one lacks the next pass brings: both hold the newest moment again.
    fs::rename(it.path("away-too"), it.path("repo/format")).unwrap();
    fs::rename(it.path("away"), it.path("two/format")).unwrap();
    let made = it.json(&["backup", "data"]);
    assert_eq!(made["backups"].as_array().unwrap().len(), 2);
    assert_eq!(made["backups"][1]["snapshot"]["type"], "full");
}

#[test]
fn a_copy_names_its_origin_and_is_made_once() {
    let it = two("[\"main\"]", "");
    it.good(&["backup", "data"]);
    let first = it.snapshots().remove(0);
    // Without the source.
    fs::rename(it.path("data"), it.path("gone")).unwrap();
    let copied = it.json(&["copy", &first[..8], "--from", "main", "--to", "offsite"]);
    let copy = &copied["copied"][0];
    assert_eq!((&copy["new"], &copy["original"]), (&true.into(), &first.clone().into()));
    assert_eq!(copy["snapshot"]["origin"]["snapshot"], first);
    assert_eq!(copy["snapshot"]["group"], first);
    assert_eq!(copy["snapshot"]["repository"], "offsite");
    let again = it.good(&["copy", "--all", "--from", "main", "--to", "offsite"]);
    assert!(again.stdout.contains("1 snapshot of main in offsite already"), "{again}");
    it.good(&["restore", "data", "--to", "restored", "-r", "offsite"]);
    let below = it.path("restored").join(it.path("data").strip_prefix("/").unwrap());
    assert_eq!(fs::read(below.join("large")).unwrap(), noise(3 << 20));
    for (wrong, code) in [
        (&["copy", "nothing", "--from", "main", "--to", "offsite"][..], 1),
        (&["copy", "--all", "--from", "main", "--to", "main"][..], 2),
        (&["copy", "--all", "--from", "main", "--to", "ofsite"][..], 2),
        (&["copy", "--from", "main", "--to", "offsite"][..], 2),
    ] {
        let ran = it.run(wrong);
        assert_eq!(ran.code, code, "{ran}");
        assert!(ran.stderr.contains("hint: "), "{ran}");
    }
}

#[test]
fn a_replication_catches_up_and_status_shows_the_lag() {
    let more = "[replication.away]\nfrom = \"main\"\nto = \"offsite\"\n";
    let it = two("[\"main\"]", more);
    it.good(&["backup", "data"]);
    let status = it.json(&["status"]);
    let lag = &status["replication"][0];
    assert_eq!((&lag["name"], &lag["snapshots"]), (&"away".into(), &1.into()));
    assert!(lag["bytes"].as_u64().unwrap() >= 3 << 20);
    assert!(it.good(&["status"]).stdout.contains("away  main to offsite: "));
    let ran = it.json(&["replicate", "away"]);
    assert_eq!(ran["replications"][0]["copied"][0]["new"], true);
    let again = it.json(&["replicate", "--all"]);
    assert_eq!(again["replications"][0]["copied"][0]["new"], false);
    let lag = &it.json(&["status"])["replication"][0];
    assert_eq!((&lag["snapshots"], &lag["lag_seconds"]), (&0.into(), &0.into()));
    assert!(it.good(&["status"]).stdout.contains("away  main to offsite: nothing waits"));
    assert_eq!(it.run(&["replicate", "awya"]).code, 2);
}

/// What the other one's retention forgets came back with each replication.
#[test]
fn a_replication_does_not_bring_back_what_was_forgotten() {
    let it = two("[\"main\"]", "[replication.away]\nfrom = \"main\"\nto = \"offsite\"\n");
    it.good(&["backup", "data"]);
    let ran = it.json(&["replicate", "away"]);
    let id = ran["replications"][0]["copied"][0]["snapshot"]["id"].as_str().unwrap().to_owned();
    it.good(&["-r", "offsite", "forget", "--even-newest", &id]);
    assert_eq!(it.json(&["status"])["replication"][0]["snapshots"], 0);
    let ran = it.good(&["replicate", "away"]);
    assert!(
        ran.stderr.contains("1 snapshot of main left out: forgotten in offsite")
            || ran.stdout.contains("1 snapshot of main left out: forgotten in offsite"),
        "{ran}"
    );
    assert_eq!(it.json(&["replicate", "away"])["replications"][0]["forgotten"], 1);
    // A copy by hand does.
    let ran = it.json(&["copy", "--all", "--from", "main", "--to", "offsite"]);
    assert_eq!(ran["copied"][0]["new"], true);
}

#[test]
fn a_restore_takes_from_the_other_what_the_nearest_lacks() {
    let it = two(BOTH, "");
    it.good(&["backup", "data"]);
    for pack in it.files("repo/packs") {
        let mut bytes = fs::read(&pack).unwrap();
        // Data, not the tree: the tenth byte says which.
        if bytes[9] == 1 {
            for byte in bytes.iter_mut().skip(200).step_by(1000) {
                *byte ^= 1;
            }
            fs::remove_file(&pack).unwrap();
            fs::write(&pack, bytes).unwrap();
        }
    }
    let ran = it.run(&["restore", "data", "--to", "restored"]);
    assert_eq!(ran.code, 0, "{ran}");
    assert!(ran.stderr.contains("from offsite"), "{ran}");
    assert!(ran.stderr.contains("  main: packs/"), "{ran}");
    let below = it.path("restored").join(it.path("data").strip_prefix("/").unwrap());
    assert_eq!(fs::read(below.join("large")).unwrap(), noise(3 << 20));
    let report = it.json(&["restore", "data", "--to", "again"]);
    assert_eq!(report["report"]["supplied"][0]["repository"], "offsite");
    assert_eq!(report["report"]["lacking"][0]["repository"], "main");
    let path = it.path("data/large");
    let dumped = it.command(&["dump", "data", path.to_str().unwrap()]).output().unwrap();
    assert!(dumped.status.success());
    assert!(dumped.stdout == noise(3 << 20));
    // With one repository chosen, there is no other.
    assert_eq!(it.run(&["restore", "data", "--to", "alone", "-r", "main"]).code, 3);
    // Without the nearest one at all.
    fs::rename(it.path("repo"), it.path("burnt")).unwrap();
    let ran = it.run(&["restore", "data", "--to", "burnt-down"]);
    assert_eq!(ran.code, 0, "{ran}");
    assert!(ran.stderr.contains("the repository `main` was passed over"), "{ran}");
}

#[test]
fn the_order_of_restores_is_a_choice() {
    let it = two(BOTH, "");
    it.good(&["backup", "data"]);
    let of = |it: &Sandbox, to: &str| {
        it.json(&["restore", "data", "--to", to])["snapshot"]["repository"].clone()
    };
    assert_eq!(of(&it, "one"), "main");
    let text = fs::read_to_string(it.path("backstay.toml")).unwrap();
    it.write("backstay.toml", format!("restore-order = [\"offsite\"]\n{text}"));
    assert_eq!(of(&it, "two-of-them"), "offsite");
}

/// A file of the log that one repository has and another has not, or has damaged.
#[test]
fn the_log_is_fetched_from_whoever_has_it() {
    let it = two(BOTH, "");
    let fetch = |from: &[&str]| {
        let mut words = vec!["wal", "fetch", "00000002.history", "out", "--system-id", "7"];
        words.extend(["--retry-for", "0s"]);
        for name in from {
            words.extend(["--from", name]);
        }
        it.run(&words).code
    };
    assert_eq!(fetch(&["main", "offsite"]), 1);
    it.write("pg_wal/00000002.history", "1\t0/3000000\tno reason\n");
    let push = ["wal", "push", "pg_wal/00000002.history", "--system-id", "7", "-r", "offsite"];
    let text = fs::read_to_string(it.path("backstay.toml")).unwrap();
    it.good(&push);
    assert_eq!(fetch(&["main"]), 1);
    assert_eq!(fetch(&["main", "offsite"]), 0);
    assert_eq!(fs::read(it.path("out")).unwrap(), b"1\t0/3000000\tno reason\n");
    // Unknown is not absent: the one that could not be asked may have it.
    it.write("backstay.toml", text.replace("repo\"", "nowhere\""));
    assert_eq!(fetch(&["main", "offsite"]), 0);
    fs::rename(it.path("two/wal"), it.path("no-wal")).unwrap();
    assert_eq!(fetch(&["main", "offsite"]), 255);
    assert_eq!(fetch(&["offsite"]), 1);
}
