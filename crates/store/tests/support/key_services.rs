//! Stand-ins for AWS KMS and Vault's transit engine: they check what the real ones check, bind a
//! ciphertext to what the real ones bind it to, and refuse in the same words.

#![allow(dead_code)] // each test file uses its own part

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{digest, hmac, rand};
use base64ct::{Base64, Encoding};
use serde_json::{Value, json};

use super::http::{Request, Response, Server};

pub const REGION: &str = "eu-central-1";
pub const ACCESS_KEY: &str = "AKIDEXAMPLE";
pub const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
pub const VAULT_TOKEN: &str = "hvs.a-token-of-the-test";

/// An answer that comes in the place of the right one.
type Fault = Option<Response>;

#[derive(Default)]
struct State {
    /// Each answers one request, the first first.
    faults: Vec<Response>,
    always: Fault,
    requests: u64,
    keys: BTreeMap<String, Key>,
    bodies: Vec<String>,
}

#[derive(Clone)]
struct Key {
    secret: [u8; 32],
    state: &'static str,
    derived: bool,
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).unwrap();
    bytes
}

fn seal(key: &[u8; 32], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; 12] = random();
    let mut sealed = plain.to_vec();
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap())
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut sealed)
        .unwrap();
    [nonce.to_vec(), sealed].concat()
}

fn open(key: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = sealed.split_first_chunk::<12>()?;
    let mut plain = sealed.to_vec();
    let length = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap())
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), &mut plain)
        .ok()?
        .len();
    plain.truncate(length);
    Some(plain)
}

/// A server with what all of them have in common.
pub struct StandIn {
    server: Server,
    state: Arc<Mutex<State>>,
}

impl StandIn {
    fn start(answer: fn(&Request, &State) -> Response) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let server = Server::start(move |request| {
            let mut state = shared.lock().unwrap();
            state.requests += 1;
            state.bodies.push(String::from_utf8_lossy(&request.body).into_owned());
            if !state.faults.is_empty() {
                return state.faults.remove(0);
            }
            if let Some(always) = &state.always {
                return always.clone();
            }
            answer(request, &state)
        });
        Self { server, state }
    }

    /// KMS with the key `name` of account 111122223333.
    pub fn kms(names: &[&str]) -> Self {
        let it = Self::start(kms);
        names.iter().for_each(|name| it.add_key(&arn(name), false));
        it
    }

    /// Vault with its transit engine at `transit/`.
    pub fn vault(names: &[&str]) -> Self {
        let it = Self::start(vault);
        names.iter().for_each(|name| it.add_key(name, false));
        it
    }

    pub fn add_key(&self, name: &str, derived: bool) {
        let key = Key { secret: random(), state: "Enabled", derived };
        self.state.lock().unwrap().keys.insert(name.to_owned(), key);
    }

    pub fn set_state(&self, name: &str, to: &'static str) {
        self.state.lock().unwrap().keys.get_mut(name).unwrap().state = to;
    }

    pub fn fail_next(&self, faults: Vec<Response>) {
        self.state.lock().unwrap().faults = faults;
    }

    pub fn fail_always(&self, fault: Fault) {
        self.state.lock().unwrap().always = fault;
    }

    pub fn requests(&self) -> u64 {
        self.state.lock().unwrap().requests
    }

    pub fn url(&self) -> String {
        self.server.url()
    }
}

pub fn arn(name: &str) -> String {
    format!("arn:aws:kms:{REGION}:111122223333:key/{name}")
}

/// Refused as KMS refuses.
pub fn kms_error(status: u16, what: &str, message: &str) -> Response {
    Response::status(status)
        .header("content-type", "application/x-amz-json-1.1")
        .body(json!({ "__type": what, "message": message }).to_string())
}

