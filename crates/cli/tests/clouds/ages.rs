//! Content that grows old, on a store that moves it in place.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backstay_repo::{MaintenanceOptions, OpenOptions, Progress, Repository, Secret};
use backstay_store::{Environment, ErrorKind, FixedClock, Store};

use crate::{in_bucket, noise, support};

const URL: &str = "az://backstay/ages";

/// Maintenance, so many days from now.
fn maintained(sandbox: &crate::sandbox::Sandbox, store: &Store, days: u32) -> (u64, u64) {
    let ahead = SystemTime::now() + Duration::from_secs(86_400) * days;
    let env = Environment { clock: Arc::new(FixedClock::new(ahead)), ..Environment::system() };
    let secret = Secret::key_file(std::fs::read(sandbox.path("main.key")).unwrap()).unwrap();
    let repository = Repository::open(store.clone(), env, &secret, OpenOptions::default()).unwrap();
    let progress = Arc::new(Progress::default());
    let report = repository.maintain(&MaintenanceOptions::default(), &progress).unwrap();
    assert!(report.bytes_moved >= report.packs_moved);
    (report.packs_moved, report.packs_removed)
}

#[test]
fn old_content_goes_down_and_lists_of_files_stay() {
    let Some(server) = support::servers::azure() else { return };
    let ages =
        "storage-class = { data = \"hot\", later = [\"cold after 30d\", \"archive after 180d\"] }";
    let sandbox = in_bucket(URL, &server.options, ages);
    sandbox.good(&["init"]);
    sandbox.write("data/big", noise(3 << 20, 1));
    sandbox.good(&["backup", "data"]);
    let report = sandbox.json(&["maintenance"]);
    assert_eq!(report["maintenance"][0]["packs_moved"], 0, "{report}");

    let mut options = server.options.clone();
    let day = Duration::from_secs(86_400);
    options.classes.later = [("cold", 30), ("archive", 180)]
        .map(|(class, days)| backstay_store::Later { class: class.to_owned(), after: day * days })
        .to_vec();
    let store = Store::open(URL, &options).unwrap();
    let packs = store.list("packs/").unwrap();
    let tier = |key: &str| {
        let answer = server.admin().ask("HEAD", &format!("/backstay/ages/{key}"), &[], "");
        answer.header("x-ms-access-tier").to_owned()
    };
    let in_tier = |wanted: &str| packs.iter().filter(|pack| tier(&pack.key) == wanted).count();
    assert_eq!(maintained(&sandbox, &store, 29), (0, 0));
    let (moved, removed) = maintained(&sandbox, &store, 31);
    assert!(moved > 0 && (moved as usize) < packs.len() && removed == 0, "{moved} {removed}");
    assert_eq!((in_tier("Cold"), in_tier("Hot")), (moved as usize, packs.len() - moved as usize));
    // What is cold answers at once.
    sandbox.good(&["verify", "--level", "thorough"]);
    assert_eq!(maintained(&sandbox, &store, 40), (0, 0));

    assert_eq!(maintained(&sandbox, &store, 181).0, moved);
    assert_eq!(in_tier("Archive"), moved as usize);
    // Nothing but the content has to be fetched, and a backup needs none of that.
    assert!(sandbox.good(&["find", "**/big"]).stdout.contains("data/big"));
    sandbox.write("data/new", "new\n");
    sandbox.good(&["backup", "data"]);
    let pack = packs.iter().find(|pack| tier(&pack.key) == "Archive").unwrap();
    assert_eq!(store.read(&pack.key).unwrap_err().kind(), ErrorKind::Archived);
    let refused = sandbox.run(&["restore", "data", "--to", "refused"]);
    assert_eq!(refused.code, 1, "{refused}");
    assert!(refused.stderr.contains("--delta --thaw"), "{refused}");
    sandbox.good(&["restore", "data", "--to", "restored", "--thaw"]);
    let big = sandbox.files("restored").into_iter().find(|path| path.ends_with("data/big"));
    assert!(std::fs::read(big.unwrap()).unwrap() == noise(3 << 20, 1));

    // Rules would be too much.
    let ran = sandbox.run(&["init", "--lifecycle"]);
    assert_eq!(ran.code, 2, "{ran}");
    assert!(ran.stderr.contains("no rules are needed"), "{ran}");
}
