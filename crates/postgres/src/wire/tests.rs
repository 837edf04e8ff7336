//! Logging in to real servers, in every way that they let one in, and being turned away.

use std::path::{Path, PathBuf};
use std::process::Command;

use backstay_testing::postgres::{Cluster, Installation, version, versions};
use backstay_testing::{own, skip};

use super::Wire;
use crate::connection::Parameters;
use crate::session::{Session, Source, VERSIONS};
use crate::{PostgresError, Result};

fn connect(connection: &str) -> Result<Wire> {
    Wire::connect(&Parameters::new(connection)?)
}

/// An SQL session with the same words.
fn session(connection: &str) -> Result<Session> {
    Session::open(&Source {
        name: "main".to_owned(),
        connection: format!("{connection} dbname=postgres"),
        data_directory: None,
    })
}

fn refused(connection: &str) -> (String, String) {
    let error: PostgresError = connect(connection).unwrap_err();
    let all = format!("{error:?}");
    assert!(!all.contains("secret"), "{all}");
    (error.to_string(), error.hint().unwrap_or_default().to_owned())
}

/// The files of an authority, a server and a client that it signed.
struct Certificates(PathBuf);

impl Certificates {
    fn make(folder: &Path) -> Self {
        let run = |arguments: &[&str]| {
            let done =
                Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        };
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let ca = [
            "req", "-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca",
        ];
        run(&[&ca[..], &key].concat());
        for (name, subject, names) in [
            ("server", "/CN=db.example", "subjectAltName=DNS:db.example"),
            ("client", "/CN=holder", "subjectAltName=DNS:holder"),
        ] {
            let (own_key, request, signed) =
                (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"));
            let make = ["req", "-keyout", &own_key, "-out", &request, "-subj", subject];
            run(&[&make[..], &key].concat());
            std::fs::write(folder.join("names"), names).unwrap();
            run(&[
                "x509",
                "-req",
                "-in",
                &request,
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                "names",
                "-out",
                &signed,
            ]);
        }
        Self(folder.to_owned())
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

const HBA: &str = "\
local all all trust
local replication postgres trust
host all postgres 127.0.0.1/32 trust
hostssl replication scram 127.0.0.1/32 scram-sha-256
hostnossl replication plain 127.0.0.1/32 scram-sha-256
host replication md5 127.0.0.1/32 md5
host replication open 127.0.0.1/32 password
hostssl all scram 127.0.0.1/32 scram-sha-256
hostnossl all plain 127.0.0.1/32 scram-sha-256
hostssl replication holder 127.0.0.1/32 cert
";

/// A server with TLS and one user for each way to log in.
fn server(installation: &Installation) -> (Cluster, Certificates) {
    let cluster = Cluster::builder(installation).hba(HBA).create();
    let certificates = Certificates::make(&cluster.directory("certificates"));
    for name in ["server.crt", "server.key", "ca.crt"] {
        let content = std::fs::read(certificates.path(name)).unwrap();
        cluster.write(name, content);
        let path = cluster.data().join(name);
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        own(&path);
    }
    cluster.configure(&[
        ("ssl", "on"),
        ("ssl_cert_file", "server.crt"),
        ("ssl_key_file", "server.key"),
        ("ssl_ca_file", "ca.crt"),
    ]);
    cluster.start();
    for user in ["scram", "plain", "open", "holder"] {
        cluster.sql(&format!("create role {user} login replication password 'secret'"));
    }
    cluster.sql(
        "set password_encryption = 'md5'; create role md5 login replication password 'secret'",
    );
    cluster.sql("create role weak login password 'secret'");
    (cluster, certificates)
}

#[test]
fn every_version_says_who_it_is_and_what_it_is_set_to() {
    let found: Vec<_> =
        versions().into_iter().filter(|found| VERSIONS.contains(&found.major)).collect();
    if found.is_empty() {
        skip!("no PostgreSQL is installed");
    }
    for installation in found {
        let cluster = Cluster::builder(&installation).start();
        let mut wire = connect(&cluster.connection_string()).unwrap();
        assert_eq!(wire.major(), installation.major);
        assert!(!wire.in_recovery().unwrap());
        assert_eq!(wire.show("wal_segment_size").unwrap(), "16MB");
        let answers = wire.query("identify the system", "IDENTIFY_SYSTEM").unwrap();
        let system = answers[0].rows[0].text(0).unwrap();
        let expected = cluster.value("select system_identifier from pg_control_system()");
        assert_eq!(system, expected);
        // A refused query leaves the connection as it was.
        let error = wire.show("no_such_setting").unwrap_err();
        assert!(error.to_string().contains("no_such_setting"), "{error}");
        assert_eq!(wire.show("block_size").unwrap(), "8192");
    }
}

#[test]
fn a_login_is_encrypted_checked_and_bound_as_asked_or_refused_with_a_hint() {
    let Some(installation) = version(15).or_else(|| version(18)) else {
        skip!("neither PostgreSQL 15 nor 18 is installed");
    };
    let (cluster, certificates) = server(&installation);
    let port = cluster.port();
    let ca = certificates.path("ca.crt");
    let named = format!("host=db.example hostaddr=127.0.0.1 port={port} sslrootcert={ca}");
    let bare = format!("host=127.0.0.1 port={port}");

    // Encrypted, the name checked, the login bound to the connection.
    let full = format!("{named} sslmode=verify-full channel_binding=require password=secret");
    connect(&format!("{full} user=scram")).unwrap();
    for mode in ["allow", "prefer", "require"] {
        connect(&format!("{bare} sslmode={mode} user=scram password=secret")).unwrap();
        session(&format!("{bare} sslmode={mode} user=scram password=secret")).unwrap();
        // Without a name there is the address.
        session(&format!(
            "hostaddr=127.0.0.1 port={port} sslmode={mode} user=scram password=secret"
        ))
        .unwrap();
    }
    // Plain where the server wants it so, also after TLS was refused.
    for mode in ["disable", "allow", "prefer"] {
        connect(&format!("{bare} sslmode={mode} user=plain password=secret")).unwrap();
        session(&format!("{bare} sslmode={mode} user=plain password=secret")).unwrap();
    }
    for mode in ["require", "disable"] {
        let user = if mode == "require" { "plain" } else { "scram" };
        let error = session(&format!("{bare} sslmode={mode} user={user} password=secret"));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("no pg_hba.conf entry"), "{mode}: {error}");
    }
    connect(&format!("{bare} user=md5 password=secret")).unwrap();
    let (cert, key) = (certificates.path("client.crt"), certificates.path("client.key"));
    let holder = format!("{named} sslmode=verify-full user=holder sslcert={cert} sslkey={key}");
    connect(&holder).unwrap();

    // The password by TLS only.
    connect(&format!("{bare} sslmode=require user=open password=secret")).unwrap();
    let (said, hint) = refused(&format!("{bare} sslmode=disable user=open password=secret"));
    assert!(said.contains("in plain"), "{said}");
    assert!(hint.contains("sslmode=require"), "{hint}");

    // Whoever wants it bound sends nothing else, be the password right or wrong.
    for user in ["md5", "open"] {
        for password in ["secret", "wrong"] {
            let with = full.replace("password=secret", &format!("password={password}"));
            let (said, hint) = refused(&format!("{with} user={user}"));
            assert!(said.contains("cannot be bound"), "{said}");
            assert!(hint.contains("scram-sha-256"), "{hint}");
        }
    }
    let (said, hint) = refused(&format!("{bare} sslmode=require user=scram password=wrong"));
    assert!(said.contains("password authentication failed"), "{said}");
    assert!(hint.contains("PGPASSWORD"), "{hint}");
    let (said, hint) = refused(&format!("{bare} sslmode=disable user=scram password=secret"));
    assert!(said.contains("no pg_hba.conf entry"), "{said}");
    assert!(hint.contains("`replication`"), "{hint}");
    let wrong_name = format!(
        "host=localhost hostaddr=127.0.0.1 port={port} sslmode=verify-full sslrootcert={ca} \
         user=scram password=secret"
    );
    let (said, hint) = refused(&wrong_name);
    assert!(said.contains("localhost"), "{said}");
    assert!(hint.contains("sslmode=verify-ca"), "{hint}");
    connect(&wrong_name.replace("verify-full", "verify-ca")).unwrap();
    let other = Certificates::make(&cluster.directory("others"));
    let (said, hint) = refused(&full.replace(&ca, &other.path("ca.crt")));
    assert!(said.contains("no encrypted connection"), "{said}");
    assert!(hint.contains("sslrootcert"), "{hint}");
    let none = format!("host={} port={port} user=weak", cluster.socket().display());
    let (said, _) = refused(&none);
    assert!(said.contains("pg_hba.conf"), "{said}");

    // Nobody is there, or somebody else.
    let (said, hint) = refused("host=127.0.0.1 port=1 user=x");
    assert!(said.contains("127.0.0.1 port 1"), "{said}");
    assert!(hint.contains("host and port"), "{hint}");
    // The second host is taken where the first does not answer.
    let wire = connect(&format!(
        "host=127.0.0.1,127.0.0.1 port=1,{port} sslmode=require user=scram password=secret \
         target_session_attrs=primary"
    ));
    assert_eq!(wire.unwrap().place(), format!("127.0.0.1 port {port}"));
    let several = session(&format!(
        "host=127.0.0.1,127.0.0.1 port=1,{port} user=scram password=secret \
         target_session_attrs=prefer-standby"
    ));
    assert_eq!(several.unwrap().place(), format!("127.0.0.1 port {port}"));
    let standby = "user=scram password=secret target_session_attrs=standby";
    let error = session(&format!("{bare} {standby}")).unwrap_err().to_string();
    assert!(error.contains("the primary, not a standby"), "{error}");
    let (said, hint) = refused(&format!("{bare} sslmode=require {standby}"));
    assert!(said.contains("the primary, not a standby"), "{said}");
    assert!(hint.contains("target_session_attrs"), "{hint}");

    // TLS that cannot be agreed on: who only prefers it goes without.
    cluster.configure(&[
        ("ssl_min_protocol_version", "TLSv1"),
        ("ssl_max_protocol_version", "TLSv1.1"),
    ]);
    cluster.restart();
    connect(&format!("{bare} user=plain password=secret")).unwrap();
    session(&format!("{bare} user=plain password=secret")).unwrap();
    let (said, _) = refused(&format!("{bare} sslmode=require user=scram password=secret"));
    assert!(said.contains("no encrypted connection"), "{said}");
    session(&format!("{bare} sslmode=require user=scram password=secret")).unwrap_err();

    cluster.configure(&[("ssl", "off")]);
    cluster.restart();
    let (said, hint) = refused(&format!("{bare} sslmode=require user=scram password=secret"));
    assert!(said.contains("has no TLS"), "{said}");
    assert!(hint.contains("ssl = on"), "{hint}");
}
