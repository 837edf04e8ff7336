//! Where credentials come from: files, and stand-ins of the services that machines and containers
//! ask. Expiring ones are renewed while the store is open.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use backstay_store::{ErrorKind, RetryPolicy, Store, StoreOptions};
use support::http::{Request, Response, Server};

/// By whose key, and with which token, requests were signed.
type Seen = Arc<Mutex<Vec<(String, String)>>>;

/// A bucket that notes by whose key, and with which token, each request was signed.
fn bucket() -> (Server, Seen) {
    let seen: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let server = Server::start(move |request: &Request| {
        let signature = &request.headers["authorization"];
        let key = signature.split("Credential=").nth(1).unwrap().split('/').next().unwrap();
        let token = request.headers.get("x-amz-security-token").cloned().unwrap_or_default();
        noted.lock().unwrap().push((key.to_owned(), token));
        Response::status(200)
            .header("last-modified", "Sat, 21 Nov 2026 08:00:00 GMT")
            .header("etag", "\"e\"")
            .body("x")
    });
    (server, seen)
}

fn options(bucket: &Server, variables: &[(&str, &str)]) -> StoreOptions {
    let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    StoreOptions {
        endpoint: Some(bucket.url()),
        allow_http: true,
        variables: Some(variables.collect()),
        retries: RetryPolicy::NONE,
        ..StoreOptions::default()
    }
}

fn open(bucket: &Server, variables: &[(&str, &str)]) -> Store {
    Store::open("s3://bucket/p", &options(bucket, variables)).unwrap()
}

