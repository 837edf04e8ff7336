//! Storage classes, and archives out of which objects must be fetched before they can be read.
//!
//! The classes are the services' own words (`GLACIER_IR` of S3, `Cool` of Azure, `NEARLINE` of
//! Google), or one of four that each service has a class for. Only S3 and Azure have classes that
//! cannot be read at once.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use crate::key::{check_key, check_prefix};
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
    /// Where data goes as it grows older, the sooner first.
    pub later: Vec<Later>,
}

/// A class into which data goes at an age.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Later {
    pub class: String,
    pub after: Duration,
}

/// An object that went, or would go, into another class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    pub key: String,
    /// In the service's own word.
    pub class: String,
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

/// What a class may be called whatever the service, from the quickest and dearest to the opposite.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
pub(crate) const WORDS: [&str; 4] = ["hot", "warm", "cold", "archive"];

/// The classes that a kind of service has.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure", feature = "key-services"))]
pub(crate) struct Known {
    /// By its own names.
    pub own: &'static [&'static str],
    /// What `hot`, `warm`, `cold` and `archive` mean there.
    pub words: [&'static str; 4],
}

/// The classes in the service's own words; or why one cannot be used with it. `others`: it may have
/// classes that nobody here knows.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
pub(crate) fn in_own_words(
    classes: &StorageClasses,
    known: &Known,
    others: bool,
) -> std::result::Result<StorageClasses, String> {
    let own = |class: &str| match WORDS.iter().position(|word| *word == class) {
        Some(place) => known.words.get(place).map_or(class, |own| own).to_owned(),
        None => class.to_owned(),
    };
    // `GLACIER` alone is one; Google's `ARCHIVE` can be read at once, and is no place for this.
    if let Some(rest) = &classes.rest
        && (is_archive(&own(rest)) || ["cold", "archive"].contains(&rest.as_str()))
    {
        return Err(format!(
            "every command reads the rest, and {rest} is no place for that; only the data may be \
             stored there, the rest hot or warm"
        ));
    }
    let resolve = |class: &Option<String>| {
        let Some(class) = class else { return Ok(None) };
        let class = own(class);
        let plain = class.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if !known.own.contains(&class.as_str()) && (!others || !plain || class.is_empty()) {
            return Err(format!(
                "{class:?} is no storage class; say {}, or in the service's own words {}",
                WORDS.join(", "),
                known.own.join(", ")
            ));
        }
        Ok(Some(class))
    };
    let mut later = Vec::new();
    for one in &classes.later {
        let class = resolve(&Some(one.class.clone()))?.unwrap_or_default();
        later.push(Later { class, after: one.after });
    }
    let data = resolve(&classes.data)?;
    // From the beginning on, each colder than the one before.
    let first = data.as_deref().unwrap_or(known.words[0]);
    let mut at = (rank(first, known), Duration::ZERO);
    for one in &later {
        let next = (rank(&one.class, known), one.after);
        if next.0.is_none() || next.0 <= at.0 || next.1 <= at.1 {
            return Err(format!(
                "data cannot go to {} after {} days: each class must be colder and come later than \
                 the one before, and be one of {}",
                one.class,
                one.after.as_secs() / 86_400,
                known.words.join(", ")
            ));
        }
        at = next;
    }
    Ok(StorageClasses { data, rest: resolve(&classes.rest)?, later })
}

/// How cold a class is, of those that the four words mean.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure", feature = "key-services"))]
pub(crate) fn rank(class: &str, known: &Known) -> Option<usize> {
    known.words.iter().position(|known| *known == class)
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

    /// Whether objects are moved by age here, in place and with the bytes that they have.
    pub fn moves_by_age(&self) -> bool {
        self.backend().moves_by_age()
    }

    /// Which of these objects, all below `prefix`, are old enough for a colder class than they are
    /// in. What somebody has moved within the last days, out of an archive for one, is left alone.
    pub fn due(&self, prefix: &str, objects: &[(String, Duration)]) -> Result<Vec<Move>> {
        check_prefix("list", prefix)?;
        self.retried(|| self.backend().due(prefix, objects))
    }

    /// Moves an object into a class.
    pub fn set_class(&self, to: &Move) -> Result<()> {
        check_key("move", &to.key)?;
        self.retried(|| self.backend().set_class(&to.key, &to.class))
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
