use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const WHOLE: &str = r#"
workers = 4

[repositories.main]
url = "file:///var/backups/backstay"
key-file = "/etc/backstay/main.key"

[repositories.offsite]
url = "s3://bucket/prefix"
passphrase-command = ["pass", "show", "backstay"]

[sources.orders]
kind = "postgres"
connection = "host=/var/run/postgresql user=postgres"
data-directory = "/var/lib/postgresql/15/main"
repositories = ["main", "offsite"]
tier = "critical"
policy = "databases"

[sources.etc]
kind = "files"
paths = ["/etc", "/srv/app/config"]
exclude = ["*.sock"]
repositories = ["main"]

[sources.shop]
kind = "sqlite"
path = "/srv/app/shop.db"
repositories = ["main"]

[sources.lake]
kind = "lake"
url = "file:///data/lake"
layers = ["bronze", "silver", "gold"]
repositories = ["main"]

[tiers.critical]
rto = "1h"
rpo = "5m"

[policies.databases]
full = "0 2 * * 0"
incremental = "0 2 * * 1-6"
verify = { level = "standard", schedule = "0 6 * * *" }
drill = { schedule = "0 7 1 * *" }
retention = { last = 4, daily = 7, weekly = 5, monthly = 12, yearly = 7, archive = "7d" }
"#;

fn search(variables: &[(&str, &str)]) -> Search {
    Search {
        variables: variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        current: PathBuf::from("/work"),
        system: PathBuf::from("/etc/backstay"),
        ..Search::default()
    }
}

fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config> {
    Config::read(text, Some(Path::new("/c/backstay.toml")), &search(variables))
}

/// Every mistake, each as "message / hint".
fn mistakes(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let Err(error) = read(text, variables) else { return Vec::new() };
    assert_eq!(error.kind(), ErrorKind::Configuration);
    std::iter::once(&error)
        .chain(error.also())
        .map(|e| format!("{e} / {}", e.hint().unwrap_or("")))
        .collect()
}

const MAIN: &str = "[repositories.main]\nurl = \"/b\"\n";

#[test]
fn the_example_of_the_design_reads() {
    let config = read(WHOLE, &[]).unwrap();
    assert_eq!(config.global.workers, 4);
    let names: Vec<_> = config.sources.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["orders", "etc", "shop", "lake"], "in the order of the file");
    let orders = config.source("orders").unwrap();
    assert_eq!(config.tier_of(orders).unwrap().rpo, Duration::from_secs(300));
    let policy = config.policy_of(orders).unwrap();
    assert_eq!(policy.full.as_ref().unwrap().as_str(), "0 2 * * 0");
    assert_eq!(policy.verify.as_ref().unwrap().level, VerifyLevel::Standard);
    assert_eq!(policy.retention.as_ref().unwrap().monthly, Some(12));
    assert_eq!(config.repositories_of(orders).unwrap().len(), 2);
    assert!(matches!(&orders.settings, SourceSettings::Postgres(p) if p.fast_checkpoint));
}

#[test]
fn an_unknown_key_names_its_line_and_the_nearest_one() {
    let text = format!("{MAIN}[sources.etc]\nkind = \"files\"\npaths = [\"/etc\"]\nexclud = []\n");
    assert_eq!(
        mistakes(&text, &[]),
        [
            "unknown key `exclud` in [sources.etc] (/c/backstay.toml, line 6) / did you mean `exclude`?"
        ]
    );
    assert_eq!(
        mistakes("[repositry.main]\nurl = \"/b\"\n", &[]),
        ["unknown key `repositry` (/c/backstay.toml, line 1) / did you mean `repositories`?"]
    );
}

#[test]
fn a_key_of_another_kind_says_so() {
    let text = format!("{MAIN}[sources.shop]\nkind = \"sqlite\"\npath = \"/x\"\nlayers = []\n");
    assert_eq!(
        mistakes(&text, &[]),
        ["unknown key `layers` in [sources.shop] (/c/backstay.toml, line 6) / \
          it belongs to sources of kind lake, and this is sqlite"]
    );
}

