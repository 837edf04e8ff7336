//! Objects that the store itself keeps, on real servers: locks, holds, and what a thief cannot do.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use backstay_store::{Bytes, ErrorKind, LockMode, LockPolicy, Store, StoreOptions};
use support::gcs::Gcs;
use support::http::{Request, Response, Server};
use support::servers::Running;

fn locked(server: &Running, mode: LockMode, period: Duration) -> StoreOptions {
    StoreOptions { lock: Some(LockPolicy { mode, period, extend: true }), ..server.options.clone() }
}

fn make_bucket(server: &Running, name: &str) {
    let headers = [("x-amz-bucket-object-lock-enabled", "true")];
    let made = server.admin().ask("PUT", &format!("/{name}"), &headers, "");
    assert_eq!(made.status, 200, "{}", made.body);
}

fn seconds_until(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::now()).unwrap_or_default().as_secs()
}

/// Tries until it is no longer locked.
fn delete_when_possible(store: &Store, key: &str) {
    let started = Instant::now();
    loop {
        match store.delete(key) {
            Ok(()) => return,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Locked, "{error}"),
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{key} stays locked");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A life of locked objects.
fn lives(server: &Running, bucket: &str) {
    make_bucket(server, bucket);
    let url = format!("s3://{bucket}/a prefix");
    for mode in [LockMode::Governance, LockMode::Compliance] {
        let policy = locked(server, mode, Duration::from_secs(3600));
        let store = Store::open(&url, &policy).unwrap();
        let key = format!("packs/{mode}");
        store.create(&key, Bytes::from_static(b"kept")).unwrap();
        let lock = store.lock(&key).unwrap().unwrap();
        assert_eq!((lock.mode, lock.held), (Some(mode), false));
        assert!((3500..=3600).contains(&seconds_until(lock.until.unwrap())), "{lock:?}");
        let error = store.delete(&key).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked);
        assert!(error.to_string().contains("locked until 20"), "{error}");

        // Longer, and never shorter.
        let now = SystemTime::now();
        store.extend_lock(&key, now + Duration::from_secs(7200)).unwrap();
        store.extend_lock(&key, now + Duration::from_secs(60)).unwrap();
        let lock = store.lock(&key).unwrap().unwrap();
        assert!(seconds_until(lock.until.unwrap()) > 7100, "{lock:?}");

        // What is gone within the day is not locked.
        store.create("probe/x", Bytes::new()).unwrap();
        assert_eq!(store.lock("probe/x").unwrap().unwrap().until, None);
        store.delete("probe/x").unwrap();
        assert!(store.lock("probe/x").unwrap_err().is_not_found());
        store.probe().unwrap();
        assert_eq!(store.list("probe/").unwrap(), []);
    }

    // A hold, put on and lifted by somebody whose configuration says nothing of locks.
    let plain = Store::open(&url, &server.options).unwrap();
    plain.create("snapshots/s", Bytes::from_static(b"evidence")).unwrap();
    plain.hold("snapshots/s", true).unwrap();
    assert!(plain.lock("snapshots/s").unwrap().unwrap().held);
    let error = plain.delete("snapshots/s").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.to_string().contains("on hold"), "{error}");
    plain.hold("snapshots/s", false).unwrap();
    plain.delete("snapshots/s").unwrap();

    // A lock that ran out: the bytes go, not only the name.
    let short = locked(server, LockMode::Governance, Duration::from_secs(2));
    let store = Store::open(&url, &short).unwrap();
    store.create("packs/short", Bytes::from_static(b"for two seconds")).unwrap();
    delete_when_possible(&store, "packs/short");
    assert!(store.read("packs/short").unwrap_err().is_not_found());
    let versions = server.admin().ask("GET", &format!("/{bucket}?versions"), &[], "");
    let left = versions.all("Key");
    assert!(!left.iter().any(|key| key.ends_with("short")), "{left:?}");
    assert!(left.iter().any(|key| key.ends_with("governance")), "{left:?}");
}

#[test]
fn seaweedfs_keeps_what_is_locked() {
    let Some(server) = support::servers::s3() else { return };
    lives(&server, "lives");

    // A bucket that locks all of its objects by itself.
    make_bucket(&server, "default");
    let rule = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule>\
                <DefaultRetention><Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule>\
                </ObjectLockConfiguration>";
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, rule.as_bytes());
    use base64::Engine as _;
    let sum = base64::engine::general_purpose::STANDARD.encode(sum);
    let headers = [("x-amz-checksum-sha256", sum.as_str())];
    let set = server.admin().ask("PUT", "/default?object-lock", &headers, rule);
    assert_eq!(set.status, 200, "{}", set.body);
    let store = Store::open("s3://default/p", &server.options).unwrap();
    store.create("packs/x", Bytes::from_static(b"x")).unwrap();
    assert!(store.lock("packs/x").unwrap().unwrap().until.is_some());
    assert_eq!(store.delete("packs/x").unwrap_err().kind(), ErrorKind::Locked);
    store.probe().unwrap();

    // And one that cannot lock: whoever asks for locks is told so before anything relies on them.
    let asks = locked(&server, LockMode::Governance, Duration::from_secs(60));
    let store = Store::open("s3://backstay/p", &asks).unwrap();
    let error = store.create("packs/x", Bytes::from_static(b"x")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
    let plain = Store::open("s3://backstay/p", &server.options).unwrap();
    plain.create("packs/x", Bytes::from_static(b"x")).unwrap();
    assert_eq!(plain.lock("packs/x").unwrap(), None);
    assert_eq!(plain.hold("packs/x", true).unwrap_err().kind(), ErrorKind::Configuration);
    plain.delete("packs/x").unwrap();
}

