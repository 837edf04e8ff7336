//! Storage classes, and archives out of which objects must be fetched before they can be read.
//!
//! The classes are the services' own words: `GLACIER_IR` of S3, `Cool` of Azure, `NEARLINE` of
//! Google. Only S3 and Azure have classes that cannot be read at once.

use std::str::FromStr;
use std::time::SystemTime;

use crate::key::check_key;
use crate::{Result, Store};

/// What an object is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// By restores and deep checks alone: the content of files.
    Restores,
    /// By every command.
    Everything,
}

/// The classes in which new objects are stored; none: as the bucket says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorageClasses {
    /// Of [`Use::Restores`].
    pub data: Option<String>,
    /// Of [`Use::Everything`].
    pub rest: Option<String>,
}

impl StorageClasses {
    #[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
    pub(crate) fn of(&self, purpose: Use) -> Option<&str> {
        match purpose {
            Use::Restores => self.data.as_deref(),
            Use::Everything => self.rest.as_deref(),
        }
    }
}

/// Whether an object of a class must be fetched before it can be read.
pub(crate) fn is_archive(class: &str) -> bool {
    ["GLACIER", "DEEP_ARCHIVE", "Archive"].contains(&class)
}

/// Why a class cannot be used with a kind of service.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
pub(crate) fn unusable(
    classes: &StorageClasses,
    known: &[&str],
    others: bool,
) -> std::result::Result<(), String> {
    for class in [&classes.data, &classes.rest].into_iter().flatten() {
        let plain = class.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if !known.contains(&class.as_str()) && (!others || !plain || class.is_empty()) {
            return Err(format!("{class:?} is no storage class; say {}", known.join(", ")));
        }
    }
    match &classes.rest {
        // `GLACIER` alone is one; Google's `ARCHIVE` can be read at once.
        Some(rest) if is_archive(rest) => Err(format!(
            "{rest} must be fetched before it can be read, and every command reads the rest; only \
             the data may be stored like that"
        )),
        _ => Ok(()),
    }
}

/// Whether an object can be read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Yes; of a copy out of an archive, until when.
    Ready { until: Option<SystemTime> },
    /// It lies in an archive, and nobody has asked for it.
    Archived,
    /// It is being fetched.
    Thawing,
}

/// How fast an object is fetched out of an archive, and at which price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ThawSpeed {
    /// Within half a day or two: the cheapest of S3; of Azure the same as standard.
    Bulk,
    #[default]
    Standard,
    /// Within minutes, of S3's `GLACIER`; within an hour, of Azure. Not of `DEEP_ARCHIVE`.
    Expedited,
}

impl ThawSpeed {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Standard => "standard",
            Self::Expedited => "expedited",
        }
    }
}

impl FromStr for ThawSpeed {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        [Self::Bulk, Self::Standard, Self::Expedited]
            .into_iter()
            .find(|speed| speed.as_str() == text)
            .ok_or_else(|| format!("{text:?} is no tier; say bulk, standard or expedited"))
    }
}

impl Store {
    /// Whether new data goes where it must be fetched from before it can be read.
    pub fn archives_data(&self) -> bool {
        self.backend().archives_data()
    }

    /// Whether an object can be read now.
    pub fn access(&self, key: &str) -> Result<Access> {
        check_key("look at", key)?;
        self.retried(|| self.backend().access(key))
    }

    /// Asks for an object in an archive; of one that is on its way already that is no error. `days`
    /// is how long a copy stays readable, where the service makes one (S3).
    pub fn thaw(&self, key: &str, speed: ThawSpeed, days: u32) -> Result<()> {
        check_key("thaw", key)?;
        self.retried(|| self.backend().thaw(key, speed, days))
    }
}
