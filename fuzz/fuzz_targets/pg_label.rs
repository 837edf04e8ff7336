//! A `backup_label`, and the names and places that are in such texts.
#![no_main]

use backstay_postgres::internals;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| internals::pg_label(bytes));
