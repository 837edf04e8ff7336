//! `backstay find`: in which snapshots a file is, and which versions of it there are.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use backstay_ops::moment;
use backstay_ops::units::{count, format_size, group, parse_size};
use backstay_repo::{Entry, EntryKind, Snapshot, compare_paths};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde_json::json;

use super::present::{entry_document, modified, printable};
use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::table::{Cell, Table};

/// Find files by name in all snapshots, and the versions there are of them
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    backstay find '*.conf'\n  \
    backstay find '/etc/nginx/*' --source etc --newer '3 days ago'\n  \
    backstay find '*' --larger '100 MiB' --type file")]
pub struct FindArgs {
    /// A pattern: `*` stands for any characters, `?` for one. Without a slash it is compared with
    /// the name alone, with one with the whole path
    pattern: String,

    /// Only in snapshots of this source
    #[arg(long)]
    source: Option<String>,

    /// Take capital and small letters for the same
    #[arg(long, short)]
    ignore_case: bool,

    /// Only this kind of entry
    #[arg(long = "type", value_name = "TYPE")]
    type_: Option<Type>,

    /// Only files of at least this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    larger: Option<u64>,

    /// Only files of at most this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    smaller: Option<u64>,

    /// Only what was changed at this moment or later
    #[arg(long, value_name = "TIME")]
    newer: Option<String>,

    /// Only what was changed before this moment
    #[arg(long, value_name = "TIME")]
    older: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Type {
    File,
    Directory,
    Symlink,
    /// Devices and pipes
    Other,
}

/// What is looked for.
struct Wanted<'a> {
    args: &'a FindArgs,
    pattern: Vec<char>,
    newer: Option<Timestamp>,
    older: Option<Timestamp>,
}

impl<'a> Wanted<'a> {
    fn new(args: &'a FindArgs, app: &App) -> Result<Self> {
        let moment = |text: &Option<String>| {
            let parse = |text: &String| moment::parse(text, app.now(), &app.zone());
            text.as_ref().map(parse).transpose()
        };
        let pattern = args.pattern.trim_start_matches('/');
        Ok(Self {
            args,
            pattern: fold(pattern, args.ignore_case),
            newer: moment(&args.newer)?,
            older: moment(&args.older)?,
        })
    }

    fn is(&self, entry: &Entry) -> bool {
        let args = self.args;
        let type_ = match &entry.kind {
            EntryKind::File(_) | EntryKind::Hardlink { .. } => Type::File,
            EntryKind::Directory => Type::Directory,
            EntryKind::Symlink { .. } => Type::Symlink,
            _ => Type::Other,
        };
        let sized = args.larger.is_some() || args.smaller.is_some();
        if args.type_.is_some_and(|wanted| wanted != type_)
            || (sized && !matches!(entry.kind, EntryKind::File(_)))
            || args.larger.is_some_and(|least| entry.size() < least)
            || args.smaller.is_some_and(|most| entry.size() > most)
        {
            return false;
        }
        if self.newer.is_some() || self.older.is_some() {
            let Some(changed) = modified(entry) else { return false };
            if self.newer.is_some_and(|from| changed < from)
                || self.older.is_some_and(|until| changed >= until)
            {
                return false;
            }
        }
        let path = entry.display_path();
        let whole = args.pattern.contains('/');
        let subject = if whole { &path } else { path.rsplit('/').next().unwrap_or(&path) };
        matches(&self.pattern, &fold(subject, args.ignore_case))
    }
}

fn fold(text: &str, ignore_case: bool) -> Vec<char> {
    match ignore_case {
        true => text.chars().flat_map(char::to_lowercase).collect(),
        false => text.chars().collect(),
    }
}

/// A state of one path, and the snapshots in a row that have it.
struct Version {
    entry: Entry,
    /// Ids.
    snapshots: Vec<String>,
    first: Timestamp,
    last: Timestamp,
    /// Place of the newest among the snapshots of the source.
    at: usize,
}

