//! `pg_control`, with and without the checksum that belongs to it.
#![no_main]

use backstay_postgres::internals;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| internals::pg_control(bytes));
