//! Does the log of a source leave its server, and arrive? What the server says and what the archive
//! has, side by side, as alerts.

use std::collections::BTreeMap;
use std::time::Duration;

use backstay_postgres::wal::ArchiveHealth;
use backstay_postgres::{Alert, WatchOptions, Watched};

use crate::config::{SourceConfig, SourceSettings};
use crate::jobs::{Protected, protected};
use crate::units::{format_duration, format_setting};
use crate::{Error, Result};

/// What the server of a source said.
#[derive(Debug)]
pub struct ServerHealth {
    /// Why it could not be asked, else what it said.
    pub answer: Result<Watched>,
    pub alerts: Vec<Alert>,
}

/// The slot of a source's receiver, and what the server calls that: `backstay_` and the source's name,
/// in the letters that a slot can have.
pub fn slot_name(source: &str) -> String {
    let letters = source.chars().map(|letter| match letter.to_ascii_lowercase() {
        plain if plain.is_ascii_alphanumeric() => plain,
        _ => '_',
    });
    "backstay_".chars().chain(letters).take(63).collect()
}

/// The slot that a source's receiver uses when it is not told another.
pub fn slot_of(source: &SourceConfig) -> String {
    let said = match &source.settings {
        SourceSettings::Postgres(keys) => keys.slot.clone(),
        _ => None,
    };
    said.unwrap_or_else(|| slot_name(&source.name))
}

impl ServerHealth {
    /// As it stands in JSON.
    pub fn document(&self) -> serde_json::Value {
        match &self.answer {
            Ok(watched) => serde_json::json!({ "reached": true, "watched": watched }),
            Err(error) => serde_json::json!({ "reached": false, "error": error.to_string() }),
        }
    }
}

/// How the server of a source is watched; none for one that has no log of this kind.
pub fn options(source: &SourceConfig) -> Option<WatchOptions> {
    match &source.settings {
        SourceSettings::Postgres(keys) => Some(WatchOptions {
            slot: slot_of(source),
            slot_limit: keys.slot_limit.0,
            archive_lag: keys.archive_lag,
            standalone: keys.standalone,
        }),
        _ => None,
    }
}

/// Asks the server of a source. One that does not answer is no alert: it may be what was lost, and
/// others watch whether servers run; but nothing is known about it then.
pub fn server(source: &SourceConfig) -> Option<ServerHealth> {
    let options = options(source)?;
    let answer = match protected(source) {
        Ok(Protected::Postgres(cluster)) => {
            backstay_postgres::watch(&cluster, &options).map_err(Error::from)
        }
        Ok(_) => return None,
        Err(error) => Err(error),
    };
    let alerts = answer.as_ref().map(|watched| watched.alerts(&options)).unwrap_or_default();
    Some(ServerHealth { answer, alerts })
}

/// The same of all sources, or of one, at once.
pub fn servers(sources: &[SourceConfig], only: Option<&str>) -> BTreeMap<String, ServerHealth> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = sources
            .iter()
            .filter(|source| only.is_none_or(|only| only == source.name))
            .map(|source| (source, scope.spawn(|| server(source))))
            .collect();
        asked
            .into_iter()
            .filter_map(|(source, thread)| Some((source.name.clone(), thread.join().ok()??)))
            .collect()
    })
}

/// What is wrong with what a repository has of a source's log.
pub fn archive(
    health: &ArchiveHealth,
    system_identifier: u64,
    server: Option<&ServerHealth>,
    exposure: Option<Duration>,
    rpo: Option<Duration>,
) -> Vec<Alert> {
    let mut alerts = Vec::new();
    if let Some(Ok(watched)) = server.map(|server| &server.answer)
        && watched.system_identifier != system_identifier.to_string()
    {
        alerts.push(Alert::new(
            "other-system",
            format!(
                "the server is the system {}, but the newest snapshot is of {system_identifier}: \
                 nothing recovers this server",
                watched.system_identifier
            ),
            "make a backup of it; if it should be the other one, correct `connection`",
        ));
    }
    alerts.extend(health.alerts());
    if let Some(rpo) = rpo
        && exposure.is_none_or(|exposure| exposure > rpo)
    {
        let age = match exposure {
            Some(exposure) => {
                let exposure = Duration::from_secs(exposure.as_secs().max(1));
                format!(
                    "the newest moment that can be recovered is {} old",
                    format_duration(exposure)
                )
            }
            None => "it is not known how old the newest moment is that can be recovered".to_owned(),
        };
        alerts.push(Alert::new(
            "rpo",
            format!("{age}, more than the {} that its tier allows", format_setting(rpo)),
            "see that archiving works; `archive_timeout` on the server, or `backstay wal receive`, \
             bounds how old it gets",
        ));
    }
    alerts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_letters_that_a_slot_may_have() {
        assert_eq!(slot_name("Orders-2.eu"), "backstay_orders_2_eu");
        assert_eq!(slot_name(&"ä".repeat(99)).len(), 63);
    }
}
