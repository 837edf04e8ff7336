//! Google Cloud Storage through its JSON interface: conditional creation in one piece, and what
//! keeps an object (retention of the object or of the bucket, holds).

use std::time::SystemTime;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use object_store::PutPayload;
use serde_json::{Value, json};

use super::extras::{Answer, Desk, Extras, escape, judged, moment, request};
use super::line::OTHER_BYTES;
use crate::lock::iso;
use crate::{ErrorKind, Lock, LockMode, LockPolicy, Result, StoreError};

/// The name of the sum in the metadata of an object.
pub(super) const CRC32C: &str = "crc32c";

const CLASS: &str = "x-goog-storage-class";
const MODE: &str = "x-goog-object-lock-mode";
const UNTIL: &str = "x-goog-object-lock-retain-until-date";

/// What is asked about an object.
const KEPT: &str = "fields=retention,retentionExpirationTime,temporaryHold,eventBasedHold";

pub(super) struct Google {
    /// Its bucket is that of metadata.
    pub desk: Desk,
    /// Where objects are sent.
    pub uploads: String,
}

pub(super) fn sum_of(body: &Bytes) -> String {
    STANDARD.encode(crc32c::crc32c(body).to_be_bytes())
}

/// Names are one component here, slashes included.
pub(super) fn escaped(name: &str) -> String {
    escape(name).replace('/', "%2F")
}

pub(super) fn json_type() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers
}

/// What an object is created with, besides its bytes. The service compares the sum.
pub(super) fn metadata(name: &str, sum: Option<&str>, extra: &HeaderMap) -> Value {
    let mut object = json!({ "name": name, "contentType": "application/octet-stream" });
    let said = |name: &str| extra.get(name).and_then(|value| value.to_str().ok());
    if let Some(sum) = sum {
        object[CRC32C] = sum.into();
    }
    if let Some(class) = said(CLASS) {
        object["storageClass"] = class.into();
    }
    if let (Some(mode), Some(until)) = (said(MODE), said(UNTIL)) {
        object["retention"] = json!({ "mode": mode, "retainUntilTime": until });
    }
    object
}

/// Whether the service says that what it created has the sum of what was sent.
pub(super) fn compare(key: &str, answer: &Answer, sum: Option<&str>) -> Result<()> {
    let made = serde_json::from_str::<Value>(&answer.body).unwrap_or_default();
    match (made[CRC32C].as_str(), sum) {
        (Some(made), Some(sum)) if made != sum => {
            Err(StoreError::new(ErrorKind::Damaged, "create", key).with_detail(OTHER_BYTES))
        }
        _ => Ok(()),
    }
}

fn mode(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Governance => "Unlocked",
        LockMode::Compliance => "Locked",
    }
}

impl Google {
    async fn about(
        &self,
        doing: &'static str,
        key: &str,
        method: Method,
        name: &str,
        query: &str,
        body: Option<Value>,
    ) -> Result<Value> {
        let address = format!("{}/o/{}?{query}", self.desk.bucket, escaped(name));
        let headers = if body.is_some() { json_type() } else { HeaderMap::new() };
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = request(doing, key, method, &address, headers, body)?;
        let (status, answer) = self.desk.exchange(doing, key, request, true).await?;
        let answer = judged(doing, key, name, status, answer)?;
        serde_json::from_str(&answer.body).map_err(|error| {
            StoreError::new(ErrorKind::Transient, doing, key)
                .with_detail(format!("the answer is no JSON: {error}"))
        })
    }

    async fn send(
        &self,
        name: &str,
        key: &str,
        sum: Option<&str>,
        body: &Bytes,
        extra: &HeaderMap,
    ) -> Result<()> {
        // Drawn by lot, it is in no body.
        let mut lot = [0; 16];
        aws_lc_rs::rand::fill(&mut lot).map_err(|_| {
            StoreError::new(ErrorKind::Other, "create", key).with_detail("no random bytes came")
        })?;
        let boundary: String = lot.iter().map(|byte| format!("{byte:02x}")).collect();
        let head = format!(
            "--{boundary}\r\ncontent-type: application/json; charset=UTF-8\r\n\r\n{}\r\n\
             --{boundary}\r\ncontent-type: application/octet-stream\r\n\r\n",
            metadata(name, sum, extra)
        );
        let tail = format!("\r\n--{boundary}--\r\n");
        // The body itself is not copied.
        let body = PutPayload::from_iter([Bytes::from(head), body.clone(), Bytes::from(tail)]);
        let mut headers = HeaderMap::new();
        if let Ok(kind) = HeaderValue::from_str(&format!("multipart/related; boundary={boundary}"))
        {
            headers.insert(CONTENT_TYPE, kind);
        }
        let address = format!("{}?uploadType=multipart&ifGenerationMatch=0", self.uploads);
        let request = request("create", key, Method::POST, &address, headers, body)?;
        let (status, answer) = self.desk.exchange("create", key, request, true).await?;
        compare(key, &judged("create", key, name, status, answer)?, sum)
    }
}

#[async_trait]
impl Extras for Google {
    async fn create(
        &self,
        name: &str,
        key: &str,
        sums: Vec<(&'static str, String)>,
        body: &Bytes,
        extra: &HeaderMap,
    ) -> Option<Result<()>> {
        let sum = sums.first().map(|(_, sum)| sum.as_str());
        Some(self.send(name, key, sum, body, extra).await)
    }

    fn lock_headers(&self, policy: &LockPolicy, until: SystemTime) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(MODE, HeaderValue::from_static(mode(policy.mode)));
        if let Ok(until) = HeaderValue::from_str(&iso(until)) {
            headers.insert(UNTIL, until);
        }
        headers
    }

    async fn lock(&self, name: &str, key: &str) -> Result<(Lock, Option<String>)> {
        let object = self.about("look at", key, Method::GET, name, KEPT, None).await?;
        let until = |value: &Value| value.as_str().and_then(moment);
        let lock = Lock {
            mode: match object["retention"]["mode"].as_str() {
                Some("Unlocked") => Some(LockMode::Governance),
                Some("Locked") => Some(LockMode::Compliance),
                _ => None,
            },
            // The object's own, and the bucket's.
            until: until(&object["retention"]["retainUntilTime"])
                .max(until(&object["retentionExpirationTime"])),
            held: ["temporaryHold", "eventBasedHold"]
                .iter()
                .any(|hold| object[*hold].as_bool() == Some(true)),
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
        let retention = json!({ "mode": mode(policy.mode), "retainUntilTime": iso(until) });
        let body = json!({ "retention": retention });
        self.about("lock", key, Method::PATCH, name, "fields=name", Some(body)).await.map(drop)
    }

    async fn hold(&self, name: &str, key: &str, on: bool) -> Result<()> {
        let body = json!({ "temporaryHold": on });
        self.about("hold", key, Method::PATCH, name, "fields=name", Some(body)).await.map(drop)
    }

    /// Every object can be on hold, and says itself what keeps it, to whoever may read it.
    async fn has_locks(&self) -> Result<bool> {
        Ok(true)
    }

    async fn delete_version(&self, _: &str, _: &str, _: &str) -> Result<()> {
        Ok(())
    }
}
