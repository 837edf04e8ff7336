//! AWS KMS: `Encrypt` and `Decrypt` of its JSON API, signed with SigV4.
//!
//! The repository's id is the encryption context: KMS decrypts only with the same, and CloudTrail
//! and key policies can see it. The ciphertext is kept as the base 64 in which it came.

use std::sync::Arc;

use base64ct::{Base64, Encoding};
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::client::HttpRequest;
use object_store::{ClientOptions, RetryConfig};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::http::{Answer, Client, short, variable};
use super::{
    AwsKmsOptions, KeyServiceError, KeyServiceErrorKind as Kind, KeyServiceKind, Result, Service,
    Wrapped,
};
use crate::remote::wait;

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
/// The name of the id in the encryption context.
const CONTEXT: &str = "backstay-repository";

pub(super) struct AwsKms {
    client: Client,
    region: String,
    address: String,
    variables: Option<Vec<(String, String)>>,
}

/// The region in `arn:aws:kms:REGION:…`.
fn region_of(key: &str) -> Option<&str> {
    let mut parts = key.split(':');
    (parts.next() == Some("arn"))
        .then(|| parts.nth(2))
        .flatten()
        .filter(|region| !region.is_empty())
}

impl AwsKms {
    pub fn new(options: &AwsKmsOptions) -> Result<Self> {
        let client = Client::new(
            KeyServiceKind::AwsKms,
            &options.key,
            options.allow_http,
            Vec::new(),
            options.retries,
        )?;
        let given = options.variables.as_deref();
        let wrong = |what: &str| client.error(Kind::Configuration, "use the key").with_detail(what);
        if options.key.is_empty() {
            return Err(wrong("the key has no name"));
        }
        let region = options
            .region
            .clone()
            .or_else(|| region_of(&options.key).map(str::to_owned))
            .or_else(|| variable(given, "AWS_REGION"))
            .or_else(|| variable(given, "AWS_DEFAULT_REGION"))
            .ok_or_else(|| wrong("nothing says in which region the key is"))?;
        if !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(wrong(&format!("{region:?} is no region")));
        }
        let address =
            match options.endpoint.clone().or_else(|| variable(given, "AWS_ENDPOINT_URL_KMS")) {
                Some(endpoint) => client.address(&endpoint, options.allow_http)?,
                None => {
                    let end = if region.starts_with("cn-") { ".cn" } else { "" };
                    format!("https://kms.{region}.amazonaws.com{end}")
                }
            };
        Ok(Self { client, region, address, variables: options.variables.clone() })
    }

    /// Credentials as AWS's tools find them: variables, a web identity, a container's or a machine's
    /// role.
    fn credential(&self, doing: &'static str) -> Result<Arc<AwsCredential>> {
        let none = |why: String| {
            self.client.error(Kind::Denied, doing).with_detail(format!("no credentials: {why}"))
        };
        let mut builder = AmazonS3Builder::new()
            .with_client_options(
                ClientOptions::new().with_timeout(std::time::Duration::from_secs(5)),
            )
            .with_retry(RetryConfig { max_retries: 1, ..RetryConfig::default() });
        let all: Vec<(String, String)> = match &self.variables {
            Some(variables) => variables.clone(),
            None => std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .collect(),
        };
        for (name, value) in all {
            if !name.starts_with("AWS_") || value.is_empty() || name.starts_with("AWS_ENDPOINT") {
                continue;
            }
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        // Credentials have nothing to do with buckets, but this is where they are found.
        let finder = builder
            .with_bucket_name("credentials")
            .with_region(&self.region)
            .build()
            .map_err(|error| none(error.to_string()))?;
        let provider = Arc::clone(finder.credentials());
        let found =
            wait("find credentials", "", async move { Ok(provider.get_credential().await) })
                .map_err(|error| none(error.to_string()))?
                .map_err(|error| none(short(&error.to_string())))?;
        // They become headers.
        let parts = [Some(&found.key_id), Some(&found.secret_key), found.token.as_ref()];
        if parts.into_iter().flatten().any(|part| part.chars().any(|c| !c.is_ascii_graphic())) {
            return Err(none("they hold characters that none has".to_owned()));
        }
        Ok(found)
    }

    fn ask(&self, doing: &'static str, action: &str, body: &Value) -> Result<Value> {
        let credential = self.credential(doing)?;
        let target = format!("TrentService.{action}");
        let request = || -> Result<HttpRequest> {
            let headers = [("x-amz-target", target.as_str())];
            let address = format!("{}/", self.address);
            let mut request = self.client.post(&address, CONTENT_TYPE, &headers, body)?;
            AwsAuthorizer::new(&credential, "kms", &self.region)
                .try_authorize(&mut request, None)
                .map_err(|error| {
                    self.client.error(Kind::Other, doing).with_detail(error.to_string())
                })?;
            Ok(request)
        };
        self.client.ask(doing, request, |answer| self.judge(doing, answer))
    }

    fn judge(&self, doing: &'static str, answer: Answer) -> Result<Value> {
        if answer.status == 200 {
            return Ok(answer.body);
        }
        let text = |name: &str| answer.body.get(name).and_then(Value::as_str).unwrap_or_default();
        // `com.amazonaws.kms#Name` or `Name`.
        let what = text("__type").rsplit('#').next().unwrap_or_default();
        let said = if text("message").is_empty() { text("Message") } else { text("message") };
        let kind = match what {
            "InvalidCiphertextException" | "IncorrectKeyException" => Kind::NotOpened,
            "NotFoundException" | "InvalidArnException" | "ValidationException" => {
                Kind::Configuration
            }
            "DisabledException" | "KMSInvalidStateException" | "InvalidKeyUsageException" => {
                Kind::Unusable
            }
            "ThrottlingException"
            | "Throttling"
            | "RequestLimitExceeded"
            | "LimitExceededException"
            | "DependencyTimeoutException"
            | "KMSInternalException"
            | "KeyUnavailableException"
            | "InternalFailure"
            | "ServiceUnavailable" => Kind::Unavailable,
            _ => match answer.status {
                408 | 429 | 500.. => Kind::Unavailable,
                // Everything about who asks: AccessDenied, UnrecognizedClient, InvalidSignature,
                // ExpiredToken, IncompleteSignature, OptInRequired, …
                400 | 401 | 403 if !what.is_empty() => Kind::Denied,
                401 | 403 => Kind::Denied,
                _ => Kind::Other,
            },
        };
        let detail = match (what.is_empty(), said.is_empty()) {
            (false, false) => format!("{what}: {}", short(said)),
            (false, true) => what.to_owned(),
            _ => format!("status {}", answer.status),
        };
        Err(self.client.error(kind, doing).with_detail(detail))
    }

    fn not_understood(&self, doing: &'static str, what: &str) -> KeyServiceError {
        self.client.error(Kind::Other, doing).with_detail(what)
    }
}

