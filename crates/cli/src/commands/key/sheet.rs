//! `key sheet`: a page that tells a stranger with an empty machine how to restore.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backstay_ops::{Error, moment, secret};
use backstay_repo::{KeySlot, Printed, Secret, Share, Snapshot, SourceKind};
use clap::Args;
use serde_json::json;

use super::escrow::{Files, take_back};
use super::page::{Block, Page};
use super::{At, named};
use crate::app::{Outcome, Result};

/// Print a page that tells how to restore with nothing but an empty machine, a key and this page
#[derive(Debug, Args)]
pub struct SheetArgs {
    /// Where to: a name that ends with .html (with QR codes) or .txt
    #[arg(long, value_name = "FILE")]
    to: PathBuf,

    /// Print the key on it that the repository was opened with: whoever has the page can read
    /// everything
    #[arg(long, conflicts_with = "escrow")]
    with_key: bool,

    /// Make an escrow set, and one page for each share: FILE-1-of-5.html and so on
    #[arg(long, requires = "shares", requires = "threshold")]
    escrow: bool,

    /// With --escrow: how many shares there are
    #[arg(long, value_name = "COUNT", requires = "escrow")]
    shares: Option<u8>,

    /// With --escrow: how many of them are needed
    #[arg(long, value_name = "COUNT", requires = "escrow")]
    threshold: Option<u8>,

    /// With --escrow: what the set is for, in words
    #[arg(long, default_value = "", requires = "escrow")]
    label: String,
}

/// The key on a page.
enum Key<'a> {
    None,
    File { lines: zeroize::Zeroizing<String>, line: zeroize::Zeroizing<String> },
    Share { share: &'a Share, of: u8 },
}

pub(super) fn run(args: &SheetArgs, it: &At<'_>) -> Result<Outcome> {
    let html = match args.to.extension().and_then(|end| end.to_str()) {
        Some("html" | "htm") => true,
        Some("txt") => false,
        _ => {
            return Err(Error::usage(
                format!("{} says neither .html nor .txt", args.to.display()),
                "name a page for a printer, --to restore.html, or plain text, --to restore.txt",
            ));
        }
    };
    let snapshots = it.repository.snapshots()?;
    let slots = it.repository.key_slots()?;
    let current = it.repository.current_slot()?.ok_or_else(|| {
        Error::usage("the key it was opened with was removed meanwhile", "see `backstay key list`")
    })?;
    let write = |files: &Files<'_>, at: usize, key: Key<'_>, slots: &[KeySlot]| {
        let page = page(it, &snapshots, slots, &key);
        files.write(at, if html { page.html() } else { page.text() }.as_bytes())
    };
    let mut paths = vec![args.to.clone()];
    let mut made = None;
    match (args.shares, args.threshold) {
        (Some(shares), Some(threshold)) if args.escrow => {
            paths = (1..=shares).map(|number| numbered(&args.to, number, shares)).collect();
            let files = Files::prepare(paths.iter().map(PathBuf::as_path).collect())?;
            let (slot, set) = it
                .repository
                .escrow(shares, threshold, &args.label)
                .inspect_err(|_| files.discard())?;
            let slots = it.repository.key_slots()?;
            for (at, share) in set.iter().enumerate() {
                if let Err(error) = write(&files, at, Key::Share { share, of: shares }, &slots) {
                    files.discard();
                    return Err(take_back(it, &slot, error));
                }
            }
            it.repository.record_sheet(&slot)?;
            made = Some(slot);
        }
        _ => {
            let key = if args.with_key { printed_key(it)? } else { Key::None };
            let files = Files::prepare(vec![&args.to])?;
            // On record before the key is on paper.
            it.repository.record_sheet(&current).inspect_err(|_| files.discard())?;
            write(&files, 0, key, &slots).inspect_err(|_| files.discard())?;
        }
    }
    let output = &it.app.output;
    output.document(&json!({
        "repository": it.config.name, "files": paths, "with_key": args.with_key, "key": made,
    }))?;
    for path in &paths {
        output.say(format!("Wrote {}.", path.display()))?;
    }
    if args.with_key {
        output.warn(
            "the page carries the key: whoever has it can read everything in the repository",
            Some("print it, lock it away, and remove the file"),
        );
    }
    if let Some(slot) = made {
        output.say(format!(
            "Each page carries one share of the escrow set {}; they are kept nowhere else. Print \
             them, give each to its holder, and remove the files.",
            slot.id
        ))?;
    }
    Ok(Outcome::Done)
}

