//! Google's files of credentials: which of them the `object_store` crate reads, and the one that it
//! does not, of workload identity federation (`external_account`).
//!
//! Such a file names where a token of the platform is found (a file, or an address) and where it is
//! exchanged for one of Google's; where it names a service account, that one's token is asked for
//! with it. The formats are those of Google's AIP-4117 and of the STS of RFC 8693.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use object_store::CredentialProvider;
use object_store::client::{HttpClient, HttpConnector as _};
use object_store::gcp::{GcpCredential, GoogleConfigKey};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::extras::{escape, request};
use super::line::Line;
use super::runtime::{PATIENCE, client_options};
use crate::StoreOptions;

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// A token is asked for again so long before it ends.
const BEFORE: Duration = Duration::from_secs(300);

/// A file, or the same in a variable.
pub(super) struct File {
    path: String,
    content: Value,
}

impl File {
    /// What the variables name, in the order in which `object_store` looks; else what `gcloud` has
    /// written. An error when there is such a file that nothing here can use.
    pub(super) fn of(
        variable: impl Fn(&str) -> Option<String>,
        configured: impl Fn(GoogleConfigKey) -> Option<String>,
    ) -> Result<Option<Self>, String> {
        if configured(GoogleConfigKey::BearerToken).is_some() {
            return Ok(None);
        }
        if let Some(key) = configured(GoogleConfigKey::ServiceAccountKey) {
            let content = serde_json::from_str(&key).unwrap_or_default();
            return Ok(Some(Self { path: "GOOGLE_SERVICE_ACCOUNT_KEY".to_owned(), content }));
        }
        let path = configured(GoogleConfigKey::ServiceAccount)
            .or_else(|| configured(GoogleConfigKey::ApplicationCredentials))
            .map(PathBuf::from)
            .or_else(|| {
                let usual = ".config/gcloud/application_default_credentials.json";
                Some(PathBuf::from(variable("HOME")?).join(usual)).filter(|path| path.exists())
            });
        let Some(path) = path else { return Ok(None) };
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let content: Value = serde_json::from_str(&text)
            .map_err(|error| format!("{} is no JSON: {error}", path.display()))?;
        let path = path.display().to_string();
        match content["type"].as_str() {
            None | Some("service_account" | "authorized_user" | "external_account") => {
                Ok(Some(Self { path, content }))
            }
            Some(other) => Err(format!(
                "{path} is a file of the type {other:?}, which is not understood; use one of a \
                 service account, of workload identity federation (external_account), or of \
                 `gcloud auth application-default login`"
            )),
        }
    }

    /// The address of a service that is not Google's own.
    pub(super) fn base(&self) -> Option<String> {
        self.content["gcs_base_url"].as_str().map(str::to_owned)
    }

    /// Who exchanges the tokens, where the file is of workload identity federation.
    pub(super) fn federated(
        self,
        line: &Line,
        options: &StoreOptions,
    ) -> Result<Option<Federated>, String> {
        if self.content["type"].as_str() != Some("external_account") {
            return Ok(None);
        }
        let path = &self.path;
        let text = |name: &str| match self.content[name].as_str() {
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err(format!("{path} has no {name}")),
        };
        let address = |name: &str| {
            let address = text(name)?;
            let allowed = address.starts_with("https://")
                || options.allow_http && address.starts_with("http://");
            match allowed {
                true => Ok(address),
                false => Err(format!("{name} in {path} must begin with https://")),
            }
        };
        let source = &self.content["credential_source"];
        let source = match (source["file"].as_str(), source["url"].as_str()) {
            (Some(file), _) => Source::File(file.into()),
            // Of the machine itself, where there is no TLS.
            (None, Some(url)) => Source::Address {
                url: url.to_owned(),
                headers: headers_of(&source["headers"])
                    .ok_or_else(|| format!("headers in {path} cannot be sent"))?,
            },
            (None, None) => {
                let what = ["environment_id", "executable", "certificate"];
                let what = what.iter().find(|name| !source[**name].is_null());
                return Err(format!(
                    "{path} takes its token from {}, which is not understood; only `file` and \
                     `url` are",
                    what.map_or("nowhere".to_owned(), |name| format!("`{name}`"))
                ));
            }
        };
        let format = &self.content["credential_source"]["format"];
        let field = match format["type"].as_str() {
            None | Some("text") => None,
            Some("json") => Some(
                format["subject_token_field_name"]
                    .as_str()
                    .ok_or_else(|| format!("{path} has no subject_token_field_name"))?
                    .to_owned(),
            ),
            Some(other) => return Err(format!("{path} has a token of the format {other:?}")),
        };
        let as_account = match self.content["service_account_impersonation_url"].is_null() {
            true => None,
            false => Some(address("service_account_impersonation_url")?),
        };
        let lifetime = &self.content["service_account_impersonation"]["token_lifetime_seconds"];
        let client = client_options().with_allow_http(true);
        Ok(Some(Federated {
            audience: text("audience")?,
            kind: text("subject_token_type")?,
            exchange: address("token_url")?,
            lifetime: lifetime.as_u64().unwrap_or(3600),
            source,
            field,
            as_account,
            client: line.connect(&client).map_err(|error| error.to_string())?,
            known: Mutex::new(None),
            path: self.path,
        }))
    }
}

fn headers_of(value: &Value) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        let name = name.parse::<HeaderName>().ok()?;
        headers.insert(name, HeaderValue::from_str(value.as_str()?).ok()?);
    }
    Some(headers)
}

