//! Blocks of Azure Blob Storage.
//!
//! A block is named after its content, so that what two writers send to one name can never be
//! mixed. Blocks that nobody puts together go by themselves after a week.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::IF_NONE_MATCH;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use md5::{Digest as _, Md5};

use super::azure::Azure;
use super::extras::escape;
use super::parts::Parts;
use crate::{Part, Result, Unfinished};

/// Only here until it is sent: no header of the service.
const NAME: &str = "block";

#[async_trait]
impl Parts for Azure {
    fn sum_of_part(&self, part: &Bytes) -> Vec<(&'static str, String)> {
        let name = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, part);
        vec![(NAME, STANDARD.encode(name)), ("content-md5", STANDARD.encode(Md5::digest(part)))]
    }

    async fn begin(
        &self,
        _: &str,
        _: &str,
        _: Vec<(&'static str, String)>,
        _: u64,
        _: HeaderMap,
    ) -> Result<String> {
        Ok(String::new())
    }

    async fn part(
        &self,
        name: &str,
        key: &str,
        _: &str,
        _: u32,
        sums: Vec<(&'static str, String)>,
        part: Bytes,
    ) -> Result<Part> {
        let mut headers = HeaderMap::new();
        let mut tag = String::new();
        for (name, value) in sums {
            if name == NAME {
                tag = value;
            } else if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        let query = format!("comp=block&blockid={}", escape(&tag).replace('/', "%2F"));
        self.0.ask("send a part of", key, Method::PUT, name, &query, headers, part).await?;
        Ok(Part { tag, sum: String::new() })
    }

    async fn finish(
        &self,
        name: &str,
        key: &str,
        _: &str,
        parts: Vec<Part>,
        extra: HeaderMap,
    ) -> Result<()> {
        let list: String =
            parts.iter().map(|part| format!("<Latest>{}</Latest>", part.tag)).collect();
        let body =
            format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{list}</BlockList>");
        let mut headers = extra;
        headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        self.0
            .ask("create", key, Method::PUT, name, "comp=blocklist", headers, body.into())
            .await?;
        Ok(())
    }

    async fn abort(&self, _: &str, _: &str, _: &str) -> Result<()> {
        Ok(())
    }

    async fn unfinished(&self, _: &str, _: &str) -> Result<Option<Vec<Unfinished>>> {
        Ok(None)
    }
}
