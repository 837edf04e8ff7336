//! How snapshots and entries look, to people and to programs. The JSON shapes are described in
//! `docs/json.md`.

use std::time::Duration;

use backstay_ops::units::{count, format_age, format_size};
use backstay_ops::{Error, moment};
use backstay_postgres::Alert;
use backstay_repo::{Entry, EntryKind, Snapshot};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::app::{App, Result};
use crate::output::{Style, error_document};

/// A snapshot in JSON.
pub fn snapshot_document(snapshot: &Snapshot, repository: &str) -> Value {
    json!({
        "id": snapshot.id,
        "source": snapshot.source,
        "kind": snapshot.kind,
        "type": snapshot.type_,
        "time": snapshot.time,
        "finished": snapshot.finished,
        "repository": repository,
        "host": snapshot.host,
        "version": snapshot.version,
        "tags": snapshot.tags,
        "parent": snapshot.parent,
        "group": snapshot.group,
        "origin": snapshot.origin,
        "stats": snapshot.stats,
        "problems": snapshot.problems,
        "detail": snapshot.detail,
    })
}

/// What is wrong, in JSON; with no repository where it is about the server.
pub fn alert_document(alert: &Alert, repository: Option<&str>) -> Value {
    json!({
        "name": alert.name,
        "repository": repository,
        "message": alert.message,
        "hint": alert.hint,
    })
}

/// What is wrong, in two lines.
pub fn present_alert(app: &App, alert: &Alert) -> Result<()> {
    let paint = app.output.paint;
    app.output.answer(format!(
        "  {} {}: {}",
        paint.paint(Style::Red, "alert"),
        alert.name,
        alert.message
    ))?;
    app.output.say(format!("    {}", paint.paint(Style::Dim, &alert.hint)))
}

/// Repositories that could not be asked, in JSON.
pub fn failed_documents(failed: &[(String, Error)]) -> Vec<Value> {
    failed
        .iter()
        .map(|(name, error)| json!({ "repository": name, "error": error_document(error) }))
        .collect()
}

/// How long ago something was; nothing for what lies ahead of this machine's clock.
pub fn age(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// "12 min ago", and what to say when clocks disagree.
pub fn age_text(then: Timestamp, now: Timestamp) -> String {
    if now.duration_since(then).as_secs() < -60 {
        return "in the future".into();
    }
    format_age(age(then, now))
}

pub fn took(snapshot: &Snapshot) -> Duration {
    Duration::try_from(snapshot.finished.duration_since(snapshot.time)).unwrap_or_default()
}

/// "2026-11-21 10:00:00 (12 min ago)"
pub fn moment_and_age(then: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    format!("{} ({})", moment::local(then, zone), age_text(then, now))
}

/// "2,104 files, 4.4 MiB"
pub fn content(snapshot: &Snapshot) -> String {
    let stats = &snapshot.stats;
    format!("{}, {}", count(stats.files, "file", "files"), format_size(stats.bytes))
}

pub fn tags(snapshot: &Snapshot) -> String {
    let tags: Vec<String> = snapshot.tags.iter().map(|(k, v)| format!("{k}={v}")).collect();
    tags.join(" ")
}

/// The word for what an entry is.
pub fn entry_type(entry: &Entry) -> &'static str {
    match &entry.kind {
        EntryKind::File(_) => "file",
        EntryKind::Directory => "directory",
        EntryKind::Symlink { .. } => "symlink",
        EntryKind::Hardlink { .. } => "hardlink",
        EntryKind::Fifo => "fifo",
        EntryKind::CharDevice { .. } => "char-device",
        EntryKind::BlockDevice { .. } => "block-device",
    }
}

/// "-rw-r--r--", as `ls` writes it.
pub fn mode_text(entry: &Entry) -> String {
    let kind = match &entry.kind {
        EntryKind::File(_) | EntryKind::Hardlink { .. } => '-',
        EntryKind::Directory => 'd',
        EntryKind::Symlink { .. } => 'l',
        EntryKind::Fifo => 'p',
        EntryKind::CharDevice { .. } => 'c',
        EntryKind::BlockDevice { .. } => 'b',
    };
    let mode = entry.meta.mode;
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// The moment a file was last changed.
pub fn modified(entry: &Entry) -> Option<Timestamp> {
    let nanos = i32::try_from(entry.meta.mtime.nanos).ok()?;
    Timestamp::new(entry.meta.mtime.seconds, nanos).ok()
}

/// An entry in JSON. A path that is no UTF-8 carries its bytes in `path_hex` as well.
pub fn entry_document(entry: &Entry) -> Value {
    let mut document = json!({
        "path": entry.display_path(),
        "type": entry_type(entry),
        "size": entry.size(),
        "mode": format!("{:04o}", entry.meta.mode),
        "uid": entry.meta.uid,
        "gid": entry.meta.gid,
        "user": entry.meta.user,
        "group": entry.meta.group,
        "mtime": modified(entry),
    });
    if std::str::from_utf8(&entry.path).is_err() {
        let hex: String = entry.path.iter().map(|byte| format!("{byte:02x}")).collect();
        document["path_hex"] = hex.into();
    }
    match &entry.kind {
        EntryKind::Symlink { target } => {
            document["target"] = String::from_utf8_lossy(target).into();
        }
        EntryKind::Hardlink { to } => document["target"] = String::from_utf8_lossy(to).into(),
        _ => {}
    }
    document
}

/// A path as a person writes it, as it stands in a tree: relative, without slashes at its ends.
pub fn tree_path(text: &std::ffi::OsStr) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = text.as_bytes();
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in bytes.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// What is asked of a terminal must not talk to it: control characters are shown, not sent.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}
