//! Restores that are more or less than a cluster: its configuration, a standby, a manifest, some of
//! its databases.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use backstay_postgres::restore::Running;
use backstay_postgres::wal::RecoveryTarget;
use backstay_postgres::{PostgresErrorKind, StartOptions, backup};
use backstay_testing::postgres::{Cluster, Installation, version, versions};
use backstay_testing::{own, skip, wait_until};
use common::{Fixture, Shape};

/// Those that are supported, or a skip.
fn supported() -> Vec<Installation> {
    versions().into_iter().filter(|i| (13..=18).contains(&i.major)).collect()
}

/// A started server, stopped also when the test fails.
struct Started(Option<Running>);

impl Started {
    fn query(&self, database: &str, query: &str) -> String {
        let running = self.0.as_ref().unwrap();
        let connection = format!("{} user=postgres dbname={database}", running.connection());
        let mut client = postgres::Client::connect(&connection, postgres::NoTls).unwrap();
        client.query_one(query, &[]).unwrap().get(0)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            let _ = running.stop();
        }
    }
}

fn sandbox(installation: &Installation) -> StartOptions {
    StartOptions {
        bin_dir: Some(installation.bin.clone()),
        sandbox: true,
        ..StartOptions::default()
    }
}

/// Moves the configuration of the cluster to where Debian has it, with files that it includes.
fn move_configuration(fixture: &Fixture) -> std::path::PathBuf {
    let (data, etc) = (fixture.cluster.data(), fixture.cluster.directory("etc"));
    fixture.cluster.stop();
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::copy(data.join(name), etc.join(name)).unwrap();
        fs::remove_file(data.join(name)).unwrap();
    }
    fs::create_dir(etc.join("conf.d")).unwrap();
    fs::write(etc.join("conf.d/memory.conf"), "work_mem = '7MB'\n").unwrap();
    fs::write(etc.join("start.conf"), "auto\n").unwrap();
    fs::write(etc.join("unrelated"), "not of this server\n").unwrap();
    let path = etc.join("postgresql.conf");
    let text = fs::read_to_string(&path).unwrap();
    let more = format!(
        "include_dir 'conf.d'\ndata_directory = '{}'\nhba_file = '{2}/pg_hba.conf'\n\
         ident_file = '{2}/pg_ident.conf'\n{1}",
        data.display(),
        "max_connections = 55\n",
        etc.display()
    );
    fs::write(&path, text + &more).unwrap();
    let hba = fs::read_to_string(etc.join("pg_hba.conf")).unwrap();
    fs::write(etc.join("pg_hba.conf"), hba + "# rules of the house\n").unwrap();
    own(&etc);
    etc
}

#[test]
fn configuration_outside_the_data_directory_is_backed_up_and_restored() {
    let all = supported();
    if all.is_empty() {
        skip!("no PostgreSQL is installed; run scripts/test-postgres");
    }
    for installation in all.iter().filter(|i| [13, 15, 18].contains(&i.major)) {
        let fixture = Fixture::new(installation);
        fixture.cluster.sql("create table t as select generate_series(1, 100) i");
        let etc = move_configuration(&fixture);
        let server = Cluster::adopt(installation, fixture.cluster.data())
            .config(&[("config_file", &etc.join("postgresql.conf").to_string_lossy())])
            .start();
        assert_eq!(server.value("show work_mem"), "7MB");
        let mut source = fixture.source();
        source.connection = server.connection_string();
        let made = backup(&fixture.repo, &source, &fixture.options()).unwrap();
        assert!(made.snapshot.problems.is_empty() && made.warnings.is_empty(), "{made:?}");
        let mut found: Vec<(&str, &str)> = made
            .detail
            .configuration
            .iter()
            .map(|file| (file.setting.as_str(), file.path.rsplit('/').next().unwrap()))
            .collect();
        found.sort();
        assert_eq!(
            found,
            [
                ("beside", "start.conf"),
                ("config_file", "postgresql.conf"),
                ("hba_file", "pg_hba.conf"),
                ("ident_file", "pg_ident.conf"),
                ("include", "memory.conf"),
            ]
        );
        fixture.archived(&server);
        let original = fs::read(etc.join("postgresql.conf")).unwrap();
        server.stop();
        fs::rename(&etc, etc.with_extension("gone")).unwrap();

        let mut options = fixture.restoring("restored", RecoveryTarget::Latest);
        options.start = Some(sandbox(installation));
        let restored = fixture.restore(&made.snapshot, &options);
        let note = restored.notes.join("\n");
        assert!(note.contains("backstay-config") && note.contains("pg_hba.conf"), "{note}");
        let aside = options.to.join("backstay-config").join(etc.strip_prefix("/").unwrap());
        assert_eq!(fs::read(aside.join("postgresql.conf")).unwrap(), original);
        assert!(aside.join("conf.d/memory.conf").exists());
        let rules = fs::read_to_string(options.to.join("pg_hba.conf")).unwrap();
        assert!(rules.ends_with("# rules of the house\n"), "the rules are the original's");
        let server = Started(restored.running);
        assert_eq!(server.query("postgres", "select count(*)::text from t"), "100");
        assert_eq!(server.query("postgres", "select current_setting('max_connections')"), "55");
        drop(server);

        // The next backup takes what was put aside for what it is: nothing of this cluster.
        let archive = fixture.archive_command();
        let server = Cluster::adopt(installation, &options.to)
            .config(&[("archive_mode", "on"), ("archive_command", &archive)])
            .start();
        source.connection = server.connection_string();
        let again = backup(&fixture.repo, &source, &fixture.options()).unwrap();
        assert!(again.detail.configuration.is_empty(), "{:?}", again.detail.configuration);
    }
}

