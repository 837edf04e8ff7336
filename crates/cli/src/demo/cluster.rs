//! The demo with a PostgreSQL server.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use backstay_ops::{Error, ErrorKind};
use backstay_postgres::restore::Reached;
use backstay_postgres::session::Session;
use backstay_postgres::wal::RecoveryTarget;
use backstay_postgres::{BackupOptions, RestoreOptions, Source, StartOptions, backup, restore};
use backstay_repo::Repository;
use jiff::Timestamp;

use super::report::{Proof, Report, Scenes, grouped, size};
use super::stage::{Stage, io};
use crate::app::{App, Outcome, Result};

const PORT: u16 = 5432;
const ORDERS: i64 = 200_000;
/// Rows written one by one, each in a transaction of its own, before and after the accident.
const PAYMENTS: i64 = 400;

pub fn run(app: &App, stage: &Stage, major: u32, bin: &Path) -> Result<Outcome> {
    let played = play(app, stage, major, bin);
    stage.stop_servers(bin, major);
    let report = played?;
    stage.remove();
    report.print(app)?;
    Ok(if report.is_good() { Outcome::Done } else { Outcome::Failed })
}

/// The sum of a table: its rows in order, hashed.
const ORDERS_SUM: &str = "SELECT count(*) || ' rows, md5 ' || coalesce(left(md5(string_agg(o::text, '|' ORDER BY id)), 12), '-') \
     FROM public.orders o";
const PAYMENTS_SUM: &str = "SELECT count(*) || ' rows, md5 ' || coalesce(left(md5(string_agg(p::text, '|' ORDER BY id)), 12), '-') \
     FROM public.payments p";

