//! `key escrow` and `key recover`: a key that several people hold together.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{BufRead, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use backstay_ops::config::RepositoryConfig;
use backstay_ops::{Context, Error, ErrorKind};
use backstay_repo::{KeySlot, Printed, RepoErrorKind, Repository, Secret, Share};
use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use super::{At, NewKey, named};
use crate::app::{App, Outcome, Result};
use crate::ask;
use crate::output::write_err;

/// Share a key out among people: several of them together open the repository, none alone
#[derive(Debug, Args)]
pub struct EscrowArgs {
    #[command(flatten)]
    pub set: SetArgs,

    /// A folder for the shares, one file each; without it they are printed
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,

    /// What the set is for, in words
    #[arg(long, default_value = "")]
    label: String,
}

#[derive(Debug, Args)]
pub struct SetArgs {
    /// How many shares there are
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(2..))]
    pub shares: u8,

    /// How many of them are needed
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(2..))]
    pub threshold: u8,
}

/// What stands in a share's file.
fn text_of(share: &Share, set: &SetArgs, it: &At<'_>) -> Zeroizing<String> {
    let mut text = Zeroizing::new(format!(
        "# Share {} of {} of a key to the Backstay repository {}.\n\
         # Any {} of the shares open it together; fewer tell nothing. Keep it where only you get at it.\n\
         #\n\
         # repository  {}\n\
         # address     {}\n\
         # set         {}\n\
         #\n\
         # To use it, with the other holders:\n\
         #   backstay key recover -r {} --new-key-file new.key --share-file FILE --share-file FILE …\n\n",
        share.number(),
        set.shares,
        it.config.name,
        set.threshold,
        it.repository.id(),
        it.repository.store().url(),
        share.set(),
        it.repository.store().url(),
    ));
    text.push_str(&share.text());
    text
}

/// Makes files that only their owner reads, in a folder that is made where it is missing. None is
/// ever overwritten.
pub(super) struct Files<'a> {
    paths: Vec<&'a Path>,
}

impl<'a> Files<'a> {
    /// Nothing is written yet, but that it could be is known.
    pub fn prepare(paths: Vec<&'a Path>) -> Result<Self> {
        for path in &paths {
            if path.symlink_metadata().is_ok() {
                return Err(Error::usage(
                    format!("{} is there already", path.display()),
                    "nothing was changed; name another place, or move it away",
                ));
            }
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|error| Error::io("create", folder, error))?;
        }
        // That they can be made and written shows before there is anything to lose.
        let it = Self { paths };
        for path in &it.paths {
            let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            made.map_err(|error| {
                it.discard();
                Error::io("create", path, error)
            })?;
        }
        Ok(it)
    }

    /// Removes what was prepared.
    pub fn discard(&self) {
        for path in &self.paths {
            let _ = std::fs::remove_file(path);
        }
    }

    pub fn write(&self, at: usize, content: &[u8]) -> Result<()> {
        let Some(path) = self.paths.get(at) else { return Ok(()) };
        let written = || {
            let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
            file.write_all(content)?;
            file.sync_all()
        };
        written().map_err(|error| Error::io("write", path, error))
    }
}

/// Takes a set back whose shares reached nobody, and says so in the error.
pub(super) fn take_back(it: &At<'_>, slot: &KeySlot, error: Error) -> Error {
    let hint = match it.repository.remove_key(&slot.id) {
        Ok(()) => "the set was withdrawn again; nothing has changed".to_owned(),
        Err(_) => format!("withdraw the set: `backstay key remove {}`", slot.id),
    };
    error.with_hint(hint)
}

