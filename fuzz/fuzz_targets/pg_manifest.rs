//! Manifests of base backups, with and without the checksum that belongs to them.
#![no_main]

use backstay_postgres::internals;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| internals::pg_manifest(bytes));
