//! A real server that archives with `wal push`, and recovers with `wal fetch`.

use backstay_testing::{backstay_bin, own, postgres, skip};

use crate::sandbox::Sandbox;

#[test]
fn what_wal_push_and_fetch_end_with() {
    let it = Sandbox::ready();
    let code = |words: &[&str]| it.run(words).code;
    let name = "000000010000000000000001";
    // "Not there" only when the archive says so; everything else stops recovery.
    assert_eq!(code(&["wal", "fetch", name, "out", "--system-id", "1"]), 1);
    assert_eq!(code(&["wal", "fetch", "00000002.history", "out", "--system-id", "1"]), 1);
    for words in [
        &["wal", "fetch"][..],
        &["wal", "fetch", name, "out"],
        &["wal", "fetch", "nonsense", "out", "--system-id", "1"],
        &["wal", "fetch", name, "out", "--system-id", "one"],
        &["wal", "fetch", name, "out", "--system-id", "1", "-k", "nowhere.key"],
        &["wal", "fetch", name, "out", "--system-id", "1", "-r", "./nowhere"],
        &["--config", "nowhere.toml", "wal", "fetch", name, "out", "--system-id", "1"],
    ] {
        assert_eq!(code(words), 255, "{words:?}");
    }
    it.write(name, vec![0; 16 << 20]);
    for words in [
        &["wal", "push"][..],
        &["wal", "push", "nowhere"],
        &["wal", "push", name],
        &["wal", "push", name, "-k", "nowhere.key"],
        &["wal", "push", name, "-r", "./nowhere"],
    ] {
        assert!((1..=125).contains(&code(words)), "{words:?}");
    }
}

#[test]
fn a_repository_called_wal_does_not_hide_the_contract() {
    let it = Sandbox::new();
    it.tree();
    it.configure(&format!(
        "repositories = [\"main\"]\n[repositories.wal]\nurl = \"file://{}/gone\"\nkey-file = \"main.key\"\n",
        it.path("").display()
    ));
    it.good(&["-r", "main", "init"]);
    let name = "000000010000000000000001";
    for words in [
        &["--repository", "wal", "wal", "fetch", name, "out", "--system-id", "1"][..],
        &["-r", "wal", "wal", "fetch", name],
        &["-r", "wal", "wal", "fetch", name, "out", "--system-id", "one"],
        &["wal", "-r", "wal", "fetch", name, "out", "--system-id", "1"],
    ] {
        let ran = it.run(words);
        assert_eq!(ran.code, 255, "{ran}");
    }
    let ran = it.run(&["-r", "wal", "wal", "push", name, "--system-id", "1"]);
    assert!((1..=125).contains(&ran.code), "{ran}");
}

#[test]
fn a_push_goes_to_every_repository_of_the_source() {
    let mut it = Sandbox::new();
    it.tree();
    let orders = "kind = \"postgres\"\nconnection = \"host=/nowhere\"\n\
                  repositories = [\"main\", \"second\"]\n";
    let second = format!(
        "repositories = [\"main\"]\n[repositories.second]\nurl = \"file://{}/second\"\n\
         key-file = \"main.key\"\n[sources.orders]\n{orders}",
        it.path("").display()
    );
    it.configure(&second);
    it.good(&["-r", "main", "init"]);
    let name = "00000002.history";
    it.write(name, "1\t0/3000000\tno recovery target specified\n");
    let push = ["wal", "push", name, "--source", "orders", "--system-id", "1"];
    for flags in [&["-r", "main"][..], &["-r", "./elsewhere"]] {
        let ran = it.run(&[flags, &push].concat());
        assert!((1..=125).contains(&ran.code), "{ran}");
        assert!(ran.stderr.contains("second"), "{ran}");
    }
    it.variables.insert("BACKSTAY_REPOSITORY".into(), "main".into());
    let ran = it.run(&push);
    assert!((1..=125).contains(&ran.code), "{ran}");
    assert!(ran.stderr.contains("BACKSTAY_REPOSITORY"), "{ran}");
    it.variables.clear();
    it.configure(&format!("{second}[sources.other]\n{orders}"));
    let ran = it.run(&["wal", "push", name, "--system-id", "1"]);
    assert!((1..=125).contains(&ran.code), "{ran}");
    assert!(ran.stderr.contains("several sources of kind postgres"), "{ran}");
}