#[test]
fn moto_keeps_what_is_locked() {
    let Some(server) = support::servers::other_s3() else { return };
    lives(&server, "lives");
}

#[test]
fn azure_is_asked_for_immutability_in_its_own_words() {
    // Azurite has none of it: the requests are compared with Microsoft's reference.
    let asked: Arc<Mutex<Vec<Request>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let server = Server::start(move |request| {
        seen.lock().unwrap().push(request.clone());
        match request.method.as_str() {
            "HEAD" => Response::status(200)
                .header("content-length", "4")
                .header("x-ms-immutability-policy-mode", "Unlocked")
                .header("x-ms-immutability-policy-until-date", "Fri, 01 Jan 2077 00:00:00 GMT")
                .header("x-ms-legal-hold", "false"),
            "DELETE" => Response::error(409, "BlobImmutableDueToPolicy"),
            _ => Response::status(201)
                .header("etag", "\"e\"")
                .header("last-modified", "Sat, 21 Nov 2026 08:00:00 GMT"),
        }
    });
    let options = StoreOptions {
        endpoint: Some(format!("{}/account", server.url())),
        allow_http: true,
        variables: Some(vec![
            ("AZURE_STORAGE_ACCOUNT_NAME".to_owned(), "account".to_owned()),
            ("AZURE_STORAGE_ACCOUNT_KEY".to_owned(), "YmFja3N0YXktc2VjcmV0".to_owned()),
        ]),
        lock: Some(LockPolicy {
            mode: LockMode::Compliance,
            period: Duration::from_secs(3600),
            extend: true,
        }),
        ..StoreOptions::default()
    };
    let store = Store::open("az://container/p", &options).unwrap();
    store.create("packs/k", Bytes::from_static(b"kept")).unwrap();
    let lock = store.lock("packs/k").unwrap().unwrap();
    assert_eq!(lock.mode, Some(LockMode::Governance));
    assert_eq!(store.delete("packs/k").unwrap_err().kind(), ErrorKind::Locked);
    store.extend_lock("packs/k", SystemTime::now() + Duration::from_secs(u32::MAX.into())).unwrap();
    store.hold("packs/k", true).unwrap();
    let asked = asked.lock().unwrap();
    let of = |method: &str, comp: Option<&str>| {
        let found = asked
            .iter()
            .find(|r| r.method == method && r.query.get("comp").map(String::as_str) == comp);
        found.unwrap_or_else(|| panic!("no {method} {comp:?} in {asked:#?}"))
    };
    let put = of("PUT", None);
    assert_eq!(put.headers["x-ms-immutability-policy-mode"], "locked");
    assert!(put.headers["x-ms-immutability-policy-until-date"].ends_with(" GMT"));
    assert_eq!(put.headers["if-none-match"], "*");
    assert!(put.headers.contains_key("content-md5"));
    let extend = of("PUT", Some("immutabilityPolicies"));
    assert_eq!(extend.path, "/account/container/p/packs/k");
    assert_eq!(extend.headers["x-ms-immutability-policy-mode"], "locked");
    assert_eq!(of("PUT", Some("legalhold")).headers["x-ms-legal-hold"], "true");
    for request in asked.iter() {
        // Signed once, as it was sent: a second signature would be a second header line.
        assert!(request.headers["authorization"].starts_with("SharedKey account:"));
    }
}

#[test]
fn what_google_keeps_is_locked_and_not_denied() {
    // The answers are those of Google's reference.
    let cases = [
        (
            "Forbidden",
            "Object 'b/k' is subject to bucket's retention policy and cannot be deleted, \
             overwritten or archived until 2027-01-01T00:00:00-08:00",
            ErrorKind::Locked,
        ),
        ("RetentionPolicyNotMet", "", ErrorKind::Locked),
        (
            "Forbidden",
            "Object 'b/k' is under active Temporary hold and cannot be deleted, overwritten or \
             archived until hold is removed.",
            ErrorKind::Locked,
        ),
        ("AccessDenied", "the caller does not have storage.objects.delete", ErrorKind::Denied),
    ];
    for (code, message, kind) in cases {
        let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
        // It is kept since the question whether it is.
        let server = Server::start(move |request| match request.method.as_str() {
            "DELETE" => Response::status(403).body(body.clone()),
            _ => Response::status(200).body("{}"),
        });
        let options = StoreOptions {
            endpoint: Some(server.url()),
            allow_http: true,
            variables: Some(vec![("GOOGLE_BEARER_TOKEN".to_owned(), "token".to_owned())]),
            ..StoreOptions::default()
        };
        let store = Store::open("gs://bucket/p", &options).unwrap();
        let error = store.delete("packs/k").unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.to_string().contains("the store keeps it"), kind == ErrorKind::Locked);
    }
}