/// Refused as Vault refuses.
pub fn vault_error(status: u16, message: &str) -> Response {
    Response::status(status)
        .header("content-type", "application/json")
        .body(json!({ "errors": [message] }).to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn sign(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// `20261125T014500Z` as seconds since 1970.
fn seconds_of(date: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| date.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + number(9..11)? * 3600 + number(11..13)? * 60 + number(13..15)?)
}

/// Signature version 4, checked from its description alone.
fn check_signature(request: &Request) -> Result<(), Response> {
    let header = |name: &str| request.headers.get(name).cloned().unwrap_or_default();
    let authorization = header("authorization");
    let Some(rest) = authorization.strip_prefix("AWS4-HMAC-SHA256 ") else {
        return Err(kms_error(
            400,
            "MissingAuthenticationTokenException",
            "Missing Authentication Token",
        ));
    };
    let part = |name: &str| {
        let part = rest.split(", ").find_map(|part| part.strip_prefix(name));
        part.unwrap_or_default().to_owned()
    };
    let (credential, signed, signature) =
        (part("Credential="), part("SignedHeaders="), part("Signature="));
    let (access, scope) = credential.split_once('/').unwrap_or_default();
    if access != ACCESS_KEY {
        return Err(kms_error(
            400,
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ));
    }
    let date = header("x-amz-date");
    let wrong = |why: &str| Err(kms_error(400, "InvalidSignatureException", why));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    if seconds_of(&date).is_none_or(|then| (now - then).abs() > 300) {
        return wrong("Signature expired");
    }
    if scope != format!("{}/{REGION}/kms/aws4_request", &date[..8]) {
        return wrong("Credential should be scoped to a valid region and service.");
    }
    for needed in ["host", "x-amz-date", "x-amz-target"] {
        if !signed.split(';').any(|name| name == needed) {
            return wrong("a header that has to be is not signed");
        }
    }
    let headers: String =
        signed.split(';').map(|name| format!("{name}:{}\n", header(name))).collect();
    let canonical =
        format!("POST\n{}\n\n{headers}\n{signed}\n{}", request.path, sha256(&request.body));
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256(canonical.as_bytes()));
    let mut key = format!("AWS4{SECRET_KEY}").into_bytes();
    for step in scope.split('/') {
        key = sign(&key, step);
    }
    if hex(&sign(&key, &text)) != signature {
        return wrong(
            "The request signature we calculated does not match the signature you provided.",
        );
    }
    Ok(())
}

fn kms(request: &Request, state: &State) -> Response {
    if let Err(refused) = check_signature(request) {
        return refused;
    }
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
        return kms_error(400, "SerializationException", "");
    };
    if request.headers.get("content-type").map(String::as_str) != Some("application/x-amz-json-1.1")
    {
        return kms_error(404, "UnknownOperationException", "");
    }
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    let context = body.get("EncryptionContext").cloned().unwrap_or(json!({})).to_string();
    // An id or an ARN.
    let find = |name: &str| state.keys.get_key_value(name).or(state.keys.get_key_value(&arn(name)));
    let named = match text("KeyId").map(|name| (name, find(name))) {
        Some((name, None)) => {
            let message = format!("Key '{name}' does not exist");
            return kms_error(400, "NotFoundException", &message);
        }
        Some((_, found)) => found,
        None => None,
    };
    let usable = |name: &str, key: &Key| match key.state {
        "Enabled" => None,
        "Disabled" => Some(kms_error(400, "DisabledException", &format!("{name} is disabled."))),
        other => Some(kms_error(400, "KMSInvalidStateException", &format!("{name} is {other}."))),
    };
    let target = request.headers.get("x-amz-target").map_or("", String::as_str);
    let answer = match target {
        "TrentService.Encrypt" => {
            let Some((name, key)) = named else {
                return kms_error(400, "ValidationException", "KeyId");
            };
            if let Some(refused) = usable(name, key) {
                return refused;
            }
            let plain = text("Plaintext").and_then(|text| Base64::decode_vec(text).ok()).unwrap();
            let sealed = seal(&key.secret, context.as_bytes(), &plain);
            let blob = [&[name.len() as u8], name.as_bytes(), &sealed].concat();
            json!({ "CiphertextBlob": Base64::encode_string(&blob), "KeyId": name,
                    "EncryptionAlgorithm": "SYMMETRIC_DEFAULT" })
        }
        "TrentService.Decrypt" => {
            let invalid = || kms_error(400, "InvalidCiphertextException", "");
            let blob = text("CiphertextBlob").and_then(|text| Base64::decode_vec(text).ok());
            let blob = blob.unwrap_or_default();
            let Some((length, rest)) = blob.split_first() else { return invalid() };
            let Some((name, sealed)) = rest.split_at_checked(usize::from(*length)) else {
                return invalid();
            };
            let Some((name, key)) = std::str::from_utf8(name).ok().and_then(find) else {
                return invalid();
            };
            if named.is_some_and(|(wanted, _)| wanted != name) {
                return kms_error(
                    400,
                    "IncorrectKeyException",
                    "The key ID in the request does not identify a CMK that can perform this operation.",
                );
            }
            if let Some(refused) = usable(name, key) {
                return refused;
            }
            let Some(plain) = open(&key.secret, context.as_bytes(), sealed) else {
                return invalid();
            };
            json!({ "Plaintext": Base64::encode_string(&plain), "KeyId": name })
        }
        _ => return kms_error(400, "UnknownOperationException", ""),
    };
    Response::status(200)
        .header("content-type", "application/x-amz-json-1.1")
        .body(answer.to_string())
}

