//! What services say, in our words: which kind of error it is, and what a person is told.
//!
//! The most delicate part is [`absent`]: "not found" is passed on only when the service said it of
//! the object, never of the bucket.

use std::error::Error as _;
use std::sync::Arc;

use futures_util::StreamExt as _;
use object_store::ObjectStore;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;

use super::line;
use super::runtime::PATIENCE;
use crate::{ErrorKind, StoreError};

/// All that an error and its causes say, without what stands in the query of an address (a SAS
/// token, for one).
fn words(error: &object_store::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !words.contains(&text) {
            words.push_str(": ");
            words.push_str(&text);
        }
        source = error.source();
    }
    words
}

/// Cuts the query off every address in `words`.
fn without_queries(words: &str) -> String {
    let mut result = String::with_capacity(words.len());
    let mut in_query = false;
    for c in words.chars() {
        let ends = c.is_whitespace() || "\"')>,".contains(c);
        in_query = (in_query || c == '?') && !ends;
        if !in_query {
            result.push(c);
        }
    }
    result
}

/// The status in "Server returned non-2xx status code: 503 Service Unavailable: …".
fn status(words: &str) -> Option<u16> {
    let (_, rest) = words.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// The reason in an XML or JSON answer, for people: `NoSuchBucket: The specified …`.
fn reason(words: &str) -> String {
    let between = |start: &str, end: &str| {
        let (_, rest) = words.split_once(start)?;
        Some(rest.split_once(end)?.0)
    };
    let code = between("<Code>", "</Code>");
    let message = between("<Message>", "</Message>");
    match (code, message, status(words)) {
        (Some(code), Some(message), _) => {
            format!("{code}: {}", message.lines().next().unwrap_or_default())
        }
        (Some(code), None, _) => code.to_owned(),
        (None, _, Some(404)) => "status 404".to_owned(),
        _ => {
            // One line, and not a whole page of a proxy.
            let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
            line.chars().take(400).collect()
        }
    }
}

/// What services say of an object that must be fetched out of an archive first.
const ARCHIVED: [&str; 3] = ["InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"];

/// What services say of a body that did not arrive as it was sent.
const ON_THE_WAY: [&str; 5] =
    ["RequestTimeout", "BadDigest", "IncompleteBody", "Md5Mismatch", "XAmzContentSHA256Mismatch"];

/// What a service says, in our words.
pub(super) fn translate(doing: &'static str, key: &str, error: &object_store::Error) -> StoreError {
    let words = words(error);
    let says = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    let kind = match error {
        _ if says(&ARCHIVED) => ErrorKind::Archived,
        // Decided by `absent`, where it matters.
        object_store::Error::NotFound { .. } => ErrorKind::NotFound,
        object_store::Error::AlreadyExists { .. } => match status(&words) {
            // S3: two requests at once, try again. Azure: it exists, or the container is going.
            Some(409) if !says(&["BlobAlreadyExists"]) => ErrorKind::Transient,
            _ => ErrorKind::AlreadyExists,
        },
        object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. } => ErrorKind::Denied,
        _ => match status(&words) {
            Some(416) => ErrorKind::Damaged,
            Some(507) => ErrorKind::NoSpace,
            Some(501) => ErrorKind::Configuration,
            Some(408 | 409 | 425 | 429 | 500..=599) => ErrorKind::Transient,
            Some(400) if says(&ON_THE_WAY) => ErrorKind::Transient,
            Some(400) if says(&["ExpiredToken", "InvalidToken", "InvalidAccessKeyId"]) => {
                ErrorKind::Denied
            }
            Some(401 | 403) => ErrorKind::Denied,
            Some(400..=499) => ErrorKind::Configuration,
            _ => unanswered(error, &words),
        },
    };
    let detail = if says(&["169.254.169.254", "metadata.google.internal"]) {
        "no credentials were given, and this machine has none of its own; set them in the \
         environment"
            .to_owned()
    } else {
        without_queries(&reason(&words))
    };
    StoreError::new(kind, doing, key).with_detail(detail)
}

/// The kind of an error that came without a status.
fn unanswered(error: &object_store::Error, words: &str) -> ErrorKind {
    // Asking the machine for its role when no credentials were given: it is no cloud's machine.
    if words.contains("169.254.169.254") || words.contains("metadata.google.internal") {
        return ErrorKind::Denied;
    }
    if words.contains("SlowDown") || words.contains("InternalError") {
        return ErrorKind::Transient;
    }
    if words.contains(line::OTHER_BYTES) {
        return ErrorKind::Damaged;
    }
    // The client's own word for a range past the end.
    if words.contains("Wanted range") {
        return ErrorKind::Damaged;
    }
    if words.contains("redirect") {
        return ErrorKind::Configuration;
    }
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return match http.kind() {
                // What cannot even be built is an address or a header that makes no sense.
                HttpErrorKind::Unknown if words.contains("builder error") => {
                    ErrorKind::Configuration
                }
                _ => ErrorKind::Transient,
            };
        }
        source = error.source();
    }
    ErrorKind::Other
}

