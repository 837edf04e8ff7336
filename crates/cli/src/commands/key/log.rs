//! `key log`: what was done with keys.

use backstay_ops::moment;
use backstay_repo::KeyRecord;
use clap::Args;
use serde_json::json;

use super::At;
use crate::app::{Outcome, Result};
use crate::output::Style;
use crate::table::{Cell, Table};

/// Show what was done with the keys of a repository: changes from everywhere, uses on this host
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Only so many of the newest uses on this host
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 20)]
    last: usize,
}

/// What a record of the repository says, in a few words.
fn what(record: &KeyRecord) -> String {
    let kind = record.kind.map(|kind| kind.to_string()).unwrap_or_default();
    let label = match record.label.as_str() {
        "" => String::new(),
        label => format!(" {label:?}"),
    };
    format!("{kind}{label}")
}

pub(super) fn run(args: &LogArgs, it: &At<'_>) -> Result<Outcome> {
    let output = &it.app.output;
    let records = it.repository.key_records()?;
    let log = it.context.key_log();
    let mut local = match &log {
        Some(log) => log.read()?,
        None => Default::default(),
    };
    let url = it.repository.store().url();
    local.uses.retain(|used| used.repository == it.config.name || used.url == url);
    let hidden = local.uses.len().saturating_sub(args.last);
    local.uses.drain(..hidden);
    output.document(&json!({
        "repository": it.config.name,
        "records": records,
        "local": {
            "file": log.as_ref().map(|log| log.path()),
            "uses": local.uses,
            "broken": local.broken,
        },
    }))?;
    let zone = it.app.zone();
    let mut table = Table::new(&["TIME", "WHAT", "SLOT", "KIND", "COMMAND", "HOST", "USER"]);
    for record in &records {
        table.row([
            moment::local(record.time, &zone).into(),
            Cell::new(record.action.to_string(), Style::Bold),
            Cell::new(record.slot.clone(), Style::Cyan),
            what(record).into(),
            record.command.clone().into(),
            record.host.clone().into(),
            record.user.clone().into(),
        ]);
    }
    if records.is_empty() {
        output.answer("No change of keys is recorded in the repository.")?;
    } else {
        output.answer("Recorded in the repository:")?;
        output.answer(table.render(output.paint))?;
    }
    if let Some(log) = &log {
        let mut table = Table::new(&["TIME", "OUTCOME", "SLOT", "KIND", "COMMAND", "PID", "USER"]);
        for used in &local.uses {
            let style = if used.outcome == "opened" { Style::Plain } else { Style::Red };
            table.row([
                moment::local(used.time, &zone).into(),
                Cell::new(used.outcome.clone(), style),
                Cell::new(used.slot.clone().unwrap_or_else(|| "-".to_owned()), Style::Cyan),
                used.kind.clone().into(),
                used.command.clone().into(),
                used.pid.to_string().into(),
                used.user.clone().into(),
            ]);
        }
        output.answer(format!("\nUsed on this host ({}):", log.path().display()))?;
        output.answer(table.render(output.paint))?;
    }
    for broken in &local.broken {
        output.warn(&format!("the log of this host was tampered with: {broken}"), None);
    }
    Ok(Outcome::Done)
}
