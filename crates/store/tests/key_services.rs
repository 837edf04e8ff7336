//! AWS KMS and Vault against stand-ins that check signatures, tokens and what a ciphertext is bound
//! to: what is wrapped comes back, and each failure is what it is.

#![cfg(feature = "key-services")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code)] // it serves other tests as well
#[path = "support/http.rs"]
mod http;
#[path = "support/key_services.rs"]
mod key_services;

use std::time::Duration;

use backstay_store::{
    AwsKmsOptions, KeyService, KeyServiceErrorKind as Kind, RetryPolicy, VaultOptions,
};
use http::Response;
use key_services::*;

const REPOSITORY: &str = "00112233445566778899aabbccddeeff";

/// Tries soon.
const RETRIES: RetryPolicy = RetryPolicy {
    attempts: 4,
    first: Duration::from_millis(1),
    longest: Duration::from_millis(2),
    budget: Duration::from_secs(30),
};

fn variables(all: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
    Some(all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

fn kms_options(server: &StandIn, key: &str) -> AwsKmsOptions {
    AwsKmsOptions {
        key: key.to_owned(),
        endpoint: Some(server.url()),
        allow_http: true,
        retries: Some(RETRIES),
        variables: variables(&[
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_REGION", REGION),
        ]),
        ..AwsKmsOptions::default()
    }
}

fn kms(server: &StandIn, key: &str) -> KeyService {
    KeyService::aws_kms(&kms_options(server, key)).unwrap()
}

fn vault_options(server: &StandIn, key: &str) -> VaultOptions {
    VaultOptions {
        key: key.to_owned(),
        address: Some(server.url()),
        allow_http: true,
        retries: Some(RETRIES),
        variables: variables(&[("VAULT_TOKEN", VAULT_TOKEN)]),
        ..VaultOptions::default()
    }
}

fn vault(server: &StandIn, key: &str) -> KeyService {
    KeyService::vault(&vault_options(server, key)).unwrap()
}

/// Wraps with one, and says how the other fails to unwrap.
fn fails(wrapping: &KeyService, unwrapping: &KeyService, repository: &str) -> (Kind, String) {
    let wrapped = wrapping.wrap(&[5; 32], REPOSITORY).unwrap();
    let error = unwrapping.unwrap(&wrapped.ciphertext, repository).unwrap_err();
    assert!(error.hint().is_some(), "{error}");
    (error.kind(), error.to_string())
}

#[test]
fn what_is_wrapped_comes_back_and_is_bound() {
    let aws = StandIn::kms(&["one", "two"]);
    let transit = StandIn::vault(&["one", "two"]);
    transit.add_key("derived", true);
    let services: [(KeyService, KeyService, &str); 4] = [
        (kms(&aws, &arn("one")), kms(&aws, &arn("two")), "one"),
        (kms(&aws, "one"), kms(&aws, "two"), "one"),
        (vault(&transit, "one"), vault(&transit, "two"), "transit/one"),
        (vault(&transit, "derived"), vault(&transit, "two"), "transit/derived"),
    ];
    for (service, other, name) in &services {
        let wrapped = service.wrap(&[5; 32], REPOSITORY).unwrap();
        assert!(wrapped.key.ends_with(name), "{wrapped:?}");
        assert_eq!(*service.unwrap(&wrapped.ciphertext, REPOSITORY).unwrap(), vec![5; 32]);
        // Another key; another repository; something else altogether.
        assert_eq!(fails(service, other, REPOSITORY).0, Kind::NotOpened);
        assert_eq!(fails(service, service, "another").0, Kind::NotOpened);
        let error = service.unwrap("AAAA", REPOSITORY).unwrap_err();
        assert_eq!(error.kind(), Kind::NotOpened, "{error}");
        assert!(!format!("{service:?}").contains("hvs."));
    }
}

#[test]
fn who_may_not_is_denied_and_never_a_wrong_key() {
    let aws = StandIn::kms(&["one"]);
    let good = kms(&aws, "one");
    for (access, secret, said) in [
        ("AKIDOTHER", SECRET_KEY, "UnrecognizedClientException"),
        (ACCESS_KEY, "not-the-secret", "InvalidSignatureException"),
    ] {
        let mut options = kms_options(&aws, "one");
        options.variables = variables(&[
            ("AWS_ACCESS_KEY_ID", access),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_REGION", REGION),
        ]);
        let (kind, message) = fails(&good, &KeyService::aws_kms(&options).unwrap(), REPOSITORY);
        assert_eq!(kind, Kind::Denied, "{message}");
        assert!(message.contains(said), "{message}");
        assert!(!message.contains(secret), "{message}");
    }
    aws.fail_next(vec![]);
    let wrapped = good.wrap(&[5; 32], REPOSITORY).unwrap();
    aws.fail_next(vec![kms_error(
        400,
        "AccessDeniedException",
        "User: arn:x is not authorized to perform: kms:Decrypt",
    )]);
    let error = good.unwrap(&wrapped.ciphertext, REPOSITORY).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("not authorized to perform: kms:Decrypt"), "{error}");
    assert!(error.hint().unwrap().contains("kms:Decrypt"));
    // It is signed for another region than the service is in.
    let mut elsewhere = kms_options(&aws, "one");
    elsewhere.region = Some("us-east-1".into());
    let (kind, message) = fails(&good, &KeyService::aws_kms(&elsewhere).unwrap(), REPOSITORY);
    assert_eq!(kind, Kind::Denied, "{message}");

    let transit = StandIn::vault(&["one"]);
    let good = vault(&transit, "one");
    let mut options = vault_options(&transit, "one");
    options.variables = variables(&[("VAULT_TOKEN", "hvs.expired")]);
    let (kind, message) = fails(&good, &KeyService::vault(&options).unwrap(), REPOSITORY);
    assert_eq!(kind, Kind::Denied);
    assert!(message.contains("permission denied") && !message.contains("hvs."), "{message}");
    let mut options = vault_options(&transit, "one");
    options.namespace = Some("team-b".into());
    assert_eq!(fails(&good, &KeyService::vault(&options).unwrap(), REPOSITORY).0, Kind::Denied);
    options.namespace = Some("team-a".into());
    KeyService::vault(&options).unwrap().wrap(&[1; 32], REPOSITORY).unwrap();
    // A key that is not there is not made in passing.
    let error = vault(&transit, "typo").wrap(&[1; 32], REPOSITORY).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
}

#[test]
fn a_key_that_is_not_there_or_disabled_is_told_apart() {
    let aws = StandIn::kms(&["one"]);
    let service = kms(&aws, "one");
    assert_eq!(fails(&service, &kms(&aws, "gone"), REPOSITORY).0, Kind::Configuration);
    let wrapped = service.wrap(&[5; 32], REPOSITORY).unwrap();
    for (state, said) in
        [("Disabled", "DisabledException"), ("pending deletion", "KMSInvalidStateException")]
    {
        aws.set_state(&arn("one"), state);
        let error = service.unwrap(&wrapped.ciphertext, REPOSITORY).unwrap_err();
        assert_eq!(error.kind(), Kind::Unusable);
        assert!(error.to_string().contains(said), "{error}");
    }
    let transit = StandIn::vault(&["one"]);
    let service = vault(&transit, "one");
    assert_eq!(fails(&service, &vault(&transit, "gone"), REPOSITORY).0, Kind::Configuration);
    let mut options = vault_options(&transit, "one");
    options.mount = Some("elsewhere".into());
    let (kind, message) = fails(&service, &KeyService::vault(&options).unwrap(), REPOSITORY);
    assert_eq!(kind, Kind::Configuration);
    assert!(message.contains("no handler for route"), "{message}");
}

#[test]
fn what_passes_is_tried_again_and_what_does_not_is_given_up() {
    let cut = || Response { hang_up: true, ..Response::default() };
    type Make = fn(&StandIn, &str) -> KeyService;
    let cases: [(StandIn, Make, Vec<Response>); 2] = [
        (
            StandIn::kms(&["one"]),
            kms,
            vec![
                kms_error(400, "ThrottlingException", "Rate exceeded"),
                kms_error(500, "KMSInternalException", ""),
                cut(),
            ],
        ),
        (
            StandIn::vault(&["one"]),
            vault,
            vec![
                vault_error(429, "request path \"transit/decrypt/one\": rate limit quota exceeded"),
                vault_error(503, "Vault is sealed"),
                Response::status(502).body("<html>a proxy</html>"),
            ],
        ),
    ];
    for (server, make, passing) in cases {
        let service = make(&server, "one");
        let wrapped = service.wrap(&[5; 32], REPOSITORY).unwrap();
        server.fail_next(passing.clone());
        let before = server.requests();
        assert_eq!(*service.unwrap(&wrapped.ciphertext, REPOSITORY).unwrap(), vec![5; 32]);
        assert_eq!(server.requests() - before, 4);
        for failure in passing {
            server.fail_always(Some(failure));
            let before = server.requests();
            let error = service.unwrap(&wrapped.ciphertext, REPOSITORY).unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
            assert!(error.is_transient());
            assert!(error.hint().unwrap().contains("nothing is known to be wrong with the key"));
            assert_eq!(server.requests() - before, 4, "{error}");
        }
        // An answer that is none is no failure of the key either, and no success.
        server.fail_always(Some(Response::status(200).body("{}")));
        assert_eq!(
            service.unwrap(&wrapped.ciphertext, REPOSITORY).unwrap_err().kind(),
            Kind::Other
        );
        assert_eq!(service.wrap(&[1; 32], REPOSITORY).unwrap_err().kind(), Kind::Other);
    }
}

#[test]
fn a_service_that_is_gone_or_silent_is_unavailable() {
    // Takes connections and says nothing; where nobody takes any.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let aws = StandIn::kms(&["one"]);
    let transit = StandIn::vault(&["one"]);
    let retries = Some(RetryPolicy { budget: Duration::from_millis(300), ..RETRIES });
    for address in [silent.local_addr().unwrap(), gone] {
        let address = Some(format!("http://{address}"));
        let kms = AwsKmsOptions { endpoint: address.clone(), retries, ..kms_options(&aws, "one") };
        let vault = VaultOptions { address, retries, ..vault_options(&transit, "one") };
        for service in [KeyService::aws_kms(&kms), KeyService::vault(&vault)] {
            let error = service.unwrap().unwrap("AAAA", REPOSITORY).unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        }
    }
}

#[test]
fn what_cannot_be_used_is_refused_before_anything_is_sent() {
    let aws = StandIn::kms(&["one"]);
    let transit = StandIn::vault(&["one"]);
    let of_aws = |change: fn(&mut AwsKmsOptions)| {
        let mut options = kms_options(&aws, "one");
        change(&mut options);
        KeyService::aws_kms(&options).unwrap_err()
    };
    let of_vault = |change: fn(&mut VaultOptions)| {
        let mut options = vault_options(&transit, "one");
        change(&mut options);
        KeyService::vault(&options).unwrap_err()
    };
    let errors = [
        (of_aws(|o| o.allow_http = false), "no TLS"),
        (of_aws(|o| o.endpoint = Some("kms.local".into())), "begin with https://"),
        (of_aws(|o| o.endpoint = Some("https://u:p@kms".into())), "https://host:port"),
        (of_aws(|o| o.variables = Some(Vec::new())), "in which region"),
        (of_aws(|o| o.region = Some("a/b".into())), "is no region"),
        (of_aws(|o| o.key = String::new()), "has no name"),
        (of_vault(|o| o.allow_http = false), "no TLS"),
        (of_vault(|o| o.address = None), "where Vault is"),
        (of_vault(|o| o.key = "../sys/seal".into()), "is no name of a key"),
        (of_vault(|o| o.mount = Some("a/../b".into())), "is no name of a mount"),
        (of_vault(|o| o.token_file = Some("/nowhere/token".into())), "token-file"),
        (of_vault(|o| o.ca_file = Some("/nowhere/ca".into())), "ca-file"),
        (of_vault(|o| o.ca_file = Some("/etc/hostname".into())), "ca-file"),
    ];
    for (error, what) in errors {
        assert_eq!(error.kind(), Kind::Configuration, "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    let error = of_vault(|o| o.variables = Some(Vec::new()));
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("there is no token"));
    // No credentials at all: nothing answers where a machine's role would be.
    let mut options = kms_options(&aws, "one");
    options.variables =
        variables(&[("AWS_REGION", REGION), ("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")]);
    let error = KeyService::aws_kms(&options).unwrap().wrap(&[1; 32], REPOSITORY).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("no credentials"), "{error}");
    assert_eq!((aws.requests(), transit.requests()), (0, 0));
}
