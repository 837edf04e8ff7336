//! `backstay wal serve` beside a server that archives.

use std::process::{Child, Stdio};

use backstay_testing::{backstay_bin, own, postgres, skip, wait_until};
use rustix::process::{Pid, Signal, kill_process};

use crate::sandbox::Sandbox;

/// A server that archives into a repository.
pub struct Archiving {
    pub cluster: postgres::Cluster,
    pub config: String,
    socket: std::path::PathBuf,
}

impl Archiving {
    pub fn start(it: &Sandbox) -> Option<Self> {
        let supported = |it: &postgres::Installation| (13..=18).contains(&it.major);
        let installation = postgres::versions().into_iter().rfind(supported)?;
        let cluster = postgres::Cluster::builder(&installation).start();
        let folder = cluster.directory("backstay");
        let config = folder.join("backstay.toml");
        std::fs::write(
            &config,
            format!(
                "cache = \"{0}/cache\"\n[repositories.main]\nurl = \"file://{0}/repo\"\n\
                 key-file = \"main.key\"\n[sources.orders]\nkind = \"postgres\"\n\
                 connection = \"{1}\"\ndata-directory = \"{2}\"\n",
                folder.display(),
                cluster.connection_string(),
                cluster.data().display()
            ),
        )
        .unwrap();
        own(&folder);
        let config = config.to_str().unwrap().to_owned();
        let archiving = Self { cluster, config, socket: folder.join("cache/serve/orders.socket") };
        archiving.good(it, &["init"]);
        archiving.good(it, &["postgres", "setup", "--apply"]);
        archiving.cluster.restart();
        Some(archiving)
    }

    pub fn command(&self, words: &[&str]) -> std::process::Command {
        let mut command = self.cluster.command_at(backstay_bin());
        command.args(["--config", &self.config]).args(words);
        command
    }

    pub fn good(&self, it: &Sandbox, words: &[&str]) -> String {
        let ran = it.ran(words, self.command(words).output().unwrap());
        assert_eq!(ran.code, 0, "{ran}\n{}", self.cluster.log());
        ran.stdout
    }

    fn serve(&self) -> Child {
        let mut command = self.command(&["wal", "serve", "--json"]);
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        wait_until("it listens", 60, || {
            std::os::unix::net::UnixStream::connect(&self.socket).is_ok()
        });
        child
    }

    /// Makes `segments` of WAL, and waits until all of them are archived.
    pub fn work(&self, segments: u32) {
        for _ in 0..segments {
            self.cluster.sql("create table if not exists t (n int)");
            self.cluster.sql("insert into t select generate_series(1, 1000)");
            self.cluster.switch_wal();
        }
        wait_until("all of it is archived", 120, || {
            self.cluster.value(
                "select (last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1))::text \
                 from pg_stat_archiver",
            ) == "true"
        });
    }
}

fn pushed(child: Child) -> u64 {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    document["served"][0]["pushed"].as_u64().unwrap()
}

#[test]
fn a_server_archives_with_and_without_it_and_when_it_is_killed() {
    let it = Sandbox::new();
    let Some(archiving) = Archiving::start(&it) else {
        skip!("no PostgreSQL of 13 to 18 is installed; run scripts/test-postgres");
    };
    archiving.good(&it, &["backup", "orders"]);
    archiving.work(2);
    let child = archiving.serve();
    archiving.work(6);
    let served = pushed(child);
    assert!(served >= 6, "{served} were pushed by it");
    assert!(!archiving.socket.exists());
    // Without it PostgreSQL does not notice.
    archiving.work(2);
    // Killed, it leaves a socket that nobody listens on.
    let mut child = archiving.serve();
    archiving.work(2);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(archiving.socket.exists());
    archiving.work(2);
    // One that was stopped does not answer.
    let child = archiving.serve();
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    archiving.work(1);
    kill_process(pid, Signal::CONT).unwrap();
    pushed(child);
    let failed = archiving.cluster.value("select failed_count::text from pg_stat_archiver");
    assert_eq!(failed, "0", "{}", archiving.cluster.log());
    let status = archiving.good(&it, &["wal", "status", "--read", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let text = status.to_string();
    assert!(!text.contains("\"gap\""), "{text}");
}

#[test]
fn it_serves_nobody_with_another_configuration_and_only_once() {
    let it = Sandbox::new();
    let Some(archiving) = Archiving::start(&it) else {
        skip!("no PostgreSQL of 13 to 18 is installed; run scripts/test-postgres");
    };
    let child = archiving.serve();
    let twice = archiving.command(&["wal", "serve"]).output().unwrap();
    let twice = it.ran(&["wal", "serve"], twice);
    assert_eq!(twice.code, 11, "{twice}");
    assert!(twice.stderr.contains("another process serves"), "{twice}");
    let text = std::fs::read_to_string(&archiving.config).unwrap();
    let other = "compression = \"lz4\"\n[sources";
    std::fs::write(&archiving.config, text.replace("[sources", other)).unwrap();
    archiving.work(2);
    assert_eq!(pushed(child), 0);
}
