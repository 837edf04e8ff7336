//! The command line: every flag is declared here or in the file of its command, once. Help, man
//! pages, completions and `docs/cli.md` follow from it.

use std::path::PathBuf;

use backstay_ops::{Error, ErrorKind};
use clap::error::{ContextKind, ContextValue};
use clap::{ArgAction, Args, Parser};

use crate::commands::Command;

/// Keeps data recoverable, and proves it.
///
/// Backs up PostgreSQL, SQLite, files, data lakes and the state of change-data-capture pipelines
/// into one deduplicated, compressed, encrypted repository, and restores any of it to any moment
/// that it knows.
#[derive(Debug, Parser)]
#[command(
    name = "backstay",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "Begin with `backstay init`. All commands: `backstay COMMAND --help`."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,

    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// The configuration file [env: BACKSTAY_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The repository: a configured name, a path, or an address
    #[arg(
        long,
        short,
        global = true,
        value_name = "REPOSITORY",
        env = "BACKSTAY_REPOSITORY",
        hide_env_values = true
    )]
    pub repository: Option<String>,

    /// The key file that opens it
    #[arg(
        long,
        short,
        global = true,
        value_name = "FILE",
        env = "BACKSTAY_KEY_FILE",
        hide_env_values = true
    )]
    pub key_file: Option<PathBuf>,

    /// Answer in JSON on standard output
    #[arg(long, global = true)]
    pub json: bool,

    /// Only answers and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,

    /// Say more: causes of errors, and a log on standard error; twice for more
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// What clap refused, as an error of ours.
pub fn usage_error(error: &clap::Error) -> Error {
    let rendered = error.render().to_string();
    let message = rendered
        .split("\n\n")
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    let suggestion =
        [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue]
            .into_iter()
            .find_map(|kind| match error.get(kind)? {
                ContextValue::String(one) => Some(one.clone()),
                ContextValue::Strings(several) => several.first().cloned(),
                _ => None,
            });
    let hint = match suggestion {
        Some(near) => format!("did you mean `{near}`?"),
        None => "see `backstay --help`".to_owned(),
    };
    Error::new(ErrorKind::Usage, message).with_hint(hint)
}
