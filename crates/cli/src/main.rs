//! The binary: arguments in, words and exit codes out.
//!
//! What lives here: what a person types and sees. What does not: anything that would be of use to
//! a server as well; that is in `ops`. Each command is one file in `commands`.

mod app;
mod ask;
mod cli;
mod commands;
mod demo;
mod interrupt;
mod output;
mod table;
mod tar;
mod work;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::app::App;
use crate::cli::Cli;
use crate::commands::Command;
use crate::commands::wal::WalCommand;
use crate::output::Output;

fn main() -> ExitCode {
    match parse() {
        Ok((cli, command)) => {
            let follows = Contract::of(&cli.command);
            // Whatever happens in `wal fetch`, nothing but the archive's own word may look like
            // "there is no such file": recovery would end early and start a new timeline.
            let result = std::panic::catch_unwind(|| run(cli, command, follows));
            result.unwrap_or_else(|_| ExitCode::from(follows.failed(101)))
        }
        Err(error) => refuse(&error, Contract::of_refused()),
    }
}

/// The arguments, and the words of the command that they name.
fn parse() -> Result<(Cli, String), clap::Error> {
    let mut command = Cli::command();
    let mut matches = command.try_get_matches_from_mut(std::env::args_os())?;
    let mut words = Vec::new();
    let mut below = &matches;
    while let Some((name, matches)) = below.subcommand() {
        words.push(name.to_owned());
        below = matches;
    }
    let cli =
        Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))?;
    Ok((cli, words.join(" ")))
}

fn run(cli: Cli, command: String, follows: Contract) -> ExitCode {
    let app = App::new(cli.global, command);
    app.output.start_log();
    let result = commands::run(cli.command, &app);
    app.show_warnings();
    match result {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            app.output.error(&error);
            ExitCode::from(follows.failed(error.kind().exit_code()))
        }
    }
}

/// Ends with what clap has to say: help and versions are answers, everything else wrong usage.
fn refuse(error: &clap::Error, follows: Contract) -> ExitCode {
    if !error.use_stderr() {
        // Nothing can be done about a terminal that is gone.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let json = std::env::args_os().any(|argument| argument == "--json");
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand && !json {
        // Whoever types the name alone wants to know what there is.
        let _ = error.print();
    } else {
        Output::new(&cli::Global { json, ..cli::Global::default() })
            .error(&cli::usage_error(error));
    }
    ExitCode::from(follows.failed(2))
}

/// What the caller reads out of exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contract {
    Ours,
    /// `archive_command`: 1 to 125; above, PostgreSQL takes the archiver for crashed.
    ArchiveCommand,
    /// `restore_command`: 1 to 125 is "no such file"; above, recovery stops.
    RestoreCommand,
}

impl Contract {
    fn of(command: &Command) -> Self {
        match command {
            Command::Wal(WalCommand::Push(_)) => Self::ArchiveCommand,
            Command::Wal(WalCommand::Fetch(_)) => Self::RestoreCommand,
            _ => Self::Ours,
        }
    }

    /// From the bare arguments, which clap refused. A value may read `wal` as well, so every place
    /// counts; and where both could be meant, recovery has more to lose.
    fn of_refused() -> Self {
        let words: Vec<_> = std::env::args_os().skip(1).collect();
        let asked = |name: &str| words.windows(2).any(|pair| pair[0] == "wal" && pair[1] == name);
        if asked("fetch") {
            Self::RestoreCommand
        } else if asked("push") {
            Self::ArchiveCommand
        } else {
            Self::Ours
        }
    }

    /// The exit code of a failure that elsewhere ends with `code`.
    fn failed(self, code: u8) -> u8 {
        match self {
            Self::Ours => code,
            Self::ArchiveCommand => {
                if (1..=125).contains(&code) {
                    code
                } else {
                    1
                }
            }
            Self::RestoreCommand => 255,
        }
    }
}
