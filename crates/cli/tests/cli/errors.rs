//! Everything that goes wrong ends in a sentence, a hint and its exit code.

use std::fs;

use crate::sandbox::{Sandbox, compare};

#[test]
fn exit_codes_say_what_is_wrong() {
    let it = Sandbox::ready();
    it.good(&["backup", "data"]);
    fs::write(it.path("wrong.key"), [7; 32]).unwrap();
    fs::write(it.path("short.key"), [7; 5]).unwrap();
    for key in ["wrong.key", "short.key"] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(it.path(key), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let id = it.snapshots().remove(0);
    let ran = [
        it.run(&["list", "-r", "./nowhere"]),
        it.run(&["list", "-r", "./nowhere", "-k", "main.key"]),
        it.run(&["list", "-k", "wrong.key"]),
        it.run(&["list", "-k", "short.key"]),
        it.run(&["list", "-k", "nowhere.key"]),
        it.run(&["list", "-r", "mian"]),
        it.run(&["list", "-r", "ftp://x"]),
        it.run(&["list", "dta"]),
        it.run(&["backup", "dta"]),
        it.run(&["backup"]),
        it.run(&["show", "ffffffffffff"]),
        it.run(&["dump", "data", "nothing"]),
        it.run(&["dump", "data", "/nothing/there"]),
        it.run(&["restore", "data", "--to", "data"]),
        it.run(&["restore", "data", "nothing", "--to", "x"]),
        it.run(&["restore", "data", "--to", "x", "--xid", "5"]),
        it.run(&["restore", &id, "--to", "x", "--at", "1 month ago"]),
        it.run(&["postgres", "setup"]),
        it.run(&["wal", "status", "data"]),
        it.run(&["key", "remove", "zz"]),
        it.run(&["key", "remove", ""]),
        it.run(&["verify", "--level", "deep"]),
        it.run(&["frob"]),
        it.run(&["--config", "nowhere.toml", "list"]),
    ];
    compare("exit_codes", &ran);
}

#[test]
fn mistakes_in_the_configuration_are_all_shown() {
    let it = Sandbox::new();
    it.configure("exclud = []\ntier = \"gold\"\n[tiers.silver]\nrto = 5\n");
    let text = it.run(&["list"]);
    let json = it.run(&["list", "--json"]);
    it.write("backstay.toml", "[repositories.main\n");
    compare("configuration", &[text, json, it.run(&["status"])]);
}

#[test]
fn a_key_file_that_others_can_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let it = Sandbox::ready();
    fs::set_permissions(it.path("main.key"), fs::Permissions::from_mode(0o644)).unwrap();
    compare("readable_key", &[it.run(&["list"])]);
}

#[test]
fn what_cannot_be_read_is_listed_and_ends_with_3() {
    let it = Sandbox::ready();
    it.configure("exclude = []\n");
    let text = fs::read_to_string(it.path("backstay.toml")).unwrap();
    it.write("backstay.toml", text.replace("[\"data\"]", "[\"data\", \"gone\"]"));
    let ran = it.run(&["backup", "data"]);
    assert_eq!(ran.code, 3, "{ran}");
    compare("in_part", &[ran, it.run(&["list"]), it.run(&["show", "latest"])]);
}

#[test]
fn damage_ends_with_20_and_names_the_object() {
    let it = Sandbox::ready();
    it.good(&["backup", "data"]);
    for path in it.files("repo/packs") {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    for level in ["standard", "thorough"] {
        let ran = it.run(&["verify", "--level", level]);
        assert_eq!(ran.code, 20, "{ran}");
        assert!(ran.stdout.contains("packs/"), "{ran}");
        assert!(!ran.stdout.contains("panicked"), "{ran}");
    }
    let json = it.json(&["verify"]);
    assert_eq!(json["good"], false);
    assert!(!json["verifications"][0]["damages"].as_array().unwrap().is_empty());
    let restore = it.run(&["restore", "data", "--to", "back"]);
    assert!([3, 20].contains(&restore.code), "{restore}");
}

#[test]
fn a_damaged_pack_costs_the_files_in_it_and_no_other() {
    let it = Sandbox::ready();
    it.write("data/random", {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..300_000).map(|_| next()).collect::<Vec<u8>>()
    });
    it.good(&["backup", "data"]);
    let packs = it.files("repo/packs");
    let largest = packs.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(largest).unwrap();
    fs::write(largest, bytes).unwrap();
    let ran = it.run(&["restore", "data", "--to", "back"]);
    assert_eq!(ran.code, 3, "{ran}");
    for words in ["1 item could not be restored", "data/random: lost: ", "packs/"] {
        assert!(ran.stderr.contains(words), "{words}: {ran}");
    }
    let back = it.path("back").join(it.path("data").strip_prefix("/").unwrap());
    assert!(!back.join("random").exists());
    for name in ["notes.txt", "deep/table.csv", "link"] {
        assert_eq!(
            fs::read(back.join(name)).unwrap(),
            fs::read(it.path("data").join(name)).unwrap()
        );
    }
}

