//! `backstay parity`: what repairs a repository on this machine from bad sectors and flipped bits.

use backstay_ops::units::count;
use backstay_ops::{Error, Result as OpsResult};
use backstay_repo::Repository;
use clap::Args;
use serde_json::json;

use crate::app::{App, Outcome, Result};
use crate::output::Style;
use crate::work;

/// Show or set how much of each object of a local repository can be repaired
#[derive(Debug, Args)]
#[command(
    after_help = "Parity lies beside the objects and costs its share of space. It repairs flipped bits,
bad sectors and files that were cut short, up to the share, wherever the damage lies: restores
read through it, and `backstay verify --repair` puts right what is damaged. It does not bring back
files that are gone, or a disk: for those, keep a second repository. Parity is made only of objects
that open with the key, so setting a share reads all of the repository.

  backstay parity 10%    parity for what is there and for what comes
  backstay parity off    no parity any more"
)]
pub struct ParityArgs {
    /// The share of each object, from 1% to 100%, or off [default: show the present one]
    #[arg(value_name = "PERCENT|off", value_parser = parse_share)]
    share: Option<Share>,
}

#[derive(Debug, Clone, Copy)]
struct Share(Option<u8>);

fn parse_share(text: &str) -> std::result::Result<Share, String> {
    if text == "off" {
        return Ok(Share(None));
    }
    parse_percent(text).map(|share| Share(Some(share))).map_err(|what| format!("{what}, or off"))
}

/// A share of each object.
pub(super) fn parse_percent(text: &str) -> std::result::Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse().ok();
    let share = number.filter(|share| (1..=100).contains(share));
    share.ok_or_else(|| "say a whole share from 1% to 100%".to_owned())
}

pub fn run(args: &ParityArgs, app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let config = context.config.default_repository()?;
    let repository = context.open(config)?;
    app.show_warnings();
    let name = app.output.paint.paint(Style::Bold, &config.name);
    let Some(Share(share)) = args.share else {
        let share = repository.parity().map_err(Error::from)?;
        app.output.document(&json!({ "repository": config.name, "parity": share }))?;
        app.output.say(match share {
            Some(share) => format!("{name}  parity repairs {share} % of each object"),
            None => format!("{name}  no parity; `backstay parity 10%` turns it on"),
        })?;
        return Ok(Outcome::Done);
    };
    let set = work::run(app, &config.name, |progress| -> OpsResult<_> {
        Ok(repository.set_parity(share, progress)?)
    })?;
    app.output.document(&json!({
        "repository": config.name,
        "parity": share,
        "objects": set.objects,
        "damaged": set.damaged,
    }))?;
    app.output.say(match share {
        Some(share) => format!(
            "{name}  parity repairs {share} % of each object; made for {}",
            count(set.objects, "object", "objects")
        ),
        None => format!("{name}  no parity any more"),
    })?;
    for object in &set.damaged {
        let mark = app.output.paint.paint(Style::Red, "damaged");
        app.output.answer(format!("  {mark} {object}: no parity is made of it as it is"))?;
    }
    if set.damaged.is_empty() {
        return Ok(Outcome::Done);
    }
    app.output.say("  `backstay verify --repair` puts right what can be had")?;
    Ok(Outcome::Damage)
}

/// Says that objects of a repository were read right although the disk has damaged them.
pub(super) fn warn_of_damage(app: &App, name: &str, repository: &Repository) {
    let rebuilt = repository.store().parity().map(|parity| parity.rebuilt().len());
    if let Some(number) = rebuilt.filter(|number| *number > 0) {
        let objects = count(number as u64, "object", "objects");
        app.output.warn(
            &format!("{objects} of `{name}` came from parity, being damaged on the disk"),
            Some("`backstay verify --repair` puts right what is there; and look at the disk"),
        );
    }
}
