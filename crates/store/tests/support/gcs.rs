//! A small Google Cloud Storage, for what the emulator lacks: conditions of resumable uploads,
//! retention, holds, pages of listings, and everything that goes wrong.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::BTreeMap;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::http::{Request, Response, Server, unescape};

/// Keys in a page of a listing; the real service gives 1000.
const PAGE: usize = 100;

/// The service keeps whole multiples of this of what arrives, but for the end.
const STEP: usize = 256 << 10;

#[derive(Clone)]
struct Object {
    body: Vec<u8>,
    /// As the JSON interface has it.
    about: Value,
}

/// A resumable upload.
struct Upload {
    about: Value,
    arrived: Vec<u8>,
    must_not_exist: bool,
    /// It is over, and that was the answer.
    outcome: Option<Response>,
}

pub struct Gcs {
    /// The only bucket there is.
    bucket: &'static str,
    /// Honours conditions.
    conditional: bool,
    objects: Mutex<BTreeMap<String, Object>>,
    uploads: Mutex<Vec<Option<Upload>>>,
}

/// An error of the JSON interface.
pub fn error(status: u16, reason: &str, message: &str) -> Response {
    let error = json!({ "error": { "code": status, "message": message,
        "errors": [{ "reason": reason, "message": message }] } });
    Response::status(status).header("content-type", "application/json").body(error.to_string())
}

fn found(value: &Value) -> Response {
    Response::status(200).header("content-type", "application/json").body(value.to_string())
}

/// CRC-32C, bit by bit: written apart from what the store uses.
fn crc32c_of(body: &[u8]) -> String {
    let sum = body.iter().fold(!0_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| match sum & 1 {
            0 => sum >> 1,
            _ => (sum >> 1) ^ 0x82f6_3b78,
        })
    });
    STANDARD.encode((!sum).to_be_bytes())
}

impl Gcs {
    pub fn start(bucket: &'static str, conditional: bool) -> Server {
        let gcs = Self::new(bucket, conditional);
        Server::start(move |request| gcs.answer(request))
    }

    pub fn new(bucket: &'static str, conditional: bool) -> Self {
        let (objects, uploads) = (Mutex::default(), Mutex::default());
        Self { bucket, conditional, objects, uploads }
    }

    /// How many uploads are neither finished nor removed.
    pub fn unfinished(&self) -> usize {
        let uploads = self.uploads.lock().unwrap();
        uploads.iter().flatten().filter(|upload| upload.outcome.is_none()).count()
    }

    /// What is known of an object.
    pub fn about(&self, key: &str) -> Option<Value> {
        self.objects.lock().unwrap().get(key).map(|object| object.about.clone())
    }

    /// Sets what somebody else than the store has set.
    pub fn set(&self, key: &str, name: &str, value: Value) {
        self.objects.lock().unwrap().get_mut(key).unwrap().about[name] = value;
    }

    pub fn answer(&self, request: &Request) -> Response {
        if let Some(rest) = request.path.strip_prefix("/upload/storage/v1/b/") {
            let bucket = rest.strip_suffix("/o").unwrap();
            return match bucket == self.bucket {
                true => self.upload(request),
                false => error(404, "notFound", "The specified bucket does not exist."),
            };
        }
        if let Some(rest) = request.path.strip_prefix("/storage/v1/b/") {
            let (bucket, key) = rest.split_once("/o/").unwrap();
            return match bucket == self.bucket {
                true => self.metadata(request, &unescape(key)),
                false => error(404, "notFound", "The specified bucket does not exist."),
            };
        }
        self.xml(request)
    }

    /// Creates an object, if that may be.
    fn insert(&self, about: &Value, body: Vec<u8>, must_not_exist: bool) -> Response {
        let key = about["name"].as_str().unwrap().to_owned();
        let sum = crc32c_of(&body);
        if about["crc32c"].as_str().is_some_and(|said| said != sum) {
            let said = about["crc32c"].as_str().unwrap();
            return error(
                400,
                "invalid",
                &format!("Provided CRC32C \"{said}\" doesn't match calculated CRC32C \"{sum}\"."),
            );
        }
        let mut objects = self.objects.lock().unwrap();
        if self.conditional && must_not_exist && objects.contains_key(&key) {
            return error(
                412,
                "conditionNotMet",
                "At least one of the pre-conditions you specified did not hold.",
            );
        }
        let mut about = about.clone();
        about["crc32c"] = sum.into();
        about["generation"] = "1".into();
        let answer = found(&about);
        objects.insert(key, Object { body, about });
        answer
    }

    fn upload(&self, request: &Request) -> Response {
        let must_not_exist = request.query.get("ifGenerationMatch").is_some_and(|g| g == "0");
        match (request.method.as_str(), request.query.get("uploadType").map(String::as_str)) {
            ("POST", Some("multipart")) => {
                let kind = &request.headers["content-type"];
                let boundary = kind.strip_prefix("multipart/related; boundary=").unwrap();
                let (about, body) = parts(&request.body, boundary);
                self.insert(&about, body, must_not_exist)
            }
            ("POST", Some("resumable")) => {
                let mut about: Value = serde_json::from_slice(&request.body).unwrap();
                about["name"] = request.query["name"].clone().into();
                let mut uploads = self.uploads.lock().unwrap();
                let arrived = Vec::new();
                uploads.push(Some(Upload { about, arrived, must_not_exist, outcome: None }));
                let (host, number) = (&request.headers["host"], uploads.len() - 1);
                Response::status(200).header(
                    "location",
                    format!("http://{host}{}?upload_id={number}&secret=SESSION", request.path),
                )
            }
            _ => self.resume(request),
        }
    }

