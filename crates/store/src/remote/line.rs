//! The line to a service: what passes on every request and on every answer.
//!
//! The `object_store` crate writes the requests. On their way out they are given what it has no
//! words for (locks, storage classes, sums), and are signed again. On the way back, complaints
//! about too many requests set the [`Pace`], and a sum that the service made of what it received
//! is compared with the one that was sent.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use async_trait::async_trait;
#[cfg(feature = "gcs")]
use http::HeaderValue;
use http::header::{AUTHORIZATION, HeaderMap, RETRY_AFTER};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

use super::pace::{Pace, retry_after};

/// Headers that a request gets on top of those it has.
#[derive(Debug, Clone, Default)]
pub(super) struct Extra(pub HeaderMap);

/// Headers of the answer that must have this value where they are there.
#[derive(Debug, Clone, Default)]
pub(super) struct Expected(pub HeaderMap);

/// Said of an answer with another sum; [`super::translate`] knows it.
pub(super) const OTHER_BYTES: &str = "the service received other bytes than were sent";

/// Who signs for a service.
#[derive(Debug)]
pub(super) enum Signer {
    #[cfg(feature = "s3")]
    Aws { credentials: object_store::aws::AwsCredentialProvider, region: String },
    #[cfg(feature = "azure")]
    Azure { credentials: object_store::azure::AzureCredentialProvider, account: String },
    #[cfg(feature = "gcs")]
    Google { credentials: object_store::gcp::GcpCredentialProvider },
}

/// Connects to one service. Cheap to clone: all clones share one pace.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    pub pace: Arc<Pace>,
    /// Known only after the service was built, which needs a line.
    pub signer: Arc<OnceLock<Signer>>,
}

impl HttpConnector for Line {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Wire { inner, line: self.clone() }))
    }
}

#[derive(Debug)]
struct Wire {
    inner: HttpClient,
    line: Line,
}

#[async_trait]
impl HttpService for Wire {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if let Some(Extra(headers)) = request.extensions_mut().remove::<Extra>() {
            request.headers_mut().extend(headers);
            self.line.sign(&mut request).await?;
        }
        let expected = request.extensions_mut().remove::<Expected>();
        let sum = request.headers().get(SHA256).cloned();
        let response = self.inner.execute(request).await?;
        let status = response.status().as_u16();
        if matches!(status, 429 | 503) {
            let wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            self.line.pace.slow_down(wait.and_then(|wait| retry_after(wait, SystemTime::now())));
        } else if response.status().is_success() {
            self.line.pace.went_well();
            let mut expected = expected.unwrap_or_default().0;
            if let Some(sum) = sum {
                expected.insert(SHA256, sum);
            }
            compare(&expected, response.headers())?;
        }
        Ok(response)
    }
}

pub(super) const SHA256: &str = "x-amz-checksum-sha256";

fn compare(expected: &HeaderMap, answer: &HeaderMap) -> Result<(), HttpError> {
    for (name, value) in expected {
        // Google's sums are of several kinds, in one header or in several of one name.
        let of_kind = |sum: &str| sum.split_once('=').map(|(kind, _)| kind.to_owned());
        let wanted = value.to_str().unwrap_or_default();
        for found in answer.get_all(name).iter().filter_map(|found| found.to_str().ok()) {
            let other = if name == "x-goog-hash" {
                let mut same_kind =
                    found.split(',').map(str::trim).filter(|sum| of_kind(sum) == of_kind(wanted));
                same_kind.any(|sum| sum != wanted)
            } else {
                // Of an upload in parts, the sum is one of sums.
                found != wanted && !found.contains('-')
            };
            if other {
                let error = std::io::Error::other(OTHER_BYTES);
                return Err(HttpError::new(HttpErrorKind::Decode, error));
            }
        }
    }
    Ok(())
}

impl Line {
    /// Signs `request` as it is now, in place of any signature that it has.
    pub(super) async fn sign(&self, request: &mut HttpRequest) -> Result<(), HttpError> {
        let failed = |error: object_store::Error| HttpError::new(HttpErrorKind::Unknown, error);
        match self.signer.get() {
            // The service is still being built: this asks for a token.
            None => {}
            #[cfg(not(any(feature = "s3", feature = "azure", feature = "gcs")))]
            Some(_) => {}
            #[cfg(feature = "gcs")]
            Some(Signer::Google { credentials }) => {
                let credential = credentials.get_credential().await.map_err(failed)?;
                request.headers_mut().remove(AUTHORIZATION);
                let token = HeaderValue::from_str(&format!("Bearer {}", credential.bearer));
                if let (false, Ok(mut token)) = (credential.bearer.is_empty(), token) {
                    token.set_sensitive(true);
                    request.headers_mut().insert(AUTHORIZATION, token);
                }
            }
            #[cfg(feature = "s3")]
            Some(Signer::Aws { credentials, region }) => {
                let credential = credentials.get_credential().await.map_err(failed)?;
                let digest = request.headers().get("x-amz-content-sha256").cloned();
                let digest = digest.as_ref().and_then(|digest| digest.to_str().ok());
                let bytes = digest.and_then(unhex);
                request.headers_mut().remove(AUTHORIZATION);
                object_store::aws::AwsAuthorizer::new(&credential, "s3", region)
                    .with_sign_payload(digest != Some("UNSIGNED-PAYLOAD"))
                    .try_authorize(request, bytes.as_deref())
                    .map_err(failed)?;
            }
            #[cfg(feature = "azure")]
            Some(Signer::Azure { credentials, account }) => {
                let credential = credentials.get_credential().await.map_err(failed)?;
                request.headers_mut().remove(AUTHORIZATION);
                // A SAS token is in the address already, when this was signed before.
                let has_sas = request
                    .uri()
                    .query()
                    .is_some_and(|query| query.split('&').any(|pair| pair.starts_with("sig=")));
                if !has_sas {
                    object_store::azure::AzureAuthorizer::new(&credential, account)
                        .try_authorize(request)
                        .map_err(failed)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(feature = "s3")]
fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 {
        return None;
    }
    (0..32).map(|n| u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_sum_is_noticed_in_every_form() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().unwrap());
            }
            headers
        };
        let crc = headers(&[("x-goog-hash", "crc32c=AAAAAA==")]);
        for (expected, answer, right) in [
            (headers(&[(SHA256, "abc=")]), headers(&[(SHA256, "abc=")]), true),
            (headers(&[(SHA256, "abc=")]), headers(&[]), true),
            (headers(&[(SHA256, "abc=")]), headers(&[(SHA256, "abd=")]), false),
            (headers(&[(SHA256, "abc=")]), headers(&[(SHA256, "xyz=-2")]), true),
            (headers(&[("content-md5", "a")]), headers(&[("content-md5", "b")]), false),
            (crc.clone(), headers(&[("x-goog-hash", "crc32c=AAAAAA==,md5=x")]), true),
            (crc.clone(), headers(&[("x-goog-hash", "md5=x")]), true),
            (crc, headers(&[("x-goog-hash", "md5=x, crc32c=BBBBBB==")]), false),
        ] {
            assert_eq!(compare(&expected, &answer).is_ok(), right, "{expected:?} {answer:?}");
        }
    }
}
