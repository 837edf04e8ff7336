//! Archives of base backups.
#![no_main]

use backstay_postgres::internals;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| internals::pg_tar(bytes));
