//! Buckets and containers: S3, Google Cloud Storage, Azure Blob Storage.
//!
//! The `object_store` crate speaks to the service, on one runtime that starts with the first call
//! and serves all stores of the process; callers block. It is told not to try anything again:
//! that is the handle's work, which knows what a second attempt may meet.
//!
//! The most delicate part is [`Remote::absent`]: "not found" is passed on only when the service
//! said it of the object, never of the bucket.

use std::error::Error as _;
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue};
use md5::{Digest as _, Md5};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{
    ClientOptions, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
};

use crate::key::is_valid_key;
use crate::{
    Access, Backend, ErrorKind, Lock, LockPolicy, ObjectMeta, Part, Result, StorageClasses,
    StoreError, StoreOptions, ThawSpeed, Unfinished, Use,
};

#[cfg(feature = "azure")]
mod azure;
#[cfg(feature = "azure")]
mod azure_parts;
#[cfg(feature = "s3")]
mod credentials;
mod extras;
mod line;
mod pace;
mod parts;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "s3")]
mod s3_parts;
mod service;
mod tiers;

use extras::SharedExtras;
use line::{Expected, Extra, Line};
pub(crate) use service::open;

/// How long a service may take to connect, or to send nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// The slowest connection that is still waited for, in bytes a second.
const SLOWEST: u64 = 32 << 10;

/// A bucket or container, below a prefix.
pub(crate) struct Remote {
    url: String,
    service: Arc<dyn ObjectStore>,
    /// Without slashes at its ends; empty for the whole bucket.
    prefix: String,
    line: Line,
    sum: Sum,
    extras: Option<SharedExtras>,
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

fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(10))
        // A pack on a slow line takes minutes; `within` has the patience instead.
        .with_timeout_disabled()
        .with_read_timeout_disabled()
}

fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// Runs `work` on the runtime and waits for it, from any thread (a runtime's own included).
pub(crate) fn wait<T: Send + 'static>(
    doing: &'static str,
    key: &str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    static RUNTIME: OnceLock<std::io::Result<tokio::runtime::Runtime>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("backstay-network")
            .enable_all()
            .build()
    });
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            return Err(StoreError::new(ErrorKind::Other, doing, key)
                .with_detail(format!("no threads for the network: {error}")));
        }
    };
    let (sender, receiver) = mpsc::sync_channel(1);
    runtime.spawn(async move {
        // The receiver waits until there is an answer.
        let _ = sender.send(work.await);
    });
    receiver.recv().unwrap_or_else(|_| {
        Err(StoreError::new(ErrorKind::Other, doing, key).with_detail("the request was abandoned"))
    })
}

/// Gives up `work` when it takes longer than `bytes` may take.
async fn within<T>(
    doing: &'static str,
    key: &str,
    bytes: u64,
    work: impl Future<Output = object_store::Result<T>>,
) -> Result<T> {
    let patience = PATIENCE + Duration::from_secs(bytes / SLOWEST);
    match tokio::time::timeout(patience, work).await {
        Ok(result) => result.map_err(|error| translate(doing, key, &error)),
        Err(_) => Err(StoreError::new(ErrorKind::Transient, doing, key)
            .with_detail(format!("no answer within {} s", patience.as_secs()))),
    }
}

/// All that an error and its causes say, without what stands in the query of an address (a SAS
/// token, for one).
fn words(error: &object_store::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !words.contains(&text) {
            words.push_str(": ");
            words.push_str(&text);
        }
        source = error.source();
    }
    words
}

/// Cuts the query off every address in `words`.
fn without_queries(words: &str) -> String {
    let mut result = String::with_capacity(words.len());
    let mut in_query = false;
    for c in words.chars() {
        let ends = c.is_whitespace() || "\"')>,".contains(c);
        in_query = (in_query || c == '?') && !ends;
        if !in_query {
            result.push(c);
        }
    }
    result
}

