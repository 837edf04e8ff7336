//! Buckets and containers: the conformance suite on real servers, and every answer that must not
//! be taken for "not found".
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use backstay_store::{
    Bytes, Environment, ErrorKind, RetryPolicy, Store, StoreOptions, conformance,
};
use support::everything_fails;
use support::gcs::Gcs;
use support::http::{Request, Response, Server};

/// Every case of the suite below a prefix of its own.
fn conforms(bucket: &str, options: &StoreOptions) {
    let count = Cell::new(0);
    conformance::run(&|| {
        count.set(count.get() + 1);
        Store::open(&format!("{bucket}/some/where/{}", count.get()), options).unwrap()
    });
    // And at the root of the bucket, which holds all of the above.
    let store = Store::open(bucket, options).unwrap();
    assert!(store.list("some/where/1").unwrap().len() > 1);
    store.create("format", Bytes::from_static(b"x")).unwrap();
    assert_eq!(store.list("format").unwrap().len(), 1);
}

fn once(options: &StoreOptions) -> StoreOptions {
    StoreOptions { retries: RetryPolicy::NONE, ..options.clone() }
}

#[test]
fn s3() {
    let Some(server) = support::servers::s3() else { return };
    conforms("s3://backstay", &server.options);

    let nowhere = Store::open("s3://no-such-bucket/p", &once(&server.options)).unwrap();
    everything_fails("no bucket", &nowhere, &[ErrorKind::Configuration]);
    let wrong = server.with(&[("AWS_SECRET_ACCESS_KEY", "another-secret")]);
    let refused = Store::open("s3://backstay/p", &wrong).unwrap();
    everything_fails("wrong secret", &refused, &[ErrorKind::Denied]);

    let options = once(&server.options);
    drop(server);
    let gone = Store::open("s3://backstay/p", &options).unwrap();
    everything_fails("server gone", &gone, &[ErrorKind::Transient]);
}

#[test]
fn azure() {
    let Some(server) = support::servers::azure() else { return };
    conforms("az://backstay", &server.options);

    let nowhere = Store::open("az://no-such-container/p", &once(&server.options)).unwrap();
    everything_fails("no container", &nowhere, &[ErrorKind::Configuration]);
    let wrong = server.with(&[("AZURE_STORAGE_ACCOUNT_KEY", "YW5vdGhlci1zZWNyZXQ=")]);
    let refused = Store::open("az://backstay/p", &wrong).unwrap();
    everything_fails("wrong key", &refused, &[ErrorKind::Denied]);

    let options = once(&server.options);
    drop(server);
    let gone = Store::open("az://backstay/p", &options).unwrap();
    everything_fails("server gone", &gone, &[ErrorKind::Transient]);
}

#[test]
fn another_s3() {
    let Some(server) = support::servers::other_s3() else { return };
    conforms("s3://backstay", &server.options);
    let nowhere = Store::open("s3://no-such-bucket/p", &once(&server.options)).unwrap();
    everything_fails("no bucket", &nowhere, &[ErrorKind::Configuration]);
}

fn gcs_options(server: &Server) -> StoreOptions {
    StoreOptions {
        endpoint: Some(server.url()),
        allow_http: true,
        variables: Some(vec![("GOOGLE_BEARER_TOKEN".to_owned(), "token".to_owned())]),
        ..StoreOptions::default()
    }
}

#[test]
fn google() {
    let Some(server) = support::servers::google() else { return };
    conforms("gs://backstay", &server.options);
    let options = once(&server.options);
    drop(server);
    let gone = Store::open("gs://backstay/p", &options).unwrap();
    everything_fails("server gone", &gone, &[ErrorKind::Transient]);
}

/// With what the emulator lacks: pages of listings, and the words of the real service.
#[test]
fn another_google() {
    let server = Gcs::start("backstay", true);
    let options = gcs_options(&server);
    conforms("gs://backstay", &options);

    let nowhere = Store::open("gs://no-such-bucket/p", &once(&options)).unwrap();
    everything_fails("no bucket", &nowhere, &[ErrorKind::Configuration]);
}

#[test]
fn the_probe_refuses_a_service_that_ignores_conditions() {
    let server = Gcs::start("backstay", false);
    let store = Store::open("gs://backstay/p", &gcs_options(&server)).unwrap();
    let error = store.probe().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("conditional writes"), "{error}");
    assert_eq!(store.list("").unwrap(), []);
}

/// A store that asks a server which answers as `handler` says, with retries that take no time.
fn scripted(
    handler: impl Fn(&Request) -> Response + Send + Sync + 'static,
) -> (Server, Store, StoreOptions) {
    let server = Server::start(handler);
    let options = StoreOptions {
        endpoint: Some(server.url()),
        allow_http: true,
        variables: Some(vec![
            ("AWS_ACCESS_KEY_ID".to_owned(), "id".to_owned()),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), "secret".to_owned()),
        ]),
        ..StoreOptions::default()
    };
    let store = Store::open("s3://bucket/p", &options).unwrap();
    (server, store.with_environment(Environment::seeded(1)), options)
}

