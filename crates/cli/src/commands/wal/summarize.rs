//! `backstay wal summarize`: which blocks of which relations a range of the log changed.

use std::fs;
use std::path::PathBuf;

use backstay_ops::Error;
use backstay_ops::units::{count, format_size, group};
use backstay_postgres::wal::changes::ForkChanges;
use backstay_postgres::wal::dump::fork_name;
use backstay_postgres::wal::kind::manager_name;
use backstay_postgres::wal::{Fork, Scan, Summary, summarize};
use clap::Args;
use serde_json::json;

use super::dump::{volume_document, volume_table};
use super::reading::{Where, ended};
use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::table::{Cell, Table};
use crate::work;

/// Relations that are shown; the others are counted.
const SHOWN: usize = 20;
/// No summary is larger: a bitmap of every block of 16 TiB. Bytes.
const MAX_FILE: u64 = 1 << 30;

/// Show which blocks of which relations changed, by what the log says
#[derive(Debug, Args)]
#[command(
    after_help = "A relation is named as tablespace/database/file; 0 for the file stands for a whole database. A
limit says that the relation was cut there, made anew or removed: from that block on nothing of it
is what it was. Free space maps are not in the log and not in the answer."
)]
pub struct SummarizeArgs {
    #[command(flatten)]
    reading: Where,

    /// Write the summary to this file, too; docs/format.md has its bytes
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    /// Show a summary that was saved instead of reading the log
    #[arg(long, value_name = "FILE", conflicts_with_all = ["source", "folder", "system_id", "timeline", "from", "to", "save"])]
    read: Option<PathBuf>,

    /// Show every relation, not the ones that changed most
    #[arg(long)]
    all: bool,
}

pub fn run(args: &SummarizeArgs, app: &App) -> Result<Outcome> {
    if let Some(path) = &args.read {
        let summary = read(path)?;
        app.output.document(&document(&summary))?;
        present(&summary, args.all, app)?;
        return Ok(Outcome::Done);
    }
    let files = args.reading.files(app)?;
    let scan = Scan::open(files.as_ref(), args.reading.range())?;
    let (summary, volumes, scanned) = work::run(app, "reading the log", |progress| {
        progress.add_total(scan.bytes(), 0);
        let mut before = None;
        summarize(&scan, |lsn| {
            let since = before.map_or(0, |before| lsn.since(before));
            if before.is_none() || since >= 1 << 20 {
                progress.check()?;
                progress.add_done(since, 0);
                before = Some(lsn);
            }
            Ok(())
        })
    })?;
    if let Some(path) = &args.save {
        save(path, &summary)?;
    }
    let mut answer = document(&summary);
    answer["rmgrs"] = volumes
        .iter()
        .map(|(manager, volume)| {
            let mut one = volume_document(volume);
            one["rmgr"] = json!(manager_name(*manager));
            one
        })
        .collect();
    app.output.document(&answer)?;
    present(&summary, args.all, app)?;
    let mut sorted: Vec<_> = volumes.into_iter().collect();
    sorted.sort_by_key(|(_, volume)| std::cmp::Reverse(volume.total()));
    app.output.say("")?;
    app.output.say(volume_table(
        app,
        sorted.into_iter().map(|(manager, volume)| (manager_name(manager).into_owned(), volume)),
    ))?;
    Ok(ended(app, &args.reading, &scan, &scanned))
}

fn read(path: &PathBuf) -> Result<Summary> {
    let io = |error| Error::io("read", path, error);
    let length = fs::metadata(path).map_err(io)?.len();
    let damaged = |what: String| {
        Error::new(backstay_ops::ErrorKind::Damaged, format!("{}: {what}", path.display()))
    };
    if length > MAX_FILE {
        return Err(damaged(format!("no summary of WAL has {}", format_size(length))));
    }
    Summary::decode(&fs::read(path).map_err(io)?).map_err(|error| damaged(error.to_string()))
}

/// Under a temporary name first: half a summary would say that half of the blocks changed.
fn save(path: &PathBuf, summary: &Summary) -> Result<()> {
    let mut name = path.clone().into_os_string();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    fs::write(&temporary, summary.encode())
        .and_then(|()| fs::File::open(&temporary)?.sync_all())
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|error| Error::io("write", path, error))
}

fn document(summary: &Summary) -> serde_json::Value {
    json!({
        "system_identifier": summary.system_identifier.to_string(),
        "timeline": summary.timeline,
        "from": summary.from,
        "to": summary.to,
        "bytes": summary.to.since(summary.from),
        "unsafe_since": summary.changes.unsafe_since(),
        "blocks": summary.changes.blocks(),
        "relations": summary.changes.forks().map(|(fork, changes)| json!({
            "relation": fork.relation.to_string(),
            "fork": fork_name(fork.fork),
            "limit": changes.limit,
            "blocks": changes.blocks.len(),
            "ranges": changes.blocks.ranges().iter()
                .map(|range| json!([range.start, range.end]))
                .collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

fn present(summary: &Summary, all: bool, app: &App) -> Result<()> {
    let changes = &summary.changes;
    let mut forks: Vec<(&Fork, &ForkChanges)> = changes.forks().collect();
    app.output.answer(format!(
        "{} to {} on timeline {} ({}): {} in {}",
        summary.from,
        summary.to,
        summary.timeline,
        format_size(summary.to.since(summary.from)),
        count(changes.blocks(), "changed block", "changed blocks"),
        count(forks.len() as u64, "fork", "forks"),
    ))?;
    if let Some(lsn) = changes.unsafe_since() {
        app.output.warn(
            &format!("the log has not every change from {lsn} on: wal_level was minimal"),
            Some("what changed since then cannot be told from the log"),
        );
    }
    if forks.is_empty() {
        return Ok(());
    }
    forks.sort_by_key(|(_, changes)| std::cmp::Reverse(changes.blocks.len()));
    let shown = if all { forks.len() } else { SHOWN };
    let mut table = Table::new(&["RELATION", "FORK", ">BLOCKS", ">LIMIT"]);
    for (fork, changes) in forks.iter().take(shown) {
        let name = match (fork.relation.database, fork.relation.relation) {
            (0, 0) => format!("tablespace {}", fork.relation.tablespace),
            (database, 0) => format!("database {}/{database}", fork.relation.tablespace),
            _ => fork.relation.to_string(),
        };
        table.row([
            Cell::new(name, Style::Cyan),
            fork_name(fork.fork).into(),
            group(changes.blocks.len()).into(),
            changes.limit.map_or(String::new(), |limit| group(u64::from(limit))).into(),
        ]);
    }
    app.output.answer("")?;
    app.output.answer(table.render(app.output.paint))?;
    if forks.len() > shown {
        let more = (forks.len() - shown) as u64;
        app.output
            .say(format!("and {}; --all shows them", count(more, "fork more", "forks more")))?;
    }
    Ok(())
}