/// The status in "Server returned non-2xx status code: 503 Service Unavailable: …".
fn status(words: &str) -> Option<u16> {
    let (_, rest) = words.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// The reason in an XML or JSON answer, for people: `NoSuchBucket: The specified …`.
fn reason(words: &str) -> String {
    let between = |start: &str, end: &str| {
        let (_, rest) = words.split_once(start)?;
        Some(rest.split_once(end)?.0)
    };
    let code = between("<Code>", "</Code>");
    let message = between("<Message>", "</Message>");
    match (code, message, status(words)) {
        (Some(code), Some(message), _) => {
            format!("{code}: {}", message.lines().next().unwrap_or_default())
        }
        (Some(code), None, _) => code.to_owned(),
        (None, _, Some(404)) => "status 404".to_owned(),
        _ => {
            // One line, and not a whole page of a proxy.
            let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
            line.chars().take(400).collect()
        }
    }
}

/// What services say of an object that must be fetched out of an archive first.
const ARCHIVED: [&str; 3] = ["InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"];

/// What services say of a body that did not arrive as it was sent.
const ON_THE_WAY: [&str; 5] =
    ["RequestTimeout", "BadDigest", "IncompleteBody", "Md5Mismatch", "XAmzContentSHA256Mismatch"];

/// What a service says, in our words.
fn translate(doing: &'static str, key: &str, error: &object_store::Error) -> StoreError {
    let words = words(error);
    let says = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    let kind = match error {
        _ if says(&ARCHIVED) => ErrorKind::Archived,
        // Decided by `absent`, where it matters.
        object_store::Error::NotFound { .. } => ErrorKind::NotFound,
        object_store::Error::AlreadyExists { .. } => match status(&words) {
            // S3: two requests at once, try again. Azure: it exists, or the container is going.
            Some(409) if !says(&["BlobAlreadyExists"]) => ErrorKind::Transient,
            _ => ErrorKind::AlreadyExists,
        },
        object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. } => ErrorKind::Denied,
        _ => match status(&words) {
            Some(416) => ErrorKind::Damaged,
            Some(507) => ErrorKind::NoSpace,
            Some(501) => ErrorKind::Configuration,
            Some(408 | 409 | 425 | 429 | 500..=599) => ErrorKind::Transient,
            Some(400) if says(&ON_THE_WAY) => ErrorKind::Transient,
            Some(400) if says(&["ExpiredToken", "InvalidToken", "InvalidAccessKeyId"]) => {
                ErrorKind::Denied
            }
            Some(401 | 403) => ErrorKind::Denied,
            Some(400..=499) => ErrorKind::Configuration,
            _ => unanswered(error, &words),
        },
    };
    let detail = if says(&["169.254.169.254", "metadata.google.internal"]) {
        "no credentials were given, and this machine has none of its own; set them in the \
         environment"
            .to_owned()
    } else {
        without_queries(&reason(&words))
    };
    StoreError::new(kind, doing, key).with_detail(detail)
}

/// The kind of an error that came without a status.
fn unanswered(error: &object_store::Error, words: &str) -> ErrorKind {
    // Asking the machine for its role when no credentials were given: it is no cloud's machine.
    if words.contains("169.254.169.254") || words.contains("metadata.google.internal") {
        return ErrorKind::Denied;
    }
    if words.contains("SlowDown") || words.contains("InternalError") {
        return ErrorKind::Transient;
    }
    if words.contains(line::OTHER_BYTES) {
        return ErrorKind::Damaged;
    }
    // The client's own word for a range past the end.
    if words.contains("Wanted range") {
        return ErrorKind::Damaged;
    }
    if words.contains("redirect") {
        return ErrorKind::Configuration;
    }
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return match http.kind() {
                // What cannot even be built is an address or a header that makes no sense.
                HttpErrorKind::Unknown if words.contains("builder error") => {
                    ErrorKind::Configuration
                }
                _ => ErrorKind::Transient,
            };
        }
        source = error.source();
    }
    ErrorKind::Other
}

