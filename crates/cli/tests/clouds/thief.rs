//! A host that only backs up has its credential stolen: what the policy that `init` prints leaves
//! to the thief, tried on servers that enforce it, for each object of a repository.

use std::collections::BTreeMap;

use backstay_store::{Store, StoreOptions};

use crate::sandbox::Sandbox;
use crate::support::admin::{Admin, Who, sas};
use crate::support::servers;
use crate::{configure, in_bucket};

const LOCK: &str = "lock = { period = \"1d\" }";

/// Every object, and its bytes.
fn everything(store: &Store) -> BTreeMap<String, Vec<u8>> {
    let listed = store.list("").unwrap();
    listed.into_iter().map(|o| (o.key.clone(), store.read(&o.key).unwrap().to_vec())).collect()
}

/// A repository that the owner made, and another host of which it has a backup already.
fn kinds_of(keys: &BTreeMap<String, Vec<u8>>) -> Vec<&str> {
    let mut kinds: Vec<&str> = keys.keys().map(|key| key.split('/').next().unwrap()).collect();
    kinds.dedup();
    kinds
}

#[test]
fn a_thief_takes_nothing_from_s3() {
    let Some(server) = servers::s3() else { return };
    let admin = server.admin();
    let made = admin.ask("PUT", "/locked", &[("x-amz-bucket-object-lock-enabled", "true")], "");
    assert_eq!(made.status, 200, "{}", made.body);
    let url = "s3://locked/a/repository";
    let mut sandbox = in_bucket(url, &server.options, LOCK);
    let init = sandbox.json(&["init", "--append-only"]);
    assert!(init["repositories"][0]["policy"]["Statement"].is_array(), "{init}");
    let writer = init["repositories"][0]["writer"].as_str().unwrap().to_owned();
    sandbox.good(&["backup", "data"]);

    // The policy as it is printed for a host of SeaweedFS's only account. SeaweedFS does not tell
    // its policies whether a request has If-None-Match, so that statement, which AWS obeys, would
    // forbid every creation there: it is left out, and the thief may write newer versions.
    let principal = "arn:aws:iam::000000000000:user/host";
    let arguments = ["init", "--policy", "s3", "--principal", principal, "--writer", &writer];
    let mut policy = sandbox.json(&arguments)["policy"].clone();
    let statements = policy["Statement"].as_array_mut().unwrap();
    let all = statements.len();
    statements.retain(|statement| statement["Sid"] != "NeverOverwrite");
    assert_eq!(statements.len(), all - 1);
    // Nor for how long a lock is to last.
    let lock = statements.iter_mut().find(|statement| statement["Sid"] == "Lock").unwrap();
    lock.as_object_mut().unwrap().remove("Condition").unwrap();
    // And it knows no operator that ends with IfExists.
    let policy = policy.to_string().replace("StringLikeIfExists", "StringLike");
    let set = admin.ask("PUT", "/locked?policy", &[], &policy);
    assert!(set.status < 300, "{}", set.body);

    // The host backs up with nothing but that.
    let host =
        server.with(&[("AWS_ACCESS_KEY_ID", "host"), ("AWS_SECRET_ACCESS_KEY", "host-secret")]);
    configure(&mut sandbox, url, &host, LOCK);
    sandbox.write("data/new", "of the host\n");
    sandbox.good(&["backup", "data"]);
    sandbox.good(&["verify", "--level", "thorough"]);
    let snapshots = sandbox.snapshots();
    assert_eq!(snapshots.len(), 2);
    // Its own program cannot forget either.
    let forget = sandbox.run(&["forget", &snapshots[0]]);
    assert_ne!(forget.code, 0, "{forget}");
    assert!(forget.stderr.contains("denied"), "{forget}");
    assert_eq!(sandbox.snapshots().len(), 2);

    let owner = Store::open(url, &server.options).unwrap();
    let before = everything(&owner);
    assert_eq!(kinds_of(&before), ["format", "index", "keys", "packs", "sessions", "snapshots"]);
    let versions = |key: &str| {
        let query = format!("/locked?versions&prefix=a/repository/{key}");
        admin.ask("GET", &query, &[], "").all("VersionId")
    };
    let thief = Admin {
        endpoint: admin.endpoint.clone(),
        who: Who::S3 { key: "host".into(), secret: "host-secret".into() },
    };
    let mut shadowed = Vec::new();
    for key in before.keys() {
        let path = format!("/locked/a/repository/{key}");
        let [version] = versions(key).try_into().unwrap();
        let tries = [
            ("DELETE", path.clone(), ""),
            ("DELETE", format!("{path}?versionId={version}"), ""),
            ("PUT", format!("{path}?legal-hold"), "<LegalHold><Status>OFF</Status></LegalHold>"),
            ("PUT", format!("{path}?acl"), ""),
        ];
        for (method, path, body) in tries {
            let answer = thief.ask(method, &path, &[], body);
            assert!(answer.refused(), "{method} {path}: {answer:?}");
        }
        let bypass = [("x-amz-bypass-governance-retention", "true")];
        let answer = thief.ask("DELETE", &format!("{path}?versionId={version}"), &bypass, "");
        assert!(answer.refused(), "{answer:?}");
        // A lock that ends sooner: it may make locks longer, and only that.
        let sooner = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let sooner = format!(
            "<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>{sooner:.0}</RetainUntilDate>\
             </Retention>"
        );
        // The note of a session is not locked: it is gone within the day anyway.
        if !key.starts_with("sessions/") {
            let answer = thief.ask("PUT", &format!("{path}?retention"), &bypass, &sooner);
            assert!(answer.refused(), "{answer:?}");
        }
        let many = format!("<Delete><Object><Key>a/repository/{key}</Key></Object></Delete>");
        let answer = thief.ask("POST", "/locked?delete", &[], &many);
        assert!(answer.refused() || answer.body.contains("AccessDenied"), "{answer:?}");
        // Over it: a plain creation, a copy, an upload in parts.
        let source = [("x-amz-copy-source", "/locked/a/repository/format")];
        let upload = thief.ask("POST", &format!("{path}?uploads"), &[], "");
        let over = [
            thief.ask("PUT", &path, &[], "the thief's"),
            thief.ask("PUT", &path, &source, ""),
            upload,
        ];
        // Only where the host itself writes can it write at all.
        let own = key.contains(&writer) && !key.starts_with("index/1");
        if over.iter().any(|answer| !answer.refused()) {
            assert!(own, "{key}: {over:?}");
            shadowed.push((key.clone(), version));
        }
    }
    // Elsewhere nothing at all: no tombstone, no list of maintenance, no other host's name.
    for key in [
        "tombstones/x",
        "gc/00000001/condemned",
        "index/heads/00000001",
        "snapshots/0000000000000000/x",
        "packs/0000000000000000/x/y",
        "keys/mine",
    ] {
        let answer = thief.ask("PUT", &format!("/locked/a/repository/{key}"), &[], "x");
        assert!(answer.refused(), "{key}: {answer:?}");
    }
    for (query, body) in
        [("policy", "{}"), ("versioning", ""), ("lifecycle", ""), ("object-lock", "")]
    {
        let answer = thief.ask("PUT", &format!("/locked?{query}"), &[], body);
        assert!(answer.refused(), "{query}: {answer:?}");
    }
    assert!(thief.ask("DELETE", "/locked", &[], "").refused());

    // No version of the repository is lost. What the thief put before its own objects is removed
    // by the owner, and all is as it was.
    for (key, version) in &shadowed {
        let path = format!("/locked/a/repository/{key}");
        let mut newer = versions(key);
        assert!(newer.len() > 1, "{key} was overwritten in place");
        newer.retain(|other| other != version);
        for version in newer {
            // A copy brought its lock along.
            let bypass = [("x-amz-bypass-governance-retention", "true")];
            let gone = admin.ask("DELETE", &format!("{path}?versionId={version}"), &bypass, "");
            assert!(gone.status < 300, "{gone:?}");
        }
    }
    assert!(everything(&owner) == before);
    configure(&mut sandbox, url, &server.options, LOCK);
    sandbox.good(&["verify", "--level", "thorough"]);
    assert_eq!(sandbox.snapshots().len(), 2);
}

