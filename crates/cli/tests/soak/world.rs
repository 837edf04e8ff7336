//! A server, its repository, what is known of both, and what may happen to them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use backstay_testing::postgres::{Cluster, Installation};
use backstay_testing::{backstay_bin, own, wait_until};
use serde_json::Value;
use tempfile::TempDir;

use crate::lots::Lots;
use crate::work;

/// The table that moments are told apart by; it is in none of them.
const BEAT: &str = "postgres.public.beat";

/// A moment of which is known what was there.
struct Moment {
    name: String,
    timeline: u32,
    lsn: u64,
    xid: String,
    time: String,
    tables: BTreeMap<String, String>,
}

/// A snapshot that was made, and where it was consistent.
struct Known {
    id: String,
    timeline: u32,
    stop: u64,
}

pub struct World {
    lots: Lots,
    cluster: Cluster,
    installation: Installation,
    folder: TempDir,
    with_space: bool,
    moments: Vec<Moment>,
    snapshots: Vec<Known>,
    timeline: u32,
    /// Where the timelines on the way here were left.
    history: Vec<(u32, u64)>,
    /// A folder that something was restored into.
    earlier: Option<PathBuf>,
    restores: u32,
    returns: u32,
    killed: u32,
    story: Vec<String>,
}

/// Settings that make much happen in little log.
const SETTINGS: [(&str, &str); 5] = [
    ("autovacuum", "off"),
    ("wal_keep_size", "0"),
    ("max_wal_size", "64MB"),
    ("min_wal_size", "32MB"),
    ("archive_timeout", "60"),
];

fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    (u64::from_str_radix(high, 16).unwrap() << 32) | u64::from_str_radix(low, 16).unwrap()
}

