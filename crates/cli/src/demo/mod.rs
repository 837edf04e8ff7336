//! A whole disaster and recovery on throw-away data.
//!
//! `cluster` does it with a PostgreSQL server, `local` with an SQLite database and a folder where no
//! PostgreSQL is to be had. Everything happens in one folder that is removed at the end, also after
//! Ctrl-C or an error.

mod cluster;
mod local;
mod report;
mod stage;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use backstay_ops::{Error, ErrorKind};
use backstay_postgres::restore::find_program;
use clap::Args;

use crate::app::{App, Outcome, Result};
use stage::Stage;

/// A whole disaster and recovery, on throw-away data
///
/// Makes a PostgreSQL cluster, a repository and a key in a temporary folder, backs up, keeps
/// writing, drops a table, restores to the moment before, and proves by queries that every row up to
/// that moment is back and none after it. Without PostgreSQL on this machine it does the same with an
/// SQLite database and a folder. Nothing is left behind.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Use an SQLite database and a folder, also where PostgreSQL is installed
    #[arg(long)]
    local: bool,

    /// The folder to work in: for the part that runs as an unprivileged user
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

/// Majors to look for, newest first.
const MAJORS: [u32; 6] = [18, 17, 16, 15, 14, 13];

pub fn run(args: &DemoArgs, app: &App) -> Result<Outcome> {
    // From before there is anything to clear away.
    let _graceful = app.interrupt.graceful();
    let postgres = if args.local { None } else { find_postgres() };
    if let Some(folder) = &args.inside {
        let Some((major, bin)) = postgres else {
            return Err(Error::new(ErrorKind::Failed, "PostgreSQL is not there any more"));
        };
        // Whoever started us clears the folder away; if that process dies, there is no point in
        // going on, and this is like Ctrl-C.
        if let Err(error) =
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        {
            tracing::debug!(%error, "not told when the parent dies");
        }
        return cluster::run(app, &Stage::in_folder(folder)?, major, &bin);
    }
    let stage = Stage::make()?;
    match postgres {
        Some((major, bin)) if rustix::process::geteuid().is_root() => {
            as_unprivileged(app, &stage, major, &bin)
        }
        Some((major, bin)) => cluster::run(app, &stage, major, &bin),
        None => {
            if !args.local {
                app.output.warn(
                    "no PostgreSQL was found on this machine: this is the demo with an SQLite \
                     database and a folder",
                    Some("install PostgreSQL (on Debian and Ubuntu: apt install postgresql) for the whole of it"),
                );
            }
            local::run(app, &stage)
        }
    }
}

/// The newest PostgreSQL here that can also make a cluster.
fn find_postgres() -> Option<(u32, PathBuf)> {
    MAJORS.into_iter().find_map(|major| {
        let program = find_program(major, None).ok()?;
        let bin = program.parent()?.to_owned();
        bin.join("initdb").is_file().then_some((major, bin))
    })
}

/// PostgreSQL refuses to run as root, so everything does what a user without rights can do.
fn as_unprivileged(app: &App, stage: &Stage, major: u32, bin: &Path) -> Result<Outcome> {
    let (uid, gid) = unprivileged().ok_or_else(|| {
        Error::new(ErrorKind::Failed, "there is neither a user postgres nor a user nobody")
            .with_hint("run the demo as a user other than root, or say `backstay demo --local`")
    })?;
    // The program may lie where that user cannot look.
    let program = stage.folder().join("backstay");
    let own = std::env::current_exe()
        .map_err(|e| stage::io("find this program", Path::new("/proc/self/exe"), e))?;
    std::fs::copy(&own, &program).map_err(|e| stage::io("copy this program to", &program, e))?;
    stage.give_to(uid, gid)?;
    let mut command = Command::new(&program);
    command.args(["demo", "--inside"]).arg(stage.folder());
    if app.global.json {
        command.arg("--json");
    }
    if app.global.quiet {
        command.arg("--quiet");
    }
    command.current_dir(stage.folder()).env("HOME", stage.folder()).uid(uid).gid(gid);
    // Ctrl-C reaches it through us, once: a second signal would end it before it has cleared away.
    command.process_group(0);
    let mut child = command.spawn().map_err(|e| stage::io("start", &program, e))?;
    let status =
        stage::wait(&mut child, &app.interrupt).map_err(|e| stage::io("wait for", &program, e))?;
    stage.stop_servers(bin, major);
    match status.code() {
        Some(0) => Ok(Outcome::Done),
        // It said itself what went wrong.
        Some(code) => {
            stage.remove();
            std::process::exit(code)
        }
        None => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
    }
}

fn unprivileged() -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    ["postgres", "nobody"].into_iter().find_map(|name| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}
