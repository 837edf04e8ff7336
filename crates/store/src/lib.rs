//! Object storage behind one blocking handle.
//!
//! Everything a repository reads or writes passes through [`Store`]: no crate above this one
//! opens a repository file or speaks to a bucket. A back end is one implementation of
//! [`Backend`] and passes the same conformance suite as all others.
//!
//! What lives here: back ends, services that keep keys, retries, rate limits, fault injection, and the handles for time
//! and randomness. What does not: any knowledge of what the objects mean.

mod backend;
pub mod conformance;
mod env;
mod error;
pub mod failpoint;
mod faulty;
mod in_order;
#[doc(hidden)]
pub mod internals;
mod key;
mod key_service;
mod limit;
mod local;
mod lock;
mod memory;
mod open;
mod options;
mod parity;
mod parts;
mod probe;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure", feature = "key-services"))]
mod remote;
mod store;
mod tier;

pub use backend::{Backend, Judge, ObjectMeta, Parity, ParityState};
pub use bytes::Bytes;
pub use env::{Clock, Environment, FixedClock, Random, SeededRandom};
pub use error::{ErrorKind, StoreError};
pub use faulty::{Fault, Faulty, Operation, Rule, When};
pub use in_order::Arrived;
pub use key::{MAX_COMPONENT, MAX_KEY, is_valid_key, is_valid_prefix};
pub use key_service::{
    AwsKmsOptions, KeyService, KeyServiceError, KeyServiceErrorKind, KeyServiceKind, VaultOptions,
    Wrapped,
};
pub use local::Local;
pub use lock::{Lock, LockMode, LockPolicy};
pub use memory::Memory;
pub use options::{RetryPolicy, StoreOptions};
pub use parts::{Part, Unfinished};
pub use store::Store;
pub use tier::{Access, Later, Move, StorageClasses, ThawSpeed, Use};

/// The result of everything that touches a store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;
