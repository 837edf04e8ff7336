//! Storage classes of S3, Google and Azure, and the archives of S3 and Azure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

#[cfg(feature = "azure")]
use super::azure::Azure;
#[cfg(feature = "azure")]
use super::extras::escape;
use super::extras::moment;
#[cfg(feature = "azure")]
use super::parts::texts;
#[cfg(feature = "s3")]
use super::s3::S3;
use super::{Remote, Sum, wait};
use crate::tier::{Access, Known, Move, ThawSpeed, Use, is_archive, rank};
use crate::{ErrorKind, Result, StoreError};

#[cfg(feature = "s3")]
pub(super) const OF_S3: Known = Known {
    own: &[
        "STANDARD",
        "STANDARD_IA",
        "ONEZONE_IA",
        "INTELLIGENT_TIERING",
        "GLACIER_IR",
        "GLACIER",
        "DEEP_ARCHIVE",
        "REDUCED_REDUNDANCY",
    ],
    // `GLACIER` costs nearly what `GLACIER_IR` does, and does not answer at once.
    words: ["STANDARD", "STANDARD_IA", "GLACIER_IR", "DEEP_ARCHIVE"],
};
#[cfg(feature = "gcs")]
pub(super) const OF_GOOGLE: Known = Known {
    own: &["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"],
    words: ["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"],
};
pub(super) const OF_AZURE: Known =
    Known { own: &["Hot", "Cool", "Cold", "Archive"], words: ["Hot", "Cool", "Cold", "Archive"] };

/// Requests about archives. Keys are whole names in the bucket.
#[async_trait]
pub(super) trait Tiers {
    async fn access(&self, name: &str, key: &str) -> Result<Access>;
    async fn thaw(&self, name: &str, key: &str, speed: ThawSpeed, days: u32) -> Result<()>;

    /// Whether an object can change its class without being written anew. Where a copy in place is
    /// needed (S3, Google), older versions would stay, locked and paid for.
    fn moves_in_place(&self) -> bool {
        false
    }

    /// The classes of objects, by whole names.
    async fn classes_below(&self, prefix: &str, key: &str) -> Result<Vec<(String, String)>> {
        let _ = (prefix, key);
        Ok(Vec::new())
    }

    async fn set_class(&self, name: &str, key: &str, class: &str) -> Result<()> {
        let _ = (name, class);
        Err(StoreError::new(ErrorKind::Configuration, "move", key)
            .with_detail("this service moves objects by rules of its own"))
    }
}

/// How long an object stays where somebody has moved it. What was fetched out of an archive is to
/// be restored first.
#[cfg(feature = "azure")]
const LEFT_ALONE: Duration = Duration::from_secs(7 * 86_400);

/// Whether an object was moved after it was made, within the last days.
#[cfg(feature = "azure")]
fn was_moved(made: Option<SystemTime>, moved: Option<SystemTime>, now: SystemTime) -> bool {
    let (Some(made), Some(moved)) = (made, moved) else { return false };
    let later = moved.duration_since(made).is_ok_and(|by| by > Duration::from_secs(3600));
    later && now.duration_since(moved).is_ok_and(|ago| ago < LEFT_ALONE)
}

/// Somebody asked before, and that is as good.
fn asked(result: Result<()>) -> Result<()> {
    let known = ["RestoreAlreadyInProgress", "BlobBeingRehydrated"];
    match result {
        Err(error) if known.iter().any(|code| error.detail().contains(code)) => Ok(()),
        other => other,
    }
}

#[cfg(feature = "s3")]
#[async_trait]
impl Tiers for S3 {
    async fn access(&self, name: &str, key: &str) -> Result<Access> {
        let (none, empty) = (HeaderMap::new(), Bytes::new());
        let answer = self.desk().ask("look at", key, Method::HEAD, name, "", none, empty).await?;
        let archived = answer.header("x-amz-storage-class").is_some_and(is_archive)
            // Of INTELLIGENT_TIERING, the tier that it chose.
            || answer.header("x-amz-archive-status").is_some();
        Ok(match answer.header("x-amz-restore") {
            Some(restore) if restore.contains("ongoing-request=\"true\"") => Access::Thawing,
            Some(restore) if archived => {
                let until = restore.split("expiry-date=\"").nth(1);
                let until = until.and_then(|rest| rest.split('"').next()).and_then(moment);
                Access::Ready { until }
            }
            None if archived => Access::Archived,
            _ => Access::Ready { until: None },
        })
    }