#[test]
fn a_database_comes_back_whole_or_not_at_all() {
    let it = Sandbox::ready();
    let sqlite = |file: &str, sql: &str| {
        let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); \
                      print(list(c.executescript(sys.argv[2]) if ';' in sys.argv[2] else c.execute(sys.argv[2]))); \
                      c.commit()";
        let output = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(it.path(file))
            .arg(sql)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    sqlite(
        "shop.db",
        "create table t (n); with recursive s(n) as (select 1 union all select n + 1 \
            from s where n < 50000) insert into t select n from s;",
    );
    it.configure("[sources.shop]\nkind = \"sqlite\"\npath = \"shop.db\"\n");
    it.good(&["backup", "shop"]);
    // A log that lies beside the file would be replayed into another state.
    it.write("back/shop.db-wal", "of another database");
    for more in [&[][..], &["--delta"], &["--delta", "--prune"]] {
        let ran = it.run(&[&["restore", "shop", "--to", "back"], more].concat());
        assert_eq!(ran.code, 2, "{ran}");
        assert!(!it.path("back/shop.db").exists());
    }
    fs::remove_file(it.path("back/shop.db-wal")).unwrap();
    it.write("back/other", "of no concern");
    it.good(&["restore", "shop", "--to", "back", "--delta"]);
    assert_eq!(it.files("back").len(), 2);
    assert_eq!(sqlite("back/shop.db", "select count(*), sum(n) from t"), "[(50000, 1250025000)]\n");
    for path in it.files("repo/packs") {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    let ran = it.run(&["restore", "shop", "--to", "other"]);
    assert_eq!(ran.code, 20, "{ran}");
    assert!(ran.stderr.contains("packs/"), "{ran}");
    assert_eq!(it.files("other"), [] as [std::path::PathBuf; 0]);
    // What is there is not touched for a database that cannot be had.
    let before = fs::read(it.path("back/shop.db")).unwrap();
    let ran = it.run(&["restore", "shop", "--to", "back", "--delta"]);
    assert_eq!(ran.code, 20, "{ran}");
    assert!(fs::read(it.path("back/shop.db")).unwrap() == before);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    use std::io::Read;
    let it = Sandbox::ready();
    it.write("data/large", vec![b'x'; 4 << 20]);
    it.good(&["backup", "data"]);
    let path = format!("{}/large", it.path("data").display());
    let mut child = it
        .command(&["dump", "data", &path])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_configuration_without_an_end_is_refused() {
    let it = Sandbox::new();
    it.write("large.toml", vec![b'#'; (4 << 20) + 1]);
    for (file, why) in [("/dev/zero", "not a regular file"), ("large.toml", "larger than 4 MiB")] {
        let ran = it.run(&["--config", file, "list"]);
        assert_eq!(ran.code, 2, "{ran}");
        assert!(ran.stderr.contains(why), "{ran}");
    }
}

#[test]
fn a_lost_repository_does_not_hide_the_others() {
    let it = Sandbox::new();
    it.tree();
    it.configure(&format!(
        "repositories = [\"main\", \"second\"]\n[repositories.second]\n\
         url = \"file://{}/second\"\nkey-file = \"main.key\"\n",
        it.path("").display()
    ));
    it.good(&["-r", "main", "init"]);
    it.good(&["-r", "second", "init"]);
    it.good(&["backup", "--all"]);
    fs::rename(it.path("repo"), it.path("gone")).unwrap();
    for command in ["list", "status"] {
        let ran = it.run(&[command]);
        assert_eq!(ran.code, 3, "{ran}");
        assert!(ran.stdout.contains("second"), "{ran}");
        assert!(ran.stderr.contains("is its disk mounted?"), "{ran}");
        assert_eq!(it.json(&[command])["failed"][0]["repository"], "main");
    }
    let ran = it.good(&["restore", "data", "--to", "out"]);
    assert!(ran.stderr.contains("`main` was passed over"), "{ran}");
    assert!(it.path("out").exists());
}
