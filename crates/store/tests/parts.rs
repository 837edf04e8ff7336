//! Large objects in parts: on real servers, on lines that break, and by processes that die.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use backstay_store::{Bytes, Environment, ErrorKind, LockMode, LockPolicy, Store, StoreOptions};
use support::gcs::Gcs;
use support::http::{Response, Server};
use support::proxy::{Harm, Proxy};
use support::servers::Running;

const MIB: usize = 1 << 20;

/// Three parts of 5, 5 and 2 MiB.
fn body(seed: u32) -> Bytes {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(12 * MIB).collect::<Vec<_>>().into()
}

fn in_parts(options: &StoreOptions) -> StoreOptions {
    StoreOptions { parts_above: Some(5 * MIB as u64), ..options.clone() }
}

/// What every service must do with parts.
fn arrives(url: &str, options: &StoreOptions) {
    let store = Store::open(url, &in_parts(options)).unwrap();
    store.create("packs/a/large", body(1)).unwrap();
    assert!(store.read("packs/a/large").unwrap() == body(1), "it came back otherwise");
    assert_eq!(store.head("packs/a/large").unwrap().size, 12 * MIB as u64);
    assert_eq!(store.list("").unwrap().len(), 1);
    // There is one: it stays, and nothing is left of the other.
    let error = store.create("packs/a/large", body(2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    assert!(store.read("packs/a/large").unwrap() == body(1), "it was replaced");
    let left = store.unfinished_uploads("packs/").unwrap();
    assert!(left.is_none_or(|left| left.is_empty()));
    store.delete("packs/a/large").unwrap();
    assert_eq!(store.list("").unwrap(), []);
}

#[test]
fn seaweedfs_takes_parts() {
    let Some(server) = support::servers::s3() else { return };
    arrives("s3://backstay/some/where", &server.options);
    dies_in_the_middle(&server, "s3://backstay/crash");
    broken_lines(&server, "s3://backstay/lines");
    are_locked(&server);
    removed_parts_are_sent_again(&server);
}

#[test]
fn moto_takes_parts() {
    let Some(server) = support::servers::other_s3() else { return };
    arrives("s3://backstay/some/where", &server.options);
    dies_in_the_middle(&server, "s3://backstay/crash");
    are_locked(&server);
}

#[test]
fn azurite_takes_parts() {
    let Some(server) = support::servers::azure() else { return };
    arrives("az://backstay/some/where", &server.options);
    broken_lines(&server, "az://backstay/lines");
}

fn google_options(server: &Server) -> StoreOptions {
    StoreOptions {
        endpoint: Some(server.url()),
        allow_http: true,
        variables: Some(vec![("GOOGLE_BEARER_TOKEN".to_owned(), "token".to_owned())]),
        ..StoreOptions::default()
    }
}

/// Google's takes them one after the other.
#[test]
fn google_takes_parts_in_order() {
    let gcs = Arc::new(Gcs::new("backstay", true));
    let there = Arc::clone(&gcs);
    let server = Server::start(move |request| there.answer(request));
    let options = google_options(&server);
    arrives("gs://backstay/some/where", &options);
    assert_eq!(gcs.unfinished(), 0);

    // Killed at each step, nothing shows, and sent again it is whole.
    let store = Store::open("gs://backstay/crash", &in_parts(&options)).unwrap();
    for failpoint in ["upload-begun", "upload-part-sent", "upload-part-sent:2"] {
        dies(failpoint, "gs://backstay/crash", &options);
        assert_eq!(store.list("").unwrap(), [], "{failpoint}");
        assert!(store.read("packs/w/s/dies").unwrap_err().is_not_found());
        assert_eq!(store.unfinished_uploads("packs/").unwrap(), None);
    }
    assert_eq!(gcs.unfinished(), 3);
    store.create("packs/w/s/dies", body(4)).unwrap();
    assert!(store.read("packs/w/s/dies").unwrap() == body(4));
}

#[test]
fn the_emulator_of_google_takes_parts_in_order() {
    let Some(server) = support::servers::google() else { return };
    let store = Store::open("gs://backstay/p", &in_parts(&server.options)).unwrap();
    store.create("packs/a/large", body(1)).unwrap();
    assert!(store.read("packs/a/large").unwrap() == body(1), "it came back otherwise");
    assert_eq!(store.head("packs/a/large").unwrap().size, 12 * MIB as u64);
    assert_eq!(store.list("").unwrap().len(), 1);
}

/// Whatever happens to one of the requests that send bytes, only what did not arrive is sent again.
#[test]
fn google_is_asked_how_far_it_is_after_a_failure() {
    let server = Gcs::start("backstay", true);
    // Which of the three, and how many bytes may be sent for 12 MiB.
    let cases = [
        ("cut", Harm::Cut(3 * MIB / 2), 1, 18),
        ("slow-down", Harm::Refused(503, "SlowDown"), 1, 18),
        ("answer-lost", Harm::AnswerLost, 1, 13),
        ("last-refused", Harm::Refused(500, "backendError"), 2, 15),
        ("last-lost", Harm::AnswerLost, 2, 13),
        // The sum is of all bytes, and so all are sent again.
        ("altered", Harm::Altered, 1, 25),
        // The service knows no more of it.
        ("gone", Harm::Refused(410, "gone"), 1, 23),
    ];
    for (name, harm, which, most) in cases {
        let count = AtomicU64::new(0);
        let proxy = Proxy::start(&server.url(), move |line| {
            let sends = line.starts_with("PUT") && line.contains("upload_id=");
            (sends && count.fetch_add(1, Ordering::SeqCst) == which).then_some(harm)
        });
        let options = StoreOptions { endpoint: Some(proxy.url()), ..google_options(&server) };
        let store = Store::open("gs://backstay/lines", &in_parts(&options)).unwrap();
        let store = store.with_environment(Environment::seeded(1));
        let key = format!("packs/{name}");
        store.create(&key, body(3)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let sent = proxy.received.load(Ordering::SeqCst);
        assert!(sent < most * MIB as u64, "{name}: {sent} bytes were sent for 12 MiB");
        let store = Store::open("gs://backstay/lines", &google_options(&server)).unwrap();
        assert!(store.read(&key).unwrap() == body(3), "{name}");
    }
}

#[test]
fn what_google_kept_of_a_part_is_not_sent_again() {
    let gcs = Gcs::new("backstay", true);
    let sent = Arc::new(AtomicU64::new(0));
    let (count, bytes) = (AtomicU64::new(0), Arc::clone(&sent));
    let server = Server::start(move |request| {
        bytes.fetch_add(request.body.len() as u64, Ordering::SeqCst);
        let sends = request.method == "PUT" && !request.body.is_empty();
        if sends && count.fetch_add(1, Ordering::SeqCst) == 1 {
            // 4 of 5 MiB arrive.
            let mut some = request.clone();
            some.body.truncate(4 * MIB);
            let first = 5 * MIB;
            some.headers.insert(
                "content-range".to_owned(),
                format!("bytes {first}-{}/*", first + 4 * MIB - 1),
            );
            assert_eq!(gcs.answer(&some).status, 308);
            return Response::status(503);
        }
        gcs.answer(request)
    });
    let store = Store::open("gs://backstay/p", &in_parts(&google_options(&server))).unwrap();
    let store = store.with_environment(Environment::seeded(1));
    store.create("packs/large", body(5)).unwrap();
    assert!(store.read("packs/large").unwrap() == body(5));
    // The second part, and a quarter of it once more: not 17.
    let sent = sent.load(Ordering::SeqCst);
    assert!(sent < 17 * MIB as u64 - MIB as u64 / 2 && sent > 12 * MIB as u64, "{sent}");
}

#[test]
fn a_service_that_keeps_nothing_is_given_up() {
    let server = Server::start(|request| match request.method.as_str() {
        "POST" => Response::status(200)
            .header("location", format!("http://{}/up?upload_id=SESSION", request.headers["host"])),
        "DELETE" => Response::status(499),
        _ => Response::status(308),
    });
    let store = Store::open("gs://backstay/p", &in_parts(&google_options(&server))).unwrap();
    let store = store.with_environment(Environment::seeded(1));
    let error = store.create("packs/large", body(5)).unwrap_err();
    assert!(error.to_string().contains("keeps nothing"), "{error}");
    assert!(!error.to_string().contains("SESSION"), "{error}");
}

/// The retention counts for an object in parts, too.
fn are_locked(server: &Running) {
    let headers = [("x-amz-bucket-object-lock-enabled", "true")];
    let made = server.admin().ask("PUT", "/locked", &headers, "");
    assert_eq!(made.status, 200, "{}", made.body);
    let period = Duration::from_secs(3600);
    let lock = Some(LockPolicy { mode: LockMode::Governance, period, extend: true });
    let options = StoreOptions { lock, ..in_parts(&server.options) };
    let store = Store::open("s3://locked/p", &options).unwrap();
    store.create("packs/large", body(1)).unwrap();
    let lock = store.lock("packs/large").unwrap().unwrap();
    let left = lock.until.unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(lock.mode == Some(LockMode::Governance) && left > period / 2, "{lock:?}");
    assert_eq!(store.delete("packs/large").unwrap_err().kind(), ErrorKind::Locked);
}

/// A name, what happens, and to which request.
type Case = (&'static str, Harm, fn(&str) -> bool);

/// Whatever befalls one part or the last step, it is done again, and nothing else is.
fn broken_lines(server: &Running, url: &str) {
    let part = |line: &str| {
        line.starts_with("PUT") && (line.contains("partNumber=2&") || line.contains("comp=block&"))
    };
    let last = |line: &str| {
        line.starts_with("POST") && line.contains("uploadId=") || line.contains("comp=blocklist")
    };
    let cases: [Case; 5] = [
        ("cut", Harm::Cut(3 * MIB / 2), part),
        ("slow-down", Harm::Refused(503, "SlowDown"), part),
        ("altered", Harm::Altered, part),
        ("last-refused", Harm::Refused(500, "InternalError"), last),
        ("last-lost", Harm::AnswerLost, last),
    ];
    for (name, harm, meant) in cases {
        let count = AtomicU64::new(0);
        let endpoint = server.options.endpoint.clone().unwrap();
        let proxy = Proxy::start(&endpoint, move |line| {
            (meant(line) && count.fetch_add(1, Ordering::SeqCst) == 0).then_some(harm)
        });
        let path: String = endpoint.splitn(4, '/').skip(3).map(|path| format!("/{path}")).collect();
        let options = StoreOptions {
            endpoint: Some(format!("{}{path}", proxy.url())),
            ..in_parts(&server.options)
        };
        let store = Store::open(url, &options).unwrap().with_environment(Environment::seeded(1));
        let key = format!("packs/{name}");
        store.create(&key, body(3)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let sent = proxy.received.load(Ordering::SeqCst);
        assert!(sent < 18 * MIB as u64, "{name}: {sent} bytes were sent for 12 MiB");
        let store = Store::open(url, &server.options).unwrap();
        assert!(store.read(&key).unwrap() == body(3), "{name}");
        let left = store.unfinished_uploads("packs/").unwrap();
        assert!(left.is_none_or(|left| left.is_empty()), "{name}");
    }
}

const WHERE: &str = "BACKSTAY_TEST_PARTS";

/// The work of the process that dies. Does nothing when it is run as a test.
#[test]
fn sends_here() {
    let Ok(place) = std::env::var(WHERE) else { return };
    let (url, endpoint) = place.split_once(' ').unwrap();
    let variables = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_BEARER_TOKEN"];
    let options = StoreOptions {
        endpoint: Some(endpoint.to_owned()),
        region: Some("us-east-1".to_owned()),
        allow_http: true,
        variables: Some(
            variables
                .into_iter()
                .filter_map(|v| Some((v.to_owned(), std::env::var(v).ok()?)))
                .collect(),
        ),
        ..StoreOptions::default()
    };
    Store::open(url, &in_parts(&options)).unwrap().create("packs/w/s/dies", body(4)).unwrap();
}

/// A process that creates `packs/w/s/dies` in parts, and is killed there.
fn dies(failpoint: &str, url: &str, options: &StoreOptions) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["sends_here", "--exact", "--test-threads=1"])
        .env(WHERE, format!("{url} {}", options.endpoint.clone().unwrap()))
        .envs(options.variables.clone().unwrap())
        .env("BACKSTAY_FAILPOINT", failpoint)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(9), "{failpoint}: {status}");
}

/// Killed at each step: no object shows, its parts are found, and removed.
fn dies_in_the_middle(server: &Running, url: &str) {
    let store = Store::open(url, &server.options).unwrap();
    for (failpoint, parts) in
        [("upload-begun", 0), ("upload-part-sent:2", 2), ("upload-parts-sent", 3)]
    {
        dies(failpoint, url, &server.options);
        assert_eq!(store.list("").unwrap(), [], "{failpoint} ({parts} parts)");
        assert!(store.read("packs/w/s/dies").unwrap_err().is_not_found());
        let left = store.unfinished_uploads("packs/w/").unwrap().unwrap();
        assert_eq!(left.len(), 1, "{failpoint}: {left:?}");
        assert_eq!(left[0].key, "packs/w/s/dies");
        assert!(left[0].started.is_some(), "{left:?}");
        assert_eq!(store.unfinished_uploads("packs/x").unwrap().unwrap(), []);
        store.abort_upload(&left[0]).unwrap();
        store.abort_upload(&left[0]).unwrap();
        assert_eq!(store.unfinished_uploads("").unwrap().unwrap(), []);
    }
    // And sent again, it is whole.
    let store = Store::open(url, &in_parts(&server.options)).unwrap();
    store.create("packs/w/s/dies", body(4)).unwrap();
    assert!(store.read("packs/w/s/dies").unwrap() == body(4));
}

fn removed_parts_are_sent_again(server: &Running) {
    let endpoint = server.options.endpoint.clone().unwrap();
    let plain = Store::open("s3://backstay/p", &server.options).unwrap();
    let count = AtomicU64::new(0);
    let proxy = Proxy::start(&endpoint, move |line| {
        if line.starts_with("POST")
            && line.contains("uploadId=")
            && count.fetch_add(1, Ordering::SeqCst) == 0
        {
            for one in plain.unfinished_uploads("packs/").unwrap().unwrap() {
                plain.abort_upload(&one).unwrap();
            }
        }
        None
    });
    let options = StoreOptions { endpoint: Some(proxy.url()), ..in_parts(&server.options) };
    let store = Store::open("s3://backstay/p", &options).unwrap();
    let store = store.with_environment(Environment::seeded(1));
    store.create("packs/large", body(5)).unwrap();
    assert!(store.read("packs/large").unwrap() == body(5));
}

#[test]
fn a_credential_that_may_create_and_send_no_parts_sends_it_whole() {
    let Some(server) = support::servers::other_s3() else { return };
    let endpoint = server.options.endpoint.clone().unwrap();
    let refused = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&refused);
    let proxy = Proxy::start(&endpoint, move |line| {
        line.contains("partNumber=").then(|| {
            count.fetch_add(1, Ordering::SeqCst);
            Harm::Refused(403, "AccessDenied")
        })
    });
    let options = StoreOptions { endpoint: Some(proxy.url()), ..in_parts(&server.options) };
    let store = Store::open("s3://backstay/p", &options).unwrap();
    store.create("packs/one", body(6)).unwrap();
    let asked = refused.load(Ordering::SeqCst);
    assert!(asked > 0);
    // And does not ask again.
    store.create("packs/two", body(7)).unwrap();
    assert_eq!(refused.load(Ordering::SeqCst), asked);
    assert!(store.read("packs/one").unwrap() == body(6));
    assert!(store.read("packs/two").unwrap() == body(7));
    assert_eq!(store.unfinished_uploads("").unwrap().unwrap(), []);
}

#[test]
fn a_service_that_put_together_other_parts_is_not_believed() {
    let server = Server::start(|request| {
        match (request.method.as_str(), request.query.contains_key("uploads")) {
            ("POST", true) => Response::status(200).body("<X><UploadId>u/+=</UploadId></X>"),
            ("PUT", _) => {
                assert_eq!(request.query["uploadId"], "u/+=");
                Response::status(200).header("etag", "\"e\"")
            }
            ("POST", _) => Response::status(200)
                .body("<R><ChecksumSHA256>47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=-3</ChecksumSHA256></R>"),
            _ => Response::status(204),
        }
    });
    let options = StoreOptions {
        endpoint: Some(server.url()),
        allow_http: true,
        variables: Some(vec![
            ("AWS_ACCESS_KEY_ID".to_owned(), "id".to_owned()),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), "secret".to_owned()),
        ]),
        ..StoreOptions::default()
    };
    let store = Store::open("s3://bucket/p", &in_parts(&options)).unwrap();
    let error = store.create("packs/large", body(8)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(error.to_string().contains("other bytes than were sent"), "{error}");
}