impl Remote {
    fn new(url: String, opened: service::Opened, prefix: &str, options: &StoreOptions) -> Self {
        let service::Opened { service, line, sum, extras } = opened;
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
            classes: options.classes.clone(),
            parts_above: options.parts_above.unwrap_or(crate::parts::USUAL),
            no_parts: AtomicBool::new(false),
        }
    }

    /// What a creation says besides: the sum of its bytes, and how long it is locked.
    fn dress(&self, purpose: Use, key: &str, body: &Bytes) -> object_store::Extensions {
        let mut extensions = object_store::Extensions::new();
        let (mut extra, mut expected) = (HeaderMap::new(), HeaderMap::new());
        let sum = match self.sum {
            Sum::Sha256 => None,
            Sum::Md5 => Some(("content-md5", STANDARD.encode(Md5::digest(body)))),
            Sum::Crc32c => {
                let sum = crc32c::crc32c(body).to_be_bytes();
                Some(("x-goog-hash", format!("crc32c={}", STANDARD.encode(sum))))
            }
        };
        if let Some((name, sum)) = sum
            && let Ok(sum) = HeaderValue::from_str(&sum)
        {
            extra.insert(name, sum.clone());
            expected.insert(name, sum);
        }
        if let (Some(policy), Some(extras)) = (&self.lock, &self.extras)
            && LockPolicy::covers(key)
        {
            extra.extend(extras.lock_headers(policy, SystemTime::now() + policy.period));
        }
        extra.extend(self.class_header(purpose));
        if !extra.is_empty() {
            extensions.insert(Extra(extra));
            extensions.insert(Expected(expected));
        }
        extensions
    }

    /// The extras, where objects of the bucket can be locked.
    fn locks(&self, doing: &'static str, key: &str) -> Result<Option<SharedExtras>> {
        let Some(extras) = &self.extras else { return Ok(None) };
        let known = match self.has_locks.get() {
            Some(known) => *known,
            None if self.lock.is_some() => true,
            None => {
                let asking = Arc::clone(extras);
                wait(doing, key, async move { asking.has_locks().await })?
            }
        };
        let known = *self.has_locks.get_or_init(|| known);
        Ok(known.then(|| Arc::clone(extras)))
    }

    /// Removes the current version of an object that is not locked; whether that was all there is
    /// to do.
    async fn delete_locked(extras: &SharedExtras, path: &Path, key: &str) -> Result<bool> {
        let (lock, version) = match extras.lock(path.as_ref(), key).await {
            Ok(known) => known,
            // The bucket may be what is missing: the usual way finds out.
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error),
        };
        // The store's own clock decides in the end; this one only spares it the question.
        if lock.keeps(SystemTime::now()) {
            return Err(lock.refusal(key));
        }
        let Some(version) = version else { return Ok(false) };
        match extras.delete_version(path.as_ref(), key, &version).await {
            // The lock ran out by our clock and not by the store's, or was made longer just now.
            Err(error) if error.kind() == ErrorKind::Denied && lock.until.is_some() => {
                Err(lock.refusal(key))
            }
            other => other.map(|()| true),
        }
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

    /// Decides what "not found" means. The service may have said it of the bucket, and to a HEAD
    /// it gives no reason at all: then the bucket must answer before the object is called absent.
    async fn absent(
        service: &Arc<dyn ObjectStore>,
        path: &Path,
        doing: &'static str,
        key: &str,
        error: &object_store::Error,
    ) -> StoreError {
        let translated = translate(doing, key, error);
        let said = words(error);
        // A refusal without a reason, as a HEAD gets it: a listing is told the reason.
        let unexplained = status(&said) == Some(400) && !said.contains("<Code>");
        if translated.kind() != ErrorKind::NotFound && !unexplained {
            return translated;
        }
        if says_no_bucket(&said) {
            return no_bucket(doing, key, &said);
        }
        // The codes of S3 and of Azure that can only mean the object.
        if said.contains("<Code>NoSuchKey</Code>") || said.contains("<Code>BlobNotFound</Code>") {
            return translated;
        }
        let mut listing = service.list(Some(path));
        match tokio::time::timeout(PATIENCE, listing.next()).await {
            Ok(None | Some(Ok(_))) => translated,
            Ok(Some(Err(error))) => {
                let said = words(&error);
                let why = translate(doing, key, &error);
                if why.kind() == ErrorKind::NotFound { no_bucket(doing, key, &said) } else { why }
            }
            Err(_) => StoreError::new(ErrorKind::Transient, doing, key)
                .with_detail("no answer to whether the bucket exists"),
        }
    }
}

/// Whether a removal was refused because of a retention policy or a hold, in Google's words.
fn is_kept(error: &StoreError) -> bool {
    let said = error.detail().to_ascii_lowercase();
    error.kind() == ErrorKind::Denied
        && ["retentionpolicynotmet", "retention policy", "under active"]
            .iter()
            .any(|part| said.contains(part))
}

fn says_no_bucket(words: &str) -> bool {
    ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"]
        .iter()
        .any(|part| words.contains(part))
}

