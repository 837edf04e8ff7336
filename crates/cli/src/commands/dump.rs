//! `backstay dump`: one file of a snapshot, to standard output.

use std::ffi::OsString;
use std::io::{self, Write};

use backstay_ops::{Error, ErrorKind, Found};
use backstay_repo::EntryKind;
use clap::Args;

use super::present::{entry_type, tree_path};
use crate::app::{App, Outcome, Result};

/// Write one file of a snapshot to standard output
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// A snapshot's id or the beginning of it, a source's name for its newest, or `latest`
    snapshot: String,

    /// The file's path, as `backstay show SNAPSHOT --files` lists it
    path: OsString,
}

pub fn run(args: &DumpArgs, app: &App) -> Result<Outcome> {
    if app.output.json {
        return Err(Error::usage(
            "`dump` writes the file itself, which is no JSON",
            "leave --json out; `backstay show SNAPSHOT PATH --json` describes the file",
        ));
    }
    let context = app.context()?;
    let everywhere = context.everywhere()?;
    let found = everywhere.find(context, &args.snapshot)?;
    app.show_warnings();
    let fallback = everywhere.fallback(&found);
    let tree = found.repository.tree(&found.snapshot)?.falling_over(fallback.clone());
    let path = tree_path(&args.path);
    let shown = String::from_utf8_lossy(&path).into_owned();
    if path.is_empty() {
        return Err(Error::usage(
            "the root is a directory, and only files have content",
            format!("restore it instead: `backstay restore {} --to DIR`", args.snapshot),
        ));
    }
    let mut entry = tree.get(&path)?.ok_or_else(|| no_such_path(&shown, &found))?;
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
    let mut out = Out(io::stdout().lock());
    tree.read_file(&entry, &mut out)?;
    out.flush().map_err(|error| Error::io("write to", "standard output", error))?;
    for one in fallback.iter().flat_map(|fallback| fallback.given()) {
        let first = &found.name;
        app.output.warn(
            &format!("what `{first}` lacks of it came from `{}`", one.repository),
            Some(&format!("find out what is damaged with `backstay verify -r {first}`")),
        );
    }
    Ok(Outcome::Done)
}

/// Standard output; a reader that went away has what it wanted.
struct Out<'a>(io::StdoutLock<'a>);

impl Write for Out<'_> {
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
