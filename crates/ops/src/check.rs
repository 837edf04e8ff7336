//! Can a source be backed up and restored? Questions that are answered before the day they matter.

use backstay_repo::Repository;
use serde::Serialize;

use crate::config::{RepositoryConfig, SourceConfig, SourceSettings};
use crate::jobs::{Protected, protected};
use crate::{Context, Error, ErrorKind, Result, watch};

/// One thing that was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckItem {
    pub name: String,
    pub ok: bool,
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl CheckItem {
    fn good(name: &str, message: impl Into<String>) -> Self {
        Self { name: name.to_owned(), ok: true, message: message.into(), hint: None }
    }

    fn failed(name: &str, error: &Error) -> Self {
        Self {
            name: name.to_owned(),
            ok: false,
            message: error.to_string(),
            hint: error.hint().map(str::to_owned),
        }
    }
}

/// Looks at a repository: does its store answer, and does its key open it?
pub fn check_repository(
    context: &Context,
    config: &RepositoryConfig,
) -> (Vec<CheckItem>, Option<Repository>) {
    let mut items = Vec::new();
    let store = match context.store(config) {
        Ok(store) => store,
        Err(error) => return (vec![CheckItem::failed("store", &error)], None),
    };
    let repository = match context.open(config) {
        Ok(repository) => repository,
        Err(error) => return (vec![CheckItem::failed("key", &error)], None),
    };
    let verb = if repository.is_write_only() { "adds backups to" } else { "opens" };
    items.push(CheckItem::good("key", format!("{verb} {}", store.url())));
    items.push(match store.probe() {
        Ok(()) => CheckItem::good("store", "objects are created once and never overwritten"),
        Err(error) => CheckItem::failed("store", &error.into()),
    });
    items.push(match repository.snapshots() {
        Ok(snapshots) => CheckItem::good(
            "snapshots",
            match snapshots.len() {
                0 => "there are none yet".to_owned(),
                1 => "1 can be read".to_owned(),
                many => format!("{many} can be read"),
            },
        ),
        Err(error) => CheckItem::failed("snapshots", &error.into()),
    });
    (items, Some(repository))
}

/// Looks at a source, and at its way into a repository. `archive_command` is what a PostgreSQL
/// server should run for each segment of its log.
///
/// # Errors
/// What makes the question itself impossible. What is wrong with the source is an item.
pub fn check_source(
    source: &SourceConfig,
    repository: &Repository,
    archive_command: Option<&str>,
) -> Result<Vec<CheckItem>> {
    match protected(source)? {
        Protected::Other(other) => Ok(other
            .check()
            .into_iter()
            .map(|item| CheckItem {
                name: item.name,
                ok: item.ok,
                message: item.message,
                hint: item.hint,
            })
            .collect()),
        Protected::Logical(source) => Ok(backstay_postgres::logical::check(&source)
            .into_iter()
            .map(|item| CheckItem {
                name: item.name,
                ok: item.ok,
                message: item.message,
                hint: item.hint,
            })
            .collect()),
        Protected::Postgres(cluster) => {
            let SourceSettings::Postgres(keys) = &source.settings else {
                return Err(Error::new(ErrorKind::Failed, "the source changed its kind"));
            };
            let options = backstay_postgres::CheckOptions {
                method: keys.method,
                standalone: keys.standalone,
                archive_command,
                timeout: keys.archive_timeout,
            };
            let items = backstay_postgres::check(repository, &cluster, &options)?;
            let mut items: Vec<CheckItem> = items
                .into_iter()
                .map(|item| CheckItem {
                    name: item.name,
                    ok: item.ok,
                    message: item.message,
                    hint: item.hint,
                })
                .collect();
            items.extend(watched(source, &items));
            Ok(items)
        }
    }
}

/// What the server says of its archiver and of the slot of a receiver. A segment that arrives, as a
/// check asks for, may come by one way while the other fails.
fn watched(source: &SourceConfig, items: &[CheckItem]) -> Vec<CheckItem> {
    let Some(server) = watch::server(source) else { return Vec::new() };
    // Who may only replicate is not answered; who is not let in was told so above.
    if server.answer.is_err() {
        return Vec::new();
    }
    let said =
        items.iter().any(|item| !item.ok && (item.name == "settings" || item.name == "archive"));
    let alerts = server.alerts.into_iter().filter(|alert| {
        !(said && matches!(alert.name, "archiving-off" | "no-archive-command" | "archiver-fails"))
    });
    let mut found: Vec<CheckItem> = alerts
        .map(|alert| CheckItem {
            name: alert.name.to_owned(),
            ok: false,
            message: alert.message,
            hint: Some(alert.hint),
        })
        .collect();
    if found.is_empty() && !said {
        found.push(CheckItem::good(
            "log",
            "nothing of it fails to leave the server, or waits too long",
        ));
    }
    found
}
