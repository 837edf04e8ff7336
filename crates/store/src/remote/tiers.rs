//! Storage classes of S3, Google and Azure, and the archives of S3 and Azure.

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

#[cfg(feature = "azure")]
use super::azure::Azure;
use super::extras::moment;
#[cfg(feature = "s3")]
use super::s3::S3;
use super::{Remote, Sum, wait};
use crate::tier::{Access, ThawSpeed, Use, is_archive};
use crate::{ErrorKind, Result, StoreError};

#[cfg(feature = "s3")]
pub(super) const OF_S3: [&str; 8] = [
    "STANDARD",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "GLACIER",
    "DEEP_ARCHIVE",
    "REDUCED_REDUNDANCY",
];
#[cfg(feature = "gcs")]
pub(super) const OF_GOOGLE: [&str; 4] = ["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"];
#[cfg(feature = "azure")]
pub(super) const OF_AZURE: [&str; 4] = ["Hot", "Cool", "Cold", "Archive"];

/// Requests about archives. Keys are whole names in the bucket.
#[async_trait]
pub(super) trait Tiers {
    async fn access(&self, name: &str, key: &str) -> Result<Access>;
    async fn thaw(&self, name: &str, key: &str, speed: ThawSpeed, days: u32) -> Result<()>;
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

    pub(super) fn access_to(&self, key: &str) -> Result<Access> {
        let Some(extras) = self.extras.clone() else { return Ok(Access::Ready { until: None }) };
        let (path, name) = (self.path("look at", key)?, key.to_owned());
        wait("look at", key, async move { extras.access(path.as_ref(), &name).await })
    }

    pub(super) fn fetch(&self, key: &str, speed: ThawSpeed, days: u32) -> Result<()> {
        let Some(extras) = self.extras.clone() else {
            return Err(StoreError::new(ErrorKind::Configuration, "thaw", key)
                .with_detail("this service has no archive that must be waited for"));
        };
        let (path, name) = (self.path("thaw", key)?, key.to_owned());
        wait("thaw", key, async move { extras.thaw(path.as_ref(), &name, speed, days).await })
    }
}
