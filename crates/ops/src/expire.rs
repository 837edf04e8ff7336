//! What becomes of a log that no snapshot needs: by the policies of the sources, and not before a
//! replication has brought it where it is still needed.

use std::collections::BTreeSet;
use std::sync::Arc;

use backstay_postgres::BackupDetail;
use backstay_postgres::wal::{self, Follower, Keep};
use backstay_repo::{Expired, Progress, Repository, SourceKind};

use crate::config::Config;
use crate::{Context, Result};

/// Removes what no snapshot needs of the log of one cluster in the repository called `name`; with
/// `dry_run` only says what would go.
///
/// # Errors
/// When there is no snapshot of the cluster, or a repository that is still to get something cannot be
/// asked: it might need anything.
pub fn log(
    context: &Context,
    name: &str,
    repository: &Repository,
    system: u64,
    dry_run: bool,
    progress: &Arc<Progress>,
) -> Result<Expired> {
    let followers = followers(context, name, system)?;
    let keep = Keep { windows: windows(&context.config), now: context.env.now() };
    Ok(wal::expire(&repository.archive(system), dry_run, &keep, &followers, progress)?)
}

/// The clusters of which a repository has snapshots of a source.
pub fn systems(repository: &Repository, source: &str) -> Result<BTreeSet<u64>> {
    let mut systems = BTreeSet::new();
    for snapshot in repository.snapshots()? {
        if snapshot.source == source && snapshot.kind == SourceKind::Postgres {
            systems.insert(BackupDetail::of(&snapshot)?.system_identifier);
        }
    }
    Ok(systems)
}

/// How far back every moment of each source stays restorable, where its policy says so.
fn windows(config: &Config) -> std::collections::BTreeMap<String, std::time::Duration> {
    config
        .sources
        .iter()
        .filter_map(|source| {
            let retention = config.policy_of(source)?.retention.as_ref()?;
            Some((source.name.clone(), retention.archive?))
        })
        .collect()
}

/// The repositories to which a replication brings the log of a cluster from `from`. Whatever sources it
/// names: another one may be of the same cluster.
fn followers(context: &Context, from: &str, system: u64) -> Result<Vec<Follower>> {
    let to_follow =
        context.config.replication.values().filter(|keys| keys.archive && keys.from == from);
    to_follow
        .map(|keys| {
            let repository = context.open(context.config.repository(&keys.to)?)?;
            let files = repository.archive(system).list(None)?;
            Ok(Follower {
                snapshots: repository.snapshots()?,
                files: files.into_iter().map(|file| file.name).collect(),
            })
        })
        .collect()
}
