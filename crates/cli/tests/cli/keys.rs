//! `backstay key`, with every kind of key, as a person uses it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::key_services::{self, ACCESS_KEY, REGION, SECRET_KEY, StandIn, VAULT_TOKEN, arn};
use crate::sandbox::{Ran, Sandbox};

const IDENTITY: &str = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
const RECIPIENT: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
const PASSPHRASE: &str = "correct-horse-battery";

fn private(it: &Sandbox, name: &str, content: &str) {
    it.write(name, content);
    fs::set_permissions(it.path(name), fs::Permissions::from_mode(0o600)).unwrap();
}

fn with_input(it: &Sandbox, arguments: &[&str], input: &str) -> Ran {
    let mut command = it.command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    it.ran(arguments, child.wait_with_output().unwrap())
}

/// The id of the only slot of a kind.
fn slot(it: &Sandbox, kind: &str) -> String {
    let list = it.json(&["key", "list"]);
    let slots = list["keys"].as_array().unwrap();
    let found: Vec<_> = slots.iter().filter(|slot| slot["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{list}");
    found[0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn an_age_identity_opens_where_nothing_else_is_left() {
    let it = Sandbox::ready();
    private(&it, "id.txt", &format!("# public key: {RECIPIENT}\n{IDENTITY}\n"));
    assert_eq!(it.run(&["list", "--identity", "id.txt"]).code, 12);
    it.good(&["key", "add", "--recipient", RECIPIENT, "--label", "in the safe"]);
    let list = it.good(&["key", "list"]);
    assert!(list.stdout.contains(RECIPIENT), "{list}");
    fs::remove_file(it.path("main.key")).unwrap();
    it.good(&["list", "--identity", "id.txt"]);
    let configured = fs::read_to_string(it.path("backstay.toml")).unwrap();
    it.write(
        "backstay.toml",
        configured.replace("key-file = \"main.key\"", "identity = \"id.txt\""),
    );
    let log = it.json(&["key", "log"]);
    let opens = |of: &serde_json::Value| of["action"] == "open" && of["kind"] == "age";
    assert!(log["records"].as_array().unwrap().iter().filter(|r| opens(r)).count() >= 2, "{log}");
    // That a use cannot be recorded keeps nobody out.
    fs::rename(it.path("repo/audit"), it.path("audit")).unwrap();
    it.write("repo/audit", "");
    let ran = it.good(&["list"]);
    assert!(ran.stderr.contains("is not recorded in the repository"), "{ran}");
    // What is no recipient or no identity says so, and repeats no secret.
    for (arguments, what) in [
        (["key", "add", "--recipient", IDENTITY], "is secret"),
        (["key", "add", "--recipient", "ssh-ed25519 AAAA"], "no age recipient"),
        (["list", "--identity", "backstay.toml", "-q"], "cannot be used"),
    ] {
        let ran = it.run(&arguments);
        assert_eq!(ran.code, 2, "{ran}");
        let shown = ran.stderr.clone();
        assert!(shown.contains(what) && !shown.contains(IDENTITY), "{ran}");
    }
}

#[test]
fn shares_are_handed_out_and_bring_the_repository_back() {
    let it = Sandbox::ready();
    it.good(&["backup", "data"]);
    let made = it.json(&["key", "escrow", "--shares", "5", "--threshold", "3", "--to", "shares"]);
    assert_eq!(made["shares"].as_array().unwrap().len(), 5);
    let file = |n: u8| format!("shares/share-{n}-of-5.txt");
    let text = |n: u8| fs::read_to_string(it.path(&file(n))).unwrap();
    assert_eq!(it.path(&file(1)).metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // Nothing is overwritten, and nothing is made in passing.
    let again = it.run(&["key", "escrow", "--shares", "5", "--threshold", "3", "--to", "shares"]);
    assert_eq!(again.code, 2, "{again}");
    let set = slot(&it, "escrow");
    fs::rename(it.path("main.key"), it.path("lost.key")).unwrap();
    let recover = |numbers: &[u8]| {
        let files: Vec<String> = numbers.iter().map(|n| file(*n)).collect();
        let mut arguments = vec!["key", "recover", "--new-key-file", "main.key"];
        files.iter().for_each(|file| arguments.extend(["--share-file", file]));
        it.run(&arguments)
    };
    let few = recover(&[1, 4]);
    assert_eq!(few.code, 2, "{few}");
    assert!(
        few.stderr.contains("1 more is missing") && few.stderr.contains("shares 1, 4"),
        "{few}"
    );
    // A wrong letter is named by its group.
    let right = text(2);
    let group = right.lines().find_map(|line| line.strip_prefix(" 11: ")).unwrap()[..5].to_owned();
    let mut wrong: Vec<char> = group.chars().collect();
    wrong[1] = if wrong[1] == 'X' { 'Y' } else { 'X' };
    let wrong: String = wrong.iter().collect();
    it.write(&file(2), right.replace(&group, &wrong));
    let mistyped = recover(&[1, 2, 3]);
    assert_eq!(mistyped.code, 2, "{mistyped}");
    assert!(mistyped.stderr.contains("group 11 of share 1 is mistyped"), "{mistyped}");
    assert!(!mistyped.stderr.contains(&wrong));
    it.write(&file(2), right);
    // No key file is left behind by an attempt that failed.
    assert!(!it.path("main.key").exists());
    let good = recover(&[5, 2, 3]);
    assert_eq!(good.code, 0, "{good}");
    it.good(&["list"]);
    // Where nothing can be added, what the shares make is a key file.
    let before = it.files("repo/keys");
    it.good(&[
        "key",
        "recover",
        "--read-only",
        "--new-key-file",
        "set.key",
        "--share-file",
        &file(1),
        "--share-file",
        &file(4),
        "--share-file",
        &file(5),
    ]);
    assert_eq!(it.files("repo/keys"), before);
    it.good(&["list", "-k", "set.key"]);
    // As typed, into a passphrase this time.
    private(&it, "phrase", PASSPHRASE);
    let typed = format!("{}\n{}\n{}", text(1), text(2).to_lowercase(), text(4));
    let ran = with_input(&it, &["key", "recover", "--new-passphrase-file", "phrase"], &typed);
    assert_eq!(ran.code, 0, "{ran}");
    // Withdrawn, they open nothing.
    it.good(&["key", "remove", &set]);
    fs::remove_file(it.path("main.key")).unwrap();
    assert_eq!(it.run(&["list", "-k", "set.key"]).code, 12);
    let late = recover(&[5, 2, 3]);
    assert_eq!(late.code, 12, "{late}");
    assert!(late.stderr.contains("was withdrawn"), "{late}");
    for nonsense in [["--shares", "2", "--threshold", "3"], ["--shares", "5", "--threshold", "1"]] {
        let mut arguments = vec!["key", "escrow", "-k", "lost.key", "--to", "others"];
        arguments.extend(nonsense);
        assert_eq!(it.run(&arguments).code, 2);
    }
    assert!(!it.path("others/share-1-of-2.txt").exists());
}

#[test]
fn a_passphrase_is_changed_and_the_old_one_opens_nothing() {
    let mut it = Sandbox::new();
    let address = it.path("repo").display().to_string();
    it.variables.insert("BACKSTAY_PASSPHRASE".into(), PASSPHRASE.into());
    it.good(&["init", "--bare", "-r", &address]);
    it.good(&["key", "add", "--new-key-file", "k"]);
    private(&it, "new", "battery-staple\nnot this line\n");
    let asked = it.run(&["key", "passwd"]);
    assert_eq!(asked.code, 2, "{asked}");
    assert!(asked.stderr.contains("nobody is there to type"), "{asked}");
    let changed = it.good(&["key", "passwd", "--new-passphrase-file", "new"]);
    assert!(changed.stderr.contains("BACKSTAY_PASSPHRASE still holds the old"), "{changed}");
    assert_eq!(it.run(&["list"]).code, 12);
    // Opened by something else, it has to be said which one is meant.
    it.variables.clear();
    let which = it.run(&["key", "passwd", "-k", "k", "--new-passphrase-file", "new"]);
    assert_eq!(which.code, 2, "{which}");
    let list = it.json(&["key", "list", "-k", "k"]);
    let slots = list["keys"].as_array().unwrap();
    assert_eq!(slots.len(), 2);
    let id = slots.iter().find(|slot| slot["kind"] == "passphrase").unwrap()["id"].clone();
    private(&it, "third", "third");
    let id = id.as_str().unwrap();
    it.good(&["key", "passwd", "-k", "k", "--slot", id, "--new-passphrase-file", "third"]);
    it.variables.insert("BACKSTAY_PASSPHRASE".into(), "third".into());
    it.good(&["list"]);
}

#[test]
fn removing_the_key_in_use_warns_and_the_last_one_stays() {
    let it = Sandbox::ready();
    it.good(&["key", "add", "--recipient", RECIPIENT]);
    let first = slot(&it, "key-file");
    let ran = it.good(&["key", "remove", &first]);
    assert!(ran.stderr.contains("was the key that it was opened with"), "{ran}");
    assert!(ran.stderr.contains("only keys for emergencies"), "{ran}");
    assert_eq!(it.run(&["list"]).code, 12);
    private(&it, "id.txt", IDENTITY);
    let last = it.json(&["key", "list", "--identity", "id.txt"])["keys"][0]["id"].clone();
    let ran = it.run(&["key", "remove", "--identity", "id.txt", last.as_str().unwrap()]);
    assert_eq!(ran.code, 2, "{ran}");
    assert!(ran.stderr.contains("is the last key slot"), "{ran}");
}

#[test]
fn a_sheet_carries_what_it_says_and_nothing_else() {
    let it = Sandbox::ready();
    it.good(&["backup", "data"]);
    assert_eq!(it.run(&["key", "sheet", "--to", "page.pdf"]).code, 2);
    it.good(&["key", "sheet", "--to", "page.txt"]);
    let page = fs::read_to_string(it.path("page.txt")).unwrap();
    let id = it.json(&["key", "list"])["keys"][0]["id"].as_str().unwrap().to_owned();
    for wanted in ["url = \"file:///", "backstay restore data --to", "recovered.key", &id] {
        assert!(page.contains(wanted), "{wanted} in {page}");
    }
    assert!(!page.contains("  1: "), "{page}");
    assert_eq!(it.run(&["key", "sheet", "--to", "page.txt"]).code, 2);
    let ran = it.good(&["key", "sheet", "--with-key", "--to", "key.txt"]);
    assert!(ran.stderr.contains("carries the key"), "{ran}");
    let page = fs::read_to_string(it.path("key.txt")).unwrap();
    let typed: Vec<&str> = page
        .lines()
        .filter(|line| line.trim_start().starts_with(['1', '6']) && line.contains(": "))
        .collect();
    let typed = typed[..4].join("\n");
    let key = fs::read(it.path("main.key")).unwrap();
    fs::remove_file(it.path("main.key")).unwrap();
    let ran = with_input(&it, &["key", "recover", "--new-key-file", "main.key"], &typed);
    assert_eq!(ran.code, 0, "{ran}");
    assert_eq!(fs::read(it.path("main.key")).unwrap(), key);
    // A page for each holder, with a code to scan.
    it.good(&["key", "sheet", "--escrow", "--shares", "3", "--threshold", "2", "--to", "s/p.html"]);
    let pages = it.files("s");
    assert_eq!(pages.len(), 3);
    for page in pages {
        let html = fs::read_to_string(&page).unwrap();
        assert!(html.contains("<svg") && html.contains("any 2 open it"), "{}", page.display());
        assert!(!html.contains("<script"));
    }
    assert_eq!(slot(&it, "escrow").len(), 16);
    let log = it.json(&["key", "log"]);
    let sheets =
        log["records"].as_array().unwrap().iter().filter(|r| r["action"] == "sheet").count();
    assert_eq!(sheets, 3, "{log}");
}

fn services(it: &mut Sandbox) -> (StandIn, StandIn) {
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_REGION", REGION),
        ("VAULT_TOKEN", VAULT_TOKEN),
    ] {
        it.variables.insert(name.into(), value.into());
    }
    (StandIn::kms(&["one", "two"]), StandIn::vault(&["backstay"]))
}

#[test]
fn a_key_in_kms_or_vault_opens_without_any_file() {
    let mut it = Sandbox::ready();
    let (kms, vault) = services(&mut it);
    it.good(&["backup", "data"]);
    let ready = fs::read_to_string(it.path("backstay.toml")).unwrap();
    // Plain HTTP is refused until it is allowed.
    let add_kms = ["key", "add", "--aws-kms", &arn("one"), "--aws-endpoint", &kms.url()];
    let add_vault = ["key", "add", "--vault", "backstay", "--vault-address", &vault.url()];
    for arguments in [&add_kms, &add_vault] {
        let ran = it.run(arguments);
        assert_eq!(ran.code, 2, "{ran}");
        assert!(ran.stderr.contains("has no TLS"), "{ran}");
    }
    it.write("backstay.toml", ready.replace("key-file", "allow-http = true\nkey-file"));
    let mut lines = Vec::new();
    for arguments in [&add_kms, &add_vault] {
        let added = it.json(arguments);
        lines.push(added["config"].as_str().unwrap().to_owned());
    }
    let list = it.good(&["key", "list"]);
    assert!(
        list.stdout.contains(&arn("one")) && list.stdout.contains("transit/backstay"),
        "{list}"
    );
    fs::remove_file(it.path("main.key")).unwrap();
    // What `key add` says is what works.
    let refusals = [
        key_services::kms_error(400, "AccessDeniedException", "no kms:Decrypt"),
        key_services::vault_error(403, "permission denied"),
    ];
    for ((line, server), refusal) in lines.iter().zip([&kms, &vault]).zip(refusals) {
        it.write("backstay.toml", ready.replace("key-file = \"main.key\"", line));
        it.good(&["list"]);
        it.good(&["verify"]);
        // Refused is not a wrong key.
        server.fail_always(Some(refusal));
        let ran = it.run(&["list"]);
        assert_eq!(ran.code, 1, "{ran}");
        assert!(ran.stderr.contains("access denied"), "{ran}");
        server.fail_always(None);
    }
    // The other key of the same account opens nothing.
    it.write(
        "backstay.toml",
        ready.replace("key-file = \"main.key\"", &lines[0].replace("key/one", "key/two")),
    );
    let ran = it.run(&["list"]);
    assert_eq!(ran.code, 12, "{ran}");
    // A repository that never had anything else.
    let other = lines[0].replace("[DIR]", "");
    let bare = format!("[repositories.kms]\nurl = \"{}\"\n{other}\n", it.path("bare").display());
    it.write("backstay.toml", bare);
    it.good(&["init"]);
    it.good(&["list"]);
    assert_eq!(it.json(&["key", "list"])["keys"][0]["kind"], "aws-kms");
}

#[test]
fn what_was_done_with_keys_is_on_record_and_an_altered_line_shows() {
    let it = Sandbox::ready();
    it.good(&["key", "add", "--recipient", RECIPIENT, "--label", "safe"]);
    fs::write(it.path("wrong.key"), [3; 32]).unwrap();
    assert_eq!(it.run(&["list", "-k", "wrong.key"]).code, 12);
    let log = it.json(&["key", "log"]);
    let record = &log["records"][0];
    assert_eq!((&record["action"], &record["kind"]), (&"add".into(), &"age".into()), "{log}");
    assert_eq!((&record["command"], &record["label"]), (&"key add".into(), &"safe".into()));
    let uses = log["local"]["uses"].as_array().unwrap();
    let seen: Vec<(&str, &str)> = uses
        .iter()
        .map(|u| (u["command"].as_str().unwrap(), u["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(seen, [("key add", "opened"), ("list", "wrong-key"), ("key log", "opened")]);
    assert_eq!(log["local"]["broken"].as_array().unwrap().len(), 0);
    let path = it.path("home/.local/state/backstay/keys.log");
    let text = fs::read_to_string(&path).unwrap();
    let without: Vec<&str> = text.lines().filter(|line| !line.contains("wrong-key")).collect();
    fs::write(&path, without.join("\n") + "\n").unwrap();
    let ran = it.good(&["key", "log"]);
    assert!(
        ran.stderr.contains("was tampered with") && ran.stderr.contains("are missing"),
        "{ran}"
    );
    // A log that cannot be written keeps nobody from restoring.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    it.good(&["list"]);
}

/// All that is printed and logged, and all that lies in the store, holds none of the secrets.
#[test]
fn no_key_is_in_any_output_log_or_object() {
    let mut it = Sandbox::ready();
    let (kms, vault) = services(&mut it);
    let ready = fs::read_to_string(it.path("backstay.toml")).unwrap();
    it.write("backstay.toml", ready.replace("key-file", "allow-http = true\nkey-file"));
    private(&it, "phrase", PASSPHRASE);
    private(&it, "id.txt", IDENTITY);
    let made = it.json(&["key", "escrow", "--shares", "3", "--threshold", "2"]);
    let share = made["shares"][0]["share"].as_str().unwrap().to_owned();
    it.write("share.txt", &share);
    let key = fs::read(it.path("main.key")).unwrap();
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let arn = arn("one");
    let (kms_url, vault_url) = (kms.url(), vault.url());
    let commands: [&[&str]; 12] = [
        &["key", "add", "--new-passphrase-file", "phrase"],
        &["key", "add", "--recipient", RECIPIENT],
        &["key", "add", "--aws-kms", &arn, "--aws-endpoint", &kms_url],
        &["key", "add", "--vault", "backstay", "--vault-address", &vault_url],
        &["key", "list"],
        &["list", "--identity", "id.txt"],
        &["key", "recover", "--share-file", "share.txt", "--new-key-file", "n.key"],
        &["key", "recover", "--share-file", "phrase", "--new-key-file", "n.key"],
        &["key", "recover", "--share-file", "id.txt", "--new-key-file", "n.key"],
        &["list", "--identity", "phrase"],
        &["key", "log"],
        &["check"],
    ];
    let secrets: Vec<&[u8]> = vec![
        &key,
        hex.as_bytes(),
        PASSPHRASE.as_bytes(),
        IDENTITY.as_bytes(),
        share.as_bytes(),
        &share.as_bytes()[24..29],
        SECRET_KEY.as_bytes(),
        VAULT_TOKEN.as_bytes(),
    ];
    let check = |what: &str, bytes: &[u8]| {
        for (n, secret) in secrets.iter().enumerate() {
            let found = bytes.windows(secret.len()).any(|window| window == *secret);
            assert!(!found, "secret {n} is in {what}");
        }
    };
    for command in commands {
        let mut verbose = command.to_vec();
        verbose.extend(["-vvv"]);
        let ran = it.run(&verbose);
        check(&ran.to_string(), ran.to_string().as_bytes());
    }
    for file in it.files("repo").into_iter().chain(it.files("home")) {
        check(&file.display().to_string(), &fs::read(&file).unwrap());
    }
}
