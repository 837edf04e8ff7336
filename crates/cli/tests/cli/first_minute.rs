//! From nothing to a restored file.

use crate::sandbox::{Sandbox, compare};

#[test]
fn from_nothing_to_a_first_backup() {
    let it = Sandbox::new();
    let init =
        it.run(&["init", "--bare", "--config", "backstay.toml", "-r", "repo", "-k", "k/main.key"]);
    let config = std::fs::read_to_string(it.path("backstay.toml")).unwrap();
    let again = it.run(&["init"]);
    it.tree();
    let list = it.run(&["list"]);
    let status = it.run(&["status"]);
    let backup = it.run(&["backup", "./data"]);
    compare("init", &[init, again, list, status, backup]);
    assert!(config.contains("[repositories.main]"), "{config}");
    use std::os::unix::fs::PermissionsExt;
    let key = it.path("k/main.key").metadata().unwrap();
    assert_eq!((key.len(), key.permissions().mode() & 0o777), (32, 0o600));
}

#[test]
fn back_up_look_and_restore() {
    let it = Sandbox::ready();
    let mut ran = vec![it.run(&["backup", "data", "--tag", "why=test"])];
    it.write("data/notes.txt", "changed\n");
    it.write("data/new", "new\n");
    ran.push(it.run(&["backup", "--all"]));
    let ids = it.snapshots();
    let path = format!("{}/notes.txt", it.path("data").display());
    for command in [
        vec!["list"],
        vec!["list", "data", "-n", "1"],
        vec!["status"],
        vec!["show", "data"],
        vec!["diff", &ids[0], &ids[1]],
        vec!["find", "*.csv"],
        vec!["find", "*.nothing"],
        vec!["dump", "latest", &path],
        vec!["dump", &ids[0], &path],
        vec!["verify"],
        vec!["verify", "data", "--level", "thorough"],
        vec!["restore", "data", "--to", "back"],
        vec!["restore", &ids[0], &path, "--to", "one"],
        vec!["restore", "data", "--to", "back", "--delta"],
        vec!["key", "list"],
        vec!["key", "add", "--new-key-file", "second.key", "--label", "escrow"],
        vec!["list", "-k", "second.key", "-n", "1"],
        vec!["check"],
    ] {
        ran.push(it.run(&command));
    }
    compare("back_up_look_and_restore", &ran);
    let below = |folder: &str| it.path(&format!("{folder}{}", it.path("data").display()));
    let same = std::process::Command::new("diff")
        .args(["-r", "--no-dereference"])
        .args([it.path("data"), below("back")])
        .status()
        .unwrap();
    assert!(same.success());
    let one = std::fs::read_to_string(below("one").join("notes.txt")).unwrap();
    assert_eq!(one, "what has to be kept\n");
    assert!(!below("one").join("deep").exists());
}

#[test]
fn a_database_is_restored_as_it_was() {
    let it = Sandbox::new();
    it.configure("\n[sources.shop]\nkind = \"sqlite\"\npath = \"shop.db\"\n");
    it.tree();
    let database = rusqlite::Connection::open(it.path("shop.db")).unwrap();
    database.execute_batch("create table t(n); insert into t values (1), (2), (3)").unwrap();
    it.good(&["init"]);
    it.good(&["backup", "shop"]);
    database.execute_batch("delete from t").unwrap();
    it.good(&["restore", "shop", "--to", "back"]);
    let restored = it.files("back").into_iter().find(|path| path.ends_with("shop.db")).unwrap();
    let restored = rusqlite::Connection::open(restored).unwrap();
    let count: i64 = restored.query_row("select count(*) from t", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 3);
}

#[test]
fn flags_are_enough_without_a_configuration() {
    let it = Sandbox::ready();
    it.good(&["backup", "data"]);
    std::fs::remove_file(it.path("backstay.toml")).unwrap();
    let flags = ["-r", "./repo", "-k", "main.key"];
    let run = |words: &[&str]| it.run(&[words, &flags].concat());
    let ran = [
        run(&["backup", "./data/deep"]),
        run(&["list"]),
        run(&["restore", "data", "--to", "back"]),
        run(&["verify"]),
        run(&["status"]),
        it.run(&["list"]),
    ];
    compare("without_a_configuration", &ran);
}

