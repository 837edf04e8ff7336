//! `backstay wal status`: what can be recovered, and what is wrong with the archive, or with the way of
//! the log into it.

use std::time::Duration;

use backstay_ops::config::SourceConfig;
use backstay_ops::moment;
use backstay_ops::units::{count, format_age, format_setting, format_size};
use backstay_ops::watch::{self, ServerHealth};
use backstay_postgres::wal::{ArchiveHealth, Inventory, RecoveryBase, read_through, window};
use backstay_postgres::{Alert, BackupDetail};
use backstay_repo::{Repository, SourceKind};
use clap::Args;
use serde_json::json;

use super::super::postgres::choose;
use super::super::present::{alert_document, present_alert};
use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::work;

/// Show what can be recovered, and what is wrong with the archive or on the way into it
#[derive(Debug, Args)]
#[command(
    after_help = "Ends with 1 when there is an alert. Of the archive: a snapshot that cannot be recovered, a gap
before the newest moment, a segment or history that cannot be used, two servers that archive to one
place, another cluster than that of the newest snapshot, or more to lose than the source's tier
allows. Of the server: nothing archives, archiving fails or is late, or the slot of `wal receive` is
behind, at risk or lost. That the server does not answer is said, and is no alert."
)]
pub struct StatusArgs {
    /// A source of kind postgres [default: the only one]
    source: Option<String>,

    /// Read all of it: every segment, and every record that recovery would
    #[arg(long)]
    read: bool,

    /// Do not ask the server, only the archive
    #[arg(long)]
    offline: bool,
}

pub fn run(args: &StatusArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let source = choose(args.source.as_deref(), context)?;
    let server = if args.offline { None } else { watch::server(source) };
    let mut report = Report::default();
    let mut failures = Vec::new();
    let rpo = context.config.tier_of(source).map(|tier| tier.rpo);
    for config in context.config.repositories_of(source)? {
        let archive = context
            .open(config)
            .and_then(|repository| Archive::of(source, repository))
            .and_then(|archive| match archive {
                Some(archive) if args.read => archive.read_through(app, &config.name).map(Some),
                archive => Ok(archive),
            });
        app.show_warnings();
        match archive {
            Ok(Some(archive)) => {
                let exposed = archive.health.rpo(context.env.now());
                let within = rpo.map(|rpo| exposed.is_some_and(|exposed| exposed <= rpo));
                let alerts = watch::archive(
                    &archive.health,
                    archive.identifier,
                    server.as_ref(),
                    exposed,
                    rpo,
                );
                let mut document = archive.document(&config.name, context.env.now());
                document["rpo_seconds"] = json!(rpo.map(|rpo| rpo.as_secs()));
                document["within_rpo"] = json!(within);
                document["ok"] = json!(alerts.is_empty());
                report.archives.push(document);
                present(app, &config.name, archive.identifier, &archive.health, rpo)?;
                report.take(app, Some(&config.name), alerts)?;
            }
            Ok(None) => {
                app.output.answer(format!(
                    "There is no snapshot of {} in {} yet, so nothing can be recovered.",
                    source.name, config.name
                ))?;
                let document = json!({
                    "repository": config.name, "system_identifier": null, "ok": false,
                });
                report.archives.push(document);
                let alert = Alert::new(
                    "no-snapshot",
                    format!("there is no snapshot of {} in {}", source.name, config.name),
                    format!("make one with `backstay backup {}`", source.name),
                );
                report.take(app, Some(&config.name), vec![alert])?;
            }
            Err(error) => {
                let document = json!({
                    "repository": config.name, "error": error.to_string(), "ok": false,
                });
                report.archives.push(document);
                failures.push((config.name.clone(), error));
            }
        }
    }
    if failures.len() == report.archives.len()
        && let Some((_, error)) = failures.pop()
    {
        return Err(error);
    }
    for (name, error) in &failures {
        let message = format!("the repository `{name}` was passed over: {error}");
        app.output.warn(&message, error.hint());
    }
    if let Some(server) = &server {
        present_server(app, &source.name, server)?;
        report.take(app, None, server.alerts.clone())?;
    }
    let good = report.alerts.is_empty() && failures.is_empty();
    app.output.document(&json!({
        "source": source.name,
        "ok": good,
        "alerts": report.alerts,
        "server": server.as_ref().map(|server| server.document()),
        "archives": report.archives,
    }))?;
    Ok(if good { Outcome::Done } else { Outcome::Failed })
}

