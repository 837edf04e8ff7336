//! `backstay wal dump`: the records of the log, one line each, or how much of which kind there is.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::ControlFlow;

use backstay_ops::units::{format_size, group};
use backstay_postgres::wal::dump::{Filter, fork_name, line, meaning};
use backstay_postgres::wal::kind::{kind_name, manager_name, manager_names, manager_number};
use backstay_postgres::wal::scan::Volume;
use backstay_postgres::wal::{Record, Relation, Scan};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::reading::{Where, ended};
use crate::app::{App, Outcome, Result};
use crate::output::{Style, write_out};
use crate::table::{Cell, Table};

/// Lines are written together: a log has millions of them. Bytes.
const TOGETHER: usize = 64 << 10;

/// Show the records of the log, in the form of pg_waldump
#[derive(Debug, Args)]
#[command(
    after_help = "Reads the log of PostgreSQL 13 to 18, whichever is installed here. With --json each record is a
document on a line of its own.

  backstay wal dump --folder /var/lib/postgresql/16/main/pg_wal --rmgr Heap --limit 20
  backstay wal dump orders --from 0/5000028 --stats"
)]
pub struct DumpArgs {
    #[command(flatten)]
    reading: Where,

    /// Only records of this resource manager, such as Heap; may be given several times
    #[arg(long, value_name = "NAME", value_parser = manager)]
    rmgr: Vec<u8>,

    /// Only records about this relation, as tablespace/database/file
    #[arg(long, value_name = "T/D/R", value_parser = relation)]
    relation: Option<Relation>,

    /// Only records of this transaction
    #[arg(long, value_name = "XID")]
    xid: Option<u32>,

    /// Stop after so many records
    #[arg(long, short = 'n', value_name = "COUNT")]
    limit: Option<u64>,

    /// Show how many records there are and how long they are, by resource manager or by kind
    #[arg(long, value_name = "BY", num_args = 0..=1, require_equals = true, default_missing_value = "rmgr")]
    stats: Option<By>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Rmgr,
    Record,
}

fn manager(name: &str) -> Result<u8, String> {
    manager_number(name).ok_or_else(|| {
        format!("there is no such resource manager; there are {}", manager_names().join(", "))
    })
}

fn relation(text: &str) -> Result<Relation, String> {
    let mut numbers = text.split('/').map(str::parse);
    match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(tablespace)), Some(Ok(database)), Some(Ok(relation)), None) => {
            Ok(Relation { tablespace, database, relation })
        }
        _ => Err("a relation is three numbers, such as 1663/16384/24576".into()),
    }
}

pub fn run(args: &DumpArgs, app: &App) -> Result<Outcome> {
    let files = args.reading.files(app)?;
    let scan = Scan::open(files.as_ref(), args.reading.range())?;
    let filter = Filter { managers: args.rmgr.clone(), relation: args.relation, xid: args.xid };
    let mut shown = 0u64;
    let mut lines = Vec::new();
    let mut volumes: BTreeMap<(String, String), Volume> = BTreeMap::new();
    let mut failed = None;
    let scanned = scan.run(|record| {
        if app.interrupt.is_requested() || args.limit.is_some_and(|limit| shown >= limit) {
            return Ok(ControlFlow::Break(()));
        }
        if !filter.takes(record) {
            return Ok(ControlFlow::Continue(()));
        }
        shown += 1;
        if let Some(by) = args.stats {
            let kind = match by {
                By::Rmgr => String::new(),
                By::Record => kind_name(record.manager, record.info, record.version).into_owned(),
            };
            let manager = manager_name(record.manager).into_owned();
            volumes.entry((manager, kind)).or_default().add(record);
            return Ok(ControlFlow::Continue(()));
        }
        // Writing to memory does not fail.
        let _ = match app.output.json {
            true => writeln!(lines, "{}", document(record)),
            false => writeln!(lines, "{}", line(record)),
        };
        if lines.len() >= TOGETHER {
            if let Err(error) = write_out(&lines) {
                failed = Some(error);
                return Ok(ControlFlow::Break(()));
            }
            lines.clear();
        }
        Ok(ControlFlow::Continue(()))
    });
    write_out(&lines)?;
    if let Some(error) = failed {
        return Err(error);
    }
    let scanned = scanned?;
    if args.stats.is_some() {
        stats(app, &volumes)?;
    }
    Ok(ended(app, &args.reading, &scan, &scanned))
}

fn document(record: &Record<'_>) -> Value {
    let blocks = record.blocks().unwrap_or_default();
    let (origin, top) = record.origin_and_top_level();
    json!({
        "lsn": record.lsn,
        "end": record.end,
        "previous": record.previous,
        "rmgr": manager_name(record.manager),
        "kind": kind_name(record.manager, record.info, record.version),
        "xid": record.xid,
        "top_xid": top,
        "origin": origin,
        "length": record.length,
        "meaning": meaning(record),
        "blocks": blocks.iter().map(|block| json!({
            "relation": block.relation.to_string(),
            "fork": fork_name(block.fork),
            "block": block.block,
            "image_bytes": block.image.map(|image| image.length),
        })).collect::<Vec<_>>(),
    })
}

fn stats(app: &App, volumes: &BTreeMap<(String, String), Volume>) -> Result<()> {
    let mut sorted: Vec<_> = volumes.iter().collect();
    sorted.sort_by_key(|(_, volume)| std::cmp::Reverse(volume.total()));
    let rows = sorted.iter().map(|((manager, kind), volume)| {
        let mut document = volume_document(volume);
        document["rmgr"] = json!(manager);
        if !kind.is_empty() {
            document["kind"] = json!(kind);
        }
        document
    });
    app.output.document(&json!({ "stats": rows.collect::<Vec<_>>() }))?;
    app.output.answer(volume_table(
        app,
        sorted.iter().map(|((manager, kind), volume)| {
            let name = if kind.is_empty() { manager.clone() } else { format!("{manager}/{kind}") };
            (name, **volume)
        }),
    ))
}

/// The numbers of a volume, for programs.
pub fn volume_document(volume: &Volume) -> Value {
    json!({
        "records": volume.records,
        "bytes": volume.bytes,
        "images": volume.images,
        "image_bytes": volume.image_bytes,
    })
}

/// The numbers of volumes, for people, with their sum.
pub fn volume_table(app: &App, volumes: impl Iterator<Item = (String, Volume)>) -> String {
    let volumes: Vec<(String, Volume)> = volumes.collect();
    let mut sum = Volume::default();
    for (_, volume) in &volumes {
        sum.records += volume.records;
        sum.bytes += volume.bytes;
        sum.images += volume.images;
        sum.image_bytes += volume.image_bytes;
    }
    let all = sum.total().max(1);
    let mut table =
        Table::new(&["RECORDS OF", ">NUMBER", ">DATA", ">IMAGES OF PAGES", ">IN ALL", ">SHARE"]);
    for (name, volume) in volumes.into_iter().chain([("in all".to_owned(), sum)]) {
        let share = format!("{:.1}%", volume.total() as f64 * 100.0 / all as f64);
        table.row([
            Cell::new(name, Style::Cyan),
            group(volume.records).into(),
            format_size(volume.bytes).into(),
            format_size(volume.image_bytes).into(),
            format_size(volume.total()).into(),
            share.into(),
        ]);
    }
    table.render(app.output.paint)
}
