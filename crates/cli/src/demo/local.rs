//! The demo without a server: an SQLite database and a folder.

use std::fs;
use std::path::Path;
use std::time::Instant;

use backstay_ops::{Error, ErrorKind};
use backstay_repo::{Progress, RestoreOptions};
use backstay_sources::files::FilesSource;
use backstay_sources::{BackupOptions, Source, SqliteSource};
use rusqlite::Connection;

use super::report::{Proof, Report, Scenes, grouped, size};
use super::stage::{Stage, io};
use crate::app::{App, Outcome, Result};

const ROWS: i64 = 50_000;
const NOTES: usize = 500;

pub fn run(app: &App, stage: &Stage) -> Result<Outcome> {
    let report = play(app, stage)?;
    stage.remove();
    report.print(app)?;
    Ok(if report.is_good() { Outcome::Done } else { Outcome::Failed })
}

fn sqlite(error: rusqlite::Error) -> Error {
    Error::new(ErrorKind::Failed, format!("SQLite: {error}"))
}

fn sum(database: &Path) -> Result<String> {
    let connection = Connection::open(database).map_err(sqlite)?;
    connection
        .query_row("SELECT count(*) || ' rows, sum ' || sum(id * amount) FROM orders", [], |row| {
            row.get(0)
        })
        .map_err(sqlite)
}

fn notes(folder: &Path) -> Result<String> {
    let mut total = 0_u64;
    let mut count = 0;
    for entry in fs::read_dir(folder).map_err(|e| io("read", folder, e))? {
        let path = entry.map_err(|e| io("read", folder, e))?.path();
        let bytes = fs::read(&path).map_err(|e| io("read", &path, e))?;
        count += 1;
        total = bytes
            .iter()
            .fold(total, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    }
    Ok(format!("{count} files, sum {total:016x}"))
}

fn play(app: &App, stage: &Stage) -> Result<Report> {
    let mut scenes = Scenes::new(app);
    scenes.title(&format!(
        "A database and a folder are lost, and come back (all of it in {})",
        stage.folder().display()
    ))?;

    scenes.scene("an SQLite database, a folder of notes, a repository and a key")?;
    let repository = stage.repository()?;
    let (database, folder) = (stage.path("shop.db"), stage.path("notes"));
    let connection = Connection::open(&database).map_err(sqlite)?;
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL; CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, amount INTEGER);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
             INSERT INTO orders SELECT i, 'customer ' || i % 997, i % 1000 FROM n"
        ))
        .map_err(sqlite)?;
    fs::create_dir(&folder).map_err(|e| io("make", &folder, e))?;
    for note in 0..NOTES {
        let path = folder.join(format!("note-{note:03}.txt"));
        fs::write(&path, format!("note {note}\n").repeat(1 + note * 7))
            .map_err(|e| io("write", &path, e))?;
    }
    scenes.result(&format!("{} orders, {NOTES} notes", grouped(ROWS)))?;

    scenes.scene("a backup while the database is written to")?;
    scenes.command("backstay backup shop notes")?;
    let (orders, written) = (sum(&database)?, notes(&folder)?);
    let began = Instant::now();
    let shop = SqliteSource::new("shop", &database);
    let paths =
        FilesSource { name: "notes".into(), paths: vec![folder.clone()], ..FilesSource::default() };
    let of_shop = shop.backup(&repository, &BackupOptions::default())?;
    let of_notes = paths.backup(&repository, &BackupOptions::default())?;
    let backup_seconds = began.elapsed().as_secs_f64();
    let bytes = of_shop.stats.bytes + of_notes.stats.bytes;
    let stored = of_shop.stats.stored_bytes + of_notes.stats.stored_bytes;
    scenes.result(&format!("{} stored as {}", size(bytes), size(stored)))?;

    scenes.scene("the accident: every order deleted, the notes gone")?;
    connection.execute_batch("DELETE FROM orders").map_err(sqlite)?;
    drop(connection);
    fs::remove_dir_all(&folder).map_err(|e| io("remove", &folder, e))?;
    scenes.result("nothing left")?;

    scenes.scene("back")?;
    scenes.command(
        "backstay restore shop --to restored; backstay restore notes --to restored-notes",
    )?;
    let alarm = Instant::now();
    let progress = Progress::default();
    let (to, to_notes) = (stage.path("restored"), stage.path("restored-notes"));
    backstay_sources::sqlite::restore(&repository, &of_shop, RestoreOptions::new(&to), &progress)?;
    repository.restore(&of_notes, RestoreOptions::new(&to_notes), &progress)?;
    scenes.result("restored")?;

    scenes.scene("asking the restored data")?;
    let restored = to.join("shop.db");
    let integrity: String = Connection::open(&restored)
        .and_then(|c| c.query_row("PRAGMA integrity_check", [], |row| row.get(0)))
        .map_err(sqlite)?;
    let below = folder.strip_prefix("/").unwrap_or(&folder);
    let proofs = vec![
        Proof::new("integrity of the database", "ok", integrity),
        Proof::new("orders as they were", orders, sum(&restored)?),
        Proof::new("notes as they were", written, notes(&to_notes.join(below))?),
    ];
    let rto = alarm.elapsed().as_secs_f64();
    scenes.result(&format!("{} proofs", proofs.len()))?;
    Ok(Report {
        kind: "local",
        server: None,
        lost: format!("{} orders and {NOTES} notes", grouped(ROWS)),
        proofs,
        rto,
        rpo: None,
        bytes,
        stored,
        archived: None,
        archive_stored: None,
        backup_seconds,
    })
}
