//! Buckets and containers: S3, Google Cloud Storage, Azure Blob Storage.
//!
//! The `object_store` crate speaks to the service, and what it has no words for is asked by
//! [`extras`]. Neither tries anything again: that is the handle's work, which knows what a second
//! attempt may meet.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue};
use md5::{Digest as _, Md5};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use crate::key::is_valid_key;
use crate::{
    Access, Arrived, Backend, ErrorKind, Lock, LockPolicy, Move, ObjectMeta, Part, Result,
    StorageClasses, StoreError, StoreOptions, ThawSpeed, Unfinished, Use,
};

mod answers;
#[cfg(feature = "azure")]
mod azure;
#[cfg(feature = "azure")]
mod azure_parts;
#[cfg(feature = "s3")]
mod credentials;
mod extras;
#[cfg(feature = "gcs")]
mod google;
#[cfg(feature = "gcs")]
mod google_credentials;
#[cfg(feature = "gcs")]
mod google_parts;
mod keeping;
mod line;
mod pace;
mod parts;
mod runtime;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "s3")]
mod s3_parts;
mod service;
mod tiers;

use answers::{absent, is_kept, no_bucket};
use extras::SharedExtras;
use line::{Expected, Extra, Line};
pub(crate) use runtime::wait;
use runtime::{PATIENCE, within};
pub(crate) use service::open;

/// A bucket or container, below a prefix.
pub(crate) struct Remote {
    url: String,
    service: Arc<dyn ObjectStore>,
    /// Without slashes at its ends; empty for the whole bucket.
    prefix: String,
    line: Line,
    sum: Sum,
    extras: SharedExtras,
    lock: Option<LockPolicy>,
    /// Whether objects of the bucket can be locked, once it was asked.
    has_locks: OnceLock<bool>,
    classes: StorageClasses,
    /// Objects of more bytes are sent in parts.
    parts_above: u64,
    /// Parts were refused, and so everything is sent in one piece.
    no_parts: AtomicBool,
}

/// The sum of its own that a service makes of what it receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sum {
    /// S3's SHA-256, which `object_store` sends.
    Sha256,
    /// Azure's MD5.
    Md5,
    /// Google's CRC-32C.
    Crc32c,
}

impl Remote {
    fn new(url: String, opened: service::Opened, prefix: &str, options: &StoreOptions) -> Self {
        let service::Opened { service, line, sum, extras, classes } = opened;
        let prefix = prefix.trim_matches('/').to_owned();
        Self {
            url,
            service,
            prefix,
            line,
            sum,
            extras,
            lock: options.lock,
            has_locks: OnceLock::new(),
            classes,
            parts_above: options.parts_above.unwrap_or(crate::parts::USUAL),
            no_parts: AtomicBool::new(false),
        }
    }

    /// What a creation says besides: the sum of its bytes, and how long it is locked.
    fn dress(&self, purpose: Use, key: &str, body: &Bytes) -> object_store::Extensions {
        let mut extensions = object_store::Extensions::new();
        let (mut extra, mut expected) = (HeaderMap::new(), HeaderMap::new());
        let sum = match self.sum {
            Sum::Sha256 | Sum::Crc32c => None,
            Sum::Md5 => Some(("content-md5", STANDARD.encode(Md5::digest(body)))),
        };
        if let Some((name, sum)) = sum
            && let Ok(sum) = HeaderValue::from_str(&sum)
        {
            extra.insert(name, sum.clone());
            expected.insert(name, sum);
        }
        extra.extend(self.said_of(purpose, key));
        if !extra.is_empty() {
            extensions.insert(Extra(extra));
            extensions.insert(Expected(expected));
        }
        extensions
    }

    fn path(&self, doing: &'static str, key: &str) -> Result<Path> {
        let full = match (self.prefix.is_empty(), key.is_empty()) {
            (true, _) => key.to_owned(),
            (false, true) => self.prefix.clone(),
            (false, false) => format!("{}/{key}", self.prefix),
        };
        Path::parse(full).map_err(|error| {
            StoreError::new(ErrorKind::Configuration, doing, key).with_detail(error.to_string())
        })
    }
}

