//! Large objects in parts, as S3 (multipart uploads) and Azure (blocks) take them, and one after the
//! other, as Google does (resumable uploads).
//!
//! Google's bucket takes parts in any order too, but without a condition, so that one of two writers
//! could replace what the other created.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;

use super::{Ordering, Remote, wait};
use crate::key::is_valid_key;
use crate::{Arrived, ErrorKind, LockPolicy, Part, Result, StoreError, Unfinished, Use};

/// Requests about parts. Keys are whole names in the bucket.
#[async_trait]
pub(super) trait Parts {
    /// The sum of a part that is sent along: a header, and its value.
    fn sum_of_part(&self, part: &Bytes) -> Vec<(&'static str, String)>;

    async fn begin(
        &self,
        name: &str,
        key: &str,
        sums: Vec<(&'static str, String)>,
        length: u64,
        extra: HeaderMap,
    ) -> Result<String>;

    /// Whether the parts must arrive one after the other, by [`send_on`](Self::send_on).
    fn in_order(&self) -> bool {
        false
    }

    /// See [`Backend::send_on`](crate::Backend::send_on).
    async fn send_on(
        &self,
        name: &str,
        key: &str,
        upload: &str,
        body: Bytes,
        range: Range<u64>,
    ) -> Result<Arrived> {
        let _ = (name, upload, body, range);
        Err(not_in_order(key))
    }

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

pub(super) fn not_in_order(key: &str) -> StoreError {
    StoreError::new(ErrorKind::Configuration, "send a part of", key)
        .with_detail("this service takes parts in another way")
}

impl Remote {
    pub(super) fn size_of_parts(&self, key: &str, length: u64) -> Option<u64> {
        let can = !self.no_parts.load(Ordering::Relaxed);
        can.then(|| crate::parts::part_size(key, length, self.parts_above)).flatten()
    }

    /// Of a refusal: from now on objects are sent in one piece, which may be allowed.
    fn refused<T>(&self, result: Result<T>) -> Result<T> {
        if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Denied) {
            self.no_parts.store(true, Ordering::Relaxed);
        }
        result
    }

    /// What is said of an object that is created: how long it is locked, and its class.
    pub(super) fn said_of(&self, purpose: Use, key: &str) -> HeaderMap {
        let mut said = match &self.lock {
            Some(policy) if LockPolicy::covers(key) => {
                self.extras.lock_headers(policy, SystemTime::now() + policy.period)
            }
            _ => HeaderMap::new(),
        };
        said.extend(self.class_header(purpose));
        said
    }

    pub(super) fn begin_parts(&self, purpose: Use, key: &str, body: &Bytes) -> Result<String> {
        let extras = Arc::clone(&self.extras);
        let (path, name) = (self.path("create", key)?, key.to_owned());
        let extra = self.said_of(purpose, key);
        // Where parts have sums of their own, the whole needs none.
        let sums = if extras.in_order() { extras.sum_of_part(body) } else { Vec::new() };
        let length = body.len() as u64;
        self.refused(wait("create", key, async move {
            extras.begin(path.as_ref(), &name, sums, length, extra).await
        }))
    }

    pub(super) fn send_in_order(
        &self,
        key: &str,
        upload: &str,
        body: &Bytes,
        range: Range<u64>,
    ) -> Result<Arrived> {
        let extras = Arc::clone(&self.extras);
        let (path, name) = (self.path("send a part of", key)?, key.to_owned());
        let (upload, body) = (upload.to_owned(), body.clone());
        self.refused(wait("send a part of", key, async move {
            extras.send_on(path.as_ref(), &name, &upload, body, range).await
        }))
    }

    pub(super) fn send_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        part: Bytes,
    ) -> Result<Part> {
        let extras = Arc::clone(&self.extras);
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
        let extras = Arc::clone(&self.extras);
        let (path, name) = (self.path("create", key)?, key.to_owned());
        let extra = self.said_of(purpose, key);
        let (upload, parts) = (upload.to_owned(), parts.to_vec());
        self.refused(wait("create", key, async move {
            extras.finish(path.as_ref(), &name, &upload, parts, extra).await
        }))
    }

    pub(super) fn abort_parts(&self, key: &str, upload: &str) -> Result<()> {
        let extras = Arc::clone(&self.extras);
        let (path, name) = (self.path("remove parts of", key)?, key.to_owned());
        let upload = upload.to_owned();
        wait(
            "remove parts of",
            key,
            async move { extras.abort(path.as_ref(), &name, &upload).await },
        )
    }

    pub(super) fn list_parts(&self, prefix: &str) -> Result<Option<Vec<Unfinished>>> {
        let extras = Arc::clone(&self.extras);
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
