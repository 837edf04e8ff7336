//! `backstay status`: where things stand.

use backstay_ops::replicate::{self, Lag};
use backstay_ops::status::{self, RepositoryStatus, SourceStatus};
use backstay_ops::watch::{self, ServerHealth};
use std::collections::BTreeMap;
use std::time::Duration;

use backstay_ops::units::{count, format_duration, format_setting, format_size};
use clap::Args;
use serde_json::json;

use super::present::{
    age_text, alert_document, failed_documents, present_alert, snapshot_document,
};
use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::table::{Cell, Table};

/// Show where every source stands: its newest snapshot, and what would be lost now
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this source
    source: Option<String>,
}

pub fn run(args: &StatusArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    if let Some(name) = &args.source {
        context.config.source(name)?;
    }
    let now = app.now();
    let servers = watch::servers(&context.config.sources, args.source.as_deref());
    let mut sources = Vec::new();
    let asked = context.ask_all(|config, repository| {
        let found = status::sources(&context.config, &config.name, &repository, &servers, now)?;
        let of_repository = RepositoryStatus {
            name: config.name.clone(),
            url: repository.store().url(),
            usage: repository.usage()?,
            snapshots: found.iter().map(|status| status.snapshots).sum(),
        };
        sources.extend(
            found
                .into_iter()
                .filter(|status| args.source.as_ref().is_none_or(|name| name == &status.source)),
        );
        Ok(of_repository)
    })?;
    app.show_warnings();
    let (lags, lost) = if args.source.is_none() { replications(app)? } else { Default::default() };
    let repositories = asked.answers;
    let outcome =
        if asked.failed.is_empty() && lost.is_empty() { Outcome::Done } else { Outcome::Partial };
    let documents: Vec<_> = sources
        .iter()
        .map(|status| {
            json!({
                "source": status.source,
                "kind": status.kind,
                "configured": status.configured,
                "repository": status.repository,
                "snapshots": status.snapshots,
                "newest": status.newest.as_ref().map(|s| snapshot_document(s, &status.repository)),
                "exposure_seconds": status.exposure.map(|d| d.as_secs()),
                "tier": status.tier,
                "rpo_seconds": status.rpo.map(|d| d.as_secs()),
                "within_rpo": status.within_rpo,
                "archive": status.archive.as_ref().map(|archive| json!({
                    "system_identifier": archive.system_identifier.to_string(),
                    "segments": archive.segments,
                    "stored": archive.stored,
                    "newest": archive.newest,
                    "arrived": archive.arrived,
                    "broken_by": archive.broken_by,
                })),
                "server": servers.get(&status.source).map(ServerHealth::document),
                "alerts": alerts(status, &servers),
            })
        })
        .collect();
    app.output.document(&json!({
        "sources": documents,
        "repositories": repositories.iter().map(|repository| json!({
            "name": repository.name,
            "url": repository.url,
            "snapshots": repository.snapshots,
            "usage": repository.usage,
        })).collect::<Vec<_>>(),
        "replication": lags.iter().map(|lag| lag_document(lag, now)).collect::<Vec<_>>(),
        "failed": failed_documents(&asked.failed),
    }))?;
    if app.output.json {
        return Ok(outcome);
    }
    present_sources(app, &sources, app.several_repositories()?)?;
    present_alerts(app, &sources, &servers)?;
    app.output.answer("")?;
    for repository in &repositories {
        let usage = &repository.usage;
        let total: u64 = [
            usage.packs.bytes,
            usage.index.bytes,
            usage.snapshots.bytes,
            usage.archive.bytes,
            usage.other.bytes,
        ]
        .iter()
        .sum();
        let mut line = format!(
            "{}  {}: {}, {}",
            app.output.paint.paint(Style::Bold, &repository.name),
            repository.url,
            count(repository.snapshots as u64, "snapshot", "snapshots"),
            format_size(total),
        );
        if usage.archive.objects > 0 {
            line.push_str(&format!(
                " ({} of it archive, {})",
                format_size(usage.archive.bytes),
                count(usage.archive.objects, "file", "files")
            ));
        }
        app.output.answer(line)?;
    }
    for lag in &lags {
        app.output.answer(lag_line(app, lag, now))?;
    }
    Ok(outcome)
}

/// What is wrong with the log of a source, in JSON.
fn alerts(
    status: &SourceStatus,
    servers: &BTreeMap<String, ServerHealth>,
) -> Vec<serde_json::Value> {
    let archive = status.archive.iter().flat_map(|archive| &archive.alerts);
    let server = servers.get(&status.source).into_iter().flat_map(|server| &server.alerts);
    archive
        .map(|alert| alert_document(alert, Some(&status.repository)))
        .chain(server.map(|alert| alert_document(alert, None)))
        .collect()
}

