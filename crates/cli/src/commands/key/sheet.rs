use super::At;
use crate::app::{Outcome, Result};
#[derive(Debug, clap::Args)]
pub struct SheetArgs {}
pub(super) fn run(_: &SheetArgs, _: &At<'_>) -> Result<Outcome> { Ok(Outcome::Done) }