#[test]
fn all_mistakes_are_found_at_once() {
    let text = "workers = \"many\"\n[repositories.main]\nkey-fil = \"x\"\n[tiers.t]\nrto = 5\n";
    assert_eq!(
        mistakes(text, &[]),
        [
            "`workers` takes a whole number, not a text (/c/backstay.toml, line 1) / \
             write a whole number there",
            "`repositories.main.url` is missing (/c/backstay.toml, line 2) / \
             add `url = \"file:///var/backups/backstay\"`",
            "unknown key `key-fil` in [repositories.main] (/c/backstay.toml, line 3) / \
             did you mean `key-file`?",
            "`tiers.t.rto` takes a length of time such as \"5m\", not a number \
             (/c/backstay.toml, line 5) / write a length of time such as \"5m\" there",
            "`tiers.t.rpo` is missing (/c/backstay.toml, line 4) / add `rpo = \"5m\"`",
        ]
    );
}

#[test]
fn names_that_lead_nowhere_are_mistakes() {
    let text = format!(
        "{MAIN}[sources.a]\nkind = \"sqlite\"\npath = \"/x\"\nrepositories = [\"mian\"]\n\
         tier = \"gold\"\npolicy = \"nightly\"\n[policies.weekly]\n"
    );
    assert_eq!(
        mistakes(&text, &[]),
        [
            "`sources.a.repositories` names the repository `mian`, which is not configured \
             (/c/backstay.toml, line 6) / did you mean `main`?",
            "`sources.a.tier` names the tier `gold`, which is not configured \
             (/c/backstay.toml, line 7) / add a [tiers.gold]",
            "`sources.a.policy` names the policy `nightly`, which is not configured \
             (/c/backstay.toml, line 8) / add a [policies.nightly], or name one of `weekly`",
        ]
    );
}

#[test]
fn a_source_has_to_choose_among_several_repositories() {
    let text = "[repositories.a]\nurl = \"/a\"\n[repositories.b]\nurl = \"/b\"\n\
                [sources.s]\nkind = \"sqlite\"\npath = \"/x\"\n";
    assert_eq!(
        mistakes(text, &[]),
        ["[sources.s] does not say where it is backed up to (/c/backstay.toml, line 5) / \
          add `repositories = [\"a\", \"b\"]`"]
    );
}

#[test]
fn values_that_cannot_be_used_say_why() {
    let text = "[repositories.a]\nurl = \"ftp://x\"\ncompression = \"gzip\"\n\
                [policies.p]\nfull = \"at noon\"\nverify = { level = \"deep\", sample = \"0%\" }\n\
                retention = {}\n[sources.s]\nkind = \"postgre\"\n";
    let found = mistakes(text, &[]);
    let expected = [
        "`repositories.a.url` cannot be used: there is no store for `ftp://`",
        "`repositories.a.compression` cannot be used: \"gzip\" is no compression",
        "`policies.p.full` cannot be used: \"at noon\" is no schedule",
        "`policies.p.verify.level` cannot be used: \"deep\" is no level",
        "`policies.p.verify.sample` cannot be used: \"0%\" is no share",
        "did you mean \"postgres\"?",
    ];
    for text in expected {
        assert!(found.iter().any(|m| m.contains(text)), "{text:?} is not in {found:#?}");
    }
    let found = mistakes("[policies.p]\nretention = {}\n", &[]);
    assert!(found[0].contains("would keep no snapshot"), "{found:?}");
}

#[test]
fn broken_toml_names_its_line() {
    let found = mistakes("[repositories.main]\nurl = \n", &[]);
    assert!(found[0].contains("(/c/backstay.toml, line 2)"), "{found:?}");
}

