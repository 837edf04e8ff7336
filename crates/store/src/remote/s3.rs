//! Object lock, legal hold and versions of S3.

use std::sync::OnceLock;
use std::time::SystemTime;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};

use super::extras::{Desk, Extras, escape, moment};
use super::line::SHA256;
use crate::lock::iso;
use crate::{ErrorKind, Lock, LockMode, LockPolicy, Result, StoreError};

pub(super) struct S3 {
    desk: Desk,
    /// That the credential may ask for locks: without that S3 leaves them out of its answers.
    may_ask: OnceLock<()>,
}

impl S3 {
    pub(super) fn new(desk: Desk) -> Self {
        Self { desk, may_ask: OnceLock::new() }
    }

    pub(super) fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Makes sure that an answer without a lock means that there is none.
    async fn may_ask(&self, name: &str, key: &str) -> Result<()> {
        if self.may_ask.get().is_some() {
            return Ok(());
        }
        for (query, right) in
            [("retention", "s3:GetObjectRetention"), ("legal-hold", "s3:GetObjectLegalHold")]
        {
            let (none, empty) = (HeaderMap::new(), Bytes::new());
            match self.desk.ask("look at", key, Method::GET, name, query, none, empty).await {
                Err(error) if !says_none(error.kind()) => return Err(unknown(error, right)),
                _ => {}
            }
        }
        let _ = self.may_ask.set(());
        Ok(())
    }
}

/// Whether a refusal says that there is no such thing, or that the service knows of none.
fn says_none(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::Configuration)
}

/// Of a question about locks that was refused: whether there are any is unknown, which is not "none".
fn unknown(error: StoreError, right: &str) -> StoreError {
    if error.kind() != ErrorKind::Denied {
        return error;
    }
    StoreError::new(ErrorKind::Denied, "tell whether the store keeps", error.key())
        .with_detail(format!("the credential lacks {right} ({})", error.detail()))
}

fn mode(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Governance => "GOVERNANCE",
        LockMode::Compliance => "COMPLIANCE",
    }
}

/// Of a request about a lock, S3 demands a sum.
pub(super) fn summed(body: &str) -> HeaderMap {
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body.as_bytes());
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(&STANDARD.encode(sum)) {
        headers.insert(SHA256, value);
    }
    headers
}

#[async_trait]
impl Extras for S3 {
    fn lock_headers(&self, policy: &LockPolicy, until: SystemTime) -> HeaderMap {
        let mut headers = HeaderMap::new();
        // Which of the sums in the request is meant: S3 locks nothing without one.
        headers.insert("x-amz-sdk-checksum-algorithm", HeaderValue::from_static("SHA256"));
        headers.insert("x-amz-object-lock-mode", HeaderValue::from_static(mode(policy.mode)));
        if let Ok(until) = HeaderValue::from_str(&iso(until)) {
            headers.insert("x-amz-object-lock-retain-until-date", until);
        }
        headers
    }

    async fn lock(&self, name: &str, key: &str) -> Result<(Lock, Option<String>)> {
        let (none, empty) = (HeaderMap::new(), Bytes::new());
        let answer = self.desk.ask("look at", key, Method::HEAD, name, "", none, empty).await?;
        let lock = Lock {
            mode: answer.header("x-amz-object-lock-mode").and_then(|mode| mode.parse().ok()),
            until: answer.header("x-amz-object-lock-retain-until-date").and_then(moment),
            held: answer.header("x-amz-object-lock-legal-hold") == Some("ON"),
        };
        if lock.until.is_none() {
            self.may_ask(name, key).await?;
        }
        let version = answer.header("x-amz-version-id").filter(|version| *version != "null");
        Ok((lock, version.map(str::to_owned)))
    }

    async fn extend(
        &self,
        name: &str,
        key: &str,
        policy: &LockPolicy,
        until: SystemTime,
    ) -> Result<()> {
        let body = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{}</Mode>\
             <RetainUntilDate>{}</RetainUntilDate></Retention>",
            mode(policy.mode),
            iso(until)
        );
        let headers = summed(&body);
        self.desk.ask("lock", key, Method::PUT, name, "retention", headers, body.into()).await?;
        Ok(())
    }

    async fn hold(&self, name: &str, key: &str, on: bool) -> Result<()> {
        let body = format!(
            "<LegalHold xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Status>{}</Status>\
             </LegalHold>",
            if on { "ON" } else { "OFF" }
        );
        let headers = summed(&body);
        self.desk.ask("hold", key, Method::PUT, name, "legal-hold", headers, body.into()).await?;
        Ok(())
    }

    async fn has_locks(&self) -> Result<bool> {
        let (none, empty) = (HeaderMap::new(), Bytes::new());
        match self.desk.ask("look at", "", Method::GET, "", "object-lock", none, empty).await {
            Ok(answer) => Ok(answer.body.contains("<ObjectLockEnabled>Enabled<")),
            // There is none, or this service knows of none.
            Err(error) if says_none(error.kind()) => Ok(false),
            Err(error) => Err(unknown(error, "s3:GetBucketObjectLockConfiguration")),
        }
    }

    async fn delete_version(&self, name: &str, key: &str, version: &str) -> Result<()> {
        let query = format!("versionId={}", escape(version).replace('/', "%2F"));
        let (none, empty) = (HeaderMap::new(), Bytes::new());
        match self.desk.ask("delete", key, Method::DELETE, name, &query, none, empty).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