fn object(body: &[u8]) -> Response {
    Response::status(200)
        .header("last-modified", "Sat, 21 Nov 2026 08:00:00 GMT")
        .header("etag", "\"e\"")
        .body(body)
}

#[test]
fn a_creation_answered_with_503_that_took_place_is_ours() {
    let objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
    let stored = Arc::clone(&objects);
    let (_server, store, _) = scripted(move |request| {
        let mut objects = stored.lock().unwrap();
        match request.method.as_str() {
            "PUT" if objects.contains_key(&request.path) => {
                Response::error(412, "PreconditionFailed")
            }
            "PUT" => {
                assert_eq!(request.headers["if-none-match"], "*");
                objects.insert(request.path.clone(), request.body.clone());
                Response::error(503, "SlowDown")
            }
            _ => match objects.get(&request.path) {
                Some(body) => object(body),
                None => Response::error(404, "NoSuchKey"),
            },
        }
    });
    store.create("k", Bytes::from_static(b"ours")).unwrap();
    let error = store.create("k", Bytes::from_static(b"others")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(*objects.lock().unwrap()["/bucket/p/k"], *b"ours");
}

#[test]
fn two_creations_at_once_are_tried_again() {
    let calls = AtomicU64::new(0);
    let (_server, store, _) = scripted(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Response::error(409, "ConditionalRequestConflict"),
        _ => Response::status(200).header("etag", "\"e\""),
    });
    store.create("k", Bytes::from_static(b"x")).unwrap();
}

#[test]
fn answers_that_are_cut_short_or_never_come_are_tried_again() {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let (_server, store, _) = scripted(move |_| match counted.fetch_add(1, Ordering::SeqCst) {
        0 => Response { cut: Some(4), ..object(b"whole body") },
        1 => Response { hang_up: true, ..Response::default() },
        2 => Response::error(500, "InternalError"),
        3 => Response::error(429, "TooManyRequests"),
        _ => object(b"whole body"),
    });
    assert_eq!(store.read("k").unwrap(), "whole body");
    assert_eq!(calls.load(Ordering::SeqCst), 5);
}

#[test]
fn a_head_that_is_not_found_asks_whether_the_bucket_is_there() {
    for (listing, kind) in [
        (Response::error(404, "NoSuchBucket"), ErrorKind::Configuration),
        (Response::error(403, "AccessDenied"), ErrorKind::Denied),
        (Response::error(503, "SlowDown"), ErrorKind::Transient),
        (Response::status(200).body("<ListBucketResult></ListBucketResult>"), ErrorKind::NotFound),
    ] {
        let (_server, _, options) = scripted(move |request| {
            if request.query.contains_key("list-type") {
                return listing.clone();
            }
            Response::status(404)
        });
        let store = Store::open("s3://bucket/p", &once(&options)).unwrap();
        assert_eq!(store.head("k").unwrap_err().kind(), kind);
        // A 404 with a body that is not the service's: a proxy's, say.
        assert_eq!(store.read("k").unwrap_err().kind(), kind);
        assert_eq!(store.read_range("k", 0..4).unwrap_err().kind(), kind);
    }
}

#[test]
fn every_refusal_is_denied_and_names_the_reason() {
    for (status, code) in [(403, "AccessDenied"), (401, "Unauthorized"), (400, "ExpiredToken")] {
        let (_server, store, _) = scripted(move |_| Response::error(status, code));
        everything_fails(code, &store, &[ErrorKind::Denied]);
        let message = store.read("k").unwrap_err().to_string();
        assert!(message.contains(code), "{message}");
    }
}

/// The handler of a service that is asked too often: it refuses so many times, then gives in.
fn overwhelmed(
    refusals: u64,
    refusal: Response,
) -> (Arc<AtomicU64>, impl Fn(&Request) -> Response + Send + Sync + 'static) {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let handler = move |request: &Request| match counted.fetch_add(1, Ordering::SeqCst) {
        n if n < refusals => refusal.clone(),
        _ if request.query.contains_key("list-type") => {
            Response::status(200).body("<ListBucketResult></ListBucketResult>")
        }
        _ if request.method == "DELETE" => Response::status(204),
        _ => object(b"x"),
    };
    (calls, handler)
}