#[test]
fn variables_weigh_more_than_the_file() {
    let variables = [
        ("BACKSTAY_WORKERS", "7"),
        ("BACKSTAY_REPOSITORIES_MAIN_KEY_FILE", "other.key"),
        ("BACKSTAY_SOURCES_ETC_PATHS", "/a, /b"),
        ("BACKSTAY_SOURCES_ETC_TAGS", "team=x,env=prod"),
        ("BACKSTAY_POLICIES_DATABASES_VERIFY_LEVEL", "thorough"),
        ("BACKSTAY_SOURCES_ORDERS_FAST_CHECKPOINT", "no"),
    ];
    let config = read(WHOLE, &variables).unwrap();
    assert_eq!(config.global.workers, 7);
    let main = config.repository("main").unwrap();
    assert_eq!(main.keys.key_file.as_deref(), Some(Path::new("/work/other.key")));
    let etc = config.source("etc").unwrap();
    assert_eq!(etc.common.tags["env"], "prod");
    let SourceSettings::Files(files) = &etc.settings else { panic!() };
    assert_eq!(files.paths, [PathBuf::from("/a"), PathBuf::from("/b")]);
    let policy = &config.policies["databases"];
    assert_eq!(policy.verify.as_ref().unwrap().level, VerifyLevel::Thorough);
    let orders = config.source("orders").unwrap();
    assert!(matches!(&orders.settings, SourceSettings::Postgres(p) if !p.fast_checkpoint));
}

#[test]
fn variables_alone_can_configure() {
    let variables = [
        ("BACKSTAY_REPOSITORIES_OFF_SITE_URL", "s3://b/p"),
        ("BACKSTAY_REPOSITORIES_OFF_SITE_PASSPHRASE_FILE", "/p"),
        ("BACKSTAY_SOURCES_SHOP_KIND", "sqlite"),
        ("BACKSTAY_SOURCES_SHOP_PATH", "/x.db"),
    ];
    let config = read("", &variables).unwrap();
    assert_eq!(config.repositories[0].name, "off-site");
    assert_eq!(config.repositories[0].keys.passphrase_file, Some(PathBuf::from("/p")));
    assert_eq!(config.sources[0].name, "shop");
}

#[test]
fn a_variable_that_is_wrong_is_named() {
    assert_eq!(
        mistakes(MAIN, &[("BACKSTAY_WORKERS", "many")]),
        ["`workers` takes a whole number of 0 or more, not \"many\" \
          (environment variable BACKSTAY_WORKERS) / write digits alone"]
    );
    let found = mistakes(MAIN, &[("BACKSTAY_TIERS_GOLD_RTOO", "1h")]);
    assert!(found[0].starts_with("BACKSTAY_TIERS_GOLD_RTOO ends in no key of [tiers]"));
}

#[test]
fn flags_weigh_most() {
    let mut config = read(WHOLE, &[("BACKSTAY_REPOSITORIES_MAIN_KEY_FILE", "/env.key")]).unwrap();
    let flags = RepositoryFlags {
        repository: Some("main".into()),
        key_file: Some(PathBuf::from("flag.key")),
        identity: None,
    };
    config.apply(&flags, &search(&[])).unwrap();
    let chosen = config.default_repository().unwrap();
    assert_eq!(chosen.keys.key_file.as_deref(), Some(Path::new("/work/flag.key")));
    let orders = config.source("orders").unwrap();
    assert_eq!(config.repositories_of(orders).unwrap().len(), 1);
    // Whichever way was configured, the flag's is the only one.
    let flags = RepositoryFlags { key_file: None, identity: Some("id.txt".into()), ..flags };
    config.apply(&flags, &search(&[])).unwrap();
    let keys = &config.default_repository().unwrap().keys;
    assert_eq!(keys.identity.as_deref(), Some(Path::new("/work/id.txt")));
    assert_eq!((&keys.key_file, &keys.aws_kms, &keys.vault), (&None, &None, &None));
}

