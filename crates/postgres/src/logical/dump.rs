//! One database: its catalogue and its dump, of one moment, into the tree of a session.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use backstay_repo::{
    Body, Chunking, Content, ContentError, Entry, EntryKind, FileContent, Metadata, Progress,
    Reader, Session as Writing, TreeWriter,
};

use super::catalogue::{Catalogue, read};
use super::programs::{self, Program, Said};
use super::spool::{self, Event, Follow, Spool, Watch};
use super::toc::Toc;
use super::{LogicalSource, names};
use crate::connection::Parameters;
use crate::session::Session;
use crate::{PostgresError, PostgresErrorKind, Result};

/// How often a catalogue is read again that changed under the reader.
const ATTEMPTS: u32 = 3;

/// What holds for all databases of a backup.
pub(super) struct Dumping<'a> {
    pub source: &'a LogicalSource,
    pub parameters: &'a Parameters,
    pub program: &'a Program,
    pub spool: &'a Spool,
    pub jobs: usize,
    pub progress: &'a Progress,
    pub owner: (u32, u32),
}

/// Paths that files were handed in under, and those that they are to have.
pub(super) type Renamed = HashMap<Vec<u8>, Vec<u8>>;

/// What became of a database.
pub(super) struct Dumped {
    pub catalogue: Catalogue,
    pub renamed: Renamed,
    pub warnings: Vec<String>,
}

/// Content that is in memory.
pub(super) struct Text(pub Vec<u8>);

impl Content for Text {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        Ok(self)
    }
}

impl Reader for Text {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.as_slice().read_at(offset, buffer)
    }
}