pub(super) fn escrow(args: &EscrowArgs, it: &At<'_>) -> Result<Outcome> {
    let set = &args.set;
    let paths: Vec<PathBuf> = match &args.to {
        Some(folder) => (1..=set.shares)
            .map(|number| folder.join(format!("share-{number}-of-{}.txt", set.shares)))
            .collect(),
        None => Vec::new(),
    };
    let files = Files::prepare(paths.iter().map(PathBuf::as_path).collect())?;
    let (slot, shares) = it
        .repository
        .escrow(set.shares, set.threshold, &args.label)
        .inspect_err(|_| files.discard())?;
    for (at, share) in shares.iter().enumerate() {
        if let Err(error) = files.write(at, text_of(share, set, it).as_bytes()) {
            files.discard();
            return Err(take_back(it, &slot, error));
        }
    }
    let output = &it.app.output;
    let printed: Vec<_> = shares
        .iter()
        .enumerate()
        .map(|(at, share)| match paths.get(at) {
            Some(path) => json!({ "number": share.number(), "file": path }),
            None => json!({ "number": share.number(), "share": share.line().as_str() }),
        })
        .collect();
    output.document(&json!({
        "repository": it.config.name, "key": slot, "threshold": set.threshold, "shares": printed,
    }))?;
    if paths.is_empty() {
        for share in &shares {
            output.answer(text_of(share, set, it).as_str())?;
        }
    }
    output.say(format!(
        "Made the escrow set {}: any {} of its {} shares open the repository {}.",
        slot.id, set.threshold, set.shares, it.config.name
    ))?;
    for path in &paths {
        output.say(format!("  {}", path.display()))?;
    }
    output.say(
        "They are kept nowhere else. Give each to its holder and remove it here. To withdraw the \
         set:",
    )?;
    output.say(format!("  backstay key remove {}", slot.id))?;
    Ok(Outcome::Done)
}

/// Open a repository with shares or a printed key, and add a new key to it
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// A file with shares, or with a printed key; several times for several. Without it they are
    /// typed, or read from standard input
    #[arg(long, value_name = "FILE")]
    share_file: Vec<PathBuf>,

    #[command(flatten)]
    new: NewKey,

    /// Add nothing to the repository: what the shares make together becomes the new key file, and
    /// opens it until the set is withdrawn. For a store that cannot be written to
    #[arg(long, requires = "new_key_file")]
    read_only: bool,

    /// What the new key is for, in words
    #[arg(long, default_value = "recovered")]
    label: String,
}

/// A file of shares longer than this is none. Bytes.
const LONGEST: u64 = 1 << 20;

fn read_files(paths: &[PathBuf]) -> Result<Vec<Printed>> {
    let mut found = Vec::new();
    for path in paths {
        let failed = |error| Error::io("read", path, error);
        let mut text = Zeroizing::new(String::new());
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(LONGEST).read_to_string(&mut text).map_err(failed)?;
        let printed = Printed::read(&text).map_err(|error| {
            let error = Error::from(error);
            let hint = error.hint().unwrap_or("compare it with the paper").to_owned();
            Error::usage(format!("{} cannot be used: {error}", path.display()), hint)
        })?;
        if printed.is_empty() {
            return Err(Error::usage(
                format!("{} holds no share and no printed key", path.display()),
                "name a file that `backstay key escrow` wrote",
            ));
        }
        found.extend(printed);
    }
    Ok(found)
}

/// Sorts what was read: a key file alone, or shares.
fn secret_of(found: Vec<Printed>) -> Result<Secret> {
    let mut shares = Vec::new();
    for printed in found {
        match printed {
            Printed::KeyFile(secret) => return Ok(secret),
            Printed::Share(share) => shares.push(share),
        }
    }
    if shares.is_empty() {
        return Err(Error::usage(
            "there is no share and no printed key",
            "name files with --share-file, or type them",
        ));
    }
    Ok(Secret::Shares(shares))
}

/// How many shares are missing, from what is there.
fn missing(found: &[Printed]) -> Option<usize> {
    let mut numbers = Vec::new();
    let mut threshold = 0;
    for printed in found {
        match printed {
            Printed::KeyFile(_) => return Some(0),
            Printed::Share(share) => {
                threshold = share.threshold();
                if !numbers.contains(&share.number()) {
                    numbers.push(share.number());
                }
            }
        }
    }
    (threshold > 0).then(|| usize::from(threshold).saturating_sub(numbers.len()))
}

