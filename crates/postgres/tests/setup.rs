//! Setting a server up, checking it, and getting to it with passwords and TLS.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use backstay_postgres::session::Session;
use backstay_postgres::{
    CheckItem, CheckOptions, Method, PostgresErrorKind, Source, apply_settings, check, settings,
};
use backstay_repo::{Environment, InitOptions, Repository, Secret};
use backstay_store::Store;
use backstay_testing::postgres::{Cluster, version, versions};
use backstay_testing::{own, skip};
use common::{Fixture, Shape};

fn source(connection: String) -> Source {
    Source { name: "main".to_owned(), connection, data_directory: None }
}

#[test]
fn a_server_is_set_up_for_recovery() {
    for installation in versions().iter().filter(|i| (13..=18).contains(&i.major)) {
        let cluster = Cluster::builder(installation)
            .config(&[("wal_level", "minimal"), ("max_wal_senders", "0")])
            .start();
        let source = source(cluster.connection_string());
        let command = "/opt/it's here/backstay wal push %p";
        let wanted = settings(&source, command).unwrap();
        let names: Vec<&str> = wanted.iter().map(|setting| setting.name.as_str()).collect();
        assert_eq!(names, ["wal_level", "archive_mode", "archive_command", "archive_timeout"]);
        let applied = apply_settings(&source, &wanted).unwrap();
        assert_eq!(applied.after_restart, ["wal_level", "archive_mode"]);
        cluster.restart();
        assert_eq!(cluster.value("show archive_command"), command);
        assert!(settings(&source, command).unwrap().is_empty());
    }
}

fn asking(timeout: Duration) -> CheckOptions<'static> {
    let method = Method::Auto;
    CheckOptions { method, standalone: false, archive_command: None, timeout }
}

/// It was said to fail for its data directory, which nobody needs then.
#[test]
fn a_source_over_the_wire_is_checked_over_the_wire() {
    for installation in [version(13), version(18)].into_iter().flatten() {
        let fixture = Fixture::new(&installation);
        let cluster = &fixture.cluster;
        cluster.sql("create role sends login replication");
        let mut narrow = fixture.source();
        narrow.data_directory = None;
        narrow.connection = narrow.connection.replace("user=postgres", "user=sends");
        let wire = CheckOptions { method: Method::Wire, ..asking(Duration::from_secs(60)) };
        let is_bad = |items: &[CheckItem]| -> Vec<String> {
            items.iter().filter(|item| !item.ok).map(|item| item.name.clone()).collect()
        };
        // All that a role with REPLICATION can be asked, and with a session of SQL the whole round.
        let items = check(&fixture.repo, &narrow, &wire).unwrap();
        assert!(items.iter().all(|item| item.name != "data-directory"), "{items:?}");
        let items = check(&fixture.repo, &fixture.source(), &wire).unwrap();
        assert_eq!(is_bad(&items), [""; 0], "{items:?}");
        assert!(items.iter().any(|item| item.message.contains("came back as it was")), "{items:?}");
        let items = check(&fixture.repo, &narrow, &wire).unwrap();
        assert_eq!(is_bad(&items), [""; 0], "{items:?}");

        cluster.configure(&[("archive_mode", "off")]);
        cluster.restart();
        let empty = Repository::init(
            Store::memory(),
            Environment::system(),
            &Secret::key_file([7; 32]).unwrap(),
            InitOptions::default(),
        )
        .unwrap();
        let items = check(&empty, &narrow, &wire).unwrap();
        assert_eq!(is_bad(&items), ["archive"], "{items:?}");
        for method in [Method::Wire, Method::Files] {
            let alone = CheckOptions { method, standalone: true, ..wire };
            let items = check(&empty, &fixture.source(), &alone).unwrap();
            let bad: Vec<String> =
                is_bad(&items).into_iter().filter(|name| name != "space").collect();
            assert_eq!(bad, [""; 0], "{items:?}");
        }
    }
}

#[test]
fn a_check_makes_the_whole_round() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let timeout = Duration::from_secs(60);
    let items = check(&fixture.repo, &fixture.source(), &asking(timeout)).unwrap();
    let bad: Vec<_> = items.iter().filter(|item| !item.ok && item.name != "space").collect();
    assert!(bad.is_empty(), "{bad:?}");
    for name in ["connection", "data-directory", "permissions", "settings", "archive", "clock"] {
        assert!(items.iter().any(|item| item.name == name), "{name}");
    }

    fixture.cluster.configure(&[("archive_command", "false")]);
    fixture.cluster.reload();
    let items = check(&fixture.repo, &fixture.source(), &asking(Duration::from_secs(1))).unwrap();
    let archive = items.iter().find(|item| item.name == "archive").unwrap();
    assert!(!archive.ok && archive.hint.is_some(), "{archive:?}");

    let nobody = source("host=/nonexistent port=1 user=x".to_owned());
    let items = check(&fixture.repo, &nobody, &asking(timeout)).unwrap();
    assert_eq!(items.len(), 1);
    assert!(!items[0].ok);
}

