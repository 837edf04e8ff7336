//! One request after another until there is an answer: what both services have in common.

use std::error::Error as _;
use std::time::{Duration, Instant};

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Uri};
use object_store::ClientOptions;
use object_store::client::{
    Certificate, HttpClient, HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector,
};
use serde_json::Value;

use super::{KeyServiceError, KeyServiceErrorKind, KeyServiceKind, RETRIES, Result};
use crate::remote::wait;
use crate::{Environment, RetryPolicy};

/// How long one try may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// An answer longer than this is none of ours. Bytes.
const LONGEST: usize = 1 << 20;

/// Who asks whom, for requests and for errors.
pub(super) struct Client {
    pub kind: KeyServiceKind,
    pub key: String,
    http: HttpClient,
    retries: RetryPolicy,
    env: Environment,
}

/// What came back.
pub(super) struct Answer {
    pub status: u16,
    /// Null where it was no JSON.
    pub body: Value,
}

impl Client {
    pub fn new(
        kind: KeyServiceKind,
        key: &str,
        allow_http: bool,
        certificates: Vec<Certificate>,
        retries: Option<RetryPolicy>,
    ) -> Result<Self> {
        let retries = retries.unwrap_or(RETRIES);
        let patience = match retries.budget {
            Duration::ZERO => PATIENCE,
            budget => PATIENCE.min(budget),
        };
        let mut options = ClientOptions::new()
            .with_allow_http(allow_http)
            .with_connect_timeout(patience)
            .with_timeout(patience);
        for certificate in certificates {
            options = options.with_root_certificate(certificate);
        }
        let http = ReqwestConnector::default().connect(&options).map_err(|error| {
            KeyServiceError::new(kind, KeyServiceErrorKind::Configuration, "use the key", key)
                .with_detail(error.to_string())
        })?;
        Ok(Self { kind, key: key.to_owned(), http, retries, env: Environment::system() })
    }

    pub fn error(&self, kind: KeyServiceErrorKind, doing: &'static str) -> KeyServiceError {
        KeyServiceError::new(self.kind, kind, doing, &self.key)
    }

    /// Checks an address, and takes the slashes off its end.
    pub fn address(&self, address: &str, allow_http: bool) -> Result<String> {
        let wrong = |why: &str| {
            Err(self
                .error(KeyServiceErrorKind::Configuration, "use the key")
                .with_detail(format!("the address {why}")))
        };
        let plain = address.starts_with("http://");
        if !plain && !address.starts_with("https://") {
            return wrong("must begin with https://");
        }
        if plain && !allow_http {
            return wrong("has no TLS; set allow-http if that is meant");
        }
        // Somebody's password may stand before an @.
        if address.contains(['?', '#', '@']) || address.parse::<Uri>().is_err() {
            return wrong("is not of the form https://host:port");
        }
        Ok(address.trim_end_matches('/').to_owned())
    }

    /// Sends what `request` makes, anew for each try, until `judge` has something final to say of
    /// the answer.
    pub fn ask<T>(
        &self,
        doing: &'static str,
        mut request: impl FnMut() -> Result<HttpRequest>,
        judge: impl Fn(Answer) -> Result<T>,
    ) -> Result<T> {
        let started = Instant::now();
        let mut attempt = 1;
        loop {
            let result = request().and_then(|request| self.send(doing, request)).and_then(&judge);
            let error = match result {
                Err(error) if error.is_transient() && attempt < self.retries.attempts => error,
                other => return other,
            };
            let lot = f64::from(u32::from_le_bytes(self.env.random())) / f64::from(u32::MAX);
            let longest = self.retries.first.saturating_mul(2_u32.saturating_pow(attempt - 1));
            let pause = longest.min(self.retries.longest).mul_f64(lot);
            if started.elapsed() + pause > self.retries.budget {
                return Err(error);
            }
            tracing::debug!(%error, attempt, ?pause, "trying again");
            self.env.clock.sleep(pause);
            attempt += 1;
        }
    }

    fn send(&self, doing: &'static str, request: HttpRequest) -> Result<Answer> {
        let http = self.http.clone();
        let answered = wait("ask", &self.key, async move {
            Ok(async {
                let response = http.execute(request).await?;
                let status = response.status().as_u16();
                Ok((status, response.into_body().bytes().await?))
            }
            .await)
        });
        let answered: std::result::Result<_, object_store::client::HttpError> =
            answered.map_err(|error| {
                self.error(KeyServiceErrorKind::Other, doing).with_detail(error.to_string())
            })?;
        // Nothing is known: neither what the service thinks nor whether it heard.
        let (status, body) = answered.map_err(|error| {
            let mut words = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                let text = cause.to_string();
                if !words.contains(&text) {
                    words = format!("{words}: {text}");
                }
                source = cause.source();
            }
            self.error(KeyServiceErrorKind::Unavailable, doing).with_detail(words)
        })?;
        if body.len() > LONGEST {
            return Err(self
                .error(KeyServiceErrorKind::Other, doing)
                .with_detail("it is too long"));
        }
        Ok(Answer { status, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
    }

    /// A POST of JSON. Values of headers may be secrets: no error repeats one.
    pub fn post(
        &self,
        address: &str,
        content_type: &'static str,
        headers: &[(&'static str, &str)],
        body: &Value,
    ) -> Result<HttpRequest> {
        let wrong = |what: &str| {
            self.error(KeyServiceErrorKind::Configuration, "use the key").with_detail(what)
        };
        let uri: Uri = address.parse().map_err(|_| wrong("the address is none"))?;
        let mut request = HttpRequest::new(HttpRequestBody::from(body.to_string()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        let map = request.headers_mut();
        map.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        for (name, value) in headers {
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| wrong(&format!("what is sent as {name} holds a control character")))?;
            value.set_sensitive(true);
            map.insert(HeaderName::from_static(name), value);
        }
        Ok(request)
    }
}

/// A short piece of what a service says, in one line.
pub(super) fn short(words: &str) -> String {
    words.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

/// A variable, as given or from the process; an empty one is none.
pub(super) fn variable(given: Option<&[(String, String)]>, name: &str) -> Option<String> {
    let value = match given {
        Some(all) => all.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()),
        None => std::env::var(name).ok(),
    };
    value.filter(|value| !value.is_empty())
}