#[test]
fn services_that_keep_keys_are_tables_and_one_way_among_others() {
    let with = |keys: &str, variables: &[(&str, &str)]| {
        read(&format!("[repositories.main]\nurl = \"/b\"\n{keys}"), variables)
    };
    let config = with("aws-kms = { key = \"alias/b\", region = \"eu-west-1\" }", &[]).unwrap();
    let kms = config.repositories[0].keys.aws_kms.clone().unwrap();
    assert_eq!((kms.key.as_str(), kms.region.as_deref()), ("alias/b", Some("eu-west-1")));
    let variables = [
        ("BACKSTAY_REPOSITORIES_MAIN_VAULT_KEY", "b"),
        ("BACKSTAY_REPOSITORIES_MAIN_VAULT_TOKEN_FILE", "/t"),
    ];
    let config = with("", &variables).unwrap();
    let vault = config.repositories[0].keys.vault.clone().unwrap();
    assert_eq!((vault.key.as_str(), vault.mount.as_str()), ("b", "transit"));
    assert_eq!(vault.token_file.as_deref(), Some(Path::new("/t")));
    let error = with("vault = { mount = \"t\" }", &[]).unwrap_err();
    assert!(error.to_string().contains("`repositories.main.vault.key` is missing"), "{error}");
    let error = with("key-file = \"k\"\nvault = { key = \"b\" }", &[]).unwrap_err();
    assert!(error.to_string().contains("says `key-file` and `vault`"), "{error}");
    let error = with("aws-kms = { key = \"b\", secret = \"x\" }", &[]).unwrap_err();
    assert!(error.to_string().contains("unknown key `secret`"), "{error}");
}

#[test]
fn a_repository_that_only_flags_speak_of() {
    let mut config = read("", &[]).unwrap();
    assert!(config.default_repository().is_err());
    let flags = RepositoryFlags {
        repository: Some("./b".into()),
        key_file: Some(PathBuf::from("/k")),
        identity: None,
    };
    config.apply(&flags, &search(&[])).unwrap();
    let chosen = config.default_repository().unwrap();
    assert_eq!(chosen.keys.url.0, "file:///work/b");
    assert_eq!(chosen.keys.key_file.as_deref(), Some(Path::new("/k")));

    let mut config = read(WHOLE, &[]).unwrap();
    let flags =
        RepositoryFlags { repository: Some("ofsite".into()), key_file: None, identity: None };
    let error = config.apply(&flags, &search(&[])).unwrap_err();
    assert_eq!(error.hint(), Some("did you mean `offsite`?"));
}

#[test]
fn relative_paths_start_in_the_folder_of_the_file() {
    let text = format!("{MAIN}key-file = \"main.key\"\n");
    let config = read(&text, &[]).unwrap();
    assert_eq!(config.repositories[0].keys.key_file, Some(PathBuf::from("/c/main.key")));
}

#[test]
fn a_repository_is_opened_in_one_way() {
    let text = format!("{MAIN}key-file = \"k\"\npassphrase-file = \"p\"\n");
    let found = mistakes(&text, &[]);
    assert!(found[0].contains("says `key-file` and `passphrase-file`"), "{found:?}");
}

#[test]
fn a_file_that_is_named_has_to_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut it = search(&[("BACKSTAY_CONFIG", "nowhere.toml")]);
    it.current = folder.path().to_path_buf();
    it.system = folder.path().join("etc");
    let error = Config::load(&it).unwrap_err();
    assert!(error.to_string().ends_with("nowhere.toml is not there, and BACKSTAY_CONFIG names it"));

    it.variables.clear();
    assert_eq!(Config::load(&it).unwrap().file, None);
    std::fs::create_dir(&it.system).unwrap();
    std::fs::write(it.system.join("backstay.toml"), MAIN).unwrap();
    assert_eq!(Config::load(&it).unwrap().file, Some(it.system.join("backstay.toml")));
    std::fs::write(it.current.join("backstay.toml"), MAIN).unwrap();
    assert_eq!(Config::load(&it).unwrap().file, Some(it.current.join("backstay.toml")));
}

#[test]
fn a_password_in_a_file_that_others_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backstay.toml");
    let text = format!(
        "{MAIN}[sources.db]\nkind = \"postgres\"\nconnection = \"postgres://u:hunter2@h/db\"\n"
    );
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut it = search(&[]);
    it.flag = Some(file.clone());
    let config = Config::load(&it).unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert!(!format!("{:?}", config.warnings).contains("hunter2"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(Config::load(&it).unwrap().warnings.is_empty());
}

#[test]
fn the_reference_page_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let wanted = reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == wanted, "docs/configuration.md is old: run this test with UPDATE_DOCS=1");
}

