//! The command line: every flag is declared here or in the file of its command, once. Help, man
//! pages, completions and `docs/cli.md` follow from it.

use std::path::PathBuf;

use backstay_ops::config::listed;
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

    /// The age identity file that opens it
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        conflicts_with = "key_file",
        env = "BACKSTAY_IDENTITY",
        hide_env_values = true
    )]
    pub identity: Option<PathBuf>,

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
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let usage = usage_line(&error.render().to_string());
        return Error::new(ErrorKind::Usage, "a command is missing").with_hint(usage);
    }
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
    let values = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => Some(listed(values)),
        _ => None,
    };
    let hint = match (suggestion, values) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, Some(values)) => format!("there are {values}"),
        (None, None) if error.kind() == clap::error::ErrorKind::InvalidSubcommand => {
            "see `backstay --help` for the commands there are".to_owned()
        }
        (None, None) => usage_line(&rendered),
    };
    let message = message.split(" [possible values").next().unwrap_or(&message).to_owned();
    Error::new(ErrorKind::Usage, message).with_hint(hint)
}

/// How the command is used, from what clap says of it.
fn usage_line(rendered: &str) -> String {
    let line = rendered.lines().find_map(|line| line.strip_prefix("Usage: "));
    match line {
        Some(usage) => format!("it is used like this: {}", usage.trim()),
        None => "see `backstay --help`".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::path::Path;

    use clap::{Command, CommandFactory};

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_clap_refuses_is_a_sentence_and_a_hint() {
        let refused = |words: &[&str]| {
            let error = Cli::try_parse_from(words).unwrap_err();
            let error = usage_error(&error);
            assert_eq!(error.kind(), ErrorKind::Usage);
            format!("{error} / {}", error.hint().unwrap())
        };
        assert_eq!(
            refused(&["backstay", "lst"]),
            "unrecognized subcommand 'lst' / did you mean `list`?"
        );
        assert_eq!(
            refused(&["backstay", "list", "--lasst", "3"]),
            "unexpected argument '--lasst' found / did you mean `--last`?"
        );
        assert_eq!(
            refused(&["backstay", "wal", "fetch", "x"]),
            "the following required arguments were not provided: <DESTINATION> / it is used like \
             this: backstay wal fetch <NAME> <DESTINATION>"
        );
        assert!(refused(&["backstay", "backup", "x", "--type", "ful"]).ends_with("`full`?"));
        assert!(refused(&["backstay"]).starts_with("a command is missing / it is used like this"));
    }

    #[test]
    fn the_reference_page_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
        let wanted = reference();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &wanted).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == wanted, "docs/cli.md is old: run this test with UPDATE_DOCS=1");
    }

    /// `docs/cli.md`, whole: the help of every command.
    fn reference() -> String {
        let mut out = String::from(
            "<!-- Written by the program from the declarations in crates/cli/src. -->\n\
             # The command line\n\n\
             Answers go to standard output, everything else to standard error. Every command takes \
             the flags\nunder *Everywhere*; `--json` answers in the shapes of [json.md](json.md). \
             The configuration is\ndescribed in [configuration.md](configuration.md).\n\n\
             ## Exit codes\n\n\
             | code | meaning |\n|---|---|\n\
             | 0 | done |\n\
             | 1 | failed, nothing lost |\n\
             | 2 | wrong usage or configuration |\n\
             | 3 | done in part: some items could not be read or written, and were listed |\n\
             | 10 | no such repository |\n\
             | 11 | locked or busy |\n\
             | 12 | wrong key |\n\
             | 20 | something stored is damaged |\n\
             | 130 | interrupted |\n\n\
             `wal push` and `wal fetch` follow PostgreSQL's contract instead: see there.\n\n\
             ## Moments\n\n\
             `--at` takes a moment in local time (`\"2026-11-21 10:00:00\"`), one with its offset \
             \n(`2026-11-21T10:00:00Z`, `\"2026-11-21 10:00:00+01\"`) or one so long ago \
             (`\"10 minutes ago\"`).\nWhat could be two moments (a date alone, an hour that the \
             clocks repeat) is refused.\n",
        );
        let mut root = Cli::command().term_width(100);
        root.build();
        describe(&mut out, &mut root, "backstay", true);
        out
    }

    fn describe(out: &mut String, command: &mut Command, name: &str, top: bool) {
        let _ = writeln!(out, "\n## {name}\n");
        let help = if top {
            command.render_long_help().to_string()
        } else {
            // What holds everywhere is said once.
            let flags: Vec<String> =
                command.get_arguments().map(|argument| argument.get_id().to_string()).collect();
            let everywhere =
                ["config", "repository", "key_file", "identity", "json", "quiet", "verbose"];
            let mut command = command.clone();
            for flag in flags.iter().filter(|flag| everywhere.contains(&flag.as_str())) {
                command = command.mut_arg(flag, |argument| argument.hide(true));
            }
            command.render_long_help().to_string()
        };
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        let _ = writeln!(out, "```\n{}\n```", lines.join("\n").trim_end());
        for sub in command.get_subcommands_mut().filter(|sub| !sub.is_hide_set()) {
            let name = format!("{name} {}", sub.get_name());
            describe(out, sub, &name, false);
        }
    }
}
