//! `backstay retention`: what the policies keep, and forgetting the rest; what that leaves of the logs
//! of clusters that nothing needs goes, too.

use std::collections::BTreeSet;

use backstay_ops::config::Percent;
use backstay_ops::retention::{Decision, check_share, decide};
use backstay_ops::units::count;
use backstay_ops::{Error, expire, moment};
use backstay_repo::{Expired, Repository};
use clap::Args;
use serde_json::json;

use super::wal::expire as logs;
use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::table::{Cell, Table};
use crate::work;

/// Show what the policies keep and what may go; forget it with `--apply`
#[derive(Debug, Args)]
#[command(
    after_help = "Each writer's snapshots are counted by themselves. The newest complete snapshot of a source is
always kept. Space returns with `backstay maintenance`; what no snapshot needs of the log of a cluster
goes at once, as with `backstay wal expire`."
)]
pub struct RetentionArgs {
    /// Only this source
    source: Option<String>,

    /// Forget what may go
    #[arg(long)]
    apply: bool,

    /// Refuse to forget this share or more of a source's snapshots at once
    #[arg(long, value_name = "PERCENT", default_value = "50", value_parser = Percent::parse)]
    max_share: Percent,
}

pub fn run(args: &RetentionArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    if let Some(name) = &args.source {
        context.config.source(name)?;
    }
    let wanted = |name: &str| args.source.as_deref().is_none_or(|source| source == name);
    let mut documents = Vec::new();
    let mut table = Table::new(&["SNAPSHOT", "SOURCE", "TIME", "KEPT FOR", "REPOSITORY"]);
    let (mut kept, mut goes) = (0, 0);
    let mut log = Log::default();
    let asked = context.ask_all(|config, repository| {
        let all = repository.snapshots()?;
        let mut systems = BTreeSet::new();
        for source in context.config.sources.iter().filter(|source| wanted(&source.name)) {
            let policy = context.config.policy_of(source);
            let Some(keep) = policy.and_then(|policy| policy.retention.as_ref()) else { continue };
            let own = all.iter().filter(|one| one.source == source.name).cloned().collect();
            let mut decisions = decide(own, keep, &app.zone());
            for one in decisions.iter_mut().filter(|one| one.kept_for.is_empty()) {
                if repository.is_held(&one.snapshot)? {
                    one.kept_for.push("a hold");
                }
            }
            if args.apply {
                check_share(&source.name, &decisions, args.max_share.0)?;
                let going = decisions.iter().filter(|one| one.kept_for.is_empty());
                let going: Vec<&str> = going.map(|one| one.snapshot.id.as_str()).collect();
                if !going.is_empty() {
                    repository.forget_all(&going)?;
                }
            }
            for Decision { snapshot, kept_for } in &decisions {
                let keeps = !kept_for.is_empty();
                *(if keeps { &mut kept } else { &mut goes }) += 1;
                documents.push(json!({
                    "snapshot": snapshot.id,
                    "source": snapshot.source,
                    "repository": config.name,
                    "time": snapshot.time,
                    "kept_for": kept_for,
                    "forgotten": !keeps && args.apply,
                }));
                let why = match (keeps, args.apply) {
                    (true, _) => Cell::from(kept_for.join(", ")),
                    (false, false) => Cell::new("may go", Style::Yellow),
                    (false, true) => Cell::new("forgotten", Style::Yellow),
                };
                table.row([
                    Cell::new(snapshot.short_id(), Style::Cyan),
                    snapshot.source.clone().into(),
                    moment::local(snapshot.time, &app.zone()).into(),
                    why,
                    config.name.clone().into(),
                ]);
            }
            // Those that are all forgotten have a log that nobody decides about: it stays.
            systems.extend(expire::systems(&repository, &source.name)?);
        }
        for system in systems {
            log.expire(app, &config.name, &repository, system, !args.apply)?;
        }
        Ok(())
    })?;
    app.show_warnings();
    if documents.is_empty() && asked.failed.is_empty() {
        let any = context.config.sources.iter().any(|source| {
            let policy = context.config.policy_of(source);
            wanted(&source.name) && policy.is_some_and(|policy| policy.retention.is_some())
        });
        if !any {
            return Err(Error::usage(
                "no source has a policy with `retention`: everything is kept",
                "write one: [policies.NAME] retention = { last = 4, daily = 7, weekly = 5 }, and \
                 policy = \"NAME\" with the source",
            ));
        }
    }
    app.output.document(&json!({
        "applied": args.apply,
        "snapshots": documents,
        "logs": log.documents,
    }))?;
    if !documents.is_empty() {
        app.output.answer(table.render(app.output.paint))?;
    }
    let what = count(goes, "snapshot", "snapshots");
    app.output.say(match (args.apply, goes) {
        (_, 0) => format!("\nall of {} stay", count(kept, "snapshot", "snapshots")),
        (false, _) => format!("\n{what} may go: `backstay retention --apply` forgets them"),
        (true, _) => format!("\n{what} forgotten; `backstay maintenance` returns the space"),
    })?;
    for (name, expired) in &log.expired {
        logs::present(app, &format!("the log in {name}"), !args.apply, expired)?;
    }
    let good = asked.failed.is_empty() && log.failed == 0;
    Ok(if good { Outcome::Done } else { Outcome::Partial })
}

/// What became of logs.
#[derive(Default)]
struct Log {
    documents: Vec<serde_json::Value>,
    expired: Vec<(String, Expired)>,
    failed: usize,
}

impl Log {
    /// What snapshots became of is decided: a log that stays costs space and nothing else.
    fn expire(
        &mut self,
        app: &App,
        name: &str,
        repository: &Repository,
        system: u64,
        dry_run: bool,
    ) -> Result<()> {
        let context = app.context()?;
        let expired = work::run(app, &format!("{name}: expiring"), |progress| {
            expire::log(context, name, repository, system, dry_run, progress)
        });
        match expired {
            Ok(expired) => {
                let mut document = logs::document(name, &expired);
                document["system_identifier"] = json!(system.to_string());
                self.documents.push(document);
                self.expired.push((name.to_owned(), expired));
            }
            Err(error) => {
                let message = format!("the log of {system} in {name} stays: {error}");
                app.output.warn(&message, error.hint());
                self.documents.push(json!({
                    "repository": name,
                    "system_identifier": system.to_string(),
                    "error": error.to_string(),
                }));
                self.failed += 1;
            }
        }
        Ok(())
    }
}
