//! What a restored cluster is told before it starts: where WAL comes from, how far to go, and what
//! to do then.
//!
//! All of it goes to `postgresql.auto.conf`, which the server reads last. What was there stays, but
//! for what an earlier recovery left behind.

use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;

use crate::wal::{Lsn, RecoveryTarget, TargetTimeline};
use crate::{PostgresError, Result};

use super::files;

/// What the server does when the target is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetAction {
    /// Stays in recovery, readable, until someone promotes it.
    Pause,
    /// Ends recovery and takes writes, on a new timeline.
    #[default]
    Promote,
    Shutdown,
}

impl TargetAction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        }
    }
}

/// How a recovery is to go.
#[derive(Debug, Clone)]
pub(super) struct Recovery<'a> {
    pub(super) target: &'a RecoveryTarget,
    pub(super) inclusive: bool,
    pub(super) timeline: Option<TargetTimeline>,
    pub(super) action: TargetAction,
    pub(super) restore_command: &'a str,
    pub(super) standby: bool,
    pub(super) primary: Option<&'a str>,
    pub(super) slot: Option<&'a str>,
    /// Whether pages that are not there are passed over.
    pub(super) pass_over_pages: bool,
    /// Where files are that the server would look for elsewhere.
    pub(super) extra: &'a [(&'static str, PathBuf)],
}

/// Settings of an earlier recovery; none of them is carried over.
const OLD: &[&str] = &[
    "archive_cleanup_command",
    "ignore_invalid_pages",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "restore_command",
    "trigger_file",
];

