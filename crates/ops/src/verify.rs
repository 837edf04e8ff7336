//! Verification: is what is stored what was stored?

use std::sync::Arc;

use backstay_repo::{Level, Progress, Repository, Snapshot, VerifyOptions, VerifyReport};

use crate::config::{Percent, VerifyLevel};
use crate::error::Error;
use crate::{Context, Result};

/// What is asked of a verification.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    pub level: VerifyLevel,
    pub sample: Option<Percent>,
    /// Empty: everything there is.
    pub snapshots: Vec<Snapshot>,
}

/// Checks what a repository holds. Damage is in the report, not an error.
///
/// # Errors
/// Usage, for the level `forensic`: that one restores, and is a drill.
pub fn verify(
    context: &Context,
    repository: &Repository,
    request: &VerifyRequest,
    progress: &Arc<Progress>,
) -> Result<VerifyReport> {
    let level = match request.level {
        VerifyLevel::Basic => Level::Basic,
        VerifyLevel::Standard => Level::Standard,
        VerifyLevel::Thorough => Level::Thorough,
        VerifyLevel::Forensic => {
            return Err(Error::usage(
                "the level forensic restores into a sandbox, which this command cannot do yet",
                "use --level thorough, and rehearse with `backstay restore SOURCE --to DIR`",
            ));
        }
    };
    let options = VerifyOptions {
        level,
        snapshots: request.snapshots.clone(),
        sample: request.sample.map(|share| share.0),
        workers: context.workers(),
    };
    Ok(repository.verify(options, progress)?)
}