#[test]
fn a_replication_names_what_there_is() {
    let text = "restore-order = [\"mian\"]\n[repositories.main]\nurl = \"file:///r\"\nkey-file = \"/k\"\n\
                [replication.away]\nfrom = \"main\"\nto = \"off\"\nsources = [\"orders\"]\n\
                [replication.home]\nfrom = \"main\"\nto = \"main\"\n";
    assert_eq!(
        mistakes(text, &[]),
        [
            "`replication.away.to` names the repository `off`, which is not configured \
             (/c/backstay.toml, line 7) / add a [repositories.off]",
            "`replication.away.sources` names the source `orders`, which is not configured \
             (/c/backstay.toml, line 8) / add a [sources.orders]",
            "`replication.home` copies `main` to itself (/c/backstay.toml, line 11) / name two \
             different repositories",
            "`restore-order` names the repository `mian`, which is not configured \
             (/c/backstay.toml) / add a [repositories.mian], or leave it out",
        ]
    );
}

#[test]
fn every_example_of_the_reference_can_be_used() {
    use super::declare::Key;
    fn lines(keys: &[Key]) -> String {
        // One way to open a repository excludes the others.
        let skip = ["passphrase-file", "passphrase-command", "identity", "aws-kms", "vault"];
        keys.iter()
            .filter(|key| !skip.contains(&key.name().as_str()) && key.field != "kind")
            .map(|key| format!("{} = {}\n", key.name(), key.example))
            .collect()
    }
    let mut text = lines(GlobalKeys::KEYS);
    text += &format!("[repositories.main]\n{}", lines(RepositoryKeys::KEYS));
    text += &format!("[repositories.offsite]\n{}", lines(RepositoryKeys::KEYS));
    text += "[sources.orders]\nkind = \"files\"\npaths = [\"/a\"]\nrepositories = [\"main\"]\n";
    text += &format!("[replication.away]\n{}", lines(ReplicationKeys::KEYS));
    text += &format!("[tiers.critical]\n{}", lines(TierKeys::KEYS));
    text += &format!("[policies.databases]\n{}", lines(PolicyKeys::KEYS));
    for kind in SourceKind::ALL {
        text += &format!("[sources.{kind}]\nkind = \"{kind}\"\n{}", lines(SourceKeys::KEYS));
        text += &lines(read::keys_of(kind));
    }
    assert_eq!(mistakes(&text, &[]), Vec::<String>::new());
    let tables = [("aws-kms", AwsKmsKeys::KEYS), ("vault", VaultKeys::KEYS)];
    for key in RepositoryKeys::KEYS.iter().filter(|key| key.name() != "url") {
        let one = format!("{} = {}\n", key.name(), key.example);
        let text = format!("[repositories.main]\nurl = \"/b\"\n{one}");
        assert_eq!(mistakes(&text, &[]), Vec::<String>::new());
    }
    for (name, keys) in tables {
        let text = format!("[repositories.main]\nurl = \"/b\"\n[repositories.main.{name}]\n");
        assert_eq!(mistakes(&(text + &lines(keys)), &[]), Vec::<String>::new());
    }
}

proptest! {
    /// Whatever a file and a variable hold, the answer is a configuration or a sentence.
    #[test]
    fn no_file_panics(text in "\\PC{0,200}", value in "\\PC{0,20}") {
        let _ = read(&text, &[("BACKSTAY_SOURCES_A_PATHS", &value)]);
    }

    /// A value of the wrong type anywhere is a mistake with a place, never a panic.
    #[test]
    fn wrong_types_have_a_place(line in 0_usize..45, wrong in prop::sample::select(vec![
        "3.5", "true", "[]", "{}", "1979-05-27", "[[1]]", "{ a = 1 }",
    ])) {
        let mut lines: Vec<String> = WHOLE.lines().map(str::to_owned).collect();
        let index = line % lines.len();
        let Some((key, _)) = lines[index].clone().split_once(" = ").map(|(k, v)| (k.to_owned(), v.to_owned())) else {
            return Ok(());
        };
        lines[index] = format!("{key} = {wrong}");
        for mistake in mistakes(&lines.join("\n"), &[]) {
            prop_assert!(mistake.contains("/c/backstay.toml, line "), "{}", mistake);
        }
    }
}
