//! The built program and real object stores: servers and clients that die, stolen credentials,
//! locks.

// All of this is test code, helpers included.
#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "shared with the other tests of the program")]

#[path = "../cli/sandbox.rs"]
mod sandbox;
#[path = "../../../store/tests/support/mod.rs"]
mod support;

mod ages;
mod archive;
mod death;
mod thief;

use backstay_store::{Store, StoreOptions};
use sandbox::Sandbox;

/// A sandbox whose repository is in a bucket, with the credentials of `options`.
fn in_bucket(url: &str, options: &StoreOptions, more: &str) -> Sandbox {
    let mut sandbox = Sandbox::new();
    sandbox.tree();
    configure(&mut sandbox, url, options, more);
    sandbox
}

fn configure(sandbox: &mut Sandbox, url: &str, options: &StoreOptions, more: &str) {
    sandbox.write(
        "backstay.toml",
        format!(
            "[repositories.main]\nurl = \"{url}\"\nkey-file = \"main.key\"\nendpoint = \"{}\"\n\
             region = \"us-east-1\"\nallow-http = true\n{more}\n\
             [sources.data]\nkind = \"files\"\npaths = [\"data\"]\n",
            options.endpoint.as_deref().unwrap()
        ),
    );
    sandbox.variables = options.variables.iter().flatten().cloned().collect();
}

/// Bytes that do not compress, the same each time.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    use backstay_store::Random as _;
    let mut bytes = vec![0; length];
    backstay_store::SeededRandom::new(seed).fill(&mut bytes);
    bytes
}

/// Polls until something is stored below `prefix`.
fn until_stored(store: &Store, prefix: &str) {
    let started = std::time::Instant::now();
    while store.list(prefix).unwrap().is_empty() {
        assert!(started.elapsed().as_secs() < 60, "nothing is stored below {prefix}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