    async fn thaw(&self, name: &str, key: &str, speed: ThawSpeed, days: u32) -> Result<()> {
        let (none, empty) = (HeaderMap::new(), Bytes::new());
        let answer = self.desk().ask("look at", key, Method::HEAD, name, "", none, empty).await?;
        let tier = match speed {
            ThawSpeed::Bulk => "Bulk",
            ThawSpeed::Standard => "Standard",
            ThawSpeed::Expedited => "Expedited",
        };
        // What INTELLIGENT_TIERING gives back stays, so there is no number of days.
        let days = match answer.header("x-amz-archive-status") {
            Some(_) => String::new(),
            None => format!("<Days>{days}</Days>"),
        };
        let body = format!(
            "<RestoreRequest xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{days}\
             <GlacierJobParameters><Tier>{tier}</Tier></GlacierJobParameters></RestoreRequest>"
        );
        let headers = super::s3::summed(&body);
        let asking =
            self.desk().ask("thaw", key, Method::POST, name, "restore", headers, body.into()).await;
        asked(asking.map(drop))
    }
}

#[cfg(feature = "azure")]
#[async_trait]
impl Tiers for Azure {
    async fn access(&self, name: &str, key: &str) -> Result<Access> {
        let (none, empty) = (HeaderMap::new(), Bytes::new());
        let answer = self.0.ask("look at", key, Method::HEAD, name, "", none, empty).await?;
        Ok(match answer.header("x-ms-access-tier") {
            Some(tier) if is_archive(tier) => match answer.header("x-ms-archive-status") {
                Some(status) if status.starts_with("rehydrate-pending") => Access::Thawing,
                _ => Access::Archived,
            },
            _ => Access::Ready { until: None },
        })
    }

    async fn thaw(&self, name: &str, key: &str, speed: ThawSpeed, _: u32) -> Result<()> {
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-access-tier", HeaderValue::from_static("Hot"));
        let priority = match speed {
            ThawSpeed::Expedited => "High",
            ThawSpeed::Bulk | ThawSpeed::Standard => "Standard",
        };
        headers.insert("x-ms-rehydrate-priority", HeaderValue::from_static(priority));
        let asking =
            self.0.ask("thaw", key, Method::PUT, name, "comp=tier", headers, Bytes::new()).await;
        asked(asking.map(drop))
    }

    fn moves_in_place(&self) -> bool {
        true
    }

    async fn classes_below(&self, prefix: &str, key: &str) -> Result<Vec<(String, String)>> {
        let (mut found, mut marker) = (Vec::new(), String::new());
        loop {
            let escaped = |text: &str| escape(text).replace('/', "%2F");
            let mut query = format!("restype=container&comp=list&prefix={}", escaped(prefix));
            if !marker.is_empty() {
                query.push_str(&format!("&marker={}", escaped(&marker)));
            }
            let (none, empty) = (HeaderMap::new(), Bytes::new());
            let answer = self.0.ask("list", key, Method::GET, "", &query, none, empty).await?;
            for blob in answer.body.split("<Blob>").skip(1) {
                let blob = blob.split("</Blob>").next().unwrap_or_default();
                let text = |name| texts(blob, name).into_iter().next();
                if let (Some(name), Some(tier)) = (text("Name"), text("AccessTier"))
                    && !was_moved(
                        text("Creation-Time").as_deref().and_then(moment),
                        text("AccessTierChangeTime").as_deref().and_then(moment),
                        SystemTime::now(),
                    )
                {
                    found.push((name, tier));
                }
            }
            match texts(&answer.body, "NextMarker").into_iter().next() {
                Some(next) if !next.is_empty() && next != marker => marker = next,
                _ => return Ok(found),
            }
        }
    }