fn play(app: &App, stage: &Stage, major: u32, bin: &Path) -> Result<Report> {
    let mut scenes = Scenes::new(app);
    scenes.title(&format!(
        "A table is dropped in PostgreSQL {major}, and comes back (all of it in {})",
        stage.folder().display()
    ))?;

    scenes.scene("a cluster, a repository, a key, and an archive for every change")?;
    let repository = stage.repository()?;
    let directory = stage.path("cluster");
    let program = configuration(stage, &directory)?;
    make_cluster(stage, bin, &directory, &program)?;
    let source = Source {
        name: "shop".into(),
        connection: format!(
            "host={} port={PORT} user=demo dbname=postgres",
            stage.folder().display()
        ),
        data_directory: Some(directory.clone()),
    };
    let mut sql = Session::open(&source)?;
    let server: String =
        sql.one("ask for the version", "SELECT split_part(version(), ' on ', 1)", &[])?;
    scenes.result(&format!("{server}, archive_command = backstay wal push %p"))?;

    scenes.scene("a shop with orders")?;
    sql.run(
        "make the tables",
        &format!(
            "CREATE TABLE public.orders (id int PRIMARY KEY, customer text, amount numeric, placed timestamptz);
             CREATE TABLE public.payments (id int PRIMARY KEY, paid timestamptz DEFAULT clock_timestamp());
             INSERT INTO public.orders SELECT n, 'customer ' || n % 9973, (n % 100000) / 100.0,
                 now() - n * interval '1 minute' FROM generate_series(1, {ORDERS}) n"
        ),
    )?;
    scenes.result(&format!("{} orders", grouped(ORDERS)))?;

    scenes.scene("a full backup while the shop is open")?;
    scenes.command("backstay backup shop")?;
    let made = backup(&repository, &source, &BackupOptions::default())?;
    let stats = made.snapshot.stats;
    let backup_time = scenes.result(&format!(
        "snapshot {}: {} in {} files, stored as {}",
        made.snapshot.short_id(),
        size(stats.bytes),
        stats.files,
        size(stats.stored_bytes)
    ))?;

    scenes.scene("the shop goes on: rows that no backup has, only the archive")?;
    pay(&mut sql, 1, PAYMENTS)?;
    sql.run("write", "DELETE FROM public.orders WHERE id % 10 = 0")?;
    scenes.result(&format!("{PAYMENTS} payments, {} orders cancelled", grouped(ORDERS / 10)))?;

    scenes.scene("somebody drops the wrong table")?;
    let orders: String = sql.one("read orders", ORDERS_SUM, &[])?;
    let payments: String = sql.one("read payments", PAYMENTS_SUM, &[])?;
    let before = moment(&mut sql)?;
    // The accident has to have a later time than the moment that we go back to.
    while moment(&mut sql)? <= before {}
    sql.run("drop the table", "DROP TABLE public.orders")?;
    let accident = moment(&mut sql)?;
    scenes.command("DROP TABLE orders;")?;
    scenes.result(&format!("at {accident}, and nobody notices"))?;

    scenes.scene("business as usual, then the alarm; the server is stopped and its disk wiped")?;
    pay(&mut sql, PAYMENTS + 1, 2 * PAYMENTS)?;
    let segment: String =
        sql.one("switch to a new segment", "SELECT pg_walfile_name(pg_switch_wal())", &[])?;
    wait_for_archive(app, &repository, made.detail.system_identifier, &segment)?;
    drop(sql);
    stop(bin, &directory)?;
    let archive = repository.archive(made.detail.system_identifier).list(None)?;
    fs::remove_dir_all(&directory).map_err(|e| io("remove", &directory, e))?;
    scenes.result(&format!(
        "{PAYMENTS} more payments; what is left: {} in the repository",
        size(repository.usage()?.packs.bytes + archive.iter().map(|f| f.stored).sum::<u64>())
    ))?;

    scenes.scene("back to the moment before")?;
    scenes.command(&format!("backstay restore shop --to restored --at '{before}' --start"))?;
    let alarm = Instant::now();
    let restored_to = stage.path("restored");
    let mut options = RestoreOptions::new(&restored_to, format!("{program} wal fetch %f %p"));
    options.target = RecoveryTarget::Time(before);
    options.start = Some(StartOptions {
        bin_dir: Some(bin.to_owned()),
        sandbox: true,
        socket_directory: Some(stage.folder().to_owned()),
        port: Some(PORT),
        connection: Some(source.connection.clone()),
        timeout: Some(Duration::from_secs(300)),
        ..StartOptions::default()
    });
    let mut back = restore(&repository, &made.snapshot, &options)?;
    let reached = back.reached().cloned();
    scenes.result(&format!(
        "files in {:.1} s, {} of WAL replayed in {:.1} s{}",
        back.copied.as_secs_f64(),
        size(wal_between(&made.detail.start_lsn.0, &reached)),
        back.recovered.unwrap_or_default().as_secs_f64(),
        reached
            .and_then(|r| r.time)
            .map(|time| format!(", last commit {time}"))
            .unwrap_or_default()
    ))?;

    scenes.scene("asking the restored server")?;
    let mut sql = Session::open(&Source { data_directory: None, ..source })?;
    let gone: i64 = sql.one(
        "count payments",
        "SELECT count(*) FROM public.payments WHERE id > $1::int8",
        &[&PAYMENTS],
    )?;
    let proofs = vec![
        Proof::new(
            "orders as before the accident",
            orders,
            sql.one::<String>("read orders", ORDERS_SUM, &[])?,
        ),
        Proof::new(
            "payments up to that moment",
            payments,
            sql.one::<String>("read payments", PAYMENTS_SUM, &[])?,
        ),
        Proof::new("payments after that moment", 0, gone),
        Proof::new(
            "it takes writes again",
            "yes",
            if sql.one::<bool>("ask for its state", "SELECT NOT pg_is_in_recovery()", &[])? {
                "yes"
            } else {
                "no"
            },
        ),
    ];
    let rto = alarm.elapsed();
    drop(sql);
    if let Some(running) = back.running.take() {
        running.stop()?;
    }
    scenes.result(&format!("{} proofs", proofs.len()))?;
    let segments = archive.iter().filter(|file| file.name.len() == 24);
    Ok(Report {
        kind: "postgres",
        server: Some(server),
        lost: format!(
            "the table orders, {} rows, and with it the whole disk",
            grouped(ORDERS - ORDERS / 10)
        ),
        proofs,
        rto: rto.as_secs_f64(),
        rpo: Some(accident.duration_since(before).as_secs_f64()),
        bytes: stats.bytes,
        stored: stats.stored_bytes,
        archived: Some(segments.clone().count() as u64 * (16 << 20)),
        archive_stored: Some(segments.map(|file| file.stored).sum()),
        backup_seconds: backup_time.as_secs_f64(),
    })
}