/// `restore.html` as `restore-2-of-5.html`.
fn numbered(path: &Path, number: u8, of: u8) -> PathBuf {
    let part = |part: Option<&std::ffi::OsStr>| {
        part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let name = format!("{}-{number}-of-{of}.{}", part(path.file_stem()), part(path.extension()));
    path.with_file_name(name)
}

/// The key file in use.
fn printed_key<'a>(it: &At<'_>) -> Result<Key<'a>> {
    match secret::secret_of(it.config, &it.context.search)?.0 {
        Secret::KeyFile(content) => {
            let (lines, line) = Printed::key_file(&content)?;
            Ok(Key::File { lines, line })
        }
        _ => Err(Error::usage(
            "the repository was not opened with a key file, and only one can be printed",
            "leave out --with-key, or open it with a key file: --key-file FILE",
        )),
    }
}

/// The newest snapshot of each source.
fn sources(snapshots: &[Snapshot]) -> BTreeMap<&str, &Snapshot> {
    // Oldest first: later ones replace earlier ones.
    snapshots.iter().map(|snapshot| (snapshot.source.as_str(), snapshot)).collect()
}

fn page(it: &At<'_>, snapshots: &[Snapshot], slots: &[KeySlot], key: &Key<'_>) -> Page {
    let zone = it.app.zone();
    let now = moment::local(it.app.now(), &zone);
    let sources = sources(snapshots);
    let mut blocks = Vec::new();
    blocks.push(Block::Text(format!(
        "This page was made on {now} on {} with Backstay {}. It tells how to get back what the \
         repository holds when the machines that were backed up are gone. {}",
        backstay_repo::host(),
        env!("CARGO_PKG_VERSION"),
        match key {
            Key::None => "It needs a key, which is not on this page.".to_owned(),
            Key::File { .. } =>
                "The key is on it: keep the page as you would keep the data itself.".to_owned(),
            Key::Share { share, .. } => format!(
                "It carries one share of the key; {} of these pages are needed together.",
                share.threshold()
            ),
        }
    )));
    blocks.push(Block::Heading("What there is".into()));
    let keys = &it.config.keys;
    let mut facts = vec![
        ("Repository".to_owned(), it.repository.store().url()),
        ("Id".to_owned(), it.repository.id()),
    ];
    for (name, value) in [("Service", &keys.endpoint), ("Region", &keys.region)] {
        if let Some(value) = value {
            facts.push((name.to_owned(), value.clone()));
        }
    }
    blocks.push(Block::Facts(facts));
    if sources.is_empty() {
        blocks.push(Block::Text("It held no snapshot when this page was made.".into()));
    } else {
        let rows = sources.iter().map(|(name, snapshot)| {
            let time = moment::local(snapshot.time, &zone);
            vec![(*name).to_owned(), snapshot.kind.to_string(), snapshot.host.clone(), time]
        });
        let head = vec!["Source", "Kind", "Backed up on", "Newest snapshot at that time"];
        blocks.push(Block::Table(head, rows.collect()));
    }
    blocks.push(Block::Heading("What opens it".into()));
    match key {
        Key::None => {}
        Key::File { lines, line } => blocks.push(Block::Secret {
            title: "The key".into(),
            lines: lines.clone(),
            line: line.clone(),
        }),
        Key::Share { share, of } => blocks.push(Block::Secret {
            title: format!(
                "Share {} of {of} (any {} open it), set {}",
                share.number(),
                share.threshold(),
                share.set()
            ),
            lines: share.text(),
            line: share.line(),
        }),
    }
    let rows = slots.iter().map(|slot| {
        let detail = slot.detail.clone().unwrap_or_default();
        vec![slot.id.clone(), named(slot), slot.label.clone(), detail]
    });
    blocks.push(Block::Text(match key {
        Key::None => "One of these, which somebody has:".into(),
        _ => "When this page was made, each of these opened it:".into(),
    }));
    blocks.push(Block::Table(vec!["Slot", "Kind", "Label", "What"], rows.collect()));
    blocks.push(Block::Heading("What to do".into()));
    blocks.push(Block::Steps(steps(it, &sources, key)));
    blocks.push(Block::Text(
        "None of these commands changes a snapshot; they can be run again at any time. An error says what to do about it; docs/errors.md in the program's source says more."
            .into(),
    ));
    Page { title: format!("How to restore from the repository {}", it.config.name), blocks }
}