impl Dumping<'_> {
    /// An entry that says of itself what never changes: what was dumped has no times of its own.
    pub(super) fn entry(&self, path: impl Into<Vec<u8>>, kind: EntryKind) -> Entry {
        let mode = if matches!(kind, EntryKind::Directory) { 0o700 } else { 0o600 };
        let (uid, gid) = self.owner;
        Entry { path: path.into(), meta: Metadata { mode, uid, gid, ..Metadata::default() }, kind }
    }

    fn file(&self, path: impl Into<Vec<u8>>, size: u64) -> Entry {
        let body = Body::Extents(Vec::new());
        self.entry(path, EntryKind::File(FileContent { size, body }))
    }

    pub(super) fn add_text(
        &self,
        tree: &mut TreeWriter<'_>,
        path: String,
        text: Vec<u8>,
    ) -> Result<()> {
        let entry = self.file(path, text.len() as u64);
        Ok(tree.file(entry, Box::new(Text(text)), Chunking::ContentDefined)?)
    }

    /// Dumps one database. What was handed in until an error is to be left out of the tree.
    pub(super) fn database(&self, tree: &mut TreeWriter<'_>, name: &str) -> Result<Dumped> {
        let mut parameters = self.parameters.clone();
        parameters.set_database(name);
        let mut session = Session::with(&parameters)?;
        let mut attempt = 0;
        let (snapshot, mut catalogue) = loop {
            attempt += 1;
            match self.begin(&mut session, name) {
                // An object was dropped between two questions: its definition is not to be had.
                Err(error) if error.kind() == PostgresErrorKind::Server && attempt < ATTEMPTS => {
                    tracing::warn!(%error, "the catalogue changed while it was read");
                    session.run("end the transaction", "ROLLBACK")?;
                }
                begun => break begun?,
            }
        };
        let folder = self.spool.path().join(names::part(name));
        // The folder has to be there to be watched; pg_dump takes one that is empty.
        std::fs::create_dir(&folder)
            .map_err(|error| PostgresError::io("create", &folder, error))?;
        let said = self.run(tree, name, &folder, &parameters, &snapshot)?;
        // The snapshot was there for all of it.
        session.alive()?;
        session.run("end the transaction", "COMMIT")?;
        let (toc, renamed) = self.finish(tree, name, &folder)?;
        for entry in toc.entries.iter().filter(|entry| entry.kind == "TABLE DATA") {
            if let (Some(schema), Some(file)) = (&entry.schema, &entry.file) {
                catalogue.files.insert(format!("{schema}.{}", entry.name), file.clone());
            }
        }
        // Small files are read a while after they were handed in, several at once.
        tree.wait()?;
        std::fs::remove_dir_all(&folder)
            .map_err(|error| PostgresError::io("remove", &folder, error))?;
        let document = document(&catalogue)?;
        self.add_text(tree, names::catalogue(name), document)?;
        Ok(Dumped { catalogue, renamed, warnings: programs::warnings(&said) })
    }

    /// Begins the transaction whose view of the database all of the dump has.
    fn begin(&self, session: &mut Session, name: &str) -> Result<(String, Catalogue)> {
        self.progress.set_phase("reading the catalogue");
        session.run("begin a transaction", "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")?;
        let milliseconds = self.source.lock_timeout.as_millis();
        session.run("limit waiting", &format!("SET LOCAL lock_timeout = {milliseconds}"))?;
        let snapshot: String =
            session.one("export the snapshot", "SELECT pg_export_snapshot()", &[])?;
        let catalogue = read::read(session, name)?;
        Ok((snapshot, catalogue))
    }

    /// Runs `pg_dump` and hands in its files while it writes; what it said.
    fn run(
        &self,
        tree: &mut TreeWriter<'_>,
        name: &str,
        folder: &Path,
        parameters: &Parameters,
        snapshot: &str,
    ) -> Result<String> {
        self.progress.set_phase("dumping");
        let mut command = programs::command(self.program, parameters);
        command
            .args(["--format=directory", "--compress=0", "--no-sync", "--verbose"])
            .arg(format!("--jobs={}", self.jobs))
            .arg(format!("--snapshot={snapshot}"))
            .arg(format!("--lock-wait-timeout={}", self.source.lock_timeout.as_millis()))
            .args(self.source.exclude_data.iter().map(|one| format!("--exclude-table-data={one}")))
            .arg("--file")
            .arg(folder);
        let mut child =
            command.spawn().map_err(|error| programs::cannot_run(self.program, error))?;
        let said = Said::listen(&mut child);
        let stop = AtomicBool::new(false);
        let (events, inbox) = mpsc::channel();
        let watch = Watch {
            folder: folder.to_owned(),
            child,
            progress: self.progress,
            stop: &stop,
            limit: spool::bound(self.source.spool_limit, self.jobs),
        };
        let status = std::thread::scope(|scope| {
            scope.spawn(|| watch.run(&{ events }));
            let taken = self.take(tree, name, &inbox);
            // Whoever waits is told that nothing more is wanted.
            stop.store(true, Ordering::SeqCst);
            taken
        })?;
        let said = said.map(Said::all).unwrap_or_default();
        self.progress.check()?;
        match status {
            Ok(status) if status.success() => Ok(said),
            Ok(status) => Err(failed(name, &said, &status.to_string(), self.spool)),
            Err(error) => Err(programs::cannot_run(self.program, error)),
        }
    }

    /// Hands in what there is until the dump has ended.
    fn take(
        &self,
        tree: &mut TreeWriter<'_>,
        name: &str,
        inbox: &mpsc::Receiver<Event>,
    ) -> Result<std::io::Result<std::process::ExitStatus>> {
        let below = names::dump(name);
        loop {
            match inbox.recv() {
                Ok(Event::File { name, file, size }) => {
                    // One that grows is large: it is not put into one chunk with others.
                    let entry = self.file(format!("{below}/{name}"), size.unwrap_or(u64::MAX >> 1));
                    let content = Box::new(Follow { file, size });
                    tree.file(entry, content, Chunking::ContentDefined)?;
                }
                Ok(Event::Ended(status)) => return Ok(status),
                Err(_) => return Ok(Err(std::io::Error::other("the watch over it ended"))),
            }
        }
    }

    /// Hands in what is written last, and gives the rows of tables the names of the tables.
    fn finish(
        &self,
        tree: &mut TreeWriter<'_>,
        name: &str,
        folder: &Path,
    ) -> Result<(Toc, Renamed)> {
        let below = names::dump(name);
        let read = |file: &str| {
            let path = folder.join(file);
            std::fs::read(&path).map_err(|error| PostgresError::io("read", &path, error))
        };
        let toc_bytes = read("toc.dat")?;
        let toc = Toc::parse(&toc_bytes)?;
        self.add_text(tree, format!("{below}/toc.dat"), toc_bytes)?;
        let entries =
            std::fs::read_dir(folder).map_err(|error| PostgresError::io("list", folder, error))?;
        for entry in entries.flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            if !file.ends_with(".dat") {
                self.add_text(tree, format!("{below}/{file}"), read(&file)?)?;
            }
        }
        let mut renamed = HashMap::new();
        for entry in toc.entries.iter().filter(|entry| entry.kind == "TABLE DATA") {
            let (Some(schema), Some(file)) = (&entry.schema, &entry.file) else { continue };
            let before = format!("{below}/{file}").into_bytes();
            let after = names::rows(name, schema, &entry.name).into_bytes();
            if renamed.insert(before.clone(), after.clone()).is_none() {
                // Sorted after what it is another name of.
                tree.entry(self.entry(before, EntryKind::Hardlink { to: after }))?;
            }
        }
        Ok((toc, renamed))
    }
}

/// A catalogue as it is stored: one value a line, so that what did not change is the same bytes.
pub(super) fn document(it: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(it)
        .map_err(|error| PostgresError::usage(format!("the catalogue cannot be written: {error}")))
}

fn failed(name: &str, said: &str, status: &str, spool: &Spool) -> PostgresError {
    let errors = programs::errors(said);
    let all = errors.join("; ");
    let what = if all.is_empty() { status.to_owned() } else { errors.join("; ") };
    let error = PostgresError::new(
        PostgresErrorKind::Server,
        format!("could not dump the database {name}: {what}"),
    );
    let hint = if all.contains("permission denied") {
        "grant the role pg_read_all_data (from 14 on), or connect as a superuser".to_owned()
    } else if all.contains("lock timeout") || all.contains("canceling statement due to lock") {
        "somebody holds a lock on a table; run it again later, or raise `lock-timeout`".to_owned()
    } else if all.contains("No space left") {
        format!("free space in {}, or set `spool` to another folder", spool.path().display())
    } else if all.contains("row-level security") {
        "connect as the owner of the table, or as a role with BYPASSRLS".to_owned()
    } else {
        "look into the server's log".to_owned()
    };
    error.with_hint(hint)
}

/// Whether a session has nothing more to hope for from the server itself.
pub(super) fn ends_all(error: &PostgresError, writing: &Writing) -> bool {
    error.kind() == PostgresErrorKind::Repo || writing.check().is_err()
}
