//! `verify --repair`, as a person uses it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sandbox::Sandbox;

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Two repositories of the same source.
fn with_two() -> Sandbox {
    let it = Sandbox::new();
    it.tree();
    let folder = it.path("").display().to_string();
    let folder = folder.trim_end_matches('/');
    it.configure(&format!(
        "repositories = [\"main\", \"second\"]\n\n[repositories.second]\n\
         url = \"file://{folder}/second\"\nkey-file = \"second.key\"\n"
    ));
    it.good(&["init"]);
    it.good(&["backup", "data"]);
    it
}

fn damage(it: &Sandbox, part: &str) {
    let files = files_below(&it.path("repo").join(part));
    assert!(!files.is_empty(), "nothing below {part}");
    for path in files {
        let mut body = fs::read(&path).unwrap();
        let from = body.len() / 3;
        body[from..from * 2].fill(0xaa);
        fs::remove_file(&path).unwrap();
        fs::write(&path, body).unwrap();
    }
}

#[test]
fn what_is_damaged_is_repaired_from_packs_and_from_the_other_repository() {
    let it = with_two();
    // An index is made again from the packs.
    damage(&it, "index");
    assert_eq!(it.run(&["verify"]).code, 20);
    let ran = it.good(&["verify", "--repair"]);
    assert!(ran.stdout.contains("repaired the index:"), "{ran}");
    it.good(&["verify", "--level", "thorough"]);
    assert!(it.good(&["verify", "--repair"]).stdout.contains("nothing to repair"));
    // What is in no pack any more comes from the other repository.
    damage(&it, "packs");
    let ran = it.run(&["verify", "--repair"]);
    assert_eq!(ran.code, 20, "{ran}");
    assert!(ran.stdout.contains("not repaired chunk "), "{ran}");
    assert!(ran.stdout.contains("--repair-from"), "{ran}");
    let json = it.json(&["verify", "--repair-from", "second"]);
    assert_eq!(json["good"], true, "{json}");
    let verification = &json["verifications"][0];
    assert_eq!(verification["repository"], "main");
    let repair = &verification["repair"];
    let keys: Vec<&String> = repair.as_object().unwrap().keys().collect();
    let expected = ["chunks_salvaged", "fetched", "packs_removed", "repaired", "unrepaired"];
    assert_eq!(keys, expected);
    assert!(repair["fetched"].as_u64().unwrap() > 0, "{json}");
    it.good(&["verify", "--level", "thorough"]);
    it.good(&["restore", "data", "--to", "back"]);
    let before = files_below(&it.path("data"));
    assert!(!before.is_empty());
    for path in before {
        let name = path.strip_prefix(it.path("")).unwrap();
        let after = files_below(&it.path("back")).into_iter().find(|p| p.ends_with(name));
        let after = after.unwrap_or_else(|| panic!("{} is missing", name.display()));
        assert_eq!(fs::read(&path).unwrap(), fs::read(after).unwrap(), "{}", name.display());
    }
    it.good(&["maintenance"]);
}

#[test]
fn a_repair_is_of_whole_repositories_and_needs_another_one() {
    let it = Sandbox::ready();
    for arguments in [
        &["verify", "data", "--repair"][..],
        &["verify", "--repair", "--sample", "10%"],
        &["verify", "--repair-from", "nowhere"],
        &["verify", "--repair-from", "main"],
    ] {
        let ran = it.run(arguments);
        assert_eq!(ran.code, 2, "{ran}");
    }
}

/// As a person does it: a repository with parity, bad sectors, and all of it back as it was.
#[test]
fn what_bad_sectors_damage_is_restored_and_repaired_through_parity() {
    let it = Sandbox::new();
    it.tree();
    it.configure("");
    let ran = it.good(&["init", "--parity", "20%"]);
    assert!(ran.stdout.contains("Parity repairs 20 % of each object"), "{ran}");
    assert_eq!(it.json(&["parity"])["parity"], 20);
    it.good(&["backup", "data"]);
    let objects = || {
        let files = files_below(&it.path("repo")).into_iter();
        let files = files.filter(|path| !path.iter().any(|part| part == ".parity"));
        files.map(|path| (path.clone(), fs::read(path).unwrap())).collect::<Vec<_>>()
    };
    let whole = objects();
    assert!(whole.len() > 4);
    for (number, (path, body)) in whole.iter().enumerate() {
        let mut body = body.clone();
        let bad = (body.len() / 6).max(1);
        let from = (body.len() - bad) * (number % 3) / 2;
        body[from..from + bad].iter_mut().for_each(|byte| *byte = !*byte);
        fs::remove_file(path).unwrap();
        fs::write(path, body).unwrap();
    }
    let ran = it.good(&["restore", "data", "--to", "back"]);
    assert!(ran.stderr.contains("of `main` came from parity"), "{ran}");
    for path in files_below(&it.path("data")) {
        let name = path.strip_prefix(it.path("")).unwrap();
        let after = files_below(&it.path("back")).into_iter().find(|p| p.ends_with(name)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), fs::read(after).unwrap(), "{}", name.display());
    }
    let ran = it.run(&["verify"]);
    assert_eq!(ran.code, 20, "{ran}");
    assert!(ran.stdout.contains("its parity gives it back"), "{ran}");
    let ran = it.good(&["verify", "--repair"]);
    assert!(ran.stdout.contains("from its parity"), "{ran}");
    assert!(objects() == whole, "repaired bit for bit");
    it.good(&["verify", "--level", "thorough"]);

    // What a crash left without parity is no damage, and maintenance makes it.
    fs::remove_file(it.path("repo/.parity/of/format")).unwrap();
    let ran = it.good(&["verify"]);
    assert!(ran.stdout.contains("1 object without parity"), "{ran}");
    it.good(&["maintenance"]);
    assert_eq!(it.json(&["verify"])["verifications"][0]["without_parity"], 0);

    let ran = it.good(&["init", "--parity", "10%"]);
    assert!(ran.stderr.contains("its parity is left as it is"), "{ran}");
    it.good(&["parity", "off"]);
    assert!(!it.path("repo/.parity/share").exists());
    for share in ["0%", "101%", "off", "ten"] {
        assert_eq!(it.run(&["init", "--parity", share]).code, 2);
    }
}
