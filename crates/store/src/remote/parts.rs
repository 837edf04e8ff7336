//! Large objects in parts, as S3 (multipart uploads) and Azure (blocks) take them.
//!
//! Google's bucket takes them too, but without a condition, so that one of two writers could
//! replace what the other created: there everything is sent in one piece.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;

use super::extras::SharedExtras;
use super::{Ordering, Remote, wait};
use crate::key::is_valid_key;
use crate::{ErrorKind, LockPolicy, Part, Result, StoreError, Unfinished, Use};

/// Requests about parts. Keys are whole names in the bucket.
#[async_trait]
pub(super) trait Parts {
    /// The sum of a part that is sent along: a header, and its value.
    fn sum_of_part(&self, part: &Bytes) -> Vec<(&'static str, String)>;

    async fn begin(&self, name: &str, key: &str, extra: HeaderMap) -> Result<String>;

    async fn part(
        &self,
        name: &str,
        key: &str,
        upload: &str,
        number: u32,
        sums: Vec<(&'static str, String)>,
        part: Bytes,
    ) -> Result<Part>;

    async fn finish(
        &self,
        name: &str,
        key: &str,
        upload: &str,
        parts: Vec<Part>,
        extra: HeaderMap,
    ) -> Result<()>;

    async fn abort(&self, name: &str, key: &str, upload: &str) -> Result<()>;

    /// What was begun below a prefix, under whole names; `None` where that goes by itself.
    async fn unfinished(&self, prefix: &str, key: &str) -> Result<Option<Vec<Unfinished>>>;
}

/// What stands between `<name>` and `</name>` in XML, each time, as it was meant.
pub(super) fn texts(xml: &str, name: &str) -> Vec<String> {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    let found = xml.split(&start).skip(1).filter_map(|rest| rest.split(&end).next());
    found
        .map(|text| {
            text.replace("&lt;", "<")
                .replace("&gt;", ">")
                .replace("&quot;", "\"")
                .replace("&#34;", "\"")
                .replace("&#39;", "'")
                .replace("&amp;", "&")
        })
        .collect()
}

impl Remote {
    fn parts(&self, doing: &'static str, key: &str) -> Result<SharedExtras> {
        self.extras.clone().ok_or_else(|| {
            StoreError::new(ErrorKind::Configuration, doing, key)
                .with_detail("this service takes no objects in parts")
        })
    }

    pub(super) fn size_of_parts(&self, key: &str, length: u64) -> Option<u64> {
        let can = self.extras.is_some() && !self.no_parts.load(Ordering::Relaxed);
        #[cfg(any(feature = "s3", feature = "azure"))]
        return can.then(|| crate::parts::part_size(key, length, self.parts_above)).flatten();
        #[cfg(not(any(feature = "s3", feature = "azure")))]
        return (can && key.is_empty()).then_some(length);
    }

    /// Of a refusal: from now on objects are sent in one piece, which may be allowed.
    fn refused<T>(&self, result: Result<T>) -> Result<T> {
        if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Denied) {
            self.no_parts.store(true, Ordering::Relaxed);
        }
        result
    }

    fn locked_until(&self, extras: &SharedExtras, key: &str) -> HeaderMap {
        match &self.lock {
            Some(policy) if LockPolicy::covers(key) => {
                extras.lock_headers(policy, SystemTime::now() + policy.period)
            }
            _ => HeaderMap::new(),
        }
    }

    pub(super) fn begin_parts(&self, purpose: Use, key: &str) -> Result<String> {
        let extras = self.parts("create", key)?;
        let (path, name) = (self.path("create", key)?, key.to_owned());
        let mut extra = self.locked_until(&extras, key);
        extra.extend(self.class_header(purpose));
        self.refused(wait(
            "create",
            key,
            async move { extras.begin(path.as_ref(), &name, extra).await },
        ))
    }

    pub(super) fn send_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        part: Bytes,
    ) -> Result<Part> {
        let extras = self.parts("send a part of", key)?;
        let (path, name) = (self.path("send a part of", key)?, key.to_owned());
        // Here, on the caller's thread: the network's threads have other work.
        let sums = extras.sum_of_part(&part);
        let upload = upload.to_owned();
        self.refused(wait("send a part of", key, async move {
            extras.part(path.as_ref(), &name, &upload, number, sums, part).await
        }))
    }

    pub(super) fn finish_parts(
        &self,
        purpose: Use,
        key: &str,
        upload: &str,
        parts: &[Part],
    ) -> Result<()> {
        let extras = self.parts("create", key)?;
        let (path, name) = (self.path("create", key)?, key.to_owned());
        let mut extra = self.locked_until(&extras, key);
        extra.extend(self.class_header(purpose));
        let (upload, parts) = (upload.to_owned(), parts.to_vec());
        self.refused(wait("create", key, async move {
            extras.finish(path.as_ref(), &name, &upload, parts, extra).await
        }))
    }

    pub(super) fn abort_parts(&self, key: &str, upload: &str) -> Result<()> {
        let extras = self.parts("remove parts of", key)?;
        let (path, name) = (self.path("remove parts of", key)?, key.to_owned());
        let upload = upload.to_owned();
        wait(
            "remove parts of",
            key,
            async move { extras.abort(path.as_ref(), &name, &upload).await },
        )
    }

    pub(super) fn list_parts(&self, prefix: &str) -> Result<Option<Vec<Unfinished>>> {
        let Some(extras) = self.extras.as_ref().map(Arc::clone) else { return Ok(None) };
        let below =
            if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) };
        let (whole, wanted) = (format!("{below}{prefix}"), prefix.to_owned());
        wait("list unfinished uploads below", prefix, async move {
            let Some(found) = extras.unfinished(&whole, &wanted).await? else { return Ok(None) };
            let ours = found.into_iter().filter_map(|one| {
                let key = one.key.strip_prefix(&below)?;
                let ours = key.starts_with(&wanted) && is_valid_key(key);
                ours.then(|| Unfinished { key: key.to_owned(), ..one.clone() })
            });
            Ok(Some(ours.collect()))
        })
    }
}