#[test]
fn included_files_that_are_missing_on_this_machine_keep_no_cluster_from_starting() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let (cluster, etc) = (&fixture.cluster, fixture.cluster.directory("etc"));
    fs::write(etc.join("memory.conf"), "work_mem = '9MB'\n").unwrap();
    fs::rename(cluster.data().join("pg_hba.conf"), etc.join("hba.conf")).unwrap();
    own(&etc);
    let text = fs::read_to_string(cluster.data().join("postgresql.conf")).unwrap();
    let more = format!("include '{0}/memory.conf'\nhba_file = '{0}/hba.conf'\n", etc.display());
    cluster.write("postgresql.conf", text + &more);
    cluster.restart();
    let made = fixture.backup();
    assert_eq!(made.detail.configuration.len(), 2, "{:?}", made.detail.configuration);
    fixture.archived(cluster);
    cluster.stop();
    fs::rename(&etc, etc.with_extension("gone")).unwrap();
    let options = fixture.restoring("restored", RecoveryTarget::Latest);
    let restored = fixture.restore(&made.snapshot, &options);
    assert!(restored.notes.iter().any(|note| note.contains("included instead")));
    let server = fixture.promoted(&options);
    assert_eq!(server.value("show work_mem"), "9MB");
    let rules = options.to.join("pg_hba.conf");
    assert_eq!(server.value("show hba_file"), rules.to_string_lossy());
}

