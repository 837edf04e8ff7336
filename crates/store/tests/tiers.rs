//! Storage classes and archives, on real servers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use backstay_store::{
    Access, Bytes, ErrorKind, Later, StorageClasses, Store, StoreOptions, ThawSpeed, Use,
};

fn classes(options: &StoreOptions, data: &str, rest: &str) -> StoreOptions {
    let some = |class: &str| (!class.is_empty()).then(|| class.to_owned());
    let classes = StorageClasses { data: some(data), rest: some(rest), later: Vec::new() };
    StoreOptions { classes, parts_above: Some(5 << 20), ..options.clone() }
}

/// A life of an object in an archive, in one piece and in parts.
fn is_archived(url: &str, options: &StoreOptions) {
    let store = Store::open(url, options).unwrap();
    assert!(store.archives_data());
    for (key, size) in [("packs/small", 1_000), ("packs/large", 6 << 20)] {
        let body = Bytes::from(vec![7; size]);
        store.create_for(Use::Restores, key, body.clone()).unwrap();
        assert_eq!(store.access(key).unwrap(), Access::Archived, "{key}");
        for error in [store.read(key).unwrap_err(), store.read_range(key, 3..5).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Archived, "{key}: {error}");
            assert!(error.to_string().contains("lies in an archive"), "{error}");
            assert!(error.hint().unwrap().contains("backstay thaw"));
        }
        // It is there all the same.
        assert_eq!(store.head(key).unwrap().size, size as u64);
        let error = store.create_for(Use::Restores, key, Bytes::from(vec![8; size])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        store.thaw(key, ThawSpeed::Standard, 3).unwrap();
        // Asked again, it is asked for already.
        store.thaw(key, ThawSpeed::Standard, 3).unwrap();
        let started = Instant::now();
        while !matches!(store.access(key).unwrap(), Access::Ready { .. }) {
            assert!(started.elapsed() < Duration::from_secs(20), "{key} is never ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(store.read(key).unwrap() == body);
    }
    // What every command reads is stored as usual.
    store.create("snapshots/s", Bytes::from_static(b"s")).unwrap();
    assert_eq!(store.access("snapshots/s").unwrap(), Access::Ready { until: None });
    assert_eq!(store.read("snapshots/s").unwrap(), "s");
    assert!(store.access("snapshots/none").unwrap_err().is_not_found());
}

#[test]
fn glacier_of_moto() {
    let Some(server) = support::servers::other_s3() else { return };
    is_archived("s3://backstay/g", &classes(&server.options, "GLACIER", ""));
    let url = "s3://backstay/c";
    let store = Store::open(url, &classes(&server.options, "GLACIER_IR", "STANDARD_IA")).unwrap();
    assert!(!store.archives_data());
    store.create_for(Use::Restores, "packs/a", Bytes::from_static(b"a")).unwrap();
    store.create("snapshots/a", Bytes::from_static(b"b")).unwrap();
    for (key, class) in [("packs/a", "GLACIER_IR"), ("snapshots/a", "STANDARD_IA")] {
        let answer = server.admin().ask("HEAD", &format!("/backstay/c/{key}"), &[], "");
        assert_eq!(answer.header("x-amz-storage-class"), class);
    }
    assert_eq!(store.read("packs/a").unwrap(), "a");
}

#[test]
fn archive_of_azurite() {
    let Some(server) = support::servers::azure() else { return };
    is_archived("az://backstay/a", &classes(&server.options, "Archive", "Hot"));
}

#[test]
fn google_is_told_the_class() {
    let gcs = std::sync::Arc::new(support::gcs::Gcs::new("bucket", true));
    let there = std::sync::Arc::clone(&gcs);
    let server = support::http::Server::start(move |request| there.answer(request));
    let options = StoreOptions {
        endpoint: Some(server.url()),
        allow_http: true,
        variables: Some(vec![("GOOGLE_BEARER_TOKEN".to_owned(), "token".to_owned())]),
        ..StoreOptions::default()
    };
    let store = Store::open("gs://bucket/p", &classes(&options, "ARCHIVE", "STANDARD")).unwrap();
    // Google's archive answers at once.
    assert!(!store.archives_data());
    store.create_for(Use::Restores, "packs/a", Bytes::from_static(b"a")).unwrap();
    store.create_for(Use::Restores, "packs/large", Bytes::from(vec![7; 6 << 20])).unwrap();
    store.create("snapshots/a", Bytes::from_static(b"b")).unwrap();
    for (key, class) in
        [("packs/a", "ARCHIVE"), ("packs/large", "ARCHIVE"), ("snapshots/a", "STANDARD")]
    {
        assert_eq!(gcs.about(&format!("p/{key}")).unwrap()["storageClass"], class, "{key}");
    }
}

/// The same words for every cloud, as each of them stores it.
#[test]
fn words_for_every_cloud() {
    if let Some(server) = support::servers::other_s3() {
        for (number, (word, class)) in
            [("warm", "STANDARD_IA"), ("cold", "GLACIER_IR"), ("archive", "DEEP_ARCHIVE")]
                .into_iter()
                .enumerate()
        {
            let url = format!("s3://backstay/{number}");
            let store = Store::open(&url, &classes(&server.options, word, "hot")).unwrap();
            assert_eq!(store.archives_data(), word == "archive");
            store.create_for(Use::Restores, "packs/a", Bytes::from_static(b"a")).unwrap();
            let path = format!("/backstay/{number}/packs/a");
            let answer = server.admin().ask("HEAD", &path, &[], "");
            assert_eq!(answer.header("x-amz-storage-class"), class);
        }
    }
    if let Some(server) = support::servers::azure() {
        for (word, class) in
            [("hot", "Hot"), ("warm", "Cool"), ("cold", "Cold"), ("archive", "Archive")]
        {
            let url = format!("az://backstay/{word}");
            let store = Store::open(&url, &classes(&server.options, word, "warm")).unwrap();
            assert_eq!(store.archives_data(), word == "archive");
            store.create_for(Use::Restores, "packs/a", Bytes::from_static(b"a")).unwrap();
            let path = format!("/backstay/{word}/packs/a");
            let answer = server.admin().ask("HEAD", &path, &[], "");
            assert_eq!(answer.header("x-ms-access-tier"), class);
        }
    }
    if let Some(server) = support::servers::google() {
        let store = Store::open("gs://backstay/p", &classes(&server.options, "cold", "hot"));
        let store = store.unwrap();
        store.create_for(Use::Restores, "packs/a", Bytes::from_static(b"a")).unwrap();
        assert_eq!(server.about("p/packs/a")["storageClass"], "COLDLINE");
    }
}

fn later(options: &StoreOptions, classes: &[(&str, u32)]) -> StoreOptions {
    let day = Duration::from_secs(86_400);
    let later = classes
        .iter()
        .map(|(class, days)| Later { class: (*class).to_owned(), after: day * *days })
        .collect();
    StoreOptions {
        classes: StorageClasses { data: Some("hot".to_owned()), rest: None, later },
        ..options.clone()
    }
}

#[test]
fn azure_moves_by_age_and_never_back() {
    let Some(server) = support::servers::azure() else { return };
    let ages = [("warm", 30), ("cold", 90), ("archive", 365)];
    let store = Store::open("az://backstay/m & m", &later(&server.options, &ages)).unwrap();
    assert!(store.moves_by_age() && store.archives_data());
    let keys = ["packs/young", "packs/month", "packs/old", "packs/ancient", "packs/other"];
    for key in keys {
        store.create_for(Use::Restores, key, Bytes::from_static(b"a")).unwrap();
    }
    store.create("snapshots/s", Bytes::from_static(b"s")).unwrap();
    let day = Duration::from_secs(86_400);
    let aged = |ages: [u32; 4]| -> Vec<(String, Duration)> {
        keys.iter().zip(ages).map(|(key, days)| ((*key).to_owned(), day * days)).collect()
    };
    let due = store.due("packs/", &aged([29, 30, 100, 400])).unwrap();
    let said: Vec<_> = due.iter().map(|one| (one.key.as_str(), one.class.as_str())).collect();
    assert_eq!(
        said,
        [("packs/month", "Cool"), ("packs/old", "Cold"), ("packs/ancient", "Archive")]
    );
    for one in &due {
        store.set_class(one).unwrap();
    }
    let tier = |key: &str| {
        let path = format!("/backstay/m%20%26%20m/{key}");
        server.admin().ask("HEAD", &path, &[], "").header("x-ms-access-tier").to_owned()
    };
    assert_eq!(keys.map(tier), ["Hot", "Cool", "Cold", "Archive", "Hot"]);
    assert_eq!(store.access("packs/ancient").unwrap(), Access::Archived);
    // Nothing is due twice, and nothing goes back when ages change.
    assert_eq!(store.due("packs/", &aged([29, 30, 100, 400])).unwrap(), []);
    assert_eq!(store.due("packs/", &aged([1, 1, 40, 100])).unwrap(), []);
    assert_eq!(store.read("packs/old").unwrap(), "a");
}

#[test]
fn ages_that_make_no_sense_are_refused() {
    let options = StoreOptions {
        variables: Some(vec![
            ("AWS_ACCESS_KEY_ID".to_owned(), "id".to_owned()),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), "secret".to_owned()),
            ("GOOGLE_BEARER_TOKEN".to_owned(), "token".to_owned()),
            ("AZURE_STORAGE_ACCOUNT_NAME".to_owned(), "account".to_owned()),
            ("AZURE_STORAGE_ACCOUNT_KEY".to_owned(), "YmFja3N0YXktc2VjcmV0".to_owned()),
        ]),
        ..StoreOptions::default()
    };
    for (url, ages, words) in [
        ("az://b/p", &[("cold", 30), ("warm", 90)][..], "must be colder"),
        ("az://b/p", &[("warm", 30), ("cold", 30)], "come later"),
        ("az://b/p", &[("hot", 30)], "must be colder"),
        ("s3://b/p", &[("GLACIER", 30)], "must be colder"),
        ("s3://b/p", &[("warm", 30), ("archive", 90)], "lists of files"),
        ("gs://b/p", &[("frozen", 30)], "is no storage class"),
    ] {
        let error = Store::open(url, &later(&options, ages)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration, "{url} {ages:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
    // Rules of the bucket do it elsewhere.
    for url in ["s3://b/p", "gs://b/p"] {
        let store = Store::open(url, &later(&options, &[("warm", 30), ("cold", 90)])).unwrap();
        assert!(!store.moves_by_age());
    }
}

#[test]
fn classes_that_make_no_sense_are_refused() {
    let options = StoreOptions {
        variables: Some(vec![
            ("AWS_ACCESS_KEY_ID".to_owned(), "id".to_owned()),
            ("AZURE_STORAGE_ACCOUNT_NAME".to_owned(), "account".to_owned()),
            ("AZURE_STORAGE_ACCOUNT_KEY".to_owned(), "YmFja3N0YXktc2VjcmV0".to_owned()),
        ]),
        ..StoreOptions::default()
    };
    for (url, data, rest, words) in [
        ("s3://b/p", "Glacier", "", "is no storage class; say hot, warm, cold, archive, or"),
        ("s3://b/p", "cold", "archive", "every command reads the rest"),
        ("gs://b/p", "cold", "archive", "every command reads the rest"),
        ("az://b/p", "cold", "cold", "every command reads the rest"),
        ("s3://b/p", "", "GLACIER", "every command reads the rest"),
        ("s3://b/p", "", "DEEP_ARCHIVE", "every command reads the rest"),
        ("az://b/p", "GLACIER", "", "in the service's own words Hot, Cool"),
        ("az://b/p", "", "Archive", "every command reads the rest"),
        ("gs://b/p", "GLACIER_IR", "", "in the service's own words STANDARD, NEARLINE"),
    ] {
        let error = Store::open(url, &classes(&options, data, rest)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration, "{url} {data} {rest}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn what_may_not_be_asked_about_locks_is_unknown() {
    use support::proxy::{Harm, Proxy};
    let Some(server) = support::servers::other_s3() else { return };
    let headers = [("x-amz-bucket-object-lock-enabled", "true")];
    let made = server.admin().ask("PUT", "/locked", &headers, "");
    assert_eq!(made.status, 200, "{}", made.body);
    let plain = Store::open("s3://locked/p", &server.options).unwrap();
    plain.create("packs/a", Bytes::from_static(b"a")).unwrap();
    let endpoint = server.options.endpoint.clone().unwrap();
    for (query, right) in [
        ("?object-lock", "s3:GetBucketObjectLockConfiguration"),
        ("?retention", "s3:GetObjectRetention"),
        ("?legal-hold", "s3:GetObjectLegalHold"),
    ] {
        let proxy = Proxy::start(&endpoint, move |line| {
            line.contains(query).then_some(Harm::Refused(403, "AccessDenied"))
        });
        let options = StoreOptions { endpoint: Some(proxy.url()), ..server.options.clone() };
        let store = Store::open("s3://locked/p", &options).unwrap();
        for error in [store.lock("packs/a").unwrap_err(), store.delete("packs/a").unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Denied, "{query}: {error}");
            assert!(error.to_string().contains(right), "{query}: {error}");
        }
        assert_eq!(plain.read("packs/a").unwrap(), "a");
    }
    // Who may ask is told that there is none.
    assert!(!plain.lock("packs/a").unwrap().unwrap().keeps(std::time::SystemTime::now()));
    plain.delete("packs/a").unwrap();
}
