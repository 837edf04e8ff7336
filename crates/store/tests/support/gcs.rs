//! A small Google Cloud Storage: the part of its XML interface that a store uses, with
//! preconditions, ranges and listings in pages.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::http::{Request, Response, Server, unescape};

/// Keys in a page of a listing; the real service gives 1000.
const PAGE: usize = 100;

pub struct Gcs {
    /// The only bucket there is.
    bucket: &'static str,
    /// Honours `x-goog-if-generation-match`.
    conditional: bool,
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Gcs {
    pub fn start(bucket: &'static str, conditional: bool) -> Server {
        let gcs = Self { bucket, conditional, objects: Mutex::default() };
        Server::start(move |request| gcs.answer(request))
    }

    fn answer(&self, request: &Request) -> Response {
        let path = unescape(request.path.trim_start_matches('/'));
        let (bucket, key) = path.split_once('/').unwrap_or((&path, ""));
        if bucket != self.bucket {
            return Response::error(404, "NoSuchBucket");
        }
        let mut objects = self.objects.lock().unwrap();
        if request.method == "GET" && key.is_empty() {
            return list(&objects, request);
        }
        let headers = |response: Response| {
            response
                .header(
                    "last-modified",
                    jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(),
                )
                .header("etag", "\"e\"")
                .header("x-goog-generation", "1")
        };
        match request.method.as_str() {
            "PUT" => {
                let must_not_exist =
                    request.headers.get("x-goog-if-generation-match").is_some_and(|g| g == "0");
                if self.conditional && must_not_exist && objects.contains_key(key) {
                    return Response::error(412, "PreconditionFailed");
                }
                objects.insert(key.to_owned(), request.body.clone());
                headers(Response::status(200))
            }
            "DELETE" => match objects.remove(key) {
                Some(_) => Response::status(204),
                None => Response::error(404, "NoSuchKey"),
            },
            "HEAD" | "GET" => match objects.get(key) {
                None => Response::error(404, "NoSuchKey"),
                Some(body) => headers(content(body, request)),
            },
            _ => Response::status(405),
        }
    }
}

fn content(body: &[u8], request: &Request) -> Response {
    let size = body.len();
    if request.method == "HEAD" {
        return Response::status(200).header("content-length", size.to_string());
    }
    let Some(range) = request.headers.get("range") else {
        return Response::status(200).body(body);
    };
    let (first, last) = range.trim_start_matches("bytes=").split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    if first >= size {
        return Response::error(416, "InvalidRange");
    }
    let last = last.min(size - 1);
    Response::status(206)
        .header("content-range", format!("bytes {first}-{last}/{size}"))
        .body(&body[first..=last])
}

fn list(objects: &BTreeMap<String, Vec<u8>>, request: &Request) -> Response {
    let prefix = request.query.get("prefix").cloned().unwrap_or_default();
    let after = request.query.get("continuation-token").cloned().unwrap_or_default();
    let matching: Vec<_> =
        objects.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after).collect();
    let page = &matching[..matching.len().min(PAGE)];
    let now = jiff::Timestamp::now();
    let mut xml = String::from("<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>");
    for (key, body) in page {
        xml += &format!(
            "<Contents><Key>{key}</Key><Generation>1</Generation><MetaGeneration>1</MetaGeneration>\
             <LastModified>{now:.3}</LastModified><ETag>\"e\"</ETag>\
             <Size>{}</Size></Contents>",
            body.len()
        );
    }
    if page.len() < matching.len() {
        let token = page.last().unwrap().0;
        xml += &format!("<NextContinuationToken>{token}</NextContinuationToken>");
    }
    xml += "</ListBucketResult>";
    Response::status(200).header("content-type", "application/xml").body(xml)
}