/// Where the platform's token is.
enum Source {
    File(PathBuf),
    Address { url: String, headers: HeaderMap },
}

/// Exchanges tokens of a platform for Google's.
pub(super) struct Federated {
    path: String,
    audience: String,
    kind: String,
    source: Source,
    /// Of a token in JSON: where in it.
    field: Option<String>,
    exchange: String,
    /// Where the token of a service account is asked for, and for how many seconds.
    as_account: Option<String>,
    lifetime: u64,
    client: HttpClient,
    known: Mutex<Option<(Arc<GcpCredential>, Instant)>>,
}

impl std::fmt::Debug for Federated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Federated").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Federated {
    fn refused(&self, why: String) -> object_store::Error {
        object_store::Error::Unauthenticated { path: self.path.clone(), source: why.into() }
    }

    /// The answer, when it is a success; `what` was asked for.
    async fn ask(
        &self,
        what: &str,
        method: Method,
        address: &str,
        headers: HeaderMap,
        body: String,
    ) -> object_store::Result<String> {
        let generic = |source: Box<dyn std::error::Error + Send + Sync>| {
            object_store::Error::Generic { store: "GCS", source }
        };
        let request = request("ask", "", method, address, headers, body)
            .map_err(|error| generic(Box::new(error)))?;
        let work = async {
            let answer = self.client.execute(request).await;
            let answer = answer.map_err(|error| generic(Box::new(error)))?;
            let (parts, body) = answer.into_parts();
            let body = body.bytes().await.map_err(|error| generic(Box::new(error)))?;
            let body = String::from_utf8_lossy(&body).into_owned();
            Ok::<_, object_store::Error>((parts.status, body))
        };
        let late = || generic(format!("status code: 503: no answer to {what}").into());
        let (status, body) = tokio::time::timeout(PATIENCE, work).await.map_err(|_| late())??;
        if status.is_success() {
            return Ok(body);
        }
        if status.is_server_error() || status.as_u16() == 429 {
            return Err(generic(format!("status code: {status}: {what}").into()));
        }
        // The reason alone: an answer may repeat what it was sent.
        let said = serde_json::from_str::<Value>(&body).unwrap_or_default();
        let reason = said["error_description"]
            .as_str()
            .or_else(|| said["error"]["message"].as_str())
            .or_else(|| said["error"].as_str())
            .unwrap_or_default()
            .chars()
            .take(200)
            .collect::<String>();
        Err(self.refused(format!("{what} was refused with {status}: {reason}")))
    }

    async fn token_of_platform(&self) -> object_store::Result<String> {
        let text = match &self.source {
            Source::File(path) => std::fs::read_to_string(path).map_err(|error| {
                self.refused(format!("the token in {} cannot be read: {error}", path.display()))
            })?,
            Source::Address { url, headers } => {
                let what = "the platform's token";
                self.ask(what, Method::GET, url, headers.clone(), String::new()).await?
            }
        };
        let token = match &self.field {
            None => Some(text.trim().to_owned()),
            Some(field) => {
                let value = serde_json::from_str::<Value>(&text).unwrap_or_default();
                value[field.as_str()].as_str().map(str::to_owned)
            }
        };
        token
            .filter(|token| !token.is_empty())
            .ok_or_else(|| self.refused("the platform's token is empty".to_owned()))
    }

    async fn fetch(&self) -> object_store::Result<(GcpCredential, Duration)> {
        let escaped = |text: &str| escape(text).replace('/', "%2F").replace('~', "%7E");
        let form: Vec<String> = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("audience", &self.audience),
            ("scope", SCOPE),
            ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("subject_token", &self.token_of_platform().await?),
            ("subject_token_type", &self.kind),
        ]
        .iter()
        .map(|(name, value)| format!("{name}={}", escaped(value)))
        .collect();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let what = "the exchange of the platform's token";
        let answer = self.ask(what, Method::POST, &self.exchange, headers, form.join("&")).await?;
        let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
        let no_token = || self.refused(format!("the answer to {what} has no token"));
        let token = answer["access_token"].as_str().ok_or_else(no_token)?.to_owned();
        let seconds = answer["expires_in"].as_u64().unwrap_or(3600);
        let Some(address) = &self.as_account else {
            return Ok((GcpCredential { bearer: token }, Duration::from_secs(seconds)));
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| self.refused(format!("the token of {what} cannot be sent")))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        let body = json!({ "scope": [SCOPE], "lifetime": format!("{}s", self.lifetime) });
        let what = "the token of the service account";
        let answer = self.ask(what, Method::POST, address, headers, body.to_string()).await?;
        let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
        let no_token = || self.refused(format!("the answer has not {what}"));
        let token = answer["accessToken"].as_str().ok_or_else(no_token)?.to_owned();
        Ok((GcpCredential { bearer: token }, Duration::from_secs(self.lifetime)))
    }
}

#[async_trait]
impl CredentialProvider for Federated {
    type Credential = GcpCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<GcpCredential>> {
        let mut known = self.known.lock().await;
        if let Some((credential, ends)) = &*known
            && ends.saturating_duration_since(Instant::now()) > BEFORE
        {
            return Ok(Arc::clone(credential));
        }
        let (credential, lasts) = self.fetch().await?;
        let credential = Arc::new(credential);
        *known = Some((Arc::clone(&credential), Instant::now() + lasts));
        Ok(credential)
    }
}
