//! `backstay diff`: what is different between two snapshots.

use std::cmp::Ordering;

use backstay_ops::units::{count, format_size};
use backstay_repo::{Entry, EntryKind, compare_paths};
use clap::Args;
use serde_json::json;

use super::present::printable;
use crate::app::{App, Outcome, Result};
use crate::output::Style;

/// Show what is different between two snapshots
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The earlier snapshot
    a: String,

    /// The later one
    b: String,
}

pub fn run(args: &DiffArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let (left, right) = (context.find(&args.a)?, context.find(&args.b)?);
    app.show_warnings();
    let left_tree = left.repository.tree(&left.snapshot)?;
    let right_tree = right.repository.tree(&right.snapshot)?;
    // Content is compared by where it lies, which says nothing across repositories.
    let same_repository = left.repository.id() == right.repository.id();
    let (mut x, mut y) = (left_tree.iter(), right_tree.iter());
    let (mut a, mut b) = (x.next().transpose()?, y.next().transpose()?);
    let mut changes = Vec::new();
    let (mut added, mut removed, mut changed) = (0_u64, 0_u64, 0_u64);
    let (mut bytes_added, mut bytes_removed) = (0_u64, 0_u64);
    loop {
        let order = match (&a, &b) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => compare_paths(&a.path, &b.path),
        };
        match order {
            Ordering::Less => {
                if let Some(entry) = a.take() {
                    removed += 1;
                    bytes_removed += entry.size();
                    show(app, &mut changes, "removed", &entry, &[])?;
                }
                a = x.next().transpose()?;
            }
            Ordering::Greater => {
                if let Some(entry) = b.take() {
                    added += 1;
                    bytes_added += entry.size();
                    show(app, &mut changes, "added", &entry, &[])?;
                }
                b = y.next().transpose()?;
            }
            Ordering::Equal => {
                if let (Some(before), Some(after)) = (a.take(), b.take()) {
                    let what = differences(&before, &after, same_repository);
                    if !what.is_empty() {
                        changed += 1;
                        show(app, &mut changes, "changed", &after, &what)?;
                    }
                }
                a = x.next().transpose()?;
                b = y.next().transpose()?;
            }
        }
    }
    app.output.document(&json!({
        "a": left.snapshot.id,
        "b": right.snapshot.id,
        "changes": changes,
        "added": added,
        "removed": removed,
        "changed": changed,
    }))?;
    if added + removed + changed == 0 {
        app.output.answer("No difference.")?;
    } else {
        app.output.say(format!(
            "\n{} added ({}), {} removed ({}), {} changed",
            count(added, "entry", "entries"),
            format_size(bytes_added),
            count(removed, "entry", "entries"),
            format_size(bytes_removed),
            count(changed, "entry", "entries"),
        ))?;
    }
    Ok(Outcome::Done)
}

fn show(
    app: &App,
    changes: &mut Vec<serde_json::Value>,
    change: &str,
    entry: &Entry,
    what: &[&'static str],
) -> Result<()> {
    if app.output.json {
        changes.push(json!({ "path": entry.display_path(), "change": change, "what": what }));
        return Ok(());
    }
    let (mark, style) = match change {
        "added" => ("+", Style::Green),
        "removed" => ("-", Style::Red),
        _ => ("~", Style::Yellow),
    };
    let suffix = if entry.is_directory() { "/" } else { "" };
    let what = if what.is_empty() { String::new() } else { format!("  ({})", what.join(", ")) };
    let mark = app.output.paint.paint(style, mark);
    app.output.answer(format!("{mark} {}{suffix}{what}", printable(&entry.display_path())))
}

fn differences(a: &Entry, b: &Entry, same_repository: bool) -> Vec<&'static str> {
    let mut what = Vec::new();
    match (&a.kind, &b.kind) {
        (EntryKind::File(x), EntryKind::File(y)) => {
            if x.size != y.size || (same_repository && x.body != y.body) {
                what.push("content");
            }
        }
        (x, y) => {
            if x != y {
                what.push("type");
            }
        }
    }
    if a.meta.mode != b.meta.mode {
        what.push("mode");
    }
    let owner = |entry: &Entry| (entry.meta.uid, entry.meta.gid);
    if owner(a) != owner(b) {
        what.push("owner");
    }
    if a.meta.xattrs != b.meta.xattrs {
        what.push("attributes");
    }
    // A directory's time says only that something below it changed.
    if !a.is_directory() && a.meta.mtime != b.meta.mtime {
        what.push("time");
    }
    what
}
