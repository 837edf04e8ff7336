//! One file for each command: its flags, and what it does.

pub mod backup;
pub mod catalogue;
pub mod check;
pub mod completions;
pub mod copy;
pub mod diff;
pub mod dump;
pub mod find;
pub mod forget;
pub mod hold;
pub mod init;
pub mod key;
pub mod list;
pub mod maintenance;
pub mod man;
#[cfg(all(feature = "mount", target_os = "linux"))]
pub mod mount;
pub mod parity;
pub mod postgres;
pub mod receive;
pub mod replicate;
pub mod restore;
pub mod retention;
pub mod show;
pub mod status;
pub mod thaw;
pub mod verify;
pub mod wal;

mod hosts;
mod logical;
mod present;
mod rotate;

use clap::Subcommand;

use crate::app::{App, Outcome, Result};
use crate::demo;

#[derive(Debug, Subcommand)]
pub enum Command {
    Init(init::InitArgs),
    Check(check::CheckArgs),
    Backup(backup::BackupArgs),
    List(list::ListArgs),
    Show(show::ShowArgs),
    Diff(diff::DiffArgs),
    Catalogue(catalogue::CatalogueArgs),
    Find(find::FindArgs),
    Forget(forget::ForgetArgs),
    Hold(hold::HoldArgs),
    Restore(Box<restore::RestoreArgs>),
    Thaw(thaw::ThawArgs),
    Dump(dump::DumpArgs),
    Copy(copy::CopyArgs),
    Replicate(replicate::ReplicateArgs),
    #[cfg(all(feature = "mount", target_os = "linux"))]
    Mount(mount::MountArgs),
    Verify(verify::VerifyArgs),
    Parity(parity::ParityArgs),
    Maintenance(maintenance::MaintenanceArgs),
    Retention(retention::RetentionArgs),
    Status(status::StatusArgs),
    #[command(subcommand)]
    Wal(wal::WalCommand),
    #[command(subcommand)]
    Postgres(postgres::PostgresCommand),
    #[command(subcommand)]
    Key(key::KeyCommand),
    Demo(demo::DemoArgs),
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Man(man::ManArgs),
}

pub fn run(command: Command, app: &App) -> Result<Outcome> {
    // PostgreSQL reads meaning into how these two end; they keep the default for signals.
    if !matches!(command, Command::Wal(wal::WalCommand::Push(_) | wal::WalCommand::Fetch(_))) {
        app.interrupt.handle();
    }
    match command {
        Command::Init(args) => init::run(&args, app),
        Command::Check(args) => check::run(&args, app),
        Command::Backup(args) => backup::run(&args, app),
        Command::List(args) => list::run(&args, app),
        Command::Show(args) => show::run(&args, app),
        Command::Diff(args) => diff::run(&args, app),
        Command::Catalogue(args) => catalogue::run(&args, app),
        Command::Find(args) => find::run(&args, app),
        Command::Forget(args) => forget::run(&args, app),
        Command::Hold(args) => hold::run(&args, app),
        Command::Restore(args) => restore::run(&args, app),
        Command::Thaw(args) => thaw::run(&args, app),
        Command::Dump(args) => dump::run(&args, app),
        Command::Copy(args) => copy::run(&args, app),
        Command::Replicate(args) => replicate::run(&args, app),
        #[cfg(all(feature = "mount", target_os = "linux"))]
        Command::Mount(args) => mount::run(&args, app),
        Command::Verify(args) => verify::run(&args, app),
        Command::Parity(args) => parity::run(&args, app),
        Command::Maintenance(args) => maintenance::run(&args, app),
        Command::Retention(args) => retention::run(&args, app),
        Command::Status(args) => status::run(&args, app),
        Command::Wal(command) => wal::run(&command, app),
        Command::Postgres(command) => postgres::run(&command, app),
        Command::Key(command) => key::run(&command, app),
        Command::Demo(args) => demo::run(&args, app),
        Command::Completions(args) => completions::run(&args, app),
        Command::Man(args) => man::run(&args, app),
    }
}
