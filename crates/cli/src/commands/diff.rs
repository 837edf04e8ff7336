//! `backstay diff`: what is different between two snapshots.

use std::cmp::Ordering;
use std::ffi::OsString;

use backstay_ops::units::{count, format_size, group};
use backstay_repo::{Entry, EntryKind, Tree, compare_paths};
use clap::Args;
use serde_json::json;

use super::present::{entry_document, printable, tree_path};
use crate::app::{App, Outcome, Result};
use crate::output::Style;

/// Show what is different between two snapshots
#[derive(Debug, Args)]
#[command(
    after_help = "Lines begin with `+` (added), `-` (removed), `~` (other content) or `.` (the \
    same content, other metadata)."
)]
pub struct DiffArgs {
    /// The earlier snapshot: its id or the beginning of it, or a source's name for its newest
    a: String,

    /// The later one
    b: String,

    /// Only these files and folders
    path: Vec<OsString>,

    /// Only what was added, removed, or has other content
    #[arg(long)]
    content: bool,
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
    let paths: Vec<Vec<u8>> = args.path.iter().map(|path| tree_path(path)).collect();
    let is_wanted = |entry: &Entry| {
        paths.is_empty()
            || paths.iter().any(|path| {
                let rest = entry.path.strip_prefix(path.as_slice());
                path.is_empty()
                    || rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
            })
    };
    let mut changes = Vec::new();
    let (mut added, mut removed, mut changed, mut metadata) = (0_u64, 0_u64, 0_u64, 0_u64);
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
                if let Some(entry) = a.take().filter(is_wanted) {
                    removed += 1;
                    bytes_removed += entry.size();
                    show(app, &mut changes, "removed", Some(&entry), None, &[])?;
                }
                a = x.next().transpose()?;
            }
            Ordering::Greater => {
                if let Some(entry) = b.take().filter(is_wanted) {
                    added += 1;
                    bytes_added += entry.size();
                    show(app, &mut changes, "added", None, Some(&entry), &[])?;
                }
                b = y.next().transpose()?;
            }
            Ordering::Equal => {
                if let (Some(before), Some(after)) = (a.take().filter(is_wanted), b.take()) {
                    let what = differences(&before, &after, same_repository.then_some(&left_tree));
                    let content = what.iter().any(|what| matches!(*what, "content" | "type"));
                    if content || (!what.is_empty() && !args.content) {
                        changed += 1;
                        metadata += u64::from(!content);
                        show(app, &mut changes, "changed", Some(&before), Some(&after), &what)?;
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
        "changed_in_metadata_only": metadata,
        "bytes_added": bytes_added,
        "bytes_removed": bytes_removed,
    }))?;
    if added + removed + changed == 0 {
        app.output.answer("No difference.")?;
    } else {
        app.output.say(format!(
            "\n{} added ({}), {} removed ({}), {} changed{}",
            count(added, "entry", "entries"),
            format_size(bytes_added),
            count(removed, "entry", "entries"),
            format_size(bytes_removed),
            count(changed, "entry", "entries"),
            match metadata {
                0 => String::new(),
                some => format!(", of which {} in nothing but metadata", group(some)),
            },
        ))?;
    }
    Ok(Outcome::Done)
}

fn show(
    app: &App,
    changes: &mut Vec<serde_json::Value>,
    change: &str,
    before: Option<&Entry>,
    after: Option<&Entry>,
    what: &[&'static str],
) -> Result<()> {
    let Some(entry) = after.or(before) else { return Ok(()) };
    if app.output.json {
        changes.push(json!({
            "path": entry.display_path(),
            "change": change,
            "what": what,
            "before": before.map(entry_document),
            "after": after.map(entry_document),
        }));
        return Ok(());
    }
    let in_content = what.iter().any(|what| matches!(*what, "content" | "type"));
    let (mark, style) = match change {
        "added" => ("+", Style::Green),
        "removed" => ("-", Style::Red),
        _ if in_content => ("~", Style::Yellow),
        _ => (".", Style::Dim),
    };
    let suffix = if entry.is_directory() { "/" } else { "" };
    let mut notes: Vec<String> = what.iter().map(|what| (*what).to_owned()).collect();
    if let (Some(before), Some(after)) = (before, after)
        && before.size() != after.size()
    {
        notes.push(format!("{} → {}", format_size(before.size()), format_size(after.size())));
    }
    let notes = if notes.is_empty() { String::new() } else { format!("  ({})", notes.join(", ")) };
    let mark = app.output.paint.paint(style, mark);
    app.output.answer(format!("{mark} {}{suffix}{notes}", printable(&entry.display_path())))
}

/// `tree` is one of the repository of both, if it is the same.
fn differences(a: &Entry, b: &Entry, tree: Option<&Tree>) -> Vec<&'static str> {
    let mut what = Vec::new();
    match (&a.kind, &b.kind) {
        (EntryKind::File(x), EntryKind::File(y)) => {
            // What cannot be compared may differ.
            let same = |tree: &Tree| tree.is_same_content(x, y).unwrap_or(false);
            if x.size != y.size || !tree.is_none_or(same) {
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