fn steps(it: &At<'_>, sources: &BTreeMap<&str, &Snapshot>, key: &Key<'_>) -> Vec<(String, String)> {
    let keys = &it.config.keys;
    let url = it.repository.store().url();
    let home = env!("CARGO_PKG_REPOSITORY");
    let name = &it.config.name;
    let postgres = sources.values().any(|snapshot| snapshot.kind == SourceKind::Postgres);
    let mut steps = vec![(
        format!(
            "Take a machine with Linux (x86-64 or arm64) and room for what is restored.{}",
            if postgres {
                " For a PostgreSQL cluster it needs PostgreSQL of the same major version."
            } else {
                ""
            }
        ),
        String::new(),
    )];
    steps.push((
        format!(
            "Get the program, version {} or newer: a release from {home}, or built from its source \
             with Rust and a C compiler. Then copy it to where commands are.",
            env!("CARGO_PKG_VERSION")
        ),
        format!(
            "git clone {home}\ncd backstay\ncargo build --release\n\
             sudo cp target/release/backstay /usr/local/bin/"
        ),
    ));
    let mut config = format!("[repositories.{name}]\nurl = {url:?}\n");
    for (key, value) in [("endpoint", &keys.endpoint), ("region", &keys.region)] {
        if let Some(value) = value {
            config.push_str(&format!("{key} = {value:?}\n"));
        }
    }
    if keys.allow_http {
        config.push_str("allow-http = true\n");
    }
    config.push_str("key-file = \"recovered.key\"");
    steps.push(("In an empty folder, write this into a file backstay.toml:".into(), config));
    steps.push(access(&url));
    steps.push(match key {
        Key::None => (
            "Get one of the keys above. A key file: copy it here as recovered.key. A passphrase: \
             put it into the variable BACKSTAY_PASSPHRASE and leave out the line key-file. An age \
             identity: leave out the line and say --identity FILE with each command. A key in AWS KMS \
             or Vault: write aws-kms = { key = … } or vault = { key = … } in its place. Shares or a \
             printed key: type them, or name their files with --share-file; this makes \
             recovered.key:"
                .into(),
            "backstay key recover --new-key-file recovered.key".into(),
        ),
        Key::File { .. } => (
            "Make the key file: type the key as it is printed above, or scan the code into a file \
             and name that with --share-file."
                .into(),
            "backstay key recover --new-key-file recovered.key".into(),
        ),
        Key::Share { share, .. } => (
            format!(
                "With {} holders of pages like this one: type their shares one after another, or \
                 scan each code into a file and name those with --share-file. This adds a new key to \
                 the repository; add --read-only where it cannot be written to.",
                share.threshold()
            ),
            "backstay key recover --new-key-file recovered.key".into(),
        ),
    });
    steps.push((
        "See what is there, and whether it is whole:".into(),
        "backstay list\nbackstay verify".into(),
    ));
    let mut commands = Vec::new();
    for (source, snapshot) in sources {
        let start = if snapshot.kind == SourceKind::Postgres { " --start" } else { "" };
        commands.push(format!("backstay restore {source} --to /restore/{source}{start}"));
    }
    if commands.is_empty() {
        commands.push("backstay restore SOURCE --to /restore/SOURCE".to_owned());
    }
    let mut what =
        "Restore. Each takes the newest snapshot; --at \"YYYY-MM-DD HH:MM:SS\" takes an \
                    earlier moment, and a snapshot's id from the list takes that one."
            .to_owned();
    if postgres {
        what.push_str(
            " With --start a cluster is started and brought to the end of its archive; run that as \
             the user postgres.",
        );
    }
    steps.push((what, commands.join("\n")));
    steps
}

/// How the store is reached.
fn access(url: &str) -> (String, String) {
    let scheme = url.split_once("://").map_or("file", |(scheme, _)| scheme);
    match scheme {
        "s3" => (
            "Get credentials that may list and read the bucket, and put them where the program \
             finds them:"
                .into(),
            "export AWS_ACCESS_KEY_ID=…\nexport AWS_SECRET_ACCESS_KEY=…".into(),
        ),
        "gs" => (
            "Get the key of a service account that may list and read the bucket:".into(),
            "export GOOGLE_SERVICE_ACCOUNT=/path/to/service-account.json".into(),
        ),
        "az" => (
            "Get credentials that may list and read the container:".into(),
            "export AZURE_STORAGE_ACCOUNT_NAME=…\nexport AZURE_STORAGE_ACCOUNT_KEY=…".into(),
        ),
        _ => (
            "Mount the disk with the repository, or a copy of it, so that this shows a file named \
             format (with a copy elsewhere, change the url in backstay.toml):"
                .into(),
            format!("ls {}", url.trim_start_matches("file://")),
        ),
    }
}