/// What was found in all repositories, and of the server.
#[derive(Default)]
struct Report {
    archives: Vec<serde_json::Value>,
    alerts: Vec<serde_json::Value>,
}

impl Report {
    fn take(&mut self, app: &App, repository: Option<&str>, alerts: Vec<Alert>) -> Result<()> {
        for alert in alerts {
            present_alert(app, &alert)?;
            self.alerts.push(alert_document(&alert, repository));
        }
        Ok(())
    }
}

/// What the archive of a source in one repository gives.
struct Archive {
    repository: Repository,
    identifier: u64,
    health: ArchiveHealth,
}

impl Archive {
    /// None where there is no snapshot to recover from.
    fn of(source: &SourceConfig, repository: Repository) -> Result<Option<Self>> {
        let mut snapshots = repository.snapshots()?;
        snapshots.retain(|s| s.source == source.name && s.kind == SourceKind::Postgres);
        let mut details = Vec::new();
        for snapshot in &snapshots {
            details.push((snapshot.id.clone(), BackupDetail::of(snapshot)?));
        }
        let Some((_, newest)) = details.last() else { return Ok(None) };
        let (identifier, size) = (newest.system_identifier, newest.segment_size);
        let backups: Vec<(String, RecoveryBase)> = details
            .iter()
            .filter(|(_, detail)| detail.system_identifier == identifier)
            .map(|(id, detail)| (id.clone(), detail.into()))
            .collect();
        let health = window(&repository.archive(identifier), size, &backups)?;
        Ok(Some(Self { repository, identifier, health }))
    }

    /// Adds what reading all of it finds.
    fn read_through(mut self, app: &App, name: &str) -> Result<Self> {
        let archive = self.repository.archive(self.identifier);
        let inventory = Inventory::read(&archive, self.health.segment_size)?;
        let found = work::run(app, &format!("reading the archive in {name}"), |progress| {
            read_through(&archive, &inventory, &self.health.windows, |bytes| {
                progress.add_done(bytes, 0);
                Ok(progress.check()?)
            })
        })?;
        for finding in found {
            if !self.health.findings.contains(&finding) {
                self.health.findings.push(finding);
            }
        }
        Ok(self)
    }