impl Service for AwsKms {
    fn kind(&self) -> KeyServiceKind {
        KeyServiceKind::AwsKms
    }

    fn key(&self) -> &str {
        &self.client.key
    }

    fn wrap(&self, secret: &[u8], repository: &str) -> Result<Wrapped> {
        const DOING: &str = "encrypt with";
        let body = json!({
            "KeyId": self.client.key,
            "Plaintext": Base64::encode_string(secret),
            "EncryptionContext": { CONTEXT: repository },
        });
        let answer = self.ask(DOING, "Encrypt", &body)?;
        let text = |name: &str| answer.get(name).and_then(Value::as_str);
        let ciphertext = text("CiphertextBlob")
            .filter(|text| Base64::decode_vec(text).is_ok_and(|bytes| !bytes.is_empty()))
            .ok_or_else(|| self.not_understood(DOING, "it has no CiphertextBlob"))?;
        let key = text("KeyId").unwrap_or(&self.client.key);
        Ok(Wrapped { key: key.to_owned(), ciphertext: ciphertext.to_owned() })
    }

    fn unwrap(&self, ciphertext: &str, repository: &str) -> Result<Zeroizing<Vec<u8>>> {
        const DOING: &str = "decrypt with";
        let body = json!({
            // Said although the ciphertext knows: so no other key, which somebody else may have
            // put there, is ever used.
            "KeyId": self.client.key,
            "CiphertextBlob": ciphertext,
            "EncryptionContext": { CONTEXT: repository },
        });
        let answer = self.ask(DOING, "Decrypt", &body)?;
        answer
            .get("Plaintext")
            .and_then(Value::as_str)
            .and_then(|text| Base64::decode_vec(text).ok())
            .map(Zeroizing::new)
            .ok_or_else(|| self.not_understood(DOING, "it has no Plaintext"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_in_the_arn() {
        assert_eq!(region_of("arn:aws:kms:eu-central-1:1:key/x"), Some("eu-central-1"));
        assert_eq!(region_of("alias/backstay"), None);
        assert_eq!(region_of("arn:aws:kms::1:key/x"), None);
    }
}
