//! `backstay check`: can this be backed up and restored?

use backstay_ops::check::{CheckItem, check_repository, check_source};
use backstay_ops::config::SourceSettings;
use clap::Args;
use serde_json::{Value, json};

use super::wal::archive_command;
use crate::app::{App, Outcome, Result};
use crate::output::Style;

/// Find out whether sources can be backed up and restored, before it matters
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Only this source, and the repositories it goes to
    source: Option<String>,
}

pub fn run(args: &CheckArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let sources: Vec<_> = match &args.source {
        Some(name) => vec![context.config.source(name)?],
        None => context.config.sources.iter().collect(),
    };
    let repositories = match sources.as_slice() {
        [only] if args.source.is_some() => context.config.repositories_of(only)?,
        _ => context.config.repositories()?,
    };
    let mut all: Vec<Value> = Vec::new();
    let mut good = true;
    let mut show =
        |what: &str, name: &str, extra: Option<&str>, items: &[CheckItem]| -> Result<()> {
            good &= items.iter().all(|item| item.ok);
            let title = match extra {
                Some(extra) => format!("{name} in {extra}"),
                None => name.to_owned(),
            };
            app.output.answer(app.output.paint.paint(Style::Bold, title))?;
            let width = items.iter().map(|item| item.name.chars().count()).max().unwrap_or(0);
            for item in items {
                let (mark, style) =
                    if item.ok { ("ok  ", Style::Green) } else { ("FAIL", Style::Red) };
                app.output.answer(format!(
                    "  {}  {:<width$}  {}",
                    app.output.paint.paint(style, mark),
                    item.name,
                    item.message
                ))?;
                if let Some(hint) = &item.hint {
                    let hint_word = app.output.paint.paint(Style::Cyan, "hint");
                    app.output.answer(format!("        {:<width$}  {hint_word}: {hint}", ""))?;
                }
                let (source, repository) =
                    if what == "source" { (Some(name), extra) } else { (None, Some(name)) };
                all.push(json!({
                    "source": source,
                    "repository": repository,
                    "name": item.name,
                    "ok": item.ok,
                    "message": item.message,
                    "hint": item.hint,
                }));
            }
            Ok(())
        };
    let mut opened = Vec::new();
    for config in &repositories {
        let (items, repository) = check_repository(context, config);
        app.show_warnings();
        show("repository", &config.name, None, &items)?;
        opened.push((&config.name, repository));
    }
    for source in &sources {
        for target in context.config.repositories_of(source)? {
            let repository =
                opened.iter().find(|(name, _)| **name == target.name).and_then(|(_, r)| r.as_ref());
            // A repository that does not open has said so.
            let Some(repository) = repository else { continue };
            let command = match &source.settings {
                SourceSettings::Postgres(_) => Some(archive_command(app, &source.name)?),
                _ => None,
            };
            let items = check_source(source, repository, command.as_deref())?;
            show("source", &source.name, Some(&target.name), &items)?;
        }
    }
    app.output.document(&json!({ "good": good, "checks": all }))?;
    if good {
        app.output.say("\nAll good.")?;
    }
    Ok(if good { Outcome::Done } else { Outcome::Failed })
}
