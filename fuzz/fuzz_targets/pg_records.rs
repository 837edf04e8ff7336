//! Records of WAL: their blocks, what they do, and what is concluded from them.
#![no_main]

use backstay_postgres::internals;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| internals::pg_records(bytes));
