//! Verification: is what is stored what was stored?

use std::sync::Arc;

use backstay_repo::{
    Level, Progress, RepairOptions, RepairReport, Repository, Snapshot, VerifyOptions, VerifyReport,
};

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
    let options = VerifyOptions {
        level: level(request.level)?,
        snapshots: request.snapshots.clone(),
        sample: request.sample.map(|share| share.0),
        workers: context.workers(),
    };
    Ok(repository.verify(options, progress)?)
}

fn level(level: VerifyLevel) -> Result<Level> {
    match level {
        VerifyLevel::Basic => Ok(Level::Basic),
        VerifyLevel::Standard => Ok(Level::Standard),
        VerifyLevel::Thorough => Ok(Level::Thorough),
        VerifyLevel::Forensic => Err(Error::usage(
            "the level forensic restores into a sandbox, which this command cannot do yet",
            "use --level thorough, and rehearse with `backstay restore SOURCE --to DIR`",
        )),
    }
}

/// Looks for damage of a whole repository and puts right what can be had, from what is left of it or
/// from another repository.
pub fn repair(
    context: &Context,
    repository: &Repository,
    at: VerifyLevel,
    from: Option<&Repository>,
    progress: &Arc<Progress>,
) -> Result<RepairReport> {
    let options =
        RepairOptions { level: level(at)?, workers: context.workers(), from: from.cloned() };
    Ok(repository.repair(&options, progress)?)
}