#[test]
fn files_of_amazons_tools_are_read_and_read_again() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".aws");
    std::fs::create_dir(&folder).unwrap();
    let write = |id: &str| {
        let text = format!(
            "[default]\naws_access_key_id = {id}\naws_secret_access_key = secret\n\
             [work]\naws_access_key_id = work-{id}\naws_secret_access_key = secret\n\
             aws_session_token = token-{id}\n"
        );
        std::fs::write(folder.join("credentials"), text).unwrap();
    };
    write("first");
    std::fs::write(folder.join("config"), "[profile sso]\nsso_session = x\n").unwrap();
    let home = home.path().to_str().unwrap();
    let (server, seen) = bucket();
    let last = || seen.lock().unwrap().last().cloned().unwrap();

    let default = open(&server, &[("HOME", home)]);
    default.read("k").unwrap();
    assert_eq!(last(), ("first".to_owned(), String::new()));
    let work = open(&server, &[("HOME", home), ("AWS_PROFILE", "work")]);
    work.read("k").unwrap();
    assert_eq!(last(), ("work-first".to_owned(), "token-first".to_owned()));
    // Variables go first.
    let keys = [("AWS_ACCESS_KEY_ID", "given"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    open(&server, &[&[("HOME", home)][..], &keys].concat()).read("k").unwrap();
    assert_eq!(last().0, "given");

    // Somebody renews them while the store is open.
    write("renewed");
    let ahead = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    let file = std::fs::File::options().write(true).open(folder.join("credentials")).unwrap();
    file.set_modified(ahead).unwrap();
    work.read("k").unwrap();
    assert_eq!(last(), ("work-renewed".to_owned(), "token-renewed".to_owned()));

    for (profile, words) in [("sso", "sso_session"), ("nobody", "no profile \"nobody\"")] {
        let options = options(&server, &[("HOME", home), ("AWS_PROFILE", profile)]);
        let error = Store::open("s3://bucket/p", &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// The answer of Amazon's metadata services: keys that expire at once, others each time.
fn keys(count: &AtomicU64) -> Response {
    let n = count.fetch_add(1, Ordering::SeqCst);
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
    Response::status(200).header("content-type", "application/json").body(format!(
        "{{\"AccessKeyId\":\"role-{n}\",\"SecretAccessKey\":\"secret\",\"Token\":\"token-{n}\",\
         \"Expiration\":\"{soon:.0}\",\"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\
         \"LastUpdated\":\"{soon:.0}\"}}"
    ))
}

/// Reads until the keys are others than at first.
fn is_renewed(store: &Store, seen: &Mutex<Vec<(String, String)>>) {
    let started = std::time::Instant::now();
    loop {
        store.read("k").unwrap();
        let seen = seen.lock().unwrap();
        let (first, last) = (seen.first().unwrap(), seen.last().unwrap());
        assert!(last.0.starts_with("role-") && last.1.starts_with("token-"), "{last:?}");
        if first != last {
            return;
        }
        drop(seen);
        assert!(started.elapsed().as_secs() < 20, "they are never renewed");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn a_machines_own_role_is_asked_for_and_renewed() {
    let count = AtomicU64::new(0);
    let metadata = Server::start(move |request| match (request.method.as_str(), &*request.path) {
        ("PUT", "/latest/api/token") => {
            assert!(request.headers.contains_key("x-aws-ec2-metadata-token-ttl-seconds"));
            Response::status(200).body("session")
        }
        ("GET", path) => {
            assert_eq!(request.headers["x-aws-ec2-metadata-token"], "session");
            match path {
                "/latest/meta-data/iam/security-credentials/" => Response::status(200).body("role"),
                "/latest/meta-data/iam/security-credentials/role" => keys(&count),
                _ => Response::status(404),
            }
        }
        _ => Response::status(404),
    });
    let (server, seen) = bucket();
    let store = open(&server, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata.url())]);
    is_renewed(&store, &seen);
}

#[test]
fn a_containers_role_is_asked_for_and_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "of the pod").unwrap();
    let count = AtomicU64::new(0);
    let agent = Server::start(move |request| {
        assert_eq!(request.headers["authorization"], "of the pod");
        keys(&count)
    });
    let (server, seen) = bucket();
    let store = open(
        &server,
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{}/v1/credentials", agent.url())),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap()),
        ],
    );
    is_renewed(&store, &seen);
}

#[test]
fn azures_managed_identity_is_asked_for() {
    let metadata = Server::start(|request| {
        assert_eq!(request.headers["metadata"], "true");
        assert_eq!(request.query["resource"], "https://storage.azure.com");
        Response::status(200).header("content-type", "application/json").body(
            "{\"access_token\":\"managed\",\"expires_on\":\"4000000000\",\
             \"resource\":\"https://storage.azure.com\",\"token_type\":\"Bearer\"}",
        )
    });
    let server = Server::start(|request| {
        assert_eq!(request.headers["authorization"], "Bearer managed");
        Response::status(200)
            .header("last-modified", "Sat, 21 Nov 2026 08:00:00 GMT")
            .header("etag", "\"e\"")
            .body("x")
    });
    let options = options(
        &server,
        &[
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
            ("AZURE_MSI_ENDPOINT", &format!("{}/metadata/identity/oauth2/token", metadata.url())),
        ],
    );
    let store = Store::open("az://container/p", &options).unwrap();
    assert_eq!(store.read("k").unwrap(), "x");
    // A creation is dressed and signed again: the token stays the only one.
    store.create("k", vec![1].into()).unwrap();
}

const BUCKET: &str = "BACKSTAY_TEST_BUCKET";

/// Reads by the token of the machine until that was renewed. Does nothing when it is run as a test.
#[test]
fn reads_as_a_machine_of_google() {
    let Ok(endpoint) = std::env::var(BUCKET) else { return };
    let options = StoreOptions {
        endpoint: Some(endpoint),
        allow_http: true,
        retries: RetryPolicy::NONE,
        ..StoreOptions::default()
    };
    let store = Store::open("gs://bucket/p", &options).unwrap();
    let started = std::time::Instant::now();
    while store.read("k").unwrap() != "renewed" {
        assert!(started.elapsed().as_secs() < 20, "the token is never renewed");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_machine_of_google_asks_its_metadata_service_and_again() {
    let count = AtomicU64::new(0);
    let metadata = Server::start(move |request| {
        assert_eq!(request.headers["metadata-flavor"], "Google");
        let path = "/computeMetadata/v1/instance/service-accounts/default/token";
        assert_eq!(request.path, path);
        let n = count.fetch_add(1, Ordering::SeqCst);
        Response::status(200).header("content-type", "application/json").body(format!(
            "{{\"access_token\":\"token-{n}\",\"expires_in\":1,\"token_type\":\"Bearer\"}}"
        ))
    });
    let server = Server::start(|request| {
        let token = request.headers["authorization"].strip_prefix("Bearer token-").unwrap();
        let renewed = token.parse::<u64>().unwrap() > 0;
        Response::status(200)
            .header("last-modified", "Sat, 21 Nov 2026 08:00:00 GMT")
            .header("etag", "\"e\"")
            .body(if renewed { "renewed" } else { "first" })
    });
    let home = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["reads_as_a_machine_of_google", "--exact", "--test-threads=1"])
        .env_clear()
        // No files of an administrator who runs the tests.
        .env("HOME", home.path())
        .env(BUCKET, server.url())
        .env("GCE_METADATA_HOST", metadata.url().trim_start_matches("http://"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Who asked Google's bucket, and a bucket that notes it.
fn google_bucket() -> (Server, Arc<Mutex<Vec<String>>>) {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let server = Server::start(move |request: &Request| {
        noted.lock().unwrap().push(request.headers["authorization"].clone());
        Response::status(200)
            .header("last-modified", "Sat, 21 Nov 2026 08:00:00 GMT")
            .header("etag", "\"e\"")
            .header("x-goog-generation", "1")
            .body("{}")
    });
    (server, seen)
}

/// Exchanges `platform-N` for `sts-platform-N`, and that for `account-sts-platform-N`.
fn exchange() -> Server {
    Server::start(|request: &Request| {
        let body = String::from_utf8(request.body.clone()).unwrap();
        match request.path.as_str() {
            "/token" => {
                assert!(
                    body.contains(
                        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange"
                    ),
                    "{body}"
                );
                assert!(body.contains("audience=%2F%2Fiam.example%2Fpool"), "{body}");
                let token = body.split("subject_token=").nth(1).unwrap().split('&').next().unwrap();
                if token == "stolen" {
                    return Response::status(400).body(
                        "{\"error\":\"invalid_grant\",\"error_description\":\"not from here\"}",
                    );
                }
                // So soon over that it is asked for each time.
                Response::status(200)
                    .body(format!("{{\"access_token\":\"sts-{token}\",\"expires_in\":60}}"))
            }
            "/account:generateAccessToken" => {
                let bearer = request.headers["authorization"].strip_prefix("Bearer ").unwrap();
                assert!(body.contains("\"lifetime\":\"1800s\""), "{body}");
                Response::status(200).body(format!(
                    "{{\"accessToken\":\"account-{bearer}\",\"expireTime\":\"2099-01-01T00:00:00Z\"}}"
                ))
            }
            "/platform" => {
                assert_eq!(request.headers["x-proof"], "yes");
                Response::status(200).body("{\"id_token\":\"from-address\"}")
            }
            other => panic!("{other}"),
        }
    })
}

#[test]
fn tokens_of_a_platform_are_exchanged_for_googles() {
    let (bucket, seen) = google_bucket();
    let exchange = exchange();
    let home = tempfile::tempdir().unwrap();
    let (token, file) = (home.path().join("token"), home.path().join("federation.json"));
    let write = |source: serde_json::Value, as_account: bool| {
        let mut content = serde_json::json!({
            "type": "external_account",
            "audience": "//iam.example/pool",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": format!("{}/token", exchange.url()),
            "credential_source": source,
        });
        if as_account {
            content["service_account_impersonation_url"] =
                format!("{}/account:generateAccessToken", exchange.url()).into();
            content["service_account_impersonation"] =
                serde_json::json!({ "token_lifetime_seconds": 1800 });
        }
        std::fs::write(&file, content.to_string()).unwrap();
    };
    let variables = [("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())];
    let open = || Store::open("gs://bucket/p", &options(&bucket, &variables));
    let last = || seen.lock().unwrap().last().cloned().unwrap();

    // A file, which the platform renews.
    std::fs::write(&token, "platform-1\n").unwrap();
    write(serde_json::json!({ "file": token }), false);
    let store = open().unwrap();
    store.read("k").unwrap();
    assert_eq!(last(), "Bearer sts-platform-1");
    std::fs::write(&token, "platform-2").unwrap();
    store.create("packs/k", b"x".to_vec().into()).unwrap();
    assert_eq!(last(), "Bearer sts-platform-2");

    // JSON, and a service account on top, whose token lasts.
    std::fs::write(&token, "{\"t\":\"platform-3\"}").unwrap();
    let format = serde_json::json!({ "type": "json", "subject_token_field_name": "t" });
    write(serde_json::json!({ "file": token, "format": format }), true);
    let store = open().unwrap();
    store.read("k").unwrap();
    assert_eq!(last(), "Bearer account-sts-platform-3");
    std::fs::remove_file(&token).unwrap();
    store.read("k").unwrap();
    assert_eq!(last(), "Bearer account-sts-platform-3");
    let before = seen.lock().unwrap().len();
    let error = open().unwrap().read("k").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("the token in"), "{error}");

    // An address.
    let format = serde_json::json!({ "type": "json", "subject_token_field_name": "id_token" });
    let headers = serde_json::json!({ "x-proof": "yes" });
    let url = format!("{}/platform", exchange.url());
    write(serde_json::json!({ "url": url, "headers": headers, "format": format }), false);
    open().unwrap().read("k").unwrap();
    assert_eq!(last(), "Bearer sts-from-address");

    // Refused: said, and with which words; nothing is asked without a token.
    std::fs::write(&token, "stolen").unwrap();
    write(serde_json::json!({ "file": token }), false);
    let error = open().unwrap().read("k").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("not from here"), "{error}");
    assert!(!error.to_string().contains("stolen"), "{error}");
    assert_eq!(seen.lock().unwrap().len(), before + 1);

    // What is not understood is named before anything is asked.
    for (source, words) in [
        (serde_json::json!({ "environment_id": "aws1" }), "`environment_id`"),
        (serde_json::json!({ "executable": { "command": "x" } }), "`executable`"),
    ] {
        write(source, false);
        let error = open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    std::fs::write(&file, "{\"type\":\"impersonated_service_account\"}").unwrap();
    let error = open().unwrap_err();
    assert!(error.to_string().contains("impersonated_service_account"), "{error}");
}
