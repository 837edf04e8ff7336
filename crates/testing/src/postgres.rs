//! Throw-away PostgreSQL clusters of every major version that is installed.
//!
//! `scripts/test-postgres` installs the servers. A cluster lies in a folder of its own, listens on a
//! socket in it and on a free loopback port, runs as an unprivileged user, and is gone when it is
//! dropped; the kernel ends it when the test is killed, and what a killed test left on disk is
//! removed by the next one.

mod cluster;
mod folder;
mod installation;
mod load;
mod query;

pub use cluster::{Builder, Cluster, StartFailure};
pub use installation::{Installation, program, version, versions};
pub use load::{Acknowledged, Load};