#[test]
fn a_thief_takes_nothing_from_azure() {
    let Some(server) = servers::azure() else { return };
    let admin = server.admin();
    let url = "az://backstay/a/repository";
    let mut sandbox = in_bucket(url, &server.options, "");
    sandbox.good(&["init"]);
    sandbox.good(&["backup", "data"]);

    let (account, key) = (
        server.variable("AZURE_STORAGE_ACCOUNT_NAME").unwrap(),
        server.variable("AZURE_STORAGE_ACCOUNT_KEY").unwrap(),
    );
    let printed = sandbox.good(&["init", "--policy", "azure"]).stdout;
    let permissions = printed.split("--permissions ").nth(1).unwrap().split(' ').next().unwrap();
    let signature = sas(&account, &key, "backstay", permissions);
    let host = StoreOptions {
        variables: Some(vec![
            ("AZURE_STORAGE_ACCOUNT_NAME".to_owned(), account),
            ("AZURE_STORAGE_SAS_KEY".to_owned(), signature.clone()),
        ]),
        ..server.options.clone()
    };
    configure(&mut sandbox, url, &host, "");
    sandbox.write("data/new", "of the host\n");
    sandbox.good(&["backup", "data"]);
    sandbox.good(&["verify", "--level", "thorough"]);
    assert_eq!(sandbox.snapshots().len(), 2);

    let owner = Store::open(url, &server.options).unwrap();
    let before = everything(&owner);
    let thief = Admin { endpoint: admin.endpoint.clone(), who: Who::Sas(signature) };
    let blob = [("x-ms-blob-type", "BlockBlob")];
    for key in before.keys() {
        let path = format!("/backstay/a/repository/{key}");
        let from = format!("{}/backstay/a/repository/format", admin.endpoint);
        let tries = [
            thief.ask("DELETE", &path, &[], ""),
            thief.ask("PUT", &path, &blob, "the thief's"),
            thief.ask("PUT", &path, &[("x-ms-blob-type", "AppendBlob")], ""),
            thief.ask("PUT", &path, &[("x-ms-copy-source", &from)], ""),
            thief.ask("PUT", &format!("{path}?comp=metadata"), &[("x-ms-meta-a", "b")], ""),
            thief.ask("PUT", &format!("{path}?comp=tier"), &[("x-ms-access-tier", "Archive")], ""),
            thief.ask("PUT", &format!("{path}?comp=properties"), &[], ""),
            thief.ask(
                "PUT",
                &format!("{path}?comp=blocklist"),
                &[],
                "<?xml version=\"1.0\"?><BlockList></BlockList>",
            ),
        ];
        for (n, answer) in tries.iter().enumerate() {
            assert!(answer.refused(), "try {n} at {key}: {answer:?}");
        }
    }
    assert!(thief.ask("DELETE", "/backstay?restype=container", &[], "").refused());
    assert!(everything(&owner) == before);
    sandbox.good(&["verify", "--level", "thorough"]);
}

