//! Resumable uploads of Google Cloud Storage.
//!
//! An upload has an address of its own, which is its secret too: requests to it carry no token. Its
//! bytes arrive one after the other; after a failure the service says how many it has. The
//! condition is given at the beginning and decided at the end, and so is the sum of all bytes.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_RANGE, LOCATION, RANGE};
use http::{HeaderMap, HeaderValue, Method};

use super::extras::{judged, request};
use super::google::{CRC32C, Google, compare, escaped, json_type, metadata, sum_of};
use super::parts::{Parts, not_in_order};
use crate::{Arrived, ErrorKind, Part, Result, StoreError, Unfinished};

const DOING: &str = "send a part of";

/// What the service says at the end of bytes that have another sum.
const OTHER_SUM: &str = "doesn't match calculated CRC32C";

#[async_trait]
impl Parts for Google {
    fn sum_of_part(&self, part: &Bytes) -> Vec<(&'static str, String)> {
        vec![(CRC32C, sum_of(part))]
    }

    async fn begin(
        &self,
        name: &str,
        key: &str,
        sums: Vec<(&'static str, String)>,
        length: u64,
        extra: HeaderMap,
    ) -> Result<String> {
        let query = format!("uploadType=resumable&ifGenerationMatch=0&name={}", escaped(name));
        let address = format!("{}?{query}", self.uploads);
        let sum = sums.first().map(|(_, sum)| sum.as_str());
        let body = metadata(name, sum, &extra).to_string();
        let mut headers = json_type();
        headers.insert("x-upload-content-length", length.into());
        headers
            .insert("x-upload-content-type", HeaderValue::from_static("application/octet-stream"));
        let request = request("create", key, Method::POST, &address, headers, body)?;
        let (status, answer) = self.desk.exchange("create", key, request, true).await?;
        let answer = judged("create", key, name, status, answer)?;
        let upload = answer.header(LOCATION.as_str()).map(str::to_owned);
        upload.filter(|address| !address.is_empty()).ok_or_else(|| {
            StoreError::new(ErrorKind::Transient, "create", key)
                .with_detail("the answer says not where the bytes are to be sent")
        })
    }

    fn in_order(&self) -> bool {
        true
    }

    async fn send_on(
        &self,
        name: &str,
        key: &str,
        upload: &str,
        body: Bytes,
        range: Range<u64>,
    ) -> Result<Arrived> {
        let length = body.len() as u64;
        let ends = range.end >= length;
        let bytes = if range.is_empty() {
            Bytes::new()
        } else {
            let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX).min(body.len());
            body.slice(at(range.start)..at(range.end))
        };
        let said = match (range.is_empty(), ends) {
            (true, _) => format!("bytes */{length}"),
            (false, true) => format!("bytes {}-{}/{length}", range.start, range.end - 1),
            (false, false) => format!("bytes {}-{}/*", range.start, range.end - 1),
        };
        let mut headers = HeaderMap::new();
        if let Ok(said) = HeaderValue::from_str(&said) {
            headers.insert(CONTENT_RANGE, said);
        }
        if bytes.is_empty() {
            headers.insert(http::header::CONTENT_LENGTH, 0.into());
        }
        let request = request(DOING, key, Method::PUT, upload, headers, bytes)?;
        let (status, answer) = self.desk.exchange(DOING, key, request, false).await?;
        match status.as_u16() {
            308 => {
                let range = answer.header(RANGE.as_str());
                let last = range.and_then(|range| range.rsplit_once('-')?.1.parse::<u64>().ok());
                // Without a range it has nothing.
                Ok(Arrived::UpTo(last.map_or(0, |last| last.saturating_add(1))))
            }
            // The upload is known no more, or is over.
            404 | 410 => Ok(Arrived::Lost),
            400 if answer.body.contains(OTHER_SUM) => Ok(Arrived::Lost),
            _ => {
                let answer = judged("create", key, name, status, answer)?;
                compare(key, &answer, Some(&sum_of(&body)))?;
                Ok(Arrived::Whole)
            }
        }
    }

    async fn part(
        &self,
        _: &str,
        key: &str,
        _: &str,
        _: u32,
        _: Vec<(&'static str, String)>,
        _: Bytes,
    ) -> Result<Part> {
        Err(not_in_order(key))
    }

    async fn finish(&self, _: &str, key: &str, _: &str, _: Vec<Part>, _: HeaderMap) -> Result<()> {
        Err(not_in_order(key))
    }

    async fn abort(&self, name: &str, key: &str, upload: &str) -> Result<()> {
        let doing = "remove parts of";
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_LENGTH, 0.into());
        let request = request(doing, key, Method::DELETE, upload, headers, Bytes::new())?;
        let (status, answer) = self.desk.exchange(doing, key, request, false).await?;
        match status.as_u16() {
            // How the service says that it is done, and that there is nothing.
            499 | 404 | 410 => Ok(()),
            _ => judged(doing, key, name, status, answer).map(drop),
        }
    }

    async fn unfinished(&self, _: &str, _: &str) -> Result<Option<Vec<Unfinished>>> {
        Ok(None)
    }
}
