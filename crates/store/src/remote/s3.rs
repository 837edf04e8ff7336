//! Object lock, legal hold and versions of S3.

use std::time::SystemTime;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};

use super::extras::{Desk, Extras, escape, iso, moment};
use super::line::SHA256;
use crate::{ErrorKind, Lock, LockMode, LockPolicy, Result};

pub(super) struct S3(pub Desk);

fn mode(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Governance => "GOVERNANCE",
        LockMode::Compliance => "COMPLIANCE",
    }
}

/// Of a request about a lock, S3 demands a sum.
fn summed(body: &str) -> HeaderMap {
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
        let answer = self.0.ask("look at", key, Method::HEAD, name, "", none, empty).await?;
        let lock = Lock {
            mode: answer.header("x-amz-object-lock-mode").and_then(|mode| mode.parse().ok()),
            until: answer.header("x-amz-object-lock-retain-until-date").and_then(moment),
            held: answer.header("x-amz-object-lock-legal-hold") == Some("ON"),
        };
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
        self.0.ask("lock", key, Method::PUT, name, "retention", headers, body.into()).await?;
        Ok(())
    }

    async fn hold(&self, name: &str, key: &str, on: bool) -> Result<()> {
        let body = format!(
            "<LegalHold xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Status>{}</Status>\
             </LegalHold>",
            if on { "ON" } else { "OFF" }
        );
        let headers = summed(&body);
        self.0.ask("hold", key, Method::PUT, name, "legal-hold", headers, body.into()).await?;
        Ok(())
    }

    async fn has_locks(&self) -> Result<bool> {
        let (none, empty) = (HeaderMap::new(), Bytes::new());
        match self.0.ask("look at", "", Method::GET, "", "object-lock", none, empty).await {
            Ok(answer) => Ok(answer.body.contains("<ObjectLockEnabled>Enabled<")),
            Err(error) if error.is_transient() => Err(error),
            // There is none, this service knows of none, or one may not ask.
            Err(_) => Ok(false),
        }
    }

    async fn delete_version(&self, name: &str, key: &str, version: &str) -> Result<()> {
        let query = format!("versionId={}", escape(version).replace('/', "%2F"));
        let (none, empty) = (HeaderMap::new(), Bytes::new());
        match self.0.ask("delete", key, Method::DELETE, name, &query, none, empty).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
