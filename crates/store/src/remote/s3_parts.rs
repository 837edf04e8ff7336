//! Multipart uploads of S3.
//!
//! Each part carries its SHA-256, and the request that puts them together names all of them again
//! and demands that there is no object of that name.

use std::fmt::Write as _;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::answers::translate;
use super::extras::{escape, moment};
use super::line::{OTHER_BYTES, SHA256};
use super::parts::{Parts, texts};
use super::s3::S3;
use crate::{ErrorKind, Part, Result, StoreError, Unfinished};

/// The name of an upload in an address.
fn named(upload: &str) -> String {
    format!("uploadId={}", escape(upload).replace('/', "%2F"))
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn incomplete(doing: &'static str, key: &str, lacks: &str) -> StoreError {
    StoreError::new(ErrorKind::Transient, doing, key)
        .with_detail(format!("the answer has no {lacks}"))
}

/// The sum that S3 makes of the sums of the parts.
fn sum_of_sums(parts: &[Part]) -> Option<String> {
    let mut sums = Vec::new();
    for part in parts {
        sums.extend(STANDARD.decode(&part.sum).ok()?);
    }
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &sums);
    Some(format!("{}-{}", STANDARD.encode(sum), parts.len()))
}

#[async_trait]
impl Parts for S3 {
    fn sum_of_part(&self, part: &Bytes) -> Vec<(&'static str, String)> {
        let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, part);
        let mut hex = String::with_capacity(64);
        for byte in sum.as_ref() {
            let _ = write!(hex, "{byte:02x}");
        }
        // The second is what the signature covers: made here, it is not made twice.
        vec![(SHA256, STANDARD.encode(sum)), ("x-amz-content-sha256", hex)]
    }

    async fn begin(
        &self,
        name: &str,
        key: &str,
        _: Vec<(&'static str, String)>,
        _: u64,
        extra: HeaderMap,
    ) -> Result<String> {
        let mut headers = extra;
        headers.remove("x-amz-sdk-checksum-algorithm");
        headers.insert("x-amz-checksum-algorithm", HeaderValue::from_static("SHA256"));
        let answer = self
            .desk()
            .ask("create", key, Method::POST, name, "uploads", headers, Bytes::new())
            .await?;
        let upload = texts(&answer.body, "UploadId").into_iter().next();
        upload.filter(|id| !id.is_empty()).ok_or_else(|| incomplete("create", key, "UploadId"))
    }

    async fn part(
        &self,
        name: &str,
        key: &str,
        upload: &str,
        number: u32,
        sums: Vec<(&'static str, String)>,
        part: Bytes,
    ) -> Result<Part> {
        let doing = "send a part of";
        let mut headers = HeaderMap::new();
        for (name, sum) in &sums {
            if let Ok(value) = HeaderValue::from_str(sum) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        let query = format!("partNumber={number}&{}", named(upload));
        let answer = self.desk().ask(doing, key, Method::PUT, name, &query, headers, part).await?;
        let tag = answer.header(ETAG.as_str()).map(str::to_owned);
        let tag = tag.ok_or_else(|| incomplete(doing, key, "ETag"))?;
        Ok(Part { tag, sum: sums.into_iter().next().map(|(_, sum)| sum).unwrap_or_default() })
    }

    async fn finish(
        &self,
        name: &str,
        key: &str,
        upload: &str,
        parts: Vec<Part>,
        _: HeaderMap,
    ) -> Result<()> {
        let mut body = String::from(
            "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">",
        );
        for (number, part) in (1..).zip(&parts) {
            let number: u32 = number;
            let _ = write!(
                body,
                "<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag><ChecksumSHA256>{}\
                 </ChecksumSHA256></Part>",
                xml(&part.tag),
                part.sum
            );
        }
        body.push_str("</CompleteMultipartUpload>");
        let mut headers = HeaderMap::new();
        headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        let query = named(upload);
        let answer = self
            .desk()
            .ask("create", key, Method::POST, name, &query, headers, body.into())
            .await?;
        // It may take long: the service says 200 to begin with, and what went wrong in the body.
        if answer.body.contains("<Error>") {
            let status = match texts(&answer.body, "Code").first().map(String::as_str) {
                Some("NoSuchUpload") => "404 Not Found",
                Some("PreconditionFailed") => "412 Precondition Failed",
                Some("AccessDenied") => "403 Forbidden",
                _ => "503 Service Unavailable",
            };
            let said = format!("status code: {status}: {}", answer.body);
            let (path, source) = (name.to_owned(), said.into());
            let error = match status {
                "404 Not Found" => object_store::Error::NotFound { path, source },
                "412 Precondition Failed" => object_store::Error::AlreadyExists { path, source },
                _ => object_store::Error::Generic { store: "", source },
            };
            return Err(translate("create", key, &error));
        }
        let made = texts(&answer.body, "ChecksumSHA256").into_iter().next();
        let ours = sum_of_sums(&parts);
        match (made, ours) {
            // One that is of the whole object (some services make that) is not compared here.
            (Some(made), Some(ours)) if made.contains('-') && made != ours => {
                Err(StoreError::new(ErrorKind::Damaged, "create", key).with_detail(OTHER_BYTES))
            }
            _ => Ok(()),
        }
    }

    async fn abort(&self, name: &str, key: &str, upload: &str) -> Result<()> {
        let (none, empty, query) = (HeaderMap::new(), Bytes::new(), named(upload));
        let doing = "remove parts of";
        self.desk().ask(doing, key, Method::DELETE, name, &query, none, empty).await?;
        Ok(())
    }

    async fn unfinished(&self, prefix: &str, key: &str) -> Result<Option<Vec<Unfinished>>> {
        let mut found = Vec::new();
        let mut after = String::new();
        loop {
            let query = format!("uploads&prefix={}{after}", escape(prefix).replace('/', "%2F"));
            let (none, empty) = (HeaderMap::new(), Bytes::new());
            let doing = "list unfinished uploads below";
            let answer =
                match self.desk().ask(doing, key, Method::GET, "", &query, none, empty).await {
                    Ok(answer) => answer,
                    // A service that knows nothing of it.
                    Err(error) if error.kind() == ErrorKind::Configuration => return Ok(None),
                    Err(error) => return Err(error),
                };
            for upload in answer.body.split("<Upload>").skip(1) {
                let upload = upload.split("</Upload>").next().unwrap_or_default();
                let text = |name| texts(upload, name).into_iter().next();
                let (Some(key), Some(id)) = (text("Key"), text("UploadId")) else { continue };
                let started = text("Initiated").as_deref().and_then(moment);
                found.push(Unfinished { key, upload: id, started });
            }
            if texts(&answer.body, "IsTruncated").first().map(String::as_str) != Some("true") {
                return Ok(Some(found));
            }
            let text = |name| texts(&answer.body, name).into_iter().next().unwrap_or_default();
            let escaped = |text: String| escape(&text).replace('/', "%2F");
            let next = format!(
                "&key-marker={}&upload-id-marker={}",
                escaped(text("NextKeyMarker")),
                escaped(text("NextUploadIdMarker"))
            );
            if next == after {
                return Err(incomplete("list unfinished uploads below", key, "next page"));
            }
            after = next;
        }
    }
}
