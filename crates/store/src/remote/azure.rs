//! Immutability policies and legal holds of Azure Blob Storage, of single blobs.
//!
//! They need a container with version-level immutability. Of its current version, a blob that was
//! removed leaves an older one; the account's lifecycle rules remove those.

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};

use super::extras::{Desk, Extras, moment};
use crate::{ErrorKind, Lock, LockMode, LockPolicy, Result};

pub(super) struct Azure(pub Desk);

/// As the service's headers write a moment.
fn http_date(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(),
        Err(_) => "Fri, 31 Dec 9999 23:59:59 GMT".to_owned(),
    }
}

#[async_trait]
impl Extras for Azure {
    fn lock_headers(&self, policy: &LockPolicy, until: SystemTime) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Ok(until) = HeaderValue::from_str(&http_date(until)) {
            headers.insert("x-ms-immutability-policy-until-date", until);
        }
        let mode = match policy.mode {
            LockMode::Governance => "unlocked",
            LockMode::Compliance => "locked",
        };
        headers.insert("x-ms-immutability-policy-mode", HeaderValue::from_static(mode));
        headers
    }

    async fn lock(&self, name: &str, key: &str) -> Result<(Lock, Option<String>)> {
        let (none, empty) = (HeaderMap::new(), Bytes::new());
        let answer = self.0.ask("look at", key, Method::HEAD, name, "", none, empty).await?;
        let mode = answer.header("x-ms-immutability-policy-mode").and_then(|mode| {
            match mode.to_ascii_lowercase().as_str() {
                "unlocked" => Some(LockMode::Governance),
                "locked" => Some(LockMode::Compliance),
                _ => None,
            }
        });
        let lock = Lock {
            mode,
            until: answer.header("x-ms-immutability-policy-until-date").and_then(moment),
            held: answer.header("x-ms-legal-hold") == Some("true"),
        };
        Ok((lock, None))
    }

    async fn extend(
        &self,
        name: &str,
        key: &str,
        policy: &LockPolicy,
        until: SystemTime,
    ) -> Result<()> {
        let (headers, empty) = (self.lock_headers(policy, until), Bytes::new());
        self.0
            .ask("lock", key, Method::PUT, name, "comp=immutabilityPolicies", headers, empty)
            .await?;
        Ok(())
    }

    async fn hold(&self, name: &str, key: &str, on: bool) -> Result<()> {
        let mut headers = HeaderMap::new();
        let on = HeaderValue::from_static(if on { "true" } else { "false" });
        headers.insert("x-ms-legal-hold", on);
        self.0.ask("hold", key, Method::PUT, name, "comp=legalhold", headers, Bytes::new()).await?;
        Ok(())
    }

    async fn has_locks(&self) -> Result<bool> {
        let (none, empty) = (HeaderMap::new(), Bytes::new());
        let query = "restype=container";
        match self.0.ask("look at", "", Method::HEAD, "", query, none, empty).await {
            Ok(answer) => Ok([
                "x-ms-immutable-storage-with-versioning-enabled",
                "x-ms-has-immutability-policy",
                "x-ms-has-legal-hold",
            ]
            .iter()
            .any(|name| answer.header(name) == Some("true"))),
            // A signature for the container cannot ask about the container. Each blob says itself
            // what keeps it, to whoever may read it.
            Err(error) if error.kind() == ErrorKind::Denied => Ok(true),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Configuration) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn delete_version(&self, _: &str, _: &str, _: &str) -> Result<()> {
        Ok(())
    }
}
