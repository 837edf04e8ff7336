//! The transit engine of HashiCorp Vault (and OpenBao): `encrypt` and `decrypt` over HTTP.
//!
//! The repository's id goes along as associated data, which an AEAD key binds the ciphertext to, and
//! as the context, from which a key with derivation derives. Either is ignored by a key that has no
//! use for it; the slot binds the repository once more by itself.

use base64ct::{Base64, Encoding};
use object_store::client::Certificate;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::http::{Answer, Client, short, variable};
use super::{KeyServiceErrorKind as Kind, KeyServiceKind, Result, Service, VaultOptions, Wrapped};

const MOUNT: &str = "transit";

pub(super) struct Transit {
    client: Client,
    address: String,
    mount: String,
    namespace: Option<String>,
    token: Zeroizing<String>,
}

impl Transit {
    pub fn new(options: &VaultOptions) -> Result<Self> {
        let given = options.variables.as_deref();
        let kind = KeyServiceKind::VaultTransit;
        let wrong = |what: String| {
            super::KeyServiceError::new(kind, Kind::Configuration, "use the key", &options.key)
                .with_detail(what)
        };
        let ca_file =
            options.ca_file.clone().or_else(|| variable(given, "VAULT_CACERT").map(Into::into));
        let certificates = match &ca_file {
            None => Vec::new(),
            Some(path) => std::fs::read(path)
                .map_err(|error| error.to_string())
                .and_then(|pem| Certificate::from_pem_bundle(&pem).map_err(|e| e.to_string()))
                .and_then(|all| match all.is_empty() {
                    true => Err("it holds no certificate".to_owned()),
                    false => Ok(all),
                })
                .map_err(|why| wrong(format!("the ca-file {}: {why}", path.display())))?,
        };
        let client =
            Client::new(kind, &options.key, options.allow_http, certificates, options.retries)?;
        let mount = options.mount.as_deref().unwrap_or(MOUNT).trim_matches('/').to_owned();
        // Both are parts of a path.
        for (what, name, slashes) in [("key", &options.key, false), ("mount", &mount, true)] {
            let good =
                |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c) || (slashes && c == '/');
            if name.is_empty() || !name.chars().all(good) || name.contains("..") {
                return Err(wrong(format!("{name:?} is no name of a {what}")));
            }
        }
        let address = options
            .address
            .clone()
            .or_else(|| variable(given, "VAULT_ADDR"))
            .ok_or_else(|| wrong("nothing says where Vault is".to_owned()))?;
        let address = client.address(&address, options.allow_http)?;
        let namespace = options.namespace.clone().or_else(|| variable(given, "VAULT_NAMESPACE"));
        let from_home = || {
            let path = std::path::Path::new(&variable(given, "HOME")?).join(".vault-token");
            std::fs::read_to_string(path).ok()
        };
        let token = match &options.token_file {
            Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
                wrong(format!("the token-file {} could not be read: {error}", path.display()))
            })?),
            None => variable(given, "VAULT_TOKEN").or_else(from_home),
        };
        let token = token.map(Zeroizing::new).unwrap_or_default();
        let token = Zeroizing::new(token.trim().to_owned());
        if token.is_empty() {
            return Err(client.error(Kind::Denied, "use the key").with_detail("there is no token"));
        }
        Ok(Self { client, address, mount, namespace, token })
    }

    fn ask(&self, doing: &'static str, action: &str, body: &Value, field: &str) -> Result<String> {
        let address = format!("{}/v1/{}/{action}/{}", self.address, self.mount, self.client.key);
        let mut headers = vec![("x-vault-token", self.token.as_str()), ("x-vault-request", "true")];
        if let Some(namespace) = &self.namespace {
            headers.push(("x-vault-namespace", namespace));
        }
        let request = || self.client.post(&address, "application/json", &headers, body);
        let answer = self.client.ask(doing, request, |answer| self.judge(doing, answer))?;
        let value = answer.get("data").and_then(|data| data.get(field)).and_then(Value::as_str);
        value.map(str::to_owned).ok_or_else(|| {
            self.client.error(Kind::Other, doing).with_detail(format!("it has no {field}"))
        })
    }

    fn judge(&self, doing: &'static str, answer: Answer) -> Result<Value> {
        if answer.status == 200 {
            return Ok(answer.body);
        }
        let said: Vec<&str> = answer
            .body
            .get("errors")
            .and_then(Value::as_array)
            .map(|errors| errors.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let said = short(&said.join("; "));
        let about = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
        let kind = match answer.status {
            // What Vault says of a ciphertext that is not of this key, this version or this context.
            400 if about(&[
                "message authentication failed",
                "invalid ciphertext",
                "unable to decrypt",
            ]) =>
            {
                Kind::NotOpened
            }
            400 if about(&["ciphertext or signature version is disallowed"]) => Kind::Unusable,
            400 | 404 => Kind::Configuration,
            401 | 403 => Kind::Denied,
            // A replica that has not caught up; too many requests; sealed, or a standby.
            408 | 412 | 429 | 472 | 473 | 500.. => Kind::Unavailable,
            _ => Kind::Other,
        };
        let detail = if said.is_empty() { format!("status {}", answer.status) } else { said };
        Err(self.client.error(kind, doing).with_detail(detail))
    }

    fn bound(repository: &str) -> String {
        Base64::encode_string(format!("backstay repository {repository}").as_bytes())
    }
}

impl Service for Transit {
    fn kind(&self) -> KeyServiceKind {
        KeyServiceKind::VaultTransit
    }

    fn key(&self) -> &str {
        &self.client.key
    }

    fn wrap(&self, secret: &[u8], repository: &str) -> Result<Wrapped> {
        let bound = Self::bound(repository);
        let body = json!({
            "plaintext": Base64::encode_string(secret),
            "associated_data": bound,
            "context": bound,
        });
        let ciphertext = self.ask("encrypt with", "encrypt", &body, "ciphertext")?;
        Ok(Wrapped { key: format!("{}/{}", self.mount, self.client.key), ciphertext })
    }

    fn unwrap(&self, ciphertext: &str, repository: &str) -> Result<Zeroizing<Vec<u8>>> {
        const DOING: &str = "decrypt with";
        let bound = Self::bound(repository);
        let body = json!({ "ciphertext": ciphertext, "associated_data": bound, "context": bound });
        let plain = Zeroizing::new(self.ask(DOING, "decrypt", &body, "plaintext")?);
        Base64::decode_vec(&plain).map(Zeroizing::new).map_err(|_| {
            self.client.error(Kind::Other, DOING).with_detail("its plaintext is no base 64")
        })
    }
}