    fn resume(&self, request: &Request) -> Response {
        // The address is all that it takes.
        assert!(!request.headers.contains_key("authorization"), "a token in vain");
        let number: usize = request.query["upload_id"].parse().unwrap();
        let mut uploads = self.uploads.lock().unwrap();
        let Some(upload) = &mut uploads[number] else {
            return error(404, "notFound", "no such upload");
        };
        if request.method == "DELETE" {
            uploads[number] = None;
            return Response::status(499);
        }
        if let Some(outcome) = &upload.outcome {
            return outcome.clone();
        }
        let range = request.headers["content-range"].strip_prefix("bytes ").unwrap();
        let (range, total) = range.split_once('/').unwrap();
        let total: Option<usize> = total.parse().ok();
        if let Some((first, last)) = range.split_once('-') {
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            assert!(first <= upload.arrived.len(), "a hole before {first}");
            assert!(total.is_some() || (last + 1 - first).is_multiple_of(STEP), "{range}");
            let known = upload.arrived.len() - first;
            upload.arrived.extend_from_slice(request.body.get(known..).unwrap_or_default());
        }
        if total != Some(upload.arrived.len()) {
            upload.arrived.truncate(upload.arrived.len() / STEP * STEP);
            let answer = Response::status(308);
            return match upload.arrived.len() {
                0 => answer,
                length => answer.header("range", format!("bytes=0-{}", length - 1)),
            };
        }
        let outcome = self.insert(&upload.about, upload.arrived.clone(), upload.must_not_exist);
        upload.outcome = Some(outcome.clone());
        outcome
    }

    fn metadata(&self, request: &Request, key: &str) -> Response {
        let mut objects = self.objects.lock().unwrap();
        let Some(object) = objects.get_mut(key) else {
            return error(404, "notFound", &format!("No such object: {}/{key}", self.bucket));
        };
        if request.method == "PATCH" {
            let changes: Value = serde_json::from_slice(&request.body).unwrap();
            for (name, value) in changes.as_object().unwrap() {
                object.about[name.as_str()] = value.clone();
            }
        }
        found(&object.about)
    }

    fn xml(&self, request: &Request) -> Response {
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
            "DELETE" => match objects.get(key) {
                Some(object) if kept(&object.about) => {
                    Response::error(403, "RetentionPolicyNotMet")
                }
                Some(_) => {
                    objects.remove(key);
                    Response::status(204)
                }
                None => Response::error(404, "NoSuchKey"),
            },
            "HEAD" | "GET" => match objects.get(key) {
                None => Response::error(404, "NoSuchKey"),
                Some(object) => headers(content(&object.body, request)),
            },
            _ => Response::status(405),
        }
    }
}

/// Whether an object may not be removed now.
fn kept(about: &Value) -> bool {
    let until = [&about["retentionExpirationTime"], &about["retention"]["retainUntilTime"]];
    let until = until.iter().filter_map(|until| until.as_str()?.parse::<jiff::Timestamp>().ok());
    let held = |name: &str| about[name].as_bool() == Some(true);
    held("temporaryHold") || held("eventBasedHold") || until.max() > Some(jiff::Timestamp::now())
}

/// The metadata and the bytes in the body of an upload.
fn parts(body: &[u8], boundary: &str) -> (Value, Vec<u8>) {
    let find = |from: usize, what: &[u8]| {
        from + body[from..].windows(what.len()).position(|window| window == what).unwrap()
    };
    let line = format!("--{boundary}\r\n");
    assert!(body.starts_with(line.as_bytes()));
    let about = find(0, b"\r\n\r\n") + 4;
    let end = find(about, b"\r\n");
    let content = find(end, b"\r\n\r\n") + 4;
    let tail = format!("\r\n--{boundary}--\r\n");
    let content = body[content..].strip_suffix(tail.as_bytes()).unwrap();
    (serde_json::from_slice(&body[about..end]).unwrap(), content.to_vec())
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

fn list(objects: &BTreeMap<String, Object>, request: &Request) -> Response {
    let prefix = request.query.get("prefix").cloned().unwrap_or_default();
    let after = request.query.get("continuation-token").cloned().unwrap_or_default();
    let matching: Vec<_> =
        objects.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after).collect();
    let page = &matching[..matching.len().min(PAGE)];
    let now = jiff::Timestamp::now();
    let mut xml = String::from("<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>");
    for (key, object) in page {
        xml += &format!(
            "<Contents><Key>{key}</Key><Generation>1</Generation><MetaGeneration>1</MetaGeneration>\
             <LastModified>{now:.3}</LastModified><ETag>\"e\"</ETag>\
             <Size>{}</Size></Contents>",
            object.body.len()
        );
    }
    if page.len() < matching.len() {
        let token = page.last().unwrap().0;
        xml += &format!("<NextContinuationToken>{token}</NextContinuationToken>");
    }
    xml += "</ListBucketResult>";
    Response::status(200).header("content-type", "application/xml").body(xml)
}
