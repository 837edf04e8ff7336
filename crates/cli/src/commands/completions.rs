//! `backstay completions`: what a shell needs to complete words.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::app::{App, Outcome, Result};
use crate::cli::Cli;
use crate::output::write_out;

/// Write the completions of a shell to standard output
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backstay completions bash > /etc/bash_completion.d/backstay
  backstay completions zsh > ~/.zfunc/_backstay
  backstay completions fish > ~/.config/fish/completions/backstay.fish")]
pub struct CompletionsArgs {
    shell: Shell,
}

pub fn run(args: &CompletionsArgs, _: &App) -> Result<Outcome> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "backstay", &mut text);
    write_out(&text)?;
    Ok(Outcome::Done)
}
