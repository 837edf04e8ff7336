//! The built program, used as a person uses it. Output, errors and exit codes are compared with
//! files in `snapshots`; what differs from run to run (ids, times, sizes, folders) is replaced by a
//! word in brackets first.
//!
//! To accept new output: `INSTA_UPDATE=always cargo test -p backstay --test cli`.

// All of this is test code, helpers included.
#![allow(clippy::unwrap_used)]

mod alerts;
mod archive;
mod errors;
mod expire;
mod first_minute;
mod hosts;
#[allow(dead_code)] // it serves other tests as well
#[path = "../../../store/tests/support/http.rs"]
mod http;
mod json;
#[path = "../../../store/tests/support/key_services.rs"]
mod key_services;
mod keys;
mod locked;
mod logical;
mod look;
#[cfg(all(feature = "mount", target_os = "linux"))]
mod mount;
mod repair;
mod sandbox;
mod secrets;
mod serve;
mod several;
mod shell;
mod stop;
