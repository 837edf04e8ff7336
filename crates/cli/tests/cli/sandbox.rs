//! A folder with something to protect, and the program run in it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

pub struct Sandbox {
    folder: TempDir,
    pub variables: BTreeMap<String, String>,
}

impl Sandbox {
    /// An empty folder.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("home")).unwrap();
        Self { folder, variables: BTreeMap::new() }
    }

    /// Files to protect, and a configuration with a repository that is there.
    pub fn ready() -> Self {
        let it = Self::new();
        it.tree();
        it.configure("");
        let init = it.run(&["init"]);
        assert_eq!(init.code, 0, "{init}");
        it
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// `data`: three files, a link and a folder.
    pub fn tree(&self) {
        self.write("data/notes.txt", "what has to be kept\n");
        self.write("data/deep/table.csv", "id,name\n".repeat(40_000));
        self.write("data/deep/empty", "");
        std::os::unix::fs::symlink("notes.txt", self.path("data/link")).unwrap();
    }

    /// Writes `backstay.toml` with the repository `main`, the source `data`, and `more`.
    pub fn configure(&self, more: &str) {
        let text = format!(
            "[repositories.main]\nurl = \"file://{0}/repo\"\nkey-file = \"main.key\"\n\n\
             [sources.data]\nkind = \"files\"\npaths = [\"data\"]\n{more}",
            self.folder.path().display()
        );
        self.write("backstay.toml", text);
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backstay"));
        command
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("TZ", "UTC")
            .envs(&self.variables)
            .args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.ran(arguments, self.command(arguments).output().unwrap())
    }

    pub fn ran(&self, arguments: &[&str], output: Output) -> Ran {
        let folder = self.folder.path().to_str().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace(folder, "[DIR]");
        Ran {
            command: arguments.join(" ").replace(folder, "[DIR]"),
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Runs what has to succeed.
    pub fn good(&self, arguments: &[&str]) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "{ran}");
        ran
    }

    /// The ids of all snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<String> {
        let list = self.json(&["list"]);
        let snapshots = list["snapshots"].as_array().unwrap();
        snapshots.iter().map(|snapshot| snapshot["id"].as_str().unwrap().to_owned()).collect()
    }

    /// The document that a command answers with.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let ran = self.run(&[arguments, &["--json"]].concat());
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran}"))
    }

    /// Every file below a folder of the sandbox.
    pub fn files(&self, name: &str) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, found) } else { found.push(path) }
            }
        }
        let mut found = Vec::new();
        walk(&self.path(name), &mut found);
        found.sort();
        found
    }
}

/// What the program did.
pub struct Ran {
    pub command: String,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "$ backstay {}", self.command)?;
        f.write_str(&self.stdout)?;
        if !self.stderr.is_empty() {
            write!(f, "--- standard error\n{}", self.stderr)?;
        }
        writeln!(f, "[exit {}]", self.code)
    }
}

/// Compares what several commands did with a file.
#[track_caller]
pub fn compare(name: &str, ran: &[Ran]) {
    let text: Vec<String> = ran.iter().map(Ran::to_string).collect();
    let filters = [
        (r"\btmp([/-])\.tmp\w+", "[TMP]"),
        (r"\b[0-9a-f]{32}\b", "[ID]"),
        (r"\b[0-9a-f]{16}\b", "[ID]"),
        (r"\b[0-9a-f]{8}\b", "[ID]"),
        (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "[TIME]"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?", "[TIME]"),
        (r"\d+(\.\d+)? ([KMG]i)?B/s", "[RATE]"),
        (r"\d+(\.\d+)? ([KMG]i)?B\b", "[SIZE]"),
        (r"\b(\d+ ms|\d+\.\d s)\b", "[TOOK]"),
        (r"\bjust now\b|\b\d+ s ago\b", "[AGE]"),
        (r"host        .*", "host        [HOST]"),
        (r"main \([^)\n]+\)", "main ([HOST])"),
        // Columns are as wide as what was replaced in them.
        (r" {3,}", "  "),
    ];
    insta::with_settings!({ filters => filters, omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(name, text.join("\n"));
    });
}
