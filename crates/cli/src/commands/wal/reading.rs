//! Which WAL a command reads, and from where: what `wal dump` and `wal summarize` have in common.

use std::path::PathBuf;

use backstay_ops::Error;
use backstay_ops::config::{SourceConfig, SourceSettings};
use backstay_postgres::BackupDetail;
use backstay_postgres::control::ControlFile;
use backstay_postgres::wal::{Files, Folder, Lsn, Range, Scan, Scanned};
use backstay_repo::{Repository, SourceKind};
use clap::Args;

use super::super::postgres::choose;
use super::asked;
use crate::app::{App, Outcome, Result};

#[derive(Debug, Args)]
pub struct Where {
    /// The source whose archive is read [default: the only one of kind postgres]
    source: Option<String>,

    /// Read the segments in this folder instead, such as a server's pg_wal
    #[arg(long, value_name = "DIR", conflicts_with_all = ["source", "system_id"])]
    folder: Option<PathBuf>,

    /// The cluster whose archive is read [default: that of the newest snapshot]
    #[arg(long, value_name = "ID")]
    system_id: Option<u64>,

    /// Along which timeline [default: the newest]
    #[arg(long, value_name = "NUMBER")]
    timeline: Option<u32>,

    /// Begin with the first record at or behind this position [default: the oldest from which all is there]
    #[arg(long, visible_alias = "start", value_name = "LSN")]
    from: Option<Lsn>,

    /// End before the first record at or behind this position [default: where the log ends]
    #[arg(long, visible_alias = "end", value_name = "LSN")]
    to: Option<Lsn>,
}

impl Where {
    pub fn range(&self) -> Range {
        Range { from: self.from, to: self.to, timeline: self.timeline }
    }

    /// The files, and what to call them.
    pub fn files(&self, app: &App) -> Result<Box<dyn Files>> {
        if let Some(folder) = &self.folder {
            return Ok(Box::new(Folder::open(folder)?));
        }
        let context = app.context()?;
        let configs = asked(self.source.as_deref(), context)?;
        let Some(config) = configs.first() else {
            return Err(Error::usage(
                "there is no repository to read",
                "name one with --repository",
            ));
        };
        let repository = context.open(config)?;
        app.show_warnings();
        let id = match self.system_id {
            Some(id) => id,
            None => cluster(choose(self.source.as_deref(), context)?, &repository)?,
        };
        Ok(Box::new(repository.archive(id)))
    }
}

/// The cluster of a source: of its newest snapshot, or of the data directory while there is none.
pub fn cluster(source: &SourceConfig, repository: &Repository) -> Result<u64> {
    let snapshots = repository.snapshots()?;
    let newest =
        snapshots.iter().rfind(|s| s.source == source.name && s.kind == SourceKind::Postgres);
    if let Some(snapshot) = newest {
        return Ok(BackupDetail::of(snapshot)?.system_identifier);
    }
    if let SourceSettings::Postgres(keys) = &source.settings
        && let Some(data) = &keys.data_directory
    {
        return Ok(ControlFile::read(data)?.system_identifier);
    }
    Err(Error::usage(
        format!("there is no snapshot of {} that says which cluster it is", source.name),
        "name the cluster with --system-id where a command has it; `pg_controldata` shows it",
    ))
}

/// Says where reading ended when that was not where it should; whether all of the range was read.
pub fn ended(app: &App, wanted: &Where, scan: &Scan<'_>, scanned: &Scanned) -> Outcome {
    if let Some(missing) = scanned.missing {
        let message = format!(
            "the log ends at {}: the segment {missing} is missing, although there are later ones",
            scanned.end
        );
        app.output.warn(&message, Some("begin behind the gap with --from"));
        return Outcome::Failed;
    }
    match (wanted.to, &scanned.stopped) {
        (Some(to), Some(_)) => {
            let message = format!(
                "the log of timeline {} ends at {}, before {to}",
                scan.timeline(),
                scanned.end
            );
            app.output.warn(&message, None);
            Outcome::Failed
        }
        _ => Outcome::Done,
    }
}