/// What `pg_verifybackup` says of a directory: whether it is right, and its words.
fn verify(installation: &Installation, directory: &Path, wal: Option<&Path>) -> (bool, String) {
    let mut command = std::process::Command::new(installation.program("pg_verifybackup").unwrap());
    match wal {
        None => command.arg("-n"),
        Some(wal) => command.arg("-w").arg(wal),
    };
    let output = command.arg(directory).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn pg_verifybackup_agrees_with_the_manifest() {
    let mut any = false;
    for installation in supported() {
        if installation.program("pg_verifybackup").is_none() {
            continue;
        }
        any = true;
        let fixture = Fixture::new(&installation);
        let cluster = &fixture.cluster;
        let space = cluster.directory("space");
        cluster.sql(&format!("create tablespace fast location '{}'", space.display()));
        cluster.sql("create table s tablespace fast as select generate_series(1, 1000) i");
        cluster.sql("create table t as select generate_series(1, 50000) i");
        let made = fixture.backup();
        fixture.archived(cluster);
        let mut options = fixture.restoring("restored", RecoveryTarget::Latest);
        options.tablespaces = vec![("fast".to_owned(), fixture.folder.path().join("fast"))];
        options.manifest = true;
        let restored = fixture.restore(&made.snapshot, &options);
        assert_eq!(restored.manifest, Some(options.to.join("backup_manifest")));
        let (right, said) = verify(&installation, &options.to, None);
        assert!(right, "{}: {said}", installation.major);
        // With the log that the backup needs, as far as the server's programs can read it.
        let wal = cluster.data().join("pg_wal");
        let (right, said) = verify(&installation, &options.to, Some(&wal));
        assert!(right, "{}: {said}", installation.major);

        let text = fs::read_to_string(options.to.join("backup_manifest")).unwrap();
        let file: String = cluster.value("select pg_relation_filepath('t')");
        let path = options.to.join(&file);
        let content = fs::read(&path).unwrap();
        let mut altered = content.clone();
        altered[5000] ^= 1;
        fs::write(&path, &altered).unwrap();
        let (right, said) = verify(&installation, &options.to, None);
        assert!(!right && said.contains(&file), "{said}");
        fs::write(&path, &content).unwrap();
        fs::write(options.to.join("base/stray"), "").unwrap();
        assert!(!verify(&installation, &options.to, None).0);
        fs::remove_file(options.to.join("base/stray")).unwrap();
        let forged = text.replace("\"Size\": 8192", "\"Size\": 8193");
        assert_ne!(forged, text);
        fs::write(options.to.join("backup_manifest"), forged).unwrap();
        assert!(!verify(&installation, &options.to, None).0);
        fs::write(options.to.join("backup_manifest"), text).unwrap();
        assert!(verify(&installation, &options.to, None).0);

        options.start = Some(sandbox(&installation));
        assert_eq!(fixture.refused(&made.snapshot, &options).kind(), PostgresErrorKind::Usage);
    }
    if !any {
        skip!("no PostgreSQL with pg_verifybackup is installed; run scripts/test-postgres");
    }
}

#[test]
fn a_standby_ends_in_streaming_from_its_primary() {
    let all = supported();
    if all.is_empty() {
        skip!("no PostgreSQL is installed; run scripts/test-postgres");
    }
    for installation in all.iter().filter(|i| [13, 15, 17, 18].contains(&i.major)) {
        let fixture = Fixture::new(installation);
        let cluster = &fixture.cluster;
        cluster.sql("create table t (id int)");
        let made = fixture.backup();
        cluster.sql("insert into t values (1)");
        cluster.sql("select pg_create_physical_replication_slot('standby_1')");
        fixture.archived(cluster);
        cluster.sql("insert into t values (2)");

        let mut options = fixture.restoring("standby", RecoveryTarget::Latest);
        options.standby = true;
        options.slot = Some("standby_1".to_owned());
        options.primary = Some(format!(
            "host={} port={} user=postgres",
            cluster.socket().display(),
            cluster.port()
        ));
        options.start = Some(sandbox(installation));
        let restored = fixture.restore(&made.snapshot, &options);
        assert!(restored.notes.is_empty(), "{:?}", restored.notes);
        assert!(restored.reached().unwrap().in_recovery);
        assert!(options.to.join("standby.signal").exists());
        let standby = Started(restored.running);
        wait_until("the standby streams", 60, || {
            standby.query("postgres", "select coalesce(max(status), '') from pg_stat_wal_receiver")
                == "streaming"
        });
        // What only the primary has had, and what comes from now on.
        for count in [2, 3] {
            wait_until("the standby follows", 60, || {
                standby.query("postgres", "select count(*)::text from t") == count.to_string()
            });
            cluster.sql("insert into t values (3)");
        }
        let slot = "select active::text from pg_replication_slots where slot_name = 'standby_1'";
        assert_eq!(cluster.value(slot), "true");

        // A primary that is not there does not keep the standby from being one.
        let mut alone = fixture.restoring("alone", RecoveryTarget::Latest);
        alone.standby = true;
        alone.primary = Some("host=127.0.0.1 port=9 user=nobody".to_owned());
        alone.start = Some(sandbox(installation));
        let restored = fixture.restore(&made.snapshot, &alone);
        assert!(restored.notes.iter().any(|note| note.contains("does not stream")));
        drop(Started(restored.running));
    }
}

#[test]
fn a_standby_is_refused_what_makes_none() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let made = fixture.backup();
    let refused = |change: &dyn Fn(&mut backstay_postgres::RestoreOptions), why: &str| {
        let mut options = fixture.restoring("refused", RecoveryTarget::Latest);
        change(&mut options);
        let error = fixture.refused(&made.snapshot, &options);
        assert_eq!(error.kind(), PostgresErrorKind::Usage, "{error}");
        assert!(error.to_string().contains(why) && error.hint().is_some(), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(!options.to.exists());
    };
    refused(&|options| options.primary = Some("host=a".to_owned()), "only a standby");
    refused(&|options| options.slot = Some("a".to_owned()), "only a standby");
    refused(
        &|options| {
            options.standby = true;
            options.slot = Some("Not A Slot".to_owned());
        },
        "no name of a replication slot",
    );
    for primary in ["host=a password=secret", "postgresql://u:secret@a/b"] {
        refused(
            &|options| {
                options.standby = true;
                options.primary = Some(primary.to_owned());
            },
            "has a password",
        );
    }
    refused(
        &|options| {
            options.standby = true;
            options.databases = vec!["postgres".to_owned()];
        },
        "whole cluster",
    );
    refused(&|options| options.databases = vec!["none".to_owned()], "no database");
}

/// Bytes that the files of a database take on the disk, and their length.
fn weight(folder: &Path) -> (u64, u64) {
    let (mut taken, mut length) = (0, 0);
    for entry in fs::read_dir(folder).unwrap() {
        let meta = entry.unwrap().metadata().unwrap();
        taken += meta.blocks() * 512;
        length += meta.len();
    }
    (taken, length)
}

#[test]
fn some_databases_are_restored_and_the_others_dropped() {
    let all = supported();
    if all.is_empty() {
        skip!("no PostgreSQL is installed; run scripts/test-postgres");
    }
    for installation in &all {
        // Without checksums some of the log does not bring whole pages.
        let shape = Shape { no_checksums: installation.major % 2 == 1, ..Shape::default() };
        let fixture = Fixture::with(installation, shape, &[]);
        let cluster = &fixture.cluster;
        for name in ["wanted", "\"Other One\"", "plates"] {
            cluster.sql(&format!("create database {name}"));
        }
        cluster.sql("alter database plates is_template true");
        let fill =
            "create table t as select i, repeat('x', 300) v from generate_series(1, 20000) i;
                    create index on t (i); vacuum t";
        let sql = |database: &str, statements: &str| {
            let connection = cluster.connection_string().replace("dbname=postgres", "");
            let mut client = postgres::Client::connect(
                &format!("{connection} dbname='{database}'"),
                postgres::NoTls,
            )
            .unwrap();
            for statement in statements.split(';') {
                client.batch_execute(statement).unwrap();
            }
        };
        for name in ["wanted", "Other One", "plates"] {
            sql(name, fill);
        }
        cluster.sql("checkpoint");
        let made = fixture.backup();
        assert!(made.detail.databases.iter().any(|known| known.name == "Other One"));
        // All that changes files, in what is there and in what is not.
        for name in ["wanted", "Other One"] {
            sql(name, "update t set v = 'new' where i % 5 = 0; checkpoint; vacuum t");
            sql(name, "delete from t where i > 15000; vacuum t; insert into t values (-1, 'late')");
            sql(name, "create table u as select * from t; drop table u; reindex table t; analyze");
            sql(name, "vacuum full t; checkpoint; update t set v = 'last' where i % 7 = 0");
        }
        cluster.sql("create database later");
        sql("later", "create table t (id int); insert into t values (7)");
        fixture.archived(cluster);
        let oid = cluster.value("select oid::text from pg_database where datname = 'Other One'");

        let mut options = fixture.restoring("some", RecoveryTarget::Latest);
        options.databases = vec!["wanted".to_owned()];
        let restored = fixture.restore(&made.snapshot, &options);
        let names: Vec<&str> = restored.left_out.iter().map(|db| db.name.as_str()).collect();
        assert_eq!(names, ["Other One", "plates"]);
        assert!(restored.statements[0].contains("DROP DATABASE IF EXISTS \"Other One\""));
        let (taken, length) = weight(&options.to.join("base").join(&oid));
        assert!(length > 10 << 20, "{length}: as long as they were");
        assert!(taken < length / 10, "{taken} of {length}: holes");
        fs::remove_dir_all(&options.to).unwrap();

        options.start = Some(sandbox(installation));
        let restored = fixture.restore(&made.snapshot, &options);
        assert!(restored.statements.is_empty(), "{:?}", restored.statements);
        let server = Started(restored.running);
        let list = "select string_agg(datname, ' ' order by datname) from pg_database";
        assert_eq!(
            server.query("postgres", list),
            "later postgres template0 template1 wanted",
            "PostgreSQL {}",
            installation.major
        );
        let sums = "select count(*)::text || ' ' || md5(string_agg(i || v, ',' order by i)) from t";
        let expected = {
            let connection =
                cluster.connection_string().replace("dbname=postgres", "dbname=wanted");
            let mut client = postgres::Client::connect(&connection, postgres::NoTls).unwrap();
            client.query_one(sums, &[]).unwrap().get::<_, String>(0)
        };
        assert_eq!(server.query("wanted", sums), expected);
        assert_eq!(server.query("later", "select id::text from t"), "7");
        assert_eq!(
            server.query("postgres", "select current_setting('ignore_invalid_pages')"),
            if shape.no_checksums { "on" } else { "off" }
        );
        let auto = fs::read_to_string(options.to.join("postgresql.auto.conf")).unwrap();
        assert!(!auto.contains("ignore_invalid_pages"), "not after the next start: {auto}");
    }
}
