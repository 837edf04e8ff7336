//! `backstay show`: one snapshot, and what is in it.

use std::ffi::OsString;

use backstay_ops::moment;
use backstay_ops::units::{count, format_duration, format_size, group};
use clap::Args;
use serde_json::{Value, json};

use super::present::{
    entry_document, mode_text, modified, moment_and_age, printable, snapshot_document, tags, took,
    tree_path,
};
use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::table::{Cell, Table, facts};

/// Show one snapshot, or what is in it
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A snapshot's id or the beginning of it, a source's name for its newest, or `latest`
    snapshot: String,

    /// List what is at this path
    path: Option<OsString>,

    /// List everything that is in it
    #[arg(long, conflicts_with = "path")]
    files: bool,
}

pub fn run(args: &ShowArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let found = context.find(&args.snapshot)?;
    app.show_warnings();
    let snapshot = &found.snapshot;
    if args.files || args.path.is_some() {
        return files(args, app, &found);
    }
    app.output.document(&json!({ "snapshot": snapshot_document(snapshot, &found.name) }))?;
    if app.output.json {
        return Ok(Outcome::Done);
    }
    let (now, zone, stats) = (app.now(), app.zone(), &snapshot.stats);
    let parent = snapshot.parent.as_deref().map(|id| id.get(..8).unwrap_or(id).to_owned());
    let mut lines = vec![
        ("snapshot", snapshot.id.clone()),
        ("source", format!("{} ({})", snapshot.source, snapshot.kind)),
        ("repository", found.name.clone()),
        (
            "type",
            match parent {
                Some(parent) => format!("{} after {parent}", snapshot.type_),
                None => snapshot.type_.to_string(),
            },
        ),
        ("time", moment_and_age(snapshot.time, now, &zone)),
        ("took", format_duration(took(snapshot))),
        ("host", snapshot.host.clone()),
        (
            "content",
            format!(
                "{} in {}, {}",
                count(stats.files, "file", "files"),
                count(stats.directories, "directory", "directories"),
                format_size(stats.bytes)
            ),
        ),
        (
            "read",
            match stats.files_unchanged {
                0 => format_size(stats.bytes_read),
                some => format!(
                    "{}; {} taken over unread",
                    format_size(stats.bytes_read),
                    count(some, "unchanged file", "unchanged files")
                ),
            },
        ),
        (
            "new",
            format!(
                "{} in {}, stored as {}",
                format_size(stats.new_bytes),
                count(stats.new_chunks, "chunk", "chunks"),
                format_size(stats.stored_bytes)
            ),
        ),
        ("tags", tags(snapshot)),
    ];
    let detail: Vec<(String, String)> = match &snapshot.detail {
        Value::Object(map) => map
            .iter()
            .filter_map(|(key, value)| Some((key.replace('_', " "), plain(value)?)))
            .collect(),
        _ => Vec::new(),
    };
    lines.extend(detail.iter().map(|(key, value)| (key.as_str(), value.clone())));
    app.output.answer(facts(lines, app.output.paint))?;
    if !snapshot.problems.is_empty() {
        app.output.answer(format!(
            "\n{}:",
            count(snapshot.problems.len() as u64, "problem", "problems")
        ))?;
        for problem in &snapshot.problems {
            app.output.answer(format!("  {}: {}", printable(&problem.path), problem.what))?;
        }
    }
    Ok(Outcome::Done)
}

/// A value of a kind's detail on one line; nothing for what has no short form.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(printable(text)),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(if *value { "yes".into() } else { "no".into() }),
        // Files and databases are known by where they are, or by their names.
        Value::Object(map) => plain(map.get("path").or_else(|| map.get("name"))?),
        Value::Array(values) => {
            let texts: Option<Vec<_>> = values.iter().map(plain).collect();
            Some(texts?.join(", "))
        }
        Value::Null => None,
    }
}

fn files(args: &ShowArgs, app: &App, found: &backstay_ops::Found) -> Result<Outcome> {
    let tree = found.repository.tree(&found.snapshot)?;
    let below = args.path.as_deref().map(tree_path).unwrap_or_default();
    let mut entries = Vec::new();
    let zone = app.zone();
    let mut table = Table::new(&["", "", "", ">", "", ""]);
    let mut any = false;
    for entry in tree.iter() {
        let entry = entry?;
        if !is_listed(&entry.path, &below, args.files) {
            continue;
        }
        any = true;
        if app.output.json {
            entries.push(entry_document(&entry));
            continue;
        }
        let name = |name: &str, id: u32| if name.is_empty() { id.to_string() } else { name.into() };
        let target = match &entry.kind {
            backstay_repo::EntryKind::Symlink { target } => {
                format!(" -> {}", printable(&String::from_utf8_lossy(target)))
            }
            backstay_repo::EntryKind::Hardlink { to } => {
                format!(" = {}", printable(&String::from_utf8_lossy(to)))
            }
            _ => String::new(),
        };
        let style = if entry.is_directory() { Style::Bold } else { Style::Plain };
        table.row([
            mode_text(&entry).into(),
            name(&entry.meta.user, entry.meta.uid).into(),
            name(&entry.meta.group, entry.meta.gid).into(),
            if entry.is_directory() { "".into() } else { group(entry.size()).into() },
            modified(&entry).map(|time| moment::local(time, &zone)).unwrap_or_default().into(),
            Cell::new(format!("{}{target}", printable(&entry.display_path())), style),
        ]);
    }
    if !any && !below.is_empty() {
        let path = String::from_utf8_lossy(&below).into_owned();
        return Err(super::dump::no_such_path(&path, found));
    }
    app.output.document(&json!({
        "snapshot": found.snapshot.id,
        "entries": entries,
    }))?;
    if any {
        app.output.answer(table.render(app.output.paint))?;
    }
    Ok(Outcome::Done)
}

/// Whether `path` is `below`, or right below it; with `all`, however deep.
fn is_listed(path: &[u8], below: &[u8], all: bool) -> bool {
    if all {
        return true;
    }
    if path == below {
        return true;
    }
    let rest = if below.is_empty() {
        path
    } else {
        match path.strip_prefix(below).and_then(|rest| rest.strip_prefix(b"/")) {
            Some(rest) => rest,
            None => return false,
        }
    };
    !rest.contains(&b'/')
}
