//! No secret is ever printed, however much is asked for.

use std::os::unix::fs::PermissionsExt;

use crate::sandbox::Sandbox;

const PASSPHRASE: &str = "correct-horse-battery";
const PASSWORD: &str = "hunter2-is-secret";

fn check(it: &Sandbox, commands: &[&[&str]]) {
    for command in commands {
        for more in [&[][..], &["-vvv"], &["--json", "-vvv"]] {
            let ran = it.run(&[command, more].concat());
            let shown = format!("{ran}");
            for secret in [PASSPHRASE, PASSWORD] {
                assert!(!shown.contains(secret), "{shown}");
            }
        }
    }
}

#[test]
fn passphrases_and_passwords_stay_out_of_all_output() {
    let it = Sandbox::new();
    it.tree();
    let text = format!(
        "[repositories.main]\nurl = \"file://{0}/repo\"\nkey-file = \"main.key\"\n\
         [sources.data]\nkind = \"files\"\npaths = [\"data\"]\n\
         [sources.db]\nkind = \"postgres\"\n\
         connection = \"host=/nowhere user=u password={PASSWORD} dbname=postgres\"\n\
         [sources.uri]\nkind = \"postgres\"\n\
         connection = \"postgres://u:{PASSWORD}@127.0.0.1:1/postgres\"\n\
         [sources.bad]\nkind = \"postgres\"\nconnection = \"host = pass = {PASSWORD} '\"\n",
        it.path("").display().to_string().trim_end_matches('/')
    );
    it.write("backstay.toml", text);
    it.good(&["init"]);
    it.good(&["backup", "data"]);
    check(
        &it,
        &[
            &["check"],
            &["backup", "db"],
            &["backup", "uri"],
            &["backup", "bad"],
            &["postgres", "setup", "db"],
            &["postgres", "setup", "uri"],
            &["postgres", "setup", "bad"],
            &["status"],
            &["show", "latest"],
            &["key", "list"],
            &["wal", "status", "db"],
        ],
    );
}

#[test]
fn a_passphrase_in_the_environment_or_of_a_command_stays_there() {
    let mut it = Sandbox::new();
    it.tree();
    let address = it.path("repo").display().to_string();
    it.variables.insert("BACKSTAY_PASSPHRASE".into(), PASSPHRASE.into());
    it.good(&["init", "--bare", "-r", &address]);
    it.good(&["backup", "./data"]);
    check(&it, &[&["check"]]);
    it.variables.insert("BACKSTAY_PASSPHRASE".into(), format!("{PASSWORD}-wrong"));
    assert_eq!(it.run(&["list"]).code, 12);
    check(&it, &[&["list"]]);
    it.variables.clear();
    it.write("pass", format!("{PASSPHRASE}\n"));
    std::fs::set_permissions(it.path("pass"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let from_file =
        format!("[repositories.main]\nurl = \"{address}\"\npassphrase-file = \"pass\"\n");
    it.write("backstay.toml", from_file);
    it.good(&["list"]);
    it.write("pass", format!("{PASSPHRASE}-wrong\n"));
    assert_eq!(it.run(&["list"]).code, 12);
    check(&it, &[&["list"]]);
    let with = |command: &str| {
        format!("[repositories.main]\nurl = \"{address}\"\npassphrase-command = {command}\n")
    };
    it.write("backstay.toml", with(&format!("[\"sh\", \"-c\", \"echo {PASSPHRASE}\"]")));
    it.good(&["list"]);
    it.write("backstay.toml", with(&format!("[\"sh\", \"-c\", \"echo {PASSPHRASE}; exit 9\"]")));
    assert_eq!(it.run(&["list"]).code, 2);
    check(&it, &[&["list"]]);
    // A mistake in the line that holds it.
    it.write("backstay.toml", with(&format!("[\"echo\", \"{PASSPHRASE}\"")));
    check(&it, &[&["list"]]);
    it.write(
        "backstay.toml",
        format!("[sources.x]\nkind = \"postgres\"\nconnection = [\"{PASSWORD}\"]\n"),
    );
    check(&it, &[&["list"]]);
}

#[test]
fn a_key_file_s_content_is_never_shown() {
    let it = Sandbox::ready();
    it.write("text.key", PASSWORD.repeat(4));
    check(&it, &[&["list", "-k", "text.key"], &["key", "add", "--new-key-file", "text.key"]]);
}
