//! Looking into snapshots: folders as archives, versions of files, differences.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use backstay_testing::{FileTree, snapshot_of};

use crate::sandbox::Sandbox;

/// Unpacks what `dump` writes with the system's tar.
fn unpack(it: &Sandbox, arguments: &[&str], to: &str) {
    fs::create_dir(it.path(to)).unwrap();
    let mut dump = it.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let tar = Command::new("tar")
        .args(["-x", "-p", "--xattrs", "--xattrs-include=*", "-f", "-", "-C"])
        .arg(it.path(to))
        .stdin(dump.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    assert_eq!(String::from_utf8_lossy(&tar.stderr), "");
    assert!(dump.wait().unwrap().success());
}

#[test]
fn a_folder_is_dumped_as_an_archive_that_tar_unpacks() {
    let it = Sandbox::ready();
    let data = it.path("data");
    fs::remove_dir_all(&data).unwrap();
    FileTree::new(3).files(120).create(&data);
    let long = data.join("l".repeat(120)).join("m".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("file"), "deep down").unwrap();
    std::os::unix::fs::symlink("n".repeat(150), data.join("long link")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    let with_attributes = rustix::fs::setxattr(long.join("file"), "user.note", b"a=b\n\0", flags);
    fs::hard_link(long.join("file"), data.join("z link to deep")).unwrap();
    fs::create_dir(data.join("part")).unwrap();
    for name in ["one", "two"] {
        fs::hard_link(long.join("file"), data.join("part").join(name)).unwrap();
    }
    it.good(&["backup", "data"]);
    let below = data.strip_prefix("/").unwrap();

    unpack(&it, &["dump", "data"], "all");
    assert_eq!(snapshot_of(&data), snapshot_of(&it.path("all").join(below)));
    let about = |path: &str| it.path("all").join(below).join(path).metadata().unwrap();
    let deep = format!("{}/{}/file", "l".repeat(120), "m".repeat(200));
    assert_eq!(about(&deep).ino(), about("z link to deep").ino());
    if with_attributes.is_ok() {
        let mut value = [0; 16];
        let read = rustix::fs::getxattr(
            it.path("all").join(below).join(&deep),
            "user.note",
            &mut value[..],
        );
        assert_eq!(&value[..read.unwrap()], b"a=b\n\0");
    }

    // A part of it, of which one file has its first name elsewhere.
    let part = data.join("part");
    unpack(&it, &["dump", "data", part.to_str().unwrap()], "part");
    let found = it.path("part").join(below);
    assert_eq!(fs::read_dir(&found).unwrap().count(), 1);
    assert_eq!(snapshot_of(&part), snapshot_of(&found.join("part")));
    let number = |name: &str| found.join("part").join(name).metadata().unwrap().ino();
    assert_eq!(number("one"), number("two"));
}

#[test]
fn an_archive_that_ends_early_is_an_error() {
    let it = Sandbox::ready();
    it.good(&["backup", "data"]);
    for pack in it.files("repo/packs") {
        let mut bytes = fs::read(&pack).unwrap();
        if bytes[9] == 1 {
            let middle = bytes.len() / 3;
            bytes[middle] ^= 1;
            fs::write(&pack, bytes).unwrap();
        }
    }
    let ran = it.run(&["dump", "data"]);
    assert_eq!(ran.code, 20, "{}", ran.stderr);
    assert!(ran.stderr.contains("is damaged"), "{}", ran.stderr);
}

#[test]
fn find_shows_the_versions_and_the_snapshots_that_have_them() {
    let it = Sandbox::ready();
    let mut ids = Vec::new();
    for content in ["one", "one", "three", "", "three"] {
        let path = it.path("data/changing.txt");
        if content.is_empty() {
            fs::remove_file(&path).unwrap();
        } else if fs::read_to_string(&path).ok().as_deref() != Some(content) {
            fs::write(&path, content).unwrap();
            let time = fs::File::options().write(true).open(&path).unwrap();
            time.set_modified(
                std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000),
            )
            .unwrap();
        }
        it.good(&["backup", "data", "--type", "full"]);
        ids = it.snapshots();
    }
    let found = it.json(&["find", "CHANGING*", "-i"]);
    let spans: Vec<Vec<&str>> = found["found"]
        .as_array()
        .unwrap()
        .iter()
        .map(|version| {
            let ids = version["snapshots"].as_array().unwrap();
            assert_eq!(version["snapshot"], *ids.last().unwrap());
            ids.iter().map(|id| id.as_str().unwrap()).collect()
        })
        .collect();
    assert_eq!(spans, [vec![&*ids[0], &ids[1]], vec![&ids[2]], vec![&ids[4]]]);
    let table = it.good(&["find", "changing*"]).stdout;
    assert!(table.ends_with("\n3 versions\n"), "{table}");

    let paths = |more: &[&str]| -> Vec<String> {
        let found = it.json(&[&["find", "*", "--source", "data"], more].concat());
        let found = found["found"].as_array().unwrap();
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let mut names: Vec<String> =
            found.iter().map(|one| name(one["entry"]["path"].as_str().unwrap())).collect();
        names.dedup();
        names
    };
    assert_eq!(paths(&["--larger", "100 KiB"]), ["table.csv"]);
    assert_eq!(paths(&["--type", "symlink"]), ["link"]);
    assert_eq!(paths(&["--older", "2024-01-01T00:00:00Z"]), ["changing.txt"]);
    let young = paths(&["--newer", "2 hours ago", "--type", "file", "--smaller", "100"]);
    assert_eq!(young, ["empty", "notes.txt"]);
    let nothing = it.good(&["find", "*.nothing"]).stdout;
    assert_eq!(nothing, "Nothing like *.nothing is in any snapshot.\n");
    assert_eq!(it.run(&["find", "*", "--newer", "some day"]).code, 2);
}

#[test]
fn diff_tells_content_from_metadata() {
    let it = Sandbox::ready();
    it.write("data/mode", "same");
    it.write("data/gone", "gone");
    it.good(&["backup", "data"]);
    it.write("data/notes.txt", "something else\n");
    it.write("data/new/file", "new");
    fs::remove_file(it.path("data/gone")).unwrap();
    fs::set_permissions(it.path("data/mode"), fs::Permissions::from_mode(0o600)).unwrap();
    it.good(&["backup", "data"]);
    let ids = it.snapshots();
    let data = it.path("data").display().to_string();
    let shown = |more: &[&str]| {
        let ran = it.good(&[&["diff", &ids[0], &ids[1]], more].concat());
        ran.stdout.replace("[DIR]", "").lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let all = shown(&[]);
    let marks = |lines: &[String]| -> Vec<String> {
        let lines = lines.iter().take_while(|line| !line.is_empty());
        lines
            .map(|line| format!("{}{}", &line[..1], line.rsplit("/data/").next().unwrap()))
            .collect()
    };
    assert_eq!(
        marks(&all),
        [
            "-gone",
            ".mode  (mode)",
            "+new/",
            "+new/file",
            "~notes.txt  (content, time, 20 B → 15 B)"
        ],
        "{all:#?}"
    );
    let last = all.last().unwrap();
    assert!(last.contains("2 entries changed, of which 1 in nothing but metadata"), "{last}");
    assert_eq!(marks(&shown(&["--content"])).len(), 4);
    assert_eq!(marks(&shown(&[&format!("{data}/new")])), ["+new/", "+new/file"]);
    let document = it.json(&["diff", &ids[0], &ids[1]]);
    assert_eq!(document["changed_in_metadata_only"], 1);
    let changes = document["changes"].as_array().unwrap();
    let mode = changes.iter().find(|one| one["path"].as_str().unwrap().ends_with("/mode")).unwrap();
    assert_eq!((&mode["change"], &mode["what"]), (&"changed".into(), &serde_json::json!(["mode"])));
    assert_eq!(mode["after"]["mode"], "0600");
    let new = changes.iter().find(|one| one["change"] == "added").unwrap();
    assert!(new["before"].is_null() && new["after"].is_object());
}