#[test]
fn moments_choose_the_snapshot() {
    let it = Sandbox::ready();
    it.good(&["backup", "data"]);
    let first = it.json(&["list"])["snapshots"][0]["time"].as_str().unwrap().to_owned();
    it.write("data/notes.txt", "later\n");
    it.good(&["backup", "data"]);
    it.good(&["restore", "data", "--to", "first", "--at", &first]);
    let path = format!("first{}/notes.txt", it.path("data").display());
    assert_eq!(std::fs::read_to_string(it.path(&path)).unwrap(), "what has to be kept\n");
    let ran = [
        it.run(&["restore", "data", "--to", "x", "--at", "2020-01-01 00:00:00"]),
        it.run(&["restore", "data", "--to", "x", "--at", "2020-01-01"]),
        it.run(&["restore", "data", "--to", "x", "--at", "yesterday"]),
        it.run(&["restore", "data", "--to", "x", "--at", "2999-01-01 00:00:00"]),
    ];
    compare("moments", &ran);
}

#[test]
fn several_repositories_are_backed_up_to_in_one_pass() {
    let it = Sandbox::ready();
    let more = format!(
        "repositories = [\"main\", \"second\"]\n[repositories.second]\nurl = \"file://{}/two\"\n\
         key-file = \"main.key\"\n",
        it.path("").display().to_string().trim_end_matches('/')
    );
    it.configure(&more);
    let mut ran = vec![it.run(&["init"]), it.run(&["backup", "data"]), it.run(&["list"])];
    ran.push(it.run(&["list", "-r", "second"]));
    ran.push(it.run(&["status"]));
    std::fs::remove_dir_all(it.path("two")).unwrap();
    ran.push(it.run(&["backup", "data"]));
    compare("several_repositories", &ran);
}

#[test]
fn forgetting_gives_space_back() {
    let it = Sandbox::ready();
    let mut state = 7_u32;
    let mut noise = || {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..400_000).map(|_| next()).collect::<Vec<u8>>()
    };
    for _ in 0..3 {
        it.write("data/large", noise());
        it.good(&["backup", "data"]);
    }
    let ids = it.snapshots();
    let size =
        || it.json(&["status"])["repositories"][0]["usage"]["packs"]["bytes"].as_u64().unwrap();
    let before = size();
    let mut ran = vec![
        it.run(&["forget", "data"]),
        it.run(&["forget", &ids[2]]),
        it.run(&["forget", &ids[0], "--dry-run"]),
        it.run(&["forget", &ids[0], &ids[1][..8]]),
        it.run(&["forget", &ids[0]]),
        it.run(&["list"]),
    ];
    // How many packs there are is decided by lot.
    for (words, says) in [
        (&["maintenance", "--dry-run"][..], "would remove"),
        (&["maintenance"], "2 forgotten snapshots gone"),
        (&["maintenance"], "nothing to remove"),
        (&["verify", "--level", "thorough"], "good"),
    ] {
        let ran = it.good(words);
        assert!(ran.stdout.contains(says), "{ran}");
    }
    ran.push(it.run(&["forget", &ids[2], "--even-newest"]));
    assert!(it.good(&["maintenance"]).stdout.contains("the index has 0 segments"));
    ran.push(it.run(&["retention"]));
    assert!(size() < before / 10, "{before} {}", size());
    it.configure("policy = \"keep\"\n[policies.keep]\nretention = { last = 2 }\n");
    for n in 0..5 {
        it.write("data/notes.txt", format!("{n}"));
        it.good(&["backup", "data"]);
    }
    ran.push(it.run(&["retention"]));
    ran.push(it.run(&["retention", "--apply"]));
    ran.push(it.run(&["retention", "--apply", "--max-share", "100%"]));
    ran.push(it.run(&["retention"]));
    compare("forget", &ran);
}