fn present_alerts(
    app: &App,
    sources: &[SourceStatus],
    servers: &BTreeMap<String, ServerHealth>,
) -> Result<()> {
    let paint = app.output.paint;
    for status in sources {
        let Some(archive) = status.archive.as_ref().filter(|archive| !archive.alerts.is_empty())
        else {
            continue;
        };
        let name = paint.paint(Style::Bold, &status.source);
        app.output.answer(format!("{name} in {}", status.repository))?;
        for alert in &archive.alerts {
            present_alert(app, alert)?;
        }
    }
    for (source, server) in servers.iter().filter(|(_, server)| !server.alerts.is_empty()) {
        let name = paint.paint(Style::Bold, source);
        app.output.answer(format!("the server of {name}"))?;
        for alert in &server.alerts {
            present_alert(app, alert)?;
        }
    }
    Ok(())
}

/// How far behind each replication is; those that cannot be told are warned of.
fn replications(app: &App) -> Result<(Vec<Lag>, Vec<String>)> {
    let context = app.context()?;
    let (mut lags, mut lost) = (Vec::new(), Vec::new());
    // One repository was chosen: what goes between two is not asked for.
    if context.config.selected().is_some() {
        return Ok((lags, lost));
    }
    for name in context.config.replication.keys() {
        match replicate::lag(context, name) {
            Ok(lag) => lags.push(lag),
            Err(error) => {
                let message =
                    format!("how far behind the replication `{name}` is cannot be told: {error}");
                app.output.warn(&message, error.hint());
                lost.push(name.clone());
            }
        }
    }
    Ok((lags, lost))
}

fn lag_document(lag: &Lag, now: jiff::Timestamp) -> serde_json::Value {
    json!({
        "name": lag.replication,
        "from": lag.from,
        "to": lag.to,
        "snapshots": lag.snapshots,
        "bytes": lag.bytes,
        "oldest": lag.oldest,
        "archived": lag.archived,
        "archived_bytes": lag.archived_bytes,
        "archived_oldest": lag.archived_oldest,
        "lag_seconds": lag.age(now).map_or(0, |age| age.as_secs()),
    })
}

fn lag_line(app: &App, lag: &Lag, now: jiff::Timestamp) -> String {
    let paint = app.output.paint;
    let head =
        format!("{}  {} to {}: ", paint.paint(Style::Bold, &lag.replication), lag.from, lag.to);
    let Some(age) = lag.age(now) else {
        return head + &paint.paint(Style::Green, "nothing waits").to_string();
    };
    let mut parts = Vec::new();
    if lag.snapshots > 0 {
        let number = count(lag.snapshots as u64, "snapshot", "snapshots");
        parts.push(format!("{number} of {}", format_size(lag.bytes)));
    }
    if lag.archived > 0 {
        let number = count(lag.archived as u64, "file", "files");
        parts.push(format!("{number} of the archive, {}", format_size(lag.archived_bytes)));
    }
    let age = format_duration(Duration::from_secs(age.as_secs().max(1)));
    let text = format!("{} behind: {}", age, parts.join(" and "));
    head + &paint.paint(Style::Yellow, text).to_string()
}

fn present_sources(app: &App, sources: &[SourceStatus], several: bool) -> Result<()> {
    if sources.is_empty() {
        return app.output.answer("No sources yet: add one to the configuration.");
    }
    let now = app.now();
    let objectives = sources.iter().any(|status| status.rpo.is_some());
    let mut heads = vec!["SOURCE", "KIND", "NEWEST", "ID", ">SNAPSHOTS", "EXPOSED"];
    if objectives {
        heads.push("RPO");
    }
    if several {
        heads.push("REPOSITORY");
    }
    heads.push("");
    let mut table = Table::new(&heads);
    for status in sources {
        let (newest, id) = match &status.newest {
            Some(snapshot) => (age_text(snapshot.time, now).into(), snapshot.short_id().to_owned()),
            None => (Cell::new("never", Style::Yellow), String::new()),
        };
        let style = match status.within_rpo {
            Some(true) => Style::Green,
            Some(false) => Style::Red,
            None => Style::Plain,
        };
        let exposed = match status.exposure {
            Some(exposure) => format_duration(Duration::from_secs(exposure.as_secs().max(1))),
            None => "all of it".to_owned(),
        };
        let rpo = match (status.rpo, status.within_rpo) {
            (Some(rpo), Some(true)) => format!("{} kept", format_setting(rpo)),
            (Some(rpo), _) => format!("{} MISSED", format_setting(rpo)),
            (None, _) => String::new(),
        };
        let problems = status.newest.as_ref().map_or(0, |snapshot| snapshot.problems.len() as u64);
        let mut row: Vec<Cell> = vec![
            Cell::new(status.source.clone(), Style::Bold),
            status.kind.to_string().into(),
            newest,
            Cell::new(id, Style::Cyan),
            status.snapshots.to_string().into(),
            Cell::new(exposed, style),
        ];
        if objectives {
            row.push(Cell::new(rpo, style));
        }
        if several {
            row.push(status.repository.clone().into());
        }
        let broken = status
            .archive
            .as_ref()
            .is_some_and(|archive| archive.broken_by.is_some() || archive.exposure.is_none());
        row.push(match (problems, status.configured) {
            _ if broken => Cell::new("archive broken", Style::Red),
            (0, true) => "".into(),
            (0, false) => Cell::new("not configured", Style::Dim),
            (some, _) => Cell::new(count(some, "problem", "problems"), Style::Yellow),
        });
        table.row(row);
    }
    app.output.answer(table.render(app.output.paint))
}
