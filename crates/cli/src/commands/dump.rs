//! `backstay dump`: one file of a snapshot, or a directory as a tar archive, to standard output.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;

use backstay_ops::units::count;
use backstay_ops::{Error, ErrorKind, Found};
use backstay_repo::{EntryKind, Tree};
use clap::Args;

use super::present::{entry_type, tree_path};
use crate::app::{App, Outcome, Result};
use crate::tar::Tar;

/// Write one file of a snapshot, or a folder as a tar archive, to standard output
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    backstay dump latest /etc/fstab | less\n  \
    backstay dump etc /etc/nginx | tar -x -C /tmp --xattrs --xattrs-include='*'\n  \
    backstay dump etc | ssh host 'cat > etc.tar'")]
pub struct DumpArgs {
    /// A snapshot's id or the beginning of it, a source's name for its newest, or `latest`
    snapshot: String,

    /// The path of a file or a folder, as `backstay show SNAPSHOT --files` lists it [default: all]
    path: Option<OsString>,
}

pub fn run(args: &DumpArgs, app: &App) -> Result<Outcome> {
    if app.output.json {
        return Err(Error::usage(
            "`dump` writes the content itself, which is no JSON",
            "leave --json out; `backstay show SNAPSHOT PATH --json` describes a file",
        ));
    }
    let context = app.context()?;
    let everywhere = context.everywhere()?;
    let found = everywhere.find(context, &args.snapshot)?;
    app.show_warnings();
    let fallback = everywhere.fallback(&found);
    let tree = found.repository.tree(&found.snapshot)?.falling_over(fallback.clone());
    let path = args.path.as_deref().map(tree_path).unwrap_or_default();
    if path.is_empty() {
        return folder(app, &tree, &path);
    }
    let shown = String::from_utf8_lossy(&path).into_owned();
    let mut entry = tree.get(&path)?.ok_or_else(|| no_such_path(&shown, &found))?;
    if entry.is_directory() {
        return folder(app, &tree, &path);
    }
    if let EntryKind::Hardlink { to } = &entry.kind {
        let to = to.clone();
        let name = String::from_utf8_lossy(&to).into_owned();
        entry = tree.get(&to)?.ok_or_else(|| no_such_path(&name, &found))?;
    }
    if !matches!(entry.kind, EntryKind::File(_)) {
        return Err(Error::usage(
            format!("`{shown}` is a {}, and only files have content", entry_type(&entry)),
            format!("restore it instead: `backstay restore {} {shown} --to DIR`", args.snapshot),
        ));
    }
    let mut out = standard_output()?;
    tree.read_file(&entry, &mut out)?;
    out.flush().map_err(unwritten)?;
    super::parity::warn_of_damage(app, &found.name, &found.repository);
    for one in fallback.iter().flat_map(|fallback| fallback.given()) {
        let first = &found.name;
        app.output.warn(
            &format!("what `{first}` lacks of it came from `{}`", one.repository),
            Some(&format!("find out what is damaged with `backstay verify -r {first}`")),
        );
    }
    Ok(Outcome::Done)
}

/// A folder and all that is below it, under the paths they have in the snapshot.
fn folder(app: &App, tree: &Tree, folder: &[u8]) -> Result<Outcome> {
    if io::stdout().is_terminal() {
        return Err(Error::usage(
            "a folder is written as a tar archive, which is nothing for a terminal",
            "send it somewhere: `… | tar -t`, or `… > folder.tar`",
        ));
    }
    let mut tar = Tar::new(standard_output()?);
    // What stands for a first name that is not in the archive.
    let mut instead: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    let is_inside = |path: &[u8]| {
        folder.is_empty()
            || path
                .strip_prefix(folder)
                .is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
    };
    let mut begun = false;
    for entry in tree.iter() {
        let mut entry = entry?;
        if !is_inside(&entry.path) {
            if begun {
                break;
            }
            continue;
        }
        begun = true;
        if let EntryKind::Hardlink { to } = &mut entry.kind
            && !is_inside(to)
        {
            match instead.get(to) {
                Some(first) => to.clone_from(first),
                None => {
                    let shown = String::from_utf8_lossy(to).into_owned();
                    let holder = tree.get(to)?.ok_or_else(|| {
                        let name = entry_name(&entry.path);
                        Error::new(
                            ErrorKind::Damaged,
                            format!("{name} is another name of {shown}, which is not there"),
                        )
                        .with_hint("run `backstay verify` to learn what else is affected")
                    })?;
                    instead.insert(holder.path, entry.path.clone());
                    entry.kind = holder.kind;
                    entry.meta = holder.meta;
                }
            }
        }
        tar.entry(&entry).map_err(unwritten)?;
        if matches!(entry.kind, EntryKind::File(_)) {
            let length = tree.read_file(&entry, tar.content())?;
            tar.fill(length).map_err(unwritten)?;
        }
    }
    let left_out = tar.left_out;
    tar.finish().map_err(unwritten)?;
    if left_out > 0 {
        app.output.warn(
            &format!(
                "{} left out: tar has no way to write a name with `=` or a line end in it",
                count(left_out, "extended attribute was", "extended attributes were")
            ),
            Some("`backstay restore` brings them back"),
        );
        return Ok(Outcome::Partial);
    }
    Ok(Outcome::Done)
}

fn entry_name(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn unwritten(error: io::Error) -> Error {
    Error::io("write to", "standard output", error)
}

/// Standard output without the care for lines that content does not need.
fn standard_output() -> Result<BufWriter<Out>> {
    let out = io::stdout().as_fd().try_clone_to_owned().map_err(unwritten)?;
    Ok(BufWriter::with_capacity(256 << 10, Out(out.into())))
}

/// A reader that went away has what it wanted.
struct Out(File);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        quiet(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        quiet(self.0.flush())
    }
}

fn quiet<T>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result,
    }
}

pub fn no_such_path(path: &str, found: &Found) -> Error {
    let id = found.snapshot.short_id();
    Error::new(ErrorKind::NotFound, format!("there is no `{path}` in snapshot {id}"))
        .with_hint(format!("list what there is with `backstay show {id} --files`"))
}
