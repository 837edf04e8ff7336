//! What a service can do that the `object_store` crate has no words for: locks, holds, versions.
//!
//! Requests are made here, and signed with the same credentials as all others.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};

use super::answers::translate;
use super::line::Line;
use super::parts::Parts;
use super::runtime::{PATIENCE, SLOWEST};
use super::tiers::Tiers;
use crate::{ErrorKind, Lock, LockPolicy, Result, StoreError};

/// What one kind of service can do besides. Keys are whole names in the bucket.
#[async_trait]
pub(super) trait Extras: Parts + Tiers + Send + Sync {
    /// Creates an object in one piece, where that is not the `object_store` crate's work. `extra`
    /// says what [`lock_headers`](Self::lock_headers) says, and the storage class.
    async fn create(
        &self,
        name: &str,
        key: &str,
        sums: Vec<(&'static str, String)>,
        body: &Bytes,
        extra: &HeaderMap,
    ) -> Option<Result<()>> {
        let _ = (name, key, sums, body, extra);
        None
    }

    /// The headers of a creation that lock the object until `until`.
    fn lock_headers(&self, policy: &LockPolicy, until: SystemTime) -> HeaderMap;

    /// What keeps an object, and the version that is the current one, where there are versions.
    async fn lock(&self, name: &str, key: &str) -> Result<(Lock, Option<String>)>;

    async fn extend(
        &self,
        name: &str,
        key: &str,
        policy: &LockPolicy,
        until: SystemTime,
    ) -> Result<()>;

    async fn hold(&self, name: &str, key: &str, on: bool) -> Result<()>;

    /// Whether objects of this bucket can be locked.
    async fn has_locks(&self) -> Result<bool>;

    /// Removes one version for good.
    async fn delete_version(&self, name: &str, key: &str, version: &str) -> Result<()>;
}

/// Where requests of our own go.
pub(super) struct Desk {
    pub line: Line,
    pub client: HttpClient,
    /// The address of the bucket, without a slash at its end.
    pub bucket: String,
}

pub(super) struct Answer {
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Desk {
    /// Asks `method` of an object (or of the bucket, when `name` is empty).
    #[expect(clippy::too_many_arguments, reason = "the parts of one request")]
    pub(super) async fn ask(
        &self,
        doing: &'static str,
        key: &str,
        method: Method,
        name: &str,
        query: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer> {
        let mut address = self.bucket.clone();
        if !name.is_empty() {
            address.push('/');
            address.push_str(&escape(name));
        }
        if !query.is_empty() {
            address.push('?');
            address.push_str(query);
        }
        let request = request(doing, key, method, &address, headers, body)?;
        let (status, answer) = self.exchange(doing, key, request, true).await?;
        judged(doing, key, name, status, answer)
    }

    /// Sends a request and takes the answer, whatever it is. What is not signed goes where the
    /// address itself is the secret.
    pub(super) async fn exchange(
        &self,
        doing: &'static str,
        key: &str,
        mut request: HttpRequest,
        signed: bool,
    ) -> Result<(StatusCode, Answer)> {
        let generic = |source: Box<dyn std::error::Error + Send + Sync>| {
            translate(doing, key, &object_store::Error::Generic { store: "", source })
        };
        let length = request.body().content_length() as u64;
        let work = async {
            if signed {
                self.line.sign(&mut request).await.map_err(|error| generic(Box::new(error)))?;
            }
            let answer =
                self.client.execute(request).await.map_err(|error| generic(Box::new(error)))?;
            let (parts, body) = answer.into_parts();
            let body = body.bytes().await.map_err(|error| generic(Box::new(error)))?;
            let body = String::from_utf8_lossy(&body).into_owned();
            Ok::<_, StoreError>((parts.status, Answer { headers: parts.headers, body }))
        };
        let _turn = self.line.pace.turn().await;
        let patience = PATIENCE + Duration::from_secs(length / SLOWEST);
        match tokio::time::timeout(patience, work).await {
            Ok(result) => result,
            Err(_) => {
                Err(StoreError::new(ErrorKind::Transient, doing, key).with_detail("no answer"))
            }
        }
    }
}

/// A request as it is sent.
pub(super) fn request(
    doing: &'static str,
    key: &str,
    method: Method,
    address: &str,
    headers: HeaderMap,
    body: impl Into<HttpRequestBody>,
) -> Result<HttpRequest> {
    let body = body.into();
    let length = body.content_length();
    let mut request: HttpRequest =
        http::Request::builder().method(method).uri(address).body(body).map_err(|error| {
            StoreError::new(ErrorKind::Configuration, doing, key).with_detail(error.to_string())
        })?;
    *request.headers_mut() = headers;
    if length > 0 {
        request.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
    }
    Ok(request)
}

/// An answer that is no success is an error.
pub(super) fn judged(
    doing: &'static str,
    key: &str,
    name: &str,
    status: StatusCode,
    answer: Answer,
) -> Result<Answer> {
    if status.is_success() {
        return Ok(answer);
    }
    let body = &answer.body;
    let words = format!("Server returned non-2xx status code: {status}: {body}");
    let source: Box<dyn std::error::Error + Send + Sync> = words.into();
    let path = name.to_owned();
    let error = match status.as_u16() {
        404 => object_store::Error::NotFound { path, source },
        412 => object_store::Error::AlreadyExists { path, source },
        // Azure says it like this.
        409 if body.contains("BlobAlreadyExists") => {
            object_store::Error::AlreadyExists { path, source }
        }
        _ => object_store::Error::Generic { store: "", source },
    };
    Err(translate(doing, key, &error))
}

/// What is not one of a few plain characters, as two digits behind a percent sign.
pub(super) fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// A moment in either form that services use.
pub(super) fn moment(text: &str) -> Option<SystemTime> {
    let parsed = text
        .parse::<jiff::Timestamp>()
        .or_else(|_| jiff::fmt::rfc2822::parse(text).map(|date| date.timestamp()));
    parsed.ok().map(SystemTime::from)
}

pub(super) type SharedExtras = Arc<dyn Extras>;
