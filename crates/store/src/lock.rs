//! Locks: what a store itself keeps from being removed, whoever asks.
//!
//! A lock lasts until a moment, and a hold until it is lifted. The store enforces both with its
//! own clock; nothing here decides whether an object is safe to remove.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::{ErrorKind, StoreError};

/// Who may remove a locked object before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Those with a permission of its own for that.
    Governance,
    /// Nobody, the owner of the account included.
    Compliance,
}

impl LockMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Governance => "governance",
            Self::Compliance => "compliance",
        }
    }
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for LockMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Governance, Self::Compliance]
            .into_iter()
            .find(|mode| mode.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| format!("{text:?} is no mode; say governance or compliance"))
    }
}

/// How new objects are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockPolicy {
    pub mode: LockMode,
    /// How long from the creation, by this machine's clock.
    pub period: Duration,
    /// Maintenance locks what is still needed for another period before the last one is over.
    pub extend: bool,
}

impl LockPolicy {
    /// Whether an object of this name is locked when it is created: all that a restore may need.
    /// Not what goes away within the day: the notes of sessions at work, what a repair has put aside,
    /// and the objects of a probe.
    pub(crate) fn covers(key: &str) -> bool {
        !["probe/", "sessions/", "mending/"].iter().any(|passing| key.starts_with(passing))
    }
}

/// What keeps one object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lock {
    pub mode: Option<LockMode>,
    pub until: Option<SystemTime>,
    /// Somebody put it on hold: it stays until that is lifted.
    pub held: bool,
}

impl Lock {
    /// Whether it would be refused to remove the object at `now`.
    pub fn keeps(&self, now: SystemTime) -> bool {
        self.held || self.until.is_some_and(|until| until > now)
    }
    /// What is said to somebody who would remove the object.
    pub(crate) fn refusal(&self, key: &str) -> StoreError {
        let why = match self.until {
            _ if self.held => "it is on hold".to_owned(),
            Some(until) => format!("locked until {}", iso(until)),
            None => "locked".to_owned(),
        };
        StoreError::new(ErrorKind::Locked, "delete", key).with_detail(why)
    }
}

/// A moment as services write it.
pub(crate) fn iso(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        // Beyond the year 9999.
        Err(_) => "9999-12-31T23:59:59Z".to_owned(),
    }
}