fn vault(request: &Request, state: &State) -> Response {
    if request.headers.get("x-vault-request").map(String::as_str) != Some("true") {
        return vault_error(412, "missing required header X-Vault-Request");
    }
    if request.headers.get("x-vault-token").map(String::as_str) != Some(VAULT_TOKEN) {
        return vault_error(403, "permission denied");
    }
    if request.headers.get("x-vault-namespace").is_some_and(|name| name != "team-a") {
        return vault_error(403, "permission denied");
    }
    let path: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    let ["v1", "transit", action, name] = path.as_slice() else {
        return vault_error(404, "no handler for route. route entry not found.");
    };
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
        return vault_error(400, "failed to parse JSON input");
    };
    let Some(key) = state.keys.get(*name) else {
        return match *action {
            // The token may not create keys, and encrypting would.
            "encrypt" => vault_error(403, "1 error occurred:\n\t* permission denied\n\n"),
            _ => vault_error(400, "encryption key not found"),
        };
    };
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    let context = Base64::decode_vec(text("context")).unwrap_or_default();
    if key.derived && context.is_empty() {
        return vault_error(
            400,
            "missing 'context' for key derivation; the key was created using a derived key, which means additional, per-request information must be included in order to perform operations with the key",
        );
    }
    let mut secret = key.secret;
    if key.derived {
        secret.copy_from_slice(&sign(&key.secret, &String::from_utf8_lossy(&context)));
    }
    let aad = Base64::decode_vec(text("associated_data")).unwrap_or_default();
    let data = match *action {
        "encrypt" => {
            let plain = Base64::decode_vec(text("plaintext")).unwrap();
            let sealed = seal(&secret, &aad, &plain);
            json!({ "ciphertext": format!("vault:v1:{}", Base64::encode_string(&sealed)), "key_version": 1 })
        }
        "decrypt" => {
            let Some(sealed) = text("ciphertext").strip_prefix("vault:v1:") else {
                return vault_error(400, "invalid ciphertext: no prefix");
            };
            let sealed = Base64::decode_vec(sealed).unwrap_or_default();
            let Some(plain) = open(&secret, &aad, &sealed) else {
                return vault_error(400, "cipher: message authentication failed");
            };
            json!({ "plaintext": Base64::encode_string(&plain) })
        }
        _ => return vault_error(404, "unsupported path"),
    };
    Response::status(200)
        .header("content-type", "application/json")
        .body(json!({ "request_id": "1", "data": data }).to_string())
}