/// Those of which a server accepts only one.
const TARGETS: &[&str] = &[
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

const HEADING: &str = "# Recovery, as the restore was told:";

/// Writes `postgresql.auto.conf` and the signal file into a restored data directory.
pub(super) fn write(directory: &Path, recovery: &Recovery<'_>) -> Result<()> {
    let path = directory.join("postgresql.auto.conf");
    let old = files::read_if_there(&path)?.unwrap_or_default();
    let main = files::read_if_there(&directory.join("postgresql.conf"))?.unwrap_or_default();
    let text =
        auto_conf(&String::from_utf8_lossy(&old), &String::from_utf8_lossy(&main), recovery)?;
    files::write(directory, "postgresql.auto.conf", text.as_bytes())?;
    let (signal, other) = if recovery.standby {
        ("standby.signal", "recovery.signal")
    } else {
        ("recovery.signal", "standby.signal")
    };
    files::remove_if_there(&directory.join(other))?;
    files::write(directory, signal, b"")
}

/// The new content of `postgresql.auto.conf`, given its old one and `postgresql.conf`.
fn auto_conf(old: &str, main: &str, recovery: &Recovery<'_>) -> Result<String> {
    let mut text = String::new();
    for line in old.lines() {
        let dropped = setting_of(line).is_some_and(|name| {
            OLD.contains(&name.as_str()) || name.starts_with("recovery_target")
        });
        if !dropped && line != HEADING {
            text.push_str(line);
            text.push('\n');
        }
    }
    text.push_str(HEADING);
    text.push('\n');
    let mut put = |name: &str, value: &str| -> Result<()> {
        text.push_str(&format!("{name} = {}\n", quoted(name, value)?));
        Ok(())
    };
    // Targets in postgresql.conf would be a second target. They are emptied before the one that
    // counts is set: in the other order the server takes even an empty one for a conflict.
    for name in TARGETS {
        if has(main, name) {
            put(name, "")?;
        }
    }
    for (name, path) in recovery.extra {
        put(name, &path.to_string_lossy())?;
    }
    if recovery.pass_over_pages {
        put("ignore_invalid_pages", "on")?;
    }
    put("restore_command", recovery.restore_command)?;
    for (name, value) in
        [("primary_conninfo", recovery.primary), ("primary_slot_name", recovery.slot)]
    {
        match value {
            Some(value) => put(name, value)?,
            // One in postgresql.conf is of an earlier life, and would be followed.
            None if has(main, name) => put(name, "")?,
            None => {}
        }
    }
    match recovery.timeline {
        None | Some(TargetTimeline::Latest) => put("recovery_target_timeline", "latest")?,
        Some(TargetTimeline::Current) => put("recovery_target_timeline", "current")?,
        Some(TargetTimeline::Number(number)) => {
            put("recovery_target_timeline", &number.to_string())?;
        }
    }
    let target = match recovery.target {
        RecoveryTarget::Latest => None,
        RecoveryTarget::Immediate => Some(("recovery_target", "immediate".to_owned())),
        RecoveryTarget::Time(time) => {
            let time = time.to_zoned(TimeZone::UTC);
            Some(("recovery_target_time", time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()))
        }
        RecoveryTarget::Xid(xid) => Some(("recovery_target_xid", xid.to_string())),
        RecoveryTarget::Lsn(Lsn(lsn)) => Some(("recovery_target_lsn", Lsn(*lsn).to_string())),
        RecoveryTarget::Name(name) => Some(("recovery_target_name", name.clone())),
    };
    if let Some((name, value)) = target {
        put(name, &value)?;
        put("recovery_target_inclusive", if recovery.inclusive { "true" } else { "false" })?;
        put("recovery_target_action", recovery.action.as_str())?;
    }
    Ok(text)
}

fn has(main: &str, name: &str) -> bool {
    main.lines().filter_map(setting_of).any(|there| there == name)
}

/// The name of the setting that a line of a configuration file sets.
fn setting_of(line: &str) -> Option<String> {
    let line = line.trim_start();
    let end = line.find(|c: char| c != '_' && c != '.' && !c.is_ascii_alphanumeric());
    let name = line.get(..end.unwrap_or(line.len()))?;
    (!name.is_empty()).then(|| name.to_ascii_lowercase())
}

/// A value as the configuration file takes it.
pub(super) fn quoted(name: &str, value: &str) -> Result<String> {
    if value.contains(['\n', '\r', '\0']) {
        return Err(PostgresError::usage(format!(
            "the value of {name} may not have several lines"
        )));
    }
    Ok(format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovery(target: &RecoveryTarget) -> Recovery<'_> {
        Recovery {
            target,
            inclusive: true,
            timeline: None,
            action: TargetAction::Pause,
            restore_command: "backstay wal fetch %f %p --config '/etc/a b.toml'",
            standby: false,
            primary: None,
            slot: None,
            pass_over_pages: false,
            extra: &[],
        }
    }

    #[test]
    fn what_was_there_stays_and_old_recoveries_go() {
        let old = "# Do not edit this file manually!\nwork_mem = '64MB'\n\
                   recovery_target_time = '2020-01-01'\nRecovery_Target_Action='promote'\n\
                   restore_command = 'cp /old/%f %p'\nprimary_conninfo = 'host=old'\n";
        let target = RecoveryTarget::Lsn(Lsn(0x1_0200_0028));
        let text = auto_conf(old, "", &recovery(&target)).unwrap();
        assert_eq!(
            text,
            format!(
                "# Do not edit this file manually!\nwork_mem = '64MB'\n{HEADING}\n\
                 restore_command = 'backstay wal fetch %f %p --config ''/etc/a b.toml'''\n\
                 recovery_target_timeline = 'latest'\nrecovery_target_lsn = '1/2000028'\n\
                 recovery_target_inclusive = 'true'\nrecovery_target_action = 'pause'\n"
            )
        );
        assert_eq!(auto_conf(&text, "", &recovery(&target)).unwrap(), text, "twice is once");
    }

    #[test]
    fn targets_in_the_main_file_are_emptied_first() {
        let main = "#recovery_target_xid = '7'\n  recovery_target_name = 'old'\nport = 5432\n";
        let target = RecoveryTarget::Xid(745);
        let text = auto_conf("", main, &recovery(&target)).unwrap();
        let emptied = text.find("recovery_target_name = ''").unwrap();
        assert!(emptied < text.find("recovery_target_xid = '745'").unwrap());
        assert!(!text.contains("recovery_target_xid = ''"));
    }

    #[test]
    fn a_standby_is_told_whom_to_follow() {
        let target = RecoveryTarget::Latest;
        let mut recovery = recovery(&target);
        recovery.standby = true;
        let main = "primary_conninfo = 'host=old'\nprimary_slot_name = 'old'\n";
        let text = auto_conf("", main, &recovery).unwrap();
        assert!(text.contains("primary_conninfo = \'\'\nprimary_slot_name = \'\'\n"), "{text}");
        recovery.primary = Some("host=new user='a b'");
        recovery.slot = Some("here");
        let text = auto_conf("", main, &recovery).unwrap();
        assert!(text.contains(r"primary_conninfo = 'host=new user=''a b'''"), "{text}");
        assert!(text.contains("primary_slot_name = 'here'\n"), "{text}");
    }

    #[test]
    fn a_moment_is_written_in_utc() {
        let target = RecoveryTarget::Time("2026-03-29T02:30:00.5+02:00".parse().unwrap());
        let text = auto_conf("", "", &recovery(&target)).unwrap();
        assert!(text.contains("recovery_target_time = '2026-03-29 00:30:00.500000+00'"), "{text}");
    }

    #[test]
    fn without_a_target_there_is_no_action() {
        let text = auto_conf("", "", &recovery(&RecoveryTarget::Latest)).unwrap();
        assert!(!text.contains("recovery_target_action"));
        assert!(text.contains("recovery_target_timeline = 'latest'"));
    }

    #[test]
    fn values_are_quoted_and_never_break_the_line() {
        assert_eq!(quoted("x", r"it's C:\x").unwrap(), r"'it''s C:\\x'");
        assert!(quoted("x", "a\nb").is_err());
    }

    #[test]
    fn the_name_of_a_setting() {
        assert_eq!(setting_of("  work_mem='1'").as_deref(), Some("work_mem"));
        assert_eq!(setting_of("Port 5432").as_deref(), Some("port"));
        assert_eq!(setting_of("# port = 1"), None);
        assert_eq!(setting_of(""), None);
    }
}