fn wal_between(start: &u64, reached: &Option<Reached>) -> u64 {
    reached.as_ref().and_then(|r| r.lsn).map_or(0, |lsn| lsn.0.saturating_sub(*start))
}

/// Writes the configuration; returns how the server calls this program.
fn configuration(stage: &Stage, directory: &Path) -> Result<String> {
    let folder = stage.folder().display();
    let text = format!(
        "[repositories.demo]\nurl = \"file://{folder}/repository\"\nkey-file = \"{folder}/demo.key\"\n\n\
         [sources.shop]\nkind = \"postgres\"\nconnection = \"host={folder} port={PORT} user=demo dbname=postgres\"\n\
         data-directory = \"{}\"\n",
        directory.display()
    );
    let path = stage.write("backstay.toml", &text)?;
    let program = std::env::current_exe()
        .map_err(|e| io("find this program", Path::new("/proc/self/exe"), e))?;
    Ok(format!("{} --config {}", program.display(), path.display()))
}

fn make_cluster(stage: &Stage, bin: &Path, directory: &Path, program: &str) -> Result<()> {
    let mut initdb = Command::new(bin.join("initdb"));
    initdb
        .args(["--auth=trust", "--username=demo", "--encoding=UTF8", "--no-locale", "-k", "-D"])
        .arg(directory);
    run_quietly(&mut initdb)?;
    let settings = format!(
        "\nlisten_addresses = ''\nunix_socket_directories = '{}'\nport = {PORT}\nwal_level = replica\n\
         archive_mode = on\narchive_command = '{program} wal push %p'\nlog_min_messages = warning\n",
        stage.folder().display()
    );
    let path = directory.join("postgresql.conf");
    let mut text = fs::read_to_string(&path).map_err(|e| io("read", &path, e))?;
    text.push_str(&settings);
    fs::write(&path, text).map_err(|e| io("write", &path, e))?;
    let mut start = pg_ctl(bin, directory);
    start.args(["start", "-w", "-t", "60", "-l"]).arg(stage.path("server.log"));
    run_quietly(&mut start)
}

fn pg_ctl(bin: &Path, directory: &Path) -> Command {
    let mut command = Command::new(bin.join("pg_ctl"));
    command.arg("-D").arg(directory);
    command
}

fn stop(bin: &Path, directory: &Path) -> Result<()> {
    run_quietly(pg_ctl(bin, directory).args(["stop", "-m", "immediate", "-w"]))
}

fn run_quietly(command: &mut Command) -> Result<()> {
    let program = PathBuf::from(command.get_program());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Ctrl-C is for us; a server is stopped afterwards.
    command.process_group(0);
    // What a server inherits it keeps open: errors go to a pipe only for programs that end.
    let output = command
        .spawn()
        .and_then(|child| child.wait_with_output())
        .map_err(|e| io("run", &program, e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(ErrorKind::Failed, format!("{} failed: {}", program.display(), said.trim())))
}

fn moment(sql: &mut Session) -> Result<Timestamp> {
    let text: String = sql.one(
        "ask for the time",
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
        &[],
    )?;
    text.parse().map_err(|error| {
        Error::new(ErrorKind::Failed, format!("the server's time {text}: {error}"))
    })
}

fn pay(sql: &mut Session, from: i64, to: i64) -> Result<()> {
    for id in from..=to {
        sql.rows("write a payment", "INSERT INTO public.payments (id) VALUES ($1::int8)", &[&id])?;
    }
    Ok(())
}

fn wait_for_archive(app: &App, repository: &Repository, system: u64, segment: &str) -> Result<()> {
    let archive = repository.archive(system);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !archive.contains(segment)? {
        if app.interrupt.is_requested() {
            return Err(Error::new(
                ErrorKind::Interrupted,
                "interrupted; everything was cleared away",
            ));
        }
        if Instant::now() > deadline {
            return Err(Error::new(
                ErrorKind::Failed,
                format!("{segment} did not reach the archive within a minute"),
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