/// Whether both are the same to somebody who looks for a version.
fn is_same(a: &Entry, b: &Entry) -> bool {
    let about = |entry: &Entry| (entry.meta.mode, entry.meta.uid, entry.meta.gid);
    // A directory's time says only that something below it changed.
    a.kind == b.kind
        && about(a) == about(b)
        && (a.is_directory() || a.meta.mtime == b.meta.mtime)
        && a.meta.xattrs == b.meta.xattrs
}

/// A path of a source, in the order in which trees have them.
#[derive(PartialEq, Eq)]
struct Key {
    source: String,
    path: Vec<u8>,
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.source.cmp(&other.source).then_with(|| compare_paths(&self.path, &other.path))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

type Versions = BTreeMap<Key, Vec<Version>>;

/// Adds an entry of a snapshot, the `at`-th of its source.
fn add(versions: &mut Versions, snapshot: &Snapshot, at: usize, entry: Entry) {
    let key = Key { source: snapshot.source.clone(), path: entry.path.clone() };
    let new = |entry| Version {
        entry,
        snapshots: vec![snapshot.id.clone()],
        first: snapshot.time,
        last: snapshot.time,
        at,
    };
    match versions.entry(key) {
        Slot::Vacant(slot) => {
            slot.insert(vec![new(entry)]);
        }
        Slot::Occupied(mut slot) => {
            let known = slot.get_mut();
            match known.last_mut() {
                // What was away in between came back: that is another stretch of snapshots.
                Some(last) if last.at + 1 == at && is_same(&last.entry, &entry) => {
                    last.snapshots.push(snapshot.id.clone());
                    last.last = snapshot.time;
                    last.at = at;
                }
                _ => known.push(new(entry)),
            }
        }
    }
}

pub fn run(args: &FindArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let wanted = Wanted::new(args, app)?;
    let mut documents = Vec::new();
    let heads = ["SOURCE", "MODIFIED", ">SIZE", ">SNAPSHOTS", "OLDEST", "NEWEST", "PATH"];
    let mut table = Table::new(&heads);
    let mut hits = 0_u64;
    let asked = context.ask_all(|config, repository| {
        let mut versions = Versions::new();
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for snapshot in repository.snapshots()? {
            if args.source.as_ref().is_some_and(|source| source != &snapshot.source) {
                continue;
            }
            let at = counts.entry(snapshot.source.clone()).or_default();
            *at += 1;
            for entry in repository.tree(&snapshot)?.iter() {
                let entry = entry?;
                if wanted.is(&entry) {
                    add(&mut versions, &snapshot, *at, entry);
                }
            }
        }
        for (key, versions) in versions {
            for version in versions {
                hits += 1;
                let entry = &version.entry;
                let (oldest, newest) = match version.snapshots.as_slice() {
                    [first, .., last] => (first.as_str(), last.as_str()),
                    [only] => (only.as_str(), only.as_str()),
                    [] => continue,
                };
                if app.output.json {
                    documents.push(json!({
                        "snapshot": newest,
                        "snapshots": version.snapshots,
                        "first": version.first,
                        "last": version.last,
                        "source": key.source,
                        "repository": config.name,
                        "entry": entry_document(entry),
                    }));
                    continue;
                }
                let short = |id: &str| Cell::new(id.get(..8).unwrap_or(id), Style::Cyan);
                let changed = modified(entry).map(|time| moment::local(time, &app.zone()));
                let sized = matches!(entry.kind, EntryKind::File(_));
                table.row([
                    key.source.clone().into(),
                    changed.unwrap_or_default().into(),
                    if sized { format_size(entry.size()).into() } else { "".into() },
                    group(version.snapshots.len() as u64).into(),
                    short(oldest),
                    short(newest),
                    printable(&entry.display_path()).into(),
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
        app.output.answer(format!("Nothing like {} is in {which}.", args.pattern))?;
    } else {
        app.output.answer(table.render(app.output.paint))?;
        app.output.say(format!("\n{}", count(hits, "version", "versions")))?;
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
