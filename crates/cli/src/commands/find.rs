//! `backstay find`: in which snapshots a file is.

use backstay_ops::moment;
use backstay_ops::units::{count, format_size};
use clap::Args;
use serde_json::json;

use super::present::{entry_document, modified, printable};
use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::table::{Cell, Table};

/// Find files by name in all snapshots
#[derive(Debug, Args)]
pub struct FindArgs {
    /// A pattern: `*` stands for any characters, `?` for one. Without a slash it is compared with
    /// the name alone, with one with the whole path
    pattern: String,

    /// Only in snapshots of this source
    #[arg(long)]
    source: Option<String>,
}

pub fn run(args: &FindArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let pattern: Vec<char> = args.pattern.trim_start_matches('/').chars().collect();
    let whole = args.pattern.contains('/');
    let mut documents = Vec::new();
    let mut table = Table::new(&["SNAPSHOT", "SOURCE", "MODIFIED", ">SIZE", "PATH"]);
    let mut hits = 0_u64;
    let asked = context.ask_all(|config, repository| {
        for snapshot in repository.snapshots()? {
            if args.source.as_ref().is_some_and(|source| source != &snapshot.source) {
                continue;
            }
            for entry in repository.tree(&snapshot)?.iter() {
                let entry = entry?;
                let path = entry.display_path();
                let subject = if whole { &path } else { path.rsplit('/').next().unwrap_or(&path) };
                if !matches(&pattern, &subject.chars().collect::<Vec<_>>()) {
                    continue;
                }
                hits += 1;
                if app.output.json {
                    documents.push(json!({
                        "snapshot": snapshot.id,
                        "source": snapshot.source,
                        "repository": config.name,
                        "entry": entry_document(&entry),
                    }));
                    continue;
                }
                let changed = modified(&entry).map(|time| moment::local(time, &app.zone()));
                table.row([
                    Cell::new(snapshot.short_id(), Style::Cyan),
                    snapshot.source.clone().into(),
                    changed.unwrap_or_default().into(),
                    if entry.is_directory() { "".into() } else { format_size(entry.size()).into() },
                    printable(&path).into(),
                ]);
            }
        }
        Ok(())
    })?;
    app.show_warnings();
    let failed: Vec<&String> = asked.failed.iter().map(|(name, _)| name).collect();
    app.output.document(&json!({ "found": documents, "failed": failed }))?;
    if hits == 0 {
        let which =
            if failed.is_empty() { "any snapshot" } else { "the snapshots that could be read" };
        app.output.answer(format!("No file is called {} in {which}.", args.pattern))?;
    } else {
        app.output.answer(table.render(app.output.paint))?;
        app.output.say(format!("\n{}", count(hits, "hit", "hits")))?;
    }
    // It may be in the one that could not be asked as well.
    Ok(if asked.failed.is_empty() { Outcome::Done } else { Outcome::Partial })
}

/// Whether `text` is what `pattern` says. Linear in the product of their lengths: a star is tried
/// again only at the newest place it could begin.
fn matches(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || Some(c) == text.get(t) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    p = at + 1;
                    t = from + 1;
                    star = Some((at, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    #[test]
    fn patterns() {
        let matches = |pattern: &str, text: &str| {
            super::matches(&pattern.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>())
        };
        assert!(matches("*.conf", "pg_hba.conf"));
        assert!(!matches("*.conf", "conf.d"));
        assert!(matches("p?_*a.c*f", "pg_hba.conf"));
        assert!(matches("*", ""));
        assert!(!matches("?", ""));
        assert!(matches("a*b*c", "aXbXbXc"));
        assert!(!matches("a*b*c", "aXbXbX"));
    }
}