/// Decides what "not found" means. The service may have said it of the bucket, and to a HEAD
/// it gives no reason at all: then the bucket must answer before the object is called absent.
pub(super) async fn absent(
    service: &Arc<dyn ObjectStore>,
    path: &Path,
    doing: &'static str,
    key: &str,
    error: &object_store::Error,
) -> StoreError {
    let translated = translate(doing, key, error);
    let said = words(error);
    // A refusal without a reason, as a HEAD gets it: a listing is told the reason.
    let unexplained = status(&said) == Some(400) && !said.contains("<Code>");
    if translated.kind() != ErrorKind::NotFound && !unexplained {
        return translated;
    }
    if says_no_bucket(&said) {
        return no_bucket(doing, key, &said);
    }
    // The codes of S3 and of Azure that can only mean the object.
    if said.contains("<Code>NoSuchKey</Code>") || said.contains("<Code>BlobNotFound</Code>") {
        return translated;
    }
    let mut listing = service.list(Some(path));
    match tokio::time::timeout(PATIENCE, listing.next()).await {
        Ok(None | Some(Ok(_))) => translated,
        Ok(Some(Err(error))) => {
            let said = words(&error);
            let why = translate(doing, key, &error);
            if why.kind() == ErrorKind::NotFound { no_bucket(doing, key, &said) } else { why }
        }
        Err(_) => StoreError::new(ErrorKind::Transient, doing, key)
            .with_detail("no answer to whether the bucket exists"),
    }
}

/// Whether a removal was refused because of a retention policy or a hold, in Google's words.
pub(super) fn is_kept(error: &StoreError) -> bool {
    let said = error.detail().to_ascii_lowercase();
    error.kind() == ErrorKind::Denied
        && ["retentionpolicynotmet", "retention policy", "under active"]
            .iter()
            .any(|part| said.contains(part))
}

fn says_no_bucket(words: &str) -> bool {
    ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"]
        .iter()
        .any(|part| words.contains(part))
}

pub(super) fn no_bucket(doing: &'static str, key: &str, words: &str) -> StoreError {
    let reason = without_queries(&reason(words));
    StoreError::new(ErrorKind::Configuration, doing, key)
        .with_detail(format!("there is no such bucket or container ({reason})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(words: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: words.to_owned().into() }
    }

    #[test]
    fn secrets_in_addresses_never_reach_a_message() {
        let error = generic(
            "error sending request for url \
             (https://a.blob.core.windows.net/c/k?sv=2024&sig=S3CRET%3D&se=1): refused",
        );
        let message = translate("read", "k", &error).to_string();
        assert!(!message.contains("S3CRET"), "{message}");
        assert!(message.contains("https://a.blob.core.windows.net/c/k): refused"), "{message}");
    }

    #[test]
    fn every_answer_has_its_kind() {
        for (words, kind) in [
            ("status code: 503 Service Unavailable: ", ErrorKind::Transient),
            ("status code: 429 Too Many Requests: ", ErrorKind::Transient),
            ("status code: 500 Internal Server Error: ", ErrorKind::Transient),
            ("status code: 507 Insufficient Storage: ", ErrorKind::NoSpace),
            ("status code: 403 Forbidden: ", ErrorKind::Denied),
            ("status code: 416 Range Not Satisfiable: ", ErrorKind::Damaged),
            ("status code: 400 Bad Request: <Code>RequestTimeout</Code>", ErrorKind::Transient),
            ("status code: 400 Bad Request: <Code>ExpiredToken</Code>", ErrorKind::Denied),
            ("status code: 400 Bad Request: <Code>InvalidURI</Code>", ErrorKind::Configuration),
            ("Received redirect without LOCATION", ErrorKind::Configuration),
            ("PUT http://169.254.169.254/latest/api/token: timed out", ErrorKind::Denied),
            ("something else", ErrorKind::Other),
        ] {
            assert_eq!(translate("read", "k", &generic(words)).kind(), kind, "{words}");
        }
        for (words, kind) in [
            ("status code: 409 Conflict: <Code>ConditionalRequestConflict</Code>", "transient"),
            ("status code: 409 Conflict: <Code>BlobAlreadyExists</Code>", "exists"),
            ("status code: 412 Precondition Failed: ", "exists"),
        ] {
            let path = "k".to_owned();
            let error =
                object_store::Error::AlreadyExists { path, source: words.to_owned().into() };
            let error = translate("create", "k", &error);
            assert_eq!(error.is_already_exists(), kind == "exists", "{words}");
            assert_eq!(error.is_transient(), kind == "transient", "{words}");
        }
    }
}
