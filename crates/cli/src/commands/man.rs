//! `backstay man`: manual pages, for packagers.

use std::path::PathBuf;

use backstay_ops::Error;
use clap::{Args, CommandFactory};

use crate::app::{App, Outcome, Result};
use crate::cli::Cli;

/// Write the manual pages into a folder
#[derive(Debug, Args)]
pub struct ManArgs {
    folder: PathBuf,
}

pub fn run(args: &ManArgs, app: &App) -> Result<Outcome> {
    let folder = &args.folder;
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    clap_mangen::generate_to(Cli::command(), folder)
        .map_err(|e| Error::io("write the manual pages to", folder, e))?;
    app.output.say(format!("Wrote the manual pages to {}.", folder.display()))?;
    Ok(Outcome::Done)
}