    async fn set_class(&self, name: &str, key: &str, class: &str) -> Result<()> {
        let mut headers = HeaderMap::new();
        let class = HeaderValue::from_str(class).map_err(|error| {
            StoreError::new(ErrorKind::Configuration, "move", key).with_detail(error.to_string())
        })?;
        headers.insert("x-ms-access-tier", class);
        self.0.ask("move", key, Method::PUT, name, "comp=tier", headers, Bytes::new()).await?;
        Ok(())
    }
}

#[cfg(feature = "gcs")]
#[async_trait]
impl Tiers for super::google::Google {
    /// All of Google's classes answer at once.
    async fn access(&self, _: &str, _: &str) -> Result<Access> {
        Ok(Access::Ready { until: None })
    }

    async fn thaw(&self, _: &str, key: &str, _: ThawSpeed, _: u32) -> Result<()> {
        Err(StoreError::new(ErrorKind::Configuration, "thaw", key)
            .with_detail("this service has no archive that must be waited for"))
    }
}

impl Remote {
    /// The header that says in which class an object is to be stored.
    pub(super) fn class_header(&self, purpose: Use) -> Option<(HeaderName, HeaderValue)> {
        let value = HeaderValue::from_str(self.classes.of(purpose)?).ok()?;
        let name = match self.sum {
            Sum::Sha256 => "x-amz-storage-class",
            Sum::Md5 => "x-ms-access-tier",
            Sum::Crc32c => "x-goog-storage-class",
        };
        Some((HeaderName::from_static(name), value))
    }

    /// In which classes objects below `prefix` lie that have reached the age of a colder one.
    pub(super) fn due_for_another(
        &self,
        prefix: &str,
        objects: &[(String, Duration)],
    ) -> Result<Vec<Move>> {
        let of_age = |age: Duration| self.classes.later.iter().rfind(|one| one.after <= age);
        if !objects.iter().any(|(_, age)| of_age(*age).is_some()) {
            return Ok(Vec::new());
        }
        let extras = Arc::clone(&self.extras);
        let path = self.path("list", prefix.trim_end_matches('/'))?;
        let (whole, wanted) = (path.as_ref().to_owned(), prefix.to_owned());
        let known: HashMap<String, String> =
            wait("list", prefix, async move { extras.classes_below(&whole, &wanted).await })?
                .into_iter()
                .collect();
        let mut moves = Vec::new();
        for (key, age) in objects {
            let (Some(wanted), path) = (of_age(*age), self.path("move", key)?) else { continue };
            // What has no class that is known here stays where it is.
            let at = known.get(path.as_ref()).and_then(|class| rank(class, &OF_AZURE));
            if at.is_some_and(|at| rank(&wanted.class, &OF_AZURE).is_some_and(|to| at < to)) {
                moves.push(Move { key: key.clone(), class: wanted.class.clone() });
            }
        }
        Ok(moves)
    }

    pub(super) fn put_into(&self, key: &str, class: &str) -> Result<()> {
        let extras = Arc::clone(&self.extras);
        let (path, name) = (self.path("move", key)?, key.to_owned());
        let class = class.to_owned();
        wait("move", key, async move { extras.set_class(path.as_ref(), &name, &class).await })
    }

    pub(super) fn access_to(&self, key: &str) -> Result<Access> {
        let extras = Arc::clone(&self.extras);
        let (path, name) = (self.path("look at", key)?, key.to_owned());
        wait("look at", key, async move { extras.access(path.as_ref(), &name).await })
    }

    pub(super) fn fetch(&self, key: &str, speed: ThawSpeed, days: u32) -> Result<()> {
        let extras = Arc::clone(&self.extras);
        let (path, name) = (self.path("thaw", key)?, key.to_owned());
        wait("thaw", key, async move { extras.thaw(path.as_ref(), &name, speed, days).await })
    }
}

#[cfg(all(test, feature = "azure"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_fetched_for_a_restore_is_left_alone_for_a_week() {
        let day = Duration::from_secs(86_400);
        let at = |days: u32| SystemTime::UNIX_EPOCH + day * days;
        assert!(was_moved(Some(at(1)), Some(at(200)), at(203)));
        assert!(!was_moved(Some(at(1)), Some(at(200)), at(208)));
        // As it was made.
        assert!(!was_moved(Some(at(1)), Some(at(1)), at(2)));
        assert!(!was_moved(Some(at(1)), None, at(2)));
    }
}