fn google(gcs: &Arc<Gcs>) -> (Server, StoreOptions) {
    let there = Arc::clone(gcs);
    let server = Server::start(move |request| there.answer(request));
    let options = StoreOptions {
        endpoint: Some(server.url()),
        allow_http: true,
        variables: Some(vec![("GOOGLE_BEARER_TOKEN".to_owned(), "token".to_owned())]),
        parts_above: Some(5 << 20),
        ..StoreOptions::default()
    };
    (server, options)
}

/// What the object, the bucket and people keep is seen before a removal, and respected.
#[test]
fn retention_and_holds_of_google() {
    let gcs = Arc::new(Gcs::new("backstay", true));
    let (_server, options) = google(&gcs);
    let plain = Store::open("gs://backstay/p", &options).unwrap();
    let now = SystemTime::now();
    let body = || Bytes::from_static(b"a");
    plain.create("packs/free", body()).unwrap();
    assert!(!plain.lock("packs/free").unwrap().unwrap().keeps(now));

    // Of the bucket.
    plain.create("packs/bucket", body()).unwrap();
    gcs.set("p/packs/bucket", "retentionExpirationTime", "2099-01-01T00:00:00Z".into());
    // Of somebody else.
    plain.create("packs/event", body()).unwrap();
    gcs.set("p/packs/event", "eventBasedHold", true.into());
    // Ours.
    plain.create("packs/held", body()).unwrap();
    plain.hold("packs/held", true).unwrap();
    assert!(plain.lock("packs/held").unwrap().unwrap().held);
    for key in ["packs/bucket", "packs/event", "packs/held"] {
        assert!(plain.lock(key).unwrap().unwrap().keeps(now), "{key}");
        assert_eq!(plain.delete(key).unwrap_err().kind(), ErrorKind::Locked, "{key}");
        assert_eq!(plain.read(key).unwrap(), "a");
    }
    plain.hold("packs/held", false).unwrap();
    plain.delete("packs/held").unwrap();
    plain.delete("packs/free").unwrap();
    plain.delete("packs/free").unwrap();

    // Locked by the store's own policy, in one piece and in parts.
    let period = Duration::from_secs(3600);
    for (mode, word) in [(LockMode::Governance, "Unlocked"), (LockMode::Compliance, "Locked")] {
        let lock = Some(LockPolicy { mode, period, extend: true });
        let store =
            Store::open("gs://backstay/l", &StoreOptions { lock, ..options.clone() }).unwrap();
        for (name, size) in [("small", 10), ("large", 6 << 20)] {
            let key = format!("packs/{name}-{mode}");
            store.create(&key, Bytes::from(vec![7; size])).unwrap();
            let lock = store.lock(&key).unwrap().unwrap();
            assert_eq!(lock.mode, Some(mode), "{key}");
            let left = lock.until.unwrap().duration_since(now).unwrap();
            assert!(left > period / 2, "{key}: {left:?}");
            let about = gcs.about(&format!("l/{key}")).unwrap();
            assert_eq!(about["retention"]["mode"], word, "{about}");
            assert_eq!(store.delete(&key).unwrap_err().kind(), ErrorKind::Locked);
            store.extend_lock(&key, now + 4 * period).unwrap();
            let longer = store.lock(&key).unwrap().unwrap().until.unwrap();
            assert!(longer > now + 3 * period, "{key}");
        }
        // Notes of sessions go within the day.
        store.create("sessions/s", body()).unwrap();
        store.delete("sessions/s").unwrap();
    }
}

/// A question that was refused is no answer.
#[test]
fn what_google_does_not_say_is_not_unlocked() {
    let gcs = Gcs::new("backstay", true);
    let server = Server::start(move |request| match request.path.starts_with("/storage/v1/") {
        true => support::gcs::error(403, "forbidden", "no storage.objects.get access"),
        false => gcs.answer(request),
    });
    let options = StoreOptions {
        endpoint: Some(server.url()),
        allow_http: true,
        variables: Some(vec![("GOOGLE_BEARER_TOKEN".to_owned(), "token".to_owned())]),
        ..StoreOptions::default()
    };
    let store = Store::open("gs://backstay/p", &options).unwrap();
    store.create("packs/a", Bytes::from_static(b"a")).unwrap();
    for error in [store.lock("packs/a").unwrap_err(), store.delete("packs/a").unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("storage.objects.get"), "{error}");
    }
    assert_eq!(store.read("packs/a").unwrap(), "a");
}