/// `wal dump` and `wal summarize` of the archive, and of the server's own folder.
fn the_log_is_shown(cluster: &postgres::Cluster, good: &dyn Fn(&[&str]) -> crate::sandbox::Ran) {
    let table = cluster.value(
        "select concat_ws('/', 1663, (select oid from pg_database where datname = 'postgres'), \
         pg_relation_filenode('t'))",
    );
    let folder = cluster.data().join("pg_wal");
    let folder = folder.to_str().unwrap();
    let archive = good(&["wal", "dump", "orders", "--relation", &table, "--rmgr", "heap"]);
    let inserts = archive.stdout.lines().filter(|line| line.contains("desc: INSERT")).count();
    assert!(inserts >= 500, "{archive}");
    assert!(archive.stdout.lines().all(|line| line.contains(&table)), "{archive}");
    let first = archive.stdout.split("lsn: ").nth(1).unwrap().split(',').next().unwrap();
    let words = ["--relation", &table, "--rmgr", "heap", "--start", first];
    let own = good(&[&["wal", "dump", "--folder", folder], &words[..]].concat());
    assert_eq!(own.stdout, archive.stdout);
    let few = good(&["wal", "dump", "--folder", folder, "-n", "3", "--json"]);
    let records: Vec<serde_json::Value> =
        few.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 3, "{few}");
    assert!(records[0]["lsn"].is_string() && records[0]["blocks"].is_array(), "{few}");
    let stats = good(&["wal", "dump", "orders", "--stats", "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&stats.stdout).unwrap();
    let heap = stats["stats"].as_array().unwrap().iter().find(|one| one["rmgr"] == "Heap").unwrap();
    assert!(heap["records"].as_u64().unwrap() > 500, "{stats}");
    let kinds = good(&["wal", "dump", "orders", "--stats=record", "--from", first]);
    assert!(kinds.stdout.contains("Heap/DELETE"), "{kinds}");

    let saved = format!("{folder}/../summary");
    let made = good(&["wal", "summarize", "orders", "--save", &saved, "--json"]);
    let made: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
    let relations = made["relations"].as_array().unwrap();
    let of_table = relations.iter().find(|one| one["relation"] == table.as_str()).unwrap();
    assert!(of_table["blocks"].as_u64().unwrap() > 4, "{of_table}");
    assert!(made["rmgrs"].as_array().unwrap().len() > 3, "{made}");
    let read = good(&["wal", "summarize", "--read", &saved, "--json"]);
    let read: serde_json::Value = serde_json::from_str(&read.stdout).unwrap();
    assert_eq!(read["relations"], made["relations"]);
    let shown = good(&["wal", "summarize", "orders"]);
    assert!(shown.stdout.contains("changed blocks"), "{shown}");
}

#[test]
fn what_is_no_log_is_no_log() {
    let it = Sandbox::ready();
    for (words, said) in [
        (&["wal", "dump", "--folder", "."][..], "there are no segments"),
        (&["wal", "dump", "--folder", "nowhere"], "could not read the folder nowhere"),
        (&["wal", "dump", "--system-id", "7"], "there are no segments"),
        (&["wal", "dump"], "no source of kind postgres"),
        (&["wal", "dump", "--relation", "1/2"], "three numbers"),
        (&["wal", "dump", "--rmgr", "heaps"], "there are XLOG"),
        (&["wal", "dump", "--from", "nonsense"], "no position in the WAL"),
        (&["wal", "dump", "--from", "0/2", "--to", "0/1", "--system-id", "7"], "before 0/2"),
        (&["wal", "summarize", "--read", "backstay.toml"], "no summary of WAL"),
        (&["wal", "summarize", "--read", "nowhere"], "could not read nowhere"),
    ] {
        let ran = it.run(words);
        assert_ne!(ran.code, 0, "{ran}");
        assert!(ran.stdout.is_empty(), "{ran}");
        assert!(ran.stderr.contains(said), "{said}: {ran}");
    }
}

/// With one repository down, PostgreSQL was told to come again for ever.
#[test]
fn a_push_needs_as_many_repositories_as_it_is_told() {
    let it = Sandbox::new();
    it.tree();
    let configure = |copies: &str, replication: &str| {
        it.configure(&format!(
            "repositories = [\"main\"]\n[repositories.second]\nurl = \"file://{}/second\"\n\
             key-file = \"main.key\"\n[sources.orders]\nkind = \"postgres\"\n\
             connection = \"host=/nowhere\"\nrepositories = [\"main\", \"second\"]\n\
             {copies}\n{replication}",
            it.path("").display()
        ));
    };
    let replication = "[replication.away]\nfrom = \"main\"\nto = \"second\"\n";
    configure("", "");
    it.good(&["init"]);
    let name = "00000002.history";
    it.write(name, "1\t0/3000000\tno recovery target specified\n");
    let push = ["wal", "push", name, "--source", "orders", "--system-id", "1"];
    // It can be opened and takes nothing more: a file is where the folder of the log would be.
    it.write("second/wal", "in the way");
    let fails = |copies: &str, replication: &str| {
        configure(copies, replication);
        let ran = it.run(&push);
        assert!((1..=125).contains(&ran.code), "{ran}");
    };
    fails("", replication);
    fails("archive-copies = 2", replication);
    // Nothing would bring it there.
    fails("archive-copies = 1", "");
    fails("archive-copies = 1", "[replication.away]\nfrom = \"second\"\nto = \"main\"\n");
    configure("archive-copies = 1", replication);
    let pushed = it.json(&push);
    assert_eq!(pushed["late"].as_array().unwrap().len(), 1, "{pushed}");
    std::fs::remove_file(it.path("second/wal")).unwrap();
    let pushed = it.json(&push);
    assert_eq!((&pushed["late"], &pushed["new"]), (&serde_json::json!([]), &true.into()));
    // Neither is there: never a success.
    std::fs::rename(it.path("repo"), it.path("away")).unwrap();
    std::fs::rename(it.path("second"), it.path("away-too")).unwrap();
    let ran = it.run(&push);
    assert!((1..=125).contains(&ran.code), "{ran}");
}

/// What counts as archived may be in a repository that does not answer: the log of the other one does
/// not say where it ends.
#[test]
fn the_end_of_the_log_is_not_taken_from_a_repository_that_may_be_late() {
    let supported = |it: &postgres::Installation| (13..=18).contains(&it.major);
    let Some(installation) = postgres::versions().into_iter().rfind(supported) else {
        skip!("no PostgreSQL of 13 to 18 is installed; run scripts/test-postgres");
    };
    let cluster = postgres::Cluster::builder(&installation).start();
    let it = Sandbox::new();
    let folder = cluster.directory("backstay");
    let config = folder.join("backstay.toml");
    std::fs::write(
        &config,
        format!(
            "[repositories.main]\nurl = \"file://{0}/repo\"\nkey-file = \"main.key\"\n\
             [repositories.second]\nurl = \"file://{0}/second\"\nkey-file = \"main.key\"\n\
             [sources.orders]\nkind = \"postgres\"\nconnection = \"{1}\"\n\
             data-directory = \"{2}\"\nrepositories = [\"main\", \"second\"]\n\
             archive-copies = 1\n[replication.away]\nfrom = \"main\"\nto = \"second\"\n",
            folder.display(),
            cluster.connection_string(),
            cluster.data().display()
        ),
    )
    .unwrap();
    own(&folder);
    let config = config.to_str().unwrap().to_owned();
    let run = |words: &[&str]| {
        let words = [&["--config", &config], words].concat();
        let output = std::process::Command::new(backstay_bin())
            .args(&words)
            .env("HOME", it.path("home"))
            .output()
            .unwrap();
        it.ran(&words, output)
    };
    let good = |words: &[&str]| {
        let ran = run(words);
        assert_eq!(ran.code, 0, "{ran}\n{}", cluster.log());
        ran
    };
    good(&["init"]);
    good(&["postgres", "setup", "--apply"]);
    cluster.restart();
    good(&["backup", "orders"]);
    let away = folder.join("away");
    let restore = |name: &str, more: &[&str]| {
        let to = cluster.directory("restored").join(name);
        run(&[&["restore", "orders", "--to", to.to_str().unwrap()], more].concat())
    };
    // The second may lack what the first took last; the first lacks nothing.
    std::fs::rename(folder.join("repo"), &away).unwrap();
    let ran = restore("a", &[]);
    assert_eq!(ran.code, 1, "{ran}");
    assert!(ran.stderr.contains("`main` did not answer"), "{ran}");
    assert!(!cluster.directory("restored").join("a").exists());
    for (name, more) in [("b", &["--immediate"][..]), ("c", &["--repository", "second"])] {
        let ran = restore(name, more);
        assert_eq!(ran.code, 0, "{ran}");
    }
    std::fs::rename(&away, folder.join("repo")).unwrap();
    std::fs::rename(folder.join("second"), &away).unwrap();
    let ran = restore("d", &[]);
    assert_eq!(ran.code, 0, "{ran}");
}

/// What is less than a cluster, or more: its configuration, a manifest, one table.
fn parts_are_restored(
    cluster: &postgres::Cluster,
    moment: &str,
    run: &dyn Fn(&[&str]) -> crate::sandbox::Ran,
) {
    let folder = cluster.directory("parts");
    let to = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let good = |words: &[&str]| {
        let ran = run(words);
        assert_eq!(ran.code, 0, "{ran}");
        ran
    };
    good(&["restore", "orders", "--config-only", "--to", &to("config")]);
    assert!(folder.join("config/data/pg_hba.conf").exists());
    assert!(!folder.join("config/data/PG_VERSION").exists());
    let ran = good(&["restore", "orders", "--to", &to("listed"), "--manifest"]);
    assert!(ran.stdout.contains("backup_manifest"), "{ran}");
    assert!(folder.join("listed/backup_manifest").exists());
    let into = cluster.connection_string();
    let table = ["restore", "orders", "--table", "public.t", "--into", &into, "--at", moment];
    let bin = cluster.installation().bin.to_str().unwrap().to_owned();
    let table = [&table[..], &["--bin-directory", &bin]].concat();
    let has = |name: &str| cluster.installation().program(name).is_some();
    if has("pg_dump") && has("psql") {
        let ran = good(&table);
        assert!(ran.stdout.contains("1500 rows") || ran.stdout.contains("1,500 rows"), "{ran}");
        assert_eq!(cluster.value("select count(*) from restored.t"), "1500");
        assert_eq!(cluster.value("select count(*) from t"), "0");
        let taken = run(&[&table[..], &["--as", "t"]].concat());
        assert_eq!(taken.code, 2, "{taken}");
        assert!(taken.stderr.contains("nothing is overwritten"), "{taken}");
        cluster.sql("drop schema restored cascade");
    }
    let wrong = run(&["restore", "orders", "--table", "t", "--into", &into]);
    assert_eq!(wrong.code, 2, "{wrong}");
    let secret = "host=nowhere password=hunter2";
    let wrong = run(&["restore", "orders", "--table", "public.t", "--into", secret]);
    assert_eq!(wrong.code, 2, "{wrong}");
    assert!(!wrong.stderr.contains("hunter2"), "{wrong}");
    assert_eq!(run(&["restore", "orders"]).code, 2);
}

#[test]
fn from_setup_to_a_recovered_moment() {
    let supported = |it: &postgres::Installation| (13..=18).contains(&it.major);
    let newest = postgres::versions().into_iter().rfind(supported);
    let Some(installation) = postgres::version(15).or(newest) else {
        skip!("no PostgreSQL of 13 to 18 is installed; run scripts/test-postgres");
    };
    // It is asked for its own segments after a checkpoint, which would recycle those that are archived.
    let keep = [("wal_keep_size", "1GB")];
    let cluster = postgres::Cluster::builder(&installation).config(&keep).start();
    let it = Sandbox::new();
    let folder = cluster.directory("backstay");
    let config = folder.join("backstay.toml");
    std::fs::write(
        &config,
        format!(
            "[repositories.main]\nurl = \"file://{0}/repo\"\nkey-file = \"main.key\"\n\
             [sources.orders]\nkind = \"postgres\"\nconnection = \"{1}\"\n\
             data-directory = \"{2}\"\ntier = \"critical\"\n\
             [tiers.critical]\nrto = \"1h\"\nrpo = \"5m\"\n",
            folder.display(),
            cluster.connection_string(),
            cluster.data().display()
        ),
    )
    .unwrap();
    own(&folder);
    let config = config.to_str().unwrap().to_owned();
    let run = |words: &[&str]| {
        let words = [&["--config", &config], words].concat();
        // Started from where the server's user can start it too: its path is in archive_command.
        let output = std::process::Command::new(backstay_bin())
            .args(&words)
            .env("HOME", it.path("home"))
            .env("TZ", "UTC")
            .output()
            .unwrap();
        it.ran(&words, output)
    };
    let good = |words: &[&str]| {
        let ran = run(words);
        assert_eq!(ran.code, 0, "{ran}\n{}", cluster.log());
        ran
    };
    good(&["init"]);
    let early = run(&["backup", "orders"]);
    assert_eq!(early.code, 1, "{early}");
    assert!(early.stderr.contains("backstay postgres setup"), "{early}");
    good(&["postgres", "setup", "--apply"]);
    cluster.restart();
    let set = good(&["postgres", "setup"]);
    assert!(set.stdout.contains("is set as it should be"), "{set}");
    good(&["check"]);
    cluster.sql("create table t as select generate_series(1, 1000) n");
    good(&["backup", "orders"]);
    cluster.sql("insert into t select generate_series(1, 500)");
    let moment = cluster.value("select clock_timestamp()::text");
    cluster.sql("delete from t");
    cluster.switch_wal();
    backstay_testing::wait_until("all of it is archived", 60, || {
        cluster.value(
            "select (last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1))::text \
             from pg_stat_archiver",
        ) == "true"
    });
    let status = good(&["wal", "status"]);
    assert!(status.stdout.contains("window"), "{status}");
    the_log_is_shown(&cluster, &good);
    let read = good(&["wal", "status", "--read"]);
    assert!(read.stdout.contains("within the 5m of its tier"), "{read}");
    assert!(good(&["status"]).stdout.contains("5m kept"));
    let to = cluster.directory("restored");
    let sockets = cluster.directory("sockets");
    let ran = good(&[
        "restore",
        "orders",
        "--to",
        to.to_str().unwrap(),
        "--at",
        &moment,
        "--start",
        "--socket-directory",
        sockets.to_str().unwrap(),
        "--port",
        "5433",
        "--bin-directory",
        installation.program("postgres").unwrap().parent().unwrap().to_str().unwrap(),
    ]);
    assert!(ran.stdout.contains("the server runs"), "{ran}");
    let psql = |query: &str| {
        let output =
            std::process::Command::new(installation.program("psql").unwrap_or("psql".into()))
                .args([
                    "-h",
                    sockets.to_str().unwrap(),
                    "-p",
                    "5433",
                    "-U",
                    "postgres",
                    "-Atc",
                    query,
                ])
                .output()
                .unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let rows = psql("select count(*) from t");
    let pid: i32 = std::fs::read_to_string(to.join("postmaster.pid"))
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::QUIT,
    )
    .unwrap();
    backstay_testing::wait_until("the restored server is gone", 60, || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
    assert_eq!(rows, "1500", "{ran}");
    parts_are_restored(&cluster, &moment, &run);
    // Nothing lies before the only snapshot but what came before it.
    let would = good(&["wal", "expire", "--dry-run"]);
    assert!(would.stdout.contains("would remove"), "{would}");
    good(&["wal", "expire", "orders"]);
    assert!(good(&["wal", "expire"]).stdout.contains("nothing to remove"));
    good(&["wal", "status", "--read"]);
    let oldest = good(&["wal", "dump", "orders", "-n", "1", "--json"]);
    let oldest: serde_json::Value = serde_json::from_str(&oldest.stdout).unwrap();
    // The copy was promoted, and archives with the same command as its original.
    let copied = std::process::Command::new(backstay_bin())
        .args(["--config", &config, "wal", "push", "--source", "orders"])
        .arg("pg_wal/00000002.history")
        .current_dir(&to)
        .output()
        .unwrap();
    let copied = it.ran(&["wal", "push", "pg_wal/00000002.history"], copied);
    assert_eq!(copied.code, 2, "{copied}");
    assert!(copied.stderr.contains("is not the data directory of `orders`"), "{copied}");
    let status = good(&["wal", "status"]);
    assert!(!status.stdout.contains("timeline 2"), "{status}");
    // A hole: what lies behind it cannot be reached, however new it is.
    let last = cluster.value("select pg_walfile_name(pg_current_wal_lsn())");
    let archived = |name: &str| {
        let file = name.to_owned();
        let mut folders = vec![folder.join("repo")];
        while let Some(next) = folders.pop() {
            for entry in std::fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.to_string_lossy().contains(&file) {
                    return Some(path);
                }
            }
        }
        None
    };
    for _ in 0..2 {
        cluster.sql("insert into t values (1)");
        cluster.switch_wal();
    }
    backstay_testing::wait_until("the hole can be made", 60, || {
        cluster.value(&format!("select (last_archived_wal > '{last}')::text from pg_stat_archiver"))
            == "true"
    });
    // One that rots: the listing cannot tell, reading does.
    let rotten = archived(&last).unwrap();
    let mut bytes = std::fs::read(&rotten).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&rotten).unwrap();
    std::fs::write(&rotten, bytes).unwrap();
    assert_eq!(run(&["wal", "status"]).code, 0);
    let read = run(&["wal", "status", "--read"]);
    assert_eq!(read.code, 1, "{read}");
    assert!(read.stdout.contains(&format!("{last} is damaged")), "{read}");
    std::fs::remove_file(&rotten).unwrap();
    let status = run(&["wal", "status"]);
    assert_eq!(status.code, 1, "{status}");
    assert!(status.stdout.contains("broken"), "{status}");
    let cut = run(&["wal", "summarize", "orders", "--from", oldest["lsn"].as_str().unwrap()]);
    assert_eq!(cut.code, 1, "{cut}");
    assert!(cut.stderr.contains(&format!("the segment {last} is missing")), "{cut}");
    let status = run(&["status"]);
    assert!(status.stdout.contains("archive broken"), "{status}");
    let early = run(&["restore", "orders", "--to", "x", "--at", "2020-01-01 00:00:00"]);
    assert_eq!(early.code, 1, "{early}");
    assert!(early.stderr.contains("first moment"), "{early}");
}