    fn document(&self, repository: &str, now: std::time::SystemTime) -> serde_json::Value {
        let health = &self.health;
        json!({
            "repository": repository,
            "system_identifier": self.identifier.to_string(),
            "exposure_seconds": health.rpo(now).map(|age| age.as_secs()),
            "windows": health.windows.iter().map(|window| json!({
                "from": window.from_time,
                "from_lsn": window.from.to_string(),
                "to_lsn": window.to.to_string(),
                "timeline": window.timeline,
                "last_segment": window.last.to_string(),
                "begun": window.begun,
                "archived": window.archived.and_then(|t| jiff::Timestamp::try_from(t).ok()),
                "broken_by": window.broken_by.map(|name| name.to_string()),
                "snapshots": window.backups,
            })).collect::<Vec<_>>(),
            "unusable": health.unusable.iter().map(|one| json!({
                "snapshot": one.backup,
                "missing": one.missing.to_string(),
            })).collect::<Vec<_>>(),
            "findings": health.findings.iter().map(|finding| json!({
                "kind": finding.kind(),
                "what": finding.to_string(),
                "alarm": finding.is_alarm(),
            })).collect::<Vec<_>>(),
            "timelines": health.timelines.iter().map(|timeline| json!({
                "timeline": timeline.timeline,
                "history": timeline.history,
                "segments": timeline.ranges.iter().map(|range| range.count).sum::<u64>(),
                "gaps": timeline.gaps.iter().map(|gap| json!({
                    "first": gap.first.to_string(),
                    "last": gap.last.to_string(),
                    "count": gap.count,
                })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
        })
    }
}

fn present(
    app: &App,
    repository: &str,
    identifier: u64,
    health: &ArchiveHealth,
    rpo: Option<Duration>,
) -> Result<()> {
    let paint = app.output.paint;
    app.output.answer(format!(
        "{}  archive of system {identifier}",
        paint.paint(Style::Bold, repository)
    ))?;
    for window in &health.windows {
        let archived = window.archived.and_then(|time| jiff::Timestamp::try_from(time).ok());
        let to = match archived {
            Some(time) => format!("{} ({})", moment::local(time, &app.zone()), window.to),
            None => window.to.to_string(),
        };
        app.output.answer(format!(
            "  {} unbroken from {} ({}) to {to}, timeline {}, {}",
            paint.paint(Style::Green, "window"),
            moment::local(window.from_time, &app.zone()),
            window.from,
            window.timeline,
            count(window.backups.len() as u64, "snapshot", "snapshots"),
        ))?;
        if let Some(missing) = window.broken_by {
            app.output.answer(format!(
                "  {} it ends there because {missing} is missing",
                paint.paint(Style::Yellow, "broken")
            ))?;
        }
    }
    for timeline in &health.timelines {
        let segments: u64 = timeline.ranges.iter().map(|range| range.count).sum();
        let bytes = segments.saturating_mul(health.segment_size.bytes());
        app.output.answer(format!(
            "  timeline {}: {} ({})",
            timeline.timeline,
            count(segments, "segment", "segments"),
            format_size(bytes)
        ))?;
        for gap in &timeline.gaps {
            app.output.answer(format!(
                "    {} {} from {} to {}",
                paint.paint(Style::Yellow, "gap"),
                count(gap.count, "segment", "segments"),
                gap.first,
                gap.last
            ))?;
        }
    }
    for finding in health.findings.iter().filter(|finding| !finding.is_alarm()) {
        app.output.answer(format!("  {} {finding}", paint.paint(Style::Yellow, "note")))?;
    }
    if let Some(age) = health.rpo(app.context()?.env.now()) {
        let allowed = match rpo {
            Some(rpo) if age <= rpo => format!(", within the {} of its tier", format_setting(rpo)),
            Some(rpo) => format!(
                ", {} than the {} of its tier",
                paint.paint(Style::Red, "more"),
                format_setting(rpo)
            ),
            None => String::new(),
        };
        app.output
            .say(format!("  RPO now: the newest moment is from {}{allowed}", format_age(age)))?;
    }
    Ok(())
}

fn present_server(app: &App, source: &str, server: &ServerHealth) -> Result<()> {
    let paint = app.output.paint;
    app.output.answer(paint.paint(Style::Bold, format!("the server of {source}")))?;
    let watched = match &server.answer {
        Ok(watched) => watched,
        Err(error) => {
            let note = paint.paint(Style::Yellow, "note");
            return app.output.answer(format!("  {note} it was not asked: {error}"));
        }
    };
    if let Some(position) = watched.position {
        app.output.answer(format!("  its log goes to {position}"))?;
    }
    if watched.archive_mode != "off" {
        let archiver = &watched.archiver;
        app.output.answer(format!(
            "  the archiver has archived {} ({} failed), the newest {}; {}",
            count(archiver.archived.unsigned_abs(), "file", "files"),
            archiver.failed,
            archiver.last_archived.as_deref().unwrap_or("none"),
            match &watched.waiting {
                Some(waiting) => format!(
                    "{} to be archived",
                    match waiting.files {
                        0 => "nothing waits".to_owned(),
                        1 => "1 file waits".to_owned(),
                        several => format!("{several} files wait"),
                    }
                ),
                None => "the role may not ask what waits".to_owned(),
            }
        ))?;
    }
    if let Some(slot) = &watched.slot {
        app.output.answer(format!(
            "  the slot {} is {}, {}",
            slot.name,
            if slot.active { "in use" } else { "not in use" },
            match slot.behind {
                Some(behind) => format!("{} behind", format_size(behind)),
                None => "and holds nothing back".to_owned(),
            }
        ))?;
    }
    Ok(())
}
