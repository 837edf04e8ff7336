//! `backstay replicate`: what the configuration says is to be copied.

use backstay_ops::replicate;
use backstay_ops::{Error, ErrorKind};
use clap::Args;
use serde_json::json;

use super::copy;
use crate::app::{App, Outcome, Result};
use crate::output::{Style, error_document, write_err};
use crate::work;

/// Copy from repository to repository what the configuration asks for
#[derive(Debug, Args)]
#[command(override_usage = "backstay replicate <NAME>... | --all [OPTIONS]")]
#[command(
    after_help = "A [replication.NAME] of the configuration says `from` and `to`. Done again, only what is new
is copied; `backstay status` shows what waits."
)]
pub struct ReplicateArgs {
    /// Replications by name
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<String>,

    /// Every replication
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

pub fn run(args: &ReplicateArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let names: Vec<String> = if args.all {
        context.config.replication.keys().cloned().collect()
    } else {
        args.names.clone()
    };
    if names.is_empty() {
        // It says how to make one.
        context.config.replication("")?;
    }
    for name in &names {
        context.config.replication(name)?;
    }
    let (mut documents, mut failed) = (Vec::new(), Vec::new());
    let mut outcomes = Vec::new();
    for name in &names {
        let (_, from, to) = replicate::policy(context, name)?;
        let result =
            work::run(app, name, |progress| replicate::run_policy(context, name, progress));
        app.show_warnings();
        match result {
            Ok(report) => {
                app.output.say(format!(
                    "{}  {} to {}",
                    app.output.paint.paint(Style::Bold, name),
                    from.name,
                    to.name
                ))?;
                copy::present(app, &report, &from.name, &to.name)?;
                let mut document = copy::document(&report, &from.name, &to.name);
                document["name"] = name.as_str().into();
                documents.push(document);
                outcomes.push(copy::outcome(&report)?);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) if names.len() == 1 => return Err(error),
            Err(error) => {
                if !app.output.json {
                    write_err(&app.output.error_text_of(name, &error));
                }
                outcomes.push(Outcome::FailedAs(error.kind()));
                failed.push((name.clone(), error));
            }
        }
    }
    let failed: Vec<_> = failed
        .iter()
        .map(|(name, error): &(String, Error)| {
            json!({ "name": name, "error": error_document(error) })
        })
        .collect();
    app.output.document(&json!({ "replications": documents, "failed": failed }))?;
    let good = |outcome: &Outcome| *outcome == Outcome::Done;
    Ok(match (outcomes.iter().all(good), outcomes.iter().any(good)) {
        (true, _) => Outcome::Done,
        (false, true) => Outcome::Partial,
        (false, false) => outcomes.into_iter().next().unwrap_or(Outcome::Failed),
    })
}
