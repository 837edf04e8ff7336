//! `backstay list`: the snapshots there are.

use backstay_ops::moment;
use backstay_ops::units::{count, format_size, group};
use backstay_ops::{Error, ErrorKind};
use clap::Args;
use serde_json::json;

use super::present::{age_text, failed_documents, snapshot_document, tags};
use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::table::{Cell, Table};

/// Show the snapshots there are, oldest first
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only snapshots of this source
    source: Option<String>,

    /// Only snapshots that carry this tag
    #[arg(long, value_name = "KEY=VALUE", value_parser = super::backup::parse_tag)]
    tag: Vec<(String, String)>,

    /// Only so many of the newest
    #[arg(long, short = 'n', value_name = "COUNT")]
    last: Option<usize>,
}

pub fn run(args: &ListArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let mut found = Vec::new();
    let mut sources = Vec::new();
    let asked = context.ask_all(|config, repository| {
        for snapshot in repository.snapshots()? {
            sources.push(snapshot.source.clone());
            let wanted = args.source.as_ref().is_none_or(|source| source == &snapshot.source)
                && args.tag.iter().all(|(key, value)| snapshot.tags.get(key) == Some(value));
            if wanted {
                found.push((config.name.clone(), snapshot));
            }
        }
        Ok(())
    })?;
    let outcome = if asked.failed.is_empty() { Outcome::Done } else { Outcome::Partial };
    app.show_warnings();
    if let Some(name) = &args.source {
        let configured = context.config.sources.iter().any(|source| &source.name == name);
        // It may be in the one that could not be asked.
        if !configured && asked.failed.is_empty() && !sources.contains(name) {
            sources.extend(context.config.sources.iter().map(|source| source.name.clone()));
            sources.sort();
            sources.dedup();
            let hint = match backstay_ops::config::nearest(name, &sources) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are {}", backstay_ops::config::listed(&sources)),
            };
            return Err(Error::new(ErrorKind::Usage, format!("no source is called `{name}`"))
                .with_hint(hint));
        }
    }
    // Stable: those of one pass stay in the order of the repositories.
    found.sort_by_key(|one| one.1.time);
    if let Some(last) = args.last {
        found.drain(..found.len().saturating_sub(last));
    }
    let documents: Vec<_> =
        found.iter().map(|(name, snapshot)| snapshot_document(snapshot, name)).collect();
    app.output.document(&json!({
        "snapshots": documents,
        "failed": failed_documents(&asked.failed),
    }))?;
    if found.is_empty() {
        let of = args.source.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
        app.output.answer(format!("No snapshots{of} yet."))?;
        app.output.say("Make one with `backstay backup`.")?;
        return Ok(outcome);
    }
    let several = app.several_repositories()?;
    let with_tags = found.iter().any(|(_, snapshot)| !snapshot.tags.is_empty());
    let mut heads = vec!["ID", "SOURCE", "TYPE", "TIME", "AGE", ">FILES", ">SIZE", ">STORED"];
    if several {
        heads.push("REPOSITORY");
    }
    if with_tags {
        heads.push("TAGS");
    }
    heads.push("");
    let mut table = Table::new(&heads);
    let (now, zone) = (app.now(), app.zone());
    for (name, snapshot) in &found {
        let mut row: Vec<Cell> = vec![
            Cell::new(snapshot.short_id(), Style::Cyan),
            snapshot.source.clone().into(),
            snapshot.type_.to_string().into(),
            moment::local(snapshot.time, &zone).into(),
            Cell::new(age_text(snapshot.time, now), Style::Dim),
            group(snapshot.stats.files).into(),
            format_size(snapshot.stats.bytes).into(),
            format_size(snapshot.stats.stored_bytes).into(),
        ];
        if several {
            row.push(name.clone().into());
        }
        if with_tags {
            row.push(tags(snapshot).into());
        }
        let problems = snapshot.problems.len() as u64;
        row.push(match problems {
            0 => "".into(),
            some => Cell::new(count(some, "problem", "problems"), Style::Yellow),
        });
        table.row(row);
    }
    app.output.answer(table.render(app.output.paint))?;
    Ok(outcome)
}