impl Backend for Remote {
    fn url(&self) -> String {
        self.url.clone()
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn create(&self, key: &str, body: Bytes) -> Result<()> {
        self.create_for(Use::Everything, key, body)
    }

    fn create_for(&self, purpose: Use, key: &str, body: Bytes) -> Result<()> {
        let path = self.path("create", key)?;
        let (service, name) = (Arc::clone(&self.service), key.to_owned());
        let (pace, extras) = (Arc::clone(&self.line.pace), Arc::clone(&self.extras));
        // Here, on the caller's thread: the network's threads have other work.
        let extensions = self.dress(purpose, key, &body);
        let (sums, extra) = match self.sum {
            Sum::Crc32c => (extras.sum_of_part(&body), self.said_of(purpose, key)),
            Sum::Sha256 | Sum::Md5 => Default::default(),
        };
        wait("create", key, async move {
            let created = match extras.create(path.as_ref(), &name, sums, &body, &extra).await {
                Some(created) => created,
                None => {
                    let _turn = pace.turn().await;
                    let length = body.len() as u64;
                    let mode = PutMode::Create;
                    let options = PutOptions { mode, extensions, ..Default::default() };
                    let put = service.put_opts(&path, body.into(), options);
                    within("create", &name, length, put).await.map(drop)
                }
            };
            match created {
                // There is no object that could be missing.
                Err(error) if error.is_not_found() => {
                    Err(no_bucket("create", &name, &error.to_string()))
                }
                other => other,
            }
        })
    }

    fn read(&self, key: &str) -> Result<Bytes> {
        self.get(key, None)
    }

    fn read_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let damaged = |size: Option<u64>| {
            let size = size.map_or(String::new(), |size| format!(", it has {size}"));
            StoreError::new(ErrorKind::Damaged, "read", key)
                .with_detail(format!("bytes {}..{} were asked for{size}", range.start, range.end))
        };
        if range.start > range.end {
            return Err(damaged(None));
        }
        if range.is_empty() || i64::try_from(range.end).is_err() {
            // No service has a way to ask for nothing, and some take no notice of numbers that they
            // cannot read.
            let size = self.head(key)?.size;
            return if range.end <= size { Ok(Bytes::new()) } else { Err(damaged(Some(size))) };
        }
        let body = self.get(key, Some(range.clone()))?;
        if body.len() as u64 != range.end - range.start {
            return Err(damaged(None));
        }
        Ok(body)
    }