#[test]
fn retry_after_is_honoured_on_every_verb() {
    type Verb = (&'static str, fn(&Store) -> backstay_store::Result<()>);
    let verbs: [Verb; 5] = [
        ("create", |store| store.create("k", Bytes::from_static(b"x"))),
        ("read", |store| store.read("k").map(drop)),
        ("head", |store| store.head("k").map(drop)),
        ("list", |store| store.list("k").map(drop)),
        // Its first question is whether the bucket has locks.
        ("delete", |store| store.delete("k")),
    ];
    std::thread::scope(|scope| {
        for (verb, call) in verbs {
            for (status, code) in [(429, "TooManyRequests"), (503, "SlowDown")] {
                scope.spawn(move || {
                    let refusal = Response::error(status, code).header("retry-after", "1");
                    let (calls, handler) = overwhelmed(1, refusal);
                    let (_server, store, _) = scripted(handler);
                    let started = std::time::Instant::now();
                    call(&store).unwrap();
                    // The clock of the handle does not move by itself: only the line waits.
                    assert!(started.elapsed().as_millis() >= 990, "{verb} did not wait");
                    assert!(calls.load(Ordering::SeqCst) >= 2, "{verb}");
                });
            }
        }
    });
}

#[test]
fn a_service_that_is_overwhelmed_is_asked_by_fewer_at_once() {
    // It takes four at once and refuses the rest, as a bucket with a limit does.
    let (at_once, most, refused) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (now, peak, no) = (Arc::clone(&at_once), Arc::clone(&most), Arc::clone(&refused));
    let (_server, _, options) = scripted(move |_| {
        let mine = now.fetch_add(1, Ordering::SeqCst) + 1;
        peak.fetch_max(mine, Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(5));
        now.fetch_sub(1, Ordering::SeqCst);
        if mine > 4 {
            no.fetch_add(1, Ordering::SeqCst);
            return Response::error(503, "SlowDown");
        }
        object(b"x")
    });
    // With waits that are real: a service is spared by them too.
    let store = Store::open("s3://bucket/p", &options).unwrap();
    let read_by_16 = |each: usize| {
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    for _ in 0..each {
                        // On a machine that is busy itself the patience of one call may end.
                        while let Err(error) = store.read("k") {
                            assert!(error.is_transient(), "{error}");
                        }
                    }
                });
            }
        });
    };
    read_by_16(30);
    assert!(most.load(Ordering::SeqCst) > 4, "nothing was ever refused");
    // 480 reads by sixteen at once: a service that is not spared refuses three for each it answers.
    let refused = refused.load(Ordering::SeqCst);
    assert!(refused < 480, "{refused} were refused");
}

#[test]
fn a_service_that_received_other_bytes_is_not_believed() {
    let other = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    let (_server, store, _) = scripted(move |request| {
        let sum = &request.headers["x-amz-checksum-sha256"];
        assert_eq!(sum, "LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE=");
        Response::status(200).header("etag", "\"e\"").header("x-amz-checksum-sha256", other)
    });
    let error = store.create("k", Bytes::from_static(b"x")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(error.to_string().contains("other bytes than were sent"), "{error}");

    let server = Server::start(|request| {
        let body = String::from_utf8_lossy(&request.body);
        assert!(body.contains("\"crc32c\":\"qTxfkw==\""), "{body}");
        Response::status(200).body("{\"name\":\"p/k\",\"crc32c\":\"AAAAAA==\"}")
    });
    let store = Store::open("gs://bucket/p", &gcs_options(&server)).unwrap();
    let error = store.create("k", Bytes::from_static(b"x")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}

#[test]
fn a_full_store_is_no_space() {
    let (_server, store, _) = scripted(|_| Response::error(507, "InsufficientStorage"));
    let error = store.create("k", Bytes::from_static(b"x")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
}

#[test]
fn a_store_works_from_within_a_runtime() {
    let (_server, store, _) = scripted(|_| object(b"x"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(async { store.read("k") }).unwrap(), "x");
}

#[test]
fn addresses_that_cannot_be_used_say_why() {
    let options = StoreOptions { variables: Some(Vec::new()), ..StoreOptions::default() };
    let plain = StoreOptions { endpoint: Some("http://10.0.0.1".into()), ..options.clone() };
    for (url, options, words) in [
        ("", &options, "a store is one of"),
        ("backups", &options, "a store is one of"),
        ("file://backups", &options, "must be absolute"),
        ("ftp://host/x", &options, "ftp: is not a kind of store"),
        ("s3://", &options, "must name a bucket"),
        ("s3:///prefix", &options, "must name a bucket"),
        ("s3://bucket/p?token=secret", &options, "not part of it"),
        ("s3://id:secret@bucket/p", &options, "not part of it"),
        ("s3://bucket/a//b", &options, "cannot begin"),
        ("s3://bucket/p", &plain, "no TLS"),
        ("az://container/p", &options, "ccount"),
    ] {
        let error = Store::open(url, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration, "{url}");
        let message = error.to_string();
        assert!(message.contains(words) && !message.contains("secret"), "{url}: {message}");
    }
    for url in ["/x", "file:///x", "file:/x", "file://localhost/x", "memory:", "memory://"] {
        Store::open(url, &options).unwrap();
    }
    assert_eq!(Store::open("file:///x/y/", &options).unwrap().url(), "file:///x/y/");
}