impl World {
    pub fn new(mut lots: Lots, installation: Installation) -> Self {
        let folder = tempfile::Builder::new().prefix("backstay-soak-").tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.path(), open).unwrap();
        let size = *lots.one(&[1_u32, 1, 4, 16]);
        let cluster = Cluster::builder(&installation).segment_size(size).config(&SETTINGS).start();
        let with_space = lots.once_in(2);
        let mut world = Self {
            lots,
            cluster,
            installation,
            folder,
            with_space,
            moments: Vec::new(),
            snapshots: Vec::new(),
            timeline: 1,
            history: Vec::new(),
            earlier: None,
            restores: 0,
            returns: 0,
            killed: 0,
            story: Vec::new(),
        };
        own(world.folder.path());
        world.say(format!("PostgreSQL {}, segments of {size} MiB", world.installation.major));
        world.configure("auto", "hash");
        world.good(&["init"]);
        world.good(&["postgres", "setup", "--apply"]);
        world.cluster.restart();
        if world.with_space {
            let space = world.fresh("space");
            world.cluster.sql(&format!("create tablespace space location '{}'", space.display()));
        }
        work::begin(&world.cluster);
        world.back_up();
        world.remember();
        world
    }

    pub fn story(&self) -> Vec<String> {
        self.story.clone()
    }

    pub fn summary(&self) -> String {
        format!(
            "{} steps, {} moments, {} restores, {} returns, {} killed",
            self.story.len(),
            self.moments.len(),
            self.restores,
            self.returns,
            self.killed
        )
    }

    /// Leaves the files where they are, for who wants to look.
    pub fn keep(&mut self) -> PathBuf {
        let other = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.folder, other).keep()
    }

    fn say(&mut self, what: impl Into<String>) {
        self.story.push(what.into());
    }

    /// An empty folder that the server's user owns.
    fn fresh(&mut self, name: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{name}-{}", self.lots.next()));
        fs::create_dir(&path).unwrap();
        own(&path);
        path
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("backstay.toml")
    }

    fn configure(&self, method: &str, detect: &str) {
        let folder = self.folder.path().display();
        let text = format!(
            "cache = \"{folder}/cache\"\n[repositories.main]\nurl = \"file://{folder}/repo\"\n\
             key-file = \"{folder}/main.key\"\n[sources.orders]\nkind = \"postgres\"\n\
             connection = \"{}\"\ndata-directory = \"{}\"\nmethod = \"{method}\"\n\
             detect = \"{detect}\"\n",
            self.cluster.connection_string(),
            self.cluster.data().display()
        );
        fs::write(self.config(), text).unwrap();
        own(&self.config());
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.cluster.command_at(backstay_bin());
        command.arg("--config").arg(self.config()).args(words);
        command
    }

    fn good(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(
            output.status.success(),
            "{words:?} ended with {}\n{}{}\nthe server:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            tail(&self.cluster.log())
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.good(&[words, &["--json"]].concat())).unwrap()
    }

    /// Does one thing, by lot.
    pub fn step(&mut self) {
        match self.lots.below(24) {
            0..=6 => self.work(),
            7..=11 => {
                self.back_up();
            }
            12 => self.kill_a_backup(),
            13 => self.crash(),
            14 => self.forget(),
            15 => {
                self.say("maintenance");
                self.good(&["maintenance"]);
            }
            16 => {
                self.say("wal expire");
                self.good(&["wal", "expire"]);
            }
            17..=20 => self.bring_back(),
            21 => self.go_back(),
            22 => self.compare_ways(),
            _ => {
                self.say("verify");
                self.good(&["verify", "--level", "thorough"]);
            }
        }
    }

    /// What must hold in the end.
    pub fn end(&mut self) {
        self.bring_back();
        self.say("verify in the end");
        self.good(&["verify", "--level", "thorough"]);
        let newest = self.tables();
        self.archive_all();
        let folder = self.restore(&[]);
        self.expect(&folder, &newest, "the end of the log");
    }

    fn work(&mut self) {
        for _ in 0..=self.lots.below(4) {
            let said = work::once(&self.cluster, &mut self.lots, self.with_space);
            self.say(said);
        }
        if !self.lots.once_in(3) {
            self.remember();
        }
    }

    fn tables(&self) -> BTreeMap<String, String> {
        let mut tables = self.cluster.table_checksums();
        tables.remove(BEAT);
        tables
    }

    /// Records what is there now, under every name that a target can have.
    fn remember(&mut self) {
        let tables = self.tables();
        let name = format!("m{}", self.moments.len());
        let value = |query: &str| self.cluster.value(query);
        let xid = value("insert into beat values (1) returning pg_current_xact_id()");
        let time = value(
            "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
        );
        let at = value(&format!("select pg_create_restore_point('{name}')"));
        // Behind a target lies something that is no part of it.
        value("select pg_logical_emit_message(false, 'soak', 'behind')");
        self.cluster.sql("insert into beat values (2)");
        self.say(format!("{name} is {at}, {time}, {xid} on timeline {}", self.timeline));
        let moment = Moment { name, timeline: self.timeline, lsn: lsn(&at), xid, time, tables };
        self.moments.push(moment);
    }

    fn back_up(&mut self) {
        let kind = *self.lots.one(&["full", "incremental", "incremental", "differential"]);
        let method = *self.lots.one(&["auto", "auto", "wire"]);
        let detect = *self.lots.one(&["hash", "wal", "auto"]);
        self.back_up_as(kind, method, detect);
    }

    /// Its id.
    fn back_up_as(&mut self, kind: &str, method: &str, detect: &str) -> String {
        self.say(format!("{kind} backup, {method}, {detect}"));
        self.configure(method, detect);
        let made = self.json(&["backup", "orders", "--type", kind]);
        let snapshot = &made["backups"][0]["snapshot"];
        assert_eq!(snapshot["problems"].as_array().unwrap().len(), 0, "{snapshot}");
        let id = snapshot["id"].as_str().unwrap().to_owned();
        self.snapshots.push(Known {
            id: id.clone(),
            timeline: snapshot["detail"]["timeline"].as_u64().unwrap() as u32,
            stop: lsn(snapshot["detail"]["stop_lsn"].as_str().unwrap()),
        });
        id
    }

    fn kill_a_backup(&mut self) {
        let after = self.lots.below(600);
        self.say(format!("a backup that is killed after {after} ms"));
        self.configure("auto", "hash");
        let mut command = self.command(&["backup", "orders", "--json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        self.killed += 1;
        // It may have been done before, or have died after its snapshot was there.
        let known: Vec<String> = self.snapshots.iter().map(|known| known.id.clone()).collect();
        let listed = self.json(&["list"]);
        for snapshot in listed["snapshots"].as_array().unwrap() {
            let id = snapshot["id"].as_str().unwrap().to_owned();
            if !known.contains(&id) {
                self.snapshots.push(Known {
                    id,
                    timeline: snapshot["detail"]["timeline"].as_u64().unwrap() as u32,
                    stop: lsn(snapshot["detail"]["stop_lsn"].as_str().unwrap()),
                });
            }
        }
        if output.status.success() {
            assert!(self.snapshots.len() > known.len(), "a backup that succeeded made nothing");
        }
    }

    fn crash(&mut self) {
        self.say("the server crashes");
        self.cluster.kill();
        self.cluster.start();
    }

    fn forget(&mut self) {
        if self.snapshots.len() < 3 {
            return;
        }
        // The newest is not let go.
        let at = self.lots.below(self.snapshots.len() as u64 - 1) as usize;
        let gone = self.snapshots.remove(at);
        self.say(format!("forget {}", &gone.id[..8]));
        self.good(&["forget", &gone.id]);
    }

    /// Whether something on a timeline is part of what led here.
    fn is_on_the_way(&self, timeline: u32, at: u64) -> bool {
        timeline == self.timeline
            || self.history.iter().any(|(left, end)| *left == timeline && at <= *end)
    }

    /// A moment that some snapshot reaches.
    fn reachable(&mut self) -> Option<usize> {
        let found: Vec<usize> = self
            .moments
            .iter()
            .enumerate()
            .filter(|(_, moment)| self.is_on_the_way(moment.timeline, moment.lsn))
            .filter(|(_, moment)| {
                self.snapshots.iter().any(|known| {
                    known.stop <= moment.lsn && self.is_on_the_way(known.timeline, known.stop)
                })
            })
            .map(|(at, _)| at)
            .collect();
        if found.is_empty() { None } else { Some(*self.lots.one(&found)) }
    }

    fn archive_all(&self) {
        let last = self.cluster.switch_wal();
        wait_until("all of it is archived", 120, || {
            self.cluster.value(&format!(
                "select coalesce(last_archived_wal >= '{last}', false) from pg_stat_archiver"
            )) == "t"
        });
    }

    /// A target in the words of the command line, by lot in one of four ways.
    fn target(&mut self, moment: usize) -> Vec<String> {
        let way = self.lots.below(4);
        let moment = &self.moments[moment];
        let (flag, value) = match way {
            0 => ("--xid", moment.xid.clone()),
            1 => ("--at", moment.time.clone()),
            2 => ("--name", moment.name.clone()),
            _ => ("--lsn", format!("{:X}/{:X}", moment.lsn >> 32, moment.lsn as u32)),
        };
        let mut words = vec![flag.to_owned(), value];
        // The same second or position may be on both of two timelines: then it is asked which is meant.
        if matches!(flag, "--at" | "--lsn") && !self.history.is_empty() {
            words.extend(["--timeline".to_owned(), self.timeline.to_string()]);
        }
        words
    }

    /// Restores to where `more` says, into a new folder or over an earlier one, which it returns.
    fn restore(&mut self, more: &[&str]) -> PathBuf {
        let delta = self.earlier.take().filter(|_| self.lots.once_in(2));
        let has_delta = delta.is_some();
        let folder = match delta {
            Some(folder) => folder,
            None => self.fresh("restored"),
        };
        let (data, space) = (folder.join("data"), folder.join("space"));
        let space = format!("space={}", space.display());
        let manifest = !has_delta && self.lots.once_in(2);
        let mut words = vec!["restore", "orders", "--to", data.to_str().unwrap()];
        if self.with_space {
            words.extend(["--tablespace", &space]);
        }
        if has_delta {
            words.push("--delta");
        }
        if manifest {
            words.push("--manifest");
        }
        words.extend(more);
        self.good(&words);
        self.restores += 1;
        if manifest && let Some(mut command) = self.cluster.command("pg_verifybackup") {
            // Its log is in the archive, not in the copy.
            command.arg("--no-parse-wal").arg(&data);
            run(command);
        }
        folder
    }

    /// Starts what was restored, and compares it with what was recorded.
    fn expect(&mut self, folder: &Path, tables: &BTreeMap<String, String>, what: &str) {
        let data = folder.join("data");
        let copy = Cluster::adopt(&self.installation, &data)
            .config(&[("archive_mode", "off"), ("autovacuum", "off")])
            .start();
        wait_until("the copy is promoted", 120, || copy.value("select pg_is_in_recovery()") == "f");
        let mut found = copy.table_checksums();
        found.remove(BEAT);
        assert_eq!(&found, tables, "{what} came back with something else\n{}", tail(&copy.log()));
        if copy.major() >= 14
            && self.lots.once_in(2)
            && let Some(mut command) = copy.command("pg_amcheck")
        {
            command.args(["--all", "--install-missing", "--heapallindexed"]);
            run(command);
        }
        copy.stop();
        if let Some(mut command) = copy.command("pg_checksums") {
            command.arg("--check").arg("-D").arg(&data);
            run(command);
        }
        self.earlier = Some(folder.to_path_buf());
    }

    fn bring_back(&mut self) {
        let Some(at) = self.reachable() else { return };
        let target = self.target(at);
        let name = self.moments[at].name.clone();
        self.say(format!("bring back {name} with {}", target.join(" ")));
        self.archive_all();
        let folder = self.restore(&words(&target));
        let tables = self.moments[at].tables.clone();
        self.expect(&folder, &tables, &name);
    }

    /// The cluster is taken back to a moment and goes on from there.
    fn go_back(&mut self) {
        let Some(at) = self.reachable() else { return };
        let target = self.target(at);
        let name = self.moments[at].name.clone();
        self.say(format!("go back to {name} with {}", target.join(" ")));
        self.archive_all();
        self.earlier = None;
        let folder = self.restore(&words(&target));
        self.cluster.stop();
        let data = folder.join("data");
        self.cluster = Cluster::adopt(&self.installation, &data).config(&SETTINGS).create();
        // It takes over: what it archives belongs to the source from now on.
        self.configure("auto", "hash");
        self.cluster.start();
        wait_until("it is promoted", 120, || {
            self.cluster.value("select pg_is_in_recovery()") == "f"
        });
        self.returns += 1;
        assert_eq!(self.tables(), self.moments[at].tables, "{name} came back with something else");
        let segment = self.cluster.value("select pg_walfile_name(pg_current_wal_lsn())");
        self.timeline = u32::from_str_radix(&segment[..8], 16).unwrap();
        let history =
            fs::read_to_string(data.join(format!("pg_wal/{:08X}.history", self.timeline))).unwrap();
        self.history = history
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?.parse().ok()?, lsn(words.next()?)))
            })
            .collect();
        self.say(format!("timeline {}, after {:X?}", self.timeline, self.history));
        // A time is reached when something later is there.
        self.cluster.sql("insert into beat values (3)");
        // Until there is a snapshot of the new timeline, the newest one leads nowhere.
        self.back_up();
    }

    /// What an incremental backup gives is, page by page, what a full one gives.
    fn compare_ways(&mut self) {
        let detect = *self.lots.one(&["hash", "wal", "auto"]);
        let method = *self.lots.one(&["auto", "wire"]);
        let incremental = self.back_up_as("incremental", method, detect);
        let full = self.back_up_as("full", "auto", "hash");
        let mut trees = Vec::new();
        for id in [&incremental, &full] {
            let folder = self.fresh("compared");
            let data = folder.join("data");
            let space = format!("space={}", folder.join("space").display());
            let mut words = vec!["restore", id, "--to", data.to_str().unwrap(), "--immediate"];
            if self.with_space {
                words.extend(["--tablespace", &space]);
            }
            self.good(&words);
            self.restores += 1;
            let mut files = BTreeMap::new();
            read(&data.join("base"), &data, &mut files);
            read(&data.join("global"), &data, &mut files);
            read(&data.join("pg_xact"), &data, &mut files);
            if self.with_space {
                read(&folder.join("space"), &folder, &mut files);
            }
            fs::remove_dir_all(&folder).unwrap();
            trees.push(files);
        }
        let (incremental, full) = (&trees[0], &trees[1]);
        let names = |files: &BTreeMap<PathBuf, Vec<u8>>| -> Vec<PathBuf> {
            files.keys().cloned().collect()
        };
        assert_eq!(names(incremental), names(full));
        for (name, content) in full {
            let other = &incremental[name];
            assert_eq!(other.len(), content.len(), "{}", name.display());
            let page = content.chunks(8192).zip(other.chunks(8192)).position(|(a, b)| a != b);
            assert_eq!(page, None, "{} differs from page {page:?} on", name.display());
        }
        self.say(format!("{} files are alike", full.len()));
    }
}

fn words(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

/// All files below `folder`, by their path below `root`; but not what changes by itself.
fn read(folder: &Path, root: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, root, files);
        } else if !matches!(
            path.file_name().and_then(|name| name.to_str()),
            Some("pg_control" | "pg_internal.init")
        ) {
            files.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
        }
    }
}

fn run(mut command: Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