/// Puts the repository of `sandbox` where its locks run out while one watches.
fn with_short_locks(server: &servers::Running, bucket: &str) -> Sandbox {
    let made = server.admin().ask(
        "PUT",
        &format!("/{bucket}"),
        &[("x-amz-bucket-object-lock-enabled", "true")],
        "",
    );
    assert_eq!(made.status, 200, "{}", made.body);
    in_bucket(&format!("s3://{bucket}/p"), &server.options, "lock = { period = \"8s\" }")
}

#[test]
fn maintenance_copes_with_what_is_locked_and_held() {
    let Some(server) = servers::s3() else { return };
    let sandbox = with_short_locks(&server, "short");
    sandbox.good(&["init"]);
    sandbox.write("data/old", crate::noise(3 << 20, 3));
    sandbox.good(&["backup", "data"]);
    std::fs::remove_file(sandbox.path("data/old")).unwrap();
    sandbox.good(&["backup", "data"]);
    let snapshots = sandbox.snapshots();

    // On hold: nobody forgets it.
    let held = sandbox.json(&["hold", &snapshots[0]]);
    assert!(held["objects"].as_u64().unwrap() > 4, "{held}");
    let refused = sandbox.run(&["forget", &snapshots[0]]);
    assert_eq!(refused.code, 2, "{refused}");
    assert!(refused.stderr.contains("on hold"), "{refused}");
    sandbox.good(&["hold", "--release", &snapshots[0]]);
    sandbox.good(&["forget", &snapshots[0]]);

    // Locked: said, not counted, and no failure.
    let report = sandbox.json(&["maintenance"])["maintenance"][0].clone();
    let number = |report: &serde_json::Value, name: &str| report[name].as_u64().unwrap();
    assert_eq!(number(&report, "packs_removed"), 0, "{report}");
    assert!(number(&report, "packs_locked") > 0, "{report}");
    assert!(number(&report, "bytes_locked") > 0, "{report}");
    assert!(report["locked_until"].is_string(), "{report}");
    let said = sandbox.good(&["maintenance"]).stdout;
    assert!(said.contains("locked by the store until 20"), "{said}");

    // What is needed is locked anew, what is not is removed when its lock is over.
    let started = std::time::Instant::now();
    let store = Store::open("s3://short/p", &server.options).unwrap();
    let mut extended = 0;
    loop {
        let report = sandbox.json(&["maintenance"])["maintenance"][0].clone();
        extended += number(&report, "locks_extended");
        let size: u64 = store.list("").unwrap().iter().map(|object| object.size).sum();
        if size < 1 << 20 && extended > 0 {
            break;
        }
        assert!(started.elapsed().as_secs() < 60, "{size} bytes are left: {report}");
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    // The bytes went, not only the names.
    let versions = server.admin().ask("GET", "/short?versions&prefix=p/packs/", &[], "");
    let kept: u64 = versions.all("Size").iter().map(|size| size.parse::<u64>().unwrap()).sum();
    assert!(kept < 1 << 20, "{kept} bytes of versions are left");
    sandbox.good(&["verify", "--level", "thorough"]);
    assert_eq!(sandbox.snapshots(), snapshots[1..]);
}