    fn head(&self, key: &str) -> Result<ObjectMeta> {
        let path = self.path("look at", key)?;
        let (service, name) = (Arc::clone(&self.service), key.to_owned());
        let pace = Arc::clone(&self.line.pace);
        wait("look at", key, async move {
            let _turn = pace.turn().await;
            match tokio::time::timeout(PATIENCE, service.head(&path)).await {
                Ok(Ok(meta)) => Ok(ObjectMeta {
                    key: name,
                    size: meta.size,
                    modified: Some(meta.last_modified.into()),
                }),
                Ok(Err(error)) => Err(absent(&service, &path, "look at", &name, &error).await),
                Err(_) => {
                    Err(StoreError::new(ErrorKind::Transient, "look at", name)
                        .with_detail("no answer"))
                }
            }
        })
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        // The services' prefixes end at slashes here; the rest is filtered.
        let parents = prefix.rsplit_once('/').map_or("", |(parents, _)| parents);
        let path = self.path("list", parents)?;
        let (service, wanted) = (Arc::clone(&self.service), prefix.to_owned());
        let below =
            if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) };
        let pace = Arc::clone(&self.line.pace);
        wait("list", prefix, async move {
            let _turn = pace.turn().await;
            let mut found = Vec::new();
            let mut listing = service.list((!path.as_ref().is_empty()).then_some(&path));
            loop {
                let next = async { listing.next().await.transpose() };
                let meta = match within("list", &wanted, 0, next).await {
                    Ok(Some(meta)) => meta,
                    Ok(None) => break,
                    Err(error) if error.is_not_found() => {
                        return Err(no_bucket("list", &wanted, &error.to_string()));
                    }
                    Err(error) => return Err(error),
                };
                let Some(key) = meta.location.as_ref().strip_prefix(&below) else { continue };
                if key.starts_with(&wanted) && is_valid_key(key) {
                    found.push(ObjectMeta {
                        key: key.to_owned(),
                        size: meta.size,
                        modified: Some(meta.last_modified.into()),
                    });
                }
            }
            found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            found.dedup_by(|a, b| a.key == b.key);
            Ok(found)
        })
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.path("delete", key)?;
        let (service, name) = (Arc::clone(&self.service), key.to_owned());
        let pace = Arc::clone(&self.line.pace);
        let extras = self.locks("delete", key)?;
        wait("delete", key, async move {
            if let Some(extras) = extras
                && Self::delete_locked(&extras, &path, &name).await?
            {
                return Ok(());
            }
            let _turn = pace.turn().await;
            match tokio::time::timeout(PATIENCE, service.delete(&path)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => {
                    let error = absent(&service, &path, "delete", &name, &error).await;
                    match error.is_not_found() {
                        true => Ok(()),
                        // Of a lock that was not asked about: Google's, or one that is new.
                        false if is_kept(&error) => {
                            Err(StoreError::new(ErrorKind::Locked, "delete", name)
                                .with_detail(error.detail()))
                        }
                        false => Err(error),
                    }
                }
                Err(_) => {
                    Err(StoreError::new(ErrorKind::Transient, "delete", name)
                        .with_detail("no answer"))
                }
            }
        })
    }

    fn part_size(&self, key: &str, length: u64) -> Option<u64> {
        self.size_of_parts(key, length)
    }

    fn begin_upload(&self, purpose: Use, key: &str, body: &Bytes) -> Result<String> {
        self.begin_parts(purpose, key, body)
    }

    fn in_order(&self) -> bool {
        self.extras.in_order()
    }

    fn send_on(&self, key: &str, upload: &str, body: &Bytes, range: Range<u64>) -> Result<Arrived> {
        self.send_in_order(key, upload, body, range)
    }

    fn upload_part(&self, key: &str, upload: &str, number: u32, part: Bytes) -> Result<Part> {
        self.send_part(key, upload, number, part)
    }

    fn finish_upload(&self, purpose: Use, key: &str, upload: &str, parts: &[Part]) -> Result<()> {
        self.finish_parts(purpose, key, upload, parts)
    }

    fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        self.abort_parts(key, upload)
    }

    fn unfinished_uploads(&self, prefix: &str) -> Result<Option<Vec<Unfinished>>> {
        self.list_parts(prefix)
    }

    fn archives_data(&self) -> bool {
        let later = self.classes.later.iter().map(|one| one.class.as_str());
        self.classes.data.as_deref().into_iter().chain(later).any(crate::tier::is_archive)
    }

    fn moves_by_age(&self) -> bool {
        !self.classes.later.is_empty() && self.extras.moves_in_place()
    }

    fn due(&self, prefix: &str, objects: &[(String, Duration)]) -> Result<Vec<Move>> {
        if self.moves_by_age() { self.due_for_another(prefix, objects) } else { Ok(Vec::new()) }
    }

    fn set_class(&self, key: &str, class: &str) -> Result<()> {
        self.put_into(key, class)
    }

    fn access(&self, key: &str) -> Result<Access> {
        self.access_to(key)
    }

    fn thaw(&self, key: &str, speed: ThawSpeed, days: u32) -> Result<()> {
        self.fetch(key, speed, days)
    }

    fn lock_policy(&self) -> Option<LockPolicy> {
        self.lock
    }

    fn lock(&self, key: &str) -> Result<Option<Lock>> {
        self.lock_of(key)
    }

    fn extend_lock(&self, key: &str, until: SystemTime) -> Result<()> {
        self.lock_longer(key, until)
    }

    fn hold(&self, key: &str, on: bool) -> Result<()> {
        self.put_on_hold(key, on)
    }
}

impl Remote {
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        let path = self.path("read", key)?;
        let (service, name) = (Arc::clone(&self.service), key.to_owned());
        let pace = Arc::clone(&self.line.pace);
        wait("read", key, async move {
            let _turn = pace.turn().await;
            let options = GetOptions::new().with_range(range);
            let answer =
                match tokio::time::timeout(PATIENCE, service.get_opts(&path, options)).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(error)) => {
                        return Err(absent(&service, &path, "read", &name, &error).await);
                    }
                    Err(_) => {
                        return Err(StoreError::new(ErrorKind::Transient, "read", name)
                            .with_detail("no answer"));
                    }
                };
            let length = answer.range.end.saturating_sub(answer.range.start);
            let body = within("read", &name, length, answer.bytes()).await;
            let body = body.map_err(|error| match error.kind() {
                // It was there when the answer began.
                ErrorKind::NotFound => StoreError::new(ErrorKind::Transient, "read", &name)
                    .with_detail("the object went away while it was read"),
                _ => error,
            })?;
            if body.len() as u64 != length {
                return Err(StoreError::new(ErrorKind::Transient, "read", name)
                    .with_detail(format!("{} of {length} bytes came", body.len())));
            }
            Ok(body)
        })
    }
}