fn no_bucket(doing: &'static str, key: &str, words: &str) -> StoreError {
    let reason = without_queries(&reason(words));
    StoreError::new(ErrorKind::Configuration, doing, key)
        .with_detail(format!("there is no such bucket or container ({reason})"))
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
        let (pace, extensions) = (Arc::clone(&self.line.pace), self.dress(purpose, key, &body));
        wait("create", key, async move {
            let _turn = pace.turn().await;
            let length = body.len() as u64;
            let options = PutOptions { mode: PutMode::Create, extensions, ..Default::default() };
            let put = service.put_opts(&path, body.into(), options);
            match within("create", &name, length, put).await {
                Ok(_) => Ok(()),
                // There is no object that could be missing.
                Err(error) if error.is_not_found() => {
                    Err(no_bucket("create", &name, &error.to_string()))
                }
                Err(error) => Err(error),
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
        if range.is_empty() {
            // No service has a way to ask for nothing.
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
                Ok(Err(error)) => {
                    Err(Self::absent(&service, &path, "look at", &name, &error).await)
                }
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
                    let error = Self::absent(&service, &path, "delete", &name, &error).await;
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

    fn begin_upload(&self, purpose: Use, key: &str) -> Result<String> {
        self.begin_parts(purpose, key)
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
        self.classes.data.as_deref().is_some_and(crate::tier::is_archive)
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
        self.with_locks("look at", key, |extras, path, key| async move {
            Ok(extras.lock(path.as_ref(), &key).await?.0)
        })
    }

    fn extend_lock(&self, key: &str, until: SystemTime) -> Result<()> {
        let Some(policy) = self.lock else { return Err(no_locks("lock", key)) };
        let done = self.with_locks("lock", key, move |extras, path, key| async move {
            let (lock, _) = extras.lock(path.as_ref(), &key).await?;
            if lock.until.is_some_and(|known| known >= until) {
                return Ok(());
            }
            extras.extend(path.as_ref(), &key, &policy, until).await
        })?;
        done.ok_or_else(|| no_locks("lock", key))
    }

    fn hold(&self, key: &str, on: bool) -> Result<()> {
        let done = self.with_locks("hold", key, move |extras, path, key| async move {
            extras.hold(path.as_ref(), &key, on).await
        })?;
        done.ok_or_else(|| no_locks("hold", key))
    }
}

fn no_locks(doing: &'static str, key: &str) -> StoreError {
    StoreError::new(ErrorKind::Configuration, doing, key)
        .with_detail("the objects of this bucket cannot be locked")
}

impl Remote {
    fn with_locks<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
        &self,
        doing: &'static str,
        key: &str,
        ask: impl FnOnce(SharedExtras, Path, String) -> F,
    ) -> Result<Option<T>> {
        let path = self.path(doing, key)?;
        let Some(extras) = self.locks(doing, key)? else { return Ok(None) };
        wait(doing, key, ask(extras, path, key.to_owned())).map(Some)
    }

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
                        return Err(Self::absent(&service, &path, "read", &name, &error).await);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(words: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: words.to_owned().into() }
    }

    #[test]
    fn secrets_in_addresses_never_reach_a_message() {
        let error = generic(
            "error sending request for url \
             (https://a.blob.core.windows.net/c/k?sv=2024&sig=S3CRET%3D&se=1): refused",
        );
        let message = translate("read", "k", &error).to_string();
        assert!(!message.contains("S3CRET"), "{message}");
        assert!(message.contains("https://a.blob.core.windows.net/c/k): refused"), "{message}");
    }

    #[test]
    fn every_answer_has_its_kind() {
        for (words, kind) in [
            ("status code: 503 Service Unavailable: ", ErrorKind::Transient),
            ("status code: 429 Too Many Requests: ", ErrorKind::Transient),
            ("status code: 500 Internal Server Error: ", ErrorKind::Transient),
            ("status code: 507 Insufficient Storage: ", ErrorKind::NoSpace),
            ("status code: 403 Forbidden: ", ErrorKind::Denied),
            ("status code: 416 Range Not Satisfiable: ", ErrorKind::Damaged),
            ("status code: 400 Bad Request: <Code>RequestTimeout</Code>", ErrorKind::Transient),
            ("status code: 400 Bad Request: <Code>ExpiredToken</Code>", ErrorKind::Denied),
            ("status code: 400 Bad Request: <Code>InvalidURI</Code>", ErrorKind::Configuration),
            ("Received redirect without LOCATION", ErrorKind::Configuration),
            ("PUT http://169.254.169.254/latest/api/token: timed out", ErrorKind::Denied),
            ("something else", ErrorKind::Other),
        ] {
            assert_eq!(translate("read", "k", &generic(words)).kind(), kind, "{words}");
        }
        for (words, kind) in [
            ("status code: 409 Conflict: <Code>ConditionalRequestConflict</Code>", "transient"),
            ("status code: 409 Conflict: <Code>BlobAlreadyExists</Code>", "exists"),
            ("status code: 412 Precondition Failed: ", "exists"),
        ] {
            let path = "k".to_owned();
            let error =
                object_store::Error::AlreadyExists { path, source: words.to_owned().into() };
            let error = translate("create", "k", &error);
            assert_eq!(error.is_already_exists(), kind == "exists", "{words}");
            assert_eq!(error.is_transient(), kind == "transient", "{words}");
        }
    }
}
