//! What an administrator asks of a service, or a thief with a stolen credential: signed requests
//! that a store has no call for.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use object_store::ClientOptions;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential};
use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};

/// Somebody who may ask a service.
pub struct Admin {
    /// Without a slash at its end.
    pub endpoint: String,
    pub who: Who,
}

pub enum Who {
    S3 {
        key: String,
        secret: String,
    },
    Azure {
        account: String,
        key: String,
    },
    /// A shared access signature, as the query of an address.
    Sas(String),
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned()
    }

    /// What stands between `<name>` and `</name>`, each time.
    pub fn all(&self, name: &str) -> Vec<String> {
        let (start, end) = (format!("<{name}>"), format!("</{name}>"));
        let parts = self.body.split(&start).skip(1);
        parts.map(|part| part.split(&end).next().unwrap().replace("&#34;", "\"")).collect()
    }

    pub fn refused(&self) -> bool {
        (400..500).contains(&self.status)
    }
}

impl Admin {
    /// `path` begins with a slash and may have a query.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let method: Method = method.parse().unwrap();
        let mut address = format!("{}{path}", self.endpoint);
        if let Who::Sas(query) = &self.who {
            address.push(if path.contains('?') { '&' } else { '?' });
            address.push_str(query);
        }
        let payload = HttpRequestBody::from(Bytes::from(body.to_owned()));
        let mut request: HttpRequest =
            http::Request::builder().method(method).uri(address).body(payload).unwrap();
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
        }
        if !body.is_empty() || request.method() == Method::PUT {
            request.headers_mut().insert("content-length", body.len().into());
        }
        match &self.who {
            Who::S3 { key, secret } => {
                let credential =
                    AwsCredential { key_id: key.clone(), secret_key: secret.clone(), token: None };
                let authorizer = AwsAuthorizer::new(&credential, "s3", "us-east-1");
                authorizer.try_authorize(&mut request, None).unwrap();
            }
            Who::Azure { account, key } => {
                let key = AzureCredential::AccessKey(AzureAccessKey::try_new(key).unwrap());
                AzureAuthorizer::new(&key, account).try_authorize(&mut request).unwrap();
            }
            Who::Sas(_) => {
                request
                    .headers_mut()
                    .insert("x-ms-version", HeaderValue::from_static("2021-08-06"));
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = ClientOptions::new().with_allow_http(true);
            let client = ReqwestConnector::default().connect(&options).unwrap();
            let (parts, body) = client.execute(request).await.unwrap().into_parts();
            Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body: String::from_utf8_lossy(&body.bytes().await.unwrap()).into_owned(),
            }
        })
    }
}

/// A shared access signature for a container, in the form of version 2020-12-06.
pub fn sas(account: &str, key: &str, container: &str, permissions: &str) -> String {
    let (expiry, version) = ("2099-01-01T00:00:00Z", "2021-08-06");
    let text = format!(
        "{permissions}\n\n{expiry}\n/blob/{account}/{container}\n\n\n\n{version}\nc\n\n\n\n\n\n\n"
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key).unwrap());
    let signature = STANDARD.encode(hmac::sign(&key, text.as_bytes()));
    let signature = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let expiry = expiry.replace(':', "%3A");
    format!("sv={version}&sr=c&sp={permissions}&se={expiry}&sig={signature}")
}