/// Asks a person until enough shares are there. A share that is mistyped is asked for again.
fn typed() -> Result<Vec<Printed>> {
    write_err(
        "Type the shares as they are printed, numbers of lines and all or without them, with an \
         empty line behind each.\n",
    );
    let mut found: Vec<Printed> = Vec::new();
    let mut block = Zeroizing::new(String::new());
    loop {
        let mut line = Zeroizing::new(String::new());
        let read = std::io::stdin()
            .lock()
            .read_line(&mut line)
            .map_err(|error| Error::io("read from", "the terminal", error))?;
        if read > 0 && !line.trim().is_empty() {
            block.push_str(&line);
            continue;
        }
        match Printed::read(&block) {
            Ok(printed) => found.extend(printed),
            Err(error) => write_err(&format!(
                "That is not right: {error} ({}). Type this one again.\n",
                error.hint().unwrap_or("compare it with the paper")
            )),
        }
        *block = String::new();
        match missing(&found) {
            Some(0) => return Ok(found),
            _ if read == 0 => return Ok(found),
            Some(1) => write_err("Right. One more is needed.\n"),
            Some(more) => write_err(&format!("Right. {more} more are needed.\n")),
            None => {}
        }
    }
}

/// Makes a key file of what opened the repository, a printed key or what shares make together, and adds
/// no slot, so that this works with a store that cannot be written to.
fn write_back(
    content: &[u8],
    path: &Path,
    app: &App,
    config: &RepositoryConfig,
    repository: &Repository,
) -> Result<Outcome> {
    let files = Files::prepare(vec![path])?;
    files.write(0, content).inspect_err(|_| files.discard())?;
    let slot = repository.current_slot()?;
    app.output.document(&json!({
        "repository": config.name, "key": slot, "opened_with": slot,
    }))?;
    let until = match &slot {
        Some(slot) if slot.kind == backstay_repo::SlotKind::Escrow => {
            format!(" until the escrow set {} is withdrawn", slot.id)
        }
        _ => String::new(),
    };
    app.output.say(format!(
        "Wrote {}: it opens the repository {}{until}. Nothing was added to the repository.",
        path.display(),
        config.name
    ))?;
    let url = repository.store().url();
    app.output.say(format!("See what is in it: backstay list -r {url} -k {}", path.display()))?;
    Ok(Outcome::Done)
}

pub(super) fn recover(
    args: &RecoverArgs,
    app: &App,
    context: &Context,
    config: &RepositoryConfig,
) -> Result<Outcome> {
    args.new.check()?;
    let found = if !args.share_file.is_empty() {
        read_files(&args.share_file)?
    } else if ask::somebody_is_there() {
        typed()?
    } else {
        let mut text = Zeroizing::new(String::new());
        std::io::stdin()
            .lock()
            .take(LONGEST)
            .read_to_string(&mut text)
            .map_err(|error| Error::io("read", "standard input", error))?;
        Printed::read(&text)?
    };
    let secret = secret_of(found)?;
    let repository = context.open_with(config, &secret).map_err(|error| match error.kind() {
        ErrorKind::WrongKey if matches!(secret, Secret::KeyFile(_)) => {
            error.with_hint("the printed key is that of another repository, or was removed since")
        }
        _ => error,
    })?;
    app.show_warnings();
    let content = match &secret {
        Secret::KeyFile(content) => Some(content.clone()),
        secret if args.read_only => secret.shared(),
        _ => None,
    };
    if let (Some(content), Some(path)) = (content, &args.new.new_key_file) {
        return write_back(&content, path, app, config, &repository);
    }
    // Only now: no key file is left behind by an attempt that failed.
    let new = args.new.secret_or_ask(app, context)?;
    let opened_with = repository.current_slot()?;
    let slot = repository.add_key(&new, &args.label).map_err(|error| {
        let made = args.new.new_key_file.is_some() && error.kind() == RepoErrorKind::Store;
        let error = Error::from(error);
        if made {
            error.with_hint("with a store that cannot be written to, say --read-only")
        } else {
            error
        }
    })?;
    app.output.document(&json!({
        "repository": config.name, "key": slot, "opened_with": opened_with,
    }))?;
    app.output.say(format!(
        "Opened the repository {} and added {} {}: it opens it from now on.",
        config.name,
        named(&slot),
        slot.id
    ))?;
    let flags = match &args.new.new_key_file {
        Some(path) => format!(" -k {}", path.display()),
        None => String::new(),
    };
    app.output
        .say(format!("See what is in it: backstay list -r {}{flags}", repository.store().url()))?;
    if let Some(used) = opened_with.filter(|slot| slot.kind == backstay_repo::SlotKind::Escrow) {
        app.output.say(format!(
            "The shares were seen: make a new set, then withdraw this one (`backstay key remove {}`).",
            used.id
        ))?;
    }
    Ok(Outcome::Done)
}