#[test]
fn a_role_without_rights_is_told_what_it_lacks() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::with(&installation, Shape::default(), &[]);
    fixture.cluster.sql("create role weak login");
    let mut source = fixture.source();
    source.connection = source.connection.replace("user=postgres", "user=weak");
    source.data_directory = Some(fixture.cluster.data().to_owned());
    let items = check(&fixture.repo, &source, &asking(Duration::from_secs(1))).unwrap();
    let item = items.iter().find(|item| item.name == "permissions").unwrap();
    assert!(item.message.contains("pg_backup_start"), "{item:?}");
    fixture.cluster.sql(
        "grant execute on function pg_backup_start(text, boolean), pg_backup_stop(boolean) to weak",
    );
    let items = check(&fixture.repo, &source, &asking(Duration::from_secs(1))).unwrap();
    assert!(items.iter().find(|item| item.name == "permissions").unwrap().ok, "{items:?}");
    // And with these rights alone it makes a backup.
    backstay_postgres::backup(&fixture.repo, &source, &fixture.options()).unwrap();
}

#[test]
fn passwords_come_from_the_password_file() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let cluster = Cluster::builder(&installation)
        .hba("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        .start();
    cluster.sql("create role keeper login superuser password 'se:cr\\et'");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgpass");
    std::fs::write(&file, format!("127.0.0.1:{}:*:keeper:se\\:cr\\\\et\n", cluster.port()))
        .unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let at = format!("host=127.0.0.1 port={} user=keeper", cluster.port());
    Session::open(&source(format!("{at} passfile={}", file.display()))).unwrap();
    Session::open(&source(format!("{at} password='se:cr\\\\et'"))).unwrap();
    let error = Session::open(&source(format!("{at} password=hunter2"))).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Connection);
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[test]
fn tls_is_as_strict_as_it_was_told_to_be() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    if Command::new("openssl").arg("version").output().is_err() {
        skip!("there is no openssl to make a certificate with");
    }
    let folder = tempfile::tempdir().unwrap();
    let made = |name: &str, subject: &str| {
        let (key, certificate) =
            (folder.path().join(format!("{name}.key")), folder.path().join(format!("{name}.crt")));
        let status = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-nodes", "-days", "2", "-subj", &format!("/CN={subject}")])
            .args(["-addext", &format!("subjectAltName=DNS:{subject}")])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .unwrap()
            .status;
        assert!(status.success());
        (key, certificate)
    };
    let (key, certificate) = made("server", "localhost");
    let (_, stranger) = made("stranger", "localhost");
    let cluster = Cluster::builder(&installation)
        .hba("local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n")
        .start();
    cluster.sql("create role keeper login password 'secret'");
    let install = |from: &Path, name: &str| {
        let to = cluster.data().join(name);
        std::fs::copy(from, &to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).unwrap();
        own(&to);
    };
    install(&key, "server.key");
    install(&certificate, "server.crt");
    cluster.configure(&[("ssl", "on")]);
    cluster.restart();
    let open = |rest: &str| {
        let at = format!("port={} user=keeper password=secret hostaddr=127.0.0.1", cluster.port());
        Session::open(&source(format!("{at} {rest}"))).map(|_| ())
    };
    let root = format!("sslrootcert={}", certificate.display());
    open("host=localhost").expect("prefer uses TLS where it is offered");
    open("host=localhost sslmode=require").unwrap();
    open(&format!("host=localhost sslmode=verify-full {root}")).unwrap();
    open(&format!("host=elsewhere sslmode=verify-ca {root}")).unwrap();
    open("host=localhost sslmode=require channel_binding=require").unwrap();
    open("host=localhost sslmode=disable").expect_err("pg_hba.conf wants TLS");
    open(&format!("host=elsewhere sslmode=verify-full {root}")).expect_err("another name");
    let strange = format!("sslrootcert={}", stranger.display());
    open(&format!("host=localhost sslmode=verify-ca {strange}")).expect_err("a stranger's");
}
